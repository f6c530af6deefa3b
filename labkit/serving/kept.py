"""Requests and what people think of their answers, in one SQLite file: only if asked to.

    labkit serve --keep FILE      and a request with "store": true ──> a row of requests
    POST /v1/feedback             about a kept answer              ──> a row of feedback
    Kept(FILE).conversations(1)   the answers that people liked    ──> labkit finetune --task chat

A row is written before its answer's last piece goes out, in a transaction: a service that is killed
loses none that a client has seen whole.
"""

import json
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

from labkit.errors import LabError

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
            self._db = sqlite3.connect(self.path, check_same_thread=False)
            self._db.execute("pragma journal_mode = wal")
            self._db.executescript(SCHEMA)
        except sqlite3.Error as error:
            raise LabError(f"{path} cannot keep requests ({error}): choose another file") from None

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
        """The chats whose mean rating has this sign, as rows that `labkit finetune` reads."""
        rows = []
        for it in self.requests():
            if it["kind"] == "chat" and rating * sum(it["ratings"]) > 0:
                said = {"role": "assistant", "content": it["answer"]}
                rows.append({"messages": [*it["asked"], said]})
        return rows

    def close(self) -> None:
        """Write all of it into the one file."""
        with self._lock:
            self._db.close()
