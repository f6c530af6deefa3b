"""What passes between the files of this package: one example, one batch, one corruption."""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from torch import Tensor

Batch = dict[str, Tensor]
Example = dict[str, Tensor]

#: corrupt(example, random) -> example: what is hidden, swapped or drawn is decided by `random`
#: alone, a generator that belongs to this one visit of this one example (see `Batches`).
Corruption = Callable[[Example, np.random.Generator], Example]

#: A label that does not count: no loss, no gradient, not in the denominator.
IGNORE_INDEX = -100


class BatchSource(Protocol):
    """What a training reads: `Batches`, or batches that are made when they are asked for."""

    batch_size: int
    """Examples of an update, over all micro-batches and ranks."""

    def indices(self, step: int) -> Sequence[int]:
        """Numbers of the examples of update `step`, for messages."""
        ...

    def micro_batches(
        self, step: int, micro_batch_size: int | None = None, rank: int = 0, world_size: int = 1
    ) -> list[Batch]:
        """This rank's part of update `step`, cut into micro-batches."""
        ...
