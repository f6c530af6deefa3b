"""What a run says of itself: each update, the whole, and what it must remember.

Update ──> Done ──> Progress (goes into the checkpoint) ──> Record (metrics.jsonl, on_step)
train  ──> Result
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from labkit.training.config import TrainConfig


class Done(NamedTuple):
    """What one update did."""

    loss: float
    """Mean over its valid targets, nats."""
    tokens: int
    """Real input tokens, on all ranks."""
    grad_norm: float
    """L2 norm before clipping."""
    learning_rate: float


@dataclass(frozen=True)
class Record:
    """What one update did; `on_step` receives it, metrics.jsonl keeps it."""

    step: int
    """Updates done, from 1."""
    total_steps: int
    loss: float
    """Mean loss per valid target over the whole update, nats."""
    learning_rate: float
    grad_norm: float
    """L2 norm before clipping."""
    tokens: int
    """Real input tokens seen so far on all ranks."""
    tokens_per_second: float
    """Of this update alone, without evaluation and saving."""
    elapsed: float
    """Seconds of training so far, earlier sessions included."""
    remaining: float
    """Estimated seconds to the end."""
    validation: dict[str, float] | None = None
    """`loss` (nats per target) and what `metrics` returned, when this update was evaluated."""


@dataclass
class Result:
    """What `train` returns."""

    steps: int
    stopped: str
    """`finished`, `early` (patience ran out) or `interrupted` (Ctrl-C, SIGTERM)."""
    history: list[Record] = field(default_factory=list)
    """Records of this session."""
    best: dict[str, float] | None = None
    """Validation of the best evaluation, with its `step`."""
    seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        """Median over this session's updates."""
        rates = sorted(r.tokens_per_second for r in self.history)
        return rates[len(rates) // 2] if rates else math.nan


@dataclass
class Progress:
    """What the loop remembers between updates; all of it is in the checkpoint."""

    step: int = 0
    tokens: int = 0
    elapsed: float = 0.0
    best: dict[str, float] | None = None
    bad_evaluations: int = 0

    def count(self, done: Done, seconds: float) -> None:
        """One update more."""
        self.step += 1
        self.tokens += done.tokens
        self.elapsed += seconds

    def record(
        self, done: Done, config: TrainConfig, seconds: float, evaluation: dict[str, float] | None
    ) -> Record:
        """What the last update did."""
        return Record(
            step=self.step,
            total_steps=config.steps,
            loss=done.loss,
            learning_rate=done.learning_rate,
            grad_norm=done.grad_norm,
            tokens=self.tokens,
            tokens_per_second=done.tokens / seconds,
            elapsed=self.elapsed,
            remaining=self.elapsed / self.step * (config.steps - self.step),
            validation=evaluation,
        )

    def note(self, evaluation: dict[str, float]) -> None:
        """Remember the best evaluation, and how many since then were not better."""
        loss = evaluation.get("loss")
        if loss is None or self.best is None or loss < self.best["loss"]:
            self.best = {**evaluation, "step": self.step}
            self.bad_evaluations = 0
        else:
            self.bad_evaluations += 1
