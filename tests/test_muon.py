"""muon: singular values near one, torch's numbers, the blocks' matrices and no others."""

import pytest
import torch
from torch import nn
from training import config, ragged_batches, tiny_model, weights

from labkit import optim
from labkit.objectives import causal_lm
from labkit.optim.muon import orthogonalise
from labkit.training import checkpoint, train


@pytest.mark.parametrize("shape", [(8, 8), (4, 24), (24, 4)])
def test_orthogonalise_sets_singular_values_near_one_and_keeps_directions(shape):
    torch.manual_seed(2)
    matrices = torch.randn(3, *shape, dtype=torch.float64)
    flat = orthogonalise(matrices)
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
