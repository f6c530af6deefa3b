"""`labkit finetune`: from one's own examples to a fine-tuned model folder.

    a file or corpus -> a task (see `tasks`) -> train -> the best weights -> scores on the test set

Validation chooses when to stop and which weights to keep; the test examples are read once, at the
end. Whether they come from files or from a split by content, no text is in two of them.

Sources: Devlin et al. 2019, appendix A.3 (rates, epochs); Ouyang et al. 2022 (instructions).
"""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from labkit import runtime
from labkit.atomic import write_json
from labkit.batches import Batches
from labkit.commands import tasks
from labkit.commands.options import Finetune, check, to_dict
from labkit.commands.shell import Progress, say, table
from labkit.commands.tasks import Task
from labkit.errors import LabError
from labkit.evaluation.classification import (
    Classified,
    accuracy,
    classify,
    error_table,
    macro_f1,
)
from labkit.evaluation.intervals import bootstrap_interval
from labkit.evaluation.language import bits_per_byte, mean_loss
from labkit.models.adapting import strategies
from labkit.models.config import context_length
from labkit.models.huggingface.folders import open_classifier, open_lm, quiet_libraries
from labkit.objectives.tasks import causal_lm, classification
from labkit.text.corpora import SPLITS
from labkit.text.tokenizers import Tokenizer
from labkit.training.config import TrainConfig
from labkit.training.distributed.data import first, whole
from labkit.training.loop import train
from labkit.training.run_folder import began, begin, check_free, check_same, model_folder


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
        task = tasks.read(options)
        if options.model is None:
            chosen = "minilm" if task.kind == "classification" else "smollm2"
            options = dataclasses.replace(options, model=chosen)
        folder = model_folder(str(options.model))
        tokenizer = Tokenizer.from_pretrained(folder)
        torch.manual_seed(options.train.seed)
        model = _open(task, folder, tokenizer)
        limit = context_length(model)
        if options.max_length > limit:
            options = dataclasses.replace(options, max_length=limit)
        data = {split: tasks.batches(task, tokenizer, options, split) for split in SPLITS}
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
                tokenizer=folder,
            )
        finally:
            progress.close()
        if result.stopped == "interrupted":
            say(f"stopped by hand; continue with: labkit finetune --resume --out {options.out}")
            raise KeyboardInterrupt
        model = whole(model, here, options.train.parallel)
        if here.rank:
            return None
        if task.kind == "classification":
            _keep_length(options)
        evaluation = _test(model, task, data["test"], options)
        evaluation |= {"best": result.best, "stopped": result.stopped, "steps": result.steps}
        write_json(options.out / "evaluation.json", evaluation)
        best = f", best at {result.best['step']}" if result.best else ""
        say(
            f"{options.out}: the model is in {options.out / 'model'} ({result.steps} updates in "
            f"{runtime.duration(result.seconds)}{best})"
        )
        return evaluation


# --- options -----------------------------------------------------------------------------------


def _checked(options: Finetune) -> Finetune:
    train_config(options, 1)
    check(0 < options.epochs < math.inf, options, "epochs", "a number above 0")
    check(options.batch_size >= 1, options, "batch_size", "at least 1")
    check(options.max_length >= 2, options, "max_length", "at least 2")
    check(options.epochs <= 10_000, options, "epochs", "at most 10000")
    check(0 <= options.warmup <= 1, options, "warmup", "0 to 1")
    ranks = runtime.world().size
    check(options.batch_size % ranks == 0, options, "batch_size", f"a multiple of {ranks}")
    inputs = [options.data, options.validation, options.test, options.model]
    check_free(options.out, options.resume, inputs, options.overwrite)
    if options.model is not None:
        model_folder(options.model)
    saved = began(options.out, "finetune")
    if saved is not None:
        check_same(to_dict(options), saved["options"], options.out)
    elif options.resume:
        say(f"nothing to resume in {options.out}: starting")
    device = runtime.pick_device(options.train.device)
    precision: Any = runtime.pick_precision(device, options.train.precision)
    return dataclasses.replace(
        options,
        learning_rate=_rate(options),
        train=dataclasses.replace(options.train, precision=precision),
    )


def _rate(options: Finetune) -> float:
    if options.learning_rate is not None:
        return options.learning_rate
    return 5e-5 if options.strategy == "full" else 1e-3


def train_config(options: Finetune, steps_per_epoch: int) -> TrainConfig:
    """The loop's settings, in updates; checks their ranges."""
    check(0 < options.epochs < math.inf, options, "epochs", "a number above 0")
    steps = max(1, math.ceil(options.epochs * steps_per_epoch))
    return options.train.settled(
        steps=steps,
        learning_rate=_rate(options),
        warmup_steps=int(options.warmup * steps),
        eval_every=max(1, steps_per_epoch // 2),
        out=options.out,
        resume=options.resume,
    )


def _write_config(options: Finetune, task: Task) -> None:
    saved = began(options.out, "finetune")
    if saved is None:
        facts = {"task": task.kind, "classes": task.classes, "data_sha256": task.fingerprint}
        begin(options.out, "finetune", to_dict(options), **facts)
    elif saved["data_sha256"] != task.fingerprint:
        raise LabError(
            f"the examples differ from those with which {options.out} began: resume with the same "
            "files, or choose another --out"
        )


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


def _keep_length(options: Finetune) -> None:
    """Who uses the model cuts texts as it is used to: `labkit evaluate` and transformers."""
    file = options.out / "model" / "tokenizer_config.json"
    if file.exists():
        config = json.loads(file.read_text(encoding="utf-8"))
        write_json(file, {**config, "model_max_length": options.max_length})


# --- the test set ------------------------------------------------------------------------------


def _test(model: nn.Module, task: Task, batches: Batches, options: Finetune) -> dict[str, Any]:
    if task.kind == "classification":
        scored = classify(model, batches.evaluation_batches(), precision=options.train.precision)
        errors = error_table(
            task.texts["test"], scored.probabilities_NC, scored.labels_N, task.classes
        )
        errors.to_csv(options.out / "errors.csv", index=False)
        scores = classifier_scores(scored, len(task.classes))
        say(score_table(scores))
        return {"test": scores}
    mean, count = mean_loss(model, causal_lm, batches, precision=options.train.precision)
    score: dict[str, Any] = {"loss": mean, "perplexity": math.exp(mean), "tokens": count}
    if task.kind == "text":
        size = sum(len(text.encode()) for text in task.texts["test"])
        score["bits_per_byte"] = bits_per_byte(mean * count, size)
    say(table([{"test": task.kind, **score}]))
    return {"test": score}


def classifier_scores(scored: Classified, num_classes: int) -> dict[str, Any]:
    """Accuracy and macro-F1, each with its 95 % bootstrap interval, and the examples behind."""
    predicted, labels = scored.predicted_N.numpy(), scored.labels_N.numpy()

    def f1(predicted: Any, labels: Any) -> float:
        return macro_f1(predicted, labels, num_classes)

    scores: dict[str, Any] = {
        name: bootstrap_interval(metric, predicted, labels)._asdict()
        for name, metric in (("accuracy", accuracy), ("macro_f1", f1))
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
