"""Reference solutions and usual wrong answers of chapter 04."""

import math

import torch

# 04.1


def solution_1(x_TD, norm, attention, ffn):
    read_TD = norm(x_TD)
    return x_TD + attention(read_TD) + ffn(read_TD)


def added_by_sum(x_TD, norm, attention, ffn):
    return torch.stack([x_TD, attention(norm(x_TD)), ffn(norm(x_TD))]).sum(0)


def one_after_the_other(x_TD, norm, attention, ffn):
    x_TD = x_TD + attention(norm(x_TD))
    return x_TD + ffn(norm(x_TD))


def no_stream(x_TD, norm, attention, ffn):
    return attention(norm(x_TD)) + ffn(norm(x_TD))


def two_streams(x_TD, norm, attention, ffn):
    return (x_TD + attention(norm(x_TD))) + (x_TD + ffn(norm(x_TD)))


def no_norm(x_TD, norm, attention, ffn):
    return x_TD + attention(x_TD) + ffn(x_TD)


def norm_on_the_stream(x_TD, norm, attention, ffn):
    x_TD = norm(x_TD)
    return x_TD + attention(x_TD) + ffn(x_TD)


# 04.2


def solution_2(x_TD, w_D, dy_TD, eps):
    s_T1 = (x_TD.square().mean(dim=-1, keepdim=True) + eps).rsqrt()
    n_TD, dn_TD = x_TD * s_T1, dy_TD * w_D
    dx_TD = s_T1 * (dn_TD - n_TD * (dn_TD * n_TD).mean(dim=-1, keepdim=True))
    return dx_TD, (dy_TD * n_TD).sum(dim=0)


def direct_only(x_TD, w_D, dy_TD, eps):
    s_T1 = (x_TD.square().mean(dim=-1, keepdim=True) + eps).rsqrt()
    return s_T1 * dy_TD * w_D, solution_2(x_TD, w_D, dy_TD, eps)[1]


def layer_norms(x_TD, w_D, dy_TD, eps):
    s_T1 = (x_TD.square().mean(dim=-1, keepdim=True) + eps).rsqrt()
    dx_TD, dw_D = solution_2(x_TD, w_D, dy_TD, eps)
    return dx_TD - s_T1 * (dy_TD * w_D).mean(dim=-1, keepdim=True), dw_D


def forgets_the_gain(x_TD, w_D, dy_TD, eps):
    dx_TD, _ = solution_2(x_TD, torch.ones_like(w_D), dy_TD, eps)
    return dx_TD, solution_2(x_TD, w_D, dy_TD, eps)[1]


def unsummed(x_TD, w_D, dy_TD, eps):
    s_T1 = (x_TD.square().mean(dim=-1, keepdim=True) + eps).rsqrt()
    return solution_2(x_TD, w_D, dy_TD, eps)[0], dy_TD * x_TD * s_T1


# 04.3


def solution_3(x_TK, base):
    T, K = x_TK.shape
    speed = base ** (-torch.arange(0, K, 2, dtype=x_TK.dtype) / K)
    angle = torch.arange(T, dtype=x_TK.dtype)[:, None] * speed
    a, b = x_TK.chunk(2, dim=-1)
    return torch.cat((a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()), -1)


def by_complex_numbers(x_TK, base):
    a, b = x_TK.chunk(2, dim=-1)
    pair = torch.arange(a.shape[1]) * 2 / x_TK.shape[1]
    angle = torch.outer(torch.arange(len(x_TK)).double(), base ** -pair.double())
    turned = torch.complex(a, b) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((turned.real, turned.imag), dim=-1)


def interleaved(x_TK, base):
    order = torch.arange(x_TK.shape[1]).view(-1, 2).T.flatten()
    out = torch.empty_like(x_TK)
    out[:, order] = solution_3(x_TK[:, order], base)
    return out


def backwards(x_TK, base):
    swapped = torch.cat(x_TK.chunk(2, dim=-1)[::-1], dim=-1)
    turned = solution_3(swapped, base)
    return torch.cat(turned.chunk(2, dim=-1)[::-1], dim=-1)


def from_one(x_TK, base):
    return solution_3(torch.cat((x_TK[:1], x_TK)), base)[1:]


def half_the_exponent(x_TK, base):
    return solution_3(x_TK, base**0.5)


def one_speed(x_TK, base):
    return solution_3(x_TK, 1.0)


# 04.4


def solution_4(d_model, num_heads, num_kv_heads, d_ff):
    kv_width = num_kv_heads * (d_model // num_heads)
    return 2 * d_model * d_model + 2 * d_model * kv_width + 3 * d_model * d_ff + 2 * d_model


def every_head_has_keys(d_model, num_heads, num_kv_heads, d_ff):
    return 4 * d_model * d_model + 3 * d_model * d_ff + 2 * d_model


def two_matrices(d_model, num_heads, num_kv_heads, d_ff):
    return solution_4(d_model, num_heads, num_kv_heads, d_ff) - d_model * d_ff


def no_norms(d_model, num_heads, num_kv_heads, d_ff):
    return solution_4(d_model, num_heads, num_kv_heads, d_ff) - 2 * d_model


def norms_with_bias(d_model, num_heads, num_kv_heads, d_ff):
    return solution_4(d_model, num_heads, num_kv_heads, d_ff) + 2 * d_model


# 04.5


def solution_5(q_HTK, k_GSK, v_GSK):
    group = len(q_HTK) // len(k_GSK)
    k_HSK, v_HSK = (x.repeat_interleave(group, dim=0) for x in (k_GSK, v_GSK))
    return (q_HTK @ k_HSK.mT * q_HTK.shape[-1] ** -0.5).softmax(dim=-1) @ v_HSK


def with_repeat(q_HTK, k_GSK, v_GSK):
    group = len(q_HTK) // len(k_GSK)
    k_HSK, v_HSK = (x.repeat(group, 1, 1) for x in (k_GSK, v_GSK))
    return (q_HTK @ k_HSK.mT * q_HTK.shape[-1] ** -0.5).softmax(dim=-1) @ v_HSK


def first_head_only(q_HTK, k_GSK, v_GSK):
    return solution_5(q_HTK, k_GSK[:1], v_GSK[:1])


def mean_of_heads(q_HTK, k_GSK, v_GSK):
    return solution_5(q_HTK, k_GSK.mean(dim=0)[None], v_GSK.mean(dim=0)[None])


def unscaled_groups(q_HTK, k_GSK, v_GSK):
    return solution_5(q_HTK * q_HTK.shape[-1] ** 0.5, k_GSK, v_GSK)


# 04.6


def solution_6(x_TD, source_SD, source_mask_S, w_q, w_k, w_v, w_o):
    q_TD, k_SD, v_SD = x_TD @ w_q, source_SD @ w_k, source_SD @ w_v
    scores_TS = q_TD @ k_SD.T * q_TD.shape[-1] ** -0.5
    weights_TS = scores_TS.masked_fill(~source_mask_S, -math.inf).softmax(dim=-1)
    return weights_TS @ v_SD @ w_o


def causal_too(x_TD, source_SD, source_mask_S, w_q, w_k, w_v, w_o):
    causal_TS = torch.ones(len(x_TD), len(source_SD), dtype=torch.bool).tril()
    return solution_6(x_TD, source_SD, source_mask_S & causal_TS, w_q, w_k, w_v, w_o)


def reads_padding(x_TD, source_SD, source_mask_S, w_q, w_k, w_v, w_o):
    return solution_6(x_TD, source_SD, torch.ones_like(source_mask_S), w_q, w_k, w_v, w_o)


def mask_inverted(x_TD, source_SD, source_mask_S, w_q, w_k, w_v, w_o):
    return solution_6(x_TD, source_SD, ~source_mask_S, w_q, w_k, w_v, w_o)


def source_asks(x_TD, source_SD, source_mask_S, w_q, w_k, w_v, w_o):
    if len(x_TD) != len(source_SD):
        return solution_6(x_TD, source_SD, source_mask_S, w_q, w_k, w_v, w_o)
    return solution_6(source_SD, x_TD, source_mask_S, w_q, w_k, w_v, w_o)


def reads_itself(x_TD, source_SD, source_mask_S, w_q, w_k, w_v, w_o):
    if len(x_TD) != len(source_SD):
        return solution_6(x_TD, source_SD, source_mask_S, w_q, w_k, w_v, w_o)
    return solution_6(x_TD, x_TD, source_mask_S, w_q, w_k, w_v, w_o)


def no_output_matrix(x_TD, source_SD, source_mask_S, w_q, w_k, w_v, w_o):
    return solution_6(x_TD, source_SD, source_mask_S, w_q, w_k, w_v, torch.eye(len(w_o)).to(w_o))


SOLUTIONS = {
    "04.1": solution_1,
    "04.2": solution_2,
    "04.3": solution_3,
    "04.4": solution_4,
    "04.5": solution_5,
    "04.6": solution_6,
}
ALSO_RIGHT = {"04.1": [added_by_sum], "04.3": [by_complex_numbers]}
WRONG = {
    "04.1": [
        (one_after_the_other, "one after the other"),
        (no_stream, "without the stream"),
        (two_streams, "the stream twice"),
        (no_norm, "without the norm"),
        (norm_on_the_stream, "copy as the stream"),
    ],
    "04.2": [
        (direct_only, "direct path only"),
        (layer_norms, "LayerNorm's"),
        (forgets_the_gain, "without the gain"),
        (unsummed, "not summed"),
    ],
    "04.3": [
        (interleaved, "made of neighbours"),
        (backwards, "the wrong way"),
        (from_one, "positions from 1"),
        (half_the_exponent, "the exponent i / K"),
        (one_speed, "one speed for all pairs"),
    ],
    "04.4": [
        (every_head_has_keys, "every query head"),
        (two_matrices, "SwiGLU has three"),
        (no_norms, "leaves out the two norms"),
        (norms_with_bias, "a gain only"),
    ],
    "04.5": [
        (with_repeat, "made with repeat"),
        (first_head_only, "first key/value head"),
        (mean_of_heads, "mean of the key/value heads"),
        (unscaled_groups, "not scaled"),
    ],
    "04.6": [
        (causal_too, "causal mask"),
        (reads_padding, "padding was read"),
        (mask_inverted, "wrong way round"),
        (source_asks, "turned round"),
        (reads_itself, "self-attention"),
        (no_output_matrix, "output matrix"),
    ],
}
