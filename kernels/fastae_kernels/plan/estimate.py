"""Estimated times of fused and split plans, from what is counted: tiles, steps, instructions and bytes.

A multiprocessor's loop over K takes the longer of its matrix instructions and of its operands' way from the
second-level cache. An epilogue takes its instructions' issue slots, exposed unless another program's loop
runs beside it. A library's product has the same loop, with the tiles and the split of K that suit it best;
the pass after it takes the longer of its bytes and its instructions.

Nothing here was measured on a GPU. Instructions per entry are counts of sm_90's machine code; ``LEAD``,
``EXPOSED``, ``CACHE`` and ``LAUNCH`` are assumptions, to be settled by ``fastae tune`` and a benchmark.
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

LEAD = 0.05
"""The share by which a library's loop is taken to be faster than Triton's; published comparisons on Hopper
lie between -2 and 8 %."""
EXPOSED = 1.5
"""An epilogue's time over its issue slots: its loads wait behind barriers."""
CACHE = 48.0
"""Bytes per clock that a multiprocessor gets from the second-level cache."""
LAUNCH = 2e-6
"""Seconds between two kernels of a graph."""
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


def _loop(M: int, N: int, K: int, e: int, target: Target, BM: int, BN: int, BK: int) -> tuple[int, float]:
    """The tiles of a multiprocessor, and the seconds of one's loop."""
    own = card(target)
    matrix = 2.0 * BM * BN * BK * target.multiprocessors / (own.matrix32 if e == 4 else own.matrix)
    loads = (BM + BN) * BK * e / (CACHE * own.clock)
    tiles = math.ceil(M / BM) * math.ceil(N / BN)
    return math.ceil(tiles / target.multiprocessors), math.ceil(K / BK) * max(matrix, loads)


def _counts(key: Key) -> tuple[float, float, int, int]:
    """Instructions fused and in a pass, [M, N] matrices moved, and products."""
    name, _, dual = key.operator.partition(" ")
    return *INSTRUCTIONS.get(name, INSTRUCTIONS["encode"]), _MATRICES.get(name, 1), 2 if dual else 1


def fused(key: Key, dtype: torch.dtype, target: Target, gemm: GemmConfig) -> Estimate:
    """One kernel: with several programs per multiprocessor, all epilogues but the last hide behind loops."""
    (M, N, K), e, own = key[-3:], dtype.itemsize, card(target)
    instructions, _, matrices, products = _counts(key)
    tiles, loop = _loop(M, N, K, e, target, gemm.block_m, gemm.block_n, gemm.block_k)
    loop *= products
    epilogue = EXPOSED * gemm.block_m * gemm.block_n * instructions / (_LANES * own.clock)
    if gemm.programs > 1:
        compute = max(tiles * loop + epilogue, loop + tiles * epilogue)
    else:
        compute = tiles * (loop + epilogue)
    moved = e * (products * (M * K + K * N) + matrices * M * N) / own.memory
    seconds = max(compute, moved)
    return Estimate(tiles * loop, seconds - tiles * loop, seconds + LAUNCH)


def split(key: Key, dtype: torch.dtype, target: Target) -> Estimate:
    """The library's product and a pass over it; of two products the pass reads both."""
    (M, N, K), e, own = key[-3:], dtype.itemsize, card(target)
    _, instructions, matrices, products = _counts(key)
    library = math.inf
    for (BM, BN), parts in itertools.product(((128, 256), (128, 128), (64, 128), (64, 64)), (1, 2, 4, 8)):
        tiles, loop = _loop(M * parts, N, math.ceil(K / parts), e, target, BM, BN, 128 // e)
        sums = 8.0 * parts * M * N / own.memory if parts > 1 else 0.0  # written and read in float32
        library = min(library, tiles * loop / (1.0 + LEAD) + sums)
    moved = e * (M * K + K * N + M * N) / own.memory
    library = products * max(library, moved) + (products - 1) * e * M * N / own.memory
    bytes_ = e * M * N * (matrices + 1 if matrices > 1 else 2) / own.memory
    slots = instructions * M * N / (_LANES * own.clock * target.multiprocessors)
    rest = max(bytes_, slots)
    return Estimate(library, rest, library + rest + (1 + products) * LAUNCH)
