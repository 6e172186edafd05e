"""One MoE layer: a router and its experts."""

import torch
from torch import Tensor, nn

from moeviz.moe.experts import Experts
from moeviz.moe.routers import Router, RoutingTensors


class MoELayer(nn.Module):
    """y, routing = layer(x). Takes the place of a feed-forward layer."""

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        router: Router,
        *,
        down_scale: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.router = router
        self.experts = Experts(router.num_experts, d_model, d_ff, down_scale=down_scale, generator=generator)

    def forward(self, x: Tensor, epsilon_TE: Tensor | None = None) -> tuple[Tensor, RoutingTensors]:
        """x (..., D) with any leading axes; the routing is over the T tokens they hold."""
        x_TD = x.reshape(-1, x.shape[-1])
        routing: RoutingTensors = self.router(x_TD, epsilon_TE)
        y_TD: Tensor = self.experts(x_TD, routing.expert_ids_TK, routing.gate_weights_TK)
        return y_TD.view(x.shape), routing
