"""Where tokens go from layer to layer: first choices as ribbons between the experts of successive layers."""

from itertools import pairwise

import numpy as np
from PySide6.QtCore import QPointF, QRectF, Qt
from PySide6.QtGui import QColor, QPainter, QPainterPath
from PySide6.QtWidgets import QWidget

from moeviz.domain.metrics import transition_information, transition_information_bias, transitions
from moeviz.domain.metrics.arrays import first_choice
from moeviz.domain.routing import Ints, Routing
from moeviz.view.colours import expert_colour, readable_on
from moeviz.view.panel import NARROW, Pointed, Table
from moeviz.view.panels.axes import number
from moeviz.view.panels.sampled import Sampled
from moeviz.view.theme import Theme, put, width_of

NODE, GAP, LABELS = 18.0, 2.0, 18.0  # px: width of an expert, room between two, room below
WIDEST, MOST = 3, 64  # ribbons for each expert, and in all, between two layers
PLAIN, STRONG, WEAK = 95, 210, 36  # alpha of 255

Ribbon = tuple[int, int, int]  # layer, expert, next layer's expert


class Flow(Sampled):
    name = "flow"

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(theme, parent)
        self._loads: list[Ints] = []  # first choices (E,) of each layer
        self._counts: list[Ints] = []  # (E, E') between layers
        self._widest: list[Ribbon] = []
        self._laid: tuple[QRectF, object] | None = None
        self._nodes: list[list[QRectF]] = []
        self._offsets: list[tuple[Ints, Ints]] = []
        self._paths: dict[Ribbon, QPainterPath] = {}

    def missing(self) -> str:
        if super().missing():
            return super().missing()
        assert self.source is not None
        if len(self.source.layers) < 2:
            return "There is one MoE layer here, so nothing flows to a next one."
        if len({routing.num_tokens for routing in self.source.layers}) > 1:
            return "The layers of this data hold different numbers of tokens, so they cannot be followed."
        return ""

    def measure(self, routing: Routing) -> None:
        assert self.source is not None
        first = [first_choice(r.expert_ids_TK) for r in self.source.layers]
        sizes = [r.num_experts for r in self.source.layers]
        self._loads = [np.bincount(ids[ids >= 0], minlength=e) for ids, e in zip(first, sizes, strict=True)]
        self._counts = []
        for (here, after), (experts, next_experts) in zip(pairwise(first), pairwise(sizes), strict=True):
            known = (here >= 0) & (after >= 0)
            cells = here[known] * next_experts + after[known]
            self._counts.append(np.bincount(cells, minlength=experts * next_experts).reshape(experts, next_experts))
        self._widest, self._laid = [], None
        for layer, counts in enumerate(self._counts):
            order = np.argsort(-counts, axis=None, kind="stable")[: min(WIDEST * max(counts.shape), MOST)]
            widest = zip(*np.unravel_index(order, counts.shape), strict=True)
            self._widest += [(layer, int(i), int(j)) for i, j in widest if counts[i, j]]

    def subtitle(self) -> str:
        return f"{self.when()}, first choices, {self.sample()}"

    # ---- where things lie
    def lay(self, rect: QRectF) -> None:
        """Experts as stacked bars, as high as their share of first choices; ribbons leave and arrive in their order."""
        if self._laid == (rect, self._measured):
            return
        self._laid = rect, self._measured
        inner = rect.adjusted(0, 2, 0, -LABELS)
        step = (inner.width() - NODE) / (len(self._loads) - 1)
        self._nodes, self._paths = [], {}
        for layer, load in enumerate(self._loads):
            unit = (inner.height() - GAP * (load.size - 1)) / max(int(load.sum()), 1)
            tops = inner.top() + np.concatenate([[0], np.cumsum(load * unit + GAP)[:-1]])
            left = inner.left() + layer * step
            self._nodes.append(
                [QRectF(left, y, NODE, c * unit) for y, c in zip(tops.tolist(), load.tolist(), strict=True)]
            )
        self._offsets = [(_before(counts), _before(counts.T).T) for counts in self._counts]

    def path(self, ribbon: Ribbon) -> QPainterPath:
        """Made when first asked for: of all ribbons few are ever drawn."""
        if ribbon not in self._paths:
            layer, i, j = ribbon
            counts, (out, into) = self._counts[layer], self._offsets[layer]
            a, b, n = self._nodes[layer][i], self._nodes[layer + 1][j], counts[i, j]
            leaving, coming = int(counts[i].sum()), int(counts[:, j].sum())
            self._paths[ribbon] = _ribbon(
                QPointF(a.right(), a.top() + a.height() * out[i, j] / leaving),
                a.height() * n / leaving,
                QPointF(b.left(), b.top() + b.height() * into[i, j] / coming),
                b.height() * n / coming,
            )
        return self._paths[ribbon]

    def draw(self, painter: QPainter, rect: QRectF) -> None:
        self.lay(rect)
        node = self.node()
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(Qt.PenStyle.NoPen)
        strong = self.touching(node) if node is not None else []
        for ribbons, alpha in ((self._widest, PLAIN if node is None else WEAK), (strong, STRONG)):
            for ribbon in ribbons:
                colour = QColor(expert_colour(ribbon[1], self.theme))
                colour.setAlpha(alpha)
                painter.fillPath(self.path(ribbon), colour)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing, False)
        for layer, nodes in enumerate(self._nodes):
            names = self.experts(layer)
            for e, spot in enumerate(nodes):
                colour = expert_colour(e, self.theme)
                painter.fillRect(spot, colour)
                if spot.height() >= 11:
                    painter.setPen(readable_on(colour))
                    put(painter, spot.center().x() - width_of(names[e]) / 2, spot.center().y() + 4, names[e])
            painter.setPen(QColor(self.theme.text if layer == self.layer else self.theme.muted))
            self._label(painter, rect, layer)

    def _label(self, painter: QPainter, rect: QRectF, layer: int) -> None:
        left = self._nodes[layer][0].left()
        step = (rect.width() - NODE) / (len(self._nodes) - 1)
        text = next((t for t in (f"layer {layer}", str(layer)) if width_of(t) + 8 < step), "")
        wide = width_of(text)
        put(painter, min(max(left + NODE / 2 - wide / 2, rect.left()), rect.right() - wide), rect.bottom() - 4, text)

    def node(self) -> tuple[int, int] | None:
        """The expert of a layer that is pointed at or selected."""
        layer, expert = self.pointed.get("layer", self.layer), self.pointed.get("expert", self.selection.expert)
        if expert is None or layer >= len(self._loads) or expert >= self._loads[layer].size:
            return None
        return layer, expert

    def touching(self, node: tuple[int, int]) -> list[Ribbon]:
        """All ribbons of an expert, or the one that is pointed at."""
        layer, e = node
        if "next" in self.pointed:
            return [(layer, e, self.pointed["next"])]
        after = self._counts[layer][e] if layer < len(self._counts) else np.zeros(0)
        before = self._counts[layer - 1][:, e] if layer else np.zeros(0)
        return [
            *((layer - 1, int(i), e) for i in np.flatnonzero(before)),
            *((layer, e, int(j)) for j in np.flatnonzero(after)),
        ]

    def lines_of_words(self, width: float) -> int:
        return 2 if width >= NARROW else 3

    def footer(self) -> str:
        layer, node, after = self.pointed.get("layer", self.layer), self.node(), self.pointed.get("next")
        words = []
        if node is not None and node[0] < len(self._counts):
            at, expert = node
            counts, sent = self._counts[at][expert], transitions(self._counts[at])[expert]
            if after is not None and after < counts.size:
                most = [after]
            else:
                most = [int(j) for j in np.argsort(-counts, kind="stable")[:3] if counts[j]]
            to = ", ".join(f"{100 * sent[j]:.0f} % to {self.experts(at + 1)[j]}" for j in most)
            words.append(f"layer {at} expert {self.experts(at)[expert]} → layer {at + 1}: {to or 'no token'}")
        elif node is not None:
            last, expert = node
            name, tokens = self.experts(last)[expert], self._loads[last][expert]
            words.append(f"layer {last} expert {name}: first choice of {tokens} tokens")
        pair = min(layer, len(self._counts) - 1)
        counts = self._counts[pair]
        told = transition_information(counts) - transition_information_bias(counts, 1, 1)
        words.append(f"first choices: layer {pair} tells {number(max(0.0, told))} of layer {pair + 1}")
        if node is None:
            drawn = sum(int(self._counts[at][i, j]) for at, i, j in self._widest)
            part = drawn / max(sum(int(c.sum()) for c in self._counts), 1)
            words += [f"drawn: the widest ribbons, {100 * part:.0f} % of all", self.whose()]
        return "  ".join(words)

    def hit(self, point: QPointF, rect: QRectF) -> Pointed:
        self.lay(rect)
        for layer, nodes in enumerate(self._nodes):
            for e, spot in enumerate(nodes):
                if spot.adjusted(-1, -1, 1, 1).contains(point) and spot.height() > 0:
                    return {"layer": layer, "expert": e}
        for ribbon in reversed(self._widest):
            if self.path(ribbon).contains(point):
                return dict(zip(("layer", "expert", "next"), ribbon, strict=True))
        return {}

    def table(self) -> Table:
        head = ["layer", "expert", "next_expert", "tokens", "share"]
        if self.missing():
            return head, []
        self.refresh()
        rows: list[list[int | float | str]] = []
        for layer, counts in enumerate(self._counts):
            sent = transitions(counts)
            rows += [
                [layer, int(i), int(j), int(counts[i, j]), float(sent[i, j])]
                for i, j in zip(*np.nonzero(counts), strict=True)
            ]
        return head, rows


def _before(counts_EE: Ints) -> Ints:
    """How many tokens of a row lie before each cell."""
    return np.asarray(np.cumsum(counts_EE, axis=1) - counts_EE)


def _ribbon(start: QPointF, high: float, end: QPointF, end_high: float) -> QPainterPath:
    middle = (start.x() + end.x()) / 2
    path = QPainterPath(start)
    path.cubicTo(QPointF(middle, start.y()), QPointF(middle, end.y()), end)
    path.lineTo(end.x(), end.y() + end_high)
    path.cubicTo(
        QPointF(middle, end.y() + end_high), QPointF(middle, start.y() + high), QPointF(start.x(), start.y() + high)
    )
    path.closeSubpath()
    return path
