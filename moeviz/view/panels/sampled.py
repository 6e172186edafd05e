"""What the panels share that need more tokens than the probe has: held-out ones where a survey brought them."""

from collections import Counter
from typing import ClassVar

from PySide6.QtWidgets import QWidget

from moeviz.domain.routing import Routing, RoutingSnapshot
from moeviz.view.panel import NARROW, Panel, Uses
from moeviz.view.panels.words import first_null, labels
from moeviz.view.theme import Theme

NO_DOMAINS = (
    "This data has no domains: it needs a model, whose held-out text is then surveyed, or a trace that names them."
)


class Sampled(Panel):
    """A panel over one layer of the sample; `measure` works its numbers out once for each sample and layer."""

    uses: ClassVar[frozenset[Uses]] = frozenset({"snapshot", "survey", "layer", "expert"})

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(theme, parent)
        self._measured: object = None

    @property
    def source(self) -> RoutingSnapshot | None:
        """The survey's held-out tokens, else those of the snapshot."""
        if self.survey is not None and self.survey.heldout is not None:
            return self.survey.heldout
        return self.snapshot

    @property
    def row_length(self) -> int:
        """Of one sequence; all tokens of a snapshot are one."""
        if self.survey is not None and self.source is self.survey.heldout:
            return self.survey.row_length
        return self.source.num_tokens if self.source is not None else 1

    def show_snapshot(self, snapshot: RoutingSnapshot | None) -> None:
        if self.source is self.snapshot:
            super().show_snapshot(snapshot)
        else:  # what the panel shows comes with the next survey
            self.snapshot = snapshot

    def choice(self) -> str:
        """What is picked in the header."""
        return ""

    def prepare(self) -> None:
        key = (self.source, self.layer, self.choice(), self.theme)
        if key != self._measured:  # else only the selection moved
            routing = self.routing()
            assert routing is not None
            self.measure(routing)
            self._measured = key

    def measure(self, routing: Routing) -> None:
        raise NotImplementedError

    def whose(self) -> str:
        """Which tokens these are, and of which step, where that is not the one shown."""
        if self.source is self.snapshot:
            return self.sample()
        # no earlier survey: these panels were not seen then
        late = self.source is not None and self.snapshot is not None and self.source.step > self.snapshot.step
        return f"{self.sample()}, {'⚠ a later ' if late else ''}{self.when()}"

    def sample(self) -> str:
        if self.source is None:
            return ""
        return f"{self.source.num_tokens} {'tokens shown' if self.source is self.snapshot else 'held-out tokens'}"

    def lines_of_words(self, width: float) -> int:
        return next(lines for lines, wide in ((2, 620), (3, NARROW), (4, 300), (5, 0)) if width >= wide)

    def subtitle(self) -> str:
        return f"{self.where()}, {self.sample()}"

    def experts(self, layer: int | None = None) -> list[str]:
        """A label for each expert of a layer; of the selected one if none is named."""
        assert self.source is not None
        routing = self.source.layers[self.layer if layer is None else layer]
        return labels(routing.num_experts, first_null(routing))

    def expert_at(self, num_experts: int) -> int | None:
        """The expert that is pointed at or selected, if this layer has it."""
        expert = self.pointed.get("expert", self.selection.expert)
        return expert if expert is not None and expert < num_experts else None


def of_each(names: list[str] | tuple[str, ...]) -> str:
    """`512 tokens of each of 4 domains`, or the least and the most."""
    counts = Counter(names)
    few, many = min(counts.values()), max(counts.values())
    size = f"{few}" if few == many else f"{few} to {many}"
    return f"{size} tokens of each of {len(counts)} domains"


def named(numbers: list[str], most: int = 6) -> str:
    """`3, 5 and 9`; the first few of many."""
    if len(numbers) > most:
        return ", ".join(numbers[:most]) + f" and {len(numbers) - most} more"
    return " and ".join(filter(None, [", ".join(numbers[:-1]), numbers[-1]])) if numbers else "none"
