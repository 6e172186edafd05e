"""Files in the window: own text of every kind, several paths, traces and models while torch is still loading."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from PySide6.QtCore import QMimeData, QPointF, QSettings, Qt, QUrl
from PySide6.QtGui import QDropEvent
from PySide6.QtWidgets import QFileDialog
from pytestqt.qtbot import QtBot
from test_panels import make_snapshot
from test_window import SMALL, WAIT, action, settled, shown, train, turn

from moeviz import app
from moeviz.domain.kinds import kind_of
from moeviz.domain.messages import MakeSession, Report, Session, UserError
from moeviz.domain.settings import Settings
from moeviz.engine.mailbox import Told
from moeviz.keeper import Keeper
from moeviz.view.controls import PathLine
from moeviz.view.files import Opening, sort_paths
from moeviz.view.memory import last_folder
from moeviz.view.window import Window

ENOUGH = "The quick brown fox jumps over the lazy dog.\n" * 200


@pytest.fixture
def empty(qtbot: QtBot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built_in_text: object) -> Iterator[Window]:
    """A window before anything was started."""
    monkeypatch.setattr("moeviz.moe.training.load_text", built_in_text)
    window = app.make_window(
        SMALL, store=QSettings(str(tmp_path / "window.ini"), QSettings.Format.IniFormat), runs=tmp_path / "runs"
    )
    qtbot.addWidget(window)
    window.resize(1280, 720)
    window.show()
    yield window
    window.close()
    assert not window.runner.alive


@pytest.fixture
def window(qtbot: QtBot, empty: Window) -> Window:
    empty.begin([])
    qtbot.waitUntil(lambda: empty.snapshot is not None, timeout=WAIT)
    return empty


@pytest.fixture
def trace(tmp_path: Path) -> str:
    path = tmp_path / "run.zarr"
    snapshots = tuple(make_snapshot(step=step) for step in range(0, 30, 10))
    app.save_trace(str(path), SMALL, (), snapshots, ((10, "k 2 → 4"),), lambda done, total: None)
    return str(path)


@pytest.fixture
def model(tmp_path: Path) -> str:
    from moeviz.domain.messages import Advance, SaveModel

    path = tmp_path / "small.safetensors"
    session = app.make_session(SMALL, "cpu", None)(lambda done, total: None)
    next(session)
    for command in (*[Advance(False)] * 3, SaveModel(str(path))):
        session.send(command)
    session.close()
    return str(path)


def drop(window: Window, *paths: Path | str) -> None:
    data = QMimeData()
    data.setUrls([QUrl.fromLocalFile(str(path)) for path in paths])
    actions, buttons, keys = Qt.DropAction.CopyAction, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier
    window.dropEvent(QDropEvent(QPointF(9, 9), actions, data, buttons, keys))


def told(window: Window) -> str:
    return window.notices.words.text() if not window.notices.isHidden() else ""


# ---- what a path is
def test_paths_are_told_apart(tmp_path: Path, trace: str) -> None:
    (tmp_path / "s.json").write_text("{}")
    (tmp_path / "corpus.json").write_text(" " * 200_000)
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "model.safetensors").touch()
    (tmp_path / "texts").mkdir()
    names = ["run.zarr", "s.json", "corpus.json", "saved", "texts", "gone.zarr", "gone.safetensors", "gone.txt"]
    kinds = ["trace", "settings", "text", "model", "text", "trace", "model", "text"]
    assert [kind_of(str(tmp_path / name)) for name in names] == kinds


def test_of_several_paths_one_is_shown_and_the_rest_explained(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text("{}")
    settings = str(tmp_path / "s.json")
    assert sort_paths([]) == Opening()
    assert sort_paths([settings, "a.txt"]) == Opening(settings=settings, text="a.txt")
    assert sort_paths(["a.txt", settings, "folder", "x/b.txt"]) == Opening(
        settings=settings, text=os.pathsep.join(["a.txt", "folder", "x/b.txt"])
    )
    (tmp_path / "t.json").write_text("{}")
    assert sort_paths([settings, str(tmp_path / "t.json")]) == Opening(
        settings=settings, left_out="Left out: t.json; one settings file is used."
    )
    both = sort_paths(["a.txt", "m.safetensors", "r.zarr", settings])
    assert both.shown == "m.safetensors"
    assert both.settings == both.text == ""
    assert both.left_out == "Left out: a.txt, r.zarr, s.json; one trace or model is shown, here m.safetensors."


# ---- the command line
def test_a_trace_on_the_command_line(qtbot: QtBot, empty: Window, trace: str, model: str) -> None:
    empty.begin([trace, model])
    qtbot.waitUntil(lambda: empty.of_trace, timeout=WAIT)
    qtbot.waitUntil(settled(empty), timeout=WAIT)
    assert empty.snapshot is not None
    assert empty.snapshot.step == 20
    assert "3 steps" in told(empty)
    assert "Left out: small.safetensors" in told(empty)
    assert empty.status.labels["state"].text() == "Trace"
    assert not any("Loading" in label.text() for label in empty.status.labels.values())


def test_a_model_on_the_command_line(qtbot: QtBot, empty: Window, model: str) -> None:
    empty.begin([model])
    qtbot.waitUntil(lambda: empty.snapshot is not None, timeout=WAIT)
    assert empty.snapshot is not None
    assert empty.snapshot.step == 3
    train(qtbot, empty, 2)


def test_settings_and_text_on_the_command_line(qtbot: QtBot, empty: Window, tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(SMALL.with_values({"routing.k": 3}).to_json())
    (tmp_path / "own.txt").write_text(ENOUGH)
    (tmp_path / "other.txt").write_text(ENOUGH.upper())
    empty.begin([str(tmp_path / name) for name in ("own.txt", "s.json", "other.txt")])
    qtbot.waitUntil(lambda: empty.snapshot is not None, timeout=WAIT)
    both = os.pathsep.join([str(tmp_path / "own.txt"), str(tmp_path / "other.txt")])
    assert (empty.settings.routing.k, empty.settings.data.path) == (3, both)
    assert shown(empty, "routing.k") == 3
    assert told(empty) == ""
    assert {"fox", "FOX"} <= set(empty.bar.probe_line.text().replace("↵", " ").split())


def test_after_an_empty_text_on_the_command_line_restart_takes_the_built_in_data(
    qtbot: QtBot, empty: Window, tmp_path: Path
) -> None:
    (tmp_path / "empty.txt").write_text("")
    empty.begin([str(tmp_path / "empty.txt")])
    qtbot.waitUntil(lambda: "Press Restart to start with the built-in data." in told(empty), timeout=WAIT)
    assert empty.settings.data.path == ""
    empty.restart_action.trigger()
    assert told(empty) == ""
    qtbot.waitUntil(lambda: empty.snapshot is not None, timeout=WAIT)
    assert empty.status.labels["state"].text() == "Paused"


def test_a_device_that_is_not_there_leaves_the_text_on_the_command_line(qtbot: QtBot, tmp_path: Path) -> None:
    """Another device is all that it takes."""
    (tmp_path / "own.txt").write_text(ENOUGH)
    store = QSettings(str(tmp_path / "window.ini"), QSettings.Format.IniFormat)
    window = app.make_window(SMALL, device="cuda:77", store=store, runs=tmp_path / "runs")
    qtbot.addWidget(window)
    window.show()
    window.begin([str(tmp_path / "own.txt")])
    qtbot.waitUntil(lambda: "no device 'cuda:77'" in told(window), timeout=WAIT)
    assert "Press Restart to start it anew." in told(window)
    assert window.settings.data.path == str(tmp_path / "own.txt")
    window.bar.device_box.setCurrentText("cpu")
    window.restart_action.trigger()
    qtbot.waitUntil(lambda: window.snapshot is not None, timeout=WAIT)
    assert "fox" in window.bar.probe_line.text()
    window.close()


def test_bad_settings_on_the_command_line_are_told_and_the_model_comes(
    qtbot: QtBot, empty: Window, tmp_path: Path
) -> None:
    (tmp_path / "s.json").write_text('{"routing.k": 99}')
    empty.begin([str(tmp_path / "s.json")])
    qtbot.waitUntil(lambda: empty.snapshot is not None, timeout=WAIT)
    assert "routing.k is 99" in told(empty)
    assert empty.settings == SMALL


@pytest.mark.parametrize("name", ["gone.safetensors", "gone.zarr"])
def test_a_missing_file_on_the_command_line_is_told(qtbot: QtBot, empty: Window, tmp_path: Path, name: str) -> None:
    empty.begin([str(tmp_path / name)])
    qtbot.waitUntil(lambda: name in told(empty), timeout=WAIT)
    qtbot.waitUntil(settled(empty), timeout=WAIT)
    assert "Press Restart" in told(empty)
    assert empty.status.labels["state"].text() == "Failed"
    empty.restart_action.trigger()
    assert empty.status.labels["state"].text() == "Loading the model…"
    qtbot.waitUntil(lambda: empty.snapshot is not None, timeout=WAIT)
    train(qtbot, empty, 2)


def test_the_command_line_reaches_the_window(qtbot: QtBot, tmp_path: Path, trace: str) -> None:
    store = QSettings(str(tmp_path / "window.ini"), QSettings.Format.IniFormat)
    window, begin = app.open_window([trace], seed=7, store=store)
    qtbot.addWidget(window)
    assert window.settings.seed == 7
    begin()
    qtbot.waitUntil(lambda: window.of_trace, timeout=WAIT)
    assert "Its own settings hold, not those of the command line." in told(window)
    window.close()


# ---- while torch is being imported
@dataclass
class Slow:
    """Sessions that are not made before `loaded` is set."""

    loaded: threading.Event = field(default_factory=threading.Event)

    def make_session(self, settings: Settings, device: str, checkpoint: str | None) -> MakeSession:
        def make(report: Report) -> Session:
            assert self.loaded.wait(20)
            return app.make_session(settings, device, checkpoint)(report)

        return make


@pytest.fixture
def slow(empty: Window) -> Iterator[Slow]:
    slow = Slow()
    empty.make_session = slow.make_session
    yield slow
    slow.loaded.set()


def test_a_trace_opens_while_the_model_is_being_loaded(qtbot: QtBot, empty: Window, slow: Slow, trace: str) -> None:
    empty.begin([])
    assert empty.status.labels["state"].text() == "Loading the model…"
    drop(empty, trace)
    qtbot.waitUntil(lambda: empty.of_trace, timeout=WAIT)
    slow.loaded.set()
    qtbot.waitUntil(settled(empty), timeout=WAIT)
    assert empty.status.labels["state"].text() == "Trace"
    empty.restart_action.trigger()
    qtbot.waitUntil(lambda: not empty.of_trace, timeout=WAIT)
    train(qtbot, empty, 2)


def test_what_was_asked_for_last_is_shown(
    qtbot: QtBot, empty: Window, slow: Slow, trace: str, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = threading.Event()
    make_trace = empty.make_trace

    def late(path: str) -> MakeSession:
        def make(report: Report) -> Session:
            assert read.wait(20)
            return make_trace(path)(report)

        return make

    empty.make_trace = late
    empty.begin([])
    drop(empty, trace)
    drop(empty, model)
    turn(empty, "routing.k", 3)
    slow.loaded.set()
    read.set()
    qtbot.waitUntil(lambda: empty.snapshot is not None and empty.snapshot.step == 3, timeout=WAIT)
    qtbot.waitUntil(settled(empty), timeout=WAIT)
    assert not empty.of_trace
    assert empty.settings.routing.k == 3


def test_a_broken_trace_while_loading_leaves_the_model_to_come(
    qtbot: QtBot, empty: Window, slow: Slow, tmp_path: Path
) -> None:
    (tmp_path / "bad.zarr").mkdir()
    empty.begin([])
    drop(empty, tmp_path / "bad.zarr")
    qtbot.waitUntil(lambda: "bad.zarr is not a trace" in told(empty), timeout=WAIT)
    slow.loaded.set()
    qtbot.waitUntil(lambda: empty.snapshot is not None, timeout=WAIT)
    train(qtbot, empty, 2)


def test_a_model_and_a_text_open_while_a_trace_is_shown(
    qtbot: QtBot, empty: Window, trace: str, model: str, tmp_path: Path
) -> None:
    empty.begin([trace])
    qtbot.waitUntil(lambda: empty.of_trace, timeout=WAIT)
    drop(empty, model)
    qtbot.waitUntil(lambda: not empty.of_trace, timeout=WAIT)
    assert empty.snapshot is not None
    assert empty.snapshot.step == 3
    drop(empty, trace)
    qtbot.waitUntil(lambda: empty.of_trace, timeout=WAIT)
    (tmp_path / "own.txt").write_text(ENOUGH)
    drop(empty, tmp_path / "own.txt")
    qtbot.waitUntil(lambda: not empty.of_trace, timeout=WAIT)
    assert empty.settings.data.path.endswith("own.txt")
    train(qtbot, empty, 2)


def test_opening_a_long_trace_tells_how_far_it_is_and_can_be_cancelled(
    qtbot: QtBot, window: Window, trace: str
) -> None:
    go = threading.Event()

    def long(path: str) -> MakeSession:
        def make(report: Report) -> Session:
            for i in range(1000):
                report(i, 1000)
                if i == 10:
                    assert go.wait(20)
            raise UserError("nobody cancelled")
            yield

        return make

    window.make_trace = long
    drop(window, trace)
    qtbot.waitUntil(lambda: "Opening run.zarr: 10 of 1,000" in window.status.work.text(), timeout=WAIT)
    assert window.status.bar.isVisible()
    window.status.cancel.click()
    go.set()
    qtbot.waitUntil(lambda: told(window) == "Opening run.zarr: cancelled.", timeout=WAIT)
    qtbot.waitUntil(settled(window), timeout=WAIT)
    assert not window.status.work.isVisible()
    train(qtbot, window, 2)


def test_only_its_own_good_end_counts_for_an_errand(qtbot: QtBot, window: Window, tmp_path: Path) -> None:
    go, followed = threading.Event(), list[str]()

    def full(report: Report) -> str:
        assert go.wait(20)
        raise UserError("The disk is full.")

    window.files._errand(full, "Saving", str(tmp_path / "a.zarr"), lambda: followed.append("a"))
    window.runner.mailbox.post(Told("Saved to b.", done=True))  # of a session whose place another has taken
    window.collect()
    go.set()
    qtbot.waitUntil(lambda: told(window) == "The disk is full.", timeout=WAIT)
    qtbot.waitUntil(settled(window), timeout=WAIT)
    window.files._errand(lambda report: "Saved to c.", "Saving", str(tmp_path / "c"), lambda: followed.append("c"))
    qtbot.waitUntil(lambda: followed == ["c"], timeout=WAIT)
    assert window.files._writing == {}


# ---- a run that a crash would take
CRASH = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_panels import make_snapshot
from moeviz.domain.settings import Settings
from moeviz.keeper import Keeper
keeper = Keeper(Path(sys.argv[1]))
for step in (10, 20):
    keeper.keep(1, Settings(), make_snapshot(step=step), [], [(step, "k 2 → 4")])
os._exit(9)
"""


def test_a_run_is_kept_while_it_trains_and_gone_when_the_window_closes(
    qtbot: QtBot, window: Window, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moeviz.trace.store import open_trace

    monkeypatch.setattr("moeviz.view.stakes.KEEP_SECONDS", 0.05)
    monkeypatch.setattr("moeviz.view.stakes.FIRST_SECONDS", 0.05)
    runs = tmp_path / "runs"
    train(qtbot, window, 5)
    qtbot.waitUntil(lambda: any(path.suffix == ".zarr" for path in runs.glob("*")), timeout=WAIT)
    [first] = runs.glob("*.zarr")
    qtbot.waitUntil(lambda: (first / "zarr.json").exists() and len(open_trace(first)) > 3, timeout=WAIT)
    kept = open_trace(first)
    assert kept.log is not None
    assert kept.log.steps_S[-1] >= kept[-1].step - 1 > 0
    assert Keeper(runs).left() == []  # it is ours, and we are alive
    window.restart()
    window.question.yes.click()
    qtbot.waitUntil(lambda: any(path != first for path in runs.glob("*.zarr")), timeout=WAIT)
    qtbot.waitUntil(lambda: not first.exists(), timeout=WAIT)
    window.close()
    assert list(runs.iterdir()) == []


def test_after_a_crash_the_kept_run_is_offered_until_there_is_an_answer(
    qtbot: QtBot, empty: Window, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    tests = str(Path(__file__).parent)
    for _ in range(4):
        done = subprocess.run([sys.executable, "-c", CRASH, str(runs), tests], check=False, timeout=60)
        assert done.returncode == 9
    empty.begin([])
    qtbot.waitUntil(lambda: empty.snapshot is not None, timeout=WAIT)
    qtbot.waitUntil(lambda: len(list(runs.glob("*.zarr"))) == 3, timeout=WAIT)  # the oldest is gone
    assert "The last run ended without closing" in empty.question.words.text()
    empty.question.yes.click()
    qtbot.waitUntil(lambda: empty.of_trace, timeout=WAIT)
    assert empty.snapshot is not None
    assert empty.snapshot.step == 20
    assert empty.history.marks == [(10, "k 2 → 4"), (20, "k 2 → 4")]
    for _ in range(2):  # the ones before, until there is an answer
        empty.begin([])
        assert empty.question.open
    words = empty.question.words.text()
    empty.question.no.click()
    assert empty.question.words.text() != words
    empty.question.no.click()
    empty.begin([])
    assert not empty.question.open


def test_a_window_closed_amid_a_long_step_leaves_no_run_to_be_offered(
    qtbot: QtBot, window: Window, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step does not end in time, so the trace cannot be removed yet: the next start knows that it ended."""
    from moeviz.moe.trainer import Trainer

    monkeypatch.setattr("moeviz.view.stakes.KEEP_SECONDS", 0.05)
    monkeypatch.setattr("moeviz.view.stakes.FIRST_SECONDS", 0.05)
    runs, advance = tmp_path / "runs", Trainer.advance
    train(qtbot, window, 5)
    qtbot.waitUntil(lambda: any((path / "zarr.json").exists() for path in runs.glob("*.zarr")), timeout=WAIT)
    long, go = threading.Event(), threading.Event()

    def slow(trainer: Trainer) -> None:
        long.set()
        go.wait(20)
        advance(trainer)

    monkeypatch.setattr(Trainer, "advance", slow)
    assert long.wait(20)
    close = window.runner.close
    monkeypatch.setattr(window.runner, "close", lambda timeout: close(0.05))
    window.close()
    assert window.runner.busy
    go.set()
    monkeypatch.undo()
    assert window.runner.close(10)
    assert list(runs.glob("*.zarr"))
    window.stakes.keeper._lock.unlock()  # as the end of the process does
    after = Keeper(runs)
    assert after.left() == []
    after.tidy()
    assert list(runs.iterdir()) == []


def test_the_first_record_comes_after_five_seconds_of_training(
    qtbot: QtBot, window: Window, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[float] = []
    now = 1000.0
    monkeypatch.setattr("moeviz.view.window.time.monotonic", lambda: now)
    monkeypatch.setattr(window.runner, "beside", lambda do: kept.append(now) is None)  # taken

    def pass_by(seconds: int, training: bool) -> None:
        nonlocal now
        monkeypatch.setattr(type(window.runner), "training", property(lambda _: training))
        for _ in range(seconds):
            now += 1
            window.stakes.keep_run()

    pass_by(100, False)
    pass_by(70, True)
    assert kept == [1107, 1138, 1169]
    pass_by(2, False)
    pass_by(40, True)
    assert kept[3:] == [1200]
    window.stakes._kept_at, window.stakes.run = 0.0, window.stakes.run + 1  # the model started anew
    pass_by(10, True)
    assert kept[4:] == [1219]


# ---- own text
@pytest.mark.parametrize("head", [b"PK\x03\x04 as torch saves", b"\x80\x04\x95 a pickle"])
def test_nobody_is_asked_to_give_up_a_run_for_what_is_no_text(
    qtbot: QtBot, window: Window, tmp_path: Path, head: bytes
) -> None:
    train(qtbot, window, 3)
    path = tmp_path / "model.pt"
    path.write_bytes(head + b"x" * 5000)
    drop(window, path)
    assert not window.question.open
    assert told(window) == (
        f"{path} is not a text file; moeviz opens models as .safetensors, traces as .zarr and texts in UTF-8."
    )
    assert window.settings.data.path == ""


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "own.txt is empty; give a text file"),
        (b"too short", "holds 9 characters; training needs at least 2,000"),
        (b"\0\1\2" * 5000, "own.txt is not a text file"),
        (ENOUGH.encode() + "é".encode("latin-1") * 9, f"is not valid UTF-8 (byte {len(ENOUGH)})"),
    ],
    ids=["empty", "short", "binary", "wrong encoding"],
)
@pytest.mark.parametrize("way", ["menu", "drop"])
def test_a_text_that_cannot_be_used_is_told(
    qtbot: QtBot, window: Window, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, said: str, way: str
) -> None:
    path = tmp_path / "own.txt"
    path.write_bytes(content)
    if way == "menu":
        monkeypatch.setattr(QFileDialog, "getOpenFileNames", lambda *_: ([str(path)], ""))
        action(window, "Open own text files…").trigger()
    else:
        drop(window, path)
    qtbot.waitUntil(lambda: said in told(window), timeout=WAIT)
    qtbot.waitUntil(settled(window), timeout=WAIT)
    assert window.settings.data.path == ""
    assert window.controls.rows["data.path"].field.text() == ""  # type: ignore[attr-defined]
    train(qtbot, window, 2)


@pytest.mark.parametrize("way", ["menu", "drop", "line"])
def test_several_texts_are_one_data_set_with_a_domain_each(
    qtbot: QtBot, window: Window, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    paths = [tmp_path / name for name in ("a/notes.txt", "b/notes.txt", "c.txt")]
    for path, word in zip(paths, ("FOX", "cat", "dog"), strict=True):
        path.parent.mkdir(exist_ok=True)
        path.write_text(ENOUGH.replace("fox", word))
    both = os.pathsep.join(map(str, paths))
    line = window.controls.rows["data.path"].field
    assert isinstance(line, PathLine)
    if way == "menu":
        monkeypatch.setattr(QFileDialog, "getOpenFileNames", lambda *_: (list(map(str, paths)), ""))
        action(window, "Open own text files…").trigger()
        assert last_folder(window.memory) == tmp_path / "a"
    elif way == "drop":
        drop(window, *paths)
    else:
        line.setText(both)
        line.editingFinished.emit()
    assert window._asked[0] == "Reading notes.txt and 2 others"
    qtbot.waitUntil(lambda: window.settings.data.path == both and window.runner.idle, timeout=WAIT)
    qtbot.waitUntil(settled(window), timeout=WAIT)
    assert told(window) == ""
    assert line.text() == "notes.txt and 2 others"
    assert window.knobs.undo.undoText() == "Own data notes.txt and 2 others"
    assert all(word in window.bar.probe_line.text() for word in ("FOX", "cat", "dog"))
    train(qtbot, window, 2)
    window.train_action.trigger()
    drop(window, paths[2])
    assert "Own data notes.txt and 2 others → c.txt starts the model anew" in window.question.words.text()


def test_of_several_texts_each_is_looked_at_before_a_run_is_given_up(
    qtbot: QtBot, window: Window, tmp_path: Path
) -> None:
    train(qtbot, window, 3)
    (tmp_path / "a.txt").write_text(ENOUGH)
    (tmp_path / "b.pt").write_bytes(b"PK\x03\x04" + b"x" * 5000)
    drop(window, tmp_path / "a.txt", tmp_path / "b.pt")
    assert not window.question.open
    assert told(window).startswith(f"{tmp_path / 'b.pt'} is not a text file;")


def test_the_one_of_several_texts_that_is_gone_is_named(qtbot: QtBot, window: Window, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(ENOUGH)
    drop(window, tmp_path / "a.txt", tmp_path / "gone.txt")
    qtbot.waitUntil(lambda: f"no file or folder {tmp_path / 'gone.txt'};" in told(window), timeout=WAIT)
    assert window.settings.data.path == ""


def test_settings_keep_several_texts(
    qtbot: QtBot, window: Window, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name + ENOUGH)
    file, both = tmp_path / "s.json", os.pathsep.join([str(tmp_path / "a.txt"), str(tmp_path / "b.txt")])
    drop(window, tmp_path / "a.txt", tmp_path / "b.txt")
    qtbot.waitUntil(lambda: window.settings.data.path == both and window.runner.idle, timeout=WAIT)
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (str(file), ""))
    action(window, "Save settings…").trigger()
    window.knobs.change({"data.path": ""})
    qtbot.waitUntil(lambda: window.settings.data.path == "" and window.runner.idle, timeout=WAIT)
    drop(window, file)
    qtbot.waitUntil(lambda: window.settings.data.path == both and window.runner.idle, timeout=WAIT)
    qtbot.waitUntil(settled(window), timeout=WAIT)
    assert window.settings == Settings.read(file)


def test_several_files_for_a_task_that_takes_one_are_told(qtbot: QtBot, window: Window, tmp_path: Path) -> None:
    window.knobs.change({"task": "plane"})
    qtbot.waitUntil(lambda: window.settings.task == "plane" and window.runner.idle, timeout=WAIT)
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("0,0,1\n")
    drop(window, tmp_path / "a.csv", tmp_path / "b.csv")
    qtbot.waitUntil(lambda: "The task plane takes one file or folder" in told(window), timeout=WAIT)
    assert window.settings.data.path == ""


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_text_file_of_ones_own_is_trained_on(qtbot: QtBot, window: Window, tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "own.txt"
    path.write_text(ENOUGH + "Ünïcödé ✓", encoding=encoding)
    drop(window, path)
    qtbot.waitUntil(lambda: window.settings.data.path == str(path) and window.runner.idle, timeout=WAIT)
    qtbot.waitUntil(settled(window), timeout=WAIT)
    assert "fox" in window.bar.probe_line.text()
    train(qtbot, window, 2)


@pytest.mark.parametrize("way", ["menu", "drop"])
def test_a_folder_of_texts_tells_what_it_leaves_out(
    qtbot: QtBot, window: Window, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text(ENOUGH)
    (folder / "b.txt").write_text(ENOUGH.upper())
    (folder / "c.png").write_bytes(b"\x89PNG\0\0")
    if way == "menu":
        monkeypatch.setattr(QFileDialog, "getExistingDirectory", lambda *_: str(folder))
        action(window, "Open own text folder…").trigger()
    else:
        drop(window, folder)
    qtbot.waitUntil(lambda: "c.png is not a text file, so it is left out" in told(window), timeout=WAIT)
    assert window.settings.data.path == str(folder)
    train(qtbot, window, 2)


def test_reading_a_folder_of_texts_tells_how_far_it_is(
    qtbot: QtBot, window: Window, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moeviz.moe.tasks import own

    texts = tmp_path / "texts"
    texts.mkdir()
    for i in range(4):
        (texts / f"{i}.txt").write_text(f"{i} {ENOUGH}")
    go, read = threading.Event(), own.read_text

    def slow(path: Path, *limit: int) -> tuple[str, bool]:
        if path.name == "3.txt":
            go.wait(20)
        return read(path, *limit)

    monkeypatch.setattr(own, "read_text", slow)
    window.files.open_text(str(texts))
    qtbot.waitUntil(lambda: (window.status.bar.value(), window.status.bar.maximum()) == (3, 4), timeout=WAIT)
    assert window.status.bar.isVisible()
    go.set()
    qtbot.waitUntil(lambda: window.settings.data.path == str(texts) and window.runner.idle, timeout=WAIT)
    qtbot.waitUntil(lambda: not window.status.bar.isVisible(), timeout=WAIT)


def test_a_folder_without_text_is_told(qtbot: QtBot, window: Window, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    drop(window, tmp_path / "nothing")
    qtbot.waitUntil(lambda: "holds no text that can be used" in told(window), timeout=WAIT)
    train(qtbot, window, 2)


def test_of_a_huge_text_the_first_part_is_used(
    qtbot: QtBot, window: Window, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moeviz.moe.tasks import own

    monkeypatch.setattr(own, "MAX_BYTES", 5_000_000)
    path = tmp_path / "huge.txt"
    path.write_text(ENOUGH * 1000)
    drop(window, path)
    qtbot.waitUntil(lambda: "Only the first 5 MB of" in told(window), timeout=WAIT)
    train(qtbot, window, 2)


def test_a_text_that_disappears_is_told(qtbot: QtBot, window: Window, tmp_path: Path) -> None:
    drop(window, tmp_path / "gone.txt")
    qtbot.waitUntil(lambda: "There is no file or folder" in told(window), timeout=WAIT)
    assert window.settings.data.path == ""
    train(qtbot, window, 2)
