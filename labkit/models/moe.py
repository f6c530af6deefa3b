"""A mixture-of-experts layer: many feed-forward nets, of which each token visits k.

    x_ND ──> router ──> softmax p_NE ──> the k largest ──┐ sorted by expert
      └──────────────────────────────────────────────────┴──> expert e on its own tokens ──┐
                          y_n = sum over the k chosen of p_ne expert_e(x_n)  <─────────────┘

All parameters are kept, few work: a token costs what k experts cost. No token is dropped: tokens
are sorted by expert, and each expert multiplies one block of them. Left alone, a router tends to
send all tokens to a few experts; the balancing loss, E sum_e f_e P_e, is 1 where all are used
alike and E where one has everything (f_e: share of the choices, without a gradient; P_e: mean of
p_ne, with one).

Legend: N tokens, D model width, E experts, K experts for each token, B batch, T positions.

Sources: Shazeer et al. 2017, arXiv:1701.06538 (the layer); Fedus et al. 2021, arXiv:2101.03961,
equations 2 (p as the weight) and 4 (the balancing loss); Gale et al. 2022, arXiv:2211.15841
(dropless, by sorting); Jiang et al. 2024, arXiv:2401.04088 (weights divided by their sum).
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from labkit.errors import LabError
from labkit.models.config import TransformerConfig
from labkit.models.layers import FeedForward
from labkit.models.transformer import Transformer


class Routed(NamedTuple):
    """Where the tokens of the last forward pass went."""

    load_E: Tensor
    """(E,) share of the choices that each expert got; sums to 1."""
    balance: Tensor
    """E sum_e f_e P_e: 1 if all experts are used alike, up to E; has a gradient."""


class MixtureOfExperts(nn.Module):
    """In place of a feed-forward net: (B, T, D) -> (B, T, D)."""

    last: Routed | None

    def __init__(
        self, config: TransformerConfig, experts: int, chosen: int = 1, renormalise: bool = False
    ):
        """
        Args:
            config: D, and the width and activation of each expert.
            experts: E, at least 1.
            chosen: K, 1 to E.
            renormalise: divide the K weights by their sum. With K = 1 the weight is then 1 whatever
                the router says, and the task's loss teaches the router nothing.

        Raises:
            LabError: K is not in 1 .. E.
        """
        super().__init__()
        if not 1 <= chosen <= experts:
            raise LabError(f"chosen={chosen} of experts={experts}: choose 1 to {experts}")
        self.chosen, self.renormalise = chosen, renormalise
        self.router = nn.Linear(config.d_model, experts, bias=False)
        self.experts = nn.ModuleList(FeedForward(config) for _ in range(experts))
        self.last = None

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_ND = x_BTD.flatten(0, -2)
        p_NE = self._probabilities(x_ND)
        weight_NK, expert_NK = p_NE.topk(self.chosen, dim=-1)
        if self.renormalise:
            weight_NK = weight_NK / weight_NK.sum(-1, keepdim=True)
        count_E = torch.bincount(expert_NK.flatten(), minlength=len(self.experts))
        self.last = self._routed(p_NE, count_E)
        # One row for each choice, in blocks: first those of expert 0, then of expert 1, ...
        order = expert_NK.flatten().argsort(stable=True)
        token = order // self.chosen
        blocks = x_ND[token].split(count_E.tolist())
        found = [expert(block) for expert, block in zip(self.experts, blocks, strict=True)]
        weighted = torch.cat(found) * weight_NK.flatten()[order, None]
        y_ND = torch.zeros_like(x_ND, dtype=weighted.dtype).index_add(0, token, weighted)
        return y_ND.view_as(x_BTD)

    def _probabilities(self, x_ND: Tensor) -> Tensor:
        """In float32 at least, also under autocast (Fedus et al. 2021, section 2.4)."""
        dtype = torch.promote_types(x_ND.dtype, torch.float32)
        with torch.autocast(x_ND.device.type, enabled=False):
            return (x_ND.to(dtype) @ self.router.weight.to(dtype).T).softmax(-1)

    def _routed(self, p_NE: Tensor, count_E: Tensor) -> Routed:
        load_E = count_E / count_E.sum()
        return Routed(load_E, len(load_E) * (load_E * p_NE.mean(0)).sum())


def with_experts(
    model: Transformer,
    experts: int,
    chosen: int = 1,
    width: int | None = None,
    renormalise: bool = False,
) -> Transformer:
    """Replace the feed-forward net of every block by a mixture of experts, in place.

    Args:
        model: all its feed-forward nets go; the new ones start as they did (`Transformer`).
        experts: E of each layer.
        chosen: K of each layer.
        renormalise: as in `MixtureOfExperts`.
        width: of each expert; None: that of the net it replaces.

    Returns:
        The model.
    """
    config = model.config if width is None else replace(model.config, d_ff=width)
    into_stream = config.initializer_range / math.sqrt(2 * config.num_layers)
    for block in model.blocks:
        layer = MixtureOfExperts(config, experts, chosen, renormalise)
        for name, p in layer.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(p)
            else:
                down = name.endswith("down.weight")
                nn.init.normal_(p, std=into_stream if down else config.initializer_range)
        block.ffn = layer.to(next(block.parameters()).device)
    return model


def expert_layers(model: nn.Module) -> list[MixtureOfExperts]:
    """The mixture-of-experts layers of a model, in order."""
    return [module for module in model.modules() if isinstance(module, MixtureOfExperts)]


def active_parameters(model: nn.Module) -> int:
    """Parameters that one token reads: all but those of the experts that it does not visit."""
    idle = 0
    for layer in expert_layers(model):
        one = sum(p.numel() for p in layer.experts[0].parameters())
        idle += one * (len(layer.experts) - layer.chosen)
    return sum(p.numel() for p in model.parameters()) - idle


def load_entropy(load_E: Tensor | Sequence[float]) -> float:
    """How many experts are used, as the exponential of the load's entropy: 1 to E.

    >>> load_entropy([0.5, 0.5, 0.0, 0.0])
    2.0
    """
    load = torch.as_tensor(load_E, dtype=torch.float64)
    return float(torch.special.entr(load).sum().exp())
