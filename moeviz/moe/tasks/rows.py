"""A task whose examples are rows of tokens, some given and the others to be predicted."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from moeviz.domain.messages import UserError
from moeviz.domain.routing import Ints
from moeviz.moe.batches import BLOCK_TOKENS, batch_numbers
from moeviz.moe.tasks.data import PADDING, UNCOUNTED, Probe, Rows, Vocabulary

UNKNOWN = "\ufffd"
ROW_TOKENS = 128  # of a row of a sample, as of a text in the usual context
FEWEST_ROWS = 4  # of each domain in a sample: one row says little of its domain


class Row(NamedTuple):
    """One example: its tokens, how many of the first are given, and its domain."""

    tokens: Sequence[str]
    given: int
    domain: str


class RowParts(NamedTuple):
    train: tuple[Row, ...]
    heldout: tuple[Row, ...]


def as_it_is(row: Row) -> tuple[Sequence[str], Sequence[str]]:
    return row.tokens, [row.domain] * len(row.tokens)


def frequent_answers(train: Sequence[Row], heldout: Sequence[Row]) -> list[list[int]]:
    """The answer is what most often follows in rows with the same first token: rank 0 where it is right, else 1."""
    answers: dict[str, Counter[tuple[str, ...]]] = {}
    for row in train:
        answers.setdefault(row.tokens[0], Counter())[tuple(row.tokens[row.given :])] += 1
    best = {first: counts.most_common(1)[0][0] for first, counts in answers.items()}
    ranks = []
    for row in heldout:
        said = (*row.tokens[: row.given], *best.get(row.tokens[0], ()))
        ranks.append([int(said[i : i + 1] != (token,)) for i, token in enumerate(row.tokens)])
    return ranks


def _fits(row: Row, context: int) -> bool:
    return row.given < len(row.tokens) <= context + 1


@dataclass(frozen=True, eq=False)
class RowData:
    """Rows of tokens as the data of a task (tasks/data.py); a task gives only what is its own.

    read      the two parts; UserError if there is nothing to train on
    tokens_of the vocabulary, from the training rows
    rows_of   the rows of a probe, one a line of what is shown
    scored    the held-out measures, from inputs, ranks and vocabulary
    known     the vocabulary of a model that was opened
    shown     the texts of a row's tokens and their domains, as a probe shows them
    guess     from training and held-out rows, the ranks that the most frequent answers give to each token of the latter
    """

    probe: str
    measures: tuple[str, ...]
    read: Callable[[], RowParts]
    tokens_of: Callable[[Iterable[Row]], tuple[str, ...]]
    rows_of: Callable[[str], list[Row]]
    scored: Callable[[Ints, Ints, Vocabulary], dict[str, float]]
    notes: tuple[str, ...] = ()
    known: Vocabulary | None = None
    shown: Callable[[Row], tuple[Sequence[str], Sequence[str]]] = as_it_is
    guess: Callable[[Sequence[Row], Sequence[Row]], list[list[int]]] = frequent_answers
    padded: bool = True

    @cached_property
    def parts(self) -> RowParts:
        return self.read()

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return self.tokens_of(self.parts.train) if self.known is None else self.known

    @cached_property
    def _id_of(self) -> dict[str, int]:
        return {token: i for i, token in enumerate(self.vocabulary)}

    def with_vocabulary(self, vocabulary: Vocabulary) -> "RowData":
        return replace(self, known=vocabulary)

    def encode(self, tokens: Iterable[str]) -> list[int]:
        """Ids; what is not in the vocabulary becomes 0."""
        return [self._id_of.get(token, 0) for token in tokens]

    def lay_out(self, text: str, context: int) -> Probe:
        rows = self.rows_of(text)
        longest = max(len(row.tokens) for row in rows)
        if longest > context:
            raise UserError(
                f"A line of the probe has {longest} tokens, but the model's context is {context}; shorten the line or "
                "raise model.context."
            )
        inputs = np.full((len(rows), longest), PADDING, np.int64)
        for line, row in zip(inputs, rows, strict=True):
            line[: len(row.tokens)] = self.encode(row.tokens)
        shown = [self.shown(row) for row in rows]
        tokens, domains = (tuple(text for pair in shown for text in pair[side]) for side in (0, 1))
        return Probe(tokens, inputs, domains)

    def batches(self, context: int, seed: int) -> "RowBatches":
        table = self._table(self.parts.train, context)
        if table is None:
            raise UserError(f"No row of this task fits in a context of {context}; set model.context higher.")
        return RowBatches(table, seed)

    def heldout_rows(self, context: int, rows: int | None) -> Rows | None:
        table = self._table(self.parts.heldout, context)
        if table is None:
            return None
        # the parts are in a shuffled order: the first of all, or of each domain, are a fair sample
        if rows is None:
            return table.rows(np.arange(len(table.length_N)))
        places = [np.flatnonzero(table.domain_N == d) for d in range(table.num_domains)]
        turns = sorted((turn, place) for found in places for turn, place in enumerate(found.tolist()))
        return table.rows(np.array([place for _, place in turns[:rows]]))

    def sample(self, context: int, rows: int) -> tuple[Probe | None, str]:
        """The starts of rows, of a length that a quarter of each domain has: short ones are more than `rows`, for
        ROW_TOKENS tokens each."""
        by_domain: dict[str, list[Row]] = {}
        for row in self.parts.heldout:
            by_domain.setdefault(row.domain, []).append(row)
        if not by_domain:
            return None, "Nothing is held out."
        lengths = [sorted((len(row.tokens) for row in found), reverse=True) for found in by_domain.values()]
        width = min(context, *(of_one[max(len(of_one) // 4, 1) - 1] for of_one in lengths))
        each = max(FEWEST_ROWS, rows * ROW_TOKENS // (width * len(by_domain)))
        # the parts are in a shuffled order
        long = ([row for row in found if len(row.tokens) >= width][:each] for found in by_domain.values())
        chosen = [row for of_one in long for row in of_one]
        shown = [self.shown(row._replace(tokens=row.tokens[:width])) for row in chosen]
        tokens, domains = (tuple(text for pair in shown for text in pair[side]) for side in (0, 1))
        return Probe(tokens, np.array([self.encode(row.tokens[:width]) for row in chosen], np.int64), domains), ""

    def frequencies(self) -> Ints:
        counts = Counter(token for row in self.parts.train for token in row.tokens)
        frequencies: Ints = np.array([counts[token] for token in self.vocabulary], np.int64)
        frequencies[0] = counts.total() - frequencies[1:].sum()
        return frequencies

    def score(self, rows: Rows, ranks: Ints) -> dict[str, float]:
        # what is not in the vocabulary cannot be said, though the model may foresee that it comes
        return self.scored(rows.inputs, np.where(rows.targets == 0, len(self.vocabulary), ranks), self.vocabulary)

    def baseline(self, context: int) -> dict[str, float]:
        table = self._table(self.parts.heldout, context)
        if table is None:
            return {}
        rows = table.rows(np.arange(len(table.length_N)))
        heldout = [row for row in self.parts.heldout if _fits(row, context)]
        ranks = np.full(rows.targets.shape, UNCOUNTED)
        for line, guessed in zip(ranks, self.guess(self.parts.train, heldout), strict=True):
            line[: len(guessed) - 1] = guessed[1:]
        return self.score(rows, np.where(rows.targets == UNCOUNTED, UNCOUNTED, ranks))

    def _table(self, rows: Iterable[Row], context: int) -> "RowTable | None":
        fitting = [row for row in rows if _fits(row, context)]
        if not fitting:
            return None
        names = {name: i for i, name in enumerate(dict.fromkeys(row.domain for row in fitting))}
        return RowTable(
            np.array([i for row in fitting for i in self.encode(row.tokens)], np.int64),
            np.array([len(row.tokens) for row in fitting]),
            np.array([row.given for row in fitting]),
            np.array([names[row.domain] for row in fitting]),
            context,
        )


@dataclass(frozen=True, eq=False)
class RowTable:
    """N rows, end to end: ids, and of each row its length, how many tokens are given and its domain's number."""

    tokens: Ints
    length_N: Ints
    given_N: Ints
    domain_N: Ints
    context: int

    @property
    def num_domains(self) -> int:
        return int(self.domain_N.max()) + 1

    @cached_property
    def _starts_N(self) -> Ints:
        starts: Ints = np.concatenate([[0], self.length_N.cumsum()[:-1]])
        return starts

    def rows(self, places: Ints) -> Rows:
        """Some rows, in one width."""
        column_C = np.arange(self.context + 1)
        inside = column_C < self.length_N[places, None]
        index = np.minimum(self._starts_N[places, None] + column_C, len(self.tokens) - 1)
        tokens = np.where(inside, self.tokens[index], PADDING)
        targets = np.where(inside & (column_C >= self.given_N[places, None]), tokens, UNCOUNTED)
        return Rows(tokens[:, :-1], targets[:, 1:])


class RowBatches:
    """A domain drawn uniformly, then a row of it, whatever its length."""

    def __init__(self, table: RowTable, seed: int) -> None:
        self._table, self._seed = table, seed
        self._by_domain = np.argsort(table.domain_N, kind="stable")
        self._sizes = np.bincount(table.domain_N)
        self._firsts = np.concatenate([[0], self._sizes.cumsum()[:-1]])
        self._block_key: tuple[int, int] | None = None

    def draw(self, step: int, batch: int) -> Rows:
        steps = max(1, BLOCK_TOKENS // (batch * (self._table.context + 1)))
        block, place = divmod(step, steps)
        if self._block_key != (block, batch):
            rng = batch_numbers(self._seed, batch, block)
            domain = rng.integers(len(self._sizes), size=steps * batch)
            drawn = self._firsts[domain] + (rng.random(steps * batch) * self._sizes[domain]).astype(np.int64)
            self._block = self._table.rows(self._by_domain[drawn])
            self._block_key = (block, batch)
        part = slice(place * batch, (place + 1) * batch)
        return Rows(self._block.inputs[part], self._block.targets[part])
