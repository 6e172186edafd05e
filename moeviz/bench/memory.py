"""Whether the memory stays flat while a model trains in the window: the resident size, minute by minute."""

import os
import sys
import tempfile
from pathlib import Path

from moeviz.domain.errors import UserError

MINUTES = 12
WARM = 4  # until then caches fill and the history reaches its bound


def measure() -> dict[str, float]:
    """MiB at the end of the warm-up and at the end, and the growth between as MiB an hour (a least-squares line)."""
    if not Path("/proc/self/statm").exists():
        raise UserError("The memory bench reads /proc, which this system lacks; run it on Linux.")
    import numpy as np
    from PySide6.QtCore import QEventLoop, QSettings, QTimer
    from PySide6.QtWidgets import QApplication

    from moeviz.app import make_window

    app = QApplication.instance() or QApplication([])
    with tempfile.TemporaryDirectory() as folder:
        window = make_window(store=QSettings(str(Path(folder, "w.ini")), QSettings.Format.IniFormat))
        window.resize(1440, 900)
        window.show()
        window.start()

        def live(seconds: float) -> None:
            loop = QEventLoop()
            QTimer.singleShot(round(seconds * 1000), loop.quit)
            loop.exec()

        while window.snapshot is None:
            live(0.1)
        window.toggle_training()
        sizes: list[float] = []
        for minute in range(1, MINUTES + 1):
            live(60)
            sizes.append(_resident())
            print(f"minute {minute} of {MINUTES}: step {window.snapshot.step}, {sizes[-1]:.0f} MiB", file=sys.stderr)
        steps = window.snapshot.step
        window.close()
    assert app is not None
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
