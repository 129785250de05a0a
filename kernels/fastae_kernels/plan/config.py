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
from . import choices, estimate
from .schedules import GemmConfig, PassConfig, Plan, Strategy


def _gemm(m: int, n: int, k: int, warps: int, stages: int, **options: Any) -> GemmConfig:
    if m * n // (32 * warps) <= 64:  # accumulators per thread
        options.setdefault("heavy_subtiles", 2 * options.get("subtiles", 1))
    return GemmConfig(m, n, k, warps, stages, **options)


# By target and bytes per element. None of them spills (``python -m fastae_kernels.aot``), which is what the
# subtiles are for.
_TMA: dict[str, Any] = {"tma": True, "group": 16}  # a wave of 132 tiles then reads a fifth less than with 8
_PERSISTENT: dict[str, Any] = {**_TMA, "persistent": True}
GEMM_CONFIGS: dict[str, dict[int, tuple[GemmConfig, ...]]] = {
    "sm80": {
        2: (
            _gemm(128, 128, 32, 8, 4, subtiles=4),
            _gemm(64, 128, 32, 4, 3, subtiles=4),
            _gemm(64, 64, 32, 4, 5, subtiles=2),
        ),
        4: (
            _gemm(128, 128, 32, 8, 3, subtiles=4),
            _gemm(64, 64, 32, 4, 4, subtiles=2),
        ),
    },
    "sm90": {
        2: (
            _gemm(128, 256, 64, 8, 3, subtiles=8, light_subtiles=2, **_PERSISTENT),
            _gemm(256, 128, 64, 8, 3, subtiles=8, light_subtiles=2, **_PERSISTENT),
            _gemm(128, 128, 64, 8, 4, subtiles=4, light_subtiles=2, **_PERSISTENT),
            _gemm(128, 128, 64, 4, 3, subtiles=8, light_subtiles=4, programs=2, **_PERSISTENT),
            _gemm(64, 128, 64, 4, 4, subtiles=4, light_subtiles=2, programs=2, **_TMA),
            _gemm(64, 64, 64, 4, 5, subtiles=2, programs=2, **_TMA),
            _gemm(64, 32, 128, 4, 4, subtiles=1, programs=2, **_TMA),
            GemmConfig(128, 256, 64, 8, 3, subtiles=8, heavy_subtiles=16, epilogue_warps=4, **_PERSISTENT),
            GemmConfig(128, 256, 64, 8, 3, subtiles=16, epilogue_warps=8, **_PERSISTENT),
            GemmConfig(128, 128, 64, 8, 5, subtiles=8, heavy_subtiles=8, epilogue_warps=8, **_PERSISTENT),
        ),
        4: (
            _gemm(128, 128, 32, 8, 4, subtiles=4, **_PERSISTENT),
            _gemm(64, 64, 32, 4, 5, subtiles=2, **_TMA),
        ),
    },
    "sm100": {  # accumulators lie in tensor memory; its instruction wants 128 rows
        2: (
            _gemm(128, 256, 64, 8, 3, subtiles=4, **_PERSISTENT),
            _gemm(128, 128, 64, 8, 4, subtiles=4, heavy_subtiles=4, **_PERSISTENT),
            _gemm(128, 64, 64, 4, 4, subtiles=4, heavy_subtiles=4, **_TMA),
        ),
        4: (_gemm(128, 64, 32, 4, 5, subtiles=2, **_PERSISTENT),),
    },
    "gfx942": {
        2: (
            _gemm(128, 128, 64, 8, 2, subtiles=4),
            _gemm(64, 64, 64, 4, 2, subtiles=2),
        ),
        4: (
            _gemm(128, 128, 32, 8, 2, subtiles=4),
            _gemm(64, 64, 32, 4, 2, subtiles=2),
        ),
    },
    "interpreter": {2: (_gemm(64, 64, 64, 4, 1),), 4: (_gemm(64, 64, 64, 4, 1),)},
}


_SELECTING: dict[str, tuple[GemmConfig, ...]] = {
    "sm90": (
        GemmConfig(128, 256, 32, 8, 4, subtiles=4, heavy_subtiles=8, epilogue_warps=4, **_PERSISTENT),
        GemmConfig(128, 128, 64, 4, 5, subtiles=4, heavy_subtiles=4, epilogue_warps=4, **_PERSISTENT),
    ),
}
"""A selection's in 16 bits, whose epilogue has warps of its own and finds a tile in float32."""
SHARED = {"sm80": 99, "sm90": 227, "sm100": 227, "gfx942": 64, "interpreter": 1 << 20}
"""KiB of shared memory that a program may have; sm80 stands for its smaller relatives, too."""


def fits(gemm: GemmConfig, dtype: torch.dtype, target: Target, *, exact: bool = False) -> bool:
    """True if a tile's operands, and what is handed over to an epilogue, fit shared memory."""
    return gemm.shared_bytes(dtype.itemsize, exact=exact) <= SHARED[target.family] << 10


def _selecting(gemm: GemmConfig) -> int:
    """The parts of a selection's epilogue."""
    return (2 if gemm.block_n >= 128 else 1) * (2 if gemm.block_m >= 32 * gemm.warps else 1)


_OVERLAPPING = ("", "encode", "decode_loss", "decode_loss_target_grad", "code_grad")
"""Operators of one product whose epilogue takes it rounded as well as a library's."""
SELECTIONS = ("top_entries", "append_passing")
"""Operators whose epilogue compares entries of a product, which in 16 bits would be equal too often."""


def configurations(
    target: Target, dtype: torch.dtype, *, operator: str = "", heavy: bool = False, aligned: bool = True
) -> tuple[GemmConfig, ...]:
    """The default configurations of an operator for a target.

    A ``heavy`` epilogue has many operands: it works on smaller parts, and not on the largest tiles. That of a
    weight's gradient has few, and works on larger parts behind fewer barriers. That of a selection works on
    parts whose keys find room in registers. Operands that are not ``aligned`` have no descriptors, and tiles
    made for those would spill. Warps of its own take an epilogue in bfloat16, whose range is that of float32.
    """
    configs = GEMM_CONFIGS[target.family][dtype.itemsize]
    if dtype != torch.bfloat16 or operator not in _OVERLAPPING:
        configs = tuple(c for c in configs if not c.epilogue_warps)
    if not aligned and any(config.tma for config in configs):
        configs = GEMM_CONFIGS["sm80"][dtype.itemsize]
    if heavy:
        return tuple(replace(c, subtiles=c.heavy_subtiles) for c in configs if c.heavy_subtiles)
    if operator in SELECTIONS:
        overlapping = _SELECTING.get(target.family, ()) if aligned and dtype.itemsize == 2 else ()
        if operator == "append_passing":  # has bounds of columns, too
            overlapping = tuple(replace(c, subtiles=c.heavy_subtiles) for c in overlapping)
        return *overlapping, *(replace(c, subtiles=_selecting(c)) for c in configs)
    if operator.startswith("weight_grad"):
        return tuple(replace(c, subtiles=c.light_subtiles or c.subtiles) for c in configs)
    if operator.startswith(("decode_loss", "code_grad")):
        configs = tuple(c for c in configs if c.heavy_subtiles or not c.epilogue_warps)
        return tuple(replace(c, subtiles=c.heavy_subtiles) if c.epilogue_warps else c for c in configs)
    return configs


def precision(dtype: torch.dtype, target: Target) -> str:
    """Precision of float32 products, from ``torch.get_float32_matmul_precision``."""
    if dtype != torch.float32 or target.backend != "cuda":
        return "ieee"
    # the older setting shows here, too
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


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


_SUMMING = ("encode", "decode_loss", "code_grad", "slope_difference_grad")
"""Operators whose passes end in sums over rows: one partial per tile and column."""


def _pass(key: choices.Key, target: Target) -> PassConfig:
    """Tall tiles for sums over rows, where there are enough of them for every multiprocessor."""
    tall = PassConfig(64, 64, 4)
    tiles = -(-key.M // tall.block_m) * -(-key.N // tall.block_n)
    enough = tiles >= 4 * target.multiprocessors
    return tall if key.operator in _SUMMING and enough and not key.heavy else PassConfig()


def heuristic(key: choices.Key, dtype: torch.dtype, target: Target) -> Plan:
    """The plan where nothing was measured and nothing is overridden."""
    configs = configurations(target, dtype, operator=key.operator, heavy=key.heavy, aligned=key.aligned)
    estimates = {gemm: estimate.fused(key, dtype, target, gemm).seconds for gemm in configs}
    gemm = min(configs, key=estimates.__getitem__)
    return Plan(_strategy(key, dtype, target, estimates[gemm]), gemm, _pass(key, target), key.aligned)


def obstacle(key: choices.Key, dtype: torch.dtype, target: Target) -> str | None:
    """Reason why a product must be the library's; ``None`` where the times decide."""
    if dtype == torch.float32 and target.backend == "cuda" and key.precision == "ieee":
        return "float32 in full precision runs without matrix units"
    if dtype == torch.float32 and not key.k_major:
        return "tf32 needs operands contiguous along K"
    return None if key.aligned else "rows do not start at multiples of 16 bytes"


def _strategy(key: choices.Key, dtype: torch.dtype, target: Target, fused_seconds: float) -> Strategy:
    """The heuristic's strategy, see :func:`plan`."""
    if not key.K:
        return "split"
    if target.backend == "interpreter":
        return "fused"
    if obstacle(key, dtype, target) is not None:
        return "split"
    return "fused" if fused_seconds <= estimate.split(key, dtype, target).seconds else "split"


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
    """The plan of ``operator``, a product [M, K] [K, N] and its epilogue; K = 0 for a pass alone.

    The fastest measured plan of this device, if there is one. Else *split*, the library's product and one
    pass, where something stands against a kernel of our own (:func:`obstacle`) or where it is estimated to be
    faster (:mod:`.estimate`); otherwise *fused*, one kernel with the tiles of the least estimated time.
    ``heavy`` as in :func:`configurations`. Answers are kept: a call that was planned before costs a lookup.
    """
    products = precision(dtype, target)
    return _decide(M, N, K, dtype, target, operator, heavy, aligned, k_major, products, _override)


def forget_choices() -> None:
    """Lets plans see tables that changed, and another ``FASTAE_CACHE``."""
    choices.table.cache_clear()
    _decide.cache_clear()
