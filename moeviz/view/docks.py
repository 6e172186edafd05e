"""The dock of a panel: its header is the title bar."""

from PySide6.QtCore import QPoint
from PySide6.QtWidgets import QDockWidget, QToolButton, QWidget

from moeviz.view.panel import Panel, make_slim

ASIDE = 48


def make_dock(title: str, widget: QWidget, name: str) -> QDockWidget:
    dock = QDockWidget(title)
    dock.setObjectName(f"dock_{name}")
    if isinstance(widget, Panel):
        dock.setTitleBarWidget(_title_bar(dock, widget))
    dock.setWidget(widget)
    dock.topLevelChanged.connect(lambda floating: _step_aside(dock) if floating else None)

    def bring(asked: bool) -> None:
        if asked:  # of several tabs the one asked for
            dock.raise_()

    dock.toggleViewAction().triggered.connect(bring)
    return dock


def _step_aside(dock: QDockWidget) -> None:
    """A dock that floats shows that it does; one that is dragged goes on to where the mouse is."""
    dock.move(dock.pos() + QPoint(ASIDE, ASIDE))


def _title_bar(dock: QDockWidget, panel: Panel) -> QWidget:
    """The panel's own header serves as the dock's: one title, and the place to drag it by."""
    layout = panel.layout()
    assert layout is not None
    layout.removeItem(panel.header)
    panel.header.setParent(None)
    bar = QWidget()
    bar.setLayout(panel.header)
    close = QToolButton()
    close.setText("✕")
    make_slim(close)
    close.setToolTip("Close this panel; it comes back from the View menu. Double-click the title to float it.")
    close.clicked.connect(dock.close)
    panel.header.addWidget(close)
    return bar
