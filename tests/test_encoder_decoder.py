"""The encoder-decoder: who sees whom, what is cached, what is shared, how it trains and answers.

Logits equal to BART's and cached = uncached: test_exactness.py.
"""

import doctest

import pytest
import torch
from torch.testing import assert_close

from labkit.batches import Batches
from labkit.errors import LabError
from labkit.generation import generate
from labkit.models import EncoderDecoder, TransformerConfig, blocks, encoder_decoder, shift_right
from labkit.objectives import causal_lm
from labkit.training import TrainConfig, train

TINY = {"vocab_size": 23, "context_length": 12, "d_model": 16, "num_layers": 2, "num_heads": 4}
BART = TransformerConfig.bart(**TINY, dropout=0.0)
MODERN = TransformerConfig.llama(**TINY, kind="encoder_decoder", num_kv_heads=2)
START, END = 21, 22


def model_of(config):
    torch.manual_seed(0)
    model = EncoderDecoder(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return model.eval()


def tokens(batch=3, length=7, seed=1):
    return torch.randint(20, (batch, length), generator=torch.Generator().manual_seed(seed))


shapes = pytest.mark.parametrize("config", [BART, MODERN], ids=["bart", "modern"])


@shapes
def test_every_answer_token_sees_the_whole_source_and_its_own_past(config):
    model, source, answer = model_of(config), tokens(), tokens(length=6, seed=2)
    before = model(source, decoder_input_ids=answer).logits
    last_source_changed = source.clone()
    last_source_changed[:, -1] = 20
    after = model(last_source_changed, decoder_input_ids=answer).logits
    assert ((before - after).abs().amax(-1) > 1e-4).all(), "cross-attention must not be causal"
    changed = answer.clone()
    changed[:, 3:] = 20
    after = model(source, decoder_input_ids=changed).logits
    assert_close(before[:, :3], after[:, :3])
    assert (before[:, 3:] - after[:, 3:]).abs().max() > 1e-4


@shapes
def test_padding_of_the_source_and_of_the_answer_changes_nothing(config):
    model, source, answer = model_of(config), tokens(), tokens(length=6, seed=2)
    alone = model(source, decoder_input_ids=answer).logits
    zeros, ones = torch.zeros(3, 2).long(), torch.ones_like
    padded = model(
        torch.cat((source, zeros + 5), dim=1),
        torch.cat((ones(source), zeros), dim=1),
        torch.cat((answer, zeros + 5), dim=1),
        torch.cat((ones(answer), zeros), dim=1),
    ).logits
    assert_close(padded[:, :6], alone, rtol=1e-5, atol=1e-6)
    unmasked = model(torch.cat((source, zeros + 5), dim=1), decoder_input_ids=answer).logits
    assert (unmasked - alone).abs().max() > 1e-4, "padding that is read must be noticed"


@shapes
def test_the_cache_keeps_the_sources_keys_and_values(config):
    model, source, answer = model_of(config), tokens(), tokens(length=6, seed=2)
    read, cache = model.read(source), model.new_cache(3)
    whole = model(source, decoder_input_ids=answer).logits
    pieces = [
        model(decoder_input_ids=part, source=read, cache=cache).logits
        for part in answer.split([1, 3, 2], dim=1)
    ]
    assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-5, atol=1e-6)
    assert set(cache.source) == {0, 1}
    used = []
    for block in model.decoder.blocks:
        block.cross_attention.kv.register_forward_hook(lambda *_: used.append(1))
    cache = model.new_cache(3)
    for t in range(6):
        model(decoder_input_ids=answer[:, t : t + 1], source=read, cache=cache)
    assert len(used) == 2, "keys and values of the source are computed once for each layer"


def test_one_table_of_embeddings_serves_both_sides():
    model = EncoderDecoder(BART)
    assert model.encoder.embedding is model.decoder.embedding
    assert model.lm_head.weight is model.get_input_embeddings().weight
    untied = EncoderDecoder(TransformerConfig.bart(**TINY, tied_embeddings=False))
    assert untied.get_output_embeddings().weight is not untied.get_input_embeddings().weight
    assert len(blocks(model)) == 4
    assert next(iter(blocks(model))) is model.encoder.blocks[0]


def test_projections_into_the_stream_start_smaller_with_their_number():
    config = TransformerConfig.bart(**{**TINY, "d_model": 128, "num_layers": 3})
    model = EncoderDecoder(config)
    block = model.decoder.blocks[0]
    for linear in (block.attention.out, block.cross_attention.out, block.ffn.down):
        assert_close(linear.weight.std().item(), 0.02 / 3, rtol=0.1, atol=0)
    assert_close(
        model.encoder.blocks[0].ffn.down.weight.std().item(), 0.02 / 6**0.5, rtol=0.1, atol=0
    )


@shapes
def test_encode_is_what_the_head_reads_and_the_objective_uses_it(config):
    model, source, answer = model_of(config), tokens(), tokens(length=6, seed=2)
    inputs = {"input_ids": source, "decoder_input_ids": answer}
    assert_close(model.lm_head(model.encode(**inputs)), model(**inputs).logits)
    labels = tokens(length=6, seed=3)
    labels[0, 4:] = -100
    heads_read = []
    model.lm_head.register_forward_hook(lambda *_: heads_read.append(1))
    total, count = causal_lm(model, {**inputs, "labels": labels})
    assert not heads_read, "the loss must not hold all logits at once"
    expected = torch.nn.functional.cross_entropy(
        model(**inputs).logits.flatten(0, 1), labels.flatten(), reduction="sum"
    )
    assert_close(total, expected)
    assert count == 16


@shapes
def test_checkpointing_changes_no_gradient(config):
    grads = []
    for on in (False, True):
        model = model_of(config).train()
        model.gradient_checkpointing = on
        assert model.encoder.gradient_checkpointing == on
        model(tokens(), decoder_input_ids=tokens(length=4)).logits.square().mean().backward()
        grads.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_learns_to_copy_backwards_and_answers():
    # The answer is the source reversed: only cross-attention can carry it.
    examples = []
    for i in range(512):
        source = tokens(1, 4, seed=i)[0] % 8
        labels = torch.cat((source.flip(0), torch.tensor([END])))
        answer = shift_right(labels[None], START)[0]
        examples.append({"input_ids": source, "decoder_input_ids": answer, "labels": labels})
    torch.manual_seed(0)
    model = EncoderDecoder(
        TransformerConfig.llama(
            **{**TINY, "d_model": 32, "num_layers": 1}, kind="encoder_decoder", position="learned",
            initializer_range=0.15,
        )
    )  # fmt: skip
    config = TrainConfig(steps=200, learning_rate=1e-2, warmup_steps=10, precision="fp32")
    result = train(model, causal_lm, Batches(examples, 32), config)
    assert result.history[-1].loss < 0.2
    sources = [[1, 2, 3, 4], [7, 0, 0, 5], [3, 3, 6, 2]]
    answers = generate(model, sources, 6, temperature=0, end_id=END, start_id=START)
    right = sum(answer == source[::-1] for answer, source in zip(answers, sources, strict=True))
    assert right >= 2, answers


def test_what_is_missing_is_named():
    model = EncoderDecoder(BART)
    with pytest.raises(LabError, match="decoder_input_ids is None"):
        model(tokens())
    with pytest.raises(LabError, match="input_ids is None"):
        model(decoder_input_ids=tokens())
    with pytest.raises(LabError, match="13 tokens and context_length is 12"):
        model(tokens(length=13), decoder_input_ids=tokens())
    with pytest.raises(LabError, match="start_id is None"):
        generate(model, [1, 2], 2)
    with pytest.raises(LabError, match="kind is 'decoder'"):
        EncoderDecoder(TransformerConfig.gpt2(**TINY))
    headless = EncoderDecoder(TransformerConfig.bart(**TINY, vocabulary_head=False))
    with pytest.raises(LabError, match="vocabulary_head is False"):
        generate(headless, [1, 2], 2, start_id=START)


def test_doctests():
    assert doctest.testmod(encoder_decoder).failed == 0
