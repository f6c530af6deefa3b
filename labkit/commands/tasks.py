"""What `labkit finetune` learns from: files and corpora as tasks.

columns text, label      -> classification     text -> class; with a pair column, two texts -> class
columns prompt, answer   -> instruction        prompt -> answer
column text              -> text               each document is continued
a word and a tag a line  -> tagging            words -> tags (`tagging`)
columns question, context, answer -> qa        where the answer stands in the context (`questions`)
columns source, target   -> seq2seq            source -> target (`answers`)
columns messages         -> chat               each turn of the assistant (`conversations`)
columns chosen, rejected -> dpo                which of two answers is better (`conversations`)
"""

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labkit.commands.options import Finetune
from labkit.commands.shell import note
from labkit.errors import LabError
from labkit.text import conll, corpora, files
from labkit.text.cleaning import collapse_whitespace, split_by_hash
from labkit.text.conversations import row_kind
from labkit.text.corpora import SPLITS


@dataclass(frozen=True)
class Task:
    """What is learned from what."""

    kind: str
    """classification, instruction, text, tagging, qa, seq2seq, chat or dpo."""
    classes: list[str]
    """Names of the classes or tags; empty for a language model."""
    texts: dict[str, list[str]]
    """By split: what the model reads first (a text or a prompt)."""
    answers: dict[str, list[Any]]
    """By split: class ids, answers, rows with tags, or nothing."""
    pairs: dict[str, list[str]] = field(default_factory=dict)
    """By split: the second text of each pair; empty where a class is of one text."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of every example in its place: a resumed run must find the same."""
        parts = (self.kind, self.classes, self.texts, self.answers)
        whole = repr((*parts, self.pairs) if self.pairs else parts)
        return hashlib.sha256(whole.encode()).hexdigest()


# --- data --------------------------------------------------------------------------------------


def read(options: Finetune) -> Task:
    """Read the examples of all splits.

    Raises:
        LabError: a file, a column or a label cannot be used.
    """
    from labkit.commands import answers, conversations, questions  # they make tasks, too

    kind = options.task if options.task != "auto" else _kind(options)
    if options.head != "softmax" and kind != "tagging":
        raise LabError(
            f"head {options.head} is of taggers, this task is {kind}: give --task tagging"
        )
    readers = {
        "classification": _labelled,
        "instruction": _instructions,
        "text": _documents,
        "tagging": _tagged,
        "qa": questions.read,
        "seq2seq": answers.read,
        "chat": conversations.read_chats,
        "dpo": conversations.read_pairs,
    }
    task = readers[kind](options)
    return _apart(task, options) if _files(options) else task


def _apart(task: Task, options: Finetune) -> Task:
    """Leave out of training what stands in a held-out file too, and of validation what is in test.

    Splits of one file need no such care: they follow from the hash of each text.
    """
    texts, answers, pairs = dict(task.texts), dict(task.answers), dict(task.pairs)
    seen: set[Any] = set()
    for split in reversed(SPLITS):
        rows = texts[split]
        keys: list[Any] = [collapse_whitespace(text) for text in rows]
        if task.kind == "instruction":  # one prompt may have many answers
            keys = list(zip(keys, map(collapse_whitespace, answers[split]), strict=True))
        if task.kind == "qa":  # a context is in one part, whatever is asked
            keys = [collapse_whitespace(context) for context in pairs[split]]
        elif pairs:
            keys = list(zip(keys, map(collapse_whitespace, pairs[split]), strict=True))
        kept = [i for i, key in enumerate(keys) if key not in seen]
        seen |= set(keys)
        if len(kept) == len(rows):
            continue
        where = "the test or validation examples" if split == "train" else "the test examples"
        if not kept:
            raise LabError(
                f"all {len(rows)} {split} examples of {options.data} stand in {where} too: give "
                "other files"
            )
        note(f"{len(rows) - len(kept)} {split} examples stand in {where} too: left out")
        texts[split] = [rows[i] for i in kept]
        answers[split] = [answers[split][i] for i in kept] if answers[split] else []
        if pairs:
            pairs[split] = [pairs[split][i] for i in kept]
    return dataclasses.replace(task, texts=texts, answers=answers, pairs=pairs)


def _named(source: str) -> bool:
    return source in corpora.names() or source.startswith("hub:")


def _kind(options: Finetune) -> str:
    if _named(options.data):
        columns = corpora.load(options.data)["train"].column_names
        return "classification" if "label" in columns else "text"
    if Path(options.data).suffix.lower() in conll.SUFFIXES:
        return "tagging"
    if Path(options.data).suffix.lower() not in (".csv", ".tsv", ".jsonl"):
        return "text"
    columns = next(files.iterate_rows(options.data))
    if options.label_column in columns:  # also beside prompt and completion: not all are good
        return "classification"
    if talk := row_kind(columns):
        return talk
    if options.question_column in columns and options.context_column in columns:
        return "qa"
    if options.source_column in columns and options.target_column in columns:
        return "seq2seq"
    if options.answer_column in columns:
        return "instruction"
    if others := [name for name in columns if name != options.text_column]:
        if meant := files.hint(columns, options.label_column):
            raise LabError(
                f"{options.data} has no column {options.label_column!r} but "
                f"{', '.join(columns)}.{meant}"
            )
        raise LabError(
            f"{options.data} has columns {', '.join(columns)}: name the class with --label-column "
            f"(such as {others[0]}), the answer with --answer-column, or give --task text to learn "
            f"column {options.text_column!r} alone"
        )
    return "text"


def _files(options: Finetune) -> dict[str, Path]:
    given = {"validation": options.validation, "test": options.test}
    return {split: file for split, file in given.items() if file is not None}


def _shares(options: Finetune) -> dict[str, float]:
    """Of `data`: a tenth for each split that has no file of its own."""
    return {split: 0.0 if split in _files(options) else 0.1 for split in SPLITS[1:]}


def file_splits(
    options: Finetune,
    read: Callable[[str | Path], list[tuple[Any, ...]]],
    key: Callable[[tuple[Any, ...]], str],
) -> dict[str, list[tuple[Any, ...]]]:
    """Rows of one's own files in three splits; rows of the same key are in the same one.

    Args:
        options: which files.
        read: a file -> its rows.
        key: a row -> what decides its split.

    Raises:
        LabError: the data are a corpus, or a split is left without a row.
    """
    if _named(options.data):
        raise LabError(
            f"{options.data} has no rows of task {options.task}: give a csv, tsv or jsonl file"
        )
    rows = read(options.data)
    positions = split_by_hash([key(row) for row in rows], seed=0, **_shares(options))
    splits = {split: [rows[i] for i in positions[split]] for split in SPLITS}
    splits |= {split: read(file) for split, file in _files(options).items()}
    if empty := [split for split in SPLITS if not splits[split]]:
        raise LabError(
            f"{options.data} has {len(rows)} examples, which leaves none for {empty[0]}: give more,"
            " or a file for --validation and --test"
        )
    return splits


def _labelled(options: Finetune) -> Task:
    names = {
        "text_column": options.text_column,
        "label_column": options.label_column,
        "pair_column": options.pair_column,
    }
    columns = {} if _named(options.data) else {**names, **_shares(options)}
    splits = corpora.load(options.data, **columns)
    if "label" not in splits["train"].column_names:
        found = ", ".join(splits["train"].column_names)
        raise LabError(
            f"{options.data} has no column {options.label_column!r} but {found}: a classifier needs"
            " a label for each text"
        )
    classes = splits["train"].features["label"].names
    texts = {split: list(splits[split]["text"]) for split in SPLITS}
    labels = {split: list(splits[split]["label"]) for split in SPLITS}
    paired = options.pair_column is not None and not _named(options.data)
    pairs = {split: list(splits[split]["pair"]) for split in SPLITS} if paired else {}
    for split, file in _files(options).items():
        rows = corpora.load_labelled(file, **names, classes=classes)
        texts[split], labels[split] = list(rows["text"]), list(rows["label"])
        if paired:
            pairs[split] = list(rows["pair"])
    task = Task("classification", classes, texts, labels, pairs)
    for number, name in enumerate(classes):
        if number not in labels["train"]:
            drawn = [split for split in SPLITS[1:] if split not in _files(options)]
            _bring_back(task, number, drawn, options)
            note(f"class {name!r} is so rare that its examples were held out: one is trained on")
    return task


def _bring_back(task: Task, label: int, drawn: list[str], options: Finetune) -> None:
    """Move one example of a class from a split that we drew ourselves into training, in place."""
    for split in drawn:
        if label in task.answers[split]:
            place = task.answers[split].index(label)
            for column in (task.texts, task.answers, task.pairs):
                if column:
                    column["train"].append(column[split].pop(place))
            if not task.texts[split]:
                raise LabError(
                    f"{options.data} has too few rows for {split} examples: give more rows, or a "
                    f"file for --{split}"
                )
            return
    name = task.classes[label]
    raise LabError(f"class {name!r} of {options.data} has no training example: give it more rows")


def cells(path: str | Path, rows: list[dict[str, Any]], column: str) -> list[str]:
    """One column of rows as text without spaces around it, none empty.

    Raises:
        LabError: a row has nothing there.
    """
    for number, row in enumerate(rows, start=1):
        if not str(row.get(column) or "").strip():
            raise LabError(
                f"{path} row {number} has nothing in column {column!r}; its columns are "
                f"{', '.join(row)}"
            )
    return [str(row[column]).strip() for row in rows]


def _instructions(options: Finetune) -> Task:
    texts: dict[str, list[str]] = {split: [] for split in SPLITS}
    answers: dict[str, list[Any]] = {split: [] for split in SPLITS}
    if _named(options.data):
        splits = corpora.load(options.data)
        if "instructions" not in splits["train"].column_names:
            raise LabError(f"{options.data} holds no instructions: storyworld does")
        for split in SPLITS:
            for story in splits[split]:
                for row in story["instructions"]:  # type: ignore[index]
                    texts[split].append(f"{story['text']}\n{row['instruction']}")  # type: ignore[index]
                    answers[split].append(row["response"])
        return Task("instruction", [], texts, answers)
    prompts, replies = _pairs(options.data, options)
    positions = split_by_hash(prompts, seed=0, **_shares(options))
    for split in SPLITS:
        texts[split] = [prompts[i] for i in positions[split]]
        answers[split] = [replies[i] for i in positions[split]]
    for split, file in _files(options).items():
        texts[split], answers[split] = _pairs(file, options)
    if empty := [split for split in SPLITS if not texts[split]]:
        raise LabError(
            f"{options.data} has {len(prompts)} examples, which leaves none for {empty[0]}: give "
            "more, or a file for --validation and --test"
        )
    return Task("instruction", [], texts, answers)


def _pairs(path: str | Path, options: Finetune) -> tuple[list[str], list[str]]:
    rows = files.rows(path)
    columns = (options.prompt_column, options.answer_column)
    prompts, replies = (cells(path, rows, column) for column in columns)
    return prompts, replies


def _documents(options: Finetune) -> Task:
    column = options.text_column
    columns = {} if _named(options.data) else {"text_column": column, **_shares(options)}
    splits = corpora.load(options.data, **columns)
    texts = {split: list(splits[split]["text"]) for split in SPLITS}
    for split, file in _files(options).items():
        texts[split] = list(corpora.load_text(file, column)["text"])
    return Task("text", [], texts, {split: [] for split in SPLITS})


def _tagged(options: Finetune) -> Task:
    from labkit.commands.tagging import read_task  # which reads `Task` from here

    return read_task(options)
