"""A trace gives back exactly what was recorded, whatever happened while it was written."""

import json
import shutil
import subprocess
import sys
import tempfile
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import zarr
from hypothesis import given, settings

import moeviz
from moeviz.domain.history import History
from moeviz.domain.messages import StepLog, UserError
from moeviz.domain.routing import Routing, RoutingSnapshot
from moeviz.trace.layout import KINDS
from moeviz.trace.stats import stats
from moeviz.trace.store import TraceWriter, open_trace
from moeviz.trace.writer import CHUNK_STEPS

ARRAYS = (
    "expert_ids_TK",
    "gate_weights_TK",
    "router_probs_TE",
    "router_logits_TE",
    "dropped_TK",
    "selection_scores_TE",
)


def make_layer(rng, name, tokens, k, experts, present=(True,) * 5, kinds=(0, False, False)) -> Routing:
    ids = np.argsort(rng.random((tokens, experts)), axis=1)[:, :k].astype(np.int64)
    ids[rng.random(ids.shape) < 0.2] = -1
    gates, probs, logits, dropped, selection = (
        rng.random((tokens, k)).astype(np.float32),
        rng.random((tokens, experts)).astype(np.float32),
        rng.normal(size=(tokens, experts)).astype(np.float32),
        rng.random((tokens, k)) < 0.5,
        np.where(rng.random((tokens, experts)) < 0.3, -np.inf, 0.5).astype(np.float32),  # groups that were not kept
    )
    logits[rng.random(logits.shape) < 0.05] = np.nan  # a diverged model's scores are kept as they were
    arrays = [
        a if there else None for a, there in zip((gates, probs, logits, dropped, selection), present, strict=True)
    ]
    return Routing(name, experts, ids, *arrays, *kinds)


def make_snapshot(
    seed, step=0, tokens=5, k=2, experts=4, present=(True,) * 5, counts=True, text=True, kinds=(0, False, False)
) -> RoutingSnapshot:
    rng = np.random.default_rng(seed)
    layers = tuple(make_layer(rng, f"blocks.{i}", tokens, k, experts, present, kinds) for i in range(2))
    return RoutingSnapshot(
        step,
        layers,
        tuple("ab\udc80专\n"[i % 5] for i in range(tokens)) if text else None,
        tuple(f"d{i % 2}" for i in range(tokens)) if counts and text else None,
        {"loss": float(rng.random()), "a/b": 1.0} if counts else {},
        tuple(rng.integers(0, 99, experts) for _ in layers) if counts else (),
    )


def assert_same(a: RoutingSnapshot, b: RoutingSnapshot) -> None:
    assert (a.step, a.tokens, a.domains, dict(a.scalars)) == (b.step, b.tokens, b.domains, dict(b.scalars))
    assert len(a.layers) == len(b.layers)
    for x, y in zip(a.layers, b.layers, strict=True):
        assert (x.name, x.num_experts, x.num_null) == (y.name, y.num_experts, y.num_null)
        assert (x.looks_ahead, x.soft) == (y.looks_ahead, y.soft)
        for name in ARRAYS:
            left, right = getattr(x, name), getattr(y, name)
            assert (left is None) == (right is None), name
            if left is not None:
                assert left.dtype == right.dtype
                np.testing.assert_array_equal(left, right, err_msg=name)
    assert len(a.train_counts_LE) == len(b.train_counts_LE)
    for left, right in zip(a.train_counts_LE, b.train_counts_LE, strict=True):
        np.testing.assert_array_equal(left, right)


def make_log(first, size, experts=4) -> StepLog:
    steps = np.arange(first, first + size)
    scalars = {"loss": 1.0 / (1 + steps), "heldout": np.where(steps % 5, np.nan, 2.0)}
    return StepLog(steps, scalars, tuple(np.full((size, experts), i) for i in range(2)))


@st.composite
def snapshots(draw):
    experts = draw(st.integers(1, 12))
    return make_snapshot(
        draw(st.integers(0, 99)),
        draw(st.integers(0, 10**9)),
        draw(st.integers(0, 6)),
        draw(st.integers(1, experts)),
        experts,
        draw(st.tuples(*[st.booleans()] * 5)),
        draw(st.booleans()),
        draw(st.booleans()),
        (draw(st.integers(0, experts)), draw(st.booleans()), draw(st.booleans())),
    )


@settings(max_examples=12, deadline=None)
@given(st.lists(snapshots(), min_size=1, max_size=5), st.sets(st.integers(0, 4)))
def test_round_trip(recorded, flush_after):
    with tempfile.TemporaryDirectory() as folder:
        with TraceWriter.create(Path(folder) / "t.zarr") as writer:
            for i, snapshot in enumerate(recorded):
                writer.append(snapshot)
                if i in flush_after:
                    writer.flush()
        trace = open_trace(Path(folder) / "t.zarr")
        assert len(trace) == trace.num_steps == len(recorded)
        for wanted, found in zip(recorded, trace, strict=True):
            assert_same(wanted, found)
        assert_same(recorded[-1], trace[-1])
        assert max(s.layers[0].num_experts for s in recorded) == trace.layers[0].num_experts


def test_more_than_a_chunk_with_log_marks_and_settings(tmp_path):
    recorded = [make_snapshot(i, step=i * 10) for i in range(2 * CHUNK_STEPS + 3)]
    with TraceWriter.create(tmp_path / "t.zarr", '{"routing.k": 2}', "a test") as writer:
        for i, snapshot in enumerate(recorded):
            writer.append(snapshot)
            writer.add_log(make_log(i * 10 + 1, 10, 4 if i < 20 else 6))
        writer.add_mark(7, "k 2 → 4")
    trace = moeviz.open_trace(tmp_path / "t.zarr")
    for index in (0, CHUNK_STEPS - 1, CHUNK_STEPS, -1):
        assert_same(trace[index], recorded[index])
    assert trace.settings == {"routing.k": 2}
    assert trace.source == "a test"
    assert trace.marks == [(7, "k 2 → 4")]
    assert [layer.name for layer in trace.layers] == ["blocks.0", "blocks.1"]
    assert np.array_equal(trace.log.steps_S, np.arange(1, 671))
    assert np.isnan(trace.log.scalars_S["heldout"][0])
    assert trace.log.scalars_S["loss"][9] == 1 / 11
    assert trace.log.counts_SE[1].shape == (670, 6)
    parts = trace.log_parts
    assert [part.counts_SE[1].shape for part in parts] == [(200, 4), (470, 6)]
    assert (parts[0].counts_SE[1] == 1).all()
    with pytest.raises(IndexError):
        trace[len(recorded)]


def test_plain_zarr_reads_it(tmp_path):
    snapshot = make_snapshot(1, step=3)
    with TraceWriter.create(tmp_path / "t.zarr") as writer:
        writer.append(snapshot)
    root = zarr.open_group(str(tmp_path / "t.zarr"), mode="r")
    np.testing.assert_array_equal(root["layers/0/expert_ids_TK"][0], snapshot.layers[0].expert_ids_TK)
    np.testing.assert_array_equal(root["layers/1/gate_weights_TK"][0], snapshot.layers[1].gate_weights_TK)
    assert root["step"][:].tolist() == [3]
    assert root["layers/0/router_probs_TE"].metadata.dimension_names == ("S", "T", "E")


def test_which_experts_they_are_is_kept_and_unknown_in_older_traces(tmp_path):
    path = tmp_path / "t.zarr"
    with TraceWriter.create(path) as writer:
        for lineage in ("a", "b", "", "a"):
            writer.append(replace(make_snapshot(1), lineage=lineage))
    assert [snapshot.lineage for snapshot in open_trace(path)] == ["a", "b", "", "a"]
    attributes = json.loads((path / "zarr.json").read_text())
    del attributes["attributes"]["lineages"]
    (path / "zarr.json").write_text(json.dumps(attributes))
    shutil.rmtree(path / "lineage")
    assert [snapshot.lineage for snapshot in open_trace(path)] == [""] * 4


def test_the_folder_of_a_run_opens_as_its_trace(tmp_path):
    with TraceWriter.create(tmp_path / "run" / "trace.zarr", "{}", "test") as writer:
        writer.append(make_snapshot(np.random.default_rng(0)))
    assert len(open_trace(tmp_path / "run")) == 1


def test_a_trace_of_version_1_still_opens(tmp_path):
    """It had no selection scores and nothing to say of null experts, of looking ahead and of soft dispatch."""
    path, plain = tmp_path / "t.zarr", make_snapshot(1, step=3, present=(True, True, True, True, False))
    with TraceWriter.create(path) as writer:
        writer.append(plain)
    for layer in (path / "layers" / "0", path / "layers" / "1"):
        for name in KINDS:
            shutil.rmtree(layer / name)
    with pytest.raises(UserError, match="damaged"):
        open_trace(path)
    attributes = json.loads((path / "zarr.json").read_text())
    attributes["attributes"]["version"] = 1
    (path / "zarr.json").write_text(json.dumps(attributes))
    assert_same(open_trace(path)[0], plain)


def test_a_killed_run_costs_the_last_chunk_only(tmp_path):
    """What was flushed is there, although nobody closed the trace and the next chunk was half written."""
    path = tmp_path / "t.zarr"
    writer = TraceWriter.create(path)
    assert len(open_trace(path)) == 0
    for i in range(CHUNK_STEPS + 5):
        writer.append(make_snapshot(i, step=i))
    trace = open_trace(path)
    assert len(trace) == CHUNK_STEPS
    attributes = json.loads((path / "zarr.json").read_text())
    writer.flush()
    (path / "zarr.json").write_text(json.dumps(attributes))  # killed between the data and the count of steps
    assert_same(open_trace(path)[-1], make_snapshot(CHUNK_STEPS - 1, step=CHUNK_STEPS - 1))


def test_bad_paths_and_damage(tmp_path):
    with pytest.raises(UserError, match="There is no trace"):
        open_trace(tmp_path / "missing")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is not a trace"):
        open_trace(tmp_path / "file")
    zarr.create_group(str(tmp_path / "other"))
    with pytest.raises(UserError, match="not a trace that moeviz wrote"):
        open_trace(tmp_path / "other")
    zarr.create_group(str(tmp_path / "newer"), attributes={"format": "moeviz trace", "version": 99})
    with pytest.raises(UserError, match="version 99"):
        open_trace(tmp_path / "newer")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "zarr.json").write_text('{"zarr_form')
    with pytest.raises(UserError, match="damaged"):
        open_trace(tmp_path / "torn")
    with pytest.raises(UserError, match="exists already"):
        TraceWriter.create(tmp_path / "other")
    with pytest.raises(UserError, match="cannot be written"):
        TraceWriter.create(tmp_path / "file" / "below")


@pytest.mark.parametrize(
    "name",
    ["layers/0/expert_ids_TK", "layers/1/num_experts", "layers/0/router_probs_TE", "step", "layers/0/soft", "lineage"],
)
@pytest.mark.parametrize("way", ["garbage", "chunks gone", "array gone"])
def test_damaged_arrays_are_never_shown_as_routing(tmp_path, name, way):
    path = tmp_path / "t.zarr"
    with TraceWriter.create(path) as writer:
        writer.append(make_snapshot(1, step=3))
    for file in [f for f in (path / name).rglob("*") if f.is_file()]:
        if way == "garbage" and file.name != "zarr.json":
            file.write_bytes(b"\x00garbage")
        elif way == "array gone" or (way == "chunks gone" and file.name != "zarr.json"):
            file.unlink()
    if way == "chunks gone" and name == "layers/0/router_probs_TE":
        # zarr reads a lost chunk as fill values: NaN, which is shown as unknown
        assert np.isnan(open_trace(path)[0].layers[0].router_probs_TE).all()
        return
    with pytest.raises(UserError, match="damaged"):
        open_trace(path)[0]


def claim(path: Path, attributes: dict[str, int], shapes: dict[str, list[int]]) -> None:
    """What a hostile file says of itself; no data belongs to it."""
    for file in path.rglob("zarr.json"):
        meta = json.loads(file.read_text())
        if file.parent == path:
            meta["attributes"].update(attributes)
        elif (name := file.parent.relative_to(path).as_posix()) in shapes:
            meta["shape"] = shapes[name]
        elif meta["node_type"] == "array" and "num_steps" in attributes:
            meta["shape"][0] = attributes["num_steps"]
        file.write_text(json.dumps(meta))


@pytest.mark.parametrize(
    ("attributes", "shapes", "words"),
    [
        ({"num_steps": 10**8}, {}, "claims 100,000,000 steps"),
        ({"log_steps": 10**8}, {"log/step": [10**8]}, "claims 100,000,000 steps"),
        ({"num_steps": -1}, {}, "claims -1 steps"),
        ({}, {"log/counts/0": [3, 10**9]}, "the log claims 22 GiB"),
    ],
)
def test_a_size_that_is_only_claimed_takes_no_memory(tmp_path, attributes, shapes, words):
    path = tmp_path / "t.zarr"
    with TraceWriter.create(path) as writer:
        writer.append(make_snapshot(1, step=3))
        writer.add_log(make_log(1, 3))
    claim(path, attributes, shapes)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=words):
            _ = open_trace(path).log
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("sizes", "words"),
    [({"num_tokens": 10**9}, "step 0 claims"), ({"num_experts": 10**6}, "experts"), ({"k": -5}, "negative")],
)
def test_a_snapshot_that_only_claims_its_size_takes_no_memory(tmp_path, sizes, words):
    path = tmp_path / "t.zarr"
    with TraceWriter.create(path) as writer:
        writer.append(make_snapshot(1, step=3))
    root = zarr.open_group(str(path), mode="r+")
    for name, value in sizes.items():
        root[f"layers/0/{name}"][0] = value
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=words):
            open_trace(path)[0]
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


def test_stats_by_hand(tmp_path):
    ids = np.array([[0, 1], [0, 2], [0, -1], [1, 0]])
    gates = np.array([[0.5, 0.5], [0.75, 0.25], [1, 0], [0.5, 0.5]], np.float32)
    with TraceWriter.create(tmp_path / "t.zarr") as writer:
        writer.append(RoutingSnapshot(1, (Routing("a", 4, ids, gates),)))
        writer.append(RoutingSnapshot(2, (Routing("a", 4, ids[:2], None, dropped_TK=ids[:2] == 2),)))
    trace = open_trace(tmp_path / "t.zarr")
    first = stats(trace, 0)["layers"][0]
    assert first["load_share"] == pytest.approx([4 / 7, 2 / 7, 1 / 7, 0])
    assert first["importance"] == pytest.approx([2.75, 1.0, 0.25, 0])
    assert first["cv"] == pytest.approx(np.std([4, 2, 1, 0]) / 1.75)
    assert first["max_violation"] == pytest.approx(4 / 1.75 - 1)
    assert (first["dead_experts"], first["tokens"], first["k"], first["experts"]) == (1, 4, 2, 4)
    assert first["drop_rate"] is None
    last = stats(trace)
    assert last["steps"] == 2
    assert last["layers"][0]["importance"] is None
    assert last["layers"][0]["drop_rate"] == pytest.approx(0.25)
    with pytest.raises(UserError, match="0 to 1"):
        stats(trace, 2)


def test_a_measure_without_a_batch_is_kept_and_is_no_batch(tmp_path):
    opened = StepLog(np.array([10]), {"heldout": np.array([2.5])}, ())
    snapshots = [make_snapshot(i, step=10 + 2 * i) for i in range(2)]
    trace = written(tmp_path, *snapshots, log=[opened, make_log(11, 2)])
    assert trace.log.steps_S.tolist() == [10, 11, 12]
    assert trace.log.scalars_S["heldout"][0] == 2.5
    assert stats(trace, 0)["layers"][0]["train_batches"] is None
    assert stats(trace, 1)["layers"][0]["train_batches"] == 2
    past = History()
    for part in trace.log_parts:
        past.extend(part)
    assert np.isnan(past.load_share(1)[0]).all()
    assert past.load_share(1)[1:].tolist() == [[0.25] * 4] * 2
    alone = written(tmp_path / "alone", snapshots[0], log=[opened])
    assert alone.log.steps_S.tolist() == [10]
    assert stats(alone, 0)["layers"][0]["train_batches"] is None


def written(folder, *snapshots, log=()):
    with TraceWriter.create(folder / "t.zarr") as writer:
        for snapshot in snapshots:
            writer.append(snapshot)
        for part in log:
            writer.add_log(part)
    return open_trace(folder / "t.zarr")


def test_stats_of_null_experts_and_of_the_scores_that_chose_by_hand(tmp_path):
    probs = np.array([[0.5, 0.3, 0.2], [0.6, 0.3, 0.1]], np.float32)
    scores = np.array([[0.1, 0.4, 0.2], [0.5, 0.6, -np.inf]], np.float32)
    ids = np.array([[1, 2], [1, 0]])
    layer = Routing("a", 3, ids, None, probs, selection_scores_TE=scores, num_null=1, looks_ahead=True)
    found = stats(written(tmp_path, RoutingSnapshot(0, (layer,))))["layers"][0]
    assert found["boundary_margin"] == pytest.approx(0.1)  # of the first token; the second had no other choice
    assert (found["null_experts"], found["executed_experts"]) == (1, 1.5)
    assert (found["looks_ahead"], found["soft"]) == (True, False)


def test_stats_between_steps_and_between_layers_by_hand(tmp_path):
    one = np.array([[0], [1], [0], [1]])
    steps = [[[0], [0], [0], [0]], [[0], [1], [0], [0]], [[0], [1], [0], [1]]]
    text = ("a", "b", "c", "d")
    layers = [(Routing("a", 2, np.array(ids)), Routing("b", 2, 1 - one)) for ids in steps]
    trace = written(tmp_path, *(RoutingSnapshot(i, pair, text) for i, pair in enumerate(layers)))
    first, middle, last = (stats(trace, i)["layers"][0] for i in range(3))
    assert [layer["saturation"] for layer in (first, middle, last)] == [0.5, 0.75, 1]
    assert first["churn"] is first["top1_flip_rate"] is first["jaccard"] is None  # nothing before it
    assert middle["churn"] == last["churn"] == middle["top1_flip_rate"] == 0.25
    assert middle["overlap_baseline"] == 0.5
    assert last["transition_information"] == pytest.approx(1)  # layer b is the other expert of a
    assert last["transition_information_bias"] == pytest.approx(1 / (8 * np.log(2)))
    assert first["transition_information"] == 0
    assert stats(trace)["layers"][1]["transition_information"] is None  # no layer after it
    assert stats(trace)["mean"]["saturation"] == 1
    assert stats(trace, 0)["mean"]["saturation"] == 0.75  # layer b has not moved
    assert (last["first_choice_repeats"], last["first_choice_repeat_baseline"]) == (0, 0.5)


def test_stats_compare_only_the_same_tokens_and_experts(tmp_path):
    ids = np.array([[0], [1]])
    trace = written(
        tmp_path,
        RoutingSnapshot(0, (Routing("a", 2, ids),), ("a", "b")),
        RoutingSnapshot(1, (Routing("a", 3, ids),), ("a", "b")),
        RoutingSnapshot(2, (Routing("a", 3, ids),), ("a", "c")),
        RoutingSnapshot(3, (Routing("a", 3, ids),), ("a", "c")),
    )
    assert [stats(trace, i)["layers"][0]["churn"] for i in range(4)] == [None, None, None, 0]
    assert [stats(trace, i)["layers"][0]["saturation"] for i in range(4)] == [None, None, 1, 1]


def test_stats_of_confidence_labels_training_and_scores_by_hand(tmp_path):
    probs = np.array([[0.75, 0.25], [0.5, 0.5]] * 10, np.float32)
    ids, gates = np.array([[0], [1]] * 10), np.ones((20, 1), np.float32)
    layer = Routing("a", 2, ids, gates, probs, np.log(probs), np.array([[False], [True]] * 10))
    log = [StepLog(np.array([1, 2, 3]), {}, (np.array([[3, 1], [1, 3], [4, 0]]),))]
    text, domains = ("x", "y") * 10, ("en", "de") * 10
    trace = written(tmp_path, RoutingSnapshot(2, (layer,), text, domains), log=log)
    found = stats(trace)["layers"][0]
    wanted = {
        "selection_frequency": [0.5, 0.5], "processed_share": [1, 0], "importance_share": [0.5, 0.5],
        "mean_probability": [0.625, 0.375], "share_gap": [-0.125, 0.125], "cv_floor": 20**-0.5,
        "drop_rate": 0.5, "fully_dropped_rate": 0.5, "executed_experts": 0.5, "max_probability": 0.625,
        "top_k_mass": 0.625, "margin": 0.25, "boundary_margin": 0.25, "hill_2": 2, "soft_dead_experts": 0,
        "vocabulary_specialisation": 1, "mean_abs_logsumexp": 0, "z_loss": 0, "max_abs_logit": np.log(4),
        "train_batches": 2, "train_max_violation_batch": 0.5, "train_max_violation_global": 0,  # step 3 came later
    }  # fmt: skip
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, abs=1e-6), name
    assert found["can_tell_dead"] is False
    assert found["domain_specialisation"] == {"de": [0, 1], "en": [1, 0]}
    assert found["domain_information"]["nats"] == pytest.approx(np.log(2))
    assert 0.9 < found["token_information"]["of_labels"] <= 1
    assert found["strongest_pair"] is None or found["strongest_pair"]["share"] == 0  # one expert a token


@settings(max_examples=12, deadline=None)
@given(st.lists(snapshots(), min_size=1, max_size=3))
def test_stats_of_anything_are_json_without_nan(recorded):
    with tempfile.TemporaryDirectory() as folder:
        trace = written(Path(folder), *recorded)
        for step in range(len(recorded)):
            found = json.loads(json.dumps(stats(trace, step), allow_nan=False))
            for layer, routing in zip(found["layers"], recorded[step].layers, strict=True):
                assert len(layer["load_share"]) == routing.num_experts
                for name, there in (
                    ("importance", routing.gate_weights_TK is not None),
                    ("mean_probability", routing.router_probs_TE is not None),
                    ("drop_rate", routing.dropped_TK is not None and (routing.expert_ids_TK >= 0).any()),
                    ("cv", (routing.expert_ids_TK >= 0).any()),
                ):
                    assert (layer[name] is not None) == there, name


def test_importing_moeviz_is_light():
    heavy = "{'numpy', 'torch', 'PySide6', 'zarr', 'pyqtgraph'}"
    code = f"import sys, moeviz; assert not {heavy} & set(sys.modules); moeviz.open_trace; assert 'torch' not in "
    subprocess.run([sys.executable, "-c", code + "sys.modules"], check=True)


def test_appending_is_cheap_beside_a_step(tmp_path):
    """A snapshot of 150 tokens through three layers: some milliseconds, chunks included."""
    rng = np.random.default_rng(0)
    layers = tuple(make_layer(rng, f"blocks.{i}", 150, 2, 8) for i in range(3))
    start = time.perf_counter()
    with TraceWriter.create(tmp_path / "t.zarr") as writer:
        for i in range(200):
            writer.append(RoutingSnapshot(i, layers, ("a",) * 150, None, {"loss": 1.0}))
    seconds = time.perf_counter() - start
    print(
        f"{seconds / 200 * 1e3:.2f} ms a snapshot, {sum(f.stat().st_size for f in tmp_path.rglob('*')) / 200:.0f} bytes"
    )
    assert seconds < 20
