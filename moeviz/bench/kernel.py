"""What the MoE layer costs: forward, and forward and backward, as multiples of a dense FFN, beside other packages.

Every figure is a median time over that of the bound: one SwiGLU FFN (gate and up, silu(gate) * up, down) of one
expert's width on T*k rows, by torch's own operations: the work that is left when routing is free. MoELayer can fall
below it, since its compiled experts keep in the cache what the bound's operations write and read again. Layers are
timed with their routers, on the same random tokens, in float32, in turns within one process for one thread and one
for two. How the peers differ:

- transformers (OLMoE's block, eager and grouped_mm): the same computation as MoELayer with the router topk_raw.
- pytorch-mixtures: its SwiGLU does not run (its widths do not fit), so its plain FFN (two matrices and biases) at
  1.5 F, which is the same number of multiplications. Nothing is dropped. It asks for torch 2.2: install it --no-deps.
- st-moe-pytorch: GEGLU experts of width F with biases; k >= 2. Its experts have places for T*k/E tokens (the capacity
  factor is k), just the rows of the bound, and tokens beyond are DROPPED.
- mixture-of-experts: plain FFN (no biases) at 1.5 F; k = 2 only. Capacity and drops as st-moe-pytorch.

The processes keep the memory they freed (glibc's malloc): otherwise one contender pays for what another gave back.
"""

import importlib
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from moeviz.domain.errors import UserError
from moeviz.moe import MoELayer, build_router, compiled

D, F = 128, 256
CELLS = [(t, e, k) for t in (256, 1024, 4096) for e in (4, 8, 16, 64) for k in (1, 2, 4)]
SECONDS, ROUNDS = 2.0, 15  # for one cell: rounds stop at either, but nothing is measured less than twice
KEEP_MEMORY = {
    "MALLOC_TOP_PAD_": "268435456",
    "MALLOC_TRIM_THRESHOLD_": "4000000000",
    "MALLOC_MMAP_THRESHOLD_": "4000000000",
}

Layer = Callable[[Tensor], Tensor]


class Bound(nn.Module):
    """One FFN; it is given T*k rows."""

    def __init__(self, d: int, f: int) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(torch.randn(2 * f, d) * d**-0.5)
        self.down = nn.Parameter(torch.randn(d, f) * f**-0.5)

    def forward(self, x_TD: Tensor) -> Tensor:
        gate, up = functional.linear(x_TD, self.gate_up).chunk(2, dim=-1)
        return functional.linear(functional.silu(gate) * up, self.down)


def moeviz(e: int, k: int, d: int, f: int) -> tuple[nn.Module, Layer]:
    layer = MoELayer(d, f, build_router("topk_raw", d, e, k))
    return layer, lambda x: layer(x)[0]


def _olmoe(way: str, e: int, k: int, d: int, f: int) -> tuple[nn.Module, Layer]:
    config = importlib.import_module("transformers").OlmoeConfig(
        hidden_size=d, intermediate_size=f, num_experts=e, num_experts_per_tok=k, norm_topk_prob=False
    )
    config._experts_implementation = way
    block = importlib.import_module("transformers.models.olmoe.modeling_olmoe").OlmoeSparseMoeBlock(config)
    for parameter in block.parameters():  # it leaves them empty, for a checkpoint
        nn.init.normal_(parameter, std=d**-0.5)

    def run(x: Tensor) -> Tensor:
        y = block(x[None])
        return y[0][0] if isinstance(y, tuple) else y[0]  # type: ignore[no-any-return]

    return block, run


def olmoe_eager(e: int, k: int, d: int, f: int) -> tuple[nn.Module, Layer]:
    return _olmoe("eager", e, k, d, f)


def olmoe_grouped(e: int, k: int, d: int, f: int) -> tuple[nn.Module, Layer]:
    return _olmoe("grouped_mm", e, k, d, f)


def pytorch_mixtures(e: int, k: int, d: int, f: int) -> tuple[nn.Module, Layer]:
    package = importlib.import_module("pytorch_mixtures")
    layer = package.TopkMoE(package.MoEConfig(d, 3 * f // 2, e, "ff", "silu", "topk", None, k, torch.float32))
    return layer, lambda x: layer(x[None])[0]


def st_moe(e: int, k: int, d: int, f: int) -> tuple[nn.Module, Layer] | None:
    package = importlib.import_module("st_moe_pytorch")
    if k < 2:
        return None
    layer = package.MoE(
        d,
        num_experts=e,
        gating_top_n=k,
        expert_hidden_mult=(f + 0.5) * 1.5 / d,  # it makes int(2/3 of this * d) of it
        threshold_train=0.0,
        threshold_eval=0.0,
        capacity_factor_train=float(k),
        capacity_factor_eval=float(k),
    )
    return layer, lambda x: layer(x[None])[0][0]


def mixture_of_experts(e: int, k: int, d: int, f: int) -> tuple[nn.Module, Layer] | None:
    package = importlib.import_module("mixture_of_experts")
    if k != 2:
        return None
    layer = package.MoE(
        d,
        num_experts=e,
        hidden_dim=3 * f // 2,
        activation=nn.SiLU,
        second_policy_train="all",
        second_policy_eval="all",
        capacity_factor_train=k,
        capacity_factor_eval=k,
    )
    return layer, lambda x: layer(x[None])[0][0]


LAYERS: dict[str, Callable[[int, int, int, int], tuple[nn.Module, Layer] | None]] = {
    "moeviz": moeviz,
    "OLMoE eager": olmoe_eager,
    "OLMoE grouped": olmoe_grouped,
    "pytorch-mixtures": pytorch_mixtures,
    "st-moe": st_moe,
    "mixture-of-experts": mixture_of_experts,
}


def build(e: int, k: int, d: int, f: int) -> tuple[dict[str, tuple[nn.Module, Layer]], list[str]]:
    """The layers that exist for this k, by name, and the names of those whose package is not installed."""
    layers, missing = {}, []
    for name, make in LAYERS.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what a peer's own code is warned of
                made = make(e, k, d, f)
        except ModuleNotFoundError:
            missing.append(name)
            continue
        if made is not None:
            layers[name] = made
    return layers, missing


def cell(t: int, e: int, k: int, d: int = D, f: int = F, seconds: float = SECONDS) -> dict[str, Any]:
    """One size: the bound's milliseconds, and every layer's ratios to it; (forward, forward and backward) each."""
    torch.manual_seed(0)
    layers, missing = build(e, k, d, f)
    bound = Bound(d, f)
    x = torch.randn(t, d, requires_grad=True)
    runs = {name: (module, run, x) for name, (module, run) in layers.items()}
    runs["bound"] = (bound, bound, x.detach().repeat(k, 1).requires_grad_())
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    spent = dict.fromkeys(runs, 0.0)
    began = time.perf_counter()
    for number in range(ROUNDS + 1):
        if number > 2 and time.perf_counter() - began > seconds:
            break
        for name, (module, run, rows) in runs.items():
            # a slow one is measured twice at least, the others go on
            if number > 2 and spent[name] > seconds / 3:
                continue
            pair = _time(module, run, rows)
            spent[name] += sum(pair)
            if number:  # the first round warms up
                times[name].append(pair)
    medians = {n: [statistics.median(column) for column in zip(*pairs, strict=True)] for n, pairs in times.items()}
    floor = medians.pop("bound")
    ratios = {n: [a / b for a, b in zip(values, floor, strict=True)] for n, values in medians.items()}
    return {"T": t, "E": e, "k": k, "bound_ms": [s * 1000 for s in floor], "ratios": ratios, "missing": missing}


def _time(module: nn.Module, run: Layer, x: Tensor) -> tuple[float, float]:
    """Seconds of a forward pass without gradients, and of forward and backward to tokens and parameters."""
    with torch.no_grad():
        start = time.perf_counter()
        y = run(x)
        forward = time.perf_counter() - start
    grad = torch.ones_like(y)
    wanted = [x, *module.parameters()]
    start = time.perf_counter()
    torch.autograd.grad(run(x), wanted, grad, allow_unused=True)
    return forward, time.perf_counter() - start


def measure() -> dict[str, Any]:
    """All cells with one torch thread, then with two. Takes some minutes."""
    passes = {}
    for threads in (1, 2):
        child = subprocess.run(
            [sys.executable, "-m", "moeviz.bench.kernel", str(threads)],
            env=os.environ | KEEP_MEMORY,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if child.returncode:
            raise UserError(f"The measurement with {threads} threads failed; what it said stands above.")
        passes[str(threads)] = json.loads(child.stdout)
    return {"threads": passes, "compiled": compiled.LIBRARY is not None}


def table(found: Mapping[str, Any]) -> str:
    """One line a cell: forward / forward and backward of every layer, as multiples of the bound; * marks where moeviz
    is not the fastest."""
    names = list(LAYERS)
    lines = ["forward / forward+backward, times over a dense FFN on T*k rows (its ms in the third column)"]
    for threads, cells in found["threads"].items():
        lines.append(f"{threads} thread(s)".ljust(18) + "bound".rjust(13) + "".join(n.rjust(19) for n in names))
        for c in cells:
            line = f"T={c['T']} E={c['E']} k={c['k']}".ljust(18) + "{:6.2f}/{:6.2f}".format(*c["bound_ms"])
            for name in names:
                pair = c["ratios"].get(name)
                line += ("{:.2f}/{:.2f}".format(*pair) if pair else "-").rjust(19)
            lines.append(line + ("" if all(fastest(c)) else "  *"))
        beaten = sum(sum(fastest(c)) for c in cells)
        lines.append(f"moeviz is the fastest in {beaten} of {2 * len(cells)}")
    missing = {name for cells in found["threads"].values() for c in cells for name in c["missing"]}
    lines += [f"left out, its package is not installed: {name}" for name in sorted(missing)]
    if not found["compiled"]:
        lines.append("moeviz computed by torch: its compiled experts were not built, or are not for this processor")
    return "\n".join(lines)


def fastest(c: Mapping[str, Any]) -> list[bool]:
    """Whether no other layer of a cell is faster than moeviz: forward, and forward and backward."""
    ours = c["ratios"]["moeviz"]
    return [all(ours[i] <= pair[i] for pair in c["ratios"].values()) for i in range(2)]


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]))
    rows = []
    for size in CELLS:
        rows.append(cell(*size))
        print(*size, {name: [round(r, 2) for r in pair] for name, pair in rows[-1]["ratios"].items()}, file=sys.stderr)
    print(json.dumps(rows))
