"""Formats against torch's own rounding; what underflows; stochastic rounding."""

import doctest
import math

import pytest
import torch

from labkit.accounting import formats as precision
from labkit.accounting.formats import (
    FORMATS,
    bits,
    overflow_share,
    round_to,
    spacing,
    underflow_share,
)
from labkit.errors import LabError


@pytest.mark.parametrize("name", FORMATS)
def test_the_limits_are_torchs(name):
    form, info = FORMATS[name], torch.finfo(FORMATS[name].dtype)
    assert (form.largest, form.smallest_normal, form.epsilon) == (info.max, info.tiny, info.eps)
    assert form.smallest == info.smallest_normal * info.eps


@pytest.mark.parametrize("name", FORMATS)
def test_rounding_is_torchs(name):
    torch.manual_seed(0)
    form = FORMATS[name]
    reach = math.log2(form.largest) - 1
    exponents = torch.rand(2000, dtype=torch.float64) * 2 * reach - reach
    values = torch.randn(2000, dtype=torch.float64).sign() * 2**exponents
    ties = torch.tensor([1 + form.epsilon / 2, 1 + 1.5 * form.epsilon, form.smallest / 2])
    for x in [*values.float().tolist(), *ties.double().tolist(), 0.0]:
        expected = torch.tensor(x, dtype=torch.float64).to(form.dtype).double().item()
        if name == "fp8_e4m3" and abs(x) > form.largest:
            continue
        assert round_to(x, name) == expected, x


def test_too_large_becomes_infinite():
    assert round_to(65519.0, "fp16") == 65504
    assert round_to(65520.0, "fp16") == math.inf
    assert round_to(-1e39, "bf16") == -math.inf
    assert math.isnan(round_to(1000.0, "fp8_e4m3"))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("x", [1.0, -0.1, 3.14159, 200.0])
def test_bits_mean_the_rounded_number(name, x):
    form, (sign, exponent, mantissa) = FORMATS[name], bits(x, name)
    assert (len(exponent), len(mantissa)) == (form.exponent_bits, form.mantissa_bits)
    value = (1 + int(mantissa, 2) / 2**form.mantissa_bits) * 2.0 ** (int(exponent, 2) - form.bias)
    assert (-1) ** int(sign) * value == round_to(x, name)


def test_spacing_is_the_distance_to_the_next_number():
    for name in ("fp32", "fp16", "bf16"):
        for x in (1.0, 1000.0, 1e-3):
            here = torch.tensor(x).to(FORMATS[name].dtype)
            step = torch.nextafter(here, torch.tensor(math.inf, dtype=here.dtype)) - here
            assert float(step) == spacing(float(here), name)


def test_shares_count_what_torch_loses():
    torch.manual_seed(0)
    values = torch.randn(20000) * 2.0 ** (torch.rand(20000) * 40 - 35)
    for scale in (1.0, 2.0**8, 2.0**16):
        half = (values * scale).half()
        assert underflow_share(values, "fp16", scale) == pytest.approx(
            float((half == 0).double().mean()), abs=1e-9
        )
        assert overflow_share(values, "fp16", scale) == pytest.approx(
            float(half.isinf().double().mean()), abs=1e-9
        )
    assert underflow_share(values, "bf16") == 0
    assert underflow_share(torch.zeros(3), "fp16") == 0, "what was 0 is not lost"


def test_stochastic_rounding_is_right_on_average_and_rounds_to_neighbours():
    x = torch.full((100_000,), 1.0 + 0.25 * FORMATS["bf16"].epsilon)
    rounded = precision.round_stochastically(x, torch.Generator().manual_seed(0)).float()
    assert set(rounded.unique().tolist()) == {1.0, 1.0 + FORMATS["bf16"].epsilon}
    assert float((rounded > 1).float().mean()) == pytest.approx(0.25, abs=0.01)
    assert torch.equal(x.bfloat16().float(), torch.ones_like(x)), "nearest loses every one"
    negative = precision.round_stochastically(-x, torch.Generator().manual_seed(0)).float()
    assert float(negative.mean()) == pytest.approx(-float(x[0]), abs=1e-4)
    exact = torch.tensor([1.0, -2.5, 0.0])
    assert torch.equal(precision.round_stochastically(exact).float(), exact)


def test_wrong_names_are_named():
    with pytest.raises(LabError, match="'fp12' is unknown"):
        spacing(1.0, "fp12")
    with pytest.raises(LabError, match="float64"):
        precision.round_stochastically(torch.zeros(2, dtype=torch.float64))


def test_doctests():
    assert doctest.testmod(precision).failed == 0
