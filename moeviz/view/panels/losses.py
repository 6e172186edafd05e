"""The losses over the training steps; one quantity at a time, for each has its own unit."""

from collections.abc import Hashable

import numpy as np
from PySide6.QtCore import QLineF, QPointF, QRectF, QSignalBlocker, Qt
from PySide6.QtGui import QColor, QPainter
from PySide6.QtWidgets import QComboBox, QToolButton, QWidget

from moeviz.domain.routing import RoutingSnapshot
from moeviz.view.colours import mixed
from moeviz.view.panel import Panel, Pointed, Table
from moeviz.view.panels.axes import Array, Frame, draw_curve, draw_x_axis, draw_y_axis, inside, nice_ticks, number
from moeviz.view.panels.marks import (
    bin_edges,
    binned_mean,
    binned_range,
    draw_marks,
    draw_now,
    earlier_place,
    earlier_step,
    step_range,
)
from moeviz.view.theme import Theme

# a task's own measures of held-out data
MEASURES = {
    "accuracy": ("accuracy",),
    "hit@10 and MRR": ("hit_at_10", "mrr"),
    "hit@1": ("hit_at_1", "hit_at_1_no_context"),
    "exact match": ("exact_match", "character_accuracy"),
}
# what the box offers: always the first four, the others once the history has them
KINDS = {
    "cross-entropy": ("cross_entropy", "heldout"),
    "total loss": ("loss",),
    "balance": ("balance",),
    "router z": ("z",),
    "importance": ("importance",),
    "load": ("load",),
    "sequence balance": ("sequence",),
    "token entropy": ("token_entropy",),
    "batch entropy": ("batch_entropy",),
    "mutual information": ("mutual_information",),
    "output orthogonality": ("orthogonality",),
    "score variance": ("variance",),
    "router orthogonality": ("router_orthogonality",),
    "heterogeneous balance": ("heterogeneous",),
    "L1 of relu": ("relu_l1",),
    "λ of relu": ("lambda",),
    "bias": ("bias_low", "bias_high"),
    **MEASURES,
}
ALWAYS = 4
NO_TERMS = {"cross-entropy", "total loss", "λ of relu", "bias", *MEASURES}  # of the total loss
NAMES = {
    **{name: kind for kind, names in KINDS.items() for name in names},
    "cross_entropy": "training",
    "heldout": "held-out",
    "loss": "total",
    "bias_low": "least bias",
    "bias_high": "greatest bias",
    "hit_at_10": "hit@10",
    "mrr": "MRR",
    "hit_at_1": "hit@1 with context",
    "hit_at_1_no_context": "without",
    "exact_match": "exact match",
    "character_accuracy": "characters right",
}
UNITS = {
    "total loss": "total loss (nats + penalties)",
    "balance": "balance loss (even: 1)",
    "router z": "z-loss (nats²)",
    "importance": "CV² of importance",
    "load": "CV² of load",
    "sequence balance": "balance in sequences (even: 1)",
    "token entropy": "token entropy (nats)",
    "batch entropy": "batch entropy (nats, maximised)",
    "mutual information": "information (nats, maximised)",
    "output orthogonality": "overlap of outputs",
    "score variance": "−variance of p",
    "router orthogonality": "‖W·Wᵀ − I‖²",
    "heterogeneous balance": "Σ η·f·P",
    "L1 of relu": "L1 (even: mean Σ of weights)",
    "λ of relu": "λ, weight of L1",
    "bias": "bias on the selection",
    "accuracy": "share right, held out",
    "hit@10 and MRR": "held out",
    "hit@1": "share right, held out",
    "exact match": "share right, held out",
}
SECOND = ("heldout", "bias_high", *(names[1] for names in MEASURES.values() if len(names) > 1))  # in the second colour
SPARSE = ("heldout", *(name for names in MEASURES.values() for name in names))  # measured at few steps: dots
NO_HISTORY = "No history of losses yet: it grows while a model trains."
PIXELS_A_POINT = 4


class Losses(Panel):
    name = "losses"
    uses = frozenset({"history"})
    calm = True
    footer_lines = 2

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(theme, parent)
        self.kind = QComboBox()
        self.kind.addItems(list(KINDS)[:ALWAYS])
        self.kind.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToContents)
        self.kind.setAccessibleName("Which loss")
        self.kind.currentIndexChanged.connect(lambda _: self.invalidate())
        self.log = QToolButton()
        self.log.setText("log")
        self.log.setCheckable(True)
        self.log.setToolTip("Logarithmic axis")
        self.log.toggled.connect(lambda _: self.invalidate())
        self.header.insertWidget(1, self.kind)
        self.header.insertWidget(2, self.log)
        self._steps = np.zeros(0, dtype=np.int64)
        self._curves: dict[str, Array] = {}
        self._all_terms: dict[str, Array] = {}  # by their kind
        self._range = (0.0, 1.0)
        self._at: int | None = None  # the point that the mouse is at
        self._bins: tuple[object, dict[str, tuple[Array, Array, Array, Array]]] | None = None

    def missing(self) -> str:
        self._curves, self._bins = {}, None
        self._offer()
        if self.history is None:
            return NO_HISTORY
        self._steps = self.history.steps
        if not self._steps.size:
            return NO_HISTORY
        for name in KINDS[self.kind.currentText()]:
            values = self.history.scalar(name)
            if np.isfinite(values).any():
                self._curves[name] = values
        # as long as the steps: the history goes on growing, or is cleared, while this is shown
        terms = [kind for kind in KINDS if kind not in NO_TERMS] if self.kind.currentText() == "total loss" else []
        self._all_terms = {kind: self.history.scalar(KINDS[kind][0]) for kind in terms}
        if self._curves:
            return ""
        # of a model that was opened the held-out measures are known before it trains
        trained = any(np.isfinite(self.history.scalar(KINDS[kind][0])).any() for kind in list(KINDS)[:ALWAYS])
        return f"This history has no {self.kind.currentText()}." if trained else NO_HISTORY

    def _offer(self) -> None:
        """In the box: what the history has, and what is chosen."""
        chosen, have = self.kind.currentText(), self.history.scalar_names if self.history is not None else ()
        wanted = [
            kind
            for i, (kind, names) in enumerate(KINDS.items())
            if i < ALWAYS or kind == chosen or any(name in have for name in names)
        ]
        if wanted != [self.kind.itemText(i) for i in range(self.kind.count())]:
            with QSignalBlocker(self.kind):
                self.kind.clear()
                self.kind.addItems(wanted)
                self.kind.setCurrentText(chosen)

    def show_snapshot(self, snapshot: RoutingSnapshot | None) -> None:
        before = earlier_step(self.snapshot, self._steps), self.unit()
        super().show_snapshot(snapshot)
        if before != (earlier_step(self.snapshot, self._steps), self.unit()):
            self.canvas.update()

    def subtitle(self) -> str:
        return self.kind.currentText()

    def unit(self) -> str:
        """Of what the axis shows."""
        if self.kind.currentText() != "cross-entropy":
            return UNITS[self.kind.currentText()]
        return nats(self.snapshot)

    def prepare(self) -> None:
        everything = np.concatenate([values[np.isfinite(values)] for values in self._curves.values()])
        self._range = loss_range(everything, self.log.isChecked())

    def binned(self, width: float) -> dict[str, tuple[Array, Array, Array, Array]]:
        """Per curve: steps, means, least and greatest values, no denser than the pixels."""
        bins = max(8, int(width / PIXELS_A_POINT))
        if self._bins is None or self._bins[0] != bins:
            out = {}
            for name, values in self._curves.items():
                known = np.isfinite(values)
                steps, values = self._steps[known], values[known]
                edges = bin_edges(steps, bins)
                at = binned_mean(steps.astype(float), edges)
                out[name] = (at, binned_mean(values, edges), *binned_range(values, edges))
            self._bins = bins, out
        return self._bins[1]

    def frame(self, rect: QRectF) -> Frame:
        log = self.log.isChecked() and self._range[0] > 0
        return Frame(inside(rect), *step_range(self._steps), *self._range, log_y=log)

    def ground(self) -> Hashable:
        return id(self.history), self._revision, self.kind.currentText(), self.log.isChecked(), self.unit()

    def draw_ground(self, painter: QPainter, rect: QRectF) -> None:
        """The curves too: only the step that is shown moves on them."""
        frame, theme = self.frame(rect), self.theme
        draw_y_axis(painter, frame, theme, self.unit())
        key = [(NAMES[name], theme.second if name in SECOND else theme.accent, name in SPARSE) for name in self._curves]
        draw_x_axis(painter, frame, theme, "step", key)
        painter.save()
        painter.setClipRect(frame.rect.adjusted(-3, -1, 3, 1))  # a dot may lie on the edge
        for name, (xs, means, low, high) in self.binned(frame.rect.width()).items():
            held = name in SPARSE
            colour = QColor(theme.second if name in SECOND else theme.accent)
            if not held:  # from the least to the greatest raw value behind their mean
                painter.setPen(Qt.PenStyle.NoPen)
                painter.setBrush(mixed(colour.name(), theme.panel, 0.35))
                for band in frame.points(np.concatenate([xs, xs[::-1]]), np.concatenate([low, high[::-1]])):
                    painter.drawPolygon(band)
                painter.setBrush(Qt.BrushStyle.NoBrush)
            lines = frame.points(xs, means)
            draw_curve(painter, lines, colour, strong=True)
            if held and xs.size <= frame.rect.width() / 10:
                for line in lines:
                    for i in range(line.size()):
                        at = line.at(i)
                        painter.fillRect(QRectF(at.x() - 2.5, at.y() - 2.5, 5, 5), colour)
        painter.restore()
        assert self.history is not None
        draw_marks(painter, frame, self.history.marks, theme)

    def draw(self, painter: QPainter, rect: QRectF) -> None:
        frame, theme = self.frame(rect), self.theme
        self.binned(frame.rect.width())  # the words below tell of it
        draw_now(painter, frame, earlier_step(self.snapshot, self._steps), theme)
        if self._at is not None and self._at < self._steps.size:
            x = frame.x(float(self._steps[self._at]))
            painter.setPen(QColor(theme.muted))
            painter.drawLine(QLineF(x, frame.rect.top(), x, frame.rect.bottom()))

    def footer(self) -> str:
        if not self._steps.size:
            return ""
        pointed = self._at is not None and self._at < self._steps.size
        at = self._at if pointed else earlier_place(self.snapshot, self._steps)
        words = [f"step {self._steps[at if at is not None else -1]:,}"]
        for name, values in self._curves.items():
            upto = np.flatnonzero(np.isfinite(values[: at + 1 if at is not None else None]))
            if upto.size:
                when = int(self._steps[upto[-1]])
                late = f" (at {when:,})" if name in SPARSE else ""
                words.append(f"{NAMES[name]} {number(float(values[upto[-1]]))}{late}")
        if self.kind.currentText() == "total loss":
            words += self._terms(at)
        routing = self.routing()
        ahead = ["looks ahead: sees its targets"] if routing is not None and routing.looks_ahead else []
        roomy = self._in_picture or self._lines(QRectF(self.canvas.rect())) > 1  # else the help and other panels say it
        return "  ".join([*words, *((*ahead, *self._drawn()) if roomy else ())])

    def _drawn(self) -> list[str]:
        """What the lines are, where that is not the plain values."""
        dense = self._curves.keys() - set(SPARSE)
        if not dense:
            return ["dots: measured now and then"]
        means = self._bins[1] if self._bins is not None else {}
        hidden = any(means[name][0].size < np.isfinite(self._curves[name]).sum() for name in dense & means.keys())
        return ["band: all values"] if hidden else []

    def _terms(self, at: int | None) -> list[str]:
        """The terms of the total at one point, before their coefficients, without those that are off."""
        words = []
        for kind, values in self._all_terms.items():
            value = values[at if at is not None else -1]
            if np.isfinite(value):
                words.append(f"{kind} {number(float(value))}")
        return words

    def hit(self, point: QPointF, rect: QRectF) -> Pointed:
        return {}

    def point_at(self, point: QPointF | None) -> None:
        at = None
        if point is not None and not self.lack():
            frame = self.frame(self.plot_rect(QRectF(self.canvas.rect())))
            if frame.rect.contains(point):
                step = frame.x0 + (point.x() - frame.rect.left()) / frame.rect.width() * (frame.x1 - frame.x0)
                at = int(np.abs(self._steps - step).argmin())
        if at != self._at:
            self._at = at
            self.canvas.update()

    def table(self) -> Table:
        if self.history is None:
            return ["step"], []
        names = list(self.history.scalar_names)
        columns = [self.history.scalar(name).tolist() for name in names]
        rows: list[list[int | float | str]] = [
            [step, *("" if v != v else v for v in values)]
            for step, *values in zip(self.history.steps.tolist(), *columns, strict=True)
        ]
        return ["step", *names], rows


def nats(snapshot: RoutingSnapshot | None) -> str:
    """The unit of a loss for one target; a token is a character where all tokens shown are one character long."""
    tokens = snapshot.tokens if snapshot else None
    return f"nats/{'char' if tokens and set(map(len, tokens)) == {1} else 'token'}"


def loss_range(values: Array, log: bool, count: int = 4) -> tuple[float, float]:
    """Round limits, at one of about `count` ticks, that hold all values but the rare outliers at the top; they move
    seldom while a run grows."""
    outliers = values.size // 500
    low, high = float(values.min()), float(np.partition(values, -1 - outliers)[-1 - outliers])
    if log and low > 0:
        return low * 0.93, max(high, low * 1.05) * 1.07
    # finer ticks would need more digits than there is room for; of one value alone the next steps will tell more
    finest = 1e-2 if high > low else 1.0
    span = max(high - low, finest * max(abs(high), 1e-6), 1e-9)
    ticks = nice_ticks(low - 0.05 * span, high + 0.05 * span, count)
    step = ticks[1] - ticks[0] if len(ticks) > 1 else span
    bottom = np.floor((low - 0.02 * span) / step) * step
    return float(max(bottom, 0.0) if low >= 0 else bottom), float(np.ceil((high + 0.02 * span) / step) * step)
