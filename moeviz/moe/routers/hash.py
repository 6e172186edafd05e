"""Hash layers: a fixed table from token to expert."""

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from moeviz.moe.routers.base import Batch, Option, Router, RoutingTensors, TokenChoiceRouter


class HashRouter(TokenChoiceRouter):
    """Roller et al. 2021: expert = table[token id], weight 1, no parameters.

    vocabulary_size  V: how many token ids there are
    hash_table       "random": each id on its own. "balanced": ids are dealt so that the experts get the same number of
                     them or, with `frequencies` (V,), of tokens: the most frequent first, to the least loaded expert.
    The table is part of the state. Probabilities are 1 for the expert of the token; there are no scores, logits are 0.
    """

    options: ClassVar[dict[str, Option]] = {
        **{name: value for name, value in TokenChoiceRouter.options.items() if name not in Router.options},
        "vocabulary_size": 65536,
        "hash_table": "random",
        "frequencies": None,
    }
    structure = frozenset({"hash_table"})
    has_scores = False
    fixed_k = 1
    outside = TokenChoiceRouter.outside | {"frequencies"}
    table: Tensor
    vocabulary_size: int
    hash_table: str
    frequencies: Tensor | None

    def _start(self, d_model: int, generator: torch.Generator | None) -> None:
        size, num_experts = self.vocabulary_size, self.num_experts
        if self.hash_table == "random":
            table = torch.randint(num_experts, (size,), generator=generator)
        elif self.hash_table == "balanced":
            order = torch.randperm(size, generator=generator)
            table = _dealt(order, self.frequencies, num_experts)
        else:
            raise ValueError(f"hash_table is {self.hash_table!r}; it must be random or balanced")
        self.register_buffer("table", table)
        self.frequencies = None

    @property
    def num_draws(self) -> int:
        return 0

    def logits(self, x_TD: Tensor) -> Tensor:
        return x_TD.new_zeros(x_TD.shape[0], self.num_experts)

    def route(
        self,
        x_TD: Tensor,
        epsilon_TR: Tensor | None,
        token_ids_T: Tensor | None,
        valid_T: Tensor | None,
        sequences: int,
    ) -> RoutingTensors:
        if token_ids_T is None:
            raise ValueError("the hash router needs the token ids: call layer(x, token_ids=...)")
        routing = super().route(x_TD, None, token_ids_T, valid_T, sequences)
        one_hot = torch.nn.functional.one_hot(self.table[token_ids_T], self.num_experts)
        return routing._replace(probs_TE=one_hot.to(x_TD.dtype))

    def choose(self, scores_TE: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        assert batch.token_ids_T is not None
        ids_TK = self.table[batch.token_ids_T][:, None]
        return ids_TK, torch.ones_like(ids_TK, dtype=scores_TE.dtype)

    def resized_table(self, sources: list[int]) -> Tensor:
        """The table over the experts `sources`: the ids of an expert are shared among its copies, those of an expert
        that left among all, each in turn."""
        table = torch.empty_like(self.table)
        for expert in range(self.num_ffn):
            heirs = [new for new, old in enumerate(sources) if old == expert] or list(range(len(sources)))
            ids = (self.table == expert).nonzero()[:, 0]
            turns = torch.arange(len(ids), device=ids.device) % len(heirs)
            table[ids] = torch.tensor(heirs, device=ids.device)[turns]
        return table

    def expert_weight(self) -> Tensor | None:
        return None


def _dealt(order: Tensor, frequencies: Tensor | None, num_experts: int) -> Tensor:
    table = torch.empty_like(order)
    if frequencies is None:
        table[order] = torch.arange(len(order)) % num_experts
        return table
    weights = frequencies.double().cpu().numpy()
    load, ids = np.zeros(num_experts), np.zeros(num_experts)
    for token in order[torch.from_numpy(weights)[order].argsort(descending=True, stable=True)].tolist():
        expert = int(np.lexsort((ids, load))[0])
        table[token] = expert
        load[expert] += weights[token]
        ids[expert] += 1
    return table
