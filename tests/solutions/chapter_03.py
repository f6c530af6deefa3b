"""Reference solutions and usual wrong answers of chapter 03."""

import math

import torch
import torch.nn.functional as F

# 03.1


def distance(length):
    place = torch.arange(length)
    return place[:, None] - place


def solution_1(q_TK, k_TK, slope):
    far_TT = distance(len(q_TK))
    scores_TT = q_TK @ k_TK.T / math.sqrt(q_TK.shape[-1]) - slope * far_TT
    return scores_TT.masked_fill(far_TT < 0, -math.inf).softmax(dim=-1)


def bias_as_a_table(q_TK, k_TK, slope):
    far_TT = distance(len(q_TK))
    bias_TT = torch.where(far_TT < 0, -1e9, -slope * far_TT).to(q_TK.dtype)
    return torch.softmax(torch.einsum("tk,sk->ts", q_TK, k_TK) * q_TK.shape[1] ** -0.5 + bias_TT, 1)


def without_slope(q_TK, k_TK, slope):
    return solution_1(q_TK, k_TK, 0.0)


def slope_added(q_TK, k_TK, slope):
    return solution_1(q_TK, k_TK, -slope)


def slope_before_scale(q_TK, k_TK, slope):
    return solution_1(q_TK, k_TK, slope / math.sqrt(q_TK.shape[-1]))


def unscaled(q_TK, k_TK, slope):
    return solution_1(q_TK * math.sqrt(q_TK.shape[-1]), k_TK, slope)


def both_sides(q_TK, k_TK, slope):
    far_TT = distance(len(q_TK)).abs()
    return (q_TK @ k_TK.T / math.sqrt(q_TK.shape[-1]) - slope * far_TT).softmax(-1)


def wrong_axis(q_TK, k_TK, slope):
    far_TT = distance(len(q_TK))
    scores_TT = q_TK @ k_TK.T / math.sqrt(q_TK.shape[-1]) - slope * far_TT
    return scores_TT.masked_fill(far_TT < 0, -math.inf).softmax(dim=0)


# 03.2


def solution_2(attention_mask_T, window):
    back_TT = distance(len(attention_mask_T))
    return (back_TT >= 0) & (back_TT < window) & attention_mask_T.bool()[None, :]


def no_window(attention_mask_T, window):
    return (distance(len(attention_mask_T)) >= 0) & attention_mask_T.bool()[None, :]


def no_padding(attention_mask_T, window):
    return solution_2(torch.ones_like(attention_mask_T), window)


def one_too_wide(attention_mask_T, window):
    return solution_2(attention_mask_T, window + 1)


def one_too_narrow(attention_mask_T, window):
    return solution_2(attention_mask_T, window - 1)


def to_both_sides(attention_mask_T, window):
    near_TT = distance(len(attention_mask_T)).abs() < window
    return near_TT & attention_mask_T.bool()[None, :]


def hides_rows(attention_mask_T, window):
    return no_padding(attention_mask_T, window) & attention_mask_T.bool()[:, None]


def integers(attention_mask_T, window):
    return solution_2(attention_mask_T, window).long()


# 03.3


def softmax_backward(weights_TS, d_weights_TS):
    return weights_TS * (d_weights_TS - (weights_TS * d_weights_TS).sum(-1, keepdim=True))


def solution_3(scores_TS, cap, d_weights_TS):
    bent_TS = torch.tanh(scores_TS / cap)
    return softmax_backward((cap * bent_TS).softmax(-1), d_weights_TS) * (1 - bent_TS**2)


def by_the_jacobian(scores_TS, cap, d_weights_TS):
    rows = []
    for s_S, d_S in zip(scores_TS, d_weights_TS, strict=True):
        w_S = (cap * torch.tanh(s_S / cap)).softmax(-1)
        rows.append((torch.diag(w_S) - torch.outer(w_S, w_S)) @ d_S / torch.cosh(s_S / cap) ** 2)
    return torch.stack(rows)


def no_slope(scores_TS, cap, d_weights_TS):
    return softmax_backward((cap * torch.tanh(scores_TS / cap)).softmax(-1), d_weights_TS)


def uncapped_weights(scores_TS, cap, d_weights_TS):
    slope_TS = 1 - torch.tanh(scores_TS / cap) ** 2
    return softmax_backward(scores_TS.softmax(-1), d_weights_TS) * slope_TS


def divided_by_cap(scores_TS, cap, d_weights_TS):
    return solution_3(scores_TS, cap, d_weights_TS) / cap


def diagonal_only(scores_TS, cap, d_weights_TS):
    bent_TS = torch.tanh(scores_TS / cap)
    weights_TS = (cap * bent_TS).softmax(-1)
    return weights_TS * (1 - weights_TS) * d_weights_TS * (1 - bent_TS**2)


def cap_before_softmax(scores_TS, cap, d_weights_TS):
    slope_TS = 1 - torch.tanh(scores_TS / cap) ** 2
    return no_slope(scores_TS, cap, d_weights_TS * slope_TS)


# 03.4


def positive(x):
    return F.elu(x) + 1


def solution_4(q_TK, k_TK, v_TK):
    sums_TKV = (positive(k_TK)[:, :, None] * v_TK[:, None, :]).cumsum(dim=0)
    total_T = (positive(q_TK) * positive(k_TK).cumsum(dim=0)).sum(dim=-1)
    return torch.einsum("tk,tkv->tv", positive(q_TK), sums_TKV) / total_T[:, None]


def step_by_step(q_TK, k_TK, v_TK):
    S_KV, z_K, out = q_TK.new_zeros(q_TK.shape[1], v_TK.shape[1]), 0.0, []
    for q, k, v in zip(positive(q_TK), positive(k_TK), v_TK, strict=True):
        S_KV, z_K = S_KV + torch.outer(k, v), z_K + k
        out.append(q @ S_KV / (q @ z_K))
    return torch.stack(out)


def not_divided(q_TK, k_TK, v_TK):
    sums_TKV = (positive(k_TK)[:, :, None] * v_TK[:, None, :]).cumsum(dim=0)
    return torch.einsum("tk,tkv->tv", positive(q_TK), sums_TKV)


def sees_all(q_TK, k_TK, v_TK):
    sums_KV, total_K = positive(k_TK).T @ v_TK, positive(k_TK).sum(0)
    return positive(q_TK) @ sums_KV / (positive(q_TK) @ total_K)[:, None]


def no_feature_map(q_TK, k_TK, v_TK):
    strength_TT = (q_TK @ k_TK.T).tril()
    return strength_TT @ v_TK / strength_TT.sum(-1, keepdim=True)


def plain_softmax(q_TK, k_TK, v_TK):
    scores_TT = (q_TK @ k_TK.T / math.sqrt(q_TK.shape[-1])).masked_fill(
        distance(len(q_TK)) < 0, -math.inf
    )
    return scores_TT.softmax(-1) @ v_TK


def with_all_pairs(q_TK, k_TK, v_TK):
    strength_TT = (positive(q_TK) @ positive(k_TK).T).tril()
    return strength_TT @ v_TK / strength_TT.sum(-1, keepdim=True)


# 03.5


def attended(q_TK, k_SK):
    return (q_TK @ k_SK.T / math.sqrt(q_TK.shape[-1])).softmax(dim=-1)


def solution_5(q_TK, k_SK, v_SK, block):
    top_T1 = torch.full_like(q_TK[:, :1], -math.inf)
    total_T1, out_TK = torch.zeros_like(top_T1), torch.zeros_like(q_TK)
    for k_block, v_block in zip(k_SK.split(block), v_SK.split(block), strict=True):
        scores = q_TK @ k_block.T * q_TK.shape[-1] ** -0.5
        new_top_T1 = torch.maximum(top_T1, scores.amax(dim=-1, keepdim=True))
        shrink_T1, e = (top_T1 - new_top_T1).exp(), (scores - new_top_T1).exp()
        total_T1 = total_T1 * shrink_T1 + e.sum(dim=-1, keepdim=True)
        out_TK = out_TK * shrink_T1 + e @ v_block
        top_T1 = new_top_T1
    return out_TK / total_T1


def mean_of_blocks(q_TK, k_SK, v_SK, block):
    outputs = [
        attended(q_TK, k_block) @ v_block
        for k_block, v_block in zip(k_SK.split(block), v_SK.split(block), strict=True)
    ]
    return torch.stack(outputs).mean(dim=0)


def drops_the_last_block(q_TK, k_SK, v_SK, block):
    whole = len(k_SK) // block * block
    return attended(q_TK, k_SK[:whole]) @ v_SK[:whole]


def never_rescales(q_TK, k_SK, v_SK, block):
    top_T1 = torch.full_like(q_TK[:, :1], -math.inf)
    total_T1, out_TK = torch.zeros_like(top_T1), torch.zeros_like(q_TK)
    for k_block, v_block in zip(k_SK.split(block), v_SK.split(block), strict=True):
        scores = q_TK @ k_block.T * q_TK.shape[-1] ** -0.5
        top_T1 = torch.maximum(top_T1, scores.amax(dim=-1, keepdim=True))
        e = (scores - top_T1).exp()
        total_T1, out_TK = total_T1 + e.sum(dim=-1, keepdim=True), out_TK + e @ v_block
    return out_TK / total_T1


def without_a_maximum(q_TK, k_SK, v_SK, block):
    e_TS = (q_TK @ k_SK.T * q_TK.shape[-1] ** -0.5).exp()
    return e_TS @ v_SK / e_TS.sum(dim=-1, keepdim=True)


def at_once(q_TK, k_SK, v_SK, block):
    return (q_TK @ k_SK.T * q_TK.shape[-1] ** -0.5).softmax(-1) @ v_SK


def by_torch(q_TK, k_SK, v_SK, block):
    return F.scaled_dot_product_attention(q_TK[None], k_SK[None], v_SK[None])[0]


def query_by_query(q_TK, k_SK, v_SK, block):
    return torch.stack([at_once(q_K[None], k_SK, v_SK, block)[0] for q_K in q_TK])


SOLUTIONS = {
    "03.1": solution_1,
    "03.2": solution_2,
    "03.3": solution_3,
    "03.4": solution_4,
    "03.5": solution_5,
}
ALSO_RIGHT = {"03.1": [bias_as_a_table], "03.3": [by_the_jacobian], "03.4": [step_by_step]}
WRONG = {
    "03.1": [
        (without_slope, "without the slope"),
        (slope_added, "favouring the far past"),
        (slope_before_scale, "before the scale"),
        (unscaled, "not scaled"),
        (both_sides, "open to the future"),
        (wrong_axis, "wrong axis"),
    ],
    "03.2": [
        (no_window, "the far past must be hidden"),
        (no_padding, "padding keys must be hidden"),
        (one_too_wide, "one token too wide"),
        (one_too_narrow, "one token too narrow"),
        (to_both_sides, "open to the future"),
        (hides_rows, "rows of padding queries"),
        (integers, "dtype"),
    ],
    "03.3": [
        (no_slope, "without the slope of the cap"),
        (uncapped_weights, "before the cap"),
        (divided_by_cap, "divided by the cap"),
        (diagonal_only, "diagonal"),
        (cap_before_softmax, "capped first"),
    ],
    "03.4": [
        (not_divided, "not divided"),
        (sees_all, "all tokens"),
        (no_feature_map, "without φ on the queries and keys"),
        (plain_softmax, "that of the softmax"),
        (with_all_pairs, "each pair of tokens"),
    ],
    "03.5": [
        (mean_of_blocks, "mean of the blocks"),
        (drops_the_last_block, "last block"),
        (never_rescales, "not rescaled"),
        (without_a_maximum, "overflows"),
        (at_once, "all 10 keys at once"),
        (by_torch, "all 10 keys at once"),
        (query_by_query, "in the shape (1, 10)"),
    ],
}
