"""pass@k: the chance that at least one of k answers to a problem is right.

    n answers to a problem, c of them right:     pass@k = 1 - C(n - c, k) / C(n, k)

the share of all subsets of k answers that hold a right one. 1 - (1 - c/n)^k looks alike and is too
small: (1 - x)^k is convex, so a noisy c/n raises its mean.

Legend: P problems.

Source: Chen et al. 2021, arXiv:2107.03374, section 2.1 and appendix A.
"""

from collections.abc import Sequence

import numpy as np

from labkit.errors import LabError
from labkit.evaluation.intervals import Interval, bootstrap_interval


def pass_at_k(answers: int, right: int, k: int) -> float:
    """The unbiased estimate for one problem.

    Args:
        answers: n, drawn independently, at least k.
        right: c of them, 0 to n.
        k: at least 1.

    Raises:
        LabError: a value out of range.

    >>> pass_at_k(4, 1, 2)
    0.5
    """
    if not 1 <= k <= answers:
        raise LabError(f"k {k} is out of range: choose 1 to the number of answers, {answers}")
    if not 0 <= right <= answers:
        raise LabError(f"right {right} is out of range: it must be 0 to the {answers} answers")
    # C(n - c, k) / C(n, k) as a product of ratios, none of them large.
    misses = np.arange(answers - right + 1, answers + 1)
    return 1.0 - float(np.prod(1.0 - k / misses)) if answers - right >= k else 1.0


def mean_pass_at_k(answers: int, right_P: Sequence[int], k: int) -> Interval:
    """The mean over problems, with the interval of resampled problems.

    Args:
        answers: to each problem, at least k.
        right_P: how many of them were right.
        k: at least 1.
    """
    passed_P = [pass_at_k(answers, int(right), k) for right in right_P]
    return bootstrap_interval(lambda passed: float(np.mean(passed)), passed_P)
