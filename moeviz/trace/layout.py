"""How a trace lies on disk: a Zarr v3 group that plain zarr and xarray can read.

S steps are recorded; T, K and E are the widest of the run, shorter steps are padded with the fill value.

    attributes               format, version, settings, source, layers (names), marks [[step, label]],
                             lineages, num_steps, log_steps
    step (S,)                number of the training step
    probe (S,)               which probe the tokens are, -1 for unknown tokens
    lineage (S,)             which of `lineages` the experts have; "" for an unknown one
    scalars/{name} (S,)      losses and rates of a snapshot, NaN where there is none
    probes/{n}               attributes: tokens, domains (a list of strings each, or null)
    layers/{i}/              expert_ids_TK, gate_weights_TK, router_probs_TE, router_logits_TE, dropped_TK,
                             selection_scores_TE (S, ...); train_counts_E (S, E)
                             num_tokens, k, num_experts, assignments, present, num_null, looks_ahead, soft (S,)
    log/step (N,)            every training step, recorded or not
    log/{name} (N,)          its scalars
    log/counts/{i} (N, E)    assignments per expert in its training batch

Version 1 had no selection_scores_TE, num_null, looks_ahead and soft; there were none. Older traces have no lineages.

Data is written first and `num_steps`, `log_steps` last: what lies beyond them was not finished.
"""

from urllib.parse import quote

FORMAT, VERSION = "moeviz trace", 2

# the arrays of a layer that may be unknown; `present` holds one bit for each, in this order
OPTIONAL = (
    "gate_weights_TK",
    "router_probs_TE",
    "router_logits_TE",
    "dropped_TK",
    "train_counts_E",
    "selection_scores_TE",
)
ARRAYS = ("expert_ids_TK", *OPTIONAL)
SIZES = ("num_tokens", "k", "num_experts", "assignments", "present")
KINDS = ("num_null", "looks_ahead", "soft")  # since version 2
DTYPES = {"expert_ids_TK": "int32", "dropped_TK": "bool", "train_counts_E": "int64"}
FILLS = {"expert_ids_TK": -1, "dropped_TK": False, "train_counts_E": -1}
RESERVED = ("step", "counts")  # names in log/ that no scalar may have


def axes(name: str) -> str:
    """The axes of an array after S, as in "TK"."""
    return name.rpartition("_")[2]


def node(name: str) -> str:
    """A scalar's name as the name of an array."""
    return quote(name, safe="").replace(".", "%2E")
