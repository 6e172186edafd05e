"""A grid of labelled cells: where they lie, their colours around a value with a meaning, and their numbers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PySide6.QtCore import QLineF, QPointF, QRectF
from PySide6.QtGui import QColor, QImage, QPainter

from moeviz.view.colours import Table, diverging, expert_colour, sequential
from moeviz.view.panels.axes import BOTTOM, EVERY, TOP, draw_upright, number, share
from moeviz.view.panels.heat import BAR, draw_colours, heat_image
from moeviz.view.theme import SMALL, Theme, fitted, put, sans, width_of

Values = npt.NDArray[np.floating]
NAMES = 96.0  # px, at most, for the names of rows
LABEL = 14.0  # px, for what the rows are
ROW = 12  # px, that a name needs
TINY = 9  # px, the smallest face that can be read


@dataclass(frozen=True, slots=True)
class Scale:
    """Colours from `low` to `high`. With `middle` they part there: each side has all of its own colour."""

    low: float
    high: float
    middle: float | None = None

    def place(self, values: Values) -> Values:
        """Where each value lies among the colours, 0 to 1; NaN stays."""
        if self.middle is None:
            return np.asarray((values - self.low) / max(self.high - self.low, 1e-12))
        below = (values - self.low) / max(self.middle - self.low, 1e-12) / 2
        above = 0.5 + (values - self.middle) / max(self.high - self.middle, 1e-12) / 2
        return np.where(values < self.middle, below, above)

    def table(self, theme: Theme) -> Table:
        return sequential(theme) if self.middle is None else diverging(theme)

    @property
    def ticks(self) -> tuple[float, ...]:
        return (self.low, self.high) if self.middle is None else (self.low, self.middle, self.high)


@dataclass(frozen=True, slots=True)
class Grid:
    """Rows and columns of equal size within a rectangle."""

    rect: QRectF
    rows: int
    columns: int

    @property
    def high(self) -> float:
        return self.rect.height() / self.rows

    @property
    def wide(self) -> float:
        return self.rect.width() / self.columns

    def cell(self, row: int, column: int) -> QRectF:
        left, top = self.rect.left() + column * self.wide, self.rect.top() + row * self.high
        return QRectF(left, top, self.wide, self.high)

    def row(self, row: int) -> QRectF:
        return QRectF(self.rect.left(), self.rect.top() + row * self.high, self.rect.width(), self.high)

    def at(self, point: QPointF) -> tuple[int, int] | None:
        if not self.rect.contains(point):
            return None
        row = int((point.y() - self.rect.top()) / self.high)
        column = int((point.x() - self.rect.left()) / self.wide)
        return min(row, self.rows - 1), min(column, self.columns - 1)


def grid_in(rect: QRectF, names: Sequence[str], rows: int, columns: int, above: float = 0.0) -> Grid:
    """The grid within a plot, once names, axis and colour bar have had their room, and `above` what stands over it."""
    left, top = rect.left() + name_room(names), rect.top() + TOP + above
    return Grid(
        QRectF(left, top, max(rect.right() - BAR - left, 1.0), max(rect.bottom() - BOTTOM - top, 1.0)), rows, columns
    )


def image_of(values: Values, scale: Scale, theme: Theme) -> QImage:
    return heat_image(scale.place(values), 0.0, 1.0, scale.table(theme), theme.panel)


def draw_numbers(
    painter: QPainter, grid: Grid, values: Values, scale: Scale, theme: Theme, show: Callable[[float], str] = share
) -> None:
    """Each value in its cell, where the widest fits."""
    if grid.wide < width_of("0.00") + 6 or grid.high < 14:
        return
    table = scale.table(theme)
    places = np.clip(np.nan_to_num(scale.place(values)) * 255.999, 0, 255).astype(int)
    light = table[places].astype(int) @ [11, 59, 30, 0] > 12_000
    texts = [[show(value) for value in row] for row in values.tolist()]
    if max((width_of(text) for row in texts for text in row), default=0.0) + 4 > grid.wide:
        return
    for ink, which in (("#10141a", light), ("#f2f5f9", ~light)):
        painter.setPen(QColor(ink))
        for row, column in zip(*np.nonzero(which & np.isfinite(values)), strict=True):
            text = texts[row][column]
            middle = grid.rect.left() + (column + 0.5) * grid.wide
            put(painter, middle - width_of(text) / 2, grid.rect.top() + (row + 0.5) * grid.high + 4, text)


def draw_scale(
    painter: QPainter, rect: QRectF, scale: Scale, theme: Theme, title: str, show: Callable[[float], str] = number
) -> None:
    """The bar right of `rect` that says what a colour means."""
    bar = draw_colours(painter, rect, scale.table(theme), theme, title)
    painter.setPen(QColor(theme.muted))
    places = scale.place(np.array(scale.ticks)).tolist()
    for tick, part in zip(scale.ticks, places, strict=True):
        y = rect.bottom() - part * rect.height()
        put(painter, bar.right() + 5, min(max(y + 4, rect.top() + 8), rect.bottom()), show(tick))
    if scale.middle is not None:
        y = rect.center().y()
        painter.setPen(QColor(theme.text))
        painter.drawLine(QLineF(bar.left() - 3, y, bar.right() + 3, y))


def name_room(names: Sequence[str]) -> float:
    """Room left of a grid for the label of its rows and their names."""
    return LABEL + min(max(map(width_of, names), default=0.0), NAMES) + 14


def draw_row_names(painter: QPainter, grid: Grid, names: Sequence[str], theme: Theme, label: str) -> None:
    """In a smaller face where the rows are low, every n-th where they are lower still."""
    every = rows_named(grid)
    small = every == 1 and grid.high < ROW
    draw_upright(painter, grid.rect, theme, label, grid.rect.left() - name_room(names) + 9)
    painter.setPen(QColor(theme.muted))
    if small:
        painter.setFont(sans(TINY))
    for i in range(0, grid.rows, every):
        text, middle = fitted(names[i], NAMES), grid.rect.top() + (i + 0.5) * grid.high
        if small:
            width = painter.fontMetrics().horizontalAdvance(text)
            painter.drawText(QPointF(grid.rect.left() - 9 - width, middle + 3), text)
        else:
            put(painter, grid.rect.left() - 9 - width_of(text), middle + 4, text)
    painter.setFont(sans(SMALL))


def rows_named(grid: Grid) -> int:
    """Every how many rows there is room for a name."""
    return 1 if grid.high >= TINY else next(n for n in EVERY if n * grid.high >= ROW)


def draw_expert_edges(painter: QPainter, grid: Grid, theme: Theme, *, rows: bool = True, columns: bool = True) -> None:
    """The colour that each expert has everywhere, beside its row and above its column."""
    for e in range(grid.rows if rows else 0):
        top = grid.rect.top() + e * grid.high
        painter.fillRect(QRectF(grid.rect.left() - 5, top, 3, grid.high), expert_colour(e, theme))
    for e in range(grid.columns if columns else 0):
        left = grid.rect.left() + e * grid.wide
        painter.fillRect(QRectF(left, grid.rect.bottom() + 1, grid.wide, 3), expert_colour(e, theme))


def around(values: Values, middle: float) -> Scale:
    """From 0 to the highest value, parted at the middle; never narrower than twice the middle."""
    top = float(np.nanmax(values, initial=0.0))
    return Scale(0.0, min(1.0, max(2 * middle, top)) if middle < 1 else 1.0, middle)
