"""What must not break: kills, torn checkpoints, full disks, broken numbers, bad input.

Bad input: one sentence on stderr, exit code 2, no traceback, nothing half-written. Whatever a run
survives, it ends with the very weights of one that nothing happened to.
"""

import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from commands import (
    SMALL,
    alone,
    environment,
    here,
    labelled,
    losses,
    start,
    write_rows,
    write_text,
)
from safetensors.torch import load_file
from training import config, ragged_batches, tiny_model

from labkit import atomic
from labkit.errors import LabError
from labkit.objectives import causal_lm
from labkit.text import train_bpe
from labkit.training import checkpoint, train


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    write_text(folder / "a.txt")
    write_rows(folder / "labelled.csv", labelled())
    (folder / "empty.txt").write_text("")
    (folder / "binary.txt").write_bytes(bytes(range(256)) * 40)
    (folder / "short.txt").write_text("one two\n\nthree four\n\nfive six\n\nseven eight")
    write_rows(folder / "one_class.csv", [{"text": f"a {i}", "label": "x"} for i in range(30)])
    write_rows(folder / "no_label.csv", [{"text": f"a {i}", "mood": "x"} for i in range(30)])
    write_rows(folder / "strange.csv", [{"text": f"a {i}", "label": "17"} for i in range(30)])
    long = [{"prompt": "where is the key " * 40 + str(i), "answer": "in"} for i in range(60)]
    write_rows(folder / "long_prompts.jsonl", long)
    (folder / "broken.jsonl").write_text('{"text": "a"}\n{"text": \n')
    (folder / "void").mkdir()
    return folder


@pytest.fixture(scope="module")
def finished(files):
    """The run that nothing happened to."""
    out = files / "finished"
    assert here("pretrain", "--data", files / "a.txt", "--out", out, *SMALL) == 0
    return out


@pytest.fixture(scope="module")
def classifier(files):
    from transformers import BertConfig, BertModel

    encoder, out = files / "encoder", files / "classifier"
    tokenizer = train_bpe([row["text"] for row in labelled()], 300)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=tokenizer.vocab_size, intermediate_size=32, **shape)
    BertModel(config).save_pretrained(encoder)
    tokenizer.save(encoder)
    data = ["--data", files / "labelled.csv", "--model", encoder, "--out", out]
    assert here("finetune", *data, "--epochs", 1, "--precision", "fp32") == 0
    return out


def model(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def assert_same_end(run: Path, reference: Path) -> None:
    assert losses(run) == losses(reference)
    ours, theirs = model(run), model(reference)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    ours, theirs = (checkpoint.newest(r / "checkpoints").tensors for r in (run, reference))
    for group in ("model", "optimizer"):
        assert all(torch.equal(ours[group][name], theirs[group][name]) for name in theirs[group])


def snapshot(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != ".lock"
    }


# --- bad input ---------------------------------------------------------------------------------

PRETRAIN = {
    "missing file": (["--data", "{files}/absent.txt"], "absent.txt' is neither a corpus nor a"),
    "unknown corpus": (["--data", "web_bibel"], "'web_bibel' is neither .* web_bible"),
    "empty file": (["--data", "{files}/empty.txt"], "empty.txt is empty"),
    "empty folder": (["--data", "{files}/void"], "void holds no text"),
    "binary file": (["--data", "{files}/binary.txt"], "binary.txt is binary"),
    "broken line": (["--data", "{files}/broken.jsonl"], "broken.jsonl line 2 is not JSON"),
    "missing column": (
        ["--data", "{files}/labelled.csv", "--text-column", "body"],
        "has no column 'body'; it has text, label",
    ),
    "short text": (
        ["--data", "{files}/short.txt"],
        r"the text has \d+ tokens, a context of 32 needs at least 33",
    ),
    "one good, one bad": (["--data", "{files}/a.txt", "{files}/empty.txt"], "empty.txt is empty"),
    "small vocabulary": (
        ["--vocab-size", 100],
        "vocab_size 100 is smaller than the alphabet: .* at least 260",
    ),
    "ragged batch": (
        ["--batch-tokens", 100],
        "batch_tokens 100 is no multiple of context_length 32: choose 96",
    ),
    "no steps": (["--steps", 0], "steps 0 is out of range: choose at least 1"),
    "negative rate": (["--learning-rate", -1], "learning_rate -1.0 is out of range"),
    "odd heads": (["--num-heads", 5], r"d_model is 32; it must be a multiple of num_heads \(5\)"),
    "no layers": (["--num-layers", 0], "num_layers is 0; it must be at least 1"),
    "dropout": (["--dropout", 1], r"dropout is 1.0; it must be in \[0, 1\)"),
    "seed": (["--seed", -1], "seed -1 is out of range: choose 0 to 4294967295"),
    "init without a model": (["--init", "{files}/void"], "void holds no config.json"),
    "init that encodes": (
        ["--init", "{files}/encoder"],
        "holds BertModel, which does not predict the next token",
    ),
    "init with a shorter context": (
        ["--init", "{files}/finished", "--context-length", 64],
        "context_length 64 is longer than the 32 tokens",
    ),
    "no tokenizer": (["--tokenizer", "{files}/void"], "void holds no tokenizer.json"),
    "a file as folder": (["--out", "{files}/a.txt"], "a.txt is a file: choose another --out"),
}


@pytest.mark.parametrize("case", PRETRAIN)
def test_bad_input_to_pretrain(case, files, finished, classifier, tmp_path, capfd):
    given, words = PRETRAIN[case]
    out = tmp_path / "deep" / "run"
    before = snapshot(files)
    arguments = [str(a).format(files=files) for a in given]
    base = ["--data", files / "a.txt", "--out", out, *SMALL]
    assert here("pretrain", *base, *arguments) == 2
    assert_one_sentence(capfd, words)
    assert not out.parent.exists()
    assert snapshot(files) == before


FINETUNE = {
    "missing file": (["--data", "{files}/absent.csv"], "absent.csv does not exist"),
    "empty file": (["--data", "{files}/empty.txt", "--task", "text"], "empty.txt is empty"),
    "one class": (["--data", "{files}/one_class.csv"], r"one class only \('x'\)"),
    "no label column": (
        ["--data", "{files}/no_label.csv", "--task", "classification"],
        "has no column 'label' but text",
    ),
    "strange label in the test file": (
        ["--test", "{files}/strange.csv"],
        "strange.csv row 1 has label '17', which is none of the model's classes: neg, pos",
    ),
    "all targets masked": (
        ["--data", "{files}/long_prompts.jsonl", "--model", "{files}/finished"],
        r"all targets of the \d+ train examples are masked: no answer begins within max_length 32",
    ),
    "an encoder cannot answer": (
        ["--data", "{files}/long_prompts.jsonl"],
        "holds BertModel, which does not predict the next token",
    ),
    "no model": (["--model", "{files}/absent"], "absent is no folder"),
    "labels of a corpus without": (
        ["--data", "web_bible", "--task", "classification"],
        "web_bible has no column 'label'",
    ),
    "epochs": (["--epochs", 0], "epochs 0.0 is out of range"),
    "batch": (["--batch-size", 0], "batch_size 0 is out of range"),
    "length": (["--max-length", 1], "max_length 1 is out of range"),
}


@pytest.mark.parametrize("case", FINETUNE)
def test_bad_input_to_finetune(case, files, finished, classifier, tmp_path, capfd):
    given, words = FINETUNE[case]
    out = tmp_path / "run"
    arguments = [str(a).format(files=files) for a in given]
    base = ["--data", files / "labelled.csv", "--model", files / "encoder", "--out", out]
    assert here("finetune", *base, "--precision", "fp32", *arguments) == 2
    assert_one_sentence(capfd, words)
    assert not out.exists()


USE = {
    "evaluate nothing": (
        ["evaluate", "{files}/finished"],
        "data .* is out of range: choose one or",
    ),
    "evaluate an unknown label": (
        ["evaluate", "{files}/classifier", "--data", "{files}/strange.csv"],
        "strange.csv row 1 has label '17', which is none of the model's classes",
    ),
    "evaluate a foreign corpus": (
        ["evaluate", "{files}/classifier", "--data", "web_bible"],
        "web_bible has no labels",
    ),
    "evaluate too long": (
        ["evaluate", "{files}/finished", "--data", "{files}/a.txt", "--context-length", 99],
        "context_length 99 is out of range: the model reads at most 32",
    ),
    "generate from nothing": (["generate", "{files}/void"], "void holds no config.json"),
    "generate with a classifier": (
        ["generate", "{files}/classifier"],
        "does not predict the next token",
    ),
    "top p": (["generate", "{files}/finished", "--top-p", 2], "top_p 2.0 is out of range"),
    "chat in silence": (["generate", "{files}/finished", "--chat"], "chat needs a prompt"),
    "no such chapter": (
        ["run", "98", "--out", "{files}/course"],
        "There is no chapter '98'|No not",
    ),
    "port": (["lab", "--port", 0], "port 0 is out of range: choose 1 to 65535"),
}


@pytest.mark.parametrize("case", USE)
def test_bad_input_to_the_other_commands(case, files, finished, classifier, capfd, monkeypatch):
    given, words = USE[case]
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    before = snapshot(files)
    assert here(*[str(a).format(files=files) for a in given]) == 2
    assert_one_sentence(capfd, words)
    assert snapshot(files) == before


def assert_one_sentence(capfd, words: str) -> None:
    import re

    shown = capfd.readouterr().err.strip()
    assert re.search(words, shown), shown
    assert shown.startswith("labkit: ")
    assert "\n" not in shown, shown


def test_in_a_process_of_its_own_it_is_the_same(files, tmp_path):
    out = tmp_path / "run"
    done = alone("pretrain", "--data", files / "empty.txt", "--out", out)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("labkit: ")
    assert done.stderr.count("\n") == 1
    assert not out.exists()


# --- broken numbers and checkpoints ------------------------------------------------------------


def test_numbers_that_explode_stop_the_run_and_leave_the_older_checkpoint(files, tmp_path, capfd):
    out = tmp_path / "run"
    rates = ["--learning-rate", 1e30, "--save-every", 1, "--grad-clip", 0]
    assert here("pretrain", "--data", files / "a.txt", "--out", out, *SMALL, *rates) == 2
    lines = [x for x in capfd.readouterr().err.splitlines() if x.startswith("labkit: ")]
    assert len(lines) == 1
    assert "update 2 has loss" in lines[0]
    assert "both must be finite" in lines[0]
    assert "learning rate too high (now 1e+30)" in lines[0]
    assert checkpoint.newest(out / "checkpoints").step == 1
    assert not (out / "model").exists()


@pytest.mark.parametrize("damage", ["truncate", "flip"])
@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    damage, file, finished, tmp_path, capfd
):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    shutil.rmtree(run / "model")
    target = run / "checkpoints" / "step-00000006" / file
    data = bytearray(target.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    target.write_bytes(data[: len(data) // 2] if damage == "truncate" else data)
    assert here("pretrain", "--resume", "--out", run) == 0
    err = capfd.readouterr().err
    assert "labkit: skipped: checkpoint" in err
    assert "step-00000006" in err
    assert file in err
    assert "update 5/6" in err
    assert_same_end(run, finished)


def test_a_checkpoint_of_another_shape_is_refused_and_nothing_changed(
    files, finished, tmp_path, capfd
):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    capfd.readouterr()
    before = snapshot(run)
    assert here("pretrain", "--resume", "--out", run, "--d-model", 16) == 2
    assert_one_sentence(capfd, "d_model 16 differs from 32, with which")
    assert snapshot(run) == before
    other = tmp_path / "other"
    narrow = ["--data", files / "a.txt", "--out", other, *SMALL, "--d-model", 16]
    assert here("pretrain", *narrow) == 0
    shutil.rmtree(run / "checkpoints")
    shutil.copytree(other / "checkpoints", run / "checkpoints")
    capfd.readouterr()
    before = snapshot(run)
    assert here("pretrain", "--resume", "--out", run) == 2
    assert_one_sentence(capfd, r"has shape .*16.* in the checkpoint and .*32.* in the model")
    after = snapshot(run)
    of_the_machine = json.loads(after.pop("config.json"))["train"]  # out, resume
    assert of_the_machine["out"] == str(run)
    assert after == {name: content for name, content in before.items() if name != "config.json"}


def test_a_fine_tuning_run_goes_on_to_the_same_end_and_only_with_the_same_examples(
    files, classifier, tmp_path, capfd
):
    def finetune(out, *arguments):
        data = ["--data", files / "labelled.csv", "--model", files / "encoder", "--out", out]
        return here("finetune", *data, "--epochs", 2, "--save-every", 3, *arguments)

    whole, torn = tmp_path / "whole", tmp_path / "torn"
    assert finetune(whole) == 0
    assert finetune(torn) == 0
    newest = max((torn / "checkpoints").iterdir())
    (newest / "model.safetensors").write_bytes(b"torn")
    shutil.rmtree(torn / "model")
    assert here("finetune", "--resume", "--out", torn) == 0
    assert_same_end(torn, whole)
    moved = tmp_path / "labelled.csv"
    shutil.copy(files / "labelled.csv", moved)
    try:
        write_rows(files / "labelled.csv", labelled(150))
        capfd.readouterr()
        assert here("finetune", "--resume", "--out", torn) == 2
        assert_one_sentence(capfd, "the examples differ from those with which .*torn began")
    finally:
        shutil.copy(moved, files / "labelled.csv")


# --- kills -------------------------------------------------------------------------------------

#: Big enough that a checkpoint (some 25 MB) takes a while to write.
HEAVY = [*SMALL, "--d-model", "256", "--num-heads", "4", "--save-every", "1", "--steps", "8"]


def kill_when(process: subprocess.Popen, seen) -> None:
    """SIGKILL as soon as `seen()`; the process must still be at work then."""
    deadline = time.monotonic() + 120
    while not seen():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the moment to kill did not come"
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_killed_at_four_moments_it_ends_as_if_nothing_had_happened(files, tmp_path):
    reference, run = tmp_path / "reference", tmp_path / "run"
    data = ["--data", files / "a.txt", *HEAVY]
    assert here("pretrain", *data, "--out", reference) == 0
    metrics, folder = run / "metrics.jsonl", run / "checkpoints"

    def updates() -> int:
        return metrics.read_bytes().count(b"\n") if metrics.exists() else 0

    resume = ["pretrain", *data, "--out", run, "--resume"]
    # while data are prepared
    kill_when(start(*resume), lambda: any(tmp_path.glob(".run.tmp-*")))
    assert not run.exists()
    # while the second checkpoint is written
    kill_when(start(*resume), lambda: any(folder.glob(".step-00000002.tmp-*")))
    assert any(folder.glob(".step-00000002.tmp-*"))
    assert checkpoint.newest(folder).step == 1
    # after some updates
    kill_when(start("pretrain", "--out", run, "--resume"), lambda: updates() >= 4)
    assert checkpoint.newest(folder).step >= 3
    # while the last checkpoint is written
    kill_when(start(*resume), lambda: any(folder.glob(".step-00000008.tmp-*")))
    assert checkpoint.newest(folder).step == 7
    assert here("pretrain", "--out", run, "--resume") == 0
    assert_same_end(run, reference)
    assert not any(p.name.startswith(".step-") for p in folder.iterdir())


# --- full disks --------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A disk of its own with a function that resizes it."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options: str) -> bool:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    if shutil.which("mount") is None or not mount("size=1400k"):
        pytest.skip("this user may not mount a small tmpfs to fill")
    yield folder, lambda size: mount(f"remount,size={size}")
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up_keeps_the_older_checkpoints_and_the_run_goes_on(
    small_disk, files, finished, capfd
):
    disk, resize = small_disk
    run = disk / "run"
    only_last = ["--eval-every", 0]
    assert here("pretrain", "--data", files / "a.txt", "--out", run, *SMALL, *only_last) == 2
    lines = [x for x in capfd.readouterr().err.splitlines() if x.startswith("labkit: ")]
    assert len(lines) == 1
    assert "the disk" in lines[0]
    assert "full" in lines[0]
    assert "older checkpoints are intact" in lines[0]
    kept = [checkpoint.load(p).step for p in sorted((run / "checkpoints").glob("step-*"))]
    assert kept == list(range(2, kept[-1] + 1, 2))
    assert kept[-1] < 6
    assert not any((run / "checkpoints").glob(".step-*"))
    assert resize("16m")
    assert here("pretrain", "--resume", "--out", run) == 0
    assert losses(run) == losses(finished)
    assert all(torch.equal(t, model(finished)[name]) for name, t in model(run).items())


def test_a_disk_too_small_for_the_data_is_left_as_it_was(small_disk, files, capfd):
    disk, resize = small_disk
    assert resize("24k")
    assert here("pretrain", "--data", files / "a.txt", "--out", disk / "deep" / "run", *SMALL) == 2
    assert_one_sentence(capfd, "the disk .*run' is full: free some space")
    assert list(disk.iterdir()) == []


def test_a_folder_without_rights_is_named(files, tmp_path, capfd):
    target = Path("/proc/labkit/run")
    assert here("pretrain", "--data", files / "a.txt", "--out", target, *SMALL) == 2
    assert_one_sentence(capfd, "/proc/labkit.* cannot be used")


MEMORY = 8 * 2**30
"""Bytes of addresses for a process that runs out of them; importing torch takes some three."""


def test_running_out_of_memory_is_one_sentence(files, tmp_path):
    """Refused by the operating system itself: a matrix of 51 GB where 8 are allowed."""
    run = tmp_path / "run"
    told = ["--data", files / "a.txt", "--out", run, *SMALL, "--d-ff", 10**9]
    command = [sys.executable, "-m", "labkit", "pretrain", *map(str, told)]
    limit = partial(resource.setrlimit, resource.RLIMIT_AS, (MEMORY, MEMORY))
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, preexec_fn=limit, check=False
    )
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("labkit: ")]
    assert lines == [
        "labkit: there is not enough memory: choose a smaller model, or fewer examples at a time "
        "(--micro-batch-size, which changes no result)"
    ]
    assert "Traceback" not in done.stderr


def test_a_full_gpu_is_one_sentence(files, tmp_path, monkeypatch, capfd):
    from labkit.commands import pretraining

    def full(options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(pretraining, "pretrain", full, raising=True)
    assert here("pretrain", "--data", files / "a.txt", "--out", tmp_path / "run", *SMALL) == 2
    assert_one_sentence(capfd, "there is not enough memory on the GPU: choose a smaller model")


def test_stopping_by_hand_says_how_to_go_on(files, tmp_path):
    run = tmp_path / "run"
    process = start("pretrain", "--data", files / "a.txt", "--out", run, *SMALL, "--steps", 5000)
    deadline = time.monotonic() + 120
    while not (run / "checkpoints" / "step-00000002").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130
    assert f"labkit pretrain --resume --out {run}" in out
    assert "Traceback" not in err
    assert json.loads((run / "config.json").read_text())["options"]["steps"] == 5000


# Whose folder is it?


def everything(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (
            ["pretrain", "--data", "proj/story.txt", "--out", "proj"],
            "no run wrote",
        ),
        (
            ["pretrain", "--data", "proj/data/a.txt", "--out", "proj"],
            "no run wrote",
        ),
        (["pretrain", "--data", "proj/data", "--out", "proj/data"], "lies inside proj/data"),
        (["pretrain", "--data", "proj", "--out", "proj/run"], "proj/run lies inside proj"),
        (
            ["pretrain", "--data", "proj/story.txt", "--init", "proj/model", "--out", "proj"],
            "no run",
        ),
        (
            ["finetune", "--data", "proj/b.csv", "--model", "proj/model", "--out", "proj"],
            "no run wrote",
        ),
        (["finetune", "--data", "proj/b.csv", "--out", "proj", "--resume"], "no run wrote"),
        (["pretrain", "--data", "web_bible", "--out", "proj", "--resume"], "no run wrote"),
    ],
    ids=lambda it: "-".join(it[1:]).replace("/", "_") if isinstance(it, list) else "",
)
def test_a_folder_that_no_run_wrote_is_left_alone(command, words, tmp_path, monkeypatch, capsys):
    """`--out` once deleted OUT/data and OUT/model wherever they came from."""
    monkeypatch.chdir(tmp_path)
    for name in ("data/a.txt", "story.txt"):
        path = tmp_path / "proj" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path)
    write_rows(tmp_path / "proj" / "b.csv", labelled())
    (tmp_path / "proj" / "model").mkdir()
    (tmp_path / "proj" / "model" / "config.json").write_text('{"model_type": "bert"}')
    before = everything(tmp_path)
    small = SMALL if command[0] == "pretrain" else []
    assert here(*command, *small) == 2
    assert words in capsys.readouterr().err
    assert everything(tmp_path) == before


def test_python_code_may_not_write_over_a_strangers_model_either(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.txt").write_text("precious")
    with pytest.raises(LabError, match="holds model, which no run wrote"):
        train(tiny_model(), causal_lm, ragged_batches(), config(out=tmp_path))
    assert everything(tmp_path) == {Path("model/mine.txt"): b"precious"}


def test_the_data_of_a_run_are_not_replaced_by_others(files, tmp_path, capsys):
    """`--resume` with config.json gone once trained the default corpus over the run's data."""
    run = tmp_path / "run"
    assert here("pretrain", "--data", files / "a.txt", "--out", run, *SMALL) == 0
    (run / "config.json").unlink()
    before = everything(run)
    capsys.readouterr()
    assert here("pretrain", "--resume", "--out", run, *SMALL) == 2
    assert "which no run wrote" in capsys.readouterr().err
    assert everything(run) == before


def test_a_second_writer_leaves_the_files_of_the_first_alone(tmp_path):
    theirs = tmp_path / f".run.tmp-{os.getppid()}"  # alive
    dead = tmp_path / ".run.tmp-999999999"
    for folder in (theirs, dead):
        folder.mkdir()
    with atomic.claim(tmp_path / "run") as folder:
        (folder / "a").write_text("b")
    assert theirs.exists()
    assert not dead.exists()
    with pytest.raises(LabError, match="is not empty"), atomic.claim(tmp_path / "run"):
        pass
    assert (tmp_path / "run" / "a").read_text() == "b"
