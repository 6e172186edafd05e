"""The panel MoE against dense: exact numbers, what it lacks, and its button in the window."""

from dataclasses import replace

import numpy as np
import pytest
from PySide6.QtCore import QPointF, QRectF, Qt
from pytestqt.qtbot import QtBot
from test_panels import make_snapshot, picture, show
from test_panels_more import twin_log
from test_window import WAIT, action, settled, window

from moeviz.domain.history import History
from moeviz.domain.messages import StepLog
from moeviz.domain.settings import Settings
from moeviz.view.panel import wrapped
from moeviz.view.panels.axes import draw_curve
from moeviz.view.panels.losses import Losses
from moeviz.view.panels.moe_dense import FLOPS, GAP, KEY, NO_HISTORY, NO_TWIN, VIEWS, MoeDense, gap_in_words
from moeviz.view.theme import DARK, LIGHT
from moeviz.view.together import explain
from moeviz.view.window import Window

__all__ = ["window"]  # the fixture


def panel_of(qtbot: QtBot, *logs: StepLog, view: str = VIEWS[0]) -> MoeDense:
    panel = MoeDense(DARK)
    show(qtbot, panel, 700, 400)
    history = History()
    for log in logs:
        history.extend(log)
    panel.show_history(history)
    panel.view.setCurrentText(view)
    panel.refresh()
    return panel


def test_words_are_of_both_models_at_one_step(qtbot: QtBot) -> None:
    panel = panel_of(qtbot, twin_log(10))
    assert panel.footer().split("  ") == [
        "held-out at step 8: MoE 2.92, dense 3.17",
        "MoE − dense = −0.25 ± 0.05: MoE better",
        "FLOPs a token: MoE 200k (first 300k), dense 301k",
        "parameters: MoE 146k of 367k active, dense all 145k",
    ]
    panel.pointed = {"at": 5}
    assert panel.footer().split("  ") == [
        "held-out at step 4: MoE 2.96, dense 3.21",
        "MoE − dense = −0.25 ± 0.05: MoE better",
        "FLOPs a token: MoE 300k, dense 301k",
        "training at step 6: MoE 3.88, dense 3.98",
    ]
    panel.view.setCurrentText(FLOPS)
    panel.refresh()
    assert panel.footer().endswith("step 6: MoE 5.53 GFLOP, dense 5.55 GFLOP")
    assert "nothing held-out" in panel_of(qtbot, twin_log(3)).footer()


@pytest.mark.parametrize(
    ("difference", "error", "words"),
    [
        (0.25, 0.05, "MoE − dense = +0.25 ± 0.05: dense better"),
        (-0.101, 0.05, "MoE − dense = −0.101 ± 0.05: MoE better"),
        (0.1, 0.05, "MoE − dense = +0.1 ± 0.05: within chance"),
        (-0.02, 0.0512, "MoE − dense = −0.02 ± 0.051: within chance"),
        (0.0, 0.0, "MoE − dense = 0 ± 0: within chance"),
        (0.25, np.nan, "MoE − dense = +0.25, its error by chance unknown"),
    ],
)
def test_a_difference_that_chance_may_show_is_none(difference: float, error: float, words: str) -> None:
    assert gap_in_words(difference, error) == words


def test_a_low_panel_says_which_is_better(qtbot: QtBot) -> None:
    """As large as its canvas is in the layout Train in a window of 1280x720."""
    panel = panel_of(qtbot, twin_log(6))
    rect = QRectF(0, 0, 311, 148)
    told = wrapped(panel.footer(), panel.plot_rect(rect).width(), panel._lines(rect))
    assert "± 0.05: MoE better" in told[-1]


def test_a_loss_has_the_unit_of_the_losses(qtbot: QtBot, monkeypatch: pytest.MonkeyPatch) -> None:
    titles: list[str] = []
    monkeypatch.setattr("moeviz.view.panels.moe_dense.draw_y_axis", lambda *given: titles.append(given[-1]))
    for text, unit in ((make_snapshot(), "nats/char"), (replace(make_snapshot(), tokens=("ab",) * 41), "nats/token")):
        for view, title in ((VIEWS[0], unit), (GAP, f"gap ({unit})")):
            panel = panel_of(qtbot, twin_log(12), view=view)
            panel.show_snapshot(text)
            picture(panel)
            assert titles[-1] == title
        losses = Losses(DARK)
        losses.show_snapshot(text)
        assert losses.unit() == unit
        losses.deleteLater()


def test_no_curve_runs_under_the_key(qtbot: QtBot) -> None:
    panel = panel_of(qtbot, twin_log(12))
    for high in (60, 100, 400):
        rect = QRectF(0, 0, 400, high)
        assert panel.frame(rect).rect.top() >= rect.top() + KEY


def test_each_view_draws_its_own_curves(qtbot: QtBot) -> None:
    panel = panel_of(qtbot, twin_log(12))
    log = twin_log(12).scalars_S
    steps, flops, gap = (panel_of(qtbot, twin_log(12), view=view).curves() for view in VIEWS)
    for name, column in (("MoE training", "cross_entropy"), ("dense held-out", "dense_heldout")):
        np.testing.assert_array_equal(steps[name][0], np.arange(1, 13))
        np.testing.assert_array_equal(steps[name][1], log[column])
        np.testing.assert_array_equal(flops[name][1], log[column])
    # each over what it cost itself
    np.testing.assert_allclose(flops["MoE held-out"][0], log["flops"] / 1e9)
    np.testing.assert_allclose(flops["dense held-out"][0], log["dense_flops"] / 1e9)
    np.testing.assert_allclose(gap["training"][1], -0.1)
    np.testing.assert_allclose(gap["held-out"][1][3::4], -0.25)
    pictures = []
    for view in VIEWS:
        panel.view.setCurrentText(view)
        pictures.append(picture(panel))
    assert len(set(pictures)) == 3
    assert panel.frame(QRectF(0, 0, 400, 300)).y0 < -0.25, "the line of no gap and all values are on the axis"
    assert panel.frame(QRectF(0, 0, 400, 300)).y1 >= 0


def test_a_mark_stands_where_the_moe_was(qtbot: QtBot) -> None:
    panel = panel_of(qtbot, twin_log(12), view=FLOPS)
    assert panel._x_of(8) == pytest.approx(twin_log(12).scalars_S["flops"][7] / 1e9)
    panel.view.setCurrentText(GAP)
    panel.refresh()
    assert panel._x_of(8) == 8


def test_pointing_finds_the_nearest_step(qtbot: QtBot) -> None:
    for view in VIEWS:
        panel = panel_of(qtbot, twin_log(12), view=view)
        rect = panel.plot_rect(QRectF(panel.canvas.rect()))
        frame = panel.frame(rect)
        at = QPointF(frame.x(panel._x_of(9)), frame.rect.center().y())
        assert panel.hit(at, rect) == {"at": 8}
        assert panel.hit(QPointF(frame.rect.left() - 5, at.y()), rect) == {}


def test_the_table_holds_all_of_both(qtbot: QtBot) -> None:
    head, rows = panel_of(qtbot, twin_log(5)).table()
    scalars = twin_log(5).scalars_S
    assert head[0] == "step"
    assert set(head[1:]) == set(scalars)
    assert [row[0] for row in rows] == [1, 2, 3, 4, 5]
    assert [row[head.index("dense_flops")] for row in rows] == scalars["dense_flops"].tolist()
    assert [row[head.index("heldout")] for row in rows] == ["", "", "", pytest.approx(2.96), ""]


def test_without_a_twin_it_says_how_to_get_one(qtbot: QtBot) -> None:
    log = twin_log(5)
    alone = StepLog(log.steps_S, {"cross_entropy": log.scalars_S["cross_entropy"]}, ())
    panel = panel_of(qtbot, alone)
    assert panel.lack() == NO_TWIN
    assert "the knob “Dense twin”" in NO_TWIN
    assert panel.table()[1] == []
    panel.show_history(History())
    assert panel.lack() == NO_HISTORY
    opened = History()
    measured = {name: np.array([3.0]) for name in ("heldout", "dense_heldout")}
    opened.extend(StepLog(np.array([400]), measured, ()))
    panel.show_history(opened)
    assert panel.lack() == NO_HISTORY, "it has a twin, and only the training is missing"


def test_a_twin_that_stopped_is_told_and_its_curve_ends(qtbot: QtBot) -> None:
    log = twin_log(8)
    scalars = {name: values.copy() for name, values in log.scalars_S.items()}
    for name in ("dense_cross_entropy", "dense_heldout"):
        scalars[name][5:] = np.nan
    panel = panel_of(qtbot, StepLog(log.steps_S, scalars, ()))
    assert panel.footer().startswith("held-out at step 4:")
    assert panel.footer().endswith("training at step 8: MoE 3.84, the dense twin has stopped")
    assert np.isfinite(panel.curves()["dense training"][1]).sum() == 5
    assert picture(panel)


def test_the_two_are_told_apart_without_colour(qtbot: QtBot, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[bool] = []

    def note(*given: object, **more: object) -> None:
        drawn.append(bool(more.get("dashes")))
        draw_curve(*given, **more)  # type: ignore[arg-type]

    monkeypatch.setattr("moeviz.view.panels.moe_dense.draw_curve", note)
    picture(panel_of(qtbot, twin_log(12)))
    assert sorted(drawn) == [False] * 3 + [True] * 3, "training, held-out and key: one dashed of each"


def test_light_and_dark_differ(qtbot: QtBot) -> None:
    panel = panel_of(qtbot, twin_log(12))
    dark = picture(panel)
    panel.apply_theme(LIGHT)
    assert picture(panel) != dark


def test_top_p_says_what_its_twin_costs() -> None:
    settings = Settings().with_values({"routing.router": "top_p", "train.dense_twin": "on"})
    assert "FLOPs of all experts" in explain(settings)["train.dense_twin"]
    assert explain(settings.with_values({"routing.router": "topk"})) == {}


# ---- in the window
def test_the_button_trains_a_twin_beside_and_can_be_undone(qtbot: QtBot, window: Window) -> None:
    panel = window.panels["moe_dense"]
    assert isinstance(panel, MoeDense)
    window.docks["moe_dense"].setVisible(True)
    window.docks["moe_dense"].raise_()
    window.train_for(3)
    qtbot.waitUntil(settled(window), timeout=WAIT)
    assert panel.lack() == NO_TWIN
    assert not panel.twin.isChecked()
    # a trained model is not lost without a question, and "no" takes the button back
    qtbot.mouseClick(panel.twin, Qt.MouseButton.LeftButton)
    assert "Dense twin off → on starts the model anew and loses 3 steps" in window.question.words.text()
    assert panel.twin.isChecked()
    window.question.no.click()
    assert not panel.twin.isChecked()
    assert window.settings.train.dense_twin == "off"
    qtbot.mouseClick(panel.twin, Qt.MouseButton.LeftButton)
    window.question.yes.click()
    qtbot.waitUntil(lambda: window.snapshot is not None and window.snapshot.step == 0, timeout=WAIT)
    qtbot.waitUntil(settled(window), timeout=WAIT)
    assert panel.twin.isChecked()
    assert panel.lack() == NO_HISTORY
    window.train_for(55)
    qtbot.waitUntil(settled(window), timeout=WAIT)
    assert panel.lack() == ""
    assert panel.footer().startswith("held-out at step 50: MoE ")
    assert window.history.marks[0] == (0, "Dense twin off → on")
    # k changes on the running pair
    window.knobs.change({"routing.k": 1})
    window.train_for(2)
    qtbot.waitUntil(settled(window), timeout=WAIT)
    assert len(window.history.steps) == 57
    assert "(first " in panel.footer()
    # and undone, one after the other
    action(window, "Undo k 1").trigger()
    action(window, "Undo Dense twin on").trigger()
    assert "Dense twin on → off starts the model anew" in window.question.words.text()
    window.question.yes.click()
    qtbot.waitUntil(lambda: window.snapshot is not None and window.snapshot.step == 0, timeout=WAIT)
    qtbot.waitUntil(settled(window), timeout=WAIT)
    assert not panel.twin.isChecked()
