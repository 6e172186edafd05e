"""Change what a live model's routers and experts are made of: their number, or the kind of router."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from moeviz.domain.routing import Ints
from moeviz.moe.model import CharModel
from moeviz.moe.optimiser import AdamW
from moeviz.moe.routers import build_router

COPY_NOISE = 1e-2  # of the row's norm: without it a copy would stay tied with its original for ever


@dataclass(frozen=True, slots=True)
class Resized:
    """What became of one layer's experts, in their old numbers.

    sources   for each new expert the old one that it is, or is a copy of
    copied    old numbers that were copied, most loaded first; one number may come more than once
    dropped   old numbers that left, least loaded first
    """

    sources: tuple[int, ...]
    copied: tuple[int, ...] = ()
    dropped: tuple[int, ...] = ()


def plan(counts_E: Ints, num_experts: int) -> Resized:
    """Grow by copies of the most loaded experts, shrink by the least loaded; the others keep their order."""
    old = len(counts_E)
    if num_experts >= old:
        by_load = np.argsort(-counts_E, kind="stable").tolist()
        copied = tuple(by_load[i % old] for i in range(num_experts - old))
        return Resized((*range(old), *copied), copied=copied)
    dropped = tuple(np.argsort(counts_E, kind="stable").tolist()[: old - num_experts])
    return Resized(tuple(e for e in range(old) if e not in dropped), dropped=dropped)


def resize_experts(
    model: CharModel,
    optimiser: AdamW,
    counts_LE: Sequence[Ints],
    num_experts: int,
    generator: torch.Generator | None = None,
) -> tuple[Resized, ...]:
    """Give every layer `num_experts` experts. AdamW's moments go along. The router's k must fit the new number.

    Everything new is computed before anything is changed, so a failure (out of memory) leaves the model as it was.
    """
    plans = tuple(plan(counts_E, num_experts) for counts_E in counts_LE)
    new: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
    for number, resized in enumerate(plans):
        prefix = f"blocks.{number}.moe."
        for name, parameter in model.layers[number].named_parameters():
            rows = torch.tensor(resized.sources, device=parameter.device)
            tensors = (parameter.detach(), optimiser.mean[prefix + name], optimiser.square[prefix + name])
            weight, mean, square = (tensor.index_select(0, rows) for tensor in tensors)
            if name == "router.weight" and resized.copied:
                _disturb(weight[-len(resized.copied) :], generator)
            new[prefix + name] = (weight, mean, square)
    for name, (weight, mean, square) in new.items():
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, nn.Parameter(weight))
        optimiser.mean[name], optimiser.square[name] = mean, square
    optimiser.follow(dict(model.named_parameters()))
    return plans


def _disturb(rows: Tensor, generator: torch.Generator | None) -> None:
    """Add noise of COPY_NOISE of each row's norm, in place."""
    noise = torch.randn(rows.shape, generator=generator).to(rows)
    rows += noise * (COPY_NOISE * rows.norm(dim=1, keepdim=True) / rows.shape[1] ** 0.5)


def switch_router(model: CharModel, optimiser: AdamW, name: str, k: int, generator: torch.Generator | None) -> None:
    """Another kind of router in every layer; the router's weight and the experts stay, noisy_topk adds weight_noise."""
    for layer in model.layers:
        old = layer.router
        router = build_router(
            name,
            old.weight.shape[1],
            old.num_experts,
            min(k, old.num_experts),
            temperature=old.temperature,
            noise=old.noise,
            generator=generator,
        ).to(old.weight.device)
        router.weight = old.weight
        router.train(old.training)
        layer.router = router
    optimiser.follow(dict(model.named_parameters()))
