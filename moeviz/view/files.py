"""Whatever of the window reads or writes a file: the dialogs, what is dropped, what the command line names."""

import codecs
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from platformdirs import user_state_dir
from PySide6.QtGui import QGuiApplication
from PySide6.QtWidgets import QFileDialog, QWidget

from moeviz.domain import points
from moeviz.domain.history import History
from moeviz.domain.kinds import kind_of
from moeviz.domain.messages import OpenModel, Report, SaveModel, UserError
from moeviz.domain.places import in_words, join, split
from moeviz.domain.points import Points
from moeviz.domain.routing import Ints
from moeviz.domain.settings import Settings, SettingsError
from moeviz.domain.writing import write_whole
from moeviz.view.export import painted, picture_size
from moeviz.view.export_dialog import ExportDialog
from moeviz.view.memory import last_folder, remember_folder
from moeviz.view.theme import THEMES

if TYPE_CHECKING:
    from moeviz.view.window import Window

HEAD_BYTES = 8192
WIDE_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
BUSY = "Another file is still being read or written; try again in a moment."


def refused(path: str) -> str:
    """Why a model, a trace or a text cannot be opened, as far as its head tells; empty if it may be: whoever would give
    up a run for it is to know before. Whether it can be used in full is found when it is read."""
    place, kind = Path(path), kind_of(path)
    try:
        if kind == "model":
            _check_safetensors(place / "model.safetensors" if place.is_dir() else place)
        elif kind == "text":
            if place.is_file() and _binary(place):
                known = "models as .safetensors, traces as .zarr and texts in UTF-8"
                return f"{path} is not a text file; moeviz opens {known}."
        elif not isinstance(json.loads((place / "zarr.json").read_bytes())["attributes"]["format"], str):
            raise ValueError
    except OSError as error:
        return f"The {kind} {path} cannot be read: {error.strerror or error}; choose another."
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{path} is damaged, or no {kind}; choose another."
    return ""


def _binary(path: Path) -> bool:
    """A pickle, an archive as torch saves models, or anything with zeros that is not UTF-16 or UTF-32."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    return head.startswith((b"PK\x03\x04", b"\x80")) or (b"\0" in head and not head.startswith(WIDE_MARKS))


def _check_safetensors(path: Path) -> None:
    """ValueError if the head does not fit the file: its length (8 bytes), the head itself (JSON), then the numbers."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        room = path.stat().st_size - 8 - size
        if room < 0:
            raise ValueError
        head = json.loads(file.read(size))
    if max((part["data_offsets"][1] for name, part in head.items() if name != "__metadata__"), default=0) != room:
        raise ValueError


@dataclass(frozen=True, slots=True)
class Opening:
    """What to do with several paths: one trace or model, or else settings and texts; `left_out`: what is not used."""

    shown: str = ""
    settings: str = ""
    text: str = ""
    left_out: str = ""


def sort_paths(paths: Iterable[str]) -> Opening:
    """The first trace or model is shown; without one, the first settings file and all texts together are used."""
    kinds = [(kind_of(path), path) for path in paths]
    shown = next((path for kind, path in kinds if kind in ("model", "trace")), "")
    settings = "" if shown else next((path for kind, path in kinds if kind == "settings"), "")
    texts = [] if shown else [path for kind, path in kinds if kind == "text"]
    text = join(texts)
    rest = [Path(path).name for _, path in kinds if path not in (shown, settings, *texts)]
    if not rest:
        return Opening(shown, settings, text)
    why = f"one trace or model is shown, here {Path(shown).name}" if shown else "one settings file is used"
    return Opening(shown, settings, text, f"Left out: {', '.join(rest)}; {why}.")


class Files:
    """The files of one window."""

    def __init__(self, window: "Window") -> None:
        self.window = window
        self.memory = window.memory
        self._writing: dict[object, tuple[str, Callable[[], object]]] = {}  # by errand: a file, and what follows then

    # ---- dialogs
    def _ask_open(self, title: str, filters: str) -> str:
        return self._found(QFileDialog.getOpenFileName(self.window, title, self._folder(), filters)[0])

    def _ask_folder(self, title: str) -> str:
        return self._found(QFileDialog.getExistingDirectory(self.window, title, self._folder()))

    def _ask_save(self, title: str, name: str, filters: str) -> str:
        start = str(last_folder(self.memory) / name)
        return QFileDialog.getSaveFileName(self.window, title, start, filters)[0]

    def _folder(self) -> str:
        return str(last_folder(self.memory))

    def _found(self, path: str) -> str:
        """The next dialog begins there, if it can be read."""
        if path and os.access(path, os.R_OK):
            remember_folder(self.memory, path)
        return path

    def wrote(self, path: str) -> None:
        """A file has been written: the next dialog begins there."""
        remember_folder(self.memory, path)

    def errand_ended(self, errand: object, done: bool) -> None:
        if errand in self._writing:
            path, written = self._writing.pop(errand)
            if done:
                self.wrote(path)
                written()

    # ---- opening
    def open_paths(self, paths: list[str]) -> None:
        """Whatever a person drops on the window."""
        opening = sort_paths(paths)
        if opening.left_out:
            self.window.tell(opening.left_out)
        if opening.shown:
            (self.open_trace if kind_of(opening.shown) == "trace" else self.open_model)(opening.shown)
        if opening.settings:
            self.use_settings(lambda: Settings.read(opening.settings))
        if opening.text:
            self.open_text(opening.text)

    def find_model(self) -> str:
        return self._ask_open("Open model", "Models (*.safetensors)")

    def find_trace(self) -> str:
        return self._ask_folder("Open a trace (a .zarr folder)")

    def ask_model(self) -> None:
        if path := self.find_model():
            self.open_model(path)

    def open_model(self, path: str) -> None:
        self._if_not_lost(path, lambda: self._open_model(path))

    def _open_model(self, path: str) -> None:
        window, title = self.window, f"Opening {Path(path).name}"
        if window.has_model:
            window.runner.forget_next()  # what was asked for last is what is wanted
            window.send(OpenModel(path), title)
        else:
            window.start(window.make_session(window.settings, window.device, path), title)

    def ask_trace(self) -> None:
        if path := self.find_trace():
            self.open_trace(path)

    def open_trace(self, path: str) -> None:
        """Show a recording in place of the model, once it could be read."""
        title = f"Opening {Path(path).name}"
        self._if_not_lost(path, lambda: self.window.start(self.window.make_trace(path), title))

    def _if_not_lost(self, path: str, do: Callable[[], object]) -> None:
        """Nobody is asked to give up a run for a file that cannot be opened."""
        if self.window.stakes.steps and (why := refused(path)):
            self.window.tell(why)
        else:
            self.window.stakes.if_not_lost(f"Opening {Path(path).name}", "Open", do)

    def ask_text_files(self) -> None:
        """One or several, each a domain."""
        paths, _ = QFileDialog.getOpenFileNames(self.window, "Open own text", self._folder(), "All files (*)")
        if paths:
            self._found(paths[0])
            self.open_text(join(paths))

    def ask_text_folder(self) -> None:
        if path := self._ask_folder("Open a folder of own text"):
            self.open_text(path)

    def open_text(self, path: str) -> None:
        """Train on it, or on several that are joined; a recording makes way for a new model."""
        window = self.window
        if why := next(filter(None, map(refused, split(path))), ""):
            window.tell(why)
            return
        if window.has_model:
            window.knobs.change({"data.path": path})
        else:
            settings = window.settings.with_values({"data.path": path})
            window.start(window.make_session(settings, window.device, None), f"Reading {in_words(path)}")

    def use_points(self, xy: Points, label: Ints) -> None:
        """Train on what was painted, from a file of its own, so that the run can be repeated."""
        folder = Path(user_state_dir("moeviz")) / "points"
        try:
            path = points.write(folder, xy, label)
        except OSError as error:
            self.window.tell(f"The points cannot be kept in {folder}: {error.strerror or error}; make room there.")
        else:
            self.window.knobs.change({"data.path": str(path)})
            press = "" if self.window.runner.training else " Press Space to train on them."
            said = f"The model's data are now the {len(xy)} points that you painted; Undo brings the earlier ones back."
            self.window.tell(said + press, passing=True)

    # ---- saving
    def save_model(self) -> bool:
        """Ask where; False if nowhere."""
        path = self._ask_save("Save model", "model.safetensors", "Models (*.safetensors)")
        if path:
            self.window.send(SaveModel(path), f"Saving {Path(path).name}")
        return bool(path)

    def save_run(self) -> None:
        if path := self._ask_save("Save run as trace", "trace.zarr", "Traces (*.zarr)"):
            self.save_run_to(path)

    def save_run_to(self, path: str) -> None:
        """Write the kept history as a trace, on a thread, from a copy that training does not touch."""
        window, history = self.window, self.window.history
        film, marks = tuple(history.snapshots), tuple(history.marks)
        if not film:
            window.tell("There is nothing to save yet: open a model or a trace first.")
            return
        steps, settings = History(), window.settings
        steps.begin_with(history)
        kept, seen = len(history.steps), history.seen
        less = f" The run has {seen:,} steps; of a long one the window keeps {kept:,}, evenly." if kept < seen else ""

        def save(report: Report) -> str:
            return window.save_trace(path, settings, steps.logs(), film, marks, report) + less

        self._errand(save, "Saving", path, window.stakes.trace_of_now())

    def _errand(self, do: Callable[[Report], str], verb: str, path: str, written: Callable[[], object] = bool) -> None:
        errand = self.window.runner.errand(do, f"{verb} {Path(path).name}")
        if errand is None:
            self.window.tell(BUSY)
        else:
            self._writing[errand] = path, written
        self.window.watch()

    # ---- settings
    def ask_settings(self) -> None:
        if path := self._ask_open("Open settings", "Settings (*.json)"):
            self.use_settings(lambda: Settings.read(path))

    def save_settings(self) -> None:
        if path := self._ask_save("Save settings", "settings.json", "Settings (*.json)"):
            try:
                write_whole(Path(path), self.window.settings.to_json())
            except OSError as error:
                self.window.tell(
                    f"Cannot write the settings to {path}: {error.strerror or error}; choose another folder."
                )
            else:
                self.wrote(path)
                self.window.tell(f"Saved to {path}.", passing=True)

    def copy_settings(self) -> None:
        QGuiApplication.clipboard().setText(self.window.settings.to_json())

    def paste_settings(self) -> None:
        self.use_settings(lambda: Settings.from_json(QGuiApplication.clipboard().text()))

    def use_settings(self, read: Callable[[], Settings]) -> None:
        try:
            wanted = read().flat()
        except SettingsError as error:
            self.window.tell(str(error))
            return
        self.window.knobs.keep()  # what an open question is about is not a part of these settings
        have = self.window.settings.flat()
        changed = {key: value for key, value in wanted.items() if value != have[key]}
        if changed:
            self.window.knobs.change(changed)

    # ---- pictures
    def export(self, name: str, ending: str) -> None:
        """Ask how, then write one panel or the dashboard."""
        try:
            size = picture_size(self._target(name))
        except UserError as error:
            self.window.tell(str(error))
            return
        dialog = ExportDialog(name, ending, size, self.memory, self.window)
        if dialog.exec():
            self.export_to(name, dialog.path, scale=dialog.scale, light=dialog.light)
        dialog.deleteLater()

    def export_to(self, name: str, path: str, *, scale: float = 2.0, light: bool = False) -> None:
        """Paint now and write on a thread, for many pixels take their time; the ending says what kind."""
        if self.window.runner.errand_work:
            self.window.tell(BUSY)
            return
        try:
            write = painted(self._target(name), path, theme=THEMES["light"] if light else None, scale=scale)
        except UserError as error:
            self.window.tell(str(error))
            return

        def do(_: Report) -> str:
            write()
            return f"Exported to {path}."

        self._errand(do, "Exporting", path)

    def _target(self, name: str) -> QWidget:
        return self.window if name == "dashboard" else self.window.panels[name]
