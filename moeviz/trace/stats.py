"""Every balance measure of one step of a trace, as plain data."""

from typing import Any

from moeviz.domain.messages import UserError
from moeviz.domain.metrics import drop_rate, expert_counts, importance, summarise
from moeviz.domain.routing import Routing
from moeviz.trace.store import Trace


def stats(trace: Trace, step: int = -1) -> dict[str, Any]:
    """What `moeviz stats --json` prints for the snapshot at a position; negative counts from the end."""
    if not -trace.num_steps <= step < trace.num_steps:
        raise UserError(
            f"The trace {trace.path} holds no steps yet."
            if not trace.num_steps
            else f"--step is {step}, but the trace holds {trace.num_steps} steps: give 0 to {trace.num_steps - 1}, "
            f"or -1 to {-trace.num_steps} from the end."
        )
    snapshot = trace[step]
    return {
        "steps": trace.num_steps,
        "step": snapshot.step,
        "scalars": dict(snapshot.scalars),
        "layers": [_layer(layer) for layer in snapshot.layers],
    }


def _layer(layer: Routing) -> dict[str, Any]:
    summary = summarise(expert_counts(layer))
    weights = importance(layer)
    return {
        "name": layer.name,
        "experts": layer.num_experts,
        "k": layer.k,
        "tokens": layer.num_tokens,
        "load_share": summary.load_share.tolist(),
        "importance": None if weights is None else weights.tolist(),
        "cv": summary.cv,
        "max_violation": summary.max_violation,
        "normalised_entropy": summary.normalised_entropy,
        "effective_experts": summary.effective_experts,
        "gini": summary.gini,
        "dead_experts": summary.dead_experts,
        "drop_rate": drop_rate(layer),
    }
