"""How the choices for the tokens shown settle: saturation and churn over the kept steps."""

import numpy as np
import numpy.typing as npt
from PySide6.QtCore import QLineF, QPointF, QRectF
from PySide6.QtGui import QColor, QPainter, QPen
from PySide6.QtWidgets import QComboBox, QWidget

from moeviz.domain.metrics import overlap_baseline
from moeviz.domain.metrics.arrays import chosen_mask
from moeviz.domain.routing import Ints, RoutingSnapshot
from moeviz.view.panel import NARROW, Panel, Pointed, Table
from moeviz.view.panels.axes import Array, Frame, draw_curve, draw_x_axis, draw_y_axis, inside, number
from moeviz.view.panels.layers_experts import comparable
from moeviz.view.panels.marks import draw_marks, draw_now, step_range
from moeviz.view.theme import Theme

REFERENCES = ("last step", "shown step")
NO_FILM = "No kept steps to compare yet: they gather while a model trains, or come with a trace."
Bits = npt.NDArray[np.uint8]


class Saturation(Panel):
    name = "saturation"
    uses = frozenset({"snapshot", "history", "layer"})
    calm = True

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(theme, parent)
        self.reference = QComboBox()
        self.reference.addItems(list(REFERENCES))
        self.reference.setAccessibleName("Compared with")
        self.reference.currentIndexChanged.connect(lambda _: self.invalidate())
        self.header.insertWidget(1, self.reference)
        self._packed: dict[tuple[int, int], tuple[RoutingSnapshot, Bits, Ints]] = {}
        self._film: list[RoutingSnapshot] = []
        self._of: tuple[int, list[RoutingSnapshot]] = 0, []  # layer and history that the film was found in
        self._measured: list[RoutingSnapshot] = []  # the film that these are of
        self._bits_STW: Bits = np.zeros((0, 0, 0), dtype=np.uint8)
        self._size_ST: Ints = np.zeros((0, 0), dtype=np.int64)
        self._steps: Ints = np.zeros(0, dtype=np.int64)
        self._saturation: Array = np.zeros(0)
        self._churn: Array = np.zeros(0)
        self._at = -1  # the reference that the saturation is against; -1: none yet
        self._baseline = 0.0

    def kept(self) -> list[RoutingSnapshot]:
        """The kept steps that routed the tokens shown to the same experts."""
        shown, layer = self.snapshot, self.layer
        if self.history is None or shown is None:
            return []
        here = layer, self.history.snapshots
        if self._film and here == self._of and comparable(self._film[0], shown, layer):
            return self._film  # whoever is like one of them is like them all
        self._of = layer, list(self.history.snapshots)
        return [s for s in self.history.snapshots if comparable(s, shown, layer)]

    def missing(self) -> str:
        self._film = self.kept() if self.routing() is not None else []
        return "" if len(self._film) > 1 else NO_FILM

    def prepare(self) -> None:
        assert self.snapshot is not None
        if self._film is not self._measured:
            self._measure_film()
        shown = int(np.abs(self._steps - self.snapshot.step).argmin())
        at = shown if self.reference.currentIndex() else len(self._film) - 1
        if at != self._at:
            bits, sizes = self._bits_STW, self._size_ST
            self._saturation, self._at = overlaps(bits, sizes, bits[at], sizes[at]), at
        routing = self.snapshot.layers[self.layer]
        chosen = (routing.expert_ids_TK >= 0).sum(axis=1).mean()
        self._baseline = overlap_baseline(1, routing.num_experts) * float(chosen)

    def _measure_film(self) -> None:
        """What depends on the kept steps alone, not on the one shown."""
        layer, self._measured, self._at = self.layer, self._film, -1
        known = [
            self._packed.get((id(s), layer)) or (s, *packed(s.layers[layer].expert_ids_TK, s.layers[layer].num_experts))
            for s in self._film
        ]
        bits = self._bits_STW = np.stack([bits for _, bits, _ in known])
        sizes = self._size_ST = np.stack([sizes for _, _, sizes in known])
        self._packed = {(id(s), layer): (s, *rows) for s, *rows in zip(self._film, bits, sizes, strict=True)}
        self._steps = np.array([s.step for s in self._film])
        self._churn = np.full(len(self._film), np.nan)
        self._churn[1:] = 1 - overlaps(bits[1:], sizes[1:], bits[:-1], sizes[:-1])

    def lines_of_words(self, width: float) -> int:
        return 2 if width >= NARROW else 4

    def subtitle(self) -> str:
        return f"layer {self.layer}, the tokens shown, against step {self._steps[self._at]:,}"

    def frame(self, rect: QRectF) -> Frame:
        return Frame(inside(rect), *step_range(self._steps), 0.0, 1.0)

    def draw(self, painter: QPainter, rect: QRectF) -> None:
        frame, theme = self.frame(rect), self.theme
        draw_y_axis(painter, frame, theme, "share of choices" if frame.rect.height() > 60 else "share")
        draw_x_axis(
            painter, frame, theme, "step", (("saturation", theme.accent, False), ("churn", theme.second, False))
        )
        pen = QPen(QColor(theme.muted))
        pen.setDashPattern([4, 3])
        painter.setPen(pen)
        painter.drawLine(
            QLineF(frame.rect.left(), frame.y(self._baseline), frame.rect.right(), frame.y(self._baseline))
        )
        xs = self._steps.astype(np.float64)
        draw_curve(painter, frame.points(*level_lines(xs, self._churn)), QColor(theme.second))
        draw_curve(painter, frame.points(xs, self._saturation), QColor(theme.accent), strong=True)
        assert self.history is not None
        draw_marks(painter, frame, self.history.marks, theme)
        draw_now(painter, frame, int(self._steps[self._at]) if self.reference.currentIndex() else None, theme)
        at = self.pointed.get("at")
        if at is not None and at < len(self._steps):
            x = frame.x(float(self._steps[at]))
            painter.setPen(QColor(theme.faint))
            painter.drawLine(QLineF(x, frame.rect.top(), x, frame.rect.bottom()))

    def footer(self) -> str:
        at = self.pointed.get("at")
        if at is None or at >= len(self._steps):
            at = len(self._steps) - 1 if self.reference.currentIndex() else max(self._at - 1, 0)
        words = [
            f"step {self._steps[at]:,}: saturation {number(float(self._saturation[at]))}",
            f"chance k/E = {number(self._baseline)}",
        ]
        if at:
            gap = int(self._steps[at] - self._steps[at - 1])
            over = f"over {gap:,} step{'s' if gap != 1 else ''} since {self._steps[at - 1]:,}"
            words.append(f"churn {number(float(self._churn[at]))} {over}")
        return "  ".join([*words, f"{len(self._steps)} kept steps"])

    def hit(self, point: QPointF, rect: QRectF) -> Pointed:
        frame = self.frame(rect)
        if not frame.rect.contains(point):
            return {}
        step = frame.x0 + (point.x() - frame.rect.left()) / frame.rect.width() * (frame.x1 - frame.x0)
        return {"at": int(np.abs(self._steps - step).argmin())}

    def table(self) -> Table:
        head = ["layer", "step", "reference_step", "saturation", "churn"]
        if self.missing():
            return head, []
        self.refresh()
        reference = int(self._steps[self._at])
        return head, [
            [self.layer, step, reference, *("" if value != value else value for value in pair)]
            for step, *pair in zip(self._steps.tolist(), self._saturation.tolist(), self._churn.tolist(), strict=True)
        ]


def level_lines(xs_S: Array, changes_S: Array) -> tuple[Array, Array]:
    """The corners (3 S - 3,) of level lines, each from the x before to its own; they are joined where as far apart, and
    cut by a NaN elsewhere: more changes between distant steps than between near ones."""
    gaps = np.diff(xs_S, append=np.nan)
    joint_S = np.where(gaps[1:] == gaps[:-1], changes_S[1:], np.nan)
    xs = np.stack([xs_S[:-1], xs_S[1:], xs_S[1:]], axis=1)
    return xs.ravel(), np.stack([changes_S[1:], changes_S[1:], joint_S], axis=1).ravel()


def packed(ids_TK: Ints, num_experts: int) -> tuple[Bits, Ints]:
    """The chosen experts of each token as bits (T, W), and how many they are (T,)."""
    chosen = chosen_mask(ids_TK, num_experts)
    return np.packbits(chosen, axis=1), chosen.sum(axis=1)


def overlaps(bits_STW: Bits, size_ST: Ints, others: Bits, other_sizes: Ints) -> Array:
    """Mean overlap |A & B| / max(|A|, |B|) over tokens at each of S steps; NaN where no token chose any."""
    both_ST = np.bitwise_count(bits_STW & others).sum(axis=-1, dtype=np.int64)
    larger_ST = np.maximum(size_ST, other_sizes)
    known_S = (larger_ST > 0).sum(axis=-1)
    total_S = (both_ST / np.maximum(larger_ST, 1)).sum(axis=-1)
    return np.where(known_S > 0, total_S / np.maximum(known_S, 1), np.nan)
