"""`moeviz bench`: what moeviz costs, as ratios inside one run, since machines differ and are noisy."""

import importlib
import json
import os

from moeviz.domain.errors import UserError

BENCHES = ("gui", "startup", "memory")


def run(name: str, as_json: bool) -> int:
    """Measure and print. Each bench is a module here with `measure()`. Raises UserError for an unknown name."""
    if name not in BENCHES:
        raise UserError(f"{name!r} is not a benchmark of this version: choose one of {', '.join(BENCHES)}.")
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    found: dict[str, float] = importlib.import_module(f"moeviz.bench.{name}").measure()
    if as_json:
        print(json.dumps(found))
    else:
        for key, value in found.items():
            print(f"{key:44} {value:.3g}")
    return 0
