"""Checkers of chapter 21: what is wrong with ten runs, and the ratio that found some of it."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from labkit.notebook.exercises import Fresh, Wrong, compare, exercise, require
from labkit.notebook.planted import BUGS, diagnosis

#: What is seen in a run that does not have the bug.
EVIDENCE = {
    "shift": "its targets stand one token ahead, `label_offset` reads it off a batch",
    "mask": "altered future tokens change none of its past logits, see `causality_leak`",
    "denominator": "its first loss is log V, as an honest mean is",
    "rate": "its matrices change by as much in an update as the healthy run's",
    "decay": "some of its norm gains rise above where the healthy run's are",
    "mode": "its modules compute in training mode, as the hook says",
    "order": "as many different examples passed as could",
    "precision": "nearly all numbers of its matrices move in an update",
    "detached": "each of its tensors gets a gradient that agrees with the loss",
    "leak": "its held-out stories are as hard for it as stories that nobody saw",
}


def _charts(answer: Any, asked: tuple[str, ...]) -> None:
    """Compare {run: bug} with what those runs have."""
    require(isinstance(answer, Mapping), "Give a dict from run to bug: {3: 'mask'}.")
    for number, bug in answer.items():
        if number in BUGS:
            raise Wrong("Numbers first: {3: 'mask'} says that run 3 has the bug 'mask'.")
        require(bug in BUGS, f"{bug!r} is none of the ten: choose among {', '.join(BUGS)}.")
        require(
            str(number).isdigit() and 1 <= int(number) <= 10,
            f"There is no run {number!r}: they are 1 to 10, and 0 is healthy.",
        )
        if diagnosis(int(number)) != bug:
            raise Wrong(f"Run {number} does not have {bug!r}: {EVIDENCE[bug]}.")
        require(bug in asked, f"Run {number} has {bug!r}, which another exercise asks for.")
    missing = len(set(asked) - set(answer.values()))
    require(missing == 0, f"Right so far, and {missing} of the {len(asked)} runs is not found yet.")


@exercise("21.1", title="A first loss that nobody can have")
def impossible_start(answer: Any, fresh: Fresh) -> str:
    _charts(answer, ("denominator",))
    return "Right: no untrained model is that good, so the mean was none."


@exercise("21.2", title="Who reads what")
def who_reads(answer: Any, fresh: Fresh) -> str:
    _charts(answer, ("shift", "mask", "detached"))
    return "Right: three wrong connections, and each curve fell."


@exercise("21.3", title="Which data")
def which_data(answer: Any, fresh: Fresh) -> str:
    _charts(answer, ("order", "leak"))
    return "Right: the model was fine in both, and the judgement was not."


@exercise("21.4", title="What an update does")
def what_an_update_does(answer: Any, fresh: Fresh) -> str:
    _charts(answer, ("rate", "decay", "mode", "precision"))
    return "Right: all four are settings, and none of them is an error to Python."


@exercise("21.5", title="Update-to-weight ratio")
def update_ratio(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for _ in range(3):
        before = fresh.normal(6, 5)
        after = before + 0.3 * fresh.normal(6, 5)
        change = after - before
        answer = attempt(before.clone(), after.clone())
        compare(
            torch.as_tensor(answer, dtype=torch.float64),
            change.norm() / before.norm(),
            {
                "divided by the weights after the update: take those before": change.norm()
                / after.norm(),
                "a mean of ratios: one number near 0 rules it; divide two norms": (
                    change.abs() / before.abs()
                ).mean(),
                "squared: take the root": (change.norm() / before.norm()) ** 2,
                "the difference of norms: a rotation would be no change": (
                    (after.norm() - before.norm()).abs() / before.norm()
                ),
                "upside down: the change stands above": before.norm() / change.norm(),
            },
            what="The ratio",
            tolerance=1e-5,
        )
    return "Right: one number a tensor, whatever its size."
