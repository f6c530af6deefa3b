"""Reference solutions and usual wrong answers of chapter 10."""

import hashlib
import random

# 10.1


def solution_1(hidden_BTD, mask_BT):
    weights_BT1 = mask_BT.unsqueeze(-1)
    return (hidden_BTD * weights_BT1).sum(1) / weights_BT1.sum(1)


def plain_mean(hidden_BTD, mask_BT):
    return hidden_BTD.mean(1)


def divided_by_positions(hidden_BTD, mask_BT):
    return (hidden_BTD * mask_BT.unsqueeze(-1)).mean(1)


def only_a_sum(hidden_BTD, mask_BT):
    return (hidden_BTD * mask_BT.unsqueeze(-1)).sum(1)


def first_token(hidden_BTD, mask_BT):
    return hidden_BTD[:, 0]


# 10.2


def solution_2(text, test_share):
    normal = " ".join(text.lower().split())
    digest = hashlib.sha256(normal.encode()).digest()
    return "test" if int.from_bytes(digest[:8], "big") / 2**64 < test_share else "train"


def by_chance(text, test_share):
    return "test" if random.random() < test_share else "train"


def without_normalising(text, test_share):
    digest = hashlib.sha256(text.encode()).digest()
    return "test" if int.from_bytes(digest[:8], "big") / 2**64 < test_share else "train"


def keeps_white_space(text, test_share):
    digest = hashlib.sha256(text.lower().encode()).digest()
    return "test" if int.from_bytes(digest[:8], "big") / 2**64 < test_share else "train"


def wrong_way_round(text, test_share):
    return "train" if solution_2(text, test_share) == "test" else "test"


# 10.3


def solution_3(predicted_N, labels_N, num_classes):
    scores = []
    for c in range(num_classes):
        right = ((predicted_N == c) & (labels_N == c)).sum().item()
        counted = ((predicted_N == c).sum() + (labels_N == c).sum()).item()
        scores.append(2 * right / counted)
    return sum(scores) / num_classes


def only_accuracy(predicted_N, labels_N, num_classes):
    return (predicted_N == labels_N).double().mean()


def weighted_f1(predicted_N, labels_N, num_classes):
    total = 0.0
    for c in range(num_classes):
        right = ((predicted_N == c) & (labels_N == c)).sum().item()
        true = (labels_N == c).sum().item()
        total += 2 * right / ((predicted_N == c).sum().item() + true) * true / len(labels_N)
    return total


def mean_recall(predicted_N, labels_N, num_classes):
    recalls = [(predicted_N[labels_N == c] == c).double().mean() for c in range(num_classes)]
    return sum(recalls) / num_classes


# 10.4


def solution_4(confidence_N, right_N, bins):
    total = 0.0
    for b in range(bins):
        inside = (confidence_N > b / bins) & (confidence_N <= (b + 1) / bins)
        if inside.any():
            gap = (right_N[inside].mean() - confidence_N[inside].mean()).abs()
            total += inside.double().mean() * gap
    return total


def unweighted_bins(confidence_N, right_N, bins):
    gaps = []
    for b in range(bins):
        inside = (confidence_N > b / bins) & (confidence_N <= (b + 1) / bins)
        if inside.any():
            gaps.append((right_N[inside].mean() - confidence_N[inside].mean()).abs())
    return sum(gaps) / len(gaps)


def signed_gaps(confidence_N, right_N, bins):
    return (right_N - confidence_N).mean()


def no_bins(confidence_N, right_N, bins):
    return (right_N.mean() - confidence_N.mean()).abs()


def example_by_example(confidence_N, right_N, bins):
    return (right_N - confidence_N).abs().mean()


# 10.5


def solution_5(lengths, batch_size):
    slots = 0
    for start in range(0, len(lengths), batch_size):
        batch = lengths[start : start + batch_size]
        slots += len(batch) * max(batch)
    return 1 - sum(lengths) / slots


def pads_to_the_longest_of_all(lengths, batch_size):
    return 1 - sum(lengths) / (max(lengths) * len(lengths))


def share_of_real_tokens(lengths, batch_size):
    return 1 - solution_5(lengths, batch_size)


def sorts_first(lengths, batch_size):
    return solution_5(sorted(lengths), batch_size)


def padding_per_real_token(lengths, batch_size):
    share = solution_5(lengths, batch_size)
    return share / (1 - share)


# 10.6


def solution_6(step, peak, warmup, steps):
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (steps - step) / (steps - warmup)


def starts_at_zero(step, peak, warmup, steps):
    return peak * min(step / warmup, (steps - step) / (steps - warmup))


def never_decays(step, peak, warmup, steps):
    return peak * min((step + 1) / warmup, 1)


def no_warmup(step, peak, warmup, steps):
    return peak * min(1, (steps - step) / (steps - warmup))


def jumps(step, peak, warmup, steps):
    return peak * ((step + 1) / warmup if step < warmup else (steps - step) / steps)


SOLUTIONS = {
    "10.1": solution_1,
    "10.2": solution_2,
    "10.3": solution_3,
    "10.4": solution_4,
    "10.5": solution_5,
    "10.6": solution_6,
}

WRONG = {
    "10.1": [
        (plain_mean, "padding votes too"),
        (divided_by_positions, "divided by T"),
        (only_a_sum, "sum over real tokens"),
        (first_token, "first token"),
    ],
    "10.2": [
        (by_chance, "by chance"),
        (without_normalising, "capital letters"),
        (keeps_white_space, "white space"),
        (wrong_way_round, "'train' for 'test'"),
    ],
    "10.3": [
        (only_accuracy, "micro-F1"),
        (weighted_f1, "weighted by class size"),
        (mean_recall, "macro recall"),
    ],
    "10.4": [
        (unweighted_bins, "weigh each bin"),
        (signed_gaps, "underconfidence cancel"),
        (no_bins, "bin by bin"),
        (example_by_example, "inside each bin first"),
    ],
    "10.5": [
        (pads_to_the_longest_of_all, "pad each batch to its own"),
        (share_of_real_tokens, "share of real tokens"),
        (sorts_first, "in the order given"),
        (padding_per_real_token, "divide by all slots"),
    ],
    "10.6": [
        (starts_at_zero, "0 at the first step"),
        (never_decays, "never decayed"),
        (no_warmup, "never warmed up"),
        (jumps, "jumps"),
    ],
}
