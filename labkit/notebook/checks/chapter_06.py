"""Checkers of chapter 06, optimization."""

import math

import numpy as np

from labkit.notebook.exercises import Fresh, compare, exercise, require


@exercise("06.1", title="One rate for all curvatures")
def best_single_rate(attempt, fresh: Fresh) -> None:
    for n in (2, 6):
        h = fresh.uniform(n, low=0.5, high=2.0)
        h[fresh.integer(0, n)] = 40.0
        low, high, mean = float(h.min()), float(h.max()), float(h.mean())
        got = attempt(h)
        require(
            np.size(got) == 2,
            "Return two numbers: the rate, and the factor of the slowest direction.",
        )
        compare(
            got[0],
            2 / (low + high),
            {
                "the limit of the steepest direction: there it only jumps from side to side": (
                    2 / high
                ),
                "right for the steepest direction alone: the flattest one then creeps": 1 / high,
                "right for the flattest direction alone: the steepest one then diverges": 1 / low,
                "made with the mean curvature: only the flattest and the steepest bind": 1 / mean,
                "half of the best: 1 - eta h may be negative, its size counts": 1 / (low + high),
                "made with the root of the product: make |1 - eta h| equal at both ends": (
                    1 / math.sqrt(low * high)
                ),
            },
            what="The rate",
            tolerance=1e-6,
        )
        factor = (high - low) / (high + low)
        compare(
            got[1],
            factor,
            {
                "negative: a distance is multiplied by |1 - eta h|": -factor,
                "the share that an update takes away: the factor is what it leaves": 1 - factor,
                "that of the rate 1 / h_max: put the best rate into |1 - eta h|": 1 - low / high,
                "that of the rate 2 / h_max: put the best rate into |1 - eta h|": abs(
                    1 - 2 * low / high
                ),
                "the condition number: the factor is below 1": high / low,
                "squared, as the loss is: the distance shrinks by |1 - eta h|": factor**2,
            },
            what="The factor",
            tolerance=1e-6,
        )


@exercise("06.2", title="Decay beside the step")
def adamw_weights(attempt, fresh: Fresh) -> None:
    weights = [fresh.normal(4, 3), fresh.normal(5), fresh.normal(2, 6)]
    steps = [fresh.normal(*w.shape) for w in weights]
    rate, decay = 0.1, 0.4
    factors = [decay if w.ndim >= 2 else 0.0 for w in weights]

    def every(function):
        return [function(w, s, d) for w, s, d in zip(weights, steps, factors, strict=True)]

    right = every(lambda w, s, d: w * (1 - rate * d) - rate * s)
    got = attempt(weights, steps, rate, decay)
    require(
        isinstance(got, (tuple, list)) and len(got) == 3,
        "Return a list with one tensor for each weight.",
    )
    compare(
        list(got),
        right,
        {
            "decaying the vectors too: biases and norm gains stay out of it": every(
                lambda w, s, d: w * (1 - rate * decay) - rate * s
            ),
            "decaying by lambda alone: the factor is 1 - rate * decay": every(
                lambda w, s, d: w * (1 - d) - rate * s
            ),
            "without any decay": every(lambda w, s, d: w - rate * s),
            "growing: the factor is 1 - rate * decay, not 1 + rate * decay": every(
                lambda w, s, d: w * (1 + rate * d) - rate * s
            ),
            "decaying the new weight, step included: decay stands beside the step": every(
                lambda w, s, d: (w - rate * s) * (1 - rate * d)
            ),
            "decaying the vectors instead of the matrices": every(
                lambda w, s, d: w * (1 - rate * (decay - d)) - rate * s
            ),
        },
        what="The list of weights",
    )


@exercise("06.3", title="Up, along, down")
def rate_at(attempt, fresh: Fresh) -> None:
    peak, floor = float(fresh.uniform(1, low=0.5, high=2.0)), 0.1
    warmup, fall, total = 8, 20, 60

    def line(done, low=floor):
        return peak * (1 - (1 - low) * done)

    for step in (0, 3, 7):
        compare(
            attempt(step, peak, warmup, fall, total, floor),
            peak * (step + 1) / warmup,
            {
                "0 at the first update, which then does nothing: count (step + 1) / warmup": (
                    peak * step / warmup
                ),
                "without a warm-up: the rate rises to the peak first": peak,
            },
            what=f"The rate of update {step}, in the warm-up of {warmup},",
        )
    for step in (8, 20, 40):
        compare(
            attempt(step, peak, warmup, fall, total, floor),
            peak,
            {
                "falling already: the fall takes the last updates only": (
                    line((step - warmup) / (total - warmup))
                ),
                "falling one update early: update total - fall still has the peak": line(1 / fall),
            },
            what=f"The rate of update {step} of {total}, between warm-up and fall,",
        )
    for step in (41, 50, 59):
        done = (step - (total - fall)) / fall
        compare(
            attempt(step, peak, warmup, fall, total, floor),
            line(done),
            {
                "the peak still: the fall begins fall updates before the end": peak,
                "falling to 0: the floor is floor * peak": line(done, low=0.0),
                "0 with the floor added: then the fall begins above the peak": (
                    line(done, low=0.0) + floor * peak
                ),
                "one update ahead: floor * peak is reached at update total": line(done + 1 / fall),
                "on a cosine: the fall is a straight line": (
                    peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done)))
                ),
                "on a line that began at the end of the warm-up": (
                    line((step - warmup) / (total - warmup))
                ),
                "never below the floor but too steep: the line ends at floor * peak": max(
                    peak * (1 - done), floor * peak
                ),
            },
            what=f"The rate of update {step} of {total}, in the fall of {fall},",
        )
    compare(attempt(0, peak, 0, 2, 10, floor), peak, what="The first rate without a warm-up")
    compare(attempt(9, peak, 2, 0, 10, floor), peak, what="The last rate without a fall")


@exercise("06.4", title="The noise scale")
def noise_scale(attempt, fresh: Fresh) -> None:
    for n, p in ((6, 8), (24, 5)):
        gradients_NP = 2.0 + fresh.normal(n, p)
        small = gradients_NP.square().sum(1).mean()
        big = gradients_NP.mean(0).square().sum()
        signal, trace = (n * big - small) / (n - 1), (small - big) / (1 - 1 / n)
        compare(
            attempt(gradients_NP),
            trace / signal,
            {
                "made with the squared norm of the mean gradient as the signal: that still holds "
                "1/N of the noise": trace / big,
                "made with the biased variance: divide by N - 1, not by N": (small - big) / signal,
                "biased in both parts: the mean gradient still holds 1/N of the noise, and the "
                "variance needs N - 1": (small - big) / big,
                "upside down: noise over signal": signal / trace,
                "a ratio of norms: take their squares": (trace / signal).sqrt(),
                "made with the mean square of single gradients as the noise: take the signal off": (
                    small / signal
                ),
                "the variance per parameter: the trace is the sum over all of them": (
                    trace / signal / p
                ),
            },
            what="The noise scale",
        )
