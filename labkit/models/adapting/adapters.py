"""Adapters: a small net after each sublayer, before its output joins the residual stream.

    x ─┬─> attention ──> out ──> adapter ─> + ─┬─> feed-forward ──> down ──> adapter ─> +
       └───────────────────────────────────────┘└───────────────────────────────────────┘

    adapter:  h ─┬─> down (m) ──> GELU ──> up (D) ─> + ──> h        near the identity at first
                 └─────────────────────────────────────┘

The norms train along, as in the paper. Dropout comes after the adapter here; in the authors' code
it comes before.

Source: Houlsby et al. 2019, arXiv:1902.00751, sections 2.1 and 3.6.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from labkit.models.adapting.places import places, width
from labkit.models.adapting.settings import Strategy

#: Standard deviation of the first weights, cut at two of them: nearly the identity.
START = 1e-2


class Adapter(nn.Module):
    """h -> h + up(gelu(down(h))), D -> m -> D.

    Args:
        size: D.
        bottleneck: m.
        generator: draws the weights.
    """

    def __init__(self, size: int, bottleneck: int, generator: torch.Generator):
        super().__init__()
        self.down, self.up = nn.Linear(size, bottleneck), nn.Linear(bottleneck, size)
        for layer in (self.down, self.up):
            nn.init.trunc_normal_(
                layer.weight, std=START, a=-2 * START, b=2 * START, generator=generator
            )
            nn.init.zeros_(layer.bias)

    def forward(self, h_BTD: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        return h_BTD + self.up(F.gelu(self.down(h_BTD)))


def _adapt(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    adapter: Any = layer.adapter
    return adapter(output)


def add(model: nn.Module, strategy: Strategy) -> None:
    """Put an adapter after each sublayer of every block, in place: `<layer>.adapter`.

    Args:
        model: labkit's or transformers'.
        strategy: `width`, `seed`.

    Raises:
        LabError: the blocks are of no family that is known.
    """
    generator = torch.Generator().manual_seed(strategy.seed)
    for block in places(model):
        for place in block:
            if place.role in ("out", "down"):
                layer: Any = place.layer
                adapter = Adapter(width(layer)[1], strategy.width, generator)
                layer.adapter = adapter.to(layer.weight.device, layer.weight.dtype)
                layer.register_forward_hook(_adapt)


def remove(model: nn.Module) -> None:
    """Take the adapters out again."""
    for layer in [m for m in model.modules() if isinstance(getattr(m, "adapter", None), Adapter)]:
        del layer.adapter
        for key in [key for key, hook in layer._forward_hooks.items() if hook is _adapt]:
            del layer._forward_hooks[key]
