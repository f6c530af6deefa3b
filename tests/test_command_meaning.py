"""What the numbers and models of the commands mean, against a second computation of them."""

import json
import math
from pathlib import Path

import pytest
import tokenizers
import torch
from commands import SMALL, here, labelled, sentences, write_rows

from labkit import generation
from labkit.batches import read_tokens
from labkit.models import Transformer, TransformerConfig
from labkit.models.huggingface import load_pretrained, save_pretrained
from labkit.text import ASSISTANT, END_OF_TEXT, USER, Tokenizer, corpora, train_bpe
from labkit.training import checkpoint

#: Two bytes a letter in UTF-8, so that characters and bytes differ by far.
GREEK = "αβγδε ζηθικ λμνξο πρστυ φχψως"


def greek(count: int) -> list[dict]:
    """Rows of text that is not ASCII."""
    return [{"text": f"{GREEK} {i} {sentence[:60]}"} for i, sentence in enumerate(sentences(count))]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("meaning")
    write_rows(folder / "greek.jsonl", greek(60))
    write_rows(folder / "one.jsonl", [{"text": sentences(1, seed=5)[0]}])
    write_rows(folder / "long.jsonl", [{"text": text} for text in sentences(6, seed=3)])
    write_rows(folder / "learned.jsonl", [{"text": text} for text in sentences(6, seed=4)])
    write_rows(folder / "text.jsonl", [{"text": text} for text in sentences(40, seed=2)])
    return folder


@pytest.fixture(scope="module")
def language_model(files) -> Path:
    """A random decoder that hesitates little, so that all it reads changes what it says."""
    folder = files / "language_model"
    tokenizer = train_bpe([*sentences(60), GREEK], 300)
    torch.manual_seed(0)
    shape = {"vocab_size": tokenizer.vocab_size, "context_length": 64, "d_model": 32}
    model = Transformer(TransformerConfig.llama(num_layers=1, num_heads=2, d_ff=64, **shape))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    save_pretrained(model, folder, tokenizer)
    return folder


@pytest.fixture(scope="module")
def encoder(files) -> Path:
    """A random BERT whose tokenizer sets every text between two marks, as [CLS] and [SEP]."""
    from transformers import BertConfig, BertModel

    folder = files / "encoder"
    tokenizer = train_bpe([row["text"] for row in labelled()], 300)
    marks = [(name, tokenizer.special_id(name)) for name in (USER, END_OF_TEXT)]
    tokenizer.backend.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{USER} $A {END_OF_TEXT}", special_tokens=marks
    )
    tokenizer.save(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=tokenizer.vocab_size, intermediate_size=32, **shape)
    BertModel(config).save_pretrained(folder)
    return folder


def targets(folder: Path, texts: list[str]) -> int:
    """Tokens to predict: those of each text and its end."""
    tokenizer = Tokenizer.from_pretrained(folder)
    return sum(len(tokenizer.encode(text)) + 1 for text in texts)


@torch.no_grad()
def nats(folder: Path, texts: list[str], context_length: int) -> float:
    """-log p of the texts, each ended, read in contexts side by side: token after token."""
    tokenizer, model = Tokenizer.from_pretrained(folder), load_pretrained(folder).eval()
    stream = [tokenizer.end_of_text_id]
    for text in texts:
        stream += [*tokenizer.encode(text), tokenizer.end_of_text_id]
    total = 0.0
    for start in range(0, len(stream) - 1, context_length):
        chunk = stream[start : start + context_length + 1]
        log_p = model(torch.tensor([chunk[:-1]])).logits[0].float().log_softmax(-1)
        total -= sum(float(log_p[i, target]) for i, target in enumerate(chunk[1:]))
    return total


def num_bytes(texts: list[str]) -> int:
    size = sum(len(text.encode("utf-8")) for text in texts)
    assert size > 1.2 * sum(map(len, texts)), "bytes and characters must differ"
    return size


def texts_of(file: Path) -> list[str]:
    return [json.loads(line)["text"] for line in file.read_text().splitlines()]


def one_score(capsys, *arguments) -> dict:
    """What `labkit evaluate` says of one file."""
    capsys.readouterr()
    assert here("evaluate", *arguments, "--json") == 0
    ((_, score),) = json.loads(capsys.readouterr().out)["scores"].items()
    return score


def evaluation(run: Path) -> dict:
    return json.loads((run / "evaluation.json").read_text())


# --- the score of a text -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def pretrained(files) -> tuple[Path, dict, list[str]]:
    """A run on Greek, its score, and the texts that it should be of."""
    out, data = files / "pretrained", files / "greek.jsonl"
    assert here("pretrain", "--data", data, "--out", out, *SMALL, "--context-length", 16) == 0
    (score,) = evaluation(out)["validation"].values()
    return out, score, list(corpora.load(data, "validation")["text"])


def test_pretraining_counts_utf8_bytes_in_bits_per_byte(pretrained):
    _, score, texts = pretrained
    bits = score["tokens"] * math.log2(score["perplexity"])
    assert score["bytes"] == num_bytes(texts)
    assert score["bits_per_byte"] == pytest.approx(bits / num_bytes(texts), rel=1e-6)


def test_pretraining_scores_every_token_of_the_validation_text_once(pretrained):
    out, score, texts = pretrained
    assert score["tokens"] == targets(out / "model", texts)
    expected = nats(out / "model", texts, 16) / score["tokens"]
    assert math.log(score["perplexity"]) == pytest.approx(expected, rel=1e-4)


def test_evaluate_counts_utf8_bytes_in_bits_per_byte(files, language_model, capsys):
    texts = texts_of(files / "greek.jsonl")
    score = one_score(capsys, language_model, "--data", files / "greek.jsonl")
    bits = score["tokens"] * math.log2(score["perplexity"])
    assert score["bytes"] == num_bytes(texts)
    assert score["bits_per_byte"] == pytest.approx(bits / num_bytes(texts), rel=1e-6)


@pytest.mark.parametrize("context_length", [1, 7, 64])
def test_evaluate_scores_every_token_of_a_text_once(context_length, files, language_model, capsys):
    texts = texts_of(files / "long.jsonl")
    window = ["--context-length", context_length]
    score = one_score(capsys, language_model, "--data", files / "long.jsonl", *window)
    assert score["tokens"] == targets(language_model, texts)
    expected = nats(language_model, texts, context_length) / score["tokens"]
    assert math.log(score["perplexity"]) == pytest.approx(expected, rel=1e-4)


# --- fine-tuning on text -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def overshot(files, language_model) -> Path:
    """A run on text whose rate is so high that its best weights are not its last."""
    out = files / "overshot"
    held_out = ["--validation", files / "one.jsonl", "--test", files / "greek.jsonl"]
    data = ["--data", files / "text.jsonl", *held_out, "--model", language_model, "--out", out]
    rates = ["--learning-rate", 1, "--epochs", 9, "--patience", 1, "--batch-size", 16]
    assert here("finetune", *data, *rates, "--max-length", 64, "--precision", "fp32") == 0
    assert evaluation(out)["best"]["step"] < evaluation(out)["steps"]
    return out


def test_finetune_saves_the_weights_of_the_best_evaluation(files, overshot, capsys):
    score = one_score(capsys, overshot, "--data", files / "one.jsonl", "--context-length", 64)
    best = evaluation(overshot)["best"]["loss"]
    assert math.log(score["perplexity"]) == pytest.approx(best, rel=1e-4)


def test_finetune_keeps_the_same_best_weights_in_the_run_folder(overshot):
    best = checkpoint.load(overshot / "best")
    saved = checkpoint.model_tensors(load_pretrained(overshot / "model"))
    assert best.step == evaluation(overshot)["best"]["step"]
    assert saved.keys() == best.tensors["model"].keys()
    assert all(torch.equal(saved[name], tensor) for name, tensor in best.tensors["model"].items())


def test_finetune_counts_utf8_bytes_in_bits_per_byte(files, overshot):
    score, size = evaluation(overshot)["test"], num_bytes(texts_of(files / "greek.jsonl"))
    expected = score["loss"] * score["tokens"] / math.log(2) / size
    assert score["bits_per_byte"] == pytest.approx(expected, rel=1e-6)


@pytest.fixture(scope="module")
def in_pieces(files, language_model) -> Path:
    """One epoch, an update a piece, on texts of many pieces."""
    out = files / "in_pieces"
    held_out = ["--validation", files / "one.jsonl", "--test", files / "long.jsonl"]
    data = ["--data", files / "learned.jsonl", *held_out, "--model", language_model, "--out", out]
    sizes = ["--max-length", 16, "--epochs", 1, "--batch-size", 1, "--patience", 0]
    assert here("finetune", *data, *sizes, "--precision", "fp32") == 0
    return out


def test_finetune_tests_every_token_of_a_long_text_once(files, in_pieces, language_model):
    expected = targets(language_model, texts_of(files / "long.jsonl"))
    assert evaluation(in_pieces)["test"]["tokens"] == expected


def test_finetune_learns_every_token_of_a_long_text_once_an_epoch(files, in_pieces, language_model):
    last = json.loads((in_pieces / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["tokens"] == targets(language_model, texts_of(files / "learned.jsonl"))


# --- classifiers -------------------------------------------------------------------------------


def test_finetune_stops_and_chooses_by_validation_not_by_test(files, encoder):
    """The test labels are wrong on purpose: whoever looks at them keeps the untrained weights."""
    rows, other = labelled(), {"pos": "neg", "neg": "pos"}
    wrong = [{**row, "label": other[row["label"]]} for row in rows[130:]]
    parts = {"train": rows[:100], "validation": rows[100:130], "test": wrong}
    paths = {name: write_rows(files / f"{name}.csv", part) for name, part in parts.items()}
    out = files / "chosen"
    held_out = ["--validation", paths["validation"], "--test", paths["test"]]
    data = ["--data", paths["train"], *held_out, "--model", encoder, "--out", out]
    rates = ["--learning-rate", 1e-2, "--epochs", 8, "--batch-size", 16, "--max-length", 16]
    assert here("finetune", *data, *rates, "--precision", "fp32") == 0
    found = evaluation(out)
    assert found["best"]["loss"] < 0.2
    assert found["test"]["accuracy"]["estimate"] < 0.5


@pytest.fixture(scope="module")
def classifier(files, encoder) -> tuple[Path, list[list[int]]]:
    """A classifier of texts longer than it may read, and the rows that it read in training."""
    out, data = files / "classifier", write_rows(files / "labelled.csv", labelled())
    rows, stop = read_rows(encoder)
    sizes = ["--max-length", 12, "--epochs", 1, "--precision", "fp32"]
    assert here("finetune", "--data", data, "--model", encoder, "--out", out, *sizes) == 0
    stop()
    return out, rows


def read_rows(folder: Path):
    """The rows of token ids that models read from now on, and a function that ends it."""
    rows: list[list[int]] = []
    vocab_size = Tokenizer.from_pretrained(folder).vocab_size

    def look(module, inputs):
        if isinstance(module, torch.nn.Embedding) and module.num_embeddings == vocab_size:
            rows.extend(inputs[0].tolist())

    return rows, torch.nn.modules.module.register_module_forward_pre_hook(look).remove


def assert_marked(rows: list[list[int]], folder: Path, length: int) -> None:
    tokenizer = Tokenizer.from_pretrained(folder)
    first, last = tokenizer.special_id(USER), tokenizer.special_id(END_OF_TEXT)
    cut = [[i for i in row if i != tokenizer.pad_id] for row in rows]
    assert {len(row) for row in cut} == {length}, "every text is longer than it may be"
    assert {(row[0], row[-1]) for row in cut} == {(first, last)}


def test_finetune_keeps_the_last_mark_of_a_text_that_it_cuts(classifier, encoder):
    _, rows = classifier
    assert_marked(rows, encoder, 12)


def test_evaluate_keeps_the_last_mark_of_a_text_that_it_cuts(files, classifier):
    out, _ = classifier
    rows, stop = read_rows(out / "model")
    assert here("evaluate", out, "--data", files / "labelled.csv", "--context-length", 10) == 0
    stop()
    assert_marked(rows, out / "model", 10)


# --- generate ----------------------------------------------------------------------------------


def greedy(folder: Path, ids: list[int], count: int) -> str:
    tokenizer, model = Tokenizer.from_pretrained(folder), load_pretrained(folder).eval()
    end = tokenizer.end_of_text_id
    return tokenizer.decode(generation.generate(model, ids, count, temperature=0, end_id=end))


@pytest.mark.parametrize("prompt", ["the key", "a house took"])
def test_generate_reads_the_prompt_as_the_beginning_of_a_text(prompt, language_model, capsys):
    tokenizer = Tokenizer.from_pretrained(language_model)
    ids = tokenizer.encode(prompt)
    expected = greedy(language_model, [tokenizer.end_of_text_id, *ids], 12)
    assert expected != greedy(language_model, ids, 12), "the end before it must matter"
    likeliest = ["--temperature", 0, "--max-new-tokens", 12]
    assert here("generate", language_model, "--prompt", prompt, *likeliest) == 0
    assert capsys.readouterr().out == f"{prompt}{expected}\n"


def test_generate_puts_a_question_between_the_marks_of_a_conversation(language_model, capsys):
    tokenizer = Tokenizer.from_pretrained(language_model)
    user, assistant = tokenizer.special_id(USER), tokenizer.special_id(ASSISTANT)
    ids = [user, *tokenizer.encode("where is the key"), assistant]
    ask = ["--chat", "--prompt", "where is the key", "--temperature", 0, "--max-new-tokens", 12]
    assert here("generate", language_model, *ask) == 0
    assert capsys.readouterr().out == f"{greedy(language_model, ids, 12)}\n"


def assert_one_sentence(capfd, *words: str) -> None:
    shown = capfd.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("labkit: ")
    assert shown.err.count("\n") == 1, shown.err
    assert all(word in shown.err for word in words), shown.err


def test_generate_says_that_a_classifier_does_not_write(classifier, capfd):
    capfd.readouterr()
    assert here("generate", classifier[0], "--prompt", "the key") == 2
    assert_one_sentence(capfd, "BertForSequenceClassification", "does not predict the next token")


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("--samples", 0, "1 to 1000"),
        ("--samples", -3, "1 to 1000"),
        ("--max-new-tokens", 0, "at least 1"),
        ("--max-new-tokens", -1, "at least 1"),
        ("--temperature", -0.5, "0 or more"),
        ("--temperature", "nan", "0 or more"),
        ("--temperature", "inf", "0 or more"),
        ("--top-k", 0, "at least 1"),
        ("--top-k", -2, "at least 1"),
        ("--top-p", 0, "above 0, at most 1"),
        ("--top-p", 1.01, "above 0, at most 1"),
        ("--top-p", "nan", "above 0, at most 1"),
        ("--seed", -1, "0 to 4294967295"),
        ("--seed", 2**32, "0 to 4294967295"),
    ],
)
def test_generate_names_a_number_out_of_range(option, value, allowed, language_model, capfd):
    assert here("generate", language_model, "--prompt", "the key", f"{option}={value}") == 2
    name = option.removeprefix("--").replace("-", "_")
    assert_one_sentence(capfd, f"{name} ", "is out of range", allowed)


def test_pretrain_makes_every_token_a_target_and_cuts_elsewhere_in_each_epoch(
    files, tmp_path, monkeypatch
):
    """What the model was given, seen at its first layer."""
    read = []
    encode = Transformer.encode

    def watched(self, input_ids, *given, **named):
        if self.training:
            read.append(input_ids.clone())
        return encode(self, input_ids, *given, **named)

    monkeypatch.setattr(Transformer, "encode", watched)
    run = tmp_path / "run"
    told = [*SMALL, "--steps", 100, "--eval-every", 0, "--save-every", 0]
    assert here("pretrain", "--data", files / "text.jsonl", "--out", run, *told) == 0
    tokens = read_tokens(run / "data" / "train.tokens").tolist()
    windows = [tuple(row) for batch in read for row in batch.tolist()]
    an_epoch = len(tokens) // 32
    epochs = len(windows) // an_epoch
    assert epochs >= 3
    ring = tokens + tokens[:32]
    places = {tuple(ring[i : i + 32]): i for i in range(len(tokens))}
    cuts = [
        {places[window] % 32 for window in windows[e * an_epoch : (e + 1) * an_epoch]}
        for e in range(epochs)
    ]
    assert len(set.union(*cuts)) >= epochs, "each epoch begins its contexts at other places"
    seen = {(places[window] + k + 1) % len(tokens) for window in windows for k in range(32)}
    assert seen == set(range(len(tokens))), "a token that is never a target"
