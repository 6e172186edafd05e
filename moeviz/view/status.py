"""The status bar: what is shown and how fast it runs; long work with its rate, the time left, a way to end it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PySide6.QtCore import QSize, Qt
from PySide6.QtGui import QResizeEvent
from PySide6.QtWidgets import QLabel, QProgressBar, QStatusBar, QToolButton

from moeviz.domain.history import History
from moeviz.domain.messages import ModelFacts
from moeviz.domain.routing import RoutingSnapshot
from moeviz.view.panels.axes import number
from moeviz.view.panels.losses import MEASURES, NAMES, nats
from moeviz.view.steady import SteadyLabel
from moeviz.view.theme import GRID

WIDE = ("parameters", "flops", "frames")
OF_NOW = ("measure", "parameters", "flops")  # of the newest model, also while an earlier step is shown
SHORTEST = 0.4  # s; shorter work is not worth a word
# of what tells of held-out data how well a task is done; beside each other they need fewer words
MEASURED = (*(name for names in MEASURES.values() for name in names), "heldout")
TITLES = {name: NAMES[name] for name in MEASURED} | {"hit_at_1": "hit@1", "hit_at_1_no_context": "without context"}


@dataclass(frozen=True, slots=True)
class Measured:
    """A held-out measure, in words too, and of which step it is."""

    name: str
    words: str
    step: int


@dataclass(frozen=True, slots=True)
class Progress:
    """Work under way; a total of 0 is not known. `cancel` is None where it cannot be ended."""

    title: str
    done: int
    total: int
    began: float
    cancel: Callable[[], object] | None


class Status(QStatusBar):
    def __init__(self) -> None:
        super().__init__()
        self.setSizeGripEnabled(False)
        self.setContentsMargins(GRID, 0, GRID, 0)
        self.past = False  # whether the panels show an earlier step
        self.labels: dict[str, SteadyLabel] = {}
        for name in ("state", "step", "measure", "rate", "parameters", "flops", "device", "frames"):
            training = self.fontMetrics().horizontalAdvance("Training") + GRID
            self.labels[name] = SteadyLabel(training, grows=False) if name == "state" else SteadyLabel()
            self.addWidget(self.labels[name])
        self.labels["measure"].setIndent(GRID)
        self._measures: Sequence[Measured] = ()
        self._measured_of: object = None
        self._remark, self._spare = "", 0  # px of the measures after the first
        self.work = QLabel()
        self.bar = QProgressBar()
        self.bar.setFixedSize(120, 8)
        self.bar.setTextVisible(False)
        self.cancel = QToolButton()
        self.cancel.setText("Cancel")
        self.cancel.setFocusPolicy(Qt.FocusPolicy.TabFocus)
        self.cancel.clicked.connect(lambda: self._cancel())
        self._cancel: Callable[[], object] = bool
        for widget in (self.work, self.bar, self.cancel):
            self.addPermanentWidget(widget)
        self.show_progress(None)

    def show_facts(self, facts: ModelFacts | None, steps_a_second: float, frames: float) -> None:
        """Of the model, with the rates; nothing of a recording."""
        words = dict.fromkeys(("rate", "parameters", "flops", "device", "frames"), "")
        if facts is not None:
            share = facts.active_parameters / facts.total_parameters
            active, total = short(facts.active_parameters), short(facts.total_parameters)
            measured = "" if facts.executed_experts is None else ", measured"
            words["parameters"] = f"{active} of {total} parameters active ({share:.0%}{measured})"
            words["flops"] = f"{short(facts.flops_per_token)} FLOP/token"
            words["device"] = facts.device
            if steps_a_second:
                tokens = steps_a_second * facts.tokens_per_step
                words["rate"] = f"{short(steps_a_second)} steps/s · {short(tokens)} tokens/s"
                words["frames"] = f"{frames:.0f} frames/s"
        self.labels["parameters"].setToolTip(_how_many(facts))
        for name, text in words.items():
            self.put(name, text)

    def show_measure(self, history: History, snapshot: RoutingSnapshot | None) -> None:
        """The newest measures of held-out data; nothing before there is one."""
        ahead = snapshot is not None and any(layer.looks_ahead for layer in snapshot.layers)
        of = (history.revision, nats(snapshot), ahead, self.past)
        if of == self._measured_of:  # only another step is shown
            return
        self._measured_of = of
        self._measures, self._remark = measured(history, nats(snapshot)), ""
        step = self._measures[0].step if self._measures else 0
        if self._measures and any(changed >= step for changed, _ in history.marks):
            self._remark = f" at step {step:,}"  # they say nothing of what was changed since
        elif self._measures and ahead:
            self._remark = ", looks ahead"
        lines = [f"{one.words}, measured at step {one.step:,}" for one in self._measures]
        self.labels["measure"].setToolTip("\n".join(["Of held-out data:", *lines]) if lines else "")
        self._put_measures()

    def _put_measures(self) -> None:
        """The task's own, or else the loss; the first one alone where all would push something else out."""
        own = [one.words for one in self._measures if one.name != "heldout"]
        own[:1] = [f"held-out {words}" for words in own[:1]]
        own = own or [one.words for one in self._measures]
        text, short = ", ".join(own) + self._remark, "".join(own[:1]) + self._remark
        self._spare = self.fontMetrics().horizontalAdvance(text) - self.fontMetrics().horizontalAdvance(short)
        self.put("measure", text)
        layout = self.layout()
        if not self._spare or layout is None:
            return
        layout.activate()  # else its size is still the one with the text before
        if super().minimumSizeHint().width() > self.width():
            self.put("measure", "")  # it is as wide as its widest text since
            self.put("measure", short)
            layout.activate()
            self._spare = 0

    def minimumSizeHint(self) -> QSize:
        """Without what the bar can do without: the window must not be kept wide by it."""
        hint = super().minimumSizeHint()
        return QSize(hint.width() - self._spare, hint.height())

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        self._put_measures()

    def put(self, name: str, text: str) -> None:
        self.labels[name].say(f"newest {text}" if text and self.past and name in OF_NOW else text)

    def show_progress(self, progress: Progress | None) -> None:
        shown = progress is not None and (
            progress.total > 0 or progress.done > 0 or time.monotonic() - progress.began > SHORTEST
        )
        if shown == self.work.isHidden():
            self._make_room(shown)
        if progress is not None and shown:
            self.work.setText(in_words(progress, time.monotonic() - progress.began))
            self.bar.setRange(0, progress.total)
            self.bar.setValue(progress.done)
            self._cancel = progress.cancel or bool
        self.cancel.setVisible(progress is not None and shown and progress.cancel is not None)

    def _make_room(self, for_work: bool) -> None:
        work, wide = [self.work, self.bar, self.cancel], [self.labels[name] for name in WIDE]
        for widget in wide if for_work else work:  # first: the window would grow to hold both
            widget.hide()
        for widget in work[:2] if for_work else wide:
            widget.show()
        self._put_measures()


def measured(history: History, unit: str) -> list[Measured]:
    """The newest of the task's own measures, the one that it goes by first, then of the loss in `unit`."""
    found = []
    for name in MEASURED:
        values = history.scalar(name)
        known = np.flatnonzero(np.isfinite(values))
        if known.size:
            value = float(values[known[-1]])
            loss, share = name == "heldout", name != "mrr"
            shown = f"{number(value)} {unit}" if loss else f"{number(100 * value)} %" if share else number(value)
            found.append(Measured(name, f"{TITLES[name]} {shown}", int(history.steps[known[-1]])))
    return found


def _how_many(facts: ModelFacts | None) -> str:
    if facts is None or facts.executed_experts is None:
        return ""
    return (
        f"A token of the probe runs {facts.executed_experts:.3g} experts on average: their number varies by token, "
        "dropped assignments and null experts are not counted."
    )


def in_words(progress: Progress, seconds: float) -> str:
    """How far, how fast, and how long it takes from now, as far as that is known."""
    if not progress.total:
        return f"{progress.title}, {seconds:.0f} s"
    words = f"{progress.title}: {progress.done:,} of {progress.total:,}"
    if not progress.done or seconds < SHORTEST:
        return words
    rate = progress.done / seconds
    return f"{words}, {short(rate)}/s, {duration((progress.total - progress.done) / rate)} left"


def duration(seconds: float) -> str:
    """In the unit that a person would use."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def short(number: float) -> str:
    """Three significant digits with k, M, G."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"
