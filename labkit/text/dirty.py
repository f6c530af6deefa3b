"""A dirty pool of texts whose dirt is known: what a filter drops can be counted right or wrong.

    articles ──┬─ as they are ─────────────────────> clean
               ├─ copied, whole or edited ─────────> exact, near
               └─ shuffled, ciphered, misread, looped > junk, with boilerplate and typing noise
    tests ─────── whole, inside an article, edited ──> leak
                                    all shuffled ──> Pool: texts, kinds, families

A pool from the web has all of this and no labels. Here each text keeps its kind. Of a family of
copies the first in the pool's order is the clean one, whichever it is: a filter that keeps any
single one of them has done right. All is a function of the seed.

Sources: the kinds are those that Rae et al. 2021, arXiv:2112.11446, appendix A (boilerplate,
repetition), Lee et al. 2022, arXiv:2107.06499 (duplicates) and Kreutzer et al. 2022,
arXiv:2103.12028 (wrong language, wrong encoding, not language at all) found in real corpora.
"""

import codecs
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from labkit.errors import LabError
from labkit.text.cleaning import content_hash

#: What no model of clean text should read.
JUNK = ("boilerplate", "shuffled", "cipher", "encoding", "keyboard", "loop")
#: Repeats of a text of the pool.
COPIES = ("exact", "near")
KINDS = ("clean", *COPIES, *JUNK, "leak")

_PAGE = (
    "Home | News | Sport | Weather | Contact",
    "Accept all cookies to continue to our site.",
    "Click here to subscribe to our free newsletter today!",
    "Share this page: email, print, save for later.",
    "Sign in or register for an account to post a comment.",
    "Copyright 2004. All rights reserved. Terms of use. Privacy policy.",
    "Your basket is empty. Continue shopping or go to the checkout.",
    "Page not found. Try a search, or go back to the start page.",
    "Advertisement. Story continues below.",
    "Skip to main content. Menu. Search. Close.",
)
_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


@dataclass(frozen=True)
class Pool:
    """Texts in the order in which a filter meets them."""

    texts: list[str]
    kinds: list[str]
    """One of `KINDS` for each."""
    families: list[int]
    """Texts with one number are copies of one another; of a leak -1 - the number of its test."""

    def where(self, *kinds: str) -> list[int]:
        """Positions of the texts of these kinds."""
        return [i for i, kind in enumerate(self.kinds) if kind in kinds]


def dirty_pool(
    articles: Sequence[str],
    tests: Sequence[str],
    *,
    clean: int = 400,
    copied: int = 15,
    copies: int = 10,
    junk: int = 40,
    seed: int = 0,
) -> Pool:
    """Plant copies, junk and leaks among clean articles.

    Args:
        articles: good texts without copies among them; `clean + 4 * junk + len(tests)` are used,
            each for one purpose.
        tests: texts that are to leak; each comes three times: whole, in the middle of an article,
            and with a word in eight changed. May be empty.
        clean: articles that stay as they are, at least 2 * copied.
        copied: articles that are copied word for word, and as many others with small edits.
        copies: of each of those, beside the first; 0: no copies.
        junk: texts of each kind of `JUNK`; 0: none.
        seed: of everything.

    Raises:
        LabError: too few articles, or a count out of range.
    """
    if min(clean, copied, copies, junk) < 0 or clean < 2 * copied:
        raise LabError(
            f"clean={clean}, copied={copied}, copies={copies}, junk={junk}: none may be below 0, "
            "and clean must be at least 2 * copied"
        )
    wanted = clean + 4 * junk + len(tests)
    if len(articles) < wanted:
        raise LabError(f"{len(articles)} articles are too few: this pool uses {wanted}")
    rng = np.random.default_rng(seed)
    rest = iter(articles[int(i)] for i in rng.permutation(len(articles)))
    good = [next(rest) for _ in range(clean)]
    planted = [(text, "clean", family) for family, text in enumerate(good)]
    for family in range(2 * copied):
        for _ in range(copies):
            text = good[family]
            planted.append((text if family < copied else edited(text, good, rng), "", family))
    of_articles: dict[str, Callable[[str], str]] = {
        "shuffled": lambda text: " ".join(rng.permutation(text.split())),
        "cipher": lambda text: codecs.encode(text, "rot13"),
        "encoding": misread,
        "loop": lambda text: looped(text, rng),
    }
    for kind in JUNK:
        for _ in range(junk):
            made = of_articles.get(kind)
            text = made(next(rest)) if made else (_page if kind == "boilerplate" else _typed)(rng)
            planted.append((text, kind, len(planted)))
    for number, test in enumerate(tests):
        words = next(rest).split()
        half = len(words) // 2
        inside = " ".join([*words[:half], test, *words[half:]])
        for text in (test, inside, replaced(test, good, 8, rng)):
            planted.append((text, "leak", -1 - number))
    return _labelled([planted[int(i)] for i in rng.permutation(len(planted))])


def edited(text: str, others: Sequence[str], rng: np.random.Generator) -> str:
    """A near copy: a word in forty from another text, a line on top, the last words cut."""
    changed = replaced(text, others, 40, rng).split(" ")
    cut = len(changed) - int(rng.integers(0, max(1, len(changed) // 12)))
    return f"Updated at {rng.integers(24):02}:{rng.integers(60):02}\n" + " ".join(changed[:cut])


def replaced(text: str, others: Sequence[str], every: int, rng: np.random.Generator) -> str:
    """A word in `every` replaced, evenly spaced, by a word of another text."""
    words = text.split(" ")
    for i in range(int(rng.integers(every)), len(words), every):
        words[i] = str(rng.choice(others[int(rng.integers(len(others)))].split()))
    return " ".join(words)


def misread(text: str) -> str:
    """Bytes of UTF-8 that were read as UTF-16: English becomes rare Chinese characters.

    >>> misread("news")
    '敮獷'
    """
    data = text.encode()
    return data[: len(data) // 2 * 2].decode("utf-16-le", "ignore")


def looped(text: str, rng: np.random.Generator) -> str:
    """A start, then one phrase of 4 to 12 words for ever: a generator that got stuck."""
    words = text.split()
    start, length = int(rng.integers(5, 25)), int(rng.integers(4, 13))
    phrase = words[start : start + length] or words
    times = max(1, (len(words) - start) // len(phrase))
    return " ".join([*words[:start], *phrase * times])


def _page(rng: np.random.Generator) -> str:
    """A page without its content: menus, notices, prices."""
    lines = [str(rng.choice(_PAGE)) for _ in range(int(rng.integers(12, 30)))]
    return "\n".join(f"{line} {rng.integers(1, 999)}" for line in lines)


def _typed(rng: np.random.Generator) -> str:
    """Keys near one another, as hands fall on them."""
    words = []
    for _ in range(int(rng.integers(100, 250))):
        row = _ROWS[int(rng.integers(3))]
        at = int(rng.integers(len(row) - 3))
        words.append("".join(rng.choice(list(row[at : at + 4]), int(rng.integers(2, 12)))))
    return " ".join(words)


def _labelled(planted: Sequence[tuple[str, str, int]]) -> Pool:
    """The first of a family is clean, a later one with the same words exact, another near."""
    kinds, seen = [], {}
    for text, kind, family in planted:
        if kind in ("clean", ""):
            before, name = seen.setdefault(family, set()), content_hash(text)
            kind = "exact" if name in before else "near" if before else "clean"
            before.add(name)
        kinds.append(kind)
    return Pool([text for text, _, _ in planted], kinds, [family for _, _, family in planted])
