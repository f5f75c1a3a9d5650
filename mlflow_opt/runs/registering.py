"""Add what a recipe found to a registered model: a version with its lineage and verdict, and the challenger alias."""

from __future__ import annotations

from dataclasses import dataclass

from mlflow.exceptions import MlflowException

from mlflow_opt.plugin.discovery import active_gate
from mlflow_opt.runs import outcome, proof, tracking
from mlflow_opt.runs.candidates import Candidate


@dataclass
class Target:
    """The registered model that a recipe adds to.

    Args:
        name: of it, `""` to register nothing.
        recipe: that asks.
        created: whether this run created it, so that it is removed again if no version follows.
    """

    name: str
    recipe: str
    created: bool = False

    def create(self) -> bool:
        """Create the registered model if it is missing: only a name that exists has a policy to ask for."""
        if self.name and not tracking.is_registered(self.name):
            tracking.create_registered(self.name)
            self.created = True
        return self.created

    def add(self, chosen: Candidate, proved: proof.Proof, baseline: Candidate) -> str:
        """Register a judged variant, after the unoptimised model if that is not there yet.

        Returns:
            The version, `""` if nothing was registered: no name was given, or the verdict is FAIL.
        """
        if not self.name:
            return ""
        if proved.verdict.outcome.value == "FAIL":
            if self.created:
                tracking.delete_registered(self.name)
            return ""
        if self.created:
            tracking.register(self.name, baseline.model.model_id, baseline.run_id, "The unoptimised model that the next version replaces.")
        lines = "\n".join(f"- {line}" for line in outcome.verdict_lines(proved.verdict))
        text = f"{self.recipe}: {chosen.variant.name}, {proved.verdict.outcome.value}\n\n{lines}"
        version = tracking.register(self.name, chosen.model.model_id, chosen.run_id, text)
        # Last of all: under `promote: auto` the hook judges at this moment.
        tracking.set_alias(self.name, proof.CHALLENGER, version)
        return version

    def add_first(self, chosen: Candidate) -> str:
        """Register a model that nothing was compared with: it has no verdict, and later versions are judged beside it."""
        if not self.name:
            return ""
        self.create()
        text = f"{self.recipe}: {chosen.variant.name}, not judged: it is what later versions are compared with."
        return tracking.register(self.name, chosen.model.model_id, chosen.run_id, text)


def ask_for_champion(name: str) -> str:
    """Ask for the alias champion for the challenger, whose verdict is PASS; gives what came of it in a sentence.

    A registry with the hook judges for itself and may refuse; one without it does what it is told.

    Args:
        name: registered model.
    """
    version = tracking.alias_version(name, proof.CHALLENGER)
    try:
        tracking.set_alias(name, proof.CHAMPION, version)
    except MlflowException as error:
        if error.error_code != "PERMISSION_DENIED":
            raise
        return f"Version {version} of {name} stays challenger, the registry refused: {error.message}"
    guarded = active_gate(tracking.client(), name) is not None
    by = "by the registry's own judgement" if guarded else "and nothing stops others from moving the alias: this registry has no gate"
    return f"Version {version} of {name} is champion now, {by}."
