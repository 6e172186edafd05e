"""How long the window takes to appear and to show its first routing, against processes that do less."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from moeviz.domain.settings import TASKS

STARTS = 5
PAINTS = 4  # of the two short ones, for each start

# the first paint of a window of ours or of nobody's ends the process; the same watch, at the same cost, for both
WATCH = """
import sys, time
from PySide6.QtCore import QEvent, QObject, QTimer
from PySide6.QtWidgets import QApplication
class Watch(QObject):
    def eventFilter(self, seen, event):
        if event.type() == QEvent.Type.Paint:
            QTimer.singleShot(0, app.quit)
        return False
app = QApplication([]); watch = Watch(); app.installEventFilter(watch)
"""
BARE = (
    WATCH
    + """
from PySide6.QtWidgets import QMainWindow
window = QMainWindow(); window.resize(1440, 900); window.show()
app.exec()
"""
)
PAINTED = (
    WATCH
    + """
from moeviz.cli import main
main([])
"""
)
IMPORTS = "import PySide6.QtWidgets, pyqtgraph, torch"
# the whole program until its first routing is painted, asked every 2 ms when it was last asked: what it did in between
# was a stall. Closing, which waits for the training data that is then being read, is no part of it.
ROUTING = """
import sys, time
from pathlib import Path
from PySide6.QtCore import QTimer
from PySide6.QtWidgets import QApplication
app = QApplication([])
late, last = [], []
def tick():
    now = time.perf_counter()
    frames = [w for w in app.topLevelWidgets() if getattr(w, "on_screen", False)]
    if not frames:
        return
    late.append(now - last[0] if last else 0.0); last[:] = [now]
    window = frames[0].centralWidget()
    if window is not None and window.snapshot is not None and not window.runner.mailbox.waiting():
        timer.stop(); Path(sys.argv[1]).write_text(f"{max(late)} {time.time()}"); frames[0].close()
timer = QTimer(); timer.setInterval(2); timer.timeout.connect(tick); timer.start()
from moeviz.cli import main
main([])
"""
# of a bundled model, from the moment that torch is in to its first routing
LOADING = """
import sys, time
from pathlib import Path
from moeviz.app import bundled_model
from moeviz.moe.importing import import_torch
import_torch()
began = time.perf_counter()
from moeviz.domain.settings import Settings
from moeviz.moe.training import session
assert next(session(Settings(), checkpoint=bundled_model(sys.argv[2]))).snapshot is not None
Path(sys.argv[1]).write_text(str(time.perf_counter() - began))
"""


def measure() -> dict[str, float]:
    """Medians of whole processes, taken in turn: a bare window, our window painted, imports alone, first routing.
    Then how long each bundled model takes to load once torch is in."""
    times: dict[str, list[float]] = {"bare": [], "painted": [], "imports": [], "routing": []}
    stalls: list[float] = []
    loading: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        stall, home = Path(folder, "stall"), {"XDG_CONFIG_HOME": folder}
        for i in range(STARTS + 1):
            one: dict[str, list[float]] = {"bare": [], "painted": [], "imports": [_process(IMPORTS)]}
            for _ in range(PAINTS):
                one["bare"].append(_process(BARE))
                one["painted"].append(_process(PAINTED, **home))
            began = time.time()
            _process(ROUTING, str(stall), **home)
            longest, shown = map(float, stall.read_text().split())
            one["routing"] = [shown - began]
            if i:  # the first round fills the disk cache
                for key, values in one.items():
                    times[key] += values
                stalls.append(longest)
            print(f"round {i} of {STARTS}", file=sys.stderr)
        for task in TASKS:
            _process(LOADING, str(stall), task)
            loading[f"{task}: bundled model once torch is in, ms"] = float(stall.read_text()) * 1000
    m = {key: statistics.median(values) for key, values in times.items()}
    return {
        "first painted window / bare window": m["painted"] / m["bare"],
        "first routing plot / imports alone": m["routing"] / m["imports"],
        "bare window, s": m["bare"],
        "first painted window, s": m["painted"],
        "imports alone, s": m["imports"],
        "first routing plot, s": m["routing"],
        "longest stall while starting, ms (median run)": statistics.median(stalls) * 1000,
        **loading,
    }


def _process(code: str, *arguments: str, **environment: str) -> float:
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", code, *arguments],
        check=True,
        stdout=subprocess.DEVNULL,
        env=os.environ | environment,
    )
    return time.perf_counter() - began
