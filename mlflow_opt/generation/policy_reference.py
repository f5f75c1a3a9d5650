"""The tables of docs/policy.md, from the code that reads a policy: keys, bounds, metrics, and the default policies."""

from __future__ import annotations

from dataclasses import MISSING, fields

from mlflow_opt import metrics, policy
from mlflow_opt.declaration.docstring import read_docstring
from mlflow_opt.records import Policy

# A file's own name for what the code calls otherwise.
_IN_FILE = {"criteria": "validation_criteria"}
_BOUNDS = {
    "id": "name of a slice, for its metrics: letters, digits, `-` and `_`",
    "slice": 'the rows that it is about: a pandas query on the table\'s columns, such as `contract == "Two year"`',
    "metric": "one of the metrics below, or `own_NAME` for a metric of your own",
    "min": "at least so much",
    "max": "at most so much",
    "max_drop": "at most so much worse than the version it replaces, in the metric's own unit: 0.01 of accuracy is one point",
    "max_relative_drop": "at most this share worse",
    "min_improvement": "at least so much better",
}
_METRICS = {
    "latency_p50_ms": "median of one row, the model's own call",
    "latency_p95_ms": "95th percentile of the same",
    "latency_p99_ms": "99th percentile; needs 200 samples",
    "pyfunc_p50_ms": "median of one row through MLflow's pyfunc, which checks the schema each time; measured only if asked for",
    "throughput_rows_per_s": "rows a second in batches; the batch is in the fingerprint",
    "size_mb": "of the model's files",
    "memory_mb": "of a process that serves it; measured only if asked for",
    "train_seconds": "what making the variant took",
    "cost_per_million": "predictions, at a stated price of a core-hour",
    "parameters": "weights, or nodes of trees",
    "macs": "multiplications of one row",
    "speedup": "median latency of the version it replaces, divided by its own; above 1 is faster",
    "throughput_ratio": "the same of throughput",
    "label_flips": "answers that differ from the other version's",
    "max_abs_diff": "largest difference of any output",
}


def keys_table() -> str:
    """Write the keys of a policy file with their meaning and default."""
    meanings = read_docstring(Policy.__doc__ or "").args
    defaults = {field.name: field.default for field in fields(Policy)}
    rows = ["| key | meaning | default |", "|---|---|---|"]
    names = {_IN_FILE.get(name, name): name for name in defaults if name != "digest"}
    for key in policy.KEYS:
        meaning, default = meanings[names[key]], defaults[names[key]]
        rows.append(f"| `{key}` | {_sentence(meaning)} | {'-' if default is MISSING else _shown(default)} |")
    return "\n".join(rows) + "\n"


def bounds_table() -> str:
    """Write the keys of one criterion."""
    return "\n".join(["| key | meaning |", "|---|---|", *(f"| `{key}` | {_BOUNDS[key]} |" for key in policy.CRITERION_KEYS)]) + "\n"


def metrics_table() -> str:
    """Write the metrics that a criterion may bound."""
    rows = ["| metric | what it is |", "|---|---|"]
    for kind, names in metrics.QUALITY.items():
        listed = ", ".join(f"`{name}`" + ("" if metrics.larger_is_better(name) else " (smaller is better)") for name in names)
        rows.append(f"| {listed} | quality, {kind}; the first is its headline |")
    rows += [f"| `{name}` | {_METRICS[name]} |" for name in (*metrics.COST, *metrics.RELATIVE, *metrics.PARITY)]
    return "\n".join(rows) + "\n"


def defaults_block() -> str:
    """Write the policies that hold where nobody gave one."""
    shown = []
    for task in metrics.QUALITY:
        listed = policy.policy_text(policy.default_policy(task)).partition("validation_criteria:\n")[2].partition("confidence")[0]
        shown.append(f"# {task}\nvalidation_criteria:\n{listed.rstrip()}")
    return "```yaml\n" + "\n".join(shown) + "\n```\n"


def _sentence(text: str) -> str:
    return text.rstrip(".").replace("|", "\\|")


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`" if value else "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`" if value != "" else "none"
