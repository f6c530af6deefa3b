"""`labkit finetune --task qa`, and the score of such a run: answers that are pieces of a text.

    question, context, answer[, answer_start] ──> characters ──> windows ──> every parameter trains
    ──> threshold of "no answer" on validation ──> exact match and F1 on test, beside lazy readers

An empty answer says that the context holds none. Splits go by context: one text is in one part.
"""

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from labkit import runtime
from labkit.atomic import write_text
from labkit.batches import Batches, Example, Pad
from labkit.commands.learning import Learner
from labkit.commands.options import Evaluate, Finetune
from labkit.commands.shell import counted, note, say, table
from labkit.commands.tasks import Task, file_splits
from labkit.errors import LabError
from labkit.evaluation.overlap import Overlap, answer_scores, token_f1
from labkit.generation.reader import SpanAnswerer, load_reader
from labkit.objectives.spans import span_answer
from labkit.text import cleaning, files
from labkit.text.corpora import SPLITS
from labkit.text.word_order import sentences

#: Of the room for text in a window, windows advance by this share.
ADVANCE = 0.5


def read(options: Finetune) -> Task:
    """Questions ("texts"), contexts ("pairs"), and (answer, first character or -1) of all splits.

    Raises:
        LabError: a column is missing, a cell is empty, or an answer does not stand in its context.
    """
    splits = file_splits(options, lambda path: rows_of(path, options), key=lambda row: row[1])
    texts = {split: [row[0] for row in rows] for split, rows in splits.items()}
    contexts = {split: [row[1] for row in rows] for split, rows in splits.items()}
    answers = {split: [row[2:] for row in rows] for split, rows in splits.items()}
    if not any(start >= 0 for _, start in answers["train"]):
        raise LabError(
            f"no question of {options.data} has an answer to learn from: fill column "
            f"{options.answer_column!r}"
        )
    kinds = {start >= 0 for _, start in answers["validation"]}
    if len(kinds) == 1:
        which = "an answer" if True in kinds else "no answer"
        note(f"every validation question has {which}: the threshold of no answer stays 0")
    return Task("qa", [], texts, answers, contexts)


def rows_of(path: str | Path, options: Finetune | Evaluate) -> list[tuple[str, str, str, int]]:
    """(question, context, answer, first character or -1) of each row of a file.

    Raises:
        LabError: as `read`; the message names the row.
    """
    rows = files.rows(path)
    names = (options.question_column, options.context_column, options.answer_column)
    questions, contexts, answers = (files.column(path, rows, name) for name in names)
    found, twice = [], 0
    for number, (question, context, answer) in enumerate(
        zip(questions, contexts, answers, strict=True), start=1
    ):
        for name, value in zip(names, (question, context), strict=False):
            if not value.strip():
                raise LabError(f"{path} row {number} has nothing in column {name!r}: fill it")
        answer = answer.strip()
        given = str(rows[number - 1].get(options.answer_start_column) or "").strip()
        start = -1
        if answer:
            start = _start(path, number, context, answer, given, options.answer_start_column)
            twice += not given and context.count(answer) > 1
        found.append((question.strip(), context, answer, start))
    if twice:
        note(
            f"{twice:,} answers of {path} stand several times in their context: the first is taken "
            f"(name it in column {options.answer_start_column!r})"
        )
    return found


def _start(
    path: str | Path, number: int, context: str, answer: str, given: str, column: str
) -> int:
    if not given:
        if (start := context.find(answer)) < 0:
            raise LabError(
                f"{path} row {number}: the answer {answer[:60]!r} does not stand in its context; "
                "copy it letter by letter, or leave it empty where the context holds none"
            )
        return start
    try:
        start = int(float(given))
    except (ValueError, OverflowError):
        start = -1
    if start < 0 or start >= len(context):
        raise LabError(
            f"{path} row {number}: {column} is {given!r}; it counts characters of the context, 0 "
            f"to {len(context) - 1}"
        )
    if not context.startswith(answer, start):
        raise LabError(
            f"{path} row {number}: at {column} {start} the context has "
            f"{context[start : start + len(answer)][:60]!r}, not the answer {answer[:60]!r}; "
            "correct the number, or leave it out"
        )
    return start


def lazy_answer(question: str, context: str) -> str:
    """The sentence of the context that shares the most words with the question."""
    asked = set(cleaning.words(question))
    said = sentences(context) or [context]
    return max(said, key=lambda sentence: len(asked & set(cleaning.words(sentence))))


class Questions(Learner):
    """Answers that are spans."""

    objective = staticmethod(span_answer)

    @property
    def use(self) -> str:
        return "question-answering"

    def __post_init__(self) -> None:
        asked = [question for split in SPLITS for question in self.task.texts[split]]
        longest = max(map(len, self.tokenizer.encode_batch(asked)))
        room = max(1, self.sizes.max_length - longest - 3)
        stride = max(1, int(ADVANCE * room))
        self.reader = SpanAnswerer(self.model, self.tokenizer, self.sizes.max_length, stride)

    def batches(self, split: str) -> Batches:
        """All windows of the questions; those without the answer teach to say so."""
        windows = self.reader.windows(
            self.task.texts[split],
            self.task.pairs[split],
            [
                (start, start + len(answer)) if start >= 0 else (-1, -1)
                for answer, start in self.task.answers[split]
            ],
        )
        whole = {window.owner for window in windows if int(window.example["start_positions"])}
        asked = sum(start >= 0 for _, start in self.task.answers[split])
        if split == "train" and not whole:
            raise LabError(
                f"none of the {asked} answers fits whole into a window of max_length "
                f"{self.sizes.max_length}: choose a longer one"
            )
        if len(whole) < asked:
            note(f"{asked - len(whole):,} of {asked:,} {split} answers fit into no window whole")
        examples: list[Example] = [window.example for window in windows]
        lengths = [len(example["input_ids"]) for example in examples]
        seed, collate = self.options.train.seed, Pad(self.tokenizer.pad_id)
        return Batches(
            examples, self.sizes.batch_size, collate, seed=seed, lengths=lengths, bucket=1
        )

    def test(self, model: nn.Module) -> dict[str, Any]:
        reader = SpanAnswerer(model, self.tokenizer, self.reader.max_length, self.reader.stride)
        held = self.task.pairs["validation"]
        found = self._find(reader, "validation")
        truths = [answer for answer, _ in self.task.answers["validation"]]
        reader = reader.settled(held, found, truths)
        reader.keep(self.options.out / "model")
        contexts = self.task.pairs["test"]
        said = reader.say(contexts, self._find(reader, "test"))
        truths = [answer for answer, _ in self.task.answers["test"]]
        asked = self.task.texts["test"]
        write_errors(self.options.out, asked, contexts, said, truths)
        scores = {"fine-tuned": scored(said, truths, contexts)}
        if self.options.baselines:
            lazy = [lazy_answer(q, c) for q, c in zip(asked, contexts, strict=True)]
            scores["sentence with most common words"] = scored(lazy, truths, contexts)
            scores["always no answer"] = scored([""] * len(truths), truths, contexts)
        say(table(score_rows(scores)))
        test = scores.pop("fine-tuned")
        return {"test": test, "baselines": scores, "threshold": reader.threshold}

    def _find(self, reader: SpanAnswerer, split: str) -> Any:
        return reader.find(
            self.task.texts[split],
            self.task.pairs[split],
            precision=self.options.train.precision,
            watch=lambda batches, count: counted(batches, count, split),
        )

    def rows(self, evaluation: dict[str, Any]) -> list[dict[str, str]]:
        return score_rows({"this model": evaluation["test"], **evaluation["baselines"]})

    def next_step(self) -> str:
        return (
            f"next: labkit evaluate {self.options.out} --data new.csv   (other questions)\n"
            f"      {self.options.out / 'errors.csv'}   (the worst mistakes: read them)"
        )


def scored(said: Sequence[str], truths: Sequence[str], contexts: Sequence[str]) -> dict[str, Any]:
    """Exact match and F1 in percent with intervals over contexts, of all and of each kind."""
    scores = _plain(answer_scores(said, truths, contexts))
    for name, wanted in (("with an answer", True), ("without", False)):
        rows = [i for i, truth in enumerate(truths) if bool(truth) == wanted]
        if rows:
            some = [[side[i] for i in rows] for side in (said, truths, contexts)]
            of = answer_scores(some[0], some[1], some[2])
            scores[f"F1 {name}"] = of["F1"].interval._asdict()
    return {**scores, "questions": len(truths)}


def _plain(scores: dict[str, Overlap]) -> dict[str, Any]:
    return {name: it.interval._asdict() for name, it in scores.items()}


def score_rows(scores: dict[str, dict[str, Any]]) -> list[dict[str, str]]:
    """One row a reader: its name, then `scored`, in words."""
    rows = []
    for name, score in scores.items():
        row = {"reader": name}
        for part in ("exact match", "F1"):
            it = score[part]
            row[part] = f"{it['estimate']:.1f} [{it['low']:.1f}, {it['high']:.1f}]"
        for part in ("F1 with an answer", "F1 without"):
            row[part] = f"{score[part]['estimate']:.1f}" if part in score else "-"
        rows.append({**row, "questions": f"{score['questions']:,}"})
    return rows


def write_errors(
    out: Path,
    questions: Sequence[str],
    contexts: Sequence[str],
    said: Sequence[str],
    truths: Sequence[str],
) -> None:
    """errors.csv: the questions that are answered wrongly, the worst first."""
    lines = io.StringIO(newline="")
    writer = csv.writer(lines)
    writer.writerow(["question", "truth", "answer", "F1", "context"])
    rows = [
        (token_f1(a, t), q, t, a, c)
        for q, t, a, c in zip(questions, truths, said, contexts, strict=True)
    ]
    for f1, question, truth, answer, context in sorted(rows, key=lambda row: row[0]):
        if f1 < 1:
            writer.writerow([question, truth, answer, f"{f1:.4f}", context])
    write_text(out / "errors.csv", lines.getvalue())


def score(folder: Path, options: Evaluate) -> Callable[[str], dict[str, Any]]:
    """How `labkit evaluate` scores a reader on a file of questions."""
    reader = load_reader(folder, device=options.device)
    precision = runtime.pick_precision(next(reader.model.parameters()).device, options.precision)

    def of(source: str) -> dict[str, Any]:
        rows = rows_of(source, options)
        questions, contexts, truths, _ = (list(column) for column in zip(*rows, strict=True))
        found = reader.find(
            questions,
            contexts,
            batch_size=options.batch_size,
            precision=precision,
            watch=lambda batches, count: counted(batches, count, source),
        )
        return scored(reader.say(contexts, found), truths, contexts)

    return of
