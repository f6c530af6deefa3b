"""The optimiser's step during the backward pass: gradients never exist all at once.

Source: Lv et al. 2023, arXiv:2306.09782.
"""

import torch
from torch import Tensor


class StepInBackward:
    """Update each parameter the moment its gradient is complete, then free that gradient.

    backward ──> gradient of one parameter ──> times `factor` ──> step of it alone ──> freed

    Exactly the ordinary update, because AdamW treats every number alone. What needs all gradients
    at once is lost: clipping by the global norm, a loss scaler that skips steps, and gradients that
    add up over micro-batches. One backward pass is one update. A gradient that is not finite has
    changed the weights by the time a loop can stop: go on from a checkpoint.

    Args:
        optimizer: of `build`; not Muon, which steps whole stacks of matrices.

    Source: Lv et al. 2023, arXiv:2306.09782, section 3.1.
    """

    factor: float = 1.0
    """Multiplies every gradient; set before the backward pass, as 1 / count of valid targets."""

    def __init__(self, optimizer: torch.optim.Optimizer):
        self.optimizer, self.squares = optimizer, []
        self.group_of = {p: group for group in optimizer.param_groups for p in group["params"]}
        self.hooks = [p.register_post_accumulate_grad_hook(self._step) for p in self.group_of]

    @torch.no_grad()
    def _step(self, p: Tensor) -> None:
        assert p.grad is not None
        p.grad.mul_(self.factor)
        self.squares.append(p.grad.norm().square())
        everything = self.optimizer.param_groups
        self.optimizer.param_groups = [{**self.group_of[p], "params": [p]}]
        self.optimizer.step()
        self.optimizer.param_groups = everything
        p.grad = None

    def norm(self) -> float:
        """L2 norm of the gradient that the last backward pass used up."""
        squares, self.squares = self.squares, []
        return float(torch.stack(squares).sum().sqrt()) if squares else 0.0

    def remove(self) -> None:
        """Make backward passes ordinary again."""
        for hook in self.hooks:
            hook.remove()
