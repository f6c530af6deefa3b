"""Four checks of a model and its objective, and one of a batch, before a run is worth its time.

    model, objective, batch ──> initial_loss        does it begin at log V?
                            ──> overfit_one_batch   can it learn one batch by heart?
                            ──> gradient_check      does the gradient say what the loss does?
                            ──> causality_leak      do past predictions change with the future?
                 batch      ──> label_offset        how far ahead do the targets stand?

Each takes seconds, and leaves the model as it was. None of them reads code: a check compares two
ways to the same number, so it finds mistakes that nobody thought of, and says nothing of others.

Sources: Goodfellow, Bengio & Courville 2016, Deep Learning, section 11.5 (one batch, gradients
beside differences); Karpathy 2019, A Recipe for Training Neural Networks (loss at the start, leaks
across a batch).
"""

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from labkit.batches import IGNORE_INDEX, Batch
from labkit.errors import LabError
from labkit.evaluation.forward import evaluating
from labkit.objectives.tasks import Objective


class InitialLoss(NamedTuple):
    """What `initial_loss` measured."""

    loss: float
    """Nats per target."""
    uniform: float
    """log V: the loss of a model that finds all V entries equally likely."""

    @property
    def excess(self) -> float:
        """loss - log V; clearly below 0 is impossible for an honest untrained model."""
        return self.loss - self.uniform


def initial_loss(
    model: nn.Module, objective: Objective, batch: Batch, classes: int | None = None
) -> InitialLoss:
    """The loss of an untrained model, beside log V.

    Args:
        model: with random weights; its mode is put back.
        objective: (model, batch) -> (loss sum, count).
        batch: one, of any size.
        classes: V; None: as the model says.

    Raises:
        LabError: nobody says what V is.
    """
    size = classes or classes_of(model)
    if not size:
        raise LabError("the model does not say how many classes it has: give classes, at least 2")
    with evaluating(model):
        loss_sum, count = objective(model, _on(model, batch))
    return InitialLoss(float(loss_sum) / float(count), math.log(size))


def overfit_one_batch(
    model: nn.Module,
    objective: Objective,
    batch: Batch,
    *,
    steps: int = 100,
    learning_rate: float = 3e-3,
) -> list[float]:
    """The losses of a copy of the model that sees nothing but one batch, nats per target.

    A model with more parameters than the batch has targets can learn them by heart, so the loss
    goes towards 0, or towards what equal beginnings with different ends leave open. One that does
    not cannot learn: gradients do not arrive, or targets contradict each other. The reverse does
    not hold: wrong targets are learnt by heart as easily as right ones.

    Args:
        model, objective, batch: as for `initial_loss`; the copy's mode is the model's.
        steps: updates of Adam, at least 1.
        learning_rate: of each, above 0.

    Returns:
        The loss before each update, (steps,).

    Raises:
        LabError: steps or rate out of range.
    """
    if steps < 1 or not learning_rate > 0:
        raise LabError(
            f"steps {steps} or learning_rate {learning_rate} is out of range: choose at least 1, "
            "and a rate above 0"
        )
    own, losses = copy.deepcopy(model), []
    batch = _on(own, batch)
    adam = torch.optim.Adam([p for p in own.parameters() if p.requires_grad], lr=learning_rate)
    for _ in range(steps):
        loss_sum, count = objective(own, batch)
        adam.zero_grad()
        (loss_sum / count).backward()
        adam.step()
        losses.append(float(loss_sum.detach()) / float(count))
    return losses


def gradient_check(
    model: nn.Module, objective: Objective, batch: Batch, *, step: float = 1e-5, seed: int = 0
) -> dict[str, float]:
    """How far each tensor's gradient is from what the loss does when that tensor moves.

    Along a random direction d of length 1:  error = |g.d - (L(w + h d) - L(w - h d)) / 2h| / larger

    in float64, in eval mode. A tensor that is cut off from the loss has error 1: it moves the loss,
    and its gradient is 0. A tensor that truly does not matter has error 0.

    Args:
        model, objective, batch: as for `initial_loss`; a small batch will do.
        step: h.
        seed: of the directions.

    Returns:
        name -> relative error, 0 to about 1; right ones are below 1e-4.

    Cost: one backward pass, and two forward passes a tensor.
    """
    own = copy.deepcopy(model).double().eval()
    batch = _on(own, batch)
    named = {name: p for name, p in own.named_parameters() if p.requires_grad}
    loss_sum, count = objective(own, batch)
    gradients = torch.autograd.grad(loss_sum / count, list(named.values()), allow_unused=True)
    generator = torch.Generator().manual_seed(seed)

    def at(p: Tensor, direction: Tensor, far: float) -> float:
        p.add_(direction, alpha=far)
        total, number = objective(own, batch)
        p.add_(direction, alpha=-far)
        return float(total) / float(number)

    errors = {}
    with torch.no_grad():
        for (name, p), gradient in zip(named.items(), gradients, strict=True):
            d = torch.randn(p.shape, dtype=torch.float64, generator=generator).to(p.device)
            if gradient is not None and gradient.any():
                d = d / d.norm() + gradient / gradient.norm()  # not by chance across the gradient
            d = d / d.norm()
            said = 0.0 if gradient is None else float((gradient * d).sum())
            done = (at(p, d, step) - at(p, d, -step)) / (2 * step)
            larger = max(abs(said), abs(done))
            errors[name] = abs(said - done) / larger if larger > 1e-8 else 0.0
    return errors


class Leak(NamedTuple):
    """What `causality_leak` found."""

    change: float
    """Largest change of a past logit, as a share of the logits' root mean square."""
    position: int
    """Where, from 0; -1: nowhere."""
    changed: int
    """First position whose token was altered."""


def causality_leak(
    model: nn.Module, batch: Batch, *, cuts: int | None = None, seed: int = 0
) -> Leak:
    """Alter tokens from a position on, and see whether logits before it change.

    In a causal model they cannot. A mask that is one place too generous is found as surely as none:
    the last position before the cut sees the first altered token. One that is too generous at some
    positions only is found where a cut stands behind one of them, so all are tried by default.

    Args:
        model: `model(input_ids (B, T), ...)` with logits (B, T, V).
        batch: `input_ids`, at least 2 positions; `labels` are not read.
        cuts: places to try, spread over the positions, at least 1; None: all of them.
        seed: of the new tokens.

    Returns:
        The largest change; rounding alone stays below 1e-4.

    Cost: a forward pass a cut.
    """
    inputs = {k: v for k, v in _on(model, batch).items() if k != "labels"}
    ids_BT = inputs["input_ids"]
    T, size = ids_BT.shape[1], classes_of(model) or int(ids_BT.max()) + 1
    tried = T - 1 if cuts is None else cuts
    if T < 2 or tried < 1:
        raise LabError(f"{T} positions and {cuts} cuts are out of range: choose at least 2 and 1")
    generator = torch.Generator().manual_seed(seed)
    worst = Leak(0.0, -1, -1)
    with evaluating(model):
        before_BTV = model(**inputs).logits.float()
        scale = before_BTV.square().mean().sqrt()
        for cut in sorted({max(1, round(T * (i + 1) / (tried + 1))) for i in range(tried)}):
            by = torch.randint(1, size, (ids_BT.shape[0], T - cut), generator=generator)
            altered_BT = ids_BT.clone()
            altered_BT[:, cut:] = (ids_BT[:, cut:] + by.to(ids_BT.device)) % size
            after_BTV = model(**(inputs | {"input_ids": altered_BT})).logits.float()
            change_T = (after_BTV - before_BTV)[:, :cut].abs().amax((0, 2)) / scale
            if float(change_T.max()) > worst.change:
                worst = Leak(float(change_T.max()), int(change_T.argmax()), cut)
    return worst


def label_offset(batch: Batch, furthest: int = 4) -> Tensor:
    """How many tokens ahead the targets of each text stand: 1 for a language model.

    Args:
        batch: `input_ids`, `labels` (B, T).
        furthest: offsets 0 to this are compared.

    Returns:
        (B,) the offset at which most targets are the token of the text; -1: less than half are at
        any of them, so that the targets are no copy of the text.

    >>> ids = torch.tensor([[5, 6, 7, 8], [5, 6, 7, 8]])
    >>> label_offset({"input_ids": ids, "labels": torch.tensor([[6, 7, 8, 9], [7, 8, 9, 4]])})
    tensor([1, 2])
    """
    ids_BT, labels_BT = batch["input_ids"], batch["labels"]
    T = ids_BT.shape[1]
    shares = []
    for offset in range(min(furthest, T - 1) + 1):
        target_BU = labels_BT[:, : T - offset]
        valid_BU = target_BU != IGNORE_INDEX
        equal_BU = (target_BU == ids_BT[:, offset:]) & valid_BU
        shares.append(equal_BU.sum(1) / valid_BU.sum(1).clamp(min=1))
    share_B, offset_B = torch.stack(shares).max(0)
    return torch.where(share_B < 0.5, -1, offset_B)


def classes_of(model: nn.Module) -> int | None:
    """V, the entries of a model's output, where it says so."""
    config = getattr(model, "config", None)
    labels = getattr(getattr(model, "classifier", None), "out_features", None)
    size = labels or getattr(config, "vocab_size", None)
    return size if isinstance(size, int) else None


def _on(model: nn.Module, batch: Batch) -> Batch:
    device = next(model.parameters()).device
    return {name: tensor.to(device) for name, tensor in batch.items()}
