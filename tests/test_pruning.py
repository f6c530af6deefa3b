"""Pruning: how many go and which, masks that training keeps, models that really are smaller."""

import copy
import doctest

import pytest
import torch
from torch.testing import assert_close
from training import config, ragged_batches, tiny_encoder_decoder, tiny_model

from labkit.errors import LabError
from labkit.generation import generate
from labkit.models import (
    Transformer,
    TransformerConfig,
    count_parameters,
    measure_flops,
    parameters,
)
from labkit.models.adapting import remove_blocks
from labkit.models.compression import (
    kept,
    prune,
    prune_heads,
    prune_units,
    pruning,
    second_moments,
    smallest,
    two_of_four,
)
from labkit.models.compression.structured import refit
from labkit.models.compression.targets import linear_layers
from labkit.models.counts import forward_flops as predicted_flops
from labkit.models.huggingface import load_pretrained, save_pretrained, to_huggingface
from labkit.objectives import Distilled, causal_lm
from labkit.training import train


def calibrated(model):
    return second_moments(model, ragged_batches().evaluation_batches())


# --- single weights ------------------------------------------------------------------------------


@pytest.mark.parametrize("within", ["model", "layer", "row"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.75])
def test_the_smallest_go_and_exactly_so_many(within, share):
    sizes = pruning.sizes(tiny_model())
    masks = smallest(sizes, share, within)
    groups = {
        "model": [(torch.cat([s.flatten() for s in sizes.values()]),
                   torch.cat([m.flatten() for m in masks.values()]))],
        "layer": [(sizes[n].flatten(), masks[n].flatten()) for n in sizes],
        "row": [(s, m) for n in sizes for s, m in zip(sizes[n], masks[n], strict=True)],
    }[within]  # fmt: skip
    for size, mask in groups:
        assert int((~mask).sum()) == round(share * mask.numel())
        if share:
            assert size[~mask].max() <= size[mask].min()


def test_one_bound_for_the_model_spares_layers_of_large_weights():
    model = tiny_model()
    with torch.no_grad():
        model.blocks[1].ffn.up.weight.mul_(100)
    masks = smallest(pruning.sizes(model), 0.5, "model")
    assert masks["blocks.1.ffn.up"].float().mean() > 0.95
    assert smallest(pruning.sizes(model), 0.5)["blocks.1.ffn.up"].float().mean() == 0.5


def test_two_of_four_holds_in_every_four_which_half_of_all_does_not():
    sizes = pruning.sizes(tiny_model())
    masks = two_of_four(sizes)
    for name, mask in masks.items():
        fours = mask.view(-1, 4)
        assert (fours.sum(1) == 2).all()
        s = sizes[name].view(-1, 4)
        assert (s.masked_fill(fours, -1).amax(1) <= s.masked_fill(~fours, 9).amin(1)).all()
    assert any((m.view(-1, 4).sum(1) != 2).any() for m in smallest(sizes, 0.5).values())


def test_inputs_decide_with_moments():
    model = tiny_model()
    found = calibrated(model)
    name = "blocks.0.ffn.down"
    found[name] = torch.zeros(32, 32)
    found[name][5, 5] = 1.0
    mask = smallest(pruning.sizes(model, found), 31 / 32)[name]
    assert mask[:, 5].all()
    assert not mask[:, :5].any()


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon", "adamw8bit"])
def test_no_optimiser_brings_pruned_weights_back(optimizer):
    model = tiny_model(d_model=64)  # so that 8-bit moments are in codes
    masks = smallest(pruning.sizes(model), 0.5)
    settings = config(steps=4, optimizer=optimizer)
    before = copy.deepcopy(model)
    with kept(model, masks):
        train(model, causal_lm, ragged_batches(), settings)
    for name, layer in linear_layers(model).items():
        assert (layer.weight[~masks[name]] == 0).all(), name
        assert not torch.equal(
            layer.weight[masks[name]], before.get_submodule(name).weight[masks[name]]
        )
    naive = copy.deepcopy(before)
    prune(naive, masks)
    train(naive, causal_lm, ragged_batches(), settings)
    returned = naive.blocks[0].ffn.up.weight[~masks["blocks.0.ffn.up"]]
    assert (returned != 0).float().mean() > 0.9, "without masks they come back"


def test_after_the_block_training_is_free_again():
    model = tiny_model()
    masks = smallest(pruning.sizes(model), 0.5)
    with kept(model, masks):
        pass
    train(model, causal_lm, ragged_batches(), config(steps=2))
    assert (model.blocks[0].ffn.up.weight[~masks["blocks.0.ffn.up"]] != 0).any()


def test_the_norm_that_clipping_sees_is_that_of_the_weights_that_are_left():
    model = tiny_model()
    masks = smallest(pruning.sizes(model), 0.9)
    prune(model, masks)
    norms = []
    for inside in (False, True):
        new = copy.deepcopy(model)
        run = lambda m=new: train(m, causal_lm, ragged_batches(), config(steps=1))  # noqa: E731
        if inside:
            with kept(new, masks):
                norms.append(run().history[0].grad_norm)
        else:
            norms.append(run().history[0].grad_norm)
    assert norms[1] < norms[0]


def test_transformers_models_are_pruned_alike_also_where_matrices_stand_the_other_way():
    shape = {"vocab_size": 31, "context_length": 16, "d_model": 16, "num_layers": 1, "num_heads": 2}
    ours = Transformer(TransformerConfig.gpt2(**shape, dropout=0.0)).eval()
    theirs = to_huggingface(ours).eval()
    for model in (ours, theirs):
        assert prune(model, two_of_four(pruning.sizes(model))) == 0.5
    ids = torch.randint(31, (1, 9))
    assert_close(ours(ids).logits, theirs(ids).logits, atol=1e-5, rtol=1e-5)


# --- whole units and heads -----------------------------------------------------------------------


def silenced(model):
    """Units 3 and 7 and the first key-value head of every block write nothing."""
    K, H, G = model.config.head_width, model.config.num_heads, model.config.kv_heads
    with torch.no_grad():
        for block in model.blocks:
            block.ffn.down.weight[:, [3, 7]] = 0
            block.attention.out.weight[:, : H // G * K] = 0
    return model


SHAPES = {"llama": {"num_heads": 4, "num_kv_heads": 2}, "biased": {"num_heads": 2, "bias": True}}


def shaped(name, seed=0):
    torch.manual_seed(seed)
    shape = {"vocab_size": 31, "context_length": 16, "d_model": 16, "num_layers": 2, "d_ff": 32}
    return Transformer(TransformerConfig.llama(**(shape | SHAPES[name]))).eval()


@pytest.mark.parametrize("name", list(SHAPES))
@pytest.mark.parametrize("with_text", [False, True])
def test_what_writes_nothing_goes_first_and_nothing_changes(name, with_text, tmp_path):
    model = silenced(shaped(name))
    ids = torch.randint(31, (2, 9))
    moments = calibrated(model) if with_text else None
    with torch.no_grad():
        before = model(ids).logits
        small = copy.deepcopy(model)
        prune_units(small, 30, moments)
        prune_heads(small, model.config.kv_heads - 1, moments)
        assert_close(small(ids).logits, before, atol=1e-5, rtol=1e-5)
        prune_units(small, 29)
        assert not torch.allclose(small(ids).logits, before, atol=1e-5)
    assert small.config.head_width == model.config.head_width
    assert count_parameters(small) == parameters(small.config) < count_parameters(model)
    assert measure_flops(lambda: small(ids)) == predicted_flops(small.config, 2, 9)
    assert generate(small, [1, 2, 3], 5, temperature=0) == generate(
        to_huggingface(small).eval(), [1, 2, 3], 5, temperature=0
    )
    save_pretrained(small, tmp_path / "model")
    with torch.no_grad():
        assert torch.equal(
            load_pretrained(tmp_path / "model").eval()(ids).logits, small(ids).logits
        )


def test_a_pruned_model_trains_and_distils_from_the_whole_one():
    teacher = shaped("llama")
    train(teacher, causal_lm, ragged_batches(), config(steps=30))
    small = copy.deepcopy(teacher)
    prune_units(small, 8)
    prune_heads(small, 1)
    first = train(copy.deepcopy(small), causal_lm, ragged_batches(), config(steps=1))
    result = train(small, Distilled(teacher, share=0.5), ragged_batches(), config(steps=30))
    assert result.history[-1].loss < first.history[0].loss


def test_a_refit_is_never_worse_on_its_text_and_clearly_better_where_units_go_together():
    torch.manual_seed(1)
    h = torch.randn(500, 8) @ torch.randn(8, 24) + 0.1 * torch.randn(500, 24)
    w, kept_units = torch.randn(10, 24), torch.arange(0, 24, 2)
    moments = h.T @ h / 500
    fitted = refit(w, moments, kept_units, damping=0)
    wanted = h @ w.T
    errors = [((h[:, kept_units] @ m.T - wanted) ** 2).sum() for m in (w[:, kept_units], fitted)]
    assert errors[1] < 0.2 * errors[0]
    for damping in (0.01, 1.0, 100.0):
        damped = refit(w, moments, kept_units, damping)
        error = ((h[:, kept_units] @ damped.T - wanted) ** 2).sum()
        assert errors[1] <= error <= errors[0]
        errors[1] = error  # the more damping, the less is made up for
    solution = torch.linalg.lstsq(h[:, kept_units].double(), wanted.double()).solution.T.float()
    assert_close(fitted, solution, atol=1e-3, rtol=1e-3)


def test_refitting_a_model_keeps_it_nearer_to_itself():
    model = shaped("llama")
    train(model, causal_lm, ragged_batches(), config(steps=30))
    moments = calibrated(model)
    batch = next(iter(ragged_batches().evaluation_batches()))
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    distances = []
    with torch.no_grad():
        before = model(**inputs).logits
        for refitted in (False, True):
            small = copy.deepcopy(model)
            prune_units(small, 16, moments, refit=refitted)
            distances.append(float((small(**inputs).logits - before).norm()))
    assert distances[1] < distances[0]


def test_every_second_block_is_a_student_of_its_teacher():
    teacher = tiny_model(num_layers=4)
    train(teacher, causal_lm, ragged_batches(), config(steps=30))
    student = copy.deepcopy(teacher)
    remove_blocks(student, [1, 3])
    assert student.config.num_layers == 2
    assert torch.equal(student.blocks[1].ffn.up.weight, teacher.blocks[2].ffn.up.weight)
    before = {n: p.clone() for n, p in teacher.named_parameters()}
    result = train(student, Distilled(teacher, 1.0, 2.0), ragged_batches(), config(steps=30))
    assert result.history[-1].loss < 0.7 * result.history[0].loss
    assert all(torch.equal(p, before[n]) for n, p in teacher.named_parameters())


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: smallest({"a": torch.ones(2, 4)}, 1.0), "share 1.0 is out of range"),
        (lambda: smallest({"a": torch.ones(2, 4)}, 0.5, "column"), "choose model, layer or row"),  # type: ignore
        (lambda: two_of_four({"a": torch.ones(2, 6)}), "a multiple of 4"),
        (lambda: prune(tiny_model(), {"head": torch.ones(2, 4)}), "no linear layer 'head'"),
        (lambda: prune(tiny_model(), {"blocks.0.ffn.up": torch.ones(2, 4)}), r"shape \(2, 4\)"),
        (lambda: pruning.sizes(tiny_model(), {}), "has no moments"),
        (lambda: prune_units(tiny_model(), 33), "choose 1 to 32"),
        (lambda: prune_heads(tiny_model(), 0), "choose 1 to 2"),
        (lambda: prune_units(tiny_model(), 8, refit=True), "needs the moments"),
        (lambda: prune_units(tiny_model(), 8, {}), "has no moments"),
        (lambda: prune_units(tiny_encoder_decoder(), 8), "cannot lose units"),  # type: ignore
    ],
)
def test_an_error_says_what_is_wrong_and_what_is_allowed(wrong, words):
    with pytest.raises(LabError, match=words):
        wrong()


def test_what_its_docstrings_show():
    assert doctest.testmod(pruning).failed == 0
