"""Weighted sums of a table's rows by segments: decoders of sparse codes, and the gradients of dictionaries.

One program owns a segment's row, and walks its entries in order. Long segments are cut into chunks, whose
sums are added in order afterwards: no two additions race, and results repeat bit for bit.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false
# (Triton's own annotations know neither numbers for constants nor its loops)

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def segment_sums(
    values, index, starts, chunk_segment, chunk_number, table, other, place, sums, dots, partials,
    segments, D, CHUNK: tl.constexpr, BD: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """sums [segments, D] = sum_i values_i table[index_i] over the entries i of each segment.

    Programs 0..segments-1 take the first CHUNK entries of their segment, each further one a chunk of a
    longer segment, into partials. With a second table ``other`` [segments, D], dots[place_i] is the product
    of table[index_i] with the segment's row of it.
    """
    program = tl.program_id(0)
    col = tl.arange(0, BD)
    live = col < D
    segment = tl.cast(program, tl.int64)
    skip = tl.cast(0, tl.int64)
    if program >= segments:
        segment = tl.load(chunk_segment + (program - segments))
        skip = tl.load(chunk_number + (program - segments)) * CHUNK
    if segment < segments:
        begin = tl.load(starts + segment) + skip
        end = tl.minimum(begin + CHUNK, tl.load(starts + segment + 1))
        total = tl.zeros((BD,), tl.float32)
        if other is not None:
            own = tl.load(other + segment * D + col, mask=live, other=0.0).to(tl.float32)
        for first in range(begin, end, B):
            i = first + tl.arange(0, B)
            there = i < end
            row = tl.load(index + i, mask=there, other=0)
            entry = table + (row * D)[:, None] + col[None, :]
            rows = tl.load(entry, mask=there[:, None] & live[None, :], other=0.0).to(tl.float32)  # [B, BD]
            if values is not None:
                value = tl.load(values + i, mask=there, other=0.0).to(tl.float32)
                total += tl.sum(value[:, None] * rows, 0)
            if other is not None:
                to = i
                if place is not None:
                    to = tl.load(place + i, mask=there, other=0)
                tl.store(dots + to, tl.sum(rows * own[None, :], 1), mask=there)
        if values is not None:
            if program < segments:
                tl.store(sums + segment * D + col, total, mask=live)
            else:
                tl.store(partials + tl.cast(program - segments, tl.int64) * D + col, total, mask=live)


@triton.jit
def fold_chunks(chunk_segment, partials, sums, segments, chunks, D, BD: tl.constexpr):
    """Add the further chunks of long segments to their rows, in order."""
    chunk = tl.program_id(0)
    col = tl.arange(0, BD)
    live = col < D
    segment = tl.load(chunk_segment + chunk)
    before = tl.load(chunk_segment + chunk - 1, mask=chunk > 0, other=-1)
    if (segment < segments) & (segment != before):
        total = tl.load(sums + segment * D + col, mask=live, other=0.0).to(tl.float32)
        same = segment
        at = chunk
        while same == segment:
            total += tl.load(partials + tl.cast(at, tl.int64) * D + col, mask=live, other=0.0)
            at += 1
            same = tl.load(chunk_segment + at, mask=at < chunks, other=-1)
        tl.store(sums + segment * D + col, total, mask=live)
