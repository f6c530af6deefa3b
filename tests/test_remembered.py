"""Answers that are kept: the same causes, the same answer; anything else is searched anew."""

import json

import pytest

from labkit.text import corpora, verses, word_order
from labkit.text.remembered import remembered


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path))
    return tmp_path


def test_a_search_is_made_once_for_the_same_causes(cache):
    made = []

    def answer(*causes):
        return remembered("odd", causes, lambda: made.append(causes) or [len(made)], bool)

    assert answer("a", "b") == answer("a", b"b") == [1]
    assert answer("ab") == [2], "where one cause ends counts"
    assert answer("a", "c") == [3]
    assert len(made) == 3
    assert len(list(cache.glob("odd-*.json"))) == 3


@pytest.mark.parametrize("damage", ["", "[", '{"a": 1}', "[9, 9]", "null"])
def test_an_answer_that_cannot_be_one_is_searched_anew(cache, damage):
    def answer():
        return remembered("odd", ["a"], lambda: [1, 2], lambda it: max(it) < 3)

    answer()
    (file,) = cache.iterdir()
    file.write_text(damage)
    assert answer() == [1, 2]
    assert json.loads(file.read_text()) == [1, 2]


def test_a_cache_that_cannot_be_written_costs_no_more_than_the_search(cache, monkeypatch):
    (cache / "file").write_text("")
    monkeypatch.setenv("LABKIT_CACHE", str(cache / "file"))
    assert remembered("odd", ["a"], lambda: [1], bool) == [1]


def test_twins_of_verses_are_searched_once(cache, monkeypatch):
    searched = []
    search = verses.twins
    monkeypatch.setattr(
        verses, "twins", lambda texts, held: searched.append(len(texts)) or search(texts, held)
    )

    def pairs(**books):
        return {name: list(part["text"]) for name, part in verses.verses(**books).items()}

    books = {"validation": ("Ruth",), "test": ("Jonah",)}
    first = pairs(**books)
    assert len(searched) == 4
    assert pairs(**books) == first
    assert len(searched) == 4
    other = pairs(validation=("Ruth",), test=("Jude",))
    assert len(searched) > 4
    assert other["test"] != first["test"]


def test_sentences_of_the_word_order_task_are_made_once(cache, monkeypatch):
    made = []
    make = word_order.examples
    monkeypatch.setattr(
        word_order, "examples", lambda text, seed: made.append(text) or make(text, seed)
    )

    def rows(name="storyworld", **options):
        splits = word_order.word_order(name, **options)
        return {split: part.to_dict() for split, part in splits.items()}

    first = rows()
    assert len(made) == sum(len(it) for it in corpora.load("storyworld").values())
    count = len(made)
    assert rows() == first
    assert len(made) == count
    assert rows(seed=1) != first
    assert len(made) == 2 * count
    (kept, _) = sorted(cache.glob("word_order-*.json"), key=lambda file: file.stat().st_mtime)
    damaged = json.loads(kept.read_text())
    damaged["test"][0][3] = 10**6  # of no document
    kept.write_text(json.dumps(damaged))
    assert rows() == first
    assert len(made) == 3 * count


def test_nobody_elses_sentences_are_kept(cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mine")
    for i in range(30):
        text = f"my friend number {i} told me about a very long summer."
        (folder / f"{i}.txt").write_text(text)
    assert len(word_order.word_order(str(folder))["train"]) > 5
    assert not any("friend" in file.read_text() for file in cache.glob("*"))
