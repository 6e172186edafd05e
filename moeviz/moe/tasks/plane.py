"""The plane task: points of two classes, in five classic patterns made here with noise, or the user's own. A point is a
token by itself.

The patterns lie side by side, so that a model can give regions to experts; data.path may name one of them alone, or a
CSV file of points (domain/points.py).
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import floor, log10

import numpy as np
import numpy.typing as npt

from moeviz.domain.messages import UserError
from moeviz.domain.points import CLASSES, Points, read
from moeviz.domain.routing import Bools, Ints
from moeviz.moe.batches import BLOCK_TOKENS, batch_numbers
from moeviz.moe.tasks.data import Probe, Rows, Vocabulary

Pattern = Callable[[np.random.Generator, int], tuple[npt.NDArray[np.float64], Ints]]

TRAIN, HELD_OUT = 20_000, 4_000  # points
OWN_HELD_OUT = 0.2  # of the user's own points
OWN_SHOWN = 5_000  # of them, on the plane
NO_POINTS = np.zeros((0, 2), np.float32), np.zeros(0, np.int64)
NOISE = 0.05  # standard deviation, in a pattern's half width
SHOWN, SHOWN_CHARS = 256, 4096  # points of the probe's sample, and the most characters of a probe
PLACES = {
    "moons": (-1, 0.5),
    "spirals": (0, 0.5),
    "rings": (1, 0.5),
    "blobs": (-0.5, -0.5),
    "checkerboard": (0.5, -0.5),
}
SIZE = 0.45  # half width of a pattern among others
FRAME = ((-1.6, -1.1), (1.6, 1.1))  # two corners of where the patterns lie


def moons(rng: np.random.Generator, count: int) -> tuple[npt.NDArray[np.float64], Ints]:
    """Two half circles that reach into each other."""
    label, angle = rng.integers(2, size=count), np.pi * rng.random(count)
    x = np.where(label == 0, np.cos(angle) - 0.5, 0.5 - np.cos(angle))
    y = np.where(label == 0, np.sin(angle) - 0.25, 0.25 - np.sin(angle))
    return np.stack([x / 1.5, y / 1.5], 1), label


def spirals(rng: np.random.Generator, count: int) -> tuple[npt.NDArray[np.float64], Ints]:
    """Two arms of one and a half turns."""
    label, radius = rng.integers(2, size=count), np.sqrt(rng.uniform(0.01, 1, count))
    angle = 3 * np.pi * radius + np.pi * label
    return radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1), label


def rings(rng: np.random.Generator, count: int) -> tuple[npt.NDArray[np.float64], Ints]:
    """Four rings about one centre, the classes in turn."""
    ring, angle = rng.integers(4, size=count), 2 * np.pi * rng.random(count)
    return ((ring + 1) / 4)[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1), ring % 2


def blobs(rng: np.random.Generator, count: int) -> tuple[npt.NDArray[np.float64], Ints]:
    """Six heaps on a circle, the classes in turn."""
    heap = rng.integers(6, size=count)
    angle = np.pi / 3 * heap
    return 0.75 * np.stack([np.cos(angle), np.sin(angle)], 1) + 0.1 * rng.standard_normal((count, 2)), heap % 2


def checkerboard(rng: np.random.Generator, count: int) -> tuple[npt.NDArray[np.float64], Ints]:
    """Four by four squares."""
    xy = rng.uniform(-1, 1, (count, 2))
    return xy, np.floor(2 * (xy + 1)).astype(np.int64).sum(1) % 2


PATTERNS: dict[str, Pattern] = {f.__name__: f for f in (moons, spirals, rings, blobs, checkerboard)}


def points(seed: int, count: int, pattern: str = "") -> tuple[Points, Ints]:
    """xy (count, 2), about within ±1.5 and ±1, and class (count,), from the pattern or from all side by side."""
    rng = np.random.default_rng([seed, len(pattern)])
    if pattern:
        xy, label = PATTERNS[pattern](rng, count)
        return (xy + NOISE * rng.standard_normal(xy.shape)).astype(np.float32), label
    shares = np.diff(np.linspace(0, count, len(PATTERNS) + 1).astype(int))
    made = [PATTERNS[name](rng, share) for name, share in zip(PLACES, shares, strict=True)]
    xy = np.concatenate([SIZE * xy + np.array(PLACES[name]) for name, (xy, _) in zip(PLACES, made, strict=True)])
    label = np.concatenate([label for _, label in made])
    order = rng.permutation(count)
    noisy = xy + SIZE * NOISE * rng.standard_normal(xy.shape)
    return noisy.astype(np.float32)[order], label[order]


Labelled = tuple[Points, Ints]


def split(xy: Points, label: Ints) -> tuple[Labelled, Labelled]:
    """Points to train on and points held out, each shuffled, the same at every call. Points at one place go together,
    so that none is in both."""
    places, place_N = np.unique(xy, axis=0, return_inverse=True)
    order = np.random.default_rng(0).permutation(len(xy))
    drawn = np.random.default_rng(1).permutation(len(places))[: max(1, round(OWN_HELD_OUT * len(places)))]
    held_N = np.isin(place_N.reshape(-1), drawn)[order]
    xy, label = xy[order], label[order]
    return (xy[~held_N], label[~held_N]), (xy[held_N], label[held_N])


@dataclass(frozen=True, eq=False)
class PlaneData:
    """Points as the data of a task (tasks/data.py): those of the pattern, of all patterns, or the user's own."""

    pattern: str
    own: tuple[Labelled, Labelled] | None = None
    vocabulary: Vocabulary = CLASSES
    notes: tuple[str, ...] = ()
    padded: bool = False
    measures: tuple[str, ...] = ("accuracy",)

    @cached_property
    def _train(self) -> Labelled:
        return self.own[0] if self.own else points(1, TRAIN, self.pattern)

    @cached_property
    def _heldout(self) -> Labelled:
        return self.own[1] if self.own else points(2, HELD_OUT, self.pattern)

    @cached_property
    def own_sample(self) -> tuple[Points, Bools]:
        """Of the user's own points at most OWN_SHOWN, of both parts, and which are of the second class; else none."""
        parts = self.own or ()
        xy, label = (np.concatenate([empty, *(part[i] for part in parts)]) for i, empty in enumerate(NO_POINTS))
        drawn = np.random.default_rng(0).permutation(len(label))[:OWN_SHOWN]
        return xy[drawn], label[drawn] == 1

    @cached_property
    def _digits(self) -> int:
        """After the point, so that two of a hundred places across the plane are told apart."""
        span = float(np.ptp(self._heldout[0], axis=0).max()) if self.own else 2.0
        return min(max(2 - floor(log10(max(span, 1e-6) / 2)), 0), 7)

    def _texts(self, xy: Points, label: Ints) -> list[str]:
        """As a probe shows points."""
        digits = self._digits
        return [
            _text(f"{x:.{digits}f}", f"{y:.{digits}f}", CLASSES[c])
            for (x, y), c in zip(xy.tolist(), label, strict=True)
        ]

    @property
    def probe(self) -> str:
        """A sample of held-out points, with their classes."""
        xy, label = self._heldout
        texts = self._texts(xy[:SHOWN], label[:SHOWN])
        while sum(map(len, texts)) > SHOWN_CHARS:
            texts.pop()
        return "".join(texts)

    @property
    def frame(self) -> npt.NDArray[np.float64]:
        """Two corners (2, 2) of the part of the plane to look at: that of the patterns, or where the points lie."""
        xy = np.concatenate([part[0] for part in self.own or (self._heldout,)]).astype(np.float64)
        low, high = np.array(FRAME)
        if ((xy >= low) & (xy <= high)).all():
            return np.array(FRAME)
        margin = np.maximum(0.05 * np.ptp(xy, axis=0), 1e-3)
        return np.array([xy.min(0) - margin, xy.max(0) + margin])

    def with_vocabulary(self, vocabulary: Vocabulary) -> "PlaneData":
        if vocabulary != self.vocabulary:
            raise UserError("The model tells other classes apart, so it is no model of the task plane.")
        return self

    def lay_out(self, text: str, context: int) -> Probe:
        """Points as they are shown, "(0.5, -0.25) ●", or one a line, as in "0.5 -0.25"; the class where it is known."""
        lines = text.replace("(", "\n").replace(")", " ").split("\n")
        words = [[word.rstrip(",") for word in line.split()] for line in lines if line.strip()]
        try:
            xy = np.array([[float(word) for word in line[:2]] for line in words], np.float32)
        except ValueError:
            xy = np.empty(0, np.float32)
        if xy.ndim != 2 or xy.shape[1] != 2 or not np.isfinite(xy).all():
            raise UserError("The probe is no list of points; write two numbers for each, as in (0.5, -0.25).")
        classes = tuple(" ".join(line[2:]) for line in words)
        texts = tuple(_text(line[0], line[1], name) for line, name in zip(words, classes, strict=True))
        return Probe(texts, xy[None], classes if all(classes) else None)

    def batches(self, context: int, seed: int) -> "PointBatches":
        return PointBatches(*self._train, context, seed)

    def heldout_rows(self, context: int, rows: int | None) -> Rows:
        xy, label = self._heldout
        length = min(context, len(label))  # points do not see each other, so a row may be shorter
        count = min(len(label) // length, len(label) if rows is None else rows)
        whole = count * length
        return Rows(xy[:whole].reshape(count, length, 2), label[:whole].reshape(count, length))

    def sample(self, context: int, rows: int) -> tuple[Probe | None, str]:
        inputs, targets = self.heldout_rows(context, rows)
        label = targets.reshape(-1)
        tokens = self._texts(inputs.reshape(-1, 2), label)
        return Probe(tuple(tokens), inputs, tuple(CLASSES[c] for c in label)), ""

    def frequencies(self) -> Ints:
        counts: Ints = np.bincount(self._train[1], minlength=len(CLASSES))
        return counts

    def score(self, rows: Rows, ranks: Ints) -> dict[str, float]:
        """accuracy: share of points whose class is the model's first choice."""
        return {"accuracy": float((ranks == 0).mean())}

    def baseline(self, context: int) -> dict[str, float]:
        rows = self.heldout_rows(context, None)
        return self.score(rows, (rows.targets != self.frequencies().argmax()).astype(np.int64))


def _text(x: str, y: str, name: str) -> str:
    """A point as a token; texts of several, one after the other, can be told apart."""
    return f"({x}, {y}) {name}".rstrip()


class PointBatches:
    """Points drawn uniformly."""

    def __init__(self, xy: Points, label: Ints, context: int, seed: int) -> None:
        self._xy, self._label, self._context, self._seed = xy, label, context, seed
        self._block_key: tuple[int, int] | None = None

    def draw(self, step: int, batch: int) -> Rows:
        steps = max(1, BLOCK_TOKENS // (batch * self._context))
        block, place = divmod(step, steps)
        if self._block_key != (block, batch):
            rng = batch_numbers(self._seed, batch, block)
            self._block = rng.integers(len(self._label), size=(steps * batch, self._context))
            self._block_key = (block, batch)
        drawn = self._block[place * batch : (place + 1) * batch]
        return Rows(self._xy[drawn], self._label[drawn])


def load(path: str = "") -> PlaneData:
    """All patterns, the one that `path` names, or the points of that file. UserError if there is none."""
    if path and path not in PATTERNS:
        if not os.path.isfile(os.path.expanduser(path)):  # Path's raise errors for some names
            raise UserError(
                f"There is no pattern and no file {path[:200]!r}; leave data.path empty, or give one of "
                f"{', '.join(PATTERNS)} or a CSV file of x, y and class."
            )
        return PlaneData("", split(*read(path)))
    return PlaneData(path)
