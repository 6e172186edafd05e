"""What a survey of a model tells, beyond the routing of the probe: a second, larger sample, and the experts at work."""

from dataclasses import dataclass
from typing import Literal

from moeviz.domain.routing import Bools, Floats, Routing, RoutingSnapshot

Part = Literal["heldout", "terms", "similarity", "inputs"]  # each is left out where nobody wants it
PARTS: frozenset[Part] = frozenset({"heldout", "terms", "similarity", "inputs"})


@dataclass(frozen=True, eq=False, slots=True)
class Similarity:
    """How alike the E experts of one layer are, with NaN for what is undefined.

    router_cosine_EE  cosines of the router's rows, in [-1, 1], or None where it has no row for each expert
    output_cka_EE     linear CKA of the outputs that the experts give on the same tokens, in [0, 1], or None
    num_tokens        how many tokens every expert was run on; 0 where experts are too large for that
    width             D; linear CKA is high for any data unless there are far more tokens than that
    """

    router_cosine_EE: Floats | None
    output_cka_EE: Floats | None
    num_tokens: int
    width: int


@dataclass(frozen=True, eq=False, slots=True)
class Terms:
    """What one MoE layer made of T tokens: y = sum over the chosen experts of g e, plus whatever else the layer adds.

    input_norm_T      |x| of what router and experts read (after the norm before the layer)
    output_norm_TK    |e| of each chosen expert's output before its weight; NaN where the token has no such expert
    output_cosine_TK  cosine of e and y; so g |e| cos is the expert's part of |y|. NaN where undefined
    sum_norm_T        |y|
    before_norm_T, after_norm_T   of the residual stream, h and h + y
    temperature     the router's
    noise_std_TE    standard deviation of the noise that training adds to each score, off while looking; None without
    """

    input_norm_T: Floats
    output_norm_TK: Floats
    output_cosine_TK: Floats
    sum_norm_T: Floats
    before_norm_T: Floats
    after_norm_T: Floats
    temperature: float
    noise_std_TE: Floats | None


@dataclass(frozen=True, eq=False, slots=True)
class Inputs:
    """What one layer's router reads (after the norm before the layer), along the two axes of most variance.

    axes_2D      the first two principal components of the held-out tokens, without those of the probe, as unit vectors,
                 in the order and with the signs that differ least from the survey before
    explained_2  the share of the variance along each; NaN where the tokens do not differ
    heldout_T2   coordinates of the held-out tokens from their mean, or None
    probe_T2     of the probe's
    """

    axes_2D: Floats
    explained_2: Floats
    heldout_T2: Floats | None
    probe_T2: Floats


@dataclass(frozen=True, eq=False, slots=True)
class Plane:
    """A model of a 2-D task over the plane: a grid of R rows and C columns, whose cells went through it as points.

    x_C, y_R          the cells' centres, ascending
    layers            the cells' routing, row by row, without probabilities and scores
    probability_RC    of the second class
    probe_T2, probe_probability_T   the same of the probe: where its points lie, and the model's word on them
    own_N2, own_second_N   the user's own points, trained on and held out, and which are of the second class; of many
                      some, and none of the built-in data
    together          points change each other's routing, so that the grid is routed as it would be by itself
    """

    x_C: Floats
    y_R: Floats
    layers: tuple[Routing, ...]
    probability_RC: Floats
    probe_T2: Floats
    probe_probability_T: Floats
    own_N2: Floats
    own_second_N: Bools
    together: bool


@dataclass(frozen=True, eq=False, slots=True)
class SurveyResult:
    """One step's survey. What was not asked for may be left out.

    heldout      held-out tokens with texts and domains, the same at every step, or None; `lack` says why there are none
    row_length   they are sequences of so many tokens; 1 where tokens do not see each other
    probe        the snapshot of this step
    terms        over the probe's tokens, one a layer, or empty where they were not asked for
    similarity   one a layer, or empty without held-out tokens or where it was not asked for
    inputs       one a layer, or empty where the inputs were not asked for or are points of the plane
    plane        those, or None
    parts        what it was asked for
    """

    step: int
    heldout: RoutingSnapshot | None
    row_length: int
    probe: RoutingSnapshot
    terms: tuple[Terms, ...]
    similarity: tuple[Similarity, ...]
    lack: str = ""
    inputs: tuple[Inputs, ...] = ()
    plane: Plane | None = None
    parts: frozenset[Part] = PARTS
