"""What the recipe `serve` shows: metrics of a setting, the table, the curves of rate against latency."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_opt.serving.contender import Found, Objective

if TYPE_CHECKING:
    from mlflow_opt.serving.study import Tried

_HOUR_S = 3600.0


def metrics(found: Found, hits: float, price_per_core_hour: float) -> dict[str, float]:
    """Name what a setting sustains.

    Args:
        found: what was measured.
        hits: share of answers from the cache.
        price_per_core_hour: of one core, in any currency.

    Returns:
        `requests_per_s` within the objective, `serve_p50_ms` to `serve_p99_ms` at that rate, `capacity_per_s` of a closed loop,
        `cpu_us` and `cost_per_million` of processor time alone, `cache_hit_rate`, `failed` requests of all stretches.

    """
    best = found.best
    return {
        "requests_per_s": found.sustained,
        "serve_p50_ms": best.p50_ms,
        "serve_p95_ms": best.p95_ms,
        "serve_p99_ms": best.p99_ms,
        "capacity_per_s": found.capacity,
        "cpu_us": found.cpu_us,
        "cost_per_million": found.cpu_us * price_per_core_hour / _HOUR_S,
        "cache_hit_rate": hits,
        "failed": float(sum(load.failed for load in found.curve)),
    }


def table(tried: Sequence[Tried], chosen: Tried | None, price: float) -> str:
    """Write the settings as a Markdown table that also reads well as plain text."""
    head = ["variant", "requests/s", "p50 ms", "p95 ms", "p99 ms", "full load/s", "CPU us", "cost/million", "hits", ""]
    body = []
    for one in tried:
        got = metrics(one.found, one.hit_rate, price)
        numbers = [f"{got['requests_per_s']:.0f}", *(f"{got[f'serve_{name}_ms']:.2f}" for name in ("p50", "p95", "p99"))]
        numbers += [f"{got['capacity_per_s']:.0f}", f"{got['cpu_us']:.0f}", f"{got['cost_per_million']:.4f}", f"{one.hit_rate:.0%}"]
        body.append([one.name, *numbers, "chosen" if one is chosen else ""])
    widths = [max(len(line[at]) for line in [head, *body]) for at in range(len(head))]
    lines = [head, ["-" * width for width in widths], *body]
    return "\n".join("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines)


def description(tried: Sequence[Tried], chosen: Tried | None, lines: Sequence[str], objective: Objective, price: float) -> str:
    """Write the run's description."""
    asked = (
        f"Requests per second at which 95% are answered within {objective.p95_ms:g} ms of the moment they were meant to be sent "
        f"(Poisson arrivals, {objective.seconds:g} s a stretch, {objective.connections} connections from this machine)."
    )
    return "\n\n".join([table(tried, chosen, price), asked, *lines])


def save_curves(tried: Sequence[Tried], p95_ms: float, path: Path) -> None:
    """Draw rate against p95, one line a setting, the objective as a line across."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), dpi=120, layout="tight")
    axes = figure.subplots()
    for one in tried:
        axes.plot([load.offered for load in one.found.curve], [load.p95_ms for load in one.found.curve], marker="o", label=one.name)
    axes.axhline(p95_ms, color="#888888", linestyle="--", linewidth=1)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("requests per second offered (open loop, log scale)")
    axes.set_ylabel("p95 in ms from the intended moment (log scale)")
    axes.set_title("Lower and further right is better; the dashed line is the objective.", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path)


def hit_rate(port: int) -> float:
    """Ask a server of ours which share of its answers came from the cache."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answered:
        text = answered.read().decode()
    counts: dict[str, float] = {}
    for line in text.splitlines():
        if line.startswith("mlflow_opt_cache_total{"):
            labels, _, value = line.rpartition(" ")
            counts[labels.split('"')[1]] = float(value)
    found = counts.get("hit", 0.0) + counts.get("shared", 0.0) + counts.get("joined", 0.0)
    return found / max(1.0, found + counts.get("miss", 0.0))


def served_how(port: int) -> tuple[str, str]:
    """Ask a server of ours for its fast path and whether it joins requests."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/version", timeout=10) as answered:
        said = json.load(answered)
    return str(said["fast_path"]), str(said["batching"])
