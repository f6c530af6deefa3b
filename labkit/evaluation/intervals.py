"""How far a measured number would move with other examples: the bootstrap.

Source: Efron 1979, "Bootstrap Methods: Another Look at the Jackknife".
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from labkit.errors import LabError


class Interval(NamedTuple):
    """An estimate and the interval that should hold it."""

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.estimate:.4f} [{self.low:.4f}, {self.high:.4f}]"


def bootstrap_interval(
    metric: Callable[..., float],
    *arrays_N: Any,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap: how far would the metric move with another test set of this size?

    Draws N rows with replacement, the same rows of every array, `resamples` times.

    Args:
        metric: called as `metric(*arrays)`; returns a number.
        arrays_N: arrays or tensors with N rows each.
        confidence: coverage of the interval, in (0, 1).
        resamples: number of draws, >= 1.
        seed: of the draws.

    Returns:
        The metric on the given rows, and the interval's ends.

    >>> bootstrap_interval(lambda x: float(np.mean(x)), [1.0, 1.0, 1.0])
    Interval(estimate=1.0, low=1.0, high=1.0)
    """
    if not 0 < confidence < 1:
        raise LabError(f"confidence {confidence} is outside (0, 1): 0.95 is usual.")
    arrays = [np.asarray(array) for array in arrays_N]
    sizes = {len(array) for array in arrays}
    if len(sizes) != 1 or 0 in sizes:
        raise LabError(f"arrays of {sorted(sizes)} rows: all need the same number, at least 1.")
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, len(arrays[0]), (positive(resamples, "resamples"), len(arrays[0])))
    values = [metric(*(array[row] for array in arrays)) for row in rows]
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return Interval(float(metric(*arrays)), float(low), float(high))


def positive(value: int, name: str) -> int:
    """The value, if it is at least 1.

    Raises:
        LabError: it is not.
    """
    if value < 1:
        raise LabError(f"{name} is {value}: it must be at least 1.")
    return value
