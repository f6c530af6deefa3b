"""Tasks one after the other: the matrix of every task at every time, and what it comes to.

                      task 1   task 2   task 3
    before             R_01     R_02     R_03       what the model brought along
    after task 1      [R_11]    R_12     R_13       the diagonal: each task, just learned
    after task 2       R_21    [R_22]    R_23       below it: what was kept
    after task 3       R_31     R_32    [R_33]      above it: what came for free

    average    mean_j R_Tj                         forgetting   mean_j<T (best R_kj, k < T) - R_Tj
    backward   mean_j<T R_Tj - R_jj                forward      mean_j>1 R_(j-1)j - R_0j

The last task's own score, R_TT, says nothing about the others.

Sources: Lopez-Paz & Ranzato 2017, arXiv:1706.08840, section 2 (average, backward, forward);
Chaudhry et al. 2018, arXiv:1801.10112, section 3 (forgetting).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from labkit.errors import LabError

if TYPE_CHECKING:
    import pandas as pd


class TaskMatrix:
    """Scores of T tasks at T + 1 times, and the figures that sum them up, in the scores' unit.

    With losses (`lower_is_better`) every figure keeps its meaning: transfer above 0 is a gain,
    forgetting above 0 is a loss; only `average` stays the plain mean of the scores.
    """

    def __init__(
        self,
        scores: Sequence[Sequence[float]] | np.ndarray,
        tasks: Sequence[str],
        lower_is_better: bool = False,
    ):
        """
        Args:
            scores: R, (T + 1, T): row 0 before any task, row i after task i; columns in the order
                in which the tasks were learned.
            tasks: their names, in that order; at least 2.
            lower_is_better: True for losses and bits per byte.

        Raises:
            LabError: another shape, or a score that is not finite.
        """
        self.scores_KT = np.asarray(scores, dtype=np.float64)
        self.tasks, self.lower_is_better = tuple(tasks), lower_is_better
        count = len(self.tasks)
        if count < 2 or self.scores_KT.shape != (count + 1, count):
            raise LabError(
                f"scores have shape {self.scores_KT.shape} for {count} tasks: give at least 2 "
                "tasks, a row before the first and one after each, a column for each"
            )
        if not np.isfinite(self.scores_KT).all():
            raise LabError("a score is not finite: evaluate every task after every task")
        #: The same, so that more is better.
        self._gain_KT = -self.scores_KT if lower_is_better else self.scores_KT

    @property
    def average(self) -> float:
        """Mean score over all tasks at the end."""
        return float(self.scores_KT[-1].mean())

    @property
    def learned(self) -> float:
        """Mean of the diagonal: each task right after it was learned."""
        return float(np.diagonal(self.scores_KT[1:]).mean())

    @property
    def forgetting_T(self) -> np.ndarray:
        """By task but the last, (T - 1,): the best score after any earlier task, less the last.

        Below 0 where the last task helped.
        """
        return self._gain_KT[1:-1, :-1].max(axis=0) - self._gain_KT[-1, :-1]

    @property
    def forgetting(self) -> float:
        """Mean of `forgetting_T`."""
        return float(self.forgetting_T.mean())

    @property
    def backward(self) -> float:
        """Backward transfer: what later tasks did to earlier ones; below 0 is forgetting."""
        return float((self._gain_KT[-1] - np.diagonal(self._gain_KT[1:]))[:-1].mean())

    @property
    def forward(self) -> float:
        """Forward transfer: what earlier tasks did to a task before it was learned itself."""
        return float((np.diagonal(self._gain_KT[:-1]) - self._gain_KT[0])[1:].mean())

    def table(self) -> pd.DataFrame:
        """R with names: a row for each time, a column for each task."""
        import pandas as pd

        rows = ["before", *(f"after {task}" for task in self.tasks)]
        return pd.DataFrame(self.scores_KT, index=rows, columns=list(self.tasks))

    def summary(self) -> dict[str, float]:
        """average, learned, forgetting, backward, forward."""
        names = ("average", "learned", "forgetting", "backward", "forward")
        return {name: getattr(self, name) for name in names}
