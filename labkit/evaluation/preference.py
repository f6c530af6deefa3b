"""What a model came to prefer: the rewards of held-out pairs, and what became of both answers.

    pairs with a reference ──> ln pi(answer) now, and at the start ──> r = beta (now - start)

Training on preferences can raise the margin while *both* answers become less likely. So the four
log-probabilities are kept, not the margin alone.

Legend: P pairs.

Source: Rafailov et al. 2023, arXiv:2305.18290, section 4; Pal et al. 2024, arXiv:2402.13228 (chosen
answers that become less likely).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from labkit import runtime
from labkit.batches import Batch, Batches, Example, PadPreferences
from labkit.errors import LabError
from labkit.evaluation.forward import evaluating
from labkit.evaluation.intervals import Interval, bootstrap_interval
from labkit.objectives import answer_log_probabilities


class Preferred(NamedTuple):
    """Log-probabilities of both answers of each pair, in nats, before training and now."""

    before_P2: Tensor
    """Of chosen and rejected, by the model at its start."""
    now_P2: Tensor
    """By the model as it is."""

    def accuracy(self, resamples: int = 1000, seed: int = 0) -> Interval:
        """Share of the pairs whose chosen answer gained more than the rejected one; a tie is half.

        0.5 of a model that did not change.
        """
        return ahead(self.now_P2 - self.before_P2, resamples, seed)

    def likelier(self, resamples: int = 1000, seed: int = 0) -> Interval:
        """Share of the pairs whose chosen answer is now likelier than the rejected one."""
        return ahead(self.now_P2, resamples, seed)

    def gain(self, side: str, resamples: int = 1000, seed: int = 0) -> Interval:
        """Mean change of ln pi(answer) in nats; side is "chosen" or "rejected"."""
        gain_P2 = self.now_P2 - self.before_P2
        return _mean(gain_P2[:, ("chosen", "rejected").index(side)], resamples, seed)


def ahead(values_P2: Tensor, resamples: int = 1000, seed: int = 0) -> Interval:
    """Share of the rows whose first value is the larger one, pairs resampled; a tie is half.

    >>> ahead(torch.tensor([[2.0, 1.0], [0.0, 0.0]])).estimate
    0.75
    """
    difference_P = values_P2[:, 0] - values_P2[:, 1]
    return _mean((difference_P.sign().double() + 1) / 2, resamples, seed)


def pair_log_probabilities(
    model: nn.Module,
    examples: Sequence[Example],
    pad_id: int,
    precision: str = "auto",
    batch_size: int = 8,
) -> Tensor:
    """ln pi of both answers of each pair, in nats: (P, 2), in the order of the examples.

    Args:
        model: a causal model; read in evaluation mode, without gradients.
        examples: of `batches.preference_example`.
        pad_id: of padding.
        precision: of the products.
        batch_size: pairs read at once, those of similar length together.
    """
    lengths = [max(len(it["chosen_ids"]), len(it["rejected_ids"])) for it in examples]
    order = sorted(range(len(examples)), key=lengths.__getitem__)
    collate = PadPreferences(pad_id)
    alike = Batches([examples[i] for i in order], batch_size, collate, shuffle=False)
    read = torch.cat([_logs(model, batch, precision) for batch in alike.evaluation_batches()])
    logs_P2 = torch.empty_like(read)
    logs_P2[torch.tensor(order)] = read
    return logs_P2


def with_reference(
    model: nn.Module,
    examples: Sequence[Example],
    pad_id: int,
    precision: str = "auto",
    batch_size: int = 8,
) -> list[Example]:
    """The examples with `reference` (2,): ln pi of both answers by the model as it is now.

    Args:
        model: the start of the training.
        examples, pad_id, batch_size: as in `pair_log_probabilities`.
        precision: as in the training, or the first rewards are not zero.
    """
    logs_P2 = pair_log_probabilities(model, examples, pad_id, precision, batch_size)
    return [{**it, "reference": row_2} for it, row_2 in zip(examples, logs_P2, strict=True)]


def preferred(model: nn.Module, batches: Batches, precision: str = "auto") -> Preferred:
    """Read the pairs once, in evaluation mode, without gradients.

    Args:
        model: a causal model.
        batches: of pairs with `reference`, collated by `PadPreferences`.
        precision: of the products.

    Raises:
        LabError: a pair without a reference.
    """
    before, now = [], []
    for batch in batches.evaluation_batches():
        if "reference" not in batch:
            raise LabError("the pairs have no reference: make them ready with `with_reference`")
        now.append(_logs(model, batch, precision))
        before.append(batch["reference"])
    return Preferred(torch.cat(before), torch.cat(now))


def _logs(model: nn.Module, batch: Batch, precision: str) -> Tensor:
    device = next(model.parameters()).device
    inputs = {name: tensor.to(device) for name, tensor in batch.items()}
    kind = runtime.pick_precision(device, precision)
    with evaluating(model), runtime.autocast(device, kind):
        return answer_log_probabilities(model, inputs).cpu()


def _mean(values_P: Tensor, resamples: int, seed: int) -> Interval:
    return bootstrap_interval(
        lambda x: float(x.mean()), values_P.numpy(), resamples=resamples, seed=seed
    )
