"""Which part of its input each expert has: over the plane for 2-D points, else along principal components. On the plane
the user may paint points of their own."""

import numpy as np
from PySide6.QtCore import QEvent, QObject, QPointF, QRectF, Qt, Signal
from PySide6.QtGui import QMouseEvent, QPainter
from PySide6.QtWidgets import QComboBox, QToolButton, QWidget

from moeviz.domain.points import CLASSES, Points
from moeviz.domain.routing import RoutingSnapshot
from moeviz.domain.survey import Plane, SurveyResult
from moeviz.view.panel import NARROW, NO_ROUTING, Panel, Pointed, Table
from moeviz.view.panels.components import ComponentsPicture
from moeviz.view.panels.dots import draw_ring
from moeviz.view.panels.painting import MOST, Painting
from moeviz.view.panels.plane import KINDS, PlanePicture
from moeviz.view.theme import Theme

NO_INPUTS = "This data holds no inputs of routers: it needs a model, which is then surveyed."
BRUSH = 14.0  # px, its radius


class InputMap(Panel):
    name = "input_map"
    uses = frozenset({"survey", "layer", "token", "expert"})

    painted = Signal(object, object)  # points (N, 2) to train on, and their classes (N,)

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(theme, parent)
        self.painting = Painting()
        self._brush: QPointF | None = None  # where it is
        self._picture: PlanePicture | ComponentsPicture | None = None
        self._made: object = None
        self.kind = QComboBox()
        self.kind.addItems(list(KINDS))
        self.kind.setAccessibleName("What the plane shows")
        self.kind.setToolTip("experts: the regions of the layer's first experts. output: the model's probability of ●.")
        self.kind.currentIndexChanged.connect(lambda _: self.invalidate())
        self.paint = _button("Paint", "Paint points of your own, for the model to train on")
        self.paint.setCheckable(True)
        self.paint.toggled.connect(lambda _: self._show_tools())
        self.classes = [_button(name, f"Paint points of class {name}") for name in CLASSES]
        for button in self.classes:
            button.setCheckable(True)
            button.setAutoExclusive(True)
        self.classes[0].setChecked(True)
        self.use = _button("Use", "Train on these points: the running model goes on with them in place of its data")
        self.use.clicked.connect(lambda: self.painted.emit(self.painting.xy, self.painting.label))
        self.clear = _button("Clear", "Take all painted points away")
        self.clear.clicked.connect(self._clear)
        self.tools = [*self.classes, self.use, self.clear]
        # Paint is last: it stays under the mouse when the tools come and go
        for place, widget in enumerate([self.kind, *self.tools, self.paint], 1):
            self.header.insertWidget(place, widget)
        self.kind.hide()
        self.paint.hide()
        self._show_tools()
        self.canvas.installEventFilter(self)

    # ---- what it tells of
    @property
    def source(self) -> RoutingSnapshot | None:
        """The probe as the survey saw it, so that all is of one step."""
        return self.survey.probe if self.survey is not None else self.snapshot

    @property
    def plane(self) -> Plane | None:
        return self.survey.plane if self.survey is not None else None

    def show_snapshot(self, snapshot: RoutingSnapshot | None) -> None:
        if self.survey is None and (snapshot is None) != (self.snapshot is None):
            self.invalidate()  # another sentence on what is missing
        self.snapshot = snapshot

    def show_survey(self, survey: SurveyResult | None) -> None:
        if survey is self.survey:
            return
        super().show_survey(survey)
        if survey is not None:
            for widget in (self.kind, self.paint):
                widget.setVisible(survey.plane is not None)
        for widget in (self.kind, self.paint):
            widget.setEnabled(survey is not None)
        self._show_tools()

    def missing(self) -> str:
        if self.source is None:
            return NO_ROUTING
        if self.survey is None or (self.survey.plane is None and not self.survey.inputs):
            return NO_INPUTS
        return super().missing()

    def prepare(self) -> None:
        survey, layer, expert = self.survey, self.layer, self.selection.expert
        assert survey is not None
        if expert is not None and expert >= survey.probe.layers[layer].num_experts:
            expert = None
        made = (survey, layer, expert, self.kind.currentText(), self.theme)
        if made == self._made:  # else only the token moved
            return
        self._made = made
        if survey.plane is not None:
            self._picture = PlanePicture(survey.plane, survey.probe, layer, made[3], self.theme, expert)
        else:
            probe, held = survey.probe, survey.heldout
            self._picture = ComponentsPicture(survey.inputs[layer], probe, held, layer, self.theme, expert)

    def draw(self, painter: QPainter, rect: QRectF) -> None:
        token = self.pointed.get("token", self.selection.token)
        if isinstance(self._picture, ComponentsPicture):
            self._picture.draw(painter, rect, token)
        elif self._picture is not None:
            painted, plane = (self.painting.xy, self.painting.label == 1), self._picture.plane
            small = (plane.own_N2, plane.own_second_N) if len(plane.own_N2) else painted  # what was painted stays
            self._picture.draw(painter, rect, token, painted if self.paints else None, small)
            if self.paints and self._brush is not None:
                draw_ring(painter, self._brush, BRUSH, self.theme)

    def lines_of_words(self, width: float) -> int:
        return next(lines for lines, wide in ((1, 760), (2, NARROW), (3, 300), (4, 0)) if width >= wide)

    def subtitle(self) -> str:
        step = f", step {self.survey.step:,}" if self.survey is not None else ""
        kind = f", {self.kind.currentText()}" if self.plane is not None else ""
        return f"layer {self.layer}{kind}{step}"

    def footer(self) -> str:
        if self.paints:
            count = len(self.painting.xy)
            mouse = self.for_mouse("drag to spray, with the right button or Shift to erase")
            words = [f"{count} points painted", *filter(None, [mouse])]
            if self.painting.lack:
                words.append(self.painting.lack)
            elif self.plane is not None and _same(self.plane.own_N2, self.painting.xy):
                words.append("the model has these")
            else:
                words.append("no more can be painted" if count >= MOST else "Use: train on them")
            return "  ".join(words)
        assert self._picture is not None
        assert self.survey is not None
        words = self._picture.footer(self.pointed, self.survey.step, self.for_mouse(", click one"))
        if self.plane is not None and not len(self.plane.own_N2) and len(self.painting.xy) and not self.pointed:
            words.append(f"small: {len(self.painting.xy)} painted, not trained on: Paint, then Use")
        return "  ".join(words)

    def hit(self, point: QPointF, rect: QRectF) -> Pointed:
        return {} if self.paints or self._picture is None else self._picture.hit(point, rect)

    def table(self) -> Table:
        if self.missing():
            return ["layer", "what"], []
        self.refresh()
        assert self._picture is not None
        return self._picture.table()

    # ---- painting
    @property
    def paints(self) -> bool:
        return self.paint.isChecked() and self.plane is not None

    def _show_tools(self) -> None:
        for widget in self.tools:
            widget.setVisible(self.paints)
        if not self.paints:
            self._brush = None
        self._count()

    def _clear(self) -> None:
        self.painting.clear()
        self._count()

    def _count(self) -> None:
        self.use.setEnabled(not self.painting.lack)
        self.canvas.update()

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """The mouse on the canvas is the brush's while painting."""
        if watched is not self.canvas or not self.paints or self.lack():
            return super().eventFilter(watched, event)
        if event.type() == QEvent.Type.Leave:
            self._brush = None
            self.canvas.update()
        if event.type() == QEvent.Type.ContextMenu:
            return True  # the right button erases
        if isinstance(event, QMouseEvent) and event.type() in BRUSHING:
            self._brush = event.position()
            self._dab(event)
            return True
        return super().eventFilter(watched, event)

    def _dab(self, event: QMouseEvent) -> None:
        assert isinstance(self._picture, PlanePicture)
        frame, point = self._picture.frame(self.plot_rect(QRectF(self.canvas.rect()))), event.position()
        left, right = (bool(event.buttons() & b) for b in (Qt.MouseButton.LeftButton, Qt.MouseButton.RightButton))
        if event.type() != QEvent.Type.MouseButtonRelease and (left or right) and frame.rect.contains(point):
            low, high = np.array([frame.x0, frame.y0]), np.array([frame.x1, frame.y1])
            unit = (high - low) / [frame.rect.width(), frame.rect.height()]
            at = low + unit * [point.x() - frame.rect.left(), frame.rect.bottom() - point.y()]
            if right or event.modifiers() & Qt.KeyboardModifier.ShiftModifier:
                self.painting.erase(at, BRUSH * unit)
            else:
                self.painting.spray(at, BRUSH * unit, int(self.classes[1].isChecked()), (low, high))
        self._count()


BRUSHING = (QEvent.Type.MouseButtonPress, QEvent.Type.MouseMove, QEvent.Type.MouseButtonRelease)


def _same(xy: Points, others: Points) -> bool:
    """The same points in whatever order."""
    return len(xy) == len(others) and np.array_equal(np.sort(xy, axis=0), np.sort(others, axis=0))


def _button(text: str, tip: str) -> QToolButton:
    button = QToolButton()
    button.setText(text)
    button.setToolTip(tip)
    button.setAccessibleName(tip)
    return button
