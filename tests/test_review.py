"""review: what a run's two files say, planted one by one; `labkit doctor --run` prints it."""

import json
import math

import pytest
from commands import here
from training import config, ragged_batches, tiny_model

from labkit.errors import LabError
from labkit.objectives import causal_lm
from labkit.optim.schedule import learning_rate
from labkit.training import train
from labkit.training.review import review

STEPS, PEAK, WARMUP = 120, 1e-3, 6


def folder_of(tmp_path, change=lambda row: row, **config):
    """A run that falls from log 400 to 2 with a little noise, changed row by row."""
    plan = {"learning_rate": PEAK, "warmup_steps": WARMUP, "min_learning_rate_ratio": 0.1,
            "schedule": "cosine", **config}  # fmt: skip
    saved = {"options": {"init": None}, "model": {"vocab_size": 400}, "train": plan}
    (tmp_path / "config.json").write_text(json.dumps(saved))
    lines = []
    for step in range(1, STEPS + 1):
        loss = 2 + (math.log(400) - 2) * math.exp(-(step - 1) / 40) + 0.02 * math.sin(9 * step)
        rate = learning_rate(
            step - 1, peak=PEAK, warmup_steps=WARMUP, total_steps=STEPS, minimum_ratio=0.1
        )
        row = {
            "step": step, "total_steps": STEPS, "loss": loss, "learning_rate": rate,
            "grad_norm": 0.5, "tokens": 100 * step, "tokens_per_second": 5000.0 + step % 7,
            "elapsed": 0.1 * step, "remaining": 1.0, "validation": None,
        }  # fmt: skip
        if step % 20 == 0:
            row["validation"] = {"loss": loss + 0.05}
        lines.append(json.dumps(change(row)))
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def wrong(folder):
    return {remark.name: remark.says for remark in review(folder) if remark.remedy}


def test_a_healthy_run_has_nothing_to_mend(tmp_path):
    assert wrong(folder_of(tmp_path)) == {}


def where(condition, **changes):
    return lambda row: row | changes if condition(row["step"]) else row


@pytest.mark.parametrize(
    ("change", "name", "words"),
    [
        (where(lambda s: s == 1, loss=3.0), "start", "log V = 5.99"),
        (where(lambda s: s == 1, loss=12.0), "start", "first loss 12.00"),
        (where(lambda s: s == 70, loss=9.0, grad_norm=44.0), "spikes", "at update 70"),
        (where(lambda s: s == 50, loss=math.nan), "numbers", "first at 50"),
        (where(lambda s: s > 80, tokens_per_second=1500.0), "speed", "1,500"),
        (where(lambda s: s == 33, learning_rate=1e-2), "rate", "update 33 used 1.00e-02"),
        (where(lambda s: s in (80, 100, 120), validation={"loss": 4.5}), "validation", "it rises"),
        (lambda row: row | {"loss": 6 + 0.02 * math.sin(9 * row["step"])}, "loss", "not lower"),
        (
            lambda row: row | {"loss": max(row["loss"], 3) + 0.02 * math.sin(9 * row["step"])},
            "loss",
            "flat over the last half",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path, change, name, words):
    found = wrong(folder_of(tmp_path, change))
    assert set(found) == {name}
    assert words in found[name]


def test_a_warm_up_that_never_ends_is_named(tmp_path):
    def slow(row):
        return row | {"learning_rate": PEAK * row["step"] / 1000}

    found = wrong(folder_of(tmp_path, slow, warmup_steps=1000))
    assert "warm-up takes 1000 of 120" in found["rate"]


def test_a_running_run_is_read_and_its_torn_last_line_forgiven(tmp_path):
    file = folder_of(tmp_path) / "metrics.jsonl"
    lines = file.read_text().splitlines()[:60]
    file.write_text("\n".join(lines) + "\n" + lines[-1][:30])
    assert wrong(tmp_path) == {}
    assert "update 60 of 120" in review(tmp_path)[0].says
    file.write_text("\n".join([*lines[:5], "{", *lines[5:]]) + "\n")
    assert wrong(tmp_path) == {"numbers": "1 lines of metrics.jsonl are damaged"}


def test_what_is_no_run_is_named(tmp_path, capsys):
    with pytest.raises(LabError, match="holds no run"):
        review(tmp_path)
    folder_of(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(LabError, match="0 updates yet"):
        review(tmp_path)
    assert here("doctor", "--run", tmp_path / "nowhere") == 2
    assert "holds no run" in capsys.readouterr().err


def test_doctor_reads_a_run_that_train_wrote(tmp_path, capsys):
    settings = config(steps=25, out=tmp_path / "run", eval_every=5)
    train(tiny_model(), causal_lm, ragged_batches(), settings, validation=ragged_batches())
    assert here("doctor", "--run", tmp_path / "run") == 0
    shown = capsys.readouterr().out
    assert "update 25 of 25" in shown
    assert "nothing to mend" in shown
    folder_of(tmp_path, where(lambda s: s == 70, loss=9.0))
    assert here("doctor", "--run", tmp_path) == 1
    assert "1 to look at" in capsys.readouterr().out
