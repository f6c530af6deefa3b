"""`labkit finetune --task tagging`, `evaluate` and `classify` on files of one's own."""

import csv
import json
import random
from pathlib import Path

import pytest
import torch
from commands import here

import labkit
from labkit.text import train_bpe
from labkit.text.bio import Tagged, check_tags
from labkit.text.conll import read_conll, write_conll

FAST = ["--precision", "fp32", "--learning-rate", 3e-3, "--batch-size", 16, "--epochs", 12]


def rows(count: int, seed: int = 0) -> list[Tagged]:
    """Bell is a surname after a first name, a thing after 'brass', and else no name."""
    chance = random.Random(seed)
    parts = (
        ("Amara Bell", "PERSON"),
        ("Omar Bell", "PERSON"),
        ("Mei", "PERSON"),
        ("brass bell", "THING"),
        ("key", "THING"),
        ("rang a bell for", None),
        ("took the", None),
        ("and", None),
    )
    found = []
    for number in range(count):
        words: list[str] = []
        tags: list[str] = []
        for text, kind in chance.choices(parts, k=8):
            own = text.split()
            words += own
            tags += (
                ["O"] * len(own) if kind is None else [f"B-{kind}", *[f"I-{kind}"] * (len(own) - 1)]
            )
        found.append(
            Tagged([*words, f"{number}", "."], [*tags, "O", "O"], f"document {number // 2}")
        )
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A random BERT and files of words and tags."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("tagging")
    tokenizer = train_bpe([" ".join(row.words) for row in rows(100)], 330)
    torch.manual_seed(0)
    shape = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = BertConfig(
        vocab_size=tokenizer.vocab_size,
        intermediate_size=96,
        initializer_range=0.15,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **shape,
    )
    BertModel(config).save_pretrained(folder / "encoder")
    tokenizer.save(folder / "encoder")
    write_conll(folder / "all.conll", rows(240))
    write_conll(folder / "new.conll", rows(40, seed=9))
    return folder


@pytest.fixture(scope="module", params=["softmax", "crf"])
def finished(request, folder) -> Path:
    out = folder / request.param
    given = ["--task", "tagging", "--data", folder / "all.conll", "--model", folder / "encoder"]
    assert here("finetune", *given, "--head", request.param, "--out", out, *FAST) == 0
    return out


def test_a_tagger_learns_and_stands_beside_what_is_simpler(finished, capsys):
    said = json.loads((finished / "evaluation.json").read_text())
    strict = said["test"]["strict"]
    assert strict["f1"] > 0.9
    assert strict["f1_interval"]["low"] <= strict["f1"] <= strict["f1_interval"]["high"]
    assert set(said["baselines"]) == {
        "word windows, logistic regression",
        "hidden Markov model",
        "most frequent tag of the word",
    }
    assert said["baselines"]["most frequent tag of the word"]["strict"]["f1"] < 0.9
    assert [row["type"] for row in said["test"]["types"]] == ["PERSON", "THING"]
    with (finished / "errors.csv").open() as file:
        assert next(csv.reader(file)) == ["error", "type", "words", "probability", "row"]
    card = (finished / "model" / "README.md").read_text()
    assert "pipeline_tag: token-classification\n" in card
    assert ("labkit.load\\_tagger" in card or "load_tagger" in card) == (finished.name == "crf")
    assert (finished / "model" / "crf.safetensors").exists() == (finished.name == "crf")


def test_the_folder_is_one_that_transformers_tags_with(finished, folder):
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    model = AutoModelForTokenClassification.from_pretrained(finished / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(finished / "model")
    reader = labkit.load_tagger(finished, device="cpu")
    assert [model.config.id2label[i] for i in range(5)] == reader.model.tags
    words = rows(1, seed=9)[0].words
    (scores,) = reader.scores([words])
    read = tokenizer(" ".join(words), return_tensors="pt")
    firsts = {0} | {
        i
        for i, (start, _) in enumerate(
            tokenizer(" ".join(words), return_offsets_mapping=True)["offset_mapping"]
        )
        if start and " ".join(words)[start] == " "
    }
    with torch.no_grad():
        theirs = model(**{k: v for k, v in read.items() if k != "token_type_ids"}).logits[0]
    torch.testing.assert_close(theirs[sorted(firsts)], scores)


def test_evaluate_scores_files(finished, folder, capsys):
    assert here("evaluate", finished, "--data", folder / "new.conll", "--json") == 0
    found = json.loads(capsys.readouterr().out)["scores"][str(folder / "new.conll")]
    assert found["strict"]["f1"] > 0.9
    assert found["documents"] == 20
    assert here("evaluate", finished, "--data", folder / "new.conll", folder / "all.conll") == 0
    shown = capsys.readouterr().out
    assert "95 % interval" in shown
    assert shown.count("PERSON") == 2
    short = ["--context-length", 12, "--json"]
    assert here("evaluate", finished, "--data", folder / "new.conll", *short) == 0
    assert (
        json.loads(capsys.readouterr().out)["scores"][str(folder / "new.conll")]["accuracy"] > 0.7
    )


def test_classify_tags_text_lines_tables_and_words(finished, folder, tmp_path, capsys):
    assert here("classify", finished, "--text", "Amara Bell took the brass bell.", "Mei and") == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown == ["[Amara Bell PERSON] took the [brass bell THING] .", "[Mei PERSON] and"]
    assert here("classify", finished, "--text", "Omar Bell and", "--json") == 0
    row = json.loads(capsys.readouterr().out)
    assert row["words"] == ["Omar", "Bell", "and"]
    assert row["tags"] == ["B-PERSON", "I-PERSON", "O"]
    (entity,) = row["entities"]
    assert (entity["text"], entity["start"], entity["end"]) == ("Omar Bell", 0, 2)
    assert 0.5 < entity["probability"] <= 1
    out = tmp_path / "tags.conll"
    assert here("classify", finished, "--data", folder / "new.conll", "--out", out) == 0
    tagged = read_conll(out)
    assert [row.words for row in tagged] == [row.words for row in rows(40, seed=9)]
    for row in tagged:
        check_tags(row.tags)
    (tmp_path / "a.txt").write_text("Mei took the key\n\nand\n")
    (tmp_path / "a.csv").write_text("id,body\n1,Mei took the key\n")
    capsys.readouterr()
    assert here("classify", finished, "--data", tmp_path / "a.txt") == 0
    assert here("classify", finished, "--data", tmp_path / "a.csv", "--text-column", "body") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "[Mei PERSON] took the [key THING]",
        "and",
        "[Mei PERSON] took the [key THING]",
    ]


def test_a_tagger_goes_on_from_a_tagger_with_its_head(finished, folder, tmp_path):
    out = tmp_path / "more"
    given = ["--data", folder / "new.conll", "--model", finished, "--out", out, "--head", "crf"]
    assert here("finetune", *given, *FAST[:4], "--epochs", 1, "--batch-size", 16) == 0
    said = json.loads((out / "evaluation.json").read_text())
    assert said["test"]["strict"]["f1"] > 0.8, "one epoch: it already knew"
    assert (out / "model" / "crf.safetensors").exists()


def test_a_finished_run_resumes_to_the_same_weights(folder, tmp_path, capsys):
    given = ["--data", folder / "new.conll", "--model", folder / "encoder", "--head", "crf"]
    given += ["--precision", "fp32", "--batch-size", 16, "--epochs", 4, "--no-baselines"]
    assert here("finetune", *given, "--out", tmp_path / "a", "--save-every", 3) == 0
    assert here("finetune", "--resume", "--out", tmp_path / "a") == 0
    capsys.readouterr()
    write_conll(folder / "changed.conll", rows(40, seed=10))
    changed = ["--data", folder / "changed.conll", "--resume", "--out", tmp_path / "a"]
    assert here("finetune", *changed) == 2
    assert "data" in capsys.readouterr().err


def test_files_of_their_own_and_what_stands_in_two_of_them(folder, tmp_path, capsys):
    write_conll(tmp_path / "train.conll", rows(60, seed=1))
    write_conll(tmp_path / "test.conll", [*rows(10, seed=2), rows(60, seed=1)[0]])
    write_conll(tmp_path / "validation.conll", rows(10, seed=3))
    given = ["--data", tmp_path / "train.conll", "--validation", tmp_path / "validation.conll"]
    given += ["--test", tmp_path / "test.conll", "--model", folder / "encoder", "--epochs", 1]
    assert here("finetune", *given, "--out", tmp_path / "run", "--precision", "fp32") == 0
    shown = capsys.readouterr()
    assert "1 train examples stand in the test or validation examples too: left out" in shown.err
    assert "59 train, 10 validation, 11 test" in shown.out
    assert "2 types: PERSON" in shown.out


BAD = {
    "columns": ("Mei\tB-P\nalone\n", "line 2 is 'alone'"),
    "not BIO": ("Mei\tPERSON\n", "row 1 (from line 1) has tag 'PERSON' at word 1: a tag is O"),
    "no beginning": ("a\tO\nMei\tI-P\n", "the first word of a span is B-P"),
    "no entity": ("a\tO\n\nb\tO\n\nc\tO\n\nd\tO\n", "tags every word with O"),
    "one row": ("Mei\tB-P\n", "has 1 documents, which leaves none for"),
    "nothing": ("\n\n", "is empty"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_cannot_be_used_is_one_sentence_and_nothing_is_written(
    name, folder, tmp_path, capsys
):
    text, said = BAD[name]
    (tmp_path / "a.conll").write_text(text)
    given = ["--data", tmp_path / "a.conll", "--model", folder / "encoder", "--task", "tagging"]
    assert here("finetune", *given, "--out", tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            ["--data", "bbc_news", "--task", "tagging"],
            "bbc_news has no tags: give python_source or",
        ),
        (["--data", "none.conll"], "none.conll does not exist"),
        (["--data", "{}/all.conll", "--test", "{}/strange.conll"], "none of the tags known: O, B-"),
        (["--data", "{}/long.conll", "--max-length", 8], "pieces, and a window has room for 8"),
        (["--data", "{}/labelled.csv", "--head", "crf"], "head crf is of taggers, this task is"),
    ],
)
def test_options_that_do_not_fit_are_one_sentence(given, said, folder, tmp_path, capsys):
    (folder / "strange.conll").write_text("Mei\tB-CITY\n")
    write_conll(folder / "long.conll", [*rows(40), Tagged(["q1" * 20], ["O"])])
    (folder / "labelled.csv").write_text("text,label\na,b\n")
    given = [str(x).replace("{}", str(folder)) for x in given]
    run = tmp_path / "run"
    assert here("finetune", *given, "--model", folder / "encoder", "--out", run) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1
    assert not run.exists()


def test_what_cannot_be_scored_or_tagged_is_one_sentence(finished, folder, tmp_path, capsys):
    (folder / "strange.conll").write_text("Mei\tB-CITY\n")
    bad = {
        (
            "evaluate",
            "--data",
            folder / "strange.conll",
        ): "'B-CITY', which is none of the tags known",
        ("evaluate", "--data", "bbc_news"): "bbc_news does not exist",
        ("evaluate", "--data", "storyworld"): "which is none of the model's",
        ("evaluate", "--data", folder / "new.conll", "--split", "test"): "is read whole",
        ("evaluate", "--data", folder / "new.conll", "--context-length", 9999): "reads at most 512",
        ("classify", "--text", " "): "text 1 holds no word",
        ("classify", "--data", folder / "none.txt"): "does not exist",
    }
    for (command, *given), said in bad.items():
        assert here(command, finished, *given) == 2, given
        error = capsys.readouterr().err
        assert said in error
        assert len(error.strip().splitlines()) == 1
    kept = (folder / "new.conll").read_text()
    same = ["--data", folder / "new.conll", "--out", folder / "new.conll"]
    assert here("classify", finished, *same) == 2
    assert (folder / "new.conll").read_text() == kept


@pytest.mark.parametrize("head", ["softmax", "crf"])
@pytest.mark.parametrize("strategy", ["head", "bitfit", "lora", "last_k"])
def test_a_tagger_of_a_strategy_ends_in_a_plain_folder(head, strategy, folder, tmp_path, capsys):
    out = tmp_path / "run"
    given = ["--task", "tagging", "--data", folder / "all.conll", "--model", folder / "encoder"]
    few = ["--head", head, "--strategy", strategy, "--out", out, *FAST, "--epochs", 2]
    assert here("finetune", *given, *few, "--no-baselines") == 0
    said = capsys.readouterr().out
    (line,) = [line for line in said.splitlines() if "parameters trained" in line]
    assert line.startswith(f"model   {strategy}")
    kept = labkit.load_tagger(out, device="cpu").model
    own = {n: p for n, p in kept.named_parameters() if not n.startswith("body.")}
    assert own["classifier.bias"].abs().max() > 0  # it began at 0: the task's own layer has trained
    if head == "crf":
        assert own["crf.transitions_KK"].abs().max() > 0
    # Of the body just what the strategy names has moved, LoRA folded in.
    base = labkit.models.open_tagger(folder / "encoder", kept.tags).body.state_dict()
    moved = {n for n, x in kept.body.state_dict().items() if not torch.equal(x, base[n])}
    named = {
        "head": lambda n: False,
        "bitfit": lambda n: n.endswith("bias"),
        "lora": lambda n: n.endswith(("query.weight", "value.weight")),
        "last_k": lambda n: n.startswith("encoder.layer.1."),
    }[strategy]
    read = {n for n in base if "pooler" not in n}
    unused = {n for n in read if n.endswith("key.bias")}  # softmax is blind to it: no gradient
    assert moved - unused == {n for n in read if named(n)} - unused


def test_what_leaves_no_plain_tagger_is_one_sentence(folder, tmp_path, capsys):
    out = tmp_path / "run"
    given = ["--task", "tagging", "--data", folder / "all.conll", "--model", folder / "encoder"]
    for strategy in ("adapters", "prompt", "prefix"):
        assert here("finetune", *given, "--strategy", strategy, "--out", out) == 2
        assert f"strategy {strategy} leaves no plain model" in capsys.readouterr().err
        assert not out.exists()
