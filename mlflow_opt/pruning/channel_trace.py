"""What is written down while labels are followed through an exported graph."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mlflow_opt.pruning.channel_labels import Ints, Ledger, Value, Weight


@dataclass(frozen=True)
class Call:
    """One call of an operation: its name without `aten.`, its arguments as values, the shape of its answer, the calling module."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shape: tuple[int, ...]
    module: str

    def arg(self, at: int, name: str, default: Any = None) -> Any:
        """Return an argument given by place or by name."""
        return self.args[at] if at < len(self.args) else self.kwargs.get(name, default)

    @property
    def operands(self) -> list[Value | Weight]:
        """List every tensor that is given, those in lists too."""
        flat: list[Any] = []
        for one in (*self.args, *self.kwargs.values()):
            flat.extend(one if isinstance(one, (list, tuple)) else [one])
        return [one for one in flat if isinstance(one, (Value, Weight))]


@dataclass(frozen=True)
class Reshaped:
    """A tensor after a reshape: it stays a grid only if whole slices of it are removed, and `module` may hold its sizes."""

    module: str
    value: Value


@dataclass(frozen=True)
class Product:
    """The multiplications of one layer or matrix product for one row: a share of `macs` that follows what is left of each axis."""

    macs: float
    axes: tuple[Ints, ...]


@dataclass
class Trace:
    """What is learnt while an exported graph is followed.

    Args:
        ledger: the labels.
        producers: (parameter, axis) that make channels: a layer's outputs.
        grouped: grouped convolutions' weights -> labels of their input channels.
        reshaped: see `Reshaped`.
        products: see `Product`.
    """

    ledger: Ledger = field(default_factory=Ledger)
    producers: list[tuple[str, int]] = field(default_factory=list)
    grouped: dict[str, Ints] = field(default_factory=dict)
    reshaped: list[Reshaped] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)


def unknown(trace: Trace, call: Call) -> Value:
    """Fix all that an operation touches: nobody knows what it does."""
    for one in call.operands:
        if isinstance(one, Weight):
            trace.ledger.fix_weight(one)
        else:
            trace.ledger.fix(one.labels)
    return trace.ledger.untracked(call.shape)
