"""Docstrings: the first sentence that a programmer wrote about a function, from the function.

    python_source ── ast ──> function ── without its docstring ──> text
                                     └── first sentence of it ──> target

Split by file, as `python_source` is; a function that stands in two parts is kept in the later one
only, and so is a sentence.

Two readers that understand nothing: the name of the function in words ("add_months": add months),
and the sentence of the training function that shares the most words (TF-IDF).
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from labkit.errors import LabError
from labkit.text import cleaning
from labkit.text.word_order import sentences

if TYPE_CHECKING:
    from datasets import DatasetDict

#: Words of a sentence, and characters of a function, that the task takes.
FEWEST, MOST, LONGEST = 3, 30, 1200

_PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


class Function(NamedTuple):
    """A function and what is said of it."""

    text: str
    """Its source from `def` on, without the docstring and without the indent of a class."""
    target: str
    """The first sentence of the docstring, on one line."""
    name: str


def functions(source: str) -> Iterator[Function]:
    """The documented functions of a file, in order; none of a file that does not parse.

    Left out: functions that hold nothing besides, sentences of fewer than `FEWEST` or more than
    `MOST` words, functions of more than `LONGEST` characters.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an old escape in somebody's string
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    lines = source.split("\n")  # as ast counts them
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or not node.body[1:]:
            continue
        said = ast.get_docstring(node)
        if not said:
            continue
        first, body = node.body[0], node.body[1]
        if first.lineno == node.lineno or body.lineno == first.end_lineno:
            continue  # all on one line
        kept = [
            *lines[node.lineno - 1 : first.lineno - 1],
            *lines[first.end_lineno : node.end_lineno],
        ]
        text = "\n".join(_moved_left(line, node.col_offset) for line in kept if line.strip())
        target = first_sentence(said)
        if FEWEST <= len(target.split()) <= MOST and len(text) <= LONGEST:
            yield Function(text, target, node.name)


def _moved_left(line: str, columns: int) -> str:
    """A line without so much white space; a string that begins further left stays as it is."""
    return line[columns:] if not line[:columns].strip() else line


def first_sentence(docstring: str) -> str:
    """The first sentence of the first paragraph, on one line.

    >>> first_sentence("Return the\\n  sum. It may be 0.\\n\\nMore.")
    'Return the sum.'
    """
    paragraph = " ".join(docstring.strip().split("\n\n")[0].split())
    return next(iter(sentences(paragraph)), "")


def docstrings(validation: float = 0.1, test: float = 0.1, seed: int = 0) -> DatasetDict:
    """Functions ("text") and sentences ("target") of `python_source`; also name and path.

    Args:
        validation, test, seed: as in `corpora.load`.
    """
    from datasets import Dataset, DatasetDict

    from labkit.text import corpora

    files = corpora.load("python_source", validation=validation, test=test, seed=seed)
    seen: set[str] = set()
    parts: dict[str, list[dict]] = {}
    for part in ("test", "validation", "train"):
        found = [
            (it, path)
            for text, path in zip(files[part]["text"], files[part]["path"], strict=True)
            for it in functions(text)
        ]
        rows, new = [], set()
        for it, path in found:
            keys = {cleaning.content_hash(it.text), cleaning.content_hash(it.target)}
            if not keys & seen:
                rows.append({**it._asdict(), "path": path})
            new |= keys
        seen |= new
        parts[part] = rows
    return DatasetDict(
        {part: Dataset.from_list(parts[part]) for part in ("train", "validation", "test")}
    )


def name_words(name: str) -> str:
    """A name as words.

    >>> name_words("__getHTTPResponse_v2")
    'get http response v 2'
    """
    return " ".join(_PART.findall(name)).lower()


class NearestAnswer:
    """The answer of the training text with the most similar words: cosine of TF-IDF vectors."""

    def __init__(self, texts: Sequence[str], answers: Sequence[str]):
        """
        Args:
            texts, answers: equally many, at least one.

        Raises:
            LabError: none, another number of answers, or no word in any text.
        """
        from sklearn.feature_extraction.text import TfidfVectorizer

        if not texts or len(texts) != len(answers):
            raise LabError(f"{len(texts)} texts and {len(answers)} answers: give equally many")
        self.answers = list(answers)
        self.words = TfidfVectorizer(sublinear_tf=True, token_pattern=r"(?u)[^\W\d_]+")
        try:
            self.known: Any = self.words.fit_transform(texts)
        except ValueError as error:  # "empty vocabulary"
            raise LabError("the texts hold no word to compare") from error

    def __call__(self, texts: Sequence[str]) -> list[str]:
        """The answer that belongs to the most similar training text, for each text."""
        import numpy as np

        if not len(texts):
            return []
        near = self.words.transform(texts) @ self.known.T
        return [self.answers[i] for i in np.asarray(near.argmax(axis=1)).ravel()]
