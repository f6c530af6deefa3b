"""People, places and things in stories, as tags on words: gold from the generator.

    Amara    Bell     gave the brass    bell     to Omar     Garden   .
    B-PERSON I-PERSON O    O   B-OBJECT I-OBJECT O  B-PERSON I-PERSON O

`storyworld`'s own names are one word each, and every one has one type. Here the same world has
names of two words. The first words of things and places are the same, and some are surnames too, so
"stone" may begin a thing or a place or end a person. The second words, and both of a person's, are
of one split alone: nobody can learn by heart what the test stories are about.
"""

import dataclasses
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from labkit.errors import LabError
from labkit.text.bio import Span, Tagged, tag_names, tags_of
from labkit.text.corpora import SPLITS
from labkit.text.storyworld import LEXICON, OBJECT, PERSON, PLACE, Lexicon, Story, story

TAGS = tag_names([PERSON, PLACE, OBJECT])

#: Words before a thing or a place, in every split.
MODIFIERS = (
    "old", "stone", "little", "garden", "brass", "market", "silver", "school", "brook", "paper",
)  # fmt: skip
SURNAMES = (
    "Bell", "Stone", "Brook", "Field", "Baker", "Old", "Cook", "Market", "Hill", "Wood", "Garden",
    "Little", "Rivers", "Silver", "Page", "Brass", "Lane", "Pepper", "Forest", "Miller",
)  # fmt: skip
FIRST_NAMES = (
    *LEXICON.people,
    ("Hana", "she"), ("Emil", "he"), ("Salma", "she"), ("Bruno", "he"), ("Greta", "she"),
    ("Idris", "he"), ("Noor", "she"), ("Felix", "he"), ("Clara", "she"), ("Hugo", "he"),
)  # fmt: skip
PLACES = (
    *LEXICON.places,
    ("in", "cellar"), ("at", "bridge"), ("in", "stable"), ("at", "theatre"), ("in", "bedroom"),
    ("at", "castle"), ("in", "forest"), ("at", "hotel"), ("in", "office"), ("at", "beach"),
    ("in", "chapel"), ("at", "airport"), ("in", "hall"), ("at", "farm"), ("in", "yard"),
    ("at", "lake"), ("in", "valley"), ("at", "cafe"),
)  # fmt: skip
THINGS = (
    *LEXICON.objects,
    "hat", "cup", "knife", "pencil", "bottle", "mirror", "violin", "hammer", "blanket", "box",
    "candle", "spoon", "scarf", "brush", "wallet", "shoe", "flute", "purse",
)  # fmt: skip
#: Of the words that are divided, the share of validation and of test.
HELD_OUT = 0.2

_WORD = re.compile(r"\w+|[^\w\s]")


def lexicon(split: str, seed: int = 0) -> Lexicon:
    """The names of one split: pairs of words, of which the divided ones are of no other split.

    Args:
        split: train, validation or test.
        seed: of the division.

    Raises:
        LabError: an unknown split.
    """
    if split not in SPLITS:
        raise LabError(f"There is no split {split!r}; choose one of {', '.join(SPLITS)}.")

    def own(words: Sequence[Any]) -> list[Any]:
        held = round(HELD_OUT * len(words))
        order = random.Random(f"{seed} {words}").sample(list(words), len(words))
        parts = {"validation": order[:held], "test": order[held : 2 * held]}
        return parts.get(split, order[2 * held :])

    surnames = own(SURNAMES)
    return Lexicon(
        people=tuple((f"{a} {b}", she) for a, she in own(FIRST_NAMES) for b in surnames),
        places=tuple((near, f"{a} {b}") for a in MODIFIERS for near, b in own(PLACES)),
        objects=tuple(f"{a} {b}" for a in MODIFIERS for b in own(THINGS)),
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
