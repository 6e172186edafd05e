"""What is lost to capacity: assignments that an expert had no room for."""

import numpy as np
import numpy.typing as npt

from moeviz.domain.metrics.arrays import NOTHING
from moeviz.domain.routing import Routing


def drop_rate(routing: Routing) -> float | None:
    """Dropped assignments over all assignments N k, in [0, 1] (ST-MoE, Zoph et al. 2022, table 5).

    None where the router cannot drop or does not say; NaN where nothing was routed.
    """
    if routing.dropped_TK is None:
        return None
    chosen = routing.expert_ids_TK >= 0
    return float(routing.dropped_TK[chosen].mean()) if chosen.any() else NOTHING


def fully_dropped_rate(routing: Routing) -> float | None:
    """Tokens that lost every expert they chose, over the tokens that chose any, in [0, 1].

    None where the router cannot drop or does not say; NaN where nothing was routed.
    """
    if routing.dropped_TK is None:
        return None
    chosen = routing.expert_ids_TK >= 0
    some, kept = chosen.any(axis=1), (chosen & ~routing.dropped_TK).any(axis=1)
    return float(1 - kept.sum() / some.sum()) if some.any() else NOTHING


def drop_lower_bound(counts_E: npt.ArrayLike, capacity: float) -> float:
    """sum max(0, c_e - C) / sum c, in [0, 1]: the least that must be dropped of this load if each expert takes at most
    C assignments, in whatever order. Exact for one capacity over the whole batch; one for each group or sequence drops
    as much or more. NaN where nothing was routed. ValueError if C is negative."""
    if capacity < 0:
        raise ValueError(f"capacity is {capacity}; it must not be negative")
    counts = np.asarray(counts_E, dtype=np.float64)
    total = counts.sum()
    return float(np.maximum(0, counts - capacity).sum() / total) if total > 0 else NOTHING
