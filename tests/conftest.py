"""What every test shares: an offscreen display, and a check that no thread outlives its test."""

import os
import threading
from collections.abc import Iterator

import pytest

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    yield
    left = [t.name for t in threading.enumerate() if t.name.startswith("moeviz")]
    assert not left, f"threads left running: {left}; close the Runner (or the window) that the test started"
