"""The nouns of the project: what a technique makes, what is measured of it, what is asked, what is decided.

Everything here is a frozen value without behaviour beyond its own consistency, so that the gate, the hook inside a
tracking server and a recipe mean the same thing by the same word. This module imports nothing of ours and nothing heavy.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, Protocol

Param = str | int | float | bool


class Predictor(Protocol):
    """What a technique hands around: anything that can answer a batch of rows, in three steps so that only `call` is timed."""

    @property
    def flavour(self) -> str:
        """Name the kind of runtime: `sklearn`, `lightgbm`, `xgboost`, `torch`, `onnx`."""

    def prepare(self, batch: Any) -> Any:
        """Turn a batch of the data set into what the runtime takes (untimed)."""

    def call(self, prepared: Any) -> Any:
        """Run the model's own call (timed)."""

    def scores(self, raw: Any) -> Any:
        """Turn the runtime's answer into scores (untimed): shape (n, classes) for a classifier, (n,) for a regressor."""


@dataclass(frozen=True)
class Variant:
    """A candidate model made by a technique, with the parameters that made it."""

    name: str
    model: Predictor
    params: Mapping[str, Param] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "params", MappingProxyType(dict(self.params)))


@dataclass(frozen=True)
class Task:
    """What is predicted: the kind of task and, for a classifier, its class labels in score-column order."""

    kind: Literal["binary", "multiclass", "regression"]
    classes: tuple[Any, ...] = ()

    @property
    def positive(self) -> Any:
        """Return the positive class of a binary task: the later label in sorted order."""
        if self.kind != "binary":
            raise ValueError(f"only a binary task has a positive class, this task is {self.kind}.")
        return self.classes[1]


@dataclass(frozen=True)
class Quantity:
    """One measured value with its interval and the number of samples behind it; `lo == hi == value` when it is exact."""

    value: float
    lo: float
    hi: float
    n: int

    @property
    def usable(self) -> bool:
        """Tell whether a decision may rest on it: finite, ordered, with samples behind it."""
        finite = all(math.isfinite(x) and abs(x) < INFINITE for x in (self.value, self.lo, self.hi))
        return finite and self.n > 0 and self.lo <= self.value <= self.hi


# MLflow stores an infinity that was logged with a model id as 1.8e308, so anything this large counts as infinite.
INFINITE = 1e308


@dataclass(frozen=True)
class Measurement:
    """What the one stopwatch and the one scorer say of a model on one data set on one machine.

    Args:
        quantities: metric name (`latency_p50_ms`, `drop_f1`, `slice/two_year/f1`, ...) -> value with interval.
        reference: identity of the model that relative quantities compare with, `""` if there are none.
        data_digest: digest of the rows measured.
        fingerprint: hardware and runtime, as sorted `key=value` pairs.
        doubt: why the machine was too noisy to judge, `""` if it was quiet enough.
    """

    quantities: Mapping[str, Quantity]
    reference: str = ""
    data_digest: str = ""
    fingerprint: str = ""
    doubt: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "quantities", MappingProxyType(dict(self.quantities)))


@dataclass(frozen=True)
class Criterion:
    """One threshold: the judged quantity, the side it is bounded on, and the bound.

    A policy's `{metric: f1, max_drop: 0.01}` is the criterion `drop_f1 max 0.01`: every key of the file is reduced to
    a quantity with a `min` or a `max`, so that there is one rule for judging.
    """

    quantity: str
    side: Literal["min", "max"]
    bound: float
    metric: str
    slice_id: str = ""
    slice_rows: str = ""


@dataclass(frozen=True)
class Policy:
    """The thresholds a candidate must meet, and the aliases that nobody may move without a PASS.

    Args:
        criteria: what must hold, all of it.
        guards: aliases that the hook protects, compared without regard to case.
        confidence: of the intervals, in (0.5, 1).
        expires_days: how long evidence stays good.
        promote: `auto` lets the hook move the alias itself when the challenger's evidence passes.
        mode: `enforce`; `dry_run` says what it would do; `off`.
        hardware: glob that the evidence's fingerprint must match, `""` for any machine.
        verify_files: whether the hook hashes the model's files.
        data_digest: of the gate rows that evidence must come from, `""` for any.
        trusted_keys: public keys, base64, of which one must have signed the evidence; empty for unsigned evidence as well.
        trusted_experiments: ids of experiments of which one must hold the evidence; empty for any.
        waivers: users who may waive a criterion, `*` for whoever asks; empty for nobody.
        digest: over criteria and confidence, which is what decides.
    """

    criteria: tuple[Criterion, ...]
    guards: tuple[str, ...] = ("champion",)
    confidence: float = 0.95
    expires_days: float = 30.0
    promote: Literal["manual", "auto"] = "manual"
    mode: Literal["enforce", "dry_run", "off"] = "enforce"
    hardware: str = ""
    verify_files: bool = False
    data_digest: str = ""
    trusted_keys: tuple[str, ...] = ()
    trusted_experiments: tuple[str, ...] = ()
    waivers: tuple[str, ...] = ()
    digest: str = ""


@dataclass(frozen=True)
class Binding:
    """What a verdict is bound to: it says nothing about any other model, data, policy, reference or machine.

    Args:
        model_id: the logged model judged, `m-...`.
        model_digest: sha256 over the model's files.
        data_digest: digest of the gate rows.
        split_digest: digest of the whole split; a chain of versions keeps one.
        policy_digest: digest of the policy's criteria and confidence.
        reference_model_id: the logged model that relative quantities compare with.
        fingerprint: hardware and runtime of the measurement.
        task: `binary`, `multiclass` or `regression`.
        measured_at: end of the measurement, milliseconds since the epoch.
    """

    model_id: str
    model_digest: str
    data_digest: str
    split_digest: str
    policy_digest: str
    reference_model_id: str
    fingerprint: str
    task: str
    measured_at: int


class Outcome(enum.Enum):
    """The three answers of the gate; anything that is not a PASS keeps a model out."""

    PASS = "PASS"
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"


@dataclass(frozen=True)
class Reason:
    """How one criterion was decided: the criterion, what was measured (None if nothing), the outcome, one sentence."""

    criterion: Criterion | None
    measured: Quantity | None
    outcome: Outcome
    text: str


@dataclass(frozen=True)
class Verdict:
    """PASS, FAIL or INCONCLUSIVE with one reason per criterion; a `Binding` beside it says what it holds for."""

    outcome: Outcome
    reasons: tuple[Reason, ...]

    @property
    def passed(self) -> bool:
        """Tell whether the candidate may be promoted."""
        return self.outcome is Outcome.PASS
