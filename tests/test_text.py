"""Cleaning repairs without simplifying; duplicates are found; splits do not leak."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit import text
from labkit.errors import LabError


def article(seed: int, length: int = 200) -> list[str]:
    rng = random.Random(seed)
    return [f"w{rng.randrange(5000)}" for _ in range(length)]


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        ("The cafÃ© is open.", "The café is open."),
        ("<p>One &amp; two</p><p>three</p>", "One & two\n\nthree"),
        ("a<br>b", "a\nb"),
        ("<script>x = 1</script>kept<!-- gone -->", "kept"),
        ("if a < b and c > d:", "if a < b and c > d:"),
        ("1 < 2, vector<int> v", "1 < 2, vector v"),
        ("e\u0301", "é"),
        ("x² stays", "x² stays"),
        ("a\r\nb\rc", "a\nb\nc"),
        ("  two   spaces \t and\n\n\n\nlines  ", "two spaces and\n\nlines"),
        ("zero\u200bwidth\x00", "zerowidth"),
        ("Don't STOP, please!", "Don't STOP, please!"),
    ],
)
def test_clean_repairs_and_keeps(raw: str, wanted: str) -> None:
    assert text.clean(raw) == wanted


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_white_space_and_unicode_steps_are_idempotent(raw: str) -> None:
    once = text.collapse_whitespace(text.normalize_unicode(raw))
    assert text.collapse_whitespace(text.normalize_unicode(once)) == once
    once.encode()


def test_exact_duplicates_ignore_case_space_and_punctuation() -> None:
    found = text.exact_duplicates(["The key.", "A map", "the  KEY", "a map!"])
    assert found == [text.Duplicate(0, 2, 1.0), text.Duplicate(1, 3, 1.0)]


def test_near_duplicates_are_found_and_others_are_not() -> None:
    originals = [article(seed) for seed in range(50)]
    edited = [[*words[:20], "changed", *words[21:], "more"] for words in originals[:10]]
    texts = [" ".join(words) for words in [*originals, *edited]]
    found = text.near_duplicates(texts)
    assert [(d.kept, d.dropped) for d in found] == [(i, 50 + i) for i in range(10)]
    assert all(0.5 <= d.similarity < 1 for d in found)
    assert text.near_duplicates(texts, threshold=1.0) == []


def test_similarity_is_the_true_jaccard_similarity() -> None:
    texts = ["a b c d e f g h", "a b c d e f g x"]
    (found,) = text.near_duplicates(texts, threshold=0.3, shingle_words=2)
    assert found == text.Duplicate(0, 1, pytest.approx(6 / 8))


def test_a_chain_of_edits_is_one_cluster() -> None:
    words = article(1)
    chain = [" ".join([*[f"x{i}"] * (12 * i), *words[12 * i :]]) for i in range(5)]
    assert {d.kept for d in text.near_duplicates(chain)} == {0}
    kept, exact, near = text.deduplicate([*chain, chain[0], " ".join(article(2))])
    assert (kept, len(exact), len(near)) == ([0, 6], 1, 4)


def test_splits_follow_content_and_have_the_asked_sizes() -> None:
    texts = [f"text number {i}" for i in range(5000)]
    splits = text.split_by_hash(texts, validation=0.2, test=0.1)
    assert sorted(itertools.chain(*splits.values())) == list(range(5000))
    assert len(splits["validation"]) == pytest.approx(1000, abs=100)
    assert len(splits["test"]) == pytest.approx(500, abs=80)
    half = text.split_by_hash(texts[:2500], validation=0.2, test=0.1)
    assert half["test"] == [i for i in splits["test"] if i < 2500]
    assert text.split_by_hash(texts, seed=1) != text.split_by_hash(texts, seed=0)
    same = text.split_by_hash(["The key.", "the KEY"], 0.5, 0.4)
    assert sorted(map(len, same.values())) == [0, 0, 2]


def test_leakage_names_the_test_text_and_its_source() -> None:
    train = [" ".join(article(seed)) for seed in range(20)]
    test = [" ".join(article(100)), train[7].upper() + " again", train[3]]
    found = text.leakage(train, test)
    assert [(d.kept, d.dropped) for d in found] == [(7, 1), (3, 2)]
    assert text.leakage(train, test[:1]) == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: text.near_duplicates(["a"], threshold=0), r"threshold is 0"),
        (lambda: text.near_duplicates(["a"], threshold=1.5), r"\(0, 1\]"),
        (lambda: text.near_duplicates(["a"], shingle_words=0), "at least 1"),
        (lambda: text.split_by_hash(["a"], validation=0.6, test=0.5), "less than 1"),
        (lambda: text.split_by_hash(["a"], validation=-0.1), r"\[0, 1\)"),
    ],
)
def test_bad_arguments_are_said(call, message: str) -> None:
    with pytest.raises(LabError, match=message):
        call()
