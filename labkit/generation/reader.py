"""A reader and its tokenizer: questions about texts to answers that stand in them, or to none.

    question, text ──> windows ──> start and end logits ──> the best spans ──> answer, or ""
                       (`span_windows`)                     (`join_windows`)    gap > threshold

One way to answer, for `labkit finetune --task qa`, `labkit evaluate` and your code.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from labkit import runtime
from labkit.atomic import write_json
from labkit.batches import Pad, SpanWindow, span_windows
from labkit.errors import LabError
from labkit.evaluation.forward import evaluating
from labkit.evaluation.overlap import token_f1
from labkit.evaluation.spans import Found, choose_threshold, join_windows
from labkit.generation.loaded import MOST_CONTEXT
from labkit.models.config import context_length
from labkit.models.huggingface.folders import open_reader
from labkit.objectives.spans import span_logits
from labkit.text.tokenizers import Tokenizer
from labkit.training.run_folder import model_folder

#: Longest answer, in tokens.
MOST_TOKENS = 30


@dataclass(frozen=True)
class SpanAnswerer:
    """A model that points at answers, and how it reads."""

    model: nn.Module
    """A question answerer of transformers, or labkit's `SpanReader`."""
    tokenizer: Tokenizer
    max_length: int
    """Tokens of a window, question and marks included."""
    stride: int
    """Text tokens from one window to the next."""
    threshold: float = 0.0
    """There is no answer where "no answer" scores more than this above the best span."""

    def windows(
        self,
        questions: Sequence[str],
        contexts: Sequence[str],
        answers: Sequence[tuple[int, int]] | None = None,
    ) -> list[SpanWindow]:
        """`span_windows`, as this reader reads."""
        return span_windows(
            self.tokenizer, questions, contexts, self.max_length, self.stride, answers
        )

    def find(
        self,
        questions: Sequence[str],
        contexts: Sequence[str],
        *,
        count: int = 1,
        batch_size: int = 32,
        precision: str = "fp32",
        watch: Callable[[Iterable[Any], int], Iterable[Any]] | None = None,
    ) -> list[Found]:
        """The best spans of each text and the score of "no answer".

        Args:
            questions, contexts: equally many, at least one.
            count: spans of each.
            batch_size: windows at a time, at least 1.
            precision: of the forward pass, as in `runtime.autocast`.
            watch: (batches, their number) -> the same batches, for a progress bar.

        Raises:
            LabError: no question, or another number of texts.
        """
        if not questions or len(questions) != len(contexts) or batch_size < 1:
            raise LabError(
                f"{len(questions)} questions, {len(contexts)} texts, batch_size {batch_size}: give"
                " equally many, at least 1 of each"
            )
        windows = self.windows(questions, contexts)
        order = sorted(range(len(windows)), key=lambda i: len(windows[i].offsets))
        parts = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
        device, collate = next(self.model.parameters()).device, Pad(self.tokenizer.pad_id)
        logits: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        for part in watch(parts, len(parts)) if watch is not None else parts:
            batch = collate([windows[i].example for i in part])
            inputs = {name: tensor.to(device) for name, tensor in batch.items()}
            with evaluating(self.model), runtime.autocast(device, precision):
                start_BT, end_BT = span_logits(self.model, inputs)
            for row, i in enumerate(part):
                T = len(windows[i].offsets)
                logits[i] = start_BT[row, :T].float().cpu(), end_BT[row, :T].float().cpu()
        of_question: list[list[int]] = [[] for _ in questions]
        for i, window in enumerate(windows):
            of_question[window.owner].append(i)
        return [
            join_windows(
                [logits[i][0] for i in mine],
                [logits[i][1] for i in mine],
                [windows[i].offsets for i in mine],
                MOST_TOKENS,
                count,
            )
            for mine in of_question
        ]

    def say(self, contexts: Sequence[str], found: Sequence[Found]) -> list[str]:
        """The answers that follow from what was found; "" where there is none."""
        return [
            context[it.spans[0].start : it.spans[0].end]
            if it.spans and it.gap <= self.threshold
            else ""
            for context, it in zip(contexts, found, strict=True)
        ]

    def answer(self, question: str, context: str) -> str:
        """The answer to one question: a piece of the text, or "" if it holds none."""
        return self.say([context], self.find([question], [context]))[0]

    def settled(
        self, contexts: Sequence[str], found: Sequence[Found], truths: Sequence[str]
    ) -> Any:
        """The same reader with the threshold that gives the best mean F1 on these questions.

        Args:
            contexts, found, truths: of validation questions; "" where there is no answer. Without a
                question of each kind nothing can be chosen, and the threshold stays.
        """
        possible = [bool(truth) for truth in truths]
        if len(set(possible)) < 2:
            return self
        always = dataclasses.replace(self, threshold=float("inf")).say(contexts, found)
        f1 = [token_f1(a, t) if t else 0.0 for a, t in zip(always, truths, strict=True)]
        threshold, _ = choose_threshold([it.gap for it in found], f1, possible)
        return dataclasses.replace(self, threshold=threshold)

    def keep(self, folder: Path) -> None:
        """Write how it reads into the tokenizer's settings, beside the weights."""
        file = folder / "tokenizer_config.json"
        if file.exists():
            config = json.loads(file.read_text(encoding="utf-8"))
            config |= {
                "model_max_length": self.max_length,
                "stride": self.stride,
                "no_answer_threshold": self.threshold,
            }
            write_json(file, config)


def load_reader(name: str | Path, *, device: str = "auto") -> SpanAnswerer:
    """Open a reader with its tokenizer.

    Args:
        name: a run folder, or any model folder in the `transformers` format.
        device: auto, cpu or cuda.

    Raises:
        LabError: there is no such folder, or it holds no complete reader or no tokenizer.

    Example:
        labkit.load_reader("runs/finetune").answer("Who rose?", "Shares rose.")
    """
    folder = model_folder(name)
    tokenizer = Tokenizer.from_pretrained(folder)
    model: Any = open_reader(folder).to(runtime.pick_device(device)).eval()
    longest = min(context_length(model), tokenizer.context_length or MOST_CONTEXT)
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    stride, threshold = config.get("stride"), config.get("no_answer_threshold")
    return SpanAnswerer(
        model,
        tokenizer,
        longest,
        stride if isinstance(stride, int) and stride >= 1 else max(1, longest // 4),
        float(threshold) if isinstance(threshold, int | float) else 0.0,
    )
