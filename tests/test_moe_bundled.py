"""The model that comes with moeviz: small, trained, and open to more training."""

from pathlib import Path
from typing import Any

import numpy as np

import moeviz.moe
from moeviz.domain.messages import Advance, SaveModel, Session
from moeviz.domain.metrics import dead_experts
from moeviz.domain.settings import Settings
from moeviz.moe.training import session

MODELS = Path(moeviz.moe.__file__).parents[1] / "models"
MODEL = MODELS / "text.safetensors"


def test_bundled_model_is_trained_and_goes_on() -> None:
    assert MODEL.stat().st_size <= 2_000_000
    assert MODEL.with_suffix(".md").exists()
    run = session(Settings(), checkpoint=str(MODEL))
    first = next(run)
    assert first is not None
    assert first.step == 4000
    for _ in range(49):
        run.send(Advance(snapshot=False))
    update = run.send(Advance())
    assert update is not None
    assert update.log is not None
    assert update.log.scalars_S["cross_entropy"].mean() < 1.8, "also just after the start, with new moments"
    assert update.log.scalars_S["heldout"][-1] < 2.2
    assert all(dead_experts(counts_SE.sum(0)) == 0 for counts_SE in update.log.counts_SE)


def losses_of(run: Session, steps: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    for _ in range(steps - 1):
        run.send(Advance(snapshot=False))
    update = run.send(Advance())
    assert update is not None
    assert update.log is not None
    return update.log.scalars_S["cross_entropy"]


def test_a_trained_model_goes_on_without_a_jump_of_its_loss() -> None:
    """Without moments in the file AdamW's first steps would have their full length whatever the gradients."""
    run = session(Settings(), checkpoint=str(MODELS / "plane.safetensors"))
    next(run)
    losses = losses_of(run, 20)
    first = losses[0]  # of the model as it was in the file
    assert losses[1:].max() < 1.6 * first, "it was eight times as high"


def test_a_bundled_model_that_is_saved_while_it_warms_up_goes_on_as_if_it_were_not(tmp_path: Path) -> None:
    plane = str(MODELS / "plane.safetensors")
    whole = session(Settings(), checkpoint=plane)
    next(whole)
    expected = losses_of(whole, 30)
    first = session(Settings(), checkpoint=plane)
    next(first)
    losses_of(first, 10)
    first.send(SaveModel(str(tmp_path)))
    second = session(Settings(), checkpoint=str(tmp_path))
    next(second)
    np.testing.assert_array_equal(losses_of(second, 20), expected[10:])
