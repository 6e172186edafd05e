"""Named layouts and the timeline, driven as a person does."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PySide6.QtCore import QEvent, QObject, QPoint, QSettings, Qt
from PySide6.QtGui import QHelpEvent
from PySide6.QtWidgets import QApplication, QTabBar, QToolButton, QToolTip
from pytestqt.qtbot import QtBot

from moeviz.app import make_window
from moeviz.domain.history import History
from moeviz.domain.messages import Read, Restart, SetKnobs, Show, Survey
from moeviz.domain.routing import RoutingSnapshot
from moeviz.domain.settings import Settings
from moeviz.view.dashboard import PANELS
from moeviz.view.layouts import LAYOUTS, ROWS_OF_TASK, layout_of
from moeviz.view.panels.compare import Compare
from moeviz.view.panels.input_map import InputMap
from moeviz.view.panels.losses import Losses
from moeviz.view.timeline import MarkedSlider, Timeline
from moeviz.view.window import Window

SMALL = Settings().with_values(
    {"model.layers": 2, "model.width": 16, "model.expert_width": 16, "model.context": 32, "train.batch": 2}
)
WAIT = 30_000


@pytest.fixture
def window(qtbot: QtBot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built_in_text: object) -> Iterator[Window]:
    monkeypatch.setattr("moeviz.moe.training.load_text", built_in_text)
    window = make(qtbot, tmp_path)
    window.start()
    qtbot.waitUntil(lambda: window.snapshot is not None, timeout=WAIT)
    yield window
    window.close()


def make(qtbot: QtBot, tmp_path: Path, task: str = "text") -> Window:
    store = QSettings(str(tmp_path / "window.ini"), QSettings.Format.IniFormat)
    window = make_window(SMALL.with_values({"task": task}), store=store, runs=tmp_path / "runs")
    qtbot.addWidget(window)
    window.resize(1280, 720)
    with qtbot.waitExposed(window):
        window.show()
    return window


def seen(window: Window) -> set[str]:
    """Panels of which something can be seen now."""
    QApplication.processEvents()
    return {name for name, panel in window.panels.items() if not panel.canvas.visibleRegion().isEmpty()}


def on_top(name: str, task: str = "text") -> set[str]:
    return {cell.tabs[0] for row in layout_of(name, task).rows for cell in row.cells}


def button(window: Window, name: str) -> QToolButton:
    return next(b for b in window.layouts.findChildren(QToolButton) if b.text() == name)


def trained(qtbot: QtBot, window: Window, pictures: int) -> None:
    """Some kept steps more."""
    wanted = len(window.history.snapshots) + pictures
    for _ in range(pictures):
        window.one_step()
    qtbot.waitUntil(lambda: len(window.history.snapshots) >= wanted and window.runner.idle, timeout=WAIT)
    qtbot.waitUntil(lambda: not window.timer.isActive(), timeout=WAIT)


# ---- layouts
@pytest.mark.parametrize("task", ["text", *ROWS_OF_TASK])
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_names_panels_that_exist_and_none_twice(name: str, task: str) -> None:
    layout = layout_of(name, task)
    names = layout.names()
    assert len(set(names)) == len(names)
    assert set(names) <= set(PANELS)
    assert layout.rest in names
    assert set(ROWS_OF_TASK.get(task, {})) <= set(LAYOUTS)


def test_a_newcomer_meets_few_panels(qtbot: QtBot, tmp_path: Path) -> None:
    window = make(qtbot, tmp_path)
    assert seen(window) == on_top("Learn")
    assert len(seen(window)) <= 6
    window.close()


@pytest.mark.parametrize("task", ["text", "plane"])
def test_every_layout_shows_its_panels_and_cuts_no_knob(qtbot: QtBot, window: Window, task: str) -> None:
    window.resize(1264, 662)
    window.layouts.take_task(task)
    for name in (*LAYOUTS, "Learn"):
        button(window, name).click()
        assert seen(window) == on_top(name, task)
        assert button(window, name).isChecked()
        assert window.controls.widget().width() == window.controls.viewport().width()
        for panel in seen(window):
            assert window.panels[panel].canvas.height() >= 80, (name, panel)
        assert (window.width(), window.height()) == (1264, 662)  # what a screen of 1280x720 has room for


@pytest.mark.parametrize("task", ["text", *ROWS_OF_TASK])
def test_no_title_and_no_tab_is_cut_in_a_window_of_1280(qtbot: QtBot, window: Window, task: str) -> None:
    """And where one is, in a narrower window, its tooltip has it whole."""
    window.resize(1264, 662)
    window.layouts.take_task(task)
    for name in (*LAYOUTS, "Learn"):
        button(window, name).click()
        cut = [window.panels[panel].plot.title for panel in seen(window) if window.panels[panel]._title.toolTip()]
        assert not cut, name
        qtbot.waitUntil(lambda: not cut_tabs(window), timeout=WAIT)


def cut_tabs(window: Window) -> list[str]:
    bars = [bar for bar in window.findChildren(QTabBar) if window.childAt(bar.geometry().center()) is bar]
    titles = [(bar, i, bar.tabText(i)) for bar in bars for i in range(bar.count())]
    assert titles
    assert all(bar.tabToolTip(i) == title for bar, i, title in titles)  # where one is cut
    beside = 12  # px, left and right of the text, as the style sheet says
    return [t for bar, i, t in titles if bar.tabRect(i).width() < bar.fontMetrics().horizontalAdvance(t) + beside]


def test_a_layout_is_found_again_as_it_was_left(qtbot: QtBot, tmp_path: Path) -> None:
    window = make(qtbot, tmp_path)
    window.docks["losses"].close()
    window.docks["flow"].toggleViewAction().trigger()
    left = seen(window)
    assert "flow" in left
    assert "losses" not in left
    button(window, "Train").click()
    window.docks["load"].close()
    window.close()

    again = make(qtbot, tmp_path)
    assert seen(again) == on_top("Train") - {"load"}
    button(again, "Learn").click()
    assert seen(again) == left
    again.layouts.reset()
    assert seen(again) == on_top("Learn")
    again.close()


def test_on_the_plane_a_newcomer_meets_its_map_and_it_is_large(qtbot: QtBot, tmp_path: Path) -> None:
    window = make(qtbot, tmp_path, "plane")
    window.resize(1264, 662)  # what a screen of 1280x720 has room for
    for name in ("Learn", "Train", "Inspect"):
        button(window, name).click()
        assert "input_map" in seen(window)
        canvas = window.panels["input_map"].canvas
        assert canvas.height() >= 220, name
        assert canvas.width() >= 400, name
        wide = canvas.width()
        panel = window.panels["input_map"]
        assert isinstance(panel, InputMap)
        for tool in panel.tools:
            tool.show()  # as for painting
        QApplication.processEvents()
        assert canvas.width() == wide, name  # it does not move under the brush
        for tool in panel.tools:
            tool.hide()
    window.close()


def test_a_task_with_places_of_its_own_has_them_remembered_apart(qtbot: QtBot, window: Window, tmp_path: Path) -> None:
    window.docks["losses"].close()
    window.send(SetKnobs({"task": "plane"}))
    qtbot.waitUntil(lambda: window.settings.task == "plane", timeout=WAIT)
    assert seen(window) == on_top("Learn", "plane")
    window.docks["load"].close()
    window.send(SetKnobs({"task": "search", "model.context": 64}))  # which has those of all tasks
    qtbot.waitUntil(lambda: window.settings.task == "search", timeout=WAIT)
    assert seen(window) == on_top("Learn") - {"losses"}
    window.close()
    again = make(qtbot, tmp_path, "plane")
    assert seen(again) == on_top("Learn", "plane") - {"load"}
    again.close()


def test_what_is_brought_to_the_front_goes_back(qtbot: QtBot, window: Window, tmp_path: Path) -> None:
    layouts, before = window.layouts, seen(window)
    for name in ("anatomy", "flow", "load", "saturation", "flow"):
        layouts.bring(name)
        assert name in seen(window)
    window.docks["losses"].close()  # what a person does meanwhile stays
    layouts.give_back()
    assert seen(window) == before - {"losses"}
    layouts.bring("flow")
    button(window, "Train").click()
    assert seen(window) == on_top("Train")
    button(window, "Learn").click()
    assert seen(window) == before - {"losses"}
    layouts.bring("flow")
    window.close()
    again = make(qtbot, tmp_path)
    assert seen(again) == before - {"losses"}
    again.close()


def test_a_panel_of_no_place_comes_as_a_tab(qtbot: QtBot, window: Window) -> None:
    window.docks["flow"].toggleViewAction().trigger()
    assert seen(window) == on_top("Learn") - {"tokens_experts"} | {"flow"}


# ---- the timeline
def test_playing_back_shows_every_kept_step_and_ends_at_the_newest(qtbot: QtBot, window: Window) -> None:
    trained(qtbot, window, 6)
    film, timeline = window.history.snapshots, window.timeline
    shown: list[int] = []
    timeline.moved.connect(lambda: shown.append(window.shown.step if window.shown else -1))
    timeline.speed.setCurrentIndex(timeline.speed.count() - 1)
    timeline.play_button.click()
    assert timeline.playing
    assert timeline.play_button.isChecked()
    assert window.panels["tokens"].snapshot is film[0]
    qtbot.waitUntil(lambda: not timeline.playing, timeout=WAIT)
    assert shown == [*(s.step for s in film), film[-1].step]
    assert timeline.following
    assert window.panels["tokens"].snapshot is window.snapshot
    assert not timeline.play_button.isChecked()


def test_playing_goes_on_from_where_the_handle_stands_and_pauses(qtbot: QtBot, window: Window) -> None:
    trained(qtbot, window, 6)
    timeline = window.timeline
    timeline.slider.setValue(3)
    timeline.speed.setCurrentIndex(0)  # one a second: long enough to pause before the next
    timeline.play_button.click()
    assert window.shown is window.history.snapshots[3]
    timeline.play_button.click()
    assert not timeline.playing
    assert window.shown is window.history.snapshots[3]
    qtbot.keyClick(window, Qt.Key.Key_End)
    assert timeline.following


def test_each_of_several_snapshots_at_one_step_can_be_scrubbed_to(qtbot: QtBot, window: Window) -> None:
    trained(qtbot, window, 2)
    for k in (1, 3, 4):
        window.knobs.change({"routing.k": k})
        qtbot.waitUntil(lambda k=k: window.snapshot is not None and window.snapshot.layers[0].k == k, timeout=WAIT)
    film = window.history.snapshots
    assert len({snapshot.step for snapshot in film[-4:]}) == 1
    for at, snapshot in enumerate(film):
        window.timeline.slider.setValue(at)
        assert window.shown is snapshot
        window.show_all()  # as with every update
        assert window.shown is snapshot
    while window.timeline.slider.value() > 0:
        window.timeline.slider.setValue(window.timeline.slider.value() - 1)
    assert window.shown is film[0]


def test_a_single_step_is_not_played(qtbot: QtBot, window: Window) -> None:
    window.timeline.play_button.click()
    assert not window.timeline.playing
    assert not window.timeline.play_button.isChecked()


def test_a_changed_knob_is_a_mark_on_the_timeline(qtbot: QtBot, window: Window) -> None:
    trained(qtbot, window, 3)
    window.knobs.change({"routing.k": 3})
    trained(qtbot, window, 3)
    slider = window.timeline.slider
    (place, words), step = slider.marks[0], window.history.marks[0][0]
    assert words == "k 2 → 3"
    film = window.history.snapshots
    assert film[place].step == step < film[place + 1].step
    assert [film[at].layers[0].k for at in (place - 1, place)] == [2, 3]
    x = next(x for x in range(slider.width()) if slider.words_at(x))
    at = QPoint(x + 3, 5)
    QApplication.sendEvent(slider, QHelpEvent(QEvent.Type.ToolTip, at, slider.mapToGlobal(at)))
    assert QToolTip.text() == "k 2 → 3"
    QToolTip.hideText()
    assert slider.words_at(0) == ""


def test_a_click_on_the_timeline_goes_there_and_a_drag_takes_the_handle_along(qtbot: QtBot, window: Window) -> None:
    trained(qtbot, window, 8)
    slider = window.timeline.slider
    for part in (0.02, 0.56):
        at = QPoint(round(slider.width() * part), slider.height() // 2)
        qtbot.mouseClick(slider, Qt.MouseButton.LeftButton, pos=at)
        assert slider.value() == round(slider.maximum() * part)
    qtbot.mousePress(slider, Qt.MouseButton.LeftButton, pos=QPoint(2, 5))
    qtbot.mouseMove(slider, QPoint(slider.width() - 2, 5))
    assert window.timeline.following
    qtbot.mouseRelease(slider, Qt.MouseButton.LeftButton)
    qtbot.mouseMove(slider, QPoint(2, 5))
    assert window.timeline.following


def test_looking_adds_no_step_to_the_film(qtbot: QtBot, window: Window) -> None:
    trained(qtbot, window, 2)
    film = list(window.history.snapshots)
    for command in (Show(), Read("another text"), Survey()):
        window.send(command)
        qtbot.waitUntil(lambda: window.runner.idle and not window.timer.isActive(), timeout=WAIT)
    assert window.history.snapshots == film


def test_a_calm_panel_is_drawn_seldom_while_training_but_a_change_and_the_end_at_once(
    qtbot: QtBot, window: Window, monkeypatch: pytest.MonkeyPatch
) -> None:
    window.layouts.choose("Train")
    curve, strip = window.panels["load_over_time"], window.panels["tokens"]
    qtbot.waitUntil(curve.isVisible, timeout=WAIT)
    window.train_action.trigger()
    qtbot.waitUntil(lambda: curve.draws > 1 and window.history.steps.size > 3, timeout=WAIT)
    monkeypatch.setattr("moeviz.view.window.CALM_SECONDS", 1000.0)
    draws, strips = curve.draws, strip.draws
    qtbot.waitUntil(lambda: strip.draws > strips + 3, timeout=WAIT)
    assert curve.draws == draws
    window.knobs.change({"train.lr": 0.001})
    qtbot.waitUntil(lambda: len(window.history.marks) == 1, timeout=WAIT)
    qtbot.waitUntil(lambda: curve.draws > draws, timeout=WAIT)
    window.pause()
    qtbot.waitUntil(lambda: window.runner.idle and not window.timer.isActive(), timeout=WAIT)
    assert curve.table()[1][-1][0] == window.history.steps[-1]


def test_while_training_each_panel_is_painted_in_a_tick_of_its_own(qtbot: QtBot, window: Window) -> None:
    shown = [window.panels[name] for name in sorted(seen(window) - {"controls"})]
    assert len(shown) > 3
    ticks: list[list[int]] = []  # how many panels each tick of a picture has painted

    def tick(do: Callable[[], None], first: bool) -> None:
        before = [panel.draws for panel in shown]
        do()
        painted = sum(panel.draws - was for panel, was in zip(shown, before, strict=True))
        if first:
            ticks.append([painted])
        else:
            ticks[-1].append(painted)

    window.timer.timeout.disconnect(window.collect)
    window.timer.timeout.connect(lambda: tick(window.collect, first=True))
    window.due_timer.timeout.disconnect(window.show_due)
    window.due_timer.timeout.connect(lambda: tick(window.show_due, first=False))
    window.train_action.trigger()
    qtbot.waitUntil(lambda: sum(len(pieces) > 1 for pieces in ticks) > 4, timeout=WAIT)
    pictures = [pieces for pieces in ticks[:-1] if len(pieces) > 1]
    assert all(max(pieces) <= 1 for pieces in pictures)
    assert any(sum(pieces) >= len(shown) - 1 for pieces in pictures)  # one is calm
    qtbot.waitUntil(lambda: window.drawing, timeout=WAIT)
    window.scrub()  # what a person does is seen at once
    assert not window.drawing
    assert {panel.snapshot for panel in shown if not panel.calm} == {window.snapshot}
    window.pause()
    qtbot.waitUntil(lambda: window.runner.idle and not window.timer.isActive(), timeout=WAIT)
    assert {panel.snapshot for panel in shown} == {window.snapshot}
    assert not window.drawing


def test_calm_panels_tell_of_a_new_run_at_once(qtbot: QtBot, window: Window, monkeypatch: pytest.MonkeyPatch) -> None:
    window.layouts.choose("Train")
    losses, load = window.panels["losses"], window.panels["layers_experts"]
    assert isinstance(losses, Losses)
    losses.kind.setCurrentText("total loss")
    monkeypatch.setattr("moeviz.view.window.CALM_SECONDS", 0.0)
    window.train_action.trigger()
    qtbot.waitUntil(lambda: load.snapshot is not None and load.snapshot.step > 100, timeout=WAIT)
    monkeypatch.setattr("moeviz.view.window.CALM_SECONDS", 1000.0)
    window.send(Restart())
    qtbot.waitUntil(lambda: window.snapshot is not None and window.snapshot.step < 100, timeout=WAIT)
    assert load.snapshot is not None
    assert load.snapshot.step < 100
    assert losses.lack() or losses.footer().startswith("step")
    window.pause()
    qtbot.waitUntil(lambda: window.runner.idle and not window.timer.isActive(), timeout=WAIT)


def test_both_sides_of_a_comparison_are_of_one_step_while_training(qtbot: QtBot, window: Window) -> None:
    window.layouts.choose("Compare")
    panel = window.panels["compare"]
    assert isinstance(panel, Compare)
    window.references.choose("layer")
    window.train_action.trigger()
    pairs: list[tuple[int, int]] = []

    def enough() -> bool:
        if panel.snapshot is not None and panel.reference is not None and panel.reference.snapshot is not None:
            pairs.append((panel.snapshot.step, panel.reference.snapshot.step))
        return window.snapshot is not None and window.snapshot.step > 40

    qtbot.waitUntil(enough, timeout=WAIT)
    window.pause()
    qtbot.waitUntil(lambda: window.runner.idle and not window.timer.isActive(), timeout=WAIT)
    assert pairs
    assert all(a == b for a, b in pairs)


def test_a_panel_that_was_closed_and_brought_goes_back_behind_the_one_it_covered(qtbot: QtBot, window: Window) -> None:
    window.layouts.choose("Inspect")
    docks = window.docks
    docks["tokens"].raise_()
    docks["flow"].close()
    qtbot.waitUntil(lambda: not docks["tokens"].visibleRegion().isEmpty(), timeout=WAIT)
    window.layouts.bring("flow")
    qtbot.waitUntil(lambda: not docks["flow"].visibleRegion().isEmpty(), timeout=WAIT)
    window.layouts.give_back()
    qtbot.waitUntil(lambda: not docks["tokens"].visibleRegion().isEmpty(), timeout=WAIT)
    assert docks["flow"].isHidden()


def test_a_held_step_stays_when_the_history_is_thinned(qtbot: QtBot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moeviz.domain.history.MAX_SNAPSHOTS", 16)
    history = History()
    timeline = Timeline(history)
    qtbot.addWidget(timeline)
    for step in range(100):
        snapshot = RoutingSnapshot(step, ())
        history.add_snapshot(snapshot)
        timeline.show_run(snapshot)
        if step == 14:
            timeline.slider.setValue(8)
    assert len(history.snapshots) <= 16
    assert timeline.shown is not None
    assert timeline.shown.step == 8, "it was among the kept ones at each thinning"
    assert timeline.when.text() == "step 8"


def test_the_timeline_is_painted_only_when_a_pixel_moves(qtbot: QtBot) -> None:
    slider, paints = MarkedSlider(), Paints()
    qtbot.addWidget(slider)
    slider.resize(400, 24)
    with qtbot.waitExposed(slider):
        slider.show()
    slider.installEventFilter(paints)

    def painted(last: int, place: int, marks: list[tuple[int, str]]) -> bool:
        paints.count = 0
        slider.show_run(last, place, marks)
        QApplication.processEvents()
        return paints.count > 0

    assert painted(4000, 4000, [(1000, "k 2 → 4")])
    assert not painted(4001, 4001, [(1000, "k 2 → 4")])  # the run grew, and the handle stays at its end
    assert painted(4001, 300, [(1000, "k 2 → 4")])
    assert painted(4001, 300, [])
    assert painted(8002, 300, [])


class Paints(QObject):
    count = 0

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        self.count += event.type() == QEvent.Type.Paint
        return False
