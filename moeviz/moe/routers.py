"""Routers: which experts each token gets, with which weights. A router RETURNS its routing; it keeps nothing.

z = x W^T, scores (T, E).   p = softmax(z / temperature).   In float32 at least, whatever the model computes in.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

INIT_STD = 0.02  # never zero: torch.topk breaks ties arbitrarily, an all-zero router sends every token to one pair


class RoutingTensors(NamedTuple):
    """The routing of T tokens. Experts come best first; probabilities and logits are clean (without noise)."""

    expert_ids_TK: Tensor
    gate_weights_TK: Tensor
    probs_TE: Tensor
    logits_TE: Tensor


class Router(nn.Module):
    """What all routers share: the weight (E, D), live `k`, `temperature` and `noise`.

    The two knobs live in tensors as well, so that a traced forward reads their newest value.
    """

    weight: nn.Parameter
    _temperature: Tensor
    _noise: Tensor

    def __init__(
        self,
        d_model: int,
        num_experts: int,
        k: int,
        *,
        temperature: float = 1.0,
        noise: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_experts, d_model, generator=generator) * INIT_STD)
        self.register_buffer("_temperature", torch.tensor(1.0), persistent=False)
        self.register_buffer("_noise", torch.tensor(0.0), persistent=False)
        self.k = k
        self.temperature = temperature
        self.noise = noise

    @property
    def num_experts(self) -> int:
        return self.weight.shape[0]

    @property
    def k(self) -> int:
        """Experts per token."""
        return self._k

    @k.setter
    def k(self, k: int) -> None:
        if not 1 <= k <= self.num_experts:
            raise ValueError(f"k is {k}; it must lie between 1 and the number of experts, {self.num_experts}")
        self._k = k

    @property
    def temperature(self) -> float:
        return self._temperature_value

    @temperature.setter
    def temperature(self, value: float) -> None:
        if not value > 0:
            raise ValueError(f"temperature is {value}; it must be positive")
        self._temperature_value = float(value)
        self._temperature.fill_(value)

    @property
    def noise(self) -> float:
        return self._noise_value

    @noise.setter
    def noise(self, value: float) -> None:
        if not value >= 0:
            raise ValueError(f"noise is {value}; it must not be negative")
        self._noise_value = float(value)
        self._noise.fill_(value)

    def forward(self, x_TD: Tensor, epsilon_TE: Tensor | None = None) -> RoutingTensors:
        """Route T tokens. `epsilon_TE`: the standard normal draws to use for the noise; without it they are drawn here
        while training, and there is no noise in eval mode."""
        x_TD = x_TD.to(torch.promote_types(x_TD.dtype, torch.float32))
        logits_TE = functional.linear(x_TD, self.weight.to(x_TD.dtype))
        if epsilon_TE is None and self.training and self.noise > 0:
            epsilon_TE = torch.randn_like(logits_TE)
        noisy_TE = logits_TE if epsilon_TE is None else logits_TE + self.noise_std(x_TD) * epsilon_TE
        probs_TE = torch.softmax(logits_TE / self._temperature, -1)
        ids_TK, weights_TK = self.choose(noisy_TE / self._temperature)
        return RoutingTensors(ids_TK, weights_TK, probs_TE, logits_TE)

    def noise_std(self, x_TD: Tensor) -> Tensor:
        """Standard deviation of the noise on the scores, () or (T, E)."""
        return self._noise

    def choose(self, scores_TE: Tensor) -> tuple[Tensor, Tensor]:
        """Expert ids and gate weights (T, K) from scores after noise and temperature, best first."""
        raise NotImplementedError


class TopKRouter(Router):
    """The k best; weights are the softmax over the chosen scores, they sum to 1 (Mixtral).

    At k = 1 the weight is exactly 1, and no gradient reaches the router through it.
    """

    def choose(self, scores_TE: Tensor) -> tuple[Tensor, Tensor]:
        best_TK, ids_TK = scores_TE.topk(self.k, dim=-1)
        return ids_TK, torch.softmax(best_TK, -1)


class DenseRouter(TopKRouter):
    """Every expert, weighted by its probability: the mixture that all sparse routers approximate. K = E."""

    @property
    def k(self) -> int:
        return self.num_experts

    @k.setter
    def k(self, k: int) -> None:
        """A dense router uses all experts, whatever k says."""


class TopKRawRouter(Router):
    """The k best; weights are their plain probabilities, they sum to less than 1 (OLMoE, Switch)."""

    def choose(self, scores_TE: Tensor) -> tuple[Tensor, Tensor]:
        weights_TK, ids_TK = torch.softmax(scores_TE, -1).topk(self.k, dim=-1)
        return ids_TK, weights_TK


class NoisyTopKRouter(TopKRouter):
    """Shazeer et al. 2017: z + noise * eps * softplus(x Wnoise^T) while training, then as topk."""

    def __init__(
        self, d_model: int, num_experts: int, k: int, *, generator: torch.Generator | None = None, **options: float
    ) -> None:
        super().__init__(d_model, num_experts, k, generator=generator, **options)
        self.weight_noise = nn.Parameter(torch.randn(num_experts, d_model, generator=generator) * INIT_STD)

    def noise_std(self, x_TD: Tensor) -> Tensor:
        return super().noise_std(x_TD) * functional.softplus(functional.linear(x_TD, self.weight_noise.to(x_TD.dtype)))


ROUTERS: dict[str, Callable[..., Router]] = {
    "dense": DenseRouter,
    "topk": TopKRouter,
    "topk_raw": TopKRawRouter,
    "noisy_topk": NoisyTopKRouter,
}


def build_router(
    name: str, d_model: int, num_experts: int, k: int, *, generator: torch.Generator | None = None, **options: float
) -> Router:
    """A router by name. Options: `temperature`, `noise`; `generator` for the start weights."""
    if name not in ROUTERS:
        raise ValueError(f"{name!r} is no router; the routers are {', '.join(ROUTERS)}")
    return ROUTERS[name](d_model, num_experts, k, generator=generator, **options)
