"""Every router in a run: traced and eager, live changes, checkpoints, the probe, the losses."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from test_moe_training import advance

from moeviz.domain.messages import OpenModel, SaveModel, Session, SetKnobs, SetProbe, Update, UserError
from moeviz.domain.routing import RoutingSnapshot
from moeviz.domain.settings import KNOBS, ROUTERS, Settings, SettingsError
from moeviz.moe import training
from moeviz.moe.checkpoint import load, state_of
from moeviz.moe.model import CharModel, active_parameters, flops_per_token, router_options, total_parameters
from moeviz.moe.optimiser import AdamW
from moeviz.moe.resize import resize_experts, switch_router
from moeviz.moe.routers import ROUTERS as BUILDERS
from moeviz.moe.step import MAXIMISED, TERMS, StepLoss, coefficients, terms_in_use
from moeviz.moe.tasks.text import Parts, TextData, encode
from moeviz.moe.traced import Traced, trace
from moeviz.moe.trainer import Trainer

VOCABULARY = " 0123456789abcde"
SMALL = Settings().with_values(
    {
        "model.experts": 4,
        "model.layers": 2,
        "model.width": 16,
        "model.expert_width": 16,
        "model.context": 16,
        "train.batch": 4,
    }
)
EAGER = ("sinkhorn", "base")
FULL_WIDTH = ("dense", "expert_choice", "top_p", "relu", "soft")  # K = E


def tiny_text() -> TextData:
    def read() -> Parts:
        texts = ("0123456789" * 40, "abc de " * 50), ("0123456789" * 4, "abc de " * 5)
        return Parts(("digits", "letters"), *(tuple(encode(text, VOCABULARY) for text in part) for part in texts))

    return TextData(VOCABULARY, "123 abc 456 ?", read)


@pytest.fixture(autouse=True)
def _tiny_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "load_text", lambda *_: tiny_text())


@pytest.fixture
def run() -> Iterator[Session]:
    session = start(SMALL)
    yield session
    session.close()


def start(settings: Settings) -> Session:
    session = training.session(settings)
    next(session)
    return session


def send(session: Session, command: Any) -> Update:
    update = session.send(command)
    assert update is not None
    assert not update.notice, update.notice
    return update


def small(router: str, **values: Any) -> Settings:
    changes = {key.replace("__", "."): value for key, value in values.items()}
    return SMALL.with_values({"routing.router": router} | changes)


def make_model(settings: Settings) -> CharModel:
    return CharModel(settings, 16, torch.Generator().manual_seed(0)).eval()


def table(update: Update) -> NDArray[np.float64]:
    assert update.log is not None
    return np.stack([update.log.scalars_S[name] for name in sorted(update.log.scalars_S) if name != "heldout"])


def check_snapshot(snapshot: RoutingSnapshot, settings: Settings) -> None:
    """What holds of any router's snapshot."""
    router, e = settings.routing.router, settings.model.experts
    for layer in snapshot.layers:
        assert layer.num_experts == e + layer.num_null
        assert (layer.num_null > 0) == (router == "null")
        assert layer.soft == (router == "soft")
        if router in FULL_WIDTH:
            assert layer.k == e
        assert ((layer.expert_ids_TK >= -1) & (layer.expert_ids_TK < layer.num_experts)).all()
        assert (layer.gate_weights_TK[layer.expert_ids_TK < 0] == 0).all()
        assert np.isfinite(layer.gate_weights_TK).all()
        assert layer.router_probs_TE.shape == (layer.num_tokens, layer.num_experts)
        assert (layer.router_logits_TE is None) == (router == "hash")
        assert (layer.selection_scores_TE is None) == (router != "sigmoid_bias")
        drops = settings.routing.capacity_factor > 0 and settings.applies("routing.capacity_factor")
        assert (layer.dropped_TK is not None) == drops
        if drops:
            assert (layer.gate_weights_TK[layer.dropped_TK] == 0).all()


# ---- names and knobs
def test_settings_and_builders_agree() -> None:
    assert tuple(BUILDERS) == ROUTERS
    for name, kind in BUILDERS.items():
        offered = router_options(Settings().with_values({"routing.router": name}))
        assert offered.keys() == kind.options.keys() - {"vocabulary_size", "frequencies"}
        for option, value in offered.items():
            assert value == kind.options[option], f"{name}.{option} has two defaults"
    for key, knob in KNOBS.items():
        assert set(knob.routers) <= set(ROUTERS), key
        assert knob.help


def test_groups_must_hold_k() -> None:
    with pytest.raises(SettingsError, match="divide"):
        small("sigmoid_bias", routing__groups=3)
    with pytest.raises(SettingsError, match="cannot hold"):
        small("sigmoid_bias", routing__groups=4)
    small("topk", routing__groups=3)
    assert small("switch", model__experts=1, routing__k=2).routing.k == 2


# ---- training
@pytest.mark.parametrize("capacity", [0.0, 0.8])
@pytest.mark.parametrize("router", ROUTERS)
def test_runs_traced_as_eagerly_and_ends_finite(router: str, capacity: float, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = small(router, routing__capacity_factor=capacity, routing__noise=0.5)
    if capacity and not settings.applies("routing.capacity_factor"):
        return
    runs = []
    for way in ("traced", "eager"):
        traces = []
        if way == "eager":
            monkeypatch.setattr(Traced, "_trace", lambda self, inputs, traces=traces: traces.append(self))
        session = start(settings)
        update = advance(session, 25)
        runs.append(table(update))
        assert np.isfinite(runs[-1]).all()
        check_snapshot(update.snapshot, settings)
        if way == "eager":
            assert len(traces) == (0 if router in EAGER else 1)
    assert np.array_equal(*runs)
    loss = update.log.scalars_S["loss"]
    assert loss[-5:].mean() < loss[:5].mean()


@pytest.mark.parametrize("router", ["topk", "null", "relu", "gshard", "switch"])
def test_traced_step_with_every_loss_equals_eager(router: str) -> None:
    every = {key: 0.01 for key in KNOBS if key.endswith("_coefficient")}
    settings = small(router, routing__noise=0.5).with_values(every)
    model, terms = make_model(settings), terms_in_use(settings)
    assert set(terms.others) >= {"importance", "router_orthogonality"}
    module = StepLoss(model, terms)
    generator = torch.Generator().manual_seed(0)

    def inputs() -> tuple[torch.Tensor, ...]:
        tokens = torch.randint(16, (4, 17), generator=generator)
        return (
            tokens[:, :-1],
            tokens[:, 1:],
            torch.rand(2 + len(terms.others), generator=generator),
            torch.randn(2, 64, model.layers[0].router.num_draws, generator=generator),
        )

    traced = trace(module, inputs())
    args = inputs()
    (loss, news), (loss_t, news_t) = module(*args), traced(*args)
    assert torch.equal(loss, loss_t)
    assert torch.equal(news, news_t)
    parameters = [p for p in model.parameters() if p.numel()]
    grads = (torch.autograd.grad(x, parameters, allow_unused=True) for x in (loss, loss_t))
    for g, g_t in zip(*grads, strict=True):
        assert (g is None and g_t is None) or torch.equal(g, g_t)


def test_every_loss_has_its_coefficient_and_scalar(run: Session) -> None:
    advance(run, 2)
    total_before: set[str] = set()
    for router, noise in (("noisy_topk", 1.0), ("null", 0.0)):
        base = {"routing.router": router, "routing.noise": noise, "balance.loss": "gshard"}
        send(run, SetKnobs(base))
        for key in (key for key in KNOBS if key.endswith("_coefficient") and key != "balance.z_coefficient"):
            name = key.removeprefix("balance.").removesuffix("_coefficient")
            if not KNOBS[key].applies_to(router):
                continue
            update = send(run, SetKnobs({key: 0.25}))
            log = advance(run, 1).log
            expected = (
                log.scalars_S["cross_entropy"] + 0.01 * log.scalars_S["balance"] + 0.001 * log.scalars_S["z"]
            ) + (-0.25 if name in MAXIMISED else 0.25) * log.scalars_S[name]
            np.testing.assert_allclose(log.scalars_S["loss"], expected, rtol=1e-5)
            total_before.add(name)
            assert name not in advance_without(run, key).scalars_S
            assert update.settings.flat()[key] == 0.25
    assert total_before | {"relu_l1"} == set(TERMS)


def advance_without(run: Session, key: str) -> Any:
    send(run, SetKnobs({key: 0.0}))
    return advance(run, 1).log


def test_relu_l1_grows_until_k_experts_are_left() -> None:
    settings = small("relu", routing__l1_factor=2.0, routing__k=1, balance__loss="none", balance__z_coefficient=0)
    trainer = Trainer(settings, tiny_text(), "cpu", "abc")
    for _ in range(150):
        trainer.advance()
        assert trainer.check()
    log = trainer.flush()
    means = log.counts_SE[0].sum(1) / 64
    assert means[:5].mean() > 1.5
    assert abs(np.mean([c[-40:].sum(1).mean() / 64 for c in log.counts_SE]) - 1) < 0.3
    l1 = [float(layer.router.l1) for layer in trainer.model.layers]
    assert l1[0] == l1[1] > 1e-8
    assert np.isfinite(log.scalars_S["relu_l1"]).all()
    factors = log.scalars_S["lambda"][1:] / log.scalars_S["lambda"][:-1]
    assert set(np.round(factors, 5)) <= {0.5, 1.0, 2.0}
    assert log.scalars_S["lambda"][0] == pytest.approx(1e-8)


def test_bias_counts_training_batches_only() -> None:
    trainer = Trainer(small("sigmoid_bias", routing__bias_speed=0.01), tiny_text(), "cpu", "abc")
    trainer.advance()
    before = [layer.router.bias.clone() for layer in trainer.model.layers]
    trainer.snapshot()
    trainer._heldout(*torch.zeros(2, 2, 16, dtype=torch.int64))
    log = trainer.flush()
    for layer, bias, counts in zip(trainer.model.layers, before, log.counts_SE, strict=True):
        assert torch.equal(layer.router.bias, bias)
        expected = 0.01 * np.sign(counts[0].mean() - counts[0])
        np.testing.assert_allclose(bias.numpy(), expected, rtol=1e-6)
    assert (log.scalars_S["bias_low"][0], log.scalars_S["bias_high"][0]) == (0, 0)  # before the step
    trainer.advance()
    after = trainer.flush().scalars_S
    biases = torch.stack(before)
    assert after["bias_low"][0] == float(biases.min())
    assert after["bias_high"][0] == float(biases.max())
    trainer.change(small("topk"))
    assert not {"bias_low", "bias_high"} & set(trainer.snapshot().scalars)  # they are of no router any more


# ---- live changes
def test_every_router_after_every_other(run: Session) -> None:
    settings = SMALL
    order = [*ROUTERS, *ROUTERS[::-1]]
    for number, router in enumerate(order):
        values = {"routing.router": router, "model.experts": 4 + number % 3}
        settings = settings.with_values(values)
        update = send(run, SetKnobs(values))
        check_snapshot(update.snapshot, settings)
        assert not update.reset
        update = advance(run, 2)
        check_snapshot(update.snapshot, settings)
        assert np.isfinite(update.log.scalars_S["loss"]).all()
        assert update.log.counts_SE[0].shape[1] == update.snapshot.layers[0].num_experts


def test_weights_stay_where_both_routers_have_them() -> None:
    model = make_model(small("topk"))
    optimiser = AdamW(dict(model.named_parameters()))
    optimiser.mean["blocks.0.moe.router.weight"].fill_(3)
    weight = model.layers[0].router.weight.detach().clone()
    for router in ("sigmoid_bias", "null", "soft", "base", "relu"):
        switch_router(model, optimiser, small(router))
        assert torch.equal(model.layers[0].router.weight[:4], weight)
        kept = optimiser.mean["blocks.0.moe.router.weight"]
        assert kept.shape == model.layers[0].router.weight.shape
        if router == "sigmoid_bias":
            assert (kept == 3).all()
    for router in ("hash", "topk"):
        switch_router(model, optimiser, small(router))
    assert not torch.equal(model.layers[0].router.weight, weight)
    assert set(optimiser.mean) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize(
    ("router", "values"),
    [
        ("gshard", {"routing.second_policy": "threshold", "routing.second_threshold": 0.45}),
        ("switch", {"routing.jitter": 0.5}),
        ("topk", {"routing.capacity_factor": 0.5}),
        ("topk", {"routing.capacity_factor": 0.5, "routing.drop": "probability", "routing.scope": "sequence"}),
        ("sigmoid_bias", {"routing.groups": 2, "routing.scale": 2.5, "routing.bias_speed": 0.1}),
        ("top_p", {"routing.top_p": 0.9}),
        ("null", {"routing.zero_experts": 0, "routing.copy_experts": 3, "routing.constant_experts": 1}),
        ("null", {"routing.constant_experts": 0, "routing.capacity_factor": 1.0, "routing.tau": 0.3}),
        ("soft", {"routing.slots": 3}),
        ("hash", {"routing.hash_table": "balanced"}),
        ("relu", {"routing.l1_factor": 3.0, "routing.k": 1}),
        ("expert_choice", {"routing.k": 3, "routing.scope": "sequence"}),
        ("sinkhorn", {"routing.k": 1}),
    ],
)
def test_knobs_act_on_a_running_model(router: str, values: dict[str, Any]) -> None:
    settings = small(router)
    session = start(settings)
    advance(session, 13)
    settings = settings.with_values(values)
    update = send(session, SetKnobs(values))
    assert not update.reset
    check_snapshot(update.snapshot, settings)
    changed = advance(session, 13)
    check_snapshot(changed.snapshot, settings)
    assert np.isfinite(changed.log.scalars_S["loss"]).all()
    # a run that started so from this state goes on in the same way
    assert changed.settings == settings


@pytest.mark.parametrize("router", ROUTERS)
def test_dropping_and_copying_experts_keeps_shapes_and_state(router: str) -> None:
    trainer = Trainer(small(router), tiny_text(), "cpu", "abc 123")
    for experts in (7, 4, 1, 4):
        for _ in range(2):
            trainer.advance()
        trainer.check()
        trainer.flush()
        trainer.change(trainer.settings.with_values({"model.experts": experts, "routing.k": min(2, experts)}))
        fresh = make_model(trainer.settings)
        for name, tensor in fresh.state_dict().items():
            assert trainer.model.state_dict()[name].shape == tensor.shape, name
        check_snapshot(trainer.snapshot(), trainer.settings)


def test_shared_experts_come_and_go_on_a_running_model() -> None:
    trainer = Trainer(small("topk"), tiny_text(), "cpu", "abc 123")
    tokens = torch.arange(16).view(1, 16)

    def change(**values: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Outputs before and after, of a model that has trained some steps since the last change."""
        for _ in range(2):
            trainer.advance()
        trainer.check()
        trainer.flush()
        with torch.no_grad():
            before = trainer.model(tokens)[0]
            trainer.change(trainer.settings.with_values({f"model.{key}": value for key, value in values.items()}))
            after = trainer.model(tokens)[0]
        fresh = make_model(trainer.settings).state_dict()
        assert {n: t.shape for n, t in trainer.model.state_dict().items()} == {n: t.shape for n, t in fresh.items()}
        return before, after

    for values in ({"shared_experts": 1}, {"shared_experts": 3}):
        torch.testing.assert_close(*change(**values))
    moments = trainer.optimiser.mean["blocks.0.moe.shared.down_proj"]
    assert moments[:, :16].abs().max() > 0, "the moments of the first go along"
    assert (moments[:, 16:] == 0).all()
    kept = trainer.model.layers[0].shared.down_proj[:, :32].detach().clone()
    change(shared_experts=2, shared_gate="sigmoid")
    assert trainer.model.layers[0].shared.gate.shape == (1, 16)
    torch.testing.assert_close(trainer.model.layers[0].shared.down_proj[:, :32], kept, atol=0.02, rtol=0)
    change(shared_experts=0)
    assert trainer.model.layers[0].shared is None
    change(shared_gate="none")


def doubled(router: str, **values: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs before and after every expert was copied without noise and k was doubled."""
    model = make_model(small(router, **values))
    with torch.no_grad():
        for layer in model.layers:
            layer.router.weight.mul_(20)
    model.double()
    tokens = torch.arange(16).view(1, 16)
    before = model(tokens)[0]
    optimiser = AdamW(dict(model.named_parameters()))
    counts = [np.array([1, 2, 3, 4])] * 2
    from moeviz.moe import resize

    noise, resize.COPY_NOISE = resize.COPY_NOISE, 0.0
    try:
        resize_experts(model, optimiser, counts, 8)
    finally:
        resize.COPY_NOISE = noise
    for layer in model.layers:
        layer.router.k = 4
    return before, model(tokens)[0]


@pytest.mark.parametrize("router", ["topk", "topk_raw", "sigmoid_bias"])
def test_copies_of_all_experts_and_twice_the_k_are_the_same_model(router: str) -> None:
    before, after = doubled(router)
    torch.testing.assert_close(after, before, rtol=1e-12, atol=1e-12)


def test_an_unused_expert_can_go() -> None:
    model = make_model(small("sigmoid_bias")).double()
    for layer in model.layers:
        layer.router.bias[1] = -10
    tokens = torch.arange(16).view(1, 16)
    before, routings = model(tokens)
    assert all((r.expert_ids_TK != 1).all() for r in routings)
    counts = [np.array([5, 0, 5, 5])] * 2
    plans = resize_experts(model, AdamW(dict(model.named_parameters())), counts, 3)
    assert plans[0].dropped == (1,)
    assert (model.layers[0].router.bias == 0).all()
    torch.testing.assert_close(model(tokens)[0], before, rtol=1e-12, atol=1e-12)


# ---- the probe
@pytest.mark.parametrize("router", ROUTERS)
def test_padding_of_the_probe_changes_nothing(router: str) -> None:
    session = start(small(router))
    long = send(session, SetProbe("abc de 0123" * 3)).snapshot  # 33 characters in rows of 16
    assert long.num_tokens == 33
    if router in ("expert_choice", "soft"):
        assert all(layer.looks_ahead for layer in long.layers)
        return
    short = send(session, SetProbe(("abc de 0123" * 3)[:32])).snapshot
    for a, b in zip(long.layers, short.layers, strict=True):
        assert not a.looks_ahead
        assert np.array_equal(a.expert_ids_TK[:32], b.expert_ids_TK)
        np.testing.assert_allclose(a.gate_weights_TK[:32], b.gate_weights_TK, rtol=1e-4)


def test_looking_changes_nothing() -> None:
    for router in ("sinkhorn", "base", "gshard", "relu"):
        runs = []
        for every in (1, 15):
            session = start(small(router))
            runs.append(np.concatenate([table(advance(session, every)) for _ in range(15 // every)], axis=1))
        assert np.array_equal(*runs)


# ---- checkpoints
@pytest.mark.parametrize("router", ["sigmoid_bias", "hash", "relu", "null", "soft", "gshard", "base"])
def test_resumed_run_equals_the_uninterrupted_one(router: str, tmp_path: Path) -> None:
    path = str(tmp_path / "model.safetensors")
    extra = {"model__shared_experts": 1, "model__shared_gate": "sigmoid"} if router == "sigmoid_bias" else {}
    whole = start(small(router, routing__bias_speed=0.01, routing__hash_table="balanced", **extra))
    advance(whole, 13)
    send(whole, SetKnobs({"model.experts": 6}))
    advance(whole, 3)
    saved = send(whole, SaveModel(path))
    other = start(SMALL)
    opened = send(other, OpenModel(path))
    for old, new in zip(saved.snapshot.layers, opened.snapshot.layers, strict=True):
        assert np.array_equal(old.gate_weights_TK, new.gate_weights_TK)
        assert np.array_equal(old.expert_ids_TK, new.expert_ids_TK)
    assert np.array_equal(table(advance(whole, 14)), table(advance(other, 14)))


def test_a_table_with_experts_that_are_not_there_is_refused(tmp_path: Path) -> None:
    from moeviz.moe.checkpoint import save

    trainer = Trainer(small("hash"), tiny_text(), "cpu", "abc")
    trainer.model.layers[0].router.table[0] = 4
    path = save(tmp_path, trainer.settings, VOCABULARY, 0, trainer.model, None, trainer.counts())
    with pytest.raises(UserError, match="experts that there are not"):
        load(path)


def test_state_comes_back_after_a_loss_that_is_no_number() -> None:
    trainer = Trainer(small("sigmoid_bias", routing__bias_speed=0.01), tiny_text(), "cpu", "abc")
    for _ in range(20):
        trainer.advance()
    assert trainer.check()
    good = {name: tensor.clone() for name, tensor in state_of(trainer.model).items()}
    trainer.advance()
    assert any(not torch.equal(good[name], tensor) for name, tensor in state_of(trainer.model).items())
    with torch.no_grad():
        trainer.model.head.fill_(torch.nan)
    trainer.advance()
    assert not trainer.check()
    assert all(torch.equal(good[name], tensor) for name, tensor in state_of(trainer.model).items())


# ---- sizes
@pytest.mark.parametrize("router", ROUTERS)
def test_one_expert(router: str) -> None:
    settings = small(router, model__experts=1, routing__k=1, routing__noise=0.5)
    session = start(settings)
    update = advance(session, 12)
    assert np.isfinite(update.log.scalars_S["loss"]).all()
    check_snapshot(update.snapshot, settings)


def test_parameters_and_flops_of_other_routers() -> None:
    d, f, e, layers = 16, 16, 4, 2
    per_expert = 3 * d * f
    base = make_model(small("topk"))
    rest = total_parameters(base) - layers * e * per_expert
    assert active_parameters(base) == rest + layers * 2 * per_expert
    for router, runs, active in (
        ("switch", 1, 1),
        ("dense", 4, 4),
        ("expert_choice", 2, 2),
        ("soft", e * 1 / 16, 4),
        ("relu", 2, 2),
    ):
        model = make_model(small(router))
        extra = total_parameters(model) - layers * e * per_expert - rest
        assert active_parameters(model) == rest + extra + layers * active * per_expert
        scalars = layers if router == "soft" else 0  # its scale multiplies, but is counted with the matrices
        more = flops_per_token(model) - flops_per_token(base)
        assert more == 2 * (round(layers * (runs - 2) * per_expert) + scalars), router
    shared = make_model(small("topk", model__shared_experts=2, model__shared_gate="sigmoid"))
    assert total_parameters(shared) - total_parameters(base) == layers * (2 * per_expert + d)
    assert active_parameters(shared) - active_parameters(base) == layers * (2 * per_expert + d)
    null = make_model(small("null"))
    assert active_parameters(null) < total_parameters(null)


@pytest.mark.parametrize(
    ("router", "options"),
    [
        ("top_p", {"routing__top_p": 0.3}),
        ("relu", {}),
        ("null", {}),
        ("topk", {"routing__capacity_factor": 0.5}),
    ],
)
def test_what_is_active_is_measured_where_it_varies(router: str, options: dict[str, float]) -> None:
    """By the mean number of experts that the snapshot shows: not dropped, not null."""
    settings = small(router, **options)
    update = advance(start(settings), 3)
    facts, means = update.facts, []
    for routing in update.snapshot.layers:
        run = [
            sum(0 <= e < settings.model.experts and not lost for e, lost in zip(ids, dropped, strict=True))
            for ids, dropped in zip(
                routing.expert_ids_TK,
                np.zeros_like(routing.expert_ids_TK) if routing.dropped_TK is None else routing.dropped_TK,
                strict=True,
            )
        ]
        means.append(np.mean(run))
    assert facts.executed_experts == pytest.approx(np.mean(means))
    assert 0 < facts.executed_experts < settings.model.experts
    per_expert = 3 * settings.model.width * settings.model.expert_width
    unused = sum(settings.model.experts - mean for mean in means) * per_expert
    assert facts.active_parameters == facts.total_parameters - round(unused)
    model = make_model(settings)
    assert facts.flops_per_token == flops_per_token(model, means)
    all_run = flops_per_token(model, [settings.model.experts] * settings.model.layers)
    assert all_run - facts.flops_per_token == pytest.approx(2 * unused, abs=1)


def test_what_is_active_is_not_measured_where_it_is_fixed() -> None:
    session = start(small("top_p"))
    assert advance(session, 2).facts.executed_experts is not None
    fixed = send(session, SetKnobs({"routing.router": "topk"}))
    assert fixed.facts.executed_experts is None
    assert fixed.facts.active_parameters == active_parameters(make_model(small("topk")))


def test_coefficients_follow_the_terms() -> None:
    settings = small("topk", balance__batch_entropy_coefficient=0.5, balance__importance_coefficient=0.1)
    assert terms_in_use(settings).others == ("importance", "batch_entropy")
    assert coefficients(settings) == [0.01, 0.001, 0.1, -0.5]
    assert terms_in_use(small("topk", balance__load_coefficient=0.1)).others == (), "no noise, no estimate"
    assert terms_in_use(small("hash", balance__variance_coefficient=0.1)).others == ()


def test_all_pairs_of_choices_are_covered() -> None:
    """Every choice of every router knob builds."""
    for router in ROUTERS:
        keys = [k for k, knob in KNOBS.items() if k.startswith("routing.") and knob.choices and k != "routing.router"]
        keys = [k for k in keys if KNOBS[k].applies_to(router)]
        for values in itertools.product(*(KNOBS[key].choices for key in keys)):
            model = make_model(small(router).with_values(dict(zip(keys, values, strict=True))))
            assert torch.isfinite(model(torch.zeros(1, 8, dtype=torch.int64))[0]).all()
