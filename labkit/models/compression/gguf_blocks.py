"""The blocks of a GGUF file, byte by byte: how llama.cpp stores weights in 4 to 8 bits.

    a row of a matrix ──> blocks of 32 weights (256 in the formats named K), one behind the other
    a block = a scale d (fp16), perhaps a smallest weight m (fp16), then the codes

    format   weights   bytes   bits a weight   a weight is
    Q8_0          32      34       8.5         d q                q in -128 .. 127
    Q5_0          32      22       5.5         d (q - 16)
    Q5_1          32      24       6           d q + m
    Q4_0          32      18       4.5         d (q - 8)
    Q4_1          32      20       5           d q + m            most of smollm2's file; its
    Q6_K         256     210       6.5625      d s (q - 32)       embedding is Q8_0
    Q4_K         256     144       4.5         d s q - dmin m     s, m of 6 bits for each 32

Codes of 4 bits stand two to a byte: the lower halves are the first 16 weights of a block, the upper
halves the last 16. Numbers of two bytes have the lower one first.

Each function here decodes many blocks at once, and gives to the bit what the package `gguf` gives.

Legend: M blocks, Y bytes of a block, S weights of a block.

Sources: ggml's `ggml-common.h` (the structures) and `ggml-quants.c` (dequantize_row_*).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from labkit.errors import LabError
from labkit.models.compression.grids import Grid, Quantised


def q8_0(blocks_MY: np.ndarray) -> np.ndarray:
    """d q.

    byte    0   1 │ 2   3   4  ...  33
            d     │ q0  q1  q2      q31      int8 each
    """
    codes_MS = blocks_MY[:, 2:].view(np.int8).astype(np.float32)
    return _half(blocks_MY, 0) * codes_MS


def q4_0(blocks_MY: np.ndarray) -> np.ndarray:
    """d (q - 8).

    byte    0   1 │ 2        3        ...  17
            d     │ q16│q0   q17│q1        q31│q15      4 bits each, the lower half written right
    """
    return _half(blocks_MY, 0) * (_nibbles(blocks_MY[:, 2:]) - 8).astype(np.float32)


def q4_1(blocks_MY: np.ndarray) -> np.ndarray:
    """d q + m: the grid `Grid(4, 32, symmetric=False)`.

    byte    0   1 │ 2   3 │ 4        5        ...  19
            d     │ m     │ q16│q0   q17│q1        q31│q15
    """
    codes_MS = _nibbles(blocks_MY[:, 4:]).astype(np.float32)
    return _half(blocks_MY, 0) * codes_MS + _half(blocks_MY, 2)


def q5_0(blocks_MY: np.ndarray) -> np.ndarray:
    """d (q - 16), where bit 4 of each code stands apart.

    byte    0   1 │ 2  3  4  5 │ 6        ...  21
            d     │ 32 bits:   │ q16│q0        q31│q15      the lower 4 bits
                  │ the fifth of q0, q1, ... q31
    """
    codes_MS = _nibbles(blocks_MY[:, 6:]) | _fifth_bits(blocks_MY[:, 2:6]) << 4
    return _half(blocks_MY, 0) * (codes_MS - 16).astype(np.float32)


def q5_1(blocks_MY: np.ndarray) -> np.ndarray:
    """d q + m, the fifth bits apart as in Q5_0.

    byte    0   1 │ 2   3 │ 4  5  6  7 │ 8        ...  23
            d     │ m     │ fifth bits │ q16│q0        q31│q15
    """
    codes_MS = _nibbles(blocks_MY[:, 8:]) | _fifth_bits(blocks_MY[:, 4:8]) << 4
    return _half(blocks_MY, 0) * codes_MS.astype(np.float32) + _half(blocks_MY, 2)


def q6_k(blocks_MY: np.ndarray) -> np.ndarray:
    """d s (q - 32): 16 scales s of 8 bits, each for 16 weights, and one d for all 256.

    byte    0  ...  127 │ 128 ... 191 │ 192 ... 207 │ 208  209
            lower 4     │ upper 2     │ s0 ... s15  │ d
            bits        │ bits        │ int8        │

    Twice the same, for 128 weights each: 64 bytes whose lower halves are weights 0-63 and upper
    halves weights 64-127; 32 bytes whose bits 0-1, 2-3, 4-5, 6-7 complete weights 0-31, 32-63,
    64-95, 96-127.
    """
    blocks = len(blocks_MY)
    low = blocks_MY[:, :128].reshape(blocks, 2, 1, 64)
    low_M8S = (low >> _shifts(0, 4) & 15).reshape(blocks, 8, 32)
    high = blocks_MY[:, 128:192].reshape(blocks, 2, 1, 32)
    high_M8S = (high >> _shifts(0, 2, 4, 6) & 3).reshape(blocks, 8, 32)
    codes = (low_M8S | high_M8S << 4).astype(np.int16) - 32
    scales_MG = _half(blocks_MY, 208) * blocks_MY[:, 192:208].view(np.int8).astype(np.float32)
    weights = scales_MG[..., None] * codes.reshape(blocks, 16, 16).astype(np.float32)
    return weights.reshape(blocks, 256)


def q4_k(blocks_MY: np.ndarray) -> np.ndarray:
    """d s q - dmin m: 8 groups of 32 weights, each with a scale s and an offset m of 6 bits.

    byte    0   1 │ 2   3 │ 4 ... 15         │ 16 ... 143
            d     │ dmin  │ 8 s, 8 m: 96 bits │ codes

    s and m:   bytes 0-3   upper 2 bits of s4-s7 │ s0-s3
               bytes 4-7   upper 2 bits of m4-m7 │ m0-m3
               bytes 8-11  lower 4 bits of m4-m7 │ lower 4 bits of s4-s7
    codes:     32 bytes for two groups: lower halves the first, upper halves the second
    """
    blocks = len(blocks_MY)
    first, second, third = (blocks_MY[:, 4 + 4 * i : 8 + 4 * i] for i in range(3))
    s_MG = np.hstack([first & 63, third & 15 | first >> 6 << 4]).astype(np.float32)
    m_MG = np.hstack([second & 63, third >> 4 | second >> 6 << 4]).astype(np.float32)
    pairs = blocks_MY[:, 16:].reshape(blocks, 4, 1, 32)
    codes_MGS = (pairs >> _shifts(0, 4) & 15).reshape(blocks, 8, 32).astype(np.float32)
    steps, lows = _half(blocks_MY, 0) * s_MG, _half(blocks_MY, 2) * m_MG
    return (steps[..., None] * codes_MGS - lows[..., None]).reshape(blocks, 256)


class BlockFormat(NamedTuple):
    """A way of storing weights in blocks."""

    weights: int
    """Of a block."""
    bytes: int
    """Of a block."""
    decode: Callable[[np.ndarray], np.ndarray]
    """(M, bytes) uint8 -> (M, weights) fp32."""

    @property
    def bits_per_weight(self) -> float:
        """With the scales."""
        return 8 * self.bytes / self.weights


FORMATS = {
    "Q8_0": BlockFormat(32, 34, q8_0),
    "Q5_0": BlockFormat(32, 22, q5_0),
    "Q5_1": BlockFormat(32, 24, q5_1),
    "Q4_0": BlockFormat(32, 18, q4_0),
    "Q4_1": BlockFormat(32, 20, q4_1),
    "Q6_K": BlockFormat(256, 210, q6_k),
    "Q4_K": BlockFormat(256, 144, q4_k),
}
"""By the names that GGUF files and the package `gguf` use."""


def decode(rows_OY: np.ndarray, name: str) -> np.ndarray:
    """The weights that rows of bytes stand for.

    Args:
        rows_OY: uint8, (..., bytes of a row), as `gguf.GGUFReader` gives the data of a tensor.
        name: one of `FORMATS`.

    Returns:
        fp32, (..., weights of a row).

    Raises:
        LabError: an unknown format, or bytes that are no whole blocks.

    >>> block = np.array([0, 0x3C, 0, 0xC0] + [0x10] * 16, dtype=np.uint8)  # d = 1, m = -2
    >>> decode(block, "Q4_1")[[0, 15, 16, 31]].tolist()
    [-2.0, -2.0, -1.0, -1.0]
    """
    form = format_of(name)
    weights = form.decode(_blocks(rows_OY, form, name))
    return weights.reshape(*rows_OY.shape[:-1], -1)


def codes(rows_OY: np.ndarray, name: str) -> Quantised:
    """The same matrix without decoding: its blocks as codes and scales of ours, nothing lost.

    Args:
        rows_OY: uint8, (O, bytes of a row).
        name: Q8_0, Q4_0 or Q4_1.

    Raises:
        LabError: another format, whose scales are stored in another way; bytes that do not fit.
    """
    if name not in ("Q8_0", "Q4_0", "Q4_1"):
        raise LabError(f"{name} has no grid of ours: choose Q8_0, Q4_0 or Q4_1, or `decode` it")
    form, rows = format_of(name), len(rows_OY)
    blocks_MY = _blocks(rows_OY, form, name)
    if name == "Q8_0":
        codes_MS = blocks_MY[:, 2:] ^ 128  # int8 to 0 .. 255, with 0 at 128
    else:
        codes_MS = _nibbles(blocks_MY[:, form.bytes - 16 :]).astype(np.uint8)
    lowest = None
    if name == "Q4_1":
        lowest = torch.from_numpy(_half(blocks_MY, 2).reshape(rows, -1)).half()
    return Quantised(
        torch.from_numpy(codes_MS.reshape(rows, -1).copy()),
        torch.from_numpy(_half(blocks_MY, 0).reshape(rows, -1)).half(),
        lowest,
        Grid(8 if name == "Q8_0" else 4, 32, symmetric=name != "Q4_1"),
    )


def format_of(name: str) -> BlockFormat:
    """The format by name.

    Raises:
        LabError: an unknown name.
    """
    if name not in FORMATS:
        raise LabError(f"block format {name!r} is unknown: choose {', '.join(FORMATS)}")
    return FORMATS[name]


def _blocks(rows_OY: np.ndarray, form: BlockFormat, name: str) -> np.ndarray:
    """(M, Y), contiguous."""
    if rows_OY.dtype != np.uint8 or rows_OY.shape[-1] % form.bytes:
        raise LabError(
            f"rows of {rows_OY.shape[-1]} {rows_OY.dtype} are no blocks of {name}: give uint8, a "
            f"multiple of {form.bytes} a row"
        )
    return np.ascontiguousarray(rows_OY).reshape(-1, form.bytes)


def _half(blocks_MY: np.ndarray, at: int) -> np.ndarray:
    """The fp16 number at a byte of each block, as fp32, (M, 1)."""
    return blocks_MY[:, at : at + 2].copy().view("<f2").astype(np.float32)


def _nibbles(bytes_MN: np.ndarray) -> np.ndarray:
    """All lower halves of bytes, then all upper halves, as int16 (M, 2 N)."""
    return np.hstack([bytes_MN & 15, bytes_MN >> 4]).astype(np.int16)


def _fifth_bits(bytes_M4: np.ndarray) -> np.ndarray:
    """32 bits of 4 bytes, the lowest first, as int16 (M, 32)."""
    return np.unpackbits(bytes_M4, axis=1, bitorder="little").astype(np.int16)


def _shifts(*places: int) -> np.ndarray:
    """By how many bits, along the axis before the last."""
    return np.array(places, dtype=np.uint8)[:, None]
