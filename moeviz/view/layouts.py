"""Named layouts: which panels lie where. Each is remembered as it was left, and what a guide brings to the front goes
back behind when it is closed."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

from PySide6.QtCore import QByteArray, QSettings, Qt, Signal
from PySide6.QtGui import QAction
from PySide6.QtWidgets import QDockWidget, QHBoxLayout, QMainWindow, QToolButton, QWidget

from moeviz.view.theme import GRID


@dataclass(frozen=True, slots=True)
class Cell:
    """Panels on one place, as tabs; the first is on top. `share` of the row's width."""

    share: int
    tabs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """`share` of the height, but no more than `highest` pixels."""

    share: int
    cells: tuple[Cell, ...]
    highest: int = 10_000


@dataclass(frozen=True, slots=True)
class Layout:
    """Panels that no row names come, when asked for, as a tab on the place of `rest`."""

    purpose: str
    rest: str
    rows: tuple[Row, ...]

    def names(self) -> list[str]:
        return [name for row in self.rows for cell in row.cells for name in cell.tabs]


_TOKENS = Row(3, (Cell(1, ("tokens",)),), highest=192)  # some eight lines of text
_LEARNED = Row(
    9,
    (Cell(1, ("experts_domains", "positions")), Cell(1, ("experts_tokens",)), Cell(1, ("co_activation", "similarity"))),
)
LAYOUTS = {
    "Learn": Layout(
        "what a router does with a token",
        "tokens_experts",
        (
            _TOKENS,
            Row(8, (Cell(11, ("tokens_experts",)), Cell(9, ("gate_weights", "anatomy")))),
            Row(8, (Cell(1, ("load",)), Cell(1, ("losses",)))),
        ),
    ),
    "Train": Layout(
        "a run as it goes on",
        "tokens_experts",
        (
            _TOKENS,
            Row(
                8,
                (Cell(13, ("tokens_experts",)), Cell(9, ("gate_weights", "anatomy")), Cell(7, ("layers_experts",))),
            ),
            Row(8, (Cell(1, ("load",)), Cell(1, ("losses", "saturation", "moe_dense")), Cell(1, ("load_over_time",)))),
        ),
    ),
    "Inspect": Layout(
        "what each expert has learned",
        "tokens_experts",
        (
            Row(
                11, (Cell(12, ("flow", "input_map", "tokens_experts", "tokens")), Cell(10, ("anatomy", "gate_weights")))
            ),
            _LEARNED,
        ),
    ),
    "Compare": Layout(
        "two moments, models or texts side by side",
        "saturation",
        (
            _TOKENS,
            Row(10, (Cell(14, ("compare",)), Cell(8, ("tokens_experts", "gate_weights")))),
            Row(6, (Cell(1, ("losses", "moe_dense")), Cell(1, ("saturation",)), Cell(1, ("load_over_time",)))),
        ),
    ),
}
# what a task has in other places: on the plane the map comes first, and its points take the place of a text
_MAP = ("input_map", "tokens_experts", "tokens")
ROWS_OF_TASK = {
    "plane": {
        "Learn": (
            Row(12, (Cell(13, _MAP), Cell(9, ("gate_weights", "anatomy")))),
            Row(7, (Cell(1, ("load",)), Cell(1, ("losses",)))),
        ),
        "Train": (
            Row(12, (Cell(13, _MAP), Cell(10, ("layers_experts", "gate_weights", "anatomy")))),
            Row(8, (Cell(1, ("load",)), Cell(1, ("losses", "saturation", "moe_dense")), Cell(1, ("load_over_time",)))),
        ),
        "Inspect": (
            Row(
                11, (Cell(13, ("input_map", "flow", "tokens_experts", "tokens")), Cell(10, ("anatomy", "gate_weights")))
            ),
            _LEARNED,
        ),
    }
}


def layout_of(name: str, task: str) -> Layout:
    """A named layout as a task has it."""
    layout = LAYOUTS[name]
    return replace(layout, rows=ROWS_OF_TASK.get(task, {}).get(name, layout.rows))


FIRST = "Learn"
VERSION = 8  # of what is remembered: panels that came since are not in it
LEFT, RIGHT = Qt.DockWidgetArea.LeftDockWidgetArea, Qt.DockWidgetArea.RightDockWidgetArea
ACROSS, DOWN = Qt.Orientation.Horizontal, Qt.Orientation.Vertical
KNOBS_WIDTH = 320
BARS = 144  # what menu, bar, timeline and status take of the height, about


class Layouts(QWidget):
    """The layouts of one window, and their buttons for the corner of its menu bar. `guide` lies under the knobs."""

    changed = Signal()

    def __init__(
        self, window: QMainWindow, docks: Mapping[str, QDockWidget], guide: QDockWidget, memory: QSettings, task: str
    ) -> None:
        super().__init__()
        self._window, self._docks, self._guide, self._memory, self.task = window, docks, guide, memory, task
        # brought to the front: a panel, whether it was hidden, and what it covers
        self._brought: list[tuple[QDockWidget, bool, QDockWidget | None]] = []
        name = str(memory.value("layout name", FIRST))
        self.name = name if name in LAYOUTS else FIRST
        self.fresh = False  # nothing was remembered: until the window has its size, the docks follow it
        self._line = QHBoxLayout(self)
        self._line.setContentsMargins(0, 2, GRID, 0)
        self._line.setSpacing(2)

    def add_buttons(self, actions: list[QAction]) -> None:
        for action in actions:
            button = QToolButton()
            button.setDefaultAction(action)
            self._line.addWidget(button)

    def choose(self, name: str) -> None:
        """Show another layout, as it was left."""
        self.save()
        self.name = name
        self.restore()
        self.changed.emit()

    def take_task(self, task: str) -> None:
        """Show the layout as the task has it."""
        if self._key(task) != self._key(self.task):
            self.save()
            self.task = task
            self.restore()
            self.changed.emit()
        self.task = task

    def _key(self, task: str) -> str:
        """Under which it is remembered."""
        own = self.name in ROWS_OF_TASK.get(task, {})
        return f"layouts/{self.name} of {task}" if own else f"layouts/{self.name}"

    def bring(self, name: str) -> None:
        """Show a panel and in front, until `give_back`."""
        dock = self._docks[name]
        hidden = dock.isHidden()
        if dock.visibleRegion().isEmpty():
            dock.show()  # only then it has others on its place
            beside = self._window.tabifiedDockWidgets(dock)
            covered = next((other for other in beside if not other.visibleRegion().isEmpty()), None)
            self._brought.append((dock, hidden, covered))
        dock.raise_()

    def give_back(self) -> None:
        """The layout as it was before panels were brought; what a person has changed stays."""
        for dock, hidden, covered in reversed(self._brought):
            if hidden:
                dock.hide()
            if covered is not None and not covered.isHidden():
                covered.raise_()
        self._brought.clear()

    def restore(self) -> None:
        guide = self._guide.isHidden()
        self._place()
        state = self._memory.value(self._key(self.task))
        self.fresh = not (isinstance(state, QByteArray) and self._window.restoreState(state, VERSION))
        self._guide.setHidden(guide)  # it belongs to what is going on, not to a layout

    def save(self) -> None:
        self.give_back()
        self._memory.setValue("layout name", self.name)
        self._memory.setValue(self._key(self.task), self._window.saveState(VERSION))

    def reset(self) -> None:
        """All panels in their first places."""
        self._place()
        self.changed.emit()

    def _place(self) -> None:
        window, docks, layout = self._window, self._docks, layout_of(self.name, self.task)
        self._brought.clear()
        shown = {"controls", *layout.names()}
        for dock in docks.values():  # else what is still on its old place would make the window higher
            dock.setFloating(False)
            window.removeDockWidget(dock)
        window.addDockWidget(LEFT, docks["controls"])
        heads = [[docks[cell.tabs[0]] for cell in row.cells] for row in layout.rows]
        window.addDockWidget(RIGHT, heads[0][0])
        for above, row in pairwise(heads):
            window.splitDockWidget(above[0], row[0], DOWN)
        for row in heads:
            for beside, dock in pairwise(row):
                window.splitDockWidget(beside, dock, ACROSS)
        for cell in (cell for row in layout.rows for cell in row.cells):
            for name in cell.tabs[1:]:
                window.tabifyDockWidget(docks[cell.tabs[0]], docks[name])
        for name in docks.keys() - shown:
            window.tabifyDockWidget(docks[layout.rest], docks[name])
        window.splitDockWidget(docks["controls"], self._guide, DOWN)
        for name, dock in docks.items():
            dock.setVisible(name in shown)
        for row in heads:
            for dock in row:
                dock.raise_()
        self._share_out(layout, heads)

    def _share_out(self, layout: Layout, heads: list[list[QDockWidget]]) -> None:
        window, controls = self._window, self._docks["controls"]
        knobs = max(KNOBS_WIDTH, controls.minimumSizeHint().width())
        wide, high = window.width() - knobs, window.height() - BARS
        window.resizeDocks([controls, heads[0][0]], [knobs, wide], ACROSS)
        shares = [row.share for row in layout.rows]
        heights = [min(high * row.share // sum(shares), row.highest) for row in layout.rows]
        heights[-1] += high - sum(heights)
        window.resizeDocks([row[0] for row in heads], [max(height, 1) for height in heights], DOWN)
        for row, docks in zip(layout.rows, heads, strict=True):
            total = sum(cell.share for cell in row.cells)
            window.resizeDocks(docks, [max(wide * cell.share // total, 1) for cell in row.cells], ACROSS)
