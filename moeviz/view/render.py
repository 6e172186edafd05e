"""A picture of a snapshot without a window, on machines that have no display."""

import os
from pathlib import Path

from PySide6.QtWidgets import QApplication

from moeviz.domain.history import History
from moeviz.domain.messages import UserError
from moeviz.domain.reference import Reference
from moeviz.domain.routing import RoutingSnapshot
from moeviz.domain.selection import Selection
from moeviz.domain.survey import SurveyResult
from moeviz.view.catalogue import BY_NAME
from moeviz.view.dashboard import PANELS, Dashboard
from moeviz.view.export import export
from moeviz.view.panel import ENDINGS, Panel
from moeviz.view.panels.compare import Compare
from moeviz.view.theme import THEMES, apply


def render_plot(
    out: str | Path,
    *,
    plot: str = "dashboard",
    snapshot: RoutingSnapshot | None,
    history: History | None = None,
    survey: SurveyResult | None = None,
    reference: Reference | None = None,
    theme: str = "dark",
    size: tuple[int, int] = (1440, 900),
    layer: int = 0,
    token: int | None = None,
    scale: float = 1.0,
) -> None:
    """Write one plot, or the dashboard, to `out`; its ending says png, svg, pdf or csv.

    A PNG has `size` pixels, `scale` times as many on each side for sharper print: texts and lines grow along.
    """
    out = Path(out)
    if plot not in BY_NAME:
        raise UserError(f"{plot!r} is not a plot: choose one of {', '.join(BY_NAME)}.")
    if out.suffix.lower().lstrip(".") not in ENDINGS:
        raise UserError(f"{out.name} must end in one of {', '.join('.' + e for e in ENDINGS)}.")
    if theme not in THEMES:
        raise UserError(f"{theme!r} is not a theme: choose one of {', '.join(THEMES)}.")
    if snapshot:
        check_place(snapshot, layer, token)
    check_size(size, scale)
    app = QApplication.instance()
    if app is None:
        os.environ["QT_QPA_PLATFORM"] = "offscreen"
        app = QApplication(["moeviz"])
    assert isinstance(app, QApplication)
    look = THEMES[theme]
    if not app.topLevelWidgets():  # never change the look of a window that is open
        apply(app, look)
    view: Panel | Dashboard = Dashboard(look) if plot == "dashboard" else PANELS[plot](look)
    view.show_selection(Selection(layer=layer, token=token))
    view.show_snapshot(snapshot)
    view.show_history(history)
    view.show_survey(survey)
    if isinstance(view, Compare):
        view.show_reference(reference)
    view.setMinimumSize(0, 0)
    view.resize(*size)
    layout = view.layout()
    if layout is not None:
        layout.activate()
    try:
        if isinstance(view, Panel) and view.lack():
            raise UserError(f"{view.plot.title}: {view.lack()}")
        export(view, out, scale=scale)
    finally:
        view.deleteLater()


def check_place(snapshot: RoutingSnapshot, layer: int, token: int | None) -> None:
    """UserError if there is no such layer or token to show."""
    layers = len(snapshot.layers)
    if not 0 <= layer < layers:
        raise UserError(f"There is no layer {layer}: choose one from 0 to {layers - 1}.")
    if token is not None and not 0 <= token < snapshot.num_tokens:
        raise UserError(f"There is no token {token}: choose one from 0 to {snapshot.num_tokens - 1}.")


def check_size(size: tuple[int, int], scale: float) -> None:
    """UserError if a picture cannot have so many pixels."""
    wide, high = (round(side * scale) for side in size)
    if min(size) < 64 or max(wide, high) > 16_384:
        raise UserError(f"A picture of {wide}x{high} is not possible: choose 64 to 16384 pixels a side.")
