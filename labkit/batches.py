"""From documents to batches, and the data order as a pure function of (seed, step).

    documents -> tokens on disk -> Windows      -> Batches -> micro-batches -> objective
                                   packed items
                                   padded texts

A run never stores where it is in the data: `Batches.indices(step)` computes it. So a resumed run
continues with the very examples that the uninterrupted one would have seen, and any number of
ranks or micro-batches splits the same global batch.

Targets are shifted here, once: `labels[t]` is the target of the prediction made at position t.

Legend: B examples, T positions.

Sources: Brown et al. 2020, arXiv:2005.14165 (windows over a token stream); Krell et al. 2021,
arXiv:2107.02027 (packing without cross-contamination).
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from labkit.errors import LabError

Batch = dict[str, Tensor]
Example = dict[str, Tensor]
IGNORE_INDEX = -100

# --- tokens on disk ----------------------------------------------------------------------------


class TokenWriter:
    """A flat token file in the making: documents come one at a time, the file appears at the end.

    Use it as a context manager. `path` + `.json` holds the file's facts; both are replaced whole,
    when the block ends without an error, or not at all.
    """

    def __init__(self, path: str | os.PathLike, vocab_size: int, end_of_text_id: int):
        """
        Args:
            path: the file to write.
            vocab_size: ids are 0 .. vocab_size - 1; up to 65,536 take two bytes a token, else four.
            end_of_text_id: the id written after each document.
        """
        self.path, self.vocab_size, self.end_of_text_id = Path(path), vocab_size, end_of_text_id
        self.dtype = np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)
        self.tokens = self.documents = 0

    def __enter__(self) -> "TokenWriter":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._temporary = self.path.with_name(self.path.name + ".tmp")
        self._file = self._temporary.open("wb")
        return self

    def append(self, ids: Sequence[int]) -> None:
        """Write one document and its end.

        Raises:
            LabError: an id outside the vocabulary.
        """
        self.documents += 1
        array = np.asarray(ids, dtype=np.int64)
        if array.size and not 0 <= array.min() <= array.max() < self.vocab_size:
            raise LabError(
                f"document {self.documents} holds token {array.max()}: ids go from 0 to "
                f"{self.vocab_size - 1}, tokenize it with this vocabulary"
            )
        np.append(array, self.end_of_text_id).astype(self.dtype).tofile(self._file)
        self.tokens += array.size + 1

    def __exit__(self, kind: type | None, *_: object) -> None:
        with self._file as file:
            file.flush()
            os.fsync(file.fileno())
        if kind is not None or self.documents == 0:
            self._temporary.unlink()
        if kind is None and self.documents == 0:
            raise LabError("0 documents were given: at least 1 is needed to write tokens")
        if kind is None:
            facts = {
                "dtype": self.dtype.name,
                "tokens": self.tokens,
                "documents": self.documents,
                "vocab_size": self.vocab_size,
            }
            self.path.with_name(self.path.name + ".json").write_text(json.dumps(facts))
            os.replace(self._temporary, self.path)


def write_tokens(
    path: str | os.PathLike,
    documents: Iterable[Sequence[int]],
    vocab_size: int,
    end_of_text_id: int,
) -> np.ndarray:
    """Stream documents to one flat token file, each ended by `end_of_text_id`.

    Args:
        path, vocab_size, end_of_text_id: as in `TokenWriter`.
        documents: token ids of one document after the other; consumed once, one at a time.

    Returns:
        The tokens, memory-mapped read-only, shape (number of tokens,).

    Raises:
        LabError: no document, or an id outside the vocabulary.
    """
    with TokenWriter(path, vocab_size, end_of_text_id) as file:
        for ids in documents:
            file.append(ids)
    return read_tokens(path)


def read_tokens(path: str | os.PathLike) -> np.ndarray:
    """Memory-map a token file read-only: it may be larger than memory.

    Raises:
        LabError: the file or its facts are missing, or the length disagrees with them.
    """
    path = Path(path)
    facts_path = path.with_name(path.name + ".json")
    if not path.exists() or not facts_path.exists():
        raise LabError(f"token file {str(path)!r} is missing: write it with batches.write_tokens")
    facts = json.loads(facts_path.read_text())
    tokens = np.memmap(path, dtype=facts["dtype"], mode="r")
    if len(tokens) != facts["tokens"]:
        raise LabError(
            f"token file {str(path)!r} holds {len(tokens)} tokens instead of {facts['tokens']}: "
            "it is torn, write it again"
        )
    return tokens


# --- examples ----------------------------------------------------------------------------------


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


# --- collators ---------------------------------------------------------------------------------


def stack(examples: Sequence[Example]) -> Batch:
    """Stack examples of one length: each (T,) becomes (B, T)."""
    return {key: torch.stack([e[key] for e in examples]) for key in examples[0]}


class Pad:
    """Collator: pad a batch to its own longest example, rounded up.

    Returns `input_ids` (B, T), `attention_mask` (B, T, 1 = real) and `labels`: (B,) when each is
    one class, else (B, T) padded with -100.
    """

    def __init__(self, pad_id: int, multiple: int = 8):
        """
        Args:
            pad_id: the id written into padding.
            multiple: T is rounded up to a multiple of it (matmul kernels like round shapes).
        """
        self.pad_id, self.multiple = pad_id, multiple

    def __call__(self, examples: Sequence[Example]) -> Batch:
        longest = max(len(e["input_ids"]) for e in examples)
        length = -(-longest // self.multiple) * self.multiple

        def padded(key: str, value: int) -> Tensor:
            rows = torch.full((len(examples), length), value)
            for row, example in zip(rows, examples, strict=True):
                row[: len(example[key])] = torch.as_tensor(example[key])
            return rows

        batch = {"input_ids": padded("input_ids", self.pad_id)}
        lengths = torch.tensor([len(e["input_ids"]) for e in examples])
        batch["attention_mask"] = (torch.arange(length) < lengths.unsqueeze(1)).long()
        if "labels" in examples[0]:
            if torch.as_tensor(examples[0]["labels"]).ndim == 0:
                batch["labels"] = torch.stack([torch.as_tensor(e["labels"]) for e in examples])
            else:
                batch["labels"] = padded("labels", IGNORE_INDEX)
        return batch


# --- the order ---------------------------------------------------------------------------------


class Batches:
    """Examples in global batches; which examples form update `step` is a pure function of it.

    The endless stream concatenates one permutation of all examples per epoch; update `step` takes
    its examples step * batch_size .. (step + 1) * batch_size - 1. So no example is dropped and each
    is seen exactly once an epoch. With `lengths`, every `bucket` batches of the stream are sorted
    by length and dealt again in random order: examples of a batch then need little padding.
    """

    def __init__(
        self,
        examples: Sequence[Example] | Windows,
        batch_size: int,
        collate: Callable[[Sequence[Example]], Batch] = stack,
        seed: int = 0,
        shuffle: bool = True,
        lengths: Sequence[int] | None = None,
        bucket: int = 16,
    ):
        """
        Args:
            examples: anything with `len` and integer indexing.
            batch_size: examples per update over all micro-batches and ranks, at least 1.
            collate: list of examples -> batch.
            seed: of the order.
            shuffle: False keeps the given order in every epoch.
            lengths: length of each example; switches on length bucketing.
            bucket: batches sorted together, at least 1.

        Raises:
            LabError: no examples, or a batch size below 1.
        """
        if len(examples) == 0:
            raise LabError("0 examples were given: at least 1 is needed for a batch")
        if batch_size < 1:
            raise LabError(f"batch_size {batch_size} is out of range: choose at least 1")
        self.examples, self.batch_size, self.collate = examples, batch_size, collate
        self.seed, self.shuffle, self.bucket = seed, shuffle, bucket
        self.lengths = None if lengths is None else np.asarray(lengths)
        self._epochs: dict[int, np.ndarray] = {}
        self._buckets: dict[int, np.ndarray] = {}

    @property
    def steps_per_epoch(self) -> int:
        """Updates until every example was seen once, rounded up."""
        return -(-len(self.examples) // self.batch_size)

    def _permutation(self, epoch: int) -> np.ndarray:
        if epoch not in self._epochs:
            order = np.arange(len(self.examples))
            if self.shuffle:
                np.random.default_rng([self.seed, epoch]).shuffle(order)
            self._epochs = {e: o for e, o in self._epochs.items() if e >= epoch - 1}
            self._epochs[epoch] = order
        return self._epochs[epoch]

    def _stream(self, start: int, stop: int) -> np.ndarray:
        n = len(self.examples)
        parts = [
            self._permutation(e)[max(start - e * n, 0) : stop - e * n]
            for e in range(start // n, (stop - 1) // n + 1)
        ]
        return np.concatenate(parts)

    def indices(self, step: int) -> list[int]:
        """Return the indices of the examples of update `step` (from 0), in order."""
        size = self.batch_size
        if self.lengths is None:
            return self._stream(step * size, (step + 1) * size).tolist()
        number, place = divmod(step, self.bucket)
        if number not in self._buckets:
            span = self.bucket * size
            pool = self._stream(number * span, (number + 1) * span)
            pool = pool[np.argsort(self.lengths[pool], kind="stable")].reshape(self.bucket, size)
            if self.shuffle:
                np.random.default_rng([self.seed, 1 << 31, number]).shuffle(pool)
            self._buckets = {number: pool}
        return self._buckets[number][place].tolist()

    def micro_batches(
        self, step: int, micro_batch_size: int | None = None, rank: int = 0, world_size: int = 1
    ) -> list[Batch]:
        """Return this rank's part of update `step`, cut into micro-batches.

        Args:
            step: the update, from 0.
            micro_batch_size: examples at a time on one rank; None takes the rank's part whole.
            rank, world_size: this process among all; every rank gets equally many micro-batches.

        Raises:
            LabError: the global batch does not divide among the ranks.
        """
        if self.batch_size % world_size:
            raise LabError(
                f"batch_size {self.batch_size} does not divide among {world_size} ranks: choose a "
                f"multiple of {world_size}"
            )
        mine = self.indices(step)[rank::world_size]
        size = micro_batch_size or len(mine)
        return [
            self.collate([self.examples[i] for i in mine[start : start + size]])
            for start in range(0, len(mine), size)
        ]

    def evaluation_batches(self, batch_size: int | None = None) -> Iterator[Batch]:
        """Yield every example once, in the given order (by length where lengths are known)."""
        order = np.arange(len(self.examples))
        if self.lengths is not None:
            order = np.argsort(self.lengths, kind="stable")
        size = batch_size or self.batch_size
        for start in range(0, len(order), size):
            yield self.collate([self.examples[int(i)] for i in order[start : start + size]])
