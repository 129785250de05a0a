"""Numbers of rows, as an array or as spans of consecutive ones."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np


class Spans:
    """Rising row numbers [N] as spans of consecutive ones, indexed like an array of them.

    Args:
        low, high: the first row of each span and the one after its last, int64 [K] each, rising.
    """

    def __init__(self, low: np.ndarray, high: np.ndarray) -> None:
        keep = high > low
        self.low, self.high = low[keep], high[keep]
        self._starts = np.cumsum([0, *(self.high - self.low)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, place: slice | np.ndarray) -> np.ndarray:
        """The numbers at a slice or at positions, int64."""
        if isinstance(place, slice):
            place = np.arange(*place.indices(len(self)))
        span = np.searchsorted(self._starts, place, side="right") - 1
        return self.low[span] + (place - self._starts[span])

    def positions(self, rows: np.ndarray) -> np.ndarray:
        """The number of rows below each of ``rows``."""
        span = np.clip(np.searchsorted(self.low, rows, side="right") - 1, 0, None)
        return self._starts[span] + np.clip(rows - self.low[span], 0, (self.high - self.low)[span])


RowIndex: TypeAlias = np.ndarray | Spans
