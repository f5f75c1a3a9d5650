"""Move a guarded alias to a version that is proven, measuring it first if its evidence is missing or no longer holds."""

from __future__ import annotations

import logging
from json import dumps

from mlflow_opt.commands import _promotion
from mlflow_opt.commands._document import document, verdict_fields
from mlflow_opt.records import Verdict
from mlflow_opt.runs import judging
from mlflow_opt.signature import run
from mlflow_opt.verdicts import waivers

_logger = logging.getLogger(__name__)


def promote(
    *,
    model: str = "",
    alias: str = "champion",
    data: str = "",
    target: str = "target",
    policy: str = "",
    threads: int = 1,
    batch_size: int = 0,
    budget_s: float = 60.0,
    seed: int = 0,
    metric: str = "",
    waive: str = "",
    owner: str = "",
    reason: str = "",
    until: str = "",
    json: bool = False,
) -> Verdict:
    """Promote a model version to an alias if its evidence passes; measure first where the evidence does not hold any more.

    Where the server runs the registry hook, the hook decides and this command asks. Where it does not, this command
    decides by the same rules and says loudly that nothing stops others from moving the alias by hand.

    Example:
        mlflow run . -e promote -P model=models:/churn@challenger -P data=holdout.parquet

    Args:
        model: version to promote: `models:/churn/4` or `models:/churn@challenger`.
        alias: alias to move.
        data: rows with labels for a fresh measurement; empty takes the data that the version's recipe named.
        target: name of the target column or array.
        policy: path of a policy file for servers without the hook; empty takes the default of the task.
        threads: threads that one prediction may use.
        batch_size: rows a call for throughput; 0 chooses, 1 leaves it out.
        budget_s: seconds that timing may take.
        seed: of row order, turns and resampling.
        metric: own quality metric, `path.py:function`; empty for none.
        waive: a criterion that the version may miss, by its quantity (`drop_f1`) or metric (`f1`); empty for none. It must have
            been measured, the server's policy must allow waivers, and the history keeps who asked.
        owner: who answers for what is waived.
        reason: why it is waived.
        until: last day of the waiver, as 2026-12-31 (UTC), at most 90 days ahead; then it is none.
        json: write one JSON document to stdout, for machines; logs stay on stderr and the exit code is the same.

    Raises:
        ValueError: the version, the data, the policy or the waiver cannot be used.

    References:
        Kalibera & Jones 2013, "Rigorous benchmarking in reasonable time".
    """
    given = locals()
    with document("promote", wanted=json) as answer:
        setting = judging.Setting(data, target, policy, threads, batch_size, budget_s, seed, metric)
        done = _promotion.promote(judging.Request(model, "", alias), setting, given, _waiver(waive, owner, reason, until, alias))
        told = {key: value for key, value in vars(done).items() if key not in ("verdict", "waived")}
        answer.update(told | {"waived": waivers.public(done.waived)} | verdict_fields(done.verdict))
    return done.verdict


def _waiver(waive: str, owner: str, reason: str, until: str, alias: str) -> waivers.Waiver | None:
    given = {"waive": waive, "owner": owner, "reason": reason, "until": until}
    if not any(given.values()):
        return None
    if missing := [name for name, value in given.items() if not value.strip()]:
        raise ValueError(
            f"a waiver needs waive, owner, reason and until, and {', '.join(missing)} is empty; somebody answers for it by name."
        )
    asked = {"metric": waive, "owner": owner, "reason": reason, "until": until, "alias": alias}
    return waivers.read_waiver(dumps(asked))


if __name__ == "__main__":
    run(promote)
