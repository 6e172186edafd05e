"""The measures of a trace as tables for a terminal of 120 columns."""

from collections.abc import Iterator, Sequence
from typing import Any

from moeviz.domain.metrics import TOO_FEW

TABLES = (
    ("Load of the recorded tokens, before any drop; floor: what even routing shows by chance",
     ("experts", "k", "tokens", "assignments", "cv", "cv_floor", "max_violation", "max_violation_floor",
      "effective_experts", "hill_2", "gini", "dead_experts", "soft_dead_experts")),
    ("Drops, and the experts that a token really ran", ("drop_rate", "fully_dropped_rate", "executed_experts")),
    ("Load of the newest training batches: MaxVio of each, mean; and of their sum",
     ("train_batches", "train_max_violation_batch", "train_max_violation_global")),
    ("Confidence, mean over tokens; p: router probability",
     ("max_probability", "top_k_mass", "margin", "boundary_margin", "token_entropy", "token_effective_experts")),
    ("Change: since the recorded step before; saturation: against the last one; overlap_baseline: by chance",
     ("churn", "top1_flip_rate", "jaccard", "saturation", "overlap_baseline")),
    ("From token to token, and to the next layer (information in parts of ln E, bias: by chance)",
     ("first_choice_repeats", "first_choice_repeat_baseline", "any_choice_repeats", "any_choice_repeat_baseline",
      "transition_information", "transition_information_bias")),
    ("What experts tell of labels, without what chance would (of_labels: part of the labels' entropy)",
     ("domain_information.of_labels", "token_information.of_labels", "vocabulary_specialisation")),
    ("Scores z before softmax", ("mean_abs_logsumexp", "max_abs_logit", "z_loss", "broken_share")),
)  # fmt: skip


def report(result: dict[str, Any]) -> list[str]:
    """The lines of what `stats` found: a table a family of measures, without those that no layer has."""
    lines = [
        f"{result['steps']} step{'s' if result['steps'] != 1 else ''} recorded; this is training step "
        f"{result['step']}. A dash: not known or undefined."
    ]
    layers = result["layers"]
    if len(layers) > 1:
        layers = [*layers, {**dict.fromkeys(layers[0]), **result["mean"], "name": "mean"}]
    for title, columns in TABLES:
        shown = [column for column in columns if any(_cell(layer, column) != "-" for layer in result["layers"])]
        if shown:
            lines += ["", title, *_lines(layers, shown)]
    return lines


def _cell(layer: dict[str, Any], column: str) -> str:
    name, _, part = column.partition(".")
    value = layer[name][part] if part and layer[name] is not None else layer[name]
    if name in ("dead_experts", "soft_dead_experts") and layer["can_tell_dead"] is False:
        return TOO_FEW if name == "dead_experts" else "-"
    return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def _lines(layers: list[dict[str, Any]], columns: Sequence[str], width: int = 120) -> Iterator[str]:
    """A line a layer; what does not fit into the width goes into another block below. A long name keeps its end."""
    names = [name if len(name) <= 40 else f"…{name[-39:]}" for name in (layer["name"] for layer in layers)]
    left = max(map(len, names), default=0)
    texts = [[column, *(_cell(layer, column) for layer in layers)] for column in columns]
    wide = [max(map(len, text)) for text in texts]
    first = 0
    while first < len(columns):
        last, room = first, width - left
        while last < len(columns) and (last == first or wide[last] + 2 <= room):
            room -= wide[last] + 2
            last += 1
        for row, name in enumerate(["", *names]):
            cells = [text[row].rjust(size) for text, size in zip(texts[first:last], wide[first:last], strict=True)]
            yield "  ".join([name.ljust(left), *cells])
        first = last
