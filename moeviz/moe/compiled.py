"""The experts as one call of compiled code (`experts.c`), where that was built and this processor can run it.

Only float32 on a CPU, and only widths that are multiples of the processor's registers. The call waits for Python's lock
once in each direction, and gives the same bits with any number of threads.
"""

import ctypes
import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import torch
from torch import Tensor

BUILDS = ("moeviz.moe._experts_avx512", "moeviz.moe._experts_avx2")  # the faster first
SOURCE = Path(__file__).with_name("experts.c")
OTHER_SOURCE = (
    "The compiled experts were built from another experts.c than the one here, so they are not used and all is slower; "
    "run pip install again."
)


class Code(NamedTuple):
    """Of one build: its two functions, the floats of a register, and the tokens of an expert it works on at once."""

    forward: Callable[..., None]
    backward: Callable[..., None]
    width: int
    tile: int


def load(build: str) -> Code | None:
    """The code by its name in BUILDS; None if installing built none, it is not for this processor, or, with a warning,
    it is of another source than the one here."""
    spec = importlib.util.find_spec(build)
    if spec is None or spec.origin is None:
        return None
    try:
        library = ctypes.CDLL(spec.origin)  # no module of Python: it knows nothing of it
    except OSError:  # its OpenMP is missing
        return None
    try:
        built_from = ctypes.c_uint32.in_dll(library, "SOURCE").value
    except ValueError:  # from before it was told
        built_from = None
    # its functions may take other things: to call them could end the program
    if built_from is None or (SOURCE.exists() and built_from != crc32(SOURCE.read_bytes())):
        warnings.warn(OTHER_SOURCE, stacklevel=2)  # of one place, so it is told once
        return None
    if not library.runs_here():
        return None
    for function, tensors in ((library.forward, 9), (library.backward, 13)):
        function.argtypes = (ctypes.c_int, *[ctypes.c_int64] * 5, *[ctypes.c_void_p] * tensors)
        function.restype = None
    # constants rather than functions: every call waits for Python's lock
    width, tile = (ctypes.c_int.in_dll(library, name).value for name in ("WIDTH", "TILE_TOKENS"))
    return Code(library.forward, library.backward, width, tile)


LIBRARY = next((code for code in map(load, BUILDS) if code is not None), None)


def fits(x_TD: Tensor, gate_up_proj: Tensor) -> bool:
    """Whether the compiled code is here and made for these."""
    if LIBRARY is None or any(t.dtype != torch.float32 or t.device.type != "cpu" for t in (x_TD, gate_up_proj)):
        return False
    return not (x_TD.shape[1] % LIBRARY.width or gate_up_proj.shape[1] % (2 * LIBRARY.width))


def mixture(x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, gate_up_proj: Tensor, down_proj: Tensor) -> Tensor:
    """What `experts.py` computes by torch, (T, D). Ids outside 0 to E - 1 stand for no expert. Raises ValueError for
    tensors of other shapes or types than it is made for."""
    y_TD: Tensor = _Mixture.apply(  # type: ignore[no-untyped-call]
        x_TD, ids_TK, weights_TK, gate_up_proj, down_proj, torch.is_grad_enabled()
    )
    return y_TD


class _Mixture(torch.autograd.Function):
    """A trace records it as one operation. `keep`: whether backward may follow.

    Python's lock is waited for to make a tensor and to free it, as well as after a call: so there are few."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        *given, keep = inputs
        code = _checked(*given)  # here, so that a trace checks too and records nothing of it
        x, ids, weights, gate_up, down = (tensor.contiguous() for tensor in given)
        sizes, pairs = _sizes(ids, gate_up), ids.numel()
        num_experts, hidden_width, _ = gate_up.shape
        runs = ids.new_empty(2 * num_experts + 1 + pairs)
        hidden = x.new_empty(pairs + num_experts * (code.width - 1) if keep else 0, hidden_width)
        work, y = _work(x, code, sizes, 2, 3), torch.empty_like(x)
        _call(code.forward, sizes, x, ids, weights, gate_up, down, runs, hidden, work, y)
        if keep:
            ctx.save_for_backward(x, ids, weights, gate_up, down, runs, hidden)
            ctx.code = code
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, ids, weights, gate_up, down, runs, hidden = ctx.saved_tensors
        sizes = _sizes(ids, gate_up)
        dx, dw, dgate_up, ddown = (torch.empty_like(tensor) for tensor in (x, weights, gate_up, down))
        given, work = (x, ids, weights, gate_up, down, runs, hidden, dy.contiguous()), _work(x, ctx.code, sizes, 3, 4)
        _call(ctx.code.backward, sizes, *given, work, dx, dw, dgate_up, ddown)
        return dx, None, dw, dgate_up, ddown, None


def _checked(x: Tensor, ids: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Code:
    """The code, if these are what it is made for: it is given addresses, and would read on behind what is too small."""
    assert LIBRARY is not None
    fit = (
        (x.ndim, ids.ndim, gate_up.ndim) == (2, 2, 3)
        and weights.shape == ids.shape
        and ids.shape[0] == x.shape[0]
        and gate_up.shape[2] == x.shape[1]
        and down.shape == (gate_up.shape[0], gate_up.shape[2], gate_up.shape[1] // 2)
        and not (x.shape[1] % LIBRARY.width or gate_up.shape[1] % (2 * LIBRARY.width))
        and ids.dtype is torch.int64
        and all(tensor.dtype is torch.float32 for tensor in (x, weights, gate_up, down))
        and all(tensor.is_cpu for tensor in (x, ids, weights, gate_up, down))
    )
    if not fit:
        given = {"x": x, "ids": ids, "weights": weights, "gate_up_proj": gate_up, "down_proj": down}
        told = (f"{name} {tuple(t.shape)} {t.dtype} on {t.device}".replace("torch.", "") for name, t in given.items())
        raise ValueError(
            "The compiled experts take x (T, D), ids and weights (T, K), gate_up_proj (E, 2F, D), down_proj (E, D, F), "
            f"with D and F multiples of {LIBRARY.width}, the ids int64 and all else float32, on the CPU, not "
            f"{', '.join(told)}."
        )
    return LIBRARY


def _sizes(ids: Tensor, gate_up: Tensor) -> tuple[int, ...]:
    """Threads, T, K, E, D, F."""
    num_experts, hidden_width, d_model = gate_up.shape
    return torch.get_num_threads(), *ids.shape, num_experts, d_model, hidden_width // 2


def _work(x: Tensor, code: Code, sizes: tuple[int, ...], of_d: int, of_f: int) -> Tensor:
    """Memory to work in: of_d D + of_f F floats for each token that a thread works on, then D for each pair."""
    threads, tokens, k, _, d_model, d_ff = sizes
    return x.new_empty(threads * (of_d * d_model + of_f * d_ff) * code.tile + tokens * k * d_model)


def _call(function: Callable[..., None], sizes: tuple[int, ...], *tensors: Tensor) -> None:
    function(*sizes, *(tensor.data_ptr() for tensor in tensors))
