"""A dense model that trains beside the MoE on the same batches, to compare the two at equal compute.

It is the MoE's own model with one SwiGLU in the place of each MoE layer, as wide as costs a token the FLOPs of the
layer that it replaces (router, shared experts, and the experts that run) at the start. All that both have starts with
the same weights. A later change of k or of the experts changes the MoE only; learning rate and batch are of both.
"""

import copy
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from moeviz.domain.routing import Ints
from moeviz.domain.settings import Settings
from moeviz.moe.batches import twin_generator
from moeviz.moe.experts import can_group
from moeviz.moe.layer import SharedExperts
from moeviz.moe.model import (
    CharModel,
    active_parameters,
    flops_of_layer,
    flops_outside_experts,
    flops_per_run,
    total_parameters,
)
from moeviz.moe.optimiser import AdamW
from moeviz.moe.step import losses_of
from moeviz.moe.traced import Traced

GAP_ERROR = "heldout_gap_error"  # the scalar: standard error of heldout - dense_heldout over the held-out rows
TRAINING = 3  # FLOPs of a training step over those of its forward pass: the backward pass costs about twice as many
_MODEL, _MEAN, _SQUARE, _STEPS, FLOPS = "model.", "adamw.mean.", "adamw.square.", "adamw.steps.", "flops"
_WIDTH = _MODEL + "blocks.0.moe.ffn.down_proj"

Values = npt.NDArray[np.float64]


class DenseLayer(nn.Module):
    """One SwiGLU for every token in the place of an MoE layer; it has no routing to return."""

    def __init__(self, d_model: int, width: int, down_scale: float, generator: torch.Generator) -> None:
        super().__init__()
        self.ffn = SharedExperts(d_model, width, False, down_scale, generator)

    def forward(
        self, x: Tensor, epsilon_TR: Tensor | None = None, *, token_ids: Tensor | None, valid: Tensor | None
    ) -> tuple[Tensor, None]:
        return self.ffn(x), None


class DenseLoss(nn.Module):
    """inputs and targets (B, C) -> cross-entropy. If `padded`, inputs may be PADDING, which comes last in a row and has
    no target."""

    def __init__(self, model: CharModel, padded: bool) -> None:
        super().__init__()
        self.model, self.padded = model, padded

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        logits, _ = self.model(inputs.clamp_min(0) if self.padded else inputs)
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def dense_width(model: CharModel) -> int:
    """Hidden width H of the SwiGLU, 6 D H FLOPs a token, that comes nearest to the FLOPs of the model's MoE layer."""
    layer = model.layers[0]
    return max(1, round(flops_of_layer(layer, model.context) / (6 * layer.experts.down_proj.shape[1])))


def dense_model(model: CharModel, settings: Settings, hidden: int) -> CharModel:
    """A copy of a model, its MoE layers replaced by dense ones; `layers` of the copy has no meaning."""
    scale, generator = (2 * settings.model.layers) ** -0.5, twin_generator(settings.seed)
    dense = {id(layer): DenseLayer(settings.model.width, hidden, scale, generator) for layer in model.layers}
    return copy.deepcopy(model, dense)  # what deepcopy takes for copied already it does not copy: no expert is


def twin_shapes(
    model: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """The shapes that a twin's state must have beside a model of these shapes; its width is the one that was found."""
    hidden = next(iter(found.get(_WIDTH, ())[1:]), 0)
    if not hidden:
        return {}
    width = found[_WIDTH][0]
    parameters = {name: shape for name, shape in model.items() if ".moe." not in name}
    for block in {name.split(".moe.")[0] for name in model if ".moe." in name}:
        parameters[f"{block}.moe.ffn.gate_up_proj"] = (2 * hidden, width)
        parameters[f"{block}.moe.ffn.down_proj"] = (width, hidden)
    shapes: dict[str, tuple[int, ...]] = {FLOPS: (2,)}
    for name, shape in parameters.items():
        shapes |= {_MODEL + name: shape, _MEAN + name: shape, _SQUARE + name: shape, _STEPS + name: ()}
    return shapes


class Twin:
    """The dense model, its optimiser, and what both models have cost.

    stopped  its loss or a weight was no longer a number; it trains no more, the MoE goes on
    """

    def __init__(
        self, model: CharModel, settings: Settings, padded: bool, state: Mapping[str, Tensor] | None = None
    ) -> None:
        self.model = dense_model(model, settings, state[_WIDTH].shape[1] if state else dense_width(model))
        self.optimiser = AdamW(dict(self.model.named_parameters()))
        self.flops = np.zeros(2, np.int64)  # of training so far: the MoE's and the twin's
        self.stopped = False
        self._losses: list[Tensor] = []
        self._tokens: list[int] = []  # of each step since the last flush, without padding
        self._padded = padded
        self._train = Traced(lambda: DenseLoss(self.model, padded), eager_calls=10)
        if state:
            self._take_over(state)

    def _take_over(self, state: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in self._tensors().items():
                tensor.copy_(state[name])
        self.flops = state[FLOPS].numpy().copy()

    def advance(self, inputs: Tensor, targets: Tensor, tokens: int, lr: float) -> None:
        """Train one step on the batch of so many tokens that the MoE is trained on."""
        if not self.stopped:
            loss = self._train(tuple(inputs.shape), inputs, targets)
            self.optimiser.step(torch.autograd.grad(loss, self._parameters), lr)
            self._losses.append(loss.detach())
        self._tokens.append(tokens)  # last: a step that had no memory is no step

    def flush(self, model: CharModel, runs_S: Values) -> dict[str, Values]:
        """Scalars of the S steps since the last flush, the losses NaN once the twin has stopped. runs_S: how often an
        expert of the MoE ran for a token, over all layers."""
        losses_S = np.full(len(runs_S), np.nan)
        if self._losses:
            weights = torch._foreach_norm([p.detach() for p in self._parameters])
            told = torch.stack([*self._losses, *weights]).cpu().numpy()
            losses_S[: len(self._losses)] = told[: len(self._losses)]
            self.stopped = not np.isfinite(told).all()
        tokens_S: Ints = np.array(self._tokens, np.int64)
        self._losses.clear()
        self._tokens.clear()
        moe_S = flops_outside_experts(model) * tokens_S + flops_per_run(model.layers[0]) * np.rint(runs_S).astype(
            np.int64
        )
        dense_S = flops_outside_experts(self.model) * tokens_S
        trained_S = np.where(np.isfinite(losses_S), dense_S, 0)  # a twin that has stopped costs nothing
        spent_S2 = self.flops + TRAINING * np.stack([moe_S, trained_S], 1).cumsum(0)
        self.flops = spent_S2[-1]
        known = {
            "dense_cross_entropy": np.where(np.isfinite(losses_S), losses_S, np.nan),
            "flops": spent_S2[:, 0],
            "dense_flops": spent_S2[:, 1],
            "flops_per_token": moe_S / np.maximum(tokens_S, 1),
            "dense_flops_per_token": dense_S / np.maximum(tokens_S, 1),
            "active_parameters": active_parameters(model),
            "parameters": total_parameters(model),
            "dense_parameters": total_parameters(self.model),
        }
        return {name: np.broadcast_to(values, runs_S.shape).astype(np.float64) for name, values in known.items()}

    @torch.no_grad()
    def losses(self, inputs: Tensor, targets: Tensor) -> Values:
        """Loss in nats at each target of rows (B, C); NaN once it has stopped."""
        if self.stopped:
            return np.full(tuple(targets.shape), np.nan)
        return losses_of(self.model(inputs.clamp_min(0) if self._padded else inputs)[0], targets)

    def to(self, device: str) -> None:
        self.model.to(device)
        self.optimiser.to(device)
        self.optimiser.follow(dict(self.model.named_parameters()))
        self._parameters = list(self.model.parameters())
        self._train.forget()
        self._train.enabled = can_group(torch.device(device), torch.float32)  # where the MoE's step is traced too

    def state(self) -> dict[str, Tensor]:
        """All that is needed to go on, by name; empty if it has stopped."""
        return {} if self.stopped else {**self._tensors(), FLOPS: torch.from_numpy(self.flops)}

    def _tensors(self) -> dict[str, Tensor]:
        parts = (
            (_MODEL, {name: p.detach() for name, p in self.model.named_parameters()}),
            (_MEAN, self.optimiser.mean),
            (_SQUARE, self.optimiser.square),
            (_STEPS, self.optimiser.steps),
        )
        return {prefix + name: tensor for prefix, values in parts for name, tensor in values.items()}
