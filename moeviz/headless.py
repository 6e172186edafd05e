"""What runs without a window: training into a folder, recording a checkpoint, and what a picture of either shows.

torch is imported only when a session starts.
"""

import csv
import importlib.metadata
import math
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import GEN_SUSPENDED, getgeneratorstate
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, TextIO

import numpy as np

from moeviz.domain.history import History
from moeviz.domain.kinds import kind_of
from moeviz.domain.messages import Advance, Read, SaveModel, Session, SetKnobs, StepLog, Survey, Update, UserError
from moeviz.domain.metrics import cv, max_violation
from moeviz.domain.reference import Reference, same_experts
from moeviz.domain.routing import RoutingSnapshot
from moeviz.domain.settings import Settings
from moeviz.domain.survey import SurveyResult
from moeviz.domain.writing import write_whole
from moeviz.trace.store import Trace, TraceWriter, open_trace

MODEL, TRACE, SETTINGS, METRICS = "model.safetensors", "trace.zarr", "settings.json", "metrics.csv"
SNAPSHOTS = 200  # of a whole run, about
UPDATE_SECONDS, SAVE_SECONDS = 2.0, 30.0  # what a crash may cost of the numbers, and of the model
SOURCE = "moeviz " + importlib.metadata.version("moeviz")


# ---- driving a session
def start(settings: Settings, *, device: str, checkpoint: str | None = None, probe: str | None = None) -> Session:
    from moeviz.moe.training import session

    return session(settings, device=device, checkpoint=checkpoint, probe=probe)


def snapshot_of(update: Update | None) -> RoutingSnapshot:
    """The snapshot of an update that must have one; a session that had no memory for it says so in its notice."""
    if update is None or update.snapshot is None:
        raise UserError(update.notice if update and update.notice else "The session gave no routing.")
    return update.snapshot


def survey_of(run: Session) -> SurveyResult:
    """What the session's model does with held-out text."""
    update = run.send(Survey())
    if update is None or update.survey is None:
        raise UserError(update.notice if update and update.notice else "The session gave no survey.")
    return update.survey


def read_text(run: Session, text: str) -> RoutingSnapshot:
    """What the session's model does with another text than its probe."""
    update = run.send(Read(text))
    if update is None or update.read is None:
        raise UserError(update.notice if update and update.notice else "The session gave no routing.")
    return update.read


def kept_steps(steps: int) -> list[int]:
    """Of a training of so many steps those whose snapshots are kept: about SNAPSHOTS, evenly, and the last."""
    return [*range(0, steps, math.ceil(steps / SNAPSHOTS)), steps]


def train_steps(
    run: Session, steps: int, progress: "Progress", stop: Callable[[], bool]
) -> Iterator[tuple[Update, bool]]:
    """Train, and yield the news every UPDATE_SECONDS at least, with whether their snapshot is one of the about
    SNAPSHOTS to keep. Ends early if `stop` says so or the session asks to pause."""
    kept, told_at = set(kept_steps(steps)), time.monotonic()
    for step in range(1, steps + 1):
        last = step == steps or stop()
        keep = last or step in kept
        update = run.send(Advance(snapshot=keep or time.monotonic() - told_at > UPDATE_SECONDS))
        progress.show(step, update)
        if update is not None:
            told_at = time.monotonic()
            yield update, keep or update.paused
            if update.paused:
                return
        if last:
            return


@dataclass
class Progress:
    """Tells on stderr how far a training run is: a line rewritten on a terminal, else one every ten seconds."""

    steps: int
    started: float = field(default_factory=time.monotonic)
    _told: float = 0.0
    _loss: str = ""

    def show(self, step: int, update: Update | None) -> None:
        now, terminal = time.monotonic(), sys.stderr.isatty()
        if update is not None and update.snapshot is not None and "loss" in update.snapshot.scalars:
            self._loss = f", loss {update.snapshot.scalars['loss']:.3g}"
        if step == self.steps or now - (self._told or self.started) >= (0.2 if terminal else 10):
            self._told = now
            rate = step / max(now - self.started, 1e-9)
            left = _duration((self.steps - step) / rate)
            line = f"step {step} of {self.steps}, {rate:.3g} steps/s, {left} left{self._loss}"
            print(f"\r{line}\033[K" if terminal else line, end="" if terminal else "\n", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._told and sys.stderr.isatty():
            print(file=sys.stderr)


@contextmanager
def stop_on_interrupt() -> Iterator[Callable[[], bool]]:
    """Ctrl-C ends a run between two steps, so that it can be saved; the second one ends it at once."""
    stopped = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("\nStopping after this step; press Ctrl-C again to stop at once.", file=sys.stderr)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: stopped
    finally:
        signal.signal(signal.SIGINT, before)


# ---- train
def train(settings: Settings, steps: int, out: Path, *, device: str, force: bool) -> dict[str, Any]:
    """Train into a folder: model, trace, settings, metrics. The result tells what happened, as plain data."""
    _refuse_results(out, force)
    run = start(settings, device=device)
    update = next(run)
    assert update is not None
    _tell(update.notice)
    with stop_on_interrupt() as stopped:
        _make_room(out)
        write_whole(out / SETTINGS, settings.to_json())
        progress, saved_at = Progress(steps), time.monotonic()
        scalars, step, notice = dict[str, float](), 0, ""
        try:
            with (
                TraceWriter.create(out / TRACE, settings.to_json(), f"{SOURCE}: train") as trace,
                (out / METRICS).open("w", encoding="utf-8", newline="") as metrics,
            ):
                trace.append(snapshot_of(update))
                for update, keep in train_steps(run, steps, progress, stopped):
                    step, notice = update.step, update.notice
                    _tell("" if update.paused else notice)
                    if update.log is not None:
                        trace.add_log(update.log)
                        write_metrics(metrics, update.log)
                        scalars |= _last(update.log)
                    if keep and update.snapshot is not None:
                        trace.append(update.snapshot)
                    if time.monotonic() - saved_at > SAVE_SECONDS:
                        _save(run, out)
                        saved_at = time.monotonic()
        finally:
            progress.end()
            # also when a full disk stopped the run: the model is small and may still fit
            if getgeneratorstate(run) == GEN_SUSPENDED:
                _save(run, out)
        seconds = time.monotonic() - progress.started
        run.close()
        measured, baseline = ({}, {}) if update.paused else held_out(out / MODEL, device)
    assert update.facts is not None
    if update.paused:
        raise UserError(f"{notice} The {step} steps so far are saved in {out}.")
    return {
        "out": str(out),
        "steps": step,
        "interrupted": stopped() and step < steps,
        "seconds": seconds,
        "steps_per_second": step / seconds if seconds > 0 else None,
        "device": update.facts.device,
        "total_parameters": update.facts.total_parameters,
        "active_parameters": update.facts.active_parameters,
        "flops_per_token": update.facts.flops_per_token,
        **{name: value for name, value in (scalars | measured).items() if math.isfinite(value)},
        "baseline": baseline,
    }


def held_out(model: Path, device: str) -> tuple[dict[str, float], dict[str, float]]:
    """A model's measures on all held-out rows of its task, and those of the most frequent answer; empty for text."""
    from moeviz.moe.training import measure

    return measure(str(model), device)


def write_metrics(file: TextIO, log: StepLog) -> None:
    """A line for each step: its scalars, and the balance of each layer's training batch. Empty where not measured.

    The file grows line by line under its own name, so that it can be followed, and a crash costs no more than a line.
    """
    writer = csv.writer(file)
    if file.tell() == 0:
        balance = [f"{name}_layer_{i}" for i in range(len(log.counts_SE)) for name in ("cv", "max_violation")]
        writer.writerow(["step", *log.scalars_S, *balance])
    for row, step in enumerate(log.steps_S):
        values = [float(column[row]) for column in log.scalars_S.values()]
        values += [measure(counts[row]) for counts in log.counts_SE for measure in (cv, max_violation)]
        writer.writerow([int(step), *(f"{value:.6g}" if math.isfinite(value) else "" for value in values)])
    file.flush()


def _results(out: Path) -> list[Path]:
    return [out / name for name in (MODEL, TRACE, SETTINGS, METRICS) if (out / name).exists()]


def _refuse_results(out: Path, force: bool) -> None:
    """Results of an earlier run are not overwritten by mistake."""
    found = ", ".join(path.name for path in _results(out))
    if found and not force:
        raise UserError(f"{out} already holds {found}; give another folder or add --force to replace them.")


def _make_room(out: Path) -> None:
    """The folder, without results of an earlier run."""
    out.mkdir(parents=True, exist_ok=True)
    for path in _results(out):
        if path.is_dir():
            open_trace(path)  # never remove a folder that is something else, nor anything before that is known
    for path in _results(out):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _save(run: Session, out: Path) -> None:
    update = run.send(SaveModel(str(out / MODEL)))
    if update is None or not update.saved:
        raise UserError(update.notice if update else "The model could not be saved.")


def _last(log: StepLog) -> dict[str, float]:
    """The newest finite value of each scalar, and as "heldout_step" of which step the held-out loss is."""
    known = {name: np.flatnonzero(np.isfinite(values)) for name, values in log.scalars_S.items()}
    last = {name: float(log.scalars_S[name][at[-1]]) for name, at in known.items() if len(at)}
    if "heldout" in last:
        last["heldout_step"] = int(log.steps_S[known["heldout"][-1]])
    return last


# ---- inspect
def inspect(
    model: str, text: str, out: Path, *, changes: Mapping[str, Any], generate: int, device: str, seed: int
) -> dict[str, Any]:
    """Record the routing of a checkpoint on a text, with other routing settings if wished."""
    seen = look(model, text, changes=changes, generate=generate, device=device, seed=seed)
    snapshot, settings, text = seen.snapshot, seen.settings, seen.text
    if seen.unknown:
        _tell(f"Not in the model's vocabulary, so read as unknown: {seen.unknown} of {snapshot.num_tokens} tokens.")
    with TraceWriter.create(out, settings.to_json(), f"{SOURCE}: inspect {model}") as trace:
        trace.append(snapshot)
    return {
        "out": str(out),
        "tokens": snapshot.num_tokens,
        "unknown_tokens": seen.unknown,
        "text": text,
        "layers": [{"name": r.name, "experts": r.num_experts, "k": r.k} for r in snapshot.layers],
    }


class Seen(NamedTuple):
    """What a checkpoint does with a text: the routing, the settings used, how many tokens it does not know, the
    text with what was generated, and a survey if asked for."""

    snapshot: RoutingSnapshot
    settings: Settings
    unknown: int
    text: str
    survey: SurveyResult | None


def look(
    model: str,
    text: str | None,
    *,
    changes: Mapping[str, Any],
    generate: int = 0,
    device: str = "cpu",
    seed: int = 0,
    survey: bool = False,
) -> Seen:
    """Open a checkpoint, with other routing settings if wished, and let it read a text, or its task's own probe."""
    path = model_file(model)
    if text == "":
        raise UserError("The text is empty; give at least one character with --text or --file.")
    others = [key for key in changes if not key.startswith("routing.")]
    if others:
        raise UserError(f"A trained model keeps its {others[0]}; inspect can change settings of routing only.")
    from moeviz.moe.checkpoint import load

    saved = load(path)
    settings = saved.settings.with_values(changes)
    if generate and text is not None:
        from moeviz.moe.tasks.generate import generate as go_on

        text = go_on(path, text, generate, settings, device=device, seed=seed)
    run = start(saved.settings, device=device, checkpoint=str(path), probe=text)
    update = next(run)
    if changes:
        update = run.send(SetKnobs(dict(changes)))
    found = survey_of(run) if survey else None
    run.close()
    snapshot = snapshot_of(update)
    assert update is not None
    text = "".join(snapshot.tokens or ()) if text is None else text
    if update.settings.routing != settings.routing:
        raise UserError(update.notice or "The model did not take these settings.")
    from moeviz.moe.tasks.loading import unknown_tokens

    return Seen(snapshot, settings, unknown_tokens(settings, saved.vocabulary, text), text, found)


def model_file(path: str) -> Path:
    """The checkpoint that a file or folder names."""
    place = Path(path)
    if place.is_dir():
        if (place / MODEL).is_file() and not (place / "config.json").is_file():
            return place / MODEL
        if (place / "config.json").is_file():
            raise UserError(f"{path} is a model of another library; this version reads moeviz's own checkpoints only.")
        raise UserError(f"{path} holds no {MODEL}; give the file or folder that moeviz train wrote.")
    if not place.is_file():
        raise UserError(f"There is no model {path}; check the path.")
    return place


# ---- what a picture shows
class Shown(NamedTuple):
    """A moment with its history, the task if known, a survey of the model if asked for, and what it does with another
    text. `interrupted`: Ctrl-C ended the training before it came to all steps."""

    snapshot: RoutingSnapshot
    history: History
    task: str = ""
    survey: SurveyResult | None = None
    read: RoutingSnapshot | None = None
    interrupted: bool = False


def of_checkpoint(
    model: str, text: str | None, *, changes: Mapping[str, Any], device: str, survey: bool = False, read: str = ""
) -> Shown:
    seen = look(model, text, changes=changes, device=device, survey=survey)
    other = look(model, read, changes=changes, device=device).snapshot if read else None
    return Shown(seen.snapshot, History(), seen.settings.task, seen.survey, other)


def of_training(
    settings: Settings,
    steps: int,
    device: str,
    *,
    survey: bool = False,
    read: str = "",
    check: Callable[[RoutingSnapshot], None] = lambda snapshot: None,
) -> Shown:
    """`check` sees the model before it is trained, and raises UserError if what is asked for is not in it."""
    run, history, progress = start(settings, device=device), History(), Progress(steps)
    snapshot = snapshot_of(next(run))
    check(snapshot)
    if read:
        read_text(run, read)  # a text that the task refuses is told now
    history.add_snapshot(snapshot)
    with stop_on_interrupt() as stopped:
        for update, keep in train_steps(run, steps, progress, stopped):
            _tell(update.notice)
            if update.log is not None:
                history.extend(update.log)
            if keep and update.snapshot is not None:
                snapshot = update.snapshot
                history.add_snapshot(snapshot)
        interrupted = stopped() and snapshot.step < steps
    progress.end()
    found = survey_of(run) if survey else None
    other = read_text(run, read) if read else None
    run.close()
    return Shown(snapshot, history, settings.task, found, other, interrupted)


def of_trace(path: str, position: int, *, film: bool = False) -> Shown:
    """`film`: with other steps too, evenly thinned."""
    trace, history = open_trace(path), History()
    snapshot = recorded(trace, position, "--step")
    for log in trace.log_parts:
        history.extend(log)
    for step, label in trace.marks:
        history.add_mark(step, label)
    for at in range(0, len(trace), math.ceil(len(trace) / SNAPSHOTS)) if film else ():
        history.add_snapshot(trace[at])
    return Shown(snapshot, history, str((trace.settings or {}).get("task", "")))


def recorded(trace: Trace, position: int, option: str) -> RoutingSnapshot:
    """The snapshot at a position, which an option has given; negative counts from the end."""
    if not -len(trace) <= position < len(trace):
        raise UserError(f"The trace {trace.path} holds {len(trace)} steps; there is no {option} {position}.")
    return trace[position]


# ---- what it is compared with
def reference(
    shown: Shown, *, path: str = "", step: int | None = None, layer: int | None = None, trace: str = ""
) -> Reference:
    """The second side of a comparison, as --against and its kin ask for it; `trace`: what is shown is of this one.
    UserError if there is none such."""
    name, snapshot, kin = _other_side(shown, path, step, trace)
    if layer is not None and not 0 <= layer < len(snapshot.layers):
        raise UserError(f"There is no --against-layer {layer}: choose one from 0 to {len(snapshot.layers) - 1}.")
    return Reference(name, snapshot, layer, kin)


def check_reference(
    first: RoutingSnapshot, steps: int, task: str, *, path: str = "", step: int | None = None, layer: int | None = None
) -> None:
    """UserError for what `reference` would refuse once a model that begins like this is trained so many steps."""
    if step is not None and not path:
        _check_kept(step, kept_steps(steps))
        step = None
    reference(Shown(first, History(), task), path=path, step=step, layer=layer)


def _other_side(shown: Shown, path: str, step: int | None, trace: str) -> tuple[str, RoutingSnapshot, bool]:
    """Its name, its routing, and whether its experts are those that are shown."""
    if shown.read is not None:
        return f"another text, step {shown.read.step:,}", shown.read, True
    of_trace = bool(path) and kind_of(path) == "trace"
    if path and step is not None and not of_trace:
        raise UserError(f"{path} is no trace, and holds one step only; leave --against-step out.")
    if path and not of_trace:
        from moeviz.moe.training import read_checkpoint

        snapshot = read_checkpoint(str(model_file(path)), "".join(shown.snapshot.tokens or ()), shown.task)
        return f"{Path(path).name}, step {snapshot.step:,}", snapshot, same_experts(snapshot, shown.snapshot)
    if path:
        snapshot = recorded(open_trace(path), -1 if step is None else step, "--against-step")
        return f"{Path(path).name}, step {snapshot.step:,}", snapshot, same_experts(snapshot, shown.snapshot)
    if step is None:
        return "the same moment", shown.snapshot, True
    snapshot = recorded(open_trace(trace), step, "--against-step") if trace else _kept(shown.history, step)
    return f"step {snapshot.step:,}", snapshot, same_experts(snapshot, shown.snapshot, shown.history.marks)


def _kept(history: History, step: int) -> RoutingSnapshot:
    """The snapshot of a step of training. Of a long run not every one is kept."""
    _check_kept(step, [snapshot.step for snapshot in history.snapshots])
    return next(snapshot for snapshot in history.snapshots if snapshot.step == step)


def _check_kept(step: int, kept: list[int]) -> None:
    nearest = min(kept, key=lambda other: abs(other - step))
    if nearest != step:
        raise UserError(
            f"Step {step} is not among those kept of this run; the nearest one is --against-step {nearest}."
        )


def _tell(sentence: str) -> None:
    if sentence:
        print(sentence, file=sys.stderr)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
