"""Move a guarded alias to a version that is proven, measuring it first if its evidence is missing or no longer holds."""

from __future__ import annotations

import logging

from mlflow_opt import judging, promotion
from mlflow_opt.records import Verdict
from mlflow_opt.signature import run

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

    Raises:
        ValueError: the version, the data or the policy cannot be used.

    References:
        Kalibera & Jones 2013, "Rigorous benchmarking in reasonable time".
    """
    setting = judging.Setting(data, target, policy, threads, batch_size, budget_s, seed, metric)
    return promotion.promote(judging.Request(model, "", alias), setting, locals())


if __name__ == "__main__":
    run(promote)
