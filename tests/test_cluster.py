"""accounting.cluster: runs on many GPUs, against published ones."""

import dataclasses
import statistics

import pytest

from labkit.accounting import Plan, predict_update
from labkit.accounting.cluster import GPUS, states
from labkit.accounting.published import BEYOND, LLAMA_3_70B, RUNS
from labkit.errors import LabError
from labkit.models import TransformerConfig
from labkit.models.counts import flops_per_token
from labkit.parallel import bubble, one_f_one_b, simulate

#: The error that `published` and the chapter state, by kind of GPU.
STATED = {"A100": 0.12, "H100": 0.21}


def kind(run) -> str:
    return run.gpu.split()[0]


def median_error(errors) -> float:
    return statistics.median(abs(error) for error in errors)


def same_share(run) -> float:
    """Error of the laziest prediction: the share of the peak of the run that set the constant."""

    def products(run) -> float:
        """FLOPs a token, those that are done twice counted twice."""
        again = 4 / 3 if run.plan.checkpointing else 1
        return again * flops_per_token(run.config, run.length)

    (known,) = [other for other in RUNS if other.sets and kind(other) == kind(run)]
    lazy = known.tokens_per_gpu * products(known) / products(run)
    return lazy / run.tokens_per_gpu - 1


@pytest.mark.parametrize("run", RUNS, ids=[run.name for run in RUNS])
def test_published_speeds_come_out_within_the_stated_error(run):
    assert abs(run.error()) < (0.02 if run.sets else STATED[kind(run)])


def test_most_runs_are_predictions_and_no_more_is_stated_than_needed():
    assert sum(run.sets for run in RUNS) == 2
    for gpu, stated in STATED.items():
        errors = [abs(run.error()) for run in RUNS if kind(run) == gpu and not run.sets]
        assert len(errors) >= 9
        assert stated - 0.01 < max(errors)


def test_where_the_prediction_beats_a_constant_share_of_the_peak():
    """Model parallel in three dimensions: by far. FSDP on H100: not at all."""
    errors, lazy = {}, {}
    for run in RUNS:
        if not run.sets:
            group = kind(run), run.name.split()[0]
            errors.setdefault(group, []).append(run.error())
            lazy.setdefault(group, []).append(same_share(run))
    assert median_error(errors["A100", "Megatron"]) < 0.08
    assert median_error(lazy["A100", "Megatron"]) > 0.3
    assert median_error(errors["A100", "MPT"]) < 0.06 < median_error(lazy["A100", "MPT"])
    assert median_error(errors["H100", "MPT"]) == pytest.approx(
        median_error(lazy["H100", "MPT"]), abs=0.02
    )


@pytest.mark.parametrize("run", BEYOND, ids=[run.name for run in BEYOND])
def test_what_is_not_predicted_is_said(run):
    assert 0.25 < run.error() < 2.2


def test_states_are_those_of_the_zero_paper():
    """Figure 1: 7.5 billion parameters on 64 GPUs, in GB."""
    found = [sum(states(7.5e9, Plan(dp=64, zero=stage))) / 1e9 for stage in range(4)]
    assert found == pytest.approx([120, 31.4, 16.6, 1.9], abs=0.05)


@pytest.mark.parametrize(("on_8", "on_128"), [(82.4, 67.0), (77.0, 62.0)])
def test_states_shrink_as_fast_as_measured(on_8, on_128):
    """torchtitan, Llama 3.1 8B under FSDP in fp32: GiB on 8 and on 128 GPUs, eager and compiled."""
    held = [sum(states(8.03e9, Plan(dp=dp, zero=3), 4, 4, 8)) / 2**30 for dp in (8, 128)]
    assert held[0] - held[1] == pytest.approx(on_8 - on_128, rel=0.10)


GPT = TransformerConfig.gpt2(
    vocab_size=51200, context_length=2048, d_model=6144, num_layers=48, num_heads=48, dropout=0.0
)
BASE = Plan(dp=2, tp=8, pp=4, checkpointing=True, micro_batch=1)


def cost(**changes):
    return predict_update(GPT, "A100 (80 GB)", dataclasses.replace(BASE, **changes), 64, 2048)


def test_the_bubble_is_that_of_the_schedule():
    found = cost()
    work = found.compute + found.tensor + found.pipeline
    share = found.bubble / (work + found.bubble)
    assert share == pytest.approx(bubble(simulate(one_f_one_b, stages=4, micros=32)))
    assert cost(interleaved=3).bubble < found.bubble / 2.5
    assert cost(interleaved=3).sent["pipeline"] == 3 * found.sent["pipeline"]
    more = cost(interleaved=3).held.activations / found.held.activations
    assert 1.2 < more < 1 + 3 / 4 / 3, "a quarter more waits"


def test_each_way_to_divide_saves_what_it_should():
    found = cost()
    assert cost(zero=1).held.optimizer == found.held.optimizer / 2
    assert cost(zero=2).held.gradients == found.held.gradients / 2
    assert cost(zero=3).held.weights == found.held.weights / 2
    assert cost(zero=3).sent["data"] > 10 * found.sent["data"], "for every micro-batch"
    assert cost(sequence=True).held.activations < found.held.activations / 4
    again, once = found, cost(checkpointing=False)
    assert once.compute < again.compute
    assert once.held.activations > 5 * again.held.activations
    assert cost(tp=4, dp=4).sent["tensor"] < found.sent["tensor"]


def test_a_long_text_fits_with_context_parallel():
    plan = Plan(dp=8, tp=8, pp=8, zero=1, sequence=True, checkpointing=True)
    config = dataclasses.replace(LLAMA_3_70B, context_length=131072)
    one = predict_update(config, "H100 (80 GB)", plan, global_batch=64, length=8192)
    ring = dataclasses.replace(plan, dp=1, cp=8)
    long = predict_update(config, "H100 (80 GB)", ring, global_batch=8, length=8192 * 8)
    assert long.held.activations == pytest.approx(one.held.activations)
    assert long.sent["context"] > 0 == one.sent["context"]
    assert long.tokens_per_gpu < one.tokens_per_gpu


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pp": 0}, "pp 0 is out of range: choose at least 1"),
        ({"tp": 16}, "tp 16 leaves the node: choose at most 8"),
        ({"tp": 7}, "48 heads do not divide among tp 7"),
        ({"pp": 49}, "48 layers are too few"),
        ({"dp": 3}, "global_batch 64 does not divide among dp 3"),
        ({"cp": 3}, "length 2048 does not divide among cp 3"),
        ({"zero": 4}, "zero 4 is out of range: choose 0 to 3"),
    ],
)
def test_plans_that_cannot_be_are_refused(changes, said):
    with pytest.raises(LabError, match=said):
        cost(**changes)


def test_an_unknown_gpu_is_named():
    with pytest.raises(LabError, match="GPU 'V100' is unknown: choose A100"):
        predict_update(GPT, "V100", BASE, 64, 2048)
    slow = dataclasses.replace(GPUS["A100 (80 GB)"], network=1e9)
    assert predict_update(GPT, slow, BASE, 64, 2048).seconds > cost().seconds
