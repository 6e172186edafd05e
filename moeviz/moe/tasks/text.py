"""The text task: characters of real text in several domains, as ids, split into a training and a held-out part."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from moeviz.domain.messages import Report, UserError, unreported
from moeviz.domain.routing import Ints
from moeviz.moe.tasks import builtin, own
from moeviz.moe.tasks.data import PADDING, Probe, Rows, Vocabulary

if TYPE_CHECKING:
    from moeviz.moe.batches import Batches

UNKNOWN = "\ufffd"
# fixed, so that a checkpoint trained on one installation fits every other
VOCABULARY = UNKNOWN + "\t\n" + "".join(map(chr, range(32, 127)))
EXTRA_CHARS = 158  # of the user's own text, beyond VOCABULARY: 256 in all
HELD_OUT = 0.1
PROBE_CHARS = 150


class Parts(NamedTuple):
    """The text as ids, one array (n,) per domain and part. The two parts share no document, and hold each once."""

    domains: tuple[str, ...]
    train: tuple[Ints, ...]
    heldout: tuple[Ints, ...]


@dataclass(frozen=True, eq=False)
class TextData:
    """Text as the data of a task (tasks/data.py): a vocabulary, which is all that showing a model needs, and a text,
    which is read when training first needs it.

    vocabulary  every character the model knows, at its id; id 0 stands for all others
    probe       the sample that the token panels show until the user writes another
    read        gives the text; raises UserError if there is nothing to train on
    notes       sentences on files that were left out
    """

    vocabulary: str
    probe: str
    read: Callable[[], Parts]
    notes: tuple[str, ...] = ()
    padded: bool = False
    measures: tuple[str, ...] = ()

    @cached_property
    def parts(self) -> Parts:
        return self.read()

    @property
    def domains(self) -> tuple[str, ...]:
        return self.parts.domains

    @property
    def train(self) -> tuple[Ints, ...]:
        return self.parts.train

    @property
    def heldout(self) -> tuple[Ints, ...]:
        return self.parts.heldout

    def encode(self, text: str) -> Ints:
        return encode(text, self.vocabulary)

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(self.vocabulary[i] for i in ids)

    def with_vocabulary(self, vocabulary: Vocabulary) -> "TextData":
        """The same text for a model that knows other characters; what either lacks is unknown."""
        if vocabulary == self.vocabulary:
            return self
        if not isinstance(vocabulary, str):
            raise UserError("The model's vocabulary is not one of characters, so it is no model of the task text.")

        def read() -> Parts:
            new_id_of = encode(self.vocabulary, vocabulary)
            domains, train, heldout = self.parts
            return Parts(domains, tuple(new_id_of[ids] for ids in train), tuple(new_id_of[ids] for ids in heldout))

        return replace(self, vocabulary=vocabulary, read=read)

    def lay_out(self, text: str, context: int) -> Probe:
        """A text longer than the context is read in rows of that length."""
        ids = self.encode(text)
        width = min(len(ids), context)
        return Probe(tuple(text), np.pad(ids, (0, -len(ids) % width), constant_values=PADDING).reshape(-1, width))

    def batches(self, context: int, seed: int) -> "Batches":
        from moeviz.moe.batches import Batches  # torch: reading a text does without

        return Batches(self.train, context, seed)

    def heldout_rows(self, context: int, rows: int | None) -> Rows | None:
        from moeviz.moe.batches import Batches

        rows = sum(map(len, self.parts.heldout)) // (context + 1) if rows is None else rows
        try:
            windows = Batches(self.parts.heldout, context, seed=0).windows(np.random.default_rng(0), rows)
        except UserError:
            return None
        return Rows(windows[:, :-1], windows[:, 1:])

    def sample(self, context: int, rows: int) -> tuple[Probe | None, str]:
        from moeviz.moe.batches import Batches

        each = max(1, rows // max(len(self.domains), 1))
        found, domains, short = [], list[str](), []
        for name, ids in zip(self.domains, self.parts.heldout, strict=True):
            if len(ids) <= context:
                short.append(name)
                continue
            found.append(Batches([ids], context, seed=0).windows(np.random.default_rng(0), each)[:, :-1])
            domains += [name] * (each * context)
        lack = f"Held out of {', '.join(short)} is less than one sequence." if short else ""
        if not found:
            return None, lack
        inputs = np.concatenate(found)
        return Probe(tuple(self.decode(inputs.ravel().tolist())), inputs, tuple(domains)), lack

    def frequencies(self) -> Ints:
        return np.bincount(np.concatenate(self.train), minlength=len(self.vocabulary))

    def score(self, rows: Rows, ranks: Ints) -> dict[str, float]:
        """Text has no measure besides the held-out cross-entropy."""
        return {}

    def baseline(self, context: int) -> dict[str, float]:
        return {}


def encode(text: str, vocabulary: str) -> Ints:
    """Ids (n,) of a text; characters outside the vocabulary become 0."""
    # lone surrogates can come from a shell's arguments
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    known = np.frombuffer(vocabulary.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    id_of: Ints = np.zeros(0x110000, dtype=np.int64)
    id_of[known] = np.arange(len(known))
    ids: Ints = id_of[codes]
    return ids


def load_text(path: str = "", report: Report = unreported) -> TextData:
    """The built-in text, which is not read yet, or the user's own file or folder. UserError if that cannot be used.
    `report` hears of each file, and may end the reading."""
    if not path:
        return TextData(VOCABULARY, builtin.PROBE, lambda: _built_in(report))
    found = own.documents(path, report)
    domains, train, heldout = _split_all(found.domains)
    vocabulary = _vocabulary(train)
    parts = _parts(vocabulary, domains, train, heldout)
    return TextData(vocabulary, _probe(heldout), lambda: parts, tuple(found.notes))


def _built_in(report: Report) -> Parts:
    domains, train, heldout = _split_all(builtin.documents(report))
    report(0, 0)
    return _parts(VOCABULARY, domains, train, heldout)


def _split_all(documents: dict[str, list[str]]) -> tuple[tuple[str, ...], list[str], list[str]]:
    """The domains' names, and the training and the held-out text of each."""
    split = [_split(texts) for texts in _distinct(documents)]
    return tuple(documents), [train for train, _ in split], [heldout for _, heldout in split]


def _parts(vocabulary: str, domains: tuple[str, ...], train: list[str], heldout: list[str]) -> Parts:
    ids = [tuple(encode(text, vocabulary) for text in texts) for texts in (train, heldout)]
    return Parts(domains, *ids)


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
