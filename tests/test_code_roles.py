"""Roles of names in code: by hand on small sources, and splits of the standard library."""

import pytest

from labkit.errors import LabError
from labkit.text import bio
from labkit.text.code_roles import (
    LINE_END,
    ROLES,
    STRING,
    TAGS,
    code_roles,
    code_rows,
    role_spans,
    tokens,
)


def roles(source: str) -> list[str]:
    """Name and role of each span, in their order."""
    found, spans = role_spans(source)
    return [f"{' '.join(t.word for t in found[a:b])} {role}" for a, b, role in spans]


def test_definitions_calls_and_dotted_names():
    source = '''
import os.path as p, sys
from collections.abc import Mapping as M
from . import cousin
from ..deep.er import *

@functools.wraps(f)
@property
class Box(M, typing.Generic[T], metaclass=abc.ABCMeta):
    """Words."""
    size: int = 3
    async def open(self, path, *rest, mode="r", **more) -> os.PathLike:
        with p.join(path, key=mode) as file:
            self.inner.file = file
            return os.path.join(self.root, rest[0].name).strip()
'''
    assert roles(source) == [
        "os . path MODULE",
        "p IMPORT",
        "sys MODULE",
        "collections . abc MODULE",
        "Mapping IMPORT",
        "M IMPORT",
        "cousin IMPORT",
        "deep . er MODULE",
        "functools . wraps DECORATOR",
        "property DECORATOR",
        "Box CLASS",
        "M BASE",
        "typing . Generic BASE",
        "metaclass KEYWORD",
        "abc . ABCMeta ATTRIBUTE",
        "size VARIABLE",
        "open FUNCTION",
        "self PARAMETER",
        "path PARAMETER",
        "rest PARAMETER",
        "mode PARAMETER",
        "more PARAMETER",
        "os . PathLike ATTRIBUTE",
        "p . join CALL",
        "key KEYWORD",
        "file VARIABLE",
        "self . inner . file ATTRIBUTE",
        "os . path . join CALL",
        "self . root ATTRIBUTE",
        "name ATTRIBUTE",
        "strip CALL",
    ]


def test_exceptions_loops_and_lambdas():
    source = (
        "try:\n    x = [y for y in z]\n"
        "except (OSError, socket.error) as error:\n    raise ValueError(x) from error\n"
        "except KeyError:\n    raise\n"
        "kinds = ValueError(1), lambda a, b=2: a\nfor i, self.j in k: del i\nn += 1\n"
    )
    assert roles(source) == [
        "x VARIABLE",
        "y VARIABLE",
        "OSError EXCEPTION",
        "socket . error EXCEPTION",
        "error VARIABLE",
        "ValueError EXCEPTION",
        "KeyError EXCEPTION",
        "kinds VARIABLE",
        "ValueError CALL",
        "a PARAMETER",
        "b PARAMETER",
        "i VARIABLE",
        "self . j ATTRIBUTE",
        "n VARIABLE",
    ]


def test_the_same_name_in_five_roles():
    source = "import key\ndef key(key):\n    key = key.key(key=key)\n"
    assert roles(source) == [
        "key MODULE",
        "key FUNCTION",
        "key PARAMETER",
        "key VARIABLE",
        "key . key CALL",
        "key KEYWORD",
    ]


def test_places_hold_after_letters_of_several_bytes_and_across_lines():
    assert roles('é = "ü"; x.y(ß=z)\n') == ["é VARIABLE", "x . y CALL", "ß KEYWORD"]
    assert roles("(a\n   .b\n   .c())\n") == ["a . b . c CALL"]
    assert roles("f(1)(2).g\n") == ["f CALL", "g ATTRIBUTE"]


def test_strings_are_one_word_and_comments_none_whatever_is_inside():
    source = "x = f'{a.b(c=1)} {d!r:>{w}}' # y = 2\nz = 'long ' 'text' + b''\n"
    words = [token.word for token in tokens(source)]
    assert words == ["x", "=", STRING, LINE_END, "z", "=", STRING, STRING, "+", STRING, LINE_END]
    assert roles(source) == ["x VARIABLE", "z VARIABLE"]


def test_rows_are_whole_logical_lines():
    source = (
        "a = 1\n\nif a:\n    b(c,\n      d)\n# nothing\n1 + 1\nt = [" + "1, " * 60 + "]\ne = 2\n"
    )
    rows = code_rows(source, "here.py", lines=2)
    assert [" ".join(row.words) for row in rows] == [
        "a = 1 ¶ if a : ¶",
        "b ( c , d ) ¶ 1 + 1 ¶",
        "e = 2 ¶",  # the table between them is left out
    ]
    assert rows[1].tags == ["B-CALL", *["O"] * 10]
    assert {row.document for row in rows} == {"here.py"}
    assert code_rows("1 + 1\n") == []


@pytest.mark.parametrize("source", ["def (", "x = (1,\n", "  x\n y\n", "x = 'a\n", "\0"])
def test_what_is_no_python_is_one_sentence(source):
    with pytest.raises(LabError, match="no Python"):
        role_spans(source)


@pytest.fixture(scope="module")
def library():
    return code_roles(per_file=2)


@pytest.mark.slow
def test_the_library_in_three_splits_by_file(library):
    files = {split: {row.document for row in rows} for split, rows in library.items()}
    assert not files["train"] & files["test"]
    assert not files["train"] & files["validation"]
    words = {split: {tuple(row.words) for row in rows} for split, rows in library.items()}
    assert not words["train"] & (words["test"] | words["validation"])
    assert min(map(len, library.values())) > 50
    for rows in library.values():
        for row in rows:
            bio.check_row(row.words, row.tags, row.document, TAGS)


def test_a_part_of_the_library_is_its_first_files():
    some = code_roles(per_file=1, files=2)
    assert {split: len(rows) for split, rows in some.items()} == dict.fromkeys(some, 2)
    more = code_roles(per_file=1, files=4)
    assert [row.document for row in more["test"]][:2] == [row.document for row in some["test"]]


@pytest.mark.slow
def test_names_have_several_roles_and_spans_several_words(library):
    of_word: dict[str, set[str]] = {}
    lengths, types = [], set()
    for row in library["train"]:
        for start, end, role in bio.spans(row.tags):
            lengths.append(end - start)
            types.add(role)
            if end - start == 1:
                of_word.setdefault(row.words[start], set()).add(role)
    assert types == set(ROLES)
    assert sum(n > 1 for n in lengths) > 0.2 * len(lengths)
    assert sum(len(roles) > 1 for roles in of_word.values()) > 100
