"""The model, its step, and whole sessions on a tiny text."""

import gc
import json
import mmap
import pickle
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from moeviz.domain.messages import (
    Advance,
    Command,
    OpenModel,
    Read,
    Restart,
    SaveModel,
    Session,
    SetDevice,
    SetKnobs,
    SetProbe,
    Show,
    Survey,
    Update,
    UserError,
)
from moeviz.domain.metrics import expert_counts
from moeviz.domain.settings import ROUTERS, Settings, Value
from moeviz.moe import training
from moeviz.moe.batches import Batches
from moeviz.moe.checkpoint import load, save
from moeviz.moe.model import CharModel, active_parameters, flops_per_token, total_parameters
from moeviz.moe.optimiser import AdamW
from moeviz.moe.resize import plan, resize_experts
from moeviz.moe.step import Look, StepLoss
from moeviz.moe.tasks.generate import generate
from moeviz.moe.tasks.text import Parts, TextData, encode
from moeviz.moe.traced import Traced, trace
from moeviz.moe.trainer import CHECK_EVERY, Trainer

SMALL = Settings().with_values(
    {
        "model.experts": 4,
        "model.layers": 2,
        "model.width": 16,
        "model.expert_width": 16,
        "model.context": 16,
        "train.batch": 4,
        "routing.noise": 0.5,
    }
)


def tiny_text(notes: tuple[str, ...] = ()) -> TextData:
    """Two languages: one counts up, one repeats a word."""
    vocabulary = " 0123456789abcde"

    def read() -> Parts:
        texts = ("0123456789" * 40, "abc de " * 50), ("0123456789" * 4, "abc de " * 5)
        return Parts(("digits", "letters"), *(tuple(encode(text, vocabulary) for text in part) for part in texts))

    return TextData(vocabulary, "123 abc 456 ?", read, notes)


def load_tiny(path: str = "", report: object = None) -> TextData:
    if path:
        raise UserError(f"{path} cannot be read.")
    return tiny_text()


@pytest.fixture(autouse=True)
def _tiny_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "load_text", load_tiny)


@pytest.fixture
def run() -> Iterator[Session]:
    session = training.session(SMALL)
    first = next(session)
    assert first is not None
    assert first.step == 0
    assert first.log is None
    yield session
    session.close()


def make_model(settings: Settings = SMALL, vocabulary: int = 16) -> CharModel:
    return CharModel(settings, vocabulary, torch.Generator().manual_seed(0)).eval()


def make_trainer(settings: Settings = SMALL) -> Trainer:
    return Trainer(settings, tiny_text(), "cpu", "abc")


def next_update(session: Session) -> Update:
    """What a session tells of itself before any command."""
    update = next(session)
    assert update is not None
    return update


def advance(session: Session, steps: int) -> Update:
    """Train some steps; everything since the last update comes with the last one."""
    for _ in range(steps - 1):
        assert session.send(Advance(snapshot=False)) is None
    update = session.send(Advance(snapshot=True))
    assert update is not None
    return update


def send(session: Session, command: object) -> Update:
    update = session.send(command)  # type: ignore[arg-type]
    assert update is not None
    return update


# ---- model
def test_model_is_causal_and_returns_its_routing() -> None:
    model = make_model()
    tokens = torch.arange(16).view(1, 16)
    logits, routings = model(tokens)
    assert logits.shape == (1, 16, 16)
    assert [r.expert_ids_TK.shape for r in routings] == [(16, 2)] * 2
    changed = tokens.clone()
    changed[0, 10:] = 0
    torch.testing.assert_close(model(changed)[0][:, :10], logits[:, :10])
    assert not torch.equal(model(changed)[0][:, 10:], logits[:, 10:])


def test_attention_equals_the_formula() -> None:
    attention = make_model(SMALL.with_values({"model.width": 32})).blocks[0].attention
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1))
    q, k, v = (x @ attention.qkv.T).view(2, 5, 3, 2, 16).unbind(2)
    scores = torch.einsum("bthd,bshd->bhts", q, k) / 4
    weights = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf).softmax(-1)
    expected = torch.einsum("bhts,bshd->bthd", weights, v).reshape(2, 5, 32) @ attention.out.T
    torch.testing.assert_close(attention(x), expected)


def test_parameters_and_flops_by_hand() -> None:
    d, f, e, k, layers, v, c = 16, 16, 4, 2, 2, 16, 16
    model = make_model()
    rest = layers * (2 * d + 4 * d * d + e * d) + d + 2 * v * d + c * d
    assert total_parameters(model) == rest + layers * e * 3 * d * f
    assert active_parameters(model) == rest + layers * k * 3 * d * f
    assert flops_per_token(model) == 2 * (layers * (4 * d * d + e * d + k * 3 * d * f) + v * d) + 2 * layers * c * d


def test_same_seed_same_model_and_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    a, b = make_model(), make_model()
    assert all(map(torch.equal, a.parameters(), b.parameters()))
    assert torch.equal(before, torch.get_rng_state())


# ---- the step
def test_adamw_equals_torch() -> None:
    ours, theirs = make_model(), make_model()
    optimiser = AdamW(dict(ours.named_parameters()))
    oracle = torch.optim.AdamW(theirs.parameters(), lr=0.01, betas=(0.9, 0.99), weight_decay=0.01)
    for seed in range(3):
        for p in theirs.parameters():
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed))
        grads = [p.grad.clone() for p in theirs.parameters()]
        optimiser.step(grads, 0.01)
        oracle.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_adamw_takes_gradients_of_any_layout() -> None:
    """The fused update reads memory as it lies; a product with a transposed weight has a transposed gradient."""
    ours, theirs = torch.ones(3, 2), torch.nn.Parameter(torch.ones(3, 2))
    grad = (torch.arange(6.0).view(2, 3) - 2.5).t()
    theirs.grad = grad
    AdamW({"p": ours}).step([grad], 0.1)
    torch.optim.AdamW([theirs], lr=0.1, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.01).step()
    torch.testing.assert_close(ours, theirs.detach())


@pytest.mark.parametrize("router", ["topk", "topk_raw", "noisy_topk", "dense"])
def test_traced_step_equals_eager_bit_for_bit(router: str) -> None:
    model = make_model(SMALL.with_values({"routing.router": router}))
    module = StepLoss(model)
    generator = torch.Generator().manual_seed(0)

    def inputs() -> tuple[torch.Tensor, ...]:
        tokens = torch.randint(16, (4, 17), generator=generator)
        draws = torch.randn(2, 64, 4, generator=generator)
        return tokens[:, :-1], tokens[:, 1:], torch.rand(2, generator=generator), draws

    traced = trace(module, inputs())
    for temperature in (1.0, 0.5):  # knobs act on a trace that is there already
        for layer in model.layers:
            layer.router.temperature = temperature
            layer.router.noise = temperature / 3
        args = inputs()
        (loss, news), (loss_t, news_t) = module(*args), traced(*args)
        assert torch.equal(loss, loss_t)
        assert torch.equal(news, news_t)
        parameters = list(model.parameters())
        for g, g_t in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(loss_t, parameters), strict=True):
            assert torch.equal(g, g_t)


def test_trace_comes_after_some_calls_and_starts_over_with_another_key() -> None:
    model = make_model()
    traced = Traced(lambda: Look(model), eager_calls=2)
    tokens = torch.zeros(1, 5, dtype=torch.int64)
    states = []
    for key in "aaaabbb":
        traced(key, tokens)
        states.append(traced.is_traced)
    assert states == [False, False, True, True, False, False, True]
    traced.enabled = False
    traced("c", tokens)


def test_failing_trace_goes_on_eagerly(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no TorchScript any more")

    monkeypatch.setattr(torch._C, "_create_graph_by_tracing", fails)
    traced = Traced(lambda: Look(make_model()), eager_calls=0)
    with pytest.warns(UserWarning, match="without a trace"):
        assert traced("a", torch.zeros(1, 5, dtype=torch.int64)).shape == (2, 5, 12)
    traced("a", torch.zeros(1, 5, dtype=torch.int64))
    assert not traced.is_traced


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the resident size from /proc")
def test_dropped_trace_gives_its_memory_back() -> None:
    model = make_model()

    def resident_after(traces: int) -> float:
        """MiB. No other shapes in each, only another trace: as when a knob is turned to and fro."""
        for _ in range(traces):
            trace(Look(model), (torch.zeros(1, 5, dtype=torch.int64),))
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE / 2**20

    before = resident_after(5)
    assert resident_after(25) - before < 5, "MiB; torch.jit.trace would keep some 50"


def test_batches_are_windows_of_one_domain_and_depend_on_seed_and_step_only() -> None:
    domains = (np.arange(100, 150), np.arange(200, 220), np.arange(3))
    batches = Batches(domains, 8, seed=1)
    drawn = [batches.draw(step, 16) for step in range(20)]
    rows = np.concatenate([np.hstack([rows.inputs, rows.targets[:, -1:]]) for rows in drawn])
    assert (np.diff(rows) == 1).all()
    assert set(rows[:, 0] // 100) == {1, 2}
    assert 0.35 < (rows[:, 0] >= 200).mean() < 0.65, "domains are drawn evenly, not by length"
    assert rows.max() == 219
    assert (rows[:, 0] == 100).any()
    assert np.array_equal(Batches(domains, 8, seed=1).draw(13, 16), batches.draw(13, 16))
    assert not np.array_equal(Batches(domains, 8, seed=2).draw(13, 16), batches.draw(13, 16))
    with pytest.raises(UserError, match="too short"):
        Batches(domains, 200, seed=0)


# ---- resize
def test_plan() -> None:
    grown = plan(np.array([5, 9, 1]), 7)
    assert grown.sources == (0, 1, 2, 1, 0, 2, 1)
    assert grown.copied == (1, 0, 2, 1)
    shrunk = plan(np.array([5, 9, 1, 1]), 2)
    assert shrunk.sources == (0, 1)
    assert shrunk.dropped == (2, 3)


def test_dropping_an_unused_expert_keeps_outputs() -> None:
    torch.set_num_threads(1)  # as a session does; more threads share out experts, with other last bits for another E
    model = make_model(SMALL.with_values({"model.experts": 5}))
    optimiser = AdamW(dict(model.named_parameters()))
    tokens = torch.arange(16).view(1, 16)
    for layer in model.layers:  # scores s, 0, -s, 2s, -2s: expert 1 is never among the best two
        row = layer.router.weight[0].detach().clone()
        with torch.no_grad():
            layer.router.weight.copy_(torch.stack([row, 0 * row, -row, 2 * row, -2 * row]))
    logits, routings = model(tokens)
    assert not any((r.expert_ids_TK == 1).any() for r in routings)
    before = dict(model.named_parameters())
    plans = resize_experts(model, optimiser, [np.array([3, 0, 2, 1, 1])] * 2, 4)
    assert [p.dropped for p in plans] == [(1,), (1,)]
    after = dict(model.named_parameters())
    assert torch.equal(after["blocks.0.moe.router.weight"], before["blocks.0.moe.router.weight"][[0, 2, 3, 4]])
    for name, p in after.items():
        assert optimiser.mean[name].shape == optimiser.square[name].shape == p.shape
    new_logits, new_routings = model(tokens)
    assert torch.equal(new_logits, logits)
    for old, new in zip(routings, new_routings, strict=True):
        assert torch.equal(old.gate_weights_TK, new.gate_weights_TK)


def test_doubling_all_experts_and_k_nearly_keeps_outputs() -> None:
    model = make_model()
    optimiser = AdamW(dict(model.named_parameters()))
    for name, p in model.named_parameters():
        optimiser.mean[name] = torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
    mean = optimiser.mean["blocks.1.moe.experts.down_proj"]
    tokens = torch.arange(16).view(1, 16)
    logits, _ = model(tokens)
    old_weight = model.layers[0].router.weight
    plans = resize_experts(model, optimiser, [np.array([1, 2, 3, 4])] * 2, 8, torch.Generator().manual_seed(0))
    assert plans[0].copied == (3, 2, 1, 0)
    weight = model.layers[0].router.weight
    assert torch.equal(weight[:4], old_weight)
    noise = (weight[4:] - old_weight[[3, 2, 1, 0]]).norm(dim=1) / old_weight[[3, 2, 1, 0]].norm(dim=1)
    assert ((noise > 0.003) & (noise < 0.03)).all()
    assert torch.equal(optimiser.mean["blocks.1.moe.experts.down_proj"], mean[[0, 1, 2, 3, 3, 2, 1, 0]])
    for layer in model.layers:
        layer.router.k = 4
    torch.testing.assert_close(model(tokens)[0], logits, atol=2e-3, rtol=0)


# ---- sessions
def test_advance_logs_every_step(run: Session) -> None:
    update = advance(run, 60)
    log, snapshot = update.log, update.snapshot
    assert update.step == snapshot.step == 60
    assert log.steps_S.tolist() == list(range(1, 61))
    assert set(log.scalars_S) == {"loss", "cross_entropy", "balance", "z", "heldout"}
    assert np.flatnonzero(np.isfinite(log.scalars_S["heldout"])).tolist() == [49]
    assert log.scalars_S["loss"][-5:].mean() < log.scalars_S["loss"][:5].mean() - 0.5
    assert [c.shape for c in log.counts_SE] == [(60, 4)] * 2
    assert all((c.sum(1) == 4 * 16 * 2).all() for c in log.counts_SE)
    scalars = log.scalars_S
    total = scalars["cross_entropy"] + 0.01 * scalars["balance"] + 0.001 * scalars["z"]
    np.testing.assert_allclose(scalars["loss"], total, rtol=1e-5)
    assert snapshot.scalars["loss"] == scalars["loss"][-1]
    assert [c.tolist() for c in snapshot.train_counts_LE] == [c[-1].tolist() for c in log.counts_SE]
    assert "".join(snapshot.tokens) == tiny_text().probe
    assert len(snapshot.layers) == 2
    for routing in snapshot.layers:
        assert routing.expert_ids_TK.shape == (13, 2)
        assert expert_counts(routing).sum() == 26
        np.testing.assert_allclose(routing.gate_weights_TK.sum(1), 1, rtol=1e-6)
        np.testing.assert_allclose(routing.router_probs_TE.sum(1), 1, rtol=1e-6)
    assert update.timings["step"] > 0
    assert send(run, Show()).log is None


def test_probe_is_without_noise_and_matches_the_model(run: Session) -> None:
    a, b = send(run, Show()).snapshot, send(run, Show()).snapshot
    assert np.array_equal(a.layers[1].gate_weights_TK, b.layers[1].gate_weights_TK)
    text = tiny_text()
    long = "abc de 0123" * 3  # 33 characters, contexts of 16
    shown = send(run, SetProbe(long)).snapshot
    assert shown.num_tokens == 33
    _, routings = make_model()(torch.from_numpy(text.encode(long))[None, :16])
    np.testing.assert_allclose(shown.layers[1].router_probs_TE[:16], routings[1].probs_TE.detach(), rtol=1e-4)
    assert "empty" in send(run, SetProbe("")).notice


def test_another_text_is_read_without_touching_the_run(run: Session, tmp_path: Path) -> None:
    update = send(run, Read("abc de 0123" * 3))  # 33 characters, contexts of 16
    assert update.read is not None
    assert "".join(update.read.tokens) == "abc de 0123" * 3
    assert "".join(update.snapshot.tokens) == tiny_text().probe
    assert (update.read.step, update.read.train_counts_LE, update.reset) == (update.snapshot.step, (), False)
    same = send(run, SetProbe("abc de 0123" * 3)).snapshot
    for read, shown in zip(update.read.layers, same.layers, strict=True):
        np.testing.assert_array_equal(read.expert_ids_TK, shown.expert_ids_TK)
        np.testing.assert_allclose(read.gate_weights_TK, shown.gate_weights_TK, rtol=1e-6)
    refused = send(run, Read(""))
    assert "empty" in refused.notice
    assert refused.read is None
    path = send(run, SaveModel(str(tmp_path / "m.safetensors"))).saved
    of_file = training.read_checkpoint(path, "abc de 0123" * 3)
    np.testing.assert_array_equal(of_file.layers[1].expert_ids_TK, update.read.layers[1].expert_ids_TK)
    assert "".join(training.read_checkpoint(path, "").tokens) == tiny_text().probe


def test_reading_changes_no_later_step() -> None:
    plain, read = (training.session(SMALL) for _ in range(2))
    for session in (plain, read):
        next(session)
    for _ in range(15):  # long enough for the step and the look to be traced
        a, b = plain.send(Advance()), read.send(Advance())
        read.send(Read("ab"))
        assert a.log.scalars_S["loss"][-1] == b.log.scalars_S["loss"][-1]
    plain.close()
    read.close()


def test_live_knobs_act_and_are_marked(run: Session) -> None:
    advance(run, 12)
    update = send(run, SetKnobs({"routing.k": 3}))
    assert update.mark == "k 2 → 3"
    assert not update.reset
    assert update.snapshot.layers[0].k == 3
    assert update.facts.active_parameters > 0
    assert (advance(run, 1).log.counts_SE[0].sum(1) == 4 * 16 * 3).all()
    assert run.send(Advance(snapshot=False)) is None
    update = send(run, SetKnobs({"model.experts": 6, "routing.temperature": 0.5}))
    assert update.mark == "Experts 4 → 6, Temperature 1 → 0.5"
    assert update.log.counts_SE[0].shape == (1, 4), "steps before the change have the old sizes"
    assert update.snapshot.layers[0].num_experts == 6
    assert advance(run, 1).log.counts_SE[0].shape == (1, 6)
    for router in ("noisy_topk", "dense", "topk_raw", "topk"):
        mark = send(run, SetKnobs({"routing.router": router})).mark
        assert mark.endswith(f"→ {router}")
        update = advance(run, 12)
        assert update.settings.routing.router == router
        assert update.snapshot.layers[0].k == (6 if router == "dense" else 3)
    values = {"balance.loss": "none", "train.lr": 0.0, "train.batch": 2, "routing.noise": 0, "model.experts": 3}
    assert send(run, SetKnobs(values)).settings.model.experts == 3
    log = advance(run, 12).log
    assert (log.counts_SE[0].sum(1) == 2 * 16 * 3).all()
    np.testing.assert_allclose(
        log.scalars_S["loss"], log.scalars_S["cross_entropy"] + 0.001 * log.scalars_S["z"], rtol=1e-5
    )


def test_learning_rate_zero_stands_still(run: Session) -> None:
    send(run, SetKnobs({"train.lr": 0}))
    before = send(run, Show()).snapshot
    after = advance(run, 3).snapshot
    assert np.array_equal(before.layers[1].router_logits_TE, after.layers[1].router_logits_TE)


def test_notes_on_the_data_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "load_text", lambda *_: tiny_text(notes=("One file was left out.",)))
    assert next(training.session(SMALL)).notice == "One file was left out."


def test_other_knobs_rebuild(run: Session) -> None:
    advance(run, 3)
    update = send(run, SetKnobs({"model.width": 32}))
    assert update.reset
    assert update.step == 0
    assert update.mark == "Width 16 → 32"
    assert send(run, Restart()).reset


def test_mistakes_do_not_end_the_session(run: Session, tmp_path: Path) -> None:
    advance(run, 2)
    for command, words in [
        (SetKnobs({"routing.k": 9}), "routing.k"),
        (SetKnobs({"nosuch": 1}), "nosuch"),
        (SetKnobs({"data.path": "/nowhere"}), "/nowhere"),
        (SetDevice("cuda:99"), "cuda:99"),
        (SetDevice("nosuch"), "nosuch"),
        (OpenModel(str(tmp_path / "none.safetensors")), "No such file"),
        (SaveModel(str(tmp_path / "no" / "folder" / "x.safetensors")), "No such file"),
    ]:
        update = send(run, command)
        assert words in update.notice
        assert update.settings == SMALL
        assert not update.reset
    assert advance(run, 1).step == 3
    send(run, SetDevice("cpu"))
    assert advance(run, 1).step == 4


@pytest.mark.parametrize(("command", "where"), [(Survey(), "survey"), (Read("abc"), "read")])
def test_a_look_without_memory_is_told_and_pauses_nothing(
    run: Session, command: Command, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> Update:
        raise torch.OutOfMemoryError("tried to allocate 1 PB")

    advance(run, 2)
    monkeypatch.setattr(training._Run, where, full)
    update = send(run, command)
    assert "memory" in update.notice
    assert not update.paused
    assert advance(run, 1).step == 3


def test_out_of_memory_pauses_and_keeps_the_model(run: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    before = advance(run, 2).snapshot

    def fails(*args: object) -> None:
        raise torch.OutOfMemoryError("tried to allocate 1 PB")

    with monkeypatch.context() as patch:
        patch.setattr(Traced, "__call__", fails)
        update = send(run, Advance())
    assert update.paused
    assert "memory" in update.notice
    after = send(run, Show())
    assert after.step == 2
    assert np.array_equal(before.layers[1].router_logits_TE, after.snapshot.layers[1].router_logits_TE)
    advance(run, 1)


def test_other_defects_are_not_hidden(run: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(Traced, "__call__", fails)
    with pytest.raises(RuntimeError, match="shapes"):
        run.send(Advance())


def test_loss_that_is_no_number_brings_back_the_last_good_state() -> None:
    trainer = make_trainer()
    for _ in range(CHECK_EVERY):
        trainer.advance()
    assert trainer.due
    assert trainer.check()
    good = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.advance()
    with torch.no_grad():
        trainer.model.head.fill_(torch.nan)
    trainer.advance()
    assert not trainer.check()
    assert all(map(torch.equal, good, trainer.model.parameters()))
    log = trainer.flush()
    assert np.isnan(log.scalars_S["loss"][-1])
    trainer.advance()
    assert trainer.check()
    assert np.isfinite(trainer.flush().scalars_S["loss"]).all()


def test_a_run_that_went_back_goes_on_from_its_file_as_if_it_were_not_saved(tmp_path: Path) -> None:
    """The moments went back, the step did not: the file must not be taken for one without moments."""
    whole = training.session(SMALL)
    next(whole)
    advance(whole, 5)
    with torch.no_grad():
        whole.gi_frame.f_locals["run"].trainer.model.head.fill_(torch.nan)
    assert "last good state is back" in advance(whole, 1).notice
    advance(whole, 5)
    send(whole, SaveModel(str(tmp_path)))
    again = training.session(SMALL, checkpoint=str(tmp_path))
    next(again)
    assert np.array_equal(history(again, 10), history(whole, 10))


def test_session_says_which_knob_may_be_the_cause(run: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    send(run, SetKnobs({"train.lr": 0.1}))
    real = AdamW.step

    def breaks(self: AdamW, grads: list[torch.Tensor], lr: float) -> None:
        real(self, [g * torch.nan for g in grads], lr)

    with monkeypatch.context() as patch:
        patch.setattr(AdamW, "step", breaks)
        updates = [run.send(Advance(snapshot=False)) for _ in range(CHECK_EVERY)]
    assert updates[:-1] == [None] * (CHECK_EVERY - 1)
    update = updates[-1]
    assert update.paused
    assert "learning rate" in update.notice
    assert np.isfinite(update.snapshot.layers[0].router_probs_TE).all()
    assert np.isfinite(advance(run, 1).log.scalars_S["loss"]).all()


# ---- determinism and checkpoints
def history(session: Session, steps: int) -> NDArray[np.float64]:
    log = advance(session, steps).log
    return np.stack([log.scalars_S[name] for name in ("loss", "balance", "z")])


def test_same_seed_same_bits() -> None:
    runs = []
    for _ in range(2):
        session = training.session(SMALL)
        next(session)
        runs.append(history(session, 30))
    assert np.array_equal(*runs)


def test_traced_run_equals_eager_run(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    for way in ("traced", "eager"):
        if way == "eager":
            monkeypatch.setattr(Traced, "_trace", lambda self, inputs: None)
        session = training.session(SMALL)
        next(session)
        runs.append(history(session, 40))
    assert np.array_equal(*runs)


def test_looking_changes_nothing() -> None:
    runs = []
    for every in (1, 30):
        session = training.session(SMALL)
        next(session)
        runs.append(np.concatenate([history(session, every) for _ in range(30 // every)], axis=1))
    assert np.array_equal(*runs)


def test_resumed_run_equals_the_uninterrupted_one(tmp_path: Path) -> None:
    path = str(tmp_path / "model.safetensors")
    whole = training.session(SMALL)
    next(whole)
    advance(whole, 17)
    send(whole, SetKnobs({"model.experts": 6, "routing.router": "noisy_topk"}))
    advance(whole, 15)
    update = send(whole, SaveModel(path))
    assert update.saved == path
    resumed = training.session(Settings(), checkpoint=path)
    first = next(resumed)
    assert first.step == 32
    assert first.settings == update.settings
    for old, new in zip(update.snapshot.layers, first.snapshot.layers, strict=True):
        assert np.array_equal(old.router_logits_TE, new.router_logits_TE)
    other = training.session(SMALL)
    next(other)
    assert send(other, OpenModel(str(tmp_path))).reset
    expected = history(whole, 25)
    assert np.array_equal(expected, history(resumed, 25))
    assert np.array_equal(expected, history(other, 25))


def test_counts_that_no_step_has_counted_are_saved_as_unknown(tmp_path: Path, run: Session) -> None:
    advance(run, 3)
    counted = load(send(run, SaveModel(str(tmp_path / "counted.st"))).saved)
    assert (counted.counts_LE.sum(dim=1) == 4 * 16 * 2).all()
    send(run, SetKnobs({"model.experts": 6}))
    resized = send(run, SaveModel(str(tmp_path / "resized.st"))).saved
    assert (load(resized).counts_LE == -1).all()
    again = training.session(Settings(), checkpoint=resized)
    assert next(again).snapshot.train_counts_LE == ()
    assert send(again, SetKnobs({"model.experts": 4})).settings.model.experts == 4
    assert advance(again, 1).snapshot.train_counts_LE[0].sum() == 4 * 16 * 2


def test_checkpoint_without_moments_or_its_own_data_opens(tmp_path: Path) -> None:
    trainer = make_trainer(SMALL.with_values({"data.path": "/gone"}))
    path = save(
        tmp_path, trainer.settings, "abc" + tiny_text().vocabulary[:11] + "xy", 7, trainer.model, None, trainer.counts()
    )
    update = next(training.session(Settings(), checkpoint=str(path)))
    assert update.step == 7
    assert "built-in" in update.notice
    assert list(tmp_path.iterdir()) == [path], "no draft is left"


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("capacity", [0.0, 1.0])
def test_text_is_only_written_where_the_whole_routes_as_its_beginning_did(
    router: str, capacity: float, tmp_path: Path
) -> None:
    settings = SMALL.with_values({"routing.router": router, "routing.capacity_factor": capacity})
    trainer = make_trainer(settings)
    trainer.advance()
    saved = save(tmp_path, settings, tiny_text().vocabulary, 1, trainer.model, None, trainer.counts())
    dropping = capacity > 0 and settings.applies("routing.capacity_factor")
    if dropping or router in ("expert_choice", "soft"):
        with pytest.raises(UserError, match="capacity_factor=0" if dropping else "as it is written"):
            generate(saved, "abc", 8, settings)
        return
    text = generate(saved, "abc", 8, settings)
    assert len(text) == 11
    trainer.set_probe(text)
    whole = trainer.snapshot().layers
    trainer.set_probe(text[:5])
    for end, all_of_it in zip(trainer.snapshot().layers, whole, strict=True):
        assert np.array_equal(end.expert_ids_TK, all_of_it.expert_ids_TK[:5])


def test_text_is_written_with_the_settings_that_are_asked_for(tmp_path: Path) -> None:
    settings = SMALL.with_values({"routing.router": "top_p", "routing.top_p": 0.01, "routing.noise": 0.0})
    trainer = make_trainer(settings)
    with torch.no_grad():
        for layer in trainer.model.layers:
            layer.experts.down_proj *= 100  # so that the number of experts is seen in what is written
    saved = save(tmp_path, settings, tiny_text().vocabulary, 1, trainer.model, None, trainer.counts())
    all_experts = settings.with_values({"routing.top_p": 1.0})
    trainer.change(all_experts)
    other = save(tmp_path / "other.st", all_experts, tiny_text().vocabulary, 1, trainer.model, None, trainer.counts())
    assert generate(saved, "abc", 13, all_experts, seed=1) == generate(other, "abc", 13, all_experts, seed=1)
    assert generate(saved, "abc", 13, settings, seed=1) != generate(saved, "abc", 13, all_experts, seed=1)
    nulls = SMALL.with_values({"routing.router": "null"})
    trainer = make_trainer(nulls)
    saved = save(tmp_path / "null.st", nulls, tiny_text().vocabulary, 0, trainer.model, None, trainer.counts())
    with pytest.raises(UserError, match=r"another routing\.zero_experts"):
        generate(saved, "abc", 3, nulls.with_values({"routing.zero_experts": 0}))


def test_checkpoints_that_cannot_be_used(tmp_path: Path) -> None:
    trainer = make_trainer()
    good = save(tmp_path / "good.safetensors", SMALL, tiny_text().vocabulary, 0, trainer.model, None, trainer.counts())
    meta = {
        "format": "moeviz checkpoint",
        "version": "1",
        "settings": SMALL.to_json(),
        "vocabulary": json.dumps(tiny_text().vocabulary),
        "step": "0",
    }
    tensors = load_file(good)

    def variant(name: str, metadata: dict[str, str] | None, **changed: torch.Tensor | None) -> Path:
        path = tmp_path / f"{name}.safetensors"
        save_file({k: v for k, v in (tensors | changed).items() if v is not None}, path, metadata)
        return path

    assert load(variant("same", meta)).step == 0
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps({"a": 1}))
    torch.save({"a": 1}, tmp_path / "torch.pt")
    (tmp_path / "cut.safetensors").write_bytes(good.read_bytes()[:-10])
    (tmp_path / "text.txt").write_text("hello, this is a text")
    (tmp_path / "empty").write_bytes(b"")
    huge = json.dumps(json.loads(SMALL.to_json()) | {"model.width": 256, "model.expert_width": 1024})
    for path, words in [
        (tmp_path / "pickle.pt", "pickle"),
        (tmp_path / "torch.pt", "pickle"),
        (tmp_path / "cut.safetensors", "damaged"),
        (tmp_path / "text.txt", "no safetensors"),
        (tmp_path / "empty", "no safetensors"),
        (tmp_path / "nowhere", "No such file"),
        (variant("foreign", None), "not a model"),
        (variant("new", meta | {"version": "2"}), "version 2"),
        (variant("bad", meta | {"settings": '{"model.experts": 1000}'}), "model.experts"),
        (variant("huge", meta | {"settings": huge}), "does not fit"),
        (variant("missing", meta, train_counts=None), "does not fit"),
        (variant("extra", meta, extra=torch.zeros(1)), "does not fit"),
        (variant("nan", meta, **{"model.head": torch.full((16, 16), torch.nan)}), "damaged"),
        (variant("vocabulary", meta | {"vocabulary": '"aa"'}), "vocabulary"),
        (variant("step", meta | {"step": "x"}), "cannot be used"),
    ]:
        with pytest.raises(UserError, match=words) as error:
            load(path)
        assert "\n" not in str(error.value)


def test_a_head_of_any_length_is_no_pickle(tmp_path: Path) -> None:
    """A pickle begins with 0x80; so does the length of a head of 0x..80 bytes."""
    trainer, firsts = make_trainer(), set()
    for length in range(0, 256, 8):
        settings = SMALL.with_values({"data.path": "x" * length})
        path = save(tmp_path / "m.st", settings, tiny_text().vocabulary, 0, trainer.model, None, trainer.counts())
        firsts.add(path.read_bytes()[0])
        assert load(path).settings == settings
    assert 0x80 in firsts


@pytest.mark.parametrize(
    "values", [{"model.experts": 1, "routing.k": 1}, {"routing.k": 4}, {"routing.router": "dense"}]
)
def test_sizes_at_the_edge(values: dict[str, object]) -> None:
    session = training.session(SMALL.with_values(values))
    next(session)
    assert np.isfinite(advance(session, 12).log.scalars_S["loss"]).all()


@pytest.mark.cuda
def test_device_can_change_while_training(run: Session) -> None:
    advance(run, 12)
    for device in ("cuda", "cpu"):
        update = send(run, SetDevice(device))
        assert update.facts.device == device
        assert np.isfinite(advance(run, 15).log.scalars_S["loss"]).all()


def test_no_compiler_is_imported() -> None:
    code = (
        "import sys, moeviz.moe.training as t; from moeviz.domain.settings import Settings;"
        "from moeviz.domain.messages import Advance; s = t.session(Settings()); next(s);"
        "[s.send(Advance(snapshot=False)) for _ in range(12)]; assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_move_that_fails_half_way_leaves_a_model_that_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer()
    trainer.advance()

    def fail(device: str) -> None:
        raise torch.OutOfMemoryError("tried to allocate 1 PB")

    def moved_and_back(device: str) -> None:
        for parameter in trainer.model.parameters():
            parameter.data = parameter.data.clone()  # what a move and a move back do
        monkeypatch.setattr(trainer.optimiser, "to", lambda device: None)
        fail(device)

    monkeypatch.setattr(trainer.optimiser, "to", moved_and_back)
    with pytest.raises(torch.OutOfMemoryError):
        trainer.to("cpu")
    before = trainer.model.head.detach().clone()
    trainer.advance()
    assert not torch.equal(before, trainer.model.head)


EVERYTHING = {"model.experts": 6, "routing.router": "null", "model.shared_experts": 1, "routing.noise": 0.0}


@pytest.mark.parametrize(
    "place",
    [
        "moeviz.moe.resize.SharedExperts",
        "moeviz.moe.resize.build_router",
        "moeviz.moe.resize._disturb",
        "moeviz.moe.trainer.coefficients",
        "moeviz.moe.trainer.Trainer._state",
    ],
)
def test_a_change_that_memory_does_not_suffice_for_changes_nothing(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, twin = make_trainer(), make_trainer()
    for one in (trainer, twin):
        one.advance()
        one.flush()
    calls = []

    def fail(*args: object, **more: object) -> None:
        calls.append(args)
        if len(calls) > 1 or place.endswith(("coefficients", "_state")):  # half-way: in the second layer
            monkeypatch.undo()
            raise torch.OutOfMemoryError("tried to allocate 1 PB")
        return real(*args, **more)

    real = pkgutil.resolve_name(place)
    monkeypatch.setattr(place, fail)
    with pytest.raises(torch.OutOfMemoryError):
        trainer.change(SMALL.with_values(EVERYTHING))
    assert trainer.settings == SMALL
    for one in (trainer, twin):
        for _ in range(CHECK_EVERY):
            one.advance()
        assert one.check()
    assert_same_run(trainer, twin)
    trainer.change(SMALL.with_values(EVERYTHING))
    trainer.advance()
    assert trainer.check()


def assert_same_run(one: Trainer, other: Trainer) -> None:
    log, wanted = one.flush(), other.flush()
    assert np.array_equal(log.scalars_S["loss"], wanted.scalars_S["loss"])
    for left, right in zip(one.snapshot().layers, other.snapshot().layers, strict=True):
        assert np.array_equal(left.router_logits_TE, right.router_logits_TE)
    assert all(torch.equal(one.optimiser.mean[name], mean) for name, mean in other.optimiser.mean.items())
    assert torch.equal(one.counts(), other.counts())


@pytest.mark.parametrize(
    "changes",
    [
        [{"model.experts": 2}],
        [{"model.experts": 6}],
        [{"model.experts": 3}, {"model.experts": 2, "routing.k": 1}, {"model.experts": 3}],
        [{"routing.router": "noisy_topk"}],
        [EVERYTHING, {"train.lr": 0.1}],
    ],
)
def test_a_change_taken_back_before_the_next_step_brings_the_same_model_back(changes: list[dict[str, object]]) -> None:
    trainer, twin = make_trainer(), make_trainer()
    for one in (trainer, twin):
        for _ in range(3):
            one.advance()
        one.check()
        one.flush()
    for values in changes:
        trainer.change(trainer.settings.with_values(values))
    trainer.change(SMALL)
    assert torch.equal(trainer.counts(), twin.counts())
    for one in (trainer, twin):
        one.advance()
        one.check()
    assert_same_run(trainer, twin)


def test_a_change_taken_back_after_a_step_keeps_what_was_learned_since() -> None:
    trainer = make_trainer()
    trainer.change(SMALL.with_values({"model.experts": 2}))
    trainer.advance()
    trainer.check()
    trainer.flush()
    survivors = [layer.experts.down_proj.detach().clone() for layer in trainer.model.layers]
    trainer.change(SMALL)
    for layer, kept in zip(trainer.model.layers, survivors, strict=True):
        assert torch.equal(layer.experts.down_proj[:2], kept)


def test_two_growths_at_one_step_make_no_twins() -> None:
    trainer = make_trainer()
    trainer.flush()
    for experts in (5, 6):
        trainer.change(trainer.settings.with_values({"model.experts": experts}))
    weight = trainer.model.layers[0].router.weight
    assert torch.pdist(weight).min() > 0


def test_a_broken_model_is_not_written_over_a_good_file(tmp_path: Path) -> None:
    trainer = make_trainer()
    path = save(tmp_path / "m.st", SMALL, tiny_text().vocabulary, 0, trainer.model, None, trainer.counts())
    with torch.no_grad():
        trainer.model.head[0, 0] = torch.nan
    with pytest.raises(UserError, match="no numbers"):
        save(path, SMALL, tiny_text().vocabulary, 0, trainer.model, None, trainer.counts())
    assert load(path).step == 0


def counts_told(update: Update) -> int:
    """In how many layers the last batch tells of the load."""
    assert update.snapshot is not None
    return len(update.snapshot.train_counts_LE)


@pytest.mark.parametrize(
    ("start", "other"),
    [
        ({}, {"routing.k": 3}),  # what chance shows is another with another k
        ({}, {"routing.router": "switch"}),
        ({"routing.router": "topk_raw", "routing.k": 1}, {"routing.router": "switch"}),  # of one k
        ({"routing.router": "gshard"}, {"routing.second_policy": "none"}),
        ({"routing.router": "top_p"}, {"routing.top_p": 1.0}),
        ({"routing.router": "null"}, {"routing.zero_experts": 3}),
        ({}, {"model.experts": 3}),
    ],
    ids=str,
)
def test_the_last_batch_tells_of_the_load_only_while_tokens_are_routed_as_it_was(
    start: dict[str, Value], other: dict[str, Value]
) -> None:
    begin = SMALL.with_values(start)
    run = training.session(begin)
    layers, back = SMALL.model.layers, {key: begin.flat()[key] for key in other}
    assert counts_told(next_update(run)) == 0
    assert counts_told(advance(run, 1)) == layers
    assert counts_told(send(run, SetKnobs(other))) == 0
    assert counts_told(send(run, SetKnobs(back))) == layers
    assert counts_told(send(run, SetKnobs(other))) == 0
    assert counts_told(advance(run, 1)) == layers


def test_the_last_batch_still_tells_of_the_load_after_a_change_that_does_not_route(run: Session) -> None:
    advance(run, 1)
    for values in (
        {"train.lr": 0.01},
        {"balance.coefficient": 0.1},
        {"routing.temperature": 2.0},
        {"routing.top_p": 0.9},
    ):
        assert counts_told(send(run, SetKnobs(values))) == SMALL.model.layers


def test_the_last_batch_does_not_tell_of_experts_that_only_look_like_its_own(run: Session) -> None:
    advance(run, 1)
    send(run, SetKnobs({"model.experts": 3}))
    send(run, SetDevice("cpu"))  # which forgets what was there before
    assert counts_told(send(run, SetKnobs({"model.experts": 4}))) == 0
    assert counts_told(advance(run, 1)) == SMALL.model.layers
