"""Which function of a file calls which: pairs of functions of one file, gold from the parser.

    def @ close @ ( self ) : self . flush ( ) ; ...      def # flush # ( self ) : ...
        calls                                            (flush, close) none

The example shows the whole caller and the first line of the other function. Easy negatives do not
name it; hard ones do: as an argument, in an assignment, as an attribute that is not called, or as a
function of the same name that belongs to something else.

Source: the module `ast` of Python; the labels are our own choice. Only calls by a plain name of a
function of the module, and of `self.name` inside its class, are resolved.
"""

import ast
import hashlib
from collections.abc import Iterator
from typing import NamedTuple

from labkit.errors import LabError
from labkit.text.relations import Relation

CALLS, NONE = "calls", "none"
LABELS = (CALLS, NONE)
#: A caller of more characters is left out: nobody reads it at once.
LONGEST = 800


class Function(NamedTuple):
    """A function of a file."""

    name: str
    owner: str
    """The class, or nothing."""
    source: str
    """Without decorators, from its own first column."""
    calls: frozenset[tuple[str, str]]
    """(owner, name) of the functions of the file that it calls."""
    mentions: frozenset[str]
    """Every name that it reads, called or not."""


def functions(source: str) -> list[Function]:
    """The functions of a module and the methods of its classes; not those inside functions.

    Raises:
        LabError: the text is no Python.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise LabError(f"the source is no Python ({error}): give one that runs") from error
    lines = source.split("\n")
    return [
        Function(
            node.name,
            owner,
            _text(node, lines),
            frozenset(_calls(node, owner)),
            frozenset(_mentions(node)),
        )
        for owner, node in _defined(tree)
    ]


def _defined(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield "", node
        elif isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield node.name, inner


def _text(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> str:
    own = lines[node.lineno - 1 : node.end_lineno]
    margin = len(own[0]) - len(own[0].lstrip())
    return "\n".join(line[margin:] if not line[:margin].strip() else line for line in own)


def _calls(node: ast.AST, owner: str) -> Iterator[tuple[str, str]]:
    for part in ast.walk(node):
        if not isinstance(part, ast.Call):
            continue
        called = part.func
        if isinstance(called, ast.Name):
            yield "", called.id
        elif owner and isinstance(called, ast.Attribute) and _is_self(called.value):
            yield owner, called.attr


def _is_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


def _mentions(node: ast.AST) -> Iterator[str]:
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            yield part.id
        elif isinstance(part, ast.Attribute):
            yield part.attr


def call_pairs(source: str, document: str = "", most: int = 2, seed: int = 0) -> list[Relation]:
    """Pairs of functions of a file: who calls whom, and as many pairs that do not call.

    Args:
        source: Python code.
        document: its name.
        most: pairs of each label that are kept of one caller, at least 1; of those that do not
            call, those that the caller names come first, then others by chance.
        seed: of the draw.

    Raises:
        LabError: the text is no Python, or most is below 1.
    """
    if most < 1:
        raise LabError(f"most {most} is out of range: choose at least 1 pair")
    found = functions(source)
    names = [(f.owner, f.name) for f in found]
    single = [f for f in found if names.count((f.owner, f.name)) == 1]
    pairs = []
    for caller in single:
        others = [f for f in single if f is not caller and f.name != caller.name]
        if len(caller.source) > LONGEST:
            continue

        def chance(other: Function, caller: Function = caller) -> tuple[bool, bytes]:
            key = f"{seed} {document} {caller.owner}.{caller.name} {other.owner}.{other.name}"
            return other.name not in caller.mentions, hashlib.sha256(key.encode()).digest()

        called = [f for f in others if (f.owner, f.name) in caller.calls]
        rest = [f for f in others if (f.owner, f.name) not in caller.calls]
        held = sorted(called, key=chance)[:most]
        pairs += [_pair(caller, other, CALLS, document) for other in held]
        negatives = sorted(rest, key=chance)[: len(held) or (1 if _names_any(caller, rest) else 0)]
        pairs += [_pair(caller, other, NONE, document) for other in negatives]
    return pairs


def _names_any(caller: Function, others: list[Function]) -> bool:
    return any(other.name in caller.mentions for other in others)


def _pair(caller: Function, other: Function, label: str, document: str) -> Relation:
    signature = other.source.split("\n")[0]
    if other.owner:
        signature = f"class {other.owner}: {signature}"
    head = f"class {caller.owner}: " if caller.owner else ""
    text = f"{head}{caller.source}\n{signature}"
    first = text.index(f"def {caller.name}") + len("def ")
    second = text.index(f"def {other.name}", len(head) + len(caller.source)) + len("def ")
    return Relation(
        text,
        (first, first + len(caller.name)),
        (second, second + len(other.name)),
        label,
        document,
    )


def code_calls(
    validation: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
    per_file: int = 12,
    files: int | None = None,
) -> dict[str, list[Relation]]:
    """The task on `python_source`, in its three splits by file.

    Args:
        validation, test, seed: as in `corpora.load`.
        per_file: pairs that are kept of a file, at least 1, drawn by their text and the seed.
        files: of each split that are read, the first ones; None: all.
    """
    from labkit.text import corpora

    splits = corpora.load("python_source", validation=validation, test=test, seed=seed)
    rows: dict[str, list[Relation]] = {}
    for split in corpora.SPLITS:
        rows[split] = []
        part = splits[split][:files]
        for text, path in zip(part["text"], part["path"], strict=True):
            try:
                pairs = call_pairs(text, path, seed=seed)
            except LabError:
                continue  # kept in the library to be broken

            def chance(pair: Relation) -> bytes:
                return hashlib.sha256(f"{seed} {pair.text} {pair.second}".encode()).digest()

            rows[split] += sorted(pairs, key=chance)[:per_file]
    return rows
