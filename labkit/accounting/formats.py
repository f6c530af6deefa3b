"""Number formats: how far apart the numbers stand, what is too large, what rounds to zero.

    x = (-1)^sign · 1.mantissa · 2^exponent          spacing at x:  2^(exponent - mantissa bits)

    format   bits: sign exponent mantissa     largest      smallest normal   smallest
    fp32            1     8        23         3.4e38       1.2e-38           1.4e-45
    fp16            1     5        10         65,504       6.1e-5            6.0e-8
    bf16            1     8         7         3.4e38       1.2e-38           9.2e-41
    fp8_e5m2        1     5         2         57,344       6.1e-5            1.5e-5
    fp8_e4m3        1     4         3         448          1.6e-2            2.0e-3

fp16 has fine steps in a narrow range: gradients *underflow* in it. bf16 has fp32's range in coarse
steps: small *updates* are lost in it.

Sources: IEEE 754-2019; Micikevicius et al. 2018 (fp16, loss scaling, fp32 master weights) and 2022
(fp8); Kalamkar et al. 2019 (bf16); Gupta et al. 2015 (stochastic rounding).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from labkit.errors import LabError


class Format(NamedTuple):
    """A binary floating-point format."""

    dtype: torch.dtype
    exponent_bits: int
    mantissa_bits: int
    largest: float
    """The largest finite number."""

    @property
    def bias(self) -> int:
        """What is added to the exponent before it is stored."""
        return 2 ** (self.exponent_bits - 1) - 1

    @property
    def smallest_normal(self) -> float:
        """Below it the mantissa loses its leading 1 and, bit by bit, its precision."""
        return 2.0 ** (1 - self.bias)

    @property
    def smallest(self) -> float:
        """The smallest number above 0; half of it and less rounds to 0."""
        return 2.0 ** (1 - self.bias - self.mantissa_bits)

    @property
    def epsilon(self) -> float:
        """From 1 to the next number."""
        return 2.0**-self.mantissa_bits


FORMATS = {
    "fp32": Format(torch.float32, 8, 23, 2.0**128 - 2.0**104),
    "fp16": Format(torch.float16, 5, 10, 65504.0),
    "bf16": Format(torch.bfloat16, 8, 7, 2.0**128 - 2.0**120),
    "fp8_e5m2": Format(torch.float8_e5m2, 5, 2, 57344.0),
    "fp8_e4m3": Format(torch.float8_e4m3fn, 4, 3, 448.0),
}


def format_of(name: str) -> Format:
    """The format by name.

    Raises:
        LabError: an unknown name.
    """
    if name not in FORMATS:
        raise LabError(f"format {name!r} is unknown: choose {', '.join(FORMATS)}")
    return FORMATS[name]


def spacing(x: float, name: str) -> float:
    """Distance between neighbouring numbers of the format in the binade of x.

    Args:
        x: any finite number.
        name: one of `FORMATS`.

    >>> spacing(1.0, "bf16"), spacing(300.0, "fp16")
    (0.0078125, 0.25)
    """
    form = format_of(name)
    exponent = math.frexp(x)[1] - 1 if x else 1 - form.bias
    return 2.0 ** (max(exponent, 1 - form.bias) - form.mantissa_bits)


def round_to(x: float, name: str) -> float:
    """The nearest number of the format, ties to the even mantissa; too large becomes infinite.

    Done in float64: divide by `spacing`, round to an integer, multiply again. fp8_e4m3 has no
    infinity: what is too large is NaN there.

    Args:
        x: any finite number.
        name: one of `FORMATS`.

    >>> round_to(1.001, "bf16"), round_to(70000.0, "fp16"), round_to(1e-8, "fp16")
    (1.0, inf, 0.0)
    """
    step = spacing(x, name)
    rounded = round(x / step) * step
    if abs(rounded) > format_of(name).largest:
        return math.nan if name == "fp8_e4m3" else math.copysign(math.inf, x)
    return math.copysign(rounded, x)


class Bits(NamedTuple):
    """The parts of a stored number, as strings of 0 and 1."""

    sign: str
    exponent: str
    mantissa: str


def bits(x: float, name: str) -> Bits:
    """How the format stores the nearest number to x.

    >>> bits(-1.5, "bf16")
    Bits(sign='1', exponent='01111111', mantissa='1000000')
    """
    form = format_of(name)
    width = 1 + form.exponent_bits + form.mantissa_bits
    whole = {8: torch.uint8, 16: torch.int16, 32: torch.int32}[width]
    stored = torch.tensor(x, dtype=torch.float64).to(form.dtype)
    code = format(int(stored.view(whole)) & (2**width - 1), f"0{width}b")
    return Bits(code[0], code[1 : 1 + form.exponent_bits], code[1 + form.exponent_bits :])


def underflow_share(values: Tensor, name: str, scale: float = 1.0) -> float:
    """Share of the values other than 0 that become 0 in the format after multiplication by scale.

    Args:
        values: any shape, such as a gradient in fp32.
        name: one of `FORMATS`.
        scale: the loss scale, above 0.

    Returns:
        0 to 1; 0 if all values are 0.
    """
    form = format_of(name)
    real = values.detach()[values.detach() != 0].double() * scale
    lost = real.abs() <= form.smallest / 2  # the tie goes to the even neighbour, 0
    return float(lost.double().mean()) if real.numel() else 0.0


def overflow_share(values: Tensor, name: str, scale: float = 1.0) -> float:
    """Share of the values that are too large for the format after multiplication by scale."""
    form = format_of(name)
    beyond = form.largest + spacing(form.largest, name) / 2
    return float((values.detach().double().abs() * scale >= beyond).double().mean())


def round_stochastically(values: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """fp32 to bf16, up or down at random, so that the mean is the number itself.

    A bf16 number is the upper half of an fp32 number's bits. Adding a random 16-bit number before
    the lower half is cut off carries into the upper half with the right probability.

    Args:
        values: fp32, any shape, finite.
        generator: of the random bits; None: torch's.

    Returns:
        bf16, the same shape: one of the two neighbours, with E[result] = value.

    Raises:
        LabError: values that are not fp32.

    Source: Gupta et al. 2015, arXiv:1502.02551, section 3.
    """
    if values.dtype != torch.float32:
        raise LabError(f"values are {values.dtype}: give float32, whose lower 16 bits decide")
    noise = torch.randint(
        2**16, values.shape, generator=generator, dtype=torch.int32, device=values.device
    )
    upper = (values.detach().contiguous().view(torch.int32) + noise) & -(2**16)
    return upper.view(torch.float32).to(torch.bfloat16)
