"""The lessons: each check on moments made by hand, and each lesson driven as it tells the learner to."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import moeviz
from moeviz.domain.history import History
from moeviz.domain.lesson_checks import BATCHES, Check, Moment, recent
from moeviz.domain.lessons import LESSONS, Lesson, following
from moeviz.domain.messages import Advance, Command, SetKnobs, SetProbe, Survey, Update
from moeviz.domain.selection import Selection
from moeviz.domain.settings import KNOBS, Settings, Value
from moeviz.view.catalogue import BY_NAME

SEEDS = (0, 1, 2)


# ---- a learner
class Learner:
    """Does what the steps say, in a session without a window, at layer `layer`."""

    def __init__(self, lesson: Lesson, seed: int, layer: int = 0) -> None:
        from moeviz.moe.training import session

        self.lesson, self.history, self.selection = lesson, History(), Selection(layer)
        self.survey = self.snapshot = None
        settings = Settings().with_values({**lesson.settings, "seed": seed})
        path = Path(moeviz.__file__).parent / "models" / f"{lesson.model}.safetensors"
        self.session = session(settings, checkpoint=str(path) if lesson.model else None)
        self.take(next(self.session))
        if lesson.model:  # its seed lies in the file: other batches come from another beginning
            self.train(15 * seed)
        self.surveys = any("experts_domains" in step.shows for step in lesson.steps)
        self.send(Survey())

    def take(self, update: Update | None) -> None:
        if update is None:
            return
        self.settings, self.facts = update.settings, update.facts
        self.snapshot, self.survey = update.snapshot or self.snapshot, update.survey or self.survey
        if update.log is not None:
            self.history.extend(update.log)
        if update.mark:
            self.history.add_mark(update.step, update.mark)

    def send(self, command: Command) -> None:
        self.take(self.session.send(command))

    def set(self, **values: Value) -> None:
        self.send(SetKnobs({name.replace("__", "."): value for name, value in values.items()}))

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.send(Advance(snapshot=True))

    @property
    def moment(self) -> Moment:
        counts = recent(self.history, self.snapshot.step, len(self.snapshot.layers))
        return Moment(0, self.settings, self.facts, self.snapshot, self.selection, self.survey, counts)

    def select(self, **parts: int) -> None:
        self.selection = replace(self.selection, **parts)

    def every(self, part: str, count: int) -> Iterator[None]:
        """Try one after the other."""
        for i in range(count):
            self.select(**{part: i})
            yield

    def train_on(self, most: int) -> Iterator[None]:
        for step in range(most):
            self.train(1)
            if self.surveys and step % 20 == 19:
                self.send(Survey())
            yield


def walk(learner: Learner) -> Iterator[None]:
    return learner.every("token", learner.snapshot.num_tokens)


def experts(learner: Learner) -> Iterator[None]:
    return learner.every("expert", 8)


def once(do: Callable[[Learner], object]) -> Callable[[Learner], Iterator[None]]:
    def tries(learner: Learner) -> Iterator[None]:
        do(learner)
        yield

    return tries


def then_train(most: int, **values: Value) -> Callable[[Learner], Iterator[None]]:
    def tries(learner: Learner) -> Iterator[None]:
        if values:
            learner.set(**values)
        yield from learner.train_on(most)

    return tries


def knob(**values: Value) -> Callable[[Learner], Iterator[None]]:
    return once(lambda learner: learner.set(**values))


LAYER_1, LAST = once(lambda of: of.select(layer=of.selection.layer + 1)), once(lambda of: of.select(layer=2))
DOES: dict[str, list[Callable[[Learner], Iterator[None]]]] = {
    "router": [walk, walk, walk, LAYER_1, once(lambda of: of.send(SetProbe("The cat. THE CAT.")))],
    "k": [knob(routing__k=4), knob(routing__k=8), knob(routing__k=1)],
    "noise": [then_train(120), then_train(80, routing__noise=2.0), then_train(80, routing__noise=0.0)],
    "collapse": [
        then_train(80),
        then_train(120, balance__loss="switch"),
        then_train(250, balance__loss="none"),
    ],
    "loss_free": [
        then_train(80),
        then_train(120, balance__loss="switch"),
        then_train(200, balance__loss="none"),
        then_train(100, routing__bias_speed=0.01),
    ],
    "capacity": [
        then_train(80),
        knob(routing__capacity_factor=1.0),
        knob(routing__capacity_factor=2.0),
        then_train(250, routing__capacity_factor=1.0, balance__loss="switch"),
    ],
    "specialisation": [experts, experts, LAST, then_train(240, balance__sequence_coefficient=0.1)],
    "dynamic_k": [
        knob(routing__router="top_p"),
        knob(routing__top_p=0.7),
        walk,
        then_train(120, balance__token_entropy_coefficient=0.1),
        knob(routing__router="relu"),
    ],
}


def follow(name: str, seed: int, layer: int = 0) -> list[tuple[int, Check]]:
    """Take a whole lesson: how many steps were trained until each tick, and what stood beside it."""
    lesson = LESSONS[name]
    learner = Learner(lesson, seed, layer)
    found = []
    for number, (step, tries) in enumerate(zip(lesson.steps, DOES[name], strict=True)):
        then, trained = learner.moment, learner.history.seen
        before = lesson.check(number, then, then)
        if number and trained:  # training on alone does not do it
            learner.train(10)
            before = lesson.check(number, learner.moment, then)
        assert not before.done, f"{step.words}: done before anything was done: {before.reading}"
        check = before
        for _ in tries(learner):
            check = lesson.check(number, learner.moment, then)
            if check.done:
                break
        assert check.done, f"{step.words}: {check.reading}"
        found.append((learner.history.seen - trained, check))
    return found
