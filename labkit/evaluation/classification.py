"""What a classifier says of held-out examples: accuracy, F1, calibration, its worst mistakes.

    model, batches ──► classify ──► logits_NC, labels_N ──► accuracy, macro_f1, confusion
                                                       ├──► calibration, fit_temperature
                                                       └──► error_table

Only `classify` touches a model: it switches dropout and gradients off and puts every module back as
it was. All the rest are pure functions of arrays or tensors.

Legend: N examples, C classes, B batch.

Source: Guo et al. 2017, "On Calibration of Modern Neural Networks" (ECE, temperature).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit.errors import LabError
from labkit.evaluation.forward import logits_and_labels
from labkit.evaluation.intervals import positive

if TYPE_CHECKING:
    import pandas as pd


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
        LabError: no example at all, or logits that are not finite.
    """
    pairs = [
        (logits_BC.cpu(), labels_B.cpu())
        for logits_BC, labels_B in logits_and_labels(model, batches, precision)
    ]
    if not pairs:
        raise LabError("0 examples to classify: give at least 1 batch.")
    logits, labels = zip(*pairs, strict=True)
    if not all(bool(part.isfinite().all()) for part in logits):
        raise LabError("the model's logits are not finite: its weights are damaged")
    # Out of inference mode: the caller may differentiate with respect to them.
    return Classified(torch.cat(logits).clone(), torch.cat(labels).clone())


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
    edges = np.linspace(0, 1, positive(bins, "bins") + 1)
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
