"""data.path as one string: a file or folder, or several that os.pathsep parts, as in PATH."""

import os
from collections.abc import Iterable
from pathlib import Path


def join(places: Iterable[str]) -> str:
    return os.pathsep.join(places)


def split(path: str) -> list[str]:
    """What a path names, at least one: the whole of it if that exists, else its parts. A part that is not there may be
    the beginning of a name that holds the separator."""
    if os.pathsep not in path or _exists(path):
        return [path]
    found, rest = list[str](), path.split(os.pathsep)
    while rest:
        size = next((n for n in range(1, len(rest) + 1) if _exists(join(rest[:n]))), 1)
        found.append(join(rest[:size]))
        rest = rest[size:]
    return [place for place in found if place] or [path]


def in_words(path: str) -> str:
    """The name, or as in "notes.txt and 2 others"; empty for the empty path."""
    first, *others = split(path)
    name = Path(first).name
    return f"{name} and {len(others)} other{'s' if len(others) > 1 else ''}" if others else name


def _exists(path: str) -> bool:
    return os.path.exists(os.path.expanduser(path))
