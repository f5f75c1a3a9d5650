"""The gated registry: MLflow's own store, whose guarded aliases nobody moves without a PASS.

    mlflow server --backend-store-uri sqlite:///mlflow.db --registry-store-uri gated+sqlite:///mlflow.db

Clients need nothing installed. Outside its reach, and documented: direct SQL, a second server without the gate,
readers of `models:/name/N`. Its evidence is unsigned: it stops mistakes, not a liar.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mlflow.entities.model_registry import ModelVersion, ModelVersionTag, RegisteredModel, RegisteredModelTag
from mlflow.prompt.registry_utils import has_prompt_tag
from sqlalchemy.orm import Session

from mlflow_opt.plugin import announcement, history, registrations, reserved
from mlflow_opt.plugin.decision import Question, decide, reference_for
from mlflow_opt.plugin.history import Entry
from mlflow_opt.plugin.ledger import LedgerStore
from mlflow_opt.plugin.lookalikes import folded
from mlflow_opt.plugin.registrations import OWN_POLICY, PRODUCTION, STAGE, Version
from mlflow_opt.plugin.server_policy import Cover, cover_of
from mlflow_opt.plugin.tables import VERSIONS

CHALLENGER = "challenger"
_LISTED = 20


class GatedStore(LedgerStore):
    """MLflow's SQL registry with a gate in front of the guarded aliases.

    Args:
        store_uri: `gated+<dialect>[+driver]://...`; what follows `gated+` is the URI of the database.

    """

    def set_registered_model_alias(self, name: str, alias: str, version: str) -> None:
        """Set an alias; a guarded one only if the version's evidence passes the policy."""
        guard = folded(alias)
        with self.deciding(name) as session:
            asked = self._asked(session, name, version)
            if registrations.is_prompt(session, asked.name, asked.number):
                super().set_registered_model_alias(name, alias, version)
                return
            cover = self.cover(session, asked.name)
            if guard == reserved.PREVIOUS:
                self.object_to(session, cover, Entry(asked.name, "", asked.number, asked.identity, guard), reserved.PREVIOUS_TEXT)
            elif guard in cover.guards:
                self.rule(session, Question(asked, guard, registrations.holder(session, asked.name, guard), cover, self.db_uri))
            super().set_registered_model_alias(name, alias, version)
            if guard in cover.guards:
                self._settle(session, asked, guard, cover)
            elif guard == CHALLENGER:
                self._promote(session, asked, cover)

    def transition_model_version_stage(self, name: str, version: str, stage: str, archive_existing_versions: bool) -> ModelVersion:
        """Move a version to a stage; to Production only if its evidence passes the policy."""
        with self.deciding(name) as session:
            asked = self._asked(session, name, version)
            held = registrations.in_production(session, asked.name)
            if str(stage).lower() == PRODUCTION.lower():
                self.rule(session, Question(asked, STAGE, held, self.cover(session, asked.name), self.db_uri))
            elif held == asked:
                self.record(session, Entry(asked.name, "deleted", asked.number, asked.identity, STAGE))
            moved: ModelVersion = super().transition_model_version_stage(name, version, stage, archive_existing_versions)
        return moved

    def rename_registered_model(self, name: str, new_name: str) -> RegisteredModel:
        """Rename a model, unless it carries a guarded alias, stage or past, which would travel onto or away from a policy."""
        with self.deciding(name) as session:
            self._get_registered_model(session, name)
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
            super().set_registered_model_tag(name, tag)
            return
        with self.deciding(name) as session:
            self._check_tag(session, name, tag.key, tag.value)
            super().set_registered_model_tag(name, tag)

    def delete_registered_model_tag(self, name: str, key: str) -> None:
        """Delete a tag that is not reserved."""
        if reserved.is_reserved(key):
            self._refuse_tag(name, 0, key)
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
        """Set a tag that is not reserved."""
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
            number = registrations.aliases(session, name).get(alias, 0)
            if held := registrations.live_version(session, name, number):
                self.record(session, Entry(name, "deleted", number, held.identity, folded(alias)))
            super().delete_registered_model_alias(name, alias)

    def get_registered_model(self, name: str) -> RegisteredModel:
        """Read a model, with virtual tags that tell clients what guards it and what was decided about it."""
        with self.reading() as session:
            row = self._get_registered_model(session, name, eager=True)
            # As MLflow's search does it. Its `get` loads every version to find the latest: 10 ms and a full garbage collection
            # every few reads with 1,000 versions, more than the gate itself costs.
            latest = self._get_latest_versions_for_models(session, [row.name])
            model: RegisteredModel = row.to_mlflow_entity(preloaded_latest_versions=latest[row.name])
            if has_prompt_tag(model._tags):
                return model
            told = announcement.history_tag(history.newest(session.connection(), name, _LISTED))
            try:
                cover = cover_of(name, registrations.own_policy(session, name))
                told |= announcement.gate_tags(cover, {guard: reference_for(session, name, guard) for guard in sorted(cover.guards)})
            except ValueError as error:
                told |= announcement.denied_tags(str(error))
        for key, value in told.items():
            model._tags[key] = value
        return model

    def get_model_version(self, name: str, version: str) -> ModelVersion:
        """Read a version, with a virtual tag that says what was last decided about it."""
        with self.reading() as session:
            found: ModelVersion = super().get_model_version(name, version)
            past = history.entries(session.connection(), name, version=int(version), limit=1)
        for key, value in announcement.version_tags(past).items():
            found._tags[key] = value
        return found

    def _asked(self, session: Session, name: str, version: str) -> Version:
        """Find the version that a request is about, under its stored name: MySQL finds `Churn` for `churn`."""
        row = self._get_sql_model_version(session, name, version)
        return registrations.live_versions(session, row.name, VERSIONS.c.version == row.version)[0]

    def _promote(self, session: Session, asked: Version, cover: Cover) -> None:
        """Move the leading alias to a challenger whose evidence passes, where the policy says `promote: auto`."""
        if cover.any.promote != "auto" or cover.mode == "off":
            return
        question = Question(asked, cover.lead, registrations.holder(session, asked.name, cover.lead), cover, self.db_uri)
        ruling = decide(session, question)
        if ruling.action != "accepted" or cover.mode == "dry_run":
            advised = ruling.action if ruling.action == "refused" else "advised"
            self.record(session, replace(ruling.entries[-1], action=advised))
            return
        for entry in ruling.entries:
            self.record(session, entry)
        super().set_registered_model_alias(asked.name, cover.lead, str(asked.number))
        self._settle(session, asked, cover.lead, cover)

    def _settle(self, session: Session, asked: Version, guard: str, cover: Cover) -> None:
        """Let every spelling of the guarded alias follow it, and `previous` follow the leading one."""
        for alias, number in registrations.aliases(session, asked.name).items():
            if folded(alias) == guard and number != asked.number:
                super().set_registered_model_alias(asked.name, alias, str(asked.number))
        if guard != cover.lead:
            return
        held = history.reigns(history.entries(session.connection(), asked.name, alias=guard, actions=history.HELD))
        before = registrations.live_version(session, asked.name, held[-2].version) if len(held) > 1 else None
        if before and before.identity == held[-2].model_id:
            super().set_registered_model_alias(asked.name, reserved.PREVIOUS, str(before.number))
        else:
            super().delete_registered_model_alias(asked.name, reserved.PREVIOUS)

    def _check_tag(self, session: Session, name: str, key: str, value: str) -> None:
        cover = self.cover(session, "", called=name)
        if text := reserved.objection(key, value, registrations.own_policy(session, name), cover):
            self.object_to(session, cover, Entry(name, "", alias=key[:256]), text)
        if key == OWN_POLICY:
            self.record(session, Entry(name, "policy", reasons=(value,)))

    def _refuse_tag(self, name: str, version: int, key: str) -> None:
        with self.deciding(name) as session:
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
