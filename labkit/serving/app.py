"""The service: OpenAI's completions and chat completions on one model, and what to watch it by.

    POST /v1/completions, /v1/chat/completions   whole, or as a stream of events
    POST /v1/feedback                            on an answer that was kept
    GET  /v1/models   /metrics                   what is served; what was counted
    GET  /health      /                          no token: does it live; a page to chat with it

    body ──> protocol.read ──> Request ──> Engine ──> TextPieces ──> JSON, or pieces as they come

A status that is not 200 comes with one sentence, also in a stream: its first token is awaited
before the answer begins.

Source: OpenAI, "API reference"; WHATWG, "Server-sent events".
"""

import asyncio
import json
import logging
import sqlite3
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import resources
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from labkit.errors import LabError
from labkit.generation import batching
from labkit.generation.loaded import LanguageModel
from labkit.serving.engine import Answer, Engine, Limits
from labkit.serving.gate import Gate
from labkit.serving.kept import Kept
from labkit.serving.metrics import Metrics
from labkit.serving.protocol import Chat, Completion, Feedback, Refused, read
from labkit.serving.writing import TextPieces

logger = logging.getLogger(__name__)

FAILED = "the service failed: its log says how"
MOST_UNASKED = 256
"""Tokens of an answer whose client names no limit."""

PATHS = (
    *("/", "/health", "/metrics"),
    *("/v1/models", "/v1/completions", "/v1/chat/completions", "/v1/feedback"),
)
#: The page runs its own script and asks its own service, and nobody else.
PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; form-action 'none'; frame-ancestors 'none'; base-uri 'none'"  # noqa: E501
PAGE_HEADERS = {
    "Content-Security-Policy": PAGE_POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def build_app(
    opened: LanguageModel, name: str, token: str, limits: Limits, kept: Kept | None = None
) -> Gate:
    """The service as an ASGI application.

    Args:
        opened: a labkit decoder and its tokenizer.
        name: by which clients ask for it.
        token: that they must send.
        limits: what is taken at most.
        kept: where requests are kept whose clients ask for it; None: nowhere.

    Raises:
        LabError: the model cannot be served.
    """
    metrics = Metrics()
    service = _Service(opened, name, Engine(opened.model, limits, metrics), kept)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.engine.start()
        yield
        await service.engine.stop()
        if kept is not None:
            kept.close()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    page = resources.files("labkit.serving").joinpath("page.html").read_text(encoding="utf-8")

    @app.get("/")
    async def chat_page() -> HTMLResponse:
        return HTMLResponse(page, headers=PAGE_HEADERS)

    @app.get("/health")
    async def health() -> JSONResponse:
        alive = service.engine.alive
        return JSONResponse({"status": "ok" if alive else "failed"}, 200 if alive else 503)

    @app.get("/metrics")
    async def counted() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        row = {"id": name, "object": "model", "created": service.began, "owned_by": "labkit"}
        return {"object": "list", "data": [row]}

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await service.answer(request, read(Completion, await request.body()))

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await service.answer(request, read(Chat, await request.body()))

    @app.post("/v1/feedback")
    async def feedback(request: Request) -> dict[str, Any]:
        said = read(Feedback, await request.body())
        found = kept is not None and await asyncio.to_thread(
            kept.feedback, said.id, said.rating, said.comment
        )
        if not found:
            raise Refused(404, f"no answer {said.id!r} was kept: ask with store true", "not_kept")
        return {"id": said.id, "rating": said.rating}

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> JSONResponse:
        return JSONResponse(error.body, error.status, error.headers)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:  # and uvicorn logs it
        return await refused(request, Refused(500, FAILED, "failed"))

    @app.exception_handler(LabError)
    async def impossible(request: Request, error: LabError) -> JSONResponse:
        return await refused(request, Refused(400, str(error), "value"))

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> JSONResponse:
        sentence = f"{request.method} {request.url.path}: {error.detail}; there are " + ", ".join(
            PATHS
        )
        return await refused(request, Refused(error.status_code, sentence, "path"))

    def count(path: str, status: int) -> None:
        metrics.requests.labels(path if path in PATHS else "other", str(status)).inc()

    return Gate(app, token, limits.body, count, service.engine.end)


class _Service:
    def __init__(self, opened: LanguageModel, name: str, engine: Engine, kept: Kept | None):
        self.opened, self.name, self.engine, self.kept = opened, name, engine, kept
        self.began = int(time.time())

    async def answer(self, request: Request, asked: Completion | Chat) -> Response:
        if asked.model not in (None, self.name):
            raise Refused(
                404,
                f"model {asked.model!r:.100} is not served here: ask for {self.name!r}",
                "model",
            )
        if asked.store and self.kept is None:
            raise Refused(
                400, "store is true and this service keeps nothing: leave it out", "not_kept"
            )
        answer = self.engine.submit(await asyncio.to_thread(self._request, asked))
        watch = asyncio.create_task(_cancel_when_left(request, answer))
        written = _Writer(self, asked, answer)
        parts = written.parts()
        try:
            first = await anext(parts)  # whatever is refused is refused before the answer begins
            if not asked.stream:
                async for _ in parts:
                    pass
                return JSONResponse(written.whole())
        except Refused as refused:
            answer.cancel()
            return JSONResponse(refused.body, refused.status, refused.headers)
        except asyncio.CancelledError:
            answer.cancel()
            raise
        finally:
            if not asked.stream:
                watch.cancel()
        events = written.events(first, parts, watch)
        return StreamingResponse(events, media_type="text/event-stream")

    def _request(self, asked: Completion | Chat) -> batching.Request:
        """What the engine takes; reading a long prompt takes a while."""
        most = asked.max_tokens
        if isinstance(asked, Chat):
            turns = [turn.model_dump() for turn in asked.messages]
            ids = self.opened.tokenizer.apply_chat_template(turns)
            most = asked.max_completion_tokens or most
        else:
            ids = self.opened.ids_of(asked.prompt)
        if most is None:
            most = max(1, min(MOST_UNASKED, self.engine.batcher.capacity - len(ids)))
        top_p = None if asked.top_p == 1 else asked.top_p
        return batching.Request(
            ids, most, asked.temperature, asked.top_k, top_p, asked.seed, self.opened.ends
        )


class _Writer:
    """One answer in the words of OpenAI's interface."""

    def __init__(self, service: _Service, asked: Completion | Chat, answer: Answer):
        self.service, self.asked, self.answer = service, asked, answer
        self.chat = isinstance(asked, Chat)
        self.id = f"{'chatcmpl' if self.chat else 'cmpl'}-{uuid.uuid4().hex}"
        self.pieces = TextPieces(service.opened.tokenizer, asked.stops)
        self.finish: str | None = None

    async def parts(self) -> AsyncIterator[str]:
        """The text as it is written; at its end it is kept, if that was asked."""
        metrics = self.service.engine.metrics
        async for written in self.answer:
            if not self.pieces.ids:
                metrics.first.observe(time.monotonic() - self.answer.began)
            if written.end != "stop":
                yield self.pieces.add(written.token)
            self.finish = "stop" if self.pieces.stopped else written.end
            if self.finish is not None:
                break
        if self.pieces.stopped:
            self.answer.cancel()
        rest = self.pieces.finish()
        metrics.whole.observe(time.monotonic() - self.answer.began)
        if self.asked.store and self.service.kept is not None:
            try:
                await asyncio.to_thread(self._keep, self.service.kept)
            except sqlite3.Error:
                logger.exception("a request could not be kept")
                raise Refused(500, f"{FAILED}, or ask without store", "not_kept") from None
        yield rest

    async def events(
        self, first: str, parts: AsyncIterator[str], watch: asyncio.Task[None]
    ) -> AsyncIterator[str]:
        try:
            role = {"role": "assistant"} if self.chat else {}
            yield _event(self._piece(first, role))
            async for text in parts:
                if text:
                    yield _event(self._piece(text))
            yield _event(self._piece("", finish=self.finish))
            options = self.asked.stream_options
            if options is not None and options.include_usage:
                yield _event({**self._head(".chunk"), "choices": [], "usage": self._usage()})
            yield "data: [DONE]\n\n"
        except Refused as refused:
            yield _event(refused.body)
        finally:
            watch.cancel()
            self.answer.cancel()  # nothing, if it is complete

    def whole(self) -> dict[str, Any]:
        text = self.pieces.text
        said = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": self.finish}
        return {**self._head(""), "choices": [choice], "usage": self._usage()}

    def _piece(
        self, text: str, role: dict[str, str] | None = None, finish: str | None = None
    ) -> dict[str, Any]:
        said = {"delta": {**(role or {}), "content": text}} if self.chat else {"text": text}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": finish}
        return {**self._head(".chunk"), "choices": [choice]}

    def _head(self, chunk: str) -> dict[str, Any]:
        kind = f"chat.completion{chunk}" if self.chat else "text_completion"
        made, name = int(time.time()), self.service.name
        return {"id": self.id, "object": kind, "created": made, "model": name}

    def _usage(self) -> dict[str, int]:
        read, written = len(self.answer.request.ids), len(self.pieces.ids)
        return {
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
        }

    def _keep(self, kept: Kept) -> None:
        asked = self.asked
        said = (
            asked.prompt
            if isinstance(asked, Completion)
            else [turn.model_dump() for turn in asked.messages]
        )
        settings = asked.model_dump(include={"temperature", "top_p", "top_k", "seed", "stop"})
        kind = "chat" if self.chat else "completion"
        kept.request(self.id, kind, said, self.pieces.text, self.finish or "", settings)


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"


async def _cancel_when_left(request: Request, answer: Answer) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    if answer.open:
        answer.engine.metrics.left.inc()
        answer.cancel()
