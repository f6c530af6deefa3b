"""Requests and what people think of their answers, in one SQLite file: only if asked to.

    labkit serve --keep FILE   and a request with "store": true ──> a row of requests
    POST /v1/feedback          about a kept answer              ──> a row of feedback
    labkit collect FILE ──┬──> chats that people liked          ──> labkit finetune --task chat
                          ├──> liked and disliked answers       ──> labkit finetune --task dpo
                          └──> texts to be continued            ──> labkit evaluate, pretrain

Nothing is learned from an answer that was cut at its limit of tokens: its end would be learned,
too. What people rate is what the model wrote, and who rates is not everybody; before a model that
learned from it replaces another, both meet a held-out test (`evaluation.paired_test`).

The file can be read by nobody but its owner.

A row is written before its answer's last piece goes out, in a transaction: a service that is killed
loses none that a client has seen whole.
"""

import itertools
import json
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from labkit.errors import LabError
from labkit.text.conversations import conversation, preference

SCHEMA = """
create table if not exists requests (
    id text primary key, made real not null, kind text not null, asked text not null,
    answer text not null, finish text not null, settings text not null);
create table if not exists feedback (
    request text not null references requests(id), made real not null,
    rating integer not null check (rating in (-1, 1)), comment text not null);
"""


class Kept:
    """The file. Its methods may be called from any thread.

    Args:
        path: made if it is not there.

    Raises:
        LabError: it cannot be opened, or is no such file.
    """

    def __init__(self, path: str | Path):
        self.path, self._lock = Path(path), threading.Lock()
        try:
            self.path.touch(mode=0o600)  # before anything stands in it; SQLite's own files follow
            self._db = sqlite3.connect(self.path, check_same_thread=False)
            self._check_tables()
            self._db.execute("pragma journal_mode = wal")
            self._db.executescript(SCHEMA)
        except (sqlite3.Error, OSError) as error:
            raise LabError(f"{path} cannot keep requests ({error}): choose another file") from None

    def _check_tables(self) -> None:
        found = {it for (it,) in self._db.execute("select name from sqlite_master")}
        if found and not {"requests", "feedback"} <= found:
            raise sqlite3.DatabaseError(f"it is another program's, with {', '.join(sorted(found))}")

    def request(
        self, id: str, kind: str, asked: Any, answer: str, finish: str, settings: dict[str, Any]
    ) -> None:
        """Keep a request and its answer.

        Args:
            id: of the answer.
            kind: completion or chat.
            asked: the prompt, or the messages.
            answer, finish: as the client gets them.
            settings: temperature and the like.
        """
        row = (id, time.time(), kind, json.dumps(asked), answer, finish, json.dumps(settings))
        with self._lock, self._db:
            self._db.execute("insert into requests values (?, ?, ?, ?, ?, ?, ?)", row)

    def feedback(self, id: str, rating: int, comment: str = "") -> bool:
        """Keep an opinion on an answer; False: no such answer was kept."""
        with self._lock, self._db:
            known = self._db.execute("select 1 from requests where id = ?", (id,)).fetchone()
            if known:
                row = (id, time.time(), rating, comment)
                self._db.execute("insert into feedback values (?, ?, ?, ?)", row)
        return known is not None

    def requests(self) -> list[dict[str, Any]]:
        """All that was kept, oldest first, each with its ratings."""
        with self._lock:
            rows = self._db.execute(
                "select id, kind, asked, answer, finish, settings from requests order by made"
            ).fetchall()
            ratings: dict[str, list[int]] = {}
            for id, rating in self._db.execute("select request, rating from feedback"):
                ratings.setdefault(id, []).append(rating)
        names = ("id", "kind", "asked", "answer", "finish", "settings")
        kept = [dict(zip(names, row, strict=True)) for row in rows]
        return [
            {
                **it,
                "asked": json.loads(it["asked"]),
                "settings": json.loads(it["settings"]),
                "ratings": ratings.get(it["id"], []),
            }
            for it in kept
        ]

    def conversations(self, rating: int = 1) -> list[dict[str, Any]]:
        """The chats whose mean rating has this sign, as rows of `labkit finetune --task chat`.

        Without those that were cut at their limit of tokens, and those in which user and assistant
        do not take turns.
        """
        found = [
            {"messages": [*it["asked"], {"role": "assistant", "content": it["answer"]}]}
            for it in self._whole_chats()
            if rating * sum(it["ratings"]) > 0
        ]
        return [row for row in found if _can_be_read(conversation, row)]

    def preferences(self) -> list[dict[str, Any]]:
        """Chats that were answered to people's liking and otherwise, as rows of `--task dpo`.

        Every liked answer beside every disliked one to the same messages.
        """
        answers: dict[str, tuple[list[str], list[str]]] = {}
        for it in self._whole_chats():
            liked, disliked = answers.setdefault(json.dumps(it["asked"]), ([], []))
            if total := sum(it["ratings"]):
                (liked if total > 0 else disliked).append(it["answer"])
        found = [
            {"prompt": json.loads(asked), "chosen": chosen, "rejected": rejected}
            for asked, sides in answers.items()
            for chosen, rejected in itertools.product(*(dict.fromkeys(side) for side in sides))
        ]
        return [row for row in found if _can_be_read(preference, row)]

    def texts(self) -> list[dict[str, Any]]:
        """What was to be continued, without what the model wrote: what readers now bring."""
        asked = (it["asked"] for it in self.requests() if it["kind"] == "completion")
        return [{"text": text} for text in asked if text.strip()]

    def _whole_chats(self) -> list[dict[str, Any]]:
        return [it for it in self.requests() if it["kind"] == "chat" and it["finish"] == "stop"]

    def close(self) -> None:
        """Write all of it into the one file."""
        with self._lock:
            self._db.close()


def _can_be_read(read: Callable[[dict[str, Any]], Any], row: dict[str, Any]) -> bool:
    try:
        read(row)
    except LabError:
        return False
    return True
