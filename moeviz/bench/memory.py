"""Whether memory stays flat while a model trains in the window and k is turned: the resident size, minute by minute."""

import os
import sys
from pathlib import Path

from moeviz.domain.errors import UserError

MINUTES = 10
WARM = 4  # until then caches fill and the history reaches its bound


def measure() -> dict[str, float]:
    """MiB at the end of the warm-up and at the end, and the growth between as MiB an hour (a least-squares line)."""
    if not Path("/proc/self/statm").exists():
        raise UserError("The memory bench reads /proc, which this system lacks; run it on Linux.")
    import numpy as np

    from moeviz.bench.live import live, live_window

    with live_window() as window:
        while window.snapshot is None:
            live(0.1)
        window.toggle_training()
        sizes: list[float] = []
        for minute in range(1, MINUTES + 1):
            window.knobs.change({"routing.k": 2 + minute % 2})  # a knob that changes shapes: all is traced anew
            live(60)
            sizes.append(_resident())
            print(f"minute {minute} of {MINUTES}: step {window.snapshot.step}, {sizes[-1]:.0f} MiB", file=sys.stderr)
        steps = window.snapshot.step
    late = np.asarray(sizes[WARM - 1 :])
    slope = float(np.polyfit(np.arange(late.size) / 60, late, 1)[0])
    return {
        f"resident after {WARM} minutes, MiB": sizes[WARM - 1],
        f"resident after {MINUTES} minutes, MiB": sizes[-1],
        "growth after that, MiB an hour": slope,
        "steps trained": steps,
    }


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
