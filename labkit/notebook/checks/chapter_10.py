"""Checkers of chapter 10: full fine-tuning."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from labkit import evaluation
from labkit.notebook.exercises import Fresh, Wrong, compare, exercise, require


@exercise("10.1", title="Mean pooling over real tokens")
def masked_mean(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for rows, width in ((3, 4), (5, 2)):
        hidden_BTD = fresh.normal(rows, 7, width)
        lengths_B = fresh.integers(1, 6, rows)
        mask_BT = (torch.arange(7) < lengths_B[:, None]).long()
        weighted_BTD = hidden_BTD * mask_BT[..., None]
        expected = weighted_BTD.sum(1) / mask_BT.sum(1, keepdim=True)
        compare(
            attempt(hidden_BTD, mask_BT),
            expected,
            {
                "the mean over all positions: padding votes too": lambda h=hidden_BTD: h.mean(1),
                "divided by T: count the real tokens, not the positions": (
                    lambda w=weighted_BTD: w.mean(1)
                ),
                "the sum over real tokens: long texts get long vectors; divide by their number": (
                    lambda w=weighted_BTD: w.sum(1)
                ),
                "the first token's vector: that is another kind of pooling": (
                    lambda h=hidden_BTD: h[:, 0]
                ),
                "one count for the whole batch: each text needs its own number of real tokens": (
                    lambda w=weighted_BTD, m=mask_BT: w.sum(1) / m.sum() * len(m)
                ),
            },
        )
    return "Right: what stands in the padding no longer matters."


@exercise("10.2", title="A split that duplicates cannot cross")
def split_of(attempt: Callable[..., Any], fresh: Fresh) -> str:
    rng = random.Random(int(fresh.integers(0, 1 << 30, 1)))
    words = [f"w{rng.randrange(10**6)}" for _ in range(400)]
    texts = [" ".join(rng.choices(words, k=12)) for _ in range(1500)]
    sides = [attempt(text, 0.2) for text in texts]
    other = next((side for side in sides if side not in ("train", "test")), None)
    require(other is None, f"Answer 'train' or 'test', not {other!r}.")
    require(
        [attempt(text, 0.2) for text in texts] == sides,
        "A second call puts some texts on another side: decide by the text, not by chance.",
    )
    backwards = [attempt(text, 0.2) for text in reversed(texts)][::-1]
    require(backwards == sides, "The side depends on the order of the calls; use only the text.")
    share = sides.count("test") / len(sides)
    if not 0.15 < share < 0.25:
        hint = " (Did you take 'train' for 'test'?)" if 0.75 < share < 0.85 else ""
        raise Wrong(f"{share:.0%} of the texts are test where 20% were asked for{hint}.")
    wider = [attempt(text, 0.5) for text in texts]
    require(
        all(w == "test" for s, w in zip(sides, wider, strict=True) if s == "test"),
        "A larger test share moves texts out of the test set: compare one fixed number in [0, 1) "
        "with the share.",
    )
    for name, twin in (
        ("in capital letters", str.upper),
        ("with other white space", lambda t: "  " + t.replace(" ", "\n ") + "\n"),
    ):
        moved = sum(attempt(twin(t), 0.2) != s for t, s in zip(texts, sides, strict=True))
        require(
            moved == 0,
            f"{moved} of {len(texts)} copies {name} land on the other side than their originals: "
            "normalise before you hash.",
        )
    by_length = len({attempt(" ".join(rng.choices(words, k=12)), 0.2) for _ in range(200)})
    require(by_length == 2, "Texts of one length all land on one side: hash the whole text.")
    return "Right: a text and its copies always share a side, on every machine."


@exercise("10.3", title="Macro-F1")
def macro_f1(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for classes, examples in ((3, 67), (5, 131)):
        predicted, labels = _predictions(fresh, classes, examples)
        table = evaluation.per_class(evaluation.confusion(predicted, labels, classes))
        precision, recall, support = table["precision"], table["recall"], table["support"]
        mean_p, mean_r = precision.mean(), recall.mean()
        compare(
            attempt(predicted, labels, classes),
            float(table["f1"].mean()),
            {
                "micro-F1, which is the accuracy: average the classes' F1 instead": (
                    evaluation.accuracy(predicted, labels)
                ),
                "weighted by class size: in macro-F1 each class weighs the same": float(
                    (table["f1"] * support).sum() / support.sum()
                ),
                "the macro recall: F1 needs precision, too": float(mean_r),
                "the macro precision: F1 needs recall, too": float(mean_p),
                "the F1 of mean precision and mean recall: take each class's F1 first": float(
                    2 * mean_p * mean_r / (mean_p + mean_r)
                ),
                "the mean of precision and recall: F1 is their harmonic mean": float(
                    ((precision + recall) / 2).mean()
                ),
            },
            what="Your macro-F1",
        )
    nothing = attempt(torch.tensor([0, 0, 0, 0]), torch.tensor([0, 0, 1, 1]), 2)
    compare(nothing, (2 * 2 / 6) / 2, what="Macro-F1 when class 1 is never predicted")
    return "Right: every class has one vote."


def _predictions(fresh: Fresh, classes: int, examples: int) -> tuple[Tensor, Tensor]:
    """Predictions and labels for which accuracy and weighted F1 differ visibly."""
    while True:
        labels = fresh.integers(0, classes, examples)
        labels[: examples // 2] = 0  # one class is frequent
        noise = fresh.integers(0, classes, examples) * fresh.integers(0, 2, examples)
        predicted = torch.where(fresh.uniform(examples) < 0.7, labels, noise)
        predicted[:classes] = labels[:classes] = torch.arange(classes)  # every class occurs
        table = evaluation.per_class(evaluation.confusion(predicted, labels, classes))
        weighted = (table["f1"] * table["support"]).sum() / examples
        if abs(weighted - evaluation.accuracy(predicted, labels)) > 1e-3:
            return predicted, labels


@exercise("10.4", title="Expected calibration error")
def ece(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for bins in (10, 5):
        confidence = fresh.uniform(400, low=0.21, high=0.999)
        # Too modest below 0.6, too sure above: signed gaps cancel.
        truth = torch.where(confidence < 0.6, confidence + 0.3, confidence - 0.3)
        right = (fresh.uniform(400) < truth).double()
        which = (confidence * bins).ceil().long().clamp(1, bins) - 1
        share, gaps = [], []
        for b in range(bins):
            inside = which == b
            if inside.any():
                share.append(inside.double().mean())
                gaps.append((right[inside].mean() - confidence[inside].mean()).abs())
        total = float((right - confidence).mean())
        shares, gap_bins = torch.stack(share), torch.stack(gaps)
        compare(
            attempt(confidence, right, bins),
            float((shares * gap_bins).sum()),
            {
                "the plain mean over bins: weigh each bin by its share of the examples": float(
                    gap_bins.mean()
                ),
                "one gap for all examples, so that over- and underconfidence cancel: take the "
                "absolute gap bin by bin": abs(total),
                "signed, so that over- and underconfidence cancel: take the absolute gap bin by "
                "bin": total,
                "signed, so that over- and underconfidence cancel: take the absolute gap in every "
                "bin": -total,
                "the largest gap, which is called maximum calibration error": float(gap_bins.max()),
                "|right - confidence| example by example: average inside each bin first": float(
                    (right - confidence).abs().mean()
                ),
            },
            what="Your ECE",
        )
    return "Right: 0 would mean that 80% sure is right 80 times in 100."


@exercise("10.5", title="The price of padding")
def padding_share(attempt: Callable[..., Any], fresh: Fresh) -> str:
    def share(lengths: list[int], size: int) -> float:
        batches = [lengths[i : i + size] for i in range(0, len(lengths), size)]
        slots = sum(len(batch) * max(batch) for batch in batches)
        return 1 - sum(lengths) / slots

    for count, size in ((24, 4), (50, 8)):  # the last batch of the second is smaller
        lengths = fresh.integers(3, 200, count).tolist()
        batches = [lengths[i : i + size] for i in range(0, count, size)]
        compare(
            attempt(lengths, size),
            share(lengths, size),
            {
                "for padding everything to the longest text of all: pad each batch to its own": (
                    1 - sum(lengths) / (max(lengths) * count)
                ),
                "the share of real tokens: padding is the rest": 1 - share(lengths, size),
                "the mean of the batches' shares: add up slots first, then divide once": float(
                    np.mean([1 - sum(b) / (len(b) * max(b)) for b in batches])
                ),
                "padding per real token: divide by all slots instead": (
                    share(lengths, size) / (1 - share(lengths, size))
                ),
                "for lengths that you sorted: take the batches in the order given": (
                    share(sorted(lengths), size)
                ),
                "for a full last batch: it holds fewer texts": (
                    1 - sum(lengths) / sum(size * max(batch) for batch in batches)
                ),
            },
            what="Your share",
        )
    return "Right. Now try it on sorted lengths: that is what length bucketing saves."


@exercise("10.6", title="Warm up, then decay")
def learning_rate(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for warmup, steps in ((4, 20), (10, 100)):
        peak = float(fresh.uniform(1, low=1e-5, high=1e-4))

        def rate(step: int, peak: float = peak, warmup: int = warmup, steps: int = steps) -> float:
            return peak * min((step + 1) / warmup, (steps - step) / (steps - warmup))

        def values(f: Callable[[int], float], steps: int = steps) -> Tensor:
            return torch.tensor([float(f(step)) for step in range(steps)], dtype=torch.float64)

        compare(
            values(lambda s, p=peak, w=warmup, n=steps: attempt(s, p, w, n)) / peak,
            values(rate) / peak,
            {
                "0 at the first step, which is wasted: warm up with (step + 1) / warmup": values(
                    lambda s, w=warmup, n=steps: min(s / w, (n - s) / (n - w))
                ),
                "never warmed up: the first steps need a small rate": values(
                    lambda s, w=warmup, n=steps: min(1, (n - s) / (n - w))
                ),
                "never decayed after the warm-up": values(lambda s, w=warmup: min((s + 1) / w, 1)),
                "decayed from step 0, so that it jumps at the end of the warm-up: start the decay "
                "where the warm-up ends": values(
                    lambda s, w=warmup, n=steps: (s + 1) / w if s < w else (n - s) / n
                ),
                "the product of both ramps: it never reaches the peak": values(
                    lambda s, w=warmup, n=steps: min((s + 1) / w, 1) * (n - s) / n
                ),
            },
            what="The rate, relative to the peak,",
        )
    return "Right: small while Adam's averages are young, small again when little is left to learn."
