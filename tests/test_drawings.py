"""Drawings: legible or refused, in words for those who do not see them, and on every page."""

import nbformat
import numpy as np
import pytest
from matplotlib.figure import Figure
from nbclient import NotebookClient

from labkit import course
from labkit.errors import LabError
from labkit.notebook import Drawing, plots
from labkit.notebook.plots import BLUE, GREEN


def pixels(fig):
    fig.canvas.draw()
    return np.asarray(fig.canvas.buffer_rgba())[..., :3].astype(int)


def test_a_drawing_is_a_figure_with_its_words():
    sheet = Drawing(12, 4, "A box   of keys\nleads to one of values.")
    keys = sheet.box(1, 1, 3, 1.5, "keys", "T x K", BLUE)
    values = sheet.box(8, 1, 3, 1.5, "values", "T x K", GREEN, times=3)
    sheet.arrow(keys.right, values.left, "times")
    fig = sheet.done()
    assert isinstance(fig, Figure)
    assert plots.describe(fig) == "A box of keys leads to one of values."
    assert tuple(fig.get_size_inches() * 100) == pytest.approx((480, 160))
    assert keys.right == (4, 1.75)
    assert values.top == (9.5, 1)
    assert values.centre == (9.5, 1.75)
    shown = pixels(fig)
    assert (shown[66:74, 200:300] < 200).any(), "no arrow between the boxes"
    assert shown[5, 5].tolist() == [255, 255, 255]
    rim = np.abs(shown - [0, 114, 178]).sum(axis=-1) < 30
    assert rim[:, 30:170].any()
    assert not rim[:, 300:].any(), "the rim of the right box is green"


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (lambda s: s.box(1, 1, 1, 1, "a very long name"), "'a very long name' takes .* widen"),
        (lambda s: s.box(1, 1, 3, 0.4, "name", "shape"), "takes .* units in a box of 3.0 x 0.4"),
        (lambda s: s.text(9.8, 1, "beyond the edge"), "'beyond the edge' leaves the sheet"),
        (
            lambda s: [s.text(3, 1, "one text"), s.text(3.2, 1.1, "another")],
            "the texts 'one text' and 'another' cover one another",
        ),
        (
            lambda s: s.grid(1, 1, 2, 3, filled=np.ones((3, 2))),
            r"shape \(3, 2\), the grid is 2 x 3",
        ),
    ],
)
def test_what_cannot_be_read_is_refused(draw, words):
    def made():
        sheet = Drawing(10, 3, "Something.")
        draw(sheet)
        return sheet.done()

    with pytest.raises(LabError, match=words):
        made()


def test_a_drawing_without_words_is_refused():
    with pytest.raises(LabError, match="needs its alternative text"):
        Drawing(10, 3, "  ")


def test_a_grid_and_shards_show_what_they_hold():
    sheet = Drawing(12, 4, "A mask, and who holds which part.")
    mask = sheet.grid(1, 1, 2, 2, cell=1, colour=BLUE, filled=[[1, 0], [1, 1]])
    first, second = sheet.shards(5, 1, 4, 1, ["rank 0", "rank 1"], held=[True, False])
    shown = pixels(sheet.done())
    assert (mask.width, mask.height) == (2, 2)
    cells = [[shown[60 + 40 * i, 60 + 40 * j].tolist() for j in range(2)] for i in range(2)]
    assert cells == [[[0, 114, 178], [255, 255, 255]], [[0, 114, 178], [0, 114, 178]]]
    assert first.right == second.left
    assert shown[45, 205].tolist() != [255, 255, 255]
    assert shown[60, 320].tolist() == [255, 255, 255], "a part that is not here is only outlined"


def test_the_name_of_an_arrow_stands_beside_it():
    for end in ((9, 1.5), (9, 4.5), (1.5, 4.5), (5, 0.5)):
        sheet = Drawing(12, 6, "An arrow with its name.")
        start = np.array((5.0, 3.0))
        sheet.arrow(tuple(start), end, "its name")
        fig = sheet.done()
        (text,) = sheet.axes.texts
        box = text.get_window_extent(fig.canvas.get_renderer())
        corners = sheet.axes.transData.inverted().transform(box.get_points())
        direction = (np.array(end) - start) / np.linalg.norm(np.array(end) - start)
        sides = [
            direction[0] * (y - start[1]) - direction[1] * (x - start[0])
            for x in corners[:, 0]
            for y in corners[:, 1]
        ]
        assert max(sides) < 0, "all of the name is on one side of the line"


def test_pictures_on_a_page_have_their_words(tmp_path):
    code = """
from labkit.notebook import Drawing, plots, start
lab = start("smoke", 0, "00")
sheet = Drawing(6, 2, 'Says "what" it <shows>.')
sheet.box(1, 0.5, 4, 1, "a box")
sheet.done()
"""
    plot = "plots.curves({'train': [3, 2, 1]}, title='It learns', xlabel='step', ylabel='loss')"
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in (code, plot)])
    NotebookClient(made, timeout=120, kernel_name="python3").execute()
    nbformat.write(made, tmp_path / "a.ipynb")
    page = course.to_html(tmp_path / "a.ipynb")
    assert 'alt="Says &quot;what&quot; it &lt;shows&gt;."' in page
    assert 'alt="Figure: It learns; loss against step; train"' in page
    assert "No description" not in page
