"""What one training step and one look at the probe compute, each as one module of tensors in, tensors out.

Results are packed in one tensor each, so that a device is copied from once.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from moeviz.domain.routing import Ints, Routing
from moeviz.domain.settings import Settings
from moeviz.moe import losses
from moeviz.moe.layer import MoELayer
from moeviz.moe.losses import expert_counts, layer_mean
from moeviz.moe.model import CharModel
from moeviz.moe.routers import Router, RoutingTensors
from moeviz.moe.routers.dynamic import ReluRouter
from moeviz.moe.routers.null import NullRouter
from moeviz.moe.routers.sigmoid import SigmoidBiasRouter
from moeviz.moe.tasks.data import PADDING

SCALARS = ("loss", "cross_entropy", "balance", "z")  # of every step; the terms in use and the router's numbers follow
RUNS = "expert_runs"  # and, where a capacity drops some of the assignments, how many are computed


class Terms(NamedTuple):
    """Which losses a step computes; another value needs another trace.

    balance  the choice of the setting balance.loss
    others   names in TERMS
    """

    balance: str = "switch"
    others: tuple[str, ...] = ()


def _importance(layer: MoELayer, routing: RoutingTensors, sequences: int, valid_T: Tensor | None) -> Tensor:
    return losses.importance_cv2(routing.gate_weights_TK, routing.expert_ids_TK, routing.probs_TE.shape[1], valid_T)


def _load(layer: MoELayer, routing: RoutingTensors, sequences: int, valid_T: Tensor | None) -> Tensor:
    assert routing.noisy_TE is not None
    assert routing.noise_std is not None
    k = routing.expert_ids_TK.shape[1]
    load_TE = losses.load_probability(routing.logits_TE, routing.noisy_TE, routing.noise_std, k)
    return losses.load_cv2(load_TE, valid_T)


def _sequence(layer: MoELayer, routing: RoutingTensors, sequences: int, valid_T: Tensor | None) -> Tensor:
    # probabilities are in the order of the unbiased scores
    k = min(layer.router.k, layer.router.num_experts)
    return losses.deepseek_sequence_balance(routing.probs_TE, k, sequences, valid_T)


def _token_entropy(layer: MoELayer, routing: RoutingTensors, sequences: int, valid_T: Tensor | None) -> Tensor:
    return losses.token_entropy(routing.probs_TE, valid_T)


def _batch_entropy(layer: MoELayer, routing: RoutingTensors, sequences: int, valid_T: Tensor | None) -> Tensor:
    return losses.batch_entropy(routing.probs_TE, valid_T)


def _mutual_information(layer: MoELayer, routing: RoutingTensors, sequences: int, valid_T: Tensor | None) -> Tensor:
    return losses.mutual_information(routing.probs_TE, valid_T)


def _orthogonality(layer: MoELayer, routing: RoutingTensors, sequences: int, valid_T: Tensor | None) -> Tensor:
    assert routing.outputs_TKD is not None
    return losses.output_orthogonality(routing.outputs_TKD, routing.expert_ids_TK, valid_T)


def _variance(layer: MoELayer, routing: RoutingTensors, sequences: int, valid_T: Tensor | None) -> Tensor:
    return losses.score_variance(routing.probs_TE, valid_T)


def _router_orthogonality(layer: MoELayer, routing: RoutingTensors, sequences: int, valid_T: Tensor | None) -> Tensor:
    return losses.router_orthogonality(layer.router.weight)


def _heterogeneous(layer: MoELayer, routing: RoutingTensors, sequences: int, valid_T: Tensor | None) -> Tensor:
    router = layer.router
    assert isinstance(router, NullRouter)
    is_null_E = torch.arange(router.num_experts, device=routing.probs_TE.device) >= router.num_ffn
    ids_TK = routing.expert_ids_TK
    return losses.heterogeneous_balance(routing.probs_TE, ids_TK, is_null_E, valid_T, tau=router.tau)


def _relu_l1(layer: MoELayer, routing: RoutingTensors, sequences: int, valid_T: Tensor | None) -> Tensor:
    ids_TK, weights_TK = routing.expert_ids_TK, routing.gate_weights_TK
    gates_TE = torch.zeros_like(routing.probs_TE).scatter_add(1, ids_TK.clamp_min(0), weights_TK)
    return losses.relu_l1(gates_TE, layer.router.k, valid_T)


TERMS: dict[str, Callable[[MoELayer, RoutingTensors, int, Tensor | None], Tensor]] = {
    "importance": _importance,
    "load": _load,
    "sequence": _sequence,
    "token_entropy": _token_entropy,
    "batch_entropy": _batch_entropy,
    "mutual_information": _mutual_information,
    "orthogonality": _orthogonality,
    "variance": _variance,
    "router_orthogonality": _router_orthogonality,
    "heterogeneous": _heterogeneous,
    "relu_l1": _relu_l1,
}
MAXIMISED = frozenset({"batch_entropy", "mutual_information"})


def router_numbers(routers: Sequence[Router]) -> dict[str, Tensor]:
    """What the routers keep from step to step, as scalars by name: relu's l1 ("lambda"), and the least and the greatest
    bias of sigmoid_bias in all layers."""
    first = routers[0]
    if isinstance(first, ReluRouter):
        return {"lambda": first.l1}
    if isinstance(first, SigmoidBiasRouter):
        biases = torch.stack([router.bias for router in routers if isinstance(router, SigmoidBiasRouter)])
        return {"bias_low": biases.min(), "bias_high": biases.max()}
    return {}


def terms_in_use(settings: Settings) -> Terms:
    """The losses that the settings ask for: a coefficient of 0 costs nothing."""
    router, flat = settings.routing.router, settings.flat()

    def wanted(name: str) -> bool:
        if name == "relu_l1":
            return router == "relu"  # its coefficient is the router's own
        if name == "load" and settings.routing.noise == 0:
            return False  # without noise there is nothing to estimate
        key = f"balance.{name}_coefficient"
        return float(flat[key]) > 0 and settings.applies(key)

    return Terms(settings.balance.loss, tuple(name for name in TERMS if wanted(name)))


def coefficients(settings: Settings) -> list[float]:
    """What the terms are multiplied by: balance, z, then those in use, negative where a term is to be maximised."""
    balance, flat = settings.balance, settings.flat()
    out = [balance.coefficient if balance.loss != "none" else 0.0, balance.z_coefficient]
    for name in terms_in_use(settings).others:
        value = 1.0 if name == "relu_l1" else float(flat[f"balance.{name}_coefficient"])
        out.append(-value if name in MAXIMISED else value)
    return out


def losses_of(logits: Tensor, targets: Tensor) -> npt.NDArray[np.float64]:
    """Cross-entropy in nats at each target of rows (B, C), 0 at those that are not counted."""
    each = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return each.view(targets.shape).cpu().numpy().astype(np.float64)


class StepLoss(nn.Module):
    """inputs and targets (B, C), coefficients (2 + n,) of balance, z and the other terms, noise draws (L, T, R) or
    nothing -> the loss to minimise, and news (4 + n + m + L*E): SCALARS, the other terms, the router's m numbers before
    the step, with a capacity RUNS, then the assignments per expert of each layer. UNCOUNTED targets are not learned; if
    `padded`, inputs may be PADDING, which counts nowhere.

    The routers are in training mode."""

    def __init__(self, model: CharModel, terms: Terms = Terms(), padded: bool = False) -> None:  # noqa: B008 - immutable
        super().__init__()
        self.model = model
        self.terms = terms
        self.padded = padded

    def forward(
        self, inputs: Tensor, targets: Tensor, coefficients: Tensor, epsilon_LTR: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        self.model.train()
        for layer in self.model.layers:
            layer.keep_outputs = "orthogonality" in self.terms.others
        valid = inputs != PADDING if self.padded else None
        valid_T = None if valid is None else valid.flatten()
        logits, routings = self.model(inputs.clamp_min(0) if self.padded else inputs, epsilon_LTR, valid)
        cross_entropy = functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        balance = self.balance(routings, valid_T)
        z = layer_mean([losses.router_z(r.logits_TE, valid_T) for r in routings])
        loss = cross_entropy + coefficients[0] * balance + coefficients[1] * z
        others = []
        for place, name in enumerate(self.terms.others):
            pairs = zip(self.model.layers, routings, strict=True)
            term = layer_mean([TERMS[name](layer, routing, inputs.shape[0], valid_T) for layer, routing in pairs])
            others.append(term)
            weight = coefficients[2 + place]
            if name == "relu_l1":
                router = self.model.layers[0].router
                assert isinstance(router, ReluRouter)
                weight = weight * router.l1
            loss = loss + weight * term
        counts = [expert_counts(r.expert_ids_TK, r.probs_TE.shape[1], valid_T) for r in routings]
        # float32 holds whole numbers up to 2^24: more assignments than a batch can have
        numbers = router_numbers([layer.router for layer in self.model.layers]).values()
        runs = [self.runs(routings)] if self.model.layers[0].router.drops else []
        scalars = torch.stack([loss, cross_entropy, balance, z, *others, *numbers, *runs]).detach()
        return loss, torch.cat([scalars, torch.cat(counts).float()])

    def runs(self, routings: Sequence[RoutingTensors]) -> Tensor:
        """How often an expert runs for a token in a layer, on average: neither drops nor null experts run."""
        num_ffn = self.model.layers[0].router.num_ffn
        chosen = [(r.expert_ids_TK >= 0) & (r.expert_ids_TK < num_ffn) & ~_dropped(r) for r in routings]
        return layer_mean([c.sum().float() for c in chosen])

    def balance(self, routings: Sequence[RoutingTensors], valid_T: Tensor | None) -> Tensor:
        choices: losses.Choices = "first" if self.terms.balance == "gshard" else "all"
        return layer_mean(
            [losses.switch_balance(r.probs_TE, r.expert_ids_TK, valid_T, choices=choices) for r in routings]
        )


def _dropped(r: RoutingTensors) -> Tensor:
    return torch.zeros_like(r.expert_ids_TK, dtype=torch.bool) if r.dropped_TK is None else r.dropped_TK


class Look(nn.Module):
    """tokens (B, C), and valid (B, C) where some are padding -> the routing of B*C tokens as (L, T, 2K + 2E + ...):
    ids, weights, probabilities, logits, then dropped (K) and selection scores (E) where the router has them.

    The routers are in eval mode."""

    def __init__(self, model: CharModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, valid: Tensor | None = None) -> Tensor:
        self.model.eval()
        for layer in self.model.layers:
            layer.keep_outputs = False
        _, routings = self.model(tokens, None, valid)
        return torch.stack([torch.cat([part.float() for part in _parts(r)], -1) for r in routings])


def _parts(r: RoutingTensors) -> list[Tensor]:
    optional = (r.dropped_TK, r.selection_scores_TE)
    return [r.expert_ids_TK, r.gate_weights_TK, r.probs_TE, r.logits_TE, *(p for p in optional if p is not None)]


def unpack_look(packed: npt.NDArray[np.float32], router: Router, shown_T: Ints | slice) -> tuple[Routing, ...]:
    """Rows `shown_T` of what Look returned, one Routing a layer; `router` is any layer's."""
    k, num_experts = router.width, router.num_experts
    widths = [k, k, num_experts, num_experts, k if router.drops else 0]
    layers = []
    for number, rows in enumerate(packed[:, shown_T]):
        ids, weights, probs, logits, dropped, selection = map(
            np.ascontiguousarray, np.split(rows, np.cumsum(widths), axis=1)
        )
        layers.append(
            Routing(
                f"layer {number}",
                num_experts,
                ids.astype(np.int64),
                weights,
                probs,
                logits if router.has_scores else None,
                dropped.astype(np.bool_) if router.drops else None,
                selection if selection.size else None,
                num_null=router.num_null,
                looks_ahead=router.looks_ahead,
                soft=router.soft,
            )
        )
    return tuple(layers)


class StepNews(NamedTuple):
    scalars_SN: npt.NDArray[np.float64]
    counts_SLE: npt.NDArray[np.int64]


def unpack_news(news: Sequence[Tensor], num_scalars: int, num_layers: int, num_experts: int) -> StepNews:
    """The news of S steps, in one copy."""
    width = num_scalars + num_layers * num_experts
    table = torch.stack(list(news)).cpu().numpy() if news else np.zeros((0, width), np.float32)
    scalars, counts = np.split(table, [num_scalars], axis=1)
    return StepNews(scalars.astype(np.float64), counts.astype(np.int64).reshape(len(table), num_layers, num_experts))
