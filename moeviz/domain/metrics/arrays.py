"""What the measures share: chosen experts as a mask, and means that are NaN, not a warning, where there is nothing."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from moeviz.domain.routing import Bools, Ints

Array = npt.NDArray[np.float64]
NOTHING = float("nan")


def mean(values: npt.ArrayLike) -> float:
    """Mean over all entries that are not NaN; NaN where there are none."""
    known = np.asarray(values, dtype=np.float64)
    known = known[~np.isnan(known)]
    return float(known.mean()) if known.size else NOTHING


def ratio(above: npt.ArrayLike, below: npt.ArrayLike) -> Array:
    """above / below, NaN where `below` is 0."""
    top, bottom = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    out = np.full(np.broadcast(top, bottom).shape, NOTHING)
    np.divide(top, bottom, out=out, where=bottom != 0)
    return out


def chosen_mask(ids_TK: Ints, num_experts: int) -> Bools:
    """(T, E): did this token choose this expert; -1 is nobody."""
    mask = np.zeros((ids_TK.shape[0], num_experts), dtype=np.bool_)
    tokens, slots = np.nonzero(ids_TK >= 0)
    mask[tokens, ids_TK[tokens, slots]] = True
    return mask


def first_choice(ids_TK: Ints) -> Ints:
    """(T,): the best expert of each token, its first entry that is not -1; -1 where it chose none."""
    if ids_TK.shape[1] == 0:
        return np.full(ids_TK.shape[0], -1, dtype=np.int64)
    best = (ids_TK >= 0).argmax(axis=1)
    first: Ints = ids_TK[np.arange(ids_TK.shape[0]), best].astype(np.int64)
    return first


def codes(labels: Sequence[str]) -> tuple[list[str], Ints]:
    """The different labels, sorted, and for each token (T,) the position of its label among them."""
    values = sorted(set(labels))
    place = {value: i for i, value in enumerate(values)}
    return values, np.array([place[label] for label in labels], dtype=np.int64)
