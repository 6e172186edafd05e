"""The window, driven as a person does: on a real model that trains, small enough to be quick."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PySide6.QtCore import QSettings, Qt
from PySide6.QtGui import QAction, QGuiApplication
from PySide6.QtWidgets import QAbstractSpinBox, QComboBox
from pytestqt.qtbot import QtBot

from moeviz.app import make_window
from moeviz.domain.settings import Settings
from moeviz.view.controls import explain
from moeviz.view.memory import memory
from moeviz.view.window import Window, short

SMALL = Settings().with_values(
    {"model.layers": 2, "model.width": 16, "model.expert_width": 16, "model.context": 32, "train.batch": 2}
)
WAIT = 20_000


@pytest.fixture
def window(qtbot: QtBot, tmp_path: Path) -> Iterator[Window]:
    store = QSettings(str(tmp_path / "window.ini"), QSettings.Format.IniFormat)
    window = make_window(SMALL, store=store)
    qtbot.addWidget(window)
    window.resize(1280, 720)
    window.show()
    window.start()
    qtbot.waitUntil(lambda: window.snapshot is not None, timeout=WAIT)
    yield window
    window.close()
    assert not window.runner.alive


def settled(window: Window) -> Callable[[], bool]:
    return lambda: window.runner.idle and not window.runner.mailbox.waiting() and not window.timer.isActive()


def train(qtbot: QtBot, window: Window, steps: int = 5) -> None:
    assert window.snapshot is not None
    start = window.snapshot.step
    if not window.runner.training:
        window.train_action.trigger()
    qtbot.waitUntil(lambda: window.snapshot is not None and window.snapshot.step >= start + steps, timeout=WAIT)


def action(window: Window, title: str) -> QAction:
    return next(a for a in window.findChildren(QAction) if a.text() == title)


def test_start_shows_the_probe_and_waits(qtbot: QtBot, window: Window) -> None:
    qtbot.waitUntil(settled(window), timeout=WAIT)
    assert window.snapshot is not None
    assert window.snapshot.step == 0
    assert not window.runner.training
    assert all(panel.snapshot is window.snapshot for panel in window.panels.values())
    assert window.probe_line.text() == "".join(window.snapshot.tokens or ()).replace("\n", "↵")


def test_train_pause_step_restart(qtbot: QtBot, window: Window) -> None:
    qtbot.keyClick(window, Qt.Key.Key_Space)
    qtbot.waitUntil(lambda: window.snapshot is not None and window.snapshot.step > 3, timeout=WAIT)
    assert window.runner.training
    window.train_action.trigger()
    qtbot.waitUntil(settled(window), timeout=WAIT)
    assert window.snapshot is not None
    before = window.snapshot.step
    window.step_action.trigger()
    qtbot.waitUntil(settled(window), timeout=WAIT)
    assert window.snapshot.step > before
    at = window.snapshot.step
    window.step_action.trigger()
    qtbot.waitUntil(settled(window), timeout=WAIT)
    assert window.snapshot.step == at + 1
    assert list(window.history.steps)[-1] == at + 1
    window.restart_action.trigger()
    qtbot.waitUntil(lambda: window.snapshot is not None and window.snapshot.step == 0, timeout=WAIT)
    assert len(window.history.steps) == 0


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("routing.k", 3),
        ("model.experts", 12),
        ("model.experts", 5),
        ("routing.noise", 0.5),
        ("routing.temperature", 2.0),
        ("balance.coefficient", 0.1),
        ("balance.z_coefficient", 0.01),
        ("train.lr", 0.001),
        ("train.batch", 3),
    ],
)
def test_a_number_knob_acts_on_the_running_model(qtbot: QtBot, window: Window, key: str, value: float) -> None:
    train(qtbot, window, 2)
    field = window.controls.rows[key].field
    assert isinstance(field, QAbstractSpinBox)
    field.setValue(value)  # type: ignore[attr-defined]
    qtbot.waitUntil(lambda: len(window.history.marks) == 1, timeout=WAIT)
    assert window.settings.flat()[key] == value
    assert window.runner.training
    step, label = window.history.marks[0]
    assert step >= 2
    assert "→" in label
    train(qtbot, window, 2)
    assert window.snapshot is not None
    assert all(layer.num_experts == window.settings.model.experts for layer in window.snapshot.layers)
    assert all(layer.k == window.settings.routing.k for layer in window.snapshot.layers)


@pytest.mark.parametrize("router", ["dense", "topk_raw", "noisy_topk"])
def test_the_router_changes_on_the_running_model(qtbot: QtBot, window: Window, router: str) -> None:
    train(qtbot, window, 2)
    box = window.controls.rows["routing.router"].field
    assert isinstance(box, QComboBox)
    box.setCurrentText(router)
    box.activated.emit(box.currentIndex())
    qtbot.waitUntil(lambda: len(window.history.marks) == 1, timeout=WAIT)
    assert window.settings.routing.router == router
    train(qtbot, window, 2)
    assert window.snapshot is not None
    layer = window.snapshot.layers[0]
    assert layer.k == (8 if router == "dense" else 2)
    assert layer.gate_weights_TK is not None
    sums = layer.gate_weights_TK.sum(axis=1)
    assert np.allclose(sums, 1, atol=1e-5) == (router != "topk_raw")
    assert window.controls.rows["routing.k"].field.isEnabled() == (router != "dense")


def test_fewer_experts_take_k_along_and_undo_brings_both_back(qtbot: QtBot, window: Window) -> None:
    window.change_knobs({"routing.k": 4})
    window.controls.rows["model.experts"].field.setValue(3)  # type: ignore[attr-defined]
    assert (window.settings.model.experts, window.settings.routing.k) == (3, 3)
    window.undo.undo()
    assert (window.settings.model.experts, window.settings.routing.k) == (8, 4)
    window.undo.undo()
    assert window.settings.routing.k == 2
    window.undo.redo()
    qtbot.waitUntil(settled(window), timeout=WAIT)
    assert window.settings.routing.k == 4
    assert window.snapshot is not None
    assert window.snapshot.layers[0].k == 4


def test_a_model_knob_restarts(qtbot: QtBot, window: Window) -> None:
    train(qtbot, window, 3)
    window.train_action.trigger()
    window.controls.rows["model.layers"].field.setValue(3)  # type: ignore[attr-defined]
    qtbot.waitUntil(lambda: window.snapshot is not None and len(window.snapshot.layers) == 3, timeout=WAIT)
    assert window.snapshot is not None
    assert window.snapshot.step == 0


def test_odd_combinations_are_explained() -> None:
    base = Settings()
    assert explain(base) == ""
    assert "no gradient" in explain(base.with_values({"routing.k": 1}))
    assert explain(base.with_values({"routing.k": 1, "routing.router": "topk_raw"})) == ""
    assert "dense mixture" in explain(base.with_values({"routing.k": 8}))
    assert "One expert" in explain(base.with_values({"routing.k": 1, "model.experts": 1}))


def test_selection_is_shared_pinned_and_let_go(qtbot: QtBot, window: Window) -> None:
    action(window, "Next token").trigger()
    action(window, "Next token").trigger()
    action(window, "Next layer").trigger()
    assert {(p.selection.layer, p.selection.token) for p in window.panels.values()} == {(1, 1)}
    window.panels["tokens"].hovered.emit({"token": 7})
    assert {p.selection.token for p in window.panels.values()} == {7}
    window.panels["tokens"].hovered.emit({})
    assert {p.selection.token for p in window.panels.values()} == {1}
    window.panels["tokens"].clicked.emit({"token": 9})
    assert window.pinned.token == 9
    action(window, "Let go of the selection").trigger()
    assert {p.selection.token for p in window.panels.values()} == {None}


def test_the_probe_is_edited_while_training(qtbot: QtBot, window: Window) -> None:
    train(qtbot, window, 2)
    window.probe_line.setFocus()
    window.probe_line.selectAll()
    qtbot.keyClicks(window.probe_line, "a b c")
    window.probe_line.setText(window.probe_line.text().replace(" c", "↵c"))  # QTest types Latin letters only
    qtbot.keyClick(window.probe_line, Qt.Key.Key_Return)
    wanted = ["a", " ", "b", "\n", "c"]
    qtbot.waitUntil(lambda: window.snapshot is not None and list(window.snapshot.tokens or ()) == wanted, timeout=WAIT)
    assert window.runner.training


def test_save_then_open_goes_on_with_the_same_routing(qtbot: QtBot, window: Window, tmp_path: Path) -> None:
    from moeviz.domain.messages import OpenModel, SaveModel

    train(qtbot, window, 3)
    window.train_action.trigger()
    qtbot.waitUntil(settled(window), timeout=WAIT)
    window.send(SaveModel(str(tmp_path / "model.safetensors")))
    qtbot.waitUntil(settled(window), timeout=WAIT)
    assert window.snapshot is not None
    saved = window.snapshot
    assert "Saved" in window.notice.text()
    window.send(OpenModel(str(tmp_path / "model.safetensors")))
    qtbot.waitUntil(lambda: window.snapshot is not saved, timeout=WAIT)
    assert window.snapshot.step == saved.step
    for a, b in zip(window.snapshot.layers, saved.layers, strict=True):
        assert np.array_equal(a.expert_ids_TK, b.expert_ids_TK)


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x80\x04\x95pickle", b"\xff" * 64])
def test_a_damaged_checkpoint_is_told_and_the_window_goes_on(
    qtbot: QtBot, window: Window, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    window.open_path(str(path))
    qtbot.waitUntil(window.banner.isVisible, timeout=WAIT)
    assert "bad.safetensors" in window.notice.text()
    assert "Traceback" not in window.notice.text()
    train(qtbot, window, 2)


def test_a_defect_in_the_session_reaches_the_window_and_restart_mends_it(
    qtbot: QtBot, window: Window, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moeviz.moe.trainer import Trainer

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "advance", lambda self: 1 / 0)
        window.train_action.trigger()
        qtbot.waitUntil(window.banner.isVisible, timeout=WAIT)
    assert "division by zero" in window.notice.text()
    window.copy_button.click()
    assert "ZeroDivisionError" in QGuiApplication.clipboard().text()
    window.restart_action.trigger()
    train(qtbot, window, 2)


def test_divergence_pauses_with_the_last_good_state_and_a_reason(
    qtbot: QtBot, window: Window, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(qtbot, window, 3)
    window.change_knobs({"train.lr": 0.1})
    import torch

    from moeviz.moe.trainer import Trainer

    def poisoned(trainer: Trainer, advance: Callable[[Trainer], None] = Trainer.advance) -> None:
        with torch.no_grad():
            next(trainer.model.parameters()).fill_(float("inf"))
        advance(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "advance", poisoned)
        qtbot.waitUntil(lambda: not window.runner.training, timeout=WAIT)
        qtbot.waitUntil(window.banner.isVisible, timeout=WAIT)
    assert "learning rate of 0.1" in window.notice.text()
    train(qtbot, window, 2)
    assert np.isfinite(window.history.scalar("loss")[-1])


@pytest.mark.parametrize("ending", ["png", "svg", "pdf", "csv"])
def test_every_plot_and_the_dashboard_export(qtbot: QtBot, window: Window, tmp_path: Path, ending: str) -> None:
    train(qtbot, window, 3)
    window.train_action.trigger()
    qtbot.waitUntil(settled(window), timeout=WAIT)
    for name in (*window.panels, "dashboard"):
        path = tmp_path / f"{name}.{ending}"
        window.export_to(name, str(path))
        assert "Exported" in window.notice.text()
        assert path.stat().st_size > 50
    window.export_to("load", str(tmp_path / "nowhere" / f"load.{ending}"))
    assert "does not exist" in window.notice.text()


def test_settings_are_copied_and_pasted(qtbot: QtBot, window: Window) -> None:
    window.copy_settings()
    assert Settings.from_json(QGuiApplication.clipboard().text()) == SMALL
    QGuiApplication.clipboard().setText('{"routing.k": 99}')
    window.paste_settings()
    assert "routing.k is 99" in window.notice.text()
    QGuiApplication.clipboard().setText(SMALL.with_values({"routing.k": 3}).to_json())
    window.paste_settings()
    qtbot.waitUntil(lambda: window.snapshot is not None and window.snapshot.layers[0].k == 3, timeout=WAIT)


def test_close_while_training_leaves_no_thread(qtbot: QtBot, window: Window) -> None:
    train(qtbot, window, 2)
    window.close()
    assert not window.runner.alive


def test_themes_switch_and_are_remembered(qtbot: QtBot, window: Window) -> None:
    action(window, "Light theme").trigger()
    assert all(panel.theme.name == "light" for panel in window.panels.values())
    window.close()
    assert window.memory.value("theme") == "light"


def test_every_command_has_a_shortcut_of_its_own(window: Window) -> None:
    keys: list[str] = []
    for menu in window.menuBar().actions():
        for entry in menu.menu().actions():  # type: ignore[attr-defined]
            inner = entry.menu()  # type: ignore[attr-defined]
            for item in inner.actions() if inner else [entry]:
                if not item.isSeparator():
                    assert item.shortcut().toString(), f"{item.text()} has no shortcut"
                    keys.append(item.shortcut().toString())
    assert len(keys) == len(set(keys))


def test_a_broken_memory_file_is_set_aside(tmp_path: Path) -> None:
    file = tmp_path / "window.ini"
    file.write_bytes(b"\x00\xff[[[ not = an ini \n===\n[a\n" * 3)
    store = memory(file)
    store.setValue("theme", "dark")
    store.sync()
    assert store.status() == QSettings.Status.NoError


def test_numbers_have_three_digits() -> None:
    assert [short(x) for x in (0, 1.23456, 1234, 39_400, 2.5e6)] == ["0", "1.23", "1.23k", "39.4k", "2.5M"]


def test_the_timeline_shows_the_past_while_training_goes_on(qtbot: QtBot, window: Window) -> None:
    train(qtbot, window, 8)
    window.timeline.setValue(0)
    assert window.shown is window.history.snapshots[0]
    train(qtbot, window, 3)
    assert window.shown is not None
    assert window.shown.step == 0
    assert window.panels["tokens"].snapshot is window.shown
    action(window, "Back to the newest step").trigger()
    assert window.shown is window.snapshot
    train(qtbot, window, 3)
    assert window.panels["tokens"].snapshot is window.snapshot


def test_a_saved_run_opens_again_as_a_trace(qtbot: QtBot, window: Window, tmp_path: Path) -> None:
    train(qtbot, window, 5)
    window.change_knobs({"routing.k": 3})
    train(qtbot, window, 5)
    path = str(tmp_path / "run.zarr")
    window.show_trace(path)
    assert "pause it" in window.notice.text()
    window.train_action.trigger()
    qtbot.waitUntil(settled(window), timeout=WAIT)
    last, count, marks = window.snapshot, len(window.history.snapshots), list(window.history.marks)
    window.save_run_to(path)
    qtbot.waitUntil(lambda: "Saved" in window.notice.text(), timeout=WAIT)
    window.open_path(path)
    qtbot.waitUntil(lambda: window.of_trace, timeout=WAIT)
    assert last is not None
    assert window.snapshot is not None
    assert window.snapshot is not last
    assert np.array_equal(window.snapshot.layers[1].expert_ids_TK, last.layers[1].expert_ids_TK)
    assert len(window.history.snapshots) == count
    assert window.history.marks == marks
    assert window.settings.routing.k == 3
    window.train_action.trigger()
    qtbot.waitUntil(lambda: "recording" in window.notice.text(), timeout=WAIT)
    assert not window.runner.training
    window.restart_action.trigger()
    qtbot.waitUntil(lambda: not window.of_trace and window.snapshot is not None, timeout=WAIT)
    train(qtbot, window, 2)


def test_a_broken_trace_is_told_and_restart_goes_on(qtbot: QtBot, window: Window, tmp_path: Path) -> None:
    (tmp_path / "zarr.json").write_text("{")
    window.open_path(str(tmp_path))
    qtbot.waitUntil(window.banner.isVisible, timeout=WAIT)
    assert "Traceback" not in window.notice.text()
    window.restart_action.trigger()
    train(qtbot, window, 2)
