"""A small causal character model: blocks of attention and an MoE layer. It returns its routing with its logits."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from moeviz.domain.settings import Settings
from moeviz.moe.layer import MoELayer
from moeviz.moe.routers import RoutingTensors, build_router

HEAD_WIDTH = 16


def _matrix(rows: int, columns: int, std: float, generator: torch.Generator | None) -> nn.Parameter:
    return nn.Parameter(torch.randn(rows, columns, generator=generator) * std)


class RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, self.weight.shape, self.weight, 1e-6)


class Attention(nn.Module):
    """Causal self-attention with heads of 16 dimensions. qkv (3D, D), out (D, D)."""

    def __init__(self, width: int, out_scale: float, generator: torch.Generator | None) -> None:
        super().__init__()
        self.qkv = _matrix(3 * width, width, width**-0.5, generator)
        self.out = _matrix(width, width, width**-0.5 * out_scale, generator)

    def forward(self, x_BTD: Tensor) -> Tensor:
        b, t, d = x_BTD.shape
        heads = functional.linear(x_BTD, self.qkv).view(b, t, 3, d // HEAD_WIDTH, HEAD_WIDTH)
        q, k, v = heads.permute(2, 0, 3, 1, 4).unbind()
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return functional.linear(mixed.transpose(1, 2).reshape(b, t, d), self.out)


class Block(nn.Module):
    """x + attention(norm x), then x + moe(norm x)."""

    def __init__(self, settings: Settings, generator: torch.Generator | None) -> None:
        super().__init__()
        sizes, routing = settings.model, settings.routing
        # branches start small, so that the sum over the layers starts at the size of one
        scale = (2 * sizes.layers) ** -0.5
        self.attention_norm = RMSNorm(sizes.width)
        self.attention = Attention(sizes.width, scale, generator)
        self.moe_norm = RMSNorm(sizes.width)
        router = build_router(
            routing.router,
            sizes.width,
            sizes.experts,
            min(routing.k, sizes.experts),
            temperature=routing.temperature,
            noise=routing.noise,
            generator=generator,
        )
        self.moe = MoELayer(sizes.width, sizes.expert_width, router, down_scale=scale, generator=generator)

    def forward(self, x_BTD: Tensor, epsilon_TE: Tensor | None) -> tuple[Tensor, RoutingTensors]:
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD))
        y_BTD, routing = self.moe(self.moe_norm(x_BTD), epsilon_TE)
        return x_BTD + y_BTD, routing


class CharModel(nn.Module):
    """Predicts the next of V characters. The sizes come from the settings; `generator` fixes the start weights."""

    def __init__(self, settings: Settings, vocabulary_size: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        width = settings.model.width
        self.context = settings.model.context
        self.embedding = _matrix(vocabulary_size, width, 0.1, generator)
        self.position = _matrix(self.context, width, 0.1, generator)
        self.blocks = nn.ModuleList(Block(settings, generator) for _ in range(settings.model.layers))
        self.norm = RMSNorm(width)
        self.head = _matrix(vocabulary_size, width, 0.02, generator)

    @property
    def layers(self) -> list[MoELayer]:
        """The MoE layers, first to last."""
        return [block.moe for block in self.blocks]  # type: ignore[misc]

    def forward(
        self, tokens_BT: Tensor, epsilon_LTE: Tensor | None = None
    ) -> tuple[Tensor, tuple[RoutingTensors, ...]]:
        """Logits (B, T, V) and one routing a layer over the B*T tokens. `epsilon_LTE`: the draws for the routers'
        noise, over the same B*T tokens; without it routers follow their own rule (noise only while training)."""
        x_BTD = functional.embedding(tokens_BT, self.embedding) + self.position[: tokens_BT.shape[1]]
        routings = []
        for layer, block in enumerate(self.blocks):
            x_BTD, routing = block(x_BTD, None if epsilon_LTE is None else epsilon_LTE[layer])
            routings.append(routing)
        return functional.linear(self.norm(x_BTD), self.head), tuple(routings)


def total_parameters(model: CharModel) -> int:
    return sum(p.numel() for p in model.parameters())


def active_parameters(model: CharModel) -> int:
    """Parameters that one token uses: all but those of the E - k experts it did not choose, in each layer."""
    idle = 0
    for layer in model.layers:
        per_expert = sum(p[0].numel() for p in layer.experts.parameters())
        idle += (layer.router.num_experts - layer.router.k) * per_expert
    return total_parameters(model) - idle


def flops_per_token(model: CharModel) -> int:
    """Floating-point operations of one token's forward pass, averaged over a full context C.

    Two for each active weight of a matrix (embedding and position are looked up, not multiplied), and the causal
    average of attention's two products, 2 L C D. Norms, softmax and other small terms are left out. Training takes
    about three times as many.
    """
    vectors = sum(p.numel() for p in model.parameters() if p.dim() == 1)
    matrices = active_parameters(model) - vectors - model.embedding.numel() - model.position.numel()
    attention = 2 * len(model.blocks) * model.context * model.embedding.shape[1]
    return 2 * matrices + attention
