"""`labkit generate`, `evaluate`, `classify`: what a trained model writes, says, and how good it is.

Both take a run folder or any model folder. A language model is scored in bits per byte, which
compares models of different vocabularies; a classifier by accuracy and macro-F1.
"""

import csv
import dataclasses
import io
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from labkit import runtime
from labkit.atomic import write_json, write_text
from labkit.commands import answers, choices, conversations, questions, tagging
from labkit.commands.options import Classify, Evaluate, Generate, check
from labkit.commands.scoring import class_table, classifier_scores, say_classes, score_rows
from labkit.commands.shell import counted, note, say, table
from labkit.errors import LabError
from labkit.evaluation.documents import compared
from labkit.generation.classifier import Classifier, load_classifier
from labkit.generation.loaded import LanguageModel, load
from labkit.models.config import context_length
from labkit.models.huggingface.folders import is_classifier, is_reader, quiet_libraries
from labkit.models.tagger import is_tagger
from labkit.text import corpora, files
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
    check(1 <= options.beams <= 100, options, "beams", "1 to 100")
    check(math.isfinite(options.length_penalty), options, "length_penalty", "a finite number")
    if options.beams > 1:
        check(options.top_k is None, options, "top_k", "none with beams, which draw nothing")
        check(options.top_p is None, options, "top_p", "none with beams, which draw nothing")
        check(options.samples <= options.beams, options, "samples", f"1 to {options.beams} (beams)")
        talks = options.chat and not options.prompt
        check(not talks, options, "beams", "1 to talk, or give --prompt")
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
        beams=options.beams,
        length_penalty=options.length_penalty,
    )
    shown = "" if options.chat or model.answers_sources else options.prompt
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
    if options.choices is not None:
        check(options.against is None, options, "against", "none with --choices")
        check(options.out is None, options, "out", "none with --choices")
        return choices.evaluate(options)
    check(len(options.data) > 0, options, "data", "one or more corpora, files or folders")
    check(options.batch_size >= 1, options, "batch_size", "at least 1")
    if options.context_length is not None:
        check(options.context_length >= 1, options, "context_length", "at least 1")
    folder = model_folder(options.model)
    quiet_libraries()
    if options.against is not None:
        return _evaluate_against(folder, options)
    if is_tagger(folder):
        return tagging.evaluate(folder, options)
    check(1 <= options.beams <= 100, options, "beams", "1 to 100")
    check(math.isfinite(options.length_penalty), options, "length_penalty", "a finite number")
    check(options.max_new_tokens >= 1, options, "max_new_tokens", "at least 1")
    rows: Callable[[Any], Any] | None = None  # of the table, for the kinds that write their own
    if classifier := is_classifier(folder):
        score = _classifier_score(folder, options)
    elif is_reader(folder):
        score, rows = questions.score(folder, options), questions.score_rows
    else:
        opened = load(folder, device=options.device)
        score = _language_score(opened, options)
        if opened.answers_sources:
            score, rows = answers.score(opened, options), answers.score_rows
        elif any(
            kinds := [conversations.file_kind(it, options.text_column) for it in options.data]
        ):
            check(len(set(kinds)) == 1, options, "data", "files of one kind: score them apart")
            score = conversations.score(opened, options, str(kinds[0]))
            rows = conversations.score_rows
    scores = {source: score(source) for source in options.data}
    _keep(scores, options)
    if options.json:
        say(json.dumps({"model": str(options.model), "scores": scores}))
    elif rows is not None:
        say(table(rows(scores)))
    elif classifier:
        say(table(score_rows(scores)))
        for source, numbers in scores.items():
            say(f"\n{source}")
            say_classes(numbers["classes"])
    else:
        say(table([{"data": source, **numbers} for source, numbers in scores.items()]))
    return scores


def _own_file(source: str) -> bool:
    return source not in corpora.names() and not source.startswith("hub:")


def _keep(scores: dict[str, Any], options: Evaluate) -> None:
    if options.out is not None:
        write_json(options.out, {"model": str(options.model), "scores": scores})


def _texts_of(source: str, options: Evaluate) -> list[str]:
    """The documents of a corpus or of a file or folder."""
    if _own_file(source) and options.split is None:
        return list(corpora.load_text(source, options.text_column)["text"])
    columns = {"text_column": options.text_column} if _own_file(source) else {}
    return list(corpora.load(source, options.split or "test", **columns)["text"])


def _evaluate_against(folder: Path, options: Evaluate) -> dict[str, Any]:
    """Two language models on the same documents, one after the other in memory."""
    texts = {source: _texts_of(source, options) for source in options.data}
    found = []
    for model in (folder, options.against):
        opened = load(str(model), device=options.device)
        if opened.answers_sources:
            raise LabError(f"{model} answers sources: --against compares models of plain text")
        device = next(opened.model.parameters()).device
        precision = runtime.pick_precision(device, options.precision)
        how = {"context_length": options.context_length, "batch_size": options.batch_size}
        found.append(
            {
                source: opened.score_documents(some, precision=precision, **how)
                for source, some in texts.items()
            }
        )
    ours, theirs = found
    scores = {
        source: compared(ours[source], theirs[source], str(options.against)) for source in texts
    }
    _keep(scores, options)
    if options.json:
        say(json.dumps({"model": str(options.model), "scores": scores}))
    else:
        say(table([_compared_row(source, it) for source, it in scores.items()]))
    return scores


def _compared_row(source: str, it: dict[str, Any]) -> dict[str, Any]:
    other = it["against"]
    return {
        "data": source,
        "bits per byte": f"{it['bits_per_byte']:.4f} [{it['low']:.4f}, {it['high']:.4f}]",
        other["model"]: f"{other['bits_per_byte']:.4f} [{other['low']:.4f}, {other['high']:.4f}]",
        "gain": f"{other['gain']:+.4f} [{other['gain_low']:+.4f}, {other['gain_high']:+.4f}]",
        "p": f"{other['p']:.4f}",
        "documents": it["documents"],
    }


def _language_score(opened: LanguageModel, options: Evaluate) -> Callable[[str], dict[str, Any]]:
    device = next(opened.model.parameters()).device
    precision = runtime.pick_precision(device, options.precision)

    def score(source: str) -> dict[str, Any]:
        return opened.score(
            _texts_of(source, options),
            context_length=options.context_length,
            batch_size=options.batch_size,
            precision=precision,
        )

    return score


def _classifier_score(folder: Path, options: Evaluate) -> Callable[[str], dict[str, Any]]:
    opened = load_classifier(folder, device=options.device)
    classes, longest = opened.classes, context_length(opened.model)
    if T := options.context_length:
        if longest < T:
            raise LabError(f"context_length {T} is out of range: the model reads at most {longest}")
        reading = dataclasses.replace(opened.reading, max_length=T)
        opened = dataclasses.replace(opened, reading=reading)
    names: dict[str, Any] = {
        "text_column": options.text_column,
        "label_column": options.label_column,
        "pair_column": options.pair_column,
    }

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
        seconds = list(rows["pair"]) if "pair" in rows.column_names else None
        said = _said(opened, list(rows["text"]), seconds, options, source).argmax(-1).numpy()
        scores = classifier_scores(said, labels, len(classes))
        return {**scores, "classes": class_table(said, labels, classes)}

    return score


def _said(
    opened: Classifier,
    texts: list[str],
    seconds: list[str] | None,
    options: Evaluate | Classify,
    source: str,
) -> Tensor:
    """Log-probabilities, with a word on what is cut and a sign of life."""
    reading = opened.reading
    if cut := reading.examples(opened.model, opened.tokenizer, texts, seconds)[2]:
        note(f"{cut:,} of {len(texts):,} texts of {source} are longer than {reading}: cut")

    def watch(batches: Any, count: int) -> Any:
        return counted(batches, count, source)

    return opened.log_probabilities(
        texts, seconds, batch_size=options.batch_size, precision=options.precision, watch=watch
    )


def classify(options: Classify) -> list[dict[str, Any]]:
    """Write the likeliest class of each text, to stdout or a csv file; of a tagger its tags.

    Returns:
        For each text `text`, `class`, `probability`, and `probabilities` of all classes.

    Raises:
        LabError: no text, an option is out of range, or the folder holds no classifier.
    """
    given = bool(options.text) + (options.data is not None)
    check(given == 1, options, "text", "either texts, or --data with a file of them")
    check(options.batch_size >= 1, options, "batch_size", "at least 1")
    folder = model_folder(options.model)
    quiet_libraries()
    if options.out and options.data and options.out.resolve() == options.data.resolve():
        raise LabError(f"out {options.out} is the file that is read: choose another")
    if is_tagger(folder):
        return tagging.classify(folder, options)
    if not is_classifier(folder):
        raise LabError(
            f"{folder} holds no classifier: labkit finetune makes one from labelled texts"
        )
    texts, seconds = _unlabelled(options)
    opened = load_classifier(folder, device=options.device)
    said = _said(opened, texts, seconds, options, str(options.data or "text")).exp().tolist()
    rows = []
    for text, row in zip(texts, said, strict=True):
        named = dict(sorted(zip(opened.classes, row, strict=True), key=lambda pair: -pair[1]))
        best = next(iter(named))
        rows.append(
            {"text": text, "class": best, "probability": named[best], "probabilities": named}
        )
    _show(rows, options)
    return rows


def _unlabelled(options: Classify) -> tuple[list[str], list[str] | None]:
    if options.data is None:
        if options.pair_column is not None:
            raise LabError("pairs come from a file: give --data with --pair-column")
        return list(options.text), None
    if options.data.suffix.lower() not in (".csv", ".tsv", ".jsonl"):
        lines = files.read(options.data).splitlines()
        return [line for line in lines if line.strip()], None
    rows = files.rows(options.data)
    pair = options.pair_column
    seconds = None if pair is None else files.column(options.data, rows, pair)
    return files.column(options.data, rows, options.text_column), seconds


def _show(rows: list[dict[str, Any]], options: Classify) -> None:
    if options.out is not None:
        lines = io.StringIO(newline="")
        writer = csv.writer(lines)
        writer.writerow(["text", "class", "probability"])
        writer.writerows([r["text"], r["class"], f"{r['probability']:.4f}"] for r in rows)
        write_text(options.out, lines.getvalue())
        say(f"{options.out}: the classes of {len(rows):,} texts")
    elif options.json:
        for row in rows:
            say(json.dumps(row, ensure_ascii=False))
    else:
        for row in rows:
            say(f"{row['class']}  {row['probability']:.4f}  {' '.join(row['text'].split())[:80]}")
