"""Checkers of chapter 06, optimization."""

import math

import torch

from labkit.notebook.exercises import Fresh, compare, exercise, require


def _adam(w, g, m, v, t, rate, betas, eps, *, corrected=True, root_of_all=False, squared=True):
    """One update; the flags are the usual mistakes."""
    m = betas[0] * m + (1 - betas[0]) * g
    v = betas[1] * v + (1 - betas[1]) * (g**2 if squared else g.abs())
    m_hat = m / (1 - betas[0] ** t) if corrected and t else m
    v_hat = v / (1 - betas[1] ** t) if corrected and t else v
    below = (v_hat + eps).sqrt() if root_of_all else v_hat.sqrt() + eps
    return w - rate * m_hat / below, m, v


@exercise("06.1", title="one update of Adam")
def adam_update(attempt, fresh: Fresh) -> None:
    for t in (1, 7):
        w, g = fresh.normal(4, 3), fresh.normal(4, 3)
        m, v = fresh.normal(4, 3, scale=0.3), fresh.uniform(4, 3)
        # eps is large here, so that its place can be seen.
        rest = (t, 0.1, (0.9, 0.99), 0.03)
        got = attempt(w, g, m, v, *rest)
        require(
            isinstance(got, (tuple, list)) and len(got) == 3,
            "Return three tensors: the new weights, the new m and the new v.",
        )
        right = _adam(w, g, m, v, *rest)
        compare(
            got[1],
            right[1],
            {
                "the corrected m: keep the plain one, the hat is for this step only": (
                    right[1] / (1 - 0.9**t)
                ),
                "weighted the wrong way round: beta is the weight of the past": 0.1 * m + 0.9 * g,
                "a sum: the new gradient has the weight 1 - beta": 0.9 * m + g,
            },
            what="The new m",
        )
        compare(
            got[2],
            right[2],
            {
                "the corrected v: keep the plain one, the hat is for this step only": (
                    right[2] / (1 - 0.99**t)
                ),
                "a mean of gradients: v is the mean of their squares": 0.99 * v + 0.01 * g,
                "a mean of absolute values: v is the mean of squares": 0.99 * v + 0.01 * g.abs(),
                "made with the first beta: v has its own": 0.9 * v + 0.1 * g**2,
            },
            what="The new v",
        )
        m_hat, v_hat = right[1] / (1 - 0.9**t), right[2] / (1 - 0.99**t)
        later = _adam(w, g, m, v, t + 1, *rest[1:])[0]
        earlier = _adam(w, g, m, v, t - 1, *rest[1:])[0]
        compare(
            got[0],
            right[0],
            {
                "without the bias correction: divide m by 1 - beta1^t and v by 1 - beta2^t": (
                    _adam(w, g, m, v, *rest, corrected=False)[0]
                ),
                "made with eps inside the root: it is added to the root": (
                    _adam(w, g, m, v, *rest, root_of_all=True)[0]
                ),
                "one update late in its correction: t counts from 1, use it as it is": later,
                "one update early in its correction: t counts from 1, use it as it is": earlier,
                "uphill: subtract the step": 2 * w - right[0],
                "divided by v, not by its root": w - 0.1 * m_hat / (v_hat + 0.03),
                "only m was corrected: v starts at zero too": (
                    w - 0.1 * m_hat / (right[2].sqrt() + 0.03)
                ),
            },
            what=f"The new weight at t = {t}",
        )


@exercise("06.2", title="decoupled decay")
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


@exercise("06.3", title="warm-up and cosine")
def rate_at(attempt, fresh: Fresh) -> None:
    peak, floor = float(fresh.uniform(1, low=0.5, high=2.0)), 0.1
    warmup, total = 8, 48

    def rate(step, shift=1, over=total - warmup, start=warmup, low=floor):
        if step < warmup:
            return peak * (step + shift) / warmup
        u = (step - start) / over
        return peak * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * u)))

    for step in (0, 3, 7):
        compare(
            attempt(step, peak, warmup, total, floor),
            rate(step),
            {
                "0 at the first update, which then does nothing: count (step + 1) / warmup": (
                    rate(step, shift=0)
                ),
                "without a warm-up: the rate rises to the peak first": peak,
            },
            what=f"The rate of update {step}, in the warm-up of {warmup},",
        )
    for step in (8, 20, 47):
        u = (step - warmup) / (total - warmup)
        compare(
            attempt(step, peak, warmup, total, floor),
            rate(step),
            {
                "on a cosine that began before the warm-up ended: subtract warmup first": (
                    rate(step, over=total, start=0)
                ),
                "on a cosine that is too long: it has total - warmup updates": (
                    rate(step, over=total)
                ),
                "falling to 0: the floor is floor * peak": rate(step, low=0.0),
                "the cosine with the floor added: then the peak is too high": (
                    rate(step, low=0.0) + floor * peak
                ),
                "without the half: 1 + cos runs from 2 to 0": (
                    peak * (floor + (1 - floor) * (1 + math.cos(math.pi * u)))
                ),
                "falling in a straight line": peak * (floor + (1 - floor) * (1 - u)),
                "a quarter of a cosine: u = 1 is at pi": (
                    peak * (floor + (1 - floor) * math.cos(math.pi * u / 2))
                ),
            },
            what=f"The rate of update {step} of {total}",
        )
    compare(attempt(0, peak, 0, 10, floor), peak, what="The first rate without a warm-up")


@exercise("06.4", title="clipping by the global norm")
def clipped(attempt, fresh: Fresh) -> None:
    gradients = [fresh.normal(4, 3), fresh.normal(5, scale=3.0), fresh.normal(2, 2, 2)]
    norm = torch.stack([g.norm() for g in gradients]).norm()
    every = torch.cat([g.flatten() for g in gradients])
    limit = 0.5 * float(norm)

    def scaled(factor: float) -> list[torch.Tensor]:
        return [g * factor for g in gradients]

    got = attempt(gradients, limit)
    require(
        isinstance(got, (tuple, list)) and len(got) == 3,
        "Return a list with one tensor for each gradient.",
    )
    summed = sum(float(g.norm()) for g in gradients)
    compare(
        list(got),
        scaled(0.5),
        {
            "clipped tensor by tensor: that turns the whole gradient in another direction": [
                g * min(1.0, limit / float(g.norm())) for g in gradients
            ],
            "clipped entry by entry: that turns the gradient in another direction": [
                g.clamp(-limit, limit) for g in gradients
            ],
            "scaled by the sum of the norms: squares add up, norms do not": scaled(limit / summed),
            "scaled by the squared norm: take the root": scaled(limit / float(norm) ** 2),
            "scaled to norm 1, not to max_norm": scaled(1 / float(norm)),
            "scaled by the largest entry": scaled(limit / float(every.abs().max())),
            "unchanged: this gradient is longer than max_norm": gradients,
        },
        what="The list of gradients",
        tolerance=1e-5,
    )
    compare(
        list(attempt(gradients, 4 * limit)),
        gradients,
        {"stretched: a gradient shorter than max_norm stays as it is": scaled(2.0)},
        what="The list of gradients that were short enough",
        tolerance=1e-5,
    )


@exercise("06.5", title="the right denominator")
def update_gradient(attempt, fresh: Fresh) -> None:
    counts = [3, 11, 6]
    sums = [fresh.normal(5, 2, scale=n) for n in counts]
    total = sums[0] + sums[1] + sums[2]
    compare(
        attempt(list(zip(sums, counts, strict=True))),
        total / 20,
        {
            "the mean of the means: targets in small micro-batches weigh too much": (
                sum(g / n for g, n in zip(sums, counts, strict=True)) / 3
            ),
            "the sum of the means: divide once, by the count of all": sum(
                g / n for g, n in zip(sums, counts, strict=True)
            ),
            "divided by the number of micro-batches: divide by the number of targets": total / 3,
            "the sum: divide by the number of targets": total,
            "that of the last micro-batch alone: gradients add up": sums[2] / 6,
        },
        what="The gradient of the update",
    )
    got = attempt([*zip(sums, counts, strict=True), (torch.zeros_like(total), 0)])
    require(
        torch.isfinite(torch.as_tensor(got)).all(),
        "A micro-batch without valid targets makes the gradient NaN: add first, divide at the end.",
    )
    compare(got, total / 20, what="The gradient with an empty micro-batch added")


@exercise("06.6", title="the gradient's noise scale")
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
