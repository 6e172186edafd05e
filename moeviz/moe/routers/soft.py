"""Soft MoE: experts see mixtures of tokens."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from moeviz.moe.routers.base import ALL, INIT_STD, Option, Router, RoutingTensors, best_first


class SoftRouter(Router):
    """Puigcerver et al. 2023: every expert has `slots` inputs, each a mixture of all tokens of a sequence; every token
    gets a mixture of all outputs. logits = (x / |x|) . (scale * phi / |phi|); dispatch is their softmax over the tokens
    of a sequence, combine over the slots.

    weight (E * slots, D), the slots of an expert side by side. Every token touches every expert, in eval mode too.
    """

    options: ClassVar[dict[str, Option]] = {"slots": 1}
    structure = frozenset({"slots"})
    soft = True
    fixed_k = ALL
    slots: int

    def _start(self, d_model: int, generator: torch.Generator | None) -> None:
        self.weight = nn.Parameter(torch.randn(self.num_experts * self.slots, d_model, generator=generator) * INIT_STD)
        self.scale = nn.Parameter(torch.ones(()))

    @property
    def num_draws(self) -> int:
        return 0

    @property
    def looks_ahead(self) -> bool:
        return True

    def expert_runs(self, length: int) -> float:
        return self.num_experts * self.slots / length

    def route(
        self,
        x_TD: Tensor,
        epsilon_TR: Tensor | None,
        token_ids_T: Tensor | None,
        valid_T: Tensor | None,
        sequences: int,
    ) -> RoutingTensors:
        num_tokens, num_experts = x_TD.shape[0], self.num_experts
        phi_SD = self.scale.to(x_TD.dtype) * _unit(self.weight.to(x_TD.dtype))
        logits_TS = _unit(x_TD) @ phi_SD.T
        combine_TS = torch.softmax(logits_TS, -1)
        spread_TS = logits_TS
        if valid_T is not None:
            combine_TS = combine_TS.masked_fill(~valid_T[:, None], 0)
            # not -inf: a sequence of padding alone must not become NaN
            spread_TS = logits_TS.masked_fill(~valid_T[:, None], torch.finfo(logits_TS.dtype).min)
        length = num_tokens // sequences if num_tokens else 0
        shape = (sequences if num_tokens else 0, length, logits_TS.shape[1])
        dispatch_BCS = torch.softmax(spread_TS.view(shape), 1)
        if valid_T is not None:
            dispatch_BCS = dispatch_BCS.masked_fill(~valid_T.view(*shape[:2], 1), 0)
        mass_TE = combine_TS.view(num_tokens, num_experts, self.slots).sum(-1)
        logits_TE = torch.logsumexp(logits_TS.view(num_tokens, num_experts, self.slots), -1)
        ids_TE, weights_TE = best_first(mass_TE, mass_TE >= 0)
        if valid_T is not None:
            ids_TE = ids_TE.masked_fill(~valid_T[:, None], -1)
        return RoutingTensors(
            ids_TE,
            weights_TE,
            torch.softmax(logits_TE, -1),
            logits_TE,
            dispatch_BCS=dispatch_BCS,
            combine_BCS=combine_TS.view(shape),
        )

    def rows(self, name: str, sources: list[int]) -> list[int] | None:
        if name == "weight":
            return [expert * self.slots + slot for expert in sources for slot in range(self.slots)]
        return None

    def expert_weight(self) -> Tensor | None:
        return self.weight.detach() if self.slots == 1 else None


def _unit(rows: Tensor) -> Tensor:
    """Rows scaled to length 1, as in the released code."""
    return rows * torch.rsqrt(rows.square().sum(-1, keepdim=True) + 1e-6)
