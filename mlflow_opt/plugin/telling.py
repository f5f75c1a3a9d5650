"""What the gated registry tells those who read: virtual tags that say what guards a model and what was decided about it."""

from __future__ import annotations

from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.prompt.registry_utils import has_prompt_tag
from sqlalchemy.orm import Session

from mlflow_opt.plugin import announcement, history, permits, registrations, reigning
from mlflow_opt.plugin.decision import now_ms
from mlflow_opt.plugin.discovery import NAMELESS
from mlflow_opt.plugin.ledger import LedgerStore
from mlflow_opt.plugin.server_policy import cover_of

_LISTED = 20


# The base class is Any for the type checker, as `ledger` says.
class TellingStore(LedgerStore):
    """A registry store whose models and versions carry what the gate has to say about them."""

    def get_registered_model(self, name: str) -> RegisteredModel:
        """Read a model, with virtual tags that tell clients what guards it and what was decided about it."""
        if name.startswith(NAMELESS):
            return self._guarded_by(name.removeprefix(NAMELESS))
        with self.reading() as session:
            row = self._get_registered_model(session, name, eager=True)
            # As MLflow's search does it. Its `get` loads every version to find the latest: 10 ms and a full garbage collection
            # every few reads with 1,000 versions, more than the gate itself costs.
            latest = self._get_latest_versions_for_models(session, [row.name])
            model: RegisteredModel = row.to_mlflow_entity(preloaded_latest_versions=latest[row.name])
            if not has_prompt_tag(model._tags) or not registrations.is_prompt_name(session, row.name):
                model._tags.update(_told(session, row.name))
        return model

    def get_model_version(self, name: str, version: str) -> ModelVersion:
        """Read a version, with virtual tags that say what was last decided about it and what is waived for it."""
        with self.reading() as session:
            found: ModelVersion = super().get_model_version(name, version)
            connection = session.connection()
            told = announcement.version_tags(history.entries(connection, found.name, version=int(version), limit=1))
            if granted := history.entries(connection, found.name, version=int(version), actions=(permits.ACTION,)):
                live = registrations.live_version(session, found.name, int(version))
                told |= announcement.waiver_tags(permits.readable(session, live, granted, now_ms()) if live else [])
        found._tags.update(told)
        return found

    def _guarded_by(self, name: str) -> RegisteredModel:
        """Answer what would guard a model of a name that may not exist yet; the name asked for can belong to none."""
        try:
            told = announcement.gate_tags(cover_of(name), {})
        except ValueError as error:
            told = announcement.denied_tags(str(error))
        made = RegisteredModel(NAMELESS + name)
        made._tags.update(told)
        return made


def _told(session: Session, name: str) -> dict[str, str]:
    told = announcement.history_tag(history.newest(session.connection(), name, _LISTED))
    try:
        cover = cover_of(name, registrations.own_policy(session, name))
        references = {guard: reigning.reference_for(session, name, guard) for guard in sorted(cover.guards)}
        return told | announcement.gate_tags(cover, references)
    except ValueError as error:
        return told | announcement.denied_tags(str(error))
