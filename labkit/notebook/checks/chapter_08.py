"""Checkers of chapter 08: pretraining."""

import math
from collections.abc import Callable
from typing import Any

import torch

from labkit.notebook.exercises import Fresh, compare, exercise, require


@exercise("08.1", title="Inputs and targets")
def inputs_and_targets(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for length, i in ((5, 2), (8, 1), (4, 3)):
        tokens = fresh.permutation(60)
        start = i * length
        inputs = tokens[start : start + length]
        compare(
            attempt(tokens, length, i),
            (inputs, tokens[start + 1 : start + length + 1]),
            {
                "not shifted: each target is its own input, so the model learns to copy": (
                    inputs,
                    inputs,
                ),
                "shifted twice: each target is the token after the next": (
                    inputs,
                    tokens[start + 2 : start + length + 2],
                ),
                "the wrong way round: the targets come before the inputs": (
                    tokens[start + 1 : start + length + 1],
                    inputs,
                ),
                "a window that starts at token i: windows do not overlap, so it starts at i T": (
                    tokens[i : i + length],
                    tokens[i + 1 : i + length + 1],
                ),
                "one token short: a window of T inputs needs T + 1 tokens of the stream": (
                    inputs[:-1],
                    inputs[1:],
                ),
            },
        )
    return "Right: T + 1 tokens give T predictions."


@exercise("08.2", title="Bits per byte")
def bits_per_byte_of(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for _ in range(2):
        loss = float(fresh.uniform(1, low=1.0, high=5.0))
        tokens, num_bytes = fresh.integer(100, 1000), fresh.integer(2000, 4000)
        ln2 = math.log(2)
        compare(
            attempt(loss, tokens, num_bytes),
            loss * tokens / (ln2 * num_bytes),
            {
                "in nats per byte: divide by ln 2": loss * tokens / num_bytes,
                "in bits per token: multiply by tokens and divide by bytes": loss / ln2,
                "multiplied by ln 2: a bit is ln 2 nats, so divide": loss
                * tokens
                * ln2
                / num_bytes,
                "upside down: there are fewer tokens than bytes, so bits per byte are fewer": (
                    loss * num_bytes / (ln2 * tokens)
                ),
                "without the number of tokens: loss is the mean of one token": (
                    loss / (ln2 * num_bytes)
                ),
            },
        )
    return "Right: the same measure for any tokenizer, and for gzip."


@exercise("08.3", title="Warm-up and cosine")
def schedule(attempt: Callable[..., Any], fresh: Fresh) -> str:
    total, warmup = fresh.integer(60, 90), fresh.integer(8, 15)
    peak = float(fresh.uniform(1, low=0.5, high=2.0))
    low = 0.1 * peak

    def rates(function: Callable[..., Any]) -> torch.Tensor:
        steps = range(total + 1)
        return torch.tensor(
            [float(function(s, total, warmup, peak, low)) for s in steps], dtype=torch.float64
        )

    def cosine(u: float, bottom: float = low) -> float:
        return bottom + (peak - bottom) * (1 + math.cos(math.pi * u)) / 2

    def right(s: int, *_: float) -> float:
        after = (s - warmup) / (total - warmup)
        return peak * (s + 1) / warmup if s < warmup else cosine(after)

    def from_zero(s: int, *_: float) -> float:
        return peak * s / warmup if s < warmup else right(s)

    def cosine_from_start(s: int, *_: float) -> float:
        return right(s) if s < warmup else cosine(s / total)

    def to_zero(s: int, *_: float) -> float:
        return right(s) if s < warmup else cosine((s - warmup) / (total - warmup), 0.0)

    def linear(s: int, *_: float) -> float:
        u = (s - warmup) / (total - warmup)
        return right(s) if s < warmup else peak + (low - peak) * u

    def whole_wave(s: int, *_: float) -> float:
        return right(s) if s < warmup else cosine(2 * (s - warmup) / (total - warmup))

    compare(
        rates(attempt),
        rates(right),
        {
            "0 in the first update, which is then wasted: use (step + 1) / warmup": (
                lambda: rates(from_zero)
            ),
            "a cosine that began at step 0: the rate jumps where the warm-up ends": (
                lambda: rates(cosine_from_start)
            ),
            "falling to 0: it should end at low": lambda: rates(to_zero),
            "a straight line after the warm-up: it should be a cosine": lambda: rates(linear),
            "a whole cosine wave: half of one goes from peak down to low": (
                lambda: rates(whole_wave)
            ),
        },
        what="The rate over the run",
    )
    return "Right at every step of a run."


@exercise("08.4", title="How long will it take?")
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


@exercise("08.5", title="A sampler that survives a kill")
def batch_indices(attempt: Callable[..., Any], fresh: Fresh) -> str:
    size, updates, seed = 4, fresh.integer(5, 9), fresh.integer(0, 1000)
    n = size * updates

    def batch(step: int, s: int = seed) -> list[int]:
        found = attempt(step, n, size, s)
        require(
            isinstance(found, (list, tuple)) and len(found) == size,
            f"Return a list of {size} indices, not {str(found)[:60]}.",
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


@exercise("08.6", title="The exponent")
def exponent(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for count in (5, 7):
        sizes = torch.logspace(4, 6, count, dtype=torch.float64)
        alpha = float(fresh.uniform(1, low=0.1, high=0.5))
        floor = float(fresh.uniform(1, low=0.5, high=1.5))
        losses = floor + 20 * sizes**-alpha * (0.05 * fresh.normal(count)).exp()

        def slope(x: torch.Tensor, y: torch.Tensor) -> float:
            x = x - x.mean()
            return float((x * y).sum() / (x * x).sum())

        right = -slope(sizes.log(), (losses - floor).log())
        ends = -float(
            ((losses - floor)[-1] / (losses - floor)[0]).log() / (sizes[-1] / sizes[0]).log()
        )
        compare(
            attempt(sizes, losses, floor),
            right,
            {
                "fitted to the whole loss: subtract the floor first, or the line bends": (
                    -slope(sizes.log(), losses.log())
                ),
                "the slope with its sign: alpha is positive where larger models are better": -right,
                "fitted against N instead of ln N": -slope(sizes, (losses - floor).log()),
                "fitted without the logarithm of the loss": -slope(sizes.log(), losses - floor),
                "taken from the first and the last point only: use all in least squares": ends,
                "the slope of ln N against the loss: exchange the two": (
                    -slope((losses - floor).log(), sizes.log())
                ),
            },
            tolerance=1e-6,
        )
    return "Right: a straight line in logarithms, once the floor is taken off."
