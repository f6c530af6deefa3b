"""Predicted = counted: parameters and FLOPs exactly, memory within 15 % (labkit: 3 %)."""

import dataclasses
import doctest

import pytest
import torch

from labkit import accounting
from labkit.errors import LabError
from labkit.models import EncoderDecoder, Transformer, TransformerConfig, counts
from labkit.models.huggingface import to_huggingface
from labkit.objectives import causal_lm, classification, cross_entropy

TINY = {"vocab_size": 512, "context_length": 64, "d_model": 64, "num_layers": 3, "num_heads": 4}
MINILM = TransformerConfig.bert(
    vocab_size=30522, context_length=512, d_model=384, num_layers=6, num_heads=12, num_labels=5
)
SHAPES = {
    "gpt2": TransformerConfig.gpt2(**TINY, dropout=0.0),
    "gpt2_dropout": TransformerConfig.gpt2(**TINY),
    "gpt2_no_bias_untied": TransformerConfig.gpt2(**TINY, bias=False, tied_embeddings=False),
    "sinusoidal_relu": TransformerConfig(**TINY, position="sinusoidal", activation="relu"),
    "llama": TransformerConfig.llama(**TINY),
    "llama_grouped": TransformerConfig.llama(**TINY, num_kv_heads=2, d_ff=100),
    "bert_masked_lm": TransformerConfig.bert(**TINY),
    "bert_first": TransformerConfig.bert(**TINY, num_labels=4),
    "bert_mean": TransformerConfig.bert(**TINY, num_labels=4, pooling="mean"),
    "bert_base": TransformerConfig.bert(**TINY, vocabulary_head=False),
}
CASES = [
    (shape, library, precision)
    for shape in ("gpt2", "gpt2_dropout", "llama", "llama_grouped", "bert_masked_lm", "bert_first")
    for library in ("labkit", "transformers")
    for precision in ("fp32", "bf16")
    if not (library == "transformers" and "gpt2" in shape)
]


@pytest.mark.parametrize("shape", SHAPES)
def test_parameters_and_flops_are_exact(shape):
    config = SHAPES[shape]
    model = Transformer(config)
    assert counts.parameters(config) == counts.count_parameters(model)
    ids = torch.randint(512, (3, 20))
    measured = counts.measure_flops(lambda: model(ids))
    assert measured == counts.forward_flops(config, 3, 20)


ENCODER_DECODERS = {
    "bart": TransformerConfig.bart(**TINY),
    "bart_untied_no_bias": TransformerConfig.bart(**TINY, tied_embeddings=False, bias=False),
    "llama_pair": TransformerConfig.llama(**TINY, kind="encoder_decoder", num_kv_heads=2),
    "no_head": TransformerConfig.bart(**TINY, vocabulary_head=False, position="sinusoidal"),
}


@pytest.mark.parametrize("shape", ENCODER_DECODERS)
@pytest.mark.parametrize(("T", "S"), [(20, 20), (7, 31)])
def test_parameters_and_flops_of_an_encoder_decoder_are_exact(shape, T, S):
    config = ENCODER_DECODERS[shape]
    model = EncoderDecoder(config)
    assert counts.parameters(config) == counts.count_parameters(model)
    source, answer = torch.randint(512, (3, S)), torch.randint(512, (3, T))
    measured = counts.measure_flops(lambda: model(source, decoder_input_ids=answer))
    assert measured == counts.forward_flops(config, 3, T, S)
    halves = sum(
        counts.forward_flops(dataclasses.replace(config, **half), 3, length)
        for half, length in (
            ({"kind": "encoder", "vocabulary_head": False}, S),
            ({"kind": "decoder"}, T),
        )
    )
    assert measured > halves, "cross-attention costs something"


@pytest.mark.parametrize("shape", ["gpt2", "llama_grouped"])
def test_training_is_three_forwards(shape):
    config = SHAPES[shape]
    model = Transformer(config)
    ids = torch.randint(512, (2, 20))
    measured = counts.measure_flops(lambda: model(ids).logits.sum().backward())
    assert measured == 2 * 20 * counts.flops_per_token(config, 20)
    assert measured != 6 * counts.parameters(config) * 40, "6N leaves out attention"


def measured_memory(config, model, batch_size, length, precision):
    ids = torch.randint(config.vocab_size, (batch_size, length))
    batch = {"input_ids": ids, "labels": ids}
    objective = causal_lm
    if config.kind == "encoder":
        batch["attention_mask"] = torch.ones_like(ids)
    if config.num_labels:
        objective = classification
        batch["labels"] = torch.randint(config.num_labels, (batch_size,))

    def loss():
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            return objective(model, batch)[0]

    return accounting.measure_memory(model.train(), loss)


def assert_within(predicted, measured, bound):
    for name, mine, real in zip(predicted._fields, predicted, measured, strict=True):
        assert abs(mine - real) <= bound * real, f"{name}: {mine} predicted, {real} measured"


@pytest.mark.parametrize(("shape", "library", "precision"), CASES)
def test_memory_is_predicted_by_part(shape, library, precision):
    config = SHAPES[shape]
    model = Transformer(config)
    if library == "transformers":
        model = to_huggingface(model)
    predicted = accounting.predict_memory(
        config, 4, 64, precision, implementation=library, chunked_loss=library == "labkit"
    )
    measured = measured_memory(config, model, 4, 64, precision)
    assert_within(predicted, measured, 0.03 if library == "labkit" else 0.15)

    shorter = accounting.predict_memory(
        config, 4, 32, precision, implementation=library, chunked_loss=library == "labkit"
    )
    assert abs(shorter.activations - measured.activations) > 0.15 * measured.activations


def test_long_bf16_sequences_keep_no_scores():
    config = dataclasses.replace(SHAPES["llama"], context_length=600, num_layers=1)
    model = Transformer(config)
    predicted = accounting.predict_memory(config, 1, 600, "bf16")
    assert_within(predicted, measured_memory(config, model, 1, 600, "bf16"), 0.06)
    scores = 2 * config.num_heads * 600 * 600
    assert scores > 0.5 * predicted.activations, "counting the scores would be noticed"


@pytest.mark.slow
@pytest.mark.parametrize("library", ["labkit", "transformers"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_memory_of_minilm_at_16_by_128(library, precision):
    model = Transformer(MINILM)
    if library == "transformers":
        model = to_huggingface(model)
    predicted = accounting.predict_memory(MINILM, 16, 128, precision, implementation=library)
    assert_within(predicted, measured_memory(MINILM, model, 16, 128, precision), 0.15)


def test_a_plain_loss_keeps_the_log_probabilities():
    config = SHAPES["llama"]
    model = Transformer(config)
    ids = torch.randint(512, (4, 64))
    measured = accounting.measure_memory(
        model, lambda: cross_entropy(model(ids).logits.flatten(0, 1), ids.flatten())[0]
    )
    assert_within(accounting.predict_memory(config, 4, 64, chunked_loss=False), measured, 0.03)


def test_measuring_changes_nothing():
    model = Transformer(SHAPES["gpt2_dropout"]).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(7)
    state = torch.get_rng_state()
    memory = accounting.measure_memory(model, lambda: model(torch.ones(1, 8).long()).logits.sum())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())
    assert memory.total == sum(memory)


def test_frozen_parameters_cost_no_gradient():
    config = SHAPES["bert_mean"]
    model = Transformer(config)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("classifier"))
    trainable = counts.count_parameters(model, trainable=True)
    predicted = accounting.predict_memory(config, 2, 8, trainable=trainable)
    measured = accounting.measure_memory(model, lambda: model(torch.ones(2, 8).long()).logits.sum())
    assert predicted.gradients == measured.gradients == 4 * (64 * 4 + 4)
    assert predicted.optimizer < 8 * counts.parameters(config) / 100


def test_utilisation_is_a_share_of_the_peak():
    config = dataclasses.replace(SHAPES["llama"])
    per_token = counts.flops_per_token(config, 64)
    assert counts.flop_utilisation(1000, config, 64, 2000 * per_token) == 0.5
    with pytest.raises(LabError, match="peak is 0"):
        counts.flop_utilisation(1000, config, 64, 0)


def test_what_cannot_be_predicted_is_named():
    with pytest.raises(LabError, match="int8"):
        accounting.predict_memory(SHAPES["llama"], 1, 8, "int8")
    with pytest.raises(LabError, match="GPT-2"):
        accounting.predict_memory(SHAPES["gpt2"], 1, 8, implementation="transformers")
    with pytest.raises(LabError, match="encoder_decoder"):
        accounting.predict_memory(ENCODER_DECODERS["bart"], 1, 8)


def test_doctests():
    assert doctest.testmod(counts).failed == 0
