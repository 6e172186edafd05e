"""What is on the screen at once: the program's window, still empty, in its colours and where it was last time.
It imports nothing but Qt, so that nothing delays it; the content moves in when it is built."""

from collections.abc import Callable

from PySide6.QtCore import QByteArray, QSettings, QSize, Signal
from PySide6.QtGui import QCloseEvent, QGuiApplication, QKeySequence, QPaintEvent, QShortcut
from PySide6.QtWidgets import QMainWindow, QWidget

from moeviz.view.theme import palette, remembered


def first_size(room: QSize) -> QSize:
    """Of the window on a screen with so much room: its title bar and borders must fit beside it."""
    return QSize(min(room.width() - 16, 1920), min(room.height() * 92 // 100, 1200))


class Frame(QMainWindow):
    painted = Signal()  # once, when the empty window is on the screen

    def __init__(self, memory: QSettings) -> None:
        super().__init__()
        self.memory = memory
        self.on_screen = False
        self._may_close: Callable[[], bool] = lambda: True
        self.setWindowTitle("moeviz")
        self.setPalette(palette(remembered(memory)))
        self.resize(first_size(QGuiApplication.primaryScreen().availableGeometry().size()))
        self._quit = QShortcut(QKeySequence("Ctrl+Q"), self, self.close)
        geometry = memory.value("geometry")
        if isinstance(geometry, QByteArray):
            self.restoreGeometry(geometry)

    def hold(self, content: QWidget, may_close: Callable[[], bool] = lambda: True) -> None:
        """Show the content instead of nothing, and be closed with it; `may_close` may ask a person who closes it."""
        self._may_close = may_close
        self._quit.deleteLater()  # the content has its own, and of two neither would act
        content.windowTitleChanged.connect(self.setWindowTitle)
        self.setWindowTitle(content.windowTitle())
        self.setCentralWidget(content)

    def paintEvent(self, event: QPaintEvent) -> None:
        super().paintEvent(event)
        if not self.on_screen:
            self.on_screen = True
            self.painted.emit()

    def closeEvent(self, event: QCloseEvent) -> None:
        self.memory.setValue("geometry", self.saveGeometry())
        content = self.centralWidget()
        asked = event.spontaneous()  # by a person; the program itself closes without a question
        event.setAccepted((not asked or self._may_close()) and (content is None or content.close()))
