"""A recorded trace as a session: it shows what is in the file and trains nothing."""

from pathlib import Path
from typing import Any

from moeviz.domain.history import History
from moeviz.domain.messages import Report, Session, Update, UserError
from moeviz.domain.routing import RoutingSnapshot
from moeviz.domain.settings import Settings, SettingsError
from moeviz.trace.store import Trace, open_trace

FILM_BYTES = 256 * 2**20
FILM_STEPS = 256


def film_of(
    path: str | Path, report: Report = lambda done, total: None
) -> tuple[Trace, tuple[RoutingSnapshot, ...], int]:
    """The trace, every n-th of its snapshots and the last one, within FILM_STEPS and FILM_BYTES, and n. Raises
    UserError if it cannot be read."""
    trace = open_trace(path)
    if len(trace) == 0:
        raise UserError(f"{path} holds no step yet; open it again when its run has recorded one.")
    last = trace[-1]
    fit = max(1, min(FILM_STEPS, FILM_BYTES // max(1, _size(last))))
    stride = -(-len(trace) // fit)
    kept = sorted({*range(0, len(trace), stride), len(trace) - 1})
    film = []
    for done, i in enumerate(kept[:-1]):
        report(done, len(kept))
        film.append(trace[i])
    return trace, (*film, last), stride


def session(path: str | Path, report: Report = lambda done, total: None) -> Session:
    """Yield the whole trace, evenly thinned. Raises UserError if it cannot be read."""
    trace, film, stride = film_of(path, report)
    last = film[-1]
    past = History()  # thinned here: of a million steps that takes a second, too long for the window's thread
    for log in trace.log_parts:
        past.extend(log)
    notice = f"{path}: {len(trace):,} steps"
    notice += f", of which every {stride}th is shown." if stride > 1 else "."
    update = Update(
        last.step,
        _settings(trace.settings),
        None,
        last,
        reset=True,
        notice=notice,
        film=film,
        past=past,
        marks=tuple((int(step), str(label)) for step, label in trace.marks),
    )
    while True:
        yield update
        update = Update(
            last.step,
            _settings(trace.settings),
            None,
            last,
            paused=True,
            notice="A trace is a recording and cannot be changed; Restart trains a model with these knobs.",
        )


def _settings(values: dict[str, Any] | None) -> Settings:
    """The settings that the trace was made with; the defaults where another system made it."""
    try:
        return Settings().with_values(values or {})
    except SettingsError:
        return Settings()


def _size(snapshot: RoutingSnapshot) -> int:
    arrays = (
        array
        for r in snapshot.layers
        for array in (
            r.expert_ids_TK,
            r.gate_weights_TK,
            r.router_probs_TE,
            r.router_logits_TE,
            r.selection_scores_TE,
        )
        if array is not None
    )
    return sum(int(array.nbytes) for array in arrays)
