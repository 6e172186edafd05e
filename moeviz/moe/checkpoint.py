"""A run in one safetensors file: parameters, the routers' state, AdamW's moments, and as metadata the settings,
vocabulary and step.

No random state is kept: the randomness of a step is a function of the seed and the step's number (batches.py).
Safetensors holds numbers only, so opening a stranger's file cannot run code; pickles are refused.
"""

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Tensor
from torch.overrides import TorchFunctionMode

from moeviz.domain.messages import Report, UserError, unreported
from moeviz.domain.settings import Settings, SettingsError
from moeviz.moe.lineage import began
from moeviz.moe.model import CharModel
from moeviz.moe.optimiser import AdamW
from moeviz.moe.tasks.data import Vocabulary
from moeviz.moe.twin import FLOPS, twin_shapes

FORMAT, VERSION = "moeviz checkpoint", 1
FILE_NAME = "model.safetensors"
COPIES = 7  # of a model's parameters in a trainer: as they were read, its own, two moments, and the last good of these
MANY_BYTES = 64 * 2**20  # of parameters
_MODEL, _STATE, _COUNTS = "model.", "state.", "train_counts"
_MEAN, _SQUARE, _STEPS = "adamw.mean.", "adamw.square.", "adamw.steps."
_TWIN = "dense."


@dataclass(frozen=True, eq=False, slots=True)
class Checkpoint:
    """Tensors by parameter name. The three of AdamW are empty in a file without moments; training then starts new ones.

    state: what routers keep that is no parameter (bias, table, coefficient), by its name in the model.
    counts_LE: assignments per expert in the last training batch, -1 if that is unknown.
    twin: the state of a dense twin; empty without one.
    lineage: which experts these are (moe/lineage.py); of a file that does not say, they begin with it.
    """

    settings: Settings
    vocabulary: Vocabulary
    step: int
    parameters: Mapping[str, Tensor]
    state: Mapping[str, Tensor]
    mean: Mapping[str, Tensor]
    square: Mapping[str, Tensor]
    steps: Mapping[str, Tensor]
    counts_LE: Tensor
    twin: Mapping[str, Tensor]
    lineage: str


def state_of(model: CharModel) -> dict[str, Tensor]:
    """What a run keeps of a model besides its parameters: the buffers that are not made anew from the settings."""
    parameters = {name for name, _ in model.named_parameters()}
    return {name: tensor for name, tensor in model.state_dict().items() if name not in parameters}


def save(
    path: str | Path,
    settings: Settings,
    vocabulary: Vocabulary,
    step: int,
    model: CharModel,
    optimiser: AdamW | None,
    counts_LE: Tensor,
    twin: Mapping[str, Tensor] = MappingProxyType({}),
    lineage: str = "",
) -> Path:
    """Write the file, or FILE_NAME into a folder, and return its path. Without an optimiser it is a third as large."""
    path = Path(path)
    if path.is_dir():
        path = path / FILE_NAME
    tensors = {_MODEL + name: p.detach() for name, p in model.named_parameters()}
    tensors.update({_STATE + name: tensor for name, tensor in state_of(model).items()})
    tensors.update({_TWIN + name: tensor for name, tensor in twin.items()})
    tensors[_COUNTS] = counts_LE
    if optimiser is not None:
        for prefix, values in ((_MEAN, optimiser.mean), (_SQUARE, optimiser.square), (_STEPS, optimiser.steps)):
            tensors.update({prefix + name: tensor for name, tensor in values.items()})
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "settings": settings.to_json(),
        "vocabulary": json.dumps(vocabulary),
        "step": str(step),
        **({"lineage": lineage} if lineage else {}),
    }
    if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
        raise UserError(f"The model holds values that are no numbers, so {path} was not written; restart it.")
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        # not save_file: its files can be read by their owner only
        draft.write_bytes(serialise({name: t.cpu().contiguous() for name, t in tensors.items()}, metadata))
        draft.replace(path)  # whoever reads meanwhile sees the old file or the new one, never half of one
    except (OSError, SafetensorError) as error:
        draft.unlink(missing_ok=True)
        raise UserError(f"The model could not be saved to {path}: {_reason(error)}.") from None
    return path


class Opening:
    """How far opening is: memory is filled by so many parts of about a parameter's size each, COPIES of all parameters.
    Models that open within about a second report nothing."""

    def __init__(self, report: Report = unreported) -> None:
        self._report, self._done, self._total = report, 0, 0

    def begin(self, parameters: int, size: int) -> None:
        """A model of so many parameter tensors, of so many bytes in all."""
        self._total = COPIES * parameters if size >= MANY_BYTES else 0

    def filled(self, parts: int) -> None:
        self._done += parts
        if self._total:
            self._report(min(self._done, self._total), self._total)


def load(path: str | Path, opening: Opening | None = None) -> Checkpoint:
    """Read a checkpoint, or FILE_NAME in a folder; UserError with one sentence if it cannot be used."""
    path = Path(path)
    if path.is_dir():
        path = path / FILE_NAME
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise UserError(f"The model {path} cannot be read: {_reason(error)}.") from None
    # a safetensors file begins with the length of its head, which may look like a pickle's first bytes, and a brace
    if start[8:] != b"{" and (start[:1] == b"\x80" or start[:2] == b"PK"):
        raise UserError(f"{path} is a pickle, which may run code when opened; moeviz opens safetensors files only.")
    try:
        with safe_open(path, framework="pt") as file:
            return _read(path, file, opening or Opening())
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged or no safetensors file: {_reason(error)}.") from None


def _read(path: Path, file: Any, opening: Opening) -> Checkpoint:
    metadata = file.metadata() or {}
    if metadata.get("format") != FORMAT:
        raise UserError(f"{path} is not a model that moeviz has saved.")
    if metadata.get("version") != str(VERSION):
        raise UserError(f"{path} has format version {metadata.get('version')}; this moeviz reads version {VERSION}.")
    try:
        settings = Settings.from_json(metadata["settings"])
        vocabulary = _vocabulary(json.loads(metadata["vocabulary"]))
        step = int(metadata["step"])
    except (KeyError, ValueError, RecursionError, SettingsError) as error:
        raise UserError(f"{path} has settings that cannot be used: {_reason(error)}.") from None
    if not vocabulary or len(set(vocabulary)) != len(vocabulary) or step < 0:
        raise UserError(f"{path} has a vocabulary or step that cannot be used.")

    shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no iterator
    with_moments = any(name.startswith(_MEAN) for name in shapes)
    # compare sizes before anything is allocated: a file must not make us reserve what its settings claim
    expected = _expected_shapes(settings, len(vocabulary), with_moments)
    if settings.train.dense_twin == "on":
        model, found = (_part(some, prefix) for some, prefix in ((expected, _MODEL), (shapes, _TWIN)))
        expected |= {_TWIN + name: shape for name, shape in twin_shapes(model, found).items()}
    if shapes != expected:
        raise UserError(f"{path} does not fit its own settings: its tensors have other names or sizes.")
    parameters = [shape for name, shape in shapes.items() if name.startswith(_MODEL)]
    opening.begin(len(parameters), 4 * sum(map(math.prod, parameters)))
    tensors = {}
    for name in shapes:
        tensors[name] = file.get_tensor(name)
        opening.filled(name.startswith((_MODEL, _MEAN, _SQUARE)))
    for name, tensor in tensors.items():
        table = name.startswith(_STATE) and name.endswith(".table")
        wanted = torch.int64 if table or name in (_COUNTS, _TWIN + FLOPS) else torch.float32
        if tensor.dtype != wanted or not torch.isfinite(tensor).all():
            raise UserError(f"{path} is damaged: {name} holds values that are not finite, or of the wrong type.")
        if table and not ((tensor >= 0) & (tensor < settings.model.experts)).all():
            raise UserError(f"{path} is damaged: {name} names experts that there are not.")

    moments = _part(tensors, _MEAN), _part(tensors, _SQUARE), _part(tensors, _STEPS)
    model, state, twin = _part(tensors, _MODEL), _part(tensors, _STATE), _part(tensors, _TWIN)
    lineage = metadata.get("lineage") or began(settings, model)
    return Checkpoint(settings, vocabulary, step, model, state, *moments, tensors[_COUNTS], twin, lineage)


def _part(named: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}


def _vocabulary(value: Any) -> Vocabulary:
    """Characters, or a list of tokens; empty if it is neither."""
    if isinstance(value, list) and all(isinstance(token, str) for token in value):
        return tuple(value)
    return value if isinstance(value, str) else ""


def _expected_shapes(settings: Settings, vocabulary_size: int, with_moments: bool) -> dict[str, tuple[int, ...]]:
    with WithoutValues(lambda *shape: torch.zeros(()).expand(*shape)):  # takes no memory
        model = CharModel(settings, vocabulary_size)
    shapes: dict[str, tuple[int, ...]] = {_COUNTS: (settings.model.layers, model.layers[0].router.num_experts)}
    shapes.update({_STATE + name: tuple(tensor.shape) for name, tensor in state_of(model).items()})
    for name, parameter in model.named_parameters():
        shapes[_MODEL + name] = tuple(parameter.shape)
        if with_moments:
            shapes[_MEAN + name] = shapes[_SQUARE + name] = tuple(parameter.shape)
            shapes[_STEPS + name] = ()
    return shapes


class WithoutValues(TorchFunctionMode):
    """A model that is made meanwhile has no random start weights, but what `make` gives for their shape. The meta
    device would import torch._dynamo: 1 s."""

    def __init__(self, make: Callable[..., Tensor]) -> None:
        super().__init__()
        self._make = make

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.randn:
            return self._make(*args)
        if func is Tensor.mul:
            return args[0]
        return func(*args, **(kwargs or {}))


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text.strip().splitlines()[0].rstrip(".") if text.strip() else type(error).__name__
