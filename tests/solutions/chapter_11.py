"""Reference solutions and usual wrong answers of chapter 11."""

import torch

# 11.1


def solution_1(layers, rank):
    return sum(rank * (inputs + outputs) for inputs, outputs in layers)


def whole_matrices(layers, rank):
    return sum(inputs * outputs for inputs, outputs in layers)


def only_a(layers, rank):
    return sum(rank * inputs for inputs, _ in layers)


def without_rank(layers, rank):
    return sum(inputs + outputs for inputs, outputs in layers)


def with_frozen(layers, rank):
    return solution_1(layers, rank) + whole_matrices(layers, rank)


# 11.2


def solution_2(W_OI, A_RI, B_OR, alpha, sign):
    return W_OI + sign * alpha / A_RI.shape[0] * B_OR @ A_RI


def without_scale(W_OI, A_RI, B_OR, alpha, sign):
    return W_OI + sign * B_OR @ A_RI


def only_alpha(W_OI, A_RI, B_OR, alpha, sign):
    return W_OI + sign * alpha * B_OR @ A_RI


def always_on(W_OI, A_RI, B_OR, alpha, sign):
    return W_OI + alpha / A_RI.shape[0] * B_OR @ A_RI


def in_place(W_OI, A_RI, B_OR, alpha, sign):
    W_OI += sign * alpha / A_RI.shape[0] * B_OR @ A_RI
    return W_OI


def by_outputs(W_OI, A_RI, B_OR, alpha, sign):
    return W_OI + sign * alpha / B_OR.shape[0] * B_OR @ A_RI


# 11.3


def solution_3(names, rate, decay):
    block = {n: int(n.split(".")[1]) for n in names if n.startswith("blocks.")}
    count = 1 + max(block.values())
    top = ("final_norm", "classifier")
    depth = {n: 0 if n.startswith(top) else count - block.get(n, -1) for n in names}
    return {n: rate * decay**k for n, k in depth.items()}


def upside_down(names, rate, decay):
    right = solution_3(names, rate, decay)
    blocks = [n for n in names if n.startswith("blocks.")]
    last = max(int(n.split(".")[1]) for n in blocks)
    turned = {n: f"blocks.{last - int(n.split('.')[1])}." for n in blocks}
    return right | {n: next(right[m] for m in blocks if m.startswith(turned[n])) for n in blocks}


def one_step_short(names, rate, decay):
    right = solution_3(names, rate, decay)
    top = ("final_norm", "classifier")
    return {n: r if n.startswith(top) else r / decay for n, r in right.items()}


def fast_embeddings(names, rate, decay):
    return solution_3(names, rate, decay) | {"embedding.weight": rate}


def embeddings_as_first(names, rate, decay):
    right = solution_3(names, rate, decay)
    return right | {"embedding.weight": right["embedding.weight"] / decay}


def forgets_the_top(names, rate, decay):
    return {n: r for n, r in solution_3(names, rate, decay).items() if "final_norm" not in n}


# 11.4


def _attend(q, k, v, seen):
    scores = q @ k.T / q.shape[1] ** 0.5
    return scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v


def solution_4(q_TK, k_TK, v_TK, prefix_k_NK, prefix_v_NK):
    T, N = len(q_TK), len(prefix_k_NK)
    k_SK = torch.cat((prefix_k_NK, k_TK))
    v_SK = torch.cat((prefix_v_NK, v_TK))
    return _attend(q_TK, k_SK, v_SK, torch.ones(T, N + T, dtype=torch.bool).tril(N))


def without_mask(q_TK, k_TK, v_TK, prefix_k_NK, prefix_v_NK):
    k, v = torch.cat((prefix_k_NK, k_TK)), torch.cat((prefix_v_NK, v_TK))
    return _attend(q_TK, k, v, torch.ones(len(q_TK), len(k), dtype=torch.bool))


def prefix_is_masked(q_TK, k_TK, v_TK, prefix_k_NK, prefix_v_NK):
    k, v = torch.cat((prefix_k_NK, k_TK)), torch.cat((prefix_v_NK, v_TK))
    return _attend(q_TK, k, v, torch.ones(len(q_TK), len(k), dtype=torch.bool).tril())


def unscaled(q_TK, k_TK, v_TK, prefix_k_NK, prefix_v_NK):
    return solution_4(q_TK * q_TK.shape[1] ** 0.5, k_TK, v_TK, prefix_k_NK, prefix_v_NK)


def two_softmaxes(q_TK, k_TK, v_TK, prefix_k_NK, prefix_v_NK):
    T = len(q_TK)
    seen = torch.ones(T, len(prefix_k_NK), dtype=torch.bool)
    own = _attend(q_TK, k_TK, v_TK, torch.ones(T, T, dtype=torch.bool).tril())
    return _attend(q_TK, prefix_k_NK, prefix_v_NK, seen) + own


# 11.5


def solution_5(change_OI, share):
    kept = torch.linalg.svdvals(change_OI.double()).square().cumsum(0)
    return int((kept < share * kept[-1] * (1 - 1e-12)).sum()) + 1


def not_squared(change_OI, share):
    kept = torch.linalg.svdvals(change_OI).cumsum(0)
    return int((kept < share * kept[-1] * (1 - 1e-12)).sum()) + 1


def one_too_small(change_OI, share):
    return solution_5(change_OI, share) - 1


def full_rank(change_OI, share):
    return int(torch.linalg.matrix_rank(change_OI))


def a_share_of_the_rank(change_OI, share):
    return share * min(change_OI.shape)


SOLUTIONS = {
    "11.1": solution_1,
    "11.2": solution_2,
    "11.3": solution_3,
    "11.4": solution_4,
    "11.5": solution_5,
}

WRONG = {
    "11.1": [
        (whole_matrices, "frozen"),
        (only_a, "B writes the outputs"),
        (without_rank, "without the rank"),
        (with_frozen, "frozen"),
    ],
    "11.2": [
        (without_scale, "without alpha / rank"),
        (only_alpha, "divide it by the rank"),
        (always_on, "same for both signs"),
        (in_place, "in place"),
        (by_outputs, "number of outputs"),
    ],
    "11.3": [
        (upside_down, "upside down"),
        (one_step_short, "one step short"),
        (fast_embeddings, "below every block"),
        (embeddings_as_first, "one step below"),
        (forgets_the_top, "has no rate"),
    ],
    "11.4": [
        (without_mask, "what follows"),
        (prefix_is_masked, "sees all of the prefix"),
        (unscaled, "not scaled"),
        (two_softmaxes, "share one"),
    ],
    "11.5": [
        (not_squared, "squares"),
        (one_too_small, "one too small"),
        (full_rank, "full rank"),
        (a_share_of_the_rank, "whole number"),
    ],
}
