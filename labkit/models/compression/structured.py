"""Structured pruning: whole units and heads go, and an ordinary, smaller model is left.

    feed-forward unit j:  row j of up (and gate), column j of down       d_ff becomes smaller
    key-value group g:    rows of its keys, values and H/G queries,      num_heads, num_kv_heads
                          columns of the output matrix                   become smaller, K stays

    what j writes into the stream:  h_j · down[:, j]   size: RMS(h_j) · |down[:, j]|

Every block loses equally many, so that one config says the shape: the model is saved, opened and
trained like any other, and each product is smaller by the share that went.

What a unit wrote can partly be written by those that stay: the best new output matrix for a text
is a least-squares problem (`refit`).

Legend: O outputs, I inputs, F feed-forward units, H heads, G key-value heads, K head width.

Sources: Michel et al. 2019, arXiv:1905.10650 (heads); Li et al. 2017, arXiv:1608.08710 (units by
size); Ma et al. 2023, arXiv:2305.11627 (coupled structures of a Llama).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from labkit.errors import LabError
from labkit.models.transformer import Transformer


@torch.no_grad()
def prune_units(
    model: Transformer,
    keep: int,
    moments: Mapping[str, Tensor] | None = None,
    refit: bool = False,
) -> None:
    """Leave the `keep` most important feed-forward units of every block, in place.

    Args:
        model: labkit's.
        keep: units of a block that stay, 1 to d_ff.
        moments: of `second_moments` of the `ffn.down` layers: how large each unit gets on text.
            None: the sizes of its rows and its column, multiplied.
        refit: let the kept units write, as well as they can, what the others wrote; needs moments.

    Raises:
        LabError: another kind of model, a number out of range, moments missing.
    """
    width = _check(model).ffn_width
    _in_range("keep", keep, width)
    for number, block in enumerate(model.blocks):
        ffn: Any = block.ffn
        seen = _moments(moments, f"blocks.{number}.ffn.down", refit)
        rows_NFI = ffn.up.weight.view(-1, width, ffn.up.in_features)
        if seen is None:
            into_F = rows_NFI.norm(dim=-1).prod(0)
        else:
            into_F = seen.diagonal().clamp(min=0).sqrt()
        kept = _largest(into_F * ffn.down.weight.norm(dim=0), keep)
        stack = torch.cat([kept + i * width for i in range(len(rows_NFI))])
        _take_rows(ffn.up, stack, (keep,) * len(rows_NFI))
        _take_columns(ffn.down, kept, seen if refit else None)
    model.config = dataclasses.replace(model.config, d_ff=keep)


@torch.no_grad()
def prune_heads(
    model: Transformer,
    keep: int,
    moments: Mapping[str, Tensor] | None = None,
    refit: bool = False,
) -> None:
    """Leave the `keep` most important key-value heads of every block, with their queries; in place.

    Without grouped queries that are heads. A head's importance is the size of what it writes into
    the stream: the norm of its part of the output matrix, with moments times what it reads there.

    Args:
        model: labkit's.
        keep: key-value heads of a block that stay, 1 to G.
        moments: of `second_moments` of the `attention.out` layers.
        refit: as in `prune_units`.

    Raises:
        LabError: as in `prune_units`.
    """
    config = _check(model)
    H, G, K = config.num_heads, config.kv_heads, config.head_width
    _in_range("keep", keep, G)
    queries = H // G * K  # columns of the output matrix that one group writes
    for number, block in enumerate(model.blocks):
        attention: Any = block.attention
        seen = _moments(moments, f"blocks.{number}.attention.out", refit)
        written_OGX = attention.out.weight.view(-1, G, queries)
        if seen is None:
            size_G = written_OGX.square().sum((0, 2))
        else:  # the energy of W_g x_g: trace(W_g H_gg W_gᵀ)
            parts = [seen[g * queries :, g * queries :][:queries, :queries] for g in range(G)]
            size_G = torch.stack(
                [
                    ((written_OGX[:, g] @ part) * written_OGX[:, g]).sum()
                    for g, part in enumerate(parts)
                ]
            )
        groups = _largest(size_G, keep)
        q = _spread(groups, queries)
        k = H * K + _spread(groups, K)
        rows = torch.cat([q, k, k + G * K])
        _take_rows(attention.qkv, rows, (len(q), len(k), len(k)))
        _take_columns(attention.out, q, seen if refit else None)
        attention.num_heads, attention.num_kv_heads = H // G * keep, keep
    model.config = dataclasses.replace(config, num_heads=H // G * keep, num_kv_heads=keep, d_head=K)


def refit(w_OI: Tensor, moments_II: Tensor, kept: Tensor, damping: float = 0.01) -> Tensor:
    """The output matrix over the kept inputs whose outputs are nearest to those of the whole one.

    Minimises Σ |W x - W' x_kept|² + λ |W' - W[:, kept]|² over the text of the moments: there never
    worse than W[:, kept], whatever λ is. Little text needs a λ, or it is learned by heart.

    Args:
        w_OI: the whole matrix.
        moments_II: H of its inputs.
        kept: their numbers.
        damping: λ as a share of the mean of H's diagonal, 0 or more.

    Returns:
        (O, number kept), fp32: W[:, kept] + W[:, gone] H[gone, kept] (H[kept, kept] + λ)⁻¹.
    """
    h_II, w_OI = moments_II.double(), w_OI.double()
    gone = torch.ones(len(h_II), dtype=torch.bool, device=h_II.device)
    gone[kept] = False
    small = h_II[kept][:, kept]
    small.diagonal().add_(damping * float(h_II.diagonal().mean()) + 1e-30)
    missed_OI = w_OI[:, gone] @ h_II[gone][:, kept]
    return (w_OI[:, kept] + torch.linalg.solve(small, missed_OI.T).T).float()


def _check(model: nn.Module) -> Any:
    if not isinstance(model, Transformer):
        raise LabError(
            f"{type(model).__name__} cannot lose units or heads here: open it as labkit's "
            "(from_huggingface)"
        )
    return model.config


def _in_range(name: str, value: int, largest: int) -> None:
    if not 1 <= value <= largest:
        raise LabError(f"{name} {value} is out of range: choose 1 to {largest}")


def _moments(moments: Mapping[str, Tensor] | None, name: str, refit: bool) -> Tensor | None:
    if moments is None:
        if refit:
            raise LabError("refit needs the moments of text: give those of second_moments")
        return None
    if name not in moments:
        raise LabError(f"{name} has no moments: calibrate all layers of its kind")
    return moments[name]


def _largest(sizes: Tensor, count: int) -> Tensor:
    return sizes.topk(count).indices.sort().values


def _spread(numbers: Tensor, width: int) -> Tensor:
    """The `width` rows of each number, one behind the other."""
    return (numbers[:, None] * width + torch.arange(width, device=numbers.device)).flatten()


def _take_rows(layer: Any, rows: Tensor, parts: tuple[int, ...]) -> None:
    layer.weight = nn.Parameter(layer.weight[rows].clone(), layer.weight.requires_grad)
    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias[rows].clone(), layer.bias.requires_grad)
    layer.out_features, layer.rows = len(rows), parts


def _take_columns(layer: Any, columns: Tensor, moments_II: Tensor | None) -> None:
    weight = layer.weight
    fitted = (
        weight[:, columns].clone() if moments_II is None else refit(weight, moments_II, columns)
    )
    layer.weight = nn.Parameter(fitted.to(weight.dtype), weight.requires_grad)
    layer.in_features = len(columns)
