"""A registry store in which a decision, what it moves and what is written about it are one transaction.

It knows nothing about which methods are guarded; `store` does. Refusals undo their transaction and are written in
another, so that they are kept although nothing else is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mlflow.exceptions import MlflowException
from sqlalchemy.orm import Session

from mlflow_opt.plugin import history, registrations
from mlflow_opt.plugin.caller import caller
from mlflow_opt.plugin.decision import Question, decide, nearest_passing
from mlflow_opt.plugin.entry import SCHEME
from mlflow_opt.plugin.history import Entry
from mlflow_opt.plugin.mirror import Mirror
from mlflow_opt.plugin.refusal import Refused, explain
from mlflow_opt.plugin.server_policy import Cover, cover_of, describe_server

if TYPE_CHECKING:
    # MLflow's store has no annotations, so for the type checker it is Any instead of an error at every call.
    SqlAlchemyStore: Any
else:
    from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore

logger = logging.getLogger(__name__)
Sessions = Callable[..., AbstractContextManager[Session]]
_WRITTEN = "mlflow_opt_written"


# The base class is Any, as said above.
class LedgerStore(SqlAlchemyStore):  # type: ignore[misc]
    """MLflow's SQL registry whose methods can be joined into one transaction, and its history table."""

    ManagedSessionMaker: Sessions

    def __init__(self, store_uri: str) -> None:
        # No read replica is ever given: a decision on stale rows is no decision.
        super().__init__(store_uri.removeprefix(SCHEME))
        history.create_table(self.engine)
        self._open: ContextVar[Session | None] = ContextVar("open_session", default=None)
        self._sessions, self.ManagedSessionMaker = self.ManagedSessionMaker, self._joining
        self._mirror = Mirror()
        logger.warning("The mlflow-opt gate is ACTIVE on this registry: %s.", describe_server())

    @contextmanager
    def deciding(self, name: str) -> Iterator[Session]:
        """Open the one transaction in which a model is locked, judged, moved and written about."""
        try:
            with self._sessions(read_only=False) as session:
                registrations.lock(session, name)
                token = self._open.set(session)
                try:
                    yield session
                finally:
                    self._open.reset(token)
        except Refused as refusal:
            raise self._answered(refusal) from None
        for entry in session.info.get(_WRITTEN, ()):
            self._mirror.put(entry)

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """Open the one session in which a model is read and what guards it is looked up."""
        with self._sessions() as session:
            token = self._open.set(session)
            try:
                yield session
            finally:
                self._open.reset(token)

    def cover(self, session: Session, name: str, called: str = "") -> Cover:
        """Find what guards a model, with the policy it keeps itself; `called` asks as if it had that name.

        Raises:
            Refused: the server's policy cannot be read.

        """
        try:
            return cover_of(called or name, registrations.own_policy(session, name) if name else "")
        except ValueError as error:
            text = f"mlflow-opt denies every guarded operation, because the policy cannot be used: {error}"
            raise Refused(text, Entry(called or name, "refused", reasons=(text,))) from None

    def rule(self, session: Session, question: Question) -> None:
        """Decide about a guarded alias and write the decision.

        Raises:
            Refused: the version's evidence does not pass.

        """
        ruling = decide(session, question)
        if ruling.judgement and ruling.action == "refused":
            raise Refused("", ruling.entries[-1], question, ruling.judgement)
        if ruling.action == "waived":
            told = ruling.entries[-1]
            logger.warning("'%s' of '%s' moves to version %d on a waiver: %s", told.alias, told.name, told.version, " ".join(told.reasons))
        if ruling.action in ("dry_run", "off"):
            logger.warning("mode %s let '%s' of '%s' move to version %d: %s", *_loud(ruling.entries[-1], question.cover.mode))
        for entry in ruling.entries:
            self.record(session, entry)

    def object_to(self, session: Session, cover: Cover, entry: Entry, text: str) -> None:
        """Refuse something that needs no judging, or, where the mode lets it through, say so and record it.

        Raises:
            Refused: the mode is `enforce`.

        """
        told = replace(entry, reasons=(text,))
        if cover.mode == "enforce":
            raise Refused(f"mlflow-opt refused: {text}", replace(told, action="refused"))
        logger.warning("mode %s let '%s' of '%s' (version %d) through: %s", *_loud(told, cover.mode))
        self.record(session, replace(told, action=cover.mode))

    def record(self, session: Session, entry: Entry) -> None:
        """Write an entry within the open transaction; the mirror follows when it is committed."""
        told = replace(entry, user=caller())
        history.write(session.connection(), told)
        session.info.setdefault(_WRITTEN, []).append(told)

    @contextmanager
    def _joining(self, read_only: bool = True) -> Iterator[Session]:
        """Give MLflow's methods the open transaction instead of one of their own."""
        joined = self._open.get()
        if joined is not None:
            yield joined
            return
        with self._sessions(read_only=read_only) as session:
            yield session

    def _answered(self, refusal: Refused) -> Refused:
        """Complete a refusal once its transaction is undone: look for a version that passes, and record it."""
        message = refusal.message
        if refusal.question and refusal.judgement:
            message = explain(refusal.question, refusal.judgement, self._nearest(refusal.question))
        told = replace(refusal.entry, user=caller())
        logger.info("Refused for %s: %s", told.user, message)
        try:
            with self._sessions(read_only=False) as session:
                history.write(session.connection(), told)
            self._mirror.put(told)
        except MlflowException:
            # The answer stays a refusal; that it could not be recorded is for the server's log.
            logger.exception("A refusal about %s could not be recorded.", told.name)
        return Refused(message, told)

    def _nearest(self, question: Question) -> int:
        try:
            with self._sessions() as session:
                return nearest_passing(session, question)
        except MlflowException:
            # It only adds a hint to a refusal that stands.
            logger.exception("No passing version of %s could be looked for.", question.version.name)
            return 0


def _loud(entry: Entry, mode: str) -> tuple[str, str, str, int, str]:
    return mode, entry.alias, entry.name, entry.version, " ".join(entry.reasons) or "nothing was judged"
