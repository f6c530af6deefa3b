"""Collectives by hand: a ring of ranks, in which each sends to the next and hears the one before.

    reduce-scatter   rank r ends with chunk r of the sum        N - 1 steps
    all-gather       every rank ends with all chunks            N - 1 steps
    all-reduce       the first, then the second: the whole sum on every rank

             chunk 0        chunk 1        chunk 2
    rank 0   a0             a1+c1          a2 ──> 1        step 1: send a chunk, add what comes
    rank 1   b0 ──> 2       b1             b2+a2           step 2: send on what was added
    rank 2   c0+b0          c1 ──> 0       c2              end: chunk 0 whole on rank 0, ...

A tensor of S bytes takes each rank (N - 1)/N S bytes for either half, 2 (N - 1)/N S for the
all-reduce: however many ranks there are, less than two tensors. Through one root
(`root_all_reduce`), the root alone sends N - 1 tensors. Every chunk is added along one path and
then copied, so all ranks hold the same bits; ranks that each add in an order of their own do not.

Legend: n numbers of a flat tensor, c of a chunk, N ranks, S bytes.

Sources: Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of
workstations"; Gibiansky 2017, "Bringing HPC techniques to deep learning".
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor

Group = dist.ProcessGroup | None
"""Ranks that talk; None: all."""


@dataclass
class Traffic:
    """What this rank sent."""

    bytes: int = 0
    messages: int = 0


_COUNTERS: list[Traffic] = []


@contextmanager
def counted() -> Iterator[Traffic]:
    """Count what this rank sends inside the block, in any thread."""
    traffic = Traffic()
    _COUNTERS.append(traffic)
    try:
        yield traffic
    finally:
        _COUNTERS.remove(traffic)


def place(group: Group = None) -> tuple[int, int]:
    """(rank, size) of this process in the group."""
    return dist.get_rank(group), dist.get_world_size(group)


def send(tensor: Tensor, to: int, group: Group = None) -> dist.Work:
    """Begin to send a contiguous tensor to rank `to` of the group; `.wait()` ends it."""
    for traffic in _COUNTERS:
        traffic.bytes += tensor.nbytes
        traffic.messages += 1
    work = dist.isend(tensor, group=group, group_dst=to)
    assert work is not None
    return work


def receive(tensor: Tensor, source: int, group: Group = None) -> dist.Work:
    """Begin to fill a contiguous tensor from rank `source` of the group; `.wait()` ends it."""
    work = dist.irecv(tensor, group=group, group_src=source)
    assert work is not None
    return work


def shift(tensor: Tensor, step: int = 1, group: Group = None, out: Tensor | None = None) -> Tensor:
    """Send to the rank `step` further round the ring while hearing from the one as far behind.

    Both at once: if every rank sent first and then received, all might wait for ever.

    Args:
        tensor: contiguous.
        step: 1 is the next rank, -1 the one before.
        out: where to put what comes, if it has another shape than `tensor`.

    Returns:
        What came.
    """
    rank, size = place(group)
    out = torch.empty_like(tensor) if out is None else out
    works = [
        send(tensor, (rank + step) % size, group),
        receive(out, (rank - step) % size, group),
    ]
    for work in works:
        work.wait()
    return out


def chunks(tensor_n: Tensor, size: int) -> list[Tensor]:
    """A flat tensor in `size` pieces that differ by one number at most; views."""
    return list(tensor_n.tensor_split(size))


def reduce_scatter(tensor_n: Shaped[Tensor, " n"], group: Group = None) -> Shaped[Tensor, " c"]:
    """Chunk r of the sum over ranks, on rank r; of a flat tensor, which stays as it is.

    Cost: (N - 1)/N of the tensor's bytes sent by each rank, in N - 1 messages.
    """
    rank, size = place(group)
    own = chunks(tensor_n, size)
    partial = own[(rank - 1) % size].clone()
    for step in range(1, size):
        due = own[(rank - 1 - step) % size]
        partial = shift(partial, group=group, out=torch.empty_like(due)).add_(due)
    return partial


def all_gather(
    chunk_c: Shaped[Tensor, " c"], out_n: Shaped[Tensor, " n"], group: Group = None
) -> Shaped[Tensor, " n"]:
    """Every rank's chunk, side by side in `out_n`, on every rank.

    Args:
        chunk_c: flat, as long as this rank's of `chunks(out_n, N)`.
        out_n: flat, to be filled.

    Cost: (N - 1)/N of the bytes of `out_n` sent by each rank, in N - 1 messages.
    """
    rank, size = place(group)
    parts = chunks(out_n, size)
    parts[rank].copy_(chunk_c)
    for step in range(size - 1):
        shift(parts[(rank - step) % size], group=group, out=parts[(rank - step - 1) % size])
    return out_n


def all_reduce(tensor_n: Shaped[Tensor, " n"], group: Group = None) -> Shaped[Tensor, " n"]:
    """The sum over ranks, in place, the same bits on all of them.

    Cost: 2 (N - 1)/N of the tensor's bytes sent by each rank, in 2 (N - 1) messages.
    """
    return all_gather(reduce_scatter(tensor_n, group), tensor_n, group)


def broadcast(tensor: Tensor, group: Group = None) -> Tensor:
    """Rank 0's tensor on every rank, handed on along the ring; in place, contiguous."""
    rank, size = place(group)
    if rank:
        receive(tensor, rank - 1, group).wait()
    if rank + 1 < size:
        send(tensor, rank + 1, group).wait()
    return tensor


def root_all_reduce(tensor_n: Shaped[Tensor, " n"], group: Group = None) -> Shaped[Tensor, " n"]:
    """The same through rank 0, which hears all, adds, and tells all. In place.

    Cost: N - 1 tensors sent and N - 1 received by rank 0; one of each by the others.
    """
    rank, size = place(group)
    if rank:
        send(tensor_n, 0, group).wait()
        receive(tensor_n, 0, group).wait()
        return tensor_n
    heard = torch.empty_like(tensor_n)
    for other in range(1, size):
        receive(heard, other, group).wait()
        tensor_n += heard
    for work in [send(tensor_n, other, group) for other in range(1, size)]:
        work.wait()
    return tensor_n
