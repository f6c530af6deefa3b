"""`labkit bench` measures what it says; speed itself is no test."""

import dataclasses
import json
import math

import pytest
import torch

from labkit import bench
from labkit.bench import finetuning, llm, memory, quality
from labkit.bench.alone import measure
from labkit.errors import LabError
from labkit.models import Transformer, huggingface
from labkit.text import train_bpe


@pytest.mark.slow
def test_a_quick_run_measures_everything(capsys):
    sizes = dataclasses.replace(bench.QUICK, rounds=1, new_tokens=8)
    report = bench.run(sizes, only=bench.PARTS)
    for values in (
        report.tokens_per_second,
        report.flop_utilisation,
        report.examples_per_second,
        report.generated_per_second,
        report.peak_gb,
        report.update_seconds,
        report.import_seconds,
        report.ratios,
        *report.quality.values(),
    ):
        assert values
        assert all(value > 0 for value in values.values())
    for what, speed in (
        ("fine-tuning", report.examples_per_second),
        ("pretraining", report.tokens_per_second),
    ):
        ours, theirs = (
            max((n for n in speed if n.startswith(who)), key=speed.__getitem__)
            for who in ("labkit", "Trainer")
        )
        ratio = report.ratios[f"{what}: {ours} / {theirs}"]
        assert ratio == pytest.approx(speed[ours] / speed[theirs]), "the fastest of each"
    assert 0 < report.loading_share < 1
    assert len(report.quality) == 2
    assert set(report.peak_gb) == set(memory.FEW)
    assert set(report.llm) == set(llm.CONTESTANTS)
    assert all(x["seconds"] > 0 and x["peak_gb"] > 0.1 for x in report.llm.values())
    assert json.loads(json.dumps(dataclasses.asdict(report)))["model"]["tokens_per_update"] == 512
    lines = bench._lines(report)
    assert any(line.startswith("labkit, the same, 8-bit moments") for line in lines)


def test_only_what_is_asked_for_is_measured():
    sizes = dataclasses.replace(bench.QUICK, rounds=1, new_tokens=8)
    report = bench.run(sizes, only=["generation"])
    assert report.generated_per_second
    assert not report.tokens_per_second
    assert not report.peak_gb
    assert not any(line.startswith(("pretraining", "equal time")) for line in bench._lines(report))
    with pytest.raises(LabError, match="part 'speed' is unknown: choose pretraining, finetuning"):
        bench.run(sizes, only=["speed"])


def test_bucketing_by_length_leaves_less_padding_than_random_batches():
    shares = finetuning.padding(finetuning.Sizes(articles=64, batch_size=8))
    assert 0 <= shares["labkit"] < shares["Trainer"] / 2


def test_a_contestant_that_fails_is_named(monkeypatch):
    with pytest.raises(LabError, match=r"measuring 'nobody' ended with exit code 1: .*'nobody'"):
        measure("labkit.bench.memory", "nobody")


def test_bits_per_byte_of_a_model_that_knows_nothing_and_of_one_model_in_two_libraries():
    texts = ["one two three four five", "six seven eight nine ten eleven"]
    tokenizer = train_bpe(texts * 3, 280)
    recipe = dataclasses.replace(quality.smaller(quality.OURS), vocab_size=tokenizer.vocab_size)
    torch.manual_seed(0)
    model = Transformer(dataclasses.replace(recipe.config, context_length=8)).eval()
    ours = quality.held_out(model, tokenizer, texts, 8, "fp32")
    theirs = quality.held_out(huggingface.to_huggingface(model), tokenizer, texts, 8, "fp32")
    assert ours == pytest.approx(theirs, rel=1e-5)
    torch.nn.init.zeros_(model.embedding.weight)
    ids = [i for text in texts for i in [*tokenizer.encode(text), tokenizer.end_of_text_id]]
    read = ids[1 : (len(ids) - 1) // 8 * 8 + 1]
    size = sum(len(tokenizer.token_bytes(i)) for i in read if i != tokenizer.end_of_text_id)
    expected = len(read) * math.log2(tokenizer.vocab_size) / size
    got = quality.held_out(model, tokenizer, texts, 8, "fp32")
    assert got == pytest.approx(expected, rel=1e-5)
