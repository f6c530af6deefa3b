"""Answers that are kept: the same causes, the same answer; anything else is searched anew."""

import json

import pytest

from labkit.text import verses
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
