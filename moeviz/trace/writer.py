"""Writes a trace while it happens: in chunks, each complete before the next begins."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import zarr

from moeviz.domain.messages import StepLog, UserError
from moeviz.domain.routing import Routing, RoutingSnapshot
from moeviz.trace.layout import ARRAYS, DTYPES, FILLS, FORMAT, KINDS, OPTIONAL, RESERVED, SIZES, VERSION, axes, node

CHUNK_STEPS, CHUNK_BYTES = 32, 1 << 22  # of the largest array
LOG_CHUNK = 1024  # of columns, which are small
FLUSH_SECONDS = 10.0  # a slow run loses no more than this
MIN_CHUNK = {"T": 128, "K": 2, "E": 8}  # a run that starts small may grow

Array = npt.NDArray[Any]


class TraceWriter:
    """Appends snapshots and steps to a new trace. UserError when the disk refuses; what was flushed before stays."""

    def __init__(self, path: Path, root: Any) -> None:
        self.path = path
        self._root = root
        self._names: tuple[str, ...] | None = None
        self._snapshots: list[RoutingSnapshot] = []
        self._logs: list[StepLog] = []
        self._marks: list[list[Any]] = []
        self._probes: dict[str, int] = {}
        self._lineages: dict[str, int] = {}
        self._arrays: dict[str, Any] = {}
        self._num_steps = self._log_steps = 0
        self._chunk_steps = CHUNK_STEPS
        self._flushed_at = time.monotonic()

    @classmethod
    def create(cls, path: str | Path, settings_json: str | None = None, source: str = "") -> Self:
        """A new, empty trace. UserError if something is there already or it cannot be made."""
        path = Path(path)
        if path.exists():
            raise UserError(f"{path} exists already; give another name for the trace or remove it.")
        attributes: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "settings": json.loads(settings_json) if settings_json else None,
            "source": source,
            "layers": [],
            "marks": [],
            "lineages": [],
            "num_steps": 0,
            "log_steps": 0,
        }
        with _disk(path):
            return cls(path, zarr.create_group(str(path), attributes=attributes))

    def append(self, snapshot: RoutingSnapshot) -> None:
        """Take one snapshot; the layers are the same throughout a trace, their sizes may change."""
        names = tuple(layer.name for layer in snapshot.layers)
        if self._names is None:
            self._names = names
            step_bytes = max((layer.num_tokens * layer.num_experts * 4 for layer in snapshot.layers), default=1)
            self._chunk_steps = int(np.clip(CHUNK_BYTES // max(step_bytes, 1), 1, CHUNK_STEPS))
        elif names != self._names:
            raise ValueError(f"a trace holds one model: its layers are {self._names}, not {names}")
        if len(snapshot.train_counts_LE) not in (0, len(names)):
            raise ValueError("train_counts_LE must be empty or hold one array a layer")
        self._snapshots.append(snapshot)
        self._flush_if_due()

    def add_log(self, log: StepLog) -> None:
        """Take the numbers of the steps since the last log."""
        if bad := set(log.scalars_S) & set(RESERVED):
            raise ValueError(f"a scalar cannot be called {bad.pop()!r}")
        self._logs.append(log)
        self._flush_if_due()

    def add_mark(self, step: int, label: str) -> None:
        """Note a change at a step, as in "k 2 → 4"."""
        self._marks.append([int(step), label])
        self._flush_if_due()

    def close(self) -> None:
        self.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _flush_if_due(self) -> None:
        full = (self._num_steps + len(self._snapshots)) % self._chunk_steps == 0 and self._snapshots
        if full or time.monotonic() - self._flushed_at > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is buffered; a reader sees it from then on."""
        with _disk(self.path):
            if self._snapshots:
                self._write_snapshots(self._snapshots)
            if self._logs:
                self._write_log(self._logs)
            self._root.attrs.update(
                {
                    "layers": list(self._names or ()),
                    "marks": self._marks,
                    "lineages": list(self._lineages),
                    "num_steps": self._num_steps + len(self._snapshots),
                    "log_steps": self._log_steps + sum(len(log.steps_S) for log in self._logs),
                }
            )
        self._num_steps += len(self._snapshots)
        self._log_steps += sum(len(log.steps_S) for log in self._logs)
        self._snapshots, self._logs = [], []
        self._flushed_at = time.monotonic()

    # ---- snapshots
    def _write_snapshots(self, snapshots: Sequence[RoutingSnapshot]) -> None:
        start = self._num_steps
        self._put("step", start, np.array([s.step for s in snapshots], np.int64), fill=-1)
        self._put("probe", start, np.array([self._probe(s) for s in snapshots], np.int64), fill=-1)
        lineages = [self._lineages.setdefault(s.lineage, len(self._lineages)) for s in snapshots]
        self._put("lineage", start, np.array(lineages, np.int64), fill=-1)
        for name in _names_of([s.scalars for s in snapshots]):
            values = np.array([s.scalars.get(name, np.nan) for s in snapshots], np.float64)
            self._put(f"scalars/{node(name)}", start, values, fill=np.nan, attributes={"name": name})
        for i in range(len(snapshots[0].layers)):
            rows = [_row(s.layers[i], s.train_counts_LE[i] if s.train_counts_LE else None) for s in snapshots]
            for name in (*SIZES, *KINDS):
                lost = -1 if name in KINDS else 0  # no value of theirs
                self._put(f"layers/{i}/{name}", start, np.array([row[name] for row in rows], np.int64), fill=lost)
            for name in ARRAYS:
                blocks = [row[name] for row in rows]
                if any(block is not None for block in blocks):
                    fill = FILLS.get(name, np.nan)
                    block = _padded(blocks, len(axes(name)), fill, DTYPES.get(name, "float32"))
                    self._put(
                        f"layers/{i}/{name}", start, block, fill=fill, axis_names=axes(name), chunk=self._chunk_steps
                    )

    def _probe(self, snapshot: RoutingSnapshot) -> int:
        """The number of the snapshot's probe, written down when it is new."""
        if snapshot.tokens is None and snapshot.domains is None:
            return -1
        tokens, domains = (None if v is None else list(v) for v in (snapshot.tokens, snapshot.domains))
        key = json.dumps([tokens, domains])
        if key not in self._probes:
            number = len(self._probes)
            self._root.require_group("probes").create_group(
                str(number), overwrite=True, attributes={"tokens": tokens, "domains": domains}
            )
            self._probes[key] = number
        return self._probes[key]

    # ---- the log
    def _write_log(self, logs: Sequence[StepLog]) -> None:
        start = self._log_steps
        steps = np.concatenate([log.steps_S for log in logs]).astype(np.int64)
        self._put("log/step", start, steps, fill=0)
        for name in _names_of([log.scalars_S for log in logs]):
            columns = [log.scalars_S.get(name, np.full(len(log.steps_S), np.nan)) for log in logs]
            values = np.concatenate(columns).astype(np.float64)
            self._put(f"log/{node(name)}", start, values, fill=np.nan, attributes={"name": name})
        for i in range(max(len(log.counts_SE) for log in logs)):
            width = max(log.counts_SE[i].shape[1] for log in logs if i < len(log.counts_SE))
            counts, row = np.full((len(steps), width), -1, np.int64), 0
            for log in logs:
                if i < len(log.counts_SE):
                    counts[row : row + len(log.steps_S), : log.counts_SE[i].shape[1]] = log.counts_SE[i]
                row += len(log.steps_S)
            self._put(f"log/counts/{i}", start, counts, fill=-1, axis_names="E", chunk=LOG_CHUNK)

    # ---- arrays
    def _put(
        self,
        name: str,
        start: int,
        block: Array,
        *,
        fill: Any,
        axis_names: str = "",
        chunk: int = LOG_CHUNK,
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        """Write a block (S', ...) at `start`, growing the array where the block is longer or wider."""
        array = self._arrays.get(name)
        if array is None:
            chunk_widths = [max(size, MIN_CHUNK[axis]) for size, axis in zip(block.shape[1:], axis_names, strict=True)]
            array = self._arrays[name] = self._root.create_array(
                name,
                shape=(start, *block.shape[1:]),
                chunks=(chunk, *chunk_widths),
                dtype=block.dtype,
                fill_value=fill,
                dimension_names=("S", *axis_names),
                attributes=dict(attributes or {}),
            )
        array.resize((start + len(block), *map(max, array.shape[1:], block.shape[1:])))
        array[(slice(start, start + len(block)), *map(slice, block.shape[1:]))] = block


def _row(layer: Routing, train_counts_E: Array | None) -> dict[str, Any]:
    """What is kept of one layer at one step, by the name of its array."""
    arrays: dict[str, Array | None] = {name: getattr(layer, name) for name in ARRAYS if name != "train_counts_E"}
    arrays["train_counts_E"] = train_counts_E
    sizes = {
        "num_tokens": layer.num_tokens,
        "k": layer.k,
        "num_experts": layer.num_experts,
        "assignments": int((layer.expert_ids_TK >= 0).sum()),
        "present": sum(1 << bit for bit, name in enumerate(OPTIONAL) if arrays[name] is not None),
    }
    return {**arrays, **sizes, **{name: int(getattr(layer, name)) for name in KINDS}}


def _padded(blocks: Sequence[Array | None], ndim: int, fill: Any, dtype: str) -> Array:
    """Blocks of different sizes as one array (S, ...), the widest size on each axis."""
    shapes = [block.shape for block in blocks if block is not None]
    widest = tuple(max(shape[axis] for shape in shapes) for axis in range(ndim))
    out = np.full((len(blocks), *widest), fill, dtype)
    for place, block in zip(out, blocks, strict=True):
        if block is not None:
            place[tuple(map(slice, block.shape))] = block
    return out


def _names_of(mappings: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for mapping in mappings for name in mapping))


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"The trace {path} cannot be written: {error.strerror or error}.") from None
