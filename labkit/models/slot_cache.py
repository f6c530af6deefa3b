"""A cache whose texts come and go: each row stands at a place of its own.

    row 0   p p p p p a a a .      a text begins when a row is free, ends when it is done, and the
    row 1   p p a . . . . . .      last row moves into its place: rows 0 .. N-1 are always those
    row 2   p p p p a a . . .      in use, and a step computes nothing for texts that have ended
            p of the prompt, a of the answer, . not written yet

`KVCache` has one length for all its rows, so a batch must begin together, padded on the left, and
ends when its longest text does. Here nothing is padded and no position moves: token t of a text
stands in column t of its row, wherever the other rows are.

Legend: N rows in use, T new positions, G key/value heads, K head width.

Sources: Yu et al. 2022, OSDI (Orca: texts join and leave between steps); Kwon et al. 2023,
arXiv:2309.06180 (what reserving whole rows costs, and pages instead).
"""

import torch
from torch import Tensor

from labkit.errors import LabError
from labkit.models.kv_cache import KVCache


class SlotCache(KVCache):
    """Keys and values of up to `slots` texts, in memory reserved once.

    A model reads it as any cache, one new token of each row in use at a time, with
    `attention_mask=cache.mask()` and `position_ids=cache.places()[:, None]`. `length` is that of
    the longest text in use. Memory: 2·layers·slots·G·capacity·K numbers.

    Args:
        num_layers: attention layers that share the cache.
        slots: texts at a time, at least 1.
        num_kv_heads: G.
        capacity: positions of each text, at least 1.
        head_width: K.
        dtype: of keys and values.
        device: where they live.

    Raises:
        LabError: slots or capacity is below 1.
    """

    def __init__(
        self,
        num_layers: int,
        slots: int,
        num_kv_heads: int,
        capacity: int,
        head_width: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ):
        for name, given in (("slots", slots), ("capacity", capacity)):
            if given < 1:
                raise LabError(f"{name} {given} is out of range: choose at least 1")
        super().__init__(num_layers, slots, num_kv_heads, capacity, head_width, dtype, device)
        self.slots = slots
        self.lengths: list[int] = []
        """Positions read of each text in use."""

    def join(self, read: KVCache) -> int:
        """Give the next free row to a text whose prompt was read; returns the row.

        Args:
            read: the cache of that one text, of the same model.

        Raises:
            LabError: every row is in use, or the text is longer than a row.
        """
        row = len(self.lengths)
        if row == self.slots:
            raise LabError(f"all {self.slots} slots are in use: wait until a text leaves")
        if read.length > self.capacity:
            raise LabError(
                f"the text has {read.length} positions and a slot holds {self.capacity}: make a"
                " larger cache or give a shorter text"
            )
        for mine, theirs in zip((self.keys, self.values), (read.keys, read.values), strict=True):
            for tensor, other in zip(mine, theirs, strict=True):
                tensor[row, :, : read.length] = other[0, :, : read.length]
        self._set_lengths([*self.lengths, read.length])
        return row

    def leave(self, row: int) -> None:
        """Free a row; the last row in use moves there."""
        *others, length = self.lengths
        if row != len(others):
            for tensor in (*self.keys, *self.values):
                tensor[row, :, :length] = tensor[len(others), :, :length]
            others[row] = length
        self._set_lengths(others)

    def places(self) -> Tensor:
        """(N,) the position of each row's next token."""
        return torch.tensor(self.lengths, device=self.keys[0].device)

    def mask(self) -> Tensor:
        """(N, length + 1), 1 at what each row's next token may see: its own text and itself."""
        columns = torch.arange(self.length + 1, device=self.keys[0].device)
        return (columns <= self.places()[:, None]).long()

    def extended(self, layer: int, new: int) -> tuple[Tensor, Tensor]:
        """A layer's keys and values (N, G, length+1, K), each row's column to be written.

        Raises:
            LabError: more than one new position, or a row that is full.
        """
        if new != 1:
            raise LabError(f"{new} new positions for each text: a slot cache takes 1 at a time")
        end = self.length + 1
        if end > self.capacity:
            raise LabError(
                f"a slot holds {self.capacity} positions and {end} are asked for; make a larger"
                " cache or generate fewer tokens"
            )
        rows = len(self.lengths)
        return self.keys[layer][:rows, :, :end], self.values[layer][:rows, :, :end]

    def append(self, layer: int, k_NGTK: Tensor, v_NGTK: Tensor) -> tuple[Tensor, Tensor]:
        """Store each row's new position (T = 1) in its own column; errors as in `extended`."""
        keys, values = self.extended(layer, k_NGTK.shape[2])
        write_columns(keys, self.places(), k_NGTK[:, :, 0])
        write_columns(values, self.places(), v_NGTK[:, :, 0])
        return keys, values

    def advance(self, positions: int) -> None:
        """Count a position of each row as read, once every layer has appended it."""
        self._set_lengths([length + positions for length in self.lengths])

    def keep_rows(self, rows_B: Tensor) -> None:
        """Refused: rows change by `join` and `leave`."""
        raise LabError("a slot cache has no rows to choose among: use join and leave")

    def _set_lengths(self, lengths: list[int]) -> None:
        self.lengths, self.length = lengths, max(lengths, default=0)


def write_columns(kept_NGSK: Tensor, columns_N: Tensor, new_NGK: Tensor) -> None:
    """kept[n, :, columns[n]] = new[n], in place."""
    rows_N = torch.arange(len(columns_N), device=columns_N.device)
    kept_NGSK[rows_N, :, columns_N] = new_NGK
