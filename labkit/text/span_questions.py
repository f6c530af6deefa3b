"""Questions whose answer stands in a text, or does not: of stories, and of Python code.

    storyworld     "Where is the key?"                             "garden", somewhere in the story
                   "Who has the lamp?"                             nobody has it: no answer
    python_source  "What is the default of width in wrap?"         "70", in the signature
                   "What is the default of text in wrap?"          it has none: no answer
                   "What is the base class of TextWrapper?"        "object", or no answer

Each example is (context, question, answer, start): context[start : start + len(answer)] is the
answer; where there is none, answer is "" and start is -1, as SQuAD 2 has it. Truth comes from the
generator's hidden state and from the syntax tree, never from a guess. Some three of ten questions
have no answer, and none of them gives that away by naming what the text does not hold.

Source: Rajpurkar et al. 2018, arXiv:1806.03822 (questions without an answer).
"""

from __future__ import annotations

import ast
import bisect
import hashlib
import re
import warnings
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from labkit.errors import LabError
from labkit.text import storyworld
from labkit.text.storyworld import OBJECT, PERSON, PLACE

if TYPE_CHECKING:
    from datasets import DatasetDict

#: Of all questions, about this share has no answer.
IMPOSSIBLE = 0.3
#: Characters of code around a question.
LONGEST = 1500

_WORDS = re.compile(r"\w+")


class SpanQuestion(NamedTuple):
    """A question about a text."""

    context: str
    question: str
    answer: str
    """A piece of the context, or "" where it holds no answer."""
    start: int
    """Where it begins, or -1."""
    kind: str

    @property
    def possible(self) -> bool:
        """Whether the context holds an answer."""
        return self.start >= 0


def story_questions(story: storyworld.Story) -> list[SpanQuestion]:
    """The questions of a story with a place of each answer in it, and questions without one.

    Without an answer: who has an object that nobody holds; why somebody went to a place of the
    story to which nobody went.
    """
    text, asked = story.text, []
    for it in story.questions:
        start = _story_span(story, it)
        if start >= 0:
            answer = it.answer.removeprefix("the ")
            asked.append(SpanQuestion(text, it.question, answer, start, it.kind))
    questions = {it.question for it in story.questions}
    named = {kind: [] for kind in (PERSON, PLACE, OBJECT)}
    for entity in story.entities:
        name = text[entity.start : entity.end]
        if name not in named[entity.type]:
            named[entity.type].append(name)
    for thing in named[OBJECT]:
        if (question := f"Who has the {thing}?") not in questions:
            asked.append(SpanQuestion(text, question, "", -1, "who_has"))
    asked += _never_went(story, named[PERSON], named[PLACE], questions)
    return asked


def _never_went(
    story: storyworld.Story, people: list[str], places: list[str], questions: set[str]
) -> list[SpanQuestion]:
    """Up to three questions why somebody went to a place of the story to which they never went.

    Where somebody else did go, each going must be that of a known question: then it was not theirs.
    """
    text, nobody, others = story.text, [], []
    for place in places:
        goings = len(re.findall(rf"to the {place}\b", text))
        asked = [f"Why did {person} go to the {place}?" for person in people]
        if goings > sum(question in questions for question in asked):
            continue  # somebody went there twice: the questions do not say who
        (others if goings else nobody).extend(q for q in asked if q not in questions)
    key = lambda question: _chance(text, question)  # noqa: E731
    drawn = sorted(nobody, key=key)[:1] + sorted(others, key=key)[:2]
    return [SpanQuestion(text, question, "", -1, "why") for question in drawn]


def _story_span(story: storyworld.Story, it: storyworld.Question) -> int:
    """Where the answer begins: where the story last (or first) says it, -1 if it never does."""
    text, answer = story.text, it.answer.removeprefix("the ")
    if it.kind == "why":
        place = it.question.removesuffix("?").rsplit(" ", 1)[1]
        for sentence in re.finditer(r"[^.]+\.", text):
            reason = re.search(rf"\b{re.escape(answer)}\b", sentence[0])
            if reason and f"to the {place}" in sentence[0]:
                return sentence.start() + reason.start()
        return -1
    spoken = [
        entity.start for entity in story.entities if text[entity.start : entity.end] == answer
    ]
    if not spoken:
        return -1
    return spoken[0] if it.kind == "where_first" else spoken[-1]


def code_questions(source: str) -> list[SpanQuestion]:
    """Questions about the functions and classes of a Python file; none if it does not parse.

    Every context holds the lines before the definition, too, so that other defaults stand there.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return []
    if not source.isascii():  # ast counts bytes
        return []
    lines = [0]  # where each begins; as ast counts them
    for line in source.split("\n"):
        lines.append(lines[-1] + len(line) + 1)
    asked: list[SpanQuestion] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for name, default in _parameters(node):
                question = f"What is the default of {name} in {node.name}?"
                asked += _about(source, lines, node, question, default, "default")
        elif isinstance(node, ast.ClassDef) and len(node.bases) < 2 and not node.keywords:
            question = f"What is the base class of {node.name}?"
            base = node.bases[0] if node.bases else None
            asked += _about(source, lines, node, question, base, "base")
    return asked


def _parameters(node: Any) -> Iterator[tuple[str, ast.expr | None]]:
    """(name, default or None) of each parameter but self and cls."""
    ordered = [*node.args.posonlyargs, *node.args.args]
    defaults = [None] * (len(ordered) - len(node.args.defaults)) + node.args.defaults
    both = [*zip(ordered, defaults, strict=True)]
    both += zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
    return ((it.arg, default) for it, default in both if it.arg not in ("self", "cls"))


def _about(
    source: str,
    lines: list[int],
    node: Any,
    question: str,
    answer: ast.expr | None,
    kind: str,
) -> Iterator[SpanQuestion]:
    """The question with its context, unless the answer is long or lies outside."""
    head = lines[node.lineno - 1]
    begin = lines[bisect.bisect_left(lines, head - LONGEST // 2)]
    end = min(begin + LONGEST, lines[min(node.end_lineno, len(lines) - 1)])
    signature = lines[min(node.body[0].lineno, len(lines)) - 1]
    if signature > end:
        return
    context = source[begin:end]
    if answer is None:
        yield SpanQuestion(context, question, "", -1, kind)
        return
    start = lines[answer.lineno - 1] + answer.col_offset - begin
    said = source[
        begin + start : lines[(answer.end_lineno or 1) - 1] + (answer.end_col_offset or 0)
    ]
    if said and "\n" not in said and len(said) <= 40 and context[start:].startswith(said):
        yield SpanQuestion(context, question, said, start, kind)


def balanced(questions: Iterable[SpanQuestion], most: int, seed: int = 0) -> list[SpanQuestion]:
    """At most so many of one text's questions, each without an answer with chance `IMPOSSIBLE`.

    Which ones follows from the questions and the seed.

    Args:
        questions: of one text.
        most: at least 1.
        seed: of the draw.

    Raises:
        LabError: a count below 1.
    """
    if most < 1:
        raise LabError(f"most {most} is out of range: choose at least 1 question of a text")
    pools: dict[bool, list[SpanQuestion]] = {True: [], False: []}
    for it in sorted(questions, key=lambda it: _chance(seed, it.context, it.question)):
        pools[it.possible].append(it)
    drawn: list[SpanQuestion] = []
    for number in range(most):
        context = next((p[0].context for p in pools.values() if p), "")
        wanted = _chance(seed, f"possible {number}", context) >= IMPOSSIBLE
        if not pools[wanted]:
            break
        drawn.append(pools[wanted].pop())
    return drawn


def _chance(*parts: object) -> float:
    """In [0, 1), from the hash of the parts."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def span_questions(
    name: str = "storyworld", per_text: int = 4, seed: int = 0, **options: Any
) -> DatasetDict:
    """Questions on a corpus, in its own splits: columns context, question, answer, start, kind.

    Args:
        name: storyworld or python_source.
        per_text: questions of one story; of a file ten times as many.
        seed: which questions.
        **options: of `corpora.load`.

    Raises:
        LabError: another corpus, or an option is unknown.
    """
    from datasets import Dataset, DatasetDict

    from labkit.text import corpora

    if name == "python_source":
        splits = corpora.load(name, **options)
        found = {
            str(part): [
                balanced(code_questions(text), 10 * per_text, seed) for text in some["text"]
            ]
            for part, some in splits.items()
        }
    elif name == "storyworld":
        splits = corpora.load(name, **options)
        found = {
            str(part): [balanced(story_questions(_story(row)), per_text, seed) for row in some]
            for part, some in splits.items()
        }
    else:
        raise LabError(f"there are no questions on {name!r}: choose storyworld or python_source")
    parts = {}
    for part, questions in found.items():
        rows = [it._asdict() for some in questions for it in some]
        parts[part] = Dataset.from_list(rows)
    return DatasetDict(parts)


def _story(row: Any) -> storyworld.Story:
    """A row of the corpus as a story again."""
    return storyworld.Story(
        row["text"],
        row["log_probability"],
        row["summary"],
        [storyworld.Question(**it) for it in row["questions"]],
        [storyworld.Entity(**it) for it in row["entities"]],
        [],
    )


def lazy_story_answer(context: str, question: str) -> str:
    """What a reader says who looks for a word of the right kind, and follows no story.

    Where: the last place spoken of in a sentence with the asked name, else the last one at all.
    Who: the last person named beside the object. Why: the words behind the last "to" of a sentence
    with the person. "" if no sentence has the name, and of a place to which nobody goes.
    """
    lexicon = storyworld.LEXICON
    words = _WORDS.findall(question)
    people = {name for name, _ in lexicon.people}
    places = {place for _, place in lexicon.places}
    wanted = people if question.startswith("Who") else places
    asked = [word for word in words if word in people | set(lexicon.objects)]
    near = [s for s in context.split(".") if any(re.search(rf"\b{w}\b", s) for w in asked)]
    if question.startswith("Why"):
        place = words[-1]
        went = [s for s in context.split(".") if f"to the {place}" in s]
        reasons = [w for s in went for w in _WORDS.findall(s) if w in lexicon.reasons]
        return f"to {reasons[-1]}" if reasons else ""
    said = [word for s in near for word in _WORDS.findall(s) if word in wanted]
    if not said:
        return ""
    return said[0] if "at first" in question else said[-1]


def lazy_code_answer(context: str, question: str) -> str:
    """What a reader says who searches for "name=" or "class name(": the first such place.

    It knows no function from another, so it is wrong where several have a parameter of that name.
    """
    base = re.match(r"What is the base class of (\w+)\?", question)
    if base:
        found = re.search(rf"class {base[1]}\(([^)\n]*)\)", context)
        return found[1] if found else ""
    asked = re.match(r"What is the default of (\w+) in \w+\?", question)
    if asked is None:
        return ""
    found = re.search(rf"\b{asked[1]}\s*(?::[^=,\n]+)?=\s*([^,)\n]+)", context)
    return found[1].strip() if found else ""
