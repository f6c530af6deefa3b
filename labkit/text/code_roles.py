"""What a name does in Python code, as tags on its tokens: gold from the parser, for nothing.

    @            functools    .            wraps        (  f  )
    O            B-DECORATOR  I-DECORATOR  I-DECORATOR  O  O  O
    def inner ( path ) :  return os . path . join ( path , key = path )
        B-FUNCTION            B-CALL I I  I I       O    B-KEYWORD
                B-PARAMETER

The same name has many roles: `path` is a parameter here, a keyword there, a module elsewhere; who
looks at the word alone cannot tell. A dotted name is one span of several tokens, so where a span
goes on is a question of its own.

    source ──tokenize──> words        names, signs, numbers; "…" for a string, ¶ for the line's end
           ──ast───────> roles of the names, by their place in the text
           ──windows of logical lines──> rows, all of a file in one split

Source: the modules `ast` and `tokenize` of Python; the labels are our own choice.
"""

import ast
import hashlib
import io
import keyword
import tokenize
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from labkit.errors import LabError
from labkit.text.bio import OUTSIDE, Span, Tagged, tag_names, tags_of

ROLES = (
    "ATTRIBUTE", "BASE", "CALL", "CLASS", "DECORATOR", "EXCEPTION", "FUNCTION", "IMPORT", "KEYWORD",
    "MODULE", "PARAMETER", "VARIABLE",
)  # fmt: skip
"""ATTRIBUTE: a dotted name that is read or set; BASE: of a class; CALL: what is called; EXCEPTION:
what is raised or caught; IMPORT: a name that an import brings; KEYWORD: of an argument; MODULE:
what an import reads; VARIABLE: a name that is bound. A plain name that is read has no role."""
TAGS = tag_names(ROLES)

STRING, LINE_END = '"…"', "¶"
#: Logical lines with more words are tables, and left out.
LONGEST_LINE = 100
#: Characters that are kept of a number.
LONGEST_NUMBER = 20
_SKIPPED = {
    tokenize.COMMENT, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING,
    tokenize.ENDMARKER,
}  # fmt: skip
_F_STRING = getattr(tokenize, "FSTRING_START", None), getattr(tokenize, "FSTRING_END", None)

Place = tuple[int, int]


class Token(NamedTuple):
    """A word of code and where it stands: line from 1, character from 0."""

    word: str
    start: Place
    end: Place
    is_name: bool


def tokens(source: str) -> list[Token]:
    """The tokens of a source text, as words.

    Raises:
        LabError: the text is no Python.
    """
    found: list[Token] = []
    opened: list[Place] = []  # f-strings that have not ended: from Python 3.12 on they have parts
    try:
        for kind, text, start, end, _ in tokenize.generate_tokens(io.StringIO(source).readline):
            if kind == _F_STRING[0]:
                opened.append(start)
            elif opened and kind == _F_STRING[1]:
                begun = opened.pop()
                if not opened:
                    found.append(Token(STRING, begun, end, False))
            elif opened or kind in _SKIPPED:
                continue
            elif kind == tokenize.NEWLINE:
                found.append(Token(LINE_END, start, end, False))
            elif kind == tokenize.STRING:
                found.append(Token(STRING, start, end, False))
            elif kind == tokenize.NUMBER:
                found.append(Token(text[:LONGEST_NUMBER], start, end, False))
            else:
                name = kind == tokenize.NAME and not keyword.iskeyword(text)
                found.append(Token(text, start, end, name))
    except (tokenize.TokenError, SyntaxError) as error:
        raise LabError(f"the source is no Python ({error}): give one that runs") from error
    return found


def role_spans(source: str) -> tuple[list[Token], list[Span]]:
    """The tokens of a source text and the spans of those that have a role, in their order.

    Raises:
        LabError: the text is no Python.
    """
    found = tokens(source)
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise LabError(f"the source is no Python ({error}): give one that runs") from error
    return found, _Roles(source, found).of(tree)


def code_rows(source: str, document: str = "", lines: int = 12) -> list[Tagged]:
    """A source text as rows of so many logical lines each; one without any role is left out.

    Args:
        source: Python code.
        document: its name.
        lines: of a row, at least 1; fewer at the end.

    Raises:
        LabError: the text is no Python.
    """
    found, spans = role_spans(source)
    tags = tags_of(spans, len(found))
    ends = [i + 1 for i, token in enumerate(found) if token.word == LINE_END]
    starts = [0, *ends][: len(ends)]
    kept = [(a, b) for a, b in zip(starts, ends, strict=True) if b - a <= LONGEST_LINE]
    rows = []
    for first in range(0, len(kept), lines):
        places = [i for a, b in kept[first : first + lines] for i in range(a, b)]
        own = [tags[i] for i in places]
        if any(tag != OUTSIDE for tag in own):
            rows.append(Tagged([found[i].word for i in places], own, document))
    return rows


def code_roles(
    validation: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
    lines: int = 12,
    per_file: int = 6,
    files: int | None = None,
) -> dict[str, list[Tagged]]:
    """The task on `python_source`: rows of train, validation and test.

    A file's rows are all on one side; a row that stands in several files is kept once, in the
    first split that has it (test, validation, train).

    Args:
        validation, test, seed: as in `corpora.load`.
        lines: as in `code_rows`.
        per_file: rows that are kept of a file, at least 1, drawn by their content and the seed.
        files: of each split that are read, the first ones; None: all.
    """
    from labkit.text import corpora

    splits = corpora.load("python_source", validation=validation, test=test, seed=seed)
    seen: set[tuple[str, ...]] = set()
    rows: dict[str, list[Tagged]] = {}
    for split in ("test", "validation", "train"):
        rows[split] = []
        part = splits[split][:files]
        for text, path in zip(part["text"], part["path"], strict=True):
            for row in _drawn(text, path, lines, per_file, seed):
                if (words := tuple(row.words)) not in seen:
                    seen.add(words)
                    rows[split].append(row)
    return {split: rows[split] for split in corpora.SPLITS}


def _drawn(text: str, path: str, lines: int, count: int, seed: int) -> list[Tagged]:
    try:
        rows = code_rows(text, path, lines)
    except LabError:
        return []  # kept in the library to be broken, such as a test of lib2to3

    def chance(row: Tagged) -> bytes:
        return hashlib.sha256(f"{seed} {' '.join(row.words)}".encode()).digest()

    drawn = sorted(rows, key=chance)[:count]
    return [row for row in rows if any(row is other for other in drawn)]


class _Roles:
    """Finds the spans of one tree; what has a role already keeps it."""

    def __init__(self, source: str, tokens: Sequence[Token]):
        self.lines = source.split("\n")
        self.tokens = tokens
        self.starts = {token.start: i for i, token in enumerate(tokens)}
        self.ends = {token.end: i for i, token in enumerate(tokens)}
        self.taken: set[int] = set()
        self.spans: list[Span] = []

    def of(self, tree: ast.AST) -> list[Span]:
        nodes = list(_walk(tree))
        for find in (self._expected, self._called, self._dotted, self._named):
            for node in nodes:
                find(node)
        return sorted(self.spans)

    def _expected(self, node: ast.AST) -> None:
        """Decorators, bases, exceptions: what a call or an attribute would be elsewhere."""
        for decorator in getattr(node, "decorator_list", []):
            self._name(decorator, "DECORATOR")
        for base in getattr(node, "bases", []):
            self._name(base, "BASE")
        if isinstance(node, ast.ExceptHandler) and node.type is not None:
            caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            for kind in caught:
                self._name(kind, "EXCEPTION")
            last = self._end(node.type)
            if node.name is not None and last is not None:
                self._add(last + 2, last + 3, "VARIABLE")  # after `as`
        if isinstance(node, ast.Raise) and node.exc is not None:
            self._name(node.exc, "EXCEPTION")

    def _called(self, node: ast.AST) -> None:
        if isinstance(node, ast.Call):
            self._name(node.func, "CALL")

    def _dotted(self, node: ast.AST) -> None:
        if isinstance(node, ast.Attribute):
            self._name(node, "ATTRIBUTE")

    def _named(self, node: ast.AST) -> None:
        here = self._start(node)
        if here is None:
            return
        if isinstance(node, ast.FunctionDef):
            self._add(here + 1, here + 2, "FUNCTION")
        elif isinstance(node, ast.AsyncFunctionDef):
            self._add(here + 2, here + 3, "FUNCTION")
        elif isinstance(node, ast.ClassDef):
            self._add(here + 1, here + 2, "CLASS")
        elif isinstance(node, ast.arg):
            self._add(here, here + 1, "PARAMETER")
        elif isinstance(node, ast.keyword) and node.arg is not None:
            self._add(here, here + 1, "KEYWORD")
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            self._add(here, here + 1, "VARIABLE")
        elif isinstance(node, ast.Import):
            for alias in node.names:
                self._import(alias, "MODULE")
        elif isinstance(node, ast.ImportFrom):
            first = here + 1
            while self.tokens[first].word in (".", "..."):
                first += 1
            if node.module is not None:
                self._add(first, self._forwards(first), "MODULE")
            for alias in node.names:
                self._import(alias, "IMPORT")

    def _import(self, alias: ast.alias, role: str) -> None:
        first = self._start(alias)
        if first is None:
            return
        end = self._forwards(first)
        self._add(first, end, role)
        if alias.asname is not None:
            self._add(end + 1, end + 2, "IMPORT")

    def _name(self, node: ast.AST, role: str) -> None:
        """The name, or the dotted name, that an expression is or that it calls or indexes."""
        while isinstance(node, ast.Call | ast.Subscript):
            node = node.func if isinstance(node, ast.Call) else node.value
        last = self._end(node)
        if isinstance(node, ast.Name | ast.Attribute) and last is not None:
            self._add(self._backwards(last), last + 1, role)

    def _backwards(self, place: int) -> int:
        """Where the dotted name begins whose last token stands at a place."""
        while place >= 2 and self.tokens[place - 1].word == "." and self.tokens[place - 2].is_name:
            place -= 2
        return place

    def _forwards(self, place: int) -> int:
        """After the dotted name that begins at a place."""
        while (
            place + 2 < len(self.tokens)
            and self.tokens[place + 1].word == "."
            and self.tokens[place + 2].is_name
        ):
            place += 2
        return place + 1

    def _add(self, start: int, end: int, role: str) -> None:
        inside = range(start, end)
        if not self.taken & set(inside) and self.tokens[start].is_name:
            self.taken |= set(inside)
            self.spans.append(Span(start, end, role))

    def _start(self, node: ast.AST) -> int | None:
        line, column = getattr(node, "lineno", None), getattr(node, "col_offset", None)
        return None if line is None else self.starts.get(self._place(line, column))

    def _end(self, node: ast.AST) -> int | None:
        line, column = getattr(node, "end_lineno", None), getattr(node, "end_col_offset", None)
        return None if line is None else self.ends.get(self._place(line, column))

    def _place(self, line: int, column: int | None) -> Place:
        """The parser counts bytes of a line, the tokenizer characters."""
        text = self.lines[line - 1]
        if text.isascii():
            return line, column or 0
        return line, len(text.encode()[:column].decode(errors="replace"))


def _walk(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node, outer ones first; not those inside f-strings, which are one word here."""
    level = [tree]
    while level:
        yield from level
        level = [
            child
            for node in level
            if not isinstance(node, ast.JoinedStr)
            for child in ast.iter_child_nodes(node)
        ]
