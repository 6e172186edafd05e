"""One token through one MoE layer, in four steps, with its numbers: they add up on the way down and to the right."""

from dataclasses import dataclass

import numpy as np
from PySide6.QtCore import QLineF, QPointF, QRectF
from PySide6.QtGui import QColor, QPainter
from PySide6.QtWidgets import QWidget

from moeviz.domain.routing import Routing, RoutingSnapshot, visible
from moeviz.domain.survey import Terms
from moeviz.view.colours import expert_colour, mixed
from moeviz.view.panel import NARROW, Panel, Pointed, Table
from moeviz.view.panels.axes import number
from moeviz.view.panels.gate_weights import chosen_weights
from moeviz.view.panels.words import first_null, label
from moeviz.view.theme import Theme, fitted, put, width_of

ROW, HIGHEST_ROW = 17.0, 40.0  # px
WIDEN = 1.6  # times, a column of numbers at most: farther apart they are read as of other rows
HEAD = 46.0  # px above the rows: the token, the steps, the columns
NOTHING = float("nan")


@dataclass(frozen=True, slots=True)
class Column:
    """A column of numbers; `step` is the one of the four that it belongs to, `need` how soon it goes for want of room
    (the highest first), `summed` whether its numbers have a sum."""

    key: str
    title: str
    step: int
    need: int
    wide: float
    bar: bool = False
    summed: bool = False


COLUMNS = (
    Column("score", "score z", 1, 5, 52),
    Column("noise_std", "noise σ", 1, 6, 52),
    Column("probability", "p", 1, 1, 80, bar=True, summed=True),
    Column("gate", "gate g", 1, 0, 46, summed=True),
    Column("norm", "|e|", 2, 3, 50),
    Column("cosine", "cos(e, y)", 2, 4, 62),
    Column("part", "g·|e|·cos", 3, 2, 96, bar=True, summed=True),
)
STEPS = ("1 input", "2 routing decision", "3 experts", "4 output")
NAME = 56.0
DROPPED = "dropped"  # in place of an output


@dataclass(frozen=True, slots=True)
class Line:
    """An expert's numbers; NaN where unknown or where it was not chosen."""

    expert: int
    chosen: bool
    dropped: bool
    values: dict[str, float]


class Anatomy(Panel):
    name = "anatomy"
    uses = frozenset({"snapshot", "survey", "layer", "token", "expert"})
    lowest = 136  # two rows, for the two experts that most routers choose

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(theme, parent)
        self._rows: list[Line] = []
        self._sums: dict[str, float] = {}
        self._rest = 0.0

    @property
    def source(self) -> RoutingSnapshot | None:
        """The probe as the survey saw it, so that all numbers are of one step; the snapshot where that is older."""
        return self.survey.probe if self.survey is not None and self._is_surveyed else self.snapshot

    @property
    def _is_surveyed(self) -> bool:
        """Whether the survey is of what is shown: of these tokens and experts, and no later than the shown step."""
        survey, shown = self.survey, self.snapshot
        if survey is None or shown is None:
            return survey is not None
        sizes = [[routing.num_experts for routing in s.layers] for s in (survey.probe, shown)]
        return survey.step <= shown.step and sizes[0] == sizes[1] and survey.probe.tokens == shown.tokens

    @property
    def terms(self) -> Terms | None:
        terms = self.survey.terms if self.survey is not None and self._is_surveyed else ()
        return terms[self.layer] if terms else None

    @property
    def token(self) -> int:
        """The selected token, or the last one if none is selected."""
        routing = self.routing()
        assert routing is not None
        token = self.selection.token
        return token if token is not None and token < routing.num_tokens else routing.num_tokens - 1

    def prepare(self) -> None:
        routing = self.routing()
        assert routing is not None
        self._rows = lines_of(routing, self.token, self.terms)
        self._sums = {column.key: NOTHING for column in COLUMNS if column.summed} | _sums(self._rows)
        terms = self.terms
        self._rest = float(terms.sum_norm_T[self.token]) - self._sums["part"] if terms is not None else NOTHING
        if terms is not None and self._sums["part"] != self._sums["part"]:  # nothing of it is one expert's
            self._sums["part"], self._rest = 0.0, float(terms.sum_norm_T[self.token])

    def lines_of_words(self, width: float) -> int:
        return 2 if width >= NARROW else 4

    # ---- where things lie
    def columns(self, width: float) -> list[tuple[Column, QRectF]]:
        """The columns that fit, from the left; the least needed go first. Room that is left widens all alike, and what
        numbers cannot use is the bars'."""
        shown = [c for c in COLUMNS if self._known(c)]
        while len(shown) > 1 and NAME + sum(c.wide for c in shown) > width:
            shown.remove(max(shown, key=lambda c: c.need))
        need = max(sum(c.wide for c in shown), 1.0)
        spare = min(WIDEN, max(1.0, (width - NAME) / need))
        rest = max(0.0, width - NAME - need * spare) / max(sum(c.bar for c in shown), 1)
        out, x = [], NAME
        for column in shown:
            wide = column.wide * spare + rest * column.bar
            out.append((column, QRectF(x, 0, wide, ROW)))
            x += wide
        return out

    def row_height(self, rect: QRectF) -> float:
        """Higher where all experts have room, whether or not this token has a row of others."""
        return min(HIGHEST_ROW, max(ROW, (rect.height() - HEAD) // (len(self._rows) + 2)))

    def _known(self, column: Column) -> bool:
        """Whether any expert has such a number; a token whose choices were all dropped has all steps too."""
        routing = self.routing()
        assert routing is not None
        if self.terms is not None and (column.key == "part" or (column.step == 2 and not routing.soft)):
            return True
        return any(line.values[column.key] == line.values[column.key] for line in self._rows)

    def shown_lines(self, rect: QRectF) -> tuple[list[Line], list[str]]:
        """As many experts as have room, the chosen first, and the rows below them, so that the columns add up."""
        room, below = int((rect.height() - HEAD) / self.row_height(rect)), ["others"] * self._has_rest + ["sum"]
        if room - len(below) < len(self._rows):
            below.insert(0, "more")
        while below and room - len(below) < 1:
            below.pop(0)
        return self._rows[: max(room - len(below), 1)], below

    @property
    def _has_rest(self) -> bool:
        """Whether the output holds more than the chosen experts' terms: shared or null experts."""
        return abs(self._rest) > 1e-3 * max(abs(self._sums.get("part", 0.0)), 1e-6)

    def draw(self, painter: QPainter, rect: QRectF) -> None:
        theme, columns = self.theme, self.columns(rect.width())
        lines, below = self.shown_lines(rect)
        painter.setPen(QColor(theme.text))
        put(painter, rect.left(), rect.top() + 11, fitted(self.input_in_words(), rect.width()))
        self._draw_heads(painter, rect, columns)
        top, high = rect.top() + HEAD, self.row_height(rect)
        bars = {c.key: self._bar_unit(c) for c, _ in columns if c.bar}
        for i, line in enumerate(lines):
            self._draw_line(painter, QRectF(rect.left(), top + i * high, rect.width(), high), line, columns, bars)
        at = top + len(lines) * high
        total = dict(self._sums)
        if self.terms is not None:
            total["part"] += self._rest
        for name in below:
            painter.setPen(QColor(theme.muted))
            if name == "more":
                hidden = self._rows[len(lines) :]
                self._draw_sums(painter, rect, at, f"{len(hidden)} more", columns, _sums(hidden))
            elif name == "others":
                self._draw_sums(painter, rect, at, name, columns, {"part": self._rest})
            else:
                painter.setPen(QColor(theme.line))
                end = rect.left() + columns[-1][1].right()
                painter.drawLine(QLineF(rect.left(), at + 0.5, end, at + 0.5))
                painter.setPen(QColor(theme.text))
                self._draw_sums(painter, rect, at, name, columns, total, signs={"part": "|y| = "})
            at += high

    def _draw_heads(self, painter: QPainter, rect: QRectF, columns: list[tuple[Column, QRectF]]) -> None:
        theme, left = self.theme, rect.left()
        for step in sorted({column.step for column, _ in columns}):
            spots = [spot for column, spot in columns if column.step == step]
            start, end = left + spots[0].left() + 4, left + spots[-1].right()
            painter.setPen(QColor(theme.accent))
            put(painter, start, rect.top() + 27, fitted(STEPS[step], end - start))
            painter.setPen(QColor(theme.line))
            painter.drawLine(QLineF(start, rect.top() + 31.5, end - 4, rect.top() + 31.5))
        painter.setPen(QColor(theme.muted))
        put(painter, left, rect.top() + 42, "expert")
        for column, spot in columns:
            right = left + (spot.left() + self._figures(column, spot))
            put(painter, right - width_of(column.title), rect.top() + 42, column.title)

    def _figures(self, column: Column, spot: QRectF) -> float:
        """Where the figures of a column end; its bars begin there."""
        return (56.0 if column.key == "part" else 44.0) if column.bar else spot.width() - 4

    def _bar_unit(self, column: Column) -> float:
        """The largest number that a bar of the column shows."""
        return max((abs(v) for line in self._rows if (v := line.values[column.key]) == v), default=1.0) or 1.0

    def _draw_line(
        self,
        painter: QPainter,
        row: QRectF,
        line: Line,
        columns: list[tuple[Column, QRectF]],
        bars: dict[str, float],
    ) -> None:
        theme, base = self.theme, row.center().y() + 3.5
        colour = expert_colour(line.expert, theme)
        if line.expert == self.pointed.get("expert", self.selection.expert):
            painter.fillRect(row, QColor(theme.raised))
        painter.fillRect(QRectF(row.left(), row.top() + 3, 8, row.height() - 6), colour)
        painter.setPen(QColor(theme.text if line.chosen else theme.muted))
        mark = " ✗" if line.dropped else " ✓" if line.chosen else ""
        put(painter, row.left() + 13, base, f"{label(line.expert, first_null(self.routing()))}{mark}")
        for column, spot in columns:
            value = line.values[column.key]
            if value != value:
                if line.dropped and column.key == "norm":
                    painter.setPen(QColor(theme.warn))
                    put(painter, row.left() + spot.right() - 4 - width_of(DROPPED), base, DROPPED)
                    painter.setPen(QColor(theme.text))
                continue
            right = row.left() + spot.left() + self._figures(column, spot)
            text = fixed(value)
            put(painter, right - width_of(text), base, text)
            if column.bar:
                room = spot.width() - self._figures(column, spot) - 12
                wide = room * abs(value) / bars[column.key]
                strong = line.chosen or column.key == "part"
                fill = colour if strong else mixed(colour.name(), theme.panel, 0.35)
                if value < 0:  # it takes away from the sum
                    painter.setPen(colour)
                    painter.drawRect(QRectF(right + 6, row.top() + 4, wide, row.height() - 9))
                    painter.setPen(QColor(theme.text if line.chosen else theme.muted))
                else:
                    painter.fillRect(QRectF(right + 6, row.top() + 4, wide, row.height() - 8), fill)

    def _draw_sums(
        self,
        painter: QPainter,
        rect: QRectF,
        top: float,
        name: str,
        columns: list[tuple[Column, QRectF]],
        sums: dict[str, float],
        signs: dict[str, str] | None = None,
    ) -> None:
        base = top + self.row_height(rect) / 2 + 4.5
        put(painter, rect.left(), base, name)
        taken = rect.left() + width_of(name)
        for column, spot in columns:
            value = sums.get(column.key, NOTHING)
            if value == value:
                right = rect.left() + spot.left() + self._figures(column, spot)
                text, sign = fixed(value), (signs or {}).get(column.key, "")
                if right - width_of(sign + text) > taken + 6:
                    text = sign + text
                put(painter, right - width_of(text), base, text)
                taken = right

    # ---- in words
    def input_in_words(self) -> str:
        source, terms, token = self.source, self.terms, self.token
        text = ""
        if source is not None and source.tokens is not None:
            text = f" '{visible(source.tokens[token])}'"
        chosen = "" if self.selection.token is not None else f" (the last{self.for_mouse('; click one')})"
        words = f"1 input: token {token}{text}{chosen}"
        if terms is not None:
            words += f", |x| {number(float(terms.input_norm_T[token]))}"
        return words

    def footer(self) -> str:
        terms, token = self.terms, self.token
        if terms is None or self.survey is None:
            return self.lack_of_terms()
        noise = "no noise"
        if terms.noise_std_TE is not None:
            least, most = (number(float(end(terms.noise_std_TE[token]))) for end in (np.min, np.max))
            noise = f"noise off while looking, σ {least}{f' to {most}' if most != least else ''} in training"
        routing = self.routing()
        soft = routing is not None and routing.soft
        others = ["others: shared or null experts"] if self._has_rest and not soft else []
        if soft:
            others = ["soft: no part is one expert's"]
        shown = self.snapshot.step if self.snapshot is not None else self.survey.step
        return "  ".join(
            [
                *([f"step {self.survey.step:,}"] if self.survey.step != shown else []),
                f"p = softmax(z/τ), τ {number(terms.temperature)}",
                noise,
                "y = Σ g·e",
                f"residual |h| {number(float(terms.before_norm_T[token]))} + y → "
                f"|h + y| {number(float(terms.after_norm_T[token]))}",
                *others,
            ]
        )

    def lack_of_terms(self) -> str:
        if self.survey is None:
            return "this data has no experts' outputs  steps 3 and 4 need a model, which is then surveyed"
        return f"experts' outputs are known of step {self.survey.step:,}, not of this one"

    def hit(self, point: QPointF, rect: QRectF) -> Pointed:
        row = int((point.y() - rect.top() - HEAD) // self.row_height(rect))
        lines, _ = self.shown_lines(rect)
        return {"expert": lines[row].expert} if rect.contains(point) and 0 <= row < len(lines) else {}

    def table(self) -> Table:
        head = ["layer", "token", "expert", "chosen", "dropped", *(column.key for column in COLUMNS), "sum_norm"]
        if self.missing():
            return head, []
        self.refresh()
        whole: float | str = "" if self.terms is None else float(self.terms.sum_norm_T[self.token])
        return head, [
            [
                self.layer,
                self.token,
                line.expert,
                int(line.chosen),
                int(line.dropped),
                *("" if line.values[c.key] != line.values[c.key] else line.values[c.key] for c in COLUMNS),
                whole,
            ]
            for line in self._rows
        ]


def lines_of(routing: Routing, token: int, terms: Terms | None) -> list[Line]:
    """Every expert's numbers for one token: the chosen ones first, best first, then by falling probability."""
    weights, ids = chosen_weights(routing, token), routing.expert_ids_TK[token].tolist()
    slots = {e: slot for slot, e in enumerate(ids) if e >= 0}
    probs = None if routing.router_probs_TE is None else routing.router_probs_TE[token].astype(float)
    scores = None if routing.router_logits_TE is None else routing.router_logits_TE[token].astype(float)
    ranked = probs if probs is not None else scores
    others = [e for e in range(routing.num_experts) if e not in slots]
    if ranked is not None:
        others.sort(key=lambda e: -ranked[e])
    lines = []
    for e in (*slots, *others):
        slot = slots.get(e)
        values = {column.key: NOTHING for column in COLUMNS}
        values["gate"] = weights.get(e, NOTHING)
        if probs is not None:
            values["probability"] = float(probs[e])
        if scores is not None:
            values["score"] = float(scores[e])
        if terms is not None and terms.noise_std_TE is not None:
            values["noise_std"] = float(terms.noise_std_TE[token, e])
        if slot is not None and terms is not None:
            values["norm"] = float(terms.output_norm_TK[token, slot])
            values["cosine"] = float(terms.output_cosine_TK[token, slot])
            values["part"] = values["gate"] * values["norm"] * values["cosine"]
        dropped = slot is not None and routing.dropped_TK is not None and bool(routing.dropped_TK[token, slot])
        lines.append(Line(e, slot is not None, dropped, values))
    return lines


def _sums(lines: list[Line]) -> dict[str, float]:
    found = {c.key: [v for line in lines if (v := line.values[c.key]) == v] for c in COLUMNS if c.summed}
    return {key: sum(values) for key, values in found.items() if values}


def fixed(value: float) -> str:
    """Three decimals, so that a reader can add them up; fewer of large numbers."""
    size = abs(value)
    text = f"{value:.3f}" if size < 10 else f"{value:.2f}" if size < 100 else f"{value:.0f}"
    return text.replace("-", "−")
