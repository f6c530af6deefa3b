"""What a notebook shows: verdicts in words, gradients three ways, curves within their budget."""

import base64
import io
import math
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from labkit.course.listing import without_docstrings
from labkit.errors import LabError
from labkit.notebook import (
    LiveCurve,
    chat,
    explore,
    explore_text,
    gradcheck,
    plots,
    progress,
    report,
    show,
    table,
    together,
    widgets,
)
from labkit.notebook.exercises import Exercise, Fresh, Wrong, compare, judge, require
from labkit.notebook.live import clock, describe, smoothed
from labkit.notebook.widgets import WIDGET_MIME


@pytest.fixture
def shown(monkeypatch):
    """The MIME bundles that were displayed."""
    bundles = []

    def display(bundle=None, **options):
        bundles.append(bundle)

    for module in ("exercises", "widgets", "source", "live", "reporting", "lab"):
        monkeypatch.setattr(f"labkit.notebook.{module}.display", display)
    return bundles


# --- exercises ---------------------------------------------------------------------------------


def softmax_checker(attempt, fresh):
    scores = fresh.normal(4, 6)
    wrong = {"normalised over the wrong axis: each column sums to 1": scores.softmax(-2)}
    compare(attempt(scores), scores.softmax(-1), wrong)


SOFTMAX = Exercise("99.1", "Softmax", softmax_checker)


def test_a_stub_is_not_attempted():
    def stub(scores):
        """Rows that sum to one."""
        ...

    def half_stub(scores):
        scores = scores - scores.max()
        ...

    def unimplemented(scores):
        raise NotImplementedError

    for attempt in (stub, half_stub, unimplemented, None, ...):
        assert judge(SOFTMAX, attempt).status == "not attempted"


def test_a_right_answer_passes():
    verdict = judge(SOFTMAX, lambda scores: scores.softmax(-1))
    assert verdict.status == "passed"


@pytest.mark.parametrize(
    ("answer", "phrase"),
    [
        (lambda s: s.softmax(-2), "wrong axis"),
        (lambda s: s.softmax(-1)[:2], "should have shape (4, 6), but it has shape (2, 6)"),
        (lambda s: s / 0 * 0, "NaN"),
        (lambda s: [].pop(), "raised IndexError"),
        (lambda s: s.softmax(-1).mul_(1.001), "is off by up to"),
        (lambda s: "rows", "should be a tensor, but it is a string"),
        (lambda s: print(end=""), "returned None"),
        (lambda s: s.zero_().softmax(-1), "changes its input in place"),
    ],
)
def test_a_wrong_answer_fails_in_words(answer, phrase):
    verdict = judge(SOFTMAX, answer)
    assert verdict.status == "failed"
    assert phrase in verdict.message


def test_an_error_names_its_line():
    def answer(scores):
        total = scores.sum(7)
        return scores / total

    message = judge(SOFTMAX, answer).message
    assert "raised IndexError" in message
    assert "total = scores.sum(7)" in message


def test_a_checker_that_cannot_use_an_answer_does_not_crash():
    def checker(attempt, fresh):
        first, second = attempt(fresh.normal(3))
        require(first.shape == second.shape, "Two tensors of one shape.")

    verdict = judge(Exercise("99.2", "Pair", checker), lambda x: 4)
    assert verdict.status == "failed"
    assert "has not the form that is asked for" in verdict.message


def test_a_mistake_that_gives_the_right_value_is_not_named():
    same = torch.ones(2, 2).double()
    with pytest.raises(Wrong, match="off by"):
        compare(same + 1, same, {"a mistake that cannot be seen on these inputs": same})


def test_checks_are_fresh_and_leave_the_global_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    judge(SOFTMAX, lambda scores: scores.softmax(-1) + 0 * torch.rand(1).double())
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(Fresh().normal(4), Fresh().normal(4))


def test_compare_takes_numbers_lists_and_strings():
    compare(2.0, torch.tensor(2.0))
    compare([1, 2], [1, 2])
    compare({"a": 1.0}, {"a": 1.0})
    with pytest.raises(Wrong, match="should be 3"):
        compare(4, 3)
    with pytest.raises(Wrong, match="should hold 2 items"):
        compare([1], [1, 2])
    with pytest.raises(Wrong, match="should be 'b'"):
        compare("a", "b")


def test_compare_takes_a_tensor_in_whatever_form_it_comes():
    third = torch.tensor([1 / 3, 2.0], dtype=torch.float64)
    for form in ([1 / 3, 2], (np.float64(1 / 3), 2.0), third.numpy(), [*third], third.float()):
        compare(form, third)
    compare(np.float32(1 / 3), 1 / 3)  # seven digits are all that it has
    compare([np.float32(1 / 3), 2], third)
    for wrong in (
        [1 / 3 + 1e-6, 2],
        [[1 / 3, 2]],
        [1 / 3],
        ["a", "b"],
        [[1], [2, 3]],
        np.float32(0.3),
    ):
        with pytest.raises(Wrong):
            compare(wrong, third)


# --- gradients ---------------------------------------------------------------------------------


def test_three_ways_accepts_the_right_gradient_and_names_the_wrong_one():
    torch.manual_seed(0)
    inputs = {"x_ND": torch.randn(3, 4), "w_DV": torch.randn(4, 2)}

    def loss(x_ND, w_DV):
        return (x_ND @ w_DV).square().sum() / 2

    def right(x_ND, w_DV):
        y_NV = x_ND @ w_DV
        return {"x_ND": y_NV @ w_DV.T, "w_DV": x_ND.T @ y_NV}

    def wrong(x_ND, w_DV):
        return {"x_ND": x_ND @ w_DV @ w_DV.T, "w_DV": x_ND.T @ (x_ND @ w_DV) * 1.01}

    assert "w_DV" in repr(gradcheck.three_ways(right, loss, inputs))
    with pytest.raises(AssertionError, match="gradient of w_DV: hand : autograd"):
        gradcheck.three_ways(wrong, loss, inputs)
    with pytest.raises(LabError, match="must return a scalar"):
        gradcheck.three_ways(right, lambda x_ND, w_DV: x_ND @ w_DV, inputs)


# --- figures and tables ------------------------------------------------------------------------


def test_figures_are_small_pngs():
    series = {"train": np.exp(-np.arange(300) / 50), "validation": np.exp(-np.arange(300) / 60)}
    picture = plots.png(plots.curves(series, references={"floor": 0.01}, title="Loss"))
    assert picture[:4] == b"\x89PNG"
    assert len(picture) < 40_000
    assert Image.open(io.BytesIO(picture)).size == (700, 360)


def test_end_labels_do_not_cover_one_another():
    figure = plots.curves({name: np.full(5, 1.0 + 1e-6 * i) for i, name in enumerate("abcd")})
    heights = sorted(text.xy[1] for text in figure.axes[0].texts)
    pixels = figure.axes[0].get_window_extent().height
    assert min(np.diff(heights)) * pixels > 12


def test_every_kind_of_figure_draws():
    counts = np.array([[5, 1], [2, 8]])
    for made in (
        plots.heatmap(torch.rand(3, 4), rows="abc", columns="wxyz", title="Weights"),
        plots.bars({"ours": (0.9, 0.8, 0.95), "baseline": 0.5}, references={"floor": 0.2}),
        plots.confusion(counts, ["sport", "tech"]),
        plots.reliability([0.2, 0.9], [0.3, 0.8], [0, 20]),
    ):
        assert len(plots.png(made)) > 1000


@pytest.mark.skipif(plots.chinese_font() is None, reason="no font with Chinese glyphs")
@pytest.mark.filterwarnings("error")
def test_chinese_labels_are_drawn_not_boxes():
    plots.png(plots.heatmap(np.eye(2), rows=["交", "叉"], columns=["熵", "b"], title="交叉熵"))


def test_table_formats_aligns_and_marks_the_best():
    made = table(
        [{"model": "a", "loss": 1.5, "n": 1200}, {"model": "b", "loss": 1.25, "n": 7}],
        best={"loss": "min"},
        digits=2,
        note="one seed",
    )
    assert repr(made).splitlines()[1:] == ["a      1.50  1,200", "b      1.25      7", "one seed"]
    assert "<b>1.25</b>" in made._repr_html_()
    assert "<b>1.50</b>" not in made._repr_html_()
    with pytest.raises(LabError, match="columns are"):
        table([{"a": 1}], best={"b": "max"})


def test_the_number_of_a_bar_stands_beyond_its_end_on_its_own_side():
    fig = plots.bars({"more": (2.0, 1.5, 2.5), "less": (-1.0, -1.25, -0.5)}, digits=2)
    numbers = {t.get_text(): t for t in fig.axes[0].texts}
    assert numbers["2.00"].xy[0] == 2.5
    assert numbers["2.00"].get_horizontalalignment() == "left"
    assert numbers["-1.00"].xy[0] == -1.25
    assert numbers["-1.00"].get_horizontalalignment() == "right"


# --- source ------------------------------------------------------------------------------------


def test_show_displays_the_live_source_with_its_place(shown):
    show(gradcheck.relative_error, docstring=False)
    assert "labkit/notebook/gradcheck.py" in shown[0]["text/plain"]
    assert "def relative_error" in shown[0]["text/markdown"]
    assert "over all entries" not in shown[0]["text/plain"]
    with pytest.raises(LabError, match="no Python source"):
        show(math.sqrt)


def test_without_docstrings_keeps_every_other_line():
    code = 'def f(x):\n    """Twice."""\n\n    # why\n    return 2 * x'
    assert without_docstrings(code) == "def f(x):\n    # why\n    return 2 * x"


# --- live --------------------------------------------------------------------------------------


def record(step, total=100, **more):
    fields = {"step": step, "total_steps": total, "loss": 2.0 / step, "tokens_per_second": 12_300.0}
    return SimpleNamespace(**{**fields, "elapsed": 0.1 * step, "remaining": 5.0, **more})


def test_live_curve_draws_within_its_budget(monkeypatch):
    """On a clock that we turn: 10 ms a step, each drawing costs what it costs."""
    curve = LiveCurve("Run", references={"floor": 0.1})
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def costly_draw():
        now[0] += 0.05

    monkeypatch.setattr(curve, "_draw", costly_draw)
    curve._cost = 0.05
    for step in range(1, 2001):
        now[0] += 0.01
        curve(record(step, 2000, elapsed=0.01 * step))
    assert 10 <= curve.drawings <= 21
    assert 0.03 < curve.overhead <= 0.05


def test_live_curve_keeps_train_and_validation():
    with LiveCurve("Run", scale=1 / math.log(2)) as curve:
        for step in range(1, 6):
            curve(record(step, validation={"loss": 1.0} if step == 5 else None))
    assert curve.steps == [1, 2, 3, 4, 5]
    assert curve.validation == [(5, pytest.approx(1.4427, abs=1e-4))]
    assert "step 5 of 100" in curve.status


def test_progress_counts_in_a_terminal(capsys):
    seen = list(progress(range(5), "reading"))
    bar = progress(10, "training")
    hook = together(bar)
    hook(record(4))
    hook(record(10))
    assert bar.closed, "a bar that has counted all its steps is done"
    bar.close()
    assert seen == [0, 1, 2, 3, 4]
    assert bar.done == 10
    assert "10/10" in capsys.readouterr().err
    assert list(progress([], "nothing to do")) == []
    assert capsys.readouterr().err == ""


def test_words_for_time_and_records():
    assert [clock(s) for s in (4.26, 42, 187, 3723)] == ["4.3 s", "42 s", "3:07", "1:02:03"]
    assert describe(record(4)) == "step 4 of 100 · loss 0.500 · 12.3k tokens/s · 5.0 s left"


def test_smoothing_is_a_trailing_mean():
    values = np.arange(8.0)
    assert smoothed(values, 3).tolist() == [0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    steep = np.concatenate([np.linspace(10, 1, 10), np.ones(290)])
    assert smoothed(steep)[9] == pytest.approx(1.5)  # not 5.5, the mean over ten
    assert smoothed(steep)[-1] == 1.0


def test_a_logarithmic_curve_shows_what_comes_after_a_steep_start():
    heights = {}
    for logy in (False, True):
        with LiveCurve("Run", logy=logy, references={"floor": 0.05}) as curve:
            for step in range(1, 41):
                curve(record(step, 40))
        low, high = (curve._ax.transData.transform((0, y))[1] for y in (0.05, 0.1))
        heights[logy] = (high - low) / curve._ax.bbox.height
    assert heights[False] < 0.03 < 0.15 < heights[True]


# --- widgets -----------------------------------------------------------------------------------


def draw_level(level=2.0, mask=True, mode="a"):
    figure, ax = plots.figure(height=2)
    ax.bar([0, 1], [level, len(mode) + mask])
    return figure


def test_explore_shows_widget_and_picture_in_one_output(shown):
    explorer = explore(draw_level, level=(0.0, 5.0), mask=True, mode=["a", "bb"])
    assert explorer.values == {"level": 2.0, "mask": True, "mode": "a"}
    (bundle,) = shown
    assert bundle[WIDGET_MIME]["model_id"] == explorer.box.model_id
    assert base64.b64decode(bundle["image/png"]) == explorer.picture


def test_a_pad_lays_two_sliders_along_the_picture(shown):
    def draw(x=0.0, y=1.0, steps=3):
        return plots.curves({"a": [x, y, steps]})

    explorer = explore(draw, pad=("x", "y"), x=(-2.0, 2.0), y=(-1.0, 3.0), steps=(1, 5))
    above, _, pad = explorer.box.children
    standing, column = pad.children
    assert above.children == (explorer.controls["steps"],)
    assert column.children == (explorer.image, explorer.controls["x"])
    assert (standing, standing.orientation) == (explorer.controls["y"], "vertical")
    before = explorer.picture
    standing.value = 2.5
    assert explorer.picture != before
    assert explorer.values == {"x": 0.0, "y": 2.5, "steps": 3}


def test_explore_redraws_when_a_control_moves(shown):
    explorer = explore(draw_level, level=(0.0, 5.0), mask=True)
    before = explorer.picture
    explorer.controls["level"].value = 4.0
    assert explorer.picture != before
    explorer.set(level=2.0)
    assert explorer.picture == before
    assert len(explorer.redraw_seconds) == 3
    assert explorer.measure(3) > 0


def test_under_smoke_a_redraw_is_measured_once(shown, monkeypatch):
    drawn = []
    explorer = explore(lambda level=1.0: drawn.append(level) or draw_level(level), level=(0.0, 5.0))
    for profile, redraws in (("cpu", 5), ("smoke", 1)):
        monkeypatch.setattr(widgets, "current_chapter", lambda now=profile: ("03", now))
        drawn.clear()
        assert explorer.measure(5) > 0
        assert len(drawn) == redraws


def test_explore_says_what_is_wrong_where_the_learner_looks(shown):
    def draw(level=1.0):
        if level > 2:
            raise ValueError("level above 2")
        return draw_level(level)

    explorer = explore(draw, level=(0.0, 5.0))
    explorer.controls["level"].value = 4.0
    assert "level above 2" in explorer.message.value
    explorer.controls["level"].value = 1.0
    assert explorer.message.value == ""
    with pytest.raises(LabError, match="is none of"):
        explore(draw, level=(5.0, 1.0))
    with pytest.raises(LabError, match="return a matplotlib figure"):
        explore(lambda level=1.0: 3, level=(0.0, 5.0))


def test_text_box_and_chat_have_a_static_first_state(shown):
    box = explore_text(lambda text: f"<b>{len(text)}</b>", "four")
    talk = chat(lambda message: message.upper(), ["where?"])
    talk.say("<who>")
    assert "<b>4</b>" in shown[0]["text/html"]
    assert WIDGET_MIME in shown[0]
    box.value = "longer"
    assert "WHERE?" in shown[1]["text/html"]
    assert "&lt;WHO&gt;" in talk.transcript.value


def test_a_chat_shows_several_models_side_by_side(shown):
    talk = chat(lambda message: {"before": "<b>", "after": message}, ["hi"])
    assert "before: <b>\nafter: hi" in shown[0]["text/plain"]
    assert "<th" in shown[0]["text/html"]
    assert "&lt;b&gt;</td>" in shown[0]["text/html"]
    assert talk.say("you") == {"before": "<b>", "after": "you"}
    assert talk.transcript.value.count("<table>") == 2


def test_a_dollar_in_a_label_is_text_unless_it_encloses_a_formula():
    """Tokens of prices and of LaTeX are labels as any other."""
    figure = plots.heatmap(np.eye(2), rows=["$", "$5"], columns=["a $x", r"\frac"])
    plots.png(figure)
    (ax,) = figure.axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["$", "$5"]
    assert not any(label.get_parse_math() for label in ax.get_yticklabels())
    (ax,) = plots.heatmap(np.eye(2), rows=["$w_0$", "$w_1$"]).axes
    assert all(label.get_parse_math() for label in ax.get_yticklabels())


def luminance(shade):
    rgb = np.array([int(shade[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


@pytest.mark.parametrize("shade", plots.PALETTE)
def test_names_at_the_ends_of_lines_can_be_read_on_white(shade):
    _, ax = plots.figure()
    ax.plot([0, 1], [0, 1], color=shade)
    (label,) = plots.label_ends(ax, [(1, 1, "a name", shade)])
    text = label.get_color()
    assert 1.05 / (luminance(text) + 0.05) >= 4.5
    if 1.05 / (luminance(shade) + 0.05) > 4.6:
        assert text.upper() == shade.upper(), "what can be read already keeps its colour"
    order = [np.argsort([int(c[i : i + 2], 16) for i in (1, 3, 5)]).tolist() for c in (text, shade)]
    assert order[0][-1] == order[1][-1], "the same hue"
    assert ax.get_lines()[0].get_color() == shade, "the line keeps its colour"


def test_the_figures_of_a_run_are_folded_away(shown):
    report({"loss_of_the_model": 1.25})
    (bundle,) = shown
    head, _, table_inside = bundle["text/html"].partition("</summary>")
    assert head.startswith("<details><summary>Chapter ")
    assert "peak memory" in head
    assert "loss of the model" not in head
    assert table_inside.endswith("</table></details>")
    assert "1.25" in table_inside
