"""Three ways to balance: importance and load loss, the scope of a loss, and a bias instead of a loss."""

import numpy as np
import torch

from moeviz.domain.metrics import cv, label_information, max_over_mean, max_violation
from moeviz.experiments.training import arms, choices, held_out, text, train
from moeviz.moe.batches import Batches, noise_draws
from moeviz.moe.losses import load_probability
from moeviz.moe.trainer import Trainer

STEPS = 600
BATCHES = 50  # on which importance and load are measured after training
ROWS = 64  # of held-out text from each domain


def losses(seed: int) -> dict[str, float]:
    """CV of importance and of the estimated load in training batches with noise, over the sum of BATCHES of them."""
    results: dict[str, float] = {}
    for arm, values in arms("balance_losses").items():
        importance_LE, load_LE = _importance_and_load(train(values, seed, STEPS))
        results[f"{arm}: CV of importance"] = float(np.mean([cv(i) for i in importance_LE]))
        results[f"{arm}: CV of load"] = float(np.mean([cv(load) for load in load_LE]))
        results[f"{arm}: largest / mean load"] = float(np.mean([max_over_mean(load) for load in load_LE]))
    return results


@torch.no_grad()
def _importance_and_load(trainer: Trainer) -> tuple[np.ndarray, np.ndarray]:
    settings, model = trainer.settings, trainer.model.train()
    sizes, batch = settings.model, settings.train.batch
    batches = Batches(text().train, sizes.context, settings.seed)
    importance_LE, load_LE = torch.zeros(2, sizes.layers, sizes.experts)
    for step in range(STEPS, STEPS + BATCHES):
        shape = (sizes.layers, batch * sizes.context, sizes.experts)
        inputs = torch.from_numpy(batches.draw(step, batch).inputs)
        _, routings = model(inputs, noise_draws(settings.seed, step, shape))
        for layer, r in enumerate(routings):
            assert r.noisy_TE is not None
            assert r.noise_std is not None
            importance_LE[layer].index_add_(0, r.expert_ids_TK.flatten(), r.gate_weights_TK.flatten())
            load_LE[layer] += load_probability(r.logits_TE, r.noisy_TE, r.noise_std, settings.routing.k).sum(0)
    return importance_LE.numpy(), load_LE.numpy()


def scope(seed: int) -> dict[str, float]:
    """What an expert tells of the domain of held-out text, mean over layers."""
    results: dict[str, float] = {}
    for arm, values in arms("balance_scope").items():
        trainer = train(values, seed, STEPS)
        sizes = trainer.settings.model
        rows = held_out(sizes.context, ROWS)
        labels_T = rows.domain_B.repeat(sizes.context)
        known = [
            label_information(ids.reshape(len(labels_T), -1), labels_T, sizes.experts, equal_weights=True)
            for ids in choices(trainer.model, rows.tokens)
        ]
        results[f"{arm}: I(expert; domain) / H(domain)"] = float(np.mean([i.of_labels for i in known]))
    return results


def loss_free(seed: int) -> dict[str, float]:
    """MaxVio of the counts over all held-out rows, mean over layers."""
    results: dict[str, float] = {}
    for arm, values in arms("loss_free").items():
        trainer = train(values, seed, STEPS)
        sizes = trainer.settings.model
        layers = choices(trainer.model, held_out(sizes.context, ROWS).tokens)
        counts = [np.bincount(ids.ravel(), minlength=sizes.experts) for ids in layers]
        results[f"{arm}: MaxVio_global"] = float(np.mean([max_violation(counts_E) for counts_E in counts]))
    return results
