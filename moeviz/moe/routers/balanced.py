"""Routers that balance the load by the way they choose: expert choice, Sinkhorn, BASE."""

import itertools
import math
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from moeviz.moe.routers.base import Batch, Option, Router, TokenChoiceRouter, best_first, softmax
from moeviz.moe.routers.capacity import SLACK

SINKHORN_TOLERANCE, SINKHORN_LONGEST = 1e-4, 1000


class ExpertChoiceRouter(Router):
    """Zhou et al. 2022: each expert takes the ceil(k N / E) tokens with its largest probability; weights are the plain
    probabilities. k is the mean number of experts per token; one token gets 0 to E. K = E, padded with -1.

    scope  N counts the "batch" or each "sequence"
    A token's experts depend on the tokens after it, in eval mode too: no way to route text as it is written.
    """

    options: ClassVar[dict[str, Option]] = {**Router.options, "scope": "batch"}
    may_skip = True
    scope: str

    @property
    def width(self) -> int:
        return self.num_experts

    @property
    def looks_ahead(self) -> bool:
        return True

    def choose(self, scores_TE: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        num_tokens, num_experts = scores_TE.shape
        probs_TE = softmax(scores_TE)
        if num_tokens == 0:
            return best_first(probs_TE, probs_TE > 0)
        groups = batch.sequences if self.scope == "sequence" else 1
        wish_TE = probs_TE.detach()
        tokens_G = torch.full((groups, 1, 1), num_tokens // groups, device=scores_TE.device)
        if batch.valid_T is not None:
            wish_TE = wish_TE.masked_fill(~batch.valid_T[:, None], -1)
            tokens_G = batch.valid_T.view(groups, -1, 1).sum(1, keepdim=True)
        order_GNE = wish_TE.view(groups, -1, num_experts).argsort(dim=1, descending=True, stable=True)
        numbers = torch.arange(order_GNE.shape[1], device=scores_TE.device).view(1, -1, 1).expand_as(order_GNE)
        rank_GNE = torch.empty_like(order_GNE).scatter_(1, order_GNE, numbers)
        taken_GNE = rank_GNE < (tokens_G.double() * self.k / num_experts - SLACK).ceil()
        chosen_TE = taken_GNE.view(num_tokens, num_experts) & (wish_TE >= 0)
        return best_first(probs_TE, chosen_TE)


class SinkhornRouter(TokenChoiceRouter):
    """Clark et al. 2022, as in Megatron: while training the k best entries of the balanced transport plan of exp(z); in
    eval mode the k best scores. Weights are sigmoid(z) at k = 1, plain probabilities otherwise."""

    @property
    def looks_ahead(self) -> bool:
        return self.training or super().looks_ahead

    @property
    def traceable(self) -> bool:
        return False  # it stops when it has converged

    def choose(self, scores_TE: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        wish_TE = scores_TE.detach()
        if self.training:
            valid_T = batch.valid_T
            if valid_T is None:
                wish_TE = sinkhorn(wish_TE)
            else:
                wish_TE = torch.zeros_like(wish_TE).index_copy(0, valid_T.nonzero()[:, 0], sinkhorn(wish_TE[valid_T]))
        ids_TK = wish_TE.topk(self.k, dim=-1).indices
        weights_TE = torch.sigmoid(scores_TE) if self.k == 1 else softmax(scores_TE)
        weights_TK, order_TK = weights_TE.gather(1, ids_TK).sort(-1, descending=True)
        return ids_TK.gather(1, order_TK), weights_TK


@torch.no_grad()
def sinkhorn(scores_TE: Tensor, tolerance: float = SINKHORN_TOLERANCE) -> Tensor:
    """The plan (T, E), d0 exp(z) d1 with rows that sum to 1/T and columns that sum to 1/E; it ends when the columns'
    factors move by less than `tolerance` in the mean (Megatron), or after 1000 rounds."""
    num_tokens, num_experts = scores_TE.shape
    if num_tokens == 0:
        return scores_TE
    # a factor for a whole row is d0's to choose, and exp of what is left cannot overflow
    cost_TE = torch.exp(scores_TE - scores_TE.amax(-1, keepdim=True))
    columns_E = cost_TE.new_ones(num_experts)
    for _ in range(SINKHORN_LONGEST):
        rows_T = 1 / (num_tokens * (cost_TE @ columns_E + 1e-8))
        before_E, columns_E = columns_E, 1 / (num_experts * (rows_T @ cost_TE + 1e-8))
        if not (columns_E - before_E).abs().mean() > tolerance:
            break
    return rows_T[:, None] * cost_TE * columns_E


class BaseRouter(Router):
    """Lewis et al. 2021 (BASE): one expert a token, while training T/E tokens an expert (at most ceil(T/E)) with the
    largest possible sum of scores; in eval mode the best expert. The weight is sigmoid(z).

    fairseq mixes sigma * f(x) + (1 - sigma) * x with f(x) = x + FFN(x): in a block with a residual that is this weight.
    """

    fixed_k = 1

    @property
    def looks_ahead(self) -> bool:
        return self.training

    @property
    def traceable(self) -> bool:
        return False

    def _start(self, d_model: int, generator: torch.Generator | None) -> None:
        self.weight = nn.Parameter(torch.empty(self.num_experts, d_model))
        nn.init.orthogonal_(self.weight, gain=0.1, generator=generator)

    def choose(self, scores_TE: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        ids_T = scores_TE.argmax(-1)
        if self.training:
            valid_T = torch.ones_like(ids_T, dtype=torch.bool) if batch.valid_T is None else batch.valid_T
            chosen = balanced_assignment(scores_TE.detach()[valid_T].double().cpu().numpy())
            ids_T[valid_T] = torch.from_numpy(chosen).to(ids_T.device)
        return ids_T[:, None], torch.sigmoid(scores_TE.gather(1, ids_T[:, None]))


def balanced_assignment(scores_NE: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """One expert for each of N tokens, at most ceil(N / E) tokens each, with the largest possible sum of scores.

    Exact: whatever prices the experts have, each token at its best score minus price is the best assignment for the
    loads that this gives. From there tokens are moved along the cheapest chain of moves, from an expert with too many
    to one with room and then wherever that gains (successive shortest paths of a minimum-cost flow).
    """
    num_tokens, num_experts = scores_NE.shape
    finite = np.isfinite(scores_NE)
    if not finite.all():
        scores_NE = np.where(finite, scores_NE, scores_NE[finite].min(initial=0.0))
    capacity = math.ceil(num_tokens / num_experts)
    if num_tokens == 0:
        return np.zeros(0, np.int64)
    ids: npt.NDArray[np.int64] = (scores_NE - _even_prices(scores_NE)).argmax(1)
    load = np.bincount(ids, minlength=num_experts)
    tolerance = 1e-12 * np.abs(scores_NE).max(initial=1.0)
    # the least that one move from expert to expert costs, and whose move that is
    price = np.full((num_experts, num_experts), np.inf)
    mover = np.zeros((num_experts, num_experts), np.int64)
    columns = np.arange(num_experts)

    def reprice(expert: int) -> None:
        members = np.flatnonzero(ids == expert)
        price[expert] = np.inf
        if members.size:
            loss = scores_NE[members, expert][:, None] - scores_NE[members]
            cheapest = loss.argmin(0)
            price[expert], mover[expert] = loss[cheapest, columns], members[cheapest]

    for expert in range(num_experts):
        reprice(expert)
    while (load < capacity).any():
        too_many = load > capacity
        starts = too_many if too_many.any() else load > 0
        cost, path = _cheapest_path(price, starts, load < capacity, tolerance)
        if not too_many.any() and cost >= -tolerance:
            break
        for start, end in itertools.pairwise(path):
            ids[mover[start, end]] = end
        load[path[0]] -= 1
        load[path[-1]] += 1
        for expert in path:
            reprice(expert)
    return ids


def _even_prices(scores_NE: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Prices (E,) that make the loads nearly even: Sinkhorn's, colder and colder. They only save moves."""
    prices = np.zeros(scores_NE.shape[1])
    spread = scores_NE.std()
    for temperature in spread * np.geomspace(1, 0.02, 30) if spread > 0 else ():
        wish = (scores_NE - prices) / temperature
        share = np.exp(wish - wish.max(1, keepdims=True))
        load = (share / share.sum(1, keepdims=True)).mean(0)
        prices += temperature * np.log(load * len(prices) + 1e-3)
    return prices


def _cheapest_path(
    price: npt.NDArray[np.float64], starts: npt.NDArray[np.bool_], ends: npt.NDArray[np.bool_], tolerance: float
) -> tuple[float, list[int]]:
    """Bellman-Ford from any of the starts to the cheapest end: its cost and the way there."""
    cost = np.where(starts, 0.0, np.inf)
    before: npt.NDArray[Any] = np.full(len(cost), -1)
    for _ in range(len(cost)):
        through = cost[:, None] + price
        by = through.argmin(0)
        cheaper = through[by, np.arange(len(cost))]
        better = cheaper < cost - tolerance
        if not better.any():
            break
        cost, before = np.where(better, cheaper, cost), np.where(better, by, before)
    path = [int(np.where(ends, cost, np.inf).argmin())]
    total = float(cost[path[0]])
    while before[path[0]] >= 0:
        path.insert(0, int(before[path[0]]))
    return total, path
