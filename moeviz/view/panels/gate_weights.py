"""The router's answer for one token: every expert's probability, the chosen ones marked with their gate weight."""

from collections.abc import Hashable, Mapping
from math import isfinite

import numpy as np
from PySide6.QtCore import QLineF, QPointF, QRectF
from PySide6.QtGui import QColor, QPainter
from PySide6.QtWidgets import QWidget

from moeviz.domain.metrics import (
    expert_counts,
    load_share,
    mean_probability,
    selection_frequency,
    token_effective_experts,
)
from moeviz.domain.routing import Routing, visible
from moeviz.view.colours import expert_colour, mixed
from moeviz.view.panel import NARROW, Panel, Pointed, Table
from moeviz.view.panels.axes import (
    Frame,
    SteadyTop,
    draw_column_labels,
    draw_y_axis,
    inside,
    nice_ceiling,
    number,
    share,
)
from moeviz.view.panels.words import first_null, kept, label, labels, signs_in_words
from moeviz.view.theme import Theme, put, width_of

UNKNOWN = float("nan")
MOST_NAMED = 2  # of the chosen experts, in words


class GateWeights(Panel):
    name = "gate_weights"
    uses = frozenset({"snapshot", "layer", "token", "expert"})

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(theme, parent)
        self._heights = np.zeros(0)
        self._chosen: dict[int, float] = {}
        self._dropped: set[int] = set()
        self._top, self._steady = 0.0, SteadyTop()

    @property
    def token(self) -> int | None:
        """The selected token, or the last one if none is selected."""
        routing = self.routing()
        if routing is None:
            return None
        token = self.selection.token
        return token if token is not None and token < routing.num_tokens else routing.num_tokens - 1

    def missing(self) -> str:
        if super().missing():
            return super().missing()
        routing = self.routing()
        assert routing is not None
        if routing.router_probs_TE is None and routing.gate_weights_TK is None:
            return "This data has neither router probabilities nor gate weights."
        return ""

    def prepare(self) -> None:
        routing, token = self.routing(), self.token
        assert routing is not None
        assert token is not None
        self._chosen = chosen_weights(routing, token)
        self._dropped = set(self._chosen) - set(routing.expert_ids_TK[token, kept(routing)[token]].tolist())
        if routing.router_probs_TE is not None:
            self._heights = routing.router_probs_TE[token].astype(float)
        else:
            self._heights = np.zeros(routing.num_experts)
            for expert, weight in self._chosen.items():
                self._heights[expert] = weight
        top = max(nice_ceiling(float(np.nanmax(self._heights, initial=0.0)) * 1.12), 0.1)
        self._top = self._steady.move((self.layer, token, self._heights.size), top)

    def lines_of_words(self, width: float) -> int:
        routing = self.routing()
        return (3 if width >= NARROW else 5) + bool(routing is not None and _legend(routing))

    def subtitle(self) -> str:
        return f"{self.where()}, {self._who()}"

    def _who(self) -> str:
        token = self.token
        if token is None or self.snapshot is None:
            return ""
        texts = self.snapshot.tokens
        return f"token {token}" + (f" '{visible(texts[token])}'" if texts is not None else "")

    def frame(self, rect: QRectF) -> Frame:
        return Frame(inside(rect), 0, max(self._heights.size, 1), 0, self._top)

    def ground(self) -> Hashable:
        routing = self.routing()
        assert routing is not None
        return (
            self._heights.size,
            first_null(routing),
            self._top,
            routing.router_probs_TE is None,
            self.picked("expert", self._heights.size),
        )

    def draw_ground(self, painter: QPainter, rect: QRectF) -> None:
        routing, frame = self.routing(), self.frame(rect)
        assert routing is not None
        draw_y_axis(painter, frame, self.theme, "gate weight g" if routing.router_probs_TE is None else "probability p")
        painter.setPen(QColor(self.theme.line))
        painter.drawLine(QLineF(frame.rect.left(), frame.rect.bottom(), frame.rect.right(), frame.rect.bottom()))
        names = labels(self._heights.size, first_null(routing))
        draw_column_labels(painter, frame.rect, names, self.theme, "expert", self.picked("expert", self._heights.size))

    def draw(self, painter: QPainter, rect: QRectF) -> None:
        frame, theme = self.frame(rect), self.theme
        null = first_null(self.routing())
        step = frame.rect.width() / self._heights.size
        gap = min(6.0, step * 0.15)
        for e, height in enumerate(self._heights.tolist()):
            if height == height:
                bar = QRectF(
                    frame.x(e) + gap, frame.y(height), step - 2 * gap, height / self._top * frame.rect.height()
                )
                colour = expert_colour(e, theme)
                if e in self._chosen and e not in self._dropped and e < null:
                    painter.fillRect(bar, colour)
                    continue
                painter.fillRect(bar, mixed(colour.name(), theme.panel, 0.25))
                if e in self._chosen:  # hollow: dropped, or an expert that computes nothing
                    painter.setPen(colour)
                    painter.drawRect(bar.adjusted(0, 0, -1, -1))
        painter.setPen(QColor(theme.text))
        taken: list[QRectF] = []
        for e in sorted(self._chosen, key=lambda e: -self._heights[e]):  # the highest first, if not all have room
            weight, tick = self._chosen[e], "✗" if e in self._dropped else "✓"
            known = f"{'✗ ' if e in self._dropped else ''}g {share(weight)}"
            for text in (tick,) if weight != weight else (known, tick):
                wide = width_of(text)
                spot = QRectF(frame.x(e + 0.5) - wide / 2, frame.y(float(self._heights[e])) - 15, wide, 12)
                roomy = wide <= step - 2 or len(self._chosen) == 1 or text == tick
                if roomy and not any(spot.intersects(other) for other in taken):
                    put(painter, spot.left(), spot.bottom() - 1, text)
                    taken.append(spot)
                    break

    def footer(self) -> str:
        routing, token = self.routing(), self.token
        if routing is None or token is None:
            return ""
        expert = self.pointed.get("expert")
        if expert is not None and expert < self._heights.size:
            symbol = "p" if routing.router_probs_TE is not None else "g"
            words = f"expert {label(expert, first_null(routing))}: {symbol} {number(float(self._heights[expert]))}"
            weight = self._chosen.get(expert)
            state = "not chosen" if weight is None else f"chosen, gate weight {number(weight)}"
            if expert in self._dropped:
                state = "chosen, dropped"
            if routing.selection_scores_TE is not None and self.token is not None:
                state += f"  selection score {number(float(routing.selection_scores_TE[self.token, expert]))}"
            return f"{self._who()}  {words}, {state}  {expert_in_words(routing, expert)}"
        who = self._who() + ("" if self.selection.token is not None else " (the last)")
        gates = chosen_in_words(self._chosen, first_null(routing)) if routing.router_probs_TE is not None else []
        hold, hesitates = confidence_in_words(routing, token)
        margin = margin_in_words(routing, token)
        return "  ".join(filter(None, [who, hold, *gates, margin, hesitates, *_legend(routing)]))

    def hit(self, point: QPointF, rect: QRectF) -> Pointed:
        inner = self.frame(rect).rect
        if not inner.contains(point):
            return {}
        expert = int((point.x() - inner.left()) / inner.width() * self._heights.size)
        return {"expert": min(expert, self._heights.size - 1)}

    def table(self) -> Table:
        head = ["token", "expert", "router_probability", "chosen", "gate_weight"]
        routing, token = self.routing(), self.token
        if self.missing() or routing is None or token is None:
            return head, []
        self.refresh()
        chosen, probs, scores = chosen_weights(routing, token), routing.router_probs_TE, routing.selection_scores_TE
        head += ["dropped"] * (routing.dropped_TK is not None) + ["selection_score"] * (scores is not None)
        rows: list[list[int | float | str]] = []
        for e in range(routing.num_experts):
            weight = chosen.get(e, UNKNOWN)
            rows.append(
                [
                    token,
                    e,
                    "" if probs is None else float(probs[token, e]),
                    int(e in chosen),
                    "" if weight != weight else weight,
                    *([int(e in self._dropped)] if routing.dropped_TK is not None else []),
                    *([float(scores[token, e])] if scores is not None else []),
                ]
            )
        return head, rows


def _legend(routing: Routing) -> list[str]:
    """What a reader of the bars must know of a layer that is not a plain choice of experts that compute."""
    soft = ["soft: weights are shares in mixtures"] if routing.soft else []
    return [*soft, *signs_in_words(routing), *(["✗ dropped"] if routing.dropped_TK is not None else [])]


def chosen_weights(routing: Routing, token: int) -> dict[int, float]:
    """Gate weight of each chosen expert, best first; NaN where weights are unknown."""
    ids = routing.expert_ids_TK[token].tolist()
    weights = [UNKNOWN] * len(ids) if routing.gate_weights_TK is None else routing.gate_weights_TK[token].tolist()
    return {e: w for e, w in zip(ids, weights, strict=True) if e >= 0}


def chosen_in_words(chosen: Mapping[int, float], null: int) -> list[str]:
    """The first gate weights, beside bars of another quantity."""
    known = [f"{share(g)} at {label(e, null)}" for e, g in chosen.items() if g == g]
    more = [f"{len(known) - MOST_NAMED} more"] if len(known) > MOST_NAMED else []
    return [f"bars: p, g: {', '.join([*known[:MOST_NAMED], *more])}"] if known else []


def margin_in_words(routing: Routing, token: int) -> str:
    """How close the choice was: the smallest chosen score over the largest one not chosen, of the scores that the
    choice was made by.

    Negative where something else decided than these: noise, or experts that choose their tokens.
    """
    by = routing.selection_scores_TE
    if routing.router_probs_TE is None and by is None:
        return "bars are gate weights: this data has no router probabilities"
    every = routing.router_probs_TE if by is None else by
    assert every is not None
    probs, null = every[token].tolist(), first_null(routing)
    chosen = [e for e in routing.expert_ids_TK[token].tolist() if e >= 0]
    left = [e for e in range(routing.num_experts) if e not in chosen and isfinite(probs[e])]
    if not chosen:
        return "no expert was chosen"
    if not left:
        return "every expert was chosen"
    last, first_out = min(chosen, key=lambda e: probs[e]), max(left, key=lambda e: probs[e])
    if by is None and routing.router_logits_TE is None and probs[last] == 1:
        return f"p is 1 at expert {label(last, null)}: no other could be chosen"
    margin = number(probs[last] - probs[first_out])  # as metrics.boundary_margin has it for all tokens
    if by is not None:
        return f"selection margin {margin}: {label(last, null)} over {label(first_out, null)}"
    return f"margin {margin}: {label(last, null)} over {label(first_out, null)}"


def confidence_in_words(routing: Routing, token: int) -> tuple[str, str]:
    """How much probability the chosen experts hold, and between how many experts the router hesitates; empty where that
    is not known."""
    if routing.router_probs_TE is None:
        return "", ""
    probs = routing.router_probs_TE[token].tolist()
    held = sum(probs[e] for e in routing.expert_ids_TK[token].tolist() if e >= 0)
    hesitates = number(float(token_effective_experts(routing.router_probs_TE[token : token + 1])[0]))
    return f"chosen hold Σp {number(held)}", f"hesitates: {hesitates} of {len(probs)}"


def expert_in_words(routing: Routing, expert: int) -> str:
    """One expert over all tokens shown, before any drop."""
    counts = expert_counts(routing)
    of = [
        f"q {number(float(load_share(counts)[expert]))}",
        f"f {number(float(selection_frequency(counts, routing.num_tokens)[expert]))}",
    ]
    words = f"of all {routing.num_tokens} tokens: {', '.join(of)}"
    if routing.router_probs_TE is not None:
        words += f"  mean P {number(float(mean_probability(routing.router_probs_TE)[expert]))}"
    return words
