"""What `labkit finetune` and `labkit evaluate` say of a model on held-out examples.

log-probabilities, labels ──> accuracy, macro-F1, each with its interval; each class's own
the same test examples    ──> what is simpler: the largest class, counted words, frozen vectors
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from labkit.batches import Batches
from labkit.commands.shell import say, table
from labkit.commands.tasks import Task
from labkit.evaluation.classification import accuracy, confusion, error_table, macro_f1, per_class
from labkit.evaluation.intervals import bootstrap_interval
from labkit.evaluation.language import bits_per_byte, mean_loss
from labkit.evaluation.linear import BagOfWords
from labkit.objectives.tasks import causal_lm

#: Training texts from which the words are counted, at most.
MOST_ROWS = 20_000
#: Classes whose own scores are printed; of more, the weakest.
CLASSES_SHOWN = 20


def classifier_scores(predicted_N: Any, labels_N: Any, num_classes: int) -> dict[str, Any]:
    """Accuracy and macro-F1, each with its 95 % bootstrap interval, and the examples behind."""
    predicted, labels = np.asarray(predicted_N), np.asarray(labels_N)

    def f1(predicted: Any, labels: Any) -> float:
        return macro_f1(predicted, labels, num_classes)

    scores: dict[str, Any] = {
        name: bootstrap_interval(metric, predicted, labels)._asdict()
        for name, metric in (("accuracy", accuracy), ("macro_f1", f1))
    }
    return {**scores, "examples": len(labels)}


def score_rows(scores: dict[str, dict[str, Any]]) -> list[dict[str, str]]:
    """One row a model: its name, then `classifier_scores`, in words."""
    rows = []
    for name, score in scores.items():
        accuracy, f1 = score["accuracy"], score["macro_f1"]
        rows.append(
            {
                "model": name,
                "accuracy": f"{accuracy['estimate']:.4f}",
                "95 % interval": f"{accuracy['low']:.4f} to {accuracy['high']:.4f}",
                "macro-F1": f"{f1['estimate']:.4f}",
                "95 % interval of it": f"{f1['low']:.4f} to {f1['high']:.4f}",
                "examples": f"{score['examples']:,}",
            }
        )
    return rows


def class_table(predicted_N: Any, labels_N: Any, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Precision, recall, F1 and test examples of each class, in the order of the classes."""
    scores = per_class(confusion(predicted_N, labels_N, len(classes)))
    return [
        {
            "class": name,
            "precision": float(scores["precision"][i]),
            "recall": float(scores["recall"][i]),
            "F1": float(scores["f1"][i]),
            "examples": int(scores["support"][i]),
        }
        for i, name in enumerate(classes)
    ]


def classifier(
    task: Task, said_NC: Tensor, frozen_NC: Tensor | None, baselines: bool, out: Path
) -> dict[str, Any]:
    """Score a classifier on the test examples; print it beside its baselines; write errors.csv.

    Args:
        task: with its test examples.
        said_NC: log-probabilities of the trained model.
        frozen_NC: those of the model before training, its head fitted; None: not known.
        baselines: whether to count words as well.
        out: run folder.

    Returns:
        `test`, `baselines`, `classes`, as evaluation.json holds them.
    """
    labels, classes = torch.tensor(task.answers["test"]), task.classes
    errors = error_table(task.texts["test"], said_NC.exp(), labels, classes)
    errors.to_csv(out / "errors.csv", index=False)
    predictions = {"fine-tuned": said_NC.argmax(-1).numpy()}
    if frozen_NC is not None:
        predictions["frozen vectors, fitted head"] = frozen_NC.argmax(-1).numpy()
    if baselines:
        predictions["counted words (TF-IDF)"] = _counted(task)
        largest = np.bincount(task.answers["train"]).argmax()
        predictions["largest class"] = np.full(len(labels), largest)
    scores = {
        name: classifier_scores(said, labels, len(classes)) for name, said in predictions.items()
    }
    own = class_table(predictions["fine-tuned"], labels, classes)
    say(table(score_rows(scores)))
    say_classes(own)
    if baselines:
        _say_verdict(predictions, labels.numpy())
    test = scores.pop("fine-tuned")
    return {"test": test, "baselines": scores, "classes": own}


def _counted(task: Task) -> np.ndarray:
    rows = np.random.default_rng(0).permutation(len(task.texts["train"]))[:MOST_ROWS]

    def some(column: dict[str, list[Any]]) -> list[Any] | None:
        return [column["train"][i] for i in rows] if column else None

    words = BagOfWords(some(task.texts) or [], some(task.answers), some(task.pairs))
    return words.predict(task.texts["test"], task.pairs.get("test"))


def say_classes(own: list[dict[str, Any]]) -> None:
    """Print `class_table`; of very many classes the weakest."""
    shown = own
    if len(own) > CLASSES_SHOWN:
        say(f"\nthe {CLASSES_SHOWN} weakest of {len(own)} classes")
        shown = sorted(own, key=lambda row: row["F1"])[:CLASSES_SHOWN]
    say("\n" + table(shown))


def _say_verdict(predictions: dict[str, np.ndarray], labels_N: np.ndarray) -> None:
    """How far the trained model is from the best of the simpler ones, on the same examples."""
    right = {name: predicted == labels_N for name, predicted in predictions.items()}
    ours = right.pop("fine-tuned")
    best = max(right, key=lambda name: right[name].mean())
    gain = bootstrap_interval(np.mean, ours.astype(float) - right[best])
    verdict = "better" if gain.low > 0 else "worse" if gain.high < 0 else "not clearly apart"
    say(
        f"\nfine-tuned against {best}: {100 * gain.estimate:+.1f} points of accuracy, 95 % "
        f"{100 * gain.low:+.1f} to {100 * gain.high:+.1f}: {verdict}"
    )


def language(model: Any, task: Task, batches: Batches, precision: str) -> dict[str, Any]:
    """Loss of a language model on the test examples; printed.

    Returns:
        `test`: loss, perplexity, tokens, and of whole texts bits per byte.
    """
    mean, count = mean_loss(model, causal_lm, batches, precision=precision)
    score: dict[str, Any] = {"loss": mean, "perplexity": math.exp(mean), "tokens": count}
    if task.kind == "text":
        size = sum(len(text.encode()) for text in task.texts["test"])
        score["bits_per_byte"] = bits_per_byte(mean * count, size)
    say(table([{"test": task.kind, **score}]))
    return {"test": score}
