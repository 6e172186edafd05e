"""What the window costs while a model trains in it: pairs of training with and without a window, latency, frames."""

import statistics
import sys
import time
from collections.abc import Callable

from moeviz.engine.runner import Runner

ROUNDS = 5
SECONDS = 6.0  # of training in each half of a pair


def measure() -> dict[str, float]:
    """Training beside the default window against the same runner without one, in pairs; latency and frame cost."""
    from PySide6.QtCore import QTimer

    from moeviz.app import bundled_model, make_session
    from moeviz.bench.live import live, live_window
    from moeviz.domain.messages import Show
    from moeviz.domain.settings import Settings
    from moeviz.engine.mailbox import Mailbox

    with live_window() as window:
        live(60, lambda: window.snapshot is not None)
        bare = Runner(Mailbox())
        bare.start(make_session(Settings(), "cpu", bundled_model("text")))
        while not bare.idle:
            time.sleep(0.01)

        late: list[float] = []
        last = [0.0]

        def tick() -> None:
            now = time.perf_counter()
            late.append(now - last[0] - 0.005)
            last[0] = now

        beat = QTimer()
        beat.setInterval(5)
        beat.timeout.connect(tick)
        ratios: list[float] = []
        for i in range(ROUNDS + 1):
            bare.mailbox.take()
            alone = _rate(bare, lambda: time.sleep(SECONDS))
            last[0] = time.perf_counter()
            if i:
                beat.start()
            beside = _rate(window.runner, lambda: live(SECONDS), start=window.toggle_training)
            beat.stop()
            live(5, lambda: window.runner.idle)
            if i:  # the first pair warms up: traced calls, caches
                ratios.append(beside / alone)
            print(f"pair {i} of {ROUNDS}: {alone:.1f} steps/s alone, {beside:.1f} beside the window", file=sys.stderr)
        bare.close()

        window.toggle_training()
        knobs: list[float] = []
        for i in range(20):
            live(0.15)
            seen, began = window.settings, time.perf_counter()
            marks = len(window.history.marks)
            window.knobs.change({"routing.temperature": 1.0 + 0.05 * (i + 1)})
            live(2, lambda m=marks: len(window.history.marks) > m)  # type: ignore[misc]
            knobs.append(time.perf_counter() - began)
            assert seen != window.settings
        window.toggle_training()
        live(5, lambda: window.runner.idle)

        costs: list[float] = []
        for _ in range(40):
            before = window.snapshot
            window.send(Show())
            while not window.runner.mailbox.waiting():
                time.sleep(0.001)
            began = time.perf_counter()
            window.collect()
            costs.append(time.perf_counter() - began)
            assert window.snapshot is not before
        live(1, lambda: window.runner.idle and not window.timer.isActive())
        spent = time.process_time()
        live(3)
        idle = (time.process_time() - spent) / 3
    late.sort()
    knobs.sort()
    return {
        "training beside the window / alone, median": statistics.median(ratios),
        "training beside the window / alone, worst": min(ratios),
        "event-loop latency p99, ms": late[int(len(late) * 0.99)] * 1000,
        "frame of the default dashboard, median ms": statistics.median(costs) * 1000,
        "knob to pixels p95, ms": knobs[int(len(knobs) * 0.95) - 1] * 1000,
        "CPU share when idle": idle,
    }


def _rate(runner: Runner, wait: Callable[[], None], start: Callable[[], None] | None = None) -> float:
    """Steps a second while `wait` runs, counted by the session itself."""
    first = runner.advances
    began = time.perf_counter()
    if start is None:
        runner.training = True
    else:
        start()
    wait()
    steps, seconds = runner.advances - first, time.perf_counter() - began
    if start is None:
        runner.training = False
    else:
        start()
    while not runner.idle:
        time.sleep(0.005)
    return steps / seconds
