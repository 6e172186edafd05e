"""Which experts serve which domain, against what chance would do."""

from statistics import NormalDist

import numpy as np
from PySide6.QtCore import QPointF, QRectF
from PySide6.QtGui import QImage, QPainter
from PySide6.QtWidgets import QWidget

from moeviz.domain.metrics import ENOUGH, Information, codes, domain_specialisation, expert_counts, label_information
from moeviz.domain.routing import Ints, Routing
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
    rows_named,
)
from moeviz.view.panels.heat import draw_heat, outline
from moeviz.view.panels.sampled import NO_DOMAINS, Sampled, named
from moeviz.view.panels.words import first_null, label
from moeviz.view.theme import Theme

SHUFFLES = 20  # of the domains over the tokens: the 95 % quantile is the second highest
MOST_NAMED = 4  # domains in a sentence


class ExpertsDomains(Sampled):
    name = "experts_domains"

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(theme, parent)
        self._names: list[str] = []
        self._rows: list[str] = []  # the names without the words that all begin with
        self._tokens_D: Ints = np.zeros(0, dtype=np.int64)
        self._shares: Array = np.zeros((1, 1))  # (D, E)
        self._of_all: Array = np.zeros(1)  # (E,)
        self._baseline = 1.0
        self._information: Information | None = None
        self._warnings: list[str] = []
        self._scale = Scale(0.0, 1.0, 0.5)
        self._image = QImage()

    def missing(self) -> str:
        if super().missing():
            return super().missing()
        assert self.source is not None
        if self.source.domains is None:
            return self.survey.lack if self.survey is not None and self.survey.lack else NO_DOMAINS
        return ""

    def measure(self, routing: Routing) -> None:
        assert self.source is not None
        assert self.source.domains is not None
        self._names, domain_T = codes(self.source.domains)
        self._rows = [name[len(shared_words(self._names)) :] for name in self._names]
        ids, experts = routing.expert_ids_TK, routing.num_experts
        self._tokens_D = np.bincount(domain_T, minlength=len(self._names))
        self._shares = domain_specialisation(ids, domain_T, experts, len(self._names))
        counts = expert_counts(routing)
        self._of_all = counts / routing.num_tokens
        self._baseline = float(counts.sum() / routing.num_tokens / experts)
        # of a snapshot it is not known where a text ends
        length = 1 if self.source is self.snapshot else self.row_length
        self._information = label_information(
            ids, domain_T, experts, equal_weights=True, shuffles=SHUFFLES, row_length=length
        )
        self._warnings = [
            *dead_in_words(counts, first_null(routing)),
            *uncovered_in_words(self._rows, self._shares, self._of_all, self._tokens_D),
        ]
        self._scale = around(self._shares, self._baseline)
        self._image = image_of(self._shares, self._scale, self.theme)

    def grid(self, rect: QRectF) -> Grid:
        return grid_in(rect, self._rows, *self._shares.shape)

    def draw(self, painter: QPainter, rect: QRectF) -> None:
        grid, theme = self.grid(rect), self.theme
        draw_heat(painter, grid.rect, self._image)
        draw_numbers(painter, grid, self._shares, self._scale, theme)
        draw_scale(painter, grid.rect, self._scale, theme, "share")
        draw_row_names(painter, grid, self._rows, theme, rows_in_words(rows_named(grid), shared_words(self._names)))
        draw_expert_edges(painter, grid, theme, rows=False)
        expert = self.expert_at(grid.columns)
        draw_column_labels(painter, grid.rect, self.experts(), theme, "expert", expert)
        row = self.pointed.get("row")
        if expert is None and row is not None:
            outline(painter, grid.row(row).adjusted(0, 0, -1, -1), theme)
        if expert is not None:
            column = QRectF(grid.rect.left() + expert * grid.wide, grid.rect.top(), grid.wide, grid.rect.height())
            outline(painter, (grid.cell(row, expert) if row is not None else column).adjusted(0, 0, -1, -1), theme)

    def footer(self) -> str:
        row, expert = self.pointed.get("row"), self.pointed.get("expert")
        (domains, experts), names = self._shares.shape, self.experts()
        if row is not None and expert is not None and row < domains and expert < experts:
            q = float(self._shares[row, expert])
            first = (
                f"expert {names[expert]} serves {number(q)} of {self._names[row]} ({self._tokens_D[row]} tokens)  "
                f"{number(float(self._of_all[expert]))} of all, chance k/E = {number(self._baseline)}"
            )
        elif row is not None and row < domains:
            best = int(np.nanargmax(self._shares[row]))
            first = (
                f"{self._names[row]}: {self._tokens_D[row]} tokens  "
                f"expert {names[best]} serves the most, {number(float(self._shares[row, best]))}"
            )
        else:
            first = f"share of a domain's tokens, chance k/E = {number(self._baseline)}  {self.whose()}"
        assert self._information is not None
        return "  ".join([first, *self._warnings, *information_in_words(self._information)])

    def hit(self, point: QPointF, rect: QRectF) -> Pointed:
        grid = self.grid(rect)
        if (at := grid.at(point)) is not None:
            return {"row": at[0], "expert": at[1]}
        beside = grid.at(QPointF(grid.rect.left(), point.y())) if point.x() < grid.rect.left() else None
        return {} if beside is None else {"row": beside[0]}  # on the names: some are cut, or have no room

    def table(self) -> Table:
        if self.missing():
            return ["layer", "domain", "tokens"], []
        self.refresh()
        head = ["layer", "domain", "tokens", *(f"expert_{e}" for e in range(self._shares.shape[1]))]
        rows: list[list[int | float | str]] = [
            [self.layer, name, tokens, *("" if q != q else q for q in shares)]
            for name, tokens, shares in zip(self._names, self._tokens_D.tolist(), self._shares.tolist(), strict=True)
        ]
        return head, rows


def shared_words(names: list[str]) -> str:
    """What all names begin with, up to a whole word."""
    shared = names[0] if len(names) > 1 else ""
    while shared and not (shared.endswith(" ") and all(name.startswith(shared) for name in names)):
        shared = shared[:-1]
    return shared


def rows_in_words(every: int, shared: str) -> str:
    """What the rows are, and which of them are named."""
    what = f"{shared}…" if shared else "domain"
    return what if every == 1 else f"every {every}{'nd' if every == 2 else 'th'} {what}"


def information_in_words(information: Information) -> list[str]:
    """How far experts and labels tell of each other beyond chance, and what shuffled labels reach."""
    excess = information.nats - information.bias
    if information.symmetric != information.symmetric or not excess:
        return ["NMI –"]
    band = (information.chance - information.bias) / excess * information.symmetric
    if band != band:
        return [f"NMI {number(information.symmetric)} (too few texts to know chance)"]
    if information.nats <= information.chance:
        return [f"NMI no more than chance (< {number(band)})"]
    return [f"NMI {number(information.symmetric)} (chance < {number(band)})"]


def dead_in_words(counts_E: Ints, null_from: int) -> list[str]:
    """Experts that none of these tokens chose, where an even load would have given each enough."""
    dead = [label(e, null_from) for e in np.flatnonzero(counts_E == 0).tolist()]
    if not dead:
        return []
    if counts_E.sum() < ENOUGH * counts_E.size:
        return [f"experts {named(dead)} got no token; too few tokens to call them dead"]
    return [f"⚠ dead: expert{'s' if len(dead) > 1 else ''} {named(dead)}"]


def uncovered_in_words(names: list[str], shares_DE: Array, of_all_E: Array, tokens_D: Ints) -> list[str]:
    """Domains whose tokens no expert serves more often than it serves all, beyond chance: the tokens of the domain
    are taken as drawn from all without replacement, at 5 % over all cells."""
    total, limit = int(tokens_D.sum()), NormalDist().inv_cdf(1 - 0.05 / shares_DE.size)
    correction = (total - tokens_D) / max(total - 1, 1) / np.maximum(tokens_D, 1)
    noise_DE = np.sqrt(of_all_E * (1 - of_all_E) * correction[:, None])
    favoured_DE = shares_DE - of_all_E > limit * noise_DE + 1e-9
    bare = [name for name, row in zip(names, favoured_DE, strict=True) if not row.any()]
    nobody_chooses = bool((shares_DE[tokens_D > 0] == 1).all())  # every token has every expert
    if len(names) < 2 or not bare or nobody_chooses:
        return []
    named = ", ".join(bare[:MOST_NAMED]) + (f" and {len(bare) - MOST_NAMED} more" if len(bare) > MOST_NAMED else "")
    return [f"⚠ no sure favourite: {named}"]
