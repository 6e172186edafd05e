"""Measures of load balance, each defined in its docstring with its source. Counts are assignments per expert."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moeviz.domain.routing import Ints, Routing

Array = npt.NDArray[np.float64]


def expert_counts(routing: Routing) -> Ints:
    """Assignments per expert (E,) before any capacity drop; padding (-1) is not counted."""
    ids = routing.expert_ids_TK
    return np.bincount(ids[ids >= 0], minlength=routing.num_experts).astype(np.int64)


def importance(routing: Routing) -> Array | None:
    """Sum of gate weights per expert (E,): I of Shazeer et al. 2017, eq. 6. None where weights are unknown."""
    if routing.gate_weights_TK is None:
        return None
    ids = routing.expert_ids_TK
    chosen = ids >= 0
    weights = routing.gate_weights_TK[chosen].astype(np.float64)
    return np.bincount(ids[chosen], weights=weights, minlength=routing.num_experts).astype(np.float64)


def load_share(counts_E: npt.ArrayLike) -> Array:
    """q = c / sum(c), in [0, 1], sums to 1; uniform when nothing was routed is NOT assumed: all zeros then."""
    counts = np.asarray(counts_E, dtype=np.float64)
    total = counts.sum()
    return counts / total if total > 0 else np.zeros_like(counts)


def cv(counts_E: npt.ArrayLike) -> float:
    """Coefficient of variation, population deviation over mean, in [0, sqrt(E/k - 1)]; 0 when nothing was routed."""
    counts = np.asarray(counts_E, dtype=np.float64)
    mean = counts.mean()
    return float(counts.std() / mean) if mean > 0 else 0.0


def max_violation(counts_E: npt.ArrayLike) -> float:
    """MaxVio = max / mean - 1 (Wang et al. 2024), in [0, E/k - 1]; 0 when nothing was routed."""
    counts = np.asarray(counts_E, dtype=np.float64)
    mean = counts.mean()
    return float(counts.max() / mean - 1) if mean > 0 else 0.0


def entropy(counts_E: npt.ArrayLike) -> float:
    """H(q) in nats."""
    q = load_share(counts_E)
    q = q[q > 0]
    return float(-(q * np.log(q)).sum()) if q.size else 0.0


def normalised_entropy(counts_E: npt.ArrayLike) -> float:
    """H(q) / ln E, in [ln k / ln E, 1]; 1 for a single expert, which is trivially even."""
    num_experts = np.asarray(counts_E).size
    return entropy(counts_E) / float(np.log(num_experts)) if num_experts > 1 else 1.0


def effective_experts(counts_E: npt.ArrayLike) -> float:
    """exp(H(q)): how many evenly loaded experts would have this entropy, in [k, E]; 0 when nothing was routed."""
    return float(np.exp(entropy(counts_E))) if np.asarray(counts_E).sum() > 0 else 0.0


def gini(counts_E: npt.ArrayLike) -> float:
    """sum_ij |c_i - c_j| / (2 E sum c), in [0, 1 - k/E]; 0 when nothing was routed."""
    counts = np.sort(np.asarray(counts_E, dtype=np.float64))
    size, total = counts.size, counts.sum()
    if total <= 0:
        return 0.0
    ranks = np.arange(1, size + 1)
    return float(((2 * ranks - size - 1) * counts).sum() / (size * total))


def dead_experts(counts_E: npt.ArrayLike) -> int:
    """How many experts got nothing at all, 0..E. Judge it only where each expert expects 50 assignments or more."""
    return int((np.asarray(counts_E) == 0).sum())


def cv_floor(num_assignments: int, num_experts: int) -> float:
    """CV that even routing shows by chance alone: sqrt((E - 1) / M) for M independent uniform assignments."""
    return float(np.sqrt((num_experts - 1) / num_assignments)) if num_assignments > 0 else 0.0


def share_noise(num_assignments: int, num_experts: int) -> float:
    """Standard deviation of one expert's load share under even routing by chance: sqrt(p (1 - p) / M), p = 1/E."""
    p = 1 / num_experts
    return float(np.sqrt(p * (1 - p) / num_assignments)) if num_assignments > 0 else 0.0


def drop_rate(routing: Routing) -> float | None:
    """Dropped assignments over all assignments, in [0, 1]; None where the router cannot drop or does not say."""
    if routing.dropped_TK is None:
        return None
    chosen = routing.expert_ids_TK >= 0
    return float(routing.dropped_TK[chosen].mean()) if chosen.any() else 0.0


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


def summarise(counts_E: npt.ArrayLike) -> LoadSummary:
    return LoadSummary(
        load_share(counts_E),
        cv(counts_E),
        max_violation(counts_E),
        normalised_entropy(counts_E),
        effective_experts(counts_E),
        gini(counts_E),
        dead_experts(counts_E),
    )
