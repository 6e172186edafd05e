"""Four phenomena of one trained model: drops by capacity and by position, repeats, saturation."""

from dataclasses import dataclass
from functools import lru_cache
from math import ceil

import numpy as np
import torch

from moeviz.domain.metrics import (
    drop_lower_bound,
    first_choice_repeat_baseline,
    first_choice_repeats,
    label_information,
    overlap_baseline,
    saturation,
)
from moeviz.domain.routing import Bools, Ints
from moeviz.experiments.training import arms, choices, held_out, text, train
from moeviz.moe.model import CharModel
from moeviz.moe.routers.capacity import overflow
from moeviz.moe.trainer import Trainer

STEPS, ROWS = 800, 16  # rows of held-out text from each domain
MOMENTS = (0.0, 0.01, 0.05, 0.1, 0.2, 0.4, 0.7)  # of training, at which the choices for the held-out rows are kept
FACTORS = (0.75, 1.0, 1.25, 2.0, 4.0)
GROUP = 8  # rows that share a capacity
POSITION_FACTOR, PARTS = 1.25, 8


@dataclass(frozen=True)
class Trained:
    """A trained model, held-out rows (B, C + 1), and its choices for them: each layer's ids (B, C, K)."""

    model: CharModel
    experts: int
    k: int
    tokens: Ints
    ids: list[Ints]
    at: dict[float, list[Ints]]


@lru_cache(maxsize=2)
def trained(seed: int, arm: str) -> Trained:
    """A model that these experiments share; `arm` is one of the experiment "capacity"."""
    tokens: Ints = np.zeros((0, 0), np.int64)
    moments = {round(moment * STEPS): moment for moment in MOMENTS}
    at: dict[float, list[Ints]] = {}

    def look(trainer: Trainer) -> None:
        nonlocal tokens
        if trainer.step == 0:
            tokens = held_out(trainer.settings.model.context, ROWS).tokens
        if trainer.step in moments:
            at[moments[trainer.step]] = choices(trainer.model, tokens)

    trainer = train(arms("capacity")[arm], seed, STEPS, look)
    settings, model = trainer.settings, trainer.model
    return Trained(model, settings.model.experts, settings.routing.k, tokens, choices(model, tokens), at)


def capacity(seed: int) -> dict[str, float]:
    """Dropped share of the assignments of a batch of GROUP rows, mean over batches and layers. With one capacity for
    the batch the order of its tokens does not matter: an expert drops what exceeds it."""
    results: dict[str, float] = {}
    for arm in arms("capacity"):
        run = trained(seed, arm)
        for factor in FACTORS:
            drops = []
            for ids in run.ids:
                # one row of each domain in turn: every batch is a mix of all
                for group in ids.reshape(len(ids) // GROUP, -1):
                    counts_E = np.bincount(group, minlength=run.experts)
                    drops.append(drop_lower_bound(counts_E, ceil(factor * group.size / run.experts)))
            results[f"factor {factor:g}, {arm}"] = float(np.mean(drops))
    return results


def drop_position(seed: int) -> dict[str, float]:
    """Dropped share of assignments by eighth of the sequence, each sequence with its own capacity, mean over layers."""
    run = trained(seed, "balance loss")
    capital = np.array([text().encode(char.upper())[0] for char in text().vocabulary])
    texts = {"held-out text": run.ids, "text unlike the training text": choices(run.model, capital[run.tokens])}
    results: dict[str, float] = {}
    for label, layers in texts.items():
        late = np.mean([_dropped(ids, run.experts) for ids in layers], axis=(0, 1, 3))
        by_part = late.reshape(PARTS, -1).mean(1)
        for part, name in ((0, "first eighth"), (PARTS // 2, "fifth eighth"), (PARTS - 1, "last eighth")):
            results[f"{name}, {label}"] = float(by_part[part])
    return results


def _dropped(ids_BCK: Ints, num_experts: int) -> Bools:
    """(B, C, K): assignments without a place in their sequence's capacity."""
    shares, k = [1 / num_experts] * num_experts, ids_BCK.shape[2]
    dropped_TK = overflow(torch.from_numpy(_flat(ids_BCK)), None, POSITION_FACTOR, shares, groups=len(ids_BCK), k=k)
    dropped: Bools = dropped_TK.numpy().reshape(ids_BCK.shape)
    return dropped


def repeats(seed: int) -> dict[str, float]:
    """Repeated first choices of neighbours, and what character and position tell of the expert."""
    run = trained(seed, "balance loss")
    results: dict[str, float] = {}
    for name, ids in (("first layer", run.ids[0]), ("last layer", run.ids[-1])):
        # an unrouted token between two sequences: the end of one is no neighbour of the next
        apart = _flat(np.pad(ids, ((0, 0), (0, 1), (0, 0)), constant_values=-1))
        results[f"{name}: repeats of the first choice"] = first_choice_repeats(apart)
        results[f"{name}: repeats by chance"] = first_choice_repeat_baseline(apart)
    tokens = run.tokens[:, :-1]
    positions = np.tile(np.arange(tokens.shape[1]), len(tokens))
    for name, labels in (("character", tokens.ravel()), ("position", positions)):
        known = [label_information(_flat(ids)[:, :1], labels, run.experts, equal_weights=False) for ids in run.ids]
        results[f"I(first expert; {name}), nats"] = float(np.mean([i.nats - i.bias for i in known]))
    return results


def saturation_curve(seed: int) -> dict[str, float]:
    """Share of the k experts of a held-out token that are those of the end of training, mean over layers."""
    run = trained(seed, "balance loss")
    results = {
        f"after {100 * moment:g} % of training": float(
            np.mean([saturation(_flat(now), _flat(end)) for now, end in zip(layers, run.ids, strict=True)])
        )
        for moment, layers in run.at.items()
    }
    results["by chance"] = overlap_baseline(run.k, run.experts)
    return results


def _flat(ids_BCK: Ints) -> Ints:
    """(B * C, K), row after row."""
    return ids_BCK.reshape(-1, ids_BCK.shape[2])
