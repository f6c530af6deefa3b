"""Held-out evaluation: one number, its uncertainty, and the examples behind it.

    model, batches ──► language_model ──► nats, tokens ──► perplexity, bits_per_byte
                  └──► classify ──► logits_NC, labels_N ──► accuracy, macro_f1, confusion
                                                       ├──► calibration, fit_temperature
                                                       ├──► bootstrap_interval
                                                       └──► error_table

Only `language_model` and `classify` touch a model: they switch dropout and gradients off and put
every module back as it was. All the rest are pure functions of arrays or tensors.

Legend: N examples, C classes, B batch, T time, V vocabulary.

Sources: Guo et al. 2017, "On Calibration of Modern Neural Networks" (ECE, temperature);
Efron 1979, "Bootstrap Methods: Another Look at the Jackknife".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit import runtime
from labkit.errors import LabError

if TYPE_CHECKING:
    import pandas as pd

IGNORE_INDEX = -100


def perplexity(nats: float, tokens: int) -> float:
    """Perplexity, exp(nats / tokens): how many equally likely tokens the model hesitates between.

    It depends on the tokenizer: compare models of different vocabularies by `bits_per_byte`.

    Args:
        nats: summed negative log-likelihood of the text, natural logarithm, >= 0.
        tokens: number of predicted tokens, >= 1.

    >>> round(perplexity(nats=3 * math.log(8), tokens=3), 6)
    8.0
    """
    return math.exp(nats / _positive(tokens, "tokens"))


def bits_per_byte(nats: float, num_bytes: int) -> float:
    """Bits per byte, nats / (ln 2 * bytes): the size of the text if the model compressed it.

    Args:
        nats: summed negative log-likelihood of the text, natural logarithm, >= 0.
        num_bytes: length of the same text in UTF-8 bytes, >= 1.

    >>> round(bits_per_byte(nats=10 * math.log(256), num_bytes=10), 6)
    8.0
    """
    return nats / (math.log(2) * _positive(num_bytes, "num_bytes"))


class LanguageModelScore(NamedTuple):
    """Summed loss of a language model on a text."""

    nats: float
    tokens: int

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood, nats per token."""
        return self.nats / _positive(self.tokens, "tokens")

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return perplexity(self.nats, self.tokens)


class Classified(NamedTuple):
    """What a classifier said (float32 logits, on the CPU), beside the truth."""

    logits_NC: Tensor
    labels_N: Tensor

    @property
    def predicted_N(self) -> Tensor:
        """The most likely class of each example."""
        return self.logits_NC.argmax(-1)

    @property
    def probabilities_NC(self) -> Tensor:
        """softmax(logits)."""
        return self.logits_NC.softmax(-1)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout and gradients off inside; every module's own mode back afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def language_model(
    model: nn.Module, batches: Iterable[dict[str, Tensor]], *, precision: str = "fp32"
) -> LanguageModelScore:
    """Sum -log p(token | what stands before it) over all targets of all batches.

    Args:
        model: labkit or transformers model; `model(**inputs).logits` is (B, T, V).
        batches: dicts with `input_ids` (B, T) and `labels` (B, T); `labels[t]` is the target of
            `logits[t]` (already shifted); -100 is not counted.
        precision: of the forward pass, as in `runtime.autocast`; the loss itself is float32.

    Returns:
        nats and tokens; the mean is taken once, over the whole text, never over batch means.

    Raises:
        LabError: no target at all.
    """
    nats, tokens = 0.0, 0
    for logits_BTV, labels_BT in _forward(model, batches, precision):
        total = F.cross_entropy(
            logits_BTV.flatten(0, -2),
            labels_BT.flatten(),
            ignore_index=IGNORE_INDEX,
            reduction="sum",
        )
        nats += total.item()
        tokens += int((labels_BT != IGNORE_INDEX).sum())
    if tokens == 0:
        raise LabError("0 targets to evaluate: at least 1 label must differ from -100.")
    return LanguageModelScore(nats, tokens)


def classify(
    model: nn.Module, batches: Iterable[dict[str, Tensor]], *, precision: str = "fp32"
) -> Classified:
    """Logits and labels of a classifier over all batches, in the order of the batches.

    Args:
        model: labkit or transformers model; `model(**inputs).logits` is (B, C).
        batches: dicts with the model's inputs and `labels` (B,).
        precision: of the forward pass, as in `runtime.autocast`.

    Returns:
        logits_NC (float32) and labels_N (int64), on the CPU.

    Raises:
        LabError: no example at all.
    """
    pairs = [
        (logits_BC.cpu(), labels_B.cpu())
        for logits_BC, labels_B in _forward(model, batches, precision)
    ]
    if not pairs:
        raise LabError("0 examples to classify: give at least 1 batch.")
    logits, labels = zip(*pairs, strict=True)
    # Out of inference mode: the caller may differentiate with respect to them.
    return Classified(torch.cat(logits).clone(), torch.cat(labels).clone())


def _forward(
    model: nn.Module, batches: Iterable[dict[str, Tensor]], precision: str
) -> Iterator[tuple[Tensor, Tensor]]:
    device = next(model.parameters()).device
    for batch in batches:
        inputs = {name: tensor.to(device) for name, tensor in batch.items()}
        labels = inputs.pop("labels")
        with evaluating(model), runtime.autocast(device, precision):
            logits = model(**inputs).logits
        yield logits.float(), labels


def accuracy(predicted_N: Any, labels_N: Any) -> float:
    """Share of examples whose predicted class is the true one, in [0, 1]."""
    predicted, labels = _classes(predicted_N, labels_N)
    return float((predicted == labels).mean())


def confusion(predicted_N: Any, labels_N: Any, num_classes: int) -> np.ndarray:
    """Counts (C, C): row = true class, column = predicted class.

    Raises:
        LabError: a class outside 0..num_classes - 1.
    """
    predicted, labels = _classes(predicted_N, labels_N)
    for name, ids in (("prediction", predicted), ("label", labels)):
        if ids.min() < 0 or ids.max() >= num_classes:
            wrong = ids.min() if ids.min() < 0 else ids.max()
            raise LabError(
                f"{name} {wrong} is outside 0..{num_classes - 1}: give a larger num_classes."
            )
    pairs = labels * num_classes + predicted
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def per_class(confusion_CC: np.ndarray) -> dict[str, np.ndarray]:
    """Precision, recall, F1 and support of every class, each (C,).

    precision = right / predicted, recall = right / true, F1 = 2 right / (predicted + true);
    0 where the denominator is 0.
    """
    counts = np.asarray(confusion_CC, dtype=np.float64)
    right, predicted, true = counts.diagonal(), counts.sum(0), counts.sum(1)
    return {
        "precision": _ratio(right, predicted),
        "recall": _ratio(right, true),
        "f1": _ratio(2 * right, predicted + true),
        "support": true.astype(np.int64),
    }


def macro_f1(predicted_N: Any, labels_N: Any, num_classes: int) -> float:
    """Mean of the classes' F1: a rare class weighs as much as a frequent one.

    A class that neither occurs nor is predicted is left out, as in scikit-learn.
    """
    counts = confusion(predicted_N, labels_N, num_classes)
    present = (counts.sum(0) + counts.sum(1)) > 0
    return float(per_class(counts)["f1"][present].mean())


class Calibration(NamedTuple):
    """Reliability: how often is the model right when it says that it is p sure?"""

    ece: float
    """Expected calibration error: sum over bins of share * |accuracy - confidence|, in [0, 1]."""
    edges: np.ndarray
    """(bins + 1,) limits of the bins of confidence; a bin is (low, high]."""
    confidence: np.ndarray
    """(bins,) mean confidence in each bin; nan where empty."""
    accuracy: np.ndarray
    """(bins,) accuracy in each bin; nan where empty."""
    count: np.ndarray
    """(bins,) examples in each bin."""


def calibration(probabilities_NC: Any, labels_N: Any, bins: int = 15) -> Calibration:
    """Expected calibration error and the reliability diagram behind it.

    ECE = sum_b (n_b / N) |accuracy_b - confidence_b|, bins of equal width over the confidence: the
    largest probability of each example.

    Args:
        probabilities_NC: (N, C), rows sum to one.
        labels_N: (N,) true classes.
        bins: number of bins, >= 1.

    Source: Guo et al. 2017, equations 2-3.
    """
    probabilities = np.asarray(probabilities_NC, dtype=np.float64)
    if probabilities.ndim != 2 or not np.allclose(probabilities.sum(1), 1, atol=1e-4):
        raise LabError(
            f"probabilities of shape {probabilities.shape} must be (N, C) with rows that sum to 1: "
            "apply a softmax to the logits first."
        )
    predicted, labels = _classes(probabilities.argmax(1), labels_N)
    edges = np.linspace(0, 1, _positive(bins, "bins") + 1)
    top = probabilities.max(1)
    right = predicted == labels
    which = np.clip(np.searchsorted(edges, top, side="left") - 1, 0, bins - 1)
    count = np.bincount(which, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean_confidence = np.bincount(which, weights=top, minlength=bins) / count
        mean_accuracy = np.bincount(which, weights=right, minlength=bins) / count
    gap = np.nan_to_num(np.abs(mean_accuracy - mean_confidence))
    return Calibration(
        float((gap * count).sum() / len(labels)), edges, mean_confidence, mean_accuracy, count
    )


def fit_temperature(logits_NC: Any, labels_N: Any) -> float:
    """The t > 0 that minimises the cross-entropy of softmax(logits / t): fit on validation data.

    It changes no prediction, only how sure the model claims to be: t > 1 makes it more modest.
    The loss is convex in 1 / t; ternary search over log t in [-3, 3].

    Source: Guo et al. 2017, section 4.2.
    """
    logits = torch.as_tensor(logits_NC).double()
    labels = torch.as_tensor(labels_N)

    def loss(log_t: float) -> float:
        return F.cross_entropy(logits / math.exp(log_t), labels).item()

    low, high = -3.0, 3.0
    while high - low > 1e-6:
        third = (high - low) / 3
        if loss(low + third) < loss(high - third):
            high -= third
        else:
            low += third
    return math.exp((low + high) / 2)


class Interval(NamedTuple):
    """An estimate and the interval that should hold it."""

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.estimate:.4f} [{self.low:.4f}, {self.high:.4f}]"


def bootstrap_interval(
    metric: Callable[..., float],
    *arrays_N: Any,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap: how far would the metric move with another test set of this size?

    Draws N rows with replacement, the same rows of every array, `resamples` times.

    Args:
        metric: called as `metric(*arrays)`; returns a number.
        arrays_N: arrays or tensors with N rows each.
        confidence: coverage of the interval, in (0, 1).
        resamples: number of draws, >= 1.
        seed: of the draws.

    Returns:
        The metric on the given rows, and the interval's ends.

    >>> bootstrap_interval(lambda x: float(np.mean(x)), [1.0, 1.0, 1.0])
    Interval(estimate=1.0, low=1.0, high=1.0)
    """
    if not 0 < confidence < 1:
        raise LabError(f"confidence {confidence} is outside (0, 1): 0.95 is usual.")
    arrays = [np.asarray(array) for array in arrays_N]
    sizes = {len(array) for array in arrays}
    if len(sizes) != 1 or 0 in sizes:
        raise LabError(f"arrays of {sorted(sizes)} rows: all need the same number, at least 1.")
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, len(arrays[0]), (_positive(resamples, "resamples"), len(arrays[0])))
    values = [metric(*(array[row] for array in arrays)) for row in rows]
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return Interval(float(metric(*arrays)), float(low), float(high))


def error_table(
    texts: Sequence[str],
    probabilities_NC: Any,
    labels_N: Any,
    class_names: Sequence[str],
    *,
    count: int = 10,
    width: int = 160,
) -> pd.DataFrame:
    """The examples with the largest loss, -ln p(label), worst first: read them before you act.

    Mistakes come first, then near misses: rows where `predicted` equals `label`.

    Returns:
        `count` rows: `index` (row of the input), `label`, `predicted`, `p(label)`, `p(predicted)`,
        `text` (first `width` characters, white space collapsed).
    """
    import pandas as pd

    probabilities = np.asarray(probabilities_NC, dtype=np.float64)
    predicted, labels = _classes(probabilities.argmax(1), labels_N)
    of_label = probabilities[np.arange(len(labels)), labels]
    worst = np.argsort(of_label, kind="stable")[:count]
    return pd.DataFrame(
        {
            "index": worst,
            "label": [class_names[c] for c in labels[worst]],
            "predicted": [class_names[c] for c in predicted[worst]],
            "p(label)": of_label[worst],
            "p(predicted)": probabilities.max(1)[worst],
            "text": [_shorten(texts[int(i)], width) for i in worst],
        }
    )


def _shorten(text: str, width: int) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= width else flat[: width - 1].rstrip() + "…"


def _classes(predicted_N: Any, labels_N: Any) -> tuple[np.ndarray, np.ndarray]:
    predicted, labels = np.asarray(predicted_N), np.asarray(labels_N)
    if predicted.shape != labels.shape or predicted.ndim != 1 or len(labels) == 0:
        raise LabError(
            f"predictions of shape {predicted.shape} and labels of shape {labels.shape}: both must "
            "be (N,) with N >= 1; take argmax(-1) of logits."
        )
    return predicted, labels


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    return np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)


def _positive(value: int, name: str) -> int:
    if value < 1:
        raise LabError(f"{name} is {value}: it must be at least 1.")
    return value
