"""Reference solutions and usual wrong answers of chapter 14."""

import torch
import torch.nn.functional as F

# 14.1


def solution_1(ids, begin, end):
    first = len(ids) - ids[::-1].index(begin)
    last = ids.index(end, first)
    return [i if first <= t <= last else -100 for t, i in enumerate(ids)][1:]


def every_answer(ids, begin, end):
    labels, speaking = [], False
    for i in ids:
        labels.append(i if speaking else -100)
        speaking = (speaking or i == begin) and i != end
    return labels[1:]


def never_stops(ids, begin, end):
    first = len(ids) - ids[::-1].index(begin)
    last = ids.index(end, first)
    return [i if first <= t < last else -100 for t, i in enumerate(ids)][1:]


def not_moved(ids, begin, end):
    return [-100, *solution_1(ids, begin, end)][:-1]


def mark_counts(ids, begin, end):
    first = len(ids) - ids[::-1].index(begin)
    last = ids.index(end, first)
    return [i if first - 1 <= t <= last else -100 for t, i in enumerate(ids)][1:]


def one_too_long(ids, begin, end):
    return [-100, *solution_1(ids, begin, end)]


def to_the_end(ids, begin, end):
    first = len(ids) - ids[::-1].index(begin)
    return [i if first <= t else -100 for t, i in enumerate(ids)][1:]


# 14.2


def solution_2(document_ids_T):
    T = len(document_ids_T)
    same = document_ids_T[:, None] == document_ids_T
    real = document_ids_T >= 0
    seen = same & torch.ones(T, T, dtype=torch.bool).tril() & real[:, None]
    return seen | torch.eye(T, dtype=torch.bool)


def plain_causal(document_ids_T):
    T = len(document_ids_T)
    return torch.ones(T, T, dtype=torch.bool).tril()


def both_ways(document_ids_T):
    return document_ids_T[:, None] == document_ids_T


def padding_reads_padding(document_ids_T):
    return both_ways(document_ids_T) & plain_causal(document_ids_T)


def padding_reads_nothing(document_ids_T):
    return padding_reads_padding(document_ids_T) & (document_ids_T >= 0)[:, None]


def turned(document_ids_T):
    return solution_2(document_ids_T).T


def numbers(document_ids_T):
    return solution_2(document_ids_T).float()


# 14.3


def solution_3(log_P2T, start_P2T, counts_P2T, beta):
    gain_P2 = ((log_P2T - start_P2T) * counts_P2T).sum(-1)
    return -F.logsigmoid(beta * (gain_P2[:, 0] - gain_P2[:, 1]))


def of_means(log_P2T, start_P2T, counts_P2T, beta):
    gain_P2 = ((log_P2T - start_P2T) * counts_P2T).sum(-1) / counts_P2T.sum(-1)
    return -F.logsigmoid(beta * (gain_P2[:, 0] - gain_P2[:, 1]))


def with_padding(log_P2T, start_P2T, counts_P2T, beta):
    return solution_3(log_P2T, start_P2T, torch.ones_like(counts_P2T), beta)


def without_start(log_P2T, start_P2T, counts_P2T, beta):
    return solution_3(log_P2T, torch.zeros_like(start_P2T), counts_P2T, beta)


def rejected_first(log_P2T, start_P2T, counts_P2T, beta):
    return solution_3(log_P2T.flip(1), start_P2T.flip(1), counts_P2T.flip(1), beta)


def one_mean(log_P2T, start_P2T, counts_P2T, beta):
    return solution_3(log_P2T, start_P2T, counts_P2T, beta).mean()


def log_of_sigmoid(log_P2T, start_P2T, counts_P2T, beta):
    gain_P2 = ((log_P2T - start_P2T) * counts_P2T).sum(-1)
    return -torch.log(torch.sigmoid(beta * (gain_P2[:, 0] - gain_P2[:, 1])))


# 14.4


def solution_4(start_K, reward_K, beta):
    scores_K = start_K.log() + reward_K / beta
    return scores_K.softmax(0), beta * scores_K.logsumexp(0)


def no_start(start_K, reward_K, beta):
    return (reward_K / beta).softmax(0), solution_4(start_K, reward_K, beta)[1]


def beta_times(start_K, reward_K, beta):
    return (start_K.log() + reward_K * beta).softmax(0), solution_4(start_K, reward_K, beta)[1]


def reward_alone(start_K, reward_K, beta):
    policy_K, _ = solution_4(start_K, reward_K, beta)
    return policy_K, (policy_K * reward_K).sum()


def no_beta(start_K, reward_K, beta):
    policy_K, value = solution_4(start_K, reward_K, beta)
    return policy_K, value / beta


def overflows(start_K, reward_K, beta):
    weights_K = start_K * torch.exp(reward_K / beta)
    return weights_K / weights_K.sum(), beta * weights_K.sum().log()


def distribution_only(start_K, reward_K, beta):
    return solution_4(start_K, reward_K, beta)[0]


# 14.5


def solution_5(answers, scores, gap):
    found = [
        (a, b)
        for a, x in zip(answers, scores, strict=True)
        for b, y in zip(answers, scores, strict=True)
        if x - y >= gap and x > y and a != b
    ]
    return list(dict.fromkeys(found))


def repeated(answers, scores, gap):
    both = list(zip(answers, scores, strict=True))
    return [(a, b) for a, x in both for b, y in both if x - y >= gap and x > y and a != b]


def more_than_the_gap(answers, scores, gap):
    both = list(zip(answers, scores, strict=True))
    return list(dict.fromkeys((a, b) for a, x in both for b, y in both if x - y > gap))


def worse_first(answers, scores, gap):
    return [(b, a) for a, b in solution_5(answers, scores, gap)]


def the_best_only(answers, scores, gap):
    best = answers[scores.index(max(scores))]
    return [pair for pair in solution_5(answers, scores, gap) if pair[0] == best]


def equal_scores_too(answers, scores, gap):
    both = list(zip(answers, scores, strict=True))
    return list(dict.fromkeys((a, b) for a, x in both for b, y in both if x - y >= gap and a != b))


SOLUTIONS = {
    "14.1": solution_1,
    "14.2": solution_2,
    "14.3": solution_3,
    "14.4": solution_4,
    "14.5": solution_5,
}

WRONG = {
    "14.1": [
        (every_answer, "all answers"),
        (never_stops, "never learn to stop"),
        (not_moved, "not moved"),
        (mark_counts, "that is given"),
        (one_too_long, "one item too long"),
        (to_the_end, "ends at its end mark"),
    ],
    "14.2": [
        (plain_causal, "conversations before them"),
        (both_ways, "read what comes after"),
        (padding_reads_padding, "right but for padding"),
        (padding_reads_nothing, "a softmax over nothing"),
        (turned, "rows are queries"),
        (numbers, "True and False"),
    ],
    "14.3": [
        (of_means, "is a sum"),
        (with_padding, "with padding"),
        (without_start, "without the start"),
        (rejected_first, "the chosen one"),
        (one_mean, "one loss for each"),
        (log_of_sigmoid, "F.logsigmoid"),
    ],
    "14.4": [
        (no_start, "without the start"),
        (beta_times, "divide"),
        (reward_alone, "the expected reward alone"),
        (no_beta, "times beta"),
        (overflows, "take a softmax"),
        (distribution_only, "Return two things"),
    ],
    "14.5": [
        (repeated, "no pair twice"),
        (more_than_the_gap, "at least `gap`"),
        (worse_first, "comes first"),
        (the_best_only, "of the best answer only"),
        (equal_scores_too, "equal scores prefer nothing"),
    ],
}
