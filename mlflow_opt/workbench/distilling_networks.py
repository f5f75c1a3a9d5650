"""A teacher and its students on arrays within a recipe's session: taught by answers, by answers and features, and by labels alone."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mlflow_opt import data, metrics, models
from mlflow_opt.data import Batch, Split
from mlflow_opt.export import exporting
from mlflow_opt.measurement import scoring
from mlflow_opt.models import Model
from mlflow_opt.records import Task, Variant
from mlflow_opt.runs import candidates
from mlflow_opt.session import Session, Trainer
from mlflow_opt.workbench import retraining

if TYPE_CHECKING:
    from torch import nn

    from mlflow_opt.networks.training import Arrays, Fitted, Loss

logger = logging.getLogger(__name__)

HARD, FEATURES = "_hard", "_features"
# The student that is found has this share of the teacher's widths.
USUAL_SHARE = 0.25
_TINY = 1e-7
# Pictures of one epoch, copies included: more take minutes an epoch on a CPU.
_MOST_ROWS = 60_000
_CHUNK = 512


@dataclass(frozen=True)
class Teaching:
    """How students are taught.

    Args:
        student: URI of a torch model, the share of the teacher's widths that a copy of it keeps (`auto` for a quarter), or `bag`
            for the mean of the words' vectors where the inputs are token ids and their mask.
        teachers: URIs whose average answers, none for the model alone.
        epochs: over the rows and their copies.
        augment: changed copies of each row that the teacher answers too.
        mix: share of the labels in what is learnt of labelled rows.
        temperature: of the answers.
        unlabelled: data whose rows the teacher answers too, "" for none; labels in it are not looked at.
    """

    student: str = "auto"
    teachers: tuple[str, ...] = ()
    epochs: int = 20
    augment: int = 1
    mix: float = 0.1
    temperature: float = 4.0
    unlabelled: str = ""


def check_epochs(epochs: int) -> None:
    """Refuse a training of no epochs, before anything is trained."""
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}; 10 to 20 are usual.")


def teach(work: Session, how: Teaching) -> None:
    """Teach one student in each way and add them all: what distillation brought is what the one taught by labels has not.

    Raises:
        ValueError: there is no student, it answers other classes than the teacher, or takes other arrays.
    """
    from mlflow_opt.networks.network_distillation import (
        features_of,
        lesson_of,
        matching_loss,
        repeated,
        soft_loss,
        with_projection,
        without_projection,
    )

    teachers = [models.load(uri, work.threads) for uri in how.teachers] or [work.model]
    with retraining.start(work, student_of(work, how.student)) as course:
        work.expect(4)
        _add_runtime(work)
        student = course.learner.module
        real, hard, more = _rows_of(course, how)
        lesson = lesson_of(real, lambda inputs: _answers(teachers, inputs, course), more)
        logger.info("Teaching a student of %d weights on %d rows of the teacher's answers.", _weights(student), len(lesson.labelled))
        soft = soft_loss(lesson, how.temperature, how.mix)
        _add(course, "student", _fit(course, how, "student", student, lesson.rows, soft), how)
        if len(teachers) == 1 and (network := _torch_of(teachers[0])) is not None:
            try:
                features = features_of(network, lesson.rows.inputs)
                dressed = with_projection(student, course.train.inputs, features.shape[1])
            except ValueError as why:
                work.findings.append(f"Features were not matched: {why}")
            else:
                name = f"student{FEATURES}"
                fitted = _fit(course, how, name, dressed, lesson.rows, matching_loss(soft, features))
                _add(course, name, replace(fitted, module=without_projection(fitted.module, student)), how)
        hard = repeated(hard, len(lesson.labelled))
        _add(course, f"student{HARD}", _fit(course, how, f"student{HARD}", student, hard, None), how)
    _tell(work)


def student_of(work: Session, wanted: str) -> nn.Module:
    """Give the student: a network by its URI, or a narrower copy of the teacher with new weights.

    Raises:
        ValueError: the teacher is no torch network that could be copied, or the student answers otherwise.
    """
    from mlflow_opt.networks.network_distillation import narrower
    from mlflow_opt.networks.network_learners import learner_for, network_of

    if wanted == "bag":
        return _bag(work)
    if wanted != "auto" and not re.fullmatch(r"[0-9]*\.?[0-9]+", wanted):
        student = network_of(models.load(wanted, work.threads))
        try:
            learner_for(work.model, work.split, student)
        except (ValueError, RuntimeError, TypeError) as error:
            raise ValueError(
                f"a student must take the teacher's arrays and answer its {len(work.task.classes) or 1} numbers, '{wanted}' does not "
                f"({error}); give one that was made for this data."
            ) from error
        return student
    try:
        learner = learner_for(work.model, work.split)
        made = narrower(learner.module, learner.arrays(work.split.calibration), USUAL_SHARE if wanted == "auto" else float(wanted))
    except ValueError as error:
        raise ValueError(f"no student could be made from the teacher: {error} Or give student=URI of a small torch model.") from error
    return learner.fresh(work.seed, learner.arrays(work.split.calibration), made)


def _bag(work: Session) -> nn.Module:
    import torch

    from mlflow_opt.networks.networks import BagOfEmbeddings

    arrays = list(work.split.dataset.rows.values()) if isinstance(work.split.dataset.rows, dict) else []
    if len(arrays) != 2 or not all(one.dtype.kind in "iu" and one.ndim == 2 for one in arrays):
        given = ", ".join(f"{one.dtype} {one.shape}" for one in arrays)
        raise ValueError(f"a bag of embeddings takes token ids and their mask, the data are {given}; give student=auto or a URI.")
    teacher = _torch_of(work.model)
    sizes = [layer.num_embeddings for layer in teacher.modules() if isinstance(layer, torch.nn.Embedding)] if teacher else []
    # A teacher without a vocabulary of its own: the largest id in the data, where the mask's largest number is 1.
    ids = max(sizes, default=max(int(one.max()) for one in arrays) + 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(work.seed)
        return BagOfEmbeddings(ids, max(len(work.task.classes), 1))


def trainer_for(model: str, versions: str, tables: Trainer) -> Trainer:
    """Choose what stands for the teacher where no model is given: for arrays the first of the versions named, else the default network.

    Args:
        model: URI, "" if not given.
        versions: URIs by commas, "" for none.
        tables: trains it for a table.
    """

    def train(split: Split, folder: Path, seed: int) -> Path:
        if isinstance(split.train.rows, pd.DataFrame):
            return tables(split, folder, seed)
        if versions and not model:
            shutil.copytree(models.load(named(versions)[0]).path, folder)
            return folder
        from mlflow_opt import baselines

        return baselines.train_baseline(split, folder, seed)

    return train


def named(versions: str) -> tuple[str, ...]:
    """Split URIs that are given by commas."""
    return tuple(one.strip() for one in versions.split(",") if one.strip())


def logits_of(model: Model, rows: Batch, task: Task) -> np.ndarray:
    """Answer rows with (n, classes) logits up to a constant each, or with (n,) values.

    Raises:
        ValueError: the model answers other classes than the task has.
    """
    count = data.n_rows(rows)
    chunks = [model.predict(data.take(rows, slice(at, at + _CHUNK))) for at in range(0, count, _CHUNK)]
    raw = np.concatenate(chunks)
    if not task.classes:
        return np.asarray(raw, dtype=float).reshape(count)
    try:
        # The scorer knows what raw scores are: probabilities, logits, one column or two.
        outputs = scoring.score(task, np.asarray(task.classes)[np.zeros(count, dtype=int)], raw).outputs
    except scoring.BadScores as error:
        raise ValueError(f"a teacher must answer the {len(task.classes)} classes of the data: {error}") from error
    return np.asarray(np.log(np.maximum(outputs, _TINY)))


def _answers(teachers: Sequence[Model], inputs: Mapping[str, np.ndarray], course: retraining.Course) -> np.ndarray:
    learner, found = course.learner, []
    # Inputs are named by the student's arguments; a model takes them under the names that the data have.
    names = [str(name) for name in course.work.split.train.rows]
    rows: dict[str, np.ndarray] = dict(zip(names, inputs.values(), strict=True)) if len(names) == len(inputs) else dict(inputs)
    for teacher in teachers:
        logits = logits_of(teacher, rows, learner.task)
        found.append((logits - learner.scale[0]) / learner.scale[1] if learner.form == "values" else np.exp(logits))
    mean = np.asarray(np.mean(found, axis=0))
    return mean if learner.form == "values" else np.asarray(np.log(np.maximum(mean, _TINY)))


def _rows_of(course: retraining.Course, how: Teaching) -> tuple[Arrays, Arrays, dict[str, np.ndarray]]:
    """Give labelled rows for teacher and student, labelled rows for the student alone, and rows that only the teacher answers.

    Copies of pictures are moved about, and for a taught student all but the first are blends instead; of others all are blends.
    """
    from mlflow_opt.networks.network_distillation import blended, is_picture, multiplied

    train, seed = course.train, course.work.seed
    copies = min(how.augment, max(0, _MOST_ROWS // len(train.targets) - 1))
    blends = max(copies - 1, 0) if all(is_picture(array) for array in train.inputs.values()) else copies
    more = blended(train, blends, seed)
    if how.unlabelled:
        given = course.learner.inputs(_unlabelled_rows(course, how.unlabelled))
        more = {name: np.concatenate([array, more[name]]) if more else array for name, array in given.items()}
    return multiplied(train, copies - blends, seed), multiplied(train, copies, seed), more


def _unlabelled_rows(course: retraining.Course, source: str) -> Batch:
    from mlflow_opt.rows.reading import read_content

    content = read_content(source)
    names = [str(name) for name in course.work.split.train.rows]
    if isinstance(content, pd.DataFrame) or not set(names) <= set(content):
        raise ValueError(f"unlabelled rows must be arrays named {', '.join(names)}, got {', '.join(map(str, content))} in {source}.")
    return {name: content[name] for name in names}


def _fit(course: retraining.Course, how: Teaching, name: str, student: nn.Module, rows: Arrays, loss: Loss | None) -> Fitted:
    from mlflow_opt.networks.network_learners import usual_settings

    settings = usual_settings(len(rows.targets), how.epochs, 0.0, course.work.seed)
    return replace(course, train=rows).fit(name, student, settings, loss)


def _add_runtime(work: Session) -> None:
    """Add the teacher in the students' runtime, so that its share of the gain is seen apart."""
    made = work.dropin("runtime_only", exporting.to_onnx(work.model, work.example, work.task))
    work.add(Variant("runtime_only", made, {"student": "none"}))
    none = {"epochs_run": 0.0, "best_epoch": 0.0, "train_seconds": 0.0, "student_weights": float(work.model.parameters)}
    candidates.note(work.candidates[-1], none)


def _add(course: retraining.Course, name: str, fitted: Fitted, how: Teaching) -> None:
    alone = name.endswith(HARD)
    said: dict[str, Any] = {"student": how.student, "labels": "hard" if alone else "soft", "augment": how.augment}
    said |= {} if alone else {"temperature": how.temperature, "mix": how.mix, "features": name.endswith(FEATURES)}
    course.add(name, fitted, said, {"student_weights": float(_weights(fitted.module))})


def _tell(work: Session) -> None:
    """Let the best-taught student stand for all of them: they cost the same to run, so that latency would choose by noise."""
    sign = 1 if metrics.larger_is_better(work.headline) else -1
    students = [one for one in work.candidates if one.variant.name.startswith("student")]
    best = max(students, key=lambda one: sign * one.plain[work.headline])
    for one in students:
        if one is not best:
            one.refused = one.refused or "for comparison: the same student taught another way is better"


def _torch_of(teacher: Model) -> nn.Module | None:
    from mlflow_opt.networks.network_learners import network_of

    try:
        return network_of(teacher)
    except ValueError:
        return None


def _weights(module: nn.Module) -> int:
    return sum(one.numel() for one in module.parameters())
