"""Small files of one's own, and `labkit` run on them: in this process, alone, or under torchrun."""

import json
import os
import random
import shlex
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

from labkit.__main__ import main

WORDS = "the key lamp garden kitchen went took red blue house door ate bread found".split()  # noqa: SIM905

#: A model of some 40,000 parameters and a run of seconds.
SMALL = shlex.split(
    "--size tiny --d-model 32 --num-heads 2 --context-length 32 --batch-tokens 256 "
    "--vocab-size 300 --steps 6 --save-every 2 --eval-every 3 --keep 5 --precision fp32"
)


def sentences(count: int, seed: int = 0) -> list[str]:
    generator = random.Random(seed)
    return [" ".join(generator.choices(WORDS, k=30)) + "." for _ in range(count)]


def write_text(path: Path, count: int = 120, seed: int = 0) -> Path:
    path.write_text("\n\n".join(sentences(count, seed)))
    return path


def write_rows(path: Path, rows: list[dict]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows))
    else:
        lines = [list(rows[0]), *([str(v) for v in row.values()] for row in rows)]
        path.write_text("\n".join(",".join(line) for line in lines))
    return path


def labelled(count: int = 160) -> list[dict]:
    """Texts whose class is written in them."""
    mood = ("good nice happy", "bad awful sad")
    return [
        {"text": f"{mood[i % 2]} {text} {i}", "label": ("pos", "neg")[i % 2]}
        for i, text in enumerate(sentences(count, seed=1))
    ]


def here(*arguments: object) -> int:
    """Run a command in this process; returns the exit code."""
    try:
        return main([str(a) for a in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)


def environment() -> dict[str, str]:
    return {**os.environ, "COLUMNS": "200"}


def start(
    *arguments: object, hangup: signal.Handlers = signal.SIG_DFL, **variables: str
) -> subprocess.Popen:
    """Start `python -m labkit` on its own, where SIGHUP does what `hangup` says."""
    command = [sys.executable, "-m", "labkit", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    obey = partial(signal.signal, signal.SIGHUP, hangup)
    return subprocess.Popen(command, env={**environment(), **variables}, preexec_fn=obey, **pipes)


def alone(*arguments: object) -> subprocess.CompletedProcess:
    """Run `python -m labkit` on its own to the end."""
    command = [sys.executable, "-m", "labkit", *map(str, arguments)]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)


def torchrun(*arguments: object) -> subprocess.CompletedProcess:
    """Run `torchrun -m labkit` with two processes on the CPU."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *launch, "-m", "labkit", *map(str, arguments)]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)


def losses(run: Path) -> list[float]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [r["step"] for r in records] == list(range(1, len(records) + 1))
    return [r["loss"] for r in records]
