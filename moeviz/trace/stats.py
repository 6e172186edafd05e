"""Every measure of one step of a trace, as plain data. Their definitions are in moeviz.domain.metrics."""

from collections.abc import Mapping
from dataclasses import asdict, fields
from math import isfinite
from typing import Any

import numpy as np

from moeviz.domain import metrics
from moeviz.domain.messages import UserError
from moeviz.domain.metrics.arrays import Array, mean
from moeviz.domain.routing import Routing, RoutingSnapshot
from moeviz.trace.store import Trace

BATCHES = 100  # training batches that MaxVio_batch is the mean of
SHUFFLES = 20  # of the labels, for what chance alone tells of them

Values = dict[str, Any]


def stats(trace: Trace, step: int = -1) -> Values:
    """What `moeviz stats --json` prints for the snapshot at a position; negative counts from the end.

    None stands where the trace lacks the data, or where the measure is undefined. Measures are of the recorded tokens;
    churn is against the recorded step before, saturation against the last one. `mean` holds means over layers.
    """
    if not -trace.num_steps <= step < trace.num_steps:
        raise UserError(
            f"The trace {trace.path} holds no steps yet."
            if not trace.num_steps
            else f"--step is {step}, but the trace holds {trace.num_steps} steps: give 0 to {trace.num_steps - 1}, "
            f"or -1 to {-trace.num_steps} from the end."
        )
    at = range(trace.num_steps)[step]
    snapshot, final = trace[at], trace[-1]
    before = trace[at - 1] if at else None
    layers = [
        {
            **_balance(layer),
            **_confidence(layer),
            **_change(snapshot, before, final, i),
            **_structure(layer, snapshot.layers[i + 1] if i + 1 < len(snapshot.layers) else None),
            **_labels(layer, snapshot),
            **_health(layer),
            **_training(trace, snapshot.step, i),
        }
        for i, layer in enumerate(snapshot.layers)
    ]
    keys = [key for key in (layers[0] if layers else {}) if any(isinstance(layer[key], float) for layer in layers)]
    means = {key: mean([layer[key] for layer in layers if layer[key] is not None]) for key in keys}
    result: Values = _known(
        {
            "steps": trace.num_steps,
            "step": snapshot.step,
            "scalars": dict(snapshot.scalars),
            "layers": layers,
            "mean": means,
        }
    )
    return result


def _balance(layer: Routing) -> Values:
    counts = metrics.expert_counts(layer)
    summary, total = metrics.summarise(counts), int(counts.sum())
    weights, probs = metrics.importance(layer), layer.router_probs_TE
    k = metrics.floor_k(layer.expert_ids_TK)
    kept = None if layer.dropped_TK is None else metrics.load_share(metrics.processed_counts(layer))
    return {
        "name": layer.name,
        "experts": layer.num_experts,
        "k": layer.k,
        "tokens": layer.num_tokens,
        "assignments": total,
        "load_share": summary.load_share,
        "selection_frequency": metrics.selection_frequency(counts, layer.num_tokens),
        "processed_share": kept,
        "importance": weights,
        "importance_share": None if weights is None else metrics.importance_share(weights),
        "mean_probability": None if probs is None else metrics.mean_probability(probs),
        "share_gap": None if probs is None else metrics.share_gap(counts, probs),
        "cv": summary.cv,
        "cv_floor": metrics.cv_floor(total, layer.num_experts, k),
        "max_over_mean": metrics.max_over_mean(counts),
        "max_violation": summary.max_violation,
        "max_violation_floor": metrics.max_violation_floor(total, layer.num_experts, k),
        "normalised_entropy": summary.normalised_entropy,
        "effective_experts": summary.effective_experts,
        "hill_2": summary.hill_2,
        "gini": summary.gini,
        "dead_experts": summary.dead_experts,
        "soft_dead_experts": summary.soft_dead_experts,
        "can_tell_dead": summary.can_tell_dead,
        "drop_rate": metrics.drop_rate(layer),
        "fully_dropped_rate": metrics.fully_dropped_rate(layer),
        "null_experts": layer.num_null,
        "executed_experts": metrics.executed_experts(
            layer, range(layer.num_experts - layer.num_null, layer.num_experts)
        ),
        "looks_ahead": layer.looks_ahead,
        "soft": layer.soft,
    }


def _confidence(layer: Routing) -> Values:
    """Means over tokens. The boundary margin is of the scores that the choice was made by."""
    probs, k, chosen_by = layer.router_probs_TE, layer.k, layer.selection_scores_TE
    values: dict[str, Array | None] = dict.fromkeys(
        ("max_probability", "top_k_mass", "margin", "boundary_margin", "token_entropy", "token_effective_experts")
    )
    if probs is not None:
        values = {
            "max_probability": metrics.max_probability(probs),
            "top_k_mass": metrics.top_k_mass(probs, k) if k else None,
            "margin": metrics.margin(probs),
            "boundary_margin": metrics.boundary_margin(probs if chosen_by is None else chosen_by, layer.expert_ids_TK),
            "token_entropy": metrics.token_entropy(probs),
            "token_effective_experts": metrics.token_effective_experts(probs),
        }
    return {name: None if value is None else mean(value) for name, value in values.items()}


def _change(now: RoutingSnapshot, before: RoutingSnapshot | None, final: RoutingSnapshot, i: int) -> Values:
    ids, experts = now.layers[i].expert_ids_TK, now.layers[i].num_experts
    earlier = before.layers[i].expert_ids_TK if before and _comparable(now, before, i) else None
    last = final.layers[i].expert_ids_TK if _comparable(now, final, i) else None
    return {
        "churn": None if earlier is None else metrics.churn(earlier, ids),
        "top1_flip_rate": None if earlier is None else metrics.top1_flip_rate(earlier, ids),
        "jaccard": None if earlier is None else metrics.jaccard(earlier, ids),
        "saturation": None if last is None else metrics.saturation(ids, last),
        "overlap_baseline": metrics.overlap_baseline(now.layers[i].k, experts),
    }


def _comparable(a: RoutingSnapshot, b: RoutingSnapshot, i: int) -> bool:
    """Whether both routed the same tokens to the same experts."""
    same = a.tokens == b.tokens and a.layers[i].num_tokens == b.layers[i].num_tokens
    return same and a.layers[i].num_experts == b.layers[i].num_experts


def _structure(layer: Routing, after: Routing | None) -> Values:
    ids, experts = layer.expert_ids_TK, layer.num_experts
    lift, share = metrics.co_activation_lift(ids, experts), metrics.co_activation(ids, experts, metrics.MIN_COUNT)
    pair = None  # of those with enough tokens: an expert chosen once is always in a pair of share 1
    if np.isfinite(share).any():
        i, j = map(int, np.unravel_index(int(np.nanargmax(share)), share.shape))
        pair = {"experts": [i, j], "share": float(share[i, j]), "lift": float(lift[i, j])}
    information = bias = None
    if after is not None and after.num_tokens == layer.num_tokens:
        counts = metrics.transition_counts(ids, after.expert_ids_TK, experts, after.num_experts)
        information = metrics.transition_information(counts)
        k, next_k = (mean((x >= 0).sum(axis=1)) for x in (ids, after.expert_ids_TK))
        bias = metrics.transition_information_bias(counts, k, next_k)
    return {
        "strongest_pair": pair,
        "co_activation_baseline": metrics.co_activation_baseline(layer.k, experts),
        "first_choice_repeats": metrics.first_choice_repeats(ids),
        "first_choice_repeat_baseline": metrics.first_choice_repeat_baseline(ids),
        "any_choice_repeats": metrics.any_choice_repeats(ids),
        "any_choice_repeat_baseline": metrics.any_choice_repeat_baseline(layer.k, experts),
        "transition_information": information,
        "transition_information_bias": bias,
    }


def _labels(layer: Routing, snapshot: RoutingSnapshot) -> Values:
    """What the experts tell of domains, each with the same weight, and of token texts, each as often as it occurs."""
    values: Values = dict.fromkeys(
        ("domain_specialisation", "domain_information", "vocabulary_specialisation", "token_information")
    )
    ids, experts = layer.expert_ids_TK, layer.num_experts
    if snapshot.domains is not None and len(snapshot.domains) == layer.num_tokens:
        names, domain_T = metrics.codes(snapshot.domains)
        share = metrics.domain_specialisation(ids, domain_T, experts, len(names))
        values["domain_specialisation"] = dict(zip(names, share, strict=True))
        values["domain_information"] = asdict(
            metrics.label_information(ids, domain_T, experts, equal_weights=True, shuffles=SHUFFLES)
        )
    if snapshot.tokens is not None and len(snapshot.tokens) == layer.num_tokens:
        names, token_T = metrics.codes(snapshot.tokens)
        share = metrics.vocabulary_specialisation(ids, token_T, experts, len(names))
        values["vocabulary_specialisation"] = metrics.mean_vocabulary_specialisation(share)
        values["token_information"] = asdict(
            metrics.label_information(ids, token_T, experts, equal_weights=False, shuffles=SHUFFLES)
        )
    return values


def _health(layer: Routing) -> Values:
    logits = layer.router_logits_TE
    names = [field.name for field in fields(metrics.LogitHealth)]
    return dict.fromkeys(names) if logits is None else asdict(metrics.logit_health(logits))


def _training(trace: Trace, step: int, i: int) -> Values:
    """MaxVio of the newest training batches up to this step, as many as BATCHES of the same experts."""
    known = [part for part in trace.log_parts if len(part.counts_SE) > i and part.counts_SE[i].shape[1]]
    parts = [part for part in known if part.steps_S[0] <= step]
    recent = parts[-1].counts_SE[i][parts[-1].steps_S <= step][-BATCHES:] if parts else None
    return {
        "train_batches": None if recent is None else len(recent),
        "train_max_violation_batch": None if recent is None else metrics.max_violation_batch(recent),
        "train_max_violation_global": None if recent is None else metrics.max_violation_global(recent),
    }


def _known(value: Any) -> Any:
    """Plain data for JSON, None for what is not finite."""
    if isinstance(value, Mapping):
        return {key: _known(inner) for key, inner in value.items()}
    if isinstance(value, np.ndarray | list):
        return [_known(inner) for inner in (value.tolist() if isinstance(value, np.ndarray) else value)]
    return None if isinstance(value, float) and not isfinite(value) else value
