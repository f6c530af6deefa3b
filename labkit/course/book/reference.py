"""Pages about the package, made from its docstrings: one for each room, in the order of rooms.

    labkit/models/__init__.pyi   from .attention import causal_mask as causal_mask
        ──> package/models.rst   attention: what its file says of itself, then `causal_mask`

What a room offers stands in its stub, under the file that holds it. Without a stub it offers its
`__all__`, or what its one file defines. The page of `commands` is what `labkit --help` says; the
room itself writes it (`labkit.commands.manual`).
"""

import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType

import labkit

_OFFERED = re.compile(r"^from \.(?P<file>[\w.]*) import (?P<name>\w+) as \w+$", re.MULTILINE)


def room_pages() -> dict[str, str]:
    """The room's name to its page in reStructuredText."""
    return {room: _page(f"labkit.{room}") for room in labkit.ROOMS if room != "commands"}


def offered(module: ModuleType) -> dict[str, list[str]]:
    """The files of a room in order, each with the public names that it holds.

    Args:
        module: a room, or a package inside one.

    Returns:
        Full name of a file -> names in it; packages inside a room stand there without names.
    """
    stub = Path(module.__file__ or "").with_name("__init__.pyi")
    files: dict[str, list[str]] = {}
    if Path(module.__file__ or "").name == "__init__.py" and stub.exists():
        for file, name in _OFFERED.findall(stub.read_text(encoding="utf-8")):
            place = f"{module.__name__}.{file or name}"
            names = files.setdefault(place, [])
            if file:
                names.append(name)
        return files
    public = getattr(module, "__all__", None) or _defined(module)
    for name in public:
        thing = getattr(module, name)
        if not inspect.ismodule(thing):
            files.setdefault(getattr(thing, "__module__", module.__name__), []).append(name)
        else:
            files.setdefault(thing.__name__, [])
    return files


def _defined(module: ModuleType) -> list[str]:
    return [
        name
        for name, thing in vars(module).items()
        if not name.startswith("_")
        and callable(thing)
        and getattr(thing, "__module__", None) == module.__name__
    ]


def _page(room: str) -> str:
    module = importlib.import_module(room)
    lines = [*_heading(room, "="), _directive("automodule", room)]
    for file, names in offered(module).items():
        lines += _file(file, names, room)
    return "\n".join(lines)


def _file(file: str, names: list[str], room: str) -> list[str]:
    """A section about a file; a package inside the room lists its own files."""
    module = importlib.import_module(file)
    lines = []
    if file != room:
        lines += [*_heading(file.removeprefix(f"{room}."), "-"), _directive("automodule", file)]
    if names or file == room:
        return lines + _names(file, names)
    if hasattr(module, "__path__"):
        for inner, inside in offered(module).items():
            lines += [f"**{inner.removeprefix(f'{room}.')}**", ""]
            lines += [_directive("automodule", inner), *_names(inner, inside)]
        return lines
    return lines + _names(file, list(getattr(module, "__all__", None) or _defined(module)))


def _names(file: str, names: list[str]) -> list[str]:
    module = importlib.import_module(file)
    return [_directive(_kind(getattr(module, name)), f"{file}.{name}") for name in names]


def _kind(thing: object) -> str:
    if inspect.isclass(thing):
        return "autoclass"
    return "autofunction" if inspect.isroutine(thing) else "autodata"


def _directive(kind: str, name: str) -> str:
    options = {"autoclass": "   :members:\n", "autodata": "   :no-value:\n"}
    return f".. {kind}:: {name}\n{options.get(kind, '')}"


def _heading(text: str, line: str) -> list[str]:
    return [text, line * len(text), ""]
