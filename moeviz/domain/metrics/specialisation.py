"""Which experts serve which domain and which token of the vocabulary."""

import numpy as np

from moeviz.domain.metrics.arrays import NOTHING, Array, chosen_mask, first_choice, mean, ratio
from moeviz.domain.routing import Ints

MIN_COUNT = 10  # a token id seen once makes an expert 100 % specialised in it: ids seen less often are left out


def domain_specialisation(
    ids_TK: Ints, domain_T: Ints, num_experts: int, num_domains: int, min_tokens: int = 1
) -> Array:
    """DS[d, e] (D, E) = tokens of domain d with e among their experts / tokens of d, in [0, 1] (OLMoE, eq. 7).

    Each row sums to k; k/E by chance. domain_T holds 0..D-1, or -1 for unknown. NaN for domains with fewer than
    `min_tokens` tokens.
    """
    chosen = chosen_mask(ids_TK, num_experts)
    tokens_D = np.bincount(domain_T[domain_T >= 0], minlength=num_domains)
    of_domain_DT = domain_T == np.arange(num_domains)[:, None]
    hits = of_domain_DT.astype(np.float64) @ chosen.astype(np.float64)
    out = ratio(hits, tokens_D[:, None])
    out[tokens_D < min_tokens] = NOTHING
    return out


def vocabulary_specialisation(
    ids_TK: Ints, token_T: Ints, num_experts: int, vocabulary_size: int, min_count: int = MIN_COUNT
) -> Array:
    """VS[x, e] (V, E) = times that id x went to e as its first expert / times that x was routed, in [0, 1]; each row
    sums to 1 (OLMoE, eq. 8, k = 1). token_T holds the id of the input, or of the predicted or true next token.

    NaN for ids seen fewer than `min_count` times.
    """
    first = first_choice(ids_TK)
    routed = (first >= 0) & (token_T >= 0)
    hits = np.zeros((vocabulary_size, num_experts))
    np.add.at(hits, (token_T[routed], first[routed]), 1)
    seen = hits.sum(axis=1)
    out = ratio(hits, seen[:, None])
    out[seen < min_count] = NOTHING
    return out


def mean_vocabulary_specialisation(specialisation_VE: Array) -> float:
    """Plain mean over ids of max_e VS[x, e], in [1/E, 1]: the value of a layer in OLMoE's script, which includes ids
    seen once. NaN where no id was seen often enough."""
    return mean(specialisation_VE.max(axis=1, initial=-np.inf)[~np.isnan(specialisation_VE).any(axis=1)])
