"""Sigmoid scores with a balancing bias (DeepSeek-V3)."""

from collections.abc import Callable
from typing import ClassVar, Self

import torch
from torch import Tensor

from moeviz.moe.routers.base import Batch, Option, TokenChoiceRouter


class SigmoidBiasRouter(TokenChoiceRouter):
    """s = sigmoid(z); the k best of s + b; weights s_S / sum s_S * scale (DeepSeek-AI 2024; Wang et al. 2024).

    bias_speed   u: after each training step b_e += u * sign(mean(c) - c_e), from the counts c of its batch. b is
                 float32, part of the state, and never in a weight or a gradient.
    groups, topk_groups   the experts are `groups` groups, of which the `topk_groups` with the largest sum of their two
                 best s + b are kept for a token; 1 group: no limit
    scale        on the weights (2.5 in V3)
    Probabilities are s_e / sum_j s_j.
    """

    options: ClassVar[dict[str, Option]] = {
        **TokenChoiceRouter.options,
        "bias_speed": 1e-3,
        "groups": 1,
        "topk_groups": 1,
        "scale": 1.0,
    }
    outside = TokenChoiceRouter.outside | {"bias_speed"}
    from_counts = True
    bias: Tensor
    bias_speed: float
    groups: int
    topk_groups: int
    scale: float

    def _start(self, d_model: int, generator: torch.Generator | None) -> None:
        super()._start(d_model, generator)
        self.register_buffer("bias", torch.zeros(self.num_experts))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        bias = self.bias
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # a step of 1e-3 is lost in half precision: the bias moves with the module, but stays float32
        self.bias = bias.to(self.bias.device)
        return self

    def probabilities(self, clean_TE: Tensor) -> Tensor:
        scores_TE = torch.sigmoid(clean_TE)
        return scores_TE / scores_TE.sum(-1, keepdim=True).clamp_min(torch.finfo(scores_TE.dtype).tiny)

    def selection_scores(self, clean_TE: Tensor) -> Tensor | None:
        """s + b, and -inf in groups that are not kept."""
        scores_TE = torch.sigmoid(clean_TE.detach()) + self.bias
        num_tokens, num_experts = scores_TE.shape
        size = num_experts // self.groups
        if size * self.groups != num_experts or not self.k <= size * self.topk_groups <= num_experts:
            raise ValueError(
                f"{self.topk_groups} of {self.groups} groups of {num_experts} experts cannot hold k = {self.k} of them"
            )
        if self.topk_groups == self.groups:
            return scores_TE
        grouped = scores_TE.view(num_tokens, self.groups, size)
        group_scores = grouped.topk(min(2, size), dim=-1).values.sum(-1)
        kept = group_scores.topk(self.topk_groups, dim=-1).indices
        is_kept = torch.zeros_like(group_scores).scatter(1, kept, 1) > 0  # a scatter of True cannot be traced
        return grouped.masked_fill(~is_kept[:, :, None], -torch.inf).view(num_tokens, num_experts)

    def choose(self, scores_TE: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        wish_TE = self.selection_scores(scores_TE)
        assert wish_TE is not None
        ids_TK = wish_TE.topk(self.k, dim=-1).indices
        weights_TK, order_TK = torch.sigmoid(scores_TE).gather(1, ids_TK).sort(-1, descending=True)
        return ids_TK.gather(1, order_TK), weights_TK / (weights_TK.sum(-1, keepdim=True) + 1e-20) * self.scale

    @torch.no_grad()
    def after_step(self, counts_E: Tensor, counts_LE: Tensor, num_tokens: int) -> None:
        counts = counts_E.to(self.bias)
        self.bias += self.bias_speed * torch.sign(counts.mean() - counts)

    def rows(self, name: str, sources: list[int]) -> list[int] | None:
        return sources if name == "bias" else super().rows(name, sources)
