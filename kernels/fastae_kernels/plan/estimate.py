"""Estimated times of fused and split plans, from what is counted: tiles, steps, instructions and bytes.

A multiprocessor's loop over K takes the longer of its matrix instructions and of its operands' way from the
second-level cache. An epilogue takes its instructions' issue slots, several times over, and a wait for each
part it works on. A library's product has the same loop, with the tiles and the split of K that suit it best;
the pass after it takes its bytes and its instructions.

The constants are fitted to 208 fused products, 16 of the library and 112 passes on an H200 (torch 2.11,
Triton 3.6, bfloat16; M, D, H of 8192, 4096, 16384; 8192, 784, 1000; 1024, 784, 2000 and 256, 784, 1000;
``benchmarks/results``): fused products to within 7 % (root mean square), the library's to 4 %. Those of
epilogues with warps of their own fit 65 products to within 12 %, measured before a second crew had parts of
its own and all warps ended a program's last tile. On other cards nothing was measured.
Instructions per entry are counts of sm_90's machine code.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch

from ..launch import Target
from .choices import Key
from .schedules import GemmConfig


class Card(NamedTuple):
    """Peaks by the vendor's data sheet."""

    memory: float  # bytes per second
    matrix: float  # operations per second in 16 bits
    matrix32: float  # and in float32: tf32 where it exists
    clock: float  # Hz


CARDS = {
    "H200": Card(4.8e12, 989e12, 495e12, 1.83e9),
    "H100": Card(3.35e12, 989e12, 495e12, 1.83e9),
    "B200": Card(8.0e12, 2250e12, 1125e12, 1.85e9),
    "A100": Card(2.04e12, 312e12, 156e12, 1.41e9),
    "MI300X": Card(5.3e12, 1307e12, 163e12, 2.1e9),
}
_DEFAULTS = {"sm80": "A100", "sm90": "H100", "sm100": "B200", "gfx942": "MI300X", "interpreter": "A100"}

SUSTAINED, COPIED = 0.81, 0.89
"""Shares of the data sheet's rates that a long loop of products reaches, under which the card slows down, and
a large copy."""
CACHE, SHARED_CACHE = 44.5, 68.0
"""Bytes per clock that a multiprocessor gets from the second-level cache, and one of a library's clusters,
which share what they load."""
START, LIBRARY_START, PASS_START = 6.3e-6, 3.8e-6, 3.8e-6
"""Seconds of a call outside of its loops: launch, first loads, folds of its sums."""
FILL, LIBRARY_FILL = 1.5e-6, 2.7e-6
"""Seconds until a tile's loop runs."""
EXPOSED = 3.5
"""An epilogue's time over its issue slots: two warps per scheduler hide little of its latencies."""
PART = 0.42e-6
"""Seconds that each part of an epilogue waits behind its barriers."""
ALONE, PART_ALONE = 4.5, 0.6e-6
"""The same of an epilogue by a crew of four warps of its own."""
HANDED_OVER = 3.0e-6
"""Seconds that a loop loses when it leaves a tile to them."""
TOGETHER = 1.34
"""What two programs of a multiprocessor spend outside of their loops, over what one does."""
_LANES = 128  # instructions of threads per clock and multiprocessor

INSTRUCTIONS = {
    "encode": (16.5, 21.9),
    "decode_loss": (36.8, 38.1),
    "code_grad": (22.3, 25.1),
    "weight_grad": (6.9, 16.4),
}
"""Instructions per entry of an operator's epilogue in a product and in a pass, by
``python -m fastae_kernels.aot --table``: bfloat16, sigmoid with the contractive penalty, cross-entropy, tied
weights; tiles of 128 x 128 with 4 warps, the large passes. Other operators count as the encoder."""
_LIBRARY_TILES = ((128, 256), (128, 128), (64, 128), (64, 64), (64, 32))
_MATRICES = {"encode": 1, "decode_loss": 2, "code_grad": 2, "weight_grad": 2}  # [M, N] that an epilogue moves


class Estimate(NamedTuple):
    """Seconds of a call: the product's loop, the epilogue's or pass's share, and both with their launches."""

    loop: float
    rest: float
    seconds: float


def card(target: Target) -> Card:
    """The card of a device's name, else the usual one of its family."""
    name = next((name for name in CARDS if name in target.device), _DEFAULTS[target.family])
    return CARDS[name]


def _step(BM: int, BN: int, BK: int, e: int, target: Target, cache: float) -> float:
    """Seconds of a step of a tile's loop."""
    own = card(target)
    rate = SUSTAINED * (own.matrix32 if e == 4 else own.matrix) / target.multiprocessors
    return max(2.0 * BM * BN * BK / rate, (BM + BN) * BK * e / (cache * own.clock))


def _counts(key: Key) -> tuple[float, float, int, int]:
    """Instructions fused and in a pass, [M, N] matrices moved, and products."""
    name, _, dual = key.operator.partition(" ")
    return *INSTRUCTIONS.get(name, INSTRUCTIONS["encode"]), _MATRICES.get(name, 1), 2 if dual else 1


def fused(key: Key, dtype: torch.dtype, target: Target, gemm: GemmConfig) -> Estimate:
    """One kernel. Two programs per multiprocessor hide part of an epilogue behind the other one's loop.

    Warps of their own hide all epilogues but the last, as far as these take no longer than a loop.
    """
    (M, N, K), e, own = key[-3:], dtype.itemsize, card(target)
    instructions, _, matrices, products = _counts(key)
    BM, BN, BK = gemm.block_m, gemm.block_n, gemm.block_k
    loop = products * math.ceil(K / BK) * _step(BM, BN, BK, e, target, CACHE)
    slots = BM * BN * instructions / (_LANES * own.clock)
    tiles = math.ceil(math.ceil(M / BM) * math.ceil(N / BN) / target.multiprocessors)
    if gemm.epilogue_warps:
        rest = ALONE * slots + PART_ALONE * gemm.subtiles
        own_loop = loop + HANDED_OVER
        compute = FILL + own_loop + (tiles - 1) * max(own_loop, rest) + rest
    else:
        rest = FILL + EXPOSED * slots + PART * gemm.subtiles
        together = loop + rest
        if gemm.programs > 1:
            together = max(gemm.programs * loop + TOGETHER * rest, together)
        rounds, last = divmod(tiles, gemm.programs)
        compute = rounds * together + (last > 0) * max(last * loop, loop + rest)
    moved = e * (products * (M * K + K * N) + matrices * M * N) / (COPIED * own.memory)
    seconds = max(compute, moved)
    return Estimate(tiles * loop, seconds - tiles * loop, seconds + START)


def split(key: Key, dtype: torch.dtype, target: Target) -> Estimate:
    """The library's product and a pass over it; of two products the pass reads both."""
    (M, N, K), e, own = key[-3:], dtype.itemsize, card(target)
    _, instructions, matrices, products = _counts(key)
    library, BK, memory = math.inf, 128 // e, COPIED * own.memory
    for (BM, BN), parts in itertools.product(_LIBRARY_TILES, (1, 2, 4, 8)):
        tiles = math.ceil(parts * math.ceil(M / BM) * math.ceil(N / BN) / target.multiprocessors)
        loop = math.ceil(K / parts / BK) * _step(BM, BN, BK, e, target, SHARED_CACHE)
        sums = 8.0 * parts * M * N / memory if parts > 1 else 0.0  # written and read in float32
        library = min(library, tiles * (loop + LIBRARY_FILL) + sums)
    moved = e * (M * K + K * N + M * N) / memory
    library = products * max(library, moved)
    bytes_ = e * M * N * (matrices + products if matrices > 1 else 2) / memory
    slots = instructions * M * N / (_LANES * own.clock * target.multiprocessors)
    rest = math.hypot(bytes_, slots)
    return Estimate(library, rest, library + rest + LIBRARY_START + PASS_START)
