"""Small students of an ensemble of seven, on real tables: how much faster, what is lost, and what distillation itself brought.

Run with `python -m benchmarks.distill_tables [TABLE ...]`. Students and teacher are ONNX in ONNX Runtime; what the runtime brought is a
column of its own. Each student is taught by the teacher (real rows, and four new ones by MUNGE for each) and by the labels alone.
Bounds: at least 10x faster than the teacher in the same runtime at no more than 1 point lost.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from benchmarks.ensemble_scene import Scene, scenes
from benchmarks.results_file import ends, interval, save
from mlflow_opt import measure
from mlflow_opt.measurement.pairing import compare_quality
from mlflow_opt.models import Model
from mlflow_opt.records import Quantity
from mlflow_opt.tables.table_distillation import KINDS, Student
from mlflow_opt.workbench.distilling_tables import HARD, Classroom, whole_teacher

AUGMENT, MIX = 4, 0.5


@dataclass(frozen=True)
class Line:
    """One kind of student on one table, taught and by the labels, against the teacher in the same runtime."""

    table: str
    student: str
    metric: str
    teacher: float
    gain: Quantity
    lost: Quantity
    lost_hard: Quantity
    brought: Quantity
    brought_unaugmented: float
    runtime: Quantity


def main() -> None:
    """Measure and write results/distill_tables.*."""
    lines: list[Line] = []
    for name, work in scenes(sys.argv[1:]):
        lines += measured(name, work)
        _write(lines)


def measured(name: str, work: Scene) -> list[Line]:
    """Teach every kind of student on one table, time all in turns, and score them on the gate rows."""
    whole = whole_teacher(work)
    assert whole is not None
    saved: dict[str, Model] = {"teacher": work.dropin("teacher", whole)}
    rooms = {"": Classroom(work, AUGMENT, MIX, 1.0, 0), "_real_rows": Classroom(work, 0, MIX, 1.0, 0)}
    for kind in KINDS:
        for mark, room in rooms.items():
            saved[kind + mark] = work.refitted(kind, room.taught(Student(kind)))
        saved[kind + HARD] = work.refitted(kind, rooms[""].alone(Student(kind)))
    names = list(saved)
    timings = measure.time_models(list(saved.values()), work.split.gate.rows, sessions=5, calls=400)
    runtime = work.gain_of_runtime(saved["teacher"])
    scored = {key: work.gate(model) for key, model in saved.items()}
    drop = f"drop_{work.headline}"
    lines = []
    for kind in KINDS:
        against = {key: compare_quality(scored[key], scored["teacher"])[drop] for key in (kind, kind + HARD)}
        # What the taught student loses less than the one on labels: the loss of the latter against the former.
        brought, plain = (compare_quality(scored[kind + HARD], scored[key])[drop] for key in (kind, f"{kind}_real_rows"))
        gain, teacher = timings.speedup(names.index(kind), 0), scored["teacher"].values[work.headline]
        lines.append(Line(name, kind, work.headline, teacher, gain, against[kind], against[kind + HARD], brought, plain.value, runtime))
    return lines


def _write(lines: list[Line]) -> None:
    shown = [
        f"Students: 100 trees of 31 leaves, a perceptron of 64 units, a line. {AUGMENT} new rows for each real one, {MIX:g} of the labels",
        "mixed in. One thread, one row; gain: over the teacher of seven in the same runtime. Lost: headline metric on the gate rows,",
        "positive is worse. Brought: what the taught student has over the same student on the labels, and the same without new rows.",
        "",
        "| table | metric, teacher | student | gain | lost | lost on labels | distillation brought | without new rows | runtime's gain |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in lines:
        cells: Mapping[str, str] = {
            key: interval(ends(value), "{:+.4f}")
            for key, value in {"lost": one.lost, "hard": one.lost_hard, "brought": one.brought}.items()
        }
        shown.append(
            f"| {one.table} | {one.metric} {one.teacher:.4f} | {one.student} | {interval(ends(one.gain), '{:.1f}')}x | {cells['lost']} "
            f"| {cells['hard']} | {cells['brought']} | {one.brought_unaugmented:+.4f} | {interval(ends(one.runtime), '{:.0f}')}x |"
        )
    shown += ["", _verdict(lines)]
    save("distill_tables", {"lines": [asdict(one) for one in lines]}, shown)


def _verdict(lines: list[Line]) -> str:
    names = sorted({one.table for one in lines})
    fit = {one.table for one in lines if one.gain.value >= 10 and min(one.lost.value, one.lost_hard.value) <= 0.01}
    taught = {one.table for one in lines if one.gain.value >= 10 and one.lost.value <= 0.01}
    return (
        f"At least 10x at no more than 1 point lost: {len(fit)} of {len(names)} tables by the better of both trainings, which is what the "
        f"recipe takes, {len(taught)} by a taught student."
    )


if __name__ == "__main__":
    main()
