"""How two routings A and B of one layer differ, whatever they are of: two steps, runs, texts or layers.

Loads can be compared whenever both have the same number of experts. What is told of tokens holds for the same tokens in
the same order; `churn` and `top1_flip_rate` of stability.py belong to it. All of it goes by the experts' numbers, and
experts of two runs or layers share no more than these: `agreement` alone does without.
"""

import numpy as np
import numpy.typing as npt

from moeviz.domain.metrics.arrays import NOTHING, Array, first_choice, mean, ratio
from moeviz.domain.metrics.information import Information, label_information
from moeviz.domain.routing import Floats, Ints, Routing

MOST_DIVERGENCE = float(np.log(2))


# ---- loads
def load_divergence(a_E: npt.ArrayLike, b_E: npt.ArrayLike) -> float:
    """Jensen-Shannon divergence of two loads, H((p + q)/2) - (H(p) + H(q))/2, in nats, in [0, ln 2]: 0 only for equal
    shares, ln 2 where no expert works on both sides (Lin 1991). Its root is a metric.

    a_E, b_E: counts or shares, each scaled to sum to 1. NaN where one side routed nothing; ValueError if the numbers of
    experts differ: there is no pairing of them then. By chance `divergence_floor`.
    """
    p, q = _pair(a_E, b_E)
    if np.isnan(p).any() or np.isnan(q).any():
        return NOTHING
    half = (p + q) / 2

    def nats(x: Array) -> float:  # Kullback-Leibler to the middle, which is 0 only where x is
        used = x > 0
        return float((x[used] * np.log(x[used] / half[used])).sum())

    return float(np.clip((nats(p) + nats(q)) / 2, 0.0, MOST_DIVERGENCE))


def load_delta(a_E: npt.ArrayLike, b_E: npt.ArrayLike) -> Array:
    """q_B - q_A of each expert (E,), in [-1, 1], sums to 0; NaN where one side routed nothing. ValueError if the
    numbers of experts differ. By chance within twice `delta_noise`."""
    p, q = _pair(a_E, b_E)
    return q - p


def _pair(a_E: npt.ArrayLike, b_E: npt.ArrayLike) -> tuple[Array, Array]:
    a, b = np.asarray(a_E, dtype=np.float64), np.asarray(b_E, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"{a.size} and {b.size} experts cannot be paired")
    return ratio(a, a.sum()), ratio(b, b.sum())


def divergence_floor(num_a: int, num_b: int, num_experts: int, k: int = 1) -> float:
    """What two samples of one even load show of `load_divergence` on average: (E - k) (1/M_A + 1/M_B) / 8 nats, M
    assignments each, k different ones a token. First order in 1/M, so not above ln 2; NaN without assignments."""
    if min(num_a, num_b) <= 0:
        return NOTHING
    return min((num_experts - k) * (1 / num_a + 1 / num_b) / 8, MOST_DIVERGENCE)


def delta_noise(num_a: int, num_b: int, num_experts: int, k: int = 1) -> float:
    """Standard deviation of one expert's `load_delta` between two samples of one even load:
    sqrt((E - k) (1/M_A + 1/M_B)) / E; NaN without assignments."""
    if min(num_a, num_b) <= 0:
        return NOTHING
    return float(np.sqrt((num_experts - k) * (1 / num_a + 1 / num_b)) / num_experts)


# ---- the same tokens
def flip_baseline(a_TK: Ints, b_TK: Ints) -> float:
    """1 - sum_e q1_A q1_B over the shares of first choices, in [0, 1]: the `top1_flip_rate` of two choices that have
    these loads and nothing else in common. NaN where one side chose nothing."""
    a, b = (first[first >= 0] for first in (first_choice(a_TK), first_choice(b_TK)))
    if not (a.size and b.size):
        return NOTHING
    size = 1 + max(int(a.max()), int(b.max()))
    return float(1 - np.bincount(a, minlength=size) @ np.bincount(b, minlength=size) / (a.size * b.size))


def weight_change(a: Routing, b: Routing) -> float | None:
    """Mean over tokens of half of sum_e |g_B - g_A|, g = 0 for experts that were not chosen: where the weights of a
    token sum to 1 the share of its weight that went to other experts, in [0, 1]. None where weights are unknown, NaN
    without tokens; ValueError for other numbers of tokens or experts."""
    if a.gate_weights_TK is None or b.gate_weights_TK is None:
        return None
    return _half_difference(_weights(a, a.gate_weights_TK), _weights(b, b.gate_weights_TK))


def probability_change(a: Routing, b: Routing) -> float | None:
    """Mean over tokens of the total variation distance of the router's probabilities, half of sum_e |p_B - p_A|, in
    [0, 1]. None where they are unknown, NaN without tokens; ValueError for other numbers of tokens or experts."""
    if a.router_probs_TE is None or b.router_probs_TE is None:
        return None
    return _half_difference(a.router_probs_TE, b.router_probs_TE)


def _weights(routing: Routing, weights_TK: Floats) -> Floats:
    """(T, E)."""
    dense = np.zeros((routing.num_tokens, routing.num_experts), np.float32)
    tokens, slots = np.nonzero(routing.expert_ids_TK >= 0)
    dense[tokens, routing.expert_ids_TK[tokens, slots]] = weights_TK[tokens, slots]
    return dense


def _half_difference(a_TE: Floats, b_TE: Floats) -> float:
    if a_TE.shape != b_TE.shape:
        raise ValueError(f"{a_TE.shape} and {b_TE.shape} tokens and experts cannot be compared")
    change_TE = b_TE - a_TE  # in single precision, as the model has them: twice as fast
    return mean(np.abs(change_TE, out=change_TE).sum(axis=1, dtype=np.float64) / 2)


def agreement(a_TK: Ints, b_TK: Ints, num_experts: int, shuffles: int = 0) -> Information:
    """What the first choices of A (of `num_experts`) and B tell of each other; its `symmetric` is 1, less its value by
    chance, where every expert of A stands for one of B, and 0 by chance. It asks for no common numbering, so it holds
    between layers, runs and numbers of experts. `shuffles`: of the tokens, for the value by chance; without them a
    formula that is far too high for more experts than tokens. NaN where either side has one expert only; ValueError for
    other numbers of tokens."""
    if a_TK.shape[0] != b_TK.shape[0]:
        raise ValueError(f"{a_TK.shape[0]} and {b_TK.shape[0]} tokens cannot be compared; they must be the same tokens")
    firsts = first_choice(a_TK)[:, None], first_choice(b_TK)
    return label_information(*firsts, num_experts, equal_weights=False, shuffles=shuffles)
