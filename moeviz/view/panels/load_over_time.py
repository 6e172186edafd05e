"""Load share of every expert of the selected layer over the training steps."""

import numpy as np
from PySide6.QtCore import QLineF, QPointF, QRectF
from PySide6.QtGui import QColor, QPainter, QPen, QPolygonF
from PySide6.QtWidgets import QWidget

from moeviz.view.colours import expert_colour, mixed
from moeviz.view.panel import Panel, Pointed, Table
from moeviz.view.panels.axes import Array, Frame, draw_x_axis, draw_y_axis, inside, nice_ceiling, number
from moeviz.view.panels.marks import bin_edges, binned_mean, draw_marks, draw_now, step_range
from moeviz.view.theme import Theme

PIXELS_A_POINT = 4
ENDS = 34.0  # room for the experts' numbers at the ends of their curves
NO_HISTORY = "No history of training batches yet: it grows while a model trains."


class LoadOverTime(Panel):
    name = "load_over_time"
    uses = frozenset({"snapshot", "history", "layer", "expert"})

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(theme, parent)
        self._steps = np.zeros(0, dtype=np.int64)
        self._shares: Array = np.zeros((0, 0))
        self._read: object = None
        self._bins: tuple[object, Array, Array] | None = None
        self._top = 1.0

    @property
    def row(self) -> int:
        """The selected layer, or the last of the history where it has fewer."""
        assert self.history is not None
        return min(self.layer if self.snapshot else self.selection.layer, self.history.num_layers - 1)

    def missing(self) -> str:
        return "" if self.history is not None and self.history.num_layers else NO_HISTORY

    def subtitle(self) -> str:
        return f"layer {self.row}, training batches"

    def prepare(self) -> None:
        assert self.history is not None
        key = (self.history, self._revision, self.row)
        if key == self._read:
            return
        self._read, self._bins = key, None
        self._steps = self.history.steps
        self._shares = self.history.load_share(self.row).astype(float)

    def binned(self, width: float) -> tuple[Array, Array]:
        """Steps (n,) and mean shares (n, E), no denser than the pixels."""
        bins = max(8, int(width / PIXELS_A_POINT))
        if self._bins is None or self._bins[0] != bins:
            edges = bin_edges(self._steps, bins)
            means = binned_mean(self._shares, edges)
            self._bins = bins, binned_mean(self._steps.astype(float), edges), means
            even = 1 / max(self._shares.shape[1], 1)
            self._top = min(1.0, max(2 * even, nice_ceiling(float(np.nanmax(means, initial=0.0)))))
        return self._bins[1], self._bins[2]

    def frame(self, rect: QRectF) -> Frame:
        inner = inside(rect, right=ENDS)
        self.binned(inner.width())
        return Frame(inner, *step_range(self._steps), 0, self._top)

    def draw(self, painter: QPainter, rect: QRectF) -> None:
        frame, theme = self.frame(rect), self.theme
        xs, means = self.binned(frame.rect.width())
        draw_y_axis(painter, frame, theme, "load share q")
        draw_x_axis(painter, frame, theme, "step")
        size = means.shape[1]
        here = int(np.isfinite(self._shares[-1]).sum()) or size
        pen = QPen(QColor(theme.muted))
        pen.setDashPattern([4, 3])
        painter.setPen(pen)
        painter.drawLine(QLineF(frame.rect.left(), frame.y(1 / here), frame.rect.right(), frame.y(1 / here)))
        strong = self.pointed.get("expert", self.selection.expert)
        strong = strong if strong is not None and strong < size else None
        order = [e for e in range(size) if e != strong] + ([strong] if strong is not None else [])
        painter.setRenderHint(QPainter.RenderHint.Antialiasing, size <= 16)
        for e in order:
            colour = expert_colour(e, theme)
            if strong is not None and e != strong:
                colour = mixed(colour.name(), theme.panel, 0.3)
            painter.setPen(QPen(colour, 2 if e == strong else 1))
            for line in frame.points(xs, means[:, e]):
                _draw_line(painter, line)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing, False)
        assert self.history is not None
        draw_marks(painter, frame, self.history.marks, theme)
        draw_now(painter, frame, self.snapshot.step if self.snapshot else None, theme)
        self._label_ends(painter, frame, means, strong)

    def _label_ends(self, painter: QPainter, frame: Frame, means: Array, strong: int | None) -> None:
        """The experts' numbers at the right, from the highest down, as many as fit without touching."""
        last = means[-1]
        known = [e for e in np.argsort(-np.nan_to_num(last, nan=-1.0)).tolist() if np.isfinite(last[e])]
        if strong in known:
            known.remove(strong)
            known.insert(0, strong)
        taken: list[float] = []
        for e in known:
            y = min(max(frame.y(float(last[e])), frame.rect.top() + 5), frame.rect.bottom() - 2)
            spot = next((y + d for d in (0, 6, -6, 12, -12) if all(abs(y + d - t) >= 11 for t in taken)), None)
            if spot is None:
                continue
            taken.append(spot)
            x = frame.rect.right() + 4
            painter.fillRect(QRectF(x, spot - 3, 6, 6), expert_colour(e, self.theme))
            painter.setPen(QColor(self.theme.text if e == strong else self.theme.muted))
            painter.drawText(QPointF(x + 9, spot + 4), str(e))

    def footer(self) -> str:
        spread = self._steps.size and (self._steps[-1] - self._steps[0] + 1) / max(len(self.binned_steps()), 1)
        words = (
            f"layer {self.row}, training batches, each point the mean of about {number(max(1.0, round(spread)))} steps"
        )
        expert = self.pointed.get("expert", self.selection.expert)
        if expert is not None and expert < self._shares.shape[1]:
            words = f"expert {expert}: q {number(float(self._shares[-1, expert]))} at step {self._steps[-1]}  {words}"
        return words

    def binned_steps(self) -> Array:
        return self._bins[1] if self._bins else np.zeros(0)

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
            [step, self.row, *("" if q != q else q for q in shares)]
            for step, shares in zip(self._steps.tolist(), self._shares.tolist(), strict=True)
        ]
        return head, rows


def _draw_line(painter: QPainter, line: QPolygonF) -> None:
    if line.size() == 1:
        painter.drawPoint(line.at(0))
    else:
        painter.drawPolyline(line)
