"""The measures between two routings: hand-worked values, brute-force oracles, properties, and what chance shows."""

from math import log

import hypothesis.extra.numpy as npst
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from test_metrics import choices, close, first, random_ids, sets, softmax

from moeviz.domain import metrics as m
from moeviz.domain.routing import Routing

loads = st.integers(1, 9).flatmap(
    lambda size: st.tuples(*(npst.arrays(np.int64, size, elements=st.integers(0, 1000)) for _ in range(2)))
)


def kl(p: np.ndarray, q: np.ndarray) -> float:
    return sum(a * log(a / b) for a, b in zip(p.tolist(), q.tolist(), strict=True) if a > 0)


@st.composite
def pairs(draw):
    """(A, B, E): two choices of the same number of experts for the same tokens."""
    ids, experts = draw(choices())
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    other = np.argsort(rng.random((len(ids), experts)), axis=1)[:, : int(rng.integers(1, experts + 1))]
    other[rng.random(other.shape) < 0.2] = -1
    return ids, other, experts


# ---- loads
def test_loads_by_hand():
    close(m.load_divergence([1, 0], [0, 5]), log(2))
    close(m.load_divergence([3, 1], [30, 10]), 0)
    # p = (1, 0), q = (1/2, 1/2), middle (3/4, 1/4)
    close(m.load_divergence([2, 0], [1, 1]), (log(4 / 3) + 0.5 * log(2 / 3) + 0.5 * log(2)) / 2)
    close(m.load_delta([3, 1], [1, 3]), [-0.5, 0.5])
    assert m.load_divergence([4], [9]) == 0


def test_loads_that_cannot_be_compared():
    assert np.isnan(m.load_divergence([0, 0], [1, 1]))
    assert np.isnan(m.load_delta([1, 1], [0, 0])).all()
    for measure in (m.load_divergence, m.load_delta):
        with pytest.raises(ValueError, match="2 and 3 experts"):
            measure([1, 1], [1, 1, 1])


@given(loads)
def test_divergence_is_the_mean_divergence_to_the_middle(both):
    a, b = both
    found = m.load_divergence(a, b)
    if not (a.sum() and b.sum()):
        assert np.isnan(found)
        return
    p, q = a / a.sum(), b / b.sum()
    close(found, (kl(p, (p + q) / 2) + kl(q, (p + q) / 2)) / 2, atol=1e-9)
    assert 0 <= found <= m.MOST_DIVERGENCE
    assert found == m.load_divergence(b, a)
    assert (found < 1e-15) == bool(np.allclose(p, q, rtol=0, atol=1e-9))
    close(m.load_delta(a, b), q - p)
    assert abs(m.load_delta(a, b).sum()) < 1e-9


@given(loads, npst.arrays(np.int64, 9, elements=st.integers(1, 50)))
def test_the_root_of_the_divergence_is_a_metric(both, third):
    a, b = (counts + 1 for counts in both)
    c = third[: a.size]
    ab, bc, ac = (m.load_divergence(x, y) ** 0.5 for x, y in ((a, b), (b, c), (a, c)))
    assert ac <= ab + bc + 1e-9


@pytest.mark.parametrize(("experts", "k"), [(8, 1), (8, 2), (16, 4), (3, 3)])
def test_floors_are_what_even_routing_shows(experts, k):
    rng = np.random.default_rng(5)
    sizes = 300, 500

    def counts(tokens: int) -> np.ndarray:
        return np.bincount(random_ids(rng, tokens, experts, k).ravel(), minlength=experts)

    drawn = [[counts(n) for n in sizes] for _ in range(400)]
    seen = np.mean([m.load_divergence(a, b) for a, b in drawn])
    spread = np.std([m.load_delta(a, b) for a, b in drawn])
    assert seen == pytest.approx(m.divergence_floor(sizes[0] * k, sizes[1] * k, experts, k), rel=0.1, abs=1e-12)
    assert spread == pytest.approx(m.delta_noise(sizes[0] * k, sizes[1] * k, experts, k), rel=0.05, abs=1e-12)


def test_floors_without_assignments():
    assert np.isnan(m.divergence_floor(0, 9, 8))
    assert np.isnan(m.delta_noise(9, 0, 8))
    assert m.divergence_floor(1, 1, 1000) == m.MOST_DIVERGENCE


# ---- the same tokens
@given(pairs())
def test_changes_of_the_same_tokens(found):
    a, b, _ = found
    both = [(first(x), first(y)) for x, y in zip(a, b, strict=True)]
    known = [(x, y) for x, y in both if x is not None and y is not None]
    close(m.top1_flip_rate(a, b), np.mean([x != y for x, y in known]) if known else np.nan)
    kept = [len(x & y) / max(len(x), len(y)) for x, y in zip(sets(a), sets(b), strict=True) if x or y]
    close(m.churn(a, b), 1 - np.mean(kept) if kept else np.nan)
    for share in (m.top1_flip_rate(a, b), m.churn(a, b), m.flip_baseline(a, b)):
        assert np.isnan(share) or 0 <= share <= 1
    of_a, of_b = [x for x, _ in both if x is not None], [y for _, y in both if y is not None]
    by_chance = np.mean([x != y for x in of_a for y in of_b]) if of_a and of_b else np.nan
    close(m.flip_baseline(a, b), by_chance)
    assert np.isnan(m.churn(a, a)) or m.churn(a, a) == 0


def test_flip_baseline_is_what_shuffled_tokens_show():
    rng = np.random.default_rng(2)
    a, b = rng.choice(4, size=500, p=[0.5, 0.3, 0.1, 0.1]), rng.choice(4, size=500, p=[0.2, 0.2, 0.2, 0.4])
    seen = np.mean([m.top1_flip_rate(a[:, None], rng.permutation(b)[:, None]) for _ in range(200)])
    assert m.flip_baseline(a[:, None], b[:, None]) == pytest.approx(seen, abs=0.005)


@given(pairs(), st.integers(0, 2**32))
def test_weights_and_probabilities_that_changed(found, seed):
    a, b, experts = found
    rng = np.random.default_rng(seed)
    weights = [rng.random(ids.shape).astype(np.float32) for ids in (a, b)]
    probs = [softmax(rng.normal(size=(len(a), experts))).astype(np.float32) for _ in (a, b)]
    left, right = (Routing("x", experts, *rest) for rest in zip((a, b), weights, probs, strict=True))
    gates = []
    for t in range(len(a)):
        mine, others = (
            {e: w for e, w in zip(r.expert_ids_TK[t], r.gate_weights_TK[t], strict=True) if e >= 0}
            for r in (left, right)
        )
        gates.append(sum(abs(mine.get(e, 0.0) - others.get(e, 0.0)) for e in range(experts)) / 2)
    close(m.weight_change(left, right), np.mean(gates) if gates else np.nan, rtol=1e-6)
    moved = m.probability_change(left, right)
    close(moved, np.abs(probs[0].astype(float) - probs[1]).sum(1).mean() / 2 if len(a) else np.nan, rtol=1e-6)
    assert np.isnan(moved) or 0 <= moved <= 1 + 1e-6
    assert np.isnan(m.weight_change(left, left)) or m.weight_change(left, left) == 0


def test_what_is_not_there_is_none_and_other_sizes_are_refused():
    ids = np.array([[0], [1]])
    bare = Routing("x", 3, ids)
    full = Routing("x", 3, ids, np.ones((2, 1), np.float32), np.full((2, 3), 1 / 3, np.float32))
    other = Routing("x", 4, ids[:1], np.ones((1, 1), np.float32), np.full((1, 4), 1 / 4, np.float32))
    assert m.weight_change(bare, full) is m.probability_change(full, bare) is None
    for measure in (m.weight_change, m.probability_change):
        with pytest.raises(ValueError, match="cannot be compared"):
            measure(full, other)
    for measure in (m.top1_flip_rate, m.churn, lambda a, b: m.agreement(a, b, 3)):
        with pytest.raises(ValueError, match="2 and 1 tokens"):
            measure(ids, other.expert_ids_TK)


def test_agreement_asks_for_no_common_numbering():
    rng = np.random.default_rng(3)
    a = rng.integers(0, 6, size=(800, 1))
    renumbered = rng.permutation(6)[a]
    assert m.agreement(a, renumbered, 6).symmetric == pytest.approx(1, abs=0.02)
    assert m.agreement(a, a // 2, 6).symmetric > 0.6  # of another number of experts
    assert abs(m.agreement(a, rng.integers(0, 6, size=(800, 1)), 6).symmetric) < 0.03
    assert np.isnan(m.agreement(a, np.zeros_like(a), 6).symmetric)
    assert np.isnan(m.agreement(a[:0], a[:0], 6).symmetric)


# ---- the error of a mean over rows
def test_the_error_of_a_mean_over_rows():
    # rows of one length: the standard deviation of their means over the root of their number
    values = np.array([[1.0, 3.0], [2.0, 6.0], [0.0, 0.0]])
    every = np.ones((3, 2), bool)
    close(m.mean_error(values, every), np.std([2, 4, 0], ddof=1) / 3**0.5)
    # rows of other lengths, by hand: sums 4 and 2, counts 2 and 1, so both are as the mean says
    some = np.array([[True, True], [True, False], [False, False]])
    close(m.mean_error(values, some), 0)
    # sums 4 and 0 of counts 2 and 1, mean 4/3: residuals 4/3 and -4/3
    some = np.array([[True, True], [False, False], [True, False]])
    close(m.mean_error(values, some), np.sqrt(2 * 2 * (4 / 3) ** 2) / 3)
    assert np.isnan(m.mean_error(values, np.array([[True, True], [False, False], [False, False]])))


def test_the_error_of_a_mean_is_what_drawing_again_shows():
    """Values of one row are alike; to take them for independent would find a third of the error."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 20, (4000, 30))
    counted = np.arange(20) < lengths[..., None]
    values = rng.normal(size=(4000, 30, 1)) + 0.1 * rng.normal(size=(4000, 30, 20))
    means = [v[c].mean() for v, c in zip(values, counted, strict=True)]
    errors = [m.mean_error(v, c) for v, c in zip(values, counted, strict=True)]
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.08)
