"""Files as they come from elsewhere: damaged, odd, edited. Each through a command, each in a word.

One table of cases: data that cannot be read, model folders that do not fit, run folders after an
accident. Every case ends in one sentence and exit code 2, or in a sound run; never in a traceback.
"""

import json
import os
import re
import shutil
import signal
import time

import pytest
import torch
from commands import SMALL, here, labelled, losses, start, write_rows, write_text
from safetensors.torch import load_file, save_file

from labkit.models import Transformer, TransformerConfig
from labkit.models.huggingface import save_pretrained
from labkit.text import train_bpe


def said(capfd) -> str:
    """The one sentence on stderr."""
    shown = capfd.readouterr().err.strip()
    assert shown.startswith("labkit: "), shown
    assert "Traceback" not in shown, shown
    lines = [line for line in shown.splitlines() if line.startswith("labkit: ")]
    assert len(lines) == 1, shown
    return lines[0]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A text, labelled rows, a small encoder, a finished run."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("damage")
    write_text(folder / "a.txt")
    write_rows(folder / "labelled.csv", labelled())
    tokenizer = train_bpe([row["text"] for row in labelled()], 300)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=tokenizer.vocab_size, intermediate_size=32, **shape)
    BertModel(config).save_pretrained(folder / "encoder")
    tokenizer.save(folder / "encoder")
    tiny = TransformerConfig.llama(
        vocab_size=tokenizer.vocab_size, context_length=64, d_model=16, num_layers=2, num_heads=2
    )
    save_pretrained(Transformer(tiny), folder / "decoder", tokenizer)
    assert here("pretrain", "--data", folder / "a.txt", "--out", folder / "run", *SMALL) == 0
    return folder


# --- data --------------------------------------------------------------------------------------

ROW = {"text": "a text with some words", "label": "x", "prompt": "a prompt", "answer": "an answer"}
HALF = "\\ud83d"


def half_in(column):
    rows = [json.dumps({**ROW, "text": f"{k} words", "label": "xy"[k % 2]}) for k in range(40)]
    rows[7] = json.dumps({**ROW, column: "@"}).replace("@", HALF)
    return ("rows.jsonl", "\n".join(rows).encode())


DATA = {
    "half a character in a text": (*half_in("text"), "line 8 holds half a character"),
    "half a character in a label": (*half_in("label"), "line 8 holds half a character"),
    "nested too deep": ("rows.jsonl", b'{"text": ' + b"[" * 100_000, "line 1 is not JSON"),
    "divided by ;": ("rows.csv", b"text;label\na;x\nb;y\n", "seem to be divided by ';'"),
    "a capital": ("rows.csv", b"Text,Label\na,x\nb,y\n", "meant? Name it"),
    "compressed": ("rows.csv.gz", b"\x1f\x8b\x08\0\0\0", "is compressed; unpack it first"),
    "no known column": ("rows.csv", b"review,mood\na,x\nb,y\n", "review, mood"),
}


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
@pytest.mark.parametrize("case", DATA)
def test_data_that_cannot_be_used(case, command, base, tmp_path, capfd):
    name, content, words = DATA[case]
    (tmp_path / name).write_bytes(content)
    out = tmp_path / "out"
    more = SMALL if command == "pretrain" else ["--model", base / "encoder"]
    assert here(command, "--data", tmp_path / name, "--out", out, *more) == 2
    assert words in said(capfd)
    assert not out.exists()


def test_a_table_without_labels_is_not_taken_for_a_text(base, tmp_path, capfd):
    """The likeliest first mistake: not the column's name, and a language model is trained."""
    write_rows(tmp_path / "rows.csv", [{"text": f"a {k}", "mood": "xy"[k % 2]} for k in range(60)])
    out = tmp_path / "out"
    assert here("finetune", "--data", tmp_path / "rows.csv", "--out", out) == 2
    assert "name the class with --label-column (such as mood)" in said(capfd)
    assert not out.exists()
    given = ["--data", tmp_path / "rows.csv", "--label-column", "mood", "--epochs", 1]
    assert here("finetune", *given, "--model", base / "encoder", "--out", out) == 0


@pytest.mark.parametrize("column", ["prompt", "answer"])
def test_half_a_character_in_a_prompt_or_an_answer(column, base, tmp_path, capfd):
    name, content = half_in(column)
    rows = [json.loads(line) for line in content.decode().split("\n")]
    for row in rows:
        del row["label"]
    (tmp_path / name).write_text("\n".join(map(json.dumps, rows)))
    command = ["--data", tmp_path / name, "--out", tmp_path / "out", "--model", base / "decoder"]
    assert here("finetune", *command) == 2
    assert "line 8 holds half a character" in said(capfd)


def test_a_device_is_no_data(tmp_path, capfd):
    assert here("pretrain", "--data", "/dev/zero", "--out", tmp_path / "out", *SMALL) == 2
    assert "is no regular file" in said(capfd)


def test_odd_files_that_can_be_used(base, tmp_path, capfd):
    text = (base / "a.txt").read_text()
    (tmp_path / "line.txt").write_text(text.replace("\n", " "))
    out = tmp_path / "line"
    assert here("pretrain", "--data", tmp_path / "line.txt", "--out", out, *SMALL) == 0
    assert json.loads((out / "data" / "data.json").read_text())["train"]["documents"] > 3

    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for k in range(40):
        (mixed / f"{k}.txt").write_text(text[k * 100 : k * 100 + 900])
    (mixed / "bad.txt").write_bytes(bytes(range(256)) * 40)
    capfd.readouterr()
    assert here("pretrain", "--data", mixed, "--out", tmp_path / "many", *SMALL) == 0
    assert "left out: " in capfd.readouterr().err

    shutil.copy(base / "labelled.csv", tmp_path / "UPPER.CSV")
    settings = ["--model", base / "encoder", "--epochs", 1, "--out", tmp_path / "upper"]
    assert here("finetune", "--data", tmp_path / "UPPER.CSV", *settings) == 0


def test_what_stands_in_a_held_out_file_is_not_trained_on(base, tmp_path, capfd):
    rows, out = labelled(), tmp_path / "out"
    write_rows(tmp_path / "test.csv", rows[:40])
    more = ["--model", base / "encoder", "--epochs", 1, "--test", tmp_path / "test.csv"]
    assert here("finetune", "--data", base / "labelled.csv", "--out", out, *more) == 0
    err = capfd.readouterr().err
    left = re.search(r"(\d+) train examples stand in the test or validation examples too", err)
    also = re.search(r"(\d+) validation examples stand in the test examples too", err)
    assert int(left[1]) + int(also[1]) == 40
    more[-1] = base / "labelled.csv"
    assert here("finetune", "--data", base / "labelled.csv", "--out", tmp_path / "o", *more) == 2
    assert "examples of" in said(capfd)


def test_a_classifier_is_scored_at_the_length_that_it_was_tuned_at(base, tmp_path, capfd):
    from transformers import AutoTokenizer

    out = tmp_path / "out"
    more = ["--model", base / "encoder", "--epochs", 1, "--max-length", 12, "--precision", "fp32"]
    assert here("finetune", "--data", base / "labelled.csv", "--out", out, *more) == 0
    assert "train texts are longer than 12 tokens: cut" in capfd.readouterr().err
    assert AutoTokenizer.from_pretrained(out / "model").model_max_length == 12
    scores = []
    for length in ([], ["--context-length", 12], ["--context-length", 200]):
        data = ["--data", base / "labelled.csv", "--json", *length]
        assert here("evaluate", out, *data) == 0
        shown = capfd.readouterr()
        scores.append(json.loads(shown.out)["scores"])
        assert ("longer than 12 tokens: cut" in shown.err) == (length[1:] != [200])
    assert scores[0] == scores[1]


# --- options -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["pretrain", "--micro-batch-size", 0], "micro_batch_size 0 is out of range"),
        (["pretrain", "--vocab-size", 10**9], "vocab_size 1000000000 is out of range"),
        (["finetune", "--epochs", "nan"], "epochs nan is out of range"),
        (["finetune", "--epochs", "inf"], "epochs inf is out of range"),
        (["finetune", "--epochs", "1e9"], "epochs 1000000000.0 is out of range"),
        (["pretrain", "--resume", "--overwrite"], "resume and overwrite exclude each other"),
    ],
)
def test_options_beyond_reason(given, words, base, tmp_path, capfd):
    data = "labelled.csv" if given[0] == "finetune" else "a.txt"
    assert here(*given, "--data", base / data, "--out", tmp_path / "out") == 2
    assert words in said(capfd)
    assert not (tmp_path / "out").exists()


def test_a_billion_samples_are_not_tried(base, capfd):
    assert here("generate", base / "run", "--samples", 10**9) == 2
    assert "samples 1000000000 is out of range: choose 1 to 1000" in said(capfd)


# --- model folders -----------------------------------------------------------------------------


def edited(folder, name, **changes):
    file = folder / name
    details = json.loads(file.read_text())
    for key, value in changes.items():
        if value is None:
            details.pop(key, None)
        else:
            details[key] = value
    file.write_text(json.dumps(details))


def with_nan(folder):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    save_file({k: v * torch.nan for k, v in tensors.items()}, file, metadata={"format": "pt"})


def lacking(folder):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors.pop(next(name for name in tensors if "down_proj" in name))
    save_file(tensors, file, metadata={"format": "pt"})


def cut(name, share=0.5):
    def harm(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(share * len(content))])

    return harm


MODELS = {
    "weights cut": cut("model.safetensors"),
    "weights empty": cut("model.safetensors", 0),
    "weights gone": lambda folder: (folder / "model.safetensors").unlink(),
    "a tensor gone": lacking,
    "weights not finite": with_nan,
    "config cut": cut("config.json"),
    "config a list": lambda folder: (folder / "config.json").write_text("[]"),
    "config a word": lambda folder: (folder / "config.json").write_text('"llama"'),
    "no model_type": lambda f: edited(f, "config.json", model_type=None, labkit=None),
    "unknown model_type": lambda f: edited(f, "config.json", model_type="new", labkit=None),
    "architectures null": lambda f: edited(f, "config.json", architectures=None, labkit=None),
    "architectures a number": lambda f: edited(f, "config.json", architectures=7),
    "architectures of numbers": lambda f: edited(f, "config.json", architectures=[7]),
    "a size of text": lambda f: edited(f, "config.json", hidden_size="wide", labkit=None),
    "a size beyond memory": lambda f: edited(f, "config.json", hidden_size=2**40, labkit=None),
    "a block of text": lambda f: edited(f, "config.json", labkit="block"),
    "a block with a new key": lambda f: edited(f, "config.json", labkit={"new": 1}),
    "tokenizer cut": cut("tokenizer.json"),
    "tokenizer gone": lambda folder: (folder / "tokenizer.json").unlink(),
    "tokenizer_config cut": cut("tokenizer_config.json"),
    "tokenizer_config a list": lambda f: (f / "tokenizer_config.json").write_text("[]"),
    "tokenizer_config a word": lambda f: (f / "tokenizer_config.json").write_text('"fast"'),
    "a token that is a number": lambda f: edited(f, "tokenizer_config.json", eos_token=5),
    "a token that is unknown": lambda f: edited(f, "tokenizer_config.json", eos_token="<none>"),
}  # fmt: skip


@pytest.mark.parametrize("command", ["generate", "evaluate", "pretrain"])
@pytest.mark.parametrize("case", MODELS)
def test_a_model_folder_that_does_not_fit(case, command, base, tmp_path, capfd):
    folder, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(base / "decoder", folder)
    MODELS[case](folder)
    given = {
        "generate": ["generate", folder, "--max-new-tokens", 4],
        "evaluate": ["evaluate", folder, "--data", base / "a.txt"],
        "pretrain": ["pretrain", "--init", folder, "--data", base / "a.txt", "--out", out,
                     "--steps", 1, "--context-length", 32, "--batch-tokens", 64],
    }[command]  # fmt: skip
    assert here(*given) == 2
    said(capfd)


# --- run folders -------------------------------------------------------------------------------


def append_zeros(run):
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 6, "lo' + bytes(3000))


def flip(name):
    def harm(run):
        content = bytearray((run / name).read_bytes())
        content[len(content) // 2] ^= 1
        (run / name).write_bytes(content)

    return harm


def options_with(**changes):
    def harm(run):
        saved = json.loads((run / "config.json").read_text())
        saved["options"] |= changes
        (run / "config.json").write_text(json.dumps(saved))

    return harm


#: What happened to a run folder, and what `--resume` says; None: it goes on to the same end.
RUNS = {
    "zeros after the records": (append_zeros, None),
    "records cut": (cut("metrics.jsonl", 0.97), None),
    "manifest empty": (
        lambda run: (run / "checkpoints" / "step-00000006" / "manifest.json").write_text("{}"),
        None,
    ),
    "tokens altered": (flip("data/train.tokens"), "does not match its SHA-256"),
    "tokens cut": (cut("data/train.tokens"), "it is torn"),
    "odd tokens": (cut("data/train.tokens", 0.9999), "it is torn"),
    "facts cut": (cut("data/train.tokens.json"), "is damaged"),
    "data.json cut": (cut("data/data.json"), "data.json is damaged"),
    "data.json empty": (lambda run: (run / "data/data.json").write_text("{}"), "is damaged"),
    "steps a word": (options_with(steps="many"), "steps is 'many'"),
    "data a number": (options_with(data=5), "data is 5"),
    "size unknown": (options_with(size="vast"), "size is 'vast'"),
    "no such option": (options_with(stepz=5), "'stepz' is no option"),
}


@pytest.mark.parametrize("case", RUNS)
def test_a_run_after_an_accident(case, base, tmp_path, capfd):
    harm, words = RUNS[case]
    run = tmp_path / "run"
    shutil.copytree(base / "run", run)
    newest = run / "checkpoints" / "step-00000006"
    if words is None and case != "manifest empty":
        shutil.rmtree(newest)
    harm(run)
    shutil.rmtree(run / "model")
    capfd.readouterr()
    assert here("pretrain", "--resume", "--out", run) == (0 if words is None else 2)
    if words is None:
        assert losses(run) == losses(base / "run")
        ours, theirs = (load_file(r / "model" / "model.safetensors") for r in (run, base / "run"))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    else:
        assert words in said(capfd)


def test_a_run_is_begun_anew_and_nothing_else_is_removed(base, tmp_path, capfd):
    out = tmp_path / "run"
    command = ["pretrain", "--data", base / "a.txt", "--out", out, *SMALL]
    assert here(*command, "--learning-rate", 1e30, "--grad-clip", 0) == 2
    capfd.readouterr()
    assert here(*command) == 2
    assert "--overwrite" in said(capfd)
    (out / "mine.txt").write_text("keep me")
    assert here(*command, "--overwrite") == 0
    assert (out / "mine.txt").read_text() == "keep me"
    assert losses(out) == losses(base / "run")
    assert here("pretrain", "--resume", "--out", out, "--steps", 6) == 0, "not begun anew again"
    other = tmp_path / "other"
    other.mkdir()
    (other / "data").mkdir()
    capfd.readouterr()
    assert here("pretrain", "--data", base / "a.txt", "--out", other, "--overwrite") == 2
    assert "which no run wrote" in said(capfd)
    assert (other / "data").is_dir()


def test_a_resumed_run_takes_its_switches_both_ways(base, tmp_path):
    run, data = tmp_path / "run", ["--data", base / "a.txt"]
    switches = ["--step-in-backward", "--grad-clip", 0]
    assert here("pretrain", *data, "--out", run, *SMALL, *switches) == 0
    for switch in ("--step-in-backward", "--no-step-in-backward"):
        shutil.rmtree(run / "checkpoints" / "step-00000006", ignore_errors=True)
        assert here("pretrain", "--resume", "--out", run, switch) == 0


@pytest.mark.multi
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_request_to_end_while_data_are_prepared_leaves_nothing(name, base, tmp_path):
    (tmp_path / "big.txt").write_text((base / "a.txt").read_text() * 3000)
    out = tmp_path / "runs" / "run"
    process = start("pretrain", "--data", tmp_path / "big.txt", "--out", out, *SMALL)
    for _ in range(2400):
        if list(tmp_path.glob("runs/.run.tmp-*")):
            break
        time.sleep(0.05)
    else:
        pytest.fail("it never began to prepare data")
    process.send_signal(getattr(signal, name))
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "labkit: stopped by hand" in err
    assert not (tmp_path / "runs").exists() or os.listdir(tmp_path / "runs") == []


@pytest.mark.multi
def test_a_closed_terminal_ends_training_with_a_checkpoint(base, tmp_path):
    out = tmp_path / "run"
    settings = [*SMALL, "--steps", 4000, "--save-every", 0, "--eval-every", 0]
    process = start("pretrain", "--data", base / "a.txt", "--out", out, *settings)
    for _ in range(2400):
        if (out / "metrics.jsonl").exists() and (out / "metrics.jsonl").stat().st_size > 1000:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=60)
    assert process.returncode == 130
    steps = [int(p.name[5:]) for p in (out / "checkpoints").iterdir()]
    assert max(steps) == len((out / "metrics.jsonl").read_text().splitlines())


@pytest.mark.multi
def test_under_nohup_a_closed_terminal_ends_nothing(base, tmp_path):
    out = tmp_path / "run"
    settings = [*SMALL, "--steps", 60, "--save-every", 0, "--eval-every", 0]
    told = ("pretrain", "--data", base / "a.txt", "--out", out, *settings)
    process = start(*told, hangup=signal.SIG_IGN)
    for _ in range(2400):
        if (out / "metrics.jsonl").exists() and (out / "metrics.jsonl").stat().st_size:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGHUP)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 60
