"""The two themes, as data, and how a theme is put on the application."""

from dataclasses import dataclass
from functools import lru_cache

from PySide6.QtCore import QPointF, QSettings
from PySide6.QtGui import QColor, QFont, QFontDatabase, QFontMetricsF, QPainter, QPalette, QStaticText, QTransform
from PySide6.QtWidgets import QApplication

GRID = 8  # every distance is a multiple or a half of it
BODY = 12  # px, controls and titles
SMALL = 11  # px, everything inside a plot

SANS = (
    "Inter",
    "Segoe UI",
    "SF Pro Text",
    "Helvetica Neue",
    "Noto Sans",
    "Cantarell",
    "Ubuntu",
    "Roboto",
    "Open Sans",
    "Liberation Sans",
    "Arimo",
    "DejaVu Sans",
)
MONO = ("JetBrains Mono", "SF Mono", "Cascadia Mono", "Consolas", "Menlo", "DejaVu Sans Mono", "Noto Sans Mono")


@dataclass(
    frozen=True, eq=False, slots=True
)  # there are but two: to hash all fields costs what a table of colours saves
class Theme:
    """Colours by their role, as #rrggbb."""

    name: str
    dark: bool
    window: str  # behind everything
    panel: str  # behind a plot
    raised: str  # buttons, fields
    line: str  # borders, axes
    grid: str
    text: str
    muted: str  # labels
    faint: str  # disabled
    accent: str  # selection, the main curve
    second: str  # the second curve
    warn: str


DARK = Theme(
    name="dark",
    dark=True,
    window="#12151a",
    panel="#191d24",
    raised="#252b34",
    line="#3a424e",
    grid="#272d36",
    text="#e4e8ee",
    muted="#9aa5b4",
    faint="#66707e",
    accent="#62b0ff",
    second="#ffb454",
    warn="#f5b94a",
)
LIGHT = Theme(
    name="light",
    dark=False,
    window="#e9ecf0",
    panel="#ffffff",
    raised="#f7f8fa",
    line="#c3cad3",
    grid="#e8ebef",
    text="#1a2028",
    muted="#576170",
    faint="#98a2ae",
    accent="#1467c8",
    second="#b35900",
    warn="#9a5b00",
)
THEMES = {theme.name: theme for theme in (DARK, LIGHT)}


@lru_cache(maxsize=64)
def _font(families: tuple[str, ...], size: int, bold: bool) -> QFont:
    have = set(QFontDatabase.families())
    font = QFont([family for family in families if family in have] or [QFont().family()])
    font.setPixelSize(size)
    font.setWeight(QFont.Weight.DemiBold if bold else QFont.Weight.Normal)
    font.setFeature(QFont.Tag("tnum"), 1)
    return font


def sans(size: int = SMALL, bold: bool = False) -> QFont:
    """The one sans face, with tabular figures where it has them."""
    return _font(SANS, size, bold)


def mono(size: int = SMALL) -> QFont:
    return _font(MONO, size, False)


@lru_cache(maxsize=1)
def small_metrics() -> QFontMetricsF:
    return QFontMetricsF(sans(SMALL))


def width_of(text: str) -> float:
    """Width of a text in the small sans face."""
    return _width(text.translate(ZEROS))


ZEROS = str.maketrans("123456789", "000000000")  # figures are tabular: numbers that change are measured once


@lru_cache(maxsize=2048)
def _width(text: str) -> float:
    return small_metrics().horizontalAdvance(text)


def fitted(text: str, width: float) -> str:
    """The text, shortened where it is wider than `width`."""
    if width_of(text) <= width:
        return text
    from PySide6.QtCore import (
        Qt,  # its hundred enumerations take 15 ms to make, which the first paint need not wait for
    )

    return small_metrics().elidedText(text, Qt.TextElideMode.ElideRight, width)


@lru_cache(maxsize=1024)
def shaped(text: str, font: QFont) -> QStaticText:
    """Shaped once: drawing it costs a quarter of drawText. The painter must wear the same font."""
    from PySide6.QtCore import Qt

    out = QStaticText(text)
    out.setTextFormat(Qt.TextFormat.PlainText)
    out.prepare(QTransform(), font)
    return out


def put(painter: QPainter, left: float, base: float, text: str) -> None:
    """A text in the small sans face with its base line at `base`."""
    painter.drawStaticText(QPointF(left, base - small_metrics().ascent()), shaped(text, sans(SMALL)))


def remembered(memory: QSettings) -> Theme:
    """The one that was worn last."""
    return THEMES.get(str(memory.value("theme")), THEMES["dark"])


def apply(app: QApplication, theme: Theme) -> None:
    """Put a theme on every widget of the application; may be called again to switch."""
    if app.style().name().lower() != "fusion":
        app.setStyle("Fusion")
    app.setFont(sans(BODY))
    app.setPalette(palette(theme))
    if app.styleSheet() != stylesheet(theme):  # every widget is styled again
        app.setStyleSheet(stylesheet(theme))


def palette(theme: Theme) -> QPalette:
    role, out = QPalette.ColorRole, QPalette()
    for key, colour in {
        role.Window: theme.window,
        role.WindowText: theme.text,
        role.Base: theme.panel,
        role.AlternateBase: theme.raised,
        role.Text: theme.text,
        role.PlaceholderText: theme.faint,
        role.Button: theme.raised,
        role.ButtonText: theme.text,
        role.BrightText: theme.warn,
        role.ToolTipBase: theme.raised,
        role.ToolTipText: theme.text,
        role.Highlight: theme.accent,
        role.HighlightedText: theme.panel,
        role.Accent: theme.accent,
        role.Link: theme.accent,
        role.LinkVisited: theme.accent,
        role.Light: theme.line,
        role.Midlight: theme.raised,
        role.Mid: theme.line,
        role.Dark: theme.line,
        role.Shadow: theme.window,
    }.items():
        out.setColor(key, QColor(colour))
    for key in (role.WindowText, role.Text, role.ButtonText):
        out.setColor(QPalette.ColorGroup.Disabled, key, QColor(theme.faint))
    return out


def stylesheet(theme: Theme) -> str:
    return f"""
QToolTip {{ color: {theme.text}; background: {theme.raised}; border: 1px solid {theme.line}; padding: 4px; }}
QToolButton {{ color: {theme.muted}; background: transparent; border: 1px solid transparent; border-radius: 4px;
               padding: 2px 6px; }}
QToolButton[slim="true"] {{ padding: 2px; }}
QToolBar QToolButton {{ color: {theme.text}; }}
QToolButton:hover {{ color: {theme.text}; background: {theme.raised}; border-color: {theme.line}; }}
QToolButton:pressed, QToolButton:checked {{ color: {theme.accent}; background: {theme.raised};
                                            border-color: {theme.line}; }}
QToolButton:focus, QPushButton:focus {{ border-color: {theme.accent}; }}
QToolBar QToolButton:checked {{ color: {theme.accent}; }}
QToolButton:disabled, QToolBar QToolButton:disabled {{ color: {theme.faint}; }}
QToolButton::menu-indicator {{ image: none; }}
QLabel#hint {{ color: {theme.muted}; font-size: {SMALL}px; }}
QPushButton {{ color: {theme.text}; background: {theme.raised}; border: 1px solid {theme.line}; border-radius: 4px;
               padding: 4px 12px; }}
QPushButton:hover {{ border-color: {theme.muted}; }}
QPushButton:pressed, QPushButton:checked {{ color: {theme.accent}; border-color: {theme.accent}; }}
QPushButton:disabled {{ color: {theme.faint}; }}
QPushButton[lit="true"] {{ color: {theme.panel}; background: {theme.accent}; border-color: {theme.accent}; }}
QMenu {{ background: {theme.raised}; border: 1px solid {theme.line}; padding: 4px 0; }}
QMenu::item {{ padding: 4px 24px 4px 16px; }}
QMenu::item:selected {{ background: {theme.accent}; color: {theme.panel}; }}
QMenu::item:disabled {{ color: {theme.faint}; }}
QMenu::separator {{ height: 1px; background: {theme.line}; margin: 4px 0; }}
QMenuBar {{ background: {theme.window}; }}
QMenuBar::item {{ padding: 4px 8px; background: transparent; }}
QMenuBar::item:selected {{ background: {theme.raised}; }}
QToolBar {{ background: {theme.window}; border: none; spacing: 4px; padding: 4px 8px; }}
QStatusBar {{ background: {theme.window}; color: {theme.muted}; }}
QStatusBar::item {{ border: none; }}
QMainWindow::separator {{ background: {theme.window}; width: 4px; height: 4px; }}
QDockWidget {{ color: {theme.muted}; }}
QDockWidget::title {{ background: {theme.window}; padding: 2px 8px; }}
QTabBar {{ qproperty-drawBase: 0; }}
QTabBar::tab {{ color: {theme.muted}; background: {theme.window}; border: none; padding: 3px 6px;
               border-top: 2px solid {theme.window}; }}
QTabBar::tab:hover {{ color: {theme.text}; }}
QTabBar::tab:selected {{ color: {theme.text}; background: {theme.panel}; border-top-color: {theme.accent}; }}
QScrollArea {{ border: none; background: transparent; }}
QScrollBar:vertical {{ background: transparent; width: 8px; margin: 0; }}
QScrollBar:horizontal {{ background: transparent; height: 8px; margin: 0; }}
QScrollBar::handle {{ background: {theme.line}; border-radius: 4px; min-height: 24px; min-width: 24px; }}
QScrollBar::handle:hover {{ background: {theme.faint}; }}
QScrollBar::add-line, QScrollBar::sub-line {{ width: 0; height: 0; }}
QScrollBar::add-page, QScrollBar::sub-page {{ background: transparent; }}
"""
