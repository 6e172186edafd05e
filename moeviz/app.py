"""The composition root of the window: the only place that knows the view, the engine and the models at once."""

import os
import sys
import traceback
from pathlib import Path
from types import TracebackType

import platformdirs
from PySide6.QtCore import QSettings, QTimer
from PySide6.QtWidgets import QApplication

from moeviz.domain.messages import MakeSession, Session, StepLog
from moeviz.domain.routing import RoutingSnapshot
from moeviz.domain.settings import Settings
from moeviz.engine.mailbox import Mailbox
from moeviz.engine.runner import Runner
from moeviz.view.window import Window


def bundled_model(task: str) -> str | None:
    """The path of the trained model that comes with moeviz for a task, or None."""
    path = Path(__file__).parent / "models" / f"{task}.safetensors"
    return str(path) if path.is_file() else None


def make_session(settings: Settings, device: str, checkpoint: str | None) -> MakeSession:
    """A session that imports torch only when it is called, on the worker thread."""

    def make() -> Session:
        from moeviz.moe.training import session

        return session(settings, device=device, checkpoint=checkpoint)

    return make


def make_trace(path: str) -> MakeSession:
    """A trace as a session; zarr is imported on the worker thread."""

    def make() -> Session:
        from moeviz.trace.session import session

        return session(path)

    return make


def save_trace(
    path: str,
    settings: Settings,
    log: StepLog | None,
    snapshots: tuple[RoutingSnapshot, ...],
    marks: tuple[tuple[int, str], ...],
) -> str:
    """Write what the window kept of a run; called on a thread."""
    from moeviz.trace.store import TraceWriter

    with TraceWriter.create(path, settings.to_json(), "moeviz window") as writer:
        for snapshot in snapshots:
            writer.append(snapshot)
        if log is not None:
            writer.add_log(log)
        for step, label in marks:
            writer.add_mark(step, label)
    return f"Saved {len(snapshots)} steps to {path}."


def memory(path: Path | None = None) -> QSettings:
    """The window's memory. A broken file is set aside, so that a person can look at it, and a new one begun."""
    file = path or Path(platformdirs.user_config_dir("moeviz")) / "window.ini"
    found = QSettings(str(file), QSettings.Format.IniFormat)
    found.sync()
    if found.status() != QSettings.Status.NoError and file.exists():
        file.replace(file.with_suffix(".broken"))
        found = QSettings(str(file), QSettings.Format.IniFormat)
    return found


def devices() -> tuple[str, ...]:
    """What the machine may offer, told without importing torch; a choice that is not there is refused in words."""
    found = ["cpu"]
    if sys.platform == "darwin":
        found.append("mps")
    if Path("/proc/driver/nvidia/version").exists() or os.environ.get("CUDA_VISIBLE_DEVICES"):
        found.append("cuda")
    return tuple(found)


def make_window(
    settings: Settings | None = None,
    *,
    device: str = "cpu",
    checkpoint: str | None = None,
    store: QSettings | None = None,
) -> Window:
    """The whole window, not yet shown; without settings it begins with the bundled model."""
    if settings is None and checkpoint is None:
        checkpoint = bundled_model("text")
    return Window(
        Runner(Mailbox()),
        make_session,
        make_trace,
        save_trace,
        store or memory(),
        settings=settings or Settings(),
        device=device,
        devices=tuple(dict.fromkeys((*devices(), device))),
        checkpoint=checkpoint,
    )


def run_window(
    paths: list[str],
    *,
    task: str | None = None,
    settings_file: str | None = None,
    device: str = "cpu",
    seed: int | None = None,
) -> int:
    """Open the window and stay until it is closed."""
    settings = Settings.read(settings_file) if settings_file else None
    changed: dict[str, str | int] = {key: v for key, v in (("task", task), ("seed", seed)) if v is not None}
    models = [path for path in paths if path.endswith(".safetensors")]
    others = [path for path in paths if path not in models]
    if changed:
        settings = (settings or Settings()).with_values(changed)
    app = QApplication.instance() or QApplication(sys.argv[:1])
    assert isinstance(app, QApplication)
    app.setApplicationName("moeviz")
    window = make_window(settings, device=device, checkpoint=models[0] if models else None)
    sys.excepthook = lambda kind, error, trace: _show(window, kind, error, trace)
    window.show()
    traces = [path for path in others if (Path(path) / "zarr.json").is_file()]
    # a trace takes the place of the model from the start: a session that still imports torch cannot be closed
    QTimer.singleShot(0, (lambda: window.show_trace(traces[0])) if traces else window.start)
    for path in (path for path in others if path not in traces):
        QTimer.singleShot(0, lambda path=path: window.open_path(path))
    code = app.exec()
    if window.runner.alive:
        # closed while torch was still being imported: that cannot be interrupted, nothing of the user's is at stake,
        # and an interpreter that ends under such a thread aborts
        sys.stderr.flush()
        os._exit(code)
    return code


def _show(window: Window, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A defect in the window: said in the window, and on stderr."""
    details = "".join(traceback.format_exception(kind, error, trace))
    sys.stderr.write(details)
    window.tell(f"Something in moeviz went wrong: {error or kind.__name__}", details)
