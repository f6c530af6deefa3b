"""Reference and wrong answers of chapter 01, language models."""

import math

import torch

# --- 01.1 --------------------------------------------------------------------------------------


def text_log_probability(next_probabilities, ids):
    return float(sum(math.log(next_probabilities(ids[:t])[ids[t]]) for t in range(len(ids))))


def not_a_logarithm(next_probabilities, ids):
    return math.prod(float(next_probabilities(ids[:t])[w]) for t, w in enumerate(ids))


def sees_the_answer(next_probabilities, ids):
    return sum(next_probabilities(ids[: t + 1])[w].log() for t, w in enumerate(ids))


def skips_the_first(next_probabilities, ids):
    return sum(next_probabilities(ids[:t])[w].log() for t, w in enumerate(ids) if t)


def only_a_bigram(next_probabilities, ids):
    return sum(next_probabilities(ids[max(0, t - 1) : t])[w].log() for t, w in enumerate(ids))


# --- 01.2 --------------------------------------------------------------------------------------


def add_k(counts_V, k):
    raised = counts_V + k
    return raised / raised.sum()


def k_below_only(counts_V, k):
    return counts_V / (counts_V.sum() + k * len(counts_V))


def k_once(counts_V, k):
    return (counts_V + k) / (counts_V.sum() + k)


def seen_types_only(counts_V, k):
    return (counts_V + k) / (counts_V.sum() + k * (counts_V > 0).sum())


# --- 01.3 --------------------------------------------------------------------------------------


def to_bits_per_byte(perplexity, tokens, num_bytes):
    return tokens * math.log(perplexity) / (math.log(2) * num_bytes)


def in_nats(perplexity, tokens, num_bytes):
    return tokens * math.log(perplexity) / num_bytes


def per_token(perplexity, tokens, num_bytes):
    return math.log2(perplexity)


def no_logarithm(perplexity, tokens, num_bytes):
    return perplexity * tokens / num_bytes


# --- 01.4 --------------------------------------------------------------------------------------


def continuation(tokens_N, vocab_size):
    pairs = set(zip(tokens_N[:-1].tolist(), tokens_N[1:].tolist(), strict=True))
    counts = torch.zeros(vocab_size, dtype=torch.float64)
    for _, w in pairs:
        counts[w] += 1
    return counts / len(pairs)


def frequency(tokens_N, vocab_size):
    return torch.bincount(tokens_N, minlength=vocab_size).double() / len(tokens_N)


def successors(tokens_N, vocab_size):
    return continuation(tokens_N.flip(0), vocab_size)


def over_places(tokens_N, vocab_size):
    pairs = set(zip(tokens_N[:-1].tolist(), tokens_N[1:].tolist(), strict=True))
    return continuation(tokens_N, vocab_size) * len(pairs) / (len(tokens_N) - 1)


# --- 01.5 --------------------------------------------------------------------------------------


def discounted(counts_V, lower_V, discount):
    total = counts_V.sum()
    if total == 0:
        return lower_V
    taken = torch.minimum(counts_V, torch.tensor(discount, dtype=counts_V.dtype))
    return (counts_V - taken) / total + taken.sum() / total * lower_V


def negative_counts(counts_V, lower_V, discount):
    total = counts_V.sum()
    return (counts_V - discount) / total + discount * (counts_V > 0).sum() / total * lower_V


def one_discount_handed_on(counts_V, lower_V, discount):
    total = counts_V.sum()
    return (counts_V - discount).clamp(min=0) / total + discount / total * lower_V


def nothing_handed_on(counts_V, lower_V, discount):
    return (counts_V - discount).clamp(min=0) / counts_V.sum()


def divides_by_zero(counts_V, lower_V, discount):
    total = counts_V.sum()
    taken = torch.minimum(counts_V, torch.tensor(discount, dtype=counts_V.dtype))
    return (counts_V - taken) / total + taken.sum() / total * lower_V


# --- 01.6 --------------------------------------------------------------------------------------


def lstm_step(x_D, h_H, c_H, W, U, b):
    i, f, g, o = (W @ x_D + U @ h_H + b).chunk(4)
    c_H = torch.sigmoid(f) * c_H + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c_H), c_H


def gates_exchanged(x_D, h_H, c_H, W, U, b):
    f, i, g, o = (W @ x_D + U @ h_H + b).chunk(4)
    c_H = torch.sigmoid(f) * c_H + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c_H), c_H


def sigmoid_candidate(x_D, h_H, c_H, W, U, b):
    i, f, g, o = torch.sigmoid(W @ x_D + U @ h_H + b).chunk(4)
    c_H = f * c_H + i * g
    return o * torch.tanh(c_H), c_H


def naked_output(x_D, h_H, c_H, W, U, b):
    _, c_new = lstm_step(x_D, h_H, c_H, W, U, b)
    o = torch.sigmoid((W @ x_D + U @ h_H + b).chunk(4)[3])
    return o * c_new, c_new


def only_h(x_D, h_H, c_H, W, U, b):
    return lstm_step(x_D, h_H, c_H, W, U, b)[0]


SOLUTIONS = {
    "01.1": text_log_probability,
    "01.2": add_k,
    "01.3": to_bits_per_byte,
    "01.4": continuation,
    "01.5": discounted,
    "01.6": lstm_step,
}

WRONG = {
    "01.1": [
        (not_a_logarithm, "return its logarithm"),
        (sees_the_answer, "with the answer in sight"),
        (skips_the_first, "without the first token"),
        (only_a_bigram, "read from the last token alone"),
    ],
    "01.2": [
        (k_below_only, "unseen tokens still have probability 0"),
        (k_once, "all V tokens were raised"),
        (seen_types_only, "with the number of seen tokens for V"),
    ],
    "01.3": [
        (in_nats, "to base 2"),
        (per_token, "a token is not a byte"),
        (no_logarithm, "its logarithm is"),
    ],
    "01.4": [
        (frequency, "plain frequency"),
        (successors, "look at what stands before it"),
        (over_places, "divided by the number of places"),
    ],
    "01.5": [
        (negative_counts, "nothing can be taken from a count of 0"),
        (one_discount_handed_on, "D times their number"),
        (nothing_handed_on, "must be handed on"),
        (divides_by_zero, "the total is 0"),
    ],
    "01.6": [
        (gates_exchanged, "input and forget gate exchanged"),
        (sigmoid_candidate, "a candidate may be negative"),
        (naked_output, "h is o * tanh(c)"),
        (only_h, "Return a pair"),
    ],
}
