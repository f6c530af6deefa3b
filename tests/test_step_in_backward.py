"""Step in backward through the loop: what it refuses, what it frees, what it leaves behind."""

import pytest
import torch
from training import config, ragged_batches, tiny_model

from labkit import optim
from labkit.errors import LabError
from labkit.objectives import causal_lm
from labkit.training import train


def run(model=None, **changes):
    model = model or tiny_model()
    settings = config(**{"step_in_backward": True, "grad_clip": 0.0, "steps": 2, **changes})
    return train(model, causal_lm, ragged_batches(), settings)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"grad_clip": 1.0}, "grad_clip 1.0 is out of range: choose 0 with step_in_backward"),
        ({"optimizer": "muon"}, "muon steps stacks of matrices"),
        ({"micro_batch_size": 2}, "micro-batches of 2 to a batch of 8"),
        ({"precision": "fp16"}, "overflows in fp16"),
    ],
)
def test_what_needs_all_gradients_is_refused(changes, sentence):
    with pytest.raises(LabError, match=sentence):
        run(**changes)


def test_a_micro_batch_as_large_as_the_batch_is_allowed():
    assert run(micro_batch_size=8).steps == 2


def test_gradients_never_exist_all_at_once(monkeypatch):
    model = tiny_model()
    alive = []
    step = optim.StepInBackward._step

    def watched(self, p):
        alive.append(sum(q.grad is not None for q in model.parameters()))
        step(self, p)

    monkeypatch.setattr(optim.StepInBackward, "_step", watched)
    run(model)
    assert len(alive) == 2 * len(list(model.parameters()))
    assert max(alive) == 1


def test_after_a_run_backward_passes_are_ordinary_again():
    model = tiny_model()
    run(model)
    model.train()
    loss, _ = causal_lm(model, next(ragged_batches().evaluation_batches()))
    before = [p.clone() for p in model.parameters()]
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_the_record_holds_the_norm():
    early, ordinary = run(), run(step_in_backward=False)
    for a, b in zip(early.history, ordinary.history, strict=True):
        assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-5)
        assert a.loss == b.loss


def test_it_may_be_switched_on_when_a_run_is_resumed(tmp_path):
    run(step_in_backward=False, out=tmp_path, steps=2)
    whole = run(steps=2)
    assert run(out=tmp_path, steps=2, resume=True).steps == whole.steps
