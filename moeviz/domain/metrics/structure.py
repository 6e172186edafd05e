"""Which experts go together: in one token, from one layer to the next, from one token to the next."""

from math import comb

import numpy as np
import numpy.typing as npt

from moeviz.domain.metrics.arrays import NOTHING, Array, chosen_mask, first_choice, mean, ratio
from moeviz.domain.metrics.information import mutual_information
from moeviz.domain.routing import Ints


# ---- in one token
def pair_counts(ids_TK: Ints, num_experts: int) -> Ints:
    """N_ij (E, E): tokens that chose both i and j, over all pairs of ranks; on the diagonal N_i, those that chose i."""
    chosen = chosen_mask(ids_TK, num_experts).astype(np.float64)
    return (chosen.T @ chosen).astype(np.int64)


def co_activation(ids_TK: Ints, num_experts: int, min_tokens: int = 1) -> Array:
    """C[i, j] = N_ij / N_i (E, E), in [0, 1]: of the tokens that chose i, the share that chose j too (OLMoE, eq. 6).

    Not symmetric; each row sums to k - 1 where every token chose k. NaN on the diagonal and in rows of experts that
    fewer than `min_tokens` tokens chose. By chance `co_activation_baseline`. OLMoE's own script counts neighbouring
    ranks alone, and so shows less.
    """
    pairs = pair_counts(ids_TK, num_experts)
    out = ratio(pairs, np.diag(pairs)[:, None])
    out[np.diag(pairs) < min_tokens] = NOTHING
    np.fill_diagonal(out, NOTHING)
    return out


def co_activation_baseline(k: float, num_experts: int) -> float:
    """Co-activation of random choices of k of E: (k - 1) / (E - 1), in [0, 1]; NaN with one expert."""
    return (k - 1) / (num_experts - 1) if num_experts > 1 else NOTHING


def co_activation_lift(ids_TK: Ints, num_experts: int) -> Array:
    """N_ij N / (N_i N_j) (E, E), symmetric, in [0, inf): how many times as often as if both were chosen independently.

    Choosing k different experts puts its chance level at (k - 1) E / (k (E - 1)), below 1. NaN on the diagonal and for
    unused experts.
    """
    pairs = pair_counts(ids_TK, num_experts).astype(np.float64)
    used = np.diag(pairs).copy()
    out = ratio(pairs * ids_TK.shape[0], used[:, None] * used[None, :])
    np.fill_diagonal(out, NOTHING)
    return out


# ---- from layer to layer
def transition_counts(ids_TK: Ints, next_TK: Ints, num_experts: int, next_experts: int) -> Ints:
    """(E, E'): pairs of a choice in one layer and a choice of the same token in the next, all k x k' pairs. Its margins
    weigh each choice by how many the token made in the other layer. ValueError if the numbers of tokens differ."""
    if ids_TK.shape[0] != next_TK.shape[0]:
        raise ValueError(f"{ids_TK.shape[0]} and {next_TK.shape[0]} tokens cannot be paired")
    here, there = chosen_mask(ids_TK, num_experts), chosen_mask(next_TK, next_experts)
    return (here.T.astype(np.float64) @ there.astype(np.float64)).astype(np.int64)


def transitions(counts_EE: npt.ArrayLike) -> Array:
    """T[i, j] = P(next layer's expert = j | this layer's = i) (E, E'), rows sum to 1; NaN in rows of unused experts."""
    counts = np.asarray(counts_EE, dtype=np.float64)
    return ratio(counts, counts.sum(axis=1, keepdims=True))


def transition_information(counts_EE: npt.ArrayLike) -> float:
    """I(e_l; e_l+1) / ln E', E' experts in the next layer, in [0, 1]: how far a choice tells the next layer's. Plug-in
    estimate, too high by `transition_information_bias`. NaN without pairs or with a single expert next."""
    counts = np.asarray(counts_EE, dtype=np.float64)
    return mutual_information(counts) / float(np.log(counts.shape[1])) if counts.shape[1] > 1 else NOTHING


def transition_information_bias(counts_EE: npt.ArrayLike, k: float, next_k: float) -> float:
    """What independent layers show on average: (U - k)(U' - k') / (2 M ln E'), U and U' experts in use, M pairs, k and
    k' choices of a token. First order in 1/M, in the unit of `transition_information`; NaN where that is NaN."""
    counts = np.asarray(counts_EE, dtype=np.float64)
    pairs, experts = counts.sum(), counts.shape[1]
    if experts < 2 or not pairs > 0:
        return NOTHING
    used, next_used = (int((counts.sum(axis=axis) > 0).sum()) for axis in (1, 0))
    return float(max(0.0, used - k) * max(0.0, next_used - next_k) / (2 * pairs * np.log(experts)))


# ---- from token to token
def first_choice_repeats(ids_TK: Ints) -> float:
    """P(first expert of token t = that of token t + 1), in [0, 1] (Mixtral, table 5, first choice). The tokens are one
    sequence in order. By chance `first_choice_repeat_baseline`. NaN with fewer than two neighbouring tokens routed."""
    first = first_choice(ids_TK)
    known = (first[1:] >= 0) & (first[:-1] >= 0)
    return mean((first[1:] == first[:-1])[known])


def first_choice_repeat_baseline(ids_TK: Ints) -> float:
    """sum_e q1_e^2, q1 the share of first choices, in [1/E, 1]: repeats of independent tokens with this load;
    1/E only if the load is even. NaN without tokens."""
    first = first_choice(ids_TK)
    counts = np.bincount(first[first >= 0]).astype(np.float64)
    return float(counts @ counts / counts.sum() ** 2) if counts.size else NOTHING


def any_choice_repeats(ids_TK: Ints) -> float:
    """P(tokens t and t + 1 share at least one expert), in [0, 1] (Mixtral, table 5, first or second choice). By chance
    `any_choice_repeat_baseline`. NaN with fewer than two neighbouring tokens routed."""
    chosen = chosen_mask(ids_TK, 1 + int(ids_TK.max(initial=0)))
    now, after = chosen[:-1], chosen[1:]
    known = np.flatnonzero(now.any(axis=1) & after.any(axis=1))
    return mean((now[known] & after[known]).any(axis=1))


def any_choice_repeat_baseline(k: int, num_experts: int) -> float:
    """1 - C(E - k, k) / C(E, k), in [0, 1]: two random choices of k of E share an expert; 46.4 % for 2 of 8."""
    return 1 - comb(num_experts - k, k) / comb(num_experts, k)
