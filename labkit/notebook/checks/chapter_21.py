"""Checkers of chapter 21: what is wrong with ten runs, and two of the tools, written again."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from labkit.notebook.exercises import Fresh, Wrong, compare, exercise, require
from labkit.notebook.planted import BUGS, diagnosis

#: What is seen in a run that does not have the bug.
EVIDENCE = {
    "shift": "the targets of all its stories stand one token ahead, as `label_offset` reads",
    "mask": "altered future tokens change none of its past logits, see `causality_leak`",
    "denominator": "its first loss is log V, as an honest mean is",
    "rate": "its learning rate stops rising after a twentieth of the run",
    "decay": "its norm gains do not all fall below 1, as those that decay do",
    "mode": "its modules compute in training mode, or the hook would say so",
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


@exercise("21.6", title="Does it read ahead?")
def reads_ahead(attempt: Callable[..., Any], fresh: Fresh) -> str:
    T, V = 13, 20
    past_TS = torch.ones(T, T, dtype=torch.float64).tril()
    next_TS, some_TS = past_TS.clone(), past_TS.clone()
    next_TS[:-1].diagonal(1).fill_(1)
    some_TS[3, 4] = 1
    for sees_TS, rounding, expected, complaint in (
        (past_TS, 0.0, False, "An honest model is accused: logits at altered places may change, "
         "those before the first altered token must not."),
        (past_TS, 1e-7, False, "An honest model that rounds is accused: allow for 1e-4."),
        (torch.ones_like(past_TS), 0.0, True, "A model that sees everything is let go."),
        (next_TS, 0.0, True, "A model whose places all see the next token is let go."),
        (some_TS, 0.0, True, "A model is let go of which one place alone, the fourth, sees the "
         "next token: alter from each position on, not from one."),
    ):  # fmt: skip
        E_VD, W_DV = fresh.normal(V, 8), fresh.normal(8, V)

        def logits_of(ids_BT: Any, sees_TS=sees_TS, rounding=rounding, E=E_VD, W=W_DV) -> Any:
            weights_TS = sees_TS / sees_TS.sum(1, keepdim=True)
            logits_BTV = weights_TS @ E[torch.as_tensor(ids_BT)] @ W
            return logits_BTV + rounding * fresh.normal(*logits_BTV.shape)

        answer = attempt(logits_of, fresh.integers(0, V, 1, T))
        require(answer is not None, "The answer is None: return True or False.")
        if bool(answer) != expected:
            raise Wrong(complaint)
    return "Right: no code of the model was read, and none could hide it."
