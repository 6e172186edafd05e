"""`moeviz experiment`: published phenomena measured on small models, the paper's figure beside ours."""

import importlib
import json
import textwrap
import time

from moeviz.domain.errors import UserError
from moeviz.domain.experiments import EXPERIMENTS

# the module and its function for each experiment: seed -> our figures by name
MEASURES = {
    "balance_losses": ("balance", "losses"),
    "balance_scope": ("balance", "scope"),
    "loss_free": ("balance", "loss_free"),
    "capacity": ("trained", "capacity"),
    "drop_position": ("trained", "drop_position"),
    "repeats": ("trained", "repeats"),
    "saturation": ("trained", "saturation_curve"),
}


def measure(name: str, seed: int) -> dict[str, float]:
    """Our figures of an experiment, by name. Trains for up to a minute on one core."""
    module, function = MEASURES[name]
    figures: dict[str, float] = getattr(importlib.import_module(f"moeviz.experiments.{module}"), function)(seed)
    return figures


def run(name: str, seed: int, as_json: bool) -> int:
    """Measure and print. UserError for an unknown name."""
    if name not in EXPERIMENTS:
        raise UserError(f"{name!r} is no experiment; choose one of {', '.join(EXPERIMENTS)}.")
    experiment, start = EXPERIMENTS[name], time.monotonic()
    ours = measure(name, seed)
    seconds = round(time.monotonic() - start, 1)
    rows = [{"what": what, "paper": experiment.figures.get(what), "ours": value} for what, value in ours.items()]
    if as_json:
        told = {"name": name, "title": experiment.title, "source": experiment.source, "limits": experiment.limits}
        print(json.dumps({**told, "seed": seed, "seconds": seconds, "results": rows}, allow_nan=False))
        return 0
    print(f"{experiment.title} ({experiment.source})\n")
    widths = [max(len(str(text)) for text in column) for column in (ours, ["paper", *experiment.figures.values()])]
    print(" " * widths[0], "paper".rjust(widths[1]), "here", sep="  ")
    for what, value in ours.items():
        print(what.ljust(widths[0]), experiment.figures.get(what, "-").rjust(widths[1]), f"{value:.3g}", sep="  ")
    print("\n" + textwrap.fill(f"{experiment.limits} Seed {seed}, {seconds:.0f} s.", 110))
    return 0


def show(as_json: bool) -> int:
    """List the experiments."""
    if as_json:
        keys = ("name", "title", "source", "watch", "limits")
        listed = [
            {key: getattr(experiment, key) for key in keys} | {"settings": dict(experiment.settings)}
            for experiment in EXPERIMENTS.values()
        ]
        print(json.dumps({"experiments": listed}))
    else:
        for experiment in EXPERIMENTS.values():
            print(f"{experiment.name:<16} {experiment.title} ({experiment.source})")
    return 0
