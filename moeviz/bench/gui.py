"""What the window costs while a model trains in it, in every layout: training beside it, latency, frames, knobs."""

import statistics
import sys
import time
from collections.abc import Callable

from PySide6.QtCore import QTimer

from moeviz.app import bundled_model, make_session
from moeviz.bench.live import live, live_window, settle
from moeviz.domain.messages import Advance
from moeviz.domain.settings import Settings
from moeviz.engine.mailbox import Mailbox
from moeviz.engine.runner import Runner
from moeviz.view.layouts import LAYOUTS
from moeviz.view.window import Window

ROUNDS = 16  # many short pairs: a machine is never as quiet as one long pair needs
SECONDS = 2.5  # of training in each half of a pair
FRAMES = 40
TURNS = 20  # of a knob
BEAT_MS = 5
IDLE_SECONDS = 3.0


def measure() -> dict[str, float]:
    """Each layout's figures, by its name and theirs."""
    found: dict[str, float] = {}
    with live_window() as window:
        live(60, lambda: window.snapshot is not None)
        bare = Runner(Mailbox())
        bare.start(make_session(Settings(), "cpu", bundled_model("text")))
        while not bare.idle:
            time.sleep(0.01)
        for name in LAYOUTS:
            window.layouts.choose(name)
            settle(window)
            figures = _training(window, bare, name) | _knobs(window) | _frames(window) | _idle(window)
            found |= {f"{name}: {what}": value for what, value in figures.items()}
        bare.close()
    return found


def _training(window: Window, bare: Runner, layout: str) -> dict[str, float]:
    """Training beside the window against the same runner without one, in pairs; meanwhile, what a tick with a new
    picture takes, and how late the event loop is."""
    late: list[float] = []
    frames: list[float] = []
    last = time.perf_counter()

    def tick() -> None:
        nonlocal last
        now = time.perf_counter()
        late.append((now - last) * 1000 - BEAT_MS)
        last = now

    def collect() -> None:
        before, began = window.snapshot, time.perf_counter()
        window.collect()
        if window.snapshot is not before:
            frames.append((time.perf_counter() - began) * 1000)

    window.timer.timeout.disconnect(window.collect)
    window.timer.timeout.connect(collect)
    beat = QTimer()
    beat.setInterval(BEAT_MS)
    beat.timeout.connect(tick)

    def alone_rate() -> float:
        rate = _rate(bare, lambda: time.sleep(SECONDS))
        bare.mailbox.take()
        return rate

    def beside_rate() -> float:
        nonlocal last
        last = time.perf_counter()
        beat.start()
        rate = _rate(window.runner, lambda: live(SECONDS), turn=window.toggle_training)
        beat.stop()
        settle(window)
        return rate

    ratios: list[float] = []
    for i in range(ROUNDS + 1):
        if i % 2:  # by turns: a machine that grows slower favours neither
            alone, beside = alone_rate(), beside_rate()
        else:
            beside, alone = beside_rate(), alone_rate()
        if i:
            ratios.append(beside / alone)
        else:  # the first pair warms up: traced calls, caches
            late.clear()
            frames.clear()
        what = f"pair {i} of {ROUNDS}: {alone:.1f} steps/s alone, {beside:.1f} beside the window"
        print(f"{layout}, {what}", file=sys.stderr)
    window.timer.timeout.disconnect(collect)
    window.timer.timeout.connect(window.collect)
    return {
        "training beside the window / alone, median": statistics.median(ratios),
        "training beside the window / alone, standard error": statistics.stdev(ratios) / len(ratios) ** 0.5,
        "event-loop latency p99, ms": statistics.quantiles(late, n=100)[98],
        "a frame while training, median ms": statistics.median(frames),
    }


def _rate(runner: Runner, wait: Callable[[], None], turn: Callable[[], None] | None = None) -> float:
    """Steps a second while `wait` runs, counted by the runner itself. `turn` starts and stops training as a person
    does."""
    first = runner.advances
    began = time.perf_counter()
    if turn is None:
        runner.training = True
    else:
        turn()
    wait()
    steps, seconds = runner.advances - first, time.perf_counter() - began
    if turn is None:
        runner.training = False
    else:
        turn()
    while not runner.idle:
        time.sleep(0.005)
    return steps / seconds


def _knobs(window: Window) -> dict[str, float]:
    """From a change of the temperature, while it trains, to the picture that shows it."""
    window.toggle_training()
    times: list[float] = []
    for i in range(TURNS):
        live(0.15)
        began, marks = time.perf_counter(), len(window.history.marks)
        window.knobs.change({"routing.temperature": 1.0 + 0.05 * (i + 1)})
        live(2, lambda m=marks: len(window.history.marks) > m)  # type: ignore[misc]
        times.append((time.perf_counter() - began) * 1000)
        assert len(window.history.marks) > marks
    window.knobs.change({"routing.temperature": 1.0})
    window.toggle_training()
    settle(window)
    return {"knob to pixels p95, ms": statistics.quantiles(times, n=20)[18]}


def _frames(window: Window) -> dict[str, float]:
    """One step, and everything that is seen painted anew."""
    costs: list[float] = []
    for _ in range(FRAMES):
        before = window.snapshot
        window.send(Advance(snapshot=True))
        while not window.runner.mailbox.waiting():
            time.sleep(0.001)
        began = time.perf_counter()
        window.collect()
        costs.append((time.perf_counter() - began) * 1000)
        assert window.snapshot is not before
        settle(window)
    return {"a frame that paints all panels, median ms": statistics.median(costs)}


def _idle(window: Window) -> dict[str, float]:
    live(1)
    spent = time.process_time()
    live(IDLE_SECONDS)
    return {"CPU share when idle": (time.process_time() - spent) / IDLE_SECONDS}
