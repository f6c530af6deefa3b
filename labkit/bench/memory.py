"""Peak memory and time of a full fine-tuning update at GPT-2's size (124 M), batch 8 x 512.

python -m labkit.bench.memory CONTESTANT      prints peak and seconds (see `alone`)
"""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from labkit import runtime
from labkit.batches import Batches, Windows
from labkit.bench.alone import print_figures
from labkit.bench.pretraining import Unshifted
from labkit.bench.rivals import labkit_moments, trainer_moments
from labkit.models import huggingface
from labkit.models.config import TransformerConfig
from labkit.models.transformer import Transformer
from labkit.objectives import tasks as objectives

STEPS = 3


class Problem(NamedTuple):
    """What is updated on what."""

    shape: dict[str, int]
    """Changes to GPT-2's."""
    batch: int
    length: int
    """Tokens in an example."""

    def model(self) -> Transformer:
        torch.manual_seed(0)
        return Transformer(TransformerConfig.gpt2(dropout=0.0, **self.shape))

    def tokens(self, vocab_size: int) -> np.ndarray:
        count = self.batch * self.length * STEPS + 1
        return np.random.default_rng(0).integers(vocab_size, size=count)


FULL = Problem({}, 8, 512)
#: To see that it runs.
SMALLER = Problem({"d_model": 64, "num_layers": 2, "num_heads": 2, "vocab_size": 2000}, 2, 64)


def _labkit(
    micro_batch_size: int | None = None, checkpointing: bool = False, **settings: Any
) -> Callable:
    def run(half: str, problem: Problem) -> list[float]:
        model = problem.model()
        model.gradient_checkpointing = checkpointing
        windows = Windows(problem.tokens(model.config.vocab_size), problem.length)
        data = Batches(windows, problem.batch, shuffle=False)
        return labkit_moments(
            model,
            objectives.causal_lm,
            data,
            STEPS,
            precision=half,
            micro_batch_size=micro_batch_size,
            **settings,
        )

    return run


def _trainer(micro_batch_size: int | None = None, **settings: Any) -> Callable:
    def run(half: str, problem: Problem) -> list[float]:
        at_a_time = micro_batch_size or problem.batch
        parts = {"gradient_accumulation_steps": problem.batch // at_a_time}
        ours = problem.model()
        data = Unshifted(problem.tokens(ours.config.vocab_size), problem.length)
        model = huggingface.to_huggingface(ours)
        del ours
        return trainer_moments(model, data, STEPS, at_a_time, half, **parts, **settings)

    return run


CONTESTANTS: dict[str, Callable[[str, Problem], list[float]]] = {
    "Trainer": _trainer(),
    "Trainer, gradient checkpointing": _trainer(gradient_checkpointing=True),
    "Trainer, micro-batches of 1": _trainer(micro_batch_size=1),
    "Trainer, both": _trainer(micro_batch_size=1, gradient_checkpointing=True),
    "labkit": _labkit(),
    "labkit, gradient checkpointing": _labkit(checkpointing=True),
    "labkit, micro-batches of 1": _labkit(micro_batch_size=1),
    "labkit, both": _labkit(micro_batch_size=1, checkpointing=True),
    "labkit, checkpointing, step in backward": _labkit(
        checkpointing=True, step_in_backward=True, grad_clip=0.0
    ),
    "labkit, the same, 8-bit moments": _labkit(
        checkpointing=True, step_in_backward=True, grad_clip=0.0, optimizer="adamw8bit"
    ),
}

#: Enough to see that all settings run.
FEW = ("Trainer, both", "labkit, both", "labkit, the same, 8-bit moments")


def _main(name: str, smaller: bool) -> None:
    half = runtime.pick_precision(runtime.pick_device())
    print_figures(CONTESTANTS[name](half, SMALLER if smaller else FULL))


if __name__ == "__main__":
    _main(sys.argv[1], "--smaller" in sys.argv[2:])
