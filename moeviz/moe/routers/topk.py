"""Softmax routers with a fixed number of experts per token."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from moeviz.moe.routers.base import ALL, INIT_STD, Batch, Option, Router, TokenChoiceRouter, softmax


class TopKRouter(TokenChoiceRouter):
    """The k best; weights are the softmax over the chosen scores, they sum to 1 (Mixtral).

    At k = 1 the weight is exactly 1, and no gradient reaches the router through it.
    """

    def choose(self, scores_TE: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        best_TK, ids_TK = scores_TE.topk(self.k, dim=-1)
        return ids_TK, softmax(best_TK)


class DenseRouter(Router):
    """Every expert, weighted by its probability: the mixture that all sparse routers approximate. K = E."""

    fixed_k = ALL

    def choose(self, scores_TE: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        best_TE, ids_TE = scores_TE.sort(-1, descending=True)
        return ids_TE, softmax(best_TE)


class TopKRawRouter(TokenChoiceRouter):
    """The k best; weights are their plain probabilities, they sum to less than 1 (OLMoE, Switch)."""

    def choose(self, scores_TE: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        weights_TK, ids_TK = softmax(scores_TE).topk(self.k, dim=-1)
        return ids_TK, weights_TK


class NoisyTopKRouter(TopKRouter):
    """Shazeer et al. 2017: z + noise * eps * softplus(x Wnoise^T) while training, then as topk."""

    def _start(self, d_model: int, generator: torch.Generator | None) -> None:
        super()._start(d_model, generator)
        self.weight_noise = nn.Parameter(torch.randn(self.num_experts, d_model, generator=generator) * INIT_STD)

    def noise_std(self, x_TD: Tensor) -> Tensor:
        return super().noise_std(x_TD) * functional.softplus(functional.linear(x_TD, self.weight_noise.to(x_TD.dtype)))

    def rows(self, name: str, sources: list[int]) -> list[int] | None:
        return sources if name == "weight_noise" else super().rows(name, sources)


class SwitchRouter(TopKRawRouter):
    """Fedus et al. 2021: the best expert alone, weighted by its plain probability.

    jitter  e: while training the router, and it alone, sees x * U(1 - e, 1 + e)
    """

    options: ClassVar[dict[str, Option]] = {**TopKRawRouter.options, "jitter": 0.01}
    fixed_k = 1
    jitter: float

    @property
    def num_draws(self) -> int:
        return super().num_draws + (self.weight.shape[1] if self.jitter > 0 else 0)

    def perturbed(self, x_TD: Tensor, logits_TE: Tensor, batch: Batch) -> Tensor:
        if self.jitter == 0 or batch.draws_TR is None:
            return logits_TE
        uniform_TD = torch.special.ndtr(batch.draws_TR)
        # out of place: the experts see the clean x
        return self.logits(x_TD * (1 + self.jitter * (2 * uniform_TD - 1)))


class GShardRouter(TokenChoiceRouter):
    """Lepikhin et al. 2020: the two best, weights g1 + g2 = 1; `second_policy` decides whether the second is used.

    all        always
    none       never
    threshold  where g2 > second_threshold
    random     with probability min(1, g2 / second_threshold) while training, always in eval mode
    The four policies of Mesh TensorFlow's moe.py. A second choice that is not used leaves g1 as it is, below 1.
    """

    options: ClassVar[dict[str, Option]] = {
        **TokenChoiceRouter.options,
        "second_policy": "random",
        "second_threshold": 0.2,
    }
    fixed_k = 2
    may_skip = True
    second_policy: str
    second_threshold: float

    @property
    def num_draws(self) -> int:
        return super().num_draws + (self.second_policy == "random")

    def choose(self, scores_TE: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        best_TK, ids_TK = scores_TE.topk(self.k, dim=-1)
        weights_TK = softmax(best_TK)
        second_T = weights_TK[:, -1].detach()
        if self.k == 1 or self.second_policy == "all":
            return ids_TK, weights_TK
        if self.second_policy == "none":
            used_T = torch.zeros_like(second_T, dtype=torch.bool)
        elif self.second_policy == "threshold":
            used_T = second_T > self.second_threshold
        elif self.second_policy == "random":
            if batch.draws_TR is None:
                return ids_TK, weights_TK
            used_T = torch.special.ndtr(batch.draws_TR[:, 0]) * self.second_threshold < second_T
        else:
            raise ValueError(f"second_policy is {self.second_policy!r}; it must be all, none, threshold or random")
        used_TK = torch.stack([torch.ones_like(used_T), used_T], 1)
        return ids_TK.masked_fill(~used_TK, -1), weights_TK.masked_fill(~used_TK, 0)
