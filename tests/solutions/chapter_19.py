"""Reference solutions and usual wrong answers of chapter 19."""

import numpy as np
import torch

# 19.1


def solution_1(w_OI, bits):
    scale_O1 = w_OI.abs().amax(dim=1, keepdim=True) / (2 ** (bits - 1) - 1)
    return (w_OI / scale_O1).round() * scale_O1


def in_float32(w_OI, bits):
    return solution_1(w_OI.float(), bits).numpy()


def row_by_row(w_OI, bits):
    rows = []
    for row in w_OI.tolist():
        scale = max(abs(w) for w in row) / (2 ** (bits - 1) - 1)
        rows.append([round(w / scale) * scale for w in row])
    return rows


def one_scale(w_OI, bits):
    scale = w_OI.abs().max() / (2 ** (bits - 1) - 1)
    return (w_OI / scale).round() * scale


def a_step_too_many(w_OI, bits):
    scale_O1 = w_OI.abs().amax(dim=1, keepdim=True) / 2 ** (bits - 1)
    return (w_OI / scale_O1).round() * scale_O1


def cut_off(w_OI, bits):
    scale_O1 = w_OI.abs().amax(dim=1, keepdim=True) / (2 ** (bits - 1) - 1)
    return (w_OI / scale_O1).trunc() * scale_O1


def codes_alone(w_OI, bits):
    scale_O1 = w_OI.abs().amax(dim=1, keepdim=True) / (2 ** (bits - 1) - 1)
    return (w_OI / scale_O1).round()


def affine_rows(w_OI, bits):
    low, high = w_OI.amin(1, keepdim=True), w_OI.amax(1, keepdim=True)
    step = (high - low) / (2**bits - 1)
    return ((w_OI - low) / step).round() * step + low


# 19.2


def solution_2(n, bits, group, affine, rest):
    return n * (bits + (32 if affine else 16) / group) / 8 + 4 * rest


def in_whole_bytes(n, bits, group, affine, rest):
    return n * bits // 8 + n // group * (4 if affine else 2) + 4 * rest


def without_scales(n, bits, group, affine, rest):
    return n * bits / 8 + 4 * rest


def without_minima(n, bits, group, affine, rest):
    return n * (bits + 16 / group) / 8 + 4 * rest


def always_minima(n, bits, group, affine, rest):
    return n * (bits + 32 / group) / 8 + 4 * rest


def in_bits(n, bits, group, affine, rest):
    return 8 * solution_2(n, bits, group, affine, rest)


def scales_in_fp32(n, bits, group, affine, rest):
    return n * (bits + (64 if affine else 32) / group) / 8 + 4 * rest


# 19.3


def _parts(block):
    return float(block[:2].copy().view(np.float16)[0]), block[2:] & 15, block[2:] >> 4


def solution_3(block):
    d, low, high = _parts(block)
    return d * (np.concatenate([low, high]).astype(np.float32) - 8)


def one_by_one(block):
    d, low, high = _parts(block)
    return [d * (int(code) - 8) for code in [*low, *high]]


def as_a_tensor(block):
    return torch.tensor(solution_3(block))


def without_the_eight(block):
    d, low, high = _parts(block)
    return d * np.concatenate([low, high]).astype(np.float32)


def side_by_side(block):
    d, low, high = _parts(block)
    return d * (np.stack([low, high], 1).reshape(-1).astype(np.float32) - 8)


def high_first(block):
    d, low, high = _parts(block)
    return d * (np.concatenate([high, low]).astype(np.float32) - 8)


def wrapped_around(block):
    d, low, high = _parts(block)
    return d * (np.concatenate([low, high]) - np.uint8(8)).astype(np.float32)


# 19.4


def _second(w_O2, step, correction_O):
    first = (w_O2[:, 0] / step).round() * step
    return torch.stack([first, ((w_O2[:, 1] + correction_O) / step).round() * step], dim=1)


def _error(w_O2, step):
    return w_O2[:, 0] - (w_O2[:, 0] / step).round() * step


def solution_4(w_O2, H_22, step):
    return _second(w_O2, step, _error(w_O2, step) * H_22[0, 1] / H_22[1, 1])


def both_tried(w_O2, H_22, step):
    """The neighbours of the second column on the grid, by the outputs' error."""
    first = (w_O2[:, 0] / step).round() * step
    rows = []
    for (a, b), p in zip(w_O2.tolist(), first.tolist(), strict=True):
        around = [(round(b / step) + k) * step for k in range(-6, 7)]
        rows.append([p, min(around, key=lambda q, a=a, b=b, p=p: float(
            H_22[0, 0] * (a - p) ** 2 + 2 * H_22[0, 1] * (a - p) * (b - q)
            + H_22[1, 1] * (b - q) ** 2))])  # fmt: skip
    return np.array(rows)


def nearest_both(w_O2, H_22, step):
    return (w_O2 / step).round() * step


def sign_turned(w_O2, H_22, step):
    return _second(w_O2, step, -_error(w_O2, step) * H_22[0, 1] / H_22[1, 1])


def by_the_first(w_O2, H_22, step):
    return _second(w_O2, step, _error(w_O2, step) * H_22[0, 1] / H_22[0, 0])


def the_whole_error(w_O2, H_22, step):
    return _second(w_O2, step, _error(w_O2, step))


# 19.5


def _two_of_four(sizes_OI):
    fours = sizes_OI.reshape(-1, 4)
    stays = torch.zeros_like(fours, dtype=torch.bool)
    return stays.scatter(1, fours.topk(2, dim=1).indices, True).view(sizes_OI.shape)


def solution_5(w_OI, H_II):
    return _two_of_four(w_OI.abs() * H_II.diagonal().sqrt())


def as_lists(w_OI, H_II):
    return solution_5(w_OI.float(), H_II.float()).int().tolist()


def by_weights(w_OI, H_II):
    return _two_of_four(w_OI.abs())


def with_signs(w_OI, H_II):
    return _two_of_four(w_OI * H_II.diagonal().sqrt())


def true_goes(w_OI, H_II):
    return ~solution_5(w_OI, H_II)


def half_a_row(w_OI, H_II):
    sizes_OI = w_OI.abs() * H_II.diagonal().sqrt()
    middle = sizes_OI.median(dim=1, keepdim=True).values
    return sizes_OI > middle


def without_the_root(w_OI, H_II):
    return _two_of_four(w_OI.abs() * H_II.diagonal())


SOLUTIONS = {
    "19.1": solution_1,
    "19.2": solution_2,
    "19.3": solution_3,
    "19.4": solution_4,
    "19.5": solution_5,
}

WRONG = {
    "19.1": [
        (one_scale, "each row has its own"),
        (a_step_too_many, "steps above 0"),
        (cut_off, "take the nearest"),
        (codes_alone, "multiply them"),
        (affine_rows, "this one is symmetric"),
    ],
    "19.2": [
        (without_scales, "part of the file"),
        (without_minima, "minima of an affine grid"),
        (always_minima, "no minimum"),
        (in_bits, "a byte has eight"),
        (scales_in_fp32, "16 bits"),
    ],
    "19.3": [
        (without_the_eight, "code 8 is zero"),
        (side_by_side, "low halves come first"),
        (high_first, "high halves first"),
        (wrapped_around, "signed"),
    ],
    "19.4": [
        (nearest_both, "hand the first error on"),
        (sign_turned, "sign turned"),
        (by_the_first, "by H₂₂"),
        (the_whole_error, "H₁₂ / H₂₂"),
    ],
    "19.5": [
        (by_weights, "inputs count"),
        (with_signs, "take their size"),
        (true_goes, "True is for those that stay"),
        (half_a_row, "every four neighbours"),
        (without_the_root, "take its root"),
    ],
}

ALSO_RIGHT = {
    "19.1": [in_float32, row_by_row],
    "19.2": [in_whole_bytes],
    "19.3": [one_by_one, as_a_tensor],
    "19.4": [both_tried],
    "19.5": [as_lists],
}
