"""Routers that give each token as many experts as it needs. K = E, padded with -1."""

from typing import ClassVar

import torch
from torch import Tensor

from moeviz.moe.routers.base import Batch, Option, TokenChoiceRouter, best_first, softmax

L1_START = 1e-8


class TopPRouter(TokenChoiceRouter):
    """Huang et al. 2024: the fewest experts whose probabilities exceed `top_p` together; weights are the plain
    probabilities. At 1 all experts."""

    options: ClassVar[dict[str, Option]] = {**TokenChoiceRouter.options, "top_p": 0.4}
    fixed_k = 1  # at least: there is no number to aim at
    may_skip = True
    top_p: float

    @property
    def width(self) -> int:
        return self.num_experts

    @property
    def active_experts(self) -> float:
        return self.num_experts

    def choose(self, scores_TE: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        weights_TE, ids_TE = softmax(scores_TE).sort(-1, descending=True)
        if self.top_p >= 1:
            return ids_TE, weights_TE
        mass_TE = weights_TE.detach().cumsum(-1)
        before_TE = torch.cat([torch.zeros_like(mass_TE[:, :1]), mass_TE[:, :-1]], -1)
        idle_TE = before_TE > self.top_p  # enough already without this one
        return ids_TE.masked_fill(idle_TE, -1), weights_TE.masked_fill(idle_TE, 0)


class ReluRouter(TokenChoiceRouter):
    """Wang et al. 2024 (ReMoE): the weight of every expert is relu(z); those at 0 are not used, so 0 to E a token.

    k          the mean to aim at
    l1_factor  after each training step the L1 coefficient, which starts at 1e-8, is multiplied by this while more than
               k of E gates are on over all layers, and divided by it while fewer are
    The coefficient `l1` is part of the state. Probabilities are relu(z) / sum relu(z), 0 for a token without an expert.
    """

    options: ClassVar[dict[str, Option]] = {**TokenChoiceRouter.options, "l1_factor": 1.2}
    outside = TokenChoiceRouter.outside | {"l1_factor"}
    may_skip = True
    from_counts = True
    l1: Tensor
    l1_factor: float

    def _start(self, d_model: int, generator: torch.Generator | None) -> None:
        super()._start(d_model, generator)
        self.register_buffer("l1", torch.tensor(L1_START))

    @property
    def width(self) -> int:
        return self.num_experts

    def probabilities(self, clean_TE: Tensor) -> Tensor:
        gates_TE = torch.relu(clean_TE)
        return gates_TE / gates_TE.sum(-1, keepdim=True).clamp_min(torch.finfo(gates_TE.dtype).tiny)

    def choose(self, scores_TE: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        gates_TE = torch.relu(scores_TE)
        return best_first(gates_TE, gates_TE > 0)

    @torch.no_grad()
    def after_step(self, counts_E: Tensor, counts_LE: Tensor, num_tokens: int) -> None:
        density = counts_LE.to(self.l1).mean() / max(num_tokens, 1)
        self.l1 *= self.l1_factor ** torch.sign(density - self.k / self.num_experts)
