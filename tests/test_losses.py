"""losses: sums and counts, never means; values against torch and by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from labkit.errors import LabError
from labkit.objectives import losses


def random_problem(n=37, v=11, d=5):
    hidden = torch.randn(n, d, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(v, d, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(v, (n,))
    targets[::4] = losses.IGNORE_INDEX
    return hidden, weight, targets


def test_sum_and_count_leave_ignored_targets_out():
    hidden, weight, targets = random_problem()
    total, count = losses.cross_entropy(hidden @ weight.T, targets)
    kept = targets != losses.IGNORE_INDEX
    log_p = torch.log_softmax(hidden @ weight.T, -1)[kept]
    torch.testing.assert_close(total, -log_p[torch.arange(len(log_p)), targets[kept]].sum())
    assert int(count) == int(kept.sum())


def test_all_targets_ignored_is_zero_not_nan():
    total, count = losses.cross_entropy(torch.randn(3, 4), torch.full((3,), -100))
    assert (float(total), int(count)) == (0.0, 0)


def test_gradient_is_p_minus_y():
    logits = torch.randn(6, 9, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(9, (6,))
    losses.cross_entropy(logits, targets)[0].backward()
    expected = logits.detach().softmax(-1) - F.one_hot(targets, 9)
    torch.testing.assert_close(logits.grad, expected)


def test_huge_logits_stay_finite():
    total, _ = losses.cross_entropy(torch.tensor([[1e4, 0.0]]), torch.tensor([1]))
    assert float(total) == pytest.approx(1e4)


def test_label_smoothing_mixes_one_hot_with_uniform():
    logits = torch.randn(5, 4, dtype=torch.float64)
    targets = torch.randint(4, (5,))
    smooth = 0.9 * F.one_hot(targets, 4) + 0.1 / 4
    expected = -(smooth * logits.log_softmax(-1)).sum()
    torch.testing.assert_close(losses.cross_entropy(logits, targets, 0.1)[0], expected)


def test_half_precision_logits_are_reduced_in_fp32():
    logits = torch.randn(4, 7).bfloat16()
    assert losses.cross_entropy(logits, torch.tensor([0, 1, 2, 3]))[0].dtype == torch.float32


@pytest.mark.parametrize("target", [-1, 4, 99])
def test_target_out_of_range_is_named(target):
    with pytest.raises(LabError, match=rf"target {target} is out of range: use 0 to 3"):
        losses.cross_entropy(torch.zeros(1, 4), torch.tensor([target]))


def test_label_smoothing_out_of_range_is_named():
    with pytest.raises(LabError, match=r"label_smoothing 1\.5"):
        losses.cross_entropy(torch.zeros(1, 4), torch.tensor([0]), 1.5)


@pytest.mark.parametrize("chunk", [1, 5, 37, 1000])
def test_chunked_equals_plain_in_loss_and_gradients(chunk):
    hidden, weight, targets = random_problem()
    plain, count = losses.cross_entropy(hidden @ weight.T, targets)
    expected = torch.autograd.grad(plain * 0.3, (hidden, weight))
    chunked, chunked_count = losses.chunked_cross_entropy(hidden, weight, targets, chunk)
    got = torch.autograd.grad(chunked * 0.3, (hidden, weight))
    torch.testing.assert_close(chunked, plain)
    assert int(chunked_count) == int(count)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_chunked_never_holds_all_logits():
    n, v, d, chunk = 512, 4000, 8, 32
    hidden = torch.randn(n, d, requires_grad=True)
    weight = torch.randn(v, d, requires_grad=True)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: sizes.append(t.numel()) or t, lambda t: t
    ):
        losses.chunked_cross_entropy(hidden, weight, torch.zeros(n, dtype=torch.long), chunk)
    assert max(sizes) <= max(n * d, v * d)


def test_chunked_computes_no_row_that_does_not_count():
    hidden, weight = torch.randn(40, 8, requires_grad=True), torch.randn(30, 8, requires_grad=True)
    targets = torch.full((40,), -100)
    targets[[3, 17, 18]] = torch.tensor([1, 5, 29])
    with FlopCounterMode(display=False) as counter:
        total, count = losses.chunked_cross_entropy(hidden, weight, targets)
    assert counter.get_total_flops() == 3 * 2 * 3 * 30 * 8
    assert int(count) == 3
    gradient = torch.autograd.grad(total, hidden)[0]
    assert set(gradient.abs().sum(dim=1).nonzero().flatten().tolist()) == {3, 17, 18}


def test_chunked_follows_autocast():
    hidden, weight = torch.randn(16, 8), torch.randn(50, 8)
    targets = torch.randint(50, (16,))
    with torch.autocast("cpu", torch.bfloat16):
        half, _ = losses.chunked_cross_entropy(hidden, weight, targets)
    full, _ = losses.chunked_cross_entropy(hidden, weight, targets)
    assert half != full
    torch.testing.assert_close(half, full, rtol=2e-2, atol=0.0)


def test_chunk_out_of_range_is_named():
    with pytest.raises(LabError, match="chunk 0 is out of range"):
        losses.chunked_cross_entropy(
            torch.zeros(1, 2), torch.zeros(3, 2), torch.zeros(1, dtype=torch.long), 0
        )


def test_binary_agrees_with_two_class_softmax():
    z = torch.randn(20, dtype=torch.float64) * 50
    y = torch.randint(2, (20,))
    binary, count = losses.binary_cross_entropy(z, y)
    two = torch.stack([torch.zeros_like(z), z], -1)
    torch.testing.assert_close(binary, losses.cross_entropy(two, y)[0])
    assert int(count) == 20


def test_binary_refuses_class_indices():
    with pytest.raises(LabError, match="use cross_entropy"):
        losses.binary_cross_entropy(torch.zeros(2), torch.tensor([0, 3]))


def test_a_chunk_is_smaller_for_a_large_vocabulary():
    """What a chunk holds does not grow with the vocabulary."""
    assert losses.positions_at_once(4096) == 1024
    assert losses.positions_at_once(49_152) == 341
    assert losses.positions_at_once(10**9) == 1
    for vocab in (20_000, 49_152, 152_000):
        assert losses.positions_at_once(vocab) * vocab <= 2**24
