"""Write the sources of the book into a temporary folder, and have Sphinx make pages of them.

    chapters, rooms ──> source/ ── Sphinx (html) ──> a folder beside `out` ── complete ──> out

Everything that Sphinx warns of is returned: a book without warnings has no broken link, no formula
that could not be converted and no docstring that could not be read.
"""

import importlib.util
import io
import re
import tempfile
from pathlib import Path

from labkit.atomic import claim, write_text
from labkit.course.book import pages, reference
from labkit.course.chapter import chapters, read_notebook, write_notebook
from labkit.course.report import FORMULA_STYLE, labels_style
from labkit.errors import LabError

HERE = Path(__file__).parent
#: Sphinx leaves this file in what it builds: a folder that has it is a book and may be replaced.
MARK = ".buildinfo"
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def build_book(out: Path | str, folder: Path | str | None = None, commands: str = "") -> list[str]:
    """Build the book from the notebooks as they were saved; nothing is executed or fetched.

    Args:
        out: folder to write: new, empty, or an older book, which is replaced when the new one is
            complete.
        folder: where the notebooks are; None looks for the published ones.
        commands: the page about the command line in reStructuredText; none if it is empty.

    Returns:
        Sphinx's warnings, a sentence each.

    Raises:
        LabError: Sphinx is not installed, `out` holds something else, or the build failed.
    """
    _demand_sphinx()
    out = Path(out)
    older = (out / MARK).is_file()
    if out.exists() and not older and (not out.is_dir() or any(out.iterdir())):
        raise LabError(f"--out {out} is no book and not empty: choose a new folder")
    with claim(out, replace=older) as place, tempfile.TemporaryDirectory() as work:
        source = Path(work) / "source"
        write_sources(source, folder, commands)
        return _sphinx(source, place, Path(work) / "trees")


def write_sources(source: Path, folder: Path | str | None = None, commands: str = "") -> None:
    """Write what Sphinx reads: chapters, pages about the package, the first page, styles."""
    found = chapters(folder=folder)
    for chapter in found:
        page = pages.page_of(read_notebook(chapter.path), source / pages.FIGURES)
        write_notebook(source / chapter.path.name, page)
    rooms = reference.room_pages() | ({"commands": commands} if commands else {})
    for room, text in rooms.items():
        write_text(source / "package" / f"{room}.rst", text)
    shared = FORMULA_STYLE + labels_style(".bd-article .tag_", "> summary > p")
    write_text(source / "_static" / "shared.css", shared)
    package = [f"package/{room}" for room in rooms]
    write_text(source / "index.rst", pages.index_of(found, package))


def _demand_sphinx() -> None:
    missing = [
        package
        for package in ("sphinx", "myst_nb", "sphinx_book_theme")
        if importlib.util.find_spec(package) is None
    ]
    if missing:
        raise LabError(
            f"{', '.join(missing)} is not installed: run pip install sphinx myst-nb "
            "sphinx-book-theme, or pip install -r requirements-book.txt for the tested versions"
        )


def _sphinx(source: Path, out: Path, trees: Path) -> list[str]:
    from sphinx.application import Sphinx
    from sphinx.errors import SphinxError
    from sphinx.util.docutils import docutils_namespace, patch_docutils

    said = io.StringIO()
    settings = {"html_static_path": [str(HERE / "static"), str(source / "_static")]}
    try:
        with patch_docutils(str(HERE)), docutils_namespace():
            app = Sphinx(
                srcdir=source,
                confdir=HERE,
                outdir=out,
                doctreedir=trees,
                buildername="html",
                confoverrides=settings,
                status=None,
                warning=said,
            )
            app.build()
    except SphinxError as error:
        raise LabError(f"Sphinx could not build the book: {error}") from error
    if app.statuscode:
        raise LabError(f"Sphinx could not build the book: {_COLOURS.sub('', said.getvalue())}")
    return [line for line in _COLOURS.sub("", said.getvalue()).splitlines() if line.strip()]
