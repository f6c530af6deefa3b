"""ZeRO by hand: data parallel in which no rank holds everything.

    stage     weights    gradients   AdamW's moments    sent by a rank in an update
    0         P          P           2 P                2 (N - 1)/N P     (`data_parallel`)
    1         P          P           2 P / N            2 (N - 1)/N P
    2         P          P / N       2 P / N            2 (N - 1)/N P
    3         P / N      P / N       2 P / N            3 (N - 1)/N P

An all-reduce is a reduce-scatter and an all-gather. Stages 1 and 2 put the update between the two:
a rank hears its chunk of the gradient, updates its chunk of the weights, and tells the others, so
dividing costs nothing to send. Stage 3 keeps of every unit (a block; what is around the blocks) its
own chunk alone:

    forward    gather block 1, use, drop;  gather block 2, use, drop;  ...
    backward   gather block 2, use, reduce-scatter its gradient, drop;  block 1;  ...

What autograd saves of a gathered weight is where it lay, not the weight: the backward pass gathers
again (`_Sharded.pack`). Never is more than one block whole, beside what is around the blocks.

Legend: P bytes of the parameters in one format, N ranks, c numbers of a chunk.

Sources: Rajbhandari et al. 2020, arXiv:1910.02054; Zhao et al. 2023, arXiv:2304.11277 (FSDP).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from labkit.errors import LabError
from labkit.models.transformer import blocks
from labkit.optim.by_hand import adam_step
from labkit.parallel import collectives
from labkit.parallel.collectives import Group


class Held(NamedTuple):
    """Bytes of training that this rank holds now."""

    weights: int
    gradients: int
    optimizer: int


def flat(tensors: list[Tensor]) -> Tensor:
    """Tensors as one, end to end."""
    return torch.cat([t.flatten() for t in tensors])


def units(model: nn.Module) -> list[list[nn.Parameter]]:
    """The parameters of each block, and last of all what is around the blocks; tied ones once."""
    groups = [list(block.parameters()) for block in blocks(model)]
    inside = {p for group in groups for p in group}
    return [*groups, [p for p in model.parameters() if p not in inside]]


@dataclass
class Unit:
    """The chunk of some parameters that this rank updates."""

    parameters: list[nn.Parameter]
    group: Group = None
    gradient_c: Tensor | None = None

    def __post_init__(self) -> None:
        rank, size = collectives.place(self.group)
        self.sizes = [p.numel() for p in self.parameters]
        # Matrices decay, vectors do not: a chunk may hold parts of both.
        decays_n = flat(
            [torch.full_like(p, p.ndim >= 2, dtype=torch.bool) for p in self.parameters]
        )
        self.decays_c = collectives.chunks(decays_n, size)[rank].clone()
        moment_c = torch.zeros_like(self.decays_c, dtype=self.parameters[0].dtype)
        self.m_c, self.v_c = moment_c, moment_c.clone()

    def hear(self) -> None:
        """Add this rank's chunk of the gradient over ranks; whole gradients go."""
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        heard_c = collectives.reduce_scatter(flat(grads), self.group)
        self.gradient_c = heard_c if self.gradient_c is None else self.gradient_c + heard_c
        for p in self.parameters:
            p.grad = None

    def adamw(self, weight_c: Tensor, step: int, count: float, rate: float, decay: float) -> None:
        """AdamW of the chunk, in place, by the gradient sum over `count`; the gradient goes."""
        assert self.gradient_c is not None
        weight_c.sub_(rate * decay * (weight_c * self.decays_c))
        mean_c = self.gradient_c / count
        betas = (0.9, 0.95)
        adam_step(weight_c, mean_c, self.m_c, self.v_c, step, learning_rate=rate, betas=betas)
        self.gradient_c = None


@dataclass
class Zero:
    """Stages 1 and 2: every rank computes with whole weights and updates its chunk of them.

        zero = Zero(model, stage=2)
        loss_sum.backward()                # stage 2: gradients leave block by block
        zero.step(count)

    The ranks begin with the same weights.
    """

    model: nn.Module
    stage: int = 1
    """1 divides the moments, 2 the gradients too."""
    weight_decay: float = 0.1
    group: Group = None
    updates: int = 0
    most_gradients: int = 0
    """Bytes of gradients held at the fullest moment of the backward pass, chunks included."""
    units: list[Unit] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.stage not in (1, 2):
            raise LabError(f"stage {self.stage} is out of range: choose 1 or 2 (3 is ZeroThree)")
        self.units = [Unit(parameters, self.group) for parameters in units(self.model)]
        for unit in self.units:
            for p in unit.parameters:
                p.register_post_accumulate_grad_hook(self._ready(unit))

    def _ready(self, unit: Unit) -> Callable[[Tensor], None]:
        def ready(_: Tensor) -> None:
            self.most_gradients = max(self.most_gradients, self.held().gradients)
            if self.stage == 2 and all(p.grad is not None for p in unit.parameters):
                unit.hear()

        return ready

    @torch.no_grad()
    def step(self, count: float, learning_rate: float = 1e-3) -> None:
        """AdamW with the gradient sum over all ranks, divided by `count`, the targets of all."""
        self.updates += 1
        rank, size = collectives.place(self.group)
        for unit in self.units:
            if any(p.grad is not None for p in unit.parameters):
                unit.hear()
            weights_n = flat([p.detach() for p in unit.parameters])
            own_c = collectives.chunks(weights_n, size)[rank].clone()
            unit.adamw(own_c, self.updates, count, learning_rate, self.weight_decay)
            collectives.all_gather(own_c, weights_n, self.group)
            parts = weights_n.split(unit.sizes)
            for p, part in zip(unit.parameters, parts, strict=True):
                p.copy_(part.view_as(p))

    def held(self) -> Held:
        """Bytes of what this rank has now."""
        weights = [p for unit in self.units for p in unit.parameters]
        gradients = [p.grad for p in weights] + [unit.gradient_c for unit in self.units]
        moments = [t for unit in self.units for t in (unit.m_c, unit.v_c)]
        return Held(_bytes(weights), _bytes(gradients), _bytes(moments))


class _Gather(torch.autograd.Function):
    """Forward: chunk -> whole. Backward: whole gradient -> chunk of the sum over ranks."""

    @staticmethod
    def forward(ctx, chunk_c: Tensor, sharded: "_Sharded") -> Tensor:
        ctx.sharded = sharded
        return sharded.gather()

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        sharded: _Sharded = ctx.sharded
        sharded.again = None  # every use of the weights is behind us
        sharded.now_whole -= 1
        heard_c = collectives.reduce_scatter(gradients[0].contiguous(), sharded.unit.group)
        return heard_c, None


class _Sharded:
    """A unit whose parameters are whole only while it is used."""

    def __init__(self, unit: Unit, module: nn.Module, watch: Callable[[], None]):
        self.unit, self.watch = unit, watch
        rank, size = collectives.place(unit.group)
        whole_n = flat([p.detach() for p in unit.parameters])
        self.chunk_c = nn.Parameter(collectives.chunks(whole_n, size)[rank].clone())
        self.shapes = [p.shape for p in unit.parameters]
        self.places = [_take_out(module, p) for p in unit.parameters]
        for p in unit.parameters:
            p.data = p.data.new_empty(0)  # whoever still holds it, holds nothing
        self.whole_n: Tensor | None = None
        self.again: Tensor | None = None
        self.now_whole = 0

    def gather(self) -> Tensor:
        """All chunks, side by side."""
        out_n = self.chunk_c.new_empty(sum(self.unit.sizes))
        self.now_whole += 1
        self.watch()
        return collectives.all_gather(self.chunk_c.detach(), out_n, self.unit.group)

    def enter(self, *_: object) -> None:
        """Gather, and put the weights where the modules look for them."""
        self.whole_n = _Gather.apply(self.chunk_c, self)
        assert self.whole_n is not None
        for part, shape, where in zip(
            self.whole_n.split(self.unit.sizes), self.shapes, self.places, strict=True
        ):
            for module, name in where:
                setattr(module, name, part.view(shape))
        self.hooks = saved_tensors_hooks(self.pack, self.unpack)
        self.hooks.__enter__()

    def leave(self, *_: object) -> None:
        """Drop the weights."""
        self.hooks.__exit__()
        for where in self.places:
            for module, name in where:
                delattr(module, name)
        self.whole_n = None
        self.now_whole -= 1

    def pack(self, tensor: Tensor) -> Any:
        """Of a piece of the gathered weights, keep where it lay."""
        whole_n = self.whole_n
        assert whole_n is not None
        if tensor.untyped_storage().data_ptr() != whole_n.untyped_storage().data_ptr():
            return tensor
        return tensor.size(), tensor.stride(), tensor.storage_offset()

    def unpack(self, kept: Any) -> Tensor:
        """The piece again: the first that is asked for gathers them all."""
        if isinstance(kept, Tensor):
            return kept
        if self.again is None:
            self.again = self.gather()
        return self.again.as_strided(*kept)


class ZeroThree:
    """Stage 3: between its uses a rank holds 1/N of every weight, gradient and moment.

        zero = ZeroThree(model)            # takes the weights out of the model
        loss_sum, count = zero(causal_lm, batch)
        loss_sum.backward()
        zero.step(count)

    The ranks begin with the same weights. The model has no parameters outside of a call;
    `most_whole` says how many blocks were ever whole at once, forward and backward.
    """

    def __init__(self, model: nn.Module, weight_decay: float = 0.1, group: Group = None):
        self.model, self.weight_decay, self.group, self.updates = model, weight_decay, group, 0
        own = [Unit(parameters, group) for parameters in units(model)]
        self.names = {p: name for name, p in model.named_parameters()}
        self.sharded = [_Sharded(unit, model, self._watch) for unit in own]
        self.most_whole = 0
        for sharded, block in zip(self.sharded, blocks(model), strict=False):
            block.register_forward_pre_hook(sharded.enter)
            block.register_forward_hook(sharded.leave)

    def _watch(self) -> None:
        self.most_whole = max(self.most_whole, sum(s.now_whole for s in self.sharded[:-1]))

    def __call__(self, objective: Callable, batch: Any) -> Any:
        """`objective(model, batch)` with what is around the blocks gathered."""
        around = self.sharded[-1]
        around.enter()
        try:
            return objective(self.model, batch)
        finally:
            around.leave()

    @torch.no_grad()
    def step(self, count: float, learning_rate: float = 1e-3) -> None:
        """AdamW of every chunk; nothing is sent."""
        self.updates += 1
        for sharded in self.sharded:
            unit, chunk_c = sharded.unit, sharded.chunk_c
            unit.gradient_c, chunk_c.grad = chunk_c.grad, None
            unit.adamw(chunk_c, self.updates, count, learning_rate, self.weight_decay)

    def whole(self, gradients: bool = False) -> dict[str, Tensor]:
        """All weights (or the gradient sums over ranks) by name, gathered on every rank."""
        found = {}
        for sharded in self.sharded:
            chunk_c = sharded.chunk_c.grad if gradients else sharded.chunk_c.detach()
            assert chunk_c is not None
            out_n = chunk_c.new_empty(sum(sharded.unit.sizes))
            parts = collectives.all_gather(chunk_c, out_n, self.group).split(sharded.unit.sizes)
            for p, part, shape in zip(sharded.unit.parameters, parts, sharded.shapes, strict=True):
                found[self.names[p]] = part.view(shape)
        return found

    def held(self) -> Held:
        """Bytes of what this rank has now, gathered weights included."""
        chunks = [s.chunk_c for s in self.sharded]
        gathered = [t for s in self.sharded for t in (s.whole_n, s.again)]
        moments = [t for s in self.sharded for t in (s.unit.m_c, s.unit.v_c)]
        gradients = [chunk_c.grad for chunk_c in chunks]
        return Held(_bytes([*chunks, *gathered]), _bytes(gradients), _bytes(moments))


def _take_out(model: nn.Module, parameter: nn.Parameter) -> list[tuple[nn.Module, str]]:
    """Every place where a module names the parameter (tied ones have several); names removed."""
    where = [
        (module, name)
        for module in model.modules()
        for name, p in module.named_parameters(recurse=False, remove_duplicate=False)
        if p is parameter
    ]
    for module, name in where:
        delattr(module, name)
    return where


def _bytes(tensors: list[Any]) -> int:
    return sum(t.nbytes for t in tensors if t is not None)
