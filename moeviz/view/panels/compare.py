"""Two routings side by side on the same axes, with their difference: A is what the window shows, B the reference."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PySide6.QtCore import QLineF, QPointF, QRectF
from PySide6.QtGui import QColor, QImage, QPainter
from PySide6.QtWidgets import QWidget

from moeviz.domain.metrics import (
    MOST_DIVERGENCE,
    Information,
    agreement,
    churn,
    delta_noise,
    divergence_floor,
    effective_experts,
    expert_counts,
    flip_baseline,
    floor_k,
    load_delta,
    load_divergence,
    load_share,
    overlap_baseline,
    probability_change,
    top1_flip_rate,
    weight_change,
)
from moeviz.domain.metrics.arrays import first_choice
from moeviz.domain.reference import Reference
from moeviz.domain.routing import Bools, Ints, Routing, RoutingSnapshot, visible
from moeviz.view.colours import diverging, expert_colour, mixed, readable_on
from moeviz.view.panel import LINE, NARROW, Panel, Pointed, Table
from moeviz.view.panels.axes import (
    BOTTOM,
    TOP,
    Array,
    Frame,
    draw_column_labels,
    draw_y_axis,
    inside,
    nice_ceiling,
    number,
    signed,
)
from moeviz.view.panels.experts_domains import SHUFFLES, information_in_words
from moeviz.view.panels.heat import draw_heat, outline
from moeviz.view.panels.load import combine_mass
from moeviz.view.panels.tokens import describe
from moeviz.view.panels.words import about, first_null, label, labels
from moeviz.view.theme import GRID, Theme, fitted, put, width_of

NO_REFERENCE = "There is nothing to compare with yet: choose B in the header."
LEGEND = 16.0  # px, above the bars
STRIP, TEXTS = 34.0, 14.0  # px, of the tokens' three rows, and of their texts above
LOW = 166.0  # px: a lower plot has no strip of tokens and no words at its axis
TICKS = 18.0  # px, below the bars, for the numbers of experts
ROOM = 184.0  # px, of a plot before words take a second line
LEGIBLE = 9.0  # px, of a token's column from which on it shows its text
LOWEST_PAIR = 76.0  # px, of loads and difference; a lower plot shows the loads alone
BETWEEN = 12.0  # px, the loads and their difference
PALE = 0.3  # of B's bars
SAMPLE = 1024  # tokens at most that first experts agree over: shuffling more takes longer than a frame


@dataclass(frozen=True, slots=True)
class Parts:
    """Where a plot has its parts; None where it is too low for one."""

    loads: Frame
    delta: Frame | None
    strip: QRectF | None


class Compare(Panel):
    name = "compare"
    uses = frozenset({"snapshot", "layer", "token", "expert"})
    calm = True

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(theme, parent)
        self.reference: Reference | None = None
        self._prepared: tuple[Routing, Routing, Reference] | None = None
        self._sides: tuple[Routing, Routing] | None = None
        self._loads: tuple[Array, Array] = np.ones(1), np.ones(1)  # shares of each side, (E,)
        self._delta: Array | None = None  # q of A less q of B; None: the experts cannot be paired
        self._noise = 0.0
        self._firsts: tuple[Ints, Ints] | None = None  # (T,) of each side; None: not the same tokens
        self._moved: Bools | None = None  # (T,): those with another first expert; None: experts cannot be paired
        self._words: list[str] = []
        self._top, self._reach = 1.0, 1.0

    # ---- the two sides
    def show_snapshot(self, snapshot: RoutingSnapshot | None) -> None:
        if self.source is self.snapshot:
            super().show_snapshot(snapshot)
        else:  # A comes with B
            self.snapshot = snapshot

    def show_reference(self, reference: Reference | None) -> None:
        if reference != self.reference:
            self.reference = reference
            self.invalidate()

    @property
    def source(self) -> RoutingSnapshot | None:
        """A."""
        shown = self.reference.shown if self.reference is not None else None
        return self.snapshot if shown is None else shown

    @property
    def other_layer(self) -> int:
        """Of B."""
        layer = self.reference.layer if self.reference is not None else None
        return self.layer if layer is None else layer

    def missing(self) -> str:
        if super().missing():
            return super().missing()
        if self.reference is None:
            return NO_REFERENCE
        there = self.reference.snapshot
        if there is None:
            return self.reference.lack or NO_REFERENCE
        if self.other_layer >= len(there.layers):
            have = f"{len(there.layers)} MoE layer{'s' if len(there.layers) != 1 else ''}"
            return f"B, {self.reference.name}, has {have}, so it has no layer {self.other_layer}: choose another layer."
        return "" if there.layers[self.other_layer].num_tokens else f"B, {self.reference.name}, has no tokens."

    def prepare(self) -> None:
        a = self.routing()
        assert a is not None
        assert self.reference is not None
        assert self.source is not None
        assert self.reference.snapshot is not None
        there = self.reference.snapshot
        b = there.layers[self.other_layer]
        key = (a, b, self.reference)
        if key == self._prepared:  # only the selection moved
            return
        self._prepared, self._sides = key, (a, b)
        self._loads = _load(a), _load(b)
        sizes = int((a.expert_ids_TK >= 0).sum()), int((b.expert_ids_TK >= 0).sum())
        highest = max(float(shares.max(initial=0.0)) for shares in self._loads)
        self._top = min(1.0, max(2 / max(a.num_experts, b.num_experts), nice_ceiling(highest)))
        self._delta, self._noise = None, 0.0
        if a.num_experts == b.num_experts:
            self._delta = load_delta(*self._loads[::-1])
            if not (a.soft or b.soft):
                self._noise = float(np.nan_to_num(delta_noise(*sizes, a.num_experts, _floor_k(a, b))))
            self._reach = min(
                1.0, nice_ceiling(max(np.nanmax(np.abs(self._delta), initial=0.0), 2 * self._noise) or self._top / 2)
            )
        same, why_not = same_tokens(self.source, there)
        self._firsts = (first_choice(a.expert_ids_TK), first_choice(b.expert_ids_TK)) if same else None
        self._moved = None
        if self._firsts is not None and self._delta is not None:
            of_a, of_b = self._firsts
            self._moved = (of_a != of_b) & (of_a >= 0) & (of_b >= 0)
        strangers = self._strangers(a, b)
        tokens = tokens_in_words(a, b, numbered=not strangers) if same else [why_not]
        # in a low panel the last ones are left out; of strangers only the last tells anything without numbers
        order = [*strangers, tokens[-1], *tokens[:-1]] if strangers else tokens
        self._words = [*self._loads_in_words(a, b, sizes), *order]
        if a is b:
            self._words = ["A and B are the same", "choose another B, or move the timeline"]

    def _strangers(self, a: Routing, b: Routing) -> list[str]:
        """What a reader must know who takes experts of one number for the same."""
        assert self.reference is not None
        if a.num_experts != b.num_experts:
            return [f"{a.num_experts} and {b.num_experts} experts: these are not compared one by one"]
        if self.layer != self.other_layer:
            return ["experts of two layers share only their numbers"]
        return [] if self.reference.kin else ["experts of A and B share only their numbers"]

    def _loads_in_words(self, a: Routing, b: Routing, sizes: tuple[int, int]) -> list[str]:
        if self._delta is None:
            spread = (f"{number(effective_experts(q))} of {q.size}" for q in self._loads)
            return [f"effective experts: A {', B '.join(spread)}"]
        jsd, floor = load_divergence(*self._loads), divergence_floor(*sizes, a.num_experts, _floor_k(a, b))
        soft = a.soft or b.soft  # what is compared is then no sample of choices
        by_chance = "" if soft or floor != floor else f"chance {about(floor)}, "
        words = [f"JSD {number(jsd)} nats ({by_chance}at most {number(MOST_DIVERGENCE)})"]
        most = int(np.abs(np.nan_to_num(self._delta)).argmax())
        if self._delta[most] == 0:
            words.append("no load differs")
        elif np.isfinite(self._delta).all():
            of_a, of_b = (about(float(q[most])) for q in self._loads)
            change = f"top gap: expert {label(most, first_null(a))}, A {of_a}, B {of_b}"
            words.append(change if soft else f"{change} (chance ±{about(2 * self._noise)})")
        return words

    # ---- what is drawn
    def lines_of_words(self, width: float) -> int:
        return next(lines for lines, wide in ((3, 760), (4, 560), (5, NARROW), (8, 0)) if width >= wide)

    def _lines(self, rect: QRectF) -> int:
        """The plot has four parts, and needs more room beside the words than others."""
        return min(super()._lines(rect), max(1, int(rect.height() - ROOM) // LINE))

    def subtitle(self) -> str:
        return "the tokens shown, before any drop"

    def parts(self, rect: QRectF) -> Parts:
        left = rect.adjusted(0, LEGEND, 0, 0)
        high, strip = 0.0, None
        if self._firsts is not None and rect.height() >= LOW:
            across = inside(rect)
            legible = across.width() / self._firsts[0].size >= LEGIBLE
            high = STRIP + (TEXTS if legible else 0.0)
            strip = QRectF(across.left(), rect.bottom() - high, across.width(), high)
        both = inside(left.adjusted(0, 0, 0, -high), bottom=BOTTOM if rect.height() >= LOW else TICKS)
        size = max(shares.size for shares in self._loads)
        cut = (both.height() - BETWEEN) * 0.56
        if self._delta is None or both.height() < LOWEST_PAIR:
            return Parts(Frame(both, 0, size, 0, self._top), None, strip)
        upper = QRectF(both.left(), both.top(), both.width(), cut)
        lower = QRectF(both.left(), both.top() + cut + BETWEEN, both.width(), both.height() - cut - BETWEEN)
        return Parts(Frame(upper, 0, size, 0, self._top), Frame(lower, 0, size, -self._reach, self._reach), strip)

    def draw(self, painter: QPainter, rect: QRectF) -> None:
        assert self._sides is not None
        parts, theme = self.parts(rect), self.theme
        a, b = self._sides
        self._draw_legend(painter, rect)
        size = max(a.num_experts, b.num_experts)
        strong = self.picked("expert", size)
        frames = [frame for frame in (parts.loads, parts.delta) if frame is not None]
        if strong is not None:
            for frame in frames:
                left = frame.x(strong)
                column = QRectF(left, frame.rect.top(), frame.x(strong + 1) - left, frame.rect.height())
                painter.fillRect(column, QColor(theme.raised))
        draw_y_axis(painter, parts.loads, theme, _fitting(("load share q", "q"), parts.loads))
        self._draw_loads(painter, parts.loads)
        if parts.delta is not None:
            draw_y_axis(painter, parts.delta, theme, _fitting(("B ← more in → A", "A − B", ""), parts.delta))
            self._draw_delta(painter, parts.delta)
        null = self._first_null()
        last = frames[-1].rect
        if null < size:
            painter.setPen(QColor(theme.line))
            x = parts.loads.x(null)
            painter.drawLine(QLineF(x, parts.loads.rect.top(), x, last.bottom()))
        draw_column_labels(painter, last, labels(size, null), theme, "expert" if rect.height() >= LOW else "", strong)
        if parts.strip is not None:
            self._draw_strip(painter, parts.strip)

    def _first_null(self) -> int:
        """Of the side that has more experts."""
        assert self._sides is not None
        return first_null(max(self._sides, key=lambda routing: routing.num_experts))

    def _draw_legend(self, painter: QPainter, rect: QRectF) -> None:
        """Which bars are whose: full ones A's, pale ones with an edge B's."""
        x, top = inside(rect).left(), rect.top() + 3
        for words, is_b in zip(self.sides_in_words(), (False, True), strict=True):
            room = (rect.right() - x) / (1 if is_b else 2) - 18
            _bar(painter, QRectF(x, top, 9, 9), QColor(self.theme.muted), self.theme, pale=is_b)
            painter.setPen(QColor(self.theme.text))
            text = fitted(words, room)
            put(painter, x + 14, top + 9, text)
            x += 14 + width_of(text) + 2 * GRID

    def sides_in_words(self) -> tuple[str, str]:
        """What is compared with what."""
        assert self.source is not None
        assert self.reference is not None
        assert self.reference.snapshot is not None
        here, there = f"step {self.source.step:,}", self.reference.name
        steps = self.source.step, self.reference.snapshot.step
        if self.reference.kin and steps[0] != steps[1]:  # of one model
            here, there = (
                f"{name} ({'later' if step == max(steps) else 'earlier'})"
                for name, step in zip((here, there), steps, strict=True)
            )
        if self.layer == self.other_layer:
            return f"A: {here}", f"B: {there}; layer {self.layer} of both"
        return f"A: layer {self.layer}, {here}", f"B: layer {self.other_layer}, {there}"

    def _draw_loads(self, painter: QPainter, frame: Frame) -> None:
        step = frame.x(1) - frame.x(0)
        gap = min(6.0, step * 0.15)
        wide = (step - 2 * gap) / 2
        for side, shares in enumerate(self._loads):
            for e, q in enumerate(shares.tolist()):
                top = frame.y(min(q, self._top))
                bar = QRectF(frame.x(e) + gap + side * wide, top, wide, frame.rect.bottom() - top)
                _bar(painter, bar, expert_colour(e, self.theme), self.theme, pale=bool(side))
        painter.setPen(QColor(self.theme.line))
        painter.drawLine(QLineF(frame.rect.bottomLeft(), frame.rect.bottomRight()))

    def _draw_delta(self, painter: QPainter, frame: Frame) -> None:
        assert self._delta is not None
        theme, step, zero = self.theme, frame.x(1) - frame.x(0), frame.y(0)
        band = QColor(theme.muted)
        band.setAlpha(50)
        high, low = (frame.y(sign * min(2 * self._noise, self._reach)) for sign in (1, -1))
        painter.fillRect(QRectF(frame.rect.left(), high, frame.rect.width(), low - high), band)
        table = diverging(theme)
        below, above = (QColor(int(r), int(g), int(b)) for b, g, r, _ in (table[0], table[-1]))
        gap = min(6.0, step * 0.15)
        for e, change in enumerate(self._delta.tolist()):
            if change == change:
                y = frame.y(change)
                bar = QRectF(frame.x(e) + gap, min(y, zero), step - 2 * gap, abs(y - zero))
                painter.fillRect(bar, above if change > 0 else below)
        painter.setPen(QColor(theme.text))
        painter.drawLine(QLineF(frame.rect.left(), zero, frame.rect.right(), zero))

    def _rows(self, strip: QRectF) -> tuple[QRectF, QRectF, QRectF]:
        """Of A, of B, and of what changed."""
        texts = strip.height() - STRIP
        high = (STRIP - 2) / 3
        tops = (strip.top() + texts + i * (high + 1) for i in range(3))
        a, b, changed = (QRectF(strip.left(), top, strip.width(), high) for top in tops)
        return a, b, changed

    def _draw_strip(self, painter: QPainter, strip: QRectF) -> None:
        """A column for each token: its first expert in A and in B, and below a mark where these differ."""
        assert self._firsts is not None
        theme, rows = self.theme, self._rows(strip)
        count = self._firsts[0].size
        wide = strip.width() / count
        assert self._sides is not None
        for row, name, firsts, routing in zip(rows, "AB", self._firsts, self._sides, strict=False):
            names = labels(routing.num_experts, first_null(routing))
            draw_heat(painter, row, _strip_image(firsts, theme))
            painter.setPen(QColor(theme.muted))
            put(painter, row.left() - 9 - width_of(name), row.center().y() + 4, name)
            if wide >= max(map(width_of, names)) + 3:
                for t, e in enumerate(firsts.tolist()):
                    if e >= 0:
                        painter.setPen(readable_on(expert_colour(e, theme)))
                        x = row.left() + (t + 0.5) * wide
                        put(painter, x - width_of(names[e]) / 2, row.center().y() + 4, names[e])
        self._draw_texts(painter, strip, rows[0].top(), wide)
        if self._moved is not None:
            row = rows[2]
            painter.setPen(QColor(theme.muted))
            put(painter, row.left() - 9 - width_of("≠"), row.center().y() + 4, "≠")
            draw_heat(painter, row, _marks_image(self._moved, int(strip.width()), theme))
        token = self._token()
        if token is not None:
            column = QRectF(strip.left() + token * wide, rows[0].top(), wide, rows[2].bottom() - rows[0].top())
            outline(painter, column.adjusted(0, 0, -1, -1), theme)

    def _draw_texts(self, painter: QPainter, strip: QRectF, bottom: float, wide: float) -> None:
        """The tokens themselves, where there is room for them."""
        texts = self.source.tokens if self.source is not None else None
        if texts is None or wide < LEGIBLE:
            return
        painter.setPen(QColor(self.theme.text))
        for t, text in enumerate(map(visible, texts)):
            if width_of(text) <= wide + 2:
                put(painter, strip.left() + (t + 0.5) * wide - width_of(text) / 2, bottom - 4, text)

    def _token(self) -> int | None:
        token = self.pointed.get("token", self.selection.token)
        return token if token is not None and self._firsts is not None and token < self._firsts[0].size else None

    # ---- words, mouse, numbers
    def footer(self) -> str:
        return "  ".join([*self._pointed_in_words(), *self._words])

    def _pointed_in_words(self) -> list[str]:
        assert self._sides is not None
        expert, token = self.pointed.get("expert"), self.pointed.get("token")
        if expert is not None:
            q = [number(float(shares[expert])) if expert < shares.size else "–" for shares in self._loads]
            change = f", A − B {signed(float(self._delta[expert]))}" if self._delta is not None else ""
            name = label(expert, self._first_null())
            return [f"expert {name}: q A {q[0]}, B {q[1]}{change}"]
        if token is not None and self.source is not None and self._firsts is not None:
            texts = self.source.tokens
            text = visible(texts[token]) if texts is not None else ""
            return [
                f"{side}: {describe(routing, token, text)}" for side, routing in zip("AB", self._sides, strict=True)
            ]
        return []

    def hit(self, point: QPointF, rect: QRectF) -> Pointed:
        parts = self.parts(rect)
        if parts.strip is not None and self._firsts is not None and parts.strip.contains(point):
            count = self._firsts[0].size
            return {"token": min(int((point.x() - parts.strip.left()) / parts.strip.width() * count), count - 1)}
        for frame in (parts.loads, parts.delta):
            if frame is not None and frame.rect.contains(point):
                size = max(shares.size for shares in self._loads)
                return {"expert": min(int((point.x() - frame.rect.left()) / frame.rect.width() * size), size - 1)}
        return {}

    def table(self) -> Table:
        """Of each side: its loads, the first experts of its tokens, and the measures between the two."""
        head = ["what", "of", "A", "B", "A_minus_B"]
        if self.lack() or self._sides is None:
            return head, []
        a, b = self._sides
        rows: list[list[int | float | str]] = [["side", "", *self.sides_in_words(), ""]]
        for e in range(max(a.num_experts, b.num_experts)):
            shares = (float(q[e]) if e < q.size else "" for q in self._loads)
            rows.append(["load_share", e, *shares, "" if self._delta is None else float(self._delta[e])])
        if self._firsts is not None:
            rows += [
                ["first_expert", t, *("" if e < 0 else e for e in pair), ""]
                for t, pair in enumerate(zip(*(firsts.tolist() for firsts in self._firsts), strict=True))
            ]
        measures = {"jsd_nats": load_divergence(*self._loads)} if self._delta is not None else {}
        if self._firsts is not None:
            measures |= token_measures(a, b) if self._delta is not None else {}
            measures["nmi"] = sampled_agreement(a, b).symmetric
            measures |= {"nmi_tokens": SAMPLE} if a.num_tokens > SAMPLE else {}
        rows += [["measure", name, "", "", value] for name, value in measures.items() if value == value]
        return head, rows


def same_tokens(a: RoutingSnapshot, b: RoutingSnapshot) -> tuple[bool, str]:
    """Whether both routed the same texts in the same order; if not, why tokens are not compared."""
    if a is b:
        return True, ""
    if a.tokens is None or b.tokens is None:
        return False, "without texts it is not known whether the tokens are the same: only loads are compared"
    if list(a.tokens) == list(b.tokens):
        return True, ""
    return False, f"A has {a.num_tokens} tokens, B {b.num_tokens} others: only loads can be compared"


def token_measures(a: Routing, b: Routing) -> dict[str, float]:
    """What holds for the same tokens and paired experts."""
    changes = {
        "changed_first": top1_flip_rate(a.expert_ids_TK, b.expert_ids_TK),
        "changed_choices": churn(a.expert_ids_TK, b.expert_ids_TK),
        "changed_weight": weight_change(a, b),
        "changed_probability": probability_change(a, b),
    }
    return {name: change for name, change in changes.items() if change is not None}


def tokens_in_words(a: Routing, b: Routing, *, numbered: bool) -> list[str]:
    """What holds for the same tokens, each measure with what chance alone would show. `numbered`: experts of one number
    are the same, so that nothing is needed that does without numbers."""
    words = []
    if a.num_experts == b.num_experts:
        found = token_measures(a, b)
        by_chance = flip_baseline(a.expert_ids_TK, b.expert_ids_TK)
        k = min(float((r.expert_ids_TK >= 0).sum(axis=1).mean()) for r in (a, b))
        other_choices = 1 - k * overlap_baseline(1, a.num_experts)
        words += [
            f"other first expert {percent(found['changed_first'])} of {a.num_tokens} tokens "
            f"(chance {percent(by_chance)})",
            f"changed choices {percent(found['changed_choices'])} (chance {percent(other_choices)})",
            *moved_in_words(a, b, found),
        ]
    if not numbered:
        of = f" of {SAMPLE} tokens" if a.num_tokens > SAMPLE else ""
        words.append(f"first experts{of}: {information_in_words(sampled_agreement(a, b))[0]}")
    return words


def sampled_agreement(a: Routing, b: Routing) -> Information:
    """What the first experts of the same tokens tell of each other; of more than SAMPLE tokens, a seeded choice."""
    some = np.arange(a.num_tokens)
    if some.size > SAMPLE:
        some = np.sort(np.random.default_rng(0).choice(some, SAMPLE, replace=False))
    return agreement(a.expert_ids_TK[some], b.expert_ids_TK[some], a.num_experts, SHUFFLES)


def moved_in_words(a: Routing, b: Routing, found: Mapping[str, float]) -> list[str]:
    """How much of a token's gate weight g and of its probability p lies at other experts: a share, where these sum to 1
    on both sides."""
    whole, others = [], []
    for key, symbol, of_a, of_b in (
        ("changed_weight", "g", a.gate_weights_TK, b.gate_weights_TK),
        ("changed_probability", "p", a.router_probs_TE, b.router_probs_TE),
    ):
        if of_a is None or of_b is None:
            continue
        # np.allclose takes four times as long
        if all((np.abs(np.sum(values, axis=1) - 1) <= 1.01e-3).all() for values in (of_a, of_b)):
            whole.append(f"{percent(found[key])} of {symbol}")
        else:
            others.append(f"{symbol} moved by {number(found[key])} a token")
    return [*([f"moved to other experts: {', '.join(whole)}"] if whole else []), *others]


def percent(share: float) -> str:
    return "–" if share != share else f"{about(100 * share)} %"


def _load(routing: Routing) -> Array:
    """Load share (E,) of the tokens shown; of Soft MoE, whose load is even by construction, the share of weights."""
    mass = combine_mass(routing)
    return load_share(expert_counts(routing)) if mass is None else mass


def _floor_k(a: Routing, b: Routing) -> int:
    return min(floor_k(r.expert_ids_TK) for r in (a, b))


def _bar(painter: QPainter, bar: QRectF, colour: QColor, theme: Theme, *, pale: bool) -> None:
    if not pale:
        painter.fillRect(bar, colour)
        return
    painter.fillRect(bar, mixed(colour.name(), theme.panel, PALE))
    if bar.width() >= 3 and bar.height() >= 1:
        painter.setPen(colour)
        painter.drawRect(bar.adjusted(0, 0, -1, -1))


def _fitting(texts: tuple[str, ...], frame: Frame) -> str:
    """The first that is no longer than the plot is high; else the last."""
    return next((text for text in texts if width_of(text) <= frame.rect.height() + TOP), texts[-1])


def _marks_image(marked: Bools, most: int, theme: Theme) -> QImage:
    """One pixel a token, or one for several where there are more than `most`: the more of them are marked, the more of
    the colour of text."""
    edges = np.linspace(0, marked.size, min(marked.size, max(most, 1)) + 1).astype(int)
    shares = np.add.reduceat(marked, edges[:-1], dtype=np.float64) / np.diff(edges)
    ends = [np.array([c.blue(), c.green(), c.red(), 255]) for c in (QColor(theme.panel), QColor(theme.text))]
    pixels = (ends[0] + shares[:, None] * (ends[1] - ends[0])).astype(np.uint8)
    return QImage(pixels.data, len(pixels), 1, len(pixels) * 4, QImage.Format.Format_RGB32).copy()


def _strip_image(firsts: Ints, theme: Theme) -> QImage:
    """One pixel a token, in the colour of its expert; the panel's own where it has none."""
    colours = [QColor(theme.panel) if e < 0 else expert_colour(e, theme) for e in range(-1, int(firsts.max()) + 1)]
    table = np.array([[c.blue(), c.green(), c.red(), 255] for c in colours], dtype=np.uint8)
    pixels = np.ascontiguousarray(table[firsts + 1])
    return QImage(pixels.data, firsts.size, 1, firsts.size * 4, QImage.Format.Format_RGB32).copy()
