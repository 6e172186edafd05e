"""The program in a real window on a virtual screen: it opens, trains on a key, and ends on a key."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PySide6.QtGui import QImage

pytestmark = pytest.mark.xvfb


@pytest.fixture
def screen(tmp_path: Path) -> Iterator[dict[str, str]]:
    read, write = os.pipe()
    server = subprocess.Popen(
        ["Xvfb", "-displayfd", str(write), "-screen", "0", "1280x720x24", "-nolisten", "tcp"],
        pass_fds=[write],
        stderr=subprocess.DEVNULL,
    )
    os.close(write)
    with os.fdopen(read) as pipe:
        display = pipe.readline().strip()
    yield {
        **os.environ,
        "DISPLAY": f":{display}",
        "QT_QPA_PLATFORM": "xcb",
        "XDG_CONFIG_HOME": str(tmp_path),
        "XDG_STATE_HOME": str(tmp_path),
    }
    server.terminate()
    server.wait(10)


def until(found: Callable[[], bool], what: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.1)  # another process: there is no signal to wait for


@pytest.mark.parametrize("loaded", [True, False], ids=["while training", "while loading"])
def test_opens_and_quits(screen: dict[str, str], tmp_path: Path, loaded: bool) -> None:
    program = subprocess.Popen([sys.executable, "-m", "moeviz"], env=screen, stderr=subprocess.PIPE, text=True)

    def xdotool(*words: str) -> str:
        return subprocess.run(["xdotool", *words], env=screen, capture_output=True, text=True, check=False).stdout

    def picture() -> QImage:
        path = tmp_path / "screen.png"
        subprocess.run(["import", "-window", "root", str(path)], env=screen, check=True)
        return QImage(str(path))

    def moved(a: QImage, b: QImage) -> int:
        return sum(a.pixel(x, y) != b.pixel(x, y) for x in range(0, 1280, 7) for y in range(0, 720, 7))

    try:
        until(lambda: bool(xdotool("search", "--onlyvisible", "--name", "^moeviz$").strip()), "no window")
        window = xdotool("search", "--onlyvisible", "--name", "^moeviz$").split()[0]
        xdotool("windowfocus", "--sync", window)
        if loaded:
            empty = picture()
            until(lambda: moved(empty, picture()) > 500, "no routing on the screen")
            still = picture()
            xdotool("key", "space")
            until(lambda: moved(still, picture()) > 500, "nothing moves while training")
        xdotool("key", "ctrl+q")
        if loaded:
            xdotool("key", "alt+w")  # without saving
        _, errors = program.communicate(timeout=20)
        assert program.returncode == 0, errors
        assert "Traceback" not in errors
    finally:
        program.kill()
        program.wait(10)
