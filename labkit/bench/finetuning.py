"""Examples per second of a full fine-tuning: MiniLM on BBC articles at their natural lengths.

Articles differ in length by a factor of ten. labkit puts similar lengths into one batch, so that
little is padding; the Trainer's default is a random batch, padded to its longest article, and its
best puts similar lengths together, too, and writes attention out. All drop a tenth of the entries.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from labkit.batches import Batches, Pad
from labkit.bench.rivals import labkit_moments, trainer_moments
from labkit.models import huggingface
from labkit.objectives import tasks as objectives
from labkit.text import corpora


@dataclass(frozen=True)
class Sizes:
    """How many articles are read at a time, and how many in all."""

    articles: int
    """Articles in a pass; a multiple of batch_size."""
    batch_size: int = 16
    longest: int = 512
    """Tokens after which an article is cut: all that MiniLM's positions allow."""


FULL = Sizes(articles=128)
QUICK = Sizes(articles=16, batch_size=8, longest=64)


def articles(sizes: Sizes) -> list[dict[str, torch.Tensor]]:
    """Tokenized training articles in random order, each with its topic."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(corpora.minilm_folder())
    rows = corpora.load("bbc_news")["train"].shuffle(seed=0).select(range(sizes.articles))
    ids = tokenizer(list(rows["text"]), truncation=True, max_length=sizes.longest)["input_ids"]
    return [
        {"input_ids": torch.tensor(i), "labels": torch.tensor(label)}
        for i, label in zip(ids, rows["label"], strict=True)
    ]


def contestants(sizes: Sizes, half: str) -> dict[str, Callable[[], list[float]]]:
    """Name -> a function that trains on every article once and returns [seconds]."""
    grouped = {"train_sampling_strategy": "group_by_length"}
    return {
        f"labkit {half}": _labkit(sizes, half),
        f"Trainer {half}": _trainer(sizes, half),
        f"Trainer {half}, grouped": _trainer(sizes, half, **grouped),
        f"Trainer {half}, grouped, written-out attention": _trainer(
            sizes, half, attention="eager", **grouped
        ),
    }


def _labkit(sizes: Sizes, precision: str) -> Callable[[], list[float]]:
    from transformers import AutoModel

    source: Any = AutoModel.from_pretrained(corpora.minilm_folder())
    model = huggingface.from_huggingface(source, num_labels=5, pooling="first")
    examples = articles(sizes)
    steps = sizes.articles // sizes.batch_size
    data = Batches(
        examples,
        sizes.batch_size,
        Pad(pad_id=0),
        lengths=[len(e["input_ids"]) for e in examples],
        bucket=steps,
    )

    def run() -> list[float]:
        moments = labkit_moments(model, objectives.classification, data, steps, precision=precision)
        return [moments[-1] - moments[0]]

    return run


def _trainer(
    sizes: Sizes, precision: str, attention: str = "sdpa", **settings: Any
) -> Callable[[], list[float]]:
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
    )

    folder = corpora.minilm_folder()
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=5, attn_implementation=attention
    )
    collate = DataCollatorWithPadding(AutoTokenizer.from_pretrained(folder))
    examples = articles(sizes)
    steps = sizes.articles // sizes.batch_size

    def run() -> list[float]:
        moments = trainer_moments(
            model, examples, steps, sizes.batch_size, precision, collate, **settings
        )
        return [moments[-1] - moments[0]]

    return run


def padding(sizes: Sizes) -> dict[str, float]:
    """Share of the positions computed that hold no token: bucketed, and in random batches."""
    examples = articles(sizes)
    lengths = [len(e["input_ids"]) for e in examples]
    shares = {}
    for name, known in (("labkit", lengths), ("Trainer", None)):
        steps = sizes.articles // sizes.batch_size
        data = Batches(examples, sizes.batch_size, Pad(0), lengths=known, bucket=steps)
        computed = sum(
            batch["input_ids"].numel() for s in range(steps) for batch in data.micro_batches(s)
        )
        shares[name] = 1 - sum(lengths) / computed
    return shares
