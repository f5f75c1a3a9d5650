"""Tag every run with the hardware it ran on, so that two latencies in the UI can be told apart by machine."""

from __future__ import annotations

from mlflow.tracking.context.abstract_context import RunContextProvider

from mlflow_opt.verdicts.evidence import PREFIX

# Not the evidence's own tag: where a run was started says nothing about where a model was measured.
HARDWARE = PREFIX + "hardware"


class HardwareContext(RunContextProvider):
    """MLflow's run-context plugin that adds the tag `mlflow_opt.hardware` to every run that `mlflow.start_run` creates.

    It costs some milliseconds once a process. MLflow itself turns an error of a provider into a warning, so it never
    costs a run.
    """

    def in_context(self) -> bool:
        """Apply to every run."""
        return True

    def tags(self) -> dict[str, str]:
        """Return the fingerprint of this machine and its runtimes; how many threads a call may use is not known here."""
        from mlflow_opt.measurement.fingerprint import fingerprint

        pairs = fingerprint().split("; ")
        return {HARDWARE: "; ".join(pair for pair in pairs if not pair.startswith("threads="))}
