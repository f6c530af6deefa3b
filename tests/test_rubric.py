"""A project folder: the commands of chapter 22 make one, and the rubric names what one lacks."""

import json
import shutil

import pytest
import torch
from commands import alone, here

from labkit.course.rubric import cannot_write, lacking
from labkit.models import Transformer, TransformerConfig
from labkit.models.huggingface import save_pretrained
from labkit.notebook.projects import smallest_project
from labkit.text import example_folder, train_bpe
from labkit.text.tidying import read_tidied


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return smallest_project(tmp_path_factory.mktemp("good") / "mine")


def change(file, **changes):
    values = json.loads(file.read_text())
    scores = values.get("scores")
    target = next(iter(scores.values())) if scores else values
    for name, value in changes.items():
        target.pop(name) if value is None else target.update({name: value})
    file.write_text(json.dumps(values))


def leak(project):
    test = sorted((project / "text" / "test").glob("*.txt"))[0]
    inside = sorted((project / "text" / "train").glob("*.txt"))[0]
    inside.write_text(inside.read_text() + test.read_text())


def reorder(project):
    """A held-out text in pieces of twelve words, the last first: no run of 13 stands in both."""
    words = sorted((project / "text" / "test").glob("*.txt"))[0].read_text().split()
    pieces = [" ".join(words[i : i + 12]) for i in range(0, len(words), 12)]
    (project / "text" / "train" / "again.txt").write_text(" ".join(reversed(pieces)))


def private(project):
    file = sorted((project / "text" / "train").glob("*.txt"))[0]
    file.write_text(file.read_text() + "Write to mira@example.org.\n")


BROKEN = {
    "no text": (lambda p: shutil.rmtree(p / "text"), "holds no tidied.json"),
    "a leak": (leak, "stand in training text, such as"),
    "a copy in another order": (reorder, "is nearly text/train/again.txt"),
    "an address": (private, "looks like an e-mail address"),
    "no model": (lambda p: shutil.rmtree(p / "tuned"), "no tuned/model/ and no pretrained/model/"),
    "no evaluation": (lambda p: (p / "evaluation.json").unlink(), "no evaluation.json"),
    "no base": (lambda p: change(p / "evaluation.json", against=None), "nothing stands beside"),
    "no interval": (lambda p: change(p / "evaluation.json", low=None), "have no interval"),
    "a point as interval": (
        lambda p: change(p / "evaluation.json", low=9.0, high=9.0),
        "have no interval",
    ),
    "other text": (lambda p: change(p / "evaluation.json", bytes=10), "scored on 10 bytes"),
    "one document": (lambda p: change(p / "evaluation.json", documents=1), "1 documents give no"),
    "no file": (lambda p: (p / "compressed" / "model.gguf").unlink(), "no compressed/model.gguf"),
    "a damaged file": (
        lambda p: (p / "compressed" / "model.gguf").write_bytes(b"GGUF"),
        "cannot be opened",
    ),
    "no score of it": (lambda p: (p / "compressed" / "score.json").unlink(), "score.json is"),
    "no card": (lambda p: (p / "README.md").unlink(), "no README.md"),
    "no limits": (
        lambda p: (p / "README.md").write_text((p / "README.md").read_text().replace("Limits", "")),
        "does not say the limits",
    ),
    "another figure": (
        lambda p: change(p / "evaluation.json", bits_per_byte=9.0, low=8.0, high=10.0),
        "does not give the 9.0000 bits",
    ),
}


def test_a_good_project_lacks_nothing(good):
    assert lacking(good) == []


@pytest.mark.parametrize("name", BROKEN)
def test_each_point_that_fails_is_named_alone(good, name, tmp_path):
    breaking, sentence = BROKEN[name]
    project = tmp_path / "mine"
    shutil.copytree(good, project)
    breaking(project)
    found = lacking(project)
    assert any(sentence in it for it in found), found
    assert len(found) <= 2, found
    assert all(it.endswith(".") for it in found)


def test_a_folder_that_is_none_is_one_point(tmp_path):
    assert lacking(tmp_path / "none") == [
        f"{tmp_path / 'none'} is no folder: give the one that holds text/ and evaluation.json."
    ]
    assert len(lacking(tmp_path)) == 5
    assert "cannot be opened" in cannot_write(tmp_path / "none.gguf")


@pytest.mark.parametrize(
    "scores",
    [[], [1], {"test": 1}, {"test": {"against": 1}}, {"test": {"against": {"model": "x"}}}],
)
def test_card_says_in_a_sentence_that_an_evaluation_is_damaged(good, scores, tmp_path, capsys):
    project = tmp_path / "mine"
    shutil.copytree(good, project)
    (project / "evaluation.json").write_text(json.dumps({"scores": scores}))
    before = (project / "README.md").read_bytes()
    assert here("card", project) == 2
    assert "holds no scores against another model" in capsys.readouterr().err
    assert (project / "README.md").read_bytes() == before


def test_card_asks_for_an_evaluation_and_for_a_licence(good, tmp_path, capfd):
    project = tmp_path / "mine"
    shutil.copytree(good, project)
    assert here("card", project) == 0
    assert "names no licence" in capfd.readouterr().out
    assert here("card", project, "--licence", "public domain; Apache-2.0") == 0
    assert capfd.readouterr().out.endswith("nothing is lacking\n")
    (project / "evaluation.json").unlink()
    assert here("card", project) == 2
    assert "--against" in capfd.readouterr().err
    assert here("card", tmp_path / "none") == 2
    assert "holds no tuned/model" in capfd.readouterr().err


@pytest.mark.slow
def test_the_commands_of_the_chapter_make_a_project_that_lacks_nothing(tmp_path):
    """Each as a process of its own, with a model of some thousand weights in smollm2's place."""
    folder, project, base = tmp_path / "my-folder", tmp_path / "runs", tmp_path / "base"
    example_folder(folder, chapters=30)
    text = project / "text"

    def run(*arguments):
        done = alone(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("clean", folder, "--out", text, "--test", 0.3)
    train, test, _ = read_tidied(text)
    tokenizer = train_bpe(list(train.values()), 500)
    torch.manual_seed(0)
    shape = TransformerConfig.llama(
        vocab_size=tokenizer.vocab_size, context_length=256, d_model=32, num_layers=1, num_heads=1
    )
    save_pretrained(Transformer(shape), base, tokenizer)
    how = ("--context-length", 64, "--batch-tokens", 512, "--steps", 20, "--learning-rate", 1e-2)
    run("pretrain", "--from", base, "--data", text / "train", "--out", project / "pretrained", *how)
    run("instruct", text, "--out", project / "instructions", "--most", 40, "--most-test", 10)
    rows = [project / "instructions" / f"{part}.jsonl" for part in ("train", "test")]
    tuned = project / "tuned"
    run(
        *("finetune", "--from", project / "pretrained", "--data", rows[0], "--test", rows[1]),
        *("--out", tuned, "--epochs", 1, "--batch-size", 8, "--learning-rate", 1e-3),
    )
    scores = project / "evaluation.json"
    said = run("evaluate", tuned, "--data", text / "test", "--against", base, "--out", scores)
    assert "gain" in said
    (score,) = json.loads(scores.read_text())["scores"].values()
    assert score["documents"] == len(test)
    assert score["against"]["gain_low"] > 0  # twenty updates are better than none
    said = run("export", tuned, "--data", text / "test", "--out", project / "compressed")
    assert "bits per byte" in said
    said = run("card", project, "--licence", "public domain")
    assert said.endswith("nothing is lacking\n")
    assert lacking(project) == []
