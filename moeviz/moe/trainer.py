"""A model in training: one step, one look at the probe, and every change that a live run allows."""

import time
from collections.abc import Callable, Hashable
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch

from moeviz.domain.messages import ModelFacts, StepLog, UserError
from moeviz.domain.metrics import executed_experts, mean_error
from moeviz.domain.routing import Ints, Routing, RoutingSnapshot
from moeviz.domain.settings import Settings
from moeviz.moe.batches import noise_draws, resize_generator
from moeviz.moe.checkpoint import Checkpoint, Opening, WithoutValues, state_of
from moeviz.moe.experts import can_group
from moeviz.moe.lineage import began, resized
from moeviz.moe.model import (
    CharModel,
    active_parameters,
    check_router,
    flops_per_token,
    router_options,
    total_parameters,
)
from moeviz.moe.optimiser import AdamW
from moeviz.moe.resize import Structure, put_back, resize_experts, resize_shared, shape, structure, switch_router
from moeviz.moe.routers import Router
from moeviz.moe.step import (
    RUNS,
    SCALARS,
    Look,
    StepLoss,
    StepNews,
    coefficients,
    losses_of,
    router_numbers,
    terms_in_use,
    unpack_look,
    unpack_news,
)
from moeviz.moe.tasks.data import PADDING, UNCOUNTED, Data, Probe, Rows, Source
from moeviz.moe.traced import Traced
from moeviz.moe.twin import GAP_ERROR, Twin

CHECK_EVERY = 20  # steps; the longest that a loss which is no number goes unseen
HELDOUT_EVERY, HELDOUT_ROWS = 50, 16
MEASURE_EVERY, MEASURE_ROWS = 250, 128  # a forward pass costs a third of a step: some 2 % of training
LONGEST_PROBE = 4096  # characters
WARM_UP = 100  # steps, 1/(1 - BETA2): as long as a mean of squares takes to tell of a gradient's size
EARLIER = 4  # structures that a change back can return to

Tensors = tuple[torch.Tensor, torch.Tensor]  # inputs and targets


class Trainer:
    """Model, optimiser, data and step, and what has happened since the last `flush`.

    The routers' randomness comes from outside, as draws that depend on seed and step only.
    """

    def __init__(
        self,
        settings: Settings,
        data: Data,
        device: str,
        probe: str,
        checkpoint: Checkpoint | None = None,
        opening: Opening | None = None,
    ) -> None:
        check_device(device)
        self.settings, self.data, self.device = settings, data, device
        generator = torch.Generator().manual_seed(settings.seed)
        frequencies = None if checkpoint else self._frequencies(settings)
        with WithoutValues(torch.empty) if checkpoint else nullcontext():  # drawing many takes longer than reading them
            self.model = CharModel(settings, len(data.vocabulary), generator, frequencies)
        parameters = dict(self.model.named_parameters())
        opening = opening or Opening()
        saved = (checkpoint.mean, checkpoint.square, checkpoint.steps) if checkpoint else ({}, {}, {})
        self.optimiser = AdamW(parameters, saved, opening.filled)
        self.lineage = checkpoint.lineage if checkpoint else began(settings, parameters)
        self.twin = self._make_twin(checkpoint)
        self.step = 0
        self.losses: dict[str, float] = {}
        sizes = settings.model
        self._counts_LE: Ints = np.zeros((sizes.layers, self._router.num_experts), np.int64)
        self._counts_of: Hashable = None  # the routing that counted them; None: no step has
        self._untold = False  # nobody knows yet how well the opened model does
        if checkpoint is not None:
            self._take_over(checkpoint, opening)
        self._moments_began = self._begin_of_moments()
        self._batches: Source | None = None
        self._heldout_rows: Tensors | None = None
        self._train = Traced(lambda: StepLoss(self.model, self._terms, data.padded), eager_calls=10)
        self._look = Traced(lambda: Look(self.model), eager_calls=10)
        self._news: list[torch.Tensor] = []
        self._tokens = 0  # of their steps, without padding
        self._tokens_per_step = settings.train.batch * sizes.context
        heldout = ("heldout", "dense_heldout", GAP_ERROR) if self.twin else ("heldout",)
        self._measured: dict[str, dict[int, float]] = {name: {} for name in (*heldout, *data.measures)}
        self._unchecked = 0
        self._timer = 0.0
        self._earlier: dict[Hashable, _Earlier] = {}  # what was changed since the last step, by its shape
        self._executed_L: list[float] | None = None  # in the last snapshot, where it varies by token
        self._counted: tuple[tuple[object, ...], tuple[int, int, int]] | None = None  # for the facts, and of what
        self.set_probe(probe)
        self.to(device, opening)

    def _make_twin(self, checkpoint: Checkpoint | None) -> Twin | None:
        """Both models start together, so a run that was trained without one gets none."""
        if self.settings.train.dense_twin == "off" or (checkpoint is not None and not checkpoint.twin):
            return None
        return Twin(self.model, self.settings, self.data.padded, checkpoint.twin if checkpoint else None)

    def _take_over(self, checkpoint: Checkpoint, opening: Opening) -> None:
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(checkpoint.parameters[name])
                opening.filled(1)
            for name, buffer in state_of(self.model).items():
                buffer.copy_(checkpoint.state[name])
        self.step = checkpoint.step
        self._untold = self.step > 0
        counts_LE = checkpoint.counts_LE.numpy()
        if self.step > 0 and (counts_LE >= 0).all():
            self._counts_of = self._routing_now
        self._counts_LE = counts_LE.clip(min=0)

    def _frequencies(self, settings: Settings) -> torch.Tensor | None:
        """How often each token comes in the training data, if the settings' router asks: reading it takes time."""
        if settings.routing.router != "hash" or settings.routing.hash_table != "balanced":
            return None
        return torch.from_numpy(self.data.frequencies())

    # ---- training
    def prepare(self) -> Source:
        """Read the training data, unless that is done: a look at the model does without. UserError if too little."""
        if self._batches is None:
            self.learn_from(self.data)
        assert self._batches is not None
        return self._batches

    def advance(self) -> None:
        """Train one step. Its numbers stay on the device until `flush`."""
        start = time.perf_counter()
        settings, router = self.settings, self._router
        batch, draws = settings.train.batch, router.num_draws
        rows = self.prepare().draw(self.step, batch)
        num_tokens = int((rows.inputs != PADDING).sum()) if self.data.padded else batch * settings.model.context
        inputs, targets = _tensors(rows, self.device)
        given = [inputs, targets, self._coefficients]
        if draws:
            shape = (settings.model.layers, batch * settings.model.context, draws)
            given.append(noise_draws(settings.seed, self.step, shape).to(self.device))
        loss, news = self._train((router.key(), self._terms, batch), *given)
        grads = torch.autograd.grad(loss, self._parameters, allow_unused=True, materialize_grads=True)
        if self.twin is not None:  # before the MoE's own step: where memory runs out, neither is trained
            self.twin.advance(inputs, targets, num_tokens, settings.train.lr)
        self.optimiser.step(grads, settings.train.lr * self._warmth())
        if router.from_counts:
            counts_LE = news[len(self._scalars) :].view(settings.model.layers, -1)
            for layer, counts_E in zip(self.model.layers, counts_LE, strict=True):
                layer.router.after_step(counts_E, counts_LE, num_tokens)
        self.step += 1
        self._untold = False
        self._earlier.clear()  # these have not seen the step
        self._news.append(news)
        self._tokens += num_tokens
        self._unchecked += 1
        if self.step % HELDOUT_EVERY == 0 and self._heldout_rows is not None:
            for name, value in self._heldout(*self._heldout_rows).items():
                self._measured[name][self.step] = value
        if self.step % MEASURE_EVERY == 0 and self.data.measures:
            for name, value in self.measure(MEASURE_ROWS).items():
                self._measured[name][self.step] = value
        self._timer += time.perf_counter() - start

    def _warmth(self) -> float:
        """The part of the learning rate that a trained model goes on with where its file had no moments: AdamW's first
        steps are as long whatever the gradients, which would throw it out of its minimum (Ma and Yarats 2019)."""
        return min(1.0, (self.step - self._moments_began + 1) / WARM_UP) if self._moments_began else 1.0

    def _begin_of_moments(self) -> int:
        """The step from which on AdamW has moments; above 0 in a model whose file had none."""
        return self.step - max((int(count) for count in self.optimiser.steps.values()), default=0)

    @property
    def due(self) -> bool:
        """Whether the losses should be looked at now."""
        return self._unchecked >= CHECK_EVERY

    def check(self) -> bool:
        """Whether all losses so far are numbers. If so, the state may be kept as the last good one; if not, go back to
        that. The step number goes on either way, so that no step is reported twice."""
        if self._unchecked:
            fine = bool(torch.isfinite(torch.stack(self._news[-self._unchecked :])[:, 0]).all())
            self._unchecked = 0
            if not fine:
                self._restore_good()
                return False
            if self.step - self._good_step >= CHECK_EVERY:
                self._keep_good()
        return True

    def flush(self) -> StepLog | None:
        """What happened since the last flush, in one copy; None if no step was trained. Check first."""
        if not self._news:
            return None
        sizes, names = self.settings.model, self._scalars
        news = unpack_news(self._news, len(names), sizes.layers, self._router.num_experts)
        steps = np.arange(self.step - len(self._news) + 1, self.step + 1)
        scalars = {name: _finite(news.scalars_SN[:, i]) for i, name in enumerate(names)}
        if self.twin is not None:
            scalars |= self.twin.flush(self.model, self._expert_runs(news))
        for name, values in self._measured.items():
            scalars[name] = np.array([values.get(step, np.nan) for step in steps.tolist()])
            values.clear()
        self.losses |= {name: float(values[-1]) for name, values in scalars.items() if np.isfinite(values[-1])}
        self._counts_LE, self._counts_of = news.counts_SLE[-1], self._routing_now
        self._tokens, self._tokens_per_step = 0, round(self._tokens / len(self._news))
        self._news.clear()
        counts_SE = tuple(np.ascontiguousarray(news.counts_SLE[:, layer]) for layer in range(sizes.layers))
        return StepLog(steps, scalars, counts_SE)

    def tell_opened(self) -> StepLog | None:
        """Held-out losses and measures of a model as it was opened, as a log of its step; None if it is a new one, has
        been trained since or has told them. Prepare first."""
        if not self._untold:
            return None
        self._untold = False
        found = self._heldout(*self._heldout_rows) if self._heldout_rows is not None else {}
        found |= self.measure(MEASURE_ROWS)
        counts_SE = tuple(self._counts_LE[:, None].copy()) if self._counts_hold else ()
        return StepLog(np.array([self.step]), {name: np.array([value]) for name, value in found.items()}, counts_SE)

    def _expert_runs(self, news: StepNews) -> np.ndarray[Any, np.dtype[np.float64]]:
        """How often an expert ran for a token at each step (S,), over all layers."""
        router, layers = self._router, self.settings.model.layers
        if router.soft:
            places = self.settings.train.batch * self.settings.model.context
            return np.full(len(news.counts_SLE), layers * places * router.expert_runs(self.settings.model.context))
        if router.drops:
            return layers * news.scalars_SN[:, self._scalars.index(RUNS)]
        runs_S: np.ndarray[Any, np.dtype[np.float64]] = news.counts_SLE[..., : router.num_ffn].sum((1, 2), np.float64)
        return runs_S

    def timings(self, num_steps: int) -> dict[str, float]:
        """Seconds of one training step as a mean over the last flush, if that had any."""
        seconds, self._timer = self._timer, 0.0
        return {"step": seconds / num_steps} if num_steps else {}

    @torch.no_grad()
    def _heldout(self, inputs: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
        """Mean losses in nats per target over rows (B, C), without noise; with a twin the standard error of their
        difference too, which is of these rows."""
        counted_BC = (targets != UNCOUNTED).cpu().numpy()
        moe_BC = losses_of(self._logits(inputs), targets)
        told = {"heldout": moe_BC[counted_BC].mean()}
        if self.twin is not None:
            dense_BC = self.twin.losses(inputs, targets)
            alone = (-1, 1) if inputs.is_floating_point() else counted_BC.shape  # points do not see each other
            error = mean_error((moe_BC - dense_BC).reshape(alone), counted_BC.reshape(alone))
            told |= {"dense_heldout": dense_BC[counted_BC].mean(), GAP_ERROR: error}
        return {name: float(value) for name, value in told.items()}

    def _logits(self, inputs: torch.Tensor) -> torch.Tensor:
        valid = inputs != PADDING if self.data.padded else None
        logits: torch.Tensor = self.model.eval()(inputs.clamp_min(0) if self.data.padded else inputs, None, valid)[0]
        return logits

    @torch.no_grad()
    def measure(self, rows: int | None = None) -> dict[str, float]:
        """The task's held-out measures on at most so many rows, without noise; none where there are no such rows."""
        heldout = self.data.heldout_rows(self.settings.model.context, None) if self.data.measures else None
        if heldout is None:
            return {}
        # a fair sample: what is measured of all, and not by domain
        heldout = Rows(*(array[:rows] for array in heldout))
        ranks = []
        for start in range(0, len(heldout.inputs), HELDOUT_ROWS):
            part = Rows(*(array[start : start + HELDOUT_ROWS] for array in heldout))
            inputs, targets = _tensors(part, self.device)
            logits = self._logits(inputs)
            # a tie counts against the model: the target itself is one of those at least as likely
            rank = (logits >= logits.gather(-1, targets.clamp_min(0)[..., None])).sum(-1) - 1
            ranks.append(rank.where(targets != UNCOUNTED, UNCOUNTED).cpu().numpy())
        return self.data.score(heldout, np.concatenate(ranks))

    # ---- looking
    def set_probe(self, text: str) -> None:
        """The text that snapshots show; how it is read is the task's."""
        self.shown, self.shown_T, self.probe_inputs = self._lay_out(text)
        self.probe = text

    def _lay_out(self, text: str) -> tuple[Probe, Ints, list[torch.Tensor]]:
        """A text as it is shown, the places of what is shown among all that is computed, and the model's inputs."""
        if not text:
            raise UserError("The text is empty; type at least one character.")
        if len(text) > LONGEST_PROBE:
            raise UserError(f"The text has {len(text)} characters; at most {LONGEST_PROBE} can be shown.")
        shown = self.data.lay_out(text, self.settings.model.context)
        inputs = torch.from_numpy(shown.inputs)
        valid = inputs != PADDING
        if inputs.is_floating_point() or valid.all():
            return shown, np.arange(len(shown.tokens)), [inputs.to(self.device)]
        # padding comes last in a row: attention does not look ahead, and routers are told
        return (
            shown,
            valid.flatten().nonzero()[:, 0].numpy(),
            [inputs.clamp_min(0).to(self.device), valid.to(self.device)],
        )

    @torch.no_grad()
    def snapshot(self, layers: tuple[Routing, ...] | None = None) -> RoutingSnapshot:
        """The routing of the probe now, `layers` where it is known, and the numbers of the last step that was
        flushed."""
        router = self._router
        layers = self._look_at_probe() if layers is None else layers
        if router.varies:
            null = range(router.num_ffn, router.num_experts)
            self._executed_L = [executed_experts(layer, null) for layer in layers]
        counts = tuple(self._counts_LE) if self._counts_hold else ()
        shown = self.shown
        return RoutingSnapshot(self.step, layers, shown.tokens, shown.domains, dict(self.losses), counts, self.lineage)

    def _look_at_probe(self) -> tuple[Routing, ...]:
        inputs, router = self.probe_inputs, self._router
        packed = self._look((router.key(), inputs[0].shape, len(inputs)), *inputs).cpu().numpy()
        if self.model.training:  # a trace leaves it as it was
            self.model.eval()
        return unpack_look(packed, router, self.shown_T)

    @torch.no_grad()
    def read(self, text: str) -> RoutingSnapshot:
        """The routing of another text now; the probe stays."""
        shown, shown_T, inputs = self._lay_out(text)
        packed = Look(self.model)(*inputs).cpu().numpy()  # not the probe's own, which is traced for its shape
        layers = unpack_look(packed, self._router, shown_T)
        return RoutingSnapshot(self.step, layers, shown.tokens, shown.domains, lineage=self.lineage)

    def facts(self) -> ModelFacts:
        """Parameters and FLOPs are counted anew only after a change: every snapshot carries them."""
        model, executed_L = self.model, self._executed_L
        of = self.settings, executed_L
        if self._counted is None or self._counted[0] != of:
            counts = total_parameters(model), active_parameters(model, executed_L), flops_per_token(model, executed_L)
            self._counted = of, counts
        executed = None if executed_L is None else float(np.mean(executed_L))
        return ModelFacts(*self._counted[1], self.device, self._tokens_per_step, executed)

    def counts(self) -> torch.Tensor:
        """Assignments per expert (L, E) in the last training batch; -1 if it was routed otherwise or there was none."""
        known = self._counts_LE if self._counts_hold else np.full_like(self._counts_LE, -1)
        return torch.from_numpy(np.ascontiguousarray(known))

    @property
    def _counts_hold(self) -> bool:
        """The last training batch was routed as the model routes now."""
        return self._counts_of == self._routing_now

    @property
    def _routing_now(self) -> Hashable:
        """What the counts of a batch are of: the router itself, its k and way of choosing, and which experts."""
        return self._router, self._router.key(), self.lineage

    # ---- live changes
    def change(self, settings: Settings) -> None:
        """Go on with other live settings. Flush first: the numbers of earlier steps have the old sizes.

        All or nothing: if memory runs out half-way, everything is as it was. Whoever goes back to a structure before
        another step is trained gets back the same experts and routers.
        """
        check_router(settings)
        old, before, after = self.settings, shape(self.settings), shape(settings)
        now = _Earlier(structure(self.model, self.optimiser), self._counts_LE, self.lineage)
        try:
            if after != before and after in self._earlier:
                self._go_back(self._earlier[after])
            elif after != before:
                self._restructure(settings)
            self._set_knobs(settings)
            if after != before or terms_in_use(settings) != terms_in_use(old):
                self._begin_anew()
        except Exception:
            self._go_back(now)
            self._set_knobs(old)
            self._follow_parameters()
            raise
        if after != before:
            self._earlier[before] = now
            while len(self._earlier) > EARLIER:
                del self._earlier[next(iter(self._earlier))]

    def _restructure(self, settings: Settings) -> None:
        """Other experts, another kind of router or other shared experts."""
        old, model = self.settings, self.model
        self._executed_L = None
        generator = resize_generator(settings.seed, self.step, old.model.experts)
        if settings.model.experts != old.model.experts:
            plans = resize_experts(model, self.optimiser, list(self._counts_LE), settings.model.experts, generator)
            ffn = [c[list(p.sources)] for c, p in zip(self._counts_LE, plans, strict=True)]
            self._counts_LE = np.concatenate([np.stack(ffn), self._counts_LE[:, old.model.experts :]], axis=1)
            self.lineage = resized(self.lineage, self.step, [p.sources for p in plans])
        options = router_options(settings)
        if settings.routing.router != old.routing.router or any(
            getattr(self._router, name) != options[name] for name in self._router.structure
        ):
            model.vocabulary["frequencies"] = self._frequencies(settings)
            switch_router(model, self.optimiser, settings, generator)
        shared_before, shared = ((s.model.shared_experts, s.model.shared_gate) for s in (old, settings))
        if shared != shared_before and (shared[0] or shared_before[0]):
            resize_shared(model, self.optimiser, settings, generator)
        if self._counts_LE.shape[1] != self._router.num_experts:  # null experts came or went
            spare = self._router.num_experts - settings.model.experts
            self._counts_LE = np.pad(self._counts_LE[:, : settings.model.experts], ((0, 0), (0, spare)))

    def _set_knobs(self, settings: Settings) -> None:
        self.settings = settings
        options = router_options(settings)
        for layer in self.model.layers:
            layer.router.k = min(settings.routing.k, settings.model.experts)
            for name, value in options.items():
                setattr(layer.router, name, value)
        self._fill_coefficients()

    def _go_back(self, earlier: "_Earlier") -> None:
        put_back(earlier.structure, self.model, self.optimiser)
        self._counts_LE, self.lineage = earlier.counts_LE, earlier.lineage

    def learn_from(self, data: Data) -> None:
        """Go on with other data of the same task and vocabulary. UserError if too little; then nothing changes."""
        context = self.settings.model.context
        batches, heldout = data.batches(context, self.settings.seed), data.heldout_rows(context, HELDOUT_ROWS)
        self.data, self._batches = data, batches
        self._heldout_rows = None if heldout is None else _tensors(heldout, self.device)

    def to(self, device: str, opening: Opening | None = None) -> None:
        """Move everything to another device."""
        check_device(device)
        self._earlier.clear()
        try:
            self._put_on(device)
        except RuntimeError:  # out of memory half-way: all or nothing
            self._put_on(self.device)
            self._begin_anew()  # coming back, too, makes the parameters other tensors
            raise
        self.device = device
        self._fill_coefficients()
        self.probe_inputs = [tensor.to(device) for tensor in self.probe_inputs]
        if self._heldout_rows is not None:
            inputs, targets = self._heldout_rows
            self._heldout_rows = inputs.to(device), targets.to(device)
        self._begin_anew(opening)

    def _put_on(self, device: str) -> None:
        self.model.to(device)
        self.optimiser.to(device)
        if self.twin is not None:
            self.twin.to(device)

    def _fill_coefficients(self) -> None:
        self._terms = terms_in_use(self.settings)
        runs = (RUNS,) if self._router.drops else ()
        self._scalars = (*SCALARS, *self._terms.others, *router_numbers([self._router]), *runs)
        self.losses = {name: value for name, value in self.losses.items() if name in (*self._scalars, "heldout")}
        self._coefficients = torch.tensor(coefficients(self.settings), device=self.device)

    def _begin_anew(self, opening: Opening | None = None) -> None:
        """The parameters are other tensors now."""
        self._follow_parameters()
        good = []
        for tensor in self._state():
            good.append(tensor.detach().clone())
            if opening is not None:
                opening.filled(tensor.dim() > 0)  # no count of steps
        self._good = good  # all of them, or as before
        self._good_step = self.step

    def _follow_parameters(self) -> None:
        self._parameters = list(self.model.parameters())
        self.optimiser.follow(dict(self.model.named_parameters()))
        self._train.forget()
        self._look.forget()
        self._look.enabled = can_group(torch.device(self.device), torch.float32)
        self._train.enabled = self._look.enabled and self._router.traceable

    @property
    def _router(self) -> Router:
        """The first layer's; those of the others differ in weights and state only."""
        return self.model.layers[0].router

    # ---- the last good state
    def _state(self) -> list[torch.Tensor]:
        moments = self.optimiser
        return [
            *(p.detach() for p in self._parameters),
            *moments.mean.values(),
            *moments.square.values(),
            *moments.steps.values(),
            *state_of(self.model).values(),
        ]

    def _keep_good(self) -> None:
        state = self._state()
        # a finite loss can still have had a gradient that is not
        numbers = [tensor for tensor in state if tensor.is_floating_point()]
        if torch.isfinite(torch.stack(torch._foreach_norm(numbers))).all():
            torch._foreach_copy_(self._good, state)
            self._good_step = self.step

    def _restore_good(self) -> None:
        torch._foreach_copy_(self._state(), self._good)
        self._good_step = self.step
        self._moments_began = self._begin_of_moments()  # the moments went back, the step did not


class _Earlier(NamedTuple):
    """A structure, and the training batch's counts and the experts' lineage that belong to it."""

    structure: Structure
    counts_LE: Ints
    lineage: str


def check_device(name: str) -> None:
    """Raises UserError if there is no such device here."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"{name!r} is no device; use cpu, cuda, cuda:N or mps.") from None
    checks: dict[str, Callable[[], bool]] = {
        "cpu": lambda: True,
        "cuda": lambda: torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available,
    }
    if device.type not in checks or not checks[device.type]():
        raise UserError(f"This machine has no device {name!r} that torch can use; use cpu.")


def _finite(values: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.where(np.isfinite(values), values, np.nan)


def _tensors(rows: Rows, device: str) -> Tensors:
    return torch.from_numpy(rows.inputs).to(device), torch.from_numpy(rows.targets).to(device)
