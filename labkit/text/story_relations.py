"""Who gave what to whom: pairs of a person and a thing in a story, and what holds between them.

    Amara Bell took the key . She gave the key to Omar . Omar left the map there .
    (Amara Bell, key) gives      (Omar, key) receives      (Omar, map) none

The example is a pair of mentions with the story up to the end of the sentence. Sentences of the
same words are other relations: who gives stands before, who receives behind; a giver may be "She",
and then stands in the sentence before. All other pairs of that sentence, and of the person of the
sentence before, are negatives.

Source: the generator's own grammar (`storyworld`): "gave" is written by giving alone, and a pronoun
means the only person of the sentence before.
"""

import re
from collections.abc import Sequence
from typing import Any

from labkit.errors import LabError
from labkit.text.corpora import SPLITS
from labkit.text.relations import Relation
from labkit.text.story_entities import told
from labkit.text.storyworld import OBJECT, PERSON, Entity, Story

GIVES, RECEIVES, NONE = "gives", "receives", "none"
LABELS = (GIVES, RECEIVES, NONE)
#: Sentences that are shown before the one that the pair is about.
BEFORE = 2


def relations_of(
    text: str, entities: Sequence[Sequence[Any]], document: str = ""
) -> list[Relation]:
    """The pairs of a story: each thing of a sentence with each person of it and of the one before.

    Args:
        text: sentences that end in a full stop.
        entities: (start, end, type) in characters.
        document: its name.
    """
    ends = [match.end() for match in re.finditer(r"\.(?=\s|$)", text)]
    starts = [0, *(end + 1 for end in ends[:-1])]
    mentions = [Entity(*entity[:3]) for entity in entities]

    def inside(number: int, kind: str) -> list[Entity]:
        return [m for m in mentions if m.type == kind and starts[number] <= m.start < ends[number]]

    found = []
    for number, end in enumerate(ends):
        people = inside(number, PERSON)
        before = inside(number - 1, PERSON) if number else []
        begin = starts[max(0, number - BEFORE)]
        for thing in inside(number, OBJECT):
            giver, receiver = _gift(text, starts[number], thing, people, before)
            for person in (*people, *before):
                label = GIVES if person is giver else RECEIVES if person is receiver else NONE
                found.append(
                    Relation(
                        text[begin:end],
                        (person.start - begin, person.end - begin),
                        (thing.start - begin, thing.end - begin),
                        label,
                        document,
                    )
                )
    return found


def _gift(
    text: str, start: int, thing: Entity, people: list[Entity], before: list[Entity]
) -> tuple[Entity | None, Entity | None]:
    """Who gives the thing and who receives it, in its sentence; nobody, where it is not given."""
    lead = " gave the "
    if text[thing.start - len(lead) : thing.start] != lead:
        return None, None
    verb = thing.start - len(lead)
    named = [person for person in people if person.end == verb]
    giver = named[0] if named else before[0] if len(before) == 1 and verb - start <= 3 else None
    behind = [person for person in people if person.start > thing.end]
    return giver, behind[0] if behind else None


def story_relations(
    train: int = 2000, validation: int = 200, test: int = 200, seed: int = 0, most: int = 2
) -> dict[str, list[Relation]]:
    """Pairs of generated stories, in three splits of other names.

    Args:
        train, validation, test: stories, at least 1 each.
        seed: of the stories and of the division of names.
        most: pairs without a relation that are kept for each gift of a story, those of the gift's
            own sentence first; at least 0. A story without a gift gives none.

    Raises:
        LabError: a number out of range.
    """
    if most < 0:
        raise LabError(f"most {most} is out of range: choose at least 0 pairs")
    counts = dict(zip(SPLITS, (train, validation, test), strict=True))
    return {
        split: [
            row
            for i, it in enumerate(told(split, count, seed))
            for row in _some(it, i, split, most)
        ]
        for split, count in counts.items()
    }


def _some(story: Story, number: int, split: str, most: int) -> list[Relation]:
    rows = relations_of(story.text, story.entities, f"story {split} {number}")
    held = [row for row in rows if row.label != NONE]
    others = [row for row in rows if row.label == NONE]
    others.sort(key=lambda row: " gave " not in row.text[row.second[0] - 10 :])
    return held + others[: most * len(held) // 2]
