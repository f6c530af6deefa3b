"""updates: what each optimiser's step does that no other does. Equality with torch: exactness."""

import pytest
import torch

from labkit.errors import LabError
from labkit.optim import by_hand as updates


def state(weight):
    return torch.zeros_like(weight), torch.zeros_like(weight)


def test_the_first_adam_step_is_one_rate_long_whatever_the_gradient():
    weight = torch.zeros(3, dtype=torch.float64)
    gradient = torch.tensor([1e-3, -1.0, 1e3], dtype=torch.float64)
    updates.adam_step(weight, gradient, *state(weight), 1, learning_rate=0.1, eps=1e-12)
    torch.testing.assert_close(weight, -0.1 * gradient.sign())


def test_bias_correction_makes_the_moments_of_a_constant_gradient_exact():
    weight = torch.zeros(1, dtype=torch.float64)
    m, v = state(weight)
    for step in range(1, 8):
        before = weight.clone()
        updates.adam_step(weight, torch.full_like(m, 5.0), m, v, step, learning_rate=0.1, eps=0.0)
        torch.testing.assert_close(m / (1 - 0.9**step), torch.full_like(m, 5.0))
        torch.testing.assert_close(v / (1 - 0.999**step), torch.full_like(v, 25.0))
        torch.testing.assert_close(before - weight, torch.full_like(m, 0.1))


def test_adam_counts_from_one():
    weight = torch.zeros(1)
    with pytest.raises(LabError, match="step 0 is out of range"):
        updates.adam_step(weight, weight, *state(weight), 0, learning_rate=0.1)


def test_decoupled_decay_shrinks_alike_and_l2_by_the_gradients_scale():
    scales = torch.tensor([0.01, 100.0], dtype=torch.float64)
    noise = torch.randn(400, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    left = {}
    for name, step_of in (("l2", updates.adam_step), ("decoupled", updates.adamw_step)):
        weight = torch.ones(2, dtype=torch.float64)
        m, v = state(weight)
        for step, z in enumerate(noise, start=1):
            rates = {"learning_rate": 1e-3, "weight_decay": 1.0}
            step_of(weight, scales * z, m, v, step, **rates)
        left[name] = weight
    assert (left["decoupled"] - (1 - 1e-3) ** 400).abs().max() < 0.1
    assert left["l2"][0] < 0.75
    assert left["l2"][1] > 0.9


def test_momentum_sums_a_constant_gradient_to_one_over_one_minus_mu():
    weight, buffer = torch.zeros(1), torch.zeros(1)
    for _ in range(200):
        updates.momentum_step(weight, torch.ones(1), buffer, learning_rate=0.1, momentum=0.9)
    assert float(buffer) == pytest.approx(10.0, rel=1e-5)


def test_clipping_keeps_the_direction_of_all_tensors_together():
    a, b = torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])
    assert float(updates.clip_gradients([a, b], 1.0)) == 5.0
    torch.testing.assert_close(a, torch.tensor([0.6, 0.0]))
    torch.testing.assert_close(b, torch.tensor([[0.8]]))


def test_clipping_leaves_short_gradients_alone():
    a = torch.tensor([0.3, 0.4])
    updates.clip_gradients([a], 1.0)
    assert a.tolist() == torch.tensor([0.3, 0.4]).tolist()
