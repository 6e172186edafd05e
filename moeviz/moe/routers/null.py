"""Null experts, which cost nothing (MoE++)."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from moeviz.moe.routers.base import Batch, Option, TokenChoiceRouter, softmax


class NullRouter(TokenChoiceRouter):
    """Jin et al. 2024 (MoE++): after the E experts that compute come null experts, which a token may choose as well.

    constant_experts  output a1 x + a2 v with [a1, a2] = softmax(W_c x), v and W_c learned
    copy_experts      output x
    zero_experts      output 0
    in this order, the released one. The k best of all; a zero expert's weight is set to 0 and the others, plain
    probabilities, are then divided by their sum, as in the released code.
    tau               an expert that computes has tau times the capacity of a null expert (0.75)
    The residual between the routers of successive layers is left out.
    """

    options: ClassVar[dict[str, Option]] = {
        **TokenChoiceRouter.options,
        "constant_experts": 2,
        "copy_experts": 1,
        "zero_experts": 1,
        "tau": 0.75,
    }
    structure = frozenset({"constant_experts", "copy_experts", "zero_experts"})
    may_skip = True
    constant_experts: int
    copy_experts: int
    zero_experts: int
    tau: float

    def _start(self, d_model: int, generator: torch.Generator | None) -> None:
        super()._start(d_model, generator)
        n = self.constant_experts
        self.constant = nn.Parameter(torch.randn(n, d_model, generator=generator))
        self.constant_mix = nn.Parameter(torch.randn(n, 2, d_model, generator=generator) * d_model**-0.5)

    @property
    def num_null(self) -> int:
        return self.constant_experts + self.copy_experts + self.zero_experts

    def capacity_shares(self) -> list[float]:
        total = self.tau * self.num_ffn + self.num_null
        return [self.tau / total] * self.num_ffn + [1 / total] * self.num_null

    def choose(self, scores_TE: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        weights_TK, ids_TK = softmax(scores_TE).topk(self.k, dim=-1)
        weights_TK = weights_TK.masked_fill(ids_TK >= self.num_experts - self.zero_experts, 0)
        # a token that chose zero experts alone keeps 0
        return ids_TK, weights_TK / weights_TK.sum(-1, keepdim=True).clamp_min(torch.finfo(weights_TK.dtype).tiny)

    def null_output(self, x_TD: Tensor, expert_ids_TK: Tensor, gate_weights_TK: Tensor) -> Tensor:
        """What the null experts add, (T, D)."""
        null_TK = expert_ids_TK - self.num_ffn
        n, copies = self.constant_experts, self.copy_experts
        weights_TK = gate_weights_TK.to(x_TD.dtype)
        copied_T = torch.where((null_TK >= n) & (null_TK < n + copies), weights_TK, 0).sum(1)
        y_TD = copied_T[:, None] * x_TD
        if n:
            constants = torch.arange(n, device=x_TD.device)
            weight_TN = torch.where(null_TK[:, :, None] == constants, weights_TK[:, :, None], 0).sum(1)
            mix_TN2 = torch.softmax(torch.einsum("td,nad->tna", x_TD, self.constant_mix.to(x_TD.dtype)), -1)
            own_TN, constant_TN = (weight_TN[:, :, None] * mix_TN2).unbind(-1)
            y_TD = y_TD + own_TN.sum(1, keepdim=True) * x_TD + constant_TN @ self.constant.to(x_TD.dtype)
        return y_TD
