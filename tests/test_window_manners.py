"""How the window behaves to somebody who does not know it: nothing is lost, moved or changed by surprise."""

from pathlib import Path

import numpy as np
import pytest
from PySide6.QtCore import QEvent, QPoint, QPointF, QSettings, QSize, Qt
from PySide6.QtGui import QCloseEvent, QColor, QFocusEvent
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication, QFileDialog, QWidget
from pytestqt.qtbot import QtBot
from test_panels import make_snapshot
from test_window import SMALL, WAIT, action, settled
from test_window import window as window  # the fixture

from moeviz import app
from moeviz.app import make_window
from moeviz.domain.messages import SaveModel, SetProbe
from moeviz.view.controls import Controls, PathLine
from moeviz.view.export_dialog import ExportDialog
from moeviz.view.files import refused
from moeviz.view.frame import Frame, first_size
from moeviz.view.memory import last_folder, remember_folder
from moeviz.view.steady import SteadyLabel
from moeviz.view.theme import THEMES
from moeviz.view.window import Window


def trained(qtbot: QtBot, window: Window, steps: int = 3) -> None:
    window.train_for(steps)
    qtbot.waitUntil(settled(window), timeout=WAIT)
    assert window.stakes.steps == steps


# ---- the wheel
def turn_wheel(window: Window, widget: QWidget, notches: int = -1) -> None:
    """Over the middle of the widget, the way that it comes from the screen."""
    at = widget.mapTo(window, widget.rect().center())
    QTest.wheelEvent(window.windowHandle(), QPointF(at), QPoint(0, 120 * notches))


@pytest.mark.parametrize("key", ["routing.k", "routing.router", "routing.temperature"])
def test_the_wheel_over_a_knob_scrolls_the_knobs_unless_it_has_the_focus(
    qtbot: QtBot, window: Window, key: str
) -> None:
    row, bar = window.controls.rows[key], window.controls.verticalScrollBar()
    window.activateWindow()
    window.setFocus()
    qtbot.waitUntil(window.hasFocus, timeout=WAIT)
    before = window.settings
    for widget in (row.field, row.slider):
        if widget is not None:
            bar.setValue(0)
            turn_wheel(window, widget)
            assert window.settings == before
            assert not widget.hasFocus()
            assert bar.value() > 0
    bar.setValue(0)
    row.field.setFocus()
    turn_wheel(window, row.field)
    assert window.settings != before


# ---- files
def test_a_folder_is_remembered_only_where_a_file_was_written(
    qtbot: QtBot, window: Window, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = iter(["/proc/model.safetensors", str(tmp_path / "model.safetensors"), "/proc/s.json", "/proc/run.zarr"])
    began: list[str] = []

    def ask(parent: object, title: str, start: str, filters: str) -> tuple[str, str]:
        began.append(str(Path(start).parent))
        return next(names), ""

    monkeypatch.setattr(QFileDialog, "getSaveFileName", ask)
    for save in (window.files.save_model, window.files.save_model, window.files.save_settings, window.files.save_run):
        save()
        qtbot.waitUntil(settled(window), timeout=WAIT)
    window.files.export_to("load", "/proc/load.pdf")
    qtbot.waitUntil(settled(window), timeout=WAIT)
    home, here = str(Path.home()), str(tmp_path)
    assert began == [home, home, here, here]
    assert last_folder(window.memory) == tmp_path
    window.files.export_to("load", str(tmp_path.parent / "load.csv"))
    qtbot.waitUntil(settled(window), timeout=WAIT)
    (tmp_path.parent / "load.csv").unlink()
    assert last_folder(window.memory) == tmp_path.parent


def test_settings_that_find_no_room_leave_the_old_file(
    qtbot: QtBot, window: Window, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "settings.json"
    path.write_text("old")
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (str(path), ""))
    monkeypatch.setattr(Path, "replace", lambda self, to: (_ for _ in ()).throw(OSError(28, "No space left")))
    window.files.save_settings()
    assert f"Cannot write the settings to {path}: No space left" in window.notices.words.text()
    assert path.read_text() == "old"
    assert [found for found in tmp_path.iterdir() if "settings.json" in found.name] == [path]


def test_a_folder_that_is_gone_gives_way_to_home(tmp_path: Path) -> None:
    store = QSettings(str(tmp_path / "w.ini"), QSettings.Format.IniFormat)
    assert last_folder(store) == Path.home()
    remember_folder(store, str(tmp_path / "gone" / "a.png"))
    assert last_folder(store) == Path.home()
    (tmp_path / "gone").mkdir()
    assert last_folder(store) == tmp_path / "gone"


def test_export_asks_before_it_replaces_and_keeps_a_wrong_name(qtbot: QtBot, window: Window, tmp_path: Path) -> None:
    remember_folder(window.memory, str(tmp_path / "x"))
    (tmp_path / "load.png").write_bytes(b"of somebody")
    dialog = ExportDialog("load", "png", window.panels["load"].picture_size(), window.memory, window)
    dialog.show()
    for name, said in (
        ("load.jpg", "The name must end in .png, .svg, .pdf or .csv."),
        ("nowhere/load.png", f"There is no folder {tmp_path}/nowhere: choose another, or make it first."),
        ("load.png", "load.png is there already: Replace writes over it."),
    ):
        dialog.file.setText(str(tmp_path / name))
        dialog.save.click()
        assert dialog.isVisible()
        assert dialog.hint.text() == said
    assert dialog.save.text() == "Replace"
    dialog.file.setText(str(tmp_path / "other.png"))
    assert dialog.save.text() == "Save"
    dialog.file.setText(str(tmp_path / "load.png"))
    dialog.save.click()
    assert dialog.isVisible()  # another name was given meanwhile
    dialog.save.click()
    assert dialog.result() == ExportDialog.DialogCode.Accepted


def test_nobody_is_asked_to_give_up_a_run_for_a_file_that_cannot_be_opened(
    qtbot: QtBot, window: Window, tmp_path: Path
) -> None:
    model, trace = tmp_path / "model.safetensors", tmp_path / "run.zarr"
    window.send(SaveModel(str(model)))
    qtbot.waitUntil(settled(window), timeout=WAIT)
    app.save_trace(str(trace), SMALL, (), (make_snapshot(step=1),), (), lambda done, total: None)
    whole = model.read_bytes()
    bad = {
        "cut.safetensors": whole[:-1],
        "head.safetensors": whole[:60],
        "empty.safetensors": b"",
        "text.safetensors": b"This is no model at all.",
        "list.safetensors": (2).to_bytes(8, "little") + b"[]",
    }
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
    for name, content in {"bad.zarr": b"{", "other.zarr": b'{"attributes": {}}'}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "zarr.json").write_bytes(content)
    trained(qtbot, window)
    for name in (*bad, "bad.zarr", "other.zarr", "gone.zarr", "gone.safetensors"):
        window.notices.hide()
        window.files.open_paths([str(tmp_path / name)])
        assert not window.question.open
        assert name in window.notices.words.text()
        assert not window.notices.isHidden()
    for path in (model, tmp_path, trace):  # a folder that holds a model is one, too
        assert refused(str(path)) == ""
        window.files.open_paths([str(path)])
        assert window.question.open
        window.question.no.click()


# ---- how it looks
def test_a_theme_reaches_the_frame_the_title_bars_and_the_scroll_bars(qtbot: QtBot, window: Window) -> None:
    frame = Frame(window.memory)
    qtbot.addWidget(frame)
    frame.hold(window)
    frame.show()
    bar = window.controls.verticalScrollBar()
    for name in ("light", "dark"):
        window.set_theme(name)
        picture = frame.grab().toImage()
        edge = bar.mapTo(frame, QPoint(1, bar.height() - 1))  # below the handle
        title = window.docks["load"].titleBarWidget()
        assert title is not None
        wanted = QColor(THEMES[name].window)
        assert picture.pixelColor(edge) == wanted
        assert picture.pixelColor(title.mapTo(frame, QPoint(1, 1))) == wanted
        assert frame.palette().window().color() == window.palette().window().color() == wanted
    frame.takeCentralWidget()  # it is closed by itself


# ---- messages
def test_messages_have_room_of_their_own_under_the_knobs(qtbot: QtBot, window: Window) -> None:
    """No plot and no knob is hidden: the knobs scroll above them."""
    controls, messages = window.controls, window.messages
    high = controls.viewport().height()
    window.tell("Something is wrong.")
    window.question.ask("Really?", "Do", lambda: None, third=("Something else that takes a wide button", bool))
    for _ in range(2):
        QApplication.processEvents()
        at = messages.geometry().translated(-controls.mapTo(window, QPoint(0, 0)))
        assert controls.rect().contains(at)
        assert controls.viewport().geometry().bottom() < at.top()
        for bar in (messages.notices, messages.question):
            for part in (bar.words, *bar._buttons):
                assert part.isHidden() or bar.rect().contains(part.geometry())
        window.tell("A path that can be broken: /a/rather/long/path/to/a/file/of/some/kind.pdf, and more words.")
    window.docks["controls"].close()  # then they can only lie over the panels
    qtbot.waitUntil(lambda: messages.geometry().center().x() == pytest.approx(window.width() / 2, abs=2), timeout=WAIT)
    assert messages.geometry().bottom() < window.timeline.y()
    window.docks["controls"].show()
    qtbot.waitUntil(lambda: messages.x() < controls.width(), timeout=WAIT)
    while messages.dismiss():
        pass
    assert controls.viewport().height() == high


def test_messages_move_nothing_and_go(qtbot: QtBot, window: Window, tmp_path: Path) -> None:
    before = [dock.geometry() for dock in window.docks.values()]
    window.notices.passing.setInterval(50)
    window.tell("Something is wrong.")
    trained(qtbot, window)
    window.restart()
    qtbot.waitUntil(lambda: window.question.isVisible() and window.notices.isVisible(), timeout=WAIT)
    assert [dock.geometry() for dock in window.docks.values()] == before
    floor = window.messages.geometry()
    assert floor.bottom() < window.timeline.y()
    assert window.notices.geometry().bottom() < window.question.geometry().top()
    for size in ((900, 640), (1280, 720)):
        window.resize(*size)
        qtbot.waitUntil(lambda: window.messages.y() < window.timeline.y(), timeout=WAIT)
        assert window.rect().contains(window.messages.geometry())
    window.tell("Something else is wrong.")
    qtbot.keyClick(window, Qt.Key.Key_Escape)  # the newest first
    assert window.notices.isHidden()
    assert window.question.open
    qtbot.keyClick(window, Qt.Key.Key_Escape)
    assert not window.question.open
    assert not window.messages.isVisible()
    window.files.export_to("load", str(tmp_path / "load.csv"))
    qtbot.waitUntil(lambda: "Exported" in window.notices.words.text(), timeout=WAIT)
    qtbot.waitUntil(window.notices.isHidden, timeout=WAIT)
    window.tell("Done.", passing=True)
    window.tell("Wrong.")
    assert not window.notices.passing.isActive()
    window.tell("a long sentence " * 60)
    assert window.notices.words.height() >= window.notices.words.heightForWidth(window.notices.words.width())


@pytest.mark.parametrize(
    ("room", "size"),
    [((1440, 900), (1424, 828)), ((2560, 1440), (1920, 1200)), ((1920, 1040), (1904, 956)), ((1280, 720), (1264, 662))],
)
def test_the_first_window_fits_the_screen_with_its_title_bar(room: tuple[int, int], size: tuple[int, int]) -> None:
    assert first_size(QSize(*room)).toTuple() == size  # type: ignore[attr-defined]


@pytest.mark.parametrize("size", [(1280, 720), (1424, 828), (1920, 1200)])
def test_reset_layout_is_the_first_layout_and_cuts_no_knob(qtbot: QtBot, tmp_path: Path, size: tuple[int, int]) -> None:
    store = QSettings(str(tmp_path / "window.ini"), QSettings.Format.IniFormat)
    window = make_window(SMALL, store=store, runs=tmp_path / "runs")
    qtbot.addWidget(window)
    window.resize(*size)
    with qtbot.waitExposed(window):
        window.show()
    docks = window.docks

    def places() -> list[tuple[int, int, int, int]]:
        QApplication.processEvents()
        boxes = [dock.geometry().getRect() for dock in docks.values() if dock.isVisible()]
        return [box for box in boxes if box[0] >= 0]  # type: ignore[misc] # a dock behind another tab lies outside

    first = places()
    window.layouts.fresh = False
    assert window.controls.widget().width() == window.controls.viewport().width()
    assert docks["load"].width() < docks["tokens_experts"].width()
    window.resizeDocks([docks["controls"], docks["tokens"]], [400, 100], Qt.Orientation.Horizontal)
    window.resizeDocks([docks["tokens"], docks["load"]], [300, 100], Qt.Orientation.Vertical)
    docks["load"].setFloating(True)
    docks["losses"].hide()
    assert places() != first
    window.layouts.reset()
    assert places() == first
    window.close()


def test_what_is_shown_of_the_past_is_told_beside_the_newest(qtbot: QtBot, window: Window) -> None:
    trained(qtbot, window, 2)
    window.send(SetProbe("another probe"))
    qtbot.waitUntil(settled(window), timeout=WAIT)
    step = window.status.labels["step"]
    assert (step.text(), window.bar.probe_line.text()) == ("step 2", "another probe")
    window.timeline.slider.setValue(0)
    assert step.text() == "shows step 0; newest is 2"
    of_now = [window.status.labels[name] for name in ("measure", "parameters", "flops")]
    assert all(label.text().startswith("newest ") for label in of_now if label.text())
    assert " parameters active" in of_now[1].text()
    window.status.put("measure", "held-out 3.1 nats/char")  # it comes only after some steps
    assert of_now[0].text() == "newest held-out 3.1 nats/char"
    window.status.put("measure", "")
    assert "another probe" not in window.bar.probe_line.text()
    window.train_action.trigger()
    qtbot.waitUntil(lambda: window.stakes.steps > 5, timeout=WAIT)
    assert window.snapshot is not None
    assert step.text() == f"shows step 0; training at {window.snapshot.step:,}"
    window.timeline.follow()
    assert window.bar.probe_line.text() == "another probe"
    assert step.text() == f"step {window.snapshot.step:,}"
    assert not any(label.text().startswith("newest ") for label in of_now)


def test_the_answer_in_the_menu_is_named_by_what_it_does(qtbot: QtBot, window: Window) -> None:
    answer = action(window, "Answer the open question")
    assert not answer.isEnabled()
    window.question.ask("Really?", "&Do it", lambda: None)
    assert (answer.text(), answer.isEnabled()) == ("Answer: Do it", True)
    window.question.ask("Really?", "Restart", lambda: None)
    assert answer.text() == "Answer: Restart"
    answer.trigger()
    assert (answer.text(), answer.isEnabled()) == ("Answer the open question", False)


def test_a_dock_that_floats_steps_aside(qtbot: QtBot, window: Window) -> None:
    dock = window.docks["controls"]
    before = dock.mapToGlobal(QPoint(0, 0))
    dock.setFloating(True)
    qtbot.waitUntil(lambda: (dock.pos() - before).manhattanLength() >= 64, timeout=WAIT)


def test_the_export_button_is_not_lit_after_its_menu(window: Window) -> None:
    button = window.panels["load"]._export
    button.setAttribute(Qt.WidgetAttribute.WA_UnderMouse)
    button.setDown(True)
    button.menu().aboutToHide.emit()
    assert not button.underMouse()
    assert not button.isDown()


# ---- the end
class ByAPerson(QCloseEvent):
    def spontaneous(self) -> bool:
        return True


def test_closing_by_hand_asks_if_trained_steps_would_be_lost(
    qtbot: QtBot, window: Window, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert window.stakes.may_close()  # there is nothing to lose
    frame = Frame(window.memory)
    qtbot.addWidget(frame)
    frame.hold(window, window.stakes.may_close)
    frame.show()
    trained(qtbot, window)
    event = ByAPerson()
    frame.closeEvent(event)
    assert not event.isAccepted()
    assert window.question.words.text() == "Closing loses 3 steps that are not saved."
    window.question.no.click()
    assert window.runner.alive
    action(window, "Quit").trigger()
    assert window.question.open
    names = iter(["", "/proc/model.safetensors", str(tmp_path / "model.safetensors")])
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (next(names), ""))
    for _ in range(2):  # nowhere, and where nothing can be written
        window.quit()
        window.question.yes.click()
        qtbot.waitUntil(settled(window), timeout=WAIT)
        assert frame.isVisible()
        assert window.stakes.steps == 3
    window.train_action.trigger()  # it trains on while it is saved
    qtbot.waitUntil(lambda: window.stakes.steps > 3, timeout=WAIT)
    window.quit()
    window.question.yes.click()
    qtbot.waitUntil(lambda: not frame.isVisible(), timeout=WAIT)
    assert not window.runner.alive
    assert (tmp_path / "model.safetensors").stat().st_size > 1000


def test_a_saved_trace_is_no_saved_model_and_the_question_says_so(qtbot: QtBot, window: Window, tmp_path: Path) -> None:
    trained(qtbot, window)
    window.files.save_run_to("/proc/none.zarr")
    qtbot.waitUntil(lambda: "cannot be written" in window.notices.words.text(), timeout=WAIT)
    assert not window.stakes.may_close()
    assert window.question.words.text() == "Closing loses 3 steps that are not saved."
    texts = [button.text() for button in (window.question.yes, window.question.third, window.question.no)]
    letters = [text.partition("&")[2][:1].lower() for text in (*texts, *(a.text() for a in window.menuBar().actions()))]
    assert len({*letters}) == len(letters)  # two for one letter, and Alt with it does neither
    window.files.save_run_to(str(tmp_path / "run.zarr"))
    qtbot.waitUntil(lambda: "Saved" in window.notices.words.text(), timeout=WAIT)
    assert not window.stakes.may_close()
    words = "that are not saved: the trace holds the routing{}, not the model's weights."
    assert window.question.words.text() == f"Closing loses 3 steps {words.format('')}"
    window.one_step()
    qtbot.waitUntil(lambda: window.stakes.steps == 4, timeout=WAIT)
    assert not window.stakes.may_close()
    assert window.question.words.text() == f"Closing loses 4 steps {words.format(' up to step 3')}"
    window.restart()
    window.question.yes.click()
    qtbot.waitUntil(lambda: window.stakes.steps == 0, timeout=WAIT)
    qtbot.waitUntil(settled(window), timeout=WAIT)
    trained(qtbot, window)
    assert not window.stakes.may_close()
    assert window.question.words.text() == "Closing loses 3 steps that are not saved."


def test_undo_brings_experts_back_or_says_that_it_cannot(qtbot: QtBot, window: Window) -> None:
    trained(qtbot, window)
    assert window.snapshot is not None
    before = [layer.router_logits_TE for layer in window.snapshot.layers]

    def shrink_and(train: int) -> None:
        window.knobs.change({"model.experts": 5})
        qtbot.waitUntil(lambda: window.snapshot.layers[0].num_experts == 5, timeout=WAIT)  # type: ignore[union-attr]
        for _ in range(train):
            window.one_step()
        qtbot.waitUntil(settled(window), timeout=WAIT)
        window.knobs.undo_change(forward=False)
        qtbot.waitUntil(lambda: window.snapshot.layers[0].num_experts == 8, timeout=WAIT)  # type: ignore[union-attr]

    shrink_and(0)
    for layer, logits in zip(window.snapshot.layers, before, strict=True):
        assert np.array_equal(layer.router_logits_TE, logits)
    assert not window.notices.isVisible()
    shrink_and(1)
    assert "the 3 new are copies of the most loaded ones" in window.notices.words.text()


def test_closing_without_saving(qtbot: QtBot, window: Window) -> None:
    trained(qtbot, window)
    window.quit()
    assert window.isVisible()
    window.question.third.click()
    assert not window.isVisible()
    assert not window.runner.alive


def test_a_label_of_the_status_bar_keeps_its_place_and_lays_out_nothing(qtbot: QtBot) -> None:
    steps, state = SteadyLabel(), SteadyLabel(40, grows=False)
    for label in (steps, state):
        qtbot.addWidget(label)
        label.say("Loading the model…")
    wide = steps.width()
    assert wide == state.width() > 40
    for label in (steps, state):
        label.say("step 1")
    assert steps.width() == steps.minimumWidth() == steps.maximumWidth() == wide
    assert state.width() == max(40, steps.fontMetrics().horizontalAdvance("step 1")) < wide
    steps.say("")
    assert steps.maximumWidth() == 0
    steps.say("step 1")
    assert steps.width() < wide


def test_a_path_is_edited_whole_and_not_lost_to_a_menu(qtbot: QtBot) -> None:
    line, tab, menu = PathLine(), Qt.FocusReason.TabFocusReason, Qt.FocusReason.PopupFocusReason
    qtbot.addWidget(line)
    line.show_path("/some/where/a.txt")
    assert line.text() == "a.txt"
    QApplication.sendEvent(line, QFocusEvent(QEvent.Type.FocusIn, tab))
    assert line.selectedText() == "/some/where/a.txt"
    line.setText("/new.txt")
    line.selectAll()
    for kind in (QEvent.Type.FocusOut, QEvent.Type.FocusIn):
        QApplication.sendEvent(line, QFocusEvent(kind, menu))
        assert line.selectedText() == "/new.txt"
    QApplication.sendEvent(line, QFocusEvent(QEvent.Type.FocusOut, tab))
    assert line.text() == "a.txt"  # nobody took the new one


def test_the_end_of_a_refusal_leaves_alone_what_is_being_typed(qtbot: QtBot) -> None:
    controls = Controls()
    qtbot.addWidget(controls)
    controls.rows["routing.k"].say("k is more than the experts.")
    line = controls.rows["data.path"].field
    assert isinstance(line, PathLine)
    line.setText("/home/me/da")
    controls.refused.timeout.emit()
    assert controls.rows["routing.k"].note.isHidden()
    assert line.text() == "/home/me/da"
