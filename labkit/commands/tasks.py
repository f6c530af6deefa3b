"""What `labkit finetune` learns from: files and corpora as tasks, tasks as batches.

columns text, label      -> classification     text [SEP] -> class
columns prompt, answer   -> instruction        prompt -> answer; only the answer counts
column text              -> text               each document is continued
"""

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from labkit.batches import (
    IGNORE_INDEX,
    Batches,
    Pad,
    answer_ids,
    chat_ids,
    instruction_example,
    labelled_examples,
)
from labkit.batches.types import Example
from labkit.commands.options import Finetune
from labkit.commands.shell import note, say
from labkit.errors import LabError
from labkit.text import corpora, files
from labkit.text.cleaning import collapse_whitespace, split_by_hash
from labkit.text.corpora import SPLITS
from labkit.text.tokenizers import Tokenizer


@dataclass(frozen=True)
class Task:
    """What is learned from what."""

    kind: str
    """classification, instruction or text."""
    classes: list[str]
    """Names of the classes; empty for a language model."""
    texts: dict[str, list[str]]
    """By split: what the model reads first (a text or a prompt)."""
    answers: dict[str, list[Any]]
    """By split: class ids, answers, or nothing."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of every example in its place: a resumed run must find the same."""
        whole = repr((self.kind, self.classes, self.texts, self.answers))
        return hashlib.sha256(whole.encode()).hexdigest()


# --- data --------------------------------------------------------------------------------------


def read(options: Finetune) -> Task:
    """Read the examples of all splits.

    Raises:
        LabError: a file, a column or a label cannot be used.
    """
    kind = options.task if options.task != "auto" else _kind(options)
    readers = {"classification": _labelled, "instruction": _instructions, "text": _documents}
    task = readers[kind](options)
    return _apart(task, options) if _files(options) else task


def _apart(task: Task, options: Finetune) -> Task:
    """Leave out of training what stands in a held-out file too, and of validation what is in test.

    Splits of one file need no such care: they follow from the hash of each text.
    """
    texts, answers = dict(task.texts), dict(task.answers)
    seen: set[Any] = set()
    for split in reversed(SPLITS):
        rows = texts[split]
        keys: list[Any] = [collapse_whitespace(text) for text in rows]
        if task.kind == "instruction":  # one prompt may have many answers
            keys = list(zip(keys, map(collapse_whitespace, answers[split]), strict=True))
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
    return dataclasses.replace(task, texts=texts, answers=answers)


def _named(source: str) -> bool:
    return source in corpora.names() or source.startswith("hub:")


def _kind(options: Finetune) -> str:
    if _named(options.data):
        columns = corpora.load(options.data)["train"].column_names
        return "classification" if "label" in columns else "text"
    if Path(options.data).suffix.lower() not in (".csv", ".tsv", ".jsonl"):
        return "text"
    columns = next(files.iterate_rows(options.data))
    if options.label_column in columns:
        return "classification"
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


def _labelled(options: Finetune) -> Task:
    names = {"text_column": options.text_column, "label_column": options.label_column}
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
    for split, file in _files(options).items():
        rows = corpora.load_labelled(file, **names, classes=classes)
        texts[split], labels[split] = list(rows["text"]), list(rows["label"])
    for number, name in enumerate(classes):
        if number not in labels["train"]:
            raise LabError(
                f"class {name!r} of {options.data} has no training example: give it more rows"
            )
    return Task("classification", classes, texts, labels)


def _cells(path: str | Path, rows: list[dict[str, Any]], column: str) -> list[str]:
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
    prompts, replies = (_cells(path, rows, column) for column in columns)
    return prompts, replies


def _documents(options: Finetune) -> Task:
    column = options.text_column
    columns = {} if _named(options.data) else {"text_column": column, **_shares(options)}
    splits = corpora.load(options.data, **columns)
    texts = {split: list(splits[split]["text"]) for split in SPLITS}
    for split, file in _files(options).items():
        texts[split] = list(corpora.load_text(file, column)["text"])
    return Task("text", [], texts, {split: [] for split in SPLITS})


# --- examples ----------------------------------------------------------------------------------


def classified(
    tokenizer: Tokenizer, texts: list[str], labels: list[int], limit: int, what: str
) -> list[Example]:
    """Examples of a classifier; says how many texts are longer than `limit` tokens and are cut."""
    encoded = [ids or [tokenizer.end_of_text_id] for ids in tokenizer.encode_batch(texts)]
    if cut := sum(len(ids) > limit for ids in encoded):
        note(f"{cut:,} of {len(texts):,} {what} texts are longer than {limit} tokens: cut")
    return labelled_examples(encoded, labels, limit)


def batches(task: Task, tokenizer: Tokenizer, options: Finetune, split: str) -> Batches:
    """The examples of one split, cut to `max_length`; training ones in groups of like length.

    Raises:
        LabError: no answer begins within `max_length`.
    """
    texts, answers, limit = task.texts[split], task.answers[split], options.max_length
    if task.kind == "classification":
        examples = classified(tokenizer, texts, answers, limit, split)
    elif task.kind == "instruction":
        pairs = zip(texts, answers, strict=True)
        whole = [
            instruction_example(
                chat_ids(tokenizer, prompt), answer_ids(tokenizer, answer), tokenizer.end_of_turn_id
            )
            for prompt, answer in pairs
        ]
        cut = [{key: ids[:limit] for key, ids in example.items()} for example in whole]
        examples = [e for e in cut if (e["labels"] != IGNORE_INDEX).any()]
        if not examples:
            raise LabError(
                f"all targets of the {len(cut)} {split} examples are masked: no answer begins "
                f"within max_length {limit}; choose a longer one"
            )
        if len(examples) < len(cut):
            say(f"{len(cut) - len(examples)} {split} examples are longer than {limit} tokens: left")
    else:
        end = tokenizer.end_of_text_id
        streams = [[end, *ids, end] for ids in tokenizer.encode_batch(texts)]
        pieces = [
            torch.tensor(ids[start : start + limit + 1])
            for ids in streams
            for start in range(0, len(ids) - 1, limit)
        ]
        examples = [{"input_ids": ids[:-1], "labels": ids[1:]} for ids in pieces]
    lengths = [len(e["input_ids"]) for e in examples] if split == "train" else None
    collate = Pad(tokenizer.pad_id)
    return Batches(examples, options.batch_size, collate, seed=options.train.seed, lengths=lengths)
