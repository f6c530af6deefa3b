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
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from labkit.atomic import write_json, write_text
from labkit.errors import LabError
from labkit.text import bpe
from labkit.text.bpe import byte_alphabet, check_text
from labkit.text.chat_template import IN_WORDS, OWN, Message, check_messages, render

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

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        end_of_text: str,
        pad: str,
        end_of_turn: str | None = None,
        begin_of_text: str | None = None,
        chat_template: str | None = None,
        context_length: int | None = None,
    ) -> None:
        """Args:
        backend: of the crate `tokenizers`.
        end_of_text: the token that stands between documents.
        pad: the token that fills a batch.
        end_of_turn: the token that ends an answer; None: `end_of_text`.
        begin_of_text: what a chat template finds as `bos_token`; None: `end_of_text`.
        chat_template: as in `chat_template.render`; None: one that fits the vocabulary.
        context_length: tokens that the model beside it is used to, where that is known.
        """
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = True  # the name of a special token in a text stays text
        self.backend = backend
        self.end_of_text = end_of_text
        self.pad = pad
        self.end_of_turn = end_of_turn or end_of_text
        self.begin_of_text = begin_of_text or end_of_text
        speakers = backend.token_to_id(USER), backend.token_to_id(ASSISTANT)
        fitting = IN_WORDS if None in speakers else OWN
        self.chat_template = chat_template or fitting
        self.context_length = context_length

    @property
    def vocab_size(self) -> int:
        """Number of tokens; ids lie in [0, vocab_size)."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    @property
    def end_of_text_id(self) -> int:
        """The id written after each document, at which generation stops."""
        return self.special_id(self.end_of_text)

    @property
    def end_of_turn_id(self) -> int:
        """The id written after each answer, at which generation stops, too; often the same."""
        return self.special_id(self.end_of_turn)

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

    @cached_property
    def marks(self) -> tuple[list[int], list[int]]:
        """The ids that `encode` puts before and after every text, such as [CLS] and [SEP]."""
        plain = self.backend.encode("a", add_special_tokens=False).ids
        whole = self.backend.encode("a").ids
        for start in range(len(whole) - len(plain) + 1):
            end = start + len(plain)
            if whole[start:end] == plain:
                return whole[:start], whole[end:]
        return [], []

    def encode_pairs(
        self, firsts: Sequence[str], seconds: Sequence[str], max_length: int
    ) -> list[tuple[list[int], list[int]]]:
        """Token ids and segment ids (0: the first text, 1: the second) of pairs of texts.

        Marks stand between the two as the tokenizer's own template has them; where it has none, a
        line break. A pair that is too long loses tokens of the longer text first.

        Args:
            firsts, seconds: equally many texts.
            max_length: tokens of a pair, marks included.

        Raises:
            LabError: the marks alone fill max_length.
        """
        for text in (*firsts, *seconds):
            check_text(text)
        backend = tokenizers.Tokenizer.from_str(self.backend.to_str())
        backend.encode_special_tokens = self.backend.encode_special_tokens
        marks = len(backend.encode("", "").ids)
        if max_length < marks + 2:
            raise LabError(
                f"max_length {max_length} is out of range: two texts need at least {marks + 2}"
            )
        if not marks - sum(map(len, self.marks)):
            seconds = ["\n" + text for text in seconds]
        backend.enable_truncation(max_length, strategy="longest_first")
        pairs = list(zip(firsts, seconds, strict=True))
        return [(encoding.ids, encoding.type_ids) for encoding in backend.encode_batch(pairs)]

    def apply_chat_template(
        self, messages: Sequence[Message], add_generation_prompt: bool = True
    ) -> list[int]:
        """The token ids of a conversation, in the form that the model was made for.

        The template's special tokens become special; the name of one in a message stays text.

        Args:
            messages: turns such as `{"role": "user", "content": "Hello"}`.
            add_generation_prompt: end where the answer of the assistant begins.

        Raises:
            LabError: no message, an unknown role, or the template refuses the conversation.
        """
        check_messages(messages)
        for message in messages:
            check_text(message["content"])
        special = [token.content for token in self.backend.get_added_tokens_decoder().values()]
        said = "".join(message["content"] for message in messages)
        meant = [name for name in special if name in said]
        if not meant:
            text = self._render(messages, add_generation_prompt)
            return self._with_special_tokens.encode(text, add_special_tokens=False).ids
        # Messages name special tokens. Hide those names while the template's own are found.
        unused = (chr(code) for code in range(0xE000, 0xF900) if chr(code) not in said)
        hidden = dict(zip(meant, unused, strict=False))
        masked = [
            {**message, "content": _replace_all(message["content"], hidden)} for message in messages
        ]
        text = self._render(masked, add_generation_prompt)
        shown = {mark: name for name, mark in hidden.items()}
        longest_first = sorted(special, key=len, reverse=True)
        ids: list[int] = []
        for piece in re.split(f"({'|'.join(map(re.escape, longest_first))})", text):
            if piece in longest_first:
                ids.append(self.special_id(piece))
            elif piece:
                restored = _replace_all(piece, shown)
                ids += self.backend.encode(restored, add_special_tokens=False).ids  # pyright: ignore[reportCallIssue]
        return ids

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        return render(
            self.chat_template,
            messages,
            add_generation_prompt,
            bos_token=self.begin_of_text,
            eos_token=self.end_of_turn,
            pad_token=self.pad,
        )

    @cached_property
    def _with_special_tokens(self) -> Any:
        """The same tokenizer, to which the name of a special token is that token."""
        backend = tokenizers.Tokenizer.from_str(self.backend.to_str())
        backend.encode_special_tokens = False
        return backend

    def encode_file(self, path: str | Path, chunk_characters: int = 2**14) -> Iterator[int]:
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

    def save(self, folder: str | Path, context_length: int | None = None) -> Path:
        """Write `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja`.

        `transformers.AutoTokenizer.from_pretrained(folder)` opens it, gives the same ids for a
        text, and the same conversation with `apply_chat_template`. There, as with every tokenizer,
        the name of a special token in a text becomes that token.

        Args:
            folder: made if it is not there.
            context_length: tokens that the model beside it reads, where that is known.

        Returns:
            The folder.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.backend.save(str(folder / "tokenizer.json"))
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": self.begin_of_text,  # what stands for an empty prompt
            "eos_token": self.end_of_turn,
            "pad_token": self.pad,
            "clean_up_tokenization_spaces": False,
        }
        if context_length is not None:
            config["model_max_length"] = context_length
        write_json(folder / "tokenizer_config.json", config)
        write_text(folder / "chat_template.jinja", self.chat_template)
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

        An answer ends at its `eos_token`, or else its `sep_token` (BERT); so does a text, unless
        there is a `<|endoftext|>` besides (chat models end a turn and a text differently). Where it
        has no padding token, the end of text pads. What the model's own tokenizer adds (`[CLS]`,
        `[SEP]`), `encode` adds too.

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
        for role in ("eos_token", "sep_token", "pad_token", "bos_token"):
            if role in names and backend.token_to_id(names[role]) is None:
                raise LabError(
                    f"{folder} names {names[role]!r} as its {role}, which its tokenizer.json "
                    "lacks; name a token that is there."
                )
        end_of_turn = names.get("eos_token") or names.get("sep_token")
        if end_of_turn is None:
            raise LabError(
                f"{folder} names neither an eos_token nor a sep_token; add one to "
                "tokenizer_config.json."
            )
        special = {token.content for token in backend.get_added_tokens_decoder().values()}
        end_of_text = END_OF_TEXT if END_OF_TEXT in special else end_of_turn
        pad = names.get("pad_token") or end_of_text
        begin = names.get("bos_token")
        longest = _read_entries(folder / "tokenizer_config.json").get("model_max_length")
        known = isinstance(longest, int) and 0 < longest < 1_000_000  # else: no limit
        return cls(
            backend, end_of_text, pad, end_of_turn, begin, _chat_template(folder),
            longest if known else None,
        )  # fmt: skip

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


def train_bpe(
    texts: Iterable[str], vocab_size: int, special_tokens: Sequence[str] = ()
) -> Tokenizer:
    """Learn a byte-level BPE vocabulary from texts.

    Args:
        texts: the corpus; it is read once and need not fit in memory.
        vocab_size: tokens to learn, special tokens and bytes included; at least 260 and one for
            each of `special_tokens`. A corpus with too few different pairs gives fewer.
        special_tokens: names of further special tokens, such as `"<|mask|>"`; their ids follow
            those of `SPECIAL_TOKENS`, in this order.

    Returns:
        A tokenizer with `tokenizer.vocab_size <= vocab_size`.

    Raises:
        LabError: when `vocab_size` is too small, a special token is empty or given twice, or the
            texts are empty.

    Source: Sennrich, Haddow, Birch 2016, algorithm 1.
    """
    special = [*SPECIAL_TOKENS, *special_tokens]
    for name in special_tokens:
        if not name or special.count(name) > 1:
            raise LabError(
                f"special_tokens holds {name!r}, which is empty or there already: give each a name "
                f"of its own, and none of {', '.join(SPECIAL_TOKENS)}"
            )
    if vocab_size < len(special) + 256:
        raise LabError(
            f"vocab_size is {vocab_size}, smaller than the alphabet: 256 bytes and "
            f"{len(special)} special tokens need at least {len(special) + 256}."
        )
    backend = _backend(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
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


def _replace_all(text: str, pairs: Mapping[str, str]) -> str:
    for old in sorted(pairs, key=len, reverse=True):
        text = text.replace(old, pairs[old])
    return text


def _chat_template(folder: Path) -> str | None:
    """The template that a folder carries: a file of its own, or an entry of the configuration."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    config = _read_entries(folder / "tokenizer_config.json")
    found = config.get("chat_template")
    if isinstance(found, list):  # several, by name
        found = next((it["template"] for it in found if it.get("name") == "default"), None)
    return found


def _special_names(folder: Path) -> dict[str, str]:
    """`eos_token`, `pad_token`, ... as the folder's configuration names them."""
    names: dict[str, str] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        for key, value in _read_entries(folder / file).items():
            name = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and name:
                if not isinstance(name, str):
                    raise LabError(f"{folder / file} names {value!r} as {key}; name a token there.")
                names[key] = name
    return names


def _read_entries(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise LabError(f"{path} is not valid JSON ({error}); save the tokenizer again.") from error
    if not isinstance(entries, dict):
        raise LabError(f"{path} holds a {type(entries).__name__}, not names and values.")
    return entries
