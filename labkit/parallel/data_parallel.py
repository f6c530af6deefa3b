"""Data parallel by hand: every rank holds the whole model and a part of the batch.

    backward    block 3 ──> block 2 ──> block 1 ──> embedding      the last layers are ready first
                   │  bucket 0 full    │  bucket 1 full    │
    ring               all-reduce 0        all-reduce 1        all-reduce 2      in another thread
                                                     finish: wait, gradients are sums over ranks

Data parallel *copies* the weights; what it divides is the batch. A bucket is exchanged while the
layers below it still run backward: only what leaves last is waited for. Ranks send buckets in one
order, fixed before: a rank that finished two of them the other way round would answer the wrong
question.

Sums, not means: the loss is a sum, so is the gradient, and one division by the count of *all* ranks
follows. A mean of the ranks' means weighs a target by how few others its rank had.

Sources: Li et al. 2020, arXiv:2006.15704 (buckets, overlap).
"""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from labkit.errors import LabError
from labkit.parallel import collectives
from labkit.parallel.collectives import Group


@dataclass
class Bucket:
    """Parameters whose gradients travel together."""

    parameters: list[nn.Parameter]
    flat_n: Tensor
    """All their gradients, one after the other."""
    missing: int = 0
    """Gradients that are not there yet."""
    began: float = 0.0
    ended: float = 0.0
    """Of its all-reduce, in seconds since the first gradient of this backward pass."""

    def views(self) -> list[Tensor]:
        """The parts of `flat_n`, in the parameters' shapes."""
        parts = self.flat_n.split([p.numel() for p in self.parameters])
        return [part.view_as(p) for part, p in zip(parts, self.parameters, strict=True)]


@dataclass
class DataParallel:
    """Adds up gradients over ranks, bucket by bucket, while the backward pass goes on.

        copies = DataParallel(model)
        loss_sum.backward()
        copies.finish()              # p.grad is the sum over ranks; divide by the count of all

    Rank 0's weights are copied to the others first. A parameter without a gradient gets zeros.
    """

    model: nn.Module
    bucket_bytes: int = 25 * 2**20
    """Largest bucket, above 0; a larger parameter travels alone."""
    group: Group = None
    buckets: list[Bucket] = field(default_factory=list)
    launched: int = 0
    """Buckets on their way, or arrived."""
    finished_at: float = 0.0
    """When the backward pass was over, in seconds since its first gradient."""

    def __post_init__(self) -> None:
        if self.bucket_bytes <= 0:
            raise LabError(f"bucket_bytes {self.bucket_bytes} is out of range: choose above 0")
        for tensor in [*self.model.parameters(), *self.model.buffers()]:
            tensor.data.copy_(collectives.broadcast(tensor.data.contiguous(), self.group))
        self._thread = ThreadPoolExecutor(1)
        self._futures: list[Future] = []
        self._quiet, self._first = False, 0.0
        pending: list[nn.Parameter] = []
        # The backward pass makes gradients roughly from the last parameter to the first.
        for p in reversed([p for p in self.model.parameters() if p.requires_grad]):
            if pending and sum(q.nbytes for q in [*pending, p]) > self.bucket_bytes:
                self._add_bucket(pending)
                pending = []
            pending.append(p)
        self._add_bucket(pending)
        self._begin()

    def _add_bucket(self, parameters: list[nn.Parameter]) -> None:
        flat_n = torch.cat([torch.zeros_like(p).flatten() for p in parameters])
        bucket = Bucket(parameters, flat_n)
        self.buckets.append(bucket)
        for p, view in zip(parameters, bucket.views(), strict=True):
            p.register_post_accumulate_grad_hook(self._hook(bucket, view))

    def _hook(self, bucket: Bucket, view: Tensor):
        def ready(p: Tensor) -> None:
            if self._quiet:
                return
            self._first = self._first or time.perf_counter()
            assert p.grad is not None
            view.copy_(p.grad)
            bucket.missing -= 1
            self._launch_complete()

        return ready

    def _begin(self) -> None:
        self.launched, self._first = 0, 0.0
        self._futures = []
        for bucket in self.buckets:
            bucket.missing = len(bucket.parameters)
            bucket.flat_n.zero_()

    def _launch_complete(self) -> None:
        while self.launched < len(self.buckets) and self.buckets[self.launched].missing == 0:
            self._futures.append(self._thread.submit(self._exchange, self.buckets[self.launched]))
            self.launched += 1

    def _exchange(self, bucket: Bucket) -> None:
        bucket.began = time.perf_counter() - self._first
        collectives.all_reduce(bucket.flat_n, self.group)
        bucket.ended = time.perf_counter() - self._first

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Backward passes in this block add up locally: all micro-batches but the last."""
        self._quiet = True
        try:
            yield
        finally:
            self._quiet = False

    def finish(self) -> None:
        """Wait for all buckets; every p.grad is then the sum over ranks."""
        self._first = self._first or time.perf_counter()
        self.finished_at = time.perf_counter() - self._first
        for bucket in self.buckets:
            bucket.missing = 0
        self._launch_complete()
        for future in self._futures:
            future.result()
        for bucket in self.buckets:
            for p, view in zip(bucket.parameters, bucket.views(), strict=True):
                p.grad = view.clone()
        self._begin()
