"""The runner and the mailbox, with tiny sessions in place of training."""

import threading
import time
from collections.abc import Callable

import pytest

from moeviz.domain.messages import Advance, Command, ModelFacts, Session, Show, Update
from moeviz.domain.settings import Settings
from moeviz.engine.mailbox import Failure, Mailbox
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
    runner.start(lambda: counting(seen))
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
    runner.start(lambda: counting(seen), training=True)
    wait_for(lambda: len(seen) > 50)
    runner.training = False
    wait_for(lambda: runner.idle)
    assert seen.count(Advance(True)) == 1
    assert len(runner.mailbox.take()) == 2  # the first, and the one that was asked for
    assert runner.close()


@pytest.mark.parametrize("error", [RuntimeError("lost"), ValueError("lost"), KeyboardInterrupt("lost")])
def test_every_exception_is_posted_with_its_traceback(error: BaseException) -> None:
    def failing() -> Session:
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

    def session() -> Session:
        try:
            while True:
                yield None
        finally:
            closed.append(True)

    runner = Runner(Mailbox())
    runner.start(session, training=True)
    assert runner.close(2.0)
    assert closed == [True]
