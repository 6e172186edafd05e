"""One MoE layer: a router and its experts."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from moeviz.moe.experts import Experts
from moeviz.moe.routers import Router, RoutingTensors
from moeviz.moe.routers.null import NullRouter


class SharedExperts(nn.Module):
    """n experts that every token uses, as one SwiGLU of width n F: gate_up_proj (2nF, D), gate half first, down_proj
    (D, nF). With a gate (1, D) the output is multiplied by sigmoid(gate x) (Qwen2-MoE); without it is not (DeepSeek).
    """

    def __init__(
        self, d_model: int, d_ff: int, gated: bool, down_scale: float, generator: torch.Generator | None
    ) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(2 * d_ff, d_model, generator=generator) * d_model**-0.5)
        self.down_proj = nn.Parameter(torch.randn(d_model, d_ff, generator=generator) * d_ff**-0.5 * down_scale)
        if gated:
            self.gate = nn.Parameter(torch.randn(1, d_model, generator=generator) * d_model**-0.5)
        self.gated = gated

    def forward(self, x_TD: Tensor) -> Tensor:
        gate, up = functional.linear(x_TD, self.gate_up_proj).chunk(2, dim=-1)
        y_TD = functional.linear(functional.silu(gate) * up, self.down_proj)
        return torch.sigmoid(functional.linear(x_TD, self.gate)) * y_TD if self.gated else y_TD


class MoELayer(nn.Module):
    """y, routing = layer(x). Takes the place of a feed-forward layer.

    keep_outputs: whether the routing gets each chosen expert's output besides (`outputs_TKD`), at more cost.

    y is the sum of gate weight times output over each token's experts (Soft MoE: over the slots), plus what the shared
    experts give. Shared experts are no part of the routing.

    The layer differentiates once: gradients that compiled code computed have no graph, even with create_graph.
    """

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        router: Router,
        *,
        shared_experts: int = 0,
        shared_gate: bool = False,
        down_scale: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.router = router
        self.keep_outputs = False
        self.experts = Experts(router.num_ffn, d_model, d_ff, down_scale=down_scale, generator=generator)
        self.shared = (
            SharedExperts(d_model, shared_experts * d_ff, shared_gate, down_scale, generator)
            if shared_experts
            else None
        )

    def forward(
        self,
        x: Tensor,
        epsilon_TR: Tensor | None = None,
        *,
        token_ids: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> tuple[Tensor, RoutingTensors]:
        """x (..., D) with any leading axes; the routing is over the T tokens they hold, row after row.

        token_ids   (...), for the hash router
        valid       (...) bool, False = padding: it gets no expert and 0, and counts nowhere
        epsilon_TR  standard normal draws (T, router.num_draws) for the router's randomness
        """
        x_TD = x.reshape(-1, x.shape[-1])
        valid_T = None if valid is None else valid.reshape(-1)
        if valid_T is not None:
            x_TD = x_TD.masked_fill(~valid_T[:, None], 0)  # not even NaN passes
        routing: RoutingTensors = self.router(
            x_TD,
            epsilon_TR,
            token_ids_T=None if token_ids is None else token_ids.reshape(-1),
            valid_T=valid_T,
            sequences=max(x.shape[:-2].numel(), 1),
        )
        if routing.dispatch_BCS is not None and routing.combine_BCS is not None:
            y_TD = self._slots(x_TD, routing.dispatch_BCS, routing.combine_BCS)
        else:
            y_TD, outputs_TKD = self._chosen(x_TD, routing, valid_T is not None)
            routing = routing._replace(outputs_TKD=outputs_TKD)
        if self.shared is not None:
            y_TD = y_TD + self.shared(x_TD)
        return y_TD.view(x.shape), routing

    def _chosen(self, x_TD: Tensor, routing: RoutingTensors, padded: bool) -> tuple[Tensor, Tensor | None]:
        ids_TK, weights_TK = routing.expert_ids_TK, routing.gate_weights_TK
        if not (padded or self.router.may_skip or routing.dropped_TK is not None):
            return self._run(x_TD, ids_TK, weights_TK)
        idle_TK = (ids_TK < 0) | (ids_TK >= self.router.num_ffn)
        if routing.dropped_TK is not None:
            idle_TK = idle_TK | routing.dropped_TK
        y_TD, outputs_TKD = self._run(x_TD, ids_TK.masked_fill(idle_TK, -1), weights_TK.masked_fill(idle_TK, 0))
        if isinstance(self.router, NullRouter):
            y_TD = y_TD + self.router.null_output(x_TD, ids_TK, weights_TK)
        return y_TD, None if outputs_TKD is None else outputs_TKD.masked_fill(idle_TK[:, :, None], 0)

    def _run(self, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> tuple[Tensor, Tensor | None]:
        if not self.keep_outputs:
            y_TD: Tensor = self.experts(x_TD, ids_TK, weights_TK)
            return y_TD, None
        ones = torch.ones_like(weights_TK).view(-1, 1)
        outputs = self.experts(x_TD.repeat_interleave(ids_TK.shape[1], 0), ids_TK.reshape(-1, 1), ones)
        outputs_TKD = outputs.view(*ids_TK.shape, -1)
        return (weights_TK.to(x_TD.dtype)[:, :, None] * outputs_TKD).sum(1), outputs_TKD

    def _slots(self, x_TD: Tensor, dispatch_BCS: Tensor, combine_BCS: Tensor) -> Tensor:
        """Mix tokens into slots, give each slot to its expert, mix the outputs back."""
        sequences, length, num_slots = dispatch_BCS.shape
        x_BCD = x_TD.view(sequences, length, x_TD.shape[1])
        slots_BSD = dispatch_BCS.transpose(1, 2).to(x_TD.dtype) @ x_BCD
        experts_S = torch.arange(num_slots, device=x_TD.device) // (num_slots // self.router.num_ffn)
        ids = experts_S.repeat(sequences)[:, None]
        outputs = self.experts(slots_BSD.flatten(0, 1), ids, torch.ones_like(ids, dtype=x_TD.dtype))
        y_BCD: Tensor = combine_BCS.to(x_TD.dtype) @ outputs.view(slots_BSD.shape)
        return y_BCD.flatten(0, 1)
