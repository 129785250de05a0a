"""Plans and launches that the operators share: products with an epilogue, elementwise passes and folds."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from triton.experimental.gluon import language as gluon
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor as GluonDescriptor
from triton.tools.tensor_descriptor import TensorDescriptor

from ..device.elementwise import elementwise
from ..device.gemm import gemm
from ..device.overlapped import overlapped_gemm
from ..device.reductions import Fold, fold
from ..device.rowwise import rowwise
from ..launch import launch, target_of
from ..plan.config import fits, precision
from ..plan.config import plan as make_plan
from ..plan.schedules import GemmConfig, PassConfig, Plan
from . import buffers


def plan_of(operator: str, a: Tensor, b: Tensor, *others: Tensor | None, heavy: bool = False) -> Plan:
    """The plan of an operator on a product a b, beside which ``others`` are operands, too."""
    return make_plan(
        a.shape[0],
        b.shape[1],
        a.shape[1],
        a.dtype,
        target_of(a.device),
        operator=operator,
        heavy=heavy,
        aligned=buffers.all_aligned(a, b, *others),
        k_major=a.stride(1) == b.stride(0) == 1,
    )


def plan_of_pass(operator: str, x: Tensor, *, heavy: bool = False) -> Plan:
    """The plan of a pass without a product."""
    return make_plan(x.shape[0], x.shape[1], 0, x.dtype, target_of(x.device), operator=operator, heavy=heavy)


def elementwise_pass(source: Tensor | None, out: Tensor, epilogue: Any, args: Any, plan: Plan) -> None:
    """One elementwise pass over ``source``, which has the shape of ``out``, one of the outputs."""
    M, N = out.shape
    BM, BN, warps = plan.elementwise.block_m, plan.elementwise.block_n, plan.elementwise.warps
    arguments = source, *buffers.strides(source), M, N, epilogue, args
    options = {"BM": BM, "BN": BN, "UNIT": buffers.unit(N), "num_warps": warps}
    launch(elementwise, buffers.blocks(M, BM) * buffers.blocks(N, BN), out.device, *arguments, **options)


def row_pass(source: Tensor, args: Any, config: PassConfig) -> None:
    """The loss of whole rows of a product [M, N]."""
    M, N = source.shape
    arguments = source, *buffers.strides(source), M, N, args
    options = {"BM": config.block_m, "BN": config.block_n, "UNIT": buffers.unit(N), "num_warps": config.warps}
    launch(rowwise, buffers.blocks(M, config.block_m), source.device, *arguments, **options)


def descriptor(operand: Tensor, block: tuple[int, int]) -> TensorDescriptor:
    """A descriptor of an aligned operand in blocks, or of its transpose where columns are contiguous."""
    if operand.stride(1) != 1:
        operand, block = operand.t(), (block[1], block[0])
    return TensorDescriptor(operand, list(operand.shape), list(operand.stride()), list(block))


def _tile_options(config: GemmConfig) -> dict[str, int]:
    return {
        "BM": config.block_m,
        "BN": config.block_n,
        "BK": config.block_k,
        "GROUP": config.group,
        "SUBTILES": config.subtiles,
        "num_warps": config.warps,
    }


def fused(
    a: Tensor,
    b: Tensor,
    a2: Tensor | None,
    b2: Tensor | None,
    scale2: Tensor | None,
    epilogue: Any,
    args: Any,
    config: GemmConfig,
    aligned: bool | None = None,
    factor2: float = 1.0,
) -> None:
    """The epilogue of a b + factor2 scale2 a2 b2; ``aligned`` is what the plan found of these operands."""
    (M, K), N = a.shape, b.shape[1]
    operands = [a, b] if a2 is None or b2 is None else [a, b, a2, b2]
    if aligned is None:
        aligned = buffers.all_aligned(*operands)
    tma = config.tma and aligned
    transposed = [operand.stride(1) != 1 for operand in operands]
    strides = [0 if tma else stride for operand in operands for stride in operand.stride()]
    shapes = [(config.block_m, config.block_k), (config.block_k, config.block_n)] * 2
    dual, target = len(operands) == 4, target_of(a.device)
    none = [] if dual else [None, None]
    tiles = buffers.blocks(M, config.block_m) * buffers.blocks(N, config.block_n)
    launch(
        gemm,
        min(tiles, target.multiprocessors * config.programs) if config.persistent else tiles,
        a.device,
        *(map(descriptor, operands, shapes) if tma else operands),
        *none,
        scale2,
        factor2,
        M,
        N,
        K,
        *strides,
        *([] if dual else [0] * 4),
        epilogue,
        args,
        **_tile_options(config),
        PRECISION=precision(a.dtype, target),
        TMA=tma,
        A_TRANSPOSED=transposed[0],
        B_TRANSPOSED=transposed[1],
        A2_TRANSPOSED=dual and transposed[2],
        B2_TRANSPOSED=dual and transposed[3],
        FLATTEN=config.persistent and tma and not dual,
        M_UNIT=1 if tma else buffers.unit(M),  # descriptors have their own sizes
        N_UNIT=buffers.unit(N),
        K_UNIT=1 if tma else buffers.unit(K),
        STRIDE_UNIT=16 // a.element_size() if aligned and not tma else 1,
        num_stages=config.stages,
    )


_GLUON = {torch.bfloat16: gluon.bfloat16, torch.float16: gluon.float16}
_REGISTERS = 65536  # of a multiprocessor
_MOST_REGISTERS = 168  # of each of 384 threads


def _overlaps(plan: Plan, a: Tensor, exact: bool) -> bool:
    """True if the epilogue of a fused plan has warps of its own.

    A rounded product keeps its range in bfloat16 alone; an ``exact`` one needs tiles with room for float32.
    """
    if not (plan.gemm.epilogue_warps and plan.aligned):
        return False
    if exact:
        return a.dtype in _GLUON and fits(plan.gemm, a.dtype, target_of(a.device), exact=True)
    return a.dtype == torch.bfloat16


def _gluon_descriptor(operand: Tensor, block: tuple[int, int]) -> GluonDescriptor:
    """:func:`descriptor` in Gluon, where it tells the layout in shared memory, too."""
    plain = descriptor(operand, block)
    make: Any = gluon.NVMMASharedLayout.get_default_for  # which Gluon hides from type checkers
    layout = make(plain.block_shape, _GLUON[operand.dtype])
    return GluonDescriptor(plain.base, plain.shape, plain.strides, plain.block_shape, layout)


def _overlapped(a: Tensor, b: Tensor, epilogue: Any, args: Any, config: GemmConfig, exact: bool) -> None:
    """The epilogue of a b, for aligned operands, by warps of its own."""
    (M, K), N = a.shape, b.shape[1]
    tiles = buffers.blocks(M, config.block_m) * buffers.blocks(N, config.block_n)
    multiplying = config.block_m * config.block_n // (32 * config.warps) + 32  # accumulators and addresses
    left = (_REGISTERS // 32 - config.warps * multiplying) // config.epilogue_warps
    launch(
        overlapped_gemm,
        min(tiles, target_of(a.device).multiprocessors),
        a.device,
        _gluon_descriptor(a, (config.block_m, config.block_k)),
        _gluon_descriptor(b, (config.block_k, config.block_n)),
        M,
        N,
        K,
        epilogue,
        args,
        **_tile_options(config),
        STAGES=config.stages,
        A_TRANSPOSED=a.stride(1) != 1,
        B_TRANSPOSED=b.stride(1) != 1,
        N_UNIT=buffers.unit(N),
        CREWS=config.epilogue_warps // 4,
        REGISTERS=min(left // 8 * 8, _MOST_REGISTERS),
        EXACT=exact,
    )


def product(
    a: Tensor, b: Tensor, epilogue: Any, args: Any, plan: Plan, out: Tensor, *, exact: bool = False
) -> None:
    """The epilogue of a b; ``out`` [M, N], an output of the epilogue, may hold the product before it.

    An ``exact`` epilogue of a fused plan gets it in float32; others may get it rounded.
    """
    if plan.strategy == "fused":
        if _overlaps(plan, a, exact):
            _overlapped(a, b, epilogue, args, plan.gemm, exact)
        else:
            fused(a, b, None, None, None, epilogue, args, plan.gemm, plan.aligned)
        return
    torch.mm(a, b, out=out)
    elementwise_pass(out, out, epilogue, args, plan)


def fold_all(*jobs: Fold | None) -> None:
    """Sum partials in one launch."""
    jobs = tuple(job for job in jobs if job is not None)
    BP, BL = 128, 32
    blocks = sum(1 if job.L is None else buffers.blocks(job.L, BL) for job in jobs)
    if jobs:
        launch(fold, blocks, jobs[0].out.device, *jobs, *[Fold()] * (4 - len(jobs)), BP, BL)


def columns(
    partials: Tensor | None,
    *,
    dtype: torch.dtype = torch.float32,
    scale: Tensor | None = None,
    factor: float = 1.0,
) -> Fold | None:
    """The sums of partials [P, L] over their first dimension, scaled, [L]."""
    if partials is None:
        return None
    P, L = partials.shape
    return Fold(partials, buffers.empty(partials, L, dtype=dtype), P, L, scale, factor)


def total(partials: Tensor | None, reduction: str, rows: int) -> Fold | None:
    """The sum or the mean over ``rows`` rows of all partials, a scalar."""
    if partials is None:
        return None
    factor = (1.0 / rows if rows else math.nan) if reduction == "mean" else 1.0
    return Fold(partials, buffers.empty_float(partials), partials.numel(), factor=factor)


def result(job: Fold | None) -> Tensor | None:
    return None if job is None else job.out
