"""What scrubbing through a long run costs, in every layout: from the handle's move to the painted panels."""

import sys
import time

STEPS = 10_000  # really trained, by a model that is small but for what a snapshot holds
MOVES = 200
SMALL = {"model.width": 16, "model.expert_width": 16, "model.context": 16, "train.batch": 1}


def measure() -> dict[str, float]:
    """p50 and p95 in ms of a move of the timeline's handle to a random kept step, painting included, by layout."""
    import numpy as np

    from moeviz.bench.live import live, live_window, settle
    from moeviz.domain.settings import Settings
    from moeviz.view.layouts import LAYOUTS

    with live_window() as window:
        live(60, lambda: window.snapshot is not None)
        window.start(window.make_session(Settings().with_values(SMALL), "cpu", None))
        live(60, lambda: window.snapshot is not None and window.settings.model.width == SMALL["model.width"])
        window.train_for(STEPS)
        while window.runner.training:
            live(5, lambda: not window.runner.training)
            print(f"step {window.snapshot.step if window.snapshot else 0:,} of {STEPS:,}", file=sys.stderr)
        settle(window)
        found: dict[str, float] = {"steps": STEPS, "kept snapshots": len(window.history.snapshots)}
        places = np.random.default_rng(0).integers(len(window.history.snapshots), size=MOVES)
        for name in LAYOUTS:
            window.layouts.choose(name)
            settle(window)
            live(0.5)
            costs = []
            for place in places.tolist():
                began = time.perf_counter()
                window.timeline.slider.setValue(place)
                window.repaint_panels()
                costs.append((time.perf_counter() - began) * 1000)
                live(0.001)  # what a move leaves for the event loop
            window.timeline.follow()
            found |= {f"{name}: move to pixels p{p}, ms": float(np.percentile(costs, p)) for p in (50, 95)}
    return found
