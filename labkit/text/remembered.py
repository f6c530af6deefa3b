"""Answers of long searches, kept in the user's cache: found once, read from then on.

what decides the answer ──SHA-256──> name of a file ──there──> the answer
                                            └──not there, damaged──> search, write, the answer
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable
from typing import TypeVar

from labkit.atomic import write_json
from labkit.text import pretrained

T = TypeVar("T")


def remembered(
    name: str, causes: Iterable[str | bytes], search: Callable[[], T], fits: Callable[[T], bool]
) -> T:
    """What `search` answers, or answered before from the same causes.

    Args:
        name: begins the file's name.
        causes: all that decides the answer: the texts, the code of the search, its library's
            version.
        search: gives what JSON can hold.
        fits: whether what was read can be an answer; if not, or if it raises a TypeError or a
            ValueError, the search is made anew.

    A cache that cannot be written costs seconds, no more.
    """
    digest = hashlib.sha256()
    for cause in causes:
        digest.update((cause.encode() if isinstance(cause, str) else cause) + b"\0")
    file = pretrained.cache_folder() / f"{name}-{digest.hexdigest()[:16]}.json"
    with contextlib.suppress(OSError, ValueError, TypeError):  # not there, or damaged: search anew
        found = json.loads(file.read_text(encoding="utf-8"))
        if fits(found):
            return found
    found = search()
    with contextlib.suppress(OSError):
        write_json(file, found)
    return found
