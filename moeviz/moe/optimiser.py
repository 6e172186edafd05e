"""AdamW as plain tensors by parameter name, in one fused call: torch.optim.AdamW would import a compiler (1.8 s)."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

BETA1, BETA2, EPS, WEIGHT_DECAY = 0.9, 0.99, 1e-8, 0.01


class AdamW:
    """Moments `mean` and `square`, and the number of `steps` of each parameter, all by the parameter's name; `saved`:
    these three as they were. `made` hears of each moment that starts."""

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        saved: Sequence[Mapping[str, Tensor]] = ({}, {}, {}),
        made: Callable[[int], object] = bool,
    ) -> None:
        self.mean, self.square, self.steps = map(dict, saved)
        self.follow(parameters, made)

    def follow(self, parameters: Mapping[str, Tensor], made: Callable[[int], object] = bool) -> None:
        """Update exactly these parameters from now on. New names start with moments of zero, names that are gone are
        forgotten. Call it whenever a parameter or a moment was replaced by another tensor."""
        for moments in (self.mean, self.square):
            for name, p in parameters.items():
                if name not in moments:
                    moments[name] = torch.zeros_like(p, requires_grad=False)
                    made(1)
        for name, p in parameters.items():
            if name not in self.steps:
                self.steps[name] = torch.zeros((), device=p.device)
        for values in (self.mean, self.square, self.steps):
            for name in values.keys() - parameters.keys():
                del values[name]
        # made once: every call of torch lets go of the interpreter lock, and has to wait for it beside a window
        self._parameter_list = [p.detach() for p in parameters.values()]
        self._mean_list = [self.mean[name] for name in parameters]
        self._square_list = [self.square[name] for name in parameters]
        self._step_list = [self.steps[name] for name in parameters]

    def step(self, grads: list[Tensor] | tuple[Tensor, ...], lr: float) -> None:
        """Update the parameters in place. `grads` in their order."""
        with torch.no_grad():
            torch._foreach_add_(self._step_list, 1)
            torch._fused_adamw_(
                self._parameter_list,
                [grad.contiguous() for grad in grads],  # their memory is read as if it lay like the parameters'
                self._mean_list,
                self._square_list,
                [],
                self._step_list,
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
