"""What each expert handles most: its tokens of the vocabulary, and, for the selected expert, where they stand. Where
none comes often enough to tell, as no point of a plane does, the tokens that each expert is surest of."""

from typing import NamedTuple

import numpy as np
from PySide6.QtCore import QPointF, QRectF, QSize
from PySide6.QtGui import QColor, QFontMetricsF, QPainter
from PySide6.QtWidgets import QComboBox, QWidget

from moeviz.domain.metrics import MIN_COUNT, codes, vocabulary_specialisation
from moeviz.domain.metrics.arrays import first_choice
from moeviz.domain.routing import Ints, Routing, visible
from moeviz.view.colours import expert_colour, mixed, readable_on
from moeviz.view.panel import LINE, Pointed, Table
from moeviz.view.panels.axes import EVERY, share
from moeviz.view.panels.sampled import Sampled
from moeviz.view.panels.scroll import ROOM, draw_scroll_bar
from moeviz.view.panels.words import about
from moeviz.view.theme import GRID, SMALL, Theme, fitted, mono, put, sans, shaped, width_of

ORDERS = ("most specific", "most frequent")
ROW, LEAST_ROW = 18.0, 15.0  # px, a line of tokens
RAIL = 36.0  # px, the experts' numbers
DOMAIN = 64.0  # px, at most
MOST = 60  # lines of context


class Handled(NamedTuple):
    """A token of the vocabulary: how often it went to the expert first, how often it was seen."""

    token: str
    times: int
    seen: int

    @property
    def share(self) -> float:
        return self.times / self.seen


class ExpertsTokens(Sampled):
    name = "experts_tokens"

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(theme, parent)
        self.order = QComboBox()
        self.order.addItems(list(ORDERS))
        self.order.setAccessibleName("Which tokens come first")
        self.order.currentIndexChanged.connect(lambda _: self.invalidate())
        self.header.insertWidget(1, self.order)
        self.offset = 0.0
        self._handled: list[list[Handled]] = [[]]
        self._surest: list[dict[str, float]] = []  # its tokens and their gate weights, where no expert has a Handled
        self._left_out = 0
        self._first_T: Ints = np.zeros(0, dtype=np.int64)
        self._contexts: list[int] = []

    def missing(self) -> str:
        if super().missing():
            return super().missing()
        assert self.source is not None
        return "" if self.source.tokens is not None else "This data has no token texts."

    def choice(self) -> str:
        return self.order.currentText()

    def measure(self, routing: Routing) -> None:
        assert self.source is not None
        assert self.source.tokens is not None
        names, code_T = codes(self.source.tokens)
        experts, ids = routing.num_experts, routing.expert_ids_TK
        self._first_T = first_choice(ids)
        shares_VE = vocabulary_specialisation(ids, code_T, experts, len(names))
        seen_V = np.bincount(code_T[self._first_T >= 0], minlength=len(names))
        enough = seen_V >= MIN_COUNT
        self._left_out = int((~enough).sum())
        counts_VE = np.where(enough[:, None], np.nan_to_num(shares_VE) * seen_V[:, None], 0).round().astype(int)
        by = counts_VE if self.choice() == "most frequent" else np.where(enough[:, None], np.nan_to_num(shares_VE), 0)
        order_VE = np.lexsort((counts_VE, by), axis=0)[::-1]
        self._handled = [
            [
                Handled(names[v], int(counts_VE[v, e]), int(seen_V[v]))
                for v in order_VE[:, e].tolist()
                if counts_VE[v, e]
            ]
            for e in range(experts)
        ]
        self._surest = []
        if not any(self._handled):
            for e in range(experts):
                self._surest.append({})
                for token, weight in zip(*self._surest_of(e, routing), strict=True):
                    self._surest[e].setdefault(self.source.tokens[token], weight)

    def _surest_of(self, expert: int, routing: Routing) -> tuple[list[int], list[float]]:
        """The tokens that chose an expert first, the surest first, and their gate weights (NaN where unknown)."""
        tokens = np.flatnonzero(self._first_T == expert)
        if routing.gate_weights_TK is None:
            return tokens.tolist(), [float("nan")] * len(tokens)
        place = (routing.expert_ids_TK[tokens] == expert).argmax(axis=1)
        weights = routing.gate_weights_TK[tokens, place]
        order = np.argsort(-weights, kind="stable")
        return tokens[order].tolist(), weights[order].tolist()

    def prepare(self) -> None:
        super().prepare()
        routing, expert = self.routing(), self.opened
        assert routing is not None
        self._contexts = [] if expert is None else self._surest_of(expert, routing)[0]

    @property
    def opened(self) -> int | None:
        """The selected expert, whose tokens are listed in their context."""
        expert = self.selection.expert
        return expert if expert is not None and expert < len(self._handled) else None

    # ---- where things lie
    def rail(self, rect: QRectF) -> list[QRectF]:
        """The place of each expert's number; all of them within the plot beside an open expert."""
        closed = self.opened is None
        high = self._lines_each(rect) * self._row(rect) if closed else min(ROW, rect.height() / len(self._handled))
        top = rect.top() - (self._shift(rect) if closed else 0.0)
        return [QRectF(rect.left(), top + e * high, RAIL, high) for e in range(len(self._handled))]

    def _lines_each(self, rect: QRectF) -> int:
        """How many lines of tokens an expert gets where all are seen."""
        return max(1, int(rect.height() / (len(self._handled) * ROW)))

    def _row(self, rect: QRectF) -> float:
        """The height of a line of tokens: a little less where that lets the last expert be seen whole."""
        fitting = rect.height() / len(self._handled)
        return fitting if LEAST_ROW <= fitting < ROW else ROW

    def full_height(self, rect: QRectF) -> float:
        if self.opened is None:
            return len(self._handled) * self._lines_each(rect) * self._row(rect)
        return (1 + min(len(self._contexts), MOST)) * ROW

    def _shift(self, rect: QRectF) -> float:
        return min(self.offset, max(0.0, self.full_height(rect) - rect.height()))

    def draw(self, painter: QPainter, rect: QRectF) -> None:
        painter.setClipRect(rect)
        opened, rail, names = self.opened, self.rail(rect), self.experts()
        every = next(n for n in EVERY if n * rail[0].height() >= 12)
        for e, spot in enumerate(rail):
            if spot.bottom() < rect.top() or spot.top() > rect.bottom():
                continue
            strong = e in (opened, self.pointed.get("row"))
            painter.fillRect(QRectF(spot.left(), spot.top() + 1, 6, max(spot.height() - 2, 1)), self._colour(e))
            if e % every == 0 or strong:
                painter.setPen(QColor(self.theme.text if strong else self.theme.muted))
                put(painter, spot.left() + 10, spot.top() + min(spot.height(), ROW) / 2 + 4, names[e])
            if opened is None:
                line = QRectF(rect.left() + RAIL, spot.top(), rect.width() - RAIL - ROOM, self._row(rect))
                self._draw_tokens(painter, e, line, self._lines_each(rect))
        draw_scroll_bar(painter, rect, self.full_height(rect), self._shift(rect), self.theme)
        if opened is not None:
            area = rect.adjusted(RAIL, 0, -ROOM, 0)
            painter.setClipRect(area)
            top = area.top() - self._shift(rect)
            self._draw_tokens(painter, opened, QRectF(area.left(), top, area.width(), ROW))
            self._draw_contexts(painter, opened, area, top + ROW)

    def _colour(self, expert: int) -> QColor:
        return expert_colour(expert, self.theme)

    def _draw_tokens(self, painter: QPainter, expert: int, line: QRectF, lines: int = 1) -> None:
        """The expert's tokens, as many as fit in this line and those below it, each with its share of the token's
        occurrences and their number, or with the gate weight."""
        x, base = line.left(), line.top() + line.height() / 2 + 3.5
        items = [(i.token, i.share, f"{about(100 * i.share)} % of {i.seen}") for i in self._handled[expert]]
        if self._surest:
            surest = self._surest[expert].items()
            items = [(t, min(w, 1.0), share(w)) if w == w else (t, 0.6, "") for t, w in surest]
        if not items:
            painter.setPen(QColor(self.theme.faint))
            words = (
                "only tokens seen too seldom to tell" if (self._first_T == expert).any() else "first choice of no token"
            )
            put(painter, x, base, fitted(words, line.width()))
        for token, strength, words in items:
            text = fitted(visible(token), line.width() - width_of(words) - 12)
            wide = width_of(text) + 8
            if x + wide + width_of(words) + 4 > line.right():
                lines -= 1
                if not lines:
                    break
                x, base = line.left(), base + line.height()
            fill = mixed(self._colour(expert).name(), self.theme.panel, 0.15 + 0.85 * strength)
            painter.fillRect(QRectF(x, base - line.height() / 2 - 2.5, wide, line.height() - 2), fill)
            painter.setPen(readable_on(fill))
            put(painter, x + 4, base, text)
            painter.setPen(QColor(self.theme.muted))
            put(painter, x + wide + 4, base, words)
            x += wide + width_of(words) + 16

    def _draw_contexts(self, painter: QPainter, expert: int, area: QRectF, top: float) -> None:
        assert self.source is not None
        texts, domains = self.source.tokens, self.source.domains
        assert texts is not None
        face = mono(SMALL)
        metrics = QFontMetricsF(face)
        one = metrics.horizontalAdvance("x")
        beside = DOMAIN if domains is not None and area.width() > 260 else 0.0
        row_length = (
            self.survey.row_length if self.survey is not None and self.source is not self.snapshot else len(texts)
        )
        before = (area.width() - beside) * 0.5 if row_length > 1 else 0.0  # nothing stands beside a point
        middle, room = area.left() + beside + before, int(before / one)
        fill = self._colour(expert)
        for line, token in enumerate(self._contexts[:MOST]):
            base = top + line * ROW + 13
            if base < area.top() or base > area.bottom() + ROW:
                continue
            start = token // row_length * row_length
            word = visible(texts[token])
            left = "".join(map(visible, texts[max(start, token - room) : token]))[-max(room - 1, 0) :]
            right = "".join(map(visible, texts[token + 1 : min(start + row_length, token + 1 + room)]))
            wide = metrics.horizontalAdvance(word) + 3
            painter.setFont(face)
            painter.setPen(QColor(self.theme.muted))
            if left and room > 1:
                _put_mono(painter, middle - one * len(left) - 1, base, left)
            _put_mono(painter, middle + wide + 2, base, right[: max(room - len(word), 0)])
            painter.fillRect(QRectF(middle, base - 12, wide, ROW - 3), fill)
            painter.setPen(readable_on(fill))
            _put_mono(painter, middle + 1, base, word)
            if beside and domains is not None:
                painter.setFont(sans(SMALL))
                painter.setPen(QColor(self.theme.faint))
                put(painter, area.left(), base, fitted(domains[token], beside - 8))

    def footer(self) -> str:
        left_out = f"left out: {self._left_out} seen less than {MIN_COUNT} times" if self._left_out else ""
        opened, row = self.opened, self.pointed.get("row")
        if opened is not None:
            total = len(self._contexts)
            shown = f"the first {MOST} of {total}" if total > MOST else f"{total}"
            mouse = self.for_mouse("  click beside to see all experts")
            return f"expert {self.experts()[opened]}: {shown} tokens that chose it first  surest first{mouse}"
        if row is not None and row < len(self._handled):
            mouse = self.for_mouse(f"click to see the tokens of expert {self.experts()[row]} in context")
            if mouse:
                return mouse
        if self._surest:
            weighed = any(weight == weight for surest in self._surest for weight in surest.values())
            which = "the surest of each expert, by gate weight" if weighed else "some of each expert, in their order"
            said = [f"no token comes {MIN_COUNT} times", f"these are {which}"]
            return "  ".join(filter(None, [*said, self.whose()]))
        words = ["% of a token's occurrences that chose the expert first", left_out, self.whose()]
        return "  ".join(filter(None, words))

    def hit(self, point: QPointF, rect: QRectF) -> Pointed:
        # not "expert": pointing at one would open it, and move everything under the mouse
        for e, spot in enumerate(self.rail(rect)):
            wide = rect.width() if self.opened is None else RAIL
            if rect.contains(point) and QRectF(spot.left(), spot.top(), wide, spot.height()).contains(point):
                return {"row": e}
        return {}

    def click_at(self, point: QPointF) -> None:
        if not self.lack():
            at = self.hit(point, self.plot_rect(QRectF(self.canvas.rect())))
            self.offset = 0.0
            self.clicked.emit({"expert": at["row"]} if at else {})

    def wheel(self, pixels: float) -> bool:
        rect = self.plot_rect(QRectF(self.canvas.rect()))
        room = max(0.0, self.full_height(rect) - rect.height())
        self.offset = min(max(self._shift(rect) - pixels, 0.0), room)
        self.canvas.update()
        return room > 0

    def picture_size(self) -> QSize:
        size = super().picture_size()
        if self.lack():
            return size
        lines = len(self._handled) if self.opened is None else 0  # contexts go on and on
        need = self.picture_head(size.width()) + lines * ROW + LINE * self.lines_of_words(size.width()) + 2 * GRID
        return QSize(size.width(), max(size.height(), round(need)))

    def table(self) -> Table:
        head = ["layer", "expert", "token", "first_choices", "seen", "share"]
        if self.missing():
            return head, []
        self.refresh()
        if self._surest:
            return ["layer", "expert", "token", "gate_weight"], [
                [self.layer, e, token, weight if weight == weight else ""]
                for e, surest in enumerate(self._surest)
                for token, weight in surest.items()
            ]
        rows: list[list[int | float | str]] = [
            [self.layer, e, item.token, item.times, item.seen, item.share]
            for e, handled in enumerate(self._handled)
            for item in handled
        ]
        return head, rows


def _put_mono(painter: QPainter, left: float, base: float, text: str) -> None:
    face = mono(SMALL)
    painter.drawStaticText(QPointF(left, base - QFontMetricsF(face).ascent()), shaped(text, face))
