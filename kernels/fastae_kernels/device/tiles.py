"""Tiles of matrices: their entries, loads, stores and sums. Offsets are 64-bit, so that none can overflow."""

from __future__ import annotations

import triton
import triton.language as tl

from .layouts import numbers


@triton.jit
def tile_indices(block_m, block_n, BM: tl.constexpr, BN: tl.constexpr, like=None):
    """The rows [BM] and columns [BN] of tile (block_m, block_n), in the layout of ``like``."""
    row = tl.cast(block_m, tl.int64) * BM + numbers(BM, BN, 0, like)
    col = block_n * BN + numbers(BM, BN, 1, like)
    return row, col


@triton.jit
def multiple_of(size, UNIT: tl.constexpr):
    """``size``, of which the compiler then knows that UNIT divides it: rows of it take accesses as wide."""
    if UNIT > 1:
        size = size // UNIT * UNIT
    return size


@triton.jit
def entries(matrix, row, col, N):
    """Pointers to a tile of a contiguous matrix [M, N]."""
    return (matrix + row * N)[:, None] + col[None, :]


@triton.jit
def strided_entries(matrix, row, col, stride_m, stride_n):
    """Pointers to a tile of a matrix with any strides."""
    across = tl.cast(col, tl.int64) * stride_n
    return (matrix + tl.cast(row, tl.int64) * stride_m)[:, None] + across[None, :]


@triton.jit
def inside(row, col, M, N):
    """Mask of a tile's entries inside its matrix, [BM, BN]."""
    return (row < M)[:, None] & (col < N)[None, :]


@triton.jit
def store_sums(rows, total, tile, row, col, block_m, block_n, M, N, BM: tl.constexpr):
    """Write the tile's sums over columns to partials ``rows`` [blocks_n, M], or their sum to ``total``.

    ``total`` [blocks_n, blocks_m] has one partial per tile. One of the two is ``None``.
    """
    if rows is not None:
        sums = tl.sum(tl.where((col < N)[None, :], tile, 0.0), 1)  # [BM]
        tl.store(rows + tl.cast(block_n, tl.int64) * M + row, sums, mask=row < M)
    else:
        store_total(total, tl.sum(tl.where(inside(row, col, M, N), tile, 0.0)), block_m, block_n, M, BM)


@triton.jit
def store_total(total, value, block_m, block_n, M, BM: tl.constexpr):
    """Write a tile's number to partials [blocks_n, blocks_m]."""
    tl.store(total + tl.cast(block_n, tl.int64) * tl.cdiv(M, BM) + block_m, value)


@triton.jit
def store_column_sums(partials, tile, row, col, block_m, M, N):
    """Write the tile's sums over rows to partials [blocks_m, N]; returns them, [BN]."""
    sums = tl.sum(tl.where((row < M)[:, None], tile, 0.0), 0)
    tl.store(partials + tl.cast(block_m, tl.int64) * N + col, sums, mask=col < N)
    return sums


@triton.jit
def load_tile(matrix, row, col, M, N):
    """A tile of a contiguous matrix [M, N] in float32, zero outside."""
    return tl.load(entries(matrix, row, col, N), mask=inside(row, col, M, N), other=0.0).to(tl.float32)


@triton.jit
def store_tile(matrix, tile, row, col, M, N):
    """Writes a tile of a contiguous matrix [M, N], nothing outside."""
    tl.store(entries(matrix, row, col, N), tile, mask=inside(row, col, M, N))


@triton.jit
def load_strided_tile(matrix, row, col, M, N, stride_m, stride_n):
    """A tile of a matrix [M, N] in float32, zero outside; contiguous where the strides are ``None``."""
    if stride_m is None:
        pointers = entries(matrix, row, col, N)
    else:
        pointers = strided_entries(matrix, row, col, stride_m, stride_n)
    return tl.load(pointers, mask=inside(row, col, M, N), other=0.0).to(tl.float32)


@triton.jit
def load_row(vector, col, N):
    """vector [N] as a row [1, BN] in float32."""
    return tl.load(vector + col, mask=col < N, other=0.0).to(tl.float32)[None, :]


@triton.jit
def load_column(vector, row, M):
    """vector [M] as a column [BM, 1] in float32."""
    return tl.load(vector + row, mask=row < M, other=0.0).to(tl.float32)[:, None]


@triton.jit
def load_scale(scale, stride, factor, row, M):
    """``factor`` times a scale as a column [BM, 1]: one value per row, or one for all (stride 0)."""
    return factor * tl.load(scale + row * stride, mask=row < M, other=0.0).to(tl.float32)[:, None]
