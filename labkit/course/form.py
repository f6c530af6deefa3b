"""The form of a chapter: what a reader finds where, in each of them.

    # NN · Title            a sentence, what you will be able to do, a card (cell 0, tag `header`)
    set-up                  folded: install, parameters, imports, sizes
    a result                the first code cell that shows has an output
    ## 1 · Section ...      drawings (tag `drawing`, folded), captions after pictures,
    ### Common mistake · …  run and exposed
    ## Exercises            ### NN.k · Title · easy | medium | hard, a stub, a folded solution
    ## Summary, ## Terms 术语, ## Read next, and the figures of the run, folded

`breaches` says in sentences what a notebook has not; a chapter takes the form on with the tag
`header` on its first cell, and from then on a test holds it to it.
"""

import re
from collections.abc import Iterator
from typing import Any

#: Cells that must work, and that nobody reads first.
SET_UP = ("colab", "parameters", "imports", "sizes", "drawing", "plot")
LONGEST_LINE, MOST_LINES, MOST_CELLS = 100, 30, 80
FEWEST_DRAWINGS, FEWEST_EXERCISES, MOST_EXERCISES = 2, 4, 6
ENDING = ("Exercises", "Summary", "Terms 术语", "Read next")
CARD = "| time (`cpu` profile) | memory | download | before this |"
TERMS = "| term | 中文 | meaning |"

_TITLE = re.compile(r"# (\d\d) · \S")
_SECTION = re.compile(r"^## (?:(\d+) · )?(.+)$", re.MULTILINE)
_EXERCISE = re.compile(r"^### (\d\d\.\d+) · .+ · (?:easy|medium|hard)$", re.MULTILINE)
_CHECK = re.compile(r"""\bcheck\(\s*["'](\d\d\.\d+)["']""")
_CAPTION = re.compile(r"^\*Figure: .+\*$", re.MULTILINE)


def tags(cell: Any) -> list[str]:
    """A cell's tags."""
    return cell.metadata.get("tags", [])


def folded(cell: Any) -> bool:
    """Whether JupyterLab and pages hide a cell's source."""
    return bool(cell.metadata.get("jupyter", {}).get("source_hidden")) and "hide-input" in tags(
        cell
    )


def has_form(notebook: Any) -> bool:
    """Whether a chapter has taken the form on."""
    return bool(notebook.cells) and "header" in tags(notebook.cells[0])


def breaches(notebook: Any) -> list[str]:
    """What an executed chapter lacks, a sentence each, with the cell's index where it has one."""
    cells = list(notebook.cells)
    return [
        *_header(cells),
        *_folding(cells),
        *_sections(cells),
        *_pictures(cells),
        *_exercises(cells),
        *_size(cells),
    ]


def _header(cells: list[Any]) -> Iterator[str]:
    source = cells[0].source if cells and cells[0].cell_type == "markdown" else ""
    if not _TITLE.match(source):
        yield "cell 0 must begin with `# NN · Title`"
    if "<!--colab-->" not in source:
        yield "cell 0 must have a place for the badge: <!--colab--><!--/colab-->"
    listed = source.partition("**You will be able to**")[2]
    if not re.search(r"^- ", listed, re.MULTILINE):
        yield "cell 0 must list, after **You will be able to**, what the reader will be able to do"
    if CARD not in source or "<!--time-->" not in source or "<!--memory-->" not in source:
        yield f"cell 0 must end with the card: {CARD}"


def _folding(cells: list[Any]) -> Iterator[str]:
    code = [(i, cell) for i, cell in enumerate(cells) if cell.cell_type == "code"]
    for i, cell in code:
        kinds = [tag for tag in tags(cell) if tag in SET_UP]
        if kinds and not folded(cell):
            yield f"cell {i} ({kinds[0]}) must be folded: source_hidden, and the tag hide-input"
    shown = [(i, cell) for i, cell in code if not folded(cell)]
    if shown and not shown[0][1].get("outputs"):
        yield f"cell {shown[0][0]} is the first whose code shows: it must have a result"
    if code and "report(" not in code[-1][1].source:
        yield "the last code cell must report(...) the figures of the run"


def _sections(cells: list[Any]) -> Iterator[str]:
    text = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    found = _SECTION.findall(text)
    numbers = [int(number) for number, _ in found if number]
    if numbers != list(range(1, len(numbers) + 1)):
        yield f"sections must be numbered 1, 2, 3 ... (`## 1 · Title`), not {numbers}"
    names = [name.strip() for number, name in found if not number]
    if names != list(ENDING):
        yield f"the chapter must end with the sections {', '.join(ENDING)}, not {', '.join(names)}"
    if TERMS not in text:
        yield f"the terms must stand in a table with the heading {TERMS}"
    if not re.search(r"^### Common mistake · \S", text, re.MULTILINE):
        yield "at least one `### Common mistake · …` must be run and exposed"


def _pictures(cells: list[Any]) -> Iterator[str]:
    for i, cell in enumerate(cells):
        if cell.cell_type != "markdown":
            continue
        if _CAPTION.search(cell.source) and not (i and _has_picture(cells[i - 1])):
            yield f"cell {i} is a caption: it must stand right after the picture that it is about"
        if re.search(r"^\*?\(?Picture:", cell.source, re.MULTILINE):
            yield f"cell {i} tells a picture before it is seen: write *Figure: …* after it"
    drawn = [(i, cell) for i, cell in enumerate(cells) if "drawing" in tags(cell)]
    if len(drawn) < FEWEST_DRAWINGS:
        yield f"{len(drawn)} drawings explain the chapter: at least {FEWEST_DRAWINGS} must"
    for i, cell in drawn:
        if not _has_picture(cell):
            yield f"cell {i} (drawing) must show a picture with its alternative text"


def _has_picture(cell: Any) -> bool:
    """A picture that says in words what it shows."""
    bundles = [output.get("data", {}) for output in cell.get("outputs", [])]
    return any(
        "image/png" in data and not str(data.get("text/plain", "<Figure")).startswith("<Figure")
        for data in bundles
    )


def _exercises(cells: list[Any]) -> Iterator[str]:
    text = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    headed, checked = set(_EXERCISE.findall(text)), []
    for i, cell in enumerate(cells):
        if cell.cell_type == "code":
            for number in _CHECK.findall(cell.source):
                checked.append(number)
                after = cells[i + 1] if i + 1 < len(cells) else None
                if (
                    after is None
                    or "solution" not in tags(after)
                    or "<details>" not in after.source
                ):
                    yield f"exercise {number} must be followed by its folded solution"
    for number in checked:
        if number not in headed:
            yield f"exercise {number} needs its heading: ### {number} · Title · easy (medium, hard)"
    if not FEWEST_EXERCISES <= len(set(checked)) <= MOST_EXERCISES:
        yield (
            f"{len(set(checked))} exercises are checked: a chapter has {FEWEST_EXERCISES} to "
            f"{MOST_EXERCISES}"
        )


def _size(cells: list[Any]) -> Iterator[str]:
    if len(cells) > MOST_CELLS:
        yield f"the chapter has {len(cells)} cells: at most {MOST_CELLS} can be read in one go"
    for i, cell in enumerate(cells):
        if cell.cell_type != "code":
            continue
        lines = cell.source.splitlines()
        for number, line in enumerate(lines, 1):
            if len(line) > LONGEST_LINE:
                yield f"cell {i}, line {number} has {len(line)} columns: at most {LONGEST_LINE}"
        if len(lines) > MOST_LINES and not folded(cell):
            yield f"cell {i} shows {len(lines)} lines of code: fold it, or move part to the package"
