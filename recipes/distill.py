"""Teach one small model what an ensemble or a large model answers, and show what the teaching itself brought.

A student learns from the teacher's probabilities (or values) instead of the labels: they say how sure to be, and there can be
as many as one likes, because the teacher also answers rows that nobody has labelled. New rows are made by MUNGE, which mixes
near rows column by column. Every student is trained twice, on the teacher's answers and on the labels, so that what is
credited to distillation is what the same student would not have reached without it.

Helps most where the teacher is much better than the student alone: boosted trees of a few leaves, small networks. Does not
help a linear student, which cannot be taught what it cannot express, nor where the small model is as good anyway: the recipe
then says so and takes the one trained on the labels.

A network's student is a given one or a narrower copy of the teacher. It learns softened answers, and, from a torch teacher, its
last features too; the teacher also answers blends of two rows each, as pictures, series or numbers, and pictures moved about.

Differs from FAST-DAD (Fakoor et al. 2020) in how new rows are made: MUNGE (Bucila et al. 2006) instead of Gibbs sampling from
a density model, which would have to be trained and trusted first.

References: Bucila et al. 2006, "Model compression"; Hinton et al. 2015, "Distilling the knowledge in a neural network";
Romero et al. 2015, "FitNets: hints for thin deep nets"; Fakoor et al. 2020, "Fast, accurate, and simple models for tabular data
via augmented distillation".
"""

from __future__ import annotations

from collections.abc import Sequence

from mlflow_opt import metrics, session
from mlflow_opt.records import Verdict
from mlflow_opt.runs.outcome import Row
from mlflow_opt.signature import run
from mlflow_opt.tables.table_distillation import KINDS, Kind, Student
from mlflow_opt.workbench import distilling_networks, distilling_tables
from mlflow_opt.workbench.distilling_networks import Teaching, check_epochs, named, trainer_for
from mlflow_opt.workbench.distilling_tables import HARD, Classroom, check
from mlflow_opt.workbench.ensemble_workbench import trainer


def advise(rows: Sequence[Row], headline: str) -> list[str]:
    """Say what the runtime brought, and of each student what its size, and what the teacher, brought."""
    shown = {row.name: row.metrics for row in rows}
    sign = 1 if metrics.larger_is_better(headline) else -1
    teacher = shown.get("runtime_only", shown.get("baseline", {}))
    found = []
    if "speedup" in shown.get("runtime_only", {}):
        found.append(f"The runtime alone, with the teacher as it is, answers one row {teacher['speedup']:.2f}x as fast as the baseline.")
    gains = {}
    for name in (name for name in shown if f"{name}{HARD}" in shown):
        taught, alone = shown[name], shown[f"{name}{HARD}"]
        gains[name] = sign * (taught[headline] - alone[headline])
        faster = teacher.get("latency_p50_ms", float("nan")) / taught.get("latency_p50_ms", float("nan"))
        found.append(
            f"{name}: {faster:.1f}x as fast as the teacher{' in the same runtime' if 'runtime_only' in shown else ''}, "
            f"{taught.get(f'drop_{headline}', float('nan')):+.4f} {headline} lost; "
            f"distillation itself brought {gains[name]:+.4f} over the same student on the labels."
        )
    if gains and max(gains.values()) <= 0:
        found.append("Distillation brought nothing here: the same students do as well on the labels alone.")
    return found


def kinds_of(student: str) -> tuple[Kind, ...]:
    """List the kinds of a table's students.

    Example:
        >>> kinds_of("auto")
        ('lightgbm', 'mlp', 'linear')

    Raises:
        ValueError: there is no such kind.
    """
    found = KINDS if student == "auto" else tuple(kind for kind in KINDS if kind == student)
    if not found:
        raise ValueError(
            f"the student of a table must be auto, {', '.join(KINDS)}, got '{student}'; a torch model can learn on arrays only."
        )
    return found


def distill(
    *,
    model: str = "",
    data: str = "telco_churn",
    target: str = "target",
    policy: str = "",
    register_as: str = "",
    seed: int = 0,
    members: str = "",
    student: str = "auto",
    trees: int = 100,
    hidden: int = 64,
    augment: int = 4,
    mix: float = 0.5,
    temperature: float = 0.0,
    epochs: int = 10,
    unlabelled: str = "",
    threads: int = 1,
    budget_s: float = 60.0,
    metric: str = "",
    strict: bool = False,
) -> Verdict | None:
    """Distil an ensemble or a large model into a small one: of a table into LightGBM, a perceptron or a line, of arrays into a network.

    Helps where the teacher is better than a small model can be by itself. Does not help where the small model is as good
    without a teacher; the recipe trains it both ways, says so and takes the better.

    Example:
        mlflow run . -e distill -P model=models:/churn_ensemble/2 -P student=lightgbm -P register_as=churn
        mlflow run . -e distill -P model=models:/digits/3 -P data=digits.npz -P student=0.25 -P epochs=20

    Args:
        model: MLflow model URI of the teacher (any model of a table; torch or ONNX for arrays); empty trains an ensemble of
            seven on a table, the default network on arrays.
        data: a table (parquet, csv) or arrays (npz), a folder, MLflow URI or a bundled name.
        target: name of the target column or array.
        policy: path of a policy file; empty uses the registered model's policy, else the default of the task.
        register_as: registered model to add the winner to; empty registers nothing.
        seed: every random choice derives from it.
        members: registered versions, by commas, whose average is the teacher, instead of model.
        student: of a table `lightgbm`, `mlp`, `linear`, or `auto` for all of them; of arrays the URI of a small torch model, or
            the share of the teacher's widths that a copy of it keeps, `auto` for 0.25, or `bag` for token ids and their mask.
        trees: of a LightGBM student.
        hidden: units of a perceptron's hidden layer.
        augment: new rows for each real one that the teacher is asked about; 0 for none.
        mix: share of the labels in what the student learns of real rows, 0 for the teacher alone.
        temperature: above 1 softens the teacher's probabilities while the student learns; 0 takes 4 for a network and 1, as they
            are, for a table. A regression has none.
        epochs: of a network, over the rows and their copies.
        unlabelled: arrays whose rows the teacher of a network answers too; empty for none.
        threads: threads that one prediction may use, for teacher and students alike.
        budget_s: seconds that timing for the verdict may take.
        metric: own quality metric, `path.py:function` with (labels, scores) -> float, larger is better; empty for none.
        strict: end with the verdict's exit code (0 pass, 1 fail, 2 inconclusive) instead of 0.

    Raises:
        ValueError: a parameter is out of its range, or no student could be made or answers other classes than its teacher.

    References:
        Bucila et al. 2006; Hinton et al. 2015; Fakoor et al. 2020.
    """
    check(augment, mix, temperature, min(trees, hidden))
    check_epochs(epochs)
    with session.start("distill", locals(), train=trainer_for(model, members, trainer(model, members, threads))) as work:
        if isinstance(work.example, dict):
            distilling_networks.teach(work, Teaching(student, named(members), epochs, augment, mix, temperature or 4.0, unlabelled))
        else:
            students = [Student(kind, trees=trees, hidden=hidden) for kind in kinds_of(student)]
            distilling_tables.teach(work, students, Classroom(work, augment, mix, temperature or 1.0, seed))
        return work.conclude(lambda rows: advise(rows, work.headline))


if __name__ == "__main__":
    run(distill)
