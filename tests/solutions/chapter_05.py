"""Reference and wrong answers of chapter 05, cross-entropy."""

import math

import torch
import torch.nn.functional as F

# --- 05.1 --------------------------------------------------------------------------------------


def log_sum_exp(z):
    top = z.amax(-1)
    return top + torch.log(torch.exp(z - top[:, None]).sum(-1))


def by_torch(z):
    return torch.logsumexp(z, -1)


def overflows(z):
    return z.exp().sum(-1).log()


def wrong_axis(z):
    top = z.amax(0)
    return top + (z - top).exp().sum(0).log()


def forgets_the_maximum(z):
    return (z - z.amax(-1, keepdim=True)).exp().sum(-1).log()


def one_maximum_for_all(z):
    top = z.max()
    return top + (z - top).exp().sum(-1).log()


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


def gradient_of_logits(z, t, s):
    z = z.clone().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(z, t, label_smoothing=s), z)[0]


def of_the_sum(z, t, s):
    return gradient_of_logits(z, t, s) * len(z)


def wrong_sign(z, t, s):
    return -gradient_of_logits(z, t, s)


def ignores_smoothing(z, t, s):
    return gradient_of_logits(z, t, 0.0)


def smooths_the_others_only(z, t, s):
    y = F.one_hot(t, z.shape[1]).double()
    return (z.softmax(-1) - (1 - s) * y - s / (z.shape[1] - 1) * (1 - y)) / len(z)


# --- 05.4 --------------------------------------------------------------------------------------


def linear_backward(h, w, dz):
    return torch.einsum("nf,nv->fv", h, dz), dz.sum(0), torch.einsum("nv,fv->nf", dz, w)


def mean_for_b(h, w, dz):
    return h.T @ dz, dz.mean(0), dz @ w.T


def transposed_w(h, w, dz):
    return dz.T @ h, dz.sum(0), dz @ w.T


def divides_twice(h, w, dz):
    return h.T @ dz / len(h), dz.sum(0), dz @ w.T


def forgets_to_transpose(h, w, dz):
    return h.T @ dz, dz.sum(0), dz @ w


# --- 05.5 --------------------------------------------------------------------------------------


def update_loss(micro_batches):
    logits = torch.cat([z for z, _ in micro_batches])
    return F.cross_entropy(logits, torch.cat([t for _, t in micro_batches]))


def mean_of_means(micro_batches):
    return torch.stack([F.cross_entropy(z, t) for z, t in micro_batches]).mean()


def over_all_positions(micro_batches):
    total = sum(F.cross_entropy(z, t, reduction="sum") for z, t in micro_batches)
    return total / sum(len(t) for _, t in micro_batches)


def not_divided(micro_batches):
    return sum(F.cross_entropy(z, t, reduction="sum") for z, t in micro_batches)


def nan_on_empty(micro_batches):
    counts = [(t != -100).sum() for _, t in micro_batches]
    means = [F.cross_entropy(z, t) for z, t in micro_batches]
    return sum(c * m for c, m in zip(counts, means, strict=True)) / sum(counts)


# --- 05.6 --------------------------------------------------------------------------------------


def bits_per_byte(nats, tokens, text):
    return nats * tokens / math.log(2) / len(text.encode())


def per_character(nats, tokens, text):
    return nats * tokens / math.log(2) / len(text)


def still_nats(nats, tokens, text):
    return nats * tokens / len(text.encode())


def per_token(nats, tokens, text):
    return nats / math.log(2)


SOLUTIONS = {
    "05.1": log_sum_exp,
    "05.2": loss_sum_and_count,
    "05.3": gradient_of_logits,
    "05.4": linear_backward,
    "05.5": update_loss,
    "05.6": bits_per_byte,
}

WRONG = {
    "05.1": [
        (by_torch, "torch.logsumexp made them"),
        (overflows, "Subtract the largest logit"),
        (wrong_axis, "wrong axis"),
        (forgets_the_maximum, "add it back"),
        (one_maximum_for_all, "largest logit of each row, not the largest of the whole tensor"),
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
        (of_the_sum, "the mean divides by N"),
        (wrong_sign, "opposite sign"),
        (ignores_smoothing, "without the smoothing"),
        (smooths_the_others_only, "smoothed over the other classes only"),
    ],
    "05.4": [
        (mean_for_b, "so their gradients add"),
        (transposed_w, "the gradient of W has the shape of W"),
        (divides_twice, "divided by N once more"),
        (forgets_to_transpose, "mat1 and mat2 shapes cannot be multiplied"),
    ],
    "05.5": [
        (mean_of_means, "mean of the means"),
        (over_all_positions, "divided by all positions"),
        (not_divided, "divide once by the number of valid targets"),
        (nan_on_empty, "sum first, divide at the end"),
    ],
    "05.6": [
        (per_character, "three bytes each"),
        (still_nats, "divide by ln 2"),
        (per_token, "bits per token"),
    ],
}
