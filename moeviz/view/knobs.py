"""The window's knobs: what the running model has, what it was asked for since, and undo."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from PySide6.QtGui import QUndoCommand, QUndoStack

from moeviz.domain.messages import Restart, SetKnobs, Update
from moeviz.domain.places import in_words
from moeviz.domain.settings import KNOBS, Settings, SettingsError, Value
from moeviz.view.controls import Controls, named_as_knobs

if TYPE_CHECKING:
    from moeviz.view.window import Window


class Knobs:
    """Of one window. Live knobs act at once; those that start a trained model anew wait for an answer."""

    def __init__(self, window: "Window", controls: Controls, settings: Settings) -> None:
        self.window = window
        self.settings = settings  # of the running model
        self.wanted: dict[str, Value] = {}  # would start the model anew, while the question is open
        self._unanswered: list[tuple[object, SetKnobs]] = []  # on their way to a session
        self.controls = controls
        self.controls.changed.connect(self.change)
        self.controls.show_settings(settings)
        self.undo = QUndoStack(window)

    # ---- to the model
    def change(self, values: Mapping[str, Value]) -> None:
        """What the user asks for."""
        window = self.window
        if window.of_trace:
            window.tell("A trace is a recording and cannot be changed; Restart trains a model with its settings.")
            self.show()
            return
        flat = self.settings.flat()
        if all(map(self.settings.live, values)):
            self.undo.push(KnobChange(self, values))
            return
        wanted = {key: value for key, value in {**self.wanted, **values}.items() if value != flat[key]}
        if not wanted:
            self.keep()
            return
        try:
            self.settings.with_values(wanted)
        except SettingsError as error:
            self.window.tell(named_as_knobs(error))
            self.show()
            return
        self.wanted = wanted
        self.show()
        window.stakes.if_not_replaced(changes(flat, wanted), self._take_wanted, self.keep)

    def _take_wanted(self) -> None:
        values, self.wanted = self.wanted, {}
        self.undo.push(KnobChange(self, values))

    def keep(self) -> None:
        """The answer is no: the knobs go back to what the model has."""
        self.wanted = {}
        self.window.question.hide()
        self.show()

    def send(self, values: Mapping[str, Value]) -> None:
        self.settings = self.settings.with_values(values)
        self.show()
        title = "Working"
        if "data.path" in values:
            title = f"Reading {_shown('data.path', values['data.path'], 'the built-in data')}"
        command = SetKnobs(values)
        self._unanswered.append((self.window.runner.session, command))
        self.window.send(command, title)

    def undo_change(self, forward: bool) -> None:
        """Undo or redo; ask first where that starts a trained model anew."""
        do = self.undo.redo if forward else self.undo.undo
        command = self.undo.command(self.undo.index() - (not forward))
        if not isinstance(command, KnobChange):
            return
        values = command.new if forward else command.old
        try:
            self.settings.with_values(values)
        except SettingsError as error:  # something else was refused meanwhile
            self.window.tell(named_as_knobs(error))
            return
        if all(map(self.settings.live, values)):
            do()
        else:
            what = f"{'Redo' if forward else 'Undo'}: {changes(self.settings.flat(), values)}"
            self.window.stakes.if_not_replaced(what, do)

    # ---- from the model
    def take(self, update: Update) -> None:
        """Show what the session has."""
        if update.reset and not isinstance(update.answers, SetKnobs | Restart):
            self.undo.clear()  # its changes are of another model
        settings = self._with_wishes(update)
        if settings != self.settings or update.notice or update.reset:  # a refused knob goes back too
            self.settings = settings
            self.show()

    def _with_wishes(self, update: Update) -> Settings:
        """What the session has, and on top of it what it was asked for since: an older update resets no knob."""
        session = self.window.runner.session
        self._unanswered = [
            (asked, command)
            for asked, command in self._unanswered
            if asked is session and command is not update.answers
        ]
        values = {key: value for _, command in self._unanswered for key, value in command.values.items()}
        if not values:
            return update.settings
        try:
            return update.settings.with_values(values)
        except SettingsError:  # the session will refuse it too
            return update.settings

    def show(self) -> None:
        """What the model has, but for what the open question asks about."""
        try:
            shown = self.settings.with_values(self.wanted)
        except SettingsError:  # the settings have changed meanwhile, and do not go together with it any more
            self.wanted = {}
            self.window.question.hide()
            shown = self.settings
        self.controls.show_settings(shown)
        for panel in self.window.panels.values():
            panel.show_settings(shown)
        self.window.experiments.show_settings(self.settings)


class KnobChange(QUndoCommand):
    """A change of knobs, undone by sending the old values."""

    def __init__(self, knobs: Knobs, values: Mapping[str, Value]) -> None:
        super().__init__(_named(values))
        self._knobs, self.new = knobs, values
        snapshot = knobs.window.snapshot
        self._step = snapshot.step if snapshot is not None else 0
        self._drag = max(knobs.controls.rows[key].drag for key in values)
        flat = knobs.settings.flat()
        self.old = {key: flat[key] for key in values}
        self._live = all(map(knobs.settings.live, values))
        self._lost = 0 if self._live else knobs.window.stakes.steps

    def redo(self) -> None:
        self._knobs.send(self.new)

    def undo(self) -> None:
        window, back = self._knobs.window, self._experts_back()
        self._knobs.send(self.old)
        if back and (window.runner.training or (window.snapshot is not None and window.snapshot.step > self._step)):
            window.tell(
                "Training has gone on since, so the experts that left cannot come back: "
                f"the {back} new are copies of the most loaded ones.",
                passing=True,
            )
        if self._lost:
            titles = ", ".join(KNOBS[key].title for key in self.old)
            self._knobs.window.tell(
                f"{titles}: as before. The model starts anew; the {steps_in_words(self._lost)} that the change cost "
                "do not come back."
            )

    def _experts_back(self) -> int:
        """How many experts left with the change. Before another step is trained the model brings back the same ones."""
        key = "model.experts"
        return max(0, int(self.old[key]) - self._knobs.settings.model.experts) if key in self.old else 0

    def id(self) -> int:
        return 1

    def mergeWith(self, other: QUndoCommand) -> bool:
        """Dragging a slider is one change, not a hundred; so is what no step came between."""
        if not isinstance(other, KnobChange) or set(other.new) != set(self.new) or len(self.new) != 1:
            return False
        if not self._live:
            return False
        if other._step != self._step and not (self._drag and other._drag == self._drag):
            return False
        self.new, self._step, self._drag = other.new, other._step, other._drag
        self.setText(_named(self.new))
        return True


def _named(values: Mapping[str, Value]) -> str:
    """For the Edit menu."""
    return ", ".join(f"{KNOBS[key].title} {_shown(key, value, '')}".rstrip() for key, value in values.items())


def changes(flat: Mapping[str, Value], values: Mapping[str, Value]) -> str:
    """As in "Layers 3 → 4"."""
    return ", ".join(f"{KNOBS[key].title} {_shown(key, flat[key])} → {_shown(key, new)}" for key, new in values.items())


def _shown(key: str, value: Value, nothing: str = "built-in") -> str:
    """Of a path its name, or of several the first."""
    text = in_words(str(value)) if key == "data.path" else f"{value}" if isinstance(value, str) else f"{value:g}"
    return text or nothing


def steps_in_words(count: int) -> str:
    return f"{count:,} step{'s' if count != 1 else ''}"
