"""The compare panel and its second side: exact numbers, what cannot be compared, and each kind of B as a person picks
it in a window whose model really trains."""

import csv
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PySide6.QtCore import QPointF, QRectF, Qt
from PySide6.QtGui import QImage, QPainter
from PySide6.QtWidgets import QFileDialog
from pytestqt.qtbot import QtBot
from test_all_routers import CASES, trained
from test_cli import SMALL as SMALL_SET
from test_cli import fails
from test_panels import make_snapshot, routing, show
from test_panels_more import paint
from test_window import SMALL, WAIT, action, settled, train, window
from test_window_files import model, trace

from moeviz import app
from moeviz.cli import main
from moeviz.domain import metrics
from moeviz.domain.messages import Advance, Command, Read, Report, SaveModel, SetKnobs, SetProbe
from moeviz.domain.reference import Reference, same_experts
from moeviz.domain.routing import Routing, RoutingSnapshot
from moeviz.domain.selection import Selection
from moeviz.domain.survey import Part
from moeviz.moe import training
from moeviz.moe.tasks import TASKS
from moeviz.moe.trainer import Trainer
from moeviz.view.panel import wrapped
from moeviz.view.panels.axes import number
from moeviz.view.panels.compare import SAMPLE, Compare, percent, same_tokens
from moeviz.view.panels.words import about
from moeviz.view.reference import KINDS
from moeviz.view.theme import DARK
from moeviz.view.window import Window

__all__ = ["model", "trace", "window"]  # the fixtures


# ---- the panel
def other_snapshot(experts: int = 8, k: int = 2, step: int = 7) -> RoutingSnapshot:
    """The same tokens, otherwise routed."""
    made = make_snapshot(experts=experts, k=k, step=step)
    return replace(made, layers=tuple(routing(made.num_tokens, experts, k, 50 + i) for i in range(len(made.layers))))


def comparing(qtbot: QtBot, reference: Reference, a: RoutingSnapshot | None = None) -> Compare:
    panel = Compare(DARK)
    show(qtbot, panel, 640, 460)
    panel.show_snapshot(a or make_snapshot())
    panel.show_reference(reference)
    panel.refresh()
    return panel


def rows_of(panel: Compare, what: str) -> dict[object, list[object]]:
    return {row[1]: row[2:] for row in panel.table()[1] if row[0] == what}


def test_loads_tokens_and_measures_are_those_of_the_two_sides(qtbot: QtBot) -> None:
    a, b = make_snapshot(), other_snapshot()
    panel = comparing(qtbot, Reference("step 7", b, kin=True), a)
    ra, rb = a.layers[0], b.layers[0]
    qa, qb = (metrics.load_share(metrics.expert_counts(r)) for r in (ra, rb))
    np.testing.assert_allclose(list(rows_of(panel, "load_share").values()), np.stack([qa, qb, qa - qb], axis=1))
    firsts = np.array([row[:2] for row in rows_of(panel, "first_expert").values()])
    np.testing.assert_array_equal(firsts, np.stack([ra.expert_ids_TK[:, 0], rb.expert_ids_TK[:, 0]], axis=1))
    found = {name: row[-1] for name, row in rows_of(panel, "measure").items()}
    flips = float((firsts[:, 0] != firsts[:, 1]).mean())
    kept = [len(set(x) & set(y)) / 2 for x, y in zip(ra.expert_ids_TK, rb.expert_ids_TK, strict=True)]
    moved = np.abs(ra.router_probs_TE - rb.router_probs_TE).sum(1).mean() / 2
    assert found["changed_first"] == pytest.approx(flips)
    assert found["changed_choices"] == pytest.approx(1 - np.mean(kept))
    assert found["changed_probability"] == pytest.approx(moved, rel=1e-5)
    assert found["jsd_nats"] == pytest.approx(metrics.load_divergence(qa, qb))
    words = panel.footer()
    most = int(np.abs(qb - qa).argmax())
    assert f"top gap: expert {most}, A {about(qa[most])}, B {about(qb[most])} (chance ±" in words
    assert f"moved to other experts: {percent(found['changed_weight'])} of g, {percent(moved)} of p" in words
    assert "at most 0.693" in words
    assert "share only their numbers" not in words
    assert rows_of(panel, "side")[""][:2] == ["A: step 99 (later)", "B: step 7 (earlier); layer 0 of both"]


def test_the_strip_names_null_experts_by_their_sign(qtbot: QtBot, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_null(snapshot: RoutingSnapshot) -> RoutingSnapshot:
        return replace(snapshot, layers=tuple(replace(routing, num_null=3) for routing in snapshot.layers))

    panel = comparing(qtbot, Reference("step 7", with_null(other_snapshot()), kin=True), with_null(make_snapshot()))
    assert panel._firsts is not None
    written: list[str] = []
    monkeypatch.setattr("moeviz.view.panels.compare.put", lambda painter, left, base, text: written.append(text))
    strip = panel.parts(QRectF(0, 0, 1200, 500)).strip
    assert strip is not None
    image = QImage(1200, 500, QImage.Format.Format_RGB32)
    painter = QPainter(image)
    panel._draw_strip(painter, strip)
    painter.end()
    first = panel._firsts[0].tolist()
    assert max(first) >= 5
    assert written[written.index("A") + 1 :][: len(first)] == [f"∅{e}" if e >= 5 else f"{e}" for e in first]


def test_another_layer_of_the_same_moment(qtbot: QtBot) -> None:
    a = make_snapshot()
    panel = comparing(qtbot, Reference("the same moment", a, layer=2, kin=True), a)
    shares = metrics.load_share(metrics.expert_counts(a.layers[2]))
    np.testing.assert_allclose([row[1] for row in rows_of(panel, "load_share").values()], shares)
    assert "experts of two layers share only their numbers" in panel.footer()
    panel.show_selection(Selection(layer=2))
    panel.refresh()
    assert panel.footer() == "A and B are the same  choose another B, or move the timeline"


def test_other_tokens_leave_the_loads(qtbot: QtBot) -> None:
    a = make_snapshot()
    for b, why in (
        (make_snapshot(text="Something else"), "A has 41 tokens, B 14 others"),
        (replace(other_snapshot(), tokens=tuple("x" * 41)), "A has 41 tokens, B 41 others"),
        (replace(other_snapshot(), tokens=None), "without texts it is not known"),
    ):
        panel = comparing(qtbot, Reference("a file", b), a)
        assert why in panel.footer()
        assert "other first expert" not in panel.footer()
        assert not rows_of(panel, "first_expert")
        assert set(rows_of(panel, "measure")) == {"jsd_nats"}
        assert panel.parts(QRectF(0, 0, 640, 400)).strip is None
        assert "experts of A and B share only their numbers" in panel.footer()
    assert comparing(qtbot, Reference("x", replace(a, tokens=tuple(a.tokens))), a).parts(QRectF(0, 0, 640, 400)).strip


def test_other_numbers_of_experts_cannot_be_paired(qtbot: QtBot) -> None:
    panel = comparing(qtbot, Reference("a file", other_snapshot(experts=12)))
    assert "8 and 12 experts: these are not compared one by one" in panel.footer()
    assert "effective experts: A " in panel.footer()
    assert "JSD" not in panel.footer()
    loads = rows_of(panel, "load_share")
    assert len(loads) == 12
    assert all(row[-1] == "" for row in loads.values())
    assert loads[11][0] == ""
    assert set(rows_of(panel, "measure")) == {"nmi"}
    parts = panel.parts(QRectF(0, 0, 640, 400))
    assert parts.delta is None
    assert parts.strip is not None
    paint(panel)


@pytest.mark.parametrize(("experts", "k"), [(1, 1), (64, 6)])
def test_one_expert_and_many(qtbot: QtBot, experts: int, k: int) -> None:
    panel = comparing(
        qtbot, Reference("step 7", other_snapshot(experts, k), kin=True), make_snapshot(experts=experts, k=k)
    )
    for size in ((200, 96), (300, 220), (900, 600)):
        panel.resize(*size)
        paint(panel)
    assert len(rows_of(panel, "load_share")) == experts
    if experts == 1:
        assert "JSD 0 nats" in panel.footer()
        assert "no load differs" in panel.footer()


@pytest.mark.parametrize(("router", "capacity"), CASES)
def test_layers_of_every_router_are_compared(qtbot: QtBot, router: str, capacity: float) -> None:
    snapshot, history = trained(router, capacity)
    for reference in (
        Reference("the same moment", snapshot, layer=1, kin=True),
        Reference("step 3", history.snapshots[0], kin=True, shown=other_snapshot(snapshot.layers[0].num_experts)),
    ):
        panel = comparing(qtbot, reference, snapshot)
        assert panel.lack() == ""
        for size in ((200, 96), (277, 278), (900, 500)):
            panel.resize(*size)
            panel.show_selection(Selection(0, 5, snapshot.layers[0].num_experts - 1))
            paint(panel)
        loads = np.array([row[:2] for row in rows_of(panel, "load_share").values()], float)
        np.testing.assert_allclose(loads.sum(axis=0), 1, rtol=1e-5)
        measures = {name: float(row[-1]) for name, row in rows_of(panel, "measure").items()}
        assert 0 <= measures["jsd_nats"] <= np.log(2)
        assert 0 <= measures.get("changed_first", 0) <= 1


@pytest.mark.parametrize(("layer", "experts", "kin"), [(None, 8, False), (1, 8, True), (None, 12, False)])
def test_words_are_not_cut_in_a_window_of_1280(qtbot: QtBot, layer: int | None, experts: int, kin: bool) -> None:
    panel = comparing(qtbot, Reference("step 7", other_snapshot(experts), layer, kin))
    panel.resize(316, 330)
    rect = QRectF(panel.canvas.rect())
    told = wrapped(panel.footer(), panel.plot_rect(rect).width(), panel.lines_of_words(rect.width()))
    assert not any("…" in line for line in told), told


def test_soft_routing_is_compared_by_its_weights(qtbot: QtBot) -> None:
    def soft(seed: int) -> RoutingSnapshot:
        weights = np.random.default_rng(seed).dirichlet(np.ones(4), size=6).astype(np.float32)
        ids = np.tile(np.arange(4), (6, 1))
        return RoutingSnapshot(seed, (Routing("l", 4, ids, weights, weights, soft=True),), tuple("abcdef"))

    panel = comparing(qtbot, Reference("step 1", soft(1), kin=True), soft(0))
    masses = [s.layers[0].gate_weights_TK.sum(axis=0) / 6 for s in (soft(0), soft(1))]
    for side, mass in enumerate(masses):
        np.testing.assert_allclose([row[side] for row in rows_of(panel, "load_share").values()], mass, rtol=1e-5)
    assert "chance" not in panel.footer().split("  ")[0]


def test_pointing_tells_of_both_sides_and_selects_everywhere(qtbot: QtBot) -> None:
    a, b = make_snapshot(), other_snapshot()
    panel = comparing(qtbot, Reference("step 7", b, kin=True), a)
    rect = panel.plot_rect(QRectF(panel.canvas.rect()))
    parts = panel.parts(rect)
    assert parts.delta is not None
    assert parts.strip is not None
    hovered: list[dict[str, int]] = []
    clicked: list[dict[str, int]] = []
    panel.hovered.connect(hovered.append)
    panel.clicked.connect(clicked.append)
    for frame in (parts.loads, parts.delta):
        panel.point_at(QPointF(frame.x(3.5), frame.rect.center().y()))
        assert hovered[-1] == {"expert": 3}
        assert panel.footer().startswith("expert 3: q A ")
        panel.point_at(None)
    at = QPointF(parts.strip.left() + (5 + 0.5) * parts.strip.width() / a.num_tokens, parts.strip.center().y())
    panel.point_at(at)
    assert hovered[-1] == {"token": 5}
    e = a.layers[0].expert_ids_TK[5, 0]
    assert panel.footer().startswith(f"A: token 5 ',' → experts {e} (")
    panel.click_at(at)
    assert clicked == [{"token": 5}]


def test_what_is_missing_is_one_sentence(qtbot: QtBot) -> None:
    panel = comparing(qtbot, Reference("x", None, lack="Choose a file."))
    assert panel.lack() == "Choose a file."
    panel.show_reference(Reference("run.zarr", other_snapshot(), layer=9))
    assert panel.lack() == "B, run.zarr, has 3 MoE layers, so it has no layer 9: choose another layer."
    none = replace(other_snapshot(), layers=tuple(Routing("l", 8, np.zeros((0, 2), np.int64)) for _ in range(3)))
    panel.show_reference(Reference("run.zarr", none))
    assert panel.lack() == "B, run.zarr, has no tokens."
    panel.show_reference(None)
    assert "choose B" in panel.lack()
    assert panel.table()[1] == []


def numbered(step: int, experts: int, lineage: str = "") -> RoutingSnapshot:
    return replace(make_snapshot(experts=experts, step=step), lineage=lineage)


@pytest.mark.parametrize(
    ("a", "b", "marks", "same"),
    [
        ((0, 8), (9, 8), [], True),
        ((0, 8), (9, 8), [(5, "k 2 → 1"), (5, "Router topk → switch"), (6, "Shared experts 0 → 4")], True),
        ((0, 8), (9, 8), [(5, "Experts 8 → 4"), (5, "Experts 4 → 8")], True),  # undone before another step
        ((0, 8), (9, 8), [(5, "Experts 8 → 4"), (6, "Experts 4 → 8")], False),
        ((0, 8), (9, 8), [(5, "k 4 → 2, Experts 8 → 4"), (7, "Experts 4 → 8, Noise 0 → 1")], False),
        ((5, 4), (6, 4), [(5, "Experts 8 → 4"), (6, "Experts 4 → 8")], True),  # after the one, before the other
        ((5, 8), (9, 8), [(5, "Experts 8 → 4"), (6, "Experts 4 → 8")], False),
        ((7, 8), (9, 8), [(5, "Experts 8 → 4"), (6, "Experts 4 → 8")], True),
        ((0, 8), (9, 4), [(5, "Experts 8 → 4")], False),
    ],
)
def test_experts_are_followed_by_the_marks_of_a_trace(
    a: tuple[int, int], b: tuple[int, int], marks: list[tuple[int, str]], same: bool
) -> None:
    one, other = numbered(*a), numbered(*b)
    assert same_experts(one, other, marks) == same_experts(other, one, marks) == same
    assert not same_experts(one, other), "of two runs nothing is known"


def test_experts_are_followed_by_their_lineage_where_it_is_known() -> None:
    marks = [(5, "Experts 8 → 4"), (6, "Experts 4 → 8")]
    assert same_experts(numbered(0, 8, "x"), numbered(9, 8, "x"), marks)
    assert same_experts(numbered(0, 8, "x"), numbered(9, 8, "x"))
    assert not same_experts(numbered(0, 8, "x"), numbered(9, 8, "y"), [])
    assert not same_experts(numbered(0, 8, "x"), numbered(9, 8), [])


# ---- the window
def compare(window: Window) -> Compare:
    panel = window.panels["compare"]
    assert isinstance(panel, Compare)
    return panel


def words(window: Window) -> str:
    assert compare(window).lack() == ""
    return compare(window).footer()


def second(window: Window) -> Reference:
    reference = compare(window).reference
    assert reference is not None
    return reference


def pick(window: Window, kind: str) -> None:
    """In the header, as a person does."""
    dock = window.docks["compare"]
    if not dock.isVisible():
        dock.toggleViewAction().trigger()
    window.references.choice._kind.setCurrentIndex(list(KINDS).index(kind))


def write(qtbot: QtBot, window: Window, text: str) -> None:
    line = window.references.choice.line
    line.setText(text)
    qtbot.keyClick(line, Qt.Key.Key_Return)


def text_of(snapshot: RoutingSnapshot | None) -> str:
    return "" if snapshot is None else "".join(snapshot.tokens or ())


def rest(qtbot: QtBot, window: Window) -> None:
    qtbot.waitUntil(settled(window), timeout=WAIT)


def step(qtbot: QtBot, window: Window, times: int) -> None:
    for _ in range(times):
        window.step_action.trigger()
        rest(qtbot, window)


@pytest.fixture
def sent(window: Window, monkeypatch: pytest.MonkeyPatch) -> list[Command]:
    """The commands that go to the session."""
    found: list[Command] = []
    send = window.runner.send

    def note(command: Command) -> None:
        found.append(command)
        send(command)

    monkeypatch.setattr(window.runner, "send", note)
    return found


def test_another_layer_follows_what_is_shown(qtbot: QtBot, window: Window) -> None:
    pick(window, "layer")
    assert second(window).snapshot is window.snapshot
    assert second(window).layer == 1
    train(qtbot, window, 3)
    window.train_action.trigger()
    rest(qtbot, window)
    assert second(window).snapshot is window.snapshot
    window.select_layer(1)
    assert "A and B are the same" in words(window)
    window.timeline.slider.setValue(0)
    assert second(window).snapshot is window.shown is window.history.snapshots[0]


def open_anew(qtbot: QtBot, window: Window) -> None:
    dock = window.docks["compare"]
    dock.close()
    qtbot.waitUntil(lambda: not window.references._seen, timeout=WAIT)
    dock.show()
    dock.raise_()
    qtbot.waitUntil(lambda: window.references._seen, timeout=WAIT)


def test_it_begins_with_what_training_changed(qtbot: QtBot, window: Window) -> None:
    choice = window.references.choice
    open_anew(qtbot, window)
    assert choice.kind == "layer", "there is one step only"
    step(qtbot, window, 3)
    assert choice.kind == "layer", "nothing changes while it is looked at"
    open_anew(qtbot, window)
    assert choice.kind == "step"
    assert second(window).snapshot is window.history.snapshots[0]
    assert not choice.step.hasFocus(), "the keys stay where they were"
    pick(window, "layer")
    open_anew(qtbot, window)
    assert choice.kind == "layer", "a person has chosen it"


def test_whoever_asks_for_a_layer_gets_it(qtbot: QtBot, window: Window) -> None:
    step(qtbot, window, 3)
    window.references.choose("layer")
    assert window.references.choice.kind == "layer"
    open_anew(qtbot, window)
    assert window.references.choice.kind == "layer"


def test_a_model_of_one_layer_says_so(qtbot: QtBot, window: Window) -> None:
    pick(window, "layer")
    window.knobs.change({"model.layers": 1})
    qtbot.waitUntil(lambda: window.snapshot is not None and len(window.snapshot.layers) == 1, timeout=WAIT)
    assert "one MoE layer only" in compare(window).lack()


def test_a_kept_step_stays_when_the_history_is_thinned(
    qtbot: QtBot, window: Window, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moeviz.domain.history.MAX_SNAPSHOTS", 8)
    action(window, "With another step").trigger()
    assert window.docks["compare"].isVisible()
    assert second(window).name == "step 0 (first)"
    step(qtbot, window, 6)
    slider, film = window.references.choice.step, window.history.snapshots
    assert second(window).snapshot is film[0]
    slider.setValue(2)
    chosen = second(window).snapshot
    assert chosen is film[2]
    assert second(window).kin
    step(qtbot, window, 4)
    assert len(window.history.snapshots) < 8
    assert second(window).snapshot is chosen
    slider.setValue(slider.maximum())
    step(qtbot, window, 1)
    assert second(window).snapshot is window.snapshot
    assert second(window).name.endswith("(newest)")


def test_a_pinned_moment_outlives_training_restart_and_another_model(qtbot: QtBot, window: Window, model: str) -> None:
    pick(window, "moment")
    assert compare(window).lack().startswith("No moment is pinned")
    train(qtbot, window, 4)
    window.train_action.trigger()
    rest(qtbot, window)
    pinned = window.snapshot
    qtbot.mouseClick(window.references.choice.pin, Qt.MouseButton.LeftButton)
    assert second(window) == Reference(f"pinned step {pinned.step}", pinned, kin=True)
    window.step_action.trigger()
    rest(qtbot, window)
    assert second(window).snapshot is pinned is not window.snapshot
    window.restart_action.trigger()
    action(window, "Answer: Restart").trigger()
    qtbot.waitUntil(lambda: window.snapshot is not None and window.snapshot.step == 0, timeout=WAIT)
    again = Reference(f"pinned step {pinned.step} of an earlier run from the same start", pinned, kin=True)
    assert second(window) == again
    window.knobs.change({"seed": 5})
    qtbot.waitUntil(lambda: window.settings.seed == 5, timeout=WAIT)
    rest(qtbot, window)
    assert second(window) == Reference(f"pinned step {pinned.step} of an earlier run", pinned, kin=False)
    window.files.open_model(model)
    qtbot.waitUntil(lambda: window.snapshot is not None and window.snapshot.step == 3, timeout=WAIT)
    assert second(window).snapshot is pinned
    assert second(window).kin  # that model, too, began with these settings and this seed
    action(window, "Pin this moment").trigger()
    assert second(window).snapshot is window.snapshot


def test_experts_that_went_and_came_back_are_strangers(qtbot: QtBot, window: Window) -> None:
    def experts(count: int) -> None:
        window.knobs.change({"model.experts": count})
        qtbot.waitUntil(lambda: window.snapshot.layers[0].num_experts == count, timeout=WAIT)
        rest(qtbot, window)

    step(qtbot, window, 2)
    action(window, "Pin this moment").trigger()
    experts(4)
    experts(8)  # nothing was trained between: the same ones
    assert second(window).kin
    step(qtbot, window, 1)
    assert second(window).kin
    window.knobs.change({"routing.router": "switch"})  # which keeps the experts
    qtbot.waitUntil(lambda: window.snapshot.layers[0].k == 1, timeout=WAIT)
    assert second(window).kin
    experts(4)
    step(qtbot, window, 1)
    experts(8)
    assert second(window).snapshot.step == 2
    assert not second(window).kin
    assert "experts of A and B share only their numbers" in words(window)
    pick(window, "step")
    assert not second(window).kin
    window.timeline.slider.setValue(1)  # A is of then, too
    assert second(window).kin
    window.timeline.slider.setValue(window.timeline.slider.maximum())
    step(qtbot, window, 1)
    slider = window.references.choice.step
    slider.setValue(slider.maximum() - 1)
    assert second(window).kin


def test_a_model_saved_from_this_run_has_its_experts(qtbot: QtBot, window: Window, tmp_path: Path) -> None:
    step(qtbot, window, 2)
    early, late = tmp_path / "early.safetensors", tmp_path / "late.safetensors"
    window.send(SaveModel(str(early)))
    rest(qtbot, window)
    step(qtbot, window, 1)
    window.references.open(str(early))
    qtbot.waitUntil(lambda: second(window).snapshot is not None, timeout=WAIT)
    assert second(window).kin
    assert rows_of(compare(window), "side")[""][:2] == [
        "A: step 3 (later)",
        "B: early.safetensors, step 2 (earlier); layer 0 of both",
    ]
    assert "share only their numbers" not in words(window)
    # other experts now, as many as before
    for count in (4, 8):
        window.knobs.change({"model.experts": count})
        step(qtbot, window, 1)
    assert not second(window).kin
    assert "experts of A and B share only their numbers" in words(window)
    window.send(SaveModel(str(late)))
    rest(qtbot, window)
    window.references.open(str(late))
    qtbot.waitUntil(lambda: second(window).snapshot is not None, timeout=WAIT)
    assert second(window).kin
    # and whoever goes on with the older one has its experts
    window.files.open_model(str(early))
    qtbot.waitUntil(lambda: window.snapshot.step == 2, timeout=WAIT)
    rest(qtbot, window)
    assert not second(window).kin
    window.references.open(str(early))
    qtbot.waitUntil(lambda: second(window).snapshot is not None, timeout=WAIT)
    assert second(window).kin


def test_a_model_of_another_task_is_refused_by_its_task(qtbot: QtBot, window: Window) -> None:
    path = app.bundled_model("plane")
    assert path is not None
    window.references.open(path)
    why = (
        "plane.safetensors is a model of the task plane, and what is shown is of the task text: "
        "compare with a model of the same task."
    )
    qtbot.waitUntil(lambda: compare(window).lack() == why, timeout=WAIT)
    qtbot.waitUntil(lambda: window.notices.words.text() == why, timeout=WAIT)


def test_the_model_reads_another_text_once_and_rests(qtbot: QtBot, window: Window, sent: list[Command]) -> None:
    rest(qtbot, window)
    window.docks["flow"].toggleViewAction().trigger()  # a panel that a survey is for
    shown = text_of(window.snapshot)
    pick(window, "text")
    assert compare(window).lack().startswith("Type another text")
    write(qtbot, window, "def f(x):↵")
    qtbot.waitUntil(lambda: second(window).snapshot is not None, timeout=WAIT)
    rest(qtbot, window)
    assert text_of(second(window).snapshot) == "def f(x):\n"
    assert text_of(window.snapshot) == shown
    assert compare(window).source is window.snapshot
    assert sum(isinstance(command, Read) for command in sent) == 1
    window.step_action.trigger()  # another model: it is read again
    rest(qtbot, window)
    assert second(window).snapshot.step == window.snapshot.step == 1
    assert sum(isinstance(command, Read) for command in sent) == 2


def test_while_training_both_sides_are_of_one_step(
    qtbot: QtBot, window: Window, sent: list[Command], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moeviz.view.reference.READ_SECONDS", 0.2)
    pick(window, "text")
    write(qtbot, window, "another")
    train(qtbot, window, 5)
    seen: set[int] = set()

    def three() -> bool:
        reference = second(window)
        if reference.snapshot is not None:
            assert reference.shown is not None
            assert reference.shown.step == reference.snapshot.step == compare(window).source.step
            seen.add(reference.snapshot.step)
        return len(seen) > 2

    qtbot.waitUntil(three, timeout=WAIT)
    window.timeline.slider.setValue(0)  # A is of the past, which the model is no more
    assert compare(window).source is window.history.snapshots[0]
    window.docks["compare"].close()
    asked = sum(isinstance(command, Read) for command in sent)
    train(qtbot, window, 10)
    assert sum(isinstance(command, Read) for command in sent) <= asked + 1  # one may have been on its way


def test_after_a_pause_both_sides_come_to_the_step_shown_before_a_long_survey(
    qtbot: QtBot, window: Window, monkeypatch: pytest.MonkeyPatch
) -> None:
    rest(qtbot, window)
    pick(window, "text")
    window.docks["compare"].setFloating(True)
    window.docks["flow"].toggleViewAction().trigger()  # a panel that a survey is for, seen beside it
    write(qtbot, window, "another")
    train(qtbot, window, 5)
    let, begun, original = threading.Event(), threading.Event(), training._Run.survey

    def slow(run: training._Run, parts: frozenset[Part]) -> object:
        begun.set()
        assert let.wait(20)
        return original(run, parts)

    qtbot.waitUntil(lambda: second(window).snapshot is not None and not window.runner.pending, timeout=WAIT)
    monkeypatch.setattr("moeviz.view.window.SURVEY_SECONDS", 1e9)  # while it trains
    monkeypatch.setattr(training._Run, "survey", slow)
    window.train_action.trigger()
    qtbot.waitUntil(begun.is_set, timeout=WAIT)
    assert compare(window).source.step == second(window).snapshot.step == window.snapshot.step
    let.set()


def test_a_text_that_cannot_be_read_is_refused_once(qtbot: QtBot, window: Window, sent: list[Command]) -> None:
    pick(window, "text")
    write(qtbot, window, "x" * 5000)
    qtbot.waitUntil(lambda: "5000 characters" in window.notices.words.text(), timeout=WAIT)
    assert "5000 characters" in compare(window).lack()
    train(qtbot, window, 5)
    assert sum(isinstance(command, Read) for command in sent) == 1
    write(qtbot, window, "fine")
    qtbot.waitUntil(lambda: text_of(second(window).snapshot) == "fine", timeout=WAIT)


def test_the_answer_to_an_older_question_is_dropped(
    qtbot: QtBot, window: Window, monkeypatch: pytest.MonkeyPatch
) -> None:
    rest(qtbot, window)
    let, original = threading.Semaphore(0), training._Run.read

    def slow(run: training._Run, text: str) -> object:
        assert let.acquire(timeout=20)
        return original(run, text)

    monkeypatch.setattr(training._Run, "read", slow)
    pick(window, "text")
    write(qtbot, window, "first")
    qtbot.waitUntil(lambda: window.runner.pending, timeout=WAIT)
    write(qtbot, window, "second")
    seen: list[str] = []
    monkeypatch.setattr(compare(window), "show_reference", lambda reference: seen.append(text_of(reference.snapshot)))
    let.release(2)
    qtbot.waitUntil(lambda: "second" in seen, timeout=WAIT)
    assert "first" not in seen


@pytest.fixture
def dialogs(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """What the next dialogs answer."""

    def answer(path: str) -> None:
        monkeypatch.setattr(QFileDialog, "getOpenFileName", lambda *_: (path, ""))
        monkeypatch.setattr(QFileDialog, "getExistingDirectory", lambda *_: path)

    return answer


def test_another_trace_at_its_last_step_or_at_ours(
    qtbot: QtBot, window: Window, trace: str, dialogs: Callable[[str], None]
) -> None:
    pick(window, "file")
    assert compare(window).lack() == "Choose a trace or a model with the button in the header."
    dialogs(trace)
    action(window, "Another trace…").trigger()
    assert compare(window).lack() == "Reading run.zarr…"
    qtbot.waitUntil(lambda: second(window).snapshot is not None, timeout=WAIT)
    assert second(window).name == "run.zarr, step 20"
    assert not second(window).kin
    assert "only loads can be compared" in words(window)
    choice = window.references.choice
    choice._same.trigger()
    assert second(window).name == "run.zarr, step 0"
    train(qtbot, window, 12)
    qtbot.waitUntil(lambda: second(window).name in ("run.zarr, step 10", "run.zarr, step 20"), timeout=WAIT)
    assert choice.file.text() == "run.zarr"


def test_another_model_reads_what_is_shown(
    qtbot: QtBot, window: Window, model: str, dialogs: Callable[[str], None]
) -> None:
    dialogs(model)
    action(window, "With another model…").trigger()
    qtbot.waitUntil(lambda: second(window).snapshot is not None, timeout=WAIT)
    assert second(window).name == "small.safetensors, step 3"
    assert text_of(second(window).snapshot) == text_of(window.snapshot)
    assert "other first expert" in words(window)
    window.send(SetProbe("some more"))
    qtbot.waitUntil(lambda: text_of(second(window).snapshot) == "some more", timeout=WAIT)
    assert not window.notices.isVisible(), window.notices.words.text()


def test_a_recording_is_compared_with_a_model_but_reads_no_text(
    qtbot: QtBot, window: Window, trace: str, model: str
) -> None:
    window.files.open_trace(trace)
    qtbot.waitUntil(lambda: window.of_trace, timeout=WAIT)
    pick(window, "text")
    write(qtbot, window, "another")
    assert compare(window).lack().startswith("Another text needs a model")
    window.references.open(model)
    qtbot.waitUntil(lambda: second(window).snapshot is not None, timeout=WAIT)
    assert text_of(second(window).snapshot) == text_of(window.snapshot)
    pick(window, "step")
    assert second(window).name == "step 0 (first)"
    assert "other first expert" in words(window)


@pytest.mark.parametrize(
    "bad", ["no.zarr", "broken.zarr", "no.safetensors", "broken.safetensors", "pickle.safetensors"]
)
def test_a_bad_file_is_one_sentence_and_the_next_one_is_read(
    qtbot: QtBot, window: Window, tmp_path: Path, model: str, bad: str
) -> None:
    path = tmp_path / bad
    if bad == "broken.zarr":
        path.mkdir()
        (path / "zarr.json").write_text("{")
    elif bad == "broken.safetensors":
        path.write_bytes(Path(model).read_bytes()[:-100])
    elif bad == "pickle.safetensors":
        path.write_bytes(b"\x80\x04K\x01.")
    pick(window, "layer")
    window.references.open(str(path))
    qtbot.waitUntil(window.notices.isVisible, timeout=WAIT)
    assert bad in window.notices.words.text()
    assert "Traceback" not in window.notices.words.text()
    qtbot.waitUntil(lambda: compare(window).lack() == window.notices.words.text(), timeout=WAIT)
    rest(qtbot, window)  # it is not tried again and again
    train(qtbot, window, 3)
    window.references.open(model)
    qtbot.waitUntil(lambda: second(window).snapshot is not None, timeout=WAIT)


@pytest.fixture
def slow_files(window: Window, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, list[str]]]:
    """Files that are read only when they are let."""
    let, begun = threading.Event(), list[str]()

    def slow(path: str, text: str, task: str, report: Report) -> tuple[RoutingSnapshot, ...]:
        begun.append(Path(path).name)
        while not let.wait(0.01):
            report(0, 1)
        return app.read_file(path, text, task, report)

    monkeypatch.setattr(window.references, "_read_file", slow)
    yield let, begun
    let.set()


def test_a_file_that_is_wanted_no_more_is_given_up(
    qtbot: QtBot, window: Window, trace: str, model: str, slow_files: tuple[threading.Event, list[str]]
) -> None:
    let, begun = slow_files
    window.references.open(trace)
    qtbot.waitUntil(lambda: begun == ["run.zarr"], timeout=WAIT)
    window.references.open(model)
    qtbot.waitUntil(lambda: begun == ["run.zarr", "small.safetensors"], timeout=WAIT)
    let.set()
    qtbot.waitUntil(lambda: second(window).snapshot is not None, timeout=WAIT)
    assert second(window).name.startswith("small.safetensors")
    rest(qtbot, window)
    assert not window.notices.isVisible(), window.notices.words.text()


def test_reading_a_model_can_be_cancelled(
    qtbot: QtBot, window: Window, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    let, opened = threading.Event(), training._opened

    def slow(*given: object, **more: object) -> object:
        assert let.wait(20)
        return opened(*given, **more)

    monkeypatch.setattr(training, "_opened", slow)
    window.references.open(model)
    qtbot.waitUntil(lambda: "Reading small.safetensors" in window.status.work.text(), timeout=WAIT)
    window.status.cancel.click()
    let.set()
    qtbot.waitUntil(lambda: window.notices.words.text() == "Reading small.safetensors: cancelled.", timeout=WAIT)
    qtbot.waitUntil(lambda: "cancelled" in compare(window).lack(), timeout=WAIT)


def test_closing_does_not_wait_for_a_file_to_compare_with(
    qtbot: QtBot, window: Window, trace: str, slow_files: tuple[threading.Event, list[str]]
) -> None:
    _, begun = slow_files
    window.references.open(trace)
    qtbot.waitUntil(lambda: begun == ["run.zarr"], timeout=WAIT)
    assert window.close()
    assert not window.runner.busy


def test_an_errand_of_another_kind_is_waited_for(qtbot: QtBot, window: Window, trace: str, tmp_path: Path) -> None:
    let = threading.Event()

    def long(report: Report) -> str:
        assert let.wait(20)
        return "Exported."

    assert window.runner.errand(long, "Exporting")
    window.references.open(trace)
    qtbot.waitUntil(lambda: compare(window).lack() == "Reading run.zarr…", timeout=WAIT)
    assert not window.references.reading
    let.set()
    qtbot.waitUntil(lambda: second(window).snapshot is not None, timeout=WAIT)


def test_a_hidden_comparison_asks_for_nothing(
    qtbot: QtBot, window: Window, model: str, sent: list[Command], slow_files: tuple[threading.Event, list[str]]
) -> None:
    rest(qtbot, window)
    let, begun = slow_files
    let.set()
    for kind in ("text", "file"):
        pick(window, kind)
    window.references.open(model)
    window.docks["compare"].close()
    draws = compare(window).draws
    write(qtbot, window, "another")
    train(qtbot, window, 5)
    assert begun == []
    assert not any(isinstance(command, Read) for command in sent)
    assert compare(window).draws == draws


@pytest.mark.parametrize("task", TASKS)
def test_a_model_of_every_task_reads_back_what_is_shown(task: str) -> None:
    path = app.bundled_model(task)
    assert path is not None
    (own,) = app.read_file(path, "", task, lambda done, total: None)
    (again,) = app.read_file(path, text_of(own), task, lambda done, total: None)
    assert same_tokens(own, again) == (True, "")
    for a, b in zip(own.layers, again.layers, strict=True):
        np.testing.assert_array_equal(a.expert_ids_TK, b.expert_ids_TK)


def test_of_many_tokens_a_sample_is_compared_and_said(qtbot: QtBot) -> None:
    rng, tokens = np.random.default_rng(0), 3 * SAMPLE
    ids = rng.integers(0, 8, (tokens, 1))
    other = np.where(rng.random((tokens, 1)) < 0.5, (ids + 1) % 8, rng.integers(0, 8, (tokens, 1)))
    a, b = (RoutingSnapshot(0, (Routing("layer", 8, choice),), ["a"] * tokens) for choice in (ids, other))
    panel = comparing(qtbot, Reference("x", b), a)
    of_all = metrics.agreement(ids, other, 8, 20)
    told = rows_of(panel, "measure")
    assert told["nmi_tokens"][-1] == SAMPLE
    assert told["nmi"][-1] == pytest.approx(of_all.symmetric, abs=0.05)
    assert 0.1 < of_all.symmetric < 0.4
    assert f"first experts of {SAMPLE} tokens: NMI {number(told['nmi'][-1])}" in panel.footer()


# ---- the command line
@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compare") / "run"
    assert main(["train", "--task", "text", "--steps", "6", "--out", str(out), *SMALL_SET]) == 0
    return out


def rendered(out: Path, *arguments: str) -> dict[str, list[list[str]]]:
    """The rows of the CSV, by what they are of."""
    assert main(["render", "--plot", "compare", "--out", str(out), *arguments]) == 0
    with out.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    return {what: [row[1:] for row in rows if row[0] == what] for what in {row[0] for row in rows}}


def test_render_compares_steps_layers_texts_and_files(run: Path, tmp_path: Path) -> None:
    out, recorded, of = tmp_path / "c.csv", str(run / "trace.zarr"), str(run / "model.safetensors")
    steps = rendered(out, "--trace", recorded, "--against-step", "0")
    assert steps["side"][0][1:3] == ["A: step 6 (later)", "B: step 0 (earlier); layer 0 of both"]
    both = rendered(out, "--trace", recorded, "--against-step", "0", "--against-layer", "1")
    assert both["side"][0][1:3] == ["A: layer 0, step 6 (later)", "B: layer 1, step 0 (earlier)"]
    layers = rendered(out, "--trace", recorded, "--against-layer", "1")
    assert layers["side"][0][2] == "B: layer 1, the same moment"
    texts = rendered(out, "--model", of, "--text", "abc", "--against-text", "abcd")
    assert texts["side"][0][2].startswith("B: another text, step 6")
    assert "first_expert" not in texts
    models = rendered(out, "--model", of, "--text", "abc", "--against", str(run))
    assert {row[0]: float(row[3]) for row in models["measure"]}["changed_first"] == 0
    files = rendered(out, "--trace", recorded, "--against", recorded, "--against-step", "-7")
    assert [row[1:] for row in files["load_share"]] == [row[1:] for row in steps["load_share"]]
    small = ["--task", "text", "--steps", "2", *SMALL_SET]
    trained = rendered(out, *small, "--against-text", "abc")
    assert trained["side"][0][1:3] == ["A: step 2", "B: another text, step 2; layer 0 of both"]
    trained = rendered(out, *small, "--against-step", "1")
    assert trained["side"][0][2] == "B: step 1 (earlier); layer 0 of both"


def test_render_knows_the_experts_of_a_run_and_of_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose experts were changed at steps 2 and 4, recorded with marks, and its model."""
    session = app.make_session(SMALL, "cpu", None)(lambda done, total: None)
    snapshots, marks = [next(session).snapshot], []
    for step in range(1, 7):
        snapshots.append(session.send(Advance()).snapshot)
        if step in (2, 4):
            told = session.send(SetKnobs({"model.experts": 4 if step == 2 else 8}))
            marks.append((step, told.mark))
    path = str(tmp_path / "model.safetensors")
    session.send(SaveModel(path))
    session.close()
    assert [len({s.lineage for s in snapshots[a:b]}) for a, b in ((0, 3), (3, 5), (5, 7), (0, 7))] == [1, 1, 1, 3]
    seen: list[Reference] = []
    show_reference = Compare.show_reference

    def note(panel: Compare, reference: Reference) -> None:
        seen.append(reference)
        show_reference(panel, reference)

    monkeypatch.setattr(Compare, "show_reference", note)

    def kin(*arguments: str) -> bool:
        assert main(["render", "--out", str(tmp_path / "c.png"), "--plot", "compare", *arguments]) == 0
        return seen[-1].kin

    for name, film in (("new", snapshots), ("old", [replace(s, lineage="") for s in snapshots])):
        recorded = str(tmp_path / f"{name}.zarr")
        app.save_trace(recorded, SMALL, (), tuple(film), tuple(marks), lambda done, total: None)
        assert kin("--trace", recorded, "--against-step", "5")
        assert not kin("--trace", recorded, "--against-step", "0")
        assert kin("--trace", recorded, "--step", "1", "--against-step", "0")
        assert kin("--trace", recorded, "--against", path) == (name == "new")
        assert not kin("--trace", recorded, "--step", "1", "--against", path)


def test_render_tells_mistakes_of_a_comparison_in_one_sentence(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of_trace = ("render", "--out", str(tmp_path / "c.png"), "--trace", str(run / "trace.zarr"))
    of_model = ("render", "--out", str(tmp_path / "c.png"), "--model", str(run), "--text", "a")
    compared = ("--plot", "compare")
    assert "what to compare with" in fails(capsys, *of_trace, *compared)
    assert "needs --plot compare" in fails(capsys, *of_trace, "--against-step", "0")
    assert "there is no --against-step 99" in fails(capsys, *of_trace, *compared, "--against-step", "99")
    assert "no --against-layer 7" in fails(capsys, *of_trace, *compared, "--against-layer", "7")
    assert "no --against-layer -1" in fails(capsys, *of_trace, *compared, "--against-layer", "-1")
    assert "needs --task or --model" in fails(capsys, *of_trace, *compared, "--against-text", "a")
    assert "needs --task or a trace" in fails(capsys, *of_model, *compared, "--against-step", "0")
    assert "There is no file" in fails(capsys, *of_trace, *compared, "--against", str(tmp_path / "no"))
    assert "Give one of" in fails(capsys, *of_model, *compared, "--against", str(run), "--against-text", "a")
    assert "one step only" in fails(capsys, *of_model, *compared, "--against", str(run), "--against-step", "0")
    plane = ("--against", str(app.bundled_model("plane")))
    of_task = "plane.safetensors is a model of the task plane, and what is shown is of the task text"
    assert of_task in fails(capsys, *of_model, *compared, *plane)
    assert of_task in fails(capsys, *of_trace, *compared, *plane)


@pytest.mark.slow
def test_render_tells_what_cannot_be_compared_before_it_trains(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(trainer: Trainer) -> None:
        raise AssertionError("it trains")

    monkeypatch.setattr(Trainer, "advance", train)
    broken, own = tmp_path / "broken.safetensors", tmp_path / "broken.zarr"
    broken.write_bytes((run / "model.safetensors").read_bytes()[:-100])
    own.mkdir()
    (own / "zarr.json").write_text("{")
    small = ("render", "--out", str(tmp_path / "c.png"), "--task", "text", "--steps", "500", *SMALL_SET)
    other = ("--against", str(run))
    for said, arguments in (
        ("the nearest one is --against-step 500.", ("--against-step", "9999")),
        ("the nearest one is --against-step 3.", ("--against-step", "4")),
        ("the nearest one is --against-step 0.", ("--against-step", "-1")),
        ("no --against-layer 9", ("--against-layer", "9")),
        ("no --against-layer 9", ("--against-text", "a", "--against-layer", "9")),
        ("no --against-layer 9", (*other, "--against-layer", "9")),
        ("one step only", (*other, "--against-step", "0")),
        ("no --against-step 99", ("--against", str(run / "trace.zarr"), "--against-step", "99")),
        ("broken.safetensors", ("--against", str(broken))),
        ("broken.zarr", ("--against", str(own))),
        ("has 5000 characters", ("--against-text", "x" * 5000)),
        ("is a model of the task plane", ("--against", str(app.bundled_model("plane")))),
        ("no list of points", ("--task", "plane", "--against-text", "no point")),
    ):
        assert said in fails(capsys, *small, "--plot", "compare", *arguments), arguments
    assert not (tmp_path / "c.png").exists()
