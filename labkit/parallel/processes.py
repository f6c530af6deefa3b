"""Ranks on this machine: processes that a notebook cell or a test starts, and what they answer.

    cell ── work, arguments ──> rank 0 ─┐
                            ──> rank 1 ─┤  talk to each other through torch.distributed (gloo)
                            ──> rank 2 ─┘
    cell <── [answer of 0, answer of 1, answer of 2], and what each printed

The processes stay: the next `run` begins at once. A function may stand in the cell itself: it is
sent as code (cloudpickle), for the ranks cannot import a notebook. A whole run of training is
started by `torchrun -m labkit` instead.

Sources: the gloo library, github.com/pytorch/gloo; PyTorch's notes on `torch.distributed`.
"""

import contextlib
import io
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import cloudpickle
import torch
import torch.distributed as dist

from labkit import runtime
from labkit.errors import LabError


class Ranks:
    """So many processes of this machine, one thread each, joined in one gloo group.

        with Ranks(4) as ranks:
            sums = ranks.run(work, tensor)       # [work(tensor) on rank 0, on rank 1, ...]

    In a rank `dist.get_rank()` and `runtime.world()` say which one it is. Each run begins with the
    same random numbers on all ranks. In a script, start them below `if __name__ == "__main__":`.

    Args:
        size: how many, 1 to 64.
        seconds: the longest that a run may take: ranks that wait for each other wait for ever.

    Raises:
        LabError: a size outside the range.
    """

    def __init__(self, size: int, seconds: float = 300.0):
        if not 1 <= size <= 64:
            raise LabError(f"{size} ranks are out of range: choose 1 to 64")
        self.size, self.seconds = size, seconds
        self.processes: list[BaseProcess] = []
        self.pipes: list[Connection] = []
        self.folder: str | None = None

    def run(self, work: Callable[..., Any], *arguments: Any, seed: int = 0) -> list[Any]:
        """Call `work(*arguments)` on every rank; the answers, by rank.

        What the ranks print is printed here, rank by rank.

        Args:
            work: a function of a module, of a script or of a notebook.
            arguments: the same for all; tensors and models are copied.
            seed: of torch's and NumPy's generators on every rank.

        Raises:
            LabError: a rank raised an error, was killed, or did not answer in time. All are ended,
                and the next run starts new ones.
        """
        if not self.processes:
            self._start()
        job = cloudpickle.dumps((work, arguments, seed))
        try:
            for pipe in self.pipes:
                pipe.send_bytes(job)
            answers = self._collect()
        except BaseException:
            self.close()
            raise
        for rank, (_, printed) in sorted(answers.items()):
            for line in printed.splitlines():
                print(f"rank {rank}: {line}")
        return [answers[rank][0] for rank in range(self.size)]

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.folder = tempfile.mkdtemp(prefix="labkit-ranks-")
        for rank in range(self.size):
            ours, theirs = context.Pipe()
            place = (theirs, rank, self.size, str(Path(self.folder, "store")), self.seconds)
            process = context.Process(target=_serve, args=place, daemon=True)
            process.start()
            theirs.close()
            self.processes.append(process)
            self.pipes.append(ours)

    def _collect(self) -> dict[int, tuple[Any, str]]:
        answers: dict[int, tuple[Any, str]] = {}
        deadline = time.monotonic() + self.seconds
        while missing := [rank for rank in range(self.size) if rank not in answers]:
            rank_of = {self.pipes[rank]: rank for rank in missing}
            ready = wait(list(rank_of), max(0.0, deadline - time.monotonic()))
            if not ready:
                raise LabError(
                    f"ranks {missing} of {self.size} did not answer within {self.seconds:g} s: look"
                    " for a receive without its send, or allow more seconds"
                )
            for pipe in ready:
                assert isinstance(pipe, Connection)
                rank = rank_of[pipe]
                try:
                    good, answer, printed = cloudpickle.loads(pipe.recv_bytes())
                except (EOFError, ConnectionResetError):
                    raise LabError(self._died(rank)) from None
                if not good:
                    # A killed rank shows first as a broken connection of the others.
                    if wait([process.sentinel for process in self.processes], 0.5):
                        alive = [process.is_alive() for process in self.processes]
                        raise LabError(self._died(alive.index(False)))
                    said = f"rank {rank} of {self.size} raised {answer}"
                    raise LabError(said) from _InRank(printed)
                answers[rank] = answer, printed
        return answers

    def _died(self, rank: int) -> str:
        self.processes[rank].join(10)
        code = self.processes[rank].exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        return f"rank {rank} of {self.size} {how}; the others were ended, run it again"

    def close(self) -> None:
        """End the processes."""
        for process in self.processes:
            process.kill()
        for process, pipe in zip(self.processes, self.pipes, strict=True):
            pipe.close()
            process.join()
        self.processes, self.pipes = [], []
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder = None

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _InRank(Exception):
    """The traceback of a rank, as the cause of what `run` raises."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def _end_with_parent(folder: Path) -> None:
    """A rank that works or waits for another would not notice that nobody listens any more."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def _serve(pipe: Connection, rank: int, size: int, store: str, seconds: float) -> None:
    """What a rank does: join the others, then work until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends the ranks
    threading.Thread(target=_end_with_parent, args=(Path(store).parent,), daemon=True).start()
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(store, size),
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=seconds),
    )
    while True:
        try:
            job = pipe.recv_bytes()
        except EOFError:
            return  # the parent is gone
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                work, arguments, seed = cloudpickle.loads(job)
                runtime.seed_everything(seed)
                answer = work(*arguments)
            message = cloudpickle.dumps((True, answer, printed.getvalue()))
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            message = cloudpickle.dumps((False, said, traceback.format_exc()))
        pipe.send_bytes(message)
