"""What every test shares: an offscreen display, and a check that no thread outlives its test."""

import os
import threading
from collections.abc import Callable, Iterator
from functools import cache

import pytest

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    yield
    left = [t.name for t in threading.enumerate() if t.name.startswith("moeviz")]
    assert not left, f"threads left running: {left}; close the Runner (or the window) that the test started"


@pytest.fixture(scope="session")
def built_in_text() -> Callable[[str], object]:
    """load_text that reads the built-in text once: it is the same for every window, and takes half a second."""
    from moeviz.moe.tasks.text import load_text

    built_in = cache(load_text)
    return lambda path="": load_text(path) if path else built_in("")
