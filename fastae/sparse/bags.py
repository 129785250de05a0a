"""Weighted sums over the rows of a table, and their gradients: sparse codes against dictionaries.

An entry of a code is (bag, latent, value). A bag is a row of the batch, or a row at one of several levels
(bags 0..N-1 are the first level's, N..2N-1 the second's). All sums run in a fixed order: results repeat bit
for bit.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..ops import segment_sums
from ..ops.backend import kernels_on_cpu
from ..ops.segments import segments_of
from ..tensors import sum_dtype
from .deferred import RowSums


class Entries(NamedTuple):
    """The places of a code's entries: in order of bags, and in order of latents."""

    latents: Tensor  # [E]
    offsets: Tensor  # [B + 1]: bag b holds the entries offsets[b] to offsets[b + 1]
    bags: Tensor  # [E]
    order: Tensor  # [E]: the entries by latent, and those of one latent by bag
    starts: Tensor  # [H + 1]: latent j holds order[starts[j]] to order[starts[j + 1]]


def entries_of(latents: Tensor, offsets: Tensor, width: int) -> Entries:
    """The places of entries whose ``latents`` [E] lie in bags by ``offsets`` [B + 1]; ``width`` latents."""
    keys = torch.int32 if width < 2**31 else torch.int64  # a sort takes a pass per byte
    ordered, order = latents.to(keys).sort(stable=True)
    starts = torch.ops.aten._convert_indices_from_coo_to_csr(ordered, width)
    return Entries(latents, offsets, segments_of(offsets, len(latents)), order, starts)


def fixed_offsets(rows: int, k: int, device: torch.device) -> Tensor:
    """Offsets [rows + 1] of bags that hold ``k`` entries each."""
    return torch.arange(rows + 1, device=device) * k


def decode(values: Tensor, weight: Tensor, latents: Tensor, offsets: Tensor) -> Tensor:
    """The sum of values times rows of ``weight`` [H, D] per bag, [B, D], in weight's dtype."""
    return segment_sums(weight, latents, offsets, values).sums


def decode_value_grad(grad: Tensor, weight: Tensor, entries: Entries) -> Tensor:
    """The gradient of :func:`decode` with respect to values [E], from grad [B, D]."""
    order = entries.order
    return segment_sums(grad.to(weight.dtype), entries.bags[order], entries.starts, None, weight, order).dots


def decode_grad(grad: Tensor, values: Tensor, weight: Tensor, entries: Entries) -> tuple[Tensor, Tensor]:
    """Gradients of :func:`decode` with respect to values [E] and weight [H, D], in one pass."""
    sums = by_latent(grad.to(weight.dtype), values, entries)
    found = segment_sums(*sums, weight, entries.order)
    return found.dots, found.sums


def by_latent(table: Tensor, values: Tensor, entries: Entries) -> RowSums:
    """The sums per latent of values [E] times rows of a table [N, D]; bags are one or more levels of N."""
    order = entries.order
    bags = entries.bags[order]
    if len(entries.offsets) - 1 > len(table):
        bags = bags % max(len(table), 1)
    return RowSums(table, bags, entries.starts, values[order])


def latent_sums(values: Tensor, entries: Entries) -> Tensor:
    """The sum of values [E] per latent, [H], in the dtype of sums."""
    wide = values.to(sum_dtype(values.dtype))
    if _adds_in_any_order(values):
        return sums(wide[entries.order], entries.starts)
    return wide.new_zeros(len(entries.starts) - 1).index_add_(0, entries.latents, wide)


def sums(values: Tensor, offsets: Tensor) -> Tensor:
    """The sum of values [E] per bag, [B]."""
    if _adds_in_any_order(values):
        ones = values.new_ones(1, 1), torch.zeros(len(values), dtype=torch.int64, device=values.device)
        return segment_sums(*ones, offsets, values).sums.flatten()
    bag = segments_of(offsets, len(values))
    return values.new_zeros(len(offsets) - 1).index_add_(0, bag, values)


def _adds_in_any_order(values: Tensor) -> bool:
    """True where ``index_add_`` does."""
    return values.is_cuda or kernels_on_cpu()
