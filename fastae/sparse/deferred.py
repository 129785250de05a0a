"""Gradients of dictionary weights that are kept as sums over entries, and formed for some rows at a time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor

from ..ops import segment_sums


class RowSums(NamedTuple):
    """A gradient [H, D]: row j sums values[i] table[rows[i]] over i from starts[j] to starts[j + 1]."""

    table: Tensor  # [N, D]
    rows: Tensor  # [E]
    starts: Tensor  # [H + 1]
    values: Tensor  # [E]

    def whole(self) -> Tensor:
        return segment_sums(self.table, self.rows, self.starts, self.values).sums

    def blocks(self, height: int) -> Iterator[Tensor]:
        """Its rows, ``height`` at a time."""
        bounds = [*self.starts[:-1:height].tolist(), len(self.rows)]  # waits for a device once
        for number, (first, last) in enumerate(itertools.pairwise(bounds)):
            starts = self.starts[number * height : (number + 1) * height + 1] - first
            yield segment_sums(self.table, self.rows[first:last], starts, self.values[first:last]).sums


class DeferredGradients:
    """The gradients of a dictionary's weights since the last :meth:`clear`, one :class:`RowSums` per term.

    A backward pass adds to them in place of the weights' ``.grad``. Copies of a module have none.
    """

    def __init__(self) -> None:
        self.encoder: list[RowSums] = []
        self.decoder: list[RowSums] = []

    def clear(self) -> None:
        self.encoder.clear()
        self.decoder.clear()

    def __deepcopy__(self, memo: Any) -> None:
        return None

    def __reduce__(self) -> Any:
        return type(None), ()


def hand_over(sums: RowSums, to: list[RowSums] | None) -> Tensor | None:
    """The gradient, or ``None`` where it was handed over as it is."""
    if to is None:
        return sums.whole()
    to.append(RowSums(*(t.detach() for t in sums)))
    return None
