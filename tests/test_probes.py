"""probes: the noise scale of a problem where it is known; a range test that leaves no trace."""

import pytest
import torch
from torch import nn
from training import config, ragged_batches, tiny_model, weights

from labkit.batches import Batches
from labkit.errors import LabError
from labkit.objectives import causal_lm
from labkit.training.probes import gradient_noise_scale, learning_rate_range_test

DIMENSIONS, SPREAD = 20, 3.0


class Point(nn.Module):
    """f(w) = mean over examples of |w - x|^2 / 2: one example's gradient is w - x."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(DIMENSIONS))


def squared_distance(model, batch):
    return (model.w - batch["x"]).square().sum() / 2, torch.tensor(len(batch["x"]))


def quadratic(batch_size=32, examples=8000):
    noise = torch.randn(examples, DIMENSIONS, generator=torch.Generator().manual_seed(0))
    return Batches([{"x": SPREAD * z} for z in noise], batch_size)


def test_noise_scale_of_a_quadratic_is_the_known_one():
    """G = w, |G|^2 = D; the covariance is SPREAD^2 I: the scale is SPREAD^2."""
    found = gradient_noise_scale(Point(), squared_distance, quadratic(), updates=250)
    assert found.signal == pytest.approx(DIMENSIONS, rel=0.05)
    assert found.trace == pytest.approx(DIMENSIONS * SPREAD**2, rel=0.05)
    assert abs(found.examples - SPREAD**2) < 3 * found.standard_error
    assert found.standard_error < 1.0


@pytest.mark.parametrize(("small", "big"), [(1, 4), (2, 16), (8, 64)])
def test_noise_scale_does_not_depend_on_the_batch_sizes(small, big):
    batches = quadratic(big)
    found = gradient_noise_scale(
        Point(), squared_distance, batches, small=small, updates=8000 // big
    )
    assert found.examples == pytest.approx(SPREAD**2, rel=0.1)


def test_noise_scale_leaves_no_gradient_and_names_bad_sizes():
    point, model = Point(), tiny_model()
    gradient_noise_scale(point, squared_distance, quadratic(), small=2, updates=5)
    assert point.w.grad is None
    with pytest.raises(LabError, match="small 3 is out of range: choose a divisor of batch_size 8"):
        gradient_noise_scale(model, causal_lm, ragged_batches(), small=3)
    with pytest.raises(LabError, match="updates 1 is out of range"):
        gradient_noise_scale(model, causal_lm, ragged_batches(), updates=1)


def test_noise_without_signal_is_named():
    model = Point()
    with torch.no_grad():
        model.w.zero_()
    there_and_back = [{"x": sign * torch.ones(DIMENSIONS)} for sign in (1.0, -1.0)]
    with pytest.raises(LabError, match="must be above 0: use more updates"):
        gradient_noise_scale(model, squared_distance, Batches(there_and_back, 2), updates=2)


def test_range_test_rises_stops_and_leaves_no_trace():
    model = tiny_model().eval()
    before, random = weights(model), torch.get_rng_state()
    found = learning_rate_range_test(
        model, causal_lm, ragged_batches(), config(steps=60), low=1e-5, high=1e3
    )
    ratios = [b / a for a, b in zip(found.rates, found.rates[1:], strict=False)]
    assert ratios == pytest.approx([10 ** (8 / 60)] * len(ratios))
    assert len(found.rates) == len(found.losses) == len(found.smoothed) < 60
    assert found.smoothed[0] == pytest.approx(found.losses[0])
    assert 1e-4 < found.suggested < 1.0
    assert all(torch.equal(before[n], w) for n, w in weights(model).items())
    assert torch.equal(random, torch.get_rng_state())
    assert not model.training


def test_a_sweep_that_ends_in_an_infinite_loss_ends_there():
    def explodes(model, batch):
        loss, count = causal_lm(model, batch)
        explodes.calls += 1
        return loss * (float("inf") if explodes.calls > 12 else 1.0), count

    explodes.calls = 0
    settings = config(steps=30)
    found = learning_rate_range_test(
        tiny_model(), explodes, ragged_batches(), settings, low=1e-6, high=1e-3
    )
    assert len(found.losses) == 12
    with pytest.raises(LabError, match="both must be finite"):
        learning_rate_range_test(
            tiny_model(), explodes, ragged_batches(), settings, low=1e-6, high=1e-3
        )


def test_a_sweep_names_what_is_out_of_range():
    for low, high in ((0, 1), (1, 1), (2, 1)):
        with pytest.raises(LabError, match="choose 0 < low < high"):
            learning_rate_range_test(
                tiny_model(), causal_lm, ragged_batches(), config(steps=20), low=low, high=high
            )
    with pytest.raises(LabError, match="at least 10 updates"):
        learning_rate_range_test(
            tiny_model(), causal_lm, ragged_batches(), config(steps=6), low=1e-5, high=1
        )
