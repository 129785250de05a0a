"""Gradients of dictionary weights that are kept as sums over entries, and formed for some rows at a time."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..ops import segment_sums
from ..ops.segments import segments_of


class RowSums(NamedTuple):
    """A gradient [H, D]: row j sums values[i] table[rows[i]] over i from starts[j] to starts[j + 1]."""

    table: Tensor  # [N, D]
    rows: Tensor  # [E]
    starts: Tensor  # [H + 1]
    values: Tensor  # [E]

    def whole(self) -> Tensor:
        return segment_sums(self.table, self.rows, self.starts, self.values).sums


def joined(sums: list[RowSums]) -> RowSums | None:
    """One sum of all; ``None`` of none. A latent's entries come in order of the terms."""
    if len(sums) < 2:
        return sums[0] if sums else None
    latent = torch.cat([segments_of(term.starts, len(term.rows)) for term in sums])
    order = latent.sort(stable=True).indices
    first = itertools.accumulate((len(term.table) for term in sums), initial=0)
    rows = torch.cat([term.rows + number for term, number in zip(sums, first, strict=False)])
    starts = torch.stack([term.starts for term in sums]).sum(0)
    values = torch.cat([term.values for term in sums])
    return RowSums(torch.cat([term.table for term in sums]), rows[order], starts, values[order])


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
