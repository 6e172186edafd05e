"""What all routers share: scores, noise, padding and capacity."""

import sys
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from moeviz.moe.routers.capacity import overflow

INIT_STD = 0.02  # never zero: torch.topk breaks ties arbitrarily, an all-zero router sends every token to one pair

ALL = sys.maxsize  # of the experts

Option = int | float | str | Tensor | None


class RoutingTensors(NamedTuple):
    """The routing of T tokens. Experts come best first; probabilities and logits are clean (without noise).

    expert_ids_TK        -1 where a token chose fewer than K; an assignment that was dropped keeps its id
    gate_weights_TK      what multiplies the expert's output: 0 where the id is -1 and where dropped
    dropped_TK           bool, assignments dropped for capacity; None where no capacity is set
    selection_scores_TE  clean scores that the choice was made by, where these are not the probabilities
    noisy_TE, noise_std  scores after the noise that was drawn, and its standard deviation () or (T, E); None without
                         noise. `losses.load_probability` needs them.
    outputs_TKD          each chosen expert's output before its weight, 0 where there is none; None unless it is kept
    dispatch_BCS, combine_BCS   Soft MoE only: C tokens of a sequence to S slots and back; expert_ids_TK is then all E
                         and gate_weights_TK the combine weights summed over each expert's slots
    """

    expert_ids_TK: Tensor
    gate_weights_TK: Tensor
    probs_TE: Tensor
    logits_TE: Tensor
    dropped_TK: Tensor | None = None
    selection_scores_TE: Tensor | None = None
    noisy_TE: Tensor | None = None
    noise_std: Tensor | None = None
    dispatch_BCS: Tensor | None = None
    combine_BCS: Tensor | None = None
    outputs_TKD: Tensor | None = None


class Batch(NamedTuple):
    """What a router may know of the T tokens besides their vectors.

    valid_T    bool, True = a real token, False = padding; None: all are real
    sequences  the tokens are this many runs of one length
    draws_TR   standard normal draws beyond those for the noise on the scores
    """

    token_ids_T: Tensor | None
    valid_T: Tensor | None
    sequences: int
    draws_TR: Tensor | None


class Router(nn.Module):
    """A router over E experts: the weight (E, D), live `k` and live options.

    `temperature` and `noise` live in tensors as well, so that a traced forward reads their newest value; any other
    change of `key()` needs a new trace.
    """

    options: ClassVar[dict[str, Option]] = {"temperature": 1.0, "noise": 0.0}
    structure: ClassVar[frozenset[str]] = (
        frozenset()
    )  # options that shape the parameters: changing one needs a new router
    outside: ClassVar[frozenset[str]] = frozenset({"temperature", "noise"})  # options that no trace has fixed
    has_scores: ClassVar[bool] = True  # whether the logits are more than a filler
    soft: ClassVar[bool] = False
    from_counts: ClassVar[bool] = False  # whether `after_step` does anything
    fixed_k: ClassVar[int | None] = None  # experts per token, or ALL, whatever k says
    may_skip: ClassVar[bool] = False  # whether ids of -1 or of null experts can occur without padding and capacity

    weight: nn.Parameter
    _temperature: Tensor
    _noise: Tensor

    def __init__(
        self,
        d_model: int,
        num_experts: int,
        k: int,
        *,
        generator: torch.Generator | None = None,
        **options: Option,
    ) -> None:
        super().__init__()
        if unknown := options.keys() - self.options.keys():
            known = ", ".join(self.options)
            raise ValueError(f"{type(self).__name__} has no option {min(unknown)!r}; its options are {known}")
        self.register_buffer("_temperature", torch.tensor(1.0), persistent=False)
        self.register_buffer("_noise", torch.tensor(0.0), persistent=False)
        self.num_ffn = num_experts
        self.temperature, self.noise = 1.0, 0.0
        for name, default in self.options.items():
            setattr(self, name, options.get(name, default))
        self.k = k
        self._start(d_model, generator)

    def _start(self, d_model: int, generator: torch.Generator | None) -> None:
        """Make parameters and state."""
        self.weight = nn.Parameter(torch.randn(self.num_experts, d_model, generator=generator) * INIT_STD)

    # ---- sizes
    @property
    def num_experts(self) -> int:
        """All that a token can choose: `num_ffn` experts that compute, then `num_null` that do not."""
        return self.num_ffn + self.num_null

    @property
    def num_null(self) -> int:
        return 0

    @property
    def k(self) -> int:
        """Experts per token; where that varies, the mean to aim at."""
        return self._k if self.fixed_k is None else min(self.fixed_k, self.num_experts)

    @k.setter
    def k(self, k: int) -> None:
        if self.fixed_k is not None:
            return
        if not 1 <= k <= self.num_experts:
            raise ValueError(f"k is {k}; it must lie between 1 and the number of experts, {self.num_experts}")
        self._k = k

    @property
    def width(self) -> int:
        """K, the columns of expert_ids_TK: the most experts that one token can get."""
        return self.k

    @property
    def active_experts(self) -> float:
        """Experts whose parameters one token uses, on average when all are chosen equally often."""
        return self.k * self.num_ffn / self.num_experts

    def expert_runs(self, length: int) -> float:
        """Runs of an expert for one token of a sequence of `length`."""
        return self.active_experts

    # ---- live knobs
    @property
    def temperature(self) -> float:
        return self._temperature_value

    @temperature.setter
    def temperature(self, value: float) -> None:
        if not value > 0:
            raise ValueError(f"temperature is {value}; it must be positive")
        self._temperature_value = float(value)
        self._temperature.fill_(value)

    @property
    def noise(self) -> float:
        return self._noise_value

    @noise.setter
    def noise(self, value: float) -> None:
        if not value >= 0:
            raise ValueError(f"noise is {value}; it must not be negative")
        self._noise_value = float(value)
        self._noise.fill_(value)

    @property
    def num_draws(self) -> int:
        """R: standard normal draws for each token of a training batch."""
        return self.num_experts if self.noise > 0 else 0

    @property
    def drops(self) -> bool:
        """Whether assignments beyond a capacity are dropped."""
        return False

    @property
    def varies(self) -> bool:
        """Whether some tokens run fewer experts than others, so that how many must be measured."""
        return self.may_skip or self.drops

    @property
    def looks_ahead(self) -> bool:
        """Whether a token's routing depends, in this mode, on tokens that come after it in its sequence."""
        return False

    @property
    def traceable(self) -> bool:
        """Whether the training forward can be traced: no loop or shape depends on data."""
        return True

    def key(self) -> tuple[Any, ...]:
        """Two forwards with the same key and shapes do the same operations."""
        fixed = (getattr(self, name) for name in self.options if name not in self.outside)
        return type(self), self.num_experts, self.k, self.num_draws, *fixed

    # ---- routing
    def forward(
        self,
        x_TD: Tensor,
        epsilon_TR: Tensor | None = None,
        *,
        token_ids_T: Tensor | None = None,
        valid_T: Tensor | None = None,
        sequences: int = 1,
    ) -> RoutingTensors:
        """Route T tokens, `sequences` runs of one length. `valid_T`: False = padding, which gets no expert and counts
        nowhere. `epsilon_TR`: the standard normal draws (T, num_draws) to use; without it they are drawn here while
        training, and there is no randomness in eval mode."""
        x_TD = x_TD.to(torch.promote_types(x_TD.dtype, torch.float32))
        if epsilon_TR is None and self.training and self.num_draws:
            epsilon_TR = torch.randn(x_TD.shape[0], self.num_draws, dtype=x_TD.dtype, device=x_TD.device)
        if epsilon_TR is not None and epsilon_TR.shape[1] != self.num_draws:
            raise ValueError(f"{epsilon_TR.shape[1]} draws a token were given; this router takes {self.num_draws}")
        return self.route(x_TD, epsilon_TR, token_ids_T, valid_T, sequences)

    def route(
        self,
        x_TD: Tensor,
        epsilon_TR: Tensor | None,
        token_ids_T: Tensor | None,
        valid_T: Tensor | None,
        sequences: int,
    ) -> RoutingTensors:
        """`forward` with the draws at hand."""
        epsilon_TE, draws_TR, std = None, None, None
        if epsilon_TR is not None:
            cut = self.num_experts if self.noise > 0 else 0
            epsilon_TE, draws_TR = epsilon_TR[:, :cut] if cut else None, epsilon_TR[:, cut:]
        batch = Batch(token_ids_T, valid_T, sequences, draws_TR)
        logits_TE = self.logits(x_TD)
        noisy_TE = self.perturbed(x_TD, logits_TE, batch)
        if epsilon_TE is not None:
            std = self.noise_std(x_TD)
            noisy_TE = noisy_TE + std * epsilon_TE
        clean_TE = logits_TE / self._temperature
        # without noise the same tensor, and its softmax once
        scores_TE = clean_TE if noisy_TE is logits_TE else noisy_TE / self._temperature
        probs_TE = self.probabilities(clean_TE)
        ids_TK, weights_TK = self.choose(scores_TE, batch)
        if valid_T is not None:
            ids_TK = ids_TK.masked_fill(~valid_T[:, None], -1)
            weights_TK = weights_TK.masked_fill(~valid_T[:, None], 0)
        dropped_TK = self.overflow(ids_TK, probs_TE, batch)
        if dropped_TK is not None:
            weights_TK = weights_TK.masked_fill(dropped_TK, 0)
        return RoutingTensors(
            ids_TK,
            weights_TK,
            probs_TE,
            logits_TE,
            dropped_TK,
            self.selection_scores(clean_TE),
            None if std is None else noisy_TE,
            std,
        )

    def logits(self, x_TD: Tensor) -> Tensor:
        """The clean scores z (T, E)."""
        return functional.linear(x_TD, self.weight.to(x_TD.dtype))

    def perturbed(self, x_TD: Tensor, logits_TE: Tensor, batch: Batch) -> Tensor:
        """The scores with randomness other than additive noise."""
        return logits_TE

    def noise_std(self, x_TD: Tensor) -> Tensor:
        """Standard deviation of the noise on the scores, () or (T, E)."""
        return self._noise

    def probabilities(self, clean_TE: Tensor) -> Tensor:
        """The router's probabilities (T, E) from scores after temperature."""
        return softmax(clean_TE)

    def selection_scores(self, clean_TE: Tensor) -> Tensor | None:
        """What the choice goes by, where that is not the probabilities."""
        return None

    def choose(self, scores_TE: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Expert ids and gate weights (T, K) from scores after noise and temperature, best first."""
        raise NotImplementedError

    def overflow(self, ids_TK: Tensor, probs_TE: Tensor, batch: Batch) -> Tensor | None:
        return None

    # ---- state
    def after_step(self, counts_E: Tensor, counts_LE: Tensor, num_tokens: int) -> None:
        """Update what is no parameter, after an optimiser step: from the assignments that the training batch of
        `num_tokens` tokens gave this layer's experts, and those of all layers."""

    def rows(self, name: str, sources: list[int]) -> list[int] | None:
        """Which rows of the parameter or buffer `name` a router over the experts `sources` has; None: all of it."""
        if name == "weight":
            return [*sources, *range(self.num_ffn, self.num_experts)]
        return None

    def expert_weight(self) -> Tensor | None:
        """The rows (num_ffn, D) of the weight that another kind of router can go on with; None if there are none."""
        return self.weight.detach()[: self.num_ffn]


class TokenChoiceRouter(Router):
    """Each token chooses its experts. A capacity may be set, beyond which an expert drops assignments.

    capacity_factor  CF: an expert takes at most ceil(CF * k * N / E) assignments of N tokens; 0: no limit
    drop             which go: "position", the later tokens; "probability", the tokens with the smaller largest
                     probability (batch-prioritised, Riquelme et al. 2021). All first choices come before any second.
    scope            N counts the "batch" or each "sequence"
    Weights are renormalised before dropping, so a token that loses its second expert keeps g1 < 1 (Mesh, Tutel).
    """

    options: ClassVar[dict[str, Option]] = {
        **Router.options,
        "capacity_factor": 0.0,
        "drop": "position",
        "scope": "batch",
    }
    capacity_factor: float
    drop: str
    scope: str

    @property
    def drops(self) -> bool:
        return self.capacity_factor > 0

    @property
    def looks_ahead(self) -> bool:
        # a second choice waits for the first choices of later tokens
        return self.drops and (self.drop == "probability" or self.width > 1)

    def capacity_shares(self) -> list[float]:
        """Each expert's share of all capacity, sums to 1."""
        return [1 / self.num_experts] * self.num_experts

    def overflow(self, ids_TK: Tensor, probs_TE: Tensor, batch: Batch) -> Tensor | None:
        if not self.drops:
            return None
        return overflow(
            ids_TK,
            probs_TE.detach().amax(-1) if self.drop == "probability" else None,
            self.capacity_factor,
            self.capacity_shares(),
            batch.sequences if self.scope == "sequence" else 1,
            None if self.width > self.k else self.k,
            batch.valid_T,
        )


def softmax(scores_TE: Tensor) -> Tensor:
    """Over the experts. torch takes a last axis that is shorter than a register number by number, a first one not."""
    if scores_TE.shape[1] < 16:
        return torch.softmax(scores_TE.t(), 0).t().contiguous()
    return torch.softmax(scores_TE, -1)


def best_first(weights_TE: Tensor, chosen_TE: Tensor) -> tuple[Tensor, Tensor]:
    """The chosen experts of each token by falling weight >= 0, (T, E); then ids of -1 with weight 0."""
    order_TE = weights_TE.detach().masked_fill(~chosen_TE, -1).sort(dim=-1, descending=True, stable=True).indices
    kept_TE = chosen_TE.gather(1, order_TE)
    return order_TE.masked_fill(~kept_TE, -1), weights_TE.gather(1, order_TE).masked_fill(~kept_TE, 0)
