"""Load of each expert in one layer, against an even share and against what chance alone would do."""

from collections.abc import Hashable

import numpy as np
from PySide6.QtCore import QLineF, QPointF, QRectF, Qt
from PySide6.QtGui import QColor, QPainter, QPen
from PySide6.QtWidgets import QWidget

from moeviz.domain.metrics import (
    TOO_FEW,
    LoadSummary,
    cv,
    cv_floor,
    expert_counts,
    floor_k,
    importance,
    importance_share,
    max_violation_floor,
    share_noise,
    summarise,
)
from moeviz.domain.routing import Ints, Routing, RoutingSnapshot
from moeviz.view.colours import expert_colour, mixed
from moeviz.view.panel import NARROW, Panel, Pointed, Table
from moeviz.view.panels.axes import (
    Array,
    Frame,
    SteadyTop,
    draw_column_labels,
    draw_y_axis,
    inside,
    nice_ceiling,
    number,
)
from moeviz.view.panels.words import about, drops_in_words, first_null, kind_in_words, label, labels
from moeviz.view.theme import Theme


def layer_counts(snapshot: RoutingSnapshot, layer: int) -> tuple[Ints, bool]:
    """Assignments per expert (E,) before any drop, and whether they are of the training batch (else of the snapshot's
    own tokens)."""
    if layer < len(snapshot.train_counts_LE):
        return snapshot.train_counts_LE[layer], True
    return expert_counts(snapshot.layers[layer]), False


def combine_mass(routing: Routing) -> Array | None:
    """Soft MoE: each expert's share (E,) of all combine weights of the tokens shown. Its load is even by construction.
    None for all other routing."""
    mass = importance(routing) if routing.soft else None
    return None if mass is None else importance_share(mass)


class Load(Panel):
    name = "load"
    uses = frozenset({"snapshot", "layer", "expert"})

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(theme, parent)
        self._counts: Ints = np.zeros(1, dtype=np.int64)
        self._training = False
        self._k = 1
        self._summary: LoadSummary = summarise(self._counts)
        self._mass: Array | None = None
        self._null = 1
        self._top, self._steady = 0.0, SteadyTop()

    def prepare(self) -> None:
        assert self.snapshot is not None
        self._counts, self._training = layer_counts(self.snapshot, self.layer)
        self._summary = summarise(self._counts)
        self._k = min(floor_k(self.snapshot.layers[self.layer].expert_ids_TK), self._counts.size)
        routing = self.snapshot.layers[self.layer]
        self._mass, self._null = combine_mass(routing), first_null(routing)
        even = 1 / self._counts.size
        highest = max(float(self._bars.max()), even + 2 * self.noise)
        wanted = min(1.0, max(2 * even, nice_ceiling(highest)))
        self._top = self._steady.move((self.layer, self._counts.size), wanted)

    @property
    def _bars(self) -> Array:
        return self._summary.load_share if self._mass is None else self._mass

    @property
    def noise(self) -> float:
        """Standard deviation of a share by chance; 0 where there is no band to draw: nothing was routed, or softly."""
        total = int(self._counts.sum()) if self._mass is None else 0
        return share_noise(total, self._counts.size, self._k) if total else 0.0

    def lines_of_words(self, width: float) -> int:
        routing = self.routing()
        odd = 0 if routing is None else len(self._kind(routing))
        drops = routing is not None and routing.dropped_TK is not None
        return 3 + min(odd + drops, 3) if width >= NARROW else 5 + min(odd + 2 * drops, 4)

    def subtitle(self) -> str:
        if self._mass is not None:
            return f"{self.where()}, combine weights of the tokens shown"
        return f"{self.where()}, {'training batch' if self._training else 'the tokens shown'}, before drops"

    def frame(self, rect: QRectF) -> Frame:
        return Frame(inside(rect), 0, self._counts.size, 0, self._top)

    def _share_of(self) -> str:
        """What the bars are."""
        routing = self.routing()
        drops = routing is not None and routing.dropped_TK is not None
        return "combine share" if self._mass is not None else "q before drops" if drops else "load share q"

    def ground(self) -> Hashable:
        return (
            self._counts.size,
            self._null,
            self._top,
            self.noise,
            self._share_of(),
            self.picked("expert", self._counts.size),
        )

    def draw_ground(self, painter: QPainter, rect: QRectF) -> None:
        frame, theme, size = self.frame(rect), self.theme, self._counts.size
        inner = frame.rect
        draw_y_axis(painter, frame, theme, self._share_of())
        low, high = self._band(frame)
        painter.fillRect(QRectF(inner.left(), low, inner.width(), high - low), _thin(theme.muted, 50))
        painter.setPen(QColor(theme.line))
        painter.drawLine(QLineF(inner.left(), inner.bottom(), inner.right(), inner.bottom()))
        if self._null < size:
            painter.drawLine(QLineF(frame.x(self._null), inner.top(), frame.x(self._null), inner.bottom()))
        draw_column_labels(
            painter,
            inner,
            labels(size, self._null),
            theme,
            f"expert (line 1/E = {number(1 / size)})",
            self.picked("expert", size),
        )

    def _band(self, frame: Frame) -> tuple[float, float]:
        """Where what chance does begins and ends, in pixels."""
        even, noise = 1 / self._counts.size, self.noise
        return frame.y(min(even + 2 * noise, self._top)), frame.y(max(even - 2 * noise, 0))

    def draw(self, painter: QPainter, rect: QRectF) -> None:
        frame, theme, size = self.frame(rect), self.theme, self._counts.size
        inner, strong = frame.rect, self.picked("expert", size)
        step = inner.width() / size
        gap = min(6.0, step * 0.15)
        for e, q in enumerate(self._bars.tolist()):
            top = frame.y(min(q, self._top))
            bar = QRectF(frame.x(e) + gap, top, step - 2 * gap, inner.bottom() - top)
            if e < self._null:
                painter.fillRect(bar, expert_colour(e, theme))
            else:  # hollow: it computes nothing
                painter.setPen(expert_colour(e, theme))
                painter.drawRect(bar.adjusted(0, 0, -1, -1))
            if e == strong:
                painter.setPen(QColor(theme.text))
                painter.drawRect(bar.adjusted(0, 0, -1, -1))
        pen = QPen(QColor(theme.text))
        pen.setDashPattern([4, 3])
        painter.setPen(pen)
        even = frame.y(1 / size)
        painter.drawLine(QLineF(inner.left(), even, inner.right(), even))
        # opaque: dots that let the ground shine through take eight times as long
        painter.setPen(QPen(mixed(theme.muted, theme.panel, 0.6), 1, Qt.PenStyle.DotLine))
        painter.drawLines([QLineF(inner.left(), y, inner.right(), y) for y in self._band(frame)])

    def footer(self) -> str:
        size, total = self._counts.size, int(self._counts.sum())
        of = "the training batch" if self._training else "the tokens shown"
        summary = self._summary
        expert = self.pointed.get("expert")
        if expert is not None and expert < size:
            q = float(summary.load_share[expert])
            name = label(expert, self._null)
            first = f"expert {name}: q {number(q)}, {int(self._counts[expert])} of {total} assignments  of {of}"
            if self._mass is not None:
                first = f"expert {name}: {number(float(self._mass[expert]))} of combine weights"
        else:
            first = f"{total} assignments of {of}"
        routing = self.routing()
        assert routing is not None
        if self._mass is not None:
            soft = [f"CV of combine shares {number(cv(self._mass))}", "dispatch: even by construction"]
            return "  ".join([first, *soft, *self._kind(routing)])
        words = [
            first,
            *drops_in_words(routing),
            f"CV {number(summary.cv)} (chance {about(cv_floor(total, size, self._k))})",
            f"MaxVio {number(summary.max_violation)} (chance {about(max_violation_floor(total, size, self._k))})",
            f"effective experts {number(summary.effective_experts)} of {size}",
            dead_in_words(summary),
        ]
        return "  ".join([*words, *self._kind(routing)])

    def _kind(self, routing: Routing) -> list[str]:
        """What is unlike a plain choice, and the bias that balances, if there is one."""
        words = [phrase for phrase in kind_in_words(routing) if phrase not in drops_in_words(routing)]
        words = [phrase.removesuffix(" at later tokens") for phrase in words]
        scalars = self.snapshot.scalars if self.snapshot is not None else {}
        if routing.selection_scores_TE is not None and {"bias_low", "bias_high"} <= scalars.keys():
            words.append(f"bias {number(scalars['bias_low'])} to {number(scalars['bias_high'])} in all layers")
        return words

    def hit(self, point: QPointF, rect: QRectF) -> Pointed:
        inner = self.frame(rect).rect
        if not inner.contains(point):
            return {}
        expert = int((point.x() - inner.left()) / inner.width() * self._counts.size)
        return {"expert": min(expert, self._counts.size - 1)}

    def table(self) -> Table:
        head = ["layer", "expert", "assignments", "load_share", "batch"]
        if self.missing():
            return head, []
        self.refresh()
        batch = "training" if self._training else "shown tokens"
        pairs = zip(self._counts.tolist(), self._summary.load_share.tolist(), strict=True)
        rows: list[list[int | float | str]] = [[self.layer, e, count, q, batch] for e, (count, q) in enumerate(pairs)]
        if self._mass is None:
            return head, rows
        return [*head, "combine_share"], [[*row, share] for row, share in zip(rows, self._mass.tolist(), strict=True)]


def dead_in_words(summary: LoadSummary) -> str:
    """How many experts have no work, and how many nearly none; nothing of it where chance could do that."""
    if not summary.can_tell_dead:
        return f"dead experts: {TOO_FEW}"
    nearly = summary.soft_dead_experts - summary.dead_experts
    dead = summary.dead_experts
    if nearly and not dead:
        return f"⚠ {nearly} nearly dead expert{'' if nearly == 1 else 's'}"
    more = f", {nearly} more nearly" if nearly else ""
    return f"{'⚠ ' if dead else ''}{dead or 'no'} dead expert{'' if dead == 1 else 's'}{more}"


def _thin(colour: str, alpha: int) -> QColor:
    out = QColor(colour)
    out.setAlpha(alpha)
    return out
