"""Every router: what it chooses, its weights, its state, against transformers and plain numpy."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moeviz.moe import MoELayer, build_router
from moeviz.moe.losses import load_probability
from moeviz.moe.routers import ROUTERS, Router, RoutingTensors
from moeviz.moe.routers.balanced import balanced_assignment, sinkhorn
from moeviz.moe.routers.base import best_first
from moeviz.moe.routers.capacity import overflow, places

D, F, E, K, T = 16, 8, 6, 2, 30
VOCABULARY = 20
SIZES = [(6, 2), (6, 1), (6, 6), (1, 1), (5, 3)]


def make_layer(name: str, e: int = E, k: int = K, *, d_ff: int = F, **options: Any) -> MoELayer:
    generator = torch.Generator().manual_seed(3)
    if name == "hash":
        options = {"vocabulary_size": VOCABULARY} | options
    layer = MoELayer(D, d_ff, build_router(name, D, e, k, generator=generator, **options), generator=generator)
    if name != "hash":
        with torch.no_grad():
            layer.router.weight.copy_(torch.randn(layer.router.weight.shape, generator=generator) * 0.5)
    return layer


def tokens(*shape: int, seed: int = 5) -> torch.Tensor:
    return torch.randn(*(shape or (T,)), D, generator=torch.Generator().manual_seed(seed))


def ids_of(x: torch.Tensor) -> torch.Tensor:
    """Token ids beside vectors."""
    return torch.arange(x.shape[:-1].numel()).view(x.shape[:-1]) * 7 % VOCABULARY


def run(layer: MoELayer, x: torch.Tensor, **rest: Any) -> tuple[torch.Tensor, RoutingTensors]:
    return layer(x, token_ids=ids_of(x), **rest)


def expert(layer: MoELayer, e: int, x: torch.Tensor) -> torch.Tensor:
    gate, up = (layer.experts.gate_up_proj[e] @ x).chunk(2)
    return layer.experts.down_proj[e] @ (torch.nn.functional.silu(gate) * up)


def by_hand(layer: MoELayer, x_TD: torch.Tensor, routing: RoutingTensors) -> torch.Tensor:
    """Every chosen expert of every token, one at a time; null experts by their formulas."""
    router: Any = layer.router
    y = torch.zeros_like(x_TD)
    for t, x in enumerate(x_TD):
        for e, w in zip(routing.expert_ids_TK[t].tolist(), routing.gate_weights_TK[t], strict=True):
            if 0 <= e < router.num_ffn:
                y[t] += w * expert(layer, e, x)
            elif e >= router.num_ffn:
                null = e - router.num_ffn
                if null < router.constant_experts:
                    a = (router.constant_mix[null] @ x).softmax(0)
                    y[t] += w * (a[0] * x + a[1] * router.constant[null])
                elif null < router.constant_experts + router.copy_experts:
                    y[t] += w * x
    return y


def soft_by_hand(layer: MoELayer, x_BCD: torch.Tensor) -> torch.Tensor:
    """vmoe's soft router and dispatcher, one sequence at a time."""
    router: Any = layer.router
    mu = router.weight / (router.weight.square().sum(1, keepdim=True) + 1e-6).sqrt() * router.scale
    out = []
    for x in x_BCD:
        logits = x / (x.square().sum(1, keepdim=True) + 1e-6).sqrt() @ mu.T
        slots = logits.softmax(0).T @ x
        outputs = torch.stack([expert(layer, s // router.slots, slot) for s, slot in enumerate(slots)])
        out.append(logits.softmax(1) @ outputs)
    return torch.stack(out)


# ---- what all routers have in common
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", ROUTERS)
def test_layer_equals_the_sum_by_hand(name: str, mode: str) -> None:
    for (e, k), dtype in itertools.product(SIZES, (torch.float32, torch.float64)):
        layer, x = make_layer(name, e, k).train(mode == "train").to(dtype), tokens(3, 7).to(dtype)
        y, routing = run(layer, x)
        assert y.shape == x.shape
        assert y.dtype == dtype
        expected = soft_by_hand(layer, x) if name == "soft" else by_hand(layer, x.view(-1, D), routing).view(x.shape)
        torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)
        router = layer.router
        assert routing.expert_ids_TK.shape == routing.gate_weights_TK.shape == (21, router.width)
        assert routing.probs_TE.shape == routing.logits_TE.shape == (21, router.num_experts)
        assert routing.expert_ids_TK.dtype == torch.int64
        assert ((routing.expert_ids_TK >= -1) & (routing.expert_ids_TK < router.num_experts)).all()
        assert (routing.gate_weights_TK[routing.expert_ids_TK < 0] == 0).all()
        assert (routing.gate_weights_TK >= 0).all()
        for row in routing.expert_ids_TK.tolist():
            chosen = [i for i in row if i >= 0]
            assert len(set(chosen)) == len(chosen)
            assert row == chosen + [-1] * (len(row) - len(chosen)), "padding comes last"
        if name != "null":  # there a zero expert's weight of 0 may come first
            assert (routing.gate_weights_TK.diff(dim=1) <= 1e-7).all(), "best first"
        rows = routing.probs_TE.sum(1)
        if name == "relu":
            rows = rows[rows > 0]
        torch.testing.assert_close(rows, torch.ones_like(rows))


@pytest.mark.parametrize("name", ROUTERS)
def test_no_tokens_and_one_token(name: str) -> None:
    for capacity in [{}, {"capacity_factor": 1.0}] if "capacity_factor" in ROUTERS[name].options else [{}]:
        layer = make_layer(name, **capacity)
        for shape in [(0,), (2, 0), (0, 3), (1,), (1, 1)]:
            y, routing = run(layer, tokens(*shape))
            assert y.shape == (*shape, D)
            assert routing.expert_ids_TK.shape == (math.prod(shape), layer.router.width)
            assert torch.isfinite(y).all()


@pytest.mark.parametrize("name", ROUTERS)
def test_padding_gets_nothing_and_changes_nothing(name: str) -> None:
    for mode, extra in itertools.product((True, False), ({}, {"capacity_factor": 0.7}, {"scope": "sequence"})):
        if not extra.keys() <= ROUTERS[name].options.keys():
            continue
        if extra.get("scope"):
            extra = extra | ({"capacity_factor": 0.7} if "capacity_factor" in ROUTERS[name].options else {})
        options = extra | ({"second_policy": "threshold"} if name == "gshard" else {})
        options |= {"jitter": 0.0} if name == "switch" else {}
        layer = make_layer(name, **options).train(mode)
        x = tokens(2, 12)
        valid = torch.ones(2, 12, dtype=torch.bool)
        valid[:, 6:] = False
        padded = x.clone()
        padded[:, 6:] = torch.nan
        y, routing = layer(padded, token_ids=ids_of(x), valid=valid)
        expected, alone = layer(x[:, :6], token_ids=ids_of(x)[:, :6])
        torch.testing.assert_close(y[:, :6], expected, atol=1e-5, rtol=1e-5)
        assert (y[:, 6:] == 0).all()
        real = valid.flatten()
        assert (routing.expert_ids_TK[~real] == -1).all()
        assert (routing.gate_weights_TK[~real] == 0).all()
        assert torch.equal(routing.expert_ids_TK[real], alone.expert_ids_TK)
        if alone.dropped_TK is not None:
            assert torch.equal(routing.dropped_TK[real], alone.dropped_TK)
            assert not routing.dropped_TK[~real].any()


@pytest.mark.parametrize("capacity", [0.0, 0.8])
@pytest.mark.parametrize("name", ROUTERS)
def test_gradients_against_finite_differences(name: str, capacity: float) -> None:
    if capacity and "capacity_factor" not in ROUTERS[name].options:
        return
    # in eval mode nothing is random
    layer = make_layer(name, 4, 2, d_ff=2, **({"capacity_factor": capacity} if capacity else {})).double().eval()
    x = tokens(1, 5).double().requires_grad_()
    names = [name for name, p in layer.named_parameters() if p.numel()]

    def call(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        named = dict(zip(names, values, strict=True))
        return torch.func.functional_call(layer, named, (x,), {"token_ids": ids_of(x)})[0]

    values = [p.detach().clone().requires_grad_() for p in layer.parameters() if p.numel()]
    assert torch.autograd.gradcheck(call, (x, *values), fast_mode=True)


@pytest.mark.parametrize("name", ROUTERS)
def test_the_router_learns(name: str) -> None:
    layer = make_layer(name, k=2)
    torch.manual_seed(0)
    run(layer, tokens(2, 15))[0].square().sum().backward()
    if name == "hash":
        assert list(layer.router.parameters()) == []
    else:
        assert layer.router.weight.grad.abs().max() > 0


@pytest.mark.parametrize("name", ["topk", "topk_raw", "noisy_topk", "expert_choice", "sinkhorn"])
def test_all_experts_chosen_is_dense(name: str) -> None:
    layer, dense = make_layer(name, k=E).eval(), make_layer("dense").eval()
    dense.load_state_dict({k: v for k, v in layer.state_dict().items() if k != "router.weight_noise"})
    torch.testing.assert_close(run(layer, tokens(2, 9))[0], dense(tokens(2, 9))[0])


def test_top_p_of_1_is_dense() -> None:
    layer, dense = make_layer("top_p", top_p=1.0).eval(), make_layer("dense").eval()
    dense.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(tokens())[0], dense(tokens())[0])


@pytest.mark.parametrize("name", ROUTERS)
def test_ties_give_every_token_its_number_of_different_experts(name: str) -> None:
    layer = make_layer(name, k=3)
    if name != "hash":
        torch.nn.init.zeros_(layer.router.weight)
    y, routing = run(layer, tokens(2, 6))
    assert torch.isfinite(y).all()
    if name == "relu":
        assert (routing.expert_ids_TK == -1).all()
        assert (y == 0).all()
    if name == "expert_choice":
        assert np.bincount(routing.expert_ids_TK[routing.expert_ids_TK >= 0], minlength=E).tolist() == [6] * E
    if name == "base":
        assert np.bincount(routing.expert_ids_TK[:, 0], minlength=E).tolist() == [2] * E


@pytest.mark.parametrize("name", ROUTERS)
def test_half_precision_routes_in_float32(name: str) -> None:
    layer = make_layer(name).eval()
    x = tokens(2, 8).bfloat16()
    reference = make_layer(name).eval()
    with torch.no_grad():
        for p in reference.parameters():
            p.copy_(p.bfloat16().float())
    y, routing = run(layer.bfloat16(), x)
    _, expected = run(reference, x.float())
    assert y.dtype == torch.bfloat16
    assert routing.probs_TE.dtype == torch.float32
    torch.testing.assert_close(routing.gate_weights_TK, expected.gate_weights_TK)
    assert torch.equal(routing.expert_ids_TK, expected.expert_ids_TK)


def test_unknown_options_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="top_q"):
        build_router("top_p", D, E, K, top_q=0.5)
    with pytest.raises(ValueError, match="7 draws"):
        make_layer("topk", noise=1.0)(tokens(), torch.zeros(T, 7))


# ---- noise and its load estimate
def test_load_estimate_equals_numpy_and_the_counts() -> None:
    layer = make_layer("noisy_topk", noise=1.0)
    x = tokens(4000)
    routing = layer.router(x, torch.randn(4000, E, generator=torch.Generator().manual_seed(1)))
    p = load_probability(routing.logits_TE, routing.noisy_TE, routing.noise_std, K)
    std = torch.nn.functional.softplus(x @ layer.router.weight_noise.T).detach()
    torch.testing.assert_close(routing.noise_std.detach(), std)
    clean, noisy = routing.logits_TE.detach().numpy(), routing.noisy_TE.detach().numpy()
    for t, e in itertools.product(range(20), range(E)):
        threshold = np.sort(np.delete(noisy[t], e))[-K]
        expected = 0.5 * (1 + math.erf((clean[t, e] - threshold) / float(std[t, e]) / math.sqrt(2)))
        assert p[t, e].item() == pytest.approx(expected, abs=1e-5)
    counts = torch.bincount(routing.expert_ids_TK.flatten(), minlength=E)
    assert p.sum().item() == pytest.approx(4000 * K, rel=0.02)
    torch.testing.assert_close(p.sum(0), counts.float(), rtol=0.06, atol=0)
    p.square().sum().backward()
    assert layer.router.weight.grad.abs().max() > 0
    assert layer.router.weight_noise.grad.abs().max() > 0
    assert layer.router.eval()(x).noisy_TE is None


# ---- capacity
def placed_by_hand(ids: np.ndarray, order: list[int], groups: int) -> np.ndarray:
    out = np.zeros_like(ids)
    seen: dict[tuple[int, int], int] = {}
    length = len(ids) // groups
    for rank in range(ids.shape[1]):
        for t in order:
            key = (t // length, int(ids[t, rank]))
            if key[1] >= 0:
                out[t, rank] = seen.get(key, 0)
                seen[key] = out[t, rank] + 1
    return out


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_capacity_equals_a_queue_by_hand(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    groups, e = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 6))
    t, k = groups * data.draw(st.integers(1, 8)), data.draw(st.integers(1, e))
    factor = data.draw(st.sampled_from([0.3, 0.5, 1.0, 1.1, 1.25, 3.0]))
    ids = np.stack([rng.permutation(e)[:k] for _ in range(t)])
    ids[rng.random(ids.shape) < data.draw(st.sampled_from([0.0, 0.3]))] = -1
    priority = rng.random(t).round(1) if data.draw(st.booleans()) else None
    order = list(range(t)) if priority is None else sorted(range(t), key=lambda i: -priority[i])
    expected = placed_by_hand(ids, order, groups)
    tensors = torch.from_numpy(ids), None if priority is None else torch.from_numpy(priority)
    found = places(tensors[0], e, tensors[1], groups).numpy()
    assert (found == expected)[ids >= 0].all()
    for fixed in (k, None):
        dropped = overflow(*tensors, factor, [1 / e] * e, groups, fixed).numpy()
        for g in range(groups):
            part = slice(g * (t // groups), (g + 1) * (t // groups))
            total = t // groups * k if fixed else (ids[part] >= 0).sum()
            limit = math.ceil(round(factor * total / e, 6))
            assert (dropped[part] == ((expected[part] >= limit) & (ids[part] >= 0))).all()


@pytest.mark.parametrize("name", ["topk", "topk_raw", "noisy_topk", "switch", "gshard", "sinkhorn", "sigmoid_bias"])
def test_capacity_is_kept_and_weights_are_those_before_dropping(name: str) -> None:
    layer, free = make_layer(name, capacity_factor=0.8).eval(), make_layer(name).eval()
    free.load_state_dict(layer.state_dict())
    x = tokens(2, 30)
    y, routing = run(layer, x)
    limit = math.ceil(0.8 * layer.router.k * 60 / E)
    kept = routing.expert_ids_TK[~routing.dropped_TK]
    assert torch.bincount(kept, minlength=E).max() == limit
    assert routing.dropped_TK.any()
    unlimited = run(free, x)[1]
    assert unlimited.dropped_TK is None
    assert torch.equal(routing.expert_ids_TK, unlimited.expert_ids_TK)
    assert torch.equal(routing.gate_weights_TK, unlimited.gate_weights_TK.masked_fill(routing.dropped_TK, 0))
    torch.testing.assert_close(y.view(-1, D), by_hand(layer, x.view(-1, D), routing), atol=1e-5, rtol=1e-5)
    assert layer.router.looks_ahead == (layer.router.k > 1)
    layer.router.drop = "probability"
    assert layer.router.looks_ahead


def test_probability_keeps_the_surest_tokens() -> None:
    layer = make_layer("switch", capacity_factor=0.5, drop="probability").eval()
    routing = layer(tokens(60))[1]
    for e in range(E):
        mine = routing.expert_ids_TK[:, 0] == e
        kept, gone = (routing.probs_TE[mine & m, e] for m in (~routing.dropped_TK[:, 0], routing.dropped_TK[:, 0]))
        if len(gone):
            assert kept.min() >= gone.max()


def test_switch_with_capacity_equals_transformers() -> None:
    from transformers import SwitchTransformersConfig
    from transformers.models.switch_transformers.modeling_switch_transformers import SwitchTransformersTop1Router

    x = tokens(3, 16)
    layer = make_layer("switch", capacity_factor=1.0, scope="sequence").eval()
    config = SwitchTransformersConfig(
        hidden_size=D, num_experts=E, expert_capacity=math.ceil(16 / E), router_jitter_noise=0.0
    )
    oracle = SwitchTransformersTop1Router(config).eval()
    with torch.no_grad():
        oracle.classifier.weight.copy_(layer.router.weight)
    dispatch, prob, logits = oracle(x.clone())
    routing = layer(x)[1]
    torch.testing.assert_close(routing.logits_TE, logits.view(-1, E))
    kept = torch.nn.functional.one_hot(routing.expert_ids_TK[:, 0], E) * ~routing.dropped_TK
    assert torch.equal(kept, dispatch.view(-1, E))
    assert not kept.all(1).any()
    assert routing.dropped_TK.any()
    weight = prob.view(-1, 1).masked_fill(routing.dropped_TK, 0)
    torch.testing.assert_close(routing.gate_weights_TK, weight)


@pytest.mark.parametrize("prioritised", [False, True])
def test_gshard_with_capacity_equals_transformers(prioritised: bool) -> None:
    from transformers import NllbMoeConfig
    from transformers.models.nllb_moe.modeling_nllb_moe import NllbMoeTop2Router

    capacity = 5
    config = NllbMoeConfig(
        hidden_size=D,
        num_experts=E,
        expert_capacity=capacity,
        second_expert_policy="all",
        normalize_router_prob_before_dropping=True,
        batch_prioritized_routing=prioritised,
        router_bias=False,
    )
    oracle = NllbMoeTop2Router(config).train()
    drop = "probability" if prioritised else "position"
    layer = make_layer("gshard", second_policy="all", capacity_factor=capacity * E / (2 * T), drop=drop).eval()
    with torch.no_grad():
        oracle.classifier.weight.copy_(layer.router.weight)
    top_1, combine, _ = oracle(tokens())
    routing = layer(tokens())[1]
    assert routing.dropped_TK.any(0).all()
    ours = torch.zeros(T, E).scatter_add(1, routing.expert_ids_TK, routing.gate_weights_TK)
    torch.testing.assert_close(ours, combine)
    first = torch.nn.functional.one_hot(routing.expert_ids_TK[:, 0], E) * ~routing.dropped_TK[:, :1]
    assert torch.equal(first, top_1)


# ---- single routers
def test_switch_jitters_the_router_alone() -> None:
    layer = make_layer("switch", jitter=0.3)
    assert layer.router.num_draws == D
    x, draws = tokens(), torch.randn(T, D, generator=torch.Generator().manual_seed(1))
    before = x.clone()
    y, routing = layer(x, draws)
    assert torch.equal(x, before)
    jittered = x * (1 + 0.3 * (2 * torch.special.ndtr(draws) - 1))
    probs = (jittered @ layer.router.weight.T).softmax(-1)
    torch.testing.assert_close(routing.gate_weights_TK[:, 0], probs.amax(1))
    assert torch.equal(routing.expert_ids_TK[:, 0], probs.argmax(1))
    torch.testing.assert_close(routing.logits_TE, x @ layer.router.weight.T)
    torch.testing.assert_close(y, by_hand(layer, x, routing), atol=1e-5, rtol=1e-5)


def test_gshard_policies() -> None:
    x = tokens(2000)
    weights = make_layer("gshard", second_policy="all")(x)[1].gate_weights_TK
    torch.testing.assert_close(weights.sum(1), torch.ones(2000))
    second = weights[:, 1]
    for policy, used in (("none", second < 0), ("threshold", second > 0.3), ("all", second > 0)):
        routing = make_layer("gshard", second_policy=policy, second_threshold=0.3)(x)[1]
        assert torch.equal(routing.expert_ids_TK[:, 1] >= 0, used)
        torch.testing.assert_close(routing.gate_weights_TK, weights * torch.stack([used | True, used], 1))
    layer = make_layer("gshard", second_threshold=0.3)
    draws = torch.randn(2000, layer.router.num_draws, generator=torch.Generator().manual_seed(2))
    used = layer(x, draws)[1].expert_ids_TK[:, 1] >= 0
    assert used[second > 0.3].all()
    band = (second > 0.1) & (second < 0.2)
    expected = (second[band] / 0.3).mean().item()
    assert used[band].float().mean().item() == pytest.approx(expected, abs=4 * (0.25 / int(band.sum())) ** 0.5)
    assert (layer.eval()(x)[1].expert_ids_TK >= 0).all(), "no chance in eval mode"


@pytest.mark.parametrize(("t", "k"), [(30, 2), (31, 1), (7, 6), (1, 1)])
def test_expert_choice_equals_numpy(t: int, k: int) -> None:
    layer = make_layer("expert_choice", k=k)
    routing = layer(tokens(t))[1]
    p = (tokens(t) @ layer.router.weight.T).softmax(-1).detach().numpy()
    taken = np.zeros((t, E), bool)
    for e in range(E):
        taken[np.argsort(-p[:, e], kind="stable")[: math.ceil(t * k / E)], e] = True
    found = np.zeros((t, E))
    for row, ids, weights in zip(found, routing.expert_ids_TK.tolist(), routing.gate_weights_TK.tolist(), strict=True):
        row[[i for i in ids if i >= 0]] = [w for i, w in zip(ids, weights, strict=True) if i >= 0]
    assert ((found > 0) == taken).all()
    np.testing.assert_allclose(found, p * taken, rtol=1e-5)
    assert layer.router.looks_ahead


def test_expert_choice_by_sequence_is_each_sequence_alone() -> None:
    layer = make_layer("expert_choice", scope="sequence")
    y, _ = layer(tokens(3, 11))
    for row, alone in zip(tokens(3, 11), y, strict=True):
        torch.testing.assert_close(layer(row[None])[0][0], alone)


def test_sinkhorn_balances_in_training_only() -> None:
    x = tokens(512)
    layer = make_layer("sinkhorn", e=8, k=1)
    with torch.no_grad():
        layer.router.weight.add_(torch.arange(8)[:, None] * 0.4 * x.mean(0))
    train, even = layer.train()(x)[1], layer.eval()(x)[1]
    logits = x @ layer.router.weight.T
    plan = torch.exp(logits.double())
    d1 = torch.ones(8, dtype=torch.float64)
    for _ in range(2000):
        d0 = 1 / (512 * (plan @ d1))
        d1 = 1 / (8 * (d0 @ plan))
    exact = d0[:, None] * plan * d1
    torch.testing.assert_close(sinkhorn(logits.detach().double(), 1e-12), exact.detach(), rtol=1e-4, atol=1e-9)
    loads = [torch.bincount(r.expert_ids_TK[:, 0], minlength=8) for r in (train, even)]
    assert loads[0].float().std() < 0.5 * loads[1].float().std()
    assert (train.expert_ids_TK[:, 0] == exact.argmax(1)).float().mean() > 0.97
    torch.testing.assert_close(train.gate_weights_TK, logits.gather(1, train.expert_ids_TK).sigmoid())
    layer.router.k = 3
    routing = layer.train()(x)[1]
    torch.testing.assert_close(routing.gate_weights_TK, logits.softmax(-1).gather(1, routing.expert_ids_TK))
    assert torch.isfinite(sinkhorn(torch.tensor([[500.0, 0, 0], [0, 500, 0], [0, 0, -500]]))).all()


def best_total(scores: np.ndarray) -> float:
    n, e = scores.shape
    room = math.ceil(n / e)
    options = itertools.product(range(e), repeat=n)
    return max(
        sum(scores[i, j] for i, j in enumerate(option))
        for option in options
        if max(np.bincount(option, minlength=e)) <= room
    )


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 7), e=st.integers(1, 4), seed=st.integers(0, 10**6), coarse=st.booleans())
def test_base_assignment_is_the_best_of_all(n: int, e: int, seed: int, coarse: bool) -> None:
    scores = np.random.default_rng(seed).normal(size=(n, e)) * 2
    scores = scores.round() if coarse else scores
    ids = balanced_assignment(scores)
    assert np.bincount(ids, minlength=e).max() <= math.ceil(n / e)
    assert scores[np.arange(n), ids].sum() == pytest.approx(best_total(scores))


@pytest.mark.parametrize(("n", "e"), [(96, 8), (200, 16), (130, 7)])
def test_base_assignment_has_no_better_exchange(n: int, e: int) -> None:
    """Optimal exactly when no cycle of moves among the experts, and no chain to one with room, gains."""
    scores = np.random.default_rng(n).normal(size=(n, e)) + np.linspace(0, 4, e)  # one expert is wanted by most
    ids = balanced_assignment(scores)
    load = np.bincount(ids, minlength=e)
    assert load.max() <= math.ceil(n / e)
    cost = np.full((e, e), np.inf)
    for i in range(e):
        cost[i] = (scores[ids == i, i][:, None] - scores[ids == i]).min(0)
    for via in range(e):  # Floyd-Warshall
        cost = np.minimum(cost, cost[:, via, None] + cost[None, via])
    assert cost.diagonal().min() > -1e-9
    assert cost[:, load < math.ceil(n / e)].min(initial=0) > -1e-9


def test_base_is_even_in_training_and_greedy_after() -> None:
    x = tokens(60)
    layer = make_layer("base")
    train, greedy = layer.train()(x)[1], layer.eval()(x)[1]
    assert torch.bincount(train.expert_ids_TK[:, 0]).tolist() == [10] * E
    logits = x @ layer.router.weight.T
    assert torch.equal(greedy.expert_ids_TK[:, 0], logits.argmax(1))
    for routing in (train, greedy):
        torch.testing.assert_close(routing.gate_weights_TK, logits.gather(1, routing.expert_ids_TK).sigmoid())
    assert not layer.router.looks_ahead
    assert layer.router.train().looks_ahead
    assert torch.allclose(build_router("base", D, E, 1).weight.norm(dim=1), torch.tensor(0.1))
    assert np.bincount(balanced_assignment(np.full((6, 3), np.nan))).tolist() == [2, 2, 2]


@pytest.mark.parametrize(("groups", "kept", "k"), [(1, 1, 3), (4, 2, 3), (2, 1, 4), (4, 4, 2)])
def test_sigmoid_bias_equals_deepseek(groups: int, kept: int, k: int) -> None:
    from transformers import DeepseekV3Config
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter

    config = DeepseekV3Config(
        hidden_size=D, n_routed_experts=8, num_experts_per_tok=k, n_group=groups, topk_group=kept, norm_topk_prob=True
    )
    oracle = DeepseekV3TopkRouter(config)
    layer = make_layer("sigmoid_bias", 8, k, groups=groups, topk_groups=kept, scale=2.5)
    with torch.no_grad():
        oracle.weight.copy_(layer.router.weight)
        bias = torch.randn(8, generator=torch.Generator().manual_seed(1))
        oracle.e_score_correction_bias.copy_(bias)
        layer.router.bias.copy_(bias)
    logits, weights, ids = oracle(tokens(200))
    routing = layer(tokens(200))[1]
    torch.testing.assert_close(routing.logits_TE, logits)
    expected, found = (
        torch.zeros(200, 8).scatter(1, i, w)
        for i, w in ((ids, weights), (routing.expert_ids_TK, routing.gate_weights_TK))
    )
    torch.testing.assert_close(found, expected)
    scores = logits.sigmoid()
    torch.testing.assert_close(routing.probs_TE, scores / scores.sum(1, keepdim=True))
    finite = routing.selection_scores_TE.isfinite()
    torch.testing.assert_close(routing.selection_scores_TE[finite], (scores + bias)[finite])
    assert finite.sum(1).unique().tolist() == [8 // groups * kept]
    chosen = routing.selection_scores_TE.topk(k).indices
    assert torch.equal(chosen.sort().values, routing.expert_ids_TK.sort().values)


def test_sigmoid_bias_moves_against_the_load_and_balances() -> None:
    layer = make_layer("sigmoid_bias", bias_speed=0.02)
    counts = torch.tensor([5.0, 1, 3, 3, 0, 6])
    layer.router.after_step(counts, counts[None], 9)
    torch.testing.assert_close(layer.router.bias, 0.02 * torch.tensor([-1.0, 1, 0, 0, 1, -1]))
    torch.nn.init.zeros_(layer.router.bias)
    with torch.no_grad():
        layer.router.weight.mul_(0.3).add_(torch.arange(E)[:, None] * 0.04)
    spread = []
    layer.router.bias_speed = 0.005
    for _ in range(250):
        routing = layer.router(tokens(200) + 0.5)
        counts = torch.bincount(routing.expert_ids_TK.flatten(), minlength=E)
        spread.append(float(counts.max() / counts.float().mean() - 1))
        layer.router.after_step(counts, counts[None], 200)
    assert spread[0] > 1
    assert max(spread[-20:]) < 0.2
    layer.bfloat16()
    assert layer.router.bias.dtype == torch.float32
    assert "bias" not in dict(layer.router.named_parameters())
    assert "router.bias" in layer.state_dict()


def test_sigmoid_bias_refuses_groups_that_cannot_hold_k() -> None:
    for groups, kept in ((4, 1), (3, 1), (2, 3)):
        with pytest.raises(ValueError, match="groups"):
            make_layer("sigmoid_bias", 8, 3, groups=groups, topk_groups=kept)(tokens())


def test_hash_follows_its_table() -> None:
    layer = make_layer("hash", hash_table="balanced")
    ids = torch.randint(VOCABULARY, (3, 9), generator=torch.Generator().manual_seed(0))
    _, routing = layer(tokens(3, 9), token_ids=ids)
    assert torch.equal(routing.expert_ids_TK[:, 0], layer.router.table[ids.flatten()])
    assert (routing.gate_weights_TK == 1).all()
    assert torch.equal(routing.probs_TE.argmax(1), routing.expert_ids_TK[:, 0])
    counts = torch.bincount(layer.router.table, minlength=E)
    assert int(counts.max() - counts.min()) <= 1
    frequencies = torch.tensor([100, 50, 50, *([5] * 17)])
    table = build_router(
        "hash", D, 3, 1, vocabulary_size=VOCABULARY, hash_table="balanced", frequencies=frequencies
    ).table
    loads = torch.zeros(3, dtype=torch.int64).scatter_add_(0, table, frequencies)
    assert int(loads.max() - loads.min()) <= 15
    a, b, other = (build_router("hash", D, E, 1, generator=torch.Generator().manual_seed(s)).table for s in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, other)
    with pytest.raises(ValueError, match="token_ids"):
        layer(tokens())


@settings(deadline=None, max_examples=30)
@given(threshold=st.floats(0, 0.99), e=st.integers(1, 9), seed=st.integers(0, 10**6))
def test_top_p_equals_a_loop(threshold: float, e: int, seed: int) -> None:
    router = build_router("top_p", D, e, 1, top_p=threshold, generator=torch.Generator().manual_seed(seed)).double()
    with torch.no_grad():
        router.weight.mul_(40)
    x = tokens(9, seed=seed).double()
    routing = router(x)
    for p, ids, weights in zip(
        (x @ router.weight.T).softmax(-1).tolist(),
        routing.expert_ids_TK.tolist(),
        routing.gate_weights_TK.tolist(),
        strict=True,
    ):
        chosen: list[int] = []
        for i in sorted(range(e), key=lambda i: -p[i]):
            chosen.append(i)
            if sum(p[j] for j in chosen) > threshold:
                break
        assert ids == chosen + [-1] * (e - len(chosen))
        assert weights == pytest.approx([p[i] for i in chosen] + [0] * (e - len(chosen)))


def test_relu_weights_and_its_controller() -> None:
    layer = make_layer("relu", k=2)
    routing = layer(tokens())[1]
    gates = (tokens() @ layer.router.weight.T).relu()
    found = torch.zeros(T, E).scatter_add(1, routing.expert_ids_TK.clamp_min(0), routing.gate_weights_TK)
    torch.testing.assert_close(found, gates)
    assert torch.equal((routing.expert_ids_TK >= 0).sum(1), (gates > 0).sum(1))
    router: Any = layer.router
    start = float(router.l1)
    assert start == pytest.approx(1e-8)
    full = torch.full((3, E), 30.0)
    for _ in range(76):
        router.after_step(full[0], full, 30)
    assert float(router.l1) == pytest.approx(1e-8 * 1.2**76, rel=1e-4)
    router.after_step(full[0], full * 0, 30)
    assert float(router.l1) == pytest.approx(1e-8 * 1.2**75, rel=1e-4)
    router.after_step(full[0], full * 2 / E, 30)
    assert float(router.l1) == pytest.approx(1e-8 * 1.2**75, rel=1e-4), "at the aim it rests"


def test_null_experts_equal_longcat() -> None:
    from transformers import LongcatFlashConfig
    from transformers.models.longcat_flash.modeling_longcat_flash import LongcatFlashMoE

    config = LongcatFlashConfig(
        hidden_size=D,
        expert_ffn_hidden_size=F,
        n_routed_experts=E,
        zero_expert_num=3,
        moe_topk=K,
        num_experts_per_tok=K,
        routed_scaling_factor=1.0,
    )
    oracle = LongcatFlashMoE(config).eval()
    layer = make_layer("null", copy_experts=3, constant_experts=0, zero_experts=0).eval()
    with torch.no_grad():
        oracle.router.e_score_correction_bias.zero_()
        oracle.router.classifier.weight.copy_(layer.router.weight)
        oracle.experts.gate_up_proj[:E].copy_(layer.experts.gate_up_proj)
        oracle.experts.down_proj.copy_(layer.experts.down_proj)
        expected = oracle(tokens(1, T))[0]
    y, routing = layer(tokens())
    assert (routing.expert_ids_TK >= E).any()
    # there the weights are the plain probabilities, here they are divided by their sum as in MoE++
    mass = routing.probs_TE.gather(1, routing.expert_ids_TK).sum(1, keepdim=True)
    torch.testing.assert_close(y * mass, expected, atol=1e-5, rtol=1e-5)


def test_null_weights_as_released() -> None:
    layer = make_layer("null", k=2).eval()
    router: Any = layer.router
    assert router.num_experts == E + 4
    assert layer.experts.num_experts == E
    x = tokens(300)
    gates, indices = (x @ router.weight.T).softmax(1).topk(2)
    gates = torch.where(indices == E + 3, 0, gates)
    gates = gates / gates.sum(1, keepdim=True)
    routing = layer(x)[1]
    torch.testing.assert_close(routing.gate_weights_TK, gates)
    assert (indices == E + 3).any()
    router.k = 1
    routing = layer(x)[1]
    alone = routing.expert_ids_TK[:, 0] == E + 3
    assert alone.any()
    assert (routing.gate_weights_TK[alone] == 0).all()
    router.capacity_factor, router.k = 1.1, 2
    routing = layer(x)[1]
    kept = torch.bincount(routing.expert_ids_TK[~routing.dropped_TK], minlength=E + 4)
    share = 1.1 * 2 * 300 / (0.75 * E + 4)
    assert kept[:E].max() <= math.ceil(0.75 * share)
    assert kept[E:].max() <= math.ceil(share)


@pytest.mark.parametrize("slots", [1, 3])
def test_soft_moe_equals_the_released_formulas(slots: int) -> None:
    layer = make_layer("soft", slots=slots)
    x = tokens(2, 9)
    y, routing = layer(x)
    torch.testing.assert_close(y, soft_by_hand(layer, x), atol=1e-5, rtol=1e-5)
    assert routing.dispatch_BCS.shape == (2, 9, E * slots)
    torch.testing.assert_close(routing.dispatch_BCS.sum(1), torch.ones(2, E * slots))
    mass = routing.combine_BCS.view(18, E, slots).sum(-1)
    torch.testing.assert_close(routing.probs_TE, mass)
    torch.testing.assert_close(routing.gate_weights_TK, mass.gather(1, routing.expert_ids_TK))
    assert layer.router.looks_ahead


# ---- shared experts
def test_shared_experts_equal_qwen2_and_deepseek() -> None:
    from transformers import DeepseekV3Config, Qwen2MoeConfig
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
    from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeSparseMoeBlock

    generator = torch.Generator().manual_seed(2)
    qwen_config = Qwen2MoeConfig(
        hidden_size=D,
        moe_intermediate_size=F,
        shared_expert_intermediate_size=2 * F,
        num_experts=E,
        num_experts_per_tok=K,
        norm_topk_prob=False,
    )
    deepseek_config = DeepseekV3Config(
        hidden_size=D,
        moe_intermediate_size=F,
        n_routed_experts=E,
        n_shared_experts=2,
        num_experts_per_tok=K,
        n_group=1,
        topk_group=1,
    )
    for name, block, options in (
        ("topk_raw", Qwen2MoeSparseMoeBlock(qwen_config), {}),
        ("sigmoid_bias", DeepseekV3MoE(deepseek_config), {"scale": 2.5}),
    ):
        gated = name == "topk_raw"
        router = build_router(name, D, E, K, generator=generator, **options)
        layer = MoELayer(D, F, router, shared_experts=2, shared_gate=gated, generator=generator).eval()
        mlp = block.shared_expert if gated else block.shared_experts
        with torch.no_grad():
            router.weight.mul_(20)
            block.gate.weight.copy_(router.weight)
            block.experts.gate_up_proj.copy_(layer.experts.gate_up_proj)
            block.experts.down_proj.copy_(layer.experts.down_proj)
            gate, up = layer.shared.gate_up_proj.chunk(2)
            mlp.gate_proj.weight.copy_(gate)
            mlp.up_proj.weight.copy_(up)
            mlp.down_proj.weight.copy_(layer.shared.down_proj)
            if gated:
                block.shared_expert_gate.weight.copy_(layer.shared.gate)
            expected = block.eval()(tokens(2, 9))
        expected = expected[0] if isinstance(expected, tuple) else expected
        torch.testing.assert_close(layer(tokens(2, 9))[0], expected, atol=1e-5, rtol=1e-5)


def test_outputs_of_experts_can_be_kept() -> None:
    for name in ("topk", "top_p", "null"):
        layer = make_layer(name).eval()
        y, routing = layer(tokens())
        layer.keep_outputs = True
        again, kept = layer(tokens())
        torch.testing.assert_close(again, y, atol=1e-5, rtol=1e-5)
        assert routing.outputs_TKD is None
        for t in range(T):
            for e, output in zip(routing.expert_ids_TK[t].tolist(), kept.outputs_TKD[t], strict=True):
                expected = expert(layer, e, tokens()[t]) if 0 <= e < E else torch.zeros(D)
                torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)


def test_best_first_is_stable() -> None:
    ids, weights = best_first(torch.tensor([[0.2, 0.5, 0.2]]), torch.tensor([[True, True, True]]))
    assert ids.tolist() == [[1, 0, 2]]
    ids, weights = best_first(torch.tensor([[0.2, 0.5, 0.2]]), torch.tensor([[True, False, True]]))
    assert ids.tolist() == [[0, 2, -1]]
    assert weights[0, 2] == 0


@pytest.mark.parametrize("name", ROUTERS)
def test_no_gradient_through_counts(name: str) -> None:
    routing = run(make_layer(name), tokens(2, 8))[1]
    assert not routing.expert_ids_TK.requires_grad
    assert routing.dropped_TK is None or not routing.dropped_TK.requires_grad
    assert routing.selection_scores_TE is None or not routing.selection_scores_TE.requires_grad


def test_every_router_names_its_options_as_attributes() -> None:
    for name, kind in ROUTERS.items():
        router: Router = build_router(name, D, E, K)
        for option in kind.options:
            assert hasattr(router, option)
