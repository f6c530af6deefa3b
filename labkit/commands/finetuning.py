"""`labkit finetune`: from one's own examples to a fine-tuned model folder.

    columns text, label      -> classification   accuracy and macro-F1 with intervals
    columns prompt, answer   -> instruction      the loss counts the answer only
    column text              -> text             each document is continued

Validation chooses when to stop and which weights to keep; the test examples are read once, at the
end. Whether they come from files or from a split by content, no text is in two of them.

Sources: Devlin et al. 2019, appendix A.3 (rates, epochs); Ouyang et al. 2022 (instructions).
"""

import dataclasses
import hashlib
import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from labkit import corpora, evaluate, interop, runtime, strategies, text
from labkit.batches import IGNORE_INDEX, Batches, Example, Pad, instruction_example
from labkit.commands.options import Finetune, check, check_same, saved_options, to_dict
from labkit.commands.shell import (
    Progress,
    chat_ids,
    check_free,
    claim,
    duration,
    first,
    longest_context,
    model_folder,
    open_classifier,
    open_lm,
    quiet_libraries,
    say,
    table,
    whole,
    write_json,
)
from labkit.errors import LabError
from labkit.objectives import causal_lm, classification
from labkit.runs import TrainConfig
from labkit.tokenizers import Tokenizer
from labkit.train import mean_loss, train

SPLITS = ("train", "validation", "test")
TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "vocab.*", "merges.txt")


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


def finetune(options: Finetune) -> dict[str, Any] | None:
    """Run the command.

    Returns:
        What evaluation.json holds; None on ranks other than 0.

    Raises:
        LabError: an option, the data, the model or the run folder cannot be used.
    """
    quiet_libraries()
    with runtime.distributed() as here:
        options = first(here, lambda: _checked(options))
        task = read(options)
        folder = model_folder(options.model)
        tokenizer = Tokenizer.from_pretrained(folder)
        torch.manual_seed(options.seed)
        model = _open(task, folder, tokenizer)
        limit = longest_context(model)
        if options.max_length > limit:
            options = dataclasses.replace(options, max_length=limit)
        data = {split: _batches(task, tokenizer, options, split) for split in SPLITS}
        trained = strategies.apply(model, options.strategy)
        settings = train_config(options, data["train"].steps_per_epoch)
        first(here, lambda: _write_config(options, task))
        if here.rank == 0:
            _describe(task, model, trained, settings)
        objective = classification if task.kind == "classification" else causal_lm
        progress = Progress()
        try:
            result = train(
                model,
                objective,
                data["train"],
                settings,
                validation=data["validation"],
                on_step=progress,
            )
        finally:
            progress.close()
        if result.stopped == "interrupted":
            say(f"stopped by hand; continue with: labkit finetune --resume --out {options.out}")
            raise KeyboardInterrupt
        model = whole(model, here, options.parallel, lambda: _open(task, folder, tokenizer))
        if here.rank:
            return None
        _save(model, folder, options.out / "model")
        evaluation = _test(model, task, data["test"], options)
        evaluation |= {"best": result.best, "stopped": result.stopped, "steps": result.steps}
        write_json(options.out / "evaluation.json", evaluation)
        best = f", best at {result.best['step']}" if result.best else ""
        say(
            f"{options.out}: the model is in {options.out / 'model'} ({result.steps} updates in "
            f"{duration(result.seconds)}{best})"
        )
        return evaluation


# --- options -----------------------------------------------------------------------------------


def _checked(options: Finetune) -> Finetune:
    train_config(options, 1)
    check(options.epochs > 0, options, "epochs", "a number above 0")
    check(options.batch_size >= 1, options, "batch_size", "at least 1")
    check(options.max_length >= 2, options, "max_length", "at least 2")
    check(0 <= options.warmup <= 1, options, "warmup", "0 to 1")
    check(0 <= options.seed < 2**32, options, "seed", f"0 to {2**32 - 1}")
    ranks = runtime.world().size
    check(options.batch_size % ranks == 0, options, "batch_size", f"a multiple of {ranks}")
    check_free(options.out, options.resume)
    model_folder(options.model)
    saved = saved_options(options.out, "finetune")
    if saved is not None:
        check_same(options, saved, options.out)
    elif options.resume:
        say(f"nothing to resume in {options.out}: starting")
    device = runtime.pick_device(options.device)
    rate = options.learning_rate or (5e-5 if options.strategy == "full" else 1e-3)
    precision = runtime.pick_precision(device, options.precision)
    return dataclasses.replace(options, precision=precision, learning_rate=rate)


def train_config(options: Finetune, steps_per_epoch: int) -> TrainConfig:
    """The loop's settings, in updates; checks their ranges."""
    shared = {f.name for f in dataclasses.fields(TrainConfig)} & set(vars(options))
    settings: dict[str, Any] = {name: getattr(options, name) for name in shared}
    if settings["learning_rate"] is None:
        del settings["learning_rate"]
    steps = max(1, math.ceil(options.epochs * steps_per_epoch))
    return TrainConfig(
        **settings,
        steps=steps,
        warmup_steps=int(options.warmup * steps),
        min_learning_rate_ratio=0.0,
        schedule="linear",
        betas=(0.9, 0.999),
        eval_every=max(1, steps_per_epoch // 2),
        restore_best=True,
    )


def _write_config(options: Finetune, task: Task) -> None:
    saved = saved_options(options.out, "finetune")
    file = options.out / "config.json"
    if saved is None:
        facts = {"task": task.kind, "classes": task.classes, "data_sha256": task.fingerprint}
        write_json(file, {"command": "finetune", "options": to_dict(options), **facts})
        return
    began = json.loads(file.read_text())["data_sha256"]
    if began != task.fingerprint:
        raise LabError(
            f"the examples differ from those with which {options.out} began: resume with the same "
            "files, or choose another --out"
        )


# --- data --------------------------------------------------------------------------------------


def read(options: Finetune) -> Task:
    """Read the examples of all splits.

    Raises:
        LabError: a file, a column or a label cannot be used.
    """
    kind = options.task if options.task != "auto" else _kind(options)
    readers = {"classification": _labelled, "instruction": _instructions, "text": _documents}
    return readers[kind](options)


def _named(source: str) -> bool:
    return source in corpora.names() or source.startswith("hub:")


def _kind(options: Finetune) -> str:
    if _named(options.data):
        columns = corpora.load(options.data)["train"].column_names
        return "classification" if "label" in columns else "text"
    if Path(options.data).suffix.lower() not in (".csv", ".tsv", ".jsonl"):
        return "text"
    columns = corpora.load_rows(options.data)[0]
    if options.label_column in columns:
        return "classification"
    return "instruction" if options.answer_column in columns else "text"


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
        texts[split], labels[split] = labelled_file(file, classes, **names)
    for number, name in enumerate(classes):
        if number not in labels["train"]:
            raise LabError(
                f"class {name!r} of {options.data} has no training example: give it more rows"
            )
    return Task("classification", classes, texts, labels)


def labelled_file(
    path: Path, classes: list[str], text_column: str, label_column: str
) -> tuple[list[str], list[int]]:
    """Texts and class ids of a file whose labels are known already.

    Raises:
        LabError: a label is none of the classes.
    """
    rows = corpora.load_rows(path)
    texts = _cells(path, rows, text_column)
    names = _cells(path, rows, label_column)
    for number, name in enumerate(names, start=1):
        if name not in classes:
            raise LabError(
                f"{path} row {number} has label {name!r}, which is none of the model's classes: "
                f"{', '.join(classes)}"
            )
    return texts, [classes.index(name) for name in names]


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
    positions = text.split_by_hash(prompts, seed=0, **_shares(options))
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
    rows = corpora.load_rows(path)
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


def _batches(task: Task, tokenizer: Tokenizer, options: Finetune, split: str) -> Batches:
    texts, answers, limit = task.texts[split], task.answers[split], options.max_length
    if task.kind == "classification":
        examples = classification_examples(tokenizer, texts, answers, limit)
    elif task.kind == "instruction":
        pairs = zip(texts, answers, strict=True)
        whole = [
            instruction_example(
                chat_ids(tokenizer, prompt), _bare(tokenizer, answer), tokenizer.end_of_text_id
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
    return Batches(examples, options.batch_size, collate, seed=options.seed, lengths=lengths)


def classification_examples(
    tokenizer: Tokenizer, texts: list[str], labels: list[int], max_length: int
) -> list[Example]:
    """Texts as token ids, cut to `max_length` but with their last token (BERT's [SEP]) kept."""
    examples = []
    for ids, label in zip(tokenizer.encode_batch(texts), labels, strict=True):
        ids = ids or [tokenizer.end_of_text_id]
        if len(ids) > max_length:
            ids = [*ids[: max_length - 1], ids[-1]]
        examples.append({"input_ids": torch.tensor(ids), "labels": torch.tensor(label)})
    return examples


def _bare(tokenizer: Tokenizer, answer: str) -> list[int]:
    ids = tokenizer.backend.encode(answer, add_special_tokens=False)  # pyright: ignore[reportCallIssue]
    return ids.ids


# --- model -------------------------------------------------------------------------------------


def _open(task: Task, folder: Path, tokenizer: Tokenizer) -> nn.Module:
    if task.kind != "classification":
        return open_lm(folder)
    model = open_classifier(folder, task.classes)
    config: Any = model.config
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = tokenizer.pad_id  # a decoder reads the last real token
    return model


def _describe(task: Task, model: nn.Module, trained: list[str], settings: TrainConfig) -> None:
    parameters = dict(model.named_parameters())
    count = sum(parameters[name].numel() for name in trained)
    total = sum(p.numel() for p in parameters.values())
    what = f"{len(task.classes)} classes: {', '.join(task.classes)}" if task.classes else "causal"
    sizes = ", ".join(f"{len(task.texts[split]):,} {split}" for split in SPLITS)
    say(
        f"task    {task.kind}, {what}\n"
        f"data    {sizes}\n"
        f"model   {count:,} of {total:,} parameters trained\n"
        f"run     up to {settings.steps:,} updates, {settings.precision}, learning rate "
        f"{settings.learning_rate:g}"
    )


def _save(model: nn.Module, origin: Path, out: Path) -> None:
    with claim(out) as folder:
        interop.save_pretrained(model, folder)
        for pattern in TOKENIZER_FILES:
            for file in origin.glob(pattern):
                shutil.copy(file, folder / file.name)


# --- the test set ------------------------------------------------------------------------------


def _test(model: nn.Module, task: Task, batches: Batches, options: Finetune) -> dict[str, Any]:
    if task.kind == "classification":
        scored = evaluate.classify(model, batches.evaluation_batches(), precision=options.precision)
        errors = evaluate.error_table(
            task.texts["test"], scored.probabilities_NC, scored.labels_N, task.classes
        )
        errors.to_csv(options.out / "errors.csv", index=False)
        scores = classifier_scores(scored, len(task.classes))
        say(score_table(scores))
        return {"test": scores}
    mean, count = mean_loss(model, causal_lm, batches, precision=options.precision)
    score: dict[str, Any] = {"loss": mean, "perplexity": math.exp(mean), "tokens": count}
    if task.kind == "text":
        size = sum(len(text.encode()) for text in task.texts["test"])
        score["bits_per_byte"] = evaluate.bits_per_byte(mean * count, size)
    say(table([{"test": task.kind, **score}]))
    return {"test": score}


def classifier_scores(scored: evaluate.Classified, num_classes: int) -> dict[str, Any]:
    """Accuracy and macro-F1, each with its 95 % bootstrap interval, and the examples behind."""
    predicted, labels = scored.predicted_N.numpy(), scored.labels_N.numpy()

    def macro_f1(predicted: Any, labels: Any) -> float:
        return evaluate.macro_f1(predicted, labels, num_classes)

    scores: dict[str, Any] = {
        name: evaluate.bootstrap_interval(metric, predicted, labels)._asdict()
        for name, metric in (("accuracy", evaluate.accuracy), ("macro_f1", macro_f1))
    }
    return {**scores, "examples": len(labels)}


def score_table(scores: dict[str, Any]) -> str:
    """`classifier_scores` as a table."""
    rows = [
        {"metric": name, **value, "examples": scores["examples"]}
        for name, value in scores.items()
        if isinstance(value, dict)
    ]
    return table(
        [{("95 % " + k if k in ("low", "high") else k): v for k, v in row.items()} for row in rows]
    )
