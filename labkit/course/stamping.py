"""Stamping: the repository's address, measured figures and today's sources, where readers see them.

    labkit.REPOSITORY      ──>  Colab badges, install cells, the README's commands
    a chapter's metrics    ──>  time and memory on its card and in the README's table
    the package's sources  ──>  the outputs of `show`

Nothing here runs a chapter, so a fingerprint (`fingerprints`) stays as its run stored it.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import labkit
from labkit.atomic import write_text
from labkit.course import listing
from labkit.course.chapter import (
    Chapter,
    chapters,
    metrics_of,
    notebooks_folder,
    read_notebook,
    write_notebook,
)
from labkit.errors import LabError
from labkit.runtime import duration

TABLE_BEGIN, TABLE_END = "<!-- chapters:begin -->", "<!-- chapters:end -->"


def colab_badge(chapter: Chapter) -> str:
    """The Markdown badge that opens a chapter in Colab."""
    path = labkit.REPOSITORY.removeprefix("https://github.com/")
    return (
        "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
        f"(https://colab.research.google.com/github/{path}/blob/main/notebooks/{chapter.path.name})"
    )


def install_cell() -> str:
    """The source of the cell tagged `colab`."""
    return (
        "# In Colab this installs the lab; anywhere else it does nothing.\n"
        "import sys\n\n"
        'if "google.colab" in sys.modules:\n'
        f'    %pip install -q "labkit @ git+{labkit.REPOSITORY}"'
    )


def stamp(root: Path | str | None = None, *, write: bool = True) -> list[Path]:
    """Write labkit.REPOSITORY, measured figures and today's sources into notebooks and README.md.

    A chapter's card says `<!--time--><!--/time-->` and `<!--memory--><!--/memory-->` where the time
    and peak memory of its committed run belong. What a chapter shows of the package is renewed: it
    is a function of the package alone, as a run would find it.

    Args:
        root: the checkout; None takes the one of `notebooks_folder`.
        write: False only looks.

    Returns:
        The files that were (or would be) changed.
    """
    base = Path(root) if root is not None else notebooks_folder().parent
    found = chapters(folder=base / "notebooks")
    changed = [it.path for it in found if stamp_chapter(it, write=write)]
    readme = base / "README.md"
    if readme.exists() and stamp_readme(readme, found, write=write):
        changed.append(readme)
    return changed


def stamp_chapter(chapter: Chapter, *, write: bool = True) -> bool:
    """Stamp one notebook; return whether that changes (or would change) it."""
    import nbformat

    notebook = read_notebook(chapter.path)
    payload = metrics_of(chapter.path) or {}
    before = nbformat.writes(notebook)
    for cell in notebook.cells:
        if "colab" in cell.metadata.get("tags", []):
            cell.source = install_cell()
        elif cell.cell_type == "markdown":
            cell.source = _BADGE.sub(lambda _: colab_badge(chapter), cell.source)
            cell.source = _measured(cell.source, payload)
        for output in cell.get("outputs", []):
            if shown := output.get("metadata", {}).get("labkit"):
                output.data.update(_source_today(**shown))
    if nbformat.writes(notebook) == before:
        return False
    if write:
        write_notebook(chapter.path, notebook)
    return True


def _source_today(shows: str, docstring: bool) -> dict[str, str]:
    """What `show` gives today; nothing if the name is gone, which `stale` says of the chapter."""
    try:
        thing = listing.find(shows)
    except LabError:
        return {}
    return listing.rendered(thing, docstring)


def stamp_readme(readme: Path, found: Sequence[Chapter], *, write: bool = True) -> bool:
    """Stamp addresses and the table of chapters; return whether that changes the file."""
    before = readme.read_text(encoding="utf-8")
    after = _stamped(before, found)
    if after != before and write:
        write_text(readme, after)
    return after != before


_BADGE = re.compile(
    r"\[!\[Open in Colab\]\([^)]*\)\]\(https://colab\.research\.google\.com/github/[^)]*\)", re.I
)


def _measured(text: str, payload: dict[str, Any]) -> str:
    """Put the measured time and memory between their comments (see `stamp`)."""
    if "seconds" not in payload:
        return text
    shown = {
        "time": duration(payload["seconds"]),
        "memory": f"{payload['peak_rss_mb'] / 1000:.1f} GB",
    }
    for name, value in shown.items():
        text = re.sub(
            f"<!--{name}-->.*?<!--/{name}-->", f"<!--{name}-->{value}<!--/{name}-->", text
        )
    return text


def _stamped(text: str, found: Sequence[Chapter]) -> str:
    text = re.sub(r"git\+https?://[^\s\"'`)]+", f"git+{labkit.REPOSITORY}", text)
    text = re.sub(r"git clone https?://[^\s\"'`)]+", f"git clone {labkit.REPOSITORY}", text)
    if TABLE_BEGIN not in text or TABLE_END not in text:
        return text
    lines = ["| chapter | time | peak memory | |", "|---|---:|---:|---|"]
    for chapter in found:
        payload = metrics_of(chapter.path) or {}
        took = duration(payload["seconds"]) if "seconds" in payload else ""
        memory = f"{payload['peak_rss_mb'] / 1000:.1f} GB" if payload.get("peak_rss_mb") else ""
        link = f"[{chapter.title}](notebooks/{chapter.path.name})"
        lines.append(f"| {link} | {took} | {memory} | {colab_badge(chapter)} |")
    before, rest = text.split(TABLE_BEGIN, 1)
    after = rest.split(TABLE_END, 1)[1]
    return f"{before}{TABLE_BEGIN}\n" + "\n".join(lines) + f"\n{TABLE_END}{after}"
