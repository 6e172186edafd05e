"""The input map: principal components against an SVD, cells against the model itself, and painting as a person does."""

import csv
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PySide6.QtCore import QEvent, QPoint, QPointF, QRectF, QSettings, Qt
from PySide6.QtGui import QContextMenuEvent, QImage, QMouseEvent, QPainter
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication
from pytestqt.qtbot import QtBot
from test_panels import make_snapshot, picture, show
from test_panels_more import columns, make_plane, make_survey
from test_window import SMALL, WAIT, settled, train

from moeviz.app import make_window
from moeviz.cli import main
from moeviz.domain import points
from moeviz.domain.messages import Advance, Restart, SetKnobs, Survey, UserError
from moeviz.domain.selection import Selection
from moeviz.domain.settings import ROUTERS, Settings
from moeviz.moe import training
from moeviz.moe.input_map import CELLS, along, grid, principal_axes
from moeviz.moe.survey import survey
from moeviz.moe.tasks import plane
from moeviz.moe.trainer import Trainer
from moeviz.trace.store import TraceWriter
from moeviz.view.colours import expert_colour, mixed
from moeviz.view.controls import PathLine
from moeviz.view.panel import Panel
from moeviz.view.panels import dots
from moeviz.view.panels.dots import best, pixels
from moeviz.view.panels.input_map import BRUSH, InputMap
from moeviz.view.panels.painting import MOST, Painting
from moeviz.view.panels.plane import PlanePicture, _names
from moeviz.view.panels.strip import LEAST
from moeviz.view.theme import DARK, LIGHT
from moeviz.view.window import Window

PLANE = SMALL.with_values({"task": "plane"})


def test_names_do_not_cover_each_other_and_the_first_come_first(qtbot: QtBot, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    monkeypatch.setattr(dots, "put", lambda painter, left, base, text: written.append(text))
    image = QImage(200, 100, QImage.Format.Format_RGB32)
    painter = QPainter(image)
    places = [(50.0, 50.0, "7"), (55.0, 55.0, "3"), (50.0, 65.0, "2"), (198.0, 50.0, "12"), (185.0, 52.0, "∅9")]
    dots.draw_names(painter, places, QRectF(0, 0, 200, 100), DARK)
    painter.end()
    assert written == ["7", "2", "12"]


def test_of_many_names_the_selected_experts_and_the_first_of_each_are_drawn() -> None:
    first = np.zeros((60, 60), np.int64)
    first[:, 40:] = 3
    assert [e for e, *_ in _names(first)[:2]] == [0, 3]
    made = make_plane()
    picture_of = PlanePicture(made, make_snapshot(), 0, "experts", DARK, 5)
    experts = [e for e, *_ in picture_of.names]
    assert experts == sorted(experts, key=lambda e: e != 5)


# ---- principal components
def test_axes_are_those_of_a_singular_value_decomposition() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 6)) @ rng.normal(size=(6, 16)) + rng.normal(size=16)
    axes, explained = principal_axes(torch.from_numpy(x).float())
    _, values, rows = np.linalg.svd(x - x.mean(0), full_matrices=False)
    np.testing.assert_allclose(np.abs((axes * rows[:2]).sum(1)), 1, atol=1e-5)
    np.testing.assert_allclose(explained, (values**2 / (values**2).sum())[:2], rtol=1e-4)
    assert (axes[np.arange(2), np.abs(axes).argmax(1)] > 0).all()
    seen = along(torch.from_numpy(x).float(), axes, torch.from_numpy(x.mean(0)).float())
    np.testing.assert_allclose(seen, (x - x.mean(0)) @ axes.T, atol=1e-4)


@given(st.integers(0, 99), st.booleans(), st.sampled_from([(1, 1), (1, -1), (-1, 1), (-1, -1)]))
def test_axes_neither_flip_nor_turn_over(seed: int, swapped: bool, signs: tuple[int, int]) -> None:
    """Whatever the axes were before, up to sign and order, those of nearly the same tokens lie beside them."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(200, 8)) * np.array([3, 2.9, 1, 1, 1, 1, 1, 1])
    before, _ = principal_axes(torch.from_numpy(x))
    before = (before[::-1] if swapped else before) * np.array(signs)[:, None]
    after, explained = principal_axes(torch.from_numpy(x * (1 + 1e-3 * rng.normal(size=8))), before.astype(np.float32))
    assert ((after * before).sum(1) > 0.5).all()
    assert (explained[0] < explained[1]) == swapped or abs(explained[0] - explained[1]) < 0.02


def test_tokens_that_do_not_differ_have_no_axes() -> None:
    axes, explained = principal_axes(torch.ones(5, 16))
    assert np.isnan(explained).all()
    np.testing.assert_allclose(along(torch.ones(5, 16), axes, torch.ones(16)), 0)


# ---- the survey
@pytest.fixture(scope="module")
def trainer() -> Trainer:
    data = plane.load()
    made = Trainer(PLANE, data, "cpu", data.probe)
    for _ in range(5):
        made.advance()
    return made


def test_a_cell_is_what_the_model_does_with_that_point(trainer: Trainer) -> None:
    found = survey(trainer)
    assert found.plane is not None
    assert not found.inputs
    p = found.plane
    rows, columns_ = p.probability_RC.shape
    assert abs(rows * columns_ - CELLS) < 0.05 * CELLS
    assert not p.together
    rng = np.random.default_rng(0)
    for r, c in zip(rng.integers(rows, size=20), rng.integers(columns_, size=20), strict=True):
        point = torch.tensor([[[p.x_C[c], p.y_R[r]]]])
        with torch.no_grad():
            logits, routings = trainer.model.eval()(point)
        assert p.probability_RC[r, c] == pytest.approx(float(torch.softmax(logits[0, 0], -1)[1]), abs=1e-5)
        for layer, routing in zip(p.layers, routings, strict=True):
            at = r * columns_ + c
            assert layer.expert_ids_TK[at].tolist() == routing.expert_ids_TK[0].tolist()
            np.testing.assert_allclose(layer.gate_weights_TK[at], routing.gate_weights_TK[0], atol=1e-5)
    with torch.no_grad():
        said = torch.softmax(trainer.model(trainer.probe_inputs[0])[0][0], -1)[:, 1]
    np.testing.assert_allclose(p.probe_probability_T, said, atol=1e-5)
    np.testing.assert_array_equal(p.probe_T2, trainer.shown.inputs[0])


@pytest.mark.parametrize("x", [30_000.0, -1e6])
def test_a_grid_far_out_has_cells_that_can_be_told_apart(x: float) -> None:
    at = np.array([[x, 0.0], [x, 1.0]])
    columns, rows, _ = grid(at, at.astype(np.float32))
    assert (np.diff(columns) > 0).all()
    assert (np.diff(rows) > 0).all()


def test_the_grid_is_the_same_at_every_survey_and_holds_the_probe(trainer: Trainer) -> None:
    first, second = survey(trainer).plane, survey(trainer).plane
    assert first is not None
    assert second is not None
    np.testing.assert_array_equal(first.x_C, second.x_C)
    x_C, y_R, cells = grid(np.array([[-1, -1], [1, 1]]), np.array([[3, 0]]))
    assert x_C[-1] + (x_C[1] - x_C[0]) / 2 == pytest.approx(3)
    assert (x_C[1] - x_C[0]) == pytest.approx(y_R[1] - y_R[0], rel=0.03)
    np.testing.assert_array_equal(cells[len(x_C) + 2], [x_C[2], y_R[1]])


@pytest.mark.parametrize(
    ("changes", "together"),
    [
        ({"routing.router": "sinkhorn"}, False),  # looks at the batch while training only
        ({"routing.router": "base"}, False),
        ({"routing.router": "expert_choice"}, True),
        ({"routing.router": "soft"}, True),
        ({"routing.capacity_factor": 1.0}, True),
    ],
)
def test_routing_that_looks_at_other_points_is_told(qtbot: QtBot, changes: dict[str, object], together: bool) -> None:
    data = plane.load()
    found = survey(Trainer(PLANE.with_values(changes), data, "cpu", data.probe))
    assert found.plane is not None
    assert found.plane.together == together
    panel = show(qtbot, InputMap(DARK), 640, 400)
    panel.show_survey(found)
    panel.refresh()
    assert ("a grid's is not the data's" in panel.footer()) == together


@pytest.mark.parametrize("router", [name for name in ROUTERS if name != "hash"])
def test_the_plane_of_every_router_is_drawn(qtbot: QtBot, router: str) -> None:
    data = plane.load()
    found = survey(Trainer(PLANE.with_values({"routing.router": router}), data, "cpu", data.probe))
    panel = show(qtbot, InputMap(DARK), 640, 400)
    panel.show_survey(found)
    assert picture(panel)
    first, gate = best(found.plane.layers[0])
    cells = [row for row in columns(panel) if row["what"] == "cell"]
    assert [row["expert"] for row in cells] == first.tolist()
    assert [row["gate_weight"] for row in cells] == gate.tolist()
    assert (gate[first < 0] == 0).all()
    for x in range(60, 560, 50):
        panel.point_at(QPointF(x, 150))
        assert "gate weight" in panel.footer() or "no expert" in panel.footer()


def test_router_inputs_of_text_are_seen_along_their_components(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("".join(np.random.default_rng(0).choice(list("abcdefgh ,.\n"), 9_000)))
    run = training.session(SMALL.with_values({"data.path": str(tmp_path)}))
    next(run)
    run.send(Advance())
    found = run.send(Survey()).survey
    assert found.plane is None
    for inputs in found.inputs:
        assert inputs.heldout_T2.shape == (found.heldout.num_tokens, 2)
        assert inputs.probe_T2.shape == (found.probe.num_tokens, 2)
        np.testing.assert_allclose(inputs.heldout_T2.mean(0), 0, atol=1e-4)
        variance = inputs.heldout_T2.var(0)
        assert variance[0] / variance[1] == pytest.approx(inputs.explained_2[0] / inputs.explained_2[1], rel=1e-3)
    for _ in range(3):
        run.send(Advance())
    after = run.send(Survey(frozenset({"inputs"}))).survey
    assert after.similarity == ()
    for a, b in zip(found.inputs, after.inputs, strict=True):
        assert ((a.axes_2D * b.axes_2D).sum(1) > 0).all()
    assert run.send(Survey(frozenset())).survey.inputs == ()
    run.close()


# ---- points in a file
def made_points(count: int = 200) -> tuple[points.Points, np.ndarray]:
    rng = np.random.default_rng(0)
    xy = rng.uniform(-1, 1, (count, 2)).astype(np.float32)
    return xy, (xy[:, 0] > 0).astype(np.int64)


def test_points_come_back_as_they_were_written(tmp_path: Path) -> None:
    xy, label = made_points()
    first, second = (points.write(tmp_path / "new", xy, label) for _ in range(2))
    assert first != second
    assert sorted(p.name for p in first.parent.iterdir()) == ["painted-1.csv", "painted-2.csv"]
    assert (first.name, second.name) == ("painted-1.csv", "painted-2.csv")
    back_xy, back = points.read(first)
    np.testing.assert_array_equal(back_xy, xy)
    np.testing.assert_array_equal(back, label)


def test_the_newest_painted_files_are_kept_and_nothing_else_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(points, "KEPT", 3)
    (tmp_path / "my points.csv").touch()
    for number in range(9, 14):  # 10 is newer than 9
        (tmp_path / f"painted-{number - 1}.csv").touch()
        assert points.write(tmp_path, *made_points()).name == f"painted-{number}.csv"
        for path in tmp_path.iterdir():
            os.utime(path, (0, 0))  # of long ago
    points.write(tmp_path, *made_points())
    assert {p.name for p in tmp_path.iterdir()} == {"my points.csv", *(f"painted-{n}.csv" for n in (12, 13, 14))}


def test_a_painted_file_that_may_still_be_wanted_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(points, "KEPT", 1)
    files = [points.write(tmp_path, *made_points()) for _ in range(3)]
    assert all(path.exists() for path in files)


def test_two_windows_that_paint_at_once_write_two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = points.write(tmp_path, *made_points())
    with monkeypatch.context() as patch:
        patch.setattr(points, "_painted", lambda folder: [])  # the other's file came since the folder was looked at
        other = points.write(tmp_path, *made_points(30))
    assert len(points.read(mine)[0]) == 200
    assert len(points.read(other)[0]) == 30


def test_a_disk_that_refuses_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "replace", lambda self, to: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError, match="No space"):
        points.write(tmp_path, *made_points())
    assert list(tmp_path.iterdir()) == []


GOOD = "".join(f"0.{i:02},1,{i % 2}\n" for i in range(30))


@pytest.mark.parametrize("head", ["", "x,y,class\n", "X, Y, Class\n", "\ufeffx,y,class\n"])
def test_a_head_may_stand_above_and_classes_may_be_signs(tmp_path: Path, head: str) -> None:
    path = tmp_path / "p.csv"
    path.write_text(head + GOOD + " -1e-1 , 2 , ●\n0.5,3,○\n\n", encoding="utf-8")
    xy, label = points.read(path)
    assert xy.shape == (32, 2)
    assert xy[-2].tolist() == pytest.approx([-0.1, 2])
    assert label[-2:].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "holds 0 different points; training needs at least 20"),
        ("0,0,1\n" * 50, "holds 1 different points"),
        (GOOD.replace(",1\n", ",0\n"), "holds points of class 0 only; training needs some of class 1 too"),
        ("".join(f"{i},0,●\n" for i in range(30)), "holds points of class 1 only; training needs some of class 0"),
        (GOOD + "a,1,0\n", "line 31: 'a' is no number"),
        (GOOD + "nan,1,0\n", "line 31: nan is no place"),
        (GOOD + "1,inf,0\n", "inf is no place"),
        (GOOD + "1,1e9,0\n", "1e9 is no place; x and y lie between -1e+06 and 1e+06"),
        (GOOD + "1,1,2\n", "'2' is no class; it must be 0 or 1"),
        (GOOD + "1,1,red\n", "'red' is no class"),
        (GOOD + "1,1\n", "line 31: there are 2 values; a line holds x, y and class"),
        (GOOD + "1\n", "there is 1 value"),
        ("name,x,y\n" + GOOD, "line 1: 'name' is no number"),
        ("\xff\xfe\x00", "is no text in UTF-8"),
        ("1,1,0\n" * 900_000, "larger than 5 MB"),
        ("1" * 400_000, "there is 1 value"),
        ("1,1,0\0\n", "is no class"),
    ],
)
def test_a_bad_file_is_told_in_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "p.csv"
    path.write_bytes(text.encode("utf-8" if "●" in text else "latin-1"))
    with pytest.raises(UserError) as told:
        plane.load(str(path))
    assert sentence in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", ["circles", "~nobody-of-that-name/p.csv", "x" * 5000, "a\0b", "/dev/null", "/"])
def test_what_is_no_file_is_told_in_one_sentence(name: str) -> None:
    with pytest.raises(UserError, match="no pattern and no file"):
        plane.load(name)


@given(st.integers(20, 300), st.integers(0, 5))
def test_no_point_is_trained_on_and_held_out(count: int, copies: int) -> None:
    xy, label = made_points(count)
    twice = (
        np.concatenate([xy, xy[: count // 2], *([xy[:3]] * copies)]),
        np.concatenate([label, 1 - label[: count // 2], *([label[:3]] * copies)]),
    )
    train_part, held = plane.split(*twice)
    assert not {*map(tuple, train_part[0].tolist())} & {*map(tuple, held[0].tolist())}
    assert len(train_part[1]) + len(held[1]) == len(twice[1])
    assert len({*map(tuple, held[0].tolist())}) == round(0.2 * count)
    again = plane.split(*twice)
    np.testing.assert_array_equal(train_part[0], again[0][0])


def test_few_own_points_are_held_out_measured_and_shown(tmp_path: Path) -> None:
    xy, label = made_points(25)
    path = points.write(tmp_path, xy * 40, label)
    run = training.session(PLANE.with_values({"data.path": str(path)}))
    first = next(run)
    assert first.snapshot.num_tokens == 5  # a fifth
    for _ in range(60):
        update = run.send(Advance())
    assert np.isfinite(update.log.scalars_S["loss"]).all()
    assert np.isfinite(run.send(Advance()).snapshot.scalars["heldout"])
    found = run.send(Survey()).survey
    assert found.heldout.num_tokens == 5
    assert found.row_length == 1
    low, high = xy.min(0) * 40, xy.max(0) * 40
    order = np.lexsort(xy.T)
    shown = np.lexsort(found.plane.own_N2.T)
    np.testing.assert_array_equal(found.plane.own_N2[shown], xy[order] * 40)
    np.testing.assert_array_equal(found.plane.own_second_N[shown], label[order] == 1)
    assert found.plane.x_C[0] < -20
    assert low[0] - 10 < found.plane.x_C[0]
    assert found.plane.x_C[-1] < high[0] + 10
    run.close()


def test_own_points_take_the_place_of_the_data_of_a_running_model(tmp_path: Path) -> None:
    path = points.write(tmp_path, *made_points())
    run = training.session(PLANE)
    next(run)
    for _ in range(3):
        run.send(Advance())
    update = run.send(SetKnobs({"data.path": str(path)}))
    assert (update.reset, update.step) == (False, 3)  # the same model goes on
    assert update.mark == f"Own data built-in → {path.name}"
    assert update.settings.data.path == str(path)
    held = {tuple(p) for p in plane.load(str(path))._heldout[0].round(2).tolist()}
    assert update.snapshot.num_tokens == len(held) == 40
    assert run.send(Advance()).step == 4
    refused = run.send(SetKnobs({"data.path": str(tmp_path / "gone.csv")}))
    assert "no pattern and no file" in refused.notice
    assert refused.settings.data.path == str(path)
    assert run.send(SetKnobs({"data.path": "moons"})).step == 4
    run.close()
    assert PLANE.live("data.path")
    assert not Settings().live("data.path")


def test_a_run_on_own_points_learns_and_can_be_repeated(tmp_path: Path) -> None:
    path = points.write(tmp_path, *made_points(400))
    losses = []
    for _ in range(2):
        run = training.session(PLANE.with_values({"data.path": str(path)}))
        next(run)
        for _ in range(80):
            update = run.send(Advance())
        losses.append(update.snapshot.scalars["cross_entropy"])
        run.close()
    assert losses[0] == losses[1] < 0.4


@pytest.mark.parametrize("task", ["plane", "text"])
@pytest.mark.parametrize("ending", ["png", "svg", "pdf", "csv"])
def test_a_picture_without_a_window(
    qapp: QApplication, tmp_path: Path, capsys: pytest.CaptureFixture[str], task: str, ending: str
) -> None:
    (tmp_path / "words.txt").write_text("".join(np.random.default_rng(0).choice(list("abcdefgh ,.\n"), 9_000)))
    path = points.write(tmp_path, *made_points()) if task == "plane" else tmp_path / "words.txt"
    sizes = [f"--set={key}={value}" for key, value in SMALL.flat().items() if key.startswith("model.")]
    out = tmp_path / f"map.{ending}"
    command = ["render", "--task", task, f"--set=data.path={path}", *sizes, "--steps", "1", "--plot", "input_map"]
    assert main([*command, "--layer", "1", "--token", "3", "--out", str(out)]) == 0, capsys.readouterr().err
    assert out.stat().st_size > 1000
    if ending == "csv":
        rows = list(csv.DictReader(out.read_text(encoding="utf-8").splitlines()))
        assert {row["what"] for row in rows} == ({"cell", "point"} if task == "plane" else {"held-out", "probe"})
        assert {row["layer"] for row in rows} == {"1"}


def test_a_picture_of_a_trace_says_what_it_lacks(
    qapp: QApplication, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with TraceWriter.create(tmp_path / "t.zarr", PLANE.to_json(), "a test") as trace:
        trace.append(make_snapshot())
    assert main(["render", "--trace", str(tmp_path / "t.zarr"), "--plot", "input_map", "--out", "a.png"]) == 2
    assert "Input map: This data holds no inputs of routers: it needs a model" in capsys.readouterr().err


# ---- the panel
def on_plane(qtbot: QtBot, width: int = 640, height: int = 400, own: int = 0) -> tuple[InputMap, PlanePicture]:
    panel = show(qtbot, InputMap(DARK), width, height)
    survey_ = make_survey()
    domains = np.random.default_rng(3).choice(points.CLASSES, survey_.probe.num_tokens).tolist()
    panel.show_survey(
        replace(survey_, probe=replace(survey_.probe, domains=domains), inputs=(), plane=make_plane(own=own))
    )
    panel.refresh()
    assert isinstance(panel._picture, PlanePicture)
    return panel, panel._picture


def body(panel: Panel) -> QRectF:
    return panel.plot_rect(QRectF(panel.canvas.rect()))


def test_the_mouse_points_at_points_cells_and_experts(qtbot: QtBot) -> None:
    panel, drawn = on_plane(qtbot)
    frame, survey_ = drawn.frame(body(panel)), panel.survey
    assert survey_ is not None
    spot = QPointF(*pixels(frame, drawn.plane.probe_T2)[7])
    first, gate = best(survey_.probe.layers[0])
    panel.point_at(spot)
    assert panel.pointed == {"token": 7, "expert": int(first[7])}
    assert f"gate weight {gate[7]:.2f}" in panel.footer()
    assert "point 7" in panel.footer()
    with qtbot.waitSignal(panel.clicked) as clicked:
        qtbot.mouseClick(panel.canvas, Qt.MouseButton.LeftButton, pos=spot.toPoint())
    assert clicked.args == [{"token": 7, "expert": int(first[7])}]
    far = next(
        (r, c)
        for r in range(4, 40)
        for c in range(4, 40)
        if np.hypot(*(pixels(frame, drawn.plane.probe_T2) - _cell_at(drawn, frame, r, c)).T).min() > 12
    )
    panel.point_at(QPointF(*_cell_at(drawn, frame, *far)))
    assert panel.pointed == {"row": far[0], "column": far[1], "expert": int(drawn.first_RC[far])}
    assert f"p(●) {drawn.plane.probability_RC[far]:.2f}" in panel.footer()
    rail = QPointF(frame.rect.right() + 12, frame.rect.top() + frame.rect.height() * 3.5 / 8)
    panel.point_at(rail)
    assert panel.pointed == {"expert": 3}
    panel.point_at(QPointF(2, 2))
    assert panel.pointed == {}


def _cell_at(drawn: PlanePicture, frame: object, r: int, c: int) -> np.ndarray:
    return pixels(frame, np.array([[drawn.plane.x_C[c], drawn.plane.y_R[r]]]))[0]  # type: ignore[arg-type]


def test_cells_wear_the_colour_of_their_expert_the_right_way_up(qtbot: QtBot) -> None:
    panel, drawn = on_plane(qtbot)
    top = drawn.shape[0] - 1
    column = int((drawn.first_RC[0] != drawn.first_RC[top]).argmax())
    low, high = (int(drawn.first_RC[row, column]) for row in (0, top))
    assert low != high
    for row, expert, there in ((0, low, top), (top, high, 0)):  # a picture's rows go down, y goes up
        colour = drawn.image.pixelColor(column, there)
        amount = LEAST + (1 - LEAST) * float(drawn.gate_RC[row, column])
        wanted = mixed(expert_colour(expert, DARK).name(), DARK.panel, amount)
        assert max(abs(x - y) for x, y in zip(colour.getRgb(), wanted.getRgb(), strict=True)) <= 1
    panel.show_selection(Selection(expert=low))
    panel.refresh()
    picked = panel._picture
    assert isinstance(picked, PlanePicture)
    assert picked.image.pixelColor(column, top) == drawn.image.pixelColor(column, top)
    assert picked.image.pixelColor(column, 0) != drawn.image.pixelColor(column, 0)  # the others stand back
    panel.kind.setCurrentText("output")
    panel.refresh()
    assert panel.subtitle() == "layer 0, output, step 99"


def test_wrong_points_are_counted_and_classes_read_off_the_probe(qtbot: QtBot) -> None:
    panel, drawn = on_plane(qtbot)
    wanted = [
        (p > 0.5) != (d == "●") for p, d in zip(drawn.plane.probe_probability_T, drawn.probe.domains, strict=True)
    ]
    assert drawn.wrong_T.tolist() == wanted
    assert f"✕ {sum(wanted)} told wrong" in panel.footer()
    rows = columns(panel)
    assert sum(row["what"] == "cell" for row in rows) == drawn.plane.probability_RC.size
    point = next(row for row in rows if row["what"] == "point")
    assert point["class"] == int(drawn.probe.domains[0] == "●")
    assert point["probability_of_second_class"] == pytest.approx(float(drawn.plane.probe_probability_T[0]))
    unlabelled = replace(panel.survey, probe=replace(drawn.probe, domains=None))
    panel.show_survey(unlabelled)
    assert "told wrong" not in (panel.refresh() or panel.footer())


def test_components_point_at_the_probe_and_at_held_out_tokens(qtbot: QtBot) -> None:
    panel = show(qtbot, InputMap(DARK), 640, 400)
    survey_ = make_survey()
    panel.show_survey(survey_)
    panel.refresh()
    assert not panel.kind.isVisible()
    assert not panel.paint.isVisible()
    drawn = panel._picture
    assert drawn is not None
    frame = drawn.frame(body(panel))
    panel.point_at(QPointF(*pixels(frame, survey_.inputs[0].probe_T2)[4]))
    first, _ = best(survey_.probe.layers[0])
    assert panel.pointed == {"token": 4, "expert": int(first[4])}
    away = np.hypot(*(survey_.inputs[0].probe_T2[None] - survey_.inputs[0].heldout_T2[:, None]).transpose(2, 0, 1)).min(
        1
    )
    lone = int(away.argmax())
    panel.point_at(QPointF(*pixels(frame, survey_.inputs[0].heldout_T2)[lone]))
    assert panel.pointed["expert"] == int(best(survey_.heldout.layers[0])[0][lone])
    assert f"of {survey_.heldout.domains[lone]}" in panel.footer()
    assert "component 1: 40 % of variance" in drawn._axis(0)
    rows = columns(panel)
    assert len(rows) == survey_.heldout.num_tokens + survey_.probe.num_tokens
    assert rows[0]["component_x"] == pytest.approx(float(survey_.inputs[0].heldout_T2[0, 0]))


def test_a_recording_has_no_inputs(qtbot: QtBot) -> None:
    panel = show(qtbot, InputMap(DARK), 640, 400)
    panel.show_survey(make_survey())
    panel.show_snapshot(make_survey().probe)
    panel.show_survey(None)
    assert panel.missing() == "This data holds no inputs of routers: it needs a model, which is then surveyed."
    assert panel.table()[1] == []


@pytest.mark.parametrize("theme", [DARK, LIGHT])
@pytest.mark.parametrize("size", [(200, 96), (320, 200), (900, 300), (300, 900)])
def test_a_plane_is_drawn_at_any_size(qtbot: QtBot, size: tuple[int, int], theme: object) -> None:
    panel, _ = on_plane(qtbot, *size)
    panel.apply_theme(theme)  # type: ignore[arg-type]
    for kind in ("experts", "output"):
        panel.kind.setCurrentText(kind)
        panel.show_selection(Selection(2, 5, 3))
        assert picture(panel)


# ---- painting
def move(panel: InputMap, qtbot: QtBot, button: Qt.MouseButton, path: list[QPoint]) -> None:
    """A drag: press, move with the button held, let go."""
    QTest.mousePress(panel.canvas, button, Qt.KeyboardModifier.NoModifier, path[0])
    for spot in path[1:]:
        event = _moved(spot, button)
        QApplication.sendEvent(panel.canvas, event)
    QTest.mouseRelease(panel.canvas, button, Qt.KeyboardModifier.NoModifier, path[-1])


def _moved(spot: QPoint, button: Qt.MouseButton) -> QMouseEvent:
    no = Qt.KeyboardModifier.NoModifier
    return QMouseEvent(QEvent.Type.MouseMove, QPointF(spot), QPointF(spot), Qt.MouseButton.NoButton, button, no)


def test_painting_sprays_where_the_mouse_is_and_erases(qtbot: QtBot) -> None:
    panel, drawn = on_plane(qtbot)
    assert not panel.use.isVisible()
    qtbot.mouseClick(panel.paint, Qt.MouseButton.LeftButton)
    assert panel.use.isVisible()
    assert not panel.use.isEnabled()
    clicked = []
    panel.clicked.connect(clicked.append)
    frame = drawn.frame(body(panel))
    line = [QPoint(int(frame.rect.left()) + x, int(frame.rect.center().y())) for x in range(40, 140, 10)]
    move(panel, qtbot, Qt.MouseButton.LeftButton, line)
    left = len(panel.painting.xy)
    assert left == 4 * len(line)
    assert set(panel.painting.label) == {0}
    places = pixels(frame, panel.painting.xy)
    spots = np.array([(p.x(), p.y()) for p in line])
    assert (np.linalg.norm(places[:, None] - spots, axis=2).min(1) <= BRUSH + 0.1).all()
    qtbot.mouseClick(panel.classes[1], Qt.MouseButton.LeftButton)
    move(panel, qtbot, Qt.MouseButton.LeftButton, [p + QPoint(150, 0) for p in line])
    assert (panel.painting.label == 1).sum() == 4 * len(line)
    move(panel, qtbot, Qt.MouseButton.RightButton, line)
    assert set(panel.painting.label) == {1}
    assert clicked == []  # a dab selects nothing
    assert "points painted" in panel.footer()
    menu = QContextMenuEvent(QContextMenuEvent.Reason.Mouse, line[0], panel.canvas.mapToGlobal(line[0]))
    assert QApplication.sendEvent(panel.canvas, menu)
    assert menu.isAccepted()
    assert not panel.use.isEnabled()  # one class is left
    qtbot.mouseClick(panel.classes[0], Qt.MouseButton.LeftButton)
    move(panel, qtbot, Qt.MouseButton.LeftButton, line)
    assert panel.use.isEnabled()
    with qtbot.waitSignal(panel.painted) as told:
        qtbot.mouseClick(panel.use, Qt.MouseButton.LeftButton)
    np.testing.assert_array_equal(told.args[0], panel.painting.xy)
    qtbot.mouseClick(panel.clear, Qt.MouseButton.LeftButton)
    assert len(panel.painting.xy) == 0
    qtbot.mouseClick(panel.paint, Qt.MouseButton.LeftButton)
    panel.point_at(QPointF(*pixels(frame, drawn.plane.probe_T2)[7]))
    assert panel.pointed["token"] == 7


def test_what_was_painted_stays_in_sight_without_the_brush(qtbot: QtBot) -> None:
    panel, drawn = on_plane(qtbot)
    rect = drawn.frame(body(panel)).rect
    spot = QPoint(int(rect.left()) + 200, int(rect.top()) + 20)
    plain = picture(panel)
    qtbot.mouseClick(panel.paint, Qt.MouseButton.LeftButton)
    move(panel, qtbot, Qt.MouseButton.LeftButton, [spot] * 3)
    assert "at least 20 are needed" in panel.footer()
    move(panel, qtbot, Qt.MouseButton.LeftButton, [spot] * 3)
    assert "paint some ● too: a model learns to tell two classes apart" in panel.footer()
    assert not panel.use.isEnabled()
    qtbot.mouseClick(panel.paint, Qt.MouseButton.LeftButton)
    assert "small: 24 painted, not trained on: Paint, then Use" in panel.footer()
    assert picture(panel) != plain
    for button in (panel.paint, panel.clear, panel.paint):
        qtbot.mouseClick(button, Qt.MouseButton.LeftButton)
    assert picture(panel) == plain


def test_own_points_are_shown_small_beside_the_probe(qtbot: QtBot) -> None:
    panel, drawn = on_plane(qtbot, own=60)
    assert "the probe's" in panel.footer()
    assert "small: your 60 points" in panel.footer()
    image, frame = panel.canvas.grab().toImage(), drawn.frame(body(panel))
    own, shown = pixels(frame, drawn.plane.own_N2), pixels(frame, drawn.plane.probe_T2)
    clear = [i for i in range(60) if np.hypot(*(shown - own[i]).T).min() > 12 and frame.rect.contains(*own[i])]
    bright = {
        bool(drawn.plane.own_second_N[i]): image.pixelColor(*np.floor(own[i]).astype(int).tolist()).lightness()
        for i in clear
    }
    assert bright[True] > 200 > 100 > bright[False]  # full, hollow


def test_no_more_points_than_can_be_drawn() -> None:
    painting, ends = Painting(), (np.full(2, -1.0), np.full(2, 1.0))
    for _ in range(MOST):
        painting.spray(np.array([1.0, 0.0]), np.array([0.1, 0.1]), 1, ends)
    assert len(painting.xy) == MOST
    assert painting.xy.max() <= 1
    painting.erase(np.array([1.0, 0.0]), np.array([0.2, 0.2]))
    assert len(painting.xy) == 0


# ---- the window
@pytest.fixture
def window(qtbot: QtBot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Window]:
    monkeypatch.setattr("moeviz.view.files.user_state_dir", lambda name: str(tmp_path / "state"))
    store = QSettings(str(tmp_path / "window.ini"), QSettings.Format.IniFormat)
    made = make_window(PLANE, store=store, runs=tmp_path / "runs")
    qtbot.addWidget(made)
    made.resize(1280, 720)
    made.show()
    made.start()
    qtbot.waitUntil(lambda: made.snapshot is not None, timeout=WAIT)
    yield made
    made.close()
    assert not made.runner.alive


def test_a_panel_that_is_open_from_the_start_is_surveyed(
    qtbot: QtBot, window: Window, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though its data are read in the same tick that shows the model, and that takes long."""
    opened(qtbot, window)
    qtbot.waitUntil(settled(window), timeout=WAIT)
    let, prepare = threading.Semaphore(0), Trainer.prepare

    def slow(trainer: Trainer) -> object:
        assert let.acquire(timeout=20)
        return prepare(trainer)

    monkeypatch.setattr(Trainer, "prepare", slow)
    window.send(Restart())
    let.release()
    qtbot.waitUntil(lambda: window.survey is None, timeout=WAIT)
    let.release(99)
    qtbot.waitUntil(lambda: window.survey is not None, timeout=WAIT)


def test_it_is_painted_again_only_for_another_survey(qtbot: QtBot, window: Window) -> None:
    panel = opened(qtbot, window)
    qtbot.waitUntil(settled(window), timeout=WAIT)
    panel.canvas.repaint()
    drawn = panel.draws
    for _ in range(3):
        panel.show_survey(window.survey)
        QApplication.processEvents()
    assert panel.draws == drawn


def opened(qtbot: QtBot, window: Window) -> InputMap:
    """The input map, which is open from the start."""
    panel = window.panels["input_map"]
    assert isinstance(panel, InputMap)
    qtbot.waitUntil(lambda: panel.plane is not None, timeout=WAIT)
    return panel


def paint_halves(panel: InputMap, qtbot: QtBot) -> None:
    panel.refresh()
    assert isinstance(panel._picture, PlanePicture)
    rect = panel._picture.frame(body(panel)).rect
    for label, part in enumerate((0.25, 0.75)):
        qtbot.mouseClick(panel.classes[label], Qt.MouseButton.LeftButton)
        x = int(rect.left() + part * rect.width())
        ys = np.linspace(rect.top() + 5, rect.bottom() - 5, 20).astype(int)
        move(panel, qtbot, Qt.MouseButton.LeftButton, [QPoint(x, y) for y in ys.tolist()])


def test_what_is_painted_is_trained_on_and_undone(qtbot: QtBot, window: Window, tmp_path: Path) -> None:
    panel = opened(qtbot, window)
    train(qtbot, window, 5)
    qtbot.mouseClick(panel.paint, Qt.MouseButton.LeftButton)
    paint_halves(panel, qtbot)
    qtbot.mouseClick(panel.use, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: len(window.history.marks) == 1, timeout=WAIT)
    assert not window.question.open  # nothing is lost
    assert window.runner.training
    (path,) = (tmp_path / "state" / "points").iterdir()
    assert window.settings.data.path == str(path)
    np.testing.assert_array_equal(points.read(path)[0], panel.painting.xy)
    assert window.knobs.undo.undoText() == f"Own data {path.name}" == "Own data painted-1.csv"
    line = window.controls.rows["data.path"].field
    assert isinstance(line, PathLine)
    assert line.text() == "painted-1.csv"
    line.setFocus()
    qtbot.waitUntil(lambda: line.text() == str(path), timeout=WAIT)
    window.setFocus()
    assert line.text() == "painted-1.csv"
    assert window.knobs.undo.count() == 1  # looking changes nothing
    qtbot.waitUntil(lambda: panel.plane is not None and len(panel.plane.own_N2) > 0, timeout=WAIT)
    panel.refresh()
    assert "the model has these" in panel.footer()
    step = window.history.marks[0][0]
    assert step >= 5
    assert panel.paints  # the regions move under the painted points
    train(qtbot, window, 5)
    window.train_action.trigger()
    qtbot.waitUntil(settled(window), timeout=WAIT)
    assert window.snapshot.num_tokens == round(0.2 * len(np.unique(panel.painting.xy, axis=0)))
    window.knobs.undo_change(False)
    qtbot.waitUntil(lambda: window.settings.data.path == "" and settled(window)(), timeout=WAIT)
    assert window.snapshot.num_tokens == plane.SHOWN
    window.knobs.undo_change(True)
    qtbot.waitUntil(lambda: window.settings.data.path == str(path) and settled(window)(), timeout=WAIT)
    assert window.snapshot.step >= 10


def test_a_file_of_points_that_is_dropped_is_trained_on(qtbot: QtBot, window: Window, tmp_path: Path) -> None:
    path = points.write(tmp_path, *made_points())
    train(qtbot, window, 3)
    window.files.open_paths([str(path)])
    qtbot.waitUntil(lambda: len(window.history.marks) == 1, timeout=WAIT)
    assert not window.question.open
    assert window.settings.data.path == str(path)
    bad = tmp_path / "bad.csv"
    bad.write_text("1,2\n")
    window.files.open_paths([str(bad)])
    qtbot.waitUntil(lambda: "line 1: there are 2 values" in window.notices.words.text(), timeout=WAIT)
    assert window.settings.data.path == str(path)
    assert window.runner.training


def test_a_disk_that_refuses_is_told(qtbot: QtBot, window: Window, tmp_path: Path) -> None:
    panel = opened(qtbot, window)
    (tmp_path / "state").write_text("in the way")
    qtbot.mouseClick(panel.paint, Qt.MouseButton.LeftButton)
    paint_halves(panel, qtbot)
    qtbot.mouseClick(panel.use, Qt.MouseButton.LeftButton)
    assert "The points cannot be kept in" in window.notices.words.text()
    assert window.settings.data.path == ""


def test_only_the_parts_that_are_seen_are_surveyed(qtbot: QtBot, window: Window) -> None:
    panel = opened(qtbot, window)
    assert window.survey.similarity == window.survey.terms == ()
    assert window.survey.heldout is None
    window.docks["similarity"].toggleViewAction().trigger()
    qtbot.waitUntil(lambda: len(window.survey.similarity) == 2, timeout=WAIT)
    assert panel.plane is not None  # of the same step, it is surveyed along, for who goes back to it
    window.docks["input_map"].close()
    window.step_action.trigger()
    qtbot.waitUntil(lambda: window.survey is not None and window.survey.step == 1 and settled(window)(), timeout=WAIT)
    assert window.survey.plane is None
    assert len(window.survey.similarity) == 2
    window.docks["input_map"].toggleViewAction().trigger()
    qtbot.waitUntil(lambda: panel.plane is not None, timeout=WAIT)


def test_another_task_takes_the_brush_away(qtbot: QtBot, window: Window) -> None:
    panel = opened(qtbot, window)
    qtbot.mouseClick(panel.paint, Qt.MouseButton.LeftButton)
    assert panel.paints
    window.send(SetKnobs({"task": "search", "model.context": 64}))
    qtbot.waitUntil(lambda: window.docks["input_map"].isHidden(), timeout=WAIT)  # it is behind in this layout
    window.docks["input_map"].toggleViewAction().trigger()
    qtbot.waitUntil(lambda: panel.survey is not None and bool(panel.survey.inputs), timeout=WAIT)
    assert not panel.paints
    assert not panel.paint.isVisible()
    panel.refresh()
    assert "held-out tokens" in panel.footer()
