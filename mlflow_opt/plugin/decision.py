"""One decision about one guarded alias: may this version hold it, and what is written about it.

It runs inside the transaction that then moves the alias. What cannot be read or judged is refused.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy.orm import Session

from mlflow_opt.gate import undecided
from mlflow_opt.plugin import bounds, permits, reigning
from mlflow_opt.plugin.files import FilesUnknown, Hashed
from mlflow_opt.plugin.history import HELD, Entry, entries
from mlflow_opt.plugin.registrations import Version, live_versions
from mlflow_opt.plugin.rules import Judgement, judge_trial
from mlflow_opt.plugin.server_policy import Cover
from mlflow_opt.plugin.trials import Trial, read_trials
from mlflow_opt.records import Outcome, Reason, Verdict
from mlflow_opt.verdicts.evidence import PREFIX

logger = logging.getLogger(__name__)
# How many of the newest versions are looked through for one that would pass: a refusal must stay quick.
_NEAREST = 50
MODEL_DIGEST = PREFIX + "model_digest"
MOVING = ("accepted", "waived")


@dataclass(frozen=True)
class Question:
    """What is asked: may `version` hold `alias`, which `holder` holds today, under what guards the model.

    Args:
        version: the version that is to hold the alias.
        alias: the guarded alias in folded spelling, or the guarded stage.
        holder: the version that holds it today.
        cover: what guards the model.
        registry_uri: the database that the transaction is in.
        same: whether the alias points to this version already.
        hashed: what the version's files were before the transaction, None if nobody looked.
        automatic: whether the hook asks itself, for `promote: auto`; then no waiver counts.

    """

    version: Version
    alias: str
    holder: Version | None
    cover: Cover
    registry_uri: str
    same: bool = False
    hashed: Hashed | None = None
    automatic: bool = False


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
    """Answer a question about a guarded alias, within the transaction that moves it.

    Raises:
        FilesUnknown: the answer depends on the model's files, and nobody has hashed them.

    """
    version, held = question.version, question.holder
    entry = Entry(version.name, "", version.number, version.identity, question.alias)
    if question.same:
        return Ruling((replace(entry, action="unchanged"),))
    if question.cover.mode == "off":
        return Ruling((replace(entry, action="off"),))
    past = entries(session.connection(), version.name, alias=question.alias, actions=HELD)
    if reigning.may_return(session, version, past, now_ms()):
        return Ruling((replace(entry, action="rollback"),))
    judgement = judge_version(session, question, reigning.reference(session, held, past))
    if judgement.allowed and _needs_hash(judgement) and question.hashed is None:
        raise FilesUnknown(version.model_id)
    judged = replace(entry, action=_action(judgement, question.cover), **_details(judgement))
    if judged.action in MOVING and held and not reigning.may_return(session, held, past, now_ms()):
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
        return judge_trial(Trial("", problem=problem), question.cover, reference, now_ms())
    try:
        trial = read_trials([model_id], session, question.registry_uri)[model_id]
        judged = judge_trial(trial, question.cover, reference, now_ms())
        judged = _doubted(judged, bounds.files(question.version.location, trial))
        judged = _doubted(judged, _changed(judged, question.hashed))
        if judged.passed or question.automatic:
            return judged
        return judged.with_waivers(permits.in_force(session, question.version, question.alias, question.cover, now_ms()))
    # Nothing is carried on with: whatever went wrong becomes a refusal, and the log has the traceback.
    except Exception as error:
        logger.exception("The evidence for %s could not be judged.", question.version.identity)
        return _unjudged(model_id, f"the evidence could not be read or judged ({type(error).__name__}: {error})")


def nearest_passing(session: Session, question: Question) -> int:
    """Find the best other version of the model whose evidence passes today: the fastest, then the newest; 0 if there is none."""
    newest = live_versions(session, question.version.name, limit=_NEAREST)
    versions = [version for version in newest if version.model_id and version.number != question.version.number]
    if not versions:
        return 0
    past = entries(session.connection(), question.version.name, alias=question.alias, actions=HELD)
    expected = reigning.reference(session, question.holder, past)
    trials = read_trials([version.model_id for version in versions], session, question.registry_uri)
    judged = [(version, judge_trial(trials[version.model_id], question.cover, expected, now_ms())) for version in versions]
    passing = [
        (_speedup(judgement.trial), version.number)
        for version, judgement in judged
        if judgement.passed and not bounds.files(version.location, judgement.trial)
    ]
    return max(passing)[1] if passing else 0


def now_ms() -> int:
    """Return the time, milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def _needs_hash(judgement: Judgement) -> bool:
    return judgement.policy is not None and judgement.policy.verify_files


def _changed(judgement: Judgement, found: Hashed | None) -> list[Reason]:
    """Hold the evidence against the files as they were when they were hashed, where the policy asks for it."""
    if found is None or not _needs_hash(judgement):
        return []
    measured = judgement.trial.tags.get(MODEL_DIGEST, "")
    if found.model_id != judgement.trial.model_id:
        return [undecided(f"the files of {found.model_id} were hashed, and the version is {judgement.trial.model_id} now; ask again.")]
    if found.problem:
        return [undecided(f"{found.problem}.")]
    if found.digest == measured:
        return []
    text = f"the model's files must be those that were measured (digest {measured}), they are {found.digest}; measure again."
    return [undecided(text)]


def _doubted(judgement: Judgement, doubts: list[Reason]) -> Judgement:
    if not doubts:
        return judgement
    return replace(judgement, verdict=Verdict(Outcome.INCONCLUSIVE, (*doubts, *judgement.verdict.reasons)))


def _speedup(trial: Trial) -> float:
    return trial.latest.get("gate_speedup_lo", 0.0)


def _action(judgement: Judgement, cover: Cover) -> str:
    if judgement.passed:
        return "accepted"
    if judgement.allowed:
        return "waived"
    return "dry_run" if cover.mode == "dry_run" else "refused"


def _details(judgement: Judgement) -> dict[str, Any]:
    return {
        "outcome": judgement.verdict.outcome.value,
        "reasons": tuple(f"{reason.outcome.value}: {reason.text}" for reason in judgement.told),
        "policy_digest": judgement.policy.digest if judgement.policy else "",
        "evidence_run": judgement.trial.run_id[:64],
        "evidence": judgement.snapshot(),
    }


def _unjudged(model_id: str, problem: str) -> Judgement:
    return Judgement(Verdict(Outcome.INCONCLUSIVE, (undecided(f"{problem}."),)), None, Trial(model_id, problem=problem))
