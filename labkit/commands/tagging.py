"""`labkit finetune --task tagging`, and what `evaluate` and `classify` do with a tagger.

a file of words and tags, or a corpus ──> Task: rows in three splits, whole documents
Tags: windows ──> the loop ──> entity F1 beside counting baselines ──> model/, errors.csv
evaluate: rows ──> scores of each file        classify: texts ──> words with tags
"""

import csv
import dataclasses
import io
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from labkit.atomic import write_text
from labkit.batches import Batches, Pad, tagged_examples
from labkit.commands.examples import BATCHES_TO_SORT
from labkit.commands.learning import Learner
from labkit.commands.options import Classify, Evaluate, Finetune
from labkit.commands.shell import counted, say, table
from labkit.commands.tasks import Task
from labkit.errors import LabError
from labkit.evaluation.entities import EntityScores, entity_scores, score_table
from labkit.evaluation.tagging_baselines import BASELINES
from labkit.generation.classifier import Reading
from labkit.generation.tagger import TaggedText, WordTagger, load_tagger, split_words
from labkit.models.config import context_length
from labkit.models.tagger import Tagger
from labkit.objectives.tagging import tagging
from labkit.text import code_roles, files, story_entities
from labkit.text.bio import Tagged, spans, tag_names, types_of
from labkit.text.cleaning import split_by_hash
from labkit.text.conll import SUFFIXES, read_conll, write_conll
from labkit.text.corpora import SPLITS, names

Rows = dict[str, list[Tagged]]
#: Corpora that bring tags of their own.
CORPORA: dict[str, Callable[[], Rows]] = {
    "python_source": code_roles.code_roles,
    "storyworld": story_entities.story_entities,
}


def read_task(options: Finetune) -> Task:
    """Rows of words and tags as a task.

    Raises:
        LabError: the data hold no tags, a row cannot be used, or there are too few documents.
    """
    given = {"validation": options.validation, "test": options.test}
    own = {split: file for split, file in given.items() if file is not None}
    if options.data in CORPORA:
        rows = CORPORA[options.data]()
    else:
        rows = _split(_read(options.data), options.data, own)
    tags = tag_names(types_of(tag for part in rows.values() for row in part for tag in row.tags))
    if len(tags) == 1:
        raise LabError(f"{options.data} tags every word with O: give rows with B-X and I-X")
    for split, file in own.items():
        rows[split] = read_conll(file, tags)
    texts = {split: [" ".join(row.words) for row in rows[split]] for split in SPLITS}
    answers: dict[str, list[Any]] = {split: list(rows[split]) for split in SPLITS}
    return Task("tagging", tags, texts, answers)


def _read(source: str) -> list[Tagged]:
    if source in names() or source.startswith("hub:"):
        raise LabError(
            f"{source} has no tags: give {' or '.join(CORPORA)}, or a file with a word, a tab and "
            "its tag in each line"
        )
    return read_conll(source)


def _split(rows: list[Tagged], source: str, own: dict[str, Path]) -> Rows:
    """Whole documents, by the hash of their words; no split that was not given is left empty."""
    documents: dict[str, list[Tagged]] = {}
    for row in rows:
        documents.setdefault(row.document, []).append(row)
    keys = [" ".join(word for row in part for word in row.words) for part in documents.values()]
    shares = {split: 0.0 if split in own else 0.1 for split in SPLITS[1:]}
    positions = split_by_hash(keys, seed=0, **shares)
    for split in SPLITS:
        if not positions[split] and split not in own:
            donor = max(positions, key=lambda other: len(positions[other]))
            if len(positions[donor]) < 2:
                raise LabError(
                    f"{source} has {len(documents)} documents, which leaves none for {split}: give "
                    "more rows, or a file for --validation and --test"
                )
            positions[split].append(positions[donor].pop())
    parts = list(documents.values())
    return {split: [row for i in positions[split] for row in parts[i]] for split in SPLITS}


def entity_sizes(task: Task) -> str:
    """Each type with its training entities."""
    found = Counter(span.type for row in task.answers["train"] for span in spans(row.tags))
    types = types_of(task.classes)
    return f"{len(types)} types: " + ", ".join(f"{name} {found[name]:,}" for name in types)


class Tags(Learner):
    """Words of rows."""

    objective = staticmethod(tagging)

    def __post_init__(self) -> None:
        self.reading = Reading(self.sizes.max_length)

    @property
    def use(self) -> str:
        crf = " with a CRF" if self.options.head == "crf" else ""
        return f"token-classification{crf}"

    def batches(self, split: str) -> Batches:
        rows, size = self.task.answers[split], self.sizes.batch_size
        examples = tagged_examples(self.tokenizer, rows, self.task.classes, self.sizes.max_length)
        return Batches(
            examples,
            size,
            Pad(self.tokenizer.pad_id),
            seed=self.options.train.seed,
            lengths=[len(example["input_ids"]) for example in examples],
            bucket=16 if len(examples) >= BATCHES_TO_SORT * size else 1,
        )

    def test(self, model: nn.Module) -> dict[str, Any]:
        assert isinstance(model, Tagger)
        self.reading.keep(self.options.out / "model")
        rows: list[Tagged] = self.task.answers["test"]
        reader = WordTagger(model, self.tokenizer, self.reading)
        said = _tag(reader, [row.words for row in rows], "test", 32, self.options.train.precision)
        scores = {"fine-tuned": _scores(rows, [text.tags for text in said])}
        if self.options.baselines:
            for name, kind in BASELINES.items():
                answers = kind(self.task.answers["train"]).tag([row.words for row in rows])
                scores[name] = _scores(rows, answers)
        write_text(self.options.out / "errors.csv", _errors(rows, said))
        say(table(score_table(scores)))
        say("\n" + table(_types(scores["fine-tuned"])))
        plain = {name: score.row() for name, score in scores.items()}
        test = plain.pop("fine-tuned")
        self.shown = score_table({"this model": scores.pop("fine-tuned"), **scores})
        return {"test": test, "baselines": plain}

    def rows(self, evaluation: dict[str, Any]) -> list[dict[str, str]]:
        return self.shown

    def next_step(self) -> str:
        return (
            f'next: labkit classify {self.options.out} --text "..."   (new texts)\n'
            f"      {self.options.out / 'errors.csv'}   (the mistakes: read them)"
        )


def _tag(
    reader: WordTagger, rows: Sequence[list[str]], what: str, batch_size: int, precision: str
) -> list[TaggedText]:
    def watch(batches: Any, count: int) -> Any:
        return counted(batches, count, what)

    return reader.tag(rows, batch_size=batch_size, precision=precision, watch=watch)


def _scores(rows: Sequence[Tagged], said: Sequence[Sequence[str]]) -> EntityScores:
    named = all(row.document for row in rows)
    documents = [row.document for row in rows] if named else None
    return entity_scores([row.tags for row in rows], said, documents)


def _types(scores: EntityScores) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for name, found in scores.by_type.items():
        numbers = {"precision": found.precision, "recall": found.recall, "F1": found.f1}
        rows.append({"type": name, **numbers, "entities": found.right})
    return rows or [{"type": "none", "precision": 0.0, "recall": 0.0, "F1": 0.0, "entities": 0}]


def _errors(rows: Sequence[Tagged], said: Sequence[TaggedText]) -> str:
    """Every span that was missed or made up, with its row, the surest mistakes first."""
    wrong: list[tuple[str, ...]] = []
    for row, text in zip(rows, said, strict=True):
        right, mine = set(spans(row.tags)), set(spans(text.tags))
        for start, end, kind in right ^ mine:
            what = "missed" if (start, end, kind) in right else "made up"
            sure = min(text.probabilities[start:end])
            words = " ".join(row.words[start:end])
            wrong.append((what, kind, words, f"{sure:.4f}", " ".join(row.words)))
    wrong.sort(key=lambda line: (-float(line[3]), line))
    lines = io.StringIO(newline="")
    writer = csv.writer(lines)
    writer.writerow(["error", "type", "words", "probability", "row"])
    writer.writerows(wrong)
    return lines.getvalue()


# --- evaluate and classify ---------------------------------------------------------------------


def evaluate(folder: Path, options: Evaluate) -> dict[str, Any]:
    """Score a tagger on each file or corpus; print tables or JSON.

    Raises:
        LabError: the model, a file, its tags or an option cannot be used.
    """
    opened = load_tagger(folder, device=options.device)
    if T := options.context_length:
        longest = context_length(opened.model)
        if longest < T:
            raise LabError(f"context_length {T} is out of range: the model reads at most {longest}")
        opened = dataclasses.replace(opened, reading=Reading(T))
    every = {source: _of_source(source, options.split, opened) for source in options.data}
    scores = {}
    for source, rows in every.items():
        words = [row.words for row in rows]
        said = _tag(opened, words, source, options.batch_size, options.precision)
        scores[source] = _scores(rows, [text.tags for text in said])
    plain = {source: score.row() for source, score in scores.items()}
    if options.json:
        say(json.dumps({"model": str(options.model), "scores": plain}))
        return plain
    say(table([{"data": row.pop("model"), **row} for row in score_table(scores)]))
    for source, score in scores.items():
        say(f"\n{source}\n" + table(_types(score)))
    return plain


def _of_source(source: str, split: str | None, opened: WordTagger) -> list[Tagged]:
    known = opened.model.tags
    if source in CORPORA:
        rows = CORPORA[source]()[split or "test"]
        strange = {tag for row in rows for tag in row.tags} - set(known)
        if strange:
            raise LabError(
                f"{source} has tag {min(strange)!r}, which is none of the model's: "
                f"{', '.join(known)}"
            )
        return rows
    if split is not None:
        raise LabError(f"{source} is read whole: leave --split out, or give a corpus")
    return read_conll(source, known)


def classify(folder: Path, options: Classify) -> list[dict[str, Any]]:
    """Tag new texts; print them, or write a file of words and tags.

    Raises:
        LabError: a text holds no word, or the file cannot be read.
    """
    rows = _rows(options)
    opened = load_tagger(folder, device=options.device)
    name = str(options.data or "text")
    said = _tag(opened, rows, name, options.batch_size, options.precision)
    if options.out is not None:
        write_conll(options.out, [Tagged(text.words, text.tags) for text in said])
        say(f"{options.out}: the tags of {len(said):,} texts")
    found = [
        {
            "text": " ".join(text.words),
            "entities": text.entities,
            "words": text.words,
            "tags": text.tags,
            "probabilities": text.probabilities,
        }
        for text in said
    ]
    if options.out is None:
        for text, row in zip(said, found, strict=True):
            say(json.dumps(row, ensure_ascii=False) if options.json else str(text))
    return found


def _rows(options: Classify) -> list[list[str]]:
    if options.data is None:
        texts = list(options.text)
    elif options.data.suffix.lower() in SUFFIXES:
        return [row.words for row in read_conll(options.data)]
    elif options.data.suffix.lower() in (".csv", ".tsv", ".jsonl"):
        texts = files.column(options.data, files.rows(options.data), options.text_column)
    else:
        texts = [line for line in files.read(options.data).splitlines() if line.strip()]
    rows = [split_words(text) for text in texts]
    for number, words in enumerate(rows, start=1):
        if not words:
            raise LabError(f"text {number} holds no word: give at least one")
    return rows
