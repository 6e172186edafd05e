"""A survey of a model: the routing of many held-out tokens whose domain is known, and what its experts do.

Made only when asked; nothing here changes the model.
"""

from contextlib import ExitStack

import numpy as np
import torch
from torch import Tensor

from moeviz.domain.messages import UserError
from moeviz.domain.routing import Floats, Ints, Routing, RoutingSnapshot
from moeviz.domain.survey import Similarity, SurveyResult, Terms
from moeviz.moe.layer import MoELayer
from moeviz.moe.step import Look, unpack_look
from moeviz.moe.tasks.data import Probe
from moeviz.moe.trainer import Trainer

ROWS = 16  # sequences, shared equally by the domains
CKA_TOKENS = 512
CKA_FLOP = 4e9  # at most, for all experts on all of these tokens: a tenth of a second


class _Seen:
    """What went into and out of one MoE layer, (T, D): x, y, and the residual stream h after y was added."""

    x: Tensor
    y: Tensor
    after: Tensor


@torch.no_grad()
def survey(trainer: Trainer) -> SurveyResult:
    """Look at the probe and at held-out data, in eval mode, without noise."""
    probe_layers, probe_seen = _look(trainer, trainer.probe_inputs, trainer.shown_T)
    probe = RoutingSnapshot(trainer.step, probe_layers, trainer.shown.tokens, trainer.shown.domains)
    layers = trainer.model.layers
    terms = tuple(map(_terms, layers, probe_layers, probe_seen))
    sample, lack = _sample(trainer)
    if sample is None:
        return SurveyResult(trainer.step, None, 0, probe, terms, (), lack)
    rows, context = sample.inputs.shape[:2]
    routings, seen = _look(trainer, [torch.from_numpy(sample.inputs).to(trainer.device)], np.arange(rows * context))
    heldout = RoutingSnapshot(trainer.step, routings, sample.tokens, sample.domains)
    similarity = tuple(_similarity(layer, s.x, len(layers)) for layer, s in zip(layers, seen, strict=True))
    return SurveyResult(trainer.step, heldout, context, probe, terms, similarity, lack)


def _sample(trainer: Trainer) -> tuple[Probe | None, str]:
    """Held-out tokens, the same at every call, and a sentence on what is missing."""
    try:
        return trainer.data.sample(trainer.settings.model.context, ROWS)
    except UserError as error:
        return None, str(error)


def _look(trainer: Trainer, inputs: list[Tensor], shown_T: Ints) -> tuple[tuple[Routing, ...], list[_Seen]]:
    """The routing of the tokens at these places, and what each MoE layer read and wrote for them."""
    places_T = torch.from_numpy(shown_T).to(trainer.device)
    model, seen = trainer.model, [_Seen() for _ in trainer.model.layers]

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
        packed = Look(model)(*inputs).cpu().numpy()
    return unpack_look(packed, model.layers[0].router, shown_T), seen


def _removed(handle: "torch.utils.hooks.RemovableHandle") -> ExitStack:
    stack = ExitStack()
    stack.callback(handle.remove)
    return stack


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
        layer.router.noise,
    )


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
