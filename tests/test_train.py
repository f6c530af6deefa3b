"""train: what the loop does, stops on, writes, and refuses."""

import json
import math
import os
import signal

import pytest
import torch
from training import config, ragged_batches, tiny_model, weights

from labkit.batches import Batches, Pad, Windows
from labkit.errors import LabError
from labkit.evaluation import mean_loss
from labkit.objectives import causal_lm, classification
from labkit.training import TrainConfig, checkpoint, train


def test_training_learns_a_repeating_sequence():
    tokens = torch.arange(7).repeat(60).numpy()
    data = Batches(Windows(tokens, 16), 8)
    model = tiny_model()
    before, count = mean_loss(model, causal_lm, data, precision="fp32")
    result = train(model, causal_lm, data, config(steps=80, learning_rate=1e-2), validation=data)
    assert before > math.log(16)
    assert result.best["loss"] < 0.1
    assert count == len(Windows(tokens, 16)) * 16


def test_on_step_sees_every_update_and_metrics_jsonl_keeps_it(tmp_path):
    seen = []
    train(tiny_model(), causal_lm, ragged_batches(), config(out=tmp_path), on_step=seen.append)
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [r.step for r in seen] == [x["step"] for x in lines] == [1, 2, 3, 4, 5, 6]
    assert [r.loss for r in seen] == [x["loss"] for x in lines]
    assert json.loads((tmp_path / "config.json").read_text())["train"]["steps"] == 6


def test_early_stopping_restores_the_best_weights():
    model = tiny_model()
    data, other = ragged_batches(seed=0), ragged_batches(seed=9)
    settings = config(steps=400, learning_rate=3e-2, eval_every=4, patience=3, restore_best=True)
    result = train(model, causal_lm, data, settings, validation=other)
    assert result.stopped == "early"
    assert result.steps == result.best["step"] + 3 * 4 < 400
    again, _ = mean_loss(model, causal_lm, other, precision="fp32")
    assert again == pytest.approx(result.best["loss"], rel=1e-6)


def test_metrics_are_taken_in_eval_mode_without_gradients():
    modes = []

    def metrics(model):
        modes.append((model.training, torch.is_grad_enabled()))
        return {"answer": 42.0}

    result = train(
        tiny_model(dropout=0.1), causal_lm, ragged_batches(), config(eval_every=3), metrics=metrics
    )
    assert modes == [(False, False)] * 2
    assert result.history[2].validation == {"answer": 42.0}


def test_frozen_parameters_stay_and_the_others_move():
    model = tiny_model()
    model.embedding.requires_grad_(False)
    before = weights(model)
    train(model, causal_lm, ragged_batches(), config())
    moved = {n for n, p in weights(model).items() if not torch.equal(p, before[n])}
    assert moved == {n for n, p in model.named_parameters() if p.requires_grad} != set()


def test_a_transformers_model_trains_in_the_same_loop():
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    shape = {"vocab_size": 20, "hidden_size": 16, "num_attention_heads": 2}
    model = BertForSequenceClassification(
        BertConfig(**shape, num_hidden_layers=1, intermediate_size=32, num_labels=2)
    )
    items = [
        {"input_ids": torch.full((4,), 3 + i % 2), "labels": torch.tensor(i % 2)} for i in range(16)
    ]
    data = Batches(items, 8, Pad(0))
    result = train(model, classification, data, config(steps=60, learning_rate=3e-3))
    assert result.history[-1].loss < 0.1 < result.history[0].loss


def test_fp16_skips_overflowing_steps_and_learns():
    model = tiny_model()
    result = train(model, causal_lm, ragged_batches(), config(steps=40, precision="fp16"))
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert result.history[-1].loss < result.history[0].loss


def test_nan_stops_before_the_weights_are_touched():
    model = tiny_model()
    before = weights(model)

    def broken(model, batch):
        total, count = causal_lm(model, batch)
        return total * float("nan"), count

    with pytest.raises(LabError, match=r"update 1 has loss nan .* its examples are \["):
        train(model, broken, ragged_batches(), config())
    assert all(torch.equal(p, before[n]) for n, p in weights(model).items())


def test_a_first_update_without_any_gradient_is_said(recwarn):
    def dead(model, batch):
        total, count = causal_lm(model, batch)
        return total.detach() + 0 * total, count

    with pytest.warns(UserWarning, match="update 1 has gradient norm 0 over 68 valid targets"):
        train(tiny_model(), dead, ragged_batches(), config(steps=2))
    assert len(recwarn) == 0
    train(tiny_model(), causal_lm, ragged_batches(), config(steps=2))
    assert not [w for w in recwarn if "gradient norm" in str(w.message)]


def test_an_update_without_targets_is_named():
    items = [{"input_ids": torch.ones(4, dtype=torch.long), "labels": torch.full((4,), -100)}] * 8
    with pytest.raises(LabError, match="update 1 has 0 valid targets"):
        train(tiny_model(), causal_lm, Batches(items, 4), config())
    with pytest.raises(LabError, match="validation data have 0 valid targets"):
        mean_loss(tiny_model(), causal_lm, Batches(items, 4))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": 0}, "steps 0 is out of range: choose at least 1"),
        ({"learning_rate": -1.0}, "learning_rate -1.0"),
        ({"betas": (0.9, 1.0)}, "betas"),
        (
            {"schedule": "step"},
            "schedule step is out of range: choose cosine, linear, constant or range_test",
        ),
        ({"precision": "int8"}, "precision int8"),
        ({"micro_batch_size": -2}, "micro_batch_size -2"),
        ({"keep": 0}, "keep 0"),
    ],
)
def test_impossible_settings_are_named(change, words):
    with pytest.raises(LabError, match=words):
        TrainConfig(**change)


def test_a_used_run_folder_is_not_overwritten(tmp_path):
    train(tiny_model(), causal_lm, ragged_batches(), config(out=tmp_path))
    with pytest.raises(LabError, match="holds checkpoints: resume it"):
        train(tiny_model(), causal_lm, ragged_batches(), config(out=tmp_path))


def test_resuming_with_other_settings_is_named(tmp_path):
    train(tiny_model(), causal_lm, ragged_batches(), config(out=tmp_path))
    changed = config(out=tmp_path, resume=True, learning_rate=1e-4)
    with pytest.raises(LabError, match=r"learning_rate 0\.0001 differs from 0\.003"):
        train(tiny_model(), causal_lm, ragged_batches(), changed)


def test_two_runs_in_one_folder_is_named(tmp_path):
    def intrude(record):
        train(tiny_model(), causal_lm, ragged_batches(), config(out=tmp_path))

    with pytest.raises(LabError, match="is in use by another run"):
        train(tiny_model(), causal_lm, ragged_batches(), config(out=tmp_path), on_step=intrude)


def test_a_checkpoint_of_another_shape_is_named(tmp_path):
    train(tiny_model(), causal_lm, ragged_batches(), config(out=tmp_path))
    saved = checkpoint.newest(tmp_path / "checkpoints")
    with pytest.raises(LabError, match=r"shape \(31, 16\) in the checkpoint and \(31, 32\)"):
        checkpoint.load_model(tiny_model(d_model=32), saved.tensors["model"])
    with pytest.raises(LabError, match="more names are missing in the checkpoint"):
        checkpoint.load_model(tiny_model(num_layers=3), saved.tensors["model"])


def test_stopping_by_hand_leaves_a_usable_result():
    def stop(record):
        if record.step == 3:
            raise KeyboardInterrupt

    result = train(tiny_model(), causal_lm, ragged_batches(), config(), on_step=stop)
    assert (result.stopped, result.steps) == ("interrupted", 3)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_its_update_with_a_checkpoint(tmp_path, number):
    def stop(record):
        if record.step == 2:
            os.kill(os.getpid(), number)

    model, settings = tiny_model(dropout=0.1), config(out=tmp_path)
    handler = signal.getsignal(number)
    result = train(model, causal_lm, ragged_batches(), settings, on_step=stop)
    assert (result.stopped, result.steps) == ("interrupted", 2)
    assert signal.getsignal(number) is handler
    assert checkpoint.newest(tmp_path / "checkpoints").step == 2
    whole = tiny_model(dropout=0.1)
    train(whole, causal_lm, ragged_batches(), config())
    train(model, causal_lm, ragged_batches(), config(out=tmp_path, resume=True))
    assert all(torch.equal(p, weights(whole)[n]) for n, p in weights(model).items())
