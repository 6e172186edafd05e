"""All panels, and the arrangement of the first ones in one widget for pictures of one moment."""

from collections.abc import Callable

from PySide6.QtGui import QColor
from PySide6.QtWidgets import QGridLayout, QWidget

from moeviz.domain.history import History
from moeviz.domain.routing import RoutingSnapshot
from moeviz.domain.selection import Selection
from moeviz.domain.survey import SurveyResult
from moeviz.view.panel import Panel, Table
from moeviz.view.panels.anatomy import Anatomy
from moeviz.view.panels.compare import Compare
from moeviz.view.panels.experts_domains import ExpertsDomains
from moeviz.view.panels.experts_tokens import ExpertsTokens
from moeviz.view.panels.flow import Flow
from moeviz.view.panels.gate_weights import GateWeights
from moeviz.view.panels.input_map import InputMap
from moeviz.view.panels.layers_experts import LayersExperts
from moeviz.view.panels.load import Load
from moeviz.view.panels.load_over_time import LoadOverTime
from moeviz.view.panels.losses import Losses
from moeviz.view.panels.moe_dense import MoeDense
from moeviz.view.panels.pairs import CoActivation, SimilarityOfExperts
from moeviz.view.panels.positions import Positions
from moeviz.view.panels.saturation import Saturation
from moeviz.view.panels.tokens import TokenStrip
from moeviz.view.panels.tokens_experts import TokensExperts
from moeviz.view.theme import GRID, Theme, palette

PANELS: dict[str, Callable[[Theme], Panel]] = {
    panel.name: panel
    for panel in (
        TokenStrip,
        TokensExperts,
        GateWeights,
        Load,
        LoadOverTime,
        Losses,
        LayersExperts,
        ExpertsDomains,
        ExpertsTokens,
        CoActivation,
        SimilarityOfExperts,
        Flow,
        Anatomy,
        Saturation,
        Positions,
        MoeDense,
        Compare,
        InputMap,
    )
}
# row, column, rows, columns on a grid of six columns
PLACES = {
    "tokens": (0, 0, 1, 6),
    "tokens_experts": (1, 0, 1, 4),
    "gate_weights": (1, 4, 1, 2),
    "load": (2, 0, 1, 2),
    "load_over_time": (2, 2, 1, 4),
    "layers_experts": (3, 0, 1, 2),
    "losses": (3, 2, 1, 4),
}
HEIGHTS = (3, 7, 7, 6)


def make_panels(theme: Theme) -> dict[str, Panel]:
    """One of each panel, by the name of its plot."""
    return {name: make(theme) for name, make in PANELS.items()}


class Dashboard(QWidget):
    """The panels that a first look needs, in one widget."""

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.theme = theme
        self.panels = {name: PANELS[name](theme) for name in PLACES}
        self.setAutoFillBackground(True)
        grid = QGridLayout(self)
        grid.setContentsMargins(GRID // 2, GRID // 2, GRID // 2, GRID // 2)
        grid.setSpacing(GRID // 2)
        for name, place in PLACES.items():
            grid.addWidget(self.panels[name], *place)
        for row, height in enumerate(HEIGHTS):
            grid.setRowStretch(row, height)
        for column in range(6):
            grid.setColumnStretch(column, 1)
        self.apply_theme(theme)

    def show_snapshot(self, snapshot: RoutingSnapshot | None) -> None:
        for panel in self.panels.values():
            panel.show_snapshot(snapshot)

    def show_history(self, history: History | None) -> None:
        for panel in self.panels.values():
            panel.show_history(history)

    def show_survey(self, survey: SurveyResult | None) -> None:
        for panel in self.panels.values():
            panel.show_survey(survey)

    def show_selection(self, selection: Selection) -> None:
        for panel in self.panels.values():
            panel.show_selection(selection)

    def apply_theme(self, theme: Theme) -> None:
        self.theme = theme
        colours = palette(theme)
        colours.setColor(colours.ColorRole.Window, QColor(theme.window))
        self.setPalette(colours)
        for panel in self.panels.values():
            panel.apply_theme(theme)

    def table(self) -> Table:
        return merged_table(list(self.panels.values()))


def merged_table(panels: list[Panel]) -> Table:
    """The numbers of several panels in one long table: plot, row, column, value."""
    rows: list[list[int | float | str]] = []
    for panel in panels:
        head, body = panel.table()
        rows += [
            [panel.name, i, column, value]
            for i, row in enumerate(body)
            for column, value in zip(head, row, strict=True)
        ]
    return ["plot", "row", "column", "value"], rows
