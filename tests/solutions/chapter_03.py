"""Reference solutions and usual wrong answers of chapter 03."""

import math

import torch
import torch.nn.functional as F

# 03.1


def solution_1(q_TK, k_SK):
    scores_TS = q_TK @ k_SK.T / math.sqrt(q_TK.shape[-1])
    return scores_TS.softmax(dim=-1)


def unscaled(q_TK, k_SK):
    return (q_TK @ k_SK.T).softmax(dim=-1)


def scaled_by_width(q_TK, k_SK):
    return (q_TK @ k_SK.T / q_TK.shape[-1]).softmax(dim=-1)


def wrong_axis(q_TK, k_SK):
    return (q_TK @ k_SK.T / math.sqrt(q_TK.shape[-1])).softmax(dim=0)


def queries_as_columns(q_TK, k_SK):
    return solution_1(q_TK, k_SK).T


def no_softmax(q_TK, k_SK):
    return q_TK @ k_SK.T / math.sqrt(q_TK.shape[-1])


def one_score_per_token(q_TK, k_SK):
    n = min(len(q_TK), len(k_SK))
    return ((q_TK[:n] * k_SK[:n]).sum(-1) / math.sqrt(q_TK.shape[-1])).softmax(dim=-1)


# 03.2


def solution_2(attention_mask_T):
    length = len(attention_mask_T)
    causal_TT = torch.ones(length, length, dtype=torch.bool).tril()
    return causal_TT & attention_mask_T.bool()[None, :]


def causal_only(attention_mask_T):
    length = len(attention_mask_T)
    return torch.ones(length, length, dtype=torch.bool).tril()


def inverted(attention_mask_T):
    return ~solution_2(attention_mask_T)


def sees_the_future(attention_mask_T):
    length = len(attention_mask_T)
    return torch.ones(length, length, dtype=torch.bool).triu() & attention_mask_T.bool()[None, :]


def blind_to_itself(attention_mask_T):
    length = len(attention_mask_T)
    return torch.ones(length, length, dtype=torch.bool).tril(-1) & attention_mask_T.bool()[None, :]


def hides_rows(attention_mask_T):
    length = len(attention_mask_T)
    return torch.ones(length, length, dtype=torch.bool).tril() & attention_mask_T.bool()[:, None]


def integers(attention_mask_T):
    return solution_2(attention_mask_T).long()


# 03.3


def solution_3(weights_TS, d_weights_TS):
    mean_T1 = (weights_TS * d_weights_TS).sum(dim=-1, keepdim=True)
    return weights_TS * (d_weights_TS - mean_T1)


def diagonal_only(weights_TS, d_weights_TS):
    return weights_TS * (1 - weights_TS) * d_weights_TS


def like_exp(weights_TS, d_weights_TS):
    return weights_TS * d_weights_TS


def over_queries(weights_TS, d_weights_TS):
    return weights_TS * (d_weights_TS - (weights_TS * d_weights_TS).sum(dim=-2, keepdim=True))


def plain_mean(weights_TS, d_weights_TS):
    return weights_TS * (d_weights_TS - d_weights_TS.mean(dim=-1, keepdim=True))


# 03.4


def solution_4(q_TK, k_SK, v_SK, d_out_TK):
    scale = q_TK.shape[-1] ** -0.5
    weights_TS = (q_TK @ k_SK.T * scale).softmax(dim=-1)
    d_v_SK = weights_TS.T @ d_out_TK
    d_weights_TS = d_out_TK @ v_SK.T
    d_scores_TS = solution_3(weights_TS, d_weights_TS)
    return d_scores_TS @ k_SK * scale, d_scores_TS.T @ q_TK * scale, d_v_SK


def backward_without_scale(q_TK, k_SK, v_SK, d_out_TK):
    root = q_TK.shape[-1] ** 0.5
    d_q, d_k, d_v = solution_4(q_TK, k_SK, v_SK, d_out_TK)
    return d_q * root, d_k * root, d_v


def backward_with_diagonal(q_TK, k_SK, v_SK, d_out_TK):
    scale = q_TK.shape[-1] ** -0.5
    weights_TS = (q_TK @ k_SK.T * scale).softmax(dim=-1)
    d_scores_TS = diagonal_only(weights_TS, d_out_TK @ v_SK.T)
    return d_scores_TS @ k_SK * scale, d_scores_TS.T @ q_TK * scale, weights_TS.T @ d_out_TK


def backward_without_softmax(q_TK, k_SK, v_SK, d_out_TK):
    scale = q_TK.shape[-1] ** -0.5
    weights_TS = (q_TK @ k_SK.T * scale).softmax(dim=-1)
    d_weights_TS = d_out_TK @ v_SK.T
    return d_weights_TS @ k_SK * scale, d_weights_TS.T @ q_TK * scale, weights_TS.T @ d_out_TK


def backward_with_wrong_dv(q_TK, k_SK, v_SK, d_out_TK):
    d_q, d_k, _ = solution_4(q_TK, k_SK, v_SK, d_out_TK)
    return d_q, d_k, (d_out_TK @ v_SK.T).T @ d_out_TK


# 03.5


def solution_5(x_TD, num_heads):
    return x_TD.unflatten(-1, (num_heads, -1)).transpose(0, 1)


def mixes_tokens(x_TD, num_heads):
    return x_TD.reshape(num_heads, x_TD.shape[0], -1)


def interleaves(x_TD, num_heads):
    return x_TD.reshape(x_TD.shape[0], -1, num_heads).permute(2, 0, 1)


def heads_second(x_TD, num_heads):
    return x_TD.reshape(x_TD.shape[0], num_heads, -1)


# 03.6


def solution_6(q_TK, k_SK, v_SK, block):
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
        solution_1(q_TK, k_block) @ v_block
        for k_block, v_block in zip(k_SK.split(block), v_SK.split(block), strict=True)
    ]
    return torch.stack(outputs).mean(dim=0)


def drops_the_last_block(q_TK, k_SK, v_SK, block):
    whole = len(k_SK) // block * block
    return solution_1(q_TK, k_SK[:whole]) @ v_SK[:whole]


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
    "03.6": solution_6,
}
WRONG = {
    "03.1": [
        (unscaled, "not scaled"),
        (scaled_by_width, "square root of K"),
        (wrong_axis, "wrong axis"),
        (queries_as_columns, "transposed"),
        (no_softmax, "softmax is missing"),
        (one_score_per_token, "shape"),
    ],
    "03.2": [
        (causal_only, "padding keys must be hidden"),
        (inverted, "wrong way round"),
        (sees_the_future, "open to the future"),
        (blind_to_itself, "diagonal"),
        (hides_rows, "rows of padding queries"),
        (integers, "dtype"),
    ],
    "03.3": [
        (diagonal_only, "diagonal of the Jacobian"),
        (like_exp, "subtracted mean"),
        (over_queries, "wrong axis"),
        (plain_mean, "plain mean"),
    ],
    "03.4": [
        (backward_without_scale, "missing the scale"),
        (backward_with_diagonal, "diagonal"),
        (backward_without_softmax, "softmax's backward"),
        (backward_with_wrong_dv, "dv needs the weights"),
    ],
    "03.5": [
        (mixes_tokens, "mixing tokens"),
        (interleaves, "interleaved"),
        (heads_second, "heads come first"),
    ],
    "03.6": [
        (mean_of_blocks, "mean of the blocks"),
        (drops_the_last_block, "last block"),
        (never_rescales, "not rescaled"),
        (without_a_maximum, "overflows"),
        (at_once, "all 10 keys at once"),
        (by_torch, "all 10 keys at once"),
        (query_by_query, "in the shape (1, 10)"),
    ],
}
