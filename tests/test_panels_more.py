"""The panels of what the experts learned: exact numbers, what they lack, what is pointed at, hidden ones rest."""

import csv
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from itertools import pairwise
from math import gcd
from pathlib import Path

import numpy as np
import pytest
from PySide6.QtCore import QPointF, QRectF
from PySide6.QtGui import QColor, QImage, QPainter
from test_panels import TEXT, make_history, make_snapshot, picture, routing, show

from moeviz.domain import metrics
from moeviz.domain.history import History
from moeviz.domain.messages import StepLog
from moeviz.domain.metrics.arrays import first_choice
from moeviz.domain.reference import Reference
from moeviz.domain.routing import Routing, RoutingSnapshot
from moeviz.domain.selection import Selection
from moeviz.domain.survey import Inputs, Plane, Similarity, SurveyResult, Terms
from moeviz.view.dashboard import PANELS, PLACES
from moeviz.view.export import export
from moeviz.view.panel import Panel, wrapped
from moeviz.view.panels import anatomy, axes, saturation
from moeviz.view.panels.anatomy import lines_of
from moeviz.view.panels.axes import Frame
from moeviz.view.panels.compare import Compare
from moeviz.view.panels.experts_domains import dead_in_words, information_in_words, uncovered_in_words
from moeviz.view.panels.experts_tokens import Handled
from moeviz.view.panels.layers_experts import comparable
from moeviz.view.panels.load_over_time import uniform_lines
from moeviz.view.panels.marks import BETWEEN
from moeviz.view.panels.saturation import level_lines, overlaps, packed
from moeviz.view.render import render_plot
from moeviz.view.theme import DARK, LIGHT, apply, width_of

NEW = [name for name in PANELS if name not in PLACES]
DOMAINS = ("data", "math", "prose", "python")
LENGTH = 64


def terms_of(r: Routing, width: int = 8, seed: int = 0) -> Terms:
    """Random outputs of the chosen experts, and what follows from them."""
    rng = np.random.default_rng(seed)
    outputs = rng.normal(size=(r.num_tokens, r.k, width))
    weights = np.ones(r.expert_ids_TK.shape) if r.gate_weights_TK is None else r.gate_weights_TK
    idle = r.expert_ids_TK < 0 if r.dropped_TK is None else (r.expert_ids_TK < 0) | r.dropped_TK
    y = (np.where(idle, 0, weights)[:, :, None] * outputs).sum(1)
    norm, total = np.linalg.norm(outputs, axis=2), np.linalg.norm(y, axis=1)
    with np.errstate(invalid="ignore"):
        cosine = (outputs * y[:, None]).sum(2) / (norm * total[:, None])
    plain = np.ones(r.num_tokens, np.float32)
    unknown = np.where(idle, np.nan, 0)
    made = [(x + unknown).astype(np.float32) for x in (norm, cosine)]
    return Terms(plain, *made, total.astype(np.float32), plain, plain, 1.0, None)


def make_survey(experts: int = 8, layers: int = 3, k: int = 2, tokens: int = 512, step: int = 99) -> SurveyResult:
    rng = np.random.default_rng(1)
    texts = tuple(rng.choice(list("abcdefgh \n"), size=tokens).tolist())
    domains = tuple(np.repeat(DOMAINS, -(-tokens // 4))[:tokens].tolist())
    held = RoutingSnapshot(step, tuple(routing(tokens, experts, k, 10 + i) for i in range(layers)), texts, domains)
    probe = make_snapshot(experts=experts, layers=layers, k=k, step=step)
    alike = metrics.cosines(rng.normal(size=(experts, 5))).astype(np.float32)
    similarity = tuple(Similarity(alike, np.abs(alike), 256, 8) for _ in range(layers))
    inputs = tuple(make_inputs(tokens, probe.num_tokens, i) for i in range(layers))
    return SurveyResult(
        step, held, gcd(LENGTH, tokens), probe, tuple(map(terms_of, probe.layers)), similarity, "", inputs
    )


def make_inputs(heldout: int, probe: int, seed: int) -> Inputs:
    rng = np.random.default_rng(seed)
    f32 = np.float32
    held, shown = (rng.normal(size=(n, 2)).astype(f32) * [4, 2] for n in (heldout, probe))
    return Inputs(np.eye(2, 16, dtype=f32), np.array([0.4, 0.1], f32), held.astype(f32), shown.astype(f32))


def make_plane(experts: int = 8, layers: int = 3, k: int = 2, tokens: int = len(TEXT), own: int = 0) -> Plane:
    rng = np.random.default_rng(2)
    x, y = np.linspace(-1.6, 1.6, 60).astype(np.float32), np.linspace(-1.1, 1.1, 44).astype(np.float32)
    logits = np.stack(np.meshgrid(x, y), 2).reshape(-1, 2) @ rng.normal(size=(2, experts))
    ids = np.argsort(-logits, axis=1)[:, :k]
    weights = np.take_along_axis(np.exp(logits), ids, axis=1)
    weights /= weights.sum(axis=1, keepdims=True)
    made = tuple(Routing(f"layer {i}", experts, ids, weights.astype(np.float32)) for i in range(layers))
    at = rng.uniform(-1, 1, size=(tokens, 2)).astype(np.float32)
    said, p = rng.random((44, 60)).astype(np.float32), rng.random(tokens).astype(np.float32)
    own = rng.uniform(-1, 1, size=(own, 2)).astype(np.float32)
    return Plane(x, y, made, said, at, p, own, own[:, 0] > 0, together=False)


def twin_log(steps: int, first: int = 1) -> StepLog:
    """A run whose MoE changes its k at step 8; held-out is measured at every fourth step."""
    step = np.arange(first, first + steps)
    held = np.where(step % 4 == 0, 3.0 - step / 100, np.nan)
    per_token = np.where(step < 8, 300e3, 200e3)
    scalars = {
        "cross_entropy": 4.0 - step / 50,
        "dense_cross_entropy": 4.1 - step / 50,
        "heldout": held,
        "dense_heldout": held + 0.25,
        "heldout_gap_error": held * 0 + 0.05,
        "flops": 3072 * per_token.cumsum(),
        "dense_flops": 3072 * 301e3 * step,
        "flops_per_token": per_token,
        "dense_flops_per_token": np.full(steps, 301e3),
        "active_parameters": np.full(steps, 146e3),
        "parameters": np.full(steps, 367e3),
        "dense_parameters": np.full(steps, 145e3),
    }
    return StepLog(step, {name: np.asarray(values, np.float64) for name, values in scalars.items()}, ())


def make_film(steps: int = 12, **sizes: int) -> History:
    """Snapshots, and losses of a model with a dense twin."""
    history = History()
    history.extend(twin_log(steps))
    for step in range(steps):
        made = make_snapshot(step=step, **sizes)
        layers = tuple(
            replace(r, expert_ids_TK=np.roll(r.expert_ids_TK, step, axis=0), gate_weights_TK=None) for r in made.layers
        )
        history.add_snapshot(replace(made, layers=layers))
    return history


def shown(qtbot, name: str, survey: SurveyResult | None = None, width: int = 640, height: int = 400) -> Panel:
    survey = survey or make_survey()
    panel = show(qtbot, PANELS[name](DARK), width, height)
    sizes = survey.probe.layers[0]
    panel.show_snapshot(survey.probe)
    panel.show_history(make_film(experts=sizes.num_experts, layers=len(survey.probe.layers), k=sizes.k))
    panel.show_survey(survey)
    if isinstance(panel, Compare):
        panel.show_reference(Reference("step 3", panel.history.snapshots[3], kin=True))
    panel.refresh()
    return panel


def columns(panel: Panel) -> list[dict[str, object]]:
    head, rows = panel.table()
    return [dict(zip(head, row, strict=True)) for row in rows]


def matrix(panel: Panel, experts: int = 8) -> np.ndarray:
    return np.array(
        [[np.nan if (v := row[f"expert_{e}"]) == "" else v for e in range(experts)] for row in columns(panel)], float
    )


def paint(panel: Panel) -> None:
    """Into a picture, not through a paint event, so that an exception comes out."""
    image = QImage(panel.canvas.size(), QImage.Format.Format_RGB32)
    painter = QPainter(image)
    try:
        panel.paint_body(painter, QRectF(image.rect()))
    finally:
        painter.end()


def words_of(panel: Panel, folder: Path) -> set[str]:
    """What is written in the panel's picture."""
    export(panel, folder / "words.svg")
    nodes = ET.parse(folder / "words.svg").iter("{http://www.w3.org/2000/svg}text")
    return {"".join(node.itertext()).strip() for node in nodes}


@pytest.mark.parametrize(
    ("name", "titles"),
    [
        ("tokens_experts", {"token number", "expert", "gate g"}),
        ("layers_experts", {"layer", "expert", "load q"}),
        ("experts_domains", {"domain", "expert", "share"}),
        ("co_activation", {"expert", "expert chosen too", "share"}),
        ("similarity", {"expert", "cosine"}),
        ("positions", {"expert", "position in its sequence", "load q"}),
    ],
)
def test_axes_and_colours_have_a_title(qtbot, qapp, tmp_path, name, titles):
    assert titles <= words_of(shown(qtbot, name), tmp_path)


# ---- numbers
def test_experts_domains_holds_the_specialisation(qtbot, qapp):
    survey = make_survey()
    panel = shown(qtbot, "experts_domains", survey)
    held = survey.heldout
    mask = np.zeros((512, 8))
    np.put_along_axis(mask, held.layers[0].expert_ids_TK, 1, axis=1)
    wanted = mask.reshape(4, 128, 8).mean(axis=1)
    np.testing.assert_allclose(matrix(panel), wanted)
    np.testing.assert_allclose(matrix(panel).sum(axis=1), 2)
    assert [row["domain"] for row in columns(panel)] == list(DOMAINS)
    assert "chance k/E = 0.25" in panel.footer()
    ids, domain_T = held.layers[0].expert_ids_TK, np.repeat(np.arange(4), 128)
    found = metrics.label_information(ids, domain_T, 8, equal_weights=True, shuffles=20, row_length=survey.row_length)
    assert information_in_words(found)[0] in panel.footer()


@pytest.mark.parametrize(
    ("height", "named", "label"), [(560, 23, "domain"), (350, 23, "domain"), (200, 5, "every 5th domain")]
)
def test_every_domain_has_its_name_or_is_told_by_pointing_at_its_row(qtbot, qapp, tmp_path, height, named, label):
    survey = make_survey(tokens=2300)
    scripts = [f"{i:02} script" for i in range(23)]
    held = replace(survey.heldout, domains=[scripts[t % 23] for t in range(2300)])
    survey = replace(survey, heldout=held)
    panel = shown(qtbot, "experts_domains", survey, 360, height)
    words = words_of(panel, tmp_path)
    assert len(words & set(scripts)) == named
    assert label in words
    rect = panel.plot_rect(QRectF(panel.canvas.rect()))
    grid = panel.grid(rect)
    panel.point_at(QPointF(grid.rect.left() - 20, grid.cell(7, 0).center().y()))
    assert panel.footer().startswith("07 script: 100 tokens  expert ")
    paint(panel)


def test_what_all_domains_begin_with_is_said_once(qtbot, qapp, tmp_path):
    survey = make_survey()
    pairs = [f"English → {to}" for to in ("French", "German", "Greek")]
    survey = replace(survey, heldout=replace(survey.heldout, domains=[pairs[t % 3] for t in range(512)]))
    panel = shown(qtbot, "experts_domains", survey, 320, 300)
    assert {"French", "German", "Greek", "English → …"} <= words_of(panel, tmp_path)
    assert [row["domain"] for row in columns(panel)] == pairs


def test_dead_experts_and_uncovered_domains_are_told():
    assert dead_in_words(np.array([100, 0, 100, 0]), 4) == ["⚠ dead: experts 1 and 3"]
    few = dead_in_words(np.array([3, 0, 3, 0]), 3)
    assert few == ["experts 1 and ∅3 got no token; too few tokens to call them dead"]
    assert dead_in_words(np.array([5, 5]), 2) == []
    tokens = np.array([200, 200, 200])
    shares = np.array([[0.9, 0.1], [0.1, 0.9], [0.5, 0.5]])
    assert uncovered_in_words(["a", "b", "c"], shares, shares.mean(axis=0), tokens) == ["⚠ no sure favourite: c"]
    assert uncovered_in_words(["a"], shares[:1], shares[0], tokens[:1]) == []
    few = uncovered_in_words(["a", "b"], shares[:2], np.array([0.5, 0.5]), np.array([2, 2]))
    assert few == ["⚠ no sure favourite: a, b"]
    assert uncovered_in_words(["a", "b"], np.ones((2, 4)), np.ones(4), tokens[:2]) == []  # nobody chooses


def test_experts_over_time_are_named_by_the_step_that_names_them(qtbot):
    """An earlier step with fewer experts does not make null experts of those that came later."""
    panel = show(qtbot, PANELS["load_over_time"](DARK))
    history, steps = History(), np.arange(4)
    history.extend(StepLog(steps, {}, (np.full((4, 12), 8),)))
    early, late = (RoutingSnapshot(s, (routing(9, e, 2, 0),), ["x"] * 9) for s, e in ((0, 8), (3, 12)))
    history.add_snapshot(early)
    history.add_snapshot(late)
    panel.show_history(history)
    panel.show_snapshot(early)
    panel.show_selection(Selection(expert=10))
    panel.refresh()
    assert panel.footer().startswith("expert 10: q 0.0833 at step 3")
    null = replace(late, layers=(replace(late.layers[0], num_null=4),))
    history.clear()
    history.extend(StepLog(steps, {}, (np.full((4, 12), 8),)))
    history.add_snapshot(null)
    panel.show_history(history)
    assert panel.footer().startswith("expert ∅10: ")


def test_dropped_choices_are_marked_without_hiding_the_weight(qtbot):
    """An outline would fill a narrow cell, and look like the strongest weight."""
    panel = show(qtbot, PANELS["tokens_experts"](DARK), 400, 300)
    for tokens, words in ((160, "underlined: dropped"), (12, "outlined: dropped")):
        made = routing(tokens, 8, 2, 0)
        dropped = np.zeros(made.expert_ids_TK.shape, bool)
        dropped[3] = True
        panel.show_snapshot(RoutingSnapshot(0, (replace(made, dropped_TK=dropped),), ["x"] * tokens))
        image = QImage(panel.canvas.size(), QImage.Format.Format_RGB32)
        painter = QPainter(image)
        panel.paint_body(painter, QRectF(image.rect()))
        painter.end()
        assert words in panel.footer()
        heat = panel.heat_rect(panel.plot_rect(QRectF(image.rect())))
        x = heat.left() + 3.5 * heat.width() / tokens
        high = heat.height() / 8
        top = heat.top() + int(made.expert_ids_TK[3, 0]) * high
        assert image.pixelColor(round(x), round(top + high / 2)) != QColor(DARK.warn)
        column = {image.pixelColor(round(x), y).name() for y in range(round(top), round(top + high) + 1)}
        assert QColor(DARK.warn).name() in column


def test_the_load_of_soft_routing_is_told_by_its_bars(qtbot):
    weights = np.random.default_rng(0).dirichlet(np.ones(4), 20).astype(np.float32)
    ids = np.argsort(-weights, axis=1)
    soft = Routing("l", 4, ids, np.take_along_axis(weights, ids, 1), soft=True)
    panel = show(qtbot, PANELS["load"](DARK))
    panel.show_snapshot(RoutingSnapshot(0, (soft,), ["x"] * 20))
    panel.refresh()
    shares = weights.sum(axis=0) / weights.sum()
    assert f"CV of combine shares {axes.number(shares.std() / shares.mean())}" in panel.footer()
    assert "MaxVio" not in panel.footer()


def test_information_below_the_shuffles_is_told_as_chance():
    labels = np.random.default_rng(4).integers(0, 4, 2000)
    sure = metrics.label_information(labels[:, None], labels, 4, equal_weights=True, shuffles=20)
    assert information_in_words(sure)[0].startswith("NMI 0.99")
    by_chance = metrics.Information(nats=0.013, bias=0.01, of_labels=0.002, symmetric=0.003, chance=0.014)
    assert information_in_words(by_chance) == ["NMI no more than chance (< 0.004)"]
    assert information_in_words(metrics.Information(*[float("nan")] * 5)) == ["NMI –"]
    few = metrics.label_information(labels[:, None], labels, 4, equal_weights=True, shuffles=20, row_length=500)
    assert information_in_words(few)[0].endswith("(too few texts to know chance)")


def test_experts_tokens_counts_first_choices(qtbot, qapp):
    survey = make_survey()
    panel = shown(qtbot, "experts_tokens", survey)
    held = survey.heldout
    first = held.layers[0].expert_ids_TK[:, 0]
    texts = np.array(held.tokens)
    for row in columns(panel):
        there = texts == row["token"]
        assert row["seen"] == there.sum() >= metrics.MIN_COUNT
        assert row["first_choices"] == (first[there] == row["expert"]).sum() > 0
        assert row["share"] == row["first_choices"] / row["seen"]
    per_expert = [row["share"] for row in columns(panel) if row["expert"] == 0]
    assert per_expert == sorted(per_expert, reverse=True)
    panel.order.setCurrentText("most frequent")
    counts = [row["first_choices"] for row in columns(panel) if row["expert"] == 0]
    assert counts == sorted(counts, reverse=True)


def test_where_no_token_comes_often_each_expert_names_its_surest(qtbot, qapp):
    survey = make_survey()
    texts = [f"({t // 2}, 0)" for t in range(512)]  # each twice
    held = replace(survey.heldout, tokens=texts)
    panel = shown(qtbot, "experts_tokens", replace(survey, heldout=held, row_length=1))
    assert "no token comes 10 times" in panel.footer()
    first, gate = (a[:, 0] for a in (held.layers[0].expert_ids_TK, held.layers[0].gate_weights_TK))
    wanted = []
    for e in range(8):
        surest = {}
        for t in np.flatnonzero(first == e):
            surest[texts[t]] = max(surest.get(texts[t], 0), float(gate[t]))
        wanted += [(e, *item) for item in sorted(surest.items(), key=lambda item: -item[1])]
    rows = columns(panel)
    assert [row["gate_weight"] for row in rows] == [w for *_, w in wanted]
    assert {(row["expert"], row["token"], row["gate_weight"]) for row in rows} == set(wanted)
    assert picture(panel)
    for bare in (
        replace(held.layers[0], gate_weights_TK=None),
        replace(held.layers[0], gate_weights_TK=held.layers[0].gate_weights_TK * 0),
    ):
        panel.show_survey(replace(survey, heldout=replace(held, layers=(bare,) * 3)))
        assert len(columns(panel)) == len(wanted)
        assert picture(panel)


def test_a_click_on_an_expert_lists_its_tokens_surest_first(qtbot, qapp):
    survey = make_survey()
    panel = shown(qtbot, "experts_tokens", survey)
    rect = panel.plot_rect(QRectF(panel.canvas.rect()))
    spot = panel.rail(rect)[3].center()
    assert panel.hit(spot, rect) == {"row": 3}
    hovered = []
    panel.hovered.connect(hovered.append)
    panel.point_at(spot)
    assert hovered == [{}]  # its own; no other panel is to move
    with qtbot.waitSignal(panel.clicked) as clicked:
        panel.click_at(spot)
    assert clicked.args == [{"expert": 3}]
    panel.show_selection(Selection(expert=3))
    panel.refresh()
    r = survey.heldout.layers[0]
    wanted = np.flatnonzero(r.expert_ids_TK[:, 0] == 3)
    assert sorted(panel._contexts) == wanted.tolist()
    weights = r.gate_weights_TK[panel._contexts, 0]
    assert (np.diff(weights) <= 0).all()
    assert picture(panel)
    with qtbot.waitSignal(panel.clicked) as clicked:
        panel.click_at(QPointF(rect.right() - 5, rect.bottom() - 5))
    assert clicked.args == [{}]


@pytest.mark.parametrize(("height", "lines", "row"), [(8 * 16, 1, 16.0), (8 * 18 * 2 + 30, 2, 18.0), (60, 1, 18.0)])
def test_experts_tokens_use_the_height_they_get(qtbot, qapp, height, lines, row):
    panel = shown(qtbot, "experts_tokens")
    rect = QRectF(0, 0, 240, height)
    rail = panel.rail(rect)
    assert {spot.height() for spot in rail} == {lines * row}
    assert (rail[-1].bottom() <= rect.bottom()) == (height > 60)  # else it scrolls
    image = QImage(240, height, QImage.Format.Format_RGB32)
    image.fill(QColor(panel.theme.panel))
    painter = QPainter(image)
    panel.draw(painter, rect)
    painter.end()
    middle = [round(rail[0].top() + (line + 0.5) * row) for line in range(lines)]
    drawn = [any(image.pixelColor(x, y) != QColor(panel.theme.panel) for x in range(32, 240)) for y in middle]
    assert drawn == [True] * lines


def test_a_token_wider_than_its_line_is_shortened_and_the_others_follow(qtbot, qapp, monkeypatch):
    panel = shown(qtbot, "experts_tokens", width=260)
    panel._handled = [[Handled("w" * 80, 20, 20), Handled("b", 20, 20)]]
    written = []
    monkeypatch.setattr("moeviz.view.panels.experts_tokens.put", lambda painter, x, base, text: written.append(text))
    image = QImage(260, 100, QImage.Format.Format_RGB32)
    painter = QPainter(image)
    panel.draw(painter, QRectF(0, 0, 240, 100))
    painter.end()
    assert written[1].startswith("www")
    assert written[1].endswith("…")
    assert "b" in written


def test_co_activation_and_its_chance(qtbot, qapp):
    survey = make_survey(k=3)
    panel = shown(qtbot, "co_activation", survey)
    ids = survey.heldout.layers[0].expert_ids_TK
    wanted = np.full((8, 8), np.nan)
    for i in range(8):
        mine = ids[(ids == i).any(axis=1)]
        for j in range(8):
            if i != j and len(mine):
                wanted[i, j] = (mine == j).any(axis=1).mean()
    np.testing.assert_allclose(matrix(panel), wanted)
    assert f"chance {2 / 7:.3g}" in panel.footer()
    rect = panel.plot_rect(QRectF(panel.canvas.rect()))
    assert panel.hit(panel.grid(rect).cell(2, 5).center(), rect) == {"expert": 2, "column": 5}


def test_co_activation_names_only_pairs_of_enough_tokens(qtbot, qapp):
    """A pair of two tokens is neither named nor what the colours are scaled by."""
    ids = np.array([[0, 1]] * 40 + [[0, 2]] * 20 + [[1, 2]] * 30 + [[3, 4]] * 2)
    made = RoutingSnapshot(0, (Routing("l", 5, ids),), ["x"] * len(ids))
    panel = show(qtbot, PANELS["co_activation"](DARK))
    panel.show_snapshot(made)
    panel.refresh()
    assert panel.footer().split("  ")[:4] == [
        "most: 66.7 % of 0's 60 tokens chose 1 too",
        "least: 0 % of 1's 70 tokens chose 3 too",
        "chance 0.25",
        "blank rows: under 10 tokens",
    ]
    assert np.isnan(matrix(panel, 5)[3:]).all()
    assert panel._scale.high == pytest.approx(40 / 60)
    panel.pointed = {"expert": 3, "column": 4}
    assert panel.footer().startswith("tokens that chose 4 too: 2 of expert 3's 2, too few to tell  ")
    panel.show_snapshot(RoutingSnapshot(0, (Routing("l", 5, ids[-2:]),), ["x"] * 2))
    panel.pointed = {}
    panel.refresh()
    assert panel.footer().startswith("too few tokens to name a pair  ")


def test_the_least_co_activation_is_of_pairs_that_chance_would_bring_together(qtbot, qapp):
    """And the most is of pairs that are together in enough tokens: 3 and 4 are in 9."""
    ids = np.array([[0, 1]] * 60 + [[0, 2]] * 20 + [[1, 2]] * 5 + [[3, 4]] * 9 + [[3, 0]] * 3 + [[5, 0]] * 20)
    panel = show(qtbot, PANELS["co_activation"](DARK))
    panel.show_snapshot(RoutingSnapshot(0, (Routing("l", 7, ids, num_null=1),), ["x"] * len(ids)))
    panel.refresh()
    assert panel.footer().split("  ")[:2] == [
        "most: 100 % of 5's 20 tokens chose 0 too",
        "least: 0 % of 0's 103 tokens chose 4 too",
    ]
    expected = np.diag(panel._pairs) * panel._baseline
    assert expected[2] < 10 < expected[1]
    panel.show_snapshot(RoutingSnapshot(0, (Routing("l", 7, ids[60:85], num_null=1),), ["x"] * 25))
    panel.refresh()
    assert panel.footer().startswith("most: 100 % of 0's 20 tokens chose 2 too  chance")  # too few for a least


def test_chance_of_co_activation_where_tokens_choose_more_or_fewer(qtbot, qapp):
    """Random choices of 1, 2 or 4 of 8 have that share together on average."""
    rng = np.random.default_rng(0)
    chosen = [rng.permutation(8)[: rng.choice([1, 2, 4])] for _ in range(6000)]
    ids = np.array([[*row, *[-1] * (4 - len(row))] for row in chosen])
    panel = show(qtbot, PANELS["co_activation"](DARK))
    panel.show_snapshot(RoutingSnapshot(0, (Routing("l", 8, ids),), ["x"] * len(ids)))
    panel.refresh()
    assert np.nanmean(matrix(panel)) == pytest.approx(panel._baseline, rel=0.02)


def test_similarity_shows_both_kinds(qtbot, qapp):
    survey = make_survey()
    panel = shown(qtbot, "similarity", survey)
    wanted = survey.similarity[0].router_cosine_EE.astype(float)
    np.fill_diagonal(wanted, np.nan)
    np.testing.assert_allclose(matrix(panel), wanted)
    panel.kind.setCurrentText("outputs")
    np.testing.assert_allclose(matrix(panel), np.abs(wanted))
    assert "256 held-out tokens of width 8" in panel.footer()


def test_flow_and_layers_tell_the_same_of_the_same_tokens(qtbot, qapp):
    snapshot = make_survey().probe
    flow, layers = (show(qtbot, PANELS[name](DARK)) for name in ("flow", "layers_experts"))
    for panel in (flow, layers):
        panel.show_snapshot(snapshot)
        panel.refresh()
    said = re.findall(r"tells (\S+) of layer 1", f"{flow.footer()}  {layers.footer()}")
    assert len(said) == 2
    assert said[0] == said[1]


def test_flow_counts_first_choices_between_layers(qtbot, qapp):
    survey = make_survey()
    panel = shown(qtbot, "flow", survey)
    first = [r.expert_ids_TK[:, 0] for r in survey.heldout.layers]
    rows = columns(panel)
    for row in rows:
        here = first[row["layer"]] == row["expert"]
        there = first[row["layer"] + 1] == row["next_expert"]
        assert row["tokens"] == (here & there).sum()
        assert row["share"] == pytest.approx((here & there).sum() / here.sum())
    assert sum(row["tokens"] for row in rows if row["layer"] == 0) == 512
    rect = panel.plot_rect(QRectF(panel.canvas.rect()))
    panel.lay(rect)
    busiest = int(np.argmax(panel._loads[1]))
    assert panel.hit(panel._nodes[1][busiest].center(), rect) == {"layer": 1, "expert": busiest}
    heights = [spot.height() for spot in panel._nodes[0]]
    np.testing.assert_allclose(np.array(heights) / sum(heights), np.bincount(first[0], minlength=8) / 512)
    layer, i, j = panel._widest[0]
    middle = panel.path((layer, i, j)).pointAtPercent(0.25)
    panel.pointed = {"layer": layer, "expert": i, "next": j}
    assert panel.touching((layer, i)) == [(layer, i, j)]
    assert middle.x() > panel._nodes[0][0].right()


def test_the_anatomy_adds_up(qtbot, qapp):
    survey = make_survey()
    panel = shown(qtbot, "anatomy", survey)
    panel.show_selection(Selection(layer=1, token=5))
    rows, r, terms = columns(panel), survey.probe.layers[1], survey.terms[1]
    assert {row["expert"] for row in rows if row["chosen"]} == set(r.expert_ids_TK[5].tolist())
    assert sum(row["probability"] for row in rows) == pytest.approx(1, abs=1e-6)
    assert sum(row["gate"] for row in rows if row["chosen"]) == pytest.approx(1, abs=1e-6)
    assert sum(row["part"] for row in rows if row["chosen"]) == pytest.approx(float(terms.sum_norm_T[5]), rel=1e-5)
    logits = r.router_logits_TE[5]
    np.testing.assert_allclose([row["score"] for row in rows], logits[[row["expert"] for row in rows]])
    assert not panel._has_rest
    assert "no noise" in panel.footer()
    shared = replace(terms, sum_norm_T=terms.sum_norm_T + 1)
    panel.show_survey(replace(survey, terms=(shared,) * 3))
    panel.refresh()
    assert panel._rest == pytest.approx(1, abs=1e-5)
    assert "others: shared or null experts" in panel.footer()


def test_the_anatomy_shows_the_noise_of_training_where_there_is_room(qtbot, qapp):
    survey = make_survey()
    std_TE = np.random.default_rng(1).uniform(0.1, 0.9, (512, 8)).astype(np.float32)
    noisy = tuple(replace(terms, noise_std_TE=std_TE) for terms in survey.terms)
    panel = shown(qtbot, "anatomy", replace(survey, terms=noisy), 900)
    panel.show_selection(Selection(layer=1, token=5))
    rows = columns(panel)
    assert [row["noise_std"] for row in rows] == [float(std_TE[5, row["expert"]]) for row in rows]
    least, most = std_TE[5].min(), std_TE[5].max()
    assert f"noise off while looking, σ {axes.number(least)} to {axes.number(most)} in training" in panel.footer()

    def keys(width: float) -> list[str]:
        return [column.key for column, _ in panel.columns(width)]

    assert keys(800)[:4] == ["score", "noise_std", "probability", "gate"]
    widths = [set(keys(width)) for width in range(60, 600, 4)]
    assert all(a <= b for a, b in pairwise(widths)), "what is more needed stays longer"
    assert any("score" in have and "noise_std" not in have for have in widths), "the noise goes first"
    even = replace(noisy[0], noise_std_TE=np.full((512, 8), 0.5, np.float32))
    panel.show_survey(replace(survey, terms=(even,) * 3))
    panel.refresh()
    assert "σ 0.5 in training" in panel.footer()
    panel.show_survey(survey)
    panel.refresh()
    assert "noise_std" not in keys(800)
    assert all(row["noise_std"] == "" for row in columns(panel))


def test_the_anatomy_shows_dropped_and_missing_experts():
    weights = np.array([[0.7, 0.0, 0.0]], np.float32)
    dropped = np.array([[False, True, False]])
    r = Routing("l", 4, np.array([[2, 0, -1]]), weights, dropped_TK=dropped)
    lines = lines_of(r, 0, terms_of(r))
    assert [(line.expert, line.chosen, line.dropped) for line in lines] == [
        (2, True, False), (0, True, True), (1, False, False), (3, False, False),
    ]  # fmt: skip
    assert lines[0].values["part"] == pytest.approx(float(terms_of(r).sum_norm_T[0]), rel=1e-5)
    assert np.isnan(lines[1].values["part"])


@pytest.mark.parametrize(("width", "steps"), [(300, (1, 3)), (330, (1, 3)), (640, (1, 2, 3))])
def test_a_token_that_was_dropped_keeps_its_steps_and_its_sums_apart(qtbot, qapp, monkeypatch, width, steps):
    survey = make_survey()
    lost = [replace(r, dropped_TK=np.ones((r.num_tokens, r.k), bool)) for r in survey.probe.layers]
    lost = [replace(r, gate_weights_TK=np.zeros((r.num_tokens, r.k), np.float32)) for r in lost]
    probe = replace(survey.probe, layers=tuple(lost))
    panel = shown(qtbot, "anatomy", replace(survey, probe=probe, terms=tuple(map(terms_of, lost))), width)
    assert tuple(dict.fromkeys(column.step for column, _ in panel.columns(width - 16.0))) == steps
    rows: dict[float, list[tuple[float, str]]] = {}
    monkeypatch.setattr(anatomy, "put", lambda _, left, base, text: rows.setdefault(base, []).append((left, text)))
    paint(panel)
    assert any("|y| = 0.000" in text or text == "0.000" for _, text in rows[max(rows)])
    for row in rows.values():
        for (left, text), (after, _) in pairwise(sorted(row)):
            assert left + width_of(text) < after, row
    assert sum(text == "dropped" for row in rows.values() for _, text in row) == (2 if 2 in steps else 0)


def test_the_anatomy_uses_a_large_panel(qtbot, qapp):
    panel = shown(qtbot, "anatomy", width=900, height=620)
    small = QRectF(0, 0, 420, 200)
    assert panel.row_height(small) == anatomy.ROW
    large = panel.plot_rect(QRectF(panel.canvas.rect()))
    last, spot = panel.columns(large.width())[-1]
    assert last.bar
    assert spot.right() == pytest.approx(large.width())
    assert panel.row_height(large) > 1.5 * anatomy.ROW
    lines, below = panel.shown_lines(large)
    assert (len(lines), below) == (8, ["sum"])
    middle = QPointF(large.left() + 20, large.top() + anatomy.HEAD + 6.5 * panel.row_height(large))
    assert panel.hit(middle, large) == {"expert": lines[6].expert}
    many = shown(qtbot, "anatomy", make_survey(experts=64), 900, 620)
    assert many.row_height(large) == anatomy.ROW


@pytest.mark.parametrize(
    ("name", "pointed", "drawn_by"),
    [
        ("flow", {"layer": 0, "expert": 6}, "flow"),
        ("flow", {"layer": 2, "expert": 6}, "flow"),
        ("co_activation", {"expert": 6, "column": 7}, "grid"),
        ("similarity", {"expert": 7, "column": 6}, "axes"),
        ("experts_tokens", {"row": 6}, "experts_tokens"),
        ("experts_domains", {"row": 1, "expert": 6}, "axes"),
        ("positions", {"expert": 6, "column": 0}, "grid"),
        ("anatomy", {}, "anatomy"),
    ],
)
def test_null_experts_have_their_sign_in_all_words(qtbot, qapp, monkeypatch, name, pointed, drawn_by):
    survey = make_survey()
    probe, held = (
        replace(s, layers=tuple(replace(r, num_null=3) for r in s.layers)) for s in (survey.probe, survey.heldout)
    )
    panel = shown(qtbot, name, replace(survey, probe=probe, heldout=held), 900, 600)
    drawn: set[str] = set()
    monkeypatch.setattr(
        f"moeviz.view.panels.{drawn_by}.put", lambda _, x, base, text: drawn.add(text.removesuffix(" ✓"))
    )
    panel.pointed = pointed
    told = panel.footer()
    assert "∅6" in told or name == "anatomy", told
    paint(panel)
    assert {"4", "∅5", "∅6", "∅7"} <= drawn
    assert not {"5", "6", "7"} & drawn


def test_the_anatomy_keeps_to_one_step(qtbot, qapp):
    survey = make_survey(step=50)
    panel = shown(qtbot, "anatomy", survey)
    panel.show_snapshot(replace(survey.probe, step=60))  # training went on: still the survey's numbers
    assert panel.source is survey.probe
    old = replace(survey.probe, step=40)
    panel.show_snapshot(old)
    panel.refresh()
    assert panel.source is old
    assert "outputs are known of step 50, not of this one" in panel.footer()
    panel.show_snapshot(make_snapshot("another text", step=70))
    assert panel.source is not survey.probe


def test_saturation_agrees_with_the_measures(qtbot, qapp):
    panel = shown(qtbot, "saturation")
    film = panel.history.snapshots
    ids = [s.layers[0].expert_ids_TK for s in film]
    rows = columns(panel)
    np.testing.assert_allclose([row["saturation"] for row in rows], [metrics.saturation(i, ids[-1]) for i in ids])
    churn = [metrics.churn(a, b) for a, b in pairwise(ids)]
    np.testing.assert_allclose([row["churn"] for row in rows[1:]], churn)
    assert rows[0]["churn"] == ""
    panel.show_snapshot(film[4])
    panel.reference.setCurrentText("shown step")
    np.testing.assert_allclose(
        [row["saturation"] for row in columns(panel)], [metrics.saturation(i, ids[4]) for i in ids]
    )
    rect = panel.plot_rect(QRectF(panel.canvas.rect()))
    assert panel.hit(panel.frame(rect).rect.center(), rect) == {"at": 5}


def test_churn_over_more_steps_is_no_part_of_the_curve_of_churn_over_fewer(qtbot, qapp):
    steps, churn = np.array([0.0, 2, 4, 8, 12, 13]), np.array([np.nan, 0.5, 0.4, 0.3, 0.2, np.nan])
    frame = Frame(QRectF(0, 0, 13, 1), 0.0, 13.0, 0.0, 1.0)
    lines = [[(p.x(), round(1 - p.y(), 3)) for p in line] for line in frame.points(*level_lines(steps, churn))]
    assert [list(dict.fromkeys(line)) for line in lines] == [
        [(0, 0.5), (2, 0.5), (2, 0.4), (4, 0.4)],
        [(4, 0.3), (8, 0.3), (8, 0.2), (12, 0.2)],
    ]
    panel = shown(qtbot, "saturation")
    panel.history.snapshots = [panel.history.snapshots[step] for step in (0, 1, 2, 5, 11)]
    panel.history.revision += 1
    panel.show_history(panel.history)
    panel.refresh()
    for at, words in ((1, "over 1 step since 0"), (3, "over 3 steps since 2")):
        panel.pointed = {"at": at}
        assert words in panel.footer()


def test_saturation_follows_whatever_changes_and_looks_once_at_what_does_not(qtbot, qapp, monkeypatch):
    looked = []
    monkeypatch.setattr(saturation, "comparable", lambda *args: looked.append(args) or comparable(*args))
    panel = shown(qtbot, "saturation")
    history = panel.history
    others = [make_snapshot("another text", step=60 + i) for i in range(3)]

    def as_made_anew():
        fresh = show(qtbot, PANELS["saturation"](DARK))
        fresh.reference.setCurrentIndex(panel.reference.currentIndex())
        fresh.show_selection(panel.selection)
        fresh.show_history(history)
        fresh.show_snapshot(panel.snapshot)
        return told(fresh)

    def told(panel):
        return panel.table(), panel.footer(), panel.subtitle()

    for reference in ("last step", "shown step"):
        panel.reference.setCurrentText(reference)
        for at in (1, 4, 0):
            panel.show_snapshot(history.snapshots[at])
            assert told(panel) == as_made_anew()
    looked.clear()
    panel.show_snapshot(history.snapshots[3])
    told(panel)
    assert len(looked) <= 2  # not at all steps of the film
    for snapshot in others:
        history.add_snapshot(snapshot)
    history.revision += 1
    for now in (history.snapshots[2], others[1], history.snapshots[5]):  # of two texts in turn
        panel.show_snapshot(now)
        panel.show_history(history)
        assert told(panel) == as_made_anew()
    panel.show_selection(Selection(layer=1))
    assert told(panel) == as_made_anew()
    history.snapshots = history.snapshots[::2]
    history.revision += 1
    panel.show_history(history)
    assert told(panel) == as_made_anew()


def test_overlap_of_choices_that_vary_in_size():
    ids = np.array([[[0, 1], [2, -1], [-1, -1]], [[1, 9], [3, 2], [-1, -1]], [[-1, -1]] * 3])
    bits, sizes = zip(*(packed(rows, 10) for rows in ids), strict=True)
    found = overlaps(np.stack(bits), np.stack(sizes), bits[1], sizes[1])
    np.testing.assert_allclose(found, [metrics.saturation(rows, ids[1]) for rows in ids])
    assert np.isnan(overlaps(np.stack(bits[2:]), np.stack(sizes[2:]), bits[2], sizes[2])).all()


def test_positions_count_along_the_sequence(qtbot, qapp):
    survey = make_survey(tokens=1024)
    r = survey.heldout.layers[0]
    made = replace(r, dropped_TK=np.arange(1024)[:, None] % LENGTH >= np.array([LENGTH // 2, LENGTH]))
    survey = replace(survey, heldout=replace(survey.heldout, layers=(made,) * 3))
    panel = shown(qtbot, "positions", survey)
    rows = columns(panel)
    assert rows[0]["first_position"] == 0
    assert rows[-1]["last_position"] == LENGTH - 1
    at = np.arange(1024) % LENGTH
    for row, shares in zip(rows, matrix(panel), strict=True):
        here = (row["first_position"] <= at) & (at <= row["last_position"])
        counts = np.bincount(r.expert_ids_TK[here].ravel(), minlength=8)
        assert row["choices"] == counts.sum()
        np.testing.assert_allclose(shares, counts / counts.sum())
        assert row["drop_rate"] == pytest.approx(made.dropped_TK[here].mean())
    rect = panel.plot_rect(QRectF(panel.canvas.rect()))
    assert panel.hit(panel.grid(rect).cell(6, 1).center(), rect) == {"expert": 6, "column": 1}


def test_tokens_that_are_read_one_by_one_have_no_position(qtbot, qapp):
    panel = PANELS["positions"](DARK)
    qtbot.addWidget(panel)
    panel.show_survey(replace(make_survey(), row_length=1))
    assert "no position" in panel.missing()


# ---- every panel
@pytest.mark.parametrize("name", NEW)
def test_a_panel_says_which_data_it_lacks(qtbot, name):
    panel = PANELS[name](DARK)
    qtbot.addWidget(panel)
    assert panel.missing().startswith("No ")
    head, rows = panel.table()
    assert head
    assert rows == []
    bare = RoutingSnapshot(0, (Routing("l", 4, np.array([[0], [1], [-1]])),))
    panel.show_snapshot(bare)
    said = panel.missing()
    wanted = {
        "experts_domains": "no domains",
        "experts_tokens": "no token texts",
        "co_activation": "one expert",
        "similarity": "not in this data",
        "flow": "one MoE layer",
        "anatomy": "",
        "saturation": "No kept steps",
        "positions": "",
        "moe_dense": "No history of losses",
        "compare": "nothing to compare with",
        "input_map": "no inputs of routers",
    }[name]
    assert wanted in said
    assert bool(wanted) == bool(said)
    if name == "anatomy":
        panel.refresh()
        assert "no experts' outputs" in panel.footer()


def test_a_trace_that_names_domains_needs_no_survey(qtbot, qapp):
    held = make_survey().heldout
    for name in ("experts_domains", "experts_tokens", "co_activation", "flow", "positions"):
        panel = PANELS[name](DARK)
        qtbot.addWidget(panel)
        panel.show_snapshot(held)
        assert panel.missing() == ""
        panel.refresh()
        assert panel.table()[1]
        assert "512 tokens shown" in panel.subtitle()


@pytest.mark.parametrize(
    ("name", "where"),
    [
        *dict.fromkeys(
            ("tokens", "tokens_experts", "gate_weights", "load", "anatomy", "experts_domains", "experts_tokens"),
            "layer 1, step 1,234",
        ).items(),
        *dict.fromkeys(("co_activation", "similarity", "positions"), "layer 1, step 1,234").items(),
        *dict.fromkeys(("flow", "layers_experts"), "step 1,234").items(),  # all layers
        *dict.fromkeys(("load_over_time", "saturation"), "layer 1").items(),  # all steps
    ],
)
def test_a_picture_says_of_which_layer_and_step_it_is(qtbot, name, where):
    survey, history = make_survey(step=1234), make_film()
    history.extend(make_history(10).logs()[0])
    panel = PANELS[name](DARK)
    qtbot.addWidget(panel)
    for found in (survey, None):
        panel.show_snapshot(survey.probe)
        panel.show_history(history)
        panel.show_survey(found)
        panel.show_selection(Selection(layer=1, token=2))
        if not panel.lack():
            assert f"{panel.subtitle()},".startswith(f"{where},")


def test_held_out_text_that_is_missing_is_told(qtbot, qapp):
    lack = "Held out of prose is less than one sequence."
    survey = replace(make_survey(), heldout=None, similarity=(), lack=lack)
    for name in ("experts_domains", "similarity"):
        assert shown(qtbot, name, survey).missing() == lack


@pytest.mark.parametrize("name", NEW)
@pytest.mark.parametrize(("experts", "k", "tokens"), [(1, 1, 2), (2, 2, 8), (64, 6, 512), (8, 8, 64)])
@pytest.mark.parametrize("poor", [False, True])
def test_a_panel_draws_the_smallest_the_largest_and_the_poorest(qtbot, qapp, name, experts, k, tokens, poor):
    apply(qapp, DARK)
    survey = make_survey(experts, 2, k, tokens)
    if poor:

        def bare(r: Routing) -> Routing:
            ids = r.expert_ids_TK.copy()
            ids[::3, -1] = -1  # fewer than k experts; none at all where k is 1
            dropped = (ids % 2 == 0) & (ids >= 0)
            return Routing(r.name, r.num_experts, ids, dropped_TK=dropped)

        held, probe = (replace(s, layers=tuple(map(bare, s.layers))) for s in (survey.heldout, survey.probe))
        survey = replace(survey, heldout=held, probe=probe, terms=tuple(map(terms_of, probe.layers)))
    panel = shown(qtbot, name, survey, 320, 200)
    for size in ((200, 96), (320, 200), (900, 600)):
        panel.resize(*size)
        for selection in (Selection(), Selection(7, 10_000, 10_000), Selection(1, 3, experts - 1)):
            panel.show_selection(selection)
            paint(panel)
            for x in range(0, size[0], 40):
                for y in (0.2, 0.5):
                    panel.point_at(QPointF(x, size[1] * y))
                    panel.footer()
            paint(panel)
            panel.point_at(None)
    panel.show_snapshot(None)
    panel.show_history(None)
    panel.show_survey(None)
    assert picture(panel)


@pytest.mark.parametrize("name", NEW)
def test_words_are_not_cut_in_a_window_of_1280(qtbot, qapp, name):
    panel = shown(qtbot, name, None, 316, 300)
    rect = QRectF(panel.canvas.rect())
    told = wrapped(panel.footer(), panel.plot_rect(rect).width(), panel.lines_of_words(rect.width()))
    assert not any("…" in line for line in told), told


@pytest.mark.parametrize("name", NEW)
def test_a_hidden_panel_costs_nothing(qtbot, qapp, name, monkeypatch):
    panel = PANELS[name](DARK)
    qtbot.addWidget(panel)
    monkeypatch.setattr(type(panel), "prepare", lambda self: pytest.fail("a hidden panel prepared"))
    survey = make_survey()
    panel.show_snapshot(survey.probe)
    panel.show_history(make_film())
    panel.show_survey(survey)
    panel.show_selection(Selection(1, 2, 3))
    qapp.processEvents()
    assert panel.draws == 0


@pytest.mark.parametrize("name", [n for n in NEW if n not in ("anatomy", "saturation", "compare")])
def test_a_panel_of_held_out_text_rests_until_the_next_survey(qtbot, qapp, name):
    panel = shown(qtbot, name)
    qapp.processEvents()
    before = panel.draws
    panel.show_snapshot(make_snapshot(step=100))
    qapp.processEvents()
    assert panel.draws == before


@pytest.mark.parametrize("name", NEW)
def test_every_ending_can_be_exported(qtbot, qapp, name, tmp_path):
    panel = shown(qtbot, name)
    for ending in ("pdf", "svg", "png", "csv"):
        export(panel, tmp_path / f"p.{ending}", theme=LIGHT)
        assert (tmp_path / f"p.{ending}").stat().st_size > 50
    with (tmp_path / "p.csv").open(newline="", encoding="utf-8") as file:
        read = list(csv.reader(file))
    head, rows = panel.table()
    assert read == [head, *([str(value) for value in row] for row in rows)]
    reference = panel.reference if isinstance(panel, Compare) else None
    given = {"snapshot": panel.snapshot, "history": panel.history, "survey": panel.survey}
    render_plot(tmp_path / "r.png", plot=name, **given, reference=reference, size=(640, 480))
    image = QImage(str(tmp_path / "r.png"))
    assert (image.width(), image.height()) == (640, 480)


def test_first_choices_leave_out_tokens_without_an_expert(qtbot, qapp):
    ids = np.array([[0], [-1], [1], [1]])
    after = np.array([[1], [1], [-1], [0]])
    layers = (Routing("a", 2, ids), Routing("b", 2, after))
    panel = PANELS["flow"](DARK)
    qtbot.addWidget(panel)
    panel.show_snapshot(RoutingSnapshot(0, layers))
    assert panel.table()[1] == [[0, 0, 1, 1, 1.0], [0, 1, 0, 1, 1.0]]
    assert first_choice(ids).tolist() == [0, -1, 1, 1]


def test_a_low_logarithmic_axis_keeps_to_its_decades(monkeypatch):
    written = []
    monkeypatch.setattr(axes, "put", lambda painter, left, base, text: written.append(text))
    image = QImage(300, 200, QImage.Format.Format_RGB32)
    painter = QPainter(image)
    axes.draw_y_axis(painter, axes.Frame(QRectF(60, 10, 200, 70), 0, 1, 0.02, 4, log_y=True), DARK, "")
    painter.end()
    assert written == ["0.1", "1"]


def test_the_even_share_follows_the_number_of_experts():
    shares = np.array([[0.5, 0.5, np.nan], [0.5, 0.5, np.nan], [0.2, 0.4, 0.4], [0.3, 0.3, 0.4]])
    assert uniform_lines(np.array([0.0, 10.0, 20.0, 30.0]), shares) == [(0.0, 20.0, 1 / 2), (20.0, 30.0, 1 / 3)]


def test_changes_of_one_mark_are_told_apart_but_a_name_with_a_comma_is_one():
    assert BETWEEN.split("k 2 → 4, Experts 8 → 16") == ["k 2 → 4", "Experts 8 → 16"]
    assert BETWEEN.split("Own data built-in → a, b.txt") == ["Own data built-in → a, b.txt"]
