"""What the window and a running session say to each other. A session is a plain generator: it is sent one Command at a
time and yields an Update, or None when there is nothing to show. Whoever drives it decides when to send which.
"""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moeviz.domain.errors import DataError as DataError  # part of this conversation
from moeviz.domain.errors import UserError as UserError
from moeviz.domain.routing import RoutingSnapshot
from moeviz.domain.settings import Settings, Value
from moeviz.domain.survey import PARTS, Part, SurveyResult

if TYPE_CHECKING:
    from moeviz.domain.history import History


# ---- to the session
@dataclass(frozen=True, slots=True)
class Advance:
    """Train one step; `snapshot` asks for everything since the last one, copied to numpy."""

    snapshot: bool = True


@dataclass(frozen=True, slots=True)
class Show:
    """Yield an Update with a fresh snapshot, without training."""


@dataclass(frozen=True, slots=True)
class Survey:
    """Yield an Update with a survey of the model as it is, without training. `parts`: what it is to hold
    beside the snapshot."""

    parts: frozenset[Part] = PARTS


@dataclass(frozen=True, slots=True)
class Prepare:
    """Load what training needs beyond what the first picture needed, so that the first step need not wait for it. Of a
    model that was opened the Update's log then tells its measures at its step."""


@dataclass(frozen=True, slots=True)
class SetKnobs:
    """Change settings by dotted key. Live ones act on the next step; others rebuild the model and start anew."""

    values: Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class SetProbe:
    text: str


@dataclass(frozen=True, slots=True)
class Read:
    """Have the model read another text once; the probe stays. The Update's `read` is its routing."""

    text: str


@dataclass(frozen=True, slots=True)
class SetDevice:
    device: str


@dataclass(frozen=True, slots=True)
class Restart:
    """Start anew, with the seed of the settings."""


@dataclass(frozen=True, slots=True)
class SaveModel:
    path: str


@dataclass(frozen=True, slots=True)
class OpenModel:
    path: str


Command = Advance | Show | Survey | Prepare | SetKnobs | SetProbe | Read | SetDevice | Restart | SaveModel | OpenModel


# ---- from the session
@dataclass(frozen=True, eq=False, slots=True)
class StepLog:
    """Scalars and training-batch counts of the S steps since the last update.

    steps_S        step numbers, ascending
    scalars_S      arrays (S,) by name: "loss", "cross_entropy", "balance", "z", "heldout" (NaN where not measured).
                   With a dense twin also "flops" of training so far, "flops_per_token", "parameters" and
                   "active_parameters", and "heldout_gap_error", the standard error of heldout - dense_heldout;
                   "dense_" before a name: the twin's
    counts_SE      one array (S, E) a layer: assignments per expert in each training batch; empty where not known
    """

    steps_S: npt.NDArray[np.int64]
    scalars_S: Mapping[str, npt.NDArray[np.float64]]
    counts_SE: tuple[npt.NDArray[np.int64], ...]


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the status bar tells: parameters, FLOPs of one token's forward pass, and where the model runs.

    tokens_per_step   that are trained, without padding, as a mean
    executed_experts  experts that a token of the probe ran on average over the layers, after drops and without null
                      experts, where that varies by token; active parameters and FLOPs go by it. None: it is fixed.
    """

    total_parameters: int
    active_parameters: int
    flops_per_token: int
    device: str
    tokens_per_step: int
    executed_experts: float | None = None


@dataclass(frozen=True, eq=False, slots=True)
class Update:
    """News of a session.

    reset        the run began anew; history before it is of another model
    mark         a label for the time axes ("k 2 → 4") at this step
    notice       a sentence for the user
    paused       the session asks to be paused
    devices      those that this machine has, told once
    answers      the command that this answers, told by whoever drives the session; None for the first update
    survey       what `Survey` asked for
    read         what `Read` asked for, of the same step as `snapshot`
    film, past, marks  what a trace recorded: snapshots, the numbers of its steps, and marks, oldest first
    """

    step: int
    settings: Settings
    facts: ModelFacts | None
    snapshot: RoutingSnapshot | None = None
    log: StepLog | None = None
    reset: bool = False
    mark: str = ""
    notice: str = ""
    paused: bool = False
    survey: SurveyResult | None = None
    read: RoutingSnapshot | None = None
    saved: str = ""
    devices: tuple[str, ...] = ()
    film: tuple[RoutingSnapshot, ...] = ()
    past: "History | None" = None
    marks: tuple[tuple[int, str], ...] = ()
    timings: Mapping[str, float] = field(default_factory=dict)
    answers: Command | None = None


Session = Generator[Update | None, Command, None]
Report = Callable[[int, int], None]  # how much is done, and of how much; UserError once the user has cancelled


def unreported(done: int, total: int) -> None:
    """The Report of whoever does not want to know."""


MakeSession = Callable[[Report], Session]
