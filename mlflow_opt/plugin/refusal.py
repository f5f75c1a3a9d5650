"""What a refusal says: every criterion, the one that binds and by how much, the version that would pass, what to type next."""

from __future__ import annotations

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED

from mlflow_opt.plugin.decision import Question
from mlflow_opt.plugin.history import Entry
from mlflow_opt.plugin.rules import Judgement
from mlflow_opt.records import Outcome, Reason


class Refused(MlflowException):
    """A guarded operation was refused; MLflow answers 403 at once, which clients do not retry."""

    def __init__(self, message: str, entry: Entry, question: Question | None = None, judgement: Judgement | None = None) -> None:
        super().__init__(message, error_code=PERMISSION_DENIED)
        self.entry = entry
        self.question = question
        self.judgement = judgement


def explain(question: Question, judgement: Judgement, nearest: int) -> str:
    """Write the message of a refused promotion.

    Args:
        question: what was asked.
        judgement: why not.
        nearest: a version of the same model that would pass, 0 if none is known.

    """
    name, number = question.version.name, question.version.number
    verdict = judgement.verdict
    asked = (
        f"mlflow-opt refused to move '{question.alias}' of '{name}' to version {number}: {verdict.outcome.value} "
        f"(policy: {question.cover.origin}; {_against(question)})."
    )
    lines = [
        asked,
        *(f"- {reason.outcome.value}: {reason.text}" for reason in judgement.told),
    ]
    if judgement.policy is None:
        lines.append(f"The policy asks of {_asked(question)}.")
    if binding := _binding_reason(judgement.told):
        lines.append(_gap(binding))
    if nearest:
        lines.append(f"Version {nearest} passes: `mlflow-opt promote --model models:/{name}/{nearest}`.")
    lines.append(f"To measure version {number} again and promote it if it passes: `mlflow-opt promote --model models:/{name}/{number}`.")
    return "\n".join(lines)


def _asked(question: Question) -> str:
    """List what the default policy asks for where the evidence does not even tell the task."""
    policies = question.cover.by_task.items()
    return "; ".join(
        f"a {task} model: " + ", ".join(f"{each.quantity} {each.side} {each.bound:g}" for each in policy.criteria)
        for task, policy in policies
    )


def _against(question: Question) -> str:
    if question.holder is None:
        return "no version holds it today"
    return f"version {question.holder.number} holds it today"


def _binding_reason(reasons: tuple[Reason, ...]) -> Reason | None:
    measured = [reason for reason in reasons if reason.criterion and reason.measured and reason.measured.usable]
    for outcome in (Outcome.FAIL, Outcome.INCONCLUSIVE):
        missed = [reason for reason in measured if reason.outcome is outcome]
        if missed:
            return max(missed, key=_relative_gap)
    return None


def _relative_gap(reason: Reason) -> float:
    bound = reason.criterion.bound if reason.criterion else 0.0
    return _distance(reason) / max(abs(bound), 1e-12)


def _distance(reason: Reason) -> float:
    if reason.criterion is None or reason.measured is None:
        return 0.0
    bound = reason.criterion.bound
    return bound - reason.measured.lo if reason.criterion.side == "min" else reason.measured.hi - bound


def _gap(reason: Reason) -> str:
    if reason.criterion is None or reason.measured is None:
        return ""
    end = reason.measured.lo if reason.criterion.side == "min" else reason.measured.hi
    return (
        f"Binding criterion: {reason.criterion.quantity}; the unfavourable end of its interval, {end:.4g}, "
        f"misses the bound {reason.criterion.bound:g} by {_distance(reason):.4g}."
    )
