"""The docks of the panels, and how they lie at first."""

from collections.abc import Mapping

from PySide6.QtCore import QPoint, Qt
from PySide6.QtWidgets import QDockWidget, QMainWindow, QToolButton, QWidget

from moeviz.view.panel import Panel

BEHIND = {  # docks that are hidden at first, and on whose place they come as a tab
    "experts_domains": "tokens_experts",
    "experts_tokens": "tokens_experts",
    "flow": "tokens_experts",
    "anatomy": "gate_weights",
    "co_activation": "layers_experts",
    "similarity": "layers_experts",
    "saturation": "losses",
    "positions": "load",
}
LEFT, RIGHT = Qt.DockWidgetArea.LeftDockWidgetArea, Qt.DockWidgetArea.RightDockWidgetArea
KNOBS_WIDTH = 320
ASIDE = 48
BARS = 144  # what menu, bar, timeline and status take of the height, about
ACROSS, DOWN = Qt.Orientation.Horizontal, Qt.Orientation.Vertical


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
    close.setToolTip("Close this panel; it comes back from the View menu. Double-click the title to float it.")
    close.clicked.connect(dock.close)
    panel.header.addWidget(close)
    return bar


def lay_out(window: QMainWindow, d: Mapping[str, QDockWidget]) -> None:
    """All docks in their first places; those of BEHIND wait for the View menu."""
    for name, dock in d.items():
        dock.setFloating(False)
        dock.setVisible(name not in BEHIND)
    window.addDockWidget(LEFT, d["controls"])
    window.addDockWidget(RIGHT, d["tokens"])
    window.splitDockWidget(d["tokens"], d["tokens_experts"], DOWN)
    window.splitDockWidget(d["tokens_experts"], d["load"], DOWN)
    window.splitDockWidget(d["tokens_experts"], d["gate_weights"], ACROSS)
    window.splitDockWidget(d["gate_weights"], d["layers_experts"], ACROSS)
    window.splitDockWidget(d["load"], d["losses"], ACROSS)
    window.splitDockWidget(d["losses"], d["load_over_time"], ACROSS)
    knobs = max(KNOBS_WIDTH, d["controls"].minimumSizeHint().width())
    wide, high = window.width() - knobs, window.height() - BARS
    window.resizeDocks([d["controls"], d["tokens"]], [knobs, wide], ACROSS)
    for names, shares, room, way in (
        (("tokens", "tokens_experts", "load"), (4, 8, 8), high, DOWN),
        (("tokens_experts", "gate_weights", "layers_experts"), (14, 8, 7), wide, ACROSS),
        (("load", "losses", "load_over_time"), (9, 9, 9), wide, ACROSS),
    ):
        window.resizeDocks([d[name] for name in names], [max(room * n // sum(shares), 1) for n in shares], way)
    for name, place in BEHIND.items():
        window.tabifyDockWidget(d[place], d[name])
        d[name].hide()
