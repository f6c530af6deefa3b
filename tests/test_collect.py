"""What a service has kept, as files that other commands read: `Kept` and `labkit collect`."""

import json
import sqlite3

import pytest
from commands import here, sentences
from training import tiny_model

from labkit.errors import LabError
from labkit.models.huggingface import save_pretrained
from labkit.serving import Kept
from labkit.text import train_bpe
from labkit.text.conversations import read_conversations, read_preferences


def asked(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


@pytest.fixture
def kept(tmp_path):
    kept = Kept(tmp_path / "kept.sqlite")
    yield kept
    kept.close()


def keep(kept: Kept, id: str, what, answer: str, *ratings: int, finish: str = "stop") -> None:
    kept.request(id, "completion" if isinstance(what, str) else "chat", what, answer, finish, {})
    assert all(kept.feedback(id, rating) for rating in ratings)


def test_what_people_liked_and_disliked_is_told_apart(kept):
    keep(kept, "a", asked("Where?"), "In the box.", 1, 1, -1)
    keep(kept, "b", asked("Where?"), "no", -1)
    keep(kept, "c", asked("Where?"), "there", 1, -1)  # people disagree
    keep(kept, "d", asked("When?"), "now")  # nobody said anything
    keep(kept, "e", "Once upon", " a time", 1)  # no chat
    liked = {"messages": [*asked("Where?"), {"role": "assistant", "content": "In the box."}]}
    assert kept.conversations() == [liked]
    assert [it["messages"][-1]["content"] for it in kept.conversations(-1)] == ["no"]
    assert kept.preferences() == [
        {"prompt": asked("Where?"), "chosen": "In the box.", "rejected": "no"}
    ]
    assert kept.texts() == [{"text": "Once upon"}]
    assert not kept.feedback("z", 1), "no such answer"


def test_what_cannot_be_learned_from_is_left_out(kept):
    """Cut at its limit, empty, or turns out of order: `labkit finetune` would refuse the file."""
    keep(kept, "a", asked("Where?"), "In the", 1, finish="length")
    keep(kept, "b", asked("Where?"), "", 1)
    keep(kept, "c", asked("Where?") * 2, "In the box.", 1)
    keep(kept, "d", asked("Where?"), "no", -1)
    keep(kept, "e", asked("Where?"), "no", 1)  # the same words, liked here and disliked there
    keep(kept, "f", " ", "x", 1)
    assert [it["messages"][-1]["content"] for it in kept.conversations()] == ["no"]
    assert kept.preferences() == kept.texts() == []


def test_the_files_are_read_by_the_commands_that_learn(kept, tmp_path, capsys):
    tokenizer = train_bpe(sentences(200), 320)
    model = tiny_model(vocab_size=tokenizer.vocab_size, context_length=64)
    save_pretrained(model, tmp_path / "tiny", tokenizer)
    for i in range(60):
        keep(kept, f"good {i}", asked(f"key {i}?"), "in the house", 1)
        keep(kept, f"bad {i}", asked(f"key {i}?"), "the the", -1)
        keep(kept, f"text {i}", f"the key {i}", " lamp")
    out = tmp_path / "collected"
    assert here("collect", kept.path, "--out", out) == 0
    said = capsys.readouterr().out
    assert "60 pairs of a liked and a disliked answer" in said
    assert f"next: labkit finetune --model MODEL --data {out / 'conversations.jsonl'}" in said
    assert len(read_conversations(out / "conversations.jsonl")) == 60
    assert read_preferences(out / "preferences.jsonl")[3].rejected[0]["content"] == "the the"
    data = ("--data", out / "preferences.jsonl", "--model", tmp_path / "tiny")
    settings = ("--epochs", 3, "--batch-size", 8, "--learning-rate", 1e-3, "--precision", "fp32")
    assert here("finetune", *data, "--out", tmp_path / "run", *settings) == 0
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert evaluation["test"]["gained more"]["estimate"] == 1.0
    assert here("evaluate", tmp_path / "tiny", "--data", out / "texts.jsonl", "--json") == 0


def test_nothing_and_foreign_files_are_named(kept, tmp_path, capsys):
    assert here("collect", kept.path, "--out", tmp_path / "out") == 2
    assert "holds 0 requests, none of them" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    keep(kept, "a", "Once", " upon")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    assert here("collect", kept.path, "--out", tmp_path / "full") == 2
    assert "not empty" in capsys.readouterr().err
    assert here("collect", tmp_path / "absent.sqlite") == 2
    assert "is no file: give the one of labkit serve --keep" in capsys.readouterr().err
    (tmp_path / "text").write_text("no database " * 100)
    other = sqlite3.connect(tmp_path / "other.sqlite")
    other.execute("create table songs (name text)")
    other.commit()
    for name, why in (
        ("text", "not a database"),
        ("other.sqlite", "another program's, with songs"),
    ):
        with pytest.raises(LabError, match=why):
            Kept(tmp_path / name)
    assert [name for (name,) in other.execute("select name from sqlite_master")] == ["songs"]
