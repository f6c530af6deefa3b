"""The mixture-of-experts layer: equal to a loop, to one net, to a mean; what balancing rewards."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from labkit.batches import Batches, Windows, stack
from labkit.errors import LabError
from labkit.models import (
    MixtureOfExperts,
    Transformer,
    TransformerConfig,
    active_parameters,
    expert_layers,
    load_entropy,
    with_experts,
)
from labkit.models.transformer import blocks
from labkit.objectives import Balanced, causal_lm
from labkit.optim.optimizers import build
from labkit.training import TrainConfig, train

SHAPE = TransformerConfig.llama(
    vocab_size=50, context_length=16, d_model=16, num_layers=2, num_heads=2, d_ff=24
)


def layer_of(experts, chosen, **options):
    torch.manual_seed(1)
    return MixtureOfExperts(SHAPE, experts, chosen, **options).double()


def one_by_one(layer, x_BTD):
    """By definition: each token alone, its experts one after the other."""
    rows = []
    for x_D in x_BTD.flatten(0, 1):
        p_E = (layer.router.weight @ x_D).softmax(-1)
        best = p_E.topk(layer.chosen).indices
        weight = p_E[best].sum() if layer.renormalise else 1.0
        rows.append(sum(p_E[e] / weight * layer.experts[int(e)](x_D) for e in best))
    return torch.stack(rows).view_as(x_BTD)


@pytest.mark.parametrize("renormalise", [False, True])
@pytest.mark.parametrize(("experts", "chosen"), [(1, 1), (4, 1), (4, 2), (5, 5)])
def test_grouped_is_one_by_one_forward_and_backward(experts, chosen, renormalise):
    layer, x = layer_of(experts, chosen, renormalise=renormalise), torch.randn(2, 7, 16).double()
    x.requires_grad_()
    weight = torch.randn(2, 7, 16).double()
    inputs = [x, *layer.parameters()]

    def gradients(function):
        found = torch.autograd.grad((function(x) * weight).sum(), inputs, allow_unused=True)
        return [
            g if g is not None else torch.zeros_like(p) for p, g in zip(inputs, found, strict=True)
        ]

    assert_close(layer(x), one_by_one(layer, x), atol=1e-12, rtol=1e-12)
    for ours, theirs in zip(
        gradients(layer), gradients(lambda x: one_by_one(layer, x)), strict=True
    ):
        assert_close(ours, theirs, atol=1e-12, rtol=1e-12)


def test_gradients_by_differences():
    layer = layer_of(3, 2)
    assert torch.autograd.gradcheck(layer, (torch.randn(1, 4, 16).double().requires_grad_(),))


def test_one_expert_is_the_dense_model():
    torch.manual_seed(0)
    dense = Transformer(SHAPE)
    sparse = with_experts(copy.deepcopy(dense), experts=1)
    for block, layer in zip(dense.blocks, expert_layers(sparse), strict=True):
        layer.experts[0].load_state_dict(block.ffn.state_dict())
    ids = torch.randint(50, (3, 9))
    assert_close(sparse(ids).logits, dense(ids).logits, atol=1e-6, rtol=1e-6)
    expert_layers(sparse)[0].experts[0].down.weight.data *= 1.01
    assert not torch.allclose(sparse(ids).logits, dense(ids).logits, atol=1e-6, rtol=1e-6)


def test_all_experts_and_a_router_that_knows_nothing_are_their_mean():
    layer, x = layer_of(4, 4), torch.randn(2, 5, 16).double()
    nn.init.zeros_(layer.router.weight)
    mean = torch.stack([expert(x) for expert in layer.experts]).mean(0)
    assert_close(layer(x), mean, atol=1e-12, rtol=1e-12)
    assert not torch.allclose(layer_of(4, 3)(x), mean)


def test_a_token_does_not_depend_on_its_neighbours():
    """Nothing is dropped, however many want the same expert."""
    layer, x = layer_of(4, 1), torch.randn(1, 12, 16).double()
    crowded = torch.cat([x[:, :1].expand(-1, 40, -1), x], dim=1)
    assert_close(layer(crowded)[:, 40:], layer(x), atol=1e-12, rtol=1e-12)


def test_top_1_divided_by_its_sum_teaches_the_router_nothing():
    x = torch.randn(2, 6, 16).double()
    for renormalise in (False, True):
        layer = layer_of(4, 1, renormalise=renormalise)
        layer(x).square().sum().backward()
        moved = float(layer.router.weight.grad.abs().max())
        assert (moved < 1e-12) == renormalise


def test_balance_is_1_where_all_are_used_alike_and_e_where_one_has_all():
    layer = layer_of(4, 1)
    with torch.no_grad():
        layer.router.weight.zero_()
        layer.router.weight[:, :4] = 100 * torch.eye(4)
    even = torch.eye(16).double()[:4][None]
    layer(even)
    assert float(layer.last.balance.detach()) == pytest.approx(1)
    assert layer.last.load_E.tolist() == [0.25] * 4
    layer(even[:, :1].expand(-1, 8, -1))
    assert float(layer.last.balance.detach()) == pytest.approx(4)
    assert load_entropy(layer.last.load_E) == pytest.approx(1)


def test_balancing_pushes_the_crowded_expert_down():
    layer = layer_of(3, 1)
    x = torch.randn(1, 30, 16).double()
    with torch.no_grad():
        layer.router.weight[0] += 0.5 * x.flatten(0, 1).mean(0) * 16
    layer(x)
    before = layer.last.balance
    before.backward()
    with torch.no_grad():
        layer.router.weight -= 0.1 * layer.router.weight.grad
    layer(x)
    assert float(layer.last.balance) < float(before)


def test_the_objective_holds_the_balance_once_and_only_in_training():
    torch.manual_seed(0)
    model = with_experts(Transformer(SHAPE), experts=4)
    ids = torch.randint(50, (2, 9))
    batch = {"input_ids": ids[:, :-1], "labels": ids[:, 1:]}
    plain, count = causal_lm(model, batch)
    both, same = Balanced(causal_lm, 0.5)(model, batch)
    balance = sum(layer.last.balance for layer in expert_layers(model))
    assert count == same
    assert_close(both / count, plain / count + 0.5 * balance)
    model.eval()
    assert_close(Balanced(causal_lm, 0.5)(model, batch)[0], causal_lm(model, batch)[0])
    with pytest.raises(LabError, match="-1"):
        Balanced(causal_lm, -1)


def test_the_loop_trains_it_and_counts_are_right():
    torch.manual_seed(0)
    model = with_experts(Transformer(SHAPE), experts=4, chosen=2, width=12)
    one = 3 * 16 * 12
    assert active_parameters(model) == sum(p.numel() for p in model.parameters()) - 2 * 2 * one
    tokens = Windows(torch.arange(400).numpy() % 7, 16)
    first = float(causal_lm(model, Batches(tokens, 8, stack).micro_batches(0)[0])[0])
    config = TrainConfig(steps=20, learning_rate=1e-2, warmup_steps=2, precision="fp32")
    train(model, Balanced(causal_lm), Batches(tokens, 8, stack, seed=0), config)
    assert float(causal_lm(model, Batches(tokens, 8, stack).micro_batches(0)[0])[0]) < first / 2


def test_the_stack_of_layers_is_not_the_list_of_experts():
    """Muon takes the matrices of the blocks: all of them, however many experts a layer has."""
    model = with_experts(Transformer(SHAPE), experts=4)
    assert list(blocks(model)) == list(model.blocks)
    groups = build(model, learning_rate=1e-3, optimizer="muon").param_groups
    orthogonal = {id(p) for group in groups if group["orthogonal"] for p in group["params"]}
    matrices = {id(p) for block in model.blocks for p in block.parameters() if p.ndim == 2}
    assert orthogonal == matrices


def test_a_choice_out_of_range():
    with pytest.raises(LabError, match="chosen=5 of experts=4: choose 1 to 4"):
        MixtureOfExperts(SHAPE, 4, 5)
