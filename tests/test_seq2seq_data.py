"""Verses, headlines, docstrings: aligned pairs, nothing in two parts, readers that know nothing."""

import ast
import doctest

import numpy as np
import pytest

from labkit.errors import LabError
from labkit.evaluation import bleu, chrf, word_f1
from labkit.text import corpora, docstrings, headlines, verses

PARTS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def bible():
    return verses.verses()


@pytest.fixture(scope="module")
def code():
    return docstrings.docstrings()


def test_the_examples_in_the_docstrings():
    for module in (verses, headlines, docstrings):
        tests = doctest.testmod(module)
        assert tests.attempted
        assert tests.failed == 0


# --- verses ------------------------------------------------------------------------------------


def test_verses_are_held_out_by_book(bible):
    assert sum(len(bible[part]) for part in PARTS) > 30_000
    assert set(bible["test"]["book"]) == set(verses.TEST_BOOKS)
    assert set(bible["validation"]["book"]) == set(verses.VALIDATION_BOOKS)
    assert len(set(bible["train"]["book"])) == 66 - 10
    row = next(row for row in bible["train"] if row["verse_id"] == 1_001_001)
    assert row["book"] == "Genesis"
    assert row["text"].startswith("In the beginning God created the heaven and the earth")
    assert row["target"].startswith("In the beginning God created the heavens and the earth")


def test_no_verse_or_near_twin_is_in_two_parts(bible):
    """And the parts as they come would hold some: Luke is quoted, genealogies come back."""
    held = {side: [*bible["test"][side], *bible["validation"][side]] for side in ("text", "target")}
    for side, texts in held.items():
        assert not any(verses.twins(bible["train"][side], texts))
        assert not any(verses.twins(bible["validation"][side], bible["test"][side]))
    every = len(list(corpora.bible_verses()))
    assert 50 < every - sum(len(bible[part]) for part in PARTS) < 1000


def test_twins_by_hand():
    held = ["a b c d e f g h"]  # five runs of four words
    assert verses.twins(["x a b c d e f y"], held) == [True]  # 3 of 5
    assert verses.twins(["x a b c d e y z"], held) == [False]  # 2 of 5
    assert verses.twins(["A, B! c d"], held) == [True]  # the only run of the shorter one
    assert verses.twins(["d c b a"], held) == [False]


def test_a_word_table_learns_who_stands_for_whom():
    olds = ["thou sawest him", "he saith", "him thou saith", "thou camest not", "not he"]
    news = ["you saw him", "he says", "him you says", "you came not", "not he"]
    table = verses.WordTable(olds, news, rounds=20, least=1)
    expected = {"thou": "you", "saith": "says", "him": "him", "sawest": "saw", "camest": "came"}
    assert {old: table.table[old] for old in expected} == expected
    assert table("Thou, Saith he unto.") == "You, Says he unto."
    assert table.probability["thou"] > 0.9
    naive = verses.WordTable(olds, news, rounds=1, least=1)
    assert naive.probability["thou"] < 0.7, "one round only counts who stands beside whom"
    assert "sawest" not in verses.WordTable(olds, news, least=2).table


def test_a_round_of_em_is_that_of_the_book():
    """Brown et al. 1993, by hand: t = 1 at first, so a new word is shared out evenly."""
    table = verses.WordTable(["a b", "a"], ["x y", "x"], rounds=1, least=1)
    # count(x | a) = 1/3 + 1/2, count(y | a) = 1/3
    assert table.probability["a"] == pytest.approx((1 / 3 + 1 / 2) / (2 / 3 + 1 / 2))


def test_likelihood_rises_and_the_table_beats_copying(bible):
    few = {side: bible["train"][side][:3000] for side in ("text", "target")}
    table = verses.WordTable(few["text"], few["target"])
    olds, news = bible["test"]["text"][:600], bible["test"]["target"][:600]
    copied, exchanged = list(olds), [table(old) for old in olds]
    assert table.table["hath"] == "has"
    for score in (bleu, chrf):
        lazy, better = (score(said, list(news), resamples=1) for said in (copied, exchanged))
        assert better.interval.estimate > lazy.interval.estimate + 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"test": ["Ruht"]}, "there is no book 'Ruht'; the books are Genesis, Exodus"),
        ({"test": []}, "test names 0 books"),
        ({"test": ["Ruth"], "validation": ["Ruth"]}, "'Ruth' is in validation and in test"),
    ],
)
def test_books_that_cannot_be_held_out_are_named(change, words):
    with pytest.raises(LabError, match=words):
        verses.verses(**change)
    with pytest.raises(LabError, match="1 old and 0 new texts"):
        verses.WordTable(["a"], [])


# --- headlines ---------------------------------------------------------------------------------


def test_a_headline_is_the_first_line_of_its_article():
    splits, articles = headlines.headlines(), corpora.load("bbc_news")
    for part in PARTS:
        rows = splits[part]
        assert len(rows) == len(articles[part])
        for i in (0, len(rows) - 1):
            assert articles[part]["text"][i].startswith(rows["target"][i])
            assert rows["target"][i] + "\n" not in rows["text"][i]
    assert set(splits["test"]["topic"]) == {
        "business",
        "entertainment",
        "politics",
        "sports",
        "tech",
    }


def test_first_words_are_a_better_headline_than_the_first_sentence():
    rows = headlines.headlines()["test"]
    f1 = {
        name: np.mean(
            [word_f1(of(x), t) for x, t in zip(rows["text"], rows["target"], strict=True)]
        )
        for name, of in (("words", headlines.first_words), ("sentence", headlines.first_sentence))
    }
    assert 0.15 < min(f1.values()) < max(f1.values()) < 0.4
    assert headlines.first_sentence("") == ""
    with pytest.raises(LabError, match="count 0 is out of range"):
        headlines.first_words("a b", 0)


# --- docstrings --------------------------------------------------------------------------------

SOURCE = '''
class Calendar:
    @property
    def later(self, months: int = 1):
        """Return the day
        some months later. It may
        be in another year.

        Args: many.
        """
        # add
        return self.day + months
\f
def silent(x):
    return x

def only_said():
    """Say nothing else at all."""

def short():
    "Too short."
    return 1

def on_one_line(): "Say all of it here."; return 2

async def wait(seconds):
    """Wait some seconds, then go on."""
    await sleep(seconds)
'''


def test_a_function_is_shown_without_what_is_said_of_it():
    found = {it.name: it for it in docstrings.functions(SOURCE)}
    assert list(found) == ["wait", "later"] or list(found) == ["later", "wait"]
    assert found["later"].text == (
        "def later(self, months: int = 1):\n    # add\n    return self.day + months"
    )
    assert found["later"].target == "Return the day some months later."
    assert found["wait"].text == "async def wait(seconds):\n    await sleep(seconds)"
    assert list(docstrings.functions("def broken(:")) == []


def test_a_function_with_a_string_that_begins_further_left_still_parses():
    source = (
        "class Page:\n    def top(self, name):\n        'Give the top of the page.'\n"
        "        text = fQQQ\n<h1>\n  {name}QQQ\n        return text\n"
    ).replace("QQQ", '"' * 3)
    (found,) = docstrings.functions(source)
    assert found.text.startswith("def top(self, name):\n    text = ")
    assert found.text.splitlines()[2:] == ["<h1>", '  {name}"""', "    return text"]
    assert ast.parse(found.text).body[0].name == "top"


def test_docstrings_are_split_by_file_and_nothing_is_in_two_parts(code):
    assert len(code["train"]) > 3000
    assert min(len(code["validation"]), len(code["test"])) > 300
    for column in ("path", "target", "text"):
        parts = [set(code[part][column]) for part in PARTS]
        assert not parts[0] & parts[1]
        assert not (parts[0] | parts[1]) & parts[2]
    inside = [t in x for x, t in zip(code["test"]["text"], code["test"]["target"], strict=True)]
    assert np.mean(inside) < 0.01


def test_the_nearest_function_answers_with_its_own_sentence():
    near = docstrings.NearestAnswer(["add two numbers", "open a file"], ["Add.", "Open."])
    assert near(["def open_file(file): ...", "numbers"]) == ["Open.", "Add."]
    assert near([]) == []
    with pytest.raises(LabError, match="0 texts and 0 answers"):
        docstrings.NearestAnswer([], [])
    with pytest.raises(LabError, match="hold no word"):
        docstrings.NearestAnswer(["1 2"], ["x"])


def test_both_simple_readers_share_something_with_the_truth(code):
    rows = code["test"]
    near = docstrings.NearestAnswer(code["train"]["text"], code["train"]["target"])
    names = [docstrings.name_words(name) for name in rows["name"]]
    for said in (names, near(rows["text"])):
        assert chrf(said, list(rows["target"]), resamples=1).interval.estimate > 8
