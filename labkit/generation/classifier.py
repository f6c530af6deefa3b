"""A classifier and its tokenizer: texts, or pairs of texts, to probabilities of the classes.

    texts ──> ids, in pieces where they are long ──> model ──> log-probabilities_NC

One way to answer, for `labkit finetune`'s test, `labkit evaluate`, `labkit classify` and your code.

Legend: N texts, P pieces, C classes.
"""

import inspect
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from labkit import runtime
from labkit.atomic import write_json
from labkit.batches import Batches, Example, Marks, Pad, average_pieces, pieces
from labkit.errors import LabError
from labkit.evaluation.classification import classify
from labkit.generation.loaded import MOST_CONTEXT
from labkit.models.config import context_length
from labkit.models.huggingface.folders import open_classifier
from labkit.text.tokenizers import Tokenizer
from labkit.training.run_folder import model_folder


@dataclass(frozen=True)
class Reading:
    """How a classifier reads: what `labkit finetune` keeps beside the weights."""

    max_length: int
    """Tokens at a time, marks included."""
    pieces: int = 1
    """A longer text is read in up to this many pieces, whose answers are averaged."""

    def __str__(self) -> str:
        size = f"{self.max_length} tokens"
        return size if self.pieces == 1 else f"{self.pieces} pieces of {size}"

    @classmethod
    def of(cls, folder: Path, model: nn.Module, tokenizer: Tokenizer) -> "Reading":
        """What the folder says, as far as the model can read."""
        longest = min(context_length(model), tokenizer.context_length or MOST_CONTEXT)
        file = folder / "tokenizer_config.json"
        config = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        number = config.get("pieces", 1)
        return cls(longest, number if isinstance(number, int) and number >= 1 else 1)

    def keep(self, folder: Path, segments: bool = False) -> None:
        """Write it into the tokenizer's settings; transformers cuts texts at the same length.

        Args:
            folder: of the model.
            segments: whether the model reads which of two texts a token is of; transformers'
                tokenizer then gives it.
        """
        file = folder / "tokenizer_config.json"
        if file.exists():
            config = json.loads(file.read_text(encoding="utf-8"))
            config |= {"model_max_length": self.max_length, "pieces": self.pieces}
            if segments:
                config["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
            write_json(file, config)

    def examples(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        texts: Sequence[str],
        seconds: Sequence[str] | None = None,
    ) -> tuple[list[Example], list[int], int]:
        """What the model reads of each text.

        Args:
            model: only asked whether it takes `token_type_ids`.
            tokenizer: of the model.
            texts: one after the other.
            seconds: the second text of each pair; pairs are cut, never read in pieces.

        Returns:
            `input_ids` (T,), of pairs also `token_type_ids` if the model has them; for each
            example the number of its text; how many texts are not read to their end.
        """
        if seconds is not None:
            pairs = tokenizer.encode_pairs(texts, seconds, self.max_length)
            examples = [{"input_ids": torch.tensor(ids)} for ids, _ in pairs]
            if has_segments(model):
                for example, (_, kinds) in zip(examples, pairs, strict=True):
                    example["token_type_ids"] = torch.tensor(kinds)
            whole = tokenizer.encode_pairs(texts, seconds, 1 << 30)
            cut = sum(len(a[0]) < len(b[0]) for a, b in zip(pairs, whole, strict=True))
            return examples, list(range(len(examples))), cut
        marks = Marks(*tokenizer.marks)
        room = marks.room(self.max_length)
        examples, owners, cut = [], [], 0
        for number, ids in enumerate(tokenizer.encode_batch(texts)):
            ids = ids or [tokenizer.end_of_text_id]
            cut += len(marks.inside(ids)) > room * self.pieces
            parts = pieces(ids, self.max_length, self.pieces, marks)
            examples += [{"input_ids": part} for part in parts]
            owners += [number] * len(parts)
        return examples, owners, cut


def has_segments(model: nn.Module) -> bool:
    """Whether a model takes `token_type_ids`: 0 for the first text of a pair, 1 for the second."""
    return "token_type_ids" in inspect.signature(model.forward).parameters


@dataclass(frozen=True)
class Classifier:
    """A classifier and its tokenizer."""

    model: nn.Module
    """A transformers classifier, or labkit's with a classifier head."""
    tokenizer: Tokenizer
    reading: Reading

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of the logits."""
        config: Any = self.model.config
        names = getattr(config, "id2label", None) or {}
        return [str(names.get(i, i)) for i in range(config.num_labels)]

    def log_probabilities(
        self,
        texts: Sequence[str],
        seconds: Sequence[str] | None = None,
        *,
        batch_size: int = 32,
        precision: str = "fp32",
        watch: Callable[[Iterable[Any], int], Iterable[Any]] | None = None,
    ) -> Tensor:
        """ln p(class | text) of each text, (N, C), on the CPU.

        Args:
            texts: N texts, at least one.
            seconds: their partners, for a classifier of pairs.
            batch_size: examples at a time, at least 1.
            precision: of the forward pass, as in `runtime.autocast`.
            watch: (batches, their number) -> the same batches, for a progress bar.

        Raises:
            LabError: no text, another number of seconds than of texts, or damaged weights.
        """
        if not texts or (seconds is not None and len(seconds) != len(texts)):
            given = "" if seconds is None else f" and {len(seconds)} second texts"
            raise LabError(
                f"{len(texts)} texts{given}: give at least one, and equally many seconds"
            )
        examples, owners, _ = self.reading.examples(self.model, self.tokenizer, texts, seconds)
        rows = [
            {**example, "labels": torch.tensor(owner)}
            for example, owner in zip(examples, owners, strict=True)
        ]
        lengths = [len(row["input_ids"]) for row in rows]
        batches = Batches(rows, batch_size, Pad(self.tokenizer.pad_id), lengths=lengths)
        stream: Iterable[Any] = batches.evaluation_batches()
        if watch is not None:
            stream = watch(stream, batches.steps_per_epoch)
        said = classify(self.model, stream, precision=precision)
        return average_pieces(said.logits_NC, said.labels_N)

    def classify(self, texts: str | Sequence[str], seconds: Any = None) -> list[dict[str, float]]:
        """The probability of each class for each text, the likeliest class first.

        Args:
            texts: one text, or several.
            seconds: their partners, for a classifier of pairs.

        Example:
            labkit.load_classifier("runs/finetune").classify("Shares fell.")
        """
        one = isinstance(texts, str)
        firsts = [texts] if one else list(texts)
        partners = [seconds] if one and seconds is not None else seconds
        probabilities = self.log_probabilities(firsts, partners).exp().tolist()
        return [
            dict(sorted(zip(self.classes, row, strict=True), key=lambda pair: -pair[1]))
            for row in probabilities
        ]


def load_classifier(name: str | Path, *, device: str = "auto") -> Classifier:
    """Open a classifier with its tokenizer.

    Args:
        name: a run folder, or any model folder in the `transformers` format.
        device: auto, cpu or cuda.

    Raises:
        LabError: there is no such folder, or it holds no complete classifier or no tokenizer.
    """
    folder = model_folder(name)
    tokenizer = Tokenizer.from_pretrained(folder)
    model: Any = open_classifier(folder).to(runtime.pick_device(device)).eval()
    return Classifier(model, tokenizer, Reading.of(folder, model, tokenizer))
