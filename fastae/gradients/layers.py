"""An encoder with its contractive penalty, and a decoder with its reconstruction loss."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import Function

from .. import ops
from ..objective import Objective
from .kept import keep, kept
from .once import Context, first_order


class Encode(Function):
    """(code [M, H], contractive penalty, reduced over rows). ``None`` for a reduction: no penalty."""

    @staticmethod
    def forward(
        ctx: Context,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        activation: str,
        reduction: str | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        sq_norms = None if reduction is None else ops.squared_norms(weight)
        encoded = ops.encode(x, weight, bias, activation, sq_norms=sq_norms, reduction=reduction or "none")
        z_or_code = keep(ctx, encoded.code, encoded.preact, activation)
        ctx.save_for_backward(x, weight, bias, z_or_code, sq_norms, encoded.slope_sums)
        ctx.activation, ctx.reduction, ctx.shape = activation, reduction, encoded.code.shape
        ctx.set_materialize_grads(False)
        return encoded.code, None if reduction is None else encoded.penalty

    @staticmethod
    @first_order
    def backward(
        ctx: Context, grad_code: Tensor | None, grad_penalty: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        x, weight, bias, z_or_code, sq_norms, slope_sums = ctx.saved_tensors
        if grad_code is None and grad_penalty is None:
            return None, None, None, None, None
        grad = x.new_zeros(ctx.shape) if grad_code is None else grad_code
        code = kept(ctx, z_or_code, grad, lambda: ops.encode(x, weight, bias, ctx.activation).code)
        need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
        mean = ctx.reduction == "mean"
        dz, db, u, _ = ops.code_grad(
            grad,
            None,
            code,
            code,
            ctx.activation,
            penalty_scale=grad_penalty,
            sq_norms=sq_norms,
            mean=mean,
            sums=bias.dtype if need_bias else None,
        )
        own = {} if grad_penalty is None else {"weight": weight, "u": u}
        if grad_penalty is not None and not grad_penalty.dim():
            own.update(u=slope_sums, u_scale=grad_penalty, u_factor=2.0)
        return (
            torch.mm(dz, weight) if need_x else None,
            ops.weight_grad(dz, x, **own, mean=mean) if need_weight else None,
            db if need_bias else None,
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
    missing: bool = False
    entry_weight: Tensor | None = None


def decoding_of(objective: Objective, seed: Tensor | None, entry_weight: Tensor | None = None) -> Decoding:
    """The options of ``decode_loss`` for an objective; ``seed`` drew the corruption that is emphasised."""
    emphasis, corruption = objective.emphasis, objective.corruption
    decoding = Decoding(
        objective.loss,
        objective.output_activation,
        missing=objective.missing,
        entry_weight=entry_weight,
    )
    if emphasis is None or corruption is None:
        return decoding
    return decoding._replace(
        seed=seed,
        kind=corruption.kind,
        params=corruption.params,
        corrupted=emphasis.corrupted,
        clean=emphasis.clean,
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
        loss, grad, column_sums = ops.decode_loss(
            code,
            weight,
            bias,
            target,
            **decoding._asdict(),
            column_sums=bias is not None and reduction != "none",
            reduction=reduction,
        )
        ctx.save_for_backward(code, weight, bias, target if target.requires_grad else None, grad, column_sums)
        return loss

    @staticmethod
    @first_order
    def backward(ctx: Context, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        code, weight, bias, target, grad, column_sums = ctx.saved_tensors
        need_code, need_weight, need_bias, need_target = ctx.needs_input_grad[:4]
        mean = ctx.reduction == "mean"
        scale = grad_loss / max(code.shape[0], 1) if mean and (need_bias or need_target) else grad_loss
        d_code = d_bias = None
        if need_code:
            none = code.new_empty(0)
            d_code = ops.code_grad(grad, weight, code, none, "linear", scale=grad_loss, mean=mean).dz
        if need_bias:
            d_bias = scale @ grad.to(scale.dtype) if scale.dim() else column_sums * scale
            d_bias = d_bias.to(bias.dtype)
        return (
            d_code,
            ops.weight_grad(grad, code, grad_loss, mean=mean) if need_weight else None,
            d_bias,
            target_gradient(code, weight, bias, target, ctx.decoding, scale) if need_target else None,
            None,
            None,
        )


def target_gradient(
    code: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    target: Tensor,
    decoding: Decoding,
    scale: Tensor,
) -> Tensor:
    """d L / d target, [M, D], for the scale of each row's loss."""
    grad = ops.decode_loss_target_grad(code, weight, bias, target, **decoding._asdict())
    return (grad * (scale if scale.dim() == 0 else scale[:, None])).to(grad.dtype)
