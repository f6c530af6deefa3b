"""8-bit AdamW: codes, bytes, and training that stays beside AdamW's."""

import doctest

import pytest
import torch
from training import config, ragged_batches, tiny_model

from labkit import optim
from labkit.errors import LabError
from labkit.objectives import causal_lm
from labkit.optim import AdamW8bit
from labkit.optim import adamw8bit as eight_bit
from labkit.optim.adamw8bit import Quantised, dequantise, quantise
from labkit.training import checkpoint, train


def test_codes_are_the_nearest():
    torch.manual_seed(0)
    values = torch.randn(1000, dtype=torch.float64).float()
    codes = quantise(values).codes_MS
    for shift in (-1, 1):
        moved = (codes.int() + shift).clamp(-127, 127).to(torch.int8)
        here = dequantise(Quantised(codes, quantise(values).scales_M), 1000)
        there = dequantise(Quantised(moved, quantise(values).scales_M), 1000)
        root = lambda x: x.sign() * x.abs().sqrt()  # noqa: E731 - nearest by the root
        near = (root(here) - root(values)).abs()
        assert (near <= (root(there) - root(values)).abs() + 1e-6).all()


@pytest.mark.parametrize("signed", [True, False])
def test_the_error_is_bounded_by_the_spacing(signed):
    torch.manual_seed(0)
    values = torch.randn(5000) * torch.logspace(-6, 3, 5000)
    values = values if signed else values.abs()
    back = dequantise(quantise(values, signed), 5000)
    largest = torch.zeros(20 * 256).index_copy_(0, torch.arange(5000), values.abs())
    largest = largest.view(20, 256).amax(1).repeat_interleave(256)[:5000]
    root_error = (back.abs().sqrt() - values.abs().sqrt()).abs()
    steps = 127 if signed else 255
    assert (root_error <= 0.5001 * largest.sqrt() / steps + 0.5001 * largest.sqrt() / steps).all()
    assert (back.sign() * values.sign() >= 0).all()
    assert torch.equal(back[values == largest], values[values == largest]) or torch.allclose(
        back[values == largest], values[values == largest], rtol=1e-6
    )


def test_a_second_moment_above_0_never_becomes_0():
    values = torch.zeros(256)
    values[:2] = torch.tensor([1.0, 1e-20])
    assert quantise(values, signed=False).codes_MS[0, :3].tolist() == [255, 1, 0]


def test_blocks_confine_an_outlier():
    torch.manual_seed(0)
    values = torch.randn(1024).abs() * 1e-4
    values[0] = 100.0
    back = dequantise(quantise(values), 1024)
    assert (back[1:256] == 0).float().mean() > 0.9, "its own block loses the small values"
    error = (back[256:] - values[256:]).abs() / values[256:].amax()
    assert error.max() < 0.01, "the others do not notice"


def test_negative_second_moments_are_refused():
    with pytest.raises(LabError, match="is below 0"):
        quantise(torch.tensor([-1.0]), signed=False)


@pytest.mark.parametrize("count", [1, 4095, 4096, 4097, 50257 * 16])
def test_state_takes_the_bytes_it_should(count):
    p = torch.nn.Parameter(torch.zeros(count))
    p.grad = torch.ones(count)
    optimizer = AdamW8bit([{"params": [p]}])
    optimizer.step()
    state = optimizer.state[p]
    held = sum(t.numel() * t.element_size() for name, t in state.items() if name != "step")
    assert held == eight_bit.state_bytes(count)
    if count > 10_000:
        assert held / (8 * count) == pytest.approx(0.254, abs=0.001)


def test_small_parameters_take_adamws_step_exactly():
    torch.manual_seed(0)
    ours, theirs = torch.nn.Parameter(torch.randn(100)), torch.nn.Parameter(torch.randn(100))
    theirs.data.copy_(ours.data)
    group = {"lr": 0.01, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    a, b = AdamW8bit([{"params": [ours]}], **group), torch.optim.AdamW([theirs], **group)
    for _ in range(10):
        ours.grad = torch.randn(100)
        theirs.grad = ours.grad.clone()
        a.step()
        b.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_large_parameters_stay_near_adamws_path():
    torch.manual_seed(0)
    start, target = torch.randn(64, 256), torch.randn(64, 256)
    paths = {}
    for name in ("adamw", "adamw8bit"):
        model = torch.nn.Linear(256, 64, bias=False)
        model.weight.data.copy_(start)
        optimizer = optim.build(model, learning_rate=0.01, optimizer=name, weight_decay=0.0)
        for _ in range(100):
            model.weight.grad = model.weight.detach() - target
            optimizer.step()
        paths[name] = model.weight.detach()
    moved = (paths["adamw"] - start).norm()
    assert (paths["adamw8bit"] - paths["adamw"]).norm() < 0.05 * moved
    assert not torch.equal(paths["adamw8bit"], paths["adamw"])


def test_a_model_learns_as_with_adamw():
    losses = {}
    for name in ("adamw", "adamw8bit"):
        model = tiny_model(d_model=64)
        result = train(model, causal_lm, ragged_batches(), config(steps=60, optimizer=name))
        losses[name] = sum(record.loss for record in result.history[-10:]) / 10
    assert losses["adamw8bit"] == pytest.approx(losses["adamw"], rel=0.03)
    assert losses["adamw8bit"] < 0.9 * 3.43


def test_fsdp_is_refused():
    with pytest.raises(LabError, match="adamw8bit needs whole tensors"):
        config(optimizer="adamw8bit", parallel="fsdp")


def test_doctests():
    assert doctest.testmod(eight_bit).failed == 0


def test_codes_survive_a_checkpoint_also_where_they_have_the_parameters_shape():
    torch.manual_seed(0)
    model = torch.nn.Linear(256, 64)
    model.weight.grad, model.bias.grad = torch.randn(64, 256), torch.randn(64)
    optimizer = optim.build(model, learning_rate=0.01, optimizer="adamw8bit")
    optimizer.step()
    assert optimizer.state[model.weight]["m_codes"].shape == model.weight.shape
    saved = checkpoint.optimizer_tensors(model, optimizer)
    restored = optim.build(model, learning_rate=0.01, optimizer="adamw8bit")
    checkpoint.load_optimizer(model, restored, saved)
    for p, state in optimizer.state.items():
        for name, value in state.items():
            assert restored.state[p][name].dtype == value.dtype, name
            assert torch.equal(restored.state[p][name], value), name
