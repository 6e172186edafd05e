"""The inputs of a layer's router along their first two principal components, coloured by expert."""

from collections.abc import Sequence
from math import ceil

import numpy as np
import numpy.typing as npt
from PySide6.QtCore import QLineF, QPointF, QRectF
from PySide6.QtGui import QColor, QPainter

from moeviz.domain.routing import Ints, RoutingSnapshot, visible
from moeviz.domain.survey import Inputs
from moeviz.view.colours import expert_colour, mixed
from moeviz.view.panel import Pointed, Table
from moeviz.view.panels.axes import Array, Frame, draw_x_axis, draw_y_axis, inside, nice_ceiling, number
from moeviz.view.panels.dots import STRETCHED, best, dot_size, draw_dots, draw_names, draw_ring, nearest, pixels
from moeviz.view.panels.rail import RAIL, draw_rail, hit_rail
from moeviz.view.panels.words import first_in_words, first_null, label, labels
from moeviz.view.theme import Theme

MOST = 2048  # held-out tokens that are drawn, evenly taken
NAMED = 0.03  # of the tokens: an expert with fewer has no number in the plot
BEFORE = 8  # tokens that are told before one that is pointed at
OTHERS = 0.2  # how strong the dots of the other experts stay where one is selected


class ComponentsPicture:
    """One layer; made once for each survey, layer and expert."""

    def __init__(
        self,
        inputs: Inputs,
        probe: RoutingSnapshot,
        heldout: RoutingSnapshot | None,
        layer: int,
        theme: Theme,
        expert: int | None,
    ) -> None:
        self.inputs, self.probe, self.heldout = inputs, probe, heldout
        self.layer, self.theme, self.expert = layer, theme, expert
        self.routing = probe.layers[layer]
        self.null = first_null(self.routing)
        self.probe_first, self.probe_gate = best(self.routing)
        self.probe_xy = inputs.probe_T2
        self.xy, self.total = np.zeros((0, 2), np.float32), 0
        self.places, self.first, self.gate = np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
        if heldout is not None and inputs.heldout_T2 is not None:
            self.total = len(inputs.heldout_T2)
            # of the tokens that are drawn among all
            self.places = np.arange(0, self.total, max(1, -(-self.total // MOST)))
            self.xy = inputs.heldout_T2[self.places]
            first_T, gate_T = best(heldout.layers[layer])
            self.first, self.gate = first_T[self.places], gate_T[self.places]
        both = np.concatenate([self.xy, self.probe_xy])
        self.reach = [_reach(both[:, i]) for i in range(2)]
        self.middles = _middles(both, np.concatenate([self.first, self.probe_first]), self.routing.num_experts)

    def frame(self, rect: QRectF) -> Frame:
        """Both axes to one scale, as far as the place has that shape: distances are those of the two components."""
        plot = inside(rect, right=RAIL)
        plot = QRectF(plot.left(), plot.top(), max(plot.width(), 1.0), max(plot.height(), 1.0))
        units = self.reach[0] / plot.width(), self.reach[1] / plot.height()
        wide = max(units[0], units[1] / STRETCHED) * plot.width()
        high = max(units[1], units[0] / STRETCHED) * plot.height()
        return Frame(plot, -wide, wide, -high, high)

    def draw(self, painter: QPainter, rect: QRectF, token: int | None) -> None:
        frame, theme = self.frame(rect), self.theme
        draw_y_axis(painter, frame, theme, self._axis(1))
        draw_x_axis(painter, frame, theme, self._axis(0))
        draw_rail(painter, frame.rect, labels(self.routing.num_experts, self.null), theme, self.expert)
        painter.setPen(QColor(theme.line))
        painter.drawLine(QLineF(frame.x(0), frame.rect.top(), frame.x(0), frame.rect.bottom()))
        painter.save()
        painter.setClipRect(frame.rect)
        for expert, colour in self._order():
            draw_dots(painter, frame, self.xy[self.first == expert], colour, 3)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        size = dot_size(frame)
        draw_dots(painter, frame, self.probe_xy, QColor(theme.panel), size + 2)
        draw_dots(painter, frame, self.probe_xy, QColor(theme.text), size)
        for expert, colour in self._order():
            draw_dots(painter, frame, self.probe_xy[self.probe_first == expert], colour, size - 2)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing, False)
        if self.middles:
            middles = sorted(self.middles, key=lambda middle: middle[0] != self.expert)
            places = pixels(frame, np.array([xy for _, xy in middles])).tolist()
            names = [label(e, self.null) for e, _ in middles]
            draw_names(painter, [(x, y, n) for (x, y), n in zip(places, names, strict=True)], frame.rect, theme)
        if token is not None and token < len(self.probe_xy):
            (x, y), *_ = pixels(frame, self.probe_xy[token : token + 1]).tolist()
            draw_ring(painter, QPointF(x, y), 7, theme)
        painter.restore()

    def _order(self) -> list[tuple[int, QColor]]:
        """Experts and their colours, the selected one last and so on top; -1: no expert."""
        theme, ids = self.theme, sorted(range(-1, self.routing.num_experts), key=lambda e: e == self.expert)
        colours = [QColor(theme.faint) if e < 0 else expert_colour(e, theme) for e in ids]
        faded = [self.expert is not None and e != self.expert for e in ids]
        return [
            (e, mixed(c.name(), theme.panel, OTHERS) if fade else c)
            for e, c, fade in zip(ids, colours, faded, strict=True)
        ]

    def _axis(self, which: int) -> str:
        """Which of the two it is may change while the axis stays."""
        part, other = (float(self.inputs.explained_2[i]) for i in (which, 1 - which))
        order = 1 + (other > part or (other == part and which == 1))
        if part != part:
            return "tokens do not differ"
        # the upright one has less room
        return f"component {order}: {percent(part)}{'' if which else ' of variance'}"

    def hit(self, point: QPointF, rect: QRectF) -> Pointed:
        frame = self.frame(rect)
        if (expert := hit_rail(frame.rect, self.routing.num_experts, point)) is not None:
            return {"expert": expert}
        if not frame.rect.contains(point):
            return {}
        shown, held = nearest(frame, self.probe_xy, point), nearest(frame, self.xy, point)
        if shown is not None and (held is None or shown[1] <= held[1] + 2):  # the probe's dots are larger, and on top
            return _pointed("token", shown[0], int(self.probe_first[shown[0]]))
        if held is not None:
            return _pointed("dot", held[0], int(self.first[held[0]]))
        return {}

    # ---- in words and numbers
    def footer(self, pointed: Pointed, step: int, click: str) -> list[str]:
        token, dot = pointed.get("token"), pointed.get("dot")
        if token is not None and token < len(self.probe_xy):
            first, gate = int(self.probe_first[token]), float(self.probe_gate[token])
            text = _in_context(self.probe.tokens, token)
            return [f"probe token {token} {text}", first_in_words(first, gate, self.null)]
        if dot is not None and dot < len(self.places) and self.heldout is not None:
            at = int(self.places[dot])
            domain = f" of {self.heldout.domains[at]}" if self.heldout.domains is not None else ""
            text = _in_context(self.heldout.tokens, at)
            return [
                f"held-out token {text}{domain}",
                first_in_words(int(self.first[dot]), float(self.gate[dot]), self.null),
            ]
        both = float(self.inputs.explained_2.sum())
        of = "" if self.total == len(self.places) else f" of {self.total}"
        words = [f"rings: the probe's {len(self.probe_xy)} tokens{click}"]
        words += [f"dots: {len(self.places)}{of} held-out tokens"] if self.total else ["no held-out tokens"]
        if both == both:
            words.append(f"both axes: {percent(both)} of variance")
        return [*words, f"step {step:,}"]

    def table(self) -> Table:
        """The held-out tokens that are drawn, then the probe's."""
        head = ["layer", "what", "token", "component_x", "component_y", "expert", "share_x", "share_y"]
        shares = ["" if part != part else float(part) for part in self.inputs.explained_2.tolist()]
        rows: list[list[int | float | str]] = []
        for what, source, places, xy, first in (
            ("held-out", self.heldout, self.places, self.xy, self.first),
            ("probe", self.probe, np.arange(len(self.probe_xy)), self.probe_xy, self.probe_first),
        ):
            texts = source.tokens if source is not None else None
            for at, (x, y), e in zip(places.tolist(), xy.tolist(), first.tolist(), strict=True):
                rows.append([self.layer, what, texts[at] if texts is not None else at, x, y, e, *shares])
        return head, rows


def percent(part: float) -> str:
    return f"{number(100 * part)} %"


def _reach(values: npt.NDArray[np.floating]) -> float:
    """How far an axis goes; in steps, so that it seldom changes while the model trains."""
    far = 1.05 * float(np.abs(values).max(initial=0.0))
    step = nice_ceiling(far / 10)
    return ceil(far / step) * step if far > 0 else 1.0


def _in_context(tokens: Sequence[str] | None, at: int) -> str:
    """A token, and what stands before it."""
    if tokens is None:
        return ""
    before = "".join(map(visible, tokens[max(at - BEFORE, 0) : at]))
    return f"“{visible(tokens[at])}” after “{before}”" if before else f"“{visible(tokens[at])}”"


def _pointed(what: str, at: int, expert: int) -> Pointed:
    return {what: at} | ({"expert": expert} if expert >= 0 else {})


def _middles(xy_T2: Array, first_T: Ints, num_experts: int) -> list[tuple[int, tuple[float, float]]]:
    """For each expert with enough tokens, of most first, the place of the token nearest to their median."""
    out = []
    for expert in np.argsort(-np.bincount(first_T[first_T >= 0], minlength=num_experts), kind="stable").tolist():
        mine = xy_T2[first_T == expert]
        if len(mine) and len(mine) >= NAMED * len(xy_T2):
            at = np.abs(mine - np.median(mine, axis=0)).sum(1).argmin()
            out.append((expert, (float(mine[at, 0]), float(mine[at, 1]))))
    return out
