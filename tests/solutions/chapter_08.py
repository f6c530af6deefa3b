"""Reference solutions and usual wrong answers of chapter 08."""

import math

import numpy as np

# 08.1


def solution_1(tokens_N, T, i):
    chunk = tokens_N[i * T : i * T + T + 1]
    return chunk[:-1], chunk[1:]


def not_shifted(tokens_N, T, i):
    return tokens_N[i * T : i * T + T], tokens_N[i * T : i * T + T]


def shifted_twice(tokens_N, T, i):
    return tokens_N[i * T : i * T + T], tokens_N[i * T + 2 : i * T + T + 2]


def backwards(tokens_N, T, i):
    return tokens_N[i * T + 1 : i * T + T + 1], tokens_N[i * T : i * T + T]


def overlapping(tokens_N, T, i):
    return tokens_N[i : i + T], tokens_N[i + 1 : i + T + 1]


def short(tokens_N, T, i):
    chunk = tokens_N[i * T : (i + 1) * T]
    return chunk[:-1], chunk[1:]


# 08.2


def solution_2(loss, tokens, num_bytes):
    return loss * tokens / (math.log(2) * num_bytes)


def nats_per_byte(loss, tokens, num_bytes):
    return loss * tokens / num_bytes


def bits_per_token(loss, tokens, num_bytes):
    return loss / math.log(2)


def times_ln2(loss, tokens, num_bytes):
    return loss * tokens * math.log(2) / num_bytes


def upside_down(loss, tokens, num_bytes):
    return loss * num_bytes / (math.log(2) * tokens)


# 08.3


def solution_3(step, total, warmup, peak, low):
    if step < warmup:
        return peak * (step + 1) / warmup
    u = (step - warmup) / (total - warmup)
    return low + (peak - low) * (1 + math.cos(math.pi * u)) / 2


def from_zero(step, total, warmup, peak, low):
    return peak * step / warmup if step < warmup else solution_3(step, total, warmup, peak, low)


def jump(step, total, warmup, peak, low):
    if step < warmup:
        return peak * (step + 1) / warmup
    return low + (peak - low) * (1 + math.cos(math.pi * step / total)) / 2


def to_zero(step, total, warmup, peak, low):
    return solution_3(step, total, warmup, peak, 0.0)


def straight(step, total, warmup, peak, low):
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak + (low - peak) * (step - warmup) / (total - warmup)


# 08.4


def solution_4(parameters, tokens, devices, peak, utilisation):
    return 6 * parameters * tokens / (devices * peak * utilisation) / 3600


def seconds(parameters, tokens, devices, peak, utilisation):
    return 6 * parameters * tokens / (devices * peak * utilisation)


def forward_only(parameters, tokens, devices, peak, utilisation):
    return 2 * parameters * tokens / (devices * peak * utilisation) / 3600


def at_peak(parameters, tokens, devices, peak, utilisation):
    return 6 * parameters * tokens / (devices * peak) / 3600


def one_device(parameters, tokens, devices, peak, utilisation):
    return 6 * parameters * tokens / (peak * utilisation) / 3600


# 08.5


def solution_5(step, n, batch_size, seed):
    epoch, place = divmod(step, n // batch_size)
    order = np.random.default_rng([seed, epoch]).permutation(n)
    return order[place * batch_size : (place + 1) * batch_size].tolist()


def reseeded(step, n, batch_size, seed):
    return np.random.default_rng(seed).permutation(n)[:batch_size].tolist()


def fresh_draw(step, n, batch_size, seed):
    return np.random.default_rng([seed, step]).permutation(n)[:batch_size].tolist()


def global_state(step, n, batch_size, seed):
    return np.random.default_rng().permutation(n)[:batch_size].tolist()


def same_epochs(step, n, batch_size, seed):
    place = step % (n // batch_size)
    order = np.random.default_rng(seed).permutation(n)
    return order[place * batch_size : (place + 1) * batch_size].tolist()


def unshuffled(step, n, batch_size, seed):
    place = step % (n // batch_size)
    return list(range(place * batch_size, (place + 1) * batch_size))


# 08.6


def solution_6(sizes_K, losses_K, floor):
    x, y = sizes_K.log(), (losses_K - floor).log()
    x = x - x.mean()
    return float(-(x * y).sum() / (x * x).sum())


def floor_forgotten(sizes_K, losses_K, floor):
    return solution_6(sizes_K, losses_K, 0.0)


def wrong_sign(sizes_K, losses_K, floor):
    return -solution_6(sizes_K, losses_K, floor)


def two_points(sizes_K, losses_K, floor):
    excess = losses_K - floor
    return float(-(excess[-1] / excess[0]).log() / (sizes_K[-1] / sizes_K[0]).log())


def half_logarithm(sizes_K, losses_K, floor):
    return solution_6(sizes_K, (losses_K - floor).exp(), 0.0)


SOLUTIONS = {
    "08.1": solution_1,
    "08.2": solution_2,
    "08.3": solution_3,
    "08.4": solution_4,
    "08.5": solution_5,
    "08.6": solution_6,
}

WRONG = {
    "08.1": [
        (not_shifted, "not shifted"),
        (shifted_twice, "shifted twice"),
        (backwards, "wrong way round"),
        (overlapping, "do not overlap"),
        (short, "one token short"),
    ],
    "08.2": [
        (nats_per_byte, "nats per byte"),
        (bits_per_token, "bits per token"),
        (times_ln2, "multiplied by ln 2"),
        (upside_down, "upside down"),
    ],
    "08.3": [
        (from_zero, "first update"),
        (jump, "jumps"),
        (to_zero, "should end at low"),
        (straight, "straight line"),
    ],
    "08.4": [
        (seconds, "seconds"),
        (forward_only, "forward pass only"),
        (at_peak, "utilisation"),
        (one_device, "one device"),
    ],
    "08.5": [
        (reseeded, "the data repeats"),
        (fresh_draw, "leaves out"),
        (global_state, "answers differently"),
        (same_epochs, "order of the first"),
        (unshuffled, "shuffle"),
    ],
    "08.6": [
        (floor_forgotten, "subtract the floor"),
        (wrong_sign, "with its sign"),
        (two_points, "first and the last point"),
        (half_logarithm, "without the logarithm of the loss"),
    ],
}
