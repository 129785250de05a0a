"""An encoder with its contractive penalty, and a decoder with its reconstruction loss."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import Function

from .. import ops
from ..objective import Objective
from ..tensors import reduce_rows
from .kept import keep, kept
from .once import Context, first_order


class Encode(Function):
    """(code [M, H], penalty [M] or ``None``)."""

    @staticmethod
    def forward(
        ctx: Context, x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, contractive: bool
    ) -> tuple[Tensor, Tensor | None]:
        sq_norms = ops.squared_norms(weight) if contractive else None
        encoded = ops.encode(x, weight, bias, activation, sq_norms=sq_norms)
        z_or_code = keep(ctx, encoded.code, encoded.preact, activation)
        ctx.save_for_backward(x, weight, bias, z_or_code, sq_norms)
        ctx.activation, ctx.shape = activation, encoded.code.shape
        ctx.set_materialize_grads(False)
        return encoded.code, encoded.penalty if contractive else None

    @staticmethod
    @first_order
    def backward(
        ctx: Context, grad_code: Tensor | None, grad_penalty: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        x, weight, bias, z_or_code, sq_norms = ctx.saved_tensors
        if grad_code is None and grad_penalty is None:
            return None, None, None, None, None
        grad = x.new_zeros(ctx.shape) if grad_code is None else grad_code
        code = kept(ctx, z_or_code, grad, lambda: ops.encode(x, weight, bias, ctx.activation).code)
        dz, db, u = ops.code_grad(
            grad, None, code, code, ctx.activation, penalty_scale=grad_penalty, sq_norms=sq_norms
        )
        need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
        own = {} if grad_penalty is None else {"weight": weight, "u": u}
        return (
            torch.mm(dz, weight) if need_x else None,
            ops.weight_grad(dz, x, **own) if need_weight else None,
            db.to(bias.dtype) if need_bias else None,
            None,
            None,
        )


class Decoding(NamedTuple):
    """The options of ``decode_loss``, named as its arguments."""

    loss: str
    output_activation: str
    seed: Tensor | None = None
    kind: str = "none"
    params: list[float] | None = None
    corrupted: float = 1.0
    clean: float = 1.0


def decoding_of(objective: Objective, seed: Tensor | None) -> Decoding:
    """The options of ``decode_loss`` for an objective; ``seed`` drew the corruption that is emphasised."""
    emphasis, corruption = objective.emphasis, objective.corruption
    if emphasis is None or corruption is None:
        return Decoding(objective.loss, objective.output_activation)
    return Decoding(
        objective.loss,
        objective.output_activation,
        seed,
        corruption.kind,
        corruption.params,
        emphasis.corrupted,
        emphasis.clean,
    )


class ReconstructionLoss(Function):
    """The reconstruction loss, reduced over rows: its gradient is then one number for mean and sum."""

    @staticmethod
    def forward(
        ctx: Context,
        code: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        decoding: Decoding,
        reduction: str,
    ) -> Tensor:
        ctx.decoding, ctx.reduction = decoding, reduction
        rows, grad, column_sums = ops.decode_loss(
            code, weight, bias, target, **decoding._asdict(), column_sums=bias is not None
        )
        ctx.save_for_backward(code, weight, bias, target if target.requires_grad else None, grad, column_sums)
        return reduce_rows(rows, reduction, rows.shape)

    @staticmethod
    @first_order
    def backward(ctx: Context, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        code, weight, bias, target, grad, column_sums = ctx.saved_tensors
        need_code, need_weight, need_bias, need_target = ctx.needs_input_grad[:4]
        scale = grad_loss / max(code.shape[0], 1) if ctx.reduction == "mean" else grad_loss
        d_code = None
        if need_code:
            d_code = ops.code_grad(grad, weight, code, code.new_empty(0), "linear", scale=scale).dz
        return (
            d_code,
            ops.weight_grad(grad, code, scale) if need_weight else None,
            scaled_column_sums(grad, scale, column_sums).to(bias.dtype) if need_bias else None,
            target_gradient(code, weight, bias, target, ctx.decoding, scale) if need_target else None,
            None,
            None,
        )


def target_gradient(
    code: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, decoding: Decoding, scale: Tensor
) -> Tensor:
    """d L / d target, [M, D], for the scale of each row's loss."""
    grad = ops.decode_loss_target_grad(code, weight, bias, target, **decoding._asdict())
    return (grad * (scale if scale.dim() == 0 else scale[:, None])).to(grad.dtype)


def scaled_column_sums(grad: Tensor, scale: Tensor, column_sums: Tensor) -> Tensor:
    """sum_n scale_n grad_n, [D], from the sums without a scale where it is one for all rows."""
    return column_sums * scale if scale.dim() == 0 else scale @ grad.to(scale.dtype)
