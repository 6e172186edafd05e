"""The one selection that all panels share."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Selection:
    """A MoE layer, and possibly a token of the probe and an expert."""

    layer: int = 0
    token: int | None = None
    expert: int | None = None
