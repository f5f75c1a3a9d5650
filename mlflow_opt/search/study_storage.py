"""Where studies are kept: a journal file, which needs no server, or a database that several machines reach."""

from __future__ import annotations

import logging
import os
import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_opt.search import file_locks

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

logger = logging.getLogger(__name__)

_PASSWORD = re.compile(r"://[^/@:]*:[^/@]+@")


def storage_of(given: str, default: Path) -> str:
    """Read the parameter `storage`.

    Example:
        >>> Path(storage_of("", Path("studies.journal"))).name
        'studies.journal'

    Args:
        given: a path, a database URL without a password, `env:NAME` of a variable that holds either, or `""`.
        default: the journal file where nothing is given.

    Raises:
        ValueError: the variable is not set, the URL holds a password, or the folder does not exist.
    """
    if given.startswith("env:"):
        name = given.removeprefix("env:")
        if not os.environ.get(name):
            raise ValueError(f"storage=env:{name} must name a variable that is set, it is not; export {name}=postgresql+psycopg2://...")
        return _path_or_url(os.environ[name])
    if _PASSWORD.search(given):
        shown = _PASSWORD.sub("://...@", given)
        raise ValueError(
            f"storage must hold no password, because MLflow logs every parameter, got '{shown}'; put it into PGPASSWORD or ~/.pgpass, "
            "or the whole URL into a variable and give storage=env:NAME."
        )
    return _path_or_url(given or str(default))


@lru_cache(maxsize=4)
def storage_at(storage: str) -> BaseStorage:
    """Open a storage once a process: a journal is read from its beginning.

    Args:
        storage: a path or a URL, as `storage_of` gives it.

    Raises:
        ConnectionError: the database does not answer.
        ModuleNotFoundError: its driver is not installed.
    """
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    if "://" in storage:
        return _database(storage)
    lock = file_locks.FileLock(Path(f"{storage}.lock"))
    lock.acquire()
    try:
        _mend(Path(storage))
    finally:
        lock.release()
    # Optuna's own locks are files that outlive a killed process, and the next one waits half a minute for them. Ours has the
    # methods of its base class, which is not inherited because it would import Optuna.
    return JournalStorage(JournalFileBackend(storage, lock_obj=lock))  # type: ignore[arg-type]


def _database(url: str) -> BaseStorage:
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import SQLAlchemyError

    shown = _PASSWORD.sub("://...@", url)
    try:
        return RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
    except SQLAlchemyError as error:
        first = str(error).splitlines()[0]
        raise ConnectionError(f"the storage must be a database that answers, and {shown} does not: {first}") from None
    except ImportError as error:
        raise ModuleNotFoundError(f"storage={shown} needs its driver ({error}): pip install psycopg2-binary for PostgreSQL") from None


def _path_or_url(text: str) -> str:
    if "://" in text:
        return text
    path = Path(text).expanduser().resolve()
    if not path.parent.is_dir():
        raise ValueError(f"storage must lie in a folder that exists, got '{path}'; make {path.parent}, or give another path.")
    return str(path)


def _mend(path: Path) -> None:
    """Cut off a last line that its writer did not finish; whatever is appended to it would make the journal unreadable."""
    content = path.read_bytes() if path.is_file() else b""
    if content and not content.endswith(b"\n"):
        logger.warning("The last line of %s was cut off when its writer died; it is dropped.", path)
        path.write_bytes(content[: content.rfind(b"\n") + 1])
