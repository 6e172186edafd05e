"""Settings, measures and the history against exact values and properties."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeviz.domain import metrics, places
from moeviz.domain.history import MAX_POINTS, SURVEY_BYTES, History
from moeviz.domain.messages import StepLog
from moeviz.domain.routing import Routing, RoutingSnapshot
from moeviz.domain.settings import KNOBS, Settings, SettingsError
from moeviz.domain.survey import Part, SurveyResult
from moeviz.domain.writing import write_whole

COUNTS = st.lists(st.integers(0, 10_000), min_size=1, max_size=64).filter(lambda c: sum(c) > 0)


def test_settings_round_trip_through_json() -> None:
    settings = Settings().with_values({"routing.k": 4, "train.lr": 0.01, "seed": 7})
    assert Settings.from_json(settings.to_json()) == settings
    assert json.loads(settings.to_json())["routing.k"] == 4


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"routing.k": 9}, "cannot choose more experts"),
        ({"routing.k": 0}, "routing.k is 0; it must lie in the range from 1 to 64"),
        ({"routing.kk": 1}, "'routing.kk' is not a setting; the nearest one is routing.k."),
        ({"k": 1}, "'k' is not a setting; the nearest one is routing.k."),
        ({"learning": 1}, "'learning' is not a setting; `moeviz train` writes a settings.json"),
        ({"routing.router": "best"}, "one of dense, topk"),
        ({"train.lr": "fast"}, "train.lr must be a number from 0 to 0.1"),
        ({"train.lr": float("nan")}, "train.lr must be a number"),
        ({"routing.k": 2.5}, "whole number"),
        ({"routing.k": True}, "whole number"),
        ({"model.width": 40}, "multiple of 16"),
    ],
)
def test_settings_refuse_by_name(values: dict[str, object], words: str) -> None:
    with pytest.raises(SettingsError, match=words.replace("(", r"\(")):
        Settings().with_values(values)


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"k": 1}'])
def test_broken_settings_text_is_refused(text: str) -> None:
    with pytest.raises(SettingsError):
        Settings.from_json(text)


def test_every_knob_is_explained() -> None:
    assert all(knob.title and knob.help for knob in KNOBS.values())


def test_a_path_names_what_exists_or_else_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sep = os.pathsep
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("a.txt", "b.txt", f"at 12{sep}30.txt"):
        Path(name).touch()
    for path, parts, words in [
        ("", [""], ""),
        ("/x/gone.txt", ["/x/gone.txt"], "gone.txt"),
        (f"at 12{sep}30.txt", [f"at 12{sep}30.txt"], f"at 12{sep}30.txt"),
        (f"a.txt{sep}b.txt", ["a.txt", "b.txt"], "a.txt and 1 other"),
        (f"~/a.txt{sep}gone{sep}b.txt{sep}", ["~/a.txt", "gone", "b.txt"], "a.txt and 2 others"),
        (f"a.txt{sep}at 12{sep}30.txt{sep}b.txt", ["a.txt", f"at 12{sep}30.txt", "b.txt"], "a.txt and 2 others"),
        (sep, [sep], sep),
        (f"{'x' * 300}{sep}\0", ["x" * 300, "\0"], f"{'x' * 300} and 1 other"),
    ]:
        assert places.split(path) == parts
        assert places.in_words(path) == words
        assert places.split(places.join(parts)) == parts


@given(COUNTS)
def test_measures_stay_in_their_ranges(counts: list[int]) -> None:
    size, c = len(counts), np.array(counts, dtype=np.float64)
    assert metrics.load_share(counts).sum() == pytest.approx(1)
    assert metrics.cv(counts) == pytest.approx(np.std(c) / np.mean(c))
    assert -1e-9 <= metrics.cv(counts) <= np.sqrt(size - 1) + 1e-9
    assert -1e-9 <= metrics.max_violation(counts) <= size - 1 + 1e-9
    assert -1e-9 <= metrics.normalised_entropy(counts) <= 1 + 1e-9
    assert 1 - 1e-9 <= metrics.effective_experts(counts) <= size + 1e-9
    pairwise = np.abs(c[:, None] - c[None, :]).sum() / (2 * size * c.sum())
    assert metrics.gini(counts) == pytest.approx(pairwise, abs=1e-12)
    assert metrics.dead_experts(counts) == counts.count(0)


def test_measures_of_even_and_collapsed_load() -> None:
    even, one = metrics.summarise([5, 5, 5, 5]), metrics.summarise([0, 20, 0, 0])
    assert (even.cv, even.max_violation, even.gini, even.dead_experts) == (0, 0, 0, 0)
    assert even.effective_experts == pytest.approx(4)
    assert (one.max_violation, one.dead_experts) == (3, 3)
    assert one.cv == pytest.approx(np.sqrt(3))
    assert one.effective_experts == pytest.approx(1)


def test_counts_and_importance_ignore_padding() -> None:
    ids = np.array([[0, 2], [2, -1], [1, 2]])
    routing = Routing("x", 4, ids, gate_weights_TK=np.array([[0.75, 0.25], [1, 9], [0.5, 0.5]], np.float32))
    assert metrics.expert_counts(routing).tolist() == [1, 1, 3, 0]
    assert np.allclose(metrics.importance(routing), [0.75, 0.5, 1.75, 0])  # type: ignore[arg-type]
    assert metrics.drop_rate(routing) is None


def _log(first: int, last: int, experts: int = 4, every: int = 50) -> StepLog:
    steps = np.arange(first, last)
    held = np.where(steps % every == 0, steps / 10.0, np.nan)
    counts = np.ones((len(steps), experts), np.int64)
    return StepLog(steps, {"loss": steps * 1.0, "heldout": held}, (counts, counts * 2))


def test_history_is_bounded_and_keeps_every_held_out_value() -> None:
    history = History()
    for first in range(0, 20_000, 500):
        history.extend(_log(first, first + 500))
        assert len(history.steps) <= MAX_POINTS
    assert np.isfinite(history.scalar("heldout")).sum() == 400
    assert (np.diff(history.steps) > 0).all()
    assert np.array_equal(history.scalar("loss"), history.steps)


def test_history_is_bounded_when_every_step_is_measured() -> None:
    history = History()
    for first in range(0, 20_000, 500):
        history.extend(_log(first, first + 500, every=1))
        assert len(history.steps) <= MAX_POINTS


@pytest.mark.parametrize("every", [1, 3, 50, 10**9])
def test_a_long_log_is_kept_as_if_it_had_come_step_by_step(every: int) -> None:
    whole, bit_by_bit, taken = History(), History(), History()
    log = _log(0, 12_345, every=every)
    whole.extend(log)
    for first in range(0, 12_345, 7):
        bit_by_bit.extend(_log(first, min(first + 7, 12_345), every=every))
    taken.begin_with(whole)
    for one in (bit_by_bit, taken):
        assert one.seen == whole.seen == 12_345
        assert np.array_equal(one.steps, whole.steps)
        assert np.array_equal(one.scalar("heldout"), whole.scalar("heldout"), equal_nan=True)
        assert np.array_equal(one.load_share(0), whole.load_share(0))
    taken.extend(_log(12_345, 12_400, every=every))
    assert whole.seen == 12_345
    assert taken.seen == 12_400


def _survey(step: int, k: int, parts: frozenset[Part], tokens: int = 8) -> SurveyResult:
    probe = RoutingSnapshot(step, (Routing("layer 0", 4, np.zeros((tokens, k), np.int64)),))
    return SurveyResult(step, None, 0, probe, (), (), parts=parts)


def test_the_survey_of_a_step_is_the_last_that_is_not_later() -> None:
    none, inputs = frozenset[Part](), frozenset[Part](("inputs",))
    history, shown = History(), _survey(6, 2, none).probe
    assert history.survey_at(shown, none) is None
    surveys = [_survey(2, 2, none), _survey(5, 2, inputs), _survey(5, 1, inputs), _survey(9, 1, none)]
    for survey in surveys:
        history.add_survey(survey)
    assert history.survey_at(shown, none) is surveys[2]
    assert history.survey_at(_survey(5, 2, none).probe, none) is surveys[1], "of one step the one of its k"
    assert history.survey_at(_survey(3, 2, none).probe, inputs) is surveys[1], "the first that has the part"
    assert history.survey_at(_survey(3, 2, none).probe, ["similarity"]) is None
    again = _survey(9, 1, inputs)
    history.add_survey(again)
    assert history.survey_at(_survey(10, 1, none).probe, none) is again
    history.clear()
    assert history.survey_at(shown, none) is None


def test_surveys_are_bounded_in_bytes_and_stay_spread_over_the_run() -> None:
    history, tokens, none = History(), 50_000, frozenset[Part]()
    for step in range(1000):
        history.add_survey(_survey(step, 2, none, tokens))
    found = {history.survey_at(_survey(step, 2, none).probe, none) for step in range(1000)}
    size = tokens * 2 * 8
    assert SURVEY_BYTES / size / 2 <= len(found) <= SURVEY_BYTES / size
    steps = sorted(survey.step for survey in found if survey is not None)
    assert len(set(np.diff(steps)[:-1])) == 1
    assert steps[-1] == 999, "the newest is there, thinned or not"


def test_history_pads_experts_that_came_later() -> None:
    history = History()
    history.extend(_log(0, 2, experts=2))
    history.extend(_log(2, 4, experts=4))
    share = history.load_share(1)
    assert share.shape == (4, 4)
    assert np.isnan(share[:2, 2:]).all()
    assert np.allclose(share[2:], 0.25)


@pytest.mark.parametrize("text", ["[" * 200_000, '{"train.lr": ' + "1" * 400 + "}", '{"seed": ' + "1" * 5000 + "}"])
def test_settings_that_are_too_much_are_refused_in_words(text: str) -> None:
    with pytest.raises(SettingsError):
        Settings.from_json(text)


def test_logs_give_back_what_was_kept_in_stretches_of_one_size() -> None:
    history, rng = History(), np.random.default_rng(0)
    wanted: dict[int, list[np.ndarray]] = {}
    for first, steps, experts in ((1, 3000, (4, 4)), (3001, 1, (6, 4)), (3002, 400, (6, 5))):
        counts = tuple(rng.integers(0, 50, (steps, e)) for e in experts)
        numbers = np.arange(first, first + steps)
        history.extend(StepLog(numbers, {"loss": numbers / 7}, counts))
        wanted |= {int(step): [c[row] for c in counts] for row, step in enumerate(numbers)}
    logs = history.logs()
    assert [[c.shape[1] for c in log.counts_SE] for log in logs][-1] == [6, 5]
    assert np.array_equal(np.concatenate([log.steps_S for log in logs]), history.steps)
    assert len(history.steps) < history.seen == 3401
    for log in logs:
        assert np.array_equal(log.scalars_S["loss"], log.steps_S / 7)
        for row, step in enumerate(log.steps_S):
            assert all(np.array_equal(c[row], w) for c, w in zip(log.counts_SE, wanted[int(step)], strict=True))
    last = wanted[int(history.steps[-1])][0]
    assert np.allclose(history.load_share(0)[-1], last / last.sum())
    assert np.isnan(history.load_share(0)[0][4:]).all()
    again = History()
    for log in logs:
        again.extend(log)
    assert np.array_equal(again.load_share(1), history.load_share(1), equal_nan=True)
    assert History().logs() == []


# ---- files
def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    write_whole(path, "old α")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "new" * 100_000 + "\ud800")  # no text in UTF-8: it fails half-way
    assert path.read_text(encoding="utf-8") == "old α"
    (tmp_path / "folder").mkdir()
    with pytest.raises((IsADirectoryError, PermissionError)):
        write_whole(tmp_path / "folder", "new")
    assert sorted(tmp_path.iterdir()) == [tmp_path / "folder", path]
