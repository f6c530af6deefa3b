"""Rollouts: the model answers, a checker rewards, and the answers become the next batch.

    prompts ──> `sample_answers`: G answers each, one batch, with the KV cache, log p of every token
            ──> reward of each answer ──> advantages within the group
            ──> `Rollouts`, which `training.train` reads as it reads any batches

An answer is drawn from the model as it is: at temperature 1, from the whole vocabulary. Whoever
cuts the distribution (top-k, top-p, another temperature) writes with another model than the one
that learns, and the log-probabilities kept here would not be its.

Update s takes the answers of round s // R, R = `updates_per_round`: with R = 1 each update learns
from answers of the weights it changes (on-policy); with R above 1 the answers of a round are drawn
together and taken in R parts, the last of them R - 1 updates old.

What is drawn is a function of the weights and (seed, round), so a resumed run goes on as it would
have.

Legend: P prompts of an update, G answers of a prompt, B = P G, T positions.

Source: Shao et al. 2024, arXiv:2402.03300, algorithm 1.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from labkit import runtime
from labkit.batches import IGNORE_INDEX, Batch, Batches, Pad
from labkit.errors import LabError
from labkit.evaluation.forward import evaluating
from labkit.generation.sampling import stream
from labkit.objectives.policy import Advantage, group_advantages, token_log_probs

#: reward(number of the prompt, ids of the answer without its end) -> any finite number
Reward = Callable[[int, list[int]], float]


class Answer(NamedTuple):
    """One answer as it was drawn."""

    ids: list[int]
    """Without the end."""
    tokens: list[int]
    """What was drawn: ids, and the end token if it came."""
    log_probs: Tensor
    """log p of each of `tokens` as the sampler saw it, on the CPU."""
    entropy: float
    """Mean entropy of the distributions that the tokens were drawn from, nats."""

    @property
    def ended(self) -> bool:
        """Whether it stopped by itself."""
        return len(self.tokens) > len(self.ids)


def sample_answers(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    end_id: int | Collection[int],
    seed: int | None = None,
) -> list[Answer]:
    """An answer to each prompt, drawn at temperature 1, with the probability of each token.

    Args:
        model: as in `generation.generate`; prompt and answer must fit into its context.
        prompts: ids; give one several times for several answers.
        max_new_tokens: at least 1.
        end_id: what ends an answer, one id or several.
        seed: same seed, same answers; None draws from torch's global generator.

    Raises:
        LabError: as `generation.generate`.
    """
    ends = frozenset((end_id,) if isinstance(end_id, int) else end_id)
    tokens, log_probs, entropies = [], [], []
    for step in stream(model, prompts, max_new_tokens, seed=seed, end_id=ends):
        log_p_BV = step.logits.float().log_softmax(dim=-1)
        tokens.append(step.tokens)
        log_probs.append(log_p_BV.gather(1, step.tokens[:, None])[:, 0])
        entropies.append(torch.special.entr(log_p_BV.exp()).sum(dim=-1))
    tokens_BT, log_probs_BT, entropies_BT = (
        torch.stack(columns, dim=1).cpu() for columns in (tokens, log_probs, entropies)
    )
    return [
        _until_end(tokens_BT[i], log_probs_BT[i], entropies_BT[i], ends)
        for i in range(len(prompts))
    ]


def _until_end(
    tokens_T: Tensor, log_probs_T: Tensor, entropies_T: Tensor, ends: frozenset[int]
) -> Answer:
    drawn = tokens_T.tolist()
    end = next((i for i, token in enumerate(drawn) if token in ends), None)
    length = len(drawn) if end is None else end + 1
    ids = drawn if end is None else drawn[:end]
    return Answer(
        ids, drawn[:length], log_probs_T[:length].clone(), float(entropies_T[:length].mean())
    )


@dataclass(frozen=True)
class Round:
    """What the answers of a round were like."""

    number: int
    """From 0."""
    reward: float
    """Mean of the rewards as they were given."""
    length: float
    """Mean tokens of an answer, its end included."""
    entropy: float
    """Mean over answers of their entropy, nats a token."""
    ended: float
    """Share of answers that stopped by themselves."""
    equal: float
    """Share of prompts whose answers were all rewarded alike: they teach nothing."""
    kl: float | None
    """Mean over answers of log p - log p of the reference, nats an answer; None without one."""


class Rollouts:
    """Answers with advantages as the batches of `training.train`, drawn when they are asked for.

    Batches: `input_ids`, `attention_mask`, `labels` (B, T), `advantages` (B,), `sampled_log_probs`
    (B, T; 0 where no label counts) and, with a reference, `reference_log_probs` (B, T).
    `rounds` grows by one `Round` with each round, and `answers` holds those of the last one.

    Several processes: each draws the whole round and takes its part of it.
    """

    def __init__(
        self,
        model: nn.Module,
        prompts: Sequence[Sequence[int]],
        reward: Reward,
        *,
        max_new_tokens: int,
        end_id: int | Collection[int],
        prompts_per_update: int = 8,
        group: int = 8,
        advantage: Advantage = "mean",
        reference: nn.Module | None = None,
        kl_in_reward: float = 0.0,
        updates_per_round: int = 1,
        precision: str = "fp32",
        seed: int = 0,
    ):
        """
        Args:
            model: the one that is trained.
            prompts: ids of all prompts, P of them drawn for each update, each once an epoch.
            reward: (number of the prompt, answer without its end) -> number.
            max_new_tokens: of an answer, at least 1.
            end_id: what ends an answer, one id or several.
            prompts_per_update: P, at least 1.
            group: G, answers to each prompt, at least 1.
            advantage: as in `group_advantages`.
            reference: a frozen model, such as a copy of the start.
            kl_in_reward: each reward is lowered by it times log p - log p of the reference of the
                whole answer; 0 or more.
            updates_per_round: R, at least 1.
            precision: what the sampler's matrix products are computed in, "fp32", "bf16" or "fp16":
                that of the training, or its ratios are not 1 where nothing has changed.
            seed: of prompts and answers.

        Raises:
            LabError: a value out of range, or a penalty without a reference.
        """
        for name, given in (("group", group), ("updates_per_round", updates_per_round)):
            if given < 1:
                raise LabError(f"{name} {given} is out of range: choose at least 1")
        if not kl_in_reward >= 0:
            raise LabError(f"kl_in_reward {kl_in_reward} is out of range: choose 0 or more")
        if kl_in_reward and reference is None:
            raise LabError(
                f"kl_in_reward is {kl_in_reward} and there is no reference: give a model, such as a"
                " copy of the start"
            )
        group_advantages(torch.zeros(1, group), advantage)  # refuses what cannot work
        self.model, self.prompts, self.reward = model, prompts, reward
        self.max_new_tokens, self.end_id = max_new_tokens, end_id
        self.group = group
        self.advantage: Advantage = advantage
        self.reference, self.kl_in_reward = reference, kl_in_reward
        self.updates_per_round, self.precision, self.seed = updates_per_round, precision, seed
        numbers = [{"number": torch.tensor(i)} for i in range(len(prompts))]
        self._order = Batches(numbers, prompts_per_update, seed=seed)
        self.batch_size = prompts_per_update * group
        self.rounds: list[Round] = []
        self.answers: list[tuple[int, Answer, float]] = []
        """(number of the prompt, answer, reward) of the last round, in order."""
        self._number: int | None = None
        self._examples: list[Batch] = []

    def indices(self, step: int) -> list[int]:
        """The prompt of each answer of update `step`."""
        return [i for i in self._order.indices(step) for _ in range(self.group)]

    def micro_batches(
        self, step: int, micro_batch_size: int | None = None, rank: int = 0, world_size: int = 1
    ) -> list[Batch]:
        """This rank's part of update `step`, cut into micro-batches; the first of a round draws it.

        Raises:
            LabError: the answers do not divide among the ranks; an update in the middle of a round
                comes first (resume at a multiple of updates_per_round); a reward is not finite.
        """
        if self.batch_size % world_size:
            raise LabError(
                f"batch_size {self.batch_size} does not divide among {world_size} ranks: choose a "
                f"multiple of {world_size}"
            )
        number, part = divmod(step, self.updates_per_round)
        if part and number != self._number:
            raise LabError(
                f"update {step + 1} is in the middle of round {number + 1}, whose answers are gone:"
                f" save every multiple of updates_per_round {self.updates_per_round} to resume"
            )
        if not part:
            self._draw(number)
        mine = self._examples[part * self.batch_size : (part + 1) * self.batch_size]
        mine = mine[rank::world_size]
        size = micro_batch_size or len(mine)
        return [_stacked(mine[start : start + size]) for start in range(0, len(mine), size)]

    def _draw(self, number: int) -> None:
        first = number * self.updates_per_round
        asked = [i for k in range(self.updates_per_round) for i in self.indices(first + k)]
        (seed,) = np.random.SeedSequence([self.seed, number]).generate_state(1)
        prompts = [self.prompts[i] for i in asked]
        with runtime.autocast(next(self.model.parameters()).device, self.precision):
            answers = sample_answers(
                self.model, prompts, self.max_new_tokens, self.end_id, seed=int(seed)
            )
        rewards = [float(self.reward(i, a.ids)) for i, a in zip(asked, answers, strict=True)]
        for i, answer, given in zip(asked, answers, rewards, strict=True):
            if not np.isfinite(given):
                raise LabError(
                    f"the reward of answer {answer.ids} to prompt {i} is {given}: it must be finite"
                )
        examples = [_example(p, a) for p, a in zip(prompts, answers, strict=True)]
        rewards_B, apart_B = torch.tensor(rewards), None
        if self.reference is not None:
            apart_B = self._compare(self.reference, examples)
            if self.kl_in_reward:
                rewards_B = rewards_B - self.kl_in_reward * apart_B
        rewards_PG = rewards_B.view(-1, self.group)
        advantages_B = group_advantages(rewards_PG, self.advantage).flatten()
        for example, advantage in zip(examples, advantages_B, strict=True):
            example["advantages"] = advantage
        self._number, self._examples = number, examples
        self.answers = list(zip(asked, answers, rewards, strict=True))
        self.rounds.append(_summary(number, answers, rewards, rewards_PG, apart_B))

    def _compare(self, reference: nn.Module, examples: list[Batch]) -> Tensor:
        """Score the answers by the reference, in parts; log p - log p of the reference of each."""
        device = next(reference.parameters()).device
        apart = []
        for start in range(0, len(examples), self.batch_size):
            some = examples[start : start + self.batch_size]
            batch = {key: tensor.to(device) for key, tensor in _stacked(some).items()}
            with evaluating(reference):
                scored_BT = token_log_probs(reference, batch).cpu().clone()
            for example, scored_T in zip(some, scored_BT, strict=True):
                example["reference_log_probs"] = scored_T[: len(example["labels"])]
                apart.append((example["sampled_log_probs"] - example["reference_log_probs"]).sum())
        return torch.stack(apart)


def _example(prompt: Sequence[int], answer: Answer) -> Batch:
    ids = torch.as_tensor([*prompt, *answer.tokens])
    labels, sampled = ids[1:].clone(), torch.zeros(len(ids) - 1)
    labels[: len(prompt) - 1] = IGNORE_INDEX
    sampled[len(prompt) - 1 :] = answer.log_probs
    return {"input_ids": ids[:-1], "labels": labels, "sampled_log_probs": sampled}


#: Padding is masked, whatever its id; log-probabilities of padding are 0 and never read.
_PAD = Pad(0)


def _stacked(examples: Sequence[Any]) -> Batch:
    return _PAD(examples)


def _summary(
    number: int,
    answers: Sequence[Answer],
    rewards: Sequence[float],
    rewards_PG: Tensor,
    apart_B: Tensor | None,
) -> Round:
    def mean(values: Any) -> float:
        return float(np.mean(list(values)))

    equal_P = (rewards_PG == rewards_PG[:, :1]).all(dim=1)
    return Round(
        number=number,
        reward=mean(rewards),
        length=mean(len(a.tokens) for a in answers),
        entropy=mean(a.entropy for a in answers),
        ended=mean(a.ended for a in answers),
        equal=float(equal_P.float().mean()),
        kl=None if apart_B is None else float(apart_B.mean()),
    )
