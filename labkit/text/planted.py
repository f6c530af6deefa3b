"""A folder of text as people have them: dirty, with a list of every piece of dirt.

    sheets of the King James Version ────> a file each ──┬─ a line above and below ("page 17 ...")
    (public domain)                                      ├─ copies: exact, shouted, with gaps
                                                         ├─ addresses, numbers, look-alikes
                                                         └─ other encodings, markup, nothing at all
    ──> folder, and `Planted`: what went where, so that cleaning has a precision and a recall

All names, addresses and numbers are invented: the hosts are those that RFC 2606 keeps for examples,
the telephone numbers those that are kept for fiction.
"""

import html
import random
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from labkit.atomic import claim
from labkit.errors import LabError
from labkit.text import corpora

#: Two pairs of chapters that tell the same: twins that nobody planted.
NATURAL = ((12019, 23037), (19014, 19053))
#: What stands above and below a text; {n} is the page.
FRAME = (
    "St Anne's reading circle, typed copy, page {n}",
    "Please bring this sheet back to the library (shelf {n})",
)
#: Written so that a pattern can find them ...
PRIVATE = (
    ("mail", "mira.stone@example.org"),
    ("mail", "T.Okoro+circle@mail.example.com"),
    ("phone", "+44 20 7946 0{n:03}"),
    ("phone", "(212) 555-0{n:03}"),
    # ... and as people write them who know patterns.
    ("mail", "mira stone at example dot org"),
    ("phone", "five five five, oh one four two"),
)
#: They look like what is private and are not.
LOOKALIKES = ("born 17-05-1932, died 2003-11-30", "ISBN 978-0-14-044926-6", "see 23:1-6 and 91:16")
#: Verses on a sheet.
SHEET = 12
ENCODINGS = ("cp1252", "utf-16", "mojibake", "html", "crlf")


@dataclass(frozen=True)
class Planted:
    """What was put where; names are paths inside the folder."""

    texts: tuple[str, ...]
    """Files with a text of their own."""
    copies: dict[str, str] = field(default_factory=dict)
    """A file that repeats another -> that one."""
    empty: tuple[str, ...] = ()
    """Files without a text: nothing, white space, a picture, the frame alone."""
    frame: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """The lines above and below the text of a file."""
    private: dict[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)
    """(mail or phone, what was written) of a file."""
    lookalikes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """What is not private and looks so."""
    encoded: dict[str, str] = field(default_factory=dict)
    """The encoding or markup of a file, where it is another than UTF-8 text."""
    natural: tuple[tuple[str, str], ...] = ()
    """Pairs of files whose texts are nearly the same by themselves."""


def example_folder(out: str | Path, seed: int = 0, chapters: int = 110) -> Planted:
    """Write the folder; the same files for the same seed.

    Args:
        out: new or empty.
        seed: which chapters, and what is planted where.
        chapters: of how many the first `SHEET` verses are a text, 12 to 1,000; about a fifth more
            files come on top.

    Raises:
        LabError: chapters is out of range, or out holds something.

    Source of the text: `kjv_bible` of data/README.md.
    """
    out = Path(out)
    if not 12 <= chapters <= 1000:
        raise LabError(f"chapters {chapters} is out of range: choose 12 to 1000")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise LabError(f"out {out} is not empty: choose a new folder, or empty it yourself")
    random_ = random.Random(seed)
    texts, natural = _chapters(chapters, random_)
    names, files = list(texts), dict(texts)
    random_.shuffle(names)
    some = iter(names * 2)
    few = max(2, chapters // 18)
    copies = {}
    for change in (_exactly, _shouted, _with_gaps):
        for _ in range(few):
            name = next(some)
            copy = f"old/{Path(name).stem}_{change.__name__.strip('_')}.txt"
            files[copy], copies[copy] = change(texts[name], random_), name
    private: dict[str, tuple[tuple[str, str], ...]] = {}
    for i in range(2 * len(PRIVATE)):
        kind, written = PRIVATE[i % len(PRIVATE)]
        name, said = names[-1 - i], written.format(n=random_.randrange(100, 200))
        files[name] = _with_line(files[name], f"Copied by {said}", random_)
        private[name] = ((kind, said),)
    lookalikes = {}
    for said, name in zip(LOOKALIKES, names[len(names) // 2 :], strict=False):
        files[name], lookalikes[name] = _with_line(files[name], said, random_), (said,)
    frame = {}
    for number, name in enumerate(sorted(files)):
        if random_.random() < 0.6:
            above, below = (line.format(n=number + 1) for line in FRAME)
            files[name], frame[name] = f"{above}\n{files[name]}\n{below}", (above, below)
    curly = [name for name in names if "’" in texts[name]][:10]  # others are ASCII in all of them
    encoded = {name: ENCODINGS[i % len(ENCODINGS)] for i, name in enumerate(curly)}
    empty = {
        "empty.txt": b"", "blank.txt": b" \n\t\n", "photo.txt": b"\x89PNG\r\n\0\0\0\rIHDR\0\0" * 9,
        "old/frame_only.txt": "\n".join(FRAME).format(n=0).encode(),
    }  # fmt: skip
    frame["old/frame_only.txt"] = tuple(line.format(n=0) for line in FRAME)
    with claim(out, replace=True) as folder:
        for name, content in {**files, **empty}.items():
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            if isinstance(content, str):
                content = _as_bytes(content, encoded.get(name, "utf-8"))
            path.write_bytes(content)
    return Planted(tuple(texts), copies, tuple(empty), frame, private, lookalikes, encoded, natural)


def _chapters(count: int, random_: random.Random) -> tuple[dict[str, str], tuple]:
    """File name -> the beginning of so many chapters, a verse a line; and the natural twins."""
    titles = corpora.bible_books()
    verses: dict[int, list[str]] = defaultdict(list)
    for verse_id, old, _ in corpora.bible_verses():
        verses[verse_id // 1000].append(old)
    must = [chapter for pair in NATURAL for chapter in pair]
    others = sorted(key for key, lines in verses.items() if key not in must and len(lines) >= 8)
    chosen = sorted([*must, *random_.sample(others, count - len(must))])

    def name(chapter: int) -> str:
        book = titles[chapter // 1000 - 1].lower().replace(" ", "_")
        return f"{book}_{chapter % 1000:03}.txt"

    pairs = tuple((name(a), name(b)) for a, b in NATURAL)
    return {name(chapter): "\n".join(verses[chapter][:SHEET]) for chapter in chosen}, pairs


def _exactly(text: str, random_: random.Random) -> str:
    return text


def _shouted(text: str, random_: random.Random) -> str:
    return text.upper().replace(",", " ,")


def _with_gaps(text: str, random_: random.Random) -> str:
    """One word in twenty is gone."""
    lines = (line.split() for line in text.split("\n"))
    return "\n".join(" ".join(w for w in line if random_.random() >= 0.05) for line in lines)


def _with_line(text: str, line: str, random_: random.Random) -> str:
    lines = text.split("\n")
    lines.insert(random_.randrange(2, len(lines) - 1), line)
    return "\n".join(lines)


def _as_bytes(text: str, encoding: str) -> bytes:
    if encoding == "mojibake":  # UTF-8 that was read as Windows-1252, and saved
        return text.encode().decode("cp1252").encode()
    if encoding == "html":
        body = "".join(f"<p>{html.escape(line)}</p>\n" for line in text.split("\n"))
        return f"<html><head><style>p {{ color: #222 }}</style></head>\n{body}</html>\n".encode()
    if encoding == "crlf":
        return text.replace("\n", "\r\n").encode()
    return text.encode(encoding)
