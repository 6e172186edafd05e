"""Every measure against hand-worked values, brute-force oracles, its range, and the published numbers."""

from collections import Counter
from itertools import combinations, pairwise, permutations, product
from math import comb, exp, log, sqrt

import hypothesis.extra.numpy as npst
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from moeviz.domain import metrics as m
from moeviz.domain.metrics.information import _quantile
from moeviz.domain.routing import Routing

NAN = float("nan")


@st.composite
def choices(draw, max_tokens=12, max_experts=7):
    """(ids_TK, E): k different experts a token, some of them padded by -1."""
    experts = draw(st.integers(1, max_experts))
    k = draw(st.integers(1, experts))
    tokens = draw(st.integers(0, max_tokens))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    ids = np.argsort(rng.random((tokens, experts)), axis=1)[:, :k]
    if draw(st.booleans()):
        ids[rng.random(ids.shape) < 0.3] = -1
    return ids, experts


def sets(ids_TK):
    return [{int(e) for e in row if e >= 0} for row in ids_TK]


def first(row):
    return next((int(e) for e in row if e >= 0), None)


def random_ids(rng, tokens, experts, k):
    return np.argsort(rng.random((tokens, experts)), axis=1)[:, :k]


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def close(found, wanted, **tolerance):
    np.testing.assert_allclose(found, wanted, **{"rtol": 1e-9, "atol": 1e-12} | tolerance)


# ---- 3.1, 3.2 shares
def test_shares_by_hand():
    ids = np.array([[0, 1], [0, 2], [0, -1], [1, 0]])
    probs = np.array([[0.4, 0.3, 0.2, 0.1]] * 2 + [[0.7, 0.1, 0.1, 0.1]] * 2)
    weights = np.array([[0.5, 0.5], [0.75, 0.25], [1, 9], [0.5, 0.5]], np.float32)
    dropped = np.array([[True, False], [False, True], [False, True], [False, False]])
    routing = Routing("x", 4, ids, weights, probs, None, dropped)
    counts = m.expert_counts(routing)
    assert counts.tolist() == [4, 2, 1, 0]
    assert m.processed_counts(routing).tolist() == [3, 2, 0, 0]
    close(m.load_share(counts), [4 / 7, 2 / 7, 1 / 7, 0])
    close(m.selection_frequency(counts, 4), [1, 0.5, 0.25, 0])
    close(m.mean_probability(probs), [0.55, 0.2, 0.15, 0.1])
    close(m.share_gap(counts, probs), [4 / 7 - 0.55, 2 / 7 - 0.2, 1 / 7 - 0.15, -0.1])
    close(m.importance(routing), [2.75, 1, 0.25, 0])
    close(m.importance_share(m.importance(routing)), [2.75 / 4, 0.25, 0.0625, 0])


def test_shares_of_nothing():
    none = Routing("x", 3, np.zeros((0, 2), np.int64), np.zeros((0, 2), np.float32))
    assert m.expert_counts(none).tolist() == m.processed_counts(none).tolist() == [0, 0, 0]
    assert m.load_share([0, 0, 0]).tolist() == [0, 0, 0]
    assert np.isnan(m.selection_frequency([0, 0, 0], 0)).all()
    assert np.isnan(m.mean_probability(np.zeros((0, 3), np.float32))).all()
    assert np.isnan(m.share_gap([0, 0, 0], np.full((1, 3), 1 / 3))).all()
    assert np.isnan(m.importance_share([0, 0, 0])).all()
    assert m.importance(Routing("x", 3, np.array([[-1, -1]]))) is None


# ---- 3.3 to 3.6 balance
BALANCE = (
    m.cv, m.max_over_mean, m.max_violation, m.entropy, m.normalised_entropy, m.effective_experts, m.hill_2, m.gini
)  # fmt: skip


@given(choices())
def test_balance_against_plain_definitions(made):
    ids, size = made
    c = [sum(e in chosen for chosen in sets(ids)) for e in range(size)]
    if sum(c) == 0:
        assert all(np.isnan(measure(c)) for measure in BALANCE)
        assert (m.dead_experts(c), m.soft_dead_experts(c), m.can_tell_dead(c)) == (size, size, False)
        return
    mean, q = sum(c) / size, [x / sum(c) for x in c]
    h = -sum(x * log(x) for x in q if x)
    close(m.cv(c), sqrt(sum((x - mean) ** 2 for x in c) / size) / mean)
    close(m.max_over_mean(c), max(c) / mean)
    close(m.max_violation(c), max(c) / mean - 1)
    close(m.entropy(c), h)
    close(m.normalised_entropy(c), h / log(size) if size > 1 else 1)
    close(m.effective_experts(c), exp(h))
    close(m.hill_2(c), 1 / sum(x * x for x in q))
    close(m.gini(c), sum(abs(a - b) for a, b in product(c, c)) / (2 * size * sum(c)))
    assert m.dead_experts(c) == c.count(0)
    assert m.soft_dead_experts(c) == sum(10 * size * x < sum(c) for x in c)
    assert m.can_tell_dead(c) == (sum(c) / size >= 50)


@given(choices())
def test_balance_keeps_the_stated_ranges(made):
    ids, size = made
    ids = ids[(ids >= 0).all(axis=1)]  # every token chose k
    k, eps = ids.shape[1], 1e-9
    if not len(ids):
        return
    c = m.expert_counts(Routing("x", size, ids))
    assert m.load_share(c).max() <= 1 / k + eps
    assert m.selection_frequency(c, len(ids)).sum() == pytest.approx(k)
    assert 0 <= m.cv(c) <= sqrt(size / k - 1) + eps
    assert 1 <= m.max_over_mean(c) <= size / k + eps
    assert 0 <= m.max_violation(c) <= size / k - 1 + eps
    if size > 1:
        assert log(k) / log(size) - eps <= m.normalised_entropy(c) <= 1 + eps
    assert k - eps <= m.hill_2(c) <= m.effective_experts(c) + eps <= size + 2 * eps
    assert 0 <= m.gini(c) <= 1 - k / size + eps


@given(choices(), st.randoms())
def test_balance_does_not_depend_on_numbering(made, random):
    c = m.expert_counts(Routing("x", made[1], made[0])).tolist()
    mixed = random.sample(c, len(c))
    for measure in (*BALANCE, m.soft_dead_experts, m.can_tell_dead):
        close(measure(mixed), measure(c))


def test_balance_of_a_collapse_is_the_upper_end():
    c, k, size = [90, 90, 0, 0, 0, 0], 2, 6  # all tokens take the same pair
    close(m.cv(c), sqrt(size / k - 1))
    close(m.max_violation(c), size / k - 1)
    close(m.normalised_entropy(c), log(k) / log(size))
    close([m.effective_experts(c), m.hill_2(c)], [k, k])
    close(m.gini(c), 1 - k / size)


def test_max_violation_of_batches_and_of_all_of_them():
    batches = np.array([[8, 0], [0, 8], [4, 4]])  # each batch is uneven, together they are even
    close(m.max_violation_batch(batches), (1 + 1 + 0) / 3)
    assert m.max_violation_global(batches) == 0
    close(m.max_violation_batch([[0, 0], [3, 1]]), 0.5)  # a batch that routed nothing says nothing
    assert np.isnan(m.max_violation_batch(np.zeros((0, 4))))
    assert np.isnan(m.max_violation_global(np.zeros((0, 4))))


def test_dead_experts_are_judged_only_with_enough_tokens():
    assert not m.can_tell_dead([0, 99])
    assert m.can_tell_dead([0, 100])
    c = [0, 9, 10, 381]  # an even share is 100, a tenth of it 10
    assert (m.dead_experts(c), m.soft_dead_experts(c)) == (1, 2)
    assert m.summarise(c).soft_dead_experts == 2
    assert m.summarise(c).can_tell_dead
    assert (m.dead_experts([7]), m.soft_dead_experts([7])) == (0, 0)


# ---- 3.3 sampling floors
@pytest.mark.parametrize(
    ("assignments", "experts", "published"),
    [(1024, 8, 0.123), (1024, 16, 0.235), (4096, 16, 0.114), (32768, 16, 0.039), (32768, 64, 0.107)],
)
def test_max_violation_floor_is_the_published_table(assignments, experts, published):
    found = m.max_violation_floor(assignments, experts)
    assert found == pytest.approx(published, rel=0.06)
    assert 0.69 <= found / sqrt(2 * experts * log(experts) / assignments) <= 0.86
    assert found == m.max_violation_floor(assignments, experts)  # the seed fixes it
    assert found == pytest.approx(m.max_violation_floor(assignments, experts, 1, seed=1), rel=0.1)


@pytest.mark.parametrize(("experts", "k", "tokens"), [(8, 1, 256), (8, 2, 256), (8, 6, 256), (16, 4, 128)])
def test_floors_are_what_random_choices_show(experts, k, tokens):
    rng = np.random.default_rng(3)
    draws = [np.bincount(random_ids(rng, tokens, experts, k).ravel(), minlength=experts) for _ in range(600)]
    size = tokens * k
    spread = sqrt(np.mean([m.cv(c) ** 2 for c in draws]))
    assert m.cv_floor(size, experts, k) == pytest.approx(spread, rel=0.05)
    assert m.share_noise(size, experts, k) == pytest.approx(np.std([m.load_share(c) for c in draws]), rel=0.05)
    assert m.max_violation_floor(size, experts, k) == pytest.approx(np.mean([*map(m.max_violation, draws)]), rel=0.08)


def test_floors_at_their_ends():
    assert m.cv_floor(1024, 8) == sqrt(7 / 1024)
    for floor in (m.cv_floor, m.share_noise, m.max_violation_floor):
        assert floor(100, 1) == 0
        assert floor(100, 4, 4) == 0  # every expert is chosen by every token
        assert np.isnan(floor(0, 4))
    assert m.max_violation_floor(1, 4) == 3  # one assignment is always a collapse
    assert m.max_violation_floor(2, 4, 2) <= 1


# ---- 3.7 drops
@given(choices(), st.integers(0, 2**32), st.integers(0, 5))
def test_drops_against_a_loop_that_fills_the_experts(made, seed, capacity):
    ids, size = made
    order = np.random.default_rng(seed).permutation(ids.size)
    room, dropped = [capacity] * size, np.zeros(ids.shape, bool)
    for at in order:  # in any order at all
        e = ids.flat[at]
        if e >= 0:
            dropped.flat[at] = room[e] == 0
            room[e] -= not dropped.flat[at]
    dropped[ids < 0] = True  # what stands beside nobody must not count
    routing, total = Routing("x", size, ids, dropped_TK=dropped), int((ids >= 0).sum())
    lost = sum(bool(dropped[t, j]) for t, j in np.argwhere(ids >= 0))
    tokens = [t for t in range(len(ids)) if (ids[t] >= 0).any()]
    if not total:
        assert np.isnan(m.drop_rate(routing))
        assert np.isnan(m.fully_dropped_rate(routing))
        assert np.isnan(m.drop_lower_bound(m.expert_counts(routing), capacity))
        return
    close(m.drop_rate(routing), lost / total)
    close(m.fully_dropped_rate(routing), sum(bool(dropped[t].all()) for t in tokens) / len(tokens))
    close(m.drop_lower_bound(m.expert_counts(routing), capacity), lost / total)  # one capacity: exactly this
    assert m.processed_counts(routing).max() <= capacity
    close(m.executed_experts(routing), (total - lost) / len(ids))


def test_unknown_drops_are_none():
    routing = Routing("x", 3, np.array([[0, 1]]))
    assert m.drop_rate(routing) is None
    assert m.fully_dropped_rate(routing) is None
    close(m.drop_lower_bound([10, 2, 0], 4), 0.5)
    with pytest.raises(ValueError, match="capacity is -1"):
        m.drop_lower_bound([1], -1)


# ---- 3.4 of a token, 3.8 confidence
def test_confidence_by_hand():
    p = np.array([[0.5, 0.25, 0.125, 0.125], [0.25] * 4, [0, 1, 0, 0]])
    close(m.max_probability(p), [0.5, 0.25, 1])
    close(m.top_k_mass(p, 2), [0.75, 0.5, 1])
    close(m.margin(p), [0.25, 0, 1])
    close(m.token_entropy(p), [1.75 * log(2), log(4), 0])
    close(m.token_effective_experts(p), [2**1.75, 4, 1])
    with pytest.raises(ValueError, match="k is 5"):
        m.top_k_mass(p, 5)
    unknown = np.array([[NAN, 0.5], [0.5, 0.5]])
    for measure in (m.max_probability, m.margin, m.token_entropy, lambda x: m.top_k_mass(x, 1)):
        assert np.isnan(measure(unknown)).tolist() == [True, False]
    assert np.isnan(m.margin(np.ones((2, 1)))).all()
    assert m.max_probability(np.zeros((0, 4))).shape == (0,)


def test_boundary_margin_is_of_the_scores_that_selected():
    p = np.array([[0.1, 0.5, 0.25, 0.15]] * 5)
    ids = np.array([[1, 2], [2, 1], [1, 0], [1, -1], [-1, -1]])
    close(m.boundary_margin(p, ids), [0.1, 0.1, -0.15, 0.25, NAN])  # the third was chosen by something else
    biased = p + np.array([0.2, 0, 0, 0])
    close(m.boundary_margin(biased[2:3], ids[2:3]), [0.05])  # with the bias it is the k-th minus the next
    masked = np.array([[0.3, 0.2, -np.inf, -np.inf]])
    close(m.boundary_margin(masked, np.array([[0, -1]])), [0.1])
    assert np.isnan(m.boundary_margin(masked, np.array([[0, 1]])))[0]  # no other expert was eligible
    assert np.isnan(m.boundary_margin(p[:1], np.array([[0, 1, 2, 3]])))[0]
    assert m.boundary_margin(np.zeros((0, 4)), np.zeros((0, 2), int)).shape == (0,)


@given(choices(), st.integers(0, 2**32))
def test_confidence_against_sorting_and_ranges(made, seed):
    ids, size = made
    k = ids.shape[1]
    p = softmax(np.random.default_rng(seed).normal(size=(len(ids), size)) * 3)
    best, top = np.argsort(-p, axis=1)[:, :k], -np.sort(-p, axis=1)
    assert ((m.max_probability(p) >= 1 / size - 1e-9) & (m.max_probability(p) <= 1)).all()
    close(m.top_k_mass(p, k), top[:, :k].sum(axis=1))
    close(m.boundary_margin(p, best), top[:, k - 1] - top[:, k] if k < size else np.full(len(p), NAN))
    if size > 1:
        close(m.margin(p), top[:, 0] - top[:, 1])
    close(m.token_entropy(p), [-sum(x * log(x) for x in row) for row in p], atol=1e-9)
    mixed = np.random.default_rng(0).permutation(size)
    close(m.token_effective_experts(p[:, mixed]), m.token_effective_experts(p))
    assert (m.token_effective_experts(p) <= size + 1e-9).all()
    assert (m.token_effective_experts(p) >= 1).all()


# ---- 3.9 stability
def test_stability_by_hand():
    a = np.array([[0, 1], [2, 3], [0, -1], [-1, -1]])
    b = np.array([[1, 0], [2, 1], [0, 4], [-1, -1]])
    close(m.overlap(a, b), [1, 0.5, 0.5, NAN])
    close(m.saturation(a, b), 2 / 3)
    close(m.churn(a, b), 1 / 3)
    close(m.top1_flip_rate(a, b), 1 / 3)
    close(m.jaccard(a, b), (1 + 1 / 3 + 1 / 2) / 3)
    close(m.overlap(np.array([[0, 1, 2, 3]]), np.array([[0, 1]])), [0.5])  # choosing more is no agreement
    assert m.overlap_baseline(8, 64) == 0.125  # OLMoE
    for measure in (m.saturation, m.churn, m.top1_flip_rate, m.jaccard):
        assert np.isnan(measure(a[:0], b[:0]))
        with pytest.raises(ValueError, match="tokens cannot be compared"):
            measure(a, b[:2])


@given(choices(), st.integers(0, 2**32))
def test_stability_against_sets(made, seed):
    a, size = made
    rng = np.random.default_rng(seed)
    b = random_ids(rng, len(a), size, int(rng.integers(1, size + 1)))
    pairs = [(x, y) for x, y in zip(sets(a), sets(b), strict=True) if x | y]
    mean = lambda values: sum(values) / len(values) if values else NAN  # noqa: E731
    close(m.saturation(a, b), mean([len(x & y) / max(len(x), len(y)) for x, y in pairs]))
    close(m.churn(a, b), 1 - m.saturation(b, a))
    close(m.jaccard(a, b), mean([len(x & y) / len(x | y) for x, y in pairs]))
    firsts = [(first(x), first(y)) for x, y in zip(a, b, strict=True) if first(x) is not None]
    close(m.top1_flip_rate(a, b), mean([x != y for x, y in firsts]))
    renamed = rng.permutation(size)
    close(m.churn(np.where(a < 0, -1, renamed[a]), renamed[b]), m.churn(a, b))
    if (a >= 0).any(axis=1).any():
        assert m.churn(a, a) == m.top1_flip_rate(a, a) == 0


def test_random_choices_overlap_by_the_baseline():
    rng = np.random.default_rng(0)
    a, b = random_ids(rng, 4000, 16, 4), random_ids(rng, 4000, 16, 4)
    assert m.saturation(a, b) == pytest.approx(m.overlap_baseline(4, 16), rel=0.05)


# ---- 3.10 co-activation
@given(choices())
def test_co_activation_counts_all_pairs(made):
    ids, size = made
    chosen = sets(ids)
    n = np.array([[sum({i, j} <= s for s in chosen) for j in range(size)] for i in range(size)])
    assert m.pair_counts(ids, size).tolist() == n.tolist()
    share, lift = m.co_activation(ids, size), m.co_activation_lift(ids, size)
    rare = np.diag(n)[:, None] < 3
    close(m.co_activation(ids, size, min_tokens=3), np.where(rare, NAN, share))
    for i, j in product(range(size), range(size)):
        known = i != j and n[i, i] > 0
        close(share[i, j], n[i, j] / n[i, i] if known else NAN)
        close(lift[i, j], n[i, j] * len(ids) / (n[i, i] * n[j, j]) if known and n[j, j] > 0 else NAN)


def test_co_activation_of_all_pairs_not_of_neighbours_and_its_chance():
    share = m.co_activation(np.array([[0, 1, 2]] * 4), 4)
    assert share[0].tolist()[1:3] == [1, 1]  # 0 and 2 are not neighbours in rank
    rng = np.random.default_rng(1)
    ids = random_ids(rng, 4000, 8, 3)
    assert np.nanmean(m.co_activation(ids, 8)) == pytest.approx(m.co_activation_baseline(3, 8), rel=1e-2)
    assert np.nanmean(m.co_activation_lift(ids, 8)) == pytest.approx(2 * 8 / (3 * 7), rel=1e-2)
    close(np.nansum(m.co_activation(ids, 8), axis=1), 2)
    assert np.isnan(m.co_activation_baseline(1, 1))
    assert m.co_activation_baseline(4, 4) == 1


# ---- 3.11 specialisation
@given(choices(), st.integers(0, 2**32), st.integers(0, 3))
def test_specialisation_against_counting(made, seed, least):
    ids, size = made
    labels = np.random.default_rng(seed).integers(-1, 3, len(ids))
    domains = m.domain_specialisation(ids, labels, size, 3, least)
    words = m.vocabulary_specialisation(ids, labels, size, 3, least)
    for d, e in product(range(3), range(size)):
        of_d = [s for s, label in zip(sets(ids), labels, strict=True) if label == d]
        enough = len(of_d) >= max(least, 1)
        close(domains[d, e], sum(e in s for s in of_d) / len(of_d) if enough else NAN)
        firsts = [f for row, label in zip(ids, labels, strict=True) if label == d and (f := first(row)) is not None]
        enough = len(firsts) >= max(least, 1)
        close(words[d, e], firsts.count(e) / len(firsts) if enough else NAN)


def test_specialisation_of_words_leaves_rare_ones_out():
    ids = np.array([[0]] * 8 + [[1]] * 2 + [[1]])
    words = np.array([0] * 10 + [1])
    table = m.vocabulary_specialisation(ids, words, 2, 2)
    close(table, [[0.8, 0.2], [NAN, NAN]])
    close(m.mean_vocabulary_specialisation(table), 0.8)
    # with words seen once, as OLMoE's script counts, the rare one passes for a perfect specialist
    close(m.mean_vocabulary_specialisation(m.vocabulary_specialisation(ids, words, 2, 2, min_count=1)), 0.9)
    assert np.isnan(m.mean_vocabulary_specialisation(np.full((2, 3), NAN)))
    assert np.isnan(m.mean_vocabulary_specialisation(np.zeros((0, 3))))


# ---- 3.12 information
@given(npst.arrays(np.int64, st.tuples(st.integers(1, 5), st.integers(1, 5)), elements=st.integers(0, 20)))
def test_mutual_information_is_its_definition(joint):
    total = joint.sum()
    if not total:
        assert np.isnan(m.mutual_information(joint))
        assert np.isnan(m.information_bias(joint))
        return
    wanted = 0.0
    for (a, b), n in np.ndenumerate(joint):
        if n:
            wanted += n / total * log(n * total / (joint[a].sum() * joint[:, b].sum()))
    close(m.mutual_information(joint), wanted, atol=1e-9)
    close(m.mutual_information(joint.T), wanted, atol=1e-9)
    rows, columns = (joint.sum(axis=1) > 0).sum(), (joint.sum(axis=0) > 0).sum()
    close(m.information_bias(joint), (rows - 1) * (columns - 1) / (2 * total))
    assert m.mutual_information(joint) <= log(min(rows, columns)) + 1e-9


def test_information_of_hash_routing_is_all_and_of_chance_is_none():
    rng = np.random.default_rng(0)
    words = rng.integers(0, 8, 6000)
    table = rng.permutation(8)
    sure = m.label_information(table[words][:, None], words, 8, equal_weights=False)
    assert sure.of_labels == pytest.approx(1, abs=0.01)
    assert sure.symmetric == pytest.approx(1, abs=0.01)
    ids = random_ids(rng, 600, 8, 1)
    chance = m.label_information(ids, words[:600], 8, equal_weights=False, shuffles=60)
    assert chance.nats > 0.02  # the plug-in estimate of nothing
    assert abs(chance.of_labels) < 0.01
    assert chance.chance > chance.nats
    assert sure.nats > m.label_information(ids, words[:600], 8, equal_weights=False, shuffles=60).chance


@pytest.mark.parametrize(("experts", "k"), [(8, 1), (8, 2), (8, 6), (8, 8)])
@pytest.mark.parametrize("equal", [True, False])
def test_the_bias_by_formula_is_that_of_shuffled_labels(experts, k, equal):
    rng = np.random.default_rng(k)
    load = np.arange(1, experts + 1.0)  # uneven on purpose: Gumbel top-k by load
    ids = np.argsort(-(np.log(load) + rng.gumbel(size=(900, experts))), axis=1)[:, :k]
    domains = rng.choice(3, size=900, p=[0.6, 0.3, 0.1])
    formula = m.label_information(ids, domains, experts, equal_weights=equal)
    shuffled = m.label_information(ids, domains, experts, equal_weights=equal, shuffles=200, seed=5)
    assert formula.nats == shuffled.nats
    assert np.isnan(formula.chance)
    assert formula.bias == pytest.approx(shuffled.bias, rel=0.15, abs=1e-9)
    assert shuffled == m.label_information(ids, domains, experts, equal_weights=equal, shuffles=200, seed=5)


def test_equal_weights_make_the_sizes_of_domains_not_matter():
    # domain 0 uses expert 0 alone, domain 1 both evenly; ten times as much of domain 0 changes nothing
    ids, domains = np.array([[0]] * 4 + [[0], [1], [0], [1]]), np.array([0] * 4 + [1] * 4)
    many = np.concatenate([ids, *[ids[:4]] * 9]), np.concatenate([domains, *[domains[:4]] * 9])
    wanted = (-0.75 * log(0.75) - 0.25 * log(0.25)) - 0.5 * log(2)  # H of the mean minus the mean H
    for of_ids, of_domains in ((ids, domains), many):
        close(m.label_information(of_ids, of_domains, 2, equal_weights=True).nats, wanted)
    close(m.label_information(*many, 2, equal_weights=False).nats, m.mutual_information([[40, 2], [0, 2]]))


def test_texts_that_are_alike_in_themselves_are_no_sign_of_their_labels():
    """Each row keeps to two experts of its own, whatever label it has by chance."""
    rng, above = np.random.default_rng(0), []
    for _ in range(40):
        ids = ((rng.integers(0, 8, 16)[:, None] + rng.integers(0, 2, (16, 100))) % 8).reshape(-1, 1)
        labels = np.repeat(rng.permutation(np.arange(16) % 4), 100)
        by_token, by_row = (
            m.label_information(ids, labels, 8, equal_weights=True, shuffles=40, row_length=n) for n in (1, 100)
        )
        assert by_row.symmetric == by_token.symmetric
        above.append((by_token.nats > by_token.chance, by_row.nats > by_row.chance))
    assert np.mean(above, axis=0)[0] == 1
    assert np.mean(above, axis=0)[1] < 0.2
    own = np.repeat(np.arange(16) % 4, 100)
    sure = m.label_information(own[:, None], own, 4, equal_weights=True, shuffles=40, row_length=100)
    assert sure.nats > sure.chance
    assert sure.symmetric == pytest.approx(1, abs=0.01)


def test_chance_of_rows_is_of_their_labels_in_another_order():
    """With a single shuffle it is the information of one order; some tokens are not routed, and one whole row."""
    rng = np.random.default_rng(1)
    ids = np.stack([rng.permutation(5)[:2] for _ in range(42)])
    ids[[3, 4, *range(35, 42)]] = -1
    labels = np.array([0, 0, 1, 1, 2, 2])

    def told(labels_R, **null):
        return m.label_information(ids, np.repeat(labels_R, 7), 5, equal_weights=True, **null)

    orders = {round(told(np.array(order)).nats, 9) for order in set(permutations(labels.tolist()))}
    found = {round(told(labels, shuffles=1, seed=seed, row_length=7).chance, 9) for seed in range(30)}
    assert len(found) > 5
    assert found <= orders
    pairs = np.array([[0, 1], [0, 0], [1, 1]])  # rows of two labels change places as they are
    tiled, of_pairs = np.tile(ids[:14], (6, 1)), np.tile(pairs, (2, 1))

    def told_of(rows_R2, **null):
        labels_T = np.repeat(rows_R2, 7, axis=1).ravel()
        return m.label_information(tiled[np.arange(84) % 60], labels_T, 5, equal_weights=True, **null)

    orders = {round(told_of(of_pairs[list(order)]).nats, 9) for order in permutations(range(6))}
    found = {round(told_of(of_pairs, shuffles=1, seed=seed, row_length=14).chance, 9) for seed in range(30)}
    assert len(found) > 2
    assert found <= orders


def test_information_without_labels_or_choices_is_unknown():
    for ids, labels in (([[0]], [-1]), ([[-1]], [0]), (np.zeros((0, 1)), [])):
        found = m.label_information(np.array(ids, int), np.array(labels, int), 3, equal_weights=True, shuffles=2)
        assert np.isnan([found.nats, found.bias, found.of_labels, found.chance]).all()
    one = m.label_information(np.array([[0], [1]]), np.array([0, 0]), 2, equal_weights=True)
    assert one.nats == 0
    assert np.isnan(one.of_labels)


# ---- 3.13 transitions
@given(choices(), st.integers(0, 2**32))
def test_transitions_against_counting(made, seed):
    ids, size = made
    rng = np.random.default_rng(seed)
    after = random_ids(rng, len(ids), 5, int(rng.integers(1, 6)))
    pairs = Counter(p for x, y in zip(sets(ids), sets(after), strict=True) for p in product(x, y))
    counts = m.transition_counts(ids, after, size, 5)
    assert counts.tolist() == [[pairs[i, j] for j in range(5)] for i in range(size)]
    rows = m.transitions(counts)
    for i in range(size):
        total = sum(pairs[i, j] for j in range(5))
        close(rows[i], [pairs[i, j] / total if total else NAN for j in range(5)])
    if pairs:
        assert 0 <= m.transition_information(counts) <= 1
    else:
        assert np.isnan(m.transition_information(counts))


def test_transition_information_of_a_rule_and_of_chance():
    rng = np.random.default_rng(0)
    here = random_ids(rng, 4000, 8, 1)
    assert m.transition_information(m.transition_counts(here, (here + 3) % 8, 8, 8)) == pytest.approx(1, abs=0.01)
    for k, next_k in ((1, 1), (2, 2), (2, 4), (8, 2)):
        tables = [
            m.transition_counts(random_ids(rng, 300, 8, k), random_ids(rng, 300, 8, next_k), 8, 8) for _ in range(40)
        ]
        found = np.mean([m.transition_information(table) for table in tables])
        assert m.transition_information_bias(tables[0], k, next_k) == pytest.approx(found, rel=0.15, abs=1e-9)
    for nothing in ([[5], [3]], np.zeros((3, 3))):
        assert np.isnan(m.transition_information(nothing))
        assert np.isnan(m.transition_information_bias(nothing, 1, 1))
    with pytest.raises(ValueError, match="cannot be paired"):
        m.transition_counts(here, here[:3], 8, 8)


# ---- 3.14 repeats
@given(choices())
def test_repeats_against_a_loop(made):
    ids, _ = made
    firsts = [first(row) for row in ids]
    pairs = [(a, b) for a, b in pairwise(firsts) if a is not None and b is not None]
    near = [(a, b) for a, b in pairwise(sets(ids)) if a and b]
    close(m.first_choice_repeats(ids), sum(a == b for a, b in pairs) / len(pairs) if pairs else NAN)
    close(m.any_choice_repeats(ids), sum(bool(a & b) for a, b in near) / len(near) if near else NAN)
    count = Counter(f for f in firsts if f is not None)
    total = sum(count.values())
    close(m.first_choice_repeat_baseline(ids), sum((n / total) ** 2 for n in count.values()) if total else NAN)


def test_repeat_baselines_of_the_mixtral_paper():
    assert round(100 * m.any_choice_repeat_baseline(2, 8), 1) == 46.4
    close(m.first_choice_repeat_baseline(np.arange(8)[:, None]), 0.125)  # 12.5 % where the load is even
    assert m.any_choice_repeat_baseline(5, 8) == 1  # five of eight twice must meet
    for experts, k in ((5, 2), (6, 3), (3, 3), (1, 1)):
        every = [*combinations(range(experts), k)]
        met = sum(bool({*a} & {*b}) for a, b in product(every, every)) / comb(experts, k) ** 2
        close(m.any_choice_repeat_baseline(k, experts), met)


# ---- 3.15 similarity
def test_cosines_by_hand():
    close(m.cosines([[1, 0], [0, 2], [-3, 0], [1, 1]])[0], [1, 0, -1, sqrt(0.5)])
    assert np.isnan(m.cosines([[0, 0], [1, 0]])).tolist() == [[True, True], [True, False]]
    outputs = np.array([[[1, 0], [0, 1], [5, 0]], [[2, 0], [0, -1], [0, 0]]])  # a token of zeros is left out
    close(m.mean_output_cosine(outputs), [[1, 0], [0, 1]])
    assert np.isnan(m.mean_output_cosine(np.zeros((2, 0, 3)))).all()
    rng = np.random.default_rng(0)
    outputs = rng.normal(size=(3, 20, 4))
    one = outputs / np.linalg.norm(outputs, axis=2, keepdims=True)
    wanted = [[np.mean([one[i, t] @ one[j, t] for t in range(20)]) for j in range(3)] for i in range(3)]
    close(m.mean_output_cosine(outputs), wanted)


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.integers(2, 20), st.integers(1, 4), st.integers(1, 4))
def test_cka_is_hsic_of_centred_gram_matrices(seed, tokens, wide, other):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(tokens, wide)), rng.normal(size=(tokens, other))
    h = np.eye(tokens) - 1 / tokens

    def hsic(a, b):
        return np.trace(h @ a @ a.T @ h @ b @ b.T)

    close(m.linear_cka(x, y), hsic(x, y) / sqrt(hsic(x, x) * hsic(y, y)), rtol=1e-7)
    rotation = np.linalg.qr(rng.normal(size=(wide, wide)))[0]
    assert m.linear_cka(x, 3 * x @ rotation + 7) == pytest.approx(1)
    assert 0 <= m.linear_cka(x, y) <= 1


def test_cka_without_variance_is_unknown():
    assert np.isnan(m.linear_cka(np.full((5, 2), 0.1), np.random.default_rng(0).normal(size=(5, 2))))
    assert np.isnan(m.linear_cka(np.zeros((0, 2)), np.zeros((0, 3))))
    assert np.isnan(m.linear_cka(np.ones((1, 2)), np.ones((1, 2))))
    with pytest.raises(ValueError, match="must be the same tokens"):
        m.linear_cka(np.ones((2, 2)), np.ones((3, 2)))


# ---- 3.16 cost
def test_costs_by_hand():
    ids = np.array([[0, 1], [2, 3], [3, -1]])
    dropped = np.array([[True, False], [False, False], [False, True]])
    routing = Routing("x", 4, ids, dropped_TK=dropped)
    close(m.executed_experts(routing), 4 / 3)
    close(m.executed_experts(routing, free_experts=[3]), 2 / 3)  # expert 3 does no work
    close(m.executed_experts(Routing("x", 4, ids)), 5 / 3)
    assert np.isnan(m.executed_experts(Routing("x", 4, ids[:0])))
    assert (m.expert_parameters(64, 128), m.expert_parameters(64, 128, matrices=2)) == (24576, 16384)
    close(m.active_parameters(1000, [2, 1.5], [24576, 100]), 1000 + 2 * 24576 + 150)
    close(m.active_parameters(1000, 2, 24576), 1000 + 2 * 24576)
    assert m.forward_flops(1000, layers=3, context=16, width=8) == 2000 + 2 * 3 * 16 * 8
    assert m.forward_flops(1000, layers=3, context=16, width=8, causal=False) == 2000 + 4 * 3 * 16 * 8
    assert m.forward_flops(m.expert_parameters(8, 16), 0, 0, 8) == 6 * 8 * 16  # SwiGLU: 6 d f
    assert m.training_flops(10) == 30
    assert m.padded_assignments(8, 160) == 1280


def test_mixtral_8x7b_has_its_published_sizes():
    """46.7B parameters in all, 12.9B of them active (Mixtral, Jiang et al. 2024)."""
    d, f, layers, experts, vocabulary, kv = 4096, 14336, 32, 8, 32000, 1024
    always = 2 * vocabulary * d + layers * (2 * d * d + 2 * d * kv + experts * d + 2 * d) + d
    expert = m.expert_parameters(d, f)
    assert round(m.active_parameters(always, [8] * layers, [expert] * layers) / 1e9, 1) == 46.7
    assert round(m.active_parameters(always, [2] * layers, [expert] * layers) / 1e9, 1) == 12.9


# ---- 3.17 health
def test_logit_health():
    zero = m.logit_health(np.zeros((3, 8), np.float32))
    assert zero.z_loss == pytest.approx(4.324, abs=5e-4)  # (ln 8)^2
    close([zero.mean_abs_logsumexp, zero.max_abs_logit, zero.broken_share], [log(8), 0, 0])
    z = np.array([[1.0, -2, 0.5], [-900, -900, -950]])  # far beyond what exp can hold
    lse = np.array([log(sum(exp(x) for x in z[0])), -900 + log(2 + exp(-50))])
    found = m.logit_health(z)
    close([found.mean_abs_logsumexp, found.max_abs_logit], [np.abs(lse).mean(), 950])
    close(found.z_loss, (lse**2).mean())
    close(m.logit_health(z + 800).max_abs_logit, 801)
    masked = m.logit_health([[2.0, -np.inf]])
    close([masked.mean_abs_logsumexp, masked.max_abs_logit, masked.broken_share], [2, 2, 0])
    broken = m.logit_health([[NAN, 1], [1000, np.inf], [0, 0]])
    close(broken.broken_share, 1 / 3)
    assert not np.isfinite([broken.mean_abs_logsumexp, broken.max_abs_logit, broken.z_loss]).any()
    assert np.isnan(m.logit_health(np.zeros((0, 4))).z_loss)


# ---- all of them
@pytest.mark.parametrize("experts", [1, 2, 3])
@pytest.mark.parametrize("tokens", [0, 1, 2])
@pytest.mark.parametrize("padded", [True, False])
def test_the_smallest_routings_give_numbers_or_nan(experts, tokens, padded):
    """E = 1, k = E, T = 0, T = 1, all padded: no error and no warning, a value in range or NaN."""
    ids = np.tile(np.arange(experts), (tokens, 1))
    if padded:
        ids[:] = -1
    probs = np.full((tokens, experts), 1 / experts)
    labels, c = np.zeros(tokens, np.int64), m.expert_counts(Routing("x", experts, ids))
    share = m.vocabulary_specialisation(ids, labels, experts, 1, 1)
    counts = m.transition_counts(ids, ids, experts, experts)
    found = m.label_information(ids, labels, experts, equal_weights=True, shuffles=2)
    values = [
        *(measure(c) for measure in BALANCE), m.saturation(ids, ids), m.churn(ids, ids), m.jaccard(ids, ids),
        m.top1_flip_rate(ids, ids), m.first_choice_repeats(ids), m.first_choice_repeat_baseline(ids),
        m.any_choice_repeats(ids), m.any_choice_repeat_baseline(experts, experts), m.transition_information(counts),
        m.mean_vocabulary_specialisation(share), found.nats, found.bias, found.chance,
        m.executed_experts(Routing("x", experts, ids)), m.drop_lower_bound(c, 1),
    ]  # fmt: skip
    assert all(np.isnan(v) or 0 <= v <= max(experts, 1) for v in values)
    everything = tokens > 0 and not padded
    assert np.isnan(m.cv(c)) == (not everything)
    assert np.isnan(m.saturation(ids, ids)) == (not everything)
    if everything:
        close([m.cv(c), m.max_violation(c), m.gini(c), m.churn(ids, ids)], 0)
        close([m.normalised_entropy(c), m.saturation(ids, ids)], 1)
        close(m.effective_experts(c), experts)
    for per_token in (m.max_probability, m.margin, m.token_entropy, m.token_effective_experts):
        assert per_token(probs).shape == (tokens,)
    assert m.boundary_margin(probs, ids).shape == (tokens,)
    assert m.co_activation(ids, experts).shape == m.co_activation_lift(ids, experts).shape == (experts, experts)


def test_the_k_of_the_floors_is_what_each_token_chose():
    assert m.floor_k(np.array([[0, 1], [2, 1], [-1, -1]])) == 2  # the last token is padding
    assert m.floor_k(np.array([[0, -1], [2, -1]])) == 1
    assert m.floor_k(np.array([[0, 1, 2], [2, 1, -1]])) == 1  # it varies: take them as independent
    assert m.floor_k(np.zeros((0, 2), int)) == m.floor_k(np.array([[-1]])) == 1


def test_codes_number_the_labels():
    assert m.codes(["b", "a", "b"])[0] == ["a", "b"]
    assert m.codes(["b", "a", "b"])[1].tolist() == [1, 0, 1]
    assert m.codes([])[1].shape == (0,)


@given(st.lists(st.floats(0, 9), min_size=1, max_size=40), st.floats(0, 1))
def test_quantiles_are_those_of_numpy(values, part):
    close(_quantile(values, part), np.quantile(values, part))
