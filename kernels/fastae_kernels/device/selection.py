"""Exact selection of the largest entries per row of a product that is never written.

Every row has a list of slots. Its first KEEP hold the largest entries of the columns seen so far, high to
low, as keys; behind them the product's epilogue appends the entries of further columns that rank above the
K-th, and a pass over the rows sorts what is there. An atomic counter hands out slots, so their order depends
on timing, but which keys are there does not: results repeat bit for bit. A row with more candidates than
slots is computed again by its own program, slice by slice.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# pyright: reportAssignmentType=false
# (Triton's own annotations know neither numbers for constants nor its loops)

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .dependence import follow
from .epilogues import with_bias
from .tiles import tile_indices

EMPTY = tl.constexpr(-(1 << 63))
"""A slot's content before it holds a key; below every key."""
NAN = tl.constexpr(0x7FC00000)
"""The rank of NaN, the largest."""


@triton.jit
def rank_of(value):
    """int32 in the order of float32 values: -0 is 0, and NaN of either sign is above infinity."""
    bits = tl.where(value != value, NAN, (value + 0.0).to(tl.int32, bitcast=True))
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def value_of(rank):
    """The value of a rank; NaN for that of ``EMPTY``."""
    return (rank ^ ((rank >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def key_of(rank, column):
    """int64 in the order of ranks, and among equal ones of columns from high to low."""
    return (rank.to(tl.int64) << 32) | (0x7FFFFFFF - column).to(tl.int64)


@triton.jit
def rank_in(key):
    return (key >> 32).to(tl.int32)


@triton.jit
def column_in(key):
    return 0x7FFFFFFF - (key & 0xFFFFFFFF)


@triton.jit
def _bits(hit, P: tl.constexpr):
    """Bits [BM, G, 4] int32 of entries [BM, BN]: of a fourth of P = 16 octets of columns each.

    A thread of matrix units (``mma``, ``wgmma``) has every fourth pair of columns. It sets its bits and finds
    their entries without talking to other threads.
    """
    bit = 1 << (2 * tl.arange(0, P)[:, None, None] + tl.arange(0, 2)[None, None, :])  # [P, 1, 2]
    hit = tl.reshape(hit, (hit.shape[0], hit.shape[1] // (8 * P), P, 4, 2))
    return tl.sum(tl.sum(tl.where(hit, bit[None, None, :, :, :], 0), 4), 2)


@triton.jit
def _number(bits):
    """The number of ones in int32."""
    bits -= (bits >> 1) & 0x55555555
    bits = (bits & 0x33333333) + ((bits >> 2) & 0x33333333)
    bits = (bits + (bits >> 4)) & 0x0F0F0F0F
    return (bits * 0x01010101 >> 24) & 0x3F


@triton.jit
def _pick(z, octet, P: tl.constexpr):
    """z [BM, G, P, 4] at ``octet`` [BM, G, 4]; half of the rest is left out at a time."""
    BM: tl.constexpr = z.shape[0]
    G: tl.constexpr = z.shape[1]
    if P == 1:
        return tl.reshape(z, (BM, G, 4))
    else:
        even, odd = tl.split(tl.permute(tl.reshape(z, (BM, G, P // 2, 2, 4)), (0, 1, 2, 4, 3)))
        half = tl.where((octet & 1 != 0)[:, :, None, :], odd, even)  # [BM, G, P / 2, 4]
        return _pick(half, octet >> 1, P // 2)


@triton.jit
def _store(z, bits, keys, slot, slots, place, P: tl.constexpr):
    """Write the keys of the entries of z [BM, BN] in ``bits`` to ``keys`` from ``slot`` on, up to ``slots``.

    One of each bits in a turn: entries are rare, and most tiles take one or two. ``keys`` and ``place``, the
    number of the tile's first column, broadcast with ``bits``.
    """
    BM: tl.constexpr = z.shape[0]
    G: tl.constexpr = z.shape[1] // (8 * P)
    even, odd = tl.split(tl.reshape(z, (BM, G, P, 4, 2)))
    place += (8 * P * tl.arange(0, G)[:, None] + 2 * tl.arange(0, 4)[None, :])[None, :, :]
    # axis by axis: of a flattened tensor that threads share, Triton 3.6 compares the wrong ones
    turns = tl.max(tl.max(tl.max(_number(bits), 2), 1), 0)
    entry = keys + slot
    while turns > 0:
        # values that are not carried from turn to turn keep Triton 3.6 from flattening the loop over tiles
        going = turns != 0  # always, as only machine code knows
        even, odd = tl.where(going, even, 0.0), tl.where(going, odd, 0.0)
        place = tl.where(going, place, 0)
        lowest = (bits & -bits).to(tl.uint32).to(tl.float32)
        at = (lowest.to(tl.int32, bitcast=True) >> 23) - 127  # by the exponent
        pair = tl.where((at & 1 != 0)[:, :, None, :], odd, even)
        key = key_of(rank_of(_pick(pair, at >> 1, P)), place + 8 * (at >> 1) + (at & 1))
        tl.store(entry, key, mask=(bits != 0) & (slot < slots))
        bits &= bits - 1
        entry += 1
        slot += 1
        turns -= 1


class Candidates(NamedTuple):
    """Entries of z = x W^T + b, [M, N] = [rows, latents], that rank above the K-th of their row so far.

    Equal entries stay behind those of lower latents, which come first.
    """

    bias: Any  # [N]
    bound: Any  # [M] int32: the K-th's rank
    keys: Any  # [M, slots]
    count: Any  # [M] int32: slots that were asked for
    slots: int
    first: int  # the latent of column 0


@triton.jit
def append(value, block_m, block_n, M, N, a, BM: tl.constexpr, BN: tl.constexpr):
    P: tl.constexpr = min(BN // 8, 16)
    row, col = tile_indices(block_m, block_n, BM, BN)
    z = with_bias(value, a, col, N)
    bound = tl.load(a.bound + row, mask=row < M, other=NAN)
    # NaN compares with nothing: it is above every value, and every value is above EMPTY's
    bits = _bits(~(z <= value_of(bound)[:, None]) & (col < N)[None, :], P)
    bits = tl.where((bound < NAN)[:, None, None], bits, 0)
    number = _number(bits)
    count = tl.broadcast_to((a.count + row)[:, None, None], number.shape)
    slot = tl.atomic_add(count, number, mask=number > 0, sem="relaxed")
    keys = (a.keys + row * a.slots)[:, None, None]
    _store(z, bits, keys, slot, a.slots, a.first + block_n * BN, P)


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
    P: tl.constexpr = min(BN // 8, 16)
    row, col = tile_indices(block_m, block_n, BM, BN)
    z = with_bias(value, a, col, N)
    bound = tl.load(a.bound + col * a.stride, mask=col < N, other=float("nan")).to(tl.float32)
    bits = _bits(~(z <= bound[None, :]) & (bound == bound)[None, :], P)  # NaN is above every value
    bits = tl.where((row < M)[:, None, None], bits, 0)
    number = _number(bits)
    start = tl.atomic_add(a.count, tl.sum(tl.sum(tl.sum(number, 2), 1), 0), sem="relaxed")
    number = tl.ravel(number)
    slot = tl.reshape(start + tl.cumsum(number, 0) - number, bits.shape)
    place = (a.first + row.to(tl.int32) * N + block_n * BN)[:, None, None]
    _store(z, bits, a.keys, slot, a.capacity, place, P)


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
    keys, bounds, count, x, weight, bias, values, latents,
    stride_xm, stride_xk, stride_wn, stride_wk, D, N, first,
    K: tl.constexpr, KEEP: tl.constexpr, SLOTS: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Sort each row's keys [M, SLOTS] to its KEEP largest, and write the rank of the K-th to ``bounds``.

    After the last columns also write the K largest. The candidates were found in N columns, ``first`` and
    those after it. BN is at most SLOTS - KEEP.
    """
    follow()
    row = tl.cast(tl.program_id(0), tl.int64)
    mine = keys + row * SLOTS
    slot = tl.arange(0, SLOTS)
    kept = tl.arange(0, KEEP)
    bound = tl.load(bounds + row)
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
    tl.store(bounds + row, bound)
    if values is not None:
        tl.debug_barrier()
        key = tl.load(mine + kept)
        tl.store(values + row * K + kept, value_of(rank_in(key)), mask=kept < K)
        tl.store(latents + row * K + kept, column_in(key), mask=kept < K)
