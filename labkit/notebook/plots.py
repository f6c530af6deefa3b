"""Figures: one palette, one style, one colour for one thing in the whole course.

The colours are Okabe and Ito's (2008), which people with any common colour blindness can tell
apart. Figures are made without pyplot's global state: a helper draws on the axes that it is given,
or makes a figure, and returns the figure; the last line of a cell displays it.
"""

import io
import re
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import Any, Literal

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from PIL import Image

BLUE, ORANGE, GREEN, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
SKY, PURPLE, YELLOW, BLACK, GREY = "#56B4E9", "#CC79A7", "#F0E442", "#222222", "#767676"

#: In this order where nothing has a role.
PALETTE = (BLUE, ORANGE, GREEN, VERMILLION, SKY, PURPLE, BLACK, GREY)

#: What a colour means, everywhere. A series with one of these names takes its colour.
ROLES = {
    "train": BLUE,
    "validation": ORANGE,
    "test": PURPLE,
    "ours": GREEN,
    "right": GREEN,
    "wrong": VERMILLION,
    "baseline": GREY,
    "floor": BLACK,
}

STYLE: dict[Any, Any] = {
    "figure.dpi": 100,
    "savefig.dpi": 100,
    "figure.figsize": (7.0, 3.6),
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "font.size": 10.5,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "image.cmap": "cividis",
    "axes.prop_cycle": cycler(color=PALETTE),
}

#: Fonts with Chinese glyphs that common systems have, best first.
CHINESE_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans SC",
    "Source Han Sans SC",
    "PingFang SC",
    "Microsoft YaHei",
    "WenQuanYi Micro Hei",
    "SimHei",
    "Noto Sans CJK JP",
)


def use_style() -> None:
    """Make the course's style the default, for these helpers and for pyplot, in any front end."""
    matplotlib.rcParams.update(STYLE)
    _register_png_formatter()


@cache
def chinese_font() -> str | None:
    """A font with Chinese glyphs, or None: then keep Chinese out of figures."""
    from matplotlib import font_manager

    installed = set(font_manager.get_font_names())
    return next((name for name in CHINESE_FONTS if name in installed), None)


def figure(
    rows: int = 1,
    columns: int = 1,
    width: float = 7.0,
    height: float = 3.6,
    layout: Literal["constrained", "none"] = "constrained",
    **options: Any,
) -> tuple[Figure, Any]:
    """A new figure with its axes: (figure, axes), as pyplot's `subplots`, without global state.

    Args:
        rows, columns: the grid; with 1 x 1, axes is one Axes, else an array of them.
        width, height: in inches at 100 dots an inch.
        layout: "constrained" finds the margins and costs half of the drawing time; "none" leaves
            them to `figure.subplots_adjust`, for a widget with more than one panel.
        options: passed to `Figure.subplots` (sharex, gridspec_kw, ...).
    """
    here = {**STYLE, "figure.constrained_layout.use": layout == "constrained"}
    with matplotlib.rc_context(here):
        made = Figure(figsize=(width, height), dpi=100)
        FigureCanvasAgg(made)
        return made, made.subplots(rows, columns, **options)


def describe(fig: Figure) -> str:
    """A figure in words, for those who do not see it.

    What `fig.set_label` says; else what its panels say of themselves: titles, axes, named series.
    """
    if fig.get_label():
        return str(fig.get_label())
    panels = []
    for ax in fig.axes:
        title = ax.get_title() or ax.get_title("left")
        named = [*ax.get_lines(), *ax.collections, *ax.containers]
        names = [str(x.get_label()) for x in named if not str(x.get_label()).startswith("_")]
        names += [text.get_text() for text in ax.texts if isinstance(text, Annotation)]
        axes = [name for name in (ax.get_ylabel(), ax.get_xlabel()) if name]
        parts = [title, " against ".join(axes), ", ".join(dict.fromkeys(filter(None, names)))]
        if said := "; ".join(part for part in parts if part):
            panels.append(said)
    return "Figure: " + (". ".join(panels) if panels else f"{len(fig.axes)} panels without words")


def png(fig: Figure, colours: int = 256) -> bytes:
    """The figure as a small PNG: a palette of 256 colours is about a third of the bytes.

    Args:
        fig: any matplotlib figure.
        colours: palette size; 0 keeps full colour.
    """
    _use_chinese_font(fig)
    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    if colours:
        image = image.quantize(colours, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    image.save(buffer, format="png", compress_level=6)
    return buffer.getvalue()


def colour(name: str, index: int = 0) -> str:
    """The colour of a role ("train", "validation", "baseline", ...), else the palette's next."""
    return ROLES.get(name.lower(), PALETTE[index % len(PALETTE)])


def heatmap(
    matrix: Any,
    *,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    title: str = "",
    xlabel: str = "",
    ylabel: str = "",
    values: bool | None = None,
    digits: int = 2,
    vmin: float | None = None,
    vmax: float | None = None,
    cmap: str = "cividis",
    ax: Axes | None = None,
) -> Figure:
    """A matrix as colours, with its numbers written in the cells where they fit.

    Args:
        matrix: (rows, columns); NaN cells stay white.
        rows, columns: labels; columns stand on top, as in a matrix on paper.
        values: write the numbers; None writes them up to 12 columns.
        digits: decimals of the written numbers.
    """
    data = np.asarray(_numpy(matrix), dtype=float)
    height, width = data.shape
    ax = ax or _new_axes(width=min(9.0, 2.2 + 0.62 * width), height=min(7.0, 1.2 + 0.42 * height))
    image = ax.imshow(data, cmap=cmap, vmin=vmin, vmax=vmax, aspect="auto")
    ax.set_title(title)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    ax.xaxis.set_ticks_position("top")
    ax.xaxis.set_label_position("top")
    ax.tick_params(length=0)
    if columns is not None:
        turned = 45 if max(map(len, columns)) > 6 else 0
        ax.set_xticks(range(width), columns, rotation=turned, parse_math=_are_math(columns))
    if rows is not None:
        ax.set_yticks(range(height), rows, parse_math=_are_math(rows))
    if values if values is not None else width <= 12:
        for i, j in np.ndindex(data.shape):
            if np.isfinite(data[i, j]):
                red, green, blue, _ = image.to_rgba(data[i, j])
                dark = 0.3 * red + 0.6 * green + 0.1 * blue < 0.5
                ax.text(
                    j, i, f"{data[i, j]:.{digits}f}", ha="center", va="center", fontsize=9,
                    color="white" if dark else "black",
                )  # fmt: skip
    return _figure_of(ax)


def curves(
    series: Mapping[str, Any],
    *,
    title: str = "",
    xlabel: str = "",
    ylabel: str = "",
    references: Mapping[str, float] | None = None,
    logx: bool = False,
    logy: bool = False,
    markers: bool = False,
    colours: Mapping[str, str] | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Lines with their names written at their ends.

    Args:
        series: name -> y, or (x, y), or (x, y, low, high) for a band of uncertainty.
        references: name -> height of a dashed horizontal line (a baseline, the floor).
        colours: name -> colour, where a role does not say it.
    """
    ax = ax or _new_axes()
    if logx:
        ax.set_xscale("log")
    if logy:
        ax.set_yscale("log")
    ends: list[tuple[float, float, str, str]] = []
    for index, (name, data) in enumerate(series.items()):
        parts = [_numpy(part) for part in data] if isinstance(data, tuple) else [_numpy(data)]
        x, y = (np.arange(len(parts[0])), parts[0]) if len(parts) == 1 else parts[:2]
        shade = (colours or {}).get(name) or colour(name, index)
        ax.plot(x, y, color=shade, marker="o" if markers else "", markersize=4)
        if len(parts) == 4:
            ax.fill_between(x, parts[2], parts[3], color=shade, alpha=0.18, linewidth=0)
        if len(y):
            ends.append((float(x[-1]), float(y[-1]), name, shade))
    right = max((end[0] for end in ends), default=1.0)
    for index, (name, level) in enumerate((references or {}).items()):
        shade = (colours or {}).get(name) or ROLES.get(name.lower(), (GREY, BLACK)[index % 2])
        ax.axhline(level, color=shade, linestyle="--", linewidth=1.2)
        ends.append((right, float(level), name, shade))
    ax.set_title(title)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    labels = label_ends(ax, ends)

    def follow(_: Axes) -> None:
        for label, height in zip(labels, _label_heights(ax, ends), strict=True):
            label.xy = (1.01, height)
            label.set_y(height)

    ax.callbacks.connect("ylim_changed", follow)
    return _figure_of(ax)


def readable(shade: str, contrast: float = 4.5) -> str:
    """A colour for text on white: the same hue, darkened until it stands out enough.

    Args:
        shade: any colour that matplotlib knows.
        contrast: ratio of luminances, (1 + 0.05) / (text's + 0.05); WCAG 2.2 asks for 4.5.

    Returns:
        "#RRGGBB".
    """
    rgb = np.array(to_rgb(shade))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    luminance = float(linear @ (0.2126, 0.7152, 0.0722))
    linear = linear * min(1.0, (1.05 / contrast - 0.05) / max(luminance, 1e-9))
    darker = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    # Rounded down, so that the darkest of the allowed shades is not missed by a half.
    return "#" + "".join(f"{int(255 * value):02X}" for value in darker)


def label_ends(ax: Axes, ends: Sequence[tuple[float, float, str, str]]) -> list[Annotation]:
    """Write names at the right edge, moved apart where they would cover one another.

    Args:
        ends: (x, y, name, colour) of each line's last point, in data units.
    """
    return [
        ax.annotate(
            name,
            (1.01, height),
            xycoords="axes fraction",
            color=readable(shade),
            va="center",
            fontsize=9.5,
            annotation_clip=False,
        )
        for (_, _, name, shade), height in zip(ends, _label_heights(ax, ends), strict=True)
    ]


def _label_heights(ax: Axes, ends: Sequence[tuple[float, float, str, str]]) -> list[float]:
    """Heights in axes fractions, at least a line of text apart."""
    ax.get_ylim()  # settles the limits that autoscaling still owes
    to_axes = ax.transLimits.transform
    scale = ax.transScale.transform
    heights = [float(to_axes(scale((x, y)))[1]) for x, y, _, _ in ends]
    box = ax.get_window_extent().height or 250.0
    gap = 14.5 / box
    placed = dict(zip(range(len(ends)), heights, strict=True))
    order = sorted(placed, key=placed.__getitem__)
    for before, after in pairwise(order):
        placed[after] = max(placed[after], placed[before] + gap)
    overflow = max([placed[i] - 1.02 for i in order[-1:]], default=0.0)
    if overflow > 0:
        placed[order[-1]] -= overflow
        for after, before in pairwise(order[::-1]):
            placed[before] = min(placed[before], placed[after] - gap)
    return [placed[index] for index in range(len(ends))]


def bars(
    values: Mapping[str, Any],
    *,
    title: str = "",
    xlabel: str = "",
    digits: int = 3,
    references: Mapping[str, float] | None = None,
    colours: Mapping[str, str] | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Horizontal bars with their numbers, and intervals where given.

    Args:
        values: name -> number, or (number, low, high) for an interval.
        references: name -> position of a dashed vertical line.
    """
    ax = ax or _new_axes(height=0.9 + 0.42 * len(values))
    names = list(values)
    for index, name in enumerate(names):
        value, *interval = values[name] if isinstance(values[name], tuple) else (values[name],)
        shade = (colours or {}).get(name) or ROLES.get(name.lower(), BLUE)
        ax.barh(index, value, color=shade, height=0.62)
        if interval:
            ax.plot(interval, [index, index], color=BLACK, linewidth=1.6)
        left = value < 0
        edge = min([value, *interval]) if left else max([value, *interval])
        ax.annotate(
            f"{value:.{digits}f}", (edge, index), xytext=(-5 if left else 5, 0),
            textcoords="offset points", ha="right" if left else "left", va="center", fontsize=9.5,
        )  # fmt: skip
    for name, level in (references or {}).items():
        ax.axvline(level, color=ROLES.get(name.lower(), GREY), linestyle="--", linewidth=1.2)
        ax.annotate(
            name, (level, 1.0), xycoords=("data", "axes fraction"), xytext=(3, 2),
            textcoords="offset points", fontsize=9, color=ROLES.get(name.lower(), GREY),
        )  # fmt: skip
    ax.set_yticks(range(len(names)), names, parse_math=_are_math(names))
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.margins(x=0.12)
    ax.set_title(title, pad=18 if references else None)  # the names of the references stand below
    ax.set(xlabel=xlabel)
    return _figure_of(ax)


def confusion(
    matrix: Any, labels: Sequence[str], *, title: str = "", ax: Axes | None = None
) -> Figure:
    """Counts, true class by row, predicted class by column; colour is the share of the row."""
    counts = np.asarray(_numpy(matrix), dtype=float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    ax = ax or _new_axes(width=2.4 + 0.85 * len(labels), height=1.3 + 0.5 * len(labels))
    made = heatmap(
        shares, rows=labels, columns=labels, values=False, vmin=0, vmax=1, title=title, ax=ax,
        xlabel="predicted", ylabel="true",
    )  # fmt: skip
    for i, j in np.ndindex(counts.shape):
        ax.text(
            j, i, f"{counts[i, j]:.0f}", ha="center", va="center",
            color="white" if shares[i, j] < 0.55 else "black",
        )  # fmt: skip
    return made


def reliability(
    confidence: Any,
    accuracy: Any,
    count: Any,
    *,
    title: str = "",
    name: str = "ours",
    ax: Axes | None = None,
) -> Figure:
    """How often the model is right when it says how sure it is; the diagonal is honest.

    Args:
        confidence, accuracy, count: per bin: mean confidence, share right, examples in the bin.
    """
    sure, right, size = _numpy(confidence), _numpy(accuracy), _numpy(count)
    ax = ax or _new_axes(width=4.4, height=4.0)
    keep = size > 0
    ax.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1.2)
    area = 20 + 380 * size[keep] / max(size.sum(), 1)
    shade = colour(name)
    ax.plot(sure[keep], right[keep], color=shade, linewidth=1.2)
    spots = {"color": shade, "alpha": 0.75, "linewidth": 0, "clip_on": False}  # whole at (1, 1)
    ax.scatter(sure[keep], right[keep], s=area, **spots)
    ax.set(xlim=(0, 1.03), ylim=(0, 1.03), xlabel="confidence", ylabel="share right")
    ax.set_title(title)
    return _figure_of(ax)


def _are_math(labels: Sequence[str]) -> bool:
    """Whether every dollar sign belongs to a formula: `$w_1$` is one, `$5` is text."""
    return all("$" not in label or re.fullmatch(r"\$[^$]+\$", label) for label in labels)


def _new_axes(width: float = 7.0, height: float = 3.6) -> Axes:
    ax = figure(width=width, height=height)[1]
    assert isinstance(ax, Axes)
    return ax


def _numpy(values: Any) -> np.ndarray:
    if hasattr(values, "detach"):
        values = values.detach().float().cpu().numpy()
    return np.asarray(values)


def _figure_of(ax: Axes) -> Figure:
    made = ax.get_figure()
    assert isinstance(made, Figure)
    return made


def _use_chinese_font(fig: Figure) -> None:
    """Give texts with Chinese in them a font that has it.

    A fallback font for all text would be simpler, and would add half to the time of every drawing.
    """
    texts = [text for text in fig.findobj(Text) if isinstance(text, Text)]
    for ax in fig.axes:
        for axis in (ax.xaxis, ax.yaxis):
            if _CHINESE.search("".join(map(str, getattr(axis.get_major_formatter(), "seq", ())))):
                texts += axis.get_ticklabels()
    for text in texts:
        if _CHINESE.search(text.get_text()) and (font := chinese_font()):
            text.set_fontfamily(["DejaVu Sans", font])


_CHINESE = re.compile("[\u2e80-\u9fff\uff00-\uffef]")


def _register_png_formatter() -> None:
    """Displayed figures go through `png`, pyplot's included: small files, one look."""
    from IPython.core.getipython import get_ipython

    shell: Any = get_ipython()
    if shell is None:
        return
    import matplotlib.pyplot  # noqa: F401  (activates the inline backend before we register)

    formatters = shell.display_formatter.formatters
    formatters["image/png"].for_type(Figure, png)
    # Pages made from the notebook take a picture's plain text as its alternative text.
    formatters["text/plain"].for_type(Figure, lambda fig, to, cycle: to.text(describe(fig)))
