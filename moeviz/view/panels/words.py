"""What a layer's routing is, in words and labels that the panels share: null experts, drops, a varying number of
experts, soft dispatch, looking ahead. All of it is read off the arrays, so it holds for routing from anywhere."""

from functools import lru_cache

import numpy as np

from moeviz.domain.metrics import drop_rate, executed_experts, fully_dropped_rate
from moeviz.domain.routing import Routing
from moeviz.view.panels.axes import number, share

NULL = "∅"


def first_null(routing: Routing | None) -> int:
    """The number of the first null expert: all from there on compute nothing. E where there is none."""
    return 0 if routing is None else routing.num_experts - routing.num_null


@lru_cache(maxsize=256)
def labels(size: int, null_from: int) -> list[str]:
    """A label for each expert; ∅ marks null experts."""
    return [label(e, null_from) for e in range(size)]


def label(expert: int, null_from: int) -> str:
    return f"{NULL}{expert}" if expert >= null_from else f"{expert}"


def first_in_words(expert: int, gate: float, null_from: int) -> str:
    """Of one token: its first expert, -1 for none, and its gate weight."""
    return f"expert {label(expert, null_from)}, gate weight {share(gate)}" if expert >= 0 else "no expert"


@lru_cache(maxsize=8)  # several panels ask, each several times a picture
def kind_in_words(routing: Routing) -> tuple[str, ...]:
    """What is unlike a plain choice of k experts that compute; nothing of it where all is plain."""
    words = []
    if routing.soft:
        words.append("soft: all experts, in mixtures of tokens")
    if routing.looks_ahead:
        words.append("looks ahead at later tokens")
    if routing.num_null:
        end = routing.num_experts
        ran = executed_experts(routing, range(first_null(routing), end))
        words.append(f"{NULL} null experts; a token runs {number(ran)} experts")
    elif not routing.soft:
        words += count_in_words(routing)
    return (*words, *drops_in_words(routing))


def signs_in_words(routing: Routing) -> list[str]:
    """The same in the fewest words."""
    null = [f"{NULL} null expert"] if routing.num_null else []
    return [*(["looks ahead"] if routing.looks_ahead else []), *null]


def count_in_words(routing: Routing) -> list[str]:
    """How many experts a token has, where that varies."""
    count = (routing.expert_ids_TK >= 0).sum(axis=1)
    if not count.size or count.min() == count.max():
        return []
    none = [f"none for {about(100 * float((count == 0).mean()))} %"] if not count.all() else []
    return [f"{count.min()} to {count.max()} experts a token, mean {number(float(count.mean()))}", *none]


@lru_cache(maxsize=8)
def drops_in_words(routing: Routing) -> tuple[str, ...]:
    dropped, whole = drop_rate(routing), fully_dropped_rate(routing)
    if dropped is None or whole is None:
        return ()
    return (f"tokens shown: {about(100 * dropped)} % dropped, {about(100 * whole)} % wholly",)


def kept(routing: Routing) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    """Which choices (T, K) were carried out: chosen, and not dropped."""
    chosen: np.ndarray[tuple[int, int], np.dtype[np.bool_]] = routing.expert_ids_TK >= 0
    return chosen if routing.dropped_TK is None else chosen & ~routing.dropped_TK


def about(value: float) -> str:
    """Two digits: what chance does is known no better."""
    return number(float(f"{value:.2g}"))
