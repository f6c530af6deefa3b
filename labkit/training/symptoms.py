"""What the numbers of a run say: bounds, and a sentence for each that is left.

    Record, Reading ──> symptoms ──> (kind, sentence): the value, what is usual, what to do

A bound is a place to look, not a verdict. They are wide, so that a healthy run is left in peace,
and a run can be wrong inside all of them. Where they come from: ratios and units from the source
below and widened, the others from healthy runs of this package's small decoders; no study of many
models stands behind them.

Source: Karpathy 2022, makemore part 3 (update-to-weight ratio, dead and saturated units).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from labkit.training.records import Record

#: |change| / |weights| of a matrix in one update: outside, it is torn or hardly moves.
RATIO = (1e-5, 0.3)
#: |weights| / |weights at the start| of a matrix: Adam's ratios shrink while weights run away.
GROWTH = 30.0
#: Share of a matrix's numbers that an update leaves as they were, to the bit.
UNMOVED = 0.2
#: Share of feed-forward units that answer to no position of a batch, and of saturated outputs.
DEAD, SATURATED = 0.5, 0.5
#: The first loss may stand so far below and above log V, nats.
BELOW, ABOVE = 0.3, 3.0
#: Norm gains begin at 1; all of them below 1, with a mean below this, is decay, not learning.
GAIN = 0.95
#: Share of a batch's neighbours that are neighbours in the data, too.
IN_ORDER = 0.5
#: Different examples seen / those that an order without repeats would have shown.
FRESH = 0.9


class Finding(NamedTuple):
    """One finding, in one sentence."""

    step: int
    """The update at which it was first seen, from 1."""
    kind: str
    """`start`, `rate`, `gradient`, `ratio`, `unmoved`, `gains`, `dead`, `saturated`, `mode`,
    `repeats` or `order`."""
    says: str
    """The value, what is usual, what to do."""


@dataclass
class Reading:
    """One update, looked at closely; the keys are names of parameters or modules."""

    step: int
    ratios: dict[str, float] = field(default_factory=dict)
    """|change| / |weights|, L2, of tensors that were not 0."""
    unmoved: dict[str, float] = field(default_factory=dict)
    """Share of the numbers of a matrix that did not change at all, 0 to 1; not of tables, whose
    rows of absent tokens may rest."""
    growth: dict[str, float] = field(default_factory=dict)
    """|weights before it| / |weights at the start|, L2, of matrices."""
    gains: dict[str, float] = field(default_factory=dict)
    """Mean size of a norm's gains, which began at 1."""
    gradients: dict[str, float] = field(default_factory=dict)
    """L2 norms before clipping; their root of squares is `Record.grad_norm`."""
    without: list[str] = field(default_factory=list)
    """Trainable tensors that no gradient reached."""
    dead: dict[str, float] = field(default_factory=dict)
    """Share of a feed-forward net's units that are silent at every position, 0 to 1."""
    saturated: dict[str, float] = field(default_factory=dict)
    """Share of a tanh's or sigmoid's outputs in the outer hundredth of their range, 0 to 1."""
    scale: dict[str, float] = field(default_factory=dict)
    """Root mean square of what each block hands on."""
    evaluating: int = 0
    """Modules that computed this update in eval mode."""


Symptoms = Iterator[tuple[str, str]]


def of_start(loss: float, uniform: float) -> Symptoms:
    """Of the first loss, beside log V, both in nats."""
    if loss < uniform - BELOW:
        yield (
            "start",
            f"the first loss is {loss:.2f} nats, usual is log V = {uniform:.2f}: no untrained "
            "model knows better, so look for a wrong denominator or targets among the inputs",
        )
    elif loss > uniform + ABOVE:
        yield (
            "start",
            f"the first loss is {loss:.2f} nats, usual is log V = {uniform:.2f}: the logits begin "
            "too large; begin with smaller weights, or look for a sum that should be a mean",
        )


def of_rate(record: Record, previous: float) -> Symptoms:
    """Of the learning rate, beside that of the update before."""
    late = record.total_steps >= 20 and 2 * record.step >= record.total_steps
    if late and record.learning_rate > previous > 0:
        yield (
            "rate",
            f"the learning rate still rises ({record.learning_rate:.1e}) in the second half of "
            f"{record.total_steps} updates, usual is a twentieth: shorten warmup_steps",
        )


def of_readings(readings: Sequence[Reading], rate: float) -> Symptoms:
    """Of the newest reading, with those before it where one alone says little.

    Args:
        readings: all so far, at least one.
        rate: the learning rate of the newest.
    """
    now = readings[-1]
    if now.without:
        some = ", ".join(now.without[:3]) + (", ..." if len(now.without) > 3 else "")
        yield (
            "gradient",
            f"no gradient reaches {len(now.without)} trainable tensors ({some}), usual is 0: look "
            "for detach, no_grad, or a part that the loss does not read",
        )
    if now.evaluating:
        yield (
            "mode",
            f"{now.evaluating} modules computed in eval mode, usual is 0 while training: dropout "
            "is off; call model.train() after each evaluation",
        )
    # Of the first updates Adam's are the largest, and warm-up's the smallest: wait a little.
    settled = [reading for reading in readings if reading.step > 1]
    if len(settled) >= 2:
        yield from _of_steps(settled, rate)
    if now.gains:
        mean = sum(now.gains.values()) / len(now.gains)
        if max(now.gains.values()) < 1 and mean < GAIN:
            yield (
                "gains",
                f"all {len(now.gains)} norm gains fell below 1, to {mean:.2f} in the mean, usual "
                "is that some rise: leave vectors out of weight decay",
            )
    for kind, shares, limit, advice in (
        ("dead", now.dead, DEAD, "lower the rate, or begin with smaller weights"),
        ("saturated", now.saturated, SATURATED, "begin with smaller weights, or normalise inputs"),
    ):
        name, share = _largest(shares)
        if share > limit:
            yield (
                kind,
                f"{share:.0%} of the units of {name} are {kind}, usual is below 10 %: {advice}",
            )


def _of_steps(settled: Sequence[Reading], rate: float) -> Symptoms:
    """Of how far updates go: too far, nowhere, or less than the number format can hold."""
    now = settled[-1]
    moving = [n for n in now.growth if n in now.ratios and n not in now.without]
    ratios = {n: _median([r.ratios[n] for r in settled if n in r.ratios]) for n in moving}
    name, ratio = _largest(ratios)
    grown, times = _largest({n: now.growth[n] for n in moving})
    if ratio > RATIO[1]:
        yield (
            "ratio",
            f"{name} changes by {ratio:.1%} of its size in an update, usual is 0.01 % to 3 %: "
            f"lower the learning rate (now {rate:.1e})",
        )
    elif times > GROWTH:
        yield (
            "ratio",
            f"{grown} is {times:.0f} times as large as at the start, usual is below 10: lower the "
            f"learning rate (now {rate:.1e})",
        )
    elif ratios and ratio < RATIO[0]:
        yield (
            "ratio",
            f"no matrix changes by more than {ratio:.1e} of its size in an update, usual is 1e-4 "
            f"to 3e-2: raise the learning rate (now {rate:.1e})",
        )
    rest = {n: _median([r.unmoved[n] for r in settled]) for n in moving if n in now.unmoved}
    name, share = _largest(rest)
    if share > UNMOVED:
        yield (
            "unmoved",
            f"{share:.0%} of the numbers of {name} do not move at all, usual is below 1 %: steps "
            "are lost in its number format; keep the weights in float32 and let autocast round",
        )


class Order:
    """Which examples passed, counted; and what that says."""

    def __init__(self, of: int):
        """
        Args:
            of: examples there are.
        """
        self.of = of
        self._seen: set[int] = set()
        self._passed = self._pairs = self._neighbours = 0

    def of_update(self, step: int, indices: Sequence[int]) -> Symptoms:
        """Count an update's examples, by their numbers in the data."""
        self._seen.update(indices)
        self._passed += len(indices)
        self._pairs += max(0, len(indices) - 1)
        self._neighbours += sum(b - a == 1 for a, b in pairwise(indices))
        if step < 5:
            return
        could = min(self._passed, self.of)
        if len(self._seen) < FRESH * could:
            yield (
                "repeats",
                f"{self._passed} examples passed and only {len(self._seen)} different ones, usual "
                f"is {could} of {self.of}: the order begins anew; make it a function of the number "
                "of the update",
            )
        share = self._neighbours / max(1, self._pairs)
        if share > IN_ORDER and self.of > 20:
            yield (
                "order",
                f"{share:.0%} of neighbours in a batch are neighbours in the data, usual is below "
                "5 %: shuffle the examples",
            )


def _largest(values: dict[str, float]) -> tuple[str, float]:
    """The largest value and its name; ("", nan), which no bound is below, of none."""
    name = max(values, key=values.__getitem__, default="")
    return name, values.get(name, math.nan)


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2] if values else math.nan
