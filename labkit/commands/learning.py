"""What differs between learning classes and learning words: batches, the start, the test.

Classes   a head fitted on frozen vectors -> every parameter -> accuracy, F1, beside baselines
Words     instructions, or texts to continue                 -> loss, bits per byte
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from labkit import runtime
from labkit.batches import Batches
from labkit.commands import examples, scoring
from labkit.commands.card import write_card
from labkit.commands.options import Finetune
from labkit.commands.recipe import Sizes
from labkit.commands.shell import counted
from labkit.commands.tasks import Task
from labkit.evaluation.linear import (
    fits_a_head,
    last_linear,
    last_vectors,
    logistic_regression,
    set_head,
)
from labkit.generation.classifier import Classifier, Reading, has_segments
from labkit.models.adapting.mean_block import add_mean_block, has_pooler
from labkit.models.adapting.settings import INSEPARABLE
from labkit.models.huggingface.folders import (
    is_classifier,
    is_seq2seq,
    open_classifier,
    open_lm,
    open_reader,
    open_seq2seq,
)
from labkit.models.huggingface.reading import read_config
from labkit.objectives.tasks import causal_lm, classification
from labkit.text.tokenizers import Tokenizer
from labkit.training.distributed.data import first

#: Training texts from which a head is fitted on frozen vectors, at most.
TEXTS_TO_FIT = 10_000


def open_model(task: Task, folder: Path, tokenizer: Tokenizer) -> nn.Module:
    """The folder's model for the task: a language model, or a classifier of the task's classes."""
    if task.kind == "qa":
        return open_reader(folder, fresh=True)
    if task.kind == "seq2seq" and is_seq2seq(folder):
        return open_seq2seq(folder)
    if task.kind != "classification":
        return open_lm(folder)
    model = open_classifier(folder, task.classes)
    config: Any = model.config
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = tokenizer.pad_id  # a decoder reads the last real token
    return model


@dataclass
class Learner:
    """What differs between a task of classes and a task of words."""

    options: Finetune
    task: Task
    folder: Path
    """Of the model to begin from."""
    model: nn.Module
    tokenizer: Tokenizer
    sizes: Sizes

    objective: ClassVar[Any] = staticmethod(causal_lm)

    def __post_init__(self) -> None:
        """What a kind of task needs besides."""

    @property
    def use(self) -> str:
        """The key of `card.USES`."""
        raise NotImplementedError

    def batches(self, split: str) -> Batches:
        raise NotImplementedError

    @property
    def result(self) -> Path:
        """Where the run leaves what commands open."""
        alone = self.options.strategy in INSEPARABLE
        return self.options.out / ("adapter" if alone else "model")

    def facts(self) -> dict[str, Any]:
        """What an adapter's folder says besides: how its base was made ready."""
        return {}

    def prepare(self, here: runtime.World) -> None:
        """What comes before the first update, on the frozen model."""

    def test(self, model: nn.Module) -> dict[str, Any]:
        raise NotImplementedError

    def card(self, evaluation: dict[str, Any]) -> None:
        """Write the model card, once the test is done."""
        count, rows = len(self.task.texts["train"]), self.rows(evaluation)
        write_card(
            self.options.out / "model",  # an adapter alone gets none
            self.use,
            str(self.options.model),
            {
                "data": f"{self.options.data}: {count:,} examples to train on",
                "task": ", ".join([self.task.kind, *self.task.classes]),
                "updates": f"{evaluation['steps']:,} of {self.sizes.batch_size} examples",
                "read at once": f"{self.sizes.max_length} tokens at most",
                "learning rate": f"{self.sizes.learning_rate:g}",
            },
            rows,
            "test examples that were read once, at the end",
        )

    def rows(self, evaluation: dict[str, Any]) -> list[dict[str, str]]:
        raise NotImplementedError

    def next_step(self) -> str:
        raise NotImplementedError


class Words(Learner):
    """Instructions, or texts to continue."""

    objective = staticmethod(causal_lm)

    @property
    def use(self) -> str:
        return "text-generation"

    def batches(self, split: str) -> Batches:
        make = examples.answered if self.task.kind == "instruction" else examples.continued
        return make(self.task, self.tokenizer, self.sizes, split, self.options.train.seed)

    def test(self, model: nn.Module) -> dict[str, Any]:
        precision = self.options.train.precision
        return scoring.language(model, self.task, self.batches("test"), precision)

    def rows(self, evaluation: dict[str, Any]) -> list[dict[str, str]]:
        test = evaluation["test"].items()
        return [{k: f"{v:,}" if isinstance(v, int) else f"{v:,.4f}" for k, v in test}]

    def next_step(self) -> str:
        ask = " --chat" if self.task.kind == "instruction" else ""
        return f'next: labkit generate {self.options.out}{ask} --prompt "..."'


class Classes(Learner):
    """Classes of texts, or of pairs."""

    objective = staticmethod(classification)

    @property
    def use(self) -> str:
        return "text-classification of pairs" if self.task.pairs else "text-classification"

    def __post_init__(self) -> None:
        self.reading = Reading(self.sizes.max_length, self.options.pieces)
        self.new_head = not _knows_classes(self.folder, self.task.classes)
        self.mean_block = self.new_head and has_pooler(self.model)
        if self.mean_block:
            add_mean_block(self.model)
        self.head: Any = None

    def facts(self) -> dict[str, Any]:
        return {"classes": self.task.classes, "mean_block": self.mean_block}

    def _reader(self, model: nn.Module) -> Classifier:
        return Classifier(model, self.tokenizer, self.reading)

    def batches(self, split: str) -> Batches:
        reader = self._reader(self.model)
        if split == "train":
            return examples.training(self.task, reader, self.sizes, self.options.train.seed)
        return examples.fixed(self.task, reader, self.sizes, split)

    def prepare(self, here: runtime.World) -> None:
        if self.new_head and fits_a_head(self.model):
            self.head = first(here, self._fit)
            set_head(self.model, self.head)

    def _fit(self) -> Any:
        """Logistic regression on what the frozen model makes of the training texts."""
        batches = examples.fixed(
            self.task, self._reader(self.model), self.sizes, "train", most=TEXTS_TO_FIT
        )
        watched = counted(batches.evaluation_batches(), batches.steps_per_epoch, "frozen vectors")
        model: Any = self.model.to(runtime.pick_device(self.options.train.device))
        vectors, labels = last_vectors(model, watched, self.options.train.precision)
        biased = last_linear(model).bias is not None
        return logistic_regression(vectors, labels, intercept=biased)

    def test(self, model: nn.Module) -> dict[str, Any]:
        self.reading.keep(self.result, bool(self.task.pairs) and has_segments(model))
        frozen = None
        if self.options.baselines and self.head is not None:
            device = next(model.parameters()).device
            frozen = self._say(self._frozen().to(device), "test, frozen vectors")
        said = self._say(model, "test")
        return scoring.classifier(self.task, said, frozen, self.options.baselines, self.options.out)

    def _frozen(self) -> nn.Module:
        """The model as it was before the first update."""
        model = open_model(self.task, self.folder, self.tokenizer)
        if has_pooler(model):
            add_mean_block(model)
        set_head(model, self.head)
        return model

    def _say(self, model: nn.Module, what: str) -> Tensor:
        def watch(batches: Any, count: int) -> Any:
            return counted(batches, count, what)

        return self._reader(model).log_probabilities(
            self.task.texts["test"],
            self.task.pairs.get("test"),
            precision=self.options.train.precision,
            watch=watch,
        )

    def rows(self, evaluation: dict[str, Any]) -> list[dict[str, str]]:
        return scoring.score_rows({"this model": evaluation["test"], **evaluation["baselines"]})

    def next_step(self) -> str:
        pair = " --pair-column ..." if self.task.pairs else ""
        return (
            f"next: labkit classify {self.options.out} --data new.csv{pair}   (new texts)\n"
            f"      {self.options.out / 'errors.csv'}   (the worst mistakes: read them)"
        )


def _knows_classes(folder: Path, classes: list[str]) -> bool:
    """Whether the folder is a classifier of just these classes: it goes on with its own head."""
    if not is_classifier(folder):
        return False
    names = read_config(folder).get("id2label") or {}
    return [names.get(str(i)) for i in range(len(names))] == classes
