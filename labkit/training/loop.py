"""THE loop: pretraining, full fine-tuning, every strategy, one process or many.

    for each update:  Update: rate, micro-batches, one denominator, clip, step (see `update`)
                      evaluate, keep the best, checkpoint;  on_step(record)

Where a run is in the data, and with which random numbers, is a function of the number of the
update and of the checkpoint: a resumed run continues to the bit.
"""

import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import torch
from torch import nn

from labkit import runtime
from labkit.batches import Batches, BatchSource
from labkit.errors import LabError
from labkit.evaluation.language import mean_loss
from labkit.objectives.tasks import Objective
from labkit.training import checkpoint
from labkit.training.config import TrainConfig
from labkit.training.interrupt import Stop
from labkit.training.records import Progress, Record, Result
from labkit.training.run_folder import RunFolder
from labkit.training.update import Update


def train(
    model: nn.Module,
    objective: Objective,
    batches: BatchSource,
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
        batches: the data and its order, or what makes batches as it goes (`generation.Rollouts`);
            `batches.batch_size` is the global batch.
        config: everything else.
        validation: evaluated every `eval_every` updates and at the end; selects the best.
        metrics: further numbers of the model (in eval mode, no gradients) for each evaluation.
        on_step: called on rank 0 after each update; curves, progress bars and logs hang here.
        tokenizer: labkit's or transformers', or a folder that holds one; saved with the weights, so
            that `out` is a folder that `labkit generate` and `labkit evaluate` accept.

    Returns:
        What happened; the model holds the weights, and so does `out`/model.

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
        update = Update(model, objective, batches, config, here)
        progress, result = Progress(), Result(steps=0, stopped="finished")
        try:
            folder.open()
            if config.resume:
                progress = folder.restore(model, update.optimizer, update.scaler) or progress
            while progress.step < config.steps:
                started = time.perf_counter()
                done = update(progress.step)
                seconds = time.perf_counter() - started
                progress.count(done, seconds)

                last = progress.step == config.steps
                evaluation = None
                if (validation or metrics) and (last or _due(progress.step, config.eval_every)):
                    evaluation = _evaluate(update, validation, metrics)
                    progress.note(evaluation)
                    if progress.bad_evaluations == 0:
                        folder.save_best(model, progress)
                record = progress.record(done, config, seconds, evaluation)
                result.history.append(record)
                folder.log(record)
                if on_step and here.rank == 0:
                    on_step(record)

                early = 0 < config.patience <= progress.bad_evaluations
                if last or early or stop.wanted or _due(progress.step, config.save_every):
                    folder.save(model, update.optimizer, update.scaler, progress)
                if early or (stop.wanted and not last):
                    result.stopped = "early" if early else "interrupted"
                    break
        except KeyboardInterrupt:
            result.stopped = "interrupted"
        finally:
            update.close()
        if config.restore_best and folder.best_weights is not None:
            checkpoint.load_model(model, folder.best_weights)
        model.eval()
        if result.stopped != "interrupted":
            folder.export(model, tokenizer)
        result.steps, result.best, result.seconds = progress.step, progress.best, progress.elapsed
        return result


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _evaluate(
    update: Update,
    validation: Batches | None,
    metrics: Callable[[nn.Module], dict[str, float]] | None,
) -> dict[str, float]:
    """Every rank evaluates everything: FSDP needs all ranks in each forward pass."""
    numbers: dict[str, float] = {}
    if validation is not None:
        part = max(1, validation.batch_size // update.here.size)
        numbers["loss"], _ = mean_loss(
            update.step,
            lambda step, batch: step(batch),
            validation,
            device=update.device,
            precision=update.precision,
            batch_size=update.config.micro_batch_size or part,
        )
    if metrics is not None:
        update.step.eval()
        with torch.no_grad():
            numbers.update(metrics(update.step.model))
    update.step.train()
    return numbers
