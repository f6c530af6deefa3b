"""Checkers of chapter 10: full fine-tuning."""

import builtins
import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from labkit import evaluation
from labkit.notebook.exercises import Fresh, Wrong, compare, exercise, require


@exercise("10.1", title="Which parameters train")
def trained_names(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for blocks in (4, 12):  # with 12, "blocks.1" begins two more names, and 10 sorts before 9
        body = [
            f"blocks.{i}.{part}" for i in range(blocks) for part in ("query.weight", "norm.bias")
        ]
        names = ["embedding.weight", *body, "classifier.weight", "classifier.bias"]
        head = names[-2:]
        for k in (1, 2, 3, 0):
            expected = [n for n in body if int(n.split(".")[1]) >= blocks - k] + head
            answer = attempt(list(names), k)
            require(
                isinstance(answer, list | tuple) and all(isinstance(n, str) for n in answer),
                f"Return a list of names, not {type(answer).__name__}.",
            )
            answer = list(answer)
            if answer == expected:
                continue
            require(
                sorted(answer) != sorted(expected) or len(answer) != len(expected),
                "The right names in another order: keep that of the list.",
            )
            _name_the_fault(answer, expected, head, k)
    return "Right: everything else would get requires_grad_(False)."


def _name_the_fault(answer: list[str], expected: list[str], head: list[str], k: int) -> None:
    """Raise what is wrong with a list of names that train."""
    require(set(head) <= set(answer), "The head is missing: it is new and must train.")
    require("embedding.weight" not in answer, "The embeddings train: they lie below every block.")
    require(k > 0 or answer == head, f"With k = 0 only the head trains, not {answer[:3]} ...")
    lacking = [n for n in expected if n not in answer]
    extra = [n for n in answer if n not in expected]
    first = [n for n in extra if n.startswith(("blocks.0.", "blocks.1."))]
    require(not (first and lacking), "The first blocks train, not the last: count from the end.")
    if lacking:
        raise Wrong(f"{lacking[0]} is missing for k = {k}: the last {k} blocks train.")
    raise Wrong(
        f"{extra[0]} trains for k = {k} and should not: compare block numbers as numbers, "
        "since blocks.1 is also how blocks.10 begins."
    )


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
    require(
        _with_other_hashes(attempt, texts) == sides,
        "The sides follow hash(), which is another one in each process: take hashlib.",
    )
    by_length = len({attempt(" ".join(rng.choices(words, k=12)), 0.2) for _ in range(200)})
    require(by_length == 2, "Texts of one length all land on one side: hash the whole text.")
    return "Right: a text and its copies always share a side, on every machine."


def _with_other_hashes(attempt: Callable[..., Any], texts: list[str]) -> list[Any]:
    """What an attempt answers in a process whose `hash` is another one."""
    own = builtins.hash
    builtins.hash = lambda value: own((own(value), "another process"))
    try:
        return [attempt(text, 0.2) for text in texts]
    finally:
        builtins.hash = own


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
