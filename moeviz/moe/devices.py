"""Which devices this machine has."""

import torch


def devices() -> tuple[str, ...]:
    """By the names that settings and the command line use, the CPU first."""
    found = ["cpu"]
    if torch.backends.mps.is_available():
        found.append("mps")
    count = torch.cuda.device_count()
    return (*found, *(["cuda"] if count == 1 else [f"cuda:{i}" for i in range(count)]))
