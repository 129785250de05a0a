"""Orders of the rows of an epoch: a full permutation, or a windowed one that storage can follow.

A windowed shuffle permutes blocks of consecutive rows over the whole data set, takes windows of so many rows
from them, and permutes the rows within each window. A reader that holds one window reads every block once,
from its first row to its last.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from .seeds import epoch_order, mix


class WindowOrder:
    """A windowed order, a function of its arguments alone; sliced like an int64 tensor [N] on the CPU.

    Args:
        edges: first row of each block, and the number of rows at the end, int64 [K + 1].
        window: rows per window; a larger block makes its window larger.
        seed: of the order.
        sequential: keep the blocks' order, for rows that can only be read from the first to the last.

    Attributes:
        windows: first position of each window, and the number of rows at the end, int64 [W + 1].
        longest: the most rows that a window of these blocks may have, whatever the seed.
    """

    def __init__(self, edges: np.ndarray, window: int, seed: int, *, sequential: bool = False) -> None:
        number = len(edges) - 1
        blocks = np.arange(number)
        if not sequential:
            blocks = torch.randperm(number, generator=torch.Generator().manual_seed(seed)).numpy()
        lengths = np.diff(edges)[blocks]
        ends = np.concatenate([[0], np.cumsum(lengths)])
        first = [0]  # block of each window
        while first[-1] < number:
            fitting = int(np.searchsorted(ends, ends[first[-1]] + window, side="right")) - 1
            first.append(max(fitting, first[-1] + 1))
        self._low, self._lengths, self._first = edges[:-1][blocks], lengths, first
        self.windows = ends[first]
        self.longest = min(max(window, int(lengths.max(initial=0))), int(ends[-1]))
        self._seed = seed
        self._rows = lru_cache(maxsize=2)(self._permuted)

    def __len__(self) -> int:
        return int(self.windows[-1])

    def __getitem__(self, place: slice) -> Tensor:
        """The rows at consecutive positions."""
        low, high, step = place.indices(len(self))
        if step != 1:
            raise IndexError(f"expected consecutive positions, got a step of {step}")
        parts = [torch.empty(0, dtype=torch.int64)]
        for number in range(self.window_of(low), len(self.windows) - 1 if low < high else 0):
            start, end = self.windows[number : number + 2]
            if start >= high:
                break
            parts.append(self._rows(number)[max(0, low - int(start)) : min(high, int(end)) - int(start)])
        return torch.cat(parts)

    def window_of(self, position: int) -> int:
        """The number of the window that holds a position."""
        return int(np.searchsorted(self.windows, position, side="right")) - 1

    def _permuted(self, number: int) -> Tensor:
        """The rows of a window in their order."""
        place = slice(*self._first[number : number + 2])
        low, lengths = self._low[place], self._lengths[place]
        ends = np.cumsum(lengths)
        rows = torch.from_numpy(np.arange(ends[-1]) + np.repeat(low - (ends - lengths), lengths))
        return rows[epoch_order(len(rows), mix(self._seed, number))]


Order = Tensor | WindowOrder
"""The rows of an epoch, int64 [N] on the CPU; taken by slices."""


def parts_of_batches(
    rows: int, size: int, start: int = 0, rank: int = 0, world: int = 1
) -> Iterator[tuple[int, int]]:
    """First and last position of a rank's part of each global batch of ``size`` rows, from ``start`` on.

    The parts of all ranks are disjoint and follow each other; with few rows some of them are empty.
    """
    for low in range(start, rows, size):
        taken = min(size, rows - low)
        yield low + taken * rank // world, low + taken * (rank + 1) // world
