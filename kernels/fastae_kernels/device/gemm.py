"""The matrix product whose end is an epilogue.

Tiles are visited in groups of rows, so that neighbours share operands in the second-level cache. A program
takes every ``num_programs``-th tile: with as many programs as multiprocessors the schedule is persistent, and
with one program a tile it is the plain one. Operands come by pointers with any strides, or by tensor
descriptors (TMA) where alignment allows. Accumulation is in float32.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false
# (Triton's own annotations know neither numbers for constants nor its loops)

from __future__ import annotations

import triton
import triton.language as tl

from .dependence import follow
from .tiles import inside, multiple_of, strided_entries


@triton.jit
def place(tile, tiles_m, tiles_n, GROUP: tl.constexpr):
    """The place (block_m, block_n) of a tile: GROUP rows of tiles are visited together."""
    group = tile // (GROUP * tiles_n)
    height = tl.minimum(tiles_m - group * GROUP, GROUP)
    within = tile % (GROUP * tiles_n)
    return group * GROUP + within % height, within // height


@triton.jit
def _multiply(
    acc, a, b, first_m, first_n, M, N, K, stride_am, stride_ak, stride_bk, stride_bn,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
    TMA: tl.constexpr, A_TRANSPOSED: tl.constexpr, B_TRANSPOSED: tl.constexpr, STRIDE_UNIT: tl.constexpr,
):  # fmt: skip
    """acc + a b for one tile, [BM, BN]; outside the operands is zero."""
    steps = tl.cdiv(K, BK)
    tl.assume(steps > 0)  # else a flattened loop has a second epilogue, for products of nothing
    if TMA:
        for step in tl.range(0, steps):
            first_k = step * BK
            # the descriptor may be of the operand's transpose
            x = a.load([first_k, first_m]).T if A_TRANSPOSED else a.load([first_m, first_k])  # [BM, BK]
            y = b.load([first_n, first_k]).T if B_TRANSPOSED else b.load([first_k, first_n])  # [BK, BN]
            acc = tl.dot(x, y, acc, input_precision=PRECISION)
    else:
        k = tl.arange(0, BK)
        row = first_m + tl.arange(0, BM)
        col = first_n + tl.arange(0, BN)
        if A_TRANSPOSED:
            stride_ak = multiple_of(stride_ak, STRIDE_UNIT)
        else:
            stride_am = multiple_of(stride_am, STRIDE_UNIT)
        if B_TRANSPOSED:
            stride_bn = multiple_of(stride_bn, STRIDE_UNIT)
        else:
            stride_bk = multiple_of(stride_bk, STRIDE_UNIT)
        a_entries = strided_entries(a, row, k, stride_am, stride_ak)
        b_entries = strided_entries(b, k, col, stride_bk, stride_bn)
        a_step = tl.cast(BK, tl.int64) * stride_ak
        b_step = tl.cast(BK, tl.int64) * stride_bk
        for step in tl.range(0, steps):
            left = K - step * BK
            x = tl.load(a_entries, mask=inside(row, k, M, left), other=0.0)  # [BM, BK]
            y = tl.load(b_entries, mask=inside(k, col, left, N), other=0.0)  # [BK, BN]
            acc = tl.dot(x, y, acc, input_precision=PRECISION)
            a_entries += a_step
            b_entries += b_step
    return acc


@triton.jit
def _finish(
    acc, block_m, block_n, M, N, EPILOGUE: tl.constexpr, args, BM: tl.constexpr, BN: tl.constexpr,
    SUBTILES: tl.constexpr,
):  # fmt: skip
    """EPILOGUE of a tile, in SUBTILES (1, 2, 4, ...) parts of its columns, which need fewer registers."""
    if SUBTILES == 1:
        EPILOGUE(acc, block_m, block_n, M, N, args, BM, BN)
    else:
        halves = tl.permute(tl.reshape(acc, (BM, 2, BN // 2)), (0, 2, 1))
        left, right = tl.split(halves)
        _finish(left, block_m, 2 * block_n, M, N, EPILOGUE, args, BM, BN // 2, SUBTILES // 2)
        _finish(right, block_m, 2 * block_n + 1, M, N, EPILOGUE, args, BM, BN // 2, SUBTILES // 2)


@triton.jit
def gemm(
    a, b, a2, b2, scale2, factor2, M, N, K,
    stride_am, stride_ak, stride_bk, stride_bn, stride_am2, stride_ak2, stride_bk2, stride_bn2,
    EPILOGUE: tl.constexpr, args,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, SUBTILES: tl.constexpr,
    PRECISION: tl.constexpr, TMA: tl.constexpr, A_TRANSPOSED: tl.constexpr, B_TRANSPOSED: tl.constexpr,
    A2_TRANSPOSED: tl.constexpr, B2_TRANSPOSED: tl.constexpr, FLATTEN: tl.constexpr,
    M_UNIT: tl.constexpr, N_UNIT: tl.constexpr, K_UNIT: tl.constexpr, STRIDE_UNIT: tl.constexpr,
):  # fmt: skip
    """EPILOGUE of each tile of a b, or of a b + factor2 scale2 a2 b2 with two products of one shape.

    a [M, K], b [K, N], K > 0; scale2 is a tensor of one value, or ``None`` where the second is not scaled.
    An operand is transposed where its columns are contiguous. The units divide M, N, K and the strides of
    rows (or columns).
    """
    follow()
    M = multiple_of(M, M_UNIT)
    N = multiple_of(N, N_UNIT)
    K = multiple_of(K, K_UNIT)
    tiles_m = tl.cdiv(M, BM)
    tiles_n = tl.cdiv(N, BN)
    for tile in tl.range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0), flatten=FLATTEN):
        block_m, block_n = place(tile, tiles_m, tiles_n, GROUP)
        first_m = block_m * BM
        first_n = block_n * BN

        acc = tl.zeros((BM, BN), tl.float32)
        if a2 is not None:
            acc = _multiply(
                acc, a2, b2, first_m, first_n, M, N, K, stride_am2, stride_ak2, stride_bk2, stride_bn2,
                BM, BN, BK, PRECISION, TMA, A2_TRANSPOSED, B2_TRANSPOSED, STRIDE_UNIT,
            )  # fmt: skip
            if scale2 is not None:
                acc *= factor2 * tl.load(scale2).to(tl.float32)
        acc = _multiply(
            acc, a, b, first_m, first_n, M, N, K, stride_am, stride_ak, stride_bk, stride_bn,
            BM, BN, BK, PRECISION, TMA, A_TRANSPOSED, B_TRANSPOSED, STRIDE_UNIT,
        )  # fmt: skip
        _finish(acc, block_m, block_n, M, N, EPILOGUE, args, BM, BN, SUBTILES)
