"""The main window: docks of panels, the knobs, the bar, the status. It sends commands to the runner and, on one timer,
shows what the mailbox holds; it never computes."""

import time
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from PySide6.QtCore import QByteArray, QEvent, QObject, QSettings, QSignalBlocker, Qt, QTimer
from PySide6.QtGui import (
    QAction,
    QCloseEvent,
    QDragEnterEvent,
    QDropEvent,
    QKeyEvent,
    QResizeEvent,
    QUndoCommand,
    QUndoStack,
)
from PySide6.QtWidgets import (
    QAbstractSlider,
    QAbstractSpinBox,
    QApplication,
    QComboBox,
    QInputDialog,
    QLabel,
    QLineEdit,
    QMainWindow,
    QSlider,
    QToolBar,
    QToolButton,
    QWidget,
)

from moeviz.domain.experiments import Experiment
from moeviz.domain.history import History
from moeviz.domain.messages import Advance as Step
from moeviz.domain.messages import (
    Command,
    MakeSession,
    ModelFacts,
    Prepare,
    Report,
    Restart,
    SaveModel,
    SetDevice,
    SetKnobs,
    SetProbe,
    Show,
    StepLog,
    Survey,
    Update,
)
from moeviz.domain.routing import RoutingSnapshot
from moeviz.domain.selection import Selection
from moeviz.domain.settings import KNOBS, Settings, SettingsError, Value
from moeviz.domain.survey import SurveyResult
from moeviz.engine.mailbox import Failure, Letter, Told
from moeviz.engine.runner import Runner
from moeviz.view import theme as themes
from moeviz.view.controls import Controls
from moeviz.view.dashboard import make_panels
from moeviz.view.docks import BEHIND, lay_out, make_dock
from moeviz.view.files import Files, kind_of, sort_paths
from moeviz.view.guide import Guide
from moeviz.view.menus import NO_QUESTION, make_menus
from moeviz.view.notices import Messages
from moeviz.view.status import Progress, Status
from moeviz.view.theme import GRID, THEMES

FRAME_MS = 80  # 12 pictures a second are enough to follow with the eye
ANSWER_MS = 8  # how often to look for the answer to a command: a knob should be felt at once
DRAWING_SHARE = 0.06  # of the time, at most: drawing holds the interpreter, and training waits for it
SURVEY_SECONDS = 2.0  # between two surveys while training, at least
LAYOUT_VERSION = 5
MOST_STEPS = 10_000_000
SaveTrace = Callable[
    [str, Settings, Sequence[StepLog], tuple[RoutingSnapshot, ...], tuple[tuple[int, str], ...], Report], str
]  # returns what to tell the user
LOADING = "Loading the model"
KEEP_SECONDS = 30.0  # how much of a run a crash may cost; keeping costs a tenth of a second
FIRST_SECONDS = 5.0  # of training until it is kept for the first time; a run of a few steps is not worth it


class Keeper(Protocol):
    """Keeps a run on disk while it trains (moeviz/keeper.py)."""

    def left(self) -> list[Path]: ...

    def keep(
        self,
        run: int,
        settings: Settings,
        snapshot: RoutingSnapshot,
        logs: Sequence[StepLog],
        marks: Sequence[tuple[int, str]],
    ) -> None: ...

    def close(self) -> None: ...


ARROWS = {Qt.Key.Key_Left, Qt.Key.Key_Right, Qt.Key.Key_Up, Qt.Key.Key_Down, Qt.Key.Key_End}
TAKE_ARROWS = (QAbstractSlider, QAbstractSpinBox, QComboBox, QLineEdit)


class Window(QMainWindow):
    """`make_session` builds a session on the worker thread from settings, device and a checkpoint's path or None,
    `make_trace` from a trace's path. `save_trace` writes the history, on a thread too.
    """

    def __init__(
        self,
        runner: Runner,
        make_session: Callable[[Settings, str, str | None], MakeSession],
        make_trace: Callable[[str], MakeSession],
        save_trace: SaveTrace,
        keeper: Keeper,
        memory: QSettings,
        *,
        settings: Settings,
        device: str,
        checkpoint: str | None,
    ) -> None:
        super().__init__()
        self.runner, self.memory, self.make_session = runner, memory, make_session
        self.make_trace, self.save_trace, self.keeper = make_trace, save_trace, keeper
        self.settings = settings  # of the running model
        self._unanswered: list[tuple[object, SetKnobs]] = []  # on their way to a session
        self.wanted: dict[str, Value] = {}  # knobs that would start the model anew, while the question is open
        self.of_trace = False  # what is shown is a recording
        self.survey: SurveyResult | None = None
        self._survey_due, self._surveyed_at = False, 0.0
        self._seeing: set[str] = set()  # panels that a survey is for and that are seen, not behind another tab
        self.checkpoint = checkpoint
        self.history = History()
        self.selection = Selection()
        self.pinned: Selection = self.selection
        self.snapshot: RoutingSnapshot | None = None
        self.facts: ModelFacts | None = None
        self.undo = QUndoStack(self)
        self._failed = False
        self._fresh = False  # the docks lie as they do at first
        self._safe_step = 0  # what was trained up to here lies in a file
        self._left_out = ""  # what the command line named and is not used
        self._goal = (0, 0.0)  # steps to train, and when that began
        self._asked = ("", 0.0)  # what the session was asked for, and when
        self._closing = False
        self._close_when_saved = False
        self._said: dict[str, tuple[str, bool]] | None = None  # in one tick
        self._run = 0  # which of the runs so far
        self._keeping = -1  # the run that is kept while it trains
        self._kept_at, self._unkept = 0.0, list[StepLog]()
        self._kept_marks = 0
        self._rate = (0.0, 0.0)
        self._frames: list[float] = []
        self._seen = (time.perf_counter(), 0)

        self.setWindowTitle("moeviz")
        self.setAcceptDrops(True)
        self.setDockNestingEnabled(True)
        self.theme = THEMES.get(str(memory.value("theme", "dark")), THEMES["dark"])
        self.controls = Controls()
        self.controls.changed.connect(self.change_knobs)
        self.controls.show_settings(settings)
        self.guide = Guide(self.take_arm)
        self.panels = make_panels(self.theme)
        for panel in self.panels.values():
            panel.hovered.connect(self._hover)
            panel.clicked.connect(self._click)
        first = [name for name in self.panels if name not in BEHIND]
        self.docks = {name: make_dock(self.panels[name].plot.title, self.panels[name], name) for name in first}
        self.docks["controls"] = make_dock("Knobs", self.controls, "controls")
        self.docks |= {name: make_dock(self.panels[name].plot.title, self.panels[name], name) for name in BEHIND}
        self.files = Files(self)
        self._make_bar(device)
        # the docks are all there is: a centre with any width would part them
        centre = QWidget()
        centre.setMaximumSize(0, 0)
        self.setCentralWidget(centre)
        self.messages = Messages(self, self._make_timeline())
        self.notices, self.question = self.messages.notices, self.messages.question
        actions = make_menus(self)
        self.train_action, self.step_action, self.restart_action = (actions[n] for n in ("train", "step", "restart"))
        actions["yes"].setEnabled(False)
        self.question.changed.connect(lambda: self._name_answer(actions["yes"]))
        self.train_button.setDefaultAction(self.train_action)
        self.step_button.setDefaultAction(self.step_action)
        self.restart_button.setDefaultAction(self.restart_action)
        self.train_button.setMinimumWidth(8 * GRID)  # the bar must not move when Train becomes Pause
        for action, changed, able in (
            (actions["undo"], self.undo.undoTextChanged, self.undo.canUndoChanged),
            (actions["redo"], self.undo.redoTextChanged, self.undo.canRedoChanged),
        ):
            action.setEnabled(False)
            able.connect(action.setEnabled)
            title = action.text()
            changed.connect(lambda text, a=action, t=title: a.setText(f"{t} {text}".strip()))
        for panel in self.panels.values():
            panel.export_requested.connect(self.files.export)
        self.status = Status()
        self.setStatusBar(self.status)
        self.reset_layout()
        self._recall()
        self.set_theme(self.theme.name)

        # no button is to be pressed by a key that a person means for the window
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setFocus()
        for dock in self.docks.values():  # a floating one is a window of its own
            dock.installEventFilter(self)
        self.timer = QTimer(self)
        self.timer.setInterval(FRAME_MS)
        self.timer.timeout.connect(self.collect)
        for name, panel in self.panels.items():
            if "survey" in panel.uses:
                self.docks[name].visibilityChanged.connect(partial(self._note_seen, name))
        self._show_state()

    # ---- making the window
    def _make_bar(self, device: str) -> None:
        bar = self.addToolBar("Bar")
        bar.setObjectName("bar")
        bar.setMovable(False)
        self.train_button, self.step_button, self.restart_button = QToolButton(), QToolButton(), QToolButton()
        for button in (self.train_button, self.step_button, self.restart_button):
            bar.addWidget(button)
        bar.addSeparator()
        self.layer_box = QComboBox()
        self.layer_box.setToolTip("The MoE layer that the token panels show (Up and Down arrow keys)")
        self.layer_box.setMinimumWidth(96)
        self.layer_box.activated.connect(lambda i: self.select(replace(self.pinned, layer=i)))
        bar.addWidget(QLabel("Layer "))
        bar.addWidget(self.layer_box)
        bar.addSeparator()
        self.device_box = QComboBox()
        self.device_box.addItem(device)
        self.device_box.setToolTip("Where the model runs; a running model moves along")
        self.device_box.activated.connect(lambda: self._move())
        bar.addWidget(QLabel("Device "))
        bar.addWidget(self.device_box)
        bar.addSeparator()
        bar.addWidget(QLabel("Probe "))
        self.probe_line = QLineEdit()
        self.probe_line.setToolTip("The text that the token panels show; edit it and press Enter, also while training")
        self.probe_line.setAccessibleName("Probe text")
        self.probe_line.returnPressed.connect(lambda: self.send(SetProbe(self.probe_line.text().replace("↵", "\n"))))
        bar.addWidget(self.probe_line)

    def _name_answer(self, action: QAction) -> None:
        """By what it does."""
        wish = self.question.yes.text().replace("&", "") if self.question.open else ""
        action.setText(f"Answer: {wish}" if wish else NO_QUESTION)
        action.setEnabled(bool(wish))

    def _make_timeline(self) -> QToolBar:
        bar = QToolBar("Timeline")
        bar.setObjectName("timeline")
        bar.setMovable(False)
        self.addToolBar(Qt.ToolBarArea.BottomToolBarArea, bar)
        self.timeline = QSlider(Qt.Orientation.Horizontal)
        self.timeline.setAccessibleName("Timeline")
        self.timeline.setToolTip("Scrub through the history: the token and load panels show the routing of that step")
        self.timeline.setRange(0, 0)
        self.timeline.setFocusPolicy(Qt.FocusPolicy.ClickFocus)
        self.timeline.valueChanged.connect(self.scrub)
        self.when = QLabel("live")
        self.when.setMinimumWidth(120)
        bar.addWidget(QLabel("Timeline "))
        bar.addWidget(self.timeline)
        bar.addWidget(self.when)
        return bar

    def reset_layout(self) -> None:
        lay_out(self, self.docks)
        self.splitDockWidget(self.docks["controls"], self.guide, Qt.Orientation.Vertical)

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        if self._fresh:  # its size is found only now
            self.reset_layout()

    def event(self, event: QEvent) -> bool:
        return _is_for_widget(event) or super().event(event)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        return _is_for_widget(event)

    # ---- what is remembered
    def _recall(self) -> None:
        state = self.memory.value("layout")
        self._fresh = not (isinstance(state, QByteArray) and self.restoreState(state, LAYOUT_VERSION))
        self.controls.more.setChecked(self.memory.value("more losses") == "true")
        self.guide.hide()

    def closeEvent(self, event: QCloseEvent) -> None:
        work = self.runner.errand_work
        if (work or self.runner.saving) and not self._closing:
            self._closing = True
            title = work.title if work else "Saving the model"
            self.tell(f"{title}: the window closes when that is done; close it again to give that up.")
            event.ignore()
            return
        self.memory.setValue("layout", self.saveState(LAYOUT_VERSION))
        self.memory.setValue("theme", self.theme.name)
        self.memory.setValue("more losses", "true" if self.controls.more.isChecked() else "false")
        self.memory.sync()
        self.timer.stop()
        if self.runner.close(2.0):
            self.keeper.close()
        event.accept()

    def set_theme(self, name: str) -> None:
        self.theme = THEMES[name]
        app = QApplication.instance()
        assert isinstance(app, QApplication)
        themes.apply(app, self.theme)
        for widget in (self, self.window()):  # the frame has colours of its own from before there was an application's
            widget.setPalette(themes.palette(self.theme))
        self.notices.wear(self.theme)
        self.question.wear(self.theme)
        for panel in self.panels.values():
            panel.apply_theme(self.theme)

    # ---- talking with the runner
    def begin(self, paths: list[str], changed: Mapping[str, Value] = MappingProxyType({})) -> None:
        """Start with what the command line names, else with the model that the window was made for. `changed`: what it
        says beside a settings file."""
        opening = sort_paths(paths)
        self._offer_kept()
        self._left_out = opening.left_out
        if opening.shown and self.checkpoint is None:
            self._left_out += " Its own settings hold, not those of the command line."
        if opening.shown and kind_of(opening.shown) == "trace":
            self.files.open_trace(opening.shown)
            return
        self.checkpoint = opening.shown or self.checkpoint
        try:
            settings = Settings.read(opening.settings).with_values(changed) if opening.settings else self.settings
            if opening.text:
                settings = settings.with_values({"data.path": opening.text})
        except SettingsError as error:
            self._left_out = f"{error} {self._left_out}".strip()
        else:
            if opening.settings or opening.text:
                self.settings, self.checkpoint = settings, None
        self._show_knobs()
        self.start()

    def _offer_kept(self) -> None:
        """The routing of a run that ended with a crash, until there is an answer."""
        left = [str(path) for path in self.keeper.left()]
        answered = [path for path in str(self.memory.value("answered", "")).split("|") if path in left]
        path = next((path for path in left if path not in answered), "")
        if not path:
            return

        def answer(do: Callable[[], object]) -> None:
            self.memory.setValue("answered", "|".join([*answered, path]))
            do()

        self.question.ask(
            f"The last run ended without closing; its routing is kept in {path}.",
            "Open its trace",
            partial(answer, lambda: self.files.open_trace(path)),
            "Dismiss",
            partial(answer, self._offer_kept),
            lasting=True,
        )

    def _keep_run(self) -> None:
        """Now and then, on a thread."""
        now, run = time.monotonic(), self._run if self.runner.training and not self.of_trace else -1
        if run != self._keeping:  # training has begun, or ended
            self._keeping = run
            self._kept_at = max(self._kept_at, now - KEEP_SECONDS + FIRST_SECONDS)
        elif run >= 0 and self.snapshot is not None and now - self._kept_at > KEEP_SECONDS:
            logs, marks = self._unkept, self.history.marks[self._kept_marks :]
            if self.runner.beside(partial(self.keeper.keep, run, self.settings, self.snapshot, logs, marks)):
                self._kept_at, self._unkept, self._kept_marks = now, [], len(self.history.marks)

    def start(self, make: MakeSession | None = None, title: str = LOADING, *, training: bool = False) -> None:
        """Start a session, or the first one; what runs now goes on until the new one can be shown."""
        self._fresh = False
        self._failed = False
        make = make or self.make_session(self.settings, self.device, self.checkpoint)
        self.runner.start(make, title=title, training=training)
        self._show_state()
        self.watch()

    @property
    def device(self) -> str:
        """The one in the box: where the model runs, or where the next one will."""
        return self.device_box.currentText()

    @property
    def has_model(self) -> bool:
        """There is a model that takes commands, if only after it has been loaded."""
        return self.runner.alive and not self.of_trace

    def watch(self) -> None:
        """Something will come of what was just sent: look often."""
        self.timer.start(ANSWER_MS)

    def send(self, command: Command, title: str = "") -> None:
        """Have the session do something; `title` is shown if it takes long."""
        if not self.runner.alive:
            self.tell("The model is not running; press Restart to start it anew.")
            return
        self._asked = (title or "Working", time.monotonic())
        self.runner.send(command)
        self.watch()

    def toggle_training(self) -> None:
        self._goal = (0, 0.0)
        if self.runner.training:
            self.pause()
            return
        if not self.runner.alive:
            self.restart()
        self.runner.training = True
        self._show_state()
        self.timer.start()

    def pause(self) -> None:
        """Stop after the step in progress, and show the newest state."""
        self.runner.training = False
        self.send(Show())
        self._show_state()

    def one_step(self) -> None:
        self.runner.training = False
        self.send(Step(snapshot=True))
        self._show_state()

    def ask_steps(self) -> None:
        last = int(str(self.memory.value("steps", 1000)))
        steps, fine = QInputDialog.getInt(self, "Train N steps", "Steps to train, then pause", last, 1, MOST_STEPS)
        if fine:
            self.memory.setValue("steps", steps)
            self.train_for(steps)

    def train_for(self, steps: int) -> None:
        """Train so many steps, then pause."""
        if not self.runner.alive:
            self.restart()
        self._goal = (steps, time.monotonic())
        self.runner.train_for(steps)
        self._show_state()
        self.timer.start()

    def begin_experiment(self, experiment: Experiment) -> None:
        """Train a new model with the settings of an experiment; ask first if that loses a trained one."""

        def begin() -> None:
            settings = Settings().with_values(experiment.settings)
            self._goal = (0, 0.0)
            self.start(self.make_session(settings, self.device, None), f"Starting: {experiment.title}", training=True)
            self.guide.show_experiment(experiment)
            self.guide.show_settings(settings)

        self.if_not_replaced(f"“{experiment.title}”", begin)

    def take_arm(self, values: Mapping[str, Value]) -> None:
        """Of the experiment that is on: what differs from the running model."""
        flat = self.settings.flat()
        if changed := {key: value for key, value in values.items() if value != flat[key]}:
            self.change_knobs(changed)
        self.guide.show_settings(self.settings)

    def restart(self) -> None:
        what = f"Restart with seed {self.settings.seed}"
        if self.has_model:
            self.if_not_replaced(what, lambda: self.send(Restart(), "Starting the model anew"))
        else:  # a recording is shown, or a failure ended the session: begin a new one with what was set
            self.start(self.make_session(self.settings, self.device, None))

    def _move(self) -> None:
        """To the device that was chosen; without a model the choice holds for the next one."""
        if self.has_model:
            self.send(SetDevice(self.device), f"Moving to {self.device}")

    # ---- what must not be lost
    @property
    def at_stake(self) -> int:
        """Steps trained that no file holds."""
        return self.snapshot.step - self._safe_step if self.snapshot is not None and self.has_model else 0

    def if_not_lost(self, what: str, yes: str, then: Callable[[], object]) -> None:
        """Do what shows something else; ask first if that loses a trained state."""
        steps = self.at_stake
        if steps:
            self._ask(f"{what} loses {_steps(steps)} that {_are(steps)} not saved.", yes, then)
        else:
            then()

    def if_not_replaced(self, what: str, then: Callable[[], object], otherwise: Callable[[], object] = bool) -> None:
        """Do what starts the model anew; ask first if it has been trained at all."""
        steps = self.at_stake
        if steps:
            sentence = f"{what} starts the model anew and loses {_steps(steps)} that {_are(steps)} not saved."
        elif self.has_model and self.snapshot is not None and self.snapshot.step:
            sentence = f"{what} starts a new model; this one, at step {self.snapshot.step:,}, stays only in its file."
        else:
            then()
            return
        self._ask(sentence, "Restart", then, otherwise)

    def _ask(self, sentence: str, yes: str, then: Callable[[], object], otherwise: Callable[[], object] = bool) -> None:
        if otherwise != self._keep:
            self._keep()  # one question at a time
        self.question.ask(sentence, yes, then, "Keep", otherwise)

    # ---- the end
    def quit(self) -> None:
        if self.may_close():
            self.window().close()

    def may_close(self) -> bool:
        """Whether closing now loses nothing. Else it is asked, and the answer closes the window."""
        steps = self.at_stake
        if not steps:
            return True
        self._keep()
        sentence = f"Closing loses {_steps(steps)} that {_are(steps)} not saved."
        close = self.window().close
        self.question.ask(
            sentence, "&Save and close…", self._save_and_close, "S&tay", third=("&Close without saving", close)
        )
        return False

    def _save_and_close(self) -> None:
        self._close_when_saved = self.files.save_model()

    # ---- knobs
    def change_knobs(self, values: Mapping[str, Value]) -> None:
        """What the user asks for. Live knobs act at once; those that start a trained model anew wait for an answer."""
        if self.of_trace:
            self.tell("A trace is a recording and cannot be changed; Restart trains a model with its settings.")
            self._show_knobs()
            return
        flat = self.settings.flat()
        if all(KNOBS[key].live for key in values):
            self.undo.push(KnobChange(self, values))
            return
        wanted = {key: value for key, value in {**self.wanted, **values}.items() if value != flat[key]}
        if not wanted:
            self._keep()
            return
        self.wanted = wanted
        self._show_knobs()
        self.if_not_replaced(changes(flat, wanted), self._take_wanted, self._keep)

    def _take_wanted(self) -> None:
        values, self.wanted = self.wanted, {}
        self.undo.push(KnobChange(self, values))

    def _keep(self) -> None:
        """The answer is no: the knobs go back to what the model has."""
        self.wanted = {}
        self.question.hide()
        self._show_knobs()

    def send_knobs(self, values: Mapping[str, Value]) -> None:
        self.settings = self.settings.with_values(values)
        self._show_knobs()
        title = f"Reading {values['data.path'] or 'the built-in text'}" if "data.path" in values else "Working"
        command = SetKnobs(values)
        self._unanswered.append((self.runner.session, command))
        self.send(command, title)

    def _with_wishes(self, update: Update) -> Settings:
        """What the session has, and on top of it what it was asked for since: an older update resets no knob."""
        self._unanswered = [
            (session, command)
            for session, command in self._unanswered
            if session is self.runner.session and command is not update.answers
        ]
        values = {key: value for _, command in self._unanswered for key, value in command.values.items()}
        try:
            return update.settings.with_values(values)
        except SettingsError:  # the session will refuse it too
            return update.settings

    def _show_knobs(self) -> None:
        """What the model has, but for what the open question asks about."""
        try:
            shown = self.settings.with_values(self.wanted)
        except SettingsError:  # the settings have changed meanwhile, and do not go together with it any more
            self.wanted = {}
            self.question.hide()
            shown = self.settings
        self.controls.show_settings(shown)
        self.guide.show_settings(self.settings)

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
            self.tell(str(error))
            return
        if all(KNOBS[key].live for key in values):
            do()
        else:
            self.if_not_replaced(f"{'Redo' if forward else 'Undo'}: {changes(self.settings.flat(), values)}", do)

    # ---- showing what came
    def collect(self) -> None:
        """One tick: take the news, show them, and ask for more."""
        began = time.perf_counter()
        idle = self.runner.idle  # before the news are taken: what comes after is for the next tick
        idle_files = not (self.runner.errand_work or self.runner.saving)
        news = self.runner.mailbox.take()
        self._said = {}
        for letter in news:
            if _failed(letter):
                self._closing = False  # it is to be seen
            if isinstance(letter, Failure):
                self._fail(letter)
            elif isinstance(letter, Told):
                self.tell(letter.sentence, passing=letter.done)
                if letter.done:
                    self.files.wrote()
            else:
                self._take(letter)
        self._said = None
        if any(isinstance(letter, Update) for letter in news):
            self.show_all(settled=not self.runner.training)
            self.repaint_panels()
        self._show_state()
        self._keep_run()
        spent = (time.perf_counter() - began) * 1000
        # an answer may have come while this tick was drawing: it is not to wait for the next frame
        if self.runner.pending or self.runner.starting or self.runner.mailbox.waiting():
            self.timer.setInterval(ANSWER_MS)
        elif news:
            self.timer.setInterval(max(FRAME_MS, round(spent / DRAWING_SHARE)))
        if idle and not self.runner.mailbox.waiting():
            self.timer.stop()
        self._ask_survey()  # it starts the timer again
        self.runner.mailbox.ask()
        if self._closing and idle_files:
            self.window().close()

    def _note_seen(self, name: str, seen: bool) -> None:
        if seen:
            self._seeing.add(name)
            self.watch()
        else:
            self._seeing.discard(name)

    def _ask_survey(self) -> None:
        """Have the model surveyed if it changed and a panel that is seen wants to know; not too often while it
        trains, for training waits."""
        rests = not self.runner.training or time.monotonic() - self._surveyed_at >= SURVEY_SECONDS
        if self._seeing and rests and self._survey_due and self.has_model and not self.runner.pending:
            self._survey_due, self._surveyed_at = False, time.monotonic()
            self.send(Survey(), "Looking at held-out text")

    def repaint_panels(self) -> None:
        """Paint now rather than later, so that a tick knows what its drawing cost."""
        for panel in self.panels.values():
            if panel.isVisible():
                panel.repaint()

    def _take(self, update: Update) -> None:
        if update.reset:
            if not isinstance(update.answers, SetKnobs | Restart):
                self.undo.clear()  # its changes are of another model
            self.history.clear()
            self._seen = (time.perf_counter(), update.step)
            self._safe_step = update.step
            self._failed = False
            self._run += 1
            self._unkept, self._kept_marks, self._kept_at = [], 0, 0.0
            self.survey = None
        for log in (*update.past, *([update.log] if update.log else [])):
            self.history.extend(log)
            self._unkept.append(log)
        if update.mark:
            self.history.add_mark(update.step, update.mark)
        if update.reset:
            self.follow()
            if self.of_trace and not update.film:
                self.notices.hide()  # it told of the recording
            self.of_trace = bool(update.film)
            self.controls.show_recording(self.of_trace)
            if not self.of_trace:
                self.send(Prepare(), "Reading the text")
        for step, label in update.marks:
            self.history.add_mark(step, label)
        for past in update.film[:-1]:
            self.history.add_snapshot(past)
        if update.snapshot is not None:
            self.snapshot = update.snapshot
            self.history.add_snapshot(update.snapshot)
            self._frames.append(time.perf_counter())
            self._survey_due = True
        if update.survey is not None:
            self.survey = update.survey
        if update.saved:
            self._safe_step = update.step
            self.files.wrote(update.saved)
            self.tell(f"Saved to {update.saved}.", passing=True)
            if self._close_when_saved:
                QTimer.singleShot(0, self.window().close)  # not amid the news
        if update.notice or update.saved:
            self._close_when_saved = False
        left_out, self._left_out = self._left_out, ""
        if update.notice or left_out:
            self.tell(f"{update.notice} {left_out}".strip(), passing=bool(update.film) and not left_out)
        self.facts = update.facts
        if update.devices:
            self._show_devices(update.devices)
        if update.reset and self.question.open and not self.question.lasting:
            self._keep()
        settings = self._with_wishes(update)
        if settings != self.settings or update.notice or update.reset:  # a refused knob goes back too
            self.settings = settings
            self._show_knobs()

    def _show_devices(self, devices: tuple[str, ...]) -> None:
        now = self.device
        self.device_box.clear()
        self.device_box.addItems(list(dict.fromkeys((*devices, now))))
        self.device_box.setCurrentText(now)

    def follow(self) -> None:
        """Show the newest step from now on."""
        self.timeline.setValue(self.timeline.maximum())

    def scrub(self, at: int) -> None:
        """Show a step of the past; training goes on."""
        self.show_all()
        self._show_state()

    @property
    def shown(self) -> RoutingSnapshot | None:
        """The snapshot that the panels show: the newest, or the one that the timeline stands at."""
        film = self.history.snapshots
        at = self.timeline.value()
        return film[at] if at < min(self.timeline.maximum(), len(film)) else self.snapshot

    def _show_timeline(self) -> None:
        """As many places as there are kept snapshots; the handle stays at its step, or at the newest."""
        film, shown = self.history.snapshots, self.shown
        following = self.timeline.value() == self.timeline.maximum()
        with QSignalBlocker(self.timeline):
            self.timeline.setMaximum(max(len(film), 0))
            if following or shown is None:
                self.timeline.setValue(len(film))
            else:
                self.timeline.setValue(max(bisect_right([s.step for s in film], shown.step) - 1, 0))
        here = self.shown
        self.when.setText(f"step {here.step:,}" + (" (newest)" if following else "") if here else "")

    def show_all(self, *, settled: bool = False) -> None:
        """`settled`: nothing more comes for now, so that every panel shows all there is."""
        self._show_timeline()
        if self.snapshot is not None:
            names = [layer.name for layer in self.snapshot.layers]
            if [self.layer_box.itemText(i) for i in range(self.layer_box.count())] != names:
                self.layer_box.clear()
                self.layer_box.addItems(names)
            self.layer_box.setCurrentIndex(min(self.pinned.layer, len(names) - 1))
            here = self.shown or self.snapshot
            text = "".join(here.tokens or ()).replace("\n", "↵")
            if not self.probe_line.hasFocus() and self.probe_line.text() != text:
                self.probe_line.setText(text)
                self.probe_line.setCursorPosition(0)
        for panel in self.panels.values():
            panel.show_snapshot(self.shown)
            panel.show_history(self.history, settled=settled)
            panel.show_survey(self.survey)

    def _show_state(self) -> None:
        training, facts, now = self.runner.training, self.facts, time.perf_counter()
        self.train_action.setChecked(training)
        self.train_action.setText("Pause" if training else "Train")
        if facts is not None and self.has_model and not (self.runner.pending or self.runner.starting):
            self.device_box.setCurrentText(facts.device)  # a choice that was refused goes back
        self.status.put("state", self._state(training))
        self.status.show_progress(self._progress())
        step = self.snapshot.step if self.snapshot else 0
        self.status.put("step", self._where(step, training))
        then, at = self._seen
        if now - then > 1 or not training:
            rate = (step - at) / (now - then) if training and step >= at else 0.0
            self._frames = [t for t in self._frames if now - t < 2]
            self._rate = (rate, len(self._frames) / 2)
            self._seen = (now, step)
        self.status.show_facts(facts, *self._rate)

    def _where(self, newest: int, training: bool) -> str:
        """At which step, and which one is shown if that is of the past."""
        here = self.shown
        if here is None:
            return ""
        if here is self.snapshot:
            return f"step {newest:,}"
        return f"shows step {here.step:,}; {'training at' if training else 'newest is'} {newest:,}"

    def _state(self, training: bool) -> str:
        """What is shown, in a word."""
        starting = self.runner.starting
        if starting is not None and self.snapshot is None:
            return f"{starting.title}…"
        if self._failed:
            return "Failed"
        if self.of_trace:
            return "Trace"
        return "Training" if training else "Paused" if self.runner.alive else ""

    def _progress(self) -> Progress | None:
        """The longest-lasting work that is under way."""
        errand, starting, left = self.runner.errand_work, self.runner.starting, self.runner.steps_left
        for work in (errand, starting):
            if work is not None and work.title and (work.total or self.snapshot is not None):
                cancel = work.cancelled.set if work is errand or work.total else None
                return Progress(work.title, work.done, work.total, work.began, cancel)
        title, began = self._asked
        if self.runner.pending and title:
            return Progress(title, 0, 0, began, None)
        if left is not None:
            steps, began = self._goal
            return Progress("Training steps", steps - left, steps, began, self.pause)
        return None

    def tell(self, sentence: str, details: str = "", *, passing: bool = False) -> None:
        """Say something in the window, after what the same tick has said; the window goes on. `passing`: it went well,
        so it goes by itself."""
        said = {} if self._said is None else self._said
        said[sentence] = (details, passing)
        texts = [text for text, _ in said.values() if text]
        self.notices.tell(" ".join(said), "\n".join(texts), passing=all(fine for _, fine in said.values()))

    def _fail(self, failure: Failure) -> None:
        if not failure.ended:
            self.tell(failure.summary, failure.details)
            return
        self._failed = True
        prefix = "The model stopped: " if self.snapshot is not None else ""
        self.tell(
            f"{prefix}{failure.summary} Press Restart to start it anew. {self._left_out}".strip(), failure.details
        )

    # ---- the selection
    def _hover(self, pointed: dict[str, int]) -> None:
        self._show_selection(replace(self.pinned, **pointed) if pointed else self.pinned)

    def _click(self, pointed: dict[str, int]) -> None:
        self.select(replace(self.pinned, **pointed) if pointed else Selection(self.pinned.layer))

    def select(self, selection: Selection) -> None:
        """Pin a selection."""
        self.pinned = selection
        self._show_selection(selection)
        if self.layer_box.currentIndex() != selection.layer:
            self.layer_box.setCurrentIndex(selection.layer)

    def let_go(self) -> None:
        """Of the newest message; without one, of the widget that has the keys, and of the selection."""
        if self.messages.dismiss():
            return
        if not self.hasFocus():
            self.setFocus()
        self.select(Selection(self.pinned.layer))

    def walk(self, part: str, by: int) -> None:
        """One token or layer on, from the pinned one."""
        if self.snapshot is None:
            return
        last = (self.snapshot.num_tokens if part == "token" else len(self.snapshot.layers)) - 1
        now = getattr(self.pinned, part)
        at = (0 if by > 0 else last) if now is None else min(max(now + by, 0), last)
        self.select(replace(self.pinned, **{part: at}))

    def _show_selection(self, selection: Selection) -> None:
        if selection != self.selection:
            self.selection = selection
            for panel in self.panels.values():
                panel.show_selection(selection)

    # ---- what is dropped
    def dragEnterEvent(self, event: QDragEnterEvent) -> None:
        if event.mimeData().hasUrls():
            event.acceptProposedAction()

    def dropEvent(self, event: QDropEvent) -> None:
        self.files.open_paths([url.toLocalFile() for url in event.mimeData().urls() if url.isLocalFile()])


class KnobChange(QUndoCommand):
    """A change of knobs, undone by sending the old values."""

    def __init__(self, window: Window, values: Mapping[str, Value]) -> None:
        super().__init__(_named(values))
        self._window, self.new = window, values
        self._step = window.snapshot.step if window.snapshot is not None else 0
        self._drag = max(window.controls.rows[key].drag for key in values)
        flat = window.settings.flat()
        self.old = {key: flat[key] for key in values}
        self._lost = 0 if all(KNOBS[key].live for key in values) else window.at_stake

    def redo(self) -> None:
        self._window.send_knobs(self.new)

    def undo(self) -> None:
        self._window.send_knobs(self.old)
        if self._lost:
            titles = ", ".join(KNOBS[key].title for key in self.old)
            self._window.tell(
                f"{titles}: as before. The model starts anew; the {_steps(self._lost)} that the change cost do not "
                "come back."
            )

    def id(self) -> int:
        return 1

    def mergeWith(self, other: QUndoCommand) -> bool:
        """Dragging a slider is one change, not a hundred; so is what no step came between."""
        if not isinstance(other, KnobChange) or set(other.new) != set(self.new) or len(self.new) != 1:
            return False
        if not all(KNOBS[key].live for key in self.new):
            return False
        if other._step != self._step and not (self._drag and other._drag == self._drag):
            return False
        self.new, self._step, self._drag = other.new, other._step, other._drag
        self.setText(_named(self.new))
        return True


def _is_for_widget(event: QEvent) -> bool:
    """Arrow keys walk tokens and layers, unless the widget that has the focus uses them itself."""
    if event.type() == QEvent.Type.ShortcutOverride and isinstance(event, QKeyEvent) and event.key() in ARROWS:
        event.setAccepted(isinstance(QApplication.focusWidget(), TAKE_ARROWS))
        return event.isAccepted()
    return False


def _failed(letter: Letter) -> bool:
    if isinstance(letter, Update):
        return isinstance(letter.answers, SaveModel) and not letter.saved
    return isinstance(letter, Failure) or not letter.done


def _named(values: Mapping[str, Value]) -> str:
    return ", ".join(f"{KNOBS[key].title} {value}" for key, value in values.items())


def changes(flat: Mapping[str, Value], values: Mapping[str, Value]) -> str:
    """As in "Layers 3 → 4"."""
    return ", ".join(f"{KNOBS[key].title} {_shown(flat[key])} → {_shown(value)}" for key, value in values.items())


def _shown(value: Value) -> str:
    return (value or "built-in") if isinstance(value, str) else f"{value:g}"


def _steps(count: int) -> str:
    return f"{count:,} step{'s' if count != 1 else ''}"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"
