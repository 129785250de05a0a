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
from .layouts import adjacent, alike, along, indices, octets, ordered
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
def _by_thread(tile, P: tl.constexpr, W: tl.constexpr):
    """Entries [BM, BN] as [BM, G, P, T, W]: one of T threads has W neighbours of each of P octets of columns.

    A thread of matrix units (``mma``, ``wgmma``) has every fourth pair of columns, T = 4 and W = 2; one that
    works on a row alone has T = 1 and W = 8. Either finds its entries without talking to others.
    """
    return tl.reshape(tile, (tile.shape[0], tile.shape[1] // (8 * P), P, 8 // W, W))


@triton.jit
def _number_of_bit(entries, W: tl.constexpr):
    """[1, 1, P, 1, W]"""
    return W * indices(entries, 2) + indices(entries, 4)


@triton.jit
def _bits(hit, P: tl.constexpr, W: tl.constexpr):
    """Bits [BM, G, T] int32 of entries [BM, BN], see :func:`_by_thread`."""
    hit = _by_thread(hit, P, W)
    return tl.sum(tl.sum(tl.where(hit, 1 << _number_of_bit(hit, W), 0), 4), 2)


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
def _store(z, bits, keys, slot, slots, place, P: tl.constexpr, W: tl.constexpr):
    """Write the keys of the entries of z [BM, BN] in ``bits`` to ``keys`` from ``slot`` on, up to ``slots``.

    One of each bits in a turn: entries are rare, and most tiles take one or two. ``keys`` and ``place``, the
    number of the tile's first column, broadcast with ``bits``.
    """
    entries = _by_thread(z, P, W)
    if W == 2:
        even, odd = tl.split(entries)
    else:
        entries = entries.to(tl.int32, bitcast=True)
    place += 8 * P * indices(bits, 1) + W * indices(bits, 2)
    # axis by axis: of a flattened tensor that threads share, Triton 3.6 compares the wrong ones
    turns = tl.max(tl.max(tl.max(_number(bits), 2), 1), 0)
    entry = keys + slot
    while turns > 0:
        lowest = (bits & -bits).to(tl.uint32).to(tl.float32)
        at = (lowest.to(tl.int32, bitcast=True) >> 23) - 127  # by the exponent
        if W == 2:
            # values that are not carried along keep Triton 3.6 from flattening the loop over tiles
            going = turns != 0  # always, as only machine code knows
            even, odd = tl.where(going, even, 0.0), tl.where(going, odd, 0.0)
            place = tl.where(going, place, 0)
            pair = tl.where((at & 1 != 0)[:, :, None, :], odd, even)
            value, column = _pick(pair, at >> 1, P), 8 * (at >> 1) + (at & 1)
        else:
            found = _number_of_bit(entries, W) == at[:, :, None, :][:, :, :, :, None]
            value = tl.sum(tl.sum(tl.where(found, entries, 0), 4), 2).to(tl.float32, bitcast=True)
            column = at
        tl.store(entry, key_of(rank_of(value), place + column), mask=(bits != 0) & (slot < slots))
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
    P: tl.constexpr = octets(value)
    W: tl.constexpr = adjacent(value)
    row, col = tile_indices(block_m, block_n, BM, BN, value)
    z = with_bias(value, a, col, N)
    bound = tl.load(a.bound + row, mask=row < M, other=NAN)
    # NaN compares with nothing: it is above every value, and every value is above EMPTY's
    bits = _bits(~(z <= value_of(bound)[:, None]) & (col < N)[None, :], P, W)
    bits = tl.where(along(bound < NAN, bits, 0), bits, 0)
    number = _number(bits)
    row = along(row, bits, 0)
    count = tl.broadcast_to(a.count + row, number.shape)
    slot = tl.atomic_add(count, number, mask=number > 0, sem="relaxed")
    _store(z, bits, a.keys + row * a.slots, slot, a.slots, a.first + block_n * BN, P, W)


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
    P: tl.constexpr = octets(value)
    W: tl.constexpr = adjacent(value)
    row, col = tile_indices(block_m, block_n, BM, BN, value)
    z = with_bias(value, a, col, N)
    bound = tl.load(a.bound + col * a.stride, mask=col < N, other=float("nan")).to(tl.float32)
    # NaN is above every value
    bits = _bits(~(z <= bound[None, :]) & (bound == bound)[None, :], P, W)
    bits = tl.where(along(row < M, bits, 0), bits, 0)
    number = _number(bits)
    total = tl.sum(tl.sum(tl.sum(number, 2), 1), 0)
    if W == 2:  # where a branch might keep the loop over tiles from being flattened
        _append_all(z, bits, number, total, row, block_n * BN, N, a, P, W)
    else:
        if total > 0:
            _append_all(z, bits, number, total, row, block_n * BN, N, a, P, W)


@triton.jit
def _append_all(z, bits, number, total, row, first, N, a, P: tl.constexpr, W: tl.constexpr):
    """Append the ``total`` entries in ``bits``, ``number`` of each; ``first`` is the tile's first column."""
    start = tl.atomic_add(a.count, total, sem="relaxed")
    number = ordered(tl.ravel(number))
    slot = alike(tl.reshape(start + tl.cumsum(number, 0) - number, bits.shape), bits)
    place = along(a.first + row.to(tl.int32) * N + first, bits, 0)
    _store(z, bits, a.keys, slot, a.capacity, place, P, W)


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
