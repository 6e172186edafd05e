"""Capacity: which assignments come too late for an expert that is full."""

import math

import torch
from torch import Tensor

SLACK = 1e-9  # a product such as 1.1 * 10 must not be rounded up for its last bit


def overflow(
    expert_ids_TK: Tensor,
    priority_T: Tensor | None,
    factor: float,
    shares: list[float],
    groups: int = 1,
    k: int | None = None,
    valid_T: Tensor | None = None,
) -> Tensor:
    """Assignments beyond capacity (T, K), bool. Expert e takes ceil(factor * M * shares[e]) of its group's M.

    M = k * N for N valid tokens; with k None, as many as were chosen. Tokens are `groups` runs of one length, each with
    its own capacity. All first choices are placed before any second; within one rank tokens come by position, or by
    falling `priority_T`. ids of -1 take no place.
    """
    num_tokens = expert_ids_TK.shape[0]
    chosen_TK = expert_ids_TK >= 0
    length = num_tokens // groups if num_tokens else 0
    if k is not None and valid_T is None:
        limits = [math.ceil(factor * k * length * share - SLACK) for share in shares]
        limit_GE = torch.tensor(limits, device=expert_ids_TK.device).expand(groups, -1)
    else:
        per_token_T = chosen_TK.sum(1) if k is None or valid_T is None else k * valid_T.long()
        total_G = per_token_T.view(groups, length).sum(1)
        share_E = torch.tensor(shares, dtype=torch.float64, device=expert_ids_TK.device)
        limit_GE = (factor * total_G[:, None] * share_E - SLACK).ceil().long()
    places_TK = places(expert_ids_TK, len(shares), priority_T, groups)
    group_T = torch.arange(num_tokens, device=expert_ids_TK.device) // max(length, 1)
    return chosen_TK & (places_TK >= limit_GE[group_T[:, None], expert_ids_TK.clamp_min(0)])


def places(expert_ids_TK: Tensor, num_experts: int, priority_T: Tensor | None = None, groups: int = 1) -> Tensor:
    """How many assignments to the same expert, in the same group of tokens, come before each one: (T, K)."""
    num_tokens, width = expert_ids_TK.shape
    tokens = torch.arange(num_tokens, device=expert_ids_TK.device)
    order_T = tokens if priority_T is None else priority_T.argsort(descending=True, stable=True)
    group_T = order_T // max(num_tokens // groups, 1)
    ids_TK = expert_ids_TK[order_T]
    # ranks one after the other, tokens in order within a rank; choices of no expert are put aside
    queue_TK = torch.where(ids_TK >= 0, ids_TK + num_experts * group_T[:, None], groups * num_experts)
    sorted_ids, by = queue_TK.T.reshape(-1).sort(stable=True)
    numbers = torch.arange(sorted_ids.numel(), device=sorted_ids.device)
    place = torch.empty_like(by).scatter_(0, by, numbers - torch.searchsorted(sorted_ids, sorted_ids))
    return torch.empty_like(ids_TK).index_copy_(0, order_T, place.view(width, num_tokens).T)
