"""The second side of a comparison. The first one, A, is what the window shows."""

from dataclasses import dataclass

from moeviz.domain.routing import RoutingSnapshot


@dataclass(frozen=True, slots=True)
class Reference:
    """What A is compared with: B.

    name      what it is, in words: "step 200", "run.zarr, step 400"
    snapshot  its routing, or None while there is none; then `lack` says why, and what to do
    layer     which of its layers, or None: the one that is selected
    kin       its experts are those of A's run, so that those of one layer are the same ones under the same numbers
    shown     A as it was when B was read, where B cannot keep up with the run, or None: what the window shows
    """

    name: str
    snapshot: RoutingSnapshot | None = None
    layer: int | None = None
    kin: bool = False
    shown: RoutingSnapshot | None = None
    lack: str = ""
