"""The rows of a batch that one process computes, where several processes compute the batch together.

Within :func:`sharing` noise is a function of the row's place in the whole batch, and statistics of the batch
are those of all its rows. Without it every call has its batch to itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function


def part_of(total: int, rank: int, size: int) -> slice:
    """The rows of a batch of ``total`` that process ``rank`` of ``size`` computes.

    They are consecutive, and as many as another process's or one more. A process that would get none takes
    a row of its neighbour, which counts 0 times.
    """
    start, stop = total * rank // size, total * (rank + 1) // size
    return slice(start, max(stop, start + 1))


@dataclass(frozen=True)
class Share:
    """One process's part of a batch.

    Attributes:
        total: rows of the whole batch, at least 1.
        rank: number of the process.
        size: number of processes.
        group: their process group; ``None`` is the default one.
    """

    total: int
    rank: int
    size: int
    group: Any = None

    @property
    def first(self) -> int:
        """Place of the part's first row in the batch."""
        return self.total * self.rank // self.size

    @property
    def rows(self) -> int:
        """Number of the part's rows that count; 0 where it is a neighbour's row."""
        return self.total * (self.rank + 1) // self.size - self.first

    @property
    def weight(self) -> float:
        """The part's share of the rows: the factor that turns means over parts into a sum over processes."""
        return self.rows / self.total

    def mean(self, own: Tensor) -> Tensor:
        """The mean over the batch of a mean over the part, on every process."""
        if self.size == 1:
            return own.clone()
        value = own * self.weight
        torch.distributed.all_reduce(value, group=self.group)
        return value

    def gather(self, rows: Tensor) -> Tensor:
        """All rows of the batch, [total, D], from each process's part of them."""
        if self.size == 1:
            return rows
        most = -(-self.total // self.size)
        padded = rows.new_zeros(most, rows.shape[1])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        torch.distributed.all_gather(parts, padded, group=self.group)
        starts = [self.total * rank // self.size for rank in range(self.size + 1)]
        return torch.cat([part[: b - a] for part, (a, b) in zip(parts, pairwise(starts), strict=True)])


_current: Share | None = None


@contextmanager
def sharing(share: Share | None) -> Iterator[None]:
    """Compute one process's part of a batch within the block; ``None`` changes nothing."""
    global _current
    before, _current = _current, share
    try:
        yield
    finally:
        _current = before


def current_share() -> Share | None:
    """The part of a batch that is being computed, if it is one."""
    return _current


class _BatchMean(Function):
    """The mean over a batch of a mean over a part of it.

    Each process weighs its loss by its share of the rows, and the sum of their gradients is that of the
    batch: the gradient to the part's own mean is the one to the batch's.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor, share: Share) -> Tensor:
        return share.mean(own)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def batch_mean(own: Tensor) -> Tensor:
    """The mean over all rows of a batch, from the mean over the rows of this call."""
    return own if _current is None else _BatchMean.apply(own, _current)  # pyright: ignore[reportReturnType]
