"""What is asked of the window while it is busy: nothing is lost, nothing jumps back, everything is said."""

import threading
from collections.abc import Iterator, Mapping

import pytest
from pytestqt.qtbot import QtBot
from test_window import WAIT, settled, shown, train, turn, window

from moeviz.domain.settings import Value
from moeviz.moe import training
from moeviz.view.window import Window

__all__ = ["window"]  # the fixture


@pytest.fixture
def slow_knobs(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Semaphore]:
    """A session that takes up a knob only when it is let."""
    let, original = threading.Semaphore(0), training._Run.set_knobs

    def slow(run: training._Run, values: Mapping[str, Value]) -> object:
        assert let.acquire(timeout=20)
        return original(run, values)

    monkeypatch.setattr(training._Run, "set_knobs", slow)
    yield let
    let.release(99)


# ---- knobs
def test_an_older_update_resets_no_knob(qtbot: QtBot, window: Window, slow_knobs: threading.Semaphore) -> None:
    train(qtbot, window, 5)
    window.timer.stop()  # the news of steps before the change wait in the mailbox
    posted = window.runner.advances
    window.runner.mailbox.ask()
    qtbot.waitUntil(lambda: window.runner.mailbox.waiting() and window.runner.advances > posted, timeout=WAIT)
    field = window.controls.rows["routing.k"].field
    field.stepUp()  # type: ignore[attr-defined]
    window.collect()
    assert (shown(window, "routing.k"), window.settings.routing.k) == (3, 3)
    field.stepUp()  # type: ignore[attr-defined]
    slow_knobs.release()
    qtbot.waitUntil(lambda: len(window.history.marks) == 1, timeout=WAIT)  # the first is answered, the second is not
    assert (shown(window, "routing.k"), window.settings.routing.k) == (4, 4)
    slow_knobs.release()
    qtbot.waitUntil(lambda: len(window.history.marks) == 2, timeout=WAIT)
    assert (shown(window, "routing.k"), window.settings.routing.k) == (4, 4)
    assert window.snapshot is not None
    assert window.snapshot.layers[0].k == 4


def test_a_refused_knob_goes_back_and_a_newer_wish_stays(
    qtbot: QtBot, window: Window, slow_knobs: threading.Semaphore
) -> None:
    window.change_knobs({"data.path": "/gone.txt"})
    turn(window, "routing.k", 4)
    slow_knobs.release()
    qtbot.waitUntil(lambda: "/gone.txt" in window.notices.words.text(), timeout=WAIT)
    assert (window.settings.data.path, window.settings.routing.k, shown(window, "routing.k")) == ("", 4, 4)
    slow_knobs.release()
    qtbot.waitUntil(settled(window), timeout=WAIT)
    assert (window.settings.data.path, window.settings.routing.k, shown(window, "routing.k")) == ("", 4, 4)
