"""The lesson that is on: a step at a time, with the number that its check looks at, and a tick once it has happened."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from html import escape
from typing import TYPE_CHECKING

from PySide6.QtCore import Qt
from PySide6.QtGui import QAction
from PySide6.QtWidgets import QHBoxLayout, QWidget

from moeviz.domain.lesson_checks import Moment, recent
from moeviz.domain.lessons import LESSONS, Lesson, following
from moeviz.domain.selection import Selection
from moeviz.domain.settings import Settings
from moeviz.view.guide import button, column, label
from moeviz.view.theme import GRID

if TYPE_CHECKING:
    from moeviz.view.window import Window

MEMORY = "lessons"  # the names of those that were finished
NARROWEST = 280  # px, what the knobs leave for a line
READING_LINES = 3
LAST = "Next lesson"
WAITING = "The model of this lesson is being made."
NOT_STARTED = "The model of this lesson could not be started; the message tells why. When that is mended, start again."


class Lessons(QWidget):
    """A page of the guide. `bundled` gives the path of a task's trained model."""

    def __init__(self, window: "Window", bundled: Callable[[str], str | None]) -> None:
        super().__init__()
        self._window, self._bundled = window, bundled
        self.lesson: Lesson | None = None
        self.at = 0  # the step, or one more: the end
        self.ticked: list[bool] = []
        self._then: Moment | None = None  # when the step began
        self._run_before = -1  # the model that was shown before the lesson's own
        self._actions: Mapping[str, QAction] = {}
        self.ticks, self.words, self.reading = label(), label(), label()
        self.back = button("Back", "The step before")
        self.next = button("Skip", "The next step")
        self.again = button("Start again", "From the first step, with the model as it was then")
        self.next.setMinimumWidth(button(LAST, "").sizeHint().width())  # it must not move what stands beside it
        self.back.clicked.connect(lambda: self.go(self.at - 1))
        self.next.clicked.connect(self._go_on)
        self.again.clicked.connect(self._start_again)
        buttons = QHBoxLayout()
        buttons.setSpacing(GRID // 2)
        for each in (self.back, self.next, self.again):
            buttons.addWidget(each)
        buttons.addStretch(1)
        lines = column(self)
        lines.addWidget(self.ticks)
        lines.addWidget(self.words)
        lines.addWidget(self.reading)
        lines.addLayout(buttons)
        lines.addStretch(1)
        for text in (self.words, self.reading):
            text.setAlignment(Qt.AlignmentFlag.AlignTop)
        window.guide.add(self)

    # ---- which lesson
    def take_actions(self, actions: Mapping[str, QAction]) -> None:
        """The commands that begin the lessons, by name: those of finished ones are checked."""
        self._actions = actions
        self._show_finished()

    @property
    def finished(self) -> list[str]:
        kept = str(self._window.memory.value(MEMORY, ""))
        return [name for name in kept.split("|") if name in LESSONS]

    def _show_finished(self) -> None:
        for name, action in self._actions.items():
            action.setChecked(name in self.finished)

    def begin(self, lesson: Lesson) -> None:
        """Show the lesson's own model; ask first if that loses a trained one."""
        self._show_finished()  # asking for a lesson is not yet finishing it
        stakes, what = self._window.stakes, f"“{lesson.title}”"
        if lesson.model:
            stakes.if_not_lost(what, "Begin", lambda: self._begin(lesson))
        else:
            stakes.if_not_replaced(what, lambda: self._begin(lesson))

    def _begin(self, lesson: Lesson) -> None:
        window = self._window
        settings = Settings().with_values(lesson.settings)
        checkpoint = self._bundled(lesson.model) if lesson.model else None
        if lesson.model and checkpoint is None:
            window.tell(f"The trained model of task {lesson.model} is missing from this installation of moeviz.")
            return
        window.start(window.make_session(settings, window.device, checkpoint), f"Starting: {lesson.title}")
        window.select(Selection())
        self.lesson, self.at = lesson, 0
        self.ticked, self._run_before = [False] * len(lesson.steps), window.stakes.run
        self._keep_room(lesson)
        self._show_step()
        window.guide.show_page(lesson.title, self)
        window.layouts.give_back()  # what another lesson has brought
        self.go(0)

    def _keep_room(self, lesson: Lesson) -> None:
        """For the longest text, so that the buttons stay where they are."""
        heights = []
        for text in (*(step.words for step in lesson.steps), lesson.seen):
            self.words.setText(escape(text))
            heights.append(self.words.heightForWidth(NARROWEST))
        self.words.setMinimumHeight(max(heights))
        self.reading.setMinimumHeight(READING_LINES * self.fontMetrics().lineSpacing())

    def _start_again(self) -> None:
        if self.lesson is not None:
            self.begin(self.lesson)

    # ---- which step
    def go(self, at: int) -> None:
        """To a step, from 0, or to the end."""
        assert self.lesson is not None
        self.at, self._then = at, None
        self._show_step()
        self.bring_panels()
        self.look()

    def bring_panels(self) -> None:
        """To the front, those that the step is about."""
        on = not (self.isHidden() or self._window.guide.isHidden())
        if on and self.lesson is not None and self.at < len(self.lesson.steps):
            for name in self.lesson.steps[self.at].shows:
                self._window.layouts.bring(name)

    def _go_on(self) -> None:
        assert self.lesson is not None
        if self.at < len(self.lesson.steps):
            self.go(self.at + 1)
        elif (lesson := following(self.lesson)) is not None:
            self.begin(lesson)

    def look(self) -> None:
        """Whether the step has happened by now: called when there is news, and when something is selected."""
        window, lesson = self._window, self.lesson
        if lesson is None or not self.isVisible() or self.at == len(lesson.steps):
            return
        run = window.stakes.run
        if run == self._run_before or window.snapshot is None:
            coming = window.runner.starting is not None or window.runner.mailbox.waiting()
            self.reading.setText(WAITING if coming else NOT_STARTED)
            return
        now = Moment(
            run,
            window.settings,
            window.facts if window.has_model else None,
            window.snapshot,
            window.pinned,
            window.survey,
            recent(window.history, len(window.snapshot.layers)),
        )
        if self._then is None or self._then.run != run:
            self._then = now
        elif now.survey is not None and (self._then.survey is None or self._then.survey.heldout is None):
            # it comes a moment after what it is of
            self._then = replace(self._then, survey=now.survey)
        check = lesson.check(self.at, now, self._then)
        self.reading.setText(escape(check.reading))
        if check.done and not self.ticked[self.at]:
            self.ticked[self.at] = True
            if all(self.ticked) and lesson.name not in self.finished:
                window.memory.setValue(MEMORY, "|".join([*self.finished, lesson.name]))
                self._show_finished()
            self._show_step()

    # ---- showing
    def _show_step(self) -> None:
        assert self.lesson is not None
        lesson, at, steps = self.lesson, self.at, len(self.lesson.steps)
        theme, end = self._window.theme, at == steps
        marks = []
        for i, ticked in enumerate(self.ticked):
            text = f"✓&nbsp;{i + 1}" if ticked else f"○&nbsp;{i + 1}"
            colour = theme.accent if ticked else theme.text if i == at else theme.muted
            marks.append(f"<span style='color:{colour}'>{f'<b>{text}</b>' if i == at else text}</span>")
        self.ticks.setText("&nbsp; &nbsp;".join(marks))
        told = f"Step {at + 1} of {steps}" if not end else "End"
        self.ticks.setAccessibleName(f"{told}, {sum(self.ticked)} of {steps} done")
        coming = following(lesson)
        if not end:
            self.words.setText(escape(lesson.steps[at].words))
        else:
            last = f" Next comes: {coming.title}." if coming is not None else " This was the last lesson."
            self.words.setText(escape(lesson.seen + last))
        self.reading.setVisible(not end)
        self.back.setEnabled(at > 0)
        done = end or self.ticked[at]
        self.next.setText(LAST if end else "Next" if done else "Skip")
        self.next.setVisible(not end or coming is not None)
        self.next.setProperty("lit", done)
        self.next.style().polish(self.next)  # the style sheet looks at a property only when told

    def apply_theme(self) -> None:
        if self.lesson is not None:
            self._show_step()
