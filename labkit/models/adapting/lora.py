"""LoRA: what fine-tuning adds to a matrix, as a product of two thin ones.

    x ──┬──> W x + b ─────────────────────> + ──> y        W stays, A and B train
        └──> A x (rank) ──> B A x ── alpha / rank ─┘       B starts at 0: at first nothing is added

    merge: W + (alpha / rank) B A is a plain matrix again, and costs nothing more at use.

A layer that computes several projections at once gets a pair A, B for each that is named, so that
it equals a model in which they stand apart.

Source: Hu et al. 2022, arXiv:2106.09685, section 4.1.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from labkit.errors import LabError
from labkit.models.adapting.places import places, transposed, width
from labkit.models.adapting.settings import Strategy


class LowRank(nn.Module):
    """x -> (alpha / rank) B A x.

    Args:
        inputs, outputs: widths of the projection.
        strategy: its rank and alpha.
        generator: draws A, as a linear layer of torch begins; B is 0.
    """

    def __init__(self, inputs: int, outputs: int, strategy: Strategy, generator: torch.Generator):
        super().__init__()
        self.A = nn.Parameter(torch.empty(strategy.rank, inputs))
        self.B = nn.Parameter(torch.zeros(outputs, strategy.rank))
        self.scale = strategy.alpha / strategy.rank
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5), generator=generator)

    def forward(self, x: Float[Tensor, "... I"]) -> Float[Tensor, "... O"]:
        return F.linear(F.linear(x, self.A), self.B) * self.scale

    def matrix(self) -> Float[Tensor, "O I"]:
        """What is added to the weights: (alpha / rank) B A."""
        return self.B @ self.A * self.scale


class LoRA(nn.Module):
    """The pairs of one layer, each beside the outputs that it adds to.

    Args:
        outputs: of the layer.
        pairs: by role.
        ranges: of each role's outputs.
    """

    def __init__(self, outputs: int, pairs: dict[str, LowRank], ranges: dict[str, tuple[int, int]]):
        super().__init__()
        self.outputs, self.ranges = outputs, ranges
        self.pairs = nn.ModuleDict(pairs)

    def forward(self, x: Float[Tensor, "... I"]) -> Float[Tensor, "... O"]:
        if list(self.ranges.values()) == [(0, self.outputs)]:
            return self.pairs[next(iter(self.ranges))](x)
        parts, end = [], 0
        for role, (start, stop) in self.ranges.items():
            added = self.pairs[role](x)
            parts += [added.new_zeros(*added.shape[:-1], start - end), added]
            end = stop
        rest = parts[-1].new_zeros(*x.shape[:-1], self.outputs - end)
        return torch.cat([*parts, rest], dim=-1)

    @torch.no_grad()
    def add_to(self, layer: nn.Module) -> None:
        """Add every pair to the layer's weights, in place."""
        rows: Any = layer.weight.T if transposed(layer) else layer.weight  # type: ignore
        for role, (start, stop) in self.ranges.items():
            pair: Any = self.pairs[role]
            rows[start:stop] += pair.matrix()


def _add(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    lora: Any = layer.lora
    return output + lora(inputs[0])


def add(model: nn.Module, strategy: Strategy) -> None:
    """Put LoRA on the projections that a strategy names, in every block; in place.

    The model computes what it computed, until the pairs are trained. Names and values of its own
    parameters stay; the new ones are `<layer>.lora.pairs.<role>.A` and `.B`.

    Args:
        model: labkit's or transformers'.
        strategy: `rank`, `alpha`, `targets`, `seed`.

    Raises:
        LabError: the model has none of one of the targets.
    """
    generator = torch.Generator().manual_seed(strategy.seed)
    everywhere = places(model)
    for target in strategy.targets:
        if not any(place.role == target for block in everywhere for place in block):
            has = sorted({place.role for block in everywhere for place in block})
            raise LabError(
                f"target {target!r} is in no block of {type(model).__name__}: choose of "
                f"{', '.join(has)}"
            )
    for block in everywhere:
        chosen: dict[nn.Module, dict[str, tuple[int, int]]] = {}
        for place in block:
            if place.role in strategy.targets:
                chosen.setdefault(place.layer, {})[place.role] = place.outputs
        for layer, ranges in chosen.items():
            inputs, outputs = width(layer)
            pairs = {
                role: LowRank(inputs, stop - start, strategy, generator)
                for role, (start, stop) in ranges.items()
            }
            weight: Any = layer.weight
            layer.lora = LoRA(outputs, pairs, ranges).to(weight.device, weight.dtype)
            layer.register_forward_hook(_add)


def layers(model: nn.Module) -> list[Any]:
    """The layers that have LoRA."""
    return [m for m in model.modules() if isinstance(getattr(m, "lora", None), LoRA)]


def remove(model: nn.Module) -> None:
    """Take LoRA off, unmerged: the model is what it was before."""
    for layer in layers(model):
        del layer.lora
        for key in [key for key, hook in layer._forward_hooks.items() if hook is _add]:
            del layer._forward_hooks[key]


def merge(model: nn.Module) -> None:
    """Fold LoRA into the weights, in place: a plain model with the same outputs.

    Raises:
        LabError: the model has no LoRA.
    """
    found = layers(model)
    if not found:
        raise LabError(f"{type(model).__name__} has 0 layers with LoRA: there is nothing to merge")
    for layer in found:
        layer.lora.add_to(layer)
    remove(model)


@contextmanager
def merged(model: nn.Module) -> Iterator[None]:
    """Inside, LoRA is folded into the weights (if there is any); afterwards all is to the bit as
    before, which taking the product off again would not be."""
    kept = [(layer, layer.lora, layer.weight.detach().clone()) for layer in layers(model)]
    if kept:
        merge(model)
    try:
        yield
    finally:
        for layer, lora, weight in kept:
            with torch.no_grad():
                layer.weight.copy_(weight)
            layer.lora = lora
            layer.register_forward_hook(_add)
