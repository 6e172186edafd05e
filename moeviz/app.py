"""The composition root of the window: the only place that knows the view, the engine and the models at once."""

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import platformdirs
from PySide6.QtCore import QSettings

from moeviz.domain.kinds import kind_of
from moeviz.domain.messages import MakeSession, Report, Session, StepLog
from moeviz.domain.routing import RoutingSnapshot
from moeviz.domain.settings import Settings
from moeviz.engine.mailbox import Mailbox
from moeviz.engine.runner import Runner
from moeviz.keeper import Keeper
from moeviz.view.controls import Controls
from moeviz.view.dashboard import make_panels
from moeviz.view.memory import memory
from moeviz.view.panel import Panel
from moeviz.view.theme import remembered
from moeviz.view.window import Window

Parts = tuple[dict[str, Panel], Controls]


def bundled_model(task: str) -> str | None:
    """The path of the trained model that comes with moeviz for a task, or None."""
    path = Path(__file__).parent / "models" / f"{task}.safetensors"
    return str(path) if path.is_file() else None


def make_session(settings: Settings, device: str, checkpoint: str | None) -> MakeSession:
    """A session that imports torch only when it is called, on the worker thread."""

    def make(report: Report) -> Session:
        from moeviz.moe.importing import import_torch

        import_torch()
        from moeviz.moe.training import session

        return session(settings, device=device, checkpoint=checkpoint, report=report)

    return make


def make_trace(path: str) -> MakeSession:
    """A trace as a session; zarr is imported on the worker thread."""

    def make(report: Report) -> Session:
        from moeviz.trace.session import session

        return session(path, report)

    return make


def save_trace(
    path: str,
    settings: Settings,
    logs: Sequence[StepLog],
    snapshots: tuple[RoutingSnapshot, ...],
    marks: tuple[tuple[int, str], ...],
    report: Report,
) -> str:
    """Write what the window kept of a run; called on a thread. What was written before a failure is taken away."""
    from moeviz.trace.store import TraceWriter

    writer = TraceWriter.create(path, settings.to_json(), "moeviz window")
    try:
        for done, snapshot in enumerate(snapshots):
            report(done, len(snapshots))
            writer.append(snapshot)
        for log in logs:
            writer.add_log(log)
        for step, label in marks:
            writer.add_mark(step, label)
        writer.close()
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise
    steps = sum(len(log.steps_S) for log in logs)
    return f"Saved {len(snapshots):,} snapshots and the numbers of {steps:,} steps to {path}."


def read_file(path: str, text: str, task: str, report: Report) -> tuple[RoutingSnapshot, ...]:
    """What a trace holds, evenly thinned, oldest first; or what the model of a file does with a text of a task. Called
    on a thread."""
    if kind_of(path) == "trace":
        from moeviz.trace.session import film_of

        return film_of(path, report)[1]
    from moeviz.moe.importing import import_torch

    import_torch()
    from moeviz.moe.training import read_checkpoint

    return (read_checkpoint(path, text, task, report),)


def make_window(
    settings: Settings | None = None,
    *,
    device: str = "cpu",
    checkpoint: str | None = None,
    store: QSettings | None = None,
    runs: Path | None = None,
    parts: Parts | None = None,
) -> Window:
    """The whole window, not yet shown; without settings it begins with the bundled model. `runs`: a folder of its own
    for what it keeps of a run while it trains. `parts`: what of it is made already, since that takes long; who makes it
    piece by piece puts the theme on it too."""
    if settings is None and checkpoint is None:
        checkpoint = bundled_model("text")
    store = store or memory()
    made = parts or (make_panels(remembered(store)), Controls())
    window = Window(
        Runner(Mailbox()),
        make_session,
        make_trace,
        bundled_model,
        save_trace,
        read_file,
        Keeper(runs or Path(platformdirs.user_state_dir("moeviz")) / "runs"),
        store,
        *made,
        settings=settings or Settings(),
        device=device,
        checkpoint=checkpoint,
    )
    if parts is None:
        window.set_theme(window.theme.name)
    return window


def open_window(
    paths: list[str],
    *,
    task: str | None = None,
    settings_file: str | None = None,
    device: str = "cpu",
    seed: int | None = None,
    store: QSettings | None = None,
    parts: Parts | None = None,
) -> tuple[Window, Callable[[], None]]:
    """The window as the command line asks for it, and what begins to load what it shows. Call that when the window has
    been painted: painting looks for symbols, and waits while another thread links torch."""
    settings = Settings.read(settings_file) if settings_file else None
    changed: dict[str, str | int] = {key: v for key, v in (("task", task), ("seed", seed)) if v is not None}
    if changed:
        settings = (settings or Settings()).with_values(changed)
    checkpoint = bundled_model(task) if task and not (paths or settings_file or seed is not None) else None
    window = make_window(settings, device=device, checkpoint=checkpoint, store=store, parts=parts)
    return window, partial(window.begin, paths, changed)
