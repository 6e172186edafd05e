"""What the compare panel compares with. A is what the window shows; B is chosen in the panel's header: another layer, a
kept step, a moment that was pinned, a text that the model reads, or a file that is read beside it."""

import time
from bisect import bisect_right
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from PySide6.QtCore import QSignalBlocker, Qt
from PySide6.QtWidgets import (
    QComboBox,
    QHBoxLayout,
    QLineEdit,
    QMenu,
    QSizePolicy,
    QSlider,
    QStackedWidget,
    QToolButton,
    QWidget,
)

from moeviz.domain.kinds import kind_of
from moeviz.domain.messages import Read, Report, Update, UserError
from moeviz.domain.reference import Reference, same_experts
from moeviz.domain.routing import RoutingSnapshot
from moeviz.view.panels.compare import Compare

if TYPE_CHECKING:
    from moeviz.view.window import Window

KINDS = {"layer": "B: a layer", "step": "B: a step", "moment": "B: pinned", "text": "B: a text", "file": "B: a file"}
READ_SECONDS = 2.0  # between two readings of the other text while training, at least
HELP = (
    "What to compare with. A is what the window shows: its layer, its step on the timeline, its text, its model or "
    "trace. B is chosen here, so any two can be compared."
)
Wanted = tuple[str, str, str]  # path, text, and the task that the text is of; empty where there is none
ReadFile = Callable[[str, str, str, Report], tuple[RoutingSnapshot, ...]]  # what was wanted of a file, oldest first


class References:
    """B of one window. What takes time is done only while the panel is seen."""

    def __init__(self, window: "Window", panel: Compare, read_file: ReadFile) -> None:
        self.window, self.panel = window, panel
        self._read_file = read_file
        self.choice = Choice(self)
        panel.header.insertWidget(1, self.choice, 4)
        self._find: dict[str, Callable[[RoutingSnapshot], Reference]] = {
            "layer": self._layer,
            "step": self._step,
            "moment": self._moment,
            "text": self._text,
            "file": self._file,
        }
        self._seen = self._chosen = False  # whether a person has said what to compare with
        self._run = 0  # which of the window's runs so far
        self._at: int | None = -1  # the step to compare with; None: the newest, -1: the first
        self._pin: tuple[RoutingSnapshot, int] | None = None  # of which run
        # the other text: what was asked, and its routing beside that of the window's text at the same step
        self._wish = ""
        self._asked: Read | None = None
        self._pair: tuple[RoutingSnapshot, RoutingSnapshot] | None = None
        self._refused, self._due, self._read_at = "", False, 0.0
        # the file: what is wanted of it, what is on its way, and what came of it
        self._path = ""
        self._reading: _Reading | None = None
        self._had: Wanted = "", "", ""
        self._film: tuple[RoutingSnapshot, ...] = ()
        self._why_not = ""

    # ---- what the window tells
    def take(self, update: Update) -> None:
        """The news of a session: runs, and the answer to what was asked last; older ones are dropped."""
        if update.reset:
            self._run += 1
            self._pair, self._asked, self._refused = None, None, ""
        if not isinstance(update.answers, Read):
            self._due = self._due or (update.snapshot is not None and update.survey is None)
        elif update.answers is self._asked:
            self._refused = "" if update.read is not None else update.notice
            self._pair = None
            if update.read is not None and update.snapshot is not None:
                self._pair = update.read, update.snapshot

    def _kin(self, a: RoutingSnapshot, b: RoutingSnapshot) -> bool:
        """Of two snapshots of this run."""
        return same_experts(a, b, self.window.history.marks)

    def note_seen(self, seen: bool) -> None:
        if seen and not self._seen and not self._chosen:
            self._begin()
        self._seen = seen
        if seen:
            self.window.watch()

    def _begin(self) -> None:
        """With what most want to see, until they say so: what training has changed, or else another layer."""
        self.choice.begin_with("step" if len(self.window.history.snapshots) > 1 else "layer")
        self._chosen = False

    def show(self) -> None:
        """Hand the panel its B, of the step that its A is of."""
        shown = self.panel.snapshot
        self.panel.show_reference(None if shown is None else self._find[self.choice.kind](shown))

    def ask(self) -> None:
        """Have read what B needs, if the panel is seen; once in a while as long as the model trains."""
        if self._seen and self.choice.kind == "text":
            self._ask_text()
        elif self._seen and self.choice.kind == "file":
            self._ask_file()

    @property
    def reading(self) -> bool:
        """A file is being read: nothing is lost if that ends early."""
        return self._reading is not None and not self._reading.ended

    # ---- what a person does
    def choose(self, kind: str) -> None:
        """Compare with this from now on, and see it; what there is to choose of it has the keys."""
        dock = self.window.docks[self.panel.name]
        dock.show()
        dock.raise_()
        self.choice.set_kind(kind)
        self._chosen = True

    def kind_changed(self) -> None:
        self._chosen = True
        self.window.watch()
        self.show()

    def step_chosen(self, place: int) -> None:
        film = self.window.history.snapshots
        self._at = film[place].step if place < len(film) else None
        self.show()

    def pin(self) -> None:
        """Keep the moment that is shown, also when the model goes on, begins anew or makes way for another."""
        shown = self.window.shown
        if shown is not None:
            self._pin = shown, self._run
        self.choose("moment")
        self.show()

    def write(self, text: str) -> None:
        self._wish = text
        self._pair, self._asked, self._refused, self._due = None, None, "", True
        self.kind_changed()

    def open_trace(self) -> None:
        self.open(self.window.files.find_trace())

    def open_model(self) -> None:
        self.open(self.window.files.find_model())

    def open(self, path: str) -> None:
        if path:
            self._path, self._had, self._film = path, ("", "", ""), ()
            self.choice.show_file(Path(path).name)
            self.choose("file")
            self.kind_changed()

    # ---- each kind of B
    def _layer(self, shown: RoutingSnapshot) -> Reference:
        name = "the same moment"
        at = self.choice.show_layers([layer.name for layer in shown.layers])
        if len(shown.layers) < 2:
            return Reference(name, lack="There is one MoE layer only: choose a step, a text or a file in the header.")
        return Reference(name, shown, at, kin=True)

    def _step(self, shown: RoutingSnapshot) -> Reference:
        film = self.window.history.snapshots
        steps = [snapshot.step for snapshot in film]
        place = len(film) if self._at is None else max(bisect_right(steps, self._at) - 1, 0)
        self.choice.show_place(place, len(film))
        there = film[place] if place < len(film) else self.window.snapshot
        if there is None:
            return Reference("", lack="There is no kept step to compare with yet.")
        which = " (newest)" if place == len(film) else " (first)" if place == 0 else ""
        return Reference(f"step {there.step:,}{which}", there, kin=self._kin(there, shown))

    def _moment(self, shown: RoutingSnapshot) -> Reference:
        if self._pin is None:
            return Reference("", lack="No moment is pinned: press Pin to keep the one that is shown now.")
        there, run = self._pin
        same = run == self._run
        kin = self._kin(there, shown) if same else same_experts(there, shown)
        run_of = "" if same else " of an earlier run from the same start" if kin else " of an earlier run"
        return Reference(f"pinned step {there.step:,}{run_of}", there, kin=kin)

    def _text(self, shown: RoutingSnapshot) -> Reference:
        name = "another text"
        if self._pair is not None:
            there, beside = self._pair
            together = beside if self.window.timeline.following else None
            kin = self._kin(there, together or shown)
            return Reference(f"{name}, step {there.step:,}", there, kin=kin, shown=together)
        if not self.window.has_model:
            return Reference(name, lack="Another text needs a model that reads it: open one, or press Restart.")
        if not self._wish:
            return Reference(name, lack="Type another text in the header and press Enter; the model then reads it.")
        return Reference(name, lack=self._refused or "The model reads the other text…")

    def _file(self, shown: RoutingSnapshot) -> Reference:
        name = Path(self._path).name
        if self._film:
            steps = [snapshot.step for snapshot in self._film]
            at = max(bisect_right(steps, shown.step) - 1, 0) if self.choice.same_step else len(steps) - 1
            there = self._film[at]
            return Reference(f"{name}, step {there.step:,}", there, kin=same_experts(there, shown))
        if not self._path:
            return Reference(name, lack="Choose a trace or a model with the button in the header.")
        if self._had[0] == self._path:
            return Reference(name, lack=self._why_not)
        return Reference(name, lack=f"Reading {name}…")

    # ---- what takes time
    @property
    def text_due(self) -> bool:
        """The panel stays at an older step until the other text has been read."""
        window = self.window
        wanted = self._seen and self.choice.kind == "text" and self._wish and not self._refused and window.has_model
        rests = not window.runner.training or time.monotonic() - self._read_at >= READ_SECONDS
        return bool(wanted and self._due and rests)

    def _ask_text(self) -> None:
        window = self.window
        if self.text_due and not window.runner.pending:
            self._due, self._read_at = False, time.monotonic()
            self._asked = Read(self._wish)
            window.send(self._asked, "Reading the other text")

    def _wanted(self) -> Wanted:
        """A model reads what the window shows, a trace has its own."""
        shown = self.window.shown
        if not self._path or shown is None or kind_of(self._path) == "trace":
            return self._path, "", ""
        task = "" if self.window.of_trace else self.window.settings.task  # a trace need not say
        return self._path, "".join(shown.tokens or ()), task

    def _ask_file(self) -> None:
        runner, wanted = self.window.runner, self._wanted()
        if self._reading is not None and self._reading.ended:
            done, self._reading = self._reading, None
            if done.wanted == wanted:  # else something else is wanted meanwhile
                self._had, self._film, self._why_not = wanted, done.film, done.why_not
                self.show()
        if not wanted[0] or wanted == self._had:
            return
        if self._reading is None:
            reading = _Reading(wanted, partial(self._read_file, *wanted))
            if runner.errand(reading, f"Reading {Path(wanted[0]).name}"):  # else the next tick tries again
                self._reading = reading
                self.window.watch()
        elif self._reading.wanted != wanted and runner.errand_work is not None:
            self._reading.dropped = True
            runner.errand_work.cancelled.set()


class _Reading:
    """An errand: reads a file on a thread; the window's thread takes `film` once it has `ended`, or `why_not` if it
    failed. Once it is `dropped` for another, nobody wants to know how it ends."""

    def __init__(self, wanted: Wanted, read: Callable[[Report], tuple[RoutingSnapshot, ...]]) -> None:
        self.wanted, self._read = wanted, read
        self.film: tuple[RoutingSnapshot, ...] = ()
        self.why_not = f"{Path(wanted[0]).name} could not be read: choose another file in the header."
        self.ended = self.dropped = False

    def __call__(self, report: Report) -> str:
        try:
            self.film = self._read(report)
        except UserError as error:
            if not self.dropped:
                self.why_not = str(error)
                raise
        finally:
            self.ended = True
        return ""


class Choice(QWidget):
    """The header's part: which kind of B, and which of that kind."""

    def __init__(self, references: References) -> None:
        super().__init__()
        self._kind = QComboBox()
        for kind, title in KINDS.items():
            self._kind.addItem(title, kind)
        self._kind.setToolTip(f"<p>{HELP}</p>")
        self._kind.setAccessibleName("Compare with")
        self.layer = QComboBox()
        self.layer.setAccessibleName("Layer of B")
        self.step = QSlider(Qt.Orientation.Horizontal)
        self.step.setAccessibleName("Step of B")
        self.step.setToolTip("From the first kept step to the newest, which B then follows")
        self.step.setRange(0, 0)
        self.pin = QToolButton()
        self.pin.setText("Pin this moment")
        self.pin.setToolTip("Keep what is shown now as B, also when the model goes on, begins anew or makes way")
        self.line = QLineEdit()
        self.line.setPlaceholderText("another text, then Enter")
        self.line.setAccessibleName("Text of B")
        self.file = QToolButton()
        self.file.setText("Choose…")
        self.file.setAccessibleName("File of B")
        self.file.setPopupMode(QToolButton.ToolButtonPopupMode.InstantPopup)
        menu = QMenu(self.file)
        menu.addAction("Another trace…").triggered.connect(lambda _: references.open_trace())
        menu.addAction("Another model…").triggered.connect(lambda _: references.open_model())
        menu.addSeparator()
        self._same = menu.addAction("The step that A shows, not its last")
        self._same.setCheckable(True)
        self._same.toggled.connect(lambda _: references.show())
        self.file.setMenu(menu)
        self._parts = QStackedWidget()
        for part in (self.layer, self.step, self.pin, self.line, self.file):
            part.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
            self._parts.addWidget(part)
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self._kind)
        row.addWidget(self._parts, 1)
        self._kind.currentIndexChanged.connect(self._parts.setCurrentIndex)
        self._kind.currentIndexChanged.connect(lambda _: references.kind_changed())
        self.layer.activated.connect(lambda _: references.kind_changed())
        self.step.valueChanged.connect(references.step_chosen)
        self.pin.clicked.connect(references.pin)
        self.line.returnPressed.connect(lambda: references.write(self.line.text().replace("↵", "\n")))

    @property
    def kind(self) -> str:
        return str(self._kind.currentData())

    def begin_with(self, kind: str) -> None:
        self._kind.setCurrentIndex(list(KINDS).index(kind))

    def set_kind(self, kind: str) -> None:
        self.begin_with(kind)
        part = self._parts.currentWidget()
        if part is not None and not isinstance(
            part, QToolButton
        ):  # which the space bar would press, instead of training
            part.setFocus()

    @property
    def same_step(self) -> bool:
        return self._same.isChecked()

    def show_layers(self, names: list[str]) -> int:
        """Returns the chosen one: at first the second, for A begins with the first."""
        if [self.layer.itemText(i) for i in range(self.layer.count())] != names:
            at = self.layer.currentIndex() if self.layer.count() else 1
            self.layer.clear()
            self.layer.addItems(names)
            self.layer.setCurrentIndex(min(at, len(names) - 1))
        return self.layer.currentIndex()

    def show_place(self, place: int, last: int) -> None:
        with QSignalBlocker(self.step):
            self.step.setMaximum(last)
            self.step.setValue(place)

    def show_file(self, name: str) -> None:
        self.file.setText(name)
        self.file.setToolTip(name)
