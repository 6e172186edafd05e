"""How evenly the work is spread. c_e: assignments of expert e, as the router chose them, before any drop for capacity.

N tokens, k experts each, E experts: sum c = N k. Papers and libraries mix f with q and P with I; the names here do not:
    f_e = c_e / N  (sums to k)        P_e = mean_n p[n, e]  (sums to 1)
    q_e = c_e / (N k)  (sums to 1)    I_e = sum_n g[n, e]   (a sum of gate weights)
Measures of counts take any array (E,) of non-negative numbers; where nothing was routed they are NaN.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moeviz.domain.metrics.arrays import NOTHING, Array, mean, ratio
from moeviz.domain.routing import Floats, Ints, Routing

ENOUGH = 50  # expected assignments per expert from which on "no assignment at all" means something
TOO_FEW = "too few tokens to tell"


# ---- counts and shares
def expert_counts(routing: Routing) -> Ints:
    """c: assignments per expert (E,) before any capacity drop; padding (-1) is not counted."""
    ids = routing.expert_ids_TK
    return np.bincount(ids[ids >= 0], minlength=routing.num_experts).astype(np.int64)


def processed_counts(routing: Routing) -> Ints:
    """c': assignments per expert (E,) after dropping, what the experts really worked on; c where nothing can drop."""
    ids = routing.expert_ids_TK
    kept = ids >= 0 if routing.dropped_TK is None else (ids >= 0) & ~routing.dropped_TK
    return np.bincount(ids[kept], minlength=routing.num_experts).astype(np.int64)


def load_share(counts_E: npt.ArrayLike) -> Array:
    """q = c / sum(c), in [0, 1/k], sums to 1, even at 1/E (Mixtral, Jiang et al. 2024, fig. 7).

    All zeros when nothing was routed.
    """
    counts = np.asarray(counts_E, dtype=np.float64)
    total = counts.sum()
    return counts / total if total > 0 else np.zeros_like(counts)


def selection_frequency(counts_E: npt.ArrayLike, num_tokens: int) -> Array:
    """f = c / N, in [0, 1], sums to k, even at k/E: the share of tokens that chose the expert (OLMoE, fig. 22).

    NaN without tokens.
    """
    return ratio(counts_E, num_tokens)


def mean_probability(probs_TE: Floats) -> Array:
    """P = mean over tokens of the router's probability (E,), in [0, 1], sums to 1 (Switch, Fedus et al. 2021, eq. 6).

    NaN without tokens; a token whose probabilities are NaN makes the mean NaN.
    """
    if probs_TE.shape[0] == 0:
        return np.full(probs_TE.shape[1], NOTHING)
    return np.asarray(probs_TE.mean(axis=0, dtype=np.float64))


def importance(routing: Routing) -> Array | None:
    """I: sum of gate weights per expert (E,), before any drop (Shazeer et al. 2017, eq. 6). None: weights unknown."""
    if routing.gate_weights_TK is None:
        return None
    ids = routing.expert_ids_TK
    chosen = ids >= 0
    weights = routing.gate_weights_TK[chosen].astype(np.float64)
    return np.bincount(ids[chosen], weights=weights, minlength=routing.num_experts).astype(np.float64)


def importance_share(importance_E: npt.ArrayLike) -> Array:
    """I / sum(I), in [0, 1], sums to 1 where weights are not negative; NaN where the sum is 0."""
    values = np.asarray(importance_E, dtype=np.float64)
    return ratio(values, values.sum())


def share_gap(counts_E: npt.ArrayLike, probs_TE: Floats) -> Array:
    """q - P per expert (E,), in [-1, 1], sums to 0: what a selection bias, noise or sharp scores do beyond the router's
    mean probability. NaN where nothing was routed or there are no tokens."""
    counts = np.asarray(counts_E, dtype=np.float64)
    return ratio(counts, counts.sum()) - mean_probability(probs_TE)


# ---- one number for the spread
def cv(counts_E: npt.ArrayLike) -> float:
    """Coefficient of variation, population deviation over mean, in [0, sqrt(E/k - 1)] (Shazeer et al. 2017, table 6).

    NaN when nothing was routed. Chance alone gives `cv_floor`.
    """
    counts = np.asarray(counts_E, dtype=np.float64)
    return float(counts.std() / counts.mean()) if counts.sum() > 0 else NOTHING


def max_over_mean(counts_E: npt.ArrayLike) -> float:
    """max(c) / mean(c), in [1, E/k] (Shazeer et al. 2017, table 6); NaN when nothing was routed."""
    counts = np.asarray(counts_E, dtype=np.float64)
    return float(counts.max() / counts.mean()) if counts.sum() > 0 else NOTHING


def max_violation(counts_E: npt.ArrayLike) -> float:
    """MaxVio = max / mean - 1 (Wang et al. 2024), in [0, E/k - 1]; NaN when nothing was routed.

    Chance alone gives `max_violation_floor`.
    """
    return max_over_mean(counts_E) - 1


def max_violation_batch(counts_SE: npt.ArrayLike) -> float:
    """MaxVio_batch (Wang et al. 2024): mean over S training batches of the MaxVio of each, in [0, E/k - 1].

    It keeps the noise of a batch. NaN where no batch routed anything.
    """
    return mean([max_violation(counts) for counts in np.asarray(counts_SE)])


def max_violation_global(counts_SE: npt.ArrayLike) -> float:
    """MaxVio_global (Wang et al. 2024): MaxVio of the counts summed over S batches, in [0, E/k - 1]; at most
    max_violation_batch of batches of one size. NaN where nothing was routed."""
    counts = np.asarray(counts_SE, dtype=np.float64)
    return max_violation(counts.sum(axis=0)) if counts.size else NOTHING


def entropy(counts_E: npt.ArrayLike) -> float:
    """H(q) = -sum q ln q in nats, in [ln k, ln E]; NaN when nothing was routed."""
    q = load_share(counts_E)
    q = q[q > 0]
    return float(max(0.0, -(q * np.log(q)).sum())) if q.size else NOTHING


def normalised_entropy(counts_E: npt.ArrayLike) -> float:
    """H(q) / ln E, in [ln k / ln E, 1]; 1 for a single expert, which is trivially even. NaN when nothing was routed."""
    num_experts = np.asarray(counts_E).size
    nats = entropy(counts_E)
    return nats / float(np.log(num_experts)) if num_experts > 1 else nats + 1


def effective_experts(counts_E: npt.ArrayLike) -> float:
    """exp(H(q)), Hill number of order 1: how many evenly loaded experts have this entropy, in [k, E]; NaN when nothing
    was routed."""
    return float(np.exp(entropy(counts_E)))


def hill_2(counts_E: npt.ArrayLike) -> float:
    """1 / sum q^2, Hill number of order 2 (inverse Simpson index), in [k, E] and at most effective_experts: crowded
    experts weigh more. NaN when nothing was routed."""
    q = load_share(counts_E)
    return float(1 / (q @ q)) if q.any() else NOTHING


def gini(counts_E: npt.ArrayLike) -> float:
    """sum_ij |c_i - c_j| / (2 E sum c), in [0, 1 - k/E]; NaN when nothing was routed."""
    counts = np.sort(np.asarray(counts_E, dtype=np.float64))
    size, total = counts.size, counts.sum()
    if total <= 0:
        return NOTHING
    ranks = np.arange(1, size + 1)
    return float(max(0.0, ((2 * ranks - size - 1) * counts).sum() / (size * total)))


# ---- experts without work
def can_tell_dead(counts_E: npt.ArrayLike) -> bool:
    """Whether each expert would expect ENOUGH (50) assignments under even load, M / E >= 50; below it an expert without
    work may be chance."""
    counts = np.asarray(counts_E)
    return bool(counts.sum() >= ENOUGH * counts.size)


def dead_experts(counts_E: npt.ArrayLike) -> int:
    """How many experts got nothing at all, 0..E. Says nothing about the model unless `can_tell_dead`."""
    return int((np.asarray(counts_E) == 0).sum())


def soft_dead_experts(counts_E: npt.ArrayLike) -> int:
    """How many experts got less than a tenth of an even share, q < 0.1 / E, the dead included, 0..E. Says nothing about
    the model unless `can_tell_dead`."""
    counts = np.asarray(counts_E, dtype=np.float64)
    # in whole counts: 10 c E < sum c, so that exactly a tenth is not called dead by rounding
    return int((10 * counts.size * counts < counts.sum()).sum()) if counts.sum() > 0 else counts.size


@dataclass(frozen=True, slots=True)
class LoadSummary:
    """Every balance measure of one layer's counts."""

    load_share: Array
    cv: float
    max_violation: float
    normalised_entropy: float
    effective_experts: float
    gini: float
    dead_experts: int
    hill_2: float
    soft_dead_experts: int
    can_tell_dead: bool


def summarise(counts_E: npt.ArrayLike) -> LoadSummary:
    """All of the above of counts (E,)."""
    return LoadSummary(
        load_share(counts_E),
        cv(counts_E),
        max_violation(counts_E),
        normalised_entropy(counts_E),
        effective_experts(counts_E),
        gini(counts_E),
        dead_experts(counts_E),
        hill_2(counts_E),
        soft_dead_experts(counts_E),
        can_tell_dead(counts_E),
    )
