"""optim: AdamW by hand, Muon, the schedule, what decays."""

import pytest
import torch
from torch import nn
from training import config, ragged_batches, tiny_model, weights

from labkit import checkpoint, optim
from labkit.errors import LabError
from labkit.objectives import causal_lm
from labkit.train import train


def test_by_hand_follows_torch_for_a_hundred_steps():
    torch.manual_seed(1)
    start = torch.randn(6, 4, dtype=torch.float64)
    ours = start.clone()
    m, v = torch.zeros_like(ours), torch.zeros_like(ours)
    theirs = nn.Parameter(start.clone())
    adam = torch.optim.AdamW([theirs], lr=3e-2, betas=(0.9, 0.95), weight_decay=0.2)
    for step in range(1, 101):
        gradient = torch.randn(6, 4, dtype=torch.float64)
        theirs.grad = gradient.clone()
        adam.step()
        optim.adamw_step(
            ours, gradient, m, v, step, learning_rate=3e-2, betas=(0.9, 0.95), weight_decay=0.2
        )
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-10, atol=1e-12)


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


@pytest.mark.parametrize("shape", [(8, 8), (4, 24), (24, 4)])
def test_orthogonalise_sets_singular_values_near_one_and_keeps_directions(shape):
    torch.manual_seed(2)
    matrices = torch.randn(3, *shape, dtype=torch.float64)
    flat = optim.orthogonalise(matrices)
    values = torch.linalg.svdvals(flat)
    assert values.min() > 0.3
    assert values.max() < 1.3
    U, _, Vh = torch.linalg.svd(matrices, full_matrices=False)
    inside = U.mT @ flat @ Vh.mT
    assert (inside - inside.diagonal(dim1=-2, dim2=-1).diag_embed()).abs().max() < 1e-9


def test_muon_follows_torch_on_a_plain_matrix():
    torch.manual_seed(3)
    ours, theirs = nn.ModuleList([nn.Linear(24, 16, bias=False)]), nn.Linear(24, 16, bias=False)
    theirs.load_state_dict(ours[0].state_dict())
    muon = optim.build(ours, learning_rate=1e-2, optimizer="muon", weight_decay=0.1)
    muon.dtype = torch.bfloat16  # as torch computes: equal up to its rounding
    start = theirs.weight.detach().clone()
    reference = torch.optim.Muon(
        theirs.parameters(), lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
    )
    for _ in range(10):
        gradient = torch.randn(16, 24)
        ours[0].weight.grad, theirs.weight.grad = gradient.clone(), gradient.clone()
        muon.step()
        reference.step()
    distance = (ours[0].weight - theirs.weight).norm() / (theirs.weight - start).norm()
    assert distance < 0.04


def test_muon_takes_the_blocks_matrices_and_leaves_the_rest_to_adamw():
    model = tiny_model()
    before = weights(model)
    muon = optim.build(model, learning_rate=1e-2, optimizer="muon", weight_decay=0.0)
    loss, count = causal_lm(model, ragged_batches().micro_batches(0)[0])
    (loss / count).backward()
    muon.step()
    change = model.blocks[0].attention.qkv.weight.detach() - before["blocks.0.attention.qkv.weight"]
    for part in change.split(16):  # queries, keys, values: each is orthogonal by itself
        values = torch.linalg.svdvals(part / (1e-2 * 0.2 * 16**0.5))
        assert values.max() < 1.4
        assert values.median() > 0.6
    assert "exp_avg" in muon.state[model.embedding.weight]
    assert "exp_avg" in muon.state[model.final_norm.weight]
    assert "momentum" in muon.state[model.blocks[1].ffn.down.weight]


def test_muon_resumes_to_the_bit(tmp_path):
    whole = tiny_model(dropout=0.1)
    train(whole, causal_lm, ragged_batches(), config(optimizer="muon"))
    first, second = tiny_model(dropout=0.1), tiny_model(dropout=0.1, seed=5)

    def stop(record):
        if record.step == 4:
            raise KeyboardInterrupt

    run = {"optimizer": "muon", "out": tmp_path / "run", "save_every": 2}
    train(first, causal_lm, ragged_batches(), config(**run), on_step=stop)
    train(second, causal_lm, ragged_batches(), config(**run, resume=True))
    assert all(torch.equal(weights(whole)[n], w) for n, w in weights(second).items())
    without = checkpoint.optimizer_tensors(second, optim.build(second, learning_rate=1.0))
    assert without == {}


def test_an_unknown_optimizer_is_named():
    with pytest.raises(LabError, match="optimizer 'adam' is unknown: choose adamw or muon"):
        optim.build(nn.Linear(2, 2), learning_rate=1e-3, optimizer="adam")
    with pytest.raises(LabError, match="optimizer sgd is out of range"):
        config(optimizer="sgd")
    with pytest.raises(LabError, match="optimizer muon is out of range: choose adamw with"):
        config(optimizer="muon", parallel="fsdp")
