"""Load share of every expert of the selected layer over the training steps."""

from collections.abc import Hashable
from itertools import pairwise

import numpy as np
from PySide6.QtCore import QLineF, QPointF, QRectF
from PySide6.QtGui import QColor, QPainter, QPen
from PySide6.QtWidgets import QWidget

from moeviz.domain.routing import RoutingSnapshot
from moeviz.view.colours import expert_colour, mixed
from moeviz.view.panel import NARROW, Panel, Pointed, Table
from moeviz.view.panels.axes import Array, Frame, draw_curve, draw_x_axis, draw_y_axis, inside, nice_ceiling, number
from moeviz.view.panels.marks import bin_edges, binned_mean, draw_marks, draw_now, earlier_step, step_range
from moeviz.view.panels.words import first_null, label, signs_in_words
from moeviz.view.theme import Theme, put

PIXELS_A_POINT = 4
GAP = 12.0  # px between two numbers
ENDS = 34.0  # room for the experts' numbers at the ends of their curves
NO_HISTORY = "No history of training batches yet: it grows while a model trains."


class LoadOverTime(Panel):
    name = "load_over_time"
    uses = frozenset({"history", "layer", "expert"})
    calm = True
    footer_lines = 2

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(theme, parent)
        self._steps = np.zeros(0, dtype=np.int64)
        self._shares: Array = np.zeros((0, 0))
        self._row = 0
        self._read: object = None
        self._bins: tuple[object, Array, Array, int] | None = None  # the last: steps from a point to the next
        self._top = 1.0

    def missing(self) -> str:
        self._read_history()
        return "" if self._shares.size else NO_HISTORY

    def show_snapshot(self, snapshot: RoutingSnapshot | None) -> None:
        before = earlier_step(self.snapshot, self._steps), self.layer, self.snapshot is None
        super().show_snapshot(snapshot)
        if before != (earlier_step(self.snapshot, self._steps), self.layer, self.snapshot is None):
            self.invalidate()

    def lines_of_words(self, width: float) -> int:
        routing = self.routing()
        return self.footer_lines + bool(width < NARROW and routing is not None and signs_in_words(routing))

    def subtitle(self) -> str:
        return f"layer {self._row}, training batches"

    def _read_history(self) -> None:
        self._row = self.layer if self.snapshot else self.selection.layer
        key = (self.history, self._revision, self._row)
        if key == self._read:
            return
        self._read, self._bins = key, None
        if self.history is None:
            self._steps, self._shares = np.zeros(0, dtype=np.int64), np.zeros((0, 0))
        else:
            self._steps, self._shares = self.history.steps, self.history.load_share(self._row).astype(float)

    def binned(self, width: float) -> tuple[Array, Array]:
        """Steps (n,) and mean shares (n, E), no denser than the pixels."""
        bins = max(8, int(width / PIXELS_A_POINT))
        if self._bins is None or self._bins[0] != bins:
            edges = bin_edges(self._steps, bins)
            at, means = binned_mean(self._steps.astype(float), edges), binned_mean(self._shares, edges)
            apart = max(1, round(float(np.median(np.diff(at))))) if at.size > 1 else 1
            self._bins = bins, at, means, apart
            even = 1 / max(self._shares.shape[1], 1)
            self._top = min(1.0, max(2 * even, nice_ceiling(float(np.nanmax(means, initial=0.0)))))
        return self._bins[1], self._bins[2]

    def frame(self, rect: QRectF) -> Frame:
        inner = inside(rect, right=ENDS)
        self.binned(inner.width())
        return Frame(inner, *step_range(self._steps), 0, self._top)

    def ground(self) -> Hashable:
        return id(self.history), self._revision, self._row, self.picked("expert", self._shares.shape[1]), self._null()

    def draw_ground(self, painter: QPainter, rect: QRectF) -> None:
        """The curves too: only the step that is shown moves on them."""
        frame, theme = self.frame(rect), self.theme
        xs, means = self.binned(frame.rect.width())
        draw_y_axis(painter, frame, theme, "load share q")
        draw_x_axis(painter, frame, theme, "step")
        size = means.shape[1]
        pen = QPen(QColor(theme.muted))
        pen.setDashPattern([4, 3])
        painter.setPen(pen)
        painter.drawLines(
            [QLineF(frame.x(a), frame.y(even), frame.x(b), frame.y(even)) for a, b, even in uniform_lines(xs, means)]
        )
        strong = self.picked("expert", self._shares.shape[1])
        order = [e for e in range(size) if e != strong] + ([strong] if strong is not None else [])
        for e in order:
            colour = expert_colour(e, theme)
            if strong is not None and e != strong:
                colour = mixed(colour.name(), theme.panel, 0.3)
            draw_curve(painter, frame.points(xs, means[:, e]), colour, strong=e == strong)
        assert self.history is not None
        draw_marks(painter, frame, self.history.marks, theme)
        self._label_ends(painter, frame, means, strong)

    def draw(self, painter: QPainter, rect: QRectF) -> None:
        draw_now(painter, self.frame(rect), earlier_step(self.snapshot, self._steps), self.theme)

    def _label_ends(self, painter: QPainter, frame: Frame, means: Array, strong: int | None) -> None:
        """The experts' numbers at the right, from the highest down, as many as there is room for, and how many more
        there are."""
        last = means[-1]
        known = [e for e in np.argsort(-np.nan_to_num(last, nan=-1.0)).tolist() if np.isfinite(last[e])]
        if strong in known:
            known.remove(strong)
            known.insert(0, strong)
        room, low = int(frame.rect.height() / GAP), frame.rect.bottom() - 2
        if len(known) > room:
            room, low = room - 1, low - GAP
            painter.setPen(QColor(self.theme.muted))
            put(painter, frame.rect.right() + 4, low + GAP + 4, f"+{len(known) - room}")
        shown = sorted(known[:room], key=lambda e: -float(last[e]))
        spots = spread_out([frame.y(float(last[e])) for e in shown], frame.rect.top() + 4, low)
        x, null = frame.rect.right() + 4, self._null()
        for e, y in zip(shown, spots, strict=True):
            painter.fillRect(QRectF(x, y - 3, 6, 6), expert_colour(e, self.theme))
            painter.setPen(QColor(self.theme.text if e == strong else self.theme.muted))
            put(painter, x + 9, y + 4, label(e, null))

    def _null(self) -> int:
        """The first null expert of the layer at the newest step, whose shares are labelled; or more than there are."""
        film = self.history.snapshots if self.history is not None else []
        newest = film[-1] if film else self.snapshot
        layers = newest.layers if newest is not None else ()
        return first_null(layers[self._row]) if self._row < len(layers) else self._shares.shape[1]

    def footer(self) -> str:
        steps = self._bins[3] if self._bins else 1
        mean = f"  a point: mean of {steps} steps" if steps > 1 else ""
        words = f"layer {self._row}, training batches{mean}"
        expert = self.pointed.get("expert", self.selection.expert)
        if expert is not None and expert < self._shares.shape[1]:
            q = number(float(self._shares[-1, expert]))
            words = f"expert {label(expert, self._null())}: q {q} at step {self._steps[-1]:,}  {words}"
        routing = self.routing()
        return "  ".join([words, *(signs_in_words(routing) if routing is not None else [])])

    def hit(self, point: QPointF, rect: QRectF) -> Pointed:
        frame = self.frame(rect)
        if not frame.rect.adjusted(0, 0, ENDS, 0).contains(point):
            return {}
        xs, means = self.binned(frame.rect.width())
        step = frame.x0 + (point.x() - frame.rect.left()) / frame.rect.width() * (frame.x1 - frame.x0)
        values = means[int(np.abs(xs - step).argmin())]
        away = np.abs(np.array([frame.y(float(v)) for v in values]) - point.y())
        return {"expert": int(np.nanargmin(away))} if np.isfinite(away).any() and np.nanmin(away) < 12 else {}

    def table(self) -> Table:
        if self.missing():
            return ["step", "layer"], []
        self.refresh()
        head = ["step", "layer"] + [f"expert_{e}" for e in range(self._shares.shape[1])]
        rows: list[list[int | float | str]] = [
            [step, self._row, *("" if q != q else q for q in shares)]
            for step, shares in zip(self._steps.tolist(), self._shares.tolist(), strict=True)
        ]
        return head, rows


def spread_out(wanted: list[float], low: float, high: float) -> list[float]:
    """Ascending places at least GAP apart and within [low, high], each near the wanted one."""
    out: list[float] = []
    for y in wanted:
        out.append(max(y, low, out[-1] + GAP if out else low))
    edge = high
    for i in reversed(range(len(out))):
        out[i] = min(out[i], edge)
        edge = out[i] - GAP
    return out


def uniform_lines(xs: Array, means: Array) -> list[tuple[float, float, float]]:
    """From where to where 1/E is the even share: a line for each stretch with as many experts."""
    known = np.isfinite(means).sum(axis=1)
    edges = [0, *(np.flatnonzero(np.diff(known)) + 1).tolist(), len(xs) - 1]
    return [(float(xs[a]), float(xs[b]), 1 / int(known[a])) for a, b in pairwise(edges) if known[a]]
