"""Bits per byte of documents: every token of each once, and intervals that draw documents."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from commands import here

import labkit
from labkit.errors import LabError
from labkit.evaluation import DocumentBits, compared, document_nats
from labkit.models import Transformer, TransformerConfig
from labkit.models.huggingface import save_pretrained
from labkit.text import train_bpe

TEXTS = ["Mira went to the garden. " * 9, "Tom took the key.", "The lamp is in the attic, é. " * 4]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    tokenizer = train_bpe(TEXTS * 5, 300)
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        shape = {"vocab_size": tokenizer.vocab_size, "context_length": 64, "d_model": 32}
        config = TransformerConfig.llama(**shape, num_layers=1, num_heads=2, initializer_range=0.3)
        save_pretrained(Transformer(config), folder / name, tokenizer)
    return folder


def by_hand(opened, text, context):
    """Piece after piece, token after token."""
    ids = [opened.tokenizer.end_of_text_id, *opened.tokenizer.encode(text)]
    nats = 0.0
    for at in range(0, len(ids) - 1, context):
        piece = torch.tensor(ids[at : at + context + 1])
        with torch.inference_mode():
            logits = opened.model(piece[None, :-1]).logits[0]
        nats += float(F.cross_entropy(logits, piece[1:], reduction="sum"))
    return nats


@pytest.mark.parametrize("context", [5, 16, 64])
def test_each_document_is_read_alone_and_every_token_counts_once(folders, context):
    opened = labkit.load(folders / "one")
    expected = [by_hand(opened, text, context) for text in TEXTS]
    found = opened.score_documents(TEXTS, context_length=context, batch_size=2)
    np.testing.assert_allclose(found.nats_D, expected, rtol=1e-5)
    assert found.bytes_D.tolist() == [len(text.encode()) for text in TEXTS]
    together = opened.score(TEXTS, context_length=context)  # one stream: other contexts, other sum
    assert together["bits_per_byte"] != pytest.approx(found.bits.estimate, rel=1e-4)


def test_the_estimate_is_a_sum_over_all_bytes_and_the_interval_draws_documents():
    found = DocumentBits(np.array([10.0, 40.0, 90.0]) * math.log(2), np.array([10, 20, 30]))
    assert found.bits.estimate == pytest.approx(140 / 60)  # not the mean of 1, 2 and 3
    assert 1.0 <= found.bits.low < found.bits.estimate < found.bits.high <= 3.0
    better = DocumentBits(found.nats_D - 6 * math.log(2), found.bytes_D)
    gain = better.gain_over(found)
    assert gain.lead.estimate == pytest.approx(18 / 60)
    assert gain.lead.low == pytest.approx(gain.lead.high)  # the same in every document
    facts = compared(better, found, "base")
    assert facts["against"]["gain"] == pytest.approx(0.3)
    assert facts["documents"] == 3
    assert json.loads(json.dumps(facts)) == facts


def test_documents_without_a_token_are_an_error(folders):
    opened = labkit.load(folders / "one")
    with pytest.raises(LabError, match="0 tokens"):
        opened.score_documents(["text", ""])
    with pytest.raises(LabError, match="0 tokens"):
        document_nats(opened.model, [], 0, 8)


def test_evaluate_against_another_model(folders, tmp_path, capfd):
    for number, text in enumerate(TEXTS):
        (tmp_path / f"{number}.txt").write_text(text)
    out = tmp_path / "scores.json"
    arguments = ("evaluate", folders / "one", "--data", tmp_path, "--against", folders / "two")
    assert here(*arguments, "--out", out) == 0
    assert "gain" in capfd.readouterr().out
    (score,) = json.loads(out.read_text())["scores"].values()
    ours, theirs = (labkit.load(folders / name).score_documents(TEXTS) for name in ("one", "two"))
    assert score["bits_per_byte"] == pytest.approx(ours.bits.estimate)
    assert score["against"]["bits_per_byte"] == pytest.approx(theirs.bits.estimate)
    gain = theirs.bits.estimate - ours.bits.estimate
    assert score["against"]["gain"] == pytest.approx(gain)
    assert here(*arguments, "--json") == 0
    assert json.loads(capfd.readouterr().out)["scores"][str(tmp_path)]["documents"] == 3
    assert here("evaluate", folders / "one", "--choices", out, "--against", folders / "two") == 2
    assert "against" in capfd.readouterr().err


def test_export_scores_the_file_beside_the_model(folders, tmp_path, capfd):
    (tmp_path / "text").mkdir()
    for number, text in enumerate(TEXTS):
        (tmp_path / "text" / f"{number}.txt").write_text(text)
    out = tmp_path / "out"
    arguments = ("export", folders / "one", "--data", tmp_path / "text", "--out", out)
    assert here(*arguments, "--dtype", "q4_0") == 0
    assert "bits per byte" in capfd.readouterr().out
    score = json.loads((out / "score.json").read_text())
    ours = labkit.load(folders / "one").score_documents(TEXTS)
    assert score["against"]["bits_per_byte"] == pytest.approx(ours.bits.estimate)
    assert score["bits_per_byte"] != pytest.approx(ours.bits.estimate, rel=1e-6)
    out = ("--out", tmp_path / "st")
    assert here(*arguments[:4], "--format", "safetensors", *out) == 2
    assert "it scores GGUF files" in capfd.readouterr().err
