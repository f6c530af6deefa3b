"""Products that compute with codes, on a CPU: fewer bytes to read become less time.

    StoredLinear, 4 bits, groups of 32 to 256 ──> Int4Linear   one token: reads 4 bits a weight
    StoredLinear, 8 bits, a scale for each row ─> Int8Linear   many tokens: int8 x int8 -> int32

    Int4Linear   weights alone are quantised; inside the product they become bf16, and so do the
                 inputs: its result is that of the stored weights, rounded as bf16 rounds
    Int8Linear   each input vector is quantised, too: x ≈ a q_x with a = max|x| / 127, so that the
                 whole sum is one of whole numbers:  y = a · s · (q_x · q_w)

When one token is computed the time goes into reading weights, when many are it goes into
multiplying. That decides which of the two helps (measured: docs/LOG.md).

A few columns of a language model's inputs are far larger than the others, and `a` follows them:
8 bits for inputs can cost more than 8 bits for weights do. In smollm2 they do (docs/LOG.md).

Legend: O outputs, I inputs, G groups of a row, N positions.

Sources: Dettmers et al. 2022, arXiv:2208.07339 (int8 products, outliers); Frantar et al. 2023,
arXiv:2210.17323, section 4 (weights of 4 bits make single tokens faster).
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from labkit.errors import LabError
from labkit.models.compression.stored import StoredLinear, StoredMatrix
from labkit.models.compression.targets import replace

GROUPS = (32, 64, 128, 256)
"""Widths of a group that torch's product of 4 bits knows."""


class Int8Linear(StoredLinear):
    """A stored layer that multiplies whole numbers; it holds the same bytes."""

    def forward(self, x: Float[Tensor, "... I"]) -> Float[Tensor, "... O"]:
        x_NI = x.reshape(-1, x.shape[-1]).float()
        scale_N1 = x_NI.abs().amax(-1, keepdim=True).clamp_(min=1e-30) / 127
        codes_NI = (x_NI / scale_N1).round_().to(torch.int8)
        sums_NO = torch._int_mm(codes_NI, self.matrix.codes.view(torch.int8).t())
        y_NO = sums_NO.float().mul_(scale_N1).mul_(self.matrix.scales.float().view(1, -1))
        if self.bias is not None:
            y_NO += self.bias
        return y_NO.to(x.dtype).view(*x.shape[:-1], -1)


class Int4Linear(nn.Module):
    """A stored layer whose codes lie as torch's product of 4 bits reads them; as many bytes.

    Two numbers of 16 bits (bf16) go with each group, whatever the grid was.

    Args:
        stored: a layer on a grid of 4 bits in groups of 32, 64, 128 or 256.
    """

    codes: Tensor
    scales_and_zeros: Tensor

    def __init__(self, stored: StoredLinear):
        super().__init__()
        quantised = stored.matrix.quantised()
        self.bias, self.group = stored.bias, int(quantised.grid.group)
        self.in_features, self.out_features = stored.in_features, stored.out_features
        codes_OI = quantised.codes_OI.int()
        self.register_buffer("codes", torch._convert_weight_to_int4pack_for_cpu(codes_OI, 1))
        scales_OG = quantised.scales_OG.float()
        middle_OG = torch.zeros_like(scales_OG)  # of code 8, which torch calls the zero
        if quantised.lowest_OG is not None:
            middle_OG = quantised.lowest_OG.float() + 8 * scales_OG
        pairs_GO2 = torch.stack([scales_OG, middle_OG], dim=-1).transpose(0, 1).contiguous()
        self.register_buffer("scales_and_zeros", pairs_GO2.bfloat16())

    def forward(self, x: Float[Tensor, "... I"]) -> Float[Tensor, "... O"]:
        x_NI = x.reshape(-1, x.shape[-1]).bfloat16().contiguous()
        y_NO = torch._weight_int4pack_mm_for_cpu(
            x_NI, self.codes, self.group, self.scales_and_zeros
        ).to(x.dtype)
        if self.bias is not None:
            y_NO = y_NO + self.bias
        return y_NO.view(*x.shape[:-1], -1)


def use_kernels(model: nn.Module) -> int:
    """Let a quantised model compute with codes wherever its grids allow it, in place.

    Save before: layers of 4 bits lie in another order afterwards, that of this machine.

    Args:
        model: after `quantise_model`, on a CPU.

    Returns:
        How many layers changed.

    Raises:
        LabError: none of them fits.
    """
    layers = {name: m for name, m in model.named_modules() if type(m) is StoredLinear}
    changed = 0
    shared = _shared(model)
    for name, layer in layers.items():
        new = _fast(layer, layer.matrix in shared)
        if new is not None:
            replace(model, name, new)
            changed += 1
    if not changed:
        raise LabError(
            f"0 of {len(layers)} quantised layers fit: take 4 bits in groups of "
            f"{', '.join(map(str, GROUPS))}, or 8 bits, symmetric, with a scale for each row"
        )
    return changed


def _shared(model: nn.Module) -> set[StoredMatrix]:
    """Matrices that more than one layer reads."""
    holders = [getattr(m, "matrix", None) for m in model.modules()]
    found = [m for m in holders if isinstance(m, StoredMatrix)]
    return {m for m in found if found.count(m) > 1}


def _fast(layer: StoredLinear, shared: bool) -> nn.Module | None:
    grid = layer.matrix.grid
    if grid.bits == 8 and grid.symmetric and grid.group == "row":
        new: Any = Int8Linear(layer.matrix)
        new.bias = layer.bias
    elif grid.bits == 4 and grid.group in GROUPS and layer.out_features % 16 == 0 and not shared:
        new = Int4Linear(layer)
    else:
        return None
    if hasattr(layer, "rows"):
        new.rows = layer.rows
    return new
