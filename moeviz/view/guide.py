"""The dock under the knobs that goes along with what a person is doing: with an experiment, or with a lesson."""

from PySide6.QtCore import Qt, Signal
from PySide6.QtGui import QCloseEvent
from PySide6.QtWidgets import QDockWidget, QLabel, QMainWindow, QPushButton, QScrollArea, QVBoxLayout, QWidget

from moeviz.view.layouts import BARS
from moeviz.view.theme import GRID

MOST = 0.45  # of the window's height: the knobs above need the rest
TITLE = 24  # px, about


class Guide(QDockWidget):
    """Shows one page at a time, below the dock of the knobs."""

    closed = Signal()

    def __init__(self, knobs: QDockWidget) -> None:
        super().__init__("Guide")
        self._knobs = knobs
        self.setObjectName("dock_guide")
        self._pages: list[QWidget] = []
        body = QWidget()
        self._lines = QVBoxLayout(body)
        self._lines.setContentsMargins(0, 0, 0, 0)
        self._area = QScrollArea()
        self._area.setWidget(body)
        self._area.setWidgetResizable(True)
        self._area.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self._area.setMaximumWidth(400)  # as wide as the knobs above it
        self.setWidget(self._area)
        self.hide()

    def add(self, page: QWidget) -> None:
        self._pages.append(page)
        self._lines.addWidget(page)
        page.hide()

    def show_page(self, title: str, page: QWidget) -> None:
        self.setWindowTitle(title)
        for other in self._pages:
            other.setVisible(other is page)
        self.show()
        self.fit()

    def closeEvent(self, event: QCloseEvent) -> None:
        super().closeEvent(event)
        self.closed.emit()

    def fit(self) -> None:
        """As high as its page needs."""
        window, page = self.parentWidget(), next((page for page in self._pages if not page.isHidden()), None)
        if isinstance(window, QMainWindow) and page is not None and not self.isHidden():
            needed = min(page.heightForWidth(self._area.viewport().width()) + TITLE, int(MOST * window.height()))
            left = max(window.height() - BARS - needed, 1)
            window.resizeDocks([self._knobs, self], [left, needed], Qt.Orientation.Vertical)


def column(page: QWidget) -> QVBoxLayout:
    """The layout of a page."""
    out = QVBoxLayout(page)
    out.setContentsMargins(GRID, GRID, GRID, GRID)
    return out


def label() -> QLabel:
    out = QLabel()
    out.setWordWrap(True)
    out.setTextFormat(Qt.TextFormat.RichText)
    out.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
    return out


def button(text: str, tip: str) -> QPushButton:
    """A click leaves the keys to the window."""
    out = QPushButton(text)
    out.setToolTip(tip)
    out.setFocusPolicy(Qt.FocusPolicy.TabFocus)
    return out
