"""Dropout: share, mean and gradient are right, and entries are independent."""

import pytest
import torch
from torch.testing import assert_close

from labkit.errors import LabError
from labkit.models import Dropout
from labkit.models.dropout import dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.9])
def test_the_share_and_the_scale_are_those_asked_for(p, dtype):
    x = torch.ones(1_000_001, dtype=dtype)
    out = dropout(x, p)
    kept = out != 0
    assert float(kept.double().mean()) == pytest.approx(1 - p, abs=4 * (p * (1 - p) / 1e6) ** 0.5)
    assert out.dtype == dtype
    assert_close(out[kept], torch.full_like(out[kept], 1 / (1 - p)), rtol=1e-2, atol=0)
    assert float(out.double().mean()) == pytest.approx(1, abs=5 * (p / (1 - p) / 1e6) ** 0.5 + 4e-3)


def test_the_mean_is_exact_although_the_share_is_rounded():
    p = 1e-4  # 6.55 of 65,536 levels
    out = dropout(torch.ones(65_536, dtype=torch.float64), p)
    assert float(out.max()) == 65_536 / 65_529


@pytest.mark.parametrize("shape", [(7,), (3, 5, 11), (2, 4, 33, 33)])
def test_the_gradient_has_the_mask_of_the_forward_pass(shape):
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(shape, dtype=torch.float64)
    out = dropout(x, 0.3)
    (gradient,) = torch.autograd.grad((out * weights).sum(), x)
    assert_close(gradient, weights * (out / x).detach())
    assert not torch.equal(dropout(x, 0.3), out)
    state = torch.get_rng_state()
    first = dropout(x, 0.3)
    torch.set_rng_state(state)
    assert torch.equal(dropout(x, 0.3), first)


def test_neighbours_are_dropped_independently():
    """Four entries share a word of random bits: none may tell of another, near or far."""
    kept = (dropout(torch.ones(400_000), 0.5) != 0).double() - 0.5
    for distance in (1, 2, 3, 4, 5, 8, 64):
        correlation = float((kept[:-distance] * kept[distance:]).mean()) * 4
        assert abs(correlation) < 0.01, distance
    lanes = kept.view(-1, 4).mean(dim=0)
    assert float(lanes.abs().max()) < 0.01
    shared = kept[::4].repeat_interleave(4)  # the naive mask: one draw for four neighbours
    assert float((shared[:-1] * shared[1:]).mean()) * 4 > 0.7


def test_outside_training_nothing_happens_and_a_wrong_share_is_named():
    x = torch.randn(5)
    assert dropout(x, 0.5, training=False) is x
    assert dropout(x, 0.0) is x
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert (Dropout(0.9)(torch.ones(1000)) == 0).any()
    for p in (1.0, -0.1, float("nan")):
        with pytest.raises(LabError, match="it must be in"):
            dropout(x, p)
