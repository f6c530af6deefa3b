"""Reference solutions and usual wrong answers of chapter 21."""

import math

import numpy as np

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


SOLUTIONS = {
    "21.1": {8: "denominator"},
    "21.2": {3: "shift", 5: "mask", 7: "detached"},
    "21.3": {9: "order", 2: "leak"},
    "21.4": {6: "rate", 1: "decay", 4: "mode", 10: "precision"},
    "21.5": solution_5,
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
        ({10: "rate"}, "as the healthy run's"),
        ({6: "decay"}, "norm gains rise"),
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
}

ALSO_RIGHT = {
    "21.1": [],
    "21.5": [in_numpy, in_lists, in_float32],
}
