"""Weighted sums of a table's rows by segments, in PyTorch: entry by entry, or as products of dense blocks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ..philox import row_blocks
from ..tensors import large_empty, outside_autocast, sum_dtype

_DENSE_FROM = 0.1  # share of entries from which products of dense blocks are faster (measured on a CPU)
_BLOCK = 1 << 22
_CACHED = 1 << 19  # entries of a block of sums that stays in the cache until it is copied
_MAPPED = 1 << 25  # bytes from which glibc asks the system for new pages, which are slow to touch first


@outside_autocast
def segment_sums(
    table: Tensor,
    index: Tensor,
    starts: Tensor,
    values: Tensor | None = None,
    other: Tensor | None = None,
    place: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    table = table.detach().contiguous()  # or the sum of bags keeps what a gradient would need
    segments = len(starts) - 1
    shape = (0,) if values is None else (segments, table.shape[1])
    sums = large_empty(*shape, dtype=table.dtype, device=table.device)
    dots = table.new_empty(0 if other is None else len(index), dtype=sum_dtype(table.dtype))
    if len(index) > _DENSE_FROM * segments * len(table):
        _dense(table, index, starts, values, other, place, sums, dots)
        return sums, dots
    if values is not None and table.device.type == "cpu" and sums.nbytes >= _MAPPED:
        height = max(1, _CACHED // table.shape[1])
        for block, part, own in entry_blocks(starts, len(index), height):
            sums[block] = _sums(table, index[part], own, values[part])
    elif values is not None:
        sums = _sums(table, index, starts, values)
    if other is not None:
        backward = torch.ops.aten._embedding_bag_per_sample_weights_backward
        segment = segments_of(starts, len(index))
        if table.is_cuda:  # where it does not know bfloat16
            table = table.to(dots.dtype)
        found = backward(table, other.to(table.dtype).contiguous(), segment, starts, index, 0).to(dots.dtype)
        dots = found if place is None else dots.index_copy_(0, place, found)
    return sums, dots


@outside_autocast
def segment_loss(
    table: Tensor,
    index: Tensor,
    starts: Tensor,
    values: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    error = segment_sums(table, index, starts, values)[0].to(sum_dtype(table.dtype))
    if bias is not None:
        error += bias
    error -= target
    return error.square().sum(1), error.mul_(2.0).to(table.dtype)


def _sums(table: Tensor, index: Tensor, starts: Tensor, values: Tensor) -> Tensor:
    weights = values.to(table.dtype)
    return F.embedding_bag(
        index, table, starts, mode="sum", per_sample_weights=weights, include_last_offset=True
    )


def entry_blocks(starts: Tensor, entries: int, height: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """Blocks of ``height`` segments, their entries, and where segments start among these.

    Waits for a device once.
    """
    bounds = [*starts[:-1:height].tolist(), entries]
    for number, (first, last) in enumerate(itertools.pairwise(bounds)):
        block = slice(number * height, (number + 1) * height)
        yield block, slice(first, last), starts[block.start : block.stop + 1] - first


def segments_of(starts: Tensor, entries: int) -> Tensor:
    """The segment of each entry, [E], where segment s holds the entries starts[s] to starts[s + 1]."""
    segments = torch.arange(starts.shape[0] - 1, device=starts.device)
    return segments.repeat_interleave(starts.diff(), output_size=entries)


def _dense(
    table: Tensor,
    index: Tensor,
    starts: Tensor,
    values: Tensor | None,
    other: Tensor | None,
    place: Tensor | None,
    sums: Tensor,
    dots: Tensor,
) -> None:
    """Fill the sums and the dots by products of blocks of segments."""
    for block, part, segment in _blocks(index, starts, len(table)):
        if values is not None:
            code = table.new_zeros(block.stop - block.start, len(table))
            code.index_put_((segment, index[part]), values[part].to(table.dtype), accumulate=True)
            torch.mm(code, table, out=sums[block])
        if other is not None:
            found = (other[block].to(table.dtype) @ table.t())[segment, index[part]].to(dots.dtype)
            dots[part if place is None else place[part]] = found


def _blocks(index: Tensor, starts: Tensor, width: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """Blocks of segments: their entries, and the segment of each, counted within the block."""
    segment = segments_of(starts, len(index))
    for block in row_blocks(len(starts) - 1, width, _BLOCK):
        part = slice(int(starts[block.start]), int(starts[block.stop]))
        yield block, part, segment[part] - block.start
