"""A vocabulary so small that every answer can be written down: exact expectations.

    V tokens, at most L of them ──> every answer ──> p(answer) ──> sum of p R and its exact gradient

What an estimator of the policy gradient is worth is measured against this: its bias is the mean of
many estimates minus the exact gradient.

Legend: A answers, L longest, V vocabulary.
"""

import itertools
import math
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor, nn

from labkit.batches import IGNORE_INDEX, Batch
from labkit.errors import LabError
from labkit.models.transformer import Output
from labkit.objectives.policy import token_log_probs


class PrefixTable(nn.Module):
    """A language model that is a table: for each text so far its own logits of the next token.

    It can be any distribution over answers, and has no way to share what it learns between texts.
    The token V is not in the vocabulary: it stands for the prompt, one position.

    Args:
        vocab_size: V, at least 2.
        longest: L, tokens of an answer, at least 1.
        scale: standard deviation of the first logits.
    """

    def __init__(self, vocab_size: int, longest: int, scale: float = 1.0):
        super().__init__()
        if vocab_size < 2 or longest < 1:
            raise LabError(
                f"vocab_size {vocab_size} and longest {longest} are out of range: choose at least 2"
                " and at least 1"
            )
        self.vocab_size, self.longest = vocab_size, longest
        prefixes = sum(vocab_size**length for length in range(longest))
        self.logits = nn.Parameter(scale * torch.randn(prefixes, vocab_size))

    @property
    def start_id(self) -> int:
        """The prompt."""
        return self.vocab_size

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Output:
        """(B, T <= L) ids, the first of them `start_id`, to `.logits` (B, T, V).

        `attention_mask` is of padding on the right, which a causal model never sees.
        """
        V, answer_BT = self.vocab_size, input_ids[:, 1:].clamp(max=self.vocab_size - 1)
        places = [torch.zeros_like(input_ids[:, 0])]
        for column_B in answer_BT.unbind(1):  # rows by length, then by the digits in base V
            places.append(places[-1] * V + 1 + column_B)
        logits_BTV = self.logits[torch.stack(places, dim=1)]
        return Output(logits_BTV, logits_BTV)


def every_answer(vocab_size: int, longest: int, end_id: int | None = None) -> list[list[int]]:
    """All answers: V^L of them, or those that end with `end_id` or after L tokens.

    >>> len(every_answer(4, 3)), len(every_answer(4, 3, end_id=0))
    (64, 40)
    """
    if end_id is None:
        return [list(ids) for ids in itertools.product(range(vocab_size), repeat=longest)]
    answers = []
    for length in range(1, longest + 1):
        for ids in itertools.product(range(vocab_size), repeat=length):
            if end_id not in ids[:-1] and (length == longest or ids[-1] == end_id):
                answers.append(list(ids))
    return answers


def answer_batch(prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> Batch:
    """Answers to one prompt behind it, padded on the right: input_ids, attention_mask, labels."""
    longest = max(map(len, answers))
    shape = (len(answers), len(prompt) - 1 + longest)
    batch = {
        "input_ids": torch.zeros(shape, dtype=torch.long),
        "attention_mask": torch.zeros(shape, dtype=torch.long),
        "labels": torch.full(shape, IGNORE_INDEX),
    }
    for row, answer in enumerate(answers):
        ids = torch.as_tensor([*prompt, *answer])
        batch["input_ids"][row, : len(ids) - 1] = ids[:-1]
        batch["attention_mask"][row, : len(ids) - 1] = 1
        batch["labels"][row, len(prompt) - 1 : len(ids) - 1] = ids[len(prompt) :]
    return batch


def expected_reward(
    model: nn.Module,
    prompt: Sequence[int],
    answers: Sequence[Sequence[int]],
    reward: Callable[[list[int]], float],
) -> Tensor:
    """sum over all answers of p(answer) R(answer), differentiable: its gradient is the exact one.

    Args:
        model: as in `token_log_probs`.
        prompt: ids, at least one.
        answers: every answer that there is, from `every_answer`.
        reward: of one answer.
    """
    log_p_A = token_log_probs(model, answer_batch(prompt, answers)).sum(dim=1)
    rewards_A = log_p_A.new_tensor([reward(list(answer)) for answer in answers])
    return (log_p_A.exp() * rewards_A).sum()


def every_outcome(run: Callable[[Callable[[Tensor], int]], Hashable]) -> dict[Hashable, float]:
    """The exact distribution of a random procedure: it runs once for each row of its draws.

    Args:
        run: a procedure that draws by calling what it is given, `draw(probabilities) -> index`,
            and by nothing else. With D draws among V it runs up to V^D times.

    Returns:
        outcome -> probability.

    >>> coin = torch.tensor([0.25, 0.75])
    >>> every_outcome(lambda draw: draw(coin) + draw(coin))
    {0: 0.0625, 1: 0.375, 2: 0.5625}
    """
    found: dict[Hashable, float] = {}
    scripts: list[list[int]] = [[]]
    while scripts:
        script, chances = scripts.pop(0), []

        def draw(p: Tensor, script: list[int] = script, chances: list[float] = chances) -> int:
            if len(chances) == len(script):  # beyond what is written down: the first, others later
                first, *others = p.nonzero().flatten().tolist()
                scripts.extend([*script, other] for other in others)
                script.append(first)
            index = script[len(chances)]
            chances.append(float(p[index]))
            return index

        outcome = run(draw)
        found[outcome] = found.get(outcome, 0.0) + math.prod(chances)
    return found
