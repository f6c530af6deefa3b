"""Texts longer than a classifier reads: a piece at random in training, all pieces when it answers.

    [CLS] a b c d e f g [SEP], limit 5  ->  [CLS] a b c [SEP]   [CLS] d e f [SEP]   [CLS] g [SEP]

Each piece stands between the same marks as a whole text. Training sees another piece in every
epoch (`RandomPiece`, a corruption of `Batches`); an answer is the mean of the log-probabilities of
the pieces (`average_pieces`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from labkit.batches.types import Example
from labkit.errors import LabError


class Marks(NamedTuple):
    """What a tokenizer puts around every text: `Marks(*tokenizer.marks)`."""

    before: list[int]
    after: list[int]

    def room(self, limit: int) -> int:
        """Tokens of the text itself that fit into `limit`.

        Raises:
            LabError: none does.
        """
        room = limit - len(self.before) - len(self.after)
        if room < 1:
            raise LabError(
                f"max_length {limit} is out of range: the marks around a text and one token need "
                f"{limit - room + 1}"
            )
        return room

    def inside(self, ids: Sequence[int]) -> list[int]:
        """The text itself."""
        return list(ids[len(self.before) : len(ids) - len(self.after)])

    def around(self, ids: Sequence[int]) -> Tensor:
        """A piece between the marks."""
        return torch.tensor([*self.before, *ids, *self.after])


def pieces(ids: Sequence[int], limit: int, most: int, marks: Marks) -> list[Tensor]:
    """A text in pieces of at most `limit` tokens, marks included, from its beginning; at least one.

    Args:
        ids: token ids of the whole text, with its marks.
        limit: tokens of a piece.
        most: pieces at most, at least 1; the rest of the text is left out.
        marks: of the tokenizer.

    Raises:
        LabError: no token fits between the marks.
    """
    room, inside = marks.room(limit), marks.inside(ids)
    starts = range(0, max(1, min(len(inside), most * room)), room)
    return [marks.around(inside[start : start + room]) for start in starts]


class RandomPiece:
    """Corruption: one stretch of `limit` tokens of a longer text, its place drawn anew each time.

    A text that fits stays as it is. Item: `input_ids` (T,) becomes at most (limit,).
    """

    def __init__(self, limit: int, most: int, marks: Marks):
        """
        Args:
            limit: tokens of a piece, marks included.
            most: the stretch is drawn from this many pieces' worth of text, from the beginning.
            marks: of the tokenizer.

        Raises:
            LabError: no token fits between the marks.
        """
        self.limit, self.room, self.marks = limit, marks.room(limit), marks
        self.most = most

    def __call__(self, example: Example, random: np.random.Generator) -> Example:
        ids = example["input_ids"]
        if len(ids) <= self.limit:
            return example
        inside = self.marks.inside(ids.tolist())[: self.most * self.room]
        start = int(random.integers(len(inside) - self.room + 1))
        return {**example, "input_ids": self.marks.around(inside[start : start + self.room])}


def average_pieces(logits_PC: Tensor, text_P: Tensor) -> Tensor:
    """The mean log-probabilities of each text's pieces, made to add up to probability 1 again.

    Args:
        logits_PC: (P, C) of all pieces.
        text_P: (P,) number of the text of each piece, 0 .. N - 1, none missing.

    Returns:
        (N, C); of a text of one piece, its log-probabilities.
    """
    logs_PC = logits_PC.log_softmax(-1)
    count_N = torch.bincount(text_P)
    sums_NC = logs_PC.new_zeros(len(count_N), logs_PC.shape[1]).index_add_(0, text_P, logs_PC)
    return (sums_NC / count_N.unsqueeze(1)).log_softmax(-1)
