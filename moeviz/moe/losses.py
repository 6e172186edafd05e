"""Auxiliary losses on the routing, each of ONE layer: pooling layers first hides imbalance. `layer_mean` averages.

Every function is pure and a Tensor () in the dtype of its first argument. In all of them:
    expert_ids_TK   experts chosen before any capacity drop, best first; -1 is no choice and is never counted
    valid_T         bool, True = a real token; tokens that are False (padding) count nowhere; None: all are real
    c_e   assignments of expert e      N   valid tokens      p   a token's router probabilities      P_e = mean_n p_ne
Counts carry no gradient. With no valid token a value is 0, and a gradient of zeros flows. Values are to be minimised
unless the docstring says otherwise. "even": every expert gets the same and P is uniform. "collapsed": all tokens choose
the same experts. Shapes are those of moeviz.domain.routing.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from moeviz.moe.routers import RoutingTensors

Choices = Literal["all", "first"]
Normalise = Literal["choices", "tokens"]


# ---- over layers
def layer_mean(losses: Sequence[Tensor]) -> Tensor:
    """Mean over layers of a loss computed layer by layer."""
    return torch.stack(list(losses)).mean()


def balance_loss(routings: Sequence[RoutingTensors]) -> Tensor:
    """`switch_balance` over all choices, mean over layers; 1 when even."""
    return layer_mean([switch_balance(r.probs_TE, r.expert_ids_TK) for r in routings])


def z_loss(routings: Sequence[RoutingTensors]) -> Tensor:
    """`router_z`, mean over layers."""
    return layer_mean([router_z(r.logits_TE) for r in routings])


# ---- counts
def expert_counts(expert_ids_TK: Tensor, num_experts: int, valid_T: Tensor | None = None) -> Tensor:
    """Assignments per expert c (E,), int64, over all K choices."""
    return _counts_GE(expert_ids_TK, num_experts, valid_T, 1)[0]


def _counts_GE(expert_ids_TK: Tensor, num_experts: int, valid_T: Tensor | None, groups: int) -> Tensor:
    """Assignments per expert in each of G runs of T/G tokens, int64."""
    chosen_TK = expert_ids_TK >= 0
    if valid_T is not None:
        chosen_TK = chosen_TK & valid_T[:, None]
    place_TK = expert_ids_TK.clamp_min(0)
    if groups > 1:
        group_T = torch.arange(groups, device=place_TK.device).repeat_interleave(place_TK.shape[0] // groups)
        place_TK = place_TK + num_experts * group_T[:, None]
    zeros = torch.zeros(groups * num_experts, dtype=torch.int64, device=place_TK.device)
    return zeros.scatter_add_(0, place_TK.flatten(), chosen_TK.flatten().long()).view(groups, num_experts)


def _keep(values: Tensor, valid_T: Tensor | None) -> Tensor:
    """Values (T, ...) with those of padding set to 0; nothing that padding holds, not even NaN, passes."""
    if valid_T is None:
        return values
    return torch.where(valid_T.view(-1, *(1,) * (values.dim() - 1)), values, torch.zeros_like(values))


def _tokens_G(like: Tensor, valid_T: Tensor | None, groups: int = 1) -> Tensor:
    """Valid tokens N in each group, in the dtype of `like` (T, ...)."""
    if valid_T is None:
        return torch.full((groups,), int(like.shape[0]) // groups, dtype=like.dtype, device=like.device)
    return valid_T.to(like.dtype).view(groups, like.shape[0] // groups).sum(1)


def _mean(values: Tensor, valid_T: Tensor | None) -> Tensor:
    """Mean over valid tokens of values (T, ...)."""
    return _keep(values, valid_T).sum(0) / _tokens_G(values, valid_T)[0].clamp_min(1)


# ---- balance of load and probability
def switch_balance(
    probs_TE: Tensor,
    expert_ids_TK: Tensor,
    valid_T: Tensor | None = None,
    *,
    groups: int = 1,
    choices: Choices = "all",
    normalise: Normalise = "choices",
) -> Tensor:
    """E * sum_e f_e P_e, in [0, E]: the balance loss of Switch (Fedus et al. 2021, eq. 4-6) and GShard.

    choices     "all": c_e over all K choices (transformers, flaxformer, Megatron, DeepSeek);
                "first": over first choices only (GShard, Mesh, Tutel). The same at K = 1.
    normalise   "choices": f_e = c_e / sum c, sums to 1 (Megatron, DeepSeek, MegaBlocks). Even 1; collapsed, with P on
                the chosen experts, E/k.
                "tokens": f_e = c_e / N, sums to k (transformers' Mixtral, OLMoE, Qwen3, GPT-OSS). Even k, collapsed E.
    groups      tokens are G runs of T/G (sequences of a batch, row after row); the loss is computed in each run and
                averaged over runs that have a valid token. 1: over the batch; B: over each sequence (the tighter).

    It is no gauge of balance: with P uniform it is 1 for ANY load, and it falls below 1 where load and P disagree.
    ValueError if T is no multiple of `groups`.
    """
    loss_G, tokens_G = _weighted_balance_G(probs_TE, expert_ids_TK, valid_T, groups, choices, normalise, None)
    return loss_G.sum() / (tokens_G > 0).sum().clamp_min(1)


def _weighted_balance_G(
    probs_TE: Tensor,
    expert_ids_TK: Tensor,
    valid_T: Tensor | None,
    groups: int,
    choices: Choices,
    normalise: Normalise,
    weight_E: Tensor | None,
) -> tuple[Tensor, Tensor]:
    num_tokens, num_experts = probs_TE.shape
    if groups < 1 or num_tokens % groups:
        raise ValueError(f"{num_tokens} tokens cannot be parted into {groups} sequences of one length")
    ids_TK = expert_ids_TK[:, :1] if choices == "first" else expert_ids_TK
    counts_GE = _counts_GE(ids_TK, num_experts, valid_T, groups).to(probs_TE.dtype)
    tokens_G = _tokens_G(probs_TE, valid_T, groups)
    total_G = counts_GE.sum(1) if normalise == "choices" else tokens_G
    share_GE = counts_GE / total_G.clamp_min(1)[:, None]
    sums_GE = _keep(probs_TE, valid_T).view(groups, num_tokens // groups, num_experts).sum(1)
    mean_probs_GE = sums_GE / tokens_G.clamp_min(1)[:, None]
    weighted_GE = share_GE * mean_probs_GE if weight_E is None else weight_E * share_GE * mean_probs_GE
    return num_experts * weighted_GE.sum(1), tokens_G


def deepseek_sequence_balance(scores_TE: Tensor, k: int, sequences: int, valid_T: Tensor | None = None) -> Tensor:
    """sum_e f_e P_e in each sequence, averaged over sequences (DeepSeek-V3, eq. 17-20; their weight 1e-4).

    scores_TE   s >= 0, sigmoid scores WITHOUT the balancing bias: the k largest of these are counted
    f_e = E / (k N) * c_e,   P_e = mean_n s_ne / sum_j s_nj.   Even 1; collapsed, with s on the chosen experts, E/k.
    """
    ids_TK = scores_TE.detach().topk(k, dim=-1).indices
    tiny = torch.finfo(scores_TE.dtype).tiny
    probs_TE = scores_TE / scores_TE.sum(-1, keepdim=True).clamp_min(tiny)
    return switch_balance(probs_TE, ids_TK, valid_T, groups=sequences)


def heterogeneous_balance(
    probs_TE: Tensor, expert_ids_TK: Tensor, is_null_E: Tensor, valid_T: Tensor | None = None, *, tau: float = 0.75
) -> Tensor:
    """sum_e eta_e f_e P_e with f_e = c_e / N, eta = 1 for experts that compute and tau for null experts (MoE++, Jin et
    al. 2024, eq. 7; their weight 0.01). A smaller tau sends more tokens to null experts.

    is_null_E   bool, True where the expert costs nothing
    There is no factor E: even k * mean(eta) / E; collapsed on experts that compute 1.
    At tau = 1 it is `switch_balance(normalise="tokens")` / E.
    """
    weight_E = 1 + (tau - 1) * is_null_E.to(probs_TE.dtype)
    loss_G, _ = _weighted_balance_G(probs_TE, expert_ids_TK, valid_T, 1, "all", "tokens", weight_E)
    return loss_G[0] / probs_TE.shape[1]


# ---- importance and load
def importance_cv2(
    gate_weights_TK: Tensor, expert_ids_TK: Tensor, num_experts: int, valid_T: Tensor | None = None
) -> Tensor:
    """CV(I)^2 of the importance I_e = sum_n G_ne, the sum of an expert's gate weights (Shazeer et al. 2017, eq. 6-7;
    their weight 0.1). Population variance over squared mean, in [0, E - 1]: even 0, all weight on one expert E - 1."""
    weights_TK = torch.where(expert_ids_TK >= 0, gate_weights_TK, torch.zeros_like(gate_weights_TK))
    weights_TK = _keep(weights_TK, valid_T)
    zeros = weights_TK.new_zeros(num_experts)
    return cv_squared(zeros.scatter_add(0, expert_ids_TK.clamp_min(0).flatten(), weights_TK.flatten()))


def load_cv2(load_TE: Tensor, valid_T: Tensor | None = None) -> Tensor:
    """CV(Load)^2 of Load_e = sum_n P(x_n, e), from `load_probability` (Shazeer et al. 2017, eq. 10-11; their weight
    0.1). In [0, E - 1]: even 0, collapsed about E/k - 1."""
    return cv_squared(_keep(load_TE, valid_T).sum(0))


def cv_squared(values_E: Tensor) -> Tensor:
    """Population variance over squared mean of values >= 0, in [0, E - 1]; 0 where all are 0."""
    mean = values_E.mean()
    # divide first: the squares of tiny values would vanish
    relative_E = values_E / torch.where(mean > 0, mean, torch.ones_like(mean))
    return relative_E.var(correction=0)


def load_probability(clean_TE: Tensor, noisy_TE: Tensor, std_TE: Tensor, k: int) -> Tensor:
    """P(x, e): the chance that expert e is among the k best when its own noise is drawn again and that of the others
    stays (T, E), in [0, 1] (Shazeer et al. 2017, eq. 8-9).

    Phi((clean_e - threshold_e) / std_e); the threshold is the k-th best noisy score of the OTHER experts, so the
    (k+1)-th best for an expert that is chosen and the k-th best for one that is not. Summed over tokens it estimates an
    expert's count without bias, and it has a gradient to scores and noise.

    clean_TE, noisy_TE   scores before and after the noise that was drawn; std_TE > 0   its standard deviation, which
    may be one number () too. Without noise there is no such estimate: count then. At k = E all are chosen: 1, without
    gradient.
    """
    if k >= clean_TE.shape[1]:
        return torch.ones_like(clean_TE)
    best = noisy_TE.topk(k + 1, dim=-1).values
    if_chosen, if_not = best[:, k : k + 1], best[:, k - 1 : k]
    threshold_TE = torch.where(noisy_TE > if_chosen, if_chosen, if_not)
    chance_TE: Tensor = torch.special.ndtr((clean_TE - threshold_TE) / std_TE)
    return chance_TE


# ---- size of the scores
def router_z(logits_TE: Tensor, valid_T: Tensor | None = None) -> Tensor:
    """mean_n (logsumexp_e z_ne)^2 >= 0: keeps the scores small (ST-MoE, Zoph et al. 2022, eq. 5; their weight 1e-3).
    (ln E)^2 for scores of 0; no other term sees a shift of all scores. MegaBlocks divides it by k besides."""
    return _mean(torch.logsumexp(logits_TE, -1).square(), valid_T)


# ---- entropy
def token_entropy(probs_TE: Tensor, valid_T: Tensor | None = None) -> Tensor:
    """mean_n H(p_n) in nats, in [0, ln E]: minimise for sure routing (Huang et al. 2024, top-p; their weight 1e-4)."""
    return _mean(_entropy(probs_TE), valid_T)


def batch_entropy(probs_TE: Tensor, valid_T: Tensor | None = None) -> Tensor:
    """H(P) in nats, in [0, ln E], ln E when even: to be MAXIMISED for balance, so give it a negative weight."""
    return _entropy(_mean(probs_TE, valid_T))


def mutual_information(probs_TE: Tensor, valid_T: Tensor | None = None) -> Tensor:
    """I(expert; token) = H(P) - mean_n H(p_n) in nats, in [0, ln E]: to be MAXIMISED, so give it a negative weight
    (Mod-Squad, Chen et al. 2023). 0 when all tokens have the same probabilities, collapsed or uniform; ln E when each
    token is sure and all experts are used evenly."""
    return batch_entropy(probs_TE, valid_T) - token_entropy(probs_TE, valid_T)


def _entropy(probs: Tensor) -> Tensor:
    """Over the last axis. The floor keeps the gradient finite where a probability has vanished."""
    return -(probs * probs.clamp_min(torch.finfo(probs.dtype).tiny).log()).sum(-1)


# ---- diversity
def output_orthogonality(
    outputs_TKD: Tensor, expert_ids_TK: Tensor, valid_T: Tensor | None = None, *, eps: float = 1e-8
) -> Tensor:
    """Overlap of the experts' outputs o for the same token: mean_n sum_{i != j} |<o_i, o_j> / (<o_j, o_j> + eps) o_j|^2
    (Guo et al. 2025, L_o, divided by N so that the batch does not matter).

    outputs_TKD   each chosen expert's output before its gate weight
    0 when the outputs of a token are orthogonal; K (K - 1) |o|^2 when they are the same vector o.
    """
    chosen_TK = expert_ids_TK >= 0
    o_TKD = torch.where(chosen_TK[:, :, None], outputs_TKD, torch.zeros_like(outputs_TKD))
    dots_TKK = o_TKD @ o_TKD.transpose(1, 2)
    squares_TK = dots_TKK.diagonal(dim1=1, dim2=2)
    overlap_TKK = (dots_TKK / (squares_TK + eps)[:, None, :]).square() * squares_TK[:, None, :]
    others_KK = 1 - torch.eye(dots_TKK.shape[1], dtype=dots_TKK.dtype, device=dots_TKK.device)
    return _mean((overlap_TKK * others_KK).sum((1, 2)), valid_T)


def score_variance(scores_TE: Tensor, valid_T: Tensor | None = None) -> Tensor:
    """- mean_e Var_n(s_ne), population variance over the tokens, in [-1/4, 0] for scores in [0, 1] (Guo et al. 2025,
    L_v, divided by N). 0 when all tokens have the same scores; -(E - 1)/E^2 for sure (one-hot) and even tokens."""
    away_TE = scores_TE - _mean(scores_TE, valid_T)
    return -_mean(away_TE.square(), valid_T).mean()


def router_orthogonality(weight_ED: Tensor) -> Tensor:
    """|W W^T - I|_F^2 with the rows of W scaled to length 1: the sum of squared cosines between the router's rows.
    0 when all are orthogonal, which needs D >= E (at least E^2/D - E otherwise); E (E - 1) when all point one way."""
    rows_ED = functional.normalize(weight_ED, dim=1)
    eye = torch.eye(rows_ED.shape[0], dtype=rows_ED.dtype, device=rows_ED.device)
    return (rows_ED @ rows_ED.T - eye).square().sum()


# ---- ReLU routing
def relu_l1(weights_TE: Tensor, k: int, valid_T: Tensor | None = None) -> Tensor:
    """sum_e f_e mean_n R_ne with f_e = E / (k N) * (number of tokens with R_ne > 0): the load-balanced L1 of ReMoE
    (Wang et al. 2024). It pushes k experts a token on average, and most those that are used most.

    weights_TE   R = relu(z) >= 0, not normalised. All on with R = r: E^2 r / k; all off: 0.
    """
    num_experts = weights_TE.shape[1]
    on_E = _mean((weights_TE.detach() > 0).to(weights_TE.dtype), valid_T)
    return (num_experts / k * on_E * _mean(weights_TE, valid_T)).sum()


def relu_density(weights_TE: Tensor, valid_T: Tensor | None = None) -> Tensor:
    """Share of the T * E gates that are on, in [0, 1], no gradient: 1 minus ReMoE's sparsity. k/E is the goal."""
    return _mean((weights_TE.detach() > 0).to(weights_TE.dtype), valid_T).mean()


def next_l1_coefficient(
    coefficient: Tensor, density: Tensor, k: int, num_experts: int, *, factor: float = 1.2
) -> Tensor:
    """ReMoE's controller, once a step: lambda * factor^sign(density - k/E), so up while too many gates are on (Wang et
    al. 2024; lambda starts at 1e-8, factor 1.2). `density` (): `relu_density` averaged over layers."""
    return coefficient * factor ** torch.sign(density - k / num_experts)
