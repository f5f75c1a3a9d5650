from __future__ import annotations

import signal
import threading

import pytest

from mlflow_opt.runs.interruption import heeded


def _interrupted(first: signal.Signals, second: signal.Signals, saved: list[str]) -> None:
    with heeded():
        try:
            signal.raise_signal(first)
        except KeyboardInterrupt:
            signal.raise_signal(second)
            saved.append("what was reached")
            raise


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT], ids=["terminated", "ctrl-c"])
def test_heeded_saves_what_was_reached_when_sigterm_follows(first: signal.Signals) -> None:
    saved: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        _interrupted(first, signal.SIGTERM, saved)
    assert saved
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_heeded_ends_at_once_when_ctrl_c_comes_twice() -> None:
    saved: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        _interrupted(signal.SIGINT, signal.SIGINT, saved)
    assert not saved


def test_heeded_leaves_signals_to_others_when_they_are_handled_or_in_a_thread() -> None:
    found: list[object] = []

    def look() -> None:
        with heeded():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        look()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert found == [signal.SIG_DFL, signal.SIG_IGN]
