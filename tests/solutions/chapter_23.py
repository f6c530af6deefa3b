"""Reference solutions and usual wrong answers of chapter 23."""

import torch

# 23.1


def solution_1(rewards_PG):
    equal_P = (rewards_PG == rewards_PG[:, :1]).all(1)
    kept = [p for p, equal in enumerate(equal_P.tolist()) if not equal]
    return kept, float(equal_P.double().mean())


def by_deviation(rewards_PG):
    apart_PG = rewards_PG - rewards_PG.mean(1, keepdim=True)
    kept = [p for p, s in enumerate(apart_PG.square().mean(1).tolist()) if s != 0]
    return kept, 1 - len(kept) / len(rewards_PG)


def with_all_right(rewards_PG):
    kept = [p for p, row in enumerate(rewards_PG.tolist()) if any(row)]
    return kept, 1 - len(kept) / len(rewards_PG)


def share_kept(rewards_PG):
    kept, wasted = solution_1(rewards_PG)
    return kept, 1 - wasted


# 23.2


def solution_2(logits_BTV, reference_BTV, counts_BT):
    p_BTV, q_BTV = logits_BTV.log_softmax(-1), reference_BTV.log_softmax(-1)
    kl_BT = (p_BTV.exp() * (p_BTV - q_BTV)).sum(-1)
    return kl_BT[counts_BT].mean()


def backwards(logits_BTV, reference_BTV, counts_BT):
    return solution_2(reference_BTV, logits_BTV, counts_BT)


def everywhere(logits_BTV, reference_BTV, counts_BT):
    return solution_2(logits_BTV, reference_BTV, counts_BT | True)


def of_logits(logits_BTV, reference_BTV, counts_BT):
    kl_BT = (logits_BTV.softmax(-1) * (logits_BTV - reference_BTV)).sum(-1)
    return kl_BT[counts_BT].mean()


# 23.3


def solution_3(log_probs_BT, sampled_BT, counts_BT):
    apart_B = ((log_probs_BT - sampled_BT) * counts_BT).sum(1)
    return (apart_B / counts_BT.sum(1)).exp()


def product(log_probs_BT, sampled_BT, counts_BT):
    return ((log_probs_BT - sampled_BT) * counts_BT).sum(1).exp()


def padded(log_probs_BT, sampled_BT, counts_BT):
    return ((log_probs_BT - sampled_BT) * counts_BT).mean(1).exp()


def arithmetic_mean(log_probs_BT, sampled_BT, counts_BT):
    return ((log_probs_BT - sampled_BT).exp() * counts_BT).sum(1) / counts_BT.sum(1)


# 23.4


def solution_4(rewards_B, d_BT, counts_BT, beta):
    later_BT = (d_BT * counts_BT).flip(1).cumsum(1).flip(1)
    return (rewards_B[:, None] - beta * later_BT) * counts_BT


def whole_answer(rewards_B, d_BT, counts_BT, beta):
    whole_B1 = (d_BT * counts_BT).sum(1, keepdim=True)
    return (rewards_B[:, None] - beta * whole_B1) * counts_BT


def before(rewards_B, d_BT, counts_BT, beta):
    return (rewards_B[:, None] - beta * (d_BT * counts_BT).cumsum(1)) * counts_BT


def without_itself(rewards_B, d_BT, counts_BT, beta):
    real_BT = d_BT * counts_BT
    return (rewards_B[:, None] - beta * (real_BT.flip(1).cumsum(1).flip(1) - real_BT)) * counts_BT


# 23.5


def solution_5(p_A, rewards_A, scores_AN):
    weight_A = p_A * scores_AN.square().sum(1)
    return (weight_A @ rewards_A) / weight_A.sum()


def mean_reward(p_A, rewards_A, scores_AN):
    return p_A @ rewards_A


def by_length(p_A, rewards_A, scores_AN):
    weight_A = p_A * scores_AN.norm(dim=1)
    return (weight_A @ rewards_A) / weight_A.sum()


def without_chances(p_A, rewards_A, scores_AN):
    weight_A = scores_AN.square().sum(1)
    return (weight_A @ rewards_A) / weight_A.sum()


SOLUTIONS = {
    "23.1": solution_1,
    "23.2": solution_2,
    "23.3": solution_3,
    "23.4": solution_4,
    "23.5": solution_5,
}


def as_tensor(rewards_PG):
    kept, wasted = solution_1(rewards_PG)
    return torch.tensor(kept), wasted


def as_number(logits_BTV, reference_BTV, counts_BT):
    return float(solution_2(logits_BTV, reference_BTV, counts_BT))


def by_loop(log_probs_BT, sampled_BT, counts_BT):
    rows = zip(log_probs_BT, sampled_BT, counts_BT, strict=True)
    return torch.stack([(new - old)[counts].mean().exp() for new, old, counts in rows])


def as_numpy(rewards_B, d_BT, counts_BT, beta):
    return solution_4(rewards_B, d_BT, counts_BT, beta).numpy()


def as_float(p_A, rewards_A, scores_AN):
    return float(solution_5(p_A, rewards_A, scores_AN))


ALSO_RIGHT = {
    "23.1": [as_tensor],
    "23.2": [as_number],
    "23.3": [by_loop],
    "23.4": [as_numpy],
    "23.5": [as_float],
}

WRONG = {
    "23.1": [
        (by_deviation, "compare the rewards"),
        (with_all_right, "all right"),
        (share_kept, "answers wasted"),
    ],
    "23.2": [
        (backwards, "the other way round"),
        (everywhere, "only those that count"),
        (of_logits, "log_softmax first"),
    ],
    "23.3": [
        (product, "take its root"),
        (padded, "tokens that count"),
        (arithmetic_mean, "arithmetic mean"),
    ],
    "23.4": [
        (whole_answer, "only from it on"),
        (before, "from the token to the end"),
        (without_itself, "own penalty"),
    ],
    "23.5": [
        (mean_reward, "not the best"),
        (by_length, "not their squares"),
        (without_chances, "chances of the answers"),
    ],
}
