"""Tokenizers: lossless, safe against special tokens in text, the same ids in transformers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.errors import LabError
from labkit.text import corpora, tokenizers

TEXTS = [
    "The key is in the kitchen now. Amara has the key.",
    "Where is the key? The key is in the kitchen.",
    "¿Dónde está? 它在厨房里。 🗝️\n\tdef f(x): return x\n",
] * 20
BYTES_ONLY = tokenizers.train_bpe(["a b"], 260)


@pytest.fixture(scope="module")
def bpe() -> tokenizers.Tokenizer:
    return tokenizers.train_bpe(TEXTS, 320)


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_any_text_survives_the_round_trip(text: str) -> None:
    assert BYTES_ONLY.decode(BYTES_ONLY.encode(text)) == text


def test_real_text_survives_the_round_trip_and_shrinks(bpe: tokenizers.Tokenizer) -> None:
    for text in TEXTS:
        ids = bpe.encode(text)
        assert bpe.decode(ids) == text
        assert len(ids) < len(text.encode())


def test_bytes_of_the_tokens_are_the_bytes_of_the_text(bpe: tokenizers.Tokenizer) -> None:
    for text in TEXTS[:3]:
        ids = bpe.encode(text)
        assert b"".join(bpe.token_bytes(i) for i in ids) == text.encode()
        assert bpe.count_bytes([*ids, bpe.end_of_text_id]) == len(text.encode())
    assert bpe.token_bytes(bpe.end_of_text_id) == b""


def test_the_documented_ids(bpe: tokenizers.Tokenizer) -> None:
    assert [bpe.special_id(s) for s in tokenizers.SPECIAL_TOKENS] == [0, 1, 2, 3]
    assert (bpe.end_of_text_id, bpe.pad_id) == (0, 1)
    assert bpe.special_ids == {0, 1, 2, 3}
    assert sorted(bpe.token_bytes(i) for i in range(4, 260)) == [bytes([b]) for b in range(256)]
    assert all(len(bpe.token_bytes(i)) > 1 for i in range(260, bpe.vocab_size))


@pytest.mark.parametrize("special", tokenizers.SPECIAL_TOKENS)
def test_a_special_token_written_in_a_text_stays_text(
    bpe: tokenizers.Tokenizer, special: str
) -> None:
    text = f"before {special} after{special}"
    for ids in (bpe.encode(text), bpe.encode_batch([text])[0]):
        assert not bpe.special_ids & set(ids)
        assert bpe.decode(ids) == text


def test_decode_can_leave_special_tokens_out(bpe: tokenizers.Tokenizer) -> None:
    ids = [*bpe.encode("key"), bpe.end_of_text_id]
    assert bpe.decode(ids) == "key<|endoftext|>"
    assert bpe.decode(ids, skip_special_tokens=True) == "key"


def test_training_twice_gives_the_same_tokenizer(bpe: tokenizers.Tokenizer) -> None:
    assert tokenizers.train_bpe(iter(TEXTS), 320).backend.to_str() == bpe.backend.to_str()


def test_save_load_and_transformers_agree(bpe: tokenizers.Tokenizer, tmp_path) -> None:
    from transformers import AutoTokenizer

    folder = bpe.save(tmp_path / "tokenizer")
    loaded = tokenizers.Tokenizer.load(folder)
    theirs = AutoTokenizer.from_pretrained(folder)
    assert loaded.vocab_size == bpe.vocab_size == len(theirs)
    assert (theirs.eos_token_id, theirs.pad_token_id) == (bpe.end_of_text_id, bpe.pad_id)
    for text in [*TEXTS[:3], "a <|user|> b", ""]:
        ids = theirs(text, split_special_tokens=True)["input_ids"]
        assert loaded.encode(text) == bpe.encode(text) == ids
        assert theirs.decode(bpe.encode(text)) == text
        if "<|" not in text:  # there, a name is its token unless one asks otherwise
            assert theirs(text)["input_ids"] == ids


def test_minilm_tokenizer_gives_the_ids_of_transformers() -> None:
    from transformers import AutoTokenizer

    folder = corpora.minilm_folder()
    ours, theirs = (
        tokenizers.Tokenizer.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
    )
    long = "Profits at the media giant rose. " * 100
    for text in ("Profits rose 76% to $1.13bn (£600m).", long):
        assert ours.encode(text) == theirs(text)["input_ids"]
    assert ours.pad_id == theirs.pad_token_id
    with pytest.raises(LabError, match="not byte-level"):
        ours.token_bytes(5)


@pytest.mark.parametrize("chunk", [1, 7, 64, 10_000])
def test_a_file_has_the_ids_of_its_text(bpe: tokenizers.Tokenizer, tmp_path, chunk: int) -> None:
    path = tmp_path / "corpus.txt"
    text = "\r\n".join(TEXTS) + "a" * 5000 + " " * 3000 + "它" * 2000
    path.write_bytes(text.encode())
    assert list(bpe.encode_file(path, chunk)) == bpe.encode(text)
    cut = [i for start in range(0, len(text), 7) for i in bpe.encode(text[start : start + 7])]
    assert cut != bpe.encode(text), "cutting anywhere must be noticed"


def test_a_file_that_cannot_be_streamed_is_refused(bpe: tokenizers.Tokenizer, tmp_path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes("£5".encode("latin-1"))
    with pytest.raises(LabError, match="not UTF-8"):
        list(bpe.encode_file(path))
    with pytest.raises(LabError, match="no file"):
        list(bpe.encode_file(tmp_path / "nothing"))
    bert = tokenizers.Tokenizer.from_pretrained(corpora.minilm_folder())
    with pytest.raises(LabError, match="words in its own way"):
        list(bert.encode_file(path))


def test_merges_leave_the_crate_and_come_back(bpe: tokenizers.Tokenizer, tmp_path) -> None:
    made = tokenizers.from_merges(bpe.merges)
    assert made.backend.to_str() == bpe.backend.to_str()
    assert len(bpe.merges) == bpe.vocab_size - 260
    with pytest.raises(LabError, match="no merges"):
        _ = tokenizers.Tokenizer.from_pretrained(corpora.minilm_folder()).merges


def test_from_scratch_to_transformers(tmp_path) -> None:
    from transformers import AutoTokenizer

    from labkit.text.bpe import BytePairEncoder, count_words, learn_merges

    merges = learn_merges(count_words(TEXTS), 60)
    ours = BytePairEncoder(merges, tokenizers.SPECIAL_TOKENS)
    theirs = AutoTokenizer.from_pretrained(tokenizers.from_merges(merges).save(tmp_path))
    for text in [*TEXTS[:3], "a <|user|> b", ""]:
        assert theirs(text, split_special_tokens=True)["input_ids"] == ours.encode(text)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tokenizers.train_bpe(["a"], 259), "at least 260"),
        (lambda: tokenizers.train_bpe([], 300), "empty"),
        (lambda: tokenizers.train_bpe(["", ""], 300), "empty"),
        (lambda: tokenizers.train_bpe("one string", 300), "not one string"),
        (lambda: tokenizers.train_bpe(["a"], 260).encode("\ud800"), "surrogate"),
        (lambda: tokenizers.train_bpe(["a"], 260).encode(b"a"), "not bytes"),  # type: ignore[arg-type]
        (lambda: tokenizers.train_bpe(["a"], 260).decode([260]), r"outside \[0, 260\)"),
        (lambda: tokenizers.train_bpe(["a"], 260).token_bytes(-1), r"outside \[0, 260\)"),
        (lambda: tokenizers.train_bpe(["a"], 260).special_id("<|x|>"), "no token"),
    ],
)
def test_bad_input_is_said_in_one_sentence(make, message: str) -> None:
    with pytest.raises(LabError, match=message):
        make()


def test_a_missing_or_damaged_tokenizer_is_named(bpe: tokenizers.Tokenizer, tmp_path) -> None:
    with pytest.raises(LabError, match=r"no tokenizer\.json"):
        tokenizers.Tokenizer.load(tmp_path)
    folder = bpe.save(tmp_path)
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    (folder / "tokenizer.json").write_text(text[: len(text) // 2], encoding="utf-8")
    with pytest.raises(LabError, match="damaged"):
        tokenizers.Tokenizer.load(folder)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the kernel's own count")
@pytest.mark.parametrize("ends", ["\n", " "])
def test_a_file_is_encoded_in_the_memory_of_a_chunk(ends, tmp_path):
    """4 MB of text, in lines or in a single one, cost less than 8 MB beside what is loaded."""
    code = f"""
import os
from labkit.text import train_bpe
words = "the key lamp garden kitchen went took red blue house door ate bread found".split()
tokenizer = train_bpe([" ".join(words)], 400)
lines = [" ".join(words[i % 14:] + words[: i % 14]) for i in range(40_000)]
with open({str(tmp_path / "long.txt")!r}, "w") as file:
    file.write({ends!r}.join(lines))
del lines

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

for _ in tokenizer.encode_file({str(tmp_path / "long.txt")!r}):
    break
before = peak = resident()
for number, _ in enumerate(tokenizer.encode_file({str(tmp_path / "long.txt")!r})):
    if number % 2000 == 0:
        peak = max(peak, resident())
print(os.path.getsize({str(tmp_path / "long.txt")!r}) / 1e6, peak - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    size, grown = map(float, done.stdout.split())
    assert size > 2.5
    assert grown < 8
