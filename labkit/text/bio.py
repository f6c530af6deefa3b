"""BIO tags: how spans of several words are written as one tag for each word, and back.

    words   Amara   Bell     took   the   garden     key
    tags    B-PERSON I-PERSON O     O     B-OBJECT   I-OBJECT
    spans   (0, 2, PERSON)                (4, 6, OBJECT)

B begins a span, I goes on with one, O is outside. An I without a span of its type before it is an
error here, so each row of tags means exactly one set of spans; `repaired` reads what a model says
one word at a time, where such an I happens.

Source: Ramshaw and Marcus 1995, arXiv:cmp-lg/9505040 (chunks as tags; the form with a B at every
beginning is called IOB2, after Tjong Kim Sang and Veenstra 1999, arXiv:cs/9907006).
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from labkit.errors import LabError

OUTSIDE = "O"


class Span(NamedTuple):
    """Words start to end - 1 are one thing of a type."""

    start: int
    end: int
    type: str


class Tagged(NamedTuple):
    """A row: words, and a tag for each."""

    words: list[str]
    tags: list[str]
    document: str = ""
    """What it is a part of: intervals resample whole documents. Empty: it stands alone."""


def tag_names(types: Iterable[str]) -> list[str]:
    """O, then B-X and I-X of each type, in the order of the alphabet.

    >>> tag_names(["PLACE"])
    ['O', 'B-PLACE', 'I-PLACE']
    """
    return [OUTSIDE, *(f"{place}-{name}" for name in sorted(set(types)) for place in "BI")]


def types_of(tags: Iterable[str]) -> list[str]:
    """The types that tags speak of, in the order of the alphabet."""
    return sorted({tag[2:] for tag in tags if tag != OUTSIDE})


def may_follow(before: str | None, tag: str) -> bool:
    """Whether a tag can stand after another; `before` None: at the beginning.

    I-X stands only after B-X or I-X; everything else may follow anything.
    """
    if not tag.startswith("I-"):
        return True
    return before is not None and before != OUTSIDE and before[2:] == tag[2:]


def spans(tags: Sequence[str]) -> list[Span]:
    """The spans of well-formed tags, in their order.

    Raises:
        LabError: a tag that is none, or an I with nothing to go on with.
    """
    check_tags(tags)
    found: list[Span] = []
    for place, tag in enumerate(tags):
        if tag.startswith("I-"):
            found[-1] = found[-1]._replace(end=place + 1)
        elif tag != OUTSIDE:
            found.append(Span(place, place + 1, tag[2:]))
    return found


def tags_of(spans: Iterable[Span], length: int) -> list[str]:
    """The tags of a row of so many words.

    Raises:
        LabError: two spans share a word, or one lies outside the row.
    """
    tags = [OUTSIDE] * length
    for start, end, name in spans:
        if not 0 <= start < end <= length:
            raise LabError(f"span {start} to {end} is out of range: choose words 0 to {length}")
        if any(tag != OUTSIDE for tag in tags[start:end]):
            raise LabError(
                f"the span of words {start} to {end - 1} shares a word with another: BIO tags hold "
                "one span a word"
            )
        tags[start:end] = [f"B-{name}", *[f"I-{name}"] * (end - start - 1)]
    return tags


def repaired(tags: Sequence[str]) -> list[str]:
    """Tags in which an I that nothing precedes begins a span, as scorers read it.

    >>> repaired(["O", "I-PLACE", "I-OBJECT"])
    ['O', 'B-PLACE', 'B-OBJECT']
    """
    said: list[str] = []
    for tag in tags:
        good = may_follow(said[-1] if said else None, tag)
        said.append(tag if good else f"B-{tag[2:]}")
    return said


def check_tags(tags: Sequence[str], where: str = "the row") -> None:
    """Refuse tags that no set of spans has.

    Args:
        tags: of one row.
        where: how the message names the row.

    Raises:
        LabError: a tag is none of O, B-X, I-X; or an I-X stands neither after B-X nor after I-X.
    """
    before = None
    for number, tag in enumerate(tags, start=1):
        if tag != OUTSIDE and not (tag[:2] in ("B-", "I-") and tag[2:].strip()):
            raise LabError(
                f"{where} has tag {tag!r} at word {number}: a tag is O, or B- or I- and a type, "
                "such as B-PLACE"
            )
        if not may_follow(before, tag):
            raise LabError(
                f"{where} has {tag} at word {number} after {before or 'nothing'}: the first word "
                f"of a span is B-{tag[2:]}"
            )
        before = tag


def check_row(
    words: Sequence[str], tags: Sequence[str], where: str, known: Sequence[str] | None = None
) -> None:
    """Refuse a row that nothing can be learned from.

    Args:
        words, tags: of one row.
        where: how the message names the row.
        known: the tags that there are; None: any.

    Raises:
        LabError: no word, another number of tags than of words, an empty word, a tag outside BIO,
            or one that is not known.
    """
    if not words:
        raise LabError(f"{where} is empty: give at least one word")
    if len(words) != len(tags):
        raise LabError(
            f"{where} has {len(words)} words and {len(tags)} tags: give one tag for each word"
        )
    if "" in (stripped := [word.strip() for word in words]):
        raise LabError(f"{where} has nothing as word {stripped.index('') + 1}: take it out")
    check_tags(tags, where)
    if known is not None and (strange := [tag for tag in tags if tag not in known]):
        raise LabError(
            f"{where} has tag {strange[0]!r}, which is none of the tags known: {', '.join(known)}"
        )
