"""Reference solutions and usual wrong answers of chapter 09."""

import math

import torch

# 09.1


def solution_1(log_p_KN, w_K):
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


# 09.2


def solution_2(log_p_KT):
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


# 09.3


def solution_3(ancestor, expert_states, scale):
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
    return solution_3(ancestor, expert_states, scale / len(expert_states))


def scaled_experts(ancestor, expert_states, scale):
    return {
        name: start + scale * sum(state[name] for state in expert_states)
        for name, start in ancestor.items()
    }


# 09.4


def solution_4(p_NE, k):
    chosen = p_NE.topk(k, dim=-1).indices.flatten()
    f_E = torch.bincount(chosen, minlength=p_NE.shape[1]) / len(chosen)
    return p_NE.shape[1] * (f_E * p_NE.mean(0)).sum()


def one_hot_of_choices(p_NE, k):
    chosen_NKE = torch.nn.functional.one_hot(p_NE.topk(k, dim=-1).indices, p_NE.shape[1])
    return p_NE.shape[1] * (chosen_NKE.double().mean((0, 1)) @ p_NE.mean(0))


def without_the_factor(p_NE, k):
    return solution_4(p_NE, k) / p_NE.shape[1]


def the_best_alone(p_NE, k):
    return solution_4(p_NE, 1)


def k_times(p_NE, k):
    return k * solution_4(p_NE, k)


def counts_twice(p_NE, k):
    chosen = p_NE.topk(k, dim=-1).indices.flatten()
    f_E = torch.bincount(chosen, minlength=p_NE.shape[1]).double() / len(chosen)
    return p_NE.shape[1] * (f_E * f_E).sum()


# 09.5


def solution_5(x_ND, choice_N, weight_N, experts):
    y_ND = torch.zeros_like(x_ND)
    for e, expert in enumerate(experts):
        rows = (choice_N == e).nonzero().flatten()
        if len(rows):
            y_ND[rows] = weight_N[rows, None] * expert(x_ND[rows])
    return y_ND


def by_sorting(x_ND, choice_N, weight_N, experts):
    order = choice_N.argsort(stable=True)
    parts = x_ND[order].split(torch.bincount(choice_N, minlength=len(experts)).tolist())
    found = [expert(part) for expert, part in zip(experts, parts, strict=True) if len(part)]
    y_ND = torch.empty_like(x_ND)
    y_ND[order] = torch.cat(found)
    return y_ND * weight_N[:, None]


def token_by_token(x_ND, choice_N, weight_N, experts):
    rows = [experts[int(e)](x[None])[0] for x, e in zip(x_ND, choice_N, strict=True)]
    return weight_N[:, None] * torch.stack(rows)


def every_expert(x_ND, choice_N, weight_N, experts):
    y_ND = torch.zeros_like(x_ND)
    for e, expert in enumerate(experts):
        rows = (choice_N == e).nonzero().flatten()
        y_ND[rows] = weight_N[rows, None] * expert(x_ND[rows])
    return y_ND


def unweighted(x_ND, choice_N, weight_N, experts):
    return solution_5(x_ND, choice_N, torch.ones_like(weight_N), experts)


def left_sorted(x_ND, choice_N, weight_N, experts):
    return solution_5(x_ND, choice_N, weight_N, experts)[choice_N.argsort(stable=True)]


SOLUTIONS = {
    "09.1": solution_1,
    "09.2": solution_2,
    "09.3": solution_3,
    "09.4": solution_4,
    "09.5": solution_5,
}

WRONG = {
    "09.1": [
        (mean_of_logarithms, "mean of the logarithms"),
        (out_of_log_space, "Stay in log space"),
        (equal_weights, "equal weights"),
        (weight_not_log, "log w belongs"),
        (no_weights, "without the weights"),
    ],
    "09.2": [
        (sees_its_token, "have seen the very token"),
        (last_token_only, "last token only"),
        (over_tokens, "normalised over the tokens"),
        (mean_evidence, "mean instead of a sum"),
        (unnormalised_posterior, "not normalised"),
    ],
    "09.3": [
        (plain_average, "plain average"),
        (no_ancestor, "without the ancestor"),
        (mean_of_vectors, "mean of the task vectors"),
        (scaled_experts, "subtract the ancestor"),
    ],
    "09.4": [
        (without_the_factor, "without the factor E"),
        (the_best_alone, "from the best expert alone"),
        (k_times, "k times too large"),
        (counts_twice, "with f twice"),
    ],
    "09.5": [
        (token_by_token, "all its tokens at once"),
        (every_expert, "has nothing to do"),
        (unweighted, "without the weights"),
        (left_sorted, "still sorted"),
    ],
}

ALSO_RIGHT = {
    "09.4": [one_hot_of_choices],
    "09.5": [by_sorting],
}
