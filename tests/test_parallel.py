"""Many processes by hand: each way to divide the work against one process, and what is sent."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import psutil
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    loss_parallel,
    parallelize_module,
)
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close
from training import ragged_batches, tiny_model

from labkit import optim, runtime
from labkit.accounting import Plan, measure_memory, predict_update
from labkit.errors import LabError
from labkit.models import Transformer, TransformerConfig
from labkit.objectives import causal_lm
from labkit.parallel import (
    Column,
    DataParallel,
    Pipeline,
    Ranks,
    Row,
    Zero,
    ZeroThree,
    bubble,
    collectives,
    context_parallel,
    differentiable,
    gpipe,
    one_f_one_b,
    own_positions,
    pipeline,
    positions,
    ring_attention,
    sequence,
    sequence_parallel,
    simulate,
    tensor,
    tensor_parallel,
    vocabulary_cross_entropy,
    vocabulary_lm,
    whole_tensors,
)
from labkit.training.distributed import Step, parallelise

pytestmark = pytest.mark.multi


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request):
    with Ranks(request.param) as started:
        yield started


BOUND = 1e-10
"""In float64, where a difference is one of the mathematics. AdamW's first update is about the sign
of each gradient: in float32 an entry near 0 has any sign."""


def double_model(**changes) -> Transformer:
    return tiny_model(**changes).double()


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def after_one_update(model: nn.Module, count: float) -> dict[str, torch.Tensor]:
    """The weights after AdamW with the mean gradient: the sum, divided by the count of all."""
    for p in model.parameters():
        p.grad /= count
    optim.build(model, learning_rate=1e-2).step()
    return detached(model)


def detached(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def alone(model: nn.Module | None = None) -> tuple[float, dict, dict]:
    """One process: loss, gradients, and weights after an update of the whole batch."""
    model = double_model() if model is None else model
    (batch,) = ragged_batches().micro_batches(0)
    loss_sum, count = causal_lm(model, batch)
    loss_sum.backward()
    return float(loss_sum.detach() / count), gradients(model), after_one_update(model, float(count))


def furthest(found: dict, exact: dict) -> float:
    """The largest difference of any tensor, relative to its largest entry."""
    assert set(found) == set(exact)
    return max(float((found[k] - exact[k]).abs().max() / exact[k].abs().max()) for k in exact)


# --- the processes -----------------------------------------------------------------------------


@pytest.mark.slow
def test_what_goes_wrong_in_a_rank_is_said_in_one_sentence_and_the_next_run_works():
    with Ranks(2, seconds=60) as two:
        with pytest.raises(LabError, match="rank 1 of 2 raised ZeroDivisionError: ") as caught:
            two.run(lambda: dist.get_rank() and 1 / 0)
        assert "dist.get_rank() and 1 / 0" in str(caught.value.__cause__)
        with pytest.raises(LabError, match="rank 0 of 2 was killed by SIGKILL"):
            two.run(lambda: dist.barrier() if dist.get_rank() else os.kill(os.getpid(), 9))
        assert two.run(lambda: (dist.get_rank(), os.environ["WORLD_SIZE"])) == [(0, "2"), (1, "2")]
        two.seconds = 0.5
        with pytest.raises(LabError, match=r"ranks \[.*1\] of 2 did not answer within 0.5 s"):
            two.run(lambda: dist.recv(torch.zeros(1), 0) if dist.get_rank() else None)
    with pytest.raises(LabError, match="65 ranks"):
        Ranks(65)


@pytest.mark.slow
def test_ranks_do_not_outlive_what_started_them():
    lines = (
        "import os, time",
        "from labkit.parallel import Ranks",
        "two = Ranks(2)",
        "print(*two.run(os.getpid), two.folder, flush=True)",
        "two.run(lambda: time.sleep(600))",
    )
    started = subprocess.Popen([sys.executable, "-c", "\n".join(lines)], stdout=subprocess.PIPE)
    assert started.stdout is not None
    *pids, folder = started.stdout.readline().decode().split()
    ranks = [psutil.Process(int(pid)) for pid in pids]
    started.send_signal(signal.SIGKILL)
    started.wait()
    _, alive = psutil.wait_procs(ranks, timeout=20)
    for rank in alive:
        rank.kill()
    started.stdout.close()
    assert not alive
    assert not os.path.exists(folder)


def test_ranks_run_what_a_cell_defines_and_show_what_they_print(ranks, capsys):
    def work(factor):
        print("here")
        return factor * dist.get_rank() + torch.rand(1)

    answers = ranks.run(work, 10)
    assert_close(answers, [torch.rand(1, generator=torch.Generator().manual_seed(0)) + 10 * r
                           for r in range(ranks.size)])  # fmt: skip
    assert capsys.readouterr().out == "".join(f"rank {r}: here\n" for r in range(ranks.size))


# --- collectives -------------------------------------------------------------------------------


def own(n: int) -> torch.Tensor:
    """What this rank begins with."""
    return torch.randn(n, generator=torch.Generator().manual_seed(dist.get_rank()))


def everywhere(n: int) -> dict[str, torch.Tensor | collectives.Traffic]:
    """Every collective of a tensor of n numbers, ours and torch's, with what ours sent."""
    rank, size = collectives.place()
    theirs = own(n)
    dist.all_reduce(theirs)
    with collectives.counted() as ring:
        ours = collectives.all_reduce(own(n))
    with collectives.counted() as root:
        through_root = collectives.root_all_reduce(own(n))
    with collectives.counted() as half:
        part = collectives.reduce_scatter(own(n))
    whole = collectives.all_gather(own(n).tensor_split(size)[rank], torch.empty(n))
    drifting = own(n)  # each adds what the others sent in an order of its own
    for step in range(1, size):
        drifting = drifting + collectives.shift(own(n), step)
    return {
        "theirs": theirs, "ours": ours, "through_root": through_root, "part": part,
        "whole": whole, "drifting": drifting, "ring": ring, "root": root, "half": half,
    }  # fmt: skip


@pytest.mark.parametrize("n", [1000, 7, 3])
def test_collectives_equal_torchs_and_send_as_little_as_the_formula_says(ranks, n):
    N, answers = ranks.size, ranks.run(everywhere, n)
    parts = [a["theirs"].tensor_split(N)[r] for r, a in enumerate(answers)]
    begun = [torch.randn(n, generator=torch.Generator().manual_seed(r)) for r in range(N)]
    gathered = torch.cat([b.tensor_split(N)[r] for r, b in enumerate(begun)])
    for r, answer in enumerate(answers):
        assert_close(answer["ours"], answer["theirs"], rtol=0, atol=1e-6)
        assert_close(answer["through_root"], answer["theirs"], rtol=0, atol=1e-6)
        assert_close(answer["part"], parts[r], rtol=0, atol=1e-6)
        assert torch.equal(answer["whole"], gathered)
        assert torch.equal(answer["ours"], answers[0]["ours"]), "the same bits everywhere"
    sent = [answer["ring"].bytes for answer in answers]
    assert sum(sent) == 2 * (N - 1) * 4 * n
    assert max(sent) - min(sent) <= 8, "no rank sends more than the others"
    assert sum(answer["half"].bytes for answer in answers) == (N - 1) * 4 * n
    assert [answer["root"].bytes for answer in answers] == [(N - 1) * 4 * n] + [4 * n] * (N - 1)
    assert all(answer["ring"].messages == 2 * (N - 1) for answer in answers)
    if N > 2 and n > 100:  # a + b is b + a
        drifting = [answer["drifting"] for answer in answers]
        assert not torch.equal(drifting[0], drifting[1]), "an order of one's own, bits of one's own"


# --- collectives with gradients ------------------------------------------------------------------

#: name -> (is x the same on all ranks, is y, y of every rank from the x of every rank)
FORWARD: dict[str, tuple[bool, bool, Callable[[list], list]]] = {
    "copy_in": (True, False, lambda xs: xs),
    "sum_out": (False, True, lambda xs: [sum(xs)] * len(xs)),
    "gather": (False, False, lambda xs: [torch.cat(xs, 1)] * len(xs)),
    "scatter_sum": (False, False, lambda xs: sum(xs).chunk(len(xs), 1)),
    "split": (True, False, lambda xs: xs[0].chunk(len(xs), 1)),
    "join": (False, True, lambda xs: [torch.cat(xs, 1)] * len(xs)),
}


def some(rank: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def with_gradient(name: str, same_x: bool, same_y: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """y, and the gradient of x if every rank weighs its y by numbers of its own (or all alike)."""
    rank, _ = collectives.place()
    x = some(0 if same_x else rank, 2, 8).requires_grad_()
    function = getattr(differentiable, name)
    y = function(x) if name in ("copy_in", "sum_out") else function(x, 1)
    (y * some(100 if same_y else 100 + rank, *y.shape)).sum().backward()
    return y.detach(), x.grad


@pytest.mark.parametrize("name", FORWARD)
def test_each_collective_has_the_gradient_of_one_process(ranks, name):
    same_x, same_y, forward = FORWARD[name]
    answers = ranks.run(with_gradient, name, same_x, same_y)
    xs = [some(0 if same_x else rank, 2, 8).requires_grad_() for rank in range(ranks.size)]
    xs = [xs[0]] * ranks.size if same_x else xs
    ys = forward(xs)
    weighed = [(y * some(100 if same_y else 100 + r, *y.shape)).sum() for r, y in enumerate(ys)]
    (weighed[0] if same_y else sum(weighed)).backward()  # what all compute alike counts once
    for (y, gradient), x, exact in zip(answers, xs, ys, strict=True):
        assert_close(y, exact.detach(), rtol=0, atol=1e-12)
        assert_close(gradient, x.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("right", "wrong"), [("join", "gather"), ("sum_out", "copy_in")])
def test_the_other_one_of_the_pair_counts_what_is_alike_once_for_each_rank(ranks, right, wrong):
    """What Megatron's f and g are two functions for."""
    alike = [ranks.run(with_gradient, name, False, True) for name in (right, wrong)]
    for (_, once), (_, often) in zip(*alike, strict=True):
        assert_close(often, ranks.size * once, rtol=0, atol=1e-12)


# --- data parallel -----------------------------------------------------------------------------


def summed(*values: torch.Tensor) -> list[float]:
    """Numbers summed over ranks."""
    return collectives.all_reduce(torch.stack([v.double() for v in values])).tolist()


def data_parallel(bucket_bytes: int, micro: int | None) -> dict:
    """One update of a part of the batch; the ranks begin with weights of their own."""
    rank, size = collectives.place()
    model, early = double_model(seed=rank), []
    last = model.embedding.weight  # its gradient is the last to be ready
    last.register_post_accumulate_grad_hook(lambda _: early.append(copies.launched))
    copies = DataParallel(model, bucket_bytes)
    parts = ragged_batches().micro_batches(0, micro, rank, size)
    loss_sum, count = torch.zeros(()), torch.zeros(())
    with collectives.counted() as sent:
        for i, batch in enumerate(parts):
            part_sum, part_count = causal_lm(model, batch)
            if i < len(parts) - 1:
                with copies.quiet():
                    part_sum.backward()
            else:
                part_sum.backward()
            loss_sum, count = loss_sum + part_sum.detach(), count + part_count
        copies.finish()
    found = gradients(model)
    loss, total = summed(loss_sum, count)
    return {
        "loss": loss / total, "gradients": found, "weights": after_one_update(model, total),
        "early": early[-1], "buckets": len(copies.buckets), "sent": sent,
        "bytes": sum(p.nbytes for p in model.parameters()),
    }  # fmt: skip


def witness() -> tuple[dict, dict]:
    """torch's DDP, whose gradient is a mean over ranks; and the mean of the ranks' means."""
    rank, size = collectives.place()
    model = double_model()
    (batch,) = ragged_batches().micro_batches(0, None, rank, size)
    wrapped = DistributedDataParallel(Step(model, causal_lm))
    wrapped(batch)[0].backward()
    theirs = {name: p.grad * size for name, p in model.named_parameters()}
    model.zero_grad()
    copies = DataParallel(model)
    loss_sum, count = causal_lm(model, batch)
    (loss_sum / count).backward()
    copies.finish()
    return theirs, {name: g / size for name, g in gradients(model).items()}


@pytest.mark.parametrize(("bucket_bytes", "micro"), [(4000, None), (2**20, 1)])
def test_data_parallel_equals_one_process(ranks, bucket_bytes, micro):
    loss, exact, updated = alone()
    answers = ranks.run(data_parallel, bucket_bytes, micro)
    for answer in answers:
        assert answer["loss"] == pytest.approx(loss, rel=BOUND)
        assert furthest(answer["gradients"], exact) < BOUND
        assert furthest(answer["weights"], updated) < BOUND
        assert furthest(answer["weights"], answers[0]["weights"]) == 0, "copies stay copies"
    N = ranks.size
    assert sum(a["sent"].bytes for a in answers) == 2 * (N - 1) * answers[0]["bytes"]


def test_buckets_leave_before_the_backward_pass_ends(ranks):
    many, one = (ranks.run(data_parallel, size, None)[0] for size in (4000, 2**20))
    assert many["buckets"] > 6
    assert many["early"] >= many["buckets"] - 2
    assert (one["buckets"], one["early"]) == (1, 0), "a single bucket waits for the last gradient"


def test_data_parallel_equals_torchs_and_a_mean_of_means_does_not(ranks):
    _, exact, _ = alone()
    (batch,) = ragged_batches().micro_batches(0)
    count = float((batch["labels"] != -100).sum())
    for theirs, naive in ranks.run(witness):
        assert furthest(theirs, exact) < BOUND
        assert furthest({k: g * count for k, g in naive.items()}, exact) > 1e-2


# --- ZeRO --------------------------------------------------------------------------------------


def zero_update(stage: int, spoil: str = "") -> dict:
    """One update under a stage, from this rank's part of the batch in two micro-batches."""
    rank, size = collectives.place()
    model = double_model()
    parameters = list(model.parameters())
    bytes_in_all = sum(p.nbytes for p in parameters)
    zero = ZeroThree(model) if stage == 3 else Zero(model, stage)
    units = [s.unit for s in zero.sharded] if isinstance(zero, ZeroThree) else zero.units
    for unit in units:
        if spoil == "decay":
            unit.decays_c = torch.ones_like(unit.decays_c)
    gathered, all_gather = [], collectives.all_gather

    def watched(chunk_c, out_n, group=None):
        gathered.append(StorageWeakRef(out_n.untyped_storage()))
        return all_gather(chunk_c, out_n, group)

    loss_sum, count = torch.zeros(()), torch.zeros(())
    parts = ragged_batches().micro_batches(0, 4 // size, rank, size)
    with pytest.MonkeyPatch.context() as patch, collectives.counted() as sent:
        patch.setattr(collectives, "all_gather", watched)
        if spoil == "own gradient":
            patch.setattr(collectives, "reduce_scatter", lambda x, _: x.tensor_split(size)[rank])
        for batch in parts:
            part = zero(causal_lm, batch) if stage == 3 else causal_lm(model, batch)
            kept = sum(not storage.expired() for storage in gathered)
            part[0].backward()
            loss_sum, count = loss_sum + part[0].detach(), count + part[1]
        sent_before = sent.bytes
        held = zero.held()
        grads = zero.whole(gradients=True) if stage == 3 else None
    _, total = summed(loss_sum, count)
    with collectives.counted() as in_step:
        zero.step(total, learning_rate=1e-2)
    return {
        "weights": zero.whole() if stage == 3 else detached(model),
        "gradients": grads, "held": held, "after": zero.held(), "kept": kept,
        "left": sum(p.numel() for p in parameters), "bytes": bytes_in_all,
        "most_whole": getattr(zero, "most_whole", None), "sent": sent_before, "parts": len(parts),
        "most_gradients": getattr(zero, "most_gradients", None), "in_step": in_step.bytes,
    }  # fmt: skip


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_zero_stage_is_adamw_and_holds_its_share(ranks, stage):
    _, exact, updated = alone()
    N, answers = ranks.size, ranks.run(zero_update, stage)
    P = answers[0]["bytes"]
    about_a_share = pytest.approx(P / N, rel=0.01)
    for answer in answers:
        assert furthest(answer["weights"], updated) < BOUND
        held = answer["held"]
        assert held.optimizer == pytest.approx(2 * P / N, rel=0.01)
        assert held.gradients == (P if stage == 1 else about_a_share)
        assert held.weights == (about_a_share if stage == 3 else P)
        assert answer["after"].gradients == 0
        if stage < 3:
            assert (answer["most_gradients"] < P) == (stage == 2)
        else:
            assert furthest(answer["gradients"], exact) < BOUND
            assert answer["left"] == 0, "the parameters that the model had hold nothing"
            assert answer["most_whole"] == 1, "one block at a time"
            assert answer["kept"] == 0, "autograd keeps no gathered weight"
    sent, in_step = (sum(a[key] for a in answers) for key in ("sent", "in_step"))
    per_backward, per_step = {1: (0, 2), 2: (1, 1), 3: (3, 0)}[stage]
    assert sent == per_backward * answers[0]["parts"] * (N - 1) * P
    assert in_step == per_step * (N - 1) * P


@pytest.mark.parametrize("spoil", ["decay", "own gradient"])
def test_zero_with_decaying_vectors_or_without_the_others_is_another_optimizer(ranks, spoil):
    _, _, updated = alone()
    for stage in (2, 3):
        for answer in ranks.run(zero_update, stage, spoil):
            assert furthest(answer["weights"], updated) > 1e-4


def torchs_shards() -> tuple[dict, dict]:
    """Gradients under `fully_shard`, which divides by the number of ranks, and updated weights."""
    rank, size = collectives.place()
    model = double_model()
    (batch,) = ragged_batches().micro_batches(0, None, rank, size)
    step = parallelise(Step(model, causal_lm), runtime.world(), "fsdp")
    loss_sum, count = step(batch)
    loss_sum.backward()
    found = {name: p.grad.full_tensor() * size for name, p in model.named_parameters()}
    updated = after_one_update(model, summed(count)[0] / size)
    return found, {name: p.full_tensor() for name, p in updated.items()}


def test_stage_three_agrees_with_fully_shard(ranks):
    _, exact, updated = alone()
    for found, weights in ranks.run(torchs_shards):
        assert furthest(found, exact) < BOUND
        assert furthest(weights, updated) < BOUND


# --- tensor parallel ---------------------------------------------------------------------------

SMALL = {"vocab_size": 32, "context_length": 16, "d_model": 32, "num_layers": 2, "d_ff": 64}
SHAPES = {
    "llama, grouped heads": TransformerConfig.llama(num_heads=8, num_kv_heads=4, **SMALL),
    "gpt2, biases, untied": TransformerConfig.gpt2(
        num_heads=4, dropout=0.0, tied_embeddings=False, **SMALL
    ),
}


def shaped(name: str, **changes) -> Transformer:
    """A model of this shape, whose biases are not 0."""
    torch.manual_seed(0)
    model = Transformer(dataclasses.replace(SHAPES[name], **changes)).double()
    for p in model.parameters():
        if p.ndim == 1:
            p.data += 0.1 * torch.randn_like(p)
    return model


def own_softmax(logits_nv, targets_n, first, group=None):
    """Naive: the softmax of one's own part of the vocabulary."""
    local_n = targets_n - first
    local_n[(local_n < 0) | (local_n >= logits_nv.shape[1])] = -100
    total = nn.functional.cross_entropy(logits_nv, local_n, ignore_index=-100, reduction="sum")
    return tensor.sum_out(total), (targets_n != -100).sum()


def early_bias(row: Row, x: torch.Tensor) -> torch.Tensor:
    """Naive: the bias before the sum, so once for each rank."""
    return tensor.sum_out(nn.functional.linear(x, row.weight, row.bias))


#: What is left out or done naively -> (where, name, instead).
SPOILT = {
    "no sum of gradients": (tensor, "copy_in", lambda x, group=None: x),
    "own softmax": (tensor, "vocabulary_cross_entropy", own_softmax),
    "early bias": (Row, "forward", early_bias),
}


def tensor_parallel_update(shape: str, spoil: str = "") -> dict:
    """One update of the whole batch by ranks that each have a part of every matrix."""
    model = shaped(shape)
    whole = sum(p.numel() for p in model.parameters())
    tensor_parallel(model)
    (batch,) = ragged_batches().micro_batches(0)
    with pytest.MonkeyPatch.context() as patch, collectives.counted() as sent:
        if spoil:
            patch.setattr(*SPOILT[spoil])
        loss_sum, count = vocabulary_lm(model, batch)
        loss_sum.backward()
    grads = whole_tensors(model, gradients=True)
    after_one_update(model, float(count))
    return {
        "loss": float(loss_sum.detach() / count), "gradients": grads,
        "weights": whole_tensors(model), "sent": sent.bytes, "positions": batch["labels"].numel(),
        "share": sum(p.numel() for p in model.parameters() if p.ndim == 2) / whole,
    }  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_tensor_parallel_equals_one_process(ranks, shape):
    loss, exact, updated = alone(shaped(shape))
    N, answers = ranks.size, ranks.run(tensor_parallel_update, shape)
    for answer in answers:
        assert answer["loss"] == pytest.approx(loss, rel=BOUND)
        assert furthest(answer["gradients"], exact) < BOUND
        assert furthest(answer["weights"], updated) < BOUND
        assert answer["share"] < 1.2 / N, "a rank has its share of the matrices"
    n, layers, D = answers[0]["positions"], SMALL["num_layers"], SMALL["d_model"]
    # Two sums a block forward and two backward, one at either end; the softmax: 2 sums, 1 gather.
    numbers = 2 * (4 * layers + 2) * n * D + (2 * 2 + 1 * N) * n
    assert sum(answer["sent"] for answer in answers) == 8 * (N - 1) * numbers


@pytest.mark.parametrize("spoil", SPOILT)
def test_tensor_parallel_done_naively_is_wrong(ranks, spoil):
    loss, exact, _ = alone(shaped("gpt2, biases, untied"))
    for answer in ranks.run(tensor_parallel_update, "gpt2, biases, untied", spoil):
        assert furthest(answer["gradients"], exact) > 1e-3
        if spoil != "no sum of gradients":
            assert answer["loss"] != pytest.approx(loss, rel=1e-4)


def two_layers(how: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Output and both own weight gradients of a feed-forward net, cut by us or by DTensor."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8)).double()
    x = torch.randn(4, 8, dtype=torch.float64)
    if how == "ours":
        net = nn.Sequential(Column(net[0]), net[1], Row(net[2]))
    else:
        mesh = init_device_mesh("cpu", (collectives.place()[1],))
        parallelize_module(net, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    y = net(x)
    y.square().sum().backward()
    own = [p.grad if how == "ours" else p.grad.to_local() for p in (net[0].weight, net[2].weight)]
    return y.detach(), *own


def test_column_and_row_cut_what_dtensor_cuts(ranks):
    for ours, theirs in zip(
        ranks.run(two_layers, "ours"), ranks.run(two_layers, "dtensor"), strict=True
    ):
        for a, b in zip(ours, theirs, strict=True):
            assert a.shape == b.shape
            assert_close(a, b, rtol=0, atol=1e-12)


def softmax_of_parts(how: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of logits cut by vocabulary and this rank's gradient, by us or by DTensor."""
    rank, size = collectives.place()
    logits, targets = some(0, 6, 32), torch.tensor([0, 31, 5, -100, 16, 17])
    own = logits.chunk(size, 1)[rank].clone().requires_grad_()
    if how == "ours":
        loss, _ = vocabulary_cross_entropy(own, targets, rank * own.shape[1])
        loss.backward()
        return loss.detach(), own.grad
    cut = DTensor.from_local(own, init_device_mesh("cpu", (size,)), [Shard(1)])
    with loss_parallel():
        loss = nn.functional.cross_entropy(cut, targets, reduction="sum")
        loss.backward()
    return loss.full_tensor().detach(), own.grad


def test_cross_entropy_of_a_cut_vocabulary_is_dtensors_and_the_whole_ones(ranks):
    logits = some(0, 6, 32).requires_grad_()
    targets = torch.tensor([0, 31, 5, -100, 16, 17])
    whole = nn.functional.cross_entropy(logits, targets, reduction="sum")
    whole.backward()
    parts = logits.grad.chunk(ranks.size, 1)
    for how in ("ours", "dtensor"):
        for (loss, own), part in zip(ranks.run(softmax_of_parts, how), parts, strict=True):
            assert_close(loss, whole.detach(), rtol=0, atol=1e-12)
            assert_close(own, part, rtol=0, atol=1e-12)


def refusal(how: str, changes: dict) -> str:
    """What is said instead of cutting the model."""
    cuts: dict[str, Callable] = {
        "tensor": tensor_parallel,
        "sequence": sequence_parallel,
        "ring": context_parallel,
        "pipeline": partial(Pipeline, objective=causal_lm),
    }
    with pytest.raises(LabError) as caught:
        cuts[how](shaped("llama, grouped heads", **changes))
    return str(caught.value)


@pytest.mark.parametrize(
    ("how", "changes", "said"),
    [
        ("tensor", {"vocab_size": 33}, "vocab_size 33 does not divide among"),
        ("sequence", {"kind": "encoder"}, "kind 'encoder' with dropout 0.0 is not cut"),
        ("ring", {"dropout": 0.1}, "kind 'decoder' with dropout 0.1 is not cut"),
        ("pipeline", {"dropout": 0.1}, "kind 'decoder' with dropout 0.1 is not cut"),
        ("pipeline", {"num_layers": 1}, "1 blocks are too few for"),
    ],
)
def test_what_cannot_be_cut_is_refused(ranks, how, changes, said):
    assert all(said in sentence for sentence in ranks.run(refusal, how, changes))


# --- pipeline parallel -------------------------------------------------------------------------

SCHEDULES = {"gpipe": gpipe, "1f1b": one_f_one_b}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("stages", "micros"), [(1, 3), (2, 2), (4, 8), (4, 2), (8, 32)])
def test_the_bubble_is_that_of_the_formula(schedule, stages, micros):
    done = simulate(SCHEDULES[schedule], stages, micros)
    assert bubble(done) == pytest.approx((stages - 1) / (micros + stages - 1))
    tasks = [SCHEDULES[schedule](stage, stages, micros) for stage in range(stages)]
    every = {(kind, i) for kind in "FB" for i in range(micros)}
    assert all(set(own) == every and len(own) == len(every) for own in tasks)


def test_a_single_micro_batch_leaves_all_stages_but_one_idle():
    assert bubble(simulate(gpipe, 4, 1)) == pytest.approx(3 / 4)


def test_the_drawings_are_what_the_schedules_do():
    for schedule in (gpipe, one_f_one_b):
        rows = [[" "] * 40 for _ in range(3)]
        for done in simulate(schedule, 3, 4):
            name = f"{done.task.kind}{done.task.micro}──"
            for i in range(int(2 * (done.ended - done.began))):
                rows[done.stage][int(2 * done.began) + i] = name[i]
        for stage, row in enumerate(rows):
            assert f"{stage}  {''.join(row).rstrip()}" in pipeline.__doc__


def pipeline_update(shape: str, schedule: str, spoil: bool = False) -> dict:
    """One update of the batch in eight micro-batches by ranks that have a part of the layers."""
    model = shaped(shape, num_layers=5)
    stage = Pipeline(model, causal_lm)
    if spoil:
        stage.tied = None
    loss_sum, count = stage.run(ragged_batches().micro_batches(0, 1), SCHEDULES[schedule])
    own = stage.named_parameters()
    found = {name: p.grad.clone() for name, p in own.items()}
    after_one_update(model, float(count))
    return {
        "loss": float(loss_sum / count), "gradients": found, "kept": stage.most_kept,
        "weights": {name: p.detach() for name, p in own.items()}, "ran": stage.timeline,
    }  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_pipeline_parallel_equals_one_process(ranks, shape, schedule):
    loss, exact, updated = alone(shaped(shape, num_layers=5))
    S, answers = ranks.size, ranks.run(pipeline_update, shape, schedule)
    for stage, answer in enumerate(answers):
        assert answer["loss"] == pytest.approx(loss, rel=BOUND)
        for key, whole in (("gradients", exact), ("weights", updated)):
            own = answer[key]
            assert furthest(own, {name: whole[name] for name in own}) < BOUND
        assert answer["kept"] == (8 if schedule == "gpipe" else S - stage)
        assert [d.task for d in answer["ran"]] == SCHEDULES[schedule](stage, S, 8)
    held = [name for answer in answers for name in answer["weights"]]
    twice = {name for name in held if held.count(name) > 1}
    assert set(held) == set(updated)
    assert twice == ({"embedding.weight"} if "llama" in shape else set())


def test_a_tied_table_needs_the_gradients_of_both_ends(ranks):
    _, exact, _ = alone(shaped("llama, grouped heads", num_layers=5))
    answers = ranks.run(pipeline_update, "llama, grouped heads", "1f1b", True)
    for answer in (answers[0], answers[-1]):
        wrong = {"embedding.weight": answer["gradients"]["embedding.weight"]}
        assert furthest(wrong, {"embedding.weight": exact["embedding.weight"]}) > 1e-2


def waiting_stages(schedule: str, micros: int, forward: float) -> list[pipeline.Done]:
    """What a stage did when, if a pass through a block takes `forward` or twice as many seconds."""
    stages = collectives.place()[1]
    model = shaped("llama, grouped heads", num_layers=stages)
    for block in model.blocks:
        block.register_forward_pre_hook(lambda *_: time.sleep(forward))
        block.register_full_backward_hook(lambda *_: time.sleep(2 * forward))
    stage = Pipeline(model, causal_lm)
    (batch,) = ragged_batches(batch_size=1).micro_batches(0)
    stage.run([batch] * micros, SCHEDULES[schedule])
    return stage.timeline


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_bubble_of_processes_is_that_of_the_formula(ranks, schedule):
    """Passes that sleep need no processor: the stages' times overlap on any machine."""
    ranks.run(waiting_stages, schedule, 2, 0.0)  # the first pass of a process is slow
    for micros in (2, 6):
        formula = (ranks.size - 1) / (micros + ranks.size - 1)
        for _ in range(3):  # other work on the machine lengthens some pass or other
            answers = ranks.run(waiting_stages, schedule, micros, 0.05)
            found = bubble([done for timeline in answers for done in timeline])
            if found == pytest.approx(formula, abs=0.06):
                break
        assert found == pytest.approx(formula, abs=0.06), micros


# --- sequence parallel, ring attention ---------------------------------------------------------


def sequence_parallel_update(shape: str, spoil: bool = False) -> dict:
    """One update of the whole batch, norms and residual stream cut by position."""
    (batch,) = ragged_batches().micro_batches(0)
    kept = {}
    for how in (tensor_parallel, sequence_parallel):
        model = how(shaped(shape))
        loss = partial(lambda model: vocabulary_lm(model, batch)[0], model)
        kept[how.__name__] = measure_memory(model, loss)
    with pytest.MonkeyPatch.context() as patch, collectives.counted() as sent:
        if spoil:
            patch.setattr(sequence, "total", lambda gradient, group: gradient)
        loss_sum, count = vocabulary_lm(model, batch)
        loss_sum.backward()
    grads = whole_tensors(model, gradients=True)
    after_one_update(model, float(count))
    return {
        "loss": float(loss_sum.detach() / count), "gradients": grads, "sent": sent.bytes,
        "weights": whole_tensors(model), "positions": batch["labels"].numel(),
        "kept": {name: memory.activations for name, memory in kept.items()},
    }  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_sequence_parallel_equals_one_process_and_keeps_less(ranks, shape):
    loss, exact, updated = alone(shaped(shape))
    N, answers = ranks.size, ranks.run(sequence_parallel_update, shape)
    for answer in answers:
        assert answer["loss"] == pytest.approx(loss, rel=BOUND)
        assert furthest(answer["gradients"], exact) < BOUND
        assert furthest(answer["weights"], updated) < BOUND
        kept = answer["kept"]
        assert kept["sequence_parallel"] < (0.85 if N == 2 else 0.65) * kept["tensor_parallel"]
    n, layers, D = answers[0]["positions"], SMALL["num_layers"], SMALL["d_model"]
    # Halves of a sum: 4 a block forward, 6 backward, 6 at the ends; the softmax as before.
    sums = [name for name in exact if "norm" in name or name.endswith(("out.bias", "down.bias"))]
    in_part = sum(exact[name].numel() for name in sums)
    numbers = (10 * layers + 6) * n * D + (2 * 2 + 1 * N) * n + 2 * in_part
    assert sum(answer["sent"] for answer in answers) == 8 * (N - 1) * numbers


def test_norms_of_some_positions_need_the_gradients_of_the_others(ranks):
    shape = "llama, grouped heads"
    _, exact, _ = alone(shaped(shape))
    for answer in ranks.run(sequence_parallel_update, shape, True):
        norms = {name for name in exact if "norm" in name}
        wrong = {name: answer["gradients"][name] for name in norms}
        assert furthest(wrong, {name: exact[name] for name in norms}) > 1e-2
        right = {name: answer["gradients"][name] for name in set(exact) - norms}
        assert furthest(right, {name: exact[name] for name in right}) < BOUND


def visible_by_place(rank: int, source: int, size: int, T: int, zigzag: bool) -> torch.Tensor:
    """Naive: the causal mask of one stripe for every stripe."""
    return torch.ones(T, T, dtype=torch.bool).tril()


def visible_at_home(rank: int, source: int, size: int, T: int, zigzag: bool) -> torch.Tensor:
    """Naive: nobody visits."""
    return torch.full((T, T), rank == source).tril()


def ring_update(shape: str, zigzag: bool, visible: Callable | None = None) -> dict:
    """One update, every rank with its own positions of every sequence."""
    model = context_parallel(shaped(shape), zigzag)
    (batch,) = ragged_batches().micro_batches(0)
    copies = DataParallel(model)
    with pytest.MonkeyPatch.context() as patch:
        if visible is not None:
            patch.setattr(ring_attention, "_visible", visible)
        loss_sum, count = causal_lm(model, own_positions(batch, zigzag=zigzag))
        loss_sum.backward()
    copies.finish()
    loss, total = summed(loss_sum.detach(), count)
    grads = gradients(model)
    return {"loss": loss / total, "gradients": grads, "weights": after_one_update(model, total)}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("zigzag", [True, False])
def test_ring_attention_equals_one_process(ranks, shape, zigzag):
    loss, exact, updated = alone(shaped(shape))
    for answer in ranks.run(ring_update, shape, zigzag):
        assert answer["loss"] == pytest.approx(loss, rel=BOUND)
        assert furthest(answer["gradients"], exact) < BOUND
        assert furthest(answer["weights"], updated) < BOUND


@pytest.mark.parametrize("visible", [visible_by_place, visible_at_home])
def test_a_ring_that_masks_by_place_or_stays_at_home_is_wrong(ranks, visible):
    shape = "llama, grouped heads"
    _, exact, _ = alone(shaped(shape))
    for answer in ranks.run(ring_update, shape, True, visible):
        assert furthest(answer["gradients"], exact) > 1e-2


def what_the_ring_takes(length: int) -> tuple[int, int, int]:
    """(bytes kept, sent forward, sent backward) of attention with 2 of 4 heads for keys."""
    rank, size = collectives.place()
    own = len(positions(rank, size, length))
    q = torch.randn(1, 4, own, 8, requires_grad=True)
    k, v = (torch.randn(1, 2, own, 8, requires_grad=True) for _ in range(2))
    kept = []
    with (
        collectives.counted() as forward,
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t),
    ):
        out = ring_attention.ring_attention(q, k, v)
    with collectives.counted() as backward:
        out.sum().backward()
    return sum(t.nbytes for t in kept), forward.bytes, backward.bytes


def test_the_ring_keeps_no_scores_and_sends_keys_and_values(ranks):
    N, length = ranks.size, 64
    for short, long in zip(
        ranks.run(what_the_ring_takes, length),
        ranks.run(what_the_ring_takes, 2 * length),
        strict=True,
    ):
        assert long[0] == 2 * short[0], "what is kept grows with T, not with its square"
        keys_and_values = 2 * 2 * (length // N) * 8 * 4
        assert short[1:] == ((N - 1) * keys_and_values, (2 * N - 1) * keys_and_values)


@pytest.mark.parametrize("size", [2, 4, 8])
def test_zigzag_gives_every_rank_the_same_number_of_pairs(size):
    def pairs(zigzag: bool) -> list[int]:
        length = 16 * size
        return [int((positions(r, size, length, zigzag) + 1).sum()) for r in range(size)]

    assert len(set(pairs(True))) == 1
    stripes = pairs(False)
    assert stripes[-1] > (2 * size - 2) * stripes[0]
    assert sum(stripes) == sum(pairs(True))
    with pytest.raises(LabError, match=f"9 positions do not divide into {2 * size} pieces"):
        positions(0, size, 9)


# --- what the accounting says ------------------------------------------------------------------


def test_the_accounting_counts_the_bytes_that_were_sent(ranks):
    """In float64 here, in 2 bytes there."""
    N, shape = ranks.size, "llama, grouped heads"
    answers = ranks.run(tensor_parallel_update, shape)
    n, D = answers[0]["positions"], SMALL["d_model"]
    plan = Plan(tp=N, micro_batch=n // 16)
    predicted = predict_update(SHAPES[shape], "A100 (80 GB)", plan, n // 16, 16).sent
    at_the_ends = 8 * (N - 1) * (4 * n * D + (4 + N) * n)
    assert 4 * N * predicted["tensor"] == sum(a["sent"] for a in answers) - at_the_ends
    shape = {"num_heads": 4, "num_kv_heads": 2, "num_layers": 1}
    config = dataclasses.replace(SHAPES["llama, grouped heads"], **shape)
    ring = predict_update(config, "A100 (80 GB)", Plan(cp=N), 1, 64).sent["context"]
    assert all(2 * ring == sum(a[1:]) for a in ranks.run(what_the_ring_takes, 64)), "in float32"
    config = tiny_model().config
    for stage in (1, 3):
        answers = ranks.run(zero_update, stage)
        plan = Plan(dp=N, zero=stage, micro_batch=4 // N)
        predicted = predict_update(config, "A100 (80 GB)", plan, 8, 16).sent
        sent = sum(answer["sent"] + answer["in_step"] for answer in answers)
        assert 4 * N * predicted["data"] == pytest.approx(sent)
