"""The dense twin: equal FLOPs, the same batches, and a MoE that does not notice it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_moe_training import SMALL, advance, make_model, make_trainer, send, tiny_text
from torch.nn import functional

from moeviz.domain.history import History
from moeviz.domain.messages import Advance, Restart, SaveModel, SetDevice, SetKnobs, UserError
from moeviz.domain.settings import ROUTERS, TASKS, Settings
from moeviz.moe import trainer as trainer_module
from moeviz.moe import training
from moeviz.moe.checkpoint import load, save
from moeviz.moe.model import CharModel, flops_per_token, total_parameters
from moeviz.moe.optimiser import AdamW
from moeviz.moe.step import RUNS, StepLoss
from moeviz.moe.tasks.data import PADDING
from moeviz.moe.tasks.loading import load_task
from moeviz.moe.tasks.text import load_text
from moeviz.moe.trainer import Trainer
from moeviz.moe.twin import DenseLoss, Twin, dense_width, twin_shapes

ON = SMALL.with_values({"train.dense_twin": "on"})


@pytest.fixture(autouse=True)
def _tiny_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "load_text", lambda *_: tiny_text())


def twin_of(trainer: Trainer) -> Twin:
    assert trainer.twin is not None
    return trainer.twin


def run_of(settings: Settings, steps: int) -> tuple[Trainer, dict[str, np.ndarray]]:
    """A trainer after some steps, and all that was logged."""
    trainer = make_trainer(settings)
    for _ in range(steps):
        trainer.advance()
    assert trainer.check()
    log = trainer.flush()
    assert log is not None
    return trainer, dict(log.scalars_S)


# ---- equal compute
@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("more", [{}, {"model.shared_experts": 2, "model.shared_gate": "sigmoid", "model.experts": 6}])
def test_a_token_costs_the_twin_what_it_costs_the_moe(router: str, more: dict[str, object]) -> None:
    settings = ON.with_values({"routing.router": router, "model.expert_width": 24, **more})
    model = make_model(settings)
    twin = Twin(model, settings, False)
    d, layers, c, v = settings.model.width, settings.model.layers, settings.model.context, 16
    hidden = dense_width(model)
    by_hand = 2 * (layers * (4 * d * d + 3 * d * hidden) + v * d) + 2 * layers * c * d
    told = twin_flops(twin, tokens=1)
    assert told == by_hand
    # half a unit of the width, in each layer
    assert abs(told - flops_per_token(model)) <= 3 * d * layers


def twin_flops(twin: Twin, tokens: int) -> int:
    """The FLOPs of a forward pass, as they are logged."""
    twin._tokens.append(tokens)
    return int(twin.flush(make_model(ON), np.zeros(1))["dense_flops_per_token"][0]) * tokens


def test_the_width_by_hand() -> None:
    # topk: router E·D and k experts of 3·D·F each, over 3·D
    settings = ON.with_values({"model.experts": 6, "routing.k": 3, "model.expert_width": 32})
    assert dense_width(make_model(settings)) == round((6 + 3 * 3 * 32) / 3)
    assert dense_width(make_model(settings.with_values({"routing.router": "switch"}))) == round((6 + 3 * 32) / 3)
    # soft: 6 slots in 16 tokens
    assert dense_width(make_model(settings.with_values({"routing.router": "soft"}))) == round((6 + 3 * 32 * 6 / 16) / 3)


def test_both_start_with_the_same_weights_but_share_none() -> None:
    trainer = make_trainer(ON)
    moe, dense = (dict(model.named_parameters()) for model in (trainer.model, twin_of(trainer).model))
    shared = moe.keys() & dense.keys()
    assert {name for name in moe if ".moe." not in name} == shared
    assert all(torch.equal(moe[name], dense[name]) for name in shared)
    assert not any(moe[name].data_ptr() == dense[name].data_ptr() for name in shared)
    again = dict(twin_of(make_trainer(ON)).model.named_parameters())
    assert all(torch.equal(dense[name], again[name]) for name in dense)
    other = dict(twin_of(make_trainer(ON.with_values({"seed": 1}))).model.named_parameters())
    assert not any(torch.equal(dense[name], other[name]) for name in dense if name.endswith("proj"))


# ---- the same batches
def test_the_twin_is_a_dense_model_trained_by_hand_on_the_same_batches() -> None:
    settings = ON.with_values({"model.expert_width": 24, "train.lr": 0.01})
    trainer = make_trainer(settings)
    twin = twin_of(trainer)
    # one expert with the weight softmax(z) = 1 is a dense layer
    one = {"model.experts": 1, "routing.k": 1, "model.expert_width": dense_width(trainer.model)}
    hand = CharModel(settings.with_values({**one, "routing.noise": 0.0}), 16, torch.Generator().manual_seed(9))
    own = dict(twin.model.named_parameters())
    with torch.no_grad():
        for name, p in hand.named_parameters():
            source = own.get(name.replace(".experts.", ".ffn."))
            if source is not None:
                p.copy_(source if p.dim() == source.dim() else source[None])
    optimiser = AdamW(dict(hand.named_parameters()))
    source, losses = tiny_text().batches(settings.model.context, settings.seed), []
    for step in range(25):  # the last ones traced
        rows = source.draw(step, settings.train.batch)
        logits, _ = hand(torch.from_numpy(rows.inputs))
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(rows.targets).flatten())
        grads = torch.autograd.grad(loss, list(hand.parameters()), allow_unused=True, materialize_grads=True)
        optimiser.step(grads, settings.train.lr)
        losses.append(float(loss.detach()))
        trainer.advance()
    trainer.check()
    log = trainer.flush()
    assert log is not None
    np.testing.assert_allclose(log.scalars_S["dense_cross_entropy"], losses, rtol=2e-4)
    assert losses[-1] < losses[0] - 0.5, "it learns"


# ---- what the MoE notices
@pytest.mark.parametrize(
    "values",
    [
        {},
        {"routing.router": "relu"},
        {"routing.router": "gshard"},
        {"routing.router": "sigmoid_bias", "routing.k": 1},
        {"routing.router": "switch", "routing.capacity_factor": 0.75},
    ],
)
def test_the_moe_trains_to_the_same_bits_with_and_without_the_twin(values: dict[str, object]) -> None:
    alone, without = run_of(SMALL.with_values(values), 52)
    beside, together = run_of(ON.with_values(values), 52)
    assert alone.twin is None
    assert set(without) < set(together)
    for name in without:
        assert np.array_equal(without[name], together[name], equal_nan=True), name
    for a, b in zip(alone.model.parameters(), beside.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert np.isfinite(together["dense_heldout"]).tolist() == [step == 50 for step in range(1, 53)]


def test_held_out_is_the_twins_own() -> None:
    trainer, logged = run_of(ON, 50)
    rows = trainer.data.heldout_rows(ON.model.context, 16)
    assert rows is not None
    inputs, targets = (torch.from_numpy(part) for part in rows)
    with torch.no_grad():
        expected = float(DenseLoss(twin_of(trainer).model, False)(inputs, targets))
        both = [model(inputs)[0] for model in (trainer.model.eval(), twin_of(trainer).model)]
    assert logged["dense_heldout"][-1] == pytest.approx(expected)
    # rows of one length: the standard error of the mean of their differences
    moe, dense = (functional.cross_entropy(logits.mT, targets, reduction="none").mean(1).numpy() for logits in both)
    assert logged["heldout"][-1] - logged["dense_heldout"][-1] == pytest.approx((moe - dense).mean(), rel=1e-4)
    assert logged["heldout_gap_error"][-1] == pytest.approx((moe - dense).std(ddof=1) / 16**0.5, rel=1e-4)


def test_points_are_independent_also_in_one_row() -> None:
    settings = Settings().with_values({"task": "plane", "train.dense_twin": "on", "model.layers": 1})
    trainer = Trainer(settings, load_task("plane", ""), "cpu", "0 0")
    rows = trainer.data.heldout_rows(settings.model.context, 16)
    assert rows is not None
    inputs, targets = (torch.from_numpy(part) for part in rows)
    told = trainer._heldout(inputs, targets)
    with torch.no_grad():
        both = [model(inputs)[0] for model in (trainer.model.eval(), twin_of(trainer).model)]
    moe, dense = (functional.cross_entropy(logits.mT, targets, reduction="none").numpy() for logits in both)
    assert told["heldout_gap_error"] == pytest.approx((moe - dense).std(ddof=1) / targets.numel() ** 0.5, rel=1e-4)


# ---- what both have cost
def test_flops_follow_a_live_change_for_the_moe_only() -> None:
    session = training.session(ON)
    first = next(session)
    assert first is not None
    assert first.facts is not None
    tokens = ON.train.batch * ON.model.context
    before = advance(session, 3)
    changed = send(session, SetKnobs({"routing.k": 1, "model.experts": 8}))
    assert not changed.reset
    after = advance(session, 2)
    assert before.log is not None
    assert after.log is not None
    assert changed.facts is not None
    a, b = before.log.scalars_S, after.log.scalars_S
    per_token = first.facts.flops_per_token, changed.facts.flops_per_token
    assert a["flops_per_token"].tolist() == [per_token[0]] * 3
    assert b["flops_per_token"].tolist() == [per_token[1]] * 2
    # training costs three forward passes, and costs add up over the change
    assert a["flops"].tolist() == [3 * tokens * per_token[0] * n for n in (1, 2, 3)]
    assert b["flops"].tolist() == [3 * tokens * (3 * per_token[0] + n * per_token[1]) for n in (1, 2)]
    dense = a["dense_flops_per_token"][0]
    assert [*a["dense_flops_per_token"], *b["dense_flops_per_token"]] == [dense] * 5
    assert b["dense_flops"][-1] == 3 * tokens * 5 * dense
    assert b["parameters"][-1] == changed.facts.total_parameters
    assert b["active_parameters"][-1] == changed.facts.active_parameters
    assert b["parameters"][-1] > a["parameters"][-1]
    assert a["dense_parameters"][0] == b["dense_parameters"][0]
    # and with another batch
    send(session, SetKnobs({"train.batch": 2}))
    third = advance(session, 1)
    assert third.log is not None
    assert third.log.scalars_S["dense_flops"][-1] == 3 * (tokens * 5 + tokens // 2) * dense


@pytest.mark.parametrize(
    ("router", "capacity"),
    [("topk", 0.5), ("null", 0.0), ("null", 0.5), ("top_p", 0.0), ("gshard", 1.0), ("relu", 0.0), ("soft", 0.0)],
)
def test_flops_count_the_experts_that_ran(router: str, capacity: float) -> None:
    values = {"routing.router": router, "routing.capacity_factor": capacity, "routing.noise": 0.0}
    settings = ON.with_values({**values, "routing.second_policy": "all"})
    trainer = make_trainer(settings)
    rows = trainer.prepare().draw(0, settings.train.batch)
    _, routings = trainer.model.train()(torch.from_numpy(rows.inputs))
    ran = 0
    for layer, r in zip(trainer.model.layers, routings, strict=True):
        if r.dispatch_BCS is not None:
            ran += r.dispatch_BCS.shape[0] * r.dispatch_BCS.shape[2]
            continue
        real = (r.expert_ids_TK >= 0) & (r.expert_ids_TK < layer.router.num_ffn)
        ran += int((real if r.dropped_TK is None else real & ~r.dropped_TK).sum())
    d, f, layers, c = 16, 16, settings.model.layers, settings.model.context
    outside = 2 * 4 * d * d * layers + 2 * 16 * d + 2 * layers * c * d
    for layer in trainer.model.layers:
        outside += 2 * sum(p.numel() for p in layer.router.parameters() if p.dim() != 1)
    trainer.advance()
    trainer.check()
    log = trainer.flush()
    assert log is not None
    assert (RUNS in log.scalars_S) == (capacity > 0)
    tokens = settings.train.batch * c
    assert log.scalars_S["flops"][0] == 3 * (tokens * outside + ran * 6 * d * f)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_trains_a_twin_and_padding_costs_nothing(task: str) -> None:
    settings = ON.with_values({"task": task, "model.context": 64})
    data = load_text("") if task == "text" else load_task(task, "")
    trainer = Trainer(settings, data, "cpu", data.probe)
    rows = trainer.prepare().draw(0, settings.train.batch)
    tokens = int((rows.inputs != PADDING).sum()) if data.padded else settings.train.batch * 64
    for _ in range(12):
        trainer.advance()
    assert trainer.check()
    log = trainer.flush()
    assert log is not None
    assert np.isfinite(log.scalars_S["dense_cross_entropy"]).all()
    assert log.scalars_S["dense_cross_entropy"][-1] != log.scalars_S["dense_cross_entropy"][0]
    assert log.scalars_S["flops"][0] == 3 * tokens * flops_per_token(trainer.model)
    assert 0 < tokens <= settings.train.batch * 64
    assert data.padded == (tokens < settings.train.batch * 64)


def test_runs_are_no_part_of_a_step_without_a_capacity() -> None:
    model = make_model()
    rows = tiny_text().batches(16, 0).draw(0, 4)
    news = StepLoss(model)(*(torch.from_numpy(part) for part in rows), torch.tensor([0.01, 0.001]))[1]
    assert news.shape == (4 + 2 * 4,)


# ---- checkpoints
def test_a_resumed_run_goes_on_with_its_twin(tmp_path: Path) -> None:
    path = str(tmp_path / "model.safetensors")
    whole = training.session(ON)
    next(whole)
    advance(whole, 12)
    send(whole, SetKnobs({"routing.k": 1, "model.experts": 6}))  # the twin keeps the width of the start
    advance(whole, 20)
    send(whole, SaveModel(path))
    resumed = training.session(Settings(), checkpoint=path)
    first = next(resumed)
    assert first is not None
    assert first.step == 32
    expected, got = (advance(session, 25).log for session in (whole, resumed))
    assert expected is not None
    assert got is not None
    assert {"dense_cross_entropy", "dense_flops", "dense_heldout"} <= got.scalars_S.keys()
    for name, values in expected.scalars_S.items():
        assert np.array_equal(values, got.scalars_S[name], equal_nan=True), name


def test_a_run_that_was_trained_alone_gets_no_twin_later(tmp_path: Path) -> None:
    session = training.session(SMALL)
    next(session)
    advance(session, 5)
    assert not send(session, SetKnobs({"routing.k": 1})).reset
    update = send(session, SetKnobs({"train.dense_twin": "on"}))
    assert update.reset, "both must start together"
    assert update.step == 0
    assert update.mark == "Dense twin off → on"
    log = advance(session, 3).log
    assert log is not None
    assert np.isfinite(log.scalars_S["dense_cross_entropy"]).all()


@pytest.mark.parametrize("change", ["missing", "shape", "type", "infinite"])
def test_a_twin_that_cannot_be_used_is_refused(change: str, tmp_path: Path) -> None:
    session = training.session(ON)
    next(session)
    advance(session, 3)
    path = tmp_path / "model.safetensors"
    send(session, SaveModel(str(path)))
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert load(path).twin
    match change:
        case "missing":
            del tensors["dense.adamw.mean.head"]
        case "shape":
            tensors["dense.model.blocks.1.moe.ffn.down_proj"] = torch.zeros(16, 3)
        case "type":
            tensors["dense.flops"] = tensors["dense.flops"].float()
        case "infinite":
            tensors["dense.model.head"][0, 0] = torch.inf
    save_file(tensors, path, metadata)
    with pytest.raises(UserError):
        load(path)


def test_shapes_of_a_twin() -> None:
    twin = twin_of(make_trainer(ON))
    found = {name: tuple(tensor.shape) for name, tensor in twin.state().items()}
    model = {name: tuple(p.shape) for name, p in make_model(ON).named_parameters()}
    assert twin_shapes(model, found) == found
    assert twin_shapes(model, {}) == {}


# ---- a twin that fails
def test_a_twin_whose_loss_is_no_number_stops_and_the_moe_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Twin] = []

    def make(*given: Any) -> Twin:
        made.append(Twin(*given))
        return made[-1]

    monkeypatch.setattr(trainer_module, "Twin", make)
    alone = training.session(SMALL)
    next(alone)
    expected = advance(alone, 60).log
    session = training.session(ON)
    next(session)
    before = advance(session, 10)
    with torch.no_grad():
        made[0].model.head.fill_(torch.nan)
    update = advance(session, 10)
    assert not update.paused
    assert "dense twin" in update.notice
    assert "learning rate" in update.notice
    later = advance(session, 40)
    assert later.notice == ""
    assert expected is not None
    for log, part in ((before.log, slice(10)), (update.log, slice(10, 20)), (later.log, slice(20, 60))):
        assert log is not None
        assert np.array_equal(log.scalars_S["loss"], expected.scalars_S["loss"][part])
        dense = log.scalars_S["dense_cross_entropy"]
        assert np.isfinite(dense).all() if log is before.log else np.isnan(dense).all()
        assert "dense_heldout" in log.scalars_S, "columns of a table do not go"
        spent = log.scalars_S["dense_flops"]
        assert np.all(np.diff(spent) > 0 if log is before.log else spent == before.log.scalars_S["dense_flops"][-1])
    assert later.log is not None
    assert np.isnan(later.log.scalars_S["dense_heldout"]).all()
    # what is saved is the MoE, and what is restarted has a twin again
    path = str(tmp_path / "model.safetensors")
    assert send(session, SaveModel(path)).saved == path
    assert not load(path).twin
    resumed = training.session(Settings(), checkpoint=path)
    next(resumed)
    log = advance(resumed, 1).log
    assert log is not None
    assert "dense_cross_entropy" not in log.scalars_S
    assert send(session, Restart()).reset
    log = advance(session, 2).log
    assert log is not None
    assert np.isfinite(log.scalars_S["dense_cross_entropy"]).all()


@pytest.mark.parametrize("fails", [3, 12])  # eagerly, and where it has been traced
def test_memory_that_runs_out_in_the_twin_trains_nothing_twice(fails: int, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = training.session(ON)
    next(undisturbed)
    expected = advance(undisturbed, 20).log
    made: list[Twin] = []

    def make(*given: Any) -> Twin:
        made.append(Twin(*given))
        return made[-1]

    monkeypatch.setattr(trainer_module, "Twin", make)
    session = training.session(ON)
    next(session)
    before = advance(session, fails)
    whole = made[0]._train

    def full(*_: object) -> torch.Tensor:
        made[0]._train = whole
        raise torch.OutOfMemoryError("tried to allocate 1 PB")

    made[0]._train = full  # type: ignore[assignment]
    failed = advance(session, 1)
    assert failed.paused
    assert "not enough memory" in failed.notice
    assert failed.step == fails
    after = advance(session, 20 - fails)
    assert after.step == 20
    assert expected is not None
    assert before.log is not None
    assert after.log is not None
    for name, values in expected.scalars_S.items():
        got = np.concatenate([before.log.scalars_S[name], after.log.scalars_S[name]])
        assert np.array_equal(values, got, equal_nan=True), name


def test_a_moe_that_fails_leaves_its_twin_alone() -> None:
    trainer = make_trainer(ON)
    for _ in range(20):
        trainer.advance()
    assert trainer.check()
    with torch.no_grad():
        trainer.model.head.fill_(torch.nan)
    trainer.advance()
    assert not trainer.check()
    log = trainer.flush()
    assert log is not None
    assert np.isnan(log.scalars_S["loss"][-1])
    assert np.isfinite(log.scalars_S["dense_cross_entropy"]).all()
    assert not twin_of(trainer).stopped


def test_the_twin_moves_along_with_the_model() -> None:
    session = training.session(ON)
    next(session)
    advance(session, 3)
    assert "device cpu" in send(session, SetDevice("cpu")).mark
    log = session.send(Advance())
    assert log is not None
    assert log.log is not None
    assert np.isfinite(log.log.scalars_S["dense_cross_entropy"]).all()


def test_a_thinned_history_keeps_the_held_out_of_both() -> None:
    _, logged = run_of(ON, 50)
    assert total_parameters(make_model(ON)) == logged["parameters"][0]
    history = History()
    trainer = make_trainer(ON)
    for _ in range(100):
        trainer.advance()
    trainer.check()
    log = trainer.flush()
    assert log is not None
    history.extend(log)
    assert np.isfinite(history.scalar("dense_heldout")).sum() == 2


# ---- opening
@pytest.mark.parametrize("moments", [True, False])
def test_opening_a_large_model_tells_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moments: bool
) -> None:
    trainer, _ = run_of(ON, 3)
    given = trainer.settings, trainer.data.vocabulary, 3, trainer.model, trainer.optimiser if moments else None
    path = str(save(tmp_path / "m.safetensors", *given, trainer.counts(), twin_of(trainer).state()))
    told: list[tuple[int, int]] = []

    def note(done: int, total: int) -> None:
        told.append((done, total))

    training._opened(path, "cpu", None, data_of=lambda settings: trainer.data, report=note)
    assert told == [], "a small one opens before it could be read"
    monkeypatch.setattr("moeviz.moe.checkpoint.MANY_BYTES", 0)
    again, _ = training._opened(path, "cpu", None, data_of=lambda settings: trainer.data, report=note)
    total = 7 * len(list(trainer.model.parameters()))
    assert told[-1] == (total, total)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert {done for done, _ in told} >= set(range(1, total + 1))
    for a, b in zip(trainer.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)

    def cancel(done: int, total: int) -> None:
        raise UserError("cancelled")

    with pytest.raises(UserError, match="cancelled"):
        training._opened(path, "cpu", None, data_of=lambda settings: trainer.data, report=cancel)
