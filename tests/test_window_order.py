"""What is asked of the window while it is busy: nothing is lost, nothing jumps back, everything is said."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from PySide6.QtCore import QSettings
from pytestqt.qtbot import QtBot
from test_panels import make_snapshot
from test_window import SMALL, WAIT, settled, shown, train, turn, window

from moeviz.app import open_window, save_trace
from moeviz.domain.messages import Report, Restart, SaveModel, StepLog, UserError
from moeviz.domain.settings import Settings, Value
from moeviz.engine.mailbox import Failure, Told
from moeviz.keeper import Keeper
from moeviz.moe import training
from moeviz.moe.trainer import Trainer
from moeviz.trace.store import TraceWriter, open_trace
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
    window.knobs.change({"data.path": "/gone.txt"})
    turn(window, "routing.k", 4)
    slow_knobs.release()
    qtbot.waitUntil(lambda: "/gone.txt" in window.notices.words.text(), timeout=WAIT)
    assert (window.settings.data.path, window.settings.routing.k, shown(window, "routing.k")) == ("", 4, 4)
    slow_knobs.release()
    qtbot.waitUntil(settled(window), timeout=WAIT)
    assert (window.settings.data.path, window.settings.routing.k, shown(window, "routing.k")) == ("", 4, 4)


# ---- undo
def test_nothing_of_another_model_can_be_undone(qtbot: QtBot, window: Window, tmp_path: Path) -> None:
    small = str(tmp_path / "small.safetensors")
    window.send(SaveModel(small))
    turn(window, "model.experts", 16)
    turn(window, "routing.k", 12)
    qtbot.waitUntil(settled(window), timeout=WAIT)
    assert window.knobs.undo.canUndo()  # starting anew by a knob is a change like others
    window.send(Restart())
    qtbot.waitUntil(settled(window), timeout=WAIT)
    assert window.knobs.undo.canUndo()
    window.files._open_model(small)
    qtbot.waitUntil(lambda: window.settings.model.experts == 8, timeout=WAIT)
    assert not window.knobs.undo.canUndo()
    window.knobs.undo_change(False)
    qtbot.waitUntil(settled(window), timeout=WAIT)
    assert window.settings.routing.k == 2


def test_nothing_can_be_undone_on_a_trace(qtbot: QtBot, window: Window, tmp_path: Path) -> None:
    turn(window, "routing.k", 4)
    path = str(tmp_path / "run.zarr")
    save_trace(path, window.settings, (), (make_snapshot(step=3),), (), lambda done, total: None)
    window.files.open_trace(path)
    qtbot.waitUntil(lambda: window.of_trace, timeout=WAIT)
    assert not window.knobs.undo.canUndo()


def test_an_undo_that_does_not_go_with_the_settings_any_more_is_told(qtbot: QtBot, window: Window) -> None:
    turn(window, "model.experts", 16)
    turn(window, "routing.k", 12)
    turn(window, "routing.temperature", 2.0)
    turn(window, "routing.k", 3)
    qtbot.waitUntil(settled(window), timeout=WAIT)
    window.knobs.settings = window.settings.with_values({"model.experts": 8})
    at = window.knobs.undo.index()
    window.knobs.undo_change(False)
    assert "k is 12 but Experts is 8" in window.notices.words.text()
    assert (window.knobs.undo.index(), window.settings.routing.k) == (at, 3)


def test_changes_with_steps_between_are_undone_one_by_one(qtbot: QtBot, window: Window) -> None:
    turn(window, "routing.k", 4)
    turn(window, "routing.k", 5)  # no step between: one change
    assert (window.knobs.undo.count(), window.knobs.undo.undoText()) == (1, "k 5")
    train(qtbot, window, 5)
    turn(window, "routing.k", 6)
    assert (window.knobs.undo.count(), window.knobs.undo.undoText()) == (2, "k 6")
    window.knobs.undo_change(False)
    assert window.settings.routing.k == 5
    window.knobs.undo_change(False)
    assert window.settings.routing.k == 2


def test_a_drag_is_one_change_and_the_next_another(qtbot: QtBot, window: Window) -> None:
    slider = window.controls.rows["routing.k"].slider
    assert slider is not None
    for positions in ((3, 4, 5), (6, 7)):
        slider.setSliderDown(True)
        for position in positions:
            slider.setSliderPosition(position)
            train(qtbot, window, 2)
        slider.setSliderDown(False)
        train(qtbot, window, 2)
    assert (window.knobs.undo.count(), window.knobs.undo.undoText()) == (2, "k 7")
    window.knobs.undo_change(False)
    assert window.settings.routing.k == 5


# ---- files that are still to be written
@pytest.fixture
def long_step(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Training steps that last until they are let go; the first event tells that one began."""
    began, go, original = threading.Event(), threading.Event(), Trainer.advance

    def slow(trainer: Trainer) -> None:
        began.set()
        assert go.wait(20)
        original(trainer)

    monkeypatch.setattr(Trainer, "advance", slow)
    yield began, go
    go.set()


Step = tuple[threading.Event, threading.Event]


def test_closing_waits_for_a_model_that_is_to_be_saved(
    qtbot: QtBot, window: Window, tmp_path: Path, long_step: Step
) -> None:
    began, go = long_step
    window.train_action.trigger()
    assert began.wait(20)
    window.send(SaveModel(str(tmp_path / "m.safetensors")))
    assert not window.close()
    assert "Saving the model: the window closes when that is done" in window.notices.words.text()
    go.set()
    qtbot.waitUntil(lambda: not window.isVisible(), timeout=WAIT)
    assert (tmp_path / "m.safetensors").is_file()


def test_closing_twice_still_saves_if_there_is_time(qtbot: QtBot, window: Window, tmp_path: Path) -> None:
    train(qtbot, window, 3)
    window.send(SaveModel(str(tmp_path / "m.safetensors")))
    window.close()
    assert window.close()
    assert (tmp_path / "m.safetensors").is_file()


@pytest.mark.parametrize(("name", "said"), [("m.safetensors", "Saved to"), ("gone/m.safetensors", "gone")])
def test_a_model_is_saved_before_a_trace_takes_its_place(
    qtbot: QtBot, window: Window, tmp_path: Path, long_step: Step, name: str, said: str
) -> None:
    began, go = long_step
    path = str(tmp_path / "run.zarr")
    save_trace(path, window.settings, (), (make_snapshot(step=3),), (), lambda done, total: None)
    window.train_action.trigger()
    assert began.wait(20)
    window.send(SaveModel(str(tmp_path / name)))
    window.files.open_trace(path)
    qtbot.waitUntil(lambda: window.of_trace, timeout=WAIT)
    go.set()
    qtbot.waitUntil(settled(window), timeout=WAIT)
    assert (tmp_path / name).is_file() == (said == "Saved to")
    assert said in window.notices.words.text()


def _full(report: Report) -> str:
    raise UserError("The trace cannot be written: No space left on device.")


@pytest.mark.parametrize(("fails", "said"), [(_full, "No space left"), (lambda _: str(1 / 0), "division by zero")])
def test_an_error_while_the_window_waits_to_close_keeps_it_open(
    qtbot: QtBot, window: Window, fails: Callable[[Report], str], said: str
) -> None:
    go = threading.Event()

    def slow(report: Report) -> str:
        assert go.wait(20)
        return fails(report)

    assert window.runner.errand(slow, "Saving run.zarr")
    assert not window.close()
    window.watch()
    go.set()
    qtbot.waitUntil(settled(window), timeout=WAIT)
    assert window.isVisible()
    assert said in window.notices.words.text()
    assert window.close()


def test_a_save_that_fails_while_the_window_waits_to_close_keeps_it_open(
    qtbot: QtBot, window: Window, tmp_path: Path
) -> None:
    window.send(SaveModel(str(tmp_path / "gone" / "m.safetensors")))
    assert not window.close()
    qtbot.waitUntil(settled(window), timeout=WAIT)
    assert window.isVisible()
    assert "gone" in window.notices.words.text()


# ---- what is kept while it trains
def test_a_folder_that_cannot_be_made_is_told_once_a_run(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    keeper = Keeper(tmp_path / "runs")
    for run in (1, 2):
        with pytest.raises(UserError, match="not kept on disk"):
            keeper.keep(run, Settings(), make_snapshot(step=1), [], [])
        keeper.keep(run, Settings(), make_snapshot(step=2), [], [])
    keeper.close()


@pytest.mark.parametrize("fails", ["create", "append", "flush"])
def test_a_disk_that_refuses_is_told_once_and_the_next_run_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    def full(*_: object) -> None:
        raise UserError("No space left on device.")

    keeper = Keeper(tmp_path / "runs")
    with monkeypatch.context() as patch:
        patch.setattr(TraceWriter, fails, full)
        with pytest.raises(UserError, match="No space"):
            keeper.keep(1, Settings(), make_snapshot(step=1), [], [])
    keeper.keep(1, Settings(), make_snapshot(step=2), [], [])
    assert not [path for path in (tmp_path / "runs").glob("*.zarr") if len(open_trace(path))]
    keeper.keep(2, Settings(), make_snapshot(step=3), [], [])
    [kept] = (tmp_path / "runs").glob("*.zarr")
    assert [snapshot.step for snapshot in open_trace(kept)] == [3]
    keeper.close()
    assert list((tmp_path / "runs").iterdir()) == []


def test_no_numbers_are_lost_while_keeping_is_slow(
    qtbot: QtBot, window: Window, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moeviz.view.stakes.KEEP_SECONDS", 0.0)
    kept: list[int] = []
    go = threading.Event()

    def keep(run: int, settings: Settings, snapshot: object, logs: Sequence[StepLog], marks: object) -> None:
        kept.extend(int(step) for log in logs for step in log.steps_S)
        assert go.wait(20)

    monkeypatch.setattr(window.stakes.keeper, "keep", keep)
    train(qtbot, window, 20)
    go.set()
    qtbot.waitUntil(lambda: len(kept) > 20, timeout=WAIT)
    assert kept == list(range(1, len(kept) + 1))


# ---- what is said
def test_two_notices_that_come_together_are_both_read(qtbot: QtBot, window: Window) -> None:
    post = window.runner.mailbox.post
    for letter in (Told("The disk is full."), Failure("Lost.", "Traceback", ended=False), Told("Exported to x.")):
        post(letter)
    window.collect()
    assert window.notices.words.text() == "The disk is full. Lost. Exported to x."
    assert not window.notices.copy.isHidden()
    post(Told("Exported to y."))
    window.collect()
    assert window.notices.words.text() == "Exported to y."
    window.tell("Now.")
    assert window.notices.words.text() == "Now."


def test_the_command_line_changes_a_settings_file(qtbot: QtBot, tmp_path: Path) -> None:
    store = QSettings(str(tmp_path / "window.ini"), QSettings.Format.IniFormat)
    (tmp_path / "s.json").write_text(SMALL.with_values({"routing.k": 3, "seed": 5}).to_json())
    window, begin = open_window([str(tmp_path / "s.json")], seed=7, store=store)
    qtbot.addWidget(window)
    begin()
    qtbot.waitUntil(lambda: window.snapshot is not None, timeout=WAIT)
    assert (window.settings.seed, window.settings.routing.k) == (7, 3)
    window.close()
