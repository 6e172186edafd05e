"""The experts of a layer in a column beside a plot: which colour is which number, and a place to point at one."""

from PySide6.QtCore import QPointF, QRectF
from PySide6.QtGui import QColor, QPainter

from moeviz.view.colours import expert_colour
from moeviz.view.panels.axes import EVERY
from moeviz.view.theme import Theme, put

RAIL = 58.0  # px, as much as a colour bar takes


def cells(plot: QRectF, num_experts: int) -> list[QRectF]:
    """One cell an expert, right of the plot."""
    high = plot.height() / max(num_experts, 1)
    return [QRectF(plot.right() + 8, plot.top() + e * high, RAIL - 16, high) for e in range(num_experts)]


def draw_rail(painter: QPainter, plot: QRectF, names: list[str], theme: Theme, strong: int | None) -> None:
    spots = cells(plot, len(names))
    every = next(n for n in EVERY if n * spots[0].height() >= 12)
    for e, (spot, name) in enumerate(zip(spots, names, strict=True)):
        painter.fillRect(QRectF(spot.left(), spot.top(), 8, max(spot.height() - 1, 1)), expert_colour(e, theme))
        if e == strong or (e % every == 0 and (strong is None or abs(e - strong) >= every)):
            painter.setPen(QColor(theme.text if e == strong else theme.muted))
            put(painter, spot.left() + 13, spot.center().y() + 4, name)


def hit_rail(plot: QRectF, num_experts: int, point: QPointF) -> int | None:
    return next((e for e, spot in enumerate(cells(plot, num_experts)) if spot.contains(point)), None)
