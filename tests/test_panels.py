"""The panels show what the snapshot holds, say what is missing, and tell the window what is pointed at."""

import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest
from PySide6.QtCore import QEvent, QPoint, QPointF, QRectF, Qt
from PySide6.QtGui import QColor, QFontDatabase, QHelpEvent, QImage, QPainter
from PySide6.QtWidgets import QApplication

from moeviz.domain import metrics
from moeviz.domain.history import History
from moeviz.domain.messages import StepLog
from moeviz.domain.routing import Routing, RoutingSnapshot, visible
from moeviz.domain.selection import Selection
from moeviz.view import letters
from moeviz.view.catalogue import PLOTS
from moeviz.view.colours import _to_oklab, diverging, expert_colour, sequential
from moeviz.view.dashboard import PANELS, PLACES, Dashboard
from moeviz.view.panel import Panel, wrapped
from moeviz.view.panels import tokens
from moeviz.view.panels.axes import (
    Frame,
    draw_y_axis,
    inside,
    nice_ceiling,
    nice_ticks,
    number,
    steady_top,
    tick_labels,
)
from moeviz.view.panels.gate_weights import confidence_in_words, expert_in_words, margin_in_words
from moeviz.view.panels.layers_experts import change_in_words
from moeviz.view.panels.marks import bin_edges, binned_mean, place_labels, unnamed_in_words
from moeviz.view.panels.tokens import TokenStrip, describe
from moeviz.view.panels.tokens_experts import gate_matrix
from moeviz.view.render import render_plot
from moeviz.view.theme import DARK, LIGHT, SMALL, apply, sans, small_metrics, width_of

TEXT = "To be, or not to be:\nthat is the question"


def routing(tokens: int, experts: int, k: int, seed: int) -> Routing:
    """A softmax router on random inputs."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(tokens, 12)) @ rng.normal(size=(12, experts))
    probs = np.exp(logits - logits.max(axis=1, keepdims=True))
    probs /= probs.sum(axis=1, keepdims=True)
    ids = np.argsort(-probs, axis=1)[:, :k]
    weights = np.take_along_axis(probs, ids, axis=1)
    weights /= weights.sum(axis=1, keepdims=True)
    f32 = np.float32
    return Routing(f"layer {seed}", experts, ids, weights.astype(f32), probs.astype(f32), logits.astype(f32))


def make_snapshot(text: str = TEXT, experts: int = 8, layers: int = 3, k: int = 2, step: int = 99) -> RoutingSnapshot:
    made = tuple(routing(len(text), experts, k, seed) for seed in range(layers))
    counts = tuple(metrics.expert_counts(routing(1024, experts, k, 100 + i)) for i in range(layers))
    return RoutingSnapshot(step, made, list(text), train_counts_LE=counts)


def make_history(steps: int = 100, experts: int = 8, layers: int = 3) -> History:
    at = np.arange(steps)
    rng = np.random.default_rng(0)
    loss = 1.5 + np.exp(-at / 40) + 0.05 * rng.random(steps)
    held = np.where(at % 20 == 0, loss + 0.1, np.nan)
    counts = tuple(
        np.stack([metrics.expert_counts(routing(64, experts, 2, seed)) for seed in at % 7]) for _ in range(layers)
    )
    scalars = {"cross_entropy": loss, "heldout": held, "balance": 1 + 0.1 * rng.random(steps)}
    history = History()
    history.extend(StepLog(at, scalars, counts))
    history.add_mark(30, "k 2 → 4")
    return history


@pytest.fixture
def snapshot() -> RoutingSnapshot:
    return make_snapshot()


@pytest.fixture
def history() -> History:
    return make_history()


@pytest.fixture
def board(qtbot, qapp, snapshot, history) -> Dashboard:
    apply(qapp, DARK)
    board = Dashboard(DARK)
    qtbot.addWidget(board)
    board.resize(1280, 800)
    board.show()
    board.show_snapshot(snapshot)
    board.show_history(history)
    qapp.processEvents()
    return board


def show(qtbot, panel: Panel, width: int = 600, height: int = 300) -> Panel:
    qtbot.addWidget(panel)
    panel.resize(width, height)
    panel.show()
    return panel


def picture(panel: Panel) -> bytes:
    image = panel.canvas.grab().toImage()
    return bytes(image.constBits())


@pytest.mark.parametrize("name", PLACES)
def test_a_panel_draws_its_data_in_both_themes(board, name):
    panel = board.panels[name]
    assert panel.missing() == ""
    shown = picture(panel)
    panel.apply_theme(LIGHT)
    assert picture(panel) != shown
    board.show_snapshot(None)
    board.show_history(None)
    assert panel.missing().startswith("No ")
    assert picture(panel) != shown
    head, rows = panel.table()
    assert head
    assert rows == []


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize(("experts", "k", "text"), [(1, 1, "a"), (2, 2, "ab\n"), (64, 6, TEXT * 6)])
def test_a_panel_draws_the_smallest_and_the_largest(board, qapp, name, experts, k, text):
    panel = board.panels[name]
    for size in ((200, 96), (320, 200), (1400, 700)):
        panel.resize(*size)
        panel.show_snapshot(make_snapshot(text, experts, 1, k))
        panel.show_history(make_history(2, experts, 1))
        panel.show_selection(Selection(7, 10_000, 10_000))  # of a run before, with more of everything
        assert picture(panel)
        for x in range(0, size[0], 40):
            panel.point_at(QPointF(x, size[1] / 2))


def test_a_panel_says_which_data_it_lacks(qtbot, snapshot):
    bare = replace(snapshot.layers[0], gate_weights_TK=None, router_probs_TE=None, router_logits_TE=None)
    poor = RoutingSnapshot(0, (bare,), None)
    said = {}
    for name, make in PANELS.items():
        panel = make(DARK)
        qtbot.addWidget(panel)
        panel.show_snapshot(poor)
        said[name] = panel.missing()
    assert "token texts" in said["tokens"]
    assert "gate weights" in said["tokens_experts"]
    assert "router probabilities" in said["gate_weights"]
    assert "history" in said["load_over_time"]
    assert "history" in said["losses"]
    assert said["load"] == said["layers_experts"] == ""  # the choices alone are enough


def test_the_heat_map_offers_what_the_data_do_have(board, snapshot):
    panel = board.panels["tokens_experts"]
    board.show_snapshot(replace(snapshot, layers=(replace(snapshot.layers[0], gate_weights_TK=None),)))
    assert panel.missing() == "This data has no gate weights. It has probabilities and scores."
    panel.kind.setCurrentText("scores")
    assert panel.missing() == ""
    np.testing.assert_allclose([row[2:] for row in panel.table()[1]], snapshot.layers[0].router_logits_TE, rtol=1e-6)


def test_a_hidden_panel_does_nothing_and_catches_up_when_shown(qtbot, qapp):
    panel = show(qtbot, TokenStrip(DARK))
    panel.show_snapshot(make_snapshot("first"))
    qapp.processEvents()
    panel.hide()
    before = panel.draws
    for step in range(5):
        panel.show_snapshot(make_snapshot("later", step=step))
        qapp.processEvents()
    assert panel.draws == before
    panel.show()
    qapp.processEvents()
    assert panel.draws > before
    assert [row[1] for row in panel.table()[1]] == list("later")


def painted_anew(panel: Panel, density: float = 1.0) -> QImage:
    """What the canvas shows, without any picture of a ground that was kept."""
    image = QImage(panel.canvas.size() * density, QImage.Format.Format_RGB32)
    image.setDevicePixelRatio(density)
    image.fill(QColor(panel.theme.panel))
    painter = QPainter(image)
    panel.paint_body(painter, QRectF(panel.canvas.rect()))
    painter.end()
    return image


@pytest.mark.parametrize("name", PLACES)
def test_a_kept_ground_is_never_out_of_date(board, qapp, snapshot, history, name):
    panel = board.panels[name]
    changes = [
        lambda: board.show_snapshot(make_snapshot(step=100)),
        lambda: board.show_selection(Selection(layer=1)),
        lambda: board.show_selection(Selection(layer=1, token=3, expert=2)),
        lambda: board.show_snapshot(make_snapshot(TEXT[::-1], experts=12, k=1)),
        lambda: board.show_snapshot(replace(snapshot, train_counts_LE=())),
        lambda: board.show_history(make_history(steps=140)),
        lambda: board.apply_theme(LIGHT),
        lambda: panel.canvas.resize(panel.canvas.width() - 40, panel.canvas.height() - 30),
    ]
    for change in changes:
        change()
        qapp.processEvents()
        shown = panel.canvas.grab().toImage().convertToFormat(QImage.Format.Format_RGB32)
        assert shown == painted_anew(panel)


@pytest.mark.parametrize("name", ["tokens_experts", "gate_weights", "load", "layers_experts"])
def test_axes_are_painted_once_for_many_steps(board, qapp, monkeypatch, name):
    panel, grounds = board.panels[name], []
    board.show_snapshot(make_snapshot(step=0))
    qapp.processEvents()
    monkeypatch.setattr(panel, "draw_ground", lambda *_: grounds.append(name))
    drawn = panel.draws
    for step in range(1, 5):
        board.show_snapshot(make_snapshot(step=step))
        qapp.processEvents()
    assert panel.draws >= drawn + 4
    assert not grounds


@pytest.mark.parametrize(("theme", "density"), [(DARK, 1.0), (LIGHT, 1.0), (DARK, 1.25), (DARK, 1.5), (DARK, 2.0)])
def test_the_token_strip_on_the_screen_looks_like_its_picture(qtbot, theme, density):
    """There it is looked up in a table, here painted token by token."""
    panel = show(qtbot, TokenStrip(theme), 400, 160)
    none = replace(routing(len(TEXT), 8, 2, 0), num_null=2)
    panel.show_snapshot(replace(make_snapshot(), layers=(none,)))
    panel.show_selection(Selection(token=4, expert=3))
    screen = painted_anew(panel, density)
    panel._in_picture = True
    plain = painted_anew(panel, density)
    height = int(
        panel.plot_rect(QRectF(panel.canvas.rect())).bottom() * density
    )  # what the mouse does is not told in pictures

    def pixels(image: QImage) -> np.ndarray:
        return np.frombuffer(image.constBits(), np.uint8).reshape(image.height(), -1, 4)[:height, :, :3].astype(int)

    apart = np.abs(pixels(screen) - pixels(plain))
    assert len(np.unique(pixels(screen).reshape(-1, 3), axis=0)) > 100
    assert apart.max() <= 10  # of 32 shades between a cell and its letter
    assert apart.mean() < 0.5


def test_the_picture_of_the_token_strip_is_no_larger_than_its_text(qtbot):
    panel = show(qtbot, TokenStrip(DARK), 800, 600)
    panel.show_snapshot(make_snapshot())
    panel.grab()
    assert panel._strip is not None
    high, wide = panel._strip.map_HW.shape
    assert high < 60
    assert wide < 600


def test_an_axis_does_not_go_to_and_fro_with_values_at_its_edge():
    top, tops = 0.0, []
    for wanted in (0.3, 0.25, 0.3, 0.25, 0.4, 0.3, 0.2, 0.25):
        top = steady_top(top, wanted)
        tops.append(top)
    assert tops == [0.3, 0.3, 0.3, 0.3, 0.4, 0.4, 0.2, 0.25]


def test_figures_are_of_one_width(qapp):
    """Widths are measured once for all numbers of as many digits."""
    for digit in "123456789":
        assert small_metrics().horizontalAdvance(digit * 5) == small_metrics().horizontalAdvance("00000")
    assert width_of("q 0.125 (12)") == pytest.approx(small_metrics().horizontalAdvance("q 0.125 (12)"))


def test_only_what_changed_is_drawn_again(board, qapp, snapshot, history):
    def drawn() -> dict[str, int]:
        return {name: panel.draws for name, panel in board.panels.items()}

    before = drawn()
    board.show_snapshot(snapshot)
    board.show_history(history)
    board.show_selection(Selection())
    qapp.processEvents()
    assert drawn() == before
    board.show_selection(Selection(token=3))
    qapp.processEvents()
    again = {name for name, count in drawn().items() if count != before[name]}
    assert again == {"tokens", "tokens_experts", "gate_weights"}


def test_clicking_and_pointing_at_a_token_tells_which(qtbot, qapp, snapshot):
    panel = show(qtbot, TokenStrip(DARK))
    panel.show_snapshot(snapshot)
    qapp.processEvents()
    area = panel.text_rect(panel.plot_rect(QRectF(panel.canvas.rect())))
    middle = panel.cells(area)[9].center() + area.topLeft()
    with qtbot.waitSignal(panel.clicked) as clicked:
        qtbot.mouseClick(panel.canvas, Qt.MouseButton.LeftButton, pos=QPoint(round(middle.x()), round(middle.y())))
    assert clicked.args == [{"token": 9}]
    seen = []
    panel.hovered.connect(seen.append)
    panel.point_at(middle)
    assert panel.footer() == describe(snapshot.layers[0], 9, visible(TEXT[9]))
    panel.point_at(middle)
    panel.point_at(None)
    assert seen == [{"token": 9}, {}] or seen == [{}]  # the click may have moved the mouse there already


def test_pointing_at_cells_and_bars_tells_layer_token_and_expert(board, snapshot):
    for name, at, wanted in (
        ("tokens_experts", (5.5 / len(TEXT), 3.5 / 8), {"token": 5, "expert": 3}),
        ("layers_experts", (6.5 / 8, 2.5 / 3), {"layer": 2, "expert": 6}),
    ):
        panel = board.panels[name]
        rect = panel.plot_rect(QRectF(panel.canvas.rect()))
        heat = panel.heat_rect(rect)
        point = QPointF(heat.left() + at[0] * heat.width(), heat.top() + at[1] * heat.height())
        assert panel.hit(point, rect) == wanted
    for name in ("load", "gate_weights"):
        panel = board.panels[name]
        rect = panel.plot_rect(QRectF(panel.canvas.rect()))
        assert panel.hit(panel.frame(rect).rect.center(), rect) == {"expert": 4}
        assert panel.hit(QPointF(0, 0), rect) == {}


def test_tables_hold_the_numbers_of_the_snapshot(board, snapshot, history):
    board.show_selection(Selection(layer=1, token=4))
    layer, counts = snapshot.layers[1], snapshot.train_counts_LE[1]
    tokens = board.panels["tokens"].table()[1]
    assert [row[1] for row in tokens] == list(TEXT)
    np.testing.assert_array_equal([row[2:4] for row in tokens], layer.expert_ids_TK)
    np.testing.assert_allclose([row[4:6] for row in tokens], layer.gate_weights_TK)
    cells = np.array([row[2:] for row in board.panels["tokens_experts"].table()[1]])
    np.testing.assert_allclose(cells, gate_matrix(layer))
    np.testing.assert_allclose(cells.sum(axis=1), 1, atol=1e-6)
    gates = board.panels["gate_weights"].table()[1]
    assert [row[:2] for row in gates] == [[4, e] for e in range(8)]
    np.testing.assert_allclose([row[2] for row in gates], layer.router_probs_TE[4])
    assert {row[1] for row in gates if row[3]} == set(layer.expert_ids_TK[4].tolist())
    load = board.panels["load"].table()[1]
    assert [row[2] for row in load] == counts.tolist()
    np.testing.assert_allclose([row[3] for row in load], metrics.load_share(counts))
    layers = board.panels["layers_experts"].table()[1]
    np.testing.assert_allclose([row[2:] for row in layers], [metrics.load_share(c) for c in snapshot.train_counts_LE])
    over_time = board.panels["load_over_time"].table()[1]
    np.testing.assert_allclose([row[2:] for row in over_time], history.load_share(1), rtol=1e-6)
    head, losses = board.panels["losses"].table()
    np.testing.assert_allclose([row[head.index("cross_entropy")] for row in losses], history.scalar("cross_entropy"))
    assert losses[1][head.index("heldout")] == ""  # not measured is empty, not nan


def test_load_says_whose_assignments_it_counts(board, snapshot):
    panel = board.panels["load"]
    panel.refresh()
    assert "2048 assignments of the training batch" in panel.footer()
    assert panel.subtitle() == f"layer 0, step {snapshot.step}, training batch, before drops"
    assert f"CV {number(metrics.cv(snapshot.train_counts_LE[0]))} (chance 0.054)" in panel.footer()
    assert f"(chance {metrics.max_violation_floor(2048, 8, 2):.2g})" in panel.footer()
    assert panel.noise == pytest.approx((6 / 2048) ** 0.5 / 8)
    board.show_snapshot(replace(snapshot, train_counts_LE=()))
    panel.refresh()
    assert f"{2 * len(TEXT)} assignments of the tokens shown" in panel.footer()
    assert "dead experts: too few tokens to tell" in panel.footer()
    dead = np.array([0, 4, 400, 400, 400, 400, 400, 400])
    board.show_snapshot(replace(snapshot, train_counts_LE=(dead, dead, dead)))
    panel.refresh()
    assert "⚠ 1 dead expert, 1 more nearly" in panel.footer()
    board.show_snapshot(replace(snapshot, train_counts_LE=(dead * 0,) * 3))
    panel.refresh()
    assert panel.noise == 0
    assert "CV – (chance –)" in panel.footer()
    board.panels["layers_experts"].point_at(None)  # the mouse may stand there since another test
    board.panels["layers_experts"].refresh()
    assert "nothing was routed" in board.panels["layers_experts"].footer()


@pytest.mark.parametrize("installed", [True, False])
def test_letters_that_no_font_has_are_told_in_the_strip(qtbot, monkeypatch, installed):
    system = QFontDatabase.WritingSystem
    have = {system.SimplifiedChinese, system.Cyrillic} if installed else {system.Cyrillic}
    monkeypatch.setattr(QFontDatabase, "families", lambda system=None: ["a font"] if system in have else [])
    monkeypatch.setattr(letters, "lacking", letters.lacking.__wrapped__)
    panel = show(qtbot, PANELS["tokens"](DARK), 900, 200)
    for texts, words in (
        (
            ("я", "a", "日", "カタカナ", "é"),
            "⚠ 2 tokens are boxes, as no font has their letters: install Noto Sans CJK",
        ),
        (("日", "a"), "⚠ 1 token is a box, as no font has its letters: install Noto Sans CJK"),
        (("я", "a"), ""),
    ):
        panel.show_snapshot(RoutingSnapshot(1, (routing(len(texts), 4, 2, 0),), texts))
        panel.refresh()
        told = panel.footer().split("  ")[1:]
        assert told == ([words] if words and not installed else [])


def test_letters_are_looked_for_only_where_the_texts_change(qtbot, snapshot, monkeypatch):
    asked: list[object] = []
    monkeypatch.setattr(tokens, "unseen_in_words", lambda texts: asked.append(texts) or "")
    panel = show(qtbot, PANELS["tokens"](DARK), 900, 200)
    for step in range(5):
        panel.show_snapshot(replace(snapshot, step=step, tokens=list(snapshot.tokens)))
        panel.refresh()
    assert len(asked) == 1


def test_the_margin_names_the_last_chosen_and_the_first_left_out():
    probs = np.array([[0.1, 0.5, 0.25, 0.15]], dtype=np.float32)
    made = Routing("l", 4, np.array([[1, 2]]), np.array([[2 / 3, 1 / 3]], dtype=np.float32), probs)
    assert margin_in_words(made, 0) == "margin 0.1: 2 over 3"
    assert describe(made, 0, "a") == "token 0 'a' → experts 1 (0.67), 2 (0.33)"
    assert margin_in_words(replace(made, expert_ids_TK=np.array([[1, 2, 0, 3]])), 0) == "every expert was chosen"


@pytest.mark.parametrize(
    ("name", "width"), [("load", 277), ("load", 316), ("gate_weights", 287), ("layers_experts", 240)]
)
@pytest.mark.parametrize("drops", [True, False])
def test_words_are_not_cut_in_a_window_of_1280(qtbot, name, width, drops, snapshot, history):
    if drops:
        wide = routing(900, 64, 6, 0)
        made = replace(wide, dropped_TK=wide.expert_ids_TK % 3 == 0, looks_ahead=True)
        snapshot = RoutingSnapshot(99, (made, made), ["x"] * 900)
    history.add_snapshot(replace(snapshot, step=50))
    history.add_snapshot(replace(snapshot, step=999))  # scrubbing: the most there is to say
    panel = show(qtbot, PANELS[name](DARK), width, 278)
    panel.show_snapshot(snapshot)
    panel.show_history(history)
    panel.refresh()
    rect = QRectF(panel.canvas.rect())
    for panel.pointed in ({}, {"expert": 5, "layer": 1}):
        told = wrapped(panel.footer(), panel.plot_rect(rect).width(), panel.lines_of_words(rect.width()))
        assert not any("…" in line for line in told), told
    assert panel.plot_rect(rect).height() > 100


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        ("gate_weights", (290, 148), ("bars: p", "margin", "hesitates")),
        ("layers_experts", (225, 170), ("training batch", "least even", "churn", "tells")),
        ("losses", (312, 99), ("training", "held-out")),
        ("losses", (317, 121), ("training", "held-out")),
        ("saturation", (318, 143), ("saturation", "chance", "churn", "kept")),
    ],
)
def test_a_low_panel_of_a_layout_has_room_for_its_main_words(qtbot, name, size, words, history):
    """As large as its canvas is in a window of 1280x720."""
    snapshot = make_snapshot(step=4125)
    for step in (4090, 4100, 4125):
        history.add_snapshot(replace(snapshot, step=step))
    panel = show(qtbot, PANELS[name](DARK))
    panel.canvas.resize(*size)
    panel.show_snapshot(snapshot)
    panel.show_history(history)
    panel.refresh()
    rect = QRectF(panel.canvas.rect())
    told = wrapped(panel.footer(), panel.plot_rect(rect).width(), panel._lines(rect))
    assert all(any(word in line for line in told) for word in words), told
    assert "…" not in told[-1]


def test_words_give_way_in_a_low_panel(qtbot, snapshot):
    panel = show(qtbot, PANELS["load"](DARK), 277, 278)
    panel.show_snapshot(snapshot)
    heights = [panel.plot_rect(QRectF(0, 0, 277, high)).height() for high in (80, 100, 120, 140, 180, 220)]
    assert heights == [80 - 8 - 16, 100 - 8 - 16, 120 - 8 - 16, 140 - 8 - 32, 180 - 8 - 80, 220 - 8 - 80]


def test_a_phrase_without_room_is_left_out_whole_and_told_by_the_tooltip(qtbot, snapshot, monkeypatch):
    assert wrapped("one two  three four  five  six", 100, 2) == ["one two", "three four   five …"]
    assert wrapped("one two  three four  five  six", 85, 2) == ["one two", "three four …"]
    told: list[str] = []
    monkeypatch.setattr("moeviz.view.panel.QToolTip.showText", lambda _, words, *__: told.append(words))
    panel = show(qtbot, PANELS["load"](DARK), 240, 140)
    panel.show_snapshot(snapshot)
    for at in (QPoint(20, panel.canvas.height() - 8), QPoint(20, 8)):  # on the words, on the plot
        QApplication.sendEvent(panel.canvas, QHelpEvent(QEvent.Type.ToolTip, at, panel.canvas.mapToGlobal(at)))
    assert len(told) == 1
    assert told[0].splitlines()[-1] == "no dead experts"


@pytest.mark.parametrize(("width", "tip"), [(200, "Gate weights of a token"), (400, "")])
def test_a_title_that_is_shortened_can_be_read_by_pointing_at_it(qtbot, width, tip):
    panel = show(qtbot, PANELS["gate_weights"](DARK), width, 200)
    assert panel._title.toolTip() == tip


@pytest.mark.parametrize(("height", "rows"), [(150, 1), (320, 4)])
def test_in_a_low_plot_the_words_of_marks_keep_to_one_row(qtbot, monkeypatch, height, rows):
    history = make_history(100)
    for at in (1, 2, 3, 4, 60):
        history.add_mark(at, f"Experts {at} → 8")
    panel = show(qtbot, PANELS["losses"](DARK), 311, height)
    panel.show_history(history)
    bases: set[float] = set()
    monkeypatch.setattr("moeviz.view.panels.marks.put", lambda _, left, base, text: bases.add(base))
    panel.grab()
    assert len(bases) == rows


@pytest.mark.parametrize("name", ["losses", "saturation"])
def test_the_key_lies_under_the_plot_and_nothing_over_it(qtbot, name, monkeypatch, history):
    """Nor can a curve: they end at the plot's edge."""
    for step in range(1, 100, 9):
        history.add_snapshot(make_snapshot(step=step))
    history.add_mark(50, "k 2 → 4")
    panel = show(qtbot, PANELS[name](DARK), 311, 150)
    panel.show_snapshot(make_snapshot())
    panel.show_history(history)
    boxes: dict[str, QRectF] = {}

    def record(painter, left, base, text):
        boxes[text] = QRectF(left, base - 9, width_of(text), 11)

    for module in ("axes", "marks"):
        monkeypatch.setattr(f"moeviz.view.panels.{module}.put", record)
    panel.grab()
    plot = panel.plot_rect(QRectF(panel.canvas.rect()))  # the words lie below it
    frame = panel.frame(plot)
    key = {"losses": ("training", "held-out"), "saturation": ("saturation", "churn")}[name]
    assert "k 2 → 4" in boxes
    for word in key:
        assert frame.rect.bottom() + 3 < boxes[word].top() < boxes[word].bottom() <= plot.bottom()
        over = [text for text, box in boxes.items() if text != word and box.intersects(boxes[word])]
        assert not over


def test_a_margin_is_negative_where_something_else_decided():
    probs = np.array([[0.1, 0.5, 0.25, 0.15]], dtype=np.float32)
    noisy = Routing("l", 4, np.array([[1, 0]]), None, probs)
    assert margin_in_words(noisy, 0) == "margin −0.15: 0 over 2"
    assert confidence_in_words(noisy, 0) == ("chosen hold Σp 0.6", "hesitates: 3.35 of 4")
    assert confidence_in_words(replace(noisy, router_probs_TE=None), 0) == ("", "")


def test_pointing_at_an_expert_of_a_token_tells_its_q_f_and_p():
    probs = np.array([[0.5, 0.3, 0.2], [0.2, 0.5, 0.3]], dtype=np.float32)
    made = Routing("l", 3, np.array([[0, 1], [1, 2]]), None, probs)
    assert expert_in_words(made, 1) == "of all 2 tokens: q 0.5, f 1  mean P 0.4"
    assert expert_in_words(replace(made, router_probs_TE=None), 2) == "of all 2 tokens: q 0.25, f 0.5"


def test_a_layer_tells_what_moved_and_what_it_decides(board, qapp, history):
    def moment(step: int, ids: list[int], text: str = "abcd") -> RoutingSnapshot:
        here, after = np.array(ids)[:, None], np.array([0, 1, 0, 1])[:, None]
        return RoutingSnapshot(step, (Routing("a", 2, here), Routing("b", 2, after)), list(text))

    film = [moment(1, [0, 0, 0, 0]), moment(2, [0, 1, 0, 0], "abce"), moment(3, [0, 1, 0, 0]), moment(9, [0, 1, 0, 1])]
    for taken in film:
        history.add_snapshot(taken)
    panel = board.panels["layers_experts"]
    board.show_snapshot(film[2])
    assert panel.layer_in_words(0)[:4] == [
        "layer 0, tokens shown:",
        "churn 0.25",
        "since 1",
        "saturation 0.75 of step 9",
    ]
    board.show_snapshot(film[3])
    assert panel.layer_in_words(0) == [
        "layer 0, tokens shown:",
        "churn 0.25",
        "since 3",
        f"tells {number(1 - 1 / (8 * np.log(2)))} of layer 1",
    ]
    assert panel.layer_in_words(1) == ["layer 1, tokens shown:", "churn 0", "since 3"]  # no layer after it
    board.show_snapshot(film[1])
    assert panel.layer_in_words(1) == []  # other tokens than at any other moment
    assert change_in_words(film[0], [moment(0, [0, 1])], 0) == []


def test_padding_and_drops_are_told(board, qapp):
    ids = np.array([[2, 5], [3, -1], [-1, -1]])
    weights = np.array([[0.7, 0.3], [1, 0], [0, 0]], dtype=np.float32)
    made = Routing("l", 8, ids, weights, dropped_TK=np.array([[False, True], [False, False], [False, False]]))
    board.show_snapshot(RoutingSnapshot(0, (made,), ["a", "b", "c"]))
    qapp.processEvents()
    assert describe(made, 0, "a") == "token 0 'a' → experts 2 (0.70), 5 (0.30), dropped at 5"
    assert describe(made, 1, "b") == "token 1 'b' → expert 3 (1.00)"
    assert describe(made, 2, "c") == "token 2 'c' → no expert"
    assert board.panels["load"].table()[1][5][2] == 1
    assert "tokens shown: 33 % dropped, 0 % wholly" in board.panels["load"].footer()


def test_the_history_may_change_its_number_of_experts(board, qapp, history):
    wider = tuple(np.ones((20, 12), dtype=np.int64) for _ in range(3))
    history.extend(StepLog(np.arange(100, 120), {"cross_entropy": np.full(20, 1.4)}, wider))
    board.show_history(history)
    qapp.processEvents()
    rows = board.panels["load_over_time"].table()[1]
    assert rows[0][-1] == ""
    assert rows[-1][-1] == pytest.approx(1 / 12)


def test_a_long_strip_scrolls_and_its_own_picture_shows_all(qtbot, qapp):
    panel = show(qtbot, TokenStrip(DARK), 300, 120)
    panel.show_snapshot(make_snapshot(TEXT * 20))
    qapp.processEvents()
    assert panel.wheel(-60)
    assert panel.offset == 60
    assert panel.picture_size().height() > 400
    panel.show_selection(Selection(token=len(TEXT) * 20 - 1))
    qapp.processEvents()
    area = panel.text_rect(panel.plot_rect(QRectF(panel.canvas.rect())))
    last = panel.cells(area)[-1]
    assert 0 <= last.top() - panel.offset <= last.bottom() - panel.offset <= area.height()
    panel.resize(300, 3000)  # nothing left to scroll
    qapp.processEvents()
    area = panel.text_rect(panel.plot_rect(QRectF(panel.canvas.rect())))
    assert panel.hit(panel.cells(area)[3].center() + area.topLeft(), area) == {"token": 3}


def test_numbers_have_at_most_three_significant_digits():
    for value, text in (
        (0, "0"), (0.12345, "0.123"), (-2.5, "−2.5"), (1234.5, "1230"), (99.96, "100"), (12_345, "12.3k"),
        (2_500_000, "2.5M"), (float("nan"), "–"),
    ):  # fmt: skip
        assert number(value) == text
    assert [visible(t) for t in ("\n", " the", "\t", "\x00", "")] == ["↵", "␣the", "⇥", "\\x00", "∅"]
    spaces = (" ", "b  ", "(0.5, -1) ●", "a  b", "Toy Story → ")
    assert [visible(t) for t in spaces] == ["␣", "b␣␣", "(0.5, -1) ●", "a␣␣b", "Toy Story →␣"]
    assert nice_ceiling(0.27) == pytest.approx(0.3)
    np.testing.assert_allclose(nice_ticks(0, 1, 4), [0, 0.25, 0.5, 0.75, 1])


@pytest.mark.parametrize(
    ("ticks", "texts"),
    [
        ([4000, 4025, 4050], ["4000", "4025", "4050"]),
        ([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"]),
        ([-0.05, 0, 0.05], ["−0.05", "0", "0.05"]),
        ([12_000, 12_250, 12_500], ["12k", "12.25k", "12.5k"]),
        ([0, 1_000_000, 2_000_000], ["0", "1M", "2M"]),
        ([1.465, 1.47, 1.475], ["1.465", "1.47", "1.475"]),
        ([1e-5, 2e-5], ["1e−05", "2e−05"]),
        ([7], ["7"]),
    ],
)
def test_labels_of_ticks_tell_them_apart_and_are_exact(ticks, texts):
    assert tick_labels(ticks) == texts


def test_a_single_step_has_one_tick_and_no_label_twice(qtbot, monkeypatch):
    history = History()
    history.extend(StepLog(np.array([4001]), {"cross_entropy": np.array([1.468])}, ()))
    panel = show(qtbot, PANELS["losses"](DARK), 400, 220)
    panel.show_history(history)
    told: list[str] = []
    monkeypatch.setattr("moeviz.view.panels.axes.put", lambda *args: told.append(args[-1]))
    panel.grab()
    assert len(told) == len(set(told)), told
    assert {"4001", "4002"} <= set(told)


def test_labels_of_marks_never_overlap():
    lefts, widths = [10.0, 20, 25, 300, 395, 12], [50.0, 40, 60, 80, 60, 30]
    rows = place_labels(lefts, widths, right=400)
    spans = [
        (row, min(left, 400 - wide), min(left, 400 - wide) + wide)
        for row, left, wide in zip(rows, lefts, widths, strict=True)
        if row >= 0
    ]
    assert len(spans) >= 4
    for i, (row, a, b) in enumerate(spans):
        assert all(other != row or b <= c or d <= a for other, c, d in spans[:i] + spans[i + 1 :])


def test_what_a_time_axis_has_no_room_to_name_is_counted(qapp, tmp_path):
    """Every changed knob has its words or is counted, and so has every expert at the end of its curve."""
    history, experts = make_history(experts=40), 40
    names = [label for _, label in history.marks] + [f"Balance coefficient 0.0{at} → 0.1" for at in range(20, 80, 3)]
    for at, label in zip(range(20, 80, 3), names[-20:], strict=True):
        history.add_mark(at, label)
    for plot in ("losses", "load_over_time"):
        out = tmp_path / f"{plot}.svg"
        render_plot(out, plot=plot, snapshot=make_snapshot(experts=experts), history=history, size=(520, 260))
        written = ["".join(node.itertext()).strip() for node in ET.parse(out).iter("{http://www.w3.org/2000/svg}text")]
        named = sum(written.count(name) for name in names)
        assert 0 < named < len(names)
        assert f"{len(names) - named} other changes" in written
        if plot == "load_over_time":
            [more] = [int(text) for text in written if text.startswith("+") and "more" not in text]
            last = written.index(f"+{more}")
            assert more + sum(text.isdigit() for text in written[last:]) == experts
    assert [unnamed_in_words(n, others=True) for n in (0, 1, 2)] == ["", "1 other change", "2 other changes"]
    assert [unnamed_in_words(n, others=False) for n in (0, 1, 2)] == ["", "1 change", "2 changes"]


@pytest.mark.parametrize(
    ("marks", "width", "words"),
    [
        ([(20, "k 2 → 4, Noise 0 → 1")], 600, ["k 2 → 4, Noise 0 → 1"]),
        ([(20, "k 2 → 4"), (20, "Noise 0 → 1"), (20, "Experts 8 → 4")], 600, ["k 2 → 4, Noise 0 → 1, Experts 8 → 4"]),
        ([(20, "k 2 → 4"), (20, "Noise 0 → 1, Experts 8 → 4")], 200, ["k 2 → 4 and 2 others"]),
        ([(20, "k 2 → 4, Balance coefficient 0 → 0.1")], 200, ["k 2 → 4 and 1 other"]),
        ([(20, "k 2 → 4, Noise 0 → 1")], 150, ["2 changes"]),
    ],
)
def test_changes_at_once_are_all_named_or_the_first_and_how_many(qtbot, monkeypatch, marks, width, words):
    history = History()
    history.extend(StepLog(np.arange(100), {"cross_entropy": np.ones(100)}, ()))
    for step, label in marks:
        history.add_mark(step, label)
    panel = show(qtbot, PANELS["losses"](DARK), width, 160)
    panel.setMinimumSize(0, 0)
    panel.resize(width, 160)
    panel.show_history(history)
    written: list[str] = []
    monkeypatch.setattr("moeviz.view.panels.marks.put", lambda painter, x, y, text: written.append(text))
    picture(panel)
    assert written == words


def test_curves_are_cut_at_unknown_values_and_binned_by_their_mean():
    frame = Frame(QRectF(0, 0, 100, 100), 0, 4, 0, 1)
    lines = frame.points(np.arange(5.0), np.array([0, 0.5, np.nan, 1, 0.25]))
    assert [[(p.x(), p.y()) for p in line] for line in map(list, lines)] == [
        [(0, 100), (25, 50)],
        [(75, 0), (100, 75)],
    ]
    steps = np.arange(1000)
    edges = bin_edges(steps, 100)
    assert edges.size <= 100
    np.testing.assert_allclose(binned_mean(np.arange(1000.0), edges)[:2], [(edges[1] - 1) / 2, edges[1] * 1.5 - 0.5])


@pytest.mark.parametrize("theme", [DARK, LIGHT])
def test_colours_are_distinct_and_even(theme):
    rgb = np.array([expert_colour(e, theme).getRgbF()[:3] for e in range(64)])
    lab = _to_oklab(rgb)
    assert len({expert_colour(e, theme).name() for e in range(64)}) == 64
    assert np.ptp(lab[:, 0]) < 0.25
    apart = np.linalg.norm(lab[:8, None] - lab[None, :8], axis=2) + np.eye(8)
    assert apart.min() > 0.08
    for table in (sequential(theme), diverging(theme)):
        steps = np.linalg.norm(np.diff(_to_oklab(table[:, 2::-1] / 255), axis=0), axis=1)
        assert table.shape == (256, 4)
        assert steps.max() < 0.02  # no visible jump
    light = _to_oklab(sequential(theme)[:, 2::-1] / 255)[:, 0]
    assert (np.diff(light) * (1 if theme.dark else -1) > -0.004).all()
    assert QColor(theme.panel).isValid()


def test_every_panel_is_in_the_catalogue():
    assert [plot.name for plot in PLOTS] == [*PANELS, "dashboard"]
    assert all(plot.reading.endswith(".") and plot.formula and plot.needs for plot in PLOTS)
    assert not [plot.name for plot in PLOTS if ". " in plot.reading], "one sentence"


def test_a_defect_in_a_panel_does_not_take_the_program_down() -> None:
    code = """
import sys
from PySide6.QtWidgets import QApplication
app = QApplication([])
from moeviz.view.panels.load import Load
from moeviz.view.theme import DARK
said = []
sys.excepthook = lambda kind, error, trace: said.append(kind.__name__)
panel = Load(DARK)
panel.paint_body = lambda *rest: 1 / 0
panel.show(); app.processEvents(); panel.repaint(); panel.repaint()
print(sorted(set(said)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "['ZeroDivisionError']\n"


def test_a_tasks_own_measures_are_offered_once_they_are_measured(qtbot) -> None:
    panel = PANELS["losses"](DARK)
    qtbot.addWidget(panel)
    at = np.arange(1, 501)
    due = at % 250 == 0
    measured = {"hit_at_10": np.where(due, at / 1000, np.nan), "mrr": np.where(due, 0.125, np.nan)}
    history = History()
    history.extend(StepLog(at[:10], {"cross_entropy": np.ones(10)}, ()))
    panel.show_history(history)
    panel.lack()
    assert panel.kind.findText("hit@10 and MRR") < 0
    history.extend(StepLog(at[10:], {"cross_entropy": np.ones(490), **{k: v[10:] for k, v in measured.items()}}, ()))
    panel.show_history(history)
    panel.lack()
    panel.kind.setCurrentText("hit@10 and MRR")
    assert panel.lack() == ""
    assert "hit@10 0.5 (at 500)  MRR 0.125 (at 500)" in panel.footer()
    assert panel.unit() == "held out"
    assert panel.kind.findText("accuracy") < 0


@pytest.mark.parametrize("task", ["plane", "recommendation", "search", "translation"])
def test_the_measures_of_every_task_have_a_name_in_losses(task: str) -> None:
    from moeviz.moe.tasks.loading import load_task
    from moeviz.view.panels.losses import MEASURES, NAMES

    names = load_task(task).measures
    assert tuple(names) in MEASURES.values()
    assert all(name in NAMES for name in names)


def test_the_words_of_losses_are_of_the_step_that_is_shown(qtbot, history) -> None:
    panel = PANELS["losses"](DARK)
    qtbot.addWidget(panel)
    panel.show_history(history)
    for step, words in ((99, "step 99"), (40, "step 40"), (41, "held-out 2.01 (at 40)")):
        panel.show_snapshot(make_snapshot(step=step))
        panel.lack()
        assert words in panel.footer().replace(f"held-out {number(history.scalar('heldout')[40])}", "held-out 2.01")


def test_losses_tell_of_a_band_only_where_steps_share_a_point(qtbot, history) -> None:
    panel = show(qtbot, PANELS["losses"](DARK), 600, 300)
    panel.show_history(history)
    panel.grab()
    assert "band" not in panel.footer()
    panel.resize(300, 300)
    panel.grab()
    assert panel.footer().endswith("band: all values")
    panel.show_snapshot(RoutingSnapshot(99, (replace(routing(9, 4, 2, 0), looks_ahead=True),), ["x"] * 9))
    assert "looks ahead" in panel.footer()
    panel.resize(300, 140)  # as low as in the layout Compare: what the help says has no room
    panel.grab()
    assert panel._lines(QRectF(panel.canvas.rect())) == 1
    assert panel.footer().startswith("step 99")
    assert "band" not in panel.footer()


def test_bars_and_what_is_written_on_them_are_named(qtbot, monkeypatch):
    probs = np.array([[0.5, 0.3, 0.15, 0.05]], np.float32)
    made = Routing("l", 4, np.array([[1, 0]]), np.array([[0.61, 0.39]], np.float32), probs)
    panel = show(qtbot, PANELS["gate_weights"](DARK), 500, 300)
    written: list[str] = []
    monkeypatch.setattr("moeviz.view.panels.gate_weights.put", lambda painter, x, y, text: written.append(text))

    def texts(routing: Routing, width: int) -> list[str]:
        panel.resize(width, 300)
        panel.show_snapshot(RoutingSnapshot(1, (routing,), ("a",)))
        written.clear()
        picture(panel)
        return list(written)

    assert texts(made, 500) == ["g 0.39", "g 0.61"]  # the higher bar first
    assert "bars: p, g: 0.61 at 1, 0.39 at 0" in panel.footer().split("  ")
    assert texts(made, 210) == ["✓", "✓"]
    dropped = replace(made, dropped_TK=np.array([[True, False]]), gate_weights_TK=np.array([[0, 0.39]], np.float32))
    assert texts(dropped, 500) == ["g 0.39", "✗ g 0.00"]
    many = replace(made, expert_ids_TK=np.array([[2, 1, 0, 3]]), gate_weights_TK=np.full((1, 4), 0.25, np.float32))
    texts(many, 500)
    assert "bars: p, g: 0.25 at 2, 0.25 at 1, 2 more" in panel.footer().split("  ")
    texts(replace(made, router_probs_TE=None), 500)  # bars are g themselves
    assert "g:" not in panel.footer()


def test_numbers_of_an_axis_keep_clear_of_its_label(qtbot, monkeypatch):
    """−0.025 is wider than the room left of the plot."""
    said = []
    monkeypatch.setattr("moeviz.view.panels.axes.put", lambda painter, left, base, text: said.append((left, text)))
    image = QImage(400, 400, QImage.Format.Format_RGB32)
    painter = QPainter(image)
    painter.setFont(sans(SMALL))
    frame = Frame(inside(QRectF(0, 0, 400, 203)), 0, 1, -0.05, 0.05)
    draw_y_axis(painter, frame, DARK, "B ← more in → A")
    painter.end()
    assert [text for _, text in said] == ["−0.05", "0", "0.05"]
    assert min(left for left, _ in said) >= 9 + small_metrics().descent()
