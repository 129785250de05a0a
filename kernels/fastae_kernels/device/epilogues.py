"""Epilogues: the operators' formulas, applied to a tile of a product before it is written.

An epilogue gets a tile ``value`` [BM, BN] of an [M, N] matrix in float32, the tile's place and its arguments.
The same function ends a matrix product (:mod:`.gemm`) and serves a product that a library has computed
(:mod:`.elementwise`), so both strategies share their arithmetic. Outputs [M, N] are contiguous. Sums come as
one partial per tile, [blocks_n, M] over columns, [blocks_m, N] over rows and [blocks_n, blocks_m] over both,
for :func:`.reductions.fold`: no atomics, so that two runs agree bit for bit. Of ``None`` nothing is computed.

Arguments are named tuples of pointers, numbers and device functions: what a kernel is made of and what it
works on. They are flat, since Triton 3.6 loses functions in tuples of tuples. Fields that device functions
look for have one name everywhere: ``function, slope, second`` of
:class:`.activations.Activation`, ``seed, stream, threshold, bits, keep_scale`` of :class:`.noise.Mask`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .activations import sign
from .layouts import alike, filled
from .noise import bits32, drop, mask_hits
from .tiles import (
    load_column,
    load_row,
    load_scale,
    load_strided_tile,
    load_tile,
    store_column_sums,
    store_sums,
    store_tile,
    store_total,
    tile_indices,
)


class Encode(NamedTuple):
    """h = f(z), z = x W^T + b, [M, N] = [rows, units]."""

    function: Any
    slope: Any
    second: Any
    bias: Any  # [N]
    code: Any  # h
    preact: Any  # z
    dropped: Any  # h after dropout, what the decoder sees
    seed: Any
    stream: int
    threshold: int
    bits: Any
    keep_scale: float
    base_code: Any  # h and z of another input, whose slopes are subtracted from this one's
    base_preact: Any
    sq_norms: Any  # q [N]
    penalty: Any  # partials of sum_j s_j^2 q_j, per row
    penalty_total: Any  # or over rows, too
    slope_sums: Any  # partials of sum_n s_n^2, with penalty_total
    l1: Any  # partials of sum_j |h_j|, per row
    l1_total: Any  # or over rows, too
    code_sum: Any  # partials of sum_n h_n


@triton.jit
def with_bias(value, a, col, N):
    z = value
    if a.bias is not None:
        z += load_row(a.bias, col, N)
    return z


@triton.jit
def encode(value, block_m, block_n, M, N, a, BM: tl.constexpr, BN: tl.constexpr):
    row, col = tile_indices(block_m, block_n, BM, BN, value)
    z = with_bias(value, a, col, N)
    h = a.function(z)
    store_tile(a.code, h, row, col, M, N)
    if a.preact is not None:
        store_tile(a.preact, z, row, col, M, N)
    if a.sq_norms is not None:
        s = a.slope(h, z)
        if a.base_code is not None:
            base_h = load_tile(a.base_code, row, col, M, N)
            base_z = base_h
            if a.base_preact is not None:
                base_z = load_tile(a.base_preact, row, col, M, N)
            s = a.slope(base_h, base_z) - s
        q = load_row(a.sq_norms, col, N)
        if a.slope_sums is not None:
            sums = store_column_sums(a.slope_sums, s * s, row, col, block_m, M, N)
            store_total(a.penalty_total, tl.sum(tl.expand_dims(sums, 0) * q), block_m, block_n, M, BM)
        else:
            store_sums(a.penalty, None, s * s * q, row, col, block_m, block_n, M, N, BM)
    if a.l1 is not None or a.l1_total is not None:
        store_sums(a.l1, a.l1_total, tl.abs(h), row, col, block_m, block_n, M, N, BM)
    if a.code_sum is not None:
        store_column_sums(a.code_sum, h, row, col, block_m, M, N)
    if a.bits is not None:
        seen = drop(h, a, block_m, block_n, N, BM, BN)
        store_tile(a.dropped, seen, row, col, M, N)


class DecodeLoss(NamedTuple):
    """The loss of a = h V^T + c against the target, [M, N] = [rows, features]; a is not written."""

    entry: Any  # a function of losses.py
    parameter: float  # its number
    missing: Any  # not None where NaN in the target stands for a missing entry
    function: Any  # the output activation of mse
    slope: Any
    second: Any
    bias: Any  # [N]
    target: Any
    target_stride_m: Any  # None where contiguous
    target_stride_n: Any
    seed: Any
    stream: int
    threshold: int
    bits: Any
    keep_scale: float
    corrupted: float  # what the entries count that the mask hits
    clean: float  # and the others
    entry_weight: Any  # further weights, [M or 1, N or 1]
    entry_weight_stride_m: Any  # None where contiguous, 0 where there is one row
    entry_weight_stride_n: Any
    rows: Any  # partials of the loss per row
    total: Any  # or of its sum over rows
    grad: Any  # dl/da
    column_sums: Any  # partials of sum_n dl/da


@triton.jit
def emphasis(value, a, block_m, block_n, N, BM: tl.constexpr, BN: tl.constexpr):
    """What the entries of a tile like ``value`` count."""
    hits = alike(mask_hits(a, block_m, block_n, N, BM, BN), value)
    return tl.where(hits, a.corrupted, a.clean)


@triton.jit
def load_entry_weight(a, x, row, col, M, N):
    """Weights of entries, and the target x, which is 0 where the weight is: NaN times 0 would be NaN."""
    weight = load_strided_tile(
        a.entry_weight, row, col, M, N, a.entry_weight_stride_m, a.entry_weight_stride_n
    )
    return weight, tl.where(weight == 0.0, 0.0, x)


@triton.jit
def load_target(a, row, col, M, N):
    return load_strided_tile(a.target, row, col, M, N, a.target_stride_m, a.target_stride_n)


@triton.jit
def decode_loss(value, block_m, block_n, M, N, a, BM: tl.constexpr, BN: tl.constexpr):
    row, col = tile_indices(block_m, block_n, BM, BN, value)
    z = with_bias(value, a, col, N)
    x = load_target(a, row, col, M, N)
    if a.entry_weight is not None:
        weight, x = load_entry_weight(a, x, row, col, M, N)
    losses, grad = a.entry(z, x, a)
    if a.missing is not None:
        losses = tl.where(x == x, losses, 0.0)
        grad = tl.where(x == x, grad, 0.0)
    if a.bits is not None:
        factor = emphasis(value, a, block_m, block_n, N, BM, BN)
        losses *= factor
        grad *= factor
    if a.entry_weight is not None:
        losses *= weight
        grad *= weight
    store_sums(a.rows, a.total, losses, row, col, block_m, block_n, M, N, BM)
    if a.column_sums is not None:
        store_column_sums(a.column_sums, grad, row, col, block_m, M, N)
    store_tile(a.grad, grad, row, col, M, N)


@triton.jit
def decode_loss_target_gradient(value, block_m, block_n, M, N, a, BM: tl.constexpr, BN: tl.constexpr):
    """d l / d target; ``entry`` is a loss's target gradient."""
    row, col = tile_indices(block_m, block_n, BM, BN, value)
    z = with_bias(value, a, col, N)
    x = load_target(a, row, col, M, N)
    if a.entry_weight is not None:
        weight, x = load_entry_weight(a, x, row, col, M, N)
    grad = a.entry(z, x, a)
    if a.missing is not None:
        grad = tl.where(x == x, grad, 0.0)
    if a.bits is not None:
        grad *= emphasis(value, a, block_m, block_n, N, BM, BN)
    if a.entry_weight is not None:
        grad *= weight
    store_tile(a.grad, grad, row, col, M, N)


class CodeGradient(NamedTuple):
    """dz = s (scale dropout(dh) + l1 sign(h) + column_grad + 2 p t q) + extra, [M, N] = [rows, units].

    Scales are one value per row (stride 1) or one for all (stride 0), times a number.
    """

    function: Any
    slope: Any
    second: Any
    code: Any
    preact: Any
    seed: Any
    stream: int
    threshold: int
    bits: Any
    keep_scale: float
    scale: Any
    scale_stride: int
    scale_factor: float
    penalty_scale: Any  # p
    penalty_stride: int
    penalty_factor: float
    sq_norms: Any  # q [N]
    l1_scale: Any
    l1_stride: int
    l1_factor: float
    column_grad: Any  # [N]
    extra: Any
    dz: Any
    db: Any  # partials of sum_n dz
    u: Any  # partials of 2 sum_n p s^2


@triton.jit
def code_gradient(value, block_m, block_n, M, N, a, BM: tl.constexpr, BN: tl.constexpr):
    row, col = tile_indices(block_m, block_n, BM, BN, value)
    d = value
    if a.bits is not None:
        d = drop(d, a, block_m, block_n, N, BM, BN)
    if a.scale is not None:
        d *= load_scale(a.scale, a.scale_stride, a.scale_factor, row, M)
    h = load_tile(a.code, row, col, M, N)
    z = h
    if a.preact is not None:
        z = load_tile(a.preact, row, col, M, N)
    if a.l1_scale is not None:
        d += load_scale(a.l1_scale, a.l1_stride, a.l1_factor, row, M) * sign(h)
    if a.column_grad is not None:
        d += load_row(a.column_grad, col, N)
    s = a.slope(h, z)
    if a.penalty_scale is not None:
        twice = 2.0 * load_scale(a.penalty_scale, a.penalty_stride, a.penalty_factor, row, M)
        if a.second is not None:
            d += twice * load_row(a.sq_norms, col, N) * a.second(h, s, z)
        if a.u is not None:
            store_column_sums(a.u, twice * s * s, row, col, block_m, M, N)
    d *= s
    if a.extra is not None:
        d += load_tile(a.extra, row, col, M, N)
    if a.db is not None:
        store_column_sums(a.db, d, row, col, block_m, M, N)
    store_tile(a.dz, d, row, col, M, N)


class WeightGradient(NamedTuple):
    """scale value + diag(u_scale u) W + added, [M, N] = [units, features] as W is. Scales are one value."""

    scale: Any
    scale_factor: float
    weight: Any
    weight_stride_m: Any  # None where contiguous
    weight_stride_n: Any
    u: Any  # [M]
    u_scale: Any
    u_factor: float
    added: Any  # another product
    out: Any


@triton.jit
def weight_gradient(value, block_m, block_n, M, N, a, BM: tl.constexpr, BN: tl.constexpr):
    row, col = tile_indices(block_m, block_n, BM, BN, value)
    d = value
    if a.scale is not None:
        d *= a.scale_factor * tl.load(a.scale).to(tl.float32)
    if a.u is not None:
        weight = load_strided_tile(a.weight, row, col, M, N, a.weight_stride_m, a.weight_stride_n)
        u = a.u_factor * load_column(a.u, row, M)
        if a.u_scale is not None:
            u *= tl.load(a.u_scale).to(tl.float32)
        d += u * weight
    if a.added is not None:
        d += load_tile(a.added, row, col, M, N)
    store_tile(a.out, d, row, col, M, N)


class SlopeDifference(NamedTuple):
    """The gradients of sum_j (s_j - s2_j)^2 q_j to z and to z2, [M, N] = [rows, units]; the tile is h."""

    function: Any
    slope: Any
    second: Any
    preact: Any
    code2: Any
    preact2: Any
    sq_norms: Any  # q [N]
    scale: Any
    scale_stride: int
    dz: Any
    dz2: Any
    u: Any  # partials of 2 sum_n scale (s - s2)^2


@triton.jit
def slope_difference_gradient(value, block_m, block_n, M, N, a, BM: tl.constexpr, BN: tl.constexpr):
    row, col = tile_indices(block_m, block_n, BM, BN, value)
    h = value
    h2 = load_tile(a.code2, row, col, M, N)
    z, z2 = h, h2
    if a.preact is not None:
        z = load_tile(a.preact, row, col, M, N)
        z2 = load_tile(a.preact2, row, col, M, N)
    s = a.slope(h, z)
    s2 = a.slope(h2, z2)
    twice = 2.0 * load_scale(a.scale, a.scale_stride, 1.0, row, M)
    store_column_sums(a.u, twice * (s - s2) * (s - s2), row, col, block_m, M, N)
    ds = twice * (s - s2) * load_row(a.sq_norms, col, N)
    if a.second is not None:
        dz = ds * a.second(h, s, z)
        dz2 = -ds * a.second(h2, s2, z2)
    else:
        dz = filled(ds, 0.0, tl.float32)
        dz2 = dz
    store_tile(a.dz, dz, row, col, M, N)
    store_tile(a.dz2, dz2, row, col, M, N)


@triton.jit
def corrupt(value, block_m, block_n, M, N, a, BM: tl.constexpr, BN: tl.constexpr):
    """x~ [M, N]; the arguments are a :class:`.noise.Corruption`."""
    row, col = tile_indices(block_m, block_n, BM, BN, value)
    noisy = a.corruption(value, a, block_m, block_n, M, N, BM, BN)
    store_tile(a.out, noisy, row, col, M, N)


class Perturb(NamedTuple):
    """The code that the decoder sees: noise, then dropout."""

    noise: Any
    noise_stream: int
    noise_std: float
    seed: Any
    stream: int
    threshold: int
    bits: Any
    keep_scale: float
    out: Any


@triton.jit
def perturb(value, block_m, block_n, M, N, a, BM: tl.constexpr, BN: tl.constexpr):
    row, col = tile_indices(block_m, block_n, BM, BN, value)
    seen = value
    if a.noise is not None:
        seen = a.noise(seen, a, block_m, block_n, N, BM, BN)
    if a.bits is not None:
        seen = drop(seen, a, block_m, block_n, N, BM, BN)
    store_tile(a.out, seen, row, col, M, N)


class Signs(NamedTuple):
    """-1 or 1 with equal probability."""

    seed: Any
    stream: int
    out: Any


@triton.jit
def random_signs(value, block_m, block_n, M, N, a, BM: tl.constexpr, BN: tl.constexpr):
    row, col = tile_indices(block_m, block_n, BM, BN, value)
    bits = bits32(a.seed, a.stream, block_m, block_n, N, BM, BN)
    signs = tl.where(bits < 0, -1.0, 1.0)
    store_tile(a.out, signs, row, col, M, N)
