"""Two answers to one prompt as an example, and pairs of them as a batch.

    pair 0   prompt chosen <end>            input_ids (P, 2, T): row 0 of a pair is the chosen one
             prompt rejected <end>  pad     labels    (P, 2, T): -100 but at the answer and its end

Legend: P pairs, T positions.

Source: Rafailov et al. 2023, arXiv:2305.18290 (direct preference optimisation).
"""

from collections.abc import Sequence

import torch

from labkit.batches.chat import conversation_example
from labkit.batches.examples import Pad
from labkit.batches.types import IGNORE_INDEX, Batch, Example
from labkit.text.conversations import Preference
from labkit.text.tokenizers import Tokenizer

SIDES = ("chosen", "rejected")


def preference_example(tokenizer: Tokenizer, pair: Preference) -> Example:
    """A preference as token ids; both sides hold the prompt.

    Of the prompt nothing counts, its own answers neither: they are equal on both sides.

    Returns:
        `chosen_ids`, `chosen_labels` (T1,) and `rejected_ids`, `rejected_labels` (T2,), as
        `conversation_example` makes them.
    """
    example: Example = {}
    before = len(tokenizer.apply_chat_template(pair.prompt))
    for side, answer in zip(SIDES, (pair.chosen, pair.rejected), strict=True):
        whole = conversation_example(tokenizer, [*pair.prompt, *answer])
        whole["labels"][: before - 1] = IGNORE_INDEX
        example[f"{side}_ids"], example[f"{side}_labels"] = whole["input_ids"], whole["labels"]
    return example


class PadPreferences:
    """Collator of preferences: (P, 2, T), padded to the longest of all 2P rows.

    Returns `input_ids`, `labels`, `attention_mask` (P, 2, T), and `reference` (P, 2) if the
    examples have it.
    """

    def __init__(self, pad_id: int, multiple: int = 8):
        """
        Args:
            pad_id: the id written into padding.
            multiple: T is rounded up to a multiple of it.
        """
        self.pad = Pad(pad_id, multiple)

    def __call__(self, examples: Sequence[Example]) -> Batch:
        rows = [
            {"input_ids": example[f"{side}_ids"], "labels": example[f"{side}_labels"]}
            for example in examples
            for side in SIDES
        ]
        batch = {
            key: rows_NT.unflatten(0, (len(examples), 2)) for key, rows_NT in self.pad(rows).items()
        }
        if "reference" in examples[0]:
            batch["reference"] = torch.stack([torch.as_tensor(e["reference"]) for e in examples])
        return batch
