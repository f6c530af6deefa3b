"""The linear-chain CRF: equal to summing over every path, and the naive variants are not."""

import itertools
import math

import pytest
import torch
from torch.testing import assert_close

from labkit.batches import IGNORE_INDEX
from labkit.errors import LabError
from labkit.models import LinearChainCRF, bio_constraints
from labkit.models.crf import Constraints
from labkit.text import bio

TAGS = bio.tag_names(["A", "B"])


def field(constraints=None, num_tags: int = 3, seed: int = 0, rate: float = 1.0) -> LinearChainCRF:
    """A field with random scores in float64."""
    torch.manual_seed(seed)
    crf = LinearChainCRF(num_tags, constraints, rate).double()
    for parameter in crf.parameters():
        torch.nn.init.normal_(parameter)
    return crf


def ragged(lengths, T: int) -> torch.Tensor:
    return torch.arange(T) < torch.tensor(lengths)[:, None]


def every_path(crf: LinearChainCRF, emissions_TK: torch.Tensor) -> dict[tuple[int, ...], float]:
    """Path -> score, by the definition."""
    start, end, step = (x.tolist() for x in crf.scores())
    found = {}
    for path in itertools.product(range(crf.num_tags), repeat=len(emissions_TK)):
        score = start[path[0]] + end[path[-1]]
        score += sum(float(emissions_TK[t, k]) for t, k in enumerate(path))
        score += sum(step[i][j] for i, j in itertools.pairwise(path))
        found[path] = score
    return found


def log_sum(scores) -> float:
    top = max(scores)
    return top + math.log(math.fsum(math.exp(s - top) for s in scores))


SETTINGS = [
    pytest.param(None, 3, id="free"),
    pytest.param(bio_constraints(TAGS), len(TAGS), id="BIO"),
]


@pytest.mark.parametrize(("constraints", "K"), SETTINGS)
@pytest.mark.parametrize("T", [1, 2, 4])
def test_everything_equals_brute_force_over_all_paths_and_all_lengths(constraints, K, T):
    crf = field(constraints, K, rate=3.0)
    lengths = list(range(1, T + 1))
    emissions, mask = 2 * torch.randn(T, T, K).double(), ragged(lengths, T)
    log_z, marginals = crf.log_partition(emissions, mask), crf.marginals(emissions, mask)
    tags, best = crf.decode(emissions, mask)
    for row, length in enumerate(lengths):
        paths = every_path(crf, emissions[row, :length])
        whole = log_sum(list(paths.values()))
        assert abs(float(log_z[row].detach()) - whole) < 1e-8
        for t, k in itertools.product(range(length), range(K)):
            p = math.fsum(math.exp(s - whole) for path, s in paths.items() if path[t] == k)
            assert abs(float(marginals[row, t, k].detach()) - p) < 1e-8
        likeliest = max(paths, key=paths.__getitem__)
        assert tuple(tags[row, :length].tolist()) == likeliest
        assert abs(float(best[row]) - paths[likeliest]) < 1e-8
        assert (tags[row, length:] == IGNORE_INDEX).all()
        assert not marginals[row, length:].any()
        given = torch.zeros(1, T, dtype=torch.long)
        for path, score in paths.items():
            given[0, :length] = torch.tensor(path)
            said = float(crf.score(emissions[row : row + 1], given, mask[row : row + 1]).detach())
            assert said == score == -math.inf or abs(said - score) < 1e-8
    assert_close(crf.marginals_by_gradient(emissions, mask), marginals, atol=1e-8, rtol=0)


@pytest.mark.parametrize(("constraints", "K"), SETTINGS)
def test_the_gradient_is_expected_less_observed_counts(constraints, K):
    crf, T = field(constraints, K), 4
    emissions = torch.randn(1, T, K).double().requires_grad_()
    right = torch.tensor([[0, 1, 2, 0]])
    loss, count = crf(emissions, right)
    loss.backward()
    paths = every_path(crf, emissions.detach()[0])
    whole = log_sum(list(paths.values()))
    steps, start, end = torch.zeros(K, K), torch.zeros(K), torch.zeros(K)
    for path, p in [(path, math.exp(s - whole)) for path, s in paths.items()] + [
        (tuple(right[0].tolist()), -1.0)
    ]:
        start[path[0]] += p
        end[path[-1]] += p
        for i, j in itertools.pairwise(path):
            steps[i, j] += p
    assert int(count) == T
    assert_close(crf.transitions_KK.grad, steps.double(), atol=1e-6, rtol=0)
    assert_close(crf.start_K.grad, start.double(), atol=1e-6, rtol=0)
    assert_close(crf.end_K.grad, end.double(), atol=1e-6, rtol=0)
    observed = torch.nn.functional.one_hot(right, K)
    expected = crf.marginals(emissions.detach())
    assert_close(emissions.grad, expected - observed, atol=1e-8, rtol=0)


def test_gradients_by_finite_differences():
    crf, mask = field(bio_constraints(TAGS), len(TAGS)), ragged([4, 2, 0], 4)
    right = torch.tensor([[0, 1, 2, 0], [3, 4, 0, 0], [0, 0, 0, 0]])

    def loss(emissions):
        return crf(emissions, right, mask)[0]

    emissions = torch.randn(3, 4, len(TAGS)).double().requires_grad_()
    assert torch.autograd.gradcheck(loss, (emissions,))


def test_what_stands_in_padding_changes_nothing_whatever_it_is():
    crf, mask = field(), ragged([4, 2, 1], 4)
    right = torch.tensor([[0, 1, 2, 0], [1, 1, 0, 0], [2, 0, 0, 0]])
    emissions = torch.randn(3, 4, 3).double()
    dirty = emissions.masked_fill(~mask.unsqueeze(-1), 1e30)
    loss, count = crf(emissions, right, mask)
    assert int(count) == 7
    assert torch.equal(crf(dirty, right.masked_fill(~mask, IGNORE_INDEX), mask)[0], loss)
    rows = zip(emissions, right, (4, 2, 1), strict=True)
    one_by_one = [crf(e[None, :n], r[None, :n])[0] for e, r, n in rows]
    assert_close(loss, torch.stack(one_by_one).sum(), atol=1e-10, rtol=0)
    cut = dirty.clone().requires_grad_()
    crf(cut, right, mask)[0].backward()
    assert not cut.grad[~mask].any()
    assert cut.grad.isfinite().all()


def test_naive_variants_are_wrong():
    """No start and end; and scores masked by multiplying, as in a softmax of too many places."""
    crf, mask = field(), ragged([4, 2], 4)
    emissions = torch.randn(2, 4, 3).double()
    log_z = crf.log_partition(emissions, mask)
    multiplied = crf.log_partition(emissions * mask.unsqueeze(-1))  # padding scores 0, and counts
    assert abs(float((multiplied - log_z)[1].detach())) > 0.1
    bare = LinearChainCRF(3).double()
    bare.load_state_dict(crf.state_dict() | {"start_K": torch.zeros(3), "end_K": torch.zeros(3)})
    assert ((bare.log_partition(emissions, mask) - log_z).abs() > 1e-3).all()
    right = torch.zeros(2, 4, dtype=torch.long)
    assert (
        abs(float((bare(emissions, right, mask)[0] - crf(emissions, right, mask)[0]).detach()))
        > 0.1
    )


def test_a_row_without_a_word_adds_exactly_nothing():
    crf = field()
    emissions = torch.randn(2, 3, 3).double().requires_grad_()
    right, mask = torch.zeros(2, 3, dtype=torch.long), ragged([3, 0], 3)
    loss, count = crf(emissions, right, mask)
    alone, _ = crf(emissions[:1], right[:1])
    assert torch.equal(loss, alone)
    assert int(count) == 3
    nothing, none = crf(emissions, right, ragged([0, 0], 3))
    nothing.backward()
    assert (float(nothing.detach()), int(none)) == (0.0, 0)
    assert not emissions.grad.any()
    assert not crf.transitions_KK.grad.any()


def test_at_zero_scores_it_is_a_softmax_on_each_word():
    crf = LinearChainCRF(4).double()
    emissions, right = torch.randn(2, 5, 4).double(), torch.randint(4, (2, 5))
    loss, _ = crf(emissions, right)
    plain = torch.nn.functional.cross_entropy(
        emissions.flatten(0, 1), right.flatten(), reduction="sum"
    )
    assert_close(loss, plain, atol=1e-10, rtol=0)


def test_no_forbidden_path_has_a_chance_and_no_forbidden_score_a_gradient():
    crf = field(bio_constraints(TAGS), len(TAGS))
    emissions = torch.zeros(1, 6, len(TAGS)).double()
    emissions[..., TAGS.index("I-A")] = 50.0  # the net would say I-A at every word
    tags, _ = crf.decode(emissions)
    said = [TAGS[k] for k in tags[0].tolist()]
    bio.check_tags(said)
    assert said == ["B-A", *["I-A"] * 5]
    assert float(crf.marginals(emissions)[0, 0, TAGS.index("I-A")]) == 0
    right = torch.tensor([[TAGS.index(tag) for tag in said]])
    crf(emissions, right)[0].backward()
    forbidden = ~crf.step_allowed_KK
    assert crf.transitions_KK.grad.isfinite().all()
    assert not crf.transitions_KK.grad[forbidden].any()
    assert crf.transitions_KK.grad[~forbidden].any()
    free = field(None, len(TAGS))
    assert TAGS[free.decode(emissions)[0][0, 0]] == "I-A", "without constraints the row begins so"


def test_stable_at_512_words_with_scores_of_ten_thousand():
    """float32 against float64; summed naively in float32, even the loss per word is wrong."""
    exact = field(bio_constraints(TAGS), len(TAGS))
    single = LinearChainCRF(len(TAGS), bio_constraints(TAGS))
    single.load_state_dict({k: v.float() for k, v in exact.state_dict().items()})
    exact.load_state_dict({k: v.double() for k, v in single.state_dict().items()})
    emissions = (1e4 * torch.randn(2, 512, len(TAGS))).requires_grad_()
    right, score = single.decode(emissions.detach())
    assert_close(exact.decode(emissions.detach().double())[1], score, rtol=1e-7, atol=0)
    right[:, 100:105] = TAGS.index("O")
    right[:, 105] = TAGS.index("B-A")
    right = torch.tensor(
        [[TAGS.index(t) for t in bio.repaired([TAGS[k] for k in row])] for row in right.tolist()]
    )
    loss, _ = single(emissions, right)
    wanted, _ = exact(emissions.detach().double(), right)
    loss.backward()
    assert loss.dtype == torch.float32
    assert_close(loss.detach().double(), wanted.detach(), rtol=1e-6, atol=0)
    assert emissions.grad.isfinite().all()
    start, end, step = single.scores()
    alpha = start + emissions[:, 0]
    for t in range(1, 512):
        alpha = torch.logsumexp(alpha.unsqueeze(2) + step, 1) + emissions[:, t]
    naive = torch.logsumexp(alpha + end, 1) - single.score(emissions, right).float()
    assert abs(float(naive.sum().detach()) - float(wanted.detach())) > 1e-6 * float(wanted.detach())


def test_under_bf16_autocast_the_field_computes_in_float32():
    crf = LinearChainCRF(4)
    torch.nn.init.normal_(crf.transitions_KK)
    hidden, head = torch.randn(2, 30, 8), torch.nn.Linear(8, 4)
    right = torch.randint(4, (2, 30))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        emissions = head(hidden)
        assert emissions.dtype == torch.bfloat16
        loss, _ = crf(emissions, right)
    plain, _ = crf(emissions.detach().float(), right)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, plain)
    loss.backward()
    assert head.weight.grad.isfinite().all()


def test_rate_moves_the_scores_and_not_the_loss():
    slow, fast = field(), LinearChainCRF(3, rate=50.0).double()
    fast.load_state_dict({name: value / 50 for name, value in slow.state_dict().items()})
    emissions, right = torch.randn(2, 5, 3).double(), torch.randint(3, (2, 5))
    assert_close(fast(emissions, right)[0], slow(emissions, right)[0], atol=1e-10, rtol=0)
    for crf in (slow, fast):
        optimizer = torch.optim.Adam(crf.parameters(), lr=1e-3)
        before = crf.scores()[2].detach().clone()
        crf(emissions, right)[0].backward()
        optimizer.step()
        moved = (crf.scores()[2].detach() - before).abs().max()
        assert_close(float(moved), 1e-3 * crf.rate, rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda c, e, y: c(e, y, torch.tensor([[True, False, True]])), "padding before a word"),
        (lambda c, e, y: c(e, y, torch.tensor([[True, True]])), r"shape \(1, 2\): give \(1, 3\)"),
        (lambda c, e, y: c(e, y + 5), "tag 5 is out of range: use 0 to 4"),
        (lambda c, e, y: c(e, y - 1), "tag -1 is out of range"),
        (lambda c, e, y: c(e[..., :4], y), "emissions have 4 tags at 3 places: give 5"),
        (lambda c, e, y: c(e, y + 2), "tags of row 0 break the constraints"),
        (lambda c, e, y: LinearChainCRF(0), "num_tags 0"),
        (lambda c, e, y: LinearChainCRF(3, bio_constraints(TAGS)), r"need \(3,\) and \(3, 3\)"),
        (
            lambda c, e, y: LinearChainCRF(
                2, Constraints(torch.ones(2) > 0, torch.zeros(2, 2) > 0)
            ),
            "no way to begin or to go on",
        ),
    ],
)
def test_what_does_not_fit_is_one_sentence(call, said):
    crf = LinearChainCRF(len(TAGS), bio_constraints(TAGS))
    emissions, right = torch.randn(1, 3, len(TAGS)), torch.zeros(1, 3, dtype=torch.long)
    with pytest.raises(LabError, match=said):
        call(crf, emissions, right)
