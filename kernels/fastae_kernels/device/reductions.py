"""Kernels that reduce in a fixed order: the epilogues' partial sums, squared norms, and swap's gradient."""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false
# (Triton's own annotations know neither numbers for constants nor its loops)

from __future__ import annotations

import triton
import triton.language as tl

from .noise import mask_bits, swap_source
from .tiles import load_strided_tile, load_tile, multiple_of, tile_indices


@triton.jit
def _fold(partials, out, first, P, L, BP: tl.constexpr, BL: tl.constexpr):
    col = first * BL + tl.arange(0, BL)
    total = tl.zeros((BL,), tl.float32)
    for start in range(0, P, BP):
        row = tl.cast(start, tl.int64) + tl.arange(0, BP)
        total += tl.sum(load_tile(partials, row, col, P, L), 0)
    tl.store(out + col, total, mask=col < L)


@triton.jit
def fold(partials, out, P, L, partials2, out2, P2, L2, BP: tl.constexpr, BL: tl.constexpr):
    """out [L] = sum_p partials [P, L]; a second pair may come along, to save a launch."""
    _fold(partials, out, tl.program_id(0), P, L, BP, BL)
    if partials2 is not None:
        _fold(partials2, out2, tl.program_id(0), P2, L2, BP, BL)


@triton.jit
def squared_norms(
    weight, out, M, N, stride_m, stride_n, BM: tl.constexpr, BN: tl.constexpr, UNIT: tl.constexpr
):
    """q [M], q_j = sum_i W_ji^2. UNIT divides N."""
    N = multiple_of(N, UNIT)
    row, col = tile_indices(tl.program_id(0), 0, BM, BN)
    total = tl.zeros((BM, BN), tl.float32)
    for start in range(0, N, BN):
        column = col + start
        block = load_strided_tile(weight, row, column, M, N, stride_m, stride_n)
        total += block * block
    tl.store(out + row, tl.sum(total, 1), mask=row < M)


@triton.jit
def gather_swapped(grad, stride_m, stride_n, out, mask, hits, M, N, BN: tl.constexpr):
    """out [M, N] (float32) += the gradients of the entries that came from each row.

    A column belongs to one program, which goes through the rows in order: no two additions race.
    """
    for row in range(0, M):
        _, col = tile_indices(0, tl.program_id(0), 1, BN)
        bits = tl.reshape(mask_bits(mask, row, tl.program_id(0), N, 1, BN), (BN,))
        moved = (bits <= mask.threshold) & (col < N)
        here = tl.cast(row, tl.int64) * stride_m + tl.cast(col, tl.int64) * stride_n
        there = swap_source(bits, hits, M) * N + col
        value = tl.load(grad + here, mask=moved, other=0.0).to(tl.float32)
        tl.store(out + there, tl.load(out + there, mask=moved, other=0.0) + value, mask=moved)
        tl.debug_barrier()  # the next row's loads see this row's stores, whatever threads they are of
