"""labkit.load and token_nats: the front door, and the one way to score held-out text."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from commands import SMALL, here, write_text
from torch.testing import assert_close
from training import VOCAB, ragged_batches, tiny_encoder_decoder, tiny_model

import labkit
from labkit.batches import Batches, Contexts
from labkit.errors import LabError
from labkit.evaluation import language, language_model, mean_loss, score_text, token_nats
from labkit.models.huggingface import save_pretrained
from labkit.objectives import causal_lm
from labkit.text import corpora, train_bpe


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of the command."""
    folder = tmp_path_factory.mktemp("loaded")
    text = write_text(folder / "a.txt")
    assert here("pretrain", "--data", text, "--out", folder / "run", *SMALL) == 0
    return folder / "run", text


def by_definition(model, batches):
    rows = []
    for batch in batches.evaluation_batches():
        labels = batch.pop("labels")
        with torch.no_grad():
            logits = model(**batch).logits
        rows.append(F.cross_entropy(logits.movedim(-1, 1), labels, reduction="none").double())
    longest = max(row.shape[1] for row in rows)
    return torch.cat([F.pad(row, (0, longest - row.shape[1])) for row in rows])


def test_token_nats_are_those_of_the_definition_with_nothing_where_no_label_counts():
    model, batches = tiny_model().eval(), ragged_batches()
    nats_NT = token_nats(model, batches.evaluation_batches())
    assert nats_NT.dtype == torch.float64
    assert_close(nats_NT, by_definition(model, batches), atol=1e-6, rtol=1e-6)
    labels = torch.cat(
        [F.pad(b["labels"], (0, nats_NT.shape[1] - b["labels"].shape[1]), value=-100)
         for b in batches.evaluation_batches()]
    )  # fmt: skip
    assert (nats_NT[labels == -100] == 0).all()
    assert (nats_NT[labels != -100] > 0).all()


def test_the_loop_and_the_commands_and_token_nats_agree():
    model, batches = tiny_model(dropout=0.3), ragged_batches()
    model.train()
    total = float(token_nats(model, batches.evaluation_batches()).sum())
    score = language_model(model, batches.evaluation_batches())
    loss, count = mean_loss(model, causal_lm, batches, precision="fp32")
    assert score.nats == pytest.approx(total)
    assert loss * count == pytest.approx(total, rel=1e-6)
    assert score.tokens == count
    assert model.training, "the model's mode comes back"


def test_a_few_positions_at_a_time_are_the_same(monkeypatch):
    model, batches = tiny_model().eval(), ragged_batches()
    whole = token_nats(model, batches.evaluation_batches())
    monkeypatch.setattr(language, "CHUNK", 3)
    # The last bit of a product may depend on its size: it does on CPUs with avx512_bf16.
    again = token_nats(model, batches.evaluation_batches())
    assert_close(again, whole, atol=2e-6, rtol=1e-6)


def test_an_encoder_decoder_is_scored_too():
    model = tiny_encoder_decoder().eval()
    ids = torch.arange(12).view(2, 6)
    batch = {"input_ids": ids, "decoder_input_ids": ids, "labels": (ids + 1) % VOCAB}
    logits = model(input_ids=ids, decoder_input_ids=ids).logits
    expected = F.cross_entropy(logits.movedim(-1, 1), batch["labels"], reduction="none")
    assert_close(token_nats(model, [batch]), expected.detach().double(), atol=1e-6, rtol=1e-6)


def test_without_a_target_it_says_so():
    batch = {"input_ids": torch.zeros(1, 3).long(), "labels": torch.full((1, 3), -100)}
    for score in (token_nats, language_model):
        with pytest.raises(LabError, match="0 targets to evaluate: at least 1 label"):
            score(tiny_model(), [batch])


def test_every_token_of_a_stream_is_scored_once_whatever_the_context():
    model = tiny_model().eval()
    tokens = np.random.default_rng(0).integers(VOCAB, size=41)
    for T in (4, 7, 16):
        score = score_text(model, tokens, num_bytes=100, context_length=T)
        nats = 0.0
        for start in range(0, 40, T):
            piece = torch.from_numpy(tokens[start : start + T + 1])[None]
            log_p = model(piece[:, :-1]).logits.log_softmax(-1)
            nats -= float(log_p.detach().gather(-1, piece[:, 1:, None]).sum())
        assert score["tokens"] == 40
        assert score["bits_per_byte"] == pytest.approx(nats / math.log(2) / 100, rel=1e-5)
    assert len(Batches(Contexts(tokens, 7, 0), 2).examples) == 6


def test_a_short_text_is_not_filled_up_to_the_context():
    model, read = tiny_model().eval(), []
    model.blocks[0].register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].shape[:2]))
    score = score_text(model, np.arange(9) % VOCAB, num_bytes=10, context_length=16)
    assert (score["tokens"], read) == (8, [(1, 8)])


def test_a_loaded_model_writes_what_the_command_writes(run, capsys):
    folder, _ = run
    loaded = labkit.load(folder)
    texts = loaded.generate("the key", max_new_tokens=12, seed=3, samples=2)
    capsys.readouterr()
    ask = ["--prompt", "the key", "--max-new-tokens", 12, "--seed", 3, "--samples", 2]
    assert here("generate", folder, *ask) == 0
    assert capsys.readouterr().out == "\n---\n".join("the key" + text for text in texts) + "\n"
    assert loaded.generate("the key", max_new_tokens=12, temperature=0) != [""]


def test_a_loaded_model_scores_what_the_command_scores(run, capsys):
    folder, text = run
    loaded, documents = labkit.load(folder), list(corpora.load_text(text)["text"])
    score = loaded.score(documents)
    assert score["bytes"] == sum(len(document.encode()) for document in documents)
    assert score["tokens"] == sum(len(loaded.tokenizer.encode(it)) + 1 for it in documents)
    capsys.readouterr()
    assert here("evaluate", folder, "--data", text) == 0
    assert f"{score['bits_per_byte']:.4f}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda it: it.generate(chat=True), "chat needs a prompt"),
        (lambda it: it.generate("a", samples=0), "samples 0 is out of range: choose at least 1"),
        (lambda it: it.generate("a", temperature=-1), "temperature is -1"),
        (lambda it: it.score(""), "the texts have 0 bytes"),
        (lambda it: it.score("abc", context_length=99), "context_length 99 is out of range"),
        (lambda it: it.score("abc", context_length=0), "context_length 0 is out of range"),
        (lambda it: labkit.load("nowhere"), "nowhere is no folder"),
        (lambda it: labkit.load("minilm"), "does not predict the next token"),
    ],
)
def test_a_wrong_call_is_one_sentence(run, call, message):
    with pytest.raises(LabError, match=message):
        call(labkit.load(run[0]))


def test_a_model_of_fewer_layers_is_the_first_ones_of_the_whole(run):
    whole, cut = labkit.load(run[0]).model, labkit.load(run[0], layers=1).model
    assert (len(whole.blocks), len(cut.blocks), cut.config.num_layers) == (2, 1, 1)
    ids = torch.arange(9)[None]
    assert not torch.equal(cut(ids).logits, whole(ids).logits)
    del whole.blocks[1:]
    assert torch.equal(cut(ids).logits, whole(ids).logits)
    assert labkit.load(run[0], layers=2).model.config.num_layers == 2


@pytest.mark.parametrize("layers", [0, -1, 3])
def test_layers_that_are_not_there_are_named(run, layers):
    with pytest.raises(LabError, match=f"layers={layers} is out of range: the model has 2"):
        labkit.load(run[0], layers=layers)


def test_layers_are_of_a_decoder(tmp_path):
    save_pretrained(tiny_encoder_decoder(), tmp_path, train_bpe(["the key is here"], 260))
    with pytest.raises(LabError, match="layers=1 is for labkit's decoders, this is EncoderDecoder"):
        labkit.load(tmp_path, layers=1)
