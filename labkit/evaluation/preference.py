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
from labkit.batches import Batches, Example, PadPreferences
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
        gain_P2 = self.now_P2 - self.before_P2
        margin_P = gain_P2[:, 0] - gain_P2[:, 1]
        right_P = (margin_P > 0).double() + 0.5 * (margin_P == 0).double()
        return _mean(right_P, resamples, seed)

    def likelier(self, resamples: int = 1000, seed: int = 0) -> Interval:
        """Share of the pairs whose chosen answer is now likelier than the rejected one."""
        return _mean((self.now_P2[:, 0] > self.now_P2[:, 1]).double(), resamples, seed)

    def gain(self, side: str, resamples: int = 1000, seed: int = 0) -> Interval:
        """Mean change of ln pi(answer) in nats; side is "chosen" or "rejected"."""
        gain_P2 = self.now_P2 - self.before_P2
        return _mean(gain_P2[:, ("chosen", "rejected").index(side)], resamples, seed)


def with_reference(
    model: nn.Module,
    examples: Sequence[Example],
    pad_id: int,
    precision: str = "auto",
    batch_size: int = 8,
) -> list[Example]:
    """The examples with `reference` (2,): ln pi of both answers by the model as it is now.

    Args:
        model: the start of the training; read in evaluation mode, without gradients.
        examples: of `batches.preference_example`.
        pad_id: of padding.
        precision: as in the training, or the first rewards are not zero.
        batch_size: pairs read at once.
    """
    plain = [{**example, "reference": torch.zeros(2)} for example in examples]
    lengths = [len(example["chosen_ids"]) for example in examples]
    order = sorted(range(len(plain)), key=lengths.__getitem__)
    alike = Batches([plain[i] for i in order], batch_size, PadPreferences(pad_id), shuffle=False)
    logs_P2 = preferred(model, alike, precision).now_P2
    known = dict(zip(order, logs_P2, strict=True))
    return [{**example, "reference": known[i]} for i, example in enumerate(examples)]


def preferred(model: nn.Module, batches: Batches, precision: str = "auto") -> Preferred:
    """Read the pairs once, in evaluation mode, without gradients.

    Args:
        model: a causal model.
        batches: of pairs with `reference`, collated by `PadPreferences`.
        precision: of the products.

    Raises:
        LabError: a pair without a reference.
    """
    device = next(model.parameters()).device
    kind = runtime.pick_precision(device, precision)
    before, now = [], []
    for batch in batches.evaluation_batches():
        if "reference" not in batch:
            raise LabError("the pairs have no reference: make them ready with `with_reference`")
        inputs = {name: tensor.to(device) for name, tensor in batch.items()}
        with evaluating(model), runtime.autocast(device, kind):
            now.append(answer_log_probabilities(model, inputs).cpu())
        before.append(batch["reference"])
    return Preferred(torch.cat(before), torch.cat(now))


def _mean(values_P: Tensor, resamples: int, seed: int) -> Interval:
    return bootstrap_interval(
        lambda x: float(x.mean()), values_P.numpy(), resamples=resamples, seed=seed
    )
