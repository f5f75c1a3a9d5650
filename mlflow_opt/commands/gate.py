"""Measure any logged model against any other and judge it: the evidence that promotion rests on, for models no recipe made."""

from __future__ import annotations

import logging

from mlflow_opt.commands._document import document, verdict_fields
from mlflow_opt.records import Verdict
from mlflow_opt.runs import judging
from mlflow_opt.signature import run

_logger = logging.getLogger(__name__)


def gate(
    *,
    model: str = "",
    reference: str = "",
    data: str = "",
    target: str = "target",
    policy: str = "",
    threads: int = 1,
    batch_size: int = 0,
    budget_s: float = 60.0,
    seed: int = 0,
    metric: str = "",
    alias: str = "champion",
    json: bool = False,
) -> Verdict:
    """Measure a model version beside the version it would replace, judge it, and keep the evidence in MLflow.

    Use it on any two versions of a registered model, whoever made them. It moves no alias; `promote` does. It does not
    help before both models are logged with MLflow 3 (`models:/m-...`): evidence names a logged model.

    Example:
        mlflow run . -e gate -P model=models:/churn/4 -P data=holdout.parquet

    Args:
        model: the candidate: `models:/churn/4`, `models:/churn@challenger` or `models:/m-...`.
        reference: the model it would replace; empty takes the champion, else the model it was made from.
        data: rows with labels that neither model was fitted on; empty takes the data that the candidate's recipe named.
        target: name of the target column or array.
        policy: path of a policy file; empty takes the registered model's policy, else the default of the task.
        threads: threads that one prediction may use.
        batch_size: rows a call for throughput; 0 chooses, 1 leaves it out.
        budget_s: seconds that timing may take.
        seed: of row order, turns and resampling.
        metric: own quality metric, `path.py:function` with (labels, scores) -> float, larger is better; empty for none.
        alias: the guarded alias that names the version to be replaced.
        json: write one JSON document to stdout, for machines; logs stay on stderr and the exit code is the same.

    Raises:
        ValueError: a model, the data or the policy cannot be used.

    References:
        Kalibera & Jones 2013, "Rigorous benchmarking in reasonable time".
    """
    given = locals()
    with document("gate", wanted=json) as answer:
        setting = judging.Setting(data, target, policy, threads, batch_size, budget_s, seed, metric)
        judged = judging.judge_with_run("gate", judging.Request(model, reference, alias), setting, given)
        told = {"model": model, "reference": judged.reference, "alias": alias, "evidence_run": judged.run_id}
        answer.update(told | vars(judged.proof.binding) | verdict_fields(judged.proof.verdict))
    return judged.proof.verdict


if __name__ == "__main__":
    run(gate)
