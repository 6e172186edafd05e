"""The base of all panels: a header, a canvas, the shared selection, and one way to paint for screen, PDF and SVG.

A panel only remembers what it is given; numbers are prepared and drawn when Qt asks it to paint, so a hidden panel
costs nothing. Everything is painted with plain QPainter calls: what is exported is what is seen.
"""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import ClassVar, Literal

from PySide6.QtCore import QEvent, QPointF, QRectF, QSize, Qt, Signal
from PySide6.QtGui import (
    QColor,
    QEnterEvent,
    QHelpEvent,
    QIcon,
    QMouseEvent,
    QPainter,
    QPaintEvent,
    QPixmap,
    QResizeEvent,
)
from PySide6.QtGui import QWheelEvent as WheelEvent
from PySide6.QtWidgets import QHBoxLayout, QLabel, QMenu, QSizePolicy, QToolButton, QToolTip, QVBoxLayout, QWidget

from moeviz.domain.history import History
from moeviz.domain.routing import Routing, RoutingSnapshot
from moeviz.domain.selection import Selection
from moeviz.domain.settings import Settings
from moeviz.domain.survey import SurveyResult
from moeviz.view.catalogue import BY_NAME
from moeviz.view.theme import BODY, GRID, SMALL, Theme, fitted, palette, sans, width_of

Pointed = dict[str, int]  # any of SHARED, and what a panel has besides, which stays its own
SHARED = ("layer", "token", "expert")
Table = tuple[list[str], list[list[int | float | str]]]
LayGround = Callable[[QPainter, QRectF | None], None]  # of the plot's rectangle; None where nothing is drawn in it
Uses = Literal["snapshot", "history", "survey", "layer", "token", "expert"]
LINE = 16  # px, one line of words under a plot
NARROW = 380  # px, a panel below it needs more lines for its words
HEADER = 3 * GRID
LEAST_TITLE = 9 * GRID
SLIM = 20  # px, a button of a header
NO_ROUTING = "No routing yet: start training, or open a model or a trace."
ENDINGS = ("png", "svg", "pdf", "csv")


class Panel(QWidget):
    """One view of the snapshot, the history and the selection."""

    hovered = Signal(object)  # Pointed; empty when the mouse has left
    clicked = Signal(object)  # Pointed; empty for a click beside everything
    export_requested = Signal(str, str)  # name of the plot, ending of the file
    knobs_asked = Signal(object)  # settings by key, of a panel that has a knob of its own

    name: ClassVar[str]
    uses: ClassVar[frozenset[Uses]] = frozenset({"snapshot", "layer"})
    calm: ClassVar[bool] = False  # whether one step hardly changes it: it is shown fewer of them while training
    footer_lines: ClassVar[int] = 1
    lowest: ClassVar[int] = 96  # px, of a plot and its axes beside one line of words

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.theme = theme
        self.snapshot: RoutingSnapshot | None = None
        self.history: History | None = None
        self.survey: SurveyResult | None = None
        self.selection = Selection()
        self.pointed: Pointed = {}
        self.draws = 0  # how often it was painted: what a hidden panel must not raise
        self._stale = True
        self._lack = ""
        self._revision = -1
        self._in_picture = False
        self.plot = BY_NAME[self.name]
        self.setObjectName(self.name)
        self.setAccessibleName(self.plot.title)
        self.setAccessibleDescription(self.plot.reading)
        self.setAutoFillBackground(True)

        self._title = Title(self.plot.title)
        self._help = QToolButton()
        self._help.setText("?")
        self._help.setToolTip(f"<p>{self.plot.reading}</p><p><i>{self.plot.formula}</i></p>")
        self._help.setAccessibleName(f"How to read {self.plot.title}")
        self._help.clicked.connect(self._explain)
        self._export = QToolButton()
        self._export.setToolTip("Export this plot")
        self._export.setAccessibleName(f"Export {self.plot.title}")
        self._export.setPopupMode(QToolButton.ToolButtonPopupMode.InstantPopup)
        for button in (self._help, self._export):
            make_slim(button)
        menu = QMenu(self._export)
        for ending in ENDINGS:
            label = "Numbers as CSV…" if ending == "csv" else f"Picture as {ending.upper()}…"
            menu.addAction(label).triggered.connect(
                lambda _=False, ending=ending: self.export_requested.emit(self.name, ending)
            )
        menu.aboutToHide.connect(self._let_go_of_export)
        self._export.setMenu(menu)
        self.header = QHBoxLayout()
        self.header.setContentsMargins(GRID, GRID // 2, GRID // 2, 0)
        self.header.setSpacing(GRID // 4)
        self.header.addWidget(self._title, 1)
        self.header.addWidget(self._help)
        self.header.addWidget(self._export)
        self.canvas = Canvas(self)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(0)
        layout.addLayout(self.header)
        layout.addWidget(self.canvas, 1)
        self.setMinimumSize(200, 96)
        self.apply_theme(theme)

    # ---- what each panel says for itself
    def missing(self) -> str:
        """Which data is missing, as a sentence; empty if there is something to draw."""
        return "" if self.routing() else NO_ROUTING

    def prepare(self) -> None:
        """Work out what draw() needs; called once after each change, and only if nothing is missing."""

    def draw(self, painter: QPainter, rect: QRectF) -> None:
        raise NotImplementedError

    def ground(self) -> Hashable:
        """What draw_ground() depends on, beside its rectangle and the theme; None where there is no ground."""
        return None

    def draw_ground(self, painter: QPainter, rect: QRectF) -> None:
        """What lies under draw() and stays from step to step, such as axes; the screen keeps a picture of it."""

    def footer(self) -> str:
        """Words under the plot."""
        return ""

    def for_mouse(self, words: str) -> str:
        """Words on what the mouse does, which an exported picture leaves out."""
        return "" if self._in_picture else words

    def subtitle(self) -> str:
        """Words after the title of an exported picture: of which layer and step it is, and what is picked in the
        header. A panel over all steps names none."""
        return self.where()

    def hit(self, point: QPointF, rect: QRectF) -> Pointed:
        """What lies under a point of the canvas; `rect` is the one that draw() was given."""
        return {}

    def table(self) -> Table:
        """The numbers behind the picture: the head, and rows."""
        raise NotImplementedError

    # ---- what the window tells it
    def show_snapshot(self, snapshot: RoutingSnapshot | None) -> None:
        if snapshot is not self.snapshot:
            self.snapshot = snapshot
            self._changed("snapshot")

    def show_history(self, history: History | None) -> None:
        revision = history.revision if history else -1
        if history is not self.history or revision != self._revision:
            self.history, self._revision = history, revision
            self._changed("history")

    def show_survey(self, survey: SurveyResult | None) -> None:
        if survey is not self.survey:
            self.survey = survey
            self._changed("survey")

    def show_settings(self, settings: Settings) -> None:
        """The knobs as they stand, for a panel that has one of its own."""

    def show_selection(self, selection: Selection) -> None:
        old, self.selection = self.selection, selection
        for part in SHARED:
            if getattr(old, part) != getattr(selection, part):
                self._changed(part)

    def apply_theme(self, theme: Theme) -> None:
        self.theme = theme
        colours = palette(theme)
        colours.setColor(colours.ColorRole.Window, QColor(theme.panel))
        self.setPalette(colours)
        self._export.setIcon(_export_icon(theme))
        self._stale = True
        self.canvas.update()

    def _let_go_of_export(self) -> None:
        """The mouse left for the menu and a dialog, which the button is not told."""
        self._export.setAttribute(Qt.WidgetAttribute.WA_UnderMouse, False)
        self._export.setDown(False)
        self._export.update()

    def _changed(self, part: str) -> None:
        if part in self.uses:
            self._stale = True
            self.canvas.update()

    # ---- what the panels share
    @property
    def source(self) -> RoutingSnapshot | None:
        """The routing that the panel tells of."""
        return self.snapshot

    @property
    def layer(self) -> int:
        """The selected layer, or the last one where there are fewer."""
        layers = len(self.source.layers) if self.source else 1
        return max(0, min(self.selection.layer, layers - 1))

    def where(self) -> str:
        return f"layer {self.layer}, {self.when()}"

    def when(self) -> str:
        return f"step {self.source.step:,}" if self.source is not None else ""

    def routing(self) -> Routing | None:
        source = self.source
        if source is None or not source.layers:
            return None
        routing = source.layers[self.layer]
        return routing if routing.num_tokens else None

    def picked(self, part: Literal["token", "expert"], count: int) -> int | None:
        """The one that is pointed at, or else selected, if it is among the `count` that are shown."""
        at = self.pointed.get(part, getattr(self.selection, part))
        return at if at is not None and at < count else None

    def refresh(self) -> None:
        """Prepare again if anything changed since; a reader of the numbers calls it before reading."""
        if self._stale:
            self._lack = self.missing()
            if not self._lack:
                self.prepare()
            if self._title.isEnabled() == bool(self._lack):
                self._title.setEnabled(not self._lack)
            self._stale = False

    def lack(self) -> str:
        """missing(), worked out once for each change."""
        self.refresh()
        return self._lack

    def invalidate(self) -> None:
        """Something of the panel's own changed, such as a choice in its header."""
        self._stale = True
        self.canvas.update()

    def plot_rect(self, rect: QRectF) -> QRectF:
        """The part of the canvas that draw() gets: without margins and without the words below."""
        return rect.adjusted(GRID, GRID // 2, -GRID, -(GRID // 2) - self._lines(rect) * LINE)

    def lines_of_words(self, width: float) -> int:
        """How many lines of words stand under a plot of this width, whatever they say now: the plot must not jump."""
        return self.footer_lines

    def _lines(self, rect: QRectF) -> int:
        """The words of a low panel give way to its plot, down to one line."""
        wanted = self.lines_of_words(rect.width())
        return min(wanted, max(1, int(rect.height() - self.lowest) // LINE))

    def paint_body(self, painter: QPainter, rect: QRectF, lay_ground: LayGround | None = None) -> None:
        """Everything below the header, into any painter. `lay_ground` may have a picture of the ground."""
        missing = self.lack()
        inner = self.plot_rect(rect)
        roomy = not missing and inner.width() > 40 and inner.height() > 16
        painter.save()
        painter.setClipRect(rect)
        painter.setFont(sans(SMALL))
        if lay_ground is not None:
            lay_ground(painter, inner if roomy else None)
        elif roomy:
            self.draw_ground(painter, inner)
        if missing:
            painter.setPen(QColor(self.theme.faint))
            painter.drawText(rect.adjusted(16, 8, -16, -8), WRAPPED | Qt.AlignmentFlag.AlignCenter, missing)
        else:
            if roomy:
                painter.save()
                self.draw(painter, inner)
                painter.restore()
            lines = self._lines(rect)
            if lines:
                self._paint_footer(painter, QPointF(inner.left(), inner.bottom() + 2), inner.width(), lines)
        painter.restore()

    def _paint_footer(self, painter: QPainter, at: QPointF, width: float, lines: int) -> None:
        painter.setFont(sans(SMALL))
        painter.setPen(QColor(self.theme.muted))
        for i, line in enumerate(wrapped(self.footer(), width, lines)):
            painter.drawText(QPointF(at.x(), at.y() + i * LINE + 12), line)  # others at each frame: not worth shaping

    def words_cut(self, point: QPointF) -> str:
        """All words under the plot, a phrase a line, if a point of the canvas lies on them and some had no room."""
        rect = QRectF(self.canvas.rect())
        inner = self.plot_rect(rect)
        if self.lack() or point.y() < inner.bottom():
            return ""
        words = self.footer()
        cut = any(line.endswith("…") for line in wrapped(words, inner.width(), self._lines(rect)))
        return words.replace("  ", "\n") if cut else ""

    def picture_size(self) -> QSize:
        """How large a picture of this panel alone is; larger than the widget where it scrolls."""
        width = max(self.width(), 320)
        return QSize(width, max(self.height(), 160) + self.picture_head(width) - HEADER)

    def picture_head(self, width: float) -> int:
        """How high the title of a picture is: a subtitle that has no room beside it has a line of its own."""
        lacks_room = not self.lack() and GRID + self._beside_title() + width_of(self.subtitle()) > width - GRID
        return HEADER + LINE if lacks_room else HEADER

    def _beside_title(self) -> float:
        return self._title.fontMetrics().horizontalAdvance(self.plot.title) + GRID

    def paint_picture(self, painter: QPainter, rect: QRectF) -> None:
        """Title and body, as exported."""
        missing = self.lack()
        painter.fillRect(rect, QColor(self.theme.panel))
        painter.setFont(sans(BODY, bold=True))
        painter.setPen(QColor(self.theme.faint if missing else self.theme.text))
        at = QPointF(rect.left() + GRID, rect.top() + 17)
        painter.drawText(at, self.plot.title)
        head = self.picture_head(rect.width())
        if not missing and self.subtitle():
            at += QPointF(0, LINE) if head > HEADER else QPointF(self._beside_title(), 0)
            painter.setFont(sans(SMALL))
            painter.setPen(QColor(self.theme.muted))
            painter.drawText(at, fitted(self.subtitle(), rect.right() - at.x() - GRID))
        self._in_picture = True
        try:
            self.paint_body(painter, rect.adjusted(0, head, 0, 0))
        finally:
            self._in_picture = False

    @contextmanager
    def themed(self, theme: Theme | None) -> Iterator[None]:
        """For the time of a picture, wear another theme."""
        own = self.theme
        if theme is not None and theme != own:
            self.theme, self._stale = theme, True
        try:
            yield
        finally:
            if self.theme != own:
                self.theme, self._stale = own, True

    # ---- the mouse
    def point_at(self, point: QPointF | None) -> None:
        found: Pointed = {}
        if point is not None and not self.lack():
            found = self.hit(point, self.plot_rect(QRectF(self.canvas.rect())))
        if found != self.pointed:
            self.pointed = found
            self.canvas.update()
            self.hovered.emit(_shared(found))

    def click_at(self, point: QPointF) -> None:
        if not self.lack():
            self.clicked.emit(_shared(self.hit(point, self.plot_rect(QRectF(self.canvas.rect())))))

    def wheel(self, pixels: float) -> bool:
        """The wheel was turned; True if the panel scrolled."""
        return False

    def _explain(self) -> None:
        QToolTip.showText(self._help.mapToGlobal(self._help.rect().bottomLeft()), self._help.toolTip(), self._help)


WRAPPED = Qt.TextFlag.TextWordWrap


def _shared(pointed: Pointed) -> Pointed:
    return {part: at for part, at in pointed.items() if part in SHARED}


def make_slim(button: QToolButton) -> None:
    """For a header: beside its buttons a narrow panel is to show its whole title."""
    button.setProperty("slim", True)
    button.setFixedWidth(SLIM)


class Title(QLabel):
    """Shortened where the header has no room for it: a layout's panels must fit beside each other."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.setFont(sans(BODY, bold=True))
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Preferred)

    def minimumSizeHint(self) -> QSize:
        return QSize(min(LEAST_TITLE, super().minimumSizeHint().width()), super().minimumSizeHint().height())

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        self.setToolTip(self.text() if self.fontMetrics().horizontalAdvance(self.text()) > self.width() else "")

    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.setPen(self.palette().color(self.foregroundRole()))
        text = self.fontMetrics().elidedText(self.text(), Qt.TextElideMode.ElideRight, self.width())
        painter.drawText(self.rect(), Qt.AlignmentFlag.AlignVCenter, text)
        painter.end()


class Canvas(QWidget):
    """Where a panel paints; it knows nothing but whom to ask."""

    def __init__(self, panel: Panel) -> None:
        super().__init__(panel)
        self._panel = panel
        self.setAttribute(Qt.WidgetAttribute.WA_OpaquePaintEvent)
        self.setMouseTracking(True)
        self._ground: tuple[Hashable, QPixmap] | None = None  # what it is of

    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        try:
            self._panel.draws += 1
            self._panel.paint_body(painter, QRectF(self.rect()), self._lay_ground)
        finally:
            painter.end()  # a painter left open by a defect would take the whole program down

    def _lay_ground(self, painter: QPainter, inner: QRectF | None) -> None:
        """Painted once and then laid down as a picture: that costs a tenth of painting it."""
        theme, of = self._panel.theme, None if inner is None else self._panel.ground()
        if of is None or inner is None:
            self._ground = None
            painter.fillRect(self.rect(), QColor(theme.panel))
            return
        key = (self.width(), self.height(), self.devicePixelRatio(), inner.height(), theme, of)
        if self._ground is None or self._ground[0] != key:
            picture = QPixmap(self.size() * self.devicePixelRatio())
            picture.setDevicePixelRatio(self.devicePixelRatio())
            picture.fill(theme.panel)
            once = QPainter(picture)
            try:
                once.setFont(sans(SMALL))
                self._panel.draw_ground(once, inner)
            finally:
                once.end()
            self._ground = key, picture
        painter.drawPixmap(0, 0, self._ground[1])

    def mouseMoveEvent(self, event: QMouseEvent) -> None:
        self._panel.point_at(event.position())

    def enterEvent(self, event: QEnterEvent) -> None:
        self._panel.point_at(event.position())

    def leaveEvent(self, event: QEvent) -> None:
        self._panel.point_at(None)

    def event(self, event: QEvent) -> bool:
        if isinstance(event, QHelpEvent) and (words := self._panel.words_cut(QPointF(event.pos()))):
            QToolTip.showText(event.globalPos(), words, self)
            return True
        return super().event(event)

    def mousePressEvent(self, event: QMouseEvent) -> None:
        if event.button() == Qt.MouseButton.LeftButton:
            self._panel.click_at(event.position())

    def wheelEvent(self, event: WheelEvent) -> None:
        pixels = event.pixelDelta().y() or event.angleDelta().y() / 4
        event.setAccepted(self._panel.wheel(pixels))


def wrapped(text: str, width: float, lines: int) -> list[str]:
    """At most `lines` lines, broken at the double spaces between phrases; … stands for the phrases that have no room,
    and a phrase is cut only where it is wider than a line."""
    out: list[str] = []
    phrases = text.split("  ")
    for i, phrase in enumerate(phrases, 1):
        longer = f"{out[-1]}   {phrase}" if out else phrase
        more = " …" if len(out) == lines and i < len(phrases) else ""  # it may be needed
        if out and width_of(longer + more) <= width:
            out[-1] = longer
        elif len(out) < lines:
            out.append(phrase)
        else:
            out[-1] += " …"
            break
    return [fitted(line, width) for line in out]


def _export_icon(theme: Theme) -> QIcon:
    pixmap = QPixmap(32, 32)
    pixmap.setDevicePixelRatio(2)
    pixmap.fill(Qt.GlobalColor.transparent)
    painter = QPainter(pixmap)
    painter.setRenderHint(QPainter.RenderHint.Antialiasing)
    painter.setPen(QColor(theme.muted))
    painter.drawPolyline([QPointF(3, 9), QPointF(3, 13), QPointF(13, 13), QPointF(13, 9)])
    painter.drawLine(QPointF(8, 2), QPointF(8, 10))
    painter.drawPolyline([QPointF(5, 7), QPointF(8, 10), QPointF(11, 7)])
    painter.end()
    return QIcon(pixmap)
