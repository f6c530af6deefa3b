"""Reference solutions and usual wrong answers of chapter 10."""

import hashlib
import random

# 10.1


def solution_1(names, k):
    block = {n: int(n.split(".")[1]) for n in names if n.startswith("blocks.")}
    first = max(block.values()) + 1 - k
    return [n for n in names if n.startswith("classifier.") or block.get(n, -1) >= first]


def without_head(names, k):
    return [n for n in solution_1(names, k) if not n.startswith("classifier")]


def first_blocks(names, k):
    return [n for n in names if n.startswith("classifier") or n.split(".")[1] in map(str, range(k))]


def by_prefix(names, k):
    count = 1 + max(int(n.split(".")[1]) for n in names if n.startswith("blocks."))
    last = ("classifier", *(f"blocks.{i % 10}" for i in range(count - k, count)))
    return [n for n in names if n.startswith(last)]


def with_embedding(names, k):
    return ["embedding.weight", *solution_1(names, k)]


def off_by_one(names, k):
    return solution_1(names, k + 1)


def head_first(names, k):
    return sorted(solution_1(names, k), key=lambda n: not n.startswith("classifier"))


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


def by_pythons_hash(text, test_share):
    number = hash(" ".join(text.lower().split())) % 1000
    return "test" if number < 1000 * test_share else "train"


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


SOLUTIONS = {
    "10.1": solution_1,
    "10.2": solution_2,
    "10.3": solution_3,
    "10.4": solution_4,
}

WRONG = {
    "10.1": [
        (without_head, "The head is missing"),
        (first_blocks, "not the last"),
        (by_prefix, "how blocks.10 begins"),
        (with_embedding, "embeddings train"),
        (off_by_one, "trains for k = 1"),
        (head_first, "another order"),
    ],
    "10.2": [
        (by_chance, "by chance"),
        (without_normalising, "capital letters"),
        (keeps_white_space, "white space"),
        (wrong_way_round, "'train' for 'test'"),
        (by_pythons_hash, "hash()"),
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
}
