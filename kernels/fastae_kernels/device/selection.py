"""Exact selection of the largest entries per row of a product that is never written.

Every row has a list of slots. Its first KEEP hold the largest entries of the columns seen so far, high to
low, as keys; behind them the product's epilogue appends the entries of further columns that rank above the
K-th, and a pass over the rows sorts what is there. An atomic counter hands out slots, so their order depends
on timing, but which keys are there does not: results repeat bit for bit. A row with more candidates than
slots is computed again by its own program, slice by slice.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false
# (Triton's own annotations know neither numbers for constants nor its loops)

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .dependence import follow
from .tiles import inside, load_row, tile_indices

EMPTY = tl.constexpr(-(1 << 63))
"""A slot's content before it holds a key; below every key."""


@triton.jit
def rank_of(value):
    """int32 in the order of float32 values: -0 is 0, and NaN of either sign is above infinity."""
    bits = tl.where(value != value, 0x7FC00000, (value + 0.0).to(tl.int32, bitcast=True))
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def key_of(rank, column):
    """int64 in the order of ranks, and among equal ones of columns from high to low."""
    return (rank.to(tl.int64) << 32) | (0x7FFFFFFF - column).to(tl.int64)


@triton.jit
def rank_in(key):
    return (key >> 32).to(tl.int32)


@triton.jit
def value_in(key):
    rank = rank_in(key)
    return (rank ^ ((rank >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def column_in(key):
    return 0x7FFFFFFF - (key & 0xFFFFFFFF)


class Candidates(NamedTuple):
    """Entries of z = x W^T + b, [M, N] = [rows, latents], that rank above the K-th of their row so far.

    Equal entries stay behind those of lower latents, which come first.
    """

    bias: Any  # [N]
    keys: Any  # [M, slots]
    count: Any  # [M] int32: slots that were asked for
    slots: int
    K: int
    first: int  # the latent of column 0


@triton.jit
def append(value, block_m, block_n, M, N, a, BM: tl.constexpr, BN: tl.constexpr):
    row, col = tile_indices(block_m, block_n, BM, BN)
    z = value
    if a.bias is not None:
        z += load_row(a.bias, col, N)
    mine = a.keys + row * a.slots
    bound = rank_in(tl.load(mine + (a.K - 1), mask=row < M, other=0))
    rank = rank_of(z)
    hit = (rank > bound[:, None]) & inside(row, col, M, N)  # [BM, BN]
    ones = hit.to(tl.int32)
    number = tl.sum(ones, 1)
    some = number > 0  # pyright: ignore[reportOperatorIssue]
    start = tl.atomic_add(a.count + row, number, mask=some, sem="relaxed")
    slot = start[:, None] + tl.cumsum(ones, 1) - 1
    key = key_of(rank, (a.first + col)[None, :])
    tl.store(mine[:, None] + slot, key, mask=hit & (slot < a.slots))


class Passing(NamedTuple):
    """Entries of z = x W^T + b, [M, N] = [rows, latents], above a bound, as keys in one list.

    A key's column is that of the flattened matrix, row N + latent, after ``first``; all are below 2^31.
    """

    bias: Any  # [N]
    bound: Any  # [N], or one value
    stride: int  # of bound: 1, or 0
    keys: Any  # [capacity] int64
    count: Any  # int32: slots that were asked for
    capacity: int
    first: int


@triton.jit
def append_passing(value, block_m, block_n, M, N, a, BM: tl.constexpr, BN: tl.constexpr):
    row, col = tile_indices(block_m, block_n, BM, BN)
    z = value
    if a.bias is not None:
        z += load_row(a.bias, col, N)
    rank = rank_of(z)
    bound = tl.load(a.bound + col * a.stride, mask=col < N, other=0.0).to(tl.float32)
    hit = (rank > rank_of(bound)[None, :]) & inside(row, col, M, N)  # [BM, BN]
    ones = hit.to(tl.int32)
    number = tl.sum(ones, 1)
    start = tl.atomic_add(a.count, tl.sum(number, 0), sem="relaxed")
    before = start + tl.cumsum(number, 0) - number - 1  # [BM]
    slot = before[:, None] + tl.cumsum(ones, 1)
    place = (a.first + row.to(tl.int32) * N)[:, None] + col[None, :]
    tl.store(a.keys + slot, key_of(rank, place), mask=hit & (slot < a.capacity))


@triton.jit
def _products(
    x, weight, bias, col, columns, D, stride_xk, stride_wn, stride_wk,
    BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """A row's entries of x W^T + b at ``col`` [BN]."""
    total = tl.zeros((BN, BD), tl.float32)
    rows = weight + tl.cast(col, tl.int64)[:, None] * stride_wn
    for first in range(0, D, BD):
        k = first + tl.arange(0, BD)
        across = tl.cast(k, tl.int64)
        there = (col < columns)[:, None] & (k < D)[None, :]
        w = tl.load(rows + across[None, :] * stride_wk, mask=there, other=0.0).to(tl.float32)  # [BN, BD]
        total += w * tl.load(x + across * stride_xk, mask=k < D, other=0.0).to(tl.float32)[None, :]
    value = tl.sum(total, 1)
    if bias is not None:
        value += tl.load(bias + col, mask=col < columns, other=0.0).to(tl.float32)
    return value


@triton.jit
def keep_largest(
    keys, count, x, weight, bias, values, latents,
    stride_xm, stride_xk, stride_wn, stride_wk, D, N, first,
    K: tl.constexpr, KEEP: tl.constexpr, SLOTS: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Sort each row's keys [M, SLOTS] to its KEEP largest; after the last columns also write the K largest.

    The candidates were found in N columns, ``first`` and those after it. BN is at most SLOTS - KEEP.
    """
    follow()
    row = tl.cast(tl.program_id(0), tl.int64)
    mine = keys + row * SLOTS
    slot = tl.arange(0, SLOTS)
    kept = tl.arange(0, KEEP)
    bound = rank_in(tl.load(mine + (K - 1)))
    used = tl.load(count + row)
    columns = 0
    if used > SLOTS:  # candidates are lost
        columns = N
        used = KEEP
    for start in range(0, columns + BN, BN):  # the last slice has no columns; it sorts
        col = start + tl.arange(0, BN)
        rank = tl.full((BN,), 0, tl.int32)
        if start < columns:
            own = x + row * stride_xm
            rank = rank_of(
                _products(own, weight, bias, col, columns, D, stride_xk, stride_wn, stride_wk, BN, BD)
            )
        hit = (rank > bound) & (col < columns)
        number = tl.sum(hit.to(tl.int32), 0)
        if (used + number > SLOTS) | (start >= columns):
            tl.debug_barrier()
            best = tl.topk(tl.load(mine + slot, mask=slot < used, other=EMPTY), KEEP)
            tl.debug_barrier()
            tl.store(mine + kept, best)
            bound = tl.max(tl.where(kept == K - 1, rank_in(best), -0x80000000), 0)
            used = KEEP
            hit = (rank > bound) & (col < columns)
            number = tl.sum(hit.to(tl.int32), 0)
        place = used + tl.cumsum(hit.to(tl.int32), 0) - 1
        tl.store(mine + place, key_of(rank, first + col), mask=hit)
        used += number
    tl.store(count + row, KEEP)
    if values is not None:
        tl.debug_barrier()
        key = tl.load(mine + kept)
        tl.store(values + row * K + kept, value_in(key), mask=kept < K)
        tl.store(latents + row * K + kept, column_in(key), mask=kept < K)
