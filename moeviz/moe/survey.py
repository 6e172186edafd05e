"""A survey of a model: the routing of many held-out tokens whose domain is known, and what its experts do.

Made only when asked; nothing here changes the model.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from moeviz.domain.messages import UserError
from moeviz.domain.routing import Floats, Ints, Routing, RoutingSnapshot
from moeviz.domain.survey import PARTS, Inputs, Part, Plane, Similarity, SurveyResult, Terms
from moeviz.moe.input_map import along, grid, principal_axes
from moeviz.moe.layer import MoELayer
from moeviz.moe.routers import Router
from moeviz.moe.step import Look, unpack_look
from moeviz.moe.tasks.data import Data, Probe
from moeviz.moe.tasks.plane import PlaneData
from moeviz.moe.trainer import Trainer

ROWS = 16  # sequences, shared equally by the domains
ALL = slice(None)
CKA_TOKENS = 512
CKA_FLOP = 4e9  # at most, for all experts on all of these tokens: a tenth of a second


class _Seen:
    """What went into and out of one MoE layer, (T, D): x, y, and the residual stream h after y was added."""

    x: Tensor
    y: Tensor
    after: Tensor


class _Looked(NamedTuple):
    """The routing of T tokens, what each MoE layer read and wrote for them, and the model's output (T, V)."""

    routings: tuple[Routing, ...]
    seen: list[_Seen]
    logits_TV: Tensor


@torch.no_grad()
def survey(trainer: Trainer, parts: frozenset[Part] = PARTS, axes: Sequence[Floats] = ()) -> SurveyResult:
    """Look at the probe and, where the parts ask for it, at held-out data, in eval mode, without noise. `axes`: those
    of each layer's inputs at the survey before."""
    layers, data = trainer.model.layers, trainer.data
    of_plane = isinstance(data, PlaneData)
    shown = _look(trainer, trainer.probe_inputs, trainer.shown_T) if parts & {"terms", "inputs"} else None
    probe = trainer.snapshot(shown.routings if shown is not None else None)
    terms: tuple[Terms, ...] = ()
    if shown is not None and "terms" in parts:
        terms = tuple(map(_terms, layers, shown.routings, shown.seen))
    looked, heldout, length, lack = None, None, 0, ""
    if parts & {"heldout", "similarity"} or ("inputs" in parts and not of_plane):
        sample, lack = _sample(data, trainer.settings.model.context)
        if sample is not None:
            looked = _look(trainer, [torch.from_numpy(sample.inputs).to(trainer.device)])
            length = 1 if of_plane else sample.inputs.shape[1]
            heldout = RoutingSnapshot(trainer.step, looked.routings, sample.tokens, sample.domains)
    similarity: tuple[Similarity, ...] = ()
    if looked is not None and "similarity" in parts:
        similarity = tuple(_similarity(layer, s.x, len(layers)) for layer, s in zip(layers, looked.seen, strict=True))
    inputs, plane = tuple[Inputs, ...](), None
    if shown is not None and "inputs" in parts:
        if isinstance(data, PlaneData):
            plane = _plane(trainer, data, shown)
        else:
            before = axes if len(axes) == len(layers) else [None] * len(layers)
            wide = looked.seen if looked is not None else [None] * len(layers)
            inputs = tuple(map(_inputs, shown.seen, wide, before))
    return SurveyResult(trainer.step, heldout, length, probe, terms, similarity, lack, inputs, plane, parts)


def _sample(data: Data, context: int) -> tuple[Probe | None, str]:
    """Held-out tokens, the same at every call, and a sentence on what is missing."""
    if data not in _samples or _samples[data][0] != context:
        try:
            _samples[data] = context, data.sample(context, ROWS)
        except UserError as error:
            _samples[data] = context, (None, str(error))
    return _samples[data][1]


# thousands of tokens' texts, and the same at every survey; they go with their data, which can be large
_samples: WeakKeyDictionary[Data, tuple[int, tuple[Probe | None, str]]] = WeakKeyDictionary()


def _look(trainer: Trainer, inputs: list[Tensor], shown_T: Ints | slice = ALL) -> _Looked:
    """What the model does with the tokens at these places."""
    # of all tokens no copies are made: they take half as long as the model itself
    places_T = shown_T if isinstance(shown_T, slice) else torch.from_numpy(shown_T).to(trainer.device)
    model, seen = trainer.model, [_Seen() for _ in trainer.model.layers]
    logits: list[Tensor] = []

    def note_layer(at: int, x: Tensor, y: Tensor) -> None:
        seen[at].x, seen[at].y = x.flatten(0, -2)[places_T], y.flatten(0, -2)[places_T]

    def note_block(at: int, h: Tensor) -> None:
        seen[at].after = h.flatten(0, -2)[places_T]

    # hooks, so that forward, which every training step runs, need not keep what only a survey reads
    with ExitStack() as stack:
        for i, (layer, block) in enumerate(zip(model.layers, model.blocks, strict=True)):
            stack.enter_context(
                _removed(layer.register_forward_hook(lambda _, x, out, i=i: note_layer(i, x[0], out[0])))
            )
            stack.enter_context(_removed(block.register_forward_hook(lambda _, x, out, i=i: note_block(i, out[0]))))
        stack.enter_context(_removed(model.register_forward_hook(lambda _, x, out: logits.append(out[0]))))
        packed = Look(model)(*inputs).cpu().numpy()
    return _Looked(unpack_look(packed, model.layers[0].router, shown_T), seen, logits[0].flatten(0, -2)[places_T])


def _removed(handle: "torch.utils.hooks.RemovableHandle") -> ExitStack:
    stack = ExitStack()
    stack.callback(handle.remove)
    return stack


def _inputs(probe: _Seen, heldout: _Seen | None, before_2D: Floats | None) -> Inputs:
    x_TD = probe.x if heldout is None else heldout.x
    axes_2D, explained_2 = principal_axes(x_TD, before_2D)
    middle_D = x_TD.mean(0)
    heldout_T2 = None if heldout is None else along(heldout.x, axes_2D, middle_D)
    return Inputs(axes_2D, explained_2, heldout_T2, along(probe.x, axes_2D, middle_D))


def _plane(trainer: Trainer, data: PlaneData, probe: _Looked) -> Plane:
    probe_T2 = trainer.shown.inputs.reshape(-1, 2)
    x_C, y_R, cells_N2 = grid(data.frame, probe_T2)
    cells = _look(trainer, [torch.from_numpy(cells_N2)[None].to(trainer.device)])
    shape, router = (len(y_R), len(x_C)), trainer.model.layers[0].router
    return Plane(
        x_C,
        y_R,
        tuple(map(_choices, cells.routings)),
        _second(cells.logits_TV).reshape(shape),
        probe_T2,
        _second(probe.logits_TV),
        *data.own_sample,
        router.looks_ahead or router.drops,
    )


def _choices(routing: Routing) -> Routing:
    return replace(routing, router_probs_TE=None, router_logits_TE=None, selection_scores_TE=None)


def _second(logits_TV: Tensor) -> Floats:
    """The probability of the second class (T,)."""
    return _floats(torch.softmax(logits_TV.float(), -1)[:, 1])


def _terms(layer: MoELayer, routing: Routing, seen: _Seen) -> Terms:
    idle_TK = (routing.expert_ids_TK < 0) | (routing.expert_ids_TK >= layer.experts.num_experts)
    if routing.dropped_TK is not None:
        idle_TK = idle_TK | routing.dropped_TK
    if routing.soft:  # experts read mixtures of tokens: no output is one token's
        idle_TK = np.ones_like(idle_TK)
    ids = torch.from_numpy(np.where(idle_TK, 0, routing.expert_ids_TK)).to(seen.x.device).view(-1, 1)
    alone = layer.experts(seen.x.repeat_interleave(routing.k, 0), ids, torch.ones_like(ids, dtype=seen.x.dtype))
    outputs_TKD = alone.view(*idle_TK.shape, -1)
    norm_TK, sum_T = outputs_TKD.norm(dim=-1), seen.y.norm(dim=-1)
    cosine_TK = (outputs_TKD * seen.y[:, None]).sum(-1) / (norm_TK * sum_T[:, None])
    unknown = np.where(idle_TK, np.nan, 0.0).astype(np.float32)
    return Terms(
        _floats(seen.x.norm(dim=-1)),
        _floats(norm_TK) + unknown,
        _floats(cosine_TK) + unknown,
        _floats(sum_T),
        _floats((seen.after - seen.y).norm(dim=-1)),
        _floats(seen.after.norm(dim=-1)),
        layer.router.temperature,
        _floats(_noise_std(layer.router, seen.x)) if layer.router.noise > 0 else None,
    )


def _noise_std(router: Router, x_TD: Tensor) -> Tensor:
    """Standard deviation (T, E) of the noise that the router adds to its scores of these inputs while training."""
    std = router.noise_std(x_TD.to(torch.promote_types(x_TD.dtype, torch.float32)))
    return std.expand(len(x_TD), router.num_experts)


def _similarity(layer: MoELayer, x_TD: Tensor, num_layers: int) -> Similarity:
    experts, weight = layer.experts, layer.router.expert_weight()
    num_tokens, width = x_TD.shape
    per_token = 2 * num_layers * sum(p.numel() for p in experts.parameters())
    used = int(min(CKA_TOKENS, num_tokens, CKA_FLOP // per_token))
    cosine = None if weight is None else _floats(_cosines(weight))
    if used < 2 * width:  # linear CKA would be high for any data
        return Similarity(cosine, None, 0, width)
    # evenly spread, so that each domain has its share
    x_ND = x_TD[torch.linspace(0, num_tokens - 1, used, device=x_TD.device).long()]
    return Similarity(cosine, _floats(_output_cka(layer, x_ND)), used, width)


def _cosines(rows: Tensor) -> Tensor:
    unit: Tensor = rows / rows.norm(dim=1, keepdim=True)
    return (unit @ unit.T).clamp(-1, 1)


def _output_cka(layer: MoELayer, x_ND: Tensor) -> Tensor:
    """Linear CKA of all pairs of experts (E, E) on N tokens: cosines of their centred Gram matrices."""
    num_tokens, num_experts = x_ND.shape[0], layer.experts.num_experts
    ones = torch.ones(num_tokens, 1, device=x_ND.device, dtype=x_ND.dtype)
    grams = []
    for expert in range(num_experts):
        y_ND = layer.experts(x_ND, torch.full_like(ones, expert, dtype=torch.int64), ones)
        centred = y_ND - y_ND.mean(0)
        grams.append((centred @ centred.T).flatten())
    return _cosines(torch.stack(grams)).clamp(0, 1)


def _floats(values: Tensor) -> Floats:
    out: Floats = values.float().cpu().numpy()
    return out
