"""Editing a chapter as text: `edit` writes it as a Python file, `commit` brings it back, executed.

    notebooks/03_attention.ipynb  ──edit──>  build/03_attention.py      cells divided by `# %%`
                                <──commit──  read back, executed, fingerprint, stamped

The text carries the metadata and the id of every cell in its `# %%` line. Outputs are not in it:
they come from the run.
"""

import copy
import re
from itertools import zip_longest
from pathlib import Path
from typing import Any

from labkit.atomic import write_json, write_text
from labkit.course.chapter import Chapter, chapters, one_chapter, read_notebook
from labkit.course.running import execute_notebook
from labkit.course.stamping import TABLE_BEGIN, stamp_chapter, stamp_readme
from labkit.errors import LabError

#: What tools rely on: one cell each.
TAGS = ("colab", "parameters", "imports")

#: Where a chapter's text lies; git ignores it.
TEXTS = Path("build")


def edit(name: str | Path, out: Path | str = TEXTS) -> Path:
    """Write a chapter as text, for an editor.

    Args:
        name: its number, its name, or the path of a notebook.
        out: the folder to write into, made if it is not there.

    Returns:
        The file.

    Raises:
        LabError: the file holds other text already, or the notebook has no form as text.
    """
    chapter = one_chapter(name)
    notebook = read_notebook(chapter.path)
    text = to_text(notebook)
    for number, (before, after) in enumerate(
        zip_longest(_cells(notebook), _cells(from_text(text, notebook)))
    ):
        if before != after:
            raise LabError(
                f"cell {number} of {chapter.path} would not come back from text as it is: "
                "change it in JupyterLab, such as a line that begins with `# %%`"
            )
    file = Path(out) / f"{chapter.name}.py"
    if file.exists() and file.read_text(encoding="utf-8") != text:
        raise LabError(f"{file} holds other text than the notebook: commit it or delete it first")
    write_text(file, text)
    return file


def commit(
    name: str | Path, text: Path | str | None = None, profile: str = "cpu"
) -> dict[str, Any]:
    """Bring a chapter back from its text, execute it, store the fingerprint, stamp it.

    The notebook is written only if every cell ran. Its metrics are also written beside the text,
    as NN_name.json, and the text is written anew with what stamping changed.

    Args:
        name: its number, its name, or the path of a notebook.
        text: the file that `edit` wrote; None takes the one in `build/`.
        profile: the sizes of the run.

    Returns:
        Its metrics payload (see `metrics_of`).

    Raises:
        LabError: there is no such text, or it lost a cell that tools rely on.
        ChapterFailed: a cell raised.
    """
    chapter = one_chapter(name)
    file = Path(text) if text is not None else TEXTS / f"{chapter.name}.py"
    if not file.is_file():
        raise LabError(f"There is no {file}: run `python -m labkit.course edit {name}` first.")
    notebook = from_text(file.read_text(encoding="utf-8"), read_notebook(chapter.path))
    tags = [tag for cell in notebook.cells for tag in cell.metadata.get("tags", [])]
    if wrong := [tag for tag in TAGS if tags.count(tag) != 1]:
        raise LabError(
            f"{file} has {tags.count(wrong[0])} cells tagged {wrong[0]!r}, there must be 1: begin "
            f'that cell with the line `# %% tags=["{wrong[0]}"]`'
        )
    payload = execute_notebook(notebook, chapter.path.name, chapter.path, profile)
    _stamp(chapter)
    write_text(file, to_text(read_notebook(chapter.path)))
    write_json(file.with_suffix(".json"), payload)
    return payload


def to_text(notebook: Any) -> str:
    """A notebook's cells as Python with `# %%` lines, which hold their metadata and ids."""
    bare = copy.deepcopy(notebook)
    for cell in bare.cells:
        cell.metadata.pop("lines_to_next_cell", None)  # a trace of another conversion
        cell.metadata["id"] = cell.id
    bare.metadata["jupytext"] = {"notebook_metadata_filter": "-all", "cell_metadata_filter": "all"}
    return _jupytext().writes(bare, fmt="py:percent")


def from_text(text: str, notebook: Any) -> Any:
    """The notebook of a text.

    Args:
        text: what `to_text` made of a notebook, edited.
        notebook: that notebook; gives what no text holds: its metadata and attached pictures.

    Returns:
        A notebook without outputs. A cell without an id of its own gets a new one.
    """
    old = {cell.id: cell for cell in notebook.cells}
    made = copy.deepcopy(notebook)
    made.cells = _jupytext().reads(text, fmt="py:percent").cells
    taken: set[str] = set()
    for cell in made.cells:
        cell.metadata.pop("lines_to_next_cell", None)
        id_ = cell.metadata.pop("id", "")
        if _ID.fullmatch(str(id_)) and id_ not in taken:
            cell.id = id_
        taken.add(cell.id)
        if "attachments" in old.get(cell.id, {}):
            cell.attachments = old[cell.id].attachments
    return made


_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


def _cells(notebook: Any) -> list[tuple]:
    """What must survive: kind, source, id, metadata of every cell."""
    unseen = {"lines_to_next_cell"}
    return [
        (it.cell_type, it.source, it.id, {k: v for k, v in it.metadata.items() if k not in unseen})
        for it in notebook.cells
    ]


def _stamp(chapter: Chapter) -> None:
    """Stamp this chapter and the table of chapters; the others keep their outputs."""
    stamp_chapter(chapter)
    folder = chapter.path.resolve().parent
    readme = folder.parent / "README.md"
    if readme.exists() and TABLE_BEGIN in readme.read_text(encoding="utf-8"):
        stamp_readme(readme, chapters(folder=folder))


def _jupytext() -> Any:
    try:
        import jupytext
    except ImportError as error:
        raise LabError("jupytext is not installed: run pip install jupytext") from error
    return jupytext
