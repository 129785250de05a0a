"""Sums over the entries of sparse codes on Triton kernels: plans and launches, without autograd."""

from __future__ import annotations

import torch
from torch import Tensor

from ..device import segments
from . import run

WIDEST_ROW = 8192
"""The widest rows that a program of :func:`segment_sums` can hold."""

_CHUNK = 128  # entries that one program takes of a segment


def segment_sums(
    table: Tensor,
    index: Tensor,
    starts: Tensor,
    values: Tensor | None = None,
    other: Tensor | None = None,
    place: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """The sums of values [E] times rows of a table [R, D] by segments, [S, D], in the table's dtype.

    Segment s holds the entries starts[s] to starts[s + 1]; entry i takes row index[i] (int64). With ``other``
    [S, D], also the products of each entry's row with that of its segment, [E] in float32, at ``place``.
    D is at most :data:`WIDEST_ROW`, and the tables are contiguous.
    """
    number, width, entries = len(starts) - 1, table.shape[1], len(index)
    chunks = entries // _CHUNK  # at least the further chunks that there are, without asking the device
    counts = starts.diff()
    further = (counts.add(_CHUNK - 1).div(_CHUNK, rounding_mode="floor") - 1).clamp_min(0)
    ends = further.cumsum(0)
    each = torch.arange(chunks, device=starts.device)
    chunk_segment = torch.searchsorted(ends, each, right=True)  # S for chunks that are not needed
    owner = chunk_segment.clamp_max(max(number - 1, 0))
    chunk_number = each - (ends - further)[owner] + 1 if number else each
    sums = None if values is None else table.new_empty(number, width)
    dots = None if other is None else table.new_empty(entries, dtype=torch.float32)
    partials = None if values is None else table.new_empty(chunks, width, dtype=torch.float32)
    block = max(16, 1 << (width - 1).bit_length())
    warps = min(16, max(1, block // 512))
    rows = max(1, min(4, 16384 // block))
    arguments = values, index, starts, chunk_segment, chunk_number, table, other, place, sums, dots, partials
    options = {"CHUNK": _CHUNK, "BD": block, "B": rows, "num_warps": warps}
    run.launch(segments.segment_sums, number + chunks, table.device, *arguments, number, width, **options)
    if sums is not None:
        arguments = chunk_segment, partials, sums, number, chunks, width
        run.launch(segments.fold_chunks, chunks, table.device, *arguments, BD=block, num_warps=warps)
    return sums, dots
