"""Whether what a step of a lesson asks for has happened, from the numbers that the window has: now, and when the step
began. The lessons themselves are in domain/lessons.py."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Any, NamedTuple

import numpy as np

from moeviz.domain.history import History
from moeviz.domain.messages import ModelFacts
from moeviz.domain.metrics import (
    boundary_margin,
    codes,
    cv,
    domain_specialisation,
    drop_rate,
    expert_counts,
    label_information,
    max_probability,
    max_violation,
    soft_dead_experts,
    vocabulary_specialisation,
)
from moeviz.domain.metrics.arrays import Array
from moeviz.domain.routing import Ints, Routing, RoutingSnapshot, visible
from moeviz.domain.selection import Selection
from moeviz.domain.settings import KNOBS, Settings, Value
from moeviz.domain.survey import SurveyResult

BATCHES = 20  # training batches that a measure of the load is over: one batch is noisy


@dataclass(frozen=True, eq=False, slots=True)
class Moment:
    """What the window knows at one tick, of the newest step.

    run         which model this is: another number after a restart
    facts       None of a recording
    selection   what is pinned
    recent_LE   assignments per expert (E,) in the last BATCHES training batches that are kept (of a long run not every
                one is), one array a layer; empty until there were so many with the knobs as they are
    """

    run: int
    settings: Settings
    facts: ModelFacts | None
    snapshot: RoutingSnapshot
    selection: Selection
    survey: SurveyResult | None
    recent_LE: tuple[Ints, ...]

    @property
    def layer(self) -> int:
        """The one that the panels show."""
        return min(self.selection.layer, len(self.snapshot.layers) - 1)

    @property
    def routing(self) -> Routing:
        """Of the probe in the layer shown."""
        return self.snapshot.layers[self.layer]

    @property
    def token(self) -> int | None:
        """The selected token, if the probe has it."""
        token = self.selection.token
        return token if token is not None and token < self.snapshot.num_tokens else None


def recent(history: History, layers: int) -> tuple[Ints, ...]:
    """`Moment.recent_LE` by now: over batches that the history has kept, and kept since the last change."""
    since = history.marks[-1][0] if history.marks else -1
    kept = int((history.steps > since).sum())
    return tuple(history.recent_counts(layer, BATCHES) for layer in range(layers)) if kept >= BATCHES else ()


class Check(NamedTuple):
    """Whether it has happened, and the number that this depends on beside the one that is wanted."""

    done: bool
    reading: str


# ---- what checks are made of
def _goal(
    what: str, value: float | None, *, above: float | None = None, below: float | None = None, unknown: str = ""
) -> Check:
    """A number, and on which side of which other one it should be. `unknown`: what to do where there is none."""
    low = -np.inf if above is None else above
    high = np.inf if below is None else below
    wanted = f"wanted: above {above:.3g}" if above is not None else f"wanted: below {below:.3g}"
    if value is None or value != value:
        return Check(False, f"{what} not known yet; {wanted}. {unknown}".strip())
    return Check(bool(low < value < high), f"{what} now {value:.3g}; {wanted}.")


def _set_to(now: Moment, **wanted: Value) -> Check:
    """Whether knobs have these values; `a__b` is the knob a.b."""
    for name, value in wanted.items():
        here: Any = reduce(getattr, name.split("__"), now.settings)
        if here != value:
            title = KNOBS[name.replace("__", ".")].title
            return Check(False, f"{title} is {_text(here)}; wanted: {_text(value)}.")
    return Check(True, "")


def _all(*checks: Check) -> Check:
    """The first that is not done; else the last."""
    return next((check for check in checks if not check.done), checks[-1])


def _text(value: Value) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _load(now: Moment, name: str, measure: Callable[[Ints], float], **bounds: float) -> Check:
    """A measure of the load of the layer shown, over the last training batches."""
    known = now.layer < len(now.recent_LE)
    value = measure(now.recent_LE[now.layer]) if known else None
    check = _goal(
        f"{name} in layer {now.layer} over the last {BATCHES} batches",
        value,
        above=bounds.get("above"),
        below=bounds.get("below"),
        unknown="" if known else f"It takes {BATCHES} training steps with these knobs, in a long run more.",
    )
    return check._replace(reading=f"{check.reading} Load shows the last batch alone.") if known else check


def _selected(now: Moment) -> Check:
    return Check(now.token is not None, "No token is selected.")


def _named(now: Moment) -> str:
    """The selected token as the token strip shows it."""
    tokens = now.snapshot.tokens
    assert now.token is not None
    return f"Token {now.token} “{visible(tokens[now.token])}”" if tokens is not None else f"Token {now.token}"


def _probabilities(now: Moment) -> Array | None:
    """The router's, for the selected token (E,); None without either."""
    probs = now.routing.router_probs_TE
    return None if probs is None or now.token is None else np.asarray(probs[now.token], dtype=np.float64)


def _experts_a_token(routing: Routing) -> Ints:
    count: Ints = (routing.expert_ids_TK >= 0).sum(axis=1)
    return count


# ---- 1: what a router does
def chose_a_token(now: Moment, then: Moment) -> Check:
    probs = _probabilities(now)
    if probs is None:
        return _selected(now)
    chosen = [e for e in now.routing.expert_ids_TK[now.token].tolist() if e >= 0]
    experts = " and ".join(f"{e} with p = {probs[e]:.2f}" for e in chosen)
    return Check(True, f"{_named(now)}, layer {now.layer}: expert {experts}.")


def found_a_sure_one(now: Moment, then: Moment) -> Check:
    probs = _probabilities(now)
    if probs is None:
        return _selected(now)
    return _goal(f"{_named(now)}: largest p", float(max_probability(probs[None])[0]), above=0.7)


def found_an_edge(now: Moment, then: Moment) -> Check:
    probs = _probabilities(now)
    if probs is None:
        return _selected(now)
    margin = boundary_margin(probs[None], now.routing.expert_ids_TK[now.token][None])
    return _all(
        Check(now.token != then.token, f"{_named(now)} is selected, as before; wanted: another."),
        _goal(f"{_named(now)}: margin", float(margin[0]), below=0.01),
    )


def changed_layer(now: Moment, then: Moment) -> Check:
    seen = f"Layer {now.layer} is shown; wanted: another than {then.layer}."
    return _all(_selected(now), Check(now.layer != then.layer, seen))


def typed(now: Moment, then: Moment) -> Check:
    count = now.snapshot.num_tokens
    changed = list(now.snapshot.tokens or ()) != list(then.snapshot.tokens or ())
    return Check(changed, f"The probe has {count} tokens" + ("." if changed else ", as before; wanted: another text."))


# ---- 2: k
def _active(now: Moment, then: Moment) -> tuple[float, float]:
    assert now.facts is not None
    assert then.facts is not None
    return now.facts.active_parameters, then.facts.active_parameters


def more_active(now: Moment, then: Moment) -> Check:
    here, before = _active(now, then)
    return _all(
        Check(now.routing.k >= 4, f"Each token has {now.routing.k} experts; wanted: 4."),
        _goal(f"Active parameters ({here:,.0f}) over those before", here / before, above=1.2),
    )


def dense(now: Moment, then: Moment) -> Check:
    experts, each = now.routing.num_experts, int(_experts_a_token(now.routing).min(initial=now.routing.num_experts))
    return _all(
        Check(each == experts, f"Each token has {each} experts; wanted: all {experts}."),
        _goal(f"CV of the probe in layer {now.layer}", cv(expert_counts(now.routing)), below=0.001),
    )


def cheapest(now: Moment, then: Moment) -> Check:
    here, before = _active(now, then)
    weights = now.routing.gate_weights_TK
    return _all(
        Check(now.routing.k == 1, f"Each token has {now.routing.k} experts; wanted: 1."),
        _goal("Smallest gate weight", None if weights is None else float(weights.min(initial=1)), above=0.999),
        _goal(f"Active parameters ({here:,.0f}) over those before", here / before, below=0.5),
    )


# ---- 3: noise and exploration
def _idle(now: Moment, **bounds: float) -> Check:
    return _load(now, "Experts with nearly no work", lambda counts: float(soft_dead_experts(counts)), **bounds)


def many_idle(now: Moment, then: Moment) -> Check:
    return _all(_set_to(now, routing__noise=0.0), _idle(now, above=6))


def explores(now: Moment, then: Moment) -> Check:
    noise, layer = now.settings.routing.noise, now.layer
    return _all(
        Check(noise >= 1, f"Noise is {noise:g}; wanted: 2."),
        _goal(f"CV of the probe, routed without noise, in layer {layer}", cv(expert_counts(now.routing)), above=1.2),
        _idle(now, below=4),
    )


# ---- 4: collapse and rescue
def collapsed(now: Moment, then: Moment) -> Check:
    return _all(_set_to(now, balance__loss="none"), _load(now, "CV", cv, above=1.4))


def rescued(now: Moment, then: Moment) -> Check:
    return _all(
        _set_to(now, balance__loss="switch"),
        _idle(now, below=1),
        _load(now, "CV", cv, below=0.35),
    )


def drifts(now: Moment, then: Moment) -> Check:
    """Away from balance, and not as far as it was."""
    return _all(_set_to(now, balance__loss="none"), _load(now, "CV", cv, above=0.4))


# ---- 5: a loss, or a bias
def violates(now: Moment, then: Moment) -> Check:
    return _all(
        _set_to(now, balance__loss="none", routing__bias_speed=0.0), _load(now, "MaxVio", max_violation, above=1.8)
    )


def loss_balances(now: Moment, then: Moment) -> Check:
    return _all(_set_to(now, balance__loss="switch"), _load(now, "MaxVio", max_violation, below=0.4))


def loss_missed(now: Moment, then: Moment) -> Check:
    return _all(
        _set_to(now, balance__loss="none", routing__bias_speed=0.0), _load(now, "MaxVio", max_violation, above=0.45)
    )


def bias_balances(now: Moment, then: Moment) -> Check:
    speed = now.settings.routing.bias_speed
    return _all(
        _set_to(now, balance__loss="none"),
        Check(speed >= 0.005, f"Bias speed is {speed:g}; wanted: 0.01."),
        _load(now, "MaxVio", max_violation, below=0.3),
    )


# ---- 6: capacity and drops
def _drops(now: Moment, **bounds: float) -> Check:
    return _goal(
        f"Dropped of the probe in layer {now.layer}",
        drop_rate(now.routing),
        above=bounds.get("above"),
        below=bounds.get("below"),
        unknown="Set Capacity factor.",
    )


def uneven(now: Moment, then: Moment) -> Check:
    return _all(_set_to(now, balance__loss="none"), _load(now, "MaxVio", max_violation, above=1.2))


def _factor(now: Moment) -> float:
    return now.settings.routing.capacity_factor


def overflows(now: Moment, then: Moment) -> Check:
    return _all(
        Check(0 < _factor(now) <= 1, f"Capacity factor is {_factor(now):g}; wanted: 1."), _drops(now, above=0.25)
    )


def has_room(now: Moment, then: Moment) -> Check:
    before = drop_rate(then.routing)
    return _all(
        Check(_factor(now) >= 2, f"Capacity factor is {_factor(now):g}; wanted: 2."),
        _drops(now, below=0.75 * before if before else 0.3),
    )


def fits(now: Moment, then: Moment) -> Check:
    return _all(
        Check(0 < _factor(now) <= 1, f"Capacity factor is {_factor(now):g}; wanted: 1."),
        _set_to(now, balance__loss="switch"),
        _drops(now, below=0.25),
    )


# ---- 7: specialisation
UNSURVEYED = Check(False, "Held-out text has not been looked at yet; for that Experts × domains is open (View menu).")


def _heldout(now: Moment) -> RoutingSnapshot | None:
    return now.survey.heldout if now.survey is not None else None


@lru_cache(maxsize=8)  # a survey comes every few seconds, a check with every picture
def _preference(sample: RoutingSnapshot, layer: int) -> tuple[list[str], Array]:
    """The domains, and how much more often each expert (D, E) serves one than it serves all."""
    routing, (names, domain_T) = sample.layers[layer], codes(sample.domains or ())
    shares_DE = domain_specialisation(routing.expert_ids_TK, domain_T, routing.num_experts, len(names))
    of_all_E = expert_counts(routing) / max(routing.num_tokens, 1)
    return names, shares_DE / np.where(of_all_E > 0, of_all_E, np.nan)


@lru_cache(maxsize=8)
def _characters(sample: RoutingSnapshot, layer: int) -> tuple[list[str], Array]:
    """The tokens, and of each how often it goes to an expert first (V, E)."""
    routing, (names, token_T) = sample.layers[layer], codes(sample.tokens or ())
    return names, vocabulary_specialisation(routing.expert_ids_TK, token_T, routing.num_experts, len(names))


@lru_cache(maxsize=8)
def _nmi(sample: RoutingSnapshot, layer: int) -> float:
    """Experts and domains, less what chance gives by formula."""
    routing, (_, domain_T) = sample.layers[layer], codes(sample.domains or ())
    return label_information(routing.expert_ids_TK, domain_T, routing.num_experts, equal_weights=True).symmetric


def _favourite(now: Moment, names: list[str], liking_NE: Array, what: str, above: float) -> Check:
    """Of N things the one that the selected expert serves most."""
    expert = now.selection.expert
    if expert is None or expert >= liking_NE.shape[1]:
        return Check(False, "No expert is selected.")
    best = int(np.nan_to_num(liking_NE[:, expert]).argmax())
    said = f"Expert {expert} in layer {now.layer}: share of {what.format(visible(names[best]))}"
    return _goal(said, float(liking_NE[best, expert]), above=above)


def found_a_specialist(now: Moment, then: Moment) -> Check:
    sample = _heldout(now)
    if sample is None or sample.domains is None:
        return UNSURVEYED
    return _favourite(now, *_preference(sample, now.layer), "{} over share of all", above=1.4)


def found_its_character(now: Moment, then: Moment) -> Check:
    sample, expert = _heldout(now), now.selection.expert
    if sample is None or sample.tokens is None:
        return UNSURVEYED
    same = expert is not None and expert == then.selection.expert
    return _all(
        Check(not same, f"Expert {expert} is selected, as before; wanted: another."),
        _favourite(now, *_characters(sample, now.layer), "all “{}”", above=0.9),
    )


def deepest(now: Moment, then: Moment) -> Check:
    last, sample = len(now.snapshot.layers) - 1, _heldout(now)
    if sample is None or sample.domains is None:
        return UNSURVEYED
    told = f"Layer {now.layer} is shown: NMI of experts and domains {_nmi(sample, now.layer):.3f}"
    return Check(now.layer == last, f"{told}." if now.layer == last else f"{told}; wanted: layer {last}.")


def domains_fade(now: Moment, then: Moment) -> Check:
    last, sample, first = len(now.snapshot.layers) - 1, _heldout(now), _heldout(then)
    if sample is None or first is None or sample.domains is None or first.domains is None:
        return UNSURVEYED
    weight = now.settings.balance.sequence_coefficient
    return _all(
        Check(weight >= 0.05, f"Sequence balance is {weight:g}; wanted: 0.1."),
        _goal(f"NMI of experts and domains in layer {last}", _nmi(sample, last), below=0.65 * _nmi(first, last)),
    )


# ---- 8: dynamic k
def _mean_experts(now: Moment, **bounds: float) -> Check:
    return _goal(
        f"Experts a token in layer {now.layer}, on average",
        float(_experts_a_token(now.routing).mean()) if now.routing.num_tokens else None,
        above=bounds.get("above"),
        below=bounds.get("below"),
    )


def _varies(now: Moment, router: str) -> Check:
    count = _experts_a_token(now.routing)
    low, high = int(count.min(initial=99)), int(count.max(initial=0))
    return _all(
        _set_to(now, routing__router=router),
        Check(low < high, f"Tokens of layer {now.layer} have {low} to {high} experts, {count.mean():.2f} on average."),
    )


def top_p(now: Moment, then: Moment) -> Check:
    return _varies(now, "top_p")


def more_experts(now: Moment, then: Moment) -> Check:
    return _all(_set_to(now, routing__router="top_p"), _mean_experts(now, above=2))


def found_a_doubtful_one(now: Moment, then: Moment) -> Check:
    if now.token is None:
        return _selected(now)
    count, here = _experts_a_token(now.routing), int(_experts_a_token(now.routing)[now.token])
    most = int(count.max())
    return Check(here == most, f"{_named(now)} has {here} experts; wanted: {most}, the most in layer {now.layer}.")


def surer(now: Moment, then: Moment) -> Check:
    before = float(_experts_a_token(then.snapshot.layers[now.layer]).mean())
    weight = now.settings.balance.token_entropy_coefficient
    return _all(
        _set_to(now, routing__router="top_p"),
        Check(weight >= 0.05, f"Token entropy is {weight:g}; wanted: 0.1."),
        _mean_experts(now, below=0.75 * before),
    )


def relu(now: Moment, then: Moment) -> Check:
    return _varies(now, "relu")
