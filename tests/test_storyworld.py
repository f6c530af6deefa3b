"""Storyworld: exact probabilities, answers that must be read, the same stories everywhere."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections import Counter, defaultdict
from itertools import islice
from pathlib import Path

import pytest

from labkit.errors import LabError
from labkit.text import storyworld

SAMPLE = Path(__file__).parent.parent / "data" / "storyworld.jsonl"

TINY = storyworld.Lexicon(
    people=(("Mei", "she"), ("Omar", "he")),
    places=(("in", "barn"), ("at", "market")),
    objects=("key",),
    reasons=("rest",),
    times=(("One day", 2), ("Later", 1)),
    move_verbs=("went", "ran"),
    take_verbs=(("took", 3),),
    third_person=0,
    events=(1, 2),
)


@pytest.fixture(scope="module")
def sample() -> list[storyworld.Story]:
    return list(storyworld.stories(2000, seed=5))


@pytest.fixture(scope="module")
def tiny_world() -> dict[str, list[float]]:
    """Every text of the tiny world -> the log-probability of each of its paths."""
    every: dict[str, list[float]] = defaultdict(list)
    for text, log_p in storyworld.paths(lambda narrator: storyworld.tell(narrator, TINY)):
        every[text].append(log_p)
    return every


def total(log_probabilities: list[float]) -> float:
    return math.fsum(math.exp(log_p) for log_p in log_probabilities)


# Probability --------------------------------------------------------------------------------


def ambiguous(narrator: storyworld.Narrator) -> None:
    """Writes "ab" in two ways: a then b, or ab at once."""
    if narrator.choose((True, False), (3, 1)):
        narrator.write("a")
        narrator.write(narrator.choose(("b", "c", ""), (1, 1, 2)))
    else:
        narrator.write(narrator.choose(("ab", "x")))


def test_an_ambiguous_text_sums_over_all_its_paths() -> None:
    every = defaultdict(list)
    for text, log_p in storyworld.paths(ambiguous):
        every[text].append(log_p)
    assert {text: total(ps) for text, ps in every.items()} == pytest.approx(
        {"ab": 3 / 16 + 1 / 8, "ac": 3 / 16, "a": 3 / 8, "x": 1 / 8}
    )
    assert len(list(storyworld.paths(ambiguous, "ab"))) == 2
    assert list(storyworld.paths(ambiguous, "abc")) == []


def test_every_story_of_a_tiny_world_by_brute_force(tiny_world) -> None:
    assert len(tiny_world) > 1000
    assert math.fsum(total(ps) for ps in tiny_world.values()) == pytest.approx(1.0, abs=1e-12)
    assert all(len(ps) == 1 for ps in tiny_world.values()), "a text has two paths"
    for text, ps in islice(tiny_world.items(), 0, None, len(tiny_world) // 50):
        assert storyworld.log_probability(text, TINY) == pytest.approx(math.log(total(ps)))


def test_the_sampler_draws_from_the_enumerated_distribution(tiny_world) -> None:
    exact = {text: total(ps) for text, ps in tiny_world.items()}
    drawn = list(storyworld.stories(4000, 0, TINY))
    counts = Counter(story.text for story in drawn)
    assert set(counts) <= set(exact)
    entropy = -math.fsum(p * math.log(p) for p in exact.values())
    floor = storyworld.floor(drawn)
    assert floor.nats_per_story == pytest.approx(entropy, abs=4 * floor.standard_error)
    for text in sorted(exact, key=exact.__getitem__)[-20:]:
        expected = len(drawn) * exact[text]
        assert counts[text] == pytest.approx(expected, abs=5 * math.sqrt(expected))


def test_a_real_story_has_one_path_and_its_probability_is_recorded(sample) -> None:
    for story in sample[:15]:
        found = list(storyworld.paths(storyworld.tell, story.text))
        assert len(found) == 1
        assert storyworld.log_probability(story.text) == pytest.approx(story.log_probability)


def test_a_text_that_the_world_does_not_write_is_impossible(sample) -> None:
    text = sample[0].text
    for wrong in ("", text[:-1], text + " ", "Once upon a time.", text.replace("was", "were")):
        assert storyworld.log_probability(wrong) == -math.inf
    place = next(text[e.start : e.end] for e in sample[0].entities if e.type == "PLACE")
    assert storyworld.log_probability(text.replace(place, "volcano")) == -math.inf


def test_a_remark_that_contradicts_the_state_is_impossible(sample) -> None:
    places = {place: preposition for preposition, place in storyworld.LEXICON.places}
    checked = 0
    for story in sample[:30]:
        match = re.search(r"Now the \w+ was (in|at) the (\w+)\.", story.text)
        if match is None:
            continue
        other = next(p for p in places if places[p] == match[1] and p != match[2])
        wrong = story.text[: match.start(2)] + other + story.text[match.end(2) :]
        assert storyworld.log_probability(wrong) == -math.inf
        checked += 1
    assert checked >= 5


def test_floor_by_hand() -> None:
    base = storyworld.story(0)
    two = [
        dataclasses.replace(base, text="abcd", log_probability=-2.0),
        dataclasses.replace(base, text="abcdef", log_probability=-4.0),
    ]
    floor = storyworld.floor(two)
    assert floor.nats_per_story == 3.0
    assert floor.standard_error == pytest.approx(1.0)
    assert floor.nats_per_byte == pytest.approx(6 / 10)
    assert floor.bits_per_byte == pytest.approx(0.6 / math.log(2))
    assert floor.bits_per_byte_standard_error > 0
    with pytest.raises(LabError, match="at least 2"):
        storyworld.floor(two[:1])


# Stories ------------------------------------------------------------------------------------


def test_a_story_depends_on_seed_and_position_alone(sample) -> None:
    assert list(storyworld.stories(20, seed=5)) == sample[:20]
    assert storyworld.story(17, seed=5) == sample[17]
    assert storyworld.story(17, seed=6) != sample[17]
    assert len({story.text for story in sample}) > 1990


def test_the_committed_sample_regenerates_to_the_byte() -> None:
    rows = [
        json.dumps(story.row(), ensure_ascii=False) for story in storyworld.stories(800, seed=0)
    ]
    assert SAMPLE.read_bytes() == ("\n".join(rows) + "\n").encode()
    assert SAMPLE.stat().st_size <= 2_000_000


def test_shape_of_a_story(sample) -> None:
    for story in sample:
        assert 5 <= story.text.count(".") <= 8
        assert story.text.endswith(".")
        assert "  " not in story.text
        assert "\n" not in story.summary
        assert len(story.questions) >= 4
        assert all(1 <= len(q.answer.split()) <= 3 for q in story.questions)
        assert len({q.question for q in story.questions}) == len(story.questions)
        assert all(i.instruction and i.response for i in story.instructions)


def test_spans_are_exactly_the_names_in_the_text(sample) -> None:
    lexicon = storyworld.LEXICON
    kind = {name: "PERSON" for name, _ in lexicon.people}
    kind |= {place: "PLACE" for _, place in lexicon.places}
    kind |= dict.fromkeys(lexicon.objects, "OBJECT")
    for story in sample[:500]:
        wanted = [
            (m.start(), m.end(), kind[m[0]])
            for m in re.finditer(r"\w+", story.text)
            if m[0] in kind
        ]
        assert [tuple(entity) for entity in story.entities] == wanted


def replayed_state(text: str) -> dict[str, str]:
    """Read a story with regular expressions alone: question -> answer."""
    place: dict[str, str] = {}
    holder: dict[str, str] = {}
    subject = ""
    opening, *events = [s.strip() for s in text.split(".") if s.strip()]
    for name, where in re.findall(r"([A-Z]\w+) was (?:in|at) the (\w+)", opening):
        place[name] = where
    things, *events = events
    for name, thing, other, where in re.findall(
        r"([A-Z]\w+) had the (\w+)|[Tt]he (\w+) was (?:in|at) the (\w+)", things
    ):
        if name:
            holder[thing] = name
        else:
            place[other] = where
    for event in events:
        if event.startswith("Now "):
            subject = ""
            continue
        first = event.split()[0]
        person = subject if first in ("He", "She") else first
        subject = person
        if match := re.search(r"(?:went|walked|ran) to the (\w+)", event):
            place[person] = match[1]
        elif match := re.search(r"left the (\w+) there", event):
            place[match[1]] = place[holder.pop(match[1])]
        elif match := re.search(r"gave the (\w+) to (\w+)", event):
            holder[match[1]] = match[2]
            subject = ""
        elif match := re.search(r"(?:took|picked up) the (\w+)", event):
            holder[match[1]] = person
            del place[match[1]]
        else:
            raise AssertionError(event)
    answers = {f"Who has the {thing}?": name for thing, name in holder.items()}
    for thing, name in holder.items():
        answers[f"Where is the {thing}?"] = f"the {place[name]}"
    for thing, where in place.items():
        article = "" if thing[0].isupper() else "the "
        answers[f"Where is {article}{thing}?"] = f"the {where}"
    return answers


def test_answers_agree_with_an_independent_reader(sample) -> None:
    for story in sample[:500]:
        state = replayed_state(story.text)
        for question in story.questions:
            if question.kind in ("where_object", "where_person", "who_has"):
                assert state[question.question] == question.answer, story.text
            elif question.kind == "why":
                person, place = re.findall(r"Why did (\w+) go to the (\w+)\?", question.question)[0]
                assert place in story.text
                assert question.answer in story.text or question.answer[3:] in story.text, person


def test_no_answer_can_be_guessed_from_its_question(sample) -> None:
    """The best guess from the question, learned on 1,700 stories, is no better than chance."""
    by_question: dict[str, Counter[str]] = defaultdict(Counter)
    for story in sample[:1700]:
        for question in story.questions:
            by_question[question.question][question.answer] += 1
    asked: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for story in sample[1700:]:
        for question in story.questions:
            if question.question in by_question:
                guess = by_question[question.question].most_common(1)[0][0]
                asked[question.kind] += 1
                right[question.kind] += guess == question.answer
    lexicon = storyworld.LEXICON
    chance = {
        "where_object": 1 / len(lexicon.places),
        "where_person": 1 / len(lexicon.places),
        "where_first": 1 / len(lexicon.places),
        "who_has": 1 / len(lexicon.people),
        "why": 1 / len(lexicon.reasons),
    }
    assert set(asked) == set(chance)
    for kind, rate in chance.items():
        spread = math.sqrt(rate * (1 - rate) / asked[kind])
        assert right[kind] / asked[kind] < rate + 5 * spread, kind


def test_the_last_place_or_person_named_is_mostly_wrong(sample) -> None:
    """Copying the most recent name, the laziest way to read, answers fewer than half."""
    asked = right = 0
    for story in sample[:500]:
        last = {e.type: story.text[e.start : e.end] for e in story.entities}
        for question in story.questions:
            if question.kind != "why":
                wanted = "PERSON" if question.kind == "who_has" else "PLACE"
                asked += 1
                right += question.answer.removeprefix("the ") == last[wanted]
    assert right / asked < 0.5


def test_a_negative_count_is_refused() -> None:
    with pytest.raises(LabError, match="count is -1"):
        storyworld.stories(-1)


def test_where_is_asks_for_the_first_thing_of_each_story() -> None:
    asked = storyworld.where_is(20, 5, storyworld.SMALL)
    told = list(storyworld.stories(20, 5, storyworld.SMALL))
    assert asked == storyworld.where_is(20, 5, storyworld.SMALL)
    for (prompt, answer), story in zip(asked, told, strict=True):
        text, question = prompt.split("\n")
        assert text == story.text
        assert storyworld.Question(question, answer, "where_object") in story.questions
    names = {place for _, place in storyworld.SMALL.places}
    assert {answer.removeprefix("the ") for _, answer in asked} <= names
    with pytest.raises(LabError, match="count is -1"):
        storyworld.where_is(-1)
