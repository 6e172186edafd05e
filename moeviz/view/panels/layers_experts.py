"""Load share of every expert in every layer."""

import numpy as np
from PySide6.QtCore import QPointF, QRectF
from PySide6.QtGui import QColor, QImage, QPainter
from PySide6.QtWidgets import QWidget

from moeviz.domain.metrics import cv, load_share
from moeviz.view.colours import sequential
from moeviz.view.panel import Panel, Pointed, Table
from moeviz.view.panels.axes import Array, draw_column_labels, draw_row_labels, inside, nice_ceiling, number, share
from moeviz.view.panels.heat import BAR, draw_colour_bar, draw_heat, heat_image, outline
from moeviz.view.panels.load import layer_counts
from moeviz.view.theme import Theme, put, width_of


class LayersExperts(Panel):
    name = "layers_experts"
    uses = frozenset({"snapshot", "layer", "expert"})

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(theme, parent)
        self._shares: Array = np.zeros((1, 1))
        self._cv: list[float] = []
        self._training = False
        self._drawn: object = None
        self._image = QImage()
        self._top = 1.0

    def subtitle(self) -> str:
        return "training batch" if self._training else "the tokens shown"

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
        self._cv = [cv(c) for c, _ in counts]
        self._top = min(1.0, max(2 / widest, nice_ceiling(float(np.nanmax(self._shares, initial=0.0)))))
        self._image = heat_image(self._shares, 0.0, self._top, sequential(self.theme), self.theme.panel)
        self._drawn = key

    def heat_rect(self, rect: QRectF) -> QRectF:
        return inside(rect, right=BAR)

    def draw(self, painter: QPainter, rect: QRectF) -> None:
        heat, theme = self.heat_rect(rect), self.theme
        layers, experts = self._shares.shape
        draw_heat(painter, heat, self._image)
        draw_colour_bar(painter, heat, sequential(theme), 0.0, self._top, theme, mark=1 / experts)
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
        draw_row_labels(painter, heat, [str(i) for i in range(layers)], theme, "layer")
        expert = self.pointed.get("expert", self.selection.expert)
        strong = expert if expert is not None and expert < experts else None
        draw_column_labels(painter, heat, [str(e) for e in range(experts)], theme, "expert", strong)
        row = QRectF(heat.left(), heat.top() + self.layer * high, heat.width(), high)
        outline(painter, row.adjusted(0, 0, -1, -1), theme)
        if strong is not None:
            at = self.pointed.get("layer", self.layer)
            cell = QRectF(heat.left() + strong * wide, heat.top() + at * high, wide, high)
            outline(painter, cell.adjusted(1, 1, -2, -2), theme)

    def footer(self) -> str:
        of = "the training batch" if self._training else "the tokens shown, no training batch"
        layer, expert = self.pointed.get("layer"), self.pointed.get("expert")
        layers, experts = self._shares.shape
        if layer is not None and expert is not None and layer < layers and expert < experts:
            return f"layer {layer} × expert {expert}: load share q {number(float(self._shares[layer, expert]))}  {of}"
        worst = int(np.argmax(self._cv))
        return f"load share q of {of}  least even: layer {worst}, CV {number(self._cv[worst])}"

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
