"""A quantised matrix that really is smaller: codes packed into bytes, and layers that hold it.

    Quantised ──> StoredMatrix: codes (O, I·bits/8) uint8, scales (O, G) fp16, lowest (O, G) fp16
                     ├── StoredLinear     x ──> x·Wᵀ + b, W decoded for the moment of the product
                     └── StoredEmbedding  ids ──> their rows, decoded; may share the head's matrix

A model that computes one token reads every weight once, so bytes are time, too, if something
decodes them as fast as they come. These layers decode in plain torch and are there to be read and
to be small; `kernels` runs the same codes through products that are fast.

Codes of 2, 4 and 8 bits fill a byte without a rest; others are for study (`round_weights`).

Legend: O outputs, I inputs, G groups of a row, N positions, V vocabulary, D model width.

Source: Gholami et al. 2021, arXiv:2103.13630, section III (what is stored, what is computed).
"""

from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit.errors import LabError
from labkit.models.compression.grids import Grid, Quantised

PACKED = (2, 4, 8)
"""Bits of a code that can be stored."""


def pack(codes_OI: Tensor, bits: int) -> Tensor:
    """Codes side by side in bytes, the first in the lowest bits: (O, I·bits/8) uint8.

    A code of 8 bits is stored less 128, as the int8 that processors multiply.

    Args:
        codes_OI: uint8, below 2^bits.
        bits: 2, 4 or 8.

    Raises:
        LabError: other bits, or rows that fill no whole bytes.

    >>> pack(torch.tensor([[1, 2, 15, 0]], dtype=torch.uint8), 4).tolist()  # 1 + 16 * 2, 15
    [[33, 15]]
    """
    if bits not in PACKED or codes_OI.shape[1] * bits % 8:
        raise LabError(
            f"{codes_OI.shape[1]} codes of {bits} bits fill no whole bytes: store 2, 4 or 8 bits, "
            "in rows of a multiple of 4"
        )
    if bits == 8:
        return codes_OI ^ 128
    codes_ONP = codes_OI.view(len(codes_OI), -1, 8 // bits)
    packed = codes_ONP[..., 0].clone()
    for place in range(1, codes_ONP.shape[-1]):
        packed |= codes_ONP[..., place] << (bits * place)
    return packed


def unpack(packed_OY: Tensor, bits: int) -> Tensor:
    """The codes again, (O, I) uint8.

    >>> unpack(torch.tensor([[33, 15]], dtype=torch.uint8), 4).tolist()
    [[1, 2, 15, 0]]
    """
    if bits == 8:
        return packed_OY ^ 128
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed_OY.device)
    codes_OYP = (packed_OY.unsqueeze(-1) >> shifts) & (2**bits - 1)
    return codes_OYP.flatten(-2)


class StoredMatrix(nn.Module):
    """A quantised matrix in as few bytes as it takes: `bits_per_weight` of its grid, exactly."""

    codes: Tensor
    scales: Tensor
    lowest: Tensor | None

    def __init__(self, quantised: Quantised):
        """
        Args:
            quantised: of `quantise`, `gptq` or `gguf_blocks.codes`, of 2, 4 or 8 bits.
        """
        super().__init__()
        self.grid = quantised.grid
        self.shape = tuple(quantised.codes_OI.shape)
        self.register_buffer("codes", pack(quantised.codes_OI, self.grid.bits))
        self.register_buffer("scales", quantised.scales_OG)
        self.register_buffer("lowest", quantised.lowest_OG)

    @classmethod
    def empty(cls, rows: int, columns: int, grid: Grid) -> Self:
        """One to be filled from a file."""
        groups = grid.groups(torch.empty(rows, columns, device="meta")).shape[:2]
        scales = torch.zeros(groups, dtype=torch.float16)
        codes = torch.zeros(rows, columns, dtype=torch.uint8)
        return cls(Quantised(codes, scales, None if grid.symmetric else scales.clone(), grid))

    def quantised(self) -> Quantised:
        """The same, unpacked."""
        return Quantised(unpack(self.codes, self.grid.bits), self.scales, self.lowest, self.grid)

    def weights(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """(O, I), decoded."""
        return self.quantised().dequantise().to(dtype)

    def rows(self, ids: Tensor) -> Tensor:
        """Some rows, decoded: (..., I) fp32."""
        if self.grid.group == "tensor":
            picked = Quantised(unpack(self.codes[ids.flatten()], self.grid.bits), self.scales,
                               self.lowest, self.grid)  # fmt: skip
        else:
            flat = ids.flatten()
            lowest = None if self.lowest is None else self.lowest[flat]
            codes = unpack(self.codes[flat], self.grid.bits)
            picked = Quantised(codes, self.scales[flat], lowest, self.grid)
        return picked.dequantise().view(*ids.shape, self.shape[1])

    def extra_repr(self) -> str:
        return f"{self.shape[0]} x {self.shape[1]}, {self.grid}"


class StoredLinear(nn.Module):
    """A linear layer whose weights are stored quantised: x ──> x·Wᵀ + b.

    Args:
        matrix: the weights, (O, I).
        bias: (O), as it was, or None.
    """

    def __init__(self, matrix: StoredMatrix, bias: Tensor | None = None):
        super().__init__()
        self.matrix = matrix
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), False)
        self.out_features, self.in_features = matrix.shape

    @property
    def weight(self) -> Tensor:
        """The weights, decoded: for whoever looks at a layer's matrix. Not trainable."""
        return self.matrix.weights()

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.matrix.weights(x.dtype), bias)


class StoredEmbedding(nn.Module):
    """An embedding whose rows are stored quantised.

    Args:
        matrix: (V, D); the same object as the head's where the two are tied.
    """

    def __init__(self, matrix: StoredMatrix):
        super().__init__()
        self.matrix = matrix
        self.num_embeddings, self.embedding_dim = matrix.shape

    @property
    def weight(self) -> Tensor:
        """All rows, decoded."""
        return self.matrix.weights()

    def forward(self, ids: Tensor) -> Tensor:
        return self.matrix.rows(ids)


def stored_bytes(model: nn.Module) -> int:
    """Bytes of all that a model keeps: parameters and saved buffers, what is shared once.

    >>> stored_bytes(nn.Linear(3, 2))
    32
    """
    held: dict[tuple[Any, ...], int] = {}
    for tensor in model.state_dict(keep_vars=False).values():
        held[(tensor.device, tensor.data_ptr(), tensor.dtype)] = tensor.nbytes
    return sum(held.values())
