"""diagnostics: each planted bug is found by name; a healthy run gives no warning."""

import pytest
import torch
from torch import nn
from training import VOCAB, config, ragged_batches, tiny_model, weights

from labkit.batches import Batches
from labkit.errors import LabError
from labkit.objectives import causal_lm
from labkit.optim import optimizers
from labkit.training import (
    Diagnostics,
    causality_leak,
    gradient_check,
    initial_loss,
    label_offset,
    overfit_one_batch,
    train,
)

STEPS = 30


def watched(model=None, objective=causal_lm, batches=None, **settings):
    """The diagnostics of a short run."""
    model, batches = model or tiny_model(), batches or ragged_batches()
    hook = Diagnostics(model, every=5, batches=batches)
    train(model, objective, batches, config(**{"steps": STEPS, **settings}), on_step=hook)
    return hook


def kinds(hook):
    return [finding.kind for finding in hook.warnings]


def one_batch():
    return ragged_batches().micro_batches(0)[0]


def cut_off(model, name="ffn"):
    """A sublayer of the first block computes, and hands no gradient back."""
    sublayer = getattr(model.blocks[0], name)
    sublayer.register_forward_hook(lambda module, given, out: out.detach())
    return model


# --- the hook ----------------------------------------------------------------------------------


def test_a_healthy_run_gives_no_warning_and_learns_the_same_to_the_bit():
    plain, seen = tiny_model(), tiny_model()
    train(plain, causal_lm, ragged_batches(), config(steps=STEPS))
    hook = watched(seen)
    assert [finding.says for finding in hook.warnings] == []
    assert [reading.step for reading in hook.readings] == [1, 5, 10, 15, 20, 25, 30]
    assert all(torch.equal(w, weights(seen)[name]) for name, w in weights(plain).items())
    assert not any(p._post_accumulate_grad_hooks for p in seen.parameters())
    assert not any(module._forward_hooks for module in seen.modules())


def test_ratios_and_gradients_are_those_of_the_update():
    model, batches, kept = tiny_model(), ragged_batches(), {}
    hook = Diagnostics(model, every=5)
    loss_sum, count = causal_lm(model, batches.micro_batches(0)[0])
    true = torch.autograd.grad(loss_sum / count, list(model.parameters()))

    def watch(record):
        hook(record)
        kept[record.step] = weights(model)

    train(model, causal_lm, batches, config(steps=5, micro_batch_size=3), on_step=watch)
    first, last = hook.readings
    for (name, _), gradient in zip(model.named_parameters(), true, strict=True):
        assert first.gradients[name] == pytest.approx(float(gradient.norm()), rel=1e-4), name
        before, after = kept[4][name], kept[5][name]
        ratio = float((after - before).norm() / before.norm())
        assert last.ratios[name] == pytest.approx(ratio, rel=1e-5), name
    assert set(first.scale) == {"blocks.0", "blocks.1"}
    assert set(first.dead) == {"blocks.0.ffn.down", "blocks.1.ffn.down"}


def test_a_tensor_without_gradient_is_named():
    hook = watched(cut_off(tiny_model()))
    assert kinds(hook) == ["gradient"]
    assert "blocks.0.ffn.up.weight" in hook.warnings[0].says
    assert hook.warnings[0].step == 1


@pytest.mark.parametrize(("rate", "word"), [(1.0, "lower"), (1e-8, "raise")])
def test_a_rate_out_of_all_proportion_is_named(rate, word):
    hook = watched(learning_rate=rate)
    (found,) = [finding for finding in hook.warnings if finding.kind == "ratio"]
    assert f"{word} the learning rate" in found.says


def test_a_warm_up_that_does_not_end_is_named():
    assert kinds(watched(warmup_steps=100)) == ["rate"]
    assert kinds(watched(schedule="constant")) == []


def test_steps_that_the_number_format_swallows_are_named():
    hook = watched(tiny_model().bfloat16(), learning_rate=3e-5)
    assert "unmoved" in kinds(hook)
    assert "unmoved" not in kinds(watched(learning_rate=3e-5))


def test_decay_on_norms_is_named(monkeypatch):
    settings = {"weight_decay": 5.0, "learning_rate": 3e-3}
    assert "gains" not in kinds(watched(**settings))
    honest = optimizers.parameter_groups
    monkeypatch.setattr(
        optimizers,
        "parameter_groups",
        lambda model, decay: [g | {"weight_decay": decay} for g in honest(model, decay)],
    )
    assert "gains" in kinds(watched(**settings))


def test_eval_mode_while_training_is_named():
    def objective(model, batch):
        model.eval()
        return causal_lm(model, batch)

    assert kinds(watched(tiny_model(dropout=0.1), objective)) == ["mode"]


def test_evaluations_between_updates_are_not_taken_for_training():
    model, batches = tiny_model(dropout=0.1), ragged_batches()
    hook = Diagnostics(model, every=5)
    train(model, causal_lm, batches, config(steps=10, eval_every=1), validation=batches,
          on_step=hook)  # fmt: skip
    assert kinds(hook) == []


class Restarted(Batches):
    """Every third update begins the order anew."""

    def indices(self, step):
        return super().indices(step % 3)


def test_an_order_that_begins_anew_is_named():
    batches = ragged_batches(batch_size=4)
    assert kinds(watched(batches=batches)) == []
    assert kinds(watched(batches=Restarted(batches.examples, 4, batches.collate))) == ["repeats"]


def test_a_run_that_is_joined_late_is_read_and_its_order_not_judged():
    """As after a resume: what passed before is not known."""
    model, honest = tiny_model(), ragged_batches(batch_size=4)
    batches = Restarted(honest.examples, 4, honest.collate)
    hook = Diagnostics(model, every=5, batches=batches)

    def late(record):
        if record.step > 3:
            hook(record)

    train(model, causal_lm, batches, config(steps=15), on_step=late)
    assert [reading.step for reading in hook.readings] == [5, 10, 15]
    assert kinds(hook) == []


def test_an_order_that_is_none_is_named():
    honest = ragged_batches()
    batches = Batches(honest.examples, 8, honest.collate, shuffle=False)
    assert kinds(watched(batches=batches)) == ["order"]


@pytest.mark.parametrize(("factor", "word"), [(2.0, "denominator"), (0.1, "sum that should")])
def test_a_first_loss_far_from_log_v_is_named(factor, word):
    def objective(model, batch):
        loss_sum, count = causal_lm(model, batch)
        return loss_sum, (count * factor).long()

    hook = watched(objective=objective)
    (found,) = [finding for finding in hook.warnings if finding.kind == "start"]
    assert word in found.says
    model = tiny_model()
    quiet = Diagnostics(model, every=5, fresh=False)
    train(model, objective, ragged_batches(), config(steps=2), on_step=quiet)
    assert kinds(quiet) == []


def test_dead_units_are_named():
    model = tiny_model(activation="relu", bias=True)
    for block in model.blocks:
        nn.init.constant_(block.ffn.up.bias, -10.0)
        nn.init.constant_(block.ffn.up.bias[:4], 0.0)
    assert "dead" in kinds(watched(model))
    assert "dead" not in kinds(watched(tiny_model(activation="relu", bias=True)))


@pytest.mark.parametrize("squasher", [nn.Tanh, nn.Sigmoid])
@pytest.mark.parametrize("size", [0.3, 60.0])
def test_saturated_units_are_named(squasher, size):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.squash, self.last = nn.Linear(4, 32), squasher(), nn.Linear(32, 2)
            nn.init.normal_(self.first.weight, std=size)

        def forward(self, x):
            return self.last(self.squash(self.first(x)))

    def objective(model, batch):
        return model(batch["x"]).square().sum(), torch.tensor(len(batch["x"]))

    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    hook = watched(Net(), objective, Batches([{"x": row} for row in x], 8), learning_rate=1e-4)
    assert ("saturated" in kinds(hook)) == (size > 1)


def test_each_kind_is_said_once_and_what_is_out_of_range_is_named():
    said, model = [], cut_off(tiny_model())
    hook = Diagnostics(model, every=2, say=said.append)
    train(model, causal_lm, ragged_batches(), config(steps=8), on_step=hook)
    assert said == [finding.says for finding in hook.warnings]
    assert len(said) == 1
    with pytest.raises(LabError, match="every 0 is out of range: choose at least 1"):
        Diagnostics(model, every=0)


# --- before a run ------------------------------------------------------------------------------


def test_the_first_loss_stands_beside_log_v():
    model, batch = tiny_model(), one_batch()
    found = initial_loss(model, causal_lm, batch)
    loss_sum, count = causal_lm(model, batch)
    assert found.loss == pytest.approx(float(loss_sum.detach() / count))
    assert found.uniform == pytest.approx(torch.tensor(float(VOCAB)).log().item())
    assert abs(found.excess) < 0.3
    assert model.training
    with pytest.raises(LabError, match="give classes"):
        initial_loss(nn.Linear(2, 2), causal_lm, batch)


def test_one_batch_is_learnt_by_heart_and_the_model_is_left_alone():
    model, batch = tiny_model(), one_batch()
    before = weights(model)
    losses = overfit_one_batch(model, causal_lm, batch, steps=200, learning_rate=1e-2)
    assert len(losses) == 200
    assert losses[-1] < 0.3 * losses[0]
    assert all(torch.equal(before[name], w) for name, w in weights(model).items())
    frozen = cut_off(cut_off(tiny_model()), "attention")
    frozen.embedding.weight.requires_grad_(False)  # tied: the head too
    stuck = overfit_one_batch(frozen, causal_lm, batch, steps=200, learning_rate=1e-2)
    assert stuck[-1] > 3 * losses[-1]


def test_the_gradient_is_that_of_the_loss_and_a_cut_is_found():
    batch = one_batch()
    healthy = gradient_check(tiny_model(), causal_lm, batch)
    assert max(healthy.values()) < 1e-4
    wrong = gradient_check(cut_off(tiny_model()), causal_lm, batch)
    assert {n for n, error in wrong.items() if error > 0.99} >= {
        "blocks.0.ffn.up.weight", "blocks.0.ffn.down.weight", "blocks.0.ffn_norm.weight",
    }  # fmt: skip
    assert wrong["blocks.1.ffn.up.weight"] < 1e-4


def full_batch():
    ids = torch.randint(VOCAB, (3, 13), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids[:, :-1], "labels": ids[:, 1:]}


@pytest.mark.parametrize("ahead", [1, 11])
def test_a_mask_that_is_too_generous_is_found(ahead):
    model = tiny_model()
    assert causality_leak(model, full_batch()).change < 1e-4
    generous = torch.ones(12, 12, dtype=torch.bool).tril(ahead)
    model.blocks[1].attention.register_forward_pre_hook(
        lambda module, given: (given[0], generous, False, *given[3:])
    )
    found = causality_leak(model, full_batch())
    assert found.change > 1e-3
    assert 0 <= found.position < found.changed
    if ahead == 1:
        assert found.position == found.changed - 1
    assert model.training


def test_a_mask_that_is_too_generous_at_some_positions_only_is_found():
    model, generous = tiny_model(), torch.ones(12, 12, dtype=torch.bool).tril()
    generous[6, 7] = True
    model.blocks[1].attention.register_forward_pre_hook(
        lambda module, given: (given[0], generous, False, *given[3:])
    )
    assert causality_leak(model, full_batch())[1:] == (6, 7)
    assert causality_leak(model, full_batch(), cuts=2).change < 1e-4
    with pytest.raises(LabError, match="0 cuts are out of range"):
        causality_leak(model, full_batch(), cuts=0)


@pytest.mark.parametrize("offset", [0, 1, 2])
def test_the_offset_of_the_targets_is_read_off_a_batch(offset):
    ids = torch.randint(VOCAB, (4, 30), generator=torch.Generator().manual_seed(2))
    labels = ids.roll(-offset, 1)
    labels[:, -3:] = -100
    labels[1, 5:9] = -100
    assert label_offset({"input_ids": ids, "labels": labels}).tolist() == [offset] * 4


def test_one_text_among_others_that_stands_elsewhere_is_found_in_spite_of_padding():
    """A text's last target has no counterpart among its inputs, so shares stay below 1."""
    ids = torch.randint(1, VOCAB, (3, 20), generator=torch.Generator().manual_seed(2))
    labels = ids.roll(-1, 1)
    labels[1] = ids[1].roll(-2)
    ids[2, 6:], labels[2, 6:] = 0, -100
    labels[0] = torch.randint(1, VOCAB, (20,), generator=torch.Generator().manual_seed(3))
    assert label_offset({"input_ids": ids, "labels": labels}).tolist() == [-1, 2, 1]
