"""How the window behaves to somebody who does not know it: nothing is lost, moved or changed by surprise."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from PySide6.QtCore import QPoint, QPointF, QSettings
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QWidget
from pytestqt.qtbot import QtBot
from test_window import SMALL, WAIT, settled

from moeviz.app import make_window
from moeviz.view.window import Window


@pytest.fixture
def window(qtbot: QtBot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built_in_text: object) -> Iterator[Window]:
    monkeypatch.setattr("moeviz.moe.training.load_text", built_in_text)
    store = QSettings(str(tmp_path / "window.ini"), QSettings.Format.IniFormat)
    window = make_window(SMALL, store=store, runs=tmp_path / "runs")
    qtbot.addWidget(window)
    window.resize(1280, 720)
    window.show()
    window.start()
    qtbot.waitUntil(lambda: window.snapshot is not None, timeout=WAIT)
    yield window
    window.close()
    assert not window.runner.alive


def trained(qtbot: QtBot, window: Window, steps: int = 3) -> None:
    window.train_for(steps)
    qtbot.waitUntil(settled(window), timeout=WAIT)
    assert window.at_stake == steps


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
