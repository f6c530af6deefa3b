"""Pruning single weights: which may go, and how they stay gone while the others learn again.

    weights ──> sizes |w| ──> the smallest go (one bound for the model, or one for each layer)
                          └─> 2:4: of every four neighbours of a row the two smallest go
    masks ──> weights · mask ──> kept(model, masks): train as always, pruned weights stay 0

The matrices keep their shape: zeros among numbers are read and multiplied like numbers. So this
makes a model smaller only where something stores or skips the zeros: a file that is compressed, a
kernel for sparse matrices, or a GPU's unit for 2:4, for which the pattern is made. What makes every
product smaller is `structured`.

Legend: O outputs, I inputs.

Sources: Han et al. 2015, arXiv:1506.02626 (prune, then retrain); Mishra et al. 2021,
arXiv:2104.08378 (2:4); Sun et al. 2024, arXiv:2306.11695 (Wanda: sizes times inputs).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from labkit.errors import LabError
from labkit.models.adapting.places import transposed
from labkit.models.compression.targets import chosen, linear_layers, matrix

Masks = dict[str, Tensor]
"""For each layer by name: bool, (O, I), True where a weight stays."""


def sizes(
    model: nn.Module,
    moments: Mapping[str, Tensor] | None = None,
    choose: Callable[[str], bool] | None = None,
) -> dict[str, Tensor]:
    """How much each weight of the blocks' linear layers matters: |w|, or |w| · RMS of its input.

    Args:
        model: labkit's or transformers'.
        moments: of `calibration.second_moments`, which know how large inputs are (Wanda); None: the
            weights alone.
        choose: by name, which layers; None: all.

    Returns:
        (O, I) of each layer, fp32.

    Raises:
        LabError: no layer, or one without moments.
    """
    found = {name: matrix(layer).float().abs() for name, layer in chosen(model, choose).items()}
    if moments is None:
        return found
    for name in found:
        if name not in moments:
            raise LabError(f"{name} has no moments: calibrate with the same choice of layers")
        found[name] = found[name] * moments[name].diagonal().clamp(min=0).sqrt()
    return found


def smallest(
    sizes: Mapping[str, Tensor], share: float, within: Literal["model", "layer", "row"] = "layer"
) -> Masks:
    """Masks without the given share of the weights, those of the smallest size.

    Args:
        sizes: of `sizes`.
        share: to be pruned, 0 to 1 (1 excluded).
        within: what is compared: all weights of the `model`, of a `layer`, or of a `row` (of what
            one output reads).

    Raises:
        LabError: a share out of range, an unknown `within`.

    >>> mask = smallest({"a": torch.tensor([[1.0, 3.0, 2.0, 4.0]])}, 0.5)["a"]
    >>> mask.int().tolist()
    [[0, 1, 0, 1]]
    """
    if not 0 <= share < 1:
        raise LabError(f"share {share} is out of range: choose 0 or more, below 1")
    if within == "layer":
        return {name: _keep(s.flatten(), share).view(s.shape) for name, s in sizes.items()}
    if within == "row":
        return {name: torch.stack([_keep(row, share) for row in s]) for name, s in sizes.items()}
    if within == "model":
        together = _keep(torch.cat([s.flatten() for s in sizes.values()]), share)
        parts = together.split([s.numel() for s in sizes.values()])
        return {n: p.view(s.shape) for (n, s), p in zip(sizes.items(), parts, strict=True)}
    raise LabError(f"within {within!r} is unknown: choose model, layer or row")


def two_of_four(sizes: Mapping[str, Tensor]) -> Masks:
    """Masks that keep the two largest of every four neighbours in a row.

    Raises:
        LabError: a row that is no whole number of fours.

    >>> two_of_four({"a": torch.tensor([[1.0, 3.0, 2.0, 4.0]])})["a"].int().tolist()
    [[0, 1, 0, 1]]
    """
    masks = {}
    for name, s_OI in sizes.items():
        if s_OI.shape[1] % 4:
            raise LabError(f"{name} has {s_OI.shape[1]} inputs: 2:4 needs a multiple of 4")
        s_N4 = s_OI.reshape(-1, 4)
        kept = torch.zeros_like(s_N4, dtype=torch.bool)
        masks[name] = kept.scatter_(1, s_N4.topk(2, dim=1).indices, True).view(s_OI.shape)
    return masks


def _keep(sizes_N: Tensor, share: float) -> Tensor:
    """True at all but the smallest, of equal ones the later; the number pruned is exact."""
    gone = sizes_N.sort(stable=True).indices[: round(share * sizes_N.numel())]
    kept = torch.ones_like(sizes_N, dtype=torch.bool)
    kept[gone] = False
    return kept


@torch.no_grad()
def prune(model: nn.Module, masks: Mapping[str, Tensor]) -> float:
    """Set the weights that masks leave out to 0, in place.

    Returns:
        The share of the masked layers' weights that is 0 now.

    Raises:
        LabError: a mask for a layer that is not there, or of another shape.
    """
    zeros = total = 0
    for weight, mask in _weights(model, masks):
        weight.mul_(mask)
        zeros += int((weight == 0).sum())
        total += weight.numel()
    return zeros / max(1, total)


@contextmanager
def kept(model: nn.Module, masks: Mapping[str, Tensor]) -> Iterator[None]:
    """Prunes; inside, training cannot bring the pruned weights back, whatever the optimiser does.

    Their gradients are 0, so they count in no norm and no moment; and after each step they are set
    to 0 again, because decay, momentum and Muon's rotation do not ask for gradients.

        with kept(model, masks):
            train(model, ...)

    Raises:
        LabError: as `prune`.
    """
    prune(model, masks)
    pairs = _weights(model, masks)

    def again(*_: Any) -> None:
        with torch.no_grad():
            for weight, mask in pairs:
                weight.mul_(mask.to(weight.device))

    def only(mask: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda gradient: gradient * mask.to(gradient.device)

    handles = [w.register_hook(only(mask)) for w, mask in pairs if w.requires_grad]
    handles.append(register_optimizer_step_post_hook(again))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _weights(model: nn.Module, masks: Mapping[str, Tensor]) -> list[tuple[Any, Tensor]]:
    """Each masked parameter with its mask, both as the layer stores them."""
    layers = linear_layers(model)
    pairs = []
    for name, mask in masks.items():
        if name not in layers:
            raise LabError(f"{type(model).__name__} has no linear layer {name!r} in its blocks")
        layer: Any = layers[name]
        mask = mask.t() if transposed(layer) else mask
        if mask.shape != layer.weight.shape:
            raise LabError(
                f"the mask of {name} has shape {tuple(mask.shape)} for weights of "
                f"{tuple(layer.weight.shape)}: make masks from this model's sizes"
            )
        pairs.append((layer.weight, mask.to(layer.weight.device)))
    return pairs
