"""Every plot: its name, what it needs, how to read it and the formula of what it shows. Free of Qt."""

from dataclasses import dataclass

from moeviz.domain.survey import Part

HELDOUT = "held-out tokens, by domain"
OUTPUTS = "the outputs of experts"
ALIKE = "the outputs of all experts on the same tokens"
INPUTS = "the inputs of routers"
FILM = "history of snapshots"
SECOND = "a second routing to compare with"
# what a survey of a model brings
PART_OF: dict[str, Part] = {HELDOUT: "heldout", OUTPUTS: "terms", ALIKE: "similarity", INPUTS: "inputs"}


@dataclass(frozen=True, slots=True)
class Plot:
    name: str
    title: str
    needs: tuple[str, ...]
    reading: str
    formula: str

    @property
    def surveys(self) -> bool:
        """Whether it shows more of a model than a snapshot holds."""
        return bool(self.parts)

    @property
    def parts(self) -> frozenset[Part]:
        """What it needs of a survey."""
        return frozenset(PART_OF[need] for need in self.needs if need in PART_OF)


PLOTS = (
    Plot(
        "tokens",
        "Token strip",
        ("token texts", "chosen experts"),
        "Each token wears the colour of its first expert, stronger the more weight that expert has.",
        "first expert e₁ = argmax of the router's choice, strength = gate weight g₁",
    ),
    Plot(
        "tokens_experts",
        "Tokens × experts",
        ("gate weights, router probabilities or router scores",),
        "One column a token, one row an expert: a bright cell says that this token goes to this expert.",
        "scores z = x·W, probabilities p = softmax(z/τ), gate weights g: what multiplies the expert's output",
    ),
    Plot(
        "gate_weights",
        "Gate weights of a token",
        ("chosen experts", "router probabilities or gate weights"),
        "Bars are the router's probabilities p for one token; filled ones were chosen, with gate weight g or a tick.",
        "p = softmax(z/τ), y = Σ g_e·E_e(x) over the chosen e; margin = smallest chosen p − largest p not chosen; "
        "hesitates between exp(H(p)) experts; over all tokens q_e = c_e/Σc, f_e = c_e/N, P_e = mean p_e, before drops",
    ),
    Plot(
        "load",
        "Load",
        ("chosen experts",),
        "The higher a bar, the more work its expert gets; inside the band around the line it may be chance alone.",
        "q_e = c_e / Σc, c_e: choices before any drop for capacity; line 1/E, band ±2·√((E−k)/M)/E for M assignments; "
        "CV = σ(c)/mean(c), by chance √((E−k)/M); MaxVio = max(c)/mean(c) − 1, by chance: the mean of 256 simulated "
        "even batches; effective experts = exp(H(q)); dead: c = 0, nearly: q < 0.1/E, told from M/E = 50 on",
    ),
    Plot(
        "load_over_time",
        "Load over time",
        ("history of the training batches",),
        "One curve an expert: curves that stay together are balanced, one that falls to zero is a dying expert.",
        "q_e = c_e / Σc of each training batch, before any drop for capacity; dashed line 1/E",
    ),
    Plot(
        "losses",
        "Losses",
        ("history of the losses",),
        "Lower is better; held-out far above training means that the model learns its text by heart; of a long run the "
        "line is the mean and the band all values.",
        "cross-entropy = −mean ln p(next token); balance = E·Σ q_e·P_e; z = mean (logsumexp z)²",
    ),
    Plot(
        "layers_experts",
        "Layers × experts",
        ("chosen experts",),
        "One row a layer, one column an expert: an even row is a balanced layer; a click on a cell goes to it.",
        "q_e = c_e / Σc in each layer before any drop for capacity, even at 1/E; churn = 1 − mean |S∩S′|/k and "
        "saturation = mean |S∩S′|/k of the experts S of a token at two steps; "
        "tells = I(e_l; e_l+1) / ln E, less its value by chance",
    ),
    Plot(
        "experts_domains",
        "Experts × domains",
        ("chosen experts", HELDOUT),
        "One row a domain, one column an expert: warm cells are served more than chance would, cool cells less.",
        "share of a domain's tokens with e among their k experts, each row sums to k, by chance k/E (OLMoE eq. 7); "
        "NMI = (I(e; domain) − its mean over shuffled domains) / √(H(e)·H(domain)), "
        "chance: 95 % of shuffles of whole texts",
    ),
    Plot(
        "experts_tokens",
        "Experts' tokens",
        ("token texts", "chosen experts", HELDOUT),
        "One row an expert, with the tokens that it gets most; click an expert to see where its tokens stand.",
        "share = times that token x chose e first / times x was seen (OLMoE eq. 8), where x was seen 10 times or more",
    ),
    Plot(
        "co_activation",
        "Co-activation",
        ("two or more chosen experts a token", HELDOUT),
        "Of the tokens that chose the row's expert, the share that chose the column's too: warm is more than chance.",
        "C_ij = N_ij / N_i over all pairs of one token, where N_i is 10 or more; rows sum to k − 1, by chance "
        "(k − 1)/(E − 1), k as a mean over choices (OLMoE eq. 6)",
    ),
    Plot(
        "similarity",
        "Expert similarity",
        ("router weights", ALIKE),
        "A warm or bright cell: the two experts are wanted by like tokens (router rows), or do alike (outputs).",
        "router rows: cos(w_i, w_j), −1 to 1; outputs: linear CKA = ‖Y_jᵀY_i‖² / (‖Y_iᵀY_i‖·‖Y_jᵀY_j‖), centred, on "
        "the same tokens, 0 to 1",
    ),
    Plot(
        "flow",
        "Flow between layers",
        ("chosen experts of two layers", HELDOUT),
        "Ribbons are tokens on their way from first choice to first choice, as wide as they are many.",
        "N_ij: tokens with first choice i in layer l and j in layer l + 1; tells = I(e_l; e_l+1) / ln E, less its "
        "value by chance",
    ),
    Plot(
        "anatomy",
        "Anatomy of a token",
        ("chosen experts", OUTPUTS),
        "One token through one layer: each row an expert, from its score to its part of the output; columns add up.",
        "p = softmax(z/τ), in training z + σ·ε for z; y = Σ g_e·e(x) over the chosen e; part = g·|e|·cos(e, y), "
        "and Σ parts = |y|; then h + y",
    ),
    Plot(
        "saturation",
        "Saturation, churn",
        (FILM,),
        "Saturation that is high early says that the router settles early; churn is how much changed over the steps "
        "that its level line spans, so compare lines of one length.",
        "saturation = mean |S∩S′|/k of the experts S of a token now and S′ at the reference step (OLMoE), by chance "
        "k/E; churn = 1 − the same between one kept step and the next, lines joined where these are as far apart",
    ),
    Plot(
        "positions",
        "Routing by position",
        ("chosen experts", HELDOUT),
        "One column a stretch of the sequence, one row an expert: rows that change colour depend on position.",
        "q_e = c_e / Σc of the choices at each position, even at 1/E; drops = dropped choices / choices; "
        "NMI as in experts × domains, with the stretch as label",
    ),
    Plot(
        "moe_dense",
        "MoE against dense",
        ("history of the losses with a dense twin (train.dense_twin)",),
        "The lower curve learns more from the same batches: over steps, or over the FLOPs that each has cost.",
        "cross-entropy of the MoE and of the same model with one SwiGLU a layer, 6·D·H FLOPs a token, those of the MoE "
        "layer at the start: router, shared and chosen experts; training FLOPs = 3·Σ tokens·FLOPs a token, of experts "
        "as many as ran; marks at the MoE's FLOPs; gap = MoE − dense on the same batch, ± its standard error of the "
        "held-out rows (what other seeds would show it does not tell), and no more than 2 of them is within chance",
    ),
    Plot(
        "compare",
        "Compare",
        ("chosen experts", SECOND),
        "Full bars are A, what the window shows, pale ones B, chosen in the header; below, bars go up where A "
        "has more load, down where B has.",
        "q_e = c_e / Σc of the tokens shown; JSD = H((q_A + q_B)/2) − (H(q_A) + H(q_B))/2 in nats, 0 for equal loads, "
        "at most ln 2, by chance (E−k)·(1/M_A + 1/M_B)/8; band ±2·√((E−k)·(1/M_A + 1/M_B))/E; of the same tokens: "
        "changed choices = 1 − mean |S∩S′|/k, moved = mean ½·Σ|g′_e − g_e| of gate weights g, and so of "
        "probabilities p, NMI = (I(e; e′) − its value by chance) / √(H(e)·H(e′)) of the first experts of at most 1,024 "
        "tokens",
    ),
    Plot(
        "input_map",
        "Input map",
        ("chosen experts", INPUTS),
        "Near points are alike to the router and wear the colour of their first expert, on the plane stronger with its "
        "gate weight.",
        "plane: each cell a point (x, y) that went through the model, e₁ and g₁ of the layer, or p(●) = softmax of the "
        "output; else the router's inputs x along their first two principal components v₁, v₂: (x − mean x)·v, with "
        "each one's share of the variance λ / Σλ",
    ),
    Plot(
        "dashboard",
        "Dashboard",
        ("anything of the above",),
        "All plots of one moment; a plot without its data says which data it lacks.",
        "as in each plot",
    ),
)
BY_NAME = {plot.name: plot for plot in PLOTS}
