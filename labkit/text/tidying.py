"""A folder of one's own text, made fit for training: what stays, what goes, and why.

    files ─> text ─> repaired ─> without lines that ─> e-mail, phone ─> texts ─┬─ train
             (or:    (cleaning)  stand in many files   masked                  └─ test
             no text)                                        │
                                                             └─> too short, copies: left out

A file is one document. A test document is drawn by the hash of its text, and goes back to training
where passages of 13 of its words stand there: what cannot be held out is no test.

What this does not do: it finds private data by their form alone, an e-mail address or a telephone
number written with digits. Names, streets, and what a person spelled out in words stay.

Sources: Lee et al. 2022, arXiv:2107.06499 (copies); Brown et al. 2020, arXiv:2005.14165, appendix C
(runs of 13 words).
"""

import itertools
import json
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from labkit.atomic import claim, write_json, write_text
from labkit.errors import LabError
from labkit.text import cleaning, files
from labkit.text.contamination import contained_passages

MAIL = re.compile(r"(?<![\w.+-])[\w.+-]+@\w[\w-]*(?:\.\w[\w-]*)+")
PHONE = re.compile(r"(?<![\w.:/-])(?:\+\d{1,3}[ .-]?)?(?:\(\d{2,4}\)|\d{2,4})(?:[ .-]?\d{2,4}){2,3}"
                   r"(?![\w:/-])")  # fmt: skip
ISO_DATE = re.compile(r"\d{1,4}-\d{1,2}-\d{1,4}")
MASKS = {"mail": "[e-mail]", "phone": "[phone]"}
PARTS = ("train", "test")


@dataclass(frozen=True)
class Settings:
    """How to tidy."""

    repeated: float = 0.2
    """A line goes if it stands in more than this share of the files, digits aside; 1: none goes."""
    least_words: int = 30
    """A shorter text is left out, at least 1."""
    similarity: float = 0.5
    """Texts that share so much of their runs of five words are copies, in (0, 1]."""
    test: float = 0.1
    """Expected share of the documents held out, in [0, 1)."""
    most_seen: float = 0.05
    """Of a test document's words, so many may stand in training passages, 0 to 1."""
    mask: bool = True
    """Whether e-mail addresses and telephone numbers are masked."""
    seed: int = 0
    """Another seed holds out other documents."""

    def __post_init__(self) -> None:
        for name, good, allowed in (
            ("repeated", 0 < self.repeated <= 1, "above 0, at most 1"),
            ("least_words", self.least_words >= 1, "at least 1"),
            ("similarity", 0 < self.similarity <= 1, "above 0, at most 1"),
            ("test", 0 <= self.test < 1, "at least 0, below 1"),
            ("most_seen", 0 <= self.most_seen <= 1, "0 to 1"),
        ):
            if not good:
                raise LabError(f"{name} {getattr(self, name)} is out of range: choose {allowed}")


@dataclass(frozen=True)
class Tidied:
    """The documents by name, and what was done."""

    train: dict[str, str]
    test: dict[str, str]
    left_out: dict[str, str]
    """A file -> why it is in neither."""
    lines: dict[str, int] = field(default_factory=dict)
    """A repeated line, `#` for digits -> from how many files it was removed."""
    masked: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    """A file -> mail or phone -> what stood there. Private: it is never written."""
    seen: dict[str, str] = field(default_factory=dict)
    """A document that could not be held out -> the passage of it that stands in training."""

    def facts(self) -> dict[str, object]:
        """Counts, fit to be published."""
        masked = Counter(kind for of in self.masked.values() for kind in of for _ in of[kind])
        return {
            "files": len(self.train) + len(self.test) + len(self.left_out),
            "left_out": self.left_out,
            "lines_removed": self.lines,
            "masked": {kind: masked[kind] for kind in MASKS},
            "not_held_out": sorted(self.seen),
            **{
                part: {
                    "documents": len(texts),
                    "bytes": sum(len(text.encode()) for text in texts.values()),
                }
                for part, texts in (("train", self.train), ("test", self.test))
            },
        }


def tidy(folder: str | Path, settings: Settings | None = None) -> Tidied:
    """Read every file of a folder, clean, mask, drop copies, hold documents out.

    Raises:
        LabError: it is no folder, or nothing is left to train on.
    """
    settings = settings or Settings()
    texts, left_out = read_folder(folder)
    texts, lines = without_repeated_lines(texts, settings.repeated)
    masked = {}
    if settings.mask:
        for name, text in texts.items():
            texts[name], found = mask_private(text)
            masked |= {name: found} if found else {}
    for name, text in list(texts.items()):
        count = len(cleaning.words(text))
        if count < settings.least_words:
            left_out[name] = f"{count} words, fewer than {settings.least_words}"
            del texts[name]
    names = list(texts)
    _, exact, near = cleaning.deduplicate(list(texts.values()), settings.similarity)
    for copy in (*exact, *near):
        what = "a copy" if copy.similarity == 1 else "nearly a copy"
        left_out[names[copy.dropped]] = f"{what} of {names[copy.kept]}"
    kept = {name: text for name, text in texts.items() if name not in left_out}
    train, test, seen = hold_out(kept, settings.test, settings.most_seen, settings.seed)
    if not train:
        raise LabError(f"{folder} leaves nothing to train on: give more text, or a smaller test")
    return Tidied(train, test, dict(sorted(left_out.items())), lines, masked, seen)


def read_folder(folder: str | Path) -> tuple[dict[str, str], dict[str, str]]:
    """The repaired text of each file by its name, and why others have none; the top first.

    Raises:
        LabError: it is no folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise LabError(f"{folder} is no folder: give one with text files in it")
    texts: dict[str, str] = {}
    left_out: dict[str, str] = {}
    found = [path for path in folder.rglob("*") if path.is_file()]
    for path in sorted(
        found, key=lambda path: (len(path.parts), path)
    ):  # of copies the first stays
        name = path.relative_to(folder).as_posix()
        if path.suffix.lower() not in files.TEXT_SUFFIXES:
            left_out[name] = f"{path.suffix or 'a file without an ending'} is no kind of text"
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a guessed encoding: it is in the report
                text = files.read(path)
        except LabError as error:
            left_out[name] = "empty" if "is empty" in str(error) else "no text, binary"
            continue
        text = cleaning.fix_mojibake(text)
        if path.suffix.lower() in (".html", ".htm") or "</p>" in text:
            text = cleaning.strip_markup(text)
        texts[name] = cleaning.collapse_whitespace(cleaning.normalize_unicode(text))
    return texts, left_out


def without_repeated_lines(
    texts: Mapping[str, str], share: float
) -> tuple[dict[str, str], dict[str, int]]:
    """The texts without lines that stand in more than a share of them, and in three at least.

    Digits count as equal, so that "page 3" and "page 4" are one line.

    >>> without_repeated_lines({str(i): f"page {i}\\ntext {chr(97 + i)}" for i in range(4)}, 0.5)[1]
    {'page #': 4}
    """
    of = {name: [re.sub(r"\d+", "#", line) for line in t.split("\n")] for name, t in texts.items()}
    counts = Counter(line for lines in of.values() for line in set(lines) if line.strip())
    gone = {line: n for line, n in counts.items() if n > max(2, share * len(texts))}
    kept = {}
    for name, text in texts.items():
        lines = zip(text.split("\n"), of[name], strict=True)
        kept[name] = "\n".join(line for line, form in lines if form not in gone).strip()
    return kept, gone


def mask_private(text: str) -> tuple[str, dict[str, list[str]]]:
    """The text with e-mail addresses and telephone numbers masked, and what stood there.

    A telephone number has 7 to 15 digits (E.164) in groups, and is not written like a date.

    >>> mask_private("Ask mira@example.org or +44 20 7946 0123 by 2003-11-30.")[0]
    'Ask [e-mail] or [phone] by 2003-11-30.'
    """
    found: dict[str, list[str]] = {}

    def mail(it: re.Match[str]) -> str:
        found.setdefault("mail", []).append(it[0])
        return MASKS["mail"]

    def phone(it: re.Match[str]) -> str:
        digits = sum(c.isdigit() for c in it[0])
        if not 7 <= digits <= 15 or ISO_DATE.fullmatch(it[0]):
            return it[0]
        found.setdefault("phone", []).append(it[0])
        return MASKS["phone"]

    return PHONE.sub(phone, MAIL.sub(mail, text)), found


def hold_out(
    texts: Mapping[str, str], test: float, most_seen: float = 0.05, seed: int = 0
) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """Training and test documents, and which were drawn for the test and stand in training.

    Returns:
        train, test, and for each document that went back the passage that was found.
    """
    part = {name: cleaning.split_of(text, 0.0, test, seed) for name, text in texts.items()}
    seen: dict[str, str] = {}
    while True:  # what goes back may hold passages of another
        held = [name for name in texts if part[name] == "test"]
        train = [texts[name] for name in texts if part[name] != "test"]
        found = contained_passages(train, [texts[name] for name in held])
        back = {n: it.passage for n, it in zip(held, found, strict=True) if it.share > most_seen}
        if not back:
            break
        seen |= back
        part |= dict.fromkeys(back, "train")
    split = {p: {n: t for n, t in texts.items() if part[n] == p} for p in PARTS}
    return split["train"], split["test"], seen


def write_tidied(tidied: Tidied, out: str | Path) -> None:
    """Write train/ and test/, a txt file a document, and tidied.json with the counts.

    Raises:
        LabError: out holds something, or no document is held out.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise LabError(f"out {out} is not empty: choose a new folder, or empty it yourself")
    if not tidied.test:
        raise LabError("no document is held out: give more text, or a larger test")
    with claim(out, replace=True) as folder:
        for part, texts in (("train", tidied.train), ("test", tidied.test)):
            (folder / part).mkdir()
            for name, text in zip(_file_names(list(texts)), texts.values(), strict=True):
                write_text(folder / part / name, text + "\n")
        write_json(folder / "tidied.json", tidied.facts())


def read_tidied(folder: str | Path) -> tuple[dict[str, str], dict[str, str], dict[str, object]]:
    """Training documents, test documents and the facts of a folder that `write_tidied` wrote.

    Raises:
        LabError: a part of it is missing.
    """
    folder = Path(folder)
    try:
        facts = json.loads((folder / "tidied.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LabError(
            f"{folder} holds no tidied.json: make it with labkit clean FOLDER --out {folder}"
        ) from error
    train, test = (
        {path.name: path.read_text(encoding="utf-8").strip() for path in sorted(part.glob("*.txt"))}
        for part in (folder / "train", folder / "test")
    )
    if not train or not test:
        raise LabError(f"{folder} needs documents in train/ and in test/: run labkit clean again")
    return train, test, facts


def _file_names(names: Sequence[str]) -> list[str]:
    """Flat names of txt files, no two alike, also where letters' case does not count.

    >>> _file_names(["a/b.txt", "a_b.md", "a_b_2.txt"])
    ['a_b.txt', 'a_b_2.txt', 'a_b_2_2.txt']
    """
    taken: set[str] = set()
    unique = []
    for name in names:
        flat = Path(name).with_suffix("").as_posix().replace("/", "_")
        forms = (flat if n == 1 else f"{flat}_{n}" for n in itertools.count(1))
        free = next(form for form in forms if form.casefold() not in taken)
        taken.add(free.casefold())
        unique.append(f"{free}.txt")
    return unique
