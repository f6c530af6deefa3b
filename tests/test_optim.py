"""optim: which optimiser is built, the schedule, what decays."""

import pytest
import torch
from torch import nn
from training import config

from labkit import optim
from labkit.errors import LabError


def test_vectors_do_not_decay_and_tied_weights_count_once():
    model = nn.Sequential(nn.Embedding(10, 4), nn.LayerNorm(4), nn.Linear(4, 10))
    model[2].weight = model[0].weight
    decaying, still = optim.parameter_groups(model, 0.1)
    assert (decaying["weight_decay"], still["weight_decay"]) == (0.1, 0.0)
    assert [tuple(p.shape) for p in decaying["params"]] == [(10, 4)]
    assert [p.ndim for p in still["params"]] == [1, 1, 1]


def test_nothing_trainable_is_named():
    model = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(LabError, match="0 trainable parameters"):
        optim.build(model, learning_rate=1e-3)


def test_warm_up_rises_to_the_peak_then_decays_to_the_minimum():
    rates = [
        optim.learning_rate(s, peak=2.0, warmup_steps=10, total_steps=100, minimum_ratio=0.1)
        for s in range(101)
    ]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == rates[10] == pytest.approx(2.0)
    assert rates[10:] == sorted(set(rates[10:]), reverse=True)
    assert rates[100] == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("schedule", "middle"), [("cosine", 0.5), ("linear", 0.5), ("constant", 1)]
)
def test_schedules_half_way(schedule, middle):
    rate = optim.learning_rate(
        50, peak=1.0, warmup_steps=0, total_steps=100, minimum_ratio=0.0, schedule=schedule
    )
    assert rate == pytest.approx(middle)


def test_unknown_schedule_is_named():
    with pytest.raises(LabError, match="schedule 'step' is unknown"):
        optim.learning_rate(5, peak=1.0, warmup_steps=0, total_steps=9, schedule="step")


def test_gradient_norm_is_of_all_gradients_as_one_vector():
    a, b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    a.grad, b.grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    assert float(optim.gradient_norm([a, b])) == 5.0


def test_a_range_test_rises_by_a_constant_factor():
    rates = [
        optim.learning_rate(
            s, peak=1.0, warmup_steps=0, total_steps=4, minimum_ratio=1e-4, schedule="range_test"
        )
        for s in range(4)
    ]
    assert rates == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1])


@pytest.mark.parametrize(
    ("name", "kind"),
    [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)],
)
def test_build_passes_its_settings_on(name, kind):
    built = optim.build(
        nn.Linear(2, 2), learning_rate=0.5, optimizer=name, betas=(0.7, 0.8), weight_decay=0.3
    )
    matrix, bias = built.param_groups
    assert type(built) is kind
    assert (matrix["lr"], matrix["weight_decay"], bias["weight_decay"]) == (0.5, 0.3, 0.0)
    assert matrix.get("betas") == (0.7, 0.8) or matrix["momentum"] == 0.7


def test_an_unknown_optimizer_is_named():
    with pytest.raises(LabError, match="optimizer 'lion' is unknown: choose adamw, adam, sgd"):
        optim.build(nn.Linear(2, 2), learning_rate=1e-3, optimizer="lion")
    with pytest.raises(LabError, match="optimizer lion is out of range"):
        config(optimizer="lion")
    with pytest.raises(LabError, match="optimizer muon is out of range: choose adamw with"):
        config(optimizer="muon", parallel="fsdp")
