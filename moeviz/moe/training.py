"""A training run as a session: a plain generator that is sent commands and yields updates (domain/messages.py)."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from moeviz.domain.messages import (
    Advance,
    Command,
    DataError,
    OpenModel,
    Prepare,
    Read,
    Report,
    Restart,
    SaveModel,
    Session,
    SetDevice,
    SetKnobs,
    SetProbe,
    Show,
    StepLog,
    Survey,
    Update,
    UserError,
    unreported,
)
from moeviz.domain.places import in_words
from moeviz.domain.routing import Floats, RoutingSnapshot
from moeviz.domain.settings import KNOBS, Settings, SettingsError, Value
from moeviz.domain.survey import Part
from moeviz.moe.checkpoint import Opening, load, save
from moeviz.moe.devices import devices
from moeviz.moe.survey import survey
from moeviz.moe.tasks.data import Data
from moeviz.moe.tasks.loading import load_task
from moeviz.moe.tasks.text import load_text
from moeviz.moe.trainer import Trainer

Reader = Callable[[Settings], Data]  # the data of the settings' task


def session(
    settings: Settings,
    *,
    device: str = "cpu",
    probe: str | None = None,
    checkpoint: str | None = None,
    report: Report = unreported,
) -> Session:
    """Start a run, or go on with a checkpoint (whose settings then hold). The first `next` trains nothing. `report`
    hears how far it is with reading the user's own text, now and whenever another is asked for.

    Raises UserError if it cannot start; afterwards no mistake of the user ends it.
    """
    torch.set_num_threads(1)  # more are slower on matrices this small, and far slower beside a window
    data_of = partial(_data, report=report)
    if checkpoint:
        trainer, notice = _opened(checkpoint, device, probe, data_of=data_of, report=report)
    else:
        trainer, notice = _started(settings, device, probe, data_of=data_of)
    run = _Run(trainer, probe, data_of, report)
    del trainer  # it and its data are to go when another takes its place
    update: Update | None = replace(run.update(notice=notice, reset=True), devices=devices())
    while True:
        command = yield update
        update = _carry_out(run, command)


def _started(
    settings: Settings, device: str, probe: str | None, last: Trainer | None = None, *, data_of: Reader
) -> tuple[Trainer, str]:
    """A new model, and what the user should know. The data of the last one is used again where it is the same."""
    if last is not None and (last.settings.task, last.settings.data) == (settings.task, settings.data):
        data, notice = last.data, ""
    else:
        data = data_of(settings)
        notice = " ".join(data.notes)
    trainer = Trainer(settings, data, device, probe or data.probe)
    trainer.prepare()
    return trainer, notice


def _opened(
    path: str,
    device: str,
    probe: str | None,
    task: str | None = None,
    *,
    data_of: Reader,
    report: Report = unreported,
) -> tuple[Trainer, str]:
    """The run that a checkpoint holds, and what the user should know. A probe is for a task, for any without one."""
    opening = Opening(report)
    saved, notice = load(path, opening), ""
    settings = saved.settings
    if task not in (None, settings.task):
        probe = None
    try:
        data = data_of(settings)
    except UserError as error:
        # a model from elsewhere can still be looked at
        if not settings.data.path:
            raise
        settings = settings.with_values({"data.path": ""})
        data = data_of(settings)
        notice = f"The model's own data is not here, so training would go on with the built-in data: {error}"
    data = data.with_vocabulary(saved.vocabulary)
    trainer = Trainer(settings, data, device, probe or data.probe, saved, opening)
    if settings.data.path:  # the built-in data can wait: the routing is on the screen half a second sooner
        trainer.prepare()
    return trainer, notice


def _data(settings: Settings, report: Report = unreported) -> Data:
    """The data of the settings' task. UserError if it cannot be used, DataError if it is the user's own."""
    path = settings.data.path
    try:
        if settings.task != "text":
            return load_task(settings.task, path)
        return load_text(path, report)
    except UserError as error:
        if path:
            raise DataError(str(error)) from error
        raise


def _data_of_task(path: str, task: str, report: Report, settings: Settings) -> Data:
    if task and settings.task != task:
        raise UserError(
            f"{Path(path).name} is a model of the task {settings.task}, and what is shown is of the task {task}: "
            "compare with a model of the same task."
        )
    return _data(settings, report)


def measure(checkpoint: str, device: str = "cpu") -> tuple[dict[str, float], dict[str, float]]:
    """A model's held-out measures on all rows that its context holds, and those of the most frequent answer."""
    trainer, _ = _opened(checkpoint, device, None, data_of=_data)
    data = trainer.data
    return trainer.measure(), data.baseline(trainer.settings.model.context) if data.measures else {}


def read_checkpoint(path: str, text: str, task: str = "", report: Report = unreported) -> RoutingSnapshot:
    """What the model of a checkpoint does with a text, or without one with its task's own. UserError if it cannot, or
    if the text is of another task; `task`: which one, where that is known."""
    torch.set_num_threads(1)
    report(0, 0)  # it may be cancelled
    data_of = partial(_data_of_task, path, task, report)
    trainer, _ = _opened(path, "cpu", text or None, data_of=data_of, report=report)
    report(0, 0)
    return trainer.snapshot()


def _carry_out(run: "_Run", command: Command) -> Update | None:
    """What all commands have in common: a failure that the user can mend becomes a notice."""
    try:
        return run.carry_out(command)
    except (UserError, SettingsError) as error:
        notice = str(error)
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        notice = ""
    # after the except block, so that the exception no longer holds the tensors of what failed
    paused = isinstance(command, Advance)  # else no step failed
    return run.update(notice=notice, paused=paused) if notice else run.out_of_memory(paused)


class _Run:
    """The trainer of the moment, and what the next update has to tell."""

    def __init__(self, trainer: Trainer, probe: str | None, data_of: Reader, report: Report) -> None:
        self.trainer, self.data_of, self.report = trainer, data_of, report
        self.probe = probe  # as the user gave it; without one the data's own is shown
        self._axes: tuple[Floats, ...] = ()  # of the last survey of routers' inputs: the next one's are like them
        self._surveyed: tuple[frozenset[Part] | None, float] = None, 0.0  # the parts of the last survey, and seconds
        self._log: StepLog | None = None
        self._diverged = ""
        self._stopped = ""  # of the dense twin

    def carry_out(self, command: Command) -> Update | None:
        match command:
            case Advance(snapshot):
                return self.advance(snapshot)
            case Show():
                return self.update()
            case Survey(parts):
                return self.survey(parts)
            case Prepare():
                self.trainer.prepare()
                self._log = self.trainer.tell_opened()
                return self._tell(None) if self._log is not None else None
            case SetKnobs(values):
                return self.set_knobs(values)
            case SetProbe(text):
                self.trainer.set_probe(text)
                self.probe = text
                return self.update()
            case Read(text):
                return self.read(text)
            case SetDevice(device):
                self.settle()
                self.trainer.to(device)
                return self.update(mark=f"device {device}")
            case Restart():
                return self.replace(*self.started(self.trainer.settings))
            case SaveModel(path):
                return self.save(path)
            case OpenModel(path):
                task = self.trainer.settings.task
                trainer, notice = _opened(
                    path, self.trainer.device, self.probe, task, data_of=self.data_of, report=self.report
                )
                if trainer.settings.task != task:
                    self.probe = None
                return self.replace(trainer, notice)

    def advance(self, snapshot: bool) -> Update | None:
        self.trainer.advance()
        if self.trainer.due:
            self.check()
        return self.update() if snapshot or self._diverged else None

    def survey(self, parts: frozenset[Part]) -> Update:
        self.settle()
        start = time.perf_counter()
        found = survey(self.trainer, parts, self._axes)
        self._axes = tuple(inputs.axes_2D for inputs in found.inputs) or self._axes
        update = replace(self._tell(found.probe), survey=found)  # with its snapshot: they are looked at together
        (of, before), seconds = self._surveyed, time.perf_counter() - start
        self._surveyed = parts, seconds
        if of != parts:  # the first of its kind fills caches, and tells nothing of what the next will take
            return update
        seconds = min(before, seconds)  # one of them may have waited
        return replace(update, timings={**update.timings, "survey": seconds})

    def read(self, text: str) -> Update:
        self.settle()
        read = self.trainer.read(text)
        return replace(self.update(), read=read)

    def set_knobs(self, values: Mapping[str, Value]) -> Update:
        old = self.trainer.settings
        new = old.with_values(values)
        before, after = old.flat(), new.flat()
        changed = [key for key in KNOBS if before[key] != after[key]]
        mark = ", ".join(
            f"{KNOBS[key].title} {_shown(key, before[key])} → {_shown(key, after[key])}" for key in changed
        )
        if new.task != old.task:
            self.probe = None  # it says nothing to another task
        if not all(new.live(key) for key in changed):
            return self.replace(*self.started(new), mark)
        data = self.data_of(new) if new.data != old.data else None
        self.settle()
        self.trainer.change(new)
        if data is not None:
            self.trainer.learn_from(data)
            self.trainer.set_probe(self.probe or data.probe)
        return self.update(mark=mark)

    def save(self, path: str) -> Update:
        self.settle()
        trainer = self.trainer
        moments, counts_LE = trainer.optimiser, trainer.counts()
        twin = trainer.twin.state() if trainer.twin is not None else {}
        saved = save(
            path,
            trainer.settings,
            trainer.data.vocabulary,
            trainer.step,
            trainer.model,
            moments,
            counts_LE,
            twin,
            trainer.lineage,
        )
        return self.update(saved=str(saved))

    def started(self, settings: Settings) -> tuple[Trainer, str]:
        return _started(settings, self.trainer.device, self.probe, self.trainer, data_of=self.data_of)

    def replace(self, trainer: Trainer, notice: str, mark: str = "") -> Update:
        """Show another run from now on; steps of the old one that nobody saw are of no interest any more."""
        self.trainer = trainer
        self._axes, self._surveyed = (), (None, 0.0)
        self._log, self._diverged, self._stopped = None, "", ""
        return self.update(mark=mark, notice=notice, reset=True)

    # ---- what the next update tells
    def check(self) -> None:
        if not self.trainer.check():
            self._diverged = _why_not_finite(self.trainer.settings)

    def settle(self) -> None:
        """Collect the numbers of the steps so far, while the model still has the sizes that they have."""
        self.check()
        twin = self.trainer.twin
        in_step = twin is not None and not twin.stopped
        self._log = self.trainer.flush() or self._log
        if in_step and twin is not None and twin.stopped:
            self._stopped = _why_twin_stopped(self.trainer)

    def update(
        self, *, notice: str = "", mark: str = "", saved: str = "", reset: bool = False, paused: bool = False
    ) -> Update:
        """Everything since the last update, with a fresh snapshot."""
        start = time.perf_counter()
        self.settle()
        snapshot = self.trainer.snapshot()
        update = self._tell(snapshot, notice, mark, saved, reset, paused)
        return replace(update, timings={**update.timings, "snapshot": time.perf_counter() - start})

    def out_of_memory(self, paused: bool) -> Update:
        """Nothing is computed for this one; the model is as it was before the command."""
        notice = (
            f"There is not enough memory on {self.trainer.device} for this; "
            "lower the batch, context, width or number of experts."
        )
        return self._tell(None, notice, paused=paused)

    def _tell(
        self,
        snapshot: RoutingSnapshot | None,
        notice: str = "",
        mark: str = "",
        saved: str = "",
        reset: bool = False,
        paused: bool = False,
    ) -> Update:
        log, diverged, stopped, trainer = self._log, self._diverged, self._stopped, self.trainer
        self._log, self._diverged, self._stopped = None, "", ""
        return Update(
            trainer.step,
            trainer.settings,
            trainer.facts(),
            snapshot,
            log,
            reset=reset,
            mark=mark,
            notice=" ".join(filter(None, [diverged, stopped, notice])),
            paused=paused or bool(diverged),
            saved=saved,
            timings=trainer.timings(len(log.steps_S) if log else 0),
        )


def _shown(key: str, value: Value) -> str:
    if key == "data.path":
        return in_words(str(value)) or "built-in"
    return value if isinstance(value, str) else f"{value:g}"


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "memory" in str(error).lower()


def _why_twin_stopped(trainer: Trainer) -> str:
    return (
        f"The dense twin's loss was no longer a number by step {trainer.step}: it has stopped, and the MoE trains on "
        f"without it. The learning rate of {trainer.settings.train.lr:g} may be too high for it; lower it and restart."
    )


def _why_not_finite(settings: Settings) -> str:
    """A guess in the order of likelihood."""
    if settings.routing.temperature < 0.3:
        cause = f"the temperature of {settings.routing.temperature:g} is low; raise it"
    elif max(settings.balance.coefficient, settings.balance.z_coefficient) > 0.3:
        cause = "a loss coefficient is high; lower it"
    else:
        cause = f"the learning rate of {settings.train.lr:g} may be too high; lower it"
    return f"The loss was no longer a number, so the last good state is back and training pauses: {cause}."
