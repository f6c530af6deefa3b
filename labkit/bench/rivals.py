"""Two ways to train the same weights on the same examples, timed update by update.

    labkit.training.loop.train        ──┐
    transformers.Trainer      ──┴─> moments: when training began, then the end of each update

Both get the same model, batch size, precision and number of updates. The Trainer runs as it comes
and with the settings a sensible user would find: compiled, attention written out (on a CPU its
backward pass is faster than the fused one's), examples of one length together, micro-batches of 1.
Freed memory stays with the process for both, once labkit has trained in it.
"""

import importlib.util
import tempfile
import time
from collections.abc import Callable
from typing import Any

from torch import nn

from labkit import runtime
from labkit.batches import Batches
from labkit.errors import LabError
from labkit.objectives.tasks import Objective
from labkit.training.loop import train
from labkit.training.run_folder import TrainConfig


def labkit_moments(
    model: nn.Module, objective: Objective, batches: Batches, steps: int, **settings: Any
) -> list[float]:
    """Train for `steps` updates; seconds at the start and after each one, (steps + 1)."""
    settings = {"warmup_steps": 0, "learning_rate": 1e-4, **settings}
    moments = [time.perf_counter()]
    train(
        model,
        objective,
        batches,
        TrainConfig(steps=steps, **settings),
        on_step=lambda record: moments.append(time.perf_counter()),
    )
    return moments


def trainer_moments(
    model: nn.Module,
    examples: Any,
    steps: int,
    batch_size: int,
    precision: str,
    collate: Callable | None = None,
    **settings: Any,
) -> list[float]:
    """`transformers.Trainer` for `steps` updates; seconds at the start and after each, (steps + 1).

    Args:
        model: a `transformers` model.
        examples: anything with `len` and indexing.
        steps: updates.
        batch_size: examples an update.
        precision: `fp32`, `bf16` or `fp16`.
        collate: list of examples -> batch; None: the Trainer's own.
        settings: further TrainingArguments.

    Raises:
        LabError: the Trainer's own requirement is not installed.
    """
    if importlib.util.find_spec("accelerate") is None:
        raise LabError("the Trainer needs the package accelerate: run pip install accelerate")
    from transformers import Trainer, TrainerCallback, TrainingArguments

    moments: list[float] = []

    class Clock(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            moments.append(time.perf_counter())

        def on_step_end(self, args, state, control, **kwargs):
            moments.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=batch_size,
            bf16=precision == "bf16",
            fp16=precision == "fp16",
            use_cpu=runtime.pick_device().type == "cpu",
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            **{"learning_rate": 1e-4, "weight_decay": 0.1, **settings},
        )
        trainer = Trainer(
            model, arguments, train_dataset=examples, data_collator=collate, callbacks=[Clock()]
        )
        trainer.train()
    return moments
