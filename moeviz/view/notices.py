"""What there is to tell, and a question that stops nothing while it waits."""

import re
import time
from collections.abc import Callable, Sequence

from PySide6.QtCore import QEvent, QObject, QPoint, QRect, QSize, Qt, QTimer, Signal
from PySide6.QtGui import QGuiApplication
from PySide6.QtWidgets import QBoxLayout, QFrame, QLabel, QToolButton, QVBoxLayout, QWidget

from moeviz.view.controls import Controls
from moeviz.view.theme import GRID, Theme

WIDEST = 120 * GRID
MARGINS = 4 * GRID
LEAST_KNOBS = 20 * GRID  # px, what of the knobs must stay to be seen
ACROSS, DOWN = QBoxLayout.Direction.LeftToRight, QBoxLayout.Direction.TopToBottom
PASSING_MS = 6000  # how long what went well is told


class Messages(QWidget):
    """The notice and the question, one over the other, at the foot of the knobs: these leave them room, so that nothing
    is hidden and no plot moves. Where the knobs are put away, or too low, they lie over the panels, above `floor`."""

    def __init__(self, parent: QWidget, knobs: Controls, floor: QWidget) -> None:
        super().__init__(parent)
        self.notices, self.question = Notices(), Question()
        self._window, self._knobs, self._floor = parent, knobs, floor
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(GRID // 2)
        for bar in (self.notices, self.question):
            layout.addWidget(bar)
            bar.changed.connect(self.fit)
        for place in (floor, knobs, knobs.parentWidget()):  # one of them moves whenever there is another room
            if place is not None:
                place.installEventFilter(self)
        self.fit()

    def dismiss(self) -> bool:
        """Take the newest away, a question with its no; False if there is nothing."""
        there = [bar for bar in (self.notices, self.question) if not bar.isHidden()]
        if there:
            max(there, key=lambda bar: bar.since).dismiss()
        return bool(there)

    def fit(self) -> None:
        """As wide and high as the words need."""
        there = [bar for bar in (self.notices, self.question) if not bar.isHidden()]
        self.setVisible(bool(there))
        at = self._at_the_knobs(there) if there else None
        self._knobs.leave_room(at.height() + GRID if at is not None else 0)
        if there:
            self.setGeometry(at or self._over_the_panels(there))
            self.raise_()

    def _at_the_knobs(self, there: "Sequence[_Bar]") -> QRect | None:
        knobs = self._knobs
        width = knobs.width() - GRID
        if not knobs.isVisible() or knobs.window() is not self.window() or max(b.least_width() for b in there) > width:
            return None
        height = _high(there, width, stacked=True)
        if knobs.height() - height < LEAST_KNOBS:
            return None
        return QRect(knobs.mapTo(self._window, QPoint(GRID // 2, knobs.height() - height)), QSize(width, height))

    def _over_the_panels(self, there: "Sequence[_Bar]") -> QRect:
        room = min(self._window.width() - 4 * GRID, WIDEST)
        width = min(max(bar.wanted_width() for bar in there), room)
        height = _high(there, width, stacked=False)
        return QRect((self._window.width() - width) // 2, self._floor.y() - height - GRID, width, height)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        if event.type() in (QEvent.Type.Move, QEvent.Type.Resize, QEvent.Type.Show, QEvent.Type.Hide):
            self.fit()
        return False


def _high(there: "Sequence[_Bar]", width: int, *, stacked: bool) -> int:
    return sum(bar.fit(width, stacked=stacked) for bar in there) + (len(there) - 1) * GRID // 2


class _Bar(QFrame):
    """A sentence with buttons after it, or under it."""

    changed = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.setObjectName("banner")
        self.setAutoFillBackground(True)
        self.since = 0.0
        self._line = QBoxLayout(QBoxLayout.Direction.LeftToRight, self)
        self._line.setContentsMargins(2 * GRID, GRID // 2, GRID, GRID // 2)
        self._line.setSpacing(GRID)
        self.words = QLabel()
        self.words.setWordWrap(True)
        self.words.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self._line.addWidget(self.words, 1)
        self._row = QBoxLayout(QBoxLayout.Direction.LeftToRight)
        self._row.setSpacing(GRID)
        self._line.addLayout(self._row)
        self._line.setAlignment(self._row, Qt.AlignmentFlag.AlignLeft)
        self._buttons: list[QToolButton] = []
        self.hide()

    def say(self, sentence: str) -> None:
        self.since = time.monotonic()
        self.words.setText(sentence)
        self.setVisible(True)  # show() would say nothing where it is there already

    def setVisible(self, on: bool) -> None:
        super().setVisible(on)
        self.changed.emit()

    def dismiss(self) -> None:
        raise NotImplementedError

    def wanted_width(self) -> int:
        """With the sentence in one line."""
        return self.fontMetrics().horizontalAdvance(self.words.text()) + self._beside() + GRID

    def least_width(self) -> int:
        """With the buttons under the words: of the longest word, and of each button."""
        words = map(self.fontMetrics().horizontalAdvance, re.split(r"[\s/-]", self.words.text()))
        return max(*words, *(button.sizeHint().width() for button in self._shown())) + MARGINS

    def fit(self, width: int, *, stacked: bool) -> int:
        """Take the height that the words need at this width, which is returned."""
        buttons = [button.sizeHint() for button in self._shown()]
        high = max(size.height() for size in buttons)
        if stacked:
            across = sum(size.width() + GRID for size in buttons) - GRID <= width - MARGINS
            rows = 1 if across else len(buttons)
            height = self.words.heightForWidth(width - MARGINS) + GRID + rows * high + (rows - 1) * GRID
        else:
            across = True
            height = max(self.words.heightForWidth(width - self._beside()), high)
        self._line.setDirection(DOWN if stacked else ACROSS)
        self._row.setDirection(ACROSS if across else DOWN)
        self.setFixedHeight(height + 2 * GRID)
        return height + 2 * GRID

    def _shown(self) -> list[QToolButton]:
        return [button for button in self._buttons if not button.isHidden()]

    def _beside(self) -> int:
        """What is beside the words."""
        return MARGINS + sum(button.sizeHint().width() + GRID for button in self._shown())

    def _button(self, text: str, run: Callable[[], object]) -> QToolButton:
        button = QToolButton()
        button.setText(text)
        button.setFocusPolicy(Qt.FocusPolicy.TabFocus)
        button.clicked.connect(lambda: run())
        self._row.addWidget(button)
        self._buttons.append(button)
        return button

    def wear(self, theme: Theme) -> None:
        self.setStyleSheet(
            f"#banner {{ background: {theme.raised}; border: 1px solid {theme.line};"
            f"           border-left: 4px solid {theme.warn}; border-radius: 4px; }}"
            f"QToolButton {{ color: {theme.text}; border: 1px solid {theme.line}; padding: 2px 8px; }}"
            f"QToolButton:hover, QToolButton:focus {{ border-color: {theme.accent}; }}"
        )


class Notices(_Bar):
    """What went wrong, until it is dismissed or something newer is told; what went well, for some seconds."""

    def __init__(self) -> None:
        super().__init__()
        self._details = ""
        self.copy = self._button("Copy details", lambda: QGuiApplication.clipboard().setText(self._details))
        self.close_button = self._button("Dismiss", self.hide)
        self.close_button.setToolTip("Esc")
        self.passing = QTimer(self)
        self.passing.setSingleShot(True)
        self.passing.setInterval(PASSING_MS)
        self.passing.timeout.connect(self._pass)

    def tell(self, sentence: str, details: str = "", *, passing: bool = False) -> None:
        self._details = details
        self.copy.setVisible(bool(details))
        self.say(sentence)
        self.passing.stop()
        if passing:
            self.passing.start()

    def dismiss(self) -> None:
        self.hide()

    def _pass(self) -> None:
        if self.underMouse():  # it is being read, or copied
            self.passing.start()
        else:
            self.hide()


class Question(_Bar):
    """One question at a time; a newer one takes the place of an older one, whose answer is then no."""

    def __init__(self) -> None:
        super().__init__()
        self._then: Callable[[], object] = bool
        self._else: Callable[[], object] = bool
        self.lasting = False
        self._also: Callable[[], object] = bool
        self.yes = self._button("", lambda: self.answer(True))
        self.third = self._button("", self._take_third)
        self.no = self._button("", lambda: self.answer(False))
        self.yes.setToolTip("Ctrl+Enter")
        self.no.setToolTip("Esc")

    def ask(
        self,
        sentence: str,
        yes: str,
        then: Callable[[], object],
        no: str = "Keep",
        otherwise: Callable[[], object] = bool,
        *,
        lasting: bool = False,
        third: tuple[str, Callable[[], object]] | None = None,
    ) -> None:
        """`lasting`: it makes sense whichever model is shown. `third`: an answer besides, and what it does."""
        self.lasting = lasting
        self.yes.setText(yes)
        self.no.setText(no)
        self._then, self._else = then, otherwise
        title, self._also = third or ("", bool)
        self.third.setText(title)
        self.third.setVisible(third is not None)
        self.say(sentence)

    @property
    def open(self) -> bool:
        return not self.isHidden()

    def dismiss(self) -> None:
        self.answer(False)

    def answer(self, yes: bool) -> None:
        if self.open:
            self.hide()
            (self._then if yes else self._else)()

    def _take_third(self) -> None:
        self.hide()
        self._also()
