"""LightGBM's trees run by ONNX Runtime, with LightGBM's own bits: two to three times as fast for the batches of a server.

Both take the same decisions in double precision and add a row's leaves in the order of the trees, so that the sums are equal.
What follows the sum is done here and not in the graph: ONNX Runtime's sigmoid and softmax are vectorised and differ in last
bits, while Python's `math.exp` is the C library's, which LightGBM calls as well. None of this is taken on trust: a booster
whose answers differ on rows drawn around its own thresholds is asked through LightGBM.

Source: Ke et al., "LightGBM: A Highly Efficient Gradient Boosting Decision Tree", 2017; its `ConvertOutput` functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from mlflow_opt.export import dropin_code
from mlflow_opt.export.lightgbm_trees import Link, booster_graph, link_of

_ROWS = "rows"
# LightGBM reads numbers up to this size as zero before it asks a tree.
_ZERO = 1.0000000180025095e-35
_COMPARED = 1024
_SIZES = (1, 2, 7, 33, 400)


class Inexact(ValueError):  # noqa: N818 - it says why LightGBM is asked itself, which is no error of anybody
    """Why a booster's trees are not run by ONNX Runtime."""


class ExactTrees:
    """A booster's answers, bit for bit those of its `predict`, in one thread."""

    def __init__(self, booster: Any) -> None:
        """Write the trees as a graph, open it, and compare it with the booster.

        Args:
            booster: a `lightgbm.Booster` that does not change any more.

        Raises:
            Inexact: the trees cannot be written so, or some answer differs.
        """
        try:
            # The server's extra does not ask for it: LightGBM answers as well without, and slower.
            import onnx  # noqa: F401
        except ModuleNotFoundError as error:
            raise Inexact("the package onnx is not installed") from error
        read = _Read(booster)
        rows = _rows_around_thresholds(read)
        try:
            self._link = link_of(read)
            graph = booster_graph(read, _ROWS, np.float64)
        except ValueError as error:
            raise Inexact(str(error)) from error
        self._session = dropin_code.open_session(_sums_only(graph), dropin_code.SessionOptions(threads=1))
        self._booster = booster
        self._compare(rows)

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Answer rows.

        Args:
            rows: float64, shape (rows, features).

        Returns:
            What `predict` gives: (rows,), or (rows, classes).
        """
        read = np.where(np.abs(rows) <= _ZERO, 0.0, rows)
        (sums,) = dropin_code.run(self._session, [_ROWS + "_sums"], {_ROWS: read})
        try:
            return _linked(np.asarray(sums), self._link)
        except OverflowError:
            # Beyond the range of a double C goes on with infinity where Python stops.
            return np.asarray(self._booster.predict(rows, num_threads=1))

    def _compare(self, rows: np.ndarray) -> None:
        wanted = np.asarray(self._booster.predict(rows, num_threads=1))
        start = 0
        for size in _SIZES:
            part = slice(start, start + size)
            if not np.array_equal(self(rows[part]), wanted[part], equal_nan=True):
                raise Inexact("an answer differs from LightGBM's own")
            start += size


class _Read:
    """Stands for a booster that is read and not asked.

    Its trees are dumped once: parsing them holds Python's lock, and with it every request being answered, for tenths of a second.
    """

    def __init__(self, booster: Any) -> None:
        self._dump, self.num_feature = booster.dump_model(), booster.num_feature
        self.num_model_per_iteration = booster.num_model_per_iteration

    def dump_model(self, **_: Any) -> dict[str, Any]:
        return self._dump  # type: ignore[no-any-return]


def _sums_only(graph: Any) -> bytes:
    """Cut a booster's graph off behind its trees."""
    nodes = graph.graph.node
    trees = next(index for index, node in enumerate(nodes) if node.op_type == "TreeEnsemble")
    del nodes[trees + 1 :]
    nodes[trees].output[0] = graph.graph.output[0].name = _ROWS + "_sums"
    return bytes(graph.SerializeToString())


def _linked(sums: np.ndarray, link: Link) -> np.ndarray:
    function = _FUNCTIONS.get(link.kind)
    if link.kind == "softmax":
        return np.array([_softmax(row) for row in sums.tolist()])
    if link.columns == 1:
        flat = sums.reshape(-1)
        return flat if function is None else np.array([function(value, link.slope) for value in flat.tolist()])
    return sums if function is None else np.array([[function(value, link.slope) for value in row] for row in sums.tolist()])


def _logistic(value: float, slope: float) -> float:
    return 1.0 / (1.0 + math.exp(-slope * value))


def _exponential(value: float, _: float) -> float:
    return math.exp(value)


def _square(value: float, _: float) -> float:
    return math.copysign(1.0, value) * value * value if value else 0.0


def _softmax(row: list[float]) -> list[float]:
    most = max(row)
    powers = [math.exp(value - most) for value in row]
    whole = 0.0
    # One by one and not `sum`, which from Python 3.12 on carries the rounding errors along.
    for power in powers:
        whole += power
    return [power / whole for power in powers]


_FUNCTIONS: dict[str, Callable[[float, float], float]] = {"logistic": _logistic, "exponential": _exponential, "square": _square}


def _rows_around_thresholds(booster: Any) -> np.ndarray:
    """Draw rows from the values at which the trees decide, their neighbours, and what is strange: zero, missing, infinite."""
    width, rng = booster.num_feature(), np.random.default_rng(0)
    found: list[list[float]] = [[0.0, -0.0, math.nan, math.inf, -math.inf, 1e-36, 1e300] for _ in range(width)]
    for feature, threshold in _thresholds(booster):
        found[feature] += [threshold, math.nextafter(threshold, math.inf), threshold - abs(threshold) * 1e-3]
    rows = np.stack([rng.choice(np.array(values), _COMPARED) for values in found], axis=1)
    # Most rows without anything strange, which would send them all the same way.
    plain = rng.normal(size=rows.shape)
    return np.where(rng.random(rows.shape) < rng.random((_COMPARED, 1)), rows, plain)


def _thresholds(booster: Any) -> list[tuple[int, float]]:
    found: list[tuple[int, float]] = []
    for tree in booster.dump_model()["tree_info"]:
        stack = [tree["tree_structure"]]
        while stack:
            one = stack.pop()
            if "split_index" not in one:
                continue
            if one["decision_type"] != "<=":
                # LightGBM cuts a category's fraction off, the operator compares it as it is.
                raise Inexact("a tree asks for categories")
            stack += [one["left_child"], one["right_child"]]
            found.append((int(one["split_feature"]), float(one["threshold"])))
    return found
