"""A small causal character model: blocks of attention and an MoE layer. It returns its routing with its logits."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from moeviz.domain.messages import UserError
from moeviz.domain.settings import KNOBS, Settings
from moeviz.moe.layer import MoELayer
from moeviz.moe.routers import Option, RoutingTensors, build_router
from moeviz.moe.tasks import FEATURES

HEAD_WIDTH = 16


def router_options(settings: Settings) -> dict[str, Option]:
    """The options of the settings' router, by their name in `build_router`: the knobs that apply to it."""
    router, values = settings.routing.router, settings.flat()
    return {
        key.removeprefix("routing."): values[key]
        for key, knob in KNOBS.items()
        if key.startswith("routing.") and key not in ("routing.router", "routing.k") and knob.applies_to(router)
    }


def check_router(settings: Settings) -> None:
    """UserError for a router that needs token ids where the task has none."""
    if settings.routing.router == "hash" and settings.task in FEATURES:
        raise UserError("The hash router goes by a token's identity, and points have none; choose another router.")


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
    """x + attention(norm x), unless the tokens have nothing to do with each other, then x + moe(norm x)."""

    def __init__(self, settings: Settings, vocabulary: dict[str, Option], generator: torch.Generator | None) -> None:
        super().__init__()
        sizes, routing = settings.model, settings.routing
        # branches start small, so that the sum over the layers starts at the size of one
        scale = (2 * sizes.layers) ** -0.5
        self.attends = settings.task not in FEATURES
        if self.attends:
            self.attention_norm = RMSNorm(sizes.width)
            self.attention = Attention(sizes.width, scale, generator)
        self.moe_norm = RMSNorm(sizes.width)
        router = build_router(
            routing.router,
            sizes.width,
            sizes.experts,
            min(routing.k, sizes.experts),
            generator=generator,
            **router_options(settings),
            **(vocabulary if routing.router == "hash" else {}),
        )
        self.moe = MoELayer(
            sizes.width,
            sizes.expert_width,
            router,
            shared_experts=sizes.shared_experts,
            shared_gate=sizes.shared_gate == "sigmoid",
            down_scale=scale,
            generator=generator,
        )

    def forward(
        self, x_BTD: Tensor, epsilon_TR: Tensor | None, tokens_BT: Tensor, valid_BT: Tensor | None
    ) -> tuple[Tensor, RoutingTensors]:
        if self.attends:
            x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD))
        y_BTD, routing = self.moe(self.moe_norm(x_BTD), epsilon_TR, token_ids=tokens_BT, valid=valid_BT)
        return x_BTD + y_BTD, routing


class CharModel(nn.Module):
    """Predicts the next of V tokens, or the class of points, each by itself: where the task's inputs are numbers they
    are embedded by a matrix and a bias, and there are no positions and no attention. The sizes come from the settings;
    `generator` fixes the start weights. UserError for a router that needs token ids where there are none.

    `frequencies` (V,): how often each token comes in the data, for a balanced hash table.
    """

    def __init__(
        self,
        settings: Settings,
        vocabulary_size: int,
        generator: torch.Generator | None = None,
        frequencies: Tensor | None = None,
    ) -> None:
        super().__init__()
        width = settings.model.width
        self.vocabulary: dict[str, Option] = {"vocabulary_size": vocabulary_size, "frequencies": frequencies}
        self.context = settings.model.context
        check_router(settings)
        self.features = FEATURES.get(settings.task, 0)
        if self.features:
            self.embedding = _matrix(width, self.features, 1.0, generator)
            self.bias = nn.Parameter(torch.zeros(width))
        else:
            self.embedding = _matrix(vocabulary_size, width, 0.1, generator)
            self.position = _matrix(self.context, width, 0.1, generator)
        self.blocks = nn.ModuleList(Block(settings, self.vocabulary, generator) for _ in range(settings.model.layers))
        self.norm = RMSNorm(width)
        self.head = _matrix(vocabulary_size, width, 0.02, generator)

    @property
    def layers(self) -> list[MoELayer]:
        """The MoE layers, first to last."""
        return [block.moe for block in self.blocks]  # type: ignore[misc]

    def forward(
        self, tokens_BT: Tensor, epsilon_LTR: Tensor | None = None, valid_BT: Tensor | None = None
    ) -> tuple[Tensor, tuple[RoutingTensors, ...]]:
        """Logits (B, T, V) and one routing a layer over the B*T tokens. `epsilon_LTR`: the draws for the routers'
        randomness, over the same B*T tokens; without it routers follow their own rule (only while training).
        `valid_BT`: False = padding, which is not routed; it must come last in a row."""
        if self.features:
            x_BTD = functional.linear(tokens_BT, self.embedding, self.bias)
        else:
            x_BTD = functional.embedding(tokens_BT, self.embedding) + self.position[: tokens_BT.shape[1]]
        routings = []
        for layer, block in enumerate(self.blocks):
            epsilon_TR = None if epsilon_LTR is None else epsilon_LTR[layer]
            x_BTD, routing = block(x_BTD, epsilon_TR, tokens_BT, valid_BT)
            routings.append(routing)
        return functional.linear(self.norm(x_BTD), self.head), tuple(routings)


def total_parameters(model: CharModel) -> int:
    return sum(p.numel() for p in model.parameters())


def active_parameters(model: CharModel, executed_L: Sequence[float] | None = None) -> int:
    """Parameters that one token uses: all but those of the experts it did not run, in each layer.

    executed_L: experts that a token ran on average in each layer, where that was measured; else it is what the router
    aims at, for top_p, which has no aim, all.
    """
    if executed_L is None:
        executed_L = [layer.router.active_experts for layer in model.layers]
    idle = 0.0
    for layer, executed in zip(model.layers, executed_L, strict=True):
        idle += (layer.router.num_ffn - executed) * _per_expert(layer)
    return total_parameters(model) - round(idle)


def _per_expert(layer: MoELayer) -> int:
    return sum(p[0].numel() for p in layer.experts.parameters())


def flops_per_token(model: CharModel, executed_L: Sequence[float] | None = None) -> int:
    """Floating-point operations of one token's forward pass, averaged over a full context C.

    Two for each active weight of a matrix (embedding and position are looked up, not multiplied), and the causal
    average of attention's two products, 2 L C D. Norms, softmax and other small terms are left out. Training takes
    about three times as many. `executed_L` as for `active_parameters`.
    """
    if executed_L is None:  # an expert of Soft MoE runs on slots, which are not as many as tokens
        executed_L = [layer.router.expert_runs(model.context) for layer in model.layers]
    runs = (executed * flops_per_run(layer) for layer, executed in zip(model.layers, executed_L, strict=True))
    return flops_outside_experts(model) + round(sum(runs))


def flops_outside_experts(model: CharModel) -> int:
    """Those of `flops_per_token` that no routed expert makes."""
    looked_up = () if model.features else (model.embedding, model.position)
    matrices = _matrices_outside_experts(model) - sum(p.numel() for p in looked_up)
    attention = 0 if model.features else 2 * len(model.blocks) * model.context * model.embedding.shape[1]
    return 2 * matrices + attention


def flops_of_layer(layer: MoELayer, context: int) -> float:
    """Those of `flops_per_token` that one MoE layer makes: router, shared experts, and the experts that run."""
    return 2 * _matrices_outside_experts(layer) + layer.router.expert_runs(context) * flops_per_run(layer)


def flops_per_run(layer: MoELayer) -> int:
    """Floating-point operations of one expert for one token."""
    return 2 * _per_expert(layer)


def _matrices_outside_experts(module: nn.Module) -> int:
    return sum(p.numel() for name, p in module.named_parameters() if p.dim() != 1 and "experts." not in name)
