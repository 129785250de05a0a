"""The strategy, tiles and schedule of an operator's call, without warm-up.

:func:`plan` is the one place that decides. Choices that were measured before win (:mod:`.choices`); else the
shape and the target alone decide. :func:`using` overrides both, for tests, benchmarks and tuning.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from ..launch import Target
from . import choices
from .roofline import Cost, product
from .schedules import GemmConfig, PassConfig, Plan, Strategy


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


class Peaks(NamedTuple):
    """Bytes and operations a second, as vendors print them: what matters here is their ratio."""

    memory: float
    matrix: float


PEAKS: dict[str, dict[int, Peaks]] = {  # by family and bytes an element; tf32 for four, where it exists
    "sm80": {2: Peaks(2.04e12, 312e12), 4: Peaks(2.04e12, 156e12)},  # A100
    "sm90": {2: Peaks(4.8e12, 989e12), 4: Peaks(4.8e12, 495e12)},  # H200
    "sm100": {2: Peaks(8.0e12, 2250e12), 4: Peaks(8.0e12, 1125e12)},  # B200
    "gfx942": {2: Peaks(5.3e12, 1307e12), 4: Peaks(5.3e12, 163e12)},  # MI300X
}

_LIBRARY_LEAD = 0.05
"""By which share a library's product is taken to be faster than Triton's of the same shape. An assumption:
published comparisons on Hopper lie between -2 and 8 %."""


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
    if dtype != torch.float32 or target.backend != "cuda":
        return "ieee"
    # the older setting shows here, too
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def _smallest_cost(configs: tuple[GemmConfig, ...], M: int, N: int, multiprocessors: int) -> GemmConfig:
    """The configuration whose waves of tiles take the least time, by area over efficiency."""

    def cost(config: GemmConfig) -> float:
        tiles = -(-M // config.block_m) * -(-N // config.block_n)
        waves = -(-tiles // multiprocessors)
        return waves * config.block_m * config.block_n / config.efficiency

    return min(configs, key=cost)


class _Override(NamedTuple):
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
    _override = before._replace(**{name: value for name, value in given.items() if value is not None})
    try:
        yield
    finally:
        _override = before


def _fusion_pays(M: int, N: int, K: int, dtype: torch.dtype, target: Target) -> bool:
    """Whether the pass that fusion saves, which reads and writes the result, is worth a library's lead.

    Both are counted by the roofline; bias, targets, partial sums cost either strategy the same. For large M
    and N the pass is a share of itemsize matrix / (memory K) of the product's time: on an H200 it is less
    than the lead from K = 8242 on.
    """
    peaks = PEAKS[family(target)][dtype.itemsize]
    saved = Cost(2 * M * N * dtype.itemsize).seconds(*peaks)
    return saved >= _LIBRARY_LEAD * product(M, N, K, dtype.itemsize).seconds(*peaks)


def _strategy(key: choices.Key, dtype: torch.dtype, target: Target) -> Strategy:
    """The heuristic's strategy, see :func:`plan`."""
    if not key.K:
        return "split"
    if target.backend == "interpreter":
        return "fused"
    full = target.backend == "cuda" and key.precision == "ieee"
    if not key.aligned or (dtype == torch.float32 and (full or not key.k_major)):
        return "split"
    return "fused" if _fusion_pays(key.M, key.N, key.K, dtype, target) else "split"


def heuristic(key: choices.Key, dtype: torch.dtype, target: Target) -> Plan:
    """The plan where nothing was measured and nothing is overridden."""
    configs = configurations(target, dtype, heavy=key.heavy, aligned=key.aligned)
    gemm = _smallest_cost(configs, key.M, key.N, target.multiprocessors)
    return Plan(_strategy(key, dtype, target), gemm, PassConfig(), key.aligned)


@functools.lru_cache(maxsize=4096)
def _decide(
    M: int,
    N: int,
    K: int,
    dtype: torch.dtype,
    target: Target,
    operator: str,
    heavy: bool,
    aligned: bool,
    k_major: bool,
    precision: str,
    override: _Override,
) -> Plan:
    name = str(dtype).removeprefix("torch.")
    key = choices.Key(operator, name, precision, heavy, aligned, k_major, M, N, K)
    measured = choices.lookup(target.device, key) or choices.Choice()
    default = heuristic(key, dtype, target)
    return Plan(
        (override.strategy or measured.strategy or default.strategy) if K else "split",
        override.gemm or measured.gemm or default.gemm,
        override.elementwise or measured.elementwise or default.elementwise,
        aligned,
    )


def plan(
    M: int,
    N: int,
    K: int,
    dtype: torch.dtype,
    target: Target,
    *,
    operator: str = "",
    heavy: bool = False,
    aligned: bool = True,
    k_major: bool = True,
) -> Plan:
    """How ``operator``, a product [M, K] [K, N] and its epilogue, runs on ``target``; K = 0 for a pass alone.

    What was measured for it on this device, if anything was. Else the library's product and one pass
    (*split*) where fusion is not expected to win: products so deep that a library's lead is worth more than
    the saved pass (``_fusion_pays``, an estimate); rows that do not start at multiples of 16 bytes (not
    ``aligned``), which loads by descriptors and wide asynchronous copies need; float32 in full precision on
    CUDA, which Triton computes without matrix units, and in tf32 where an operand is not contiguous along K
    (``k_major``), which wgmma needs. Else one kernel (*fused*), with the tiles of the least estimated time.
    ``heavy`` as in :func:`configurations`. Answers are kept: a call that was planned before costs a lookup.
    """
    products = precision(dtype, target)
    return _decide(M, N, K, dtype, target, operator, heavy, aligned, k_major, products, _override)


def forget_choices() -> None:
    """Lets plans see tables that changed, and another ``FASTAE_CACHE``."""
    choices.table.cache_clear()
    _decide.cache_clear()
