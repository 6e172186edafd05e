"""The window, driven as a person does: on a real model that trains, small enough to be quick."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from html import escape
from pathlib import Path

import numpy as np
import pytest
from PySide6.QtCore import QPoint, QSettings, Qt
from PySide6.QtGui import QAction, QColor, QGuiApplication, QImage
from PySide6.QtWidgets import QAbstractSpinBox, QApplication, QComboBox, QInputDialog, QMainWindow, QMenu, QMenuBar
from pytestqt.qtbot import QtBot

from moeviz.app import make_window
from moeviz.domain.experiments import EXPERIMENTS, Experiment
from moeviz.domain.history import History
from moeviz.domain.messages import ModelFacts, OpenModel, Report, SaveModel, StepLog, Survey
from moeviz.domain.settings import KNOBS, ROUTERS, Settings
from moeviz.trace.stats import stats
from moeviz.trace.store import open_trace
from moeviz.view.controls import USUAL, Controls
from moeviz.view.dashboard import PLACES
from moeviz.view.experiments import arm_values
from moeviz.view.export_dialog import ExportDialog
from moeviz.view.frame import Frame
from moeviz.view.memory import memory
from moeviz.view.menus import numbered
from moeviz.view.panels.losses import MEASURES
from moeviz.view.status import TITLES, Progress, Status, duration, in_words, measured, short
from moeviz.view.theme import THEMES
from moeviz.view.together import explain, idle, k_in_words, looks_ahead, together, useless
from moeviz.view.window import Window

SMALL = Settings().with_values(
    {"model.layers": 2, "model.width": 16, "model.expert_width": 16, "model.context": 32, "train.batch": 2}
)
WAIT = 20_000
NO_NULL = {
    "routing.router": "null",
    **dict.fromkeys(("routing.constant_experts", "routing.copy_experts", "routing.zero_experts"), 0),
}


@pytest.fixture
def window(qtbot: QtBot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built_in_text: object) -> Iterator[Window]:
    monkeypatch.setattr("moeviz.moe.training.load_text", built_in_text)
    store = QSettings(str(tmp_path / "window.ini"), QSettings.Format.IniFormat)
    window = make_window(SMALL, store=store, runs=tmp_path / "runs")
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
    assert window.bar.probe_line.text() == "".join(window.snapshot.tokens or ()).replace("\n", "↵")


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
    assert f"loses {at + 1} steps" in window.question.words.text()
    qtbot.waitUntil(settled(window), timeout=WAIT)
    assert window.snapshot.step == at + 1
    action(window, "Answer: Restart").trigger()
    qtbot.waitUntil(lambda: window.snapshot is not None and window.snapshot.step == 0, timeout=WAIT)
    assert len(window.history.steps) == 0
    window.restart_action.trigger()  # there is nothing to lose
    assert not window.question.open


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
    k = window.controls.rows["routing.k"]
    assert k.field.isVisibleTo(window.controls) == (router != "dense")
    assert k.words.text() == ("all, each by its probability" if router == "dense" else "")


@pytest.mark.slow
def test_all_routers_one_after_the_other_on_a_model_in_training(qtbot: QtBot, window: Window) -> None:
    def ask(key: str, value: object) -> None:
        marks = len(window.history.marks)
        window.controls._ask(key, value)  # type: ignore[arg-type]
        qtbot.waitUntil(lambda: len(window.history.marks) > marks, timeout=WAIT)
        assert window.settings.flat()[key] == value
        train(qtbot, window, 1)
        assert window.runner.training
        assert not window.notices.isVisible(), window.notices.words.text()
        assert not any("⚠" in row.note.text() for row in window.controls.rows.values())

    train(qtbot, window, 2)
    ask("routing.capacity_factor", 1.0)
    for router in (*ROUTERS[2:], *ROUTERS[:2]):
        ask("routing.router", router)
        assert window.snapshot is not None
        assert all(window.panels[name].lack() == "" for name in PLACES)  # the others have had no survey
        layer = window.snapshot.layers[0]
        assert layer.num_experts == 8 + (4 if router == "null" else 0)
        assert (layer.dropped_TK is not None) == window.settings.applies("routing.capacity_factor")
        for key, knob in KNOBS.items():
            if router in knob.routers and len(knob.routers) == 1 and key.startswith("routing."):
                if useless(window.settings, key):
                    assert key in ("routing.topk_groups", "routing.second_threshold")
                    continue
                assert window.controls.rows[key].field.isVisibleTo(window.controls)
                now = window.settings.flat()[key]
                ask(
                    key,
                    next(c for c in knob.choices if c != now) if isinstance(now, str) else min(now * 2 or 1, knob.high),
                )


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=lambda e: e.name)
def test_an_experiment_starts_trains_and_stays_readable(
    qtbot: QtBot, window: Window, experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"model.width": 16, "model.expert_width": 16, "model.layers": 1, "model.context": 32, "train.batch": 2}
    experiment = replace(experiment, settings={**experiment.settings, **small})
    assert not window.guide.isVisible()
    window.experiments.begin(experiment)
    assert not window.question.open  # nothing was trained
    wanted = Settings().with_values(experiment.settings)
    qtbot.waitUntil(lambda: window.settings == wanted and window.runner.training, timeout=WAIT)
    train(qtbot, window, 3)
    assert window.guide.isVisible()
    text = window.experiments.words.text() + window.experiments.figures.text()
    for words in (experiment.watch, experiment.source, *experiment.figures, *experiment.figures.values()):
        assert escape(words) in text
    arms = window.experiments.arms
    assert list(arms) == (list(experiment.arms) if len(experiment.arms) > 1 else [])
    assert [name for name, b in arms.items() if b.isChecked()] == [n for n in arms if not experiment.arms[n]]
    for name, button in arms.items():
        button.click()
        assert window.settings == wanted.with_values(arm_values(experiment, name))
        assert [other for other, b in arms.items() if b.isChecked()] == [name]
        train(qtbot, window, 2)
    assert window.guide.isVisible()
    assert window.runner.training
    assert not window.notices.isVisible(), window.notices.words.text()


def test_an_experiment_asks_before_a_trained_model_goes(qtbot: QtBot, window: Window) -> None:
    train(qtbot, window, 3)
    title = EXPERIMENTS["capacity"].title
    action(window, title).trigger()
    assert window.question.words.text().startswith(f"“{title}” starts the model anew and loses ")
    window.question.no.click()
    assert window.settings == SMALL
    assert not window.guide.isVisible()
    action(window, title).trigger()
    window.question.yes.click()
    qtbot.waitUntil(lambda: window.settings == Settings().with_values(EXPERIMENTS["capacity"].settings), timeout=WAIT)
    assert window.guide.isVisible()
    action(window, "Reset layout").trigger()
    assert window.guide.isVisible()
    action(window, "Close the guide").trigger()
    assert not window.guide.isVisible()


def test_fewer_experts_take_k_along_and_undo_brings_both_back(qtbot: QtBot, window: Window) -> None:
    window.knobs.change({"routing.k": 4})
    window.controls.rows["model.experts"].field.setValue(3)  # type: ignore[attr-defined]
    assert (window.settings.model.experts, window.settings.routing.k) == (3, 3)
    window.knobs.undo.undo()
    assert (window.settings.model.experts, window.settings.routing.k) == (8, 4)
    window.knobs.undo.undo()
    assert window.settings.routing.k == 2
    window.knobs.undo.redo()
    qtbot.waitUntil(settled(window), timeout=WAIT)
    assert window.settings.routing.k == 4
    assert window.snapshot is not None
    assert window.snapshot.layers[0].k == 4


def layers(window: Window) -> int:
    return len(window.snapshot.layers) if window.snapshot is not None else 0


def shown(window: Window, key: str) -> object:
    return window.controls.rows[key].field.value()  # type: ignore[attr-defined]


def turn(window: Window, key: str, value: float) -> None:
    window.controls.rows[key].field.setValue(value)  # type: ignore[attr-defined]


def test_a_model_knob_restarts_an_untrained_model_at_once(qtbot: QtBot, window: Window) -> None:
    turn(window, "model.layers", 3)
    assert not window.question.open
    qtbot.waitUntil(lambda: layers(window) == 3, timeout=WAIT)
    action(window, "Undo Layers 3").trigger()
    qtbot.waitUntil(lambda: layers(window) == 2, timeout=WAIT)


def test_a_model_knob_asks_before_it_restarts_a_trained_model(qtbot: QtBot, window: Window) -> None:
    train(qtbot, window, 3)
    turn(window, "model.layers", 3)
    assert window.question.words.text().startswith("Layers 2 → 3 starts the model anew and loses ")
    turn(window, "model.layers", 4)  # while the question is open, it is about the newest wish
    turn(window, "model.width", 32)
    assert "Layers 2 → 4, Width 16 → 32" in window.question.words.text()
    turn(window, "routing.k", 3)  # what is live acts meanwhile, and leaves the wish alone
    train(qtbot, window, 2)
    qtbot.waitUntil(lambda: window.settings.routing.k == 3, timeout=WAIT)  # news from before may be on their way
    assert (shown(window, "model.layers"), layers(window)) == (4, 2)
    window.question.no.click()
    assert shown(window, "model.layers") == 2
    assert window.settings.model.width == 16
    train(qtbot, window, 2)
    assert layers(window) == 2
    turn(window, "model.layers", 3)
    turn(window, "model.layers", 2)  # turned back: nothing is left to ask
    assert not window.question.open


def test_undo_after_a_restart_brings_the_knob_back_and_says_what_it_does(qtbot: QtBot, window: Window) -> None:
    train(qtbot, window, 3)
    window.train_action.trigger()
    qtbot.waitUntil(settled(window), timeout=WAIT)
    turn(window, "model.layers", 3)
    window.question.yes.click()
    qtbot.waitUntil(lambda: layers(window) == 3, timeout=WAIT)
    qtbot.waitUntil(settled(window), timeout=WAIT)
    window.step_action.trigger()
    qtbot.waitUntil(lambda: window.stakes.steps == 1, timeout=WAIT)
    action(window, "Undo Layers 3").trigger()
    assert window.question.words.text().startswith("Undo: Layers 3 → 2 starts the model anew and loses 1 step that")
    assert layers(window) == 3
    window.question.yes.click()
    qtbot.waitUntil(lambda: layers(window) == 2, timeout=WAIT)
    assert shown(window, "model.layers") == 2
    assert "do not come back" in window.notices.words.text()


def test_opening_asks_only_if_something_is_lost(qtbot: QtBot, window: Window, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    window.train_for(3)
    qtbot.waitUntil(settled(window), timeout=WAIT)
    window.send(SaveModel(str(path)))
    qtbot.waitUntil(settled(window), timeout=WAIT)
    window.files.open_paths([str(path)])
    assert not window.question.open
    qtbot.waitUntil(settled(window), timeout=WAIT)
    assert window.history.steps.tolist() == [3]
    assert window.status.labels["measure"].text().startswith("held-out ")
    assert window.status.labels["measure"].toolTip().endswith("measured at step 3")
    assert window.panels["load_over_time"].table()[1][0][0] == 3
    window.restart()  # the file stays, the model in the window does not
    assert "stays only in its file" in window.question.words.text()
    window.train_for(2)
    qtbot.waitUntil(settled(window), timeout=WAIT)
    window.files.open_paths([str(path)])
    assert window.question.words.text() == "Opening model.safetensors loses 2 steps that are not saved."
    qtbot.keyClick(window, Qt.Key.Key_Escape)
    assert window.stakes.steps == 2
    window.files.open_paths([str(path)])
    window.question.yes.click()
    qtbot.waitUntil(lambda: window.stakes.steps == 0, timeout=WAIT)


def test_odd_combinations_are_explained() -> None:
    base = Settings()
    assert explain(base) == {}
    assert "no gradient" in explain(base.with_values({"routing.k": 1}))["routing.k"]
    assert explain(base.with_values({"routing.k": 1, "routing.router": "topk_raw"})) == {}
    assert "dense mixture" in explain(base.with_values({"routing.k": 8}))["routing.k"]
    assert "One expert" in explain(base.with_values({"routing.k": 1, "model.experts": 1}))["model.experts"]
    for words, values in (
        ("about 25% of the choices or more", {"routing.capacity_factor": 0.75}),
        ("both balance", {"routing.router": "sigmoid_bias"}),
        ("by construction", {"routing.router": "expert_choice"}),
        ("token entropy", {"routing.router": "top_p"}),
        ("L1 factor 1", {"routing.router": "relu", "routing.l1_factor": 1}),
        ("No null experts", dict(NO_NULL)),
    ):
        told = explain(base.with_values(values)).values()
        assert [words in line for line in told] == [True], told
    assert explain(base.with_values({"routing.router": "sigmoid_bias", "balance.loss": "none"})) == {}
    assert explain(base.with_values({"routing.router": "gshard"})) == {}


def test_what_does_nothing_says_why() -> None:
    base = Settings()
    assert not [key for key in KNOBS if idle(base, key) and key != "balance.load_coefficient" and base.applies(key)]
    assert idle(base, "balance.load_coefficient") == "it needs noise"
    noisy = base.with_values({"routing.noise": 1.0})
    assert idle(noisy, "balance.load_coefficient") == ""
    assert idle(noisy.with_values({"routing.k": 8}), "balance.load_coefficient") == "all are chosen"
    assert idle(base.with_values({"routing.router": "switch"}), "balance.load_coefficient") == "not with switch"
    assert idle(base.with_values({"routing.k": 1}), "balance.importance_coefficient") == "weights are all 1"
    assert idle(base.with_values({"balance.loss": "none"}), "balance.coefficient") == "no balance loss"


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("more", [{}, {"capacity_factor": 1.0}, {"capacity_factor": 1.0, "drop": "probability"}])
def test_looking_ahead_is_told_where_the_router_does(router: str, more: dict[str, float | str]) -> None:
    from moeviz.moe.routers import ROUTERS as BUILDERS
    from moeviz.moe.routers import build_router

    options = {key: value for key, value in more.items() if key in BUILDERS[router].options}
    for k in (1, 2):
        settings = Settings().with_values(
            {"routing.router": router, "routing.k": k, **{f"routing.{key}": value for key, value in more.items()}}
        )
        made = build_router(router, 16, 8, k, **options)  # type: ignore[arg-type]
        words = " ".join(looks_ahead(settings).values())
        assert bool(words) == made.train().looks_ahead
        assert ("the probe is routed without" in words) == (bool(words) and not made.eval().looks_ahead)


def test_what_must_change_along_with_a_knob() -> None:
    base = Settings()
    deep = base.with_values({"routing.router": "sigmoid_bias", "routing.groups": 4, "routing.topk_groups": 2})
    assert together(base, "routing.k", 3) == {"routing.k": 3}
    assert together(base, "routing.k", 9) == {"routing.k": 9}  # refused by the settings, which say why
    assert together(base, "model.experts", 1) == {"model.experts": 1, "routing.k": 1}
    assert together(base, "routing.router", "noisy_topk") == {"routing.router": "noisy_topk", "routing.noise": 1.0}
    assert together(deep, "routing.k", 5) == {"routing.k": 5, "routing.topk_groups": 3}
    assert together(deep, "routing.groups", 1) == {"routing.groups": 1, "routing.topk_groups": 1}
    odd = base.with_values({"routing.groups": 3, "routing.topk_groups": 2})  # of no meaning to topk
    wanted = together(odd, "routing.router", "sigmoid_bias")
    assert wanted == {"routing.router": "sigmoid_bias", "routing.groups": 1, "routing.topk_groups": 1}
    for router in ROUTERS:
        odd.with_values(together(odd, "routing.router", router))  # raises nothing
        title, instead = k_in_words(base.with_values({"routing.router": router}))
        assert title.startswith("k")
        assert bool(instead) == (not base.with_values({"routing.router": router}).applies("routing.k"))


def visible_keys(window: Window) -> set[str]:
    return {key for key, row in window.controls.rows.items() if row.label.isVisibleTo(window.controls)}


def test_a_router_shows_its_own_knobs_and_a_fold_hides_losses_that_are_off(qtbot: QtBot, window: Window) -> None:
    controls = window.controls
    hidden = {key for key in KNOBS if key.startswith("balance.")} - set(USUAL)
    assert not controls.more.isChecked()
    for router in ROUTERS:
        settings = SMALL.with_values({"routing.router": router})
        controls.show_settings(settings)
        assert visible_keys(window) == {
            key for key in KNOBS if settings.applies(key) and not useless(settings, key)
        } - hidden | {"routing.k"}
        for key, sentence in looks_ahead(settings).items():
            assert sentence in controls.rows[key].note.text()
    assert not {"routing.drop", "routing.scope", "model.shared_gate"} & visible_keys(window)
    controls.show_settings(SMALL.with_values({"routing.capacity_factor": 1, "model.shared_experts": 1}))
    assert {"routing.drop", "routing.scope", "model.shared_gate"} <= visible_keys(window)
    controls.show_settings(SMALL.with_values({"balance.load_coefficient": 0.1}))
    assert visible_keys(window) & hidden == {"balance.load_coefficient"}
    assert controls.rows["balance.load_coefficient"].note.text() == "Does nothing here: it needs noise."
    controls.show_settings(SMALL.with_values({"balance.load_coefficient": 0.1, "routing.router": "switch"}))
    assert controls.rows["balance.load_coefficient"].note.text() == "Does nothing here: not with switch."
    controls.show_settings(SMALL)
    assert "More losses" in controls.more.text()
    controls.more.click()
    assert visible_keys(window) & hidden == {key for key in hidden if SMALL.applies(key)}
    assert "Fewer losses" in controls.more.text()
    window.close()
    assert window.memory.value("more losses") == "true"


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
    window.bar.probe_line.setFocus()
    window.bar.probe_line.selectAll()
    qtbot.keyClicks(window.bar.probe_line, "a b c")
    window.bar.probe_line.setText(window.bar.probe_line.text().replace(" c", "↵c"))  # QTest types Latin letters only
    qtbot.keyClick(window.bar.probe_line, Qt.Key.Key_Return)
    wanted = ["a", " ", "b", "\n", "c"]
    qtbot.waitUntil(lambda: window.snapshot is not None and list(window.snapshot.tokens or ()) == wanted, timeout=WAIT)
    assert window.runner.training
    focus = QApplication.focusWidget()
    assert focus is not None
    qtbot.keyClick(focus, Qt.Key.Key_Space)  # the keys are the window's again
    assert not window.runner.training
    assert window.bar.probe_line.text() == "a b↵c"


def test_save_then_open_goes_on_with_the_same_routing(qtbot: QtBot, window: Window, tmp_path: Path) -> None:
    train(qtbot, window, 3)
    window.train_action.trigger()
    qtbot.waitUntil(settled(window), timeout=WAIT)
    window.send(SaveModel(str(tmp_path / "model.safetensors")))
    qtbot.waitUntil(settled(window), timeout=WAIT)
    assert window.snapshot is not None
    saved = window.snapshot
    assert "Saved" in window.notices.words.text()
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
    window.files.open_paths([str(path)])
    qtbot.waitUntil(window.notices.isVisible, timeout=WAIT)
    assert "bad.safetensors" in window.notices.words.text()
    assert "Traceback" not in window.notices.words.text()
    train(qtbot, window, 2)


def test_a_defect_in_the_session_reaches_the_window_and_restart_mends_it(
    qtbot: QtBot, window: Window, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moeviz.moe.trainer import Trainer

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "advance", lambda self: 1 / 0)
        window.train_action.trigger()
        qtbot.waitUntil(window.notices.isVisible, timeout=WAIT)
    assert "division by zero" in window.notices.words.text()
    window.notices.copy.click()
    assert "ZeroDivisionError" in QGuiApplication.clipboard().text()
    window.restart_action.trigger()
    train(qtbot, window, 2)


def places(controls: Controls) -> dict[str, int]:
    QApplication.processEvents()  # they are laid out
    return {key: row.field.mapTo(controls.body, QPoint(0, 0)).y() for key, row in controls.rows.items() if row.seen}


def type_k(qtbot: QtBot, window: Window, value: str) -> None:
    field = window.controls.rows["routing.k"].field
    field.setFocus()
    field.selectAll()  # type: ignore[attr-defined]
    qtbot.keyClicks(field, value)
    qtbot.keyClick(field, Qt.Key.Key_Return)


def test_k_above_the_experts_is_explained_at_the_knob_until_it_is_settled(qtbot: QtBot, window: Window) -> None:
    row, controls = window.controls.rows["routing.k"], window.controls
    for settle in (lambda: type_k(qtbot, window, "3"), controls.refused.timeout.emit):
        before = places(controls)
        type_k(qtbot, window, "12")
        assert "k is 12 but Experts is 8: a token cannot choose more experts" in row.note.text()
        assert "routing.k" not in row.note.text()
        assert row.note.isVisible()
        assert controls.refused.isActive()
        after = places(controls)
        assert row.field.value() == window.settings.routing.k  # type: ignore[attr-defined]
        under = row.note.mapTo(controls.body, QPoint(0, 0)).y()
        assert after["routing.k"] < under < after["routing.noise"]
        high = row.note.height()
        for key, y in before.items():  # those above stay, those below give way by the sentence's height
            down = after[key] - y
            assert down == 0 if y <= before["routing.k"] else high <= down <= high + 8, key
        settle()
        assert row.note.isHidden()
        assert places(controls) == before
    assert window.settings.routing.k == 3


def test_what_does_nothing_says_so_in_one_line_under_its_knob(qtbot: QtBot, window: Window) -> None:
    row, controls = window.controls.rows["balance.coefficient"], window.controls
    controls.show_settings(SMALL.with_values({"balance.loss": "none"}))
    places(controls)
    assert row.note.text() == "Does nothing here: no balance loss."
    assert row.note.height() < 2 * row.note.fontMetrics().height()
    controls.show_settings(SMALL.with_values({"routing.k": 1}))
    assert "no gradient" in controls.rows["routing.k"].note.text()
    assert row.note.isHidden()


def test_divergence_pauses_with_the_last_good_state_and_a_reason(
    qtbot: QtBot, window: Window, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(qtbot, window, 3)
    window.knobs.change({"train.lr": 0.1})
    import torch

    from moeviz.moe.trainer import Trainer

    def poisoned(trainer: Trainer, advance: Callable[[Trainer], None] = Trainer.advance) -> None:
        with torch.no_grad():
            next(trainer.model.parameters()).fill_(float("inf"))
        advance(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "advance", poisoned)
        qtbot.waitUntil(lambda: not window.runner.training, timeout=WAIT)
        qtbot.waitUntil(window.notices.isVisible, timeout=WAIT)
    assert "learning rate of 0.1" in window.notices.words.text()
    train(qtbot, window, 2)
    assert np.isfinite(window.history.scalar("loss")[-1])


@pytest.mark.parametrize("ending", ["png", "svg", "pdf", "csv"])
def test_every_plot_and_the_dashboard_export(qtbot: QtBot, window: Window, tmp_path: Path, ending: str) -> None:
    train(qtbot, window, 3)
    window.train_action.trigger()
    qtbot.waitUntil(settled(window), timeout=WAIT)
    for name in (*PLACES, "dashboard"):
        path = tmp_path / f"{name}.{ending}"
        window.files.export_to(name, str(path))
        qtbot.waitUntil(lambda p=path: window.notices.words.text() == f"Exported to {p}.", timeout=WAIT)
        assert path.stat().st_size > 50
    window.files.export_to("load", str(tmp_path / "nowhere" / f"load.{ending}"))
    assert "does not exist" in window.notices.words.text()


def test_settings_are_copied_and_pasted(qtbot: QtBot, window: Window) -> None:
    window.files.copy_settings()
    assert Settings.from_json(QGuiApplication.clipboard().text()) == SMALL
    QGuiApplication.clipboard().setText('{"routing.k": 99}')
    window.files.paste_settings()
    assert "routing.k is 99" in window.notices.words.text()
    QGuiApplication.clipboard().setText(SMALL.with_values({"routing.k": 3}).to_json())
    window.files.paste_settings()
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


def test_a_theme_reaches_the_frame_and_the_title_bars(qtbot: QtBot, window: Window) -> None:
    frame = Frame(window.memory)
    qtbot.addWidget(frame)
    frame.hold(window)
    for name in ("light", "dark"):
        window.set_theme(name)
        for widget in (frame, *(dock.titleBarWidget() for dock in window.docks.values())):
            if widget is not None:
                assert widget.palette().window().color() == QColor(THEMES[name].window)
    frame.takeCentralWidget().setParent(None)  # the fixture closes the window itself


def commands(menu: QMenu | QMenuBar) -> Iterator[QAction]:
    for entry in menu.actions():
        if isinstance(inner := entry.menu(), QMenu):  # type: ignore[attr-defined]
            yield from commands(inner)
        elif not entry.isSeparator():
            yield entry


def test_every_command_has_a_shortcut_of_its_own(window: Window) -> None:
    found = list(commands(window.menuBar()))
    keys = [command.shortcut().toString() for command in found]
    assert len(found) > 35
    assert not [command.text() for command in found if not command.shortcut().toString()]
    assert len(keys) == len(set(keys))
    others = [a for a in window.findChildren(QAction) if a.shortcut().toString() and a not in found]
    assert others == []  # every key is shown in a menu
    assert len({numbered("Ctrl", i) for i in range(1, 21)}) == 20


# ---- state, progress, device
def test_training_so_many_steps_tells_the_time_left_and_pauses(qtbot: QtBot, window: Window) -> None:
    window.train_for(100_000)
    qtbot.waitUntil(lambda: " left" in window.status.work.text(), timeout=WAIT)
    assert "of 100,000" in window.status.work.text()
    assert window.status.labels["state"].text() == "Training"
    window.status.cancel.click()
    qtbot.waitUntil(settled(window), timeout=WAIT)
    assert window.snapshot is not None
    step = window.snapshot.step
    assert 0 < step < 100_000
    assert not window.status.work.isVisible()
    assert window.status.labels["state"].text() == "Paused"
    window.train_for(5)
    qtbot.waitUntil(settled(window), timeout=WAIT)
    assert window.snapshot.step == step + 5


def test_the_number_of_steps_is_asked_for_and_remembered(
    qtbot: QtBot, window: Window, monkeypatch: pytest.MonkeyPatch
) -> None:
    offered: list[int] = []

    def ask(parent: object, title: str, words: str, value: int, low: int, high: int) -> tuple[int, bool]:
        offered.append(value)
        return 3, True

    monkeypatch.setattr(QInputDialog, "getInt", ask)
    for step in (3, 6):
        action(window, "Train N steps…").trigger()
        qtbot.waitUntil(lambda: window.runner.training, timeout=WAIT)
        qtbot.waitUntil(settled(window), timeout=WAIT)
        assert window.snapshot is not None
        assert window.snapshot.step == step
    assert offered == [1000, 3]


def test_a_pause_shows_the_newest_state_in_every_panel(qtbot: QtBot, window: Window) -> None:
    train(qtbot, window, 600)  # more than the steps that load over time lets pass before it draws again
    window.train_action.trigger()
    qtbot.waitUntil(settled(window), timeout=WAIT)
    assert window.snapshot is not None
    last = window.runner.advances
    assert window.snapshot.step == last
    for name in ("losses", "load_over_time"):
        assert window.panels[name].table()[1][-1][0] == last
    assert f"step {last}" in window.panels["losses"].footer()
    window.step_action.trigger()
    qtbot.waitUntil(settled(window), timeout=WAIT)
    assert window.panels["load_over_time"].table()[1][-1][0] == last + 1


def choose(box: QComboBox, text: str) -> None:
    if box.findText(text) < 0:
        box.addItem(text)
    box.setCurrentText(text)
    box.activated.emit(box.currentIndex())


def test_the_device_box_offers_what_is_there_and_goes_back_when_refused(qtbot: QtBot, window: Window) -> None:
    from moeviz.moe.devices import devices

    box = window.bar.device_box
    assert tuple(box.itemText(i) for i in range(box.count())) == devices()
    train(qtbot, window, 2)
    choose(box, "cuda:77")
    qtbot.waitUntil(lambda: "no device 'cuda:77'" in window.notices.words.text(), timeout=WAIT)
    qtbot.waitUntil(lambda: window.device == "cpu", timeout=WAIT)
    train(qtbot, window, 2)


def test_after_a_failure_restart_uses_the_device_in_the_box(
    qtbot: QtBot, window: Window, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moeviz.moe.trainer import Trainer

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "advance", lambda self: 1 / 0)
        window.train_action.trigger()
        qtbot.waitUntil(lambda: window.status.labels["state"].text() == "Failed", timeout=WAIT)
    choose(window.bar.device_box, "cuda:77")
    window.restart_action.trigger()
    qtbot.waitUntil(lambda: "no device 'cuda:77'" in window.notices.words.text(), timeout=WAIT)
    choose(window.bar.device_box, "cpu")
    window.restart_action.trigger()
    train(qtbot, window, 2)


def test_closing_waits_for_a_file_that_is_being_written(qtbot: QtBot, window: Window, tmp_path: Path) -> None:
    go = threading.Event()

    def slow(report: Report) -> str:
        assert go.wait(20)
        return "Saved."

    assert window.runner.errand(slow, "Saving run.zarr")
    window.close()
    assert window.isVisible()
    assert "the window closes when that is done" in window.notices.words.text()
    window.watch()
    go.set()
    qtbot.waitUntil(lambda: not window.isVisible(), timeout=WAIT)


# ---- keys
def test_arrow_keys_walk_unless_a_widget_uses_them(qtbot: QtBot, window: Window) -> None:
    def press(key: Qt.Key) -> None:
        focus = QApplication.focusWidget()
        assert focus is not None
        qtbot.keyClick(focus, key)

    row = window.controls.rows["routing.k"]
    window.activateWindow()
    window.setFocus()
    qtbot.waitUntil(window.hasFocus, timeout=WAIT)
    press(Qt.Key.Key_Right)
    press(Qt.Key.Key_Right)
    press(Qt.Key.Key_Down)
    assert (window.pinned.token, window.pinned.layer) == (1, 1)
    assert row.slider is not None
    row.slider.setFocus()
    press(Qt.Key.Key_Right)
    assert window.settings.routing.k == 3
    row.field.setFocus()
    press(Qt.Key.Key_Up)
    assert window.settings.routing.k == 4
    window.controls.rows["routing.router"].field.setFocus()
    press(Qt.Key.Key_Down)
    assert window.settings.routing.router != "topk"
    window.bar.probe_line.setFocus()
    window.bar.probe_line.setCursorPosition(0)
    press(Qt.Key.Key_Right)
    assert window.bar.probe_line.cursorPosition() == 1
    assert (window.pinned.token, window.pinned.layer) == (1, 1)
    press(Qt.Key.Key_Escape)  # the keys are the window's again
    press(Qt.Key.Key_Right)
    assert window.pinned.token == 0


@pytest.mark.parametrize("key", ["routing.k", "train.lr", "seed"])
def test_a_knob_that_has_the_keys_leaves_those_of_commands_to_the_window(
    qtbot: QtBot, window: Window, key: str
) -> None:
    def press(key: Qt.Key) -> None:
        focus = QApplication.focusWidget()
        assert focus is not None
        qtbot.keyClick(focus, key)

    field = window.controls.rows[key].field
    assert isinstance(field, QAbstractSpinBox)
    window.activateWindow()
    field.setFocus()
    qtbot.waitUntil(field.hasFocus, timeout=WAIT)
    field.selectAll()
    before = field.text()
    press(Qt.Key.Key_Space)
    qtbot.waitUntil(lambda: window.snapshot is not None and window.snapshot.step > 1, timeout=WAIT)
    press(Qt.Key.Key_Space)
    assert not window.runner.training
    assert field.text() == before
    press(Qt.Key.Key_R)
    assert window.question.open
    field.selectAll()
    qtbot.keyClicks(field, "0.1" if key == "train.lr" else "1")
    assert field.text() == ("0.1" if key == "train.lr" else "1")


# ---- export
def test_the_export_dialog_offers_sizes_and_remembers_them(qtbot: QtBot, window: Window, tmp_path: Path) -> None:
    panel = window.panels["load"]
    window.memory.setValue("folder", str(tmp_path))
    for scale, name in ((3.0, "3x, 288 dpi"), (300 / 96, "print, 300 dpi")):
        dialog = ExportDialog("load", "png", panel.picture_size(), window.memory, window)
        dialog.pixels.setCurrentText(name)
        dialog.print_colours.setChecked(True)
        wanted = tuple(round(side * scale) for side in panel.picture_size().toTuple())  # type: ignore[attr-defined]
        assert dialog.hint.text().startswith(f"{wanted[0]:,} x {wanted[1]:,} pixels")
        dialog.accept()
        dialog.accept()  # the second picture replaces the first
        window.files.export_to("load", dialog.path, scale=dialog.scale, light=dialog.light)
        qtbot.waitUntil(lambda: "Exported" in window.notices.words.text(), timeout=WAIT)
        qtbot.waitUntil(lambda: window.runner.idle, timeout=WAIT)
        image = QImage(str(tmp_path / "load.png"))
        assert (image.width(), image.height()) == wanted
        assert image.pixelColor(2, image.height() - 2) == QColor(THEMES["light"].panel)
    again = ExportDialog("losses", "png", panel.picture_size(), window.memory, window)
    assert (again.pixels.currentText(), again.light) == ("print, 300 dpi", True)
    assert again.path == str(tmp_path / "losses.png")
    again.file.setText(str(tmp_path / "load.png"))
    assert "would be replaced" in again.hint.text()
    again.file.setText(str(tmp_path / "load.gif"))
    assert "must end in .png" in again.hint.text()


def test_export_asks_and_writes(qtbot: QtBot, window: Window, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def accept(dialog: ExportDialog) -> int:
        dialog.file.setText(str(tmp_path / "p.svg"))
        dialog.accept()
        return 1

    monkeypatch.setattr(ExportDialog, "exec", accept)
    window.panels["load"].export_requested.emit("load", "svg")
    qtbot.waitUntil(lambda: "Exported" in window.notices.words.text(), timeout=WAIT)
    assert (tmp_path / "p.svg").stat().st_size > 50


def test_the_dashboard_is_exported_without_knobs_and_bars(qtbot: QtBot, window: Window, tmp_path: Path) -> None:
    seen = [name for name, panel in window.panels.items() if not panel.canvas.visibleRegion().isEmpty()]
    docks = [window.docks[name].geometry() for name in seen]
    wide = max(dock.right() for dock in docks) - min(dock.left() for dock in docks) + 1 + 8
    high = max(dock.bottom() for dock in docks) - min(dock.top() for dock in docks) + 1 + 8
    window.files.export_to("dashboard", str(tmp_path / "all.png"), scale=1.0)
    qtbot.waitUntil(lambda: (tmp_path / "all.png").exists() and window.runner.idle, timeout=WAIT)
    image = QImage(str(tmp_path / "all.png"))
    assert (image.width(), image.height()) == (wide, high)
    for name in window.panels:
        window.docks[name].hide()
    window.files.export("dashboard", "pdf")
    assert window.notices.words.text() == "There is no plot to export: show one first."


def test_a_folder_that_cannot_be_written_is_told(qtbot: QtBot, window: Window, tmp_path: Path) -> None:
    (tmp_path / "load.png").mkdir()  # root may write into any folder, but not over one
    window.files.export_to("load", str(tmp_path / "load.png"))
    qtbot.waitUntil(lambda: "choose another" in window.notices.words.text(), timeout=WAIT)
    assert [path.name for path in tmp_path.glob("*load*")] == ["load.png"]
    window.files.save_run_to("/proc/run.zarr")
    qtbot.waitUntil(lambda: "cannot be written" in window.notices.words.text(), timeout=WAIT)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59.4, "59 s"), (61, "1 min 01 s"), (3599.6, "1 h 00 min"), (9000, "2 h 30 min")],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_progress_is_told_with_rate_and_time_left() -> None:
    assert in_words(Progress("Saving", 50, 200, 0, None), 2.0) == "Saving: 50 of 200, 25/s, 6 s left"
    assert in_words(Progress("Saving", 0, 200, 0, None), 2.0) == "Saving: 0 of 200"
    assert in_words(Progress("Reading", 0, 0, 0, None), 2.4) == "Reading, 2 s"


@pytest.mark.parametrize(
    "broken", [b"\x00\xff[[[ not = an ini \n===\n[a\n" * 3, b"[General]\ntheme=dark\n\0\xff\xfe [[["]
)
def test_a_broken_memory_file_is_set_aside(tmp_path: Path, broken: bytes) -> None:
    file = tmp_path / "window.ini"
    file.write_bytes(broken)
    store = memory(file)
    assert (tmp_path / "window.broken").read_bytes() == broken
    store.setValue("theme", "light")
    store.sync()
    assert store.status() == QSettings.Status.NoError
    assert b"theme=light" in file.read_bytes()


@pytest.mark.parametrize(("kept", "offered"), [(None, 1000), ("300", 300), ("abc", 1000)])
def test_the_number_of_steps_is_remembered(
    window: Window, monkeypatch: pytest.MonkeyPatch, kept: str | None, offered: int
) -> None:
    window.memory.setValue("steps", kept)
    asked: list[int] = []
    monkeypatch.setattr(QInputDialog, "getInt", lambda *args: (asked.append(args[3]), (0, False))[1])
    window.ask_steps()
    assert asked == [offered]


def test_numbers_have_three_digits() -> None:
    assert [short(x) for x in (0, 1.23456, 1234, 39_400, 2.5e6)] == ["0", "1.23", "1.23k", "39.4k", "2.5M"]


def test_the_timeline_shows_the_past_while_training_goes_on(qtbot: QtBot, window: Window) -> None:
    train(qtbot, window, 8)
    window.timeline.slider.setValue(0)
    assert window.shown is window.history.snapshots[0]
    train(qtbot, window, 3)
    assert window.shown is not None
    assert window.shown.step == 0
    assert window.panels["tokens"].snapshot is window.shown
    action(window, "Back to the newest step").trigger()
    assert window.shown is window.snapshot
    train(qtbot, window, 3)
    qtbot.waitUntil(lambda: window.panels["tokens"].snapshot is window.snapshot, timeout=WAIT)


def test_panels_of_a_survey_go_along_with_the_timeline(qtbot: QtBot, window: Window) -> None:
    window.layouts.choose("Inspect")
    qtbot.waitUntil(lambda: window.survey is not None and settled(window)(), timeout=WAIT)
    for values in ({"routing.k": 2}, {"routing.k": 1}):
        window.knobs.change(values)
        qtbot.waitUntil(settled(window), timeout=WAIT)
        for _ in range(3):
            window.step_action.trigger()
            qtbot.waitUntil(settled(window), timeout=WAIT)
    panel, newest = window.panels["co_activation"], window.survey
    assert newest is not None
    assert newest.step == 6
    assert panel.survey is newest

    def goes_along() -> bool:
        survey, shown = panel.survey, window.shown
        assert shown is not None
        return survey is not None and survey.step == shown.step and survey.probe.layers[0].k == shown.layers[0].k

    film = window.history.snapshots
    both = [place for place, snapshot in enumerate(film) if snapshot.step == 3]  # with two experts, and with one
    assert {film[place].layers[0].k for place in both} == {1, 2}
    for place in (1, *both, 2):
        window.timeline.slider.setValue(place)
        assert panel.snapshot is window.shown
        qtbot.waitUntil(goes_along, timeout=WAIT)
        qtbot.waitUntil(lambda: not window.drawing, timeout=WAIT)
        assert f"step {film[place].step}" in panel.footer()
    window.timeline.follow()
    qtbot.waitUntil(lambda: panel.survey is newest, timeout=WAIT)


def test_while_the_handle_moves_no_panel_of_a_survey_is_painted(qtbot: QtBot, window: Window) -> None:
    window.layouts.choose("Inspect")
    qtbot.waitUntil(lambda: window.survey is not None and settled(window)(), timeout=WAIT)
    for _ in range(4):
        window.step_action.trigger()
        qtbot.waitUntil(settled(window), timeout=WAIT)
    flow = window.panels["flow"]
    window.repaint_panels()
    before = flow.draws
    for place in (3, 2, 1, 0):
        window.timeline.slider.setValue(place)
        window.repaint_panels()
    assert flow.draws == before
    qtbot.waitUntil(lambda: flow.survey is not None and flow.survey.step == 0, timeout=WAIT)


def test_a_saved_run_opens_again_as_a_trace(qtbot: QtBot, window: Window, tmp_path: Path) -> None:
    train(qtbot, window, 5)
    window.knobs.change({"routing.k": 3})
    train(qtbot, window, 5)
    path = str(tmp_path / "run.zarr")
    window.train_action.trigger()
    qtbot.waitUntil(settled(window), timeout=WAIT)
    last, count, marks = window.snapshot, len(window.history.snapshots), list(window.history.marks)
    steps, shares = window.history.steps, window.history.load_share(1)
    window.files.save_run_to(path)
    qtbot.waitUntil(lambda: "Saved" in window.notices.words.text(), timeout=WAIT)
    window.files.open_paths([path])
    window.question.yes.click()
    qtbot.waitUntil(lambda: window.of_trace, timeout=WAIT)
    qtbot.waitUntil(settled(window), timeout=WAIT)
    assert window.status.labels["state"].text() == "Trace"
    assert window.status.labels["rate"].text() == window.status.labels["device"].text() == ""
    assert last is not None
    assert window.snapshot is not None
    assert window.snapshot is not last
    assert np.array_equal(window.snapshot.layers[1].expert_ids_TK, last.layers[1].expert_ids_TK)
    assert len(window.history.snapshots) == count
    assert window.history.marks == marks
    assert np.array_equal(window.history.steps, steps)
    assert np.array_equal(window.history.load_share(1), shares)
    assert all(layer["train_batches"] == min(len(steps), 100) for layer in stats(open_trace(path))["layers"])
    assert window.settings.routing.k == 3
    window.train_action.trigger()
    qtbot.waitUntil(lambda: "recording" in window.notices.words.text(), timeout=WAIT)
    assert not window.runner.training
    assert not any(row.field.isEnabled() for row in window.controls.rows.values())
    assert window.controls.recording.isVisible()
    window.knobs.change({"routing.k": 5})
    assert shown(window, "routing.k") == 3
    window.restart_action.trigger()
    qtbot.waitUntil(lambda: not window.of_trace and window.snapshot is not None, timeout=WAIT)
    assert window.notices.isHidden()
    assert not window.controls.recording.isVisible()
    assert all(window.controls.rows[key].field.isEnabled() for key in ("routing.k", "model.layers"))
    train(qtbot, window, 2)


def test_a_broken_trace_is_told_and_the_run_goes_on(qtbot: QtBot, window: Window, tmp_path: Path) -> None:
    train(qtbot, window, 2)
    (tmp_path / "zarr.json").write_text("{")
    window.files.open_paths([str(tmp_path)])
    assert not window.question.open
    qtbot.waitUntil(window.notices.isVisible, timeout=WAIT)
    assert "Traceback" not in window.notices.words.text()
    train(qtbot, window, 2)
    assert window.runner.training


def test_a_survey_is_made_only_for_a_panel_that_is_seen(
    qtbot: QtBot, window: Window, monkeypatch: pytest.MonkeyPatch
) -> None:
    surveys, send = [], window.runner.send

    def note(command: object) -> None:
        surveys.extend([command] if isinstance(command, Survey) else [])
        send(command)  # type: ignore[arg-type]

    monkeypatch.setattr(window.runner, "send", note)
    window.one_step()
    qtbot.waitUntil(settled(window), timeout=WAIT)
    assert (surveys, window.survey) == ([], None)
    window.docks["experts_domains"].toggleViewAction().trigger()
    qtbot.waitUntil(lambda: window.survey is not None, timeout=WAIT)
    qtbot.waitUntil(settled(window), timeout=WAIT)
    assert window.panels["experts_domains"].table()[1]
    assert len(surveys) == 1  # nothing changed since
    window.one_step()
    qtbot.waitUntil(lambda: window.survey is not None and window.survey.step == 2, timeout=WAIT)
    window.docks["tokens_experts"].raise_()  # the other is behind it now
    qtbot.waitUntil(settled(window), timeout=WAIT)
    asked = len(surveys)
    window.one_step()
    qtbot.waitUntil(settled(window), timeout=WAIT)
    assert len(surveys) == asked
    window.restart_action.trigger()
    if window.question.open:
        window.question.answer(True)
    qtbot.waitUntil(lambda: window.survey is None, timeout=WAIT)  # it was of another model


@pytest.mark.parametrize(
    ("scalars", "words"),
    [
        ({}, []),
        ({"heldout": [2.0, np.nan, 1.688, np.nan]}, [("held-out 1.69 nats/char", 3)]),
        (
            {"heldout": [2.0, 1.0, 1.0, 1.0], "accuracy": [0.5, 0.9714, np.nan, np.nan]},
            [("accuracy 97.1 %", 2), ("held-out 1 nats/char", 4)],
        ),
        ({"mrr": [0.1234] * 4, "hit_at_10": [np.nan, np.nan, np.nan, 0.4]}, [("hit@10 40 %", 4), ("MRR 0.123", 4)]),
        (
            {"hit_at_1": [0.0] * 4, "hit_at_1_no_context": [0.1] * 4},
            [("hit@1 0 %", 4), ("without context 10 %", 4)],
        ),
        (
            {"exact_match": [1.0] * 4, "character_accuracy": [0.1] * 4},
            [("exact match 100 %", 4), ("characters right 10 %", 4)],
        ),
        ({"accuracy": [np.nan] * 4, "heldout": [1.0] * 4}, [("held-out 1 nats/char", 4)]),
    ],
)
def test_status_tells_the_newest_held_out_measures_of_the_task(
    scalars: dict[str, list[float]], words: list[tuple[str, int]]
) -> None:
    history = History()
    history.extend(StepLog(np.arange(1, 5), {name: np.array(values) for name, values in scalars.items()}, ()))
    assert [(one.words, one.step) for one in measured(history, "nats/char")] == words


def test_every_measure_of_a_task_has_a_title_for_the_status() -> None:
    assert set(TITLES) == {"heldout", *(name for names in MEASURES.values() for name in names)}


def test_status_tells_all_measures_where_they_push_nothing_out(qtbot: QtBot) -> None:
    window, status, history = QMainWindow(), Status(), History()
    qtbot.addWidget(window)
    window.setStatusBar(status)
    label = status.labels["measure"]
    values = {"hit_at_1": 0.365, "hit_at_1_no_context": 0.185, "heldout": 0.2228}
    history.extend(StepLog(np.array([5000]), {name: np.array([v]) for name, v in values.items()}, ()))
    status.show_facts(ModelFacts(358_000, 137_000, 282_000, "cpu", 1000), 30.0, 12.0)
    window.resize(1200, 100)
    window.show()
    status.show_measure(history, None)
    assert label.text() == "held-out hit@1 36.5 %, without context 18.5 %"
    assert label.toolTip().splitlines() == [
        "Of held-out data:",
        "hit@1 36.5 %, measured at step 5,000",
        "without context 18.5 %, measured at step 5,000",
        "held-out 0.223 nats/token, measured at step 5,000",
    ]
    wide = label.width()
    window.resize(status.layout().totalMinimumSize().width() - 1, 100)
    qtbot.waitUntil(lambda: label.text() == "held-out hit@1 36.5 %", timeout=WAIT)
    assert label.width() < wide
    window.resize(1200, 100)
    assert label.text() == "held-out hit@1 36.5 %, without context 18.5 %"


def test_neither_measures_nor_long_work_make_the_window_wider(qtbot: QtBot) -> None:
    window, status, history = QMainWindow(), Status(), History()
    qtbot.addWidget(window)
    window.setStatusBar(status)
    status.show_facts(ModelFacts(358_000, 137_000, 282_000, "cpu", 1000), 30.0, 12.0)
    window.resize(1200, 100)
    window.show()
    QApplication.processEvents()
    label, every = status.labels["measure"], "held-out hit@1 36.5 %, without context 18.5 %"
    wide = status.layout().totalMinimumSize().width() + label.fontMetrics().horizontalAdvance(every) // 2
    window.resize(wide, 100)
    values = {"hit_at_1": 0.365, "hit_at_1_no_context": 0.185}
    for step in (250, 500, 750):
        history.extend(StepLog(np.array([step]), {name: np.array([v]) for name, v in values.items()}, ()))
        status.show_measure(history, None)
        QApplication.processEvents()
        assert (label.text(), window.width()) == ("held-out hit@1 36.5 %", wide)
        status.show_progress(Progress("Steps", 1, 9, time.monotonic(), None))
        QApplication.processEvents()
        assert (label.text(), window.width()) == (every, wide), "there is room for all"
        status.show_progress(None)
        QApplication.processEvents()
        assert (label.text(), window.width()) == ("held-out hit@1 36.5 %", wide)


def test_status_tells_a_measure_while_training(qtbot: QtBot, window: Window) -> None:
    label = window.status.labels["measure"]
    assert label.text() == ""
    window.train_for(51)
    qtbot.waitUntil(settled(window), timeout=WAIT)
    held = window.history.scalar("heldout")
    assert label.text() == f"held-out {held[np.isfinite(held)][-1]:.3g} nats/char"
    assert label.toolTip() == f"Of held-out data:\n{label.text()}, measured at step 50"
    window.knobs.change({"routing.router": "soft"})  # what it then is has not been measured
    qtbot.waitUntil(lambda: len(window.history.marks) == 1, timeout=WAIT)
    assert label.text() == f"held-out {held[np.isfinite(held)][-1]:.3g} nats/char at step 50"
    train(qtbot, window, 2)
    qtbot.waitUntil(lambda: label.text().endswith("nats/char, looks ahead"), timeout=WAIT)
    window.train_action.trigger()
    qtbot.waitUntil(settled(window), timeout=WAIT)
    window.restart_action.trigger()
    action(window, "Answer: Restart").trigger()
    qtbot.waitUntil(lambda: label.text() == "", timeout=WAIT)


def test_status_says_what_is_measured(window: Window) -> None:
    facts = ModelFacts(1000, 350, 2000, "cpu", 1)
    label = window.status.labels["parameters"]
    window.status.show_facts(facts, 0.0, 0.0)
    assert (label.text(), label.toolTip()) == ("350 of 1k parameters active (35%)", "")
    window.status.show_facts(replace(facts, executed_experts=2.346), 0.0, 0.0)
    assert label.text() == "350 of 1k parameters active (35%, measured)"
    assert "runs 2.35 experts on average" in label.toolTip()
    window.status.show_facts(None, 0.0, 0.0)
    assert label.text() == label.toolTip() == ""


def test_settings_pasted_while_a_question_is_open_take_the_place_of_the_first(qtbot: QtBot, window: Window) -> None:
    train(qtbot, window, 3)
    window.train_action.trigger()
    qtbot.waitUntil(settled(window), timeout=WAIT)
    first = window.settings.with_values({"seed": 5, "train.lr": 0.05})
    second = window.settings.with_values({"seed": 6})
    window.files.use_settings(lambda: first)
    assert window.question.open
    window.files.use_settings(lambda: second)
    assert window.knobs.wanted == {"seed": 6}
    window.question.answer(True)
    qtbot.waitUntil(lambda: window.settings.seed == 6 and settled(window)(), timeout=WAIT)
    assert window.settings.train.lr == SMALL.train.lr


def test_wishes_that_do_not_go_together_are_told_and_nothing_is_asked(qtbot: QtBot, window: Window) -> None:
    train(qtbot, window, 3)
    window.train_action.trigger()
    qtbot.waitUntil(settled(window), timeout=WAIT)
    window.knobs.change({"routing.k": 4, "seed": 5})
    window.knobs.change({"model.experts": 3, "seed": 6})
    assert "k is 4 but Experts is 3: " in window.notices.words.text()
    assert window.knobs.wanted == {"routing.k": 4, "seed": 5}  # the question that is open still stands
