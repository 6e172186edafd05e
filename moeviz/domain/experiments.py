"""Published phenomena that a small model can show: what to set, what to watch for, and the figures of the paper.

`moeviz.experiments` measures them; the window offers their settings as presets. `moeviz experiment` lists them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from moeviz.domain.settings import Value


@dataclass(frozen=True, slots=True)
class Experiment:
    """One phenomenon.

    settings  by dotted key: where to start from; all others keep their default
    arms      the runs that are compared, each by what it changes in `settings`
    watch     what to look at and what to change, for somebody at the window
    source    the paper and the place in it
    figures   its figures, by the name that `moeviz experiment` gives to ours
    limits    what differs here, and what of the paper does not show in a model this small
    """

    name: str
    title: str
    settings: Mapping[str, Value]
    arms: Mapping[str, Mapping[str, Value]]
    watch: str
    source: str
    figures: Mapping[str, str]
    limits: str


_TEXT: dict[str, Value] = {"task": "text", "routing.k": 2}
# four experiments share the runs of these settings
_MIXTRAL: dict[str, Value] = {
    **_TEXT,
    "model.experts": 8,
    "routing.router": "topk",
    "balance.loss": "switch",
    "balance.coefficient": 0.01,
}

_ALL = (
    Experiment(
        name="balance_losses",
        title="Importance and load loss against collapse",
        settings={
            "task": "text",
            "model.experts": 64,
            "model.layers": 1,
            "model.width": 32,
            "model.expert_width": 16,
            "routing.router": "noisy_topk",
            "routing.k": 4,
            "routing.noise": 1.0,
            "balance.loss": "none",
            "balance.z_coefficient": 0.0,
        },
        arms={
            "no loss": {},
            "importance 0.2": {"balance.importance_coefficient": 0.2},
            "load 0.2": {"balance.load_coefficient": 0.2},
        },
        watch="Within some hundred steps a dozen of the 64 experts take nearly everything: in Load the CV climbs to "
        "about 2.5 and most bars are empty. Then set Importance or Load to 0.2: the bars even out, and CV falls to "
        "the noise floor.",
        source="Shazeer et al. 2017, Outrageously Large Neural Networks, table 6",
        figures={
            "no loss: CV of importance": "3.04",
            "no loss: CV of load": "3.01",
            "no loss: largest / mean load": "17.8",
            "importance 0.2: CV of importance": "0.06",
            "importance 0.2: CV of load": "0.17",
            "importance 0.2: largest / mean load": "1.47",
            "load 0.2: CV of importance": "0.22",
            "load 0.2: CV of load": "0.04",
            "load 0.2: largest / mean load": "1.15",
        },
        limits="64 experts instead of 256, over the last 50 training batches. The paper's perplexity falls with "
        "either loss (39.8 to 35.6); that needs far more training than this, and does not show here.",
    ),
    Experiment(
        name="balance_scope",
        title="Balance over a sequence or over the batch",
        settings={
            **_TEXT,
            "model.experts": 8,
            "model.layers": 2,
            "model.expert_width": 32,
            "model.context": 64,
            "routing.router": "topk",
            "train.batch": 16,
            "balance.loss": "switch",
            "balance.coefficient": 0.1,
        },
        arms={
            "over the batch": {},
            "over each sequence": {"balance.loss": "none", "balance.sequence_coefficient": 0.1},
        },
        watch="Every sequence comes from one of four domains. A loss over the batch lets experts prefer a domain: "
        "look for colours that belong to code, prose, mathematics or data in the token strip. Then set Sequence "
        "balance to 0.1: every sequence must use all experts evenly, and the preferences fade.",
        source="Qiu et al. 2025, Demons in the Detail, figure 1",
        figures={},
        limits="The paper shows by which experts the domains use, and by perplexity (8.167, 8.062, 8.038 with balance "
        "over 4, 32 and 512 sequences); here it is the information that an expert gives on the domain, for which it "
        "has no number. The order of perplexities is not claimed.",
    ),
    Experiment(
        name="loss_free",
        title="Balance without a loss: a bias on the selection",
        settings={
            **_TEXT,
            "model.experts": 16,
            "model.layers": 2,
            "model.expert_width": 32,
            "routing.router": "sigmoid_bias",
            "routing.bias_speed": 0.0,
            "balance.loss": "none",
            "balance.z_coefficient": 0.0,
        },
        arms={
            "nothing": {},
            "loss 0.001": {"balance.loss": "switch", "balance.coefficient": 0.001},
            "bias 0.001": {"routing.bias_speed": 0.001},
        },
        watch="Without any balancing the load of one expert grows to several times the mean. Then set Bias speed to "
        "0.001: after each step it raises the score of experts with less than the mean load, for the selection only. "
        "MaxVio falls within some hundred steps; a balance loss of 0.001 does less.",
        source="Wang et al. 2024, Auxiliary-Loss-Free Load Balancing, table 2 (1B)",
        figures={"loss 0.001: MaxVio_global": "0.72", "bias 0.001: MaxVio_global": "0.04"},
        limits="16 experts of which 2 are chosen instead of 64 and 6, some hundred steps instead of 100B tokens, and "
        "held-out text that differs from the training text, so what is left is larger. The paper's perplexities (9.56 "
        "with the loss, 9.50 with the bias) are too close to tell apart here.",
    ),
    Experiment(
        name="capacity",
        title="Capacity factor and dropped assignments",
        settings=_MIXTRAL,
        arms={"balance loss": {}, "no loss": {"balance.loss": "none"}},
        watch="Set Capacity factor to 1.25, and lower: each expert has so many places, and Load tells what is "
        "dropped. Then set Balance loss to none: the load becomes uneven within some hundred steps, and much more is "
        "dropped at the same factor.",
        source="Zoph et al. 2022, ST-MoE, table 5; Fedus et al. 2021, Switch Transformers",
        figures={
            "factor 0.75, balance loss": "0.106",
            "factor 1.25, balance loss": "0.003",
            "factor 2, balance loss": "0",
            "factor 0.75, no loss": "0.156",
            "factor 1.25, no loss": "0.029",
            "factor 2, no loss": "0.004",
            "factor 4, no loss": "0",
        },
        limits="Dropped assignments of all assignments, from the routing of held-out text in batches of 1024 "
        "characters, with ceil(factor * k/E * 1024) places for each expert. The paper counts in fine-tuning and "
        "otherwise: its 0.106 at factor 0.75, where ours cannot be below 0.25, shows it. Only the order can be "
        "compared. At factor 4 = E/k nothing can be dropped here.",
    ),
    Experiment(
        name="drop_position",
        title="Drops towards the end of a sequence",
        settings=_MIXTRAL,
        arms={"balance loss": {}},
        watch="Set Capacity factor to 1.25 and Capacity over to sequence. Places are given in order of position, so "
        "the experts that a sequence likes fill up on the way, and its end loses most. Text unlike the training text "
        "likes fewer experts and loses more: type a long probe in capital letters.",
        source="Xue et al. 2024, OpenMoE (Drop-towards-the-End)",
        figures={"last eighth, text unlike the training text": "up to 0.35 or 0.5"},
        limits="Factor 1.25 and k = 2; the other text is the held-out text in capital letters, which the model has "
        "hardly seen. The paper's figures end at 0.35 (several languages) and 0.5 (MT-Bench), and show few drops on "
        "its own kind of text; here sequences of 128 characters of one domain already drop many.",
    ),
    Experiment(
        name="repeats",
        title="Neighbours share experts; the character decides",
        settings=_MIXTRAL,
        arms={"balance loss": {}},
        watch="In the token strip find the same character in several places: it mostly has the same expert wherever "
        "it stands. Neighbours share their first expert more often than chance would have it.",
        source="Jiang et al. 2024, Mixtral of Experts, table 5; Xue et al. 2024, OpenMoE (Context-independent "
        "Specialization)",
        figures={
            "first layer: repeats of the first choice": "0.136 to 0.149",
            "last layer: repeats of the first choice": "0.197 to 0.263",
            "first layer: repeats by chance": "0.125",
            "last layer: repeats by chance": "0.125",
        },
        limits="Mixtral's first layer repeats no more than chance; here it does, since characters repeat and their "
        "neighbours are alike. Chance is what the measured load gives, 1/8 if it were even. OpenMoE gives no number "
        "for token id against position.",
    ),
    Experiment(
        name="saturation",
        title="When routing settles",
        settings=_MIXTRAL,
        arms={"balance loss": {}},
        watch="Watch the token strip from the first step on: colours change wildly at first, and less and less later. "
        "Restart with R to see it again.",
        source="Muennighoff et al. 2024, OLMoE, figure 20",
        figures={
            "after 1 % of training": "up to 0.6",
            "after 40 % of training": "up to 0.8",
            "by chance": "0.125",
        },
        limits="Chance is k/E = 0.25 here, the run is short and its learning rate stays as it is, so routing goes on "
        "moving to the end. In OLMoE the first layer is the slowest; with three layers it is not.",
    ),
)
EXPERIMENTS: dict[str, Experiment] = {experiment.name: experiment for experiment in _ALL}
