"""Weights as the products of a step read them, kept for the next step.

Nothing here watches the memory of a weight. Whoever opens :func:`keeping` sees to it that within the block
weights change in one place alone, which renews what is kept or drops it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from .. import ops


class Prepared(NamedTuple):
    weight: Tensor  # [H, D], in the dtype of the products
    sq_norms: Tensor | None  # [H], of its rows
    version: int  # of the weight it was made from


_kept: dict[Tensor, Prepared] | None = None


@contextmanager
def keeping() -> Iterator[dict[Tensor, Prepared]]:
    """Keep what :func:`prepare` makes of each parameter within the block, by the parameter."""
    global _kept
    before, _kept = _kept, {}
    try:
        yield _kept
    finally:
        _kept = before


def prepare(weight: Tensor, dtype: torch.dtype | None, norms: bool = False) -> Prepared:
    """A weight [H, D] in ``dtype``, or in its own, and the squared norms of its rows if they are wanted."""
    dtype = weight.dtype if dtype is None else dtype
    own = weight.dtype == dtype
    if own and not norms:
        return Prepared(weight, None, 0)
    kept = None if _kept is None else _kept.get(weight)
    if (
        kept is not None
        and kept.version == weight._version
        and kept.weight.dtype == dtype
        and norms == (kept.sq_norms is not None)
    ):
        return kept
    if own:
        made = weight, ops.squared_norms(weight)
    else:
        made = ops.cast_weight(weight, dtype) if norms else (weight.to(dtype), None)
    if _kept is None:  # as under a compiler, which reads no versions
        return Prepared(*made, 0)
    prepared = Prepared(*made, weight._version)
    if weight.is_leaf:
        _kept[weight] = prepared
    return prepared
