"""The runner and the mailbox, with tiny sessions in place of training."""

import sys
import threading
import time
from collections.abc import Callable

import pytest

from moeviz.domain.messages import Advance, Command, ModelFacts, Report, Session, Show, Update, UserError
from moeviz.domain.settings import Settings
from moeviz.engine.imports import import_beside
from moeviz.engine.mailbox import Failure, Mailbox, Told
from moeviz.engine.runner import Runner

FACTS = ModelFacts(1, 1, 1, "cpu", 1)


def update(step: int, **rest: object) -> Update:
    return Update(step, Settings(), FACTS, **rest)  # type: ignore[arg-type]


def counting(seen: list[Command]) -> Session:
    step = 0
    answer: Update | None = update(0)
    while True:
        command = yield answer
        seen.append(command)
        step += isinstance(command, Advance)
        answer = update(step) if not isinstance(command, Advance) or command.snapshot else None


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end, "not within 5 s"
        threading.Event().wait(0.005)


def test_paused_session_does_nothing_until_a_command_comes() -> None:
    seen: list[Command] = []
    runner = Runner(Mailbox())
    runner.start(lambda _: counting(seen))
    wait_for(lambda: runner.idle)
    assert seen == []
    runner.send(Show())
    wait_for(lambda: runner.idle)
    assert seen == [Show()]
    assert [letter.step for letter in runner.mailbox.take() if isinstance(letter, Update)] == [0, 0]
    assert runner.close()


def test_training_advances_and_asks_for_a_snapshot_only_when_the_window_is_ready() -> None:
    seen: list[Command] = []
    runner = Runner(Mailbox())
    runner.start(lambda _: counting(seen), training=True)
    wait_for(lambda: len(seen) > 50)
    runner.training = False
    wait_for(lambda: runner.idle)
    assert seen.count(Advance(True)) == 1
    assert len(runner.mailbox.take()) == 2  # the first, and the one that was asked for
    assert runner.close()


@pytest.mark.parametrize("error", [RuntimeError("lost"), ValueError("lost"), KeyboardInterrupt("lost")])
def test_every_exception_is_posted_with_its_traceback(error: BaseException) -> None:
    def failing(_: Report) -> Session:
        yield update(0)
        raise error

    runner = Runner(Mailbox())
    runner.start(failing, training=True)
    wait_for(lambda: not runner.alive)
    letters = runner.mailbox.take()
    assert isinstance(letters[-1], Failure)
    assert letters[-1].summary == "lost"
    assert "in failing" in letters[-1].details
    assert runner.idle


def test_close_ends_a_training_session_and_closes_the_generator() -> None:
    closed: list[bool] = []

    def session(_: Report) -> Session:
        try:
            while True:
                yield None
        finally:
            closed.append(True)

    runner = Runner(Mailbox())
    runner.start(session, training=True)
    assert runner.close(2.0)
    assert closed == [True]


def test_the_runner_pauses_by_itself_after_so_many_steps() -> None:
    seen: list[Command] = []
    runner = Runner(Mailbox())
    runner.start(lambda _: counting(seen))
    runner.train_for(7)
    wait_for(lambda: runner.idle)
    assert len(seen) == 7
    assert seen[-1] == Advance(True)
    assert runner.steps_left is None
    runner.training = True
    wait_for(lambda: len(seen) > 20)
    assert runner.steps_left is None
    assert runner.close()


def test_a_new_session_takes_the_place_of_one_that_is_still_being_made() -> None:
    loaded, closed = threading.Event(), []

    def slow(_: Report) -> Session:
        loaded.wait(5)
        try:
            yield update(1)
        finally:
            closed.append(True)

    def quick(_: Report) -> Session:
        answer = update(100)
        while True:
            command = yield answer
            assert command == Show()
            answer = update(200)

    runner = Runner(Mailbox())
    runner.start(slow)
    runner.start(quick)
    letters = []
    wait_for(lambda: bool(letters.extend(runner.mailbox.take()) or letters))
    runner.send(Show())
    wait_for(lambda: runner.idle)
    loaded.set()
    assert runner.close(5)
    assert [letter.step for letter in (*letters, *runner.mailbox.take())] == [100, 200]


def test_a_new_session_that_fails_leaves_the_old_one_running() -> None:
    def failing(report: Report) -> Session:
        raise UserError("no such file")
        yield

    seen: list[Command] = []
    runner = Runner(Mailbox())
    runner.start(lambda _: counting(seen), training=True)
    wait_for(lambda: len(seen) > 3)
    runner.start(failing, title="Opening")
    wait_for(lambda: runner.starting is None)
    assert Told("no such file") in runner.mailbox.take()
    count = len(seen)
    wait_for(lambda: len(seen) > count)
    assert runner.close()


def test_work_is_reported_and_cancelled_between_two_reports() -> None:
    begun, go = threading.Event(), threading.Event()

    def errand(report: Report) -> str:
        for i in range(10):
            report(i, 10)
            begun.set()
            go.wait(5)
        return "done"

    runner = Runner(Mailbox())
    assert runner.errand(errand, "Saving")
    assert begun.wait(5)
    work = runner.errand_work
    assert work is not None
    assert (work.title, work.done, work.total) == ("Saving", 0, 10)
    assert not runner.errand(errand)
    work.cancelled.set()
    go.set()
    wait_for(lambda: runner.idle)
    assert runner.mailbox.take() == [Told("Saving: cancelled.")]
    assert runner.close()


def test_a_start_that_is_cancelled_at_the_last_moment_is_one_that_was() -> None:
    """Else whatever the session reports later would be cancelled."""
    reported, go = threading.Event(), threading.Event()

    def opening(report: Report) -> Session:
        report(1, 1)
        reported.set()
        go.wait(5)
        yield update(0)

    runner = Runner(Mailbox())
    runner.start(opening, title="Loading")
    assert reported.wait(5)
    assert runner.starting is not None
    runner.starting.cancelled.set()
    go.set()
    wait_for(lambda: not runner.alive)
    letters = runner.mailbox.take()
    assert [letter.summary for letter in letters if isinstance(letter, Failure)] == ["Loading: cancelled."]
    assert len(letters) == 1
    assert runner.close()


def test_an_errand_that_was_told_is_over_although_its_thread_still_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine the thread may take a while for that, and the next file was refused."""
    runner, linger = Runner(Mailbox()), threading.Event()
    do = runner._do

    def slowly(*arguments: object) -> None:
        do(*arguments)  # type: ignore[arg-type]
        linger.wait(10)

    monkeypatch.setattr(runner, "_do", slowly)
    assert runner.errand(lambda _: "Exported to a.png.", "Exporting a.png")
    wait_for(runner.mailbox.waiting)
    assert runner.errand_work is None
    assert runner.idle
    assert runner.errand(lambda _: "Exported to b.png.", "Exporting b.png")
    linger.set()
    assert runner.close()
    assert [letter.sentence for letter in runner.mailbox.take()] == ["Exported to a.png.", "Exported to b.png."]


def test_a_defect_in_an_errand_does_not_count_as_the_end_of_the_session() -> None:
    runner = Runner(Mailbox())
    assert runner.errand(lambda _: str(1 / 0))
    wait_for(lambda: runner.idle)
    [letter] = runner.mailbox.take()
    assert isinstance(letter, Failure)
    assert not letter.ended
    assert runner.close()


def waited(done: Callable[[], bool]) -> None:
    while not done():
        time.sleep(0)


def test_imports_beside_a_window_end_or_tell_what_went_wrong() -> None:
    waited(import_beside("colorsys"))
    assert "colorsys" in sys.modules
    missing = import_beside("moeviz.engine.no_such_module")
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        waited(missing)
    with pytest.raises(ModuleNotFoundError):  # it is not taken for done later
        missing()
