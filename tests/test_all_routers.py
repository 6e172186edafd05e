"""Every router on the screen: each panel shows its routing as it is, and the numbers are the routing's own."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
from PySide6.QtCore import QPointF, QRectF
from PySide6.QtWidgets import QComboBox
from pytestqt.qtbot import QtBot

from moeviz.domain import metrics
from moeviz.domain.history import History
from moeviz.domain.routing import Routing, RoutingSnapshot
from moeviz.domain.selection import Selection
from moeviz.domain.settings import KNOBS, ROUTERS, Settings
from moeviz.view.dashboard import PANELS
from moeviz.view.panel import Panel, wrapped
from moeviz.view.panels.gate_weights import margin_in_words
from moeviz.view.panels.losses import KINDS, MEASURES, NAMES, UNITS
from moeviz.view.panels.tokens import describe, first_choices
from moeviz.view.panels.tokens_experts import gate_matrix
from moeviz.view.panels.words import kind_in_words
from moeviz.view.theme import DARK, LIGHT

MINE = ("tokens", "tokens_experts", "gate_weights", "load", "load_over_time", "losses", "layers_experts")
TINY = Settings().with_values(
    {
        "model.layers": 2,
        "model.width": 16,
        "model.expert_width": 16,
        "model.context": 32,
        "train.batch": 8,
        "model.experts": 5,
    }
)
# capacity where a router can drop, so that drops are seen too
CASES = [(router, 0.0) for router in ROUTERS] + [(router, 0.75) for router in ("topk", "top_p", "null")]


@cache
def trained(router: str, capacity: float, **more: Any) -> tuple[RoutingSnapshot, History]:
    """Three steps of a tiny model with every loss that this router takes."""
    import torch

    from moeviz.moe.tasks.text import load_text
    from moeviz.moe.trainer import Trainer

    torch.set_num_threads(1)  # as a session does: more are slower on matrices this small
    coefficients = [key for key in KNOBS if key.endswith("_coefficient") and KNOBS[key].applies_to(router)]
    values = {"routing.router": router, "routing.capacity_factor": capacity, "routing.noise": 0.5, **more}
    settings = TINY.with_values({**values, **dict.fromkeys(coefficients, 0.01)})
    trainer = Trainer(settings, load_text(""), "cpu", "to be, or not to be:\nthat is the question")
    history = History()
    for _ in range(3):
        trainer.advance()
    trainer.check()
    log = trainer.flush()
    assert log is not None
    history.extend(log)
    snapshot = trainer.snapshot()
    history.add_snapshot(snapshot)
    return snapshot, history


@pytest.fixture(scope="module", autouse=True)
def _read_the_text_once() -> Iterator[None]:
    from moeviz.moe.tasks import text

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "load_text", cache(text.load_text))
        yield


def shown(qtbot: QtBot, name: str, snapshot: RoutingSnapshot, history: History | None = None) -> Any:
    panel = PANELS[name](DARK)
    qtbot.addWidget(panel)
    panel.resize(600, 300)
    panel.show()
    panel.show_snapshot(snapshot)
    panel.show_history(history)
    panel.refresh()
    return panel


def paint(panel: Panel) -> bytes:
    return bytes(panel.canvas.grab().toImage().constBits())


@pytest.mark.parametrize(("router", "capacity"), CASES)
def test_every_panel_paints_every_router(qtbot: QtBot, router: str, capacity: float) -> None:
    snapshot, history = trained(router, capacity)
    for name in MINE:
        panel = shown(qtbot, name, snapshot, history)
        assert panel.lack() == "", name
        for size in ((200, 96), (277, 278), (900, 500)):
            panel.resize(*size)
            panel.show_selection(
                Selection(1) if size[0] == 277 else Selection(0, 5, snapshot.layers[0].num_experts - 1)
            )
            panel.point_at(QPointF(size[0] / 2, size[1] / 3))
            paint(panel)
        panel.apply_theme(LIGHT)
        panel.resize(300, 200)
        for box in panel.findChildren(QComboBox):
            for i in range(box.count()):
                box.setCurrentIndex(i)
                paint(panel)


@pytest.mark.parametrize(("router", "capacity"), CASES)
def test_tables_hold_the_routing_of_every_router(qtbot: QtBot, router: str, capacity: float) -> None:
    snapshot, history = trained(router, capacity)
    layer, counts = snapshot.layers[0], snapshot.train_counts_LE[0]
    head, rows = shown(qtbot, "tokens", snapshot).table()
    assert len(head) == len(rows[0])
    np.testing.assert_array_equal([row[2 : 2 + layer.k] for row in rows], layer.expert_ids_TK)
    if layer.dropped_TK is not None:
        np.testing.assert_array_equal([row[-layer.k :] for row in rows], layer.dropped_TK)
    cells = np.array([row[2:] for row in shown(qtbot, "tokens_experts", snapshot).table()[1]])
    ids, weights = layer.expert_ids_TK, layer.gate_weights_TK
    assert weights is not None
    for t, row in enumerate(cells):
        by_hand = dict.fromkeys(range(layer.num_experts), 0.0)
        for e, w in zip(ids[t].tolist(), weights[t].tolist(), strict=True):
            if e >= 0:
                by_hand[e] = w
        np.testing.assert_allclose(row, list(by_hand.values()))
    panel = shown(qtbot, "gate_weights", snapshot)
    panel.show_selection(Selection(0, 7))
    head, rows = panel.table()
    assert len(head) == len(rows[0])
    assert layer.router_probs_TE is not None
    np.testing.assert_allclose([row[2] for row in rows], layer.router_probs_TE[7])
    assert {row[1] for row in rows if row[3]} == {e for e in ids[7].tolist() if e >= 0}
    if layer.selection_scores_TE is not None:
        np.testing.assert_allclose([row[-1] for row in rows], layer.selection_scores_TE[7])
    load = shown(qtbot, "load", snapshot).table()[1]
    assert [row[2] for row in load] == counts.tolist()
    np.testing.assert_allclose([row[3] for row in load], metrics.load_share(counts))
    rows = shown(qtbot, "layers_experts", snapshot).table()[1]
    if layer.soft:
        mass = gate_matrix(layer)
        assert mass is not None
        np.testing.assert_allclose([row[5] for row in load], mass.sum(axis=0) / mass.sum(), rtol=1e-5)
        np.testing.assert_allclose(rows[0][2:], mass.sum(axis=0) / mass.sum(), rtol=1e-5)
    else:
        np.testing.assert_allclose([row[2:] for row in rows], [metrics.load_share(c) for c in snapshot.train_counts_LE])
    head, rows = shown(qtbot, "losses", snapshot, history).table()
    assert rows[-1][head.index("loss")] == pytest.approx(snapshot.scalars["loss"])


@pytest.mark.parametrize(("router", "capacity"), CASES)
def test_words_of_every_router_are_not_cut(qtbot: QtBot, router: str, capacity: float) -> None:
    snapshot, history = trained(router, capacity)
    places = (("load", 277), ("load", 420), ("gate_weights", 287), ("layers_experts", 240), ("load_over_time", 270))
    for name, width in places:
        panel = shown(qtbot, name, snapshot, history)
        panel.resize(width, 278)
        rect = QRectF(panel.canvas.rect())
        for panel.pointed in ({}, {"expert": 4, "layer": 1}):
            told = wrapped(panel.footer(), panel.plot_rect(rect).width(), panel.lines_of_words(rect.width()))
            assert not any("…" in line for line in told), told
        assert panel.plot_rect(rect).height() > 80


def test_the_losses_offer_every_term_that_is_on(qtbot: QtBot) -> None:
    from moeviz.moe.step import TERMS

    assert set(TERMS) <= set(NAMES)
    assert set(KINDS) == {"cross-entropy", *UNITS}
    seen: set[str] = set()
    for router in ("topk", "null", "relu", "sigmoid_bias"):
        snapshot, history = trained(router, 0.0)
        panel = shown(qtbot, "losses", snapshot, history)
        offered = {panel.kind.itemText(i) for i in range(panel.kind.count())}
        assert offered == {kind for kind, names in KINDS.items() if set(names) & set(history.scalar_names)}
        for kind in offered:
            panel.kind.setCurrentText(kind)
            panel.refresh()
            assert panel.lack() == ""
            assert panel.unit()
            last = float(history.scalar(KINDS[kind][0])[-1])
            if kind not in ("cross-entropy", "bias"):
                assert f"{NAMES[KINDS[kind][0]]} " in panel.footer()
                assert panel.table()[1][-1][panel.table()[0].index(KINDS[kind][0])] == pytest.approx(last)
        panel.kind.setCurrentText("total loss")
        panel.refresh()
        assert all(kind in panel.footer() for kind in offered - {"cross-entropy", "total loss", "λ of relu", "bias"})
        seen |= offered
    assert seen == KINDS.keys() - MEASURES  # which text does not have
    panel.kind.setCurrentText("bias")
    panel.show_history(trained("topk", 0.0)[1])
    panel.refresh()
    assert panel.lack() == "This history has no bias."
    assert panel.kind.currentText() == "bias"


# ---- words, by hand
def test_words_of_a_plain_choice_are_none() -> None:
    assert kind_in_words(Routing("l", 4, np.array([[0, 1], [2, 3]]))) == ()


def test_words_of_odd_routing_by_hand() -> None:
    ids = np.array([[0, 1, -1], [3, -1, -1], [-1, -1, -1], [2, 0, 1]])
    assert kind_in_words(Routing("l", 4, ids)) == ("0 to 3 experts a token, mean 1.5", "none for 25 %")
    null = Routing("l", 4, np.array([[0, 3], [1, 2]]), num_null=2, looks_ahead=True)
    assert kind_in_words(null) == (
        "looks ahead at later tokens",
        "∅ null experts; a token runs 1 experts",
    )
    dropped = np.array([[True, True], [False, True]])
    lost = Routing("l", 4, np.array([[0, 3], [1, 2]]), dropped_TK=dropped)
    assert kind_in_words(lost) == ("tokens shown: 75 % dropped, 50 % wholly",)


def test_the_strip_wears_the_expert_that_worked() -> None:
    ids = np.array([[0, 1], [2, 3], [2, -1], [-1, -1]])
    weights = np.array([[0, 0.25], [0, 0], [4, 0], [0, 0]], np.float32)
    dropped = np.array([[True, False], [True, True], [False, False], [False, False]])
    assert first_choices(Routing("l", 4, ids, weights, dropped_TK=dropped)) == (
        [1, 2, 2, -1],
        [0.0625, 0.0, 1.0, 0.0],
    )


def test_margin_is_of_the_scores_that_chose() -> None:
    probs = np.array([[0.6, 0.3, 0.1]], np.float32)
    scores = np.array([[0.25, 0.5, 0.75]], np.float32)
    made = Routing("l", 3, np.array([[2, 1]]), None, probs, selection_scores_TE=scores)
    assert margin_in_words(made, 0) == "selection margin 0.25: 1 over 0"
    kept = np.array([[-np.inf, 0.5, 0.75]], np.float32)
    assert margin_in_words(Routing("l", 3, np.array([[2, 1]]), None, probs, selection_scores_TE=kept), 0) == (
        "every expert was chosen"
    )
    table = Routing("l", 3, np.array([[1]]), None, np.array([[0, 1, 0]], np.float32))
    assert margin_in_words(table, 0) == "p is 1 at expert 1: no other could be chosen"


def test_null_dropped_and_soft_are_named() -> None:
    null = Routing("l", 4, np.array([[3, 0]]), np.array([[0.7, 0.3]], np.float32), num_null=1)
    assert describe(null, 0, "a") == "token 0 'a' → experts ∅3 (0.70), 0 (0.30)"
    soft = Routing("l", 2, np.array([[1, 0]]), np.array([[0.7, 0.3]], np.float32), soft=True)
    assert describe(soft, 0, "a") == "token 0 'a' → a mixture of all 2 experts: 1 (0.70), 0 (0.30)"


def test_null_and_dropped_tokens_are_hollow(qtbot: QtBot) -> None:
    """The picture differs from one where the same expert computes."""
    ids, weights = np.array([[3], [3]]), np.ones((2, 1), np.float32)
    plain = Routing("l", 4, ids, weights)
    null = Routing("l", 4, ids, weights, num_null=1)
    lost = Routing("l", 4, ids, weights * 0, dropped_TK=np.ones((2, 1), bool))
    for name in ("tokens", "load"):
        pictures = {paint(shown(qtbot, name, RoutingSnapshot(0, (r,), ["a", "b"]))) for r in (plain, null, lost)}
        assert len(pictures) == 3, name
