"""Passages of a test that stand in training texts: found inside longer ones, not by chance."""

import pytest

from labkit.errors import LabError
from labkit.text import contained_passages, corpora, leakage


@pytest.fixture(scope="module")
def news():
    train, test = (corpora.load("bbc_news", split)["text"] for split in ("train", "test"))
    return list(train[:150]), list(test[:40])


def test_a_passage_inside_a_longer_text_is_found(news):
    """Forty words of a test text, in another case, in the middle of a training one."""
    train, test = news
    piece = " ".join(test[7].split()[20:60]).upper().replace(",", " -")
    planted = [train[0] + " " + piece + " " + train[1], *train[2:]]
    found = contained_passages(planted, test)
    before = contained_passages(train, test)
    raised = [i for i in range(40) if found[i].share > before[i].share]
    assert raised == [7]
    assert found[7].share == pytest.approx(40 / len(test[7].split()), abs=0.03)
    assert len(found[7].passage.split()) >= 38
    assert leakage(planted, test) == leakage(train, test), "whole texts have little in common"


def test_a_run_one_word_shorter_does_not_count():
    words = [f"w{i}" for i in range(40)]
    train = [" ".join(["x", *words[:12], "y", *words[20:33], "z"])]
    (found,) = contained_passages(train, [" ".join(words)])
    assert found.share == 13 / 40
    assert found.passage == " ".join(words[20:33])


def test_short_texts_count_whole_and_empty_ones_never():
    train = ["the key is in the garden", ""]
    found = contained_passages(train, ["Is in the GARDEN!", "the garden key", "", "..."])
    assert [it.share for it in found] == [1.0, 0.0, 0.0, 0.0]


def test_overlapping_runs_cover_each_word_once():
    (found,) = contained_passages(["a b c d e f"], ["x a b c d e y"], run_words=3)
    assert (found.share, found.passage) == (5 / 7, "a b c d e")


def test_training_texts_are_read_once():
    found = contained_passages(iter(["one two three"]), ["one two", "two three"], run_words=2)
    assert [it.share for it in found] == [1.0, 1.0]


def test_a_run_of_no_words_is_refused():
    with pytest.raises(LabError, match="run_words 0 is out of range"):
        contained_passages([], [], run_words=0)
