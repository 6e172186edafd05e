"""Rows of a tag, a source and a target, in characters: "de Open file→Datei öffnen"."""

from collections import Counter
from collections.abc import Iterable, Sequence
from zlib import crc32

from moeviz.domain.messages import UserError
from moeviz.moe.tasks.rows import UNKNOWN, Row

ARROW, END = "→", "\n"


def row(tag: str, source: str, target: str, domain: str) -> Row:
    """The tag is one token; the target, and that it ends, are to be predicted."""
    given = [tag + " ", *source, ARROW]
    return Row((*given, *target, END), len(given), domain)


def shuffled(row: Row) -> tuple[int, str]:
    """The key of an order without order that is always the same."""
    text = "".join(row.tokens)
    return crc32(text.encode()), text


def vocabulary(tags: Sequence[str], rows: Iterable[Row], least: int = 4) -> tuple[str, ...]:
    """Unknown, the tags, the separators, then the characters that come at least so often, most frequent first."""
    fixed = (UNKNOWN, *(tag + " " for tag in tags), ARROW, END)
    counts = Counter(token for row in rows for token in row.tokens)
    others = sorted((t for t, count in counts.items() if count >= least and t not in fixed), key=lambda t: -counts[t])
    return (*fixed, *others)


def probe_rows(text: str, tags: Sequence[str], untagged: Sequence[str], domain_of: dict[str, str]) -> list[Row]:
    """A row for each line "TAG source→target", where the target may be missing; a line without a tag is shown under
    each of the tags `untagged`. Without a target the row ends where it would begin."""
    rows = []
    for line in filter(None, map(str.strip, text.split("\n"))):
        first, _, rest = line.partition(" ")
        under, line = ([first], rest) if first in tags and rest.strip() else (untagged, line)
        source, arrow, target = (part.strip() for part in line.partition(ARROW))
        for tag in under:
            tokens, given, domain = row(tag, source, target, domain_of[tag])
            rows.append(Row(tokens, given, domain) if arrow and target else Row((*tokens[:given], END), given, domain))
    if not rows:
        raise UserError("The probe is empty; type at least one line.")
    return rows
