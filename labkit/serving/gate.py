"""Before anything is read: who asks, and how much they send.

request ──> token right? ──> body within the limit, in time? ──> the application
               │ 401                 │ 413, 408
"""

import asyncio
import hmac
import json
from collections.abc import Callable
from typing import Any

from labkit.serving.protocol import Refused

OPEN = ("/", "/health")
"""Paths without a token: a page that holds nothing, and whether the service lives."""
BODY_SECONDS = 30.0
"""Until a body must have arrived."""


class Gate:
    """An ASGI application around another one.

    Args:
        app: gets requests with the right token and whole bodies.
        token: that clients send as `Authorization: Bearer TOKEN`.
        most: bytes of a body.
        count: called with (path, status) of each answer.
        end: tells all who still wait for an answer that the service ends; called by who runs it.
    """

    def __init__(
        self,
        app: Any,
        token: str,
        most: int,
        count: Callable[[str, int], None],
        end: Callable[[], None] = lambda: None,
    ):
        self.app, self.token, self.most, self.count = app, token.encode(), most, count
        self.end = end

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def sent(message: Any) -> None:
            if message["type"] == "http.response.start":
                self.count(scope["path"], message["status"])
            await send(message)

        try:
            self._check_token(scope)
            body = await asyncio.wait_for(self._body(scope, receive), BODY_SECONDS)
        except TimeoutError:
            late = Refused(408, f"the body did not arrive within {BODY_SECONDS:g} s", "slow")
            await _refuse(sent, late)
        except Refused as refused:
            await _refuse(sent, refused)
        else:
            if body is not None:
                await self.app(scope, _replayed(body, receive), sent)

    def _check_token(self, scope: Any) -> None:
        if scope["path"] in OPEN:
            return
        given = dict(scope["headers"]).get(b"authorization", b"")
        if not hmac.compare_digest(given, b"Bearer " + self.token):
            raise Refused(
                401,
                "the token is missing or wrong: send the header Authorization: Bearer TOKEN, with"
                " the token that the service printed when it began",
                "token",
                {"WWW-Authenticate": "Bearer"},
            )

    async def _body(self, scope: Any, receive: Any) -> bytes | None:
        """All of it, never more than the limit; None: the client left before it was whole."""
        declared = dict(scope["headers"]).get(b"content-length", b"")
        self._check_size(int(declared) if declared.isdigit() else 0)  # before a byte of it is read
        parts, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part, more = message.get("body", b""), message.get("more_body", False)
            size += len(part)
            self._check_size(size)
            parts.append(part)
        return b"".join(parts)

    def _check_size(self, size: int) -> None:
        if size > self.most:  # uvicorn throws away what the client still sends
            sentence = f"the body has {size} bytes or more and {self.most} are allowed: send less"
            raise Refused(413, sentence, "too_large")


def _replayed(body: bytes, receive: Any) -> Any:
    """`receive` that gives the body once more, then what comes after it: that the client left."""
    rest = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Any:
        return rest.pop() if rest else await receive()

    return again


async def _refuse(send: Any, refused: Refused) -> None:
    content = json.dumps(refused.body).encode()
    headers = {"content-type": "application/json", "content-length": str(len(content))}
    headers |= {name.lower(): value for name, value in refused.headers.items()}
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refused.status, "headers": raw})
    await send({"type": "http.response.body", "body": content})
