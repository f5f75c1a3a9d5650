"""Locks between processes of one machine that the kernel releases when their holder dies, however it died.

A lock that is a file's existence outlives `kill -9`; one of the kernel's own (`flock`) does not.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


class FileLock:
    """A lock with `acquire` and `release`, as Optuna's journal takes one."""

    def __init__(self, path: Path) -> None:
        """Name the lock.

        Args:
            path: of an empty file that may stay.
        """
        self.path = path
        self._held: IO[str] | None = None

    def acquire(self) -> bool:
        """Wait until it is free, and take it."""
        opened = self.path.open("a")
        fcntl.flock(opened, fcntl.LOCK_EX)
        self._held = opened
        return True

    def release(self) -> None:
        """Let it go."""
        if self._held is not None:
            self._held.close()
            self._held = None


@contextmanager
def alone(path: Path) -> Iterator[bool]:
    """Be the only holder of a lock if it is free; never waits.

    Yields:
        whether it was free.
    """
    with path.open("a") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        except BlockingIOError:
            free = False
        yield free


@contextmanager
def working(folder: Path) -> Iterator[None]:
    """Work beside others, but not while someone on this machine is `timing`.

    Args:
        folder: of the locks, the same for all.
    """
    with _opened(folder / "room") as room:
        # Whoever waits to time holds the door, so that a stream of workers cannot keep him out for ever.
        with _opened(folder / "door") as door:
            fcntl.flock(door, fcntl.LOCK_EX)
            fcntl.flock(room, fcntl.LOCK_SH)
        yield


@contextmanager
def timing(folder: Path) -> Iterator[None]:
    """Wait until nobody on this machine is `working` or timing, and keep the machine to oneself meanwhile.

    Args:
        folder: of the locks, the same for all.
    """
    with _opened(folder / "room") as room, _opened(folder / "door") as door:
        fcntl.flock(door, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_EX)
        yield


def machine_folder() -> Path:
    """Return the folder of this machine's and user's timing locks; every search of theirs shares it."""
    folder = Path(tempfile.gettempdir()) / f"mlflow-opt-timing-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _opened(path: Path) -> IO[str]:
    return path.open("a")
