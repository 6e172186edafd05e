"""Drives one session on a thread, and runs errands such as writing a file on another. But for imports.py, which ends
before the window is filled, these are all threads of the program.

Pause is to send nothing, cancel is to close the generator; any exception is posted with its traceback.
"""

import queue
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from moeviz.domain.messages import (
    Advance,
    Command,
    DataError,
    MakeSession,
    Report,
    SaveModel,
    Session,
    Update,
    UserError,
)
from moeviz.engine.mailbox import Failure, Letter, Mailbox, Told


class Work:
    """One long piece of work on a thread: how far it is, and whether it is to end before that."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.began = time.monotonic()
        self.done, self.total = 0, 0  # a total of 0: not known
        self.cancelled = threading.Event()
        self.over = False  # all is told; the thread may take a moment longer

    def report(self, done: int, total: int) -> None:
        """Called by whoever does the work, now and then; UserError once it is to end."""
        self.done, self.total = done, total
        if self.cancelled.is_set():
            raise UserError(f"{self.title}: cancelled.")


@dataclass(eq=False)
class _Job:
    """A session, its thread and its post box."""

    make: MakeSession
    work: Work
    thread: threading.Thread | None = None
    inbox: "queue.SimpleQueue[Command | None]" = field(default_factory=queue.SimpleQueue)
    training: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    until: int | None = None  # pause by itself when the runner has driven so many steps
    sent: int = 1  # letters into the inbox, and those dealt with; the first update counts as an answer
    answered: int = 0
    saves_sent: int = 0  # of these letters: those that ask for the model to be saved
    saves_answered: int = 0

    @property
    def alive(self) -> bool:
        return self.thread is not None and self.thread.is_alive()

    @property
    def saving(self) -> bool:
        return self.alive and self.saves_sent != self.saves_answered

    def put(self, command: Command | None) -> None:
        self.sent += 1
        self.saves_sent += isinstance(command, SaveModel)
        self.inbox.put(command)

    def end(self) -> None:
        self.ended.set()
        self.work.cancelled.set()
        self.put(None)


class Runner:
    """Owns the worker threads from `start` to `close`. All methods are called from the window's thread."""

    def __init__(self, mailbox: Mailbox) -> None:
        self.mailbox = mailbox
        self.advances = 0  # training steps driven since this runner was made
        self._job: _Job | None = None  # the session that commands go to
        self._replaced: list[_Job] = []  # sessions that end, and first save what they were asked to
        self._next: _Job | None = None  # one that takes its place as soon as it has something to show
        self._swap = threading.Lock()
        self._errand: Work | None = None
        self._beside: threading.Thread | None = None
        self._threads: list[threading.Thread] = []

    # ---- from the window
    def start(self, make_session: MakeSession, *, title: str = "", training: bool = False) -> None:
        """Run a session; `make_session` is called on a worker thread, so it may import and load what it likes.

        A session that runs already goes on until the new one has something to show; if that fails, nothing changes.
        """
        job = _Job(make_session, Work(title))
        if training:
            job.training.set()
        self.forget_next()
        with self._swap:
            if self.alive:
                self._next = job
            else:
                self._job = job
        job.thread = self._thread(self._run, job)

    def forget_next(self) -> None:
        """What is being opened is wanted no more."""
        with self._swap:
            opening, self._next = self._next, None
        if opening is not None:
            opening.end()

    def _thread(self, target: Callable[..., None], *arguments: object) -> threading.Thread:
        thread = threading.Thread(target=target, args=arguments, name=f"moeviz{target.__name__}", daemon=True)
        self._threads = [*(t for t in self._threads if t.is_alive()), thread]
        thread.start()
        return thread

    @property
    def alive(self) -> bool:
        return self._job is not None and self._job.alive

    @property
    def session(self) -> object:
        """The session that commands go to; nothing answers those that went to another."""
        return self._job

    @property
    def busy(self) -> bool:
        """Some thread is still there, if only that of a session that nobody wants any more."""
        return any(thread.is_alive() for thread in self._threads)

    @property
    def training(self) -> bool:
        return self._job is not None and self._job.training.is_set()

    @training.setter
    def training(self, on: bool) -> None:
        self._train(on, None)

    def train_for(self, steps: int) -> None:
        """Train so many steps, then pause."""
        self._train(True, self.advances + steps)

    def _train(self, on: bool, until: int | None) -> None:
        if self._job is None:
            return
        self._job.until = until
        if on:
            self._job.training.set()
            self._job.put(None)  # wakes a paused thread
        else:
            self._job.training.clear()

    @property
    def steps_left(self) -> int | None:
        """Until training pauses by itself; None if it does not."""
        until = self._job.until if self._job is not None and self.training else None
        return None if until is None else max(until - self.advances, 0)

    @property
    def pending(self) -> bool:
        """A command is on its way, and its answer not yet posted."""
        return self._job is not None and self._job.alive and self._job.sent != self._job.answered

    @property
    def starting(self) -> Work | None:
        """The session that is being made."""
        for job in (self._next, self._job):
            if job is not None and job.alive and not job.answered:
                return job.work
        return None

    @property
    def asked_work(self) -> Work | None:
        """How far the session is with what it was asked for."""
        return self._job.work if self._job is not None and self.pending else None

    @property
    def errand_work(self) -> Work | None:
        """The errand that is under way: none any more once the window has been told how it ended."""
        with self._swap:
            return self._errand if self._errand is not None and not self._errand.over else None

    @property
    def idle(self) -> bool:
        """Nothing will be posted until something is sent: the window may stop looking."""
        opening = self._next is not None and self._next.alive
        return not (self.errand_work or self.saving or opening or (self.alive and (self.training or self.pending)))

    @property
    def saving(self) -> bool:
        """A model is to be saved, if only that of a session whose place another has taken."""
        return any(job.saving for job in (*self._replaced, *([self._job] if self._job else [])))

    def send(self, command: Command) -> None:
        """Have the command carried out between two steps."""
        with self._swap:  # what is sent before the session is replaced is before its end in the inbox
            if self._job is not None:
                self._job.work.done = self._job.work.total = 0
                self._job.put(command)

    def errand(self, do: Callable[[Report], str], title: str = "") -> Work | None:
        """Do one thing beside the session and post the sentence that it returns; None if one is under way. The letter
        that tells of its end names what is returned here."""
        if self.errand_work is not None:
            return None
        self._errand = work = Work(title)
        self._thread(self._do, do, work)
        return work

    def beside(self, do: Callable[[], None]) -> bool:
        """Do something small that nobody waits for; False, and left out, while the last one is under way."""

        def silently(_: Report) -> str:
            do()
            return ""

        if self._beside is not None and self._beside.is_alive():
            return False
        self._beside = self._thread(self._do, silently, Work(""))
        return True

    def close(self, timeout: float = 2.0) -> bool:
        """End all sessions, after the step in progress and the saves that were asked for, and the errand; False if they
        did not end in time."""
        self.forget_next()
        if self._job is not None:
            self._job.end()
        if self._errand is not None:
            self._errand.cancelled.set()
        end = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        return not self.busy

    # ---- on the worker threads
    def _do(self, do: Callable[[Report], str], work: Work) -> None:
        letter: Letter | None = None
        try:
            if sentence := do(work.report):
                letter = Told(sentence, done=True, errand=work)
        except UserError as error:
            letter = Told(str(error), errand=work)
        except Exception as error:  # noqa: BLE001 - nothing that happens here may vanish
            letter = Failure(_sentence(error), traceback.format_exc(), ended=False, errand=work)
        with self._swap:  # whoever has read the letter may ask for the next errand at once
            if letter is not None:
                self.mailbox.post(letter)
            work.over = True

    def _run(self, job: _Job) -> None:
        session: Session | None = None
        try:
            session = job.make(job.work.report)
            first = next(session)
            job.work.report(0, 0)  # it may be cancelled to the last
            self._take_the_place(job)
            self._post(job, first)
            job.answered += 1
            while not (job.ended.is_set() and job.inbox.empty()):
                try:
                    command = job.inbox.get(block=not job.training.is_set() and not job.ended.is_set())
                except queue.Empty:
                    if job.ended.is_set():
                        break
                    last = job.until is not None and self.advances + 1 >= job.until
                    update = session.send(Advance(snapshot=self.mailbox.asked() or last))
                    if last:
                        job.training.clear()  # before who takes the last update asks whether more will come
                    self._post(job, update)
                    self.advances += 1
                    continue
                if isinstance(command, SaveModel) or (command is not None and not job.ended.is_set()):
                    update = session.send(command)
                    self._post(job, update and replace(update, answers=command))
                job.saves_answered += isinstance(command, SaveModel)
                job.answered += 1
        except StopIteration:
            pass
        except BaseException as error:  # noqa: BLE001 - nothing that happens here may vanish
            current = job is self._job
            if not current and isinstance(error, UserError):
                self._post(job, Told(str(error)))
            else:
                of_data = isinstance(error, DataError)
                self._post(job, Failure(_sentence(error), traceback.format_exc(), ended=current, of_data=of_data))
        finally:
            job.training.clear()
            if session is not None:
                session.close()

    def _take_the_place(self, job: _Job) -> None:
        """Of the session that ran so far."""
        with self._swap:
            if job is self._next:
                old, self._job, self._next = self._job, job, None
                if old is not None:
                    self._replaced = [*(job for job in self._replaced if job.alive), old]
                    old.end()

    def _post(self, job: _Job, letter: Letter | None) -> None:
        with self._swap:  # a session that was replaced has nothing more to say, but whether it saved
            if job.ended.is_set() and isinstance(letter, Update) and isinstance(letter.answers, SaveModel):
                letter = Told(f"Saved to {letter.saved}." if letter.saved else letter.notice, done=bool(letter.saved))
            elif letter is None or (job.ended.is_set() and not (isinstance(letter, Failure) and job.saving)):
                return
            if isinstance(letter, Update) and letter.paused:
                job.training.clear()
            self.mailbox.post(letter)


def _sentence(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{text[0]}" if text else type(error).__name__
