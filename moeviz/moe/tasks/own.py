"""Text of the user's own: a file, a folder whose files and subfolders are the domains, or several of these, each a
domain."""

import codecs
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from moeviz.domain.messages import Report, UserError, unreported
from moeviz.domain.places import in_words, split

MAX_BYTES = 50_000_000  # of everything that is read
MAX_DOMAINS = 16
MAX_FILES = 5_000  # looked at in one domain
MIN_CHARS = 2_000  # of one domain
MOST_NOTES = 3  # on what is left out: more would fill the window
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
    """Everything usable at the path, or at those that it names, at most MAX_BYTES. UserError if that is nothing, or if
    one is not there. `report` hears of each file."""
    named = split(path)
    try:
        places = [_place(name) for name in named]
        if len(places) > 1:
            different = {os.path.abspath(place): place for place in places}
            return _domains(list(different.values()), "that were named", f"{in_words(path)} hold", report)
        [place] = places
        return _one_file(place) if place.is_file() else _folder(place, report)
    except (OSError, ValueError) as error:
        raise UserError(f"The text {path!r} cannot be read: {_reason(error)}.") from None


def _place(path: str) -> Path:
    place = Path(os.path.expanduser(path))  # the one of Path raises for a user that is not there
    if place.is_file() or place.is_dir():
        return place
    if place.exists():
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
    places = [entry for entry in entries if entry.is_dir() or entry.is_file()]  # no pipe, no device
    places.sort(key=Path.is_file)  # folders first: many small files are not to push them out
    return _domains(places, f"in {path}", f"{path} holds", report)


def _domains(places: Sequence[Path], where: str, subject: str, report: Report) -> Found:
    """Each file and each folder as a domain; `where` they are and the `subject` of it, for what there is to say."""
    found, notes = Found(), list[str]()
    if len(places) > MAX_DOMAINS:
        folders = sum(place.is_dir() for place in places)
        kinds = " and ".join(["files"] * (folders < len(places)) + ["folders"] * (folders > 0))
        found.notes.append(
            f"Each of the {len(places)} {kinds} {where} is a domain; only the first {MAX_DOMAINS} are used."
        )
    places = places[:MAX_DOMAINS]
    seen: set[str] = set()
    files_of = {place: list(_files_below(place)) for place in places}
    done, total = 0, sum(map(len, files_of.values()))
    for name, (place, below) in zip(_names(places), files_of.items(), strict=True):
        texts = _domain(place, _counted(below, done, total, report), MAX_BYTES // len(places), seen, notes)
        done += len(below)
        size = sum(map(len, texts))
        if size >= MIN_CHARS:
            found.domains[name] = texts
        elif texts:
            notes.append(f"{place} is left out: {size} characters are too few, a domain needs {MIN_CHARS:,}.")
        elif not below:
            notes.append(f"{place} is left out: it holds no file.")
    more = len(notes) - MOST_NOTES
    found.notes.extend([*notes[:MOST_NOTES], *([f"The like is true of {more} more."] if more > 0 else [])])
    if not found.domains:
        why = " ".join(found.notes)
        raise UserError(f"{subject} no text that can be used; give text files in UTF-8. {why}".rstrip())
    return found


def _names(places: Sequence[Path]) -> list[str]:
    """What the domains are called: where two would be called alike, by as much of their paths as tells them apart."""
    paths = [Path(os.path.abspath(place)) for place in places]
    names = [path.name if path.is_dir() else path.stem for path in paths]
    length = 1
    while alike := {name for name, count in Counter(names).items() if count > 1}:
        names = [
            str(Path(*path.parts[-length:])) if name in alike else name for path, name in zip(paths, names, strict=True)
        ]
        length += 1
    return names


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
