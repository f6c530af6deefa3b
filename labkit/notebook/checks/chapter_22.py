"""Checkers of chapter 22: the capstone."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from labkit.course.rubric import lacking
from labkit.notebook.exercises import Fresh, compare, exercise, require


@exercise("22.1", title="How many documents must be held out?")
def documents_needed(attempt: Callable[..., Any], fresh: Fresh) -> str:
    cases = [([0.1, 0.9, 0.3, 0.6], 0.005), ([0.1, 0.1, 0.1], 0.01), ([0.02, 0.05], 0.5)]
    cases += [(fresh.normal(6, scale=0.2).tolist(), float(fresh.uniform(1, low=0.02, high=0.1)))
              for _ in range(3)]  # fmt: skip
    for differences, reach in cases:

        def needed(s: float, factor: float = 1.96, reach: float = reach) -> int:
            return max(2, math.ceil((factor * s / reach) ** 2))

        s = float(np.std(differences, ddof=1))
        compare(
            attempt(list(differences), reach),
            needed(s),
            {
                "counted with the deviation that divides by all values": needed(
                    float(np.std(differences))
                ),
                "counted for the whole width: the interval reaches to both sides": needed(s / 2),
                "counted without the 1.96": needed(s, 1.0),
                "not rounded up: half a document gives no interval": (1.96 * s / reach) ** 2,
                "rounded down": max(2, math.floor((1.96 * s / reach) ** 2)),
                "the root is missing: half the reach needs four times as many documents": max(
                    2, math.ceil(1.96 * s / reach)
                ),
                "below two: one document has no interval": math.ceil((1.96 * s / reach) ** 2),
            },
            what=f"For differences with deviation {s:.3f} and a reach of {reach:.3f}, the number",
        )
    return "Right: half the reach, four times the documents."


@exercise("22.2", title="Which copy stays?")
def copies_to_drop(attempt: Callable[..., Any], fresh: Fresh) -> str:
    def drop(counts: list[int], pairs: list[tuple[int, int]], joined: bool, best: Any) -> list[int]:
        family = list(range(len(counts)))
        for a, b in pairs:
            old, new = family[b], family[a]
            if joined:
                family = [new if f == old else f for f in family]
            else:
                family[b] = a
        stays = {
            best([i for i in range(len(counts)) if family[i] == f], counts) for f in set(family)
        }
        return [i for i in range(len(counts)) if i not in stays]

    def longest(members: list[int], counts: list[int]) -> int:
        return max(members, key=lambda i: (counts[i], -i))

    def last_longest(members: list[int], counts: list[int]) -> int:
        return max(members, key=lambda i: (counts[i], i))

    cases = [
        ([5, 9, 3], [(0, 1)]),
        ([5, 9, 3, 7], [(0, 1), (1, 2)]),
        ([5, 5, 5], [(1, 2)]),
        ([1, 2, 3, 4, 5], [(3, 4), (0, 1), (1, 4)]),
        ([4, 2], []),
    ]
    for _ in range(3):
        counts = fresh.integers(1, 9, 8).tolist()
        order = fresh.permutation(8).tolist()
        cases.append((counts, [(order[i], order[i + 1]) for i in (0, 2, 3, 5)]))
    for counts, pairs in cases:
        right = drop(counts, pairs, True, longest)
        answer = attempt(list(counts), list(pairs))
        require(
            isinstance(answer, list | tuple | np.ndarray) or hasattr(answer, "tolist"),
            "Return a list of positions.",
        )
        got = [int(i) for i in answer]
        told = f"Of texts with {counts} words and the pairs {pairs}"
        mistakes = {
            "the first of each family stays there: the longest should": drop(
                counts, pairs, True, lambda members, _: min(members)
            ),
            "the last of several longest stays there: the first should": drop(
                counts,
                pairs,
                True,
                last_longest,
            ),
            "the second of each pair goes there, whatever its length": sorted(
                {b for _, b in pairs}
            ),
            "the shorter of each pair goes there: of a family one stays": sorted(
                {a if (counts[a], -a) < (counts[b], -b) else b for a, b in pairs}
            ),
            "those that stay were returned": [i for i in range(len(counts)) if i not in right],
        }
        for sentence, wrong in mistakes.items():
            require(got == right or got != wrong, f"{told}, {right} go: {sentence}.")
        require(sorted(got) != right or got == right, f"{told}: give the positions in order.")
        require(got == right, f"{told}, {right} go, not {got}.")
    return "Right: a copy of a copy is a copy."


@exercise("22.3", title="What can be held out")
def stay_held_out(attempt: Callable[..., Any], fresh: Fresh) -> str:
    def stay(drawn: list[int], holds: list[set[int]], rounds: int) -> list[int]:
        test = set(drawn)
        for _ in range(rounds):
            test -= {i for i in test if any(j != i and j not in test for j in holds[i])}
        return sorted(test)

    cases = [
        ([0, 1], [{2}, set(), {0}, set()]),
        ([0, 1, 2], [{3}, {2}, {1}, {0}]),
        ([2, 0, 1], [{1}, {0, 2}, {1, 3}, {2}]),
        ([1, 0], [{0}, set(), set()]),
    ]
    for _ in range(4):
        holds: list[set[int]] = [set() for _ in range(9)]
        for a, b in fresh.integers(0, 9, 5, 2).tolist():
            if a != b:
                holds[a].add(b)
                holds[b].add(a)
        cases.append((fresh.permutation(9)[:5].tolist(), holds))
    for drawn, holds in cases:
        right = stay(drawn, holds, 9)
        got = [int(i) for i in attempt(list(drawn), [set(it) for it in holds])]
        told = f"Drawn {drawn}, shared passages {holds}"
        mistakes = {
            "you looked once: who went back may share passages with who stayed": stay(
                drawn, holds, 1
            ),
            "whoever shares any passage went: two test documents may share one": sorted(
                i for i in drawn if not holds[i] - {i}
            ),
            "a document shares with itself, and that does not count": sorted(
                i for i in stay(drawn, holds, 9) if i not in holds[i]
            ),
            "nobody went back": sorted(drawn),
        }
        for sentence, wrong in mistakes.items():
            require(got == right or got != wrong, f"{told}: {right} stay. Here {sentence}.")
        require(sorted(got) != right or got == right, f"{told}: give the positions in order.")
        require(got == right, f"{told}: {right} stay, not {got}.")
    return "Right: what cannot be held out is no test."


@exercise("22.4", title="Figures that nobody measured")
def unmeasured(attempt: Callable[..., Any], fresh: Fresh) -> str:
    x = float(fresh.uniform(1, low=1.0, high=2.0))
    cases = [
        ("1.04 bits, before 1.19; 134 million", [1.0449, 1.187], [], "Both round to what was said"),
        ("1.04 bits, before 1.21", [1.0449, 1.187], ["1.21"], "Nobody measured 1.21"),
        ("1.05 bits", [1.0449], ["1.05"], "1.0449 rounds to 1.04: close is not equal"),
        ("it gained -0.20", [0.2], ["-0.20"], "The sign belongs to the figure"),
        ("1.0450 and 1.045", [1.0454], ["1.0450"], "How many digits stand there matters"),
        ("9.9 then 7.7 then 9.9", [1.0], ["9.9", "7.7", "9.9"], "In order, as often as it stands"),
        ("3 seeds and 12 pages", [1.0], [], "A number without a point is no figure here"),
        (f"{x:.3f} bits", [x], [], "It is the rounded number"),
    ]
    for text, measured, right, why in cases:
        answer = attempt(text, list(measured))
        require(isinstance(answer, list | tuple), "Return a list of figures as written.")
        got = list(answer)
        require(
            all(isinstance(it, str) for it in got), "Return the figures as they are written: texts."
        )
        require(got == right, f"{why}: of {text!r} with {measured} it is {right}, not {got}.")
    return "Right: run it over your own card."


@exercise("22.5", title="Your own project")
def my_project(attempt: Any, fresh: Fresh) -> str:
    require(
        isinstance(attempt, str | Path),
        'Give the path of your project folder, such as "runs/mine".',
    )
    found = lacking(attempt)
    require(not found, f"{len(found)} point(s) fail. " + " ".join(found))
    return "Nothing is lacking: show it to somebody."
