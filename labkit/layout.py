"""How weights lie in memory, when nothing but their order can be gained.

    y_NF = x_ND @ w_FD.T      row-major w: a product with a transpose, read across its rows
                              column-major w: the transpose is what lies in memory

Generation multiplies a few rows of x by every weight, so reading the weights is most of its time,
and a CPU's library reads a plain matrix faster than a transposed one.

Legend: N rows, D inputs, F outputs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class ColumnMajor:
    """A second copy of the fp32 weights of all linear layers, transposed in memory.

        fast = ColumnMajor(model)
        with fast.weights():
            model(ids)          # the same products, other strides

    Outside the block the model is untouched. The copy does not follow later changes of the weights.
    On a GPU, in other formats and for layers that are not plain `nn.Linear` products it holds
    nothing and the block changes nothing.

    Args:
        model: Any module. Tied weights are copied; the embedding's side of them stays as it is.
    """

    def __init__(self, model: nn.Module):
        self.swaps: list[tuple[dict[str, Any], Any, nn.Parameter]] = []
        for layer in model.modules():
            if not isinstance(layer, nn.Linear) or not _worth_it(layer.weight):
                continue
            columns = layer.weight.detach().t().contiguous().t()
            self.swaps.append(
                (layer._parameters, layer.weight, nn.Parameter(columns, requires_grad=False))
            )

    @contextmanager
    def weights(self) -> Iterator[None]:
        """Within the block the layers read the copy."""
        try:
            for parameters, _, columns in self.swaps:
                parameters["weight"] = columns
            yield
        finally:
            for parameters, rows, _ in self.swaps:
                parameters["weight"] = rows


def _worth_it(weight: torch.Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32
