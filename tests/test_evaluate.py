"""Metrics against scikit-learn and by hand; evaluation leaves the model as it was."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn import metrics
from torch import nn

from labkit import evaluation
from labkit.errors import LabError


@pytest.fixture
def predictions():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 300)
    predicted = np.where(rng.random(300) < 0.7, labels, rng.integers(0, 4, 300))
    return predicted, labels


class Unigram(nn.Module):
    """Gives the same logits at every position; dropout would change them."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))
        self.dropout = nn.Dropout(0.9)

    def forward(self, input_ids):
        logits = self.dropout(self.logits)
        return SimpleNamespace(logits=logits.expand(*input_ids.shape, -1))


class Echo(nn.Module):
    """Returns its input as logits, through dropout."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.frozen = nn.Dropout(0.5).eval()
        self.dropout = nn.Dropout(0.5)

    def forward(self, features):
        assert not torch.is_grad_enabled()
        return SimpleNamespace(logits=self.dropout(features) * self.weight)


def test_perplexity_and_bits_of_a_uniform_model():
    nats = 12 * math.log(256)
    assert evaluation.perplexity(nats, 12) == pytest.approx(256)
    assert evaluation.bits_per_byte(nats, 12) == pytest.approx(8)
    assert evaluation.bits_per_byte(nats, 24) == pytest.approx(4)


def test_language_model_weighs_tokens_not_batches():
    probabilities = torch.tensor([0.5, 0.25, 0.25])
    model = Unigram(probabilities.log().tolist())
    batches = [
        {"input_ids": torch.zeros(1, 3).long(), "labels": torch.tensor([[0, 0, 0]])},
        {"input_ids": torch.zeros(1, 3).long(), "labels": torch.tensor([[1, -100, -100]])},
    ]
    score = evaluation.language_model(model, batches)
    assert score.tokens == 4
    assert score.nats == pytest.approx(3 * math.log(2) + math.log(4), rel=1e-6)
    assert score.perplexity == pytest.approx(math.exp(score.loss))


def test_language_model_needs_a_target():
    batch = {"input_ids": torch.zeros(1, 2).long(), "labels": torch.full((1, 2), -100)}
    with pytest.raises(LabError, match="-100"):
        evaluation.language_model(Unigram([0.0, 0.0]), [batch])


def test_classify_keeps_order_and_restores_every_mode():
    features = torch.randn(7, 3)
    labels = torch.arange(7) % 3
    model = Echo()
    batches = [
        {"features": x, "labels": y}
        for x, y in zip(features.split(2), labels.split(2), strict=True)
    ]
    result = evaluation.classify(model, batches)
    assert torch.equal(result.logits_NC, features)
    assert torch.equal(result.labels_N, labels)
    assert torch.equal(result.predicted_N, features.argmax(1))
    assert model.training
    assert model.dropout.training
    assert not model.frozen.training
    assert not result.logits_NC.is_inference()


def test_modes_come_back_after_an_error():
    model = nn.Dropout(0.5)
    with pytest.raises(ZeroDivisionError), evaluation.evaluating(model):
        1 / 0  # noqa: B018
    assert model.training


def test_classify_needs_a_batch():
    with pytest.raises(LabError, match="0 examples"):
        evaluation.classify(Echo(), [])


def test_scores_agree_with_scikit_learn(predictions):
    predicted, labels = predictions
    counts = evaluation.confusion(predicted, labels, 4)
    np.testing.assert_array_equal(counts, metrics.confusion_matrix(labels, predicted))
    assert evaluation.accuracy(predicted, labels) == metrics.accuracy_score(labels, predicted)
    assert evaluation.macro_f1(predicted, labels, 4) == pytest.approx(
        metrics.f1_score(labels, predicted, average="macro")
    )
    theirs = metrics.precision_recall_fscore_support(labels, predicted)
    ours = evaluation.per_class(counts)
    for name, values in zip(("precision", "recall", "f1", "support"), theirs, strict=True):
        np.testing.assert_allclose(ours[name], values)


def test_a_class_that_is_never_predicted_has_f1_zero():
    predicted, labels = [0, 0, 0, 0], [0, 0, 0, 1]
    assert evaluation.accuracy(predicted, labels) == 0.75
    assert evaluation.macro_f1(predicted, labels, 2) == pytest.approx((6 / 7 + 0) / 2)
    assert evaluation.macro_f1(predicted, labels, 5) == pytest.approx((6 / 7 + 0) / 2)


def test_confusion_names_an_impossible_class():
    with pytest.raises(LabError, match=r"label 5 is outside 0\.\.3"):
        evaluation.confusion([0, 1], [0, 5], 4)


def test_shapes_must_agree():
    with pytest.raises(LabError, match=r"argmax"):
        evaluation.accuracy(np.zeros((3, 2)), np.zeros(3))


def test_calibration_by_hand():
    top = np.array([0.6, 0.6, 0.6, 0.6, 0.95, 0.95])
    probabilities = np.stack([top, 1 - top], 1)
    labels = np.array([0, 0, 1, 1, 0, 0])  # half right at 0.6; all right at 0.95
    result = evaluation.calibration(probabilities, labels, bins=10)
    assert result.ece == pytest.approx((4 * 0.1 + 2 * 0.05) / 6)
    assert result.count.tolist() == [0, 0, 0, 0, 0, 4, 0, 0, 0, 2]
    assert result.accuracy[5] == 0.5
    assert result.confidence[9] == pytest.approx(0.95)
    assert np.isnan(result.accuracy[0])


def test_a_bin_holds_its_upper_limit():
    result = evaluation.calibration([[0.5, 0.5], [1.0, 0.0]], [0, 0], bins=4)
    assert result.count.tolist() == [0, 1, 0, 1]


def test_calibration_agrees_with_scikit_learn():
    from sklearn.calibration import calibration_curve

    rng = np.random.default_rng(1)
    p = rng.random(500)
    probabilities = np.stack([1 - p, p], 1)
    labels = (rng.random(500) < p**2).astype(int)
    result = evaluation.calibration(probabilities, labels, bins=10)
    right = probabilities.argmax(1) == labels
    accuracy, confidence = calibration_curve(right, probabilities.max(1), n_bins=10)
    kept = result.count > 0
    np.testing.assert_allclose(result.accuracy[kept], accuracy)
    np.testing.assert_allclose(result.confidence[kept], confidence)


def test_a_calibrated_model_has_a_small_error_and_an_overconfident_one_a_large_one():
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(20_000, 3))
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = np.array([rng.choice(3, p=row) for row in probabilities])
    assert evaluation.calibration(probabilities, labels).ece < 0.02
    sharp = torch.tensor(4 * logits)
    assert evaluation.calibration(sharp.softmax(1), labels).ece > 0.2
    assert evaluation.fit_temperature(sharp, labels) == pytest.approx(4, rel=0.05)


def test_calibration_refuses_logits():
    with pytest.raises(LabError, match="softmax"):
        evaluation.calibration(np.array([[3.0, -1.0]]), [0])


def test_bootstrap_of_a_mean_is_the_normal_interval():
    values = np.random.default_rng(3).normal(5, 2, 2_000)
    interval = evaluation.bootstrap_interval(lambda x: float(x.mean()), values, resamples=2_000)
    half = 1.96 * values.std(ddof=1) / math.sqrt(len(values))
    assert interval.estimate == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.015)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.015)


def test_bootstrap_resamples_rows_together():
    labels = np.arange(50) % 5
    interval = evaluation.bootstrap_interval(evaluation.accuracy, labels, torch.tensor(labels))
    assert interval == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        (([1, 2], [1]), {}, "same number"),
        (([],), {}, "at least 1"),
        (([1],), {"confidence": 95}, "0.95"),
        (([1],), {"resamples": 0}, "resamples"),
    ],
)
def test_bootstrap_bad_input(arrays, options, message):
    with pytest.raises(LabError, match=message):
        evaluation.bootstrap_interval(lambda *a: 0.0, *arrays, **options)


def test_error_table_shows_the_largest_loss_first_and_ends_with_near_misses():
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.8, 0.2], [0.01, 0.99], [0.7, 0.3]])
    labels = [0, 0, 1, 0, 0]
    texts = ["right", "unsure", "wrong " * 50, "sure  and\nwrong", "near miss"]
    table = evaluation.error_table(texts, probabilities, labels, ["a", "b"], count=4, width=20)
    assert table["index"].tolist() == [3, 2, 1, 4]
    assert table["predicted"].tolist() == ["b", "a", "b", "a"]
    assert table["label"].tolist() == ["a", "b", "a", "a"]
    assert table["p(label)"].tolist() == pytest.approx([0.01, 0.2, 0.4, 0.7])
    assert table["p(predicted)"].tolist() == pytest.approx([0.99, 0.8, 0.6, 0.7])
    assert table["text"][0] == "sure and wrong"
    assert table["text"].str.len().max() <= 20
