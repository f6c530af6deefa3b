"""Reference solutions and usual wrong answers of chapter 21."""

import math

import numpy as np
import torch

# 21.5


def solution_5(before, after):
    return (after - before).norm() / before.norm()


def in_numpy(before, after):
    change = np.asarray(after) - np.asarray(before)
    return np.linalg.norm(change) / np.linalg.norm(np.asarray(before))


def in_lists(before, after):
    pairs = list(zip(before.flatten().tolist(), after.flatten().tolist(), strict=True))
    return math.sqrt(sum((b - a) ** 2 for a, b in pairs) / sum(a * a for a, _ in pairs))


def in_float32(before, after):
    return solution_5(before.float(), after.float())


def by_the_new(before, after):
    return (after - before).norm() / after.norm()


def mean_of_ratios(before, after):
    return ((after - before).abs() / before.abs()).mean()


def squared(before, after):
    return (after - before).square().sum() / before.square().sum()


def difference_of_norms(before, after):
    return (after.norm() - before.norm()).abs() / before.norm()


def upside_down(before, after):
    return before.norm() / (after - before).norm()


# 21.6


def solution_6(logits_of, ids):
    before = logits_of(ids)
    size = before.shape[-1]
    for cut in range(1, ids.shape[1]):
        altered = ids.clone()
        altered[:, cut:] = (ids[:, cut:] + 1) % size
        change = (logits_of(altered) - before)[:, :cut]
        if change.abs().max() > 1e-4:
            return True
    return False


def one_token_at_a_time(logits_of, ids):
    before = np.asarray(logits_of(ids))
    changes = []
    for cut in range(1, ids.shape[1]):
        altered = ids.clone()
        altered[0, cut] = (altered[0, cut] + 1) % before.shape[-1]
        changes.append(np.abs(np.asarray(logits_of(altered)) - before)[:, :cut].max())
    return np.max(changes) > 1e-4


def everywhere(logits_of, ids):
    altered = ids.clone()
    altered[:, -1] = (ids[:, -1] + 1) % 20
    return bool((logits_of(altered) - logits_of(ids)).abs().max() > 1e-4)


def to_the_bit(logits_of, ids):
    altered = ids.clone()
    altered[:, 6:] = (ids[:, 6:] + 1) % 20
    return not torch.equal(logits_of(altered)[:, :6], logits_of(ids)[:, :6])


def one_cut(logits_of, ids):
    altered = ids.clone()
    altered[:, 7:] = (ids[:, 7:] + 1) % 20
    return bool((logits_of(altered) - logits_of(ids))[:, :7].abs().max() > 1e-4)


def never(logits_of, ids):
    return False


SOLUTIONS = {
    "21.1": {8: "denominator"},
    "21.2": {3: "shift", 5: "mask", 7: "detached"},
    "21.3": {9: "order", 2: "leak"},
    "21.4": {6: "rate", 1: "decay", 4: "mode", 10: "precision"},
    "21.5": solution_5,
    "21.6": solution_6,
}

WRONG = {
    "21.1": [
        ({3: "denominator"}, "its first loss is log V"),
        ({8: "denominators"}, "none of the ten"),
        ({"denominator": 8}, "Numbers first"),
        ({11: "denominator"}, "1 to 10"),
        ([8], "Give a dict"),
    ],
    "21.2": [
        ({3: "shift", 5: "mask"}, "1 of the 3 runs is not found"),
        ({5: "shift"}, "one token ahead"),
        ({3: "mask"}, "altered future tokens"),
        ({10: "detached"}, "gets a gradient"),
        ({8: "denominator"}, "another exercise asks for"),
    ],
    "21.3": [
        ({4: "order"}, "as many different examples"),
        ({5: "leak"}, "as hard for it"),
        ({9: "order"}, "1 of the 2 runs"),
    ],
    "21.4": [
        ({10: "rate"}, "a twentieth of the run"),
        ({6: "decay"}, "do not all fall below 1"),
        ({9: "mode"}, "training mode"),
        ({6: "precision"}, "move in an update"),
    ],
    "21.5": [
        (by_the_new, "those before"),
        (mean_of_ratios, "divide two norms"),
        (squared, "take the root"),
        (difference_of_norms, "a rotation"),
        (upside_down, "the change stands above"),
    ],
    "21.6": [
        (everywhere, "at altered places may change"),
        (to_the_bit, "that rounds is accused"),
        (never, "sees everything is let go"),
        (one_cut, "alter from each position on"),
    ],
}

ALSO_RIGHT = {
    "21.1": [],
    "21.5": [in_numpy, in_lists, in_float32],
    "21.6": [one_token_at_a_time],
}
