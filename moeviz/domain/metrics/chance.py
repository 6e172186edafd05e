"""Sampling floors: what perfectly even routing shows by chance alone. A measure below its floor is noise.

M = N k assignments over E experts. With k = 1, or experts drawn with replacement, they are independent. A token that
chooses k different experts varies less: every deviation shrinks by sqrt((E - k) / (E - 1)), to nothing at k = E.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from moeviz.domain.metrics.arrays import NOTHING, Array
from moeviz.domain.routing import Ints

DRAWS = 256  # simulated batches: the standard error of their mean is below 4 % of the floor


def floor_k(ids_TK: Ints) -> int:
    """The k to give the floors below: how many experts each routed token chose, if that is one number, else 1, which
    takes the assignments as independent."""
    chosen = (ids_TK >= 0).sum(axis=1)
    chosen = chosen[chosen > 0]
    return int(chosen[0]) if chosen.size and (chosen == chosen[0]).all() else 1


def cv_floor(num_assignments: int, num_experts: int, k: int = 1) -> float:
    """Root mean square CV by chance: sqrt((E - k) / M), in [0, inf); NaN without assignments.

    k = 1: M independent assignments, sqrt((E - 1) / M).
    """
    return float(np.sqrt((num_experts - k) / num_assignments)) if num_assignments > 0 else NOTHING


def share_noise(num_assignments: int, num_experts: int, k: int = 1) -> float:
    """Standard deviation of one expert's load share q by chance: sqrt((E - k) / M) / E; NaN without assignments."""
    return cv_floor(num_assignments, num_experts, k) / num_experts


@lru_cache(maxsize=256)
def max_violation_floor(num_assignments: int, num_experts: int, k: int = 1, seed: int = 0) -> float:
    """Mean MaxVio by chance, by simulating DRAWS batches with this seed, in [0, E/k - 1]; NaN without assignments.

    About 0.7 to 0.85 of sqrt(2 E ln E / M) where M / E is large.
    """
    if num_assignments <= 0:
        return NOTHING
    if k >= num_experts:
        return 0.0
    even = np.full(num_experts, 1 / num_experts)
    counts = np.random.default_rng(seed).multinomial(num_assignments, even, size=DRAWS)
    independent = counts.max(axis=1).mean() * num_experts / num_assignments - 1
    return float(min(independent * np.sqrt((num_experts - k) / (num_experts - 1)), num_experts / k - 1))


def mean_error(values_BC: Array, counted_BC: npt.NDArray[np.bool_]) -> float:
    """Standard error of the mean of what is counted of `values_BC`, where the rows B are independent and the values of
    one row may be alike: sqrt(B / (B - 1) * sum_b (s_b - n_b m)^2) / sum_b n_b for sums s, counts n and mean m of the
    rows that count anything (ratio estimator of cluster sampling, Cochran 1977). NaN for less than two such rows."""
    counts_B = counted_BC.sum(axis=1)
    used = counts_B > 0
    rows = int(used.sum())
    if rows < 2:
        return NOTHING
    sums_B = np.where(counted_BC, values_BC, 0.0).sum(axis=1)[used]
    counts_B = counts_B[used]
    residuals_B = sums_B - counts_B * (sums_B.sum() / counts_B.sum())
    return float(np.sqrt(rows / (rows - 1) * (residuals_B**2).sum()) / counts_B.sum())
