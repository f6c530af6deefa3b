"""Tokens on disk: documents stream into one flat file of integers, read back memory-mapped."""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from labkit.errors import LabError


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
        self._digest = hashlib.sha256()

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
        written = np.append(array, self.end_of_text_id).astype(self.dtype)
        written.tofile(self._file)
        self._digest.update(written.tobytes())
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
                "sha256": self._digest.hexdigest(),
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


def read_tokens(path: str | os.PathLike, verify: bool = False) -> np.ndarray:
    """Memory-map a token file read-only: it may be larger than memory.

    Args:
        path: what `TokenWriter` wrote.
        verify: read all of it and compare its SHA-256, where its facts hold one.

    Raises:
        LabError: the file or its facts are missing or damaged, or they disagree.
    """
    path = Path(path)
    facts_path = path.with_name(path.name + ".json")
    if not path.exists() or not facts_path.exists():
        raise LabError(f"token file {str(path)!r} is missing: write it with batches.write_tokens")
    try:
        facts = json.loads(facts_path.read_text(encoding="utf-8"))
        dtype, count = np.dtype(facts["dtype"]), int(facts["tokens"])
    except (ValueError, KeyError, TypeError) as error:
        raise LabError(f"{facts_path} is damaged ({error}): write the tokens again") from error
    size = path.stat().st_size
    if size != count * dtype.itemsize or not count:
        raise LabError(
            f"token file {str(path)!r} holds {size / dtype.itemsize:g} tokens instead of {count}: "
            "it is torn, write it again"
        )
    if verify and "sha256" in facts:
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != facts["sha256"]:
                raise LabError(
                    f"token file {str(path)!r} does not match its SHA-256: it is altered, write it "
                    "again"
                )
    return np.memmap(path, dtype=dtype, mode="r")
