"""Text to integers and back, without losing a byte.

    text --UTF-8--> bytes --split into words--> bytes of a word --merges, in order--> token ids

Byte-level byte-pair encoding (BPE) starts from the 256 bytes, so that every text can be written,
and joins the most frequent neighbouring pair again and again until the vocabulary is full. Here
training and encoding run in the `tokenizers` crate; `labkit.text.bpe` is the same algorithm written
to be read. `save` writes the `tokenizer.json` that `transformers` opens.

The ids: 0 to 3 are the special tokens, 4 to 259 the bytes, from 260 on the merges as found.

A special token marks structure (end of a text, who speaks). It is put in by id, never by writing
its name: a user who types "<|endoftext|>" gets its 13 characters.

Sources: Sennrich, Haddow, Birch 2016 (BPE); Radford et al. 2019, section 2.2 (bytes, GPT-2).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from labkit.errors import LabError
from labkit.text import bpe
from labkit.text.bpe import byte_alphabet, check_text

END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
USER = "<|user|>"
ASSISTANT = "<|assistant|>"
SPECIAL_TOKENS = (END_OF_TEXT, PAD, USER, ASSISTANT)
SMALLEST_VOCABULARY = len(SPECIAL_TOKENS) + 256


class Tokenizer:
    """A trained tokenizer: `decode(encode(text)) == text` for every text.

    Made by `train_bpe`, `Tokenizer.load` or `Tokenizer.from_pretrained`.
    """

    def __init__(self, backend: tokenizers.Tokenizer, end_of_text: str, pad: str) -> None:
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = True  # the name of a special token in a text stays text
        self.backend = backend
        self.end_of_text = end_of_text
        self.pad = pad

    @property
    def vocab_size(self) -> int:
        """Number of tokens; ids lie in [0, vocab_size)."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    @property
    def end_of_text_id(self) -> int:
        """The id written after each document, and at which generation stops."""
        return self.special_id(self.end_of_text)

    @property
    def pad_id(self) -> int:
        """The id that fills a batch to a rectangle; it is never a target."""
        return self.special_id(self.pad)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """The ids of all special tokens."""
        added = self.backend.get_added_tokens_decoder()
        return frozenset(i for i, token in added.items() if token.special)

    def special_id(self, name: str) -> int:
        """The id of a special token, such as `"<|user|>"`.

        Raises:
            LabError: when the vocabulary has no token of that name.
        """
        token_id = self.backend.token_to_id(name)
        if token_id is None:
            raise LabError(f"This tokenizer has no token {name!r}; train one with `train_bpe`.")
        return token_id

    def encode(self, text: str) -> list[int]:
        """The token ids of a text.

        Args:
            text: any string; it may be empty.
        """
        check_text(text)
        return self.backend.encode(text).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` for many texts, in parallel."""
        texts = list(texts)
        for text in texts:
            check_text(text)
        return [encoding.ids for encoding in self.backend.encode_batch_fast(texts)]

    def encode_file(self, path: str | Path, chunk_characters: int = 2**18) -> Iterator[int]:
        """The token ids of a text file, one after the other: equal to `encode` of all its text.

        The file is read in chunks and cut only between words, so it may be larger than memory:

            np.fromiter(tokenizer.encode_file("corpus.txt"), dtype=np.uint16)

        Args:
            path: a UTF-8 file; line ends stay as they are.
            chunk_characters: read at a time, at least 1.

        Raises:
            LabError: when the file is missing or not UTF-8, or this tokenizer splits its text into
                other words than those of `train_bpe`.

        Cost: memory for a chunk and its ids, whatever the file's size.
        """
        if str(self.backend.pre_tokenizer) != str(_words()):
            raise LabError(
                "This tokenizer splits text into words in its own way, so a file cannot be cut "
                "safely; read the text and pass it to `encode`."
            )
        for text in bpe.cut_between_words(bpe.read_chunks(path, chunk_characters)):
            yield from self.encode(text)

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """The text of some ids; bytes that are not UTF-8 become U+FFFD.

        Raises:
            LabError: when an id lies outside [0, vocab_size).
        """
        ids = [int(i) for i in ids]
        for i in ids:
            self._check_id(i)
        return self.backend.decode(ids, skip_special_tokens=skip_special_tokens)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for; none for a special token.

        They add up: the lengths over `encode(text)` sum to the bytes of `text`, which is what turns
        nats per token into bits per byte.

        Raises:
            LabError: when the id lies outside [0, vocab_size), or the tokenizer is not byte-level.
        """
        self._check_id(token_id)
        return self._bytes_by_id[token_id]

    @property
    def merges(self) -> list[bpe.Merge]:
        """The merges in order, as bytes: what `labkit.text.bpe.BytePairEncoder` takes.

        Raises:
            LabError: when the tokenizer is not a byte-level BPE.
        """
        if not isinstance(self.backend.model, models.BPE):
            kind = type(self.backend.model).__name__
            raise LabError(f"This tokenizer is a {kind} model, which has no merges; give a BPE.")
        merges = json.loads(self.backend.to_str())["model"]["merges"]
        return [(_as_bytes(left), _as_bytes(right)) for left, right in merges]

    def count_bytes(self, ids: Iterable[int]) -> int:
        """The number of bytes of text that some ids stand for."""
        return sum(len(self.token_bytes(int(i))) for i in ids)

    def save(self, folder: str | Path) -> Path:
        """Write `tokenizer.json` and `tokenizer_config.json`; returns the folder.

        `transformers.AutoTokenizer.from_pretrained(folder)` opens it and gives the same ids.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.backend.save(str(folder / "tokenizer.json"))
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": self.end_of_text,
            "pad_token": self.pad,
            "split_special_tokens": True,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 1_000_000,
        }
        (folder / "tokenizer_config.json").write_text(
            json.dumps(config, indent=2) + "\n", encoding="utf-8"
        )
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Read a tokenizer that `save` wrote.

        Raises:
            LabError: when the folder holds no tokenizer, or a damaged one.
        """
        return cls.from_pretrained(folder)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Tokenizer:
        """Read the tokenizer of any model folder in the `transformers` format.

        The end of text is its `eos_token`, or else its `sep_token` (BERT); where it has no padding
        token, the end of text pads. What the model's own tokenizer adds (`[CLS]`, `[SEP]`),
        `encode` adds too.

        Raises:
            LabError: when the folder holds no `tokenizer.json`, or a damaged one.
        """
        folder = Path(folder)
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise LabError(
                f"{folder} holds no tokenizer.json; give a folder written by Tokenizer.save or by "
                "transformers' save_pretrained."
            )
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the crate raises a bare Exception
            raise LabError(f"{path} is damaged ({error}); save the tokenizer again.") from error
        names = _special_names(folder)
        end_of_text = names.get("eos_token") or names.get("sep_token")
        if end_of_text is None:
            raise LabError(
                f"{folder} names neither an eos_token nor a sep_token; add one to "
                "tokenizer_config.json."
            )
        return cls(backend, end_of_text, names.get("pad_token") or end_of_text)

    def _check_id(self, token_id: int) -> None:
        if not 0 <= token_id < self.vocab_size:
            raise LabError(
                f"Token id {token_id} is outside [0, {self.vocab_size}); were these ids made by "
                "another tokenizer?"
            )

    @cached_property
    def _bytes_by_id(self) -> list[bytes]:
        if not isinstance(self.backend.decoder, decoders.ByteLevel):
            raise LabError(
                "This tokenizer is not byte-level, so its tokens do not stand for exact bytes; "
                "count the bytes of the text instead."
            )
        tokens = {i: token for token, i in self.backend.get_vocab(with_added_tokens=True).items()}
        return [
            b"" if i in self.special_ids else _as_bytes(tokens[i]) for i in range(self.vocab_size)
        ]


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learn a byte-level BPE vocabulary from texts.

    Args:
        texts: the corpus; it is read once and need not fit in memory.
        vocab_size: tokens to learn, special tokens and bytes included; at least 260. A corpus with
            too few different pairs gives fewer.

    Returns:
        A tokenizer with `tokenizer.vocab_size <= vocab_size`.

    Raises:
        LabError: when `vocab_size` is below 260, or the texts are empty.

    Source: Sennrich, Haddow, Birch 2016, algorithm 1.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise LabError(
            f"vocab_size is {vocab_size}, smaller than the alphabet: 256 bytes and "
            f"{len(SPECIAL_TOKENS)} special tokens need at least {SMALLEST_VOCABULARY}."
        )
    backend = _backend(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=list(_CHARACTER_OF.values()),
        show_progress=False,
    )
    counted = _Counted(texts)
    backend.train_from_iterator(counted, trainer)
    if counted.characters == 0:
        raise LabError("The texts are empty (0 characters); give at least one text to learn from.")
    return Tokenizer(backend, END_OF_TEXT, PAD)


def from_merges(merges: Sequence[bpe.Merge]) -> Tokenizer:
    """The tokenizer of merges learned by `labkit.text.bpe.learn_merges`.

    Its ids are those of `BytePairEncoder(merges, SPECIAL_TOKENS)`; `save` writes it for
    `transformers`.
    """
    tokens = bpe.BytePairEncoder(merges).bytes_of
    names = [*SPECIAL_TOKENS, *(_as_characters(token) for token in tokens)]
    model = models.BPE(
        vocab={name: i for i, name in enumerate(names)},
        merges=[(_as_characters(left), _as_characters(right)) for left, right in merges],
    )
    backend = _backend(model)
    backend.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL_TOKENS])
    return Tokenizer(backend, END_OF_TEXT, PAD)


def _backend(model: models.Model) -> tokenizers.Tokenizer:
    """A model of the crate behind the words and the bytes of `labkit.text.bpe`."""
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = _words()
    backend.decoder = decoders.ByteLevel()
    return backend


def _words() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(bpe.WORD_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


_CHARACTER_OF = byte_alphabet()
_BYTE_OF = {character: byte for byte, character in _CHARACTER_OF.items()}


def _as_characters(token: bytes) -> str:
    return "".join(_CHARACTER_OF[byte] for byte in token)


def _as_bytes(token: str) -> bytes:
    return bytes(_BYTE_OF[character] for character in token)


class _Counted:
    """Passes texts through and counts their characters."""

    def __init__(self, texts: Iterable[str]) -> None:
        if isinstance(texts, str):
            raise LabError("train_bpe needs a list of texts, not one string; write [text].")
        self.texts = texts
        self.characters = 0

    def __iter__(self) -> Iterator[str]:
        for text in self.texts:
            check_text(text)
            self.characters += len(text)
            yield text


def _special_names(folder: Path) -> dict[str, str]:
    """`eos_token`, `pad_token`, ... as the folder's configuration names them."""
    names: dict[str, str] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        path = folder / file
        if not path.is_file():
            continue
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise LabError(
                f"{path} is not valid JSON ({error}); save the tokenizer again."
            ) from error
        for key, value in entries.items():
            if key.endswith("_token") and value:
                names[key] = value["content"] if isinstance(value, dict) else value
    return names
