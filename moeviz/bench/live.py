"""The default window as a bench runs it: with a memory and a record of runs of its own, never the user's."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from PySide6.QtCore import QEventLoop, QSettings, QTimer
from PySide6.QtWidgets import QApplication

from moeviz.app import make_window
from moeviz.view.window import Window


@contextmanager
def live_window() -> Iterator[Window]:
    """The window with its bundled model, which is being loaded."""
    app = QApplication.instance() or QApplication([])
    with tempfile.TemporaryDirectory() as folder:
        store = QSettings(str(Path(folder, "w.ini")), QSettings.Format.IniFormat)
        window = make_window(store=store, runs=Path(folder, "runs"))
        window.resize(1440, 900)
        window.show()
        window.start()
        yield window
        window.close()
    assert app is not None


def live(seconds: float, until: Callable[[], bool] | None = None) -> None:
    """Let the event loop run as it does in the program, for a time or until something holds."""
    loop = QEventLoop()
    QTimer.singleShot(round(seconds * 1000), loop.quit)
    watch = QTimer()
    if until is not None:
        watch.timeout.connect(lambda: loop.quit() if until() else None)
        watch.start(5)
    loop.exec()


def settle(window: Window) -> None:
    """Until nothing moves: no command, no survey, no picture is on its way."""
    live(10, lambda: window.runner.idle and not window.timer.isActive())
