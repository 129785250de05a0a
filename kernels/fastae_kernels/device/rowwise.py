"""Losses of whole rows of a product that a library has computed: sums in one pass, slopes in a second.

Arguments are those of :func:`.epilogues.decode_loss`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .dependence import follow
from .epilogues import emphasis, load_entry_weight, load_target, with_bias
from .tiles import load_strided_tile, multiple_of, store_column_sums, store_tile, store_total, tile_indices


@triton.jit
def _load(source, stride_m, stride_n, block_m, block_n, M, N, a, BM: tl.constexpr, BN: tl.constexpr):
    """Pre-activation, reconstruction, target and weights of a tile; of weight 0 is what has no loss."""
    row, col = tile_indices(block_m, block_n, BM, BN)
    z = with_bias(load_strided_tile(source, row, col, M, N, stride_m, stride_n), a, col, N)
    x = load_target(a, row, col, M, N)
    weight = tl.where((col < N)[None, :], 1.0, tl.zeros_like(x))
    if a.missing is not None:
        weight = tl.where(x == x, weight, 0.0)
        x = tl.where(x == x, x, 0.0)
    if a.bits is not None:
        weight *= emphasis(weight, a, block_m, block_n, N, BM, BN)
    if a.entry_weight is not None:
        given, x = load_entry_weight(a, x, row, col, M, N)
        weight *= given
    return z, a.function(z), x, weight


@triton.jit
def rowwise(
    source, stride_m, stride_n, M, N, a, BM: tl.constexpr, BN: tl.constexpr, UNIT: tl.constexpr
):  # fmt: skip
    """The loss of BM rows of the product ``source`` [M, N], which may be ``a.grad``, and its gradient.

    Without ``a.rows`` and ``a.total`` the gradient is that to the target. UNIT divides N.
    """
    follow()
    N = multiple_of(N, UNIT)
    block_m = tl.program_id(0)
    rr = tl.zeros((BM, 1), tl.float32)
    xx = tl.zeros((BM, 1), tl.float32)
    rx = tl.zeros((BM, 1), tl.float32)
    for block_n in range(0, tl.cdiv(N, BN)):
        _, r, x, weight = _load(source, stride_m, stride_n, block_m, block_n, M, N, a, BM, BN)  # [BM, BN]
        rr += tl.sum(weight * r * r, 1, keep_dims=True)
        xx += tl.sum(weight * x * x, 1, keep_dims=True)
        rx += tl.sum(weight * r * x, 1, keep_dims=True)
    tl.debug_barrier()  # no warp writes grad while another one still sums source
    loss = tl.zeros((BM, 1), tl.float32)
    for block_n in range(0, tl.cdiv(N, BN)):
        row, col = tile_indices(block_m, block_n, BM, BN)
        z, r, x, weight = _load(source, stride_m, stride_n, block_m, block_n, M, N, a, BM, BN)
        if a.rows is None and a.total is None:
            grad = weight * a.entry(r, x, rr, xx, rx)
        else:
            loss, grad = a.entry(r, x, rr, xx, rx)
            grad *= weight * a.slope(r, z)
            if a.column_sums is not None:
                store_column_sums(a.column_sums, grad, row, col, block_m, M, N)
        store_tile(a.grad, grad, row, col, M, N)
    row, _ = tile_indices(block_m, 0, BM, BN)
    if a.rows is not None:
        tl.store((a.rows + row)[:, None], loss, mask=(row < M)[:, None])
    if a.total is not None:
        store_total(a.total, tl.sum(tl.where((row < M)[:, None], loss, 0.0)), block_m, 0, M, BM)
