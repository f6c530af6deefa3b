"""Widgets: sliders to a picture, a text box to HTML, a chat.

Every widget is one output with two faces: the live widget, and its first state as a plain picture
or HTML. JupyterLab and Colab show the first; GitHub, nbviewer and headless runs show the second.
Works with ipywidgets 7.7 and 8, whose front ends send the next slider position only after the last
one is drawn.
"""

import base64
import inspect
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from html import escape
from statistics import median
from typing import Any

import ipywidgets
from IPython.display import display
from matplotlib.figure import Figure

from labkit.errors import LabError
from labkit.notebook import plots
from labkit.notebook.lab import current_chapter

WIDGET_MIME = "application/vnd.jupyter.widget-view+json"

Answer = str | Mapping[str, str]
"""Of one model, or of several by name."""


def picture_bundle(widget: Any, picture: bytes, text: str) -> dict[str, Any]:
    """A MIME bundle with a live widget and the same thing as a PNG."""
    bundle = {"image/png": base64.b64encode(picture).decode(), "text/plain": text}
    return _with_view(widget, bundle)


def image_widget(picture: bytes) -> Any:
    """A picture at its own size, smaller where the page is narrow, whose bytes can be swapped."""
    layout = ipywidgets.Layout(max_width="100%", width="max-content", align_self="flex-start")
    return ipywidgets.Image(value=picture, format="png", layout=layout)


class Explorer:
    """The live part of `explore`: set controls from code, read the picture and the redraw times."""

    def __init__(
        self,
        draw: Callable[..., Figure],
        controls: dict[str, Any],
        pad: tuple[str, str] | None = None,
    ) -> None:
        self._draw = draw
        self.controls = {
            name: _control(name, spec, _default_of(draw, name)) for name, spec in controls.items()
        }
        self.redraw_seconds: list[float] = []
        self.image = image_widget(self._render())
        self.message = ipywidgets.HTML("")
        for control in self.controls.values():
            control.observe(self._on_change, names="value")
        row = ipywidgets.Layout(display="flex", flex_flow="row wrap", grid_gap="0 12px")
        above = [it for name, it in self.controls.items() if name not in (pad or ())]
        picture = self.image if pad is None else _xy_pad(self.image, *map(self.controls.get, pad))
        self.box = ipywidgets.VBox([ipywidgets.Box(above, layout=row), self.message, picture])
        self._quiet = False

    @property
    def values(self) -> dict[str, Any]:
        """The controls' current values."""
        return {name: control.value for name, control in self.controls.items()}

    @property
    def picture(self) -> bytes:
        """The current PNG."""
        return self.image.value

    def set(self, **values: Any) -> None:
        """Move controls from code; draws once."""
        self._quiet = True
        try:
            for name, value in values.items():
                if name not in self.controls:
                    raise LabError(f"No control {name!r}; there are {sorted(self.controls)}.")
                self.controls[name].value = value
        finally:
            self._quiet = False
        self._on_change()

    def measure(self, repeats: int = 10) -> float:
        """Median seconds of a redraw with the current values; under `smoke` there is one redraw."""
        if current_chapter()[1] == "smoke":
            repeats = 1
        return median([self._timed_render()[1] for _ in range(repeats)])

    def _on_change(self, *_: Any) -> None:
        if self._quiet:
            return
        try:
            self.image.value = self._render()
            self.message.value = ""
        except Exception as error:
            # A widget's callback has no cell to raise in: say it where the learner looks.
            self.message.value = f"<b>{escape(type(error).__name__)}</b>: {escape(str(error))}"

    def _render(self) -> bytes:
        picture, seconds = self._timed_render()
        self.redraw_seconds.append(seconds)
        return picture

    def _timed_render(self) -> tuple[bytes, float]:
        began = time.perf_counter()
        drawn = self._draw(**self.values)
        if not isinstance(drawn, Figure):
            raise LabError(
                f"explore's draw returned {type(drawn).__name__}; return a matplotlib figure."
            )
        picture = plots.png(drawn)
        _close_in_pyplot(drawn)
        return picture, time.perf_counter() - began


def explore(
    draw: Callable[..., Figure], *, pad: tuple[str, str] | None = None, **controls: Any
) -> Explorer:
    """Sliders, menus and tick boxes to a picture that follows them.

    Args:
        draw: called with one keyword per control; returns a matplotlib figure (plots.figure()). Its
            defaults are the first state: `def draw(temperature=1.0, mask=True)`.
        controls: name = (low, high) or (low, high, step) for a slider (whole numbers if all are
            ints), a list for a menu, True or False for a tick box, or any ipywidgets control.
        pad: names of two sliders that move a point of the picture: the first lies along its lower
            edge, the second stands along its left one.

    Returns:
        The Explorer: `.redraw_seconds`, `.set(name=value)`, `.measure()`, `.picture`.

        explorer = explore(draw, temperature=(0.1, 5.0), mask=True)
        assert explorer.measure() < 0.2
    """
    explorer = Explorer(draw, controls, pad)
    state = ", ".join(f"{name} = {value}" for name, value in explorer.values.items())
    display(picture_bundle(explorer.box, explorer.picture, f"Widget at {state}"), raw=True)
    return explorer


def explore_text(
    render: Callable[..., str], text: str = "", *, label: str = "Text", **controls: Any
) -> Any:
    """A text box (and other controls) to HTML, updated as you type.

    Args:
        render: render(text, **controls) -> HTML.
        text: the first text.
        controls: as in `explore`.

    Returns:
        The text box widget; set its `.value` from code.
    """
    box = ipywidgets.Textarea(
        value=text, layout=ipywidgets.Layout(width="98%", height="5em"), continuous_update=True
    )
    others = {
        name: _control(name, spec, _default_of(render, name)) for name, spec in controls.items()
    }

    def html() -> str:
        return render(box.value, **{name: control.value for name, control in others.items()})

    first = html()
    output = ipywidgets.HTML(first)

    def on_change(*_: Any) -> None:
        try:
            output.value = html()
        except Exception as error:
            output.value = f"<b>{escape(type(error).__name__)}</b>: {escape(str(error))}"

    for control in (box, *others.values()):
        control.observe(on_change, names="value")
    whole = ipywidgets.VBox(
        [ipywidgets.HTML(f"<b>{escape(label)}</b>"), box, *others.values(), output]
    )
    static = f"<p><b>{escape(label)}</b>: <code>{escape(text)}</code></p>{first}"
    display(_with_view(whole, {"text/html": static, "text/plain": text}), raw=True)
    return box


class Chat:
    """The live part of `chat`: `.say(text)` from code; `.turns` is the conversation so far."""

    def __init__(self, reply: Callable[[str], Answer], examples: Sequence[str], title: str) -> None:
        self._reply, self.title = reply, title
        self.turns: list[tuple[str, Answer]] = [(text, reply(text)) for text in examples]
        self.transcript = ipywidgets.HTML(self.html())
        self.text = ipywidgets.Text(
            placeholder="Ask something, then press Enter",
            layout=ipywidgets.Layout(width="70%"),
            continuous_update=False,
        )
        self.button = ipywidgets.Button(description="Send", button_style="primary")
        self.button.on_click(lambda _: self._send())
        self.text.observe(lambda _: self._send(), names="value")
        self.box = ipywidgets.VBox([self.transcript, ipywidgets.HBox([self.text, self.button])])

    def say(self, message: str) -> Answer:
        """Send a message; returns the answer."""
        try:
            answer: Answer = self._reply(message)
        except Exception as error:
            answer = f"({type(error).__name__}: {error})"
        self.turns.append((message, answer))
        self.transcript.value = self.html()
        return answer

    def html(self) -> str:
        """The conversation as HTML."""
        turns = "".join(
            f"<p><b>You:</b> {escape(said)}<br><b>Model:</b> {escape(answer)}</p>"
            if isinstance(answer, str)
            else f"<p><b>You:</b> {escape(said)}</p>{_side_by_side(answer)}"
            for said, answer in self.turns
        )
        return f"<p><b>{escape(self.title)}</b></p>{turns}"

    def _send(self) -> None:
        message = self.text.value.strip()
        if message:
            self.text.value = ""
            self.say(message)


def _side_by_side(answers: Mapping[str, str]) -> str:
    head = "".join(f'<th align="left">{escape(name)}</th>' for name in answers)
    style = "text-align:left;vertical-align:top"
    row = "".join(f'<td style="{style}">{escape(it)}</td>' for it in answers.values())
    return f"<table><thead><tr>{head}</tr></thead><tbody><tr>{row}</tr></tbody></table>"


def _in_text(said: str, answer: Answer) -> str:
    answers = {"Model": answer} if isinstance(answer, str) else answer
    return "\n".join([f"You: {said}", *(f"{name}: {it}" for name, it in answers.items())])


def chat(reply: Callable[[str], Answer], examples: Sequence[str] = (), title: str = "Chat") -> Chat:
    """A chat box with a model; its first state is a conversation made from the examples.

    Args:
        reply: message -> answer, or a dict name -> answer of several models, shown side by side.
        examples: messages sent at once, so that the static picture shows a real exchange.

    Returns:
        The Chat: `.say("...")` from code.
    """
    made = Chat(reply, examples, title)
    text = "\n".join(_in_text(said, answer) for said, answer in made.turns)
    display(_with_view(made.box, {"text/html": made.html(), "text/plain": text}), raw=True)
    return made


def _control(name: str, spec: Any, default: Any) -> Any:
    look = {
        "description": name.replace("_", " "),
        "style": {"description_width": "initial"},
    }
    if isinstance(spec, ipywidgets.ValueWidget):
        return spec
    if isinstance(spec, bool):
        return ipywidgets.Checkbox(value=spec if default is None else default, indent=False, **look)
    if isinstance(spec, list):
        return ipywidgets.Dropdown(
            options=spec, value=spec[0] if default is None else default, **look
        )
    if isinstance(spec, tuple) and len(spec) in (2, 3) and spec[0] < spec[1]:
        low, high = spec[:2]
        whole = all(isinstance(part, int) for part in spec)
        step = spec[2] if len(spec) == 3 else (1 if whole else (high - low) / 100)
        value = default if default is not None else (low + high) / 2
        kind = ipywidgets.IntSlider if whole else ipywidgets.FloatSlider
        return kind(
            value=int(value) if whole else value, min=low, max=high, step=step,
            continuous_update=True, **look,
        )  # fmt: skip
    raise LabError(
        f"explore's control {name} = {spec!r} is none of (low, high), (low, high, step) with low < "
        "high, a list, True or False, or an ipywidgets control."
    )


def _xy_pad(image: Any, x: Any, y: Any) -> Any:
    """A picture with one slider along its lower edge and one along its left: an X/Y pad.

    The core widgets of ipywidgets 7.7 and 8 report no mouse position on a picture; two sliders that
    lie where the axes are come closest to dragging the point itself.
    """
    x.layout = ipywidgets.Layout(width="96%")
    y.orientation = "vertical"
    y.layout = ipywidgets.Layout(width="64px", height="auto")
    column = ipywidgets.VBox([image, x], layout=ipywidgets.Layout(max_width="100%"))
    return ipywidgets.HBox([y, column], layout=ipywidgets.Layout(max_width="100%"))


def _default_of(function: Callable, name: str) -> Any:
    parameter = inspect.signature(function).parameters.get(name)
    if parameter is None or parameter.default is inspect.Parameter.empty:
        return None
    return parameter.default


def _with_view(widget: Any, bundle: dict[str, Any]) -> dict[str, Any]:
    if widget is None:
        return bundle
    view = {"version_major": 2, "version_minor": 0, "model_id": widget.model_id}
    return {WIDGET_MIME: view, **bundle}


def _close_in_pyplot(drawn: Figure) -> None:
    """A figure from pyplot would be displayed a second time at the end of the cell."""
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None and getattr(drawn, "number", None) in pyplot.get_fignums():
        pyplot.close(drawn)
