"""Painting points on the plane: the points so far, and a brush that sprays and erases them."""

import numpy as np

from moeviz.domain.points import CLASSES, FEWEST, Points
from moeviz.domain.routing import Ints
from moeviz.view.panels.axes import Array

DAB = 4  # points of one dab; a drag is many
MOST = 5_000


class Painting:
    """N points of two classes, the newest last. `radius` is the brush's, along x and y."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.xy: Points = np.zeros((0, 2), np.float32)
        self.label: Ints = np.zeros(0, np.int64)
        self._rng = np.random.default_rng()

    @property
    def lack(self) -> str:
        """What is missing to train on them, in words; empty if nothing is."""
        if len(self.xy) < FEWEST:
            return f"at least {FEWEST} are needed to train on"
        lacking = [name for c, name in enumerate(CLASSES) if not (self.label == c).any()]
        return f"paint some {lacking[0]} too: a model learns to tell two classes apart" if lacking else ""

    def spray(self, at: Array, radius: Array, label: int, within: tuple[Array, Array]) -> None:
        """Some points of a class, evenly in the brush; none beyond the two corners `within`."""
        count = min(DAB, MOST - len(self.xy))
        length, angle = np.sqrt(self._rng.random(count)), 2 * np.pi * self._rng.random(count)
        dab = at + radius * (length * np.stack([np.cos(angle), np.sin(angle)])).T
        dab = dab[((dab >= within[0]) & (dab <= within[1])).all(1)]
        self.xy = np.concatenate([self.xy, dab.astype(np.float32)])
        self.label = np.append(self.label, np.full(len(dab), label))

    def erase(self, at: Array, radius: Array) -> None:
        """All points within the brush."""
        kept = (((self.xy - at) / radius) ** 2).sum(1) > 1
        self.xy, self.label = self.xy[kept], self.label[kept]
