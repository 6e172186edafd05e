"""Load share of every expert in every layer."""

from collections.abc import Hashable

import numpy as np
from PySide6.QtCore import QLineF, QPointF, QRectF
from PySide6.QtGui import QColor, QImage, QPainter
from PySide6.QtWidgets import QWidget

from moeviz.domain.metrics import (
    churn,
    cv,
    load_share,
    saturation,
    transition_counts,
    transition_information,
    transition_information_bias,
)
from moeviz.domain.routing import RoutingSnapshot
from moeviz.view.colours import sequential
from moeviz.view.panel import NARROW, Panel, Pointed, Table
from moeviz.view.panels.axes import (
    Array,
    SteadyTop,
    draw_column_labels,
    draw_row_labels,
    inside,
    nice_ceiling,
    number,
    share,
)
from moeviz.view.panels.heat import BAR, draw_colour_bar, draw_heat, heat_image, outline
from moeviz.view.panels.load import combine_mass, layer_counts
from moeviz.view.panels.words import first_null, label, labels, signs_in_words
from moeviz.view.theme import Theme, put, width_of


class LayersExperts(Panel):
    name = "layers_experts"
    uses = frozenset({"snapshot", "layer", "expert"})

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(theme, parent)
        self._shares: Array = np.zeros((1, 1))
        self._cv: list[float] = []
        self._training = self._soft = False
        self._null = 1
        self._drawn: object = None
        self._said: tuple[object, list[str]] | None = None
        self._image = QImage()
        self._top, self._steady = 0.0, SteadyTop()

    def subtitle(self) -> str:
        if self._soft:
            return f"{self.when()}, combine weights of the tokens shown"
        return f"{self.when()}, {'training batch' if self._training else 'the tokens shown'}, before drops"

    def prepare(self) -> None:
        key = (self.snapshot, self.theme)
        if key == self._drawn:  # only the selection moved
            return
        assert self.snapshot is not None
        counts = [layer_counts(self.snapshot, i) for i in range(len(self.snapshot.layers))]
        self._training = all(training for _, training in counts)
        widest = max(c.size for c, _ in counts)
        self._shares = np.full((len(counts), widest), np.nan)
        for row, (c, _) in zip(self._shares, counts, strict=True):
            row[: c.size] = load_share(c)
        masses = [combine_mass(routing) for routing in self.snapshot.layers]
        self._soft = all(mass is not None for mass in masses)
        for row, mass in zip(self._shares, masses, strict=True):
            if self._soft and mass is not None:
                row[: mass.size] = mass
        self._null = min(map(first_null, self.snapshot.layers))
        self._cv = [cv(c) for c, _ in counts]
        top = nice_ceiling(float(np.nanmax(self._shares, initial=0.0)))
        self._top = self._steady.move(self._shares.shape, min(1.0, max(2 / widest, top)))
        self._image = heat_image(self._shares, 0.0, self._top, sequential(self.theme), self.theme.panel)
        self._drawn = key

    def lines_of_words(self, width: float) -> int:
        routing = self.routing()
        return (3 if width >= NARROW else 5) + bool(routing is not None and signs_in_words(routing))

    def heat_rect(self, rect: QRectF) -> QRectF:
        return inside(rect, right=BAR)

    def ground(self) -> Hashable:
        return self._shares.shape, self._null, self._top, self.picked("expert", self._shares.shape[1])

    def draw_ground(self, painter: QPainter, rect: QRectF) -> None:
        heat, theme = self.heat_rect(rect), self.theme
        layers, experts = self._shares.shape
        draw_colour_bar(painter, heat, sequential(theme), 0.0, self._top, theme, "load q", mark=1 / experts)
        draw_row_labels(painter, heat, [str(i) for i in range(layers)], theme, "layer")
        draw_column_labels(painter, heat, labels(experts, self._null), theme, "expert", self.picked("expert", experts))

    def draw(self, painter: QPainter, rect: QRectF) -> None:
        heat, theme, strong = self.heat_rect(rect), self.theme, self.picked("expert", self._shares.shape[1])
        layers, experts = self._shares.shape
        draw_heat(painter, heat, self._image)
        high, wide = heat.height() / layers, heat.width() / experts
        if wide >= width_of("0.00") + 6 and high >= 16:
            table = sequential(theme)
            for i, row in enumerate(self._shares.tolist()):
                for e, q in enumerate(row):
                    if q == q:
                        blue, green, red, _ = table[min(255, int(q / self._top * 255.999))].tolist()
                        light = 0.3 * red + 0.59 * green + 0.11 * blue > 120
                        painter.setPen(QColor("#10141a" if light else "#f2f5f9"))
                        put(painter, heat.left() + (e + 0.5) * wide - 11, heat.top() + (i + 0.5) * high + 4, share(q))
        if self._null < experts:
            x = heat.left() + self._null * wide
            painter.setPen(QColor(theme.text))
            painter.drawLine(QLineF(x, heat.top(), x, heat.bottom()))
        row = QRectF(heat.left(), heat.top() + self.layer * high, heat.width(), high)
        outline(painter, row.adjusted(0, 0, -1, -1), theme)
        if strong is not None:
            at = self.pointed.get("layer", self.layer)
            cell = QRectF(heat.left() + strong * wide, heat.top() + at * high, wide, high)
            outline(painter, cell.adjusted(1, 1, -2, -2), theme)

    def footer(self) -> str:
        of = "the training batch" if self._training else "the tokens shown"
        layer, expert = self.pointed.get("layer"), self.pointed.get("expert")
        layers, experts = self._shares.shape
        if layer is not None and expert is not None and layer < layers and expert < experts:
            q = number(float(self._shares[layer, expert]))
            first = f"layer {layer} × expert {label(expert, self._null)}: q {q}  q of {of}"
            if self._soft:
                first = f"layer {layer} × expert {expert}: {q} of weights"
        elif self._soft:
            first = "share of combine weights  tokens shown  the load is even"
        elif np.isfinite(self._cv).any():
            worst = int(np.nanargmax(self._cv))
            first = f"load share q of {of}  least even: layer {worst}, CV {number(self._cv[worst])}"
        else:
            first = f"nothing was routed in {of}"
        return "  ".join([first, *self.layer_in_words(layer if layer is not None and layer < layers else self.layer)])

    def layer_in_words(self, layer: int) -> list[str]:
        """How one layer's choices for the tokens shown have moved, and how far they tell the next layer's."""
        key = (self.snapshot, layer)
        if self._said is None or self._said[0] != key:  # the mouse moves within a layer more often than between two
            assert self.snapshot is not None
            film = self.history.snapshots if self.history is not None else []
            words = [*change_in_words(self.snapshot, film, layer), *transition_in_words(self.snapshot, layer)]
            if self._soft:  # every token has every expert: nothing moves, nothing tells
                words = []
            if words:
                words = [f"layer {layer}, tokens shown:", *words]
            self._said = key, [*words, *signs_in_words(self.snapshot.layers[layer])]
        return self._said[1]

    def hit(self, point: QPointF, rect: QRectF) -> Pointed:
        heat = self.heat_rect(rect)
        layers, experts = self._shares.shape
        if not heat.contains(point):
            return {}
        layer = min(int((point.y() - heat.top()) / heat.height() * layers), layers - 1)
        expert = min(int((point.x() - heat.left()) / heat.width() * experts), experts - 1)
        return {"layer": layer, "expert": expert} if np.isfinite(self._shares[layer, expert]) else {"layer": layer}

    def table(self) -> Table:
        if self.missing():
            return ["layer", "name"], []
        self.refresh()
        assert self.snapshot is not None
        head = ["layer", "name"] + [f"expert_{e}" for e in range(self._shares.shape[1])]
        rows: list[list[int | float | str]] = [
            [i, routing.name, *("" if q != q else q for q in shares)]
            for i, (routing, shares) in enumerate(zip(self.snapshot.layers, self._shares.tolist(), strict=True))
        ]
        return head, rows


def change_in_words(shown: RoutingSnapshot, film: list[RoutingSnapshot], layer: int) -> list[str]:
    """Churn since the snapshot before the shown one, and what is settled already of the newest one's choices."""
    ids, words = shown.layers[layer].expert_ids_TK, []
    earlier = (other for other in reversed(film) if other.step < shown.step and comparable(shown, other, layer))
    before, newest = next(earlier, None), film[-1] if film else None
    if before is not None:
        words += [f"churn {number(churn(before.layers[layer].expert_ids_TK, ids))}", f"since {before.step:,}"]
    if newest is not None and newest.step > shown.step and comparable(shown, newest, layer):
        settled = number(saturation(ids, newest.layers[layer].expert_ids_TK))
        words.append(f"saturation {settled} of step {newest.step:,}")
    return words


def transition_in_words(shown: RoutingSnapshot, layer: int) -> list[str]:
    """How far this layer's first choice tells the next one's, beyond chance; as the flow between layers says it."""
    here, after = shown.layers[layer], shown.layers[layer + 1] if layer + 1 < len(shown.layers) else None
    if after is None or after.num_tokens != here.num_tokens:
        return []
    first, next_first = here.expert_ids_TK[:, :1], after.expert_ids_TK[:, :1]
    counts = transition_counts(first, next_first, here.num_experts, after.num_experts)
    told = transition_information(counts) - transition_information_bias(counts, 1, 1)
    return [f"tells {number(max(0.0, told))} of layer {layer + 1}"]


def comparable(a: RoutingSnapshot, b: RoutingSnapshot, layer: int) -> bool:
    """Whether both routed the same tokens to the same experts in this layer."""
    if len(a.layers) != len(b.layers) or a.tokens != b.tokens:
        return False
    mine, others = a.layers[layer], b.layers[layer]
    return (mine.num_tokens, mine.num_experts) == (others.num_tokens, others.num_experts)
