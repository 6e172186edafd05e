"""Which experts a model has: a name that two moments share only if experts of one number are the same in both.

It comes from where the experts began, so a run that is repeated has it again, and a checkpoint goes on with it.
"""

import hashlib
from collections.abc import Iterable, Mapping

from torch import Tensor

from moeviz.domain.settings import Settings

_PART = "experts.down_proj"  # some weights of every expert; with the settings they tell two models apart


def began(settings: Settings, parameters: Mapping[str, Tensor]) -> str:
    """Of experts that begin with these settings and parameters (by name)."""
    parts = (parameters[name] for name in sorted(parameters) if name.endswith(_PART))
    return _digest(settings.to_json().encode(), *(part[..., 0].detach().cpu().numpy().tobytes() for part in parts))


def resized(lineage: str, step: int, sources: Iterable[tuple[int, ...]]) -> str:
    """Of experts made of others after a step. sources: of each layer the old expert that each new one is, or is a copy
    of."""
    return _digest(lineage.encode(), repr((step, *sources)).encode())


def _digest(*parts: bytes) -> str:
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        found.update(len(part).to_bytes(8, "little") + part)
    return found.hexdigest()
