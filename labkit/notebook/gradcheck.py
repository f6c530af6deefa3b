"""Every gradient three ways: by hand, by autograd, by central differences in float64.

The central difference (f(x + h) - f(x - h)) / 2h is off by O(h^2) from truncation and by O(eps / h)
from rounding. In float64 (eps = 2e-16), h = 1e-5 leaves about ten digits: enough to tell a wrong
formula from a right one.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from labkit.errors import LabError
from labkit.notebook.tables import Table, table


def three_ways(
    by_hand: Callable[..., Any],
    function: Callable[..., Tensor],
    inputs: Mapping[str, Tensor],
    *,
    tolerance: float = 1e-6,
    step: float = 1e-5,
    entries: int = 200,
) -> Table:
    """Compare the gradient of a scalar function computed three ways.

    relative error(a, b) = max |a - b| / max(|a|, |b|), the largest entry of a whole tensor.

    Args:
        by_hand: by_hand(**inputs) -> dict name -> gradient, for every input to be checked.
        function: function(**inputs) -> scalar tensor.
        inputs: name -> floating tensor of any shape; converted to float64.
        tolerance: largest relative error allowed between any two of the three.
        step: h of the central difference.
        entries: at most so many entries of each input are differenced, drawn at random.

    Returns:
        The table: one row per input.

    Raises:
        AssertionError: a gradient disagrees; the message names the input, the pair and the error.
    """
    doubles = {name: value.detach().to(torch.float64) for name, value in inputs.items()}
    hand = by_hand(**doubles)
    if not isinstance(hand, Mapping) or not hand or not set(hand) <= set(doubles):
        raise LabError(
            f"by_hand must return a dict of gradients named among {sorted(doubles)}; "
            f"it returned {sorted(hand) if isinstance(hand, Mapping) else type(hand).__name__}."
        )
    leaves = {name: value.clone().requires_grad_(name in hand) for name, value in doubles.items()}
    value = function(**leaves)
    if value.dim() != 0:
        raise LabError(f"function must return a scalar, not shape {tuple(value.shape)}; sum it.")
    automatic = torch.autograd.grad(value, [leaves[name] for name in hand])
    rows, failures = [], []
    for name, auto in zip(hand, automatic, strict=True):
        mine = torch.as_tensor(hand[name])
        if mine.shape != auto.shape:
            raise AssertionError(
                f"gradient of {name}: by hand has shape {tuple(mine.shape)}, "
                f"but {name} has shape {tuple(auto.shape)}"
            )
        chosen, differences = central_differences(function, doubles, name, step, entries)
        pairs = {
            "hand : autograd": relative_error(mine, auto),
            "hand : differences": relative_error(mine.flatten()[chosen], differences),
            "autograd : differences": relative_error(auto.flatten()[chosen], differences),
        }
        rows.append(
            {
                "gradient of": name,
                "shape": " x ".join(map(str, auto.shape)) or "scalar",
                "largest entry": f"{auto.abs().max().item():.4f}",
                **{pair: f"{error:.1e}" for pair, error in pairs.items()},
            }
        )
        failures += [
            f"gradient of {name}: {pair} differ by {error:.1e} (allowed {tolerance:.0e})"
            for pair, error in pairs.items()
            if not error <= tolerance
        ]
    if failures:
        raise AssertionError("; ".join(failures))
    return table(
        rows, note=f"Relative errors in float64, step {step:.0e}; all within {tolerance:.0e}."
    )


def central_differences(
    function: Callable[..., Tensor],
    inputs: Mapping[str, Tensor],
    name: str,
    step: float = 1e-5,
    entries: int = 200,
) -> tuple[Tensor, Tensor]:
    """(f(x + h e_i) - f(x - h e_i)) / 2h for entries i of one input.

    Returns:
        (indices into the flattened input, differences), both (min(entries, size),).
    """
    flat = inputs[name].flatten()
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(flat.numel(), generator=generator)[:entries].sort().values
    differences = torch.empty(len(chosen), dtype=torch.float64)
    with torch.no_grad():
        for k, i in enumerate(chosen.tolist()):
            values = []
            for sign in (1, -1):
                moved = flat.clone()
                moved[i] += sign * step
                values.append(function(**{**inputs, name: moved.view_as(inputs[name])}))
            differences[k] = (values[0] - values[1]) / (2 * step)
    return chosen, differences


def relative_error(a: Tensor, b: Tensor) -> float:
    """max |a - b| / max(|a|, |b|) over all entries; 0 where both are zero."""
    scale = torch.maximum(a.abs().max(), b.abs().max()).item() if a.numel() else 0.0
    if scale == 0.0:
        return 0.0
    return (a - b).abs().max().item() / scale
