"""THE loop: pretraining, full fine-tuning, every strategy, one process or many.

    for each update:  for each micro-batch:  objective -> (sum, count);  backward of the sum
                      add counts over micro-batches and ranks;  divide;  clip;  step
                      evaluate, keep the best, checkpoint;  on_step(record)

What a run optimises follows from the config alone: global batches, one denominator per update, one
data order. How it runs (micro-batches, ranks, sharding, number format) follows from the machine.
A resumed run continues to the bit.

Sources: Loshchilov & Hutter 2019, arXiv:1711.05101; Micikevicius et al. 2018, arXiv:1710.03740;
Li et al. 2020, arXiv:2006.15704 (DDP); Zhao et al. 2023, arXiv:2304.11277 (FSDP).
"""

import math
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import torch
from torch import Tensor, nn

from labkit import runtime
from labkit.batches import Batch, Batches
from labkit.errors import LabError
from labkit.evaluation.language import mean_loss
from labkit.objectives.tasks import Objective
from labkit.optim.optimizers import build, gradient_norm
from labkit.optim.schedule import learning_rate
from labkit.optim.step_in_backward import StepInBackward
from labkit.training import checkpoint
from labkit.training.config import TrainConfig
from labkit.training.distributed.data import Step, gradient_sync, parallelise
from labkit.training.interrupt import Stop
from labkit.training.records import Progress, Record, Result
from labkit.training.run_folder import RunFolder

#: fp16 halves its loss scale after each overflow; below this the numbers are broken, not small.
SMALLEST_LOSS_SCALE = 1.0


def train(
    model: nn.Module,
    objective: Objective,
    batches: Batches,
    config: TrainConfig,
    *,
    validation: Batches | None = None,
    metrics: Callable[[nn.Module], dict[str, float]] | None = None,
    on_step: Callable[[Record], Any] | None = None,
    tokenizer: Any = None,
) -> Result:
    """Train every parameter with `requires_grad`, in place.

    Args:
        model: a labkit or `transformers` model.
        objective: (model, batch) -> (loss sum, count of valid targets).
        batches: the data and its order; `batches.batch_size` is the global batch.
        config: everything else.
        validation: evaluated every `eval_every` updates and at the end; selects the best.
        metrics: further numbers of the model (in eval mode, no gradients) for each evaluation.
        on_step: called on rank 0 after each update; curves, progress bars and logs hang here.
        tokenizer: labkit's or transformers', or a folder that holds one; saved with the weights, so
            that `out` is a folder that `labkit generate` and `labkit evaluate` accept.

    Returns:
        What happened; the model holds the weights.

    Raises:
        LabError: a loss or gradient is not finite, an update has no valid target, the run folder
            is taken, or a checkpoint does not fit.
    """
    with (
        runtime.distributed() as here,
        Stop(here) as stop,
        closing(RunFolder(config, here)) as folder,
    ):
        if metrics and here.size > 1 and config.parallel == "fsdp":
            raise LabError("metrics under parallel fsdp cannot call a sharded model: use ddp")
        device = runtime.pick_device(config.device)
        precision = runtime.pick_precision(device, config.precision)
        runtime.keep_freed_memory()
        runtime.seed_everything((config.seed + 7919 * here.rank) % 2**32)
        model.to(device).train()
        step = Step(model, objective)
        module = parallelise(step, here, config.parallel)
        forward = torch.compile(module, dynamic=False) if config.compile else module
        optimizer = build(
            model,
            optimizer=config.optimizer,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            betas=config.betas,
            eps=config.eps,
        )
        trainable = [p for p in model.parameters() if p.requires_grad]
        in_backward = _step_in_backward(optimizer, batches, config, precision, here)
        scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        progress = Progress()
        result = Result(steps=0, stopped="finished")
        try:
            folder.open()
            if config.resume:
                progress = folder.restore(model, optimizer, scaler) or progress
            while progress.step < config.steps:
                started = time.perf_counter()
                rate = learning_rate(
                    progress.step,
                    peak=config.learning_rate,
                    warmup_steps=config.warmup_steps,
                    total_steps=config.steps,
                    minimum_ratio=config.min_learning_rate_ratio,
                    schedule=config.schedule,
                )
                for group in optimizer.param_groups:
                    group["lr"] = rate
                micro_batches = batches.micro_batches(
                    progress.step, config.micro_batch_size, here.rank, here.size
                )
                totals = torch.zeros(3, dtype=torch.float64, device=device)  # loss, count, tokens
                for i, batch in enumerate(micro_batches):
                    batch = {k: v.to(device, non_blocking=True) for k, v in batch.items()}
                    with gradient_sync(module, wanted=i == len(micro_batches) - 1):
                        with runtime.autocast(device, precision):
                            loss_sum, count = forward(batch)
                        if in_backward:  # one micro-batch: its count is the update's
                            in_backward.factor = batches.batch_size / max(1, int(count))
                        # A constant divisor keeps fp16 in range; the true one follows below.
                        scaler.scale(loss_sum / batches.batch_size).backward()
                    totals += torch.stack([loss_sum.detach(), count, _tokens(batch)]).double()
                loss_sum, count, tokens = runtime.sum_over_ranks(totals).tolist()
                if count == 0:
                    raise LabError(
                        f"update {progress.step + 1} has 0 valid targets in examples "
                        f"{batches.indices(progress.step)[:8]}: at least 1 label must not be -100"
                    )

                scaler.unscale_(optimizer)
                # DDP and FSDP averaged over ranks: undo that, and divide by the count of all.
                scale = batches.batch_size * here.size / count
                if in_backward:
                    norm = in_backward.norm()
                else:
                    norm = scale * float(gradient_norm(trainable))
                if not (math.isfinite(loss_sum) and math.isfinite(norm)):
                    if scaler.get_scale() <= SMALLEST_LOSS_SCALE:
                        raise _not_finite(progress.step, batches, loss_sum / count, norm, config)
                elif config.grad_clip:
                    scale *= min(1.0, config.grad_clip / (norm + 1e-6))
                for p in trainable:
                    if p.grad is not None:
                        p.grad.mul_(scale)
                scaler.step(optimizer)  # skipped when fp16 gradients overflowed
                scaler.update()
                optimizer.zero_grad(set_to_none=True)

                seconds = time.perf_counter() - started
                progress.step += 1
                progress.tokens += int(tokens)
                progress.elapsed += seconds
                last = progress.step == config.steps
                evaluation = None
                if (validation or metrics) and (last or _due(progress.step, config.eval_every)):
                    evaluation = _evaluate(
                        step, validation, metrics, config, device, precision, here
                    )
                    progress.note(evaluation)
                    if progress.bad_evaluations == 0:
                        folder.save_best(model, progress)
                per_step = progress.elapsed / progress.step
                record = Record(
                    step=progress.step,
                    total_steps=config.steps,
                    loss=loss_sum / count,
                    learning_rate=rate,
                    grad_norm=norm,
                    tokens=progress.tokens,
                    tokens_per_second=tokens / seconds,
                    elapsed=progress.elapsed,
                    remaining=per_step * (config.steps - progress.step),
                    validation=evaluation,
                )
                result.history.append(record)
                folder.log(record)
                if on_step and here.rank == 0:
                    on_step(record)
                early = 0 < config.patience <= progress.bad_evaluations
                if last or early or stop.wanted or _due(progress.step, config.save_every):
                    folder.save(model, optimizer, scaler, progress)
                if early or (stop.wanted and not last):
                    result.stopped = "early" if early else "interrupted"
                    break
        except KeyboardInterrupt:
            result.stopped = "interrupted"
            optimizer.zero_grad(set_to_none=True)
        finally:
            if in_backward:
                in_backward.remove()
        if config.restore_best and folder.best_weights is not None:
            checkpoint.load_model(model, folder.best_weights)
        model.eval()
        if result.stopped != "interrupted":
            folder.export(model, tokenizer)
        result.steps, result.best, result.seconds = progress.step, progress.best, progress.elapsed
        return result


def _step_in_backward(
    optimizer: torch.optim.Optimizer,
    batches: Batches,
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


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _tokens(batch: Batch) -> Tensor:
    if "attention_mask" in batch:
        return batch["attention_mask"].sum()
    first = next(iter(batch.values()))
    return torch.tensor(batch.get("input_ids", first).numel(), device=first.device)


def _not_finite(
    step: int, batches: Batches, loss: float, norm: float, config: TrainConfig
) -> LabError:
    return LabError(
        f"update {step + 1} has loss {loss} and gradient norm {norm}, both must be finite; its "
        f"examples are {batches.indices(step)[:8]}; likely a learning rate too high (now "
        f"{config.learning_rate}), a broken example, or a log or division of 0 in the objective"
    )


def _evaluate(step, validation, metrics, config, device, precision, here) -> dict[str, float]:
    """Every rank evaluates everything: FSDP needs all ranks in each forward pass."""
    numbers: dict[str, float] = {}
    if validation is not None:
        numbers["loss"], _ = mean_loss(
            step,
            lambda module, batch: module(batch),
            validation,
            device=device,
            precision=precision,
            batch_size=config.micro_batch_size or max(1, validation.batch_size // here.size),
        )
    if metrics is not None:
        step.eval()
        with torch.no_grad():
            numbers.update(metrics(step.model))
    step.train()
    return numbers
