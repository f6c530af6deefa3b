"""One adapter per task on one frozen base: learning a task cannot touch another.

    bank.begin("news") ──> train ──> bank.keep("news")        bank.use("news"), bank.use(None)
                   base: frozen, once  +  a small file's worth of tensors for each task

Which task a text belongs to must be known (or found by a router): that is the method's price.

Sources: Houlsby et al. 2019, arXiv:1902.00751, section 1; Rusu et al. 2016, arXiv:1606.04671
(columns that are frozen once learned).
"""

import torch
from torch import Tensor, nn

from labkit.errors import LabError
from labkit.models.adapting import strategies
from labkit.models.adapting.settings import ADDING, Strategy


class TaskAdapters:
    """What a strategy trains, kept apart for each task.

    A layer of the task's own (a classifier) and norms that train along are kept with the task, too;
    without a task the model has those that it came with.
    """

    def __init__(self, model: nn.Module, strategy: str | Strategy = "lora"):
        """
        Args:
            model: the base, labkit's or transformers'; no strategy on it.
            strategy: one that adds weights: adapters, lora, prompt or prefix.

        Raises:
            LabError: a strategy that changes the base itself.
        """
        settings = Strategy(strategy) if isinstance(strategy, str) else strategy  # type: ignore
        if settings.name not in ADDING:
            raise LabError(
                f"strategy {settings.name!r} changes the base that all tasks share: choose one of "
                f"{', '.join(ADDING)}"
            )
        strategies.remove(model)
        self.model, self.strategy = model, settings
        self.active: str | None = None
        self._base: dict[str, Tensor] = {}
        self._kept: dict[str, dict[str, Tensor]] = {}

    @property
    def tasks(self) -> list[str]:
        """Those that have an adapter, in the order in which they were kept first."""
        return list(self._kept)

    def begin(self, task: str) -> list[str]:
        """Put a fresh adapter on the base; train, then `keep`. Names of what trains."""
        self.use(None)
        own = dict(self.model.named_parameters())
        names = strategies.apply(self.model, self.strategy)
        # What trains along, a head or norms: it must come back when another task is used.
        self._base |= {n: own[n].detach().clone().cpu() for n in names if n in own}
        self.active = task
        return names

    def keep(self) -> None:
        """Store what the adapter that is on has learned, under its task.

        Raises:
            LabError: none is on.
        """
        if self.active is None:
            raise LabError("0 adapters are on: call begin(task), or use(task), before keep()")
        self._kept[self.active] = {
            name: p.detach().clone().cpu()
            for name, p in self.model.named_parameters()
            if p.requires_grad
        }

    def use(self, task: str | None) -> None:
        """Answer as for this task from now on; None: as the base.

        Raises:
            LabError: no adapter was kept for it.
        """
        if task is not None and task not in self._kept:
            raise LabError(
                f"task {task!r} has no adapter: choose one of {', '.join(self._kept) or 'none yet'}"
            )
        strategies.remove(self.model)
        _load(self.model, self._base)
        self.active = task
        if task is not None:
            strategies.apply(self.model, self.strategy)
            _load(self.model, self._kept[task])

    def numbers(self, task: str) -> int:
        """How many numbers are kept for a task."""
        return sum(tensor.numel() for tensor in self._kept[task].values())


@torch.no_grad()
def _load(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Set those parameters that differ: the others, most of a base, are left alone."""
    named = dict(model.named_parameters())
    for name, tensor in tensors.items():
        named[name].copy_(tensor)
