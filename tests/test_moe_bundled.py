"""The model that comes with moeviz: small, trained, and open to more training."""

from pathlib import Path

import moeviz.moe
from moeviz.domain.messages import Advance
from moeviz.domain.metrics import dead_experts
from moeviz.domain.settings import Settings
from moeviz.moe.training import session

MODEL = Path(moeviz.moe.__file__).parents[1] / "models" / "text.safetensors"


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
