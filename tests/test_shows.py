"""What chapters show: each has a sentence, and its figures are those of the committed run."""

import doctest
import json
import re

import nbformat
import pytest

from labkit import course
from labkit.course import pictures, shows
from labkit.course.__main__ import main

CHAPTERS = course.chapters()


def test_every_chapter_says_what_it_shows():
    assert shows.unsaid(CHAPTERS) == []


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda it: it.name)
def test_each_figure_is_one_of_the_committed_run(chapter):
    """Written figures (`134.5 million`) stand in the chapter; measured ones are in braces."""
    sentence = shows.SENTENCES[chapter.number]
    placed = re.findall(r"\{[^}]*\}", sentence)
    assert len(placed) >= 2, "a figure, and one beside it"
    written = re.sub(r"\{[^}]*\}", "", sentence)
    text = json.dumps(course.read_notebook(chapter.path))
    for figure in re.findall(r"\d[\d.]*\d|\d", written):
        assert figure in text, f"{figure} stands nowhere in {chapter.name}"
    metrics = (course.metrics_of(chapter.path) or {})["metrics"]
    said = shows.shows(chapter)
    assert not re.search(r"[{}]", said)
    for figure in placed:
        name, _, form = figure.strip("{}").partition("|")
        value = -metrics[name[1:]] if name.startswith("-") else metrics[name]
        assert format(value, form).rstrip("%") in said


def test_the_readme_says_it_under_the_parts_of_the_course():
    readme = (course.notebooks_folder().parent / "README.md").read_text()
    table = readme.split(course.TABLE_BEGIN)[1].split(course.TABLE_END)[0]
    parts = re.findall(r"^\*\*(.+)\*\*$", table, re.MULTILINE)
    assert parts == list(course.by_part(CHAPTERS))
    assert set(parts) <= set(course.PARTS)
    for chapter in CHAPTERS:
        row = f"| [{chapter.title}](notebooks/{chapter.path.name}) | {shows.shows(chapter)} |"
        assert row in table
        under = table[: table.index(row)].split("**")[-2]
        assert under == chapter.part


def test_a_chapter_without_a_sentence_or_a_figure_is_named(tmp_path, monkeypatch, capsys):
    name = "07_pretraining_objectives"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("report({})")])
    payload = {"chapter": "07", "metrics": {"loss": 1.5}}
    report = nbformat.v4.new_output("display_data", {course.METRICS_MIME: payload})
    notebook.cells[0].outputs = [report]
    for file in (f"{name}.ipynb", "95_new.ipynb"):
        nbformat.write(notebook, tmp_path / file)
    monkeypatch.setitem(shows.SENTENCES, "07", "From {loss} to {gone|.2f}.")
    found = course.chapters(folder=tmp_path)
    old, new = shows.unsaid(found)
    assert old == (
        f"{name} does not report 'gone', which its sentence in labkit/course/shows.py names: "
        "take one of loss"
    )
    assert new == "95_new has no sentence: write it in labkit/course/shows.py"
    assert [shows.shows(it) for it in found] == ["", ""]
    monkeypatch.setattr("labkit.course.__main__.chapters", lambda: found)
    main(["stamp", "--check"])
    assert old in capsys.readouterr().err


def test_examples_in_docstrings():
    assert doctest.testmod(shows).failed == 0
    assert doctest.testmod(pictures).failed == 0


# --- words for pictures --------------------------------------------------------------------------


def drawn(own, follower):
    """The words that a picture gets, from its own text and the cell after it."""
    cell = nbformat.v4.new_code_cell("draw()")
    data = {"image/png": "AAAA", "text/plain": own} if own else {"image/png": "AAAA"}
    cell.outputs = [nbformat.v4.new_output("display_data", data)]
    made = pictures.described(nbformat.v4.new_notebook(cells=[cell, follower]))
    assert cell.outputs[0].data == data, "the notebook itself stays"
    return made.cells[0].outputs[0].data["text/plain"]


@pytest.mark.parametrize(
    ("own", "after", "words"),
    [
        ("A ring of\nfour ranks", "*Figure: something else.*", "A ring of four ranks"),
        ("<Figure size 640x480 with 1 Axes>", "*Figure: loss falls.* And so on.", "loss falls."),
        (
            "",
            "*Figure: left, `a * b`\nof **two** lines, at 2*3.*\n\nText.",
            "left, a b of two lines, at 23.",
        ),
        ("", "It falls. *Figure: not a caption of what stands above.*", pictures.NO_WORDS),
        ("", "*Figure: never closed", pictures.NO_WORDS),
    ],
)
def test_a_picture_has_its_own_words_or_those_of_its_caption(own, after, words):
    said = drawn(own, nbformat.v4.new_markdown_cell(after))
    assert " ".join(said.split()).startswith(words)


def test_code_that_begins_like_a_caption_is_none():
    assert drawn("", nbformat.v4.new_code_cell("*Figure: a*")) == pictures.NO_WORDS


def test_the_report_and_the_book_say_the_same_of_a_picture(tmp_path):
    from labkit.course.book.pages import FIGURES, page_of

    cell = nbformat.v4.new_code_cell("draw()")
    cell.outputs = [nbformat.v4.new_output("display_data", {"image/png": "QUJD"})]
    caption = nbformat.v4.new_markdown_cell('*Figure: "loss" < 2 in all runs.*')
    notebook = nbformat.v4.new_notebook(cells=[cell, caption])
    nbformat.write(notebook, tmp_path / "x.ipynb")
    expected = 'alt="&quot;loss&quot; &lt; 2 in all runs."'
    assert expected in course.to_html(tmp_path / "x.ipynb")
    page = page_of(notebook, tmp_path / FIGURES)
    assert expected in page.cells[0].outputs[0].data["text/html"]
