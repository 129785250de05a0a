"""fastae's operators on Triton kernels: allocation, plans and launches, without autograd.

Matrices are two-dimensional, float32, float16 or bfloat16, with any strides; products run with operands of
one dtype. Sums over features, units and rows are float32. No input is written, no value is read by the host.
Results that were not asked for are ``None``. A scale is a scalar tensor or one value per row; with ``mean``
scales are divided by the number of rows. A ``reduction`` to "mean" or "sum" is of values per row.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .device import epilogues, reductions
from .device.activations import ACTIVATIONS
from .device.elementwise import elementwise
from .device.gemm import gemm
from .device.losses import LOSSES
from .device.noise import CORRUPTIONS, Corruption, Mask, Noise
from .device.reductions import Fold, fold
from .launch import launch, target_of
from .plan.config import plan as make_plan
from .plan.config import precision
from .plan.schedules import GemmConfig, Plan

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


# --- launching --------------------------------------------------------------------------------------------


def _empty(like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device)


def _float(like: Tensor, *shape: int) -> Tensor:
    return _empty(like, *shape, dtype=torch.float32)


def _strides(matrix: Tensor | None) -> tuple[int | None, int | None]:
    """Strides as kernels take them: ``None`` where the matrix is contiguous."""
    if matrix is None or matrix.is_contiguous():
        return None, None
    return matrix.stride(0), matrix.stride(1)


def _unit(size: int) -> int:
    """The power of two up to 8 that divides ``size``; 1 for multiples of 16, which Triton sees by itself."""
    return 1 if size % 16 == 0 else math.gcd(size, 8)


def _blocks(size: int, block: int) -> int:
    return -(-size // block)


def _pass(source: Tensor | None, out: Tensor, epilogue: Any, args: Any, plan: Plan) -> None:
    """One elementwise pass over ``source``, which has the shape of ``out``, one of the outputs."""
    M, N = out.shape
    BM, BN, warps = plan.elementwise.block_m, plan.elementwise.block_n, plan.elementwise.warps
    arguments = source, *_strides(source), M, N, epilogue, args
    options = {"BM": BM, "BN": BN, "UNIT": _unit(N), "num_warps": warps}
    launch(elementwise, _blocks(M, BM) * _blocks(N, BN), out.device, *arguments, **options)


def _aligned(operand: Tensor) -> bool:
    """True if rows (or columns, where those are contiguous) start at multiples of 16 bytes."""
    rows, columns = (0, 1) if operand.stride(1) == 1 else (1, 0)
    return (
        operand.stride(columns) == 1
        and operand.stride(rows) * operand.element_size() % 16 == 0
        and operand.stride(rows) >= operand.shape[columns]
        and operand.data_ptr() % 16 == 0
        and operand.numel() > 0
    )


def _all_aligned(*operands: Tensor | None) -> bool:
    return all(_aligned(operand) for operand in operands if operand is not None)


def _descriptor(operand: Tensor, block: tuple[int, int]) -> TensorDescriptor:
    """A descriptor of an aligned operand in blocks, or of its transpose where columns are contiguous."""
    if operand.stride(1) != 1:
        operand, block = operand.t(), (block[1], block[0])
    return TensorDescriptor(operand, list(operand.shape), list(operand.stride()), list(block))


def _plan(operator: str, a: Tensor, b: Tensor, *others: Tensor | None, heavy: bool = False) -> Plan:
    """The plan of an operator on a product a b, beside which ``others`` are operands, too."""
    return make_plan(
        a.shape[0],
        b.shape[1],
        a.shape[1],
        a.dtype,
        target_of(a.device),
        operator=operator,
        heavy=heavy,
        aligned=_all_aligned(a, b, *others),
        k_major=a.stride(1) == b.stride(0) == 1,
    )


def _pass_plan(operator: str, x: Tensor) -> Plan:
    """The plan of a pass without a product."""
    return make_plan(x.shape[0], x.shape[1], 0, x.dtype, target_of(x.device), operator=operator)


def _fused(
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
        aligned = _all_aligned(*operands)
    tma = config.tma and aligned
    transposed = [operand.stride(1) != 1 for operand in operands]
    strides = [0 if tma else stride for operand in operands for stride in operand.stride()]
    shapes = [(config.block_m, config.block_k), (config.block_k, config.block_n)] * 2
    dual, target = len(operands) == 4, target_of(a.device)
    none = [] if dual else [None, None]
    tiles = _blocks(M, config.block_m) * _blocks(N, config.block_n)
    launch(
        gemm,
        min(tiles, target.multiprocessors * config.programs) if config.persistent else tiles,
        a.device,
        *(map(_descriptor, operands, shapes) if tma else operands),
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
        BM=config.block_m,
        BN=config.block_n,
        BK=config.block_k,
        GROUP=config.group,
        SUBTILES=config.subtiles,
        PRECISION=precision(a.dtype, target),
        TMA=tma,
        A_TRANSPOSED=transposed[0],
        B_TRANSPOSED=transposed[1],
        A2_TRANSPOSED=dual and transposed[2],
        B2_TRANSPOSED=dual and transposed[3],
        FLATTEN=config.persistent and tma and not dual,
        M_UNIT=1 if tma else _unit(M),  # descriptors have their own sizes
        N_UNIT=_unit(N),
        K_UNIT=1 if tma else _unit(K),
        STRIDE_UNIT=16 // a.element_size() if aligned and not tma else 1,
        num_warps=config.warps,
        num_stages=config.stages,
    )


def _product(a: Tensor, b: Tensor, epilogue: Any, args: Any, plan: Plan, out: Tensor) -> None:
    """The epilogue of a b; ``out`` [M, N], an output of the epilogue, may hold the product before it."""
    if plan.strategy == "fused":
        _fused(a, b, None, None, None, epilogue, args, plan.gemm, plan.aligned)
        return
    torch.mm(a, b, out=out)
    _pass(out, out, epilogue, args, plan)


def _fold(*jobs: Fold | None) -> None:
    """Sum partials in one launch."""
    jobs = tuple(job for job in jobs if job is not None)
    BP, BL = 128, 32
    blocks = sum(1 if job.L is None else _blocks(job.L, BL) for job in jobs)
    if jobs:
        launch(fold, blocks, jobs[0].out.device, *jobs, *[None] * (4 - len(jobs)), BP, BL)


def _columns(
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
    return Fold(partials, _empty(partials, L, dtype=dtype), P, L, scale, factor)


def _total(partials: Tensor | None, reduction: str, rows: int) -> Fold | None:
    """The sum or the mean over ``rows`` rows of all partials, a scalar."""
    if partials is None:
        return None
    factor = (1.0 / rows if rows else math.nan) if reduction == "mean" else 1.0
    return Fold(partials, _float(partials), partials.numel(), factor=factor)


def _out(job: Fold | None) -> Tensor | None:
    return None if job is None else job.out


def _vector(vector: Tensor | None) -> Tensor | None:
    return None if vector is None else vector.contiguous()


def _mask_fields(mask: Mask | None) -> dict[str, Any]:
    return (mask or Mask())._asdict()


def _scale(scale: Tensor | None) -> tuple[Tensor | None, int]:
    """A scale and the stride from row to row: 0 for a scalar."""
    return scale, scale.stride(0) if scale is not None and scale.dim() else 0


# --- corruption -------------------------------------------------------------------------------------------


def corrupt(x: Tensor, corruption: Corruption, dtype: torch.dtype | None = None) -> Tensor:
    """x~ [M, D] in ``dtype`` or x's, for a corruption whose ``source`` and ``out`` are filled in here."""
    out = _empty(x, *x.shape, dtype=dtype)
    args = corruption._replace(source=x, stride_m=x.stride(0), stride_n=x.stride(1), out=out)
    _pass(x, out, epilogues.corrupt, args, _pass_plan("corrupt", x))
    return out


def swap_backward(grad: Tensor, mask: Mask, hits: int) -> Tensor:
    """The gradient of swap: an entry's own where it was kept, and those of the entries that came from it."""
    M, N = grad.shape
    kept = _float(grad, M, N)
    args = Corruption(CORRUPTIONS["masking"], *mask[:4])._replace(out=kept)
    _pass(grad, kept, epilogues.corrupt, args, _pass_plan("corrupt", grad))
    BN = 128
    launch(
        reductions.gather_swapped,
        -(-N // BN) if M else 0,
        grad.device,
        grad,
        *grad.stride(),
        kept,
        mask,
        hits,
        M,
        N,
        BN,
    )
    return kept.to(grad.dtype)


def perturb(code: Tensor, noise: Noise | None, dropout: Mask | None, seed: Tensor) -> Tensor:
    """The code as the decoder sees it, [M, H]."""
    out = _empty(code, *code.shape)
    mask = (dropout or Mask())._replace(seed=seed)
    args = epilogues.Perturb(*(noise or Noise()), *mask, out)
    _pass(code, out, epilogues.perturb, args, _pass_plan("perturb", code))
    return out


def random_signs(like: Tensor, seed: Tensor, stream: int) -> Tensor:
    """-1 or 1, in the shape and dtype of ``like``."""
    out = _empty(like, *like.shape)
    args = epilogues.Signs(seed, stream, out)
    _pass(None, out, epilogues.random_signs, args, _pass_plan("random_signs", like))
    return out


# --- encoder ----------------------------------------------------------------------------------------------


def squared_norms(weight: Tensor) -> Tensor:
    """q [H] of a weight [H, D]."""
    return _norms(weight, None)


def cast_weight(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A weight [H, D] in another dtype, and its q [H]."""
    copy = _empty(weight, *weight.shape, dtype=dtype)
    return copy, _norms(weight, copy)


def _norms(weight: Tensor, copy: Tensor | None) -> Tensor:
    H, D = weight.shape
    out = _float(weight, H)
    BM, BN = (4, 512) if weight.stride(1) == 1 else (128, 16)
    arguments = weight, copy, out, H, D, *_strides(weight), BM, BN, _unit(D)
    launch(reductions.squared_norms, _blocks(H, BM), weight.device, *arguments)
    return out


def encode(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    *,
    sq_norms: Tensor | None = None,
    base_code: Tensor | None = None,
    base_preact: Tensor | None = None,
    l1: bool = False,
    code_sum: bool = False,
    reduction: str = "none",
    noise: Noise | None = None,
    dropout: Mask | None = None,
    seed: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """(code [M, H], noisy code, pre-activation, penalty, l1, column sums of the code [H], slope sums [H]).

    x [M, D], weight [H, D]. The penalty is of the slopes, or of their difference from those of another input
    with code ``base_code``. With a reduced penalty come the sums over rows of the slopes' squares. ``seed``
    is the noise's.
    """
    M, H = x.shape[0], weight.shape[0]
    f = ACTIVATIONS[activation]
    heavy = f.preactivation and noise is None and dropout is not None
    plan = _plan("encode", x, weight.t(), heavy=heavy)
    blocks_m, blocks_n = plan.blocks(M, H)
    penalty, reduced = sq_norms is not None, reduction != "none"
    code = _empty(x, M, H)
    args = epilogues.Encode(
        **f.functions,
        bias=_vector(bias),
        code=code,
        preact=_empty(x, M, H) if f.preactivation else None,
        dropped=_empty(x, M, H) if noise is None and dropout is not None else None,
        **_mask_fields(dropout if noise is None else None),
        base_code=_vector(base_code),
        base_preact=_vector(base_preact) if f.preactivation else None,
        sq_norms=_vector(sq_norms),
        penalty=_float(x, blocks_n, M) if penalty and not reduced else None,
        penalty_total=_float(x, blocks_n, blocks_m) if penalty and reduced else None,
        slope_sums=_float(x, blocks_m, H) if penalty and reduced else None,
        l1=_float(x, blocks_n, M) if l1 and not reduced else None,
        l1_total=_float(x, blocks_n, blocks_m) if l1 and reduced else None,
        code_sum=_float(x, blocks_m, H) if code_sum else None,
    )
    _product(x, weight.t(), epilogues.encode, args, plan, code)
    results = (
        _columns(args.penalty) or _total(args.penalty_total, reduction, M),
        _columns(args.l1) or _total(args.l1_total, reduction, M),
        _columns(args.code_sum),
        _columns(args.slope_sums),
    )
    _fold(*results)
    noisy = args.dropped
    if noise is not None:
        assert seed is not None
        noisy = perturb(code, noise, dropout, seed)
    penalties, l1s, code_sums, slope_sums = map(_out, results)
    return code, noisy, args.preact, penalties, l1s, code_sums, slope_sums


def code_grad(
    grad: Tensor,
    weight: Tensor | None,
    code: Tensor,
    preact: Tensor | None,
    activation: str,
    *,
    dropout: Mask | None = None,
    scale: Tensor | None = None,
    penalty_scale: Tensor | None = None,
    penalty: float = 1.0,
    sq_norms: Tensor | None = None,
    l1_scale: Tensor | None = None,
    l1: float = 1.0,
    mean: bool = False,
    column_grad: Tensor | None = None,
    extra: Tensor | None = None,
    sums: torch.dtype | None = None,
    column_sums: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """(dz [M, H], its column sums db [H], u [H], ``column_sums`` [D] times the one scale).

    The gradient to the code is grad [M, D] times weight [D, H], or ``grad`` [M, H] itself without a weight.
    ``sums`` is the dtype of db and of the scaled column sums, which need one. u belongs to a penalty's scale
    per row; with one scale it follows from the encoder's slope sums.
    """
    M, H = code.shape
    f = ACTIVATIONS[activation]
    heavy = f.preactivation and dropout is not None
    plan = _pass_plan("code_grad", code) if weight is None else _plan("code_grad", grad, weight, heavy=heavy)
    blocks_m, _ = plan.blocks(M, H)
    dz, factor, given_scale = _empty(code, M, H), 1.0 / max(M, 1) if mean else 1.0, scale
    if weight is not None and plan.strategy == "split" and grad.dtype == torch.float16:
        # a library's product must not overflow before it is scaled
        grad, scale = _scaled_rows(grad, scale, factor, keep_scalar=False)
    scale, scale_stride = _scale(scale)
    per_row = penalty_scale is not None and penalty_scale.dim() == 1
    penalty_scale, penalty_stride = _scale(penalty_scale)
    l1_scale, l1_stride = _scale(l1_scale)
    args = epilogues.CodeGradient(
        **f.functions,
        code=code.contiguous(),
        preact=_vector(preact) if f.preactivation else None,
        **_mask_fields(dropout),
        scale=scale,
        scale_stride=scale_stride,
        scale_factor=factor,
        penalty_scale=penalty_scale,
        penalty_stride=penalty_stride,
        penalty_factor=penalty * factor,
        sq_norms=_vector(sq_norms),
        l1_scale=l1_scale,
        l1_stride=l1_stride,
        l1_factor=l1 * factor,
        column_grad=_vector(column_grad),
        extra=_vector(extra),
        dz=dz,
        db=None if sums is None else _float(code, blocks_m, H),
        u=_float(code, blocks_m, H) if per_row else None,
    )
    if weight is None:
        _pass(grad, dz, epilogues.code_gradient, args, plan)
    else:
        _product(grad, weight, epilogues.code_gradient, args, plan, dz)
    results = (
        None if sums is None else _columns(args.db, dtype=sums),
        _columns(args.u),
        None
        if sums is None or column_sums is None
        else _columns(column_sums[None], dtype=sums, scale=given_scale, factor=factor),
    )
    _fold(*results)
    db, u, scaled_sums = map(_out, results)
    return dz, db, u, scaled_sums


def slope_difference_grad(
    code: Tensor,
    preact: Tensor | None,
    code2: Tensor,
    preact2: Tensor | None,
    activation: str,
    sq_norms: Tensor,
    scale: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dz [M, H], dz2 [M, H], u [H]) of sum_j (s_j - s2_j)^2 q_j."""
    M, H = code.shape
    plan = _pass_plan("slope_difference_grad", code)
    scale_, stride = _scale(scale)
    f = ACTIVATIONS[activation]
    args = epilogues.SlopeDifference(
        **f.functions,
        preact=_vector(preact) if f.preactivation else None,
        code2=code2.contiguous(),
        preact2=_vector(preact2) if f.preactivation else None,
        sq_norms=_vector(sq_norms),
        scale=scale_,
        scale_stride=stride,
        dz=_empty(code, M, H),
        dz2=_empty(code, M, H),
        u=_float(code, plan.blocks(M, H)[0], H),
    )
    _pass(code, args.dz, epilogues.slope_difference_gradient, args, plan)
    u = _columns(args.u)
    assert u is not None
    _fold(u)
    return args.dz, args.dz2, u.out


def weight_grad(
    a: Tensor,
    b: Tensor,
    scale: Tensor | None = None,
    weight: Tensor | None = None,
    u: Tensor | None = None,
    a2: Tensor | None = None,
    b2: Tensor | None = None,
    scale2: Tensor | None = None,
    u_scale: Tensor | None = None,
    u_factor: float = 1.0,
    mean: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """a^T diag(scale) b + diag(u_factor u_scale u) W + a2^T diag(scale2) b2, [N_a, N_b].

    ``u_scale`` is a scalar tensor. The result is in ``dtype`` or that of the matrices.
    """
    dual = a2 is not None and b2 is not None
    name = "weight_grad dual" if dual else "weight_grad"
    plan = _plan(name, a.t(), b, None if a2 is None else a2.t(), b2)
    given, given2, factor = a, a2, 1.0 / max(len(a), 1) if mean else 1.0
    # a library's product in float16 must not overflow before it is scaled
    late = plan.strategy == "fused" or a.dtype != torch.float16
    a, scale = _scaled_rows(a, scale, factor, keep_scalar=late and not dual)
    if a2 is not None:
        a2, scale2 = _scaled_rows(a2, scale2, factor, keep_scalar=late)
    out = _empty(a, a.shape[1], b.shape[1], dtype=dtype)
    if weight is None or u is None:
        weight = u = None
    args = epilogues.WeightGradient(
        scale=scale,
        scale_factor=factor,
        weight=weight,
        weight_stride_m=_strides(weight)[0],
        weight_stride_n=_strides(weight)[1],
        u=_vector(u),
        u_scale=u_scale,
        u_factor=u_factor * (1.0 if u_scale is None else factor),
        added=None,
        out=out,
    )
    if plan.strategy == "fused":
        transposed = (None, None) if a2 is None or b2 is None else (a2.t(), b2)
        as_planned = plan.aligned if a is given and a2 is given2 else None  # rows that were scaled lie anew
        epilogue = epilogues.weight_gradient
        _fused(a.t(), b, *transposed, scale2, epilogue, args, plan.gemm, as_planned, factor)
        return out
    product = out if out.dtype == a.dtype else _empty(a, *out.shape)
    if a2 is None or b2 is None:
        torch.mm(a.t(), b, out=product)
    else:  # the pass scales the second product and adds the first
        torch.mm(a2.t(), b2, out=product)
        args = args._replace(scale=scale2, added=torch.mm(a.t(), b))
    if product is not out or dual or args.scale is not None or u is not None:
        _pass(product, out, epilogues.weight_gradient, args, plan)
    return out


def _scaled_rows(
    a: Tensor, scale: Tensor | None, factor: float, *, keep_scalar: bool
) -> tuple[Tensor, Tensor | None]:
    """factor diag(scale) a, or a and the scalar that is still to be applied with the factor."""
    if scale is None or (scale.dim() == 0 and keep_scalar):
        return a, scale
    scale = scale * factor if factor != 1.0 else scale
    return (a * (scale[:, None] if scale.dim() else scale)).to(a.dtype), None


# --- decoder ----------------------------------------------------------------------------------------------


def _decode_arguments(
    code: Tensor,
    bias: Tensor | None,
    target: Tensor,
    entry: Any,
    output_activation: str,
    mask: Mask | None,
    corrupted: float,
    clean: float,
    grad: Tensor,
    rows: Tensor | None = None,
    total: Tensor | None = None,
    column_sums: Tensor | None = None,
) -> epilogues.DecodeLoss:
    return epilogues.DecodeLoss(
        entry=entry,
        **ACTIVATIONS[output_activation].functions,
        bias=_vector(bias),
        target=target,
        target_stride_m=_strides(target)[0],
        target_stride_n=_strides(target)[1],
        **_mask_fields(mask),
        corrupted=corrupted,
        clean=clean,
        rows=rows,
        total=total,
        grad=grad,
        column_sums=column_sums,
    )


def decode_loss(
    code: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    loss: str,
    output_activation: str = "linear",
    *,
    mask: Mask | None = None,
    corrupted: float = 1.0,
    clean: float = 1.0,
    column_sums: bool = False,
    reduction: str = "none",
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(loss [M], its gradient per row with respect to a [M, D], that one's column sums [D]).

    code [M, H], weight [D, H]; entries that ``mask`` hits count ``corrupted``, the others ``clean``.
    """
    M, D = target.shape
    plan = _plan("decode_loss", code, weight.t())
    blocks_m, blocks_n = plan.blocks(M, D)
    grad, per_row = _empty(code, M, D), reduction == "none"
    args = _decode_arguments(
        code,
        bias,
        target,
        LOSSES[loss].entry,
        output_activation,
        mask,
        corrupted,
        clean,
        grad,
        rows=_float(code, blocks_n, M) if per_row else None,
        total=None if per_row else _float(code, blocks_n, blocks_m),
        column_sums=_float(code, blocks_m, D) if column_sums else None,
    )
    _product(code, weight.t(), epilogues.decode_loss, args, plan, grad)
    losses = _columns(args.rows) or _total(args.total, reduction, M)
    sums = _columns(args.column_sums)
    assert losses is not None
    _fold(losses, sums)
    return losses.out, grad, _out(sums)


def decode_loss_target_grad(
    code: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    loss: str,
    output_activation: str = "linear",
    *,
    mask: Mask | None = None,
    corrupted: float = 1.0,
    clean: float = 1.0,
) -> Tensor:
    """The gradient of each row's loss to the target, [M, D], in the target's dtype."""
    plan = _plan("decode_loss_target_grad", code, weight.t())
    grad = _empty(target, *target.shape)
    args = _decode_arguments(
        code,
        bias,
        target,
        LOSSES[loss].target_gradient,
        output_activation,
        mask,
        corrupted,
        clean,
        grad,
    )
    product = grad if grad.dtype == code.dtype else _empty(code, *target.shape)
    _product(code, weight.t(), epilogues.decode_loss_target_gradient, args, plan, product)
    return grad
