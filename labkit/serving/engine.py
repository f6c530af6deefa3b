"""The thread that runs the model: one batch, which the requests of all clients join.

    clients' handlers (one thread, asyncio)          the engine's thread
    submit ──> inbox ───────────────────────────────> Batcher.step(), again and again
    Answer: async for token <── loop's queue <─────── Written, LimitReached or a failure
    cancel ──> inbox ───────────────────────────────> its slot is free before the next step

The model is called by this thread only. A request that its client has left is cancelled; one that
takes too long is, too.
"""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from labkit.errors import LabError
from labkit.generation.batching import Batcher, Request, Written
from labkit.serving.metrics import Metrics
from labkit.serving.protocol import Refused

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """What a service takes at most."""

    slots: int = 16
    """Requests that run together, at least 1."""
    queue: int = 256
    """Requests that wait for a slot, at least 0; further ones are refused (429)."""
    length: int = 1024
    """Tokens of a prompt and its answer, at least 1 (400)."""
    seconds: float = 120.0
    """From a request to its last token, above 0 (504)."""
    body: int = 1_000_000
    """Bytes of a request, at least 1 (413)."""

    def __post_init__(self) -> None:
        """Raise a LabError for a limit out of range."""
        for name, least in (("slots", 1), ("queue", 0), ("length", 1), ("body", 1)):
            if getattr(self, name) < least:
                raise LabError(
                    f"{name} {getattr(self, name)} is out of range: choose at least {least}"
                )
        if not self.seconds > 0:
            raise LabError(f"seconds {self.seconds} is out of range: choose above 0")


class Answer:
    """The tokens of one request, as they are written: `async for written in answer`.

    Raises (while read):
        Refused: its time is over, the service ends, or the model has failed.
    """

    def __init__(self, engine: "Engine", request: Request):
        self.engine, self.request = engine, request
        self.began = time.monotonic()
        self.deadline = self.began + engine.limits.seconds
        self.queue: asyncio.Queue[Written | Refused] = asyncio.Queue()
        self.open = True

    def cancel(self) -> None:
        """Nobody reads on: free its slot. Does nothing to an answer that is complete."""
        self.engine.inbox.put((self, "cancel"))

    async def __aiter__(self) -> AsyncIterator[Written]:
        while True:
            item = await self.queue.get()
            if isinstance(item, Refused):
                raise item
            yield item
            if item.end is not None:
                return


class Engine:
    """A model and the requests that run on it.

    Args:
        model: as in `generation.Batcher`.
        limits: what it takes at most.
        metrics: where it counts.
    """

    def __init__(self, model: nn.Module, limits: Limits, metrics: Metrics):
        self.model, self.limits, self.metrics = model, limits, metrics
        self.inbox: queue.SimpleQueue[tuple[Answer | None, str]] = queue.SimpleQueue()
        self.batcher = self._new_batcher()
        metrics.running.set_function(lambda: self.batcher.running)
        metrics.waiting.set_function(lambda: self.batcher.waiting)
        self._open: dict[int, Answer] = {}
        self._taken = 0
        self._ending = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)

    def start(self) -> None:
        """Begin, from the event loop whose handlers will submit."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def end(self) -> None:
        """Begin to end, from the event loop: what still runs or waits is refused with 503."""
        self._ending = True  # nothing is put into the inbox behind this
        self.inbox.put((None, "stop"))

    async def stop(self) -> None:
        """`end`, and wait until the thread has ended."""
        self.end()
        await asyncio.to_thread(self._thread.join)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def submit(self, request: Request) -> Answer:
        """Put a request in line; call it from the event loop.

        Raises:
            LabError: the request is impossible.
            Refused: 429, the queue is full; 503, the service ends.
        """
        if self._ending or not self.alive:
            raise Refused(503, "the service is shutting down: ask another one", "ending")
        self.batcher.check(request)
        most = self.limits.slots + self.limits.queue
        if self._taken >= most:
            raise Refused(
                429,
                f"{self._taken} requests run or wait and {most} may: ask again in a moment",
                "queue_full",
                {"Retry-After": "1"},
            )
        answer = Answer(self, request)
        self._taken += 1
        self.metrics.prompt_tokens.inc(len(request.ids))
        self.inbox.put((answer, "submit"))
        return answer

    def _new_batcher(self) -> Batcher:
        return Batcher(self.model, self.limits.slots, self.limits.length)

    def _work(self) -> None:
        try:
            self._serve()
        finally:
            self._end_all(Refused(503, "the service is shutting down: ask another one", "ending"))

    def _serve(self) -> None:
        going = True
        while going:
            going = self._read_inbox()
            self._expire()
            if not self._open:
                continue
            try:
                written = self.batcher.step()
            except Exception:  # whatever it is, clients must hear of it, and no more than that
                logger.exception("the model failed")
                self._end_all(
                    Refused(500, "the model failed: the service's log says how", "model_failed")
                )
                self.batcher = self._new_batcher()
                continue
            self.metrics.seen(written)
            self._tell([(self._open[it.ticket], it) for it in written if it.ticket in self._open])
            for it in written:
                if it.end is not None:
                    self._open.pop(it.ticket, None)

    def _read_inbox(self) -> bool:
        """Take what has come, waiting only if there is nothing else to do; False: stop."""
        while True:
            try:
                answer, what = self.inbox.get(block=not self._open)
            except queue.Empty:
                return True
            if answer is None:
                return False
            if what == "submit":
                self._open[self.batcher.submit(answer.request)] = answer
                continue
            for ticket, one in list(self._open.items()):
                if one is answer:
                    self._end(ticket, Refused(499, "nobody reads on", "left"))

    def _expire(self) -> None:
        now, seconds = time.monotonic(), self.limits.seconds
        for ticket, answer in list(self._open.items()):
            if now > answer.deadline:
                sentence = f"the answer took longer than the {seconds:g} s that a request may take"
                self._end(ticket, Refused(504, f"{sentence}: ask for fewer tokens", "time"))
                self.metrics.expired.inc()

    def _end(self, ticket: int, why: Refused) -> None:
        self.batcher.cancel(ticket)
        self._tell([(self._open.pop(ticket), why)])

    def _end_all(self, why: Refused) -> None:
        self._tell([(answer, why) for answer in self._open.values()])
        self._open.clear()
        while True:  # what came after the last look
            try:
                answer, what = self.inbox.get_nowait()
            except queue.Empty:
                return
            if answer is not None and what == "submit":
                self._tell([(answer, why)])

    def _tell(self, news: list[tuple[Answer, Any]]) -> None:
        """Hand tokens over to the event loop, all of a step in one call."""
        assert self._loop is not None
        if news and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._deliver, news)

    def _deliver(self, news: list[tuple[Answer, Any]]) -> None:
        for answer, item in news:
            answer.queue.put_nowait(item)
            ended = isinstance(item, Refused) or item.end is not None
            if ended and answer.open:
                answer.open = False
                self._taken -= 1
