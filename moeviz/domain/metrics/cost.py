"""What a token costs, from plain sizes. One multiply-add is two floating-point operations (FLOP)."""

from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from moeviz.domain.metrics.arrays import mean
from moeviz.domain.routing import Routing


def executed_experts(routing: Routing, free_experts: Collection[int] = ()) -> float:
    """kbar: mean number of experts that a token really runs, in [0, K]: after drops, and without `free_experts` (null,
    zero, copy or identity experts, which do no work). NaN without tokens."""
    ids = routing.expert_ids_TK
    run = (ids >= 0) & ~np.isin(ids, list(free_experts))
    if routing.dropped_TK is not None:
        run &= ~routing.dropped_TK
    return mean(run.sum(axis=1))


def expert_parameters(width: int, hidden: int, matrices: int = 3) -> int:
    """Weights of one expert without biases: 3 d f for SwiGLU (gate, up, down), 2 d f for two matrices."""
    return matrices * width * hidden


def active_parameters(always: float, executed_L: npt.ArrayLike, per_expert_L: npt.ArrayLike) -> float:
    """Parameters that one token uses: `always` (attention, norms, head, routers, shared experts) + sum over layers of
    kbar * parameters of one expert. kbar is `executed_experts`, or k where nothing drops and no expert is free."""
    return always + float(np.dot(np.atleast_1d(executed_L), np.atleast_1d(per_expert_L)))


def forward_flops(
    active_matrix_parameters: float, layers: int, context: int, width: int, *, causal: bool = True
) -> float:
    """FLOP of one token's forward pass: 2 for each active weight of a matrix (embeddings are looked up, not multiplied)
    + attention's two products: 4 L T d over a full context T, half of it as the average of a causal one."""
    return 2 * active_matrix_parameters + (2 if causal else 4) * layers * context * width


def training_flops(forward: float) -> float:
    """FLOP of one token's training step: three forward passes' worth, the backward pass costs two."""
    return 3 * forward


def padded_assignments(num_experts: int, capacity: int) -> int:
    """E C: rows that a capacity-padded kernel computes, whatever the routing."""
    return num_experts * capacity
