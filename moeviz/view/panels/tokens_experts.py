"""Tokens × experts of one layer, as gate weights, router probabilities, router scores or the scores that chose."""

from collections.abc import Hashable
from math import floor

import numpy as np
from PySide6.QtCore import QLineF, QPointF, QRectF, Qt
from PySide6.QtGui import QColor, QImage, QPainter
from PySide6.QtWidgets import QComboBox, QWidget

from moeviz.domain.routing import Floats, Routing, visible
from moeviz.view.colours import Table as Colours
from moeviz.view.colours import diverging, expert_colour, sequential
from moeviz.view.panel import Panel, Pointed, Table
from moeviz.view.panels.axes import draw_column_labels, draw_row_labels, inside, nice_ceiling, number
from moeviz.view.panels.heat import BAR, draw_colour_bar, draw_heat, heat_image, outline
from moeviz.view.panels.words import first_null, label, labels, signs_in_words
from moeviz.view.theme import Theme, width_of

KINDS = {
    "gate weights": "gate weights",
    "probabilities": "router probabilities",
    "scores": "router scores",
    "selection": "selection scores",
}
ONE_OF = {
    "gate weights": "gate weight",
    "router probabilities": "router probability",
    "router scores": "router score",
    "selection scores": "selection score",
}
TITLES = {"gate weights": "gate g", "probabilities": "prob. p", "scores": "score z", "selection": "score"}
ROUND = 20  # selection scores lie close together: their scale ends at multiples of 1/20


def gate_matrix(routing: Routing) -> Floats | None:
    """Gate weights (T, E), zero where an expert was not chosen or the choice was dropped."""
    if routing.gate_weights_TK is None:
        return None
    out = np.zeros((routing.num_tokens, routing.num_experts), dtype=np.float32)
    rows, columns = np.nonzero(routing.expert_ids_TK >= 0)
    out[rows, routing.expert_ids_TK[rows, columns]] = routing.gate_weights_TK[rows, columns]
    return out


class TokensExperts(Panel):
    name = "tokens_experts"
    uses = frozenset({"snapshot", "layer", "token", "expert"})

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(theme, parent)
        self.kind = QComboBox()
        self.kind.addItems(list(KINDS))
        self.kind.setAccessibleName("What the cells show")
        self.kind.currentIndexChanged.connect(lambda _: self.invalidate())
        self.header.insertWidget(1, self.kind)
        self._values: Floats = np.zeros((0, 0), dtype=np.float32)
        self._drawn: object = None
        self._image = QImage()
        self._range = (0.0, 1.0)
        self._dropped: list[tuple[int, int]] = []  # token and expert
        self._roomy = True  # the cells that were drawn can have an outline

    def subtitle(self) -> str:
        return f"{self.where()}, {KINDS[self.kind.currentText()]}"

    def values(self) -> Floats | None:
        """The chosen kind (T, E) of the selected layer, or None where the data lack it."""
        routing = self.routing()
        if routing is None:
            return None
        return self._kinds(routing)[self.kind.currentText()]

    @staticmethod
    def _kinds(routing: Routing) -> dict[str, Floats | None]:
        return {
            "gate weights": gate_matrix(routing),
            "probabilities": routing.router_probs_TE,
            "scores": routing.router_logits_TE,
            "selection": routing.selection_scores_TE,
        }

    def lines_of_words(self, width: float) -> int:
        """One more for a layer that is not a plain choice of k experts."""
        routing = self.routing()
        return 1 + bool(routing is not None and (signs_in_words(routing) or routing.dropped_TK is not None))

    def missing(self) -> str:
        if super().missing():
            return super().missing()
        routing = self.routing()
        assert routing is not None
        have, kind = self._kinds(routing), self.kind.currentText()
        if have[kind] is not None:
            return ""
        if kind == "selection" and routing.router_probs_TE is not None:
            return "This layer chose by its probabilities: it has no selection scores apart from them."
        others = [name for name, values in have.items() if values is not None]
        return f"This data has no {KINDS[kind]}." + (f" It has {' and '.join(others)}." if others else "")

    def prepare(self) -> None:
        key = (self.snapshot, self.layer, self.kind.currentText(), self.theme)
        if key == self._drawn:  # only the selection moved
            return
        values = self.values()
        assert values is not None
        self._drawn, self._values = key, values
        kind, known = self.kind.currentText(), values[np.isfinite(values)]
        top = nice_ceiling(float(np.abs(known).max(initial=0.0)))
        if kind == "scores":
            self._range = (-top, top)
        elif kind == "selection":
            low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
            self._range = (floor(low * ROUND) / ROUND, (floor(high * ROUND) + 1) / ROUND)
        else:
            # gate weights keep one scale, so that layers and steps compare; probabilities of many experts are small
            self._range = (0.0, max(1.0, top) if kind == "gate weights" else min(1.0, top))
        self._image = heat_image(values.T, *self._range, self._colours(), self.theme.line)
        routing = self.routing()
        assert routing is not None
        self._dropped = []
        if routing.dropped_TK is not None and kind == "gate weights":
            tokens, places = np.nonzero(routing.dropped_TK & (routing.expert_ids_TK >= 0))
            self._dropped = list(zip(tokens.tolist(), routing.expert_ids_TK[tokens, places].tolist(), strict=True))

    def _colours(self) -> Colours:
        return diverging(self.theme) if self.kind.currentText() == "scores" else sequential(self.theme)

    def heat_rect(self, rect: QRectF) -> QRectF:
        return inside(rect, right=BAR)

    def ground(self) -> Hashable:
        assert self.snapshot is not None
        texts = self.snapshot.tokens
        return (
            self._values.shape,
            first_null(self.routing()),
            self._range,
            self.kind.currentText(),
            None if texts is None else tuple(texts),
            self.picked("token", self._values.shape[0]),
        )

    def draw_ground(self, painter: QPainter, rect: QRectF) -> None:
        heat, null = self.heat_rect(rect), first_null(self.routing())
        tokens, experts = self._values.shape
        draw_colour_bar(painter, heat, self._colours(), *self._range, self.theme, TITLES[self.kind.currentText()])
        high = heat.height() / experts
        for e in range(experts):  # the colour that this expert has everywhere; hollow where it computes nothing
            patch = QRectF(heat.left() - 5, heat.top() + e * high, 3, high)
            painter.fillRect(patch, expert_colour(e, self.theme))
            if e >= null:
                painter.fillRect(patch.adjusted(1, 1, -1, -1), QColor(self.theme.panel))
        draw_row_labels(painter, heat, labels(experts, null), self.theme, "expert")
        texts, name = self._labels(heat.width() / tokens)
        draw_column_labels(painter, heat, texts, self.theme, name, self.picked("token", self._values.shape[0]))

    def draw(self, painter: QPainter, rect: QRectF) -> None:
        heat, null = self.heat_rect(rect), first_null(self.routing())
        tokens, experts = self._values.shape
        draw_heat(painter, heat, self._image)
        high, wide = heat.height() / experts, heat.width() / tokens
        if null < experts:
            painter.setPen(QColor(self.theme.text))
            painter.drawLine(QLineF(heat.left(), heat.top() + null * high, heat.right(), heat.top() + null * high))
        self._roomy = min(wide, high) > 5
        if self._dropped and not self._roomy:  # an outline would fill such a cell
            for t, e in self._dropped:
                low = heat.top() + (e + 1) * high
                painter.fillRect(QRectF(heat.left() + t * wide, low - 2, max(wide, 1), 2), QColor(self.theme.warn))
        elif self._dropped:  # a hollow cell: chosen, and not carried out
            painter.setPen(QColor(self.theme.warn))
            painter.setBrush(Qt.BrushStyle.NoBrush)
            painter.drawRects(
                [
                    QRectF(heat.left() + t * wide + 1, heat.top() + e * high + 1, wide - 3, high - 3)
                    for t, e in self._dropped
                ]
            )
        strong = self.picked("token", self._values.shape[0])
        expert = self.pointed.get("expert", self.selection.expert)
        if strong is not None:
            column = QRectF(heat.left() + strong * wide, heat.top(), max(wide, 3), heat.height())
            outline(painter, column.adjusted(0, 0, -1, -1), self.theme)
        if expert is not None and expert < experts:
            row = QRectF(heat.left(), heat.top() + expert * high, heat.width(), high)
            outline(painter, row.adjusted(0, 0, -1, -1), self.theme)

    def _labels(self, wide: float) -> tuple[list[str], str]:
        """The tokens themselves where they fit, else their numbers."""
        assert self.snapshot is not None
        tokens = self.snapshot.tokens
        if tokens is not None:
            texts = [visible(token) for token in tokens]
            if max((width_of(text) for text in set(texts)), default=0) + 4 < wide:
                return texts, "token"
        return [str(t) for t in range(self._values.shape[0])], "token number"

    def footer(self) -> str:
        token = self.pointed.get("token", self.selection.token)
        expert = self.pointed.get("expert", self.selection.expert)
        tokens, experts = self._values.shape
        kind, routing = KINDS[self.kind.currentText()], self.routing()
        assert routing is not None
        outlined = [f"{'outlined' if self._roomy else 'underlined'}: dropped"] if self._dropped else []
        of = [*outlined, *signs_in_words(routing), *(["soft: combine weights"] if routing.soft else [])]
        if token is None or token >= tokens:
            return "  ".join([f"{kind}, {tokens} tokens × {experts} expert{'' if experts == 1 else 's'}", *of])
        assert self.snapshot is not None
        text = f" '{visible(self.snapshot.tokens[token])}'" if self.snapshot.tokens is not None else ""
        row = self._values[token]
        null = first_null(routing)
        if expert is None or expert >= experts:
            best = int(np.nanargmax(row)) if np.isfinite(row).any() else 0
            highest = f"highest of the {kind} {number(float(row[best]))} at expert {label(best, null)}"
            return "  ".join([f"token {token}{text}: {highest}", *of])
        lost = ", dropped" if (token, expert) in self._dropped else ""
        value = "group not kept" if row[expert] == -np.inf else number(float(row[expert]))
        return "  ".join([f"token {token}{text} × expert {label(expert, null)}: {ONE_OF[kind]} {value}{lost}", *of])

    def hit(self, point: QPointF, rect: QRectF) -> Pointed:
        heat = self.heat_rect(rect)
        tokens, experts = self._values.shape
        if not heat.contains(point):
            return {}
        token = int((point.x() - heat.left()) / heat.width() * tokens)
        expert = int((point.y() - heat.top()) / heat.height() * experts)
        return {"token": min(token, tokens - 1), "expert": min(expert, experts - 1)}

    def table(self) -> Table:
        values = self.values()
        if self.missing() or values is None:
            return ["token"], []
        assert self.snapshot is not None
        texts = self.snapshot.tokens
        head = ["token", "text"] if texts is not None else ["token"]
        start: list[list[int | float | str]] = [
            [t, texts[t]] if texts is not None else [t] for t in range(values.shape[0])
        ]
        rows = [left + row for left, row in zip(start, values.tolist(), strict=True)]
        return head + [f"expert_{e}" for e in range(values.shape[1])], rows
