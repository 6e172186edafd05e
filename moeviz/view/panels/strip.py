"""The token strip as one picture: its letters are painted once, and a step only looks up the colour of each pixel.

A table has a row for each token, from the colour of its cell to that of its letters; a map of the strip says which
entry each pixel wears. That takes a fifth of the time of a rectangle and a text for each token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import floor

import numpy as np
import numpy.typing as npt
from PySide6.QtCore import QPointF, QRectF
from PySide6.QtGui import QColor, QFont, QImage, QPainter

from moeviz.view.colours import EXPERT_COLOURS, expert_colour, inks_on
from moeviz.view.theme import Theme, shaped

STRENGTHS = 32  # more than an eye can tell
COVERS = 32  # how far a letter covers a pixel
LEAST = 0.14  # a token of weight 0 still wears its expert's colour
Map = npt.NDArray[np.intp]
Colours = npt.NDArray[np.uint32]  # as QImage.Format_RGB32 has them


@dataclass(frozen=True, slots=True)
class Strip:
    """The visible part of the strip: which entry of the table each pixel (H, W) wears, and the picture made of it."""

    of: object  # what it was laid out for
    map_HW: Map
    pixels_HW: Colours
    image: QImage  # of these very pixels

    def wear(self, colours_TC: Colours, theme: Theme) -> QImage:
        """The picture in the colours that token_colours() found."""
        table = np.append(colours_TC, np.uint32(QColor(theme.panel).rgb()))
        np.take(table, self.map_HW, out=self.pixels_HW, mode="clip")
        return self.image


def lay_strip(
    of: object,
    size: tuple[int, int],
    density: float,
    font: QFont,
    cells: Sequence[QRectF],
    texts: Sequence[str],
    first: int,
) -> Strip:
    """Map a strip of `size` (width, height) with the cells of the tokens from number `first` on. `density`: pixels of
    the screen in one of the window."""
    wide, high = round(size[0] * density), round(size[1] * density)
    letters = QImage(wide, high, QImage.Format.Format_Grayscale8)
    letters.setDevicePixelRatio(density)
    letters.fill(0)
    painter = QPainter(letters)
    painter.setFont(font)
    painter.setPen(QColor("white"))
    for cell, text in zip(cells, texts, strict=True):
        painter.drawStaticText(QPointF(cell.left() + 1, cell.top() + 1), shaped(text, font))
    painter.end()
    rows = np.frombuffer(letters.constBits(), np.uint8).reshape(high, letters.bytesPerLine())
    cover_HW = rows[:, :wide].astype(np.intp) * COVERS // 256
    map_HW = np.full((high, wide), np.iinfo(np.int32).max, dtype=np.intp)  # clipped to the table's end: the ground
    for token, cell in enumerate(cells, first):
        left, right, top, bottom = (
            max(floor(edge * density + 0.5 + 1e-6), 0)  # as the painter rounds, halves up
            for edge in (cell.left(), cell.right(), cell.top(), cell.bottom())
        )
        map_HW[top:bottom, left:right] = token * COVERS + cover_HW[top:bottom, left:right]
    pixels_HW = np.zeros((high, wide), dtype=np.uint32)
    image = QImage(pixels_HW.data, wide, high, 4 * wide, QImage.Format.Format_RGB32)
    image.setDevicePixelRatio(density)
    return Strip(of, map_HW, pixels_HW, image)


def token_colours(first_T: Sequence[int], strength_T: Sequence[float], theme: Theme) -> Colours:
    """From the colour of each token's cell to that of its letters (T, COVERS). `first_T` is its expert, -1 for none: it
    has the panel's own colour. `strength_T` is from 0 to 1."""
    expert = np.asarray(first_T, dtype=np.intp)
    row = np.where(expert < 0, EXPERT_COLOURS, expert % EXPERT_COLOURS)
    strength = np.rint(np.asarray(strength_T) * STRENGTHS).astype(np.intp)
    return np.asarray(_palette(theme)[row, strength])


@lru_cache(maxsize=2)
def _palette(theme: Theme) -> Colours:
    """Of each expert (the last: of none), strength and cover."""
    ground, muted = _rgb(QColor(theme.panel)), _rgb(QColor(theme.muted))
    experts = np.stack([_rgb(expert_colour(e, theme)) for e in range(EXPERT_COLOURS)])
    amount = LEAST + (1 - LEAST) * np.arange(STRENGTHS + 1)[:, None] / STRENGTHS
    fill = np.rint(ground + (experts[:, None] - ground) * amount)
    ink = inks_on(fill)
    none = (1, STRENGTHS + 1, 3)
    fill = np.concatenate([fill, np.broadcast_to(ground, none)])[:, :, None]
    ink = np.concatenate([ink, np.broadcast_to(muted, none)])[:, :, None]
    mix = np.rint(fill + (ink - fill) * np.linspace(0, 1, COVERS)[:, None]).astype(np.uint32)
    return np.asarray(0xFF000000 | mix[..., 0] << 16 | mix[..., 1] << 8 | mix[..., 2], dtype=np.uint32)


def _rgb(colour: QColor) -> npt.NDArray[np.float64]:
    return np.array([colour.red(), colour.green(), colour.blue()], dtype=np.float64)
