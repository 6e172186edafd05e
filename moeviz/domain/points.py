"""Points of two classes in the plane as a CSV file, one a line: x, y and class. The window writes it, the task plane
reads it."""

import math
import os
import re
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from moeviz.domain.errors import UserError
from moeviz.domain.routing import Ints
from moeviz.domain.writing import write_whole

Points = npt.NDArray[np.float32]  # (N, 2)

CLASSES = ("○", "●")
HEAD = ("x", "y", "class")
MAX_BYTES = 5_000_000
FEWEST = 20  # different points
KEPT = 50  # files of painted points in a folder: the newest
DAYS = 90  # and all that are younger: a saved model, or what can be undone, may need one
FARTHEST = 1e6  # from zero, on either axis
_IN_WORDS = "a line holds x, y and class, as in 0.5,-0.25,1"


def write(folder: Path, xy: Points, label: Ints) -> Path:
    """A new file of its own in the folder, which keeps the newest KEPT of them and those of the last DAYS; whoever
    reads meanwhile sees no half of it. OSError if the disk refuses."""
    folder.mkdir(parents=True, exist_ok=True)
    path = _new_file(folder)
    lines = [",".join(HEAD), *(f"{x:.9g},{y:.9g},{c}" for (x, y), c in zip(xy.tolist(), label.tolist(), strict=True))]
    try:
        write_whole(path, "\n".join([*lines, ""]))
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    for _, old in sorted(_painted(folder))[:-KEPT]:
        with suppress(OSError):  # in use, or gone: the next one tries again
            if time.time() - old.stat().st_mtime > DAYS * 86_400:
                old.unlink()
    return path


def _painted(folder: Path) -> list[tuple[int, Path]]:
    """What was written there, with their numbers: the higher the newer."""
    return [(int(m[1]), path) for path in folder.iterdir() if (m := re.fullmatch(r"painted-(\d+)\.csv", path.name))]


def _new_file(folder: Path) -> Path:
    """Of the next number, and nobody else's: two windows may paint at once."""
    number = max((number for number, _ in _painted(folder)), default=0)
    while True:
        number += 1
        path = folder / f"painted-{number}.csv"
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            continue
        return path


def read(path: str | Path) -> tuple[Points, Ints]:
    """xy (N, 2) and class (N,), 0 or 1. UserError with one sentence for a file that cannot be used."""
    path = Path(os.path.expanduser(path))
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path} is larger than {MAX_BYTES // 10**6} MB; leave some of its points out.")
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is no text in UTF-8; give a CSV file whose lines hold x, y and class.") from None
    except OSError as error:
        raise UserError(f"The points {path} cannot be read: {error.strerror or error}.") from None
    xy, label = list[tuple[float, float]](), list[int]()
    for number, line in enumerate(text.splitlines(), 1):
        cells = [cell.strip().strip('"') for cell in line.split(",")]
        if not any(cells) or (number == 1 and tuple(cell.lower() for cell in cells) == HEAD):
            continue
        where = f"{path}, line {number}:"
        if len(cells) != 3:
            raise UserError(
                f"{where} there {'is 1 value' if len(cells) == 1 else f'are {len(cells)} values'}; {_IN_WORDS}."
            )
        xy.append((_number(cells[0], where), _number(cells[1], where)))
        label.append(_class(cells[2], where))
    found = np.array(xy, np.float32).reshape(-1, 2) + np.float32(0)  # -0 and 0 are one place
    different = len(np.unique(found, axis=0))
    if different < FEWEST:
        raise UserError(f"{path} holds {different} different points; training needs at least {FEWEST}.")
    if len(set(label)) < len(CLASSES):
        only, other = label[0], 1 - label[0]
        raise UserError(f"{path} holds points of class {only} only; training needs some of class {other} too.")
    return found, np.array(label, np.int64)


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise UserError(f"{where} {text[:40]!r} is no number; {_IN_WORDS}.") from None
    if not math.isfinite(value) or abs(value) > FARTHEST:
        raise UserError(f"{where} {text[:40]} is no place; x and y lie between -{FARTHEST:g} and {FARTHEST:g}.")
    return value


def _class(text: str, where: str) -> int:
    if text in CLASSES:
        return CLASSES.index(text)
    try:
        return (0.0, 1.0).index(float(text))
    except ValueError:
        raise UserError(f"{where} {text[:40]!r} is no class; it must be 0 or 1.") from None
