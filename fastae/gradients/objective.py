"""The whole objective of a one-layer autoencoder as one autograd node."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import Function

from .. import ops, reference
from ..corruption import Gaussian
from ..objective import Objective, kl_count
from ..ops import Encoded
from ..philox import STREAM_CONTRACTION, STREAM_CORRUPTION
from ..share import batch_mean
from ..tensors import reduce_rows
from .layers import decoding_of, scaled_column_sums, target_gradient
from .noise import draw
from .once import Context, first_order


class _Saved(NamedTuple):
    """Tensors kept for the backward pass, apart from the codes of the noisy copies."""

    x_in: Tensor  # [M, D], as the encoder sees it
    target: Tensor | None  # [M, D]
    weight: Tensor  # [H, D]
    bias: Tensor | None  # [H]
    decoder_weight: Tensor | None  # [D, H]
    decoder_bias: Tensor | None  # [D]
    seed: Tensor | None  # [1]
    code: Tensor  # [M, H]
    decoder_input: Tensor  # [M, H]
    preact: Tensor  # [M, H] or empty
    grad: Tensor  # [M, D], of each row's loss with respect to the decoder's product
    column_sums: Tensor  # [D], of grad
    sq_norms: Tensor | None  # [H]
    column_grad: Tensor | None  # [H], of the divergence with respect to the mean activations

    @property
    def decoder(self) -> Tensor:
        return self.weight.t() if self.decoder_weight is None else self.decoder_weight


class AutoencoderObjective(Function):
    """(total, reconstruction, contractive, higher order, l1, kl) of an objective.

    ``x`` is the input before corruption, in the products' dtype; ``target`` is clean.
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
        objective: Objective,
        reduction: str,
    ) -> tuple[Tensor | None, ...]:
        o = objective
        x_in = x
        if o.corruption is not None:
            assert seed is not None
            x_in = draw(x, seed, o.corruption, STREAM_CORRUPTION)
        sq_norms = ops.squared_norms(weight) if o.contractive or o.higher_order else None
        encoded = ops.encode(
            x_in,
            weight,
            bias,
            o.activation,
            sq_norms=sq_norms if o.contractive else None,
            l1=o.l1 != 0.0,
            code_sum=o.kl != 0.0,
            seed=seed,
            noise=o.code_noise,
            noise_std=o.code_noise_std,
            dropout=o.dropout,
        )
        decoder_input = encoded.noisy if o.perturbs_code else encoded.code
        reconstruction, grad, column_sums = ops.decode_loss(
            decoder_input,
            weight.t() if decoder_weight is None else decoder_weight,
            decoder_bias,
            target,
            **decoding_of(o, seed)._asdict(),
            column_sums=decoder_bias is not None,
        )
        higher_order, copies = None, []
        if o.higher_order:
            assert seed is not None and sq_norms is not None
            higher_order, copies = _curvature(x_in, weight, bias, encoded, sq_norms, seed, o)
        rows = (
            reconstruction,
            encoded.penalty if o.contractive else None,
            higher_order,
            encoded.l1 if o.l1 else None,
        )
        terms = [None if row is None else reduce_rows(row, reduction, row.shape) for row in rows]
        kl = column_grad = None
        if o.kl:
            mean = batch_mean(encoded.code_sum / encoded.code.shape[0])
            kl = reference.kl_divergence(mean, o.kl_target)
            column_grad = _kl_column_grad(mean, o.kl_target)

        ctx.objective, ctx.reduction = o, reduction
        ctx.set_materialize_grads(False)
        saved = _Saved(
            x_in,
            target if target.requires_grad else None,
            weight,
            bias,
            decoder_weight,
            decoder_bias,
            seed,
            encoded.code,
            decoder_input,
            encoded.preact,
            grad,
            column_sums,
            sq_norms,
            column_grad,
        )
        ctx.save_for_backward(*saved, *(t for copy in copies for t in (copy.code, copy.preact)))
        return (weighted_total(terms, kl, o, kl_count(reduction, x.shape[0])), *terms, kl)

    @staticmethod
    @first_order
    def backward(ctx: Context, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        o: Objective = ctx.objective
        tensors, kept = ctx.saved_tensors, len(_Saved._fields)  # under checkpointing to be read once
        saved, copies = _Saved(*tensors[:kept]), tensors[kept:]
        need = dict(zip(_INPUTS, ctx.needs_input_grad, strict=False))
        g_total, g_reconstruction, g_contractive, g_higher, g_l1, g_kl = grads
        rows = saved.code.shape[0]

        def scale(weight: float, own: Tensor | None) -> Tensor | None:
            return _row_scale(weight, g_total, own, rows if ctx.reduction == "mean" else 1)

        loss_scale = scale(1.0, g_reconstruction)
        if loss_scale is None:
            loss_scale = torch.zeros((), dtype=torch.float32, device=saved.code.device)
        penalty_scale = scale(o.contractive, g_contractive)
        column_grad = saved.column_grad
        if column_grad is not None:
            column_grad = column_grad * _kl_scale(o, ctx.reduction, g_total, g_kl, rows)
        extra, u2, noisy_dz = _curvature_gradient(saved, copies, scale(o.higher_order, g_higher), o)
        dz, db, u = ops.code_grad(
            saved.grad,
            saved.decoder,
            saved.code,
            saved.preact,
            o.activation,
            scale=loss_scale,
            penalty_scale=penalty_scale,
            sq_norms=saved.sq_norms,
            l1_scale=scale(o.l1, g_l1),
            column_grad=column_grad,
            extra=extra,
            seed=saved.seed,
            dropout=o.dropout,
        )
        u = _sum(u if penalty_scale is not None else None, u2)

        d_x = torch.mm(dz, saved.weight) if need["x"] else None
        d_weight = _weight_gradient(saved, dz, u, loss_scale) if need["weight"] else None
        d_decoder = None
        if need["decoder_weight"] and saved.decoder_weight is not None:
            d_decoder = ops.weight_grad(saved.grad, saved.decoder_input, loss_scale)
        for k, dz_k in enumerate(noisy_dz):
            db += dz_k.sum(0, dtype=db.dtype)
            if d_weight is not None:
                d_weight.addmm_(dz_k.t(), _noisy_copy(saved.x_in, saved.seed, k, o))
            if d_x is not None:
                d_x.addmm_(dz_k, saved.weight)
        if d_x is not None and o.corruption is not None:
            assert saved.seed is not None
            kind, params = o.corruption.kind, o.corruption.params
            d_x = ops.corrupt_backward(d_x, saved.seed, kind, params, STREAM_CORRUPTION)
        d_target = d_decoder_bias = None
        if need["target"] and saved.target is not None:
            d_target = target_gradient(
                saved.decoder_input,
                saved.decoder,
                saved.decoder_bias,
                saved.target,
                decoding_of(o, saved.seed),
                loss_scale,
            )
        if need["decoder_bias"] and saved.decoder_bias is not None:
            d_decoder_bias = scaled_column_sums(saved.grad, loss_scale, saved.column_sums)
            d_decoder_bias = d_decoder_bias.to(saved.decoder_bias.dtype)
        d_bias = db.to(saved.bias.dtype) if need["bias"] and saved.bias is not None else None
        return d_x, d_target, d_weight, d_bias, d_decoder, d_decoder_bias, None, None, None


_INPUTS = ("x", "target", "weight", "bias", "decoder_weight", "decoder_bias")


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """a + b, in the memory of a."""
    return b if a is None else (a if b is None else a.add_(b))


def _row_scale(weight: float, g_total: Tensor | None, own: Tensor | None, divisor: int) -> Tensor | None:
    """The gradient that reaches a term's value per row: a scalar, or [M]."""
    value = g_total * weight if g_total is not None and weight else None
    if own is not None:
        value = own if value is None else value + own
    return value if value is None or divisor == 1 else value / max(divisor, 1)


def weighted_total(terms: list[Tensor | None], kl: Tensor | None, o: Objective, count: int) -> Tensor:
    """The weighted sum of reduced terms; ``count`` times the divergence."""
    reconstruction = terms[0]
    assert reconstruction is not None
    total = reconstruction
    for weight, term in zip((o.contractive, o.higher_order, o.l1), terms[1:], strict=True):
        if term is not None:
            total = torch.add(total, term, alpha=weight)
    if kl is not None and count:
        total = total + o.kl * count * kl
    return total.clone() if total is reconstruction else total


def _weight_gradient(saved: _Saved, dz: Tensor, u: Tensor | None, loss_scale: Tensor) -> Tensor:
    own = {} if u is None else {"weight": saved.weight, "u": u}
    if saved.decoder_weight is None:
        own.update(a2=saved.decoder_input, b2=saved.grad, scale2=loss_scale)
    return ops.weight_grad(dz, saved.x_in, **own)


# --- higher-order contraction -----------------------------------------------------------------------------


def _noisy_copy(x_in: Tensor, seed: Tensor | None, k: int, o: Objective) -> Tensor:
    assert seed is not None
    noise = Gaussian(o.higher_order_std)
    return ops.corrupt(x_in, seed, noise.kind, noise.params, STREAM_CONTRACTION + k)


def _curvature(
    x_in: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    encoded: Encoded,
    sq_norms: Tensor,
    seed: Tensor,
    o: Objective,
) -> tuple[Tensor, list[Encoded]]:
    """The higher-order penalty per row, [M], and what was encoded of each noisy copy."""
    copies = [
        ops.encode(
            _noisy_copy(x_in, seed, k, o),
            weight,
            bias,
            o.activation,
            sq_norms=sq_norms,
            base_code=encoded.code,
            base_preact=encoded.preact,
        )
        for k in range(o.higher_order_samples)
    ]
    penalty = copies[0].penalty.clone()
    for copy in copies[1:]:
        penalty += copy.penalty
    return penalty / o.higher_order_samples, copies


def _curvature_gradient(
    saved: _Saved, copies: tuple[Tensor, ...], scale: Tensor | None, o: Objective
) -> tuple[Tensor | None, Tensor | None, list[Tensor]]:
    """Terms that the higher-order penalty adds to dz and to u, and the dz of each noisy copy."""
    dz = u = None
    noisy: list[Tensor] = []
    if scale is None or saved.sq_norms is None:
        return dz, u, noisy
    for k in range(o.higher_order_samples):
        code, preact = copies[2 * k : 2 * k + 2]
        step = ops.slope_difference_grad(
            saved.code,
            saved.preact,
            code,
            preact,
            o.activation,
            saved.sq_norms,
            scale / o.higher_order_samples,
        )
        dz, u = _sum(dz, step.dz), _sum(u, step.u)
        noisy.append(step.dz2)
    return dz, u, noisy


# --- divergence from a mean activation ----------------------------------------------------------------------


def _kl_column_grad(mean: Tensor, target: float) -> Tensor:
    """d KL / d mean_j, [H]; 0 where the mean is held away from 0 or 1."""
    eps = torch.finfo(mean.dtype).eps
    held = mean.clamp(eps, 1.0 - eps)
    return ((1.0 - target) / (1.0 - held) - target / held) * (held == mean)


def _kl_scale(
    o: Objective, reduction: str, g_total: Tensor | None, g_kl: Tensor | None, rows: int
) -> Tensor | float:
    """d L / d KL over the number of rows."""
    scale: Tensor | float = 0.0
    if g_total is not None:
        scale = o.kl * kl_count(reduction, rows) * g_total.sum()
    if g_kl is not None:
        scale = scale + g_kl
    return scale / max(rows, 1)
