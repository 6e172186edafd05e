"""The search task: find a character of Unicode by some words of its name, in the context of the user's script.

The names are those of Python's unicodedata. What users would type, and that they write in a script, is simulated: the
words of a name without its script, some left out, some cut short, not always in order. So "ka letter" may mean a letter
of twenty scripts, and one only where the script is known. The model answers by writing the whole name.
"""

import random
import unicodedata
from collections.abc import Iterable
from functools import partial
from zlib import crc32

from moeviz.domain.messages import UserError
from moeviz.domain.routing import Ints
from moeviz.moe.tasks import pairs
from moeviz.moe.tasks.data import Vocabulary, exact
from moeviz.moe.tasks.rows import Row, RowData, RowParts

# fixed, so that a checkpoint fits every Python; the first word of a name
SCRIPTS = (
    *("arabic", "armenian", "balinese", "bengali", "coptic", "cyrillic", "devanagari", "ethiopic", "georgian"),
    *("greek", "gujarati", "hebrew", "javanese", "kannada", "khmer", "latin", "malayalam", "myanmar", "sinhala"),
    *("tamil", "telugu", "thai", "tibetan"),
)
ANY = "any"  # the context is not known
LAST = 0x20000  # beyond lie ideographs and characters without names of their own
LONGEST = 44  # characters of a name
QUERIES = 4  # of each name
HELD_OUT = 10  # one name in so many
FILLING = frozenset({"letter", "sign", "with", "and", "symbol", "vowel"})
MIN_NAMES = 1_000
PROBE = """any letter ka→bengali letter ka
bengali letter ka→bengali letter ka
thai kho khai→thai character kho khai
greek alpha small→greek small letter alpha
cyrillic small zhe→cyrillic small letter zhe
arabic beh→arabic letter beh
"""


def load() -> RowData:
    """The names that this Python has; they are read when they are first needed."""
    tags = (ANY, *SCRIPTS)
    return RowData(
        PROBE,
        ("hit_at_1", "hit_at_1_no_context"),
        lambda: split(names()),
        partial(pairs.vocabulary, tags),
        partial(pairs.probe_rows, tags=tags, untagged=(ANY,), domain_of={tag: tag for tag in tags}),
        score,
    )


def names() -> list[str]:
    """The names of the characters of SCRIPTS, in small letters."""
    found = (unicodedata.name(chr(code), "").lower() for code in range(LAST))
    return [name for name in found if " " in name and name.partition(" ")[0] in SCRIPTS and len(name) <= LONGEST]


def split(names: Iterable[str]) -> RowParts:
    """Training and held-out rows; all queries for a character are in one part. Each query comes twice: with the script
    and without. UserError if there are too few names."""
    train: list[Row] = []
    heldout: list[Row] = []
    count = 0
    for name in names:
        count += 1
        number = crc32(name.encode())
        part = heldout if number % HELD_OUT == 0 else train
        script, _, rest = name.partition(" ")
        rng = random.Random(number)
        for query in dict.fromkeys(simulated(rest, rng) for _ in range(QUERIES)):
            part += [pairs.row(tag, query, name, script) for tag in (script, ANY)]
    if count < MIN_NAMES:
        raise UserError(f"This Python knows {count} characters' names only; choose another task.")
    return RowParts(*(tuple(sorted(part, key=pairs.shuffled)) for part in (train, heldout)))


def simulated(words: str, rng: random.Random) -> str:
    """What a user may type who looks for these words: half of the filling and a tenth of the other words are left out,
    a quarter of the long ones is cut to its first letters, and in three of ten queries the order is another."""
    every = words.split()
    telling = [word for word in every if word not in FILLING] or every
    sure = rng.choice(telling)
    typed = [w for w in every if w == sure or rng.random() < (0.5 if w in FILLING else 0.9)]
    typed = [w[: rng.randint(3, len(w) - 1)] if len(w) > 4 and rng.random() < 0.25 else w for w in typed]
    if rng.random() < 0.3:
        rng.shuffle(typed)
    return " ".join(typed)


def score(inputs: Ints, ranks: Ints, vocabulary: Vocabulary) -> dict[str, float]:
    """hit_at_1: share of queries in the context of a script for which the model, at its first choices, writes the name
    of just the character that was looked for. hit_at_1_no_context: the same for the same queries without the script.
    """
    right, unknown = exact(ranks), inputs[:, 0] == vocabulary.index(ANY + " ")
    return {"hit_at_1": _mean(right[~unknown]), "hit_at_1_no_context": _mean(right[unknown])}


def _mean(values: Ints) -> float:
    return float(values.mean()) if values.size else float("nan")
