"""Addresses beyond 2^31 entries, in memory that is promised and never there.

Offsets overflow in two ways: by strides that need 64 bits, and by products of two numbers that need 32.
"""

from __future__ import annotations

import mmap
import sys
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from fastae_kernels import operators
from fastae_kernels.device import reductions, segments
from fastae_kernels.device.tiles import entries, inside, store_column_sums, store_sums, tile_indices
from torch import Tensor

from fastae import ops, philox
from tests.kernels.support import ON_GPU, small_tiles

pytestmark = pytest.mark.skipif(
    ON_GPU or sys.platform != "linux", reason="needs memory that is only promised"
)
STRIDES = pytest.mark.parametrize("stride", [2**30 + 8, 2**31 + 8], ids=["int32 stride", "int64 stride"])


def promised(entries: int, dtype: torch.dtype) -> Tensor:
    """So many zeros, of which only the pages that are touched exist.

    There is as much before them as an offset of 32 bits can reach that has overflowed.
    """
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000  # MAP_NORESERVE, which Python 3.13 names
    try:
        memory = mmap.mmap(-1, (2**31 + entries) * dtype.itemsize, flags=flags)
    except OSError as error:
        pytest.skip(f"no address space: {error}")
    return torch.frombuffer(memory, dtype=dtype)[2**31 :]


def spread(x: Tensor, stride: int, dim: int = 0) -> Tensor:
    """The same matrix, its rows (or columns) ``stride`` entries apart."""
    strides = (stride, 1) if dim == 0 else (1, stride)
    buffer = promised(x.shape[dim] * stride, x.dtype)
    return buffer.as_strided(x.shape, strides, buffer.storage_offset()).copy_(x)


def rand(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


@STRIDES
@pytest.mark.parametrize("dim", [0, 1], ids=["rows", "columns"])
def test_inputs_may_lie_far_apart(stride: int, dim: int):
    """Every dimension is of two blocks, so that the steps along the summed one count, too."""
    x, weight, code = rand(19, 18), rand(17, 18), rand(19, 17)
    q, u, scale = (rand(17, dtype=torch.float32).square(), rand(17, dtype=torch.float32), torch.tensor(0.3))
    swap = torch.tensor([3]), "swap", [0.5], philox.STREAM_CORRUPTION
    penalty: dict[str, Any] = {"penalty_scale": scale, "sq_norms": q}

    def results(x: Tensor, weight: Tensor, decoder: Tensor, code: Tensor) -> list[Tensor | None]:
        return [
            ops.corrupt(x, *swap),
            ops.corrupt_backward(x, *swap),
            operators.squared_norms(weight),
            *operators.encode(x, weight, None, "tanh", sq_norms=q),
            *operators.decode_loss(code, decoder, None, x, "bce", column_sums=True),
            operators.decode_loss_target_grad(code, decoder, None, x, "mse"),
            *operators.code_grad(x, decoder, code, None, "tanh", **penalty, sums=torch.float32),
            *operators.code_grad(code, None, code, None, "tanh", **penalty),
            *operators.slope_difference_grad(code, None, code, None, "tanh", q, scale),
            operators.weight_grad(code, x, None, weight, u, code, x),
        ]

    with small_tiles("fused"):
        far = results(*(spread(t, stride, dim) for t in (x, weight, weight.t(), code)))
        near = results(x, weight, weight.t(), code)
    for one, two in zip(far, near, strict=True):
        assert (one is None and two is None) or torch.equal(one, two)


@STRIDES
def test_scales_of_rows_may_lie_far_apart(stride: int):
    code, scale = rand(5, 6), rand(5)
    far = spread(scale[:, None], stride)[:, 0]
    grads = (operators.code_grad(code, None, code, None, "tanh", scale=s)[0] for s in (far, scale))
    assert torch.equal(*grads)


@triton.jit
def store_far(block, other, M, N, matrix, row_sums, column_sums, BM: tl.constexpr, BN: tl.constexpr):
    """Ones in tile (block, 0) of matrix [M, N], and the sums of tile (block, other)."""
    row, col = tile_indices(block, 0, BM, BN)
    ones = tl.full((BM, BN), 1.0, tl.float32)
    tl.store(entries(matrix, row, col, N), ones, mask=inside(row, col, M, N))
    store_sums(row_sums, None, ones, row, col, block, other, M, BN, BM)
    store_column_sums(column_sums, ones, row, col, block, M, N)


def test_outputs_may_lie_far_out():
    """The last row of [2^24, 256] entries as a tile of its own, and partial sums as far."""
    M, N, blocks_n = 2**24, 256, 200
    matrix, column_sums = promised(M * N, torch.float16), promised(M * N, torch.float32)
    row_sums = promised(blocks_n * M, torch.float32)
    store_far[(1,)](M - 1, blocks_n - 1, M, N, matrix, row_sums, column_sums, 1, N)
    assert (matrix[-N:] == 1.0).all() and (column_sums[-N:] == 1.0).all()
    assert row_sums[-1] == N


def test_rows_of_dictionaries_may_lie_far_out():
    """The last of 2^23 + 1 segments, whose entry is the last row of the table, and a chunk as far out."""
    rows, D = 2**23 + 1, 256
    table, sums = promised(rows * D, torch.float16), promised(rows * D, torch.float16)
    partials = promised(rows * D, torch.float32)
    starts, chunks = promised(rows + 1, torch.int64), promised(rows, torch.int64)
    numbers = promised(rows, torch.int64)
    table[-D:], starts[-1], chunks[-1], numbers[-1] = 1.0, 130, rows - 1, 1
    e = segments.Entries(torch.full((130,), 2.0), torch.full((130,), rows - 1), starts, table)
    dots = segments.Dots(table, None, torch.empty(130))
    for first in (rows - 1, 2 * rows - 1):
        segments.segment_sums[(1,)](
            e, dots, chunks, numbers, sums, partials, first, rows, D, CHUNK=128, BD=256, B=2
        )
    assert (sums[-D:] == 256.0).all() and (partials[-D:] == 4.0).all() and (dots.out == D).all()


def test_partial_sums_may_lie_far_apart():
    P, L = 20, 2**28
    partials, out = promised(P * L, torch.float32), torch.empty(128)
    partials.view(P, L)[:, :128] = rand(P, 128, dtype=torch.float32)
    none = reductions.Fold()
    reductions.fold[(1,)](reductions.Fold(partials, out, P, L), none, none, none, 16, 128)
    torch.testing.assert_close(out, rand(P, 128, dtype=torch.float32).sum(0))
