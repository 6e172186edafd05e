"""The start of the window: an empty frame at once, then what fills it, in pieces short enough that it never stalls."""

import os
import signal
import socket
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import TYPE_CHECKING

from PySide6.QtCore import QSocketNotifier, QTimer
from PySide6.QtWidgets import QApplication

from moeviz.engine.imports import import_beside
from moeviz.view.frame import Frame
from moeviz.view.memory import memory

if TYPE_CHECKING:
    from moeviz.view.window import Window

CONTENT = "moeviz.app"  # with numpy, a quarter of a second
TURN_MS = 1  # with 0 all would happen in one turn


def run_window(
    paths: list[str],
    *,
    task: str | None = None,
    settings_file: str | None = None,
    device: str = "cpu",
    seed: int | None = None,
) -> int:
    """Open the window and stay until it is closed."""
    app = QApplication.instance() or QApplication(sys.argv[:1])
    assert isinstance(app, QApplication)
    app.setApplicationName("moeviz")
    frame = Frame(memory())
    filled: list[Window] = []
    sys.excepthook = lambda kind, error, trace: _show(filled, kind, error, trace)

    def fill() -> Iterator[None]:
        imported = import_beside(CONTENT)
        while not imported():
            yield
        from moeviz.app import open_window
        from moeviz.view.controls import Controls
        from moeviz.view.dashboard import make_panels
        from moeviz.view.theme import remembered

        panels = make_panels(remembered(frame.memory))
        yield
        parts = panels, Controls()
        yield
        window, begin = open_window(
            paths, task=task, settings_file=settings_file, device=device, seed=seed, store=frame.memory, parts=parts
        )
        filled.append(window)
        yield
        window.set_theme(window.theme.name)
        yield
        frame.hold(window, window.stakes.may_close)
        yield
        begin()

    filling = fill()

    def turn() -> None:
        try:
            next(filling)
        except StopIteration:
            return
        QTimer.singleShot(TURN_MS, turn)

    frame.painted.connect(lambda: QTimer.singleShot(TURN_MS, turn))
    frame.show()
    with _closed_by_interrupt(frame, filled):
        code = app.exec()
    if filled and filled[0].runner.busy:
        # closed amid something that cannot be interrupted, as the import of torch or a long step; the window has waited
        # for the files that were to be written, unless it was closed twice. An interpreter that ends under such a
        # thread aborts
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


@contextmanager
def _closed_by_interrupt(frame: Frame, filled: "list[Window]") -> Iterator[None]:
    """Ctrl-C in the terminal does what Quit does: the window asks first if something would be lost. The second one
    closes it."""
    asked = False

    def close() -> None:
        nonlocal asked
        if not filled or (asked and filled[0].question.open) or filled[0].stakes.may_close():
            frame.close()
        else:
            asked = True
            words = "The window asks whether to save before it closes; Ctrl-C again closes it without saving."
            print(f"moeviz: {words}", file=sys.stderr)

    def interrupt(number: int, stack: FrameType | None) -> None:
        QTimer.singleShot(0, close)  # not amid whatever the window does

    # Python looks at signals between its own steps only, and a window at rest makes none: a socket wakes it
    woken, waking = socket.socketpair()
    woken.setblocking(False)
    waking.setblocking(False)
    notifier = QSocketNotifier(woken.fileno(), QSocketNotifier.Type.Read)
    notifier.activated.connect(lambda: woken.recv(4096))
    before = signal.set_wakeup_fd(waking.fileno(), warn_on_full_buffer=False), signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before[0])
        signal.signal(signal.SIGINT, before[1])
        notifier.setEnabled(False)
        woken.close()
        waking.close()


def _show(filled: "list[Window]", kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A defect: said in the window and on stderr. Before there is a window to say it in, it is the end."""
    details = "".join(traceback.format_exception(kind, error, trace))
    sys.stderr.write(details)
    if not filled:
        QApplication.exit(1)
        return
    filled[0].tell(f"Something in moeviz went wrong: {error or kind.__name__}", details)
