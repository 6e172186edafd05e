"""How long the window takes to appear and to show its first routing, against processes that do less."""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STARTS = 5

BARE = """
import time; began = time.perf_counter()
from PySide6.QtCore import QTimer
from PySide6.QtWidgets import QApplication, QMainWindow
app = QApplication([]); window = QMainWindow(); window.resize(1440, 900); window.show()
QTimer.singleShot(0, app.quit); app.exec()
"""
IMPORTS = "import PySide6.QtWidgets, pyqtgraph, torch"
WINDOW = """
import sys, time
from pathlib import Path
from PySide6.QtCore import QSettings, QTimer
from PySide6.QtWidgets import QApplication
from moeviz.app import make_window
app = QApplication([])
window = make_window(store=QSettings(sys.argv[2], QSettings.Format.IniFormat))
window.show()
if sys.argv[1] == "paint":
    QTimer.singleShot(0, app.quit)
else:
    QTimer.singleShot(0, window.start)
    late, last = [], [time.perf_counter()]
    def tick():
        now = time.perf_counter(); late.append(now - last[0]); last[0] = now
        if window.snapshot is not None and not window.runner.mailbox.waiting():
            Path(sys.argv[3]).write_text(str(max(late))); window.close(); app.quit()
    timer = QTimer(); timer.setInterval(2); timer.timeout.connect(tick); timer.start()
app.exec()
"""


def measure() -> dict[str, float]:
    """Medians of whole processes, taken in turn: a bare window, our window painted, imports alone, first routing."""
    times: dict[str, list[float]] = {"bare": [], "painted": [], "imports": [], "routing": []}
    stalls: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        ini, stall = str(Path(folder, "window.ini")), Path(folder, "stall")
        for i in range(STARTS + 1):
            one = {
                "bare": _process(BARE),
                "painted": _process(WINDOW, "paint", ini),
                "imports": _process(IMPORTS),
                "routing": _process(WINDOW, "routing", ini, str(stall)),
            }
            if i:  # the first round fills the disk cache
                for key, value in one.items():
                    times[key].append(value)
                stalls.append(float(stall.read_text()))
            print(f"round {i} of {STARTS}", file=sys.stderr)
    m = {key: statistics.median(values) for key, values in times.items()}
    return {
        "first painted window / bare window": m["painted"] / m["bare"],
        "first routing plot / imports alone": m["routing"] / m["imports"],
        "bare window, s": m["bare"],
        "first painted window, s": m["painted"],
        "imports alone, s": m["imports"],
        "first routing plot, s": m["routing"],
        "longest stall while starting, ms (median run)": statistics.median(stalls) * 1000,
    }


def _process(code: str, *arguments: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began
