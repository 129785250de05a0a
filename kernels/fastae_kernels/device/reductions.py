"""Kernels that reduce in a fixed order: the epilogues' partial sums, squared norms, and swap's gradient."""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false
# (Triton's own annotations know neither numbers for constants nor its loops)

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .dependence import follow
from .noise import mask_bits, swap_source
from .tiles import entries, inside, load_strided_tile, load_tile, multiple_of, store_tile, tile_indices


class Fold(NamedTuple):
    """out = factor scale sum_p partials_p, in the dtype of ``out``; no job without ``out``."""

    partials: Any = None  # [P, L] in float32, or [P]
    out: Any = None  # [L], or one value
    P: int = 0
    L: Any = None  # None for one value
    scale: Any = None  # a tensor of one value
    factor: float = 1.0


@triton.jit
def _scaled(job, total):
    if job.scale is not None:
        total *= tl.load(job.scale).to(tl.float32)
    return total * job.factor


@triton.jit
def _fold(job, block, BP: tl.constexpr, BL: tl.constexpr):
    """One block of a job, if it has it; returns the block's number in the job after it."""
    if job.out is not None:  # Triton 3.6 cannot compare a tuple with None
        blocks = 1 if job.L is None else tl.cdiv(job.L, BL)
        if (block >= 0) & (block < blocks):
            if job.L is None:
                lanes = tl.zeros((BP * BL,), tl.float32)
                for start in range(0, job.P, BP * BL):
                    index = start + tl.arange(0, BP * BL)
                    lanes += tl.load(job.partials + index, mask=index < job.P, other=0.0)
                tl.store(job.out, _scaled(job, tl.sum(lanes, 0)))
            else:
                col = block * BL + tl.arange(0, BL)
                total = tl.zeros((BL,), tl.float32)
                for start in range(0, job.P, BP):
                    row = tl.cast(start, tl.int64) + tl.arange(0, BP)
                    total += tl.sum(load_tile(job.partials, row, col, job.P, job.L), 0)
                tl.store(job.out + col, _scaled(job, total), mask=col < job.L)
        block -= blocks
    return block


@triton.jit
def fold(one, two, three, four, BP: tl.constexpr, BL: tl.constexpr):
    """Up to four jobs (:class:`Fold`) in one launch, a program per block of BL sums."""
    follow()
    block = _fold(one, tl.program_id(0), BP, BL)
    block = _fold(two, block, BP, BL)
    block = _fold(three, block, BP, BL)
    _fold(four, block, BP, BL)


@triton.jit
def squared_norms(
    weight, copy, out, M, N, stride_m, stride_n, BM: tl.constexpr, BN: tl.constexpr, UNIT: tl.constexpr
):
    """q [M], q_j = sum_i W_ji^2, of a weight [M, N], or of its copy in another dtype. UNIT divides N."""
    follow()
    N = multiple_of(N, UNIT)
    row, col = tile_indices(tl.program_id(0), 0, BM, BN)
    total = tl.zeros((BM, BN), tl.float32)
    for start in range(0, N, BN):
        column = col + start
        block = load_strided_tile(weight, row, column, M, N, stride_m, stride_n)
        if copy is not None:
            store_tile(copy, block, row, column, M, N)
            block = block.to(copy.dtype.element_ty).to(tl.float32)
        total += block * block
    tl.store(out + row, tl.sum(total, 1), mask=row < M)


class SwapTargets(NamedTuple):
    """The row that the gradient of each entry goes to: its own, or that of the entry swapped in."""

    seed: Any  # to keep_scale as in :class:`.noise.Mask`
    stream: int
    threshold: int
    bits: Any
    keep_scale: float
    hits: int  # of 2^32 draws
    out: Any  # int32 [M, N]


@triton.jit
def swap_targets(value, block_m, block_n, M, N, a, BM: tl.constexpr, BN: tl.constexpr):
    row, col = tile_indices(block_m, block_n, BM, BN)
    bits = mask_bits(a, block_m, block_n, N, BM, BN)
    target = tl.where(bits <= a.threshold, swap_source(bits, a.hits, M), row[:, None])
    store_tile(a.out, target.to(tl.int32), row, col, M, N)


@triton.jit
def sum_runs(
    grad, stride_m, stride_n, target, order, out, M, N, BM: tl.constexpr, BN: tl.constexpr, UNIT: tl.constexpr
):
    """out[t, n] = sum of grad[order[i, n], n] over the run of rows i with target[i, n] = t.

    The columns of target [M, N] are sorted, and a run's first entry sums it in order: no two additions race.
    Entries of out [M, N] without a run keep their values. UNIT divides N.
    """
    follow()
    N = multiple_of(N, UNIT)
    blocks_n = tl.cdiv(N, BN)
    row, col = tile_indices(tl.program_id(0) // blocks_n, tl.program_id(0) % blocks_n, BM, BN)
    live = inside(row, col, M, N)
    here = entries(target, row, col, N)
    own = tl.load(here, mask=live, other=-1)
    before = tl.load(here - N, mask=live & (row > 0)[:, None], other=-1)
    first = live & (own != before)
    total = tl.zeros((BM, BN), tl.float32)
    more = first
    place = entries(order, row, col, N)
    column = (tl.cast(col, tl.int64) * stride_n)[None, :]
    step = 0
    while tl.max(more.to(tl.int32)) != 0:
        source = tl.load(place + tl.cast(step, tl.int64) * N, mask=more, other=0)
        total += tl.load(grad + source * stride_m + column, mask=more, other=0.0).to(tl.float32)
        step += 1
        inside_still = more & (row + step < M)[:, None]
        following = tl.load(here + tl.cast(step, tl.int64) * N, mask=inside_still, other=-1)
        more = more & (following == own)
    tl.store(out + tl.cast(own, tl.int64) * N + col[None, :], total, mask=first)
