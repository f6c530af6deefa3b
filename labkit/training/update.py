"""One update of a run: what a batch teaches becomes one step of the optimiser.

    rate ──> each micro-batch: objective -> (loss sum, count), backward of the sum
         ──> add up over micro-batches and ranks ──> gradient / count ──> clip ──> step

What an update optimises follows from the config alone: one global batch, one denominator. How it
runs (micro-batches, ranks, sharding, number format) follows from the machine.

Sources: Loshchilov & Hutter 2019, arXiv:1711.05101; Micikevicius et al. 2018, arXiv:1710.03740.
"""

import math
import warnings

import torch
from torch import Tensor, nn

from labkit import runtime
from labkit.batches import Batch, BatchSource
from labkit.errors import LabError
from labkit.objectives.tasks import Objective
from labkit.optim.optimizers import build, gradient_norm
from labkit.optim.schedule import learning_rate
from labkit.optim.step_in_backward import StepInBackward
from labkit.training.config import TrainConfig
from labkit.training.distributed.data import Step, gradient_sync, parallelise
from labkit.training.records import Done

#: fp16 halves its loss scale after each overflow; below this the numbers are broken, not small.
SMALLEST_LOSS_SCALE = 1.0


class Update:
    """Everything that an update needs, built once; called with its number, it makes one."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        batches: BatchSource,
        config: TrainConfig,
        here: runtime.World,
    ):
        """
        Args:
            model: moved to the device of the config and put into training mode.
            objective: (model, batch) -> (loss sum, count of valid targets).
            batches: the data and its order.
            config: of the run.
            here: this process among all.

        Raises:
            LabError: a device or number format is absent, nothing is trainable, or
                `step_in_backward` contradicts the other settings.
        """
        self.batches, self.config, self.here = batches, config, here
        self.device = runtime.pick_device(config.device)
        self.precision = runtime.pick_precision(self.device, config.precision)
        runtime.keep_freed_memory()
        runtime.seed_everything((config.seed + 7919 * here.rank) % 2**32)
        model.to(self.device).train()
        self.step = Step(model, objective)
        self.module = parallelise(self.step, here, config.parallel)
        self.forward = torch.compile(self.module, dynamic=False) if config.compile else self.module
        self.optimizer = build(
            model,
            optimizer=config.optimizer,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            betas=config.betas,
            eps=config.eps,
        )
        self.trainable = [p for p in model.parameters() if p.requires_grad]
        self.in_backward = _step_in_backward(self.optimizer, batches, config, self.precision, here)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def __call__(self, number: int) -> Done:
        """Make update `number`, from 0.

        Raises:
            LabError: the update has no valid target, or its loss or gradient is not finite.
        """
        rate = self._set_rate(number)
        loss_sum, count, tokens = self._add_up_gradients(number)
        if count == 0:
            raise LabError(
                f"update {number + 1} has 0 valid targets in examples "
                f"{self.batches.indices(number)[:8]}: at least 1 label must not be -100"
            )
        norm = self._apply(number, loss_sum, count)
        if norm == 0 and number == 0 and count >= 1:  # a count below 1 is a scaled-down loss
            warnings.warn(
                f"update 1 has gradient norm 0 over {count:.0f} valid targets, nothing is learned: "
                "does the loss depend on the trainable parameters, without detach or no_grad?",
                stacklevel=2,
            )
        return Done(loss_sum / count, int(tokens), norm, rate)

    def _set_rate(self, number: int) -> float:
        rate = learning_rate(
            number,
            peak=self.config.learning_rate,
            warmup_steps=self.config.warmup_steps,
            total_steps=self.config.steps,
            minimum_ratio=self.config.min_learning_rate_ratio,
            schedule=self.config.schedule,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        return rate

    def _add_up_gradients(self, number: int) -> list[float]:
        """Backward through every micro-batch; loss sum, count and tokens over all ranks."""
        micro_batches = self.batches.micro_batches(
            number, self.config.micro_batch_size, self.here.rank, self.here.size
        )
        totals = torch.zeros(3, dtype=torch.float64, device=self.device)
        for i, batch in enumerate(micro_batches):
            batch = {k: v.to(self.device, non_blocking=True) for k, v in batch.items()}
            with gradient_sync(self.module, wanted=i == len(micro_batches) - 1):
                with runtime.autocast(self.device, self.precision):
                    loss_sum, count = self.forward(batch)
                if self.in_backward:  # one micro-batch: its count is the update's
                    self.in_backward.factor = self.batches.batch_size / max(1, int(count))
                # A constant divisor keeps fp16 in range; the true one follows in `_apply`.
                self.scaler.scale(loss_sum / self.batches.batch_size).backward()
            totals += torch.stack([loss_sum.detach(), count, _tokens(batch)]).double()
        return runtime.sum_over_ranks(totals).tolist()

    def _apply(self, number: int, loss_sum: float, count: float) -> float:
        """Divide by the count of the whole update, clip, step; the norm before clipping."""
        self.scaler.unscale_(self.optimizer)
        # DDP and FSDP averaged over ranks: undo that, and divide by the count of all.
        scale = self.batches.batch_size * self.here.size / count
        if self.in_backward:
            norm = self.in_backward.norm()
        else:
            norm = scale * float(gradient_norm(self.trainable))
        if not (math.isfinite(loss_sum) and math.isfinite(norm)):
            if self.scaler.get_scale() <= SMALLEST_LOSS_SCALE:
                raise _not_finite(number, self.batches, loss_sum / count, norm, self.config)
        elif self.config.grad_clip:
            scale *= min(1.0, self.config.grad_clip / (norm + 1e-6))
        for p in self.trainable:
            if p.grad is not None:
                p.grad.mul_(scale)
        self.scaler.step(self.optimizer)  # skipped when fp16 gradients overflowed
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def close(self) -> None:
        """Drop half-made gradients, and make the model's backward passes ordinary again."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.in_backward:
            self.in_backward.remove()


def _step_in_backward(
    optimizer: torch.optim.Optimizer,
    batches: BatchSource,
    config: TrainConfig,
    precision: str,
    here: runtime.World,
) -> StepInBackward | None:
    if not config.step_in_backward:
        return None
    refused = "step_in_backward uses each gradient up during the backward pass, so it cannot"
    if (config.micro_batch_size or batches.batch_size) < batches.batch_size:
        raise LabError(
            f"{refused} add up micro-batches of {config.micro_batch_size} to a batch of "
            f"{batches.batch_size}: leave micro_batch_size out, or lower the batch size"
        )
    if precision == "fp16":
        raise LabError(f"{refused} skip an update that overflows in fp16: choose bf16 or fp32")
    if here.size > 1:
        raise LabError(f"{refused} add up gradients of {here.size} ranks: leave it off, or use one")
    return StepInBackward(optimizer)


def _tokens(batch: Batch) -> Tensor:
    if "attention_mask" in batch:
        return batch["attention_mask"].sum()
    first = next(iter(batch.values()))
    return torch.tensor(batch.get("input_ids", first).numel(), device=first.device)


def _not_finite(
    step: int, batches: BatchSource, loss: float, norm: float, config: TrainConfig
) -> LabError:
    return LabError(
        f"update {step + 1} has loss {loss} and gradient norm {norm}, both must be finite; its "
        f"examples are {batches.indices(step)[:8]}; likely a learning rate too high (now "
        f"{config.learning_rate}), a broken example, or a log or division of 0 in the objective"
    )
