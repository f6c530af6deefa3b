"""The examples of a task as batches: what the model reads, and what counts.

classification   [CLS] text [SEP] -> class       one piece at random of a text in several
instruction      prompt answer <end>             only the answer counts
text             each document, in pieces        every token counts
"""

import numpy as np
import torch

from labkit.batches import (
    IGNORE_INDEX,
    Batches,
    Corruption,
    Example,
    Marks,
    Pad,
    RandomPiece,
    answer_ids,
    chat_ids,
    instruction_example,
)
from labkit.commands.recipe import Sizes
from labkit.commands.shell import note, say
from labkit.commands.tasks import Task
from labkit.errors import LabError
from labkit.generation.classifier import Classifier
from labkit.text.tokenizers import Tokenizer

#: An epoch of at least so many batches is dealt in batches of similar length. Shorter ones hold too
#: few examples for batches that are alike in length to be a fair draw in all else: there only the
#: examples inside a batch are sorted, so that its micro-batches are of similar length.
BATCHES_TO_SORT = 64


def _batches(
    examples: list[Example],
    pad_id: int,
    sizes: Sizes,
    seed: int,
    sort: bool,
    corrupt: Corruption | None = None,
) -> Batches:
    lengths = [min(len(e["input_ids"]), sizes.max_length) for e in examples] if sort else None
    return Batches(
        examples,
        sizes.batch_size,
        Pad(pad_id),
        seed=seed,
        lengths=lengths,
        bucket=16 if len(examples) >= BATCHES_TO_SORT * sizes.batch_size else 1,
        corrupt=corrupt,
    )


def training(task: Task, reader: Classifier, sizes: Sizes, seed: int) -> Batches:
    """Texts and classes; of a text in several pieces, one at random each time."""
    reading, tokenizer, texts = reader.reading, reader.tokenizer, task.texts["train"]
    if reading.pieces == 1 or task.pairs:
        rows = _rows(task, reader, "train")
        return _batches(rows, tokenizer.pad_id, sizes, seed, sort=True)
    ids = [ids or [tokenizer.end_of_text_id] for ids in tokenizer.encode_batch(texts)]
    rows = [
        {"input_ids": torch.tensor(ids), "labels": torch.tensor(label)}
        for ids, label in zip(ids, task.answers["train"], strict=True)
    ]
    piece = RandomPiece(reading.max_length, reading.pieces, Marks(*tokenizer.marks))
    return _batches(rows, tokenizer.pad_id, sizes, seed, sort=True, corrupt=piece)


def fixed(
    task: Task, reader: Classifier, sizes: Sizes, split: str, most: int | None = None
) -> Batches:
    """Every piece of the texts with the class of its text: to validate, and to fit a head.

    Args:
        task: where the texts are.
        reader: how they are read.
        sizes: of the batches.
        split: train, validation or test.
        most: of so many texts only, drawn by chance; None: of all.
    """
    rows = _rows(task, reader, split, most)
    lengths = [len(row["input_ids"]) for row in rows]
    return Batches(rows, sizes.batch_size, Pad(reader.tokenizer.pad_id), lengths=lengths)


def _rows(task: Task, reader: Classifier, split: str, most: int | None = None) -> list[Example]:
    labels = task.answers[split]
    drawn = range(len(labels))
    if most is not None and most < len(labels):
        drawn = np.random.default_rng(0).permutation(len(labels))[:most].tolist()
    texts = [task.texts[split][i] for i in drawn]
    seconds = [task.pairs[split][i] for i in drawn] if task.pairs else None
    examples, owners, cut = reader.reading.examples(reader.model, reader.tokenizer, texts, seconds)
    if cut and most is None:
        note(f"{cut:,} of {len(texts):,} {split} texts are longer than {reader.reading}: cut")
    return [
        {**example, "labels": torch.tensor(labels[drawn[owner]])}
        for example, owner in zip(examples, owners, strict=True)
    ]


def answered(task: Task, tokenizer: Tokenizer, sizes: Sizes, split: str, seed: int) -> Batches:
    """Prompts and answers as turns of a conversation.

    Raises:
        LabError: no answer begins within max_length.
    """
    limit = sizes.max_length
    whole = [
        instruction_example(
            chat_ids(tokenizer, prompt), answer_ids(tokenizer, answer), tokenizer.end_of_turn_id
        )
        for prompt, answer in zip(task.texts[split], task.answers[split], strict=True)
    ]
    cut = [{key: ids[:limit] for key, ids in example.items()} for example in whole]
    examples = [e for e in cut if (e["labels"] != IGNORE_INDEX).any()]
    if not examples:
        raise LabError(
            f"all targets of the {len(cut)} {split} examples are masked: no answer begins "
            f"within max_length {limit}; choose a longer one"
        )
    if len(examples) < len(cut):
        say(f"{len(cut) - len(examples)} {split} examples are longer than {limit} tokens: left")
    return _batches(examples, tokenizer.pad_id, sizes, seed, sort=split == "train")


def continued(task: Task, tokenizer: Tokenizer, sizes: Sizes, split: str, seed: int) -> Batches:
    """Documents, each between two ends of text, in pieces of max_length tokens."""
    end, limit = tokenizer.end_of_text_id, sizes.max_length
    streams = [[end, *ids, end] for ids in tokenizer.encode_batch(task.texts[split])]
    pieces = [
        torch.tensor(ids[start : start + limit + 1])
        for ids in streams
        for start in range(0, len(ids) - 1, limit)
    ]
    examples = [{"input_ids": ids[:-1], "labels": ids[1:]} for ids in pieces]
    return _batches(examples, tokenizer.pad_id, sizes, seed, sort=split == "train")
