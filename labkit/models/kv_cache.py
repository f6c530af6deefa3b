"""The cache of generation: keys and values of the positions that were read already.

    step t:  x_B1D ──> q, k, v ──> append k, v ──> attend to positions 0 .. t ──> next token

Legend: B batch, T new positions, G key/value heads, K head width.

Sources: Shazeer 2019 (what reading the cache costs).
"""

import torch
from torch import Tensor

from labkit.errors import LabError


class KVCache:
    """Keys and values of the positions already read, in memory reserved once.

    Without it, producing token t reads all t positions again; with it, only the new one. It also
    keeps the keys and values that cross-attention made of the source (`source`, by layer).
    Memory: 2·layers·B·G·capacity·K numbers.

    Args:
        num_layers: Attention layers that share the cache.
        batch_size: B.
        num_kv_heads: G.
        capacity: Positions to reserve.
        head_width: K.
        dtype: Of keys and values.
        device: Where they live.
    """

    def __init__(
        self,
        num_layers: int,
        batch_size: int,
        num_kv_heads: int,
        capacity: int,
        head_width: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ):
        shape = (batch_size, num_kv_heads, capacity, head_width)
        self.keys, self.values = (
            [torch.zeros(shape, dtype=dtype, device=device) for _ in range(num_layers)]
            for _ in range(2)
        )
        self.source: dict[int, tuple[Tensor, Tensor]] = {}
        self.length, self.capacity = 0, capacity

    def extended(self, layer: int, new: int) -> tuple[Tensor, Tensor]:
        """A layer's keys and values (B, G, length+T, K), of which the last T are to be written.

        Raises:
            LabError: T new positions do not fit.
        """
        end = self.length + new
        if end > self.capacity:
            raise LabError(
                f"the cache holds {self.capacity} positions and {end} are asked for;"
                " make a larger cache or generate fewer tokens"
            )
        return self.keys[layer].narrow(2, 0, end), self.values[layer].narrow(2, 0, end)

    def append(self, layer: int, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        """Store T new positions of a layer; return its keys and values so far (B, G, length+T, K).

        Raises:
            LabError: The new positions do not fit.
        """
        new = k_BGTK.shape[2]
        keys, values = self.extended(layer, new)
        keys.narrow(2, self.length, new).copy_(k_BGTK)
        values.narrow(2, self.length, new).copy_(v_BGTK)
        return keys, values

    def advance(self, positions: int) -> None:
        """Count T new positions as read, once every layer has appended them."""
        self.length += positions

    def forget(self, length: int) -> None:
        """Go back to the first `length` positions, as if the rest had not been read.

        Raises:
            LabError: there are not so many.
        """
        if not 0 <= length <= self.length:
            raise LabError(f"length {length} is out of range: choose 0 to {self.length}")
        self.length = length

    def keep_rows(self, rows_B: Tensor) -> None:
        """Row b becomes what row rows_B[b] was, in place; their number may change.

        For beam search, whose texts change places. The source's keys and values come along.

        Args:
            rows_B: indices of rows, in any order, with or without repetition.
        """
        held = torch.arange(len(self.keys[0]), device=rows_B.device)
        if torch.equal(rows_B, held):
            return
        for tensors in (self.keys, self.values):
            for layer, old in enumerate(tensors):
                written = old[:, :, : self.length].index_select(0, rows_B)
                new = old if len(rows_B) == len(old) else old.new_zeros(len(rows_B), *old.shape[1:])
                new[:, :, : self.length] = written
                tensors[layer] = new
        self.source = {
            layer: (k.index_select(0, rows_B), v.index_select(0, rows_B))
            for layer, (k, v) in self.source.items()
        }
