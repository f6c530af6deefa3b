"""Pipeline parallel by hand: each rank holds some of the layers and hands on what they make.

    stage 0   embedding, blocks 0, 1  ──x_BTD──>  stage 1   blocks 2, 3, final norm, head ──> loss
                                      <──dx_BTD──

One batch would leave all stages but one idle; micro-batches follow each other through the stages.
Of 3 stages and 4 micro-batches (a backward pass takes twice a forward pass):

    GPipe   0  F0F1F2F3            B0──B1──B2──B3──     all forward, then all backward:
            1    F0F1F2F3      B0──B1──B2──B3──         every micro-batch waits in memory
            2      F0F1F2F3B0──B1──B2──B3──

    1F1B    0  F0F1F2        B0──F3B1──  B2──  B3──     after a start, one forward, one backward:
            1    F0F1    B0──F2B1──F3B2──  B3──         stage s keeps at most S - s of them
            2      F0B0──F1B1──F2B2──F3B3──

Both idle for the same share of the time, the bubble: (S - 1) / (m + S - 1) for m micro-batches and
S equal stages. What 1F1B saves is memory, so that m can be larger.

Legend: B batch, T positions, D model width, S stages, m micro-batches.

Sources: Huang et al. 2019, arXiv:1811.06965 (GPipe); Narayanan et al. 2019 (PipeDream, 1F1B) and
2021, arXiv:2104.04473, section 2.2.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from labkit.batches import Batch
from labkit.errors import LabError
from labkit.models.transformer import Transformer
from labkit.objectives.tasks import Objective
from labkit.parallel import collectives
from labkit.parallel.collectives import Group
from labkit.parallel.decoders import head_of


class Task(NamedTuple):
    """One pass of one micro-batch through one stage."""

    kind: str
    """F or B."""
    micro: int


class Done(NamedTuple):
    """A task with its time, on whatever clock."""

    stage: int
    task: Task
    began: float
    ended: float


Schedule = Callable[[int, int, int], list[Task]]


def gpipe(stage: int, stages: int, micros: int) -> list[Task]:
    """All forward passes, then all backward passes."""
    return [Task(kind, i) for kind in "FB" for i in range(micros)]


def one_f_one_b(stage: int, stages: int, micros: int) -> list[Task]:
    """As many forward passes as there are stages below, then one forward, one backward."""
    ahead = min(stages - stage - 1, micros)
    tasks = [Task("F", i) for i in range(ahead)]
    for i in range(micros - ahead):
        tasks += [Task("F", ahead + i), Task("B", i)]
    return tasks + [Task("B", i) for i in range(micros - ahead, micros)]


def simulate(
    schedule: Schedule, stages: int, micros: int, forward: float = 1.0, backward: float = 2.0
) -> list[Done]:
    """When each task runs if nothing but what it needs delays it, and sending is free.

    Args:
        schedule: `gpipe` or `one_f_one_b`.
        forward, backward: what a pass of one micro-batch through one stage takes.
    """
    todo = [schedule(stage, stages, micros) for stage in range(stages)]
    ended: dict[tuple[int, Task], float] = {}
    free, done = [0.0] * stages, []
    while any(todo):
        for stage, tasks in enumerate(todo):
            while tasks:
                task = tasks[0]
                before = stage - 1 if task.kind == "F" else stage + 1
                needs = (before, task) if 0 <= before < stages else (stage, Task("F", task.micro))
                first = task.kind == "F" and stage == 0
                if not first and needs not in ended:
                    break
                began = free[stage] if first else max(free[stage], ended[needs])
                free[stage] = began + (forward if task.kind == "F" else backward)
                ended[stage, task] = free[stage]
                done.append(Done(stage, tasks.pop(0), began, free[stage]))
    return done


def bubble(done: list[Done]) -> float:
    """The share of the stages' time, from the first task's start to the last one's end, not used.

    >>> round(bubble(simulate(one_f_one_b, stages=4, micros=8)), 4)
    0.2727
    """
    stages = 1 + max(d.stage for d in done)
    span = max(d.ended for d in done) - min(d.began for d in done)
    return 1 - sum(d.ended - d.began for d in done) / (stages * span)


class Pipeline:
    """This rank's stage of a decoder, and the messages between the stages.

        pipeline = Pipeline(model, causal_lm)      # leaves the model this rank's layers
        loss_sum, count = pipeline.run(micro_batches, one_f_one_b)
        pipeline.named_parameters()                # with gradient sums, ready for an optimiser

    All ranks begin with the same weights and read the same batches. A table that is tied to the
    head stands on the first and on the last stage; their gradients are added up.

    Raises:
        LabError: fewer blocks than ranks, or no decoder without dropout.
    """

    def __init__(self, model: Transformer, objective: Objective, group: Group = None):
        self.stage, self.stages = collectives.place(group)
        config = model.config
        head = head_of(model)
        if self.stages > config.num_layers:
            raise LabError(
                f"{config.num_layers} blocks are too few for {self.stages} stages: choose at least"
                " one block for each rank"
            )
        self.model, self.objective, self.group = model, objective, group
        self.first, self.last = self.stage == 0, self.stage == self.stages - 1
        self.timeline: list[Done] = []
        self.most_kept = 0
        self.tied = head.weight if config.tied_embeddings else None
        names = {p: name for name, p in model.named_parameters()}
        own = torch.arange(config.num_layers).tensor_split(self.stages)[self.stage].tolist()
        anything: Any = model
        anything.blocks = model.blocks[own[0] : own[-1] + 1]
        if not self.first:
            anything.embedding, anything.positions = nn.Identity(), None  # it is given x_BTD
        if not self.last:
            anything.final_norm, anything.lm_head = nn.Identity(), None
        self.names = {p: names[p] for p in model.parameters()}

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """What this stage holds, under the names of the whole model."""
        return {name: p for p, name in self.names.items()}

    def run(self, micro_batches: list[Batch], schedule: Schedule) -> tuple[Tensor, Tensor]:
        """Forward and backward of all micro-batches; gradients are sums over them.

        Returns:
            (loss sum, count) of all, on every rank.
        """
        self.timeline, self.most_kept = [], 0
        self._kept: dict[int, tuple[Tensor | None, Tensor]] = {}
        self._sent: list[tuple[dist.Work, Tensor]] = []
        totals = torch.zeros(2, dtype=torch.float64)
        for task in schedule(self.stage, self.stages, len(micro_batches)):
            batch = micro_batches[task.micro]
            came = self._receive(task, batch)
            began = time.perf_counter()
            leaves = self._forward(task, batch, came, totals) if task.kind == "F" else None
            leaves = self._backward(task, came) if task.kind == "B" else leaves
            self.timeline.append(Done(self.stage, task, began, time.perf_counter()))
            if leaves is not None:
                to = self.stage + (1 if task.kind == "F" else -1)
                leaves = leaves.contiguous()
                self._sent.append((collectives.send(leaves, to, self.group), leaves))
        for work, _ in self._sent:
            work.wait()
        self._add_tied()
        loss_sum, count = collectives.all_reduce(totals, self.group)  # others than the last have 0
        return loss_sum, count

    def _receive(self, task: Task, batch: Batch) -> Tensor | None:
        """What the task needs of a neighbour: x_BTD from above, or dx_BTD from below."""
        if (self.first and task.kind == "F") or (self.last and task.kind == "B"):
            return None
        p = next(self.model.parameters())
        came_BTD = p.new_empty(*batch["input_ids"].shape, self.model.config.d_model)
        source = self.stage - 1 if task.kind == "F" else self.stage + 1
        collectives.receive(came_BTD, source, self.group).wait()
        return came_BTD

    def _forward(
        self, task: Task, batch: Batch, x_BTD: Tensor | None, totals: Tensor
    ) -> Tensor | None:
        if x_BTD is not None:
            batch = {**batch, "input_ids": x_BTD.requires_grad_()}
        if self.last:
            out, count = self.objective(self.model, batch)
            totals += torch.stack([out.detach().double(), count.double()])
        else:
            given: Any = {k: v for k, v in batch.items() if k != "labels"}
            out = self.model.encode(**given)
        self._kept[task.micro] = x_BTD, out
        self.most_kept = max(self.most_kept, len(self._kept))
        return None if self.last else out.detach()

    def _backward(self, task: Task, gradient_BTD: Tensor | None) -> Tensor | None:
        x_BTD, out = self._kept.pop(task.micro)
        out.backward(gradient_BTD)
        return None if x_BTD is None else x_BTD.grad

    def _add_tied(self) -> None:
        """One table on two stages: each gets the other's gradient added."""
        if self.tied is None or self.stages == 1 or not (self.first or self.last):
            return
        gradient = self.tied.grad
        assert gradient is not None
        other = self.stages - 1 if self.first else 0
        heard = torch.empty_like(gradient)
        sent = collectives.send(gradient.clone(), other, self.group)
        collectives.receive(heard, other, self.group).wait()
        sent.wait()
        gradient.add_(heard)
