"""Short guided lessons on a live model: where each begins, and what to do and to watch for, step by step.

The bounds of their checks were met with three seeds and a margin: tests/test_lessons.py drives each lesson as it tells
the learner to.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from moeviz.domain import lesson_checks as checks
from moeviz.domain.lesson_checks import Check, Moment
from moeviz.domain.settings import Value


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do.

    check   from the moment now and the one at which the step began
    shows   panels that it is about, by the name of their plot
    """

    words: str
    check: Callable[[Moment, Moment], Check]
    shows: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Lesson:
    """model     the task whose bundled model it begins with, as it is; without one a new model begins with `settings`
    settings  by dotted key; all others keep their default
    seen      what there was to see, said at the end
    """

    name: str
    title: str
    steps: tuple[Step, ...]
    seen: str
    model: str = ""
    settings: Mapping[str, Value] = field(default_factory=dict)

    @property
    def task(self) -> str:
        return self.model or str(self.settings.get("task", ""))

    def strayed(self, moment: Moment) -> str:
        """Why the steps cannot be done with what is shown; empty if they can."""
        if moment.facts is None:
            return "There is no model here that could change: start the lesson again."
        if moment.settings.task != self.task:
            return f"The model shown is of another task than this lesson's, {self.task}: start the lesson again."
        return ""

    def check(self, step: int, now: Moment, then: Moment) -> Check:
        """Of one of its steps, where that can be done at all."""
        astray = self.strayed(now)
        return Check(False, astray) if astray else self.steps[step].check(now, then)


# ---- the lessons
# small, so that a step takes some hundredths of a second
_SMALL: dict[str, Value] = {
    "task": "text",
    "model.layers": 2,
    "model.width": 32,
    "model.expert_width": 32,
    "model.context": 64,
    "balance.loss": "none",
    "balance.coefficient": 0.1,
}

_ALL = (
    Lesson(
        name="router",
        title="What a router does",
        model="text",
        steps=(
            Step(
                "This small trained model reads text character by character. Click a token in the token strip. Gate "
                "weights of a token then shows how probable the router finds each of its eight experts; the two "
                "filled bars were chosen.",
                checks.chose_a_token,
                ("tokens", "gate_weights"),
            ),
            Step(
                "Walk from token to token with the arrow keys ← and →. Some bars are one tall tower: there the router "
                "is sure. Find a token whose first expert has more than 0.7.",
                checks.found_a_sure_one,
                ("gate_weights",),
            ),
            Step(
                "The margin is the smallest chosen probability less the largest one not chosen. Find another token "
                "with a margin below 0.01. A little training, or noise, would change its experts.",
                checks.found_an_edge,
                ("gate_weights",),
            ),
            Step(
                "Press ↓ for the next layer: it has a router and eight experts of its own. The same token is sent "
                "elsewhere; expert 3 here is another network than expert 3 in the layer before.",
                checks.changed_layer,
                ("gate_weights", "layers_experts"),
            ),
            Step(
                "Now write a text of your own into Probe at the top and press Enter. The model routes it at once. "
                "Compare a word with the same word in capital letters.",
                checks.typed,
                ("tokens",),
            ),
        ),
        seen="In every layer a router gives each token a probability for every expert, and only the best few run.",
    ),
    Lesson(
        name="k",
        title="k: how many experts a token gets",
        model="text",
        steps=(
            Step(
                "This model was trained with k = 2: two of eight experts for each token. Raise k to 4. In the status "
                "bar active parameters and FLOPs per token grow; the total stays as it was.",
                checks.more_active,
                ("tokens_experts",),
            ),
            Step(
                "Raise k to 8, as many as there are experts. Every token runs every expert: this is the dense mixture, "
                "all parameters are active, and the load is even because nothing is chosen.",
                checks.dense,
                ("load", "tokens_experts"),
            ),
            Step(
                "Set k to 1, the cheapest. Less than half of the parameters are active now, and the only gate weight "
                "of a token is 1, however unsure the router was.",
                checks.cheapest,
                ("tokens_experts",),
            ),
        ),
        seen="k sets what a token costs, from one expert to all, while the size of the model stays the same.",
    ),
    Lesson(
        name="noise",
        title="Noise and exploration",
        settings={**_SMALL, "model.experts": 16, "routing.router": "noisy_topk", "routing.k": 2},
        steps=(
            Step(
                "Here is an untrained model with 16 experts and nothing that balances them. Press Space to train. "
                "Watch Load: within a second or two a few experts take nearly everything, for who is chosen learns, "
                "and who learns is chosen.",
                checks.many_idle,
                ("load", "load_over_time"),
            ),
            Step(
                "Let it train on and set Noise to 2. Noise on the scores sends tokens also to experts that would not "
                "be chosen, and they learn again. The probe is routed without noise, so its tokens keep their few "
                "colours.",
                checks.explores,
                ("load", "load_over_time"),
            ),
            Step(
                "Set Noise back to 0 while it trains. Watch whether the experts keep their work: noise explores, but "
                "it does not balance for good.",
                checks.many_idle,
                ("load", "load_over_time"),
            ),
        ),
        seen="While noise is on, idle experts are tried; without it the router chooses as it did before.",
    ),
    Lesson(
        name="collapse",
        title="Collapse and rescue",
        settings={**_SMALL, "routing.router": "switch"},
        steps=(
            Step(
                "An untrained model with one expert a token and no balance loss. Press Space to train, and watch Load: "
                "the bars fall apart within some dozen steps. CV measures how far; 0 is even, and above 1.4 most "
                "experts have hardly any work.",
                checks.collapsed,
                ("load", "load_over_time"),
            ),
            Step(
                "Let it train on and set Balance loss to switch. The loss punishes probability on crowded experts. "
                "Watch CV fall below 0.35 and the experts without work come back.",
                checks.rescued,
                ("load", "load_over_time"),
            ),
            Step(
                "Set Balance loss back to none and train on. Watch CV climb again: balance holds only while something "
                "works for it. The longer the experts have shared the work, the less they fall back.",
                checks.drifts,
                ("load_over_time",),
            ),
        ),
        seen="Without balance a router collapses at the very start; a balance loss brings every expert back.",
    ),
    Lesson(
        name="loss_free",
        title="Balance by a loss, or by a bias",
        settings={**_SMALL, "routing.router": "sigmoid_bias", "routing.bias_speed": 0.0},
        steps=(
            Step(
                "Press Space to train. Nothing balances this model yet. MaxVio in Load is how far the busiest expert "
                "is above the mean; with two of eight experts it can be 3 at most.",
                checks.violates,
                ("load", "load_over_time"),
            ),
            Step(
                "Set Balance loss to switch and train on. MaxVio falls, but the loss pulls on the same weights as the "
                "text does: watch the balance curve in Losses beside the cross-entropy.",
                checks.loss_balances,
                ("load", "losses"),
            ),
            Step(
                "Set Balance loss back to none. The loss has evened out the load only as long as it pulled: watch "
                "MaxVio climb again.",
                checks.loss_missed,
                ("load", "load_over_time"),
            ),
            Step(
                "Leave Balance loss at none and set Bias speed to 0.01. After each step the bias of crowded experts "
                "goes down and that of idle ones up, and it counts for the choice only. Watch MaxVio fall to nearly 0.",
                checks.bias_balances,
                ("load", "load_over_time"),
            ),
        ),
        seen="Both even out the load; the bias does it without a gradient of its own, as in DeepSeek-V3.",
    ),
    Lesson(
        name="capacity",
        title="Capacity and dropped tokens",
        settings={**_SMALL, "routing.router": "topk", "routing.k": 2},
        steps=(
            Step(
                "Press Space and let this model train without balance for a moment. Nothing can be dropped yet: every "
                "expert takes what comes. Watch MaxVio in Load grow.",
                checks.uneven,
                ("load",),
            ),
            Step(
                "Set Capacity factor to 1: each expert has just its even share of places, and what comes later is "
                "dropped. Load tells how much of the probe is lost; the crowded experts lose it.",
                checks.overflows,
                ("load", "tokens"),
            ),
            Step(
                "Set Capacity factor to 2: twice the places, and memory for twice the rows on a real machine. Fewer "
                "tokens are dropped, and the places of idle experts stay empty.",
                checks.has_room,
                ("load",),
            ),
            Step(
                "Go back to a Capacity factor of 1, set Balance loss to switch and train on. With an even load the "
                "same few places are enough for most tokens: watch the drops fall.",
                checks.fits,
                ("load", "load_over_time"),
            ),
        ),
        seen="Drops come from uneven load under a capacity: more places cost memory, balance costs a loss.",
    ),
    Lesson(
        name="specialisation",
        title="What experts specialise in",
        model="text",
        steps=(
            Step(
                "Experts × domains counts held-out text of four domains. Warm cells are served more than by chance. "
                "Click an expert that serves one domain at least 1.4 times as often as all text.",
                checks.found_a_specialist,
                ("experts_domains",),
            ),
            Step(
                "Experts' tokens tells more. Click another expert and look for a character that nearly always "
                "goes to it: small models specialise in characters far more than in subjects.",
                checks.found_its_character,
                ("experts_tokens",),
            ),
            Step(
                "Press ↓ down to the last layer. NMI below Experts × domains says how much expert and domain tell of "
                "each other: 0 is chance, 1 would be an expert for each domain.",
                checks.deepest,
                ("experts_domains",),
            ),
            Step(
                "Open More losses in the knobs, set Sequence balance to 0.1 and press Space to train. It wants every "
                "sequence to use all experts evenly, and each sequence is of one domain: watch NMI fall.",
                checks.domains_fade,
                ("experts_domains",),
            ),
        ),
        seen="Experts specialise, more by character than by domain, and a loss over sequences can undo it.",
    ),
    Lesson(
        name="dynamic_k",
        title="Dynamic k: more experts where it is hard",
        model="text",
        steps=(
            Step(
                "Set Router to top_p. Each token now gets the fewest experts whose probabilities together exceed "
                "Top-p. Look at Tokens × experts: where the router is sure, one expert is enough.",
                checks.top_p,
                ("tokens_experts",),
            ),
            Step(
                "Raise Top-p to 0.7. More probability is wanted of each token, so the number of experts grows, and "
                "most where no expert stands out.",
                checks.more_experts,
                ("tokens_experts",),
            ),
            Step(
                "Find a token that gets as many experts as any: click one with many bright cells in Tokens × experts. "
                "Its bars in Gate weights are nearly level.",
                checks.found_a_doubtful_one,
                ("tokens_experts", "gate_weights"),
            ),
            Step(
                "Open More losses in the knobs, set Token entropy to 0.1 and press Space to train. The loss rewards "
                "sure routing; watch the number of experts a token needs fall.",
                checks.surer,
                ("tokens_experts", "load"),
            ),
            Step(
                "Set Router to relu. Now a threshold decides: a token gets every expert whose score is above 0, "
                "several or few, and gate weights are the scores themselves.",
                checks.relu,
                ("tokens_experts",),
            ),
        ),
        seen="With top-p or a threshold the router spends experts where it doubts, and k becomes an average.",
    ),
)
LESSONS: dict[str, Lesson] = {lesson.name: lesson for lesson in _ALL}


def following(lesson: Lesson) -> Lesson | None:
    """The one to take next; None after the last."""
    names = list(LESSONS)
    at = names.index(lesson.name) + 1
    return LESSONS[names[at]] if at < len(names) else None
