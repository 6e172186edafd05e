"""The token strip: the probe as running text, each token in the colour of its first expert.

A token without any expert that computes for it is hollow: its first choice is a null expert, or (struck out) all its
choices were dropped.
"""

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
from PySide6.QtCore import QLineF, QPointF, QRectF, QSize
from PySide6.QtGui import QColor, QFontMetricsF, QPainter
from PySide6.QtWidgets import QWidget

from moeviz.domain.routing import Routing, visible
from moeviz.domain.selection import Selection
from moeviz.view.colours import expert_colour
from moeviz.view.letters import unseen_in_words
from moeviz.view.panel import LINE, Panel, Pointed, Table
from moeviz.view.panels.axes import share
from moeviz.view.panels.heat import outline
from moeviz.view.panels.scroll import ROOM, draw_scroll_bar
from moeviz.view.panels.strip import Strip, lay_strip, token_colours
from moeviz.view.panels.words import first_null, kept, kind_in_words, label
from moeviz.view.theme import GRID, Theme, mono, shaped

FACE = 13  # px
ROW = 22.0
GAP = 1.0


class TokenStrip(Panel):
    name = "tokens"
    uses = frozenset({"snapshot", "layer", "token", "expert"})

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(theme, parent)
        self.offset = 0.0
        self._reveal = False
        self._texts: list[str] = []
        self._unseen = ""
        self._cells: list[QRectF] = []
        self._tokens: Sequence[str] | None = None
        self._laid = (-1.0, -1.0)
        self._first: list[int] = []
        self._strength: list[float] = []
        self._strip: Strip | None = None
        self._hollow: dict[int, QColor] = {}  # the colour of a token's border
        self._struck: set[int] = set()

    def missing(self) -> str:
        if super().missing():
            return super().missing()
        assert self.snapshot is not None
        return "" if self.snapshot.tokens is not None else "This data has no token texts."

    def prepare(self) -> None:
        assert self.snapshot is not None
        assert self.snapshot.tokens is not None
        if self.snapshot.tokens is not self._tokens:
            self._tokens, texts = self.snapshot.tokens, [visible(token) for token in self.snapshot.tokens]
            if texts != self._texts:
                self._texts, self._laid, self.offset = texts, (-1.0, -1.0), 0.0
                self._unseen = unseen_in_words(texts)
        routing = self.routing()
        assert routing is not None
        first, strength = first_choices(routing)
        null = first_null(routing)
        self._hollow = {}
        if null < routing.num_experts:
            self._hollow = {t: expert_colour(e, self.theme) for t, e in enumerate(first) if e >= null}
        self._struck = set()
        if routing.dropped_TK is not None:
            self._struck = set(np.flatnonzero((routing.expert_ids_TK >= 0).any(axis=1) & ~kept(routing).any(axis=1)))
            self._hollow |= {t: expert_colour(first[t], self.theme) for t in self._struck}
        self._first, self._strength = first, strength

    def cells(self, area: QRectF) -> list[QRectF]:
        """Where each token lies, from (0, 0). The text's own line breaks are kept where the area is high enough."""
        size = (area.width(), area.height())
        if size != self._laid:
            self._cells, self._laid = self._flow(area.width(), breaks=True), size
            if self.height_of(self._cells) > area.height():
                self._cells = self._flow(area.width(), breaks=False)
            self._strip = None
        return self._cells

    def _flow(self, width: float, breaks: bool) -> list[QRectF]:
        metrics = QFontMetricsF(mono(FACE))
        advance = {text: metrics.horizontalAdvance(text) + 3 for text in set(self._texts)}
        out, x, y = [], 0.0, 0.0
        for text in self._texts:
            if x and x + advance[text] > width:
                x, y = 0.0, y + ROW
            out.append(QRectF(x, y, min(advance[text], width) - GAP, ROW - 3))
            x += advance[text]
            if breaks and text.endswith("↵"):
                x, y = 0.0, y + ROW
        return out

    @staticmethod
    def height_of(cells: list[QRectF]) -> float:
        return cells[-1].bottom() + 2 if cells else 0.0

    def text_rect(self, rect: QRectF) -> QRectF:
        return rect.adjusted(0, 0, -ROOM, 0)

    def _shift(self, area: QRectF) -> float:
        """How far it is scrolled; no further than there is text."""
        return min(self.offset, max(0.0, self.height_of(self.cells(area)) - area.height()))

    def _scroll_to(self, area: QRectF) -> None:
        """Bring the selected token into view."""
        token = self.selection.token
        if token is not None and token < len(self._cells):
            cell = self.cells(area)[token]
            self.offset = max(min(self._shift(area), cell.top()), cell.bottom() + 2 - area.height())

    def show_selection(self, selection: Selection) -> None:
        self._reveal = self._reveal or selection.token != self.selection.token
        super().show_selection(selection)

    def draw(self, painter: QPainter, rect: QRectF) -> None:
        area = self.text_rect(rect)
        cells = self.cells(area)
        if self._reveal:
            self._reveal = False
            self._scroll_to(area)
        shift = self._shift(area)
        painter.setClipRect(rect.adjusted(-2, -2, 2, 0))
        draw_scroll_bar(painter, rect, self.height_of(cells), shift, self.theme)
        painter.translate(area.left() + 1, area.top() + 1 - shift)
        first = bisect_right(cells, shift, key=lambda cell: cell.bottom())
        last = bisect_right(cells, shift + area.height(), key=lambda cell: cell.top())
        bare = [-1 if t in self._hollow else e for t, e in enumerate(self._first)] if self._hollow else self._first
        colours = token_colours(bare, self._strength, self.theme)
        if self._in_picture:  # of any scale, and perhaps of vectors
            painter.setFont(mono(FACE))
            for i in range(first, last):
                painter.fillRect(cells[i], QColor.fromRgb(int(colours[i, 0])))
                painter.setPen(QColor.fromRgb(int(colours[i, -1])))
                painter.drawStaticText(cells[i].topLeft() + QPointF(1, 1), shaped(self._texts[i], mono(FACE)))
        else:
            density = painter.device().devicePixelRatioF()
            start = QPointF(0, shift)
            at = painter.deviceTransform().map(start)
            begun = QPointF(at.x() % 1, at.y() % 1) / density  # of a pixel of the screen
            strip = self._strip_of(area, shift, density, begun, first, last)
            painter.drawImage(start - begun, strip.wear(colours, self.theme))
        for i in self._hollow.keys() & range(first, last):
            painter.setPen(self._hollow[i])
            painter.drawRect(cells[i].adjusted(0, 0, -1, -1))
            if i in self._struck:
                middle = cells[i].center().y()
                painter.drawLine(QLineF(cells[i].left(), middle, cells[i].right(), middle))
        token = self._token()
        if self.selection.expert is not None:
            self._underline(painter, cells, first, last)
        if token is not None and self.selection.token is not None:
            outline(painter, cells[token].adjusted(-1, -1, 0, 0), self.theme)
            outline(painter, cells[token].adjusted(0, 0, -1, -1), self.theme)

    def _strip_of(self, area: QRectF, shift: float, density: float, begun: QPointF, first: int, last: int) -> Strip:
        """What is seen of the tokens, those from `first` to before `last`; they begin at `begun` in the picture."""
        of = (self._laid, shift, density, begun.toTuple())
        if self._strip is None or self._strip.of != of:
            cells = [cell.translated(begun.x(), begun.y() - shift) for cell in self._cells[first:last]]
            # of the text alone: each pixel costs at each step
            wide, high = (max((edge(cell) for cell in cells), default=0.0) for edge in (QRectF.right, QRectF.bottom))
            size = (int(wide) + 1, int(min(high, area.height())) + 1)
            self._strip = lay_strip(of, size, density, mono(FACE), cells, self._texts[first:last], first)
        return self._strip

    def _underline(self, painter: QPainter, cells: list[QRectF], first: int, last: int) -> None:
        """The tokens that chose the selected expert."""
        routing = self.routing()
        assert routing is not None
        chose = (routing.expert_ids_TK == self.selection.expert).any(axis=1)
        ink = QColor(self.theme.text)
        for i in range(first, last):
            if chose[i]:
                painter.fillRect(QRectF(cells[i].left(), cells[i].bottom(), cells[i].width(), 2), ink)

    def _token(self) -> int | None:
        return self.picked("token", len(self._texts))

    def footer(self) -> str:
        routing, token = self.routing(), self._token()
        if routing is None:
            return ""
        if token is None:
            mouse = self.for_mouse("; point at or click one")
            words = [f"{len(self._texts)} tokens in {routing.name}{mouse}", *filter(None, [self._unseen])]
            if len(self._hollow) > len(self._struck):
                words.append("hollow: null expert first")
            if self._struck:
                words.append("struck out: all dropped")
            return "  ".join([*words, *(phrase.removeprefix("tokens shown: ") for phrase in kind_in_words(routing))])
        return describe(routing, token, self._texts[token])

    def hit(self, point: QPointF, rect: QRectF) -> Pointed:
        area = self.text_rect(rect)
        if not rect.contains(point):
            return {}
        at = QPointF(point.x() - area.left() - 1, point.y() - area.top() - 1 + self._shift(area))
        for i, cell in enumerate(self.cells(area)):
            if cell.adjusted(0, 0, GAP, 3).contains(at):
                return {"token": i}
        return {}

    def wheel(self, pixels: float) -> bool:
        rect = self.text_rect(self.plot_rect(QRectF(self.canvas.rect())))
        room = max(0.0, self.height_of(self.cells(rect)) - rect.height())
        self.offset = min(max(self._shift(rect) - pixels, 0.0), room)
        self.canvas.update()
        return room > 0

    def picture_size(self) -> QSize:
        size = super().picture_size()
        if self.lack():
            return size
        cells = self._flow(size.width() - 2 * GRID - ROOM, breaks=True)
        need = self.picture_head(size.width()) + self.height_of(cells) + LINE * self.footer_lines + 2 * GRID
        return QSize(size.width(), max(size.height(), round(need)))

    def table(self) -> Table:
        routing = self.routing()
        if self.missing() or routing is None:
            return ["token", "text"], []
        assert self.snapshot is not None
        assert self.snapshot.tokens is not None
        head: list[str] = ["token", "text"] + [f"expert_{i + 1}" for i in range(routing.k)]
        rows: list[list[int | float | str]] = [
            [t, text, *ids]
            for t, (text, ids) in enumerate(zip(self.snapshot.tokens, routing.expert_ids_TK.tolist(), strict=True))
        ]
        if routing.gate_weights_TK is not None:
            head += [f"weight_{i + 1}" for i in range(routing.k)]
            for row, weights in zip(rows, routing.gate_weights_TK.tolist(), strict=True):
                row += weights
        if routing.dropped_TK is not None:
            head += [f"dropped_{i + 1}" for i in range(routing.k)]
            for row, dropped in zip(rows, routing.dropped_TK.astype(int).tolist(), strict=True):
                row += dropped
        return head, rows


def first_choices(routing: Routing) -> tuple[list[int], list[float]]:
    """The best expert of each token that was not dropped (-1: none, and the dropped one where all were), and how strong
    it is: its gate weight on a scale up to 1, or up to the largest one where some are above 1."""
    ids, done = routing.expert_ids_TK, kept(routing)
    if not ids.shape[1]:
        return [-1] * len(ids), [0.0] * len(ids)
    place = done.argmax(axis=1)[:, None]  # experts come best first; 0 where none is left
    first = np.take_along_axis(ids, place, 1)[:, 0]
    if routing.gate_weights_TK is None:
        return first.tolist(), [0.6] * len(ids)
    weight = np.nan_to_num(np.take_along_axis(routing.gate_weights_TK, place, 1)[:, 0])
    return first.tolist(), np.clip(weight / max(1.0, float(weight.max(initial=0.0))), 0.0, 1.0).tolist()


def describe(routing: Routing, token: int, text: str) -> str:
    """`token 12 'a' → experts 3 (0.61), 5 (0.39)`"""
    null = first_null(routing)
    ids = routing.expert_ids_TK[token].tolist()
    weights = None if routing.gate_weights_TK is None else routing.gate_weights_TK[token].tolist()
    chosen = [
        f"{label(e, null)} ({share(weights[i])})" if weights else label(e, null) for i, e in enumerate(ids) if e >= 0
    ]
    count = len(chosen)
    if count > 8:
        chosen = [*chosen[:8], f"and {count - 8} more"]
    to = f"expert{'s' if count > 1 else ''} {', '.join(chosen)}" if chosen else "no expert"
    if routing.soft:
        to = f"a mixture of all {count} experts: {', '.join(chosen)}"
    if routing.dropped_TK is not None and routing.dropped_TK[token].any():
        lost = [
            label(e, null) for e, gone in zip(ids, routing.dropped_TK[token].tolist(), strict=True) if gone and e >= 0
        ]
        to += f", dropped at {', '.join(lost)}" if lost else ""
    return f"token {token} '{text}' → {to}"
