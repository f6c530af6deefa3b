"""The learning rate of each update: linear warm-up, then a decay.

Sources: Loshchilov & Hutter 2017, arXiv:1608.03983 (cosine); Goyal et al. 2017, arXiv:1706.02677
(warm-up); Smith 2017, arXiv:1506.01186 (range test).
"""

import math

from labkit.errors import LabError

SCHEDULES = ("cosine", "linear", "constant", "range_test")


def learning_rate(
    step: int,
    *,
    peak: float,
    warmup_steps: int,
    total_steps: int,
    minimum_ratio: float = 0.1,
    schedule: str = "cosine",
) -> float:
    """Return the learning rate of update `step`: linear warm-up, then the chosen decay.

    warm-up: peak (step + 1) / warmup_steps for step < warmup_steps;
    cosine:  peak (r + (1 - r) (1 + cos(pi u)) / 2);  linear: peak (r + (1 - r) (1 - u));
    constant: peak;
    range_test: peak r^(1 - u), which rises from r peak towards the peak;
    with u = (step - warmup_steps) / (total_steps - warmup_steps) and r = minimum_ratio.

    >>> [round(learning_rate(s, peak=1.0, warmup_steps=2, total_steps=6, minimum_ratio=0.0), 3)
    ...  for s in range(6)]
    [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]

    Args:
        step: updates done before this one, from 0.
        peak: the highest rate, positive.
        warmup_steps: updates of linear warm-up, 0 or more.
        total_steps: updates in the whole run, at least 1.
        minimum_ratio: lowest rate after the warm-up / peak, 0 to 1.
        schedule: `cosine`, `linear`, `constant` or `range_test`.

    Raises:
        LabError: an unknown schedule.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    u = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    if schedule == "cosine":
        shape = 0.5 * (1 + math.cos(math.pi * u))
    elif schedule == "linear":
        shape = 1 - u
    elif schedule == "constant":
        return peak
    elif schedule == "range_test":
        return peak * minimum_ratio ** (1 - u)
    else:
        raise LabError(f"schedule {schedule!r} is unknown: choose {', '.join(SCHEDULES)}")
    return peak * (minimum_ratio + (1 - minimum_ratio) * shape)
