"""The source of a public name as text: what a chapter shows of the package, and where it stands.

    thing ──> name, file, code ──> Markdown and plain text      (`rendered`)
    name  ──> thing                                             (`find`)

A notebook's output remembers the name, so that `python -m labkit.course stamp` can renew what it
shows when the package moves on, and a test notices when nobody did. It says the file and no line
number, which would change whenever something above it does.
"""

import ast
import importlib
import inspect
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

from labkit.errors import LabError


def rendered(thing: Any, docstring: bool = True) -> dict[str, str]:
    """Markdown (a fenced block) and plain text of the source of a function, class or module.

    Args:
        thing: what to show.
        docstring: False leaves docstrings out, for when the code is the point.

    Raises:
        LabError: it has no Python source.
    """
    code, path = source_of(thing)
    if not docstring:
        code = without_docstrings(code)
    place = _short(path)
    return {
        "text/markdown": f"<small>{place}</small>\n\n```python\n{code}\n```",
        "text/plain": f"# {place}\n{code}",
    }


def source_of(thing: Any) -> tuple[str, str]:
    """The source of a function, class or module, not indented, and the file it stands in.

    Raises:
        LabError: it has no Python source.
    """
    thing = inspect.unwrap(thing) if callable(thing) else thing
    try:
        lines, _ = inspect.getsourcelines(thing)
        path = inspect.getsourcefile(thing) or ""
    except (TypeError, OSError) as error:
        raise LabError(
            f"show({thing!r}) has no Python source; give a function, class or module "
            "that is written in Python."
        ) from error
    return textwrap.dedent("".join(lines)).rstrip(), path


def name_of(thing: Any) -> str | None:
    """The full name of something of this package (`labkit.training.loop.train`), or None."""
    if isinstance(thing, ModuleType):
        name = thing.__name__
    else:
        thing = inspect.unwrap(thing) if callable(thing) else thing
        module, inside = getattr(thing, "__module__", ""), getattr(thing, "__qualname__", "")
        name = f"{module}.{inside}"
    return name if name.split(".")[0] == "labkit" and "<locals>" not in name else None


def find(name: str) -> Any:
    """The thing of a full name: the inverse of `name_of`.

    Raises:
        LabError: there is no such thing any more.

    >>> find("labkit.course.listing.find").__name__
    'find'
    """
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            thing: Any = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            thing = getattr(thing, part, None)
        if isinstance(thing, property):
            thing = thing.fget  # its name is the property's
        if thing is not None:
            return thing
        break
    raise LabError(f"{name} does not exist: correct the chapter that shows it and execute it again")


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
