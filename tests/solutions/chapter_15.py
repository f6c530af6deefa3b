"""Reference solutions and usual wrong answers of chapter 15."""

import numpy as np
import torch

# 15.1


def _best(values):
    return max(range(len(values)), key=values.__getitem__)


def solution_1(log_probabilities, choices):
    return _best([p / len(c.encode()) for p, c in zip(log_probabilities, choices, strict=True)])


def as_it_is(log_probabilities, choices):
    return _best(log_probabilities)


def per_character(log_probabilities, choices):
    return _best([p / len(c) for p, c in zip(log_probabilities, choices, strict=True)])


def per_word(log_probabilities, choices):
    return _best([p / len(c.split()) for p, c in zip(log_probabilities, choices, strict=True)])


def the_last_of_equal_ones(log_probabilities, choices):
    values = [p / len(c.encode()) for p, c in zip(log_probabilities, choices, strict=True)]
    return len(values) - 1 - _best(values[::-1])


# 15.2


def solution_2(whole, beginning):
    n = 0
    while n < min(len(whole), len(beginning)) and whole[n] == beginning[n]:
        n += 1
    return whole[:n], whole[n:]


def as_encoded_alone(whole, beginning):
    return beginning, whole[len(beginning) :]


def at_its_length(whole, beginning):
    return whole[: len(beginning)], whole[len(beginning) :]


def all_that_agree(whole, beginning):
    n = sum(a == b for a, b in zip(whole, beginning, strict=False))
    return whole[:n], whole[n:]


def token_across_lost(whole, beginning):
    front, rest = solution_2(whole, beginning)
    return front, rest[1:]


# 15.3


def solution_3(accuracy_DO):
    return float(np.sqrt(np.var(np.asarray(accuracy_DO), axis=1, ddof=1).mean()))


def mean_of_deviations(accuracy_DO):
    return np.std(np.asarray(accuracy_DO), axis=1, ddof=1).mean()


def population(accuracy_DO):
    return np.sqrt(np.var(np.asarray(accuracy_DO), axis=1).mean())


def of_all(accuracy_DO):
    return np.std(np.asarray(accuracy_DO), ddof=1)


def of_means(accuracy_DO):
    return np.asarray(accuracy_DO).mean(1).std(ddof=1)


def no_root(accuracy_DO):
    return np.var(np.asarray(accuracy_DO), axis=1, ddof=1).mean()


def along_the_draws(accuracy_DO):
    return np.sqrt(np.var(np.asarray(accuracy_DO), axis=0, ddof=1).mean())


# 15.4


def solution_4(with_prompt, with_premise):
    return _best([sum(a) - sum(b) for a, b in zip(with_prompt, with_premise, strict=True)])


def without_the_premise(with_prompt, with_premise):
    return _best([sum(a) for a in with_prompt])


def per_token(with_prompt, with_premise):
    both = zip(with_prompt, with_premise, strict=True)
    return _best([(sum(a) - sum(b)) / len(a) for a, b in both])


def turned_round(with_prompt, with_premise):
    return _best([sum(b) - sum(a) for a, b in zip(with_prompt, with_premise, strict=True)])


def as_a_tensor(accuracy_DO):
    return torch.as_tensor(accuracy_DO).var(1).mean().sqrt()


def by_numpy(accuracy_DO):
    return np.sqrt(np.mean(accuracy_DO.var(axis=1, ddof=1)))


SOLUTIONS = {"15.1": solution_1, "15.2": solution_2, "15.3": solution_3, "15.4": solution_4}

WRONG = {
    "15.1": [
        (as_it_is, "whatever its length"),
        (per_character, "per character"),
        (per_word, "per word"),
        (the_last_of_equal_ones, "the last of two equal ones"),
    ],
    "15.2": [
        (as_encoded_alone, "as it was encoded alone"),
        (at_its_length, "at the length of the beginning"),
        (all_that_agree, "the number of places that agree"),
        (token_across_lost, "nothing may be lost"),
    ],
    "15.3": [
        (mean_of_deviations, "average the variances"),
        (population, "O - 1"),
        (of_all, "of all values"),
        (of_means, "of the means of the draws"),
        (no_root, "take the root"),
        (along_the_draws, "along the draws"),
    ],
    "15.4": [
        (without_the_premise, "subtract what it has behind the premise"),
        (per_token, "nothing is divided"),
        (turned_round, "turned round"),
    ],
}

ALSO_RIGHT = {"15.3": [as_a_tensor, by_numpy]}
