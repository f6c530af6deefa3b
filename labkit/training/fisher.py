"""How much a task minds a change of each weight: the diagonal of the Fisher information.

    one example ──> -ln p(y | x) ──> gradient g ──> g^2 ──> add up ──> / targets = F_i

    labels      y comes from                       what it is
    "data"      the example                        empirical Fisher: cheap, no true curvature
    "sampled"   the model's own p(y | x), drawn    the Fisher, with the noise of the draws
    "all"       every class, weighted by p         the Fisher, exactly: V backward passes a target

A square of each example's own gradient: the square of a batch's mean gradient is another number,
and near 0 where the training has ended. With labels of the model, F is the diagonal of the
generalised Gauss-Newton curvature of the mean loss, in nats per target per squared weight.

Legend: N targets of an example, V vocabulary or classes.

Sources: Kirkpatrick et al. 2017, arXiv:1612.00796 (EWC); Martens 2020, arXiv:1412.1193, section 5
(Fisher and Gauss-Newton); Kunstner et al. 2019, arXiv:1905.12558 (what the empirical one is not).
"""

from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from labkit import runtime
from labkit.batches import IGNORE_INDEX, Batch, Batches
from labkit.errors import LabError
from labkit.objectives.losses import cross_entropy

Labels = Literal["data", "sampled", "all"]


def fisher_diagonal(
    model: nn.Module,
    batches: Batches,
    labels: Labels = "data",
    *,
    examples: int | None = None,
    precision: str = "fp32",
    seed: int = 0,
) -> dict[str, Tensor]:
    """F_i = sum over examples of (d ln p(y | x) / d theta_i)^2 / number of targets.

    An example with several targets (a text) has one log-probability, their sum. Dropout is off.

    Args:
        model: labkit or transformers model with `logits` (B, V) or (B, T, V).
        batches: the task's data; each example is taken alone, in the given order.
        labels: whose: see above. What does not count (-100) never does.
        examples: so many at most, at least 1; None: all.
        precision: of the forward pass, as in `runtime.autocast`.
        seed: of the drawn labels.

    Returns:
        One tensor for each parameter that requires a gradient, on its device.

    Raises:
        LabError: an argument out of range, or no valid target.

    Cost: an example takes one forward and backward pass alone; with "all", V for each target.
    """
    if labels not in get_args(Labels):
        raise LabError(f"labels {labels!r} is unknown: choose one of {', '.join(get_args(Labels))}")
    if examples is not None and examples < 1:
        raise LabError(f"examples {examples} is out of range: choose at least 1, or None for all")
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    squares = {name: torch.zeros_like(p) for name, p in trained.items()}
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    targets = 0
    try:
        for number, batch in enumerate(batches.evaluation_batches(1)):
            if number == examples:
                break
            batch = {key: value.to(device) for key, value in batch.items()}
            with runtime.autocast(device, precision):
                logits_NV, labels_N = _counting(model, batch)
            targets += len(labels_N)
            for share, loss in _losses(logits_NV, labels_N, labels, generator):
                gradients = torch.autograd.grad(
                    loss, list(trained.values()), retain_graph=True, allow_unused=True
                )
                for square, gradient in zip(squares.values(), gradients, strict=True):
                    if gradient is not None:
                        square.add_(gradient.square(), alpha=share)
    finally:
        for module, training in modes.items():
            module.training = training
    if not targets:
        raise LabError("0 valid targets: at least 1 label must not be -100")
    return {name: square / targets for name, square in squares.items()}


def _counting(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits and labels of the targets that count."""
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    logits_NV = model(**inputs).logits.flatten(0, -2)
    labels_N = batch["labels"].flatten()
    valid_N = labels_N != IGNORE_INDEX
    return logits_NV[valid_N], labels_N[valid_N]


def _losses(
    logits_NV: Tensor, labels_N: Tensor, labels: Labels, generator: torch.Generator
) -> Iterator[tuple[float, Tensor]]:
    """(weight of its square, loss) of an example, for the labels that are asked for."""
    if not len(labels_N):
        return
    if labels == "data":
        yield 1.0, cross_entropy(logits_NV, labels_N)[0]
        return
    p_NV = logits_NV.detach().double().softmax(-1)
    if labels == "sampled":
        drawn_N = torch.multinomial(p_NV.cpu(), 1, generator=generator)[:, 0]
        yield 1.0, cross_entropy(logits_NV, drawn_N.to(labels_N.device))[0]
        return
    # Labels of different targets are drawn apart and the score has mean 0: squares add up.
    for logits_V, p_V in zip(logits_NV, p_NV, strict=True):
        for v, p in enumerate(p_V.tolist()):
            target = torch.tensor([v], device=logits_V.device)
            yield p, cross_entropy(logits_V[None], target)[0]
