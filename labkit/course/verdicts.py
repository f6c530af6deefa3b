"""What the exercises said, collected from the notebooks that learners hand in.

    check("03.2", answer) ──> shown, and in the cell's output as JSON ──> saved with the notebook
    many notebooks ──> `collect` ──> a row for each exercise ──> a table, or CSV for a spreadsheet

A verdict is what the learner's own machine wrote into the file; to be sure of it, run the notebook.
"""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from labkit.course.chapter import read_notebook
from labkit.errors import LabError

#: The MIME type under which a cell's output carries the verdict of `labkit.notebook.check`.
VERDICT_MIME = "application/vnd.labkit.verdict+json"
STATUSES = ("passed", "failed", "not attempted")


class Row(NamedTuple):
    """One exercise in one notebook."""

    notebook: str
    exercise: str
    """Such as "03.2"."""
    status: str
    """One of `STATUSES`: the last verdict in the order of the cells; or "unreadable", of a file
    among others that is no notebook."""


def verdicts_of(notebook: Path | str) -> dict[str, str]:
    """Exercise -> status of one notebook; the last verdict of each counts.

    Raises:
        LabError: the file is no notebook.
    """
    found: dict[str, str] = {}
    for cell in read_notebook(Path(notebook)).cells:
        for output in cell.get("outputs", []):
            said = output.get("data", {}).get(VERDICT_MIME)
            if not isinstance(said, dict):
                continue
            number, status = str(said.get("exercise")), said.get("status")
            # The file comes from outside: only what `check` can have written is taken from it.
            if re.fullmatch(r"\d\d\.\d{1,2}", number) and status in STATUSES:
                found[number] = str(status)
    return dict(sorted(found.items()))


def collect(paths: Iterable[Path | str]) -> list[Row]:
    """One row for each exercise of each notebook.

    Args:
        paths: notebooks, or folders that are searched for them, subfolders included.

    Raises:
        LabError: a path does not exist, no notebook is there, or the only one cannot be read.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise LabError(f"{path} does not exist: give a notebook or a folder of them")
        inside = sorted(path.rglob("*.ipynb")) if path.is_dir() else [path]
        files += [file for file in inside if ".ipynb_checkpoints" not in file.parts]
    if not files:
        raise LabError("there is no notebook in what was given: give files that end in .ipynb")
    rows = []
    for file in files:
        try:
            rows += [Row(str(file), *said) for said in verdicts_of(file).items()]
        except LabError:
            if len(files) == 1:
                raise
            rows.append(Row(str(file), "", "unreadable"))  # one bad file does not hide the others
    return rows


def as_csv(rows: Sequence[Row]) -> str:
    """The rows with a heading, for a spreadsheet."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Row._fields)
    # A cell that begins with = or the like would be run by a spreadsheet.
    writer.writerows((re.sub(r"^([=+\-@\t\r])", r"'\1", row.notebook), *row[1:]) for row in rows)
    return text.getvalue()


def as_lines(rows: Sequence[Row]) -> list[str]:
    """For each notebook how many exercises have passed, and which have not."""
    lines = []
    for notebook in dict.fromkeys(row.notebook for row in rows):
        own = [row for row in rows if row.notebook == notebook]
        if own[0].status == "unreadable":
            lines.append(f"{notebook}  is no readable notebook")
            continue
        passed = sum(row.status == "passed" for row in own)
        open_ones = [f"{row.exercise} {row.status}" for row in own if row.status != "passed"]
        left = f": {', '.join(open_ones)}" if open_ones else ""
        lines.append(f"{notebook}  {passed} of {len(own)} passed{left}")
    return lines
