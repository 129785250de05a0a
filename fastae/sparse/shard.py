"""Selections and sums over the processes that each hold some latents of a dictionary.

Rows are the same on all of them. Each selects among its own latents; what it finds is gathered and merged in
the order of values, rows and latents, so that the result is that of one process. Reconstructions are partial
and summed; their gradient is the same everywhere, and those of the weights stay where the weights are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..gradients import UnitShard

Found = tuple[Tensor, Tensor, Tensor]  # pre-activations [E], latents [E] of this process, offsets [N + 1]


@dataclass(frozen=True)
class LatentShard(UnitShard):
    """The latents of one process of a group, as many as another's.

    Attributes:
        replicas: the processes that hold the same latents and train on other rows.
    """

    replicas: Any = None

    def count(self, number: int, device: torch.device) -> int:
        """The sum of a number over the group."""
        total = torch.tensor(number, device=device)
        dist.all_reduce(total, group=self.group)
        return int(total)

    def least(self, values: Tensor, number: int) -> Tensor:
        """The least of all processes' values [E]; 0 where there are fewer than ``number``."""
        least = values.amin() if len(values) else values.new_full((), torch.inf)
        dist.all_reduce(least, dist.ReduceOp.MIN, group=self.group)
        return least if self.count(len(values), values.device) >= number else torch.zeros_like(least)

    def ends(self, ends: tuple[int, ...]) -> tuple[int, ...]:
        """The ends of prefixes of all latents among those held here."""
        return tuple(min(max(end - self.first, 0), self.number) for end in ends)

    def largest(self, values: Tensor, latents: Tensor, k: int) -> Found:
        """The ones held here of the ``k`` largest entries per row.

        Args:
            values, latents: the largest entries held here, [N, k'] with k' up to k, high to low.
            k: at most the number of entries per row of all processes together.
        """
        missing = k - values.shape[1]
        pad = torch.nn.functional.pad
        absent = torch.arange(k, device=values.device).expand(len(values), k) >= values.shape[1]
        values, latents = pad(values, (0, missing)), pad(latents, (0, missing))
        everywhere, places = self.gather_equal(values, 1), self.gather_equal(absent, 1)
        # equal ones are in the order of processes, and so of latents
        order = everywhere.sort(dim=1, descending=True, stable=True).indices
        order = order.gather(1, places.gather(1, order).sort(dim=1, stable=True).indices)[:, :k]
        kept = torch.zeros_like(places).scatter_(1, order, True)
        kept = kept[:, self.rank * k :][:, :k]
        offsets = torch.cat((latents.new_zeros(1), kept.sum(1).cumsum(0)))
        return values[kept], latents[kept], offsets

    def largest_of_all(self, values: Tensor, latents: Tensor, offsets: Tensor, number: int) -> Found:
        """The ones held here of the ``number`` largest positive entries of all rows.

        Args:
            values, latents: the ``number`` largest entries held here, row after row; 0 stands for none.
            offsets: of the rows, [N + 1].
            number: of entries over all processes.
        """
        rows = torch.arange(len(offsets) - 1, device=offsets.device).repeat_interleave(offsets.diff())
        everywhere = self.gather_equal(values, 0)
        place = self.gather_equal(rows * self.total + latents + self.first, 0)
        order = place.sort().indices
        order = order[everywhere[order].sort(descending=True, stable=True).indices][:number]
        kept = torch.zeros_like(everywhere, dtype=torch.bool).index_fill_(0, order, True)
        kept = kept[self.rank * number :][:number] & ~(values <= 0.0)
        counts = torch.zeros_like(offsets[1:]).index_add_(0, rows, kept.long())
        return values[kept], latents[kept], torch.cat((offsets[:1], counts.cumsum(0)))

    def gather_equal(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """Tensors of one shape from all processes, side by side."""
        parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(self.size)]
        dist.all_gather(parts, tensor.contiguous(), group=self.group)
        return torch.cat(parts, dim)
