"""What passes between the files of this package: one example, one batch, one corruption."""

from collections.abc import Callable

import numpy as np
from torch import Tensor

Batch = dict[str, Tensor]
Example = dict[str, Tensor]

#: corrupt(example, random) -> example: what is hidden, swapped or drawn is decided by `random`
#: alone, a generator that belongs to this one visit of this one example (see `Batches`).
Corruption = Callable[[Example, np.random.Generator], Example]

#: A label that does not count: no loss, no gradient, not in the denominator.
IGNORE_INDEX = -100
