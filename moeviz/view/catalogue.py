"""Every plot: its name, what it needs, how to read it and the formula of what it shows. Free of Qt."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Plot:
    name: str
    title: str
    needs: tuple[str, ...]
    reading: str
    formula: str


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
        "Bars are the router's probabilities for one token; filled, ticked ones were chosen, with their gate weight.",
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
        "Lower is better; held-out far above training means that the model learns its text by heart.",
        "cross-entropy = −mean ln p(next token); balance = E·Σ q_e·P_e; z = mean (logsumexp z)²",
    ),
    Plot(
        "layers_experts",
        "Layers × experts",
        ("chosen experts",),
        "One row a layer, one column an expert: an even row is a balanced layer. Click a cell to go to that layer.",
        "q_e = c_e / Σc in each layer before any drop for capacity, even at 1/E; churn = 1 − mean |S∩S′|/k and "
        "saturation = mean |S∩S′|/k of the experts S of a token at two steps; "
        "tells = I(e_l; e_l+1) / ln E, less its value by chance",
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
