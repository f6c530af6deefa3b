"""`labkit clean` and `labkit instruct`: from a folder of one's own text to what training reads.

    my-folder ── clean ──> text/train, text/test, text/tidied.json
    text ── instruct ──> instructions/train.jsonl, instructions/test.jsonl

The held-out part is fixed here, before anything is trained: instructions for the test are made of
its documents alone.
"""

import dataclasses
import json
from collections import Counter
from pathlib import Path

from labkit.atomic import claim, write_text
from labkit.commands.options import Clean, Instruct, check
from labkit.commands.shell import say
from labkit.errors import LabError
from labkit.text.tidying import Settings, Tidied, read_tidied, tidy, write_tidied
from labkit.text.written_form import messages, written_lines


def clean(options: Clean) -> Tidied:
    """Clean a folder; print what stayed and what went.

    Raises:
        LabError: an option is out of range, there is nothing to train on, or `out` lies in the
            folder or is not empty.
    """
    check(0 < options.test < 1, options, "test", "above 0, below 1")
    if options.folder.resolve() in (options.out.resolve(), *options.out.resolve().parents):
        raise LabError(
            f"{options.out} lies inside {options.folder}, which is read: choose an --out elsewhere"
        )
    names = [it.name for it in dataclasses.fields(Settings)]
    settings = Settings(**{name: getattr(options, name) for name in names})
    tidied = tidy(options.folder, settings)
    write_tidied(tidied, options.out)
    reasons = Counter(_reason(why) for why in tidied.left_out.values())
    masked = Counter(kind for of in tidied.masked.values() for kind in of for _ in of[kind])
    for part, texts in (("train", tidied.train), ("test", tidied.test)):
        size = sum(len(text.encode()) for text in texts.values())
        say(f"{part:10}{len(texts):,} documents, {size:,} bytes")
    say("left out  " + (", ".join(f"{n} {why}" for why, n in reasons.items()) or "none"))
    for line, count in tidied.lines.items():
        say(f"a line     gone from {count} files: {line[:60]}")
    say(f"masked    {masked['mail']} e-mail addresses, {masked['phone']} telephone numbers")
    if tidied.seen:
        say(f"back      {len(tidied.seen)} documents could not be held out: they stand in training")
    say(f"{options.out}: why each file went stands in tidied.json")
    return tidied


def _reason(why: str) -> str:
    for kind in ("nearly a copy", "a copy"):
        if why.startswith(kind):
            return kind
    return "too short" if "fewer than" in why else why


def instruct(options: Instruct) -> dict[str, int]:
    """Write instructions from a cleaned folder.

    Returns:
        How many, by part.

    Raises:
        LabError: an option is out of range, no line is of use, or `out` is not empty.
    """
    check(options.most >= 2, options, "most", "at least 2")
    check(options.most_test >= 1, options, "most_test", "at least 1")
    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        raise LabError(f"out {options.out} is not empty: choose a new folder, or empty it yourself")
    train, test, _ = read_tidied(options.text)
    limits = {"train": options.most, "test": options.most_test}
    counts = {}
    with claim(options.out, replace=True) as folder:
        for part, texts, without in (("train", train, {}), ("test", test, train)):
            lines = written_lines(list(texts.values()), options.seed, list(without.values()))
            lines = lines[: limits[part]]
            if not lines:
                raise LabError(
                    f"{options.text}/{part} has no line of 30 to 90 characters: write a sentence "
                    "or two a line"
                )
            rows = (json.dumps({"messages": messages(line)}, ensure_ascii=False) for line in lines)
            write_text(Path(folder) / f"{part}.jsonl", "\n".join(rows) + "\n")
            counts[part] = len(lines)
    say(f"{options.out}: {counts['train']:,} instructions to train, {counts['test']:,} to test")
    return counts
