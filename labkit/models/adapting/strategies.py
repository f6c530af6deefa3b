"""Which parameters a fine-tuning run trains.

    apply(model, "full")   every parameter
    apply(model, "head")   the task's own layer; the pretrained body stays as it is

A strategy only sets `requires_grad`; the loop, the objective and the data stay the same. Frozen
parameters need no gradient and no optimizer state, and nothing below the lowest trained one needs
a backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import nn

from labkit.errors import LabError

if TYPE_CHECKING:
    import pandas as pd


def apply(model: nn.Module, name: str) -> list[str]:
    """Set `requires_grad` of every parameter to what the strategy trains.

    Call it before `train.train`, after the model has its head.

    Args:
        model: labkit or transformers model.
        name: one of `STRATEGIES`.

    Returns:
        Names of the trained parameters, in the model's order.

    Raises:
        LabError: unknown name; "head" of a model that has no head of its own.
    """
    if name not in STRATEGIES:
        raise LabError(f"strategy {name!r} is unknown: choose one of {', '.join(STRATEGIES)}.")
    trained = STRATEGIES[name](model)
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter_name in trained)
    return [n for n, _ in model.named_parameters() if n in trained]


def parameter_table(model: nn.Module) -> pd.DataFrame:
    """What is trained, part by part: columns `parameters`, `trained`, `share`; last row `total`.

    A shared (tied) tensor counts once, in the part that comes first.
    """
    import pandas as pd

    prefix = getattr(model, "base_model_prefix", "") + "."
    rows: dict[str, list[int]] = {}
    for name, parameter in model.named_parameters():
        part = name.removeprefix(prefix).split(".")[0]
        row = rows.setdefault(part, [0, 0])
        row[0] += parameter.numel()
        row[1] += parameter.numel() if parameter.requires_grad else 0
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["parameters", "trained"])
    table.loc["total"] = table.sum()
    table["share"] = table["trained"] / table["parameters"]
    return table


def _full(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_parameters()}


def _head(model: nn.Module) -> set[str]:
    head, body = _split(model)
    ours = {id(p) for module in head for p in module.parameters()}
    shared = ours & {id(p) for module in body for p in module.parameters()}
    if not ours or shared:
        why = "is tied to the embedding" if shared else "is missing"
        raise LabError(
            f"the head of {type(model).__name__} {why}, so 'head' cannot train it alone: give the "
            "model a classifier (num_labels > 0), untie it, or use 'full'."
        )
    return {name for name, p in model.named_parameters() if id(p) in ours}


def _split(model: nn.Module) -> tuple[list[nn.Module], list[nn.Module]]:
    """The head's modules and all others (direct children of the model)."""
    children = dict(model.named_children())
    if hasattr(model, "base_model_prefix"):  # transformers: everything outside the base model
        outside = [m for name, m in children.items() if name != model.base_model_prefix]
        inside = [m for name, m in children.items() if name == model.base_model_prefix]
        return (outside, inside) if inside else ([], outside)
    names = ("classifier",) if children.get("classifier") is not None else ("lm_head",)
    head = [m for name, m in children.items() if name in names and m is not None]
    return head, [m for m in children.values() if m is not None and m not in head]


STRATEGIES: dict[str, Callable[[nn.Module], set[str]]] = {"full": _full, "head": _head}
