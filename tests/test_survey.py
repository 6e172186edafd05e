"""A survey tells what the model does, the same at every call, and changes nothing."""

import gc
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from moeviz.domain import metrics
from moeviz.domain.messages import Advance, Restart, SetKnobs, Show, Survey
from moeviz.domain.settings import ROUTERS, Settings
from moeviz.domain.survey import PARTS
from moeviz.moe import survey as surveys
from moeviz.moe.tasks.text import load_text
from moeviz.moe.trainer import Trainer
from moeviz.moe.training import session

SMALL = Settings().with_values(
    {"model.layers": 2, "model.width": 16, "model.expert_width": 16, "model.context": 32, "model.experts": 4}
)


DOMAINS = ["ants", "bees", "cats", "dogs"]


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """Four domains of random words: the built-in text takes its time to read."""
    folder = tmp_path_factory.mktemp("text")
    for seed, name in enumerate(DOMAINS):
        letters = np.random.default_rng(seed).choice(list("abcdefgh ,.\n"), 8_000)
        (folder / f"{name}.txt").write_text("".join(letters))
    return folder


@pytest.fixture
def run_of(text):
    """Makes sessions that have trained two steps, with other settings by key."""
    made = []

    def make(**changes):
        values = {key.replace("__", "."): value for key, value in changes.items()}
        run = session(SMALL.with_values({"data.path": str(text), **values}))
        made.append(run)
        next(run)
        for _ in range(2):
            run.send(Advance(snapshot=False))
        return run

    yield make
    for run in made:
        run.close()


@pytest.mark.parametrize("router", ROUTERS)
def test_parts_add_up_to_the_output_of_every_router(run_of, router):
    run = run_of(routing__router=router)
    found, shown = run.send(Survey()).survey, run.send(Show()).snapshot
    for routing, terms, seen in zip(found.probe.layers, found.terms, shown.layers, strict=True):
        np.testing.assert_array_equal(routing.expert_ids_TK, seen.expert_ids_TK)
        parts = np.nansum(routing.gate_weights_TK * terms.output_norm_TK * terms.output_cosine_TK, axis=1)
        if routing.num_null or routing.soft:  # these add what is no single expert's
            assert np.isnan(terms.output_norm_TK).any()
        else:
            np.testing.assert_allclose(parts, terms.sum_norm_T, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("router", ["topk", "noisy_topk", "null", "expert_choice", "sigmoid_bias"])
def test_the_noise_is_the_routers_own(text, router):
    values = {"data.path": str(text), "routing.router": router, "routing.noise": 0.7}
    settings = SMALL.with_values(values)
    trainer = Trainer(settings, load_text(str(text)), "cpu", "a few ants, and bees")
    for _ in range(3):
        trainer.advance()
    inputs: list[torch.Tensor] = []
    hook = trainer.model.layers[1].register_forward_hook(lambda _, x, out: inputs.append(x[0]))
    found = surveys.survey(trainer, frozenset({"terms"})).terms[1].noise_std_TE
    hook.remove()
    x_TD, layer_router = inputs[0].flatten(0, -2), trainer.model.layers[1].router
    draws_TR = torch.ones(len(x_TD), layer_router.num_draws)
    with torch.no_grad():
        routed = layer_router.train()(x_TD, draws_TR)
    added_TE = routed.noisy_TE - routed.logits_TE  # a draw of 1 adds one standard deviation
    assert found.shape == (20, layer_router.num_experts)
    np.testing.assert_allclose(found, added_TE, rtol=1e-4, atol=1e-6)
    if router == "noisy_topk":
        scores_TE = x_TD.detach().double().numpy() @ layer_router.weight_noise.detach().double().numpy().T
        np.testing.assert_allclose(found, 0.7 * np.log1p(np.exp(scores_TE)), rtol=1e-5)
        assert found.std() > 0
    else:
        np.testing.assert_array_equal(found, np.float32(0.7))
    trainer.change(settings.with_values({"routing.noise": 0.0}))
    assert surveys.survey(trainer, frozenset({"terms"})).terms[1].noise_std_TE is None


def test_dropped_experts_have_no_output(run_of):
    run = run_of(routing__capacity_factor=0.5)
    found = run.send(Survey()).survey
    for routing, terms in zip(found.probe.layers, found.terms, strict=True):
        assert routing.dropped_TK.any()
        np.testing.assert_array_equal(np.isnan(terms.output_norm_TK), routing.dropped_TK)


def test_shared_experts_are_what_is_left(run_of):
    run = run_of(model__shared_experts=1)
    found = run.send(Survey()).survey
    routing, terms = found.probe.layers[0], found.terms[0]
    parts = (routing.gate_weights_TK * terms.output_norm_TK * terms.output_cosine_TK).sum(axis=1)
    assert (np.abs(parts - terms.sum_norm_T) > 1e-3 * terms.sum_norm_T).mean() > 0.9


def test_the_same_held_out_tokens_equally_of_each_domain(run_of):
    run = run_of()
    first, second = (run.send(Survey()).survey for _ in range(2))
    held = first.heldout
    assert held.tokens == second.heldout.tokens
    assert first.row_length == 32
    assert held.num_tokens == 16 * 32
    assert metrics.codes(held.domains)[0] == DOMAINS
    assert set(np.bincount(metrics.codes(held.domains)[1]).tolist()) == {4 * 32}
    for a, b in zip(held.layers, second.heldout.layers, strict=True):
        np.testing.assert_array_equal(a.expert_ids_TK, b.expert_ids_TK)
        assert a.num_tokens == held.num_tokens


@pytest.mark.parametrize("part", sorted(PARTS))
def test_each_part_is_the_same_alone_and_all_else_is_left_out(run_of, part):
    every, only = (run_of().send(Survey(parts)).survey for parts in (PARTS, frozenset({part})))
    assert bool(only.terms) == (part == "terms")
    assert bool(only.similarity) == (part == "similarity")
    assert bool(only.inputs) == (part == "inputs")
    assert (only.heldout is None) == (part == "terms")
    for name in ("terms", "similarity", "inputs"):
        for a, b in zip(getattr(only, name), getattr(every, name), strict=False):
            for field in type(a).__dataclass_fields__:
                np.testing.assert_array_equal(getattr(a, field), getattr(b, field))
    for a, b in [(only.probe, every.probe), (only.heldout or every.heldout, every.heldout)]:
        for mine, wanted in zip(a.layers, b.layers, strict=True):
            np.testing.assert_array_equal(mine.expert_ids_TK, wanted.expert_ids_TK)
            np.testing.assert_array_equal(mine.gate_weights_TK, wanted.gate_weights_TK)


def test_held_out_tokens_are_read_once_until_the_data_are_others(run_of, tmp_path):
    run = run_of()
    first, second = (run.send(Survey(frozenset({"heldout"}))).survey.heldout for _ in range(2))
    assert first.tokens is second.tokens
    (tmp_path / "eels.txt").write_text("".join(np.random.default_rng(5).choice(list("abcdefgh ,.\n"), 8_000)))
    run.send(SetKnobs({"data.path": str(tmp_path)}))
    assert set(run.send(Survey()).survey.heldout.domains) == {"eels"}


def test_data_that_were_surveyed_go_with_their_run(run_of):
    run = run_of()
    run.send(Survey())
    data = weakref.ref(run.gi_frame.f_locals["run"].trainer.data)
    run.send(SetKnobs({"task": "plane", "data.path": ""}))
    run.send(SetKnobs({"train.lr": 0.001}))
    gc.collect()
    assert data() is None


def test_the_first_survey_of_its_kind_tells_no_time_for_the_next_takes_less(run_of):
    run, alone = run_of(), Survey(frozenset({"heldout"}))
    told = ["survey" in run.send(command).timings for command in (Survey(), Survey(), alone, alone, Restart(), alone)]
    assert told == [False, True, False, True, False, False]


def test_training_goes_on_as_without_it(run_of):
    plain, surveyed = run_of(), run_of()
    surveyed.send(Survey())
    losses = [run.send(Advance(snapshot=True)).log.scalars_S["loss"][-1] for run in (plain, surveyed)]
    assert losses[0] == losses[1]


def test_a_survey_keeps_the_numbers_of_the_steps_before_it(run_of):
    run = run_of()
    update = run.send(Survey())
    assert update.log is not None
    assert update.log.steps_S.tolist() == [1, 2]


def test_a_survey_comes_with_the_snapshot_of_its_step(run_of):
    run = run_of()
    run.send(Advance(snapshot=False))
    update = run.send(Survey())
    assert update.snapshot.step == update.survey.step == 3
    for seen, shown in zip(update.survey.probe.layers, update.snapshot.layers, strict=True):
        assert (seen.expert_ids_TK == shown.expert_ids_TK).all()


def test_similarity_agrees_with_the_measures(run_of, monkeypatch):
    seen = []
    own = surveys._similarity

    def note(layer, x_TD, num_layers):
        seen.append((layer, x_TD.clone()))
        return own(layer, x_TD, num_layers)

    monkeypatch.setattr(surveys, "_similarity", note)
    run = run_of()
    found = run.send(Survey()).survey.similarity
    for similarity, (layer, x_TD) in zip(found, seen, strict=True):
        rows = layer.router.weight.detach().numpy()
        np.testing.assert_allclose(similarity.router_cosine_EE, metrics.cosines(rows), atol=1e-6)
        assert similarity.num_tokens == 512 == x_TD.shape[0]
        ones = torch.ones(512, 1)
        with torch.no_grad():
            outputs = [layer.experts(x_TD, ones.long() * e, ones).numpy() for e in range(4)]
        wanted = [[metrics.linear_cka(a, b) for b in outputs] for a in outputs]
        np.testing.assert_allclose(similarity.output_cka_EE, wanted, atol=1e-4)


def test_large_experts_are_not_run_on_every_token(run_of, monkeypatch):
    monkeypatch.setattr(surveys, "CKA_FLOP", 1e5)
    run = run_of()
    assert all(s.output_cka_EE is None and s.num_tokens == 0 for s in run.send(Survey()).survey.similarity)


def test_a_domain_too_short_for_one_sequence_is_told(tmp_path):
    for name, size in (("long", 20_000), ("short", 2_100)):
        (tmp_path / f"{name}.txt").write_text(("abcdefghij klm\n" * size)[:size])
    run = session(SMALL.with_values({"data.path": str(tmp_path), "model.context": 256}))
    next(run)
    found = run.send(Survey()).survey
    assert set(found.heldout.domains) == {"long"}
    assert found.lack == "Held out of short is less than one sequence."
    run.close()
