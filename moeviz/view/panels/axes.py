"""Numbers and axes, painted with as few calls as possible. Ranges are always given, never found out while painting."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, floor, inf, log10
from typing import Any

import numpy as np
import numpy.typing as npt
from PySide6.QtCore import QLineF, QPointF, QRectF
from PySide6.QtGui import QColor, QPaintEngine, QPainter, QPen, QPolygonF
from shiboken6 import VoidPtr

from moeviz.view.theme import Theme, fitted, put, width_of

Array = npt.NDArray[np.float64]
Key = tuple[str, str, bool]  # a curve's name, its colour, and whether it has dots
LEFT, RIGHT, TOP, BOTTOM = 52.0, 12.0, 6.0, 32.0  # room for ticks and labels of the axes


def number(value: float) -> str:
    """At most three significant digits, without an exponent where one can do without."""
    size = abs(value)
    if value != value:
        return "–"
    if size >= 999_500:
        return f"{value / 1e6:.3g}M".replace("-", "−")
    if size >= 9_995:
        return f"{value / 1e3:.3g}k".replace("-", "−")
    if size >= 99.95:
        return f"{float(f'{value:.3g}'):.0f}".replace("-", "−")
    return f"{value:.3g}".replace("-", "−")


def signed(value: float) -> str:
    return f"+{number(value)}" if value > 0 else number(value)


def share(value: float) -> str:
    """A share or weight in [0, 1]; of fixed width, so that words below a plot do not jump."""
    return "–" if value != value else f"{value:.2f}"


def nice_ceiling(value: float) -> float:
    """The smallest round number not below the value; few of them, so that an axis seldom jumps."""
    if not 0 < value < inf:
        return 1.0
    power = 10.0 ** floor(log10(value))
    return next(m * power for m in (1, 1.5, 2, 3, 4, 6, 8, 10) if m * power >= value * (1 - 1e-9))


def steady_top(now: float, wanted: float) -> float:
    """The end of an axis from 0: it grows at once and shrinks only where much of it would be empty, so that it does not
    go to and fro with values that lie at the edge of a round number."""
    return wanted if wanted > now or wanted < 0.6 * now else now


class SteadyTop:
    """steady_top() over one thing at a time, such as a layer and its number of experts: of another it begins anew."""

    def __init__(self) -> None:
        self._top = 0.0
        self._of: Hashable = None

    def move(self, of: Hashable, wanted: float) -> float:
        self._top, self._of = steady_top(self._top if of == self._of else 0.0, wanted), of
        return self._top


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers within [low, high]."""
    if not high > low:
        return [low]
    rough = (high - low) / max(count, 1)
    power = 10.0 ** floor(log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * (1 - 1e-9))
    first, last = ceil(low / step - 1e-9), floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """With as many digits as tell evenly spaced ticks apart: 4025 stays 4025, where `number` makes it 4020."""
    size = max(map(abs, ticks), default=0.0)
    if len(ticks) < 2 or size < 1e-3:
        return [number(tick) for tick in ticks]
    unit, sign = (1e6, "M") if size >= 999_500 else (1e3, "k") if size >= 9_995 else (1.0, "")
    step = (ticks[1] - ticks[0]) / unit
    digits = next((d for d in range(9) if abs(round(step, d) - step) < 1e-6 * step), 9)
    texts = [f"{tick / unit:.{digits}f}" for tick in ticks]
    texts = [text.rstrip("0").rstrip(".") if "." in text else text for text in texts]
    return ["0" if text in ("0", "-0") else text.replace("-", "−") + sign for text in texts]


def log_ticks(low: float, high: float) -> list[float]:
    decades = range(floor(log10(low)), ceil(log10(high)) + 1)
    return [m * 10.0**d for d in decades for m in (1, 2, 5) if low * 0.999 <= m * 10.0**d <= high * 1.001]


@dataclass(frozen=True, slots=True)
class Frame:
    """The inner rectangle of a plot, and how data lie in it."""

    rect: QRectF
    x0: float
    x1: float
    y0: float
    y1: float
    log_y: bool = False

    def x(self, value: float) -> float:
        return self.rect.left() + (value - self.x0) / (self.x1 - self.x0) * self.rect.width()

    def y(self, value: float) -> float:
        if self.log_y:
            part = log10(max(value, 1e-300) / self.y0) / log10(self.y1 / self.y0)
        else:
            part = (value - self.y0) / (self.y1 - self.y0)
        return self.rect.bottom() - part * self.rect.height()

    def points(self, xs: Array, ys: Array) -> list[QPolygonF]:
        """Polylines in pixels, cut where y is NaN."""
        if not xs.size:
            return []
        px = self.rect.left() + (xs - self.x0) * (self.rect.width() / (self.x1 - self.x0))
        if self.log_y:
            with np.errstate(divide="ignore", invalid="ignore"):
                part = np.log10(ys / self.y0) / log10(self.y1 / self.y0)
        else:
            part = (ys - self.y0) / (self.y1 - self.y0)
        py = self.rect.bottom() - part * self.rect.height()
        both = np.empty((px.size, 2))  # np.stack takes longer than all the rest
        both[:, 0], both[:, 1] = px, py
        good = np.isfinite(py)
        if good.all():
            return [_polygon(both)]
        edges = np.flatnonzero(np.diff(np.concatenate([[False], good, [False]]).astype(np.int8)))
        return [_polygon(both[i:j]) for i, j in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)]


def _polygon(points: Array) -> QPolygonF:
    """Copied as one block: a QPointF made in Python for each point would cost more than drawing them."""
    out = QPolygonF()
    out.resize(len(points))
    memory: Any = VoidPtr(out.data(), points.size * 8, True)  # type: ignore[call-arg, arg-type]
    np.frombuffer(memory, dtype=np.float64)[:] = points.ravel()
    return out


def draw_curve(
    painter: QPainter, lines: Sequence[QPolygonF], colour: QColor, strong: bool = False, dashes: Sequence[float] = ()
) -> None:
    """A smooth thin curve. A pen wider than one pixel of the device costs fifty times as much as one that is not,
    so a strong curve, and any on a screen of high density, is drawn several times beside itself instead.
    """
    density = max(1, round(painter.device().devicePixelRatio())) if painter.paintEngine().type() not in VECTOR else 1
    painter.setRenderHint(QPainter.RenderHint.Antialiasing)
    pen = QPen(colour, 0 if density > 1 else 1)
    if dashes:
        pen.setDashPattern(dashes)
    painter.setPen(pen)
    for line in lines:
        if line.size() == 1:
            painter.drawPoint(line.at(0))
            continue
        for i in range(density * (2 if strong else 1)):
            painter.drawPolyline(line.translated(0, 0.6 * i / density) if i else line)
    painter.setRenderHint(QPainter.RenderHint.Antialiasing, False)


VECTOR = (QPaintEngine.Type.SVG, QPaintEngine.Type.Pdf)


def inside(rect: QRectF, left: float = LEFT, right: float = RIGHT, top: float = TOP, bottom: float = BOTTOM) -> QRectF:
    """The plot's own rectangle once its axes have had their room."""
    return QRectF(rect.left() + left, rect.top() + top, rect.width() - left - right, rect.height() - top - bottom)


def draw_y_axis(painter: QPainter, frame: Frame, theme: Theme, label: str) -> None:
    rect = frame.rect
    ticks = log_ticks(frame.y0, frame.y1) if frame.log_y else []
    if len(ticks) < 3:  # less than a decade, or not by decades
        ticks, texts = _linear_ticks(frame)
    else:
        if len(ticks) > rect.height() / 18:
            ticks = [t for t in ticks if abs(log10(t) - round(log10(t))) < 1e-6]
        texts = list(map(number, ticks))
    painter.setPen(QColor(theme.grid))
    painter.drawLines([QLineF(rect.left(), frame.y(t), rect.right(), frame.y(t)) for t in ticks])
    painter.setPen(QColor(theme.muted))
    for tick, text in zip(ticks, texts, strict=True):
        put(painter, rect.left() - 5 - width_of(text), frame.y(tick) + 4, text)
    draw_upright(painter, rect, theme, label, rect.left() - LEFT + 9)


def _linear_ticks(frame: Frame) -> tuple[list[float], list[str]]:
    """Fewer where their numbers would run into the label of the axis."""
    found = _ticks(frame.y0, frame.y1, int(frame.rect.height() / 36), 3)
    if max(map(width_of, found[1]), default=0.0) > LEFT - 20:
        fewer = _ticks(frame.y0, frame.y1, 2, 3)
        if max(map(width_of, fewer[1]), default=0.0) < max(map(width_of, found[1])):
            return fewer
    return found


@lru_cache(maxsize=256)  # axes seldom change, and are drawn at each step
def _ticks(low: float, high: float, count: int, least: int, whole: bool = False) -> tuple[list[float], list[str]]:
    """About `count` with their labels; more where the range has fewer than `least` round numbers at that distance.
    `whole`: whole numbers only."""
    counts = (max(count, 2), 3, 4, 5, 6, 8, 10)
    ticks = next(t for n in counts if len(t := nice_ticks(low, high, n)) >= least or n == counts[-1])
    if whole:
        ticks = [tick for tick in ticks if tick == round(tick)]
    return ticks, tick_labels(ticks)


def draw_upright(painter: QPainter, rect: QRectF, theme: Theme, label: str, base: float) -> None:
    """The label of a y axis with its base line at x = `base`, read from below; shortened where the plot is low."""
    if not label:
        return
    text = fitted(label, rect.height() + TOP + BOTTOM)
    width = width_of(text)
    painter.save()
    painter.setPen(QColor(theme.muted))
    middle = min(max(rect.center().y() + width / 2, rect.top() - TOP + width), rect.bottom() + BOTTOM)
    painter.translate(base, middle)
    painter.rotate(-90)
    painter.drawText(QPointF(0, 0), text)
    painter.restore()


def draw_x_axis(painter: QPainter, frame: Frame, theme: Theme, label: str, key: Sequence[Key] = ()) -> None:
    """Ticks, and under them the label; beside it the key, where there are several curves."""
    rect = frame.rect
    # there is nothing between two steps
    ticks, texts = _ticks(frame.x0, frame.x1, int(rect.width() / 64), 2, whole=label == "step")
    painter.setPen(QColor(theme.line))
    painter.drawLine(QLineF(rect.left(), rect.bottom(), rect.right(), rect.bottom()))
    painter.drawLines([QLineF(frame.x(t), rect.bottom(), frame.x(t), rect.bottom() + 3) for t in ticks])
    painter.setPen(QColor(theme.muted))
    for tick, text in zip(ticks, texts, strict=True):
        put(painter, frame.x(tick) - width_of(text) / 2, rect.bottom() + 14, text)
    if key:
        _draw_key(painter, rect, theme, label, key)
    else:
        draw_x_label(painter, rect, label, theme)


def _draw_key(painter: QPainter, rect: QRectF, theme: Theme, label: str, key: Sequence[Key]) -> None:
    """Which curve is which, on the line of the label, where no curve can run through it."""
    x, base = rect.left(), rect.bottom() + 28
    for name, colour, dots in key:
        text = fitted(name, rect.right() - x - 18)
        painter.setPen(QPen(QColor(colour), 2))
        painter.drawLine(QLineF(x, base - 4, x + 14, base - 4))
        if dots:
            painter.fillRect(QRectF(x + 5, base - 6, 5, 5), QColor(colour))
        painter.setPen(QColor(theme.muted))
        put(painter, x + 18, base, text)
        x += 18 + width_of(text) + 12
    if x + width_of(label) <= rect.right():
        put(painter, rect.right() - width_of(label), base, label)


def draw_x_label(painter: QPainter, rect: QRectF, label: str, theme: Theme) -> None:
    text = fitted(label, rect.width())
    painter.setPen(QColor(theme.muted))
    left = rect.center().x() - width_of(text) / 2
    put(painter, left, rect.bottom() + 28, text)


def draw_column_labels(
    painter: QPainter, rect: QRectF, labels: Sequence[str], theme: Theme, label: str, strong: int | None = None
) -> None:
    """Labels under equally wide columns, every n-th where they would touch; `strong` is always shown."""
    step = rect.width() / max(len(labels), 1)
    widest = max(map(width_of, labels), default=0.0)
    every = next(n for n in EVERY if n * step >= widest + 5)
    painter.setPen(QColor(theme.muted))

    def left(i: int) -> float:
        return rect.left() + (i + 0.5) * step - width_of(labels[i]) / 2

    for i in range(0, len(labels), every):
        if (
            strong is None
            or i == strong
            or abs(i - strong) * step > (width_of(labels[i]) + width_of(labels[strong])) / 2 + 4
        ):
            put(painter, left(i), rect.bottom() + 14, labels[i])
    if strong is not None and strong < len(labels):
        painter.setPen(QColor(theme.text))
        put(painter, left(strong), rect.bottom() + 14, labels[strong])
    draw_x_label(painter, rect, label, theme)


def draw_row_labels(painter: QPainter, rect: QRectF, labels: Sequence[str], theme: Theme, label: str) -> None:
    """Labels left of equally high rows, every n-th where they would touch."""
    step = rect.height() / max(len(labels), 1)
    every = next(n for n in EVERY if n * step >= 12)
    painter.setPen(QColor(theme.muted))
    for i in range(0, len(labels), every):
        text = labels[i]
        put(painter, rect.left() - 8 - width_of(text), rect.top() + (i + 0.5) * step + 4, text)
    draw_upright(painter, rect, theme, label, rect.left() - LEFT + 9)


EVERY = [m * 10**d for d in range(8) for m in (1, 2, 5)]
