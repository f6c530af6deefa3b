"""Reference solutions and usual wrong answers of chapter 24."""

import random

import torch

# 24.1


def solution_1(dropped, kinds, bad):
    hits = sum(kinds[i] in bad for i in dropped)
    there = sum(kind in bad for kind in kinds)
    return hits / len(dropped) if dropped else 1.0, hits / there


def exchanged(dropped, kinds, bad):
    precision, recall = solution_1(dropped, kinds, bad)
    return recall, precision


def of_all_texts(dropped, kinds, bad):
    hits = sum(kinds[i] in bad for i in dropped)
    return hits / len(kinds), hits / len(kinds)


def all_that_is_not_clean(dropped, kinds, bad):
    return solution_1(dropped, kinds, {kind for kind in kinds if kind != "clean"})


def nothing_is_zero(dropped, kinds, bad):
    precision, recall = solution_1(dropped, kinds, bad)
    return precision if dropped else 0.0, recall


def as_float32(dropped, kinds, bad):
    return [torch.tensor(it, dtype=torch.float64) for it in solution_1(dropped, kinds, bad)]


# 24.2


def solution_2(first, gone):
    taken, drop = set(), set()
    for i, cluster in enumerate(first):
        if i not in gone:
            if cluster in taken:
                drop.add(i)
            taken.add(cluster)
    return drop


def as_a_list(first, gone):
    return sorted(solution_2(first, gone))


def by_a_fixed_list(first, gone):
    return {i for i, cluster in enumerate(first) if cluster != i}


def and_the_gone(first, gone):
    return solution_2(first, gone) | set(gone)


def drops_nothing(first, gone):
    return set()


def keeps_the_last(first, gone):
    last = {cluster: i for i, cluster in enumerate(first) if i not in gone}
    return {i for i, c in enumerate(first) if i not in gone and last[c] != i}


# 24.3


def solution_3(sizes_K, T):
    powers_K = sizes_K ** (1 / T)
    return powers_K / powers_K.sum()


def power_of_t(sizes_K, T):
    powers_K = sizes_K ** min(T, 20.0)
    return powers_K / powers_K.sum()


def by_size(sizes_K, T):
    return sizes_K / sizes_K.sum()


def all_alike(sizes_K, T):
    return torch.full_like(sizes_K, 1 / len(sizes_K))


def unnormalised(sizes_K, T):
    return sizes_K ** (1 / T)


def softmax_of_sizes(sizes_K, T):
    return torch.softmax(sizes_K / min(T, 20.0), 0)


# 24.4


def solution_4(texts, tests, n):
    def runs(words):
        return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}

    in_tests = set().union(*(runs(test) for test in tests))
    return {i for i, text in enumerate(texts) if runs(text) & in_tests}


def by_joining(texts, tests, n):
    held = [" " + " ".join(text) + " " for text in texts]
    pieces = [test[i : i + n] for test in tests for i in range(len(test) - n + 1)]
    return [i for i, it in enumerate(held) if any(" " + " ".join(p) + " " in it for p in pieces)]


def whole_texts(texts, tests, n):
    return {i for i, text in enumerate(texts) if text in tests}


def single_words(texts, tests, n):
    return {i for i, text in enumerate(texts) if any(set(text) & set(test) for test in tests)}


def one_too_short(texts, tests, n):
    return solution_4(texts, tests, n - 1)


def without_order(texts, tests, n):
    return {i for i, text in enumerate(texts) if any(len(set(text) & set(t)) >= n for t in tests)}


def what_stays(texts, tests, n):
    return set(range(len(texts))) - solution_4(texts, tests, n)


# 24.5


def solution_5(before_K, after_KK):
    change_KK = after_KK - before_K
    home_K = change_KK.diagonal()
    return -home_K, (change_KK.sum(1) - home_K) / (len(before_K) - 1)


def wrong_sign(before_K, after_KK):
    gain_K, lost_K = solution_5(before_K, after_KK)
    return -gain_K, -lost_K


def home_included(before_K, after_KK):
    return solution_5(before_K, after_KK)[0], (after_KK - before_K).mean(1)


def columns(before_K, after_KK):
    change_KK = (after_KK - before_K).T
    home_K = change_KK.diagonal()
    return -home_K, (change_KK.sum(1) - home_K) / (len(before_K) - 1)


def wrong_axis(before_K, after_KK):
    change_KK = after_KK - before_K[:, None]
    home_K = change_KK.diagonal()
    return -home_K, (change_KK.sum(1) - home_K) / (len(before_K) - 1)


# 24.6


def solution_6(parts, total, length):
    count, found = [0] * len(parts), []
    for i in range(1, length + 1):
        may = [k for k, part in enumerate(parts) if part * i > count[k] * total]
        found.append(min(may, key=lambda k: -(-(count[k] + 1) * total // parts[k])))
        count[found[-1]] += 1
    return found


def drawn(parts, total, length):
    return random.choices(range(len(parts)), weights=parts, k=length)


def in_blocks(parts, total, length):
    one = [k for k, part in enumerate(parts) for _ in range(part)]
    return [one[i % total] for i in range(length)]


def round_robin(parts, total, length):
    return [i % len(parts) for i in range(length)]


def most_behind(parts, total, length):
    count, found = [0] * len(parts), []
    for i in range(1, length + 1):
        found.append(max(range(len(parts)), key=lambda k: parts[k] * i - count[k] * total))
        count[found[-1]] += 1
    return found


SOLUTIONS = {
    "24.1": solution_1,
    "24.2": solution_2,
    "24.3": solution_3,
    "24.4": solution_4,
    "24.5": solution_5,
    "24.6": solution_6,
}

WRONG = {
    "24.1": [
        (exchanged, "the wrong way round"),
        (of_all_texts, "share of all texts"),
        (all_that_is_not_clean, "its own task"),
        (nothing_is_zero, "drops nothing"),
    ],
    "24.2": [
        (by_a_fixed_list, "nothing of the cluster"),
        (and_the_gone, "went before"),
        (drops_nothing, "Two texts of one cluster"),
        (keeps_the_last, "not the first that is left"),
    ],
    "24.3": [
        (power_of_t, "use 1 / T"),
        (by_size, "temperature is not used"),
        (all_alike, "limit of a large T"),
        (unnormalised, "not divided by the sum"),
        (softmax_of_sizes, "softmax of sizes"),
    ],
    "24.4": [
        (whole_texts, "inside a longer text"),
        (single_words, "Single words"),
        (one_too_short, "is enough for it"),
        (without_order, "order of the words"),
        (what_stays, "texts to keep"),
    ],
    "24.5": [
        (wrong_sign, "signs turned"),
        (home_included, "home included"),
        (columns, "along the columns"),
        (wrong_axis, "wrong axis"),
    ],
    "24.6": [
        (drawn, "Asked twice"),
        (in_blocks, "than its share"),
        (round_robin, "than its share"),
        (most_behind, "than its share"),
    ],
}

ALSO_RIGHT = {
    "24.1": [as_float32],
    "24.2": [as_a_list],
    "24.4": [by_joining],
}
