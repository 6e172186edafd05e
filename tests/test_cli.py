"""The command line: exit status, one sentence for a mistake, one JSON object for --json, and whole runs."""

import csv
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import moeviz
from moeviz.app import make_session
from moeviz.cli import COMMANDS, _find_display, main
from moeviz.domain.settings import Settings
from moeviz.moe.tasks import TASKS

SMALL = [
    *("--set", "model.layers=2", "--set", "model.width=32", "--set", "model.expert_width=32"),
    *("--set", "model.context=32", "--set", "model.experts=4"),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The folder of a run of 20 steps."""
    out = tmp_path_factory.mktemp("cli") / "run"
    assert main(["train", "--task", "text", "--steps", "20", "--out", str(out), "--seed", "3", *SMALL]) == 0
    return out


def fails(capsys, *arguments: str) -> str:
    """The one sentence that a mistake gets."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("moeviz: ")
    assert captured.err.count("\n") == 1
    assert captured.err.endswith(".\n")
    return captured.err


def printed_json(capsys, *arguments: str) -> dict:
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


# ---- a whole run
def test_train_leaves_four_files(trained):
    found = sorted(path.name for path in trained.iterdir())
    assert found == ["metrics.csv", "model.safetensors", "settings.json", "trace.zarr"]
    settings = json.loads((trained / "settings.json").read_text())
    assert (settings["seed"], settings["model.experts"], settings["routing.k"]) == (3, 4, 2)
    trace = moeviz.open_trace(trained / "trace.zarr")
    assert trace.settings == settings
    assert [s.step for s in trace] == list(range(21))
    assert np.array_equal(trace.log.steps_S, np.arange(1, 21))
    with (trained / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(1, 21))
    np.testing.assert_allclose([float(row["loss"]) for row in rows], trace.log.scalars_S["loss"], rtol=1e-5)
    counts = trace.log.counts_SE[1][-1]
    assert float(rows[-1]["cv_layer_1"]) == pytest.approx(counts.std() / counts.mean(), rel=1e-5)


def test_train_tells_json_and_refuses_to_overwrite(trained, capsys):
    assert "--force" in fails(capsys, "train", "--steps", "1", "--out", str(trained))
    result = printed_json(capsys, "train", "--steps", "2", "--out", str(trained.parent / "again"), *SMALL)
    assert (result["steps"], result["interrupted"], result["device"]) == (2, False, "cpu")
    again = printed_json(capsys, "train", "--steps", "3", "--out", str(trained.parent / "again"), "--force", *SMALL)
    assert again["steps"] == 3
    assert len(moeviz.open_trace(trained.parent / "again" / "trace.zarr")) == 4


def test_train_tells_of_which_step_the_held_out_loss_is(capsys, tmp_path):
    """It is measured at few steps only."""
    run = ("train", "--out", str(tmp_path / "run"), "--force", *SMALL, "--steps")
    assert not {"heldout", "heldout_step"} & set(printed_json(capsys, *run, "2"))
    found = printed_json(capsys, *run, "53")
    log = moeviz.open_trace(tmp_path / "run" / "trace.zarr").log
    assert found["heldout_step"] == 50
    assert found["heldout"] == pytest.approx(log.scalars_S["heldout"][log.steps_S == 50].item(), rel=1e-5)
    assert main([*run, "51"]) == 0
    assert f"heldout {found['heldout']:.3g} of step 50;" in capsys.readouterr().out


def test_several_own_texts_are_trained_on_and_gone_on_with(capsys, tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(f"{name} is a text of one's own.\n" * 200)
    own = os.pathsep.join(str(tmp_path / name) for name in ("a.txt", "b.txt"))
    run = tmp_path / "run"
    train = ("train", "--task", "text", "--steps", "2", *SMALL)
    printed_json(capsys, *train, "--out", str(run), "--set", f"data.path={own}")
    assert json.loads((run / "settings.json").read_text())["data.path"] == own
    again = ["train", "--steps", "2", "--settings", str(run / "settings.json")]
    printed_json(capsys, *again, "--out", str(tmp_path / "again"))
    session = make_session(Settings(), "cpu", str(run / "model.safetensors"))(lambda *_: None)
    update = next(session)
    session.close()
    assert (update.settings.data.path, update.notice) == (own, "")
    both, one = (tmp_path / out / "metrics.csv" for out in ("run", "again"))
    assert both.read_text() == one.read_text()
    gone = fails(capsys, *train, "--out", str(run), "--force", "--set", f"data.path={own}{os.pathsep}gone.txt")
    assert "There is no file or folder gone.txt" in gone


@pytest.mark.slow
def test_long_runs_are_thinned(trained, capsys):
    out = trained.parent / "long"
    printed_json(capsys, "train", "--steps", "401", "--out", str(out), *SMALL)
    trace = moeviz.open_trace(out / "trace.zarr")
    assert len(trace) <= 202
    assert trace[-1].step == 401
    assert len(trace.log.steps_S) == 401


def test_stats(trained, capsys):
    found = printed_json(capsys, "stats", str(trained / "trace.zarr"), "--step", "-2")
    assert (found["steps"], found["step"], len(found["layers"])) == (21, 19, 2)
    layer = found["layers"][0]
    keys = "name experts k tokens load_share importance cv max_violation normalised_entropy effective_experts gini "
    assert set((keys + "dead_experts drop_rate").split()) <= set(layer)
    assert sum(layer["load_share"]) == pytest.approx(1)
    assert main(["stats", str(trained / "trace.zarr")]) == 0
    told = capsys.readouterr().out
    assert all(len(line) <= 120 for line in told.splitlines())
    for name in (
        "effective_experts",
        "churn",
        "transition_information",
        "boundary_margin",
        "train_max_violation_batch",
    ):
        assert name in told
    assert "drop_rate" not in told  # a router without capacity
    assert "0 to 20" in fails(capsys, "stats", str(trained / "trace.zarr"), "--step", "21")


def test_inspect_changes_k_and_generates(trained, capsys, tmp_path):
    found = printed_json(capsys, "inspect", str(trained), "--text", "def f(é):", "--out", str(tmp_path / "a.zarr"))
    assert (found["tokens"], found["unknown_tokens"], found["layers"][0]["k"]) == (9, 1, 2)
    options = ["--set", "routing.k=3", "--generate", "8", "--seed", "1"]
    model = str(trained / "model.safetensors")
    found = printed_json(capsys, "inspect", model, "--text", "def f():", "--out", str(tmp_path / "b.zarr"), *options)
    assert found["text"].startswith("def f():")
    assert len(found["text"]) == found["tokens"] == 16
    snapshot = moeviz.open_trace(tmp_path / "b.zarr")[0]
    assert snapshot.layers[0].k == 3
    assert "".join(snapshot.tokens) == found["text"]
    assert "context is 32" in fails(
        capsys, "inspect", model, "--text", "x", "--generate", "99", "--out", str(tmp_path / "c")
    )


@pytest.mark.parametrize("source", ["trace", "model", "model on its own probe", "task"])
def test_render(trained, capsys, tmp_path, source):
    what = {
        "trace": ["--trace", str(trained / "trace.zarr"), "--step", "3"],
        "model": ["--model", str(trained), "--text", "import os"],
        "model on its own probe": ["--model", str(trained)],
        "task": ["--task", "text", "--steps", "2", *SMALL],
    }[source]
    out = tmp_path / "a.csv"
    # in a process of its own: pictures need a Qt application, and the tests have theirs
    code = "import sys; from moeviz.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "render", *what, "--plot", "load", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env=without_display(), check=False)
    assert done.returncode == 0, done.stderr
    assert out.stat().st_size > 0


def test_a_failing_disk_keeps_the_model(tmp_path, capsys, monkeypatch):
    """The trace cannot grow any more in the middle of a run: the model is saved, and the sentence says why."""
    from moeviz.trace.writer import TraceWriter

    put = TraceWriter._put

    def full(self, name, start, *rest, **options):
        if name == "step" and start > 0:
            raise OSError(28, "No space left on device")
        return put(self, name, start, *rest, **options)

    monkeypatch.setattr(TraceWriter, "_put", full)
    out = tmp_path / "run"
    assert main(["train", "--steps", "100", "--out", str(out), *SMALL]) == 2
    assert "No space left" in capsys.readouterr().err
    assert (out / "model.safetensors").is_file()
    assert (out / "metrics.csv").is_file()
    assert len(moeviz.open_trace(out / "trace.zarr")) == 32


# ---- lists
def test_plots_and_tasks(capsys):
    plots = printed_json(capsys, "plots")["plots"]
    assert {"name", "title", "needs"} == set(plots[0])
    assert "load" in [plot["name"] for plot in plots]
    assert [task["name"] for task in printed_json(capsys, "tasks")["tasks"]] == list(TASKS)
    assert main(["plots"]) == main(["tasks"]) == 0


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"] if command is None else [command, "--help"])
    assert stop.value.code == 0
    assert "--" in capsys.readouterr().out


# ---- mistakes
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--steps", "1"], "--out"),
        (["train", "--steps", "0", "--out", "x"], "1 or more"),
        (["train", "--steps", "1", "--out", "x", "--set", "routing.kk=2"], "'routing.kk' is not a setting"),
        (["train", "--steps", "1", "--out", "x", "--set", "routing.k"], "KEY=VALUE"),
        (["train", "--steps", "1", "--out", "x", "--set", "routing.k=99"], "from 1 to 64"),
        (["train", "--steps", "1", "--out", "x", "--task", "poetry"], "text"),
        (["train", "--steps", "1", "--out", "x", "--settings", "missing.json"], "missing.json"),
        (["train", "--steps", "1", "--out", "x", "--device", "tpu"], "tpu"),
        (["train", "--steps", "1", "--out", "x", "--set", "data.path=missing"], "missing"),
        (["train", "--nonsense"], "--help"),
        (["stats", "missing"], "There is no trace"),
        (["inspect", "missing", "--text", "x", "--out", "y"], "There is no model"),
        (["inspect", "missing", "--out", "y"], "--text"),
        (["inspect", ".", "--text", "x", "--out", "y"], "holds no model.safetensors"),
        (["render", "--out", "a.png"], "Say what to show"),
        (["render", "--task", "text", "--out", "a.gif"], ".png"),
        (["render", "--task", "text", "--out", "a.png", "--plot", "nonsense"], "no plot 'nonsense'"),
        (["render", "--task", "text", "--out", "a.png", "--size", "big"], "1440x900"),
        (["render", "--task", "text", "--out", "a.png", "--size", "10x10"], "64 to 16384 pixels"),
        (["render", "--task", "plane", "--out", "a.png", "--layer", "9"], "There is no layer 9"),
        (["render", "--task", "plane", "--out", "a.png", "--token", "99999"], "There is no token 99999"),
        (["render", "--task", "text", "--out", "a.png", "--step", "1"], "--trace"),
        (["render", "--task", "text", "--out", "a.pdf", "--dpi", "300"], "--scale (or --dpi) needs a .png"),
        (["render", "--task", "text", "--out", "a.png", "--dpi", "many"], "'many' is not possible, give 48 to 768"),
        (["render", "--task", "text", "--out", "a.png", "--scale", "9"], "'9' is not possible, give 0.5 to 8"),
        (["render", "--task", "text", "--out", "a.png", "--scale", "2", "--dpi", "96"], "not allowed with"),
        (["render", "--task", "text", "--out", "no/where/a.png"], "There is no folder"),
        (["bench", "nonsense"], "gui"),
        (["trian"], "'train'"),
    ],
)
def test_mistakes_get_one_sentence(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert words in fails(capsys, *arguments)
    assert not any(tmp_path.iterdir())  # nothing half done is left


def test_files_that_are_something_else(trained, capsys, tmp_path):
    (tmp_path / "broken.json").write_text("{")
    assert "JSON" in fails(
        capsys, "train", "--steps", "1", "--out", str(tmp_path / "x"), "--settings", str(tmp_path / "broken.json")
    )
    (tmp_path / "bytes.txt").write_bytes(b"\0\1")
    options = ["--file", str(tmp_path / "bytes.txt"), "--out", str(tmp_path / "x")]
    assert "not a text file" in fails(capsys, "inspect", str(trained), *options)
    (tmp_path / "model.safetensors").write_bytes(b"garbage")
    assert "model.safetensors" in fails(capsys, "inspect", str(tmp_path), "--text", "x", "--out", str(tmp_path / "x"))
    (tmp_path / "config.json").write_text("{}")
    assert "another library" in fails(capsys, "inspect", str(tmp_path), "--text", "x", "--out", str(tmp_path / "x"))
    settings = ["--set", "model.experts=2"]
    assert "model.experts" in fails(
        capsys, "inspect", str(trained), "--text", "x", "--out", str(tmp_path / "x"), *settings
    )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="displays are told by the environment on Linux only")
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"QT_QPA_PLATFORM": "xcb"},
        {"QT_QPA_PLATFORM": "xcb", "WAYLAND_DISPLAY": "wayland-0"},
        {"QT_QPA_PLATFORM": "wayland", "DISPLAY": ":0"},
        {"QT_QPA_PLATFORM": "wayland;xcb", "DISPLAY": ""},
    ],
)
def test_no_display_is_said_before_qt_is_imported(capsys, monkeypatch, given):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert "moeviz render" in fails(capsys)


@pytest.fixture
def servers(tmp_path, monkeypatch):
    """Sockets that somebody listens at, as an X server and a Wayland compositor do: what names them, by variable."""
    with socket.socket() as x, socket.socket(socket.AF_UNIX) as wayland:
        while True:
            number = random.randrange(20_000)
            try:
                x.bind(("127.0.0.1", 6000 + number))
                break
            except OSError:
                continue
        wayland.bind(str(tmp_path / "wayland-7"))
        for one in (x, wayland):
            one.listen()
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
        yield {"DISPLAY": f"127.0.0.1:{number}.0", "WAYLAND_DISPLAY": "wayland-7"}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="displays are told by the environment on Linux only")
@pytest.mark.parametrize(
    ("platform", "running"),
    [
        ("", ["DISPLAY"]),
        ("", ["WAYLAND_DISPLAY"]),
        ("xcb", ["DISPLAY"]),
        ("wayland;xcb", ["DISPLAY"]),
        ("wayland", ["WAYLAND_DISPLAY"]),
        ("offscreen", []),
    ],
)
def test_a_display_that_answers_is_found(monkeypatch, servers, platform, running):
    monkeypatch.setenv("QT_QPA_PLATFORM", platform)
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.setenv(name, servers[name] if name in running else "")
    _find_display()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="displays are told by the environment on Linux only")
@pytest.mark.parametrize("display", [":7777", "unix:7777.0", "127.0.0.1:1.0", "nonsense", "no-such-host.invalid:1"])
def test_a_display_that_does_not_answer_is_said_before_qt_aborts(capsys, monkeypatch, display):
    monkeypatch.setenv("QT_QPA_PLATFORM", "xcb")
    monkeypatch.setenv("DISPLAY", display)
    said = fails(capsys)
    assert f"No display answers at {display};" in said
    assert "moeviz render" in said


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="displays are told by the environment on Linux only")
def test_a_compositor_that_is_gone_is_said(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("QT_QPA_PLATFORM", "wayland;xcb")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-7")
    monkeypatch.delenv("DISPLAY", raising=False)
    assert "No display answers at wayland-7;" in fails(capsys)


def test_the_command_line_is_light():
    code = "import sys, moeviz.cli; assert not {'torch', 'PySide6', 'zarr'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- Ctrl-C
def _has_a_line(metrics: Path) -> bool:
    """Of numbers, below its head."""
    return metrics.exists() and metrics.read_text().count("\n") > 1


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_interrupting_saves_everything(tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "moeviz", "train", "--steps", "1000000", "--out", str(out), "--json", *SMALL]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=without_display()
    )
    limit = time.monotonic() + 60
    while not _has_a_line(out / "metrics.csv") and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    result = json.loads(stdout)
    assert result["interrupted"]
    assert result["steps"] >= 1
    trace = moeviz.open_trace(out / "trace.zarr")
    assert trace[-1].step == result["steps"]
    assert len(trace.log.steps_S) == result["steps"]
    assert len((out / "metrics.csv").read_text().splitlines()) == result["steps"] + 1
    assert (out / "model.safetensors").stat().st_size > 0


def test_interrupting_a_render_draws_what_was_trained(tmp_path, monkeypatch):
    asked = iter([False, False])

    @contextmanager
    def pressed():
        yield lambda: next(asked, True)  # Ctrl-C in the third step

    monkeypatch.setattr("moeviz.headless.stop_on_interrupt", pressed)
    out = tmp_path / "losses.csv"
    assert main(["render", "--task", "text", "--steps", "50", "--plot", "losses", "--out", str(out), *SMALL]) == 130
    assert [line.split(",")[0] for line in out.read_text().splitlines()] == ["step", "1", "2", "3"]


def without_display() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}


def test_a_twin_that_is_missing_is_told_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("moeviz.headless.of_training", lambda *_, **__: pytest.fail("it was trained"))
    assert main(["render", "--task", "plane", "--plot", "moe_dense", "--out", str(tmp_path / "p.png")]) == 2
    assert "add --set train.dense_twin=on" in capsys.readouterr().err
