"""Prompts and answers as conversations: who speaks, and which tokens the loss counts."""

from collections.abc import Sequence

import torch

from labkit.batches.types import IGNORE_INDEX, Example
from labkit.errors import LabError
from labkit.text.tokenizers import Tokenizer


def chat_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """A prompt as a turn of a conversation, up to where the answer begins."""
    return tokenizer.apply_chat_template([{"role": "user", "content": prompt}])


def answer_ids(tokenizer: Tokenizer, answer: str) -> list[int]:
    """An answer without the special tokens that some tokenizers put around a text."""
    ids = tokenizer.backend.encode(answer, add_special_tokens=False)  # pyright: ignore[reportCallIssue]
    return ids.ids


def instruction_example(
    prompt_ids: Sequence[int], answer_ids: Sequence[int], end_id: int
) -> Example:
    """One prompt and its answer; the loss counts the answer and the end token only.

    Returns:
        `input_ids` and `labels`, both (len(prompt) + len(answer),); labels are -100 over the
        prompt, except that its last position predicts the first token of the answer.

    Raises:
        LabError: the prompt or the answer is empty.
    """
    if not len(prompt_ids) or not len(answer_ids):
        raise LabError(
            f"prompt of {len(prompt_ids)} and answer of {len(answer_ids)} tokens: both need at "
            "least 1, or there is nothing to condition on or nothing to learn"
        )
    ids = torch.as_tensor([*prompt_ids, *answer_ids, end_id])
    labels = ids[1:].clone()
    labels[: len(prompt_ids) - 1] = IGNORE_INDEX
    return {"input_ids": ids[:-1], "labels": labels}
