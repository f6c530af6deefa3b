"""Many processes by hand: each way to divide the work against one process, and what is sent."""

import os

import pytest
import torch
import torch.distributed as dist
from torch.testing import assert_close

from labkit.errors import LabError
from labkit.parallel import Ranks, collectives

pytestmark = pytest.mark.multi


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request):
    with Ranks(request.param) as started:
        yield started


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
        with pytest.raises(LabError, match=r"ranks \[1\] of 2 did not answer within 0.5 s"):
            two.run(lambda: dist.recv(torch.zeros(1), 0) if dist.get_rank() else None)
    with pytest.raises(LabError, match="65 ranks"):
        Ranks(65)


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
