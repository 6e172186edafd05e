"""How sure the router is of each token. Arrays (T,), one value a token; NaN where a token's scores are NaN."""

import numpy as np
import numpy.typing as npt

from moeviz.domain.metrics.arrays import NOTHING, Array, chosen_mask
from moeviz.domain.routing import Ints


def _wide(values: npt.ArrayLike) -> Array:
    return np.asarray(values, dtype=np.float64)


def max_probability(probs_TE: npt.ArrayLike) -> Array:
    """Largest p of each token (T,), in [1/E, 1]."""
    return np.asarray(_wide(probs_TE).max(axis=1))


def top_k_mass(probs_TE: npt.ArrayLike, k: int) -> Array:
    """Sum of the k largest p of each token (T,), in [k/E, 1]. It is the sum of raw (not renormalised)
    gate weights. ValueError unless 1 <= k <= E."""
    probs = _wide(probs_TE)
    if not 1 <= k <= probs.shape[1]:
        raise ValueError(f"k is {k}; it must lie between 1 and the number of experts, {probs.shape[1]}")
    return np.asarray(np.sort(probs, axis=1)[:, -k:].sum(axis=1))  # NaN sorts last, and stays


def margin(probs_TE: npt.ArrayLike) -> Array:
    """p1 - p2 of each token (T,), in [0, 1]: the lead of the first expert over the second. NaN with one expert."""
    probs = _wide(probs_TE)
    if probs.shape[1] < 2:
        return np.full(probs.shape[0], NOTHING)
    best = np.sort(probs, axis=1)
    return np.asarray(best[:, -1] - best[:, -2])


def boundary_margin(scores_TE: npt.ArrayLike, ids_TK: Ints) -> Array:
    """Lowest chosen score minus the highest one not chosen (T,): how far a token is from changing its experts.

    With the scores that selected (bias and noise included, if they were used) it is the k-th minus the (k+1)-th score
    and never negative. With other scores, such as clean probabilities beside a selection bias, a negative value says
    that something else decided. In the scores' unit; experts with a score of -inf were never eligible and are left out.
    NaN where no expert was chosen or none is left.
    """
    scores = _wide(scores_TE)
    chosen = chosen_mask(ids_TK, scores.shape[1])
    lowest = np.where(chosen, scores, np.inf).min(axis=1, initial=np.inf)
    highest = np.where(chosen, -np.inf, scores).max(axis=1, initial=-np.inf)
    known = np.isfinite(lowest) & np.isfinite(highest)
    out = np.full(scores.shape[0], NOTHING)
    out[known] = lowest[known] - highest[known]
    return out


def token_entropy(probs_TE: npt.ArrayLike) -> Array:
    """H(p_n) = -sum p ln p of each token (T,), nats, in [0, ln E]."""
    probs = _wide(probs_TE)
    logs = np.log(probs, out=np.zeros_like(probs), where=probs > 0)
    return np.asarray(np.maximum(0.0, -(probs * logs).sum(axis=1)))


def token_effective_experts(probs_TE: npt.ArrayLike) -> Array:
    """exp(H(p_n)) of each token (T,), in [1, E]: how many experts the router hesitates between."""
    return np.exp(token_entropy(probs_TE))
