"""E SwiGLU experts with packed weights, as transformers packs them. Only the chosen experts of a token are computed.

By the compiled code where that fits, else by torch as follows.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from moeviz.moe import compiled


def can_group(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch has a fast product of all experts in one call here (bfloat16 takes 39 times as long on a CPU)."""
    fast = (torch.float32,) if device.type == "cpu" else (torch.float32, torch.bfloat16, torch.float16)
    return hasattr(functional, "grouped_mm") and device.type in ("cpu", "cuda") and dtype in fast


class Experts(nn.Module):
    """gate_up_proj (E, 2F, D), gate half first; down_proj (E, D, F).   E_e(x) = down (silu(gate x) * up x)."""

    def __init__(
        self,
        num_experts: int,
        d_model: int,
        d_ff: int,
        *,
        down_scale: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(
            torch.randn(num_experts, 2 * d_ff, d_model, generator=generator) * d_model**-0.5
        )
        self.down_proj = nn.Parameter(
            torch.randn(num_experts, d_model, d_ff, generator=generator) * d_ff**-0.5 * down_scale
        )

    @property
    def num_experts(self) -> int:
        return self.gate_up_proj.shape[0]

    def forward(self, x_TD: Tensor, expert_ids_TK: Tensor, gate_weights_TK: Tensor) -> Tensor:
        """Sum over the K chosen experts of weight times output, (T, D). An id of -1 stands for no expert: it adds
        nothing, takes no gradient and, but on CUDA, costs nothing."""
        weights_TK, expert_ids_TK = gate_weights_TK.to(x_TD.dtype), expert_ids_TK.long()
        if compiled.fits(x_TD, self.gate_up_proj):
            return compiled.mixture(x_TD, expert_ids_TK, weights_TK, self.gate_up_proj, self.down_proj)
        if x_TD.is_cuda:  # a count read from the device would have to be waited for
            weights_TK, expert_ids_TK = weights_TK.masked_fill(expert_ids_TK < 0, 0.0), expert_ids_TK.clamp(min=0)
        gate_up_EDF, down_EFD = self.gate_up_proj.transpose(1, 2), self.down_proj.transpose(1, 2)
        group, pad = self._way(x_TD, expert_ids_TK.numel())
        y_TD: Tensor = _mixture(x_TD, expert_ids_TK, weights_TK, gate_up_EDF, down_EFD, group, pad)
        return y_TD

    def _way(self, x_TD: Tensor, num_pairs: int) -> tuple[bool, bool]:
        """Whether to use grouped products, and whether to pad (then groups are for an uneven load). The limits are
        measured: with many hidden values an expert it pays that its rows stay in the cache between its products, one
        expert after the other, and without a gradient that begins earlier."""
        aligned = self.down_proj.shape[2] * x_TD.element_size() % 16 == 0  # else the grouped product refuses
        group = aligned and can_group(x_TD.device, x_TD.dtype)
        if x_TD.device.type != "cpu":
            return group, False
        training, hidden = torch.is_grad_enabled(), num_pairs // self.num_experts * self.gate_up_proj.shape[1]
        pad = torch.get_num_threads() > 1 and (training or hidden < 200_000)
        return group and hidden < (200_000 if training else 65_000), pad


@torch.jit.script_if_tracing  # type: ignore[untyped-decorator]
def _mixture(
    x_TD: Tensor,
    ids_TK: Tensor,
    weights_TK: Tensor,
    gate_up_EDF: Tensor,
    down_EFD: Tensor,
    group: bool,
    pad: bool,
) -> Tensor:
    """In a trace this is compiled rather than recorded, since some lengths depend on the ids."""
    num_experts, k, device = gate_up_EDF.size(0), ids_TK.size(1), x_TD.device
    # sort the T*K pairs by expert, so that each expert reads one run of rows; those without an expert come first
    sorted_ids, order = ids_TK.flatten().sort(stable=True)
    starts = torch.searchsorted(sorted_ids, torch.arange(num_experts + 1, device=device))
    if not x_TD.is_cuda:
        dropped = int(starts[0])
        if dropped > 0:
            sorted_ids, order, starts = sorted_ids[dropped:], order[dropped:], starts - dropped
            weights_TK = weights_TK.masked_fill(ids_TK < 0, 0.0)
    if order.numel() == 0:
        return torch.zeros_like(x_TD)
    token, row = order // k, torch.arange(order.numel(), device=device)
    fullest = 0
    if pad:
        # Threads share out whole experts if all go through one batched product, each padded to the fullest; with a load
        # less even than this (measured), one product after the other is faster.
        fullest = int(starts.diff().max())
        if fullest <= 1.3 * order.numel() / num_experts + 20:
            row += (torch.arange(num_experts, device=device) * fullest - starts[:-1]).index_select(0, sorted_ids)
            # what is computed for the unused rows, from token 0, is never read
            token = token.new_zeros(num_experts * fullest).scatter_(0, row, token)
        else:
            fullest = 0
    y = _outputs(x_TD.index_select(0, token), gate_up_EDF, down_EFD, starts, fullest, group)
    place_TK = torch.zeros_like(ids_TK).flatten().scatter_(0, order, row).view(-1, k)
    # one pass over the rows, no (T, K, D) copy
    return functional.embedding_bag(place_TK, y, mode="sum", per_sample_weights=weights_TK)


def _outputs(x: Tensor, gate_up_EDF: Tensor, down_EFD: Tensor, starts: Tensor, fullest: int, group: bool) -> Tensor:
    """Each expert's rows of x through that expert: `fullest` rows each, or, if 0, starts[e] to starts[e + 1]."""
    if fullest > 0:
        hidden = torch.bmm(x.view(-1, fullest, x.size(1)), gate_up_EDF)
        return torch.bmm(_swiglu(hidden), down_EFD).flatten(0, 1)
    if group:
        ends = starts[1:].int()
        return torch._grouped_mm(_swiglu(torch._grouped_mm(x, gate_up_EDF, offs=ends)), down_EFD, offs=ends)
    counts: list[int] = starts.diff().tolist()
    # unbind, not indexing: one gradient for the packed weights instead of a full-size one per expert
    rows, gate_up, down = torch.split(x, counts), gate_up_EDF.unbind(), down_EFD.unbind()
    return torch.cat([_swiglu(rows[e] @ gate_up[e]) @ down[e] for e in range(len(counts))])


def _swiglu(hidden: Tensor) -> Tensor:
    gate, up = hidden.chunk(2, dim=-1)
    return functional.silu(gate) * up
