"""The trained models that come with the tasks besides text: what they know, and that the window opens with them."""

from pathlib import Path

import pytest

import moeviz.moe
from moeviz import app
from moeviz.domain.messages import Advance, Restart, Survey, UserError
from moeviz.domain.settings import TASKS, Settings
from moeviz.headless import look
from moeviz.moe.checkpoint import load
from moeviz.moe.tasks.loading import load_task
from moeviz.moe.trainer import Trainer
from moeviz.moe.training import measure, session
from moeviz.view.memory import memory

MODELS = Path(moeviz.moe.__file__).parents[1] / "models"
# the baseline must be beaten by this much; the cards tell by how much it is
LEADS = {
    "translation": {"exact_match": 0.005, "character_accuracy": 0.3},
    "search": {"hit_at_1": 0.2, "hit_at_1_no_context": 0.1},
    "recommendation": {"hit_at_10": 0.25, "mrr": 0.15},
    "plane": {"accuracy": 0.4},
}


def test_every_task_has_a_model_with_a_card():
    for task in TASKS:
        path = MODELS / f"{task}.safetensors"
        assert path.stat().st_size <= 2_000_000
        card = path.with_suffix(".md").read_text()
        assert f"moeviz train --task {task} --steps {load(path).step} " in card
        assert "Baseline" in card
        assert app.bundled_model(task) == str(path)


@pytest.mark.parametrize("task", LEADS)
def test_on_a_few_rows_it_beats_the_most_frequent_answer(task):
    saved = load(MODELS / f"{task}.safetensors")
    data = load_task(task).with_vocabulary(saved.vocabulary)
    trainer = Trainer(saved.settings, data, "cpu", data.probe, saved)
    found, baseline = trainer.measure(96), data.baseline(saved.settings.model.context)
    assert found.keys() == baseline.keys() == LEADS[task].keys()
    for name, lead in LEADS[task].items():
        if name != "exact_match":  # too rare to be seen on a few rows
            assert found[name] > baseline[name] + lead / 2
    if task == "search":
        assert found["hit_at_1"] > 1.5 * found["hit_at_1_no_context"]


@pytest.mark.slow
@pytest.mark.parametrize("task", LEADS)
def test_on_all_rows_it_beats_the_most_frequent_answer(task):
    found, baseline = measure(str(MODELS / f"{task}.safetensors"))
    for name, lead in LEADS[task].items():
        assert found[name] > baseline[name] + lead


@pytest.mark.parametrize("task", LEADS)
def test_it_shows_several_domains_goes_on_and_starts_anew(task):
    run = session(Settings(), checkpoint=str(MODELS / f"{task}.safetensors"))
    first = next(run)
    assert first.settings.task == task
    assert len(set(first.snapshot.domains)) >= 2
    surveyed = run.send(Survey()).survey
    assert surveyed.probe.tokens == first.snapshot.tokens
    assert surveyed.heldout.num_tokens % surveyed.row_length == 0
    assert len(surveyed.heldout.tokens) == len(surveyed.heldout.domains) == surveyed.heldout.num_tokens
    assert len(set(surveyed.heldout.domains)) >= 2
    for _ in range(4):
        run.send(Advance(snapshot=False))
    assert run.send(Advance()).step == first.step + 5
    again = run.send(Restart())
    assert again.step == 0
    assert again.settings.task == task
    run.close()


@pytest.mark.parametrize("task", TASKS)
def test_without_a_text_its_task_s_own_probe_is_shown(task):
    path = MODELS / f"{task}.safetensors"
    seen = look(str(path), None, changes={})
    run = session(Settings(), checkpoint=str(path))
    assert seen.snapshot.tokens == next(run).snapshot.tokens
    assert seen.text == "".join(seen.snapshot.tokens)
    run.close()
    with pytest.raises(UserError, match="text is empty"):
        look(str(path), "", changes={})


def test_the_window_opens_with_the_model_of_the_task(qtbot, tmp_path):
    for options, wanted in (
        ({"task": "search"}, "search.safetensors"),
        ({}, "text.safetensors"),
        ({"task": "search", "seed": 1}, None),
    ):
        window, _ = app.open_window([], **options, store=memory(tmp_path / "window.ini"))
        qtbot.addWidget(window)
        assert (window.checkpoint and Path(window.checkpoint).name) == wanted
        assert window.settings.task == options.get("task", "text")
