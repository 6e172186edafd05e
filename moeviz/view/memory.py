"""What is remembered from one start to the next: a small file in the user's configuration folder."""

from pathlib import Path

import platformdirs
from PySide6.QtCore import QSettings


def memory(path: Path | None = None) -> QSettings:
    """The window's memory. A broken file is set aside, so that a person can look at it, and a new one begun."""
    file = path or Path(platformdirs.user_config_dir("moeviz")) / "window.ini"
    found = QSettings(str(file), QSettings.Format.IniFormat)
    found.sync()
    if found.status() != QSettings.Status.NoError and file.exists():
        file.replace(file.with_suffix(".broken"))
        found = QSettings(str(file), QSettings.Format.IniFormat)
    return found
