"""The built-in text: real documents that every installation of moeviz brings along, in four domains.

Sources are the standard library and the packages that moeviz depends on. Nothing is downloaded or imported.
Where two domains draw on the standard library they read different files, so no text is in both.
"""

import importlib.util
import inspect
import re
import sysconfig
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from zlib import crc32

from moeviz.domain.messages import Report, UserError, unreported

DOMAIN_CHARS = 1_000_000  # of each domain: enough for a model this small, and read within a fraction of a second
DOCUMENT_CHARS = 32_000  # of each document: so that no single one fills its domain, or the held-out part
MIN_CHARS = 100_000
LEFT_OUT = {"site-packages", "test", "tests", "__pycache__", "encodings", "idlelib", "lib2to3", "pydoc_data"}
PROBE = """def mean(xs):
    return sum(xs) / len(xs)
The licence lets you share this work.
>>> integrate(x**2, x)
x**3/3
{"name": "expert", "load": [0.25, 0.5]}
"""

# the docstring of a function or class; without quotes and backslashes it is its own value
_DOCSTRING = re.compile(r':\n +r?"""([^"\\]{200,}?)"""')
# a line typed at the prompt, with what follows it up to an empty line or the end of the docstring
_EXAMPLE = re.compile(r'^ *>>> .*\n(?:(?! *$)(?! *""")(?!.*\'\'\').*\n)*', re.MULTILINE)


def documents(report: Report = unreported) -> dict[str, list[str]]:
    """The documents of each domain, in an order that is shuffled but always the same. `report` is called before each
    document is taken: it may end the reading."""
    domains = {
        "python": _some(_texts(_standard_library("**/*.py")), report),
        "prose": _some(_prose(), report),
        "math": _some(map(_examples, _texts(_files("sympy", "**/*.py"))), report),
        "data": _some(_texts(_data_files()), report),
    }
    for name, texts in domains.items():
        if sum(map(len, texts)) < MIN_CHARS:
            raise UserError(
                f"This Python installation lacks the files that the built-in text is made of (too little for {name!r});"
                " set data.path to a text of your own."
            )
    return domains


def _some(texts: Iterable[str], report: Report) -> list[str]:
    """The start of each document, without the very short ones, until the domain is full."""
    chosen: list[str] = []
    size = 0
    for text in texts:
        report(0, 0)
        if len(text) > DOCUMENT_CHARS:
            text = text[: text.rfind("\n", 0, DOCUMENT_CHARS) + 1] or text[:DOCUMENT_CHARS]
        if len(text) >= 100:
            chosen.append(text)
            size += len(text)
        if size >= DOMAIN_CHARS:
            break
    return chosen


def _prose() -> Iterator[str]:
    """The language reference's topics, then licences, then docstrings of the standard library's single modules."""
    topics = _topics()
    yield from (topics[name] for name in sorted(topics, key=_shuffled))
    yield from _licences()
    for source in _texts(_standard_library("*.py")):
        yield "\n\n".join(inspect.cleandoc(text) for text in _DOCSTRING.findall(source) if ">>>" not in text) + "\n"


def _topics() -> dict[str, str]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions of Python leave it out; the other prose remains
        return {}
    return dict(topics)


def _licences() -> Iterator[str]:
    """Each licence once: copies that differ in their copyright lines and spacing only are the same."""
    seen: set[str] = set()
    roots = packages("numpy")
    files = [path for root in roots for path in root.parent.glob("*.dist-info/**/*LICEN*") if path.is_file()]
    for text in _texts(sorted(files, key=lambda path: _shuffled(path.name + path.parts[-2]))):
        body = " ".join(line for line in text.splitlines() if "copyright" not in line.lower())
        key = "".join(body.lower().split())[:400]
        if key not in seen:
            seen.add(key)
            yield text


def _data_files() -> list[Path]:
    """JSON, XML, CSV, YAML and INI of moeviz's dependencies; none of them brings a file of TOML."""
    files = [
        *_files("PySide6", "Qt/metatypes/*.json"),
        *_files("PySide6", "metatypes/*.json"),  # where it lies on Windows
        *_files("PySide6", "typesystems/*.xml"),
        *_files("pyqtgraph", "colors/maps/*[!s].csv"),  # "…s" are other maps, shifted
        *_files("torchgen", "packaged/**/*.yaml"),
    ]
    return [*_ini_files(), *sorted(files, key=lambda path: _shuffled(path.name))]


def _ini_files() -> list[Path]:
    """A few thousand characters, so they come first: none is left out because its domain is full."""
    described = [
        path
        for root in packages("numpy")
        for name in ("numpy", "pyside6_essentials", "setuptools", "torch")
        for path in root.parent.glob(f"{name}-*.dist-info/entry_points.txt")
    ]
    return [*_files("numpy", "_core/lib/npy-pkg-config/*.ini"), *described]


def _examples(source: str) -> str:
    """What the docstrings of a module show of a session at the prompt: the lines typed and the answers."""
    blocks = _EXAMPLE.findall(source) if ">>>" in source else []
    return "".join(map(textwrap.dedent, blocks))


def _standard_library(pattern: str) -> list[Path]:
    """The files of its packages, or as "*.py" its single modules. What is installed beside them is not walked through:
    that takes ten times as long as all else."""
    root = Path(sysconfig.get_path("stdlib"))
    folders = [path for path in root.iterdir() if path.is_dir() and path.name not in LEFT_OUT]
    found = (path for folder in ([root] if pattern == "*.py" else folders) for path in folder.glob(pattern))
    files = [path for path in found if not LEFT_OUT.intersection(path.relative_to(root).parts)]
    return sorted(files, key=lambda path: _shuffled(path.relative_to(root).as_posix()))


def _files(package: str, pattern: str) -> list[Path]:
    """Files of an installed package, its tests left out, in a shuffled order that is the same everywhere."""
    found = [(root, path) for root in packages(package) for path in root.glob(pattern)]
    found = [(root, path) for root, path in found if not LEFT_OUT.intersection(path.relative_to(root).parts)]
    found.sort(key=lambda pair: _shuffled(pair[1].relative_to(pair[0]).as_posix()))
    return [path for _, path in found]


def packages(name: str) -> list[Path]:
    """Where an installed package lies; it is not imported."""
    spec = importlib.util.find_spec(name)  # finds a top-level package without importing it
    return [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []


def _texts(files: Iterable[Path]) -> Iterator[str]:
    for path in files:
        try:
            yield path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue  # one document less; too few of them is an error of its own


def _shuffled(name: str) -> tuple[int, str]:
    return crc32(name.encode()), name
