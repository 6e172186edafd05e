"""What routes, as plain arrays: one `Routing` a layer, one `RoutingSnapshot` a moment.

Shape suffixes, here and everywhere in moeviz:
    T tokens   K experts chosen per token (the widest, where it varies)   E experts   L MoE layers
    D model width   F hidden width of one expert   B sequences in a batch   S steps
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False, slots=True)
class Routing:
    """The routing of T tokens in one MoE layer, exactly as the model used it.

    expert_ids_TK     chosen experts, best first; -1 where a token chose fewer than K
    gate_weights_TK   the weight that multiplied each chosen expert's output, or None where unknown; 0 where dropped
    router_probs_TE   the router's probabilities (clean: without noise), or None
    router_logits_TE  the router's scores before softmax (clean, before temperature), or None
    dropped_TK        assignments dropped for capacity, or None where nothing can be dropped
    selection_scores_TE  the scores that the choice was made by, where these are not the probabilities (sigmoid_bias:
                      sigmoid plus bias, -inf in groups that were not kept), or None
    num_null          the last so many of the E experts are null experts, which compute nothing
    looks_ahead       a token's routing depended on tokens after it: no way to route text as it is written
    soft              Soft MoE: experts saw mixtures of tokens; expert_ids_TK is all E, gate_weights_TK how much of an
                      expert's outputs went into the token's (sums to 1)
    """

    name: str
    num_experts: int
    expert_ids_TK: Ints
    gate_weights_TK: Floats | None = None
    router_probs_TE: Floats | None = None
    router_logits_TE: Floats | None = None
    dropped_TK: Bools | None = None
    selection_scores_TE: Floats | None = None
    num_null: int = 0
    looks_ahead: bool = False
    soft: bool = False

    @property
    def num_tokens(self) -> int:
        return int(self.expert_ids_TK.shape[0])

    @property
    def k(self) -> int:
        return int(self.expert_ids_TK.shape[1])


@dataclass(frozen=True, eq=False, slots=True)
class RoutingSnapshot:
    """The routing of one batch of tokens through all MoE layers at one step.

    tokens, domains      T strings each, or None where unknown
    scalars              losses and rates of this step by name
    layers               one Routing a layer, all over the same T tokens (the probe, while training)
    train_counts_LE      assignments per expert (E,) in the TRAINING batch of this step, one array a layer, or empty
    lineage              which experts these are: of two snapshots that have the same one, experts of one number are the
                         same; empty where unknown
    """

    step: int
    layers: tuple[Routing, ...]
    tokens: Sequence[str] | None = None
    domains: Sequence[str] | None = None
    scalars: Mapping[str, float] = field(default_factory=dict)
    train_counts_LE: tuple[Ints, ...] = ()
    lineage: str = ""

    @property
    def num_tokens(self) -> int:
        return self.layers[0].num_tokens if self.layers else 0


_UNSEEN_SPACE = re.compile("^ +| +$| {2,}")


@lru_cache(maxsize=8192)
def visible(token: str) -> str:
    """A token as it can be seen: no control characters, and no white space but single spaces amid it."""
    out = token.replace("\n", "↵").replace("\t", "⇥")
    out = _UNSEEN_SPACE.sub(lambda spaces: "␣" * len(spaces[0]), out)
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in out) or "∅"
