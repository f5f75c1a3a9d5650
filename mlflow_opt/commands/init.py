"""Write a commented policy file to start from."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

from mlflow_opt.policy import parse_policy
from mlflow_opt.signature import run

# It writes a file into the working folder; there is nothing to track.
CLI_ONLY = True

_logger = logging.getLogger(__name__)

_QUALITY = {
    "binary": "  - {metric: roc_auc, max_drop: 0.01}         # absolute: one point",
    "multiclass": "  - {metric: accuracy, max_drop: 0.01}        # absolute: one point",
    "regression": "  - {metric: rmse, max_relative_drop: 0.02}   # two percent",
}

_TEMPLATE = """# What a candidate must prove before it may replace the version in production.
# A criterion holds only if the unfavourable end of its interval meets the bound: too few rows are INCONCLUSIVE, not a PASS.
guards: [champion]                              # aliases that nobody may move without a PASS
validation_criteria:
  - {{metric: speedup, min: 1.05}}                # against the version it replaces, median latency of one row
{quality}
  # - {{metric: latency_p99_ms, max: 8}}          # absolute, on the machine that measures
  # - {{metric: label_flips, max: 0}}             # not one answer may change
  # - {{id: two_year, slice: 'contract == "Two year"', metric: f1, max_drop: 0.03}}   # some of the rows
  # - {{metric: f1, min_improvement: 0.01}}       # must be better, not only as good
confidence: 0.95                                # of the intervals
expires_days: 30                                # evidence older than this does not count
promote: manual                                 # or auto: the hook moves the alias when the challenger's evidence passes
mode: enforce                                   # or dry_run: say what would be done; or off
# hardware: "*cpu=*EPYC*"                       # evidence must come from such a machine (glob on its fingerprint)
# data_digest: 3fb1c02e                         # ... and from these gate rows (`mlflow-opt gate --json true` prints the digest)
# verify_files: true                            # the hook hashes the model's files, too
# trusted_keys: [ci.key.pub]                    # only evidence signed by one of these keys (`mlflow-opt keygen`)
# trusted_experiments: ["12"]                   # only evidence in one of these experiments, by id
# waivers: [ann]                                # who may waive a criterion, by basic-auth user; false, the default, is nobody
"""


def init(*, path: str = "policy.yaml", task: Literal["binary", "multiclass", "regression"] = "binary", force: bool = False) -> None:
    """Write a commented policy file for a kind of task.

    Use it as the start of your own; as it stands it says what the default policy says.

    Example:
        mlflow-opt init --task binary

    Args:
        path: file to write.
        task: decides the quality metric.
        force: overwrite a file that exists.

    Raises:
        ValueError: the file exists and force is not given.

    References:
        DESIGN, section Policy.
    """
    target = Path(path)
    if target.exists() and not force:
        raise ValueError(f"path must be a new file, '{path}' exists; give another one, or force=true.")
    text = _TEMPLATE.format(quality=_QUALITY[task])
    parse_policy(text, path)
    target.write_text(text, encoding="utf-8")
    _logger.info("Wrote %s. Use it with policy=%s, or name it in the server's MLFLOW_OPT_POLICY file.", path, path)


if __name__ == "__main__":
    run(init)
