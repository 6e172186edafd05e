"""What a task is to the trainer, which knows no more of it than this."""

from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from moeviz.domain.routing import Ints

Vocabulary = str | tuple[str, ...]  # every token that the model knows, at its id
UNCOUNTED = -100  # a target that is not learned; torch's own number for it
PADDING = -1  # an input that is no token; only at the end of a row


class Probe(NamedTuple):
    """What the token panels show, in rows for the model.

    tokens   T strings, as they are shown
    inputs   token ids (R, C), PADDING where a row is shorter; without that T in all. Or points (R, C, 2)
    domains  T strings, or None where unknown
    """

    tokens: tuple[str, ...]
    inputs: npt.NDArray[Any]
    domains: tuple[str, ...] | None = None


class Rows(NamedTuple):
    """Sequences as the model sees them: inputs as in Probe, and for each the target id (B, C), or UNCOUNTED."""

    inputs: npt.NDArray[Any]
    targets: Ints


class Source(Protocol):
    """Training batches, a function of step and batch size alone."""

    def draw(self, step: int, batch: int) -> Rows: ...


class Data(Protocol):
    """The data of a task. Showing a model needs no more than vocabulary and probe: the rest may be read later.

    probe     the sample that is shown until the user writes another
    notes     sentences on what was left out
    padded    whether rows can be shorter than the context
    measures  names of what `score` gives
    """

    @property
    def vocabulary(self) -> Vocabulary: ...
    @property
    def probe(self) -> str: ...
    @property
    def notes(self) -> tuple[str, ...]: ...
    @property
    def padded(self) -> bool: ...
    @property
    def measures(self) -> tuple[str, ...]: ...

    def with_vocabulary(self, vocabulary: Vocabulary) -> "Data":
        """The same data for a model that knows other tokens; what either lacks is unknown."""

    def lay_out(self, text: str, context: int) -> Probe:
        """A probe as the model reads it. UserError if it cannot be."""

    def batches(self, context: int, seed: int) -> Source:
        """The training part. UserError if there is too little."""

    def heldout_rows(self, context: int, rows: int | None) -> Rows | None:
        """Held-out rows, the same whatever the seed: all in a shuffled order, or at most so many, spread over the
        domains; None: too few."""

    def sample(self, context: int, rows: int) -> tuple[Probe | None, str]:
        """Held-out rows of one length without padding, about so many or, of short ones, more, the domains' shares
        alike; and a sentence on what is missing. UserError if there is no data."""

    def frequencies(self) -> Ints:
        """How often each token (V,) comes in the training part."""

    def score(self, rows: Rows, ranks: Ints) -> dict[str, float]:
        """What held-out rows (N, C) say of a model. ranks (N, C): how many other tokens the model holds at least as
        likely as the target, given all that comes before it; UNCOUNTED where there is no target."""

    def baseline(self, context: int) -> dict[str, float]:
        """`score` of who gives the most frequent answer of the training part to all held-out rows."""


def exact(ranks: Ints) -> npt.NDArray[np.bool_]:
    """(N,): whether the model's first choice is right at every target of a row. That is the row which it writes when it
    takes its first choice at each place."""
    return np.asarray((ranks <= 0).all(1))
