"""One model out of several of the same shape: averages and sums of their weights.

    average:          sum_k w_k theta_k                            (a "soup")
    interpolate:      (1 - a) theta_0 + a theta_1
    task_arithmetic:  theta_0 + sum_k s_k (theta_k - theta_0)      theta_0: the common ancestor

The models must have grown from one trained ancestor. Weights of unrelated models do not correspond,
even where the models do the same: hidden units may stand in any order, so their mean is no model.

Sources: Wortsman et al. 2022, arXiv:2203.05482 (soups); Ilharco et al. 2023, arXiv:2212.04089 (task
arithmetic); Frankle et al. 2020, arXiv:1912.05671 (when interpolation works).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from labkit.errors import LabError

State = Mapping[str, Tensor]


def average(states: Sequence[State], weights: Sequence[float] | None = None) -> dict[str, Tensor]:
    """The weighted mean of state dicts, sum_k w_k theta_k / sum_k w_k.

    Args:
        states: `model.state_dict()` of each, same names and shapes.
        weights: w_k of each, not summing to 0; None: all alike.

    Returns:
        A new state dict, in the formats of the first; tensors that are not floating point, such as
        counters, are taken from the first and must be equal in all.

    Raises:
        LabError: no state, a wrong number of weights, or a tensor that differs in name or shape.

    Source: Wortsman et al. 2022, section 2.
    """
    if weights is not None and (len(weights) != len(states) or not sum(weights)):
        raise LabError(
            f"{len(weights)} weights with sum {sum(weights):g} for {len(states)} models: give one "
            "for each, with a sum other than 0"
        )
    shares = [1.0] * len(states) if weights is None else list(weights)
    return _combine(states, [share / sum(shares) for share in shares])


def interpolate(start: State, end: State, alpha: float) -> dict[str, Tensor]:
    """A point on the straight line between two models: (1 - alpha) start + alpha end.

    Args:
        start, end: state dicts, same names and shapes.
        alpha: 0 is start, 1 is end; any number is allowed.

    Raises:
        LabError: a tensor differs in name or shape.

    Source: Frankle et al. 2020, section 2.
    """
    return _combine([start, end], [1 - alpha, alpha])


def task_vector(expert: State, ancestor: State) -> dict[str, Tensor]:
    """What a model learned after it left its ancestor: expert - ancestor.

    Raises:
        LabError: a tensor differs in name or shape.

    Source: Ilharco et al. 2023, section 2.
    """
    return _combine([expert, ancestor], [1.0, -1.0])


def task_arithmetic(
    ancestor: State, experts: Sequence[State], scales: float | Sequence[float]
) -> dict[str, Tensor]:
    """The ancestor plus scaled task vectors: theta_0 + sum_k s_k (theta_k - theta_0).

    With s = 1/K it is the plain average of K experts; with a negative scale it unlearns.

    Args:
        ancestor: the state dict from which every expert was trained on.
        experts: their state dicts.
        scales: s_k of each, or one number for all.

    Raises:
        LabError: a wrong number of scales, or a tensor that differs in name or shape.

    Source: Ilharco et al. 2023, equation 1.
    """
    each = [scales] * len(experts) if isinstance(scales, int | float) else list(scales)
    if len(each) != len(experts) or not experts:
        raise LabError(
            f"{len(each)} scales for {len(experts)} experts: give one for each, at least 1"
        )
    return _combine([ancestor, *experts], [1.0 - sum(each), *each])


def _combine(states: Sequence[State], coefficients: Sequence[float]) -> dict[str, Tensor]:
    """sum_k c_k theta_k, summed in float64: the order of the models is at most a rounding."""
    _check(states)
    combined = {}
    for name, first in states[0].items():
        if not first.is_floating_point():
            combined[name] = first.clone()
            continue
        terms = [c * state[name].double() for c, state in zip(coefficients, states, strict=True)]
        combined[name] = torch.stack(terms).sum(0).to(first.dtype)
    return combined


def _check(states: Sequence[State]) -> None:
    if not states:
        raise LabError("0 models were given: at least 1 is needed to combine")
    first = states[0]
    for number, state in enumerate(states[1:], 1):
        for name in [*first, *(name for name in state if name not in first)]:
            if name not in first or name not in state:
                missing = 0 if name not in first else number
                raise LabError(
                    f"tensor {name!r} is missing in model {missing}: only models of one shape can "
                    "be combined"
                )
            a, b = first[name], state[name]
            if a.shape != b.shape:
                raise LabError(
                    f"tensor {name!r} has shape {tuple(a.shape)} in model 0 and {tuple(b.shape)} "
                    f"in model {number}: only models of one shape can be combined"
                )
            if not a.is_floating_point() and not torch.equal(a, b):
                raise LabError(
                    f"tensor {name!r} is {a.dtype} and differs in model {number}: only floating "
                    "point numbers can be averaged, make it equal first"
                )
