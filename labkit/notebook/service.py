"""`labkit serve` from a cell: a process of its own that cannot outlive the notebook.

    kernel ──(a pipe that it holds open)──> child: reads it to its end, then stops the service
       └──────<── "... is served at http://127.0.0.1:PORT/v1 ..., token ..." ──<──┘

Whatever ends the kernel closes the pipe, `kill -9` included: the child needs nobody to stop it.
"""

import os
import re
import secrets
import subprocess
import sys
import tempfile
import weakref
from pathlib import Path
from typing import IO, Any

from labkit.errors import LabError

#: Once the pipe has ended: a tidy end by SIGTERM, and an end at any rate a little later.
CHILD = """
import os, signal, sys, threading, time
def until_the_pipe_ends():
    while os.read(0, 1):  # not sys.stdin, whose lock an ending Python would wait for
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(20)
    os._exit(1)
threading.Thread(target=until_the_pipe_ends, daemon=True).start()
from labkit.__main__ import main
sys.exit(main(["serve", *sys.argv[1:]]))
"""
SECONDS_TO_END = 15.0


class Service:
    """A running `labkit serve`; `with` closes it, so does its last reference, so does the end.

    Args:
        model: smollm2, a run folder or a model folder.
        options: of `labkit serve`, such as "--slots", 8.

    Raises:
        LabError: it did not begin; the sentence is the service's own.
    """

    def __init__(self, model: str | Path, *options: object):
        self.token = secrets.token_urlsafe(24)
        """What clients send."""
        words = [str(it) for it in (model, "--port", 0, *options)]
        errors = tempfile.TemporaryFile()  # noqa: SIM115 - read below, closed with the process
        process = subprocess.Popen(
            [sys.executable, "-c", CHILD, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            encoding="utf-8",
            env={**os.environ, "LABKIT_TOKEN": self.token, "PYTHONIOENCODING": "utf-8"},
        )
        self.pid = process.pid
        """Of the process."""
        self._end = weakref.finalize(self, _end, process, errors)
        assert process.stdout is not None
        found = re.search(r"(http://\S+)/v1 ", process.stdout.readline())
        if found is None:
            process.wait(SECONDS_TO_END)
            errors.seek(0)
            said = errors.read().decode(errors="replace").strip().splitlines() or [
                "it said nothing"
            ]
            self.close()
            raise LabError(f"labkit serve {model} did not begin: {said[-1]}")
        self.address = found[1]
        """Such as http://127.0.0.1:41327; clients of OpenAI's interface add /v1."""

    def close(self) -> None:
        """End it: what is being answered may finish. Nothing, if it has ended."""
        self._end()

    def __enter__(self) -> "Service":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _end(process: "subprocess.Popen[str]", errors: IO[Any]) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()  # the child sees the end of its pipe
    try:
        process.wait(SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()
    errors.close()
