"""Reference and wrong answers of chapter 17, memory and precision."""

import math

import torch

# --- 17.1 --------------------------------------------------------------------------------------


def state_bytes(total, trainable):
    return [4 * total, trainable * 4, trainable * 8]


def frozen_ones_train_too(total, trainable):
    return 4 * total, 4 * total, 8 * total


def forgets_frozen_weights(total, trainable):
    return 4 * trainable, 4 * trainable, 8 * trainable


def one_moment(total, trainable):
    return 4 * total, 4 * trainable, 4 * trainable


def narrow_weights(total, trainable):
    return 2 * total, 4 * trainable, 8 * trainable


def one_number(total, trainable):
    return 4 * total + 12 * trainable


# --- 17.2 --------------------------------------------------------------------------------------


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


# --- 17.3 --------------------------------------------------------------------------------------


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


# --- 17.4 --------------------------------------------------------------------------------------


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


# --- 17.5 --------------------------------------------------------------------------------------


def largest_batch(peak, capacity, limit):
    low, high = 0, limit + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if peak(middle) <= capacity else (low, middle)
    return low


def tries_all(peak, capacity, limit):
    batch = 0
    while batch < limit and peak(batch + 1) <= capacity:
        batch += 1
    return batch


def strictly_less(peak, capacity, limit):
    low, high = 0, limit + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if peak(middle) < capacity else (low, middle)
    return low


def the_first_that_fails(peak, capacity, limit):
    return largest_batch(peak, capacity, limit) + 1


def never_zero(peak, capacity, limit):
    return max(1, largest_batch(peak, capacity, limit))


SOLUTIONS = {
    "17.1": state_bytes,
    "17.2": round_to_bf16,
    "17.3": largest_loss_scale,
    "17.4": through_8_bits,
    "17.5": largest_batch,
}

WRONG = {
    "17.1": [
        (frozen_ones_train_too, "they have none"),
        (forgets_frozen_weights, "a frozen weight is in memory"),
        (one_moment, "Adam has two"),
        (narrow_weights, "they stay fp32"),
        (one_number, "Return three numbers"),
    ],
    "17.2": [
        (by_torch, "arithmetic alone"),
        (truncates, "cut off"),
        (ties_away, "even mantissa"),
        (six_bits, "6 mantissa bits"),
        (as_fp16, "rounded to fp16"),
    ],
    "17.3": [
        (by_65536, "fp16 ends at 65,504"),
        (rounds_up, "rounded up"),
        (no_power, "not a power of two"),
        (by_the_smallest, "smallest gradient"),
        (signed_maximum, "with its sign"),
    ],
    "17.4": [
        (one_scale, "one scale for all"),
        (truncated_codes, "cut off"),
        (signed_scale, "not the largest size"),
        (zero_by_zero, "block of zeros"),
        (not_flat, "flatten it"),
    ],
    "17.5": [
        (tries_all, "halve the interval"),
        (strictly_less, "one too few"),
        (the_first_that_fails, "beyond the limit"),
        (never_zero, "the answer is 0"),
    ],
}
