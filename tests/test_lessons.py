"""The lessons: each check on moments made by hand, and each lesson driven as it tells the learner to."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import moeviz
from moeviz.domain import lesson_checks as checks
from moeviz.domain.history import MAX_POINTS, History
from moeviz.domain.lesson_checks import BATCHES, Check, Moment, recent
from moeviz.domain.lessons import LESSONS, Lesson, following
from moeviz.domain.messages import Advance, Command, ModelFacts, SetKnobs, SetProbe, StepLog, Survey, Update
from moeviz.domain.routing import Routing, RoutingSnapshot
from moeviz.domain.selection import Selection
from moeviz.domain.settings import Settings, Value
from moeviz.domain.survey import SurveyResult
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
        counts = recent(self.history, len(self.snapshot.layers))
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
        then_train(200, balance__token_entropy_coefficient=0.1),
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


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", LESSONS)
def test_a_learner_who_does_as_told_sees_every_tick(name: str, seed: int) -> None:
    """A lesson with a model of its own is done after some hundred steps: seconds, with a model this small."""
    assert sum(steps for steps, _ in follow(name, seed)) <= 400


# ---- as data
@pytest.mark.parametrize("lesson", LESSONS.values(), ids=lambda lesson: lesson.name)
def test_a_lesson_can_begin_and_says_what_there_is(lesson: Lesson) -> None:
    settings = Settings().with_values(lesson.settings)
    assert all(settings.applies(key) for key in lesson.settings)
    assert bool(lesson.model) != bool(lesson.settings), "a bundled model comes as it is"
    assert len(lesson.steps) == len(DOES[lesson.name]) >= 3
    for step in lesson.steps:
        assert 1 < step.words.count(". ") + 1 <= 4, "two or three sentences"
        assert set(step.shows) <= BY_NAME.keys()
    titles = [lesson.title for lesson in LESSONS.values()]
    assert len(set(titles)) == len(titles) >= 8


def test_each_lesson_is_followed_by_another_one() -> None:
    names, at = [], next(iter(LESSONS.values()))
    while at is not None:
        names.append(at.name)
        at = following(at)
    assert names == list(LESSONS)


# ---- the checks, each by hand
EVEN, CROWDED = [10] * 8, [73, 1, 1, 1, 1, 1, 1, 1]
DOMAINS = ["code", "prose"] * 40


def moment(
    ids: object = ((0, 1), (2, 3)),
    *,
    knobs: dict[str, Value] | None = None,
    probs: object = None,
    weights: object = None,
    dropped: object = None,
    counts: list[int] | None = None,
    layers: int = 1,
    active: int = 100,
    texts: str = "ab",
    sample: object = None,
    recording: bool = False,
    **selected: int,
) -> Moment:
    """One of a model with eight experts. `sample`: the first choices of held-out tokens."""
    routing = Routing(
        "layer",
        8,
        np.array(ids),
        gate_weights_TK=None if weights is None else np.array(weights, np.float32),
        router_probs_TE=None if probs is None else np.array(probs, np.float32),
        dropped_TK=None if dropped is None else np.array(dropped),
    )
    shown = RoutingSnapshot(7, (routing,) * layers, list(texts))
    survey = None
    if sample is not None:
        layer = Routing("layer", 8, np.array(sample)[:, None])
        texts_T = ["x" if domain == "code" else "y" for domain in DOMAINS]
        heldout = RoutingSnapshot(7, (layer,) * layers, texts_T, DOMAINS)
        survey = SurveyResult(7, heldout, 8, shown, (), ())
    return Moment(
        0,
        Settings().with_values({key.replace("__", "."): value for key, value in (knobs or {}).items()}),
        None if recording else ModelFacts(1000, active, 10, "cpu", 64),
        shown,
        Selection(**selected),
        survey,
        () if counts is None else (np.array(counts),) * layers,
    )


FLAT, SURE = [0.125] * 8, [0.86, *[0.02] * 7]
MIXED, SPLIT = [0] * 80, [0, 1] * 40  # first choices of held-out tokens: all alike, and one expert for each domain
OFF, ON = {"balance__loss": "none"}, {"balance__loss": "switch"}
ALL = (tuple(range(8)),) * 2
CASES: list[tuple[str, dict[str, object], dict[str, object], dict[str, object]]] = [  # check, then, not yet, done
    ("chose_a_token", {}, {"probs": [FLAT, SURE]}, {"probs": [FLAT, SURE], "token": 1}),
    ("found_a_sure_one", {}, {"probs": [FLAT, SURE], "token": 0}, {"probs": [FLAT, SURE], "token": 1}),
    (
        "found_an_edge",
        {},
        {"ids": ((0,), (0,)), "probs": [FLAT, SURE], "token": 1},
        {"ids": ((0,), (0,)), "probs": [FLAT, SURE], "token": 0},
    ),
    (
        "found_an_edge",
        {"token": 1},
        {"ids": ((0,), (0,)), "probs": [FLAT, FLAT], "token": 1},
        {"ids": ((0,), (0,)), "probs": [FLAT, FLAT], "token": 0},
    ),
    ("changed_layer", {"layers": 2}, {"layers": 2, "token": 0}, {"layers": 2, "token": 0, "layer": 1}),
    ("changed_layer", {"layers": 2}, {"layers": 2, "layer": 1}, {"layers": 2, "token": 0, "layer": 1}),
    ("typed", {}, {}, {"texts": "ba"}),
    ("more_active", {}, {"active": 150}, {"active": 150, "ids": ((0, 1, 2, 3),) * 2}),
    ("more_active", {}, {"active": 110, "ids": ((0, 1, 2, 3),) * 2}, {"active": 150, "ids": ((0, 1, 2, 3),) * 2}),
    ("dense", {}, {"ids": ((0, 1, 2, 3),) * 2}, {"ids": ALL}),
    (
        "cheapest",
        {},
        {"active": 40, "weights": [[0.6, 0.4]] * 2},
        {"active": 40, "ids": ((0,), (2,)), "weights": [[1.0], [1.0]]},
    ),
    (
        "cheapest",
        {},
        {"active": 60, "ids": ((0,), (2,)), "weights": [[1.0], [1.0]]},
        {"active": 40, "ids": ((0,), (2,)), "weights": [[1.0], [1.0]]},
    ),
    ("many_idle", {}, {"counts": EVEN}, {"counts": [80, *[0] * 7]}),
    ("many_idle", {}, {"counts": [80, *[0] * 7], "knobs": {"routing__noise": 2.0}}, {"counts": [80, *[0] * 7]}),
    (
        "explores",
        {},
        {"counts": EVEN, "ids": ((0,), (0,))},
        {"counts": EVEN, "ids": ((0,), (0,)), "knobs": {"routing__noise": 2.0}},
    ),
    (
        "explores",
        {},
        {"counts": [80, *[0] * 7], "ids": ((0,), (0,)), "knobs": {"routing__noise": 2.0}},
        {"counts": EVEN, "ids": ((0,), (0,)), "knobs": {"routing__noise": 2.0}},
    ),
    ("collapsed", {}, {"counts": EVEN, "knobs": OFF}, {"counts": CROWDED, "knobs": OFF}),
    ("collapsed", {}, {"knobs": OFF}, {"counts": CROWDED, "knobs": OFF}),
    ("rescued", {}, {"counts": CROWDED, "knobs": ON}, {"counts": EVEN, "knobs": ON}),
    ("rescued", {}, {"counts": EVEN, "knobs": OFF}, {"counts": EVEN, "knobs": ON}),
    ("drifts", {}, {"counts": EVEN, "knobs": OFF}, {"counts": [20, 20, *[10] * 4, 5, 5], "knobs": OFF}),
    ("drifts", {}, {"counts": CROWDED, "knobs": ON}, {"counts": CROWDED, "knobs": OFF}),
    (
        "violates",
        {},
        {"counts": CROWDED, "knobs": OFF},
        {"counts": CROWDED, "knobs": {**OFF, "routing__bias_speed": 0.0}},
    ),
    ("loss_balances", {}, {"counts": CROWDED, "knobs": ON}, {"counts": EVEN, "knobs": ON}),
    (
        "loss_missed",
        {},
        {"counts": EVEN, "knobs": {**OFF, "routing__bias_speed": 0.0}},
        {"counts": CROWDED, "knobs": {**OFF, "routing__bias_speed": 0.0}},
    ),
    (
        "bias_balances",
        {},
        {"counts": EVEN, "knobs": {**OFF, "routing__bias_speed": 0.001}},
        {"counts": EVEN, "knobs": {**OFF, "routing__bias_speed": 0.01}},
    ),
    (
        "bias_balances",
        {},
        {"counts": EVEN, "knobs": {**ON, "routing__bias_speed": 0.01}},
        {"counts": EVEN, "knobs": {**OFF, "routing__bias_speed": 0.01}},
    ),
    ("uneven", {}, {"counts": EVEN, "knobs": OFF}, {"counts": CROWDED, "knobs": OFF}),
    (
        "overflows",
        {},
        {"knobs": {"routing__capacity_factor": 1.0}, "dropped": ((False, False), (False, False))},
        {"knobs": {"routing__capacity_factor": 1.0}, "dropped": ((False, True), (False, True))},
    ),
    ("overflows", {}, {}, {"knobs": {"routing__capacity_factor": 1.0}, "dropped": ((True, True), (False, True))}),
    (
        "has_room",
        {"dropped": ((False, True), (False, True))},
        {"knobs": {"routing__capacity_factor": 2.0}, "dropped": ((False, True), (False, True))},
        {"knobs": {"routing__capacity_factor": 2.0}, "dropped": ((False, True), (False, False))},
    ),
    (
        "fits",
        {},
        {"knobs": {**ON, "routing__capacity_factor": 2.0}, "dropped": ((False, False), (False, False))},
        {"knobs": {**ON, "routing__capacity_factor": 1.0}, "dropped": ((False, False), (False, False))},
    ),
    (
        "fits",
        {},
        {"knobs": {**ON, "routing__capacity_factor": 1.0}, "dropped": ((False, True), (False, True))},
        {"knobs": {**ON, "routing__capacity_factor": 1.0}, "dropped": ((False, False), (False, False))},
    ),
    ("found_a_specialist", {}, {"sample": MIXED, "expert": 0}, {"sample": SPLIT, "expert": 0}),
    ("found_a_specialist", {}, {"sample": SPLIT}, {"sample": SPLIT, "expert": 1}),
    ("found_its_character", {"expert": 1}, {"sample": SPLIT, "expert": 1}, {"sample": SPLIT, "expert": 0}),
    ("found_its_character", {"expert": 1}, {"expert": 0}, {"sample": SPLIT, "expert": 0}),
    ("found_its_character", {}, {"sample": [0, 0, 0, 1] * 20, "expert": 1}, {"sample": SPLIT, "expert": 1}),
    ("deepest", {}, {"sample": SPLIT, "layers": 2}, {"sample": SPLIT, "layers": 2, "layer": 1}),
    (
        "domains_fade",
        {"sample": SPLIT},
        {"sample": SPLIT, "knobs": {"balance__sequence_coefficient": 0.1}},
        {"sample": [0, 0, 1, 1] * 20, "knobs": {"balance__sequence_coefficient": 0.1}},
    ),
    (
        "domains_fade",
        {"sample": SPLIT},
        {"sample": [0, 0, 1, 1] * 20},
        {"sample": [0, 0, 1, 1] * 20, "knobs": {"balance__sequence_coefficient": 0.1}},
    ),
    (
        "top_p",
        {},
        {"knobs": {"routing__router": "top_p"}},
        {"knobs": {"routing__router": "top_p"}, "ids": ((0, 1), (2, -1))},
    ),
    ("top_p", {}, {"ids": ((0, 1), (2, -1))}, {"knobs": {"routing__router": "top_p"}, "ids": ((0, 1), (2, -1))}),
    (
        "more_experts",
        {},
        {"knobs": {"routing__router": "top_p"}, "ids": ((0, 1), (2, -1))},
        {"knobs": {"routing__router": "top_p"}, "ids": ((0, 1, 2), (2, 3, -1))},
    ),
    ("found_a_doubtful_one", {}, {"ids": ((0, 1), (2, -1)), "token": 1}, {"ids": ((0, 1), (2, -1)), "token": 0}),
    (
        "surer",
        {"ids": ((0, 1), (2, 3))},
        {"knobs": {"routing__router": "top_p", "balance__token_entropy_coefficient": 0.1}},
        {
            "knobs": {"routing__router": "top_p", "balance__token_entropy_coefficient": 0.1},
            "ids": ((0, -1), (2, -1)),
        },
    ),
    ("relu", {}, {"ids": ((0, 1), (-1, -1))}, {"knobs": {"routing__router": "relu"}, "ids": ((0, 1), (-1, -1))}),
]


@pytest.mark.parametrize(("name", "then", "not_yet", "done"), CASES, ids=[case[0] for case in CASES])
def test_a_check_tells_what_has_happened_from_what_has_not(
    name: str, then: dict[str, object], not_yet: dict[str, object], done: dict[str, object]
) -> None:
    check = getattr(checks, name)
    before, after = check(moment(**not_yet), moment(**then)), check(moment(**done), moment(**then))
    assert (before.done, after.done) == (False, True), f"{before.reading} / {after.reading}"
    for reading in (before.reading, after.reading):
        assert reading.endswith(".")
        assert "nan" not in reading.split()


def test_every_check_is_tried_by_hand() -> None:
    used = {step.check.__name__ for lesson in LESSONS.values() for step in lesson.steps}
    assert used == {case[0] for case in CASES}


def test_a_reading_has_the_number_and_the_one_that_is_wanted() -> None:
    assert checks.collapsed(moment(counts=CROWDED, knobs=OFF), moment()) == Check(
        True,
        f"CV in layer 0 over the last {BATCHES} batches now 2.38; wanted: above 1.4. Load shows the last batch alone.",
    )
    assert checks.rescued(moment(counts=EVEN, knobs=OFF), moment()).reading == "Balance loss is none; wanted: switch."


def test_another_model_or_a_recording_is_no_lesson() -> None:
    lesson = LESSONS["collapse"]
    then = moment()
    done = moment(counts=CROWDED, knobs=OFF)
    assert lesson.check(0, done, then).done
    for astray in (
        moment(counts=CROWDED, knobs=OFF, recording=True),
        moment(counts=CROWDED, knobs={**OFF, "task": "plane"}),
    ):
        assert not lesson.check(0, astray, then).done
        assert "start the lesson again" in lesson.check(0, astray, then).reading


def test_the_load_is_of_batches_that_all_had_the_knobs_of_now() -> None:
    history = History()
    log = lambda first, steps: StepLog(np.arange(first, first + steps), {}, (np.tile([3, 1], (steps, 1)),))  # noqa: E731
    history.extend(log(1, BATCHES - 1))
    assert recent(history, 1) == ()
    history.extend(log(BATCHES, 1))
    assert recent(history, 1)[0].tolist() == [3 * BATCHES, BATCHES]
    history.add_mark(BATCHES, "k 1 → 2")
    history.extend(log(BATCHES + 1, BATCHES - 1))
    assert recent(history, 1) == ()
    history.extend(log(2 * BATCHES, 1))
    assert recent(history, 1)[0].tolist() == [3 * BATCHES, BATCHES]


def test_the_load_in_a_long_run_is_of_as_many_batches_and_of_none_before_the_change() -> None:
    history, mark = History(), 3 * MAX_POINTS  # by then every fourth step is kept
    history.extend(StepLog(np.arange(1, mark + 1), {}, (np.tile([9, 0], (mark, 1)),)))
    history.add_mark(mark, "k 1 → 2")
    steps = 0
    while not (found := recent(history, 1)):
        steps += 1
        history.extend(StepLog(np.array([mark + steps]), {}, (np.array([[3, 1]]),)))
    assert found[0].tolist() == [3 * BATCHES, BATCHES]
    assert 3 * BATCHES < steps <= 4 * BATCHES


def test_recent_counts_leave_out_other_numbers_of_experts() -> None:
    history = History()
    assert history.recent_counts(0, 5).size == 0
    history.extend(StepLog(np.array([1, 2]), {}, (np.array([[5, 5], [1, 2]]),)))
    history.extend(StepLog(np.array([3, 4]), {}, (np.array([[1, 2, 3], [1, 0, 0]]),)))
    assert history.recent_counts(0, 5).tolist() == [2, 2, 3]
    assert history.recent_counts(0, 1).tolist() == [1, 0, 0]
    assert history.recent_counts(1, 5).size == 0
