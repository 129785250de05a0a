"""Counter-based noise and corruption as device functions.

The generator is Philox4x64-10 (Salmon et al. 2011), as in ``numpy.random.Philox``, with key (seed, stream).
One counter gives 256 bits, or k = 256 / WIDTH draws; row r of a matrix with D columns owns the counters
``r * ceil(D / k) + 0, 1, ...``, and the draw of column c is the (c mod k)-th part of counter ``c // k``,
least significant part of each 64-bit word first. A draw depends on (seed, stream, row, column) alone, so
forward, backward and every tile shape agree bit for bit. All 256 bits of every counter are used.

A seed is int64 [1]; or uint64 [4] with the place of the matrix in a larger one, whose draws it then has: the
first row, the first column (a multiple of 16), and the larger one's columns, 0 for as many as its own.

Draws are signed; those at or below an integer threshold are the hits of an event.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false
# (Triton's own annotations know neither numbers for constants nor its loops)

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl
from triton.language.random import philox_impl

from .layouts import alike, filled
from .tiles import inside, tile_indices


@triton.jit
def _words(seed, stream, block_m, block_n, columns, DRAWS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """The counters' 64-bit words behind a tile, [BM, BN / DRAWS, 4]."""
    tl.static_assert(BN % DRAWS == 0, "a tile must hold whole counters")
    GROUPS: tl.constexpr = BN // DRAWS
    row, group = tile_indices(block_m, block_n, BM, GROUPS)
    if seed.dtype.element_ty == tl.uint64:
        whole = tl.load(seed + 3).to(tl.int64)
        per_row = tl.cdiv(tl.where(whole == 0, columns, whole), DRAWS)
        row, group = row + tl.load(seed + 1).to(tl.int64), group + tl.load(seed + 2).to(tl.int64) // DRAWS
    else:
        per_row = tl.cdiv(columns, DRAWS)
    counter = (row[:, None] * per_row + group[None, :]).to(tl.uint64)  # [BM, GROUPS]
    zero = filled(counter, 0, tl.uint64)
    key0 = tl.load(seed).to(tl.uint64, bitcast=True)
    key1 = tl.cast(stream, tl.uint64)
    w0, w1, w2, w3 = philox_impl(counter, zero, zero, zero, key0, key1)
    return tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), (BM, GROUPS, 4))


@triton.jit
def random_bits(
    seed, stream, block_m, block_n, columns, WIDTH: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr
):
    """A draw of WIDTH bits for each entry of a tile, [BM, BN], as int16 or int32."""
    words = _words(seed, stream, block_m, block_n, columns, 256 // WIDTH, BM, BN)
    if WIDTH == 16:  # the least significant part first
        parts = tl.join(tl.join(words, words >> 32), tl.join(words >> 16, words >> 48))
        parts = parts.to(tl.uint16).to(tl.int16, bitcast=True)
    else:
        parts = tl.join(words, words >> 32)
        parts = parts.to(tl.uint32).to(tl.int32, bitcast=True)
    return tl.reshape(parts, (BM, BN))


@triton.jit
def _uniform(bits):
    """The upper 24 of 32 bits, a whole number."""
    return ((bits >> 8) & 0xFFFFFF).to(tl.int32)


@triton.jit
def _cos_sin(turns):
    """Cosine and sine of ``turns`` 2^-24 turns, for whole numbers from 0 to 2^24."""
    quarter = (turns + 2097152) >> 22
    t = (turns - (quarter << 22)).to(tl.float32) * (6.283185307179586 * 2.0**-24)  # at most pi / 4
    t2 = t * t
    s = t * (1.0 - t2 * (1.0 / 6.0 - t2 * (1.0 / 120.0 - t2 * (1.0 / 5040.0 - t2 * (1.0 / 362880.0)))))
    c = 1.0 - t2 * (0.5 - t2 * (1.0 / 24.0 - t2 * (1.0 / 720.0 - t2 * (1.0 / 40320.0))))
    odd = (quarter & 1) != 0
    cos, sin = tl.where(odd, s, c), tl.where(odd, c, s)
    return tl.where(((quarter + 1) & 2) != 0, -cos, cos), tl.where((quarter & 2) != 0, -sin, sin)


@triton.jit
def standard_normal(seed, stream, block_m, block_n, columns, BM: tl.constexpr, BN: tl.constexpr):
    """Standard normal draws [BM, BN] by Box and Muller's transform; columns 2k and 2k+1 share a word."""
    words = _words(seed, stream, block_m, block_n, columns, 8, BM, BN)  # [BM, BN / 8, 4]
    radius = tl.sqrt(-2.0 * tl.log((_uniform(words & 0xFFFFFFFF) + 1).to(tl.float32) * (2.0**-24)))
    cos, sin = _cos_sin(_uniform(words >> 32))
    return tl.reshape(tl.join(radius * cos, radius * sin), (BM, BN))


@triton.jit
def bits16(seed, stream, block_m, block_n, columns, BM: tl.constexpr, BN: tl.constexpr):
    return random_bits(seed, stream, block_m, block_n, columns, 16, BM, BN)


@triton.jit
def bits32(seed, stream, block_m, block_n, columns, BM: tl.constexpr, BN: tl.constexpr):
    return random_bits(seed, stream, block_m, block_n, columns, 32, BM, BN)


BITS: dict[int, Any] = {16: bits16, 32: bits32}
"""By the width of a draw."""


class Mask(NamedTuple):
    """An event of each entry: the draws at or below ``threshold`` are its hits; none without ``bits``.

    Where entries are dropped, those that are kept are multiplied by ``keep_scale``.
    """

    seed: Any = None  # int64 [1] or uint64 [4]
    stream: int = 0
    threshold: int = 0
    bits: Any = None  # a function of ``BITS``
    keep_scale: float = 1.0


class Noise(NamedTuple):
    """Noise on the code: a function of ``CODE_NOISES``, its stream, and a standard deviation or nothing."""

    noise: Any = None
    noise_stream: int = 0
    noise_std: float = 0.0


class Corruption(NamedTuple):
    """One of ``CORRUPTIONS``, the draws as in :class:`Mask`, and what the kind needs besides."""

    corruption: Any
    seed: Any
    stream: int
    threshold: int = 0
    bits: Any = bits32
    std: float = 0.0
    salt: int = 0  # draws above this threshold become ``high``, other hits ``low``
    low: float = 0.0
    high: float = 1.0
    hits: int = 1  # of 2^32 draws, how many are hits
    source: Any = None  # x itself, for entries that come from other rows
    stride_m: int = 0
    stride_n: int = 0
    out: Any = None  # x~


@triton.jit
def mask_bits(m, block_m, block_n, columns, BM: tl.constexpr, BN: tl.constexpr):
    return m.bits(m.seed, m.stream, block_m, block_n, columns, BM, BN)


@triton.jit
def mask_hits(m, block_m, block_n, columns, BM: tl.constexpr, BN: tl.constexpr):
    return mask_bits(m, block_m, block_n, columns, BM, BN) <= m.threshold


@triton.jit
def drop(value, m, block_m, block_n, columns, BM: tl.constexpr, BN: tl.constexpr):
    """Dropout of a tile; inf and nan are dropped, too."""
    hits = alike(mask_hits(m, block_m, block_n, columns, BM, BN), value)
    return tl.where(hits, 0.0, value * m.keep_scale)


@triton.jit
def gaussian_noise(h, n, block_m, block_n, columns, BM: tl.constexpr, BN: tl.constexpr):
    return h + n.noise_std * standard_normal(n.seed, n.noise_stream, block_m, block_n, columns, BM, BN)


@triton.jit
def bernoulli_noise(h, n, block_m, block_n, columns, BM: tl.constexpr, BN: tl.constexpr):
    """1 with probability h, else 0."""
    bits = bits32(n.seed, n.noise_stream, block_m, block_n, columns, BM, BN)
    return tl.where(_uniform(bits).to(tl.float32) * (2.0**-24) < h, 1.0, 0.0)


@triton.jit
def masking(x, c, block_m, block_n, M, N, BM: tl.constexpr, BN: tl.constexpr):
    return tl.where(mask_hits(c, block_m, block_n, N, BM, BN), 0.0, x)


@triton.jit
def gaussian(x, c, block_m, block_n, M, N, BM: tl.constexpr, BN: tl.constexpr):
    return x + c.std * standard_normal(c.seed, c.stream, block_m, block_n, N, BM, BN)


@triton.jit
def salt_and_pepper(x, c, block_m, block_n, M, N, BM: tl.constexpr, BN: tl.constexpr):
    bits = mask_bits(c, block_m, block_n, N, BM, BN)
    extreme = tl.where(bits > c.salt, c.high, c.low)
    return tl.where(bits <= c.threshold, extreme, x)


@triton.jit
def swap_source(bits, hits, M):
    """The row each entry is swapped for: given a hit the draw is uniform, and its place picks the row.

    Only of use for hits, whose draws are below ``hits``.
    """
    draw = bits.to(tl.int64) + 2147483648
    return draw * M // hits


@triton.jit
def swap(x, c, block_m, block_n, M, N, BM: tl.constexpr, BN: tl.constexpr):
    row, col = tile_indices(block_m, block_n, BM, BN)
    bits = mask_bits(c, block_m, block_n, N, BM, BN)
    hit = bits <= c.threshold
    source = swap_source(bits, c.hits, M)
    other = tl.load(
        c.source + source * c.stride_m + (tl.cast(col, tl.int64) * c.stride_n)[None, :],
        mask=hit & inside(row, col, M, N),
        other=0.0,
    )
    return tl.where(hit, other.to(tl.float32), x)


CORRUPTIONS: dict[str, Any] = {
    "masking": masking,
    "gaussian": gaussian,
    "salt_and_pepper": salt_and_pepper,
    "swap": swap,
}
CODE_NOISES: dict[str, Any] = {"gaussian": gaussian_noise, "bernoulli": bernoulli_noise}
