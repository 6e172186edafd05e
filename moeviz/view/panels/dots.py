"""Many points in few calls: dots in groups of one colour, and the points of two classes, told apart by being hollow."""

import numpy as np
import numpy.typing as npt
from PySide6.QtCore import QLineF, QPointF, QRectF, Qt
from PySide6.QtGui import QColor, QPainter, QPen

from moeviz.domain.routing import Bools, Ints, Routing
from moeviz.view.panels.axes import Array, Frame
from moeviz.view.panels.words import kept
from moeviz.view.theme import Theme, put, width_of

STRETCHED = 1.5  # times, at most, one axis against the other in a place of another shape
NEAR = 10.0  # px, within which the mouse points at a dot


def best(routing: Routing) -> tuple[Ints, Array]:
    """The best expert of each token that was carried out (T,), -1 where there is none, and its gate weight, NaN where
    unknown."""
    ids_TK, kept_TK = routing.expert_ids_TK, kept(routing)
    if not ids_TK.shape[1]:
        return np.full(len(ids_TK), -1), np.zeros(len(ids_TK))
    place_T1 = kept_TK.argmax(1)[:, None]  # experts come best first
    some_T = kept_TK.any(1)
    first_T: Ints = np.where(some_T, np.take_along_axis(ids_TK, place_T1, 1)[:, 0], -1)
    if routing.gate_weights_TK is None:
        return first_T, np.where(some_T, np.nan, 0.0)
    return first_T, np.where(some_T, np.take_along_axis(routing.gate_weights_TK, place_T1, 1)[:, 0], 0.0)


def pixels(frame: Frame, xy_T2: npt.NDArray[np.floating]) -> Array:
    """Where points lie on the canvas (T, 2)."""
    rect = frame.rect
    scale = np.array([rect.width() / (frame.x1 - frame.x0), -rect.height() / (frame.y1 - frame.y0)])
    return np.asarray((xy_T2 - [frame.x0, frame.y0]) * scale + [rect.left(), rect.bottom()])


def nearest(frame: Frame, xy_T2: npt.NDArray[np.floating], point: QPointF) -> tuple[int, float] | None:
    """The point that the mouse is at, and its distance in pixels; None if none is near."""
    if not len(xy_T2):
        return None
    away_T = np.hypot(*(pixels(frame, xy_T2) - [point.x(), point.y()]).T)
    at = int(away_T.argmin())
    return (at, float(away_T[at])) if away_T[at] <= NEAR else None


def dot_size(frame: Frame) -> float:
    """Smaller in a small plot, where they would cover each other."""
    return min(max(frame.rect.width() / 70, 5.0), 7.5)


def draw_dots(painter: QPainter, frame: Frame, xy_T2: npt.NDArray[np.floating], colour: QColor, size: float) -> None:
    if len(xy_T2):
        xy = np.asarray(xy_T2, dtype=np.float64)
        painter.setPen(QPen(colour, size, Qt.PenStyle.SolidLine, Qt.PenCapStyle.RoundCap))
        for polygon in frame.points(xy[:, 0], xy[:, 1]):
            painter.drawPoints(polygon)


def draw_classes(
    painter: QPainter,
    frame: Frame,
    xy_T2: npt.NDArray[np.floating],
    second_T: Bools | None,
    theme: Theme,
    scale: float = 1.0,
) -> None:
    """Rings for the first class, full dots for the second, small dots where it is unknown; seen on any colour."""
    painter.setRenderHint(QPainter.RenderHint.Antialiasing)
    ink, ground = QColor(theme.text), QColor(theme.panel)
    if second_T is None:
        draw_dots(painter, frame, xy_T2, ground, 5)
        draw_dots(painter, frame, xy_T2, ink, 3)
    else:
        size = scale * dot_size(frame)
        draw_dots(painter, frame, xy_T2, ground, size + 2 * scale)
        draw_dots(painter, frame, xy_T2, ink, size)
        draw_dots(painter, frame, xy_T2[~second_T], ground, 0.65 * size)
    painter.setRenderHint(QPainter.RenderHint.Antialiasing, False)


def draw_crosses(painter: QPainter, frame: Frame, xy_T2: npt.NDArray[np.floating], theme: Theme) -> None:
    """Over what is wrong."""
    arm = 0.6 * dot_size(frame)
    lines = [
        QLineF(x - arm, y - arm * way, x + arm, y + arm * way)
        for x, y in pixels(frame, xy_T2).tolist()
        for way in (1, -1)
    ]
    painter.setRenderHint(QPainter.RenderHint.Antialiasing)
    for colour, width in ((theme.panel, 3.5), (theme.warn, 1.75)):
        painter.setPen(QPen(QColor(colour), width))
        painter.drawLines(lines)
    painter.setRenderHint(QPainter.RenderHint.Antialiasing, False)


def draw_ring(painter: QPainter, at: QPointF, radius: float, theme: Theme) -> None:
    """Around what is selected: light within dark, seen on any colour."""
    painter.setRenderHint(QPainter.RenderHint.Antialiasing)
    painter.setBrush(Qt.BrushStyle.NoBrush)
    for colour, width in ((theme.panel, 5.0), (theme.accent, 2.0)):
        painter.setPen(QPen(QColor(colour), width))
        painter.drawEllipse(at, radius, radius)
    painter.setRenderHint(QPainter.RenderHint.Antialiasing, False)


def draw_names(painter: QPainter, places: list[tuple[float, float, str]], within: QRectF, theme: Theme) -> None:
    """Labels in small plates with their middle at a place in pixels, the first ones first; none covers another."""
    ground, taken = QColor(theme.panel), list[QRectF]()
    ground.setAlpha(200)
    for x, y, name in places:
        wide = width_of(name)
        left = min(max(x - wide / 2, within.left() + 3), within.right() - wide - 3)
        plate = QRectF(left - 3, y - 7, wide + 6, 14)
        if any(plate.intersects(other) for other in taken):
            continue
        taken.append(plate)
        painter.fillRect(plate, ground)
        painter.setPen(QColor(theme.text))
        put(painter, left, y + 4, name)
