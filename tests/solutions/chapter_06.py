"""Reference and wrong answers of chapter 06, optimization."""

import math

import torch

# --- 06.1 --------------------------------------------------------------------------------------


def adam_update(w, g, m, v, t, rate, betas, eps):
    m = m + (1 - betas[0]) * (g - m)
    v = v + (1 - betas[1]) * (g * g - v)
    scale = math.sqrt(1 - betas[1] ** t) / (1 - betas[0] ** t)
    return w - rate * scale * m / (v.sqrt() + eps * math.sqrt(1 - betas[1] ** t)), m, v


def _moments(g, m, v, betas):
    return betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g**2


def no_correction(w, g, m, v, t, rate, betas, eps):
    m, v = _moments(g, m, v, betas)
    return w - rate * m / (v.sqrt() + eps), m, v


def eps_inside_the_root(w, g, m, v, t, rate, betas, eps):
    m, v = _moments(g, m, v, betas)
    m_hat, v_hat = m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)
    return w - rate * m_hat / torch.sqrt(v_hat + eps), m, v


def counts_from_zero(w, g, m, v, t, rate, betas, eps):
    return adam_update(w, g, m, v, t + 1, rate, betas, eps)


def returns_the_hats(w, g, m, v, t, rate, betas, eps):
    new, m, v = adam_update(w, g, m, v, t, rate, betas, eps)
    return new, m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)


def v_of_gradients(w, g, m, v, t, rate, betas, eps):
    new, m, _ = adam_update(w, g, m, v, t, rate, betas, eps)
    return new, m, betas[1] * v + (1 - betas[1]) * g


def only_m_corrected(w, g, m, v, t, rate, betas, eps):
    m, v = _moments(g, m, v, betas)
    return w - rate * m / (1 - betas[0] ** t) / (v.sqrt() + eps), m, v


def only_the_weight(w, g, m, v, t, rate, betas, eps):
    return adam_update(w, g, m, v, t, rate, betas, eps)[0]


# --- 06.2 --------------------------------------------------------------------------------------


def adamw_weights(weights, steps, rate, decay):
    new = []
    for w, s in zip(weights, steps, strict=True):
        new.append(w - rate * (s + decay * w) if w.ndim > 1 else w - rate * s)
    return new


def decays_everything(weights, steps, rate, decay):
    return [w * (1 - rate * decay) - rate * s for w, s in zip(weights, steps, strict=True)]


def decays_by_lambda(weights, steps, rate, decay):
    pairs = zip(weights, steps, strict=True)
    return [w * (1 - (decay if w.ndim > 1 else 0)) - rate * s for w, s in pairs]


def decays_after_the_step(weights, steps, rate, decay):
    pairs = zip(weights, steps, strict=True)
    return [(w - rate * s) * (1 - (rate * decay if w.ndim > 1 else 0)) for w, s in pairs]


def no_decay(weights, steps, rate, decay):
    return [w - rate * s for w, s in zip(weights, steps, strict=True)]


# --- 06.3 --------------------------------------------------------------------------------------


def rate_at(step, peak, warmup, total, floor):
    if step < warmup:
        return peak * (step + 1) / warmup
    half = 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))
    return floor * peak + (peak - floor * peak) * half


def starts_at_zero(step, peak, warmup, total, floor):
    return peak * step / warmup if step < warmup else rate_at(step, peak, warmup, total, floor)


def cosine_from_zero(step, peak, warmup, total, floor):
    if step < warmup:
        return peak * (step + 1) / warmup
    return rate_at(step, peak, 0, total, floor)


def falls_to_zero(step, peak, warmup, total, floor):
    if step < warmup:
        return peak * (step + 1) / warmup
    return rate_at(step, peak, warmup, total, 0.0)


def straight_line(step, peak, warmup, total, floor):
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (floor + (1 - floor) * (1 - (step - warmup) / (total - warmup)))


# --- 06.4 --------------------------------------------------------------------------------------


def clipped(gradients, max_norm):
    norm = torch.cat([g.flatten() for g in gradients]).norm()
    return [g * max_norm / norm for g in gradients] if norm > max_norm else list(gradients)


def per_tensor(gradients, max_norm):
    return [g * min(1.0, max_norm / float(g.norm())) for g in gradients]


def stretches_short_ones(gradients, max_norm):
    norm = torch.cat([g.flatten() for g in gradients]).norm()
    return [g * max_norm / norm for g in gradients]


def sum_of_norms(gradients, max_norm):
    norm = sum(float(g.norm()) for g in gradients)
    return [g * min(1.0, max_norm / norm) for g in gradients]


def by_entry(gradients, max_norm):
    return [g.clamp(-max_norm, max_norm) for g in gradients]


def squared_norm(gradients, max_norm):
    norm = sum(float(g.square().sum()) for g in gradients)
    return [g * min(1.0, max_norm / norm) for g in gradients]


# --- 06.5 --------------------------------------------------------------------------------------


def update_gradient(micro_batches):
    return torch.stack([g for g, _ in micro_batches]).sum(0) / sum(n for _, n in micro_batches)


def mean_of_means(micro_batches):
    return sum(g / n for g, n in micro_batches) / len(micro_batches)


def by_the_micro_batches(micro_batches):
    return sum(g for g, _ in micro_batches) / len(micro_batches)


def only_the_last(micro_batches):
    g, n = micro_batches[-1]
    return g / n


def weighted_means(micro_batches):
    """Right, but for a micro-batch without targets."""
    total = sum(n for _, n in micro_batches)
    return sum(g / n * (n / total) for g, n in map(_as_tensor, micro_batches))


def _as_tensor(pair):
    return pair[0], torch.tensor(float(pair[1]), dtype=torch.float64)


# --- 06.6 --------------------------------------------------------------------------------------


def noise_scale(gradients_NP):
    n = len(gradients_NP)
    trace = gradients_NP.var(0).sum()
    return float(trace / (gradients_NP.mean(0).square().sum() - trace / n))


def signal_with_noise(gradients_NP):
    return gradients_NP.var(0).sum() / gradients_NP.mean(0).square().sum()


def biased_variance(gradients_NP):
    trace = gradients_NP.var(0).sum()
    signal = gradients_NP.mean(0).square().sum() - trace / len(gradients_NP)
    return gradients_NP.var(0, unbiased=False).sum() / signal


def biased_in_both(gradients_NP):
    return gradients_NP.var(0, unbiased=False).sum() / gradients_NP.mean(0).square().sum()


def upside_down(gradients_NP):
    return 1 / noise_scale(gradients_NP)


SOLUTIONS = {
    "06.1": adam_update,
    "06.2": adamw_weights,
    "06.3": rate_at,
    "06.4": clipped,
    "06.5": update_gradient,
    "06.6": noise_scale,
}

WRONG = {
    "06.1": [
        (no_correction, "without the bias correction"),
        (eps_inside_the_root, "eps inside the root"),
        (counts_from_zero, "one update late"),
        (returns_the_hats, "keep the plain one"),
        (v_of_gradients, "mean of their squares"),
        (only_m_corrected, "only m was corrected"),
        (only_the_weight, "Return three tensors"),
    ],
    "06.2": [
        (decays_everything, "decaying the vectors too"),
        (decays_by_lambda, "by lambda alone"),
        (decays_after_the_step, "beside the step"),
        (no_decay, "without any decay"),
    ],
    "06.3": [
        (starts_at_zero, "0 at the first update"),
        (cosine_from_zero, "before the warm-up ended"),
        (falls_to_zero, "falling to 0"),
        (straight_line, "straight line"),
    ],
    "06.4": [
        (per_tensor, "tensor by tensor"),
        (stretches_short_ones, "stretched"),
        (sum_of_norms, "sum of the norms"),
        (by_entry, "entry by entry"),
        (squared_norm, "take the root"),
    ],
    "06.5": [
        (mean_of_means, "mean of the means"),
        (by_the_micro_batches, "number of micro-batches"),
        (only_the_last, "last micro-batch alone"),
        (weighted_means, "add first, divide at the end"),
    ],
    "06.6": [
        (signal_with_noise, "still holds 1/N of the noise"),
        (biased_variance, "not by N"),
        (biased_in_both, "biased in both"),
        (upside_down, "upside down"),
    ],
}
