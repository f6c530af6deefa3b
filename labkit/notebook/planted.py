"""Eleven runs of one small decoder, a healthy one and ten with a bug each: chapter 21's patients.

    Ward(sizes) ──> ward.patient(n)  n = 0 healthy, 1 to 10: a bug, in an order that says nothing
                       ├──> .model .objective .batches .config   as they are before the run
                       └──> .train()  ──> Course: losses, validation, the trained model, the hook

Spoilers below: who wants to find the bugs does not read on.
"""

import copy
import dataclasses
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from labkit.batches import Batch, Batches, Example, Pad
from labkit.errors import LabError
from labkit.models import Transformer, TransformerConfig
from labkit.objectives import causal_lm
from labkit.optim import optimizers
from labkit.text import Tokenizer, storyworld, train_bpe
from labkit.training import Diagnostics, TrainConfig, train

#: What can be wrong with a patient, in no order.
BUGS = (
    "shift", "mask", "denominator", "rate", "decay", "mode", "order", "precision", "detached",
    "leak",
)  # fmt: skip
#: Which of them patient 1, 2, ... has.
_CHART = (
    "decay", "leak", "shift", "mode", "mask", "rate", "detached", "denominator", "order",
    "precision",
)  # fmt: skip


class Course(NamedTuple):
    """How a run went."""

    losses: list[float]
    """Of each update, as the run reports them, nats per target."""
    validation: list[tuple[int, float]]
    """(update, nats per target), as the run reports them."""
    model: nn.Module
    """As it was trained."""
    hook: Diagnostics
    """What watched it."""


@dataclasses.dataclass(frozen=True)
class Patient:
    """A run before it begins. Its parts are used, not read."""

    number: int
    model: nn.Module
    objective: Callable[[nn.Module, Batch], tuple[Tensor, Tensor]]
    batches: Batches
    validation: Batches
    config: TrainConfig
    _bug: str = ""

    def train(self, every: int = 20) -> Course:
        """Run it, on a copy of its model.

        Args:
            every: updates between the hook's readings, at least 1.
        """
        model = _plant_in_model(copy.deepcopy(self.model), self._bug)
        hook = Diagnostics(model, every=every, batches=self.batches)
        seen: list[tuple[int, float]] = []
        losses: list[float] = []

        def watch(record: Any) -> None:
            hook(record)
            losses.append(record.loss)
            if record.validation is not None:
                seen.append((record.step, record.validation["loss"]))

        with _decayed(self._bug == "decay"):
            train(model, self.objective, self.batches, self.config, validation=self.validation,
                  on_step=watch)  # fmt: skip
        return Course(losses, seen, model, hook)

    def fresh(self) -> nn.Module:
        """Its model as it is before the run, bug and all, to be examined."""
        return _plant_in_model(copy.deepcopy(self.model), self._bug).train()


class Ward:
    """The stories, the tokenizer and the sizes that all patients share."""

    def __init__(
        self,
        *,
        stories: int = 400,
        held: int = 60,
        vocab_size: int = 320,
        length: int = 96,
        width: int = 64,
        layers: int = 2,
        batch: int = 16,
        updates: int = 200,
        learning_rate: float = 3e-3,
    ):
        """
        Args:
            stories, held: of `storyworld` to train on; to judge by, and as many again kept fresh.
            vocab_size, length: of the tokenizer; of the longest story, tokens. Stories are cut at
                half of it to the whole, so that batches hold padding.
            width, layers: of the decoder.
            batch, updates, learning_rate: of each run.
        """
        told = [s.text for s in storyworld.stories(stories + 2 * held)]
        self.tokenizer: Tokenizer = train_bpe(told[:stories], vocab_size)
        self.length = length
        encoded = [
            [self.tokenizer.end_of_text_id, *ids][: length + 1 - 37 * i % (length // 2)]
            for i, ids in enumerate(self.tokenizer.encode_batch(told))
        ]
        self.train_ids, self.held_ids = encoded[:stories], encoded[stories : stories + held]
        self.fresh_ids = encoded[stories + held :]
        self.shape = {
            "vocab_size": self.tokenizer.vocab_size, "context_length": length, "d_model": width,
            "num_layers": layers, "num_heads": max(1, width // 32), "dropout": 0.1,
        }  # fmt: skip
        self.batch = batch
        self.config = TrainConfig(
            steps=updates, learning_rate=learning_rate, warmup_steps=max(1, updates // 20),
            weight_decay=1.0, eval_every=max(1, updates // 8), device="cpu", precision="fp32",
        )  # fmt: skip

    def patient(self, number: int, seed: int = 0) -> Patient:
        """A run, ready to begin.

        Args:
            number: 0: healthy; 1 to 10: one of `BUGS` each.
            seed: of weights, order and dropout.

        Raises:
            LabError: there is no such number.
        """
        if not 0 <= number <= len(_CHART):
            raise LabError(f"patient {number} is out of range: choose 0 to {len(_CHART)}")
        bug = _CHART[number - 1] if number else ""
        torch.manual_seed(seed)
        model = Transformer(TransformerConfig.llama(**self.shape))
        ids = self.train_ids + 8 * self.held_ids if bug == "leak" else self.train_ids
        pad = Pad(self.tokenizer.pad_id)
        kind = _Restarted if bug == "order" else Batches
        ahead = [2 if bug == "shift" and i % 40 == 0 else 1 for i in range(len(ids))]
        batches = kind([*map(_example, ids, ahead)], self.batch, pad, seed=seed)
        judged = Batches(self.examples(), self.batch, pad)
        settings: dict[str, Any] = {"seed": seed}
        if bug == "rate":
            settings["warmup_steps"] = 3 * self.config.steps // 5
        config = dataclasses.replace(self.config, **settings)
        return Patient(number, model, _OBJECTIVES.get(bug, causal_lm), batches, judged, config, bug)

    def examples(self, fresh: bool = False) -> list[Example]:
        """The held-out stories, or as many that no patient ever saw, as right examples."""
        return [_example(row) for row in (self.fresh_ids if fresh else self.held_ids)]


def _example(ids: list[int], ahead: int = 1) -> Example:
    row = torch.tensor(ids)
    return {"input_ids": row[:-ahead], "labels": row[ahead:]}


def _plant_in_model(model: nn.Module, bug: str) -> nn.Module:
    if bug == "precision":
        return model.bfloat16()
    if bug == "detached":  # hooks, which copies of the model keep
        first: Any = model.blocks[0]  # pyright: ignore
        first.attention.register_forward_hook(lambda module, given, out: out.detach())
    if bug == "mask":
        last: Any = model.blocks[-1]  # pyright: ignore
        last.attention.register_forward_pre_hook(_generous)
    return model


def _generous(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    """Every fourth position sees one place too far, as where a mask is built in blocks."""
    x_BTD, _, _, *rest = given
    T = x_BTD.shape[1]
    mask_TS = torch.ones(T, T, dtype=torch.bool, device=x_BTD.device).tril()
    mask_TS[3::4] |= torch.ones_like(mask_TS).tril(1)[3::4]
    return x_BTD, mask_TS, False, *rest


def _all_count(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    loss_sum, _ = causal_lm(model, batch)
    return loss_sum, batch["labels"].new_tensor(batch["labels"].numel())


def _resting(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    model.eval()
    return causal_lm(model, batch)


_OBJECTIVES = {"denominator": _all_count, "mode": _resting}


class _Restarted(Batches):
    """A loader that is made anew every ten updates, with the same seed."""

    def indices(self, step: int) -> list[int]:
        return super().indices(step % 10)


@contextmanager
def _decayed(wanted: bool) -> Any:
    """Inside, vectors decay like matrices."""
    honest = optimizers.parameter_groups

    def groups(model: nn.Module, weight_decay: float) -> list[dict]:
        return [g | {"weight_decay": weight_decay} for g in honest(model, weight_decay)]

    try:
        if wanted:
            optimizers.parameter_groups = groups
        yield
    finally:
        optimizers.parameter_groups = honest


def diagnosis(number: int) -> str:
    """What patient `number` has: for the checkers."""
    return _CHART[number - 1]


def exchange_test(first_N: np.ndarray, second_M: np.ndarray, draws: int = 2000) -> float:
    """P that two samples from one source differ so much in their means, by exchanging members.

    Args:
        first_N, second_M: a number a document, such as its mean loss.
        draws: random exchanges.

    Source: Good 2005, Permutation, Parametric and Bootstrap Tests of Hypotheses, chapter 3.
    """
    pooled = np.concatenate([np.asarray(first_N, float), np.asarray(second_M, float)])
    n, rng = len(first_N), np.random.default_rng(0)

    def gap(values: np.ndarray) -> float:
        return float(abs(values[:n].mean() - values[n:].mean()))

    seen = gap(pooled)
    as_far = sum(gap(rng.permutation(pooled)) >= seen - 1e-12 for _ in range(draws))
    return (1 + as_far) / (1 + draws)
