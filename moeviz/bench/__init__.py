"""`moeviz bench`: what moeviz costs, as ratios inside one run, since machines differ and are noisy."""

import importlib
import json
import os
from typing import Any

from moeviz.domain.errors import UserError

BENCHES = ("gui", "scrub", "startup", "memory", "kernel")


def run(name: str, as_json: bool) -> int:
    """Measure and print. Each bench is a module here with `measure()`, and `table()` where a list of figures would be
    too long. Raises UserError for an unknown name."""
    if name not in BENCHES:
        raise UserError(f"{name!r} is not a benchmark of this version: choose one of {', '.join(BENCHES)}.")
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    bench = importlib.import_module(f"moeviz.bench.{name}")
    found: dict[str, Any] = bench.measure()
    if as_json:
        print(json.dumps(found))
    elif hasattr(bench, "table"):
        print(bench.table(found))
    else:
        for key, value in found.items():
            print(f"{key:52} {value:.3g}")
    return 0
