"""One call without the GIL: a module that runs eagerly at first and then as a trace.

Beside a drawing window every torch operation of a training thread waits for the interpreter lock. A traced module is
one call, so it waits once. A trace holds for one set of shapes, and making it takes a moment: a new `key` (shapes, k,
router, ...) therefore starts eagerly, and is traced when it has lasted for some calls. The rule counts calls, never
time, and both ways give the same bits.
"""

import warnings
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn


class Traced:
    """Calls the module that `make` gives, with tensors; it is asked anew whenever the key changes."""

    def __init__(self, make: Callable[[], nn.Module], eager_calls: int, enabled: bool = True) -> None:
        self._make = make
        self._eager_calls = eager_calls
        self.enabled = enabled
        self.forget()

    def forget(self) -> None:
        """Drop the trace: the module's parameters or its way of computing are others now."""
        self._key: Hashable = None
        self._calls = 0
        self._call: Callable[..., Any] | None = None
        self.is_traced = False

    def __call__(self, key: Hashable, *inputs: Tensor) -> Any:
        if self._call is None or key != self._key:
            self.forget()
            self._key, self._call = key, self._make()
        self._calls += 1
        if self.enabled and not self.is_traced and self._calls == self._eager_calls + 1:
            self._trace(inputs)
        return self._call(*inputs)

    def _trace(self, inputs: tuple[Tensor, ...]) -> None:
        try:
            self._call = trace(self._make(), inputs)
            self.is_traced = True
        except Exception as error:  # noqa: BLE001 - TorchScript is on its way out: without it, go on eagerly
            warnings.warn(f"training runs without a trace, slower beside the window: {error}", stacklevel=2)


def trace(module: nn.Module, inputs: tuple[Tensor, ...]) -> Callable[..., Any]:
    """The module as one recorded function of `inputs`, for their shapes; parameters and buffers are read at each call.

    Not torch.jit.trace: its registry keeps every trace for good, some 10 MB each time that a knob changes shapes.
    """
    # run the operations as they were recorded: the executors that profile or differentiate by their own formulas give
    # other bits than eager and are no faster here
    torch._C._jit_set_profiling_executor(False)
    torch._C._set_graph_executor_optimize(False)
    state = (*module.parameters(), *module.buffers())  # are inputs too, or the trace would hold their values of now
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of deprecation and of shapes that become constants
        graph, _ = torch._C._create_graph_by_tracing(
            lambda *tensors: module(*tensors[: len(inputs)]), (*inputs, *state), lambda tensor: "", True, False
        )
    recorded = torch._C._create_function_from_graph("recorded", graph)
    return lambda *newer: recorded(*newer, *state)
