"""Where the inputs of routers lie: the axes along which they differ most, and a grid over the plane of a 2-D task."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from moeviz.domain.routing import Floats

CELLS = 3072  # of the grid, about: a forward pass over them costs as much as a training step
FEWEST, MOST = 16, 256  # cells on a side


def principal_axes(x_TD: Tensor, before_2D: Floats | None = None) -> tuple[Floats, Floats]:
    """The first two principal components of T tokens as unit vectors (2, D), and the share of the variance along each
    (2,), NaN where there is none.

    They come in the order and with the signs that differ least from the axes of an earlier look, so that a picture
    neither flips nor turns over when two shares cross; without one by share, the largest entry of each positive.
    """
    centred = x_TD.detach().cpu().double()
    centred = centred - centred.mean(0)
    # of the (D, D) matrix: a singular value decomposition of all tokens costs twenty times as much
    values, vectors = torch.linalg.eigh(centred.T @ centred)
    axes = vectors.T[-2:].flip(0).numpy()
    shares = values[-2:].flip(0).clamp_min(0).numpy()
    total = float(values.clamp_min(0).sum())
    signs = np.sign(axes[np.arange(2), np.abs(axes).argmax(1)])
    if before_2D is not None and before_2D.shape == axes.shape:
        cosines = axes @ before_2D.T.astype(np.float64)
        if np.trace(np.abs(cosines)) < np.trace(np.abs(cosines[::-1])):
            axes, shares, cosines = axes[::-1], shares[::-1], cosines[::-1]
        signs = np.where(np.diag(cosines) < 0, -1.0, 1.0)
    explained = shares / total if total > 0 else np.full(2, np.nan)
    return (axes * signs[:, None]).astype(np.float32), explained.astype(np.float32)


def along(x_TD: Tensor, axes_2D: Floats, middle_D: Tensor) -> Floats:
    """Coordinates (T, 2) of tokens on the axes, from the middle."""
    out: Floats = ((x_TD - middle_D).detach().cpu().double() @ torch.from_numpy(axes_2D).double().T).float().numpy()
    return out


def grid(corners: npt.NDArray[np.float64], shown: Floats) -> tuple[Floats, Floats, Floats]:
    """Centres of the columns (C,) and rows (R,) of about CELLS cells, as square as can be, over the corners (2, 2) and
    the points (T, 2) that are shown; and the cells as points (R * C, 2), row by row."""
    low, high = np.minimum(corners[0], shown.min(0)), np.maximum(corners[1], shown.max(0))
    middle = (low + high) / 2
    half = np.maximum((high - low) / 2, 1e-3 * np.abs(middle))  # far out, float32 tells no nearer cells apart
    low, high = middle - half, middle + half
    wide, high_ = (high - low).tolist()
    columns = int(np.clip(round((CELLS * wide / high_) ** 0.5), FEWEST, MOST))
    rows = int(np.clip(round(CELLS / columns), FEWEST, MOST))
    x_C, y_R = _centres(low[0], high[0], columns), _centres(low[1], high[1], rows)
    cells = np.stack([np.tile(x_C, rows), np.repeat(y_R, columns)], 1)
    return x_C, y_R, cells


def _centres(low: float, high: float, count: int) -> Floats:
    edges = np.linspace(low, high, count + 1)
    return ((edges[:-1] + edges[1:]) / 2).astype(np.float32)
