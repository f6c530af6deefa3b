"""The model of every config: shapes, start, masks, heads, errors."""

import dataclasses
import math
import subprocess
import sys

import pytest
import torch
from torch.testing import assert_close

from labkit.errors import LabError
from labkit.models import RMSNorm, Transformer, TransformerConfig, blocks

TINY = {"vocab_size": 53, "context_length": 16, "d_model": 16, "num_layers": 2, "num_heads": 4}
GPT2, LLAMA, BERT = (
    getattr(TransformerConfig, name)(**TINY, dropout=0.0) for name in ("gpt2", "llama", "bert")
)


def ids(batch=3, length=9):
    torch.manual_seed(1)
    return torch.randint(53, (batch, length))


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
@pytest.mark.parametrize("norm_position", ["pre", "post"])
@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
@pytest.mark.parametrize("position", ["learned", "rotary", "sinusoidal"])
@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_every_combination_trains(norm, norm_position, activation, position, kind):
    config = TransformerConfig(
        **TINY,
        kind=kind,
        norm=norm,
        norm_position=norm_position,
        activation=activation,
        position=position,
    )
    torch.manual_seed(0)
    model = Transformer(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        loss = torch.nn.functional.cross_entropy(model(ids()).logits.flatten(0, 1), ids().flatten())
        loss.backward()
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize("config", [GPT2, LLAMA, BERT], ids=["gpt2", "llama", "bert"])
def test_starts_near_the_uniform_distribution(config):
    torch.manual_seed(0)
    logits = Transformer(config)(ids()).logits
    others = torch.randint(53, (27,))
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), others)
    assert abs(loss.item() - math.log(53)) < 0.15


def test_residual_projections_start_smaller_with_depth():
    model = Transformer(dataclasses.replace(GPT2, d_model=64, num_layers=8))
    assert_close(model.blocks[0].attention.out.weight.std().item(), 0.02 / 4, rtol=0.1, atol=0)
    assert_close(model.blocks[0].attention.qkv.weight.std().item(), 0.02, rtol=0.1, atol=0)


def test_the_first_weights_have_the_spread_that_was_asked_for():
    model = Transformer(dataclasses.replace(GPT2, d_model=64, num_layers=8, initializer_range=0.1))
    assert_close(model.embedding.weight.std().item(), 0.1, rtol=0.1, atol=0)
    assert_close(model.blocks[0].ffn.down.weight.std().item(), 0.1 / 4, rtol=0.1, atol=0)
    with pytest.raises(LabError, match=r"initializer_range is 0\.0; it must be above 0"):
        dataclasses.replace(GPT2, initializer_range=0.0)


def test_rmsnorm_is_torchs_with_its_gradients():
    norm = RMSNorm(24, eps=1e-5).double()
    torch.nn.init.uniform_(norm.weight, 0.5, 2.0)
    x = torch.randn(3, 7, 24, dtype=torch.double, requires_grad=True)
    torch.autograd.gradcheck(norm, (x,))
    ours = torch.autograd.grad(norm(x).sin().sum(), (x, norm.weight))
    plain = torch.nn.functional.rms_norm(x, (24,), norm.weight, 1e-5)
    theirs = torch.autograd.grad(plain.sin().sum(), (x, norm.weight))
    assert_close(norm(x), plain)
    assert_close(ours, theirs)
    with torch.no_grad():
        assert_close(norm(x), plain)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("gradients", [True, False])
def test_rmsnorm_of_a_16_bit_product_computes_in_the_format_of_its_weight(gradients):
    norm = RMSNorm(24, eps=1e-5)
    x = torch.randn(3, 24).bfloat16().requires_grad_(gradients)
    with torch.set_grad_enabled(gradients):
        y = norm(x)
    assert y.dtype == torch.float32
    assert_close(y, norm(x.float()))


@pytest.mark.parametrize("config", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_a_decoder_never_sees_the_future(config):
    model = Transformer(config).eval()
    changed = ids().clone()
    changed[:, 5:] = 7
    before, after = model(ids()).logits, model(changed).logits
    assert_close(before[:, :5], after[:, :5])
    assert (before[:, 5:] - after[:, 5:]).abs().max() > 1e-4


def test_an_encoder_sees_everything_but_padding():
    model = Transformer(BERT).eval()
    changed = ids().clone()
    changed[:, 6:] = 7
    mask = torch.ones_like(changed)
    assert (model(ids()).logits[:, 0] - model(changed).logits[:, 0]).abs().max() > 1e-4
    mask[:, 6:] = 0
    assert_close(
        model(ids(), attention_mask=mask).logits[:, :6],
        model(changed, attention_mask=mask).logits[:, :6],
    )


@pytest.mark.parametrize("config", [GPT2, LLAMA, BERT], ids=["gpt2", "llama", "bert"])
def test_encode_is_what_the_head_reads(config):
    model = Transformer(config).eval()
    assert_close(model.lm_head(model.encode(ids())), model(ids()).logits)
    tied = model.get_output_embeddings().weight is model.embedding.weight
    assert tied == config.tied_embeddings


def test_mean_pooling_reads_real_tokens_only():
    config = dataclasses.replace(BERT, num_labels=5, pooling="mean")
    model = Transformer(config).eval()
    padded = torch.cat((ids(), torch.zeros(3, 4, dtype=torch.long)), dim=1)
    mask = torch.cat((torch.ones_like(ids()), torch.zeros(3, 4, dtype=torch.long)), dim=1)
    alone = model(ids()).logits
    assert alone.shape == (3, 5)
    assert_close(model(padded, attention_mask=mask).logits, alone)
    assert (model(padded).logits - alone).abs().max() > 1e-5


def test_output_is_a_tuple_of_logits_hidden_cache():
    model = Transformer(dataclasses.replace(LLAMA, vocabulary_head=False))
    logits, hidden, cache = model(ids())
    assert logits is None
    assert hidden.shape == (3, 9, 16)
    assert cache is None
    assert model.get_output_embeddings() is None


@pytest.mark.parametrize("split", [1, 4, 8])
def test_reading_in_pieces_with_a_cache_is_reading_at_once(split):
    model = Transformer(LLAMA).eval()
    cache = model.new_cache(3)
    pieces = [model(part, cache=cache).logits for part in (ids()[:, :split], ids()[:, split:])]
    assert_close(torch.cat(pieces, dim=1), model(ids()).logits, rtol=1e-5, atol=1e-6)
    assert cache.length == 9


def test_bf16_autocast_stays_close_and_gives_fp32_gradients():
    torch.manual_seed(0)
    model = Transformer(dataclasses.replace(LLAMA, num_kv_heads=2))
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(ids()).logits
    assert logits.dtype == torch.bfloat16
    assert (logits.float() - model(ids()).logits).abs().max() < 0.02
    logits.float().logsumexp(-1).sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_heads": 3}, "multiple of num_heads"),
        ({"num_kv_heads": 3}, "num_kv_heads is 3"),
        ({"num_layers": 0}, "num_layers is 0"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"num_labels": -1}, "num_labels is -1"),
        ({"d_ff": 0}, "d_ff is 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"activation": "swish"}, "choose one of gelu"),
        ({"kind": "both"}, "choose one of decoder"),
        ({"position": "rotary", "num_heads": 16}, "change num_heads"),
        ({"norm_eps": 0.0}, "norm_eps"),
        ({"kind": "encoder_decoder", "num_labels": 2}, "num_labels is 2"),
        ({"kind": "encoder_decoder", "token_types": 2}, "take kind='encoder'"),
    ],
)
def test_impossible_values_are_named(changes, named):
    with pytest.raises(LabError, match=named):
        TransformerConfig(**{**TINY, **changes})


def test_a_block_adds_to_the_stream_before_or_after_its_norm():
    x = torch.randn(2, 5, 16)
    for position in ("pre", "post"):
        block = Transformer(dataclasses.replace(GPT2, norm_position=position)).blocks[0].eval()
        out = block(x, None, True, None, None, 0)
        attended = block.attention(block.attention_norm(x) if position == "pre" else x, None, True)
        middle = x + attended if position == "pre" else block.attention_norm(x + attended)
        inner = block.ffn(block.ffn_norm(middle) if position == "pre" else middle)
        assert_close(out, middle + inner if position == "pre" else block.ffn_norm(middle + inner))


def test_blocks_are_the_layers_in_order():
    model = Transformer(GPT2)
    assert list(blocks(model)) == list(model.blocks)
    with pytest.raises(LabError, match="EncoderDecoder"):
        Transformer(TransformerConfig.bart(**TINY))


def test_impossible_inputs_are_named():
    model = Transformer(GPT2)
    with pytest.raises(LabError, match="17 tokens and context_length is 16"):
        model(ids(length=17))
    with pytest.raises(LabError, match="attention_mask has shape"):
        model(ids(), attention_mask=torch.ones(3, 8))
    with pytest.raises(LabError, match="only one"):
        model(ids(), document_ids=ids(), cache=model.new_cache(3))
    encoder = Transformer(BERT)
    with pytest.raises(LabError, match="encoder"):
        encoder(ids(), cache=encoder.new_cache(3))


COMPILED = """
import torch
from labkit.models import Transformer, TransformerConfig

torch.manual_seed(0)
model = Transformer(TransformerConfig.llama(
    vocab_size=53, context_length=16, d_model=16, num_layers=2, num_heads=4, num_kv_heads=2))
ids = torch.randint(53, (3, 9))
compiled = torch.compile(model, fullgraph=True)
for precision in (torch.float32, torch.bfloat16):
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        eager, fast = model(ids).logits.float(), compiled(ids).logits.float()
    bound = 1e-5 if precision == torch.float32 else 1e-2
    torch.testing.assert_close(fast, eager, rtol=bound, atol=bound)
"""

COMPILED_TRAINING = """
import torch
from labkit import objectives
from labkit.models import Transformer, TransformerConfig

torch.manual_seed(0)
model = Transformer(TransformerConfig.llama(
    vocab_size=512, context_length=64, d_model=128, num_layers=2, num_heads=2))
ids = torch.randint(512, (4, 64))
batch = {"input_ids": ids, "labels": ids.roll(-1, dims=1)}
found = []
for step in (objectives.causal_lm, torch.compile(objectives.causal_lm, dynamic=False)):
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = step(model, batch)
    loss.backward()
    found.append({name: p.grad.clone() for name, p in model.named_parameters()})
    model.zero_grad()
for name, eager in found[0].items():
    error = (found[1][name] - eager).norm() / eager.norm()
    assert error < 2e-2, f"{name}: {error}"
"""


@pytest.mark.slow
@pytest.mark.parametrize("script", [COMPILED, COMPILED_TRAINING], ids=["logits", "gradients"])
def test_compiled_is_eager(script):
    # In its own process: the tests' shape checks would break the graph.
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
