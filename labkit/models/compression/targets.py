"""What is compressed: the linear layers of a model's blocks, by name, each as a matrix (O, I).

    labkit        blocks.0.attention.qkv, .attention.out, .ffn.up, .ffn.down, blocks.1. ...
    transformers  model.layers.0.self_attn.q_proj, ...; GPT-2 stores its matrices the other way

They hold most of a model's weights and nearly all of its arithmetic. Norms and biases stay: they
are few and matter much. The embedding, which in small models is large, is asked for by itself.

Legend: O outputs, I inputs.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from labkit.errors import LabError
from labkit.models.adapting.places import transposed
from labkit.models.transformer import blocks


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The linear layers inside the blocks of a labkit or transformers model, by their full name.

    Raises:
        LabError: there are none.
    """
    inside = {id(m) for block in blocks(model) for m in block.modules()}
    found = {
        name: m
        for name, m in model.named_modules()
        if id(m) in inside and (isinstance(m, nn.Linear) or transposed(m))
    }
    if not found:
        raise LabError(
            f"{type(model).__name__} has 0 linear layers in a stack of blocks: give a labkit or "
            "transformers model that is not compressed yet"
        )
    return found


def chosen(model: nn.Module, choose: Callable[[str], bool] | None) -> dict[str, nn.Module]:
    """Those of `linear_layers` whose name `choose` accepts; None: all.

    Raises:
        LabError: it accepts none.
    """
    layers = linear_layers(model)
    found = {name: layer for name, layer in layers.items() if choose is None or choose(name)}
    if not found:
        raise LabError(f"0 of {len(layers)} layers are chosen, {next(iter(layers))} and so on")
    return found


def matrix(layer: Any) -> Tensor:
    """The weights of a linear layer as (O, I), a view of them."""
    weight = layer.weight.detach()
    return weight.t() if transposed(layer) else weight


def replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Put a layer in the place of the one with this name."""
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, layer)
