"""Every command of the window as data: its menu, title, keys and what it does."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from PySide6.QtGui import QAction, QActionGroup, QKeySequence
from PySide6.QtWidgets import QMenu

from moeviz.domain.experiments import EXPERIMENTS
from moeviz.domain.lessons import LESSONS
from moeviz.view.layouts import LAYOUTS
from moeviz.view.theme import THEMES

if TYPE_CHECKING:
    from moeviz.view.window import Window

NO_QUESTION = "Answer the open question"  # while there is none


@dataclass(frozen=True, slots=True)
class Item:
    """A command; `name` is how the window finds its action again."""

    title: str
    keys: str
    run: Callable[[], object]
    name: str = ""
    checkable: bool = False


def menus(window: "Window") -> dict[str, list[Item | None]]:
    """All menus but those of panels; None is a line between two groups."""
    files, references = window.files, window.references
    return {
        "&File": [
            Item("Open model…", "Ctrl+O", files.ask_model),
            Item("Save model…", "Ctrl+S", files.save_model),
            None,
            Item("Open own text files…", "Ctrl+T", files.ask_text_files),
            Item("Open own text folder…", "Ctrl+Shift+T", files.ask_text_folder),
            None,
            Item("Open trace…", "Ctrl+Shift+E", files.ask_trace),
            Item("Save run as trace…", "Ctrl+Alt+S", files.save_run),
            None,
            Item("Open settings…", "Ctrl+Shift+O", files.ask_settings),
            Item("Save settings…", "Ctrl+Shift+S", files.save_settings),
            None,
            Item("Export dashboard…", "Ctrl+E", partial(files.export, "dashboard", "pdf")),
            None,
            Item("Quit", "Ctrl+Q", window.quit),
        ],
        "&Edit": [
            Item("Undo", "Ctrl+Z", partial(window.knobs.undo_change, False), "undo"),
            Item("Redo", "Ctrl+Shift+Z", partial(window.knobs.undo_change, True), "redo"),
            None,
            Item("Copy settings", "Ctrl+Shift+C", files.copy_settings),
            Item("Paste settings", "Ctrl+Shift+V", files.paste_settings),
        ],
        "&Run": [
            Item("Train", "Space", window.toggle_training, "train", checkable=True),
            Item("One step", ".", window.one_step, "step"),
            Item("Train N steps…", "Ctrl+N", window.ask_steps),
            Item("Restart with the seed", "R", window.restart, "restart"),
            None,
            Item(NO_QUESTION, "Ctrl+Return", partial(window.question.answer, True), "yes"),
        ],
        "&Go": [
            Item("Next token", "Right", partial(window.walk, "token", 1)),
            Item("Previous token", "Left", partial(window.walk, "token", -1)),
            Item("Next layer", "Down", partial(window.walk, "layer", 1)),
            Item("Previous layer", "Up", partial(window.walk, "layer", -1)),
            None,
            Item("Play back", "P", window.timeline.play, "play", checkable=True),
            Item("Back to the newest step", "End", window.timeline.follow),
            Item("Let go of the selection", "Esc", window.let_go),
        ],
        "&Compare": [
            Item("With another layer", "Ctrl+Shift+L", partial(references.choose, "layer")),
            Item("With another step", "Ctrl+Shift+N", partial(references.choose, "step")),
            Item("Pin this moment", "Ctrl+P", references.pin),
            Item("With another text", "Ctrl+Shift+P", partial(references.choose, "text")),
            None,
            Item("With another trace…", "Ctrl+Shift+D", references.open_trace),
            Item("With another model…", "Ctrl+Shift+M", references.open_model),
        ],
        "&Lessons": [
            *(
                Item(
                    lesson.title, f"Shift+F{i}", partial(window.lessons.begin, lesson), f"lesson {name}", checkable=True
                )
                for i, (name, lesson) in enumerate(LESSONS.items(), 1)
            ),
            None,
            Item("Close the guide", "Ctrl+Alt+Q", window.guide.close),
        ],
        "E&xperiments": [
            *(
                Item(experiment.title, numbered("Ctrl+Alt", i), partial(window.experiments.begin, experiment))
                for i, experiment in enumerate(EXPERIMENTS.values(), 1)
            ),
        ],
    }


def numbered(modifier: str, i: int) -> str:
    """Keys of the i-th of a row of commands, from 1: ten digits, then the same with Shift."""
    return f"{modifier}+{'Shift+' if i > 10 else ''}{i % 10}"


def make_menus(window: "Window") -> dict[str, QAction]:
    """Fill the menu bar; returns the actions that have a name."""
    bar, named = window.menuBar(), {}
    made: dict[str, QMenu] = {}
    for title, items in menus(window).items():
        made[title] = menu = bar.addMenu(title)
        for item in items:
            if item is None:
                menu.addSeparator()
                continue
            action = make_action(window, item)
            menu.addAction(action)
            if item.name:
                named[item.name] = action
    plots = QMenu("Export plot", made["&File"])
    for i, (name, panel) in enumerate(window.panels.items(), 1):
        export = partial(window.files.export, name, "pdf")
        plots.addAction(make_action(window, Item(f"{panel.plot.title}…", numbered("Ctrl", i), export)))
    made["&File"].insertMenu(made["&File"].actions()[-2], plots)
    view = bar.addMenu("&View")
    for i, dock in enumerate(window.docks.values(), 1):
        toggle = dock.toggleViewAction()
        toggle.setShortcut(QKeySequence(numbered("Alt", i)))
        view.addAction(toggle)
    view.addSeparator()
    layouts = [Item(name, f"F{i}", partial(window.layouts.choose, name), name) for i, name in enumerate(LAYOUTS, 5)]
    chosen = _choices(window, view, layouts, window.layouts.name)
    for name, action in chosen.items():
        action.setToolTip(f"Layout {name}: {LAYOUTS[name].purpose} ({action.shortcut().toString()})")
    window.layouts.add_buttons(list(chosen.values()))
    window.layouts.changed.connect(lambda: chosen[window.layouts.name].setChecked(True))
    bar.setCornerWidget(window.layouts)
    view.addAction(make_action(window, Item("Reset layout", "Ctrl+Shift+R", window.layouts.reset)))
    view.addSeparator()
    themes = [
        Item(f"{name.capitalize()} theme", f"Ctrl+Alt+{name[0].upper()}", partial(window.set_theme, name), name)
        for name in THEMES
    ]
    _choices(window, view, themes, window.theme.name)
    return named


def _choices(window: "Window", menu: QMenu, items: list[Item], now: str) -> dict[str, QAction]:
    """Commands of which one holds."""
    group, made = QActionGroup(window), {}
    for item in items:
        made[item.name] = action = make_action(window, item)
        action.setCheckable(True)
        action.setChecked(item.name == now)
        group.addAction(action)
        menu.addAction(action)
    return made


def make_action(window: "Window", item: Item) -> QAction:
    action = QAction(item.title, window)
    action.setShortcut(QKeySequence(item.keys))
    action.setCheckable(item.checkable)
    action.triggered.connect(lambda *_: item.run())
    window.addAction(action)
    return action
