"""The settings of one run. Imports no torch: the command line is made from them.

TrainConfig(steps=1000, learning_rate=3e-4, ...)   -> training.train
labkit pretrain --steps 1000 --learning-rate 3e-4  -> the same object (`commands.options`)
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from labkit.errors import LabError

Optimizer = Literal["adamw", "adam", "sgd", "muon", "adamw8bit"]
Schedule = Literal["cosine", "linear", "constant", "range_test"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Parallel = Literal["ddp", "fsdp"]


@dataclass(frozen=True)
class TrainConfig:
    """One run. Every number is global: over all micro-batches and ranks."""

    steps: int = 1000
    """Updates in the whole run, at least 1."""
    optimizer: Optimizer = "adamw"
    """adamw; adam (decay as L2 in the loss); sgd (the same, with momentum betas[0]); muon (for the
    matrices of the blocks; AdamW for the rest, at the same rate); or adamw8bit (moments of a byte
    each)."""
    learning_rate: float = 3e-4
    """Peak rate, above 0."""
    min_learning_rate_ratio: float = 0.1
    """Lowest rate after warm-up / peak rate, 0 to 1."""
    warmup_steps: int = 100
    """Updates of linear warm-up, 0 or more."""
    schedule: Schedule = "cosine"
    """After warm-up: cosine, linear, constant, or range_test (rising: see `probes`)."""
    weight_decay: float = 0.1
    """Decay of matrices, 0 or more; biases and norms never decay."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of the two moments, each in [0, 1)."""
    eps: float = 1e-8
    """AdamW's epsilon, above 0."""
    grad_clip: float = 1.0
    """Largest L2 norm of the whole gradient; 0 leaves it unclipped."""
    micro_batch_size: int | None = None
    """Examples at a time on one rank (never changes the result); None: the rank's whole part."""
    step_in_backward: bool = False
    """Update each parameter as soon as its gradient is complete and free it: the same result, less
    memory. Needs grad_clip 0, no micro-batches, one rank, and not fp16."""
    precision: Precision = "auto"
    """auto, fp32, bf16 or fp16 (with loss scaling); weights stay fp32."""
    device: str = "auto"
    """auto, cpu or cuda."""
    compile: bool = False
    """Compile forward and backward (about 20 s at the start on a CPU)."""
    parallel: Parallel = "ddp"
    """How several ranks train: ddp copies the weights, fsdp shards them. Alone: neither."""
    seed: int = 0
    """Of everything random during training (dropout), 0 to 2^32 - 1."""
    eval_every: int = 0
    """Updates between evaluations; 0: only at the end."""
    patience: int = 0
    """Evaluations without a better validation loss before stopping; 0: never stop early."""
    restore_best: bool = False
    """End with the weights of the best evaluation instead of the last."""
    save_every: int = 0
    """Updates between checkpoints; 0: only at the end."""
    keep: int = 2
    """Newest checkpoints to keep, at least 1."""
    out: Path | None = None
    """Run folder; None writes nothing."""
    resume: bool = False
    """Continue from the newest good checkpoint in `out`."""

    def __post_init__(self) -> None:
        def demand(name: str, good: bool, allowed: str) -> None:
            if not good:
                raise LabError(f"{name} {getattr(self, name)} is out of range: choose {allowed}")

        def among(name: str, allowed: tuple[str, ...]) -> None:
            choices = f"{', '.join(allowed[:-1])} or {allowed[-1]}"
            demand(name, getattr(self, name) in allowed, choices)

        demand("steps", self.steps >= 1, "at least 1")
        among("optimizer", get_args(Optimizer))
        demand("learning_rate", 0 < self.learning_rate < math.inf, "a number above 0")
        demand("min_learning_rate_ratio", 0 <= self.min_learning_rate_ratio <= 1, "0 to 1")
        demand("warmup_steps", self.warmup_steps >= 0, "0 or more")
        among("schedule", get_args(Schedule))
        demand("weight_decay", self.weight_decay >= 0, "0 or more")
        demand("betas", all(0 <= b < 1 for b in self.betas), "two numbers in [0, 1)")
        demand("eps", self.eps > 0, "a number above 0")
        demand("grad_clip", self.grad_clip >= 0, "0 (off) or more")
        micro = self.micro_batch_size
        demand("micro_batch_size", micro is None or micro >= 1, "at least 1, or None")
        among("precision", get_args(Precision))
        among("parallel", get_args(Parallel))
        demand(
            "optimizer",
            self.optimizer != "muon" or self.parallel != "fsdp",
            "adamw with parallel fsdp: muon needs whole matrices (parallel ddp)",
        )
        demand(
            "optimizer",
            self.optimizer != "adamw8bit" or self.parallel != "fsdp",
            "adamw with parallel fsdp: adamw8bit needs whole tensors (parallel ddp)",
        )
        demand(
            "grad_clip",
            not (self.step_in_backward and self.grad_clip),
            "0 with step_in_backward: the norm of all gradients is known too late",
        )
        demand(
            "optimizer",
            not (self.step_in_backward and self.optimizer == "muon"),
            "adamw, adam, sgd or adamw8bit with step_in_backward: muon steps stacks of matrices",
        )
        demand("keep", self.keep >= 1, "at least 1")
        demand("seed", 0 <= self.seed < 2**32, f"0 to {2**32 - 1}")
        for name in ("eval_every", "patience", "save_every"):
            demand(name, getattr(self, name) >= 0, "0 (off) or more")


#: Fields that may differ between a run and its continuation: they do not change what is learned.
FREE_ON_RESUME = {
    "micro_batch_size", "device", "compile", "parallel", "save_every", "keep", "out", "resume",
    "step_in_backward", "overwrite",
}  # fmt: skip
