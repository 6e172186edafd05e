"""What must not be lost: a run is kept on disk while it trains, and who would give up a trained model is asked."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from PySide6.QtCore import QTimer

from moeviz.domain.messages import StepLog, Update
from moeviz.domain.routing import RoutingSnapshot
from moeviz.domain.settings import Settings
from moeviz.view.knobs import steps_in_words

if TYPE_CHECKING:
    from moeviz.view.window import Window

KEEP_SECONDS = 30.0  # how much of a run a crash may cost; keeping costs a tenth of a second
FIRST_SECONDS = 5.0  # of training until it is kept for the first time; a run of a few steps is not worth it


class Keeper(Protocol):
    """Keeps a run on disk while it trains (moeviz/keeper.py)."""

    def left(self) -> list[Path]: ...

    def tidy(self) -> None: ...

    def keep(
        self,
        run: int,
        settings: Settings,
        snapshot: RoutingSnapshot,
        logs: Sequence[StepLog],
        marks: Sequence[tuple[int, str]],
    ) -> None: ...

    def end(self) -> None: ...

    def close(self) -> None: ...


class Stakes:
    """Of one window."""

    def __init__(self, window: "Window", keeper: Keeper) -> None:
        self.window, self.keeper = window, keeper
        self._safe_step = 0  # what was trained up to here lies in a file
        self._traced = (-1, 0)  # the run whose routing lies in a trace that the user saved, and its last step there
        self._close_when_saved = False
        self.run = 0  # which of the runs so far
        self._keeping = -1  # the run that is kept while it trains
        self._kept_at, self._unkept = 0.0, list[StepLog]()
        self._kept_marks = 0

    @property
    def steps(self) -> int:
        """Trained, that no file holds."""
        window = self.window
        return window.snapshot.step - self._safe_step if window.snapshot is not None and window.has_model else 0

    def take(self, update: Update) -> None:
        """What an update says of runs, steps and files."""
        if update.reset:
            self._safe_step = update.step
            self.run += 1
            self._unkept, self._kept_marks, self._kept_at = [], 0, 0.0
        self._unkept += [update.log] if update.log else []
        if update.saved:
            self._safe_step = update.step
            if self._close_when_saved:
                QTimer.singleShot(0, self.window.window().close)  # not amid the news
        if update.notice or update.saved:
            self._close_when_saved = False

    def trace_of_now(self) -> Callable[[], None]:
        """To be called when the routing so far lies in a trace. That saves no model, but is told."""
        run, step = self.run, self.window.snapshot.step if self.window.snapshot is not None else 0

        def saved() -> None:
            self._traced = run, step

        return saved

    # ---- asking
    def if_not_lost(self, what: str, yes: str, then: Callable[[], object]) -> None:
        """Do what shows something else; ask first if that loses a trained state."""
        if self.steps:
            self._ask(f"{what} loses {self._not_saved()}.", yes, then)
        else:
            then()

    def if_not_replaced(self, what: str, then: Callable[[], object], otherwise: Callable[[], object] = bool) -> None:
        """Do what starts the model anew; ask first if it has been trained at all."""
        window = self.window
        if self.steps:
            sentence = f"{what} starts the model anew and loses {self._not_saved()}."
        elif window.has_model and window.snapshot is not None and window.snapshot.step:
            sentence = f"{what} starts a new model; this one, at step {window.snapshot.step:,}, stays only in its file."
        else:
            then()
            return
        self._ask(sentence, "Restart", then, otherwise)

    def _ask(self, sentence: str, yes: str, then: Callable[[], object], otherwise: Callable[[], object] = bool) -> None:
        if otherwise != self.window.knobs.keep:
            self.window.knobs.keep()  # one question at a time
        self.window.question.ask(sentence, yes, then, "Keep", otherwise)

    def may_close(self) -> bool:
        """Whether closing now loses nothing. Else it is asked, and the answer closes the window."""
        if not self.steps:
            return True
        self.window.knobs.keep()
        close = self.window.window().close
        self.window.question.ask(
            f"Closing loses {self._not_saved()}.",
            "&Save and close…",
            self._save_and_close,
            "S&tay",
            third=("Close &without saving", close),
        )
        return False

    def _save_and_close(self) -> None:
        self._close_when_saved = self.window.files.save_model()

    def _not_saved(self) -> str:
        words = f"{steps_in_words(self.steps)} that {'is' if self.steps == 1 else 'are'} not saved"
        run, step = self._traced
        if run != self.run or self.window.snapshot is None:
            return words
        end = f" up to step {step:,}" if step < self.window.snapshot.step else ""
        return f"{words}: the trace holds the routing{end}, not the model's weights"

    # ---- keeping
    def offer_kept(self) -> None:
        """The routing of a run that ended with a crash, until there is an answer."""
        memory, files = self.window.memory, self.window.files
        left = [str(path) for path in self.keeper.left()]
        answered = [path for path in str(memory.value("answered", "")).split("|") if path in left]
        path = next((path for path in left if path not in answered), "")
        if not path:
            return

        def answer(do: Callable[[], object]) -> None:
            memory.setValue("answered", "|".join([*answered, path]))
            do()

        self.window.question.ask(
            f"The last run ended without closing; its routing is kept in {path}.",
            "Open its trace",
            partial(answer, lambda: files.open_trace(path)),
            "Dismiss",
            partial(answer, self.offer_kept),
            lasting=True,
        )

    def keep_run(self) -> None:
        """Now and then, on a thread."""
        window, now = self.window, time.monotonic()
        run = self.run if window.runner.training and not window.of_trace else -1
        if run != self._keeping:  # training has begun, or ended
            self._keeping = run
            self._kept_at = max(self._kept_at, now - KEEP_SECONDS + FIRST_SECONDS)
        elif run >= 0 and window.snapshot is not None and now - self._kept_at > KEEP_SECONDS:
            logs, marks = self._unkept, window.history.marks[self._kept_marks :]
            keep = partial(self.keeper.keep, run, window.settings, window.snapshot, logs, marks)
            if window.runner.beside(keep):
                self._kept_at, self._unkept, self._kept_marks = now, [], len(window.history.marks)
