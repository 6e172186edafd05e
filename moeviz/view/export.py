"""Pictures and numbers of panels as files. PDF and SVG are vector, with real text; PNG is that PDF made into pixels."""

import csv
import os
import re
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from PySide6.QtCore import QMarginsF, QPoint, QRect, QRectF, QSize, QSizeF
from PySide6.QtGui import QColor, QImage, QPageSize, QPainter, QPdfWriter
from PySide6.QtSvg import QSvgGenerator
from PySide6.QtWidgets import QDockWidget, QMainWindow, QWidget

from moeviz.domain.messages import UserError
from moeviz.view.dashboard import merged_table
from moeviz.view.panel import ENDINGS, Panel
from moeviz.view.theme import GRID, Theme

DPI = 96  # one unit of the painter is one pixel of the window


def export(widget: QWidget, path: str | Path, *, theme: Theme | None = None, scale: float = 2.0) -> None:
    """Write a panel, or all panels within a widget, as the ending of the path says: png, svg, pdf or csv.

    `theme`: of the picture, else the panels' own; `scale`: pixels of a PNG for each pixel of the window.
    UserError with one sentence if there is nothing to write, or the disk refuses.
    """
    painted(widget, path, theme=theme, scale=scale)()


def painted(widget: QWidget, path: str | Path, *, theme: Theme | None = None, scale: float = 2.0) -> Callable[[], None]:
    """Like export, but only paints now; what it returns writes the file, and may be called on another thread."""
    path = Path(path)
    ending = path.suffix.lower().lstrip(".")
    panels = _panels(widget)
    paint: dict[str, Callable[[Path], None]] = {
        "png": lambda out: _write_pdf(widget, panels, out, theme),
        "svg": lambda out: _write_svg(widget, panels, out, theme),
        "pdf": lambda out: _write_pdf(widget, panels, out, theme),
        "csv": lambda out: _write_csv(panels, out),
    }
    if ending not in paint:
        raise UserError(f"{path.name} must end in one of {', '.join('.' + e for e in ENDINGS)}.")
    if not path.parent.is_dir():
        raise UserError(f"The folder {path.parent} does not exist: make it first, or choose another.")
    pixels = pixels_of(_frame(widget, panels).size(), scale) if ending == "png" else None
    draft = _on_disk(path, lambda: _draft(path))
    _on_disk(path, lambda: paint[ending](draft), draft)

    def write() -> None:
        if pixels is not None:
            _on_disk(path, lambda: _rasterise(draft, pixels, scale), draft)
        _on_disk(path, lambda: _move(draft, path), draft)

    return write


def pixels_of(size: QSize, scale: float) -> QSize:
    """Of a PNG."""
    return QSize(round(size.width() * scale), round(size.height() * scale))


def _draft(path: Path) -> Path:
    """Beside the target, for a rename cannot cross file systems; the old file stays until the new one is whole."""
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    return Path(name)


def _move(draft: Path, path: Path) -> None:
    mask = os.umask(0)
    os.umask(mask)
    draft.chmod(0o666 & ~mask)
    draft.replace(path)


def _on_disk(path: Path, do: Callable[[], Any], draft: Path | None = None) -> Any:
    """Do it; if that fails, take the draft away, and say in one sentence what the disk said."""
    try:
        return do()
    except BaseException as error:
        if draft is not None:
            draft.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise UserError(f"Cannot write {path} ({error.strerror or error}): choose another folder.") from None
        raise


def _panels(widget: QWidget) -> list[Panel]:
    """The panels to paint, in reading order; those hidden in the window are left out."""
    if isinstance(widget, Panel):
        return [widget]
    found = [
        panel
        for panel in widget.findChildren(Panel)
        if not panel.isHidden() and panel.isVisibleTo(widget) and panel.window() is widget.window()  # none that floats
    ]
    # a dock behind another tab lies outside
    found = [panel for panel in found if widget.rect().intersects(_box(panel, widget))]
    if not found:
        raise UserError("There is no plot to export: show one first.")
    return sorted(found, key=lambda panel: (_box(panel, widget).y(), _box(panel, widget).x()))


def _box(panel: Panel, widget: QWidget) -> QRect:
    """Where a panel lies in the widget; in a dock it has the place of its title bar too."""
    dock = panel.parentWidget()
    box = dock if isinstance(dock, QDockWidget) else panel
    return QRect(box.mapTo(widget, QPoint(0, 0)), box.size())


def _frame(widget: QWidget, panels: list[Panel]) -> QRect:
    """What of the widget a picture shows: of a window the panels, without knobs and bars."""
    if isinstance(widget, Panel):
        return QRect(QPoint(0, 0), widget.picture_size())
    if not isinstance(widget, QMainWindow):
        return widget.rect()
    united = QRect()
    for panel in panels:
        united = united.united(_box(panel, widget))
    return united.adjusted(-GRID // 2, -GRID // 2, GRID // 2, GRID // 2)


def picture_size(widget: QWidget) -> QSize:
    """Of the picture of a panel, or of all panels within a widget, at scale 1."""
    return _frame(widget, _panels(widget)).size()


def _paint(painter: QPainter, widget: QWidget, panels: list[Panel], theme: Theme | None) -> None:
    frame = _frame(widget, panels)
    whole = QRectF(0, 0, frame.width(), frame.height())
    painter.setRenderHint(QPainter.RenderHint.LosslessImageRendering)  # else a PDF gets its heat maps as JPEG
    with ExitStack() as stack:
        for panel in panels:
            stack.enter_context(panel.themed(theme))
        painter.fillRect(whole, QColor(panels[0].theme.window))
        for panel in panels:
            if panel is widget:
                panel.paint_picture(painter, whole)
            else:
                panel.paint_picture(painter, QRectF(_box(panel, widget).translated(-frame.topLeft())))


def _write_pdf(widget: QWidget, panels: list[Panel], path: Path, theme: Theme | None) -> None:
    size = _frame(widget, panels).size()
    writer = QPdfWriter(str(path))
    writer.setResolution(DPI)
    points = QSizeF(size.width() * 72 / DPI, size.height() * 72 / DPI)
    writer.setPageSize(QPageSize(points, QPageSize.Unit.Point, "", QPageSize.SizeMatchPolicy.ExactMatch))
    writer.setPageMargins(QMarginsF(0, 0, 0, 0))
    writer.setTitle(panels[0].plot.title if widget is panels[0] else "moeviz")
    writer.setCreator("moeviz")
    painter = QPainter()
    if not painter.begin(writer):
        raise OSError("the file cannot be written")
    try:
        _paint(painter, widget, panels, theme)
    finally:
        painter.end()  # a painter left open by a defect would take the whole program down


def _write_svg(widget: QWidget, panels: list[Panel], path: Path, theme: Theme | None) -> None:
    size = _frame(widget, panels).size()
    generator = QSvgGenerator()
    generator.setFileName(str(path))
    generator.setResolution(DPI)
    generator.setSize(size)
    generator.setViewBox(QRectF(0, 0, size.width(), size.height()))
    generator.setTitle(panels[0].plot.title if widget is panels[0] else "moeviz")
    painter = QPainter()
    if not painter.begin(generator):
        raise OSError("the file cannot be written")
    try:
        _paint(painter, widget, panels, theme)
    finally:
        painter.end()
    # Qt gives the size in millimetres, rounded: others then make the picture a pixel wider than its content
    size_mm, in_pixels = rb'width="[^"]*" height="[^"]*"', f'width="{size.width()}" height="{size.height()}"'.encode()
    path.write_bytes(re.sub(size_mm, in_pixels, path.read_bytes(), count=1))


def _rasterise(draft: Path, size: QSize, scale: float) -> None:
    """Put the PNG of a PDF in its place."""
    import pypdfium2 as pdfium  # 8 MB that the window does without

    document = pdfium.PdfDocument(draft.read_bytes())
    try:
        bitmap = document[0].render(scale=scale * DPI / 72, rev_byteorder=False, force_bitmap_format=4)
        pixels = bitmap.to_numpy().copy()
    finally:
        document.close()
    image = QImage(pixels.data, pixels.shape[1], pixels.shape[0], pixels.strides[0], QImage.Format.Format_RGB32)
    image.setDotsPerMeterX(round(scale * DPI / 0.0254))
    image.setDotsPerMeterY(round(scale * DPI / 0.0254))
    # a page in points may round up to one pixel more
    if not image.copy(0, 0, size.width(), size.height()).save(str(draft)):
        raise OSError("the file cannot be written")


def _write_csv(panels: list[Panel], path: Path) -> None:
    head, rows = panels[0].table() if len(panels) == 1 else merged_table(panels)
    if not rows:
        raise UserError(f"There are no numbers to export: {panels[0].lack() or 'the plot is empty.'}")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows(rows)
