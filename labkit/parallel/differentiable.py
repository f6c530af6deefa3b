"""Collectives that gradients flow through: each one's backward pass is another collective.

                   forward                            backward
    copy_in        nothing                            sum over ranks       f of Megatron
    sum_out        sum over ranks                     nothing              g of Megatron
    gather         all parts side by side             own part of the sum
    scatter_sum    own part of the sum                all parts side by side
    split          own part                           all parts side by side
    join           all parts side by side             own part

`copy_in` and `join` differ in what follows: `gather` feeds layers that differ by rank, whose
gradients must be added up; after `join` all ranks compute the same, and adding would count it N
times. `split` begins where all ranks hold the same, `scatter_sum` where each holds a summand.

Sources: Shoeybi et al. 2019, arXiv:1909.08053 (f, g); Korthikanti et al. 2022, arXiv:2205.05198
(gather, scatter_sum).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from labkit.errors import LabError
from labkit.parallel import collectives
from labkit.parallel.collectives import Group


def total(x: Tensor, group: Group = None) -> Tensor:
    """A new tensor: the sum over ranks."""
    return collectives.all_reduce(x.detach().clone().flatten(), group).view(x.shape)


def parts(x: Tensor, dim: int, group: Group = None) -> Tensor:
    """Every rank's x side by side along an axis."""
    size = collectives.place(group)[1]
    front = x.detach().movedim(dim, 0).contiguous()
    out = front.new_empty(size * front.shape[0], *front.shape[1:])
    collectives.all_gather(front.flatten(), out.view(-1), group)
    return out.movedim(0, dim)


def own_part(x: Tensor, dim: int, group: Group = None) -> Tensor:
    """This rank's equal share of an axis.

    Raises:
        LabError: the axis does not divide among the ranks.
    """
    rank, size = collectives.place(group)
    if x.shape[dim] % size:
        raise LabError(
            f"{x.shape[dim]} does not divide among {size} ranks: choose a multiple of {size}"
        )
    return x.detach().chunk(size, dim)[rank]


def part_of_total(x: Tensor, dim: int, group: Group = None) -> Tensor:
    """This rank's equal share, along an axis, of the sum over ranks."""
    shape = own_part(x, dim, group).movedim(dim, 0).shape
    front = x.detach().movedim(dim, 0).contiguous()
    return collectives.reduce_scatter(front.flatten(), group).view(shape).movedim(0, dim)


class _Pair(torch.autograd.Function):
    """One function forward, another one backward."""

    @staticmethod
    def forward(ctx, x: Tensor, there: Callable, back: Callable) -> Tensor:
        ctx.back = back
        return there(x)

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        return ctx.back(gradients[0]), None, None


def _same(x: Tensor) -> Tensor:
    return x.view_as(x)


def copy_in(x: Tensor, group: Group = None) -> Tensor:
    """x, whose gradient is summed over ranks: what goes into layers that differ by rank."""
    return _Pair.apply(x, _same, lambda g: total(g, group))  # pyright: ignore[reportReturnType]


def sum_out(x: Tensor, group: Group = None) -> Tensor:
    """The sum over ranks of what each computed."""
    return _Pair.apply(x, lambda x: total(x, group), _same)  # pyright: ignore[reportReturnType]


def gather(x: Tensor, dim: int, group: Group = None) -> Tensor:
    """All parts, going into layers that differ by rank."""
    there, back = (lambda x: parts(x, dim, group)), (lambda g: part_of_total(g, dim, group))
    return _Pair.apply(x, there, back)  # pyright: ignore[reportReturnType]


def scatter_sum(x: Tensor, dim: int, group: Group = None) -> Tensor:
    """This rank's part of the sum over ranks of what each computed."""
    there, back = (lambda x: part_of_total(x, dim, group)), (lambda g: parts(g, dim, group))
    return _Pair.apply(x, there, back)  # pyright: ignore[reportReturnType]


def split(x: Tensor, dim: int, group: Group = None) -> Tensor:
    """This rank's part of what all ranks hold."""
    there, back = (lambda x: own_part(x, dim, group)), (lambda g: parts(g, dim, group))
    return _Pair.apply(x, there, back)  # pyright: ignore[reportReturnType]


def join(x: Tensor, dim: int, group: Group = None) -> Tensor:
    """All parts, going into what all ranks compute alike."""
    there, back = (lambda x: parts(x, dim, group)), (lambda g: own_part(g, dim, group))
    return _Pair.apply(x, there, back)  # pyright: ignore[reportReturnType]
