"""The timeline: follows the run live, scrubs through its kept snapshots, or plays them back."""

from bisect import bisect_right
from typing import TYPE_CHECKING

from PySide6.QtCore import QEvent, QPointF, QSignalBlocker, Qt, QTimer, Signal
from PySide6.QtGui import QAction, QColor, QHelpEvent, QMouseEvent, QPainter, QPaintEvent
from PySide6.QtWidgets import QComboBox, QLabel, QSlider, QStyle, QStyleOptionSlider, QToolBar, QToolButton, QToolTip

from moeviz.view.steady import SteadyLabel
from moeviz.view.theme import GRID, THEMES, Theme

if TYPE_CHECKING:
    from moeviz.domain.history import History
    from moeviz.domain.routing import RoutingSnapshot

SPEEDS = (1, 2, 5, 10, 20)  # kept steps a second
USUAL_SPEED = 5
NEAR = 4.0  # px, from a mark to the mouse that asks for its words


class Timeline(QToolBar):
    """One place for each kept snapshot, and behind them one for the newest, which it then follows."""

    moved = Signal()

    def __init__(self, history: "History") -> None:
        super().__init__("Timeline")
        self.setObjectName("timeline")
        self.setMovable(False)
        self._history = history
        self._newest: RoutingSnapshot | None = None
        self._held: RoutingSnapshot | None = None  # what was shown last: a film that is thinned has other places
        self.slider = MarkedSlider()
        self.slider.setToolTip("Scrub through the history: the panels show the routing of that step")
        self.slider.setAccessibleName("Timeline")
        self.slider.setRange(0, 0)
        self.slider.setFocusPolicy(Qt.FocusPolicy.ClickFocus)
        self.slider.valueChanged.connect(self._move)
        self.when = SteadyLabel(120)
        self.play_button = QToolButton()
        self.play_button.setFixedWidth(5 * GRID)  # nothing must move when it becomes a pause button
        self.speed = QComboBox()
        for speed in SPEEDS:
            self.speed.addItem(f"{speed}/s", speed)
        self.speed.setCurrentIndex(SPEEDS.index(USUAL_SPEED))
        self.speed.setAccessibleName("Speed of playing back")
        self.speed.setToolTip("Kept steps a second while playing back")
        self._player = QTimer(self)
        self._player.timeout.connect(self._next)
        self.speed.currentIndexChanged.connect(lambda _: self._player.setInterval(self._interval()))
        for widget in (QLabel("Timeline "), self.play_button, self.speed, self.slider, self.when):
            self.addWidget(widget)

    # ---- what the window tells it
    def show_run(self, newest: "RoutingSnapshot | None") -> None:
        """The history has grown; the handle stays at its step, or at the newest."""
        film, shown, following = self._history.snapshots, self._held, self.following
        self._newest = newest
        place, marks = len(film), self._history.marks
        steps = [snapshot.step for snapshot in film] if marks or not following else []
        if not (following or shown is None):
            # several may be of one step: after a change of a knob while it rests
            same = (at for at, snapshot in enumerate(film) if snapshot is shown)
            place = next(same, max(bisect_right(steps, shown.step) - 1, 0))
        with QSignalBlocker(self.slider):
            self.slider.show_run(len(film), place, [(_first_after(steps, step), label) for step, label in marks])
        here = self._held = self.shown
        self.when.say(f"step {here.step:,}" + (" (newest)" if following else "") if here else "")

    def _move(self) -> None:
        self._held = self.shown
        self.moved.emit()

    def follow(self) -> None:
        """Show the newest step from now on."""
        self.pause()
        self.slider.setValue(self.slider.maximum())

    @property
    def following(self) -> bool:
        return self.slider.value() == self.slider.maximum()

    @property
    def shown(self) -> "RoutingSnapshot | None":
        """The snapshot that the handle stands at."""
        film, at = self._history.snapshots, self.slider.value()
        return film[at] if at < min(self.slider.maximum(), len(film)) else self._newest

    # ---- playing back
    @property
    def playing(self) -> bool:
        return self._player.isActive()

    def play(self) -> None:
        """Play from here to the newest step, from the first one on if that is where it stands; again: pause."""
        if self.playing:
            self.pause()
        elif self.slider.maximum() > 1:
            if self.following:
                self.slider.setValue(0)
            self._player.start(self._interval())
        self._show_state()

    def pause(self) -> None:
        self._player.stop()
        self._show_state()

    def _interval(self) -> int:
        return round(1000 / int(self.speed.currentData()))

    def _next(self) -> None:
        self.slider.setValue(self.slider.value() + 1)
        if self.following:
            self.pause()

    def take_action(self, action: QAction) -> None:
        """The command that plays back, for the button."""
        self.play_button.setDefaultAction(action)
        self._show_state()

    def _show_state(self) -> None:
        action = self.play_button.defaultAction()
        action.setText("Pause playing" if self.playing else "Play back")
        action.setIconText("❚❚" if self.playing else "▶")
        action.setToolTip("Play the kept steps, from the first one on if the newest is shown (P)")
        action.setChecked(self.playing)

    def apply_theme(self, theme: Theme) -> None:
        self.slider.theme = theme
        self.slider.update()


class MarkedSlider(QSlider):
    """With a tick where a knob was changed; its words come when the mouse stands at it."""

    def __init__(self) -> None:
        super().__init__(Qt.Orientation.Horizontal)
        self.theme = THEMES["dark"]
        self.marks: list[tuple[int, str]] = []  # place, words

        self._places: tuple[list[int], int, int] = ([], 0, 0)  # of marks and handle in pixels; the slider's width
        self._whole = True  # what is set belongs together
        self._length = 0  # of the handle along the slider; 0: not asked yet

    def show_run(self, last: int, place: int, marks: list[tuple[int, str]]) -> None:
        """All at once: a new range alone would move the handle to and fro."""
        self._whole = False
        self.setMaximum(last)
        self.setValue(place)
        self.marks, self._whole = marks, True
        self._move()

    def words_at(self, x: float) -> str:
        places = self._xs([at for at, _ in self.marks])
        return ", ".join(label for (_, label), at in zip(self.marks, places, strict=True) if abs(at - x) <= NEAR)

    def _xs(self, places: list[int]) -> list[int]:
        """In pixels, as the style puts the handle's middle there."""
        handle, last = self._handle(), self.maximum()
        room = self.width() - handle
        return [handle // 2 + QStyle.sliderPositionFromValue(0, last, min(at, last), room) for at in places]

    def sliderChange(self, change: QSlider.SliderChange) -> None:
        """Qt paints anew whenever the range has grown, also where no pixel would move."""
        if change in (QSlider.SliderChange.SliderRangeChange, QSlider.SliderChange.SliderValueChange):
            self._move()
        else:
            super().sliderChange(change)

    def _move(self) -> None:
        if not self._whole:
            return
        *marks, handle = self._xs([*(at for at, _ in self.marks), self.value()])
        if self._places != (places := (sorted(set(marks)), handle, self.width())):
            self._places = places
            self.update()

    def _handle(self) -> int:
        """Its width, which a style works out each time it is asked."""
        if not self._length:
            option = QStyleOptionSlider()
            self.initStyleOption(option)
            self._length = self.style().pixelMetric(QStyle.PixelMetric.PM_SliderLength, option, self)
        return self._length

    def changeEvent(self, event: QEvent) -> None:
        self._length = 0  # another style, theme or font
        super().changeEvent(event)

    def mousePressEvent(self, event: QMouseEvent) -> None:
        """The handle goes to where the mouse is, and with it; Qt's own would go a page towards it."""
        if event.button() == Qt.MouseButton.LeftButton:
            self.setSliderDown(True)
            self.mouseMoveEvent(event)

    def mouseMoveEvent(self, event: QMouseEvent) -> None:
        if self.isSliderDown():
            handle = self._handle()
            left = round(event.position().x() - handle / 2)
            self.setValue(QStyle.sliderValueFromPosition(0, self.maximum(), left, self.width() - handle))

    def mouseReleaseEvent(self, event: QMouseEvent) -> None:
        self.setSliderDown(False)

    def paintEvent(self, event: QPaintEvent) -> None:
        super().paintEvent(event)
        if not self.marks:
            return
        painter = QPainter(self)
        painter.setPen(QColor(self.theme.warn))
        for x in self._xs([at for at, _ in self.marks]):
            painter.drawLine(QPointF(x + 0.5, 0), QPointF(x + 0.5, GRID // 2))
        painter.end()

    def event(self, event: QEvent) -> bool:
        if event.type() == QEvent.Type.ToolTip and isinstance(event, QHelpEvent):
            words = self.words_at(event.pos().x())
            if words:
                QToolTip.showText(event.globalPos(), words, self)
                return True
        return super().event(event)


def _first_after(steps: list[int], step: int) -> int:
    """The place of the first snapshot that a change at this step has touched: the last one of that step, if any."""
    at = bisect_right(steps, step)
    return at - (at > 0 and steps[at - 1] == step)
