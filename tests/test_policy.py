"""Learning from rewards: each estimator against the exact gradient, rollouts, denominators."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from training import tiny_model

from labkit import runtime
from labkit.errors import LabError
from labkit.evaluation import mean_pass_at_k
from labkit.evaluation.pass_at_k import pass_at_k
from labkit.generation import Rollouts, sample_answers
from labkit.objectives import (
    PolicyGradient,
    PrefixTable,
    answer_batch,
    clipped_surrogate,
    every_answer,
    expected_reward,
    group_advantages,
    kl_estimate,
    over_denominator,
    token_log_probs,
)
from labkit.text import arithmetic
from labkit.training import TrainConfig, train

V, LONGEST, GROUP = 4, 3, 4
ANSWERS = every_answer(V, LONGEST)
ENDED = every_answer(V, LONGEST, end_id=0)


def rewarded(answer: list[int]) -> float:
    """Something that depends on every token, with a large constant for baselines to take away."""
    return 3.0 + answer.count(1) - 0.5 * answer[0] + (answer == sorted(answer))


@pytest.fixture
def table() -> PrefixTable:
    torch.manual_seed(1)
    return PrefixTable(V, LONGEST).double()


def gradient(model: PrefixTable, loss: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss, model.logits, retain_graph=True)[0].flatten()


def scores_and_chances(table: PrefixTable, answers=ANSWERS) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient of log p of every answer, one a row, and p of each."""
    log_p = token_log_probs(table, answer_batch([table.start_id], answers)).sum(1)
    return torch.stack([gradient(table, each) for each in log_p]), log_p.detach().exp()


# --- the exact gradient and its estimators -----------------------------------------------------


@pytest.mark.parametrize("end_id", [None, 0])
def test_the_answers_are_all_there_are(table, end_id):
    answers = every_answer(V, LONGEST, end_id)
    assert len(answers) == len({tuple(a) for a in answers}) == (40 if end_id == 0 else 64)
    _, chances = scores_and_chances(table, answers)
    assert_close(chances.sum().item(), 1.0, rtol=0, atol=1e-12)


def test_the_exact_gradient_is_the_sum_over_all_answers(table):
    exact = gradient(table, expected_reward(table, [V], ANSWERS, rewarded))
    scores_AN, p_A = scores_and_chances(table)
    by_hand = (p_A * torch.tensor([rewarded(a) for a in ANSWERS])) @ scores_AN
    assert_close(exact, by_hand, rtol=0, atol=1e-12)


def estimates(table: PrefixTable, kind: str, updates: int = 20_000) -> torch.Tensor:
    """So many estimates of the gradient, each from a group of answers that the table wrote."""
    scores_AN, p_A = scores_and_chances(table)
    random = torch.Generator().manual_seed(0)
    drawn = torch.multinomial(p_A.expand(updates, -1), GROUP, True, generator=random)
    rewards = torch.tensor([rewarded(a) for a in ANSWERS])[drawn]
    advantages = group_advantages(rewards, kind).double()
    return torch.einsum("ug,ugn->un", advantages, scores_AN[drawn]) / GROUP


def furthest(found: torch.Tensor, exact: torch.Tensor) -> float:
    """The largest distance of a mean from the truth, in its standard errors."""
    error = found.std(0) / math.sqrt(len(found))
    return float(((found.mean(0) - exact).abs() / error).max())


@pytest.fixture
def exact(table) -> torch.Tensor:
    return gradient(table, expected_reward(table, [V], ANSWERS, rewarded))


def test_unbiased_estimators_agree_with_the_exact_gradient_and_the_others_do_not(table, exact):
    found = {k: estimates(table, k) for k in ("reward", "leave_one_out", "mean", "scaled")}
    assert furthest(found["reward"], exact) < 4
    assert furthest(found["leave_one_out"], exact) < 4
    assert furthest(found["mean"], exact) > 8, "the answer's own reward is in its baseline"
    assert furthest(found["mean"] * GROUP / (GROUP - 1), exact) < 4
    assert furthest(found["scaled"], exact) > 8


def test_no_single_factor_makes_the_scaled_advantage_right(table, exact):
    scaled = estimates(table, "scaled")
    factor = float(scaled.mean(0) @ exact / (scaled.mean(0) @ scaled.mean(0)))
    assert furthest(factor * scaled, exact) > 8


def test_a_baseline_takes_variance_away(table):
    spread = {k: float(estimates(table, k).var(0).sum()) for k in ("reward", "leave_one_out")}
    assert spread["leave_one_out"] < spread["reward"] / 3


def rolled(table: PrefixTable, answers: list[list[int]], advantages: list[float]) -> dict:
    batch = answer_batch([table.start_id], answers)
    batch["sampled_log_probs"] = token_log_probs(table, batch).detach()
    batch["advantages"] = torch.as_tensor(advantages, dtype=torch.float64)
    return batch


@pytest.mark.parametrize("clip", [None, (0.2, 0.2)])
def test_the_constant_denominator_has_the_gradient_of_the_expected_reward(table, clip):
    """Every answer once, weighted by p R: the objective's gradient is -1/(A L) of the exact one."""
    _, p_A = scores_and_chances(table, ENDED)
    weights = (p_A * torch.tensor([rewarded(a) for a in ENDED])).tolist()
    exact = gradient(table, expected_reward(table, [V], ENDED, rewarded))
    for per in ("constant", "answer", "token"):
        objective = PolicyGradient(per=per, longest=LONGEST, clip=clip)
        total, count = objective(table, rolled(table, ENDED, weights))
        found = -gradient(table, total / count)
        if per == "constant":
            assert_close(found * len(ENDED) * LONGEST, exact, rtol=0, atol=1e-12)
        else:
            cosine = torch.cosine_similarity(found, exact, dim=0)
            along = float(found @ exact / (exact @ exact))
            apart = float((found / along - exact).norm() / exact.norm())
            # one factor makes the mean of DAPO's right, only per answer is another direction
            assert (apart > 0.1 and cosine < 0.999) == (per == "answer")


def test_a_ratio_of_each_token_is_not_the_ratio_of_the_answer(table, exact):
    """Off-policy the whole answer's ratio is right on the mean; a token's is near, with less
    spread; no ratio at all is further away."""
    torch.manual_seed(2)
    old = copy.deepcopy(table)
    with torch.no_grad():
        old.logits += 0.3 * torch.randn_like(old.logits)
    batch = answer_batch([V], ANSWERS)
    new_BT, old_BT = token_log_probs(table, batch), token_log_probs(old, batch).detach()
    p_old = old_BT.sum(1).exp()
    R = torch.tensor([rewarded(a) for a in ANSWERS]).double()
    centred = R - (p_old * R).sum()
    ratios = {
        "token": (new_BT - old_BT).exp(),
        "answer": (new_BT - old_BT).sum(1, keepdim=True).exp(),
        "none": new_BT,
    }
    bias, spread = {}, {}
    for name, ratio in ratios.items():
        surrogate_B = (ratio * centred[:, None]).sum(1)
        per_answer = torch.stack([gradient(table, each) for each in surrogate_B])
        mean = p_old @ per_answer
        bias[name] = float((mean - exact).norm() / exact.norm())
        spread[name] = float(p_old @ (per_answer - mean).square().sum(1))
    assert bias["answer"] < 1e-9 < bias["token"] < bias["none"]
    assert spread["token"] < spread["answer"]


def test_the_clip_takes_the_gradient_away_where_the_ratio_has_gone_far_enough():
    advantages = torch.tensor([1.0, -1.0])
    log_p = torch.tensor([[0.0, 0.5, -0.5]] * 2, requires_grad=True)
    clipped_surrogate(log_p, torch.zeros(2, 3), advantages).sum().backward()
    assert log_p.grad is not None
    moved = (log_p.grad != 0).tolist()
    assert moved == [[True, False, True], [True, True, False]]


# --- KL ----------------------------------------------------------------------------------------


def test_kl_estimators_as_values_and_as_losses(table):
    torch.manual_seed(3)
    reference = PrefixTable(V, LONGEST).double()
    batch = answer_batch([V], ANSWERS)
    new_BT = token_log_probs(table, batch)
    reference_BT = token_log_probs(reference, batch).detach()
    p_A = new_BT.sum(1).exp()
    true = (p_A * (new_BT - reference_BT).sum(1)).sum()
    fixed = p_A.detach()
    value, pull = {}, {}
    for kind in ("k1", "k2", "k3"):
        each = kl_estimate(new_BT, reference_BT, kind).sum(1)
        value[kind] = (fixed * each).sum()
        pull[kind] = gradient(table, value[kind])
    assert_close(value["k1"], true)
    assert_close(value["k3"], true)
    assert abs(value["k2"] - true) > 0.1 * true
    assert_close(pull["k1"], torch.zeros_like(pull["k1"]), rtol=0, atol=1e-12)

    # The KL of each step, at texts that are taken as they come.
    steps = torch.zeros(())
    table_p, other_p = table.logits.log_softmax(-1), reference.logits.log_softmax(-1)
    reached = torch.zeros(len(table_p), dtype=torch.float64)
    for answer, p in zip(ANSWERS, fixed, strict=True):
        place = 0
        for token in answer:
            reached[place] += p
            place = place * V + 1 + token
    steps = (reached * (table_p.exp() * (table_p - other_p)).sum(1)).sum()
    backwards = (reached * (other_p.exp() * (other_p - table_p)).sum(1)).sum()
    assert_close(pull["k2"], gradient(table, steps), rtol=0, atol=1e-10)
    assert_close(pull["k3"], gradient(table, backwards), rtol=0, atol=1e-10)

    # Over the whole answer k2 has the gradient of the KL of answers.
    whole = kl_estimate(new_BT.sum(1), reference_BT.sum(1), "k2")
    assert_close(gradient(table, (fixed * whole).sum()), gradient(table, true), atol=1e-10, rtol=0)


# --- advantages and denominators ---------------------------------------------------------------


@pytest.mark.parametrize("kind", ["leave_one_out", "mean", "scaled"])
def test_equal_rewards_teach_exactly_nothing(kind):
    rewards = torch.tensor([[0.1] * 3, [0.0, 0.0, 1.0]], dtype=torch.float64)
    advantages = group_advantages(rewards, kind)
    assert advantages[0].tolist() == [0.0] * 3
    assert advantages[1].abs().min() > 0
    naive = rewards - rewards.mean(1, keepdim=True)
    naive = (naive / naive.square().mean(1, keepdim=True).sqrt())[0]
    assert naive.abs().max() > 0.9, "what is left of a deviation makes something of nothing"


def test_a_group_without_deviation_leaves_no_gradient(table):
    batch = rolled(table, ANSWERS[:4], group_advantages(torch.full((1, 4), 0.7), "scaled")[0])
    total, count = PolicyGradient(per="token")(table, batch)
    assert gradient(table, total / count).abs().max() == 0
    assert count == 12


def test_denominators_by_hand():
    loss = torch.tensor([[1.0, 2.0, 3.0], [4.0, 9.0, 9.0]])
    counts = torch.tensor([[True, True, True], [True, False, False]])
    found = {
        per: [float(x) for x in over_denominator(loss, counts, per, longest=5)]
        for per in ("answer", "token", "constant")
    }
    assert found == {"answer": [6.0, 2.0], "token": [10.0, 4.0], "constant": [2.0, 2.0]}


def rollouts(model, **changes) -> Rollouts:
    prompts = [[1, 2, 3], [4], [5, 6], [7, 8, 9, 10]]
    settings = {"max_new_tokens": 6, "end_id": (0, 11), "prompts_per_update": 3, "group": 4}
    reward = lambda number, ids: float(sum(i % 2 for i in ids)) - 0.3 * len(ids)  # noqa: E731
    return Rollouts(model, prompts, reward, **{**settings, **changes})


def trained(model, per: str = "token", micro: int | None = None, steps: int = 3, **changes):
    batches = rollouts(model, **changes)
    objective = PolicyGradient(per=per, longest=6, kl=0.1 if changes.get("reference") else 0.0)
    config = TrainConfig(steps=steps, warmup_steps=0, micro_batch_size=micro, precision="fp32")
    result = train(model, objective, batches, config)
    return [record.loss for record in result.history], batches


def sharp_model(seed: int = 0):
    """A tiny model that is sure of something, so that log-probabilities are of some size."""
    model = tiny_model(seed=seed)
    with torch.no_grad():
        model.embedding.weight *= 10
    return model


@pytest.mark.parametrize("per", ["answer", "token", "constant"])
def test_accumulation_is_one_batch(per):
    start = sharp_model()
    whole, parts = copy.deepcopy(start), copy.deepcopy(start)
    losses, _ = trained(whole, per, steps=1, reference=start)
    in_parts, _ = trained(parts, per, micro=5, steps=1, reference=start)
    assert_close(losses, in_parts, rtol=1e-5, atol=1e-6)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert_close(a, b, rtol=0, atol=2e-5)


def test_the_mean_of_micro_batch_means_is_another_loss():
    model = sharp_model()
    objective = PolicyGradient(per="token", clip=None)
    batches = rollouts(model)
    parts = batches.micro_batches(0, 5)
    lengths = [int((part["labels"] != -100).sum()) for part in parts]
    assert len(set(lengths)) > 1, "the parts must differ in length"
    pairs = [objective(model, part) for part in parts]
    right = sum(total for total, _ in pairs) / sum(count for _, count in pairs)
    naive = sum(total / count for total, count in pairs) / len(pairs)
    assert abs(float((right - naive).detach())) > 1e-3


# --- rollouts ----------------------------------------------------------------------------------


def test_what_the_sampler_saw_is_what_a_second_pass_finds():
    model = sharp_model()
    (batch,) = rollouts(model).micro_batches(0)
    counts = batch["labels"] != -100
    again = token_log_probs(model, batch)
    assert_close(batch["sampled_log_probs"], again.detach(), rtol=0, atol=1e-5)
    assert counts.sum(1).unique().numel() > 1, "answers of one length would prove little"
    # One position off, the usual mistake, is another number.
    shifted = batch["sampled_log_probs"].roll(1, dims=1)[counts]
    assert (shifted - again[counts]).abs().max() > 0.1
    assert (batch["sampled_log_probs"][~counts] == 0).all()


def test_answers_end_where_they_end():
    answers = sample_answers(sharp_model(), [[1, 2]] * 64, 6, (0, 11), seed=3)
    assert {a.ended for a in answers} == {True, False}
    for a in answers:
        assert len(a.tokens) == len(a.log_probs) == len(a.ids) + a.ended
        assert not set(a.ids) & {0, 11}
        assert 0 <= a.entropy <= math.log(31) + 1e-6


def test_frequencies_are_the_probabilities(table):
    """A chi-square of 8,000 drawn answers against all 64 chances."""
    _, p_A = scores_and_chances(table)
    drawn = sample_answers(table, [[V]] * 8_000, LONGEST, (), seed=0)
    counts = {tuple(a): 0 for a in ANSWERS}
    for a in drawn:
        counts[tuple(a.ids)] += 1
    expected = 8_000 * p_A.numpy()
    chi = float(((np.array(list(counts.values())) - expected) ** 2 / expected).sum())
    assert chi < 63 + 4 * math.sqrt(2 * 63)


def test_on_policy_the_clipped_ratio_is_reinforce():
    model = sharp_model()
    (batch,) = rollouts(model).micro_batches(0)
    found = []
    for clip in (None, (0.2, 0.2)):
        model.zero_grad()
        total, count = PolicyGradient(clip=clip, longest=6)(model, batch)
        (total / count).backward()
        found.append(model.embedding.weight.grad.clone())
    assert_close(found[0], found[1], rtol=0, atol=1e-5)


def test_same_seed_same_run_and_another_seed_another():
    start = sharp_model()
    runs = [trained(copy.deepcopy(start), seed=seed)[0] for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


def test_ranks_share_the_answers_of_one():
    model = sharp_model()
    (whole,) = rollouts(model).micro_batches(0)
    parts = [rollouts(model).micro_batches(0, rank=rank, world_size=2)[0] for rank in (0, 1)]
    for rank, part in enumerate(parts):
        assert torch.equal(part["advantages"], whole["advantages"][rank::2])


def test_a_round_of_two_updates_is_drawn_once():
    start = sharp_model()
    _, batches = trained(copy.deepcopy(start), steps=4, updates_per_round=2)
    assert [it.number for it in batches.rounds] == [0, 1]
    assert len(batches.answers) == 2 * 12
    with pytest.raises(LabError, match="middle of round"):
        rollouts(start, updates_per_round=2).micro_batches(1)


def test_a_resumed_run_goes_on_as_it_would_have(tmp_path):
    start, finals = sharp_model(), []
    for stops in ((4,), (2, 4)):
        model = copy.deepcopy(start)
        for steps in stops:
            config = TrainConfig(
                steps=4, schedule="constant", warmup_steps=0, precision="fp32", save_every=2,
                out=tmp_path / str(len(stops)), resume=steps != stops[0],
            )  # fmt: skip
            if steps < 4:
                with pytest.raises(_Stopped):
                    train(model, PolicyGradient(per="token"), rollouts(model), config,
                          on_step=_raise_at(steps))  # fmt: skip
                model = copy.deepcopy(start)
            else:
                train(model, PolicyGradient(per="token"), rollouts(model), config)
        finals.append(model.embedding.weight.detach().clone())
    assert torch.equal(*finals)


class _Stopped(Exception):
    pass


def _raise_at(step: int):
    def on_step(record):
        if record.step == step + 1:  # the checkpoint of `step` is written by then
            raise _Stopped

    return on_step


def test_the_penalty_needs_its_reference_and_lowers_rewards():
    start = sharp_model()
    reference = sharp_model(seed=5)
    plain, lowered = rollouts(start), rollouts(start, reference=reference, kl_in_reward=1.0)
    (a,), (b,) = plain.micro_batches(0), lowered.micro_batches(0)
    assert torch.equal(a["input_ids"], b["input_ids"])
    apart = (b["sampled_log_probs"] - b["reference_log_probs"]).sum(1).view(3, 4)
    expected = a["advantages"].view(3, 4) - (apart - apart.mean(1, keepdim=True))
    assert_close(b["advantages"].view(3, 4), expected, rtol=1e-4, atol=1e-4)
    assert lowered.rounds[0].kl == pytest.approx(float(apart.mean()), abs=1e-4)
    with pytest.raises(LabError, match="no reference_log_probs"):
        PolicyGradient(kl=0.1)(start, a)


def test_the_sampler_computes_as_the_learner_does():
    """A bf16 sampler's ratios are 1 for a learner in bf16, and not for one in fp32."""
    model = sharp_model().eval()
    (batch,) = rollouts(model, precision="bf16").micro_batches(0)
    with torch.no_grad():
        in_fp32 = token_log_probs(model, batch)
        with runtime.autocast("cpu", "bf16"):
            in_bf16 = token_log_probs(model, batch)
    same = (batch["sampled_log_probs"] - in_bf16).abs().max()
    other = (batch["sampled_log_probs"] - in_fp32).abs().max()
    assert other > 1e-3, other
    assert same < other / 2, (same, other)


def test_rewards_make_a_model_write_what_is_rewarded():
    model = tiny_model()
    batches = Rollouts(
        model, [[1]], lambda number, ids: float(ids[:1] in ([5], [6], [7])), max_new_tokens=2,
        end_id=0, prompts_per_update=4, group=16,
    )  # fmt: skip
    config = TrainConfig(steps=60, learning_rate=5e-3, warmup_steps=0, precision="fp32")
    train(model, PolicyGradient(longest=2), batches, config)
    rewards = [it.reward for it in batches.rounds]
    first, last = np.mean(rewards[:10]), np.mean(rewards[-10:])
    assert first < 0.3, rewards
    assert last > 0.6, rewards


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"group": 0}, "group 0"),
        ({"group": 1}, "group of 1"),
        ({"updates_per_round": 0}, "updates_per_round 0"),
        ({"prompts_per_update": 0}, "batch_size 0"),
        ({"kl_in_reward": -1.0}, "kl_in_reward -1"),
        ({"kl_in_reward": 1.0}, "no reference"),
        ({"advantage": "best"}, "advantage 'best'"),
    ],
)
def test_impossible_rollouts_are_refused(changes, said):
    with pytest.raises(LabError, match=said):
        rollouts(tiny_model(), **changes)


def test_a_reward_that_is_no_number_is_refused():
    batches = rollouts(tiny_model())
    batches.reward = lambda number, ids: math.nan
    with pytest.raises(LabError, match="must be finite"):
        batches.micro_batches(0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"per": "word"}, "per 'word'"),
        ({"kl_estimator": "k4"}, "kl_estimator 'k4'"),
        ({"longest": 0}, "longest 0"),
        ({"clip": (-0.1, 0.2)}, "clip"),
        ({"kl": -1.0}, "kl -1"),
    ],
)
def test_impossible_objectives_are_refused(settings, said):
    with pytest.raises(LabError, match=said):
        PolicyGradient(**settings)


# --- checked answers and pass@k ----------------------------------------------------------------


def test_expressions_are_parsed_and_never_run():
    assert arithmetic.value("2*3+5") == 11
    assert arithmetic.value("(2-5)*3") == -9
    for text in ("2**9", "9/3", "-5", "1_0", "2.0", "__import__('os')", "", "2+", "007", "(" * 64):
        assert arithmetic.value(text) is None, text
    assert arithmetic.value("+".join("1" * 33)) is None, "too long"


def test_a_solution_uses_every_number_once():
    problem = arithmetic.Problem((2, 2, 5), 9)
    assert arithmetic.is_solution(problem, "2+2+5")
    for wrong in ("2+5+2+0", "4+5", "9", "2*2+5*1", "25-2", "2+2+5\n", "5+2+2=9", "22+5"):
        assert not arithmetic.is_solution(problem, wrong), wrong
    assert arithmetic.has_value(problem, "4+5")
    assert not arithmetic.has_value(problem, "2+5")


def test_all_problems_and_their_splits():
    found = arithmetic.solutions(2, largest=4)
    for problem, answers in found.items():
        assert answers
        assert all(arithmetic.is_solution(problem, a) for a in answers)
        assert arithmetic.decode(arithmetic.encode(problem.prompt)) == problem.prompt
    assert arithmetic.Problem((1, 1), 2) in found
    assert arithmetic.Problem((2, 3), -1) not in found
    parts = arithmetic.split(list(found), validation=0.2, test=0.2)
    assert sorted(itertools.chain.from_iterable(parts.values())) == list(found)
    with pytest.raises(LabError, match="terms 5"):
        arithmetic.solutions(5)
    with pytest.raises(LabError, match="'x' is not"):
        arithmetic.encode("x")


def test_sums_are_read_from_words():
    sums = arithmetic.additions(50)
    assert len(set(sums)) == 50
    assert arithmetic.additions(10) == sums[:10]
    assert all(10 <= n <= 99 for it in sums for n in it)
    assert arithmetic.is_right(arithmetic.Addition(800, 234), "The sum is 1,034!")
    assert not arithmetic.is_right(arithmetic.Addition(23, 45), "no idea")
    with pytest.raises(LabError, match="there are 1 sums"):
        arithmetic.additions(2, largest=10)


@pytest.mark.parametrize(("n", "c", "k"), [(5, 2, 1), (5, 2, 3), (5, 2, 4), (6, 0, 2), (6, 6, 6)])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer(n, c, k):
    right = [True] * c + [False] * (n - c)
    subsets = list(itertools.combinations(right, k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_the_estimate_is_unbiased_and_the_obvious_one_is_not():
    p, n, k = 0.2, 10, 5
    counts = np.random.default_rng(0).binomial(n, p, 20_000)
    truth = 1 - (1 - p) ** k
    good = mean_pass_at_k(n, counts[:2000].tolist(), k)
    assert good.low < truth < good.high
    naive = float(np.mean(1 - (1 - counts / n) ** k))
    assert truth - naive > 0.02
    with pytest.raises(LabError, match="k 6"):
        pass_at_k(5, 1, 6)
    with pytest.raises(LabError, match="right 6"):
        pass_at_k(5, 6, 1)
