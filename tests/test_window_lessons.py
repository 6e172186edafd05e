"""The lessons in the window, taken as a person does."""

from pathlib import Path

import pytest
from PySide6.QtCore import QPoint, QRectF, Qt
from PySide6.QtWidgets import QAbstractButton, QApplication, QLabel
from pytestqt.qtbot import QtBot
from test_window import SMALL, WAIT, action, settled, train
from test_window import window as window  # a fixture

from moeviz.app import bundled_model, make_window
from moeviz.domain.lessons import LESSONS, Lesson, following
from moeviz.domain.messages import OpenModel
from moeviz.view.lessons import NOT_STARTED, WAITING
from moeviz.view.theme import THEMES
from moeviz.view.window import Window


def begin(qtbot: QtBot, window: Window, name: str) -> None:
    action(window, LESSONS[name].title).trigger()
    if window.question.open:
        action(window, f"Answer: {window.question.yes.text()}").trigger()
    shown(qtbot, window)


def shown(qtbot: QtBot, window: Window) -> None:
    """The lesson's own model is there."""
    qtbot.waitUntil(lambda: window.lessons.reading.text() not in ("", WAITING), timeout=WAIT)


def click_token(qtbot: QtBot, window: Window, token: int) -> None:
    panel = window.panels["tokens"]
    area = panel.text_rect(panel.plot_rect(QRectF(panel.canvas.rect())))
    middle = panel.cells(area)[token].center() + area.topLeft()
    qtbot.mouseClick(panel.canvas, Qt.MouseButton.LeftButton, pos=QPoint(round(middle.x()), round(middle.y())))


def test_a_first_lesson_from_the_menu_ticks_its_step_and_goes_on(qtbot: QtBot, window: Window) -> None:
    lesson, page = LESSONS["router"], window.lessons
    assert not window.guide.isVisible()
    begin(qtbot, window, "router")
    assert window.guide.isVisible()
    assert window.guide.windowTitle() == lesson.title
    assert window.snapshot is not None
    assert window.snapshot.step == 4000  # the bundled model
    assert page.words.text() == lesson.steps[0].words
    assert page.reading.text() == "No token is selected."
    assert (page.back.isEnabled(), page.next.text(), page.next.property("lit")) == (False, "Skip", False)
    click_token(qtbot, window, 4)
    assert page.ticked == [True, False, False, False, False]
    assert page.reading.text().startswith("Token 4 “m”, layer 0: expert ")
    assert (page.next.text(), page.next.property("lit")) == ("Next", True)
    window.let_go()
    assert page.ticked[0]  # it has happened, whatever comes
    qtbot.mouseClick(page.next, Qt.MouseButton.LeftButton)
    assert page.words.text() == lesson.steps[1].words
    assert page.next.text() == "Skip"
    assert not page.next.hasFocus()  # keys are still for tokens and training
    largest_T = window.snapshot.layers[0].router_probs_TE.max(axis=1)
    sure = next(t for t in range(1, len(largest_T)) if largest_T[t] > 0.7 > largest_T[t - 1])
    click_token(qtbot, window, sure - 1)
    assert not page.ticked[1]
    qtbot.keyClick(window, Qt.Key.Key_Right)
    assert page.ticked[1], page.reading.text()
    page.back.click()
    assert page.words.text() == lesson.steps[0].words


def test_a_lesson_is_remembered_once_all_has_happened(qtbot: QtBot, window: Window, tmp_path: Path) -> None:
    begin(qtbot, window, "k")
    page, entry = window.lessons, action(window, LESSONS["k"].title)
    assert not entry.isChecked()
    for at, k in enumerate((4, 8, 1)):
        assert page.finished == []
        window.knobs.change({"routing.k": k})
        qtbot.waitUntil(lambda at=at: page.ticked[at], timeout=WAIT)
        page.next.click()
    assert page.finished == ["k"]
    assert entry.isChecked()
    assert LESSONS["k"].seen in page.words.text()
    assert LESSONS["noise"].title in page.words.text()
    assert page.next.text() == "Next lesson"
    assert not page.reading.isVisible()
    window.memory.sync()
    other = make_window(SMALL, store=window.memory, runs=tmp_path / "other")
    qtbot.addWidget(other)
    assert action(other, LESSONS["k"].title).isChecked()
    assert not action(other, LESSONS["router"].title).isChecked()
    other.close()


def test_a_lesson_that_trains_is_ticked_by_training_and_the_next_one_asks(qtbot: QtBot, window: Window) -> None:
    begin(qtbot, window, "collapse")
    page = window.lessons
    assert window.settings.routing.router == "switch"
    assert not window.runner.training
    assert "20 training steps" in page.reading.text()
    qtbot.keyClick(window, Qt.Key.Key_Space)
    qtbot.waitUntil(lambda: page.ticked[0], timeout=WAIT)
    assert not page.ticked[1]
    while page.next.text() != "Next lesson":
        page.next.click()  # the others are skipped
    assert page.finished == []
    page.next.click()
    assert "loses" in window.question.words.text()
    assert page.lesson is LESSONS["collapse"]
    action(window, f"Answer: {window.question.yes.text()}").trigger()
    assert page.lesson is LESSONS["loss_free"]
    shown(qtbot, window)
    assert window.settings.routing.router == "sigmoid_bias"
    assert page.ticked == [False] * 4


def test_asking_for_a_lesson_and_keeping_the_model_changes_nothing(qtbot: QtBot, window: Window) -> None:
    train(qtbot, window, 3)
    window.pause()
    qtbot.waitUntil(settled(window), timeout=WAIT)
    snapshot = window.snapshot
    for name in ("router", "collapse"):
        entry = action(window, LESSONS[name].title)
        entry.trigger()
        assert "loses" in window.question.words.text()
        window.question.answer(False)
        assert not entry.isChecked()
        assert not window.guide.isVisible()
    assert window.snapshot is snapshot


def test_a_lesson_whose_model_cannot_be_started_says_so_and_starts_again(
    qtbot: QtBot, window: Window, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = window.lessons
    (tmp_path / "broken.safetensors").write_bytes(b"broken")
    monkeypatch.setattr(page, "_bundled", lambda task: str(tmp_path / "broken.safetensors"))
    action(window, LESSONS["router"].title).trigger()
    assert page.reading.text() == WAITING
    qtbot.waitUntil(lambda: page.reading.text() == NOT_STARTED, timeout=WAIT)
    assert "broken.safetensors" in window.notices.words.text()
    monkeypatch.setattr(page, "_bundled", bundled_model)
    page.again.click()
    assert page.reading.text() == WAITING
    qtbot.waitUntil(lambda: page.reading.text() == "No token is selected.", timeout=WAIT)


def test_closed_it_looks_no_more_and_an_experiment_takes_its_place(
    qtbot: QtBot, window: Window, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(qtbot, window, "router")
    page = window.lessons
    action(window, "Close the guide").trigger()
    assert not window.guide.isVisible()
    click_token(qtbot, window, 3)
    assert page.ticked == [False] * 5
    window.guide.show()
    window.select(window.pinned)
    assert page.ticked[0]
    begin(qtbot, window, "router")  # from the menu it begins anew
    assert page.ticked == [False] * 5
    assert page.reading.text() == "No token is selected."
    page.again.click()
    assert page.at == 0
    action(window, "Neighbours share experts; the character decides").trigger()
    window.question.answer(True)
    assert window.experiments.isVisible()
    assert not page.isVisible()


def test_a_panel_that_a_step_is_about_comes_to_the_front(qtbot: QtBot, window: Window) -> None:
    def seen(name: str) -> bool:
        return not window.panels[name].canvas.visibleRegion().isEmpty()

    assert not seen("experts_domains")
    begin(qtbot, window, "specialisation")
    page = window.lessons
    qtbot.waitUntil(lambda: seen("experts_domains"), timeout=WAIT)
    qtbot.waitUntil(lambda: page.reading.text() == "No expert is selected.", timeout=WAIT)
    page.next.click()
    qtbot.waitUntil(lambda: seen("experts_tokens"), timeout=WAIT)
    assert not seen("experts_domains")


def test_a_closed_guide_leaves_the_panels_as_they_were(qtbot: QtBot, window: Window) -> None:
    def seen() -> set[str]:
        QApplication.processEvents()
        return {name for name, panel in window.panels.items() if not panel.canvas.visibleRegion().isEmpty()}

    window.docks["anatomy"].raise_()
    before = seen()
    assert "anatomy" in before
    begin(qtbot, window, "router")
    page = window.lessons
    while page.at < len(page.lesson.steps):
        assert set(page.lesson.steps[page.at].shows) <= seen()
        page.next.click()
    assert seen() != before
    begin(qtbot, window, "noise")
    assert "load_over_time" in seen()
    assert "layers_experts" not in seen()  # of the lesson before
    window.layouts.choose("Train")
    assert "load_over_time" in seen()
    window.layouts.choose("Learn")
    assert "load_over_time" in seen()
    close = next(b for b in window.guide.findChildren(QAbstractButton) if "close" in b.objectName())
    qtbot.mouseClick(close, Qt.MouseButton.LeftButton)
    assert not window.guide.isVisible()
    assert seen() == before
    begin(qtbot, window, "specialisation")
    assert "experts_domains" in seen()
    action(window, "Neighbours share experts; the character decides").trigger()
    window.question.answer(True)
    assert window.experiments.isVisible()
    assert seen() == before
    action(window, "Close the guide").trigger()
    assert seen() == before


def test_a_lesson_from_the_plane_has_its_panels_in_the_layout_of_its_own_task(qtbot: QtBot, window: Window) -> None:
    window.send(OpenModel(str(bundled_model("plane"))))
    qtbot.waitUntil(lambda: window.settings.task == "plane", timeout=WAIT)
    begin(qtbot, window, "specialisation")
    QApplication.processEvents()
    assert not window.panels["experts_domains"].canvas.visibleRegion().isEmpty()
    assert window.docks["input_map"].isHidden()
    assert window.layouts.task == "text"
    fitting = window.guide.height()
    assert window.guide.widget().verticalScrollBar().maximum() == 0
    assert window.docks["controls"].height() > fitting
    for do in (lambda: window.layouts.choose("Train"), window.layouts.reset):
        do()
        qtbot.waitUntil(lambda: window.guide.height() == fitting, timeout=WAIT)


def test_with_another_task_the_lesson_says_so(qtbot: QtBot, window: Window) -> None:
    begin(qtbot, window, "router")
    window.send(OpenModel(str(bundled_model("plane"))))
    qtbot.waitUntil(lambda: window.settings.task == "plane", timeout=WAIT)
    window.select(window.pinned)
    assert "another task" in window.lessons.reading.text()
    window.lessons.again.click()
    qtbot.waitUntil(lambda: window.settings.task == "text", timeout=WAIT)
    shown(qtbot, window)
    assert window.lessons.reading.text() == "No token is selected."


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("lesson", LESSONS.values(), ids=lambda lesson: lesson.name)
def test_every_word_fits_and_the_knobs_keep_room(
    qtbot: QtBot, window: Window, lesson: Lesson, theme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    window.set_theme(theme)
    monkeypatch.setattr(window, "start", lambda *_: None)
    window.lessons.begin(lesson)
    page, area = window.lessons, window.guide.widget()
    long = (
        "Experts with nearly no work in layer 10 over the last 20 batches now 10; wanted: above 6. Load shows the last "
        "batch alone."
    )
    places = set()
    for at in range(len(lesson.steps) + 1):
        page.go(at)
        page.reading.setText(long)
        qtbot.waitUntil(lambda: area.verticalScrollBar().maximum() == 0, timeout=WAIT)
        for label in page.findChildren(QLabel):
            if label.isVisible():
                assert label.height() >= label.heightForWidth(label.width()), label.text()
        for each in (page.back, page.next, page.again):
            if each.isVisible():
                qtbot.waitUntil(lambda each=each: each.width() >= each.sizeHint().width(), timeout=WAIT)
                assert area.viewport().rect().contains(each.geometry())
        places.add(page.back.y())
    assert len(places) <= 2  # at the end there is no reading
    assert window.docks["controls"].height() >= 300
    assert (page.next.isVisible()) == (following(lesson) is not None)


def test_a_step_began_with_the_held_out_text_that_is_looked_at_later(qtbot: QtBot, window: Window) -> None:
    begin(qtbot, window, "router")
    window.docks["anatomy"].raise_()
    qtbot.waitUntil(lambda: window.survey is not None and settled(window)(), timeout=WAIT)
    assert window.survey is not None
    assert window.survey.heldout is None
    window.docks["experts_domains"].toggleViewAction().trigger()
    qtbot.waitUntil(lambda: window.survey.heldout is not None and settled(window)(), timeout=WAIT)
    assert window.lessons._then.survey.heldout is window.survey.heldout
