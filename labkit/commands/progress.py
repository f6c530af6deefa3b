"""`labkit progress`: which exercises are solved in your own copies of the chapters.

    my-notebooks/03_attention.ipynb ── what `check` said there, as saved ──┐
    the course's exercises ────────────────────────────────────────────────┴──> lines, CSV

Nothing is executed and nothing leaves the folder: save a notebook, and its verdicts count.
"""

import csv
import io
from pathlib import Path
from typing import NamedTuple

from labkit import course
from labkit.atomic import write_text
from labkit.commands.options import Progress
from labkit.commands.shell import say
from labkit.errors import LabError


class Row(NamedTuple):
    """One exercise of the course."""

    chapter: str
    """Such as "03 · Attention"."""
    exercise: str
    """Such as "03.2"."""
    title: str
    status: str
    """"passed", "failed" or "not attempted", the last verdict that was saved."""


def progress(options: Progress) -> list[Row]:
    """Print how far each chapter is, and what comes next; `--csv` writes all of it.

    Raises:
        LabError: there is no such folder, or none of the chapters in it.
    """
    rows = rows_of(options.folder)
    for name in dict.fromkeys(row.chapter for row in rows):
        own = [row for row in rows if row.chapter == name]
        still = next((f"next: {r.exercise} {r.title}" for r in own if r.status != "passed"), "")
        say(f"{name:<32}{_solved(own):>9}   {still}".rstrip())
    say(f"{'in all':<32}{_solved(rows):>9}")
    if options.csv is not None:
        write_text(options.csv, _as_csv(rows))
        say(f"{options.csv}: {len(rows)} exercises")
    return rows


def rows_of(folder: Path) -> list[Row]:
    """Every exercise of the course, with its verdict in the notebooks of a folder."""
    from labkit.notebook.exercises import exercises

    if not folder.is_dir():
        raise LabError(f"{folder} is no folder: labkit lab {folder} puts the chapters there")
    rows, found = [], 0
    for chapter in course.chapters():
        mine = folder / chapter.path.name
        said = course.verdicts_of(mine) if mine.is_file() else {}
        found += mine.is_file()
        title = chapter.title
        for number, it in exercises(chapter.number).items():
            rows.append(Row(title, number, it.title, said.get(number, "not attempted")))
    if not found:
        raise LabError(f"{folder} holds none of the chapters: labkit lab {folder} puts them there")
    return rows


def _solved(rows: list[Row]) -> str:
    return f"{sum(row.status == 'passed' for row in rows)} of {len(rows)}"


def _as_csv(rows: list[Row]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Row._fields)
    writer.writerows(rows)
    return text.getvalue()
