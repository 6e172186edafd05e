"""The history of a run in bounded memory: when full, every second point goes and from then on half as many are kept."""

from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from moeviz.domain.messages import StepLog
from moeviz.domain.routing import RoutingSnapshot
from moeviz.domain.survey import Part, SurveyResult

MAX_POINTS = 2048
MAX_SNAPSHOTS = 256
SURVEY_BYTES, FEWEST_SURVEYS, MOST_SURVEYS = 64_000_000, 8, 256  # of all kept surveys, as large as the newest
BLOCK = 4096  # rows of a long log looked at together
Kept = TypeVar("Kept")
SPARSE = "heldout"  # measured at few steps: its points are kept when their neighbours are thinned


class History:
    """Scalars and counts of the training batches, marks, a thinned film of snapshots, and thinned surveys."""

    def __init__(self) -> None:
        self.revision = 0  # never used twice: whoever has seen it has seen all
        self.clear()

    def clear(self) -> None:
        self._steps: list[int] = []
        self._scalars: dict[str, list[float]] = {}
        self._counts: list[tuple[npt.NDArray[np.int32], ...]] = []  # one array (E,) a layer
        self._stride = 1
        self._seen = 0
        self.marks: list[tuple[int, str]] = []
        self.snapshots: list[RoutingSnapshot] = []
        self._film, self._survey_film = _Film(), _Film()
        self._surveys: list[SurveyResult] = []
        self._newest_survey: tuple[SurveyResult, ...] = ()  # which a thinned run may not keep
        self.revision += 1

    # ---- writing
    def extend(self, log: StepLog) -> None:
        """Take the steps of one log; points between two kept ones are dropped, held-out measurements never are."""
        row = 0
        while row < len(log.steps_S):
            stride, end = self._stride, min(row + BLOCK, len(log.steps_S))
            for kept in self._due(log, row, end):
                self._append(int(log.steps_S[kept]), log, kept)
                if self._stride != stride:  # it was full: fewer are due from here on
                    end = kept + 1
                    break
            self._seen += end - row
            row = end
        self.revision += 1

    def begin_with(self, past: "History") -> None:
        """Take the steps of another history, as they are kept there; without a loop over them."""
        self._steps, self._counts = list(past._steps), list(past._counts)
        self._scalars = {name: list(column) for name, column in past._scalars.items()}
        self._stride, self._seen = past._stride, past._seen
        self.revision += 1

    def _due(self, log: StepLog, row: int, end: int) -> list[int]:
        """The rows to keep between two."""
        due = (self._seen + np.arange(end - row)) % self._stride == 0
        if SPARSE in log.scalars_S:
            due |= np.isfinite(log.scalars_S[SPARSE][row:end])
        return [row + int(at) for at in np.flatnonzero(due)]

    def _append(self, step: int, log: StepLog, row: int) -> None:
        for name, values in log.scalars_S.items():
            # a scalar that appears late gets NaN for the steps before it
            self._scalars.setdefault(name, [float("nan")] * len(self._steps)).append(float(values[row]))
        for name, column in self._scalars.items():
            if name not in log.scalars_S:
                column.append(float("nan"))
        self._steps.append(step)
        self._counts.append(tuple(counts[row].astype(np.int32) for counts in log.counts_SE))
        if len(self._steps) > MAX_POINTS:
            self._thin()

    def _thin(self) -> None:
        held = self._scalars.get(SPARSE)
        keep = [i for i in range(len(self._steps)) if i % 2 == 0 or (held is not None and np.isfinite(held[i]))]
        if len(keep) > MAX_POINTS * 3 // 4:  # a run measured at nearly every step must be bounded too
            keep = list(range(0, len(self._steps), 2))
        self._steps = [self._steps[i] for i in keep]
        self._counts = [self._counts[i] for i in keep]
        self._scalars = {name: [column[i] for i in keep] for name, column in self._scalars.items()}
        self._stride *= 2

    def add_snapshot(self, snapshot: RoutingSnapshot) -> None:
        self.snapshots = self._film.add(self.snapshots, snapshot, MAX_SNAPSHOTS)

    def add_survey(self, survey: SurveyResult) -> None:
        self._newest_survey = (survey,)
        last = self._surveys[-1] if self._surveys else None
        same = last is not None and last.step == survey.step and _alike(last.probe, survey.probe)
        if last is not None and same and last.parts <= survey.parts:  # a knob is turned while the run rests
            self._surveys[-1] = survey
            return
        most = min(MOST_SURVEYS, max(FEWEST_SURVEYS, SURVEY_BYTES // _size(survey)))
        self._surveys = self._survey_film.add(self._surveys, survey, most)

    def add_mark(self, step: int, label: str) -> None:
        self.marks.append((step, label))
        self.revision += 1

    # ---- reading
    def survey_at(self, shown: RoutingSnapshot, parts: Iterable[Part]) -> SurveyResult | None:
        """Of the kept surveys that have these parts, the last that is not later than a snapshot, and of its own step
        one with as many experts and choices; else the first."""
        known = (*self._surveys, *(new for new in self._newest_survey if new not in self._surveys[-1:]))
        fit = [survey for survey in known if survey.parts.issuperset(parts)]
        before = [survey for survey in fit if survey.step <= shown.step]
        own = [survey for survey in before if survey.step == shown.step and _alike(survey.probe, shown)]
        return next((found[at] for found, at in ((own, -1), (before, -1), (fit, 0)) if found), None)

    @property
    def steps(self) -> npt.NDArray[np.int64]:
        return np.asarray(self._steps, dtype=np.int64)

    @property
    def scalar_names(self) -> tuple[str, ...]:
        return tuple(self._scalars)

    def scalar(self, name: str) -> npt.NDArray[np.float64]:
        """Values (n,) of one scalar beside `steps`; NaN where it was not measured."""
        return np.asarray(self._scalars.get(name, [float("nan")] * len(self._steps)), dtype=np.float64)

    @property
    def seen(self) -> int:
        """How many steps there were; of a long run fewer are kept."""
        return self._seen

    def load_share(self, layer: int) -> npt.NDArray[np.float32]:
        """Load share (n, E) of one layer's training batches; NaN for experts that did not exist at that step, zeros
        where nothing was routed."""
        rows = [counts[layer] if layer < len(counts) else np.empty(0, np.int32) for counts in self._counts]
        if len({row.size for row in rows}) == 1:
            out = np.concatenate(rows).reshape(len(rows), -1).astype(np.float32)
        else:
            out = np.full((len(rows), max((r.size for r in rows), default=0)), np.nan, dtype=np.float32)
            for line, row in zip(out, rows, strict=True):
                line[: row.size] = row
        shares: npt.NDArray[np.float32] = out / np.maximum(np.nansum(out, axis=1, keepdims=True), np.float32(1))
        return shares

    def recent_counts(self, layer: int, points: int) -> npt.NDArray[np.int64]:
        """Assignments per expert (E,) of one layer, summed over the last kept points, at most so many; those before a
        change of the number of experts are left out. Empty where there are none."""
        rows = [counts[layer] for counts in self._counts[-points:] if layer < len(counts)]
        if not rows:
            return np.zeros(0, np.int64)
        total: npt.NDArray[np.int64] = np.sum(
            [row for row in rows if row.size == rows[-1].size], axis=0, dtype=np.int64
        )
        return total

    def logs(self) -> list[StepLog]:
        """What is kept as logs, one a stretch of steps with the same numbers of experts, as a trace takes them."""
        sizes = [tuple(counts.size for counts in row) for row in self._counts]
        edges = [0, *(i for i in range(1, len(sizes)) if sizes[i] != sizes[i - 1]), len(sizes)] if sizes else []
        scalars = {name: self.scalar(name) for name in self.scalar_names}
        return [
            StepLog(
                self.steps[a:b],
                {name: values[a:b] for name, values in scalars.items()},
                tuple(np.stack(layer).astype(np.int64) for layer in zip(*self._counts[a:b], strict=True)),
            )
            for a, b in pairwise(edges)
        ]


class _Film:
    """Which of all that comes is kept: what is evenly spread over the run."""

    def __init__(self) -> None:
        self._stride, self._seen = 1, 0

    def add(self, kept: list[Kept], one: Kept, most: int) -> list[Kept]:
        """What is kept from now on, at most so many."""
        if self._seen % self._stride == 0:
            kept.append(one)
            if len(kept) > most:
                kept, self._stride = kept[::2], 2 * self._stride
        self._seen += 1
        return kept


def _alike(a: RoutingSnapshot, b: RoutingSnapshot) -> bool:
    """Whether as many experts are chosen of as many in each layer."""
    sizes = [[(routing.num_experts, routing.k) for routing in snapshot.layers] for snapshot in (a, b)]
    return sizes[0] == sizes[1]


def _size(data: object) -> int:
    """Bytes of all arrays in nested data classes and tuples, at least 1."""
    if isinstance(data, np.ndarray):
        return data.nbytes
    if is_dataclass(data):
        return max(1, sum(_size(getattr(data, field.name)) for field in fields(data)))
    return sum(map(_size, data)) if isinstance(data, tuple) and data and not isinstance(data[0], str) else 0
