"""Training batches, a function of (seed, step) alone: a run goes on exactly from any step, with nothing to remember."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from moeviz.domain.messages import UserError
from moeviz.domain.routing import Ints
from moeviz.moe.tasks.data import Rows

BLOCK_TOKENS = 1 << 17  # batches are drawn some steps ahead in one go: fewer waits for the interpreter lock
_BATCH, _NOISE, _RESIZE, _TWIN = range(4)  # streams of random numbers that never meet


class Batches:
    """Rows of context + 1 tokens: a domain drawn uniformly, then a random window in it."""

    def __init__(self, domains: Sequence[Ints], context: int, seed: int) -> None:
        long_enough = [tokens for tokens in domains if len(tokens) > context]
        if not long_enough:
            raise UserError(f"The text is too short: a training sequence needs {context + 1} characters.")
        self._tokens = np.concatenate(long_enough)
        lengths = np.array([len(tokens) for tokens in long_enough])
        self._starts = np.concatenate([[0], lengths.cumsum()[:-1]])
        self._rooms = lengths - context  # how many windows each domain has
        self._context, self._seed = context, seed
        self._block_key: tuple[int, int] | None = None

    def draw(self, step: int, batch: int) -> Rows:
        """The rows of one step: every token but the last is an input, every one but the first a target."""
        steps = max(1, BLOCK_TOKENS // (batch * (self._context + 1)))
        block, place = divmod(step, steps)
        if self._block_key != (block, batch):
            self._block = self.windows(batch_numbers(self._seed, batch, block), steps * batch)
            self._block_key = (block, batch)
        tokens = self._block[place * batch : (place + 1) * batch]
        return Rows(tokens[:, :-1], tokens[:, 1:])

    def windows(self, rng: np.random.Generator, rows: int) -> Ints:
        """Tokens (rows, context + 1) of random windows."""
        domain = rng.integers(len(self._rooms), size=rows)
        first = self._starts[domain] + (rng.random(rows) * self._rooms[domain]).astype(np.int64)
        rows_of_tokens: Ints = self._tokens[first[:, None] + np.arange(self._context + 1)]
        return rows_of_tokens


def batch_numbers(seed: int, batch: int, block: int) -> np.random.Generator:
    """The randomness of a block of batches."""
    return np.random.default_rng([seed, _BATCH, batch, block])


def noise_draws(seed: int, step: int, shape: tuple[int, ...]) -> Tensor:
    """The standard normal draws for the routers' noise at one step."""
    return torch.randn(shape, generator=_generator(seed, _NOISE, step))


def resize_generator(seed: int, step: int, experts: int) -> torch.Generator:
    """The randomness of a change at one step to a model of so many experts: two changes at one step must not agree."""
    return _generator(seed, _RESIZE, step, experts)


def twin_generator(seed: int) -> torch.Generator:
    """The randomness of the start weights that only the dense twin has."""
    return _generator(seed, _TWIN)


def _generator(*key: int) -> torch.Generator:
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))
