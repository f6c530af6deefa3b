"""`labkit generate` and `labkit evaluate`: what a trained model writes, and how good it is.

Both take a run folder or any model folder. A language model is scored in bits per byte, which
compares models of different vocabularies; a classifier by accuracy and macro-F1.
"""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from labkit import runtime
from labkit.batches import Batches, Pad
from labkit.commands.finetuning import classifier_scores, score_table
from labkit.commands.options import Evaluate, Generate, check
from labkit.commands.shell import (
    chat_ids,
    is_classifier,
    longest_context,
    model_folder,
    open_classifier,
    open_lm,
    quiet_libraries,
    say,
    score_text,
    table,
    token_stream,
)
from labkit.commands.tasks import classification_examples, labelled_file
from labkit.errors import LabError
from labkit.evaluation import classification as scoring
from labkit.generation import sampling
from labkit.text import corpora
from labkit.text.tokenizers import Tokenizer

MOST_CONTEXT = 1024


def generate(options: Generate) -> list[str]:
    """Write continuations of a prompt to stdout.

    Raises:
        LabError: the folder holds no language model, or an option is out of range.
    """
    check(0 <= options.seed < 2**32, options, "seed", f"0 to {2**32 - 1}")
    check(options.samples >= 1, options, "samples", "at least 1")
    check(options.max_new_tokens >= 1, options, "max_new_tokens", "at least 1")
    check(0 <= options.temperature < math.inf, options, "temperature", "0 or more")
    check(options.top_k is None or options.top_k >= 1, options, "top_k", "at least 1")
    check(options.top_p is None or 0 < options.top_p <= 1, options, "top_p", "above 0, at most 1")
    if options.chat and not options.prompt:
        raise LabError("chat needs a prompt: give --prompt")
    folder = model_folder(options.model)
    quiet_libraries()
    tokenizer = Tokenizer.from_pretrained(folder)
    model = open_lm(folder).to(runtime.pick_device(options.device))
    if options.chat:
        ids = chat_ids(tokenizer, options.prompt)
    else:
        ids = [tokenizer.end_of_text_id, *tokenizer.encode(options.prompt)]
    room = min(options.max_new_tokens, longest_context(model) - 1)
    answers = sampling.generate(
        model,
        [ids] * options.samples,
        room,
        options.temperature,
        options.top_k,
        options.top_p,
        options.seed,
        tokenizer.end_of_text_id,
    )
    shown = "" if options.chat else options.prompt
    texts = [shown + tokenizer.decode(answer) for answer in answers]
    print("\n---\n".join(texts))
    return texts


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
    classifier = is_classifier(folder)
    tokenizer = Tokenizer.from_pretrained(folder)
    model: Any = (open_classifier(folder) if classifier else open_lm(folder)).eval()
    model.to(runtime.pick_device(options.device))
    T = options.context_length or min(longest_context(model), MOST_CONTEXT)
    if longest_context(model) < T:
        longest = longest_context(model)
        raise LabError(f"context_length {T} is out of range: the model reads at most {longest}")
    score = _score_classes if classifier else _score_language
    scores = {source: score(model, tokenizer, source, T, options) for source in options.data}
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


def _score_language(
    model: Any, tokenizer: Tokenizer, source: str, T: int, options: Evaluate
) -> dict[str, Any]:
    if _own_file(source) and options.split is None:
        texts = list(corpora.load_text(source, options.text_column)["text"])
    else:
        columns = {"text_column": options.text_column} if _own_file(source) else {}
        texts = list(corpora.load(source, options.split or "test", **columns)["text"])
    end = tokenizer.end_of_text_id
    stream = ([*ids, end] for ids in token_stream(tokenizer, texts))
    tokens = np.fromiter(itertools.chain.from_iterable(stream), dtype=np.int64)
    size = sum(len(text.encode()) for text in texts)
    precision = runtime.pick_precision(next(model.parameters()).device, options.precision)
    return score_text(model, tokens, size, T, batch_size=options.batch_size, precision=precision)


def _score_classes(
    model: Any, tokenizer: Tokenizer, source: str, T: int, options: Evaluate
) -> dict[str, Any]:
    classes = [model.config.id2label[i] for i in range(model.config.num_labels)]
    names = {"text_column": options.text_column, "label_column": options.label_column}
    if _own_file(source) and options.split is None:
        texts, labels = labelled_file(Path(source), classes, **names)
    else:
        rows = corpora.load(source, options.split or "test", **(names if _own_file(source) else {}))
        if "label" not in rows.column_names:
            raise LabError(f"{source} has no labels: a classifier is scored on labelled texts")
        known = rows.features["label"].names
        if strange := sorted(set(known) - set(classes)):
            raise LabError(
                f"{source} has label {strange[0]!r}, which is none of the model's classes: "
                f"{', '.join(classes)}"
            )
        texts = list(rows["text"])
        labels = [classes.index(known[label]) for label in rows["label"]]
    examples = classification_examples(tokenizer, texts, labels, T)
    batches = Batches(examples, options.batch_size, Pad(tokenizer.pad_id))
    with torch.inference_mode():
        scored = scoring.classify(model, batches.evaluation_batches(), precision=options.precision)
    return classifier_scores(scored, len(classes))
