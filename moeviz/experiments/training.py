"""Training one arm of an experiment, and what its model does with held-out text."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import NamedTuple

import numpy as np
import torch

from moeviz.domain.experiments import EXPERIMENTS
from moeviz.domain.routing import Ints
from moeviz.domain.settings import Settings, Value
from moeviz.moe.batches import Batches
from moeviz.moe.model import CharModel
from moeviz.moe.tasks.text import TextData, load_text
from moeviz.moe.trainer import Trainer


@cache
def text() -> TextData:
    return load_text()


def arms(name: str) -> dict[str, dict[str, Value]]:
    """The settings of each arm of an experiment."""
    experiment = EXPERIMENTS[name]
    return {arm: {**experiment.settings, **changes} for arm, changes in experiment.arms.items()}


def train(
    values: Mapping[str, Value], seed: int, steps: int, look: Callable[[Trainer], None] = lambda _: None
) -> Trainer:
    """Train on the built-in text as the window does. `look` sees the trainer at every step, and before the first."""
    torch.set_num_threads(1)
    trainer = Trainer(Settings().with_values({**values, "seed": seed}), text(), "cpu", text().probe)
    look(trainer)
    for _ in range(steps):
        trainer.advance()
        look(trainer)
    return trainer


class HeldOut(NamedTuple):
    """Rows of held-out text: tokens (B, C + 1), and the domain of each row (B,)."""

    tokens: Ints
    domain_B: Ints


def held_out(context: int, rows_per_domain: int) -> HeldOut:
    """The same rows whatever the seed, one of each domain in turn."""
    rng = np.random.default_rng(0)
    domains = text().heldout
    rows = [Batches([ids], context, seed=0).windows(rng, rows_per_domain) for ids in domains]
    return HeldOut(np.stack(rows, 1).reshape(-1, context + 1), np.tile(np.arange(len(domains)), rows_per_domain))


@torch.no_grad()
def choices(model: CharModel, tokens: Ints) -> list[Ints]:
    """Expert ids (B, C, K) of each layer for rows (B, C + 1), in eval mode, best first."""
    _, routings = model.eval()(torch.from_numpy(tokens[:, :-1].copy()))
    return [r.expert_ids_TK.numpy().reshape(len(tokens), -1, r.expert_ids_TK.shape[1]) for r in routings]
