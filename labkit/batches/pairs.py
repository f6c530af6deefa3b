"""Examples of two texts: next sentence, sentence order, and groups of pairs for contrast.

    document   |  piece 0  |  piece 1  |  piece 2  |  tail     pieces of equal length
    pairs       (0, 1)  (1, 2)                                  `neighbours`
    NextSentence     [CLS] piece 1 [SEP] piece 2, or a piece of another document [SEP]
    pair_groups      G pairs; what contrasts with a pair are the other G - 1 of its group

Legend: T positions, G pairs of a group.

Sources: Devlin et al. 2019, arXiv:1810.04805, section 3.1 (next sentence); Lan et al. 2020,
arXiv:1909.11942, section 3.1 (sentence order).
"""

from collections.abc import Sequence

import numpy as np
import torch

from labkit.batches.types import Example
from labkit.errors import LabError


def document_windows(documents: Sequence[Sequence[int]], length: int) -> list[Example]:
    """Cut each document into pieces of `length` tokens; none holds parts of two documents.

    Args:
        documents: token ids of each.
        length: T of every piece, at least 1. The last piece of a document ends at its end, so it
            may repeat tokens of the piece before; a document shorter than T is left out.

    Returns:
        Items with `input_ids` (T,).

    Raises:
        LabError: no document is long enough.
    """
    items = [
        {"input_ids": torch.as_tensor(ids[start : start + length])}
        for ids in documents
        if len(ids) >= length
        for start in _starts(len(ids), length)
    ]
    if not items:
        longest = max(map(len, documents), default=0)
        raise LabError(f"length {length} is out of range: the longest document has {longest}")
    return items


def _starts(tokens: int, length: int) -> list[int]:
    starts = list(range(0, tokens - length + 1, length))
    return starts if starts[-1] + length == tokens else [*starts, tokens - length]


def neighbours(documents: Sequence[Sequence[int]], length: int) -> list[Example]:
    """Every two neighbouring pieces of `length` tokens of one document.

    Args:
        documents: token ids of each.
        length: tokens of a piece, at least 1; a shorter tail is left out.

    Returns:
        Items with `first` and `second` (length,) and `document`, its number.

    Raises:
        LabError: no document holds two pieces.
    """
    pairs = []
    for number, ids in enumerate(documents):
        for start in range(0, len(ids) - 2 * length + 1, length):
            first, second = ids[start : start + length], ids[start + length : start + 2 * length]
            pairs.append(
                {
                    "first": torch.as_tensor(first),
                    "second": torch.as_tensor(second),
                    "document": torch.tensor(number),
                }
            )
    if not pairs:
        raise LabError(f"length {length} is out of range: no document holds two such pieces")
    return pairs


class _Joined:
    """[CLS] first [SEP] second [SEP], with segment ids and the answer."""

    def __init__(self, first_id: int, separator_id: int):
        self.first_id, self.separator_id = first_id, separator_id

    def join(self, first: torch.Tensor, second: torch.Tensor, answer: bool) -> Example:
        start, end = torch.tensor([self.first_id]), torch.tensor([self.separator_id])
        ids = torch.cat((start, first, end, second, end))
        segments = torch.zeros_like(ids)
        segments[len(first) + 2 :] = 1
        return {
            "input_ids": ids,
            "token_type_ids": segments,
            "next_sentence_label": torch.tensor(int(answer)),
        }


class NextSentence(_Joined):
    """BERT's next-sentence pairs: half true neighbours, half with a piece of another document.

    A corruption of the items of `neighbours`. "Sentence" is BERT's word for any stretch of text.
    """

    def __init__(self, pool: Sequence[Example], first_id: int, separator_id: int):
        """
        Args:
            pool: items of `neighbours`; the random second piece comes from them.
            first_id, separator_id: [CLS] and [SEP].

        Raises:
            LabError: the pool is of one document, so that no piece of another exists.
        """
        super().__init__(first_id, separator_id)
        self.pool = pool
        if len({int(pair["document"]) for pair in pool}) < 2:
            raise LabError("the pool holds 1 document: at least 2 are needed for a random piece")

    def __call__(self, example: Example, random: np.random.Generator) -> Example:
        """Draw the second piece.

        Returns:
            `input_ids`, `token_type_ids` (T,) and `next_sentence_label`: 1 = the true neighbour.
        """
        second, true = example["second"], bool(random.random() < 0.5)
        while not true:
            other = self.pool[int(random.integers(len(self.pool)))]
            if int(other["document"]) != int(example["document"]):
                second = other["second"]
                break
        return self.join(example["first"], second, true)


class SentenceOrder(_Joined):
    """ALBERT's pairs: always neighbours, half of them in the wrong order. The topic tells nothing.

    A corruption of the items of `neighbours`; the result is as of `NextSentence`, 1 = in order.
    """

    def __call__(self, example: Example, random: np.random.Generator) -> Example:
        """Swap the pieces, or not."""
        first, second = example["first"], example["second"]
        ordered = bool(random.random() < 0.5)
        return self.join(first, second, True) if ordered else self.join(second, first, False)


def pair_groups(pairs: Sequence[Example], group_size: int, seed: int = 0) -> list[Example]:
    """Groups of G pairs for a contrastive loss: one example is one whole group.

    In-batch negatives tie the examples of a batch together: cut the batch into micro-batches and
    each pair meets fewer negatives, which is another problem. So the group is the example. Its
    negatives are inside it, and accumulation, ranks and resume change nothing.

    Args:
        pairs: items of `neighbours`, dealt to groups in random order; a last group that is not
            full is left out.
        group_size: G, at least 2.
        seed: of the deal.

    Returns:
        Items with `input_ids` (2, G, T): first pieces, second pieces.

    Raises:
        LabError: a group of less than 2, or fewer pairs than one group.
    """
    if not 2 <= group_size <= len(pairs):
        raise LabError(
            f"group_size {group_size} is out of range: choose 2 to {len(pairs)}, the number of "
            "pairs; a pair alone has nothing to be told apart from"
        )
    order = np.random.default_rng(seed).permutation(len(pairs))
    full = order[: len(order) // group_size * group_size].reshape(-1, group_size)
    return [
        {
            "input_ids": torch.stack(
                [torch.stack([pairs[i][side] for i in group]) for side in ("first", "second")]
            )
        }
        for group in full
    ]
