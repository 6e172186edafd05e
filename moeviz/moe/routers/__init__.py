"""Routers: which experts each token gets, with which weights. A router RETURNS its routing and keeps none of it.

One file a family. What all share is in `base`; the scores are z = x W^T (T, E), in float32 at least.
"""

import torch

from moeviz.moe.routers.balanced import BaseRouter, ExpertChoiceRouter, SinkhornRouter
from moeviz.moe.routers.base import Option, Router, RoutingTensors
from moeviz.moe.routers.dynamic import ReluRouter, TopPRouter
from moeviz.moe.routers.hash import HashRouter
from moeviz.moe.routers.null import NullRouter
from moeviz.moe.routers.sigmoid import SigmoidBiasRouter
from moeviz.moe.routers.soft import SoftRouter
from moeviz.moe.routers.topk import (
    DenseRouter,
    GShardRouter,
    NoisyTopKRouter,
    SwitchRouter,
    TopKRawRouter,
    TopKRouter,
)

__all__ = ["ROUTERS", "Option", "Router", "RoutingTensors", "build_router"]

ROUTERS: dict[str, type[Router]] = {
    "dense": DenseRouter,
    "topk": TopKRouter,
    "topk_raw": TopKRawRouter,
    "noisy_topk": NoisyTopKRouter,
    "switch": SwitchRouter,
    "gshard": GShardRouter,
    "expert_choice": ExpertChoiceRouter,
    "sinkhorn": SinkhornRouter,
    "base": BaseRouter,
    "sigmoid_bias": SigmoidBiasRouter,
    "hash": HashRouter,
    "top_p": TopPRouter,
    "relu": ReluRouter,
    "null": NullRouter,
    "soft": SoftRouter,
}


def build_router(
    name: str,
    d_model: int,
    num_experts: int,
    k: int,
    *,
    generator: torch.Generator | None = None,
    **options: Option,
) -> Router:
    """A router by name, over `num_experts` experts that compute. Options and their defaults: `ROUTERS[name].options`.

    k: experts per token; switch, base and hash always use one, gshard two, dense and soft all, top_p what it needs.
    generator: for the start weights. ValueError for an unknown name or option.
    """
    if name not in ROUTERS:
        raise ValueError(f"{name!r} is no router; the routers are {', '.join(ROUTERS)}")
    return ROUTERS[name](d_model, num_experts, k, generator=generator, **options)
