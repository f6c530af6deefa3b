"""Reference and wrong answers of chapter 06, optimization."""

import math

import numpy as np

# --- 06.1 --------------------------------------------------------------------------------------


def best_single_rate(h):
    rate = 2 / (h.min() + h.max())
    return rate, (1 - rate * h).abs().max()


def as_floats(h):
    h = sorted(h.tolist())
    return [2 / (h[0] + h[-1]), 1 - 2 * h[0] / (h[0] + h[-1])]


def as_an_array(h):
    low, high = h.numpy().min(), h.numpy().max()
    return np.array([2 / (low + high), (high - low) / (high + low)])


def the_limit(h):
    return 2 / h.max(), (1 - 2 / h.max() * h).abs().max()


def for_the_steepest(h):
    return 1 / h.max(), 1 - h.min() / h.max()


def for_the_mean(h):
    return 1 / h.mean(), (1 - h / h.mean()).abs().max()


def what_is_taken(h):
    return best_single_rate(h)[0], 1 - best_single_rate(h)[1]


def only_the_rate(h):
    return best_single_rate(h)[0]


def of_the_loss(h):
    return best_single_rate(h)[0], best_single_rate(h)[1] ** 2


# --- 06.2 --------------------------------------------------------------------------------------


def adamw_weights(weights, steps, rate, decay):
    new = []
    for w, s in zip(weights, steps, strict=True):
        new.append(w - rate * (s + decay * w) if w.ndim > 1 else w - rate * s)
    return new


def decays_everything(weights, steps, rate, decay):
    return [w * (1 - rate * decay) - rate * s for w, s in zip(weights, steps, strict=True)]


def decays_by_lambda(weights, steps, rate, decay):
    pairs = zip(weights, steps, strict=True)
    return [w * (1 - (decay if w.ndim > 1 else 0)) - rate * s for w, s in pairs]


def decays_after_the_step(weights, steps, rate, decay):
    pairs = zip(weights, steps, strict=True)
    return [(w - rate * s) * (1 - (rate * decay if w.ndim > 1 else 0)) for w, s in pairs]


def no_decay(weights, steps, rate, decay):
    return [w - rate * s for w, s in zip(weights, steps, strict=True)]


# --- 06.3 --------------------------------------------------------------------------------------


def rate_at(step, peak, warmup, fall, total, floor):
    up = (step + 1) / warmup if step < warmup else 1.0
    left = (total - step) / fall if fall and step > total - fall else 1.0
    return peak * min(up, floor + (1 - floor) * left)


def starts_at_zero(step, peak, warmup, fall, total, floor):
    up = step / warmup if step < warmup else 1.0
    return up * peak if step < warmup else rate_at(step, peak, warmup, fall, total, floor)


def falls_at_once(step, peak, warmup, fall, total, floor):
    return rate_at(step, peak, warmup, total - warmup, total, floor)


def falls_to_zero(step, peak, warmup, fall, total, floor):
    return rate_at(step, peak, warmup, fall, total, 0.0)


def ends_one_early(step, peak, warmup, fall, total, floor):
    later = step + 1 if step > total - fall else step
    return rate_at(later, peak, warmup, fall, total, floor)


def cosine(step, peak, warmup, fall, total, floor):
    if step <= total - fall:
        return rate_at(step, peak, warmup, fall, total, floor)
    done = (step - total + fall) / fall
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done)))


def divides_by_no_fall(step, peak, warmup, fall, total, floor):
    up = (step + 1) / warmup if step < warmup else 1.0
    return peak * min(up, 1 - (1 - floor) * max(0, step - total + fall) / fall)


# --- 06.4 --------------------------------------------------------------------------------------


def noise_scale(gradients_NP):
    n = len(gradients_NP)
    trace = gradients_NP.var(0).sum()
    return float(trace / (gradients_NP.mean(0).square().sum() - trace / n))


def signal_with_noise(gradients_NP):
    return gradients_NP.var(0).sum() / gradients_NP.mean(0).square().sum()


def biased_variance(gradients_NP):
    trace = gradients_NP.var(0).sum()
    signal = gradients_NP.mean(0).square().sum() - trace / len(gradients_NP)
    return gradients_NP.var(0, unbiased=False).sum() / signal


def biased_in_both(gradients_NP):
    return gradients_NP.var(0, unbiased=False).sum() / gradients_NP.mean(0).square().sum()


def upside_down(gradients_NP):
    return 1 / noise_scale(gradients_NP)


SOLUTIONS = {
    "06.1": best_single_rate,
    "06.2": adamw_weights,
    "06.3": rate_at,
    "06.4": noise_scale,
}

ALSO_RIGHT = {"06.1": [as_floats, as_an_array]}

WRONG = {
    "06.1": [
        (the_limit, "only jumps from side to side"),
        (for_the_steepest, "steepest direction alone"),
        (for_the_mean, "mean curvature"),
        (what_is_taken, "takes away"),
        (only_the_rate, "Return two numbers"),
        (of_the_loss, "squared"),
    ],
    "06.2": [
        (decays_everything, "decaying the vectors too"),
        (decays_by_lambda, "by lambda alone"),
        (decays_after_the_step, "beside the step"),
        (no_decay, "without any decay"),
    ],
    "06.3": [
        (starts_at_zero, "0 at the first update"),
        (falls_at_once, "falling already"),
        (falls_to_zero, "falling to 0"),
        (ends_one_early, "one update ahead"),
        (cosine, "on a cosine"),
        (divides_by_no_fall, "ZeroDivisionError"),
    ],
    "06.4": [
        (signal_with_noise, "still holds 1/N of the noise"),
        (biased_variance, "not by N"),
        (biased_in_both, "biased in both"),
        (upside_down, "upside down"),
    ],
}
