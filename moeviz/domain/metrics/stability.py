"""How much the routing of the same T tokens changes between two moments. Compare a fixed probe in eval mode, noise off.

Expert numbers must mean the same in both: nothing here holds across a changed number of experts.
"""

import numpy as np

from moeviz.domain.metrics.arrays import Array, chosen_mask, first_choice, mean, ratio
from moeviz.domain.routing import Ints


def _sizes(a_TK: Ints, b_TK: Ints) -> tuple[Array, Array, Array]:
    """|A & B|, |A| and |B| of each token (T,)."""
    if a_TK.shape[0] != b_TK.shape[0]:
        raise ValueError(f"{a_TK.shape[0]} and {b_TK.shape[0]} tokens cannot be compared; they must be the same tokens")
    width = 1 + int(max(a_TK.max(initial=0), b_TK.max(initial=0)))
    a, b = chosen_mask(a_TK, width), chosen_mask(b_TK, width)
    both, of_a, of_b = (x.sum(axis=1).astype(np.float64) for x in (a & b, a, b))
    return both, of_a, of_b


def overlap(a_TK: Ints, b_TK: Ints) -> Array:
    """|A & B| / max(|A|, |B|) of each token (T,), in [0, 1]: with k experts in both the shared part of k.

    NaN where both are empty. ValueError if the numbers of tokens differ.
    """
    both, of_a, of_b = _sizes(a_TK, b_TK)
    return ratio(both, np.maximum(of_a, of_b))


def saturation(now_TK: Ints, final_TK: Ints) -> float:
    """Router saturation (OLMoE, Muennighoff et al. 2024): mean overlap of the choice now with the one at the end of
    training, in [0, 1]; k/E by chance (`overlap_baseline`). NaN without tokens."""
    return mean(overlap(now_TK, final_TK))


def churn(before_TK: Ints, now_TK: Ints) -> float:
    """1 - mean overlap of consecutive moments, in [0, 1]; between two draws of the noise it is the exploration rate.
    NaN without tokens."""
    return 1 - mean(overlap(before_TK, now_TK))


def top1_flip_rate(before_TK: Ints, now_TK: Ints) -> float:
    """Share of tokens whose first expert is another one now, in [0, 1]; NaN where no token has one in both."""
    if before_TK.shape[0] != now_TK.shape[0]:
        raise ValueError(f"{before_TK.shape[0]} and {now_TK.shape[0]} tokens cannot be compared")
    a, b = first_choice(before_TK), first_choice(now_TK)
    known = (a >= 0) & (b >= 0)
    return mean((a != b)[known])


def jaccard(a_TK: Ints, b_TK: Ints) -> float:
    """Mean of |A & B| / |A | B| over tokens, in [0, 1]: for choices whose size varies. NaN without tokens."""
    both, of_a, of_b = _sizes(a_TK, b_TK)
    return mean(ratio(both, of_a + of_b - both))


def overlap_baseline(k: int, num_experts: int) -> float:
    """Expected overlap of two random choices of k of E: k/E, in (0, 1]."""
    return k / num_experts
