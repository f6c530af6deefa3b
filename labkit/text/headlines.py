"""Headlines: the first line of a BBC article from the lines below it.

    bbc_news ── article ── first line ──> target        the rest ──> text

Two readers that understand nothing: the first sentence of the article, which often says the same
at length, and its first words, as many as a headline has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from labkit.errors import LabError
from labkit.text.word_order import sentences

if TYPE_CHECKING:
    from datasets import DatasetDict

#: Words of a usual headline.
WORDS = 6


def headlines(validation: float = 0.1, test: float = 0.1, seed: int = 0) -> DatasetDict:
    """Articles ("text", without its headline), headlines ("target") and topics ("topic").

    The split is that of `bbc_news`, from which twins are removed.

    Args:
        validation, test, seed: as in `corpora.load`.
    """
    from datasets import Dataset, DatasetDict

    from labkit.text import corpora

    splits = DatasetDict()
    for name, articles in corpora.load(
        "bbc_news", validation=validation, test=test, seed=seed
    ).items():
        topics = articles.features["label"].names
        rows = [
            {"text": body, "target": head, "topic": topics[label]}
            for article, label in zip(articles["text"], articles["label"], strict=True)
            for head, body in [divided(article)]
            if head and body
        ]
        splits[str(name)] = Dataset.from_list(rows)
    return splits


def divided(article: str) -> tuple[str, str]:
    """(headline, the rest) of an article.

    >>> divided("Oil rises\\n\\nPrices rose.")
    ('Oil rises', 'Prices rose.')
    """
    head, _, body = article.partition("\n")
    return head.strip(), body.strip()


def first_sentence(text: str) -> str:
    """The first sentence of a text, as `word_order.sentences` cuts it; "" of an empty one."""
    return next(iter(sentences(text)), "").strip()


def first_words(text: str, count: int = WORDS) -> str:
    """The first words of a text.

    Raises:
        LabError: a count below 1.

    >>> first_words("The oil market has surged again today.", 3)
    'The oil market'
    """
    if count < 1:
        raise LabError(f"count {count} is out of range: choose at least 1 word")
    return " ".join(text.split()[:count])
