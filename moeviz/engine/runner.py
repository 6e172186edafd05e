"""Drives one session on a thread, and runs errands such as writing a file on another: all threads of the program.

Pause is to send nothing, cancel is to close the generator; any exception is posted with its traceback.
"""

import queue
import threading
import traceback
from collections.abc import Callable

from moeviz.domain.messages import Advance, Command, MakeSession, Session, Update, UserError
from moeviz.engine.mailbox import Failure, Mailbox, Told


class Runner:
    """Owns the worker thread from `start` to `close`. All methods are called from the window's thread."""

    def __init__(self, mailbox: Mailbox) -> None:
        self.mailbox = mailbox
        self._inbox: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._training = threading.Event()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._errand: threading.Thread | None = None
        self.advances = 0  # training steps driven since this runner was made
        self._sent = self._answered = 0  # letters into the inbox, and those dealt with

    # ---- from the window
    def start(self, make_session: MakeSession, *, training: bool = False) -> None:
        """Run a session; `make_session` is called on the worker thread, so it may import and load what it likes."""
        if self._thread is not None and self._thread.is_alive():
            raise RuntimeError("this runner has a session already; close it first")
        self._closing.clear()
        self._inbox = queue.SimpleQueue()
        self._sent, self._answered = 1, 0  # the session's first update counts as an answer
        self.training = training
        self._thread = threading.Thread(target=self._run, args=(make_session,), name="moeviz-runner", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    @property
    def training(self) -> bool:
        return self._training.is_set()

    @training.setter
    def training(self, on: bool) -> None:
        if on:
            self._training.set()
            self._put(None)  # wakes a paused thread
        else:
            self._training.clear()

    @property
    def pending(self) -> bool:
        """A command is on its way, and its answer not yet posted."""
        return self.alive and self._sent != self._answered

    @property
    def idle(self) -> bool:
        """Nothing will be posted until something is sent: the window may stop looking."""
        errand = self._errand is not None and self._errand.is_alive()
        return not errand and not (self.alive and (self.training or self.pending))

    def send(self, command: Command) -> None:
        """Have the command carried out between two steps."""
        self._put(command)

    def _put(self, command: Command | None) -> None:
        self._sent += 1
        self._inbox.put(command)

    def errand(self, do: Callable[[], str]) -> bool:
        """Do one thing beside the session and post the sentence that it returns; False if one is under way."""
        if self._errand is not None and self._errand.is_alive():
            return False
        self._errand = threading.Thread(target=self._do, args=(do,), name="moeviz-errand", daemon=True)
        self._errand.start()
        return True

    def _do(self, do: Callable[[], str]) -> None:
        try:
            self.mailbox.post(Told(do()))
        except UserError as error:
            self.mailbox.post(Told(str(error)))
        except Exception as error:  # noqa: BLE001 - nothing that happens here may vanish
            self.mailbox.post(Failure(_sentence(error), traceback.format_exc()))

    def close(self, timeout: float = 2.0) -> bool:
        """End the session after the step in progress; False if it did not end in time."""
        self._closing.set()
        self._put(None)
        threads = [thread for thread in (self._thread, self._errand) if thread is not None]
        for thread in threads:
            thread.join(timeout)
        return not any(thread.is_alive() for thread in threads)

    # ---- on the worker thread
    def _run(self, make_session: MakeSession) -> None:
        session: Session | None = None
        try:
            session = make_session()
            self._post(next(session))
            self._answered += 1
            while not self._closing.is_set():
                try:
                    command = self._inbox.get(block=not self.training)
                except queue.Empty:
                    self._post(session.send(Advance(snapshot=self.mailbox.asked())))
                    self.advances += 1
                    continue
                if command is not None:
                    self._post(session.send(command))
                self._answered += 1
        except StopIteration:
            pass
        except BaseException as error:  # noqa: BLE001 - nothing that happens here may vanish
            self.mailbox.post(Failure(_sentence(error), traceback.format_exc()))
        finally:
            self._training.clear()
            if session is not None:
                session.close()

    def _post(self, update: Update | None) -> None:
        if update is None:
            return
        if update.paused:
            self._training.clear()
        self.mailbox.post(update)


def _sentence(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{text[0]}" if text else type(error).__name__
