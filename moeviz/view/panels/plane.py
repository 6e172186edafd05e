"""The plane of a 2-D task: the regions of a layer's experts, or the model's output, and the probe's points on top."""

import numpy as np
import numpy.typing as npt
from PySide6.QtCore import QPointF, QRectF
from PySide6.QtGui import QColor, QImage, QPainter

from moeviz.domain.points import CLASSES
from moeviz.domain.routing import Bools, Floats, Ints, RoutingSnapshot
from moeviz.domain.survey import Plane
from moeviz.view.colours import expert_colour
from moeviz.view.panel import Pointed, Table
from moeviz.view.panels.axes import BOTTOM, Array, Frame, draw_x_axis, draw_y_axis, inside, number, share
from moeviz.view.panels.dots import STRETCHED, best, draw_classes, draw_crosses, draw_names, draw_ring, nearest, pixels
from moeviz.view.panels.grid import Grid, Scale, draw_scale, image_of
from moeviz.view.panels.heat import draw_heat
from moeviz.view.panels.rail import RAIL, draw_rail, hit_rail
from moeviz.view.panels.strip import LEAST
from moeviz.view.panels.words import first_in_words, first_null, label, labels
from moeviz.view.theme import Theme

KINDS = ("experts", "output")
OTHERS = 0.3  # how strong the regions of the other experts stay where one is selected
LONG = 4.0  # a plane that is longer than so many times its height fills its place
LOW_BOTTOM = 18.0  # px, below a plot without them
LOW = 180.0  # px, a plot below it has no room for the names of its axes
BLOCK = 6  # cells a side: an expert's number stands where so many are all its own
APART = 24.0  # cells between two of its numbers
SCALE = Scale(0.0, 1.0, 0.5)
SMALLER = 0.6  # times, the points that are not the probe's
Marked = tuple[npt.NDArray[np.floating], Bools]  # points, and which are of the second class


class PlanePicture:
    """One layer's regions (`kind` "experts") or the output; made once for each survey, layer, kind and expert."""

    def __init__(
        self, plane: Plane, probe: RoutingSnapshot, layer: int, kind: str, theme: Theme, expert: int | None
    ) -> None:
        self.plane, self.theme, self.layer, self.kind, self.expert = plane, theme, layer, kind, expert
        self.routing, self.probe = plane.layers[layer], probe
        self.shape = plane.probability_RC.shape
        first, gate = best(self.routing)
        self.first_RC, self.gate_RC = first.reshape(self.shape), gate.reshape(self.shape)
        first, gate = best(probe.layers[layer])
        self.probe_first, self.probe_gate = first.tolist(), gate.tolist()
        self.second_T, self.wrong_T = _classes(plane, probe)
        self.null = first_null(self.routing)
        self.extent = (*_ends(plane.x_C), *_ends(plane.y_R))
        if kind == "output":
            self.image, self.names = image_of(plane.probability_RC[::-1], SCALE, theme), []
        else:
            self.image = self._regions()
            self.names = sorted(_names(self.first_RC), key=lambda name: name[0] != expert)

    def _regions(self) -> QImage:
        """Each cell in its expert's colour, stronger the more weight that has."""
        ground = _bgr(QColor(self.theme.panel))
        colours = np.array([_bgr(expert_colour(e, self.theme)) for e in range(self.routing.num_experts)])
        amount = LEAST + (1 - LEAST) * self.gate_RC / max(1.0, float(self.gate_RC.max(initial=0.0)))
        if self.expert is not None:
            amount = np.where(self.first_RC == self.expert, amount, OTHERS * amount)
        amount = np.where(self.first_RC < 0, 0, amount)[..., None]
        pixels = np.full((*self.shape, 4), 255, np.uint8)
        pixels[..., :3] = np.round(ground + (colours[self.first_RC] - ground) * amount)
        pixels = np.ascontiguousarray(pixels[::-1])
        rows, columns = self.shape
        return QImage(pixels.data, columns, rows, columns * 4, QImage.Format.Format_RGB32).copy()

    # ---- where things lie
    def frame(self, rect: QRectF) -> Frame:
        """As large as fits, and not far from true to scale."""
        plot = inside(rect, right=RAIL, bottom=BOTTOM if rect.height() >= LOW else LOW_BOTTOM)
        plot = QRectF(plot.left(), plot.top(), max(plot.width(), 1.0), max(plot.height(), 1.0))
        x0, x1, y0, y1 = self.extent
        ratio = (x1 - x0) / (y1 - y0)
        if 1 / LONG <= ratio <= LONG:
            wide = min(plot.width(), plot.height() * ratio * STRETCHED)
            high = min(plot.height(), plot.width() / ratio * STRETCHED)
            plot = QRectF(plot.left() + (plot.width() - wide) / 2, plot.top(), wide, high)
        return Frame(plot, x0, x1, y0, y1)

    def cell(self, frame: Frame, point: QPointF) -> tuple[int, int] | None:
        """Row (upwards) and column of the grid."""
        at = Grid(frame.rect, *self.shape).at(point)
        return None if at is None else (self.shape[0] - 1 - at[0], at[1])

    def draw(self, painter: QPainter, rect: QRectF, token: int | None, painted: Marked | None, small: Marked) -> None:
        """`painted` stand there in place of the probe's points, `small` ones below them."""
        frame, theme = self.frame(rect), self.theme
        named = rect.height() >= LOW
        draw_y_axis(painter, frame, theme, "y" if named else "")  # its lines go under the map
        draw_x_axis(painter, frame, theme, "x" if named else "")
        draw_heat(painter, frame.rect, self.image)
        if self.kind == "output":
            draw_scale(painter, frame.rect, SCALE, theme, "p(●)" if named else "")
        else:
            draw_rail(painter, frame.rect, labels(self.routing.num_experts, self.null), theme, self.expert)
        painter.save()
        painter.setClipRect(frame.rect.adjusted(-4, -4, 4, 4).intersected(rect))
        rows, columns = (np.array([name[i] for name in self.names], int) for i in (1, 2))
        places = pixels(frame, np.stack([self.plane.x_C[columns], self.plane.y_R[rows]], 1)).tolist()
        draw_names(
            painter,
            [(x, y, label(e, self.null)) for (x, y), (e, _, _) in zip(places, self.names, strict=True)],
            frame.rect,
            theme,
        )
        if painted is not None:
            draw_classes(painter, frame, *painted, theme)
        else:
            draw_classes(painter, frame, *small, theme, SMALLER)
            draw_classes(painter, frame, self.plane.probe_T2, self.second_T, theme)
            draw_crosses(painter, frame, self.plane.probe_T2[self.wrong_T], theme)
            if token is not None and token < len(self.plane.probe_T2):
                (x, y), *_ = pixels(frame, self.plane.probe_T2[token : token + 1]).tolist()
                draw_ring(painter, QPointF(x, y), 7, theme)
        painter.restore()

    def hit(self, point: QPointF, rect: QRectF) -> Pointed:
        frame = self.frame(rect)
        if self.kind == "experts" and (expert := hit_rail(frame.rect, self.routing.num_experts, point)) is not None:
            return {"expert": expert}
        if (near := nearest(frame, self.plane.probe_T2, point)) is not None:
            first = self.probe_first[near[0]]
            return {"token": near[0]} | ({"expert": first} if first >= 0 else {})
        if (cell := self.cell(frame, point)) is None:
            return {}
        first = int(self.first_RC[cell])
        return {"row": cell[0], "column": cell[1]} | ({"expert": first} if first >= 0 else {})

    # ---- in words and numbers
    def footer(self, pointed: Pointed, step: int, click: str) -> list[str]:
        plane, token = self.plane, pointed.get("token")
        words = []
        if token is not None and token < len(plane.probe_T2):
            (x, y), p = plane.probe_T2[token].tolist(), float(plane.probe_probability_T[token])
            said = "" if self.second_T is None else f" {CLASSES[int(self.second_T[token])]}"
            right = "" if self.second_T is None else ", wrong" if self.wrong_T[token] else ", right"
            words.append(f"point {token}{said} at ({number(x)}, {number(y)})")
            words.append(first_in_words(self.probe_first[token], self.probe_gate[token], self.null))
            words.append(f"p({CLASSES[1]}) {share(p)}{right}")
        elif "row" in pointed and pointed["row"] < self.shape[0] and pointed["column"] < self.shape[1]:
            at = pointed["row"], pointed["column"]
            words.append(f"x {number(float(plane.x_C[at[1]]))}, y {number(float(plane.y_R[at[0]]))}")
            words.append(first_in_words(int(self.first_RC[at]), float(self.gate_RC[at]), self.null))
            words.append(f"p({CLASSES[1]}) {share(float(plane.probability_RC[at]))}")
        else:
            count = len(plane.probe_T2)
            if self.second_T is None:
                words.append(f"dots: the probe's {count} points{click}")
            else:
                words.append(f"{CLASSES[0]} {CLASSES[1]} the probe's {count} points{click}")
                words.append(f"✕ {int(self.wrong_T.sum())} told wrong")
            if len(plane.own_N2):
                words.append(f"small: your {len(plane.own_N2)} points")
            if self.layer and self.kind == "experts":
                words.append("this router reads hidden states")
            words.append(f"step {step:,}")
        if plane.together:
            words.append("⚠ points change each other's routing: a grid's is not the data's")
        return words

    def table(self) -> Table:
        """The cells, then the probe's points."""
        plane = self.plane
        head = ["layer", "what", "x", "y", "class", "expert", "gate_weight", "probability_of_second_class"]
        x, y = np.meshgrid(plane.x_C, plane.y_R)
        rows: list[list[int | float | str]] = [
            [self.layer, "cell", *row[:2], "", *row[2:]]
            for row in zip(
                *(a.ravel().tolist() for a in (x, y, self.first_RC, self.gate_RC, plane.probability_RC)), strict=True
            )
        ]
        classes = [""] * len(plane.probe_T2) if self.second_T is None else self.second_T.astype(int).tolist()
        rows += [
            [self.layer, "point", x, y, c, e, g, p]
            for (x, y), c, e, g, p in zip(
                plane.probe_T2.tolist(),
                classes,
                self.probe_first,
                self.probe_gate,
                plane.probe_probability_T.tolist(),
                strict=True,
            )
        ]
        return head, rows


def _classes(plane: Plane, probe: RoutingSnapshot) -> tuple[Bools | None, Bools]:
    """Which of the probe's points are of the second class, if it says so, and which the model tells wrong."""
    nothing = np.zeros(len(plane.probe_T2), np.bool_)
    if probe.domains is None or not set(probe.domains) <= set(CLASSES):
        return None, nothing
    second_T = np.array([name == CLASSES[1] for name in probe.domains], np.bool_)
    return second_T, (plane.probe_probability_T > 0.5) != second_T


def _ends(centres: Floats) -> tuple[float, float]:
    """Of a row of cells."""
    half = float(centres[1] - centres[0]) / 2
    return float(centres[0]) - half, float(centres[-1]) + half


def _bgr(colour: QColor) -> Array:
    return np.array([colour.blue(), colour.green(), colour.red()], float)


def _names(first_RC: Ints) -> list[tuple[int, int, int]]:
    """Expert, row and column of the numbers: in regions that hold a block of cells, one to each stretch; each expert's
    first one before any other."""
    rows, columns = (size // BLOCK for size in first_RC.shape)
    blocks = first_RC[: rows * BLOCK, : columns * BLOCK].reshape(rows, BLOCK, columns, BLOCK)
    low, high = blocks.min((1, 3)), blocks.max((1, 3))
    out: list[tuple[int, int, int]] = []
    for r, c in np.argwhere((low == high) & (low >= 0)).tolist():
        at = int(low[r, c]), r * BLOCK + BLOCK // 2, c * BLOCK + BLOCK // 2
        if all(e != at[0] or np.hypot(y - at[1], x - at[2]) >= APART for e, y, x in out):
            out.append(at)
    seen = [sum(e == at[0] for e, *_ in out[:i]) for i, at in enumerate(out)]
    return [at for _, at in sorted(zip(seen, out, strict=True), key=lambda pair: pair[0])]
