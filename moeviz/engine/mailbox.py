"""Where a worker thread leaves its news and the window's timer collects them.

Every scalar is kept. A snapshot is made only when the window asks: a slow window gets fewer pictures, never older ones.
"""

import threading
from dataclasses import dataclass, field

from moeviz.domain.messages import Update


@dataclass(frozen=True, slots=True)
class Failure:
    """An exception; `ended`: there is no session any more. `of_data`: the user's own data are why. `errand`: of which
    one, if of one."""

    summary: str
    details: str
    ended: bool = True
    of_data: bool = False
    errand: object = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Told:
    """A sentence for the user; `done`: what it is about has succeeded. `errand`: which one has ended, if one has."""

    sentence: str
    done: bool = False
    errand: object = field(default=None, compare=False)


Letter = Update | Failure | Told


class Mailbox:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._letters: list[Letter] = []
        self._wanted = threading.Event()
        self._wanted.set()

    def post(self, letter: Letter) -> None:
        with self._lock:
            self._letters.append(letter)

    def take(self) -> list[Letter]:
        """Everything since the last call, oldest first; the worker may then make the next snapshot."""
        with self._lock:
            letters, self._letters = self._letters, []
        return letters

    def waiting(self) -> bool:
        with self._lock:
            return bool(self._letters)

    def ask(self) -> None:
        """The window is ready for a fresh snapshot."""
        self._wanted.set()

    def asked(self) -> bool:
        """Whether a snapshot is wanted; asking once gives one."""
        wanted = self._wanted.is_set()
        self._wanted.clear()
        return wanted
