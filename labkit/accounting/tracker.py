"""Peak memory of an update by part, counted: on real tensors, or simulated without the memory.

    operation ──> new storages ──> bytes alive, by part ──> the largest total so far, and its parts

`PeakTracker` looks at every operation that torch runs and counts the storages that are alive after
it. Under torch's `FakeTensorMode` tensors have shapes and formats but no numbers, so that the same
count tells what a model of any size would need, in seconds and without a GPU.

Sources: torch's FakeTensorMode and TorchDispatchMode (their docstrings); the idea of counting at
dispatch is that of torch.distributed._tools.mem_tracker.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from labkit.accounting.peak import Peak
from labkit.optim.optimizers import build
from labkit.optim.step_in_backward import StepInBackward


class PeakTracker(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive; use as `with PeakTracker(model) as tracker`.

    Storages count once however many views they have, from their first operation until torch frees
    them. What one operation uses inside itself is not seen, nor what an allocator holds in reserve.

    Args:
        model: its parameters are the weights; their gradients are recognised.
        others: further tensors that exist already, part -> tensors, such as optimizer state.
    """

    def __init__(self, model: nn.Module, **others: Iterable[Tensor]):
        super().__init__()
        self.model = model
        self.bytes: Counter[str] = Counter()
        self.part_of: dict[int, str] = {}
        self.peak = Peak(0, 0, 0, 0, 0)
        for part, tensors in {"weights": model.parameters(), **others}.items():
            for tensor in tensors:
                self._mark(tensor, part)

    def __enter__(self) -> "PeakTracker":
        self._saved = saved_tensors_hooks(self._save, lambda tensor: tensor)
        self._saved.__enter__()
        self._hooks = [
            p.register_post_accumulate_grad_hook(self._gradient)
            for p in self.model.parameters()
            if p.requires_grad
        ]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for hook in self._hooks:
            hook.remove()
        self._saved.__exit__(*error)

    def __torch_dispatch__(self, function, types, arguments=(), settings=None):
        result = function(*arguments, **(settings or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._mark(leaf)
        if self.bytes.total() > self.peak.total:
            self.peak = Peak(*(self.bytes[part] for part in Peak._fields))
        return result

    def _save(self, tensor: Tensor) -> Tensor:
        self._mark(tensor, "activations", only_from="workspace")
        return tensor

    def _gradient(self, p: Tensor) -> None:
        if p.grad is not None:
            self._mark(p.grad, "gradients")

    def keep(self) -> None:
        """Call after the forward pass: what is alive now, waits for the backward pass."""
        self.bytes["activations"] += self.bytes.pop("workspace", 0)
        for key, part in self.part_of.items():
            if part == "workspace":
                self.part_of[key] = "activations"

    def _mark(self, tensor: Tensor, part: str | None = None, only_from: str | None = None) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self.part_of:
            self.part_of[key] = part or "workspace"
            self.bytes[self.part_of[key]] += size
            weakref.finalize(storage, self._free, key, size)
        elif part and self.part_of[key] != part and only_from in (None, self.part_of[key]):
            self.bytes[self.part_of[key]] -= size
            self.bytes[part] += size
            self.part_of[key] = part

    def _free(self, key: int, size: int) -> None:
        self.bytes[self.part_of.pop(key)] -= size


def measure_peak(
    model: nn.Module,
    loss: Callable[[nn.Module], Tensor],
    *,
    optimizer: str = "adamw",
    step_in_backward: bool = False,
    micro_batches: int = 1,
) -> Peak:
    """The fullest moment of the second update; the first one creates the optimizer's state.

    Args:
        model: trains on its device, at a learning rate of 0 (its weights decay to no less).
        loss: forward pass to a scalar, autocast included.
        optimizer: as in `optim.build`.
        step_in_backward: as in `optim.StepInBackward`; then micro_batches is 1.
        micro_batches: passes whose gradients add up before the step.

    Returns:
        Bytes by part.
    """
    stepper = build(model, learning_rate=0.0, optimizer=optimizer, weight_decay=0.0)
    early = StepInBackward(stepper) if step_in_backward else None

    def update(after_forward: Callable[[], None]) -> None:
        for _ in range(micro_batches):
            value = loss(model)
            after_forward()
            value.backward()
        stepper.step()
        stepper.zero_grad(set_to_none=True)

    update(lambda: None)
    state = [x for s in stepper.state.values() for x in s.values() if isinstance(x, Tensor)]
    with PeakTracker(model, optimizer=state, activations=model.buffers()) as tracker:
        update(tracker.keep)
    if early:
        early.remove()
    return tracker.peak


def simulate_peak(
    build: Callable[[], nn.Module], loss: Callable[[nn.Module], Tensor], **settings: Any
) -> Peak:
    """`measure_peak` on tensors without numbers: no memory is used, no product is computed.

    Both functions run under FakeTensorMode, so they must create their tensors themselves. Tensors
    are CPU tensors; use fp16 autocast to follow the path of a GPU (on a CPU, bf16 has one of its
    own, see `attention.attention`).

    Args:
        build: makes the model.
        loss: as in `measure_peak`.
        settings: as in `measure_peak`.

    Returns:
        Bytes by part.
    """
    with FakeTensorMode():
        return measure_peak(build(), loss, **settings)
