"""Exported files are whole, hold real text, look like the panel, and never leave half a file behind."""

import csv
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import numpy as np
import pypdfium2 as pdfium
import pytest
from PySide6.QtGui import QColor, QImage
from PySide6.QtWidgets import QWidget
from test_panels import make_history, make_snapshot, show
from test_panels_more import make_film, make_plane, make_survey

from moeviz.domain.messages import UserError
from moeviz.domain.selection import Selection
from moeviz.view.dashboard import PANELS, PLACES, Dashboard
from moeviz.view.export import export
from moeviz.view.render import render_plot
from moeviz.view.theme import DARK, LIGHT, apply


@pytest.fixture
def board(qtbot, qapp) -> Dashboard:
    apply(qapp, DARK)
    board = Dashboard(DARK)
    qtbot.addWidget(board)
    board.resize(1200, 800)
    board.show()
    board.show_snapshot(make_snapshot())
    board.show_history(make_history())
    board.show_selection(Selection(token=2))
    qapp.processEvents()
    return board


def pdf_text(path) -> tuple[int, tuple[float, float], str]:
    document = pdfium.PdfDocument(path)
    try:
        page = document[0]
        # pdfium guesses spaces and lines from positions, and an upright axis label misleads it
        return len(document), page.get_size(), "".join(page.get_textpage().get_text_bounded().split())
    finally:
        document.close()


@pytest.mark.parametrize("name", PLACES)
def test_a_panel_is_written_as_vector_with_real_text(board, tmp_path, name):
    panel = board.panels[name]
    export(panel, tmp_path / "p.pdf")
    pages, size, text = pdf_text(tmp_path / "p.pdf")
    wanted = panel.picture_size()
    assert pages == 1
    assert size == pytest.approx((wanted.width() * 0.75, wanted.height() * 0.75), abs=0.5)
    assert panel.plot.title.replace(" ", "") in text
    export(panel, tmp_path / "p.svg")
    root = ET.parse(tmp_path / "p.svg").getroot()
    assert root.get("viewBox") == f"0 0 {wanted.width()} {wanted.height()}"
    assert (root.get("width"), root.get("height")) == (f"{wanted.width()}", f"{wanted.height()}")
    words = ["".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert panel.plot.title in " ".join(words)
    assert (tmp_path / "p.pdf").read_bytes().count(b"/DCTDecode") == 0  # no heat map as blurred JPEG
    export(panel, tmp_path / "p.png", scale=1.5)
    image = QImage(str(tmp_path / "p.png"))
    assert (image.width(), image.height()) == (round(wanted.width() * 1.5), round(wanted.height() * 1.5))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["p.pdf", "p.png", "p.svg"]


@pytest.mark.parametrize("name", PLACES)
def test_csv_gives_back_the_table(board, tmp_path, name):
    panel = board.panels[name]
    export(panel, tmp_path / "p.csv")
    with (tmp_path / "p.csv").open(newline="", encoding="utf-8") as file:
        head, *rows = list(csv.reader(file))
    wanted_head, wanted = panel.table()
    assert head == wanted_head
    assert rows == [[str(value) for value in row] for row in wanted]


def words_of(path) -> str:
    words = (node.itertext() for node in ET.parse(path).getroot().iter("{http://www.w3.org/2000/svg}text"))
    return "\n".join("".join(parts) for parts in words)


@pytest.mark.parametrize("name", ["tokens", "anatomy", "input_map", "experts_tokens"])
@pytest.mark.parametrize("expert", [None, 3])
def test_a_picture_has_no_words_for_the_mouse(qtbot, tmp_path, name, expert):
    survey = replace(make_survey(), plane=make_plane())
    panel = show(qtbot, PANELS[name](DARK))
    panel.show_snapshot(survey.probe)
    panel.show_survey(survey)
    panel.show_selection(Selection(expert=expert))
    panel.pointed = {"row": 2} if name == "experts_tokens" else {}
    panel.refresh()

    def on_screen() -> str:
        return panel.footer() + (panel.input_in_words() if name == "anatomy" else "")

    assert "click" in on_screen()
    export(panel, tmp_path / "p.svg")
    assert panel.plot.title in words_of(tmp_path / "p.svg")
    assert "click" not in words_of(tmp_path / "p.svg")
    assert "click" in on_screen()


def test_a_picture_of_painting_has_no_words_for_the_mouse(qtbot, tmp_path):
    survey = replace(make_survey(), plane=make_plane())
    panel = show(qtbot, PANELS["input_map"](DARK))
    panel.show_snapshot(survey.probe)
    panel.show_survey(survey)
    panel.paint.setChecked(True)
    panel.refresh()
    assert "drag to spray" in panel.footer()
    export(panel, tmp_path / "p.svg")
    assert "0 points painted" in words_of(tmp_path / "p.svg")
    assert "drag" not in words_of(tmp_path / "p.svg")


@pytest.mark.parametrize("name", PANELS)
@pytest.mark.parametrize("kept", [True, False])
def test_a_subtitle_is_not_cut_in_a_picture_as_large_as_the_panel(qtbot, tmp_path, name, kept):
    survey, history = make_survey(step=12_345), make_film() if kept else make_history()
    panel = show(qtbot, PANELS[name](DARK), 320, 260)
    panel.show_snapshot(survey.probe)
    panel.show_survey(survey)
    panel.show_history(history)
    export(panel, tmp_path / "p.svg")
    assert panel.lack() or panel.subtitle() in words_of(tmp_path / "p.svg").splitlines()


def test_the_picture_looks_like_the_panel(board, tmp_path):
    panel = board.panels["load"]
    export(panel, tmp_path / "p.png", scale=1)
    export(panel, tmp_path / "light.png", scale=1, theme=LIGHT)
    assert panel.theme is DARK  # the window's own theme is as before
    for path, theme in ((tmp_path / "p.png", DARK), (tmp_path / "light.png", LIGHT)):
        image = QImage(str(path))
        corner = image.pixelColor(2, image.height() - 2)
        assert corner == QColor(theme.panel)
    body = panel.canvas.grab().toImage().convertToFormat(QImage.Format.Format_RGB32)
    image = QImage(str(tmp_path / "p.png")).convertToFormat(QImage.Format.Format_RGB32)

    def colours(picture: QImage, top: int) -> np.ndarray:
        pixels = np.frombuffer(picture.constBits(), np.uint8).reshape(picture.height(), picture.width(), 4)
        return pixels[top:, :, :3].reshape(-1, 3).mean(axis=0)

    np.testing.assert_allclose(colours(image, image.height() - body.height()), colours(body, 0), atol=6)


def test_the_whole_board_is_one_picture(board, tmp_path):
    export(board, tmp_path / "all.pdf", theme=LIGHT)
    pages, size, text = pdf_text(tmp_path / "all.pdf")
    assert (pages, size) == (1, (900, 600))
    assert all(panel.plot.title.replace(" ", "") in text for panel in board.panels.values())
    board.panels["load"].hide()
    export(board, tmp_path / "all.svg")
    written = (tmp_path / "all.svg").read_text()
    assert "Losses" in written
    assert "load share q" in written  # of load over time
    assert "effective experts" not in written  # a hidden panel stays out
    export(board, tmp_path / "all.csv")
    with (tmp_path / "all.csv").open(newline="") as file:
        plots = {row["plot"] for row in csv.DictReader(file)}
    assert plots == set(PLACES) - {"load"}


def test_mistakes_are_told_in_one_sentence_and_leave_nothing_behind(board, qtbot, tmp_path):
    panel = board.panels["load"]
    kept = tmp_path / "kept.png"
    kept.write_text("old")
    for target, said in (
        (tmp_path / "p.jpeg", "must end in one of .png, .svg, .pdf, .csv"),
        (tmp_path / "none" / "p.png", "does not exist"),
        (tmp_path / "plain", "must end in one of"),
    ):
        with pytest.raises(UserError, match=said):
            export(panel, target)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UserError, match="Cannot write"):
        export(panel, tmp_path / "folder.png")
    empty = QWidget()
    qtbot.addWidget(empty)
    with pytest.raises(UserError, match="no plot to export"):
        export(empty, kept)
    panel.show_snapshot(None)
    with pytest.raises(UserError, match="no numbers to export: No routing yet"):
        export(panel, tmp_path / "p.csv")
    assert kept.read_text() == "old"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["folder.png", "kept.png"]


@pytest.mark.skipif(os.geteuid() == 0 if hasattr(os, "geteuid") else True, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_told(board, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="Cannot write"):
        export(board.panels["load"], tmp_path / "p.png")


@pytest.mark.parametrize("plot", [*PLACES, "dashboard"])
def test_render_writes_every_plot_in_the_size_asked_for(qapp, tmp_path, plot):
    out = tmp_path / f"{plot}.png"
    render_plot(
        out, plot=plot, snapshot=make_snapshot(), history=make_history(), theme="light", size=(640, 480), layer=1
    )
    image = QImage(str(out))
    assert (image.width(), image.height()) == (640, 480)


def test_render_writes_as_many_pixels_as_asked_for(qapp, tmp_path):
    sizes = []
    for scale in (1.0, 300 / 96):
        out = tmp_path / f"{scale}.png"
        render_plot(out, plot="load", snapshot=make_snapshot(), size=(400, 240), scale=scale)
        image = QImage(str(out))
        sizes.append((image.width(), image.height(), round(image.dotsPerMeterX() * 0.0254)))
    assert sizes == [(400, 240, 96), (1250, 750, 300)]


def test_render_refuses_what_it_cannot_do(qapp, tmp_path):
    snapshot = make_snapshot()
    for said, options in (
        ("'pie' is not a plot", {"plot": "pie"}),
        ("is not a theme", {"theme": "pink"}),
        ("There is no layer 3: choose one from 0 to 2", {"layer": 3}),
        ("There is no token 500", {"token": 500}),
        ("is not possible", {"size": (1, 1)}),
        ("19200x8000 is not possible", {"size": (2400, 1000), "scale": 8.0}),
        ("Losses: No history", {"plot": "losses"}),
    ):
        with pytest.raises(UserError, match=said):
            render_plot(tmp_path / "p.png", snapshot=snapshot, **options)
    with pytest.raises(UserError, match="must end in"):
        render_plot(tmp_path / "p.gif", snapshot=snapshot)
    assert list(tmp_path.iterdir()) == []


def test_render_needs_no_display_and_neither_torch_nor_pyqtgraph(tmp_path):
    code = (
        "import sys; from test_panels import make_snapshot; from moeviz.view.render import render_plot; "
        f"render_plot({str(tmp_path / 'p.svg')!r}, snapshot=make_snapshot()); "
        "print(sorted({'torch', 'pyqtgraph', 'matplotlib'} & set(sys.modules)))"
    )
    clean = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM")}
    clean["PYTHONPATH"] = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
    assert ET.parse(tmp_path / "p.svg").getroot().tag.endswith("svg")
    catalogue = "import sys, moeviz.view.catalogue; print('PySide6' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", catalogue], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "False"


@pytest.mark.qt_log_ignore("QPainter::end: Painter ended with", extend=True)
@pytest.mark.parametrize("ending", ["png", "pdf", "svg"])
def test_a_panel_that_fails_while_it_is_drawn_ends_no_program(board, tmp_path, ending, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(board.panels["load"], "draw", fail)
    with pytest.raises(ZeroDivisionError):
        export(board.panels["load"], tmp_path / f"load.{ending}")
    assert not list(tmp_path.iterdir())
