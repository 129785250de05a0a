"""Weighted sums of a table's rows by segments: decoders of sparse codes, and the gradients of dictionaries.

One program owns a segment's row, and walks its entries in order. Long segments are cut into chunks, whose
sums are added in order afterwards: no two additions race, and results repeat bit for bit.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# (Triton's own annotations know neither numbers for constants nor its loops)

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .adam import moved
from .dependence import follow


class Entries(NamedTuple):
    """Entries i = starts[s], ..., starts[s + 1] - 1 of segments s: factors_i times rows_i of a table.

    Fields have names that Triton's own tuples do not have. Triton 3.6 cannot compare a tuple with ``None``:
    without entries ``table`` is None, and without products ``Dots.out``.
    """

    factors: Any = None  # [E], or None: 1
    rows: Any = None  # [E] int64
    starts: Any = None  # [segments + 1] int64
    table: Any = None  # [R, D]


class Dots(NamedTuple):
    """Products of each entry's row with the row of its segment in another table."""

    other: Any = None  # [segments, D]
    place: Any = None  # [E] int64, or None: in order
    out: Any = None  # [E] float32


@triton.jit
def _walk(e, dots, own, begin, end, col, D, BD: tl.constexpr, B: tl.constexpr):
    """The weighted sum of entries begin, ..., end - 1, [BD] float32; ``own`` is the segment's other row."""
    live = col < D
    total = tl.zeros((BD,), tl.float32)
    for first in range(begin, end, B):
        i = first + tl.arange(0, B)
        there = i < end
        row = tl.load(e.rows + i, mask=there, other=0)
        entry = e.table + (row * D)[:, None] + col[None, :]
        rows = tl.load(entry, mask=there[:, None] & live[None, :], other=0.0).to(tl.float32)  # [B, BD]
        if e.factors is not None:
            value = tl.load(e.factors + i, mask=there, other=0.0).to(tl.float32)
            total += tl.sum(value[:, None] * rows, 0)
        if dots.out is not None:
            to = i
            if dots.place is not None:
                to = tl.load(dots.place + i, mask=there, other=0)
            tl.store(dots.out + to, tl.sum(rows * own[None, :], 1), mask=there)
    return total


@triton.jit
def segment_sums(
    e, dots, chunk_segment, chunk_number, sums, partials, first, segments, D,
    CHUNK: tl.constexpr, BD: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """sums [segments, D], and with ``dots`` its products.

    Programs ``first`` and those after it: 0..segments-1 take the first CHUNK entries of their segment, each
    further one a chunk of a longer segment, into partials.
    """
    follow()
    program = first + tl.program_id(0)
    col = tl.arange(0, BD)
    live = col < D
    segment = tl.cast(program, tl.int64)
    skip = tl.cast(0, tl.int64)
    if program >= segments:
        segment = tl.load(chunk_segment + (program - segments))
        skip = tl.load(chunk_number + (program - segments)) * CHUNK
    if segment < segments:
        begin = tl.load(e.starts + segment) + skip
        end = tl.minimum(begin + CHUNK, tl.load(e.starts + segment + 1))
        own = None
        if dots.out is not None:
            entry = dots.other + segment * D + col
            own = tl.load(entry, mask=live, other=0.0, eviction_policy="evict_first").to(tl.float32)
        total = _walk(e, dots, own, begin, end, col, D, BD, B)
        if e.factors is not None:
            if program >= segments:
                tl.store(partials + tl.cast(program - segments, tl.int64) * D + col, total, mask=live)
            elif sums is not None:
                tl.store(sums + segment * D + col, total, mask=live, eviction_policy="evict_first")


@triton.jit
def fold_chunks(chunk_segment, partials, sums, segments, chunks, D, BD: tl.constexpr):
    """Add the further chunks of long segments to their rows, in order."""
    follow()
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


@triton.jit
def segment_loss(e, bias, target, losses, grad, D, BD: tl.constexpr, B: tl.constexpr):
    """|e|^2 and 2 e of each segment, where e is its weighted sum plus bias less target [segments, D]."""
    follow()
    segment = tl.cast(tl.program_id(0), tl.int64)
    col = tl.arange(0, BD)
    live = col < D
    begin, end = tl.load(e.starts + segment), tl.load(e.starts + segment + 1)
    error = _walk(e, Dots(), None, begin, end, col, D, BD, B)
    if bias is not None:
        error += tl.load(bias + col, mask=live, other=0.0).to(tl.float32)
    error -= tl.load(target + segment * D + col, mask=live, other=0.0).to(tl.float32)
    tl.store(losses + segment, tl.sum(error * error, 0))
    tl.store(grad + segment * D + col, 2.0 * error, mask=live)


class Adam(NamedTuple):
    """A step of Adam (Kingma and Ba 2015) on the rows of a matrix [H, D], in place."""

    parameter: Any
    exp_avg: Any
    exp_avg_sq: Any
    rates: Any  # [2] float32: lr / (1 - beta1^t), sqrt(1 - beta2^t)
    weight1: float  # 1 - beta1
    beta2: float
    weight2: float  # 1 - beta2
    eps: float


@triton.jit
def _norm_factor(square):
    """1 over the root of a sum of squares; 1 for 0."""
    return 1.0 / tl.sqrt_rn(tl.where(square > 0.0, square, 1.0))


@triton.jit
def adam_rows(
    e, ends, partials, gradient, a, D,
    UNIT: tl.constexpr, CHUNK: tl.constexpr, BD: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """The step of row j, whose gradient is the sum of segment j and, if given, its row of ``gradient``.

    The first CHUNK entries are walked here; the sums of further chunks, up to ends[j], lie in partials. With
    UNIT the gradient loses its part along the row, and the row ends with norm 1.
    """
    follow()
    row = tl.cast(tl.program_id(0), tl.int64)
    col = tl.arange(0, BD)
    live = col < D
    at = row * D + col
    # loaded before the entries, so that they arrive meanwhile; the cache is left to the table
    p = tl.load(a.parameter + at, mask=live, other=0.0, eviction_policy="evict_first")
    m = tl.load(a.exp_avg + at, mask=live, other=0.0, eviction_policy="evict_first")
    v = tl.load(a.exp_avg_sq + at, mask=live, other=0.0, eviction_policy="evict_first")
    g = tl.zeros((BD,), tl.float32)
    if e.table is not None:
        begin = tl.load(e.starts + row)
        end = tl.minimum(begin + CHUNK, tl.load(e.starts + row + 1))
        chunk = tl.load(ends + row - 1, mask=row > 0, other=0)
        last = tl.load(ends + row)
        g += _walk(e, Dots(), None, begin, end, col, D, BD, B)
        for further in range(chunk, last):
            g += tl.load(partials + further * D + col, mask=live, other=0.0)
    if gradient is not None:
        g += tl.load(gradient + at, mask=live, other=0.0).to(tl.float32)
    p, m, v = p.to(tl.float32), m.to(tl.float32), v.to(tl.float32)
    if UNIT:
        square = tl.sum(p * p, 0)
        along = tl.sum(g * p, 0) / tl.where(square > 0.0, square, 1.0)
        g -= along * p
    p, m, v = moved(p, m, v, g, tl.load(a.rates), tl.load(a.rates + 1), a)
    tl.store(a.exp_avg + at, m, mask=live, eviction_policy="evict_first")
    tl.store(a.exp_avg_sq + at, v, mask=live, eviction_policy="evict_first")
    if UNIT:
        p *= _norm_factor(tl.sum(p * p, 0))
    tl.store(a.parameter + at, p, mask=live, eviction_policy="evict_first")
