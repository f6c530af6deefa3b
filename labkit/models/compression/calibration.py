"""What text buys: codes chosen for the inputs that a layer really sees (GPTQ).

    text ──> model ──> inputs x of every layer ──> H = Σ x xᵀ  (I x I)
    w, H ──> column by column: round it, and let the columns that are not rounded yet make up for
             the error, as far as the inputs allow  ──> codes

What counts is not how far a matrix is from its codes, but how far its outputs are:

    Σ over inputs of |(W - Q) x|²  =  trace((W - Q) H (W - Q)ᵀ)

Rounding each weight to its nearest code ignores H. If two inputs go together, an error in the one
column can be taken back in the other. For two columns it is seen by hand: with e = w₁ - q₁ the best
second weight is w₂ + e H₁₂ / H₂₂. For more columns the same numbers are a row of the Cholesky
factor of H⁻¹.

It is greedy: better on the calibration text nearly always, not by a theorem, and for other text as
far as that is alike.

Legend: O outputs, I inputs, N positions of text, G groups, S columns of a group.

Sources: Frantar et al. 2023, arXiv:2210.17323, algorithm 1 (GPTQ); Hassibi & Stork 1992 (optimal
brain surgeon: the closed form of the correction).
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from labkit.batches import Batch
from labkit.errors import LabError
from labkit.models.compression.grids import Grid, Quantised, nearest, quantise
from labkit.models.compression.targets import chosen

#: Columns between two products with all columns to the right, where groups do not say it.
COLUMNS = 64


@torch.no_grad()
def second_moments(
    model: nn.Module, batches: Iterable[Batch], choose: Callable[[str], bool] | None = None
) -> dict[str, Tensor]:
    """H = Σ x xᵀ / N of every linear layer's inputs, by the layer's name.

    Takes 4 I² bytes a layer (all of smollm2's: 0.4 GB) and as much arithmetic as a layer of I
    outputs. Positions that `attention_mask` calls padding do not count.

    Args:
        model: labkit's or transformers', with its weights as they were.
        batches: what it is called with; `labels` are left out.
        choose: by name, which layers; None: all of the blocks.

    Raises:
        LabError: no batch, or no layer.
    """
    layers = chosen(model, choose)
    sums: dict[str, Tensor] = {}
    real_N: Tensor | None = None
    count = 0

    def listen(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x_NI = inputs[0].reshape(-1, inputs[0].shape[-1]).float()
            if real_N is not None:
                x_NI = x_NI[real_N]
            sums[name] = sums[name].addmm_(x_NI.T, x_NI) if name in sums else x_NI.T @ x_NI

        return hook

    hooks = [layer.register_forward_pre_hook(listen(name)) for name, layer in layers.items()]
    training = model.training
    model.eval()
    try:
        for batch in batches:
            inputs: dict[str, Any] = {k: v for k, v in batch.items() if k != "labels"}
            mask = inputs.get("attention_mask")
            real_N = None if mask is None else mask.flatten().bool()
            count += inputs["input_ids"].numel() if real_N is None else int(real_N.sum())
            model(**inputs)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    if not count:
        raise LabError("0 positions of text to calibrate with: give at least 1 batch")
    return {name: total / count for name, total in sums.items()}


def output_error(w_OI: Tensor, stored_OI: Tensor, moments_II: Tensor) -> float:
    """Mean over the text of |(W - Q) x|² / |W x|²: the share of the outputs' energy that is lost.

    Args:
        w_OI: the weights.
        stored_OI: what is kept of them, `Quantised.dequantise()` or pruned ones.
        moments_II: H of `second_moments`.
    """

    def energy(a_OI: Tensor) -> float:
        return float(((a_OI @ moments_II.double()) * a_OI).sum())

    whole = energy(w_OI.detach().double())
    return energy((w_OI - stored_OI).detach().double()) / whole if whole else 0.0


def gptq(w_OI: Tensor, moments_II: Tensor, grid: Grid, damping: float = 0.01) -> Quantised:
    """Codes for the inputs: each column's error is handed on to the columns after it.

    Grids of groups are laid when their first column comes, over what the columns have become by
    then; those of rows and of the whole matrix once, before.

    Args:
        w_OI: a matrix.
        moments_II: H of its inputs, from `second_moments`.
        grid: as in `grids.quantise`.
        damping: of the mean of H's diagonal, added to the diagonal: above 0 it can be inverted
            whatever the text was; larger values hand on less.

    Raises:
        LabError: shapes that do not fit, inputs that were all 0, damping below 0, or a H without an
            inverse.

    Source: Frantar et al. 2023, algorithm 1.
    """
    w_OI = w_OI.detach().float().clone()
    factor_II = _inverse_factor(moments_II, w_OI.shape[1], damping)
    width = grid.group if isinstance(grid.group, int) else COLUMNS
    laid = None if isinstance(grid.group, int) else quantise(w_OI, grid)
    column = Grid(grid.bits, "row", grid.symmetric)
    codes_OI = torch.empty_like(w_OI, dtype=torch.uint8)
    grids = []
    for start in range(0, w_OI.shape[1], width):
        stop = min(start + width, w_OI.shape[1])
        found = laid or quantise(w_OI[:, start:stop], column)
        grids.append(found)
        errors_OS = torch.empty_like(w_OI[:, start:stop])
        for i in range(start, stop):
            w_O1 = w_OI[:, i : i + 1]
            stored = nearest(w_O1, found.scales_OG, found.lowest_OG, column)
            codes_OI[:, i : i + 1] = stored.codes_OI
            error_O1 = (w_O1 - stored.dequantise()) / factor_II[i, i]
            w_OI[:, i + 1 : stop] -= error_O1 * factor_II[i, i + 1 : stop]
            errors_OS[:, i - start : i - start + 1] = error_O1
        w_OI[:, stop:] -= errors_OS @ factor_II[start:stop, stop:]
    if laid:
        return Quantised(codes_OI, laid.scales_OG, laid.lowest_OG, grid)
    lowest = None
    if not grid.symmetric:
        lowest = torch.cat([g.lowest_OG for g in grids if g.lowest_OG is not None], dim=1)
    return Quantised(codes_OI, torch.cat([g.scales_OG for g in grids], dim=1), lowest, grid)


def _inverse_factor(moments_II: Tensor, inputs: int, damping: float) -> Tensor:
    """Upper triangular U with UᵀU = (H + damping)⁻¹, fp32."""
    if moments_II.shape != (inputs, inputs):
        raise LabError(
            f"moments of shape {tuple(moments_II.shape)} for {inputs} inputs: give this layer's own"
        )
    if not damping >= 0:
        raise LabError(f"damping {damping} is out of range: choose 0 or more, 0.01 say")
    h_II = moments_II.double().clone()
    mean = float(h_II.diagonal().mean())
    if not mean > 0:
        raise LabError(
            f"the inputs' mean square is {mean}: calibrate with text that reaches the layer"
        )
    h_II.diagonal().add_(damping * mean)
    try:
        inverse_II = torch.cholesky_inverse(torch.linalg.cholesky(h_II))
        return torch.linalg.cholesky(inverse_II, upper=True).float()
    except torch.linalg.LinAlgError as error:
        raise LabError(
            f"the moments have no inverse with damping {damping}: give more text, or 0.01 and more"
        ) from error
