"""Opens a trace, finished or still being written, and reads one step at a time."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from moeviz.domain.messages import StepLog, UserError
from moeviz.domain.routing import Routing, RoutingSnapshot
from moeviz.trace.layout import FORMAT, KINDS, OPTIONAL, RESERVED, SIZES, VERSION, axes

MOST_BYTES = 4 << 30  # of one snapshot, of the log and of one chunk; a file can claim any size
MOST_EXPERTS = 1 << 16
KEPT_BYTES = 64 << 20  # of chunks that were read last
OF_A_RUN = "trace.zarr"  # in the folder that `moeviz train` writes
COLUMN_CHUNK = 1 << 16  # entries; moeviz writes a chunk of a column for every 1024

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class LayerInfo:
    """A layer of a trace; num_experts and k are the widest of the run."""

    name: str
    num_experts: int
    k: int


class Trace:
    """A sequence of RoutingSnapshots on disk. UserError where the files are damaged."""

    def __init__(self, path: Path, root: Any) -> None:
        attributes = root.attrs
        self.path = path
        made_with = attributes["settings"]
        self.settings: dict[str, Any] | None = made_with if isinstance(made_with, dict) else None
        self.source: str = attributes["source"]
        self.marks: list[tuple[int, str]] = [(int(step), str(label)) for step, label in attributes["marks"]]
        self.num_steps = int(attributes["num_steps"])
        self._root = root
        self._array = cache(lambda name: _checked(root[name]))
        self._log_steps = int(attributes["log_steps"])
        for name, size in (("step", self.num_steps), ("log/step", self._log_steps)):
            self._check_stored(name, size)
        columns = SIZES if attributes["version"] == 1 else (*SIZES, *KINDS)
        self._sizes = [
            {name: self._column(f"layers/{i}/{name}", self.num_steps) for name in columns}
            for i in range(len(attributes["layers"]))
        ]
        self.steps: Array = self._column("step", self.num_steps) if self.num_steps else np.zeros(0, np.int64)
        if (self.steps < 0).any():
            raise ValueError("step has lost some of its values")
        self._lineages = self._lineages_of(attributes.get("lineages"))
        self.layers: tuple[LayerInfo, ...] = tuple(
            LayerInfo(str(name), int(sizes["num_experts"].max(initial=0)), int(sizes["k"].max(initial=0)))
            for name, sizes in zip(attributes["layers"], self._sizes, strict=True)
        )
        if any(layer.num_experts > MOST_EXPERTS for layer in self.layers):
            raise ValueError(f"a layer claims more than {MOST_EXPERTS:,} experts")
        self._kept: dict[str, tuple[int, Array]] = {}  # of each array, a chunk and the step that it begins with
        self._read_probe = lru_cache(maxsize=16)(self._probe)

    def __len__(self) -> int:
        return self.num_steps

    def __iter__(self) -> Iterator[RoutingSnapshot]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> RoutingSnapshot:
        """The snapshot at a position, 0 to num_steps - 1; negative counts from the end."""
        at = range(self.num_steps)[index]  # IndexError as of any sequence
        with _Reading(self.path):
            _refuse_above(sum(map(int, self._bytes(at))), f"step {at}")
            tokens, domains = self._read_probe(int(self._array("probe")[at]))
            layers = tuple(self._layer(i, at) for i in range(len(self.layers)))
            if any(texts is not None and len(texts) != r.num_tokens for texts in (tokens, domains) for r in layers):
                raise ValueError("a probe has another number of tokens than a layer has routed")
            counts = tuple(self._train_counts(i, at) for i in range(len(self.layers)))
            return RoutingSnapshot(
                int(self.steps[at]),
                layers,
                tokens,
                domains,
                {name: float(column[at]) for name, column in self._scalars.items() if not np.isnan(column[at])},
                tuple(c for c in counts if c is not None),
                self._lineages[at],
            )

    @cached_property
    def log(self) -> StepLog | None:
        """Every step of the run; counts are -1 for experts that a step did not have. None if no step was logged."""
        if not self._log_steps:
            return None
        with _Reading(self.path):
            group, size = self._root["log"], self._log_steps
            arrays = {name: _checked(array) for name, array in group.arrays() if name not in RESERVED}
            scalars = {array.attrs["name"]: _filled(array, size, np.nan) for array in arrays.values()}
            counts = [_checked(group["counts"][str(i)]) for i in range(len(list(group.get("counts", {}))))]
            _refuse_above(size * 8 * (len(arrays) + sum(array.shape[1] for array in counts)), "the log")
            counts_SE = [_filled(array, size, -1) for array in counts]
            return StepLog(self._column("log/step", size), scalars, tuple(counts_SE))

    @property
    def log_parts(self) -> list[StepLog]:
        """The log in stretches of one size each, so that no count is padding."""
        log = self.log
        if log is None:
            return []
        widths = np.stack([np.zeros_like(log.steps_S), *((counts >= 0).sum(axis=1) for counts in log.counts_SE)])
        cuts = np.flatnonzero((widths[:, 1:] != widths[:, :-1]).any(axis=0)) + 1
        edges = [0, *cuts.tolist(), len(log.steps_S)]
        return [
            StepLog(
                log.steps_S[a:b],
                {name: values[a:b] for name, values in log.scalars_S.items()},
                tuple(counts[a:b, : widths[i + 1, a]] for i, counts in enumerate(log.counts_SE)),
            )
            for a, b in pairwise(edges)
        ]

    # ---- one step
    def _layer(self, i: int, at: int) -> Routing:
        sizes = {name: int(column[at]) for name, column in self._sizes[i].items()}
        width = {"T": sizes["num_tokens"], "K": sizes["k"], "E": sizes["num_experts"]}

        def read(name: str) -> Array | None:
            if name in OPTIONAL and not sizes["present"] >> OPTIONAL.index(name) & 1:
                return None
            block = self._row(f"layers/{i}/{name}", at)[tuple(slice(width[axis]) for axis in axes(name))]
            if block.shape != tuple(width[axis] for axis in axes(name)):
                raise ValueError(f"{name} is too small")
            return block

        ids = read("expert_ids_TK")
        if ids is None or (ids >= 0).sum() != sizes["assignments"] or (ids >= sizes["num_experts"]).any():
            raise ValueError("expert_ids_TK has lost some of its values")
        optional: dict[str, Any] = {name: read(name) for name in OPTIONAL if name != "train_counts_E"}
        kinds = {name: sizes.get(name, 0) for name in KINDS}
        if min(kinds.values()) < 0 or kinds["num_null"] > sizes["num_experts"]:
            raise ValueError(f"{', '.join(KINDS)} have lost some of their values")
        return Routing(
            self.layers[i].name,
            sizes["num_experts"],
            ids.astype(np.int64),
            **optional,
            num_null=kinds["num_null"],
            looks_ahead=bool(kinds["looks_ahead"]),
            soft=bool(kinds["soft"]),
        )

    def _train_counts(self, i: int, at: int) -> Array | None:
        if not int(self._sizes[i]["present"][at]) >> OPTIONAL.index("train_counts_E") & 1:
            return None
        counts = self._row(f"layers/{i}/train_counts_E", at)
        return counts[counts >= 0]

    def _row(self, name: str, at: int) -> Array:
        """Of one step. Reading it decodes a chunk of many steps, so the last chunk of each array is kept, if small."""
        array = self._array(name)
        steps = array.chunks[0]
        if steps * math.prod(array.shape[1:]) * array.dtype.itemsize * len(OPTIONAL) * len(self._sizes) > KEPT_BYTES:
            alone: Array = array[at]
            return alone
        first = at - at % steps
        if name not in self._kept or self._kept[name][0] != first:
            self._kept[name] = first, array[first : first + steps]
        row: Array = self._kept[name][1][at - first].copy()  # a snapshot is not to hold the whole chunk
        return row

    def _probe(self, number: int) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
        if number < 0:
            return None, None
        attributes = self._root[f"probes/{number}"].attrs
        tokens, domains = (attributes[name] for name in ("tokens", "domains"))
        for texts in (tokens, domains):
            if texts is not None and not (isinstance(texts, list) and all(isinstance(text, str) for text in texts)):
                raise ValueError("a probe holds something else than texts")
        return tokens if tokens is None else tuple(tokens), domains if domains is None else tuple(domains)

    def _lineages_of(self, names: Any) -> list[str]:
        """Of each step; unknown in traces from before there were any."""
        if names is None or not self.num_steps:
            return [""] * self.num_steps
        numbers = self._column("lineage", self.num_steps).tolist()
        if min(numbers) < 0 or max(numbers) >= len(names):
            raise ValueError("lineage has lost some of its values")
        return [str(names[number]) for number in numbers]

    # ---- sizes, before memory is taken for them
    def _check_stored(self, name: str, size: int) -> None:
        """No step's number is the value that stands for one that was not written, so each chunk is a file."""
        if size < 0:
            raise ValueError(f"it claims {size} steps")
        if not size:
            return
        array = self._array(name)
        if array.chunks[0] > COLUMN_CHUNK or array.nchunks_initialized * array.chunks[0] < size:
            raise ValueError(f"it claims {size:,} steps, but {name} holds fewer")

    def _bytes(self, at: int) -> Iterator[int]:
        """What the arrays of a snapshot claim to take, layer by layer."""
        for sizes in self._sizes:
            tokens, k, experts = (int(sizes[name][at]) for name in ("num_tokens", "k", "num_experts"))
            if min(tokens, k, experts) < 0:
                raise ValueError("a size is negative")
            yield tokens * (8 + k * 13 + experts * 12)

    # ---- columns
    @cached_property
    def _scalars(self) -> Mapping[str, Array]:
        if "scalars" not in self._root:
            return {}
        arrays = [_checked(array) for _, array in self._root["scalars"].arrays()]
        return {array.attrs["name"]: _filled(array, self.num_steps, np.nan) for array in arrays}

    def _column(self, name: str, size: int) -> Array:
        column: Array = self._array(name)[:size]
        if len(column) < size:
            raise ValueError(f"{name} is too short")
        return column


def open_trace(path: str | Path) -> Trace:
    """Open a trace, or the one in a run's folder. UserError with one sentence if it is missing, of another kind, or
    damaged."""
    path = Path(path)
    if (path / OF_A_RUN / "zarr.json").is_file() and not (path / "zarr.json").exists():
        path = path / OF_A_RUN
    if not path.exists():
        raise UserError(f"There is no trace {path}; check the path.")
    if not (path / "zarr.json").is_file():
        raise UserError(f"{path} is not a trace: a trace is a folder that holds a zarr.json.")
    with _Reading(path):
        root = zarr.open_group(str(path), mode="r")
        if root.attrs.get("format") != FORMAT:
            raise UserError(f"{path} is a Zarr group, but not a trace that moeviz wrote.")
        if root.attrs.get("version") not in range(1, VERSION + 1):
            raise UserError(
                f"{path} has trace version {root.attrs.get('version')}, and this moeviz reads versions 1 to {VERSION}; "
                "open it with the moeviz that wrote it."
            )
        return Trace(path, root)


def _checked(array: Any) -> Any:
    """An array whose single chunk fits into memory; reading any part of it takes whole chunks."""
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{array.name} holds something else than numbers")
    _refuse_above(math.prod(array.shards or array.chunks) * array.dtype.itemsize, f"a chunk of {array.name}")
    return array


def _refuse_above(size: int, what: str) -> None:
    if size > MOST_BYTES:
        raise ValueError(f"{what} claims {size / 2**30:,.0f} GiB; at most {MOST_BYTES >> 30} can be opened")


def _filled(array: Any, size: int, fill: Any) -> Array:
    """The first `size` rows; an array that stopped growing earlier is filled up."""
    rows: Array = array[:size]
    if len(rows) == size:
        return rows
    out = np.full((size, *rows.shape[1:]), fill, rows.dtype)
    out[: len(rows)] = rows
    return out


class _Reading:
    """Turns whatever a damaged file makes zarr raise into one sentence."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, UserError):
            reason = str(error).strip().splitlines()
            what = f"{type(error).__name__}: {reason[0].rstrip('.')}" if reason else type(error).__name__
            raise UserError(f"The trace {self._path} is damaged or incomplete ({what}); record it again.") from error
