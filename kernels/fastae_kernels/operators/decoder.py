"""The decoder with its reconstruction loss, and the gradient to the target."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..device import epilogues
from ..device.activations import ACTIVATIONS
from ..device.losses import HEAVY, LOSSES
from ..device.noise import Mask
from ..plan.schedules import PassConfig, Plan
from . import buffers, run

_ROWS = PassConfig(8, 256, 4)
"""Rows and columns at a time of a loss of whole rows."""


def _decode_arguments(
    code: Tensor,
    bias: Tensor | None,
    target: Tensor,
    entry: Any,
    parameter: float,
    missing: bool,
    output_activation: str,
    mask: Mask | None,
    corrupted: float,
    clean: float,
    entry_weight: Tensor | None,
    grad: Tensor,
    rows: Tensor | None = None,
    total: Tensor | None = None,
    column_sums: Tensor | None = None,
) -> epilogues.DecodeLoss:
    weight_stride_m, weight_stride_n = buffers.strides_over(entry_weight, target.shape)
    return epilogues.DecodeLoss(
        entry=entry,
        parameter=parameter,
        missing=1 if missing else None,
        **ACTIVATIONS[output_activation].functions,
        bias=buffers.vector(bias),
        target=target,
        target_stride_m=buffers.strides(target)[0],
        target_stride_n=buffers.strides(target)[1],
        **buffers.mask_fields(mask),
        corrupted=corrupted,
        clean=clean,
        entry_weight=entry_weight,
        entry_weight_stride_m=weight_stride_m,
        entry_weight_stride_n=weight_stride_n,
        rows=rows,
        total=total,
        grad=grad,
        column_sums=column_sums,
    )


def _plan(operator: str, code: Tensor, weight: Tensor | None, loss: str) -> Plan | None:
    """The plan; ``None`` for a loss of whole rows, which no tile of a product holds."""
    if LOSSES[loss].of_rows:
        return None
    heavy = operator == "decode_loss" and loss in HEAVY
    if weight is None:
        return run.plan_of_pass(operator, code, heavy=heavy)
    return run.plan_of(operator, code, weight.t(), heavy=heavy)


def _decode(
    code: Tensor, weight: Tensor | None, epilogue: Any, args: Any, plan: Plan | None, out: Tensor
) -> None:
    """The epilogue of the product of code and weight, or of ``code`` where it is the product."""
    if plan is None:
        run.row_pass(code if weight is None else torch.mm(code, weight.t(), out=out), args, _ROWS)
    elif weight is None:
        run.elementwise_pass(code, out, epilogue, args, plan)
    else:
        run.product(code, weight.t(), epilogue, args, plan, out)


def decode_loss(
    code: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    target: Tensor,
    loss: str,
    output_activation: str = "linear",
    *,
    parameter: float = 0.0,
    mask: Mask | None = None,
    corrupted: float = 1.0,
    clean: float = 1.0,
    missing: bool = False,
    entry_weight: Tensor | None = None,
    column_sums: bool = False,
    reduction: str = "none",
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(loss [M], its gradient per row with respect to a [M, D], that one's column sums [D]).

    code [M, H], weight [D, H]; without a weight ``code`` is the product, [M, D]. Entries that ``mask`` hits
    count ``corrupted``, the others ``clean``. ``parameter`` is the loss's number. With
    ``missing``, NaN in the target means no loss there. ``entry_weight`` [M or 1, D or 1] are further weights,
    of which 0 means no loss, either.
    """
    M, D = target.shape
    plan = _plan("decode_loss", code, weight, loss)
    blocks_m, blocks_n = (buffers.blocks(M, _ROWS.block_m), 1) if plan is None else plan.blocks(M, D)
    grad, per_row = buffers.empty(code, M, D), reduction == "none"
    args = _decode_arguments(
        code,
        bias,
        target,
        LOSSES[loss].entry,
        parameter,
        missing,
        output_activation,
        mask,
        corrupted,
        clean,
        entry_weight,
        grad,
        rows=buffers.empty_float(code, blocks_n, M) if per_row else None,
        total=None if per_row else buffers.empty_float(code, blocks_n, blocks_m),
        column_sums=buffers.empty_float(code, blocks_m, D) if column_sums else None,
    )
    _decode(code, weight, epilogues.decode_loss, args, plan, grad)
    losses = run.columns(args.rows) or run.total(args.total, reduction, M)
    sums = run.columns(args.column_sums)
    assert losses is not None
    run.fold_all(losses, sums)
    return losses.out, grad, run.result(sums)


def decode_loss_target_grad(
    code: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    target: Tensor,
    loss: str,
    output_activation: str = "linear",
    *,
    parameter: float = 0.0,
    mask: Mask | None = None,
    corrupted: float = 1.0,
    clean: float = 1.0,
    missing: bool = False,
    entry_weight: Tensor | None = None,
) -> Tensor:
    """The gradient of each row's loss to the target, [M, D], in the target's dtype."""
    plan = _plan("decode_loss_target_grad", code, weight, loss)
    grad = buffers.empty(target, *target.shape)
    args = _decode_arguments(
        code,
        bias,
        target,
        LOSSES[loss].target_gradient,
        parameter,
        missing,
        output_activation,
        mask,
        corrupted,
        clean,
        entry_weight,
        grad,
    )
    in_place = weight is None or grad.dtype == code.dtype
    product = grad if in_place else buffers.empty(code, *target.shape)
    _decode(code, weight, epilogues.decode_loss_target_gradient, args, plan, product)
    return grad
