"""A generated corpus whose entropy is known: short stories about who is where and who has what.

    Lexicon -> tell(narrator) -> choose, choose, write, choose, write, ... -> text
               Sampler:  choose draws at random and adds up log-probability
               Replay:   choose follows one path while `write` agrees with a given text

The generator is a program that makes weighted choices. Its text has P(text) = sum over the paths of
choices that write it of the product of the choices' probabilities. A model's loss on fresh stories
can come down to the entropy -E[ln P(text)] and not below: the floor.

A hidden state (where each person is, where each object lies or who holds it) decides what can
happen next. Whoever carries an object takes it along without a word, so "Where is the key?" is
answered by following the story, never from the question alone.

Sources: Weston et al. 2016, "Towards AI-complete question answering" (bAbI), for the kind of world;
Eldan and Li 2023, "TinyStories", for stories small enough for small models.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol, TypeVar

from labkit.errors import LabError

T = TypeVar("T")

PERSON, PLACE, OBJECT = "PERSON", "PLACE", "OBJECT"


@dataclass(frozen=True)
class Lexicon:
    """The words of a world. A small one can be enumerated completely."""

    people: tuple[tuple[str, str], ...]
    """(name, pronoun)"""
    places: tuple[tuple[str, str], ...]
    """(preposition, place)"""
    objects: tuple[str, ...]
    reasons: tuple[str, ...]
    """What one can want to do anywhere."""
    times: tuple[tuple[str, int], ...]
    """(opening words, weight)"""
    move_verbs: tuple[str, ...] = ("went", "walked", "ran")
    take_verbs: tuple[tuple[str, int], ...] = (("took", 3), ("picked up", 2))
    third_person: int = 2
    """Weight of a third person against 1 for none; 0 for never."""
    events: tuple[int, int] = (3, 6)
    """Fewest and most sentences after the two that set the scene."""


LEXICON = Lexicon(
    people=(
        ("Amara", "she"),
        ("Omar", "he"),
        ("Mei", "she"),
        ("Mateo", "he"),
        ("Yuki", "she"),
        ("Ravi", "he"),
        ("Zofia", "she"),
        ("Kofi", "he"),
        ("Leila", "she"),
        ("Jonas", "he"),
        ("Ines", "she"),
        ("Tariq", "he"),
        ("Nia", "she"),
        ("Pavel", "he"),
        ("Rosa", "she"),
        ("Kenji", "he"),
        ("Freya", "she"),
        ("Diego", "he"),
        ("Aisha", "she"),
        ("Luca", "he"),
    ),
    places=(
        ("in", "kitchen"),
        ("in", "garden"),
        ("at", "market"),
        ("in", "library"),
        ("at", "harbour"),
        ("at", "station"),
        ("in", "attic"),
        ("at", "bakery"),
        ("in", "museum"),
        ("in", "barn"),
        ("at", "school"),
        ("in", "tower"),
    ),
    objects=(
        "key",
        "map",
        "lamp",
        "kite",
        "book",
        "coin",
        "drum",
        "ring",
        "bell",
        "clock",
        "letter",
        "basket",
    ),
    reasons=("rest", "read", "sing", "think", "paint", "hide", "dance", "write"),
    times=(
        ("One morning", 8),
        ("At noon", 4),
        ("One evening", 4),
        ("After the storm", 2),
        ("On the first day of spring", 1),
    ),
)

#: A world that an LLM learns to follow within minutes: fewer names, and 2 to 4 events.
SMALL = replace(
    LEXICON,
    people=LEXICON.people[:8],
    places=LEXICON.places[:8],
    objects=LEXICON.objects[:6],
    reasons=LEXICON.reasons[:1],
    times=LEXICON.times[:2],
    events=(2, 4),
)


class Question(NamedTuple):
    """A question about one story and its answer of one to three words."""

    question: str
    answer: str
    kind: str
    """where_object, where_person, who_has, why or where_first"""


class Entity(NamedTuple):
    """text[start:end] names a PERSON, a PLACE or an OBJECT."""

    start: int
    end: int
    type: str


class Instruction(NamedTuple):
    """Something to do with the story, and what a good assistant replies."""

    instruction: str
    response: str


@dataclass(frozen=True)
class Story:
    """One story with everything that is known about it."""

    text: str
    log_probability: float
    """ln P(text) under the generator, in nats."""
    summary: str
    """One line: where the first object ends up."""
    questions: list[Question]
    entities: list[Entity]
    instructions: list[Instruction]

    def row(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers, for JSON or a table."""
        return {
            "text": self.text,
            "log_probability": self.log_probability,
            "summary": self.summary,
            "questions": [q._asdict() for q in self.questions],
            "entities": [e._asdict() for e in self.entities],
            "instructions": [i._asdict() for i in self.instructions],
        }


class Floor(NamedTuple):
    """The entropy of the generator, estimated from stories: no model's mean loss is below it."""

    nats_per_story: float
    """The end of the story included; compare with a model's loss summed over text and end token."""
    standard_error: float
    """Of `nats_per_story`."""
    nats_per_byte: float
    bits_per_byte: float
    bits_per_byte_standard_error: float
    stories: int


class Narrator(Protocol):
    """Decides at each choice, and receives the text as it is written."""

    def choose(self, options: Sequence[T], weights: Sequence[float] | None = None) -> T: ...

    def write(self, text: str, entity: str | None = None) -> None: ...


def stories(count: int, seed: int = 0, lexicon: Lexicon = LEXICON) -> Iterator[Story]:
    """The first `count` stories of a seed, each a function of (seed, its position) alone.

    Args:
        count: how many, at least 0.
        seed: any integer.

    Raises:
        LabError: when `count` is negative.
    """
    if count < 0:
        raise LabError(f"count is {count}; ask for 0 stories or more.")
    return (story(index, seed, lexicon) for index in range(count))


def where_is(count: int, seed: int = 0, lexicon: Lexicon = LEXICON) -> list[tuple[str, str]]:
    """(story, a line break, "Where is the key?"; "the attic"): each story's first thing.

    Args:
        count: stories, at least 0.
        seed, lexicon: as in `stories`.

    Raises:
        LabError: when `count` is negative.
    """
    return [
        (f"{it.text}\n{it.questions[0].question}", it.questions[0].answer)
        for it in stories(count, seed, lexicon)
    ]


def story(index: int, seed: int = 0, lexicon: Lexicon = LEXICON) -> Story:
    """The story at one position of a seed."""
    narrator = Sampler(random.Random(f"storyworld {seed} {index}"))
    world = tell(narrator, lexicon)
    text = "".join(narrator.pieces)
    return Story(
        text,
        narrator.log_probability,
        _summary(world),
        _questions(world),
        narrator.entities,
        _instructions(world),
    )


def log_probability(text: str, lexicon: Lexicon = LEXICON) -> float:
    """ln P(text) under the generator, exactly, in nats; -inf for a text it never writes.

    P(text) is summed over every path of choices that writes the text (`paths`). Costs about 10 ms
    for a story.
    """
    found = [log_p for _, log_p in paths(lambda narrator: tell(narrator, lexicon), text)]
    if not found:
        return -math.inf
    highest = max(found)
    return highest + math.log(math.fsum(math.exp(log_p - highest) for log_p in found))


def floor(sample: Iterable[Story]) -> Floor:
    """The entropy floor, from the exact log-probabilities of some stories.

    H = -(1/n) sum ln P(text_i), with the standard error of that mean; per byte it is the ratio of
    the sums, with the ratio's standard error (delta method).

    Args:
        sample: at least two stories; those that a model is evaluated on give its own floor.

    Raises:
        LabError: when there are fewer than two.
    """
    pairs = [(-s.log_probability, len(s.text.encode())) for s in sample]
    n = len(pairs)
    if n < 2:
        raise LabError(f"The floor of {n} stories has no standard error; give at least 2.")
    nats = math.fsum(h for h, _ in pairs) / n
    size = sum(b for _, b in pairs) / n
    variance = math.fsum((h - nats) ** 2 for h, _ in pairs) / (n - 1)
    ratio = nats / size
    residual = math.fsum((h - ratio * b) ** 2 for h, b in pairs) / (n - 1)
    per_byte_error = math.sqrt(residual / n) / size
    bit = math.log(2)
    return Floor(nats, math.sqrt(variance / n), ratio, ratio / bit, per_byte_error / bit, n)


# The generator -------------------------------------------------------------------------------


@dataclass
class World:
    """The hidden state, and what the questions need of the past."""

    preposition: dict[str, str]
    people: list[str] = field(default_factory=list)
    pronoun: dict[str, str] = field(default_factory=dict)
    place_of: dict[str, str] = field(default_factory=dict)
    """Of each person, and of each object that nobody holds."""
    holder_of: dict[str, str] = field(default_factory=dict)
    """Of each object that somebody holds."""
    objects: list[str] = field(default_factory=list)
    first_place: dict[str, str] = field(default_factory=dict)
    moves: list[tuple[str, str, str]] = field(default_factory=list)
    """(person, place, reason)"""
    subject: str | None = None
    """The only person of the last sentence, whom a pronoun would mean."""
    changed: bool = False
    """Something happened since the last remark."""

    def where(self, thing: str) -> str:
        """The place of a person or object; an object that is held is where its holder is."""
        return self.place_of[self.holder_of.get(thing, thing)]


def tell(narrator: Narrator, lexicon: Lexicon = LEXICON) -> World:
    """Tell one story: the generator. Returns the world at its end."""
    world = World(preposition={place: preposition for preposition, place in lexicon.places})
    _introduce_people(narrator, lexicon, world)
    _introduce_objects(narrator, lexicon, world)
    fewest, most = lexicon.events
    for number in range(most):
        if number >= fewest and narrator.choose((True, False), (1, 2)):
            break
        narrator.write(" ")
        kinds = [kind for kind in EVENTS if kind.possible(world)]
        event = narrator.choose(kinds, [kind.weight for kind in kinds])
        event.tell(narrator, lexicon, world)
    return world


def _introduce_people(narrator: Narrator, lexicon: Lexicon, world: World) -> None:
    """One morning, Amara was in the kitchen, Omar was in the barn and Mei was in the kitchen."""
    narrator.write(narrator.choose([t for t, _ in lexicon.times], [w for _, w in lexicon.times]))
    narrator.write(", ")
    count = 2
    if lexicon.third_person:
        count = narrator.choose((2, 3), (1, lexicon.third_person))
    for number in range(count):
        if number:
            narrator.write(" and " if number == count - 1 else ", ")
        left = [person for person in lexicon.people if person[0] not in world.pronoun]
        name, pronoun = narrator.choose(left)
        narrator.write(name, PERSON)
        narrator.write(" was ")
        near = set(world.place_of.values())
        places = [place for _, place in lexicon.places]
        here = narrator.choose(places, [4 if place in near else 1 for place in places])
        _write_place(narrator, world, here)
        world.people.append(name)
        world.pronoun[name] = pronoun
        world.place_of[name] = here
    narrator.write(".")


def _introduce_objects(narrator: Narrator, lexicon: Lexicon, world: World) -> None:
    """The key was in the barn and Omar had the map."""
    narrator.write(" ")
    for number in range(min(2, len(lexicon.objects))):
        if number:
            narrator.write(" and ")
        left = [thing for thing in lexicon.objects if thing not in world.objects]
        if narrator.choose((True, False), (2, 1)):
            narrator.write("the " if number else "The ")
            thing = narrator.choose(left)
            narrator.write(thing, OBJECT)
            narrator.write(" was ")
            near = {world.place_of[person] for person in world.people}
            places = [place for _, place in lexicon.places]
            world.place_of[thing] = narrator.choose(
                places, [6 if place in near else 1 for place in places]
            )
            _write_place(narrator, world, world.place_of[thing])
        else:
            holder = narrator.choose(world.people)
            narrator.write(holder, PERSON)
            narrator.write(" had the ")
            thing = narrator.choose(left)
            narrator.write(thing, OBJECT)
            world.holder_of[thing] = holder
        world.objects.append(thing)
        world.first_place[thing] = world.where(thing)
    narrator.write(".")


class Event(NamedTuple):
    """One kind of sentence."""

    weight: int
    possible: Callable[[World], bool]
    tell: Callable[[Narrator, Lexicon, World], None]


def _move(narrator: Narrator, lexicon: Lexicon, world: World) -> None:
    """Amara wanted to rest, so she went to the garden. / Amara went to the garden to rest."""
    person = _choose_person(narrator, world, world.people)
    wish_first = narrator.choose((True, False), (1, 1))
    _write_subject(narrator, world, person)
    reason = ""
    if wish_first:
        reason = narrator.choose(lexicon.reasons)
        narrator.write(f" wanted to {reason}, so {world.pronoun[person]}")
    verbs = lexicon.move_verbs  # each person has a favourite way to go
    favourite = sum(map(ord, person)) % len(verbs)
    verb = narrator.choose(verbs, [6 if i == favourite else 1 for i in range(len(verbs))])
    narrator.write(f" {verb} to the ")
    here = world.place_of[person]
    lively = {world.where(thing) for thing in (*world.people, *world.objects)}
    places = [place for _, place in lexicon.places if place != here]
    place = narrator.choose(places, [4 if place in lively else 1 for place in places])
    narrator.write(place, PLACE)
    if not wish_first:
        reason = narrator.choose(lexicon.reasons)
        narrator.write(f" to {reason}")
    narrator.write(".")
    world.place_of[person] = place
    world.moves.append((person, place, reason))
    _changed(world, person)


def _within_reach(world: World) -> dict[str, list[str]]:
    """Person -> the objects that lie where that person is."""
    lying = [thing for thing in world.objects if thing not in world.holder_of]
    reach = {
        person: [thing for thing in lying if world.place_of[thing] == world.place_of[person]]
        for person in world.people
    }
    return {person: things for person, things in reach.items() if things}


def _take(narrator: Narrator, lexicon: Lexicon, world: World) -> None:
    """Amara picked up the key."""
    reach = _within_reach(world)
    person = _choose_person(narrator, world, list(reach))
    _write_subject(narrator, world, person)
    verb = narrator.choose(
        [verb for verb, _ in lexicon.take_verbs], [weight for _, weight in lexicon.take_verbs]
    )
    narrator.write(f" {verb} the ")
    thing = narrator.choose(reach[person])
    narrator.write(thing, OBJECT)
    narrator.write(".")
    del world.place_of[thing]
    world.holder_of[thing] = person
    _changed(world, person)


def _leave(narrator: Narrator, lexicon: Lexicon, world: World) -> None:
    """Amara left the key there."""
    person = _choose_person(narrator, world, _holders(world))
    _write_subject(narrator, world, person)
    narrator.write(" left the ")
    thing = narrator.choose([t for t, holder in world.holder_of.items() if holder == person])
    narrator.write(thing, OBJECT)
    narrator.write(" there.")
    del world.holder_of[thing]
    world.place_of[thing] = world.place_of[person]
    _changed(world, person)


def _company(world: World) -> dict[str, list[str]]:
    """Holder of something -> the other people in the same place."""
    company = {
        person: [p for p in world.people if p != person and world.where(p) == world.where(person)]
        for person in _holders(world)
    }
    return {person: others for person, others in company.items() if others}


def _give(narrator: Narrator, lexicon: Lexicon, world: World) -> None:
    """Amara gave the key to Omar."""
    company = _company(world)
    person = _choose_person(narrator, world, list(company))
    _write_subject(narrator, world, person)
    narrator.write(" gave the ")
    thing = narrator.choose([t for t, holder in world.holder_of.items() if holder == person])
    narrator.write(thing, OBJECT)
    narrator.write(" to ")
    receiver = narrator.choose(company[person])
    narrator.write(receiver, PERSON)
    narrator.write(".")
    world.holder_of[thing] = receiver
    _changed(world, None)


def _remark(narrator: Narrator, lexicon: Lexicon, world: World) -> None:
    """Now the key was in the garden and Omar was in the barn. / Now the key was with Omar.

    Chance decides what is spoken of; what is said of it follows from the state.
    """
    narrator.write("Now ")
    facts = [(p, False) for p in world.people] + [(t, False) for t in world.objects]
    facts += [(thing, True) for thing in world.holder_of]
    count = narrator.choose((1, 2), (1, 2))
    for number in range(count):
        if number:
            narrator.write(" and ")
        weights = [2 if subject in world.pronoun else 3 for subject, _ in facts]
        subject, ask_holder = narrator.choose(facts, weights)
        facts = [fact for fact in facts if fact[0] != subject]
        if subject in world.pronoun:
            narrator.write(subject, PERSON)
        else:
            narrator.write("the ")
            narrator.write(subject, OBJECT)
        if ask_holder:
            narrator.write(" was with ")
            narrator.write(world.holder_of[subject], PERSON)
        else:
            narrator.write(" was ")
            _write_place(narrator, world, world.where(subject))
    narrator.write(".")
    world.changed = False
    world.subject = None


EVENTS = (
    Event(5, lambda world: True, _move),
    Event(7, lambda world: bool(_within_reach(world)), _take),
    Event(2, lambda world: bool(world.holder_of), _leave),
    Event(5, lambda world: bool(_company(world)), _give),
    Event(16, lambda world: world.changed, _remark),
)


def _holders(world: World) -> list[str]:
    holding = set(world.holder_of.values())
    return [person for person in world.people if person in holding]


def _choose_person(narrator: Narrator, world: World, people: list[str]) -> str:
    """The one just spoken of is likelier."""
    return narrator.choose(people, [2 if person == world.subject else 1 for person in people])


def _write_subject(narrator: Narrator, world: World, person: str) -> None:
    """The name, or a pronoun for the only person of the sentence before."""
    if person == world.subject and narrator.choose((True, False), (1, 4)):
        narrator.write(world.pronoun[person].capitalize())
    else:
        narrator.write(person, PERSON)


def _write_place(narrator: Narrator, world: World, place: str) -> None:
    narrator.write(f"{world.preposition[place]} the ")
    narrator.write(place, PLACE)


def _changed(world: World, subject: str | None) -> None:
    world.changed = True
    world.subject = subject


# What is known about a story -----------------------------------------------------------------


def _questions(world: World) -> list[Question]:
    asked = []
    for thing in world.objects:
        asked.append(
            Question(f"Where is the {thing}?", f"the {world.where(thing)}", "where_object")
        )
        if thing in world.holder_of:
            asked.append(Question(f"Who has the {thing}?", world.holder_of[thing], "who_has"))
        if world.where(thing) != world.first_place[thing]:
            asked.append(
                Question(
                    f"Where was the {thing} at first?",
                    f"the {world.first_place[thing]}",
                    "where_first",
                )
            )
    for person in world.people:
        asked.append(Question(f"Where is {person}?", f"the {world.where(person)}", "where_person"))
    goals = [(person, place) for person, place, _ in world.moves]
    for person, place, reason in world.moves:
        if goals.count((person, place)) == 1:
            asked.append(Question(f"Why did {person} go to the {place}?", f"to {reason}", "why"))
    return asked


def _summary(world: World) -> str:
    thing = world.objects[0]
    place = world.where(thing)
    if thing in world.holder_of:
        phrase = f"{world.preposition[place]} the {place}"
        return f"{world.holder_of[thing]} ends up {phrase} with the {thing}."
    return f"The {thing} ends up {world.preposition[place]} the {place}."


def _instructions(world: World) -> list[Instruction]:
    carried = [f"the {thing}" for thing in world.objects if thing in world.holder_of]
    return [
        Instruction("Summarize the story in one sentence.", _summary(world)),
        Instruction("List the people in the story.", ", ".join(world.people)),
        Instruction("List the objects in the story.", ", ".join(world.objects)),
        Instruction(
            "Say where everyone is at the end.",
            " ".join(
                f"{p} is {world.preposition[world.where(p)]} the {world.where(p)}."
                for p in world.people
            ),
        ),
        Instruction("Which objects are being carried?", " and ".join(carried) or "none"),
    ]


# Sampling and replay -------------------------------------------------------------------------


class Sampler:
    """A narrator that chooses at random and adds up the log-probability of its choices."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.log_probability = 0.0
        self.pieces: list[str] = []
        self.entities: list[Entity] = []
        self.length = 0

    def choose(self, options: Sequence[T], weights: Sequence[float] | None = None) -> T:
        if weights is None:
            i, probability = int(self.rng.random() * len(options)), 1 / len(options)
        else:
            total = sum(weights)
            point = self.rng.random() * total
            i = 0
            while i < len(weights) - 1 and point >= weights[i]:
                point -= weights[i]
                i += 1
            probability = weights[i] / total
        self.log_probability += math.log(probability)
        return options[i]

    def write(self, text: str, entity: str | None = None) -> None:
        end = self.length + len(text)
        if entity is not None:
            self.entities.append(Entity(self.length, end, entity))
        self.pieces.append(text)
        self.length = end


class _Fork(Exception):
    """The path of choices ends here."""

    def __init__(self, weights: Sequence[float]) -> None:
        self.weights = weights


class _Mismatch(Exception):
    """What was written is not in the text."""


class _Replay:
    """A narrator that follows a path of choices and compares what is written with a text."""

    def __init__(self, path: Sequence[int], text: str | None) -> None:
        self.path = path
        self.text = text
        self.step = 0
        self.written = ""

    def choose(self, options: Sequence[T], weights: Sequence[float] | None = None) -> T:
        if self.step == len(self.path):
            raise _Fork([1] * len(options) if weights is None else weights)
        self.step += 1
        return options[self.path[self.step - 1]]

    def write(self, text: str, entity: str | None = None) -> None:
        if self.text is not None and not self.text.startswith(text, len(self.written)):
            raise _Mismatch
        self.written += text


def paths(
    program: Callable[[Narrator], object], text: str | None = None
) -> Iterator[tuple[str, float]]:
    """Every path of choices through a generator, as (what it writes, ln of its probability).

    A depth-first search: run the program along a path, and where it asks for one more choice,
    extend the path by each option. With a `text`, a path ends as soon as it writes anything else.

    Args:
        program: any function of a narrator with finitely many paths.
        text: keep the paths that write exactly this; None for all.
    """
    open_paths: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    while open_paths:
        path, log_p = open_paths.pop()
        narrator = _Replay(path, text)
        try:
            program(narrator)
        except _Fork as fork:
            total = sum(fork.weights)
            for i, weight in enumerate(fork.weights):
                if weight > 0:
                    open_paths.append(((*path, i), log_p + math.log(weight / total)))
        except _Mismatch:
            continue
        else:
            if text is None or narrator.written == text:
                yield narrator.written, log_p
