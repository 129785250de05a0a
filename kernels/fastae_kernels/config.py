"""Which strategy, tiles and schedule an operator runs with: measured by nobody's first training step.

:func:`plan` is the one place that decides. Its defaults come from the shape and the target alone, without
warm-up. :func:`using` overrides it, for tests, benchmarks and tuning.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from .launch import Target

Strategy = Literal["fused", "split"]


@dataclass(frozen=True)
class GemmConfig:
    """Tile shape and schedule of one matrix product."""

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int
    subtiles: int = 1  # the epilogue works on this many parts of a tile, one after another
    heavy_subtiles: int = 0  # and one with many operands on this many; 0 where registers do not suffice
    group: int = 8  # tiles of rows that are visited together
    tma: bool = False
    persistent: bool = False
    efficiency: float = 1.0  # of the tile shape, relative to the target's best

    @property
    def epilogue_tile(self) -> tuple[int, int]:
        return self.block_m, self.block_n // self.subtiles


@dataclass(frozen=True)
class PassConfig:
    """Tile shape of one elementwise pass."""

    block_m: int = 32
    block_n: int = 64
    warps: int = 4


@dataclass(frozen=True)
class Plan:
    """How one call runs: a product with an epilogue, or the library's product and a pass over it."""

    strategy: Strategy
    gemm: GemmConfig
    elementwise: PassConfig

    @property
    def epilogue_tile(self) -> tuple[int, int]:
        if self.strategy == "fused":
            return self.gemm.epilogue_tile
        return self.elementwise.block_m, self.elementwise.block_n


def _gemm(m: int, n: int, k: int, warps: int, stages: int, efficiency: float, **options: Any) -> GemmConfig:
    if m * n // (32 * warps) <= 64:  # accumulators a thread
        options.setdefault("heavy_subtiles", 2 * options.get("subtiles", 1))
    return GemmConfig(m, n, k, warps, stages, efficiency=efficiency, **options)


# By target and bytes an element. None of them spills (``python -m fastae_kernels.aot``), which is what the
# subtiles are for. The efficiencies are those of a tile's arithmetic intensity, m n / (m + n) relative to the
# first; they are not measured yet.
_TMA: dict[str, Any] = {"tma": True}
_PERSISTENT: dict[str, Any] = {"tma": True, "persistent": True}
GEMM_CONFIGS: dict[str, dict[int, tuple[GemmConfig, ...]]] = {
    "sm80": {
        2: (
            _gemm(128, 128, 32, 8, 4, 1.0, subtiles=4),
            _gemm(64, 128, 32, 4, 3, 0.67, subtiles=4),
            _gemm(64, 64, 32, 4, 5, 0.5, subtiles=2),
        ),
        4: (
            _gemm(128, 128, 32, 8, 3, 1.0, subtiles=4),
            _gemm(64, 64, 32, 4, 4, 0.5, subtiles=2),
        ),
    },
    "sm90": {
        2: (
            _gemm(128, 256, 64, 8, 3, 1.0, subtiles=8, **_PERSISTENT),
            _gemm(128, 128, 64, 8, 4, 0.75, subtiles=4, **_PERSISTENT),
            _gemm(64, 128, 64, 4, 4, 0.5, subtiles=4, **_TMA),
            _gemm(64, 64, 64, 4, 5, 0.38, subtiles=2, **_TMA),
        ),
        4: (
            _gemm(128, 128, 32, 8, 4, 1.0, subtiles=4, **_PERSISTENT),
            _gemm(64, 64, 32, 4, 5, 0.5, subtiles=2, **_TMA),
        ),
    },
    "sm100": {  # accumulators lie in tensor memory; its instruction wants 128 rows
        2: (
            _gemm(128, 256, 64, 8, 3, 1.0, subtiles=4, **_PERSISTENT),
            _gemm(128, 128, 64, 8, 4, 0.75, subtiles=4, heavy_subtiles=4, **_PERSISTENT),
            _gemm(128, 64, 64, 4, 4, 0.5, subtiles=4, heavy_subtiles=4, **_TMA),
        ),
        4: (_gemm(128, 64, 32, 4, 5, 1.0, subtiles=2, **_PERSISTENT),),
    },
    "gfx942": {
        2: (
            _gemm(128, 128, 64, 8, 2, 1.0, subtiles=4),
            _gemm(64, 64, 64, 4, 2, 0.5, subtiles=2),
        ),
        4: (
            _gemm(128, 128, 32, 8, 2, 1.0, subtiles=4),
            _gemm(64, 64, 32, 4, 2, 0.5, subtiles=2),
        ),
    },
    "interpreter": {2: (_gemm(64, 64, 64, 4, 1, 1.0),), 4: (_gemm(64, 64, 64, 4, 1, 1.0),)},
}

_DEEP = 8192
"""Products of more terms a result than this go to the library. The pass that fusion saves reads and writes
the result once: on an H200 about 360 / K of a 16-bit product's time (4 bytes at 4.3 TB/s, 2 K operations at
780 TFLOP/s), and beyond this K less than a few percent by which a library's product may be faster."""


def family(target: Target) -> str:
    """The row of the table for a target."""
    if target.backend == "interpreter":
        return "interpreter"
    if target.backend == "hip":
        return "gfx942"
    arch = int(target.arch)
    return "sm100" if 100 <= arch < 120 else "sm90" if 90 <= arch < 100 else "sm80"


def configurations(
    target: Target, dtype: torch.dtype, *, heavy: bool = False, aligned: bool = True
) -> tuple[GemmConfig, ...]:
    """The default configurations for a target.

    A ``heavy`` epilogue has many operands: it works on smaller parts, and not on the largest tiles. Operands
    that are not ``aligned`` have no descriptors, and tiles made for those would spill.
    """
    configs = GEMM_CONFIGS[family(target)][dtype.itemsize]
    if not aligned and any(config.tma for config in configs):
        configs = GEMM_CONFIGS["sm80"][dtype.itemsize]
    if heavy:
        configs = tuple(replace(c, subtiles=c.heavy_subtiles) for c in configs if c.heavy_subtiles)
    return configs


def precision(dtype: torch.dtype, target: Target) -> str:
    """How float32 operands are multiplied: as ``torch.get_float32_matmul_precision`` says."""
    tf32 = torch.backends.cuda.matmul.fp32_precision == "tf32"  # the older setting shows here, too
    return "tf32" if dtype == torch.float32 and tf32 and target.backend == "cuda" else "ieee"


def _smallest_cost(configs: tuple[GemmConfig, ...], M: int, N: int, multiprocessors: int) -> GemmConfig:
    """The configuration whose waves of tiles take the least time, by area over efficiency."""

    def cost(config: GemmConfig) -> float:
        tiles = -(-M // config.block_m) * -(-N // config.block_n)
        waves = -(-tiles // multiprocessors)
        return waves * config.block_m * config.block_n / config.efficiency

    return min(configs, key=cost)


@dataclass(frozen=True)
class _Override:
    strategy: Strategy | None = None
    gemm: GemmConfig | None = None
    elementwise: PassConfig | None = None


_override = _Override()


@contextmanager
def using(
    *,
    strategy: Strategy | None = None,
    gemm: GemmConfig | None = None,
    elementwise: PassConfig | None = None,
) -> Iterator[None]:
    """Every plan made inside takes what is given here; for the whole process, backward threads included."""
    global _override
    before = _override
    given = {"strategy": strategy, "gemm": gemm, "elementwise": elementwise}
    _override = replace(before, **{name: value for name, value in given.items() if value is not None})
    try:
        yield
    finally:
        _override = before


def plan(
    M: int,
    N: int,
    K: int,
    dtype: torch.dtype,
    target: Target,
    *,
    heavy: bool = False,
    aligned: bool = True,
    k_major: bool = True,
) -> Plan:
    """How a product [M, K] [K, N] and its epilogue run on ``target``.

    The library's product and one pass (*split*) where fusion is not expected to win: deep products
    (``_DEEP``); rows that do not start at multiples of 16 bytes (not ``aligned``), which loads by descriptors
    and wide asynchronous copies need; float32 in full precision on CUDA, which Triton computes without matrix
    units, and in tf32 where an operand is not contiguous along K (``k_major``), which wgmma needs. Else one
    kernel (*fused*), with the tiles of the least estimated time. ``heavy`` as in :func:`configurations`.
    """
    strategy: Strategy = "fused"
    if K > _DEEP:
        strategy = "split"
    elif target.backend != "interpreter":
        full = target.backend == "cuda" and precision(dtype, target) == "ieee"
        if not aligned or (dtype == torch.float32 and (full or not k_major)):
            strategy = "split"
    configs = configurations(target, dtype, heavy=heavy, aligned=aligned)
    return Plan(
        _override.strategy or strategy,
        _override.gemm or _smallest_cost(configs, M, N, target.multiprocessors),
        _override.elementwise or PassConfig(),
    )
