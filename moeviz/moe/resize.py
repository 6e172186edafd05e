"""Change what a live model's routers and experts are made of: their number, or the kind of router."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from moeviz.domain.routing import Ints
from moeviz.domain.settings import Settings
from moeviz.moe.layer import SharedExperts
from moeviz.moe.model import CharModel, router_options
from moeviz.moe.optimiser import AdamW
from moeviz.moe.routers import ROUTERS, build_router
from moeviz.moe.routers.hash import HashRouter

COPY_NOISE = 1e-2  # of the row's norm: without it a copy would stay tied with its original for ever


@dataclass(frozen=True, slots=True)
class Resized:
    """What became of one layer's experts, in their old numbers. Null experts are no part of it.

    sources   for each new expert the old one that it is, or is a copy of
    copied    old numbers that were copied, most loaded first; one number may come more than once
    dropped   old numbers that left, least loaded first
    """

    sources: tuple[int, ...]
    copied: tuple[int, ...] = ()
    dropped: tuple[int, ...] = ()


class Structure(NamedTuple):
    """What a model is made of: its modules with their attributes, and AdamW's moments."""

    modules: list[tuple[nn.Module, dict[str, Any]]]
    moments: list[dict[str, Tensor]]


def structure(model: CharModel, optimiser: AdamW) -> Structure:
    """To put back later. It holds references, no copies: every change here makes new tensors."""
    modules = [(module, _attributes(vars(module))) for module in model.modules()]
    return Structure(modules, [dict(values) for values in (optimiser.mean, optimiser.square, optimiser.steps)])


def put_back(before: Structure, model: CharModel, optimiser: AdamW) -> None:
    for module, attributes in before.modules:
        vars(module).clear()
        vars(module).update(_attributes(attributes))
    optimiser.mean, optimiser.square, optimiser.steps = map(dict, before.moments)
    optimiser.follow(dict(model.named_parameters()))


def _attributes(values: dict[str, Any]) -> dict[str, Any]:
    """Of a module, which keeps its parameters, buffers and submodules in dictionaries."""
    return {name: value.copy() if isinstance(value, dict) else value for name, value in values.items()}


def shape(settings: Settings) -> Hashable:
    """Models of settings with the same shape have the same parameters."""
    sizes, options = settings.model, router_options(settings)
    router = settings.routing.router
    fixed = tuple(options[name] for name in sorted(ROUTERS[router].structure))
    return sizes.experts, router, fixed, sizes.shared_experts, sizes.shared_experts > 0 and sizes.shared_gate


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
    """Give every layer `num_experts` experts that compute. AdamW's moments and the routers' state go along. The
    router's k must fit the new number.

    Everything new is computed before anything is changed, so a failure (out of memory) leaves the model as it was.
    """
    plans = tuple(
        plan(counts_E[: layer.router.num_ffn], num_experts)
        for layer, counts_E in zip(model.layers, counts_LE, strict=True)
    )
    new: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
    states: list[dict[str, Tensor]] = []
    for number, (layer, resized) in enumerate(zip(model.layers, plans, strict=True)):
        router, sources = layer.router, list(resized.sources)
        prefix = f"blocks.{number}.moe."
        for name, parameter in layer.named_parameters():
            kind, _, part = name.partition(".")
            rows = sources if kind == "experts" else router.rows(part, sources) if kind == "router" else None
            if rows is None:
                continue
            index = torch.tensor(rows, device=parameter.device)
            tensors = (parameter.detach(), optimiser.mean[prefix + name], optimiser.square[prefix + name])
            weight, mean, square = (tensor.index_select(0, index) for tensor in tensors)
            if name == "router.weight" and resized.copied:
                per_expert = (len(rows) - router.num_null) // len(sources)
                first = len(sources) - len(resized.copied)
                _disturb(weight[first * per_expert : len(sources) * per_expert], generator)
            new[prefix + name] = (weight, mean, square)
        state = {
            name: buffer.index_select(0, torch.tensor(rows, device=buffer.device))
            for name, buffer in router.named_buffers()
            if (rows := router.rows(name, sources)) is not None
        }
        if isinstance(router, HashRouter):
            state["table"] = router.resized_table(sources)
        states.append(state)
    for name, (weight, mean, square) in new.items():
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, nn.Parameter(weight))
        optimiser.mean[name], optimiser.square[name] = mean, square
    for layer, state in zip(model.layers, states, strict=True):
        layer.router.num_ffn = num_experts
        for name, tensor in state.items():
            setattr(layer.router, name, tensor)
    optimiser.follow(dict(model.named_parameters()))
    return plans


def _disturb(rows: Tensor, generator: torch.Generator | None) -> None:
    """Add noise of COPY_NOISE of each row's norm, in place."""
    noise = torch.randn(rows.shape, generator=generator).to(rows)
    rows += noise * (COPY_NOISE * rows.norm(dim=1, keepdim=True) / rows.shape[1] ** 0.5)


def switch_router(
    model: CharModel, optimiser: AdamW, settings: Settings, generator: torch.Generator | None = None
) -> None:
    """The settings' router in every layer. The experts stay, and of the router's weight the rows of the experts where
    both kinds have one row for each; the rest starts anew, with its moments."""
    name = settings.routing.router
    vocabulary = model.vocabulary if name == "hash" else {}
    for number, layer in enumerate(model.layers):
        old, experts = layer.router, layer.experts
        device = experts.down_proj.device
        router = build_router(
            name,
            experts.down_proj.shape[1],
            old.num_ffn,
            min(settings.routing.k, old.num_ffn),
            generator=generator,
            **router_options(settings),
            **vocabulary,
        ).to(device)
        kept, place = old.expert_weight(), router.expert_weight()
        if kept is not None and place is not None:
            place.copy_(kept)
        for part, parameter in router.named_parameters():
            key = f"blocks.{number}.moe.router.{part}"
            carried = part == "weight" and kept is not None and place is not None
            if key in optimiser.mean and not (carried and optimiser.mean[key].shape == parameter.shape):
                for moments in (optimiser.mean, optimiser.square, optimiser.steps):
                    del moments[key]
        router.train(old.training)
        layer.router = router
    optimiser.follow(dict(model.named_parameters()))


def resize_shared(
    model: CharModel, optimiser: AdamW, settings: Settings, generator: torch.Generator | None = None
) -> None:
    """As many shared experts as the settings say, and their gate. Added ones give 0 at first; the last ones leave."""
    for number, layer in enumerate(model.layers):
        old, prefix = layer.shared, f"blocks.{number}.moe.shared."
        d_model, d_ff = layer.experts.down_proj.shape[1:]
        width = settings.model.shared_experts * d_ff
        shared = None
        if width:
            shared = SharedExperts(d_model, width, settings.model.shared_gate == "sigmoid", 0.0, generator)
            shared = shared.to(layer.experts.down_proj)
        fresh = {} if shared is None else dict(shared.named_parameters())
        for name, parameter in () if old is None else old.named_parameters():
            moments = optimiser.mean.pop(prefix + name), optimiser.square.pop(prefix + name)
            if name not in fresh:
                continue
            target = fresh[name].detach()
            new_moments = torch.zeros_like(target), torch.zeros_like(target)
            for new, kept in zip((target, *new_moments), (parameter.detach(), *moments), strict=True):
                _copy_shared(name, new, kept)
            optimiser.mean[prefix + name], optimiser.square[prefix + name] = new_moments
        layer.shared = shared
    optimiser.follow(dict(model.named_parameters()))


def _copy_shared(name: str, new: Tensor, old: Tensor) -> None:
    """The hidden units that both have: rows of each half of gate_up_proj, columns of down_proj."""
    if name == "gate_up_proj":
        for new_half, old_half in zip(new.chunk(2), old.chunk(2), strict=True):
            both = min(len(new_half), len(old_half))
            new_half[:both] = old_half[:both]
    else:
        both = min(new.shape[1], old.shape[1])
        new[:, :both] = old[:, :both]
