"""The process of a service: a port on this machine, an announcement, a clean end.

SIGTERM or Ctrl-C: no new connection is taken, running answers may end within `grace` seconds, what
is left then is told that the service ends, and the process exits with 0.
"""

import asyncio
import contextlib
import os
import secrets
import socket
from collections.abc import Callable

import uvicorn

from labkit.errors import LabError
from labkit.generation.loaded import LanguageModel
from labkit.serving.app import build_app
from labkit.serving.engine import Limits
from labkit.serving.gate import Gate
from labkit.serving.kept import Kept

TOKEN = "LABKIT_TOKEN"
"""The variable that may hold the token; an argument would show in the list of processes."""
LEAST_TOKEN = 16
"""Characters."""


def serve(
    opened: LanguageModel,
    name: str,
    limits: Limits,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    kept: Kept | None = None,
    grace: float = 10.0,
    announce: Callable[[str, str], None],
) -> None:
    """Serve a model until the process is asked to end.

    Args:
        opened, name, limits, kept: as in `build_app`.
        host: an address of this machine; 127.0.0.1: nobody else reaches it.
        port: 0 to 65535; 0 takes a free one.
        grace: seconds for running answers at the end.
        announce: called with (address, token) once connections are taken.

    Raises:
        LabError: the port is in use, the token is too short, or the model cannot be served.
    """
    token = os.environ.get(TOKEN) or secrets.token_urlsafe(24)
    if len(token) < LEAST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise LabError(
            f"the token in {TOKEN} has {len(token)} characters: give at least {LEAST_TOKEN}, of"
            " ASCII and without spaces, or none, and one is made"
        )
    app = build_app(opened, name, token, limits, kept)
    try:
        listening = socket.create_server((host, port), backlog=1024)
    except (OSError, OverflowError) as error:
        raise LabError(f"port {port} of {host} cannot be used ({error}): choose another") from None
    last = int(grace) + 5  # for who does not even read that it ends
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=last
    )
    with listening:
        announce(f"http://{host}:{listening.getsockname()[1]}", token)
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn ends tidily, then says who asked
            _Server(config, app, grace).run(sockets=[listening])


class _Server(uvicorn.Server):
    """Gives running answers `grace` seconds; uvicorn's own way is to cut them without a word."""

    def __init__(self, config: uvicorn.Config, app: Gate, grace: float):
        super().__init__(config)
        self.app, self.grace = app, grace

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        over = asyncio.get_running_loop().call_later(self.grace, self.app.end)
        await super().shutdown(sockets)
        over.cancel()
