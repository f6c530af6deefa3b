"""What a run does to its weights: a hook that watches it, and four checks to make before it.

    train(..., on_step=Diagnostics(model)) ──> readings: of every n-th update, tensor by tensor
                                           ──> warnings: value, what is usual, what to do
    model, objective, batch ──> initial_loss        does it begin at log V?
                            ──> overfit_one_batch   can it learn one batch by heart?
                            ──> gradient_check      does the gradient say what the loss does?
                            ──> causality_leak      do past predictions change with the future?
                 batch      ──> label_offset        how far ahead do the targets stand?

A warning is a place to look, not a verdict: the bounds below are wide, and a run can be wrong
inside all of them. The hook reads what an update leaves behind (weights before and after, gradients
as they arrive, activations as they pass); it changes nothing, and the four checks leave the model
as they found it.

Sources: Goodfellow, Bengio & Courville 2016, Deep Learning, section 11.5 (debugging); Karpathy
2019, A Recipe for Training Neural Networks (one batch, loss at the start, leaks across a batch);
Karpathy 2022, makemore part 3 (update-to-weight ratio, dead and saturated units).
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from labkit.batches import IGNORE_INDEX, Batch, BatchSource
from labkit.errors import LabError
from labkit.evaluation.forward import evaluating
from labkit.models.transformer import blocks
from labkit.objectives.tasks import Objective
from labkit.training.records import Record

#: |change| / |weights| of a matrix in one update: outside, it is torn or hardly moves.
RATIO = (1e-5, 0.3)
#: |weights| / |weights at the start| of a matrix: Adam's ratios shrink while weights run away.
GROWTH = 30.0
#: Share of a matrix's numbers that an update leaves as they were, to the bit.
UNMOVED = 0.2
#: Share of feed-forward units that answer to no position of a batch, and of saturated outputs.
DEAD, SATURATED = 0.5, 0.5
#: The first loss may stand so far below and above log V, nats.
BELOW, ABOVE = 0.3, 3.0
#: Norm gains begin at 1; all of them below 1, with a mean below this, is decay, not learning.
GAIN = 0.95
#: Share of a batch's neighbours that are neighbours in the data, too.
IN_ORDER = 0.5
#: Different examples seen / those that an order without repeats would have shown.
FRESH = 0.9
#: A unit is dead where it stays below this share of its layer's root mean square.
SILENT = 1e-3


class Finding(NamedTuple):
    """One finding, in one sentence."""

    step: int
    """The update at which it was first seen, from 1."""
    kind: str
    """`start`, `rate`, `gradient`, `ratio`, `unmoved`, `gains`, `dead`, `saturated`, `mode`,
    `repeats` or `order`."""
    says: str
    """The value, what is usual, what to do."""


@dataclass
class Reading:
    """One update, looked at closely; the keys are names of parameters or modules."""

    step: int
    ratios: dict[str, float] = field(default_factory=dict)
    """|change| / |weights|, L2, of tensors that were not 0."""
    unmoved: dict[str, float] = field(default_factory=dict)
    """Share of the numbers of a matrix that did not change at all, 0 to 1."""
    gradients: dict[str, float] = field(default_factory=dict)
    """L2 norms before clipping; their root of squares is `Record.grad_norm`."""
    without: list[str] = field(default_factory=list)
    """Trainable tensors that no gradient reached."""
    dead: dict[str, float] = field(default_factory=dict)
    """Share of a feed-forward net's units that are silent at every position, 0 to 1."""
    saturated: dict[str, float] = field(default_factory=dict)
    """Share of a tanh's or sigmoid's outputs in the outer hundredth of their range, 0 to 1."""
    scale: dict[str, float] = field(default_factory=dict)
    """Root mean square of what each block hands on."""
    evaluating: int = 0
    """Modules that computed this update in eval mode."""


class Diagnostics:
    """`on_step` of the loop that reads every n-th update, and warns once of each kind.

    Build it before `train`, so that it sees the first weights. It reads a
    model that is not compiled, on one process or with DDP.

    Cost: of an update that is read, a copy of the weights and three passes over them; of any other,
    the numbers of its examples.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        every: int = 20,
        batches: BatchSource | None = None,
        classes: int | None = None,
        fresh: bool = True,
        say: Callable[[str], Any] | None = None,
    ):
        """
        Args:
            model: what `train` gets.
            every: updates between readings, at least 1; the first is always read.
            batches: what `train` gets, to watch the order of the data; None: it is not watched.
            classes: V, entries of the output; None: as the model says, or not looked at.
            fresh: the weights are random, so that the first loss should be log V.
            say: called with each warning's sentence as it comes, such as `print`.

        Raises:
            LabError: every is below 1, or nothing is trainable.
        """
        if every < 1:
            raise LabError(f"every {every} is out of range: choose at least 1")
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        if not self.parameters:
            raise LabError("the model has 0 trainable parameters: at least 1 is needed")
        self.model, self.every, self.batches, self.say = model, every, batches, say
        self.classes = (classes or _classes(model)) if fresh else None
        self.readings: list[Reading] = []
        self.warnings: list[Finding] = []
        self._gains = [
            n for n, p in self.parameters.items() if p.ndim == 1 and bool((p == 1).all())
        ]
        tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
        self._tables = {n for n, p in self.parameters.items() if id(p) in tables}
        self._sizes = {n: float(p.detach().norm()) for n, p in self.parameters.items()}
        self._rate = 0.0
        self._seen: set[int] = set()
        self._neighbours = self._pairs = self._passed = 0
        self._handles: list[Any] = []
        self._arm(due=1)

    def __call__(self, record: Record) -> None:
        """Take the record of an update; the model holds its weights."""
        if record.step == 1 and self.classes:
            _judge_start(self._warn, record.loss, math.log(self.classes))
        late = record.total_steps >= 20 and 2 * record.step >= record.total_steps
        if late and record.learning_rate > self._rate > 0:
            self._warn(
                record.step, "rate",
                f"the learning rate still rises ({record.learning_rate:.1e}) in the second half of "
                f"{record.total_steps} updates, usual is a twentieth: shorten warmup_steps",
            )  # fmt: skip
        self._rate = record.learning_rate
        if self.batches is not None:
            self._follow(record.step)
        if record.step == self._due:
            self._read(record)
        elif self._handles:
            self.close()
        last = record.step == record.total_steps
        if not last and (record.step + 1) % self.every == 0:
            self._arm(due=record.step + 1)

    def close(self) -> None:
        """Take the hooks off the model; needed only where a run ends before its last update."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._before, self._due = [], {}, 0

    def _warn(self, step: int, kind: str, says: str) -> None:
        if kind not in {warning.kind for warning in self.warnings}:
            self.warnings.append(Finding(step, kind, f"update {step}: {says}"))
            if self.say is not None:
                self.say(self.warnings[-1].says)

    # What an update leaves behind

    def _arm(self, due: int) -> None:
        """Look at the next update, which should be number `due`: a resumed run begins later."""
        self._due = due
        self._before = {n: p.detach().clone() for n, p in self.parameters.items()}
        self._gradients: dict[str, Tensor] = {}
        self._passing: dict[str, dict[str, Tensor]] = {"dead": {}, "saturated": {}, "scale": {}}
        self._resting: set[nn.Module] = set()
        for name, p in self.parameters.items():
            hook = partial(self._keep_gradient, name)
            self._handles.append(p.register_post_accumulate_grad_hook(hook))
        for kind, name, module in _watched(self.model):
            self._handles.append(module.register_forward_hook(partial(self._keep, kind, name)))

    def _keep_gradient(self, name: str, p: Tensor) -> None:
        if p.grad is not None:  # the sum so far; the last micro-batch's is the whole
            self._gradients[name] = p.grad.detach().float().norm()

    def _keep(self, kind: str, name: str, module: nn.Module, given: Any, out: Any) -> None:
        if not torch.is_grad_enabled():  # an evaluation between updates
            return
        if not module.training:
            self._resting.add(module)
        with torch.no_grad():
            if kind == "dead":
                h_NF = given[0].detach().flatten(0, -2).float()
                alive = h_NF.abs().amax(0) > SILENT * h_NF.square().mean().sqrt()
                self._passing[kind][name] = 1 - alive.float().mean()
            elif kind == "saturated":
                low = 0.0 if isinstance(module, nn.Sigmoid) else -1.0
                edge = 0.01 * (1 - low)
                self._passing[kind][name] = ((out < low + edge) | (out > 1 - edge)).float().mean()
            else:
                x = out[0] if isinstance(out, tuple) else out
                self._passing[kind][name] = x.detach().float().square().mean().sqrt()

    def _read(self, record: Record) -> None:
        """Compare weights with those before the update, and judge."""
        reading = Reading(record.step)
        for name, p in self.parameters.items():
            now, before = p.detach(), self._before[name].to(p.device)
            size = float(before.float().norm())
            if size > 0:
                reading.ratios[name] = float((now - before).float().norm()) / size
            if p.ndim >= 2:
                reading.unmoved[name] = float((now == before).float().mean())
        norms = {name: float(norm) for name, norm in self._gradients.items()}
        whole = math.sqrt(sum(norm * norm for norm in norms.values()))
        factor = record.grad_norm / whole if whole > 0 else 0.0  # of the sum, to that of the mean
        reading.gradients = {name: factor * norm for name, norm in norms.items()}
        earlier = self.readings[-1].gradients if self.readings else {}
        reading.without = [  # LoRA's first matrix begins with 0, and only begins
            name
            for name in self.parameters
            if name not in norms or norms[name] == earlier.get(name) == 0.0
        ]
        for kind, values in self._passing.items():
            setattr(reading, kind, {name: float(value) for name, value in values.items()})
        reading.evaluating = len(self._resting)
        self.close()
        self.readings.append(reading)
        self._judge(reading, record.learning_rate)

    def _judge(self, reading: Reading, rate: float) -> None:
        step = reading.step
        if reading.without:
            self._warn(
                step, "gradient",
                f"no gradient reaches {len(reading.without)} of {len(self.parameters)} tensors "
                f"({_some(reading.without)}), usual is 0: look for detach, no_grad, or a part that "
                "the loss does not read",
            )  # fmt: skip
        if reading.evaluating:
            self._warn(
                step, "mode",
                f"{reading.evaluating} modules computed in eval mode, usual is 0 while training: "
                "dropout is off; call model.train() after each evaluation",
            )  # fmt: skip
        # Of the first updates Adam's are the largest, and warm-up's the smallest: wait a little.
        settled = [r for r in self.readings if r.step > 1]
        moving = [n for n in reading.unmoved if n in reading.ratios and n not in reading.without]
        if len(settled) >= 2 and moving:
            ratios = {n: _median([r.ratios[n] for r in settled if n in r.ratios]) for n in moving}
            high = max(ratios, key=ratios.__getitem__)
            if ratios[high] > RATIO[1]:
                self._warn(
                    step, "ratio",
                    f"{high} changes by {ratios[high]:.1%} of its size in an update, usual is "
                    f"0.01 % to 3 %: lower the learning rate (now {rate:.1e})",
                )  # fmt: skip
            elif (grown := self._growth(moving))[1] > GROWTH:
                self._warn(
                    step, "ratio",
                    f"{grown[0]} is {grown[1]:.0f} times as large as at the start, usual is below "
                    f"10: lower the learning rate (now {rate:.1e})",
                )  # fmt: skip
            elif ratios[high] < RATIO[0]:
                self._warn(
                    step, "ratio",
                    f"no matrix changes by more than {ratios[high]:.1e} of its size in an update, "
                    f"usual is 1e-4 to 3e-2: raise the learning rate (now {rate:.1e})",
                )  # fmt: skip
            inside = [n for n in moving if n not in self._tables]  # rows of absent tokens may rest
            rest = {n: _median([r.unmoved[n] for r in settled]) for n in inside}
            if rest and max(rest.values()) > UNMOVED:
                worst = max(rest, key=rest.__getitem__)
                self._warn(
                    step, "unmoved",
                    f"{rest[worst]:.0%} of the numbers of {worst} do not move at all, usual is "
                    f"below 1 %: steps are lost in {self.parameters[worst].dtype}; keep the weights"
                    " in float32 and let autocast round",
                )  # fmt: skip
        if self._gains:
            gains = [float(self.parameters[n].detach().abs().mean()) for n in self._gains]
            mean = sum(gains) / len(gains)
            if max(gains) < 1 and mean < GAIN:
                self._warn(
                    step, "gains",
                    f"all {len(gains)} norm gains fell below 1, to {mean:.2f} in the mean, usual "
                    "is that some rise: leave vectors out of weight decay",
                )  # fmt: skip
        for kind, limit, advice in (
            ("dead", DEAD, "lower the rate, or begin with smaller weights"),
            ("saturated", SATURATED, "begin with smaller weights, or normalise what goes in"),
        ):
            shares: dict[str, float] = getattr(reading, kind)
            worst = max(shares, key=shares.__getitem__, default=None)
            if worst is not None and shares[worst] > limit:
                self._warn(
                    step, kind,
                    f"{shares[worst]:.0%} of the units of {worst} are {kind}, usual is below 10 %: "
                    f"{advice}",
                )  # fmt: skip

    def _growth(self, names: list[str]) -> tuple[str, float]:
        """The matrix that grew most since the start, and how many times."""
        now = {n: float(self.parameters[n].detach().norm()) / self._sizes[n] for n in names
               if self._sizes[n] > 0}  # fmt: skip
        name = max(now, key=now.__getitem__, default="")
        return name, now.get(name, 1.0)

    # The order of the data

    def _follow(self, step: int) -> None:
        assert self.batches is not None
        if not self._passed and step != 1:  # resumed: what passed before is not known
            return
        indices = list(self.batches.indices(step - 1))
        self._seen.update(indices)
        self._passed += len(indices)
        pairs = list(pairwise(indices))
        self._neighbours += sum(b - a == 1 for a, b in pairs)
        self._pairs += len(pairs)
        examples = getattr(self.batches, "examples", None)
        if examples is None or step < 5:
            return
        could = min(self._passed, len(examples))
        if len(self._seen) < FRESH * could:
            self._warn(
                step, "repeats",
                f"{self._passed} examples passed and only {len(self._seen)} different ones, usual "
                f"is {could} of {len(examples)}: the order begins anew; make it a function of the "
                "number of the update",
            )  # fmt: skip
        if self._pairs and self._neighbours > IN_ORDER * self._pairs and len(examples) > 20:
            share = self._neighbours / self._pairs
            self._warn(
                step, "order",
                f"{share:.0%} of neighbours in a batch are neighbours in the data, usual is below "
                "5 %: shuffle the examples",
            )  # fmt: skip


def _watched(model: nn.Module) -> list[tuple[str, str, nn.Module]]:
    """(what is read, name, module): blocks, the matrix that ends a feed-forward net, squashers."""
    names = {module: name for name, module in model.named_modules()}
    found: list[tuple[str, str, nn.Module]] = []
    for block in blocks(model):
        found.append(("scale", names[block], block))
        linears = [m for m in block.modules() if isinstance(m, nn.Linear)]
        widest = max(linears, key=lambda m: m.in_features, default=None)
        if widest is not None and widest.in_features > widest.out_features:
            found.append(("dead", names[widest], widest))
    squashers = [(n, m) for m, n in names.items() if isinstance(m, nn.Tanh | nn.Sigmoid)]
    return found + [("saturated", name, module) for name, module in squashers]


def _classes(model: nn.Module) -> int | None:
    config = getattr(model, "config", None)
    labels = getattr(getattr(model, "classifier", None), "out_features", None)
    size = labels or getattr(config, "vocab_size", None)
    return size if isinstance(size, int) else None


def _judge_start(warn: Callable[[int, str, str], None], loss: float, uniform: float) -> None:
    if loss < uniform - BELOW:
        warn(
            1, "start",
            f"the first loss is {loss:.2f} nats, usual is log V = {uniform:.2f}: no untrained "
            "model knows better, so look for a wrong denominator or targets among the inputs",
        )  # fmt: skip
    elif loss > uniform + ABOVE:
        warn(
            1, "start",
            f"the first loss is {loss:.2f} nats, usual is log V = {uniform:.2f}: the logits begin "
            "too large; begin with smaller weights, or look for a sum that should be a mean",
        )  # fmt: skip


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2] if values else math.nan


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


# Before a run -----------------------------------------------------------------------------------


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
    size = classes or _classes(model)
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
    T, size = ids_BT.shape[1], _classes(model) or int(ids_BT.max()) + 1
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


def label_offset(batch: Batch, furthest: int = 4) -> tuple[int, float]:
    """How many tokens ahead the targets stand: 1 for a language model.

    Args:
        batch: `input_ids`, `labels` (B, T).
        furthest: offsets 0 to this are compared.

    Returns:
        (offset, share of targets that are the token at that offset), the best of all.
    """
    ids_BT, labels_BT = batch["input_ids"], batch["labels"]
    shares = {}
    for offset in range(min(furthest, ids_BT.shape[1] - 1) + 1):
        target = labels_BT[:, : ids_BT.shape[1] - offset]
        valid = target != IGNORE_INDEX
        equal = (target == ids_BT[:, offset:]) & valid
        shares[offset] = float(equal.sum()) / max(1, int(valid.sum()))
    best = max(shares, key=shares.__getitem__)
    return best, shares[best]


def _on(model: nn.Module, batch: Batch) -> Batch:
    device = next(model.parameters()).device
    return {name: tensor.to(device) for name, tensor in batch.items()}
