"""Colour of experts and of numbers. Everything is made in OKLab, where equal distances look equal."""

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PySide6.QtGui import QColor

from moeviz.view.theme import Theme

Table = npt.NDArray[np.uint8]  # (256, 4) in the byte order of QImage.Format_RGB32: blue, green, red, 255
Array = npt.NDArray[np.float64]


def _hexes(text: str) -> list[str]:
    return text.split()


# Chosen one by one from an OKLCH grid of lightness 0.64 to 0.82, each as far as possible from all before it as seen
# with normal, deuteranopic and protanopic eyes (Machado 2009): the first 8 are over 0.10 apart in all three.
_ON_DARK = _hexes(
    "6dacf1 e25d1d 3fe691 0ca387 8a75f1 4ddae8 d6ab1b f672bb c65cbf 6cbd7f b8d259 e45361 d58b4b f999b7 62c7fc 6f93df "
    "739dab f19773 32b699 b699d5 b180fc 96c4cc 1acf9f c77e80 a1b1d2 f4741e f8acb5 849271 d372dd e26d5c d5b39d 7bd7cd "
    "c2c05f 87b5e9 d19e47 92db78 8d87a8 5cd5fc 8bb766 58abc7 75c8e4 9b74d9 ad899b c49ba3 c4763f c172c9 f4928c f6668d "
    "c996fc c4d018 b3c381 d7b92e e1961b 5795f0 6ea0e8 a49733 cb8f68 c8b14f f587c2 b2769c 1dbec3 e26a72 ea6a09 7ca6b5"
)
# The same hues 0.15 darker, for white paper.
_ON_LIGHT = _hexes(
    "377dc5 a13b03 03b169 05715c 6140c7 11a9b5 9f7f0f c8388f 992094 328f4e 8aa209 b40534 a65c03 cb6789 0b98cf 4165b4 "
    "437080 c3653e 03856d 896aa9 864bd1 64969f 0e9a75 9a4f53 7283a5 b3510a ca7b85 596644 a63bb1 b43628 a7846d 3ca99e "
    "949116 5586bd a17003 5dac3e 625b7d 17a5ca 5c8a2e 0d7e9b 3899b7 7043ae 815c6e 976d75 934a06 953f9d c65f5b c82560 "
    "9c64d0 959e03 84954d a48b0c a66d0c 2065c5 3d71bd 766a03 9e6035 9a8206 c75294 864870 0f8b8f b43343 a64a08 4c7989"
)


EXPERT_COLOURS = len(_ON_DARK)


@lru_cache(maxsize=512)
def expert_colour(expert: int, theme: Theme) -> QColor:
    """The colour of an expert, the same in every panel; from 64 on the colours repeat."""
    return QColor("#" + (_ON_DARK if theme.dark else _ON_LIGHT)[expert % EXPERT_COLOURS])


@lru_cache(maxsize=4096)
def mixed(colour: str, background: str, amount: float) -> QColor:
    """`colour` over `background` with opacity `amount`, as an opaque colour."""
    front, back = QColor(colour), QColor(background)
    parts = (
        round(b + (f - b) * amount)
        for f, b in zip(front.getRgb()[:3], back.getRgb()[:3], strict=True)  # type: ignore[index]
    )
    return QColor(*parts)


def readable_on(colour: QColor) -> QColor:
    """Near-black or near-white, whichever reads better on the colour."""
    return QColor(*inks_on(np.array(colour.getRgb()[:3], dtype=np.float64)).tolist())  # type: ignore[index]


def inks_on(colours: Array) -> npt.NDArray[np.int64]:
    """The same for many (…, 3), red, green and blue from 0 to 255."""
    luminance = (colours / 255) ** 2.2 @ np.array([0.2126, 0.7152, 0.0722])
    return np.where(luminance[..., None] > 0.20, (0x10, 0x14, 0x1A), (0xF2, 0xF5, 0xF9))


@lru_cache(maxsize=4)
def sequential(theme: Theme) -> Table:
    """From the panel's ground (nothing) through blue and green to yellow; on light paper from white to dark blue."""
    stops = (
        ("#1f242d", "#233d70", "#22688f", "#25948a", "#6cbd5f", "#d3d94a", "#fbf3a0")
        if theme.dark
        else ("#f3f5f7", "#cfe3ae", "#7cc69a", "#3a9fa8", "#2b73a6", "#33468c", "#2a1f52")
    )
    return _even(stops)


@lru_cache(maxsize=4)
def diverging(theme: Theme) -> Table:
    """Blue below zero, orange above it, the panel's ground at zero: both arms equally long to the eye."""
    middle = "#2a2f38" if theme.dark else "#f3f5f7"
    ends = ("#58b6ff", "#ff9a3d") if theme.dark else ("#0b5cb0", "#b04a00")
    below, above = _even((ends[0], middle)), _even((middle, ends[1]))
    return np.concatenate([below[::2], above[1::2]])


def _even(stops: tuple[str, ...]) -> Table:
    """256 colours along the stops in equal steps of OKLab distance."""
    rgb = np.array([[int(stop[i : i + 2], 16) for i in (1, 3, 5)] for stop in stops]) / 255
    lab = _to_oklab(rgb)
    fine = np.linspace(0, len(stops) - 1, 2049)
    path = np.stack([np.interp(fine, np.arange(len(stops)), lab[:, axis]) for axis in range(3)], axis=1)
    length = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1))])
    even = np.linspace(0, length[-1], 256)
    colours = _to_rgb(np.stack([np.interp(even, length, path[:, axis]) for axis in range(3)], axis=1))
    table = np.full((256, 4), 255, dtype=np.uint8)
    table[:, :3] = np.round(colours[:, ::-1] * 255)
    return table


_TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def _to_oklab(rgb: Array) -> Array:
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return np.asarray(np.cbrt(linear @ _TO_LMS.T) @ _TO_LAB.T)


def _to_rgb(lab: Array) -> Array:
    linear = np.clip((lab @ np.linalg.inv(_TO_LAB).T) ** 3 @ np.linalg.inv(_TO_LMS).T, 0, 1)
    return np.clip(np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055), 0, 1)
