"""Data parallel: every rank has its part of the batch; ddp copies the weights, fsdp shards them.

    Step (model + objective) ──> parallelise ──> backward exchanges gradients, if `gradient_sync`
    first(work)              rank 0 works, the others wait, then all know the result
    whole(model)             all weights in one process again

Sources: Li et al. 2020, arXiv:2006.15704 (DDP); Zhao et al. 2023, arXiv:2304.11277 (FSDP).
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from labkit import runtime
from labkit.batches import Batch
from labkit.models.adapting import strategies
from labkit.models.encoder_decoder import EncoderDecoder
from labkit.models.transformer import Transformer, blocks
from labkit.objectives.tasks import Objective
from labkit.training import checkpoint

R = TypeVar("R")


class Step(nn.Module):
    """Model and objective as one module, so that DDP and FSDP see everything the loss touches."""

    def __init__(self, model: nn.Module, objective: Objective):
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return self.objective(self.model, batch)


def parallelise(step: Step, here: runtime.World, how: str) -> nn.Module:
    """The module whose backward pass exchanges gradients: a copy on each rank, or shards of one.

    Args:
        step: model and objective.
        here: this process among all; alone, the step comes back as it is.
        how: `ddp` or `fsdp`.
    """
    if here.size == 1:
        return step
    if how == "ddp":
        # Ours use every parameter in each pass; others may not.
        ours = isinstance(step.model, Transformer | EncoderDecoder)
        return DistributedDataParallel(step, find_unused_parameters=not ours)
    from torch.distributed.fsdp import fully_shard

    for tensor in [*step.parameters(), *step.buffers()]:
        dist.broadcast(tensor.detach(), src=0)
    for block in blocks(step):
        fully_shard(block)
    fully_shard(step)  # in place
    return step


@contextmanager
def gradient_sync(module: nn.Module, wanted: bool) -> Iterator[None]:
    """Exchange gradients in this backward pass, or let them add up locally."""
    if isinstance(module, DistributedDataParallel):
        quiet: AbstractContextManager = nullcontext() if wanted else module.no_sync()
        with quiet:
            yield
        return
    if hasattr(module, "set_requires_gradient_sync"):
        module.set_requires_gradient_sync(wanted)  # pyright: ignore[reportCallIssue]
    yield


def first(here: runtime.World, work: Callable[[], R]) -> R:
    """Let rank 0 work while the others wait, as long as it takes; all get its (small) result.

    Raises:
        What `work` raised, on rank 0; SystemExit(2) on the others, without words.
    """
    if here.size == 1:
        return work()
    failure: BaseException | None = None
    shared: list[Any] = [None, False]
    if here.rank == 0:
        try:
            shared = [work(), True]
        except Exception as error:
            failure = error
    patient: Any = dist.new_group(backend="gloo", timeout=timedelta(days=2))
    dist.broadcast_object_list(shared, src=0, group=patient)
    if failure is not None:
        raise failure
    if not shared[1]:
        raise SystemExit(2)
    return shared[0]


def whole(model: nn.Module, here: runtime.World, parallel: str) -> nn.Module:
    """The trained model with all its weights in this process: gathered, if FSDP sharded them.

    Every rank must take part; the others than rank 0 get the model as it is.
    """
    if here.size == 1 or parallel != "fsdp":
        return model
    tensors = checkpoint.model_tensors(model)
    if here.rank:
        return model
    fresh: Any = type(model)(model.config)  # pyright: ignore[reportCallIssue]
    if (strategy := strategies.of(model)) is not None:
        strategies.apply(fresh, strategy)
    checkpoint.load_model(fresh, tensors)
    return fresh.eval()
