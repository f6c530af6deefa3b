"""Reference and wrong answers of chapter 05, cross-entropy."""

import math

import numpy as np
import torch
import torch.nn.functional as F

# --- 05.1 --------------------------------------------------------------------------------------


def coin_loss(z, y):
    return torch.logaddexp(torch.zeros_like(z), z) - y * z


def as_numpy(z, y):
    z, y = z.numpy(), y.numpy()
    return np.logaddexp(0, z) - y * z


def as_a_list(z, y):
    return [(max(a, 0) + math.log1p(math.exp(-abs(a))) - b * a) for a, b in zip(z, y, strict=True)]


def in_single(z, y):
    return coin_loss(z.float(), y.float())


def by_torch(z, y):
    return F.binary_cross_entropy_with_logits(z, y, reduction="none")


def as_it_stands(z, y):
    p = torch.sigmoid(z)
    return -(y * p.log() + (1 - y) * (1 - p).log())


def overflows(z, y):
    return torch.log(1 + z.exp()) - y * z


def heads_only(z, y):
    return -y * F.logsigmoid(z)


def likelihood(z, y):
    return y * z - torch.logaddexp(torch.zeros_like(z), z)


def rounds(z, y):
    return coin_loss(z, y.round())


def mean_of_all(z, y):
    return coin_loss(z, y).mean()


# --- 05.2 --------------------------------------------------------------------------------------


def loss_sum_and_count(z, t):
    return F.cross_entropy(z, t, reduction="sum"), (t != -100).sum()


def returns_a_mean(z, t):
    return F.cross_entropy(z, t), (t != -100).sum()


def counts_above_0(z, t):
    return F.cross_entropy(z, t, reduction="sum"), (t > 0).sum()


def counts_everything(z, t):
    return F.cross_entropy(z, t, reduction="sum"), len(t)


def masked_as_class_0(z, t):
    return F.cross_entropy(z, t.clamp(min=0), reduction="sum"), (t != -100).sum()


def log_of_softmax(z, t):
    keep = t != -100
    return -z[keep].softmax(-1).gather(1, t[keep, None]).log().sum(), keep.sum()


def only_the_sum(z, t):
    return F.cross_entropy(z, t, reduction="sum")


# --- 05.3 --------------------------------------------------------------------------------------


def gradient_with_z_loss(z, t, c):
    z = z.clone().requires_grad_()
    loss = F.cross_entropy(z, t) + c * z.logsumexp(-1).square().mean()
    return torch.autograd.grad(loss, z)[0]


def y_in_single(z, t, c):
    """Right but for the rounding of y, which torch's promotion hides."""
    p, y = z.softmax(-1), F.one_hot(t, z.shape[1]).float() * (1 / 3) * 3
    return (p - y + 2 * c * z.logsumexp(-1, keepdim=True) * p) / len(z)


def z_loss_of_the_sum(z, t, c):
    return gradient_with_z_loss(z, t, c) * len(z)


def wrong_sign(z, t, c):
    return -gradient_with_z_loss(z, t, c)


def no_z_loss(z, t, c):
    return gradient_with_z_loss(z, t, 0.0)


def half_the_square(z, t, c):
    return gradient_with_z_loss(z, t, c / 2)


def no_inner_derivative(z, t, c):
    return gradient_with_z_loss(z, t, 0.0) + 2 * c * z.logsumexp(-1, keepdim=True) / len(z)


# --- 05.4 --------------------------------------------------------------------------------------


def factors(counts):
    total = sum(counts)
    return np.array(counts) / total if total else np.zeros(len(counts))


def as_a_tensor(counts):
    return torch.tensor(counts, dtype=torch.float64) / max(1, sum(counts))


def all_alike(counts):
    return [1 / len(counts)] * len(counts)


def the_counts(counts):
    return counts


def undoes_twice(counts):
    return [1 / n if n else 0.0 for n in counts]


def nothing_undone(counts):
    return [1 / max(1, sum(counts)) if n else 0.0 for n in counts]


def nan_when_empty(counts):
    return torch.tensor(counts, dtype=torch.float64) / sum(counts)


# --- 05.5 --------------------------------------------------------------------------------------


def pull_on_temperature(z, t, T):
    T = torch.tensor(float(T), dtype=z.dtype, requires_grad=True)
    return torch.autograd.grad(F.cross_entropy(z / T, t), T)[0].item()


def at_temperature_one(z, t, T):
    expected = (z.softmax(-1) * z).sum(-1)
    return (z.gather(1, t[:, None])[:, 0] - expected).mean() / T**2


def no_square(z, t, T):
    return pull_on_temperature(z, t, T) * T


def not_scaled(z, t, T):
    return pull_on_temperature(z, t, T) * T**2


def upside_down(z, t, T):
    return -pull_on_temperature(z, t, T)


def true_logit_only(z, t, T):
    return z.gather(1, t[:, None]).mean() / T**2


SOLUTIONS = {
    "05.1": coin_loss,
    "05.2": loss_sum_and_count,
    "05.3": gradient_with_z_loss,
    "05.4": factors,
    "05.5": pull_on_temperature,
}

ALSO_RIGHT = {
    "05.1": [as_numpy, as_a_list, in_single],
    "05.3": [y_in_single],
    "05.4": [as_a_tensor],
}

WRONG = {
    "05.1": [
        (by_torch, "torch's binary cross-entropy made them"),
        (as_it_stands, "is not finite"),
        (overflows, "is not finite"),
        (heads_only, "heads alone"),
        (likelihood, "opposite sign"),
        (rounds, "y rounded"),
        (mean_of_all, "one loss for each logit"),
    ],
    "05.2": [
        (returns_a_mean, "The sum is a mean"),
        (counts_above_0, "class 0 is a class"),
        (counts_everything, "count only targets that are not -100"),
        (masked_as_class_0, "masked targets as class 0"),
        (log_of_softmax, "log_softmax, not the log of softmax"),
        (only_the_sum, "Return a pair"),
    ],
    "05.3": [
        (z_loss_of_the_sum, "the mean divides by N"),
        (wrong_sign, "opposite sign"),
        (no_z_loss, "without the z-loss"),
        (half_the_square, "factor 2"),
        (no_inner_derivative, "inner derivative"),
    ],
    "05.4": [
        (all_alike, "mean of the means"),
        (the_counts, "gradient of the sum"),
        (undoes_twice, "one over the count"),
        (nothing_undone, "one over all valid targets"),
        (nan_when_empty, "Without any valid target"),
    ],
    "05.5": [
        (at_temperature_one, "temperature 1"),
        (no_square, "factor 1 / T"),
        (not_scaled, "without 1 / T²"),
        (upside_down, "opposite sign"),
        (true_logit_only, "true logit alone"),
    ],
}
