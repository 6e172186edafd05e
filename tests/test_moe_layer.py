"""Routers, experts, the layer and its losses, against transformers and numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moeviz.moe import MoELayer, build_router
from moeviz.moe.losses import balance_loss, expert_counts, z_loss
from moeviz.moe.routers import RoutingTensors

D, F, E, K, T = 16, 24, 8, 2, 50
PLAIN = ("dense", "topk", "topk_raw", "noisy_topk")  # the others are in test_routers.py


def make_layer(name: str, e: int = E, k: int = K, **options: float) -> MoELayer:
    generator = torch.Generator().manual_seed(3)
    layer = MoELayer(D, F, build_router(name, D, e, k, generator=generator, **options), generator=generator)
    with torch.no_grad():
        layer.router.weight.mul_(20)  # far from ties
    return layer


def tokens(*shape: int) -> torch.Tensor:
    return torch.randn(*(shape or (T,)), D, generator=torch.Generator().manual_seed(5))


def by_hand(layer: MoELayer, x_TD: torch.Tensor, routing: RoutingTensors) -> torch.Tensor:
    """Every chosen expert of every token, one at a time."""
    y = torch.zeros_like(x_TD)
    for t in range(x_TD.shape[0]):
        for e, w in zip(routing.expert_ids_TK[t], routing.gate_weights_TK[t], strict=True):
            gate, up = (layer.experts.gate_up_proj[e] @ x_TD[t]).chunk(2)
            y[t] += w * (layer.experts.down_proj[e] @ (torch.nn.functional.silu(gate) * up))
    return y


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize(("e", "k"), [(8, 2), (8, 1), (8, 8), (1, 1), (5, 3)])
def test_layer_equals_the_sum_by_hand(name: str, e: int, k: int) -> None:
    layer, x = make_layer(name, e, k).eval(), tokens(3, 7)
    y, routing = layer(x)
    assert y.shape == x.shape
    torch.testing.assert_close(y.view(-1, D), by_hand(layer, x.view(-1, D), routing), atol=1e-5, rtol=1e-5)
    assert routing.expert_ids_TK.shape == (21, e if name == "dense" else k)
    assert (routing.gate_weights_TK.diff(dim=1) <= 0).all(), "best first"
    torch.testing.assert_close(routing.probs_TE, routing.logits_TE.softmax(-1))
    if name != "topk_raw":
        torch.testing.assert_close(routing.gate_weights_TK.sum(1), torch.ones(21))


@pytest.mark.parametrize("name", ["topk", "topk_raw"])
def test_all_experts_chosen_is_dense(name: str) -> None:
    sparse, dense = make_layer(name, k=E).eval(), make_layer("dense").eval()
    y, routing = sparse(tokens())
    expected, expected_routing = dense(tokens())
    torch.testing.assert_close(y, expected)
    assert torch.equal(routing.expert_ids_TK, expected_routing.expert_ids_TK)


def assert_same_as(block: torch.nn.Module, layer: MoELayer) -> None:
    """Copy our weights into a block of transformers as they are; the outputs must agree."""
    with torch.no_grad():
        block.gate.weight.copy_(layer.router.weight)
        block.experts.gate_up_proj.copy_(layer.experts.gate_up_proj)
        block.experts.down_proj.copy_(layer.experts.down_proj)
    expected = block(tokens(2, 9))
    expected = expected[0] if isinstance(expected, tuple) else expected
    torch.testing.assert_close(layer(tokens(2, 9))[0], expected, atol=1e-5, rtol=1e-5)


def test_topk_equals_mixtral() -> None:
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    config = MixtralConfig(hidden_size=D, intermediate_size=F, num_local_experts=E, num_experts_per_tok=K)
    config._experts_implementation = "eager"
    assert_same_as(MixtralSparseMoeBlock(config).eval(), make_layer("topk").eval())


def test_topk_raw_equals_olmoe() -> None:
    from transformers import OlmoeConfig
    from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock

    config = OlmoeConfig(hidden_size=D, intermediate_size=F, num_experts=E, num_experts_per_tok=K, norm_topk_prob=False)
    config._experts_implementation = "eager"
    assert_same_as(OlmoeSparseMoeBlock(config).eval(), make_layer("topk_raw").eval())


@pytest.mark.parametrize("name", PLAIN)
def test_no_tokens(name: str) -> None:
    layer = make_layer(name)
    y, routing = layer(tokens(0))
    assert y.shape == (0, D)
    assert routing.expert_ids_TK.shape == (0, E if name == "dense" else K)
    assert balance_loss([routing]) == 0
    assert z_loss([routing]) == 0


def test_float64_agrees() -> None:
    layer = make_layer("topk")
    y, routing = layer(tokens())
    y64, routing64 = layer.double()(tokens().double())
    assert y64.dtype == routing64.probs_TE.dtype == torch.float64
    assert torch.equal(routing.expert_ids_TK, routing64.expert_ids_TK)
    torch.testing.assert_close(y.double(), y64, atol=1e-5, rtol=1e-5)


def test_noise_acts_in_training_only_and_probs_stay_clean() -> None:
    for name in PLAIN:
        layer = make_layer(name, noise=2.0)
        clean = layer.eval()(tokens())[1]
        assert torch.equal(clean.gate_weights_TK, layer(tokens())[1].gate_weights_TK)
        torch.manual_seed(0)
        noisy = layer.train()(tokens())[1]
        assert not torch.equal(clean.expert_ids_TK, noisy.expert_ids_TK)
        assert torch.equal(clean.probs_TE, noisy.probs_TE)
        assert torch.equal(clean.logits_TE, noisy.logits_TE)
        layer.router.noise = 0.0
        assert torch.equal(clean.expert_ids_TK, layer(tokens())[1].expert_ids_TK)


def test_noisy_scores_follow_the_formulas() -> None:
    x, epsilon = tokens(), torch.randn(T, E, generator=torch.Generator().manual_seed(9))
    topk = make_layer("topk", k=E, noise=0.7, temperature=1.5).router
    routing = topk(x, epsilon)
    expected = ((x @ topk.weight.T + 0.7 * epsilon) / 1.5).softmax(-1)
    torch.testing.assert_close(routing.gate_weights_TK, expected.gather(1, routing.expert_ids_TK))
    noisy = make_layer("noisy_topk", k=E, noise=0.7).router
    routing = noisy(x, epsilon)
    std = torch.nn.functional.softplus(x @ noisy.weight_noise.T)
    expected = (x @ noisy.weight.T + 0.7 * epsilon * std).softmax(-1)
    torch.testing.assert_close(routing.gate_weights_TK, expected.gather(1, routing.expert_ids_TK))


def test_live_knobs() -> None:
    layer = make_layer("topk").eval()
    layer.router.k = 3
    layer.router.temperature = 0.1
    _, routing = layer(tokens())
    assert routing.expert_ids_TK.shape == (T, 3)
    torch.testing.assert_close(routing.probs_TE, (routing.logits_TE / 0.1).softmax(-1))
    with pytest.raises(ValueError, match="9"):
        layer.router.k = 9
    with pytest.raises(ValueError, match="no router"):
        build_router("nosuch", D, E, K)


def test_router_starts_away_from_ties() -> None:
    router = build_router("topk", 64, 8, 2, generator=torch.Generator().manual_seed(0))
    assert router.weight.shape == (8, 64)
    assert 0.015 < router.weight.std() < 0.025


def test_top_1_renormalised_gives_the_router_no_gradient_but_raw_does() -> None:
    for name, silent in (("topk", True), ("topk_raw", False)):
        layer = make_layer(name, k=1)
        layer(tokens())[0].square().sum().backward()
        assert (layer.router.weight.grad.abs().max() == 0) == silent


@settings(deadline=None, max_examples=40)
@given(t=st.integers(1, 40), e=st.integers(1, 12), layers=st.integers(1, 3), data=st.data())
def test_losses_equal_numpy(t: int, e: int, layers: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, e))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    balances, zs, routings = [], [], []
    for _ in range(layers):
        z = rng.normal(size=(t, e)) * 3
        p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        ids = np.argsort(-z, axis=1)[:, :k]
        q = np.bincount(ids.ravel(), minlength=e) / (t * k)
        balances.append(e * (q * p.mean(0)).sum())
        zs.append((np.log(np.exp(z).sum(1)) ** 2).mean())
        routings.append(RoutingTensors(*map(torch.tensor, (ids, np.take_along_axis(p, ids, 1), p, z))))
        assert expert_counts(routings[-1].expert_ids_TK, e).tolist() == np.bincount(ids.ravel(), minlength=e).tolist()
    assert float(balance_loss(routings)) == pytest.approx(np.mean(balances), rel=1e-6)
    assert float(z_loss(routings)) == pytest.approx(np.mean(zs), rel=1e-6)


def test_balance_loss_has_gradient_through_probabilities_only() -> None:
    layer = make_layer("topk")
    routing = layer(tokens())[1]
    balance_loss([routing]).backward()
    assert layer.router.weight.grad.abs().max() > 0
    assert layer.experts.down_proj.grad is None
