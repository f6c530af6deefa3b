"""The form of a chapter: a notebook that has it, and every way of lacking it."""

import copy

import nbformat
import pytest

from labkit import course
from labkit.course.form import breaches, folded, has_form

HEADER = """# 04 · A title

<!--colab--><!--/colab-->

One sentence.

**You will be able to**
- do something.

| time (`cpu` profile) | memory | download | before this |
|---|---|---|---|
| <!--time-->1 s<!--/time--> | <!--memory-->1 GB<!--/memory--> | none | 03 |"""
CLOSING = """## Summary

- It works.

## Terms 术语

| term | 中文 | meaning |
|---|---|---|
| loss | 损失 | what is minimised |

## Read next

05."""
FOLDED = {"source_hidden": True}
PICTURE = nbformat.v4.new_output("display_data", data={"image/png": "aGk=", "text/plain": "A box."})
TEXT = nbformat.v4.new_output("stream", text="hello")


def text(source, *tags):
    return nbformat.v4.new_markdown_cell(source, metadata={"tags": list(tags)})


def code(source, *tags, fold=False, output=None):
    metadata = {"tags": [*tags, "hide-input"] if fold else list(tags)}
    if fold:
        metadata["jupyter"] = FOLDED
    cell = nbformat.v4.new_code_cell(source, metadata=metadata)
    cell.outputs = [output] if output else []
    return cell


def chapter():
    """The smallest notebook with everything."""
    exercises = []
    for k in range(1, 5):
        exercises += [
            text(f"### 04.{k} · Do it · easy"),
            code(f"check('04.{k}', ...)"),
            text("<details><summary>Solution</summary></details>", "solution"),
        ]
    return nbformat.v4.new_notebook(
        cells=[
            text(HEADER, "header"),
            code("import sys", "colab", fold=True),
            code('profile = "auto"', "parameters", fold=True),
            code("import torch", "imports", fold=True),
            code("print('hello')", output=TEXT),
            text("## 1 · The idea"),
            code("drawing()", "drawing", fold=True, output=PICTURE),
            text("*Figure: a box.*"),
            text("## 2 · More\n\n### Common mistake · the wrong axis"),
            code("drawing()", "drawing", fold=True, output=PICTURE),
            text("## Exercises"),
            *exercises,
            text(CLOSING),
            code("report({'a': 1})", fold=True, output=TEXT),
        ]
    )


def test_a_notebook_with_everything_has_the_form():
    whole = chapter()
    assert breaches(whole) == []
    assert has_form(whole)
    assert folded(whole.cells[1])
    assert not folded(whole.cells[4])


def change(source, old, new):
    assert old in source
    return source.replace(old, new)


def edited(index, old, new):
    def edit(notebook):
        notebook.cells[index].source = change(notebook.cells[index].source, old, new)

    return edit


def unfolded(notebook):
    del notebook.cells[3].metadata["jupyter"]


def silent(notebook):
    notebook.cells[4].outputs = []


def without(index):
    return lambda notebook: notebook.cells.pop(index)


def blind(notebook):
    notebook.cells[6].outputs[0].data["text/plain"] = "<Figure size 720x296 with 1 Axes>"


def long(notebook):
    notebook.cells[4].source = "\n".join(f"x = {i}" for i in range(31))


def crowded(notebook):
    notebook.cells[5:5] = [text("words") for _ in range(60)]


LACKING = [
    (edited(0, "# 04 ·", "# Chapter 4:"), "cell 0 must begin with `# NN · Title`"),
    (edited(0, "<!--colab--><!--/colab-->", ""), "cell 0 must have a place for the badge"),
    (edited(0, "- do something.", "Something."), "cell 0 must list, after"),
    (edited(0, "| download ", "| size "), "cell 0 must end with the card"),
    (unfolded, "cell 3 (imports) must be folded"),
    (silent, "cell 4 is the first whose code shows: it must have a result"),
    (without(-1), "the last code cell must report(...)"),
    (
        edited(8, "## 2 ·", "## 3 ·"),
        "sections must be numbered 1, 2, 3 ... (`## 1 · Title`), not",
    ),
    (
        edited(-2, "## Summary", "## In short"),
        "the chapter must end with the sections",
    ),
    (edited(-2, "| term | 中文 |", "| term | Chinese |"), "the terms must stand in a table"),
    (edited(8, "### Common mistake ·", "### Mistake:"), "at least one `### Common mistake"),
    (without(6), "1 drawings explain the chapter: at least 2 must"),
    (blind, "cell 6 (drawing) must show a picture with its alternative text"),
    (edited(5, "## 1 · The idea", "## 1 · The idea\n\n*Figure: a box.*"), "cell 5 is a caption"),
    (edited(5, "## 1 · The idea", "## 1 · The idea\n\nPicture: a box."), "cell 5 tells a picture"),
    (edited(11, "· easy", ""), "exercise 04.1 needs its heading"),
    (without(13), "exercise 04.1 must be followed by its folded solution"),
    (edited(21, "check('04.4', ...)", "print()"), "3 exercises are checked: a chapter has 4 to 6"),
    (edited(4, "'hello'", repr("o" * 100)), "cell 4, line 1 has 109 columns: at most 100"),
    (long, "cell 4 shows 31 lines of code: fold it"),
    (crowded, "the chapter has 85 cells: at most 80"),
]


@pytest.mark.parametrize(("damage", "said"), LACKING, ids=[said for _, said in LACKING])
def test_what_is_lacking_is_said(damage, said):
    notebook = copy.deepcopy(chapter())
    damage(notebook)
    found = breaches(notebook)
    assert any(sentence.startswith(said) for sentence in found), found


def test_chapters_that_took_the_form_on_keep_it():
    for it in course.chapters():
        notebook = course.read_notebook(it.path)
        if has_form(notebook):
            assert breaches(notebook) == [], it.name
