"""`show`: the source of the package, as it is now, in the notebook.

A chapter never copies code from the package. It shows the live source, so the two cannot drift.
The output is Markdown with a fenced block: JupyterLab, Colab, GitHub and nbconvert colour it
themselves, each in its own theme.
"""

import ast
import inspect
import textwrap
from pathlib import Path
from typing import Any

from IPython.display import display

from labkit.errors import LabError


def show(*objects: Any, docstring: bool = True) -> None:
    """Display the source of functions, classes, methods or modules with their file and line.

    Args:
        objects: what to show, in order.
        docstring: False leaves docstrings out, for when the code is the point.
    """
    for thing in objects:
        try:
            lines, first = inspect.getsourcelines(inspect.unwrap(thing))
            path = inspect.getsourcefile(inspect.unwrap(thing)) or ""
        except (TypeError, OSError) as error:
            raise LabError(
                f"show({thing!r}) has no Python source; give a function, class or module "
                "that is written in Python."
            ) from error
        code = textwrap.dedent("".join(lines)).rstrip()
        if not docstring:
            code = without_docstrings(code)
        place = f"{_short(path)}, line {max(first, 1)}"
        bundle = {
            "text/markdown": f"<small>{place}</small>\n\n```python\n{code}\n```",
            "text/plain": f"# {place}\n{code}",
        }
        display(bundle, raw=True)


def without_docstrings(code: str) -> str:
    """The same code, its docstrings removed and every other line as written."""
    lines = code.splitlines()
    drop: set[int] = set()
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            continue
        if ast.get_docstring(node) is not None and len(node.body) > 1:
            statement = node.body[0]
            drop |= set(range(statement.lineno, (statement.end_lineno or 0) + 1))
            if (
                statement.end_lineno
                and not "".join(lines[statement.end_lineno : statement.end_lineno + 1]).strip()
            ):
                drop.add(statement.end_lineno + 1)
    return "\n".join(line for number, line in enumerate(lines, 1) if number not in drop)


def _short(path: str) -> str:
    parts = Path(path).parts
    if "labkit" in parts:
        return "/".join(parts[len(parts) - 1 - parts[::-1].index("labkit") :])
    return "this notebook" if "ipykernel" in path or "ipython" in path else Path(path).name
