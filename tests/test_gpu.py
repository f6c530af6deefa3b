"""What only a CUDA device can show: the same losses as on the CPU, exact resume, predicted memory.

Run on a machine with one: python -m pytest tests/test_gpu.py
"""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from torch.testing import assert_close
from training import (
    VOCAB,
    answered_batches,
    config,
    ragged_batches,
    tiny_encoder_decoder,
    tiny_model,
    weights,
)

from labkit import accounting, objectives, runtime
from labkit.accounting import Recipe
from labkit.batches import Batches, stack
from labkit.generation import generate
from labkit.models import Transformer, TransformerConfig
from labkit.objectives import causal_lm, losses
from labkit.training import train

pytestmark = pytest.mark.gpu


def run(dropout=0.0, build=tiny_model, **changes):
    model = build(dropout) if build is tiny_model else build()
    result = train(model, causal_lm, ragged_batches(), config(**{"device": "cuda", **changes}))
    return model, [r.loss for r in result.history]


def same(a, b) -> bool:
    other = weights(b)
    return all(torch.equal(p.cpu(), other[name].cpu()) for name, p in weights(a).items())


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd", "muon", "adamw8bit"])
def test_the_loop_has_the_losses_of_the_cpu(optimizer):
    settings = {"optimizer": optimizer, "steps": 20}
    _, here = run(**settings)
    _, there = run(device="cpu", **settings)
    # Muon multiplies in bf16, whose roundings differ from device to device.
    tolerance = 2e-2 if optimizer == "muon" else 1e-4
    assert_close(here, there, rtol=tolerance, atol=0)
    _, other = run(device="cpu", **{**settings, "learning_rate": 2e-2})
    assert max(abs(a / b - 1) for a, b in zip(here, other, strict=True)) > tolerance


@pytest.mark.parametrize("micro_batch_size", [1, 3])
def test_accumulation_equals_one_batch(micro_batch_size):
    whole, expected = run()
    cut, losses_of_cut = run(micro_batch_size=micro_batch_size)
    assert_close(losses_of_cut, expected, rtol=1e-5, atol=0)
    for name, p in weights(whole).items():
        assert_close(weights(cut)[name], p, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_resume_is_exact_with_dropout(tmp_path, precision):
    settings = {"precision": precision, "dropout": 0.2}
    whole, expected = run(**settings)
    _, first = run(**settings, out=tmp_path, save_every=3, keep=9)
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000006")
    resumed, last = run(**settings, out=tmp_path, save_every=3, keep=9, resume=True)
    assert same(resumed, whole)
    assert first == expected
    assert last == expected[3:]
    assert not same(run(**settings, seed=1)[0], whole), "dropout must depend on the seed"


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_narrow_precision_learns_what_fp32_learns(precision):
    _, wide = run(steps=60, learning_rate=1e-2)
    _, narrow = run(steps=60, learning_rate=1e-2, precision=precision)
    assert wide[-1] < 0.9 * wide[0]
    assert_close(narrow, wide, rtol=3e-2, atol=0)
    assert narrow != wide


def test_an_encoder_decoder_trains():
    model = tiny_encoder_decoder()
    result = train(model, causal_lm, answered_batches(), config(device="cuda", steps=20))
    assert result.history[-1].loss < result.history[0].loss


def test_checkpointing_and_step_in_backward_change_nothing():
    settings = {"grad_clip": 0.0, "dropout": 0.2}
    ordinary, _ = run(**settings)
    assert same(run(**settings, step_in_backward=True)[0], ordinary)

    def checkpointed(dropout):
        model = tiny_model(dropout)
        model.gradient_checkpointing = True
        return model

    model = checkpointed(0.2)
    train(model, causal_lm, ragged_batches(), config(device="cuda", grad_clip=0.0))
    assert same(model, ordinary)


def test_chunked_cross_entropy_equals_plain():
    torch.manual_seed(0)
    hidden = torch.randn(300, 32, device="cuda", requires_grad=True)
    table = torch.randn(VOCAB, 32, device="cuda", requires_grad=True)
    labels = torch.randint(VOCAB, (300,), device="cuda")
    labels[::3] = losses.IGNORE_INDEX
    plain, count = losses.cross_entropy(hidden @ table.T, labels)
    expected = torch.autograd.grad(plain, (hidden, table))
    chunked, other = losses.chunked_cross_entropy(hidden, table, labels, chunk=70)
    assert count == other
    assert_close(chunked, plain)
    assert_close(torch.autograd.grad(chunked, (hidden, table)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_generation_says_what_the_cpu_says(kind):
    shape = {"vocab_size": VOCAB, "context_length": 48, "d_model": 32, "num_layers": 2}
    torch.manual_seed(0)
    model = Transformer(getattr(TransformerConfig, kind)(num_heads=4, **shape)).eval()
    prompts = [[3, 4, 5], [7], [9, 8, 7, 6, 5]]

    expected = generate(model, prompts, 20, temperature=0)
    assert generate(model.to("cuda"), prompts, 20, temperature=0) == expected
    assert generate(model, prompts, 20, temperature=1, seed=0) != expected


MEASURED = {
    "fp32": Recipe(precision="fp32"),
    "bf16": Recipe(),
    "checkpointing": Recipe(checkpointing=True),
    "lean": Recipe(checkpointing=True, step_in_backward=True, optimizer="adamw8bit"),
}


@pytest.mark.parametrize("recipe", MEASURED)
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_predicted_peak_is_what_the_allocator_counts(kind, recipe):
    settings = MEASURED[recipe]
    shape = {"vocab_size": 16_000, "context_length": 512, "d_model": 512, "num_layers": 8}
    torch.manual_seed(0)
    model = Transformer(getattr(TransformerConfig, kind)(num_heads=8, **shape))
    model.gradient_checkpointing = settings.checkpointing
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(16_000, (16, 513), generator=generator)
    items = [{"input_ids": row[:-1], "labels": row[1:]} for row in ids]
    predicted = accounting.predict_peak(model.config, 8, 512, settings, device="cuda").total
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    told = {
        "device": "cuda",
        "steps": 4,
        "precision": settings.precision,
        "optimizer": settings.optimizer,
        "step_in_backward": settings.step_in_backward,
        "grad_clip": 0.0 if settings.step_in_backward else 1.0,
    }
    train(model, objectives.causal_lm, Batches(items, 8, stack), config(**told))
    measured = torch.cuda.max_memory_allocated() - before
    print(f"{kind} {recipe}: predicted {predicted / 1e6:.0f} MB, measured {measured / 1e6:.0f} MB")
    assert predicted == pytest.approx(measured, rel=0.1)


def test_compiled_or_over_nccl_a_run_has_the_same_losses(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"The cat sat on mat number {i % 17}." for i in range(4000)))
    told = ["pretrain", "--data", str(text), "--size", "tiny", "--steps", "12", "--device", "cuda"]
    told += ["--vocab-size", "300", "--batch-tokens", "1024", "--context-length", "64"]
    told += ["--precision", "fp32", "--eval-every", "0"]

    def losses_of(name, *launcher, options=()):
        command = [sys.executable, *launcher, "-m", "labkit", *told, "--out", tmp_path / name]
        subprocess.run([*map(str, command), *options], check=True, timeout=300)
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines]

    plain = losses_of("plain")
    assert len(plain) == 12
    assert_close(losses_of("compiled", options=["--compile"]), plain, rtol=1e-4, atol=0)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    for parallel in ("ddp", "fsdp"):
        ranked = losses_of(parallel, *launcher, options=["--parallel", parallel])
        assert_close(ranked, plain, rtol=1e-4, atol=0)


def test_the_probe_takes_bf16_where_the_device_has_it():
    expected = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    assert runtime.pick_precision("cuda") == expected
