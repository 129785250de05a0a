"""Counter-based random bits: a pure function of (seed, stream, row, column).

The generator is Philox4x64-10 (Salmon et al. 2011), the one that NumPy ships in C: one counter gives
256 bits, or k = 256 / width draws of ``width`` bits. Row r of a matrix with D columns owns the counters
``r * ceil(D / k) + 0, 1, ...``; the draw of column c is the (c mod k)-th part of counter
``r * ceil(D / k) + c // k``, least significant part of each 64-bit word first. Any part of any matrix can
therefore be recomputed anywhere, on any device and in any tile shape, and comes out the same bit for bit.

Masks take 16 bits an entry, which makes them twice as fast and their probability exact to 2**-17; what needs
more than an event takes 32.

The key is (seed, stream): the streams keep the different draws of one step apart.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .share import current_share
from .threads import submit

STREAM_CORRUPTION = 0
STREAM_DROPOUT = 1
STREAM_CODE_NOISE = 2
STREAM_CONTRACTION = 16  # + k for the k-th noisy copy of the higher-order contraction
STREAM_PROBE = 4096  # + k for the k-th probe of the deep penalty
MOST_DRAWS = STREAM_PROBE - STREAM_CONTRACTION  # noisy copies, or probes, per step

MASK_WIDTH = 16
COLUMN_STEP = 16  # columns per counter at the least width of a draw, and a multiple of those at others

_RANK_STEP = 0x9E3779B97F4A7C15  # odd, so that no two ranks share it modulo a power of two

_COUNTER_BITS = 256
_DTYPES = {16: (np.int16, torch.int16), 32: (np.int32, torch.int32)}
_BLOCK = 1 << 18  # entries a block: its bits and temporaries stay in a core's cache


class Place(NamedTuple):
    """A seed, and the place of the matrix that is drawn in a larger one.

    Attributes:
        seed: the key of the draws.
        row: first row.
        column: first column, a multiple of :data:`COLUMN_STEP`.
        columns: columns of the larger matrix; 0 for those of the matrix itself.
    """

    seed: int
    row: int = 0
    column: int = 0
    columns: int = 0


class _Ahead:
    """Seeds of the next draws, which one kernel draws together."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._seeds: Iterator[Tensor] = iter(())

    def take(self, device: torch.device) -> Tensor:
        seed = next(self._seeds, None)
        if seed is None:  # at the first draw, and where more are needed than were expected
            pairs = _draw(device, self._count, 2)  # each seed at a multiple of 16 bytes, as kernels like it
            self._seeds = iter(pairs[:, :1].unbind())
            seed = next(self._seeds)
        return seed


_ahead: _Ahead | None = None


@contextmanager
def drawing_ahead(count: int) -> Iterator[None]:
    """Draw the seeds of ``count`` calls of :func:`draw_seed` together, those without a generator.

    They are others than single draws would give.
    """
    global _ahead
    before, _ahead = _ahead, _Ahead(count)
    try:
        yield
    finally:
        _ahead = before


def _draw(device: torch.device, *size: int, generator: torch.Generator | None = None) -> Tensor:
    return torch.randint(0, 2**63 - 1, size, dtype=torch.int64, device=device, generator=generator)


def draw_seed(
    device: torch.device, generator: torch.Generator | None = None, rank: int | None = None
) -> Tensor:
    """A seed [1] (int64) from torch's generator, on ``device`` without a host synchronisation.

    Processes of one ``torch.distributed`` group get seeds of their own from equal generators, by their rank
    or ``rank``; what is compiled by torch.compile should be so after the group is made. Where they share a
    batch, all get the same one, and with it the place of their first row: a :class:`Place`, uint64 [4].
    """
    if torch.compiler.is_compiling() or _ahead is None or generator is not None:
        seed = _draw(device, 1, generator=generator)
    else:
        seed = _ahead.take(device)
    share = current_share()
    if share is not None:
        return _placed(seed, share.first, 0, 0)
    if rank is None:
        rank = torch.distributed.get_rank() if _in_group() else 0
    return seed.bitwise_xor_(rank * _RANK_STEP % 2**63) if rank else seed


def seed_of_columns(seed: Tensor, first: int, columns: int) -> Tensor:
    """A seed for the columns from ``first`` on of a matrix with ``columns``; ``seed`` is one of the whole."""
    numbers = seed.view(torch.int64)
    row = 0 if len(numbers) == 1 else numbers[1:2]
    return _placed(numbers[:1], row, first, columns)


def _placed(seed: Tensor, row: int | Tensor, column: int, columns: int) -> Tensor:
    place = seed.new_empty(4)
    for index, value in enumerate((seed, row, column, columns)):
        place[index : index + 1] = value
    return place.view(torch.uint64)


def place_of(seed: Tensor) -> Place:
    """The numbers in a seed."""
    return Place(*seed.reshape(-1).tolist())


def _in_group() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def random_bits(
    seed: int, rows: int, columns: int, stream: int, first_row: int = 0, *, width: int = 32
) -> Tensor:
    """Random bits [rows, columns] as int32 or int16, every pattern equally likely, on the CPU.

    ``first_row`` shifts the rows: rows 3, 4, ... of a matrix equal those drawn with ``first_row=3``.
    """
    numpy_dtype, torch_dtype = _DTYPES[width]
    draws = _COUNTER_BITS // width
    per_row = -(-columns // draws)
    if rows * per_row == 0:
        return torch.empty(rows, columns, dtype=torch_dtype)
    first = first_row * per_row
    # NumPy advances the 256-bit counter before it is used, so start one below, with the borrow
    counter = np.array([first - 1, 0, 0, 0] if first else [2**64 - 1] * 4, dtype=np.uint64)
    key = np.array([seed, stream], dtype=np.uint64)
    words = np.random.Philox(key=key, counter=counter).random_raw(4 * rows * per_row)
    return torch.from_numpy(words.view(numpy_dtype)).view(rows, per_row * draws)[:, :columns]


def row_blocks(rows: int, columns: int, elements: int = _BLOCK) -> Iterator[slice]:
    """Slices over the rows, each of about ``elements`` entries, to keep a block's temporaries in cache."""
    step = max(1, elements // max(1, columns))
    for low in range(0, rows, step):
        yield slice(low, min(low + step, rows))


@lru_cache(maxsize=1)
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="fastae-philox")


if hasattr(os, "register_at_fork"):  # a forked child (a DataLoader's worker, say) has none of the threads
    os.register_at_fork(after_in_child=_pool.cache_clear)


def bit_blocks(
    seed: int, rows: int, columns: int, stream: int, first_row: int = 0, *, width: int = 32
) -> Iterator[tuple[slice, Tensor]]:
    """The bits of :func:`random_bits` in blocks of rows; torch's number of threads draws blocks ahead."""

    def draw(block: slice) -> Tensor:
        first = first_row + block.start
        return random_bits(seed, block.stop - block.start, columns, stream, first, width=width)

    blocks = deque(row_blocks(rows, columns))
    workers = min(torch.get_num_threads(), len(blocks))
    if workers < 2:
        for block in blocks:
            yield block, draw(block)
        return
    pool = _pool(torch.get_num_threads())
    ahead: deque[tuple[slice, Future[Tensor]]] = deque()
    while blocks or ahead:
        while blocks and len(ahead) <= workers:
            block = blocks.popleft()
            ahead.append((block, submit(pool, draw, block)))
        block, job = ahead.popleft()
        yield block, job.result()


def hit_count(p: float, width: int = MASK_WIDTH) -> int:
    """Number of the 2**width draws that are hits of an event of probability ``p > 0``; all only for p = 1."""
    return min(max(round(p * 2**width), 1), 2**width - (p < 1.0))


def threshold(p: float, width: int = MASK_WIDTH) -> int:
    """The draws ``bits <= threshold(p)`` are the hits of an event of probability ``p > 0``."""
    return hit_count(p, width) - 1 - 2 ** (width - 1)


def keep_scale(p: float) -> float:
    """Scale of the kept entries when each entry is dropped with probability ``p``."""
    return 2**MASK_WIDTH / (2**MASK_WIDTH - hit_count(p))


def uniform(bits: Tensor) -> Tensor:
    """Uniform draws in [0, 1) in float32, whole multiples of 2**-24, from the upper 24 of 32 ``bits``."""
    return bits.bitwise_right_shift(8).bitwise_and_(0xFFFFFF).to(torch.float32).mul_(2.0**-24)


def standard_normal(bits: Tensor) -> Tensor:
    """Standard normal draws in float32 from ``bits`` [rows, 2k], by Box and Muller's transform.

    Columns 2k and 2k+1 share a pair of uniforms of 24 bits, so every |draw| is below 5.8.
    """
    draws = uniform(bits)
    radius = draws[:, 0::2].add(2.0**-24).log_().mul_(-2.0).sqrt_()
    angle = draws[:, 1::2].mul(2.0 * math.pi)
    return torch.stack((radius * angle.cos(), radius * angle.sin()), dim=-1).flatten(-2)
