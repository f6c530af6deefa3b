"""What a strategy of fine-tuning can be told. Imports no torch: the command line is made from it.

Strategy("lora", rank=8)  ──> strategies.apply(model, ...)
labkit finetune --strategy lora --rank 8  ──> the same object

existing weights    full, layerwise: all;  encoder, head, last_k, feed_forward, bitfit: some
new weights         adapters, lora: inside the blocks;  prompt, prefix: before the text
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from labkit.errors import LabError

Name = Literal[
    "full", "encoder", "head", "last_k", "feed_forward", "bitfit", "layerwise", "adapters", "lora",
    "prompt", "prefix",
]  # fmt: skip
NAMES: tuple[str, ...] = get_args(Name)
#: What LoRA can be put on; `qkv` is one pair over all three, where a model stacks them.
TARGETS = ("q", "k", "v", "qkv", "out", "gate", "up", "down")


@dataclass(frozen=True)
class Strategy:
    """One strategy and its sizes; a size that the strategy does not have is not looked at."""

    name: Name = "full"
    """Which parameters train: see `strategies`."""
    last: int = 1
    """last_k: blocks from the top that train, at least 1."""
    decay: float = 0.8
    """layerwise: rate of a block / rate of the block above it, in (0, 1]."""
    width: int = 32
    """adapters: width of each bottleneck, at least 1."""
    rank: int = 8
    """lora: rank of what is added to a matrix, at least 1."""
    alpha: float = 16.0
    """lora: what is added is scaled by alpha / rank; above 0."""
    targets: tuple[str, ...] = ("q", "v")
    """lora: the matrices of each block to which something is added, of `TARGETS`."""
    length: int = 20
    """prompt, prefix: learned positions before the text, at least 1."""
    projection: bool = False
    """prefix: while training, keys and values come from a net of two layers."""
    seed: int = 0
    """Of the new weights, 0 or more."""

    def __post_init__(self) -> None:
        def demand(name: str, good: bool, allowed: str) -> None:
            if not good:
                raise LabError(f"{name} {getattr(self, name)!r} is out of range: choose {allowed}")

        if self.name not in NAMES:
            raise LabError(f"strategy {self.name!r} is unknown: choose one of {', '.join(NAMES)}.")
        for name in ("last", "width", "rank", "length"):
            demand(name, getattr(self, name) >= 1, "at least 1")
        demand("decay", 0 < self.decay <= 1, "a number in (0, 1]")
        demand("alpha", 0 < self.alpha < math.inf, "a number above 0")
        known = len(self.targets) > 0 and set(self.targets) <= set(TARGETS)
        demand("targets", known, f"one or more of {', '.join(TARGETS)}")
        both = "qkv" in self.targets and bool(set(self.targets) & {"q", "k", "v"})
        demand("targets", not both, "either qkv, one pair over all three, or q, k and v")
        demand("seed", self.seed >= 0, "0 or more")


#: Strategies that put new weights into a model.
ADDING = ("adapters", "lora", "prompt", "prefix")
#: Those of them after which no plain model computes the same.
INSEPARABLE = ("adapters", "prompt", "prefix")
#: Strategies that train so little that it is worth a file of its own.
SMALL = ("head", "bitfit", *ADDING)
