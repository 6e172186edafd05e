"""Routing along the sequence: the load of each expert at each position, and what is dropped there."""

import numpy as np
from PySide6.QtCore import QPointF, QRectF
from PySide6.QtGui import QColor, QImage, QPainter
from PySide6.QtWidgets import QWidget

from moeviz.domain.metrics import Information, label_information
from moeviz.domain.metrics.arrays import ratio
from moeviz.domain.routing import Ints, Routing
from moeviz.view.panel import Pointed, Table
from moeviz.view.panels.axes import Array, Frame, draw_x_axis, number
from moeviz.view.panels.experts_domains import SHUFFLES, information_in_words
from moeviz.view.panels.grid import (
    Grid,
    Scale,
    around,
    draw_expert_edges,
    draw_row_names,
    draw_scale,
    grid_in,
    image_of,
)
from moeviz.view.panels.heat import BAR, draw_heat, outline
from moeviz.view.panels.sampled import Sampled
from moeviz.view.theme import Theme, put, width_of

FEWEST = 32  # assignments that each cell would get under even load
ALONE = "These tokens are read one by one, so they have no position."
MOST = 64  # stretches of the sequence
STRIP = 22.0  # px, the drops


class Positions(Sampled):
    name = "positions"

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(theme, parent)
        self._edges: Ints = np.array([0, 1])
        self._counts: Ints = np.zeros((1, 1), dtype=np.int64)  # (P, E)
        self._shares: Array = np.zeros((1, 1))
        self._drops: Array | None = None  # (P,)
        self._information: Information | None = None
        self._scale = Scale(0.0, 1.0, 0.5)
        self._image = QImage()

    def missing(self) -> str:
        return super().missing() or (ALONE if self.row_length == 1 else "")

    def measure(self, routing: Routing) -> None:
        ids, experts = routing.expert_ids_TK, routing.num_experts
        chosen = ids >= 0
        enough = int(chosen.sum()) // (FEWEST * experts)
        bins = max(1, min(MOST, self.row_length, enough))
        self._edges = np.linspace(0, self.row_length, bins + 1).round().astype(np.int64)
        bin_T = np.searchsorted(self._edges, np.arange(routing.num_tokens) % self.row_length, side="right") - 1
        tokens, slots = np.nonzero(chosen)
        cells = bin_T[tokens] * experts + ids[tokens, slots]
        self._counts = np.bincount(cells, minlength=bins * experts).reshape(bins, experts)
        self._shares = ratio(self._counts, self._counts.sum(axis=1, keepdims=True))
        self._drops = None
        if routing.dropped_TK is not None:
            lost = np.bincount(bin_T[tokens], weights=routing.dropped_TK[tokens, slots], minlength=bins)
            self._drops = ratio(lost, self._counts.sum(axis=1))
        self._information = label_information(ids, bin_T, experts, equal_weights=False, shuffles=SHUFFLES)
        self._scale = around(self._shares, 1 / experts)
        self._image = image_of(self._shares.T, self._scale, self.theme)

    def grid(self, rect: QRectF) -> Grid:
        bins, experts = self._shares.shape
        return grid_in(rect, [str(experts)], experts, bins, STRIP if self._has_strip(rect) else 0.0)

    def _has_strip(self, rect: QRectF) -> bool:
        """Drops are drawn where there are any to be had, and the map keeps most of the room."""
        return self._drops is not None and rect.height() > 5 * STRIP

    def draw(self, painter: QPainter, rect: QRectF) -> None:
        grid, theme = self.grid(rect), self.theme
        draw_heat(painter, grid.rect, self._image)
        draw_scale(painter, grid.rect, self._scale, theme, "load q")
        draw_expert_edges(painter, grid, theme, columns=False)
        draw_row_names(painter, grid, self.experts(), theme, "expert")
        draw_x_axis(painter, Frame(grid.rect, 0, self.row_length, 0, 1), theme, "position in its sequence")
        if self._drops is not None and self._has_strip(rect):
            self._draw_drops(painter, grid, self._drops)
        expert, column = self.expert_at(grid.rows), self.pointed.get("column")
        if expert is not None:
            outline(painter, grid.row(expert).adjusted(0, 0, -1, -1), theme)
            if column is not None and column < grid.columns:
                outline(painter, grid.cell(expert, column).adjusted(1, 1, -2, -2), theme)

    def _draw_drops(self, painter: QPainter, grid: Grid, drops: Array) -> None:
        """Bars above the map: what share of the choices made here was dropped."""
        base, top = grid.rect.top() - 4, float(np.nanmax(drops, initial=0.0))
        for i, share in enumerate(drops.tolist()):
            if share > 0:
                high = max(1.0, (STRIP - 8) * share / top)
                left = grid.rect.left() + i * grid.wide
                painter.fillRect(QRectF(left, base - high, max(grid.wide - 1, 1), high), QColor(self.theme.warn))
        painter.setPen(QColor(self.theme.muted))
        words = f"drops ≤ {number(100 * top)} %" if top else "no drops"
        if width_of(words) + 8 < BAR:
            put(painter, grid.rect.right() + 6, base, words)
        else:
            put(painter, grid.rect.right() + 6, base, f"≤ {number(100 * top)} %")

    def footer(self) -> str:
        expert, column = self.pointed.get("expert"), self.pointed.get("column")
        bins, experts = self._shares.shape
        if expert is not None and column is not None and expert < experts and column < bins:
            first = (
                f"positions {self.span(column)} × expert {self.experts()[expert]}: "
                f"q {number(float(self._shares[column, expert]))}, "
                f"{self._counts[column, expert]} of {int(self._counts[column].sum())} choices"
            )
            if self._drops is not None:
                first += f", {number(100 * float(self._drops[column]))} % of all dropped"
        else:
            first = f"load share q, even at 1/E = {number(1 / experts)}  {self.whose()} in rows of {self.row_length}"
        assert self._information is not None
        return "  ".join([first, *(f"position: {words}" for words in information_in_words(self._information))])

    def span(self, column: int) -> str:
        first, last = int(self._edges[column]), int(self._edges[column + 1]) - 1
        return f"{first}" if first == last else f"{first} to {last}"

    def hit(self, point: QPointF, rect: QRectF) -> Pointed:
        at = self.grid(rect).at(point)
        return {} if at is None else {"expert": at[0], "column": at[1]}

    def table(self) -> Table:
        head = ["layer", "first_position", "last_position", "choices"]
        if self.missing():
            return head, []
        self.refresh()
        head += [f"expert_{e}" for e in range(self._shares.shape[1])]
        rows: list[list[int | float | str]] = [
            [self.layer, int(a), int(b) - 1, int(counts.sum()), *("" if q != q else q for q in shares)]
            for a, b, counts, shares in zip(
                self._edges[:-1], self._edges[1:], self._counts, self._shares.tolist(), strict=True
            )
        ]
        if self._drops is not None:
            head.append("drop_rate")
            for row, rate in zip(rows, self._drops.tolist(), strict=True):
                row.append("" if rate != rate else rate)
        return head, rows
