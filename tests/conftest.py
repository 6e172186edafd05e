"""What every test shares: an offscreen display, and a check that no thread and no window outlives its test."""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from functools import cache

import pytest

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    yield
    left = [t.name for t in threading.enumerate() if t.name.startswith("moeviz")]
    assert not left, f"threads left running: {left}; close the Runner (or the window) that the test started"


@pytest.fixture(autouse=True)
def no_window_left() -> Iterator[None]:
    before = _windows()
    yield
    left = [type(widget).__name__ for widget in _windows() - before]
    assert not left, f"windows left: {left}; give them to qtbot.addWidget, or close and delete them"


def _windows() -> set[object]:
    """All that have no parent, once those that are to be deleted are."""
    if "PySide6.QtWidgets" not in sys.modules:
        return set()
    from PySide6.QtCore import QCoreApplication, QEvent
    from PySide6.QtWidgets import QApplication

    QCoreApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)
    return set(QApplication.topLevelWidgets())


@pytest.fixture(scope="session")
def built_in_text() -> Callable[[str], object]:
    """load_text that reads the built-in text once: it is the same for every window, and takes half a second."""
    from moeviz.moe.tasks.text import load_text

    built_in = cache(load_text)
    return lambda path="", *report: load_text(path, *report) if path else built_in("")
