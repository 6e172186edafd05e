"""What one training step and one look at the probe compute, each as one module of tensors in, tensors out.

Results are packed in one tensor each, so that a device is copied from once.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from moeviz.domain.routing import Routing
from moeviz.moe.losses import balance_loss, expert_counts, z_loss
from moeviz.moe.model import CharModel

SCALARS = ("loss", "cross_entropy", "balance", "z")


class StepLoss(nn.Module):
    """tokens (B, C+1), coefficients (2,) of balance and z, noise draws (L, T, E) or nothing -> the loss to minimise,
    and news (4 + L*E): SCALARS, then the assignments per expert of each layer."""

    def __init__(self, model: CharModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, coefficients: Tensor, epsilon_LTE: Tensor | None = None) -> tuple[Tensor, Tensor]:
        logits, routings = self.model(tokens[:, :-1], epsilon_LTE)
        cross_entropy = functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        balance, z = balance_loss(routings), z_loss(routings)
        loss = cross_entropy + coefficients[0] * balance + coefficients[1] * z
        counts = [expert_counts(r.expert_ids_TK, r.probs_TE.shape[1]) for r in routings]
        # float32 holds whole numbers up to 2^24: more assignments than a batch can have
        news = torch.cat([torch.stack([loss, cross_entropy, balance, z]).detach(), torch.cat(counts).float()])
        return loss, news


class Look(nn.Module):
    """tokens (B, C) -> the routing of B*C tokens as (L, T, 2K + 2E): ids, weights, probabilities, logits."""

    def __init__(self, model: CharModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        _, routings = self.model(tokens)
        return torch.stack(
            [torch.cat([r.expert_ids_TK.float(), r.gate_weights_TK, r.probs_TE, r.logits_TE], -1) for r in routings]
        )


def unpack_look(packed: npt.NDArray[np.float32], k: int, num_experts: int, num_tokens: int) -> tuple[Routing, ...]:
    """The first `num_tokens` rows of what Look returned, one Routing a layer."""
    layers = []
    for number, rows in enumerate(packed[:, :num_tokens]):
        ids, weights, probs, logits = np.split(rows, [k, 2 * k, 2 * k + num_experts], axis=1)
        layers.append(
            Routing(
                f"layer {number}",
                num_experts,
                ids.astype(np.int64),
                np.ascontiguousarray(weights),
                np.ascontiguousarray(probs),
                np.ascontiguousarray(logits),
            )
        )
    return tuple(layers)


class StepNews(NamedTuple):
    scalars_S4: npt.NDArray[np.float64]
    counts_SLE: npt.NDArray[np.int64]


def unpack_news(news: Sequence[Tensor], num_layers: int, num_experts: int) -> StepNews:
    """The news of S steps, in one copy."""
    width = len(SCALARS) + num_layers * num_experts
    table = torch.stack(list(news)).cpu().numpy() if news else np.zeros((0, width), np.float32)
    scalars, counts = np.split(table, [len(SCALARS)], axis=1)
    return StepNews(scalars.astype(np.float64), counts.astype(np.int64).reshape(len(table), num_layers, num_experts))
