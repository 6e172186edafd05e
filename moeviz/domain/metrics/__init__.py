"""Measures of routing, one family a module: definition, range, unit and source of each are in its docstring.

    balance         counts, shares q f P I, CV, MaxVio, entropy, effective experts, Gini, dead experts
    chance          what even routing shows of these by chance
    drops           what capacity costs
    confidence      how sure the router is of a token
    stability       saturation, churn, flips between two moments
    comparison      the loads and choices of any two routings of a layer
    structure       co-activation, transitions between layers, repeats between tokens
    information     mutual information of experts and labels, and its null
    specialisation  experts by domain and by token of the vocabulary
    similarity      of router rows, of experts' outputs
    cost            active parameters and FLOP
    health          size of the scores

Pure functions of numpy arrays. Two kinds of "not there" are told apart: None where the routing lacks the data (its
weights, its drops), NaN where the data is there and the measure is undefined (no tokens, one expert). Expert id -1 is
nobody, everywhere.
"""

from moeviz.domain.metrics.arrays import codes
from moeviz.domain.metrics.balance import (
    ENOUGH,
    TOO_FEW,
    LoadSummary,
    can_tell_dead,
    cv,
    dead_experts,
    effective_experts,
    entropy,
    expert_counts,
    gini,
    hill_2,
    importance,
    importance_share,
    load_share,
    max_over_mean,
    max_violation,
    max_violation_batch,
    max_violation_global,
    mean_probability,
    normalised_entropy,
    processed_counts,
    selection_frequency,
    share_gap,
    soft_dead_experts,
    summarise,
)
from moeviz.domain.metrics.chance import cv_floor, floor_k, max_violation_floor, mean_error, share_noise
from moeviz.domain.metrics.comparison import (
    MOST_DIVERGENCE,
    agreement,
    delta_noise,
    divergence_floor,
    flip_baseline,
    load_delta,
    load_divergence,
    probability_change,
    weight_change,
)
from moeviz.domain.metrics.confidence import (
    boundary_margin,
    margin,
    max_probability,
    token_effective_experts,
    token_entropy,
    top_k_mass,
)
from moeviz.domain.metrics.cost import (
    active_parameters,
    executed_experts,
    expert_parameters,
    forward_flops,
    padded_assignments,
    training_flops,
)
from moeviz.domain.metrics.drops import drop_lower_bound, drop_rate, fully_dropped_rate
from moeviz.domain.metrics.health import LogitHealth, logit_health
from moeviz.domain.metrics.information import Information, information_bias, label_information, mutual_information
from moeviz.domain.metrics.similarity import cosines, linear_cka, mean_output_cosine
from moeviz.domain.metrics.specialisation import (
    MIN_COUNT,
    domain_specialisation,
    mean_vocabulary_specialisation,
    vocabulary_specialisation,
)
from moeviz.domain.metrics.stability import churn, jaccard, overlap, overlap_baseline, saturation, top1_flip_rate
from moeviz.domain.metrics.structure import (
    any_choice_repeat_baseline,
    any_choice_repeats,
    co_activation,
    co_activation_baseline,
    co_activation_lift,
    first_choice_repeat_baseline,
    first_choice_repeats,
    pair_counts,
    transition_counts,
    transition_information,
    transition_information_bias,
    transitions,
)

__all__ = [
    "ENOUGH",
    "MIN_COUNT",
    "MOST_DIVERGENCE",
    "TOO_FEW",
    "Information",
    "LoadSummary",
    "LogitHealth",
    "active_parameters",
    "agreement",
    "any_choice_repeat_baseline",
    "any_choice_repeats",
    "boundary_margin",
    "can_tell_dead",
    "churn",
    "co_activation",
    "co_activation_baseline",
    "co_activation_lift",
    "codes",
    "cosines",
    "cv",
    "cv_floor",
    "dead_experts",
    "delta_noise",
    "divergence_floor",
    "domain_specialisation",
    "drop_lower_bound",
    "drop_rate",
    "effective_experts",
    "entropy",
    "executed_experts",
    "expert_counts",
    "expert_parameters",
    "first_choice_repeat_baseline",
    "first_choice_repeats",
    "flip_baseline",
    "floor_k",
    "forward_flops",
    "fully_dropped_rate",
    "gini",
    "hill_2",
    "importance",
    "importance_share",
    "information_bias",
    "jaccard",
    "label_information",
    "linear_cka",
    "load_delta",
    "load_divergence",
    "load_share",
    "logit_health",
    "margin",
    "max_over_mean",
    "max_probability",
    "max_violation",
    "max_violation_batch",
    "max_violation_floor",
    "max_violation_global",
    "mean_error",
    "mean_output_cosine",
    "mean_probability",
    "mean_vocabulary_specialisation",
    "mutual_information",
    "normalised_entropy",
    "overlap",
    "overlap_baseline",
    "padded_assignments",
    "pair_counts",
    "probability_change",
    "processed_counts",
    "saturation",
    "selection_frequency",
    "share_gap",
    "share_noise",
    "soft_dead_experts",
    "summarise",
    "token_effective_experts",
    "token_entropy",
    "top1_flip_rate",
    "top_k_mass",
    "training_flops",
    "transition_counts",
    "transition_information",
    "transition_information_bias",
    "transitions",
    "vocabulary_specialisation",
    "weight_change",
]
