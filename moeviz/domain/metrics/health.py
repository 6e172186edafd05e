"""Whether the router's scores stay in a range that arithmetic can bear."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moeviz.domain.metrics.arrays import NOTHING


@dataclass(frozen=True, slots=True)
class LogitHealth:
    """Of the scores z before softmax.

    mean_abs_logsumexp   mean over tokens of |logsumexp z|: drifts where nothing holds a constant shift; [0, inf)
    max_abs_logit        max |z|: exp overflows float32 above 88; [0, inf)
    z_loss               mean over tokens of (logsumexp z)^2 (ST-MoE, Zoph et al. 2022); (ln E)^2 for zeros; [0, inf)
    broken_share         share of scores that are NaN or +inf: a diverged model; [0, 1]. The others are NaN or inf then
    """

    mean_abs_logsumexp: float
    max_abs_logit: float
    z_loss: float
    broken_share: float


def logit_health(logits_TE: npt.ArrayLike) -> LogitHealth:
    """Health of scores (T, E); -inf is an expert masked on purpose. All NaN without tokens."""
    z = np.asarray(logits_TE, dtype=np.float64)
    if not z.size:
        return LogitHealth(NOTHING, NOTHING, NOTHING, NOTHING)
    masked = np.isneginf(z)
    top = z.max(axis=1)
    shift = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore", over="ignore"):  # every expert masked gives -inf, a diverged model inf
        lse = shift + np.log(np.exp(z - shift[:, None]).sum(axis=1))
    return LogitHealth(
        float(np.abs(lse).mean()),
        float(np.abs(np.where(masked, 0.0, z)).max()),
        float((lse**2).mean()),
        float((~np.isfinite(z) & ~masked).mean()),
    )
