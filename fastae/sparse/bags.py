"""Weighted sums over the rows of a table, and their gradients: sparse codes against dictionaries.

An entry of a code is (bag, latent, value). A bag is a row of the batch, or a row at one of several levels
(bags 0..N-1 are the first level's, N..2N-1 the second's). All sums run in a fixed order: results repeat bit
for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.backend import backend_of
from ..philox import row_blocks
from ..tensors import sum_dtype
from .code import bags_of

_DENSE_FROM = 0.1  # share of entries from which products of dense blocks are faster (measured on a CPU)


class Entries(NamedTuple):
    """The places of a code's entries: in order of bags, and in order of latents."""

    latents: Tensor  # [E]
    offsets: Tensor  # [B + 1]: bag b holds the entries offsets[b] to offsets[b + 1]
    bags: Tensor  # [E]
    order: Tensor  # [E]: the entries by latent, and those of one latent by bag
    starts: Tensor  # [H + 1]: latent j holds order[starts[j]] to order[starts[j + 1]]


def entries_of(latents: Tensor, offsets: Tensor, width: int) -> Entries:
    """The places of entries whose ``latents`` [E] lie in bags by ``offsets`` [B + 1]; ``width`` latents."""
    ordered, order = latents.sort(stable=True)
    starts = torch.searchsorted(ordered, torch.arange(width + 1, device=latents.device))
    return Entries(latents, offsets, bags_of(offsets, len(latents)), order, starts)


def fixed_offsets(rows: int, k: int, device: torch.device) -> Tensor:
    """Offsets [rows + 1] of bags that hold ``k`` entries each."""
    return (
        torch.arange(0, rows * k + 1, max(k, 1), device=device)
        if k
        else torch.zeros(rows + 1, dtype=torch.int64, device=device)
    )


def decode(values: Tensor, weight: Tensor, latents: Tensor, offsets: Tensor) -> Tensor:
    """The sum of values times rows of ``weight`` [H, D] per bag, [B, D], in weight's dtype."""
    if _dense_pays(len(latents), len(offsets) - 1, len(weight)):
        out = weight.new_empty(len(offsets) - 1, weight.shape[1])
        for bags, _, code in _dense_blocks(values.to(weight.dtype), len(weight), latents, offsets):
            torch.mm(code, weight, out=out[bags])
        return out
    return _weighted_sums(values, latents, offsets, weight)


def decode_grad(
    grad: Tensor, values: Tensor, weight: Tensor, entries: Entries, need_weight: bool = True
) -> tuple[Tensor, Tensor | None]:
    """Gradients of :func:`decode` with respect to values [E] and weight [H, D], from grad [B, D]."""
    latents, offsets, bags, order, starts = entries
    grad = grad.contiguous()
    if need_weight and _runs_kernels(weight):
        from fastae_kernels.sparse import segment_sums

        table, other = grad.to(weight.dtype), weight.contiguous()
        d_weight, d_values = segment_sums(values[order], bags[order], starts, table, other, order)
        assert d_values is not None
        return d_values, d_weight
    if not _dense_pays(len(latents), len(grad), len(weight)):
        d_values = _dots(grad, weight, latents, offsets, bags)
        d_weight = _weighted_sums(values[order], bags[order], starts, grad) if need_weight else None
        return d_values, d_weight
    d_values = torch.empty_like(values)
    d_weight = torch.zeros_like(weight, memory_format=torch.contiguous_format) if need_weight else None
    for rows, part, code in _dense_blocks(values.to(weight.dtype), len(weight), latents, offsets):
        d_values[part] = (grad[rows] @ weight.t())[bags[part] - rows.start, latents[part]]
        if d_weight is not None:
            d_weight.addmm_(code.t(), grad[rows])
    return d_values, d_weight


def encode_grad(d_values: Tensor, x: Tensor, entries: Entries, width: int) -> Tensor:
    """The encoder weight's gradient [width, D]: the sum of d_values times the rows of x [N, D] per latent."""
    latents, offsets, bags, order, starts = entries
    if not _dense_pays(len(latents), len(offsets) - 1, width):
        return _weighted_sums(d_values[order], bags[order] % max(len(x), 1), starts, x)
    out = x.new_zeros(width, x.shape[1])
    for rows, _, code in _dense_blocks(d_values.to(x.dtype), width, latents, offsets):
        out.addmm_(code.t(), x[torch.arange(rows.start, rows.stop, device=x.device) % len(x)])
    return out


def latent_sums(values: Tensor, entries: Entries) -> Tensor:
    """The sum of values [E] per latent, [H], in the dtype of sums."""
    wide = values.to(sum_dtype(values.dtype))
    return wide.new_zeros(len(entries.starts) - 1).index_add_(0, entries.latents, wide)


def _weighted_sums(values: Tensor, indices: Tensor, offsets: Tensor, table: Tensor) -> Tensor:
    if _runs_kernels(table):
        from fastae_kernels.sparse import segment_sums

        return segment_sums(values, indices, offsets, table.contiguous())[0]
    return F.embedding_bag(
        indices,
        table.contiguous(),
        offsets,
        mode="sum",
        per_sample_weights=values.to(table.dtype),
        include_last_offset=True,
    )


def _dots(grad: Tensor, table: Tensor, indices: Tensor, offsets: Tensor, bags: Tensor) -> Tensor:
    """grad[bag] . table[index] of each entry, [E]: what the sums' gradient with respect to values is."""
    backward = torch.ops.aten._embedding_bag_per_sample_weights_backward
    return backward(grad.to(table.dtype), table.contiguous(), indices, offsets, bags, 0)


def _runs_kernels(table: Tensor) -> bool:
    """True if Triton kernels sum the rows of a table."""
    if table.dtype == torch.float64 or backend_of("sparse", table.device)[0] == "torch":
        return False
    from fastae_kernels.sparse import WIDEST_ROW

    return table.shape[1] <= WIDEST_ROW


def _dense_pays(entries: int, bags: int, width: int) -> bool:
    return entries > _DENSE_FROM * bags * width


def _dense_blocks(
    values: Tensor, width: int, latents: Tensor, offsets: Tensor
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Blocks of bags: their bags, their entries, and their code as a dense matrix [b, width]."""
    bags = bags_of(offsets, len(latents))
    for block in row_blocks(len(offsets) - 1, width, 1 << 22):
        part = slice(int(offsets[block.start]), int(offsets[block.stop]))
        code = values.new_zeros(block.stop - block.start, width)
        code.index_put_((bags[part] - block.start, latents[part]), values[part], accumulate=True)
        yield block, part, code
