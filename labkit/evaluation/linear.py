"""Linear classifiers: what counting words reaches, and what a frozen model's vectors reach.

    texts ──> TF-IDF ───────────────┐
    texts ──> model ──> vectors_NH ─┴──> logistic regression, its strength by cross-validation

Both are baselines of every fine-tuning run, and the second is where its head begins: a fit on
frozen vectors first, then all parameters (Kumar et al. 2022). scikit-learn does the work.

Legend: N examples, H width of what the last linear layer reads, C classes.

Source: Kumar et al. 2022, arXiv:2202.10054, "Fine-Tuning can Distort Pretrained Features and
Underperform Out-of-Distribution" (linear probing, then fine-tuning).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from labkit import runtime
from labkit.errors import LabError
from labkit.evaluation.forward import evaluating

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

#: Inverse strengths of the penalty to choose among, for rows of length about 1.
STRENGTHS = (3.0, 30.0, 300.0)
#: Rows on which the strength is chosen.
ROWS_TO_CHOOSE = 1500


class BagOfWords:
    """TF-IDF of words (counts taken as 1 + ln count) with `logistic_regression`.

    Of pairs it reads the words of each text, and the words that both hold.
    """

    def __init__(
        self,
        texts: Sequence[str],
        labels_N: Any,
        seconds: Sequence[str] | None = None,
        seed: int = 0,
    ):
        """
        Args:
            texts: whole, as they are.
            labels_N: (N,) classes.
            seconds: the second text of each pair.
            seed: of the folds.

        Raises:
            LabError: no text holds a word, or all labels are alike.
        """
        from sklearn.feature_extraction.text import TfidfVectorizer

        self.words = TfidfVectorizer(sublinear_tf=True)
        try:
            self.words.fit([*texts, *(seconds or ())])
        except ValueError as error:  # "empty vocabulary"
            raise LabError("the texts hold no word of two letters or more to count") from error
        self.head = logistic_regression(self._counts(texts, seconds), labels_N, seed)

    def _counts(self, texts: Sequence[str], seconds: Sequence[str] | None) -> Any:
        from scipy.sparse import csr_matrix, hstack

        first = self.words.transform(texts)
        if seconds is None:
            return first
        second = self.words.transform(seconds)
        return csr_matrix(hstack([first, second, first.multiply(second)]))

    def predict(self, texts: Sequence[str], seconds: Sequence[str] | None = None) -> np.ndarray:
        """The likeliest class of each text or pair, (N,)."""
        return np.asarray(self.head.predict(self._counts(texts, seconds)))


def logistic_regression(
    vectors_NH: Any, labels_N: Any, seed: int = 0, *, intercept: bool = True
) -> LogisticRegression:
    """Logistic regression, fitted; how strong its penalty is, three folds of the rows decide.

    Args:
        vectors_NH: (N, H) array or sparse matrix.
        labels_N: (N,) classes, two or more different ones.
        seed: of the folds.
        intercept: whether the fit has a bias.

    Raises:
        LabError: all labels are alike.
    """
    labels = np.asarray(labels_N)
    if len(np.unique(labels)) < 2:
        raise LabError("all labels are alike: a classifier needs examples of two classes")
    values: Any = vectors_NH.data if hasattr(vectors_NH, "tocsr") else vectors_NH
    mean_square = float((np.asarray(values) ** 2).sum()) / len(labels) or 1.0
    # Products this small finish before a second thread has started.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a rare class that a fold lacks; a fit cut at max_iter
        strength = _strength(vectors_NH, labels, mean_square, seed, intercept)
        return _fit(vectors_NH, labels, strength, intercept)


def _fit(vectors_NH: Any, labels_N: Any, strength: float, intercept: bool) -> LogisticRegression:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=strength, max_iter=500, fit_intercept=intercept)
    return model.fit(vectors_NH, labels_N)


def _strength(
    vectors_NH: Any, labels_N: np.ndarray, mean_square: float, seed: int, intercept: bool
) -> float:
    """The strength with the most right answers in the folds; of equals the middle one."""
    from sklearn.model_selection import StratifiedKFold

    middle, folds = STRENGTHS[len(STRENGTHS) // 2], 3
    rows = np.random.default_rng(seed).permutation(len(labels_N))[:ROWS_TO_CHOOSE]
    some_NH, some_N = vectors_NH[rows], labels_N[rows]
    if np.sort(np.bincount(np.unique(some_N, return_inverse=True)[1]))[-2:].min() < folds:
        return middle / mean_square  # not two classes that are in every fold
    parts = list(StratifiedKFold(folds).split(np.zeros(len(some_N)), some_N))

    def right(strength: float) -> int:
        """Right answers about rows that the fit has not seen."""
        answers = 0
        for seen, new in parts:
            fit = _fit(some_NH[seen], some_N[seen], strength / mean_square, intercept)
            answers += int(np.sum(np.asarray(fit.predict(some_NH[new])) == some_N[new]))
        return answers

    return max((middle, *STRENGTHS), key=right) / mean_square


def last_linear(model: nn.Module) -> nn.Linear:
    """The linear layer that gives a classifier's logits: the last one of the model.

    Raises:
        LabError: the model has none, or it gives another number than `config.num_labels`.
    """
    found = [module for module in model.modules() if isinstance(module, nn.Linear)]
    wanted = getattr(getattr(model, "config", None), "num_labels", None)
    if not found or found[-1].out_features != wanted:
        raise LabError(f"{type(model).__name__} does not end in a linear layer of {wanted} classes")
    return found[-1]


def fits_a_head(model: nn.Module) -> bool:
    """Whether `set_head` can write into this classifier."""
    try:
        last_linear(model)
    except LabError:
        return False
    return True


def last_vectors(
    model: nn.Module, batches: Iterable[dict[str, Tensor]], precision: str = "fp32"
) -> tuple[np.ndarray, np.ndarray]:
    """What the classifier's last linear layer reads of each text, dropout off.

    A decoder's layer reads every position and its last real one counts: that of the largest index
    whose attention_mask is 1.

    Args:
        model: labkit or transformers classifier.
        batches: dicts with the model's inputs and `labels` (B,).
        precision: of the forward pass, as in `runtime.autocast`.

    Returns:
        vectors (N, H) float32 and labels (N,), in the order of the batches.
    """
    device = next(model.parameters()).device
    seen: list[Tensor] = []
    hook = last_linear(model).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    vectors, labels = [], []
    try:
        for batch in batches:
            inputs = {name: tensor.to(device) for name, tensor in batch.items()}
            labels.append(inputs.pop("labels").cpu())
            seen.clear()
            with evaluating(model), runtime.autocast(device, precision):
                model(**inputs)
            read = seen[0].float()
            if read.ndim == 3:
                positions = torch.arange(read.shape[1], device=device)
                last_B = (inputs["attention_mask"] * positions).argmax(1)
                read = read[torch.arange(len(read), device=device), last_B]
            vectors.append(read.cpu())
    finally:
        hook.remove()
    return torch.cat(vectors).numpy(), torch.cat(labels).numpy()


def block_means(
    model: nn.Module, batches: Iterable[dict[str, Tensor]], precision: str = "fp32"
) -> np.ndarray:
    """The mean vector of each text after each block: what a frozen model offers a head, by depth.

    Args:
        model: labkit's Transformer.
        batches: dicts with the model's inputs and `attention_mask` (B, T); `labels` are left out.
        precision: of the forward pass, as in `runtime.autocast`.

    Returns:
        (N, L, H) float32: N texts in the order of the batches, L blocks; padding does not count.
    """
    device = next(model.parameters()).device
    states: list[Tensor] = []
    blocks: Any = model.blocks
    hooks = [b.register_forward_hook(lambda _, __, out: states.append(out)) for b in blocks]
    means = []
    try:
        for batch in batches:
            inputs = {name: x.to(device) for name, x in batch.items() if name != "labels"}
            states.clear()
            with evaluating(model), runtime.autocast(device, precision):
                model(**inputs)
            real_BT1 = inputs["attention_mask"].unsqueeze(-1)
            pooled = [(h.float() * real_BT1).sum(1) / real_BT1.sum(1) for h in states]
            means.append(torch.stack(pooled, 1).cpu())
    finally:
        for hook in hooks:
            hook.remove()
    return torch.cat(means).numpy()


def set_head(model: nn.Module, fitted: LogisticRegression) -> None:
    """Write a fit on `last_vectors` into the classifier's last linear layer, in place.

    A class that the fit never saw gets a bias that makes it unlikely. Of two classes each takes
    half of scikit-learn's one row, with opposite signs: softmax then gives the same probabilities.
    For a layer without a bias, fit without an intercept.
    """
    weight = torch.from_numpy(np.asarray(fitted.coef_, dtype=np.float32))
    bias = torch.from_numpy(np.asarray(fitted.intercept_, dtype=np.float32))
    if len(weight) == 1:
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    layer = last_linear(model)
    seen = [int(c) for c in fitted.classes_]
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[seen] = weight.to(layer.weight)
        if layer.bias is not None:
            layer.bias.fill_(float(bias.min()) - 5.0)
            layer.bias[seen] = bias.to(layer.bias)
