"""From tokens to examples, and from examples to a batch: windows, packing, padding.

Legend: B examples, T positions.

Sources: Brown et al. 2020, arXiv:2005.14165 (windows over a token stream); Krell et al. 2021,
arXiv:2107.02027 (packing without cross-contamination).
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from labkit.batches.types import IGNORE_INDEX, Batch, Example
from labkit.errors import LabError
from labkit.text.tokenizers import Tokenizer

#: Multiples of it, modulo 1, stay as far apart as any can (Weyl's sequence).
GOLDEN = (5**0.5 - 1) / 2


class Windows:
    """Consecutive windows over a token stream; inputs and targets are the stream one apart.

    Item i: input_ids = tokens[i T : i T + T], labels = tokens[i T + 1 : i T + T + 1], both (T,).
    """

    def __init__(self, tokens: np.ndarray | Sequence[int], context_length: int):
        """
        Args:
            tokens: ids, (number of tokens,), in memory or memory-mapped.
            context_length: T, at least 1 and less than the number of tokens.

        Raises:
            LabError: the text is shorter than one context.
        """
        self.tokens = np.asarray(tokens) if not isinstance(tokens, np.ndarray) else tokens
        self.context_length = context_length
        if context_length < 1 or len(self.tokens) < context_length + 1:
            raise LabError(
                f"the text has {len(self.tokens)} tokens, a context of {context_length} needs at "
                f"least {context_length + 1}: give more text or a shorter context"
            )

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.context_length

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        start = index * self.context_length
        chunk = self.tokens[start : start + self.context_length + 1]
        ids = torch.from_numpy(chunk.astype(np.int64))
        return {"input_ids": ids[:-1], "labels": ids[1:]}


class RollingWindows(Windows):
    """Windows that each epoch cuts elsewhere, so that every token becomes a target and no token
    always stands first in its context, where it has nothing to go by.

    The stream is a ring of N tokens: its end goes on with its beginning. Item e n + i of the
    endless sequence, n = N // T, begins at (i T + round(e T 0.618)) mod N; epoch 0 is as
    `Windows`. `Batches` asks for the items of the epoch in which it is.
    """

    endless = True

    def __len__(self) -> int:
        """Items in an epoch."""
        return len(self.tokens) // self.context_length

    def __getitem__(self, index: int) -> Example:
        if index < 0:
            raise IndexError(f"window {index}: an endless sequence has items from 0 on")
        epoch, i = divmod(index, len(self))
        T, N = self.context_length, len(self.tokens)
        start = (i * T + round(epoch * T * GOLDEN)) % N
        chunk = self.tokens[start : start + T + 1]
        if len(chunk) <= T:
            chunk = np.concatenate((chunk, self.tokens[: T + 1 - len(chunk)]))
        ids = torch.from_numpy(chunk.astype(np.int64))
        return {"input_ids": ids[:-1], "labels": ids[1:]}


def pack_documents(documents: Sequence[Sequence[int]], context_length: int) -> list[Example]:
    """Fill contexts with whole documents; attention and targets stay inside each document.

    First fit, in the given order; a document longer than a context is cut into pieces first.

    Args:
        documents: token ids of each; those with fewer than 2 tokens hold no target and are skipped.
        context_length: T, at least 1.

    Returns:
        Items with `input_ids, labels, position_ids, document_ids`, each (T,). Positions restart in
        each document, document ids count from 0; the padded tail has id -1 and labels -100.
    """
    bins: list[list[Sequence[int]]] = []
    room: list[int] = []
    for document in documents:
        for start in range(0, len(document) - 1, context_length):
            piece = document[start : start + context_length + 1]  # inputs plus the last target
            needed = len(piece) - 1
            i = next((i for i, free in enumerate(room) if free >= needed), len(bins))
            if i == len(bins):
                bins.append([])
                room.append(context_length)
            bins[i].append(piece)
            room[i] -= needed
    return [_packed_item(pieces, context_length) for pieces in bins]


def _packed_item(pieces: list[Sequence[int]], context_length: int) -> Example:
    item = {
        "input_ids": torch.zeros(context_length, dtype=torch.long),
        "labels": torch.full((context_length,), IGNORE_INDEX),
        "position_ids": torch.zeros(context_length, dtype=torch.long),
        "document_ids": torch.full((context_length,), -1),
    }
    start = 0
    for number, piece in enumerate(pieces):
        ids = torch.as_tensor(piece)
        place = slice(start, start + len(ids) - 1)
        item["input_ids"][place] = ids[:-1]
        item["labels"][place] = ids[1:]
        item["position_ids"][place] = torch.arange(len(ids) - 1)
        item["document_ids"][place] = number
        start += len(ids) - 1
    return item


def classification_examples(
    tokenizer: Tokenizer, texts: list[str], labels: list[int], max_length: int
) -> list[Example]:
    """Texts as token ids, cut to `max_length` but with their last token (BERT's [SEP]) kept.

    Item: input_ids (T,), labels () with the class.
    """
    encoded = [ids or [tokenizer.end_of_text_id] for ids in tokenizer.encode_batch(texts)]
    return labelled_examples(encoded, labels, max_length)


def labelled_examples(
    encoded: Sequence[Sequence[int]], labels: Sequence[int], max_length: int
) -> list[Example]:
    """`classification_examples` of texts that are token ids already, at least one each."""
    examples = []
    for ids, label in zip(encoded, labels, strict=True):
        cut = ids if len(ids) <= max_length else [*ids[: max_length - 1], ids[-1]]
        examples.append({"input_ids": torch.tensor(cut), "labels": torch.tensor(label)})
    return examples


class Contexts:
    """Contexts of T tokens that hold each token of a stream but the first once as a target.

    The last one is filled up with padding whose labels do not count; a causal model does not look
    ahead, so it needs no mask. Item: input_ids (T,), labels (T,).
    """

    def __init__(self, tokens: np.ndarray, context_length: int, pad_id: int):
        self.tokens, self.context_length, self.pad_id = tokens, context_length, pad_id

    def __len__(self) -> int:
        return math.ceil((len(self.tokens) - 1) / self.context_length)

    def __getitem__(self, index: int) -> Example:
        T = self.context_length
        chunk = torch.from_numpy(self.tokens[index * T : index * T + T + 1].astype(np.int64))
        ids = torch.full((T,), self.pad_id)
        labels = torch.full((T,), IGNORE_INDEX)
        ids[: len(chunk) - 1], labels[: len(chunk) - 1] = chunk[:-1], chunk[1:]
        return {"input_ids": ids, "labels": labels}


def stack(examples: Sequence[Example]) -> Batch:
    """Stack examples of one length: each (T,) becomes (B, T)."""
    return {key: torch.stack([e[key] for e in examples]) for key in examples[0]}


class Pad:
    """Collator: pad a batch to its own longest example, rounded up.

    Returns `input_ids` (B, T), `attention_mask` (B, T, 1 = real) and every other key of the
    examples: (B,) when each holds one number, such as a class, else padded to its own longest;
    `labels` with -100, `token_type_ids` with 0, `decoder_input_ids` with `pad_id`.
    """

    def __init__(self, pad_id: int, multiple: int = 8):
        """
        Args:
            pad_id: the id written into padding.
            multiple: T is rounded up to a multiple of it (matmul kernels like round shapes).
        """
        self.pad_id, self.multiple = pad_id, multiple

    def __call__(self, examples: Sequence[Example]) -> Batch:
        fill = {"labels": IGNORE_INDEX, "token_type_ids": 0}
        batch = {"input_ids": self._padded(examples, "input_ids", self.pad_id)}
        lengths = torch.tensor([len(e["input_ids"]) for e in examples])
        columns = torch.arange(batch["input_ids"].shape[1])
        batch["attention_mask"] = (columns < lengths.unsqueeze(1)).long()
        for key in [key for key in examples[0] if key not in batch]:
            if torch.as_tensor(examples[0][key]).ndim == 0:
                batch[key] = torch.stack([torch.as_tensor(e[key]) for e in examples])
            else:
                batch[key] = self._padded(examples, key, fill.get(key, self.pad_id))
        return batch

    def _padded(self, examples: Sequence[Example], key: str, value: int) -> Tensor:
        longest = max(len(e[key]) for e in examples)
        length = -(-longest // self.multiple) * self.multiple
        kind = torch.as_tensor(examples[0][key]).dtype
        rows = torch.full((len(examples), length), value, dtype=kind)
        for row, example in zip(rows, examples, strict=True):
            row[: len(example[key])] = torch.as_tensor(example[key])
        return rows
