"""The second side of a comparison. The first one, A, is what the window shows."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from moeviz.domain.routing import RoutingSnapshot
from moeviz.domain.settings import KNOBS

_CHANGE = re.compile(rf"(?:^|, ){KNOBS['model.experts'].title} (\d+) → (\d+)(?:,|$)")


@dataclass(frozen=True, slots=True)
class Reference:
    """What A is compared with: B.

    name      what it is, in words: "step 200", "run.zarr, step 400"
    snapshot  its routing, or None while there is none; then `lack` says why, and what to do
    layer     which of its layers, or None: the one that is selected
    kin       its experts are those of A, so that those of one layer are the same ones under the same numbers
    shown     A as it was when B was read, where B cannot keep up with the run, or None: what the window shows
    """

    name: str
    snapshot: RoutingSnapshot | None = None
    layer: int | None = None
    kin: bool = False
    shown: RoutingSnapshot | None = None
    lack: str = ""


def same_experts(a: RoutingSnapshot, b: RoutingSnapshot, marks: Sequence[tuple[int, str]] | None = None) -> bool:
    """Whether experts of one number are the same on both sides, as far as that is known.

    marks: of the run or trace that both are of, None if they are of two. By these it is told where no lineage is: the
    experts are others once their number has been changed, and not back before another step was trained.
    """
    if a.lineage or b.lineage or marks is None:
        return a.lineage == b.lineage != ""
    first, last = sorted((a, b), key=lambda snapshot: snapshot.step)
    change: dict[int, tuple[int, int]] = {}  # the number of experts before and after each step's changes
    for step, label in marks:
        if found := _CHANGE.search(label):
            before, after = map(int, found.groups())
            change[step] = change.get(step, (before, after))[0], after
    for step, (before, after) in change.items():
        if first.step <= step <= last.step and before != after:
            seen_after = step == first.step and _experts(first) == after
            seen_before = step == last.step and _experts(last) == before
            if not (seen_after or seen_before):
                return False
    return _experts(a) == _experts(b)


def _experts(snapshot: RoutingSnapshot) -> int:
    """How many, without null experts, which are all alike."""
    return snapshot.layers[0].num_experts - snapshot.layers[0].num_null if snapshot.layers else 0
