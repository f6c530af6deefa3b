"""`labkit finetune --task seq2seq`, and the score of such a run: a target for each source.

    source, target ──┬─ smollm2, any decoder   <end> source <line break> | target <end>
                     └─ an encoder-decoder     source <end>  ──>  <end> target | target <end>
    ──> loss on the target ──> BLEU, chrF, word F1 of what it writes, beside lazy writers

Without chat: what is learned is one task, and `labkit generate RUN --prompt SOURCE` does it. A
command called finetune begins from trained weights, so the default is smollm2; an encoder-decoder
that you trained (a run folder or a model folder of BART's shape) goes on with --model.
"""

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from labkit.atomic import write_text
from labkit.batches import (
    IGNORE_INDEX,
    Batches,
    Example,
    Pad,
    continued_example,
    translated_examples,
)
from labkit.commands import scoring
from labkit.commands.learning import Learner
from labkit.commands.options import Evaluate, Finetune
from labkit.commands.shell import note, say, table
from labkit.commands.tasks import Task, cells, file_splits
from labkit.errors import LabError
from labkit.evaluation.overlap import text_scores, word_f1
from labkit.generation.loaded import LanguageModel, keep_form
from labkit.models.encoder_decoder import EncoderDecoder
from labkit.text import files
from labkit.text.docstrings import NearestAnswer

#: Test sources that are answered, at most: writing takes far longer than the loss.
MOST_TO_WRITE = 200


def read(options: Finetune) -> Task:
    """Sources ("texts") and targets ("answers") of all splits; a source is in one split.

    Raises:
        LabError: a column is missing or a cell is empty.
    """
    splits = file_splits(options, lambda path: rows_of(path, options), key=lambda row: row[0])
    texts = {split: [row[0] for row in rows] for split, rows in splits.items()}
    answers = {split: [row[1] for row in rows] for split, rows in splits.items()}
    return Task("seq2seq", [], texts, answers)


def rows_of(path: str | Path, options: Finetune | Evaluate) -> list[tuple[str, str]]:
    """(source, target) of each row of a file, neither empty."""
    rows = files.rows(path)
    names = (options.source_column, options.target_column)
    for name in names:
        files.column(path, rows[:1], name)  # says what columns there are
    return list(zip(*(cells(path, rows, name) for name in names), strict=True))


class Answers(Learner):
    """A target for each source."""

    @property
    def use(self) -> str:
        return "text2text-generation" if self._encodes else "text-generation"

    @property
    def _encodes(self) -> bool:
        return isinstance(self.model, EncoderDecoder)

    def batches(self, split: str) -> Batches:
        limit = self.sizes.max_length
        sources, targets = self.task.texts[split], self.task.answers[split]
        examples: list[Example]
        if self._encodes:
            examples = translated_examples(self.tokenizer, sources, targets, limit)
        else:
            whole = [
                continued_example(self.tokenizer, source, target)
                for source, target in zip(sources, targets, strict=True)
            ]
            cut = [{key: ids[:limit] for key, ids in example.items()} for example in whole]
            examples = [e for e in cut if (e["labels"] != IGNORE_INDEX).any()]
            if not examples:
                raise LabError(
                    f"no target of the {len(cut)} {split} examples begins within max_length "
                    f"{limit}: choose a longer one"
                )
            if len(examples) < len(cut):
                note(
                    f"{len(cut) - len(examples)} {split} sources are longer than {limit}: left out"
                )
        lengths = [len(example["input_ids"]) for example in examples]
        seed, collate = self.options.train.seed, Pad(self.tokenizer.pad_id)
        return Batches(
            examples, self.sizes.batch_size, collate, seed=seed, lengths=lengths, bucket=1
        )

    def test(self, model: nn.Module) -> dict[str, Any]:
        if not self._encodes:
            keep_form(self.options.out / "model")
        loss = scoring.language(
            model, self.task, self.batches("test"), self.options.train.precision
        )["test"]
        opened = LanguageModel(model.eval(), self.tokenizer, "" if self._encodes else "\n")
        rows = np.random.default_rng(0).permutation(len(self.task.texts["test"]))[:MOST_TO_WRITE]
        sources = [self.task.texts["test"][i] for i in rows]
        truths = [self.task.answers["test"][i] for i in rows]
        said = written(opened, sources, self._longest)
        write_answers(self.options.out, sources, said, truths)
        scores = {"fine-tuned": scored(said, truths)}
        if self.options.baselines:
            near = NearestAnswer(self.task.texts["train"], self.task.answers["train"])
            scores["the source, copied"] = scored(sources, truths)
            scores["target of the nearest source"] = scored(near(sources), truths)
        say("\n" + table(score_rows(scores)))
        test = scores.pop("fine-tuned")
        return {"test": {**loss, **test}, "baselines": scores}

    @property
    def _longest(self) -> int:
        """Tokens that a target may have: twice what the longest of training has."""
        encoded = self.tokenizer.encode_batch(self.task.answers["train"])
        return min(2 * max(map(len, encoded)) + 1, self.sizes.max_length)

    def rows(self, evaluation: dict[str, Any]) -> list[dict[str, str]]:
        return score_rows({"this model": evaluation["test"], **evaluation["baselines"]})

    def next_step(self) -> str:
        return (
            f'next: labkit generate {self.options.out} --prompt "a source" --beams 4\n'
            f"      {self.options.out / 'answers.csv'}   (what it wrote: read it)"
        )


def written(
    opened: LanguageModel,
    sources: Sequence[str],
    max_new_tokens: int,
    beams: int = 1,
    length_penalty: float = 1.0,
    batch_size: int = 16,
) -> list[str]:
    """The answer to each source, without spaces around it."""
    said = opened.answer(
        sources,
        max_new_tokens=max_new_tokens,
        beams=beams,
        length_penalty=length_penalty,
        batch_size=batch_size,
    )
    return [text.strip() for text in said]


def scored(said: Sequence[str], truths: Sequence[str]) -> dict[str, Any]:
    """BLEU, chrF and word F1 in percent with intervals, and what exactly was computed."""
    found = text_scores(said, truths)
    scores: dict[str, Any] = {name: it.interval._asdict() for name, it in found.items()}
    scores["signatures"] = {name: it.signature for name, it in found.items() if it.signature}
    return {**scores, "answers": len(truths)}


def score_rows(scores: dict[str, dict[str, Any]]) -> list[dict[str, str]]:
    """One row a writer: its name, then `scored`, in words."""
    rows = []
    for name, score in scores.items():
        row = {"writer": name}
        for part in ("BLEU", "chrF", "word F1"):
            it = score[part]
            row[part] = f"{it['estimate']:.1f} [{it['low']:.1f}, {it['high']:.1f}]"
        rows.append({**row, "answers": f"{score['answers']:,}"})
    return rows


def write_answers(
    out: Path, sources: Sequence[str], said: Sequence[str], truths: Sequence[str]
) -> None:
    """answers.csv: what was written, the worst first."""
    lines = io.StringIO(newline="")
    writer = csv.writer(lines)
    writer.writerow(["source", "target", "answer", "word F1"])
    rows = [(word_f1(a, t), s, t, a) for s, t, a in zip(sources, truths, said, strict=True)]
    for f1, source, target, answer in sorted(rows, key=lambda row: row[0]):
        writer.writerow([source, target, answer, f"{f1:.4f}"])
    write_text(out / "answers.csv", lines.getvalue())


def score(opened: LanguageModel, options: Evaluate) -> Callable[[str], dict[str, Any]]:
    """How `labkit evaluate` scores what a model answers to the sources of a file."""

    def of(source: str) -> dict[str, Any]:
        sources, truths = (list(side) for side in zip(*rows_of(source, options), strict=True))
        said = written(
            opened,
            sources,
            options.max_new_tokens,
            options.beams,
            options.length_penalty,
            options.batch_size,
        )
        return scored(said, truths)

    return of
