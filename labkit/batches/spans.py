"""A question and a long text as windows that a reader can take, and tokens back to characters.

    [CLS] question [SEP] tokens   0 .. w     [SEP]      answer inside  -> its first and last token
    [CLS] question [SEP] tokens s .. s + w   [SEP]      answer outside -> [CLS], "it is not here"

Windows overlap by w - s tokens, so that an answer that one cuts stands whole in another. Each token
keeps the characters that it stands for: the answer is a piece of the text, not of its tokens.

Sources: Devlin et al. 2019, arXiv:1810.04805, section 4.3 ([CLS] as "no answer"); the program
`run_squad.py` of that paper (windows with a stride).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from labkit.batches.types import Example
from labkit.errors import LabError
from labkit.text.tokenizers import Tokenizer


@dataclass(frozen=True)
class SpanWindow:
    """One window of a text beside a question."""

    example: Example
    """`input_ids`, `token_type_ids` (T,); `start_positions`, `end_positions` () where asked for."""
    offsets: list[tuple[int, int]]
    """Characters of the text that each position stands for; (-1, -1) outside the text."""
    owner: int
    """The number of the question."""


def span_windows(
    tokenizer: Tokenizer,
    questions: Sequence[str],
    contexts: Sequence[str],
    max_length: int,
    stride: int,
    answers: Sequence[tuple[int, int]] | None = None,
) -> list[SpanWindow]:
    """The windows of each text beside its question, in order.

    A tokenizer without marks of its own puts its end of text in their place.

    Args:
        tokenizer: of the reader; a fast one, that knows characters.
        questions, contexts: equally many.
        max_length: tokens of a window, marks and question included.
        stride: text tokens from the beginning of one window to that of the next, at least 1 and at
            most what a window holds.
        answers: (first character, one past the last) of each answer in its text, (-1, -1) where
            there is none; None: no labels.

    Raises:
        LabError: nothing of the text fits beside a question, the stride leaves tokens out, or an
            answer lies outside its text.
    """
    before, after = (marks or [tokenizer.end_of_text_id] for marks in tokenizer.marks)
    found: list[SpanWindow] = []
    for owner, (question, context) in enumerate(zip(questions, contexts, strict=True)):
        asked = _encode(tokenizer, question)[0]
        ids, offsets = _encode(tokenizer, context)
        head = [*before, *asked, *after]
        room = max_length - len(head) - len(after)
        if not 1 <= stride <= max(room, 0):
            raise LabError(
                f"max_length {max_length} leaves {max(room, 0)} tokens of the text beside the "
                f"question {question[:40]!r}, and stride is {stride}: choose a longer one, and a "
                "stride of 1 up to that"
            )
        answer = None if answers is None else answers[owner]
        if answer is not None and not (
            answer == (-1, -1) or 0 <= answer[0] < answer[1] <= len(context)
        ):
            raise LabError(
                f"the answer at {answer[0]} to {answer[1]} lies outside its text of {len(context)} "
                "characters"
            )
        for start in _starts(len(ids), room, stride):
            part, places = ids[start : start + room], offsets[start : start + room]
            example = {
                "input_ids": torch.tensor([*head, *part, *after]),
                "token_type_ids": torch.tensor([0] * len(head) + [1] * (len(part) + len(after))),
            }
            outside = (-1, -1)
            where = [*[outside] * len(head), *places, *[outside] * len(after)]
            if answer is not None:
                first, last = _span(where, answer)
                example["start_positions"] = torch.tensor(first)
                example["end_positions"] = torch.tensor(last)
            found.append(SpanWindow(example, where, owner))
    return found


def _encode(tokenizer: Tokenizer, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids without marks, and the characters of each: spaces that a token begins with left out."""
    said = tokenizer.backend.encode(text, add_special_tokens=False)  # pyright: ignore[reportCallIssue]
    offsets = []
    for start, end in said.offsets:
        piece = text[start:end]
        if piece.strip():
            start, end = (
                start + len(piece) - len(piece.lstrip()),
                end - len(piece) + len(piece.rstrip()),
            )
        offsets.append((start, end))
    return said.ids, offsets


def _starts(length: int, room: int, stride: int) -> list[int]:
    """Where windows begin: as many as it takes to reach the end, at least one."""
    starts = [0]
    while starts[-1] + room < length:
        starts.append(starts[-1] + stride)
    return starts


def _span(where: list[tuple[int, int]], answer: tuple[int, int]) -> tuple[int, int]:
    """First and last position whose characters the answer touches; (0, 0) unless all are here."""
    if answer == (-1, -1):
        return 0, 0
    inside = [i for i, (a, b) in enumerate(where) if a >= 0 and a < answer[1] and b > answer[0]]
    if not inside or where[inside[0]][0] > answer[0] or where[inside[-1]][1] < answer[1]:
        return 0, 0
    return inside[0], inside[-1]
