"""Text of the user's own: a file, or a folder whose subfolders, or else files, are the domains."""

import codecs
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from moeviz.domain.messages import Report, UserError, unreported

MAX_BYTES = 50_000_000  # of everything that is read
MAX_DOMAINS = 16
MAX_FILES = 5_000  # looked at in one domain
MIN_CHARS = 2_000  # of one domain
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark begins alike
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class UnusableError(Exception):
    """A file that is no text; the message says why, as in "is empty"."""


@dataclass(frozen=True, slots=True)
class Found:
    """Documents by domain, and sentences on what was left out."""

    domains: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def documents(path: str, report: Report = unreported) -> Found:
    """Everything usable at the path, at most MAX_BYTES. UserError if that is nothing. `report` hears of each file."""
    place = Path(os.path.expanduser(path))  # the one of Path raises for a user that is not there
    try:
        if place.is_file():
            return _one_file(place)
        if place.is_dir():
            return _folder(place, report)
        exists = place.exists()
    except (OSError, ValueError) as error:
        raise UserError(f"The text {path!r} cannot be read: {_reason(error)}.") from None
    if exists:
        raise UserError(f"{path} is neither a file nor a folder; give a text file or a folder of text files.")
    raise UserError(f"There is no file or folder {path}; check data.path.")


def _one_file(path: Path) -> Found:
    found = Found()
    try:
        text, cut = read_text(path, MAX_BYTES)
    except UnusableError as error:
        raise UserError(f"{path} {error}; give a text file in UTF-8, or in UTF-16 with a byte order mark.") from None
    if len(text) < MIN_CHARS:
        raise UserError(f"{path} holds {len(text)} characters; training needs at least {MIN_CHARS:,}.")
    if cut:
        found.notes.append(f"Only the first {MAX_BYTES // 10**6} MB of {path} are used.")
    found.domains[path.stem or path.name] = [text]
    return found


def _folder(path: Path, report: Report) -> Found:
    entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    folders = [entry for entry in entries if entry.is_dir()]
    files = [entry for entry in entries if entry.is_file()]
    places, kind = (folders, "folders") if folders else (files, "files")
    found = Found()
    if folders and files:
        found.notes.append(f"Files beside the folders in {path} are left out ({len(files)}): each folder is a domain.")
    if len(places) > MAX_DOMAINS:
        found.notes.append(
            f"Each of the {len(places)} {kind} in {path} is a domain; only the first {MAX_DOMAINS} are used."
        )
    places = places[:MAX_DOMAINS]
    seen: set[str] = set()
    files_of = {place: list(_files_below(place)) for place in places}
    done, total = 0, sum(map(len, files_of.values()))
    for place, below in files_of.items():
        texts = _domain(place, _counted(below, done, total, report), MAX_BYTES // len(places), seen, found.notes)
        done += len(below)
        size = sum(map(len, texts))
        if size >= MIN_CHARS:
            name = place.name if folders or place.stem in found.domains else place.stem
            found.domains[name] = texts
        elif texts:
            found.notes.append(f"{place} is left out: {size} characters are too few, a domain needs {MIN_CHARS:,}.")
    if not found.domains:
        why = " ".join(found.notes[:3])
        raise UserError(f"{path} holds no text that can be used; put UTF-8 text files there. {why}".rstrip())
    return found


def _counted(files: list[Path], done: int, total: int, report: Report) -> Iterator[Path]:
    for number, file in enumerate(files):
        report(done + number, total)
        yield file


def _domain(place: Path, files: Iterable[Path], room: int, seen: set[str], notes: list[str]) -> list[str]:
    """The distinct texts of a file, or of all files below a folder, within `room` bytes."""
    texts: list[str] = []
    left_out: list[str] = []
    cut = False
    for file in files:
        if room <= 0:
            cut = True
            break
        try:
            text, partly = read_text(file, room)
        except (UnusableError, OSError) as error:
            left_out.append(f"{file} {error if isinstance(error, UnusableError) else _reason(error)}")
            continue
        cut |= partly
        room -= file.stat().st_size
        if text in seen:
            left_out.append(f"{file} is a copy of another file")
            continue
        seen.add(text)
        texts.append(text)
    if left_out:
        more = f", and {len(left_out) - 1} more files" if len(left_out) > 1 else ""
        notes.append(f"{left_out[0]}, so it is left out{more}.")
    if cut:
        notes.append(f"Only a part of {place} is used: {MAX_BYTES // 10**6} MB in all is the most that is read.")
    return texts


def _files_below(place: Path) -> Iterator[Path]:
    if place.is_file():
        yield place
        return
    looked_at = 0
    for folder, folders, names in os.walk(place):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(folder, name)
            if name.startswith(".") or not path.is_file():  # a pipe or a device could be read for ever
                continue
            yield path
            looked_at += 1
            if looked_at >= MAX_FILES:
                return


def read_text(path: Path, limit: int = MAX_BYTES) -> tuple[str, bool]:
    """The text of a file, line ends as \\n, and whether it was cut at `limit` bytes."""
    with path.open("rb") as file:
        raw = file.read(limit)
        cut = bool(file.read(1))
    encoding = next((name for mark, name in BYTE_ORDER_MARKS if raw.startswith(mark)), "utf-8")
    if encoding in ("utf-8", "utf-8-sig") and b"\0" in raw:
        raise UnusableError("is not a text file")
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        text = decoder.decode(raw, final=not cut)  # a character at the cut is dropped
    except UnicodeDecodeError as error:
        raise UnusableError(f"is not valid {encoding.removesuffix('-sig').upper()} (byte {error.start})") from None
    if not text.strip():
        raise UnusableError("is empty")
    return text.replace("\r\n", "\n").replace("\r", "\n"), cut


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"cannot be opened ({text})"
