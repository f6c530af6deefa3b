"""Curves and bars that move while a model trains, and stay as one tidy output afterwards.

    with LiveCurve("MiniLM on bbc_news", references={"unigram": 1.6}) as curve:
        train(model, objective, batches, config, on_step=curve)
    curve.overhead                       share of the training time spent on drawing

While training runs, the picture is an ipywidgets Image, which swaps its bytes in place and does not
flicker. At the end the output becomes a plain PNG of the final state, which every viewer shows.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from html import escape
from typing import Any

import numpy as np
from IPython.core.getipython import get_ipython
from IPython.display import display
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, StrMethodFormatter

from labkit.notebook import plots
from labkit.notebook.widgets import image_widget, picture_bundle

#: The share of elapsed time that drawing may take.
BUDGET = 0.05


class LiveCurve:
    """Training and validation loss, drawn as training goes; pass it as `on_step`."""

    def __init__(
        self,
        title: str = "",
        *,
        ylabel: str = "loss (nats)",
        references: Mapping[str, float] | None = None,
        validation_key: str = "loss",
        scale: float = 1.0,
        speed: bool = True,
        logy: bool = False,
        budget: float = BUDGET,
    ) -> None:
        """Open the picture, empty.

        Args:
            title: above the curve.
            ylabel: with its unit.
            references: name -> height of a dashed line: a baseline, the floor.
            validation_key: which entry of `record.validation` to draw.
            scale: factor on both losses, such as 1 / ln 2 for bits.
            speed: show tokens per second; off where examples are not tokens.
            logy: draw losses on a logarithmic scale, to see what comes after a steep start.
            budget: largest share of the elapsed time that drawing may take, 0 to 1.
        """
        self.title, self.ylabel, self.scale, self.budget = title, ylabel, scale, budget
        self.speed, self.logy = speed, logy
        self.references = dict(references or {})
        self.validation_key = validation_key
        self.steps: list[int] = []
        self.losses: list[float] = []
        self.validation: list[tuple[int, float]] = []
        self.status = ""
        self.drawings = 0
        self._spent = 0.0
        self._training = 0.0
        self._began = 0.0
        self._total_steps = 0
        self._closed = False
        self._make_figure()
        self._draw()  # the first drawing also loads fonts
        drawn = time.perf_counter()
        self._draw()
        self._cost = time.perf_counter() - drawn
        self._image, self._handle = _open_picture(self._png, title)
        self._hook_cell_end()

    def __call__(self, record: Any) -> None:
        """Take one record of the training loop; draw when the budget allows."""
        entered = time.perf_counter()
        if not self._began:
            # The first record arrives after the first step: count from when that step began. On a
            # resumed run `elapsed` includes earlier sessions, which drew nothing here.
            first = getattr(record, "elapsed", 0.0) if record.step == 1 else 0.0
            self._began = entered - first
            self._total_steps = int(getattr(record, "total_steps", 0))
        self.steps.append(int(record.step))
        self.losses.append(float(record.loss) * self.scale)
        extra = getattr(record, "validation", None) or {}
        if self.validation_key in extra:
            self.validation.append(
                (int(record.step), float(extra[self.validation_key]) * self.scale)
            )
        self.status = describe(record, self.speed)
        elapsed = entered - self._began
        # The next drawing may cost more than the last one: leave room for twice the dearest lately.
        if self._spent + 2 * self._cost <= self.budget * elapsed:
            self._draw()
            if self._image is not None:
                self._image.value = self._png
            self._cost = max(0.8 * self._cost, time.perf_counter() - entered)
            self.drawings += 1
        left = time.perf_counter()
        self._spent += left - entered
        self._training = left - self._began

    @property
    def overhead(self) -> float:
        """Measured share of the training time spent here, 0 to 1."""
        return self._spent / self._training if self._training > 0 else 0.0

    def close(self) -> None:
        """Draw the final state and leave it as a picture. Called at the cell's end anyway."""
        if self._closed:
            return
        self._closed = True
        self._draw()
        if self._handle is not None:
            bundle = picture_bundle(None, self._png, f"{self.title} {self.status}".strip())
            self._handle.display(bundle, raw=True, update=True)
            # The output holds the bytes now; a copy in the widget state would be dead weight.
            self._image.value = b""
            self._image.close()
        shell = get_ipython()
        if shell is not None and self._on_cell_end is not None:
            shell.events.unregister("post_run_cell", self._on_cell_end)

    def __enter__(self) -> "LiveCurve":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _hook_cell_end(self) -> None:
        self._on_cell_end: Callable[..., None] | None = None
        shell = get_ipython()
        if shell is not None:
            # A curve made in one cell may be used in the next: close only once it has records.
            self._on_cell_end = lambda *_: self.close() if self.steps else None
            shell.events.register("post_run_cell", self._on_cell_end)

    def _make_figure(self) -> None:
        # Fixed margins: a constrained layout would cost more than the drawing itself.
        self._figure = Figure(figsize=(7.0, 3.3), dpi=100)
        self._figure.set_layout_engine("none")
        FigureCanvasAgg(self._figure)
        left = 0.13 if self.logy else 0.1  # 0.005 is wider than 0.5
        self._ax = ax = self._figure.add_axes((left, 0.16, 0.81 - left, 0.67))
        (self._raw,) = ax.plot([], [], color=plots.ROLES["train"], alpha=0.25, linewidth=1)
        (self._smooth,) = ax.plot([], [], color=plots.ROLES["train"], linewidth=1.8)
        (self._points,) = ax.plot(
            [], [], color=plots.ROLES["validation"], marker="o", markersize=4, linewidth=1.4
        )
        ax.set(xlabel="step", ylabel=self.ylabel)
        ax.locator_params(nbins=5)  # tick labels are most of the cost of drawing
        if self.logy:
            ax.set_yscale("log")
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            ax.minorticks_off()
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(color="#E6E6E6", linewidth=0.8)
        ax.set_axisbelow(True)
        ax.set_title(self.title, loc="left", fontsize=11.5, fontweight="bold", y=1.09)
        self._status = ax.text(0, 1.04, "", transform=ax.transAxes, fontsize=9, color="#555555")
        for index, (name, level) in enumerate(self.references.items()):
            shade = plots.ROLES.get(name.lower(), (plots.GREY, plots.BLACK)[index % 2])
            ax.axhline(level, color=shade, linestyle="--", linewidth=1.2)

    def _draw(self) -> None:
        ax = self._ax
        steps, losses = np.array(self.steps), np.array(self.losses)
        ends = []
        if len(steps):
            smooth = smoothed(losses)
            keep = np.unique(np.linspace(0, len(steps) - 1, 600).astype(int))
            self._raw.set_data(steps[keep], losses[keep])
            self._smooth.set_data(steps[keep], smooth[keep])
            ends.append((steps[-1], smooth[-1], "train", plots.ROLES["train"]))
        if self.validation:
            x, y = zip(*self.validation, strict=True)
            self._points.set_data(x, y)
            ends.append((x[-1], y[-1], "validation", plots.ROLES["validation"]))
        levels = [*losses, *(y for _, y in self.validation), *self.references.values()]
        finite = [level for level in levels if np.isfinite(level)]
        if finite:
            low, high = min(finite), max(finite)
            if self.logy and low > 0:
                pad = max(1.03, (high / low) ** 0.06)
                ax.set_ylim(low / pad, high * pad)
            else:
                pad = 0.06 * (high - low) or 0.1
                ax.set_ylim(low - pad, high + pad)
            ax.set_xlim(0, max(1, self._total_steps, *self.steps[-1:]))
        for text in list(ax.texts):
            if text is not self._status:
                text.remove()
        for index, (name, level) in enumerate(self.references.items()):
            shade = plots.ROLES.get(name.lower(), (plots.GREY, plots.BLACK)[index % 2])
            ends.append((0, level, name, shade))
        plots.label_ends(ax, ends)
        self._status.set_text(self.status)
        self._png = plots.png(self._figure)


class Progress:
    """A bar with the loss and the time left; one line when done. Made by `progress`."""

    def __init__(self, total: int | None, description: str) -> None:
        self.total, self.description, self.done, self.note = total, description, 0, ""
        self._began = self._last = time.perf_counter()
        self.closed = False
        self._bar = self._handle = None
        if get_ipython() is None:
            from tqdm import tqdm

            self._bar = tqdm(total=total, desc=description or None)
        else:
            self._handle = display(self._bundle(), raw=True, display_id=True)
            self._register()

    def __call__(self, record: Any) -> None:
        """As `on_step`: take one record of the training loop."""
        self.update(int(record.step) - self.done, describe(record))

    def update(self, steps: int = 1, note: str = "") -> None:
        """Move on by so many steps; the note stands behind the bar."""
        self.done += steps
        self.note = note or self.note
        if self._bar is not None:
            self._bar.set_postfix_str(self.note, refresh=False)
            self._bar.update(steps)
        elif time.perf_counter() - self._last > 0.25:
            self._show()
            self._last = time.perf_counter()
        if self.total and self.done >= self.total:
            self.close()

    def close(self) -> None:
        """Leave one tidy line."""
        if self.closed:
            return
        self.closed = True
        if self._bar is not None:
            self._bar.close()
        else:
            self._show()
            shell = get_ipython()
            if shell is not None:
                shell.events.unregister("post_run_cell", self._on_cell_end)

    def _register(self) -> None:
        self._on_cell_end = lambda *_: self.close() if self.done else None
        shell = get_ipython()
        if shell is not None:
            shell.events.register("post_run_cell", self._on_cell_end)

    def _show(self) -> None:
        if self._handle is not None:
            self._handle.display(self._bundle(), raw=True, update=True)

    def _bundle(self) -> dict[str, str]:
        seconds = time.perf_counter() - self._began
        name = f"{self.description}: " if self.description else ""
        if self.closed:
            text = f"{name}{self.done:,} in {clock(seconds)}"
        else:
            of = f" of {self.total:,}" if self.total else ""
            left = ""
            if self.total and self.done and "left" not in self.note:
                left = f" · {clock(seconds / self.done * (self.total - self.done))} left"
            text = f"{name}{self.done:,}{of}{left}"
        text += f" · {self.note}" if self.note else ""
        bar = ""
        if self.total and not self.closed:
            bar = f'<progress value="{self.done}" max="{self.total}"></progress> '
        return {"text/html": f"<div>{bar}<code>{escape(text)}</code></div>", "text/plain": text}


def progress(over: int | Iterable | None = None, description: str = "") -> Any:
    """A progress bar: of so many steps (then use it as `on_step`), or around an iterable.

        train(..., on_step=progress(400, "pretraining"))
        for story in progress(stories, "reading"): ...

    In a notebook it updates one output, in a terminal it is tqdm's; around nothing it is silent.
    """
    if over is None or isinstance(over, int):
        return Progress(over, description)
    total = len(over) if hasattr(over, "__len__") else None  # type: ignore[arg-type]
    if total == 0:
        return iter(())
    return _wrapped(over, Progress(total, description))


def _wrapped(items: Iterable, bar: Progress) -> Iterator:
    for item in items:
        yield item
        bar.update()
    bar.close()


def together(*hooks: Callable[[Any], None]) -> Callable[[Any], None]:
    """Several hooks as one `on_step`: `on_step=together(curve, progress(400))`."""

    def on_step(record: Any) -> None:
        for hook in hooks:
            hook(record)

    return on_step


def describe(record: Any, speed: bool = True) -> str:
    """One line of a training record: step, loss, speed, time left."""
    total = getattr(record, "total_steps", 0)
    of = f" of {total:,}" if total and total != record.step else ""
    loss = f"{record.loss:.3f}" if abs(record.loss) >= 0.01 else f"{record.loss:.1e}"
    parts = [f"step {record.step:,}{of}", f"loss {loss}"]
    rate = getattr(record, "tokens_per_second", None)
    if rate and speed:
        parts.append(f"{rate / 1000:.1f}k tokens/s" if rate >= 1000 else f"{rate:.0f} tokens/s")
    remaining = getattr(record, "remaining", None)
    if remaining:
        parts.append(f"{clock(remaining)} left")
    elif getattr(record, "elapsed", None):
        parts.append(clock(record.elapsed))
    return " · ".join(parts)


def clock(seconds: float) -> str:
    """12 s, 3:07, 1:02:03."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def smoothed(values: np.ndarray, window: int | None = None) -> np.ndarray:
    """Mean over the last `window` values.

    By default a thirtieth of them, at least 5, but never more than the last quarter so far: a steep
    start stays steep.
    """
    index = np.arange(1, len(values) + 1)
    widths = np.maximum(1, np.minimum(max(5, len(values) // 30), index // 4))
    total = np.cumsum(np.insert(np.nan_to_num(values), 0, 0.0))
    start = np.maximum(0, index - (window or widths))
    return (total[index] - total[start]) / (index - start)


def _open_picture(picture: bytes, title: str) -> tuple[Any, Any]:
    if get_ipython() is None:
        return None, None
    image = image_widget(picture)
    handle = display(picture_bundle(image, picture, title), raw=True, display_id=True)
    return image, handle
