"""The main window: docks of panels, the knobs, the bar, the status. It sends commands to the runner and, on one timer,
shows what the mailbox holds; it never computes."""

import time
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from PySide6.QtCore import QByteArray, QSettings, QSignalBlocker, Qt, QTimer
from PySide6.QtGui import (
    QAction,
    QActionGroup,
    QCloseEvent,
    QDragEnterEvent,
    QDropEvent,
    QGuiApplication,
    QKeySequence,
    QUndoCommand,
    QUndoStack,
)
from PySide6.QtWidgets import (
    QApplication,
    QComboBox,
    QDockWidget,
    QFileDialog,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QMainWindow,
    QSlider,
    QToolBar,
    QToolButton,
    QWidget,
)

from moeviz.domain.history import History
from moeviz.domain.messages import Advance as Step
from moeviz.domain.messages import (
    Command,
    MakeSession,
    ModelFacts,
    OpenModel,
    Prepare,
    Restart,
    SaveModel,
    SetDevice,
    SetKnobs,
    SetProbe,
    StepLog,
    Update,
    UserError,
)
from moeviz.domain.routing import RoutingSnapshot
from moeviz.domain.selection import Selection
from moeviz.domain.settings import KNOBS, Settings, SettingsError, Value
from moeviz.engine.mailbox import Failure, Told
from moeviz.engine.runner import Runner
from moeviz.view import theme as themes
from moeviz.view.controls import Controls
from moeviz.view.dashboard import make_panels
from moeviz.view.export import export
from moeviz.view.panel import Panel
from moeviz.view.theme import GRID, THEMES

FRAME_MS = 80  # 12 pictures a second are enough to follow with the eye
ANSWER_MS = 8  # how often to look for the answer to a command: a knob should be felt at once
DRAWING_SHARE = 0.08  # of the time, at most: drawing holds the interpreter, and training waits for it
LAYOUT_VERSION = 2
SaveTrace = Callable[
    [str, Settings, StepLog | None, tuple[RoutingSnapshot, ...], tuple[tuple[int, str], ...]], str
]  # returns what to tell the user
PICTURES = "Pictures (*.png *.svg *.pdf);;Numbers (*.csv)"


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
        memory: QSettings,
        *,
        settings: Settings,
        device: str,
        devices: tuple[str, ...],
        checkpoint: str | None,
    ) -> None:
        super().__init__()
        self.runner, self.memory, self.make_session = runner, memory, make_session
        self.make_trace, self.save_trace = make_trace, save_trace
        self.settings, self.device = settings, device
        self.of_trace = False  # what is shown is a recording
        self.checkpoint = checkpoint
        self.history = History()
        self.selection = Selection()
        self.pinned: Selection = self.selection
        self.snapshot: RoutingSnapshot | None = None
        self.facts: ModelFacts | None = None
        self.undo = QUndoStack(self)
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
        self.panels = make_panels(self.theme)
        for panel in self.panels.values():
            panel.hovered.connect(self._hover)
            panel.clicked.connect(self._click)
            panel.export_requested.connect(self.export_panel)
        self.docks = {name: _dock(panel.plot.title, panel, name) for name, panel in self.panels.items()}
        self.docks["controls"] = _dock("Knobs", self.controls, "controls")
        self._make_banner(devices)
        self._make_timeline()
        self._make_menus()
        self._make_status()
        self._default_layout()
        self._recall()
        self.set_theme(self.theme.name)

        # no button is to be pressed by a key that a person means for the window
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setFocus()
        self.timer = QTimer(self)
        self.timer.setInterval(FRAME_MS)
        self.timer.timeout.connect(self.collect)

    # ---- making the window
    def _make_banner(self, devices: tuple[str, ...]) -> None:
        bar = self.addToolBar("Bar")
        bar.setObjectName("bar")
        bar.setMovable(False)
        self.train_button = QToolButton()
        bar.addWidget(self.train_button)
        self.step_button, self.restart_button = QToolButton(), QToolButton()
        bar.addWidget(self.step_button)
        bar.addWidget(self.restart_button)
        bar.addSeparator()
        self.layer_box = QComboBox()
        self.layer_box.setToolTip("The MoE layer that the token panels show (Up and Down arrow keys)")
        self.layer_box.setMinimumWidth(96)
        self.layer_box.activated.connect(lambda i: self.select(replace(self.pinned, layer=i)))
        bar.addWidget(QLabel("Layer "))
        bar.addWidget(self.layer_box)
        bar.addSeparator()
        self.device_box = QComboBox()
        self.device_box.addItems(list(devices))
        self.device_box.setCurrentText(self.device)
        self.device_box.setToolTip("Where the model runs; a running model moves along")
        self.device_box.activated.connect(lambda: self.send(SetDevice(self.device_box.currentText())))
        bar.addWidget(QLabel("Device "))
        bar.addWidget(self.device_box)
        bar.addSeparator()
        bar.addWidget(QLabel("Probe "))
        self.probe_line = QLineEdit()
        self.probe_line.setToolTip("The text that the token panels show; edit it and press Enter, also while training")
        self.probe_line.setAccessibleName("Probe text")
        self.probe_line.returnPressed.connect(lambda: self.send(SetProbe(self.probe_line.text().replace("↵", "\n"))))
        bar.addWidget(self.probe_line)

        self.banner = QWidget()
        self.banner.setObjectName("banner")
        line = QHBoxLayout(self.banner)
        line.setContentsMargins(GRID, GRID // 2, GRID, GRID // 2)
        self.notice = QLabel()
        self.notice.setWordWrap(True)
        self.notice.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        line.addWidget(self.notice, 1)
        self.copy_button = QToolButton()
        self.copy_button.setText("Copy details")
        self.copy_button.clicked.connect(self._copy_details)
        line.addWidget(self.copy_button)
        close = QToolButton()
        close.setText("Dismiss")
        line.addWidget(close)
        self.addToolBarBreak()
        self.notices = self.addToolBar("Notices")
        self.notices.setObjectName("notices")
        self.notices.setMovable(False)
        self.notices.addWidget(self.banner)
        close.clicked.connect(self.notices.hide)
        # the docks are all there is: a centre with any width would part them
        centre = QWidget()
        centre.setMaximumSize(0, 0)
        self.setCentralWidget(centre)

    def _make_timeline(self) -> None:
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

    def _action(self, title: str, keys: str, run: Callable[[], object], *, checkable: bool = False) -> QAction:
        action = QAction(title, self)
        action.setShortcut(QKeySequence(keys))
        action.setCheckable(checkable)
        action.triggered.connect(lambda *_: run())
        self.addAction(action)
        return action

    def _make_menus(self) -> None:
        bar = self.menuBar()
        file = bar.addMenu("&File")
        file.addAction(self._action("Open model…", "Ctrl+O", self.open_model))
        file.addAction(self._action("Save model…", "Ctrl+S", self.save_model))
        file.addAction(self._action("Open own text file…", "Ctrl+T", self.open_text_file))
        file.addAction(self._action("Open own text folder…", "Ctrl+Shift+T", self.open_text_folder))
        file.addAction(self._action("Open trace…", "Ctrl+Shift+E", self.open_trace))
        file.addAction(self._action("Save run as trace…", "Ctrl+Alt+S", self.save_run))
        file.addSeparator()
        file.addAction(self._action("Open settings…", "Ctrl+Shift+O", self.open_settings))
        file.addAction(self._action("Save settings…", "Ctrl+Shift+S", self.save_settings))
        file.addSeparator()
        file.addAction(self._action("Export dashboard…", "Ctrl+E", lambda: self.export_panel("dashboard", "pdf")))
        self.print_action = self._action("Export in light print colours", "Ctrl+Shift+L", lambda: None, checkable=True)
        file.addAction(self.print_action)
        plots = file.addMenu("Export plot")
        for i, (name, panel) in enumerate(self.panels.items(), 1):
            plots.addAction(self._action(f"{panel.plot.title}…", f"Ctrl+{i}", partial(self.export_panel, name, "pdf")))
        file.addSeparator()
        file.addAction(self._action("Quit", "Ctrl+Q", lambda: self.window().close()))

        edit = bar.addMenu("&Edit")
        for action, keys in (
            (self.undo.createUndoAction(self, "Undo"), "Ctrl+Z"),
            (self.undo.createRedoAction(self, "Redo"), "Ctrl+Shift+Z"),
        ):
            action.setShortcut(QKeySequence(keys))
            edit.addAction(action)
        edit.addSeparator()
        edit.addAction(self._action("Copy settings", "Ctrl+Shift+C", self.copy_settings))
        edit.addAction(self._action("Paste settings", "Ctrl+Shift+V", self.paste_settings))

        run = bar.addMenu("&Run")
        self.train_action = self._action("Train", "Space", self.toggle_training, checkable=True)
        self.step_action = self._action("One step", ".", self.one_step)
        self.restart_action = self._action("Restart with the seed", "R", self.restart)
        for action in (self.train_action, self.step_action, self.restart_action):
            run.addAction(action)
        self.train_button.setDefaultAction(self.train_action)
        self.step_button.setDefaultAction(self.step_action)
        self.restart_button.setDefaultAction(self.restart_action)

        go = bar.addMenu("&Go")
        for title, keys, part, by in (
            ("Next token", "Right", "token", 1),
            ("Previous token", "Left", "token", -1),
            ("Next layer", "Down", "layer", 1),
            ("Previous layer", "Up", "layer", -1),
        ):
            go.addAction(self._action(title, keys, partial(self.walk, part, by)))
        go.addAction(self._action("Back to the newest step", "End", self.follow))
        go.addAction(self._action("Let go of the selection", "Esc", self.let_go))

        view = bar.addMenu("&View")
        for i, dock in enumerate(self.docks.values(), 1):
            toggle = dock.toggleViewAction()
            toggle.setShortcut(QKeySequence(f"Alt+{i}"))
            view.addAction(toggle)
        view.addSeparator()
        view.addAction(self._action("Reset layout", "Ctrl+Shift+R", self._default_layout))
        group = QActionGroup(self)
        for name in THEMES:
            keys = f"Ctrl+Alt+{name[0].upper()}"
            action = self._action(f"{name.capitalize()} theme", keys, partial(self.set_theme, name), checkable=True)
            action.setChecked(name == self.theme.name)
            group.addAction(action)
            view.addAction(action)

    def _make_status(self) -> None:
        self.status: dict[str, QLabel] = {}
        for name in ("state", "step", "rate", "parameters", "flops", "device", "frames"):
            label = QLabel()
            self.status[name] = label
            self.statusBar().addWidget(label)
        self.status["state"].setText("Loading the model…")

    def _default_layout(self) -> None:
        left, right = Qt.DockWidgetArea.LeftDockWidgetArea, Qt.DockWidgetArea.RightDockWidgetArea
        across, down = Qt.Orientation.Horizontal, Qt.Orientation.Vertical
        d = self.docks
        for dock in d.values():
            dock.setFloating(False)
            dock.show()
        self.addDockWidget(left, d["controls"])
        self.addDockWidget(right, d["tokens"])
        self.splitDockWidget(d["tokens"], d["tokens_experts"], down)
        self.splitDockWidget(d["tokens_experts"], d["load"], down)
        self.splitDockWidget(d["tokens_experts"], d["gate_weights"], across)
        self.splitDockWidget(d["gate_weights"], d["layers_experts"], across)
        self.splitDockWidget(d["load"], d["losses"], across)
        self.splitDockWidget(d["losses"], d["load_over_time"], across)
        self.resizeDocks([d["controls"], d["tokens"]], [272, 1168], across)
        self.resizeDocks([d["tokens"], d["tokens_experts"], d["load"]], [160, 330, 330], down)
        self.resizeDocks([d["tokens_experts"], d["gate_weights"], d["layers_experts"]], [560, 320, 280], across)
        self.resizeDocks([d["load"], d["losses"], d["load_over_time"]], [380, 390, 390], across)

    # ---- what is remembered
    def _recall(self) -> None:
        state = self.memory.value("layout")
        if isinstance(state, QByteArray):
            self.restoreState(state, LAYOUT_VERSION)
        self.notices.hide()

    def closeEvent(self, event: QCloseEvent) -> None:
        self.memory.setValue("layout", self.saveState(LAYOUT_VERSION))
        self.memory.setValue("theme", self.theme.name)
        self.memory.sync()
        self.timer.stop()
        self.runner.close(2.0)
        event.accept()

    def set_theme(self, name: str) -> None:
        self.theme = THEMES[name]
        app = QApplication.instance()
        assert isinstance(app, QApplication)
        themes.apply(app, self.theme)
        self.banner.setStyleSheet(
            f"#banner {{ background: {self.theme.raised}; border-bottom: 1px solid {self.theme.warn}; }}"
        )
        for panel in self.panels.values():
            panel.apply_theme(self.theme)

    # ---- talking with the runner
    def start(self) -> None:
        """Start the session; called once the window has been painted."""
        self.runner.start(self.make_session(self.settings, self.device, self.checkpoint))
        self.timer.start()

    def send(self, command: Command) -> None:
        if not self.runner.alive:
            self.tell("The model is not running; press Restart to start it anew.")
            return
        self.runner.send(command)
        self.timer.start(ANSWER_MS)

    def toggle_training(self) -> None:
        if not self.runner.alive:
            self.restart()
        self.runner.training = not self.runner.training
        self._show_state()
        self.timer.start()

    def one_step(self) -> None:
        self.runner.training = False
        self.send(Step(snapshot=True))
        self._show_state()

    def restart(self) -> None:
        if self.of_trace:
            self.runner.close()
        if self.runner.alive:
            self.send(Restart())
        else:  # a failure ended the session: begin a new one with what was set
            self.runner.start(self.make_session(self.settings, self.device, None))
            self.timer.start()

    def change_knobs(self, values: dict[str, Value]) -> None:
        self.undo.push(KnobChange(self, values))

    def send_knobs(self, values: dict[str, Value]) -> None:
        self.settings = self.settings.with_values(values)
        self.controls.show_settings(self.settings)
        self.send(SetKnobs(values))

    # ---- showing what came
    def collect(self) -> None:
        """One tick: take the news, show them, and ask for more."""
        began = time.perf_counter()
        news = self.runner.mailbox.take()
        for letter in news:
            if isinstance(letter, Failure):
                self._fail(letter)
            elif isinstance(letter, Told):
                self.tell(letter.sentence)
            else:
                self._take(letter)
        if any(isinstance(letter, Update) for letter in news):
            self.show_all()
            self.repaint_panels()
        self._show_state()
        spent = (time.perf_counter() - began) * 1000
        # an answer may have come while this tick was drawing: it is not to wait for the next frame
        if self.runner.pending or self.runner.mailbox.waiting():
            self.timer.setInterval(ANSWER_MS)
        elif news:
            self.timer.setInterval(max(FRAME_MS, round(spent / DRAWING_SHARE)))
        if self.runner.idle and not self.runner.mailbox.waiting():
            self.timer.stop()
        self.runner.mailbox.ask()

    def repaint_panels(self) -> None:
        """Paint now rather than later, so that a tick knows what its drawing cost."""
        for panel in self.panels.values():
            if panel.isVisible():
                panel.repaint()

    def _take(self, update: Update) -> None:
        if update.reset:
            self.history.clear()
            self._seen = (time.perf_counter(), update.step)
        for log in (*update.past, *([update.log] if update.log else [])):
            self.history.extend(log)
        if update.mark:
            self.history.add_mark(update.step, update.mark)
        if update.reset:
            self.follow()
            self.of_trace = bool(update.film)
            if not self.of_trace:
                self.runner.send(Prepare())
        for step, label in update.marks:
            self.history.add_mark(step, label)
        for past in update.film[:-1]:
            self.history.add_snapshot(past)
        if update.snapshot is not None:
            self.snapshot = update.snapshot
            self.history.add_snapshot(update.snapshot)
            self._frames.append(time.perf_counter())
        if update.saved:
            self.tell(f"Saved to {update.saved}.")
        if update.notice:
            self.tell(update.notice)
        self.facts = update.facts
        if update.settings != self.settings or update.notice or update.reset:  # a refused knob goes back too
            self.settings = update.settings
            self.controls.show_settings(update.settings)

    def follow(self) -> None:
        """Show the newest step from now on."""
        self.timeline.setValue(self.timeline.maximum())

    def scrub(self, at: int) -> None:
        """Show a step of the past; training goes on."""
        self.show_all()

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

    def show_all(self) -> None:
        self._show_timeline()
        if self.snapshot is not None:
            names = [layer.name for layer in self.snapshot.layers]
            if [self.layer_box.itemText(i) for i in range(self.layer_box.count())] != names:
                self.layer_box.clear()
                self.layer_box.addItems(names)
            self.layer_box.setCurrentIndex(min(self.pinned.layer, len(names) - 1))
            text = "".join(self.snapshot.tokens or ()).replace("\n", "↵")
            if not self.probe_line.hasFocus() and self.probe_line.text() != text:
                self.probe_line.setText(text)
                self.probe_line.setCursorPosition(0)
        for panel in self.panels.values():
            panel.show_snapshot(self.shown)
            panel.show_history(self.history)

    def _show_state(self) -> None:
        training = self.runner.training
        self.train_action.setChecked(training)
        self.train_action.setText("Pause" if training else "Train")
        facts, now = self.facts, time.perf_counter()
        if not facts:
            return
        state = "Training" if training else "Paused" if self.runner.alive else "Stopped"
        step = self.snapshot.step if self.snapshot else 0
        then, at = self._seen
        if now - then > 1 or not training:
            rate = (step - at) / (now - then) if training and step >= at else 0.0
            self._frames = [t for t in self._frames if now - t < 2]
            self._rate = (rate, len(self._frames) / 2)
            self._seen = (now, step)
        steps_a_second, frames = self._rate
        self.status["state"].setText(state)
        self.status["step"].setText(f"step {step:,}")
        tokens = steps_a_second * facts.tokens_per_step
        self.status["rate"].setText(f"{short(steps_a_second)} steps/s · {short(tokens)} tokens/s")
        share = facts.active_parameters / facts.total_parameters
        self.status["parameters"].setText(
            f"{short(facts.active_parameters)} of {short(facts.total_parameters)} parameters active ({share:.0%})"
        )
        self.status["flops"].setText(f"{short(facts.flops_per_token)} FLOP/token")
        self.status["device"].setText(facts.device)
        self.status["frames"].setText(f"{frames:.0f} frames/s" if training else "")

    def tell(self, sentence: str, details: str = "") -> None:
        """Say something in the window; the window goes on."""
        self.notice.setText(sentence)
        self.copy_button.setVisible(bool(details))
        self._details = details
        self.notices.show()

    def _fail(self, failure: Failure) -> None:
        self.tell(f"The model stopped: {failure.summary} Press Restart to start it anew.", failure.details)

    def _copy_details(self) -> None:
        QGuiApplication.clipboard().setText(self._details)

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

    # ---- files
    def _ask_open(self, title: str, filters: str) -> str:
        return QFileDialog.getOpenFileName(self, title, str(self.memory.value("folder", "")), filters)[0]

    def _ask_save(self, title: str, name: str, filters: str) -> str:
        start = str(Path(str(self.memory.value("folder", ""))) / name)
        path = QFileDialog.getSaveFileName(self, title, start, filters)[0]
        if path:
            self.memory.setValue("folder", str(Path(path).parent))
        return path

    def open_model(self) -> None:
        if path := self._ask_open("Open model", "Models (*.safetensors)"):
            self.send(OpenModel(path))

    def save_model(self) -> None:
        if path := self._ask_save("Save model", "model.safetensors", "Models (*.safetensors)"):
            self.send(SaveModel(path))

    def open_trace(self) -> None:
        if path := QFileDialog.getExistingDirectory(self, "Open a trace (a .zarr folder)"):
            self.show_trace(path)

    def show_trace(self, path: str) -> None:
        """Show a recording in place of the model; what was not saved of the run is gone, so training must be paused."""
        if self.runner.training:
            self.tell("Training is running; pause it, save the run if you want to keep it, then open the trace.")
            return
        self.runner.close()
        self.runner.start(self.make_trace(path))
        self.timer.start(ANSWER_MS)

    def save_run(self) -> None:
        if path := self._ask_save("Save run as trace", "trace.zarr", "Traces (*.zarr)"):
            self.save_run_to(path)

    def save_run_to(self, path: str) -> None:
        """Write the kept history as a trace, on a thread, from a copy that training does not touch."""
        history, settings = self.history, self.settings
        write = partial(self.save_trace, path, settings, history.log(), tuple(history.snapshots), tuple(history.marks))
        if not self.runner.errand(write):
            self.tell("The last file is still being written; try again in a moment.")
        self.timer.start(ANSWER_MS)

    def open_text_file(self) -> None:
        if path := self._ask_open("Open own text", "All files (*)"):
            self.change_knobs({"data.path": path})

    def open_text_folder(self) -> None:
        if path := QFileDialog.getExistingDirectory(self, "Open a folder of own text"):
            self.change_knobs({"data.path": path})

    def open_settings(self) -> None:
        if path := self._ask_open("Open settings", "Settings (*.json)"):
            self._use_settings(lambda: Settings.read(path))

    def save_settings(self) -> None:
        if path := self._ask_save("Save settings", "settings.json", "Settings (*.json)"):
            try:
                Path(path).write_text(self.settings.to_json(), encoding="utf-8")
            except OSError as error:
                self.tell(f"Cannot write the settings to {path}: {error.strerror}; choose another folder.")

    def copy_settings(self) -> None:
        QGuiApplication.clipboard().setText(self.settings.to_json())

    def paste_settings(self) -> None:
        self._use_settings(lambda: Settings.from_json(QGuiApplication.clipboard().text()))

    def _use_settings(self, read: Callable[[], Settings]) -> None:
        try:
            wanted = read().flat()
        except SettingsError as error:
            self.tell(str(error))
            return
        have = self.settings.flat()
        changed = {key: value for key, value in wanted.items() if value != have[key]}
        if changed:
            self.change_knobs(changed)

    def open_path(self, path: str) -> None:
        """Whatever a person drops on the window."""
        if path.endswith(".safetensors"):
            self.send(OpenModel(path))
        elif path.endswith(".json") and Path(path).is_file() and Path(path).stat().st_size < 100_000:
            self._use_settings(lambda: Settings.read(path))
        elif (Path(path) / "zarr.json").is_file():
            self.show_trace(path)
        elif (Path(path) / "model.safetensors").is_file():
            self.send(OpenModel(path))
        else:
            self.change_knobs({"data.path": path})

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:
        if event.mimeData().hasUrls():
            event.acceptProposedAction()

    def dropEvent(self, event: QDropEvent) -> None:
        for url in event.mimeData().urls()[:1]:
            self.open_path(url.toLocalFile())

    def export_panel(self, name: str, ending: str) -> None:
        if path := self._ask_save("Export", f"{name}.{ending}", f"{ending.upper()} (*.{ending});;{PICTURES}"):
            self.export_to(name, path)

    def export_to(self, name: str, path: str) -> None:
        """Write one panel, or the dashboard, to a file; its ending says what kind."""
        colours = THEMES["light"] if self.print_action.isChecked() else None
        target: QWidget = self if name == "dashboard" else self.panels[name]
        try:
            export(target, path, theme=colours)
        except UserError as error:
            self.tell(str(error))
        else:
            self.tell(f"Exported to {path}.")


class KnobChange(QUndoCommand):
    """A change of knobs, undone by sending the old values."""

    def __init__(self, window: Window, values: dict[str, Value]) -> None:
        names = ", ".join(f"{KNOBS[key].title} {value}" for key, value in values.items())
        super().__init__(names)
        self._window, self._new = window, values
        flat = window.settings.flat()
        self._old = {key: flat[key] for key in values}

    def redo(self) -> None:
        self._window.send_knobs(self._new)

    def undo(self) -> None:
        self._window.send_knobs(self._old)

    def id(self) -> int:
        return 1

    def mergeWith(self, other: QUndoCommand) -> bool:
        """Dragging a slider is one change, not a hundred."""
        if not isinstance(other, KnobChange) or set(other._new) != set(self._new) or len(self._new) != 1:
            return False
        self._new = other._new
        return True


def _dock(title: str, widget: QWidget, name: str) -> QDockWidget:
    dock = QDockWidget(title)
    dock.setObjectName(f"dock_{name}")
    if isinstance(widget, Panel):
        dock.setTitleBarWidget(_title_bar(dock, widget))
    dock.setWidget(widget)
    return dock


def _title_bar(dock: QDockWidget, panel: Panel) -> QWidget:
    """The panel's own header serves as the dock's: one title, and the place to drag it by."""
    layout = panel.layout()
    assert layout is not None
    layout.removeItem(panel.header)
    panel.header.setParent(None)
    bar = QWidget()
    bar.setLayout(panel.header)
    close = QToolButton()
    close.setText("✕")
    close.setToolTip("Close this panel; it comes back from the View menu. Double-click the title to float it.")
    close.clicked.connect(dock.close)
    panel.header.addWidget(close)
    return bar


def short(number: float) -> str:
    """Three significant digits with k, M, G."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"
