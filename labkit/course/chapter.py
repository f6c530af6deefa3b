"""Chapters: the notebooks of the course, found by number or name, read, written, their metrics.

notebooks/03_attention.ipynb  ──>  Chapter(name="03_attention", number="03", title=...)
"""

import re
import site
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import labkit
from labkit.atomic import write_text
from labkit.errors import LabError

#: The MIME type under which a notebook carries its metrics: `labkit.notebook.report` puts them
#: there, `metrics_of` finds them.
METRICS_MIME = "application/vnd.labkit.metrics+json"

#: The parts of the course, each with the number of its first chapter.
PARTS = {
    "Foundations": 0,
    "Pretraining": 7,
    "Fine-tuning": 10,
    "Engineering": 17,
    "Further": 23,
}


@dataclass(frozen=True)
class Chapter:
    """One notebook of the course."""

    path: Path
    """The notebook."""

    @property
    def name(self) -> str:
        """File name without its ending, such as "03_attention"."""
        return self.path.stem

    @property
    def number(self) -> str:
        """Two digits."""
        return self.name[:2]

    @property
    def part(self) -> str:
        """The part of the course that it belongs to, such as "Foundations"."""
        return [name for name, first in PARTS.items() if first <= int(self.number)][-1]

    @property
    def title(self) -> str:
        """The text of its first heading."""
        for cell in read_notebook(self.path).cells:
            if found := re.search(r"^#\s+(.+)$", cell.source, re.MULTILINE):
                return found.group(1).strip()
        return self.name


def notebooks_folder() -> Path:
    """The chapters as they were published: of the checkout, else those that a wheel installed.

    Looked for beside the package, under the current folder, in `share/llm-lab-course` of the
    environment (or of the user).

    Raises:
        LabError: labkit is installed without its notebooks.
    """
    shared = f"share/{labkit.DISTRIBUTION}/notebooks"
    places = [
        Path(labkit.__file__).resolve().parents[1] / "notebooks",
        Path.cwd() / "notebooks",
        Path(sysconfig.get_path("data")) / shared,
        Path(site.getuserbase()) / shared,
    ]
    for place in places:
        if any(place.glob("[0-9][0-9]_*.ipynb")):
            return place
    raise LabError(
        f"No notebooks in {', '.join(map(str, places[:3]))}: install labkit again, from a checkout "
        "of the lab or a wheel"
    )


def copy_notebooks(folder: Path) -> list[str]:
    """Give a learner copies of all chapters, to write in; what is there already stays as it is.

    Args:
        folder: made if it is not there.

    Returns:
        Names of the files that were copied now.

    Raises:
        LabError: the folder is that of the published chapters, or no folder.
    """
    source = notebooks_folder()
    if folder.resolve() == source.resolve():
        raise LabError(
            f"{folder} holds the published chapters: choose another folder for your own copies"
        )
    if folder.exists() and not folder.is_dir():
        raise LabError(f"{folder} is a file: choose a folder for your copies of the chapters")
    folder.mkdir(parents=True, exist_ok=True)
    copied = []
    for chapter in chapters(folder=source):
        place = folder / chapter.path.name
        if not place.exists():
            write_text(place, chapter.path.read_text(encoding="utf-8"))
            copied.append(place.name)
    return copied


def chapters(names: Iterable[str] = (), folder: Path | str | None = None) -> list[Chapter]:
    """Chapters in order: all of them, or those named by number or name.

    Args:
        names: "3", "03" or "03_attention"; none means all.
        folder: where the notebooks are; None looks for the checkout's.

    Raises:
        LabError: a name is no chapter.
    """
    place = Path(folder) if folder is not None else notebooks_folder()
    found = [Chapter(path) for path in sorted(place.glob("[0-9][0-9]_*.ipynb"))]
    if not found:
        raise LabError(f"No chapters in {place}: a chapter is a file such as 03_attention.ipynb.")
    wanted = [names] if isinstance(names, str) else list(names)
    chosen = []
    for name in wanted:
        stem = Path(name).stem
        match = [it for it in found if stem in (it.name, it.number) or stem.zfill(2) == it.number]
        if not match:
            there = ", ".join(it.name for it in found)
            raise LabError(f"There is no chapter {name!r}; there are {there}.")
        chosen += match
    return sorted(set(chosen), key=lambda it: it.name) if wanted else found


def one_chapter(name: str | Path) -> Chapter:
    """The chapter of a number or name in the checkout, or of the path of a notebook anywhere.

    Raises:
        LabError: there is no such chapter or file.
    """
    path = Path(name)
    if path.suffix != ".ipynb":
        return chapters([str(name)])[0]
    if not path.is_file():
        raise LabError(f"There is no notebook {path}: give a number, a name or an existing file.")
    return Chapter(path)


def by_part(found: Iterable[Chapter]) -> dict[str, list[Chapter]]:
    """Chapters under their parts, in order; a part without one is left out."""
    grouped: dict[str, list[Chapter]] = {}
    for chapter in found:
        grouped.setdefault(chapter.part, []).append(chapter)
    return grouped


def metrics_of(notebook: Path | str) -> dict[str, Any] | None:
    """What `report` recorded in an executed notebook, or None.

    Returns:
        {"chapter", "profile", "seconds", "peak_rss_mb", "metrics"}.
    """
    found = None
    for cell in read_notebook(Path(notebook)).cells:
        for output in cell.get("outputs", []):
            found = output.get("data", {}).get(METRICS_MIME, found)
    return dict(found) if found is not None else None


def read_notebook(path: Path) -> Any:
    """The notebook in a file.

    Raises:
        LabError: it is none, or cannot be read.
    """
    import nbformat

    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:
        raise LabError(f"{path} is not a readable notebook: {error}") from error


def write_notebook(path: Path, notebook: Any) -> None:
    """Write a notebook, whole or not at all."""
    import nbformat

    write_text(path, nbformat.writes(notebook) + "\n")
