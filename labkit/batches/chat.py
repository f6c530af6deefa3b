"""Prompts and answers as conversations: who speaks, and which tokens the loss counts.

<user> Hi <end> <assistant> Hello <end> <user> ...      what the template writes
                            ^^^^^^^^^^^                 what counts: each answer and its end
"""

from collections.abc import Sequence

import torch

from labkit.batches.types import IGNORE_INDEX, Example
from labkit.errors import LabError
from labkit.text.chat_template import Message
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


def conversation_example(tokenizer: Tokenizer, messages: Sequence[Message]) -> Example:
    """A conversation of any number of turns; the loss counts what the assistant says.

    That is each answer with the token that ends it, or the model would never learn to stop. What
    the template writes after that token does not count, nor do the marks that name a speaker.

    Args:
        tokenizer: with its chat template.
        messages: turns of system, user and assistant; at least one of the assistant.

    Returns:
        `input_ids` and `labels`, both (T - 1,) for the T tokens of the conversation, one apart;
        labels are -100 at what does not count.

    Raises:
        LabError: nothing of the assistant, or a template that changes earlier turns as a
            conversation goes on, so that an answer cannot be found in it.
    """
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=False)
    counts = [False] * len(ids)
    for place, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = tokenizer.apply_chat_template(messages[:place])
        upto = tokenizer.apply_chat_template(messages[: place + 1], add_generation_prompt=False)
        if upto != ids[: len(upto)] or before != ids[: len(before)]:
            raise LabError(
                f"the chat template writes the first {place + 1} turns of a longer conversation "
                "otherwise than alone: the tokens of its answers cannot be told"
            )
        answer = ids[len(before) : len(upto)]
        if tokenizer.end_of_turn_id not in answer:
            raise LabError(f"the chat template writes no {tokenizer.end_of_turn!r} after an answer")
        last = len(answer) - 1 - answer[::-1].index(tokenizer.end_of_turn_id)
        counts[len(before) : len(before) + last + 1] = [True] * (last + 1)
    if not any(counts):
        raise LabError("the assistant says nothing in this conversation: there is nothing to learn")
    labels = [token if count else IGNORE_INDEX for token, count in zip(ids, counts, strict=True)]
    return {"input_ids": torch.tensor(ids[:-1]), "labels": torch.tensor(labels[1:])}
