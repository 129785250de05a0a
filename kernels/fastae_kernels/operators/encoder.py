"""The encoder, its gradients and those of weights."""

from __future__ import annotations

import torch
from torch import Tensor

from ..device import epilogues, reductions
from ..device.activations import ACTIVATIONS
from ..device.noise import Mask, Noise
from . import buffers, run
from .corruption import perturb


def squared_norms(weight: Tensor) -> Tensor:
    """q [H] of a weight [H, D]."""
    return _norms(weight, None)


def cast_weight(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A weight [H, D] in another dtype, and its q [H]."""
    copy = buffers.empty(weight, *weight.shape, dtype=dtype)
    return copy, _norms(weight, copy)


def _norms(weight: Tensor, copy: Tensor | None) -> Tensor:
    H, D = weight.shape
    out = buffers.empty_float(weight, H)
    BM, BN = (4, 512) if weight.stride(1) == 1 else (128, 16)
    arguments = weight, copy, out, H, D, *buffers.strides(weight), BM, BN, buffers.unit(D)
    run.launch(reductions.squared_norms, buffers.blocks(H, BM), weight.device, *arguments)
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
    heavy = f.preactivation and (l1 or (noise is None and dropout is not None))
    plan = run.plan_of("encode", x, weight.t(), heavy=heavy)
    blocks_m, blocks_n = plan.blocks(M, H)
    penalty, reduced = sq_norms is not None, reduction != "none"
    code = buffers.empty(x, M, H)
    args = epilogues.Encode(
        **f.functions,
        bias=buffers.vector(bias),
        code=code,
        preact=buffers.empty(x, M, H) if f.preactivation else None,
        dropped=buffers.empty(x, M, H) if noise is None and dropout is not None else None,
        **buffers.mask_fields(dropout if noise is None else None),
        base_code=buffers.vector(base_code),
        base_preact=buffers.vector(base_preact) if f.preactivation else None,
        sq_norms=buffers.vector(sq_norms),
        penalty=buffers.empty_float(x, blocks_n, M) if penalty and not reduced else None,
        penalty_total=buffers.empty_float(x, blocks_n, blocks_m) if penalty and reduced else None,
        slope_sums=buffers.empty_float(x, blocks_m, H) if penalty and reduced else None,
        l1=buffers.empty_float(x, blocks_n, M) if l1 and not reduced else None,
        l1_total=buffers.empty_float(x, blocks_n, blocks_m) if l1 and reduced else None,
        code_sum=buffers.empty_float(x, blocks_m, H) if code_sum else None,
    )
    run.product(x, weight.t(), epilogues.encode, args, plan, code)
    results = (
        run.columns(args.penalty) or run.total(args.penalty_total, reduction, M),
        run.columns(args.l1) or run.total(args.l1_total, reduction, M),
        run.columns(args.code_sum),
        run.columns(args.slope_sums),
    )
    run.fold_all(*results)
    noisy = args.dropped
    if noise is not None:
        assert seed is not None
        noisy = perturb(code, noise, dropout, seed)
    penalties, l1s, code_sums, slope_sums = map(run.result, results)
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
    plan = (
        run.plan_of_pass("code_grad", code)
        if weight is None
        else run.plan_of("code_grad", grad, weight, heavy=heavy)
    )
    blocks_m, _ = plan.blocks(M, H)
    dz, factor, given_scale = buffers.empty(code, M, H), 1.0 / max(M, 1) if mean else 1.0, scale
    if weight is not None and plan.strategy == "split" and grad.dtype == torch.float16:
        # a library's product must not overflow before it is scaled
        grad, scale = _scaled_rows(grad, scale, factor, keep_scalar=False)
    scale, scale_stride = buffers.scale_and_stride(scale)
    per_row = penalty_scale is not None and penalty_scale.dim() == 1
    penalty_scale, penalty_stride = buffers.scale_and_stride(penalty_scale)
    l1_scale, l1_stride = buffers.scale_and_stride(l1_scale)
    args = epilogues.CodeGradient(
        **f.functions,
        code=code.contiguous(),
        preact=buffers.vector(preact) if f.preactivation else None,
        **buffers.mask_fields(dropout),
        scale=scale,
        scale_stride=scale_stride,
        scale_factor=factor,
        penalty_scale=penalty_scale,
        penalty_stride=penalty_stride,
        penalty_factor=penalty * factor,
        sq_norms=buffers.vector(sq_norms),
        l1_scale=l1_scale,
        l1_stride=l1_stride,
        l1_factor=l1 * factor,
        column_grad=buffers.vector(column_grad),
        extra=buffers.vector(extra),
        dz=dz,
        db=None if sums is None else buffers.empty_float(code, blocks_m, H),
        u=buffers.empty_float(code, blocks_m, H) if per_row else None,
    )
    if weight is None:
        run.elementwise_pass(grad, dz, epilogues.code_gradient, args, plan)
    else:
        run.product(grad, weight, epilogues.code_gradient, args, plan, dz)
    results = (
        None if sums is None else run.columns(args.db, dtype=sums),
        run.columns(args.u),
        None
        if sums is None or column_sums is None
        else run.columns(column_sums[None], dtype=sums, scale=given_scale, factor=factor),
    )
    run.fold_all(*results)
    db, u, scaled_sums = map(run.result, results)
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
    plan = run.plan_of_pass("slope_difference_grad", code)
    scale_, stride = buffers.scale_and_stride(scale)
    f = ACTIVATIONS[activation]
    args = epilogues.SlopeDifference(
        **f.functions,
        preact=buffers.vector(preact) if f.preactivation else None,
        code2=code2.contiguous(),
        preact2=buffers.vector(preact2) if f.preactivation else None,
        sq_norms=buffers.vector(sq_norms),
        scale=scale_,
        scale_stride=stride,
        dz=buffers.empty(code, M, H),
        dz2=buffers.empty(code, M, H),
        u=buffers.empty_float(code, plan.blocks(M, H)[0], H),
    )
    run.elementwise_pass(code, args.dz, epilogues.slope_difference_gradient, args, plan)
    u = run.columns(args.u)
    assert u is not None
    run.fold_all(u)
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
    plan = run.plan_of(name, a.t(), b, None if a2 is None else a2.t(), b2)
    given, given2, factor = a, a2, 1.0 / max(len(a), 1) if mean else 1.0
    # a library's product in float16 must not overflow before it is scaled
    late = plan.strategy == "fused" or a.dtype != torch.float16
    a, scale = _scaled_rows(a, scale, factor, keep_scalar=late and not dual)
    if a2 is not None:
        a2, scale2 = _scaled_rows(a2, scale2, factor, keep_scalar=late)
    out = buffers.empty(a, a.shape[1], b.shape[1], dtype=dtype)
    if weight is None or u is None:
        weight = u = None
    args = epilogues.WeightGradient(
        scale=scale,
        scale_factor=factor,
        weight=weight,
        weight_stride_m=buffers.strides(weight)[0],
        weight_stride_n=buffers.strides(weight)[1],
        u=buffers.vector(u),
        u_scale=u_scale,
        u_factor=u_factor * (1.0 if u_scale is None else factor),
        added=None,
        out=out,
    )
    if plan.strategy == "fused":
        transposed = (None, None) if a2 is None or b2 is None else (a2.t(), b2)
        as_planned = plan.aligned if a is given and a2 is given2 else None  # rows that were scaled lie anew
        epilogue = epilogues.weight_gradient
        run.fused(a.t(), b, *transposed, scale2, epilogue, args, plan.gemm, as_planned, factor)
        return out
    product = out if out.dtype == a.dtype else buffers.empty(a, *out.shape)
    if a2 is None or b2 is None:
        torch.mm(a.t(), b, out=product)
    else:  # the pass scales the second product and adds the first
        torch.mm(a2.t(), b2, out=product)
        args = args._replace(scale=scale2, added=torch.mm(a.t(), b))
    if product is not out or dual or args.scale is not None or u is not None:
        run.elementwise_pass(product, out, epilogues.weight_gradient, args, plan)
    return out


def _scaled_rows(
    a: Tensor, scale: Tensor | None, factor: float, *, keep_scalar: bool
) -> tuple[Tensor, Tensor | None]:
    """factor diag(scale) a, or a and the scalar that is still to be applied with the factor."""
    if scale is None or (scale.dim() == 0 and keep_scalar):
        return a, scale
    scale = scale * factor if factor != 1.0 else scale
    return (a * (scale[:, None] if scale.dim() else scale)).to(a.dtype), None
