"""Reference and wrong answers of chapter 01, language models."""

import math

import torch

# --- 01.1 --------------------------------------------------------------------------------------


def text_log_probability(next_probabilities, ids):
    return float(sum(math.log(next_probabilities(ids[:t])[ids[t]]) for t in range(len(ids))))


def not_a_logarithm(next_probabilities, ids):
    return math.prod(float(next_probabilities(ids[:t])[w]) for t, w in enumerate(ids))


def sees_the_answer(next_probabilities, ids):
    return sum(next_probabilities(ids[: t + 1])[w].log() for t, w in enumerate(ids))


def skips_the_first(next_probabilities, ids):
    return sum(next_probabilities(ids[:t])[w].log() for t, w in enumerate(ids) if t)


def only_a_bigram(next_probabilities, ids):
    return sum(next_probabilities(ids[max(0, t - 1) : t])[w].log() for t, w in enumerate(ids))


# --- 01.2 --------------------------------------------------------------------------------------


def continuation(tokens_N, vocab_size):
    pairs = set(zip(tokens_N[:-1].tolist(), tokens_N[1:].tolist(), strict=True))
    counts = torch.zeros(vocab_size, dtype=torch.float64)
    for _, w in pairs:
        counts[w] += 1
    return counts / len(pairs)


def frequency(tokens_N, vocab_size):
    return torch.bincount(tokens_N, minlength=vocab_size).double() / len(tokens_N)


def successors(tokens_N, vocab_size):
    return continuation(tokens_N.flip(0), vocab_size)


def over_places(tokens_N, vocab_size):
    pairs = set(zip(tokens_N[:-1].tolist(), tokens_N[1:].tolist(), strict=True))
    return continuation(tokens_N, vocab_size) * len(pairs) / (len(tokens_N) - 1)


# --- 01.3 --------------------------------------------------------------------------------------


def discounted(counts_V, lower_V, discount):
    total = counts_V.sum()
    if total == 0:
        return lower_V
    taken = torch.minimum(counts_V, torch.tensor(discount, dtype=counts_V.dtype))
    return (counts_V - taken) / total + taken.sum() / total * lower_V


def negative_counts(counts_V, lower_V, discount):
    total = counts_V.sum()
    return (counts_V - discount) / total + discount * (counts_V > 0).sum() / total * lower_V


def one_discount_handed_on(counts_V, lower_V, discount):
    total = counts_V.sum()
    return (counts_V - discount).clamp(min=0) / total + discount / total * lower_V


def nothing_handed_on(counts_V, lower_V, discount):
    return (counts_V - discount).clamp(min=0) / counts_V.sum()


def divides_by_zero(counts_V, lower_V, discount):
    total = counts_V.sum()
    taken = torch.minimum(counts_V, torch.tensor(discount, dtype=counts_V.dtype))
    return (counts_V - taken) / total + taken.sum() / total * lower_V


# --- 01.4 --------------------------------------------------------------------------------------


def scoring_windows(total, length, stride):
    windows, scored = [], 0
    while scored < total:
        last = min(total, length if not windows else scored + stride)
        windows.append((max(0, last - length), last, scored))
        scored = last
    return windows


def side_by_side(total, length, stride):
    return [(i, min(total, i + length), i) for i in range(0, total, length)]


def scored_twice(total, length, stride):
    return [(a, b, a) for a, b, _ in scoring_windows(total, length, stride)]


def cut_short(total, length, stride):
    windows, start = [], 0
    while not windows or windows[-1][1] < total:
        last = min(total, start + length)
        windows.append((start, last, windows[-1][1] if windows else 0))
        start += stride
    return windows


def only_stride(total, length, stride):
    windows, scored = [], 0
    while scored < total:
        last = min(total, scored + stride)
        windows.append((max(0, last - length), last, scored))
        scored = last
    return windows


SOLUTIONS = {
    "01.1": text_log_probability,
    "01.2": continuation,
    "01.3": discounted,
    "01.4": scoring_windows,
}

WRONG = {
    "01.1": [
        (not_a_logarithm, "return its logarithm"),
        (sees_the_answer, "was in sight"),
        (skips_the_first, "without the first token"),
        (only_a_bigram, "read from the last token alone"),
    ],
    "01.2": [
        (frequency, "plain frequency"),
        (successors, "look at what stands before it"),
        (over_places, "divided by the number of places"),
    ],
    "01.3": [
        (negative_counts, "nothing can be taken from a count of 0"),
        (one_discount_handed_on, "D times their number"),
        (nothing_handed_on, "must be handed on"),
        (divides_by_zero, "the total is 0"),
    ],
    "01.4": [
        (side_by_side, "side by side"),
        (scored_twice, "counted twice"),
        (cut_short, "cut short"),
        (only_stride, "nothing to skip"),
    ],
}
