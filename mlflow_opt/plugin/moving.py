"""How guarded aliases and stages move: decided, moved and written about in one transaction.

`store` says which requests come here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeVar

from mlflow.entities.model_registry import ModelVersion
from sqlalchemy.orm import Session

from mlflow_opt.plugin import files, history, permits, registrations, reigning, reserved
from mlflow_opt.plugin.caller import caller
from mlflow_opt.plugin.decision import MOVING, Question, decide, now_ms
from mlflow_opt.plugin.files import FilesUnknown, Hashed
from mlflow_opt.plugin.history import Entry
from mlflow_opt.plugin.lookalikes import folded
from mlflow_opt.plugin.refusal import Refused
from mlflow_opt.plugin.registrations import PRODUCTION, STAGE, Version
from mlflow_opt.plugin.server_policy import Cover
from mlflow_opt.plugin.tables import VERSIONS
from mlflow_opt.plugin.telling import TellingStore

CHALLENGER = "challenger"
_T = TypeVar("_T")


class MovingStore(TellingStore):
    """A registry store that can move an alias under the gate's eyes."""

    def _set_alias(self, name: str, alias: str, version: str, found: Hashed | None) -> tuple[str, str, int] | None:
        """Set an alias in one transaction.

        Returns:
            Model, leading alias and version where that moved although another was named, for those who wait for it.

        """
        guard, moved = folded(alias), False
        with self.deciding(name) as session:
            asked = self._asked(session, name, version)
            if registrations.is_prompt(session, asked.name, asked.number):
                super().set_registered_model_alias(name, alias, version)
                return None
            cover = self.cover(session, asked.name)
            before = registrations.pointed(session, asked.name, cover.guards)
            if guard == reserved.PREVIOUS:
                self.object_to(session, cover, Entry(asked.name, "", asked.number, asked.identity, guard), reserved.PREVIOUS_TEXT)
            elif guard in cover.guards:
                self.rule(session, self._question(session, asked, alias, cover, found))
            super().set_registered_model_alias(asked.name, alias, str(asked.number))
            if guard in cover.guards:
                self._settle(session, asked, guard, cover)
            elif guard == CHALLENGER:
                moved = self._promote(session, asked, cover, found)
            self._require_unmoved(session, asked, cover, before, {guard, cover.lead} if moved else {guard})
            after = registrations.pointed(session, asked.name, [cover.lead])
        followed = alias != cover.lead and after.get(cover.lead) != before.get(cover.lead)
        return (asked.name, cover.lead, asked.number) if followed else None

    def _transition(self, name: str, version: str, stage: str, archive: bool, found: Hashed | None) -> ModelVersion:
        with self.deciding(name) as session:
            asked = self._asked(session, name, version)
            held = registrations.in_production(session, asked.name)
            if str(stage).lower() == PRODUCTION.lower():
                cover = self.cover(session, asked.name)
                self.rule(session, Question(asked, STAGE, held, cover, self.db_uri, same=held == asked, hashed=found))
            elif held == asked:
                self.record(session, Entry(asked.name, "deleted", asked.number, asked.identity, STAGE))
            moved: ModelVersion = super().transition_model_version_stage(name, version, stage, archive)
        return moved

    def _with_files(self, attempt: Callable[[Hashed | None], _T]) -> _T:
        """Decide; where that depends on a model's files, hash them while nothing is locked, and decide anew."""
        try:
            return attempt(None)
        except FilesUnknown as unknown:
            return attempt(files.hashed(unknown.model_id))

    def _grant(self, name: str, version: str, text: str) -> None:
        """Grant a waiver, if the policy lets this user do so: a line in the history, and nothing else."""
        with self.deciding(name) as session:
            asked = self._asked(session, name, version)
            cover = self.cover(session, asked.name)
            try:
                entry = permits.granted(asked, text, cover, caller(), now_ms())
            except ValueError as error:
                told = f"mlflow-opt refused the waiver: {error}"
                raise Refused(told, Entry(asked.name, "refused", asked.number, asked.identity, reasons=(told,))) from None
            self.record(session, entry)

    def _asked(self, session: Session, name: str, version: str) -> Version:
        """Find the version that a request is about, under its stored name: MySQL finds `Churn` for `churn`."""
        row = self._get_sql_model_version(session, name, version)
        return registrations.live_versions(session, row.name, VERSIONS.c.version == row.version)[0]

    def _question(self, session: Session, asked: Version, alias: str, cover: Cover, found: Hashed | None) -> Question:
        guard = folded(alias)
        # Only the very alias is unchanged: what a look-alike of it points to has proven nothing for this one.
        same = registrations.aliases(session, asked.name).get(alias) == asked.number
        return Question(asked, guard, registrations.holder(session, asked.name, guard), cover, self.db_uri, same=same, hashed=found)

    def _promote(self, session: Session, asked: Version, cover: Cover, found: Hashed | None) -> bool:
        """Move the leading alias to a challenger whose evidence passes, where the policy says `promote: auto`."""
        if cover.any.promote != "auto" or cover.mode == "off":
            return False
        ruling = decide(session, replace(self._question(session, asked, cover.lead, cover, found), automatic=True))
        if ruling.action not in MOVING or cover.mode == "dry_run":
            advised = ruling.action if ruling.action == "refused" else "advised"
            self.record(session, replace(ruling.entries[-1], action=advised))
            return False
        for entry in ruling.entries:
            self.record(session, entry)
        super().set_registered_model_alias(asked.name, cover.lead, str(asked.number))
        self._settle(session, asked, cover.lead, cover)
        return True

    def _settle(self, session: Session, asked: Version, guard: str, cover: Cover) -> None:
        """Let every spelling of the guarded alias follow it, and `previous` follow the leading one."""
        for alias, number in registrations.aliases(session, asked.name).items():
            if folded(alias) == guard and number != asked.number:
                super().set_registered_model_alias(asked.name, alias, str(asked.number))
        if guard != cover.lead:
            return
        held = history.reigns(history.entries(session.connection(), asked.name, alias=guard, actions=history.HELD))
        before = registrations.live_version(session, asked.name, held[-2].version) if len(held) > 1 else None
        if before and reigning.about(session, before, [held[-2]]):
            super().set_registered_model_alias(asked.name, reserved.PREVIOUS, str(before.number))
        else:
            super().delete_registered_model_alias(asked.name, reserved.PREVIOUS)

    def _require_unmoved(self, session: Session, asked: Version, cover: Cover, before: dict[str, int], ruled: Iterable[str]) -> None:
        """Undo a request that moved a guarded alias on which nobody ruled, because the database took two names for one."""
        after = registrations.pointed(session, asked.name, cover.guards - set(ruled))
        if moved := [guard for guard, number in after.items() if before.get(guard) != number]:
            text = f"this database takes the alias for '{moved[0]}', which is guarded; use another name."
            self.object_to(session, cover, Entry(asked.name, "", asked.number, asked.identity, moved[0]), text)
