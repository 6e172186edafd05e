"""Every setting of a run, as data: the window's knobs, the settings file and `--set` are all made from these fields.

Settings are immutable and checked when made. A file holds flat keys ("routing.k"); unknown keys and values out of range
are refused by name, with the range.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from os import pathsep
from pathlib import Path
from typing import Any, Literal, Self

from moeviz.domain.errors import SettingsError as SettingsError  # part of what settings are

Value = int | float | str
ROUTERS = (
    "dense",
    "topk",
    "topk_raw",
    "noisy_topk",
    "switch",
    "gshard",
    "expert_choice",
    "sinkhorn",
    "base",
    "sigmoid_bias",
    "hash",
    "top_p",
    "relu",
    "null",
    "soft",
)
TASKS = ("text", "translation", "search", "recommendation", "plane")
BALANCE_LOSSES = ("switch", "gshard", "none")

# which routers a knob is for
_WITH_K = ("topk", "topk_raw", "noisy_topk", "expert_choice", "sinkhorn", "sigmoid_bias", "relu", "null")
_WITH_SCORES = tuple(name for name in ROUTERS if name not in ("hash", "soft"))
_WITH_PROBABILITIES = tuple(name for name in ROUTERS if name != "hash")
_CAN_DROP = tuple(name for name in ROUTERS if name not in ("dense", "expert_choice", "base", "soft"))


@dataclass(frozen=True, slots=True)
class Knob:
    """What the window and the checks need to know of one setting.

    live     may change on a running model
    live_for tasks whose running model takes it all the same
    routers  the routers that it means something to; empty: all
    """

    title: str
    help: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    unit: str = ""
    log: bool = False
    live: bool = True
    group: Literal["main", "router", "balance", "training", "model", "data"] = "main"
    live_for: tuple[str, ...] = ()
    routers: tuple[str, ...] = ()

    def applies_to(self, router: str) -> bool:
        return not self.routers or router in self.routers


def _knob(default: Any, title: str, help: str, **rest: Any) -> Any:
    return field(default=default, metadata={"knob": Knob(title, help, **rest)})


def _weight(title: str, what: str, customary: str, routers: tuple[str, ...] = ()) -> Any:
    """The weight of one more loss, off at 0."""
    return _knob(
        0.0,
        title,
        f"Weight of a loss: {what}, mean over layers. Customary: {customary}. 0: not computed.",
        low=0.0,
        high=1.0,
        log=True,
        group="balance",
        routers=routers,
    )


@dataclass(frozen=True, slots=True)
class ModelSettings:
    experts: int = _knob(
        8,
        "Experts",
        "Number of experts E in each MoE layer. Added experts are copies of the most loaded ones with a "
        "little noise; the least loaded leave first.",
        low=1,
        high=64,
    )
    layers: int = _knob(
        3,
        "Layers",
        "Transformer blocks, each with attention and one MoE layer. Restarts the model.",
        low=1,
        high=8,
        live=False,
        group="model",
    )
    width: int = _knob(
        64, "Width", "Model width D, a multiple of 16. Restarts the model.", low=16, high=256, live=False, group="model"
    )
    expert_width: int = _knob(
        64,
        "Expert width",
        "Hidden width F of each SwiGLU expert. Restarts the model.",
        low=16,
        high=1024,
        live=False,
        group="model",
    )
    context: int = _knob(
        128,
        "Context",
        "Tokens in one training sequence; in most tasks a token is a character. Restarts the model.",
        low=16,
        high=512,
        unit="tokens",
        live=False,
        group="model",
    )
    shared_experts: int = _knob(
        0,
        "Shared experts",
        "Experts that every token uses besides the routed ones, as one wider SwiGLU; no part of routing and balance. "
        "DeepSeek-V3 has 1, Qwen2-MoE the width of 4. Added ones give 0 at first, so the model stays as it was.",
        low=0,
        high=8,
        group="router",
    )
    shared_gate: str = _knob(
        "none",
        "Shared gate",
        "sigmoid: what the shared experts give is multiplied by sigmoid(w·x) (Qwen2-MoE). none: it is not (DeepSeek).",
        choices=("none", "sigmoid"),
        group="router",
    )


@dataclass(frozen=True, slots=True)
class RoutingSettings:
    router: str = _knob(
        "topk",
        "Router",
        "dense: softmax over all experts, y = Σ p_e·E_e(x). topk: softmax over the k best, weights sum to 1 (Mixtral). "
        "topk_raw: weights are the plain probabilities of the k best (OLMoE). "
        "noisy_topk: learned noise on the scores (Shazeer 2017). "
        "switch: the best expert, weight p (Fedus 2021). gshard: two, the second at random (Lepikhin 2020). "
        "expert_choice: each expert takes its best tokens, later ones too, so it cannot generate (Zhou 2022). "
        "sinkhorn: the k best of a balanced plan while training (Clark 2022). "
        "base: an even assignment with the largest sum of scores while training (Lewis 2021). "
        "sigmoid_bias: sigmoid scores, and a bias that balances (DeepSeek-V3). hash: a fixed table from character to "
        "expert (Roller 2021). top_p: as many as reach a mass of probability (Huang 2024). "
        "relu: weights relu(z), k varies (ReMoE, Wang 2024). null: with experts that cost nothing (MoE++, Jin 2024). "
        "soft: experts see mixtures of tokens, later ones too (Puigcerver 2023).",
        choices=ROUTERS,
        group="router",
    )
    k: int = _knob(
        2,
        "k",
        "Experts chosen per token, at most as many as there are; the mean over tokens for expert_choice, and what relu "
        "aims at. switch, base and hash use one, gshard two, dense and soft all, top_p as many as it needs.",
        low=1,
        high=64,
        routers=_WITH_K,
    )
    noise: float = _knob(
        0.0,
        "Noise",
        "Standard deviation of the Gaussian noise added to the router's scores while training; for noisy_topk "
        "the factor on the learned deviation, z + noise·ε·softplus(x·W_noise).",
        low=0.0,
        high=4.0,
        routers=_WITH_SCORES,
    )
    temperature: float = _knob(
        1.0,
        "Temperature",
        "τ in p = softmax(z/τ): above 1 flattens the gate weights, below 1 sharpens them.",
        low=0.1,
        high=10.0,
        log=True,
        group="router",
        routers=_WITH_SCORES,
    )
    capacity_factor: float = _knob(
        0.0,
        "Capacity factor",
        "An expert takes at most ⌈CF·k·T/E⌉ of the assignments of T tokens; what comes later is dropped, and the token "
        "goes on with the others or none. 0: no limit. Customary: 1 to 1.25 in training, 2 in evaluation (Switch).",
        low=0.0,
        high=4.0,
        group="router",
        routers=_CAN_DROP,
    )
    drop: str = _knob(
        "position",
        "Drop by",
        "Which assignments a full expert drops. position: the later tokens (Mesh). probability: the tokens with the "
        "smaller largest probability (V-MoE's batch-prioritised routing). All first choices come before any second.",
        choices=("position", "probability"),
        group="router",
        routers=_CAN_DROP,
    )
    scope: str = _knob(
        "batch",
        "Capacity over",
        "Whether the tokens of the whole batch share the experts' capacity, or those of each sequence.",
        choices=("batch", "sequence"),
        group="router",
        routers=(*_CAN_DROP, "expert_choice"),
    )
    jitter: float = _knob(
        0.01,
        "Jitter",
        "While training the router sees x·U(1−ε, 1+ε). Customary: 0.01 (Fedus 2021).",
        low=0.0,
        high=1.0,
        group="router",
        routers=("switch",),
    )
    second_policy: str = _knob(
        "random",
        "Second expert",
        "When the second expert is used. all: always. none: never. threshold: where its weight g₂ is above the "
        "threshold. random: with probability min(1, g₂/threshold) while training, always in the probe (GShard, Mesh).",
        choices=("all", "none", "threshold", "random"),
        group="router",
        routers=("gshard",),
    )
    second_threshold: float = _knob(
        0.2,
        "Second threshold",
        "The threshold on the second expert's weight. Customary: 0.2 (Mesh).",
        low=0.0,
        high=1.0,
        group="router",
        routers=("gshard",),
    )
    bias_speed: float = _knob(
        0.001,
        "Bias speed",
        "u in b_e ← b_e + u·sign(mean(c) − c_e) after each step, c the assignments of the batch. 0.001 in DeepSeek-V3, "
        "whose runs are long; a short one needs more.",
        low=0.0,
        high=1.0,
        log=True,
        group="router",
        routers=("sigmoid_bias",),
    )
    groups: int = _knob(
        1,
        "Groups",
        "The experts are parted into this many groups, and a token chooses within the best of them; must divide the "
        "number of experts. 8 in DeepSeek-V3; 1: no limit.",
        low=1,
        high=32,
        group="router",
        routers=("sigmoid_bias",),
    )
    topk_groups: int = _knob(
        1,
        "Groups kept",
        "How many groups a token may choose in: those with the largest sum of their two best scores. 4 in DeepSeek-V3.",
        low=1,
        high=32,
        group="router",
        routers=("sigmoid_bias",),
    )
    scale: float = _knob(
        1.0,
        "Weight scale",
        "Gate weights are s_e / Σ s · scale. 2.5 in DeepSeek-V3.",
        low=0.1,
        high=10.0,
        log=True,
        group="router",
        routers=("sigmoid_bias",),
    )
    hash_table: str = _knob(
        "random",
        "Hash table",
        "random: every character gets an expert by lot. balanced: the most frequent first, each to the expert with the "
        "fewest tokens so far (Roller 2021).",
        choices=("random", "balanced"),
        group="router",
        routers=("hash",),
    )
    top_p: float = _knob(
        0.4,
        "Top-p",
        "A token gets the fewest experts whose probabilities exceed this together. Customary: 0.4 (Huang 2024).",
        low=0.0,
        high=1.0,
        group="router",
        routers=("top_p",),
    )
    l1_factor: float = _knob(
        1.2,
        "L1 factor",
        "After each step the weight λ of the L1 loss is multiplied by this while tokens use more than k experts, and "
        "divided while they use fewer; it starts at 1e-8, so the first 100 steps are dense at 1.2 (ReMoE).",
        low=1.0,
        high=4.0,
        group="router",
        routers=("relu",),
    )
    constant_experts: int = _knob(
        2,
        "Constant experts",
        "Null experts that give α₁·x + α₂·v with [α₁, α₂] = softmax(W_c·x), v learned. 2 in MoE++.",
        low=0,
        high=8,
        group="router",
        routers=("null",),
    )
    copy_experts: int = _knob(
        1,
        "Copy experts",
        "Null experts that give x. 1 in MoE++, 256 in LongCat-Flash.",
        low=0,
        high=8,
        group="router",
        routers=("null",),
    )
    zero_experts: int = _knob(
        1, "Zero experts", "Null experts that give 0. 1 in MoE++.", low=0, high=8, group="router", routers=("null",)
    )
    tau: float = _knob(
        0.75,
        "τ of experts",
        "Null experts count τ in the heterogeneous balance loss, experts that compute 1; with a capacity factor, an "
        "expert that computes has τ times the capacity of a null expert. 0.75 in MoE++; less sends more to null ones.",
        low=0.1,
        high=1.0,
        group="router",
        routers=("null",),
    )
    slots: int = _knob(
        1,
        "Slots",
        "Inputs of each expert in a sequence, each a mixture of its tokens. 1 is customary, with many experts "
        "(Puigcerver 2023); E·slots = context costs as much as one expert a token.",
        low=1,
        high=64,
        group="router",
        routers=("soft",),
    )


@dataclass(frozen=True, slots=True)
class BalanceSettings:
    loss: str = _knob(
        "switch",
        "Balance loss",
        "switch: E·Σ q_e·P_e per layer, averaged over layers, q over all choices (Fedus 2021; 1 when even). gshard: q "
        "over first choices only (Lepikhin 2020, Mesh). none: no balance term.",
        choices=BALANCE_LOSSES,
        group="balance",
    )
    coefficient: float = _knob(
        0.01,
        "Balance coefficient",
        "Weight α of the balance loss in the total loss.",
        low=0.0,
        high=1.0,
        log=True,
        group="balance",
    )
    z_coefficient: float = _knob(
        0.001,
        "z coefficient",
        "Weight of the router z-loss, mean of (logsumexp z)² (Zoph 2022).",
        low=0.0,
        high=1.0,
        log=True,
        group="balance",
    )
    importance_coefficient: float = _weight(
        "Importance", "CV² of each expert's sum of gate weights", "0.1 (Shazeer 2017)"
    )
    load_coefficient: float = _weight(
        "Load",
        "CV² of the expected number of assignments, from the noise; acts with noise above 0 only",
        "0.1 (Shazeer 2017)",
        routers=("topk", "topk_raw", "noisy_topk"),
    )
    sequence_coefficient: float = _weight(
        "Sequence balance",
        "E·Σ q_e·P_e within each sequence, averaged over sequences",
        "1e-4 (DeepSeek-V3)",
        routers=_WITH_PROBABILITIES,
    )
    token_entropy_coefficient: float = _weight(
        "Token entropy",
        "mean entropy of a token's probabilities, to be small: sure routing",
        "1e-4 (Huang 2024, for top_p)",
        routers=_WITH_PROBABILITIES,
    )
    batch_entropy_coefficient: float = _weight(
        "Batch entropy",
        "entropy of the mean probabilities, to be LARGE: it is subtracted",
        "0.01",
        routers=_WITH_PROBABILITIES,
    )
    mutual_information_coefficient: float = _weight(
        "Mutual information",
        "I(expert; token) = batch entropy − token entropy, to be LARGE: it is subtracted",
        "5e-4 (Mod-Squad, Chen 2023)",
        routers=_WITH_PROBABILITIES,
    )
    orthogonality_coefficient: float = _weight(
        "Output orthogonality",
        "overlap of the outputs of a token's experts; computed at more cost",
        "1e-3 (Guo 2025)",
        routers=tuple(name for name in ROUTERS if name not in ("switch", "base", "hash", "soft")),
    )
    variance_coefficient: float = _weight(
        "Score variance",
        "minus the variance of an expert's probability over the tokens, to be small: experts that differ",
        "1e-3 (Guo 2025)",
        routers=_WITH_PROBABILITIES,
    )
    router_orthogonality_coefficient: float = _weight(
        "Router orthogonality",
        "‖W·Wᵀ − I‖² of the router's rows at length 1",
        "1e-3",
        routers=_WITH_PROBABILITIES,
    )
    heterogeneous_coefficient: float = _weight(
        "Heterogeneous balance",
        "Σ η_e·f_e·P_e, η = τ for null experts and 1 for the others",
        "0.01 (MoE++)",
        routers=("null",),
    )


@dataclass(frozen=True, slots=True)
class TrainSettings:
    lr: float = _knob(
        0.003,
        "Learning rate",
        "AdamW step size. A model whose file has no moments of AdamW, as the bundled ones, reaches it in its next 100 "
        "steps: at once it would be thrown off what it has learned.",
        low=0.0,
        high=0.1,
        log=True,
        group="training",
    )
    batch: int = _knob(8, "Batch", "Sequences in a training batch.", low=1, high=256, unit="seqs", group="training")
    dense_twin: str = _knob(
        "off",
        "Dense twin",
        "on: a dense model trains in step beside the MoE, on the same batches: the same model, but each MoE layer is "
        "one SwiGLU that costs a token the FLOPs of the MoE layer at the start. The panel MoE against dense compares "
        "them; training is slower. Both must start together, so it restarts the model.",
        choices=("off", "on"),
        live=False,
        group="model",
    )


@dataclass(frozen=True, slots=True)
class DataSettings:
    path: str = _knob(
        "",
        "Own data",
        "A text file, a folder whose files and subfolders are the domains, or several of these with "
        f"{pathsep} between them, each a domain; empty for the built-in text. Restarts the "
        "model. For plane a pattern's name or a CSV file of x, y and class, on which the running model goes on.",
        live=False,
        live_for=("plane",),  # other data have other tokens, and so another model
        group="data",
    )


@dataclass(frozen=True, slots=True)
class Settings:
    task: str = _knob(
        "text", "Task", "What the model learns. Restarts the model.", choices=TASKS, live=False, group="data"
    )
    seed: int = _knob(
        0,
        "Seed",
        "Fixes the start weights, the batches and the noise. Restarts the model.",
        low=0,
        high=2**31 - 1,
        live=False,
        group="data",
    )
    model: ModelSettings = ModelSettings()
    routing: RoutingSettings = RoutingSettings()
    balance: BalanceSettings = BalanceSettings()
    train: TrainSettings = TrainSettings()
    data: DataSettings = DataSettings()

    def __post_init__(self) -> None:
        for key, value in self.flat().items():
            _check(key, value)
        if self.applies("routing.k") and self.routing.k > self.model.experts:
            raise SettingsError(
                f"routing.k is {self.routing.k} but model.experts is {self.model.experts}: a token cannot "
                "choose more experts than there are; lower k or add experts."
            )
        if self.model.width % 16:
            raise SettingsError(f"model.width is {self.model.width}; it must be a multiple of 16.")
        if self.routing.router == "sigmoid_bias":
            self._check_groups()

    def _check_groups(self) -> None:
        groups, kept, experts = self.routing.groups, self.routing.topk_groups, self.model.experts
        if experts % groups:
            raise SettingsError(
                f"routing.groups is {groups}, which does not divide model.experts, {experts}; choose a divisor, or 1."
            )
        if not self.routing.k <= experts // groups * kept <= experts:
            raise SettingsError(
                f"routing.topk_groups is {kept}: that many of {groups} groups of {experts // groups} experts cannot "
                f"hold the {self.routing.k} of routing.k; change routing.topk_groups, routing.groups or routing.k."
            )

    def applies(self, key: str) -> bool:
        """Whether a setting means something to the router of these settings."""
        return KNOBS[key].applies_to(self.routing.router)

    def live(self, key: str) -> bool:
        """Whether a setting may change on a running model of this task."""
        return KNOBS[key].live or self.task in KNOBS[key].live_for

    def flat(self) -> dict[str, Value]:
        """All settings by their dotted key, in the order of the fields."""
        return {key: _get(self, key) for key in KNOBS}

    def with_values(self, values: Mapping[str, Any]) -> Self:
        """A copy with some dotted keys changed. Raises SettingsError naming the key that cannot be used."""
        groups: dict[str, dict[str, Any]] = {}
        for key, value in values.items():
            if key not in KNOBS:
                raise SettingsError(f"{key!r} is not a setting; {_meant(key)}.")
            head, _, tail = key.rpartition(".")
            groups.setdefault(head, {})[tail] = _coerced(key, value)
        top = groups.pop("", {})
        # values are checked before a group is built, so that a bad one is named by its whole key
        for head, changed in groups.items():
            for tail, value in changed.items():
                _check(f"{head}.{tail}", value)
            top[head] = replace(getattr(self, head), **changed)
        return replace(self, **top)

    def to_json(self) -> str:
        return json.dumps(self.flat(), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Settings from the text of a settings file; keys left out take their default."""
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise SettingsError(f"the settings are not valid JSON: {error}.") from None
        except (RecursionError, ValueError):  # brackets without end, a number of thousands of digits
            raise SettingsError("the settings are nested too deep, or hold a number too long to read.") from None
        if not isinstance(values, dict):
            raise SettingsError('the settings must be one JSON object of keys such as "routing.k".')
        return cls().with_values(values)

    @classmethod
    def read(cls, path: str | Path) -> Self:
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            why = (isinstance(error, OSError) and error.strerror) or error
            raise SettingsError(f"cannot read the settings file {path}: {why}.") from None
        except SettingsError as error:
            raise SettingsError(f"{path}: {error}") from None


def _knobs(cls: Any, prefix: str = "") -> dict[str, tuple[Knob, type]]:
    found: dict[str, tuple[Knob, type]] = {}
    for item in fields(cls):
        if "knob" in item.metadata:
            found[prefix + item.name] = (item.metadata["knob"], type(item.default))
        else:
            found.update(_knobs(item.default, f"{item.name}."))
    return found


_KNOBS = _knobs(Settings)
KNOBS: dict[str, Knob] = {key: knob for key, (knob, _) in _KNOBS.items()}
TYPES: dict[str, type] = {key: kind for key, (_, kind) in _KNOBS.items()}


def _get(settings: Any, key: str) -> Any:
    for part in key.split("."):
        settings = getattr(settings, part)
    return settings


def _meant(key: str) -> str:
    """Which setting a key that is none may have been meant to be: by its whole name, or by what comes after the dot."""
    from difflib import get_close_matches  # only here: the start does without

    lasts = {known.rpartition(".")[2]: known for known in KNOBS}
    whole, last = get_close_matches(key, KNOBS, 1), get_close_matches(key.rpartition(".")[2], lasts, 1)
    nearest = whole[0] if whole else lasts[last[0]] if last else ""
    return f"the nearest one is {nearest}" if nearest else "`moeviz train` writes a settings.json with all of them"


def _coerced(key: str, value: Any) -> Value:
    """A value as JSON or the command line gives it, in the setting's own type; 2.0 is a 2, but 2.5 is no int."""
    kind = TYPES[key]
    if kind is str:
        if not isinstance(value, str):
            raise SettingsError(f"{key} must be a text, not {value!r}.")
        return value
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if isinstance(value, bool) or number != number or (kind is int and not number.is_integer()):
        raise SettingsError(
            f"{key} must be {'a whole number' if kind is int else 'a number'}{_range(key)}, not {value!r}."
        )
    return kind(number)  # type: ignore[no-any-return]


def _range(key: str) -> str:
    knob = KNOBS[key]
    return "" if knob.low is None or knob.high is None else f" from {knob.low:g} to {knob.high:g}"


def _check(key: str, value: Value) -> None:
    knob = KNOBS[key]
    if knob.choices and value not in knob.choices:
        raise SettingsError(f"{key} is {value!r}; it must be one of {', '.join(knob.choices)}.")
    low, high = knob.low, knob.high
    if not isinstance(value, str) and low is not None and high is not None and not low <= value <= high:
        raise SettingsError(f"{key} is {value:g}; it must lie in the range{_range(key)}.")
