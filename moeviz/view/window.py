"""The main window: docks of panels, the knobs, the bar, the status. It sends commands to the runner and, on one timer,
shows what the mailbox holds; it never computes."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType

from PySide6.QtCore import QEvent, QObject, QSettings, Qt, QTimer
from PySide6.QtGui import (
    QAction,
    QCloseEvent,
    QDragEnterEvent,
    QDropEvent,
    QKeyEvent,
    QResizeEvent,
)
from PySide6.QtWidgets import (
    QAbstractSlider,
    QAbstractSpinBox,
    QApplication,
    QComboBox,
    QInputDialog,
    QLineEdit,
    QMainWindow,
    QWidget,
)

from moeviz.domain.history import History
from moeviz.domain.kinds import kind_of
from moeviz.domain.lessons import LESSONS
from moeviz.domain.messages import Advance as Step
from moeviz.domain.messages import (
    Command,
    MakeSession,
    ModelFacts,
    Prepare,
    Read,
    Report,
    Restart,
    SaveModel,
    SetDevice,
    SetProbe,
    Show,
    StepLog,
    Survey,
    Update,
)
from moeviz.domain.routing import RoutingSnapshot
from moeviz.domain.selection import Selection
from moeviz.domain.settings import Settings, SettingsError, Value
from moeviz.domain.survey import Part, SurveyResult
from moeviz.engine.mailbox import Failure, Letter, Told
from moeviz.engine.runner import Runner
from moeviz.view import theme as themes
from moeviz.view.bar import Bar
from moeviz.view.controls import Controls
from moeviz.view.docks import make_dock
from moeviz.view.experiments import Experiments
from moeviz.view.files import Files, sort_paths
from moeviz.view.guide import Guide
from moeviz.view.knobs import Knobs
from moeviz.view.layouts import Layouts
from moeviz.view.lessons import Lessons
from moeviz.view.menus import NO_QUESTION, make_menus
from moeviz.view.notices import Messages
from moeviz.view.panel import Panel
from moeviz.view.panels.compare import Compare
from moeviz.view.panels.input_map import InputMap
from moeviz.view.reference import ReadFile, References
from moeviz.view.stakes import Keeper, Stakes
from moeviz.view.status import Progress, Status
from moeviz.view.theme import THEMES
from moeviz.view.timeline import Timeline

FRAME_MS = 80  # 12 pictures a second are enough to follow with the eye
SLOWEST_MS = 500  # fewer do not look alive
ANSWER_MS = 8  # how often to look for the answer to a command: a knob should be felt at once
DRAWING_SHARE = 0.025  # of the time, for snapshots and drawing, which cost training about 1.5 times that
SURVEY_SHARE = 0.01  # of the time, at most; what it then draws comes on top
NEVER = float("-inf")
CALM_SECONDS = 1.0  # between two pictures of a calm panel while training
REST_MS = 100  # of the timeline's handle, before panels of a survey show the one of its step: that takes them 25 ms
SURVEY_SECONDS = 1.5  # between two surveys while training, at least
MOST_STEPS = 10_000_000
SaveTrace = Callable[
    [str, Settings, Sequence[StepLog], tuple[RoutingSnapshot, ...], tuple[tuple[int, str], ...], Report], str
]  # returns what to tell the user
LOADING = "Loading the model"
ARROWS = {Qt.Key.Key_Left, Qt.Key.Key_Right, Qt.Key.Key_Up, Qt.Key.Key_Down, Qt.Key.Key_End}
TAKE_ARROWS = (QAbstractSlider, QAbstractSpinBox, QComboBox, QLineEdit)


class Window(QMainWindow):
    """`make_session` builds a session on the worker thread from settings, device and a checkpoint's path or None,
    `make_trace` from a trace's path. `bundled` gives the path of a task's trained model. `save_trace` writes the
    history and `read_file` reads what to compare with, on a thread too.
    """

    def __init__(
        self,
        runner: Runner,
        make_session: Callable[[Settings, str, str | None], MakeSession],
        make_trace: Callable[[str], MakeSession],
        bundled: Callable[[str], str | None],
        save_trace: SaveTrace,
        read_file: ReadFile,
        keeper: Keeper,
        memory: QSettings,
        panels: dict[str, Panel],
        controls: Controls,
        *,
        settings: Settings,
        device: str,
        checkpoint: str | None,
    ) -> None:
        super().__init__()
        self.runner, self.memory, self.make_session = runner, memory, make_session
        self.make_trace, self.save_trace = make_trace, save_trace
        self.of_trace = False  # what is shown is a recording
        self.survey: SurveyResult | None = None  # the newest
        self._survey_of: RoutingSnapshot | None = None  # of the past, whose survey the panels show
        self._survey_due, self._surveyed_at = False, 0.0
        self._surveyed: frozenset[Part] = frozenset()  # the parts that the last one was asked for
        self._seeing: set[str] = set()  # panels that a survey is for and that are seen, not behind another tab
        self.checkpoint = checkpoint
        self.history = History()
        self.selection = Selection()
        self.pinned: Selection = self.selection
        self.snapshot: RoutingSnapshot | None = None
        self.facts: ModelFacts | None = None
        self._failed = False
        self._left_out = ""  # what the command line named and is not used
        self._own_text = False  # the command line named a text, which has not been read yet
        self._goal = (0, 0.0)  # steps to train, and when that began
        self._asked = ("", 0.0)  # what the session was asked for, and when
        self._closing = False
        self._said: dict[str, tuple[str, bool]] | None = None  # in one tick
        self._rate = (0.0, 0.0)
        self._frames: list[float] = []
        self._calm_at = NEVER  # when calm panels were shown the run
        self._due: list[Panel] = []  # panels that the newest picture has not come to yet
        self._spent = 0.0  # seconds of this thread for the picture
        self._costs = {"snapshot": 0.0, "survey": 0.0}  # seconds of the session for the last one
        self._seen = (time.perf_counter(), 0)

        self.setWindowTitle("moeviz")
        self.setAcceptDrops(True)
        self.setDockNestingEnabled(True)
        self.theme = themes.remembered(memory)
        self.stakes = Stakes(self, keeper)
        self.knobs = Knobs(self, controls, settings)
        self.controls = self.knobs.controls
        self.panels = panels
        for panel in self.panels.values():
            panel.hovered.connect(self._hover)
            panel.clicked.connect(self._click)
            panel.knobs_asked.connect(self.knobs.change)
        self.docks = {name: make_dock(panel.plot.title, panel, name) for name, panel in self.panels.items()}
        self.docks["controls"] = make_dock("Knobs", self.controls, "controls")
        self.guide = Guide(self.docks["controls"])
        self.experiments, self.lessons = Experiments(self), Lessons(self, bundled)
        self.layouts = Layouts(self, self.docks, self.guide, memory, settings.task)
        self.guide.closed.connect(self.layouts.give_back)
        self.layouts.changed.connect(self.guide.fit)
        self.layouts.changed.connect(self.lessons.bring_panels)
        self.files = Files(self)
        compare = self.panels["compare"]
        assert isinstance(compare, Compare)
        self.references = References(self, compare, read_file)
        self.bar = Bar(self, device)
        self.timeline = Timeline(self.history)
        self.timeline.moved.connect(self.scrub)
        self.addToolBar(self.bar)
        self.addToolBar(Qt.ToolBarArea.BottomToolBarArea, self.timeline)
        # the docks are all there is: a centre with any width would part them
        centre = QWidget()
        centre.setMaximumSize(0, 0)
        self.setCentralWidget(centre)
        self.messages = Messages(self, self.controls, self.timeline)
        self.notices, self.question = self.messages.notices, self.messages.question
        actions = make_menus(self)
        self.train_action, self.step_action, self.restart_action = (actions[n] for n in ("train", "step", "restart"))
        actions["yes"].setEnabled(False)
        self.question.changed.connect(lambda: self._name_answer(actions["yes"]))
        self.lessons.take_actions({name: actions[f"lesson {name}"] for name in LESSONS})
        self.bar.fill([self.train_action, self.step_action, self.restart_action])
        self.timeline.take_action(actions["play"])
        undo = self.knobs.undo
        for action, changed, able in (
            (actions["undo"], undo.undoTextChanged, undo.canUndoChanged),
            (actions["redo"], undo.redoTextChanged, undo.canRedoChanged),
        ):
            action.setEnabled(False)
            able.connect(action.setEnabled)
            title = action.text()
            changed.connect(lambda text, a=action, t=title: a.setText(f"{t} {text}".strip()))
        for panel in self.panels.values():
            panel.export_requested.connect(self.files.export)
            if isinstance(panel, InputMap):
                panel.painted.connect(self.files.use_points)
        self.status = Status()
        self.setStatusBar(self.status)
        self.guide.hide()
        self.layouts.restore()
        self.controls.more.setChecked(memory.value("more losses") == "true")

        # no button is to be pressed by a key that a person means for the window
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setFocus()
        for dock in self.docks.values():  # a floating one is a window of its own
            dock.installEventFilter(self)
        self.timer = QTimer(self)
        self.timer.setInterval(FRAME_MS)
        self.timer.timeout.connect(self.collect)
        self.due_timer = QTimer(self)  # of the panels that are due, after whatever the user does
        self.due_timer.setInterval(0)
        self.due_timer.timeout.connect(self.show_due)
        self.rest_timer = QTimer(self)
        self.rest_timer.setInterval(REST_MS)
        self.rest_timer.setSingleShot(True)
        self.rest_timer.timeout.connect(self._show_past_survey)
        for name, panel in self.panels.items():
            if "survey" in panel.uses:
                self.docks[name].visibilityChanged.connect(partial(self._note_seen, name))
        self.docks["compare"].visibilityChanged.connect(self.references.note_seen)
        self._show_state()

    # ---- making the window
    def _name_answer(self, action: QAction) -> None:
        """By what it does."""
        wish = self.question.yes.text().replace("&", "") if self.question.open else ""
        action.setText(f"Answer: {wish}" if wish else NO_QUESTION)
        action.setEnabled(bool(wish))

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        if self.layouts.fresh and self.snapshot is None:  # its size is found only now
            self.layouts.reset()

    def event(self, event: QEvent) -> bool:
        return _is_for_widget(event) or super().event(event)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        return _is_for_widget(event)

    # ---- what is remembered
    def closeEvent(self, event: QCloseEvent) -> None:
        work = self.runner.errand_work
        writes = self.runner.saving or (work is not None and not self.references.reading)
        if writes and not self._closing:
            self._closing = True
            title = work.title if work else "Saving the model"
            self.tell(f"{title}: the window closes when that is done; close it again to give that up.")
            event.ignore()
            return
        self.layouts.save()
        self.memory.setValue("theme", self.theme.name)
        self.memory.setValue("more losses", "true" if self.controls.more.isChecked() else "false")
        self.memory.sync()
        self.timer.stop()
        self.due_timer.stop()
        self.rest_timer.stop()
        self.stakes.keeper.end()  # also where a long step does not end in time
        if self.runner.close(2.0):
            self.stakes.keeper.close()
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
        self.timeline.apply_theme(self.theme)
        for panel in self.panels.values():
            panel.apply_theme(self.theme)
        self.lessons.apply_theme()

    # ---- talking with the runner
    def begin(self, paths: list[str], changed: Mapping[str, Value] = MappingProxyType({})) -> None:
        """Start with what the command line names, else with the model that the window was made for. `changed`: what it
        says beside a settings file."""
        opening = sort_paths(paths)
        self.stakes.offer_kept()
        self.runner.beside(self.stakes.keeper.tidy)
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
                self._own_text = True
        except SettingsError as error:
            self._left_out = f"{error} {self._left_out}".strip()
        else:
            if opening.settings or opening.text:
                self.knobs.settings, self.checkpoint = settings, None
        self.knobs.show()
        self.start()

    def start(self, make: MakeSession | None = None, title: str = LOADING, *, training: bool = False) -> None:
        """Start a session, or the first one; what runs now goes on until the new one can be shown."""
        if self._failed:
            self._failed = False
            self.notices.hide()  # it tells of what is tried anew
        make = make or self.make_session(self.settings, self.device, self.checkpoint)
        self.runner.start(make, title=title, training=training)
        self._show_state()
        self.watch()

    @property
    def settings(self) -> Settings:
        """Of the running model."""
        return self.knobs.settings

    @property
    def device(self) -> str:
        return self.bar.device

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
        kept = str(self.memory.value("steps"))
        last = int(kept) if kept.isdecimal() else 1000
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

    def set_probe(self, text: str) -> None:
        """Show the routing of this text, which no earlier step has."""
        self.timeline.follow()
        self.send(SetProbe(text))

    def restart(self) -> None:
        what = f"Restart with seed {self.settings.seed}"
        if self.has_model:
            self.stakes.if_not_replaced(what, lambda: self.send(Restart(), "Starting the model anew"))
        else:  # a recording is shown, or a failure ended the session: begin a new one with what was set
            self.start(self.make_session(self.settings, self.device, None))

    def move_model(self) -> None:
        """To the device that was chosen; without a model the choice holds for the next one."""
        if self.has_model:
            self.send(SetDevice(self.device), f"Moving to {self.device}")

    # ---- the end
    def quit(self) -> None:
        if self.stakes.may_close():
            self.window().close()

    # ---- showing what came
    def collect(self) -> None:
        """One tick: take the news, show them, and ask for more. While it just trains each panel is painted in a tick of
        its own, so that the window is never held up for longer than one panel takes."""
        if self._due:  # first things first: the rest of the picture comes in a moment
            return
        began = time.thread_time()  # its own work: what other programs take is no reason to draw less
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
            else:
                self._take(letter)
            if not isinstance(letter, Update):
                self.files.errand_ended(letter.errand, not _failed(letter))
        self._said = None
        updates = [letter for letter in news if isinstance(letter, Update)]
        if updates:
            self._spent, training = 0.0, self.runner.training
            changed = any(update.mark or update.reset for update in updates)  # of two models nothing agrees
            self.show_all(now=not training, at_once=changed or not training)
        self._show_state()
        self.lessons.look()
        self.stakes.keep_run()
        if updates:
            self.repaint_panels()
        self._spent += time.thread_time() - began
        if news or self._awaits:
            self._pace()
        if idle and self.runner.idle and not self.runner.mailbox.waiting():  # taking the news may have asked for more
            self.timer.stop()
        self.references.ask()  # these start the timer again
        if not self.references.text_due:  # a survey takes long
            self._ask_survey()
        if not self.runner.pending:  # an answer brings a snapshot with it
            self.runner.mailbox.ask()
        if self._closing and idle_files:
            self.window().close()

    def _note_seen(self, name: str, seen: bool) -> None:
        if seen:
            self._seeing.add(name)
            if not self._parts <= self._surveyed:  # the last survey left its part out
                self._survey_due, self._surveyed_at = self.snapshot is not None, 0.0
            self.watch()
        else:
            self._seeing.discard(name)

    @property
    def _parts(self) -> frozenset[Part]:
        """Of a survey, what the panels that are seen need."""
        return frozenset(part for name in self._seeing for part in self.panels[name].plot.parts)

    def _ask_survey(self) -> None:
        """Have the model surveyed if it changed and a panel that is seen wants to know; not too often while it
        trains, for training waits."""
        apart = max(SURVEY_SECONDS, self._costs["survey"] / SURVEY_SHARE)
        rests = not self.runner.training or time.monotonic() - self._surveyed_at >= apart
        if self._seeing and rests and self._survey_due and self.has_model and not self.runner.pending:
            self._survey_due, self._surveyed_at = False, time.monotonic()
            here = self.survey is not None and self.snapshot is not None and self.survey.step == self.snapshot.step
            self._surveyed = self._parts | (self._surveyed if here else frozenset())  # going back to a tab asks nothing
            self.send(Survey(self._surveyed), "Looking at held-out text")

    @property
    def _awaits(self) -> bool:
        """An answer is to come, or has come already while this tick was drawing."""
        return bool(self.runner.pending or self.runner.starting or self.runner.mailbox.waiting())

    def _pace(self) -> None:
        """How long to wait for the next tick: an answer is to be felt at once, a picture as long as it was worth."""
        if self._awaits:
            self.timer.setInterval(ANSWER_MS)
        elif not self._due:
            wanted = 1000 * (self._spent + self._costs["snapshot"]) / DRAWING_SHARE
            self.timer.setInterval(min(max(FRAME_MS, round(wanted)), SLOWEST_MS))

    @property
    def drawing(self) -> bool:
        """Some panels do not show the newest step yet."""
        return bool(self._due)

    def show_due(self) -> None:
        """One more panel shows the newest step."""
        began = time.thread_time()
        seen = False
        while self._due and not seen:  # the others cost nothing
            self._show_in(panel := self._due.pop(0))
            seen = not panel.canvas.visibleRegion().isEmpty()
        self.repaint_panels()
        self._spent += time.thread_time() - began
        if not self._due:
            self.due_timer.stop()
            self._pace()

    def _finish_picture(self) -> None:
        """All panels show the newest step."""
        due, self._due = self._due, []
        self.due_timer.stop()
        for panel in due:
            self._show_in(panel)

    def _show_in(self, panel: Panel) -> None:
        panel.show_snapshot(self.shown)
        panel.show_history(self.history)
        if "survey" in panel.uses:
            past = None if self._survey_of is None else self.history.survey_at(self._survey_of, panel.plot.parts)
            panel.show_survey(past or self.survey)
        if panel is self.references.panel:
            self.references.show()

    def repaint_panels(self) -> None:
        """Paint now rather than later, so that a tick knows what its drawing cost."""
        tops = {panel.window() for panel in self.panels.values() if panel.isVisible()}  # a floating one has its own
        for top in tops:
            QApplication.sendEvent(top, QEvent(QEvent.Type.UpdateRequest))  # repaint() would paint headers and all

    def _take(self, update: Update) -> None:
        if update.reset:
            self.history.clear()
            self._seen = (time.perf_counter(), update.step)
            self._failed = self._own_text = False
            self.survey = self._survey_of = None
            self._surveyed_at = 0.0
        if update.past is not None:
            self.history.begin_with(update.past)
        if update.log is not None:
            self.history.extend(update.log)
        if update.mark:
            self.history.add_mark(update.step, update.mark)
        if update.mark or update.reset:
            self._calm_at = NEVER  # all panels are to tell of it at once
            self._costs["survey"] = 0.0  # of another model's it says nothing
        if update.reset:
            self.timeline.follow()
            if self.of_trace and not update.film:
                self.notices.hide()  # it told of the recording
            self.of_trace = bool(update.film)
            self.controls.show_recording(self.of_trace)
            if not self.of_trace:
                self.send(Prepare(), "Reading the data")
        for step, label in update.marks:
            self.history.add_mark(step, label)
        for past in update.film[:-1]:
            self.history.add_snapshot(past)
        if update.snapshot is not None:
            self.snapshot, film = update.snapshot, self.history.snapshots
            looked = isinstance(update.answers, Read | Survey | Show)  # which has changed nothing
            if not (looked and film and film[-1].step == update.snapshot.step):
                self.history.add_snapshot(update.snapshot)
            self._frames.append(time.perf_counter())
            if not isinstance(update.answers, Read):  # reading another text has changed nothing
                self._survey_due = update.survey is None or not self._parts <= self._surveyed
        if update.survey is not None:
            self.survey = update.survey
            self.history.add_survey(update.survey)
        self.stakes.take(update)
        self.references.take(update)
        if update.saved:
            self.files.wrote(update.saved)
            self.tell(f"Saved to {update.saved}.", passing=True)
        left_out, self._left_out = self._left_out, ""
        if update.notice or left_out:
            self.tell(f"{update.notice} {left_out}".strip(), passing=bool(update.film) and not left_out)
        self.facts = update.facts
        self._costs |= update.timings
        if update.devices:
            self.bar.show_devices(update.devices)
        if update.reset and self.question.open and not self.question.lasting:
            self.knobs.keep()
        self.knobs.take(update)
        if update.reset:
            self.layouts.take_task("" if self.of_trace else self.settings.task)

    def scrub(self) -> None:
        """Show a step of the past; training goes on."""
        self.show_all()
        self._show_state()
        if not (self.timeline.playing and self.rest_timer.isActive()):  # else it would never come while playing fast
            self.rest_timer.start()

    def _show_past_survey(self) -> None:
        """Panels of a survey go along with the timeline, each in a tick of its own."""
        self._survey_of = None if self.timeline.following else self.shown
        self._due += [panel for panel in self.panels.values() if "survey" in panel.uses and panel not in self._due]
        self.due_timer.start()

    @property
    def shown(self) -> RoutingSnapshot | None:
        """The snapshot that the panels show: the newest, or the one that the timeline stands at."""
        return self.timeline.shown

    def show_all(self, *, now: bool = True, at_once: bool = True) -> None:
        """`now`: also in calm panels, which may wait while it trains. `at_once`: in one tick, else a panel in each."""
        self.timeline.show_run(self.snapshot)
        here = self.shown
        self.status.past = here is not self.snapshot
        if here is not None:
            self.bar.show_snapshot(here, self.pinned.layer)
        now = now or time.monotonic() - self._calm_at > CALM_SECONDS
        if now:
            self._calm_at = time.monotonic()
            self.status.show_measure(self.history, self.snapshot)
        self._due = [panel for panel in self.panels.values() if now or not panel.calm]
        if at_once:
            self._finish_picture()
        else:
            self.due_timer.start()

    def _show_state(self) -> None:
        training, facts, now = self.runner.training, self.facts, time.perf_counter()
        self.train_action.setChecked(training)
        self.train_action.setText("Pause" if training else "Train")
        if facts is not None and self.has_model and not (self.runner.pending or self.runner.starting):
            self.bar.device_box.setCurrentText(facts.device)  # a choice that was refused goes back
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
        if (asked := self.runner.asked_work) is not None and title:
            return Progress(title, asked.done, asked.total, began, None)
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
        anew = "to start it anew"
        if self._own_text and failure.of_data:  # else Restart would read it again, and fail again
            self._own_text = False
            self.knobs.settings = self.settings.with_values({"data.path": ""})
            self.knobs.show()
            anew = "to start with the built-in data"
        self.tell(f"{prefix}{failure.summary} Press Restart {anew}. {self._left_out}".strip(), failure.details)

    # ---- the selection
    def _hover(self, pointed: dict[str, int]) -> None:
        self._show_selection(replace(self.pinned, **pointed) if pointed else self.pinned)

    def _click(self, pointed: dict[str, int]) -> None:
        self.select(replace(self.pinned, **pointed) if pointed else Selection(self.pinned.layer))

    def select(self, selection: Selection) -> None:
        """Pin a selection."""
        self.pinned = selection
        self._show_selection(selection)
        if self.bar.layer_box.currentIndex() != selection.layer:
            self.bar.layer_box.setCurrentIndex(selection.layer)
        self.lessons.look()

    def select_layer(self, layer: int) -> None:
        self.select(replace(self.pinned, layer=layer))

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
