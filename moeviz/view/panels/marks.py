"""What all time axes share: the steps, the marks of changed knobs, the step that is shown, and thinning to pixels."""

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PySide6.QtCore import QLineF, Qt
from PySide6.QtGui import QColor, QPainter, QPen

from moeviz.domain.routing import RoutingSnapshot
from moeviz.domain.settings import KNOBS
from moeviz.view.panels.axes import Array, Frame
from moeviz.view.theme import Theme, put, width_of

# the changes of one mark: a file's name may have a comma too
BETWEEN = re.compile(f", (?=(?:{'|'.join(re.escape(knob.title) for knob in KNOBS.values())}) )")
ROWS = 3  # labels stand in at most so many rows
ROW = 13.0


def place_labels(lefts: Sequence[float], widths: Sequence[float], right: float, rows: int = ROWS) -> list[int]:
    """The row of each label, -1 where none is free; newest labels have the first choice, for they matter most."""
    taken: list[list[tuple[float, float]]] = [[] for _ in range(rows)]
    out = [-1] * len(lefts)
    for i in sorted(range(len(lefts)), key=lambda i: -lefts[i]):
        start = min(lefts[i], right - widths[i])
        for row, spans in enumerate(taken):
            if all(start + widths[i] + 6 <= a or start >= b + 6 for a, b in spans):
                spans.append((start, start + widths[i]))
                out[i] = row
                break
    return out


def draw_marks(painter: QPainter, frame: Frame, marks: Sequence[tuple[float, str]], theme: Theme) -> None:
    """A thin line at each mark, and at the top its words where there is room, of several changes at once the first if
    all have none; beside or below, how many changes have no words."""
    at: dict[float, list[str]] = {}
    for step, label in marks:
        if frame.x0 <= step <= frame.x1:
            at.setdefault(frame.x(step), []).extend(BETWEEN.split(label))
    if not at:
        return
    seen = list(at.items())
    rect = frame.rect
    pen = QPen(QColor(theme.faint))
    pen.setDashPattern([3, 3])
    painter.setPen(pen)
    painter.drawLines([QLineF(x, rect.top(), x, rect.bottom()) for x in sorted({round(x) + 0.5 for x, _ in seen})])
    if rect.height() < 4 * ROW:  # words would cover the curves; the timeline has them too
        return
    lefts = [x + 4 for x, _ in seen]
    most = min(ROWS, int(rect.height() / 3 / ROW))

    def place(labels: list[str]) -> tuple[list[float], list[int], list[bool]]:
        """Widths, rows, and which have room."""
        widths = [width_of(label) for label in labels]
        rows = place_labels(lefts, widths, rect.right(), most)
        fit = [row >= 0 and width < rect.width() for row, width in zip(rows, widths, strict=True)]
        return widths, rows, fit

    labels = [", ".join(changes) for _, changes in seen]
    _, _, fit = place(labels)
    labels = [
        label if fits else first_in_words(changes) for label, fits, (_, changes) in zip(labels, fit, seen, strict=True)
    ]
    widths, rows, shown = place(labels)
    ground = QColor(theme.panel)
    ground.setAlpha(200)

    def write(start: float, row: int, label: str, width: float, ink: str) -> None:
        base = rect.top() + 11 + row * ROW
        painter.fillRect(int(start) - 1, int(base) - 10, int(width) + 3, 13, ground)
        painter.setPen(QColor(ink))
        put(painter, start, base, label)

    for label, left, width, row, fits in zip(labels, lefts, widths, rows, shown, strict=True):
        if fits:
            write(min(left, rect.right() - width), row, label, width, theme.text)
    unnamed = sum(len(changes) for (_, changes), fits in zip(seen, shown, strict=True) if not fits)
    if words := unnamed_in_words(unnamed, others=any(shown)):
        ends = rect.left() + 4 + width_of(words)
        starts = (
            min(left, rect.right() - width) for left, width, fits in zip(lefts, widths, shown, strict=True) if fits
        )
        beside = ends + 6 < min(starts, default=rect.right())
        if beside or most > 1:  # a second row would cover the curves of a low plot
            write(rect.left() + 4, 0 if beside else max(rows) + 1, words, width_of(words), theme.muted)


def first_in_words(changes: Sequence[str]) -> str:
    """Of several at once, as in "k 2 → 4 and 2 others"."""
    more = len(changes) - 1
    return f"{changes[0]} and {more} other{'s' if more > 1 else ''}" if more else changes[0]


def unnamed_in_words(count: int, *, others: bool) -> str:
    """Changes that have no room; their words are on the timeline. `others` have it."""
    return f"{count} {'other ' if others else ''}change{'s' if count > 1 else ''}" if count else ""


def earlier_step(snapshot: RoutingSnapshot | None, steps: npt.NDArray[np.int64]) -> int | None:
    """The step of the snapshot that the other panels show, where it is not the newest."""
    return snapshot.step if snapshot is not None and steps.size and steps[0] <= snapshot.step < steps[-1] else None


def earlier_place(snapshot: RoutingSnapshot | None, steps: npt.NDArray[np.int64]) -> int | None:
    """Of that step among the kept ones: the last that is not later."""
    step = earlier_step(snapshot, steps)
    return None if step is None else int(np.searchsorted(steps, step, side="right")) - 1


def draw_now(painter: QPainter, frame: Frame, step: float | None, theme: Theme) -> None:
    if step is not None:
        painter.setPen(QPen(QColor(theme.accent), 1, Qt.PenStyle.SolidLine))
        painter.drawLine(QLineF(frame.x(step), frame.rect.top(), frame.x(step), frame.rect.bottom()))


def step_range(steps: npt.NDArray[np.int64]) -> tuple[float, float]:
    """From the first to the last step, never empty."""
    first, last = float(steps[0]), float(steps[-1])
    return first, max(last, first + 1)


def bin_edges(steps: npt.NDArray[np.int64], bins: int) -> npt.NDArray[np.intp]:
    """Where each of at most `bins` equal spans of steps begins among the points; empty spans are left out."""
    if steps.size <= bins:
        return np.arange(steps.size)
    # spans start at round multiples, so that a growing history does not make old bins swim
    span = 2.0 ** np.ceil(np.log2((steps[-1] - steps[0] + 1) / bins))
    return np.flatnonzero(np.diff(np.floor_divide(steps, span), prepend=-1))


def binned_mean(values: Array, edges: npt.NDArray[np.intp]) -> Array:
    """Mean of each bin over what is known; works on (n,) and (n, E)."""
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        total = np.add.reduceat(np.where(known, values, 0.0), edges, axis=0)
        return np.asarray(total / np.add.reduceat(known, edges, axis=0, dtype=int))


def binned_range(values: Array, edges: npt.NDArray[np.intp]) -> tuple[Array, Array]:
    """Least and greatest known value of each bin (n,)."""
    low = np.minimum.reduceat(np.where(np.isfinite(values), values, np.inf), edges)
    high = np.maximum.reduceat(np.where(np.isfinite(values), values, -np.inf), edges)
    return np.where(np.isfinite(low), low, np.nan), np.where(np.isfinite(high), high, np.nan)
