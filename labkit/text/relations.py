"""Relations: two spans of a text and what holds between them, as a text with marks.

    Relation(text, (0, 10), (20, 30), "gives")  ->  "@ Amara Bell @ gave the # brass bell # to ..."

The marks tell a classifier of texts which two spans are meant; both are single pieces of BERT's
vocabulary.

Source: Zhou and Chen 2022, arXiv:2102.01373 (marks made of punctuation around two entities).
"""

from collections.abc import Iterable
from typing import NamedTuple

from labkit.errors import LabError

FIRST, SECOND = "@", "#"


class Relation(NamedTuple):
    """One example: what holds between two spans of a text."""

    text: str
    first: tuple[int, int]
    """Start and end in characters."""
    second: tuple[int, int]
    label: str
    document: str = ""
    """What the text is a part of: a split never cuts it, intervals resample it."""


def marked(relation: Relation) -> str:
    """The text with marks around its two spans.

    Raises:
        LabError: the spans overlap, are empty or lie outside the text.
    """
    text, first, second = relation.text, relation.first, relation.second
    spans = sorted([(first, FIRST), (second, SECOND)])
    (a, left), (b, right) = spans
    if not 0 <= a[0] < a[1] <= b[0] < b[1] <= len(text):
        raise LabError(
            f"spans {first} and {second} do not fit a text of {len(text)} characters: give two "
            "that do not overlap"
        )
    return (
        f"{text[: a[0]]}{left} {text[a[0] : a[1]]} {left}{text[a[1] : b[0]]}"
        f"{right} {text[b[0] : b[1]]} {right}{text[b[1] :]}"
    )


def columns(relations: Iterable[Relation]) -> dict[str, list[str]]:
    """Marked texts and labels, as a classifier of texts and its baselines read them."""
    rows = list(relations)
    return {
        "text": [marked(row) for row in rows],
        "label": [row.label for row in rows],
        "document": [row.document for row in rows],
    }
