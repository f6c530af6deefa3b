"""Checkers of chapter 08: pretraining."""

import math
from collections.abc import Callable
from typing import Any

import torch

from labkit.notebook.exercises import Fresh, compare, exercise, require


@exercise("08.1", title="All windows at once")
def all_windows(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for count, length in ((23, 5), (25, 6), (24, 4)):
        tokens = fresh.permutation(count)
        whole = (count - 1) // length
        inputs = tokens[: whole * length].view(whole, length)
        targets = tokens[1 : whole * length + 1].view(whole, length)
        got = attempt(tokens, length)
        require(
            isinstance(got, (tuple, list)) and len(got) == 2,
            "Return two matrices: the inputs and the targets.",
        )
        blocks = count // (length + 1)
        chunks = tokens[: blocks * (length + 1)].view(blocks, length + 1)
        compare(
            got,
            (inputs, targets),
            {
                "not shifted: each target is its own input, so the model learns to copy": (
                    inputs,
                    inputs,
                ),
                "shifted twice: each target is the token after the next": (
                    inputs,
                    torch.cat([tokens[2 : whole * length + 1], tokens[-1:]]).view(whole, length),
                ),
                "the wrong way round: the targets come before the inputs": (targets, inputs),
                "a stride of T + 1: the last target of a window is the first input of the next, "
                "so windows begin T apart": (chunks[:, :-1], chunks[:, 1:]),
                "overlapping: windows begin T apart, not one": (
                    tokens[:-1].unfold(0, length, 1),
                    tokens[1:].unfold(0, length, 1),
                ),
                "one token short: a window of T inputs needs T + 1 tokens of the stream": (
                    inputs[:, :-1],
                    inputs[:, 1:],
                ),
            },
            what="The windows",
        )
    return "Right: every token but the first is a target, up to the end of the last window."


@exercise("08.2", title="How long will it take?")
def training_hours(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for _ in range(2):
        n, d = fresh.integer(10**6, 10**9), fresh.integer(10**8, 10**11)
        devices, peak = fresh.integer(2, 64), float(fresh.uniform(1, low=1e12, high=1e15))
        use = float(fresh.uniform(1, low=0.2, high=0.6))
        right = 6 * n * d / (devices * peak * use) / 3600
        compare(
            attempt(n, d, devices, peak, use),
            right,
            {
                "in seconds: an hour has 3,600": right * 3600,
                "for the forward pass only: forward 2, backward 4, together 6": right / 3,
                "for a machine at its peak: divide by the utilisation": right * use,
                "multiplied by the utilisation: a half-used machine takes longer": right * use**2,
                "for one device: they share the work": right * devices,
            },
        )
    return "Right: the first number of every pretraining plan."


@exercise("08.3", title="Positions in a packed row")
def positions_of(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for first in (0, 5):
        lengths = [fresh.integer(1, 6) for _ in range(5)] + [3]
        numbers = [first, first + 1, first, first + 2, first + 1, first + 3]
        if first:
            numbers = numbers[::-1]
        ids = torch.tensor(
            [n for n, size in zip(numbers, lengths, strict=True) for _ in range(size)]
        )
        right = torch.tensor([t for size in lengths for t in range(size)])
        seen = [int((ids[:t] == ids[t]).sum()) for t in range(len(ids))]
        got = attempt(ids)
        require(got is not None and len(got) == len(ids), f"Return {len(ids)} positions.")
        compare(
            torch.as_tensor(got).long(),
            right,
            {
                "counted through the whole row: each document begins again at 0": torch.arange(
                    len(ids)
                ),
                "from 1: the first token of a document stands at 0": right + 1,
                "a number that comes back goes on where it stopped: it is a new document": (
                    torch.tensor(seen)
                ),
                "the number of the document, not the place in it": ids,
            },
            what="The positions",
        )
    return "Right: each document is read as if it stood alone."


@exercise("08.4", title="The error of a difference")
def difference_and_error(attempt: Callable[..., Any], fresh: Fresh) -> str:
    ln2 = math.log(2)
    for count in (12, 30):
        size = fresh.integers(200, 9000, count).double()
        theirs = size * fresh.uniform(count, low=0.7, high=1.2).double()
        ours = theirs * (0.95 + 0.05 * fresh.normal(count).double())
        saved = (ours - theirs) / ln2
        without = (saved.sum() - saved) / (size.sum() - size)
        spread = ((without - without.mean()) ** 2).sum()
        difference, error = saved.sum() / size.sum(), ((count - 1) / count * spread).sqrt()
        each = saved / size
        got = attempt(ours, theirs, size)
        require(
            isinstance(got, (tuple, list)) and len(got) == 2,
            "Return two numbers: the difference and its standard error.",
        )
        compare(
            float(got[0]),
            float(difference),
            {
                "the mean over documents: a short one then counts as much as a long one; divide "
                "the sum by the sum": float(each.mean()),
                "in nats: divide by ln 2": float(difference * ln2),
                "theirs less ours: negative should mean that ours needs fewer bits": (
                    float(-difference)
                ),
            },
            tolerance=1e-6,
            what="The difference",
        )
        compare(
            float(got[1]),
            float(error),
            {
                "the plain standard deviation of the left-out values: they hardly differ from one "
                "another, so the sum is not divided by D - 1": float((spread / (count - 1)).sqrt()),
                "without the factor (D - 1) / D": float(spread.sqrt()),
                "the square of the error: take the root": float(error**2),
                "of the mean over documents: leave one out of the sums": (
                    float(each.std() / count**0.5)
                ),
                "in nats: divide by ln 2": float(error * ln2),
            },
            tolerance=1e-6,
            what="The error",
        )
    return "Right: what other documents of this kind would change."


@exercise("08.5", title="A sampler that survives a kill")
def batch_indices(attempt: Callable[..., Any], fresh: Fresh) -> str:
    size, updates, seed = 4, fresh.integer(5, 9), fresh.integer(0, 1000)
    n = size * updates

    def batch(step: int, s: int = seed) -> list[int]:
        found = attempt(step, n, size, s)
        if hasattr(found, "tolist"):  # of numpy or torch
            found = found.tolist()
        require(
            isinstance(found, (list, tuple, range)) and len(found) == size,
            f"Return {size} indices, not {str(found)[:60]}.",
        )
        found = [int(i) for i in found]
        require(
            all(0 <= i < n for i in found),
            f"Indices go from 0 to {n - 1}; update {step} of batch size {size} has "
            f"{next((i for i in found if not 0 <= i < n), 0)}.",
        )
        return found

    first = [batch(step) for step in range(2 * updates)]
    again = {step: batch(step) for step in reversed(range(2 * updates))}
    require(
        all(first[step] == again[step] for step in again),
        "Asked again for the same step, it answers differently: a resumed run would see other "
        "data. Use nothing but step and seed.",
    )
    require(
        first[0] != first[1] or updates == 1,
        "Every step gives the same examples: the generator is seeded with the seed alone, so the "
        "data repeats. Let the step choose the place in the epoch.",
    )
    epochs = [[i for b in first[e * updates : (e + 1) * updates] for i in b] for e in (0, 1)]
    for number, epoch in enumerate(epochs):
        missing = len(set(range(n)) - set(epoch))
        require(
            missing == 0,
            f"Epoch {number} leaves out {missing} of {n} examples and repeats others: draw one "
            "permutation an epoch, not a fresh draw at each step.",
        )
    require(
        epochs[0] != list(range(n)),
        "The first epoch is in the given order: shuffle it.",
    )
    require(
        epochs[0] != epochs[1],
        "The second epoch has the order of the first: let the epoch enter the seed.",
    )
    other = [i for step in range(updates) for i in batch(step, seed + 1)]
    require(other != epochs[0], "Another seed gives the same order: use the seed.")
    return "Right: a pure function of (seed, step), which a killed run can ask again."
