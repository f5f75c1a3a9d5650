"""Ctrl-C and SIGTERM end a recipe's run alike: as interrupted, with what was reached kept."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def heeded() -> Iterator[None]:
    """Raise KeyboardInterrupt on the first SIGTERM or Ctrl-C, and let no SIGTERM cut short what is then saved.

    `mlflow run` answers Ctrl-C with SIGTERM to its command, which a terminal has sent Ctrl-C already; schedulers send SIGTERM
    alone. A second Ctrl-C still ends at once. Signals that somebody else handles are left to them.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    ours = [number for number, handler in before.items() if handler is usual[number]]
    # Python lets the main thread alone have handlers.
    if threading.current_thread() is not threading.main_thread():
        ours = []

    def stop(_number: int, _frame: Any) -> None:
        for number in ours:
            signal.signal(number, signal.SIG_IGN if number == signal.SIGTERM else signal.default_int_handler)
        raise KeyboardInterrupt

    for number in ours:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, before[number])
