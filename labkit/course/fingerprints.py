"""Outputs tied to code: what a committed run ran and showed, as hashes in its notebook.

    execute  ──>  notebook.metadata.labkit = {"cells": sha256, "shown": {full name: sha256}}
    stale    ──>  which of these no longer agrees with the cells and the package as they are

The hashes are of what code means (`syntax`): comments and formatting do not count. Only a run may
store a fingerprint; writing one by hand ties outputs to code that did not make them.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from labkit.course import listing, syntax
from labkit.course.chapter import read_notebook
from labkit.errors import LabError


def fingerprint(notebook: Any) -> dict[str, Any]:
    """What an executed notebook ran and showed.

    Args:
        notebook: as nbformat reads it, with its outputs.

    Returns:
        {"cells": a hash over its code cells, "shown": {full name: a hash of its source}}. The cell
        tagged `colab` is left out, because stamping writes it.
    """
    cells = [
        syntax.canonical(cell.source)
        for cell in notebook.cells
        if cell.cell_type == "code" and "colab" not in cell.metadata.get("tags", [])
    ]
    shown = {name: _of_source(text) for name, text in _shown(notebook)}
    return {"cells": _sha256(json.dumps(cells)), "shown": dict(sorted(shown.items()))}


def stale(path: Path | str) -> list[str]:
    """How a notebook's code and the package differ from those of its committed run.

    Returns:
        One sentence for each difference; none if the outputs belong to the code.
    """
    notebook = read_notebook(Path(path))
    name = Path(path).stem
    remedy = f"run `python -m labkit.course execute {name[:2]}`, then `stamp`"
    stored = notebook.metadata.get("labkit", {})
    if "cells" not in stored:
        return [f"{name} has no fingerprint of its run: {remedy}."]
    now = fingerprint(notebook)
    found = []
    if now["cells"] != stored["cells"]:
        found.append(f"{name}: the code cells are not those that made the outputs: {remedy}.")
    before = stored.get("shown", {})
    for thing in sorted({*now["shown"], *before}):
        if thing not in before or before[thing] != _of_package(thing):
            found.append(f"{name}: {thing} is not what the run showed: {remedy}.")
    return found


def _shown(notebook: Any) -> Iterator[tuple[str, str]]:
    """Full name and code of every source of the package in the outputs, as the run found it."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if origin := output.get("metadata", {}).get("labkit"):
                yield origin["shows"], output.data["text/plain"]


def _of_package(name: str) -> str | None:
    """The hash of what a full name means today; None if there is no such thing any more."""
    try:
        return _of_source(listing.source_of(listing.find(name))[0])
    except LabError:
        return None


def _of_source(code: str) -> str:
    return _sha256(syntax.canonical(code, docstrings=False))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
