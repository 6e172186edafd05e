"""The translation task: strings of Qt's own programs with what its translators made of them in six languages.

They are read where the installation has them, from the .qm files of PySide6, and never copied.
"""

import re
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from zlib import crc32

from moeviz.domain.messages import UserError
from moeviz.domain.routing import Ints
from moeviz.moe.tasks import pairs
from moeviz.moe.tasks.builtin import packages
from moeviz.moe.tasks.data import Vocabulary, exact
from moeviz.moe.tasks.qm import Message, read
from moeviz.moe.tasks.rows import Row, RowData, RowParts

LANGUAGES = {"de": "German", "fr": "French", "es": "Spanish", "ru": "Russian", "ja": "Japanese", "zh": "Chinese"}
FILES = {"zh": "zh_CN"}  # where the file's name is not the tag
CATALOGUES = ("qtbase", "qtdeclarative", "designer", "assistant", "linguist", "qt_help")
DOMAINS = {tag: f"English → {name}" for tag, name in LANGUAGES.items()}
LONGEST = 28  # characters of source or target: longer ones are sentences that a model this small cannot learn
HELD_OUT = 10  # one source in so many
MIN_PAIRS = 1_000
PROBE = """de Open File→Datei öffnen
fr Open File→Ouvrir un fichier
es Open File→Abrir archivo
ru Open File→Открыть файл
ja Open File→ファイルを開く
zh Open File→打开文件
"""

# "&" marks the key of a command, "(&O)" where the letter is not in the word; "&&" is an "&" itself
_KEY = re.compile(r"\s*\(&\w\)|&(?!&)")


def load() -> RowData:
    """The strings that this installation has; they are read when they are first needed."""
    return RowData(
        PROBE,
        ("exact_match", "character_accuracy"),
        lambda: split(_catalogues()),
        partial(pairs.vocabulary, tuple(LANGUAGES)),
        partial(pairs.probe_rows, tags=tuple(LANGUAGES), untagged=tuple(LANGUAGES), domain_of=DOMAINS),
        score,
    )


def split(messages: dict[str, list[Message]]) -> RowParts:
    """Training and held-out rows. A source string is in one part in all languages, with all that are nearly the same.

    Of several translations of a string into a language the most frequent one is kept, of equals the first."""
    found = {tag: _pairs(texts) for tag, texts in messages.items()}
    for tag, of_tag in found.items():
        if len(of_tag) < MIN_PAIRS:
            raise UserError(
                f"This installation of PySide6 has too few translations into {LANGUAGES[tag]} ({len(of_tag)}); install "
                "PySide6-Essentials anew, or choose another task."
            )
    train: list[Row] = []
    heldout: list[Row] = []
    for tag, of_tag in found.items():
        for source, target in of_tag.items():
            part = heldout if crc32(same(source).encode()) % HELD_OUT == 0 else train
            part.append(pairs.row(tag, source, target, DOMAINS[tag]))
    return RowParts(*(tuple(sorted(part, key=pairs.shuffled)) for part in (train, heldout)))


def same(source: str) -> str:
    """What near copies have in common: the letters, in small, or all where there are none."""
    return "".join(filter(str.isalpha, source.casefold())) or source


def score(inputs: Ints, ranks: Ints, vocabulary: Vocabulary) -> dict[str, float]:
    """exact_match: share of strings that the model translates, at its first choices, just as the translators did.
    character_accuracy: share of the target's characters, its end among them, that are the first choice after the
    translators' own beginning."""
    counted = ranks[ranks >= 0]
    return {"exact_match": float(exact(ranks).mean()), "character_accuracy": float((counted == 0).mean())}


def clean(text: str) -> str:
    """Without the marks of keys."""
    return _KEY.sub("", text).replace("&&", "&").strip()


def _pairs(messages: Iterable[Message]) -> dict[str, str]:
    counts: dict[str, Counter[str]] = {}
    for message in messages:
        source, target = clean(message.source), clean(message.translations[0] if message.translations else "")
        if _usable(source) and _usable(target) and any(map(str.isalpha, source)):
            counts.setdefault(source, Counter())[target] += 1
    return {source: targets.most_common(1)[0][0] for source, targets in counts.items()}


def _usable(text: str) -> bool:
    """One short line without markup."""
    return 0 < len(text) <= LONGEST and text.isprintable() and "<" not in text and pairs.ARROW not in text


def _catalogues() -> dict[str, list[Message]]:
    roots = [root / place for root in packages("PySide6") for place in ("Qt/translations", "translations")]
    found: dict[str, list[Message]] = {}
    for tag in LANGUAGES:
        names = [f"{catalogue}_{FILES.get(tag, tag)}.qm" for catalogue in CATALOGUES]
        files: list[Path] = [root / name for root in roots for name in names if (root / name).is_file()]
        found[tag] = [message for file in files for message in read(file)]
    return found
