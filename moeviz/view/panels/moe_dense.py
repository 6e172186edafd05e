"""The MoE's loss against that of the dense model which trains beside it on the same batches."""

import numpy as np
from PySide6.QtCore import QLineF, QPointF, QRectF, QSignalBlocker
from PySide6.QtGui import QColor, QPainter, QPen, QPolygonF
from PySide6.QtWidgets import QComboBox, QToolButton, QWidget

from moeviz.domain.routing import Ints, RoutingSnapshot
from moeviz.domain.settings import KNOBS, Settings
from moeviz.view.colours import mixed
from moeviz.view.panel import Panel, Pointed, Table
from moeviz.view.panels.axes import (
    BOTTOM,
    TOP,
    Array,
    Frame,
    draw_curve,
    draw_x_axis,
    draw_y_axis,
    inside,
    number,
    signed,
)
from moeviz.view.panels.losses import PIXELS_A_POINT, loss_range, nats
from moeviz.view.panels.marks import (
    bin_edges,
    binned_mean,
    draw_marks,
    draw_now,
    earlier_place,
    earlier_step,
    step_range,
)
from moeviz.view.panels.words import about
from moeviz.view.theme import Theme, put, width_of

STEPS, FLOPS, GAP = VIEWS = ("steps", "FLOPs", "gap")
COLUMNS = (
    *("cross_entropy", "dense_cross_entropy", "heldout", "dense_heldout", "heldout_gap_error", "flops", "dense_flops"),
    *("flops_per_token", "dense_flops_per_token", "active_parameters", "parameters", "dense_parameters"),
)
UNITS = ("", "k", "M", "G", "T", "P", "E")  # a thousand times each
HOW = (
    f"The button “Twin”, or the knob “{KNOBS['train.dense_twin'].title}”, trains a dense model of the same FLOPs a "
    "token beside the MoE, on the same batches. Both must start together, so the model starts anew."
)
NO_TWIN = f"No dense twin trained beside this model. {HOW}"
NO_HISTORY = f"No history of losses yet: it grows while a model trains. {HOW}"
BEYOND = 2  # standard errors; a smaller difference is one that chance alone may show
DASHES = (5.0, 3.0)
TICKS = 7  # of losses that differ little
DOT = 3.0  # px, half of a held-out mark
KEY = 14.0  # px, above the plot


class MoeDense(Panel):
    name = "moe_dense"
    uses = frozenset({"history"})
    calm = True
    lowest = Panel.lowest + int(KEY)

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(theme, parent)
        self.view = QComboBox()
        self.view.addItems(list(VIEWS))
        self.view.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToContents)
        self.view.setToolTip("Losses over steps or over training FLOPs, or the gap MoE − dense over steps")
        self.view.setAccessibleName("What is compared")
        self.view.currentIndexChanged.connect(lambda _: self.invalidate())
        self.twin = QToolButton()
        self.twin.setText("Twin")
        self.twin.setCheckable(True)
        self.twin.setToolTip(
            "Train the dense twin beside: a dense model of the same FLOPs a token, on the same batches. Both models "
            "start anew from the seed, and training is slower."
        )
        self.twin.setAccessibleName("Train the dense twin beside")
        self.twin.clicked.connect(lambda on: self.knobs_asked.emit({"train.dense_twin": "on" if on else "off"}))
        self.header.insertWidget(1, self.view)
        self.header.insertWidget(2, self.twin)
        self._steps: Ints = np.zeros(0, dtype=np.int64)
        self._of: dict[str, Array] = {}
        self._unit = ""  # of FLOPs on the axis
        self._range = (0.0, 1.0)

    def show_settings(self, settings: Settings) -> None:
        with QSignalBlocker(self.twin):
            self.twin.setChecked(settings.train.dense_twin == "on")

    def show_snapshot(self, snapshot: RoutingSnapshot | None) -> None:
        before = earlier_step(self.snapshot, self._steps), nats(self.snapshot)
        super().show_snapshot(snapshot)
        if before != (earlier_step(self.snapshot, self._steps), nats(self.snapshot)):
            self.canvas.update()

    def missing(self) -> str:
        self._steps = self.history.steps if self.history is not None else np.zeros(0, dtype=np.int64)
        if self.history is None or not self._steps.size:
            return NO_HISTORY
        self._of = {name: self.history.scalar(name) for name in COLUMNS}
        trained, opened = (np.isfinite(self._of[name]).any() for name in ("dense_cross_entropy", "dense_heldout"))
        return "" if trained else NO_HISTORY if opened else NO_TWIN

    def prepare(self) -> None:
        of = self._of
        # where the MoE trained without the twin for a while there is nothing to compare
        both = np.isfinite(of["flops"])
        self._steps, self._of = self._steps[both], {name: values[both] for name, values in of.items()}
        most = np.nanmax([self._of["flops"][-1], self._of["dense_flops"][-1]])
        self._unit = UNITS[min(int(np.log10(max(most, 1)) // 3), len(UNITS) - 1)]
        values = np.concatenate([y for _, y in self.curves().values()])
        values = values[np.isfinite(values)]
        if self.view.currentText() == GAP:
            low, high = np.quantile(values, (0.01, 0.99))  # single batches may lie beyond
            values = np.array([low, high, 0.0])
        self._range = loss_range(values, False, TICKS)

    def curves(self) -> dict[str, tuple[Array, Array]]:
        """What is drawn, by its name in the key: x and y; NaN where not measured."""
        of, steps = self._of, self._steps.astype(np.float64)
        if self.view.currentText() == GAP:
            return {
                "training": (steps, of["cross_entropy"] - of["dense_cross_entropy"]),
                "held-out": (steps, of["heldout"] - of["dense_heldout"]),
            }
        over = self.view.currentText() == FLOPS
        scale = 1e3 ** UNITS.index(self._unit)
        x, dense_x = (of["flops"] / scale, of["dense_flops"] / scale) if over else (steps, steps)
        return {
            "MoE training": (x, of["cross_entropy"]),
            "dense training": (dense_x, of["dense_cross_entropy"]),
            "MoE held-out": (x, of["heldout"]),
            "dense held-out": (dense_x, of["dense_heldout"]),
        }

    def subtitle(self) -> str:
        view = self.view.currentText()
        return "gap over steps" if view == GAP else f"over {view}"

    def lines_of_words(self, width: float) -> int:
        return 2 if width >= 800 else 3 if width >= 600 else 5

    def frame(self, rect: QRectF) -> Frame:
        rect = rect.adjusted(0, KEY, 0, 0)
        if self.view.currentText() != FLOPS:
            return Frame(inside(rect), *step_range(self._steps), *self._range)
        ends = [x for x, _ in self.curves().values()]
        first, last = min(float(x[0]) for x in ends), max(float(x[-1]) for x in ends)
        return Frame(inside(rect), first, max(last, first * 1.001), *self._range)

    def draw(self, painter: QPainter, rect: QRectF) -> None:
        frame, theme, view = self.frame(rect), self.theme, self.view.currentText()
        unit = nats(self.snapshot)
        low = width_of(f"gap ({unit})") > frame.rect.height() + TOP + BOTTOM
        draw_y_axis(painter, frame, theme, f"gap ({unit})" if view == GAP and not low else unit)
        draw_x_axis(painter, frame, theme, f"training compute ({self._unit}FLOP)" if view == FLOPS else "step")
        if view == GAP:
            painter.setPen(QColor(theme.muted))
            painter.drawLine(QLineF(frame.rect.left(), frame.y(0), frame.rect.right(), frame.y(0)))
        painter.save()
        painter.setClipRect(frame.rect.adjusted(-DOT, -DOT, DOT + 1, DOT + 1))
        edges = bin_edges(self._steps, max(8, int(frame.rect.width() / PIXELS_A_POINT)))
        if view == GAP:
            self._draw_errors(painter, frame)
        for name, (x, y) in self.curves().items():
            self._draw_one(painter, frame, name, x, y, edges)
        painter.restore()
        assert self.history is not None
        draw_marks(painter, frame, [(self._x_of(step), label) for step, label in self.history.marks], theme)
        earlier = earlier_step(self.snapshot, self._steps)
        draw_now(painter, frame, None if earlier is None else self._x_of(earlier), theme)
        at = self.pointed.get("at")
        if at is not None and at < self._steps.size:
            x_at = frame.x(self._x_of(int(self._steps[at])))
            painter.setPen(QColor(theme.muted))
            painter.drawLine(QLineF(x_at, frame.rect.top(), x_at, frame.rect.bottom()))
        self._draw_key(painter, frame)

    def _draw_one(self, painter: QPainter, frame: Frame, name: str, x: Array, y: Array, edges: Ints) -> None:
        colour, dense = self._colour(name), name.startswith("dense")
        if "held-out" not in name:
            lines = frame.points(binned_mean(x, edges), binned_mean(y, edges))
            draw_curve(painter, lines, colour, dashes=DASHES if dense else ())
            return
        measured = np.isfinite(y)
        for line in frame.points(x[measured], y[measured]):
            draw_curve(painter, [line], colour, strong=True, dashes=DASHES if dense else ())
            if line.size() <= frame.rect.width() / 12:
                self._draw_dots(painter, line, colour, filled=not dense)

    def _draw_errors(self, painter: QPainter, frame: Frame) -> None:
        """Twice the standard error to both sides of each held-out gap."""
        x, gaps = self.curves()["held-out"]
        errors = self._of["heldout_gap_error"]
        painter.setPen(QPen(mixed(self.theme.second, self.theme.panel, 0.6), 1))
        for i in np.flatnonzero(np.isfinite(gaps) & np.isfinite(errors)).tolist():
            ends = (frame.y(float(gaps[i] + sign * BEYOND * errors[i])) for sign in (-1, 1))
            at = round(frame.x(float(x[i]))) + 0.5
            painter.drawLine(QLineF(at, next(ends), at, next(ends)))

    def _draw_dots(self, painter: QPainter, at: QPolygonF, colour: QColor, *, filled: bool) -> None:
        painter.setPen(QPen(colour, 1))
        painter.setBrush(colour if filled else QColor(self.theme.panel))
        for i in range(at.size()):
            point = at.at(i)
            painter.drawRect(QRectF(round(point.x()) - DOT, round(point.y()) - DOT, 2 * DOT, 2 * DOT))

    def _colour(self, name: str) -> QColor:
        return QColor(self.theme.second if name.startswith("dense") or name == "held-out" else self.theme.accent)

    def _x_of(self, step: int) -> float:
        """Where a step lies on the axis: by what the MoE had cost at it."""
        if self.view.currentText() != FLOPS:
            return float(step)
        return float(np.interp(step, self._steps, self.curves()["MoE training"][0]))

    def _draw_key(self, painter: QPainter, frame: Frame) -> None:
        """Which line is which; told apart by dashes and dots too."""
        x, y = frame.rect.left(), frame.rect.top() - TOP - 3
        two = ("training", "held-out") if self.view.currentText() == GAP else ("MoE", "dense")
        gap = two[0] == "training"
        for name in (*two, "lines: ±2 standard errors" if gap else "dots: held-out"):
            sample = 18 if name in two else 0
            if sample:
                line, colour, dense = (
                    QPolygonF([QPointF(x, y - 4), QPointF(x + 14, y - 4)]),
                    self._colour(name),
                    name == "dense",
                )
                draw_curve(painter, [line], colour, strong=True, dashes=DASHES if dense else ())
                if name != "training":
                    self._draw_dots(painter, QPolygonF([QPointF(x + 7, y - 4)]), colour, filled=not dense)
            painter.setPen(QColor(self.theme.muted))
            put(painter, x + sample, y, name)
            x += sample + width_of(name) + 16

    def footer(self) -> str:
        of, at, pointed = self._of, self.pointed.get("at", -1), "at" in self.pointed
        if not pointed or at >= self._steps.size:
            earlier = earlier_place(self.snapshot, self._steps)
            at = -1 if earlier is None else earlier
        measured = np.flatnonzero(np.isfinite(of["heldout"] - of["dense_heldout"]))
        measured = measured[measured <= at] if at >= 0 else measured
        if measured.size:
            i = measured[-1]
            moe, dense = of["heldout"][i], of["dense_heldout"][i]
            words = [
                f"held-out at step {self._steps[i]:,}: MoE {number(moe)}, dense {number(dense)}",
                gap_in_words(float(moe - dense), float(of["heldout_gap_error"][i])),
            ]
        else:
            words = ["nothing held-out is measured yet"]
        now, first = of["flops_per_token"][at], of["flops_per_token"][0]
        then = f" (first {number(first)})" if abs(now - first) > 0.01 * first else ""  # which the twin keeps
        words.append(f"FLOPs a token: MoE {number(now)}{then}, dense {number(of['dense_flops_per_token'][at])}")
        if pointed and self.view.currentText() == FLOPS:
            costs = _flop(of["flops"][at]), _flop(of["dense_flops"][at])
            words.append(f"step {self._steps[at]:,}: MoE {costs[0]}, dense {costs[1]}")
        elif pointed or not np.isfinite(of["dense_cross_entropy"][at]):
            words.append(f"training at step {self._steps[at]:,}: {self._training(at)}")
        else:
            active, total, dense = (number(of[n][at]) for n in ("active_parameters", "parameters", "dense_parameters"))
            words.append(f"parameters: MoE {active} of {total} active, dense all {dense}")
        return "  ".join(words)

    def _training(self, at: int) -> str:
        moe, dense = (number(self._of[name][at]) for name in ("cross_entropy", "dense_cross_entropy"))
        return f"MoE {moe}, " + (f"dense {dense}" if dense != number(np.nan) else "the dense twin has stopped")

    def hit(self, point: QPointF, rect: QRectF) -> Pointed:
        frame = self.frame(rect)
        if not frame.rect.contains(point):
            return {}
        value = frame.x0 + (point.x() - frame.rect.left()) / frame.rect.width() * (frame.x1 - frame.x0)
        x, _ = next(iter(self.curves().values()))
        return {"at": int(np.abs(x - value).argmin())}

    def table(self) -> Table:
        self.refresh()
        if self.lack():
            return ["step", *COLUMNS], []
        columns = [self._of[name].tolist() for name in COLUMNS]
        return ["step", *COLUMNS], [
            [step, *("" if v != v else v for v in values)]
            for step, *values in zip(self._steps.tolist(), *columns, strict=True)
        ]


def gap_in_words(difference: float, error: float) -> str:
    """What held-out data say of MoE − dense, whose standard error over its rows is NaN where it was not measured.
    In few words: a low panel has two lines."""
    words = f"MoE − dense = {signed(difference)}"
    if error != error:
        return f"{words}, its error by chance unknown"
    better = f"{'MoE' if difference < 0 else 'dense'} better"
    return f"{words} ± {about(error)}: {'within chance' if abs(difference) <= BEYOND * error else better}"


def _flop(value: float) -> str:
    """A number of operations in words, as in 41.3 GFLOP."""
    power = min(int(np.log10(max(value, 1)) // 3), len(UNITS) - 1)
    return f"{value / 1e3**power:.3g} {UNITS[power]}FLOP"
