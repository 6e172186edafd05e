"""Heat maps: numbers to a small RGB32 picture that is blown up, and the bar that says what a colour means."""

import numpy as np
import numpy.typing as npt
from PySide6.QtCore import QLineF, QRectF
from PySide6.QtGui import QColor, QImage, QPainter

from moeviz.view.colours import Table
from moeviz.view.panels.axes import VECTOR, Frame, number
from moeviz.view.theme import Theme, fitted, put

BAR = 58.0  # room for the colour bar at the right


def heat_image(values: npt.NDArray[np.floating], low: float, high: float, table: Table, empty: str) -> QImage:
    """One pixel a value; NaN in the colour `empty`."""
    scaled = (np.asarray(values, dtype=np.float32) - np.float32(low)) * np.float32(255.999 / max(high - low, 1e-12))
    known = np.isfinite(scaled)
    at = np.clip(np.where(known, scaled, 0), 0, 255).astype(np.uint8)
    pixels = np.ascontiguousarray(table[at])
    if not known.all():
        ground = QColor(empty)
        pixels[~known] = (ground.blue(), ground.green(), ground.red(), 255)
    rows, columns = values.shape
    # copy(): the picture must outlive the array
    return QImage(pixels.data, columns, rows, columns * 4, QImage.Format.Format_RGB32).copy()


def draw_heat(painter: QPainter, rect: QRectF, image: QImage) -> None:
    """Crisp cells. Viewers of SVG and PDF blur a picture that they enlarge, so those get it enlarged already."""
    device = painter.device()
    if not isinstance(device, QImage) and painter.paintEngine().type() in VECTOR:
        wide = max(1, round(3 * rect.width() / image.width())) * image.width()
        high = max(1, round(3 * rect.height() / image.height())) * image.height()
        image = image.scaled(wide, high)
    painter.drawImage(rect, image)


def draw_colour_bar(
    painter: QPainter,
    rect: QRectF,
    table: Table,
    low: float,
    high: float,
    theme: Theme,
    title: str,
    mark: float | None = None,
) -> None:
    """A bar right of `rect` with its numbers; `mark` is a value with a meaning, such as an even share."""
    bar = draw_colours(painter, rect, table, theme, title)
    frame = Frame(bar, 0, 1, low, high)
    ticks = (low, (low + high) / 2, high) if rect.height() > 48 else (low, high)
    painter.setPen(QColor(theme.muted))
    for tick in ticks:
        y = min(max(frame.y(tick) + 4, rect.top() + 8), rect.bottom())
        put(painter, bar.right() + 5, y, number(tick))
    if mark is not None and low <= mark <= high:
        painter.setPen(QColor(theme.text))
        painter.drawLine(QLineF(bar.left() - 3, frame.y(mark), bar.right() + 3, frame.y(mark)))


def draw_colours(painter: QPainter, rect: QRectF, table: Table, theme: Theme, title: str) -> QRectF:
    """The bare bar right of `rect`, and under it what its colours mean; returns where it lies."""
    bar = QRectF(rect.right() + 8, rect.top(), 8, rect.height())
    draw_heat(painter, bar, QImage(np.ascontiguousarray(table[::-1]).data, 1, 256, 4, QImage.Format.Format_RGB32))
    painter.setPen(QColor(theme.muted))
    put(painter, bar.left(), rect.bottom() + 28, fitted(title, BAR - 8))
    return bar


def outline(painter: QPainter, cell: QRectF, theme: Theme) -> None:
    """A frame that is seen on any colour: light within dark."""
    painter.setBrush(QColor(0, 0, 0, 0))
    painter.setPen(QColor(theme.panel))
    painter.drawRect(cell.adjusted(-1, -1, 1, 1))
    painter.setPen(QColor(theme.text))
    painter.drawRect(cell)
