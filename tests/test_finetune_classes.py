"""`labkit finetune` on classes: what it settles itself, what it prints beside its result, and
`labkit classify` on new texts."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import here, sentences, write_rows

import labkit
from labkit.commands import recipe
from labkit.commands.options import Finetune
from labkit.commands.tasks import Task
from labkit.models import Transformer, TransformerConfig
from labkit.text import corpora, train_bpe
from labkit.text.tokenizers import END_OF_TEXT, USER

FAST = ["--precision", "fp32", "--learning-rate", 1e-3]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    """A random BERT whose tokenizer puts marks around texts and between pairs, as BERT's does."""
    from tokenizers.processors import TemplateProcessing
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = train_bpe(sentences(100), 400)
    marks = [(name, tokenizer.special_id(name)) for name in (USER, END_OF_TEXT)]
    tokenizer.backend.post_processor = TemplateProcessing(
        single=f"{USER} $A {END_OF_TEXT}",
        pair=f"{USER} $A {END_OF_TEXT} $B:1 {END_OF_TEXT}:1",
        special_tokens=marks,
    )
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(vocab_size=tokenizer.vocab_size, intermediate_size=64, **shape)
    BertModel(config).save_pretrained(folder)
    tokenizer.save(folder)
    return folder


def moods(count: int, at_end: bool = False) -> list[dict]:
    """Texts whose class is one word, at their beginning or after forty others."""
    words = ("good", "bad", "dull")
    rows = []
    for i, text in enumerate(sentences(count, seed=2)):
        long = f"{text} {text}"
        word = words[i % 3]
        rows.append({"text": f"{long} {word}" if at_end else f"{word} {long} {i}", "label": word})
    return rows


def evaluation(out: Path) -> dict:
    return json.loads((out / "evaluation.json").read_text())


# --- what is settled from the data -------------------------------------------------------------


def settled(
    train: int, validation: int = 100, width: int = 384, kind: str = "classification", **asked
) -> tuple:
    tokenizer = train_bpe(["some words to learn " * 20], 300)
    texts = {"train": ["some words"] * train, "validation": [], "test": []}
    answers = ["a word"] * train if kind == "instruction" else [0] * train
    task = Task(kind, ["a", "b"], texts, {"train": answers})
    shape = {"d_model": width, "num_layers": 1, "num_heads": 2, "d_ff": 8, "num_labels": 2}
    config = TransformerConfig(vocab_size=300, context_length=512, kind="encoder", **shape)
    options = Finetune(**asked)
    sizes = recipe.sizes(options, task, Transformer(config), tokenizer)
    return sizes, recipe.recipe(options, sizes, train, validation, kind)


@pytest.mark.parametrize("train", [80, 800])
def test_few_examples_get_enough_updates(train):
    _, plan = settled(train)
    assert plan.steps >= recipe.FEWEST_UPDATES
    assert plan.steps >= 3 * train / 16


def test_many_examples_get_three_epochs_in_larger_batches():
    sizes, plan = settled(6400)
    assert (sizes.batch_size, plan.steps) == (32, 600)


def test_the_rate_falls_with_the_width():
    assert [settled(80, width=w)[0].learning_rate for w in (192, 384, 768)] == [2e-4, 1e-4, 5e-5]


@pytest.mark.parametrize(
    ("strategy", "encoder", "language_model"),
    [
        ("full", 1e-4, 5e-5),
        ("lora", 1e-3, 5e-4),
        ("adapters", 1e-3, 5e-4),
        ("bitfit", 1e-3, 5e-4),
        ("prompt", 1e-2, 1e-1),
        ("prefix", 1e-2, 3e-2),
        ("head", 1e-3, 1e-3),
    ],
)
def test_each_strategy_has_the_rate_that_was_measured_for_it(strategy, encoder, language_model):
    assert settled(80, strategy=strategy)[0].learning_rate == encoder
    assert settled(80, strategy=strategy, learning_rate=7e-4)[0].learning_rate == 7e-4
    written = settled(80, strategy=strategy, kind="instruction")[0]
    assert written.learning_rate == language_model


@pytest.mark.parametrize("validation", [10, 100])
def test_few_validation_examples_choose_nothing(validation):
    _, plan = settled(90, validation)
    assert plan.restore_best == (validation == 100)
    assert (plan.patience > 0) == (validation == 100)


def test_what_is_asked_for_is_what_is_done():
    asked = {"epochs": 1.0, "batch_size": 8, "learning_rate": 3e-5, "max_length": 40, "patience": 2}
    sizes, plan = settled(80, 10, restore_best=False, **asked)
    assert (sizes.batch_size, sizes.learning_rate, sizes.max_length) == (8, 3e-5, 40)
    assert (plan.steps, plan.patience, plan.restore_best) == (10, 2, False)


# --- a run, and its baselines ------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(encoder, tmp_path_factory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("moods")
    data = write_rows(folder / "moods.csv", moods(150))
    arguments = ["--data", data, "--model", encoder, "--out", folder / "run", *FAST]
    assert here("finetune", *arguments) == 0
    return folder, (folder / "run" / "config.json").read_text()


def test_the_result_stands_beside_what_is_simpler(finished, capsys):
    folder, _ = finished
    found = evaluation(folder / "run")
    named = {"frozen vectors, fitted head", "counted words (TF-IDF)", "largest class"}
    assert set(found["baselines"]) == named
    assert found["baselines"]["counted words (TF-IDF)"]["accuracy"]["estimate"] == 1.0
    assert found["baselines"]["largest class"]["accuracy"]["estimate"] < 0.6
    assert {score["examples"] for score in found["baselines"].values()} == {
        found["test"]["examples"]
    }
    assert [row["class"] for row in found["classes"]] == ["bad", "dull", "good"]
    assert sum(row["examples"] for row in found["classes"]) == found["test"]["examples"]


def test_the_saved_options_hold_what_was_settled(finished):
    options = json.loads(finished[1])["options"]
    assert (options["batch_size"], options["micro_batch_size"]) == (16, 4)
    assert 60 < options["max_length"] <= 256


def test_the_run_says_what_is_trained_how_it_compares_and_what_comes_next(
    encoder, tmp_path, capsys
):
    data = write_rows(tmp_path / "moods.csv", moods(60))
    arguments = ["--data", data, "--model", encoder, "--out", tmp_path / "run", *FAST]
    assert here("finetune", *arguments, "--epochs", 1) == 0
    shown = capsys.readouterr().out
    assert re.search(r"3 classes: bad \d+, dull \d+, good \d+", shown)
    assert re.search(r"fine-tuned against .*points of accuracy, 95 %", shown)
    assert f"next: labkit classify {tmp_path / 'run'}" in shown


def test_no_baseline_has_learned_from_the_test_examples(encoder, tmp_path):
    """Their labels are wrong on purpose: whoever learns from the training texts gets them wrong."""
    other = {"good": "bad", "bad": "dull", "dull": "good"}
    wrong = [{**row, "label": other[row["label"]]} for row in moods(90)[60:]]
    paths = {}
    for name, rows in {"train": moods(90)[:60], "test": wrong}.items():
        paths[name] = write_rows(tmp_path / f"{name}.csv", rows)
    arguments = ["--data", paths["train"], "--test", paths["test"], "--model", encoder]
    short = ["--out", tmp_path / "run", "--epochs", 1, *FAST]
    assert here("finetune", *arguments, *short) == 0
    found = evaluation(tmp_path / "run")["baselines"]
    assert found["counted words (TF-IDF)"]["accuracy"]["estimate"] == 0.0
    assert found["frozen vectors, fitted head"]["accuracy"]["estimate"] < 0.5


def test_baselines_can_be_left_out(encoder, tmp_path, capsys):
    data = write_rows(tmp_path / "moods.csv", moods(60))
    arguments = ["--data", data, "--model", encoder, "--out", tmp_path / "run", *FAST]
    assert here("finetune", *arguments, "--epochs", 1, "--no-baselines") == 0
    assert evaluation(tmp_path / "run")["baselines"] == {}
    assert "TF-IDF" not in capsys.readouterr().out


def test_a_run_begins_where_the_frozen_model_with_its_fitted_head_is(encoder, tmp_path):
    """At a rate of nearly 0 the trained model is the baseline."""
    data = write_rows(tmp_path / "moods.csv", moods(150))
    arguments = ["--data", data, "--model", encoder, "--out", tmp_path / "run"]
    slow = ["--learning-rate", 1e-12, "--epochs", 1, "--precision", "fp32"]
    assert here("finetune", *arguments, *slow) == 0
    found = evaluation(tmp_path / "run")
    frozen = found["baselines"]["frozen vectors, fitted head"]
    assert found["test"]["accuracy"] == frozen["accuracy"]


def test_a_classifier_of_the_same_classes_goes_on_with_its_own_head(finished, tmp_path):
    folder, _ = finished
    arguments = [
        "--data",
        folder / "moods.csv",
        "--model",
        folder / "run",
        "--out",
        tmp_path / "on",
    ]
    slow = ["--learning-rate", 1e-12, "--epochs", 1, "--precision", "fp32"]
    assert here("finetune", *arguments, *slow) == 0
    before, after = evaluation(folder / "run"), evaluation(tmp_path / "on")
    assert after["test"] == before["test"]
    assert "frozen vectors, fitted head" not in after["baselines"]


# --- long texts --------------------------------------------------------------------------------


def test_what_stands_behind_the_limit_is_read_in_pieces(encoder, tmp_path, capsys):
    """The word that tells stands at the end: a text that is cut cannot be told."""
    data = write_rows(tmp_path / "late.csv", moods(300, at_end=True))
    arguments = ["--data", data, "--model", encoder, "--max-length", 40, *FAST, "--epochs", 25]
    found, read = {}, set()

    def look(module, inputs):
        if isinstance(module, torch.nn.Embedding):
            read.add(inputs[0].shape[-1])

    watch = torch.nn.modules.module.register_module_forward_pre_hook(look)
    for pieces in (1, 8):
        out = tmp_path / f"in_{pieces}"
        assert here("finetune", *arguments, "--pieces", pieces, "--out", out) == 0
        found[pieces] = evaluation(out)["test"]["accuracy"]["estimate"]
    watch.remove()
    assert max(read) == 40, "no piece is longer than asked for, in training neither"
    assert found[1] < 0.6
    assert found[8] > 0.9
    said = capsys.readouterr().err
    assert "train texts are longer than 40 tokens: cut" in said
    assert "8 pieces of 40 tokens" not in said
    assert here("evaluate", tmp_path / "in_8", "--data", data, "--json") == 0
    scores = json.loads(capsys.readouterr().out)["scores"].popitem()[1]
    assert scores["accuracy"]["estimate"] > 0.9, "evaluate reads in pieces, too"


# --- pairs -------------------------------------------------------------------------------------


def pairs(count: int) -> list[dict]:
    """The class is whether the second text begins with the word of the first."""
    draw = np.random.default_rng(0)
    words = ["red", "blue", "key", "lamp"]
    rows = []
    for i in range(count):
        a, b = draw.choice(words), draw.choice(words)
        rows.append({"first": f"{a} door {i}", "second": f"{b} house", "label": str(a == b)})
    return rows


@pytest.fixture(scope="module")
def paired(encoder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    data = write_rows(folder / "pairs.csv", pairs(400))
    columns = ["--text-column", "first", "--pair-column", "second"]
    arguments = ["--data", data, *columns, "--model", encoder, "--out", folder / "run", *FAST]
    assert here("finetune", *arguments, "--epochs", 30, "--batch-size", 32) == 0
    return folder


def test_a_class_of_two_texts_is_learned(paired):
    found = evaluation(paired / "run")
    assert found["test"]["accuracy"]["estimate"] > 0.9
    largest = found["baselines"]["largest class"]["accuracy"]["estimate"]
    assert found["test"]["accuracy"]["estimate"] > largest + 0.1


def test_transformers_reads_the_pairs_as_we_do(paired):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = paired / "run" / "model"
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    inputs = AutoTokenizer.from_pretrained(folder)("red door 5", "red house", return_tensors="pt")
    with torch.inference_mode():
        theirs = model(**inputs).logits.softmax(-1)[0]
    ours = labkit.load_classifier(paired / "run").classify("red door 5", "red house")[0]
    for i, probability in enumerate(theirs.tolist()):
        assert ours[model.config.id2label[i]] == pytest.approx(probability, abs=1e-5)


def test_evaluate_and_classify_take_pairs(paired, capsys):
    columns = ["--text-column", "first", "--pair-column", "second"]
    data = ["--data", paired / "pairs.csv", *columns]
    assert here("evaluate", paired / "run", *data, "--json") == 0
    scores = json.loads(capsys.readouterr().out)["scores"].popitem()[1]
    assert scores["accuracy"]["estimate"] > 0.9
    assert here("classify", paired / "run", *data, "--json") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    right = [r["class"] == p["label"] for r, p in zip(rows, pairs(400), strict=True)]
    assert np.mean(right) == pytest.approx(scores["accuracy"]["estimate"])


# --- new texts ---------------------------------------------------------------------------------


def test_classify_writes_a_class_for_every_text(finished, tmp_path, capsys):
    folder, _ = finished
    new = [{"text": row["text"]} for row in moods(20)]
    data = write_rows(tmp_path / "new.csv", new)
    out = tmp_path / "said.csv"
    assert here("classify", folder / "run", "--data", data, "--out", out) == 0
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["text"] for row in rows] == [row["text"] for row in new]
    assert {row["class"] for row in rows} <= {"good", "bad", "dull"}
    capsys.readouterr()
    texts = [argument for row in new[:3] for argument in ("--text", row["text"])][1::2]
    assert here("classify", folder / "run", "--text", *texts) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in shown] == [row["class"] for row in rows[:3]]


def test_probabilities_of_all_classes_add_up(finished, capsys):
    assert here("classify", finished[0] / "run", "--text", "a good thing", "--json") == 0
    row = json.loads(capsys.readouterr().out)
    assert sum(row["probabilities"].values()) == pytest.approx(1.0)
    assert row["probability"] == max(row["probabilities"].values())
    assert row["class"] == max(row["probabilities"], key=row["probabilities"].get)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "choose either texts, or --data"),
        (["--text", "a", "--data", "new.csv"], "choose either texts, or --data"),
        (["--text", "a", "--pair-column", "b"], "pairs come from a file"),
        (["--data", "absent.csv"], "absent.csv does not exist"),
        (["--text", "a", "--batch-size", "0"], "batch_size 0 is out of range"),
    ],
)
def test_bad_input_to_classify(arguments, words, finished, capsys):
    assert here("classify", finished[0] / "run", *arguments) == 2
    assert words in capsys.readouterr().err


def test_classify_never_writes_over_what_it_reads(finished, tmp_path, capsys):
    data = write_rows(tmp_path / "new.csv", moods(3))
    assert here("classify", finished[0] / "run", "--data", data, "--out", data) == 2
    assert "is the file that is read" in capsys.readouterr().err
    assert len(data.read_text().splitlines()) == 4


def test_a_language_model_is_no_classifier(capsys):
    assert here("classify", corpora.minilm_folder(), "--text", "a") == 2
    assert "holds no classifier: labkit finetune makes one" in capsys.readouterr().err


# --- the real encoder --------------------------------------------------------------------------


@pytest.mark.slow
def test_the_real_encoder_begins_far_above_its_first_token(tmp_path):
    """BBC topics, 60 articles: frozen vectors with the mean tell them apart; [CLS] does worse."""
    news = corpora.load("bbc_news")
    some = {"train": range(0, 1600, 27), "test": range(0, 200, 3)}
    names = news["train"].features["label"].names
    paths = {}
    for split, rows in some.items():
        part = news[split].select(rows)
        lines = [
            json.dumps({"text": text, "label": names[label]})
            for text, label in zip(part["text"], part["label"], strict=True)
        ]
        paths[split] = tmp_path / f"{split}.jsonl"
        paths[split].write_text("\n".join(lines))
    arguments = ["--data", paths["train"], "--test", paths["test"], "--out", tmp_path / "run"]
    short = ["--max-length", 64, "--epochs", 1]
    assert here("finetune", *arguments, *short) == 0
    found = evaluation(tmp_path / "run")
    frozen = found["baselines"]["frozen vectors, fitted head"]["accuracy"]["estimate"]
    assert frozen > 0.85
    assert found["test"]["accuracy"]["estimate"] > 0.85


# --- rare classes ------------------------------------------------------------------------------


def test_a_class_whose_only_rows_were_held_out_is_trained_on(encoder, tmp_path, capsys):
    """Which rows are held out follows from their texts: here from the only ones of a class."""
    rows = moods(60)
    held = {"validation": [], "test": []}
    write_rows(tmp_path / "all.csv", rows)
    splits = corpora.load(tmp_path / "all.csv")
    for split in held:
        held[split] = list(splits[split]["text"])
    rare = held["test"][0]
    rows = [{**row, "label": "rare" if row["text"] == rare else row["label"]} for row in rows]
    data = write_rows(tmp_path / "rare.csv", rows)
    arguments = ["--data", data, "--model", encoder, "--out", tmp_path / "run", *FAST]
    assert here("finetune", *arguments, "--epochs", 1) == 0
    shown = capsys.readouterr()
    assert "class 'rare' is so rare" in shown.err
    assert re.search(r"rare 1\b", shown.out)
    assert evaluation(tmp_path / "run")["test"]["examples"] == len(held["test"]) - 1


# --- the model card ----------------------------------------------------------------------------


def test_the_card_opens_as_one_holds_the_scores_and_its_code_runs(finished, capsys):
    from huggingface_hub import ModelCard

    folder = finished[0] / "run" / "model"
    card = ModelCard.load(folder / "README.md")
    assert card.data.pipeline_tag == "text-classification"
    found = evaluation(finished[0] / "run")
    assert f"| this model | {found['test']['accuracy']['estimate']:.4f} |" in card.text
    words = found["baselines"]["counted words (TF-IDF)"]["accuracy"]["estimate"]
    assert f"| counted words (TF-IDF) | {words:.4f} |" in card.text
    code = re.search(r"```python\n(.*?)```", card.text, re.DOTALL)[1]
    assert str(folder) in code
    code = code.replace('classify("...", truncation=True)', 'said = classify("a good thing")')
    names: dict = {}
    exec(code, names)
    assert names["said"][0]["label"] in {"good", "bad", "dull"}


def test_names_from_the_data_stay_text_in_the_card(tmp_path):
    from labkit.commands.card import write_card

    evil = "<script>|`x`\n# head"
    write_card(tmp_path, "text-classification", evil, {evil: evil}, [{"model": evil}], "few")
    text = (tmp_path / "README.md").read_text()
    assert "<script>" not in text.replace("\\<", "")
    assert "\n# head" not in text


# --- how few examples are dealt ----------------------------------------------------------------


def test_few_examples_are_a_fair_draw_sorted_inside_each_batch_only(encoder):
    """Which examples an update sees does not follow from their lengths."""
    from labkit.batches import Batches
    from labkit.commands import examples
    from labkit.generation.classifier import Classifier, Reading
    from labkit.models.huggingface.folders import open_classifier
    from labkit.text import Tokenizer

    rows = [{"text": f"{'the key ' * (1 + i % 13)}", "label": i % 2} for i in range(120)]
    texts, labels = [r["text"] for r in rows], [r["label"] for r in rows]
    task = Task("classification", ["a", "b"], {"train": texts}, {"train": labels})
    model = open_classifier(encoder, ["a", "b"])
    reader = Classifier(model, Tokenizer.from_pretrained(encoder), Reading(64))
    dealt = examples.training(task, reader, recipe.Sizes(16, 64, 1e-4), seed=3)
    plain = Batches(dealt.examples, 16, seed=3)
    lengths = [len(dealt.examples[i]["input_ids"]) for i in range(len(dealt.examples))]
    for step in range(len(rows) // 16):
        assert set(dealt.indices(step)) == set(plain.indices(step))
        inside = [lengths[i] for i in dealt.indices(step)]
        assert inside == sorted(inside)


def test_a_long_silence_is_broken(monkeypatch, capsys):
    from labkit.commands import shell

    monkeypatch.setattr(shell, "SECONDS_BETWEEN_LINES", 0.0)
    assert list(shell.counted([7, 8, 9], 3, "test")) == [7, 8, 9]
    assert "test: 2 of 3 batches" in capsys.readouterr().err


def test_the_card_of_pairs_shows_how_pairs_are_given(paired):
    text = (paired / "run" / "model" / "README.md").read_text()
    assert "pipeline_tag: text-classification\n" in text
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1].replace(
        "classify({", "said = classify({"
    )
    names: dict = {}
    exec(code, names)
    assert set(names["said"]) == {"label", "score"}
