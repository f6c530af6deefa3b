"""`labkit pretrain`: from text to a model folder that `transformers` opens.

    data (corpora, files, folders) -> tokenizer -> out/data/*.tokens, one stream a split
    out/data -> windows -> train.train -> out/checkpoints, out/best
    weights  -> out/model, out/evaluation.json: bits per byte of each corpus

Data are prepared in a temporary folder that is renamed at the end, and bad input is found before:
a run folder holds a whole preparation or none. Documents stream through, so a corpus may be larger
than memory. Everything in the folder is a pure function of the options,
so a run that was killed at any moment continues with `--resume`.

Sources: Hoffmann et al. 2022, arXiv:2203.15556 (6 FLOPs a parameter and token).
"""

import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import ConcatDataset, Dataset, Subset

from labkit import runtime
from labkit.atomic import claim, write_json
from labkit.batches import Batches, Contexts, RollingWindows, TokenWriter, read_tokens
from labkit.commands.card import write_card
from labkit.commands.options import Pretrain, check, to_dict
from labkit.commands.shell import Progress, say, table
from labkit.errors import LabError
from labkit.evaluation.language import score_text
from labkit.models.config import TransformerConfig, context_length
from labkit.models.huggingface.folders import open_lm, quiet_libraries
from labkit.models.transformer import Transformer
from labkit.objectives.tasks import causal_lm
from labkit.text import corpora, files
from labkit.text.tokenizers import SMALLEST_VOCABULARY, Tokenizer, train_bpe
from labkit.training.config import TrainConfig
from labkit.training.distributed.data import first, whole
from labkit.training.loop import train
from labkit.training.records import Result
from labkit.training.run_folder import began, begin, check_free, check_same, whole_model_folder

#: Documents that are tokenized together, in parallel.
DOCUMENTS_AT_A_TIME = 256
#: A tokenizer is learned from about this much of a large corpus.
TOKENIZER_BYTES = 64_000_000

#: The dial: layers, d_model, heads.
SIZES = {
    "tiny": (2, 128, 4),
    "small": (6, 192, 6),
    "medium": (8, 384, 6),
    "base": (12, 768, 12),
}


def pretrain(options: Pretrain) -> dict[str, Any] | None:
    """Run the command.

    Returns:
        What evaluation.json holds; None on ranks other than 0, or when stopped by hand.

    Raises:
        LabError: an option, the data or the run folder cannot be used.
    """
    quiet_libraries()
    with runtime.distributed() as here:
        options = first(here, lambda: prepare(options))
        facts = _facts(options)
        tokenizer = Tokenizer.load(options.out / "data" / "tokenizer")
        torch.manual_seed(options.train.seed)
        model = _build(options, tokenizer.vocab_size)
        batches, validation = _batches(options, facts, tokenizer)
        if here.rank == 0:
            _describe(options, model, facts, batches)
        progress = Progress()
        try:
            result = train(
                model,
                causal_lm,
                batches,
                train_config(options),
                validation=validation,
                on_step=progress,
                tokenizer=tokenizer,
            )
        finally:
            progress.close()
        if result.stopped == "interrupted":
            say(f"stopped by hand; continue with: labkit pretrain --resume --out {options.out}")
            raise KeyboardInterrupt
        model = whole(model, here, options.train.parallel)
        if here.rank:
            return None
        return _finish(options, model, facts, result)


def _facts(options: Pretrain) -> dict[str, Any]:
    """What data.json says of the token files, after these were compared with their hashes."""
    folder = options.out / "data"
    try:
        facts = json.loads((folder / "data.json").read_text(encoding="utf-8"))
        files = ["train.tokens", *(source["file"] for source in facts["validation"])]
        _ = facts["train"]["tokens"], [source["bytes"] for source in facts["validation"]]
    except (ValueError, KeyError, TypeError) as error:
        raise LabError(
            f"{folder / 'data.json'} is damaged ({error!r}): begin anew with --overwrite"
        ) from error
    for name in files:
        read_tokens(folder / str(name), verify=True)
    return facts


# --- before training ---------------------------------------------------------------------------


def train_config(options: Pretrain) -> TrainConfig:
    """The loop's settings; checks their ranges."""
    warmup_steps = options.warmup_steps
    if warmup_steps is None:
        warmup_steps = min(200, options.train.steps // 20)
    return options.train.settled(
        warmup_steps=warmup_steps,
        learning_rate=_rate(options),
        out=options.out,
        resume=options.resume,
    )


def _rate(options: Pretrain) -> float:
    if options.learning_rate is not None:
        return options.learning_rate
    return 1e-3 if options.init is None else 1e-4


def model_config(options: Pretrain, vocab_size: int) -> TransformerConfig:
    """The shape of a new model: the size dial, then what was given by hand."""
    num_layers, d_model, num_heads = SIZES[options.size]
    shape = {
        "vocab_size": vocab_size,
        "context_length": options.context_length,
        "num_layers": options.num_layers if options.num_layers is not None else num_layers,
        "d_model": options.d_model if options.d_model is not None else d_model,
        "num_heads": options.num_heads if options.num_heads is not None else num_heads,
        "d_ff": options.d_ff,
        "dropout": options.dropout,
    }
    named = TransformerConfig.llama if options.architecture == "llama" else TransformerConfig.gpt2
    return named(**shape)


def prepare(options: Pretrain) -> Pretrain:
    """Check everything, then write data/ and config.json into the run folder, once.

    Returns:
        The options with each `None` and `auto` resolved; a resumed run gets the same ones.
    """
    out = options.out
    _check(options)
    inputs = [*options.data, options.init, options.tokenizer]
    check_free(out, options.resume, inputs, options.overwrite)
    saved = began(out, "pretrain")
    if saved is not None:
        check_same(to_dict(options), saved["options"], out)
        if (out / "data" / "data.json").exists():
            return options
    elif options.resume:
        say(f"nothing to resume in {out}: starting")
    device = runtime.pick_device(options.train.device)
    precision: Any = runtime.pick_precision(device, options.train.precision)
    options = dataclasses.replace(
        options,
        warmup_steps=train_config(options).warmup_steps,
        learning_rate=_rate(options),
        train=dataclasses.replace(options.train, precision=precision),
    )
    if saved is not None:  # its data/ is gone: the same again
        with claim(out / "data") as folder:
            _write_data(options, folder)
        return options
    new = not out.exists()  # then data/ and config.json appear together
    with claim(out if new else out / "data") as folder:
        if new:
            (folder / "data").mkdir()
        tokenizer = _write_data(options, folder / "data" if new else folder)
        model = _build(options, tokenizer.vocab_size)
        ours = isinstance(model, Transformer)
        shape = dataclasses.asdict(model.config) if ours else str(options.init)
        if new:
            begin(folder, "pretrain", to_dict(options), model=shape)
    if not new:
        begin(out, "pretrain", to_dict(options), model=shape)
    return options


def _check(options: Pretrain) -> None:
    train_config(options)
    T, tokens = options.context_length, options.batch_tokens
    check(len(options.data) > 0, options, "data", "one or more corpora, files or folders")
    check(T >= 1, options, "context_length", "at least 1")
    if tokens < T or tokens % T:
        raise LabError(
            f"batch_tokens {tokens} is no multiple of context_length {T}: choose "
            f"{max(1, round(tokens / T)) * T}"
        )
    check(options.eval_tokens >= 1, options, "eval_tokens", "at least 1")
    ranks = runtime.world().size
    if tokens // T % ranks:
        raise LabError(
            f"batch_tokens {tokens} holds {tokens // T} windows, which do not divide among {ranks} "
            f"processes: choose a multiple of {ranks * T}"
        )
    if options.init is None and options.tokenizer is None:
        least = SMALLEST_VOCABULARY
        if options.vocab_size < least:
            raise LabError(
                f"vocab_size {options.vocab_size} is smaller than the alphabet: 256 bytes and the "
                f"special tokens need at least {least}"
            )
        check(options.vocab_size <= 2**20, options, "vocab_size", f"{least} to {2**20}")
    if options.init is None:
        model_config(options, max(options.vocab_size, 1))
    else:
        whole_model_folder(options.init)


def _write_data(options: Pretrain, folder: Path) -> Tokenizer:
    if options.tokenizer is not None:
        tokenizer = Tokenizer.from_pretrained(options.tokenizer)
    elif options.init is not None:
        tokenizer = Tokenizer.from_pretrained(whole_model_folder(options.init))
    else:
        tokenizer = train_bpe(_tokenizer_texts(options), options.vocab_size)
    tokenizer.save(folder / "tokenizer")
    end = tokenizer.end_of_text_id
    train = {"tokens": 0, "bytes": 0, "documents": 0}
    validation = []
    with TokenWriter(folder / "train.tokens", tokenizer.vocab_size, end) as train_file:
        train_file.append([])  # even the first token has one before it
        for number, source in enumerate(options.data):
            name = f"validation-{number}.tokens"
            size = {"train": 0, "validation": 0}
            with TokenWriter(folder / name, tokenizer.vocab_size, end) as validation_file:
                validation_file.append([])
                writers = {"train": train_file, "validation": validation_file}
                documents = (d for d in _documents(options, source) if d[0] in writers)
                while batch := list(itertools.islice(documents, DOCUMENTS_AT_A_TIME)):
                    encoded = tokenizer.encode_batch([text for _, text in batch])
                    for (split, text), ids in zip(batch, encoded, strict=True):
                        writers[split].append(ids)
                        size[split] += len(text.encode())
                        train["documents"] += split == "train"
            train["bytes"] += size["train"]
            facts = {"tokens": validation_file.tokens, "bytes": size["validation"]}
            validation.append({"name": source, "file": name, **facts})
    train["tokens"] = train_file.tokens
    RollingWindows(read_tokens(folder / "train.tokens"), options.context_length)  # long enough?
    write_json(folder / "data.json", {"train": train, "validation": validation})
    return tokenizer


def _documents(options: Pretrain, source: str) -> Iterator[tuple[str, str]]:
    return corpora.stream(source, **_columns(source, options.text_column))


def _tokenizer_texts(options: Pretrain) -> Iterator[str]:
    """Training texts; of a large corpus, every n-th, so that about `TOKENIZER_BYTES` are read."""
    for source in options.data:
        every = max(1, files.size(source) // TOKENIZER_BYTES) if _own(source) else 1
        documents = itertools.islice(_documents(options, source), 0, None, every)
        yield from (text for split, text in documents if split == "train")


def _own(source: str) -> bool:
    return source not in corpora.names() and not source.startswith("hub:")


def _columns(source: str, text_column: str) -> dict[str, Any]:
    """Only one's own files have columns to choose."""
    return {"text_column": text_column} if _own(source) else {}


def _build(options: Pretrain, vocab_size: int) -> nn.Module:
    if options.init is None:
        torch.manual_seed(options.train.seed)
        return Transformer(model_config(options, vocab_size))
    folder = whole_model_folder(options.init)
    model: Any = open_lm(folder)
    longest, known = context_length(model), model.config.vocab_size
    if options.context_length > longest:
        raise LabError(
            f"context_length {options.context_length} is longer than the {longest} tokens that "
            f"{folder} was made for: choose at most {longest}"
        )
    if vocab_size > known:
        raise LabError(
            f"the tokenizer has {vocab_size} tokens and {folder} knows {known}: use its own "
            "tokenizer"
        )
    return model


def _batches(
    options: Pretrain, facts: dict[str, Any], tokenizer: Tokenizer
) -> tuple[Batches, Batches]:
    folder, T = options.out / "data", options.context_length
    windows = RollingWindows(read_tokens(folder / "train.tokens"), T)
    size = options.batch_tokens // T
    share = max(1, options.eval_tokens // T // len(facts["validation"]))
    parts: list[Dataset] = []
    for source in facts["validation"]:
        contexts: Any = Contexts(read_tokens(folder / source["file"]), T, tokenizer.pad_id)
        some = np.linspace(0, len(contexts) - 1, min(share, len(contexts))).astype(int)
        parts.append(Subset(contexts, some.tolist()))
    joined: Any = ConcatDataset(parts)
    return Batches(windows, size, seed=options.train.seed), Batches(joined, size)


def _describe(options: Pretrain, model: nn.Module, facts: dict[str, Any], batches: Batches) -> None:
    parameters = sum(p.numel() for p in model.parameters())
    steps = options.train.steps
    seen = steps * options.batch_tokens
    say(
        f"model   {parameters:,} parameters, context of {options.context_length} tokens\n"
        f"data    {facts['train']['tokens']:,} tokens, {facts['train']['bytes']:,} bytes, from "
        f"{', '.join(options.data)}\n"
        f"run     {steps:,} updates of {options.batch_tokens:,} tokens = "
        f"{steps / batches.steps_per_epoch:.2f} epochs, {seen / parameters:.1f} tokens a "
        f"parameter, {6 * parameters * seen:.2g} FLOPs, {options.train.precision}"
    )


# --- after training ----------------------------------------------------------------------------


def _finish(
    options: Pretrain, model: nn.Module, facts: dict[str, Any], result: Result
) -> dict[str, Any]:
    out, steps = options.out, result.steps
    scores = {}
    for source in facts["validation"]:
        scores[source["name"]] = score_text(
            model,
            read_tokens(out / "data" / source["file"]),
            source["bytes"],
            options.context_length,
            batch_size=max(1, min(32, options.batch_tokens // options.context_length)),
            precision=options.train.precision,
        )
    evaluation = {"steps": steps, "best": result.best, "validation": scores}
    write_json(out / "evaluation.json", evaluation)
    write_card(
        out / "model",
        "text-generation",
        "random weights" if options.init is None else str(options.init),
        {
            "training text": f"{facts['train']['bytes']:,} bytes of {', '.join(options.data)}",
            "updates": f"{steps:,} of {options.batch_tokens:,} tokens",
        },
        [
            {
                "validation text": name,
                "bits per byte": f"{score['bits_per_byte']:.4f}",
                "perplexity": f"{score['perplexity']:.2f}",
                "tokens": f"{score['tokens']:,.0f}",
            }
            for name, score in scores.items()
        ],
        "text that was held out of training",
    )
    say(table([{"validation": name, **score} for name, score in scores.items()]))
    say(
        f"{out}: the model is in {out / 'model'}, {_which(options, result)}; the record is in "
        "metrics.jsonl\n"
        f"try     labkit generate {out} --prompt 'Once'"
    )
    return evaluation


def _which(options: Pretrain, result: Result) -> str:
    """Which weights were kept, and what else there was."""
    best = result.best["step"] if result.best else result.steps
    if best == result.steps:
        return "its last weights, the best of all evaluations"
    if options.train.restore_best:
        return f"with the best weights, of update {best:.0f}"
    return f"its last weights (those of update {best:.0f} were better: --restore-best keeps them)"
