"""The bars under the main bar: what there is to tell, and a question that stops nothing while it waits."""

from collections.abc import Callable

from PySide6.QtCore import Qt
from PySide6.QtGui import QGuiApplication, QResizeEvent
from PySide6.QtWidgets import QHBoxLayout, QLabel, QToolBar, QToolButton, QWidget

from moeviz.view.theme import GRID, Theme


class _Bar(QToolBar):
    """A sentence with buttons after it."""

    def __init__(self, title: str, name: str) -> None:
        super().__init__(title)
        self.setObjectName(name)
        self.setMovable(False)
        self.toggleViewAction().setVisible(False)  # it comes and goes by itself
        self.banner = QWidget()
        self.banner.setObjectName("banner")
        self._line = QHBoxLayout(self.banner)
        self._line.setContentsMargins(GRID, 0, GRID, 0)
        self.words = QLabel()
        self.words.setWordWrap(True)
        self.words.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self._line.addWidget(self.words, 1)
        self.addWidget(self.banner)
        self.hide()

    def say(self, sentence: str) -> None:
        self.words.setText(sentence)
        self.show()
        self._fit()

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        self._fit()

    def _fit(self) -> None:
        """As high as the words need at this width: a tool bar does not ask a label that wraps."""
        layout = self.banner.layout()
        assert layout is not None
        layout.activate()
        beside = sum(button.sizeHint().width() + GRID for button in self.banner.findChildren(QToolButton))
        room = max(self.width() - beside - 6 * GRID, 100)
        buttons = max(button.sizeHint().height() for button in self.banner.findChildren(QToolButton))
        self.banner.setFixedHeight(max(self.words.heightForWidth(room), buttons) + GRID)

    def _button(self, text: str, run: Callable[[], object]) -> QToolButton:
        button = QToolButton()
        button.setText(text)
        button.setFocusPolicy(Qt.FocusPolicy.TabFocus)
        button.clicked.connect(lambda: run())
        self._line.addWidget(button)
        return button

    def wear(self, theme: Theme) -> None:
        self.banner.setStyleSheet(
            f"#banner {{ background: {theme.raised}; border-left: 4px solid {theme.warn}; }}"
            f"QToolButton {{ color: {theme.text}; border: 1px solid {theme.line}; padding: 2px 8px; }}"
            f"QToolButton:hover, QToolButton:focus {{ border-color: {theme.accent}; }}"
        )
        self._fit()


class Notices(_Bar):
    """What went wrong or was done, until it is dismissed or something newer is told."""

    def __init__(self) -> None:
        super().__init__("Notices", "notices")
        self._details = ""
        self.copy = self._button("Copy details", lambda: QGuiApplication.clipboard().setText(self._details))
        self._button("Dismiss", self.hide)

    def tell(self, sentence: str, details: str = "") -> None:
        self._details = details
        self.copy.setVisible(bool(details))
        self.say(sentence)


class Question(_Bar):
    """One question at a time; a newer one takes the place of an older one, whose answer is then no."""

    def __init__(self) -> None:
        super().__init__("Question", "question")
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

    def answer(self, yes: bool) -> None:
        if self.open:
            self.hide()
            (self._then if yes else self._else)()

    def _take_third(self) -> None:
        self.hide()
        self._also()
