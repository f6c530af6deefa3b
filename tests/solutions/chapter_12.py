"""Reference solutions and usual wrong answers of chapter 12."""

import itertools

import numpy as np
import torch

# 12.1


def solution_1(tags):
    found = []
    for t, tag in enumerate(tags):
        if tag == "O":
            continue
        goes_on = found and tag[0] == "I" and found[-1][1:] == (t, tag[2:])
        start = found.pop()[0] if goes_on else t
        found.append((start, t + 1, tag[2:]))
    return found


def as_lists(tags):
    return [list(span) for span in solution_1(tags)]


def end_included(tags):
    return [(a, b - 1, kind) for a, b, kind in solution_1(tags)]


def last_one_lost(tags):
    found, start = [], None
    for t, tag in enumerate(tags):
        goes_on = start is not None and tag == "I-" + tags[start][2:]
        if not goes_on:
            if start is not None:
                found.append((start, t, tags[start][2:]))
            start = None if tag == "O" else t
    return found


def touching_joined(tags):
    found = []
    for t, tag in enumerate(tags):
        if tag != "O":
            goes_on = found and found[-1][1:] == (t, tag[2:])
            start = found.pop()[0] if goes_on else t
            found.append((start, t + 1, tag[2:]))
    return found


def strays_dropped(tags):
    found = []
    for t, tag in enumerate(tags):
        if tag[0] == "B":
            found.append((t, t + 1, tag[2:]))
        elif tag[0] == "I" and found and found[-1][1:] == (t, tag[2:]):
            found[-1] = (found[-1][0], t + 1, tag[2:])
    return found


def any_type_goes_on(tags):
    found = []
    for t, tag in enumerate(tags):
        if tag[0] == "I" and found and found[-1][1] == t:
            found[-1] = (found[-1][0], t + 1, found[-1][2])
        elif tag != "O":
            found.append((t, t + 1, tag[2:]))
    return found


# 12.2


def solution_2(right, said):
    good = sum(len(set(a) & set(b)) for a, b in zip(right, said, strict=True))
    total = sum(map(len, right)) + sum(map(len, said))
    return 2 * good / total if total else 0.0


def as_numpy(right, said):
    return np.float32(solution_2(right, said))


def types_ignored(right, said):
    return solution_2(*([[s[:2] for s in row] for row in rows] for rows in (right, said)))


def only_precision(right, said):
    good = sum(len(set(a) & set(b)) for a, b in zip(right, said, strict=True))
    return good / max(sum(map(len, said)), 1)


def mean_of_rows(right, said):
    return sum(solution_2([a], [b]) for a, b in zip(right, said, strict=True)) / len(right)


def pooled(right, said):
    a, b = ({span for row in rows for span in row} for rows in (right, said))
    return 2 * len(a & b) / max(len(a) + len(b), 1)


def divides_by_zero(right, said):
    good = sum(len(set(a) & set(b)) for a, b in zip(right, said, strict=True))
    return 2 * good / (sum(map(len, right)) + sum(map(len, said)))


# 12.3


def solution_3(word_ids, tags):
    before = [None, *word_ids]
    return [
        -100 if word is None or word == last else tags[word]
        for last, word in zip(before, word_ids, strict=False)
    ]


def as_tensor(word_ids, tags):
    return torch.tensor(solution_3(word_ids, tags))


def every_piece(word_ids, tags):
    return [-100 if word is None else tags[word] for word in word_ids]


def marks_outside(word_ids, tags):
    said = solution_3(word_ids, tags)
    return [0 if word is None else label for word, label in zip(word_ids, said, strict=True)]


def counted_from_zero(word_ids, tags):
    said, n, last = [], -1, None
    for word in word_ids:
        n += word is not None and word != last
        said.append(-100 if word is None or word == last else tags[n])
        last = word
    return said


def by_tag(word_ids, tags):
    said, last = [], None
    for word in word_ids:
        tag = None if word is None else tags[word]
        said.append(-100 if tag is None or tag == last else tag)
        last = tag
    return said


# 12.4


def solution_4(e_TK, A_KK, start_K, end_K):
    alpha, beta = [start_K + e_TK[0]], [end_K]
    for e_K in e_TK[1:]:
        alpha.append(e_K + torch.logsumexp(alpha[-1].unsqueeze(1) + A_KK, 0))
    for e_K in e_TK[1:].flip(0):
        beta.append(torch.logsumexp(A_KK + e_K + beta[-1], 1))
    return (torch.stack(alpha) + torch.stack(beta[::-1])).softmax(-1)


def as_rows(e_TK, A_KK, start_K, end_K):
    return list(solution_4(e_TK, A_KK, start_K, end_K))


def as_array(e_TK, A_KK, start_K, end_K):
    return solution_4(e_TK, A_KK, start_K, end_K).numpy()


def words_alone(e_TK, A_KK, start_K, end_K):
    return e_TK.softmax(-1)


def alpha_alone(e_TK, A_KK, start_K, end_K):
    alpha = [start_K + e_TK[0]]
    for e_K in e_TK[1:]:
        alpha.append(e_K + torch.logsumexp(alpha[-1].unsqueeze(1) + A_KK, 0))
    return torch.stack(alpha).softmax(-1)


def word_twice(e_TK, A_KK, start_K, end_K):
    return (solution_4(e_TK, A_KK, start_K, end_K).log() + e_TK).softmax(-1)


def without_end(e_TK, A_KK, start_K, end_K):
    return solution_4(e_TK, A_KK, start_K, torch.zeros_like(end_K))


def turned(e_TK, A_KK, start_K, end_K):
    return solution_4(e_TK, A_KK.T, start_K, end_K)


def overflows(e_TK, A_KK, start_K, end_K):
    alpha, beta = [(start_K + e_TK[0]).exp()], [end_K.exp()]
    for e_K in e_TK[1:]:
        alpha.append(e_K.exp() * (alpha[-1] @ A_KK.exp()))
    for e_K in e_TK[1:].flip(0):
        beta.append(A_KK.exp() @ (e_K.exp() * beta[-1]))
    p_TK = torch.stack(alpha) * torch.stack(beta[::-1])
    return p_TK / p_TK.sum(-1, keepdim=True)


# 12.5


def solution_5(e_TK, A_KK, start_K, end_K):
    best_K, came_from = start_K + e_TK[0], []
    for e_K in e_TK[1:]:
        best_K, from_K = (best_K.unsqueeze(1) + A_KK).max(0)
        best_K = best_K + e_K
        came_from.append(from_K)
    row = [int((best_K + end_K).argmax())]
    for from_K in reversed(came_from):
        row.append(int(from_K[row[-1]]))
    return row[::-1]


def row_as_tensor(e_TK, A_KK, start_K, end_K):
    return torch.tensor(solution_5(e_TK, A_KK, start_K, end_K))


def each_alone(e_TK, A_KK, start_K, end_K):
    return e_TK.argmax(-1).tolist()


def not_turned(e_TK, A_KK, start_K, end_K):
    return solution_5(e_TK, A_KK, start_K, end_K)[::-1]


def greedy(e_TK, A_KK, start_K, end_K):
    row = [int((start_K + e_TK[0]).argmax())]
    for e_K in e_TK[1:]:
        row.append(int((A_KK[row[-1]] + e_K).argmax()))
    return row


def end_forgotten(e_TK, A_KK, start_K, end_K):
    return solution_5(e_TK, A_KK, start_K, torch.zeros_like(end_K))


def start_forgotten(e_TK, A_KK, start_K, end_K):
    return solution_5(e_TK, A_KK, torch.zeros_like(start_K), end_K)


def with_score(e_TK, A_KK, start_K, end_K):
    return solution_5(e_TK, A_KK, start_K, end_K), 1.0


def from_marginals(e_TK, A_KK, start_K, end_K):
    return solution_4(e_TK, A_KK, start_K, end_K).argmax(-1).tolist()


def by_listing(e_TK, A_KK, start_K, end_K):
    """Right for short rows; here only to check the reference against the definition."""
    T, K = e_TK.shape

    def score(y):
        steps = sum(float(A_KK[i, j]) for i, j in itertools.pairwise(y))
        return steps + float(start_K[y[0]] + end_K[y[-1]] + e_TK[range(T), list(y)].sum())

    return list(max(itertools.product(range(K), repeat=T), key=score))


SOLUTIONS = {
    "12.1": solution_1,
    "12.2": solution_2,
    "12.3": solution_3,
    "12.4": solution_4,
    "12.5": solution_5,
}

ALSO_RIGHT = {
    "12.1": [as_lists],
    "12.2": [as_numpy],
    "12.3": [as_tensor],
    "12.4": [as_rows, as_array],
    "12.5": [row_as_tensor],
}

WRONG = {
    "12.1": [
        (end_included, "the end is the word after it"),
        (last_one_lost, "ends with the row"),
        (touching_joined, "a B always begins another one"),
        (strays_dropped, "that an I begins"),
        (any_type_goes_on, "I of another type"),
    ],
    "12.2": [
        (types_ignored, "the type must be right"),
        (only_precision, "F1 needs recall"),
        (mean_of_rows, "sum the counts of all rows"),
        (pooled, "two rows is two names"),
        (divides_by_zero, "ZeroDivisionError"),
    ],
    "12.3": [
        (every_piece, "only its first one counts"),
        (marks_outside, "they are no words"),
        (counted_from_zero, "begins with a later one"),
        (by_tag, "two words may have one tag"),
    ],
    "12.4": [
        (words_alone, "the row has no say"),
        (alpha_alone, "what comes after the word counts"),
        (word_twice, "beta_t does not hold e_t"),
        (without_end, "without the scores of the end"),
        (turned, "its row is the tag before"),
        (overflows, "your sums overflow"),
    ],
    "12.5": [
        (each_alone, "the steps have no say"),
        (not_turned, "turn the row round"),
        (greedy, "without looking back"),
        (end_forgotten, "without the scores of the end"),
        (start_forgotten, "without the scores of the start"),
        (with_score, "without its score"),
        (from_marginals, "the best row need not have them"),
    ],
}
