"""Quantisation of a matrix: each weight becomes a small whole number on a grid of its group.

    w ──> groups that share a grid ──> scale s, lowest m ──> code q = round((w - m) / s)
    back:  m + s q                                           0 <= q <= 2^bits - 1

    symmetric: m = -2^(bits-1) s, so code 2^(bits-1) is exactly 0, and only s is stored
               (the lowest code is left out: as many steps below 0 as above)
    affine:    m is the smallest weight of the group, and both s and m are stored

Nearest codes err by at most s / 2. A grid is as wide as its largest weight, so *one* outlier makes
it coarse for all that share it: that is why groups are small. Their scales are bits, too: 4 bits in
groups of 32 are 4.5 bits a weight with one number of 16 bits for each group, 5 with two.

The stored numbers are fp16, rounded so that the grid never becomes too short: scales up, lowest
weights down. So the bound of s / 2 holds for what is stored, not only on paper.

Legend: O outputs (rows), I inputs (columns), G groups of a row, S weights of a group.

Sources: Jacob et al. 2018, arXiv:1712.05877 (scale, zero point); Dettmers et al. 2023,
arXiv:2212.09720 (4 bits, small groups); Nagel et al. 2021, arXiv:2106.08295 (ranges, clipping).
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from labkit.errors import LabError

#: Shares of the whole range that `best_clip` tries.
CLIPS = tuple(1 - 0.05 * i for i in range(11))


@dataclass(frozen=True)
class Grid:
    """How finely weights are stored, and which of them share a scale."""

    bits: int = 4
    """Of a code, 2 to 8."""
    group: int | Literal["row", "tensor"] = 32
    """Weights that share a scale: so many neighbours in a row, a whole row, or the whole matrix."""
    symmetric: bool = True
    """Around 0, with one stored number a group; False: from the smallest weight to the largest."""

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise LabError(f"bits {self.bits} is out of range: choose 2 to 8")
        if self.group not in ("row", "tensor") and not (
            isinstance(self.group, int) and self.group >= 1
        ):
            raise LabError(f"group {self.group!r} is unknown: choose a number, 'row' or 'tensor'")

    @property
    def middle(self) -> int:
        """The code of 0 where the grid is symmetric."""
        return 2 ** (self.bits - 1)

    @property
    def largest(self) -> int:
        """The largest code."""
        return 2**self.bits - 1

    def groups(self, w_OI: Tensor) -> Tensor:
        """The same numbers as (rows, groups of a row, S); one row for the whole matrix.

        Raises:
            LabError: a row is no whole number of groups.
        """
        rows, columns = w_OI.shape
        if self.group == "tensor":
            return w_OI.reshape(1, 1, rows * columns)
        size = columns if self.group == "row" else self.group
        if columns % size:
            raise LabError(
                f"group {size} does not divide the {columns} inputs of a row: choose a divisor, "
                "'row' or 'tensor'"
            )
        return w_OI.reshape(rows, columns // size, size)

    def bits_per_weight(self, rows: int, columns: int) -> float:
        """What one weight of a matrix takes, with its share of the stored scales.

        >>> Grid(4, 32).bits_per_weight(64, 64)
        4.5
        """
        grids = self.groups(torch.empty(rows, columns, device="meta")).shape[:2].numel()
        return self.bits + grids * 16 * (1 if self.symmetric else 2) / (rows * columns)


class Quantised(NamedTuple):
    """A matrix as codes on the grids of its groups."""

    codes_OI: Tensor
    """uint8, 0 to 2^bits - 1."""
    scales_OG: Tensor
    """fp16, above 0, or 0 where a group has one value only."""
    lowest_OG: Tensor | None
    """fp16, the weight of code 0; None where the grid is symmetric."""
    grid: Grid

    def dequantise(self) -> Tensor:
        """The weights that are stored, fp32, (O, I)."""
        codes_OGS = self.grid.groups(self.codes_OI).float()
        scales_OG1 = self.scales_OG.float().unsqueeze(-1)
        if self.lowest_OG is None:
            w_OGS = (codes_OGS - self.grid.middle) * scales_OG1
        else:
            w_OGS = codes_OGS * scales_OG1 + self.lowest_OG.float().unsqueeze(-1)
        return w_OGS.view(self.codes_OI.shape)

    def steps(self) -> Tensor:
        """s of every weight, fp32, (O, I): nearest codes inside the range err by half of it."""
        like_OGS = self.grid.groups(self.codes_OI)
        return self.scales_OG.float().unsqueeze(-1).expand_as(like_OGS).reshape(self.codes_OI.shape)


def quantise(w_OI: Tensor, grid: Grid, clip: float | Tensor = 1.0) -> Quantised:
    """Round every weight to the nearest point of its group's grid.

    |w - dequantised| <= s / 2 for every weight inside the range. With `clip` below 1 the range is
    that share of the whole one: its steps are finer, and what lies outside goes to the edge.

    Args:
        w_OI: a matrix, finite.
        grid: bits, groups, symmetric or not.
        clip: share of the range, above 0 and at most 1; or one for each group, (O, G).

    Raises:
        LabError: no matrix, a number that is not finite or too large for fp16 scales, a clip out of
            range, a group that does not fit.

    >>> quantise(torch.tensor([[0.0, 0.7, -0.1, 0.35]]), Grid(4, 4)).codes_OI.tolist()
    [[8, 15, 7, 11]]
    """
    if w_OI.ndim != 2 or not w_OI.numel():
        raise LabError(f"weights of shape {tuple(w_OI.shape)}: give a matrix, (outputs, inputs)")
    share = torch.as_tensor(clip, dtype=torch.float32, device=w_OI.device)
    if not bool(((share > 0) & (share <= 1)).all()):
        raise LabError(f"clip {clip} is out of range: choose a share above 0, at most 1")
    w_OI = w_OI.detach().float()
    scales_OG, lowest_OG = _ranges(grid.groups(w_OI), grid, share)
    return nearest(w_OI, scales_OG, lowest_OG, grid)


def nearest(w_OI: Tensor, scales_OG: Tensor, lowest_OG: Tensor | None, grid: Grid) -> Quantised:
    """The nearest codes on grids that are there already; arguments as the parts of `Quantised`."""
    w_OGS, steps_OG1 = grid.groups(w_OI.float()), scales_OG.float().unsqueeze(-1)
    whole_OG1 = torch.where(steps_OG1 == 0, 1.0, steps_OG1)
    if lowest_OG is None:
        codes = (w_OGS / whole_OG1).round_().add_(grid.middle).clamp_(1, grid.largest)
    else:
        codes = ((w_OGS - lowest_OG.float().unsqueeze(-1)) / whole_OG1).round_()
        codes = codes.clamp_(0, grid.largest)
    return Quantised(codes.to(torch.uint8).view(w_OI.shape), scales_OG, lowest_OG, grid)


def _ranges(w_OGS: Tensor, grid: Grid, share: Tensor) -> tuple[Tensor, Tensor | None]:
    """Scales and lowest weights, fp16, whose grids reach over the given share of each range."""
    share = share if share.ndim else share.expand(w_OGS.shape[:2])
    if grid.symmetric:
        return _fp16(w_OGS.abs().amax(-1) * share / (grid.middle - 1), up=True), None
    low_OG, high_OG = w_OGS.amin(-1), w_OGS.amax(-1)
    cut_OG = (high_OG - low_OG) * (1 - share) / 2
    lowest_OG = _fp16(low_OG + cut_OG, up=False)
    span_OG = (high_OG - cut_OG - lowest_OG.float()).clamp(min=0)
    return _fp16(span_OG / grid.largest, up=True), lowest_OG


def _fp16(values: Tensor, up: bool) -> Tensor:
    """The nearest fp16 number that is not below (up) or not above the value."""
    near = values.half()
    if not bool(near.isfinite().all()):
        raise LabError(
            f"a scale of {float(values.abs().max()):.3g} is beyond fp16 (65,504), or a weight is "
            "not finite: such a matrix is damaged, or must be scaled down first"
        )
    wrong = near.float() < values if up else near.float() > values
    # Of one sign, neighbours among fp16 numbers are neighbours as whole numbers, too.
    bits, outward = near.view(torch.int16), near.signbit() != up
    beyond = torch.where(outward, bits + 1, bits - 1).view(torch.float16)
    return torch.where(wrong, beyond, near)


def best_clip(w_OI: Tensor, grid: Grid, importance_I: Tensor | None = None) -> Tensor:
    """For each group the share of its range, of `CLIPS`, with the smallest squared error.

    Args:
        w_OI: a matrix.
        grid: as in `quantise`.
        importance_I: mean square of each input (the diagonal of a `calibration` matrix): an error
            in a column that reads large inputs weighs more. None: all alike.

    Returns:
        (O, G), to be given to `quantise`.

    Source: Nagel et al. 2021, section 3.1 (ranges by the mean squared error).
    """
    weights = torch.ones(w_OI.shape[1]) if importance_I is None else importance_I
    weights_OGS = grid.groups(weights.to(w_OI).float().expand(w_OI.shape).contiguous())
    lost = [
        (grid.groups((quantise(w_OI, grid, c).dequantise() - w_OI) ** 2) * weights_OGS).sum(-1)
        for c in CLIPS
    ]
    return torch.tensor(CLIPS).to(w_OI.device)[torch.stack(lost).argmin(0)]
