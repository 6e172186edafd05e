"""The start of the window: what may be imported when, and that the frame passes on what the content does."""

import subprocess
import sys
from pathlib import Path

from PySide6.QtCore import QSettings
from PySide6.QtWidgets import QMainWindow
from pytestqt.qtbot import QtBot

from moeviz.view.frame import Frame


def run(code: str, config: Path) -> subprocess.CompletedProcess[str]:
    environment = {"QT_QPA_PLATFORM": "offscreen", "PATH": "", "XDG_CONFIG_HOME": str(config)}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, timeout=60
    )


def test_the_first_paint_waits_for_neither_numpy_nor_the_settings(tmp_path: Path) -> None:
    code = (
        "import sys, moeviz.cli, moeviz.start\n"
        "found = {'numpy', 'torch', 'moeviz.domain.settings'} & set(sys.modules)\n"
        "assert not found, found"
    )
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_program_paints_fills_routes_and_ends_without_a_word(tmp_path: Path) -> None:
    code = """
import sys
from PySide6.QtCore import QTimer
from PySide6.QtWidgets import QApplication
app = QApplication([])
def look():
    for frame in app.topLevelWidgets():
        content = frame.centralWidget() if hasattr(frame, "hold") else None
        if content is not None and content.snapshot is not None:
            timer.stop()
            print(frame.windowTitle(), content.snapshot.num_tokens > 0, "pyqtgraph" in sys.modules)
            frame.close()
timer = QTimer(); timer.timeout.connect(look); timer.start(20)
from moeviz.cli import main
sys.exit(main([]))
"""
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "moeviz True False\n"
    said = [line for line in done.stderr.splitlines() if "propagateSizeHints" not in line]
    assert said == []


def test_a_defect_before_there_is_a_window_ends_the_program(tmp_path: Path) -> None:
    code = """
import moeviz.start, moeviz.cli
moeviz.start.CONTENT = "no_such_module"
raise SystemExit(moeviz.cli.main([]))
"""
    done = run(code, tmp_path)
    assert done.returncode == 1
    assert "no_such_module" in done.stderr


def test_the_frame_remembers_its_place_and_asks_its_content_before_it_closes(tmp_path: Path, qtbot: QtBot) -> None:
    class Content(QMainWindow):
        may_close = False

        def closeEvent(self, event) -> None:  # type: ignore[no-untyped-def]
            event.setAccepted(self.may_close)

    store = QSettings(str(tmp_path / "w.ini"), QSettings.Format.IniFormat)
    frame, content = Frame(store), Content()
    qtbot.addWidget(frame)
    frame.hold(content)
    content.setWindowTitle("moeviz: a model")
    frame.resize(700, 500)
    with qtbot.waitExposed(frame):
        frame.show()
    assert frame.windowTitle() == "moeviz: a model"
    assert not frame.close()
    assert frame.isVisible()
    content.may_close = True
    assert frame.close()
    again = Frame(QSettings(str(tmp_path / "w.ini"), QSettings.Format.IniFormat))
    qtbot.addWidget(again)
    assert (again.width(), again.height()) == (700, 500)


def test_a_task_or_seed_that_cannot_be_is_refused_before_a_window_opens(tmp_path: Path) -> None:
    for words in (["--task", "nope"], ["--seed", "-1"]):
        done = run(f"from moeviz.cli import main; raise SystemExit(main({words!r}))", tmp_path)
        assert done.returncode == 2, done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def test_ctrl_c_in_the_terminal_closes_a_window_at_rest(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from threading import Timer
from PySide6.QtCore import QTimer
from PySide6.QtWidgets import QApplication
app = QApplication([])
def look():
    for frame in app.topLevelWidgets():
        content = frame.centralWidget() if hasattr(frame, "hold") else None
        if content and content.snapshot and content.runner.idle and not content.timer.isActive():
            timer.stop()
            Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()  # while no Python runs here
timer = QTimer(); timer.timeout.connect(look); timer.start(20)
from moeviz.cli import main
sys.exit(main([]))
"""
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if "propagateSizeHints" not in line] == []


def test_a_second_ctrl_c_closes_a_window_that_asks(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from threading import Timer
from PySide6.QtCore import QTimer
from PySide6.QtWidgets import QApplication
app = QApplication([])
interrupt = lambda: Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
def look():
    for frame in app.topLevelWidgets():
        content = frame.centralWidget() if hasattr(frame, "hold") else None
        if content and content.snapshot and content.runner.idle and not content.timer.isActive():
            if content.question.open:
                timer.stop(); interrupt()
            elif content.stakes.steps and not asked:
                asked.append(1); interrupt()
            elif not content.stakes.steps:
                content.step_action.trigger()
asked = []
timer = QTimer(); timer.timeout.connect(look); timer.start(20)
from moeviz.cli import main
sys.exit(main([]))
"""
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr
    [said] = [line for line in done.stderr.splitlines() if "propagateSizeHints" not in line]
    assert "Ctrl-C again closes it without saving" in said


def test_ctrl_c_closes_the_window_after_what_it_is_doing(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from PySide6.QtCore import QTimer
from PySide6.QtWidgets import QApplication
app = QApplication([])
def look():
    frame = next((frame for frame in app.topLevelWidgets() if hasattr(frame, "hold") and frame.isVisible()), None)
    if frame is not None and frame.centralWidget():
        timer.stop()
        os.kill(os.getpid(), signal.SIGINT)
        sum(range(1000))
        print("open" if frame.isVisible() else "closed amid this")
timer = QTimer(); timer.timeout.connect(look); timer.start(20)
from moeviz.cli import main
sys.exit(main([]))
"""
    done = run(code, tmp_path)
    assert (done.returncode, done.stdout) == (0, "open\n"), done.stderr
