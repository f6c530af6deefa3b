"""A hook that watches a run: what each n-th update does to the weights, and what is odd about it.

    train(..., on_step=Diagnostics(model)) ──> readings: of every n-th update, tensor by tensor
                                           ──> warnings: value, what is usual, what to do

    weights before ┐
    weights after  ├─> ratios, unmoved, growth, gains ┐
    gradients      ──> norms before clipping          ├─> Reading ──> symptoms ──> Finding
    activations    ──> dead, saturated, scale, modes  ┘
    order          ──> which examples passed, of every update ──────> symptoms ──> Finding

It reads what an update leaves behind and what passes by; it changes nothing, so a run with it and
one without end in the same weights to the bit.

Sources: Karpathy 2022, makemore part 3 (update-to-weight ratio, dead and saturated units).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from labkit.batches import BatchSource
from labkit.errors import LabError
from labkit.models.transformer import blocks
from labkit.training import symptoms
from labkit.training.preflight import classes_of
from labkit.training.records import Record
from labkit.training.symptoms import Finding, Reading

#: A unit is dead where it stays below this share of its layer's root mean square.
SILENT = 1e-3


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
        self.classes = (classes or classes_of(model)) if fresh else None
        self.readings: list[Reading] = []
        self.warnings: list[Finding] = []
        self._gains = [
            n for n, p in self.parameters.items() if p.ndim == 1 and bool((p == 1).all())
        ]
        self._tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
        self._sizes = {n: float(p.float().norm()) for n, p in self._detached() if p.ndim >= 2}
        examples = getattr(batches, "examples", None)
        self._order = None if examples is None else symptoms.Order(len(examples))
        self._step, self._rate = 0, 0.0
        self._handles: list[Any] = []
        self._arm(due=1)

    def __call__(self, record: Record) -> None:
        """Take the record of an update; the model holds its weights."""
        if record.step == 1 and self.classes:
            self._warn(1, symptoms.of_start(record.loss, math.log(self.classes)))
        self._warn(record.step, symptoms.of_rate(record, self._rate))
        if record.step != self._step + 1:  # resumed: what passed before is not known
            self._order = None
        if self._order is not None and self.batches is not None:
            indices = list(self.batches.indices(record.step - 1))
            self._warn(record.step, self._order.of_update(record.step, indices))
        self._step, self._rate = record.step, record.learning_rate
        if record.step == self._due:
            self.readings.append(self._read(record))
            self._warn(record.step, symptoms.of_readings(self.readings, record.learning_rate))
        self.close()
        if record.step < record.total_steps and (record.step + 1) % self.every == 0:
            self._arm(due=record.step + 1)

    def close(self) -> None:
        """Take the hooks off the model; needed only where a run ends before its last update."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._before, self._due = [], {}, 0

    def _warn(self, step: int, found: symptoms.Symptoms) -> None:
        for kind, says in found:
            if kind not in {warning.kind for warning in self.warnings}:
                self.warnings.append(Finding(step, kind, f"update {step}: {says}"))
                if self.say is not None:
                    self.say(self.warnings[-1].says)

    def _detached(self) -> list[tuple[str, Tensor]]:
        return [(name, p.detach()) for name, p in self.parameters.items()]

    def _arm(self, due: int) -> None:
        """Look at the next update, which should be number `due`: a resumed run begins later."""
        self._due = due
        self._before = {n: p.clone() for n, p in self._detached()}
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

    def _read(self, record: Record) -> Reading:
        """Compare weights with those before the update; gather what passed."""
        reading = Reading(record.step)
        for name, now in self._detached():
            before = self._before[name].to(now.device)
            size = float(before.float().norm())
            if size > 0:
                reading.ratios[name] = float((now - before).float().norm()) / size
            if start := self._sizes.get(name, 0.0):
                reading.growth[name] = size / start
            if now.ndim >= 2 and id(self.parameters[name]) not in self._tables:
                reading.unmoved[name] = float((now == before).float().mean())
        reading.gains = {n: float(self.parameters[n].detach().abs().mean()) for n in self._gains}
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
        return reading


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
