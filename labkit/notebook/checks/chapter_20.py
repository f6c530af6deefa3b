"""Checkers of chapter 20: evaluation and deployment."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from labkit.notebook.exercises import Fresh, compare, exercise, require


@exercise("20.1", title="What a joining text may see")
def slots_see(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for lengths in ([3, 5, 2], [4], fresh.integers(1, 9, 5).tolist()):
        answer = attempt(list(lengths))
        require(
            isinstance(answer, tuple | list) and len(answer) == 2,
            "Return two arrays, (places, mask).",
        )
        places, mask = (torch.as_tensor(np.asarray(it)) for it in answer)
        right_places = torch.tensor(lengths)
        columns = torch.arange(max(lengths) + 1)
        right = (columns <= right_places[:, None]).long()
        compare(
            places.double(),
            right_places.double(),
            {
                "those of the last token: the next one stands one further": (
                    right_places.double() - 1
                ),
                "all those of the longest text: every row has a place of its own": (
                    torch.full_like(right_places, max(lengths)).double()
                ),
            },
            what="places",
        )
        compare(
            mask.double(),
            right.double(),
            {
                "without the new token itself": (columns < right_places[:, None]).double(),
                "everything up to the longest text: what stands there is somebody else's": (
                    torch.ones_like(right).double()
                ),
                "filled from the right, as left padding is: here a text begins in column 0": (
                    right.flip(1).double()
                ),
                "turned round: 1 is what may be seen": 1 - right.double(),
                "without the column of the longest row's new token": right[:, :-1].double(),
            },
            what="mask",
        )
    return "Right: no padding, no moved position, and nothing of whoever was here before."


@exercise("20.2", title="How many guesses?")
def best_guesses(attempt: Callable[..., Any], fresh: Fresh) -> str:
    def best(speed: Callable[[int], float], most: int) -> int:
        return max(range(most + 1), key=speed)

    cases = [(0.8, 0.05, 0.1, 30), (0.3, 0.3, 0.3, 8), (0.9, 0.0, 0.02, 6), (0.6, 0.02, 0.06, 10)]
    cases += [
        (float(fresh.uniform(1, low=0.5, high=0.95)), 0.04, float(fresh.uniform(1, high=0.2)), 9)
        for _ in range(4)
    ]
    for a, draft, more, most in cases:

        def tokens(G: int, a: float = a) -> float:
            return sum(a**k for k in range(G + 1))

        def cost(G: int, draft: float = draft, more: float = more) -> float:
            return 1 + G * (draft + more)

        right = best(lambda G: tokens(G) / cost(G), most)
        told = f"With a = {a:.2f}, draft = {draft:.2f}, more = {more:.2f}, most = {most}: G"
        compare(
            attempt(a, draft, more, most),
            right,
            {
                "the largest: a guess costs, and a refusal ends the round": most,
                "counted without the judge's own token": best(
                    lambda G: (tokens(G) - 1) / cost(G), most
                ),
                "counted without the draft's time": best(
                    lambda G, more=more: tokens(G) / (1 + G * more), most
                ),
                "counted as if further positions in a pass were free": best(
                    lambda G, draft=draft: tokens(G) / (1 + G * draft), most
                ),
            },
            what=told,
        )
    return "Right: 0 is an answer, too."


@exercise("20.3", title="What may be sent")
def may_be_sent(attempt: Callable[..., Any], fresh: Fresh) -> str:
    cases = [
        ("Hello wor", ["END"], "Hello wor", "Nothing here can become a stop"),
        ("Hello EN", ["END"], "Hello ", "'EN' may become 'END'"),
        ("Hello END of", ["END"], "Hello ", "The text ends before the stop"),
        ("a STOP b END", ["END", "STOP"], "a ", "The earliest of several stops counts"),
        ("say EN", ["N!", "END"], "say ", "Of several endings the longest is held back"),
        ("aab", ["ab"], "a", "'ab' is a whole stop, wherever it begins"),
        ("aaa", ["aab"], "a", "'aa' may become 'aab', and 'a' alone is not all that may"),
        ("done.", [], "done.", "Without stops everything may be sent"),
        ("ENEN", ["END"], "EN", "Only the end of the text may still become a stop"),
    ]
    for text, stops, right, why in cases:
        got = attempt(text, list(stops))
        require(isinstance(got, str), f"Return a text, not {got!r:.60}.")
        require(
            got == right,
            f"{why}: of {text!r} with the stops {stops} {right!r} may be sent, not {got!r}.",
        )
    return "Right: nothing sent that must be called back, and nothing kept longer than needed."


@exercise("20.4", title="How much was seen before?")
def share_seen(attempt: Callable[..., Any], fresh: Fresh) -> str:
    def covered(test: list[str], train: list[str], n: int) -> list[bool]:
        runs = {tuple(train[i : i + n]) for i in range(len(train) - n + 1)}
        seen = [False] * len(test)
        for i in range(len(test) - n + 1):
            if tuple(test[i : i + n]) in runs:
                seen[i : i + n] = [True] * n
        return seen

    letters = "abcd"
    cases = [
        ("x a b c d y z", "q a b c d r", 3),
        ("x a b y", "a q b", 2),
        ("a b a b", "a b", 2),
        ("a b c", "a b c d e", 3),
    ]
    for n in (2, 3):
        test = " ".join(letters[i] for i in fresh.integers(0, 4, 15).tolist())
        train = " ".join(letters[i] for i in fresh.integers(0, 4, 12).tolist())
        cases.append((test, train, n))
    for told, read, n in cases:
        test, train = told.split(), read.split()
        seen, size = covered(test, train, n), len(test)
        starts = [
            tuple(test[i : i + n]) in {tuple(train[k : k + n]) for k in range(len(train) - n + 1)}
            for i in range(size - n + 1)
        ]
        compare(
            attempt(list(test), list(train), n),
            sum(seen) / size,
            {
                "the share of runs: count the words that they cover": sum(starts) / len(starts),
                "counted twice where runs overlap: a word counts once": n * sum(starts) / size,
                "the share of words that the training text holds anywhere": (
                    sum(word in train for word in test) / size
                ),
                "counted by the first word of each run: all n are covered": sum(starts) / size,
            },
            what=f"For {told!r} in {read!r} with n = {n}, the share",
        )
    return "Right: runs of 13 of these are what contamination checks look for."
