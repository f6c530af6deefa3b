"""The peak of an update: predicted = simulated = counted, and each saving saves what it should."""

import dataclasses

import pytest
import torch

from labkit import accounting, objectives
from labkit.accounting import Peak, PeakTracker, Recipe
from labkit.errors import LabError
from labkit.models import Transformer, TransformerConfig, counts
from labkit.objectives import losses

SMALL = {"d_model": 128, "num_layers": 3, "num_heads": 4, "vocab_size": 3000}
SHAPES = {
    "gpt2": TransformerConfig.gpt2(**SMALL, dropout=0.0),
    "llama": TransformerConfig.llama(**SMALL, num_kv_heads=2, context_length=512),
    "untied": TransformerConfig.llama(**SMALL, context_length=512, tied_embeddings=False),
    "few words": TransformerConfig.gpt2(**{**SMALL, "vocab_size": 100}, dropout=0.0),
}
RECIPES = {
    "fp32": Recipe(precision="fp32"),
    "bf16": Recipe(),
    "fp16": Recipe(precision="fp16"),
    "accumulation": Recipe(accumulation=True),
    "plain loss": Recipe(chunked_loss=False),
    "plain loss, fp32": Recipe(chunked_loss=False, precision="fp32"),
    "checkpointing": Recipe(checkpointing=True),
    "step in backward": Recipe(checkpointing=True, step_in_backward=True),
    "8-bit": Recipe(checkpointing=True, step_in_backward=True, optimizer="adamw8bit"),
    "all bf16": Recipe(weights="bf16"),
    "all bf16, sgd": Recipe(weights="bf16", checkpointing=True, optimizer="sgd"),
}


def functions(config, batch_size, length, recipe):
    def build():
        torch.set_default_dtype(torch.bfloat16 if recipe.weights == "bf16" else torch.float32)
        model = Transformer(config)
        torch.set_default_dtype(torch.float32)
        model.gradient_checkpointing = recipe.checkpointing
        return model

    def loss(model):
        ids = torch.zeros(batch_size, length, dtype=torch.long)
        kind = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
        narrow = recipe.precision != "fp32" and recipe.weights == "fp32"
        with torch.autocast("cpu", kind[recipe.precision], enabled=narrow):
            if recipe.chunked_loss:
                return objectives.causal_lm(model, {"input_ids": ids, "labels": ids})[0]
            return losses.cross_entropy(model(ids).logits.flatten(0, 1), ids.flatten())[0]

    return build, loss


def settings(recipe):
    return {
        "optimizer": recipe.optimizer,
        "step_in_backward": recipe.step_in_backward,
        "micro_batches": 2 if recipe.accumulation else 1,
    }


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_predicted_peak_is_the_simulated_one(shape, recipe):
    config, recipe = SHAPES[shape], RECIPES[recipe]
    simulated = accounting.simulate_peak(*functions(config, 4, 256, recipe), **settings(recipe))
    predicted = accounting.predict_peak(config, 4, 256, recipe)
    assert predicted.total == pytest.approx(simulated.total, rel=0.1)
    assert predicted.weights == simulated.weights
    assert predicted.optimizer == pytest.approx(simulated.optimizer, rel=0.02)
    shorter = accounting.predict_peak(config, 4, 128, recipe)
    assert shorter.total != pytest.approx(simulated.total, rel=0.1), "the length would be noticed"


@pytest.mark.parametrize("recipe", ["fp32", "bf16", "accumulation", "step in backward", "8-bit"])
def test_simulated_tensors_take_what_real_ones_take(recipe):
    config, recipe = SHAPES["gpt2"], RECIPES[recipe]
    build, loss = functions(config, 2, 64, recipe)
    real = accounting.measure_peak(build(), loss, **settings(recipe))
    assert accounting.simulate_peak(build, loss, **settings(recipe)) == real


def test_a_large_model_is_simulated_without_its_memory():
    config = TransformerConfig.gpt2(dropout=0.0)
    peak = accounting.simulate_peak(*functions(config, 8, 512, Recipe(precision="fp16")))
    assert peak.weights == 4 * 124_439_808
    assert peak.optimizer == pytest.approx(8 * 124_439_808, rel=1e-4)
    assert peak.total > 3.4e9
    assert peak.total == pytest.approx(
        accounting.predict_peak(config, 8, 512, Recipe(precision="fp16")).total, rel=0.05
    )


def test_the_tracker_counts_views_once_and_forgets_what_is_freed():
    model = torch.nn.Linear(10, 10, bias=False)
    with PeakTracker(model) as tracker:
        first = torch.zeros(1000)
        views = [first[:500], first.view(10, 100), first[None]]
        assert tracker.bytes["workspace"] == 4000
        del first, views
        assert tracker.bytes["workspace"] == 0
        torch.zeros(500)
    assert tracker.peak == Peak(400, 0, 0, 0, 4000)


def test_a_saving_away_from_the_fullest_moment_saves_nothing():
    config = SHAPES["gpt2"]
    at = {
        name: accounting.predict_moments(config, 4, 256, RECIPES[name])
        for name in ("checkpointing", "step in backward")
    }
    assert at["step in backward"]["embedding"].total < at["checkpointing"]["embedding"].total
    assert at["step in backward"]["loss"].total == at["checkpointing"]["loss"].total
    peaks = {name: accounting.predict_peak(config, 4, 256, RECIPES[name]) for name in at}
    assert peaks["checkpointing"].total == peaks["step in backward"].total


def test_measuring_a_peak_trains_nothing():
    config = SHAPES["llama"]
    build, loss = functions(config, 2, 32, Recipe())
    model = build()
    before = {name: p.clone() for name, p in model.state_dict().items()}
    accounting.measure_peak(model, loss)
    assert all(torch.equal(before[name], p) for name, p in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_sixteen_bytes_a_parameter_as_in_zero():
    """Rajbhandari et al. 2020, section 3.1: 16 bytes a parameter; 1.5 B: at least 24 GB; figure 1:
    7.5 B: 120 GB. They count 2 + 2 + 12 (fp32 copy, two moments), this loop 4 + 4 + 8."""
    config = TransformerConfig.gpt2(dropout=0.0, d_model=1600, num_layers=48, num_heads=25)
    memory = accounting.predict_memory(config, 1, 8)
    states = memory.weights + memory.gradients + memory.optimizer
    assert states == 16 * counts.parameters(config)
    assert 24e9 < states < 25.5e9
    assert 16 * 7.5e9 == 120e9


def test_activations_of_a_block_as_in_korthikanti():
    """Korthikanti et al. 2022, equation 1: 34 s b h bytes a layer in fp16 with dropout, beside the
    attention scores (which a fused kernel does not keep). Without dropout's masks (1 + 1 bytes) and
    with this loop's fp32 residual stream (two norms' inputs, 2 more bytes each): 36."""
    config = TransformerConfig.gpt2(dropout=0.0, d_model=1024, num_layers=1, num_heads=16)
    kept = accounting.kept_bytes(config, 2, 512, "fp16", device="cuda")
    assert kept.block / (2 * 512 * 1024) == pytest.approx(34 - 2 + 4, rel=0.01)


def test_what_cannot_be_predicted_is_named():
    with pytest.raises(LabError, match="'encoder'"):
        accounting.predict_peak(TransformerConfig.bert(), 1, 8)
    with pytest.raises(LabError, match="int8"):
        Recipe(precision="int8")  # pyright: ignore[reportArgumentType]
    with pytest.raises(LabError, match="adagrad"):
        Recipe(optimizer="adagrad")
    with pytest.raises(LabError, match="accumulation"):
        Recipe(step_in_backward=True, accumulation=True)
    with pytest.raises(LabError, match="fp64"):
        dataclasses.replace(Recipe(), weights="fp64")
