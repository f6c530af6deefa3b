"""The data order as a pure function of (seed, step): nothing to store, nothing to restore."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from labkit.batches.examples import Windows, stack
from labkit.batches.types import Batch, Corruption, Example
from labkit.errors import LabError


class Batches:
    """Examples in global batches; which examples form update `step` is a pure function of it.

    The endless stream concatenates one permutation of all examples per epoch; update `step` takes
    its examples step * batch_size .. (step + 1) * batch_size - 1. So no example is dropped and each
    is seen exactly once an epoch. With `lengths`, every `bucket` batches of an epoch are sorted by
    length and dealt again in random order: examples of a batch then need little padding. A batch
    that lies across two epochs keeps its random examples.

    With `corrupt`, each example is changed on its way into a batch: masked, cut, paired. Its
    generator is seeded by (seed, place in the stream), so what is random about it differs from
    epoch to epoch, but not with micro-batches, ranks or a resume. In evaluation the place is the
    example's index: every evaluation asks the same questions.
    """

    def __init__(
        self,
        examples: Sequence[Example] | Windows,
        batch_size: int,
        collate: Callable[[Sequence[Example]], Batch] = stack,
        seed: int = 0,
        shuffle: bool = True,
        lengths: Sequence[int] | None = None,
        bucket: int = 16,
        corrupt: Corruption | None = None,
    ):
        """
        Args:
            examples: anything with `len` and integer indexing. If its attribute `endless` is true,
                as in `RollingWindows`, epoch e takes items e n .. e n + n - 1 for its n examples.
            batch_size: examples per update over all micro-batches and ranks, at least 1.
            collate: list of examples -> batch.
            seed: of the order.
            shuffle: False keeps the given order in every epoch.
            lengths: length of each example; switches on length bucketing.
            bucket: batches sorted together, at least 1.
            corrupt: (example, its own generator) -> example, see `MaskTokens`; None: as they are.

        Raises:
            LabError: no examples, or a batch size below 1.
        """
        if len(examples) == 0:
            raise LabError("0 examples were given: at least 1 is needed for a batch")
        if batch_size < 1:
            raise LabError(f"batch_size {batch_size} is out of range: choose at least 1")
        self.examples, self.batch_size, self.collate = examples, batch_size, collate
        self.seed, self.shuffle, self.bucket = seed, shuffle, bucket
        self.corrupt = corrupt
        self.lengths = None if lengths is None else np.asarray(lengths)
        self._epochs: dict[int, np.ndarray] = {}

    @property
    def steps_per_epoch(self) -> int:
        """Updates until every example was seen once, rounded up."""
        return -(-len(self.examples) // self.batch_size)

    def _epoch(self, epoch: int) -> np.ndarray:
        """The order of all examples in one epoch."""
        if epoch not in self._epochs:
            order = np.arange(len(self.examples))
            if self.shuffle:
                np.random.default_rng([self.seed, epoch]).shuffle(order)
            if self.lengths is not None:
                order = self._by_length(epoch, order, self.lengths)
            self._epochs = {e: o for e, o in self._epochs.items() if e >= epoch - 1}
            self._epochs[epoch] = order
        return self._epochs[epoch]

    def _by_length(self, epoch: int, order: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """The same order, with examples of similar length in each batch that is whole in it."""
        size = self.batch_size
        begun = min(-epoch * len(order) % size, len(order))  # completes the last epoch's batch
        batches = (len(order) - begun) // size
        end = begun + batches * size
        pools = [order[:begun]]
        for first in range(0, batches, self.bucket):
            pool = order[begun + first * size : min(begun + (first + self.bucket) * size, end)]
            pool = pool[np.argsort(lengths[pool], kind="stable")].reshape(-1, size)
            if self.shuffle:
                np.random.default_rng([self.seed, 1 << 31, epoch, first]).shuffle(pool)
            pools.append(pool.reshape(-1))
        return np.concatenate([*pools, order[end:]])

    def indices(self, step: int) -> list[int]:
        """Return the indices of the examples of update `step` (from 0), in order."""
        n, start, stop = len(self.examples), step * self.batch_size, (step + 1) * self.batch_size
        parts = [
            self._epoch(e)[max(start - e * n, 0) : stop - e * n]
            for e in range(start // n, (stop - 1) // n + 1)
        ]
        return np.concatenate(parts).tolist()

    def micro_batches(
        self, step: int, micro_batch_size: int | None = None, rank: int = 0, world_size: int = 1
    ) -> list[Batch]:
        """Return this rank's part of update `step`, cut into micro-batches.

        Args:
            step: the update, from 0.
            micro_batch_size: examples at a time on one rank; None takes the rank's part whole.
            rank, world_size: this process among all; every rank gets equally many micro-batches.

        Raises:
            LabError: the global batch does not divide among the ranks.
        """
        if self.batch_size % world_size:
            raise LabError(
                f"batch_size {self.batch_size} does not divide among {world_size} ranks: choose a "
                f"multiple of {world_size}"
            )
        first = step * self.batch_size
        mine = list(enumerate(self.indices(step), first))[rank::world_size]
        size = micro_batch_size or len(mine)
        examples = [self._visit(self._item(i, place), (place,)) for place, i in mine]
        return [self.collate(examples[start : start + size]) for start in range(0, len(mine), size)]

    def _item(self, index: int, place: int) -> int:
        """The number of an example at a place of the stream: new in each epoch, if it has more."""
        n = len(self.examples)
        return index + place // n * n if getattr(self.examples, "endless", False) else index

    def _visit(self, index: int, place: tuple[int, ...]) -> Example:
        """The example, corrupted as it is at this place of the stream."""
        example = self.examples[index]
        if self.corrupt is None:
            return example
        return self.corrupt(example, np.random.default_rng([self.seed, 1 << 30, *place]))

    def evaluation_batches(self, batch_size: int | None = None) -> Iterator[Batch]:
        """Yield every example once, in the given order (by length where lengths are known)."""
        order = np.arange(len(self.examples))
        if self.lengths is not None:
            order = np.argsort(self.lengths, kind="stable")
        size = batch_size or self.batch_size
        for start in range(0, len(order), size):
            yield self.collate(
                [self._visit(int(i), (int(i), 1)) for i in order[start : start + size]]
            )
