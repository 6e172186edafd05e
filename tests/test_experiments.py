"""The experiments: what they offer the window and the command line, and that each phenomenon shows over three seeds.

Bounds are wide, and nothing is claimed of the quality of models.
"""

import json
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from functools import cache
from importlib import import_module

import numpy as np
import pytest

from moeviz import experiments
from moeviz.cli import main
from moeviz.domain.experiments import EXPERIMENTS
from moeviz.domain.settings import Settings

SEEDS = (0, 1, 2)


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=lambda e: e.name)
def test_every_arm_can_be_set(experiment: object) -> None:
    base = Settings().with_values(experiment.settings)
    assert list(experiment.arms.values()).count({}) == 1, "the settings are those of one arm"
    for changes in experiment.arms.values():
        arm = base.with_values(changes)
        for key in (*experiment.settings, *changes):
            assert arm.applies(key), f"{key} does nothing here"
    with pytest.raises(FrozenInstanceError):
        experiment.name = "other"


def test_each_experiment_has_a_measure() -> None:
    assert list(EXPERIMENTS) == list(experiments.MEASURES)
    for module, function in experiments.MEASURES.values():
        assert callable(getattr(import_module(f"moeviz.experiments.{module}"), function))


def test_the_command_lists_prints_and_refuses(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = {"factor 1.25, no loss": 0.25, "something": 1.0}
    monkeypatch.setattr(experiments, "measure", lambda name, seed: ours)
    assert main(["experiment"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(EXPERIMENTS)
    assert main(["experiment", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["experiments"]
    assert [e["settings"] for e in listed] == [dict(e.settings) for e in EXPERIMENTS.values()]
    assert main(["experiment", "capacity"]) == 0
    out = capsys.readouterr().out
    assert ["factor", "1.25,", "no", "loss", "0.029", "0.25"] in [line.split() for line in out.splitlines()]
    assert main(["experiment", "capacity", "--json", "--seed", "3"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["seed"] == 3
    assert told["results"] == [
        {"what": "factor 1.25, no loss", "paper": "0.029", "ours": 0.25},
        {"what": "something", "paper": None, "ours": 1.0},
    ]
    assert main(["experiment", "nosuch"]) == 2
    assert "nosuch" in capsys.readouterr().err


def test_position_drops_agree_with_counting_by_hand() -> None:
    from moeviz.experiments.trained import POSITION_FACTOR, _dropped

    ids = np.stack([np.random.default_rng(0).permuted(np.tile(np.arange(4), (30, 1)), axis=1)[:, :2] for _ in range(3)])
    ids[1] = [0, 1]
    dropped = _dropped(ids, 4)
    places = int(np.ceil(POSITION_FACTOR * 2 * 30 / 4))
    for row, got in zip(ids, dropped, strict=True):
        used = [0] * 4
        for rank in range(2):
            for position in range(30):
                used[row[position, rank]] += 1
                assert got[position, rank] == (used[row[position, rank]] > places)
    assert dropped[1].sum() == 60 - 2 * places


# ---- the phenomena
@cache
def measured(name: str, seed: int) -> dict[str, float]:
    found = experiments.measure(name, seed)
    missing = EXPERIMENTS[name].figures.keys() - found.keys()
    assert not missing, f"the paper's figures stand beside none of ours: {missing}"
    assert np.isfinite(list(found.values())).all()
    return found


@pytest.fixture(scope="module", params=SEEDS)  # one seed after the other: four experiments share its models
def of(request: pytest.FixtureRequest) -> Callable[[str], dict[str, float]]:
    return lambda name: measured(name, request.param)


slow = pytest.mark.slow
Figures = Callable[[str], dict[str, float]]


@slow
def test_importance_and_load_loss_prevent_collapse(of: Figures) -> None:
    r = of("balance_losses")
    for what, least, most in (
        ("CV of importance", 1.5, 0.3),
        ("CV of load", 1.5, 0.3),
        ("largest / mean load", 6, 1.5),
    ):
        assert r[f"no loss: {what}"] > least
        for arm in ("importance 0.2", "load 0.2"):
            assert r[f"{arm}: {what}"] < most
    assert r["load 0.2: CV of load"] < r["importance 0.2: CV of load"]


@slow
def test_balance_over_sequences_leaves_less_of_the_domain(of: Figures) -> None:
    r = of("balance_scope")
    batch, sequence = (r[f"over {what}: I(expert; domain) / H(domain)"] for what in ("the batch", "each sequence"))
    assert batch > 1.8 * sequence
    assert sequence > 0
    assert batch < 0.5


@slow
def test_a_bias_balances_better_than_a_weak_loss(of: Figures) -> None:
    r = of("loss_free")
    nothing, loss, bias = (r[f"{arm}: MaxVio_global"] for arm in ("nothing", "loss 0.001", "bias 0.001"))
    assert nothing > 1.5
    assert bias < 0.5 * loss
    assert bias < 0.4 * nothing


@slow
def test_balance_and_capacity_prevent_drops(of: Figures) -> None:
    r = of("capacity")
    for arm in ("balance loss", "no loss"):
        drops = [r[f"factor {factor:g}, {arm}"] for factor in (0.75, 1, 1.25, 2, 4)]
        assert drops == sorted(drops, reverse=True)
        assert drops[0] >= 0.25 - 0.01, "a quarter has no place at all"
        assert drops[-1] == 0
    for factor in (0.75, 1, 1.25, 2):
        assert r[f"factor {factor:g}, no loss"] > r[f"factor {factor:g}, balance loss"]
    assert r["factor 1.25, no loss"] > 0.15
    assert r["factor 1.25, balance loss"] < 0.15


@slow
def test_the_end_of_a_sequence_drops_most(of: Figures) -> None:
    r = of("drop_position")
    known, other = (
        [r[f"{part} eighth, {text}"] for part in ("first", "fifth", "last")]
        for text in ("held-out text", "text unlike the training text")
    )
    for drops in (known, other):
        assert drops == sorted(drops)
        assert drops[-1] > 2 * drops[0]
    assert other[-1] > 1.15 * known[-1]


@slow
def test_neighbours_share_experts_and_the_character_decides(of: Figures) -> None:
    r = of("repeats")
    for layer in ("first layer", "last layer"):
        assert r[f"{layer}: repeats of the first choice"] > 1.3 * r[f"{layer}: repeats by chance"]
    assert r["I(first expert; character), nats"] > 0.6
    assert abs(r["I(first expert; position), nats"]) < 0.05


@slow
def test_routing_settles(of: Figures) -> None:
    r = of("saturation")
    early, middle, late = (r[f"after {percent} % of training"] for percent in (1, 20, 70))
    assert early < middle < late
    assert r["after 0 % of training"] < r["by chance"] + 0.15
    assert r["after 10 % of training"] > r["by chance"] + 0.1
    assert middle > 1.7 * r["by chance"]
