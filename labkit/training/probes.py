"""Measurements before a run: which learning rate, which batch size.

    model, batches ──> learning_rate_range_test ──> rates, losses, a suggested rate
    model, batches ──> gradient_noise_scale     ──> the batch size beyond which more examples add
                                                    little to one update

Both leave the model as they found it.

Sources: Smith 2017, arXiv:1506.01186, section 3.3 (range test); McCandlish et al. 2018,
arXiv:1812.06162, section 2.2 and appendix A.1 (noise scale).
"""

import dataclasses
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from labkit import runtime
from labkit.batches import Batches
from labkit.errors import LabError
from labkit.objectives.tasks import Objective
from labkit.training.config import TrainConfig
from labkit.training.loop import train
from labkit.training.records import Record

#: The sweep ends where the smoothed loss is so many times its smallest value.
DIVERGED = 2.0
#: Weight of the past in the smoothed loss.
SMOOTHING = 0.8


class RangeTest(NamedTuple):
    """What `learning_rate_range_test` saw, one entry an update."""

    rates: list[float]
    losses: list[float]
    """Nats per target, of the batch."""
    smoothed: list[float]
    """Their exponential mean, corrected at the start as Adam's moments are."""
    suggested: float
    """A third of the rate at which the smoothed loss was lowest."""


def learning_rate_range_test(
    model: nn.Module,
    objective: Objective,
    batches: Batches,
    config: TrainConfig,
    *,
    low: float,
    high: float,
) -> RangeTest:
    """Train a little while the rate rises from `low` to `high` by a constant factor an update.

    Too low a rate leaves the loss where it is, a good one lowers it, too high a one throws it up.
    The lowest loss of the sweep stands close to where it breaks, so the suggestion is a third of
    that rate.

    Args:
        model, objective, batches: as for `train`.
        config: the run to be made; its steps (at least 10), optimizer, clipping, precision and seed
            are used, its schedule and rate replaced, and nothing is written.
        low, high: first and last rate, 0 < low < high.

    Returns:
        The sweep up to where the loss diverged; the model's weights are those before it.

    Raises:
        LabError: a rate or a number of steps out of range, or a loss that is never finite.

    Cost: config.steps updates.
    """
    if not 0 < low < high:
        raise LabError(f"low {low} and high {high} are out of range: choose 0 < low < high")
    if config.steps < 10:
        raise LabError(f"steps {config.steps} is out of range: a sweep needs at least 10 updates")
    rates: list[float] = []
    losses: list[float] = []
    smoothed: list[float] = []
    mean = 0.0

    def watch(record: Record) -> None:
        nonlocal mean
        rates.append(record.learning_rate)
        losses.append(record.loss)
        mean = SMOOTHING * mean + (1 - SMOOTHING) * record.loss
        smoothed.append(mean / (1 - SMOOTHING ** len(losses)))
        if smoothed[-1] > DIVERGED * min(smoothed):
            raise KeyboardInterrupt  # the loop's way to stop

    sweep = dataclasses.replace(
        config, schedule="range_test", learning_rate=high, min_learning_rate_ratio=low / high,
        warmup_steps=0, out=None, resume=False, restore_best=False,
    )  # fmt: skip
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    mode, random = model.training, runtime.rng_state()
    try:
        train(model, objective, batches, sweep, on_step=watch)
    except LabError:
        if not losses:  # otherwise: infinite at once, which is where a sweep may end
            raise
    finally:
        model.load_state_dict(before)
        model.train(mode)
        runtime.set_rng_state(random)
    lowest = min(range(len(smoothed)), key=smoothed.__getitem__)
    return RangeTest(rates, losses, smoothed, rates[lowest] / 3)


class NoiseScale(NamedTuple):
    """What `gradient_noise_scale` measured."""

    examples: float
    """B_simple = trace / signal, a batch size."""
    standard_error: float
    """Of `examples`, by the jackknife over the updates."""
    signal: float
    """|G|^2, squared norm of the true gradient."""
    trace: float
    """tr(Sigma), summed variance of one example's gradient over all parameters."""


def gradient_noise_scale(
    model: nn.Module,
    objective: Objective,
    batches: Batches,
    *,
    small: int = 1,
    updates: int = 20,
) -> NoiseScale:
    """The batch size at which noise and signal of the gradient are equally large.

    A mean over B examples has E|G_B|^2 = |G|^2 + tr(Sigma) / B. Two batch sizes, b and B, give two
    equations, and without bias

        |G|^2 = (B |G_B|^2 - b |G_b|^2) / (B - b),   tr(Sigma) = (|G_b|^2 - |G_B|^2) / (1/b - 1/B)

    Both are averaged over the updates before they are divided. Far below B_simple twice the batch
    saves nearly half of the steps; far above it saves hardly any.

    Args:
        model: at rest, as it is (in its present mode; dropout adds noise).
        objective: (model, batch) -> (loss sum, count).
        batches: `batches.batch_size` is B, a multiple of `small` and larger; examples with about
            equally many targets each.
        small: b, examples per small gradient, at least 1.
        updates: batches to average over, at least 2.

    Raises:
        LabError: a size out of range, or no signal is left above the noise.

    Cost: updates * B / b forward and backward passes of b examples.
    """
    big = batches.batch_size
    if not (0 < small < big and big % small == 0):
        raise LabError(f"small {small} is out of range: choose a divisor of batch_size {big}")
    if updates < 2:
        raise LabError(f"updates {updates} is out of range: choose at least 2")
    parameters = [p for p in model.parameters() if p.requires_grad]
    pairs = torch.zeros(updates, 2, dtype=torch.float64)  # signal, trace
    for update in range(updates):
        parts = batches.micro_batches(update, small)
        total = torch.zeros(sum(p.numel() for p in parameters), device=parameters[0].device)
        small_square, targets = 0.0, 0
        for batch in parts:
            loss_sum, count = objective(model, {k: v.to(total.device) for k, v in batch.items()})
            gradient = _flat(
                torch.autograd.grad(loss_sum, parameters, allow_unused=True), parameters
            )
            total += gradient
            small_square += float((gradient / count).double().square().sum()) / len(parts)
            targets += int(count)
        big_square = float((total / targets).double().square().sum())
        pairs[update, 0] = (big * big_square - small * small_square) / (big - small)
        pairs[update, 1] = (small_square - big_square) / (1 / small - 1 / big)
    signal, trace = pairs.mean(0).tolist()
    if not (math.isfinite(trace) and signal > 0):
        raise LabError(
            f"the squared gradient is {signal:.2g} after taking off the noise, it must be above 0: "
            "use more updates or a larger batch"
        )
    without = (pairs.sum(0) - pairs) / (updates - 1)
    left_out = without[:, 1] / without[:, 0]
    error = math.sqrt((updates - 1) * float(left_out.var(unbiased=False)))
    return NoiseScale(trace / signal, error, signal, trace)


def _flat(gradients: tuple[Tensor | None, ...], parameters: list[nn.Parameter]) -> Tensor:
    pairs = zip(gradients, parameters, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])
