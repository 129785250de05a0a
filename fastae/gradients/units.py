"""Units spread over the processes of a group: sums, parts and joins, with their gradients.

What all processes have alike, as rows and codes, has the same gradient on all of them. A process's own
results from it give a partial gradient, to be summed (:meth:`UnitShard.shared`); a sum of partial results
gives each of them its own gradient unchanged (:meth:`UnitShard.sum`).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import Function

from ..philox import COLUMN_STEP, draw_seed, seed_of_columns
from ..share import current_share
from .once import Context, first_order


@dataclass(frozen=True)
class UnitShard:
    """The units ``starts[r]`` to ``starts[r + 1]`` of the process of rank r in a group.

    Attributes:
        group: the process group.
        starts: first unit of each process, and in the end the number of units.
    """

    group: Any
    starts: tuple[int, ...]

    def __deepcopy__(self, memo: Any) -> UnitShard:
        return self

    @staticmethod
    def of(units: int, group: Any, step: int = COLUMN_STEP) -> UnitShard:
        """``units`` over the processes of a group, in multiples of ``step`` but for the last ones.

        By default products have aligned operands, and noise the draws of the whole layer's columns.

        Raises:
            ValueError: a process would get none.
        """
        size, steps = dist.get_world_size(group), -(-units // step)
        if steps < size:
            least = step * (size - 1) + 1
            raise ValueError(
                f"code_features: expected at least {least} to split over {size} processes, got {units}"
            )
        starts = (steps * rank // size * step for rank in range(size))
        return UnitShard(group, (*starts, units))

    @property
    def rank(self) -> int:
        """Rank of this process in the group."""
        return dist.get_rank(self.group)

    @property
    def size(self) -> int:
        """Number of processes."""
        return len(self.starts) - 1

    @property
    def first(self) -> int:
        """This process's first unit."""
        return self.starts[self.rank]

    @property
    def number(self) -> int:
        """Number of this process's units."""
        return self.starts[self.rank + 1] - self.first

    @property
    def total(self) -> int:
        """Number of all units."""
        return self.starts[-1]

    def own(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """This process's units of a dimension over all of them; a view."""
        return tensor.narrow(dim, self.first, self.number)

    def gather(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """A dimension over all units from every process's own, in every process."""
        widths = [stop - start for start, stop in pairwise(self.starts)]
        shape = list(tensor.shape)
        shape[dim] = max(widths)
        padded = tensor.new_zeros(shape)
        padded.narrow(dim, 0, self.number).copy_(tensor)
        parts = [torch.empty_like(padded) for _ in widths]
        dist.all_gather(parts, padded, group=self.group)
        return torch.cat([part.narrow(dim, 0, n) for part, n in zip(parts, widths, strict=True)], dim)

    def reduce(self, partial: Tensor) -> Tensor:
        """The sum over the processes, in place."""
        dist.all_reduce(partial, group=self.group)
        return partial

    # --- with gradients ---------------------------------------------------------------------------------

    def sum(self, partial: Tensor) -> Tensor:
        """The sum over the processes, in every process."""
        return _Sum.apply(partial, self)  # pyright: ignore[reportReturnType]

    def shared(self, tensor: Tensor) -> Tensor:
        """A tensor that all processes have, whose gradients are partial and are summed."""
        return _Shared.apply(tensor, self)  # pyright: ignore[reportReturnType]

    def join(self, code: Tensor) -> Tensor:
        """The code of all units [*, H] from this process's, in every process."""
        return _Join.apply(code, self)  # pyright: ignore[reportReturnType]

    def part(self, code: Tensor) -> Tensor:
        """This process's units of a code [*, H] that all processes have."""
        return _Part.apply(code, self)  # pyright: ignore[reportReturnType]

    # --- noise ------------------------------------------------------------------------------------------

    def draw_seed(self, device: torch.device, generator: torch.Generator | None) -> Tensor:
        """A seed of the rows' noise, the same in the whole group; other groups get others."""
        rank = None if current_share() is not None else dist.get_process_group_ranks(self.group)[0]
        return draw_seed(device, generator, rank)

    def seed_of_units(self, seed: Tensor) -> Tensor:
        """A seed of the noise on this process's units, that of the whole code."""
        return seed_of_columns(seed, self.first, self.total)


class _Sum(Function):
    @staticmethod
    def forward(ctx: Context, partial: Tensor, shard: UnitShard) -> Tensor:
        return shard.reduce(partial.clone(memory_format=torch.contiguous_format))

    @staticmethod
    @first_order
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad, None


class _Shared(Function):
    @staticmethod
    def forward(ctx: Context, tensor: Tensor, shard: UnitShard) -> Tensor:
        ctx.shard = shard
        return tensor.view_as(tensor)

    @staticmethod
    @first_order
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.shard.reduce(grad.clone(memory_format=torch.contiguous_format)), None


class _Join(Function):
    @staticmethod
    def forward(ctx: Context, code: Tensor, shard: UnitShard) -> Tensor:
        ctx.shard = shard
        return shard.gather(code, -1)

    @staticmethod
    @first_order
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.shard.own(grad, -1), None


class _Part(Function):
    @staticmethod
    def forward(ctx: Context, code: Tensor, shard: UnitShard) -> Tensor:
        ctx.shard = shard
        return shard.own(code, -1).contiguous()

    @staticmethod
    @first_order
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.shard.gather(grad, -1), None
