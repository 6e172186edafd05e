"""What is remembered from one start to the next: a small file in the user's configuration folder."""

import os
from pathlib import Path

import platformdirs
from PySide6.QtCore import QSettings


def memory(path: Path | None = None) -> QSettings:
    """The window's memory. A broken file is set aside, so that a person can look at it, and a new one begun."""
    file = path or Path(platformdirs.user_config_dir("moeviz")) / "window.ini"
    found = QSettings(str(file), QSettings.Format.IniFormat)
    found.allKeys()  # reads all of it: sync() would pass over what is broken within a section
    if found.status() != QSettings.Status.NoError and file.exists():
        file.replace(file.with_suffix(".broken"))
        found = QSettings(str(file), QSettings.Format.IniFormat)
    return found


def last_folder(store: QSettings) -> Path:
    """Where a file was last read or written; the home folder if that one cannot be listed any more."""
    folder = Path(str(store.value("folder", "")) or Path.home())
    try:
        with os.scandir(folder) as found:
            next(found, None)
    except OSError:
        return Path.home()
    return folder


def remember_folder(store: QSettings, path: str) -> None:
    """Of a file that was read or written: call it after that has succeeded."""
    store.setValue("folder", str(Path(path).parent))
