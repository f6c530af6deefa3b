"""Reference and wrong answers of chapter 17, memory and precision."""

import math

import torch

# --- 17.1 --------------------------------------------------------------------------------------


def round_to_bf16(x):
    mantissa, exponent = math.frexp(x)
    return math.ldexp(round(mantissa * 256), exponent - 8)


def by_torch(x):
    return float(torch.tensor(x, dtype=torch.float64).to(torch.bfloat16))


def truncates(x):
    mantissa, exponent = math.frexp(x)
    return math.ldexp(math.trunc(mantissa * 256), exponent - 8)


def ties_away(x):
    mantissa, exponent = math.frexp(abs(x))
    return math.copysign(math.ldexp(math.floor(mantissa * 256 + 0.5), exponent - 8), x)


def six_bits(x):
    mantissa, exponent = math.frexp(x)
    return math.ldexp(round(mantissa * 128), exponent - 7)


def as_fp16(x):
    mantissa, exponent = math.frexp(x)
    return math.ldexp(round(mantissa * 2048), exponent - 11)


# --- 17.2 --------------------------------------------------------------------------------------


def largest_loss_scale(gradients):
    scale = 1.0
    while (gradients.abs() * scale * 2).max() <= 65504:
        scale *= 2
    while (gradients.abs() * scale).max() > 65504:
        scale /= 2
    return scale


def rounds_up(gradients):
    return 2.0 ** math.ceil(math.log2(65504 / gradients.abs().max().item()))


def by_65536(gradients):
    return 2.0 ** math.floor(math.log2(65536 / gradients.abs().max().item()))


def no_power(gradients):
    return 65504 / gradients.abs().max().item()


def by_the_smallest(gradients):
    return 2.0 ** math.floor(math.log2(65504 / gradients.abs().min().item()))


def signed_maximum(gradients):
    return 2.0 ** math.floor(math.log2(65504 / gradients.max().item()))


# --- 17.3 --------------------------------------------------------------------------------------


def through_8_bits(values, block):
    out = []
    for part in values.split(block):
        scale = part.abs().max()
        out.append(
            torch.zeros_like(part) if scale == 0 else (part / scale * 127).round() / 127 * scale
        )
    return torch.cat(out)


def one_scale(values, block):
    scale = values.abs().max()
    return (values / scale * 127).round() / 127 * scale


def truncated_codes(values, block):
    rows = values.view(-1, block)
    scale = rows.abs().amax(1, keepdim=True)
    return ((rows / scale * 127).trunc() / 127 * scale).flatten()


def signed_scale(values, block):
    rows = values.view(-1, block)
    scale = rows.amax(1, keepdim=True)
    return ((rows / scale * 127).round() / 127 * scale).flatten()


def zero_by_zero(values, block):
    rows = values.view(-1, block)
    scale = rows.abs().amax(1, keepdim=True)
    return ((rows / scale * 127).round() / 127 * scale).flatten()


def not_flat(values, block):
    return through_8_bits(values, block).view(-1, block)


# --- 17.4 --------------------------------------------------------------------------------------


def two_moments(P, VD, kept, micro_batches=1, step_in_backward=False):
    end = 12 * (P + VD) if step_in_backward else 16 * P + 8 * VD
    return [12 * P + kept + 4 * P * (micro_batches > 1), end]


def always_gradients(P, VD, kept, micro_batches=1, step_in_backward=False):
    return 16 * P + kept, two_moments(P, VD, kept, micro_batches, step_in_backward)[1]


def never_gradients(P, VD, kept, micro_batches=1, step_in_backward=False):
    return 12 * P + kept, two_moments(P, VD, kept, micro_batches, step_in_backward)[1]


def one_for_each(P, VD, kept, micro_batches=1, step_in_backward=False):
    loss = 12 * P + kept + 4 * P * (micro_batches - 1)
    return loss, two_moments(P, VD, kept, micro_batches, step_in_backward)[1]


def all_at_once(P, VD, kept, micro_batches=1, step_in_backward=False):
    loss, end = two_moments(P, VD, kept, micro_batches, step_in_backward)
    return loss, end + kept


def sixteen_bytes(P, VD, kept, micro_batches=1, step_in_backward=False):
    return two_moments(P, VD, kept, micro_batches)[0], 16 * P


def one_summand(P, VD, kept, micro_batches=1, step_in_backward=False):
    loss, end = two_moments(P, VD, kept, micro_batches, step_in_backward)
    return loss, end - 4 * VD


def frees_nothing(P, VD, kept, micro_batches=1, step_in_backward=False):
    return two_moments(P, VD, kept, micro_batches)


def one_peak(P, VD, kept, micro_batches=1, step_in_backward=False):
    return max(two_moments(P, VD, kept, micro_batches, step_in_backward))


SOLUTIONS = {
    "17.1": round_to_bf16,
    "17.2": largest_loss_scale,
    "17.3": through_8_bits,
    "17.4": two_moments,
}

WRONG = {
    "17.1": [
        (by_torch, "arithmetic alone"),
        (truncates, "cut off"),
        (ties_away, "even mantissa"),
        (six_bits, "6 mantissa bits"),
        (as_fp16, "rounded to fp16"),
    ],
    "17.2": [
        (by_65536, "fp16 ends at 65,504"),
        (rounds_up, "rounded up"),
        (no_power, "not a power of two"),
        (by_the_smallest, "smallest gradient"),
        (signed_maximum, "with its sign"),
    ],
    "17.3": [
        (one_scale, "one scale for all"),
        (truncated_codes, "cut off"),
        (signed_scale, "not the largest size"),
        (zero_by_zero, "block of zeros"),
        (not_flat, "flatten it"),
    ],
    "17.4": [
        (always_gradients, "they come after it"),
        (never_gradients, "earlier micro-batches"),
        (one_for_each, "they add up in one"),
        (all_at_once, "it has used them up"),
        (sixteen_bytes, "counting the tied gradient once"),
        (one_summand, "one summand"),
        (frees_nothing, "freeing nothing"),
        (one_peak, "Return two numbers"),
    ],
}
