"""The hand-derived gradients around the operators.

The formulas are those of the README's section on the mathematics: with g = dL/da, p the scale of the penalty,
s = f'(z), t = f''(z) and q_j = ||W_j||^2,

    dz = s (dh + 2 p s t q)        dW = dz^T x + diag(u) W,  u_j = 2 p sum_n s_nj^2        dV = g^T h

so that a training step needs five matrix products and no Jacobian. Second derivatives are refused.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import Function

from . import ops, reference
from .arguments import reduce_rows
from .corruption import mask_width
from .philox import MASK_WIDTH, STREAM_CONTRACTION

Context = Any


class _SecondDerivative(Function):
    """The identity on a first derivative, tied to all it depends on; differentiating it raises."""

    @staticmethod
    def forward(ctx: Context, grad: Tensor, *dependencies: Tensor) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> Tensor:
        raise RuntimeError(
            "fastae's fused operators have no second derivative; "
            "the functions of fastae.reference can be differentiated twice"
        )


def first_order(
    backward: Callable[..., tuple[Tensor | None, ...]],
) -> Callable[..., tuple[Tensor | None, ...]]:
    """Makes a later second derivative raise.

    torch's ``once_differentiable`` does so only where the upstream gradient itself requires one: under
    ``create_graph=True`` the dependence on the inputs would be dropped in silence.
    """

    @functools.wraps(backward)
    def wrapped(ctx: Context, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if not torch.is_grad_enabled():
            return backward(ctx, *grads)
        with torch.no_grad():
            results = backward(ctx, *grads)
        dependencies = [t for t in (*grads, *ctx.saved_tensors) if t is not None and t.requires_grad]
        if not dependencies:
            return results
        return tuple(None if r is None else _SecondDerivative.apply(r, *dependencies) for r in results)

    return wrapped


class Objective(NamedTuple):
    """The constants of :func:`fastae.functional.autoencoder_loss`, as the operators take them."""

    activation: str
    loss: str
    output_activation: str
    corruption: str
    corruption_params: list[float]
    emphasis: tuple[float, float] | None
    contractive: float
    higher_order: float
    higher_order_std: float
    higher_order_samples: int
    l1: float
    kl: float
    kl_target: float
    noise: str
    noise_std: float
    dropout: float
    reduction: str


class DecoderSettings(NamedTuple):
    """The constants of ``decode_loss``; with a seed, the weights of corrupted and of clean entries."""

    loss: str
    output_activation: str
    seed: Tensor | None = None
    p: float = 0.0
    width: int = MASK_WIDTH
    corrupted: float = 1.0
    clean: float = 1.0


class Corrupt(Function):
    @staticmethod
    def forward(ctx: Context, x: Tensor, seed: Tensor, kind: str, params: list[float], stream: int) -> Tensor:
        ctx.save_for_backward(seed)
        ctx.process = (kind, params, stream)
        return ops.corrupt(x, seed, kind, params, stream)

    @staticmethod
    @first_order
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        (seed,) = ctx.saved_tensors
        return ops.corrupt_backward(grad, seed, *ctx.process), None, None, None, None


class Perturb(Function):
    """The code that the decoder sees; binary draws pass their gradient straight through."""

    @staticmethod
    def forward(
        ctx: Context, code: Tensor, seed: Tensor, noise: str, noise_std: float, dropout: float
    ) -> Tensor:
        ctx.save_for_backward(seed)
        ctx.dropout = dropout
        return ops.perturb(code, seed, noise, noise_std, dropout)

    @staticmethod
    @first_order
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        (seed,) = ctx.saved_tensors
        if ctx.dropout:
            grad = ops.perturb(grad, seed, "none", 0.0, ctx.dropout)
        return grad, None, None, None, None


class Encode(Function):
    """(code [M, H], penalty [M] or ``None``)."""

    @staticmethod
    def forward(
        ctx: Context, x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, contractive: bool
    ) -> tuple[Tensor, Tensor | None]:
        sq_norms = ops.squared_norms(weight) if contractive else None
        code, _, preact, penalty, _, _ = ops.encode(
            x, weight, bias, activation, sq_norms, None, None, False, False, None, "none", 0.0, 0.0
        )
        ctx.save_for_backward(x, weight, bias, code, preact, sq_norms)
        ctx.activation = activation
        ctx.set_materialize_grads(False)
        return code, penalty if contractive else None

    @staticmethod
    @first_order
    def backward(
        ctx: Context, grad_code: Tensor | None, grad_penalty: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        x, weight, bias, code, preact, sq_norms = ctx.saved_tensors
        if grad_code is None and grad_penalty is None:
            return None, None, None, None, None
        if grad_code is None:
            grad_code = torch.zeros_like(code)
        dz, db, u = ops.code_grad(
            grad_code,
            None,
            code,
            preact,
            ctx.activation,
            None,
            grad_penalty,
            sq_norms,
            None,
            None,
            None,
            None,
            0.0,
        )
        need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
        own = grad_penalty is not None
        return (
            torch.mm(dz, weight) if need_x else None,
            ops.weight_grad(dz, x, None, weight if own else None, u if own else None, None, None, None)
            if need_weight
            else None,
            db.to(bias.dtype) if need_bias else None,
            None,
            None,
        )


class ReconstructionLoss(Function):
    """The loss of the rows, reduced: so that its gradient is one number after a mean or a sum."""

    @staticmethod
    def forward(
        ctx: Context,
        code: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        settings: DecoderSettings,
        reduction: str,
    ) -> Tensor:
        ctx.settings, ctx.reduction = settings, reduction
        rows, grad, column_sums = ops.decode_loss(code, weight, bias, target, *settings, bias is not None)
        ctx.save_for_backward(code, weight, bias, target if target.requires_grad else None, grad, column_sums)
        return reduce_rows(rows, reduction, rows.shape)

    @staticmethod
    @first_order
    def backward(ctx: Context, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        code, weight, bias, target, grad, column_sums = ctx.saved_tensors
        need_code, need_weight, need_bias, need_target = ctx.needs_input_grad[:4]
        scale = grad_loss / max(code.shape[0], 1) if ctx.reduction == "mean" else grad_loss
        d_code = d_target = None
        if need_code:
            none = code.new_empty(0)
            d_code, _, _ = ops.code_grad(
                grad, weight, code, none, "linear", scale, None, None, None, None, None, None, 0.0
            )
        if need_target:
            d_target = ops.decode_loss_target_grad(code, weight, bias, target, *ctx.settings)
            d_target = (d_target * _column(scale)).to(d_target.dtype)
        return (
            d_code,
            ops.weight_grad(grad, code, scale, None, None, None, None, None) if need_weight else None,
            _scaled_column_sums(grad, scale, column_sums).to(bias.dtype) if need_bias else None,
            d_target,
            None,
            None,
        )


class AutoencoderObjective(Function):
    """One node for the whole autoencoder: (total, reconstruction, contractive, higher order, l1, kl).

    ``x`` is what the encoder (after corruption) sees, in the products' dtype; ``target`` is clean.
    """

    @staticmethod
    def forward(
        ctx: Context,
        x: Tensor,
        target: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        decoder_weight: Tensor | None,
        decoder_bias: Tensor | None,
        seed: Tensor | None,
        o: Objective,
    ) -> tuple[Tensor | None, ...]:
        v = weight.t() if decoder_weight is None else decoder_weight
        x_in = x
        if o.corruption != "none":
            assert seed is not None
            x_in = ops.corrupt(x, seed, o.corruption, o.corruption_params, 0)
        sq_norms = ops.squared_norms(weight) if o.contractive or o.higher_order else None
        code, noisy, preact, penalty, l1, code_sum = ops.encode(
            x_in, weight, bias, o.activation, sq_norms if o.contractive else None, None, None, o.l1 != 0.0,
            o.kl != 0.0, seed, o.noise, o.noise_std, o.dropout,
        )  # fmt: skip
        decoder_input = noisy if o.noise != "none" or o.dropout else code
        settings = _decoder_settings(seed, o)
        reconstruction, grad, column_sums = ops.decode_loss(
            decoder_input, v, decoder_bias, target, *settings, decoder_bias is not None
        )

        contractive = higher_order = kl = column_grad = None
        copies: list[Tensor] = []
        if o.contractive:
            contractive = penalty
        if o.higher_order:
            assert seed is not None and sq_norms is not None
            higher_order = torch.zeros_like(reconstruction)
            for k in range(o.higher_order_samples):
                copy = ops.corrupt(x_in, seed, "gaussian", [o.higher_order_std], STREAM_CONTRACTION + k)
                code2, _, preact2, difference, _, _ = ops.encode(
                    copy, weight, bias, o.activation, sq_norms, code, preact, False, False, None, "none",
                    0.0, 0.0,
                )  # fmt: skip
                higher_order += difference
                copies += [code2, preact2]
            higher_order = higher_order / o.higher_order_samples
        rows = (reconstruction, contractive, higher_order, l1 if o.l1 else None)
        terms = [None if row is None else reduce_rows(row, o.reduction, row.shape) for row in rows]
        total = loss = cast(Tensor, terms[0])
        for factor, term in zip((o.contractive, o.higher_order, o.l1), terms[1:], strict=True):
            if term is not None:
                total = torch.add(total, term, alpha=factor)
        if o.kl:
            mean = code_sum / code.shape[0]
            kl = reference.kl_divergence(mean, o.kl_target)
            column_grad = _kl_column_grad(mean, o.kl_target)
            held = rows_that_hold_kl(o.reduction, code.shape[0])
            total = total + o.kl * held * kl if held else total
        if total is loss:
            total = total.clone()

        ctx.objective = o
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(
            x_in, target if target.requires_grad else None, weight, bias, decoder_weight, decoder_bias, seed,
            code, decoder_input, preact, grad, column_sums, sq_norms, column_grad, *copies,
        )  # fmt: skip
        return (total, *terms, kl)

    @staticmethod
    @first_order
    def backward(ctx: Context, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        o: Objective = ctx.objective
        (x_in, target, weight, bias, decoder_weight, decoder_bias, seed, code, decoder_input, preact, grad,
         column_sums, sq_norms, column_grad, *copies) = ctx.saved_tensors  # fmt: skip
        need_x, need_target, need_weight, need_bias, need_decoder, need_decoder_bias = ctx.needs_input_grad[
            :6
        ]
        v = weight.t() if decoder_weight is None else decoder_weight
        rows = code.shape[0]
        g_total, g_reconstruction, g_contractive, g_higher, g_l1, g_kl = grads

        def scale(factor: float, own: Tensor | None) -> Tensor | None:
            """The gradient that reaches a term's value in each row: a scalar, or [M]."""
            parts = [
                g
                for g in (g_total * factor if g_total is not None and factor else None, own)
                if g is not None
            ]
            if not parts:
                return None
            value = parts[0] if len(parts) == 1 else parts[0] + parts[1]
            return value / max(rows, 1) if o.reduction == "mean" else value

        rec_scale = scale(1.0, g_reconstruction)
        penalty_scale = scale(o.contractive, g_contractive)
        l1_scale = scale(o.l1, g_l1)
        higher_scale = scale(o.higher_order, g_higher)
        if column_grad is not None:
            column_grad = column_grad * _kl_scale(o, g_total, g_kl, rows)
        if rec_scale is None:
            rec_scale = torch.zeros((), dtype=torch.float32, device=code.device)

        dz = extra = u2 = None
        noisy_parts: list[Tensor] = []
        if higher_scale is not None:
            share = higher_scale / o.higher_order_samples
            for code2, preact2 in zip(copies[::2], copies[1::2], strict=True):
                d, d2, u_k = ops.slope_difference_grad(
                    code, preact, code2, preact2, o.activation, sq_norms, share
                )
                extra = d if extra is None else extra.add_(d)
                u2 = u_k if u2 is None else u2.add_(u_k)
                noisy_parts.append(d2)
        dz, db, u = ops.code_grad(
            grad, v, code, preact, o.activation, rec_scale, penalty_scale, sq_norms, l1_scale, column_grad,
            extra, seed, o.dropout,
        )  # fmt: skip
        u = u if penalty_scale is not None else None
        u = u2 if u is None else (u if u2 is None else u.add_(u2))

        d_weight = d_decoder = d_x = None
        tied = decoder_weight is None
        if need_weight:
            second = (decoder_input, grad, rec_scale) if tied else (None, None, None)
            d_weight = ops.weight_grad(dz, x_in, None, weight if u is not None else None, u, *second)
        if need_decoder and not tied:
            d_decoder = ops.weight_grad(grad, decoder_input, rec_scale, None, None, None, None, None)
        if need_x:
            d_x = torch.mm(dz, weight)
        for k, d2 in enumerate(noisy_parts):
            db += d2.sum(0, dtype=db.dtype)
            if d_weight is not None:
                copy = ops.corrupt(x_in, seed, "gaussian", [o.higher_order_std], STREAM_CONTRACTION + k)
                d_weight.addmm_(d2.t(), copy)
            if d_x is not None:
                d_x.addmm_(d2, weight)
        if need_x and o.corruption != "none":
            d_x = ops.corrupt_backward(d_x, seed, o.corruption, o.corruption_params, 0)

        d_target = None
        if need_target:
            d_target = ops.decode_loss_target_grad(
                decoder_input, v, decoder_bias, target, *_decoder_settings(seed, o)
            )
            d_target = (d_target * _column(rec_scale)).to(d_target.dtype)
        return (
            d_x,
            d_target,
            d_weight,
            db.to(bias.dtype) if need_bias else None,
            d_decoder,
            _scaled_column_sums(grad, rec_scale, column_sums).to(decoder_bias.dtype)
            if need_decoder_bias
            else None,
            None,
            None,
        )


def _decoder_settings(seed: Tensor | None, o: Objective) -> DecoderSettings:
    if o.emphasis is None:
        return DecoderSettings(o.loss, o.output_activation)
    p, width = o.corruption_params[0], mask_width(o.corruption)
    return DecoderSettings(o.loss, o.output_activation, seed, p, width, *o.emphasis)


def _kl_column_grad(mean: Tensor, target: float) -> Tensor:
    """d KL / d mean_j, [H]; 0 where the mean is held away from 0 or 1."""
    eps = torch.finfo(mean.dtype).eps
    held = mean.clamp(eps, 1.0 - eps)
    return ((1.0 - target) / (1.0 - held) - target / held) * (held == mean)


def rows_that_hold_kl(reduction: str, rows: int) -> int:
    """How often the reduced total holds the divergence, of which the total of every row has one."""
    return rows if reduction == "sum" else 1


def _kl_scale(o: Objective, g_total: Tensor | None, g_kl: Tensor | None, rows: int) -> Tensor | float:
    """d L / d KL over the number of rows: the total of every row holds the divergence once."""
    scale: Tensor | float = 0.0
    if g_total is not None:
        scale = o.kl * rows_that_hold_kl(o.reduction, rows) * g_total.sum()
    if g_kl is not None:
        scale = scale + g_kl
    return scale / max(rows, 1)


def _column(scale: Tensor) -> Tensor:
    return scale if scale.dim() == 0 else scale[:, None]


def _scaled_column_sums(grad: Tensor, scale: Tensor, column_sums: Tensor) -> Tensor:
    """sum_n scale_n grad_n, [D], from the sums without a scale where it is one for all rows."""
    return column_sums * scale if scale.dim() == 0 else scale @ grad.to(scale.dtype)
