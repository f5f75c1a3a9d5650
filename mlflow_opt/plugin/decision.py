"""One decision about one guarded alias: may this version hold it, and what is written about it.

It runs inside the transaction that then moves the alias. What cannot be read or judged is refused.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy.orm import Session

from mlflow_opt.evidence import PREFIX
from mlflow_opt.gate import undecided, worst
from mlflow_opt.plugin.files import digest_of
from mlflow_opt.plugin.history import HELD, PROVEN, Entry, entries
from mlflow_opt.plugin.registrations import Version, holder, live_versions
from mlflow_opt.plugin.rules import Judgement, judge_trial
from mlflow_opt.plugin.server_policy import Cover
from mlflow_opt.plugin.trials import Trial, read_trials
from mlflow_opt.records import Reason, Verdict

logger = logging.getLogger(__name__)
# How many of the newest versions are looked through for one that would pass: a refusal must stay quick.
_NEAREST = 50
MODEL_DIGEST = PREFIX + "model_digest"


@dataclass(frozen=True)
class Question:
    """What is asked: may `version` hold `alias`, which `holder` holds today, under what guards the model.

    Args:
        version: the version that is to hold the alias.
        alias: the guarded alias in folded spelling, or the guarded stage.
        holder: the version that holds it today.
        cover: what guards the model.
        registry_uri: the database that the transaction is in.

    """

    version: Version
    alias: str
    holder: Version | None
    cover: Cover
    registry_uri: str


@dataclass(frozen=True)
class Ruling:
    """The answer: entries to write, the last one says what was decided; the judgement if there was one."""

    entries: tuple[Entry, ...]
    judgement: Judgement | None = None

    @property
    def action(self) -> str:
        """Return what was decided."""
        return self.entries[-1].action


def decide(session: Session, question: Question) -> Ruling:
    """Answer a question about a guarded alias, within the transaction that moves it."""
    version, held = question.version, question.holder
    entry = Entry(version.name, "", version.number, version.identity, question.alias)
    if held and held.number == version.number:
        return Ruling((replace(entry, action="unchanged"),))
    if question.cover.mode == "off":
        return Ruling((replace(entry, action="off"),))
    past = entries(session.connection(), version.name, alias=question.alias, actions=HELD)
    reference = _reference(held, past)
    proven = {(old.version, old.model_id) for old in past if old.action in PROVEN}
    if (version.number, version.identity) in proven:
        return Ruling((replace(entry, action="rollback"),))
    judgement = judge_version(session, question, reference)
    judged = replace(entry, action=_action(judgement, question.cover), **_details(judgement))
    if judged.action == "accepted" and held and (held.number, held.identity) not in proven:
        # The version that is replaced was champion before the gate decided about it: it stays one that may come back.
        adopted = replace(entry, action="adopted", version=held.number, model_id=held.identity)
        return Ruling((adopted, judged), judgement)
    return Ruling((judged,), judgement)


def judge_version(session: Session, question: Question, reference: str) -> Judgement:
    """Judge one version's evidence; an error while reading it is an answer as well, and never PASS."""
    model_id = question.version.model_id
    if not model_id:
        problem = (
            "the version has no evidence, because its source is no logged model (models:/m-...); log it with MLflow 3 and register that"
        )
        return judge_trial(Trial("", problem=problem), question.cover, reference, _now())
    try:
        trial = read_trials([model_id], session, question.registry_uri)[model_id]
        return _with_files(judge_trial(trial, question.cover, reference, _now()))
    # Nothing is carried on with: whatever went wrong becomes a refusal, and the log has the traceback.
    except Exception as error:
        logger.exception("The evidence for %s could not be judged.", question.version.identity)
        return _unjudged(model_id, f"the evidence could not be read or judged ({type(error).__name__}: {error})")


def _with_files(judgement: Judgement) -> Judgement:
    """Hold the evidence against the files as they are today, where the policy asks for it and all else passes."""
    if not judgement.passed or not judgement.policy or not judgement.policy.verify_files:
        return judgement
    found, measured = digest_of(judgement.trial.model_id), judgement.trial.tags.get(MODEL_DIGEST, "")
    if found == measured:
        return judgement
    text = f"the model's files must be those that were measured (digest {measured}), they are {found}; measure again."
    reasons = (*judgement.verdict.reasons, undecided(text))
    return replace(judgement, verdict=Verdict(worst(reasons), reasons))


def nearest_passing(session: Session, question: Question) -> int:
    """Find the best other version of the model whose evidence passes today: the fastest, then the newest; 0 if there is none."""
    newest = live_versions(session, question.version.name, limit=_NEAREST)
    versions = [version for version in newest if version.model_id and version.number != question.version.number]
    if not versions:
        return 0
    past = entries(session.connection(), question.version.name, alias=question.alias, actions=HELD)
    reference = _reference(question.holder, past)
    trials = read_trials([version.model_id for version in versions], session, question.registry_uri)
    judged = [(version, judge_trial(trials[version.model_id], question.cover, reference, _now())) for version in versions]
    passing = [(_speedup(judgement.trial), version.number) for version, judgement in judged if judgement.passed]
    return max(passing)[1] if passing else 0


def reference_for(session: Session, name: str, alias: str) -> str:
    """Say which model evidence for a guarded alias must compare with: the one it points to, or last pointed to; else empty."""
    return _reference(holder(session, name, alias), entries(session.connection(), name, alias=alias, actions=HELD))


def _reference(held: Version | None, past: list[Entry]) -> str:
    # Deleting the alias does not reset what it is compared with.
    return held.identity if held else next((entry.model_id for entry in reversed(past)), "")


def _speedup(trial: Trial) -> float:
    return trial.values.get("gate_speedup_lo", (0.0,))[-1]


def _action(judgement: Judgement, cover: Cover) -> str:
    if judgement.passed:
        return "accepted"
    return "dry_run" if cover.mode == "dry_run" else "refused"


def _details(judgement: Judgement) -> dict[str, Any]:
    return {
        "outcome": judgement.verdict.outcome.value,
        "reasons": tuple(f"{reason.outcome.value}: {reason.text}" for reason in judgement.verdict.reasons),
        "policy_digest": judgement.policy.digest if judgement.policy else "",
        "evidence_run": judgement.trial.run_id[:64],
        "evidence": judgement.snapshot(),
    }


def _unjudged(model_id: str, problem: str) -> Judgement:
    reasons: tuple[Reason, ...] = (undecided(f"{problem}."),)
    return Judgement(Verdict(worst(reasons), reasons), None, Trial(model_id, problem=problem))


def _now() -> int:
    return time.time_ns() // 1_000_000
