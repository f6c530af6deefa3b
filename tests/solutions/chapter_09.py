"""Reference solutions and usual wrong answers of chapter 09."""

import math
import random

import torch

# 09.1


def solution_1(sizes_K, T):
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


# 09.2


def solution_2(log_p_KN, w_K):
    return torch.logsumexp(log_p_KN + w_K.log()[:, None], dim=0)


def mean_of_logarithms(log_p_KN, w_K):
    return (w_K[:, None] * log_p_KN).sum(0)


def out_of_log_space(log_p_KN, w_K):
    return (w_K[:, None] * log_p_KN.exp()).sum(0).log()


def equal_weights(log_p_KN, w_K):
    return torch.logsumexp(log_p_KN, 0) - math.log(len(w_K))


def weight_not_log(log_p_KN, w_K):
    return torch.logsumexp(log_p_KN + w_K[:, None], 0)


def no_weights(log_p_KN, w_K):
    return torch.logsumexp(log_p_KN, 0)


# 09.3


def solution_3(log_p_KT):
    return torch.softmax(log_p_KT.cumsum(1) - log_p_KT, dim=0)


def sees_its_token(log_p_KT):
    return torch.softmax(log_p_KT.cumsum(1), dim=0)


def last_token_only(log_p_KT):
    shifted = torch.cat([torch.zeros_like(log_p_KT[:, :1]), log_p_KT[:, :-1]], 1)
    return torch.softmax(shifted, dim=0)


def over_tokens(log_p_KT):
    return torch.softmax(log_p_KT.cumsum(1) - log_p_KT, dim=1)


def mean_evidence(log_p_KT):
    before = log_p_KT.cumsum(1) - log_p_KT
    return torch.softmax(before / torch.arange(1, log_p_KT.shape[1] + 1), dim=0)


def unnormalised_posterior(log_p_KT):
    return (log_p_KT.cumsum(1) - log_p_KT).exp()


# 09.4


def solution_4(ancestor, expert_states, scale):
    return {
        name: start + scale * sum(state[name] - start for state in expert_states)
        for name, start in ancestor.items()
    }


def plain_average(ancestor, expert_states, scale):
    return {
        name: sum(state[name] for state in expert_states) / len(expert_states) for name in ancestor
    }


def no_ancestor(ancestor, expert_states, scale):
    return {
        name: scale * sum(state[name] - start for state in expert_states)
        for name, start in ancestor.items()
    }


def mean_of_vectors(ancestor, expert_states, scale):
    return solution_4(ancestor, expert_states, scale / len(expert_states))


def scaled_experts(ancestor, expert_states, scale):
    return {
        name: start + scale * sum(state[name] for state in expert_states)
        for name, start in ancestor.items()
    }


# 09.5


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


# 09.6


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
    "09.1": solution_1,
    "09.2": solution_2,
    "09.3": solution_3,
    "09.4": solution_4,
    "09.5": solution_5,
    "09.6": solution_6,
}

WRONG = {
    "09.1": [
        (power_of_t, "use 1 / T"),
        (by_size, "temperature is not used"),
        (all_alike, "limit of a large T"),
        (unnormalised, "not divided by the sum"),
        (softmax_of_sizes, "softmax of sizes"),
    ],
    "09.2": [
        (mean_of_logarithms, "mean of the logarithms"),
        (out_of_log_space, "Stay in log space"),
        (equal_weights, "equal weights"),
        (weight_not_log, "log w belongs"),
        (no_weights, "without the weights"),
    ],
    "09.3": [
        (sees_its_token, "have seen the very token"),
        (last_token_only, "last token only"),
        (over_tokens, "normalised over the tokens"),
        (mean_evidence, "mean instead of a sum"),
        (unnormalised_posterior, "not normalised"),
    ],
    "09.4": [
        (plain_average, "plain average"),
        (no_ancestor, "without the ancestor"),
        (mean_of_vectors, "mean of the task vectors"),
        (scaled_experts, "subtract the ancestor"),
    ],
    "09.5": [
        (wrong_sign, "signs turned"),
        (home_included, "home included"),
        (columns, "along the columns"),
        (wrong_axis, "wrong axis"),
    ],
    "09.6": [
        (drawn, "Asked twice"),
        (in_blocks, "than its share"),
        (round_robin, "than its share"),
        (most_behind, "than its share"),
    ],
}
