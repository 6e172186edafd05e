"""The knobs: one row for each setting, made from the data in domain/settings.py. Emits what the user asked for; shows
what the running model has."""

import math
import re
from collections.abc import Callable

from PySide6.QtCore import QEvent, QObject, QSignalBlocker, QSize, Qt, QTimer, Signal
from PySide6.QtGui import QFocusEvent, QKeyEvent
from PySide6.QtWidgets import (
    QAbstractSpinBox,
    QComboBox,
    QDoubleSpinBox,
    QGridLayout,
    QLabel,
    QLineEdit,
    QScrollArea,
    QSlider,
    QSpinBox,
    QToolButton,
    QWidget,
)

from moeviz.domain.places import in_words
from moeviz.domain.settings import KNOBS, TYPES, Knob, Settings, SettingsError, Value
from moeviz.view.theme import BODY, GRID, sans
from moeviz.view.together import explain, idle, k_in_words, looks_ahead, together, useless

GROUPS = {
    "main": "",
    "router": "Router",
    "balance": "Balance",
    "training": "Training",
    "model": "Model (restarts)",
    "data": "Data (restarts)",
}
TICKS = 1000  # positions of a slider over real numbers
REFUSAL_MS = 10_000  # how long it is told why a value was refused, if no other is set before
LOG_FLOOR = 1e-4  # a logarithmic slider has zero at its left end and this right beside it
USUAL = ("balance.loss", "balance.coefficient", "balance.z_coefficient")  # of the balance group; the others are folded


class Controls(QScrollArea):
    """All knobs. `changed` carries {key: value}; nothing is shown as set until `show_settings` says so."""

    changed = Signal(object)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.settings = Settings()
        self.rows: dict[str, Row] = {}
        self.heads: dict[str, QLabel] = {}
        self.more = QToolButton()
        self.more.setCheckable(True)
        self.more.setToolTip("Losses that are off; those in use are always shown")
        self.more.setFocusPolicy(Qt.FocusPolicy.TabFocus)
        self.more.toggled.connect(lambda _: self.show_settings(self.settings))
        self.body = body = QWidget()
        grid = QGridLayout(body)
        grid.setContentsMargins(GRID, GRID, GRID, GRID)
        grid.setHorizontalSpacing(GRID)
        grid.setVerticalSpacing(GRID // 2)
        self.recording = QLabel("A recording was made with these knobs; press Restart to train a model with them.")
        self.recording.setWordWrap(True)
        self.recording.setObjectName("hint")
        self.recording.hide()
        grid.addWidget(self.recording, 0, 0, 1, 3)
        line = 1
        for group, title in GROUPS.items():
            if title:
                head = QLabel(title)
                head.setObjectName("group")
                head.setFont(sans(BODY, bold=True))
                head.setContentsMargins(0, GRID // 2, 0, 0)
                grid.addWidget(head, line, 0, 1, 3)
                self.heads[group] = head
                line += 1
            for key in sorted((key for key, knob in KNOBS.items() if knob.group == group), key=_place):
                row = Row(key, KNOBS[key], self._ask)
                self.rows[key] = row
                grid.addWidget(row.label, line, 0)
                grid.addWidget(row.words, line, 1, 1, 2)
                if row.slider is None:
                    grid.addWidget(row.field, line, 1, 1, 2)
                else:
                    grid.addWidget(row.slider, line, 1)
                    grid.addWidget(row.field, line, 2)
                grid.addWidget(row.note, line + 1, 0, 1, 3)
                line += 2
            if group == "balance":
                grid.addWidget(self.more, line, 0, 1, 3)
                line += 1
        grid.setColumnStretch(1, 1)
        grid.setRowStretch(line, 1)
        self.setWidget(body)
        self.setWidgetResizable(True)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setMaximumWidth(400)  # on a wide screen the room is for the panels
        self.refused = QTimer(self)
        self.refused.setSingleShot(True)
        self.refused.setInterval(REFUSAL_MS)
        self.refused.timeout.connect(self._explain)
        self.show_settings(self.settings)

    def minimumSizeHint(self) -> QSize:
        """No knob is cut off at the side."""
        size = super().minimumSizeHint()
        wide = self.body.minimumSizeHint().width() + self.verticalScrollBar().sizeHint().width()
        return size.expandedTo(QSize(min(wide, self.maximumWidth()), 0))

    def leave_room(self, height: int) -> None:
        """At the foot, for what the window has to say; the knobs scroll above it."""
        self.setViewportMargins(0, 0, 0, height)

    def _explain(self) -> None:
        """Under each knob, what is odd about it."""
        notes = explain(self.settings), looks_ahead(self.settings)
        for key, row in self.rows.items():
            why = idle(self.settings, key)
            sentences = (f"Does nothing here: {why}." if why else "", *(note.get(key, "") for note in notes))
            row.say(" ".join(filter(None, sentences)) if row.seen else "")

    def show_settings(self, settings: Settings) -> None:
        """What the running model has now."""
        self.settings = settings
        self.refused.stop()
        flat, folded = settings.flat(), 0
        for key, row in self.rows.items():
            row.show_value(flat[key])
            applies, off = settings.applies(key), flat[key] == 0
            if row.knob.group == "balance" and key not in USUAL:
                folded += applies and off
                seen = (applies and self.more.isChecked()) or not off  # a coefficient that is set is never hidden
            else:
                seen = (applies and not useless(settings, key)) or key == "routing.k"
            row.show_row(seen)
        self._explain()
        k, (title, instead) = self.rows["routing.k"], k_in_words(settings)
        k.end_slider_at(settings.model.experts)
        k.label.setText(title)
        if instead:
            k.replace_by(instead)
        for group, head in self.heads.items():
            head.setVisible(any(row.seen for row in self.rows.values() if row.knob.group == group))
        self.more.setText(f"▾ Fewer losses ({folded})" if self.more.isChecked() else f"▸ More losses ({folded})")
        self.more.setVisible(folded > 0)
        if not self.recording.isHidden():
            self.show_recording(True)

    def show_recording(self, on: bool) -> None:
        """Of a recording the knobs only tell how it was made."""
        self.recording.setVisible(on)
        for row in self.rows.values():
            for widget in (row.label, row.field, row.slider):
                if widget is not None:
                    widget.setDisabled(on)
        if not on:
            self.show_settings(self.settings)

    def _ask(self, key: str, value: Value) -> None:
        values = together(self.settings, key, value)
        try:
            wanted = self.settings.with_values(values)
        except SettingsError as error:
            self.show_settings(self.settings)
            self.rows[key].say(f"⚠ {named_as_knobs(error)}")
            self.refused.start()
            return
        if wanted != self.settings:
            self.changed.emit(values)


def named_as_knobs(error: SettingsError) -> str:
    """What is refused, in the names that the knobs have here instead of the keys of a settings file."""
    dotted = r"\b[a-z_]+\.[a-z_0-9]+"
    return re.sub(dotted, lambda key: KNOBS[key[0]].title if key[0] in KNOBS else key[0], str(error))


def _place(key: str) -> tuple[bool, bool]:
    """The router before its options, and shared experts, which are no part of it, after them; else the given order."""
    return key.startswith("model.shared"), KNOBS[key].group == "router" and key != "routing.router"


class Row(QObject):
    """Label, slider and number of one knob. A double-click on the label asks for the default."""

    def __init__(self, key: str, knob: Knob, ask: Callable[[str, Value], None]) -> None:
        super().__init__()
        self.key, self.knob, self._ask = key, knob, ask
        self.default: Value = Settings().flat()[key]
        self.seen = True
        self.label = QLabel(knob.title)
        self.words = QLabel()  # in the place of slider and number, where there is nothing to set
        self.note = QLabel()  # under the knob: why it was refused, or what is odd about its value
        for words in (self.words, self.note):
            words.setWordWrap(True)
            words.setObjectName("hint")
        self.slider: QSlider | None = None
        self._drags = 0
        self.field: QWidget
        kind = TYPES[key]
        if knob.choices:
            box = QComboBox()
            box.addItems(knob.choices)
            box.activated.connect(lambda: ask(key, box.currentText()))
            self.field = box
        elif kind is str:
            line = PathLine()
            line.setPlaceholderText("built-in")
            line.editingFinished.connect(lambda: ask(key, line.text()))
            self.field = line
        else:
            self.field = self._number(kind)
            if key != "seed":
                self.slider = self._make_slider(kind)
        tip = (
            f"<p>{knob.help}</p><p>Key: {key}, default {self._text(self.default)}. Double-click the name to reset.</p>"
        )
        for widget in (self.label, self.field, self.slider):
            if widget is not None:
                widget.setToolTip(tip)
                widget.setAccessibleName(knob.title)
        self.words.setToolTip(tip)
        self.label.installEventFilter(self)
        for widget in (self.field, self.slider):
            if widget is not None:
                widget.setFocusPolicy(Qt.FocusPolicy.StrongFocus)  # not by the wheel
                widget.installEventFilter(self)

    def _number(self, kind: type) -> QWidget:
        low, high = self.knob.low or 0, self.knob.high or 0
        box: QSpinBox | DoubleBox
        if kind is int:
            box = QSpinBox()
            box.setRange(int(low), int(high))
        else:
            box = DoubleBox()
            box.setDecimals(6)
            box.setRange(low, high)
            box.setSingleStep(0.1)
            if self.knob.log:
                box.setStepType(QDoubleSpinBox.StepType.AdaptiveDecimalStepType)
        box.setKeyboardTracking(False)
        box.setMinimumWidth(88)
        if self.knob.unit:
            box.setSuffix(f" {self.knob.unit}")
        box.valueChanged.connect(lambda value: self._ask(self.key, value))
        return box

    def _make_slider(self, kind: type) -> QSlider:
        slider = QSlider(Qt.Orientation.Horizontal)
        if kind is int and not self.knob.log:
            slider.setRange(int(self.knob.low or 0), int(self.knob.high or 0))
        else:
            slider.setRange(0, TICKS)
        slider.setMinimumWidth(48)
        slider.sliderPressed.connect(self._count_drag)
        slider.setTracking(self.knob.live)  # what restarts the model waits until the handle is let go
        slider.valueChanged.connect(lambda position: self._ask(self.key, self._value_at(position)))
        return slider

    def _count_drag(self) -> None:
        self._drags += 1

    @property
    def drag(self) -> int:
        """Which drag of the slider this is; 0 while nobody holds it."""
        return self._drags if self.slider is not None and self.slider.isSliderDown() else 0

    # ---- slider positions
    def _value_at(self, position: int) -> Value:
        if TYPES[self.key] is int:
            return position
        low, high = self.knob.low or 0.0, self.knob.high or 1.0
        if not self.knob.log:
            return float(f"{low + (high - low) * position / TICKS:.3g}")
        if position == 0:
            return low
        floor = low or LOG_FLOOR
        return float(f"{floor * (high / floor) ** (position / TICKS):.2g}")

    def _position_of(self, value: float) -> int:
        if TYPES[self.key] is int:
            return int(value)
        low, high = self.knob.low or 0.0, self.knob.high or 1.0
        if not self.knob.log:
            return round((value - low) / (high - low) * TICKS)
        floor = low or LOG_FLOOR
        return round(math.log(max(value, floor) / floor) / math.log(high / floor) * TICKS) if value > low else 0

    # ---- showing
    def show_value(self, value: Value) -> None:
        """Put a value in without asking for it."""
        with QSignalBlocker(self.field):
            if isinstance(self.field, QComboBox):
                self.field.setCurrentText(str(value))
            elif isinstance(self.field, PathLine):
                self.field.show_path(str(value))
            elif isinstance(self.field, QSpinBox):
                self.field.setValue(int(value))
            elif isinstance(self.field, QDoubleSpinBox):
                self.field.setValue(float(value))
        if self.slider is not None and not self.slider.isSliderDown():
            with QSignalBlocker(self.slider):
                self.slider.setValue(self._position_of(float(value)))

    def end_slider_at(self, high: int) -> None:
        """k ends at the number of experts. The box takes more, so that whoever types it is told why it cannot be."""
        assert self.slider is not None
        with QSignalBlocker(self.slider):
            self.slider.setMaximum(high)

    def show_row(self, seen: bool) -> None:
        self.seen = seen
        for widget in (self.label, self.field, self.slider):
            if widget is not None:
                widget.setVisible(seen)
        self.words.setText("")
        self.words.hide()

    def say(self, note: str) -> None:
        """Under the knob; empty if nothing is odd about it."""
        self.note.setText(note)
        self.note.setVisible(bool(note))

    def replace_by(self, words: str) -> None:
        """There is nothing to set: say what holds instead."""
        for widget in (self.field, self.slider):
            if widget is not None:
                widget.hide()
        self.words.setText(words)
        self.words.show()

    def _text(self, value: Value) -> str:
        return "empty" if value == "" else value if isinstance(value, str) else f"{value:g}"

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        kind = event.type()
        if kind == QEvent.Type.MouseButtonDblClick and watched is self.label:
            self._ask(self.key, self.default)
            return True
        if kind == QEvent.Type.Wheel and isinstance(watched, QWidget) and not watched.hasFocus():
            event.ignore()  # it is for what scrolls around the knob
            return True
        if kind == QEvent.Type.ShortcutOverride and isinstance(watched, QAbstractSpinBox) and _is_command(event):
            event.ignore()  # the box would take any key, though no number has these
            return True
        return False


def _is_command(event: QEvent) -> bool:
    """A key of a command, such as Space or R, that is no part of a number."""
    return isinstance(event, QKeyEvent) and (event.text() == " " or event.text().isalpha())


class DoubleBox(QDoubleSpinBox):
    """Shows 0.003, not 0.003000."""

    def textFromValue(self, value: float) -> str:
        return f"{value:.6f}".rstrip("0").rstrip(".") if value else "0"


FOR_A_WHILE = (Qt.FocusReason.PopupFocusReason, Qt.FocusReason.ActiveWindowFocusReason)  # and then it is back


class PathLine(QLineEdit):
    """Shows the name of a path, or how many there are, and all of it while it is edited."""

    path = ""

    def show_path(self, path: str) -> None:
        self.path = path
        self.setText(path if self.hasFocus() else in_words(path))

    def focusInEvent(self, event: QFocusEvent) -> None:
        if event.reason() not in FOR_A_WHILE:
            self.setText(self.path)
        super().focusInEvent(event)  # selects it, where the Tab key led here

    def focusOutEvent(self, event: QFocusEvent) -> None:
        super().focusOutEvent(event)  # asks for what was typed
        if event.reason() not in FOR_A_WHILE:
            self.show_path(self.path)
