"""The kinds of files and folders that moeviz opens."""

from pathlib import Path
from typing import Literal

Kind = Literal["model", "trace", "settings", "text"]
SETTINGS_BYTES = 100_000  # a larger JSON file is somebody's text


def kind_of(path: str) -> Kind:
    """What a file or folder is, by its name and what lies in it; whether it can be used is found when it is read."""
    place = Path(path)
    if place.suffix == ".safetensors" or (place / "model.safetensors").is_file():
        return "model"
    if place.suffix == ".zarr" or (place / "zarr.json").is_file():
        return "trace"
    if place.suffix == ".json" and place.is_file() and place.stat().st_size < SETTINGS_BYTES:
        return "settings"
    return "text"
