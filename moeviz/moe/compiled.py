"""The experts as one call of compiled code (`experts.c`), where that was built and this processor can run it.

Only float32 on a CPU, and only widths that are multiples of the processor's registers. The call waits for Python's lock
once in each direction, and gives the same bits with any number of threads.
"""

import ctypes
import importlib.util
from typing import Any

import torch
from torch import Tensor

BUILDS = ("moeviz.moe._experts_avx512", "moeviz.moe._experts_avx2")  # the faster first


def load(build: str) -> ctypes.CDLL | None:
    """The code by its name in BUILDS; None if installing built none, or it is not for this processor."""
    spec = importlib.util.find_spec(build)
    if spec is None or spec.origin is None:
        return None
    try:
        library = ctypes.CDLL(spec.origin)  # no module of Python: it knows nothing of it
    except OSError:  # its OpenMP is missing
        return None
    return library if library.runs_here() else None


LIBRARY = next((library for library in map(load, BUILDS) if library is not None), None)


def fits(x_TD: Tensor, gate_up_proj: Tensor) -> bool:
    """Whether the compiled code is here and made for these."""
    if LIBRARY is None or any(t.dtype != torch.float32 or t.device.type != "cpu" for t in (x_TD, gate_up_proj)):
        return False
    return not (x_TD.shape[1] % LIBRARY.width() or gate_up_proj.shape[1] % (2 * LIBRARY.width()))


def mixture(x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, gate_up_proj: Tensor, down_proj: Tensor) -> Tensor:
    """What `experts.py` computes by torch, (T, D). Ids outside 0 to E - 1 stand for no expert."""
    y_TD: Tensor = _Mixture.apply(  # type: ignore[no-untyped-call]
        x_TD, ids_TK, weights_TK, gate_up_proj, down_proj, torch.is_grad_enabled()
    )
    return y_TD


class _Mixture(torch.autograd.Function):
    """A trace records it as one operation. `keep`: whether backward may follow."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        *given, keep = inputs
        x, ids, weights, gate_up, down = (tensor.contiguous() for tensor in given)
        num_experts, pairs = gate_up.shape[0], ids.numel()
        starts, panels, order = (ids.new_empty(n) for n in (num_experts + 1, num_experts, pairs))
        hidden = x.new_empty(pairs + num_experts * (_width() - 1) if keep else 0, gate_up.shape[1])
        terms, y = x.new_empty(pairs, x.shape[1]), torch.empty_like(x)
        _call("forward", x, ids, weights, gate_up, down, starts, panels, order, hidden, terms, y)
        if keep:
            ctx.save_for_backward(x, ids, weights, gate_up, down, starts, panels, order, hidden)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, ids, weights, gate_up, down, *kept = ctx.saved_tensors
        dx, dw, dgate_up, ddown = (torch.empty_like(tensor) for tensor in (x, weights, gate_up, down))
        terms = x.new_empty(ids.numel(), x.shape[1])
        _call("backward", x, ids, weights, gate_up, down, *kept, dy.contiguous(), terms, dx, dw, dgate_up, ddown)
        return dx, None, dw, dgate_up, ddown, None


def _width() -> int:
    assert LIBRARY is not None
    return int(LIBRARY.width())


def _call(name: str, x: Tensor, ids: Tensor, weights: Tensor, gate_up: Tensor, *others: Tensor) -> None:
    sizes = (*ids.shape, gate_up.shape[0], x.shape[1], gate_up.shape[1] // 2)  # T, K, E, D, F
    pointers = (ctypes.c_void_p(tensor.data_ptr()) for tensor in (x, ids, weights, gate_up, *others))
    getattr(LIBRARY, name)(torch.get_num_threads(), *map(ctypes.c_int64, sizes), *pointers)
