"""The bar of a panel that has more rows than room: how much of them is seen, and where."""

from PySide6.QtCore import QRectF
from PySide6.QtGui import QColor, QPainter

from moeviz.view.theme import Theme

ROOM = 6.0  # px, kept free at the right


def draw_scroll_bar(painter: QPainter, rect: QRectF, full: float, shift: float, theme: Theme) -> None:
    """At the right edge of `rect`, which shows `full` pixels of height from `shift` on; none where all has room."""
    if full > rect.height():
        part = rect.height() / full
        bar = QRectF(rect.right() - 3, rect.top() + shift * part, 3, rect.height() * part)
        painter.fillRect(bar, QColor(theme.faint))
