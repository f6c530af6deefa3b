"""Reference solutions and usual wrong answers of chapter 13."""

from collections import Counter

import torch

# 13.1


def solution_1(offsets, start, end):
    inside = [n for n, (a, b) in enumerate(offsets) if a >= 0 and a < end and b > start]
    if not inside or offsets[inside[0]][0] > start or offsets[inside[-1]][1] < end:
        return 0, 0
    return inside[0], inside[-1]


def one_too_far(offsets, start, end):
    first, last = solution_1(offsets, start, end)
    return first, last + 1 if last else 0


def only_whole_tokens(offsets, start, end):
    inside = [n for n, (a, b) in enumerate(offsets) if a >= start and b <= end]
    return (inside[0], inside[-1]) if inside else (0, 0)


def the_part_that_is_here(offsets, start, end):
    inside = [n for n, (a, b) in enumerate(offsets) if a >= 0 and a < end and b > start]
    return (inside[0], inside[-1]) if inside else (0, 0)


def by_equal_edges(offsets, start, end):
    first = [n for n, (a, _) in enumerate(offsets) if a == start]
    last = [n for n, (_, b) in enumerate(offsets) if b == end]
    return (first[0], last[0]) if first and last else (0, 0)


def characters(offsets, start, end):
    return start, end


# 13.2


def _logs(logits_BTV, labels_BT):
    return logits_BTV.log_softmax(-1).gather(-1, labels_BT.clamp(min=0)[..., None])[..., 0]


def solution_2(logits_BTV, labels_BT, penalty):
    counts_BT = labels_BT != -100
    return (_logs(logits_BTV, labels_BT) * counts_BT).sum(1) / counts_BT.sum(1) ** penalty


def with_padding(logits_BTV, labels_BT, penalty):
    return _logs(logits_BTV, labels_BT).sum(1) / labels_BT.shape[1] ** penalty


def padded_length(logits_BTV, labels_BT, penalty):
    logs_BT = _logs(logits_BTV, labels_BT) * (labels_BT != -100)
    return logs_BT.sum(1) / labels_BT.shape[1] ** penalty


def the_loss(logits_BTV, labels_BT, penalty):
    return -solution_2(logits_BTV, labels_BT, penalty)


def always_the_mean(logits_BTV, labels_BT, penalty):
    return solution_2(logits_BTV, labels_BT, 1.0)


def no_softmax(logits_BTV, labels_BT, penalty):
    counts_BT = labels_BT != -100
    logs_BT = logits_BTV.gather(-1, labels_BT.clamp(min=0)[..., None])[..., 0] * counts_BT
    return logs_BT.sum(1) / counts_BT.sum(1) ** penalty


# 13.3


def solution_3(ids, n):
    begin = ids[len(ids) - n + 1 :]
    places = range(len(ids) - n + 1)
    return {ids[i + n - 1] for i in places if ids[i : i + n - 1] == begin}


def all_tokens(ids, n):
    return set(ids)


def one_too_short(ids, n):
    return solution_3(ids, n - 1) if n > 1 else set(ids)


def first_place_only(ids, n):
    begin = ids[len(ids) - n + 1 :]
    for i in range(len(ids) - n + 1):
        if ids[i : i + n - 1] == begin:
            return {ids[i + n - 1]}
    return set()


def never_for_one(ids, n):
    return solution_3(ids, n) if n > 1 else set()


# 13.4


def _grams(words, n):
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def solution_4(answers, references, n):
    pairs = [(_grams(a, n), _grams(r, n)) for a, r in zip(answers, references, strict=True)]
    return sum((a & r).total() for a, r in pairs) / sum(a.total() for a, _ in pairs)


def not_clipped(answers, references, n):
    pairs = [(_grams(a, n), _grams(r, n)) for a, r in zip(answers, references, strict=True)]
    hits = sum(k for a, r in pairs for gram, k in a.items() if gram in r)
    return hits / sum(a.total() for a, _ in pairs)


def mean_of_pairs(answers, references, n):
    pairs = [(_grams(a, n), _grams(r, n)) for a, r in zip(answers, references, strict=True)]
    each = [(a & r).total() / a.total() for a, r in pairs if a]
    return sum(each) / len(each)


def recall(answers, references, n):
    return solution_4(references, answers, n)


def of_sets(answers, references, n):
    pairs = [
        (set(_grams(a, n)), set(_grams(r, n))) for a, r in zip(answers, references, strict=True)
    ]
    return sum(len(a & r) for a, r in pairs) / sum(len(a) for a, _ in pairs)


# 13.5


def solution_5(weights_TS):
    before_TS = weights_TS.cumsum(0) - weights_TS
    return torch.minimum(weights_TS, before_TS).sum()


def with_the_present(weights_TS):
    return torch.minimum(weights_TS, weights_TS.cumsum(0)).sum()


def the_larger(weights_TS):
    return torch.maximum(weights_TS, weights_TS.cumsum(0) - weights_TS).sum()


def one_step_back(weights_TS):
    return torch.minimum(weights_TS[1:], weights_TS[:-1]).sum()


def mean_of_steps(weights_TS):
    return solution_5(weights_TS) / len(weights_TS)


def along_the_source(weights_TS):
    return torch.minimum(weights_TS, weights_TS.cumsum(1) - weights_TS).sum()


SOLUTIONS = {
    "13.1": solution_1,
    "13.2": solution_2,
    "13.3": solution_3,
    "13.4": solution_4,
    "13.5": solution_5,
}

WRONG = {
    "13.1": [
        (one_too_far, "one too far"),
        (only_whole_tokens, "without the tokens in which"),
        (the_part_that_is_here, "the part that is here"),
        (by_equal_edges, "a token that it touches"),
        (characters, "first and last character"),
    ],
    "13.2": [
        (with_padding, "with the padding"),
        (padded_length, "over the padded length"),
        (the_loss, "that is the loss"),
        (always_the_mean, "as its power"),
        (no_softmax, "log_softmax"),
    ],
    "13.3": [
        (all_tokens, "only those that complete"),
        (one_too_short, "not n - 2"),
        (first_place_only, "several times"),
        (never_for_one, "every token of the text"),
    ],
    "13.4": [
        (not_clipped, "not clipped"),
        (mean_of_pairs, "a mean over the pairs"),
        (recall, "the recall"),
        (of_sets, "of different n-grams"),
    ],
    "13.5": [
        (with_the_present, "with the present step"),
        (the_larger, "the maximum"),
        (one_step_back, "the step before only"),
        (mean_of_steps, "a mean over the steps"),
        (along_the_source, "along the source"),
    ],
}
