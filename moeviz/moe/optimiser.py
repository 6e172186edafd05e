"""AdamW as plain tensors by parameter name, in one fused call: torch.optim.AdamW would import a compiler (1.8 s)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

BETA1, BETA2, EPS, WEIGHT_DECAY = 0.9, 0.99, 1e-8, 0.01


class AdamW:
    """Moments `mean` and `square`, and the number of `steps` of each parameter, all by the parameter's name."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self.mean: dict[str, Tensor] = {}
        self.square: dict[str, Tensor] = {}
        self.steps: dict[str, Tensor] = {}
        self.follow(parameters)

    def follow(self, parameters: Mapping[str, Tensor]) -> None:
        """Hold moments for exactly these parameters: new names start at zero, names that are gone are forgotten."""
        for moments in (self.mean, self.square):
            for name, p in parameters.items():
                if name not in moments:
                    moments[name] = torch.zeros_like(p, requires_grad=False)
        for name, p in parameters.items():
            if name not in self.steps:
                self.steps[name] = torch.zeros((), device=p.device)
        for values in (self.mean, self.square, self.steps):
            for name in values.keys() - parameters.keys():
                del values[name]

    def step(self, parameters: Mapping[str, Tensor], grads: Sequence[Tensor], lr: float) -> None:
        """Update the parameters in place. `grads` in the order of `parameters`."""
        steps = [self.steps[name] for name in parameters]
        with torch.no_grad():
            torch._foreach_add_(steps, 1)
            torch._fused_adamw_(
                [p.detach() for p in parameters.values()],
                list(grads),
                [self.mean[name] for name in parameters],
                [self.square[name] for name in parameters],
                [],
                steps,
                lr=lr,
                beta1=BETA1,
                beta2=BETA2,
                weight_decay=WEIGHT_DECAY,
                eps=EPS,
                amsgrad=False,
                maximize=False,
            )

    def to(self, device: str) -> None:
        for values in (self.mean, self.square, self.steps):
            for name, tensor in values.items():
                values[name] = tensor.to(device)
