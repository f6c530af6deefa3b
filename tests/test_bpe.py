"""BPE from scratch: the crate's merges and ids, lossless on any bytes, streams of any cut."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from labkit.errors import LabError
from labkit.text import bpe, tokenizers

TEXTS = [
    "The key is in the kitchen now. Amara has the key; don't ask.",
    "¿Dónde está? 它在厨房里。 🗝️\n\tdef f(x):\n        return x  \n\n",
    "aaaaaaaa baaaab abababab " + "=" * 40,
] * 5
MERGES = bpe.learn_merges(bpe.count_words(TEXTS), 120)
ENCODER = bpe.BytePairEncoder(MERGES, tokenizers.SPECIAL_TOKENS)
CRATE = tokenizers.from_merges(MERGES)

#: Texts that the merges of TEXTS have something to do on.
familiar = st.text(alphabet="the kyab'=d\n 它é\u3000", max_size=60)
anything = st.one_of(st.text(), familiar)


def naive_merges(word_counts: Counter[bytes], num_merges: int) -> list[bpe.Merge]:
    """Algorithm 1 as printed: count all pairs again for every merge. Ties go by id."""
    words = {word: [word[i : i + 1] for i in range(len(word))] for word in word_counts}
    ids = {token: i for i, token in enumerate(bpe.SINGLE_BYTES)}
    merges = []
    for _ in range(num_merges):
        pairs: Counter[bpe.Merge] = Counter()
        for word, parts in words.items():
            for pair in pairwise(parts):
                pairs[pair] += word_counts[word]
        if not pairs:
            break
        left, right = min(pairs, key=lambda p: (-pairs[p], ids[p[0]], ids[p[1]]))
        merges.append((left, right))
        ids.setdefault(left + right, len(ids))
        for parts in words.values():
            i = 0
            while i < len(parts) - 1:
                if parts[i : i + 2] == [left, right]:
                    parts[i : i + 2] = [left + right]
                i += 1
    return merges


def test_incremental_counts_give_the_merges_of_counting_again() -> None:
    counts = bpe.count_words(TEXTS)
    assert bpe.learn_merges(counts, 120) == naive_merges(counts, 120)


def test_words_are_weighted_by_how_often_they_occur() -> None:
    assert bpe.learn_merges({b"ab": 3, b"cd": 2, b"ce": 1, b"cf": 1}, 1) == [(b"a", b"b")]


def test_learning_ends_when_every_word_is_one_token() -> None:
    assert bpe.learn_merges({b"abc": 1}, 50) == [(b"a", b"b"), (b"ab", b"c")]
    assert bpe.learn_merges({}, 5) == []


@given(anything)
def test_words_join_to_the_text(text: str) -> None:
    assert "".join(bpe.split_words(text)) == text


@given(st.text(st.characters(exclude_categories=("Cs", "Cn", "Co"))))
def test_words_are_those_of_gpt2_in_the_crate(text: str) -> None:
    from tokenizers import pre_tokenizers

    theirs = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)
    assert bpe.split_words(text) == [text[a:b] for _, (a, b) in theirs]


@given(anything, st.lists(st.integers(0, 60), max_size=6))
@example("\r\r00", [])
@settings(max_examples=300)
def test_pieces_of_a_text_end_between_words_however_it_was_cut(text: str, cuts: list[int]) -> None:
    ends = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    chunks = [text[a:b] for a, b in pairwise(ends)]
    pieces = list(bpe.cut_between_words(chunks))
    assert [word for piece in pieces for word in bpe.split_words(piece)] == bpe.split_words(text)


def test_contractions_and_spaces_survive_every_cut() -> None:
    text = "we're there's  they'll'd  x\n\n y 12'34 '''ve 它'它 'r"
    for a in range(len(text) + 1):
        for chunks in ([text[:a], text[a:]], [*text[:a], text[a:]]):
            words = [w for piece in bpe.cut_between_words(chunks) for w in bpe.split_words(piece)]
            assert words == bpe.split_words(text)


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_any_bytes_survive_the_round_trip(data: bytes) -> None:
    ids = ENCODER.encode(data)
    assert ENCODER.decode(ids) == data
    assert not set(range(4)) & set(ids)


@given(anything)
def test_a_text_and_its_utf8_have_the_ids_of_the_crate(text: str) -> None:
    ids = ENCODER.encode(text)
    assert ids == ENCODER.encode(text.encode()) == CRATE.encode(text)
    assert ENCODER.decode(ids).decode() == text


@given(st.lists(st.text("ab ", min_size=1, max_size=40), min_size=1, max_size=4))
@settings(max_examples=100, deadline=None)
def test_ties_and_overlaps_are_broken_as_in_the_crate(texts: list[str]) -> None:
    crate = tokenizers.train_bpe(texts, 275)
    merges = bpe.learn_merges(bpe.count_words(texts), 275 - 260)
    assert tokenizers.from_merges(merges).backend.to_str() == crate.backend.to_str()


def test_merges_apply_in_the_order_of_their_rank() -> None:
    encoder = bpe.BytePairEncoder([(b"b", b"c"), (b"a", b"b"), (b"ab", b"c"), (b"c", b"d")])
    assert encoder.pieces(b"abcd") == [b"a", b"bc", b"d"]  # from the left: ab, cd
    encoder = bpe.BytePairEncoder([(b"a", b"a"), (b"aa", b"aa")])
    assert encoder.pieces(b"aaaaaaa") == [b"aaaa", b"aa", b"a"]


@given(st.binary(max_size=300), st.integers(1, 9))
@settings(max_examples=100, deadline=None)
def test_a_file_has_the_ids_of_its_bytes(tmp_path_factory, data: bytes, chunk: int) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(data + "它é🗝️\r\n".encode() + data)
    assert list(ENCODER.encode_file(path, chunk)) == ENCODER.encode(path.read_bytes())


def test_cutting_anywhere_would_change_the_ids() -> None:
    text = TEXTS[0]
    naive = [i for start in range(0, len(text), 7) for i in ENCODER.encode(text[start : start + 7])]
    assert naive != ENCODER.encode(text)


@pytest.mark.parametrize("unit", [b"a", b" ", "它".encode(), b"\xff", b"word \n"])
def test_a_stream_needs_no_more_memory_for_a_longer_file(tmp_path, unit: bytes) -> None:
    def peak(size: int) -> int:
        path = tmp_path / "long"
        path.write_bytes(unit * (size // len(unit)))
        encoder = bpe.BytePairEncoder(MERGES)
        tracemalloc.start()
        for _ in encoder.encode_file(path, 2**12):
            pass
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    assert peak(90_000) < 1.2 * peak(30_000) + 10_000


def test_the_documented_ids() -> None:
    assert [ENCODER.special_id(name) for name in tokenizers.SPECIAL_TOKENS] == [0, 1, 2, 3]
    assert sorted(ENCODER.bytes_of[4:260]) == [bytes([b]) for b in range(256)]
    assert ENCODER.bytes_of[260:] == [a + b for a, b in MERGES]
    assert ENCODER.vocab_size == CRATE.vocab_size == 361


@pytest.mark.parametrize("special", tokenizers.SPECIAL_TOKENS)
def test_a_special_token_written_in_a_text_stays_text(special: str) -> None:
    for data in (f"a{special} b", f"a{special} b".encode()):
        ids = ENCODER.encode(data)
        assert not {0, 1, 2, 3} & set(ids)
        assert ENCODER.decode(ids).decode() == f"a{special} b"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bpe.learn_merges({b"ab": 1}, -1), "-1 merges"),
        (lambda: bpe.count_words("one string"), "not one string"),
        (lambda: bpe.count_words([b"bytes"]), "not bytes"),  # type: ignore[list-item]
        (lambda: ENCODER.encode("\ud800"), "surrogate"),
        (lambda: ENCODER.decode([361]), r"outside \[0, 361\)"),
        (lambda: ENCODER.decode([-1]), r"outside \[0, 361\)"),
        (lambda: ENCODER.special_id("<|x|>"), "no special token"),
        (lambda: list(ENCODER.encode_file("/nowhere")), "no file"),
        (lambda: list(ENCODER.encode_file(__file__, 0)), "at least 1"),
    ],
)
def test_bad_input_is_said_in_one_sentence(make, message: str) -> None:
    with pytest.raises(LabError, match=message):
        make()
