"""E SwiGLU experts with packed weights, as transformers packs them. Only the chosen experts of a token are computed."""

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional

_GROUPED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def can_group(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch multiplies all experts in one call here. If not, experts run in a loop, which cannot be traced:
    its slices depend on the data."""
    return hasattr(functional, "grouped_mm") and device.type in ("cpu", "cuda") and dtype in _GROUPED_DTYPES


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
        """Sum over the K chosen experts of weight times output, (T, D)."""
        num_tokens, k = expert_ids_TK.shape
        if num_tokens == 0:
            return torch.zeros_like(x_TD)
        # sort the T*K pairs by expert, so that each expert reads one run of rows
        sorted_ids, order = expert_ids_TK.flatten().sort(stable=True)
        experts = torch.arange(self.num_experts, device=order.device)
        ends_E = torch.searchsorted(sorted_ids, experts, right=True, out_int32=True)
        x_sorted = x_TD.index_select(0, order // k)
        if can_group(x_TD.device, x_TD.dtype):
            y_sorted = self._grouped(x_sorted, ends_E)
        else:
            y_sorted = self._looped(x_sorted, ends_E)
        place = torch.empty_like(order).scatter_(0, order, torch.arange(order.numel(), device=order.device))
        # one pass over the rows, no (T, K, D) copy
        return functional.embedding_bag(
            place.view(num_tokens, k), y_sorted, mode="sum", per_sample_weights=gate_weights_TK.to(y_sorted.dtype)
        )

    def _grouped(self, x_sorted: Tensor, ends_E: Tensor) -> Tensor:
        gate, up = functional.grouped_mm(x_sorted, self.gate_up_proj.transpose(-2, -1), offs=ends_E).chunk(2, dim=-1)
        return functional.grouped_mm(functional.silu(gate) * up, self.down_proj.transpose(-2, -1), offs=ends_E)

    def _looped(self, x_sorted: Tensor, ends_E: Tensor) -> Tensor:
        ends = [0, *ends_E.tolist()]
        counts = [after - before for before, after in itertools.pairwise(ends)]
        outputs = []
        # unbind, not indexing: one gradient for the packed weights instead of a full-size one per expert
        for x, gate_up, down in zip(
            torch.split(x_sorted, counts), self.gate_up_proj.unbind(), self.down_proj.unbind(), strict=True
        ):
            gate, up = functional.linear(x, gate_up).chunk(2, dim=-1)
            outputs.append(functional.linear(functional.silu(gate) * up, down))
        return torch.cat(outputs)
