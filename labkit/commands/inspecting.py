"""`labkit generate` and `labkit evaluate`: what a trained model writes, and how good it is.

Both take a run folder or any model folder. A language model is scored in bits per byte, which
compares models of different vocabularies; a classifier by accuracy and macro-F1.
"""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from labkit import runtime
from labkit.batches import Batches, Pad
from labkit.commands.finetuning import classifier_scores, score_table
from labkit.commands.options import Evaluate, Generate, check
from labkit.commands.shell import say, table
from labkit.commands.tasks import classified
from labkit.errors import LabError
from labkit.evaluation.classification import classify
from labkit.generation.loaded import MOST_CONTEXT, LanguageModel, load
from labkit.models.config import context_length
from labkit.models.huggingface.folders import is_classifier, open_classifier, quiet_libraries
from labkit.text import corpora
from labkit.text.tokenizers import Tokenizer
from labkit.training.run_folder import model_folder


def generate(options: Generate) -> list[str]:
    """Write continuations of a prompt to stdout.

    Raises:
        LabError: the folder holds no language model, or an option is out of range.
    """
    check(0 <= options.seed < 2**32, options, "seed", f"0 to {2**32 - 1}")
    check(1 <= options.samples <= 1000, options, "samples", "1 to 1000")
    check(options.max_new_tokens >= 1, options, "max_new_tokens", "at least 1")
    check(0 <= options.temperature < math.inf, options, "temperature", "0 or more")
    check(options.top_k is None or options.top_k >= 1, options, "top_k", "at least 1")
    check(options.top_p is None or 0 < options.top_p <= 1, options, "top_p", "above 0, at most 1")
    quiet_libraries()
    model = load(options.model, device=options.device)
    if options.chat and not options.prompt:
        return _talk(model, options)
    answers = model.generate(
        options.prompt,
        chat=options.chat,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        seed=options.seed,
        samples=options.samples,
    )
    shown = "" if options.chat else options.prompt
    texts = [shown + answer for answer in answers]
    print("\n---\n".join(texts))
    return texts


def _talk(model: LanguageModel, options: Generate) -> list[str]:
    """Answer each line of stdin; the whole conversation is read again at every turn."""
    messages: list[dict[str, str]] = []
    if sys.stdin.isatty():
        say("a line is a turn; end with Ctrl-D")
    for number, line in enumerate(filter(None, map(str.strip, sys.stdin))):
        messages.append({"role": "user", "content": line})
        answer = model.chat(
            messages,
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            seed=options.seed + number,
        )
        print(answer, flush=True)
        messages.append({"role": "assistant", "content": answer})
    if not messages:
        raise LabError("chat needs a prompt: give --prompt, or lines on standard input")
    return [message["content"] for message in messages if message["role"] == "assistant"]


def evaluate(options: Evaluate) -> dict[str, Any]:
    """Score a model on each data set; print a table or JSON.

    Raises:
        LabError: the model, the data or an option cannot be used.
    """
    check(len(options.data) > 0, options, "data", "one or more corpora, files or folders")
    check(options.batch_size >= 1, options, "batch_size", "at least 1")
    if options.context_length is not None:
        check(options.context_length >= 1, options, "context_length", "at least 1")
    folder = model_folder(options.model)
    quiet_libraries()
    if classifier := is_classifier(folder):
        score = _classifier_score(folder, options)
    else:
        score = _language_score(load(folder, device=options.device), options)
    scores = {source: score(source) for source in options.data}
    if options.json:
        say(json.dumps({"model": str(options.model), "scores": scores}))
    elif classifier:
        for source, numbers in scores.items():
            say(f"{source}\n{score_table(numbers)}")
    else:
        say(table([{"data": source, **numbers} for source, numbers in scores.items()]))
    return scores


def _own_file(source: str) -> bool:
    return source not in corpora.names() and not source.startswith("hub:")


def _language_score(opened: LanguageModel, options: Evaluate) -> Callable[[str], dict[str, Any]]:
    device = next(opened.model.parameters()).device
    precision = runtime.pick_precision(device, options.precision)

    def score(source: str) -> dict[str, Any]:
        if _own_file(source) and options.split is None:
            texts = corpora.load_text(source, options.text_column)["text"]
        else:
            columns = {"text_column": options.text_column} if _own_file(source) else {}
            texts = corpora.load(source, options.split or "test", **columns)["text"]
        return opened.score(
            list(texts),
            context_length=options.context_length,
            batch_size=options.batch_size,
            precision=precision,
        )

    return score


def _classifier_score(folder: Path, options: Evaluate) -> Callable[[str], dict[str, Any]]:
    tokenizer = Tokenizer.from_pretrained(folder)
    model: Any = open_classifier(folder).eval().to(runtime.pick_device(options.device))
    classes = [model.config.id2label[i] for i in range(model.config.num_labels)]
    names = {"text_column": options.text_column, "label_column": options.label_column}
    longest = context_length(model)
    T = options.context_length or min(longest, tokenizer.context_length or MOST_CONTEXT)
    if longest < T:
        raise LabError(f"context_length {T} is out of range: the model reads at most {longest}")

    def score(source: str) -> dict[str, Any]:
        if _own_file(source) and options.split is None:
            rows = corpora.load_labelled(source, **names, classes=classes)
        else:
            columns = names if _own_file(source) else {}
            rows = corpora.load(source, options.split or "test", **columns)
        if "label" not in rows.column_names:
            raise LabError(f"{source} has no labels: a classifier is scored on labelled texts")
        known = rows.features["label"].names
        if strange := sorted(set(known) - set(classes)):
            raise LabError(
                f"{source} has label {strange[0]!r}, which is none of the model's classes: "
                f"{', '.join(classes)}"
            )
        labels = [classes.index(known[label]) for label in rows["label"]]
        examples = classified(tokenizer, list(rows["text"]), labels, T, source)
        batches = Batches(examples, options.batch_size, Pad(tokenizer.pad_id))
        with torch.inference_mode():
            scored = classify(model, batches.evaluation_batches(), precision=options.precision)
        return classifier_scores(scored, len(classes))

    return score
