"""The text task: characters of real text in several domains, as ids, split into a training and a held-out part."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from moeviz.domain.routing import Ints
from moeviz.moe.tasks import builtin, own

UNKNOWN = "\ufffd"
# fixed, so that a checkpoint trained on one installation fits every other
VOCABULARY = UNKNOWN + "\t\n" + "".join(map(chr, range(32, 127)))
EXTRA_CHARS = 158  # of the user's own text, beyond VOCABULARY: 256 in all
HELD_OUT = 0.1
PROBE_CHARS = 150


@dataclass(frozen=True, eq=False, slots=True)
class TextData:
    """One array of ids (n,) per domain and part. The two parts share no document, and hold each document once.

    vocabulary  every character the model knows, at its id; id 0 stands for all others
    probe       the sample that the token panels show until the user writes another
    notes       sentences on files that were left out
    """

    vocabulary: str
    domains: tuple[str, ...]
    train: tuple[Ints, ...]
    heldout: tuple[Ints, ...]
    probe: str
    notes: tuple[str, ...] = ()

    def encode(self, text: str) -> Ints:
        return encode(text, self.vocabulary)

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(self.vocabulary[i] for i in ids)

    def with_vocabulary(self, vocabulary: str) -> "TextData":
        """The same text for a model that knows other characters; what either lacks is unknown."""
        new_id_of = encode(self.vocabulary, vocabulary)
        return replace(
            self,
            vocabulary=vocabulary,
            train=tuple(new_id_of[ids] for ids in self.train),
            heldout=tuple(new_id_of[ids] for ids in self.heldout),
        )


def encode(text: str, vocabulary: str) -> Ints:
    """Ids (n,) of a text; characters outside the vocabulary become 0."""
    # lone surrogates can come from a shell's arguments
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    known = np.frombuffer(vocabulary.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    id_of: Ints = np.zeros(0x110000, dtype=np.int64)
    id_of[known] = np.arange(len(known))
    ids: Ints = id_of[codes]
    return ids


def load_text(path: str = "") -> TextData:
    """The built-in text, or the user's own file or folder. UserError if there is nothing to train on."""
    if path:
        found = own.documents(path)
        domains, notes = found.domains, tuple(found.notes)
    else:
        domains, notes = builtin.documents(), ()
    parts = [_split(texts) for texts in _distinct(domains)]
    train, heldout = [part[0] for part in parts], [part[1] for part in parts]
    vocabulary = _vocabulary(train) if path else VOCABULARY
    return TextData(
        vocabulary,
        tuple(domains),
        tuple(encode(text, vocabulary) for text in train),
        tuple(encode(text, vocabulary) for text in heldout),
        _probe(heldout) if path else builtin.PROBE,
        notes,
    )


def _distinct(domains: dict[str, list[str]]) -> list[list[str]]:
    """Each document once over all domains."""
    seen: set[str] = set()
    return [[text for text in texts if not (text in seen or seen.add(text))] for texts in domains.values()]  # type: ignore[func-returns-value]


def _split(texts: list[str]) -> tuple[str, str]:
    """Training and held-out part of one domain: the last documents are held out, whole; of a few, the last stretch."""
    size = sum(map(len, texts))
    kept, room = len(texts), size * HELD_OUT
    while kept and room > 0:
        kept -= 1
        room -= len(texts[kept])
    if -room <= size * HELD_OUT:
        return "".join(texts[:kept]), "".join(texts[kept:])
    whole = "".join(texts)
    cut = int(size * (1 - HELD_OUT))
    return whole[:cut], whole[cut:]


def _vocabulary(texts: list[str]) -> str:
    counts = Counter[str]()
    for text in texts:
        counts.update(text)
    others = sorted((char for char in counts if char not in VOCABULARY), key=lambda char: (-counts[char], char))
    return VOCABULARY + "".join(others[:EXTRA_CHARS])


def _probe(heldout: list[str]) -> str:
    """The first held-out characters of up to four domains."""
    shown = heldout[:4]
    return "\n".join(text.strip()[: PROBE_CHARS // len(shown)] for text in shown)
