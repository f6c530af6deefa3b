"""Tasks with an answer that a program can check: expressions that make a number, and plain sums.

    Problem((2, 3, 5), 11)  ──> "2,3,5=11:"           what the model reads
                            <── "2*3+5"               what it writes
                            ──> is_solution: True     every number once, and the value is 11

    Addition(23, 45)        ──> "What is 23 + 45?"    <── "23 + 45 = 68."    is_right: True

A checker is no answer key: "5+3*2" is as right as "2*3+5". What a model writes is text from
outside, so it is parsed and never run: `value` knows whole numbers, + - * and parentheses.

Sources: Cobbe et al. 2021, arXiv:2110.14168 (checked answers to arithmetic); the game is known as
Countdown, used as a task for search by Gandhi et al. 2024, arXiv:2404.03683.
"""

import ast
import itertools
import operator
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from labkit.errors import LabError
from labkit.text.cleaning import split_by_hash

#: The characters of problems and expressions; their places are their ids. The first ends a text.
ALPHABET = "\n0123456789+-*()=,:"
#: A longer answer is no expression.
LONGEST = 64

_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}
_EXPRESSION = re.compile(rf"[0-9+\-*() ]{{1,{LONGEST}}}")
_NUMBER = re.compile(r"-?\d+")


class Problem(NamedTuple):
    """Write an expression of these numbers, each of them once, that gives the target."""

    numbers: tuple[int, ...]
    """In ascending order."""
    target: int

    @property
    def prompt(self) -> str:
        """The problem as text.

        >>> Problem((2, 3, 5), 11).prompt
        '2,3,5=11:'
        """
        return f"{','.join(map(str, self.numbers))}={self.target}:"


class Addition(NamedTuple):
    """A question of two numbers in words, for a language model that has seen such questions."""

    left: int
    right: int

    @property
    def prompt(self) -> str:
        """The question as text."""
        return f"What is {self.left} + {self.right}?"


def value(expression: str) -> int | None:
    """What an expression of whole numbers, + - * and parentheses is worth; None if it is none.

    The text is parsed to a syntax tree of which only these nodes are accepted, never evaluated as a
    program.

    >>> value("2*3+5"), value("2**9"), value("__import__('os')")
    (11, None, None)
    """
    if not _EXPRESSION.fullmatch(expression):
        return None
    try:
        return _value(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, _Refused):
        return None


class _Refused(Exception):
    """A piece of syntax that is no arithmetic of ours."""


def _value(node: ast.expr) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    raise _Refused(type(node).__name__)


def is_solution(problem: Problem, answer: str) -> bool:
    """Whether the answer is an expression of exactly the problem's numbers with the target's value.

    >>> problem = Problem((2, 3, 5), 11)
    >>> [is_solution(problem, answer) for answer in ("5+2*3", "5+6", "11", "2*3+5=11")]
    [True, False, False, False]
    """
    used = tuple(sorted(int(number) for number in re.findall(r"\d+", answer)))
    return used == tuple(sorted(problem.numbers)) and value(answer) == problem.target


def has_value(problem: Problem, answer: str) -> bool:
    """A checker with a hole: whether the answer's value is the target, whatever numbers it uses.

    >>> has_value(Problem((2, 3, 5), 11), "11")
    True
    """
    return value(answer) == problem.target


def is_right(sum_: Addition, answer: str) -> bool:
    """Whether the last whole number in an answer in words is the sum.

    >>> is_right(Addition(23, 45), "23 + 45 = 68."), is_right(Addition(23, 45), "It is 23.")
    (True, False)
    """
    said = _NUMBER.findall(answer.replace(",", ""))
    return bool(said) and int(said[-1]) == sum_.left + sum_.right


def solutions(terms: int = 3, largest: int = 9, most: int = 99) -> dict[Problem, list[str]]:
    """Every problem of so many numbers with all its solutions without parentheses, in fixed order.

    Args:
        terms: numbers in a problem, 2 to 4 (of 4 there are some 25,000 problems, which takes 3 s).
        largest: each number is 1 to largest; 1 to 99.
        most: targets are 1 to most, at least 1.

    Raises:
        LabError: a value out of range.
    """
    for name, given, low, high in (("terms", terms, 2, 4), ("largest", largest, 1, 99)):
        if not low <= given <= high:
            raise LabError(f"{name} {given} is out of range: choose {low} to {high}")
    if most < 1:
        raise LabError(f"most {most} is out of range: choose at least 1")
    found: dict[Problem, list[str]] = {}
    for numbers in itertools.combinations_with_replacement(range(1, largest + 1), terms):
        for order in sorted(set(itertools.permutations(numbers))):
            for signs in itertools.product("+-*", repeat=terms - 1):
                text = str(order[0]) + "".join(
                    f"{sign}{number}" for sign, number in zip(signs, order[1:], strict=True)
                )
                result = value(text)
                if result is not None and 1 <= result <= most:
                    found.setdefault(Problem(numbers, result), []).append(text)
    return dict(sorted(found.items()))


def split(problems: Sequence[Problem], seed: int = 0, **shares: float) -> dict[str, list[Problem]]:
    """Problems in train, validation and test by the hash of each prompt.

    Args:
        problems: each once.
        seed: another seed, another split.
        **shares: `validation` and `test`, as of `cleaning.split_by_hash`.
    """
    places = split_by_hash([problem.prompt for problem in problems], seed=seed, **shares)
    return {part: [problems[i] for i in found] for part, found in places.items()}


def additions(count: int, seed: int = 0, largest: int = 99) -> list[Addition]:
    """Different sums of two numbers, each 10 to largest, in random order.

    Args:
        count: at most as many as there are.
        seed: of the draw; two draws of one seed share their beginning.
        largest: at least 10.

    Raises:
        LabError: more than there are.
    """
    every = max(0, largest - 9) ** 2
    if not 1 <= count <= every:
        raise LabError(f"count {count} is out of range: there are {every} sums, and at least 1")
    drawn = np.random.default_rng(seed).permutation(every)[:count]
    return [Addition(10 + int(i) // (largest - 9), 10 + int(i) % (largest - 9)) for i in drawn]


def encode(text: str) -> list[int]:
    """The id of each character of `ALPHABET`.

    Raises:
        LabError: a character that has none.
    """
    if wrong := sorted(set(text) - set(ALPHABET)):
        raise LabError(f"{wrong[0]!r} is not in the alphabet: choose of {ALPHABET!r}")
    return [ALPHABET.index(character) for character in text]


def decode(ids: Sequence[int]) -> str:
    """Text of ids of `ALPHABET`."""
    return "".join(ALPHABET[i] for i in ids)
