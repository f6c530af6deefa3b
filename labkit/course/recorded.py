"""Recorded runs: what a chapter's experiment reaches with more, beside the live one of minutes.

    labkit run 08 --profile hour        the chapter's `hour` sizes, on the machine at hand
    python -m labkit.course record 08   the same, and its rows go into data/recorded/
    lab.recorded("prose", rows)         the committed rows; under `hour` those of the live run

What takes a GPU is recorded under the profile `gpu` (`record 10 --profile gpu`).

A file is JSON lines: a header that says what was run, where and when, then a row for each line of a
table or point of a curve. `stale_recordings` compares the header with the chapter's sizes of today.
"""

import ast
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from labkit.atomic import write_text
from labkit.course.chapter import Chapter, notebooks_folder, read_notebook
from labkit.course.syntax import is_sizes
from labkit.errors import LabError

#: The environment variable that names the folder in which a run of an hour leaves its records.
KEEP = "LABKIT_KEEP_RECORDED"


class Recorded(NamedTuple):
    """One recorded run."""

    header: dict[str, Any]
    """chapter, name, profile, command, sizes, seed, device, precision, threads, date, torch.

    And the time it took: cpu_seconds_per_thread (true also of a run that was stopped for a while)
    or, on a GPU, wall_seconds.
    """
    rows: list[dict[str, Any]]

    @property
    def label(self) -> str:
        """What must stand beside it: recorded when, where, in how long, and by which command."""
        h = self.header
        on_wall = "wall_seconds" in h
        minutes = round(h["wall_seconds" if on_wall else "cpu_seconds_per_thread"] / 60)
        took = f"{minutes} minute{'s' * (minutes != 1)}"
        threads = f"{h['threads']} thread{'s' * (h['threads'] != 1)}"
        if not on_wall:
            took += " of CPU time" + " on each" * (h["threads"] != 1)
        return (
            f"Recorded on {h['date']} ({h['device']}, {threads}, {h['precision']}), "
            f"{took}; repeat it with: {h['command']}"
        )


def recorded_folder() -> Path:
    """Where the committed runs are: data/recorded of the checkout, or what a wheel installed."""
    return notebooks_folder().parent / "data" / "recorded"


def write_recorded(folder: Path, header: Mapping[str, Any], rows: Sequence[Mapping]) -> Path:
    """Write one recorded run, whole or not at all.

    Args:
        folder: where to; made if needed.
        header: at least chapter and name.
        rows: of numbers and strings; at least one.

    Raises:
        LabError: no rows, or a value that JSON has no form for.
    """
    if not rows:
        raise LabError(f"the recorded run {header['name']!r} has no rows: give at least one")
    path = folder / f"{header['chapter']}_{header['name']}.jsonl"
    try:
        lines = [json.dumps(line, allow_nan=False) for line in (dict(header), *map(dict, rows))]
    except (TypeError, ValueError) as error:
        raise LabError(
            f"the recorded run {header['name']!r} cannot be written ({error}): its rows must hold "
            "finite numbers and strings"
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, "\n".join(lines) + "\n")
    return path


def read_recorded(chapter: str, name: str, folder: Path | None = None) -> Recorded:
    """A committed run.

    Args:
        chapter: two digits, such as "08".
        name: what the chapter calls it.
        folder: None takes `recorded_folder`.

    Raises:
        LabError: it was never recorded, or the file is damaged.
    """
    path = (folder or recorded_folder()) / f"{chapter}_{name}.jsonl"
    if not path.exists():
        raise LabError(
            f"{path} does not exist: record it with `python -m labkit.course record {chapter}` "
            "(with --profile gpu what takes a GPU)"
        )
    try:
        header, *rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        if not (isinstance(header, dict) and rows and all(isinstance(r, dict) for r in rows)):
            raise ValueError("a header and at least one row are needed")
    except ValueError as error:
        raise LabError(
            f"{path} is damaged ({error}): record it again with "
            f"`python -m labkit.course record {chapter}`"
        ) from error
    return Recorded(header, rows)


def stale_recordings(chapter: Chapter, folder: Path | None = None) -> list[str]:
    """A sentence for each recorded run of a chapter whose sizes are not those it names now."""
    place = folder or recorded_folder()
    files = sorted(place.glob(f"{chapter.number}_*.jsonl")) if place.exists() else []
    found = []
    for path in files:
        header = read_recorded(chapter.number, path.stem.split("_", 1)[1], place).header
        profile = header.get("profile", "hour")
        now, then = sizes_of(chapter, profile), header.get("sizes", {})
        for key in sorted(set(now) | set(then)):
            if now.get(key) != then.get(key):
                found.append(
                    f"{path} was recorded with {key} = {then.get(key)!r}, {chapter.path.name} now "
                    f"says {now.get(key)!r}: run `python -m labkit.course record {chapter.number} "
                    f"--profile {profile}`"
                )
    return found


def sizes_of(chapter: Chapter, profile: str) -> dict[str, Any]:
    """The sizes of a profile as they stand in a chapter; `hour` is `cpu` but for what it names.

    Raises:
        LabError: they are not written as plain values.
    """
    for cell in read_notebook(chapter.path).cells:
        if cell.cell_type != "code" or "sizes(" not in cell.source:
            continue
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.Call) and is_sizes(node.func):
                given = {k.arg: k.value for k in node.keywords}
                names = ("cpu", "hour") if profile == "hour" else (profile,)
                parts = [_plain(given[name], chapter) for name in names if name in given]
                return json.loads(json.dumps({k: v for part in parts for k, v in part.items()}))
    return {}


def _plain(node: ast.expr, chapter: Chapter) -> dict[str, Any]:
    """dict(a=1, b=(2, 3)) as a value."""
    try:
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "dict":
            return {str(k.arg): ast.literal_eval(k.value) for k in node.keywords}
        return dict(ast.literal_eval(node))
    except ValueError as error:
        raise LabError(
            f"{chapter.path.name} computes a size: write sizes as plain values, so that recorded "
            "runs can be compared with them"
        ) from error
