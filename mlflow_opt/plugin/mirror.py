"""Mirror the history into an MLflow experiment, for people who look at the UI.

Best effort by design: it runs beside the answer, in a thread of its own, and a failure is logged and changes nothing.
The table in the registry database is the record; this is a view of it that `mlflow gc` may erase.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from typing import Any

from mlflow.entities import Experiment, RunStatus, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from mlflow_opt.plugin.history import Entry
from mlflow_opt.plugin.trials import tracking_store
from mlflow_opt.verdicts.evidence import PREFIX

logger = logging.getLogger(__name__)
EXPERIMENT = "mlflow-opt history"
# When tracking is down for long, what waits here is bounded; the table has everything.
_WAITING = 1000
_QUIET_S = 1.0


class Mirror:
    """A queue of entries and the thread that writes them; the thread starts with the first entry, after any fork."""

    def __init__(self) -> None:
        self._entries: queue.Queue[tuple[Any, Entry]] = queue.Queue(_WAITING)
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def put(self, entry: Entry) -> None:
        """Hand over an entry without waiting for it to be written."""
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="mlflow-opt-mirror", daemon=True)
                self._thread.start()
        try:
            # The store of the moment: a client process may turn to another one later.
            self._entries.put_nowait((tracking_store(), entry))
        except (queue.Full, MlflowException) as error:
            told = (entry.action, entry.name, type(error).__name__)
            logger.warning("'%s' of %s is not mirrored (%s) and only in the database.", *told)

    def _work(self) -> None:
        while True:
            for store, entry in self._gathered():
                try:
                    _write(store, entry)
                # Best effort: a thread that died of one bad entry would lose all later ones.
                except Exception:
                    logger.exception("The promotion history of %s could not be mirrored; the database has it.", entry.name)

    def _gathered(self) -> list[tuple[Any, Entry]]:
        """Wait for entries and then for a quiet moment, so that writing them does not hold up the next decision's lock."""
        gathered = [self._entries.get()]
        while len(gathered) < _WAITING:
            try:
                gathered.append(self._entries.get(timeout=_QUIET_S))
            except queue.Empty:
                break
        return gathered


def _write(store: Any, entry: Entry) -> None:
    said = "\n".join(f"- {reason}" for reason in entry.reasons)
    public = {key: str(value) for key, value in entry.public().items() if value not in ("", 0, ())}
    tags = {PREFIX + key: value[:5000] for key, value in public.items()}
    tags[MLFLOW_RUN_NOTE] = f"**{entry.action}** {entry.alias} of {entry.name} version {entry.version}, asked by {entry.user}\n\n{said}"[
        :5000
    ]
    run = store.create_run(
        experiment_id=_experiment(store),
        user_id=entry.user,
        start_time=entry.at,
        tags=[RunTag(key, value) for key, value in tags.items()],
        run_name=f"{entry.name} v{entry.version} {entry.action}"[:250],
    )
    store.update_run_info(run.info.run_id, RunStatus.FINISHED, time.time_ns() // 1_000_000, run.info.run_name)


def _experiment(store: Any) -> str:
    found = store.get_experiment_by_name(EXPERIMENT)
    if isinstance(found, Experiment):
        return str(found.experiment_id)
    try:
        return str(store.create_experiment(EXPERIMENT, None, []))
    except MlflowException:
        # Another worker made it in the meantime; if not, the error stands.
        found = store.get_experiment_by_name(EXPERIMENT)
        if not isinstance(found, Experiment):
            raise
        return str(found.experiment_id)
