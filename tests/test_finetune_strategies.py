"""`labkit finetune --strategy`: what each leaves behind, and that every command opens it."""

import json
from pathlib import Path

import peft
import pytest
import torch
from commands import SMALL, here, labelled, write_rows, write_text
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import labkit
from labkit.models.adapting import Strategy, apply
from labkit.models.adapting.settings import INSEPARABLE, NAMES
from labkit.text import train_bpe
from labkit.training import checkpoint

#: What trains of the encoder below, with the sizes that the tests ask for.
SIZES = ["--rank", 2, "--prompt-length", 3, "--adapter-width", 4, "--learning-rate", 1e-2]
LANGUAGE = [name for name in NAMES if name not in ("encoder", "head", "bitfit")]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    write_text(folder / "a.txt", 60)
    write_rows(folder / "labelled.csv", labelled())
    rows = labelled(240)[160:]
    write_rows(folder / "test.csv", rows)
    return folder


@pytest.fixture(scope="module")
def decoder(files) -> Path:
    out = files / "run"
    assert here("pretrain", "--data", files / "a.txt", "--out", out, *SMALL) == 0
    return out


@pytest.fixture(scope="module")
def encoder(files) -> Path:
    """A random BERT folder, small enough to fine-tune in a second."""
    from transformers import BertConfig, BertModel

    folder = files / "encoder"
    tokenizer = train_bpe([row["text"] for row in labelled()], 400)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=tokenizer.vocab_size, intermediate_size=64, **shape)
    BertModel(config).save_pretrained(folder)
    tokenizer.save(folder)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_a_classifier_of_every_strategy_is_opened_by_every_command(
    name, files, encoder, tmp_path, capsys
):
    out, test = tmp_path / "run", files / "test.csv"
    data = ["--data", files / "labelled.csv", "--test", test, "--model", encoder, "--out", out]
    plain = [
        "--epochs",
        1,
        "--precision",
        "fp32",
        "--no-baselines",
        "--restore-best",
        "False",
        *SIZES,
    ]
    assert here("finetune", *data, "--strategy", name, *plain) == 0
    said = capsys.readouterr().out
    (line,) = [line for line in said.splitlines() if "parameters trained" in line]
    assert line.startswith(f"model   {name}")
    assert (out / "model").exists() == (name not in INSEPARABLE)
    assert (out / "adapter").exists() == (name in ("head", "bitfit", "lora", *INSEPARABLE))

    found = json.loads((out / "evaluation.json").read_text())["test"]
    assert here("evaluate", out, "--data", test, "--json") == 0
    scores = json.loads(capsys.readouterr().out)["scores"].popitem()[1]
    assert scores["accuracy"] == found["accuracy"]
    assert here("classify", out, "--text", "good nice happy", "--json") == 0
    said = json.loads(capsys.readouterr().out)["probabilities"]
    opened = labkit.load_classifier(out)
    assert set(said) == set(opened.classes) == {"neg", "pos"}

    trained = dict(opened.model.named_parameters())
    saved = checkpoint.newest(out / "checkpoints").tensors["model"]
    if name == "lora":
        assert set(trained) == {n for n in saved if ".lora." not in n}, "folded in"
        plain_model = AutoModelForSequenceClassification.from_pretrained(out / "model")
        assert torch.equal(plain_model.classifier.weight, saved["classifier.weight"])
    else:
        assert all(torch.equal(p, saved[n]) for n, p in trained.items() if n in saved)
        assert set(trained) == set(saved)
    if name in INSEPARABLE:
        sizes = sum(f.stat().st_size for f in (out / "adapter").glob("*.safetensors"))
        assert sizes < 30_000


@pytest.mark.parametrize("name", LANGUAGE)
def test_a_language_model_of_every_strategy_is_opened_by_every_command(
    name, files, decoder, tmp_path, capsys
):
    out = tmp_path / "run"
    data = ["--data", files / "a.txt", "--model", decoder, "--out", out, "--epochs", 1]
    assert here("finetune", *data, "--strategy", name, "--restore-best", "False", *SIZES,
                "--precision", "fp32", "--max-length", 16) == 0  # fmt: skip
    assert (out / "model").exists() == (name not in INSEPARABLE)
    assert here("generate", out, "--prompt", "the key", "--temperature", 0) == 0
    assert capsys.readouterr().out.strip()
    assert here("evaluate", out, "--data", files / "a.txt", "--json") == 0
    bits = json.loads(capsys.readouterr().out)["scores"].popitem()[1]["bits_per_byte"]
    assert bits != labkit.load(decoder).score((files / "a.txt").read_text())["bits_per_byte"]

    opened, rebuilt = labkit.load(out).model, labkit.load(decoder).model
    apply(rebuilt, Strategy(name, rank=2, length=3, width=4))
    newest = checkpoint.newest(out / "checkpoints")
    checkpoint.load_model(rebuilt, newest.tensors["model"])
    ids = torch.arange(1, 13)[None]
    with torch.no_grad():
        expected = rebuilt(ids).logits
        torch.testing.assert_close(opened(ids).logits, expected, rtol=1e-5, atol=1e-5)
        if name in ("lora", "prompt", "prefix"):
            base = AutoModelForCausalLM.from_pretrained(decoder / "model")
            theirs = peft.PeftModel.from_pretrained(base, out / "adapter").eval()
            logits = theirs(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, -12:]
            torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
        if name not in INSEPARABLE:
            plain = AutoModelForCausalLM.from_pretrained(out / "model").eval()
            torch.testing.assert_close(plain(ids).logits, expected, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(labkit.load(decoder).model(ids).logits, expected, atol=1e-3)


def test_an_adapter_is_no_base_and_needs_its_own(files, decoder, tmp_path, capsys):
    out = tmp_path / "run"
    small = ["--epochs", 0.1, "--max-length", 16, "--precision", "fp32"]
    data = ["--data", files / "a.txt", "--out", out, *small]
    assert here("finetune", *data, "--model", decoder, "--strategy", "prefix",
                "--prompt-length", 3) == 0  # fmt: skip
    again = ["--data", files / "a.txt", "--out", tmp_path / "next", *small, "--model", out]
    assert here("finetune", *again) == 2
    assert "training begins from a whole model" in capsys.readouterr().err
    assert here("pretrain", "--data", files / "a.txt", "--from", out, "--out", tmp_path / "p") == 2
    assert "training begins from a whole model" in capsys.readouterr().err
    assert here("generate", out / "adapter", "--prompt", "the", "--max-new-tokens", 3) == 0
    file = out / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": "gone"}))
    capsys.readouterr()
    assert here("generate", out) == 2
    assert "for the base model 'gone', which is no folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--strategy", "lora", "--rank", 0], "rank 0 is out of range: choose at least 1"),
        (["--strategy", "lora", "--targets", "w"], "targets"),
        (["--strategy", "layerwise", "--layer-decay", 2], "decay 2.0 is out of range"),
        (["--strategy", "head"], "is tied to the embedding"),
        (["--strategy", "bitfit"], "0 biases"),
        (["--strategy", "last_k", "--last", 9], "last 9 is out of range"),
        (["--strategy", "prompt", "--prompt-length", 31], "prompt_length 31 is out of range"),
    ],
)
def test_what_cannot_be_is_one_sentence(flags, said, files, decoder, tmp_path, capsys):
    data = ["--data", files / "a.txt", "--model", decoder, "--out", tmp_path / "run"]
    assert here("finetune", *data, *flags) == 2
    assert said in capsys.readouterr().err


def test_a_run_of_lora_goes_on_to_the_bit(files, encoder, tmp_path):
    from commands import losses

    flags = ["--data", files / "labelled.csv", "--model", encoder, "--strategy", "lora",
             "--precision", "fp32", "--no-baselines", "--save-every", 2, "--keep", 50,
             "--epochs", 1, *SIZES]  # fmt: skip
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for out in (whole, cut):
        assert here("finetune", *flags, "--out", out) == 0
    for step in sorted((cut / "checkpoints").glob("step-*"))[1:]:
        import shutil

        shutil.rmtree(step)
    shutil.rmtree(cut / "model")
    shutil.rmtree(cut / "adapter")
    assert here("finetune", "--resume", "--out", cut) == 0
    assert losses(cut) == losses(whole)
    for name in ("model/model.safetensors", "adapter/adapter_model.safetensors"):
        a, b = load_file(cut / name), load_file(whole / name)
        assert all(torch.equal(a[n], b[n]) for n in b)
