"""People, places and things in stories, as tags on words: gold from the generator.

    Amara    Bell     gave the brass    bell     to Omar     Garden   .
    B-PERSON I-PERSON O    O   B-OBJECT I-OBJECT O  B-PERSON I-PERSON O

`storyworld`'s own names are one word each, and every one has one type. `LEXICONS` names the same
world with two words, from lists that overlap: a bell may be a surname, a thing or a part of a
place. Which pairs of words are names in a split follows from their hash, so that no full name of
the test stories stands in a training story, though each of its words may.
"""

import dataclasses
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from labkit.errors import LabError
from labkit.text.bio import Span, Tagged, tag_names, tags_of
from labkit.text.cleaning import split_of
from labkit.text.corpora import SPLITS
from labkit.text.storyworld import LEXICON, OBJECT, PERSON, PLACE, Lexicon, Story, story

TAGS = tag_names([PERSON, PLACE, OBJECT])

FIRST_NAMES = LEXICON.people
SURNAMES = (
    "Bell", "Garden", "Key", "Tower", "Lamp", "Stone", "Brook", "Market", "Ring", "Kitchen",
    "Drum", "Field",
)  # fmt: skip
MATERIALS = (
    "brass", "paper", "garden", "kitchen", "stone", "tower", "silver", "market", "school", "field",
)  # fmt: skip
KINDS = ("old", "stone", "bell", "brook", "market", "lamp", "little", "key", "drum", "field")

_WORD = re.compile(r"\w+|[^\w\s]")


def lexicon(split: str, seed: int = 0) -> Lexicon:
    """The names of one split: eight tenths of all pairs of words train, a tenth each is held out.

    Args:
        split: train, validation or test.
        seed: of the division.

    Raises:
        LabError: an unknown split.
    """
    if split not in SPLITS:
        raise LabError(f"There is no split {split!r}; choose one of {', '.join(SPLITS)}.")

    def own(pair: str) -> bool:
        return split_of(pair, 0.1, 0.1, seed) == split

    people = [(f"{a} {b}", pronoun) for a, pronoun in FIRST_NAMES for b in SURNAMES]
    places = [(near, f"{kind} {place}") for kind in KINDS for near, place in LEXICON.places]
    things = [f"{material} {thing}" for material in MATERIALS for thing in LEXICON.objects]
    return Lexicon(
        people=tuple(person for person in people if own(person[0])),
        places=tuple(place for place in places if own(place[1])),
        objects=tuple(thing for thing in things if own(thing)),
        reasons=LEXICON.reasons,
        times=LEXICON.times,
    )


def told(split: str, count: int, seed: int = 0) -> Iterator[Story]:
    """Stories of one split, each with a few of its names, so that people meet as they should.

    Args:
        split: train, validation or test.
        count: how many, at least 1.
        seed: of the stories and of the division of names.

    Raises:
        LabError: an unknown split, or a number below 1.
    """
    if count < 1:
        raise LabError(f"{split} {count} is out of range: choose at least 1 story")
    names = lexicon(split, seed)

    def some(names: tuple, most: int, chance: random.Random) -> tuple:
        return tuple(chance.sample(names, min(most, len(names))))

    for number in range(count):
        chance = random.Random(f"{seed} {split} {number}")
        few = dataclasses.replace(
            names,
            people=some(names.people, len(LEXICON.people), chance),
            places=some(names.places, len(LEXICON.places), chance),
            objects=some(names.objects, len(LEXICON.objects), chance),
        )
        yield story(number, 3 * seed + SPLITS.index(split), few)


def tagged_story(text: str, entities: Iterable[Sequence[Any]], document: str = "") -> Tagged:
    """A text and the places of its entities as words and tags.

    Args:
        text: words and punctuation marks become words.
        entities: (start, end, type) in characters, each at the borders of words.
        document: its name.

    Raises:
        LabError: an entity begins or ends inside a word.
    """
    found = list(_WORD.finditer(text))
    starts = {match.start(): i for i, match in enumerate(found)}
    ends = {match.end(): i + 1 for i, match in enumerate(found)}
    spans = []
    for start, end, name in entities:
        if start not in starts or end not in ends:
            raise LabError(
                f"the entity {text[start:end]!r} at {start} to {end} begins or ends inside a word: "
                "give the places of whole words"
            )
        spans.append(Span(starts[start], ends[end], name))
    return Tagged([match.group() for match in found], tags_of(spans, len(found)), document)


def story_entities(
    train: int = 2000, validation: int = 200, test: int = 200, seed: int = 0
) -> dict[str, list[Tagged]]:
    """Tagged stories, a row each, in three splits of other names.

    Args:
        train, validation, test: stories, at least 1 each.
        seed: of the stories and of the division of names.

    Raises:
        LabError: a number below 1.
    """
    counts = dict(zip(SPLITS, (train, validation, test), strict=True))
    return {
        split: [
            tagged_story(it.text, it.entities, f"story {split} {i}")
            for i, it in enumerate(told(split, count, seed))
        ]
        for split, count in counts.items()
    }
