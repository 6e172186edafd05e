"""What settings mean together: what changes along with a knob, what does nothing, and odd combinations in words."""

from collections.abc import Iterator
from math import ceil

from moeviz.domain.settings import KNOBS, Settings, Value

EVEN = ("dense", "expert_choice", "soft")  # the load is even whatever the scores are


def together(settings: Settings, key: str, value: Value) -> dict[str, Value]:
    """The change that a person asks for, with what must change along so that it can be had."""
    values: dict[str, Value] = {key: value}
    flat = {**settings.flat(), key: value}
    router, experts, k = flat["routing.router"], int(flat["model.experts"]), int(flat["routing.k"])
    if k > experts and key != "routing.k":  # that is refused, with the reason
        values["routing.k"] = k = experts  # k cannot stay above the number of experts
    if key == "routing.router" and router == "noisy_topk" and flat["routing.noise"] == 0:
        values["routing.noise"] = 1.0  # its own noise at its customary strength
    if router == "sigmoid_bias":
        groups, kept = int(flat["routing.groups"]), int(flat["routing.topk_groups"])
        if key == "routing.router" and experts % groups:
            values["routing.groups"] = groups = 1
        if key != "routing.topk_groups" and experts % groups == 0:
            needed = min(max(kept, ceil(k * groups / experts)), groups)
            if needed != kept:
                values["routing.topk_groups"] = needed
    return values


def k_in_words(settings: Settings) -> tuple[str, str]:
    """What k is called with this router, and what stands in its place where there is none to choose."""
    routing = settings.routing
    none = {
        "dense": "all, each by its probability",
        "soft": "all, in mixtures of tokens",
        "switch": "1, the best",
        "base": "1, evenly assigned",
        "hash": "1, by a fixed table",
        "gshard": "1, the best" if routing.second_policy == "none" else "up to 2",
        "top_p": "as many as reach Top-p",
    }
    titles = {"expert_choice": "k (mean)", "relu": "k (aim)", "null": "k (with ∅)"}
    return titles.get(routing.router, "k"), none.get(routing.router, "")


def useless(settings: Settings, key: str) -> bool:
    """Whether an option means nothing while another one is off."""
    needs = {
        "routing.drop": settings.routing.capacity_factor > 0,
        "routing.scope": settings.routing.capacity_factor > 0 or settings.routing.router == "expert_choice",
        "routing.topk_groups": settings.routing.groups > 1,
        "routing.second_threshold": settings.routing.second_policy in ("threshold", "random"),
        "model.shared_gate": settings.model.shared_experts > 0,
    }
    return not needs.get(key, True)


def idle(settings: Settings, key: str) -> str:
    """Why a coefficient does nothing here, in a few words; empty if it acts."""
    router = settings.routing.router
    if not key.startswith("balance.") or key == "balance.loss":
        return ""
    if not KNOBS[key].applies_to(router):
        return f"not with {router}"
    if router == "hash":
        return "hash has nothing to learn"
    if key == "balance.coefficient":
        return "no balance loss" if settings.balance.loss == "none" else ""
    if key == "balance.load_coefficient":
        if settings.routing.noise == 0:
            return "it needs noise"
        return "all are chosen" if settings.routing.k == settings.model.experts else ""
    one = router in ("topk", "noisy_topk") and settings.routing.k == 1
    return "weights are all 1" if key == "balance.importance_coefficient" and one else ""


def looks_ahead(settings: Settings) -> dict[str, str]:
    """Whether a token's experts depend on tokens after it, and when: a sentence, by the key of the knob that makes it
    so; empty if they do not."""
    routing = settings.routing
    if routing.router in ("expert_choice", "soft"):
        return {
            "routing.router": f"{routing.router} looks ahead: later tokens change an earlier one's routing, so it "
            "cannot route text as it is written."
        }
    drops = settings.applies("routing.capacity_factor") and routing.capacity_factor > 0
    if drops and (routing.drop == "probability" or (routing.router not in ("switch", "hash") and not _one(settings))):
        return {"routing.capacity_factor": "What is dropped of a token depends on later tokens too."}
    if routing.router in ("sinkhorn", "base"):
        return {"routing.router": f"{routing.router} looks ahead while it trains; the probe is routed without."}
    return {}


def _one(settings: Settings) -> bool:
    return settings.applies("routing.k") and settings.routing.k == 1 and settings.routing.router != "relu"


def explain(settings: Settings) -> dict[str, str]:
    """What a newcomer should know of this combination of settings: sentences by the key of the knob that they are
    about; empty if there is nothing odd about it."""
    out: dict[str, str] = {}
    for key, sentence in _oddities(settings):
        out[key] = f"{out[key]} {sentence}" if key in out else sentence
    return out


def _oddities(settings: Settings) -> Iterator[tuple[str, str]]:
    routing, balance, experts = settings.routing, settings.balance, settings.model.experts
    if experts == 1 and routing.router != "null":
        yield "model.experts", "One expert: every token goes to it, the router has nothing to choose."
        return
    router, k = routing.router, routing.k
    if router in ("topk", "noisy_topk") and k == 1:
        yield (
            "routing.k",
            f"With k = 1, {router} gives every token the weight 1: the router gets no gradient. Use topk_raw.",
        )
    if router == "noisy_topk" and routing.noise == 0:
        yield "routing.noise", "noisy_topk without noise routes as topk does."
    if router in ("topk", "topk_raw", "noisy_topk", "sinkhorn", "sigmoid_bias") and 1 < k == experts:
        yield "routing.k", "k equals the number of experts: this is the dense mixture."
    if router == "top_p" and routing.top_p == 1:
        yield "routing.top_p", "Top-p 1 takes every expert: this is the dense mixture."
    if router == "top_p" and 0 < routing.top_p < 1 and balance.token_entropy_coefficient == 0:
        yield (
            "routing.top_p",
            "Without the token entropy loss, top_p may flatten its probabilities to get more experts.",
        )
    if router == "top_p" and settings.train.dense_twin == "on":
        yield "train.dense_twin", "The dense twin has the FLOPs of all experts, for top_p has no k to go by."
    if router == "relu" and routing.l1_factor == 1:
        yield (
            "routing.l1_factor",
            "With L1 factor 1 the weight λ stays at 1e-8: relu uses all experts that it likes, not k.",
        )
    if router == "null" and not routing.constant_experts + routing.copy_experts + routing.zero_experts:
        yield "routing.router", "No null experts are left: null routes as topk does."
    if router == "sigmoid_bias" and routing.bias_speed > 0 and balance.loss != "none" and balance.coefficient > 0:
        yield "balance.loss", "Bias and balance loss both balance. DeepSeek-V3 sets the balance loss to none."
    if router in EVEN and balance.loss != "none" and balance.coefficient > 0:
        yield (
            "balance.coefficient",
            f"{router} is evenly loaded by construction: the balance loss only flattens probabilities.",
        )
    narrow = settings.applies("routing.capacity_factor") and 0 < routing.capacity_factor < 1
    if narrow and router not in ("null", "gshard"):
        yield (
            "routing.capacity_factor",
            f"Below 1 about {1 - routing.capacity_factor:.0%} of the choices or more are dropped, however even they "
            "are.",
        )
