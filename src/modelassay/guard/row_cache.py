"""Keys and values of many responses in one cache, which rows join and leave between two passes.

Rows stand one above the other and end in the same column, so that one pass reads the next token of
each. What lies before a row's first column is masked. Nothing is copied for the rows that stay,
except when the buffers have to grow.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

FEWEST_COLUMNS = 64
"""Of a buffer; there are twice as many, or four times, when more are needed."""

Kept = tuple[tuple[Tensor, Tensor], ...]
"""For each layer, keys and values [head, token, width] of one row."""


def kept_of(cache: Any, row: int, length: int) -> Kept:
    """The first so many tokens of a row of a cache of plain layers."""
    return tuple(
        (layer.keys[row, :, :length], layer.values[row, :, :length]) for layer in cache.layers
    )


class RowCache:
    """The cache that a network is given, and where the rows are in it."""

    def __init__(self) -> None:
        """Starts without rows."""
        self._clear()

    def _clear(self) -> None:
        self._layers: list[_Layer] = []
        self._starts: list[int] = []  # first column of each row
        self._begin = self._end = 0  # columns that rows take up
        self._slots = self._columns = 0  # size of the buffers

    def __len__(self) -> int:
        """Rows."""
        return len(self._starts)

    @property
    def width(self) -> int:
        """Tokens of the longest row."""
        return self._end - self._begin

    def place(self, kept: Kept) -> int:
        """Adds a row below the others; returns its index."""
        length, row = kept[0][0].shape[1], len(self)
        if not self._layers:
            self._layers = [_Layer(keys, values) for keys, values in kept]
        if row >= self._slots or length > self._end:
            slots = self._slots if row < self._slots else max(1, 2 * self._slots)
            self._lay_out(slots, max(length, self.width))
        start = self._end - length
        for layer, (keys, values) in zip(self._layers, kept, strict=True):
            layer.put(row, start, self._end, keys, values)
        self._starts.append(start)
        self._begin = min(self._starts)
        return row

    def take(self, row: int) -> Kept:
        """A copy of a row, to be placed again."""
        at = slice(self._starts[row], self._end)
        return tuple(
            (layer.all_keys[row, :, at].clone(), layer.all_values[row, :, at].clone())
            for layer in self._layers
        )

    def drop(self, row: int) -> None:
        """Takes a row out; the last one gets its index. Without rows, no memory is held."""
        last = len(self) - 1
        if last == 0:
            self._clear()
            return
        if row != last:
            start = self._starts[row] = self._starts[last]
            at = slice(start, self._end)
            for layer in self._layers:
                keys, values = layer.all_keys[last, :, at], layer.all_values[last, :, at]
                layer.put(row, start, self._end, keys, values)
        del self._starts[last]
        self._begin = min(self._starts)

    def open_column(self, device: torch.device) -> dict[str, Any]:
        """Makes room for one more token of each row, and says how the network is to read it.

        Rows of one length need no mask: a single one is read as it is read alone.

        Returns:
            The cache, and where there is padding the mask [row, column] and positions [row, 1].
        """
        if self._end == self._columns:
            self._lay_out(self._slots, self.width)
        self._end += 1
        for layer in self._layers:
            layer.show(len(self), self._begin, self._end)
        cache = DynamicCache()
        cache.layers.extend(self._layers)
        starts = torch.tensor(self._starts, device=device)[:, None]
        if all(start == self._begin for start in self._starts):
            return {"past_key_values": cache}
        columns = torch.arange(self._begin, self._end, device=device)[None]
        return {
            "past_key_values": cache,
            "attention_mask": (columns >= starts).long(),
            "position_ids": self._end - 1 - starts,
        }

    def _lay_out(self, slots: int, end: int) -> None:
        """Moves the rows into buffers of another size, to end in another column."""
        columns = FEWEST_COLUMNS
        while columns < end + FEWEST_COLUMNS // 2:
            columns *= 2
        for layer in self._layers:
            layer.lay_out(slots, columns, len(self), slice(self._begin, self._end), end)
        by = end - self._end
        self._starts = [start + by for start in self._starts]
        self._begin, self._end = self._begin + by, end
        if not self._starts:
            self._begin = end
        self._slots, self._columns = slots, columns


class _Layer(DynamicLayer):
    """One layer's buffers [slot, head, column, width], of which a pass sees the rows' part."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys[None], values[None])
        self.is_initialized = True
        self.all_keys = keys.new_empty(0, keys.shape[0], 0, keys.shape[2])
        self.all_values = values.new_empty(0, values.shape[0], 0, values.shape[2])
        self._rows, self._begin, self._end = 0, 0, 0

    def show(self, rows: int, begin: int, end: int) -> None:
        """Which part the next pass sees; it writes the last column."""
        self._rows, self._begin, self._end = rows, begin, end

    def put(self, row: int, start: int, end: int, keys: Tensor, values: Tensor) -> None:
        self.all_keys[row, :, start:end] = keys
        self.all_values[row, :, start:end] = values

    def lay_out(self, slots: int, columns: int, rows: int, used: slice, end: int) -> None:
        begin = end - (used.stop - used.start)
        for name in ("all_keys", "all_values"):
            before = getattr(self, name)
            # What is masked is weighed by zero, and zero times what is not a number is none either.
            buffer = before.new_zeros(slots, before.shape[1], columns, before.shape[3])
            buffer[:rows, :, begin:end] = before[:rows, :, used]
            setattr(self, name, buffer)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Writes the newest token of each row; returns all that the rows hold."""
        self.all_keys[: self._rows, :, self._end - 1] = key_states[:, :, 0]
        self.all_values[: self._rows, :, self._end - 1] = value_states[:, :, 0]
        self.keys = self.all_keys[: self._rows, :, self._begin : self._end]
        self.values = self.all_values[: self._rows, :, self._begin : self._end]
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Tokens before the one that is read."""
        return self._end - 1 - self._begin

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns that are seen, and where they begin."""
        return self.get_seq_length() + query_length, 0
