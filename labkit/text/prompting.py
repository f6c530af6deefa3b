"""Prompts: solved examples in a row, then the question; and questions with choices in a file.

    template "Text: {text}\\nTopic: {label}"

    Text: Shares fell.\\nTopic: business      an example: both places filled
    (blank line)
    Text: Late goal wins.\\nTopic: sport      another
    (blank line)
    Text: Rates rise.\\nTopic:               the question ends where its answer begins

A prompt holds no space at its end: in most vocabularies the space belongs to the word behind it.

Sources: Brown et al. 2020 (few-shot prompts); Lu et al. 2022 (their order).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from labkit.errors import LabError
from labkit.text import files

#: Between the examples of a prompt.
DIVIDER = "\n\n"


@dataclass(frozen=True)
class ChoiceQuestion:
    """A prompt, what may stand behind it, and which of these is right."""

    prompt: str
    """What the model reads first; it may be empty."""
    choices: tuple[str, ...]
    """At least two different texts, none of them empty, without the space before them."""
    answer: int
    """Index of the right one, from 0."""
    document: str = ""
    """Questions of the same document are not independent; "": this one stands alone."""

    @property
    def continuations(self) -> tuple[str, ...]:
        """The choices as they stand behind the prompt: a space before each where none is yet."""
        bare = not self.prompt[-1:].isspace()
        return tuple(f" {it}" if bare and not it[0].isspace() else it for it in self.choices)


def few_shot_prompt(template: str, examples: Iterable[tuple[str, str]], text: str) -> str:
    """Solved examples, then the question, which ends where its label would begin.

    Args:
        template: an example with the places {text} and {label}, once each and in this order.
        examples: (text, label) of each; none: a zero-shot prompt.
        text: of the question.

    Raises:
        LabError: the template lacks a place.

    >>> few_shot_prompt("{text} is {label}", [("2", "even")], "3")
    '2 is even\\n\\n3 is'
    """
    if template.count("{text}") != 1 or template.count("{label}") != 1:
        raise LabError(
            f"template {template!r} needs {{text}} and {{label}} once each, such as "
            '"Text: {text}\\nTopic: {label}"'
        )
    before, rest = template.split("{text}")
    if "{label}" not in rest:
        raise LabError(f"template {template!r} has {{label}} before {{text}}: turn them round")
    between, after = rest.split("{label}")
    solved = [f"{before}{known}{between}{label}{after}" for known, label in examples]
    return DIVIDER.join([*solved, f"{before}{text}{between}".rstrip()])


def example_orders(number: int, count: int, seed: int = 0) -> list[tuple[int, ...]]:
    """Different orders of the same examples, drawn without repetition.

    Args:
        number: of examples, at least 1.
        count: how many orders; all of them where there are fewer.
        seed: of the draw.

    >>> sorted(example_orders(2, 10))
    [(0, 1), (1, 0)]
    """
    rng = np.random.default_rng(seed)
    found: dict[tuple[int, ...], None] = {}
    while len(found) < min(count, math.factorial(number)):
        found[tuple(rng.permutation(number).tolist())] = None
    return list(found)


def draw_examples(labels_N: Sequence[int], per_class: int, seed: int = 0) -> list[int]:
    """Indices of `per_class` random examples of each class, in a random order.

    Raises:
        LabError: a class has fewer.
    """
    rng = np.random.default_rng(seed)
    labels = np.asarray(labels_N)
    drawn: list[int] = []
    for label in np.unique(labels):
        held = np.flatnonzero(labels == label)
        if not 1 <= per_class <= len(held):
            raise LabError(
                f"per_class {per_class} is out of range: class {label} has {len(held)} examples"
            )
        drawn += rng.choice(held, per_class, replace=False).tolist()
    return rng.permutation(drawn).tolist()


def read_choices(path: str | Path) -> list[ChoiceQuestion]:
    """Questions of a jsonl file, a line each: prompt (or question), choices, answer.

        {"prompt": "The capital of France is", "choices": ["Rome", "Paris"], "answer": 1}

    Further columns are ignored but `document`, which names the text that a question is about.

    Raises:
        LabError: the file cannot be read, or a line is no such question.
    """
    path = Path(path)
    if path.suffix.lower() != ".jsonl":
        raise LabError(f"{path} must end in .jsonl: a line holds prompt, choices and answer")
    return [_question(f"{path} row {n}", row) for n, row in enumerate(files.rows(path), start=1)]


def _question(where: str, row: dict[str, object]) -> ChoiceQuestion:
    prompt = row.get("prompt", row.get("question"))
    if not isinstance(prompt, str):
        raise LabError(
            f"{where} has no text in column 'prompt' (or 'question'); its columns are "
            f"{', '.join(row) or 'none'}"
        )
    choices, answer = row.get("choices"), row.get("answer")
    texts = choices if isinstance(choices, list) else []
    if len(texts) < 2 or not all(isinstance(it, str) and it.strip() for it in texts):
        raise LabError(f"{where} has choices {choices!r}: give a list of two or more texts")
    if len(set(texts)) < len(texts):
        raise LabError(f"{where} has the same choice twice: {choices!r}; keep one of them")
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(texts):
        raise LabError(
            f"{where} has answer {answer!r}: give the index of the right choice, 0 to "
            f"{len(texts) - 1}"
        )
    return ChoiceQuestion(prompt, tuple(texts), answer, str(row.get("document") or ""))
