"""Reference solutions and usual wrong answers of chapter 16."""

import numpy as np
import torch

# 16.1


def solution_1(R):
    return R[1:-1, :-1].max(axis=0) - R[-1, :-1]


def in_float32(loss_sum, count, theta_P, anchor_P, F_P, weight):
    return loss_sum + 0.5 * weight * count * torch.dot(F_P, (theta_P - anchor_P).square()), count


def column_by_column(R):
    tasks = R.shape[1]
    return [max(R[k][j] for k in range(1, tasks)) - R[tasks][j] for j in range(tasks - 1)]


def with_the_last_task(R):
    return R[1:-1].max(axis=0) - R[-1]


def from_the_diagonal(R):
    return np.diagonal(R[1:])[:-1] - R[-1, :-1]


def with_row_0(R):
    return R[:-1, :-1].max(axis=0) - R[-1, :-1]


def with_the_last_row(R):
    return R[1:, :-1].max(axis=0) - R[-1, :-1]


# 16.2


def _pull(theta_P, anchor_P, F_P, weight):
    return weight / 2 * (F_P * (theta_P - anchor_P) ** 2).sum()


def solution_2(loss_sum, count, theta_P, anchor_P, F_P, weight):
    return loss_sum + count * _pull(theta_P, anchor_P, F_P, weight), count


def once_a_micro_batch(loss_sum, count, theta_P, anchor_P, F_P, weight):
    return loss_sum + _pull(theta_P, anchor_P, F_P, weight), count


def twice_too_strong(loss_sum, count, theta_P, anchor_P, F_P, weight):
    return loss_sum + 2 * count * _pull(theta_P, anchor_P, F_P, weight), count


def counts_the_penalty(loss_sum, count, theta_P, anchor_P, F_P, weight):
    return loss_sum + count * _pull(theta_P, anchor_P, F_P, weight), count + 1


def without_fisher(loss_sum, count, theta_P, anchor_P, F_P, weight):
    return solution_2(loss_sum, count, theta_P, anchor_P, torch.ones_like(F_P), weight)


# 16.3


def solution_3(W_CI, x_NI):
    p_NC = (x_NI @ W_CI.T).softmax(-1)
    return (p_NC * (1 - p_NC)).T @ x_NI**2 / len(x_NI)


def label_by_label(W_CI, x_NI):
    total = torch.zeros_like(W_CI)
    for x in x_NI:
        p = (W_CI @ x).softmax(-1)
        for y in range(len(W_CI)):
            error = -p.clone()
            error[y] += 1
            total += p[y] * torch.outer(error, x) ** 2
    return total / len(x_NI)


def a_sum(W_CI, x_NI):
    return solution_3(W_CI, x_NI) * len(x_NI)


def p_alone(W_CI, x_NI):
    return (x_NI @ W_CI.T).softmax(-1).T @ x_NI**2 / len(x_NI)


def variance_squared(W_CI, x_NI):
    p_NC = (x_NI @ W_CI.T).softmax(-1)
    return ((p_NC * (1 - p_NC)) ** 2).T @ x_NI**2 / len(x_NI)


def of_the_likeliest(W_CI, x_NI):
    p_NC = (x_NI @ W_CI.T).softmax(-1)
    y_NC = torch.nn.functional.one_hot(p_NC.argmax(-1), p_NC.shape[1])
    return ((y_NC - p_NC) ** 2).T @ x_NI**2 / len(x_NI)


# 16.4


def solution_4(theta1_P, F1_P, theta2_P, F2_P):
    F_P = F1_P + F2_P
    m_P = (F1_P * theta1_P + F2_P * theta2_P) / torch.where(F_P > 0, F_P, 1)
    return torch.where(F_P > 0, m_P, theta2_P), F_P


def plain_mean(theta1_P, F1_P, theta2_P, F2_P):
    return (theta1_P + theta2_P) / 2, F1_P + F2_P


def divides_by_zero(theta1_P, F1_P, theta2_P, F2_P):
    F_P = F1_P + F2_P
    return (F1_P * theta1_P + F2_P * theta2_P) / F_P, F_P


def mean_of_fishers(theta1_P, F1_P, theta2_P, F2_P):
    m_P, F_P = solution_4(theta1_P, F1_P, theta2_P, F2_P)
    return m_P, F_P / 2


def the_last_anchor(theta1_P, F1_P, theta2_P, F2_P):
    return theta2_P, F1_P + F2_P


# 16.5


def solution_5(stream, room, draw):
    memory = []
    for n, item in enumerate(stream, 1):
        if len(memory) < room:
            memory.append(item)
        else:
            place = draw(n)
            if place < room:
                memory[place] = item
    return memory


def by_lot(stream, room, draw):
    """Each example draws a lot; the largest lots stay."""
    lots = [(draw(10**9), n, item) for n, item in enumerate(stream)]
    return [item for _, _, item in sorted(lots)[-room:]]


def always_replaces(stream, room, draw):
    memory = []
    for item in stream:
        if len(memory) < room:
            memory.append(item)
        else:
            memory[draw(room)] = item
    return memory


def the_first_ones(stream, room, draw):
    return [item for n, item in enumerate(stream) if n < room]


def the_last_ones(stream, room, draw):
    return list(stream)[-room:]


def keeps_all(stream, room, draw):
    return list(stream)


SOLUTIONS = {
    "16.1": solution_1,
    "16.2": solution_2,
    "16.3": solution_3,
    "16.4": solution_4,
    "16.5": solution_5,
}

WRONG = {
    "16.1": [
        (with_the_last_task, "nothing came after it"),
        (from_the_diagonal, "any earlier task"),
        (with_row_0, "before any task"),
        (with_the_last_row, "never below 0"),
    ],
    "16.2": [
        (once_a_micro_batch, "multiply it by the count"),
        (twice_too_strong, "weight / 2"),
        (counts_the_penalty, "no target"),
        (without_fisher, "without F"),
    ],
    "16.3": [
        (a_sum, "take the mean"),
        (p_alone, "certain"),
        (variance_squared, "squared"),
        (of_the_likeliest, "drawn from the model"),
    ],
    "16.4": [
        (plain_mean, "weigh each"),
        (divides_by_zero, "not finite"),
        (mean_of_fishers, "forces add up"),
        (the_last_anchor, "the first task pulls"),
    ],
    "16.5": [
        (always_replaces, "the last ones"),
        (the_first_ones, "the first ones"),
        (the_last_ones, "the last ones"),
        (keeps_all, "must hold"),
    ],
}

ALSO_RIGHT = {
    "16.1": [column_by_column],
    "16.2": [in_float32],
    "16.3": [label_by_label],
    "16.5": [by_lot],
}
