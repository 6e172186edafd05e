"""What the window costs while a model trains in it, in every layout: training beside it, latency, frames, knobs."""

import statistics
import sys
import time

from PySide6.QtCore import QTimer

from moeviz.bench.live import live, live_window, settle
from moeviz.domain.messages import Advance
from moeviz.view.layouts import LAYOUTS
from moeviz.view.window import Window

ROUNDS = 24  # many short pairs: no machine is as quiet as a few long ones need
SECONDS = 1.6  # of training in each half of a pair
LEAD_SECONDS = 0.2  # before it, for what was asked for in the other half
WARM_SECONDS = 4.0  # traced calls, caches
FRAMES = 40
TURNS = 20  # of a knob
BEAT_MS = 5
IDLE_SECONDS = 3.0


def measure() -> dict[str, float]:
    """Each layout's figures, by its name and theirs."""
    found: dict[str, float] = {}
    with live_window() as window:
        live(60, lambda: window.snapshot is not None)
        for name in LAYOUTS:
            window.layouts.choose(name)
            settle(window)
            figures = _training(window, name) | _knobs(window) | _frames(window) | _idle(window)
            found |= {f"{name}: {what}": value for what, value in figures.items()}
    return found


def _training(window: Window, layout: str) -> dict[str, float]:
    """Training beside the live window against the same run while the window sleeps, in many short pairs: it then asks
    for nothing and draws nothing, as if it were not there. Meanwhile, what a tick with a new picture takes, and how
    late the event loop is."""
    late: list[float] = []
    ticks: list[list[float]] = []  # of each picture
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
            ticks.append([(time.perf_counter() - began) * 1000])

    def show_due() -> None:
        began = time.perf_counter()
        window.show_due()
        ticks[-1].append((time.perf_counter() - began) * 1000)

    def beside() -> float:
        nonlocal last
        window.timer.start()
        live(LEAD_SECONDS)
        last = time.perf_counter()
        beat.start()
        rate = _rate(window)
        beat.stop()
        window.timer.stop()
        return rate

    def alone() -> float:
        live(LEAD_SECONDS)
        return _rate(window)

    beat = QTimer()
    beat.setInterval(BEAT_MS)
    beat.timeout.connect(tick)
    window.toggle_training()
    live(WARM_SECONDS)
    window.timer.stop()
    window.timer.timeout.disconnect(window.collect)
    window.timer.timeout.connect(collect)
    window.due_timer.timeout.disconnect(window.show_due)
    window.due_timer.timeout.connect(show_due)
    ratios: list[float] = []
    for i in range(ROUNDS):
        first, second = (alone, beside) if i % 2 else (beside, alone)  # a machine that grows slower favours neither
        rates = {first: first(), second: second()}
        ratios.append(rates[beside] / rates[alone])
        what = f"pair {i + 1} of {ROUNDS}: {rates[alone]:.1f} steps/s alone, {rates[beside]:.1f} beside the window"
        print(f"{layout}, {what}", file=sys.stderr)
    window.timer.timeout.disconnect(collect)
    window.timer.timeout.connect(window.collect)
    window.due_timer.timeout.disconnect(show_due)
    window.due_timer.timeout.connect(window.show_due)
    window.toggle_training()
    settle(window)
    return {
        "training beside the window / alone, mean": statistics.mean(ratios),
        "training beside the window / alone, standard error": statistics.stdev(ratios) / len(ratios) ** 0.5,
        "event-loop latency p99, ms": statistics.quantiles(late, n=100)[98],
        "longest tick of a picture while training, median ms": statistics.median(map(max, ticks)),
        "all ticks of a picture while training, median ms": statistics.median(map(sum, ticks)),
    }


def _rate(window: Window) -> float:
    """Steps a second, counted by the runner itself."""
    first, began = window.runner.advances, time.perf_counter()
    live(SECONDS)
    return (window.runner.advances - first) / (time.perf_counter() - began)


def _knobs(window: Window) -> dict[str, float]:
    """From a change of the temperature, while it trains, to the picture that shows it."""
    window.toggle_training()
    times: list[float] = []
    for i in range(TURNS):
        live(0.15)
        began, marks = time.perf_counter(), len(window.history.marks)
        window.knobs.change({"routing.temperature": 1.0 + 0.05 * (i + 1)})
        live(2, lambda m=marks: len(window.history.marks) > m and not window.drawing)  # type: ignore[misc]
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
