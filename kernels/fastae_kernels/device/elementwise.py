"""One pass over a matrix with an epilogue, after a library's product or without one."""

from __future__ import annotations

import triton
import triton.language as tl

from .dependence import follow
from .tiles import load_strided_tile, multiple_of, tile_indices


@triton.jit
def elementwise(
    source, stride_m, stride_n, M, N, EPILOGUE: tl.constexpr, args, BM: tl.constexpr, BN: tl.constexpr,
    UNIT: tl.constexpr,
):  # fmt: skip
    """EPILOGUE of each tile of source [M, N], strided or contiguous; source may be one of its outputs.

    UNIT divides N.
    """
    follow()
    N = multiple_of(N, UNIT)
    blocks_n = tl.cdiv(N, BN)
    block_m = tl.program_id(0) // blocks_n
    block_n = tl.program_id(0) % blocks_n
    if source is not None:
        row, col = tile_indices(block_m, block_n, BM, BN)
        value = load_strided_tile(source, row, col, M, N, stride_m, stride_n)
    else:
        value = tl.zeros((BM, BN), tl.float32)
    EPILOGUE(value, block_m, block_n, M, N, args, BM, BN)
