"""Every auxiliary loss against transformers, numpy, finite differences, and its own properties."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moeviz.moe import losses
from moeviz.moe.routers import RoutingTensors
from moeviz.moe.traced import trace

T, K, E, D = 24, 2, 8, 6


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def logits(seed: int = 0, t: int = T, e: int = E) -> Tensor:
    return torch.randn(t, e, generator=rng(seed), dtype=torch.float64) * 2


def top(z_TE: Tensor, k: int = K) -> Tensor:
    return z_TE.detach().topk(k).indices


# drawn once: a trace would draw them again, by another generator
OUTPUTS = torch.randn(T, K, D, generator=rng(9), dtype=torch.float64)
NOISE = 0.6 * torch.randn(T, E, generator=rng(7), dtype=torch.float64)
IS_NULL = torch.arange(E) >= E - 2

# what each loss of a layer makes of scores z (T, E) and a mask; gradients flow from z unless it does not use them
LOSSES: dict[str, Callable[[Tensor, Tensor | None], Tensor]] = {
    "switch": lambda z, m: losses.switch_balance(z.softmax(-1), top(z), m),
    "switch first": lambda z, m: losses.switch_balance(z.softmax(-1), top(z), m, choices="first"),
    "switch tokens": lambda z, m: losses.switch_balance(z.softmax(-1), top(z), m, normalise="tokens"),
    "switch sequences": lambda z, m: losses.switch_balance(z.softmax(-1), top(z), m, groups=3),
    "deepseek": lambda z, m: losses.deepseek_sequence_balance(z.sigmoid(), K, 3, m),
    "heterogeneous": lambda z, m: losses.heterogeneous_balance(z.softmax(-1), top(z), IS_NULL, m),
    "importance": lambda z, m: losses.importance_cv2(z.topk(K).values.softmax(-1), top(z), E, m),
    "load": lambda z, m: losses.load_cv2(losses.load_probability(z, z + NOISE[: len(z)], z.exp() / 4, K), m),
    "z": losses.router_z,
    "token entropy": lambda z, m: losses.token_entropy(z.softmax(-1), m),
    "batch entropy": lambda z, m: losses.batch_entropy(z.softmax(-1), m),
    "mutual information": lambda z, m: losses.mutual_information(z.softmax(-1), m),
    "orthogonality": lambda z, m: losses.output_orthogonality(z[:, :K, None] * OUTPUTS[: len(z)], top(z), m),
    "variance": lambda z, m: losses.score_variance(z.softmax(-1), m),
    "relu": lambda z, m: losses.relu_l1(z.relu(), K, m),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_against_finite_differences(name: str) -> None:
    mask = torch.rand(T, generator=rng(3)) < 0.7
    z = logits().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: LOSSES[name](z, mask), (z,))
    (grad,) = torch.autograd.grad(LOSSES[name](z, mask), z)
    assert grad[mask].abs().max() > 0
    assert grad[~mask].abs().max() == 0, "padding has no say"


@pytest.mark.parametrize("name", LOSSES)
def test_padding_changes_nothing_whatever_it_holds(name: str) -> None:
    z, mask = logits(), torch.ones(T, dtype=torch.bool)
    mask[[1, 4, 5, 9, 16, 17, 23]] = False  # three, one and three tokens of the three sequences
    value = LOSSES[name](z, mask)
    other = z.clone()
    other[~mask] = 50 * logits(5)[~mask]
    torch.testing.assert_close(LOSSES[name](other, mask), value)
    if name in ("load", "orthogonality"):
        return  # here they draw on numbers by a token's place
    if name in ("switch sequences", "deepseek"):
        one = {
            "switch sequences": LOSSES["switch"],
            "deepseek": lambda z, _: losses.deepseek_sequence_balance(z.sigmoid(), K, 1),
        }[name]
        expected = torch.stack([one(z[i : i + 8][mask[i : i + 8]], None) for i in (0, 8, 16)]).mean()
    else:
        expected = LOSSES[name](z[mask], None)
    torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("name", LOSSES)
def test_no_tokens_give_zero_and_a_gradient_path(name: str) -> None:
    for z, mask in ((logits(t=0), None), (logits(), torch.zeros(T, dtype=torch.bool))):
        z.requires_grad_()
        value = LOSSES[name](z, mask)
        assert value.shape == ()
        assert value == 0
        value.backward()
        assert z.grad is not None
        assert not z.grad.any()


@pytest.mark.parametrize("name", LOSSES)
def test_can_be_traced_and_the_trace_follows_the_data(name: str) -> None:
    class Module(torch.nn.Module):
        def forward(self, z: Tensor, mask: Tensor) -> Tensor:
            return LOSSES[name](z, mask)

    mask = torch.arange(T) % 5 > 0
    traced = trace(Module(), (logits(0), mask))
    for z, m in ((logits(1), mask), (logits(2), ~mask), (logits(2), torch.zeros_like(mask))):
        torch.testing.assert_close(traced(z, m), LOSSES[name](z, m))


PERMUTABLE = [name for name in LOSSES if name not in ("heterogeneous", "load", "orthogonality")]


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(PERMUTABLE), st.integers(0, 10_000), st.permutations(range(E)))
def test_the_names_of_experts_do_not_matter(name: str, seed: int, order: list[int]) -> None:
    z = logits(seed)
    torch.testing.assert_close(LOSSES[name](z[:, order], None), LOSSES[name](z, None))


@settings(deadline=None, max_examples=60)
@given(e=st.integers(1, 9), t=st.integers(1, 40), scale=st.sampled_from([0.0, 1.0, 30.0]), data=st.data())
def test_ranges(e: int, t: int, scale: float, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, e))
    z = logits(data.draw(st.integers(0, 10_000)), t, e) * scale
    p, ids = z.softmax(-1), top(z, k)
    ln_e, slack = float(np.log(e)), 1e-9
    assert 0 <= losses.switch_balance(p, ids) <= e / k + slack
    assert 0 <= losses.switch_balance(p, ids, normalise="tokens") <= e + slack
    assert 0 <= losses.importance_cv2(p.gather(1, ids), ids, e) <= e - 1 + slack
    assert -slack <= losses.token_entropy(p) <= losses.batch_entropy(p) + slack <= ln_e + 2 * slack
    assert -slack <= losses.mutual_information(p) <= ln_e + slack
    assert -(e - 1) / e**2 - slack <= losses.score_variance(p) <= 0
    assert 0 <= losses.relu_density(z.relu()) <= 1
    noisy, std = z + logits(1, t, e), torch.ones(e, dtype=torch.float64)
    chance = losses.load_probability(z, noisy, std, k)
    assert 0 <= float(chance.min()) <= float(chance.max()) <= 1


# ---- values
def even(k: int) -> tuple[Tensor, Tensor]:
    """Probabilities and choices that are perfectly even."""
    return torch.full((T, E), 1 / E), (torch.arange(T)[:, None] + torch.arange(k)) % E


def collapsed(k: int) -> tuple[Tensor, Tensor]:
    """Every token on the same k experts."""
    probs = torch.zeros(T, E)
    probs[:, :k] = 1 / k
    return probs, torch.arange(k).expand(T, k)


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize(
    ("normalise", "value_even", "value_collapsed"),
    [("choices", lambda k: 1, lambda k: E / k), ("tokens", lambda k: k, lambda k: E)],
)
def test_the_table_of_normalisations(
    k: int, normalise: losses.Normalise, value_even: Callable[[int], float], value_collapsed: Callable[[int], float]
) -> None:
    for groups in (1, 3):
        value = losses.switch_balance(*even(k), normalise=normalise, groups=groups)
        assert float(value) == pytest.approx(value_even(k), rel=1e-6)
        value = losses.switch_balance(*collapsed(k), normalise=normalise, groups=groups)
        assert float(value) == pytest.approx(value_collapsed(k), rel=1e-6)


def test_values_when_even_and_when_collapsed() -> None:
    ln_e = float(np.log(E))
    sure = torch.nn.functional.one_hot(torch.arange(T) % E, E).double()
    for value, expected in (
        (losses.deepseek_sequence_balance(torch.full((T, E), 0.5), K, 3), 1),
        (losses.deepseek_sequence_balance(collapsed(K)[0], K, 3), E / K),
        (losses.heterogeneous_balance(*even(K), IS_NULL), K * (6 + 2 * 0.75) / 8 / E),
        (losses.heterogeneous_balance(*collapsed(K), IS_NULL), 1),
        (losses.importance_cv2(torch.full((T, K), 0.5), even(K)[1], E), 0),
        (losses.importance_cv2(torch.full((T, K), 0.5), collapsed(K)[1], E), E / K - 1),
        (losses.importance_cv2(torch.tensor([[1.0, 0.0]]).expand(T, K), collapsed(K)[1], E), E - 1),
        (losses.router_z(torch.zeros(T, E)), ln_e**2),
        (losses.token_entropy(even(K)[0]), ln_e),
        (losses.token_entropy(sure), 0),
        (losses.batch_entropy(sure), ln_e),
        (losses.mutual_information(sure), ln_e),
        (losses.mutual_information(even(K)[0]), 0),
        (losses.mutual_information(collapsed(K)[0]), 0),
        (losses.score_variance(sure), -(E - 1) / E**2),
        (losses.score_variance(collapsed(K)[0]), 0),
        (losses.router_orthogonality(5 * torch.eye(E, 12)), 0),
        (losses.router_orthogonality(torch.ones(E, 12)), E * (E - 1)),
        (losses.router_orthogonality(torch.randn(12, 4, generator=rng(0))), None),
        (losses.relu_l1(torch.full((T, E), 0.5), K), E**2 * 0.5 / K),
        (losses.relu_l1(torch.zeros(T, E), K), 0),
        (losses.output_orthogonality(torch.eye(K, D).expand(T, K, D), even(K)[1]), 0),
        (losses.output_orthogonality(torch.full((T, 3, D), 2.0), even(3)[1]), 3 * 2 * 4 * D),
    ):
        if expected is None:
            assert value >= 12**2 / 4 - 12
        else:
            assert float(value) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_balance_is_no_gauge_when_probabilities_are_uniform() -> None:
    assert float(losses.switch_balance(even(K)[0], collapsed(K)[1])) == pytest.approx(1)


def test_layers_are_not_pooled() -> None:
    """Four layers, each collapsed on another pair, look perfect when pooled (as transformers does it)."""
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    layers = []
    for pair in range(4):
        z = torch.zeros(T, E)
        z[:, 2 * pair : 2 * pair + 2] = 20
        layers.append(RoutingTensors(top(z), torch.full((T, K), 0.5), z.softmax(-1), z))
    pooled = load_balancing_loss_func(tuple(r.logits_TE for r in layers), E, K)
    assert float(pooled) / K == pytest.approx(1, abs=1e-3)
    assert float(losses.balance_loss(layers)) == pytest.approx(E / K, abs=1e-3)


# ---- other people's code
@pytest.mark.parametrize("k", [1, 2, 3])
def test_balance_equals_transformers_mixtral(k: int) -> None:
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    z, mask = logits().float(), torch.rand(T, generator=rng(4)) < 0.5
    for m in (None, mask):
        value = losses.switch_balance(z.softmax(-1), top(z, k), m, normalise="tokens")
        torch.testing.assert_close(value, load_balancing_loss_func((z,), E, k, m))


def test_first_choice_balance_by_sequence_equals_transformers_switch() -> None:
    from transformers.models.switch_transformers.modeling_switch_transformers import load_balancing_loss_func

    z = logits().float()
    expected = load_balancing_loss_func(z.softmax(-1).view(3, 8, E), top(z, 1).view(3, 8))
    torch.testing.assert_close(losses.switch_balance(z.softmax(-1), top(z), groups=3, choices="first"), expected)


def test_z_equals_transformers() -> None:
    from transformers.models.switch_transformers.modeling_switch_transformers import router_z_loss_func

    z = logits().float()
    torch.testing.assert_close(losses.router_z(z), router_z_loss_func(z.view(3, 8, E)))


# ---- numpy
def test_values_equal_numpy() -> None:
    z = logits()
    ids, p, n = top(z).numpy(), z.softmax(-1).numpy(), z.numpy()
    s = 1 / (1 + np.exp(-n))
    counts = np.stack([np.bincount(ids[8 * i : 8 * i + 8].ravel(), minlength=E) for i in range(3)])
    sequence = [E / (K * 8) * (c * (s / s.sum(1, keepdims=True))[8 * i : 8 * i + 8].mean(0)).sum() for i, c in
                enumerate(counts)]  # fmt: skip
    eta = np.where(IS_NULL, 0.75, 1)
    weights = np.take_along_axis(p, ids, 1)
    importance = np.bincount(ids.ravel(), weights.ravel(), minlength=E)
    entropy = -(p * np.log(p)).sum(1).mean()
    mean = p.mean(0)
    r = np.maximum(n, 0)
    o = OUTPUTS.numpy()
    overlap = 0.0
    for t in range(T):
        for i in range(K):
            for j in range(K):
                if i != j:
                    overlap += ((o[t, i] @ o[t, j] / (o[t, j] @ o[t, j] + 1e-8) * o[t, j]) ** 2).sum() / T
    zt = torch.from_numpy(p)
    for value, expected in (
        (LOSSES["deepseek"](z, None), np.mean(sequence)),
        (LOSSES["heterogeneous"](z, None), (eta * counts.sum(0) / T * mean).sum()),
        (losses.importance_cv2(torch.from_numpy(weights), top(z), E), (importance.std() / importance.mean()) ** 2),
        (losses.token_entropy(zt), entropy),
        (losses.batch_entropy(zt), -(mean * np.log(mean)).sum()),
        (losses.score_variance(zt), -p.var(0).mean()),
        (losses.relu_l1(z.relu(), K), (E / (K * T) * (r > 0).sum(0) * r.mean(0)).sum()),
        (losses.relu_density(z.relu()), (r > 0).mean()),
        (losses.output_orthogonality(OUTPUTS, top(z)), overlap),
    ):
        assert float(value) == pytest.approx(expected, rel=1e-9)
    w = np.random.default_rng(0).normal(size=(E, D))
    unit = w / np.linalg.norm(w, axis=1, keepdims=True)
    expected = np.linalg.norm(unit @ unit.T - np.eye(E)) ** 2
    assert float(losses.router_orthogonality(torch.from_numpy(w))) == pytest.approx(expected)


# ---- padded choices and counts
def test_padded_choices_are_not_counted() -> None:
    ids = torch.tensor([[0, 1], [2, -1], [-1, -1], [1, 0]])
    valid = torch.tensor([True, True, True, False])
    assert losses.expert_counts(ids, 4).tolist() == [2, 2, 1, 0]
    assert losses.expert_counts(ids, 4, valid).tolist() == [1, 1, 1, 0]
    assert losses.expert_counts(ids, 4).dtype == torch.int64
    probs = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).expand(4, 4)
    assert float(losses.switch_balance(probs, ids, valid)) == pytest.approx(4 * (0.4 + 0.3 + 0.2) / 3)
    assert float(losses.switch_balance(probs, ids, valid, normalise="tokens")) == pytest.approx(4 * 0.9 / 3)
    weights = torch.tensor([[0.5, 0.5], [1.0, float("nan")], [float("nan"), float("nan")], [0.5, 0.5]])
    expected = np.var([0.5, 0.5, 1, 0]) / 0.25
    assert float(losses.importance_cv2(weights, ids, 4, valid)) == pytest.approx(expected)
    o = torch.ones(4, 2, 3)
    o[1, 1], o[2] = float("nan"), float("nan")
    assert float(losses.output_orthogonality(o, ids)) == pytest.approx(2 * 2 * 3 / 4)


def test_a_sequence_without_a_token_is_left_out_of_the_mean() -> None:
    probs, ids = collapsed(K)
    probs, ids = torch.cat([probs[:8], even(K)[0][:16]]), torch.cat([ids[:8], even(K)[1][:16]])
    valid = torch.arange(T) < 16
    assert float(losses.switch_balance(probs, ids, valid, groups=3)) == pytest.approx((E / K + 1) / 2)
    with pytest.raises(ValueError, match="24 tokens"):
        losses.switch_balance(probs, ids, groups=5)


def test_the_narrower_scope_is_the_tighter() -> None:
    """Sequences that each collapse on another pair are even over the batch."""
    ids = torch.arange(4).repeat_interleave(6)[:, None] * 2 + torch.arange(2)
    probs = torch.zeros(T, E).scatter_(1, ids, 0.5)
    assert float(losses.switch_balance(probs, ids)) == pytest.approx(1)
    assert float(losses.switch_balance(probs, ids, groups=4)) == pytest.approx(E / K)


def test_no_gradient_through_counts() -> None:
    """The gradient is that of the same sum with the shares as plain numbers."""
    z = logits().requires_grad_()
    (grad,) = torch.autograd.grad(LOSSES["switch"](z, None), z)
    share = losses.expert_counts(top(z), E) / (T * K)
    (expected,) = torch.autograd.grad(E * (share * z.softmax(-1).mean(0)).sum(), z)
    torch.testing.assert_close(grad, expected)
    (grad,) = torch.autograd.grad(losses.relu_l1(z.relu(), K), z)
    share = (z > 0).double().mean(0) * E / K
    (expected,) = torch.autograd.grad((share * z.relu().mean(0)).sum(), z)
    torch.testing.assert_close(grad, expected)


def test_entropy_has_a_finite_gradient_where_a_probability_has_vanished() -> None:
    z = torch.tensor([[0.0, 2000.0]], requires_grad=True)
    value = losses.token_entropy(z.softmax(-1))
    value.backward()
    assert value == 0
    assert torch.isfinite(z.grad).all()


# ---- the load estimate
def test_load_probability_by_hand() -> None:
    """Experts in order of noisy score: 3, 0, 2, 1; k = 2. Thresholds: for 3 and 0 the third best, else the second."""
    clean = torch.tensor([[1.0, 0.0, 0.5, 2.0]], dtype=torch.float64)
    noisy = torch.tensor([[1.5, -1.0, 0.7, 2.5]], dtype=torch.float64)
    std = torch.tensor([[0.5, 1.0, 2.0, 1.0]], dtype=torch.float64)
    threshold = torch.tensor([0.7, 1.5, 1.5, 0.7], dtype=torch.float64)
    expected = torch.distributions.Normal(0, 1).cdf((clean[0] - threshold) / std[0])
    torch.testing.assert_close(losses.load_probability(clean, noisy, std, 2)[0], expected.double())
    assert torch.equal(losses.load_probability(clean, noisy, std, 4), torch.ones_like(clean))


def test_load_estimates_the_counts() -> None:
    tokens, k = 40_000, 2
    clean = torch.linspace(-1, 1, E, dtype=torch.float64).expand(tokens, E)
    noisy = clean + 0.7 * torch.randn(tokens, E, generator=rng(1), dtype=torch.float64)
    load = losses.load_probability(clean, noisy, torch.tensor(0.7, dtype=torch.float64), k).sum(0)
    counts = losses.expert_counts(top(noisy, k), E)
    assert float(load.sum()) == pytest.approx(tokens * k, rel=0.01)
    # both are samples of one expectation; a count's deviation is below sqrt(N p), the estimate's is smaller
    assert ((load - counts).abs() < 6 * counts.clamp_min(50).double().sqrt()).all()


# ---- ReMoE's controller
def test_l1_controller_moves_towards_the_goal() -> None:
    coefficient, goal = torch.tensor(1e-8, dtype=torch.float64), K / E
    up, down = (losses.next_l1_coefficient(coefficient, torch.tensor(d), K, E) for d in (goal + 0.1, goal - 0.1))
    assert float(up) == pytest.approx(1.2e-8)
    assert float(down) == pytest.approx(1e-8 / 1.2)
    assert float(losses.next_l1_coefficient(coefficient, torch.tensor(goal), K, E)) == 1e-8
    steps = 0
    while coefficient < 1e-2:
        coefficient, steps = losses.next_l1_coefficient(coefficient, torch.tensor(1.0), K, E), steps + 1
    assert steps == 76
