"""The web book's sources: pages of chapters, docstrings, the list of what rooms offer, refusals."""

import base64
import doctest
import importlib.util
import re

import nbformat
import pytest
from commands import here

import labkit
from labkit import course
from labkit.__main__ import _help
from labkit.commands import manual, options
from labkit.course.book.docstrings import as_rst
from labkit.course.book.pages import FIGURES, index_of, page_of
from labkit.course.book.reference import offered
from labkit.course.book.search import texts_of
from labkit.course.pictures import NO_WORDS
from labkit.course.shows import shows
from labkit.errors import LabError

PICTURE = base64.b64encode(b"\x89PNG, as far as this test can tell").decode()
VIEW = {"application/vnd.jupyter.widget-view+json": {"model_id": "a"}}


def notebook_of(*bundles):
    cell = nbformat.v4.new_code_cell("draw()")
    cell.outputs = [nbformat.v4.new_output("display_data", data) for data in bundles]
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# 01 · A"), cell])
    made.metadata["widgets"] = {"state": {}}
    return made


def test_a_widget_is_the_picture_of_its_saved_state(tmp_path):
    made = notebook_of({**VIEW, "image/png": PICTURE, "text/plain": 'Widget at "T" = 1\n<2>'})
    page = page_of(made, tmp_path / FIGURES)
    (output,) = page.cells[1].outputs
    assert set(output.data) == {"text/html"}
    (picture,) = (tmp_path / FIGURES).iterdir()
    assert picture.read_bytes() == base64.b64decode(PICTURE)
    assert f'src="{FIGURES}/{picture.name}"' in output.data["text/html"]
    assert 'alt="Widget at &quot;T&quot; = 1 &lt;2&gt;"' in output.data["text/html"]
    assert "widgets" not in page.metadata
    assert "widgets" in made.metadata, "the notebook itself stays"
    assert "image/png" in made.cells[1].outputs[0].data, "the notebook itself stays"


def test_an_output_is_shown_in_its_best_form_and_what_has_none_is_left_out(tmp_path):
    page = page_of(
        notebook_of(
            {"text/html": "<b>1</b>", "text/plain": "1"},
            {course.METRICS_MIME: {"metrics": {}}},
            {"image/png": PICTURE, "text/plain": "<Figure size 640x480>"},
            {"text/plain": "2"},
        ),
        tmp_path,
    )
    html, picture, plain = (output.data for output in page.cells[1].outputs)
    assert html == {"text/html": "<b>1</b>"}
    assert f'alt="{NO_WORDS}"' in picture["text/html"]
    assert plain == {"text/plain": "2"}


def test_a_badge_becomes_a_link_without_a_picture_from_the_network(tmp_path):
    made = notebook_of()
    badge = "[![Open in Colab](https://colab.example/badge.svg)](https://colab.example/x.ipynb)"
    made.cells[0].source += f"\n\n<!--colab-->{badge}<!--/colab-->"
    source = page_of(made, tmp_path).cells[0].source
    assert "[Open in Colab](https://colab.example/x.ipynb)" in source
    assert "badge.svg" not in source


def test_a_docstrings_text_is_text_and_its_drawings_are_drawings():
    text = [
        "Give `x`s to *one* and a_ to |another|.",
        "",
        "a   ──> b",
        "c   ──> d",
        "",
        "    plain, but indented",
        "",
        "    and so is this",
        "",
        "Args:",
        "    x_BTD: one of `a`, `b`.",
        "",
        ">>> as_it_is(1 * 2)",
        "2",
    ]
    assert as_rst(text) == [
        r"Give ``x``\ s to \*one\* and a\_ to \|another\|.",
        "",
        *("::", "", "    a   ──> b", "    c   ──> d", ""),
        *("::", "", "    plain, but indented", "", "    and so is this", ""),
        *("Args:", "    x_BTD: one of ``a``, ``b``.", ""),
        *(">>> as_it_is(1 * 2)", "2", ""),
    ]


@pytest.mark.parametrize("command", options.COMMANDS)
def test_the_page_of_the_command_line_has_every_option_with_what_it_is(command):
    text, boxes = manual.read(_help([command, "--help"]))
    shown = [(option, said) for box in boxes.values() for option, said in box]
    assert all(said for _, said in shown), "each option is explained"
    flags = {flag for option, _ in shown for flag in re.findall(r"--(?:no-)?([\w-]+)", option)}
    fields = options.to_dict(options.COMMANDS[command])
    positional = {"positional arguments"} & set(boxes)
    missing = {f for f in fields if f.replace("_", "-") not in flags}
    assert len(missing) == sum(len(boxes[box]) for box in positional), missing
    assert " ".join(text).startswith(type(options.COMMANDS[command]).__doc__.split("\n")[0])


def test_the_page_of_the_command_line_has_all_commands_in_their_order():
    page = manual.page(list(options.COMMANDS), _help)
    assert re.findall(r"^labkit (\w+)$", page, re.MULTILINE) == list(options.COMMANDS)
    assert not set("╭│╰") & set(page)
    assert "(default: )" not in page
    assert doctest.testmod(manual).failed == 0


def test_texts_of_a_page_are_words_and_code_without_formulas():
    import docutils.nodes as nodes

    page = nodes.section("", nodes.title("", "01 · A"), ids=["a"])
    page += nodes.paragraph("", "", nodes.Text("the loss "), nodes.math("", r"\frac{1}{2}"))
    page += nodes.literal_block("", "code()")
    page += nodes.raw("", "<b>html</b>", format="html")
    inner = nodes.section("", nodes.title("", "1 · B"), nodes.paragraph("", "more"), ids=["b", "c"])
    document = nodes.section("", page)
    page += inner
    assert texts_of(document)[1:] == [("a", "the loss …", "code()"), ("b", "more", "")]


def test_the_reference_lists_every_name_that_a_room_offers():
    for room in ("models", "training", "notebook", "errors"):
        module = getattr(labkit, room)
        listed = {name for names in offered(module).values() for name in names}
        listed |= {file.rpartition(".")[2] for file in offered(module)}
        assert set(getattr(module, "__all__", ["LabError"])) <= listed
    assert "causal_mask" in offered(labkit.models)["labkit.models.attention"]


def test_the_first_page_says_what_each_chapter_shows_and_keeps_the_order():
    found = course.chapters()
    page = index_of(found, ["package/text"])
    for chapter in found:
        said = as_rst([shows(chapter) or chapter.title])[0]
        assert f":doc:`{chapter.name}`\n   {said}\n" in page
    names = re.findall(r"^   (\d\d_\w+)$", page, re.MULTILINE)
    assert names == [chapter.name for chapter in found]
    assert page.index(names[-1]) < page.index("   package/text")


def test_what_is_no_book_is_not_replaced(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    (tmp_path / "mine.txt").write_text("mine")
    assert here("book", "--out", tmp_path) == 2
    assert "is no book and not empty: choose a new folder" in capsys.readouterr().err
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_without_sphinx_a_sentence_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LabError, match=r"myst_nb, .* run pip install sphinx myst-nb"):
        course.build_book(tmp_path / "book")
    assert not (tmp_path / "book").exists()
