"""Experts against experts: which are chosen together, and which are alike."""

import numpy as np
from PySide6.QtCore import QPointF, QRectF
from PySide6.QtGui import QImage, QPainter
from PySide6.QtWidgets import QComboBox, QWidget

from moeviz.domain.metrics import MIN_COUNT, co_activation, co_activation_baseline, pair_counts
from moeviz.domain.routing import Bools, Ints, Routing
from moeviz.domain.survey import Similarity
from moeviz.view.panel import Pointed, Table
from moeviz.view.panels.axes import Array, draw_column_labels, number
from moeviz.view.panels.grid import (
    Grid,
    Scale,
    around,
    draw_expert_edges,
    draw_numbers,
    draw_row_names,
    draw_scale,
    grid_in,
    image_of,
)
from moeviz.view.panels.heat import draw_heat, outline
from moeviz.view.panels.sampled import Sampled
from moeviz.view.panels.words import first_null, labels
from moeviz.view.theme import Theme

Pair = tuple[int, int]
NO_SURVEY = "Router weights and experts' outputs are not in this data: it needs a model, which is then surveyed."


class ExpertPairs(Sampled):
    """One cell for each pair of experts of a layer; the diagonal stays empty."""

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(theme, parent)
        self._values: Array = np.zeros((1, 1))
        self._tokens_E1: Ints = np.zeros((1, 1), dtype=np.int64)  # of equal values that of more tokens is named
        self._scale = Scale(0.0, 1.0, 0.5)
        self._image = QImage()

    def take(self, values_EE: Array, scale: Scale) -> None:
        self._values, self._scale = values_EE, scale
        self._image = image_of(values_EE, scale, self.theme)

    def grid(self, rect: QRectF) -> Grid:
        return grid_in(rect, [str(self._values.shape[0])], *self._values.shape)

    def draw(self, painter: QPainter, rect: QRectF) -> None:
        grid, theme = self.grid(rect), self.theme
        names = self.experts()
        draw_heat(painter, grid.rect, self._image)
        draw_numbers(painter, grid, self._values, self._scale, theme, two_digits)
        draw_scale(painter, grid.rect, self._scale, theme, self.colours_are())
        draw_expert_edges(painter, grid, theme)
        draw_row_names(painter, grid, names, theme, "expert")
        expert, other = self.expert_at(grid.rows), self.pointed.get("column")
        draw_column_labels(painter, grid.rect, names, theme, self.columns_are(), other)
        if expert is not None:
            outline(painter, grid.row(expert).adjusted(0, 0, -1, -1), theme)
            if other is not None and other < grid.columns:
                outline(painter, grid.cell(expert, other).adjusted(1, 1, -2, -2), theme)

    def experts(self, layer: int | None = None) -> list[str]:
        """Of the matrix: outputs are of those experts alone that compute."""
        return labels(len(self._values), first_null(self.routing()))

    def columns_are(self) -> str:
        return "expert"

    def colours_are(self) -> str:
        raise NotImplementedError

    def pointed_pair(self) -> tuple[int, int] | None:
        row, column = self.pointed.get("expert"), self.pointed.get("column")
        if row is None or column is None or row == column or max(row, column) >= len(self._values):
            return None
        return row, column

    def telling(self) -> tuple[Bools, Bools]:
        """Which values are sure enough to be named as the highest, and which as the lowest."""
        known = np.isfinite(self._values)
        return known, known

    def extremes(self) -> tuple[Pair | None, Pair | None]:
        """The pairs with the highest and the lowest value."""
        high, low = self.telling()
        return self._greatest(self._values, high), self._greatest(-self._values, low)

    def _greatest(self, values: Array, among: Bools) -> Pair | None:
        if not among.any():
            return None
        equal = among & (values == values[among].max())
        row, column = np.unravel_index(int(np.where(equal, self._tokens_E1, -1).argmax()), values.shape)
        return int(row), int(column)

    def hit(self, point: QPointF, rect: QRectF) -> Pointed:
        at = self.grid(rect).at(point)
        return {} if at is None else {"expert": at[0], "column": at[1]}

    def table(self) -> Table:
        if self.missing():
            return ["layer", "expert"], []
        self.refresh()
        head = ["layer", "expert", *(f"expert_{e}" for e in range(len(self._values)))]
        rows: list[list[int | float | str]] = [
            [self.layer, e, *("" if value != value else value for value in row)]
            for e, row in enumerate(self._values.tolist())
        ]
        return head, rows


class CoActivation(ExpertPairs):
    name = "co_activation"

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(theme, parent)
        self._baseline = 0.0
        self._pairs: Ints = np.zeros((1, 1), dtype=np.int64)

    def missing(self) -> str:
        routing = self.routing()
        if super().missing() or routing is None:
            return super().missing()
        chosen = (routing.expert_ids_TK >= 0).sum(axis=1)
        if chosen.max() < 2:
            return "Each token chooses one expert here, so no two are chosen together."
        if chosen.min() == routing.num_experts:
            return "Each token chooses every expert here, so all are always together."
        return ""

    def measure(self, routing: Routing) -> None:
        ids, experts = routing.expert_ids_TK, routing.num_experts
        k_T = (ids >= 0).sum(axis=1)  # a token that chose more experts is in more pairs
        self._baseline = co_activation_baseline(float((k_T * k_T).sum() / k_T.sum()), experts)
        self._pairs = pair_counts(ids, experts)
        self._tokens_E1 = np.diag(self._pairs)[:, None]
        values = co_activation(ids, experts, MIN_COUNT)
        self.take(values, around(values, max(self._baseline, 1e-3)))

    def telling(self) -> tuple[Bools, Bools]:
        """Pairs that are together in enough tokens; and those that would be by chance."""
        known = np.isfinite(self._values)
        return known & (self._pairs >= MIN_COUNT), known & (self._tokens_E1 * self._baseline >= MIN_COUNT)

    def columns_are(self) -> str:
        return "expert chosen too"

    def colours_are(self) -> str:
        return "share"

    def footer(self) -> str:
        pair, (most, least) = self.pointed_pair(), self.extremes()
        if pair is not None:
            words = [self._in_words(*pair)]
        elif most is None and least is None:
            words = ["too few tokens to name a pair"]
        else:
            ends = (("most", most), ("least", least))
            words = [f"{which}: {self._share(*named)}" for which, named in ends if named is not None]
        rare = [f"blank rows: under {MIN_COUNT} tokens"] if (self._tokens_E1 < MIN_COUNT).any() else []
        return "  ".join([*words, f"chance {number(self._baseline)}", *rare, self.whose()])

    def _share(self, i: int, j: int) -> str:
        first, second = self.experts()[i], self.experts()[j]
        return f"{number(100 * float(self._values[i, j]))} % of {first}'s {self._pairs[i, i]} tokens chose {second} too"

    def _in_words(self, i: int, j: int) -> str:
        first, second = self.experts()[i], self.experts()[j]
        if self._pairs[i, i] < MIN_COUNT:
            of = f"{self._pairs[i, j]} of expert {first}'s {self._pairs[i, i]}"
            return f"tokens that chose {second} too: {of}, too few to tell"
        return f"{self._share(i, j)} ({self._pairs[i, j]})"


KINDS = ("router rows", "outputs")


class SimilarityOfExperts(ExpertPairs):
    name = "similarity"

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(theme, parent)
        self.kind = QComboBox()
        self.kind.addItems(list(KINDS))
        self.kind.setAccessibleName("What is compared")
        self.kind.currentIndexChanged.connect(lambda _: self.invalidate())
        self.header.insertWidget(1, self.kind)

    def choice(self) -> str:
        return self.kind.currentText()

    def found(self) -> Similarity | None:
        if self.survey is None or self.layer >= len(self.survey.similarity):
            return None
        return self.survey.similarity[self.layer]

    def missing(self) -> str:
        if super().missing():
            return super().missing()
        found = self.found()
        if found is None:
            return self.survey.lack if self.survey is not None and self.survey.lack else NO_SURVEY
        if self.choice() == "outputs":
            if found.output_cka_EE is None:
                return (
                    "The experts are too large to be run on all tokens beside training, so their outputs are not "
                    "compared; router rows are."
                )
            size = found.output_cka_EE.shape[0]
        elif found.router_cosine_EE is None:
            return "This router has no row of weights for each expert; outputs can be compared."
        else:
            size = found.router_cosine_EE.shape[0]
        return "" if size > 1 else "There is one expert, and nothing to compare it with."

    def measure(self, routing: Routing) -> None:
        found = self.found()
        assert found is not None
        matrix = found.output_cka_EE if self.choice() == "outputs" else found.router_cosine_EE
        assert matrix is not None
        values = matrix.astype(np.float64)
        np.fill_diagonal(values, np.nan)
        self.take(values, Scale(0.0, 1.0) if self.choice() == "outputs" else Scale(-1.0, 1.0, 0.0))

    def colours_are(self) -> str:
        return "CKA" if self.choice() == "outputs" else "cosine"

    def subtitle(self) -> str:
        return f"{super().subtitle()}, {self.choice()}"

    def footer(self) -> str:
        pair, (most, least), found = self.pointed_pair(), self.extremes(), self.found()
        names = self.experts()
        what = "linear CKA of outputs" if self.choice() == "outputs" else "cosine of router rows"
        if pair is not None:
            words = [f"experts {names[pair[0]]} and {names[pair[1]]}: {what} {number(float(self._values[pair]))}"]
        elif most is not None and least is not None:
            (i, j), (a, b) = most, least
            words = [
                f"{what}  most alike: {names[i]} and {names[j]}, {number(float(self._values[i, j]))}",
                f"least: {names[a]} and {names[b]}, {number(float(self._values[a, b]))}",
            ]
        else:
            words = [what]
        if self.choice() == "outputs" and found is not None:
            words.append(f"every expert run on {found.num_tokens} held-out tokens of width {found.width}")
        return "  ".join([*words, self.when()])


def two_digits(value: float) -> str:
    return "" if value != value else f"{round(value, 2) + 0.0:.2f}".replace("-", "−")
