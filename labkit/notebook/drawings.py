"""Drawings that explain: boxes of tensors, arrows, heads, blocks, shards. Plots prove; these tell.

    d = Drawing(16, 6, "The query meets every key; the weights mix the values.")
    q = d.box(1, 1, 3, 1.2, "queries", "T x K", BLUE)
    s = d.box(6, 1, 3, 1.2, "scores", "T x S")
    d.arrow(q.right, s.left, "q · k")
    d.done()                     -> a Figure, the last line of a folded cell

A drawing is a sheet of units, 40 pixels at the size that a notebook shows, y downwards as one
reads. What it says in words travels with it (`plots.describe`). A text that does not fit its box,
or two that cover one another, is an error here and not an ugly picture there.

Everything is drawn by matplotlib in the course's palette (`plots`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Rectangle
from matplotlib.text import Text

from labkit.errors import LabError
from labkit.notebook.plots import BLACK, GREY, PALETTE, readable

#: Inches of a unit: a drawing 18 units wide is as wide as the course's figures.
UNIT = 0.4
SIZE, SMALL = 10.0, 8.5
"""Points of a name, and of a shape or a label."""
GAP = 0.1
"""Units between an arrow and its name."""

Point = tuple[float, float]
Side = Literal["left", "right", "centre"]


def tint(colour: str, share: float = 0.16) -> tuple[float, float, float]:
    """A pale version of a colour, for the inside of a box: `share` of it on white."""
    red, green, blue = (1 - share * (1 - value) for value in to_rgb(colour))
    return red, green, blue


@dataclass(frozen=True)
class Box:
    """A place on the sheet, in units; its middle points are where arrows begin and end."""

    x: float
    y: float
    width: float
    height: float

    @property
    def left(self) -> Point:
        return self.x, self.y + self.height / 2

    @property
    def right(self) -> Point:
        return self.x + self.width, self.y + self.height / 2

    @property
    def top(self) -> Point:
        return self.x + self.width / 2, self.y

    @property
    def bottom(self) -> Point:
        return self.x + self.width / 2, self.y + self.height

    @property
    def centre(self) -> Point:
        return self.x + self.width / 2, self.y + self.height / 2


class Drawing:
    """A sheet to draw on; `done` checks it and gives the figure."""

    def __init__(self, width: float, height: float, alternative: str):
        """
        Args:
            width, height: in units; 18 wide fills a notebook's column.
            alternative: what the drawing says, in a sentence or two, for those who do not see it.

        Raises:
            LabError: no alternative text.
        """
        if not alternative.strip():
            raise LabError("a drawing needs its alternative text: say in words what it shows")
        self.width, self.height = width, height
        self.figure = Figure(figsize=(UNIT * width, UNIT * height), dpi=100, facecolor="white")
        self.figure.set_layout_engine("none")  # the course's style has another
        FigureCanvasAgg(self.figure)
        self.figure.set_label(" ".join(alternative.split()))
        self.axes: Axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, width), ylim=(height, 0))
        self.axes.set_axis_off()
        self._inside: list[tuple[Text, Box]] = []
        self._texts: list[Text] = []

    # things

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        name: str = "",
        shape: str = "",
        colour: str = GREY,
        *,
        times: int = 1,
        filled: bool = True,
    ) -> Box:
        """A tensor or a layer: its name, below it small its shape.

        Args:
            x, y: the left upper corner.
            width, height: of the box.
            name, shape: written inside; "" for none.
            colour: of its rim; the inside is a tint of it.
            times: sheets behind it, to say "several of these" (heads, blocks, layers).
            filled: False leaves the inside white.
        """
        for behind in reversed(range(times)):
            shift = 0.16 * behind
            self.axes.add_patch(
                FancyBboxPatch(
                    (x + shift, y - shift),
                    width,
                    height,
                    boxstyle="round,pad=0,rounding_size=0.14",
                    edgecolor=colour,
                    facecolor=tint(colour) if filled else "white",
                    linewidth=1.3,
                    zorder=2 - 0.01 * behind,
                )
            )
        made = Box(x, y, width, height)
        middle_x, middle_y = made.centre
        lift = 0.25 if name and shape else 0.0
        if name:
            self._inside.append((self._write(middle_x, middle_y - lift, name, BLACK, SIZE), made))
        if shape:
            small = self._write(middle_x, middle_y + lift, shape, readable(colour), SMALL)
            self._inside.append((small, made))
        return made

    def grid(
        self,
        x: float,
        y: float,
        rows: int,
        columns: int,
        *,
        cell: float = 0.5,
        colour: str = GREY,
        filled: Any = None,
        written: Sequence[Sequence[str]] | None = None,
    ) -> Box:
        """A matrix, cell by cell: a mask, a table of weights, what each process holds.

        Args:
            x, y: the left upper corner.
            rows, columns: of the matrix.
            cell: side of a cell.
            colour: of the filled cells.
            filled: (rows, columns) from 0 (white) to 1 (the full colour), or colours; None: tinted.
            written: a short text in each cell; "" for none.
        """
        shade = np.full((rows, columns), 0.16) if filled is None else np.asarray(filled)
        if shade.shape[:2] != (rows, columns):
            raise LabError(f"filled has shape {shade.shape}, the grid is {rows} x {columns}")
        for i, j in np.ndindex(rows, columns):
            own = shade[i, j]
            inside = str(own) if shade.dtype.kind in "OU" else tint(colour, float(own))
            place = (x + j * cell, y + i * cell)
            self.axes.add_patch(
                Rectangle(place, cell, cell, facecolor=inside, edgecolor="white", linewidth=1.2)
            )
            words = "" if written is None else str(written[i][j])
            if words:
                middle = Box(*place, cell, cell)
                red, green, blue = to_rgb(inside)
                ink = "white" if 0.3 * red + 0.6 * green + 0.1 * blue < 0.5 else BLACK
                text = self._write(*middle.centre, words, ink, SMALL)
                self._inside.append((text, middle))
        made = Box(x, y, columns * cell, rows * cell)
        self.axes.add_patch(
            Rectangle((x, y), made.width, made.height, fill=False, edgecolor=colour, linewidth=1.3)
        )
        return made

    def shards(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        owners: Sequence[str],
        *,
        across: bool = True,
        held: Sequence[bool] | None = None,
    ) -> list[Box]:
        """One tensor cut into equal parts, each in the colour of its owner.

        Args:
            x, y, width, height: the whole tensor.
            owners: a short name for each part, such as "rank 0".
            across: cut from left to right; False from top to bottom.
            held: which parts are here; the others are only outlined. None: all.
        """
        parts = []
        for i, owner in enumerate(owners):
            share = 1 / len(owners)
            part = (
                Box(x + i * share * width, y, share * width, height)
                if across
                else Box(x, y + i * share * height, width, share * height)
            )
            shade = PALETTE[i % len(PALETTE)]
            here = held is None or held[i]
            self.axes.add_patch(
                Rectangle(
                    (part.x, part.y),
                    part.width,
                    part.height,
                    facecolor=tint(shade, 0.28) if here else "white",
                    edgecolor=shade if here else "#BBBBBB",
                    linewidth=1.3 if here else 0.8,
                    linestyle="solid" if here else (0, (3, 3)),
                    zorder=2 if here else 1,
                )
            )
            if here and owner:
                text = self._write(*part.centre, owner, BLACK, SMALL)
                self._inside.append((text, part))
            parts.append(part)
        return parts

    def plus(self, x: float, y: float, sign: str = "+", colour: str = BLACK) -> Box:
        """A small circle where two streams meet: a sum, or another operation by its sign."""
        self.axes.add_patch(
            Circle((x, y), 0.32, facecolor="white", edgecolor=colour, linewidth=1.3, zorder=3)
        )
        self._write(x, y, sign, colour, SIZE + 1, counted=False)
        return Box(x - 0.32, y - 0.32, 0.64, 0.64)

    def frame(
        self, x: float, y: float, width: float, height: float, name: str, colour: str = GREY
    ) -> Box:
        """A dashed frame around things that belong together, its name in the upper left corner."""
        self.axes.add_patch(
            FancyBboxPatch(
                (x, y),
                width,
                height,
                boxstyle="round,pad=0,rounding_size=0.2",
                edgecolor=colour,
                facecolor="none",
                linewidth=1.1,
                linestyle=(0, (4, 3)),
                zorder=1,
            )
        )
        self.text(x + 0.25, y + 0.4, name, colour=colour, side="left", small=True)
        return Box(x, y, width, height)

    # between things

    def arrow(
        self,
        start: Point,
        end: Point,
        name: str = "",
        *,
        colour: str = BLACK,
        bend: float = 0.0,
        dashed: bool = False,
        head: bool = True,
        under: bool = False,
    ) -> None:
        """From one point to another, its name beside its middle.

        Args:
            start, end: points, such as `box.right`.
            name: "" for none.
            colour: of the line; its name has the same, readable.
            bend: how far it curves to its left, as a share of its length; negative to its right.
            dashed: for what flows back (gradients) or now and then.
            head: False draws a line.
            under: its name stands on the right as one looks along it, which is under an arrow that
                runs to the right, instead of on the left.
        """
        self.axes.add_patch(
            FancyArrowPatch(
                start,
                end,
                arrowstyle="-|>" if head else "-",
                mutation_scale=11,
                shrinkA=1.5,
                shrinkB=1.5,
                linewidth=1.4,
                color=colour,
                linestyle=(0, (4, 3)) if dashed else "solid",
                connectionstyle=f"arc3,rad={bend}",
                zorder=2.5,
            )
        )
        if name:
            run, fall = end[0] - start[0], end[1] - start[1]
            length = max(1e-9, float(np.hypot(run, fall)))
            across = np.array((fall, -run)) / length  # to the left as one looks along it
            text = self._write(0, 0, name, readable(colour), SMALL)
            own = self._extent(text)
            half = (abs(across) @ (own.width, own.height)) / 2 + GAP
            off = bend * length / 2 + (-half if under else half)
            x, y = np.add(start, end) / 2 + off * across
            text.set_position((x, y))

    def path(
        self, *points: Point, colour: str = BLACK, dashed: bool = False, head: bool = True
    ) -> None:
        """A line with corners, for a stream that goes around something."""
        for a, b in pairwise(points[:-1]):
            style = (0, (4, 3)) if dashed else "solid"
            self.axes.plot(
                *zip(a, b, strict=True),
                color=colour,
                linewidth=1.4,
                linestyle=style,
                solid_capstyle="round",
                zorder=2.4,
            )
        self.arrow(points[-2], points[-1], colour=colour, dashed=dashed, head=head)

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        colour: str = BLACK,
        side: Side = "centre",
        small: bool = False,
        bold: bool = False,
    ) -> None:
        """Words on the sheet.

        Args:
            x, y: where: the point is at the middle of their height.
            words: one line or several.
            colour: darkened until it can be read.
            side: where they begin: "left" of x onwards, up to the "right", or "centre".
            small: the size of labels instead of that of names.
            bold: for a heading.
        """
        size = SMALL if small else SIZE
        self._write(x, y, words, readable(colour), size, side=side, bold=bold)

    def done(self) -> Figure:
        """The finished figure.

        Raises:
            LabError: a text is larger than its box, leaves the sheet, or covers another one.
        """
        for text, box in self._inside:
            own = self._extent(text)
            if own.width > box.width - 0.2 or own.height > box.height:
                raise LabError(
                    f"the text {text.get_text()!r} takes {own.width:.1f} x {own.height:.1f} units "
                    f"in a box of {box.width:.1f} x {box.height:.1f}: widen the box or say it "
                    "shorter"
                )
        placed = [(text.get_text(), self._extent(text)) for text in self._texts]
        for i, (words, a) in enumerate(placed):
            right, bottom = a.x + a.width, a.y + a.height
            if a.x < -0.01 or a.y < -0.01 or right > self.width + 0.01 or bottom > self.height:
                raise LabError(f"the text {words!r} leaves the sheet: move it inwards")
            for other, b in placed[:i]:
                if min(right, b.x + b.width) - max(a.x, b.x) > 0.02 and (
                    min(bottom, b.y + b.height) - max(a.y, b.y) > 0.06
                ):
                    raise LabError(f"the texts {other!r} and {words!r} cover one another")
        return self.figure

    def _extent(self, text: Text) -> Box:
        """The place that a text takes."""
        renderer: Any = self.figure.canvas.get_renderer()  # type: ignore[attr-defined]
        corners = self.axes.transData.inverted().transform(text.get_window_extent(renderer))
        (x0, y0), (x1, y1) = corners
        return Box(x0, min(y0, y1), x1 - x0, abs(y1 - y0))

    def _write(
        self,
        x: float,
        y: float,
        words: str,
        colour: str,
        size: float,
        *,
        side: Side = "centre",
        bold: bool = False,
        counted: bool = True,
    ) -> Text:
        text = self.axes.text(
            x,
            y,
            words,
            ha="center" if side == "centre" else side,
            va="center_baseline" if "\n" not in words else "center",
            color=colour,
            fontsize=size,
            fontweight="bold" if bold else "normal",
            linespacing=1.25,
            zorder=4,
        )
        if counted:
            self._texts.append(text)
        return text
