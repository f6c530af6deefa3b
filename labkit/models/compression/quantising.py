"""A whole model quantised: its linear layers, on request its embedding, saved and opened again.

    model ── quantise_model ──> the same model, smaller, its matrices stored in codes
          ── round_weights ───> the same model, as large, its weights moved to where codes are
    model ── save_quantised ──> one safetensors file <── load_quantised ── a model of this shape

`round_weights` answers what a grid costs in quality, any number of bits, at the speed of before;
`quantise_model` is for use. Both compute the same function.

An embedding that is tied to the head is one matrix with two users: it is quantised once, and both
read the same codes. Only one of the two would untie them, and keep the large copy.

Legend: O outputs, I inputs.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from labkit.errors import LabError
from labkit.models.compression.calibration import gptq
from labkit.models.compression.grids import Grid, Quantised, best_clip, quantise
from labkit.models.compression.stored import StoredEmbedding, StoredLinear, StoredMatrix
from labkit.models.compression.targets import chosen, matrix, replace

#: Where a file says which layers are stored in codes.
LAYERS = "labkit_quantised"


def quantise_model(
    model: nn.Module,
    grid: Grid,
    *,
    moments: Mapping[str, Tensor] | None = None,
    embedding: Grid | None = None,
    clip: bool = False,
    choose: Callable[[str], bool] | None = None,
) -> nn.Module:
    """Store the linear layers of a model's blocks in codes, in place.

    Args:
        model: labkit's or transformers'; it cannot be trained further.
        grid: of 2, 4 or 8 bits.
        moments: of `second_moments`: codes are then chosen for such inputs (`gptq`), in the layers
            that have them.
        embedding: a grid for the embedding and the head, too; None leaves them as they are.
        clip: choose each group's range for the smallest squared error (`best_clip`), where no
            moments are given.
        choose: by name, which layers; None: all of the blocks.

    Returns:
        The model.

    Raises:
        LabError: nothing to quantise, bits that cannot be stored, or a group that does not fit.
    """
    for name, found in _quantised(model, grid, moments, clip, choose).items():
        layer: Any = model.get_submodule(name)
        stored = StoredLinear(StoredMatrix(found), getattr(layer, "bias", None))
        if hasattr(layer, "rows"):  # several projections, one below the other
            stored.rows = layer.rows
        replace(model, name, stored)
    if embedding is not None:
        _store_embedding(model, embedding)
    return model


@torch.no_grad()
def round_weights(
    model: nn.Module,
    grid: Grid,
    *,
    moments: Mapping[str, Tensor] | None = None,
    clip: bool = False,
    choose: Callable[[str], bool] | None = None,
) -> nn.Module:
    """Move the weights of the linear layers onto the grid, in place; arguments as above.

    Any number of bits from 2 to 8; the model stays as large and as fast as it was.
    """
    for name, found in _quantised(model, grid, moments, clip, choose).items():
        matrix(model.get_submodule(name)).copy_(found.dequantise())
    return model


def _quantised(
    model: nn.Module,
    grid: Grid,
    moments: Mapping[str, Tensor] | None,
    clip: bool,
    choose: Callable[[str], bool] | None,
) -> dict[str, Quantised]:
    found = {}
    for name, layer in chosen(model, choose).items():
        w_OI = matrix(layer)
        if moments is not None and name in moments:
            found[name] = gptq(w_OI, moments[name], grid)
        else:
            found[name] = quantise(w_OI, grid, best_clip(w_OI, grid) if clip else 1.0)
    return found


def _store_embedding(model: Any, grid: Grid) -> None:
    names = {id(m): name for name, m in model.named_modules()}
    inside, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is not None and head.weight is inside.weight
    stored = StoredMatrix(quantise(inside.weight, grid))
    if head is not None:
        own = stored if tied else StoredMatrix(quantise(head.weight, grid))
        replace(model, names[id(head)], StoredLinear(own, head.bias))
    replace(model, names[id(inside)], StoredEmbedding(stored))


# Files


def save_quantised(model: nn.Module, file: str | Path) -> Path:
    """Write all weights of a model, codes as codes, into one safetensors file.

    What two layers share stands in it once.

    Args:
        model: after `quantise_model`.
        file: to be written, whole or not at all; one that is there is replaced.

    Returns:
        The file.

    Raises:
        LabError: no layer of the model is stored in codes.
    """
    layers, firsts = {}, {}
    for name, module in model.named_modules():
        if isinstance(module, StoredLinear | StoredEmbedding):
            first = firsts.setdefault(id(module.matrix), name)
            kind = "linear" if isinstance(module, StoredLinear) else "embedding"
            grid = dataclasses.asdict(module.matrix.grid)
            layers[name] = {"kind": kind, "grid": grid, "shares": None if first == name else first}
    if not layers:
        raise LabError(f"{type(model).__name__} has 0 quantised layers: call quantise_model first")
    tensors, seen = {}, set()
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen:
            tensors[name] = tensor.detach().cpu().contiguous()
            seen.add(tensor.data_ptr())
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(file.name + ".tmp")
    try:
        save_file(tensors, beside, metadata={"format": "pt", LAYERS: json.dumps(layers)})
        os.replace(beside, file)
    finally:
        beside.unlink(missing_ok=True)
    return file


def load_quantised(model: nn.Module, file: str | Path) -> nn.Module:
    """Give a model of the same shape the layers and weights of a file, in place.

    Args:
        model: built from the same config, not quantised; its weights are thrown away.
        file: of `save_quantised`.

    Raises:
        LabError: the file is missing or damaged, or is not for this model.
    """
    file = Path(file)
    try:
        with safe_open(file, framework="pt") as opened:
            layers = json.loads((opened.metadata() or {})[LAYERS])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        parts = {name: (d["kind"], Grid(**d["grid"]), d["shares"]) for name, d in layers.items()}
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise LabError(
            f"{file} holds no quantised model, or is damaged ({error}): save it again"
        ) from error
    stored: dict[str, StoredMatrix] = {}
    for name, (kind, grid, shares) in parts.items():
        try:
            layer: Any = model.get_submodule(name)
            rows, columns = matrix(layer).shape
        except (AttributeError, ValueError) as error:
            raise _foreign(model, file, name) from error
        stored[name] = stored[shares] if shares else StoredMatrix.empty(rows, columns, grid)
        new: Any = StoredEmbedding(stored[name])
        if kind == "linear":
            new = StoredLinear(stored[name], getattr(layer, "bias", None))
            if hasattr(layer, "rows"):
                new.rows = layer.rows
        replace(model, name, new)
    _fill(model, tensors, file)
    return model


@torch.no_grad()
def _fill(model: nn.Module, tensors: dict[str, Tensor], file: Path) -> None:
    own = model.state_dict()
    for name, tensor in tensors.items():
        if name not in own or own[name].shape != tensor.shape or own[name].dtype != tensor.dtype:
            raise _foreign(model, file, name)
        own[name].copy_(tensor)
    filled = {own[name].data_ptr() for name in tensors}
    for name, tensor in own.items():
        if tensor.data_ptr() not in filled:
            raise _foreign(model, file, name)


def _foreign(model: nn.Module, file: Path, name: str) -> LabError:
    return LabError(
        f"{name} is not the same in {file} and {type(model).__name__}: give a model of the shape "
        "that was saved, not quantised yet"
    )
