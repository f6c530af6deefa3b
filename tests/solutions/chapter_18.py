"""Reference solutions and usual wrong answers of chapter 18."""

import math

import torch

# 18.1


def solution_1(P, dp, tp, pp, zero):
    own = P / (tp * pp)
    weights = 2 * own / (dp if zero >= 3 else 1)
    gradients = 2 * own / (dp if zero >= 2 else 1)
    optimizer = 12 * own / (dp if zero >= 1 else 1)
    return weights + gradients + optimizer


def part_by_part(P, dp, tp, pp, zero):
    divided = [0, 12, 14, 16][zero]
    return torch.tensor(((16 - divided) + divided / dp) * P / tp / pp)


def a_share_of_all(P, dp, tp, pp, zero):
    return 16 * P / (dp * tp * pp)


def whole_model(P, dp, tp, pp, zero):
    return solution_1(P, dp, 1, 1, zero)


def forgets_stages(P, dp, tp, pp, zero):
    return solution_1(P, dp, tp, 1, zero)


def wrong_order(P, dp, tp, pp, zero):
    own = P / (tp * pp)
    shares = [dp if zero >= stage else 1 for stage in (1, 2, 3)]
    return 2 * own / shares[0] + 2 * own / shares[1] + 12 * own / shares[2]


def no_copy(P, dp, tp, pp, zero):
    return solution_1(P, dp, tp, pp, zero) - 4 * P / (tp * pp) / (dp if zero else 1)


# 18.2


def solution_2(stage, N, S, m):
    halves = {0: 2, 1: 2, 2: m + 1, 3: 3 * m}[stage]
    return halves * (N - 1) / N * S


def as_a_tensor(stage, N, S, m):
    return torch.tensor(solution_2(stage, N, S, m))


def of_all_ranks(stage, N, S, m):
    return solution_2(stage, N, S, m) * N


def keeps_nothing(stage, N, S, m):
    return solution_2(stage, N, S, m) * N / (N - 1)


def every_micro_batch(stage, N, S, m):
    return solution_2(0, N, S, m) * m if stage < 2 else solution_2(stage, N, S, m)


def once_an_update(stage, N, S, m):
    return (3 if stage == 3 else 2) * (N - 1) / N * S


def gathers_once(stage, N, S, m):
    return 2 * m * (N - 1) / N * S if stage == 3 else solution_2(stage, N, S, m)


# 18.3


def solution_3(a_TK, La_T, b_TK, Lb_T):
    shares_2T = torch.stack([La_T, Lb_T]).softmax(0)
    return shares_2T[0, :, None] * a_TK + shares_2T[1, :, None] * b_TK


def by_hand_in_numpy(a_TK, La_T, b_TK, Lb_T):
    most_T = torch.maximum(La_T, Lb_T)
    wa_T, wb_T = (La_T - most_T).exp()[:, None], (Lb_T - most_T).exp()[:, None]
    return ((wa_T * a_TK + wb_T * b_TK) / (wa_T + wb_T)).numpy()


def plain_mean(a_TK, La_T, b_TK, Lb_T):
    return (a_TK + b_TK) / 2


def weighed_by_L(a_TK, La_T, b_TK, Lb_T):
    return (La_T[:, None] * a_TK + Lb_T[:, None] * b_TK) / (La_T + Lb_T)[:, None]


def overflows(a_TK, La_T, b_TK, Lb_T):
    wa_T, wb_T = La_T.exp()[:, None], Lb_T.exp()[:, None]
    return (wa_T * a_TK + wb_T * b_TK) / (wa_T + wb_T)


def wrong_way_round(a_TK, La_T, b_TK, Lb_T):
    return solution_3(a_TK, Lb_T, b_TK, La_T)


# 18.4


def solution_4(S, v, b):
    m = 1
    while (S - 1) / v > b * (m + (S - 1) / v) * (1 + 1e-12):
        m += 1
    return m


def solved(S, v, b):
    return max(1, math.ceil((S - 1) / v * (1 - b) / b - 1e-9))


def idle_over_busy(S, v, b):
    return max(1, math.ceil((S - 1) / v / b - 1e-9))


def rounds_down(S, v, b):
    return max(1, math.floor((S - 1) / v * (1 - b) / b + 1e-9))


def not_rounded(S, v, b):
    return max(1, (S - 1) / v * (1 - b) / b)


def not_interleaved(S, v, b):
    return solved(S, 1, b)


def none_at_all(S, v, b):
    return math.ceil((S - 1) / v * (1 - b) / b - 1e-9)


SOLUTIONS = {
    "18.1": solution_1,
    "18.2": solution_2,
    "18.3": solution_3,
    "18.4": solution_4,
}

WRONG = {
    "18.1": [
        (a_share_of_all, "whatever the stage"),
        (whole_model, "without tp and pp"),
        (forgets_stages, "not by pp"),
        (wrong_order, "wrong order"),
        (no_copy, "12 bytes"),
    ],
    "18.2": [
        (of_all_ranks, "for all ranks"),
        (keeps_nothing, "keeps its own chunk"),
        (every_micro_batch, "wait for the last"),
        (once_an_update, "every micro-batch's gradient leaves"),
        (gathers_once, "again backward"),
    ],
    "18.3": [
        (plain_mean, "the plain mean"),
        (weighed_by_L, "L is a logarithm"),
        (overflows, "differences of L"),
        (wrong_way_round, "wrong way round"),
    ],
    "18.4": [
        (idle_over_busy, "idle over busy"),
        (rounds_down, "round up"),
        (not_rounded, "round up"),
        (not_interleaved, "without interleaving"),
        (none_at_all, "at least 1"),
    ],
}

ALSO_RIGHT = {
    "18.1": [part_by_part],
    "18.2": [as_a_tensor],
    "18.3": [by_hand_in_numpy],
    "18.4": [solved],
}
