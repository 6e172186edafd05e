"""How alike experts are. Weights are comparable only between experts of one ancestry; outputs always are."""

import numpy as np
import numpy.typing as npt

from moeviz.domain.metrics.arrays import NOTHING, Array, ratio


def cosines(rows_ED: npt.ArrayLike) -> Array:
    """Cosine of each pair of rows (E, E), in [-1, 1], 1 on the diagonal. NaN for rows of zeros.

    For a router's weight (E, D): experts with like rows are chosen together. For flattened expert weights: only where
    the experts began as copies, since hidden units may be permuted.
    """
    rows = np.asarray(rows_ED, dtype=np.float64)
    unit = ratio(rows, np.linalg.norm(rows, axis=1, keepdims=True))
    return np.clip(unit @ unit.T, -1, 1)


def mean_output_cosine(outputs_ETD: npt.ArrayLike) -> Array:
    """Mean over tokens of the cosine of two experts' outputs for the same token (E, E), in [-1, 1].

    Every expert must have been run on every token of the probe. A token with a zero output leaves its pairs out; NaN
    where no token is left.
    """
    outputs = np.asarray(outputs_ETD, dtype=np.float64)
    norms = np.linalg.norm(outputs, axis=2, keepdims=True)
    unit = np.divide(outputs, norms, out=np.zeros_like(outputs), where=norms > 0)
    there = (norms[:, :, 0] > 0).astype(np.float64)
    flat = unit.reshape(unit.shape[0], -1)
    return np.clip(ratio(flat @ flat.T, there @ there.T), -1, 1)


def linear_cka(x_TD: npt.ArrayLike, y_TD: npt.ArrayLike) -> float:
    """||Yc^T Xc||_F^2 / (||Xc^T Xc||_F ||Yc^T Yc||_F), columns centred, in [0, 1] (Kornblith et al. 2019).

    1 for outputs equal up to rotation and scale; the widths may differ. High for any data when T is not far above D.
    NaN where either has no variance. ValueError if the numbers of tokens differ.
    """
    x, y = np.asarray(x_TD, dtype=np.float64), np.asarray(y_TD, dtype=np.float64)
    if x.shape[0] != y.shape[0]:
        raise ValueError(f"{x.shape[0]} and {y.shape[0]} tokens cannot be compared; they must be the same tokens")
    if x.shape[0] == 0:
        return NOTHING
    # a column that holds one value must be exactly zero, whatever its mean rounds to
    x, y = (np.where((a == a[:1]).all(axis=0), 0.0, a - a.mean(axis=0)) for a in (x, y))
    shared, own = float(((y.T @ x) ** 2).sum()), float(np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
    return min(1.0, shared / own) if own > 0 else NOTHING
