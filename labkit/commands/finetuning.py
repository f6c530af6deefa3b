"""`labkit finetune`: from one's own examples to a fine-tuned model folder.

    a file or corpus -> a task (`tasks`) -> sizes, updates (`recipe`) -> batches (`examples`)
    -> a classifier's head: a fit on the frozen model's vectors; then what the strategy trains
    -> the best weights -> scores beside those of simpler models on the test set (`scoring`)

Validation chooses when to stop and which weights to keep; the test examples are read once, at the
end. Whether they come from files or from a split by content, no text is in two of them.

Sources: Devlin et al. 2019, appendix A.3 (rates, epochs); Ouyang et al. 2022 (instructions); Kumar
et al. 2022, arXiv:2202.10054 (a fit on frozen vectors, then all parameters).
"""

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from torch import nn

from labkit import runtime
from labkit.atomic import write_json
from labkit.commands import tasks
from labkit.commands.answers import Answers
from labkit.commands.conversations import Chats, Preferences
from labkit.commands.learning import Classes, Learner, Words, open_model
from labkit.commands.options import Finetune, check, to_dict
from labkit.commands.questions import Questions
from labkit.commands.recipe import HEADED, Sizes, recipe, sizes
from labkit.commands.shell import Progress, say
from labkit.commands.tagging import Tags, entity_sizes
from labkit.commands.tasks import Task
from labkit.errors import LabError
from labkit.models.adapting import strategies
from labkit.models.adapting.saving import name_base
from labkit.models.adapting.settings import INSEPARABLE, Strategy
from labkit.models.huggingface.folders import quiet_libraries
from labkit.models.tagger import open_tagger
from labkit.text.corpora import SPLITS
from labkit.text.pretrained import FOLDERS
from labkit.text.tokenizers import Tokenizer
from labkit.training.config import TrainConfig
from labkit.training.distributed.data import first, whole
from labkit.training.loop import train
from labkit.training.run_folder import began, begin, check_free, check_same, whole_model_folder

#: Kinds of task whose run may end in an adapter alone.
ADDABLE = ("classification", "instruction", "text", "chat")
#: What learns each kind of task; words learn all others.
LEARNERS: dict[str, type[Learner]] = {
    "classification": Classes,
    "tagging": Tags,
    "qa": Questions,
    "seq2seq": Answers,
    "chat": Chats,
    "dpo": Preferences,
}


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
        first(here, lambda: _check_examples(options, task))
        if options.strategy in INSEPARABLE and task.kind not in ADDABLE:
            raise LabError(
                f"strategy {options.strategy} leaves no plain model, and a run of the task "
                f"{task.kind} must end in one: choose another, such as lora"
            )
        if options.model is None:
            chosen = "minilm" if task.kind in HEADED else "smollm2"
            options = dataclasses.replace(options, model=chosen)
        folder = whole_model_folder(str(options.model))
        tokenizer = Tokenizer.from_pretrained(folder)
        torch.manual_seed(options.train.seed)
        if task.kind == "tagging":
            model: nn.Module = open_tagger(folder, task.classes, options.head)
        else:
            model = open_model(task, folder, tokenizer)
        chosen_sizes = sizes(options, task, model, tokenizer, here.size)
        options = dataclasses.replace(options, **dataclasses.asdict(chosen_sizes))
        work = LEARNERS.get(task.kind, Words)(options, task, folder, model, tokenizer, chosen_sizes)
        data = {split: work.batches(split) for split in SPLITS[:2]}
        counts = [len(data[split].examples) for split in SPLITS[:2]]
        plan = recipe(options, chosen_sizes, counts[0], counts[1], task.kind)
        options = _in_parts(options, here)
        settings = options.train.settled(
            **dataclasses.asdict(plan), out=options.out, resume=options.resume
        )
        first(here, lambda: _write_config(options, task))
        if here.rank == 0:
            _describe(task, settings, chosen_sizes)
        work.prepare(here)
        trained = strategies.apply(model, _strategy(options))
        if here.rank == 0:
            _describe_model(model, trained)
        progress = Progress()
        try:
            result = train(
                model,
                work.objective,
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
        if (adapter := options.out / "adapter").is_dir():
            known = options.model in FOLDERS
            name_base(adapter, options.model if known else folder.resolve(), **work.facts())
        evaluation = work.test(model)
        evaluation |= {"best": result.best, "stopped": result.stopped, "steps": result.steps}
        write_json(options.out / "evaluation.json", evaluation)
        work.card(evaluation)
        best = f", best at {result.best['step']}" if result.best and plan.restore_best else ""
        say(
            f"\n{options.out}: the model is in {work.result} ({result.steps} updates in "
            f"{runtime.duration(result.seconds)}{best})\n{work.next_step()}"
        )
        return evaluation


# --- options -----------------------------------------------------------------------------------


def _checked(options: Finetune) -> Finetune:
    if options.epochs is not None:
        check(0 < options.epochs < math.inf, options, "epochs", "a number above 0")
        check(options.epochs <= 10_000, options, "epochs", "at most 10000")
    if options.max_length is not None:
        check(options.max_length >= 2, options, "max_length", "at least 2")
    check(options.pieces >= 1, options, "pieces", "at least 1")
    check(0 <= options.warmup <= 1, options, "warmup", "0 to 1")
    check(0 < options.beta < math.inf, options, "beta", "a number above 0")
    if options.batch_size is not None:
        ranks = runtime.world().size
        check(options.batch_size >= 1, options, "batch_size", "at least 1")
        check(options.batch_size % ranks == 0, options, "batch_size", f"a multiple of {ranks}")
    rate = 1.0 if options.learning_rate is None else options.learning_rate
    _strategy(options)
    options.train.settled(
        learning_rate=rate, patience=options.patience or 0, out=options.out, resume=options.resume
    )
    inputs = [options.data, options.validation, options.test, options.model]
    check_free(options.out, options.resume, inputs, options.overwrite)
    if options.model is not None:
        whole_model_folder(options.model)
    saved = began(options.out, "finetune")
    if saved is not None:
        check_same(to_dict(options), saved["options"], options.out)
    elif options.resume:
        say(f"nothing to resume in {options.out}: starting")
    device = runtime.pick_device(options.train.device)
    precision: Any = runtime.pick_precision(device, options.train.precision)
    return dataclasses.replace(
        options, train=dataclasses.replace(options.train, precision=precision)
    )


def _strategy(options: Finetune) -> Strategy:
    """The options of the strategy as the library has them.

    Raises:
        LabError: one of them is out of range.
    """
    return Strategy(
        options.strategy,
        last=options.last,
        decay=options.layer_decay,
        width=options.adapter_width,
        rank=options.rank,
        alpha=options.alpha,
        targets=options.targets,
        length=options.prompt_length,
        seed=options.train.seed,
    )


def _in_parts(options: Finetune, here: runtime.World) -> Finetune:
    """On a CPU, a batch in four parts, each padded to its own longest: the same update, sooner."""
    alone = here.size == 1 and runtime.pick_device(options.train.device).type == "cpu"
    free = options.train.micro_batch_size is None and not options.train.step_in_backward
    if not (alone and free) or options.train.compile or options.batch_size is None:
        return options
    part = max(1, options.batch_size // 4)
    return dataclasses.replace(
        options, train=dataclasses.replace(options.train, micro_batch_size=part)
    )


def _check_examples(options: Finetune, task: Task) -> None:
    saved = began(options.out, "finetune")
    if saved is not None and saved["data_sha256"] != task.fingerprint:
        raise LabError(
            f"the examples differ from those with which {options.out} began: resume with the same "
            "files, or choose another --out"
        )


def _write_config(options: Finetune, task: Task) -> None:
    if began(options.out, "finetune") is None:
        facts = {"task": task.kind, "classes": task.classes, "data_sha256": task.fingerprint}
        begin(options.out, "finetune", to_dict(options), **facts)


def _describe(task: Task, settings: TrainConfig, chosen: Sizes) -> None:
    named = {
        "qa": "spans of a context",
        "seq2seq": "source to target",
        "chat": "the turns of the assistant",
        "dpo": "chosen against rejected",
    }.get(task.kind, "causal")
    if task.kind == "tagging":
        what = entity_sizes(task)
    else:
        what = f"{len(task.classes)} classes: {_class_sizes(task)}" if task.classes else named
    pairs = " of pairs" if task.pairs and task.classes else ""
    rows = ", ".join(f"{len(task.texts[split]):,} {split}" for split in SPLITS)
    keep = "the best weights of validation" if settings.restore_best else "the last weights"
    say(
        f"task    {task.kind}{pairs}, {what}\n"
        f"data    {rows}\n"
        f"run     up to {settings.steps:,} updates of {chosen.batch_size} examples, each at most "
        f"{chosen.max_length} tokens; learning rate {settings.learning_rate:g}, "
        f"{settings.precision}; keeps {keep}"
    )


def _describe_model(model: nn.Module, trained: list[str]) -> None:
    """The strategy, with the sizes that it has, and what it trains."""
    strategy = strategies.of(model)
    assert strategy is not None
    parameters = dict(model.named_parameters())
    count = sum(parameters[name].numel() for name in trained)
    total = sum(p.numel() for p in parameters.values())
    sizes = {
        "last_k": f" (last {strategy.last})",
        "layerwise": f" (decay {strategy.decay:g})",
        "adapters": f" (width {strategy.width})",
        "lora": f" (rank {strategy.rank}, alpha {strategy.alpha:g}, {', '.join(strategy.targets)})",
        "prompt": f" (length {strategy.length})",
        "prefix": f" (length {strategy.length})",
    }.get(strategy.name, "")
    say(f"model   {strategy.name}{sizes}: {count:,} of {total:,} parameters trained")


def _class_sizes(task: Task) -> str:
    """Each class with its training examples; of many, the largest and the smallest."""
    counts = np.bincount(task.answers["train"], minlength=len(task.classes))
    named = [f"{name} {count:,}" for name, count in zip(task.classes, counts, strict=True)]
    if len(named) <= 12:
        return ", ".join(named)
    order = np.argsort(-counts, kind="stable")
    return ", ".join([*(named[i] for i in order[:3]), "...", *(named[i] for i in order[-3:])])
