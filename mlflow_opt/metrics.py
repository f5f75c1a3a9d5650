"""The names of everything that is measured, and which way is better: the one list that policy, scorer, gate and UI share."""

from __future__ import annotations

# Quality metrics by kind of task; the first one is the task's headline, used where one number must stand for quality.
QUALITY: dict[str, tuple[str, ...]] = {
    "binary": ("roc_auc", "accuracy", "f1", "log_loss", "average_precision", "precision_at_k"),
    "multiclass": ("accuracy", "f1", "log_loss", "roc_auc"),
    "regression": ("r2", "mae", "rmse", "mape"),
}
COST: tuple[str, ...] = (
    "latency_p50_ms",
    "latency_p95_ms",
    "latency_p99_ms",
    "pyfunc_p50_ms",
    "throughput_rows_per_s",
    "size_mb",
    "memory_mb",
    "train_seconds",
    "cost_per_million",
    "parameters",
    "macs",
)
RELATIVE: tuple[str, ...] = ("speedup", "throughput_ratio")
PARITY: tuple[str, ...] = ("label_flips", "max_abs_diff")

# A user's own metric (`metric=path.py:profit`) is called `own_profit`; larger is better.
OWN_PREFIX = "own_"

_SMALLER_IS_BETTER = {"log_loss", "mae", "rmse", "mape"}
_QUALITY_NAMES = {name for names in QUALITY.values() for name in names}


def is_quality(metric: str) -> bool:
    """Tell whether a name is a quality metric, ours or the user's own, so that `drop_` and `rel_drop_` exist for it."""
    return metric in _QUALITY_NAMES or metric.startswith(OWN_PREFIX)


def is_known(metric: str) -> bool:
    """Tell whether a name may stand in a policy.

    Example:
        >>> is_known("drop_f1"), is_known("latency_p99_ms"), is_known("latency")
        (True, True, False)
    """
    stem = metric.removeprefix("rel_").removeprefix("drop_")
    return metric in (*COST, *RELATIVE, *PARITY) or is_quality(stem)


def larger_is_better(metric: str) -> bool:
    """Tell the direction of a quality metric.

    Example:
        >>> larger_is_better("accuracy"), larger_is_better("rmse")
        (True, False)
    """
    return metric not in _SMALLER_IS_BETTER


def known_names() -> list[str]:
    """List every plain metric name, for messages."""
    return sorted({*_QUALITY_NAMES, *COST, *RELATIVE, *PARITY})
