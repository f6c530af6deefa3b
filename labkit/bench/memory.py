"""Peak memory and time of a full fine-tuning update at GPT-2's size (124 M), batch 8 x 512.

Each contestant has a process of its own, so that its peak is its own:
    python -m labkit.bench.memory CONTESTANT
prints {"peak_gb": ..., "seconds": ...}. Peak is what the process held at most, Python and torch
included; on a GPU, what torch allocated there.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from labkit import runtime
from labkit.batches import Batches, Windows
from labkit.bench.pretraining import Unshifted
from labkit.bench.rivals import labkit_moments, trainer_moments
from labkit.errors import LabError
from labkit.models import huggingface
from labkit.models.config import TransformerConfig
from labkit.models.transformer import Transformer
from labkit.objectives import tasks as objectives

BATCH, LENGTH, STEPS = 8, 512, 3


def _model(smaller: bool) -> Transformer:
    torch.manual_seed(0)
    shape = {"d_model": 64, "num_layers": 2, "num_heads": 2} if smaller else {}
    return Transformer(TransformerConfig.gpt2(dropout=0.0, **shape))


def _tokens(config: TransformerConfig) -> np.ndarray:
    count = BATCH * LENGTH * STEPS + 1
    return np.random.default_rng(0).integers(config.vocab_size, size=count)


def _labkit(micro_batch_size: int | None = None, checkpointing: bool = False) -> Callable:
    def run(half: str, smaller: bool) -> list[float]:
        model = _model(smaller)
        model.gradient_checkpointing = checkpointing
        data = Batches(Windows(_tokens(model.config), LENGTH), BATCH, shuffle=False)
        return labkit_moments(
            model,
            objectives.causal_lm,
            data,
            STEPS,
            precision=half,
            micro_batch_size=micro_batch_size,
        )

    return run


def _trainer(**settings: Any) -> Callable:
    def run(half: str, smaller: bool) -> list[float]:
        ours = _model(smaller)
        data = Unshifted(_tokens(ours.config), LENGTH)
        model = huggingface.to_huggingface(ours)
        del ours
        return trainer_moments(model, data, STEPS, BATCH, half, **settings)

    return run


CONTESTANTS: dict[str, Callable[[str, bool], list[float]]] = {
    "Trainer": _trainer(),
    "Trainer, gradient checkpointing": _trainer(gradient_checkpointing=True),
    "labkit": _labkit(),
    "labkit, gradient checkpointing": _labkit(checkpointing=True),
    "labkit, micro-batches of 1": _labkit(micro_batch_size=1),
    "labkit, both": _labkit(micro_batch_size=1, checkpointing=True),
}


def measure(name: str, smaller: bool = False) -> dict[str, float]:
    """Run a contestant in a process of its own.

    Args:
        name: one of `CONTESTANTS`.
        smaller: a model of 3 M parameters, to see that it runs.

    Returns:
        `peak_gb` (10^9 bytes) and `seconds`, the median of an update after the first.

    Raises:
        LabError: the process failed; with the last line that it wrote.
    """
    command = [sys.executable, "-m", "labkit.bench.memory", name, *(["--smaller"] * smaller)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["nothing was written"])[-1]
        raise LabError(f"measuring {name!r} ended with exit code {done.returncode}: {last}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _main(name: str, smaller: bool) -> None:
    device = runtime.pick_device()
    moments = CONTESTANTS[name](runtime.pick_precision(device), smaller)
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
    else:
        peak = runtime.peak_rss_bytes()
    seconds = float(np.median(np.diff(moments)[1:]))
    print(json.dumps({"peak_gb": peak / 1e9, "seconds": seconds}))


if __name__ == "__main__":
    _main(sys.argv[1], "--smaller" in sys.argv[2:])
