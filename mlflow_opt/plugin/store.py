"""The gated registry: MLflow's own store, whose guarded aliases nobody moves without a PASS.

    mlflow server --backend-store-uri sqlite:///mlflow.db --registry-store-uri gated+sqlite:///mlflow.db

Clients need nothing installed. Outside its reach, and documented: direct SQL, a second server without the gate,
readers of `models:/name/N`. Without trusted keys or experiments in its policy it stops mistakes, not a liar.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from mlflow.entities.model_registry import ModelVersion, ModelVersionTag, RegisteredModel, RegisteredModelTag
from sqlalchemy.orm import Session

from mlflow_opt.plugin import announcement, registrations, reserved
from mlflow_opt.plugin.history import Entry
from mlflow_opt.plugin.lookalikes import folded
from mlflow_opt.plugin.moving import MovingStore
from mlflow_opt.plugin.registrations import OWN_POLICY, STAGE
from mlflow_opt.verdicts import waivers


class GatedStore(MovingStore):
    """MLflow's SQL registry with a gate in front of the guarded aliases.

    Args:
        store_uri: `gated+<dialect>[+driver]://...`; what follows `gated+` is the URI of the database.

    """

    def set_registered_model_alias(self, name: str, alias: str, version: str) -> None:
        """Set an alias; a guarded one only if the version's evidence passes the policy."""
        moved = self._with_files(lambda found: self._set_alias(name, alias, version, found))
        if moved:
            announcement.tell_webhooks(self, *moved)

    def transition_model_version_stage(self, name: str, version: str, stage: str, archive_existing_versions: bool) -> ModelVersion:
        """Move a version to a stage; to Production only if its evidence passes the policy."""
        return self._with_files(lambda found: self._transition(name, version, stage, archive_existing_versions, found))

    def rename_registered_model(self, name: str, new_name: str) -> RegisteredModel:
        """Rename a model, unless it carries a guarded alias, stage or past, which would travel onto or away from a policy."""
        with self.deciding(name) as session:
            # MySQL finds `churn` for `CHURN`; the policy is that of the name as it is stored.
            name = self._get_registered_model(session, name).name
            covers = [self.cover(session, name), self.cover(session, name, called=new_name)]
            if carried := reserved.carried(session, name, covers):
                strictest = min(covers, key=lambda cover: ("enforce", "dry_run", "off").index(cover.mode))
                text = (
                    f"'{name}' cannot be renamed to '{new_name}', because it carries {carried}; register its versions under the new name."
                )
                self.object_to(session, strictest, Entry(name, "", alias=f"-> {new_name}"), text)
            self.record(session, Entry(name, "renamed", alias=f"-> {new_name}"))
            self.record(session, Entry(new_name, "renamed", alias=f"<- {name}"))
            renamed: RegisteredModel = super().rename_registered_model(name, new_name)
        return renamed

    def create_registered_model(
        self,
        name: str,
        tags: Sequence[RegisteredModelTag] | None = None,
        description: str | None = None,
        deployment_job_id: str | None = None,
    ) -> RegisteredModel:
        """Create a model; its tags may hold a policy of its own, and nothing else under the reserved prefix."""
        if ours := [tag for tag in tags or [] if reserved.is_reserved(tag.key)]:
            with self.deciding(name) as session:
                for tag in ours:
                    self._check_tag(session, name, tag.key, tag.value)
        created: RegisteredModel = super().create_registered_model(name, tags, description, deployment_job_id)
        return created

    def set_registered_model_tag(self, name: str, tag: RegisteredModelTag) -> None:
        """Set a tag; of the reserved ones only the model's own policy, and only to something stricter."""
        if not reserved.is_reserved(tag.key):
            with self._keeping_policy(name, tag.key):
                super().set_registered_model_tag(name, tag)
            return
        with self.deciding(name) as session:
            self._check_tag(session, name, tag.key, tag.value)
            super().set_registered_model_tag(name, tag)

    def delete_registered_model_tag(self, name: str, key: str) -> None:
        """Delete a tag that is not reserved."""
        if reserved.is_reserved(key):
            self._refuse_tag(name, 0, key)
        with self._keeping_policy(name, key):
            super().delete_registered_model_tag(name, key)

    # MLflow calls it with these names.
    def create_model_version(  # noqa: PLR0913
        self,
        name: str,
        source: str,
        run_id: str | None = None,
        tags: Sequence[ModelVersionTag] | None = None,
        run_link: str | None = None,
        description: str | None = None,
        local_model_path: str | None = None,
        model_id: str | None = None,
    ) -> ModelVersion:
        """Create a version; reserved tags are refused, or left behind where they describe the version that is copied."""
        kept = reserved.without_echoes(tags or [], source)
        for tag in kept:
            if reserved.is_reserved(tag.key):
                self._refuse_tag(name, 0, tag.key)
        made: ModelVersion = super().create_model_version(name, source, run_id, kept, run_link, description, local_model_path, model_id)
        return made

    def set_model_version_tag(self, name: str, version: str, tag: ModelVersionTag) -> None:
        """Set a tag that is not reserved; the one that asks for a waiver becomes a line of the history and is not stored."""
        if tag.key == waivers.TAG:
            self._grant(name, version, tag.value)
            return
        if reserved.is_reserved(tag.key):
            self._refuse_tag(name, int(version), tag.key)
        super().set_model_version_tag(name, version, tag)

    def delete_model_version_tag(self, name: str, version: str, key: str) -> None:
        """Delete a tag that is not reserved."""
        if reserved.is_reserved(key):
            self._refuse_tag(name, int(version), key)
        super().delete_model_version_tag(name, version, key)

    def delete_registered_model(self, name: str) -> None:
        """Delete a model: allowed, and its history remembers what its aliases pointed to."""
        with self.deciding(name) as session:
            self._record_loss(session, name, 0)
            super().delete_registered_model(name)

    def delete_model_version(self, name: str, version: str) -> None:
        """Delete a version: allowed, and recorded with the aliases that it held."""
        with self.deciding(name) as session:
            self._record_loss(session, name, self._asked(session, name, version).number)
            super().delete_model_version(name, version)

    def delete_registered_model_alias(self, name: str, alias: str) -> None:
        """Delete an alias: allowed, and recorded with what it pointed to, so that the reference stays known."""
        with self.deciding(name) as session:
            for spelling, number in registrations.spelled(session, name, alias).items():
                if held := registrations.live_version(session, name, number):
                    self.record(session, Entry(held.name, "deleted", number, held.identity, folded(spelling)))
            super().delete_registered_model_alias(name, alias)

    @contextmanager
    def _keeping_policy(self, name: str, key: str) -> Iterator[None]:
        """Undo a change of a tag that the database takes for the model's own policy: MySQL knows more letters for equal than we do."""
        if self.engine.dialect.name != "mysql":
            yield
            return
        with self.deciding(name) as session:
            before = registrations.own_policy(session, name)
            yield
            if registrations.own_policy(session, name) != before:
                text = f"this database takes tag '{key}' for {OWN_POLICY}, which may only become stricter; use another name."
                self.object_to(session, self.cover(session, "", called=name), Entry(name, "", alias=key[:256]), text)

    def _check_tag(self, session: Session, name: str, key: str, value: str) -> None:
        name = registrations.stored_name(session, name)
        cover = self.cover(session, "", called=name)
        if text := reserved.objection(key, value, registrations.own_policy(session, name), cover):
            self.object_to(session, cover, Entry(name, "", alias=key[:256]), text)
        if key == OWN_POLICY:
            self.record(session, Entry(name, "policy", reasons=(value,)))

    def _refuse_tag(self, name: str, version: int, key: str) -> None:
        with self.deciding(name) as session:
            name = registrations.stored_name(session, name)
            cover = self.cover(session, "", called=name)
            text = reserved.objection(key, "", "", cover) if key != OWN_POLICY else f"{OWN_POLICY} may only become stricter, so it stays."
            self.object_to(session, cover, Entry(name, "", version, alias=key[:256]), text)

    def _record_loss(self, session: Session, name: str, number: int) -> None:
        """Record what goes when a version (or, with 0, the whole model) is deleted."""
        for alias, pointed in registrations.aliases(session, name).items():
            held = registrations.live_version(session, name, pointed)
            if held and number in (0, pointed):
                self.record(session, Entry(name, "deleted", pointed, held.identity, folded(alias)))
        held = registrations.in_production(session, name)
        if held and number in (0, held.number):
            self.record(session, Entry(name, "deleted", held.number, held.identity, STAGE))
        gone = registrations.live_version(session, name, number) if number else None
        self.record(session, Entry(name, "deleted", number, gone.identity if gone else ""))
