"""Mutual information of experts and labels (domain, token id, position), with what chance alone would show."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moeviz.domain.metrics.arrays import NOTHING, Array, chosen_mask
from moeviz.domain.routing import Ints

BLOCK = 1 << 20  # assignments of shuffles that are counted in one go


def _nats(shares: Array) -> float:
    """H of a distribution of any shape, nats."""
    known = shares[shares > 0]
    return float(max(0.0, -(known * np.log(known)).sum()))


def _informations(joint_SAB: Array) -> Array:
    """`mutual_information` of each of S tables (S,)."""
    p = joint_SAB / joint_SAB.sum(axis=(1, 2), keepdims=True)

    def nats(shares: Array) -> Array:
        logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
        return np.asarray(-(shares * logs).reshape(len(shares), -1).sum(axis=1))

    return np.maximum(0.0, nats(p.sum(axis=2)) + nats(p.sum(axis=1)) - nats(p))


def mutual_information(joint_AB: npt.ArrayLike) -> float:
    """I = sum p(a,b) ln(p(a,b) / (p(a) p(b))) of counts or weights (A, B), nats, in [0, min(ln A, ln B)].

    Plug-in estimate: too high by about `information_bias`. NaN where all counts are 0.
    """
    joint = np.asarray(joint_AB, dtype=np.float64)
    total = joint.sum()
    if not total > 0:
        return NOTHING
    p = joint / total
    return max(0.0, _nats(p.sum(axis=1)) + _nats(p.sum(axis=0)) - _nats(p))


def information_bias(joint_ED: npt.ArrayLike, weights_D: npt.ArrayLike | None = None, k: float = 1) -> float:
    """What independence shows on average in the plug-in estimate, nats: (E' - k)/2 sum_d (w_d - w_d^2) / c_d.

    c_d assignments of tokens with label d, w_d the weight of the label, E' experts in use, k different experts a token.
    Where w_d = c_d / M, or the labels have one size, it is (E' - k)(D - 1) / (2 M), M = N k assignments; with k = 1 the
    known (E - 1)(D - 1) / (2 N) (Miller 1955). First order: too small where many labels are rare. NaN if all are 0.
    """
    joint = np.asarray(joint_ED, dtype=np.float64)
    size_D = joint.sum(axis=0)
    if not size_D.sum() > 0:
        return NOTHING
    used = size_D > 0
    size = size_D[used]
    w = size / size.sum() if weights_D is None else np.asarray(weights_D, dtype=np.float64)[used]
    w = w / w.sum()
    experts = int((joint.sum(axis=1) > 0).sum())
    return float(max(0.0, experts - k) / 2 * ((w - w * w) / size).sum())


def _quantile(values: list[float], part: float) -> float:
    """As numpy's, which imports masked arrays first: 80 ms that a window would stand still."""
    return float(np.interp(part * (len(values) - 1), np.arange(len(values)), np.sort(values)))


@dataclass(frozen=True, slots=True)
class Information:
    """What experts and labels tell of each other.

    nats        plug-in estimate I(E; D) of the joint, each label with the same weight if so asked
    bias        what it is on average with the labels shuffled over the tokens: the mean of shuffles, or by formula
    of_labels   (nats - bias) / H(D), at most 1; NaN with a single label. At 0 or below there is only chance
    symmetric   (nats - bias) / sqrt(H(E) H(D)), at most 1; NaN where either entropy is 0
    chance      95 % quantile of the shuffles, of whole rows where there are such: `nats` below it is chance; NaN
                without shuffles or with less than two rows a label
    """

    nats: float
    bias: float
    of_labels: float
    symmetric: float
    chance: float


def label_information(
    ids_TK: Ints,
    labels_T: Ints,
    num_experts: int,
    *,
    equal_weights: bool,
    shuffles: int = 0,
    seed: int = 0,
    row_length: int = 1,
) -> Information:
    """Information between the experts of a token, all K choices, and its label 0..D-1 (-1: unlabelled, left out).

    equal_weights   each label counts the same, however many tokens it has: right for domains, not for token ids
    shuffles        how many seeded permutations of the labels make the null; each token's choices stay together
    row_length      the tokens, all labelled, are rows of so many. Those of one text are alike whatever its label, so
                    for `chance` whole rows of labels change places: the rows are drawn by chance, not their tokens
    All NaN where no labelled token was routed.
    """
    known = (labels_T >= 0) & (ids_TK >= 0).any(axis=1)
    chosen = chosen_mask(ids_TK[known], num_experts)
    labels = labels_T[known]
    if not labels.size:
        return Information(NOTHING, NOTHING, NOTHING, NOTHING, NOTHING)
    width = int(labels_T.max()) + 1
    tokens, experts = np.nonzero(chosen)

    def joints(labels_SN: Ints, things: Ints, experts: Ints, counts: Ints | None = None) -> Array:
        """The joint counts (S, E, D) of each row of labels of N things, which have chosen these experts so often."""
        rows = np.arange(len(labels_SN))[:, None] * num_experts
        cells = (rows + experts) * width + np.take(labels_SN, things, axis=1)
        often = None if counts is None else np.tile(counts, len(labels_SN))
        found = np.bincount(cells.ravel(), often, minlength=len(labels_SN) * num_experts * width)
        return found.reshape(len(labels_SN), num_experts, width).astype(np.float64)

    def weighted(joint_SED: Array) -> Array:
        sizes = joint_SED.sum(axis=1, keepdims=True)
        return joint_SED / np.where(sizes > 0, sizes, 1) if equal_weights else joint_SED

    joint = joints(labels[None], tokens, experts)[0]
    p = weighted(joint[None])[0]
    p = p / p.sum()
    nats = mutual_information(p)
    rng = np.random.default_rng(seed)

    def null(labels: Ints, things: Ints, experts: Ints, counts: Ints | None = None) -> list[float]:
        at_once, found = max(1, BLOCK // things.size), list[float]()
        for done in range(0, shuffles, at_once):
            shuffled = [rng.permutation(labels).reshape(-1) for _ in range(min(at_once, shuffles - done))]
            found += _informations(weighted(joints(np.stack(shuffled), things, experts, counts))).tolist()
        return found

    of_tokens = of_rows = null(labels, tokens, experts)
    if row_length > 1:
        rows, places = labels_T.reshape(-1, row_length), np.flatnonzero(known)[tokens]
        if len(rows) < 2 * width:  # in whatever order, they have the same sizes and tell the same
            of_rows = []
        elif (rows != rows[:, :1]).any():
            of_rows = null(rows, places, experts)
        else:  # each of one label: whole rows are counted, which are far fewer
            cells = places // row_length * num_experts + experts
            counts_RE = np.bincount(cells, minlength=len(rows) * num_experts).reshape(len(rows), num_experts)
            of, by = np.nonzero(counts_RE)
            of_rows = null(rows[:, 0], of, by, counts_RE[of, by])
    k = float(chosen.sum(axis=1).mean())
    bias = (
        float(np.mean(of_tokens))
        if of_tokens
        else information_bias(joint, np.ones(width) if equal_weights else None, k)
    )
    of_experts, of_labels = _nats(p.sum(axis=1)), _nats(p.sum(axis=0))
    return Information(
        nats,
        bias,
        (nats - bias) / of_labels if of_labels > 0 else NOTHING,
        (nats - bias) / float(np.sqrt(of_experts * of_labels)) if of_experts * of_labels > 0 else NOTHING,
        _quantile(of_rows, 0.95) if of_rows else NOTHING,
    )
