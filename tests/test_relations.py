"""Entities and relations in stories and code: by hand, by the generator's state, in splits."""

import re

import numpy as np
import pytest

from labkit.errors import LabError
from labkit.evaluation import BagOfWords
from labkit.text import bio, storyworld
from labkit.text.code_calls import call_pairs, code_calls, functions
from labkit.text.relations import Relation, columns, marked
from labkit.text.story_entities import TAGS, lexicon, story_entities, tagged_story
from labkit.text.story_relations import relations_of, story_relations

STORY = "Amara Bell had the brass key. She gave the brass key to Omar. Omar left the map there."


def places(text: str, *names: tuple[str, str]) -> list[tuple[int, int, str]]:
    """Every place of each name, in the order of the text."""
    found = [(m.start(), m.end(), kind) for name, kind in names for m in re.finditer(name, text)]
    return sorted(found)


ENTITIES = places(
    STORY, ("Amara Bell", "PERSON"), ("Omar", "PERSON"), ("brass key", "OBJECT"), ("map", "OBJECT")
)


def test_a_story_as_words_and_tags():
    row = tagged_story(STORY, ENTITIES, "it")
    assert row.words[:7] == ["Amara", "Bell", "had", "the", "brass", "key", "."]
    assert row.tags[:7] == ["B-PERSON", "I-PERSON", "O", "O", "B-OBJECT", "I-OBJECT", "O"]
    assert [row.words[s.start] for s in bio.spans(row.tags) if s.type == "PERSON"] == [
        *("Amara", "Omar", "Omar"),
    ]
    with pytest.raises(LabError, match="'mara' at 1 to 5 begins or ends inside a word"):
        tagged_story(STORY, [(1, 5, "PERSON")])


def test_names_of_several_types_and_no_test_name_in_training():
    rows = story_entities(60, 20, 20)
    seconds: dict[str, set[str]] = {}
    types: dict[str, set[str]] = {}
    for split, stories in rows.items():
        assert stories[0].document == f"story {split} 0"
        for row in stories:
            bio.check_row(row.words, row.tags, "it", TAGS)
            for start, end, kind in bio.spans(row.tags):
                assert end - start == 2
                seconds.setdefault(split, set()).add(row.words[end - 1])
                for word in row.words[start:end]:
                    types.setdefault(word.lower(), set()).add(kind)
    assert not seconds["train"] & (seconds["test"] | seconds["validation"])
    assert not seconds["test"] & seconds["validation"]
    assert sum(len(kinds) > 1 for kinds in types.values()) >= 8
    parts = [lexicon(split) for split in ("train", "validation", "test")]
    assert {len(part.objects) for part in parts} == {180, 60}
    firsts = [{name.split()[0] for name, _ in part.people} for part in parts]
    assert len(set.union(*firsts)) == sum(map(len, firsts)) == 30
    again = story_entities(60, 20, 20)
    assert again == rows
    with pytest.raises(LabError, match="test 0 is out of range"):
        story_entities(1, 1, 0)


def test_who_gave_what_to_whom_by_hand():
    found = {
        (row.text[slice(*row.first)], row.text[slice(*row.second)], row.label): row
        for row in relations_of(STORY, ENTITIES, "it")
    }
    assert set(found) == {
        ("Amara Bell", "brass key", "none"),
        ("Amara Bell", "brass key", "gives"),
        ("Omar", "brass key", "receives"),
        ("Omar", "map", "none"),
    }
    gives = found["Amara Bell", "brass key", "gives"]
    assert marked(gives) == "@ Amara Bell @ had the brass key. She gave the # brass key # to Omar."
    received = marked(found["Omar", "brass key", "receives"])
    assert received.endswith("She gave the # brass key # to @ Omar @.")


def test_gifts_are_those_of_the_generators_state():
    """Whoever received a thing last, and has not lost it since, is who has it."""
    checked = 0
    for story in storyworld.stories(300, seed=5):
        rows = relations_of(story.text, story.entities)
        for question in story.questions:
            if question.kind != "who_has":
                continue
            thing = question.question.removeprefix("Who has the ").rstrip("?")
            last = re.findall(rf" (gave|left|took|picked up|had) the {thing}\b", story.text)[-1]
            receivers = [
                row.text[slice(*row.first)]
                for row in rows
                if row.label == "receives" and row.text[slice(*row.second)] == thing
            ]
            if last == "gave":
                assert receivers[-1] == question.answer
                checked += 1
        gifts = story.text.count(" gave the ")
        assert sum(row.label == "receives" for row in rows) == gifts
        assert sum(row.label == "gives" for row in rows) == gifts
    assert checked > 30


def test_marks_stand_around_the_spans_in_either_order():
    row = Relation("a bc def", (5, 8), (2, 4), "x")
    assert marked(row) == "a # bc # @ def @"
    for bad in (Relation("abc", (0, 2), (1, 3), "x"), Relation("abc", (0, 1), (2, 9), "x")):
        with pytest.raises(LabError, match="do not fit a text of 3 characters"):
            marked(bad)


def test_counting_words_cannot_tell_the_giver_from_the_receiver():
    rows = story_relations(300, 1, 100)
    train, test = columns(rows["train"]), columns(rows["test"])
    assert set(train["label"]) == {"gives", "receives", "none"}
    words = BagOfWords(train["text"], train["label"])
    said = words.predict(test["text"])
    right = np.array(test["label"])
    gifts = right != "none"
    assert np.mean(said[gifts] == right[gifts]) < 0.8
    assert 0.2 < np.mean(gifts) < 0.8


CODE = """
def close(stream):
    flush(stream)
    on_exit(register)
    return 1

def flush(stream):
    pass

def register(): pass

def on_exit(function):
    self.flush()

class Box:
    def open(self, path):
        self.check(path)
        flush(path)
        key = self.size

    def check(self, path): pass

    def size(self): pass

class Other:
    def check(self): pass
"""


def test_who_calls_whom_by_hand():
    calls = {(f.owner, f.name): f.calls for f in functions(CODE)}
    assert calls["", "close"] == {("", "flush"), ("", "on_exit")}
    assert calls["Box", "open"] == {("Box", "check"), ("", "flush")}
    pairs = call_pairs(CODE, "it.py")
    said = [(p.text[slice(*p.first)], p.text[slice(*p.second)], p.label) for p in pairs]
    held = [pair for pair in said if pair[2] == "calls"]
    assert set(held) == {
        *(("close", "flush", "calls"), ("close", "on_exit", "calls")),
        *(("open", "check", "calls"), ("open", "flush", "calls")),
    }
    hard = [pair for pair in said if pair[2] == "none"]
    assert ("close", "register", "none") in hard, "it is named there, and not called"
    assert ("on_exit", "flush", "none") in hard, "an attribute of something else"
    assert {("open", "size", "none"), ("open", "check", "none")} <= set(hard)
    close = next(p for p in pairs if p.text[slice(*p.second)] == "register")
    assert marked(close).startswith("def @ close @(stream):\n    flush(stream)")
    assert marked(close).endswith("\ndef # register #(): pass")


def test_what_is_no_python_is_one_sentence():
    with pytest.raises(LabError, match="no Python"):
        call_pairs("def (")
    with pytest.raises(LabError, match="most 0 is out of range"):
        call_pairs("a = 1", most=0)


def test_calls_in_a_part_of_the_library():
    some = code_calls(files=6)
    assert all(len({row.document for row in pairs}) <= 6 for pairs in some.values())
    assert any(some.values())


@pytest.mark.slow
def test_calls_in_the_library_by_file():
    rows = code_calls(per_file=3)
    files = {split: {row.document for row in pairs} for split, pairs in rows.items()}
    assert not files["train"] & (files["test"] | files["validation"])
    labels = np.array([row.label for row in rows["train"]])
    assert 0.3 < np.mean(labels == "calls") < 0.7
    named = [
        row.text[slice(*row.second)] in row.text[: row.second[0] - 10]
        for row in rows["train"]
        if row.label == "none"
    ]
    assert np.mean(named) > 0.15, "hard negatives name the other function"
    assert len(columns(rows["test"])["text"]) == len(rows["test"]) > 30
