"""Checkers of chapter 24: data curation."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from labkit.notebook.exercises import Fresh, compare, exercise, require


@exercise("24.1", title="Precision and recall")
def precision_and_recall(attempt: Callable[..., Any], fresh: Fresh) -> str:
    kinds = ["clean", "near", "leak", "loop", "cipher"]
    for _ in range(3):
        all_kinds = [kinds[fresh.integer(0, 5)] for _ in range(40)] + ["clean", "loop", "cipher"]
        dropped = {i for i in range(40) if fresh.integer(0, 3) == 0} | {40, 41}
        bad = {"loop", "cipher"}
        hits = sum(all_kinds[i] in bad for i in dropped)
        there = sum(kind in bad for kind in all_kinds)
        precision, recall = hits / len(dropped), hits / there
        right = sum((i in dropped) == (kind in bad) for i, kind in enumerate(all_kinds))
        compare(
            _two(attempt(set(dropped), list(all_kinds), set(bad))),
            (precision, recall),
            {
                "the wrong way round: precision is a share of what was dropped": (
                    recall,
                    precision,
                ),
                "a share of all texts: precision divides by what was dropped, recall by what had "
                "to go": (hits / len(all_kinds), hits / len(all_kinds)),
                "accuracy, twice": (right / len(all_kinds), right / len(all_kinds)),
                "as if every kind but clean were bad: this filter has its own task": (
                    sum(all_kinds[i] != "clean" for i in dropped) / len(dropped),
                    sum(all_kinds[i] != "clean" for i in dropped)
                    / sum(kind != "clean" for kind in all_kinds),
                ),
            },
        )
    require(
        tuple(map(float, _two(attempt(set(), ["clean", "loop"], {"loop"})))) == (1.0, 0.0),
        "A filter that drops nothing has dropped nothing wrongly: precision 1, recall 0.",
    )
    return "Right: dropping all has recall 1, dropping nothing has precision 1; report both."


def _two(answer: Any) -> tuple[Any, Any]:
    require(
        isinstance(answer, tuple | list) and len(answer) == 2, "Return two numbers, in this order."
    )
    return tuple(answer)


@exercise("24.2", title="One of each cluster")
def one_of_each(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for _ in range(4):
        first = [0, 1, 1, 3, 0, 1, 3, 7, 0]
        gone = {0} | {i for i in (2, 3, 5, 6, 7) if fresh.integer(0, 3) == 0}  # of 0, 4 and 8 stay
        seen: set[int] = set()
        right = set()
        for i, cluster in enumerate(first):
            if i not in gone:
                if cluster in seen:
                    right.add(i)
                seen.add(cluster)
        answer = attempt(list(first), set(gone))
        require(
            isinstance(answer, set | list | tuple), "Return a set of positions, the ones to drop."
        )
        got = {int(i) for i in answer}
        by_list = {i for i, cluster in enumerate(first) if cluster != i}
        require(
            got != by_list - gone and got != by_list,
            "That drops all but the very first of each cluster: where the first is gone already, "
            "nothing of the cluster is left.",
        )
        require(
            not got & gone,
            f"{sorted(got & gone)} went before: return what falls now, not what is gone.",
        )
        left = [cluster for i, cluster in enumerate(first) if i not in gone | got]
        require(
            len(left) == len(set(left)), "Two texts of one cluster stay: one of each is enough."
        )
        missing = {cluster for i, cluster in enumerate(first) if i not in gone} - set(left)
        require(
            not missing, f"Of the clusters {sorted(missing)} nothing is left: keep one of each."
        )
        require(
            got == right,
            "One of each cluster stays, but not the first that is left: keep that one.",
        )
    return "Right: copies are judged among what is still there."


@exercise("24.3", title="Temperature")
def temperature_shares(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for count, temperature in ((3, 2.0), (5, 4.0), (4, 1.0), (4, math.inf)):
        sizes = fresh.uniform(count, low=1.0, high=50.0)

        def shares(power: float, sizes: torch.Tensor = sizes) -> torch.Tensor:
            return sizes**power / (sizes**power).sum()

        heat = min(temperature, 20.0)
        compare(
            attempt(sizes, temperature),
            shares(1 / temperature),
            {
                "raised to the power T, which makes the large sources larger: use 1 / T": shares(
                    heat
                ),
                "in proportion to size whatever T: the temperature is not used": shares(1.0),
                "equal shares whatever T: that is the limit of a large T": shares(0.0),
                "not divided by the sum: shares sum to 1": sizes ** (1 / temperature),
                "a softmax of sizes / T: it is their logarithms that are divided by T": (
                    torch.softmax(sizes / heat, 0)
                ),
            },
        )
    return "Right: 1 is by size, infinity is all alike."


@exercise("24.4", title="Which texts hold the test?")
def holds_the_test(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for length in (3, 5):
        words = [f"w{fresh.integer(0, 10**9)}" for _ in range(60)]
        test = words[:20]
        texts = [
            [*words[20:30], *test[4 : 4 + length], *words[30:40]],  # a run, inside
            [*test[2 : 2 + length - 1], *words[40:50]],  # a run that is one too short
            [*reversed(test), *words[50:55]],  # every word, no run
            list(test),  # the whole test
            words[20:45],  # nothing
            test[: length - 1],  # shorter than a run
        ]
        got = attempt([list(text) for text in texts], [list(test), words[55:60]], length)
        require(isinstance(got, set | list | tuple), "Return a set of positions in `texts`.")
        found = {int(i) for i in got}
        mistakes: Sequence[tuple[set[int], str]] = (
            ({3}, "Whole texts are compared: a test may stand inside a longer text."),
            (
                {0, 1, 2, 3, 5},
                "Single words are compared: runs of n words in order are asked for.",
            ),
            ({0, 1, 3}, f"A run of {length - 1} words is enough for it: n is {length}."),
            ({0, 1, 3, 5}, f"A run of {length - 1} words is enough for it: n is {length}."),
            ({0, 2, 3}, "The order of the words is lost: compare runs, not sets of words."),
            ({1, 2, 4, 5}, "Those are the texts to keep: return the ones that hold the test."),
        )
        for wrong, sentence in mistakes:
            require(found != wrong, sentence)
        require(
            found == {0, 3},
            f"It should find the texts 0 and 3, but it finds {sorted(found)}: a text counts if "
            f"{length} words in a row stand in one test, too.",
        )
    return "Right: and now say which n you used whenever you report it."


@exercise("24.5", title="Gain and forgetting")
def gain_and_forgetting(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for count in (3, 4):
        before = fresh.uniform(count, low=1.0, high=3.0)
        after = fresh.uniform(count, count, low=1.0, high=4.0)

        def answer(change: torch.Tensor, count: int = count) -> tuple[torch.Tensor, torch.Tensor]:
            home = change.diagonal()
            return -home, (change.sum(1) - home) / (count - 1)

        change = after - before
        gain, lost = answer(change)
        compare(
            attempt(before, after),
            (gain, lost),
            {
                "with the signs turned: a fall in bits per byte is a gain, a rise is forgetting": (
                    -gain,
                    -lost,
                ),
                "with forgetting averaged over all domains, home included: leave out the "
                "diagonal": (gain, change.mean(1)),
                "taken along the columns: row i belongs to the model that met domain i": answer(
                    change.T
                ),
                "with `before` subtracted from the wrong axis: column j is domain j": answer(
                    after - before[:, None]
                ),
                "the sum of what is lost, not the mean": (gain, change.sum(1) - change.diagonal()),
                "the loss at home itself, not its change": (after.diagonal(), lost),
            },
        )
    return "Right: both belong in every report of a continued training."


@exercise("24.6", title="Deal the cards")
def turns(attempt: Callable[..., Any], fresh: Fresh) -> str:
    several = [tuple(fresh.integer(1, 10) for _ in range(count)) for count in (3, 4, 5)]
    for parts in [(5, 3, 2), (6, 1, 1), *several, (8, 1, 1, 1, 1), (13, 13, 13, 1, 1)]:
        total = sum(parts)
        found = attempt(parts, total, 3 * total)
        require(
            isinstance(found, list | tuple) and len(found) == 3 * total,
            f"Return a list of {3 * total} source numbers, not {str(found)[:60]}.",
        )
        require(
            all(0 <= int(k) < len(parts) for k in found),
            f"Sources are numbered from 0 to {len(parts) - 1}.",
        )
        require(
            attempt(parts, total, 3 * total) == found,
            "Asked twice it deals differently: chance has no place here, a draw is off by the root "
            "of the number of turns.",
        )
        count = [0] * len(parts)
        for n, k in enumerate(found, 1):
            count[int(k)] += 1
            for source, part in enumerate(parts):
                off = count[source] - n * part / total
                require(
                    abs(off) < 1 - 1e-9,
                    f"With parts {parts}, after {n} turns source {source} has had {count[source]}, "
                    f"{abs(off):.2f} {'more' if off > 0 else 'fewer'} than its share: fewer than "
                    "one is asked for. Among those that may come, take the one that must come "
                    "first.",
                )
    return "Right: no source is ever a whole turn away from its share."
