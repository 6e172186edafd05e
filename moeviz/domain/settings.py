"""Every setting of a run, as data: the window's knobs, the settings file and `--set` are all made from these fields.

Settings are immutable and checked when made. A file holds flat keys ("routing.k"); unknown keys and values out of range
are refused by name, with the range.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Self

from moeviz.domain.errors import SettingsError as SettingsError  # part of what settings are

Value = int | float | str
ROUTERS = ("dense", "topk", "topk_raw", "noisy_topk")
TASKS = ("text",)
BALANCE_LOSSES = ("switch", "none")


@dataclass(frozen=True, slots=True)
class Knob:
    """What the window and the checks need to know of one setting. `live`: may change on a running model."""

    title: str
    help: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    unit: str = ""
    log: bool = False
    live: bool = True
    group: Literal["main", "router", "balance", "training", "model", "data"] = "main"


def _knob(default: Any, title: str, help: str, **rest: Any) -> Any:
    return field(default=default, metadata={"knob": Knob(title, help, **rest)})


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
        "Characters in one training sequence. Restarts the model.",
        low=16,
        high=512,
        unit="chars",
        live=False,
        group="model",
    )


@dataclass(frozen=True, slots=True)
class RoutingSettings:
    router: str = _knob(
        "topk",
        "Router",
        "dense: softmax over all experts, y = Σ p_e·E_e(x). topk: softmax over the k best, weights sum to 1. "
        "topk_raw: weights are the plain probabilities of the k best. "
        "noisy_topk: learned noise on the scores (Shazeer 2017).",
        choices=ROUTERS,
        group="router",
    )
    k: int = _knob(
        2, "k", "Experts chosen per token. Cannot exceed the number of experts; dense uses all of them.", low=1, high=64
    )
    noise: float = _knob(
        0.0,
        "Noise",
        "Standard deviation of the Gaussian noise added to the router's scores while training; for noisy_topk "
        "the factor on the learned deviation, z + noise·ε·softplus(x·W_noise).",
        low=0.0,
        high=4.0,
    )
    temperature: float = _knob(
        1.0,
        "Temperature",
        "τ in p = softmax(z/τ): above 1 flattens the gate weights, below 1 sharpens them.",
        low=0.1,
        high=10.0,
        log=True,
        group="router",
    )


@dataclass(frozen=True, slots=True)
class BalanceSettings:
    loss: str = _knob(
        "switch",
        "Balance loss",
        "switch: E·Σ q_e·P_e per layer, averaged over layers (Fedus 2021; 1 when even). none: no balance term.",
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


@dataclass(frozen=True, slots=True)
class TrainSettings:
    lr: float = _knob(0.003, "Learning rate", "AdamW step size.", low=0.0, high=0.1, log=True, group="training")
    batch: int = _knob(8, "Batch", "Sequences in a training batch.", low=1, high=256, unit="seqs", group="training")


@dataclass(frozen=True, slots=True)
class DataSettings:
    path: str = _knob(
        "",
        "Own data",
        "A text file, or a folder whose files or subfolders are the domains; empty for the "
        "built-in text. Restarts the model.",
        live=False,
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
        if self.routing.router != "dense" and self.routing.k > self.model.experts:
            raise SettingsError(
                f"routing.k is {self.routing.k} but model.experts is {self.model.experts}: a token cannot "
                "choose more experts than there are; lower k or add experts."
            )
        if self.model.width % 16:
            raise SettingsError(f"model.width is {self.model.width}; it must be a multiple of 16.")

    def flat(self) -> dict[str, Value]:
        """All settings by their dotted key, in the order of the fields."""
        return {key: _get(self, key) for key in KNOBS}

    def with_values(self, values: Mapping[str, Any]) -> Self:
        """A copy with some dotted keys changed. Raises SettingsError naming the key that cannot be used."""
        groups: dict[str, dict[str, Any]] = {}
        for key, value in values.items():
            if key not in KNOBS:
                raise SettingsError(f"{key!r} is not a setting; the settings are {', '.join(KNOBS)}.")
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
        if not isinstance(values, dict):
            raise SettingsError('the settings must be one JSON object of keys such as "routing.k".')
        return cls().with_values(values)

    @classmethod
    def read(cls, path: str | Path) -> Self:
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"cannot read the settings file {path}: {error}.") from None
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


def _coerced(key: str, value: Any) -> Value:
    """A value as JSON or the command line gives it, in the setting's own type; 2.0 is a 2, but 2.5 is no int."""
    kind = TYPES[key]
    if kind is str:
        if not isinstance(value, str):
            raise SettingsError(f"{key} must be a text, not {value!r}.")
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
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
