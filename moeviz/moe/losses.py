"""Auxiliary losses on the routing, each per layer, then averaged over layers (pooling layers first hides imbalance)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from moeviz.moe.routers import RoutingTensors


def expert_counts(expert_ids_TK: Tensor, num_experts: int) -> Tensor:
    """Assignments per expert (E,), int64, over all K choices."""
    ids = expert_ids_TK.flatten()
    return torch.zeros(num_experts, dtype=torch.int64, device=ids.device).scatter_add_(0, ids, torch.ones_like(ids))


def balance_loss(routings: Sequence[RoutingTensors]) -> Tensor:
    """Switch balance loss, mean over layers of E * sum_e q_e P_e; 1 when even.

    q_e = c_e / (N k): share of all choices, no gradient.   P_e: mean clean probability.
    """
    return torch.stack([_layer_balance(routing) for routing in routings]).mean()


def _layer_balance(routing: RoutingTensors) -> Tensor:
    num_tokens, num_experts = routing.probs_TE.shape
    if num_tokens == 0:
        return routing.probs_TE.sum()
    share_E = expert_counts(routing.expert_ids_TK, num_experts) / routing.expert_ids_TK.numel()
    return num_experts * (share_E * routing.probs_TE.mean(0)).sum()


def z_loss(routings: Sequence[RoutingTensors]) -> Tensor:
    """Router z-loss, mean over layers and tokens of (logsumexp z)^2: keeps the scores small (Zoph et al. 2022)."""
    per_layer = [torch.logsumexp(routing.logits_TE, -1).square() for routing in routings]
    return torch.stack([values.mean() if values.numel() else values.sum() for values in per_layer]).mean()
