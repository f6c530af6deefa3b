"""Tokens per second of a decoder: labkit, `transformers.Trainer`, and the loop of a tutorial."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from labkit.batches import Batches, Windows
from labkit.bench.rivals import labkit_moments, trainer_moments
from labkit.models import huggingface
from labkit.models.config import TransformerConfig
from labkit.models.transformer import Transformer
from labkit.objectives import tasks as objectives


@dataclass(frozen=True)
class Sizes:
    """A decoder and what it reads."""

    config: TransformerConfig
    batch_size: int
    """Windows of config.context_length tokens in an update."""
    steps: int
    """Timed updates of each contestant in each round, after one that is not counted."""

    @property
    def tokens(self) -> int:
        """Tokens in an update."""
        return self.batch_size * self.config.context_length


FULL = Sizes(
    TransformerConfig.llama(
        vocab_size=4096, context_length=256, d_model=384, num_layers=6, num_heads=6
    ),
    batch_size=32,
    steps=4,
)
QUICK = Sizes(
    TransformerConfig.llama(
        vocab_size=512, context_length=64, d_model=64, num_layers=2, num_heads=2
    ),
    batch_size=8,
    steps=2,
)


def decoder(sizes: Sizes) -> Transformer:
    """The model of all contestants, with the same first weights."""
    torch.manual_seed(0)
    return Transformer(sizes.config)


def windows(sizes: Sizes) -> Windows:
    """Random tokens: speed does not depend on what they say."""
    count = sizes.tokens * (sizes.steps + 1) + 1
    tokens = np.random.default_rng(0).integers(sizes.config.vocab_size, size=count)
    return Windows(tokens, sizes.config.context_length)


def contestants(sizes: Sizes, half: str, compiled: bool) -> dict[str, Callable[[], list[float]]]:
    """Name -> a function that trains for a few updates and returns the seconds of each.

    Args:
        sizes: the problem.
        half: the 16-bit format of this machine, or fp32.
        compiled: also both under torch.compile (needs a C++ compiler).
    """
    entries = {
        f"labkit {half}": _labkit(sizes, precision=half),
        f"Trainer {half}": _trainer(sizes, half),
        f"Trainer {half}, written-out attention": _trainer(sizes, half, attention="eager"),
        "labkit fp32": _labkit(sizes, precision="fp32"),
        "plain fp32 loop": _plain_loop(sizes),
    }
    if compiled:
        entries[f"labkit {half}, compiled"] = _labkit(sizes, precision=half, compile=True)
        entries[f"Trainer {half}, compiled"] = _trainer(sizes, half, torch_compile=True)
        entries[f"Trainer {half}, compiled, written-out attention"] = _trainer(
            sizes, half, attention="eager", torch_compile=True
        )
    return entries


def _labkit(sizes: Sizes, **settings: Any) -> Callable[[], list[float]]:
    model, data = decoder(sizes), Batches(windows(sizes), sizes.batch_size, shuffle=False)

    def run() -> list[float]:
        moments = labkit_moments(model, objectives.causal_lm, data, sizes.steps + 1, **settings)
        return np.diff(moments)[1:].tolist()

    return run


class Unshifted(Windows):
    """The Trainer's models shift the targets themselves."""

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = super().__getitem__(index)["input_ids"]
        return {"input_ids": ids, "labels": ids}


def _trainer(
    sizes: Sizes, precision: str, attention: str = "sdpa", **settings: Any
) -> Callable[[], list[float]]:
    model = huggingface.to_huggingface(decoder(sizes))
    model.set_attn_implementation(attention)
    data = Unshifted(windows(sizes).tokens, sizes.config.context_length)

    def run() -> list[float]:
        moments = trainer_moments(
            model, data, sizes.steps + 1, sizes.batch_size, precision, **settings
        )
        return np.diff(moments)[1:].tolist()

    return run


def _plain_loop(sizes: Sizes) -> Callable[[], list[float]]:
    """The loop of a small tutorial: fp32, all logits at once, torch's default AdamW."""
    model = decoder(sizes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    data = Batches(windows(sizes), sizes.batch_size, shuffle=False)

    def run() -> list[float]:
        moments = []
        for step in range(sizes.steps + 1):
            (batch,) = data.micro_batches(step)
            logits = model(batch["input_ids"]).logits
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            moments.append(time.perf_counter())
        return np.diff(moments).tolist()

    return run
