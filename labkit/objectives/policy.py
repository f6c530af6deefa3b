"""Learning from rewards: which answers become likelier, and by how much.

    answers ──> rewards_PG ──> advantages_PG   (`group_advantages`: how much better than its group)
    batch   ──> log-probabilities_BT of the tokens ──> surrogate_BT (ratio, clip) + kl * k_BT
            ──> one of three denominators ──> (loss sum, count) for the loop

The gradient of the expected reward is E[R d log p(answer)] (REINFORCE), and any number that does
not depend on the answer may be subtracted from R. The loss below has that gradient where the answer
came from the model itself; a few updates later, the ratio of each *token* corrects for the change,

    r_t = p(token t) / p_sampler(token t)       -min(r_t A, clip(r_t, 1 - low, 1 + high) A)

and the clip takes away the reward for going further. The value of the loss says nothing about how
good the model is; its gradient does.

Denominators, over the answers i of an update with n_i tokens each, N in all:
    answer      1/N sum_i 1/n_i sum_t    GRPO: a token of a long answer weighs less
    token       sum_i sum_t / sum_i n_i  DAPO: every token of the update weighs the same
    constant    1/(N L) sum_i sum_t      Dr. GRPO: the gradient of the expected reward, over L

Each is a sum and a count, so an update of many micro-batches is the update of one batch.

Legend: P prompts, G answers of a prompt, B = P G answers, T positions, N tokens that count.

Sources: Williams 1992 (REINFORCE); Schulman et al. 2017, arXiv:1707.06347 (clipped ratio); Shao et
al. 2024, arXiv:2402.03300 (GRPO); Liu et al. 2025, arXiv:2503.20783 (Dr. GRPO); Yu et al. 2025,
arXiv:2503.14476 (DAPO); Kool et al. 2019 (leave one out); Schulman 2020, "Approximating KL
Divergence" (k1, k2, k3).
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from labkit.batches import IGNORE_INDEX, Batch
from labkit.errors import LabError
from labkit.models.transformer import Transformer

Advantage = Literal["reward", "leave_one_out", "mean", "scaled"]
Denominator = Literal["answer", "token", "constant"]
KLEstimator = Literal["k1", "k2", "k3"]


def token_log_probs(model: nn.Module, batch: Batch) -> Float[Tensor, "B T"]:
    """log p(label at t | what stands before it); 0 at labels that do not count. Differentiable.

    Args:
        model: `model(input_ids, attention_mask)` with logits (B, T, V).
        batch: `input_ids`, `labels` (B, T; -100 does not count) and, if padded, `attention_mask`.

    Returns:
        log_probs_BT, float32. Of a labkit decoder logits are made at N positions, not at B T.
    """
    ids_BT, mask_BT, labels_BT = batch["input_ids"], batch.get("attention_mask"), batch["labels"]
    counts_BT = labels_BT != IGNORE_INDEX
    if isinstance(model, Transformer) and model.lm_head is not None:
        logits_NV = model.lm_head(model.encode(ids_BT, mask_BT)[counts_BT])
    else:
        logits_NV = model(input_ids=ids_BT, attention_mask=mask_BT).logits[counts_BT]
    if logits_NV.dtype in (torch.bfloat16, torch.float16):
        logits_NV = logits_NV.float()
    chosen_N = logits_NV.gather(1, labels_BT[counts_BT].unsqueeze(1)).squeeze(1)
    log_probs_BT = chosen_N.new_zeros(labels_BT.shape)
    log_probs_BT[counts_BT] = chosen_N - logits_NV.logsumexp(dim=-1)
    return log_probs_BT


def group_advantages(
    rewards_PG: Float[Tensor, "P G"], kind: Advantage = "mean"
) -> Float[Tensor, "P G"]:
    """How much better each answer is than the others to its prompt.

        reward          R_i                          no baseline: unbiased, noisy
        leave_one_out   R_i - mean of the others     unbiased (RLOO)
        mean            R_i - mean of all            the same times (G - 1) / G  (Dr. GRPO)
        scaled          (R_i - mean) / deviation     not the gradient of the mean reward (GRPO)

    The deviation is the sample's, with G - 1. A group whose rewards are all equal has nothing to
    say and gets exact zeros from all but `reward`: it is found by comparing the rewards, because
    a deviation computed of equal floats may be 1e-17, and what is divided by it is anything.

    Args:
        rewards_PG: of G answers to each of P prompts.
        kind: see above.

    Raises:
        LabError: an unknown kind, or groups of one answer for another kind than reward.
    """
    if kind not in get_args(Advantage):
        raise LabError(f"advantage {kind!r} is unknown: choose of {', '.join(get_args(Advantage))}")
    if kind == "reward":
        return rewards_PG
    size = rewards_PG.shape[1]
    if size < 2:
        raise LabError(f"a group of {size} answer has no other to compare with: give at least 2")
    better_PG = rewards_PG - rewards_PG.mean(dim=1, keepdim=True)
    equal_P1 = (rewards_PG == rewards_PG[:, :1]).all(dim=1, keepdim=True)
    if kind == "leave_one_out":
        better_PG = better_PG * (size / (size - 1))
    elif kind == "scaled":
        better_PG = better_PG / rewards_PG.std(dim=1, keepdim=True).masked_fill(equal_P1, 1.0)
    return better_PG.masked_fill(equal_P1, 0.0)


def kl_estimate(log_probs: Tensor, reference: Tensor, kind: KLEstimator = "k3") -> Tensor:
    """An estimate of KL(model || reference) from tokens that the model drew, each by itself.

        d = log p - log p_reference      k1 = d      k2 = d^2 / 2      k3 = exp(-d) - 1 + d

    As *values* k1 and k3 are unbiased and k3 is never negative; k2 is biased, little where the two
    models are close. As *losses* it is otherwise: on the model's own tokens the mean gradient of k1
    is 0, of k2 that of the KL of each step, of k3 that of the KL the other way round.

    Args:
        log_probs, reference: of the same tokens, any one shape.

    Raises:
        LabError: an unknown kind.
    """
    difference = log_probs - reference
    if kind == "k1":
        return difference
    if kind == "k2":
        return difference.square() / 2
    if kind == "k3":
        return torch.expm1(-difference) + difference
    allowed = ", ".join(get_args(KLEstimator))
    raise LabError(f"kl_estimator {kind!r} is unknown: choose of {allowed}")


def clipped_surrogate(
    log_probs_BT: Float[Tensor, "B T"],
    sampled_BT: Float[Tensor, "B T"],
    advantages_B: Float[Tensor, " B"],
    low: float = 0.2,
    high: float = 0.2,
) -> Float[Tensor, "B T"]:
    """-min(r A, clip(r, 1 - low, 1 + high) A) with the ratio r of each token.

    Args:
        log_probs_BT: of the model that learns.
        sampled_BT: of the model that wrote, constants.
        advantages_B: of each answer.
        low, high: how far a ratio may go down and up, 0 or more.
    """
    ratio_BT = (log_probs_BT - sampled_BT).exp()
    advantages_B1 = advantages_B.unsqueeze(1)
    clipped_BT = ratio_BT.clamp(1 - low, 1 + high)
    return -torch.minimum(ratio_BT * advantages_B1, clipped_BT * advantages_B1)


def over_denominator(
    loss_BT: Float[Tensor, "B T"],
    counts_BT: Bool[Tensor, "B T"],
    per: Denominator,
    longest: int,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """(loss sum, count) whose ratio over the whole update is the loss of that denominator.

    Args:
        loss_BT: of each token.
        counts_BT: the tokens of the answers.
        per: answer, token or constant, see above.
        longest: L, tokens that an answer may have, at least 1; for `constant`.

    Raises:
        LabError: an unknown denominator.
    """
    loss_BT = loss_BT * counts_BT
    lengths_B = counts_BT.sum(dim=1)
    answers = (lengths_B > 0).sum().to(loss_BT.dtype)
    if per == "answer":
        return (loss_BT.sum(dim=1) / lengths_B.clamp(min=1)).sum(), answers
    if per == "token":
        return loss_BT.sum(), lengths_B.sum().to(loss_BT.dtype)
    if per == "constant":
        return loss_BT.sum() / longest, answers
    raise LabError(f"per {per!r} is unknown: choose of {', '.join(get_args(Denominator))}")


@dataclass(frozen=True)
class PolicyGradient:
    """Objective (model, batch) -> (loss sum, count) of answers with advantages.

    The batch is that of `generation.Rollouts`: `input_ids`, `attention_mask`, `labels` (B, T),
    `advantages` (B,), `sampled_log_probs` (B, T) and, for a penalty, `reference_log_probs` (B, T).
    """

    per: Denominator = "constant"
    """What the sum over tokens is divided by: answer, token or constant."""
    longest: int = 1
    """L of the denominator `constant`: tokens that an answer may have, at least 1."""
    clip: tuple[float, float] | None = (0.2, 0.2)
    """How far a token's ratio may go down and up, each 0 or more; None: REINFORCE, -A log p without
    a ratio, right for a model that learns from answers it has itself just written."""
    kl: float = 0.0
    """Weight of the penalty for leaving the reference, in nats a token, 0 or more."""
    kl_estimator: KLEstimator = "k3"
    """k1, k2 or k3, see `kl_estimate`."""

    def __post_init__(self) -> None:
        for name, allowed in (("per", Denominator), ("kl_estimator", KLEstimator)):
            if (given := getattr(self, name)) not in get_args(allowed):
                raise LabError(
                    f"{name} {given!r} is unknown: choose of {', '.join(get_args(allowed))}"
                )
        if self.longest < 1:
            raise LabError(f"longest {self.longest} is out of range: choose at least 1")
        if self.clip is not None and min(self.clip) < 0:
            raise LabError(f"clip {self.clip} is out of range: choose two numbers of 0 or more")
        if not self.kl >= 0:
            raise LabError(f"kl {self.kl} is out of range: choose 0 or more")

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """(loss sum, count) of the denominator.

        Raises:
            LabError: a penalty, and the batch has no reference_log_probs.
        """
        log_probs_BT = token_log_probs(model, batch)
        advantages_B = batch["advantages"]
        if self.clip is None:
            loss_BT = -advantages_B.unsqueeze(1) * log_probs_BT
        else:
            sampled_BT = batch["sampled_log_probs"]
            loss_BT = clipped_surrogate(log_probs_BT, sampled_BT, advantages_B, *self.clip)
        if self.kl:
            if "reference_log_probs" not in batch:
                raise LabError(
                    f"kl is {self.kl} and the batch has no reference_log_probs: give Rollouts a"
                    " reference model, or leave kl at 0"
                )
            reference_BT = batch["reference_log_probs"]
            loss_BT = loss_BT + self.kl * kl_estimate(log_probs_BT, reference_BT, self.kl_estimator)
        counts_BT = batch["labels"] != IGNORE_INDEX
        return over_denominator(loss_BT, counts_BT, self.per, self.longest)
